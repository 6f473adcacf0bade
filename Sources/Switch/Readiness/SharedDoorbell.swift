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
    guard session.doorbellSleepers.loadSequential() <= 1, heatRegistrations(socket), session.enterWatch() else { return false }
    defer { session.leaveWatch(0) }
    session.silenceDoorbell()
    // Somebody may have begun to sleep after the first look.
    if session.doorbellSleepers.loadSequential() > 1 || !heatRegistrations(socket) {
        session.ringOurselves()
        return true
    }
    return session.slot.holders.load() <= 1 || session.staysSilentForRelatives()
}

/// Silences the doorbell of a socket that nothing is ready on, for the sake of the nested sets that it makes ready. Where
/// others may rely on it, it is left ringing.
func silenceForNestedSets(_ root: ReadinessRoot, _ socket: Int) {
    let session = sessionOf(socket)
    guard session.doorbellSleepers.loadSequential() == 0, session.slot.holders.load() <= 1, session.enterWatch() else { return }
    defer { session.leaveWatch(0) }
    guard heatRegistrations(socket, mayBeNested: true) else { return }
    session.silenceDoorbell()
    if session.doorbellSleepers.loadSequential() != 0 || !heatRegistrations(socket, mayBeNested: true) { session.ringOurselves() }
    // It may have been rung for what came after the last look.
    kickWhatIsReady(root, socket)
}

private func kickWhatIsReady(_ root: ReadinessRoot, _ socket: Int) {
    let lock = root.socketLock(socket)
    guard lock.lock() == .acquired else { return }
    defer { lock.unlock() }
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        let container = root.set(Int(one.set))
        if container.has(EpollSet.Flags.nested), container.lock.lock() == .acquired {
            if one.isReadyNow() { container.kick(root, index) }
            container.lock.unlock()
        }
        index = one.nextInSocket
    }
}

/// Makes the registrations of the socket hot, since their bell is about to be lost. False: a thread sleeps in one of the sets,
/// or something else waits for one of them.
private func heatRegistrations(_ socket: Int, mayBeNested: Bool = false) -> Bool {
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
            if container.sleepers.loadSequential() != 0 { quiet = false }
            if !mayBeNested, container.has(EpollSet.Flags.nested) { quiet = false }
        }
        index = one.nextInSocket
    }
    return quiet
}
