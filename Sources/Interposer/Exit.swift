import CInterposer
import CSocketSwitch

// The end of the process: peers may wait for bytes that only this process can send (see Session+HandOver.swift). exit(3)
// runs the library's destructor, quick_exit(3) a handler that the constructor registers (the first, and so the last to run);
// _exit(2) runs nothing, so it is taken. None of it happens in a process that is killed.

@section(".fini_array") @used
let finish: @convention(c) () -> Void = { switchBeforeExit(closes: true) }

@c(_exit) public func interposedExit(_ status: Int32) -> Never {
    switchBeforeExit(closes: true)
    while true { _ = ss_syscall6(Int(SYS_exit_group), Int(status), 0, 0, 0, 0, 0) }
}

@c(_Exit) public func interposedExitOfISO(_ status: Int32) -> Never { interposedExit(status) }
