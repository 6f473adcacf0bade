import CInterposer
import CSocketSwitch

/// fork without the handlers of pthread_atfork.
@c(_Fork) public func interposedFork() -> Int32 {
    switchBeforeFork()
    let child = ss_real._Fork()
    if child == 0 { switchAfterForkInChild() } else { switchAfterForkInParent() }
    return child
}

/// Variadic in C, with up to four words behind the option: see fcntl.
@c(prctl) public func interposedPrctl(_ option: Int32, _ a: UInt, _ b: UInt, _ c: UInt, _ d: UInt) -> Int32 {
    if option == 22 /* PR_SET_SECCOMP */ { switchBeforeSandbox() }
    return ss_real.prctl(option, a, b, c, d)
}
