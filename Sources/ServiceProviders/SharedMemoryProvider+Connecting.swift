import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

// Connecting and accepting (WSD-N2, N3, L1 … L6): both sides announce the TCP connection that they hold to the service,
// which pairs them.

/// Tells the service. Without a service it succeeds all the same: the companion is announced when there is one.
func sharedMemoryListen(_ socket: SOCKET, _ backlog: Int32, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    let mask = lockProviders()
    defer { unlockProviders(mask) }
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    if companion.state.load() == CompanionState.listening { return 0 }
    // WSD-C8: the port is known, also of a wildcard listener.
    guard companion.state.load() == CompanionState.bound, companion.localAddress.port != 0 else {
        return socketError(error, EINVAL)
    }
    companion.state.store(CompanionState.listening)
    companion.link(into: &providerState.pointee.listening)
    providerHalfWord(ProviderState.unregisteredOffset).store(1)
    RendezvousClient.registerListeners()
    return 0
}

/// Announces the companion's TCP socket, which SIO_SOCKSWITCH_BASE_SOCKET has named. Always fails: with EINPROGRESS when
/// FD_CONNECT will tell the outcome.
func sharedMemoryConnect(
    _ socket: SOCKET, _ name: UnsafePointer<sockaddr>?, _ length: socklen_t, _ callerData: UnsafePointer<WSABUF>?,
    _ calleeData: UnsafeMutablePointer<WSABUF>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    let mask = lockProviders()
    defer { unlockProviders(mask) }
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    switch companion.state.load() {
    case CompanionState.bound: break
    case CompanionState.announced: return socketError(error, EALREADY)
    case CompanionState.connected: return socketError(error, EISCONN)
    default: return socketError(error, EINVAL)
    }
    guard let name else { return socketError(error, EFAULT) }
    guard companion.record.pointee.hasCookie, companion.peerAddress.set(UnsafeRawPointer(name), length: Int(length))
    else { return socketError(error, EINVAL) }
    guard let entry = Companion.announcement(ofSlot: companion.slot) else { return socketError(error, EINVAL) }
    guard entry.pointee == 0 else { return socketError(error, EALREADY) }
    companion.record.pointee.role = companion.record.pointee.rejoins ? Role.rejoiner : Role.connector
    companion.record.pointee.pid = providerState.pointee.pid  // made by the parent, connected by its forked child
    companion.events.store(companion.events.load() & ~UInt32(FD_CONNECT))
    let reason = RendezvousClient.announce(companion)
    companion.record.pointee.reason = Int32(reason.rawValue)
    return socketError(error, reason == .none ? EINPROGRESS : errorNumber(reason))
}

/// Takes the oldest paired offer of a listening companion and asks the condition function (WSD-L4).
func sharedMemoryAccept(
    _ socket: SOCKET, _ address: UnsafeMutablePointer<sockaddr>?, _ length: UnsafeMutablePointer<socklen_t>?,
    _ condition: LPCONDITIONPROC?, _ data: UInt, _ error: UnsafeMutablePointer<Int32>?
) -> SOCKET {
    var mask = lockProviders()
    guard let listener = Companion(socket: socket) else {
        unlockProviders(mask)
        return invalidSocket(error, ENOTSOCK)
    }
    guard listener.state.load() == CompanionState.listening else {
        unlockProviders(mask)
        return invalidSocket(error, EINVAL)
    }
    if RendezvousClient.mayHaveNews { RendezvousClient.look() }
    let oldest = listener.record.pointee.paired.removeFirst()
    unlockProviders(mask)
    guard let offer = oldest else { return invalidSocket(error, EAGAIN) }

    // From here on nobody else knows the offer. Foreign code runs without the lock.
    var peer = sockaddr_storage()
    let peerLength = offer.peerAddress.fill(&peer)
    var asked = SOCKSWITCH_OFFER(
        BaseSocket: offer.record.pointee.baseSocket, Flags: 0, Cookie: offer.record.pointee.cookie)
    var caller = WSABUF(len: peerLength, buf: nil)
    var callee = WSABUF(len: MemoryLayout<SOCKSWITCH_OFFER>.size, buf: nil)
    let decision =
        withUnsafeMutableBytes(of: &peer) { peerBytes in
            withUnsafeMutableBytes(of: &asked) { askedBytes in
                caller.buf = peerBytes.baseAddress
                callee.buf = askedBytes.baseAddress
                return condition.map { $0(&caller, &callee, data) } ?? Int32(CF_ACCEPT)
            }
        }
    var failure: Int32 = ECONNREFUSED
    if decision == Int32(CF_ACCEPT) {
        offer.record.pointee.catalogEntry = listener.record.pointee.catalogEntry
        memcpy(offer.localAddress.base, listener.localAddress.base, 32)
        offer.record.pointee.listener = 0
        if createHandle(offer, &failure) {
            offer.state.store(CompanionState.connected)
            if let address, let length {
                withUnsafeBytes(of: &peer) { bytes in
                    _ = memcpy(address, bytes.baseAddress!, min(Int(length.pointee), peerLength))
                }
                length.pointee = socklen_t(peerLength)
            }
            return offer.socket
        }
    }
    mask = lockProviders()
    if decision == Int32(CF_DEFER), listener.state.load() == CompanionState.listening {
        listener.record.pointee.paired.append(offer)
        listener.raise(UInt32(FD_ACCEPT))
        unlockProviders(mask)
        return invalidSocket(error, EAGAIN)
    }
    offer.detach()
    offer.free()
    unlockProviders(mask)
    return invalidSocket(error, failure)
}

/// SIO_SOCKSWITCH_OFFER: asks for the companion of an accepted TCP connection.
func sharedMemoryOffer(_ listener: Companion, _ input: SOCKSWITCH_OFFER) -> Int32 {
    guard listener.state.load() == CompanionState.listening else { return EINVAL }
    let slot = input.Cookie & 0xF_FFFF
    var peer = sockaddr_storage()
    var peerLength = UInt32(MemoryLayout<sockaddr_storage>.size)
    let result = ss_sys_getpeername(input.BaseSocket, &peer, &peerLength)
    guard result == 0 else { return Int32(truncatingIfNeeded: -result) }
    guard let entry = Companion.announcement(ofSlot: slot) else { return EINVAL }
    guard entry.pointee == 0 else { return EALREADY }
    guard let offer = Companion.make() else { return ENOBUFS }
    guard offer.peerAddress.set(&peer, length: Int(peerLength)) else {
        offer.free()
        return EINVAL
    }
    offer.record.pointee.baseSocket = input.BaseSocket
    offer.record.pointee.cookie = input.Cookie
    offer.record.pointee.hasCookie = true
    offer.record.pointee.role = Role.acceptor
    offer.record.pointee.listener = listener.index
    let reason = RendezvousClient.announce(offer)
    listener.record.pointee.reason = Int32(reason.rawValue)
    if reason != .none { offer.free() }
    return errorNumber(reason)
}

/// SIO_SOCKSWITCH_OFFER_RESULT: the oldest offer that failed; nil: none.
func sharedMemoryOfferResult(_ listener: Companion) -> SOCKSWITCH_OFFER_RESULT? {
    guard let offer = listener.record.pointee.failed.removeFirst() else { return nil }
    let result = SOCKSWITCH_OFFER_RESULT(
        Cookie: offer.record.pointee.cookie, Reason: offer.record.pointee.reason, Reserved: 0)
    offer.free()
    return result
}

/// SIO_SOCKSWITCH_WITHDRAW_OFFER: 0, or ENOENT when no such offer waits.
func sharedMemoryWithdrawOffer(_ listener: Companion, cookie: UInt64) -> Int32 {
    if let entry = Companion.announcement(ofSlot: cookie & 0xF_FFFF), entry.pointee != 0 {
        let offer = Companion(entry.pointee)
        if offer.record.pointee.cookie == cookie, offer.record.pointee.listener == listener.index {
            RendezvousClient.withdraw(offer)
            offer.free()
            return 0
        }
    }
    if let offer = listener.record.pointee.paired.remove(cookie: cookie) {
        offer.detach()
        offer.free()
        return 0
    }
    if let offer = listener.record.pointee.failed.remove(cookie: cookie) {
        offer.free()
        return 0
    }
    return ENOENT
}
