import CInterposer
import CSocketSwitch

// The forms that _FORTIFY_SOURCE compiles to. `size` is what the compiler knows of the buffer: a longer request goes to
// libc, which ends the program.

@c(__read_chk) public func interposedReadChecked(
    _ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ size: Int
) -> Int {
    descriptorEntry(fd) == 0 || exceeds(count, size)
        ? ss_real.__read_chk(fd, buffer, count, size) : trackedRead(fd, buffer, count)
}

@c(__recv_chk) public func interposedRecvChecked(
    _ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ size: Int, _ flags: Int32
) -> Int {
    descriptorEntry(fd) == 0 || exceeds(count, size)
        ? ss_real.__recv_chk(fd, buffer, count, size, flags) : trackedReceive(fd, buffer, count, flags)
}

@c(__recvfrom_chk) public func interposedRecvfromChecked(
    _ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ size: Int, _ flags: Int32,
    _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int {
    descriptorEntry(fd) == 0 || exceeds(count, size)
        ? ss_real.__recvfrom_chk(fd, buffer, count, size, flags, address, length)
        : trackedReceiveFrom(fd, buffer, count, flags, address, length)
}

@c(__poll_chk) public func interposedPollChecked(
    _ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32, _ size: Int
) -> Int32 {
    UInt(bitPattern: size) / UInt(MemoryLayout<pollfd>.stride) < count || !containsTracked(list, count)
        ? ss_real.__poll_chk(list, count, timeout, size) : trackedPoll(list, count, timeout)
}

@c(__ppoll_chk) public func interposedPpollChecked(
    _ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?,
    _ size: Int
) -> Int32 {
    UInt(bitPattern: size) / UInt(MemoryLayout<pollfd>.stride) < count || !containsTracked(list, count)
        ? ss_real.__ppoll_chk(list, count, timeout, mask, size) : trackedPpoll(list, count, timeout, mask)
}

@inline(__always)
private func exceeds(_ count: Int, _ size: Int) -> Bool { UInt(bitPattern: count) > UInt(bitPattern: size) }
