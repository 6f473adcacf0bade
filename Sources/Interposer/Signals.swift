import CInterposer
import CSocketSwitch

// libc does all the work; the switch only learns which signals interrupt a blocking call for good (SA_RESTART absent).

@c(sigaction) public func interposedSigaction(
    _ signal: Int32, _ action: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
) -> Int32 {
    // SIGSEGV and SIGBUS, once they are ours: the program sees and sets its own action.
    if ss_program_sigaction(signal, action, old) != 0 { return 0 }
    let result = ss_real.sigaction(signal, action, old)
    if result == 0, action != nil { noteSignal(signal) }
    return result
}

@c(signal) public func interposedSignal(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    isTaken(signal) ? ss_program_signal(signal, handler, 0) : noted(signal, ss_real.signal(signal, handler))
}

@c(ssignal) public func interposedSsignal(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    isTaken(signal) ? ss_program_signal(signal, handler, 0) : noted(signal, ss_real.ssignal(signal, handler))
}

@c(bsd_signal) public func interposedBSDSignal(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    isTaken(signal) ? ss_program_signal(signal, handler, 0) : noted(signal, ss_real.bsd_signal(signal, handler))
}

@c(sysv_signal) public func interposedSysVSignal(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    isTaken(signal) ? ss_program_signal(signal, handler, 1) : noted(signal, ss_real.sysv_signal(signal, handler))
}

@c(__sysv_signal) public func interposedSysVSignal2(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    isTaken(signal) ? ss_program_signal(signal, handler, 1) : noted(signal, ss_real.__sysv_signal(signal, handler))
}

@c(siginterrupt) public func interposedSiginterrupt(_ signal: Int32, _ interrupts: Int32) -> Int32 {
    if isTaken(signal) { return ss_program_siginterrupt(signal, interrupts) }
    let result = ss_real.siginterrupt(signal, interrupts)
    if result == 0 { noteSignal(signal) }
    return result
}

@c(sigset) public func interposedSigset(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    isTaken(signal) ? ss_program_sigset(signal, handler) : noted(signal, ss_real.sigset(signal, handler))
}

@c(sigignore) public func interposedSigignore(_ signal: Int32) -> Int32 {
    if isTaken(signal) { return Int(bitPattern: ss_program_signal(signal, UnsafeMutableRawPointer(bitPattern: 1), 0)) == -1 ? -1 : 0 }
    let result = ss_real.sigignore(signal)
    if result == 0 { noteSignal(signal) }
    return result
}

/// Whether the kernel has our handler for it (ProgramMemory.h).
@inline(__always)
private func isTaken(_ signal: Int32) -> Bool {
    (signal == SIGSEGV || signal == SIGBUS) && ss_program_sigaction(signal, nil, nil) != 0
}

/// SIG_ERR, -1, says that nothing was changed.
@inline(__always)
private func noted(_ signal: Int32, _ old: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if Int(bitPattern: old) != -1 { noteSignal(signal) }
    return old
}

/// What is in force now, asked of libc so that all these calls are told in one way.
@inline(never)
private func noteSignal(_ signal: Int32) {
    let errno = ss_errno()
    var action = CInterposer.sigaction()
    if ss_real.sigaction(signal, nil, &action) == 0 {
        switchSignalAction(signal, restarts: action.sa_flags & SA_RESTART != 0, isHandler: ss_handler_of(&action) != 0)
    }
    ss_set_errno(errno)
}
