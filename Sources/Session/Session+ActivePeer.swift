import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// A peer that is sending at this moment, on another processor. What costs then is the way of the cache lines: each look at a
// window takes a line from the sender that it must take back for its next message. So, in the place of a wait,
//
// - an answer that is expected at once is looked for with nothing around the look, and the line of its first bytes is asked
//   for together with the one that announces them;
// - the lines for what is sent next are taken in advance, where requests and answers alternate;
// - a reader that has caught up with a stream of small messages leaves the line to the sender for a microsecond, and finds
//   several of them at its next look.
extension Session {
    /// Looks for about a microsecond, at most. True: a receive should be tried again at once. No clock, no system call.
    @inline(never)
    func looksForAnswer() -> Bool {
        guard ss_session_state.never_spin == 0, enterWatch() else { return false }
        defer { leaveWatch(0) }
        guard !receivesOnTCP, connection.pointee.writer == nil,
            senderIsElsewhere
        else { return false }
        let position = slot.receivePosition.loadRelaxed()
        let ring = ringToReceive.geometry
        guard RingGeometry.isValid(size: ring.size) else { return false }
        let next = local.ring + ring.index(position)
        var looks = 0
        while looks < Session.looksForAnswer {
            if local.producer.load() != position { return true }
            // Pauses between the looks: whoever asks for the line of the bytes too often takes it from the sender that is about
            // to fill it.
            ss_prefetch(next)
            ss_pause()
            looks &+= 1
        }
        return false
    }

    private static var looksForAnswer: Int { 20 }

    /// The peer last sent on another processor than this thread's.
    @inline(__always)
    private var senderIsElsewhere: Bool { SenderMark.cpu(local.senderMark.loadRelaxed()) != UInt64(UInt32(bitPattern: ss_cpu())) }

    /// Before a look, under the receive lock: leaves the line to a sender that writes one small message after the other.
    @inline(__always)
    func giveSenderTime() {
        let until = connection.pointee.nextLook
        guard until != 0 else { return }
        connection.pointee.nextLook = 0
        while until &- ss_cycles() <= ss_pace_cycles { ss_pause() }
    }

    /// After a receive of `taken` bytes, under the receive lock: whether the next look had better come later. It had when this
    /// side sends nothing and the last receives came so fast that each found hardly more than one message; and again as long
    /// as waiting brings several.
    @inline(__always)
    func notePace(_ taken: Int) {
        let sent = slot.sendPosition.loadRelaxed()
        guard sent == connection.pointee.sentBeforeReceive, taken < Session.smallReceive, ss_session_state.never_spin == 0 else {
            connection.pointee.sentBeforeReceive = sent
            connection.pointee.fastReceives = 0
            takeLinesToSend(sent)
            return
        }
        notePaceOfStream(taken)
    }

    /// Where requests and answers alternate, the next thing is to send: its lines come from the reader while the program looks
    /// at what it has received.
    @inline(__always)
    private func takeLinesToSend(_ position: UInt64) {
        let ring = ringToSend
        guard slot.sendCuts.loadRelaxed() & 1 == 1, RingGeometry.isValid(size: ring.size) else { return }
        ss_prefetch_to_write(remote.producer.address)
        ss_prefetch_to_write(remote.ring + ring.index(position))
    }

    @inline(__always)
    private func notePaceOfStream(_ taken: Int) {
        let now = ss_cycles()
        let fast = connection.pointee.fastReceives
        let isFast = now &- connection.pointee.lastReceive < ss_pace_cycles * 2
        connection.pointee.lastReceive = now
        if fast >= Session.fastReceives {
            if isFast, taken >= 2 * Int(connection.pointee.smallestReceive) {
                connection.pointee.nextLook = now &+ ss_pace_cycles
            } else {
                connection.pointee.fastReceives = 0
            }
            return
        }
        guard isFast, senderIsElsewhere else {
            connection.pointee.fastReceives = 0
            return
        }
        connection.pointee.smallestReceive = fast == 0 ? UInt32(taken) : min(connection.pointee.smallestReceive, UInt32(taken))
        connection.pointee.fastReceives = fast &+ 1
        if fast &+ 1 == Session.fastReceives { connection.pointee.nextLook = now &+ ss_pace_cycles }
    }

    private static var smallReceive: Int { 512 }
    /// So many in a row make a stream.
    private static var fastReceives: UInt32 { 32 }
}
