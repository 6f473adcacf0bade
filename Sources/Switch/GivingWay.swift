import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// Doorbells are descriptors, and where the limits leave no other place they are taken from the program's. When it comes to
// need them, connections go back to TCP and stay there (`Reason.descriptorLimit`): a program must never be refused a
// descriptor that it would have without the switch.

/// Frees descriptors of the library's that stand in the program's way. True: there are some more. `atOnce`: the program
/// was just refused one.
@discardableResult
func giveWay(atOnce: Bool) -> Bool {
    guard switchIsActive, let memory = privateState.pointee.arena, !isForeignChild() else { return false }
    let before = ownDescriptorsInTheWay(atOnce: atOnce)
    if before == 0 { return false }
    var freed = 0
    for index in FamilyArena(memory).usedSlots {
        if freed >= before { break }
        if giveUpDoorbells(index) { freed &+= 2 }
    }
    return freed > 0
}

private func giveUpDoorbells(_ index: Int) -> Bool {
    let session = sessionOf(index)
    let record = session.connection
    guard record.pointee.companionPhase == CompanionPhase.up, Int32(bitPattern: session.descriptorCount.load()) > 0,
        record.pointee.generation == session.slot.generation.load(),
        switchHandOver(record.pointee.descriptor, .descriptorLimit)
    else { return false }
    let locked = waitForPendingLock()
    _ = session.end(last: false)
    closeCompanion(index)
    if locked { unlockPending() }
    return true
}
