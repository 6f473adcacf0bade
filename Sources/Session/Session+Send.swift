import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

extension Session {
    /// Sends like sendmsg(2) on a stream socket: blocks until everything is taken, unless the socket or `flags` say
    /// otherwise; SIGPIPE and the error numbers are the kernel's.
    package func send(_ fd: Int32, _ message: UnsafePointer<msghdr>, _ flags: Int32) -> Int {
        var cursor = MessageCursor(message)
        let total = cursor.total(message)
        if total < 0 { return total }
        // To connect, or to say that it is connected, is the kernel's.
        if flags & Int32(MSG_FASTOPEN) != 0 { return ss_sys_sendmsg(fd, message, flags) }
        if message.pointee.msg_controllen > 0, total > 0 {
            let error = refusalOfControl(fd, message, flags)
            if error < 0 { return error }
        }
        if total == 0 { return takeReset() ? -Int(ECONNRESET) : noting(ss_sys_sendmsg(fd, message, flags)) }
        var nonBlocking = isNonBlocking(flags, Slot.Flags.sendsAtOnce)
        var wait = WaitState(slot)
        defer { wait.leave() }
        var fd = fd
        var done = 0
        while true {
            if slot.sendLock.lock() == .ownedByThisThread { return done > 0 ? done : -Int(EAGAIN) }
            var result = -Int(EBADF)
            let flagsNow = done > 0 ? flags | Int32(MSG_NOSIGNAL) : flags
            var isPlain = false
            if !stands(wait.generation) {
                // Closed by another thread.
            } else if isInService {
                result = trySend(fd, message, &cursor, flagsNow)
            } else if !isDual {
                isPlain = true
            } else if done == 0 {
                result = ss_sys_sendmsg(fd, message, flags | Int32(MSG_DONTWAIT))
            }
            slot.sendLock.unlock()
            if isPlain {
                guard let sent = wait.outside({ sendPlainly(fd, message, &cursor, flagsNow) }) else { continue }
                if sent <= 0 { return partial(done, sent) }
                result = sent
            }
            if result > 0 {
                done &+= result
                if done >= total || cursor.isBad || hasKernelError(fd) { return done }
                continue
            }
            if result != -Int(EAGAIN) || nonBlocking { return partial(done, result) }
            wait.hasMoved = done > 0
            result = waitToSend(fd, &wait)
            if result < 0 || wait.interrupted && done > 0 { return done > 0 ? done : result }
            fd = connection.pointee.descriptor
            if wait.interrupted {
                // The call begins anew, with what the handler may have set.
                wait.deadline = 0
                nonBlocking = isNonBlocking(flags, Slot.Flags.sendsAtOnce)
            }
        }
    }

    /// The session has ended under this call, and the socket is plain: the kernel does the rest, as in any plain call. nil: the
    /// next session is in service.
    @inline(never)
    private func sendPlainly(_ fd: Int32, _ message: UnsafePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32) -> Int? {
        guard let ticket = slot.enterPlain(slot.plainWriters) else { return nil }
        defer { slot.plainWriters.leave(ticket) }
        var result = 0
        if cursor.isAtStart {
            result = ss_sys_sendmsg(fd, message, flags)
        } else if let piece = cursor.piece() {
            result = ss_sys_sendto(fd, piece.start, piece.count, flags)
        }
        if result > 0 {
            slot.tcpBytesSent.count(UInt64(result))
            cursor.skip(result)
        }
        return result
    }

    /// What the kernel says of the message's control part, which means nothing to a stream: it is asked with no data.
    private func refusalOfControl(_ fd: Int32, _ message: UnsafePointer<msghdr>, _ flags: Int32) -> Int {
        if has(Slot.Flags.writeShutDown) { return 0 }
        var empty = message.pointee
        empty.msg_iov = nil
        empty.msg_iovlen = 0
        return min(noting(ss_sys_sendmsg(fd, &empty, flags | Int32(MSG_DONTWAIT | MSG_NOSIGNAL))), 0)
    }

    private func noting(_ result: Int) -> Int {
        if result == -Int(ECONNRESET), isDual { noteReset(isReported: true) }
        return result
    }

    /// Like send(2) with one buffer. The common case, a small message into a ring with room (WSD-T2), without the loop.
    @inline(__always)
    package func send(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
        if flags & ~Int32(MSG_DONTWAIT | MSG_NOSIGNAL) == 0, count > 0, let buffer, slot.sendLock.tryLock() {
            let taken = isUp ? sendQuickly(buffer, count) : 0
            slot.sendLock.unlock()
            if taken > 0 { return taken }
        }
        return sendOneBuffer(fd, buffer, count, flags)
    }

    @inline(never)
    private func sendOneBuffer(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int, _ flags: Int32) -> Int {
        var vector = iovec(iov_base: UnsafeMutableRawPointer(mutating: buffer), iov_len: Int(count))
        return withUnsafeMutablePointer(to: &vector) { vector in
            var message = msghdr()
            message.msg_iov = vector
            message.msg_iovlen = 1
            return send(fd, &message, flags)
        }
    }

    /// All of it into the ring, or nothing (0) when anything at all is unusual.
    @inline(__always)
    private func sendQuickly(_ buffer: UnsafeRawPointer, _ count: Int) -> Int {
        guard slot.sendCuts.loadRelaxed() & 1 == 1, connection.pointee.writer == nil,
            local.invitation.load() == Invitation.toCompanion, !sendNeedsTCP, !wantsTCP
        else { return 0 }
        let ring = ringToSend
        let size = ring.size
        let position = slot.sendPosition.loadRelaxed()
        var used = position &- slot.sendCredit.loadRelaxed()
        if used > size || size &- used < UInt64(count) {
            let credit = local.credit.load()  // SYNC POINT: pairs with the release in publishCredit
            used = position &- credit
            guard used <= size, isSettled(credit) else { return 0 }
            slot.sendCredit.storeRelaxed(credit)
            if size &- used < UInt64(count) { return 0 }
        }
        guard ring.write(remote.ring, at: position, from: buffer, count: count) else { return 0 }
        // One clock for two purposes, since it costs as much as everything above: what has been written is not there until it is
        // published, and the long way writes it again.
        let now = ss_cycles()
        guard now &- connection.pointee.lastPeerCheck < Session.peerCheckCycles else { return 0 }
        publishProducer(position &+ UInt64(count), now)
        return count
    }

    /// Some 5 to 10 ms: how long a sender may go without asking the kernel whether its peer is still there.
    static var peerCheckCycles: UInt64 { 20_000_000 }

    /// Nobody reads the ring any more, or this side has shut down: the kernel's own send gives the right answer.
    @inline(__always)
    var sendNeedsTCP: Bool {
        slot.flags.loadRelaxed() & (Slot.Flags.writeShutDown | Slot.Flags.peerGone | Slot.Flags.broken) != 0
            || local.endFlags.loadRelaxed() & EndFlags.closed != 0
    }

    @inline(__always)
    private func publishProducer(_ position: UInt64, _ now: UInt64) {
        slot.sendPosition.storeRelaxed(position)
        markSending(now)
        remote.producer.store(position)  // SYNC POINT: pairs with the acquire in receiveFromRing
        fullFence()  // pairs with the fence in armReceive
        ringReceiver()
    }

    /// Tells the peer when we sent, whichever carrier takes the bytes: who waits for several connections is told of them in the
    /// order in which their peers sent, as by the kernel. Right before the bytes are published: a look in between would take them
    /// for later ones.
    @inline(__always)
    private func markSending(_ now: UInt64) { remote.senderMark.storeRelaxed(SenderMark.make(now, ss_cpu())) }

    /// A call that has moved bytes leaves the error that it meets to the next one (and to SO_ERROR, and to poll). Whether the
    /// kernel has one, if it is the kernel that would be asked next.
    private func hasKernelError(_ fd: Int32) -> Bool {
        guard enterWatch() else { return isDual || Session.kernelEvents(fd, 0) & EPOLLERR.rawValue != 0 }
        defer { leaveWatch(0) }
        return (sendsOnTCP || sendNeedsTCP) && Session.kernelEvents(fd, 0) & EPOLLERR.rawValue != 0
    }

    // MARK: One attempt, under the send lock

    /// Bytes taken, or -errno; -EAGAIN: no room now.
    private func trySend(_ fd: Int32, _ message: UnsafePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32) -> Int {
        if companionIsLost || has(Slot.Flags.broken) { return -Int(ECONNRESET) }
        if flags & Int32(MSG_OOB) != 0 {
            // Urgent data, and what follows, go over TCP: its mark is a place in the kernel's stream (WSD-T6).
            slot.flags.setBits(Slot.Flags.tcpOnly)
            slot.reason.store(Reason.urgentData.rawValue)
        }
        guard changeCarrierIfAsked(fd) else {
            breakOff(.protocolViolation)
            return -Int(ECONNRESET)
        }
        if has(Slot.Flags.broken) { return -Int(ECONNRESET) }
        if hasBacklog, let refused = sendBacklogFirst(flags) { return refused }
        if flags & Int32(MSG_OOB) != 0, !sendsOnTCP, !sendNeedsTCP { return -Int(EAGAIN) }
        if sendsOnTCP { return sendOnTCP(fd, message, &cursor, flags) }
        lookAfterPeer(fd)
        if sendNeedsTCP { return sendOnTCP(fd, message, &cursor, flags) }

        let start = slot.sendPosition.loadRelaxed()
        var position = start
        var chunk = start
        while let piece = cursor.piece() {
            let room = roomToSend(position, wanted: piece.count)
            if room <= 0 { break }
            let count = min(min(piece.count, room), MessageCursor.chunkBytes)
            guard ringToSend.write(remote.ring, at: position, from: piece.start, count: count) else {
                cursor.isBad = true
                position = chunk
                if position == start { return -Int(EFAULT) }
                break
            }
            position &+= UInt64(count)
            cursor.advance(count)
            if position &- chunk >= UInt64(MessageCursor.chunkBytes) { chunk = position }
        }
        if has(Slot.Flags.broken) { return -Int(ECONNRESET) }
        let isFull = !cursor.isBad && cursor.piece() != nil
        if isFull { slot.sendFullCount.storeRelaxed(slot.sendFullCount.loadRelaxed() &+ 1) }
        if position == start {
            return goToTCPIfStalled(WaitState.never) ? sendOnTCP(fd, message, &cursor, flags) : -Int(EAGAIN)
        }
        if let writer = connection.pointee.writer {
            slot.sendPosition.storeRelaxed(position)
            markSending(ss_cycles())
            writer.send(upTo: position)
            if isRewound { answerRewind() }
        } else {
            publishProducer(position, ss_cycles())
        }
        return Int(position &- start)
    }

    /// What a send must answer that may not go on yet; nil: the backlog is gone.
    @inline(never)
    private func sendBacklogFirst(_ flags: Int32) -> Int? {
        if flushBacklog() { return nil }
        guard has(Slot.Flags.writeShutDown) else { return -Int(EAGAIN) }
        // The kernel does not know of the shutdown yet.
        if flags & Int32(MSG_NOSIGNAL) == 0 { _ = ss_sys_tkill(ss_thread_id(), SIGPIPE) }
        return -Int(EPIPE)
    }

    private func sendOnTCP(_ fd: Int32, _ message: UnsafePointer<msghdr>, _ cursor: inout MessageCursor, _ flags: Int32) -> Int {
        if takeReset() { return -Int(ECONNRESET) }
        if connection.pointee.writer == nil { markSending(ss_cycles()) }
        let flags = flags | Int32(MSG_DONTWAIT)
        var result: Int
        if cursor.isAtStart {
            result = ss_sys_sendmsg(fd, message, flags)
        } else {
            guard let piece = cursor.piece() else { return 0 }
            result = ss_sys_sendto(fd, piece.start, piece.count, flags)
        }
        noteSentOnTCP(result)
        if result > 0 { cursor.skip(result) }
        return result
    }

    private func noteSentOnTCP(_ result: Int) {
        if result > 0 {
            noteDeparture()
            slot.tcpBytesSent.count(UInt64(result))
        }
        if result == -Int(ECONNRESET) { noteReset(isReported: true) }
    }

    /// Asks the kernel, now and then, whether the peer's side of the TCP connection has ended: a killed process says
    /// nothing in the window. Under the send lock.
    private func lookAfterPeer(_ fd: Int32) {
        let now = ss_cycles()
        guard now &- connection.pointee.lastPeerCheck >= Session.peerCheckCycles else { return }
        connection.pointee.lastPeerCheck = now
        noteTCPEnd(fd)
        // Who is killed after its half-close sends nothing more: TCP would notice at the next byte.
        let half = local.endFlags.loadRelaxed() & (EndFlags.halfClosed | EndFlags.closed)
        if half == EndFlags.halfClosed, has(Slot.Flags.tcpEnded), !has(Slot.Flags.peerGone), connection.pointee.writer == nil,
            ss_peer_is_orphan(fd) != 0
        {
            slot.flags.setBits(Slot.Flags.peerGone)
        }
    }

    /// Looks at the TCP socket for an end of the stream and remembers it. A FIN without a half-close means that the peer's
    /// process is gone: nobody will read the ring, and the kernel knows what a write deserves.
    package func noteTCPEnd(_ fd: Int32) {
        if has(Slot.Flags.peerGone) { return }
        var entry = pollfd(fd: fd, events: Int16(POLLRDHUP), revents: 0)
        var now = timespec(tv_sec: 0, tv_nsec: 0)
        guard ss_sys_ppoll(&entry, 1, &now, nil) > 0 else { return }
        let hangup = Int16(POLLHUP) | Int16(POLLERR)
        // After our own SHUT_RD poll says the same as after a FIN.
        if entry.revents & hangup == 0, has(Slot.Flags.readShutDown), !KernelPositions.finHasCome(fd) { return }
        if entry.revents & (Int16(POLLRDHUP) | hangup) != 0 {
            slot.flags.setBits(Slot.Flags.tcpEnded)
            // Until the peer's session has opened, its end flags say nothing: this may be an early half-close.
            guard local.ringChange.load() != 0 else { return }
            let half = local.endFlags.load()
            if half & EndFlags.halfClosed == 0 || half & EndFlags.closed != 0 || entry.revents & Int16(POLLERR) != 0 {
                let isNews = slot.flags.setBits(Slot.Flags.peerGone) & Slot.Flags.peerGone == 0
                if isNews, half & ~EndFlags.ending == 0, entry.revents & Int16(POLLERR) == 0 { answerDeath(fd) }
            }
        }
    }

    /// The same without a lock. Who holds the send lock looks by itself.
    package func lookForEnd(_ fd: Int32) {
        guard slot.sendLock.tryLock() else { return }
        if isUp { noteTCPEnd(fd) }
        slot.sendLock.unlock()
    }

    /// A peer that closes says so in the window, and resets the connection if it has not read everything. One that is killed, or
    /// becomes another program, cannot: its kernel, which knows nothing of the ring, sends a FIN. Then the program gets here what
    /// TCP would have told it. The kernel's socket gets it, too: the peer's socket, which nobody has any more, answers a byte
    /// with a reset.
    private func answerDeath(_ fd: Int32) {
        guard connection.pointee.writer == nil, slot.sendCuts.load() & 1 == 1, !hasBacklog,
            local.invitation.load() == Invitation.toCompanion, slot.sendPosition.load() != local.credit.load(),
            KernelPositions.finHasCome(fd)  // poll says POLLHUP after our own SHUT_RDWR, too
        else { return }
        // (After both FINs the kernel has no connection any more.)
        if !has(Slot.Flags.writeShutDown) {
            // A FIN may have been made by a system call past libc, of a process that is still there. And the dying one sends it
            // before it lets go of the socket.
            var patience = 0
            while ss_peer_is_orphan(fd) == 0 {
                patience &+= 1
                if patience == 20 { return }
                _ = ss_sys_sched_yield()
            }
            var byte: UInt8 = 0
            _ = ss_sys_sendto(fd, &byte, 1, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
            awaitTCP(fd, 0, Session.resetNanoseconds)
            // After a FIN the kernel calls the reset EPIPE. It is told by the session instead.
            var error: Int32 = 0
            var length = UInt32(MemoryLayout<Int32>.size)
            _ = ss_sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length)
        }
        slot.flags.setBits(Slot.Flags.resetSeen)
    }

    private static var resetNanoseconds: UInt64 { 5_000_000 }

    /// A wait may ask the kernel for POLLRDHUP: it is not up, for the peer's FIN or our own SHUT_RD, for good.
    package var mayWatchForEnd: Bool { !has(Slot.Flags.tcpEnded | Slot.Flags.readShutDown) }

    // MARK: sendfile

    /// Like sendfile(2): file contents are read straight into the ring (WSD-S5). `byKernel`: once the stream is on TCP, the kernel's
    /// own call copies; the caller has asked for that.
    package func sendFile(
        _ fd: Int32, _ input: Int32, _ offset: UnsafeMutablePointer<Int64>?, _ count: Int, byKernel: Bool = false
    ) -> Int {
        let count = min(count, MessageCursor.maximumBytes)
        var position = Int64(0)
        if let offset {
            guard ss_copy_program_memory(&position, offset, 8) == 0 else { return -Int(EFAULT) }
        } else {
            let now = ss_syscall6(Int(SYS_lseek), Int(input), 0, Int(SEEK_CUR), 0, 0, 0)
            if now < 0 { return now == -Int(ESPIPE) ? -Int(EINVAL) : now }
            position = Int64(now)
        }
        var nonBlocking = isNonBlocking(0, Slot.Flags.sendsAtOnce)
        var wait = WaitState(slot)
        defer { wait.leave() }
        var fd = fd
        var done = 0
        var result = 0
        while done < count {
            if slot.sendLock.lock() == .ownedByThisThread { result = -Int(EAGAIN) } else {
                let isOpen = stands(wait.generation)
                let takesPart = isOpen && isInService
                // Asked afterwards: a hand-over makes the socket plain without the lock.
                let isPlain = isOpen && !takesPart && !isDual
                // It goes on for what is still to be received; nobody sends but over TCP any more.
                let isKernels = takesPart && byKernel && sendsPastRing
                result = takesPart && !isKernels ? trySendFile(fd, input, position, count &- done) : -Int(EBADF)
                slot.sendLock.unlock()
                if isKernels {
                    var at = position
                    result = wait.outside { ss_sys_sendfile(fd, input, &at, count &- done) }
                    noteSentOnTCP(result)
                }
                if isPlain {
                    // The session has ended under this call.
                    guard let ticket = slot.enterPlain(slot.plainWriters) else { continue }
                    var at = position
                    result = wait.outside { ss_sys_sendfile(fd, input, &at, count &- done) }
                    slot.plainWriters.leave(ticket)
                    if result > 0 { slot.tcpBytesSent.count(UInt64(result)) }
                }
            }
            if result > 0 {
                done &+= result
                position &+= Int64(result)
                if hasKernelError(fd) { break }
                continue
            }
            if result != -Int(EAGAIN) || nonBlocking { break }
            wait.hasMoved = done > 0
            result = waitToSend(fd, &wait)
            if result < 0 || wait.interrupted && done > 0 { break }
            fd = connection.pointee.descriptor
            if wait.interrupted {
                wait.deadline = 0
                nonBlocking = isNonBlocking(0, Slot.Flags.sendsAtOnce)
            }
        }
        if done > 0 {
            _ = partial(done, result)
            if let offset { return ss_copy_program_memory(offset, &position, 8) == 0 ? done : -Int(EFAULT) }
            _ = ss_syscall6(Int(SYS_lseek), Int(input), Int(position), Int(SEEK_SET), 0, 0, 0)
            return done
        }
        return result
    }

    /// Bytes moved, 0 at the file's end, or -errno. Under the send lock.
    private func trySendFile(_ fd: Int32, _ input: Int32, _ offset: Int64, _ count: Int) -> Int {
        if companionIsLost || has(Slot.Flags.broken) { return -Int(ECONNRESET) }
        guard changeCarrierIfAsked(fd) else {
            breakOff(.protocolViolation)
            return -Int(ECONNRESET)
        }
        if has(Slot.Flags.broken) { return -Int(ECONNRESET) }
        if hasBacklog, let refused = sendBacklogFirst(0) { return refused }
        if !sendsOnTCP { lookAfterPeer(fd) }
        if sendsOnTCP || sendNeedsTCP {
            return copyFileToTCP(fd, input, offset, count)
        }
        let position = slot.sendPosition.loadRelaxed()
        let room = roomToSend(position, wanted: count)
        if room <= 0 {
            slot.sendFullCount.storeRelaxed(slot.sendFullCount.loadRelaxed() &+ 1)
            if has(Slot.Flags.broken) { return -Int(ECONNRESET) }
            // The end of the file, and what is wrong with it, need no room.
            var byte: UInt8 = 0
            let found = ss_sys_pread(input, &byte, 1, offset)
            if found <= 0 { return found }
            return goToTCPIfStalled(WaitState.never) ? copyFileToTCP(fd, input, offset, count) : -Int(EAGAIN)
        }
        let piece = ringToSend.piece(position, upTo: position &+ UInt64(min(count, room)))
        let read = ss_sys_pread(input, remote.ring + piece.start, piece.count, offset)
        if read <= 0 { return read }
        if let writer = connection.pointee.writer {
            slot.sendPosition.storeRelaxed(position &+ UInt64(read))
            writer.send(upTo: position &+ UInt64(read))
            if isRewound { answerRewind() }
        } else {
            publishProducer(position &+ UInt64(read), ss_cycles())
        }
        return read
    }

    @inline(never)
    private func copyFileToTCP(_ fd: Int32, _ input: Int32, _ offset: Int64, _ count: Int) -> Int {
        var buffer = InlineArray<8192, UInt8>(repeating: 0)
        let bytes = UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &buffer) { $0 })
        let read = ss_sys_pread(input, bytes, min(count, 8192), offset)
        if read <= 0 { return read }
        if takeReset() { return -Int(ECONNRESET) }
        // What the kernel would send as one, it must still hold together: the peer may answer the first part with a reset.
        var byte: UInt8 = 0
        let goesOn = read == 8192 && count > 8192 && ss_sys_pread(input, &byte, 1, offset &+ 8192) == 1
        let sent = ss_sys_sendto(fd, bytes, read, Int32(MSG_DONTWAIT) | (goesOn ? Int32(MSG_MORE) : 0))
        noteSentOnTCP(sent)
        return sent
    }

    // MARK: Room

    /// Whether a sender that found the ring full should try again: half of it is free (and may be used), it can still grow, or the
    /// kernel has the answer anyway. No system call.
    package var looksWritable: Bool {
        guard isUp, !sendsOnTCP else { return false }
        if sendNeedsTCP || wantsTCP || local.invitation.load() != Invitation.toCompanion { return true }
        let position = slot.sendPosition.loadRelaxed()
        let credit = local.credit.load()
        guard canGrow(position, credit) || position &- credit <= ringToSend.size / 2 && room(position, credit) != 0 else { return false }
        guard let writer = connection.pointee.writer else { return true }
        return writer.capacity != 0 || writer.hasFailed
    }
}
