import CSocketSwitch
import ControlPlane
import Glibc
import OwnProcess
import Rendezvous
import ServiceCore
import SocketTable
import StreamRing
import Testing

@Suite("Hostile clients", .serialized, .ownProcess) struct HostileClientTests {
    private func wellFormed(_ kind: UInt32) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Message.bytes)
        bytes.withUnsafeMutableBytes { Message($0.baseAddress!).clear(kind: kind) }
        return bytes
    }

    @Test("Packets that are not messages end the connection")
    func garbage() throws {
        let test = try ServiceUnderTest()
        var other = wellFormed(MessageKind.hello)
        other[0] ^= 1
        for bytes in [[1], [UInt8](repeating: 0, count: 128), other, wellFormed(MessageKind.hello) + [0], wellFormed(99),
            wellFormed(MessageKind.hello), wellFormed(MessageKind.announce), wellFormed(MessageKind.listen),
            wellFormed(MessageKind.paired), [UInt8](repeating: 7, count: 5000)]
        {
            let client = try test.connect()
            client.sendRaw(bytes)
            test.settle()
            #expect(!client.isConnected)
        }
        #expect(test.service.status.clients == 0 && test.service.status.totals.dismissed == 10)
    }

    @Test("Random packets with random descriptors", arguments: [1, 2] as [UInt64])
    func randomPackets(seed: UInt64) throws {
        let test = try ServiceUnderTest { $0.maximumAnnouncementsPerClient = 8 }
        var state = seed
        func next(_ bound: UInt64) -> UInt64 {
            state = state &* 6364136223846793005 &+ 1442695040888963407
            return (state >> 33) % bound
        }
        let arena = try TestArena()
        let tcp = try Connection()
        let candidates = [arena.descriptor, tcp.connector, tcp.acceptor]
        var client = try test.connect()
        for _ in 0..<3000 {
            if !client.isConnected || next(50) == 0 { client = try test.connect() }
            var bytes = wellFormed(UInt32(next(11)))
            for _ in 0..<next(12) { bytes[8 + Int(next(120))] = UInt8(next(256)) }
            let descriptors = (0..<Int(next(3))).map { _ in candidates[Int(next(3))] }
            _ = bytes.withUnsafeBytes { Packet.send($0, descriptors: descriptors, on: client.socket.raw) }
            test.service.turn(maximumMilliseconds: 0)
        }
        // It still works.
        let one = try test.connectSwitched()
        one.announce(tcp.acceptor, slot: 1, role: Role.acceptor)
        one.announce(tcp.connector, slot: 2, role: Role.connector)
        test.settle()
        #expect(one.receive()?.kind == MessageKind.paired)
    }

    @Test("An arena must be sealed memory of the right size with an arena in it")
    func arenas() throws {
        let test = try ServiceUnderTest()
        let wrong = [
            try TestArena.memory(bytes: FamilyArena.bytes, seals: 0),
            try TestArena.memory(bytes: FamilyArena.bytes, seals: Int(ss_seal_fixed_size) & ~2),
            try TestArena.memory(bytes: FamilyArena.bytes + 4096, seals: Int(ss_seal_fixed_size)),
            try TestArena.memory(bytes: FamilyArena.bytes, seals: Int(ss_seal_fixed_size)),
            try TestArena.memory(bytes: FamilyArena.bytes, seals: Int(ss_seal_fixed_size) | 8),
            try Connection().connector,
            Descriptor(open("/dev/zero", O_RDWR | O_CLOEXEC)),
        ]
        for descriptor in wrong {
            let client = try test.connect()
            client.send(MessageKind.hello, [descriptor])
            test.settle()
            #expect(!client.isConnected)
        }
        let client = try test.connect()
        client.send(MessageKind.hello, [try TestArena().descriptor]) { $0.process = UInt32(FamilyArena.processCount) }
        test.settle()
        #expect(!client.isConnected)
        #expect(test.service.status.families == 0)
    }

    @Test("A second hello ends the connection; the family goes with its last process")
    func secondHello() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let sibling = try test.connect()
        sibling.send(MessageKind.hello, [client.arena.descriptor]) { $0.process = 1 }
        test.settle()
        #expect(test.service.status.families == 1)
        client.send(MessageKind.hello, [client.arena.descriptor])
        test.settle()
        #expect(!client.isConnected && sibling.isConnected)
        #expect(test.service.status.families == 1)
    }

    @Test("What is announced must be a connected TCP socket")
    func wrongSockets() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let udp = try Descriptor.checked(ss_sys_socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0), "socket")
        let fresh = try Descriptor.checked(ss_sys_socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0), "socket")
        for descriptor in [udp, client.socket, client.arena.descriptor] {
            client.announce(descriptor, slot: 1, role: Role.acceptor)
            test.settle()
            #expect(client.receive()?.reason == .unsupportedOption)
        }
        client.announce(fresh, slot: 1, role: Role.acceptor)
        test.settle()
        #expect(client.receive()?.reason == .peerEnded)
        let tcp = try Connection()
        client.announce(tcp.acceptor, slot: UInt64(FamilyArena.slotCount), role: Role.acceptor)
        test.settle()
        #expect(!client.isConnected)
    }

    @Test("A socket whose close waits for its peer (SO_LINGER) keeps nobody waiting")
    func lingers() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        var tcp: Connection? = try Connection()
        let peer = tcp!.connector  // reads nothing
        var value = linger(l_onoff: 1, l_linger: 20)
        setsockopt(tcp!.acceptor.raw, SOL_SOCKET, SO_LINGER, &value, socklen_t(MemoryLayout<linger>.size))
        let bytes = [UInt8](repeating: 0, count: 65536)
        while send(tcp!.acceptor.raw, bytes, bytes.count, Int32(MSG_DONTWAIT)) > 0 {}
        client.announce(tcp!.acceptor, slot: 1, role: Role.acceptor)
        tcp = nil
        let start = ss_monotonic_ns()
        test.settle()
        #expect(ss_monotonic_ns() - start < 5_000_000_000)
        #expect(test.service.status.announcements == 1)
        withExtendedLifetime(peer) {}
    }

    @Test("More descriptors than a message has are closed, and nothing leaks")
    func tooManyDescriptors() throws {
        let test = try ServiceUnderTest()
        let many = try (0..<100).map { _ in try Descriptor.checked(ss_sys_eventfd(0, 0), "eventfd") }
        func openCount() -> Int {
            (0..<1024).filter { fcntl(Int32($0), F_GETFD) >= 0 }.count
        }
        let before = openCount()
        for count in [2, 4, 5, 100] {
            let client = try test.connect()
            var ends = wellFormed(MessageKind.hello)
            // One control record with `count` descriptors, by hand: Packet.send refuses so many.
            var control = [UInt8](repeating: 0, count: (16 + 4 * count + 7) & ~7)
            control.withUnsafeMutableBytes {
                $0.storeBytes(of: 16 + 4 * count, as: Int.self)
                $0.storeBytes(of: Int32(SOL_SOCKET), toByteOffset: 8, as: Int32.self)
                $0.storeBytes(of: Int32(1), toByteOffset: 12, as: Int32.self)
                for index in 0..<count { $0.storeBytes(of: many[index].raw, toByteOffset: 16 + 4 * index, as: Int32.self) }
            }
            let length = ends.count
            let sent = ends.withUnsafeMutableBytes { bytes in
                control.withUnsafeMutableBytes { control in
                    var piece = iovec(iov_base: bytes.baseAddress, iov_len: length)
                    return withUnsafeMutablePointer(to: &piece) { piece in
                        var message = msghdr()
                        message.msg_iov = piece
                        message.msg_iovlen = 1
                        message.msg_control = control.baseAddress
                        message.msg_controllen = control.count
                        return ss_sys_sendmsg(client.socket.raw, &message, 0)
                    }
                }
            }
            #expect(sent == length)
            test.settle()
            #expect(!client.isConnected)
        }
        #expect(openCount() == before)
    }

    @Test("Announcements of one client are bounded")
    func manyAnnouncements() throws {
        let test = try ServiceUnderTest { $0.maximumAnnouncementsPerClient = 3 }
        let client = try test.connectSwitched()
        var connections: [Connection] = []
        for slot in 1...5 {
            connections.append(try Connection())
            client.announce(connections.last!.acceptor, slot: UInt64(slot), role: Role.acceptor)
        }
        test.settle()
        #expect(test.service.status.announcements == 3)
        #expect(client.receive()?.slot == 4)
        #expect(client.receive()?.slot == 5)
        #expect(client.receive() == nil)
    }

    @Test("A client that does not read is not read from, then disconnected; others are served")
    func doesNotRead() throws {
        let test = try ServiceUnderTest { $0.queueBound = 16 }
        let deaf = try test.connectSwitched()
        let tcp = try Connection()
        var sent = 0
        while sent < 5000 {
            var bytes = wellFormed(MessageKind.announce)
            bytes.withUnsafeMutableBytes {
                let message = Message($0.baseAddress!)
                message.slot = 1
                message.role = Role.connector
            }
            let result = bytes.withUnsafeBytes { Packet.send($0, descriptors: [tcp.connector], on: deaf.socket.raw) }
            test.service.turn(maximumMilliseconds: 0)
            if result == -Int(EAGAIN) { break }
            sent += 1
        }
        #expect(sent < 5000)
        let other = try test.connectSwitched()
        other.announce(tcp.connector, slot: 1, role: Role.connector)
        test.settle()
        #expect(other.receive()?.kind == MessageKind.refused)
        for _ in 0..<20 { test.advance(milliseconds: 1001) }
        #expect(test.service.status.clients == 1)
        #expect(test.service.status.totals.dismissed == 1)
    }

    @Test("A client that does not read and then goes is forgotten at once")
    func deafAndGone() throws {
        let test = try ServiceUnderTest { $0.queueBound = 16 }
        var deaf: TestClient? = try test.connectSwitched()
        let tcp = try Connection()
        while true {
            var bytes = wellFormed(MessageKind.announce)
            bytes.withUnsafeMutableBytes { Message($0.baseAddress!).slot = 1 }
            let result = bytes.withUnsafeBytes { Packet.send($0, descriptors: [tcp.connector], on: deaf!.socket.raw) }
            test.service.turn(maximumMilliseconds: 0)
            if result == -Int(EAGAIN) { break }
        }
        deaf = nil
        test.settle()
        #expect(test.service.status.clients == 0)
    }

    @Test("A reader that wakes up again gets everything that was waiting")
    func readsLate() throws {
        let test = try ServiceUnderTest { $0.queueBound = 1000 }
        let client = try test.connectSwitched()
        let tcp = try Connection()
        for slot in 1...600 {
            client.announce(tcp.connector, slot: UInt64(slot), role: Role.connector)
            test.settle()
        }
        var answered = 0
        while answered < 600 {
            guard let answer = client.receive() else {
                let before = answered
                test.settle()
                guard let next = client.receive() else {
                    Issue.record("stuck after \(before)")
                    return
                }
                answered += 1
                #expect(next.slot == UInt64(answered))
                continue
            }
            answered += 1
            #expect(answer.slot == UInt64(answered))
        }
        #expect(client.arena.mailbox == 600)
    }

    @Test("Short of descriptors, both ends are told")
    func descriptorLimit() throws {
        let test = try ServiceUnderTest { $0.descriptorLimit = 20 }
        let both = try test.connectSwitched()
        let tcp = try Connection()
        let filler = try (0..<20).map { _ in try Descriptor.checked(ss_sys_eventfd(0, 0), "eventfd") }
        both.announce(tcp.acceptor, slot: 1, role: Role.acceptor)
        both.announce(tcp.connector, slot: 2, role: Role.connector)
        test.settle()
        #expect(both.receive()?.reason == .descriptorLimit)
        #expect(both.receive()?.reason == .descriptorLimit)
        _ = filler
    }

    @Test("An arena full of nonsense does not disturb the statistics")
    func nonsense() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let base = client.arena.arena.base
        var state: UInt64 = 42
        for offset in stride(from: 64, to: FamilyArena.slotsOffset + 4096 * 16, by: 8) {
            state = state &* 6364136223846793005 &+ 1442695040888963407
            base.storeBytes(of: state, toByteOffset: offset, as: UInt64.self)
        }
        // Entries that are live, so that their bitmaps are read.
        for process in 0..<8 { client.arena.arena.process(process).state.store(ProcessEntry.live) }
        for slot in 1..<64 { client.arena.arena.slot(slot).kind.store(UInt64(slot % 7)) }
        let reports = test.service.socketReports()
        #expect(!encodeJSON(reports).isEmpty)
    }
}
