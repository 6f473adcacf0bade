import CInterposer
import CSocketSwitch

// Several messages in one call, which is as many calls as far as a stream goes.

@c(sendmmsg) public func interposedSendmmsg(
    _ fd: Int32, _ list: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32
) -> Int32 {
    if descriptorEntry(fd) != 0 { return trackedSendMessages(fd, list, count, flags) }
    return switchPassesDescriptors ? passingSendMessages(fd, list, count, flags) : ss_real.sendmmsg(fd, list, count, flags)
}

/// Ends at the first message that does not go whole. The kernel takes at most 1024 at once.
@inline(never)
func trackedSendMessages(_ fd: Int32, _ list: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32) -> Int32 {
    guard let list, count > 0 else { return ss_real.sendmmsg(fd, list, count, flags) }
    ss_test_cancel()
    var done = 0
    while done < Int(min(count, 1024)) {
        let message = header(of: list + done)
        var result = sendMessage(fd, message, flags)
        let whole = result >= bytes(of: message)
        if result >= 0 { result = note(result, in: list + done) }
        if result < 0 { return done > 0 ? Int32(truncatingIfNeeded: done) : Int32(truncatingIfNeeded: answerCancellable(result)) }
        done &+= 1
        if !whole { break }
    }
    return Int32(truncatingIfNeeded: done)
}

/// The header is the entry's beginning.
@inline(__always)
private func header(of entry: UnsafeMutablePointer<mmsghdr>) -> UnsafeMutablePointer<msghdr> {
    UnsafeMutableRawPointer(entry).assumingMemoryBound(to: msghdr.self)
}

/// What one message moved, or -EFAULT when that cannot be told.
private func note(_ result: Int, in entry: UnsafeMutablePointer<mmsghdr>) -> Int {
    var moved = UInt32(truncatingIfNeeded: result)
    let place = UnsafeMutableRawPointer(entry) + MemoryLayout<mmsghdr>.offsetOfLength
    return ss_copy_program_memory(place, &moved, 4) == 0 ? result : 0 &- Int(EFAULT)
}

/// In the first `count` messages, as the kernel has noted it.
private func bytesReceived(_ list: UnsafeMutablePointer<mmsghdr>, _ count: Int) -> Int {
    var total = 0
    var index = 0
    while index < count {
        var moved: UInt32 = 0
        _ = ss_copy_program_memory(&moved, UnsafeMutableRawPointer(list + index) + MemoryLayout<mmsghdr>.offsetOfLength, 4)
        total &+= Int(moved)
        index &+= 1
    }
    return total
}

extension MemoryLayout where T == mmsghdr {
    fileprivate static var offsetOfLength: Int { MemoryLayout<msghdr>.size }
}

/// Bytes of all buffers; 0 for a header that cannot be read.
private func bytes(of message: UnsafePointer<msghdr>) -> Int {
    var header = msghdr()
    guard ss_copy_program_memory(&header, message, MemoryLayout<msghdr>.size) == 0, let pieces = header.msg_iov else { return 0 }
    var total = 0
    var index = 0
    while index < Int(header.msg_iovlen) {
        var piece = iovec()
        guard ss_guarded_copy(&piece, pieces + index, MemoryLayout<iovec>.size) == 0 else { break }
        total = total &+ Int(piece.iov_len)
        index &+= 1
    }
    return total
}

@c(recvmmsg) public func interposedRecvmmsg(
    _ fd: Int32, _ list: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32,
    _ timeout: UnsafeMutablePointer<timespec>?
) -> Int32 {
    descriptorEntry(fd) == 0
        ? passingReceiveMessages(fd, list, count, flags, timeout) : trackedReceiveMessages(fd, list, count, flags, timeout)
}

/// As the kernel does it, the time-out is looked at only between messages. MSG_WAITFORONE waits for the first one alone.
@inline(never)
func trackedReceiveMessages(
    _ fd: Int32, _ list: UnsafeMutablePointer<mmsghdr>?, _ count: UInt32, _ flags: Int32,
    _ timeout: UnsafeMutablePointer<timespec>?
) -> Int32 {
    guard let list, count > 0, timeout == nil || isTime(timeout) else {
        return ss_real.recvmmsg(fd, list, count, flags, timeout)
    }
    ss_test_cancel()
    let plain = switchReceivePlainMessages(
        fd, { ss_sleeping_syscall6(Int(SYS_recvmmsg), Int(fd), Int(bitPattern: list), Int(count), Int(flags), Int(bitPattern: timeout), 0) },
        { bytesReceived(list, $0) })
    if let plain { return Int32(truncatingIfNeeded: answerCancellable(plain)) }
    // Unlike recvmsg it reports a reset before the bytes that came first.
    let pending = flags & Int32(MSG_ERRQUEUE) == 0 ? switchTakeError(fd) : 0
    if pending < 0 { return answer32(pending) }
    let waitForOne = Int32(0x10000)
    let start = ss_monotonic_ns()
    var flagsNow = flags & ~waitForOne
    var done = 0
    let wait = timeout?.pointee
    while done < Int(count) {
        var result = receiveMessage(fd, header(of: list + done), flagsNow)
        if result >= 0 { result = note(result, in: list + done) }
        if result == 0 &- Int(ECONNRESET), done > 0 { switchKeepsReset(fd) }
        if result < 0 { return done > 0 ? Int32(truncatingIfNeeded: done) : Int32(truncatingIfNeeded: answerCancellable(result)) }
        done &+= 1
        if flags & waitForOne != 0 { flagsNow |= Int32(MSG_DONTWAIT) }
        if let timeout, let wait {
            timeout.pointee = timeLeft(of: wait, since: start)
            if timeout.pointee.tv_sec == 0, timeout.pointee.tv_nsec == 0 { break }
        }
        // The urgent byte is returned right away, and one that is only looked at would be found again.
        if flags & Int32(MSG_OOB) != 0 { break }
    }
    return Int32(truncatingIfNeeded: done)
}

@inline(__always)
private func isTime(_ time: UnsafeMutablePointer<timespec>?) -> Bool {
    guard let time, ss_probe_program_memory(time, MemoryLayout<timespec>.size) == 0 else { return false }
    return isTime(time.pointee)
}

@inline(__always)
func isTime(_ time: timespec) -> Bool { time.tv_sec >= 0 && time.tv_nsec >= 0 && time.tv_nsec < 1_000_000_000 }

/// What remains of `time`, for which `isTime` holds, at least nothing. `start`: monotonic nanoseconds.
@inline(__always)
func timeLeft(of time: timespec, since start: UInt64) -> timespec {
    let passed = ss_monotonic_ns() &- start
    var left = timespec(
        tv_sec: time.tv_sec &- Int(truncatingIfNeeded: passed / 1_000_000_000),
        tv_nsec: time.tv_nsec &- Int(truncatingIfNeeded: passed % 1_000_000_000))
    if left.tv_nsec < 0 {
        left.tv_nsec &+= 1_000_000_000
        left.tv_sec &-= 1
    }
    return left.tv_sec < 0 ? timespec() : left
}
