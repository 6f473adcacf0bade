import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// Handing a socket over: both directions go back to TCP at once and for good, so that calls past the switch (and programs
// without one) see exactly the stream. What this side sends needs only a cut. What it receives needs a *rewind*: it stops
// reading the ring where it is and publishes that position; the sender, which still has the bytes behind it, sends them
// over TCP before anything else. Nobody waits for the other: such bytes are late, never lost.
extension Session {
    // MARK: Receiver

    /// Moves both directions back to TCP for good, because of `reason`. True: whoever reads and writes the descriptor past
    /// the switch from now on sees the one stream; the caller makes the slot plain. False: not now. Bytes lie unread in the
    /// ring that the peer cannot send over TCP any more, since others that follow them are there already, or the end; or
    /// TCP does not take what the peer still has to get. The session goes on, without the companion for what is sent next,
    /// and the caller may ask again when the program has read on.
    ///
    /// Waits for at most some milliseconds for a peer that is about to decide, a second for a TCP that is full.
    ///
    /// `leaves`: this end is about to begin anew, as another program, and tells the peer so; see Session+Restart.swift.
    package func handOver(_ fd: Int32, _ reason: Reason, leaves: Bool = false) -> Bool {
        let start = ss_monotonic_ns()
        while true {
            guard slot.sendLock.lock() == .acquired else { return false }
            guard slot.receiveLock.lock() == .acquired else {
                slot.sendLock.unlock()
                return false
            }
            let progress = isUp ? moveBothToTCP(fd, reason) : .done
            if progress == .done, isUp {
                if leaves { leave() }
                ring()
            }
            slot.receiveLock.unlock()
            slot.sendLock.unlock()
            let waited = ss_monotonic_ns() &- start
            switch progress {
            case .done: return true
            case .refused: return false
            case .undecided:
                if waited > Session.decisionNanoseconds {
                    // Whoever could decide may be asleep.
                    if enterWatch() {
                        ring()
                        leaveWatch(0)
                    }
                    return false
                }
                _ = ss_sys_sched_yield()
            case .backlog:
                if waited > Session.backlogPatienceNanoseconds { return false }
                awaitTCP(fd, Int16(POLLOUT), Session.backlogPatienceNanoseconds &- waited)
            }
        }
    }

    /// Waits a few milliseconds for the peer to send what lay unread in the ring, so that the socket is readable at once
    /// if it was before. Not for a peer in this very process, which may be this thread.
    package func awaitRewound(_ fd: Int32) {
        guard enterWatch() else { return }
        let waits = slot.invitation.load() == Invitation.rewind && !connection.pointee.peerIsHere
            && local.producer.load() != slot.receivePosition.load() && local.cutCount.load() & 1 == 1
        leaveWatch(0)
        if waits { awaitTCP(fd, Int16(POLLIN) | Int16(POLLRDHUP), Session.rewoundNanoseconds) }
    }

    /// Nothing of either direction is left on the companion, or owed to the peer.
    package var isBackOnTCP: Bool {
        guard enterWatch() else { return false }
        defer { leaveWatch(0) }
        return receivesOnTCP && sendsOnTCP && local.cutCount.load() == slot.receiveCuts.load() && !hasBacklog
    }

    /// After a hand-over that was refused: bytes lie unread in the ring that the peer will not send over TCP. (One that has not
    /// decided yet may.)
    package func hasStrandedBytes(_ fd: Int32) -> Bool {
        !isReadUpToTCP && slot.invitation.load() != Invitation.rewindUndecided && queuedBytes(fd) > 0
    }

    /// The peer has closed its side, or is gone: nothing comes any more but what is there, and nobody reads what is sent. Or this
    /// side has shut down its sending half, and the peer has all of it, and has ended, too. The receiving half is not shut. Waits a
    /// moment for what the peer's kernel has not sent yet, for want of room in ours.
    package func hasPeerClosed(_ fd: Int32) -> Bool {
        if hasEnded(fd) { return true }
        guard enterWatch() else { return false }
        // Until the peer's session has opened, its end flags say nothing.
        let isOpen = local.ringChange.load() != 0
        let end = local.endFlags.load()
        leaveWatch(0)
        guard isOpen, !has(Slot.Flags.readShutDown | Slot.Flags.writeShutDown | Slot.Flags.broken) else { return false }
        let hasClosed = end & EndFlags.closed != 0
        if hasClosed, !KernelPositions.finHasCome(fd) {
            var room: Int32 = 1 << 22
            _ = ss_sys_setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, 4)
            awaitTCP(fd, Int16(POLLRDHUP), Session.endNanoseconds)
        }
        // (One that has gone back to TCP by itself, as another program, may have shut down its sending half without a word here.)
        return KernelPositions.state(fd) == TCPState.closeWait && (hasClosed || end & EndFlags.halfClosed == 0 && ss_peer_is_orphan(fd) != 0)
    }

    /// This side has shut down its sending half, the peer has all that was sent, and has ended, too; not by a reset.
    private func hasEnded(_ fd: Int32) -> Bool {
        guard has(Slot.Flags.writeShutDown), !has(Slot.Flags.readShutDown | Slot.Flags.broken | Slot.Flags.resetSeen), !hasBacklog
        else { return false }
        var patience = 0
        while let state = KernelPositions.state(fd), KernelPositions.isAfterFIN(state), patience < 20 {
            if state == TCPState.closed { return Session.kernelEvents(fd, 0) & EPOLLERR.rawValue == 0 }
            // The last acknowledgement is on its way.
            var pause = timespec(tv_sec: 0, tv_nsec: 1_000_000)
            _ = ss_sys_brief_ppoll(nil, 0, &pause)
            patience &+= 1
        }
        return false
    }

    /// Another connection may stand for this one: the receiving half is not shut, the sending half neither or both ends have ended,
    /// it was not reset, and no call of another thread waits for something of it.
    package func mayBeReplaced(_ fd: Int32) -> Bool {
        guard doorbellSleepers.loadSequential() == 0, sleepingCalls.loadSequential() == 0, slot.plainReaders.count == 0,
            slot.plainWriters.count == 0, !has(Slot.Flags.readShutDown | Slot.Flags.broken | Slot.Flags.resetSeen)
        else { return false }
        if has(Slot.Flags.writeShutDown) { return hasEnded(fd) }
        let state = KernelPositions.state(fd)
        return state == TCPState.established || state == TCPState.closeWait
    }

    /// From now on this thread alone receives: others wait until another connection stands for this one, or until `endReplacing`.
    /// False: it must not be replaced, or a call is under way.
    package func beginReplacing(_ fd: Int32) -> Bool {
        guard slot.receiveLock.lock() == .acquired else { return false }
        let isFirst = replacer.load() == 0
        if isFirst {
            replacer.store(UInt64(UInt32(bitPattern: ss_thread_id())))
            slot.flags.setBits(Slot.Flags.replacing)
        }
        slot.receiveLock.unlock()
        if isFirst, !mayBeReplaced(fd) { endReplacing() }
        return isFirst && replacer.load() != 0
    }

    package func endReplacing() {
        slot.flags.clearBits(Slot.Flags.replacing)
        replacer.store(0)
    }

    /// Another thread has begun to replace it. (The flag alone is every process's.)
    @inline(__always)
    var isReplacedByAnother: Bool { has(Slot.Flags.replacing) && isReplacersAnother }

    @inline(never)
    private var isReplacersAnother: Bool {
        let replacer = replacer.load()
        return replacer != 0 && replacer != UInt64(UInt32(bitPattern: ss_thread_id()))
    }

    /// An urgent byte, or its mark, may lie ahead of the reader.
    package func mayHaveMark(_ fd: Int32) -> Bool {
        has(Slot.Flags.urgentTaken) || Session.kernelEvents(fd, EPOLLPRI.rawValue) & EPOLLPRI.rawValue != 0
    }

    /// After a hand-over that was refused: what is sent from now on goes over TCP all the same.
    package var sendsPastRing: Bool {
        guard enterWatch() else { return !isDual }
        defer { leaveWatch(0) }
        return has(Slot.Flags.tcpOnly) && (sendsOnTCP || sendNeedsTCP) && !hasBacklog && !has(Slot.Flags.resetSeen)
    }

    private static var endNanoseconds: UInt64 { 200_000_000 }
    private static var decisionNanoseconds: UInt64 { 5_000_000 }
    private static var rewoundNanoseconds: UInt64 { 5_000_000 }
    static var backlogPatienceNanoseconds: UInt64 { 1_000_000_000 }

    /// `isClosing`: in close, which is a cancellation point.
    package func awaitTCP(_ fd: Int32, _ events: Int16, _ nanoseconds: UInt64, isClosing: Bool = false) {
        var entry = pollfd(fd: fd, events: events, revents: 0)
        var timeout = timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
        _ = isClosing ? ss_sys_ppoll(&entry, 1, &timeout, nil) : ss_sys_brief_ppoll(&entry, 1, &timeout)
    }

    private enum Progress { case done, refused, undecided, backlog }

    /// Under both locks.
    private func moveBothToTCP(_ fd: Int32, _ reason: Reason) -> Progress {
        slot.flags.setBits(Slot.Flags.tcpOnly)  // from now on nobody invites
        slot.reason.store(reason.rawValue)
        if has(Slot.Flags.broken) { return .done }
        let received = rewind(fd)
        // The way out is cut even if the way in must wait: whoever asked will send past the switch. (To a peer that is gone
        // the kernel sends anyway.)
        if !has(Slot.Flags.broken), !sendsOnTCP, !cutToTCP(), !sendNeedsTCP { return .undecided }
        slot.reason.store(reason.rawValue)
        if has(Slot.Flags.broken) { return .done }
        guard received == .granted else { return received == .refused ? .refused : .undecided }
        return flushBacklog() ? .done : .backlog
    }

    private enum Outcome { case granted, refused, undecided, nonsense }

    /// Gives the ring up where it has been read, if the peer can still send what lies behind. Under both locks.
    private func rewind(_ fd: Int32) -> Outcome {
        guard followCuts() else {
            breakOff(.protocolViolation)
            return .granted
        }
        switch slot.invitation.loadRelaxed() {
        case Invitation.none, Invitation.rewind:
            // Never invited: the peer has not cut and will not. Or done before.
            return .granted
        case Invitation.rewindUndecided:
            break
        default:
            // TCP answers with a reset what comes after both halves were shut down.
            if has(Slot.Flags.readShutDown), has(Slot.Flags.writeShutDown), hasUnread { return .refused }
            slot.invitation.store(Invitation.rewindUndecided)
            remote.rewindPosition.storeRelaxed(slot.receivePosition.loadRelaxed())
            remote.invitation.store(Invitation.rewind)  // SYNC POINT: pairs with the acquire in changeCarrierIfAsked
            // A peer in the middle of a write looks at the number afterwards, and so at the rewind.
            armReceive()  // its fence pairs with the one in announceCut
            if let writer = connection.pointee.writer {
                writer.publish(line: 2, rings: true)
                if !writer.flush(upTo: slot.sendPosition.loadRelaxed()) {
                    if companionIsLost { return .granted }
                    if !writer.hasFailed { return .undecided }
                }
            }
        }
        return settleRewind(fd)
    }

    /// Finds out what became of a rewind that is published, and acts on it. Under the receive lock.
    private func settleRewind(_ fd: Int32) -> Outcome {
        let outcome = rewindOutcome(fd)
        switch outcome {
        case .granted:
            // Whatever cut the peer makes in answer is followed in advance.
            slot.receiveCuts.store((local.cutCount.load() &+ 1) & ~1)
            slot.carrierChanges.count(1)
            slot.invitation.store(Invitation.rewind)
        case .refused:
            slot.invitation.store(Invitation.toTCP)
            remote.invitation.store(Invitation.toTCP)
            publish(line: 2)
        case .nonsense: breakOff(.protocolViolation)
        case .undecided: break
        }
        return outcome
    }

    /// What the peer will do, or has done, about our rewind. It says that it is about to cut (or to end) before it looks for a
    /// rewind, and we look for that after having published one: so if nothing is said it will see ours. If something is said
    /// and not done, it is between the two.
    private func rewindOutcome(_ fd: Int32) -> Outcome {
        let position = slot.receivePosition.loadRelaxed()
        let followed = slot.receiveCuts.loadRelaxed()
        let hasEnded = KernelPositions.finHasCome(fd)
        let end = local.endFlags.load()
        let intent = local.cutIntent.load()
        let made = local.cutCount.load()  // last: if it was cut, what was said before it is done
        if made == followed, made & 1 == 0 { return .granted }
        if made & 1 == 0 {
            guard made &- followed <= 2 else { return .nonsense }
            // The peer is on TCP already; unread bytes of the ring belong before what it has written there.
            let ahead = Int64(bitPattern: local.cutOnCompanion.loadRelaxed() &- position)
            return ahead == 0 ? .granted : ahead > 0 ? .refused : .nonsense
        }
        guard made &- followed <= 1 else { return .nonsense }
        if hasEnded || end & (EndFlags.halfClosed | EndFlags.closed) != 0 {
            return local.producer.load() == position ? .granted : .refused
        }
        return intent == made &+ 1 || end & EndFlags.ending != 0 ? .undecided : .granted
    }

    /// A receiver whose rewind is undecided reads nothing from either carrier. True: it is decided. Under the receive lock.
    @inline(__always)
    func isDecided(_ fd: Int32) -> Bool {
        slot.invitation.loadRelaxed() != Invitation.rewindUndecided || settleRewind(fd) != .undecided
    }

    // MARK: Sender. Under the send lock.

    /// Says that the cut to TCP after `cuts` is about to be made; a peer that rewinds from now on takes notice. False: it could
    /// not be said.
    func announceCut(_ cuts: UInt64) -> Bool {
        remote.cutIntent.store(cuts &+ 1)
        if let writer = connection.pointee.writer {
            writer.publish(line: 0)
            return writer.flush(upTo: slot.sendPosition.loadRelaxed())
        }
        fullFence()  // pairs with the fence in rewind
        return true
    }

    /// The peer reads the ring no more: the direction goes to TCP for good, the bytes behind the peer's position first.
    /// The caller has seen the invitation to it. False: the position is nonsense, and the connection broken off.
    @inline(never) @discardableResult
    func answerRewind() -> Bool {
        let cuts = slot.sendCuts.loadRelaxed()
        let end = slot.sendPosition.loadRelaxed()
        let credit = slot.sendCredit.loadRelaxed()
        let position = local.rewindPosition.loadRelaxed()
        // Behind the credit the ring may have been overwritten.
        guard position &- credit <= end &- credit else {
            breakOff(.protocolViolation)
            return false
        }
        slot.backlogPosition.store(position)
        slot.backlogEnd.store(end)
        slot.bytesRewound.count(end &- position)
        slot.sendCuts.store(cuts &+ 1)
        slot.carrierChanges.count(1)
        slot.reason.store(Reason.peerPolicy.rawValue)
        remote.cutOnCompanion.storeRelaxed(position)
        remote.cutCount.store(cuts &+ 1)  // SYNC POINT: pairs with the acquire in rewindOutcome
        publish(line: 0)
        flushBacklog()
        return true
    }

    /// What the peer waits for and only this side can send: an answer to its rewind, or the backlog.
    @inline(__always)
    package var owesPeer: Bool { hasBacklog || isRewound }

    @inline(__always)
    package var hasBacklog: Bool { slot.backlogPosition.loadRelaxed() != slot.backlogEnd.loadRelaxed() }

    /// The peer has rewound, and the direction is still on the companion.
    @inline(__always)
    var isRewound: Bool {
        slot.sendCuts.loadRelaxed() & 1 == 1 && local.invitation.load() == Invitation.rewind
            && slot.flags.loadRelaxed() & (Slot.Flags.writeShutDown | Slot.Flags.broken) == 0
    }

    /// Sends the backlog as far as TCP takes it now. True: nothing is left of it.
    @discardableResult
    func flushBacklog() -> Bool {
        var position = slot.backlogPosition.loadRelaxed()
        let end = slot.backlogEnd.loadRelaxed()
        if position == end { return true }
        while position != end {
            let piece = sentPiece(position, upTo: end)
            let sent = ss_sys_sendto(connection.pointee.descriptor, piece.start, piece.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
            if sent == -Int(EAGAIN) || sent == -Int(ENOBUFS) || sent == -Int(ENOMEM) { return false }
            if sent <= 0 {
                // The connection is over. The kernel repeats a broken pipe, but tells of a reset only once.
                if sent == -Int(ECONNRESET) { noteReset(isReported: false) }
                slot.backlogPosition.store(end)
                break
            }
            slot.tcpBytesSent.count(UInt64(sent))
            position &+= UInt64(sent)
            slot.backlogPosition.store(position)
        }
        // Room, which an edge-triggered waiter has not been told of.
        slot.sendFullCount.storeRelaxed(slot.sendFullCount.loadRelaxed() &+ 1)
        if has(Slot.Flags.owesFIN) {
            slot.flags.clearBits(Slot.Flags.owesFIN)
            remote.endFlags.store(endFlags)
            _ = ss_sys_shutdown(connection.pointee.descriptor, Int32(SHUT_WR))
        }
        return true
    }

    /// The doorbell rang, for whatever: it may be for this. Never sleeps.
    package func answerRing() {
        guard enterWatch() else { return }
        servePeer()
        leaveWatch(0)
    }

    /// Does what the peer waits for, for a caller that has nothing to send itself. Never sleeps.
    @inline(__always)
    func servePeer() {
        if owesPeer, slot.sendLock.tryLock() {
            if isUp { answerPeer() }
            slot.sendLock.unlock()
        }
    }

    /// Under the send lock. True: nothing is left to do.
    @inline(never) @discardableResult
    func answerPeer() -> Bool {
        if isRewound { answerRewind() }
        return flushBacklog()
    }

    /// The process is about to end without closing the socket: a close as far as the peer's rewinds are concerned.
    /// `isLast`: no other process holds the socket. `closes`: nothing but the end of the process can follow. Then the kernel's
    /// close must reset the connection if bytes lie unread in the ring, as it does if some lie in its own queue; and the peer,
    /// which asks the kernel now and then only, must hear that nobody reads any more: what it sends next deserves a reset.
    package func settleBeforeExit(isLast: Bool, closes: Bool) {
        waitForBacklog(isLast: isLast)
        guard closes, isLast, enterWatch() else { return }
        defer { leaveWatch(0) }
        if hasUnread { Session.resetOnClose(connection.pointee.descriptor) }
        remote.endFlags.store(EndFlags.halfClosed | EndFlags.closed)
        guard let writer = connection.pointee.writer else { return ringSender() }
        writer.publish(line: 3, rings: true)
        _ = writer.flush(upTo: slot.sendPosition.loadRelaxed())
    }

    /// exec has failed: the end that `settleBeforeExit` has announced does not come. Any state.
    package func goOnAfterExec() {
        guard enterWatch() else { return }
        defer { leaveWatch(0) }
        guard slot.sendLock.lock() == .acquired else { return }
        let end = remote.endFlags.load()
        if end & EndFlags.ending != 0, !has(Slot.Flags.writeShutDown) {
            remote.endFlags.store(end & ~EndFlags.ending)
            publish(line: 3)
        }
        slot.sendLock.unlock()
    }

    /// Before the end of the sending direction is published: says that it is near, and looks for a rewind for the last time.
    /// False: the backlog does not fit into TCP yet.
    func settleBeforeEnd() -> Bool {
        if !sendsOnTCP {
            remote.endFlags.store(remote.endFlags.load() | EndFlags.ending)
            if let writer = connection.pointee.writer {
                writer.publish(line: 3)
                _ = writer.flush(upTo: slot.sendPosition.loadRelaxed())
            }
            fullFence()  // pairs with the fence in rewind
        }
        return answerPeer()
    }
}
