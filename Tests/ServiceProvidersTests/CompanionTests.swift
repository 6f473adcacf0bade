import CSocketSwitch
import Glibc
import Rendezvous
import ServiceProviders
import SocketTable
import Testing

extension ServiceProviders {
    /// One companion, and two connected ones, without a service.
    @Suite struct Companions {
        let provider = SharedMemory()

        @Test("a socket is known by its descriptor until it is closed, and up-calls balance (WSD-C5, X2)")
        func lifecycle() {
            let first = provider.socket()
            #expect(UpCalls.contexts.values.contains(first))
            #expect(provider.close(first) == .done)
            #expect(provider.close(first) == .failed(ENOTSOCK))
            let second = provider.socket()
            #expect(second != first)
            #expect(provider.bind(first, .loopback(1)) == .failed(ENOTSOCK))
            for nonsense: SOCKET in [0, 1 << 16, 40000, .max, .max - 1, second | 1 << 50] {
                #expect(provider.listen(nonsense) == .failed(ENOTSOCK))
            }
            provider.end()
        }

        @Test("the switch's refusal of a handle ends the socket (WSD-C10)")
        func handleRefused() {
            UpCalls.createError = EMFILE
            var error: Int32 = 0
            #expect(provider.calls.lpWSPSocket(AF_INET, 1, 6, nil, 0, 0, &error) == SOCKET.max)
            #expect(error == EMFILE)
            provider.end()
        }

        @Test("only streams over IPv4 and IPv6 (WSD-C2)")
        func otherSockets() {
            var error: Int32 = 0
            #expect(provider.calls.lpWSPSocket(AF_UNIX, 1, 0, nil, 0, 0, &error) == SOCKET.max)
            #expect(error == EAFNOSUPPORT)
            #expect(provider.calls.lpWSPSocket(AF_INET, 3, 0, nil, 0, 0, &error) == SOCKET.max)
            #expect(error == ESOCKTNOSUPPORT)
            #expect(provider.calls.lpWSPSocket(AF_INET6, 2, 0, nil, 0, 0, &error) == SOCKET.max)
            #expect(error == ESOCKTNOSUPPORT)
            provider.end()
        }

        @Test("calls in a state that does not allow them fail and change nothing")
        func wrongState() {
            let socket = provider.socket()
            #expect(provider.listen(socket) == .failed(EINVAL))
            #expect(provider.connect(socket, .loopback(1)) == .failed(EINVAL))
            #expect(provider.ring(socket) == .failed(ENOTCONN))
            #expect(provider.silence(socket) == .failed(ENOTCONN))
            #expect(provider.bind(socket, SocketAddress(bytes: [1, 0, 0, 0, 0, 0, 0, 0])) == .failed(EINVAL))
            #expect(provider.bind(socket, .ipv6Loopback(0)) == .done)
            #expect(provider.bind(socket, .loopback(2)) == .failed(EINVAL))
            #expect(provider.listen(socket) == .failed(EINVAL))  // port 0
            #expect(provider.connect(socket, .loopback(1)) == .failed(EINVAL))  // no base socket
            #expect(provider.ioctl(socket, Int(SIO_SOCKSWITCH_BASE_SOCKET), input: Int32(3)) == .failed(EINVAL))
            #expect(provider.ioctl(socket, Int(SIO_SOCKSWITCH_BASE_SOCKET), input: SOCKSWITCH_OFFER(BaseSocket: 3, Flags: 0, Cookie: 40000)) == .failed(EINVAL))
            provider.end()
        }

        @Test("options: replayed ones are taken, those that TCP alone can serve are not (WSD-C9, T5)")
        func options() {
            let socket = provider.socket()
            var error: Int32 = 0
            var value: Int32 = 1
            for (level, name) in [(SOL_SOCKET, SO_KEEPALIVE), (Int32(IPPROTO_TCP), TCP_NODELAY), (Int32(IPPROTO_IPV6), 26)] {
                #expect(provider.calls.lpWSPSetSockOpt(socket, level, name, &value, 4, &error) == 0)
            }
            for (level, name, expected) in [
                (SOL_SOCKET, SO_ATTACH_FILTER, EOPNOTSUPP), (Int32(IPPROTO_TCP), TCP_ULP, EOPNOTSUPP),
                (SOL_SOCKET, Int32(SO_MAX_MSG_SIZE), ENOPROTOOPT), (Int32(132), Int32(1), ENOPROTOOPT),
            ] {
                #expect(provider.calls.lpWSPSetSockOpt(socket, level, name, &value, 4, &error) == -1)
                #expect(error == expected)
            }
            var length: socklen_t = 4
            #expect(provider.calls.lpWSPGetSockOpt(socket, SOL_SOCKET, Int32(SO_MAX_MSG_SIZE), &value, &length, &error) == 0)
            #expect(value == 256 && length == 4)
            #expect(provider.calls.lpWSPGetSockOpt(socket, SOL_SOCKET, Int32(SO_MAX_RDMA_SIZE), &value, &length, &error) == 0)
            #expect(value == Int32(Segment.windowBytes))
            provider.end()
        }

        @Test("messages: one at a time in each direction, in order, whole, early ones kept (WSD-N4)")
        func messages() {
            let (a, b) = provider.pair()
            #expect(provider.receive(b) == (.failed(EAGAIN), []))
            #expect(provider.send(a, [[1, 2], [], [3]]) == .done)
            #expect(provider.send(a, [[9]]) == .failed(EAGAIN))
            #expect(provider.send(b, [[7]]) == .done)
            #expect(provider.receive(b) == (.done, [1, 2, 3]))
            #expect(provider.receive(b) == (.failed(EAGAIN), []))
            let full = (0..<256).map { UInt8($0) }
            #expect(provider.send(a, [full]) == .done)
            #expect(provider.receive(b) == (.done, full))
            #expect(provider.receive(a) == (.done, [7]))
            #expect(provider.send(a, [full, [1]]) == .failed(EMSGSIZE))
            #expect(provider.receive(b, room: 255).0 == .failed(EMSGSIZE))
            provider.end()
        }

        @Test("a receive that waits is completed by polling, or by the close (WSD-T7, X2)", arguments: [UInt(0), 1])
        func overlapped(event: UInt) {
            let (a, b) = provider.pair()
            let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 256, alignment: 8)
            let operation = UnsafeMutablePointer<WSAOVERLAPPED>.allocate(capacity: 1)
            defer {
                bytes.deallocate()
                operation.deallocate()
            }
            operation.initialize(to: WSAOVERLAPPED())
            operation.pointee.hEvent = event
            var buffer = WSABUF(len: 256, buf: bytes.baseAddress)
            var count = 0
            var flags: UInt32 = 0
            var error: Int32 = 0
            func post() { #expect(provider.calls.lpWSPRecv(b, &buffer, 1, &count, &flags, operation, &error) == -1 && error == EINPROGRESS) }
            func poll() -> Bool { provider.calls.lpWSPGetOverlappedResult(b, operation, &count, 0, &flags, &error) != 0 }
            post()
            #expect(!poll() && error == EINPROGRESS)
            #expect(provider.send(a, [[5, 6]]) == .done)
            #expect(poll() && count == 2)
            #expect(bytes[0] == 5 && bytes[1] == 6)
            #expect(UpCalls.completions.count == (event == 1 ? 0 : 1))
            #expect(poll() && count == 2)  // a completed operation stays completed
            post()
            #expect(provider.close(b) == .done)
            #expect(operation.pointee.Internal == 1 && operation.pointee.Error == ECANCELED)
            #expect(UpCalls.completions.count == (event == 1 ? 0 : 2))
            provider.end()
        }

        @Test("doorbells: a ring is readable at the peer until it is silenced", arguments: [DoorbellKind.events, DoorbellKind.socketPair])
        func doorbells(kind: UInt32) {
            let (a, b) = provider.pair(doorbells: kind)
            func isReadable(_ socket: SOCKET) -> Bool {
                var entry = pollfd(fd: provider.notification(socket), events: Int16(POLLIN), revents: 0)
                return poll(&entry, 1, 0) == 1
            }
            #expect(!isReadable(a) && !isReadable(b))
            #expect(provider.ring(a) == .done)
            #expect(provider.ring(a) == .done)
            #expect(isReadable(b) && !isReadable(a))
            #expect(provider.silence(b) == .done)
            #expect(provider.silence(b) == .failed(EAGAIN))
            #expect(!isReadable(b))
            #expect(provider.ring(a, flags: Int(SOCKSWITCH_SEND_WAKES_SELF)) == .done)
            #expect(isReadable(a) && !isReadable(b))
            #expect(provider.silence(a) == .done)
            #expect(!isReadable(a) && !isReadable(b))
            provider.end()
        }

        @Test("each ring is an edge, also of a doorbell that nobody silences", arguments: [DoorbellKind.events, DoorbellKind.socketPair])
        func edges(kind: UInt32) {
            let (a, b) = provider.pair(doorbells: kind)
            let set = epoll_create1(0)
            var event = epoll_event(events: EPOLLIN.rawValue | EPOLLET.rawValue, data: epoll_data_t(fd: 7))
            #expect(epoll_ctl(set, EPOLL_CTL_ADD, provider.notification(b), &event) == 0)
            var missed = 0
            for round in 0..<5_000 {
                #expect(provider.ring(round % 2 == 0 ? a : b, flags: round % 2 == 0 ? 0 : Int(SOCKSWITCH_SEND_WAKES_SELF)) == .done)
                if epoll_wait(set, &event, 1, 0) != 1 { missed += 1 }
            }
            #expect(missed == 0)
            close(set)
            provider.end()
        }

        @Test("between users: whatever an end does to the doorbells, neither ring nor silence waits")
        func hostileEnd() {
            let (a, b) = provider.pair(doorbells: DoorbellKind.socketPair)
            // Both ends hold both descriptors; this is what the peer may do to them.
            for socket in [a, b] { #expect(fcntl(provider.notification(socket), F_SETFL, 0) == 0) }
            #expect(provider.silence(a) == .failed(EAGAIN) && provider.silence(b) == .failed(EAGAIN))
            let junk = [UInt8](repeating: 1, count: 4096)
            for socket in [a, b] {
                while send(provider.notification(socket), junk, junk.count, Int32(MSG_DONTWAIT)) > 0 {}
                while send(provider.notification(socket), junk, 1, Int32(MSG_DONTWAIT)) > 0 {}
            }
            for socket in [a, b] {
                for flags in [0, Int(SOCKSWITCH_SEND_WAKES_SELF)] {
                    for _ in 0..<10 { #expect(provider.ring(socket, flags: flags) == .done) }
                }
            }
            shutdown(provider.notification(a), Int32(SHUT_RDWR))
            for socket in [a, b] {
                _ = provider.ring(socket)
                _ = provider.silence(socket)
            }
            provider.end()
        }

        @Test("windows: only the own one can be exposed, only the peer's exposed one is reached, within its bounds (WSD-M2, M3)")
        func windows() throws {
            let (a, b) = provider.pair()
            let allocate = try #require(provider.extensionFunction(a, ss_extension_allocate_rdma_memory, as: LPFN_WSPALLOCATERDMAMEMORY.self))
            let expose = try #require(provider.extensionFunction(a, ss_extension_register_rdma_memory, as: LPFN_WSPREGISTERRDMAMEMORY.self))
            let map = try #require(provider.extensionFunction(a, ss_extension_map_rdma_memory, as: LPFN_WSPMAPRDMAMEMORY.self))
            let write = try #require(provider.extensionFunction(a, ss_extension_rdma_write, as: LPFN_WSPRDMAWRITE.self))
            var error: Int32 = 0
            let mine = try #require(allocate(b, Segment.windowBytes, &error))
            #expect(allocate(b, Segment.windowBytes + 1, &error) == nil && error == ENOBUFS)

            var descriptor = SOCKSWITCH_RDMA_DESCRIPTOR()
            #expect(expose(b, mine + 1, 4096, UInt32(MEM_WRITE), &descriptor, &error) == -1 && error == EINVAL)
            #expect(expose(b, mine, Segment.windowBytes + 1, UInt32(MEM_WRITE), &descriptor, &error) == -1)
            #expect(expose(b, mine, 4096, 0, &descriptor, &error) == -1)
            #expect(expose(b, mine, 4096, UInt32(MEM_WRITE), &descriptor, &error) == 0)

            let seen = try #require(map(a, &descriptor, 4096, &error))
            #expect(map(a, &descriptor, 4097, &error) == nil && error == EINVAL)
            #expect(map(b, &descriptor, 4096, &error) == nil)  // my own is not the peer's
            seen.storeBytes(of: 0x1234_5678, as: UInt32.self)
            #expect(mine.load(as: UInt32.self) == 0x1234_5678)

            var payload: [UInt8] = [1, 2, 3, 4]
            func put(_ offset: Int, _ target: inout SOCKSWITCH_RDMA_DESCRIPTOR) -> Outcome {
                payload.withUnsafeMutableBytes {
                    var buffer = WSABUF(len: 4, buf: $0.baseAddress)
                    var written = 0
                    var error: Int32 = 0
                    return write(a, &buffer, 1, &target, offset, &written, 0, nil, &error) == 0 ? .done : .failed(error)
                }
            }
            #expect(put(4092, &descriptor) == .done)
            #expect(mine.load(fromByteOffset: 4092, as: UInt32.self) == 0x0403_0201)
            for offset in [4093, 4096, Int.max, -1, Int.min] { #expect(put(offset, &descriptor) == .failed(EINVAL)) }
            // Nonsense from the peer: another magic, the wrong side, a length beyond the window.
            for (at, value) in [(0, UInt8(0)), (4, 7), (15, 0x80)] {
                var forged = descriptor
                withUnsafeMutableBytes(of: &forged) { $0[at] = value }
                #expect(put(0, &forged) == .failed(EINVAL))
            }
            provider.end()
        }

        @Test("extensions that there are not are refused by name (WSD-I4)")
        func missingExtensions() {
            let socket = provider.socket()
            for number in [0, ss_extension_rdma_read, ss_extension_cache_callback] {
                #expect(provider.extensionFunction(socket, Int(number), as: LPFN_WSPRDMAREAD.self) == nil)
            }
            provider.end()
        }

        @Test("a peer that gives up before it has read anything is seen as a refusal")
        func givenUp() {
            let (a, b) = provider.pair()
            #expect(provider.send(a, [[1]]) == .done)
            #expect(provider.close(a) == .done)
            #expect(provider.receive(b).0 == .failed(ECONNREFUSED))
            provider.end()
        }

        @Test("hostile mailboxes: no length and no count makes the provider read beyond a message")
        func hostileMailbox() throws {
            for (count, length, expected) in [
                (UInt64(1), UInt64(257), EPROTO), (1, 0, EPROTO), (1, 1 << 63, EPROTO), (2, 4, EPROTO), (.max, 4, EPROTO),
                (1, .max, ECONNREFUSED), (1, 256, 0),
            ] {
                let (a, b) = provider.pair()
                let map = try #require(provider.extensionFunction(a, ss_extension_allocate_rdma_memory, as: LPFN_WSPALLOCATERDMAMEMORY.self))
                var error: Int32 = 0
                // The segment begins one page before window 0; side 1's mailbox lies in its second half.
                let segment = try #require(map(a, 4096, &error)) - 4096
                let mailbox = segment + Segment.mailboxOffset(side: 1)
                mailbox.storeBytes(of: length, toByteOffset: Segment.mailboxLengthOffset, as: UInt64.self)
                mailbox.storeBytes(of: count, as: UInt64.self)
                // The peer claims to have read what was never sent.
                mailbox.storeBytes(of: UInt64.max, toByteOffset: Segment.mailboxReadOffset, as: UInt64.self)
                #expect(provider.receive(a).0.error == expected)
                #expect(provider.send(a, [[1]]) == .done)
                #expect(provider.send(a, [[1]]) == .failed(EAGAIN))
                #expect(provider.close(a) == .done)
                #expect(provider.close(b) == .done)
            }
            provider.end()
        }
    }
}

/// The reasons of the C interface are those of the switch.
@Test func reasonNumbersAgree() {
    #expect(Int(SOCKSWITCH_REASON_NONE) == Int(Reason.none.rawValue))
    #expect(Int(SOCKSWITCH_REASON_PEER_NOT_SWITCHED) == Int(Reason.peerNotSwitched.rawValue))
    #expect(Int(SOCKSWITCH_REASON_COMPANION_FAILED) == Int(Reason.companionFailed.rawValue))
    #expect(Int(SOCKSWITCH_REASON_PEER_POLICY) == Int(Reason.peerPolicy.rawValue))
}
