import CInterposer
import CSocketSwitch

// Calls that move a socket's data inside the kernel or inside libc, where the switch does not see them: the socket goes back
// to TCP first, for good.

/// Whether the kernel alone has the socket's stream from now on. (False: bytes that only the companion has are unread, and
/// nobody is there to send them again.)
@inline(never)
func keepOnTCP(_ fd: Int32, reads: Bool = false) -> Bool { switchKeepsOnTCP(fd, reads: reads) }

@inline(__always)
func isOnTCP(_ fd: Int32, reads: Bool = false) -> Bool { descriptorEntry(fd) == 0 || keepOnTCP(fd, reads: reads) }

// MARK: stdio

@c(fdopen) public func interposedFdopen(_ fd: Int32, _ mode: UnsafePointer<CChar>?) -> UnsafeMutableRawPointer? {
    // Where the kernel's stream would not be all of it, what the stream reads and writes goes through the switch.
    if descriptorEntry(fd) != 0, !(readsStream(mode) ? switchHandOver(fd, .unsupportedOption) : keepOnTCP(fd)) {
        return ss_open_stream(fd, mode)
    }
    return ss_real.fdopen(fd, mode)
}

/// "r", or "+" behind the first letter. (libc looks at seven characters.)
private func readsStream(_ mode: UnsafePointer<CChar>?) -> Bool {
    guard let mode else { return true }
    if mode[0] == 0x72 { return true }
    var index = 0
    while index < 7, mode[index] != 0 {
        if mode[index] == 0x2B { return true }
        index &+= 1
    }
    return false
}

@c(_IO_fdopen) public func interposedIOFdopen(_ fd: Int32, _ mode: UnsafePointer<CChar>?) -> UnsafeMutableRawPointer? {
    interposedFdopen(fd, mode)
}

/// libc closes the descriptor without a call that is seen. What the stream still has goes out first, as long as the switch knows
/// the socket. The result is the error of that, of which fclose itself then knows nothing any more.
@inline(__always)
private func endStream(_ stream: UnsafeMutableRawPointer?) -> Int32 {
    if !switchHasDescriptors { return 0 }
    let fd = ss_descriptor_of_stream(stream)
    return descriptorEntry(fd) == 0 ? 0 : endTracked(fd, stream)
}

@inline(never)
private func endTracked(_ fd: Int32, _ stream: UnsafeMutableRawPointer?) -> Int32 {
    if isForeignChild() { return 0 }
    let error = ss_flush_stream(stream)
    switchIsClosedByLibc(fd)
    return error
}

@c(fclose) public func interposedFclose(_ stream: UnsafeMutableRawPointer?) -> Int32 {
    let error = endStream(stream)
    let result = ss_real.fclose(stream)
    return error == 0 ? result : answer32(0 &- Int(error))
}

@c(_IO_fclose) public func interposedIOFclose(_ stream: UnsafeMutableRawPointer?) -> Int32 { interposedFclose(stream) }

@c(freopen) public func interposedFreopen(
    _ path: UnsafePointer<CChar>?, _ mode: UnsafePointer<CChar>?, _ stream: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    _ = endStream(stream)
    return ss_real.freopen(path, mode, stream)
}

@c(freopen64) public func interposedFreopen64(
    _ path: UnsafePointer<CChar>?, _ mode: UnsafePointer<CChar>?, _ stream: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
    _ = endStream(stream)
    return ss_real.freopen64(path, mode, stream)
}

/// For dprintf and its relatives, which are written in C.
@c(ss_is_tracked) public func isTracked(_ fd: Int32) -> Int32 { descriptorEntry(fd) != 0 ? 1 : 0 }

/// libc writes by itself now: before that the socket goes to TCP.
@c(ss_before_direct_write) public func beforeDirectWrite(_ fd: Int32) {
    if descriptorEntry(fd) != 0 { _ = keepOnTCP(fd) }
}

// MARK: splice

@c(splice) public func interposedSplice(
    _ input: Int32, _ inputOffset: UnsafeMutablePointer<Int64>?, _ output: Int32,
    _ outputOffset: UnsafeMutablePointer<Int64>?, _ count: Int, _ flags: UInt32
) -> Int {
    (descriptorEntry(input) | descriptorEntry(output)) == 0
        ? ss_real.splice(input, inputOffset, output, outputOffset, count, flags)
        : trackedSplice(input, inputOffset, output, outputOffset, count, flags)
}

/// EINVAL, on which programs copy, is what a socket answers that cannot go back now.
@inline(never)
func trackedSplice(
    _ input: Int32, _ inputOffset: UnsafeMutablePointer<Int64>?, _ output: Int32,
    _ outputOffset: UnsafeMutablePointer<Int64>?, _ count: Int, _ flags: UInt32
) -> Int {
    // Of nothing the kernel asks nothing: the call does nothing on any descriptor.
    if count == 0 || isOnTCP(input, reads: true) && isOnTCP(output) {
        return ss_real.splice(input, inputOffset, output, outputOffset, count, flags)
    }
    return answer(0 &- Int(EINVAL))
}

// MARK: Asynchronous I/O of POSIX, which threads of libc carry out

@c(aio_read) public func interposedAioRead(_ request: UnsafeMutableRawPointer?) -> Int32 {
    isOnTCP(ss_descriptor_of_aio(request), reads: true) ? ss_real.aio_read(request) : answer32(0 &- Int(EAGAIN))
}

@c(aio_write) public func interposedAioWrite(_ request: UnsafeMutableRawPointer?) -> Int32 {
    isOnTCP(ss_descriptor_of_aio(request)) ? ss_real.aio_write(request) : answer32(0 &- Int(EAGAIN))
}

@c(lio_listio) public func interposedLioListio(
    _ mode: Int32, _ list: UnsafeMutableRawPointer?, _ count: Int32, _ event: UnsafeMutableRawPointer?
) -> Int32 {
    var index: Int32 = 0
    while index < count {
        if !isOnTCP(ss_descriptor_of_aio_in(list, index), reads: ss_is_aio_read_in(list, index) != 0) { return answer32(0 &- Int(EAGAIN)) }
        index &+= 1
    }
    return ss_real.lio_listio(mode, list, count, event)
}

@c(aio_read64) public func interposedAioRead64(_ request: UnsafeMutableRawPointer?) -> Int32 { interposedAioRead(request) }
@c(aio_write64) public func interposedAioWrite64(_ request: UnsafeMutableRawPointer?) -> Int32 { interposedAioWrite(request) }
@c(lio_listio64) public func interposedLioListio64(
    _ mode: Int32, _ list: UnsafeMutableRawPointer?, _ count: Int32, _ event: UnsafeMutableRawPointer?
) -> Int32 {
    interposedLioListio(mode, list, count, event)
}
