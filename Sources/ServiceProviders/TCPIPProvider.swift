import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// The TCP/IP service provider: the kernel's sockets behind the provider interface. SOCKET is the descriptor that the program
// gets (WSD-C1), so there are no up-calls. Every error is the kernel's errno, unchanged. Blocking sockets block.

/// The provider's entry point (`LPWSPSTARTUPEX`). `upCalls` is not used and may be nil.
package func tcpipStartupEx(
    _ version: UInt32, _ info: UnsafePointer<WSAPROTOCOL_INFO>?, _ upCalls: UnsafePointer<WSPUPCALLTABLE>?,
    _ table: UnsafeMutablePointer<WSPPROC_TABLE>?
) -> Int32 {
    guard version == UInt32(SOCKSWITCH_SPI_VERSION) else { return EPROTONOSUPPORT }
    guard let table else { return EINVAL }
    table.pointee.lpWSPCleanup = { _ in 0 }
    table.pointee.lpWSPSocket = tcpipSocket
    table.pointee.lpWSPBind = tcpipBind
    table.pointee.lpWSPListen = tcpipListen
    table.pointee.lpWSPAccept = tcpipAccept
    table.pointee.lpWSPConnect = tcpipConnect
    table.pointee.lpWSPCloseSocket = tcpipCloseSocket
    table.pointee.lpWSPSend = tcpipSend
    table.pointee.lpWSPRecv = tcpipReceive
    table.pointee.lpWSPGetOverlappedResult = { _, _, _, _, _, error in
        error?.pointee = EOPNOTSUPP
        return 0
    }
    table.pointee.lpWSPEventSelect = { _, _, _, error in socketError(error, EOPNOTSUPP) }
    table.pointee.lpWSPEnumNetworkEvents = { _, _, _, error in socketError(error, EOPNOTSUPP) }
    table.pointee.lpWSPSetSockOpt = tcpipSetOption
    table.pointee.lpWSPGetSockOpt = tcpipGetOption
    table.pointee.lpWSPIoctl = tcpipIoctl
    table.pointee.lpWSPDuplicateSocket = { _, _, _, error in socketError(error, EOPNOTSUPP) }
    table.pointee.lpWSPGetQOSByName = { _, _, _, error in socketError(error, EOPNOTSUPP) }
    return 0
}

@inline(__always)
private func descriptor(_ socket: SOCKET) -> Int32 { socket <= SOCKET(Int32.max) ? Int32(socket) : -1 }

/// The kernel's answer as the interface gives it: 0, or SOCKET_ERROR.
@inline(__always)
private func outcome(_ result: Int, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    result >= 0 ? 0 : socketError(error, Int32(truncatingIfNeeded: -result))
}

private func tcpipSocket(
    _ family: Int32, _ type: Int32, _ proto: Int32, _ info: UnsafePointer<WSAPROTOCOL_INFO>?, _ group: UInt32,
    _ flags: UInt32, _ error: UnsafeMutablePointer<Int32>?
) -> SOCKET {
    let result = ss_sys_socket(family, type, proto)
    return result >= 0 ? SOCKET(result) : invalidSocket(error, Int32(truncatingIfNeeded: -result))
}

private func tcpipBind(
    _ socket: SOCKET, _ name: UnsafePointer<sockaddr>?, _ length: socklen_t, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    outcome(ss_sys_bind(descriptor(socket), name, length), error)
}

private func tcpipListen(_ socket: SOCKET, _ backlog: Int32, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    outcome(ss_sys_listen(descriptor(socket), backlog), error)
}

/// There is no condition to ask: TCP has accepted already. `data`: the flags of accept4 (SOCK_NONBLOCK, SOCK_CLOEXEC).
private func tcpipAccept(
    _ socket: SOCKET, _ address: UnsafeMutablePointer<sockaddr>?, _ length: UnsafeMutablePointer<socklen_t>?,
    _ condition: LPCONDITIONPROC?, _ data: UInt, _ error: UnsafeMutablePointer<Int32>?
) -> SOCKET {
    let result = ss_sys_accept4(descriptor(socket), address, length, Int32(truncatingIfNeeded: data))
    return result >= 0 ? SOCKET(result) : invalidSocket(error, Int32(truncatingIfNeeded: -result))
}

private func tcpipConnect(
    _ socket: SOCKET, _ name: UnsafePointer<sockaddr>?, _ length: socklen_t, _ callerData: UnsafePointer<WSABUF>?,
    _ calleeData: UnsafeMutablePointer<WSABUF>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    outcome(ss_sys_connect(descriptor(socket), name, length), error)
}

private func tcpipCloseSocket(_ socket: SOCKET, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    outcome(ss_sys_close(descriptor(socket)), error)
}

private func tcpipSetOption(
    _ socket: SOCKET, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: socklen_t,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    outcome(ss_sys_setsockopt(descriptor(socket), level, name, value, length), error)
}

private func tcpipGetOption(
    _ socket: SOCKET, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?,
    _ length: UnsafeMutablePointer<socklen_t>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    outcome(ss_sys_getsockopt(descriptor(socket), level, name, value, length), error)
}

// MARK: Transfer

/// Buffers handed to the kernel in one call; more than these are left for the next one, as after any short transfer.
private var vectorCount: Int { 64 }

/// Calls `body` with a message of the first buffers.
private func withMessage(_ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ body: (UnsafeMutablePointer<msghdr>) -> Int) -> Int {
    var vectors = InlineArray<64, iovec>(repeating: iovec())
    let used = min(Int(count), vectorCount)
    if let buffers {
        for index in 0..<used { vectors[index] = iovec(iov_base: buffers[index].buf, iov_len: buffers[index].len) }
    }
    return withUnsafeMutableBytes(of: &vectors) { bytes in
        var header = msghdr()
        header.msg_iov = bytes.baseAddress!.assumingMemoryBound(to: iovec.self)
        header.msg_iovlen = buffers == nil ? 0 : used
        return body(&header)
    }
}

/// `flags`: of sendmsg(2). `overlapped` is not supported: EOPNOTSUPP.
private func tcpipSend(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ sent: UnsafeMutablePointer<Int>?,
    _ flags: UInt32, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard overlapped == nil else { return socketError(error, EOPNOTSUPP) }
    let result: Int
    if count == 1, let buffers {
        result = ss_sys_sendto(descriptor(socket), buffers.pointee.buf, buffers.pointee.len, Int32(bitPattern: flags))
    } else {
        result = withMessage(buffers, count) { ss_sys_sendmsg(descriptor(socket), $0, Int32(bitPattern: flags)) }
    }
    if result >= 0 { sent?.pointee = result }
    return outcome(result, error)
}

/// `flags`: in, of recvmsg(2); out, `msg_flags`. `overlapped` is not supported: EOPNOTSUPP.
private func tcpipReceive(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ received: UnsafeMutablePointer<Int>?,
    _ flags: UnsafeMutablePointer<UInt32>?, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard overlapped == nil else { return socketError(error, EOPNOTSUPP) }
    let asked = Int32(bitPattern: flags?.pointee ?? 0)
    let result: Int
    if count == 1, let buffers {
        result = ss_sys_recvfrom(descriptor(socket), buffers.pointee.buf, buffers.pointee.len, asked)
        if result >= 0 { flags?.pointee = 0 }
    } else {
        result = withMessage(buffers, count) { header in
            let got = ss_sys_recvmsg(descriptor(socket), header, asked)
            if got >= 0 { flags?.pointee = UInt32(bitPattern: header.pointee.msg_flags) }
            return got
        }
    }
    if result >= 0 { received?.pointee = result }
    return outcome(result, error)
}

/// The address list, or ioctl(2) with the output buffer (else the input buffer) as its argument.
private func tcpipIoctl(
    _ socket: SOCKET, _ code: UInt32, _ input: UnsafeRawPointer?, _ inputBytes: Int,
    _ output: UnsafeMutableRawPointer?, _ outputBytes: Int, _ returned: UnsafeMutablePointer<Int>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    returned?.pointee = 0
    switch Int(code) {
    case Int(SIO_ADDRESS_LIST_QUERY):
        guard let output, outputBytes >= MemoryLayout<SOCKET_ADDRESS_LIST>.size else {
            return socketError(error, EFAULT)
        }
        fillAddressList(output.assumingMemoryBound(to: SOCKET_ADDRESS_LIST.self))
        returned?.pointee = MemoryLayout<SOCKET_ADDRESS_LIST>.size
        return 0
    case Int(SIO_ADDRESS_LIST_CHANGE):
        return addressListChanged(for: .tcpip) ? 0 : socketError(error, EAGAIN)
    case Int(SIO_GET_EXTENSION_FUNCTION_POINTER), Int(SIO_SOCKSWITCH_BASE_SOCKET), Int(SIO_SOCKSWITCH_NOTIFICATION),
        Int(SIO_SOCKSWITCH_OFFER), Int(SIO_SOCKSWITCH_OFFER_RESULT), Int(SIO_SOCKSWITCH_WITHDRAW_OFFER),
        Int(SIO_SOCKSWITCH_EVENT_WORD), Int(SIO_SOCKSWITCH_REASON):
        return socketError(error, EOPNOTSUPP)
    default:
        let argument = output ?? UnsafeMutableRawPointer(mutating: input)
        return outcome(ss_sys_ioctl(descriptor(socket), UInt(code), argument), error)
    }
}
