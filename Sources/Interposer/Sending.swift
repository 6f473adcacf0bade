import CInterposer
import CSocketSwitch

// MARK: write, send, sendto

@c(write) public func interposedWrite(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.write(fd, buffer, count) : trackedWrite(fd, buffer, count)
}

@inline(never)
func trackedWrite(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int) -> Int {
    ss_test_cancel()
    if isBeyondMemory(fd, buffer, count) { return answer(0 &- Int(EFAULT)) }
    let result = switchSend(fd, buffer, clamped(count), 0)
    return isNoSocket(result) ? ss_real.write(fd, buffer, count) : answerCancellable(result)
}

@c(send) public func interposedSend(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.send(fd, buffer, count, flags) : trackedSend(fd, buffer, count, flags)
}

@inline(never)
func trackedSend(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    ss_test_cancel()
    return answerCancellable(switchSend(fd, buffer, clamped(count), flags))
}

@c(sendto) public func interposedSendto(
    _ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32, _ address: UnsafeRawPointer?, _ length: UInt32
) -> Int {
    descriptorEntry(fd) == 0
        ? ss_real.sendto(fd, buffer, count, flags, address, length)
        : trackedSendTo(fd, buffer, count, flags, address, length)
}

/// sendto refuses an address that is too long where sendmsg cuts it short.
@inline(never)
func trackedSendTo(
    _ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32, _ address: UnsafeRawPointer?, _ length: UInt32
) -> Int {
    guard let address else { return trackedSend(fd, buffer, count, flags) }
    if length > 128 { return ss_real.sendto(fd, buffer, count, flags, address, length) }
    ss_test_cancel()
    var piece = iovec(iov_base: UnsafeMutableRawPointer(mutating: buffer), iov_len: clamped(count))
    let result = withUnsafeMutablePointer(to: &piece) { (pieces: UnsafeMutablePointer<iovec>) in
        var message = msghdr()
        message.msg_name = UnsafeMutableRawPointer(mutating: address)
        message.msg_namelen = length
        message.msg_iov = pieces
        message.msg_iovlen = 1
        return switchSendMessage(fd, &message, flags)
    }
    return answerCancellable(result)
}

// MARK: writev, sendmsg, sendfile

@c(writev) public func interposedWritev(_ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32) -> Int {
    descriptorEntry(fd) == 0 ? ss_real.writev(fd, list, count) : trackedWritev(fd, list, count)
}

@inline(never)
func trackedWritev(_ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32) -> Int {
    guard let list, isVector(fd, list, count) else { return ss_real.writev(fd, list, count) }
    ss_test_cancel()
    var message = msghdr()
    message.msg_iov = UnsafeMutablePointer(mutating: list)
    message.msg_iovlen = Int(count)
    let result = switchSendMessage(fd, &message, 0)
    return isNoSocket(result) ? ss_real.writev(fd, list, count) : answerCancellable(result)
}

@c(sendmsg) public func interposedSendmsg(_ fd: Int32, _ message: UnsafePointer<msghdr>?, _ flags: Int32) -> Int {
    if descriptorEntry(fd) != 0 { return trackedSendMessage(fd, message, flags) }
    return switchPassesDescriptors ? passingSendMessage(fd, message, flags) : ss_real.sendmsg(fd, message, flags)
}

@inline(never)
func trackedSendMessage(_ fd: Int32, _ message: UnsafePointer<msghdr>?, _ flags: Int32) -> Int {
    ss_test_cancel()
    return answerCancellable(sendMessage(fd, message, flags))
}

/// sendmsg with a header that is the program's.
func sendMessage(_ fd: Int32, _ message: UnsafePointer<msghdr>?, _ flags: Int32) -> Int {
    var header = msghdr()
    guard let message, ss_copy_program_memory(&header, message, MemoryLayout<msghdr>.size) == 0 else {
        return ss_sys_sendmsg(fd, message, flags)
    }
    return switchSendMessage(fd, &header, flags)
}

@c(sendfile) public func interposedSendfile(
    _ out: Int32, _ input: Int32, _ offset: UnsafeMutablePointer<Int64>?, _ count: Int
) -> Int {
    descriptorEntry(out) | descriptorEntry(input) == 0 ? ss_real.sendfile(out, input, offset, count) : trackedSendFile(out, input, offset, count)
}

@c(sendfile64) public func interposedSendfile64(
    _ out: Int32, _ input: Int32, _ offset: UnsafeMutablePointer<Int64>?, _ count: Int
) -> Int {
    descriptorEntry(out) | descriptorEntry(input) == 0 ? ss_real.sendfile64(out, input, offset, count) : trackedSendFile(out, input, offset, count)
}

@inline(never)
func trackedSendFile(_ out: Int32, _ input: Int32, _ offset: UnsafeMutablePointer<Int64>?, _ count: Int) -> Int {
    // Into a pipe the kernel moves a socket's bytes, too; EINVAL as in trackedSplice.
    if descriptorEntry(out) == 0, count != 0, !keepOnTCP(input, reads: true) { return answer(0 &- Int(EINVAL)) }
    return answer(switchSendFile(out, input, offset, count))
}
