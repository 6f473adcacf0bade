#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// The ring that this side writes, and how it grows: see `RingChange`. What changes it is done under the send lock. Who only looks
// whether there is room needs no lock: what two words say that do not belong together costs a look more.
extension Session {
    @inline(__always)
    var ringToSend: RingGeometry {
        RingGeometry(origin: slot.sendRingOrigin.loadRelaxed(), size: RingChange(word: slot.sendRing.loadRelaxed()).size)
    }

    /// Whether a peer that has read up to `credit` has followed the last change: it has read bytes that were published behind it.
    /// Until then nothing before the change is overwritten, and the ring may grow on only as long as its end was not reached.
    @inline(__always)
    func isSettled(_ credit: UInt64) -> Bool { Int64(bitPattern: credit &- slot.sendRingChanged.loadRelaxed()) > 0 }

    /// Bytes that may be written at `position` when the peer has read up to `credit`. nil: it cannot have.
    func room(_ position: UInt64, _ credit: UInt64) -> UInt64? {
        let ring = ringToSend
        let used = position &- credit
        guard used <= ring.size else { return nil }
        return isSettled(credit) ? ring.size &- used : ring.origin &+ ring.size &- position
    }

    /// Bytes that may be written at `position`; a ring that is full grows. `wanted` lets the peer's credit alone (and its cache
    /// line) while the last one seen suffices.
    func roomToSend(_ position: UInt64, wanted: Int) -> Int {
        let size = ringToSend.size
        let used = position &- slot.sendCredit.loadRelaxed()
        let waitsForEmpty = growsEmptyOnly(size) && slot.sendFullCount.loadRelaxed() >= Session.fullsBeforeGrowth
            && size < Window.maximumRingBytes && position < RingChange.positionsEnd
        if used <= size, size &- used >= UInt64(wanted), !waitsForEmpty { return atOnce(size &- used) }
        let credit = local.credit.load()  // SYNC POINT: pairs with the release in publishCredit
        guard var room = room(position, credit) else {
            breakOff(.protocolViolation)
            return 0
        }
        slot.sendCredit.storeRelaxed(isSettled(credit) ? credit : slot.sendRingOrigin.loadRelaxed())
        if waitsForEmpty ? credit == position : room == 0 && canGrow(position, credit) {
            growRing(position)
            room = self.room(position, credit) ?? 0
        }
        return atOnce(room)
    }

    private static var fullsBeforeGrowth: UInt64 { 2 }

    private func atOnce(_ room: UInt64) -> Int {
        guard let writer = connection.pointee.writer else { return Int(room) }
        return Int(min(room, writer.capacity))
    }

    /// What is written remotely may still be on its way out of the mirror, and who has chosen the size of the send buffer
    /// (SO_SNDBUF) may count on being held up: such a ring grows when it happens to be empty, after it was full several times.
    private func growsEmptyOnly(_ size: UInt64) -> Bool {
        let chosen = slot.sendBuffer.loadRelaxed()
        return connection.pointee.writer != nil || chosen != 0 && size >= chosen
    }

    /// Whether a ring that is full can grow: it has not come to its end yet, or the last change is settled. (A new change begins
    /// where the peer knows of every byte: what has only been written, a bad pointer behind it may yet take back.)
    func canGrow(_ position: UInt64, _ credit: UInt64) -> Bool {
        let ring = ringToSend
        guard ring.size < Window.maximumRingBytes, position < RingChange.positionsEnd else { return false }
        let isUnwrapped = position &- ring.origin <= ring.size
        return !growsEmptyOnly(ring.size) && (isUnwrapped || isSettled(credit) && position == slot.sendPosition.loadRelaxed())
    }

    /// Makes the ring four times as large, up to the largest size, with what lies in it.
    @inline(never)
    private func growRing(_ position: UInt64) {
        var change = RingChange(word: slot.sendRing.loadRelaxed())
        var origin = slot.sendRingOrigin.loadRelaxed()
        let old = change.size
        let size = min(old &* 4, Window.maximumRingBytes)
        if position &- origin <= old {
            change = RingChange(position: change.position, size: size)
        } else {
            slot.sendOldRingOrigin.storeRelaxed(origin)
            origin = position &- old
            change = RingChange(position: position, size: size)
        }
        slot.sendRingOrigin.storeRelaxed(origin)
        slot.sendRing.storeRelaxed(change.word)
        slot.sendRingChanged.storeRelaxed(position)
        slot.sendCredit.storeRelaxed(origin)
        slot.sendFullCount.storeRelaxed(0)
        remote.ringChange.storeRelaxed(change.word)  // published by the next producer, with release
        connection.pointee.writer?.grow(origin: origin, size: size)
    }

    /// Where bytes that were sent lie, from `position` up to `end` or less: none of them has been overwritten.
    func sentPiece(_ position: UInt64, upTo end: UInt64) -> (start: UnsafeMutableRawPointer, count: Int) {
        let change = RingChange(word: slot.sendRing.loadRelaxed())
        let origin = slot.sendRingOrigin.loadRelaxed()
        let old = change.position &- origin
        let isOld = position &- origin < old
        let geometry = isOld ? RingGeometry(origin: slot.sendOldRingOrigin.loadRelaxed(), size: old) : ringToSend
        let (start, count) = geometry.piece(position, upTo: isOld && end &- position > change.position &- position ? change.position : end)
        return (remote.ring + start, count)
    }
}
