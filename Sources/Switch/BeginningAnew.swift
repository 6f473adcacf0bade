import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// After exec (WSD-D1): a connection whose one end was left to the next image gets a new companion, if that image runs under
// the switch. The end that stayed ends its session here (see Session+Restart.swift); the new image adopts its sockets in
// Inheritance.swift. Both then announce the connection as rejoiners, in their own data calls, and wait for each other.

/// After a data call.
@inline(__always)
func beginAnewIfLeft(_ index: Int, _ slot: Slot) {
    if slot.flags.loadRelaxed() & Slot.Flags.peerLeft != 0 { beginAnew(index) }
}

/// The peer has left: the socket becomes plain, and is announced. If it cannot be done now, the next bytes on TCP lead here again.
@inline(never)
private func beginAnew(_ index: Int) {
    let session = sessionOf(index)
    let connection = session.connection
    session.slot.flags.clearBits(Slot.Flags.peerLeft)
    guard !isForeignChild(), connection.pointee.companionPhase == CompanionPhase.up,
        connection.pointee.generation == session.slot.generation.load(), session.slot.holders.load() == 1 || isAloneAgain(session.slot),
        !readinessHasOrphans(index), lockPending()
    else { return }
    // A fork would wait for the lock.
    let isDone = session.slot.holders.load() == 1 && session.restart { readinessBecamePlain(index) }
    if isDone {
        closeCompanion(index)
        prepareToRejoin(index)
    }
    unlockPending()
    if isDone { considerCompanion(connection.pointee.descriptor, index) }
}

func prepareToRejoin(_ index: Int) {
    let session = sessionOf(index)
    session.connection.pointee.rejoins = true
    session.slot.attempts.store(0)
    session.slot.nextAttempt.store(0)
}

// MARK: The end that execs

/// Leaves the connection behind `fd` to the next image, which is going to be switched as far as can be known. False: it is handed
/// over for good, or nothing has become of it at all; the caller does that.
func leaveToNextImage(_ fd: Int32, _ index: Int) -> Bool {
    let session = sessionOf(index)
    let slot = session.slot
    let connection = session.connection
    let kind = slot.kind.load()
    let unfit = Session.ended & ~Slot.Flags.pullBack | Slot.Flags.strangers
    // The standard streams are stdio's.
    guard fd > 2, kind == Slot.Kind.connected || kind == Slot.Kind.accepted, slot.flags.load() & unfit == 0, isAlone(slot),
        !hasOtherInheritable(fd), !readinessOutlivesExec(index)
    else { return false }
    // The peer's session may be up already: then ours must be, to say the word. If its message is not there, it will find that we
    // have given up. (Between the two are a few instructions; a peer that comes up in them stays on TCP.)
    if connection.pointee.companionPhase == CompanionPhase.negotiating, lockPending() {
        negotiateCompanion(index)
        unlockPending()
    }
    let wasDual = session.isDual
    connection.pointee.departure = Departure.none
    guard switchHandOver(fd, .handedOver, leaves: true) else { return false }
    if !wasDual { connection.pointee.departure = Departure.plain }
    guard connection.pointee.departure != Departure.none, slot.holders.load() == 1, slot.flags.load() & Slot.Flags.strangers == 0
    else {
        connection.pointee.departure = Departure.none
        return false
    }
    return true
}

/// exec has failed: what was left to the next image is this one's.
func returnFromDeparture(_ index: Int) {
    let session = sessionOf(index)
    let connection = session.connection
    let departure = connection.pointee.departure
    guard departure != Departure.none, connection.pointee.generation == session.slot.generation.load() else { return }
    connection.pointee.departure = Departure.none
    if departure == Departure.told {
        guard !readinessHasOrphans(index), lockPending() else { return }
        let isDone = session.restartAfterLeaving {}
        if isDone { closeCompanion(index) }
        unlockPending()
        if !isDone { return }
    }
    prepareToRejoin(index)
    session.slot.reason.store(Reason.notWorthItYet.rawValue)
    session.slot.flags.clearBits(Slot.Flags.tcpOnly)
}

/// Whether another descriptor of the same socket goes to the next image, too: the two would look like two sockets there.
private func hasOtherInheritable(_ fd: Int32) -> Bool {
    let entry = descriptorEntry(fd)
    if sessionOf(entryIndex(entry)).descriptorCount.load() <= 1 { return false }
    return isInheritable(entry, except: fd)
}

/// Whether a descriptor with this entry outlives exec.
func isInheritable(_ entry: UInt32, except: Int32 = -1) -> Bool {
    var other: Int32 = 0
    while other < Int32(bitPattern: highestDescriptor.load()) {
        if other != except, descriptorEntry(other) == entry {
            let flags = ss_sys_fcntl(other, F_GETFD, 0)
            if flags >= 0, flags & 1 /* FD_CLOEXEC */ == 0 { return true }
        }
        other &+= 1
    }
    return false
}
