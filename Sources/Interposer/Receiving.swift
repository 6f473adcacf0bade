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
    let result = switchReceive(fd, buffer, count, 0)
    return isNoSocket(result) ? ss_real.read(fd, buffer, count) : answerCancellable(result)
}

@c(recv) public func interposedRecv(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.recv(fd, buffer, count, flags) : trackedReceive(fd, buffer, count, flags)
}

@inline(never)
func trackedReceive(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    ss_test_cancel()
    return answerCancellable(switchReceive(fd, buffer, count, flags))
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
    let room = length?.pointee ?? 0
    var piece = iovec(iov_base: buffer, iov_len: count)
    let result = withUnsafeMutablePointer(to: &piece) { (pieces: UnsafeMutablePointer<iovec>) in
        var message = msghdr()
        message.msg_name = room <= UInt32(Int32.max) ? address : nil
        message.msg_namelen = room <= UInt32(Int32.max) ? room : 0
        message.msg_iov = pieces
        message.msg_iovlen = 1
        let received = switchReceiveMessage(fd, &message, flags)
        guard received >= 0 else { return received }
        guard let length else { return 0 &- Int(EFAULT) }
        guard room <= UInt32(Int32.max) else { return 0 &- Int(EINVAL) }
        length.pointee = message.msg_namelen
        return received
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
/// and to receive nothing is to wait there.
@inline(__always)
func isVector(_ fd: Int32, _ list: UnsafePointer<iovec>, _ count: Int32) -> Bool {
    if count < 0 || count > 1024 { return false }
    var index = 0
    while index < Int(count) {
        if list[index].iov_len != 0 { return true }
        index &+= 1
    }
    return entryKind(descriptorEntry(fd)) == DescriptorKind.own
}

@c(recvmsg) public func interposedRecvmsg(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>?, _ flags: Int32) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.recvmsg(fd, message, flags) : trackedReceiveMessage(fd, message, flags)
}

@inline(never)
func trackedReceiveMessage(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>?, _ flags: Int32) -> Int {
    guard let message else { return ss_real.recvmsg(fd, nil, flags) }
    ss_test_cancel()
    return answerCancellable(switchReceiveMessage(fd, message, flags))
}
