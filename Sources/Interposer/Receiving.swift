import CInterposer
import CSocketSwitch

// MARK: read, recv, recvfrom

@c(read) public func interposedRead(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.read(fd, buffer, count) : trackedRead(fd, buffer, count)
}

/// A read of nothing returns at once, a recv of nothing waits: the former is left to the kernel, which knows.
@inline(never)
func trackedRead(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    if count == 0, entryKind(descriptorEntry(fd)) == DescriptorKind.socket { return ss_real.read(fd, buffer, 0) }
    ss_test_cancel()
    if isBeyondMemory(fd, buffer, count) { return answer(0 &- Int(EFAULT)) }
    let result = switchReceive(fd, buffer, clamped(count), 0)
    return isNoSocket(result) ? ss_real.read(fd, buffer, count) : answerCancellable(result)
}

@c(recv) public func interposedRecv(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.recv(fd, buffer, count, flags) : trackedReceive(fd, buffer, count, flags)
}

@inline(never)
func trackedReceive(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    ss_test_cancel()
    return answerCancellable(switchReceive(fd, buffer, clamped(count), flags))
}

@c(recvfrom) public func interposedRecvfrom(
    _ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32,
    _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int {
    descriptorEntry(fd) == 0
        ? ss_real.recvfrom(fd, buffer, count, flags, address, length)
        : trackedReceiveFrom(fd, buffer, count, flags, address, length)
}

/// With an address the call is a recvmsg; the kernel says how long the address is (0 for TCP data). It looks at the two
/// address arguments only after it has received.
@inline(never)
func trackedReceiveFrom(
    _ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32,
    _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int {
    guard let address else { return trackedReceive(fd, buffer, count, flags) }
    ss_test_cancel()
    var room: UInt32 = 0
    let isLength = ss_copy_program_memory(&room, length, 4) == 0
    var piece = iovec(iov_base: buffer, iov_len: clamped(count))
    let result = withUnsafeMutablePointer(to: &piece) { (pieces: UnsafeMutablePointer<iovec>) in
        var message = msghdr()
        message.msg_name = room <= UInt32(Int32.max) ? address : nil
        message.msg_namelen = room <= UInt32(Int32.max) ? room : 0
        message.msg_iov = pieces
        message.msg_iovlen = 1
        let received = switchReceiveMessage(fd, &message, flags)
        guard received >= 0 else { return received }
        guard isLength else { return 0 &- Int(EFAULT) }
        guard room <= UInt32(Int32.max) else { return 0 &- Int(EINVAL) }
        return ss_copy_program_memory(length, &message.msg_namelen, 4) == 0 ? received : 0 &- Int(EFAULT)
    }
    return answerCancellable(result)
}

// MARK: readv, recvmsg

@c(readv) public func interposedReadv(_ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.readv(fd, list, count) : trackedReadv(fd, list, count)
}

@inline(never)
func trackedReadv(_ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32) -> Int {
    guard let list, isVector(fd, list, count) else { return ss_real.readv(fd, list, count) }
    ss_test_cancel()
    var message = msghdr()
    message.msg_iov = UnsafeMutablePointer(mutating: list)
    message.msg_iovlen = Int(count)
    let result = switchReceiveMessage(fd, &message, 0)
    return isNoSocket(result) ? ss_real.readv(fd, list, count) : answerCancellable(result)
}

/// Whether readv and writev of this list mean the same as recvmsg and sendmsg. Too many pieces are another error there,
/// and to receive nothing is to wait there. What cannot be read is the kernel's to refuse.
@inline(__always)
func isVector(_ fd: Int32, _ list: UnsafePointer<iovec>, _ count: Int32) -> Bool {
    if count < 0 || count > 1024 { return false }
    ss_guard_memory()
    var index = 0
    while index < Int(count) {
        var piece = iovec()
        if ss_guarded_copy(&piece, list + index, MemoryLayout<iovec>.size) != 0 { return false }
        if piece.iov_len != 0 { return true }
        index &+= 1
    }
    return entryKind(descriptorEntry(fd)) == DescriptorKind.own
}

@c(recvmsg) public func interposedRecvmsg(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>?, _ flags: Int32) -> Int {
    descriptorEntry(fd) == 0 ? passingReceiveMessage(fd, message, flags) : trackedReceiveMessage(fd, message, flags)
}

@inline(never)
func trackedReceiveMessage(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>?, _ flags: Int32) -> Int {
    ss_test_cancel()
    return answerCancellable(receiveMessage(fd, message, flags))
}

/// recvmsg with a header that is the program's: the switch works on a copy, and gives back what the kernel would write.
func receiveMessage(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>?, _ flags: Int32) -> Int {
    var header = msghdr()
    guard let message, ss_copy_program_memory(&header, message, MemoryLayout<msghdr>.size) == 0 else {
        return ss_sys_recvmsg(fd, message, flags)
    }
    let result = switchReceiveMessage(fd, &header, flags)
    if result < 0 { return result }
    if ss_probe_program_memory(message, MemoryLayout<msghdr>.size) != 0 { return 0 &- Int(EFAULT) }
    message.pointee.msg_namelen = header.msg_namelen
    message.pointee.msg_controllen = header.msg_controllen
    message.pointee.msg_flags = header.msg_flags
    return result
}
