import CInterposer
import CSocketSwitch

// The functions that set what a signal does: the program's handlers are entered through the library (ProgramSignals.h).

@c(sigaction) public func interposedSigaction(
    _ signal: Int32, _ action: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
) -> Int32 {
    ss_program_sigaction(signal, action, old)
}

@c(signal) public func interposedSignal(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    ss_program_signal(signal, handler)
}

@c(ssignal) public func interposedSsignal(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    ss_program_signal(signal, handler)
}

@c(bsd_signal) public func interposedBSDSignal(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    ss_program_signal(signal, handler)
}

@c(sysv_signal) public func interposedSysVSignal(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    ss_program_sysv_signal(signal, handler)
}

@c(__sysv_signal) public func interposedSysVSignal2(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    ss_program_sysv_signal(signal, handler)
}

@c(siginterrupt) public func interposedSiginterrupt(_ signal: Int32, _ interrupts: Int32) -> Int32 {
    ss_program_siginterrupt(signal, interrupts)
}

@c(sigset) public func interposedSigset(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    ss_program_sigset(signal, handler)
}

@c(sigignore) public func interposedSigignore(_ signal: Int32) -> Int32 { ss_program_sigignore(signal) }
