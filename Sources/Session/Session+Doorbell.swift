import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// Sleep and wake. A side that goes to sleep raises a number in the peer's window, fences, and looks again; the peer rings
// once for each number that it sees. 0 asks for nothing. A stale number costs the peer one needless ring.
extension Session {
    /// "Ring me when there is something to read." The caller looks again afterwards, before it sleeps.
    /// Returns the number, for `disarmReceive`.
    @discardableResult
    package func armReceive() -> UInt64 {
        let number = slot.armedForReceiveCounter.add(1)
        remote.armedForReceive.store(number)
        publish(line: 2)
        fullFence()  // pairs with the fence in publishProducer
        return number
    }

    /// Takes `number` back, if nobody has armed since: a waiter that is awake again spares the peer a ring. Only for a caller
    /// who knows that nobody else relies on the number: no other sleeper, registration or process.
    package func disarmReceive(_ number: UInt64) {
        if connection.pointee.writer == nil { _ = remote.armedForReceive.compareExchange(number, 0) }
    }

    /// "Ring me when there is room to send."
    package func armSend() {
        remote.armedForSend.store(slot.armedForSendCounter.add(1))
        publish(line: 3)
        fullFence()  // pairs with the fence in publishCredit
    }

    /// Wakes the peer's receiver if it sleeps. Under the send lock, after publishing.
    @inline(__always)
    func ringReceiver() {
        let armed = local.armedForReceive.load()
        if armed != 0, armed != slot.rungForReceive.loadRelaxed() {
            slot.rungForReceive.storeRelaxed(armed)
            ring()
        }
    }

    /// Wakes the peer's sender if it sleeps. Under the receive lock, after publishing.
    @inline(__always)
    func ringSender() {
        let armed = local.armedForSend.load()
        if armed != slot.rungForSend.loadRelaxed() {
            slot.rungForSend.storeRelaxed(armed)
            ring()
        }
    }

    /// A message without content is a ring of the peer's doorbell.
    @inline(never)
    package func ring() {
        guard let provider = connection.pointee.provider, let send = provider.pointee.calls.lpWSPSend else { return }
        var sent = 0
        var error: Int32 = 0
        _ = send(connection.pointee.companion, nil, 0, &sent, 0, nil, &error)
    }

    /// Silences our own doorbell, so that the next sleep is one. Whoever calls it looks at the rings again afterwards; if
    /// there is something now, other waiters on the same doorbell must hear of it.
    package func drainDoorbell() {
        silenceDoorbell()
        if looksReadable { ringOurselves() }
    }

    /// Silences our own doorbell for a caller who knows that nobody else in this process or family sleeps on it.
    package func silenceDoorbell() {
        guard let provider = connection.pointee.provider, let receive = provider.pointee.calls.lpWSPRecv else { return }
        var received = 0
        var flags: UInt32 = 0
        var error: Int32 = 0
        _ = receive(connection.pointee.companion, nil, 0, &received, &flags, nil, &error)
        fullFence()
    }

    /// Threads of this process that sleep on the doorbell level-triggered (receive, send, poll).
    package var doorbellSleepers: Word {
        Word(UnsafeMutableRawPointer(connection), MemoryLayout<Connection>.offsetOfDoorbellSleepers)
    }

    /// Takes back one count. The record may have been made anew meanwhile: never below 0.
    package func stopSleepingOnDoorbell() {
        while true {
            let count = doorbellSleepers.load()
            if count == 0 || doorbellSleepers.compareExchange(count, count &- 1) { return }
        }
    }

    /// Wakes whoever sleeps on our own doorbell.
    package func ringOurselves() {
        guard connection.pointee.writer == nil, connection.pointee.notification >= 0 else { return }
        var one: UInt64 = 1
        _ = ss_sys_write(connection.pointee.notification, &one, 8)
    }
}
