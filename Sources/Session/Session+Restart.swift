import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// A session that is begun anew. exec ends one end of it: whoever execs and keeps the socket hands it over, and *leaves* the
// companion with a last word. The other end, once nothing of the old session is under way any more, ends its own half: the
// socket is plain again, as before the first session, and both ends announce it anew. Nothing is carried over, since
// positions on TCP are the kernel's.
//
// Why nothing can get lost: the word is said under both locks after the hand-over is done. From then on the leaver publishes
// nothing (its sending direction is on TCP for good, and it has asked for a rewind, so it is never sent to over the companion
// again). The other end begins anew only when its own sending direction is on TCP, it owes no backlog, and it has followed
// the leaver's last cut. Then both directions are plain TCP at both ends.
extension Session {
    /// What must not be for a session to be begun anew: an end of the stream, or a reason to stay on TCP.
    package static var ended: UInt64 {
        Slot.Flags.tcpOnly | Slot.Flags.pullBack | Slot.Flags.broken | Slot.Flags.writeShutDown | Slot.Flags.readShutDown
            | Slot.Flags.tcpEnded | Slot.Flags.peerGone | Slot.Flags.owesFIN | Slot.Flags.resetSeen
    }

    // MARK: The end that leaves

    /// Says the last word. Under both locks, when both directions are on TCP for good.
    func leave() {
        guard slot.flags.loadRelaxed() & (Session.ended & ~Slot.Flags.tcpOnly) == 0 else { return }
        remote.endFlags.store(EndFlags.left)  // SYNC POINT: pairs with the acquire in isSettled
        if let writer = connection.pointee.writer {
            writer.publish(line: 3, rings: true)
            // The memory is about to go. If it does not arrive, the peer stays on TCP.
            guard writer.flush(upTo: slot.sendPosition.loadRelaxed()) else { return }
        }
        connection.pointee.departure = Departure.told
    }

    // MARK: The other end

    /// After bytes have gone over TCP. Under a lock, while the session is up.
    @inline(__always)
    func noteDeparture() {
        if local.endFlags.loadRelaxed() & EndFlags.left != 0 { lookAtDeparture() }
    }

    @inline(never)
    private func lookAtDeparture() {
        servePeer()
        if sendsOnTCP, receivesOnTCP, !hasBacklog, slot.flags.loadRelaxed() & Session.ended == 0 {
            slot.flags.setBits(Slot.Flags.peerLeft)
        }
    }

    /// The peer has left, and whatever it sent before has been read, what it is to get has gone out. Under both locks.
    private var isSettled: Bool {
        let end = local.endFlags.load()  // SYNC POINT: pairs with the release in leave
        guard end & EndFlags.left != 0, end & (EndFlags.halfClosed | EndFlags.closed) == 0 else { return false }
        let followed = slot.receiveCuts.loadRelaxed()
        return sendsOnTCP && !hasBacklog && followed & 1 == 0 && local.cutCount.load() == followed
            && slot.invitation.loadRelaxed() < Invitation.rewind && slot.flags.load() & Session.ended == 0
            && !(connection.pointee.writer?.hasFailed ?? false)
    }

    /// Ends the session of a socket whose peer has left, so that it can be begun anew: the socket is plain afterwards, and the
    /// companion the caller's to close. `retire` takes the doorbell out of the process's epoll sets; it runs under both locks.
    /// False: not now; nothing has changed.
    ///
    /// The caller sees to it that this process alone holds the socket, and that it does not fork meanwhile.
    package func restart(_ retire: () -> Void) -> Bool {
        withBothLocks { isInService && isSettled && endHere(retire) }
    }

    /// The same for the end that has left, and lives on: its exec has failed.
    package func restartAfterLeaving(_ retire: () -> Void) -> Bool {
        withBothLocks { isUp && !isDual && !has(Slot.Flags.broken) && sendsOnTCP && receivesOnTCP && endHere(retire) }
    }

    private func withBothLocks(_ body: () -> Bool) -> Bool {
        guard slot.sendLock.tryLock() else { return false }
        defer { slot.sendLock.unlock() }
        guard slot.receiveLock.tryLock() else { return false }
        defer { slot.receiveLock.unlock() }
        return body()
    }

    private func endHere(_ retire: () -> Void) -> Bool {
        word(Connection.Offsets.up).store(Up.undecided)
        fullFence()  // pairs with the addition in enterWatch
        var patience = 0
        while watchers.loadSequential() != 0, patience < 100 {
            _ = ss_sys_sched_yield()
            patience &+= 1
        }
        // Whoever sleeps on the doorbell would not hear the next one. (It counted itself among the sleepers as a watcher.)
        guard watchers.loadSequential() == 0, doorbellSleepers.loadSequential() == 0 else {
            word(Connection.Offsets.up).store(Up.yes)
            ringOurselves()
            return false
        }
        let (sent, received) = slot.companionBytes
        slot.earlierSent.store(sent)
        slot.earlierReceived.store(received)
        slot.sendPosition.store(0)
        slot.bytesRewound.store(0)
        slot.receivePosition.store(0)
        slot.invitation.store(Invitation.none)
        slot.flags.clearBits(Slot.Flags.peerLeft)
        slot.reason.store(Reason.waitingForPeer.rawValue)
        // In this order: what is not up and still dual has ended for good.
        slot.mode.storeSequential(Slot.Mode.plain)
        word(Connection.Offsets.up).store(Up.no)
        retire()
        releaseWindows(last: true)
        connection.pointee.peerIsHere = false
        connection.pointee.lastPeerCheck = 0
        connection.pointee.stalledSince = 0
        return true
    }
}
