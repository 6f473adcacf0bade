import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

extension Session {
    /// shutdown(2) is about to be called (WSD-X1): says so in the window *before* the FIN goes out, so that the peer can
    /// tell a half-close from a death.
    package func willShutDown(_ how: Int32) {
        if how == 0 || how == 2 { slot.flags.setBits(Slot.Flags.readShutDown) }
        guard how == 1 || how == 2 else { return }
        let outcome = slot.sendLock.lock()
        slot.flags.setBits(Slot.Flags.writeShutDown)
        if isUp {
            if let writer = connection.pointee.writer { _ = writer.sendAll(upTo: slot.sendPosition.loadRelaxed()) }
            remote.endFlags.store(EndFlags.halfClosed)
            publish(line: 3)
        }
        if outcome == .acquired { slot.sendLock.unlock() }
    }

    /// In a forked child: the session that the parent is setting up is none of ours.
    package func forget() { if !isUp { abandon() } }

    /// The process's last descriptor of the socket is about to be closed. Ends this process's use of the windows; the
    /// companion is the caller's to close afterwards. `last`: no other process holds the socket.
    ///
    /// Returns true when bytes lie unread in the ring: TCP would then reset the connection, and so must the caller.
    package func end(last: Bool) -> Bool {
        let sending = slot.sendLock.lock()
        let receiving = slot.receiveLock.lock()
        var unread = false
        if isUp {
            if last {
                if let writer = connection.pointee.writer { _ = writer.sendAll(upTo: slot.sendPosition.loadRelaxed()) }
                remote.endFlags.store(EndFlags.halfClosed | EndFlags.closed)
                publish(line: 3)
                unread = !receivesOnTCP && local.producer.load() != slot.receivePosition.loadRelaxed()
                // A peer that waits for room must learn that there will be none.
                ringSender()
            }
            let local = connection.pointee.local
            connection.pointee.local = nil
            while watchers.loadSequential() != 0 { _ = ss_sys_sched_yield() }
            if let writer = connection.pointee.writer {
                if last { writer.drain() }
                if let mirror = connection.pointee.remote { _ = ss_sys_munmap(mirror, Window.bytes) }
                RemoteWriter.destroy(writer)
            }
            if connection.pointee.ownsLocal, let local { _ = ss_sys_munmap(local, Window.bytes) }
            connection.pointee.writer = nil
            connection.pointee.remote = nil
            connection.pointee.notification = -1
            connection.pointee.ownsLocal = false
        } else {
            abandon()
        }
        if receiving == .acquired { slot.receiveLock.unlock() }
        if sending == .acquired { slot.sendLock.unlock() }
        return unread
    }
}
