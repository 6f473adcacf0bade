import CSocketSwitch
import Rendezvous
import ServiceProviders
import Session
import Synchronization

/// A provider started the way the switch starts it (WSD-I3, I4), with up-calls that count.
package final class LoadedProvider: @unchecked Sendable {
    /// Stable address: sessions keep it.
    package let table: UnsafeMutablePointer<ProviderTable>
    /// Connects two bound companions of this provider without a service. 0 or an errno.
    package let pairUp: @Sendable (SOCKET, SOCKET) -> Int32

    package init(_ startup: LPWSPSTARTUPEX, pairUp: @escaping @Sendable (SOCKET, SOCKET) -> Int32) {
        self.pairUp = pairUp
        signal(SIGPIPE) { _ in }
        table = .allocate(capacity: 1)
        table.initialize(to: ProviderTable())
        var tcp = WSAPROTOCOL_INFO()
        tcp.iVersion = Int32(SOCKSWITCH_SPI_VERSION)
        var calls = WSPUPCALLTABLE()
        calls.lpWPUCreateSocketHandle = { _, _, _ in
            let made = UpCalls.created.wrappingAdd(1, ordering: .relaxed).newValue
            return UInt(made)
        }
        calls.lpWPUCloseSocketHandle = { _, _ in
            UpCalls.closed.wrappingAdd(1, ordering: .relaxed)
            return 0
        }
        calls.lpWPUQuerySocketHandleContext = { _, _, _ in 0 }
        calls.lpWPUCompleteOverlappedRequest = { _, _, _, _, _ in 0 }
        precondition(startup(UInt32(SOCKSWITCH_SPI_VERSION), &tcp, &calls, &table.pointee.calls) == 0)
        let probe = socket(AF_INET)
        precondition(probe != UInt.max)
        func fetch(_ number: some BinaryInteger) -> UnsafeMutableRawPointer? {
            var id = ss_extension_guid(Int32(number))
            var function: UnsafeMutableRawPointer?
            var returned = 0
            var error: Int32 = 0
            let result = table.pointee.calls.lpWSPIoctl(
                probe, UInt32(SIO_GET_EXTENSION_FUNCTION_POINTER), &id, MemoryLayout<GUID>.size, &function, 8, &returned, &error)
            return result == 0 ? function : nil
        }
        let (register, deregister, write, read, allocate, map) = (
            fetch(ss_extension_register_rdma_memory), fetch(ss_extension_deregister_rdma_memory),
            fetch(ss_extension_rdma_write), fetch(ss_extension_rdma_read),
            fetch(ss_extension_allocate_rdma_memory), fetch(ss_extension_map_rdma_memory)
        )
        table.pointee.registerRdmaMemory = unsafeBitCast(register, to: LPFN_WSPREGISTERRDMAMEMORY?.self)
        table.pointee.deregisterRdmaMemory = unsafeBitCast(deregister, to: LPFN_WSPDEREGISTERRDMAMEMORY?.self)
        table.pointee.rdmaWrite = unsafeBitCast(write, to: LPFN_WSPRDMAWRITE?.self)
        table.pointee.rdmaRead = unsafeBitCast(read, to: LPFN_WSPRDMAREAD?.self)
        table.pointee.allocateRdmaMemory = unsafeBitCast(allocate, to: LPFN_WSPALLOCATERDMAMEMORY?.self)
        table.pointee.mapRdmaMemory = unsafeBitCast(map, to: LPFN_WSPMAPRDMAMEMORY?.self)
        close(probe)
    }

    package func socket(_ family: Int32) -> SOCKET {
        var error: Int32 = 0
        return table.pointee.calls.lpWSPSocket(family, 1, 6, &table.pointee.info, 0, 0, &error)
    }

    package func close(_ companion: SOCKET) {
        var error: Int32 = 0
        _ = table.pointee.calls.lpWSPCloseSocket(companion, &error)
    }

    /// Maps memory: windows are written by plain stores.
    package static let sharedMemory = LoadedProvider(sharedMemoryStartupEx, pairUp: { sharedMemoryProviderPairLocally($0, $1) })
    package static let sharedMemoryOfTwoUsers = LoadedProvider(
        sharedMemoryStartupEx, pairUp: { sharedMemoryProviderPairLocally($0, $1, doorbells: DoorbellKind.socketPair) })
    /// Cannot map memory: see `TestFabric`.
    package static let remoteWrites = LoadedProvider(testProviderStartupEx, pairUp: testProviderPair)
}

/// Socket handles that providers asked for and gave back: must balance (WSD-X2).
package enum UpCalls {
    package static let created = Atomic<Int>(0)
    package static let closed = Atomic<Int>(0)
    package static var open: Int { created.load(ordering: .relaxed) - closed.load(ordering: .relaxed) }
}
