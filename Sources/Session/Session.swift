import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// One stream, two carriers: the session of one connected socket, as this process sees it.
///
/// A value of two pointers; copying it copies nothing. See Documentation/Protocol.md.
///
/// Locks: whatever changes the sending half holds the slot's send lock, the receiving half its receive lock; no call
/// holds a lock while it sleeps; only `end` takes both, sending first. Both locks are family-shared, so threads and
/// forked children are the same thing here. The windows are mapped while a lock is held and `local` is not nil.
package struct Session {
    package let slot: Slot
    package let connection: UnsafeMutablePointer<Connection>

    @inline(__always)
    package init(slot: Slot, connection: UnsafeMutablePointer<Connection>) {
        self.slot = slot
        self.connection = connection
    }

    /// Data calls go through the session (else: plain kernel calls).
    @inline(__always)
    package var isDual: Bool { slot.mode.load() == Slot.Mode.dual }

    /// The window that the peer writes. Only while the session is up.
    @inline(__always)
    package var local: Window { Window(connection.pointee.local.unsafelyUnwrapped) }
    /// What I write for the peer.
    @inline(__always)
    package var remote: Window { Window(connection.pointee.remote.unsafelyUnwrapped) }

    /// The windows are there. Stays true for whoever saw it under a lock or between `enterWatch` and `leaveWatch`.
    @inline(__always)
    package var isUp: Bool { word(Connection.Offsets.up).load() != Up.no }

    /// Under a lock: the session is up and data calls go through it. While one that was begun anew is up and not in service yet,
    /// nobody may change the carrier: plain calls are under way.
    @inline(__always)
    var isInService: Bool { isUp && isDual }

    /// Descriptors of this process that refer to the socket.
    @inline(__always)
    package var descriptorCount: HalfWord { HalfWord(UnsafeMutableRawPointer(connection), Connection.Offsets.descriptorCount) }

    @inline(__always)
    func word(_ offset: Int) -> Word { Word(UnsafeMutableRawPointer(connection), offset) }

    @inline(__always) package var sendsOnTCP: Bool { slot.sendCuts.loadRelaxed() & 1 == 0 }
    @inline(__always) package var receivesOnTCP: Bool { slot.receiveCuts.loadRelaxed() & 1 == 0 }

    @inline(__always) package func has(_ flag: UInt64) -> Bool { slot.flags.loadRelaxed() & flag != 0 }

    /// This side wants the stream on TCP: the operator said off, or this socket must not use its companion.
    @inline(__always)
    package var wantsTCP: Bool {
        if slot.flags.loadRelaxed() & (Slot.Flags.pullBack | Slot.Flags.tcpOnly) != 0 { return true }
        guard let word = ss_session_state.off_word else { return false }
        return Word(word, 0).loadRelaxed() != 0
    }

    /// The peer wrote what no honest peer writes, or the companion is lost: the connection ends with ECONNRESET, here and,
    /// by a reset on TCP, at the peer. A FIN would not do: it would tell the peer that all data have arrived.
    func breakOff(_ reason: Reason) {
        slot.reason.store(reason.rawValue)
        slot.flags.setBits(Slot.Flags.broken | Slot.Flags.tcpOnly)
        guard connection.pointee.descriptor >= 0 else { return }
        Session.reset(connection.pointee.descriptor)
    }

    /// connect(AF_UNSPEC) resets an established connection at once, whoever else holds the socket, and wakes whoever waits
    /// for it.
    package static func reset(_ fd: Int32) {
        var unspecified = InlineArray<16, UInt8>(repeating: 0)
        withUnsafeMutablePointer(to: &unspecified) { _ = ss_sys_connect(fd, $0, 16) }
    }

    /// The kernel's close of the last descriptor will reset the connection.
    package static func resetOnClose(_ fd: Int32) {
        var value = linger(l_onoff: 1, l_linger: 0)
        _ = ss_sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, &value, UInt32(MemoryLayout<linger>.size))
    }

    /// Lets a provider that writes remotely make progress. True: it has failed for good, and the connection with it
    /// (WSD-C13). Under a lock.
    @inline(__always)
    var companionIsLost: Bool {
        guard let writer = connection.pointee.writer else { return false }
        writer.progress()
        return writer.hasFailed && connectionIsLost()
    }

    /// The companion has failed: whether that is the end of the connection.
    @inline(never)
    private func connectionIsLost() -> Bool {
        if has(Slot.Flags.broken) { return true }
        // A peer that has closed its side delivered everything before; what we sent it, TCP answers.
        if local.endFlags.load() & EndFlags.closed != 0 {
            slot.flags.setBits(Slot.Flags.peerGone)
            return false
        }
        // Nothing is under way on the companion any more: the connection goes on without it. What the peer sent before it cut
        // to TCP has arrived; what we sent before a rewind that we know of goes over TCP.
        let cuts = slot.sendCuts.load()
        let sends = cuts & 1 == 0 && local.acknowledged.load() != cuts && local.invitation.load() != Invitation.rewind
        if isRewound || cuts & 1 == 0 && !sends, local.cutCount.load() & 1 == 0 {
            if slot.flags.setBits(Slot.Flags.tcpOnly) & Slot.Flags.tcpOnly == 0 { slot.reason.store(Reason.companionFailed.rawValue) }
            return false
        }
        breakOff(.companionFailed)
        return true
    }

    /// Publishes a line of the remote window that has just been written, where writing memory alone does not.
    @inline(__always)
    func publish(line: Int) {
        if let writer = connection.pointee.writer { writer.publish(line: line) }
    }
}
