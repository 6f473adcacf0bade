import CInterposer
import CSocketSwitch

// pread, pwrite, preadv and pwritev of a socket are ESPIPE, and nothing is moved: they are libc's. At offset -1 the newer
// pair reads and writes at the descriptor's own position, which is a socket's stream.

@c(preadv2) public func interposedPreadv2(
    _ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32, _ offset: Int64, _ flags: Int32
) -> Int {
    descriptorEntry(fd) == 0 || offset != -1
        ? ss_real.preadv2(fd, list, count, offset, flags) : trackedPreadv2(fd, list, count, flags)
}

@c(preadv64v2) public func interposedPreadv64v2(
    _ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32, _ offset: Int64, _ flags: Int32
) -> Int {
    interposedPreadv2(fd, list, count, offset, flags)
}

@c(pwritev2) public func interposedPwritev2(
    _ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32, _ offset: Int64, _ flags: Int32
) -> Int {
    descriptorEntry(fd) == 0 || offset != -1
        ? ss_real.pwritev2(fd, list, count, offset, flags) : trackedPwritev2(fd, list, count, flags)
}

@c(pwritev64v2) public func interposedPwritev64v2(
    _ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32, _ offset: Int64, _ flags: Int32
) -> Int {
    interposedPwritev2(fd, list, count, offset, flags)
}

/// RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_APPEND mean nothing to a socket; RWF_NOWAIT is MSG_DONTWAIT. The kernel knows of others.
private enum PositionedFlags {
    static var noWait: Int32 { 8 }
    static var known: Int32 { 0x1F }
}

@inline(never)
func trackedPreadv2(_ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32, _ flags: Int32) -> Int {
    guard let list, flags & ~PositionedFlags.known == 0, isVector(fd, list, count) else {
        return flags & ~PositionedFlags.known == 0 ? ss_real.preadv2(fd, list, count, -1, flags) : answer(0 &- Int(EOPNOTSUPP))
    }
    ss_test_cancel()
    var message = msghdr()
    message.msg_iov = UnsafeMutablePointer(mutating: list)
    message.msg_iovlen = Int(count)
    let result = switchReceiveMessage(fd, &message, flags & PositionedFlags.noWait != 0 ? Int32(MSG_DONTWAIT) : 0)
    return isNoSocket(result) ? ss_real.preadv2(fd, list, count, -1, flags) : answerCancellable(result)
}

@inline(never)
func trackedPwritev2(_ fd: Int32, _ list: UnsafePointer<iovec>?, _ count: Int32, _ flags: Int32) -> Int {
    guard let list, flags & ~PositionedFlags.known == 0, isVector(fd, list, count) else {
        return flags & ~PositionedFlags.known == 0 ? ss_real.pwritev2(fd, list, count, -1, flags) : answer(0 &- Int(EOPNOTSUPP))
    }
    ss_test_cancel()
    var message = msghdr()
    message.msg_iov = UnsafeMutablePointer(mutating: list)
    message.msg_iovlen = Int(count)
    let result = switchSendMessage(fd, &message, flags & PositionedFlags.noWait != 0 ? Int32(MSG_DONTWAIT) : 0)
    return isNoSocket(result) ? ss_real.pwritev2(fd, list, count, -1, flags) : answerCancellable(result)
}
