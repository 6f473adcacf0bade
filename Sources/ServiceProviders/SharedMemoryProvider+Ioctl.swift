import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

func sharedMemoryIoctl(
    _ socket: SOCKET, _ code: UInt32, _ input: UnsafeRawPointer?, _ inputBytes: Int,
    _ output: UnsafeMutableRawPointer?, _ outputBytes: Int, _ returned: UnsafeMutablePointer<Int>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let companion = Companion(socket: socket) else { return socketError(error, ENOTSOCK) }
    returned?.pointee = 0
    switch Int(code) {
    case Int(SIO_GET_EXTENSION_FUNCTION_POINTER):
        guard let input, inputBytes >= MemoryLayout<GUID>.size else { return socketError(error, EINVAL) }
        guard let output, outputBytes >= 8 else { return socketError(error, EFAULT) }
        guard let function = extensionFunction(ss_extension_of(input)) else { return socketError(error, EOPNOTSUPP) }
        output.storeBytes(of: function, as: UnsafeRawPointer.self)
        returned?.pointee = 8
        return 0

    case Int(SIO_ADDRESS_LIST_QUERY):
        guard let output, outputBytes >= MemoryLayout<SOCKET_ADDRESS_LIST>.size else {
            return socketError(error, EFAULT)
        }
        fillAddressList(output.assumingMemoryBound(to: SOCKET_ADDRESS_LIST.self))
        returned?.pointee = MemoryLayout<SOCKET_ADDRESS_LIST>.size
        return 0

    case Int(SIO_ADDRESS_LIST_CHANGE):
        return addressListChanged(for: .sharedMemory) ? 0 : socketError(error, EAGAIN)

    case Int(SIO_SOCKSWITCH_BASE_SOCKET):
        guard let offer = offerArgument(input, inputBytes) else { return socketError(error, EINVAL) }
        let found = companion.state.load()
        guard found == CompanionState.created || found == CompanionState.bound else { return socketError(error, EINVAL) }
        companion.record.pointee.baseSocket = offer.BaseSocket
        companion.record.pointee.cookie = offer.Cookie
        companion.record.pointee.hasCookie = true
        companion.record.pointee.rejoins = offer.Flags & UInt32(SOCKSWITCH_OFFER_REJOINS) != 0
        return 0

    case Int(SIO_SOCKSWITCH_OFFER), Int(SIO_SOCKSWITCH_WITHDRAW_OFFER):
        guard let offer = offerArgument(input, inputBytes) else { return socketError(error, EINVAL) }
        let mask = lockProviders()
        let result =
            Int(code) == Int(SIO_SOCKSWITCH_OFFER)
            ? sharedMemoryOffer(companion, offer) : sharedMemoryWithdrawOffer(companion, cookie: offer.Cookie)
        unlockProviders(mask)
        return result == 0 ? 0 : socketError(error, result)

    case Int(SIO_SOCKSWITCH_OFFER_RESULT):
        guard let output, outputBytes >= MemoryLayout<SOCKSWITCH_OFFER_RESULT>.size else {
            return socketError(error, EFAULT)
        }
        let mask = lockProviders()
        let result = sharedMemoryOfferResult(companion)
        unlockProviders(mask)
        guard let result else { return socketError(error, EAGAIN) }
        output.storeBytes(of: result, as: SOCKSWITCH_OFFER_RESULT.self)
        returned?.pointee = MemoryLayout<SOCKSWITCH_OFFER_RESULT>.size
        return 0

    case Int(SIO_SOCKSWITCH_NOTIFICATION):
        guard let output, outputBytes >= 4 else { return socketError(error, EFAULT) }
        guard companion.state.load() == CompanionState.connected else { return socketError(error, ENOTCONN) }
        output.storeBytes(of: companion.record.pointee.doorbell, as: Int32.self)
        returned?.pointee = 4
        return 0

    case Int(SIO_SOCKSWITCH_EVENT_WORD):
        guard let output, outputBytes >= 8 else { return socketError(error, EFAULT) }
        guard let mailbox = RendezvousClient.mailbox else { return socketError(error, EOPNOTSUPP) }
        output.storeBytes(of: UnsafeRawPointer(mailbox.address), as: UnsafeRawPointer.self)
        returned?.pointee = 8
        return 0

    case Int(SIO_SOCKSWITCH_REASON):
        guard let output, outputBytes >= 4 else { return socketError(error, EFAULT) }
        output.storeBytes(of: companion.record.pointee.reason, as: Int32.self)
        returned?.pointee = 4
        return 0

    default:
        return socketError(error, EOPNOTSUPP)
    }
}

/// A SOCKSWITCH_OFFER whose cookie names a slot that can exist.
private func offerArgument(_ input: UnsafeRawPointer?, _ bytes: Int) -> SOCKSWITCH_OFFER? {
    guard let input, bytes >= MemoryLayout<SOCKSWITCH_OFFER>.size else { return nil }
    let offer = input.loadUnaligned(as: SOCKSWITCH_OFFER.self)
    let slot = offer.Cookie & 0xF_FFFF
    guard offer.BaseSocket >= 0, slot > 0, slot < UInt64(FamilyArena.slotCount) else { return nil }
    return offer
}

/// The extension functions that there are: all but WSPRdmaRead and WSPMemoryRegistrationCacheCallback.
private func extensionFunction(_ number: Int32) -> UnsafeRawPointer? {
    switch Int(number) {
    case Int(ss_extension_register_memory):
        let function: LPFN_WSPREGISTERMEMORY = sharedMemoryRegisterMemory
        return unsafeBitCast(function, to: UnsafeRawPointer?.self)
    case Int(ss_extension_deregister_memory):
        let function: LPFN_WSPDEREGISTERMEMORY = sharedMemoryDeregisterMemory
        return unsafeBitCast(function, to: UnsafeRawPointer?.self)
    case Int(ss_extension_register_rdma_memory):
        let function: LPFN_WSPREGISTERRDMAMEMORY = sharedMemoryRegisterRdmaMemory
        return unsafeBitCast(function, to: UnsafeRawPointer?.self)
    case Int(ss_extension_deregister_rdma_memory):
        let function: LPFN_WSPDEREGISTERRDMAMEMORY = sharedMemoryDeregisterRdmaMemory
        return unsafeBitCast(function, to: UnsafeRawPointer?.self)
    case Int(ss_extension_rdma_write):
        let function: LPFN_WSPRDMAWRITE = sharedMemoryRdmaWrite
        return unsafeBitCast(function, to: UnsafeRawPointer?.self)
    case Int(ss_extension_allocate_rdma_memory):
        let function: LPFN_WSPALLOCATERDMAMEMORY = sharedMemoryAllocateRdmaMemory
        return unsafeBitCast(function, to: UnsafeRawPointer?.self)
    case Int(ss_extension_map_rdma_memory):
        let function: LPFN_WSPMAPRDMAMEMORY = sharedMemoryMapRdmaMemory
        return unsafeBitCast(function, to: UnsafeRawPointer?.self)
    default:
        return nil
    }
}
