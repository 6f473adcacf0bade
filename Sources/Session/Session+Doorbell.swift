import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// Sleep and wake. A side that goes to sleep raises a number in the peer's window, fences, and looks again; the peer rings
// once for each number that it sees. 0 asks for nothing. A stale number costs the peer one needless ring.
//
// Where the window is written remotely, a look after a write decides nothing (the write is still on its way), so nobody
// arms: a ring follows everything that a sleeper may wait for (`RemoteWriter`).
extension Session {
    /// "Ring me when there is something to read." The caller looks again afterwards, before it sleeps.
    /// Returns the number, for `disarmReceive`. `fences`: false for a caller who arms many and fences once, before it looks.
    @discardableResult @inline(__always)
    package func armReceive(fences: Bool = true) -> UInt64 {
        let number = slot.armedForReceiveCounter.add(1)
        if connection.pointee.writer == nil { remote.armedForReceive.store(number) }
        if fences { fullFence() }  // pairs with the fence in publishProducer
        return number
    }

    /// Takes `number` back, if nobody has armed since: a waiter that is awake again spares the peer a ring. Only for a caller
    /// who knows that nobody else relies on the number: no other sleeper, registration or process.
    package func disarmReceive(_ number: UInt64) {
        if connection.pointee.writer == nil { _ = remote.armedForReceive.compareExchange(number, 0) }
    }

    /// "Ring me when there is room to send."
    package func armSend(fences: Bool = true) {
        slot.roomWanted.store(1)
        if connection.pointee.writer == nil { remote.armedForSend.store(slot.armedForSendCounter.add(1)) }
        if fences { fullFence() }  // pairs with the fence in publishCredit
    }

    /// Wakes the peer's receiver if it sleeps. Under the send lock, after publishing; not where a writer rings by itself.
    @inline(__always)
    func ringReceiver() {
        let armed = local.armedForReceive.load()
        if armed != slot.rungForReceive.loadRelaxed(), armed != 0 {
            ring()
            // Afterwards: who is killed in between leaves others that ring once more, not a peer that sleeps on.
            slot.rungForReceive.storeRelaxed(armed)
            // The number of a peer that rewound while we were writing.
            if isRewound { answerRewind() }
        }
    }

    /// Wakes the peer's sender if it sleeps. Under the receive lock, after publishing; not where a writer rings by itself.
    @inline(__always)
    func ringSender() {
        let armed = local.armedForSend.load()
        if armed != slot.rungForSend.loadRelaxed(), armed != 0 {
            ring()
            slot.rungForSend.storeRelaxed(armed)
        }
    }

    /// A message without content is a ring of the peer's doorbell.
    @inline(never)
    package func ring() { wake(flags: 0) }

    private func wake(flags: UInt32) {
        guard let provider = connection.pointee.provider, let send = provider.pointee.calls.lpWSPSend else { return }
        var sent = 0
        var error: Int32 = 0
        _ = send(connection.pointee.companion, nil, 0, &sent, flags, nil, &error)
    }

    /// Silences our own doorbell for a thread that waits to receive, is counted among the sleepers and found nothing; it arms
    /// and looks again afterwards. A ring that was meant for somebody who waits for room is passed on, once.
    package func drainDoorbellForReceiver() {
        silenceDoorbell()
        if slot.roomWanted.load() != 0, looksWritable, slot.roomWanted.exchange(0) != 0 { ringOurselves() }
    }

    /// The same for a thread that waits to send and looks again afterwards. False: the doorbell rings for a receiver, and the
    /// caller must leave it alone and not sleep on it.
    package func drainDoorbellForSender() -> Bool {
        if looksReadable, receiversMayWait { return false }
        silenceDoorbell()
        guard receiversMayWait else { return true }
        // Their numbers may have been rung for what is silent now.
        armReceive()
        guard looksReadable else { return true }
        ringOurselves()
        return false
    }

    /// Somebody else may rely on the doorbell: a sleeper or an epoll set of this process, or another process.
    var receiversMayWait: Bool {
        doorbellSleepers.load() != 0 || slot.holders.load() > 1 || connection.pointee.firstRegistration != 0
    }

    /// The doorbell has been silenced, and other processes sleep on it, too. What it rang for may have been theirs: if there is
    /// something, it rings again, and the answer is false. If not, their numbers may have been rung for what is silent now; a new one
    /// rings for all of them.
    package func staysSilentForRelatives() -> Bool {
        armReceive()
        let wantsRoom = slot.roomWanted.load() != 0
        if wantsRoom { armSend() }
        guard looksReadable || isRewound || hasNews || wantsRoom && looksWritable else { return true }
        ringOurselves()
        return false
    }

    /// Silences our own doorbell for a caller who knows that nobody else in this process or family sleeps on it.
    package func silenceDoorbell() {
        guard let provider = connection.pointee.provider, let receive = provider.pointee.calls.lpWSPRecv else { return }
        var received = 0
        var flags: UInt32 = 0
        var error: Int32 = 0
        if receive(connection.pointee.companion, nil, 0, &received, &flags, nil, &error) == SOCKET_ERROR, error != EAGAIN {
            connection.pointee.writer?.fail()
        }
        fullFence()
    }

    /// Threads of this process that sleep on the doorbell level-triggered (receive, send, poll).
    package var doorbellSleepers: Word { word(Connection.Offsets.doorbellSleepers) }

    /// Takes back one count.
    package func stopSleepingOnDoorbell() { Session.takeBack(doorbellSleepers) }

    /// The record may have been made anew meanwhile: never below 0.
    static func takeBack(_ counter: Word) {
        while true {
            let count = counter.load()
            if count == 0 || counter.compareExchange(count, count &- 1) { return }
        }
    }

    /// Threads of this process that sleep in a receive or a send.
    var sleepingCalls: Word { word(Connection.Offsets.sleepingCalls) }

    @inline(__always)
    var replacer: Word { word(Connection.Offsets.replacer) }

    /// A number of the socket is about to be closed: whoever sleeps in a call begins anew. The kernel looks at what woke a
    /// poll by the numbers in its list, and this one may be another connection's by then.
    package func wakeSleepingCalls() {
        if sleepingCalls.loadSequential() != 0 { ringOurselves() }
    }

    /// Wakes whoever sleeps on our own doorbell.
    @inline(never)
    package func ringOurselves() { wake(flags: UInt32(SOCKSWITCH_SEND_WAKES_SELF)) }
}
