import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// The switch's calls, one for each libc call that the interposer hands over. All of them
//   - return what the kernel would: a value >= 0, or -errno;
//   - may be called from any thread and from signal handlers, and never allocate;
//   - work on descriptors that the switch does not know, too (they then are the plain system call).
// The interposer looks at `ss_descriptor_table[fd]` first: 0 = not ours, call libc.

// MARK: Making sockets

/// socket(2): the program's socket is the kernel's, always (WSD-C1).
package func switchSocket(_ domain: Int32, _ type: Int32, _ proto: Int32) -> Int {
    var result = baseSocket(domain, type, proto)
    if result == -Int(EMFILE), giveWay(atOnce: true) { result = baseSocket(domain, type, proto) }
    if result >= 0 {
        let fd = Int32(result)
        forgetStale(fd)
        // Raw sockets, datagrams and other protocols never reach a SAN provider (WSD-C2).
        if domain == AF_INET || domain == AF_INET6, type & 0xF == 1, proto == 0 || proto == 6, privateState.pointee.enabled {
            _ = track(fd, kind: Slot.Kind.fresh, nonBlocking: type & Int32(O_NONBLOCK) != 0)
        }
    }
    return result
}

/// bind(2) goes to TCP/IP and to nobody else (WSD-C3).
package func switchBind(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int { baseBind(fd, address, length) }

package func switchListen(_ fd: Int32, _ backlog: Int32) -> Int {
    let result = baseListen(fd, backlog)
    if result == 0, let index = socketIndex(fd) { listenWithCompanion(fd, index, backlog) }
    return result
}

package func switchConnect(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int {
    var family = sa_family_t(AF_UNIX)
    if let address, length >= 2 { _ = ss_copy_program_memory(&family, address, 2) }
    // What other descriptors, processes and epoll sets know of the socket outlives the association: it stays what it is, on TCP.
    let index = socketIndex(fd)
    let keeps = family == sa_family_t(AF_UNSPEC) && index.map(isKnownElsewhere) == true && switchHandOver(fd, .unsupportedOption)
    let result = ss_sleeping_connect(fd, address, length)
    guard result == 0 || result == -Int(EINPROGRESS) || result == -Int(EINTR), let index, let address, length >= 2
    else { return result }
    let session = sessionOf(index)
    if result == 0, family == sa_family_t(AF_UNSPEC) {
        // Dissolves the association: what this socket connects to next is another connection.
        if !keeps { makeAnew(fd, index) }
        return result
    }
    // A later call on a connected socket changes nothing (WSD-N5).
    if session.isDual || session.connection.pointee.companionPhase > CompanionPhase.bound { return result }
    guard session.slot.peerAddress.set(address, length: Int(length)) else { return result }
    chooseCarrier(fd, index)
    announceEagerly(fd, index)
    return result
}

private func isKnownElsewhere(_ index: Int) -> Bool {
    let session = sessionOf(index)
    return Int32(bitPattern: session.descriptorCount.load()) > 1 || !isAlone(session.slot) || isWaitedFor(index)
}

package func switchAccept(_ fd: Int32, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?, _ flags: Int32) -> Int {
    guard let listener = socketIndex(fd) else { return baseAccept(fd, address, length, flags) }
    var storage = InlineArray<128, UInt8>(repeating: 0)
    let peer = UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &storage) { $0 })
    var peerLength: UInt32 = 128
    var accepted = baseAccept(fd, peer, &peerLength, flags)
    if accepted == -Int(EMFILE), giveWay(atOnce: true) {
        peerLength = 128
        accepted = baseAccept(fd, peer, &peerLength, flags)
    }
    if accepted < 0 { return accepted }
    let new = Int32(accepted)
    if let address {
        // The kernel, too, looks at the length only now, and loses the connection over a bad one.
        let error = giveAddress(peer, peerLength, to: address, length)
        if error < 0 {
            _ = baseClose(new)
            return error
        }
    }
    forgetStale(new)
    let index = track(new, kind: Slot.Kind.accepted, nonBlocking: flags & Int32(O_NONBLOCK) != 0)
    guard index != 0 else { return accepted }
    let listening = sessionOf(listener)
    let session = sessionOf(index)
    session.slot.peerAddress.set(peer, length: Int(peerLength))
    introduceOnce()
    if !session.has(Slot.Flags.tcpOnly) { session.slot.reason.store(Reason.notWorthItYet.rawValue) }
    session.slot.sendBuffer.store(listening.slot.sendBuffer.load())
    let atOnce = listening.slot.flags.load() & (Slot.Flags.receivesAtOnce | Slot.Flags.sendsAtOnce)
    if atOnce != 0 { session.slot.flags.setBits(atOnce) }
    // The address behind a wildcard is asked for when somebody needs it: see `announce`.
    if !listening.slot.localAddress.isWildcard { memcpy(session.slot.localAddress.base, listening.slot.localAddress.base, 32) }
    _ = dependents(listener).add(1)
    session.connection.pointee.listener = Int32(listener)
    session.connection.pointee.listenerGeneration = listening.slot.generation.load()
    // A listener without a companion says why its connections have none either.
    if !hasListeningCompanion(listener) {
        keepOnTCP(index, Reason(rawValue: listening.slot.reason.load()) ?? .noProvider)
    } else if listening.has(Slot.Flags.acceptsOnTCP) {
        keepOnTCP(index, .unsupportedOption)
    }
    announceEagerly(new, index)
    return accepted
}

/// Copies an address to the program as the kernel does: as much as there is room for, and its whole length. 0 or -errno.
private func giveAddress(
    _ address: UnsafeRawPointer, _ length: UInt32, to place: UnsafeMutableRawPointer, _ placeLength: UnsafeMutablePointer<UInt32>?
) -> Int {
    var room: UInt32 = 0
    var length = length
    guard ss_copy_program_memory(&room, placeLength, 4) == 0 else { return -Int(EFAULT) }
    guard room <= UInt32(Int32.max) else { return -Int(EINVAL) }
    guard ss_copy_program_memory(place, address, Int(min(room, length))) == 0 else { return -Int(EFAULT) }
    return ss_copy_program_memory(placeLength, &length, 4) == 0 ? 0 : -Int(EFAULT)
}

// MARK: Data

/// Whether a connection has proved worth a companion: a request and the beginning of another one, or much data.
@inline(__always)
private func isWorthIt(_ slot: Slot) -> Bool {
    if privateState.pointee.eager { return true }
    let sends = slot.sendOperations.loadRelaxed()
    let receives = slot.receiveOperations.loadRelaxed()
    if slot.kind.loadRelaxed() == Slot.Kind.connected {
        if sends >= 2, receives >= 1 { return true }
    } else if receives >= 2, sends >= 1 {
        return true
    }
    return sends >= 4 || receives >= 4 || slot.tcpBytesSent.loadRelaxed() &+ slot.tcpBytesReceived.loadRelaxed() >= 65536
}

/// A connection that stays on TCP for good goes on: `ps` is to show it, though nothing else makes its process known to the
/// service. Tried at each power of two of its data calls, for a service that is started later.
@inline(__always)
private func showKept(_ slot: Slot) {
    let calls = slot.sendOperations.loadRelaxed() &+ slot.receiveOperations.loadRelaxed()
    if calls >= 4, calls & (calls &- 1) == 0 { introduceToService() }
}

@inline(__always)
private func noteProgress(_ fd: Int32, _ index: Int, _ slot: Slot) {
    if slot.kind.loadRelaxed() >= Slot.Kind.connected, isWorthIt(slot) {
        if slot.flags.loadRelaxed() & Slot.Flags.tcpOnly == 0 { considerCompanion(fd, index) } else { showKept(slot) }
    }
}

/// After a plain data call that moved `count` bytes.
@inline(__always)
private func noteSent(_ fd: Int32, _ index: Int, _ slot: Slot, _ count: Int) {
    guard count > 0 else { return }
    slot.tcpBytesSent.count(UInt64(count))
    slot.sendOperations.count(1)
    noteProgress(fd, index, slot)
}

@inline(__always)
private func noteReceived(_ fd: Int32, _ index: Int, _ slot: Slot, _ count: Int) {
    guard count > 0 else { return }
    slot.tcpBytesReceived.count(UInt64(count))
    slot.receiveOperations.count(1)
    noteProgress(fd, index, slot)
}

/// Counts a plain call out. False: another thread has closed the socket meanwhile, and its slot and its number may be other ones'.
@inline(__always)
private func leavePlain(_ counter: CallCount, _ ticket: UInt64, _ fd: Int32, _ index: Int) -> Bool {
    counter.leave(ticket) && socketIndex(fd) == index
}

/// Before urgent data are sent on a plain socket: an urgent mark in the peer's queue falsifies the kernel's figures by which
/// a carrier is changed, so there will be no companion (WSD-T6).
@inline(never)
private func keepUrgentOnTCP(_ index: Int) {
    keepOnTCP(index, .urgentData)
    giveCompanionUp(index)
}

/// A vfork child has put another file at a number of its parent's.
@inline(__always)
private func isBorrowersFile(_ fd: Int32, _ index: Int) -> Bool { ss_memory_has_borrowers() != 0 && isForeignChild() && !isStill(fd, index) }

/// write, send, sendto without an address.
package func switchSend(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    guard let index = socketIndex(fd) else { return ownOr(fd) { ss_sys_sendto(fd, buffer, count, flags) } }
    let session = sessionOf(index)
    if !session.isDual, !movesEagerly(fd, index) {
        if let ticket = session.slot.enterPlain(session.slot.plainWriters) {
            if flags & Int32(MSG_OOB) != 0 { keepUrgentOnTCP(index) }
            let result = ss_sys_sendto(fd, buffer, count, flags)
            if leavePlain(session.slot.plainWriters, ticket, fd, index) { noteSent(fd, index, session.slot, result) }
            return result
        }
    }
    if isBorrowersFile(fd, index) { return ss_sys_sendto(fd, buffer, count, flags) }
    let result = session.send(fd, buffer, count, flags)
    if result == -Int(EBADF), standsAnother(fd) { return switchSend(fd, buffer, count, flags) }
    if result != count { readinessNoteFull(index) }
    beginAnewIfLeft(index, session.slot)
    return result
}

/// read, recv, recvfrom without an address.
package func switchReceive(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int {
    guard let index = socketIndex(fd) else { return ownOr(fd) { ss_sys_recvfrom(fd, buffer, count, flags) } }
    let session = sessionOf(index)
    if !session.isDual, !movesEagerly(fd, index) {
        if let ticket = session.slot.enterPlain(session.slot.plainReaders) {
            let result = ss_sys_recvfrom(fd, buffer, count, flags)
            if leavePlain(session.slot.plainReaders, ticket, fd, index) { noteReceived(fd, index, session.slot, result) }
            return result
        }
    }
    if isBorrowersFile(fd, index) { return ss_sys_recvfrom(fd, buffer, count, flags) }
    let result = session.receive(fd, buffer, count, flags)
    if result == -Int(EBADF), standsAnother(fd) { return switchReceive(fd, buffer, count, flags) }
    if session.has(Slot.Flags.owesHandOver) { handOverAgain(fd, session) }
    beginAnewIfLeft(index, session.slot)
    return result
}

/// sendmsg, writev, sendto with an address.
package func switchSendMessage(_ fd: Int32, _ message: UnsafePointer<msghdr>, _ flags: Int32) -> Int {
    guard let index = socketIndex(fd) else { return ownOr(fd) { ss_sys_sendmsg(fd, message, flags) } }
    let session = sessionOf(index)
    if !session.isDual, !movesEagerly(fd, index) {
        if let ticket = session.slot.enterPlain(session.slot.plainWriters) {
            if flags & Int32(MSG_OOB) != 0 { keepUrgentOnTCP(index) }
            let result = ss_sys_sendmsg(fd, message, flags)
            if leavePlain(session.slot.plainWriters, ticket, fd, index) { noteSent(fd, index, session.slot, result) }
            return result
        }
    }
    if isBorrowersFile(fd, index) { return ss_sys_sendmsg(fd, message, flags) }
    let result = session.send(fd, message, flags)
    if result == -Int(EBADF), standsAnother(fd) { return switchSendMessage(fd, message, flags) }
    readinessNoteSent(index, message, result)
    beginAnewIfLeft(index, session.slot)
    return result
}

/// recvmsg, readv, recvfrom with an address.
package func switchReceiveMessage(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32) -> Int {
    guard let index = socketIndex(fd) else { return ownOr(fd) { ss_sys_recvmsg(fd, message, flags) } }
    let session = sessionOf(index)
    if !session.isDual, !movesEagerly(fd, index) {
        if let ticket = session.slot.enterPlain(session.slot.plainReaders) {
            let result = ss_sys_recvmsg(fd, message, flags)
            if leavePlain(session.slot.plainReaders, ticket, fd, index) { noteReceived(fd, index, session.slot, result) }
            return result
        }
    }
    if isBorrowersFile(fd, index) { return ss_sys_recvmsg(fd, message, flags) }
    let result = session.receive(fd, message, flags)
    if result == -Int(EBADF), standsAnother(fd) { return switchReceiveMessage(fd, message, flags) }
    if session.has(Slot.Flags.owesHandOver) { handOverAgain(fd, session) }
    beginAnewIfLeft(index, session.slot)
    return result
}

/// What recvmmsg looks at before its first message: 0, or the error that waits.
package func switchTakeError(_ fd: Int32) -> Int {
    guard let index = socketIndex(fd) else { return 0 }
    return sessionOf(index).takeError(fd)
}

/// A recvmmsg that has messages to tell of has met a reset: the next call tells of that.
package func switchKeepsReset(_ fd: Int32) {
    guard let index = socketIndex(fd), sessionOf(index).isDual else { return }
    sessionOf(index).noteReset(isReported: false)
}

/// recvmmsg on a socket that is plain TCP, by `call`, whose result is a number of messages, and `bytes` tells how many bytes were
/// in so many. nil: the socket is not plain.
package func switchReceivePlainMessages(_ fd: Int32, _ call: () -> Int, _ bytes: (Int) -> Int) -> Int? {
    guard let index = socketIndex(fd) else { return nil }
    let slot = sessionOf(index).slot
    guard !sessionOf(index).isDual, !movesEagerly(fd, index), let ticket = slot.enterPlain(slot.plainReaders) else { return nil }
    let result = call()
    if leavePlain(slot.plainReaders, ticket, fd, index), result > 0 { noteReceived(fd, index, slot, bytes(result)) }
    return result
}

package func switchSendFile(_ out: Int32, _ input: Int32, _ offset: UnsafeMutablePointer<Int64>?, _ count: Int) -> Int {
    guard let index = socketIndex(out) else { return ownOr(out) { ss_sys_sendfile(out, input, offset, count) } }
    let session = sessionOf(index)
    if count < 0 { return -Int(EINVAL) }
    var goesByKernel = false
    if session.isDual {
        // The kernel looks at descriptors and offsets before it looks at how much there is to do.
        var position = Int64(0)
        if let offset, ss_copy_program_memory(&position, offset, 8) != 0 { return -Int(EFAULT) }
        let found = offset == nil ? ss_sys_sendfile(out, input, nil, 0) : ss_sys_sendfile(out, input, &position, 0)
        if found == -Int(EOVERFLOW), position > Int64.max - Int64(count) { return -Int(EINVAL) }
        if found < 0 || count == 0 { return found }
        goesByKernel = !mayBeRead(input, position)
        if goesByKernel { _ = switchHandOver(out, .unsupportedOption) }
    }
    if !session.isDual, !movesEagerly(out, index) {
        if let ticket = session.slot.enterPlain(session.slot.plainWriters) {
            let result = ss_sys_sendfile(out, input, offset, count)
            if leavePlain(session.slot.plainWriters, ticket, out, index) { noteSent(out, index, session.slot, result) }
            return result
        }
    }
    let result = session.sendFile(out, input, offset, count, byKernel: goesByKernel)
    if result == -Int(EBADF), standsAnother(out) { return switchSendFile(out, input, offset, count) }
    if result != count { readinessNoteFull(index) }
    beginAnewIfLeft(index, session.slot)
    return result
}

/// Whether sendfile may read it into the ring. What is no file (or, without a size, is made up as it is read) the kernel takes, or
/// refuses, in ways of its own; one that was opened with O_DIRECT only the kernel reads into any place.
private func mayBeRead(_ fd: Int32, _ position: Int64) -> Bool {
    var status = stat()
    guard ss_sys_fstat(fd, &status) == 0, UInt32(status.st_mode) & UInt32(S_IFMT) == UInt32(S_IFREG) else { return false }
    var byte: UInt8 = 0
    if status.st_size == 0, ss_sys_pread(fd, &byte, 1, position) != 0 { return false }
    return ss_sys_fcntl(fd, Int32(F_GETFL), 0) & Int(O_DIRECT) == 0
}

/// One of the library's own descriptors does not exist for the program.
@inline(__always)
func ownOr(_ fd: Int32, _ call: () -> Int) -> Int {
    entryKind(descriptorEntry(fd)) == DescriptorKind.own ? -Int(EBADF) : call()
}

// MARK: The end

package func switchShutdown(_ fd: Int32, _ how: Int32) -> Int {
    guard let index = socketIndex(fd) else { return ownOr(fd) { ss_sys_shutdown(fd, how) } }
    let session = sessionOf(index)
    var now = how
    if how >= 0, how <= 2, session.slot.kind.load() >= Slot.Kind.connected, !session.willShutDown(how) {
        // The FIN comes later; of SHUT_RDWR the other half is left.
        now = how == Int32(SHUT_RDWR) ? Int32(SHUT_RD) : -1
    }
    let result = now < 0 && how >= 0 ? 0 : ss_sys_shutdown(fd, now)
    readinessKick(index)
    return result
}

// MARK: Options
//
// Answered by TCP/IP (WSD-S3). getsockname and getpeername are not even interposed (WSD-S4): the program's descriptor
// is the kernel's socket, and nothing of the companion shows (WSD-C12).

package func switchGetOption(_ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?) -> Int {
    // TCP_ZEROCOPY_RECEIVE takes bytes out of the kernel's stream.
    if level == 6, name == 35 { _ = switchKeepsOnTCP(fd) }
    let result = ownOr(fd) { baseGetOption(fd, level, name, value, length) }
    // What a program asks when its non-blocking connect has come to an end.
    if level == SOL_SOCKET, name == SO_ERROR, result == 0, let index = socketIndex(fd) {
        announceEagerly(fd, index)
        if let value, let length, length.pointee > 0 { addReset(sessionOf(index), value, Int(length.pointee)) }
    }
    return result
}

/// SO_ERROR takes the reset, too, that the kernel has told the session of and no call the program.
private func addReset(_ session: Session, _ value: UnsafeMutableRawPointer, _ length: Int) {
    var error: Int32 = 0
    guard session.isDual, ss_copy_program_memory(&error, value, min(length, 4)) == 0 else { return }
    if error == ECONNRESET { session.noteReset(isReported: true) }
    guard error == 0, session.takeReset() else { return }
    error = ECONNRESET
    _ = ss_copy_program_memory(value, &error, min(length, 4))
}

package func switchSetOption(_ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: UInt32) -> Int {
    guard let index = socketIndex(fd) else { return ownOr(fd) { baseSetOption(fd, level, name, value, length) } }
    let session = sessionOf(index)
    let isKernels = needsTCP(level, name) && !isOrdinary(level, name, value, length)
    if isKernels { _ = switchHandOver(fd, .unsupportedOption) }
    let result = baseSetOption(fd, level, name, value, length)
    if result == 0, needsTCP(level, name) { noteOptionsToInherit(fd, session.slot) }
    if result == 0, let value { session.connection.pointee.options.record(level, name, value, length) }
    if result == 0, level == SOL_SOCKET, name == SO_SNDBUF || name == SO_SNDBUFFORCE { noteSendBuffer(fd, session) }
    if result == 0, level == SOL_SOCKET, let value { noteTimeOut(session.slot, name, value) }
    return result
}

/// Of a time-out of less than nothing the kernel does not tell.
private func noteTimeOut(_ slot: Slot, _ name: Int32, _ value: UnsafeRawPointer) {
    let flag: UInt64
    switch name {
    case SO_RCVTIMEO, 66 /* SO_RCVTIMEO_NEW */: flag = Slot.Flags.receivesAtOnce
    case SO_SNDTIMEO, 67 /* SO_SNDTIMEO_NEW */: flag = Slot.Flags.sendsAtOnce
    default: return
    }
    var seconds: Int64 = 0
    guard ss_copy_program_memory(&seconds, value, 8) == 0 else { return }
    if seconds < 0 { slot.flags.setBits(flag) } else { slot.flags.clearBits(flag) }
}

/// The program has chosen the size of the send buffer.
private func noteSendBuffer(_ fd: Int32, _ session: Session) {
    var bytes: Int32 = 0
    var size = UInt32(MemoryLayout<Int32>.size)
    if baseGetOption(fd, SOL_SOCKET, SO_SNDBUF, &bytes, &size) == 0 { session.slot.sendBuffer.store(UInt64(max(bytes, 0))) }
}

/// An earlier image may have chosen it. (Linux before 5.14 does not tell.)
func noteInheritedSendBuffer(_ fd: Int32, _ session: Session) {
    var locks: Int32 = 0
    var size = UInt32(MemoryLayout<Int32>.size)
    let isKnown = baseGetOption(fd, SOL_SOCKET, 72 /* SO_BUF_LOCK */, &locks, &size) == 0
    if isKnown, locks & 1 /* SOCK_SNDBUF_LOCK */ != 0 { noteSendBuffer(fd, session) }
}

/// Whether what a listener accepts inherits an option whose effect only the kernel's own stream has. Harmless for connections.
/// (A filter is told of by its length, or by an error.)
func noteOptionsToInherit(_ fd: Int32, _ slot: Slot) {
    func number(_ level: Int32, _ name: Int32) -> Int32 {
        var number: Int32 = 0
        var length: UInt32 = 4
        return ss_sys_getsockopt(fd, level, name, &number, &length) == 0 ? number : 0
    }
    if slot.kind.load() >= Slot.Kind.connected { return }
    var length: UInt32 = 0
    let result = ss_sys_getsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER /* as SO_GET_FILTER */, nil, &length)
    let hasFilter = result == -Int(EACCES) || result == 0 && length != 0
    if hasFilter || number(SOL_SOCKET, SO_RCVLOWAT) > 1 || number(SOL_SOCKET, SO_OOBINLINE) != 0 || number(SOL_SOCKET, 60) != 0
        || number(SOL_SOCKET, 29) != 0 || number(SOL_SOCKET, 35) != 0 || number(SOL_SOCKET, 37) != 0
        || number(SOL_SOCKET, 63) != 0 || number(SOL_SOCKET, 64) != 0 || number(SOL_SOCKET, 65) != 0 || number(6, 36) != 0
    {
        slot.flags.setBits(Slot.Flags.acceptsOnTCP)
    } else {
        slot.flags.clearBits(Slot.Flags.acceptsOnTCP)
    }
}

/// Options whose effect only the kernel's own stream has.
private func needsTCP(_ level: Int32, _ name: Int32) -> Bool {
    if level == SOL_SOCKET {
        return name == SO_OOBINLINE || name == SO_PEEK_OFF || name == 60 /* SO_ZEROCOPY */ || name == SO_ATTACH_FILTER
            || name == SO_RCVLOWAT || name == 50 /* SO_ATTACH_BPF */ || addsControlMessages(level, name)
    }
    // TCP_REPAIR, TCP_ULP (kTLS), TCP_ZEROCOPY_RECEIVE
    return level == 6 && (name == 19 || name == 31 || name == 35) || addsControlMessages(level, name)
}

/// What is received comes with a control message that only the kernel can write: SO_TIMESTAMP, SO_TIMESTAMPNS and
/// SO_TIMESTAMPING with their newer forms; TCP_INQ.
private func addsControlMessages(_ level: Int32, _ name: Int32) -> Bool {
    if level == 6 { return name == 36 }
    return level == SOL_SOCKET && (name == 29 || name == 35 || name == 37 || name >= 63 && name <= 65)
}

/// Everybody waits for one byte; and what is turned off needs nobody.
private func isOrdinary(_ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: UInt32) -> Bool {
    // Too short: EINVAL.
    if level == SOL_SOCKET, length < 4 { return true }
    var number: Int32 = 0
    guard level == SOL_SOCKET && name == SO_RCVLOWAT || addsControlMessages(level, name), length >= 4,
        ss_copy_program_memory(&number, value, 4) == 0
    else { return false }
    return number == 0 || number == 1 && name == SO_RCVLOWAT
}

/// fcntl with its third argument as a machine word (pointer or integer).
package func switchFileControl(_ fd: Int32, _ command: Int32, _ argument: Int) -> Int {
    if entryKind(descriptorEntry(fd)) == DescriptorKind.own { return -Int(EBADF) }
    // The kernel signals (SIGIO) what it sees.
    if command == F_SETFL, argument & Int(O_ASYNC) != 0 { _ = switchKeepsOnTCP(fd) }
    var result = ss_sys_fcntl(fd, command, argument)
    if result == -Int(EMFILE), giveWay(atOnce: true) { result = ss_sys_fcntl(fd, command, argument) }
    if result < 0 { return result }
    if command == F_DUPFD || command == Int32(F_DUPFD_CLOEXEC) {
        shareEntry(of: fd, with: Int32(result))
    } else if command == F_SETFL, let index = socketIndex(fd) {
        setNonBlocking(sessionOf(index).slot, argument & Int(O_NONBLOCK) != 0)
    } else if command == F_SETFD, argument & 1 == 0, isForeignChild() {
        handOverBeforeExec(fd, as: fd)
    }
    return result
}

/// Requests are the kernel's own numbers, which WSPIoctl could take for its codes: a direct system call (WSD-S3).
package func switchIOControl(_ fd: Int32, _ request: UInt, _ argument: UnsafeMutableRawPointer?) -> Int {
    guard let index = socketIndex(fd) else { return ownOr(fd) { ss_sys_ioctl(fd, request, argument) } }
    let session = sessionOf(index)
    if request == UInt(FIOASYNC) { _ = switchKeepsOnTCP(fd) }
    // The kernel goes first: it knows whether the program may have the answer at that address.
    let result = ss_sys_ioctl(fd, request, argument)
    if result == 0, request == Session.atMarkRequest, session.isDual, let argument, !session.isReadUpToTCP {
        argument.storeBytes(of: 0, as: Int32.self)
    }
    if result == 0, request == ss_fionread, session.isDual, let argument {
        let queued = session.queuedBytes(fd)
        if queued < 0 { return queued }
        argument.storeBytes(of: Int32(clamping: queued), as: Int32.self)
    }
    if result == 0, request == 0x5421 /* FIONBIO */, let argument {
        setNonBlocking(session.slot, argument.loadUnaligned(as: Int32.self) != 0)
    }
    if result == 0, request == 0x5450 /* FIONCLEX */, isForeignChild() { handOverBeforeExec(fd, as: fd) }
    return result
}

private func setNonBlocking(_ slot: Slot, _ on: Bool) {
    if on { slot.flags.setBits(Slot.Flags.nonBlocking) } else { slot.flags.clearBits(Slot.Flags.nonBlocking) }
}
