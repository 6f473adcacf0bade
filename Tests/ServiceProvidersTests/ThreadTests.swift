import CSocketSwitch
import Dispatch
import Glibc
import ServiceProviders
import SocketTable
import Synchronization
import Testing

private let handles = Atomic<Int>(0)
private let openHandles = Atomic<Int>(0)

extension ServiceProviders {
    @Suite struct Threads {
        @Test("threads that make, pair and close companions at once never share one, and nothing is left")
        func makeAndClose() {
            var upCalls = WSPUPCALLTABLE()
            upCalls.lpWPUCreateSocketHandle = { _, _, _ in
                openHandles.add(1, ordering: .relaxed)
                return SOCKET(handles.add(1, ordering: .relaxed).newValue)
            }
            upCalls.lpWPUCloseSocketHandle = { _, _ in
                openHandles.subtract(1, ordering: .relaxed)
                return 0
            }
            var calls = WSPPROC_TABLE()
            #expect(sharedMemoryStartupEx(UInt32(SOCKSWITCH_SPI_VERSION), nil, &upCalls, &calls) == 0)
            let descriptorsBefore = ownDescriptorCount
            let table = calls
            let wrong = Atomic<Int>(0)
            DispatchQueue.concurrentPerform(iterations: 4) { thread in
                var error: Int32 = 0
                func check(_ isRight: Bool) { if !isRight { wrong.add(1, ordering: .relaxed) } }
                for round in 0..<500 {
                    let sockets = (0..<4).map { _ in table.lpWSPSocket(AF_INET, 1, 6, nil, 0, 0, &error) }
                    for (number, socket) in sockets.enumerated() {
                        // Somebody else's record would be bound already.
                        let address = SocketAddress.loopback(UInt16(1 + thread * 4 + number))
                        check(address.withPointer { table.lpWSPBind(socket, $0, $1, &error) } == 0)
                    }
                    if round % 10 == 0 {
                        check(sharedMemoryProviderPairLocally(sockets[0], sockets[1]) == 0)
                        var byte = UInt8(truncatingIfNeeded: round)
                        var buffer = WSABUF(len: 1, buf: nil)
                        var target = [UInt8](repeating: 0, count: 256)
                        var count = 0
                        withUnsafeMutableBytes(of: &byte) {
                            buffer.buf = $0.baseAddress
                            check(table.lpWSPSend(sockets[0], &buffer, 1, nil, 0, nil, &error) == 0)
                        }
                        target.withUnsafeMutableBytes {
                            buffer = WSABUF(len: 256, buf: $0.baseAddress)
                            check(table.lpWSPRecv(sockets[1], &buffer, 1, &count, nil, nil, &error) == 0)
                        }
                        check(count == 1 && target[0] == UInt8(truncatingIfNeeded: round))
                    }
                    for socket in sockets { check(table.lpWSPCloseSocket(socket, &error) == 0) }
                    for socket in sockets { check(table.lpWSPCloseSocket(socket, &error) == -1 && error == ENOTSOCK) }
                }
            }
            #expect(wrong.load(ordering: .relaxed) == 0)
            #expect(openHandles.load(ordering: .relaxed) == 0)
            #expect(ownDescriptorCount == descriptorsBefore)
            var error: Int32 = 0
            #expect(table.lpWSPCleanup(&error) == 0)
        }
    }
}
