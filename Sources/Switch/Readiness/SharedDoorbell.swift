import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// poll and select sleep on doorbells level-triggered, so a bell that rang for nothing of theirs must be silenced before the
// next sleep. But nobody may silence a bell that another waits for.

/// Silences the doorbell of socket `socket` for a thread that is counted among its sleepers and found nothing. False: others
/// may rely on it, and it was left ringing. The caller arms and looks again.
func silenceDoorbell(_ socket: Int) -> Bool {
    let session = sessionOf(socket)
    guard session.doorbellSleepers.loadSequential() <= 1, session.slot.holders.load() <= 1, heatRegistrations(socket)
    else { return false }
    guard session.enterWatch() else { return true }
    session.silenceDoorbell()
    // Somebody may have begun to sleep after the first look.
    if session.doorbellSleepers.loadSequential() > 1 || !heatRegistrations(socket) { session.ringOurselves() }
    session.leaveWatch(0)
    return true
}

/// Makes the registrations of the socket hot, since their bell is about to be lost. False: a thread sleeps in one of the sets.
private func heatRegistrations(_ socket: Int) -> Bool {
    guard connectionRecord(socket).pointee.firstRegistration != 0, let root = ReadinessRoot.existing else { return true }
    let lock = root.socketLock(socket)
    guard lock.lock() == .acquired else { return false }
    defer { lock.unlock() }
    var quiet = true
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        if one.has(Registration.State.dual) {
            let container = root.set(Int(one.set))
            guard container.lock.lock() == .acquired else { return false }
            container.heat(root, index)
            container.lock.unlock()
            fullFence()  // pairs with the increment of `sleepers` before arming
            if container.sleepers.loadSequential() != 0 || container.has(EpollSet.Flags.nested) { quiet = false }
        }
        index = one.nextInSocket
    }
    return quiet
}
