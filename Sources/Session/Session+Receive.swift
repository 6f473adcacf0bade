import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

extension Session {
    /// Receives like recvmsg(2) on a stream socket. `restarts`: after a handler with SA_RESTART, as the kernel does.
    package func receive(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32, restarts: Bool = true) -> Int {
        var cursor = MessageCursor(message)
        let total = cursor.total(message)
        if total < 0 { return total }
        if flags & Int32(MSG_OOB | MSG_ERRQUEUE) != 0 {
            let result = ss_sys_recvmsg(fd, message, flags)
            if result > 0, flags & Int32(MSG_OOB) != 0 { slot.flags.setBits(Slot.Flags.urgentTaken) }
            return result
        }
        if total == 0 { return receiveNothing(fd, message, flags) }
        var nonBlocking = isNonBlocking(flags, Slot.Flags.receivesAtOnce)
        let peeks = flags & Int32(MSG_PEEK) != 0
        var least = least(fd, flags, total, nonBlocking)
        var wait = WaitState(slot)
        defer { wait.leave() }
        var fd = fd
        var done = 0
        while true {
            if slot.receiveLock.lock() == .ownedByThisThread { return done > 0 ? done : -Int(EAGAIN) }
            var result = -Int(EBADF)
            if !stands(wait.generation) {
                // Closed by another thread.
            } else if isReplacedByAnother {
                slot.receiveLock.unlock()
                _ = ss_sys_sched_yield()
                continue
            } else if isInService {
                result = tryReceive(fd, message, &cursor, flags, goesOn: done > 0)
                if result == -Int(EAGAIN) { servePeer() }
            } else if !isDual {
                slot.receiveLock.unlock()
                guard let received = wait.outside({ receivePlainly(fd, message, &cursor, flags) }) else { continue }
                if received <= 0 { return partial(done, received) }
                if peeks { return received }
                done &+= received
                if done >= min(least, total) || cursor.isBad { return done }
                fd = connection.pointee.descriptor
                continue
            } else if done == 0 {
                result = ss_sys_recvmsg(fd, message, flags | Int32(MSG_DONTWAIT))
            }
            slot.receiveLock.unlock()
            if result > 0 {
                done = peeks ? result : done &+ result
                if done >= min(least, total) || cursor.isBad { return done }
                if !peeks { continue }
                // What was seen is still there: it is looked at anew when there may be more, if there can be more.
                if has(Slot.Flags.tcpEnded | Slot.Flags.readShutDown) || endsHere(fd) { return done }
                cursor = MessageCursor(message)
                wait.hasMoved = true
                result = waitForMore(fd, &wait)
            } else {
                // At the end of the stream the header is written, too.
                if result == 0, done == 0 { Session.clearAncillary(message, flags) }
                if result != -Int(EAGAIN) || nonBlocking { return partial(done, result) }
                wait.hasMoved = done > 0
                result = waitToReceive(fd, &wait)
            }
            if result < 0 || wait.interrupted && done > 0 { return done > 0 ? done : result }
            fd = connection.pointee.descriptor
            if wait.interrupted {
                // The call begins anew, with what the handler may have set.
                if !restarts { return -Int(EINTR) }
                wait.deadline = 0
                nonBlocking = isNonBlocking(flags, Slot.Flags.receivesAtOnce)
                least = self.least(fd, flags, total, nonBlocking)
            }
        }
    }

    /// `atOnce`: the flag of the direction.
    func isNonBlocking(_ flags: Int32, _ atOnce: UInt64) -> Bool {
        flags & Int32(MSG_DONTWAIT) != 0 || has(Slot.Flags.nonBlocking | atOnce)
    }

    /// How many bytes a receive waits for.
    private func least(_ fd: Int32, _ flags: Int32, _ total: Int, _ nonBlocking: Bool) -> Int {
        nonBlocking ? 1 : flags & Int32(MSG_WAITALL) != 0 ? total : lowWaterMark(fd)
    }

    /// SO_RCVLOWAT. A socket with such a mark is handed over, unless that was refused.
    private func lowWaterMark(_ fd: Int32) -> Int {
        guard has(Slot.Flags.owesHandOver) else { return 1 }
        var bytes: Int32 = 1
        var length = UInt32(MemoryLayout<Int32>.size)
        return ss_sys_getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, &length) == 0 ? Int(max(bytes, 1)) : 1
    }

    /// The session has ended under this call, and the socket is plain: the kernel does the rest, as in any plain call. nil: the
    /// next session is in service.
    @inline(never)
    private func receivePlainly(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32) -> Int? {
        guard let ticket = slot.enterPlain(slot.plainReaders) else { return nil }
        defer { slot.plainReaders.leave(ticket) }
        let result = cursor.isAtStart ? ss_sys_recvmsg(fd, message, flags) : Session.receiveRest(fd, cursor, flags, Int.max)
        if result > 0, flags & Int32(MSG_PEEK) == 0 {
            slot.tcpBytesReceived.count(UInt64(result))
            cursor.skip(result)
        }
        return result
    }

    /// A receive into no room waits for data, too, and leaves them. The kernel looks at nothing after its first sleep: a
    /// signal and a time-out end it with 0.
    private func receiveNothing(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ flags: Int32) -> Int {
        // At an urgent mark there is the urgent byte, which a look at one byte leaves out.
        if isReadUpToTCP, isAtMark(fd) { return ss_sys_recvmsg(fd, message, flags) }
        var byte: UInt8 = 0
        var result = receiveOneBuffer(fd, &byte, 1, (flags | Int32(MSG_PEEK)) & ~Int32(MSG_WAITALL), restarts: false)
        if !isNonBlocking(flags, Slot.Flags.receivesAtOnce), result == -Int(EINTR) || result == -Int(EAGAIN) { result = 0 }
        if result >= 0 { Session.clearAncillary(message, flags) }
        return min(result, 0)
    }

    /// Like recv(2) with one buffer. The common case, bytes waiting in the ring, without the loop.
    @inline(__always)
    package func receive(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32) -> Int {
        if flags & ~Int32(MSG_DONTWAIT | MSG_NOSIGNAL) == 0, count > 0, let buffer {
            let generation = slot.generation.loadRelaxed()
            var taken = tryReceiveQuickly(buffer, count, generation)
            if taken > 0 { return taken }
            if !isNonBlocking(flags, Slot.Flags.receivesAtOnce) {
                // A handler that comes while it looks would end a wait.
                ss_enter_section()
                defer { ss_leave_section() }
                if looksForAnswer() {
                    taken = tryReceiveQuickly(buffer, count, generation)
                    if taken > 0 { return taken }
                    // Closed by another thread meanwhile: the slot may stand for another connection.
                    if slot.generation.loadRelaxed() != generation { return -Int(EBADF) }
                }
                return receiveOneBuffer(fd, buffer, count, flags)
            }
        }
        return receiveOneBuffer(fd, buffer, count, flags)
    }

    @inline(__always)
    private func tryReceiveQuickly(_ buffer: UnsafeMutableRawPointer, _ count: Int, _ generation: UInt64) -> Int {
        guard slot.receiveLock.tryLock() else { return 0 }
        let taken = isUp && slot.generation.loadRelaxed() == generation ? receiveQuickly(buffer, count) : 0
        slot.receiveLock.unlock()
        return taken
    }

    @inline(never)
    private func receiveOneBuffer(_ fd: Int32, _ buffer: UnsafeMutableRawPointer?, _ count: Int, _ flags: Int32, restarts: Bool = true) -> Int {
        var vector = iovec(iov_base: buffer, iov_len: Int(count))
        return withUnsafeMutablePointer(to: &vector) { vector in
            var message = msghdr()
            message.msg_iov = vector
            message.msg_iovlen = 1
            return receive(fd, &message, flags, restarts: restarts)
        }
    }

    /// What lies in the ring, or 0 when there is nothing or anything at all is unusual.
    @inline(__always)
    private func receiveQuickly(_ buffer: UnsafeMutableRawPointer, _ count: Int) -> Int {
        let followed = slot.receiveCuts.loadRelaxed()
        guard followed & 1 == 1, connection.pointee.writer == nil, !wantsTCP,
            slot.flags.loadRelaxed() & (Slot.Flags.broken | Slot.Flags.replacing) == 0
        else { return 0 }
        giveSenderTime()
        let position = slot.receivePosition.loadRelaxed()
        let producer = local.producer.load()  // SYNC POINT: pairs with the release in publishProducer
        let ring = ringToReceive
        let available = producer &- position
        guard available != 0, available <= ring.change.size, local.cutCount.loadRelaxed() == followed,
            local.ringChange.loadRelaxed() == ring.change.word
        else { return 0 }
        let taken = min(count, Int(available))
        guard ring.geometry.read(local.ring, at: position, into: buffer, count: taken) else { return 0 }
        publishCredit(position &+ UInt64(taken), producer)
        notePace(taken)
        return taken
    }

    /// Gives the space up to `position` back to the peer.
    @inline(__always)
    private func publishCredit(_ position: UInt64, _ producer: UInt64) {
        let before = slot.receivePosition.loadRelaxed()
        slot.receivePosition.storeRelaxed(position)
        remote.receiverCPU.storeRelaxed(UInt64(UInt32(bitPattern: ss_cpu())))
        remote.credit.store(position)  // SYNC POINT: pairs with the acquire in roomToSend
        if let writer = connection.pointee.writer {
            // A ring for each half of the ring: whoever waits for room waits for half of it.
            let half = ringToReceive.change.size / 2
            return writer.publish(line: 1, rings: before ^ position >= half)
        }
        fullFence()  // pairs with the fence in armSend
        if producer &- position <= ringToReceive.change.size / 2 { ringSender() }
    }

    /// The answer of a call that failed after `done` bytes. The kernel would keep the error for the next call: an error that
    /// we took from it must not be lost.
    func partial(_ done: Int, _ result: Int) -> Int {
        if done == 0 { return result }
        if result == -Int(ECONNRESET), !has(Slot.Flags.broken) { slot.flags.setBits(Slot.Flags.resetSeen) }
        return done
    }

    /// The kernel has told of a reset, which it does only once. `isReported`: by the call that the program has made. Nobody shall
    /// find out again (`answerDeath`).
    package func noteReset(isReported: Bool) {
        slot.flags.setBits(Slot.Flags.tcpEnded | Slot.Flags.peerGone | (isReported ? 0 : Slot.Flags.resetSeen))
    }

    /// Takes the reset that the kernel told of and no call has reported yet.
    @inline(__always)
    package func takeReset() -> Bool {
        has(Slot.Flags.resetSeen) && slot.flags.clearBits(Slot.Flags.resetSeen) & Slot.Flags.resetSeen != 0
    }

    // MARK: One attempt, under the receive lock

    /// Bytes received, 0 at the end of the stream, or -errno; -EAGAIN: nothing now. `goesOn`: the call has received some before,
    /// and 0 is an urgent mark, too.
    private func tryReceive(
        _ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32, goesOn: Bool
    ) -> Int {
        var rounds = 0
        var done = 0
        while rounds < 32 {
            rounds &+= 1
            if companionIsLost || has(Slot.Flags.broken) { return partial(done, -Int(ECONNRESET)) }
            guard isDecided(fd) else { return partial(done, -Int(EAGAIN)) }
            guard followCuts() else {
                breakOff(.protocolViolation)
                return partial(done, -Int(ECONNRESET))
            }
            invite(fd)
            let result = receivesOnTCP
                ? tryReceiveFromTCP(fd, message, &cursor, flags, goesOn: goesOn || done > 0)
                : tryReceiveFromCompanion(fd, message, &cursor, flags)
            if result == Session.again { continue }
            if result == Session.mark { return done }
            if result <= 0 { return partial(done, result) }
            // Where the carrier ends the stream does not, and neither does what one call gives.
            if flags & Int32(MSG_PEEK) != 0 { return result &+ peekBehindCut(fd, message, &cursor, flags, result) }
            done &+= result
            guard local.cutCount.load() != slot.receiveCuts.loadRelaxed(), cursor.piece() != nil else { return done }
        }
        return partial(done, -Int(EAGAIN))
    }

    /// Bytes that a look ahead finds behind a cut, when it has seen `seen` bytes, all that there are before it.
    private func peekBehindCut(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32, _ seen: Int) -> Int {
        let made = local.cutCount.load()
        guard made != slot.receiveCuts.loadRelaxed(), slot.invitation.loadRelaxed() < Invitation.rewind else { return 0 }
        if receivesOnTCP {
            guard local.cutOnTCP.loadRelaxed() &- slot.tcpPosition.loadRelaxed() == UInt64(seen) else { return 0 }
            cursor.skip(seen)
            return cursor.piece() == nil ? 0 : max(receiveFromRing(&cursor, flags), 0)
        }
        guard local.cutOnCompanion.loadRelaxed() &- slot.receivePosition.loadRelaxed() == UInt64(seen), cursor.piece() != nil
        else { return 0 }
        // No third cut can be outstanding: all of TCP follows, up to an urgent mark.
        var queued: Int32 = 0
        guard ss_sys_ioctl(fd, ss_siocinq, &queued) == 0, queued > 0 || !isAtMark(fd) else { return 0 }
        let more = receiveFromTCP(fd, message, &cursor, flags, bound: queued > 0 ? Int(queued) : Int.max)
        // The kernel tells of it once, and this call has bytes to tell of.
        if more == -Int(ECONNRESET) { noteReset(isReported: false) }
        return max(more, 0)
    }

    /// The state changed meanwhile: look at everything again.
    private static var again: Int { Int.min }
    /// A call that has received some does not go on beyond an urgent mark.
    private static var mark: Int { Int.min &+ 1 }

    private func tryReceiveFromTCP(
        _ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32, goesOn: Bool
    ) -> Int {
        let invitation = slot.invitation.loadRelaxed()
        if invitation == Invitation.rewind {
            return goesOn ? receiveUpToMark(fd, message, &cursor, flags) : receiveFromTCP(fd, message, &cursor, flags, bound: Int.max)
        }
        let followed = slot.receiveCuts.loadRelaxed()
        let made = local.cutCount.load()
        if made != followed {
            // The peer goes on elsewhere after `cutOnTCP`: read up to there and not one byte more.
            let left = local.cutOnTCP.loadRelaxed() &- slot.tcpPosition.loadRelaxed()
            guard left > 0, left <= UInt64(Int64.max) else { return Session.again }
            return receiveFromTCP(fd, message, &cursor, flags, bound: Int(clamping: left))
        }
        if invitation == Invitation.none, !goesOn {
            return receiveFromTCP(fd, message, &cursor, flags, bound: Int.max)
        }
        // Invited: a cut may come at any moment, even two of them with TCP bytes behind the second. What was queued before
        // a look that saw no cut was written before any cut.
        return receiveUpToMark(fd, message, &cursor, flags, mayPass: !goesOn, made)
    }

    /// Receives from TCP what is queued now, at most up to an urgent mark; at one, goes past it if it may. (A receive of the
    /// kernel's stops at a mark behind bytes, and begins behind one at which it finds itself: so what is one receive to the
    /// program must not become two of the kernel's with the mark between them, which would take the urgent byte along.)
    private func receiveUpToMark(
        _ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32, mayPass: Bool = false,
        _ cuts: UInt64? = nil
    ) -> Int {
        var queued: Int32 = 0
        let result = ss_sys_ioctl(fd, ss_siocinq, &queued)
        if result < 0 { return result }
        if let cuts, local.cutCount.load() != cuts { return Session.again }
        if queued > 0 { return receiveFromTCP(fd, message, &cursor, flags, bound: Int(queued)) }
        // At an urgent mark SIOCINQ is 0, and only a receive goes past it. Who has sent urgent data cuts no more.
        if isAtMark(fd) { return mayPass ? receiveFromTCP(fd, message, &cursor, flags, bound: Int.max) : Session.mark }
        let peeked = peekTCP(fd)
        if peeked > 0 { return Session.again }
        if let cuts, local.cutCount.load() != cuts { return Session.again }
        return peeked == -Int(EAGAIN) ? peeked : endOfStream(peeked)
    }

    private func isAtMark(_ fd: Int32) -> Bool {
        var atMark: Int32 = 0
        return ss_sys_ioctl(fd, Session.atMarkRequest, &atMark) == 0 && atMark != 0
    }

    /// The stream is read to its end; `peeked` is what the kernel says of it. A reset is reported once, as the kernel does.
    private func endOfStream(_ peeked: Int) -> Int {
        // After our own SHUT_RD the kernel says 0, too, and the peer's end is still to come.
        if peeked < 0 || !has(Slot.Flags.readShutDown) {
            slot.flags.setBits(peeked < 0 ? Slot.Flags.tcpEnded | Slot.Flags.peerGone : Slot.Flags.tcpEnded)
            if peeked == 0 { noteTCPEnd(connection.pointee.descriptor) }
        }
        return takeReset() ? -Int(ECONNRESET) : peeked
    }

    /// The error that waits for the next call, as recvmmsg takes it before it looks for data; 0: none.
    package func takeError(_ fd: Int32) -> Int {
        var error: Int32 = 0
        var length = UInt32(MemoryLayout<Int32>.size)
        if ss_sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0, error != 0 {
            if error == ECONNRESET { noteReset(isReported: true) }
            return -Int(error)
        }
        // One that is told of by the session alone (`answerDeath`).
        if isDual { lookForEnd(fd) }
        return takeReset() ? -Int(ECONNRESET) : 0
    }

    private func tryReceiveFromCompanion(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32) -> Int {
        let taken = receiveFromRing(&cursor, flags)
        if taken != 0 {
            if taken > 0 { Session.clearAncillary(message, flags) }
            return taken
        }
        let followed = slot.receiveCuts.loadRelaxed()
        let position = slot.receivePosition.loadRelaxed()
        if local.cutCount.load() != followed {
            // The cut lies ahead: its bytes are published before it, so they are there, or (a provider that writes
            // remotely) about to be.
            if local.producer.load() != position || local.cutOnCompanion.loadRelaxed() == position { return Session.again }
            // Where TCP has ended nothing more comes: the peer's words contradict each other.
            let peeked = peekTCP(fd)
            guard peeked <= 0, peeked != -Int(EAGAIN) else { return -Int(EAGAIN) }
            if local.producer.load() != position { return Session.again }
            breakOff(.protocolViolation)
            return -Int(ECONNRESET)
        }
        if has(Slot.Flags.readShutDown) {
            // The end, unless the kernel has an error to tell first.
            let peeked = peekTCP(fd)
            if peeked < 0, peeked != -Int(EAGAIN) { return endOfStream(peeked) }
            return takeReset() ? -Int(ECONNRESET) : 0
        }
        // The ring is empty. The end of the stream is TCP's: FIN or reset; then the ring is looked at again, then the cuts.
        // Asking the kernel costs more than a message: only when there is a hint, or now and then (a killed process gives
        // no hint; a sleep or a wait call sees it at once).
        let now = ss_cycles()
        guard has(Slot.Flags.tcpEnded) || local.endFlags.load() != 0 || now &- lastEndCheck.loadRelaxed() >= Session.endCheckCycles
        else { return -Int(EAGAIN) }
        lastEndCheck.storeRelaxed(now)
        let peeked = peekTCP(fd)
        if peeked == -Int(EAGAIN) { return peeked }
        if local.producer.load() != position || local.cutCount.load() != followed { return Session.again }
        if peeked <= 0 { return endOfStream(peeked) }
        // Bytes on the silent carrier, and no cut: the peer's program wrote them by a way that its switch does not see (a
        // raw system call). They follow everything that it had sent before.
        return receiveFromTCP(fd, message, &cursor, flags, bound: Int.max)
    }

    /// 10 to 25 µs.
    private static var endCheckCycles: UInt64 { 50_000 }

    var lastEndCheck: Word { word(Connection.Offsets.lastEndCheck) }

    /// SIOCATMARK.
    package static var atMarkRequest: UInt { 0x8905 }

    /// > 0: TCP has bytes. 0: FIN. -EAGAIN: nothing. Else the end, with an error that the kernel tells only once; a reset is
    /// remembered, since there may be bytes to read before it.
    private func peekTCP(_ fd: Int32) -> Int {
        var byte: UInt8 = 0
        let result = ss_sys_recvfrom(fd, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT))
        if result == -Int(ECONNRESET) { noteReset(isReported: false) }
        return result
    }

    private func receiveFromTCP(_ fd: Int32, _ message: UnsafeMutablePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32, bound: Int) -> Int {
        let flags = (flags | Int32(MSG_DONTWAIT)) & ~Int32(MSG_WAITALL)
        var result: Int
        if cursor.isAtStart && bound == Int.max {
            result = ss_sys_recvmsg(fd, message, flags)
        } else {
            result = Session.receiveRest(fd, cursor, flags, bound)
            if result >= 0 { Session.clearAncillary(message, flags) }
        }
        if result == -Int(ECONNRESET) { noteReset(isReported: true) }
        if result == 0 { return endOfStream(0) }
        if result > 0, flags & Int32(MSG_PEEK) == 0 {
            noteDeparture()
            slot.tcpBytesReceived.count(UInt64(result))
            slot.tcpPosition.storeRelaxed(slot.tcpPosition.loadRelaxed() &+ UInt64(result))
            cursor.skip(result)
        }
        return result
    }

    /// Receives from the kernel into what is left of a message, at most `bound` bytes, which lie there (or Int.max: as many pieces
    /// as one call can give).
    private static func receiveRest(_ fd: Int32, _ cursor: MessageCursor, _ flags: Int32, _ bound: Int) -> Int {
        var cursor = cursor
        var done = 0
        while true {
            let wanted = bound == Int.max ? bound : bound &- done
            let (result, filled) = receivePieces(fd, &cursor, flags, wanted)
            if result <= 0 { return done > 0 ? done : result }
            done &+= result
            // A receive that gives less than it could says that there is no more.
            guard result == filled, result < wanted, bound != Int.max, flags & Int32(MSG_PEEK) == 0, cursor.piece() != nil else { return done }
        }
    }

    private static func receivePieces(_ fd: Int32, _ cursor: inout MessageCursor, _ flags: Int32, _ bound: Int) -> (Int, room: Int) {
        var vectors = InlineArray<64, iovec>(repeating: iovec())
        var count = 0
        var room = bound
        while count < 64, room > 0, let piece = cursor.piece() {
            let length = min(piece.count, room)
            vectors[count] = iovec(iov_base: piece.start, iov_len: length)
            count &+= 1
            room &-= length
            cursor.advance(piece.count)
        }
        return withUnsafeMutablePointer(to: &vectors) {
            var rest = msghdr()
            rest.msg_iov = UnsafeMutableRawPointer($0).assumingMemoryBound(to: iovec.self)
            rest.msg_iovlen = count
            return (ss_sys_recvmsg(fd, &rest, flags), bound &- room)
        }
    }

    /// Bytes copied out of the ring, 0 when it is empty, -EFAULT when the program's buffer is bad (nothing is consumed), or
    /// -ECONNRESET when the peer's words are nonsense.
    private func receiveFromRing(_ cursor: inout MessageCursor, _ flags: Int32) -> Int {
        let start = slot.receivePosition.loadRelaxed()
        let producer = local.producer.load()  // SYNC POINT: pairs with the release in publishProducer
        if producer == start { return 0 }
        var ring = ringToReceive
        let latest = RingChange(word: local.ringChange.loadRelaxed())
        guard var end = ring.follow(latest, at: start, producer) else {
            breakOff(.protocolViolation)
            return -Int(ECONNRESET)
        }
        var position = start
        // What a bad pointer lets stand: the position, and the ring as it is there.
        var chunk = (position: start, ring: ring)
        let discards = flags & Int32(MSG_TRUNC) != 0
        while position != producer, let piece = cursor.piece() {
            if position == end {
                guard let next = ring.follow(latest, at: position, producer) else { break }
                end = next
            }
            let count = min(min(piece.count, Int(end &- position)), MessageCursor.chunkBytes)
            if !discards, !ring.geometry.read(local.ring, at: position, into: piece.start, count: count) {
                cursor.isBad = true
                (position, ring) = chunk
                if position == start { return -Int(EFAULT) }
                break
            }
            position &+= UInt64(count)
            cursor.advance(count)
            if position &- chunk.position >= UInt64(MessageCursor.chunkBytes) { chunk = (position, ring) }
        }
        if flags & Int32(MSG_PEEK) == 0 {
            slot.receiveRingOrigin.storeRelaxed(ring.origin)
            slot.receiveRing.storeRelaxed(ring.change.word)
            publishCredit(position, producer)
        }
        return Int(position &- start)
    }

    /// The ring that this side reads.
    @inline(__always)
    var ringToReceive: RingView {
        RingView(origin: slot.receiveRingOrigin.loadRelaxed(), change: RingChange(word: slot.receiveRing.loadRelaxed()))
    }

    /// What the kernel leaves in a message header after receiving on a TCP socket.
    private static func clearAncillary(_ message: UnsafeMutablePointer<msghdr>, _ flags: Int32) {
        if message.pointee.msg_name != nil { message.pointee.msg_namelen = 0 }
        message.pointee.msg_controllen = 0
        message.pointee.msg_flags = flags & Int32(MSG_CMSG_CLOEXEC)
    }

    /// Whether the stream ends behind what is there now.
    private func endsHere(_ fd: Int32) -> Bool {
        guard enterWatch() else { return true }
        defer { leaveWatch(0) }
        noteTCPEnd(fd)
        return has(Slot.Flags.tcpEnded)
    }

    // MARK: Data

    /// Whether a receiver that found nothing should try again. No system call.
    package var looksReadable: Bool {
        guard isUp else { return true }
        let followed = slot.receiveCuts.load()
        let made = local.cutCount.load()
        if followed & 1 == 0 {
            return made != followed && local.cutOnTCP.loadRelaxed() == slot.tcpPosition.loadRelaxed()
                && slot.invitation.loadRelaxed() < Invitation.rewind
        }
        let position = slot.receivePosition.load()
        return local.producer.load() != position || (made != followed && local.cutOnCompanion.loadRelaxed() == position)
    }

    /// Bytes that can be read now from both carriers: FIONREAD.
    package func queuedBytes(_ fd: Int32) -> Int {
        if slot.receiveLock.lock() == .ownedByThisThread { return 0 }
        defer { slot.receiveLock.unlock() }
        var queued: Int32 = 0
        guard isUp else { return ss_sys_ioctl(fd, ss_fionread, &queued) < 0 ? 0 : Int(queued) }
        servePeer()
        _ = followCuts()
        let outstanding = local.cutCount.load() &- slot.receiveCuts.loadRelaxed()
        var inRing = local.producer.load() &- slot.receivePosition.loadRelaxed()
        if inRing > Window.maximumRingBytes { inRing = 0 }
        if !receivesOnTCP, outstanding == 0 { return Int(inRing) }
        let result = ss_sys_ioctl(fd, ss_fionread, &queued)
        if result < 0 || outstanding == 0 { return result < 0 ? result : Int(queued) }
        // What lies behind a cut can be read, too, once everything before it has arrived: TCP's bytes may still be on their
        // way, since the peer's kernel keeps what does not fit into ours, and so may a remote write.
        let cut = local.cutOnCompanion.loadRelaxed()
        let isRingWhole = local.producer.load() == cut
        if !receivesOnTCP { return isRingWhole ? Int(inRing) + Int(queued) : Int(inRing) }
        let untilCut = local.cutOnTCP.loadRelaxed() &- slot.tcpPosition.loadRelaxed()
        guard UInt64(max(queued, 0)) >= untilCut else { return Int(queued) }
        return Int(inRing) + (outstanding == 2 && isRingWhole ? Int(queued) : Int(untilCut))
    }
}
