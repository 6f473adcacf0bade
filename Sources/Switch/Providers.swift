import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

/// One loaded SAN provider (WSD-I2, I3) with its subnets (WSD-I5).
package struct ProviderEntry {
    /// First, because sessions keep a pointer to it.
    package var table = ProviderTable()
    /// What the event word said when it was last looked at. Several threads look: reached by address (`lastEvent(_:)`).
    package var lastEventWord: UInt64 = 0
    package var catalogID: UInt32 = 0
    package var addresses = SOCKET_ADDRESS_LIST()
    /// Monotonic nanoseconds of the last question whether the addresses changed.
    package var lastAddressCheck: UInt64 = 0
    package var addressesKnown = false
    /// `PrivateState.addressChanges` when the list was read.
    package var addressChanges: UInt64 = 0
    /// The provider's socket that address questions are asked on; 0 = not made yet.
    package var addressSocket: UInt = 0
}

// MARK: Up-calls (WSD-C6). Handles are 1-based indices into a table of {used, context}.

private func handleWord(_ handle: UInt) -> Word? {
    guard let handles = privateState.pointee.handles, handle >= 1, handle < UInt(SwitchMemory.maximumHandles) else { return nil }
    return Word(handles, Int(handle) * 16)
}

private func createSocketHandle(_ catalogEntry: UInt32, _ context: UInt, _ error: UnsafeMutablePointer<Int32>?) -> UInt {
    guard let handles = privateState.pointee.handles else { return UInt.max }
    // Word 0 of the table remembers where to look first.
    let hint = Word(handles, 0)
    var handle = UInt(truncatingIfNeeded: hint.loadRelaxed())
    var tries = 0
    while tries < SwitchMemory.maximumHandles {
        handle = handle >= UInt(SwitchMemory.maximumHandles) - 1 ? 1 : handle &+ 1
        if let word = handleWord(handle), word.loadRelaxed() == 0, word.compareExchange(0, 1) {
            Word(handles, Int(handle) * 16 + 8).store(UInt64(context))
            hint.storeRelaxed(UInt64(handle))
            Word(handles, 8).add(1)
            return handle
        }
        tries &+= 1
    }
    error?.pointee = ENOBUFS
    return UInt.max
}

private func querySocketHandleContext(_ handle: UInt, _ context: UnsafeMutablePointer<UInt>?, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    guard let word = handleWord(handle), word.load() == 1, let handles = privateState.pointee.handles else {
        error?.pointee = ENOTSOCK
        return SOCKET_ERROR
    }
    context?.pointee = UInt(truncatingIfNeeded: Word(handles, Int(handle) * 16 + 8).load())
    return 0
}

private func closeSocketHandle(_ handle: UInt, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
    guard let word = handleWord(handle), word.compareExchange(1, 0), let handles = privateState.pointee.handles else {
        error?.pointee = ENOTSOCK
        return SOCKET_ERROR
    }
    Word(handles, 8).subtract(1)
    return 0
}

/// The session polls every operation (low bit of hEvent), so there is nobody to notify.
private func completeOverlappedRequest(
    _ handle: UInt, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: Int32, _ transferred: Int,
    _ errorOut: UnsafeMutablePointer<Int32>?
) -> Int32 {
    guard let word = handleWord(handle), word.load() == 1, let overlapped else {
        errorOut?.pointee = ENOTSOCK
        return SOCKET_ERROR
    }
    overlapped.pointee.InternalHigh = UInt(bitPattern: transferred)
    overlapped.pointee.Error = error
    overlapped.pointee.Internal = 1
    return 0
}

/// Socket handles that providers hold now: the balance of `WPUCreateSocketHandle` and `WPUCloseSocketHandle`.
package func openHandleCount() -> Int {
    guard let handles = privateState.pointee.handles else { return 0 }
    return Int(Word(handles, 8).load())
}

// MARK: Catalogue

/// Starts a provider and adds it to the catalogue. Providers added first are asked first. False: it refused, or lacks a
/// call that the session needs.
@discardableResult
package func addProvider(_ startup: LPWSPSTARTUPEX) -> Bool {
    let state = privateState
    let index = Int(state.pointee.providerCount)
    guard let entries = state.pointee.providers, index < SwitchMemory.maximumProviders else { return false }
    let entry = entries + index
    entry.initialize(to: ProviderEntry())
    var tcp = baseProviderInfo()
    var calls = WSPUPCALLTABLE()
    calls.lpWPUCreateSocketHandle = createSocketHandle
    calls.lpWPUQuerySocketHandleContext = querySocketHandleContext
    calls.lpWPUCloseSocketHandle = closeSocketHandle
    calls.lpWPUCompleteOverlappedRequest = completeOverlappedRequest
    guard startup(UInt32(SOCKSWITCH_SPI_VERSION), &tcp, &calls, &entry.pointee.table.calls) == 0 else { return false }
    guard entry.pointee.table.calls.lpWSPSocket != nil, entry.pointee.table.calls.lpWSPIoctl != nil else { return false }
    entry.pointee.catalogID = UInt32(index) + 2
    // What the provider is told of itself with every WSPSocket; it passes the catalogue entry up again (WSD-C5).
    entry.pointee.table.info = tcp
    entry.pointee.table.info.dwCatalogEntryId = entry.pointee.catalogID
    state.pointee.providerCount = Int32(index + 1)
    return true
}

/// Extensions and event word come from a socket of the provider, so they are fetched with the first one, the one for
/// address questions (WSD-I4). No companion exists before it.
func fetchExtensions(_ entry: UnsafeMutablePointer<ProviderEntry>, _ companion: UInt) {
    guard entry.pointee.table.registerRdmaMemory == nil else { return }
    entry.pointee.table.registerRdmaMemory = unsafeBitCast(extensionFunction(entry, companion, Int32(ss_extension_register_rdma_memory)), to: LPFN_WSPREGISTERRDMAMEMORY?.self)
    entry.pointee.table.deregisterRdmaMemory = unsafeBitCast(extensionFunction(entry, companion, Int32(ss_extension_deregister_rdma_memory)), to: LPFN_WSPDEREGISTERRDMAMEMORY?.self)
    entry.pointee.table.rdmaWrite = unsafeBitCast(extensionFunction(entry, companion, Int32(ss_extension_rdma_write)), to: LPFN_WSPRDMAWRITE?.self)
    entry.pointee.table.rdmaRead = unsafeBitCast(extensionFunction(entry, companion, Int32(ss_extension_rdma_read)), to: LPFN_WSPRDMAREAD?.self)
    entry.pointee.table.allocateRdmaMemory = unsafeBitCast(extensionFunction(entry, companion, Int32(ss_extension_allocate_rdma_memory)), to: LPFN_WSPALLOCATERDMAMEMORY?.self)
    entry.pointee.table.mapRdmaMemory = unsafeBitCast(extensionFunction(entry, companion, Int32(ss_extension_map_rdma_memory)), to: LPFN_WSPMAPRDMAMEMORY?.self)
    var word: UnsafeMutableRawPointer?
    if entry.ioctl(companion, UInt32(SIO_SOCKSWITCH_EVENT_WORD), output: &word, size: MemoryLayout<UnsafeMutableRawPointer?>.size) == 0 {
        entry.pointee.table.eventWord = word
    }
}

/// In a forked child: its mailbox is another one.
func refetchEventWords() {
    guard let entries = privateState.pointee.providers else { return }
    var index = 0
    while index < Int(privateState.pointee.providerCount) {
        let entry = entries + index
        var word: UnsafeMutableRawPointer?
        if entry.pointee.addressSocket != 0, entry.pointee.table.eventWord != nil,
            entry.ioctl(entry.pointee.addressSocket, UInt32(SIO_SOCKSWITCH_EVENT_WORD), output: &word, size: MemoryLayout<UnsafeMutableRawPointer?>.size) == 0
        {
            entry.pointee.table.eventWord = word
            lastEvent(entry).store(0)
        }
        index += 1
    }
}

private func extensionFunction(_ entry: UnsafeMutablePointer<ProviderEntry>, _ companion: UInt, _ number: Int32) -> UnsafeMutableRawPointer? {
    var id = ss_extension_guid(number)
    var function: UnsafeMutableRawPointer?
    var returned = 0
    var error: Int32 = 0
    guard let ioctl = entry.pointee.table.calls.lpWSPIoctl,
        ioctl(companion, UInt32(SIO_GET_EXTENSION_FUNCTION_POINTER), &id, MemoryLayout<GUID>.size, &function, MemoryLayout<UnsafeMutableRawPointer?>.size, &returned, &error) == 0
    else { return nil }
    return function
}

extension UnsafeMutablePointer where Pointee == ProviderEntry {
    /// WSPIoctl with an output buffer only. 0, or an errno.
    func ioctl(_ companion: UInt, _ code: UInt32, output: UnsafeMutableRawPointer, size: Int) -> Int32 {
        var returned = 0
        var error: Int32 = 0
        guard let call = pointee.table.calls.lpWSPIoctl else { return EOPNOTSUPP }
        return call(companion, code, nil, 0, output, size, &returned, &error) == 0 ? 0 : error
    }

    /// WSPIoctl with an input buffer only. 0, or an errno.
    func ioctl(_ companion: UInt, _ code: UInt32, input: UnsafeRawPointer, size: Int) -> Int32 {
        var returned = 0
        var error: Int32 = 0
        guard let call = pointee.table.calls.lpWSPIoctl else { return EOPNOTSUPP }
        return call(companion, code, input, size, nil, 0, &returned, &error) == 0 ? 0 : error
    }
}

// MARK: Subnets (WSD-I5, I6, N1)

/// The provider that serves an address, or nil: TCP/IP does. For a destination it must lie in one of the provider's
/// subnets; for a listener it must be one of the provider's own addresses, or the wildcard.
func providerServing(_ address: CompactAddress, asListener: Bool) -> UnsafeMutablePointer<ProviderEntry>? {
    let state = privateState
    guard let entries = state.pointee.providers else { return nil }
    var index = 0
    while index < Int(state.pointee.providerCount) {
        let entry = entries + index
        refreshAddresses(entry)
        var item = 0
        let count = min(max(Int(entry.pointee.addresses.iAddressCount), 0), 64)
        if asListener, address.isWildcard, count > 0 { return entry }
        while item < count {
            let subnet = subnetPointer(entry, item)
            if matches(address, subnet, wholeAddress: asListener) { return entry }
            item &+= 1
        }
        index &+= 1
    }
    return nil
}

/// Every address that a provider serves, each once, with the first provider that does (WSD-C14).
func forEachServedAddress(_ body: (UnsafeMutablePointer<ProviderEntry>, CompactAddress) -> Void) {
    let state = privateState
    guard let entries = state.pointee.providers else { return }
    var storage = InlineArray<32, UInt8>(repeating: 0)
    let address = CompactAddress(UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &storage) { $0 }))
    var index = 0
    while index < Int(state.pointee.providerCount) {
        let entry = entries + index
        refreshAddresses(entry)
        var item = 0
        while item < min(max(Int(entry.pointee.addresses.iAddressCount), 0), 64) {
            if address.set(subnetPointer(entry, item), length: MemoryLayout<sockaddr_storage>.size), !address.isWildcard,
                providerServing(address, asListener: true) == entry
            {
                body(entry, address)
            }
            item &+= 1
        }
        index &+= 1
    }
}

private func subnetPointer(_ entry: UnsafeMutablePointer<ProviderEntry>, _ index: Int) -> UnsafeRawPointer {
    let list = UnsafeRawPointer(withUnsafeMutablePointer(to: &entry.pointee.addresses) { $0 })
    return list + 8 + index * MemoryLayout<SOCKSWITCH_SUBNET>.stride
}

private func matches(_ address: CompactAddress, _ subnet: UnsafeRawPointer, wholeAddress: Bool) -> Bool {
    let family = Int32(subnet.load(as: UInt16.self))
    let prefix = Int(subnet.load(fromByteOffset: MemoryLayout<sockaddr_storage>.size, as: UInt32.self))
    var mine = UnsafeRawPointer(address.bytes)
    var mineFamily = Int32(address.family)
    // ::ffff:a.b.c.d is the IPv4 address a.b.c.d.
    if address.isMappedIPv4 {
        mine += 12
        mineFamily = AF_INET
    }
    guard family == mineFamily else { return false }
    let theirs = subnet + (family == AF_INET ? 4 : 8)
    let width = family == AF_INET ? 32 : 128
    let isLoopback = family == AF_INET && theirs.load(as: UInt8.self) == 127
    let bits = wholeAddress && !isLoopback ? width : min(prefix, width)
    var bit = 0
    while bit < bits {
        let step = min(32, bits - bit)
        let mask = UInt32(truncatingIfNeeded: UInt64(0xFFFF_FFFF_0000_0000) >> UInt64(step))
        let difference = mine.loadUnaligned(fromByteOffset: bit / 8, as: UInt32.self) ^ theirs.loadUnaligned(fromByteOffset: bit / 8, as: UInt32.self)
        if UInt32(bigEndian: difference) & mask != 0 { return false }
        bit += 32
    }
    return true
}

/// For so long an address list is believed: the question whether it changed costs system calls, which a program that
/// connects thousands of times a second would notice. What an old list misses stays on TCP.
private let addressesAgeNanoseconds: UInt64 = 10_000_000

/// How often the machine's addresses have changed, as far as TCP/IP has told (WSD-I6).
private func addressChanges(_ now: UInt64) -> UInt64 {
    let state = privateState
    if now &- state.pointee.lastAddressCheck >= addressesAgeNanoseconds {
        state.pointee.lastAddressCheck = now
        if baseAddressesChanged() { state.pointee.addressChanges &+= 1 }
    }
    return state.pointee.addressChanges
}

/// Asks a provider for its addresses, on a socket made for that purpose (WSD-I5), at first and whenever they changed
/// (WSD-I6).
private func refreshAddresses(_ entry: UnsafeMutablePointer<ProviderEntry>) {
    let now = ss_monotonic_ns()
    if entry.pointee.addressesKnown, now &- entry.pointee.lastAddressCheck < addressesAgeNanoseconds { return }
    entry.pointee.lastAddressCheck = now
    guard let make = entry.pointee.table.calls.lpWSPSocket, let close = entry.pointee.table.calls.lpWSPCloseSocket else { return }
    // Asked of both: TCP/IP sees the interfaces, the provider alone knows what else its network depends on.
    let changes = addressChanges(now)
    if entry.pointee.addressesKnown, entry.pointee.addressSocket != 0 {
        var dummy: UInt64 = 0
        let changed = entry.ioctl(entry.pointee.addressSocket, UInt32(SIO_ADDRESS_LIST_CHANGE), output: &dummy, size: 8) == 0
        if !changed, changes == entry.pointee.addressChanges { return }
    }
    entry.pointee.addressChanges = changes
    var error: Int32 = 0
    if entry.pointee.addressSocket == 0 {
        let made = make(AF_INET, 1, 6, &entry.pointee.table.info, 0, 0, &error)
        if made == UInt.max { return }
        entry.pointee.addressSocket = made
        fetchExtensions(entry, made)
    }
    if entry.ioctl(entry.pointee.addressSocket, UInt32(SIO_ADDRESS_LIST_QUERY), output: &entry.pointee.addresses, size: MemoryLayout<SOCKET_ADDRESS_LIST>.size) == 0 {
        entry.pointee.addressesKnown = true
    } else {
        _ = close(entry.pointee.addressSocket, &error)
        entry.pointee.addressSocket = 0
    }
}
