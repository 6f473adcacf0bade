import CInterposer
import CSocketSwitch

// Names under which libc offers the same functions once more, and small functions of libc that read, write or ask by
// themselves.

@c(__read) public func interposedRead2(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    interposedRead(fd, buffer, count)
}

@c(__write) public func interposedWrite2(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int) -> Int {
    interposedWrite(fd, buffer, count)
}

@c(__send) public func interposedSend2(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    interposedSend(fd, buffer, count, flags)
}

@c(__connect) public func interposedConnect2(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int32 {
    interposedConnect(fd, address, length)
}

@c(__close) public func interposedClose2(_ fd: Int32) -> Int32 { interposedClose(fd) }

@c(__dup2) public func interposedDup22(_ old: Int32, _ new: Int32) -> Int32 { interposedDup2(old, new) }

@c(__fcntl) public func interposedFcntl2(_ fd: Int32, _ command: Int32, _ argument: Int) -> Int32 {
    interposedFcntl(fd, command, argument)
}

@c(__poll) public func interposedPoll2(_ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    interposedPoll(list, count, timeout)
}

@c(__select) public func interposedSelect2(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?,
    _ except: UnsafeMutableRawPointer?, _ timeout: UnsafeMutablePointer<timeval>?
) -> Int32 {
    interposedSelect(count, read, write, except, timeout)
}

@c(sockatmark) public func interposedSockatmark(_ fd: Int32) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.sockatmark(fd) : trackedSockatmark(fd)
}

@inline(never)
func trackedSockatmark(_ fd: Int32) -> Int32 {
    var mark: Int32 = 0
    return interposedIoctl(fd, UInt(SIOCATMARK), &mark) < 0 ? -1 : mark
}

@c(eventfd_read) public func interposedEventRead(_ fd: Int32, _ value: UnsafeMutablePointer<UInt64>?) -> Int32 {
    if descriptorEntry(fd) == 0 { return ss_real.eventfd_read(fd, value) }
    return trackedRead(fd, value, 8) == 8 ? 0 : -1
}

@c(eventfd_write) public func interposedEventWrite(_ fd: Int32, _ value: UInt64) -> Int32 {
    if descriptorEntry(fd) == 0 { return ss_real.eventfd_write(fd, value) }
    var value = value
    return trackedWrite(fd, &value, 8) == 8 ? 0 : -1
}
