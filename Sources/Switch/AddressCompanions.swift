import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
#endif

// WSD-C14, the policy `wildcard = per-interface`: a listener on the wildcard has no companion on the wildcard, but one for
// each address that a provider serves. Each has a slot of its own, of a kind that is no socket of the program, in a list
// that begins in the listener's record.

/// The program's listen on the wildcard has succeeded. An address whose companion fails does without; one that comes
/// later is not served until the program listens anew.
func listenWithAddressCompanions(_ fd: Int32, _ listener: Int, _ backlog: Int32) {
    let listening = sessionOf(listener)
    let isIPv4 = Int32(listening.slot.localAddress.family) == AF_INET
    let servesIPv4 = isIPv4 || !servesIPv6Only(fd)
    var reason = Reason.noProvider
    forEachServedAddress { entry, address in
        address.port = listening.slot.localAddress.port
        guard Int32(address.family) == AF_INET ? servesIPv4 : !isIPv4, policyAllows(address) else { return }
        let index = takeSlot(kind: Slot.Kind.addressCompanion, descriptor: -1)
        guard index != 0 else {
            reason = .socketTableFull
            return
        }
        let session = sessionOf(index)
        memcpy(session.slot.localAddress.base, address.base, 32)
        session.connection.pointee.options = listening.connection.pointee.options
        if makeListeningCompanion(index, entry, backlog) {
            session.connection.pointee.nextAddressCompanion = listening.connection.pointee.firstAddressCompanion
            listening.connection.pointee.firstAddressCompanion = Int32(index)
        } else {
            reason = Reason(rawValue: session.slot.reason.load()) ?? .companionFailed
            giveBack(index)
        }
    }
    if listening.connection.pointee.firstAddressCompanion == 0 { listening.slot.reason.store(reason.rawValue) }
}

private func servesIPv6Only(_ fd: Int32) -> Bool {
    var value: Int32 = 0
    var length: UInt32 = 4
    return baseGetOption(fd, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &value, &length) == 0 && value != 0
}

/// The record with the listening companion of a listener through which a connection to `local` is offered; nil: none.
func listeningRecord(_ listener: Int, for local: CompactAddress) -> UnsafeMutablePointer<Connection>? {
    let record = sessionOf(listener).connection
    if record.pointee.companionPhase == CompanionPhase.listening { return record }
    var index = Int(record.pointee.firstAddressCompanion)
    while index != 0 {
        let session = sessionOf(index)
        if session.connection.pointee.companionPhase == CompanionPhase.listening, session.slot.localAddress.hasSameHost(as: local) {
            return session.connection
        }
        index = Int(session.connection.pointee.nextAddressCompanion)
    }
    return nil
}

/// Whether what the listener accepts may be offered to anybody.
func hasListeningCompanion(_ listener: Int) -> Bool {
    let record = sessionOf(listener).connection
    return record.pointee.companionPhase == CompanionPhase.listening || record.pointee.firstAddressCompanion != 0
}

/// The listener ends, and its companions with it. Under the pending lock.
func closeAddressCompanions(_ listener: Int) {
    let record = sessionOf(listener).connection
    var index = Int(record.pointee.firstAddressCompanion)
    record.pointee.firstAddressCompanion = 0
    while index != 0 {
        let next = Int(sessionOf(index).connection.pointee.nextAddressCompanion)
        removePending(index)
        closeCompanion(index)
        giveBack(index)
        index = next
    }
}

private func giveBack(_ index: Int) {
    guard let memory = privateState.pointee.arena else { return }
    FamilyArena(memory).release(index, process: Int(privateState.pointee.process))
}
