import CInterposer
import CSocketSwitch

@c(epoll_create) public func interposedEpollCreate(_ size: Int32) -> Int32 {
    let set = ss_real.epoll_create(size)
    if set >= 0 { trackEpollSet(set) }
    return set
}

@c(epoll_create1) public func interposedEpollCreate1(_ flags: Int32) -> Int32 {
    let set = ss_real.epoll_create1(flags)
    if set >= 0 { trackEpollSet(set) }
    return set
}

@inline(never)
func trackEpollSet(_ set: Int32) { switchEpollCreated(set) }

@c(epoll_ctl) public func interposedEpollCtl(
    _ set: Int32, _ operation: Int32, _ fd: Int32, _ event: UnsafeMutablePointer<epoll_event>?
) -> Int32 {
    (descriptorEntry(set) | descriptorEntry(fd)) == 0
        ? ss_real.epoll_ctl(set, operation, fd, event) : trackedEpollControl(set, operation, fd, event)
}

@inline(never)
func trackedEpollControl(
    _ set: Int32, _ operation: Int32, _ fd: Int32, _ event: UnsafeMutablePointer<epoll_event>?
) -> Int32 {
    var copy = epoll_event()
    guard let event, ss_copy_program_memory(&copy, event, MemoryLayout<epoll_event>.size) == 0 else {
        // The kernel refuses it, or (EPOLL_CTL_DEL) does not look at it.
        return event == nil || operation == EPOLL_CTL_DEL
            ? answer32(switchEpollControl(set, operation, fd, nil)) : ss_real.epoll_ctl(set, operation, fd, event)
    }
    return answer32(switchEpollControl(set, operation, fd, &copy))
}

@c(epoll_wait) public func interposedEpollWait(
    _ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: Int32
) -> Int32 {
    descriptorEntry(set) == 0
        ? ss_real.epoll_wait(set, events, maximum, timeout) : trackedEpollWait(set, events, maximum, timeout, nil)
}

@c(epoll_pwait) public func interposedEpollPwait(
    _ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: Int32,
    _ mask: UnsafeRawPointer?
) -> Int32 {
    descriptorEntry(set) == 0
        ? ss_real.epoll_pwait(set, events, maximum, timeout, mask)
        : trackedEpollWait(set, events, maximum, timeout, mask)
}

@c(epoll_pwait2) public func interposedEpollPwait2(
    _ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: UnsafePointer<timespec>?,
    _ mask: UnsafeRawPointer?
) -> Int32 {
    descriptorEntry(set) == 0
        ? ss_real.epoll_pwait2(set, events, maximum, timeout, mask)
        : trackedEpollWait2(set, events, maximum, timeout, mask)
}

/// `timeout` in milliseconds, negative for ever.
@inline(never)
func trackedEpollWait(
    _ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: Int32,
    _ mask: UnsafeRawPointer?
) -> Int32 {
    if timeout < 0 { return trackedEpollWait2(set, events, maximum, nil, mask) }
    var time = timespec(milliseconds: timeout)
    return trackedEpollWait2(set, events, maximum, &time, mask)
}

@inline(never)
func trackedEpollWait2(
    _ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: UnsafePointer<timespec>?,
    _ mask: UnsafeRawPointer?
) -> Int32 {
    ss_test_cancel()
    // Whether there is something that cannot be told matters, too.
    guard maximum <= 0 || ss_probe_program_memory(events, MemoryLayout<epoll_event>.size) == 0 else {
        var lost = epoll_event()
        let result = switchEpollWait(set, &lost, 1, timeout, mask)
        return Int32(truncatingIfNeeded: answerCancellable(result > 0 ? 0 &- Int(EFAULT) : result))
    }
    var time = timespec()
    guard let timeout else {
        return Int32(truncatingIfNeeded: answerCancellable(switchEpollWait(set, events, maximum, nil, mask)))
    }
    guard ss_copy_program_memory(&time, timeout, MemoryLayout<timespec>.size) == 0 else {
        return ss_real.epoll_pwait2(set, events, maximum, timeout, mask)
    }
    return Int32(truncatingIfNeeded: answerCancellable(switchEpollWait(set, events, maximum, &time, mask)))
}
