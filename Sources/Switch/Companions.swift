import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// The life of a companion socket, in the order of the seed: WSPSocket, WSPBind, WSPSetSockOpt…, then the operation that
// caused all this (WSD-C4 … C11). Whatever fails, the companion is closed and TCP goes on (WSD-C10).

/// Makes (WSD-C5), binds (WSD-C7, C8) and prepares (WSD-C9) the companion of a socket whose local address is known.
/// False: there is none, the slot has the reason, and the socket stays on TCP (WSD-C10).
func makeCompanion(_ index: Int, _ entry: UnsafeMutablePointer<ProviderEntry>) -> Bool {
    let session = sessionOf(index)
    let connection = session.connection
    let calls = entry.pointee.table.calls
    var error: Int32 = 0
    guard let make = calls.lpWSPSocket, let bind = calls.lpWSPBind, let setOption = calls.lpWSPSetSockOpt else { return false }
    let family = Int32(session.slot.localAddress.family)
    let companion = make(family, 1, 6, &entry.pointee.table.info, 0, 0, &error)
    guard companion != UInt.max else { return companionFailed(index, .companionFailed) }
    connection.pointee.provider = UnsafeRawPointer(entry).assumingMemoryBound(to: ProviderTable.self)
    connection.pointee.companion = companion
    var address = InlineArray<32, UInt8>(repeating: 0)
    let name = UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &address) { $0 })
    let length = session.slot.localAddress.fill(name)
    if bind(companion, name.assumingMemoryBound(to: sockaddr.self), UInt32(length), &error) == SOCKET_ERROR {
        return companionFailed(index, .companionFailed)
    }
    var number = 0
    while number < connection.pointee.options.count {
        var option = connection.pointee.options.options[number]
        let result = withUnsafeMutablePointer(to: &option.value) {
            setOption(companion, option.level, option.name, UnsafeRawPointer($0), option.length, &error)
        }
        // "Each one that the provider supports": an option that it does not know is no failure.
        if result == SOCKET_ERROR, error != ENOPROTOOPT { return companionFailed(index, .companionFailed) }
        number += 1
    }
    connection.pointee.companionPhase = CompanionPhase.bound
    return true
}

/// Closes the companion and goes on with TCP, for `reason` (WSD-C10, N3). A socket whose provider failed in what it should
/// be able to do stays there; other reasons may pass, and it is announced again later. Always false, for the convenience
/// of its callers. The caller takes the socket off the pending list.
@discardableResult
func companionFailed(_ index: Int, _ reason: Reason) -> Bool {
    let slot = sessionOf(index).slot
    slot.reason.store(reason.rawValue)
    if reason == .companionFailed { slot.flags.setBits(Slot.Flags.tcpOnly) }
    closeCompanion(index)
    return false
}

/// WSPCloseSocket, once (WSD-X2). The session has ended before, if there was one.
func closeCompanion(_ index: Int) {
    let connection = sessionOf(index).connection
    let companion = connection.pointee.companion
    guard companion != 0, let provider = connection.pointee.provider else { return }
    connection.pointee.companion = 0
    connection.pointee.companionPhase = CompanionPhase.none
    var error: Int32 = 0
    _ = provider.pointee.calls.lpWSPCloseSocket?(companion, &error)
}

// MARK: Listen and connect

/// The program's listen has succeeded (WSD-L1).
func listenWithCompanion(_ fd: Int32, _ index: Int, _ backlog: Int32) {
    let session = sessionOf(index)
    guard recordLocalAddress(fd, session.slot) else { return }
    session.slot.kind.store(Slot.Kind.listening)
    session.slot.reason.store(Reason.none.rawValue)
    guard !hasListeningCompanion(index) else { return }
    guard policyAllows(session.slot.localAddress) else {
        session.slot.reason.store(Reason.policy.rawValue)
        return introduceToService()
    }
    if session.slot.localAddress.isWildcard, Policy.ofProcess.wildcardIsPerInterface {
        return listenWithAddressCompanions(fd, index, backlog)
    }
    guard let entry = providerServing(session.slot.localAddress, asListener: true) else {
        session.slot.reason.store(Reason.noProvider.rawValue)
        return introduceToService()
    }
    makeListeningCompanion(index, entry, backlog)
}

/// The companion of a slot whose local address is known, from WSPSocket to WSPListen. False: there is none, and the slot
/// has the reason.
@discardableResult
func makeListeningCompanion(_ index: Int, _ entry: UnsafeMutablePointer<ProviderEntry>, _ backlog: Int32) -> Bool {
    guard makeCompanion(index, entry) else { return false }
    let connection = sessionOf(index).connection
    let calls = entry.pointee.table.calls
    var error: Int32 = 0
    guard let listen = calls.lpWSPListen, listen(connection.pointee.companion, backlog, &error) == 0,
        let select = calls.lpWSPEventSelect, select(connection.pointee.companion, -1, Int32(FD_ACCEPT), &error) == 0
    else { return companionFailed(index, .companionFailed) }
    connection.pointee.companionPhase = CompanionPhase.listening
    let locked = waitForPendingLock()
    addPending(index)
    if locked { unlockPending() }
    return true
}

/// The program's connect has succeeded or is under way: whether a provider serves the connection is decided now (WSD-C4,
/// N1). Its companion is made when the connection has proved worth it, just before WSPConnect: a connection that carries
/// one request costs neither a companion nor the system call that tells its local address.
func chooseCarrier(_ fd: Int32, _ index: Int) {
    let session = sessionOf(index)
    session.slot.kind.store(Slot.Kind.connected)
    introduceOnce()
    // It may have been connected elsewhere before.
    session.slot.localAddress.family = 0
    if session.has(Slot.Flags.tcpOnly) {
        // The reason stands already.
    } else if !policyAllows(session.slot.peerAddress) {
        keepOnTCP(index, .policy)
    } else if providerServing(session.slot.peerAddress, asListener: false) == nil {
        keepOnTCP(index, .noProvider)
    } else {
        session.slot.reason.store(Reason.notWorthItYet.rawValue)
        return
    }
    // Nobody asks later, and `ps` shows it.
    _ = recordLocalAddress(fd, session.slot)
}

/// No companion for this socket, ever.
func keepOnTCP(_ index: Int, _ reason: Reason) {
    let slot = sessionOf(index).slot
    slot.reason.store(reason.rawValue)
    slot.flags.setBits(Slot.Flags.tcpOnly)
    releaseListener(index)
}

/// A companion that is not connected yet ends; an offer is withdrawn. Harmless for any other socket.
func giveCompanionUp(_ index: Int) {
    let session = sessionOf(index)
    let locked = waitForPendingLock()
    defer { if locked { unlockPending() } }
    switch session.connection.pointee.companionPhase {
    case CompanionPhase.offered:
        withdrawOffer(index, .none)
    case CompanionPhase.bound, CompanionPhase.connecting, CompanionPhase.negotiating:
        removePending(index)
        session.giveSetupUp()
        closeCompanion(index)
    default: break
    }
}

func recordLocalAddress(_ fd: Int32, _ slot: Slot) -> Bool {
    var storage = InlineArray<128, UInt8>(repeating: 0)
    var length: UInt32 = 128
    return withUnsafeMutablePointer(to: &storage) {
        ss_sys_getsockname(fd, $0, &length) == 0 && slot.localAddress.set($0, length: Int(length))
    }
}

// MARK: Announcing

/// A data operation of a plain connection: once the connection has proved worth it, its companion connects (WSD-C11,
/// WSD-N2) or is offered (WSD-L4).
@inline(never)
func considerCompanion(_ fd: Int32, _ index: Int) {
    let session = sessionOf(index)
    let connection = session.connection
    switch connection.pointee.companionPhase {
    case CompanionPhase.none, CompanionPhase.bound:
        announce(fd, index)
    case CompanionPhase.offered:
        // The listening companion failed, and the offer with it.
        if listeningCompanion(session) == nil, lockPending() {
            if listeningCompanion(session) == nil { withdrawOffer(index, .companionFailed) }
            unlockPending()
        }
    case CompanionPhase.negotiating:
        if lockPending() {
            negotiateCompanion(index)
            unlockPending()
        }
    default:
        break
    }
    lookAtMailboxes()
}

private func announce(_ fd: Int32, _ index: Int) {
    let session = sessionOf(index)
    let slot = session.slot
    if session.wantsTCP {
        slot.reason.store(Reason.switchedOff.rawValue)
        return
    }
    let now = ss_monotonic_ns()
    if now < slot.nextAttempt.loadRelaxed() { return }
    if isAlone(slot) == false {
        slot.reason.store(Reason.sharedBeforeUpgrade.rawValue)
        slot.nextAttempt.store(now &+ 10_000_000)
        return
    }
    let accepted = slot.kind.load() == Slot.Kind.accepted
    let rejoins = session.connection.pointee.rejoins
    if !privateState.pointee.eager, !rejoins, isRefused(slot.peerAddress, wholeHost: accepted, now) {
        slot.reason.store(Reason.peerNotSwitched.rawValue)
        slot.nextAttempt.store(now &+ 100_000_000)
        return
    }
    if slot.localAddress.family == 0, !recordLocalAddress(fd, slot) { return keepOnTCP(index, .noProvider) }
    guard lockPending() else { return }
    defer { unlockPending() }
    // Another thread may have announced it meanwhile, or closed it.
    let phase = session.connection.pointee.companionPhase
    guard phase == CompanionPhase.none || phase == CompanionPhase.bound, !session.isDual, now >= slot.nextAttempt.loadRelaxed(),
        socketIndex(fd) == index
    else { return }
    slot.nextAttempt.store(now &+ retryNanoseconds(slot.attempts.add(1), rejoins: rejoins))
    if accepted, !rejoins { offer(fd, index) } else { connectCompanion(fd, index) }
}

/// Back-off of announcements of one connection: 40 ms, doubling, at most 5 s. One that begins anew is announced at least every
/// 640 ms for the first quarter of a minute, so that the times for which the two ends wait (half a second) meet.
private func retryNanoseconds(_ attempt: UInt64, rejoins: Bool) -> UInt64 {
    20_000_000 << min(attempt, rejoins && attempt < 24 ? 5 : 8)
}

/// The cookie by which a provider names an offered or connecting socket: slot and generation.
func cookie(_ index: Int, _ slot: Slot) -> UInt64 { UInt64(index) | slot.generation.loadRelaxed() << 20 }

private func connectCompanion(_ fd: Int32, _ index: Int) {
    let session = sessionOf(index)
    let slot = session.slot
    let connection = session.connection
    if connection.pointee.companion == 0 {
        guard slot.peerAddress.family != 0, let entry = providerServing(slot.peerAddress, asListener: false) else {
            return keepOnTCP(index, .noProvider)
        }
        guard makeCompanion(index, entry) else { return }
    }
    guard let provider = connection.pointee.provider else { return }
    let entry = UnsafeMutableRawPointer(mutating: UnsafeRawPointer(provider)).assumingMemoryBound(to: ProviderEntry.self)
    let companion = connection.pointee.companion
    let flags = connection.pointee.rejoins ? UInt32(SOCKSWITCH_OFFER_REJOINS) : 0
    var base = SOCKSWITCH_OFFER(BaseSocket: fd, Flags: flags, Cookie: cookie(index, slot))
    var error: Int32 = 0
    var address = InlineArray<32, UInt8>(repeating: 0)
    let name = UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &address) { $0 })
    let length = slot.peerAddress.fill(name)
    guard entry.ioctl(companion, UInt32(SIO_SOCKSWITCH_BASE_SOCKET), input: &base, size: MemoryLayout<SOCKSWITCH_OFFER>.size) == 0,
        let select = provider.pointee.calls.lpWSPEventSelect, select(companion, -1, Int32(FD_CONNECT), &error) == 0,
        let connect = provider.pointee.calls.lpWSPConnect
    else {
        companionFailed(index, .companionFailed)
        return
    }
    if connect(companion, name.assumingMemoryBound(to: sockaddr.self), UInt32(length), nil, nil, &error) == 0 {
        companionConnected(index)
    } else if error == EINPROGRESS || error == EAGAIN {
        connection.pointee.companionPhase = CompanionPhase.connecting
        slot.reason.store(Reason.waitingForPeer.rawValue)
        addPending(index)
    } else {
        companionFailed(index, lastReason(entry, companion))
    }
}

private func offer(_ fd: Int32, _ index: Int) {
    let session = sessionOf(index)
    let slot = session.slot
    guard let (entry, companion) = listeningCompanion(session) else { return keepOnTCP(index, .noProvider) }
    var offer = SOCKSWITCH_OFFER(BaseSocket: fd, Flags: 0, Cookie: cookie(index, slot))
    guard entry.ioctl(companion, UInt32(SIO_SOCKSWITCH_OFFER), input: &offer, size: MemoryLayout<SOCKSWITCH_OFFER>.size) == 0
    else {
        let reason = lastReason(entry, companion)
        slot.reason.store(reason.rawValue)
        if reason == .companionFailed { keepOnTCP(index, reason) }
        return
    }
    session.connection.pointee.companionPhase = CompanionPhase.offered
    slot.reason.store(Reason.waitingForPeer.rawValue)
}

/// Why the provider's last call on this companion failed, in our words.
func lastReason(_ entry: UnsafeMutablePointer<ProviderEntry>, _ companion: UInt) -> Reason {
    var number: Int32 = 0
    guard entry.ioctl(companion, UInt32(SIO_SOCKSWITCH_REASON), output: &number, size: 4) == 0, number > 0 else { return .companionFailed }
    return Reason(rawValue: UInt64(number)) ?? .companionFailed
}

/// `isAlone` for calls that come often: looks for children that died every 10 ms only.
func isAloneAgain(_ slot: Slot) -> Bool {
    let now = ss_monotonic_ns()
    if now < slot.nextAttempt.loadRelaxed() { return false }
    slot.nextAttempt.store(now &+ 10_000_000)
    return isAlone(slot)
}

/// Whether this process alone holds the socket; children that died are forgotten first.
func isAlone(_ slot: Slot) -> Bool {
    if slot.holders.load() == 1 { return true }
    if let arena = privateState.pointee.arena { FamilyArena(arena).reapDeadProcesses() }
    return slot.holders.load() == 1
}

// MARK: News from providers

/// Looks at every provider's event word and, where one has moved, at what became of the companions that wait. Called by
/// data and wait calls; costs one load a provider while nothing happens. Never sleeps.
package func lookAtMailboxes() {
    let state = privateState
    guard firstPending.loadRelaxed() != 0, let entries = state.pointee.providers else { return }
    var news = false
    var index = 0
    while index < Int(state.pointee.providerCount) {
        if let word = (entries + index).pointee.table.eventWord {
            if Word(word, 0).load() != lastEvent(entries + index).loadRelaxed() { news = true }
        } else {
            news = true
        }
        index += 1
    }
    if news { servePending(entries) }
}

/// What the provider's event word said when it was last looked at.
@inline(__always)
func lastEvent(_ entry: UnsafeMutablePointer<ProviderEntry>) -> Word {
    Word(UnsafeMutableRawPointer(entry), MemoryLayout<ProviderTable>.stride)
}

private func servePending(_ entries: UnsafeMutablePointer<ProviderEntry>) {
    // Somebody is at it, and may have passed what is new: it stays news for the next look.
    guard lockPending() else { return }
    defer { unlockPending() }
    var provider = 0
    while provider < Int(privateState.pointee.providerCount) {
        let entry = entries + provider
        if let word = entry.pointee.table.eventWord { lastEvent(entry).storeRelaxed(Word(word, 0).load()) }
        provider += 1
    }
    var index = Int(firstPending.load())
    while index != 0 {
        let connection = sessionOf(index).connection
        let next = Int(connection.pointee.nextPending)
        switch connection.pointee.companionPhase {
        case CompanionPhase.connecting: finishConnect(index)
        case CompanionPhase.listening: acceptCompanions(index)
        case CompanionPhase.negotiating: negotiateCompanion(index)
        default: break
        }
        let now = connection.pointee.companionPhase
        if now != CompanionPhase.connecting, now != CompanionPhase.listening, now != CompanionPhase.negotiating { removePending(index) }
        index = next
    }
}

/// WSD-N2, N3.
private func finishConnect(_ index: Int) {
    let connection = sessionOf(index).connection
    guard let provider = connection.pointee.provider, let enumerate = provider.pointee.calls.lpWSPEnumNetworkEvents else { return }
    let entry = UnsafeMutableRawPointer(mutating: UnsafeRawPointer(provider)).assumingMemoryBound(to: ProviderEntry.self)
    var events = WSANETWORKEVENTS()
    var error: Int32 = 0
    guard enumerate(connection.pointee.companion, -1, &events, &error) == 0 else {
        companionFailed(index, .companionFailed)
        return
    }
    guard events.lNetworkEvents & Int32(FD_CONNECT) != 0 else { return }
    if events.iErrorCode.4 == 0 {
        companionConnected(index)
    } else {
        let reason = lastReason(entry, connection.pointee.companion)
        companionFailed(index, reason)
        // Of one that begins anew it says nothing about others that go the same way.
        if reason == .peerNotSwitched, !connection.pointee.rejoins {
            rememberRefusal(sessionOf(index).slot.peerAddress, wholeHost: false)
        }
    }
}

private func companionConnected(_ index: Int) {
    let session = sessionOf(index)
    session.connection.pointee.companionPhase = CompanionPhase.negotiating
    session.slot.reason.store(Reason.negotiating.rawValue)
    switch session.begin() {
    case .done, .pending: break
    case .noMemory:
        companionFailed(index, .memoryLimit)
        return
    case .refused:
        companionFailed(index, .peerPolicy)
        return
    case .failed:
        companionFailed(index, .companionFailed)
        return
    }
    addPending(index)
    negotiateCompanion(index)
}

/// Under the pending lock: takes the peer's hello if it is there, and puts the session into service.
func negotiateCompanion(_ index: Int) {
    let session = sessionOf(index)
    guard session.connection.pointee.companionPhase == CompanionPhase.negotiating else { return }
    // A child that holds the socket, too, has no part in setting up. Giving up now would leave the peer with a companion
    // that nobody answers; it loses nothing by waiting, since nobody is invited before we are up.
    if session.slot.holders.load() != 1, !isAloneAgain(session.slot) {
        session.slot.reason.store(Reason.sharedBeforeUpgrade.rawValue)
        return
    }
    switch session.negotiate() {
    case .pending: return
    case .done: putIntoService(index)
    case .refused: companionFailed(index, .peerPolicy)
    case .noMemory: companionFailed(index, .memoryLimit)
    case .failed: companionFailed(index, .companionFailed)
    }
    if session.connection.pointee.companionPhase == CompanionPhase.none { removePending(index) }
}

/// The session is up: from now on the data calls of this socket go through it.
private func putIntoService(_ index: Int) {
    let session = sessionOf(index)
    session.connection.pointee.companionPhase = CompanionPhase.up
    removePending(index)
    // The epoll sets of this process must know the doorbell before anybody can invite.
    if session.has(Slot.Flags.tcpOnly) {
        _ = session.end(last: true)
        companionFailed(index, Reason(rawValue: session.slot.reason.load()) ?? .handedOver)
        return
    }
    guard isAlone(session.slot), readinessWillUpgrade(index) else {
        let reason: Reason = !isAlone(session.slot) ? .sharedBeforeUpgrade : readinessIsUntellable(index) ? .unsupportedOption : .descriptorLimit
        _ = session.end(last: true)
        companionFailed(index, reason)
        return
    }
    releaseListener(index)  // not before: a connection that failed here is offered again
    ss_guard_memory()
    session.slot.reason.store(Reason.notInvited.rawValue)
    session.slot.mode.storeSequential(Slot.Mode.dual)
    readinessKick(index)
    inviteEagerly(index)
}

// MARK: Accepting (WSD-L2, L4)

/// What the condition function and its caller share.
struct AcceptDecision {
    var index = 0
    var reason = Reason.none
}

private func acceptCompanions(_ listener: Int) {
    let connection = sessionOf(listener).connection
    guard let provider = connection.pointee.provider else { return }
    let calls = provider.pointee.calls
    let entry = UnsafeMutableRawPointer(mutating: UnsafeRawPointer(provider)).assumingMemoryBound(to: ProviderEntry.self)
    var events = WSANETWORKEVENTS()
    var error: Int32 = 0
    guard let enumerate = calls.lpWSPEnumNetworkEvents, let accept = calls.lpWSPAccept,
        enumerate(connection.pointee.companion, -1, &events, &error) == 0
    else {
        companionFailed(listener, .companionFailed)
        return
    }
    guard events.lNetworkEvents & Int32(FD_ACCEPT) != 0 else {
        takeRefusedOffers(entry, connection.pointee.companion)
        return
    }
    var budget = 256
    while budget > 0 {
        budget -= 1
        var decision = AcceptDecision()
        let companion = withUnsafeMutablePointer(to: &decision) {
            accept(connection.pointee.companion, nil, nil, acceptCondition, UInt(bitPattern: $0), &error)
        }
        if companion == UInt.max {
            // The condition function accepted, but the provider could not: the offer has come to nothing.
            if decision.index != 0 { withdrawOffer(decision.index, .companionFailed) }
            if decision.index != 0 || error == ECONNREFUSED { continue }  // ECONNREFUSED: it declined
            break
        }
        let accepted = sessionOf(decision.index)
        accepted.connection.pointee.provider = provider
        accepted.connection.pointee.companion = companion
        companionConnected(decision.index)
    }
    takeRefusedOffers(entry, connection.pointee.companion)
}

/// Called by the provider, on this thread, before WSPAccept returns (WSD-L4).
private func acceptCondition(_ caller: UnsafePointer<WSABUF>?, _ callee: UnsafePointer<WSABUF>?, _ data: UInt) -> Int32 {
    guard let callee, callee.pointee.len >= MemoryLayout<SOCKSWITCH_OFFER>.size, let bytes = callee.pointee.buf,
        let decision = UnsafeMutablePointer<AcceptDecision>(bitPattern: data)
    else { return Int32(CF_REJECT) }
    let cookie = UnsafeRawPointer(bytes).load(as: SOCKSWITCH_OFFER.self).Cookie
    guard let index = offeredSlot(cookie) else { return Int32(CF_REJECT) }
    decision.pointee.index = index
    return Int32(CF_ACCEPT)
}

/// The slot that was offered under this cookie and still waits.
private func offeredSlot(_ value: UInt64) -> Int? {
    let index = Int(value & 0xFFFFF)
    guard index > 0, index < FamilyArena.slotCount else { return nil }
    let session = sessionOf(index)
    guard cookie(index, session.slot) == value, session.connection.pointee.generation == session.slot.generation.load(),
        session.connection.pointee.companionPhase == CompanionPhase.offered
    else { return nil }
    return index
}

private func takeRefusedOffers(_ entry: UnsafeMutablePointer<ProviderEntry>, _ companion: UInt) {
    var budget = 256
    while budget > 0 {
        budget -= 1
        var result = SOCKSWITCH_OFFER_RESULT()
        guard entry.ioctl(companion, UInt32(SIO_SOCKSWITCH_OFFER_RESULT), output: &result, size: MemoryLayout<SOCKSWITCH_OFFER_RESULT>.size) == 0 else { return }
        guard let index = offeredSlot(result.Cookie) else { continue }
        let session = sessionOf(index)
        session.connection.pointee.companionPhase = CompanionPhase.none
        let reason = Reason(rawValue: UInt64(UInt32(bitPattern: result.Reason))) ?? .companionFailed
        session.slot.reason.store(reason.rawValue)
        if reason == .companionFailed { keepOnTCP(index, reason) }
        if reason == .peerNotSwitched { rememberRefusal(session.slot.peerAddress, wholeHost: true) }
    }
}

// MARK: The listener of an accepted socket

/// Catalogue entry and listening companion through which an accepted socket is offered; nil: there is none any more.
private func listeningCompanion(_ session: Session) -> (UnsafeMutablePointer<ProviderEntry>, UInt)? {
    let accepted = session.connection
    let localAddress = session.slot.localAddress
    let listener = Int(accepted.pointee.listener)
    guard listener != 0 else { return nil }
    let listening = sessionOf(listener)
    guard listening.slot.generation.load() == accepted.pointee.listenerGeneration,
        let record = listeningRecord(listener, for: localAddress), let provider = record.pointee.provider
    else { return nil }
    let entry = UnsafeMutableRawPointer(mutating: UnsafeRawPointer(provider)).assumingMemoryBound(to: ProviderEntry.self)
    return (entry, record.pointee.companion)
}

/// An offer is void: the socket is closed, or stays on TCP for `reason` (`.none`: the caller knows better). Harmless for
/// a socket that is not offered.
func withdrawOffer(_ index: Int, _ reason: Reason) {
    let session = sessionOf(index)
    guard session.connection.pointee.companionPhase == CompanionPhase.offered else { return }
    if let (entry, companion) = listeningCompanion(session) {
        var offer = SOCKSWITCH_OFFER(
            BaseSocket: session.connection.pointee.descriptor, Flags: 0, Cookie: cookie(index, session.slot))
        // ENOENT: it was answered meanwhile, or is being accepted.
        _ = entry.ioctl(companion, UInt32(SIO_SOCKSWITCH_WITHDRAW_OFFER), input: &offer, size: MemoryLayout<SOCKSWITCH_OFFER>.size)
    }
    session.connection.pointee.companionPhase = CompanionPhase.none
    if reason != .none { keepOnTCP(index, reason) }
}

/// Accepted sockets of this process that may still be offered through the listener.
func dependents(_ listener: Int) -> Word {
    Word(UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &sessionOf(listener).connection.pointee.dependents) { $0 }), 0)
}

/// The accepted socket needs its listener no more: it has its companion, will never have one, or is closed. Whoever is
/// the last one ends a listening companion whose listener the program has closed meanwhile.
func releaseListener(_ index: Int) {
    let connection = sessionOf(index).connection
    if connection.pointee.listener == 0 { return }
    // Of several threads one gives it up.
    let word = withUnsafeMutablePointer(to: &connection.pointee.listener) { HalfWord(UnsafeMutableRawPointer($0), 0) }
    let listener = Int(word.exchange(0))
    guard listener != 0 else { return }
    let listening = sessionOf(listener)
    guard listening.slot.generation.load() == connection.pointee.listenerGeneration else { return }
    let count = dependents(listener)
    if count.load() > 0, count.subtract(1) == 0, listening.descriptorCount.load() == 0 { endRetiredListener(listener) }
}

// MARK: The list of pending companions. Data and wait calls never wait for its lock, whose holder may make system calls;
// closing and forking do (`waitForPendingLock`).

func lockPending() -> Bool { takePending(from: 0) }

/// While it is held no handler of the program runs in this thread.
private func takePending(from owner: UInt32) -> Bool {
    ss_enter_section()
    if pendingLock.compareExchange(owner, UInt32(bitPattern: ss_thread_id())) == owner { return true }
    ss_leave_section()
    return false
}

var ownsPendingLock: Bool { pendingLock.load() == UInt32(bitPattern: ss_thread_id()) }

func unlockPending() {
    pendingLock.store(0)
    ss_leave_section()
}

/// The lock's holder exists no more (it was cancelled, or left by a longjmp and a thread's end): the lock is this thread's.
func takePendingFromDead() -> Bool {
    let owner = pendingLock.load()
    guard owner != 0, ss_sys_tkill(Int32(bitPattern: owner), 0) == -Int(ESRCH) else { return lockPending() }
    return takePending(from: owner)
}

private var pendingLock: HalfWord {
    HalfWord(UnsafeMutableRawPointer(privateState), MemoryLayout<PrivateState>.pendingLockOffset)
}

func addPending(_ index: Int) {
    let connection = sessionOf(index).connection
    guard !connection.pointee.isPending else { return }
    connection.pointee.isPending = true
    connection.pointee.nextPending = Int32(bitPattern: firstPending.load())
    firstPending.store(UInt32(index))
}

func removePending(_ index: Int) {
    let connection = sessionOf(index).connection
    guard connection.pointee.isPending else { return }
    connection.pointee.isPending = false
    if firstPending.load() == UInt32(index) {
        firstPending.store(UInt32(bitPattern: connection.pointee.nextPending))
        return
    }
    var previous = Int(firstPending.load())
    while previous != 0 {
        let record = sessionOf(previous).connection
        if record.pointee.nextPending == Int32(index) {
            record.pointee.nextPending = connection.pointee.nextPending
            return
        }
        previous = Int(record.pointee.nextPending)
    }
}
