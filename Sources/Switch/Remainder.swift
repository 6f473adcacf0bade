import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// What a peer has left behind. A socket is about to be somebody's who knows nothing of the switch (exec, a passed descriptor),
// bytes lie unread in the ring, and the peer has closed its side: it cannot send them over TCP any more, and nothing can put
// them into the kernel's queue. But nothing else will come either, and what is sent goes nowhere. So the descriptor becomes
// another TCP connection, between this process and itself, that holds the rest of the stream and whose other end is closed, too.
//
// Reads, waits, errors and options are as before; its addresses are not (loopback, ports of its own).

/// Replaces the process's descriptors of the socket behind `fd` by such a connection. False: the socket is what it was (its receive
/// buffer may be larger); the peer may still want to read, or too much is left for the buffers of one connection.
///
/// In a vfork child, which has descriptors of its own on its parent's tables, only `fd` is replaced. Whoever else has the socket
/// (that parent, or the one of a forked child) still finds the bytes, too: which of them will read is not known.
@inline(never)
func leaveRemainder(_ fd: Int32, _ index: Int) -> Bool {
    let session = sessionOf(index)
    guard session.isDual, session.hasPeerClosed(fd) else { return false }
    let queued = session.queuedBytes(fd)
    guard queued > 0, let buffer = mapPrivate(queued) else { return false }
    defer { _ = ss_sys_munmap(buffer, queued) }
    guard session.receive(fd, buffer, queued, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)) == queued,
        let made = makeRemainder(like: fd, buffer, queued)
    else { return false }
    let isForeign = isForeignChild()
    let entry = descriptorEntry(fd)
    // `fd` last: with it the slot ends, and may be another socket's at once.
    while !isForeign {
        let other = otherDescriptor(entry, than: fd)
        if other < 0 { break }
        put(made, inPlaceOf: other, isForeign)
    }
    put(made, inPlaceOf: fd, isForeign)
    _ = ss_sys_close(made)
    return true
}

private func put(_ made: Int32, inPlaceOf fd: Int32, _ isForeign: Bool) {
    let flags: Int32 = ss_sys_fcntl(fd, F_GETFD, 0) & 1 == 0 ? 0 : O_CLOEXEC
    if !isForeign { dropEntry(fd) }
    _ = rawDuplicate(made, fd, flags)
}

/// A connection with the file flags and options of `fd` that holds `count` bytes and their end. nil: not to be had.
private func makeRemainder(like fd: Int32, _ bytes: UnsafeMutableRawPointer, _ count: Int) -> Int32? {
    var storage = InlineArray<28, UInt8>(repeating: 0)
    var length: UInt32 = 28
    return withUnsafeMutablePointer(to: &storage) { pointer -> Int32? in
        let address = UnsafeMutableRawPointer(pointer)
        guard ss_sys_getsockname(fd, address, &length) == 0 else { return nil }
        let family = Int32(address.load(as: UInt16.self))
        // Loopback with a port of the kernel's choice, in the family that the program knows its socket to be of.
        memset(address + 2, 0, 26)
        if family == AF_INET {
            address.storeBytes(of: UInt32(0x7F00_0001).bigEndian, toByteOffset: 4, as: UInt32.self)
        } else {
            address.storeBytes(of: 1, toByteOffset: 23, as: UInt8.self)
        }
        let type = Int32(1) | Int32(O_CLOEXEC) | Int32(O_NONBLOCK)
        let listener = ss_sys_socket(family, type, 0), writer = ss_sys_socket(family, type, 0)
        defer {
            if listener >= 0 { _ = ss_sys_close(Int32(listener)) }
            if writer >= 0 { _ = ss_sys_close(Int32(writer)) }
        }
        guard listener >= 0, writer >= 0, ss_sys_bind(Int32(listener), address, length) == 0, ss_sys_listen(Int32(listener), 1) == 0,
            ss_sys_getsockname(Int32(listener), address, &length) == 0, isConnected(Int32(writer), address, length)
        else { return nil }
        let accepted = ss_syscall6(Int(SYS_accept4), listener, 0, 0, Int(O_CLOEXEC), 0, 0)
        guard accepted >= 0 else { return nil }
        guard areTwoEnds(Int32(writer), Int32(accepted)), holds(Int32(writer), bytes, count) else {
            Session.reset(Int32(writer))
            _ = ss_sys_close(Int32(accepted))
            return nil
        }
        copySettings(from: fd, to: Int32(accepted))
        return Int32(accepted)
    }
}

/// A tenth of a second is a long time on loopback; unless somebody filters it.
private func isConnected(_ fd: Int32, _ address: UnsafeMutableRawPointer, _ length: UInt32) -> Bool {
    let result = ss_sys_connect(fd, address, length)
    guard result == -Int(EINPROGRESS) else { return result == 0 }
    var entry = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
    var patience = timespec(tv_sec: 0, tv_nsec: 100_000_000)
    return ss_sys_ppoll(&entry, 1, &patience, nil) == 1 && entry.revents == Int16(POLLOUT)
}

/// Anybody on this host could have connected to the listener.
private func areTwoEnds(_ one: Int32, _ other: Int32) -> Bool {
    var first = InlineArray<28, UInt8>(repeating: 0), second = InlineArray<28, UInt8>(repeating: 0)
    var firstLength: UInt32 = 28, secondLength: UInt32 = 28
    return ss_sys_getsockname(one, &first, &firstLength) == 0 && ss_sys_getpeername(other, &second, &secondLength) == 0
        && firstLength == secondLength && memcmp(&first, &second, Int(firstLength)) == 0
}

/// Sends everything, without waiting for anybody: false if it does not fit.
private func holds(_ writer: Int32, _ bytes: UnsafeMutableRawPointer, _ count: Int) -> Bool {
    // The kernel doubles it, for what it keeps beside the bytes.
    var room = Int32(clamping: count &+ 65536)
    _ = ss_sys_setsockopt(writer, SOL_SOCKET, SO_SNDBUF, &room, 4)
    var sent = 0
    while sent < count {
        let result = ss_sys_sendto(writer, bytes + sent, count - sent, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
        if result <= 0 { return false }
        sent += result
    }
    return true
}

private func copySettings(from fd: Int32, to made: Int32) {
    let flags = ss_sys_fcntl(fd, F_GETFL, 0)
    if flags >= 0 { _ = ss_sys_fcntl(made, F_SETFL, flags) }
    func copy(_ level: Int32, _ name: Int32) {
        var value = InlineArray<16, UInt8>(repeating: 0)
        var length: UInt32 = 16
        if ss_sys_getsockopt(fd, level, name, &value, &length) == 0 { _ = ss_sys_setsockopt(made, level, name, &value, length) }
    }
    copy(SOL_SOCKET, SO_RCVTIMEO)
    copy(SOL_SOCKET, SO_SNDTIMEO)
    copy(SOL_SOCKET, SO_RCVLOWAT)
    copy(SOL_SOCKET, SO_LINGER)
    copy(SOL_SOCKET, SO_KEEPALIVE)
    copy(SOL_SOCKET, SO_OOBINLINE)
    copy(Int32(IPPROTO_TCP), TCP_NODELAY)
}
