import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// Changing the carrier of one direction: the receiver invites, the sender cuts, the receiver follows and acknowledges.
extension Session {
    // MARK: Receiver. Under the receive lock.

    /// Tells the peer which carrier this side wants to read from. Called from the receiver's own read and wait calls
    /// only: a thread that sits in a plain kernel receive could not see a cut, so nobody invites while there is one.
    func invite(_ fd: Int32) {
        let current = slot.invitation.loadRelaxed()
        let wanted = wantsTCP ? Invitation.toTCP : Invitation.toCompanion
        if current == wanted || current >= Invitation.rewind { return }
        if current == Invitation.none {
            if wanted == Invitation.toTCP { return }
            // pairs with the increment in the switch's plain receive: it looks at `mode` after it, we look here after
            // `mode` was set.
            guard slot.plainReaders.isZeroSequential else { return }
            guard slot.flags.loadRelaxed() & (Slot.Flags.readShutDown | Slot.Flags.tcpEnded) == 0 else { return }
            if local.endFlags.load() & EndFlags.closed != 0 {
                // It has closed the socket, which TCP will tell, or has given the companion up alone.
                slot.reason.store(Reason.peerPolicy.rawValue)
                return
            }
            guard let position = KernelPositions.read(fd) else { return }
            slot.tcpPosition.store(position)
        }
        slot.invitation.store(wanted)
        remote.invitation.store(wanted)  // SYNC POINT: pairs with the acquire in changeCarrierIfAsked
        publish(line: 2)
    }

    /// Goes over to the new carrier where the old one has been read up to its cut. False: the peer's words are nonsense.
    func followCuts() -> Bool {
        while true {
            let followed = slot.receiveCuts.loadRelaxed()
            let made = local.cutCount.load()  // SYNC POINT: pairs with the release in cut…
            if made == followed { return true }
            let invitation = slot.invitation.loadRelaxed()
            if invitation >= Invitation.rewind { return true }  // followed in advance, or open
            guard made &- followed <= 2, invitation != Invitation.none else { return false }
            let onTCP = followed & 1 == 0
            let cut = onTCP ? local.cutOnTCP.loadRelaxed() : local.cutOnCompanion.loadRelaxed()
            let position = onTCP ? slot.tcpPosition.loadRelaxed() : slot.receivePosition.loadRelaxed()
            let ahead = Int64(bitPattern: cut &- position)
            if ahead > 0 { return true }
            if ahead < 0 { return false }
            slot.receiveCuts.store(followed &+ 1)
            slot.carrierChanges.count(1)
            remote.acknowledged.store(followed &+ 1)  // SYNC POINT: pairs with the acquire in changeCarrierIfAsked
            publish(line: 2)
        }
    }

    // MARK: Sender. Under the send lock.

    /// Moves the sending direction to the carrier on which it should be, if that can be done now. False: the peer's words
    /// are nonsense.
    func changeCarrierIfAsked(_ fd: Int32) -> Bool {
        let cuts = slot.sendCuts.loadRelaxed()
        let invitation = local.invitation.load()  // SYNC POINT: pairs with the release in invite
        if invitation == Invitation.rewind { return !isRewound || answerRewind() }
        guard invitation <= Invitation.toTCP, cuts &- local.acknowledged.load() <= 2 else { return false }
        if cuts & 1 == 0 {
            if invitation == Invitation.toCompanion { cutToCompanion(fd, cuts) }
        } else if invitation == Invitation.toTCP || wantsTCP {
            if cutToTCP(), !wantsTCP { slot.reason.store(Reason.peerPolicy.rawValue) }
        }
        return true
    }

    @inline(never)
    private func cutToCompanion(_ fd: Int32, _ cuts: UInt64) {
        guard !wantsTCP, local.acknowledged.load() == cuts, !(connection.pointee.writer?.hasFailed ?? false) else { return }
        let ended = Slot.Flags.writeShutDown | Slot.Flags.peerGone | Slot.Flags.broken
        guard slot.flags.loadRelaxed() & ended == 0, local.endFlags.load() & EndFlags.closed == 0, !hasBacklog else { return }
        // pairs with the increment in the switch's plain send.
        guard slot.plainWriters.isZeroSequential else { return }
        guard let written = KernelPositions.written(fd, connectingSide: slot.kind.loadRelaxed() == Slot.Kind.connected) else {
            slot.reason.store(Reason.positionUnknown.rawValue)
            return
        }
        slot.sendCuts.store(cuts &+ 1)
        slot.carrierChanges.count(1)
        slot.reason.store(Reason.none.rawValue)
        remote.cutOnTCP.storeRelaxed(written)
        remote.cutCount.store(cuts &+ 1)  // SYNC POINT: pairs with the acquire in followCuts
        publish(line: 0)
    }

    /// Ends the sending direction's use of the ring; what follows goes over TCP. Needs no invitation. At most two cuts are
    /// outstanding: the receiver knows how to read up to both. False: one must be acknowledged first.
    @discardableResult
    func cutToTCP() -> Bool {
        let cuts = slot.sendCuts.loadRelaxed()
        guard cuts & 1 == 1, cuts &- local.acknowledged.load() <= 1, !has(Slot.Flags.broken) else { return false }
        let position = slot.sendPosition.loadRelaxed()
        let isAnnounced = announceCut(cuts)
        if isRewound { return answerRewind() }
        guard isAnnounced else { return false }
        slot.sendCuts.store(cuts &+ 1)
        slot.carrierChanges.count(1)
        remote.cutOnCompanion.storeRelaxed(position)
        remote.cutCount.store(cuts &+ 1)  // SYNC POINT: pairs with the acquire in followCuts
        if let writer = connection.pointee.writer {
            writer.publish(line: 0, rings: true)
            // Bytes on TCP must not arrive before the cut: a reader that has not seen it would take them first.
            var patience = 0
            while !writer.flush(upTo: position), !writer.hasFailed, patience < 5 { patience &+= 1 }
            if !writer.hasFailed, patience == 5 { writer.fail() }
            // A peer that has followed the cut needs the companion no more, and may be gone.
            if writer.hasFailed { _ = companionIsLost }
        } else {
            ringReceiver()
        }
        return true
    }

    /// The session is up and the peer wants to receive over the companion.
    package var isInvited: Bool {
        guard isDual, enterWatch() else { return false }
        defer { leaveWatch(0) }
        return local.invitation.load() == Invitation.toCompanion
    }

    // MARK: Wait calls

    /// What a wait call does for a socket that neither reads nor writes now: follow the peer's cuts, invite, and (an idle
    /// sender) pull back. Cheap when there is nothing to do; never sleeps. `deadline`: when the wait gives up, if
    /// that says something about this socket (an epoll_wait does not).
    package func maintain(_ fd: Int32, deadline: UInt64 = UInt64.max) {
        guard isDual else { return }
        if slot.receiveLock.tryLock() {
            if isInService, !companionIsLost, !has(Slot.Flags.broken) {
                if !followCuts() { breakOff(.protocolViolation) } else { invite(fd) }
            }
            slot.receiveLock.unlock()
        }
        if slot.sendCuts.load() & 1 == 1 || hasBacklog, slot.sendLock.tryLock() {
            if isInService, !has(Slot.Flags.broken), !companionIsLost {
                if !changeCarrierIfAsked(fd) { breakOff(.protocolViolation) }
                flushBacklog()
                if slot.roomWanted.loadRelaxed() != 0 { goToTCPIfStalled(deadline) }
            }
            slot.sendLock.unlock()
        }
    }
}
