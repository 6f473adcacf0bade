import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

// The SharedMemory service provider: a SAN provider whose network is the memory of one host. A sealed memfd holds the two
// windows of a connection, two eventfds or sockets are its doorbells; sockswitchd makes them and hands them to both ends.
//
// Everything but the announcement itself is pure memory. No thread, no allocation, nothing blocks.

/// Tells the provider where the service is and which arena the family has. Called by the switch before the first
/// WSPListen or WSPConnect; again after a change. The service is then tried without waiting.
///
/// - servicePath: at most 107 bytes, zero-terminated, copied; nil or "": there is no service.
/// - arenaDescriptor: the arena's memfd, passed with hello; stays the caller's. -1: none.
/// - arena: its mapping; nil: no mailbox, packets are looked for each time.
/// - process: this process's entry in the arena.
package func sharedMemoryProviderConfigure(
    servicePath: UnsafePointer<CChar>?, arenaDescriptor: Int32, arena: UnsafeMutableRawPointer?, process: Int32
) {
    let mask = lockProviders()
    let state = providerState
    let target = ss_provider_state_address() + ProviderState.servicePathOffset
    let length = servicePath.map { strnlen($0, 108) } ?? 0
    state.pointee.servicePathLength = 0
    if let servicePath, length > 0, length < 108 {
        memset(target, 0, 108)
        memcpy(target, servicePath, length)
        state.pointee.servicePathLength = Int32(length)
    }
    if let arena { FamilyArena(arena).service.store(length > 0 ? ss_mark(target, length) : 0) }
    state.pointee.arenaDescriptor = arenaDescriptor
    state.pointee.arena = arena
    state.pointee.process = process
    state.pointee.pid = Int32(truncatingIfNeeded: ss_sys_getpid())
    state.pointee.nextConnect = 0
    state.pointee.connectBackOff = 0
    unlockProviders(mask)
}

/// Lets the service know this process, so that `ps` shows sockets that will never be announced.
package func sharedMemoryProviderIntroduce() {
    let mask = lockProviders()
    _ = RendezvousClient.connect()
    unlockProviders(mask)
}

/// Before fork: waits until no other thread is inside the provider, so that the child's copy is whole. `mask` goes to the
/// hook that follows, in the parent and in the child. Signals stay blocked in between.
package func sharedMemoryProviderBeforeFork() -> UInt64 { lockProviders() }

package func sharedMemoryProviderAfterForkInParent(_ mask: UInt64) { unlockProviders(mask) }

/// In a forked child: closes the inherited connection to the service (it is the parent's), forgets the announcements and
/// the offers that wait (they are the parent's), and registers the listening companions again at the next
/// WSPEnumNetworkEvents. Connected companions stay.
///
/// - process: the child's own entry in the arena. The address behind SIO_SOCKSWITCH_EVENT_WORD changes with it.
/// - mask: what `sharedMemoryProviderBeforeFork` returned; nil when it was not called.
package func sharedMemoryProviderAfterForkInChild(process: Int32, mask: UInt64?) {
    let state = providerState
    // Whoever held the lock exists no more, except when it was this thread, in the hook before the fork.
    HalfWord(ss_provider_state_address(), ProviderState.lockOffset).store(0)
    forgetDescriptorMoves()
    let parentsMailbox = RendezvousClient.mailbox?.load() ?? 0
    state.pointee.pid = Int32(truncatingIfNeeded: ss_sys_getpid())
    state.pointee.process = process
    // "News", also for a switch that compares with the last value of the parent's word.
    RendezvousClient.mailbox?.store(parentsMailbox &+ 1)
    let connection = RendezvousClient.descriptor
    state.pointee.connectionPlusOne = 0
    state.pointee.nextConnect = 0
    state.pointee.connectBackOff = 0
    closeOwn(connection)
    closeAddressSocket()
    while state.pointee.outstanding != 0 {
        let companion = Companion(state.pointee.outstanding)
        if companion.record.pointee.listener != 0 {
            companion.leaveOutstanding()
            companion.free()
        } else {
            companion.announcementFailed(.sharedBeforeUpgrade)
        }
    }
    var index = state.pointee.listening
    while index != 0 {
        let listener = Companion(index)
        while let offer = listener.record.pointee.paired.removeFirst() {
            offer.detach()
            offer.free()
        }
        while let offer = listener.record.pointee.failed.removeFirst() { offer.free() }
        listener.record.pointee.registeredEpoch = 0
        listener.events.store(0)
        index = listener.record.pointee.next
    }
    providerHalfWord(ProviderState.unregisteredOffset).store(state.pointee.listening != 0 ? 1 : 0)
    if let mask {
        var before = mask
        _ = ss_sys_sigprocmask(SIG_SETMASK, &before, nil)
    }
}

/// The provider's entry point (`LPWSPSTARTUPEX`, WSD-I3).
package func sharedMemoryStartupEx(
    _ version: UInt32, _ info: UnsafePointer<WSAPROTOCOL_INFO>?, _ upCalls: UnsafePointer<WSPUPCALLTABLE>?,
    _ table: UnsafeMutablePointer<WSPPROC_TABLE>?
) -> Int32 {
    guard version == UInt32(SOCKSWITCH_SPI_VERSION) else { return EPROTONOSUPPORT }
    guard let upCalls, let table, upCalls.pointee.lpWPUCreateSocketHandle != nil,
        upCalls.pointee.lpWPUCloseSocketHandle != nil
    else { return EINVAL }
    let mask = lockProviders()
    providerState.pointee.upCalls = upCalls.pointee
    providerState.pointee.startCount += 1
    unlockProviders(mask)

    table.pointee.lpWSPCleanup = sharedMemoryCleanup
    table.pointee.lpWSPSocket = sharedMemorySocket
    table.pointee.lpWSPBind = sharedMemoryBind
    table.pointee.lpWSPListen = sharedMemoryListen
    table.pointee.lpWSPAccept = sharedMemoryAccept
    table.pointee.lpWSPConnect = sharedMemoryConnect
    table.pointee.lpWSPCloseSocket = sharedMemoryCloseSocket
    table.pointee.lpWSPSend = sharedMemorySend
    table.pointee.lpWSPRecv = sharedMemoryReceive
    table.pointee.lpWSPGetOverlappedResult = sharedMemoryGetOverlappedResult
    table.pointee.lpWSPEventSelect = sharedMemoryEventSelect
    table.pointee.lpWSPEnumNetworkEvents = sharedMemoryEnumNetworkEvents
    table.pointee.lpWSPSetSockOpt = sharedMemorySetOption
    table.pointee.lpWSPGetSockOpt = sharedMemoryGetOption
    table.pointee.lpWSPIoctl = sharedMemoryIoctl
    table.pointee.lpWSPDuplicateSocket = sharedMemoryDuplicateSocket
    table.pointee.lpWSPGetQOSByName = sharedMemoryGetQOSByName
    return 0
}

/// Ends the use of the provider: every socket is closed, the connection to the service, too (WSD-X3).
private func sharedMemoryCleanup(_ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    var mask = lockProviders()
    guard providerState.pointee.startCount > 0 else {
        unlockProviders(mask)
        return socketError(error, ENETDOWN)
    }
    providerState.pointee.startCount -= 1
    guard providerState.pointee.startCount == 0 else {
        unlockProviders(mask)
        return 0
    }
    unlockProviders(mask)
    let used = RecordIndex(providerWord(ProviderState.usedRecordsOffset).load())
    var index: RecordIndex = 1
    while index <= used {
        let companion = Companion(index)
        let state = companion.state.load()
        let isOffer = companion.record.pointee.listener != 0 && state != CompanionState.connected
        if state != CompanionState.free, !isOffer { _ = sharedMemoryCloseSocket(companion.socket, nil) }
        index += 1
    }
    mask = lockProviders()
    RendezvousClient.drop(.noService)
    closeAddressSocket()
    unlockProviders(mask)
    return 0
}

// MARK: Creating, binding, options (WSD-C5 … C9): pure memory

private func sharedMemorySocket(
    _ family: Int32, _ type: Int32, _ proto: Int32, _ info: UnsafePointer<WSAPROTOCOL_INFO>?, _ group: UInt32,
    _ flags: UInt32, _ error: UnsafeMutablePointer<Int32>?
) -> SOCKET {
    guard family == AF_INET || family == AF_INET6 else { return invalidSocket(error, EAFNOSUPPORT) }
    guard type & 0xF == Int32(SOCK_STREAM.rawValue) else { return invalidSocket(error, ESOCKTNOSUPPORT) }
    guard proto == 0 || proto == Int32(IPPROTO_TCP) else { return invalidSocket(error, EPROTONOSUPPORT) }
    guard providerState.pointee.startCount > 0 else { return invalidSocket(error, ENETDOWN) }
    guard let made = Companion.make() else { return invalidSocket(error, ENOBUFS) }
    made.record.pointee.catalogEntry = info?.pointee.dwCatalogEntryId ?? 0
    guard createHandle(made, error) else {
        made.free()
        return SOCKET.max
    }
    return made.socket
}

/// Has the switch make its handle (WSD-C5). Without the lock: the up-call is foreign code.
func createHandle(_ companion: Companion, _ error: UnsafeMutablePointer<Int32>?) -> Bool {
    guard let create = providerState.pointee.upCalls.lpWPUCreateSocketHandle else {
        error?.pointee = ENETDOWN
        return false
    }
    var number: Int32 = 0
    let handle = create(companion.record.pointee.catalogEntry, companion.socket, &number)
    guard handle != SOCKET.max else {
        error?.pointee = number != 0 ? number : ENOBUFS
        return false
    }
    companion.record.pointee.handle = handle
    return true
}

private func sharedMemoryBind(
    _ socket: SOCKET, _ name: UnsafePointer<sockaddr>?, _ length: socklen_t, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    guard let name else { return socketError(error, EFAULT) }
    guard companion.state.load() == CompanionState.created,
        companion.localAddress.set(UnsafeRawPointer(name), length: Int(length))
    else { return socketError(error, EINVAL) }
    companion.state.store(CompanionState.bound)
    return 0
}

private func isReadOnlyOption(_ level: Int32, _ name: Int32) -> Bool {
    level == SOL_SOCKET && (name == Int32(SO_MAX_MSG_SIZE) || name == Int32(SO_MAX_RDMA_SIZE))
}

/// Options that change which bytes the program sees, or when: such a socket is better left on TCP.
private func onlyTCPServes(_ level: Int32, _ name: Int32) -> Bool {
    if level == SOL_SOCKET { return name == SO_ATTACH_FILTER || name == SO_ATTACH_BPF || name == SO_ZEROCOPY }
    return level == Int32(IPPROTO_TCP) && (name == TCP_ULP || name == TCP_REPAIR || name == TCP_MD5SIG)
}

private func sharedMemorySetOption(
    _ socket: SOCKET, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: socklen_t,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard Companion(socket: socket) != nil else { return socketError(error, ENOTSOCK) }
    let known =
        level == SOL_SOCKET || level == Int32(IPPROTO_TCP) || level == Int32(IPPROTO_IP)
        || level == Int32(IPPROTO_IPV6)
    guard known else { return socketError(error, ENOPROTOOPT) }
    if isReadOnlyOption(level, name) { return socketError(error, ENOPROTOOPT) }
    return onlyTCPServes(level, name) ? socketError(error, EOPNOTSUPP) : 0
}

private func sharedMemoryGetOption(
    _ socket: SOCKET, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?,
    _ length: UnsafeMutablePointer<socklen_t>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard Companion(socket: socket) != nil else { return socketError(error, ENOTSOCK) }
    guard let value, let length else { return socketError(error, EFAULT) }
    guard level == SOL_SOCKET, length.pointee >= 4 else { return socketError(error, level == SOL_SOCKET ? EINVAL : ENOPROTOOPT) }
    let answer: Int32
    switch Int(name) {
    case Int(SO_MAX_MSG_SIZE): answer = Int32(Segment.maximumMessageBytes)
    case Int(SO_MAX_RDMA_SIZE): answer = Int32(Segment.windowBytes)
    case Int(SO_RDMA_THRESHOLD_SIZE): answer = 0  // every transfer is a copy into the peer's window
    default: return socketError(error, ENOPROTOOPT)
    }
    value.storeBytes(of: answer, as: Int32.self)
    length.pointee = 4
    return 0
}

// MARK: Events

private func sharedMemoryEventSelect(
    _ socket: SOCKET, _ event: Int32, _ bits: Int32, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    companion.interest.store(UInt32(bitPattern: bits))
    return 0
}

private func sharedMemoryEnumNetworkEvents(
    _ socket: SOCKET, _ event: Int32, _ result: UnsafeMutablePointer<WSANETWORKEVENTS>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    guard let result else { return socketError(error, EFAULT) }
    result.pointee = WSANETWORKEVENTS()
    if RendezvousClient.mayHaveNews {
        let mask = lockProviders()
        RendezvousClient.look()
        unlockProviders(mask)
    }
    guard companion.events.load() & companion.interest.load() != 0 else { return 0 }

    let mask = lockProviders()
    // FD_ACCEPT is up as long as an offer waits; FD_CONNECT is reported once.
    if companion.record.pointee.paired.isEmpty, companion.record.pointee.failed.isEmpty {
        companion.events.store(companion.events.load() & ~UInt32(FD_ACCEPT))
    }
    let reported = companion.events.load() & companion.interest.load()
    result.pointee.lNetworkEvents = Int32(bitPattern: reported)
    if reported & UInt32(FD_CONNECT) != 0 { result.pointee.iErrorCode.4 = companion.record.pointee.error }
    companion.events.store(companion.events.load() & ~(reported & ~UInt32(FD_ACCEPT)))
    unlockProviders(mask)
    return 0
}

// MARK: Closing (WSD-X2)

private func sharedMemoryCloseSocket(_ socket: SOCKET, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    // Most companions end here: made, bound, never announced. No system call for those.
    let isIdle =
        companion.state.compareExchange(CompanionState.bound, CompanionState.closing) == CompanionState.bound
        || companion.state.compareExchange(CompanionState.created, CompanionState.closing) == CompanionState.created
    if !isIdle {
        let mask = lockProviders()
        guard Companion(socket: socket) != nil else {
            unlockProviders(mask)
            return socketError(error, ENOTSOCK)
        }
        switch companion.state.load() {
        case CompanionState.announced: RendezvousClient.withdraw(companion)
        case CompanionState.listening: stopListening(companion)
        default: break
        }
        companion.state.store(CompanionState.closing)
        let receive = companion.record.pointee.receive
        companion.record.pointee.receive = nil
        unlockProviders(mask)
        if let receive { completeReceive(companion, receive, ECANCELED, 0) }
    }
    companion.detach()
    let handle = companion.record.pointee.handle
    var number: Int32 = 0
    if handle != SOCKET.max, let close = providerState.pointee.upCalls.lpWPUCloseSocketHandle { _ = close(handle, &number) }
    companion.free()
    return 0
}

/// Under the lock: takes a listening companion from the service, and its offers.
private func stopListening(_ listener: Companion) {
    RendezvousClient.unregister(listener)
    listener.unlink(from: &providerState.pointee.listening)
    var index = providerState.pointee.outstanding
    while index != 0 {
        let offer = Companion(index)
        index = offer.record.pointee.next
        guard offer.record.pointee.listener == listener.index else { continue }
        offer.record.pointee.listener = 0  // withdrawing may end the connection, which would queue the offer
        RendezvousClient.withdraw(offer)
        offer.free()
        // The connection's end has emptied the list.
        if providerState.pointee.outstanding == 0 { break }
    }
    while let offer = listener.record.pointee.paired.removeFirst() {
        offer.detach()
        offer.free()
    }
    while let offer = listener.record.pointee.failed.removeFirst() { offer.free() }
}

// MARK: Not supported

private func sharedMemoryDuplicateSocket(
    _ socket: SOCKET, _ process: UInt32, _ info: UnsafeMutablePointer<WSAPROTOCOL_INFO>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard Companion(socket: socket) != nil else { return socketError(error, ENOTSOCK) }
    return socketError(error, EOPNOTSUPP)
}

private func sharedMemoryGetQOSByName(
    _ socket: SOCKET, _ name: UnsafePointer<WSABUF>?, _ quality: UnsafeMutableRawPointer?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard Companion(socket: socket) != nil else { return socketError(error, ENOTSOCK) }
    return socketError(error, EOPNOTSUPP)
}

/// Whether the service has left announcements unread for some time: it is stopped, or stuck. Waits for at most 50 ms, and only
/// while there is something unread. Without the lock.
package func sharedMemoryProviderIsBehind() -> Bool {
    guard providerHalfWord(ProviderState.outstandingOffset).load() != 0 else { return false }
    var patience = 0
    while RendezvousClient.isUnread {
        if patience == 50 { return true }
        var pause = timespec(tv_sec: 0, tv_nsec: 1_000_000)
        _ = ss_sys_brief_ppoll(nil, 0, &pause)
        patience &+= 1
    }
    return false
}
