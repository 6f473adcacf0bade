import CInterposer
import CSocketSwitch

// libc does all the work; the switch only learns which signals interrupt a blocking call for good (SA_RESTART absent).

@c(sigaction) public func interposedSigaction(
    _ signal: Int32, _ action: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
) -> Int32 {
    let result = ss_real.sigaction(signal, action, old)
    if result == 0, action != nil { noteSignal(signal) }
    return result
}

@c(signal) public func interposedSignal(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    noted(signal, ss_real.signal(signal, handler))
}

@c(ssignal) public func interposedSsignal(_ signal: Int32, _ handler: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    noted(signal, ss_real.ssignal(signal, handler))
}

@c(bsd_signal) public func interposedBSDSignal(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    noted(signal, ss_real.bsd_signal(signal, handler))
}

@c(sysv_signal) public func interposedSysVSignal(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    noted(signal, ss_real.sysv_signal(signal, handler))
}

@c(__sysv_signal) public func interposedSysVSignal2(
    _ signal: Int32, _ handler: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    noted(signal, ss_real.__sysv_signal(signal, handler))
}

@c(siginterrupt) public func interposedSiginterrupt(_ signal: Int32, _ interrupts: Int32) -> Int32 {
    let result = ss_real.siginterrupt(signal, interrupts)
    if result == 0 { noteSignal(signal) }
    return result
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
