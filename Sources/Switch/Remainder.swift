import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// What lies unread in the ring and cannot be sent over TCP any more. A socket is about to be somebody's who knows nothing of the
// switch (exec, a passed descriptor), and the peer has ended its sending side, or gone back to TCP by itself: it cannot put these
// bytes before what TCP has, and nothing can put them into the kernel's queue. So the descriptor becomes another TCP connection,
// between this process and itself, that brings the rest of the stream. Reads, waits, errors and options are as before; its
// addresses are not (loopback, ports of its own).
//
// If the peer has closed, nothing else will come, and what is sent goes nowhere: the other end of that connection is closed, too.
// Else, or if that is too much for the buffers of one connection, a process of its own relays between the two.

/// Replaces the process's descriptors of the socket behind `fd` by such a connection. False: the socket is what it was (its receive
/// buffer may be larger, or, if there is no process or memory to be had, bytes may be missing).
///
/// In a vfork child, which has descriptors of its own on its parent's tables, only `fd` is replaced. Whoever else has the socket
/// (that parent, or the one of a forked child) still finds the bytes, too: which of them will read is not known. Where they cannot
/// be copied, since more may come, it is asked whether this process may take them: then nobody else has the stream any more.
@inline(never)
func leaveRemainder(_ fd: Int32, _ index: Int, mayTake: () -> Bool) -> Bool {
    let session = sessionOf(index)
    guard session.isDual else { return false }
    // No handler of the program's shall leave it half done.
    ss_enter_section()
    defer { ss_leave_section() }
    // (One that has shut down both halves is told of what is sent to it, and by nothing else.)
    if session.hasPeerClosed(fd), ss_peer_of(fd) != SS_PEER_HELD {
        let queued = session.queuedBytes(fd)
        guard queued > 0 else { return false }
        if let buffer = mapPrivate(queued) {
            defer { _ = ss_sys_munmap(buffer, queued) }
            if session.receive(fd, buffer, queued, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)) == queued,
                let (made, writer) = withMoreDescriptors({ connectionToItself(like: fd) })
            {
                let isWhole = holds(writer, buffer, queued)
                if isWhole { replaceAll(fd, session, by: made) } else { Session.reset(writer) }
                // Its close alone would not end the stream, if another thread's fork has given a child this descriptor meanwhile.
                _ = ss_sys_shutdown(writer, Int32(SHUT_WR))
                _ = ss_sys_close(writer)
                _ = ss_sys_close(made)
                if isWhole { return true }
            }
        }
    }
    // What this side still has to send would be lost with the session.
    return !session.hasBacklog && mayTake() && leaveRelayed(fd, index)
}

private func leaveRelayed(_ fd: Int32, _ index: Int) -> Bool {
    let session = sessionOf(index)
    // Room for the whole ring, and for what TCP's buffers may hold before it.
    let capacity = Int(Window.maximumRingBytes) + (1 << 24)
    guard let buffer = mapPrivate(capacity) else { return false }
    defer { _ = ss_sys_munmap(buffer, capacity) }
    var socket = -1
    let ends = withMoreDescriptors {
        let ends = connectionToItself(like: fd)
        if ends != nil { socket = ss_sys_fcntl(fd, F_DUPFD_CLOEXEC, 0) }
        return ends
    }
    guard let (made, writer) = ends else { return false }
    defer {
        _ = ss_sys_close(made)
        _ = ss_sys_close(writer)
        if socket >= 0 { _ = ss_sys_close(Int32(socket)) }
    }
    guard socket >= 0 else { return false }
    var sharedUntil: UInt64 = 0
    let isShared = isForeignChild() || !isSoonAlone(index, &sharedUntil)
    let deadline = ss_monotonic_ns() &+ relayPatienceNanoseconds
    var count = 0
    var isOnTCP = false
    while !isOnTCP, count < capacity {
        let received = session.receive(fd, buffer + count, capacity - count, Int32(MSG_DONTWAIT))
        if received == -Int(EAGAIN), ss_monotonic_ns() < deadline {
            // The peer's kernel has not sent yet what comes before the ring.
            session.awaitTCP(fd, Int16(POLLIN), 10_000_000)
            isOnTCP = switchHandOver(fd, .handedOver)  // if it was undecided
            continue
        }
        if received <= 0 { break }
        count += received
        isOnTCP = switchHandOver(fd, .handedOver)
    }
    if isOnTCP, count == 0 { return false }
    // The first of it is there at once.
    let sent = isOnTCP ? max(0, ss_sys_sendto(writer, buffer, count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))) : 0
    guard isOnTCP, ss_start_relay(Int32(socket), writer, buffer, sent, count, Int(Window.maximumRingBytes), isShared ? 1 : 0) != 0 else {
        // What has been read is lost: nobody shall take what follows for all.
        if count > 0 { Session.reset(Int32(socket)) }
        return false
    }
    replaceAll(fd, session, by: made)
    return true
}

private var relayPatienceNanoseconds: UInt64 { 200_000_000 }

private func replaceAll(_ fd: Int32, _ session: Session, by made: Int32) {
    if session.has(Slot.Flags.writeShutDown) { _ = ss_sys_shutdown(made, Int32(SHUT_WR)) }
    let isForeign = isForeignChild()
    let entry = descriptorEntry(fd)
    // Calls of other threads that know the number: from its first moment on they find the new connection, or wait for it. So the
    // old one lives on under another number until its session has ended.
    let old = session.has(Slot.Flags.replacing) && !isForeign ? withMoreDescriptors { ss_sys_fcntl(fd, F_DUPFD_CLOEXEC, 0) } : -1
    if old >= 0 { session.connection.pointee.descriptor = Int32(old) }
    // `fd` last: with it the slot ends, and may be another socket's at once.
    while !isForeign {
        let other = otherDescriptor(entry, than: fd)
        if other < 0 { break }
        put(made, inPlaceOf: other, isForeign, old)
    }
    put(made, inPlaceOf: fd, isForeign, old)
    if old >= 0 { _ = ss_sys_close(Int32(old)) }
}

private func put(_ made: Int32, inPlaceOf fd: Int32, _ isForeign: Bool, _ old: Int) {
    let flags: Int32 = ss_sys_fcntl(fd, F_GETFD, 0) & 1 == 0 ? 0 : O_CLOEXEC
    if !isForeign, old < 0 { dropEntry(fd) }
    // EBUSY: another thread's open is about to return this number. (Beyond the program's limit the kernel sees no descriptor.)
    var result = 0
    repeat { result = withMoreDescriptors { rawDuplicate(made, fd, flags) } } while result == -Int(EBUSY)
    if result < 0 { Session.reset(fd) }
    if !isForeign, old >= 0 { dropEntry(fd, socket: Int32(old)) }
}

/// With as many descriptors as the hard limit allows: the program may have used up its own.
private func withMoreDescriptors<Result>(_ body: () -> Result) -> Result {
    var before = rlimit()
    guard ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &before) == 0, before.rlim_cur < before.rlim_max else { return body() }
    var higher = rlimit(rlim_cur: before.rlim_max, rlim_max: before.rlim_max)
    _ = ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), &higher, nil)
    defer { _ = ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), &before, nil) }
    return body()
}

/// A connection of this process with itself: an end with the file flags and options of `fd`, and the other end. nil: not to be had.
private func connectionToItself(like fd: Int32) -> (made: Int32, writer: Int32)? {
    var storage = InlineArray<28, UInt8>(repeating: 0)
    var length: UInt32 = 28
    return withUnsafeMutablePointer(to: &storage) { pointer -> (made: Int32, writer: Int32)? in
        let address = UnsafeMutableRawPointer(pointer)
        guard ss_sys_getsockname(fd, address, &length) == 0 else { return nil }
        let family = Int32(address.load(as: UInt16.self))
        // IPv4 on a socket of IPv6: the host may have no other.
        let mapped = UInt32(0xFFFF).bigEndian
        let isMapped = address.load(fromByteOffset: 8, as: UInt64.self) == 0 && address.load(fromByteOffset: 16, as: UInt32.self) == mapped
        // Loopback with a port of the kernel's choice, in the family that the program knows its socket to be of.
        memset(address + 2, 0, 26)
        if family == AF_INET {
            address.storeBytes(of: UInt32(0x7F00_0001).bigEndian, toByteOffset: 4, as: UInt32.self)
        } else if isMapped {
            address.storeBytes(of: mapped, toByteOffset: 16, as: UInt32.self)
            address.storeBytes(of: UInt32(0x7F00_0001).bigEndian, toByteOffset: 20, as: UInt32.self)
        } else {
            address.storeBytes(of: 1, toByteOffset: 23, as: UInt8.self)
        }
        let type = Int32(1) | Int32(O_CLOEXEC) | Int32(O_NONBLOCK)
        let listener = Int32(ss_sys_socket(family, type, 0)), writer = Int32(ss_sys_socket(family, type, 0))
        defer { if listener >= 0 { _ = ss_sys_close(listener) } }
        var made = -1
        if listener >= 0, writer >= 0, ss_sys_bind(listener, address, length) == 0, ss_sys_listen(listener, 1) == 0,
            ss_sys_getsockname(listener, address, &length) == 0, isConnected(writer, address, length)
        {
            made = ss_syscall6(Int(SYS_accept4), Int(listener), 0, 0, Int(O_CLOEXEC), 0, 0)
        }
        guard made >= 0, areTwoEnds(writer, Int32(made)) else {
            if made >= 0 { _ = ss_sys_close(Int32(made)) }
            if writer >= 0 { _ = ss_sys_close(writer) }
            return nil
        }
        copySettings(from: fd, to: Int32(made))
        var on: Int32 = 1
        _ = ss_sys_setsockopt(writer, Int32(IPPROTO_TCP), TCP_NODELAY, &on, 4)
        return (Int32(made), writer)
    }
}

/// A tenth of a second is a long time on loopback; unless somebody filters it.
private func isConnected(_ fd: Int32, _ address: UnsafeMutableRawPointer, _ length: UInt32) -> Bool {
    let result = ss_sys_connect(fd, address, length)
    guard result == -Int(EINPROGRESS) else { return result == 0 }
    var entry = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
    var patience = timespec(tv_sec: 0, tv_nsec: 100_000_000)
    return ss_sys_brief_ppoll(&entry, 1, &patience) == 1 && entry.revents == Int16(POLLOUT)
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
