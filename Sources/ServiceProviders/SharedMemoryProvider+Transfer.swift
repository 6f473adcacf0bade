import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

// Messages (WSD-N4), doorbells, and the windows (WSD-M1, M2, T3). Everything completes at once, except a receive that waits
// for a message.

/// Total length of some buffers; nil: nonsense.
private func totalLength(_ buffers: UnsafePointer<WSABUF>?, _ count: UInt32) -> Int? {
    guard count > 0 else { return 0 }
    guard let buffers, count <= UInt32(IOV_MAX) else { return nil }
    var total = 0
    for index in 0..<Int(count) {
        let length = buffers[index].len
        guard length >= 0, length == 0 || buffers[index].buf != nil else { return nil }
        let (sum, overflow) = total.addingReportingOverflow(length)
        if overflow { return nil }
        total = sum
    }
    return total
}

@inline(__always)
private func finished(_ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ count: Int) {
    guard let overlapped else { return }
    overlapped.pointee.InternalHigh = UInt(bitPattern: count)
    overlapped.pointee.Error = 0
    overlapped.pointee.Flags = 0
    overlapped.pointee.Internal = 1
}

/// 1 … 256 bytes: a message. 0 bytes: rings the peer's doorbell or the own one, one system call.
func sharedMemorySend(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ sent: UnsafeMutablePointer<Int>?,
    _ flags: UInt32, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    guard let length = totalLength(buffers, count) else { return socketError(error, EFAULT) }
    guard companion.state.load() == CompanionState.connected else { return socketError(error, ENOTCONN) }
    if length == 0 {
        let result = companion.ring(own: flags & UInt32(SOCKSWITCH_SEND_WAKES_SELF) != 0)
        guard result == 0 else { return socketError(error, Int32(truncatingIfNeeded: -result)) }
    } else {
        guard length <= Segment.maximumMessageBytes, let buffers else { return socketError(error, EMSGSIZE) }
        let mask = lockProviders()
        let result = companion.writeMessage(buffers, Int(count))
        unlockProviders(mask)
        guard result == 0 else { return socketError(error, result) }
    }
    sent?.pointee = length
    finished(overlapped, length)
    return 0
}

/// A buffer of at least 256 bytes: the peer's next message. No buffer, or an empty one: silences the own doorbell.
func sharedMemoryReceive(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ received: UnsafeMutablePointer<Int>?,
    _ flags: UnsafeMutablePointer<UInt32>?, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    guard let length = totalLength(buffers, count) else { return socketError(error, EFAULT) }
    guard companion.state.load() == CompanionState.connected else { return socketError(error, ENOTCONN) }
    if length == 0 {
        let result = companion.silence()
        guard result == 0 else { return socketError(error, Int32(truncatingIfNeeded: -result)) }
        received?.pointee = 0
        finished(overlapped, 0)
        return 0
    }
    guard count == 1, let buffers, let target = buffers.pointee.buf, length >= Segment.maximumMessageBytes else {
        return socketError(error, EMSGSIZE)
    }
    let mask = lockProviders()
    defer { unlockProviders(mask) }
    guard companion.record.pointee.receive == nil else { return socketError(error, ENOBUFS) }
    let result = companion.readMessage(target)
    if result >= 0 {
        received?.pointee = result
        finished(overlapped, result)
        return 0
    }
    guard result == -Int(EAGAIN), let overlapped else { return socketError(error, Int32(truncatingIfNeeded: -result)) }
    overlapped.pointee.Internal = 0
    overlapped.pointee.InternalHigh = 0
    overlapped.pointee.Error = 0
    overlapped.pointee.Flags = 0
    companion.record.pointee.receive = overlapped
    companion.record.pointee.receiveBuffer = target
    return socketError(error, EINPROGRESS)
}

/// Never waits, whatever `wait` says. 1: completed without error. 0: failed with the operation's error, or, while it is
/// pending, with EINPROGRESS (WSA_IO_INCOMPLETE).
func sharedMemoryGetOverlappedResult(
    _ socket: SOCKET, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ transferred: UnsafeMutablePointer<Int>?,
    _ wait: Int32, _ flags: UnsafeMutablePointer<UInt32>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return noResult(error, ENOTSOCK) }
    guard let overlapped else { return noResult(error, EFAULT) }
    if overlapped.pointee.Internal == 0 {
        let mask = lockProviders()
        guard companion.record.pointee.receive == overlapped, let target = companion.record.pointee.receiveBuffer else {
            unlockProviders(mask)
            return noResult(error, EINVAL)
        }
        let result = companion.readMessage(target)
        if result != -Int(EAGAIN) { companion.record.pointee.receive = nil }
        unlockProviders(mask)
        if result == -Int(EAGAIN) { return noResult(error, EINPROGRESS) }
        completeReceive(companion, overlapped, Int32(truncatingIfNeeded: max(-result, 0)), max(result, 0))
    }
    transferred?.pointee = Int(bitPattern: overlapped.pointee.InternalHigh)
    flags?.pointee = overlapped.pointee.Flags
    return overlapped.pointee.Error == 0 ? 1 : noResult(error, overlapped.pointee.Error)
}

/// FALSE, with the error number stored: this call alone answers with a truth value, as in Winsock.
private func noResult(_ error: UnsafeMutablePointer<Int32>?, _ number: Int32) -> Int32 {
    error?.pointee = number
    return 0
}

/// Completes a receive that was pending, with the up-call when notification was wanted (WSD-T7). Without the lock.
func completeReceive(_ companion: Companion, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>, _ failure: Int32, _ count: Int) {
    overlapped.pointee.InternalHigh = UInt(bitPattern: count)
    overlapped.pointee.Error = failure
    overlapped.pointee.Internal = 1
    guard overlapped.pointee.hEvent & 1 == 0,
        let complete = providerState.pointee.upCalls.lpWPUCompleteOverlappedRequest
    else { return }
    var number: Int32 = 0
    _ = complete(companion.record.pointee.handle, overlapped, failure, count, &number)
}

// MARK: Extension functions (WSD-I4, M1, M2)

/// What a descriptor of exposed memory holds: magic, side whose window it is, length in bytes.
private struct WindowDescriptor {
    static var magic: UInt32 { 0x5353_4D57 }  // "SSMW"

    static func write(_ target: UnsafeMutablePointer<SOCKSWITCH_RDMA_DESCRIPTOR>, side: UInt32, length: Int) {
        let bytes = UnsafeMutableRawPointer(target)
        memset(bytes, 0, MemoryLayout<SOCKSWITCH_RDMA_DESCRIPTOR>.size)
        bytes.storeBytes(of: magic, as: UInt32.self)
        bytes.storeBytes(of: side, toByteOffset: 4, as: UInt32.self)
        bytes.storeBytes(of: UInt64(length), toByteOffset: 8, as: UInt64.self)
    }

    /// The length of the window of `side` that a descriptor, which came from the peer, exposes; nil: nonsense.
    static func length(_ source: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>, side: UInt32) -> Int? {
        let bytes = UnsafeRawPointer(source)
        guard bytes.loadUnaligned(as: UInt32.self) == magic,
            bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self) == side
        else { return nil }
        let length = bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
        guard length > 0, length <= UInt64(Segment.windowBytes) else { return nil }
        return Int(length)
    }
}

/// Local buffers need no registration here: the handle is the buffer.
func sharedMemoryRegisterMemory(
    _ socket: SOCKET, _ buffer: UnsafeMutableRawPointer?, _ length: Int, _ flags: UInt32,
    _ error: UnsafeMutablePointer<Int32>?
) -> UnsafeMutableRawPointer? {
    guard Companion(socket: socket) != nil else {
        error?.pointee = ENOTSOCK
        return nil
    }
    if buffer == nil { error?.pointee = EFAULT }
    return buffer
}

func sharedMemoryDeregisterMemory(
    _ socket: SOCKET, _ handle: UnsafeMutableRawPointer?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    Companion(socket: socket) != nil ? 0 : socketError(error, ENOTSOCK)
}

/// Gives this side's window of the segment. Zeroed, page-aligned, of the connection: never freed by itself.
func sharedMemoryAllocateRdmaMemory(
    _ socket: SOCKET, _ length: Int, _ error: UnsafeMutablePointer<Int32>?
) -> UnsafeMutableRawPointer? {
    guard let companion = Companion(socket: socket) else {
        error?.pointee = ENOTSOCK
        return nil
    }
    guard length > 0, length <= Segment.windowBytes else {
        error?.pointee = ENOBUFS
        return nil
    }
    guard companion.state.load() == CompanionState.connected, let window = companion.localWindow else {
        error?.pointee = ENOTCONN
        return nil
    }
    return window
}

/// Exposes (the beginning of) the own window; no other memory can be exposed.
func sharedMemoryRegisterRdmaMemory(
    _ socket: SOCKET, _ buffer: UnsafeMutableRawPointer?, _ length: Int, _ flags: UInt32,
    _ descriptor: UnsafeMutablePointer<SOCKSWITCH_RDMA_DESCRIPTOR>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    guard let descriptor else { return socketError(error, EFAULT) }
    guard companion.state.load() == CompanionState.connected, let window = companion.localWindow else {
        return socketError(error, ENOTCONN)
    }
    guard buffer == window, length > 0, length <= Segment.windowBytes, flags != 0, flags & ~UInt32(MEM_READWRITE) == 0
    else { return socketError(error, EINVAL) }
    WindowDescriptor.write(descriptor, side: companion.record.pointee.side, length: length)
    return 0
}

func sharedMemoryDeregisterRdmaMemory(
    _ socket: SOCKET, _ descriptor: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    guard let descriptor, WindowDescriptor.length(descriptor, side: companion.record.pointee.side) != nil else {
        return socketError(error, EINVAL)
    }
    return 0
}

/// The peer's window, as this process has it mapped.
func sharedMemoryMapRdmaMemory(
    _ socket: SOCKET, _ descriptor: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>?, _ length: Int,
    _ error: UnsafeMutablePointer<Int32>?
) -> UnsafeMutableRawPointer? {
    guard let companion = Companion(socket: socket) else {
        error?.pointee = ENOTSOCK
        return nil
    }
    guard companion.state.load() == CompanionState.connected, let window = companion.remoteWindow else {
        error?.pointee = ENOTCONN
        return nil
    }
    guard let descriptor, length > 0,
        let exposed = WindowDescriptor.length(descriptor, side: 1 - companion.record.pointee.side), length <= exposed
    else {
        error?.pointee = EINVAL
        return nil
    }
    return window
}

/// Copies into the peer's window. Complete, and visible to the peer in order, when it returns.
func sharedMemoryRdmaWrite(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32,
    _ target: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>?, _ offset: Int, _ written: UnsafeMutablePointer<Int>?,
    _ flags: UInt32, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    guard let length = totalLength(buffers, count) else { return socketError(error, EFAULT) }
    guard companion.state.load() == CompanionState.connected, let window = companion.remoteWindow else {
        return socketError(error, ENOTCONN)
    }
    guard let target, let exposed = WindowDescriptor.length(target, side: 1 - companion.record.pointee.side),
        offset >= 0, offset <= exposed, length <= exposed - offset
    else { return socketError(error, EINVAL) }
    fullFence()
    var at = offset
    if let buffers {
        for index in 0..<Int(count) {
            let buffer = buffers[index]
            guard buffer.len > 0, let bytes = buffer.buf else { continue }
            memcpy(window + at, bytes, buffer.len)
            at += buffer.len
        }
    }
    fullFence()
    written?.pointee = length
    finished(overlapped, length)
    return 0
}
