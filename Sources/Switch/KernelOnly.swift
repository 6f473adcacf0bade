import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

/// The program makes an io_uring: from now on every socket of this process, and of its children, stays on TCP.
package func switchRingIsMade() {
    if privateState.pointee.hasRing { return }
    privateState.pointee.hasRing = true
    var fd: Int32 = 0
    var deadline: UInt64 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()) {
        _ = readsOnTCP(fd, .ioUring, &deadline, mayRefuse: false)
        fd &+= 1
    }
}

/// What is read past the session is read now, so another connection may take the socket's place, if nobody else has it. (An epoll
/// set knows the socket, and would not know another.) False: not now, and data would be missed.
///
/// `mayRefuse`: the program gets an error then, and can do without. So it does for an urgent byte, which that
/// connection would lose.
private func readsOnTCP(_ fd: Int32, _ reason: Reason, _ deadline: inout UInt64, mayRefuse: Bool) -> Bool {
    if switchHandOver(fd, reason) { return true }
    guard let index = socketIndex(fd), !isForeignChild(), !isWaitedFor(index), sessionOf(index).mayBeReplaced(fd),
        !mayRefuse || !sessionOf(index).mayHaveMark(fd), isSoonAlone(index, &deadline)
    else { return false }
    return replace(fd, index) || switchHandOver(fd, reason)
}

/// Other threads may be about to use the socket: what they read waits until it is decided, and what they have begun by then begins
/// anew (`standsAnother`).
private func replace(_ fd: Int32, _ index: Int) -> Bool {
    let session = sessionOf(index)
    ss_enter_section()
    defer { ss_leave_section() }
    guard session.beginReplacing(fd) else { return false }
    replacementsUnderWay.add(1)
    defer { replacementsUnderWay.subtract(1) }
    let kind = session.slot.kind.load()
    guard leaveRemainder(fd, index, mayTake: { true }) else {
        session.endReplacing()
        return false
    }
    replacements.add(1)
    trackOnTCP(fd, kind: kind)
    return true
}

/// A call has found its socket closed: whether another connection has taken its place, under the same number.
@inline(never)
func standsAnother(_ fd: Int32) -> Bool {
    guard replacements.load() != 0 || replacementsUnderWay.load() != 0, !isForeignChild() else { return false }
    while replacementsUnderWay.load() != 0 { _ = ss_sys_sched_yield() }
    guard let index = socketIndex(fd) else { return isStreamOfTCP(fd) }
    return !sessionOf(index).isDual
}

/// liburing is about to submit what `ring` (its `struct io_uring`, whose layout is part of its ABI) has: if that is anything but
/// work on descriptors that are none of the switch's, all sockets go to TCP as for a ring that cannot be watched.
package func switchRingSubmits(_ ring: UnsafeMutableRawPointer?) {
    guard let ring, !privateState.pointee.hasRing,
        let mask = ring.load(fromByteOffset: 16, as: UnsafePointer<UInt32>?.self),
        let entries = ring.load(fromByteOffset: 56, as: UnsafeRawPointer?.self)
    else { return }
    var position = ring.load(fromByteOffset: 64, as: UInt32.self)
    let end = ring.load(fromByteOffset: 68, as: UInt32.self)
    // More than the ring has room for is liburing's to refuse.
    var left = mask.pointee &+ 1
    while position != end, left > 0 {
        guard isHarmless(entries + 64 * Int(position & mask.pointee)) else { return switchRingIsMade() }
        position &+= 1
        left &-= 1
    }
}

/// A ring takes files under numbers of its own. A list that the program has not is the kernel's to refuse.
package func switchRingTakes(_ files: UnsafePointer<Int32>?, _ count: UInt32) {
    guard let files, !privateState.pointee.hasRing else { return }
    var index = 0
    var fd: Int32 = -1
    while index < Int(count), ss_copy_program_memory(&fd, files + index, 4) == 0 {
        if descriptorEntry(fd) != 0 { return switchRingIsMade() }
        index &+= 1
    }
}

/// Whether an entry of a submission queue has nothing to do with sockets and epoll sets of ours.
private func isHarmless(_ entry: UnsafeRawPointer) -> Bool {
    let operation = entry.load(as: UInt8.self)
    switch operation {
    case 0, 11, 12, 14, 25:  // nothing, time-outs, cancelling, memory
        return true
    case 18, 28, 35, 36, 37, 38, 39:  // by path: open, rename, unlink, mkdir, symlink, link
        return true
    case 1, 2, 3, 4, 5, 6, 7, 8, 17, 19, 21, 22, 23, 24, 55:
        // By descriptor: readv, writev, fsync, read and write into registered memory, poll and its end, sync_file_range,
        // fallocate, close, statx, read, write, fadvise, ftruncate.
        let isRegistered = entry.load(fromByteOffset: 1, as: UInt8.self) & 1 != 0  // IOSQE_FIXED_FILE: see switchRingTakes
        let fd = entry.load(fromByteOffset: 4, as: Int32.self)
        return isRegistered || fd < 0 || descriptorEntry(fd) == 0
    default:
        return false
    }
}

/// The descriptor's stream goes back to TCP at once and for good, since it will be used past the switch, because of `reason`
/// (WSD-D3). True: the kernel's socket now is all there is to it (or was before: also for every descriptor that is no tracked
/// socket). False: not now; see `Session.handOver`.
///
/// May sleep for some milliseconds. Call it without any lock of readiness or of the pending list.
///
/// `leaves`: it is left to the next image, and the peer is told so.
package func switchHandOver(_ fd: Int32, _ reason: Reason = .handedOver, leaves: Bool = false) -> Bool {
    guard let index = socketIndex(fd) else { return true }
    let session = sessionOf(index)
    if !session.isDual {
        keepOnTCP(index, reason)
        giveCompanionUp(index)
        // Unless the session came up at this moment.
        if !session.isDual { return true }
    }
    // Brought up by a process that this one does not share the socket with: the number has become something else here.
    if !session.isUp { return true }
    // The kernel has told of a reset and will not again, or it would not know of one: only the session can tell the program.
    if reason == .unsupportedOption { session.lookForEnd(fd) }
    let mayGo = reason != .unsupportedOption || !session.has(Slot.Flags.resetSeen)
    guard mayGo, session.handOver(fd, reason, leaves: leaves) else {
        session.slot.flags.setBits(Slot.Flags.owesHandOver)
        return false
    }
    session.slot.flags.clearBits(Slot.Flags.owesHandOver)
    // (While it is being replaced others must not read what TCP has.)
    if !session.has(Slot.Flags.replacing) {
        session.slot.mode.storeSequential(Slot.Mode.plain)
        if session.slot.holders.load() > 1 { tellRelatives() }
        session.ringOurselves()
        readinessBecamePlain(index)
    }
    // A peer in this process may be this very thread.
    if session.connection.pointee.peerIsHere { serveOtherEnd(of: session.slot) } else { session.awaitRewound(fd) }
    return true
}

/// After a receive on a socket whose hand-over was refused: asks again if there is no more reason to refuse it, so that what
/// only the kernel's stream has (an option that was set meanwhile, what another program reads) is there from now on.
@inline(never)
func handOverAgain(_ fd: Int32, _ session: Session) {
    guard session.isDual, session.isBackOnTCP else { return }
    _ = switchHandOver(fd, Reason(rawValue: session.slot.reason.load()) ?? .handedOver)
}

/// The program is about to use the descriptor by a call that reaches the kernel past the switch (splice, aio).
/// False: not now, and data would be missed by one who `reads`, or overtake others. One who writes needs the way out alone.
package func switchKeepsOnTCP(_ fd: Int32, reads: Bool = false) -> Bool {
    var deadline: UInt64 = 0
    if reads { return readsOnTCP(fd, .unsupportedOption, &deadline, mayRefuse: true) }
    if switchHandOver(fd, .unsupportedOption) { return true }
    guard let index = socketIndex(fd) else { return true }
    return sessionOf(index).sendsPastRing
}

/// Lets the other end of a connection within this process do what a hand-over asks of it.
private func serveOtherEnd(of slot: Slot) {
    guard let memory = privateState.pointee.arena else { return }
    let arena = FamilyArena(memory)
    for index in arena.usedSlots {
        let other = arena.slot(index)
        if other.mode.load() == Slot.Mode.dual, other.localAddress.port == slot.peerAddress.port,
            other.peerAddress.port == slot.localAddress.port,
            memcmp(other.localAddress.bytes, slot.peerAddress.bytes, 16) == 0
        {
            let session = sessionOf(index)
            if session.connection.pointee.generation == other.generation.load() { session.maintain(session.connection.pointee.descriptor) }
        }
    }
}

/// The process ends, or becomes another program: what peers wait for, and only this process can send, goes out.
/// `closes`: it ends, for sure.
package func switchBeforeExit(closes: Bool) {
    let state = privateState
    guard switchIsActive, let memory = state.pointee.arena, ss_sys_getpid() == Int(state.pointee.pid) else { return }
    let arena = FamilyArena(memory)
    var hasReaped = false
    for index in arena.usedSlots {
        let slot = arena.slot(index)
        if slot.mode.load() == Slot.Mode.dual {
            let session = sessionOf(index)
            if session.connection.pointee.generation == slot.generation.load() {
                // Once for all of them: it asks the kernel about every process of the family.
                if slot.holders.load() != 1, !hasReaped {
                    arena.reapDeadProcesses()
                    hasReaped = true
                }
                session.settleBeforeExit(isLast: slot.holders.load() == 1, closes: closes)
            }
        }
    }
    if closes, sharedMemoryProviderIsBehind() { endAllAnnounced(arena) }
}

/// The service does not read: what lies in its queue would keep the connections of a process that is no more.
@inline(never)
private func endAllAnnounced(_ arena: FamilyArena) {
    for index in arena.usedSlots {
        let session = sessionOf(index)
        let phase = session.connection.pointee.companionPhase
        if phase == CompanionPhase.connecting || phase == CompanionPhase.offered,
            session.connection.pointee.generation == session.slot.generation.load(), isAlone(session.slot)
        {
            endAnnounced(session.connection.pointee.descriptor)
        }
    }
}
