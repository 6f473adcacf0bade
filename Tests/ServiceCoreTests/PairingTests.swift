import CSocketSwitch
import ControlPlane
import Glibc
import Rendezvous
import ServiceCore
import SocketTable
import StreamRing
import Testing

@Suite("Pairing") struct PairingTests {
    @Test("Both ends get the same sealed segment and each other's doorbell", arguments: [true, false])
    func pairs(acceptorFirst: Bool) throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        server.listen("127.0.0.1", port: tcp.port)
        test.settle()
        if acceptorFirst { server.announce(tcp.acceptor, slot: 3, generation: 7, role: Role.acceptor) }
        test.settle()
        client.announce(tcp.connector, slot: 5, generation: 9, role: Role.connector)
        test.settle()
        if !acceptorFirst { server.announce(tcp.acceptor, slot: 3, generation: 7, role: Role.acceptor) }
        test.settle()

        let one = try #require(client.receive())
        let other = try #require(server.receive())
        #expect(one.kind == MessageKind.paired && one.slot == 5 && one.generation == 9 && one.role == 0)
        #expect(other.kind == MessageKind.paired && other.slot == 3 && other.generation == 7 && other.role == 1)
        #expect(client.arena.mailbox == 1 && server.arena.mailbox == 1)
        #expect(one.descriptors.count == 3 && other.descriptors.count == 3)

        var first = stat()
        var second = stat()
        #expect(fstat(one.descriptors[0].raw, &first) == 0 && fstat(other.descriptors[0].raw, &second) == 0)
        #expect(first.st_ino == second.st_ino && first.st_size == Segment.bytes)
        let seals = ss_sys_fcntl(one.descriptors[0].raw, ss_f_get_seals, 0)
        #expect(seals & Int(ss_seal_fixed_size) == Int(ss_seal_fixed_size))

        // My doorbell is the peer's "peer's doorbell", both ways.
        var ring: UInt64 = 5
        #expect(ss_sys_write(one.descriptors[2].raw, &ring, 8) == 8)
        var heard: UInt64 = 0
        #expect(ss_sys_read(one.descriptors[1].raw, &heard, 8) == -Int(EAGAIN))
        #expect(ss_sys_read(other.descriptors[1].raw, &heard, 8) == 8 && heard == 5)
        #expect(ss_sys_write(other.descriptors[2].raw, &ring, 8) == 8)
        #expect(ss_sys_read(one.descriptors[1].raw, &heard, 8) == 8)
        #expect(test.service.status.announcements == 0)
    }

    @Test("Ends that were paired and have not noticed yet do not wait for each other's announcement")
    func pairedUnnoticed() throws {
        let test = try ServiceUnderTest()
        let both = try test.connectSwitched()
        let tcp = try Connection()
        let arena = both.arena.arena
        func slot(_ socket: Descriptor) -> Int {
            let index = arena.allocateSlot(process: both.arena.process)
            let slot = arena.slot(index)
            slot.kind.store(Slot.Kind.connected)
            slot.attempts.store(1)
            slot.reason.store(Reason.waitingForPeer.rawValue)
            var storage = [UInt8](repeating: 0, count: 28)
            var length = UInt32(28)
            #expect(ss_sys_getsockname(socket.raw, &storage, &length) == 0)
            slot.localAddress.set(storage, length: Int(length))
            length = 28
            #expect(ss_sys_getpeername(socket.raw, &storage, &length) == 0)
            slot.peerAddress.set(storage, length: Int(length))
            return index
        }
        let ends = [slot(tcp.acceptor), slot(tcp.connector)]
        var reasons: Set<String> { Set(test.service.socketReports().map(\.reason)) }
        #expect(reasons == ["waitingForPeer"])
        both.announce(tcp.acceptor, slot: UInt64(ends[0]), generation: arena.slot(ends[0]).generation.load(), role: Role.acceptor)
        both.announce(tcp.connector, slot: UInt64(ends[1]), generation: arena.slot(ends[1]).generation.load(), role: Role.connector)
        test.settle()
        #expect(reasons == ["negotiating"])
    }

    @Test("Both ends in one process")
    func pairsWithinOneProcess() throws {
        let test = try ServiceUnderTest()
        let both = try test.connectSwitched()
        let tcp = try Connection()
        both.announce(tcp.acceptor, slot: 1, role: Role.acceptor)
        both.announce(tcp.connector, slot: 2, role: Role.connector)
        test.settle()
        let first = try #require(both.receive())
        let second = try #require(both.receive())
        #expect(first.kind == MessageKind.paired && second.kind == MessageKind.paired)
        #expect(Set([first.slot, second.slot]) == [1, 2] && first.role != second.role)
    }

    @Test("Ends that begin anew need no listener, and are paired with whatever the other end is", arguments: [Role.rejoiner, Role.acceptor])
    func rejoins(_ other: UInt32) throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        for _ in 0..<3 {
            client.announce(tcp.connector, slot: 5, generation: 9, role: Role.rejoiner)
            test.settle()
            #expect(test.service.status.announcements == 1)
            server.announce(tcp.acceptor, slot: 3, generation: 7, role: other)
            test.settle()
            let one = try #require(client.receive())
            let two = try #require(server.receive())
            #expect(one.kind == MessageKind.paired && two.kind == MessageKind.paired && one.role != two.role)
            // The companion before this one is forgotten.
            #expect(test.service.status.pairs == 1)
        }
    }

    @Test("IPv6, and IPv4 through an IPv6 socket", arguments: [false, true])
    func pairsIPv6(mapped: Bool) throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = mapped ? try Connection(mappedConnector: true) : try Connection(family: AF_INET6)
        server.announce(tcp.acceptor, slot: 1, role: Role.acceptor)
        test.settle()
        client.announce(tcp.connector, slot: 1, role: Role.connector)
        test.settle()
        #expect(client.receive()?.kind == MessageKind.paired)
        #expect(server.receive()?.kind == MessageKind.paired)
    }

    @Test("The service does not hold the socket: its end reaches the peer at once")
    func closesTheSocket() throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        var tcp: Connection? = try Connection()
        let connector = tcp!.connector
        server.announce(tcp!.acceptor, slot: 1, role: Role.acceptor)
        tcp = nil
        test.settle()
        var byte: UInt8 = 0
        #expect(recv(connector.raw, &byte, 1, Int32(MSG_DONTWAIT)) == 0)
        #expect(test.service.status.announcements == 1)
    }

    @Test("A connector to an address where nobody switched listens is refused at once")
    func refusesUnknownDestination() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        client.announce(tcp.connector, slot: 4, generation: 2, role: Role.connector)
        test.settle()
        let answer = try #require(client.receive())
        #expect(answer.kind == MessageKind.refused && answer.slot == 4 && answer.generation == 2)
        #expect(answer.reason == .peerNotSwitched)
        #expect(client.arena.mailbox == 1)
    }

    @Test("Listeners are known by address, wildcard of either family, and until they end",
        arguments: ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
    func waitsForListener(address: String) throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        server.listen(address, port: tcp.port)
        server.listen(address, port: tcp.port)
        server.listen(address, port: tcp.port, kind: MessageKind.unlisten)
        test.settle()
        client.announce(tcp.connector, slot: 4, role: Role.connector)
        test.settle()
        #expect(client.receive() == nil)
        test.advance(milliseconds: 4999)
        #expect(client.receive() == nil)
        test.advance(milliseconds: 2)
        #expect(client.receive()?.reason == .waitingForPeer)

        server.listen(address, port: tcp.port, kind: MessageKind.unlisten)
        test.settle()
        client.announce(tcp.connector, slot: 4, role: Role.connector)
        test.settle()
        #expect(client.receive()?.reason == .peerNotSwitched)
    }

    @Test("Listeners end with their process")
    func listenerDies() throws {
        let test = try ServiceUnderTest()
        var server: TestClient? = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        server!.listen("0.0.0.0", port: tcp.port)
        test.settle()
        #expect(test.service.status.listeners == 1)
        server = nil
        test.settle()
        #expect(test.service.status.listeners == 0)
        client.announce(tcp.connector, slot: 4, role: Role.connector)
        test.settle()
        #expect(client.receive()?.reason == .peerNotSwitched)
    }

    @Test("An acceptor waits, and is refused when its time is over")
    func acceptorTimesOut() throws {
        let test = try ServiceUnderTest { $0.announcementMilliseconds = 100 }
        let server = try test.connectSwitched()
        let tcp = try Connection()
        server.announce(tcp.acceptor, slot: 4, role: Role.acceptor)
        test.settle()
        test.advance(milliseconds: 99)
        #expect(server.receive() == nil)
        test.advance(milliseconds: 2)
        #expect(server.receive()?.reason == .peerNotSwitched)
        #expect(test.service.status.announcements == 0)
    }

    @Test("A withdrawn announcement is void")
    func withdraws() throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        server.announce(tcp.acceptor, slot: 4, generation: 6, role: Role.acceptor)
        server.send(MessageKind.withdraw) {
            $0.slot = 4
            $0.generation = 6
        }
        test.settle()
        client.announce(tcp.connector, slot: 4, role: Role.connector)
        test.settle()
        #expect(server.receive() == nil)
        #expect(client.receive()?.reason == .peerNotSwitched)
    }

    @Test("Who goes, or takes its announcement back, before it knows that it was paired, does not keep the other end waiting",
        arguments: [true, false])
    func crosses(withdraws: Bool) throws {
        let test = try ServiceUnderTest()
        var server: TestClient? = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        server!.announce(tcp.acceptor, slot: 4, generation: 6, role: Role.acceptor)
        client.announce(tcp.connector, slot: 1, role: Role.connector)
        test.settle()
        let answer = try #require(client.receive())
        try #require(answer.kind == MessageKind.paired && answer.descriptors.count == 3)
        let segment = answer.descriptors[0]
        let peerMailbox = Segment.mailboxOffset(side: 1 - Int(answer.role))
        #expect(word(of: segment, at: peerMailbox) == 0)
        if withdraws {
            server!.send(MessageKind.withdraw) {
                $0.slot = 4
                $0.generation = 7
            }
            test.settle()
            #expect(word(of: segment, at: peerMailbox) == 0, "it has taken back something else")
            server!.send(MessageKind.withdraw) {
                $0.slot = 4
                $0.generation = 6
            }
        } else {
            server = nil
        }
        test.settle()
        #expect(word(of: segment, at: peerMailbox) == 1)
        #expect(word(of: segment, at: peerMailbox + Segment.mailboxLengthOffset) == Segment.rejectedLength)
        #expect(word(of: segment, at: Segment.mailboxOffset(side: Int(answer.role))) == 0, "rejected in the wrong name")
    }

    @Test("Who is gone when its announcement is read does not keep the other end waiting")
    func announcesAndGoes() throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        var client: TestClient? = try test.connectSwitched()
        let tcp = try Connection()
        server.announce(tcp.acceptor, slot: 4, role: Role.acceptor)
        test.settle()
        client!.announce(tcp.connector, slot: 1, role: Role.connector)
        client = nil
        test.settle()
        let answer = try #require(server.receive())
        try #require(answer.kind == MessageKind.paired && answer.descriptors.count == 3)
        let peerMailbox = Segment.mailboxOffset(side: 1 - Int(answer.role))
        #expect(word(of: answer.descriptors[0], at: peerMailbox) == 1)
        #expect(word(of: answer.descriptors[0], at: peerMailbox + Segment.mailboxLengthOffset) == Segment.rejectedLength)
    }

    @Test("Who has spoken is not contradicted")
    func speaks() throws {
        let test = try ServiceUnderTest()
        var server: TestClient? = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        server!.announce(tcp.acceptor, slot: 4, role: Role.acceptor)
        client.announce(tcp.connector, slot: 1, role: Role.connector)
        test.settle()
        let answer = try #require(client.receive())
        let segment = try #require(answer.descriptors.first)
        let peerMailbox = Segment.mailboxOffset(side: 1 - Int(answer.role))
        let hello: [UInt64] = [1, 128]
        #expect(hello.withUnsafeBytes { pwrite(segment.raw, $0.baseAddress!, 16, off_t(peerMailbox)) } == 16)
        server = nil
        test.settle()
        #expect(word(of: segment, at: peerMailbox + Segment.mailboxLengthOffset) == 128)
    }

    /// The word at a place of a segment.
    private func word(of segment: Descriptor, at offset: Int) -> UInt64 {
        var value: UInt64 = 0
        #expect(pread(segment.raw, &value, 8, off_t(offset)) == 8)
        return value
    }

    @Test("An announcement repeated is one announcement; from another slot it takes the first one's place")
    func repeats() throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        let child = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        server.announce(tcp.acceptor, slot: 4, role: Role.acceptor)
        server.announce(tcp.acceptor, slot: 4, role: Role.acceptor)
        test.settle()
        #expect(server.receive() == nil)
        child.announce(tcp.acceptor, slot: 4, role: Role.acceptor)
        test.settle()
        #expect(server.receive()?.kind == MessageKind.refused)
        client.announce(tcp.connector, slot: 1, role: Role.connector)
        test.settle()
        #expect(child.receive()?.kind == MessageKind.paired)
        #expect(client.receive()?.kind == MessageKind.paired)
        #expect(server.receive() == nil)
    }

    @Test("An announcement dies with its process")
    func announcerDies() throws {
        let test = try ServiceUnderTest()
        var server: TestClient? = try test.connectSwitched()
        let tcp = try Connection()
        server!.announce(tcp.acceptor, slot: 4, role: Role.acceptor)
        test.settle()
        server = nil
        test.settle()
        let client = try test.connectSwitched()
        client.announce(tcp.connector, slot: 1, role: Role.connector)
        test.settle()
        #expect(client.receive()?.reason == .peerNotSwitched)
    }

    @Test("A stale announcement is not paired with the next connection of the same addresses")
    func staleAnnouncement() throws {
        let test = try ServiceUnderTest()
        let attacker = try test.connectSwitched()
        let server = try test.connectSwitched()
        // A listener and a connection from a fixed port, ended by a reset, then once more.
        let listener = try Descriptor.checked(ss_sys_socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0), "socket")
        var address: [UInt8] = [2, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
        var length = UInt32(16)
        try SystemError.check(ss_sys_bind(listener.raw, address, 16), "bind")
        try SystemError.check(ss_sys_listen(listener.raw, 8), "listen")
        try SystemError.check(ss_sys_getsockname(listener.raw, &address, &length), "getsockname")
        func connect(from port: UInt16) throws -> (Descriptor, Descriptor, UInt16) {
            let connector = try Descriptor.checked(ss_sys_socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0), "socket")
            var on: Int32 = 1
            _ = ss_sys_setsockopt(connector.raw, SOL_SOCKET, SO_REUSEADDR, &on, 4)
            var own: [UInt8] = [2, 0, UInt8(port >> 8), UInt8(port & 255), 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
            try SystemError.check(ss_sys_bind(connector.raw, own, 16), "bind")
            try SystemError.check(ss_sys_connect(connector.raw, address, 16), "connect")
            try SystemError.check(ss_sys_getsockname(connector.raw, &own, &length), "getsockname")
            let acceptor = try Descriptor.checked(ss_sys_accept4(listener.raw, nil, nil, Int32(SOCK_CLOEXEC.rawValue)), "accept")
            return (connector, acceptor, UInt16(own[2]) << 8 | UInt16(own[3]))
        }
        server.listen("127.0.0.1", port: UInt16(address[2]) << 8 | UInt16(address[3]))
        var first: (Descriptor, Descriptor, UInt16)? = try connect(from: 0)
        let port = first!.2
        attacker.announce(first!.0, slot: 1, role: Role.connector)
        test.settle()
        var reset: (Int32, Int32) = (1, 0)
        _ = ss_sys_setsockopt(first!.0.raw, SOL_SOCKET, SO_LINGER, &reset, 8)
        first = nil
        let second = try connect(from: port)
        server.announce(second.1, slot: 1, role: Role.acceptor)
        test.settle()
        #expect(attacker.receive()?.reason == .peerEnded)
        #expect(server.receive() == nil)
    }

    @Test("Off reaches every arena and wakes the ends of live pairs; on takes it back")
    func switchesOff() throws {
        let test = try ServiceUnderTest()
        let server = try test.connectSwitched()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        let serverSlot = UInt64(server.arena.arena.allocateSlot(process: server.arena.process))
        let clientSlot = UInt64(client.arena.arena.allocateSlot(process: client.arena.process))
        server.announce(tcp.acceptor, slot: serverSlot, role: Role.acceptor)
        client.announce(tcp.connector, slot: clientSlot, role: Role.connector)
        test.settle()
        let one = try #require(client.receive())
        let other = try #require(server.receive())
        #expect(test.service.status.pairs == 1)

        let tool = try test.connect()
        tool.send(MessageKind.tool) { memcpy($0.text, "off", 3) }
        test.settle()
        #expect(client.arena.arena.switchedOff.load() == 1 && server.arena.arena.switchedOff.load() == 1)
        var count: UInt64 = 0
        #expect(ss_sys_read(one.descriptors[1].raw, &count, 8) == 8)
        #expect(ss_sys_read(other.descriptors[1].raw, &count, 8) == 8)
        let later = try test.connectSwitched()
        #expect(later.arena.arena.switchedOff.load() == 1)

        tool.send(MessageKind.tool) { memcpy($0.text, "on", 2) }
        test.settle()
        #expect(client.arena.arena.switchedOff.load() == 0 && later.arena.arena.switchedOff.load() == 0)
        #expect(ss_sys_read(one.descriptors[1].raw, &count, 8) == 8)

        // An end that has filled its doorbells and made who writes to them wait holds nobody up.
        for doorbell in one.descriptors[1...] {
            _ = ss_sys_read(doorbell.raw, &count, 8)
            #expect(ss_sys_fcntl(doorbell.raw, F_SETFL, 0) == 0)
            var almostAll = UInt64.max - 1
            #expect(ss_sys_write(doorbell.raw, &almostAll, 8) == 8)
        }
        tool.send(MessageKind.tool) { memcpy($0.text, "on", 2) }
        test.settle()
        for doorbell in one.descriptors[1...] { #expect(ss_sys_read(doorbell.raw, &count, 8) == 8 && count == UInt64.max) }

        // A family that an earlier service left switched off.
        let survivor = try test.connect()
        survivor.arena = try TestArena()
        survivor.arena.arena.switchedOff.store(1)
        survivor.send(MessageKind.hello, [survivor.arena.descriptor]) { $0.process = UInt32(survivor.arena.process) }
        test.settle()
        #expect(survivor.arena.arena.switchedOff.load() == 0)

        // Once a slot stands for another socket the pair is over.
        client.arena.arena.release(Int(clientSlot), process: client.arena.process)
        test.advance(milliseconds: 1001)
        test.advance(milliseconds: 1001)
        #expect(test.service.status.pairs == 0)
    }
}
