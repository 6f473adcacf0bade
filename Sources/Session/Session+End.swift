import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

extension Session {
    /// shutdown(2) is about to be called (WSD-X1): says so in the window *before* the FIN goes out, so that the peer can
    /// tell a half-close from a death. True: the kernel may be called. False: a backlog goes out before the FIN, which
    /// follows it when TCP has taken all of it; the kernel may shut down the receiving direction only.
    package func willShutDown(_ how: Int32) -> Bool {
        if how == 0 || how == 2 { slot.flags.setBits(Slot.Flags.readShutDown) }
        guard how == 1 || how == 2 || has(Slot.Flags.writeShutDown) else { return true }
        let outcome = slot.sendLock.lock()
        defer { if outcome == .acquired { slot.sendLock.unlock() } }
        // The last moment to answer a rewind is before the flag. (The second half alone changes nothing about what is sent.)
        let isSettled = !isUp || how == 0 || settleBeforeEnd()
        if !isSettled { slot.flags.setBits(Slot.Flags.owesFIN) }
        slot.flags.setBits(Slot.Flags.writeShutDown)
        if isUp {
            remote.endFlags.store(endFlags)
            publish(line: 3)
            // A peer that waits for room waits in vain.
            if endFlags & EndFlags.closed != 0, connection.pointee.writer == nil { ringSender() }
            // The FIN must not arrive before the data: without them it would be a lie.
            if let writer = connection.pointee.writer, !writer.flush(upTo: slot.sendPosition.loadRelaxed()), !companionIsLost,
                !sendsOnTCP
            {
                breakOff(.companionFailed)
            }
        }
        return isSettled
    }

    /// What the peer is to know after a shutdown. Who neither reads nor writes any more answers the next bytes with a reset,
    /// and that is TCP's to do.
    var endFlags: UInt64 {
        has(Slot.Flags.readShutDown) && !has(Slot.Flags.owesFIN) ? EndFlags.halfClosed | EndFlags.closed : EndFlags.halfClosed
    }

    /// The process's last descriptor of the socket is about to be closed. Ends this process's use of the windows; the
    /// companion is the caller's to close afterwards. `last`: no other process holds the socket; the caller has waited for
    /// the backlog (`waitForBacklog`).
    ///
    /// Returns true when bytes lie unread in the ring, or cannot be delivered: TCP would then reset the connection, and so
    /// must the caller.
    package func end(last: Bool) -> Bool {
        let sending = slot.sendLock.lock()
        let receiving = slot.receiveLock.lock()
        var mustReset = false
        if isUp {
            if last { mustReset = sayGoodbye() }
            word(Connection.Offsets.up).store(Up.no)
            fullFence()  // pairs with the addition in enterWatch
            // (In a handler that was set past libc this thread may be in the middle of a send or receive.)
            if sending == .acquired, receiving == .acquired, awaitWatchers() {
                releaseWindows(last: last)
            } else {
                connection.pointee.keepsWindows = true
            }
        } else {
            abandon()
        }
        if receiving == .acquired { slot.receiveLock.unlock() }
        if sending == .acquired { slot.sendLock.unlock() }
        awaitSleepingCalls()
        return mustReset
    }

    /// False: somebody still looks at the windows. That is a call that a handler of this thread has interrupted and will come back
    /// to, or has left for ever, a handler that was set past libc: they must stay mapped.
    private func awaitWatchers() -> Bool {
        let deadline = ss_monotonic_ns() &+ Session.watchersNanoseconds
        while watchers.loadSequential() != 0 {
            if ss_monotonic_ns() >= deadline { return false }
            _ = ss_sys_sched_yield()
        }
        return true
    }

    private static var watchersNanoseconds: UInt64 { 200_000_000 }

    /// Our own calls that still sleep are woken, and given a moment to leave, before the doorbell's number goes.
    private func awaitSleepingCalls() {
        guard sleepingCalls.loadSequential() != 0 else { return }
        wakeSleepingCalls()
        // (Whom a longjmp or a cancellation took out of its sleep is counted and does not leave.)
        let deadline = ss_monotonic_ns() &+ Session.leavingNanoseconds
        while sleepingCalls.load() != 0, ss_monotonic_ns() < deadline { _ = ss_sys_sched_yield() }
    }

    private static var leavingNanoseconds: UInt64 { 5_000_000 }

    /// Gives TCP the time to take the backlog before the last descriptor goes: as long as the peer reads, and some seconds
    /// more. (The kernel would go on in the background; there is nobody here who could.) `isLast`: nobody else holds the
    /// socket, and so nobody answers a rewind that comes later.
    package func waitForBacklog(isLast: Bool) {
        var deadline: UInt64 = 0
        var position: UInt64 = 0
        while enterWatch() {
            guard slot.sendLock.lock() == .acquired else {
                leaveWatch(0)
                return
            }
            var isSettled = true
            if isLast, !has(Slot.Flags.writeShutDown) { isSettled = settleBeforeEnd() } else if owesPeer { isSettled = answerPeer() }
            let now = slot.backlogPosition.loadRelaxed()
            slot.sendLock.unlock()
            leaveWatch(0)
            // Whoever else holds the socket goes on with it.
            if isSettled || !isLast { return }
            if deadline == 0, enlargeSendBuffer() {
                deadline = 1
                continue
            }
            let time = ss_monotonic_ns()
            if now != position || deadline <= 1 { deadline = time &+ Session.closePatienceNanoseconds }
            if time >= deadline { return }
            position = now
            awaitTCP(connection.pointee.descriptor, Int16(POLLOUT), deadline &- time, isClosing: true)
        }
    }

    /// The kernel takes what the program's own limit would leave here; nobody can see the limit any more. False: it is as large.
    private func enlargeSendBuffer() -> Bool {
        let fd = connection.pointee.descriptor
        var before: Int32 = 0
        var length = UInt32(MemoryLayout<Int32>.size)
        guard ss_sys_getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &before, &length) == 0, before < Session.closingSendBuffer else { return false }
        var bytes = Session.closingSendBuffer
        if ss_sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, 4) < 0 { _ = ss_sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, 4) }
        var after: Int32 = 0
        return ss_sys_getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &after, &length) == 0 && after > before
    }

    /// A ring and what is beside it. Without privileges the kernel gives what net.core.wmem_max says, at least 212,992 twice.
    private static var closingSendBuffer: Int32 { 2 << 20 }
    private static var closePatienceNanoseconds: UInt64 { 5_000_000_000 }

    /// Tells the peer that nobody reads any more and that nothing follows.
    private func sayGoodbye() -> Bool {
        let unread = hasUnread
        // A rewind that came after `waitForBacklog`.
        let isSettled = has(Slot.Flags.writeShutDown) ? !hasBacklog : settleBeforeEnd()
        remote.endFlags.store(EndFlags.halfClosed | EndFlags.closed)
        guard let writer = connection.pointee.writer else {
            // A peer that waits for room must learn that there will be none.
            ringSender()
            return unread || !isSettled
        }
        writer.publish(line: 3, rings: true)
        let delivered = writer.flush(upTo: slot.sendPosition.loadRelaxed())
        return unread || !isSettled || !delivered && !sendsOnTCP && local.endFlags.load() & EndFlags.closed == 0
    }

    var hasUnread: Bool {
        slot.invitation.loadRelaxed() != Invitation.rewind && local.producer.load() != slot.receivePosition.loadRelaxed()
    }

    func releaseWindows(last: Bool) {
        // A provider that does not let go of the memory within a second keeps it.
        let isQuiet = !last || (connection.pointee.writer?.drain() ?? true)
        if last { unexpose() }
        if let writer = connection.pointee.writer, isQuiet {
            if let mirror = connection.pointee.remote { _ = ss_sys_munmap(mirror, Window.bytes) }
            RemoteWriter.destroy(writer)
        }
        if connection.pointee.ownsLocal, let local = connection.pointee.local { _ = ss_sys_munmap(local, Window.bytes) }
        connection.pointee.local = nil
        connection.pointee.writer = nil
        connection.pointee.remote = nil
        connection.pointee.notification = -1
        connection.pointee.ownsLocal = false
    }

    /// The peer may write here no more: before the memory goes (WSD-M3).
    func unexpose() {
        guard connection.pointee.isExposed else { return }
        connection.pointee.isExposed = false
        var error: Int32 = 0
        _ = connection.pointee.provider?.pointee.deregisterRdmaMemory?(
            connection.pointee.companion, &connection.pointee.exposed, &error)
    }
}
