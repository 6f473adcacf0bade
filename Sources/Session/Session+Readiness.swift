import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// What poll, select and epoll need to know of a dual socket.
extension Session {
    /// EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLPRI as the kernel would report them for the one stream.
    ///
    /// The kernel is asked (one poll) when a direction of interest is on TCP, for urgent data, or when the TCP socket has
    /// ended; otherwise the windows alone answer.
    package func readiness(_ fd: Int32, _ interest: UInt32) -> UInt32 {
        guard enterWatch() else { return Session.kernelEvents(fd, interest) }
        defer { leaveWatch(0) }
        servePeer()
        // Acknowledging a cut may be all that stands between the program and the data behind it.
        if local.cutCount.load() != slot.receiveCuts.load(), slot.receiveLock.tryLock() {
            if isUp, !followCuts() { breakOff(.protocolViolation) }
            slot.receiveLock.unlock()
        }
        let readable = EPOLLIN.rawValue | EPOLLRDNORM.rawValue
        let writable = EPOLLOUT.rawValue | EPOLLWRNORM.rawValue
        var events: UInt32 = 0
        if !receivesOnTCP, looksReadable { events |= readable }
        if !sendsOnTCP, looksWritable { events |= writable }

        let ended = has(Slot.Flags.tcpEnded | Slot.Flags.broken | Slot.Flags.readShutDown)
        let asksForReading = receivesOnTCP && interest & readable != 0
        let asksForWriting = sendsOnTCP && interest & writable != 0
        // Urgent data are the kernel's alone.
        if ended || asksForReading || asksForWriting || interest & EPOLLPRI.rawValue != 0 {
            let kernel = Session.kernelEvents(fd, readable | writable | EPOLLRDHUP.rawValue | EPOLLPRI.rawValue)
            events |= kernel & (EPOLLRDHUP.rawValue | EPOLLHUP.rawValue | EPOLLERR.rawValue | EPOLLPRI.rawValue)
            let over = kernel & (EPOLLRDHUP.rawValue | EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0
            if receivesOnTCP || over { events |= kernel & readable }
            // Behind a backlog there is no room.
            let mayWrite = sendsOnTCP && !hasBacklog || has(Slot.Flags.owesFIN)
            if mayWrite || kernel & (EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0 { events |= kernel & writable }
        }
        // The kernel has told of the reset, and no call of the program has.
        if has(Slot.Flags.resetSeen) { events |= EPOLLERR.rawValue }
        return events & (interest | EPOLLHUP.rawValue | EPOLLERR.rawValue)
    }

    /// Whether the stream has been read up to the kernel's urgent mark, if the kernel says that TCP has: SIOCATMARK.
    package var isReadUpToTCP: Bool {
        guard slot.receiveLock.lock() == .acquired else { return false }
        defer { slot.receiveLock.unlock() }
        guard isUp else { return true }
        _ = followCuts()
        return receivesOnTCP && (local.cutCount.load() == slot.receiveCuts.loadRelaxed() || slot.invitation.loadRelaxed() >= Invitation.rewind)
    }

    package static func kernelEvents(_ fd: Int32, _ interest: UInt32) -> UInt32 {
        var entry = pollfd(fd: fd, events: Int16(truncatingIfNeeded: interest), revents: 0)
        var now = timespec(tv_sec: 0, tv_nsec: 0)
        guard ss_sys_ppoll(&entry, 1, &now, nil) > 0 else { return 0 }
        return UInt32(UInt16(bitPattern: entry.revents)) & (interest | EPOLLHUP.rawValue | EPOLLERR.rawValue)
    }

    /// The kernel reported the TCP socket of a dual connection: remember an end of the stream. Data on TCP need no note;
    /// `readiness` asks the kernel while TCP carries a direction, and a cut says so.
    package func noteTCPEvent(_ fd: Int32) {
        guard enterWatch() else { return }
        noteTCPEnd(fd)
        leaveWatch(0)
    }

    /// Changes whenever something new can be read: the edge of EPOLLET. (What TCP has is none: the kernel tells each registration
    /// of it, and no other observer's event is an edge.)
    package var receiveEdge: UInt64 {
        guard isUp else { return 0 }
        return local.producer.load() &+ local.cutCount.load() << 52
    }

    /// Changes whenever a sender found no room, so that the room made afterwards is news.
    /// A change of carrier is news, too: TCP may have room where the ring had none.
    package var sendEdge: UInt64 {
        slot.sendFullCount.load() &+ ringToSend.size &+ slot.sendCuts.load() << 40
    }

    /// The CPU on which the peer last sent: a waiter on the same one must not spin.
    package var peerCPU: UInt64 { isUp ? SenderMark.cpu(local.senderMark.loadRelaxed()) : UInt64.max }

    /// When the peer last sent: a `SenderMark`. A peer that lies gets a place among the others that it does not deserve.
    package var peerMark: UInt64 { isUp ? local.senderMark.loadRelaxed() : 0 }
}
