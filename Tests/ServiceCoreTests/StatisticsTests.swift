import CSocketSwitch
import ControlPlane
import Glibc
import Rendezvous
import ServiceCore
import SocketTable
import StreamRing
import Testing

@Suite("Statistics and tools") struct StatisticsTests {
    private func ask(_ command: String, _ test: ServiceUnderTest) throws -> (text: String, status: UInt32) {
        let tool = try test.connect()
        let bytes = Array(command.utf8)
        tool.send(MessageKind.tool) { message in bytes.withUnsafeBytes { _ = memcpy(message.text, $0.baseAddress!, $0.count) } }
        test.settle()
        var text = ""
        while true {
            let answer = try #require(tool.receive())
            if answer.kind == MessageKind.toolEnd { return (text, answer.reason == nil ? 99 : UInt32(answer.reason!.rawValue)) }
            text += answer.text
            test.settle()
        }
    }

    @Test("Every socket with its carriers, bytes, holders and reason")
    func ps() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let arena = client.arena.arena
        let tcp = try Connection()
        var storage = [UInt8](repeating: 0, count: 28)
        var length = UInt32(28)
        let index = arena.allocateSlot(process: client.arena.process)
        let slot = arena.slot(index)
        slot.kind.store(Slot.Kind.accepted)
        #expect(ss_sys_getsockname(tcp.acceptor.raw, &storage, &length) == 0)
        slot.localAddress.set(storage, length: Int(length))
        slot.mode.store(Slot.Mode.dual)
        slot.sendCuts.store(3)
        slot.receiveCuts.store(2)
        slot.tcpBytesSent.store(1)
        slot.tcpBytesReceived.store(2)
        slot.sendPosition.store(3)
        slot.receivePosition.store(4)
        slot.carrierChanges.store(5)
        slot.reason.store(Reason.ringStalled.rawValue)
        // A child of the same family.
        let child = try test.connect()
        let childProcess = arena.addProcess(pid: UInt64(getppid()))
        child.send(MessageKind.hello, [client.arena.descriptor]) { $0.process = UInt32(childProcess) }
        let listener = arena.allocateSlot(process: childProcess)
        arena.slot(listener).kind.store(Slot.Kind.listening)
        // Nobody lives in this one.
        let dead = arena.addProcess(pid: 0x7FFF_FFFF)
        let orphan = arena.allocateSlot(process: dead)
        arena.slot(orphan).kind.store(Slot.Kind.connected)
        test.settle()

        let (text, status) = try ask("ps", test)
        #expect(status == ToolStatus.done)
        let report = try decodeJSON(ServiceReport.self, Array(text.utf8))
        #expect(report.sockets.count == 2)
        let socket = try #require(report.sockets.first)
        #expect(socket.pid == getpid() && socket.pids == [getpid()] && !socket.program.isEmpty)
        #expect(socket.kind == .accepted && socket.local == "127.0.0.1:\(tcp.port)" && socket.peer == "")
        #expect(socket.sendCarrier == .companion && socket.receiveCarrier == .tcp)
        #expect(socket.bytes == .init(tcpSent: 1, tcpReceived: 2, companionSent: 3, companionReceived: 4))
        #expect(socket.carrierChanges == 5 && socket.reason == "ringStalled")
        #expect(report.sockets[1].kind == .listening && report.sockets[1].reason == "none")
        #expect(report.service.families == 1)

        slot.reason.store(Reason.none.rawValue)
        var reason: String { test.service.socketReports()[0].reason }
        #expect(reason == "notInvited")
        slot.invitation.store(Invitation.toCompanion)
        #expect(reason == "unused", "it sends on the companion, and nobody sends to it")
        let reader = slot.plainReaders.enter()
        #expect(reason == "plainCall")
        slot.plainReaders.leave(reader)
        slot.sendCuts.store(0)
        slot.receiveCuts.store(1)
        #expect(reason == "notInvited", "it has sent over TCP")
        let writer = slot.plainWriters.enter()
        #expect(reason == "plainCall")
        slot.plainWriters.leave(writer)
        slot.tcpBytesSent.store(0)
        #expect(reason == "unused")
        slot.reason.store(Reason.peerPolicy.rawValue)
        #expect(reason == "peerPolicy")
        slot.flags.setBits(Slot.Flags.tcpEnded)
        #expect(reason == "peerEnded")
        slot.flags.clearBits(Slot.Flags.tcpEnded)
        slot.reason.store(Reason.none.rawValue)
        slot.sendCuts.store(1)
        slot.receiveCuts.store(0)
        slot.bytesRewound.store(2)
        #expect(test.service.socketReports()[0].bytes.companionSent == 1)
        test.service.switchAll(off: true)
        #expect(test.service.socketReports()[0].reason == "switchedOff")
        slot.receiveCuts.store(1)
        let now = try decodeJSON(ServiceReport.self, Array(try ask("ps", test).text.utf8))
        #expect(now.sockets[0].reason == "none" && now.sockets[0].receiveCarrier == .companion)
    }

    /// The acceptor's slot as the library leaves it: of its addresses the peer's alone is known.
    private func acceptedSlot(_ client: TestClient, _ tcp: Connection) -> Slot {
        let arena = client.arena.arena
        let slot = arena.slot(arena.allocateSlot(process: client.arena.process))
        slot.kind.store(Slot.Kind.accepted)
        var storage = [UInt8](repeating: 0, count: 28)
        var length = UInt32(28)
        #expect(ss_sys_getpeername(tcp.acceptor.raw, &storage, &length) == 0)
        slot.peerAddress.set(storage, length: Int(length))
        return slot
    }

    @Test("An own address that the library has not asked for is looked for, in that process and that connection only")
    func unaskedAddress() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        let slot = acceptedSlot(client, tcp)
        var local: String { test.service.socketReports()[0].local }
        #expect(local == "")
        slot.descriptorHint.store(UInt64(tcp.acceptor.raw + 1))
        #expect(local == "127.0.0.1:\(tcp.port)")
        // The number is another socket's by now, or nobody's, or none.
        for descriptor in [tcp.connector.raw, 1 << 20, Int32.max] {
            slot.descriptorHint.store(UInt64(descriptor) + 1)
            #expect(local == "")
        }
        slot.descriptorHint.store(UInt64(tcp.acceptor.raw + 1))
        slot.kind.store(Slot.Kind.fresh)
        #expect(local == "")
    }

    @Test("A connect that has failed, or is under way, is no connection")
    func failedConnect() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        let slot = acceptedSlot(client, tcp)
        slot.kind.store(Slot.Kind.connected)
        slot.reason.store(Reason.notWorthItYet.rawValue)
        let socket = Descriptor(Int32(ss_sys_socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)))
        slot.descriptorHint.store(UInt64(socket.raw + 1))
        var seen: SocketReport { test.service.socketReports()[0] }
        #expect(seen.kind == .fresh && seen.reason == "notConnected")
        // It has been one.
        slot.tcpBytesSent.store(1)
        #expect(seen.kind == .connected && seen.reason == "notWorthItYet")
    }

    @Test("An own address is looked for while the program puts another socket in its place")
    func changingDescriptor() async throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let tcp = try Connection()
        let slot = acceptedSlot(client, tcp)
        let (acceptor, connector) = (tcp.acceptor.raw, tcp.connector.raw)
        let changing = dup(acceptor)
        try #require(changing >= 0)
        defer { close(changing) }
        slot.descriptorHint.store(UInt64(changing) + 1)
        let program = Task.detached {
            while !Task.isCancelled {
                dup3(connector, changing, O_CLOEXEC)
                dup3(acceptor, changing, O_CLOEXEC)
            }
        }
        var seen = Set<String>()
        for _ in 0..<5_000 { seen.insert(test.service.socketReports()[0].local) }
        program.cancel()
        await program.value
        #expect(seen.isSubset(of: ["", "127.0.0.1:\(tcp.port)"]), "\(seen)")
    }

    @Test("What an end says of its peer agrees with what the peer says")
    func bothEnds() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        let server = try test.connectSwitched()
        func slot(_ end: TestClient, _ kind: UInt64, local: UInt16, peer: UInt16, _ reason: Reason) -> Slot {
            let slot = end.arena.arena.slot(end.arena.arena.allocateSlot(process: end.arena.process))
            for (address, port) in [(slot.localAddress, local), (slot.peerAddress, peer)] {
                address.family = UInt16(AF_INET)
                address.port = port
                _ = inet_pton(AF_INET, "127.0.0.1", address.bytes)
            }
            slot.kind.store(kind)
            slot.reason.store(reason.rawValue)
            return slot
        }
        let one = slot(client, Slot.Kind.connected, local: 1000, peer: 80, .policy)
        let other = slot(server, Slot.Kind.accepted, local: 80, peer: 1000, .waitingForPeer)
        let stranger = slot(server, Slot.Kind.accepted, local: 80, peer: 2000, .waitingForPeer)
        func reason(_ kind: SocketReport.Kind, _ peer: String) -> String? {
            test.service.socketReports().first { $0.kind == kind && $0.peer == peer }?.reason
        }
        for said in [Reason.waitingForPeer, .peerNotSwitched] {
            other.reason.store(said.rawValue)
            one.reason.store(Reason.policy.rawValue)
            #expect(reason(.accepted, "127.0.0.1:1000") == "peerPolicy")
            one.reason.store(Reason.notWorthItYet.rawValue)
            #expect(reason(.accepted, "127.0.0.1:1000") == "waitingForPeer")
        }
        #expect(reason(.connected, "127.0.0.1:80") == "notWorthItYet")
        #expect(reason(.accepted, "127.0.0.1:2000") == "waitingForPeer")
        stranger.attempts.store(2)
        #expect(reason(.accepted, "127.0.0.1:2000") == "peerNotSwitched")
        // An accepted end whose own address is not known.
        other.localAddress.family = 0
        other.reason.store(Reason.policy.rawValue)
        one.reason.store(Reason.peerNotSwitched.rawValue)
        #expect(reason(.connected, "127.0.0.1:80") == "peerPolicy")
    }

    @Test("The totals keep the bytes of closed sockets and of families that are gone")
    func companionTotals() throws {
        let test = try ServiceUnderTest()
        func totals() -> [UInt64] { [test.service.status.totals.companionSent, test.service.status.totals.companionReceived] }
        var client: TestClient? = try test.connectSwitched()
        let arena = client!.arena.arena
        let process = client!.arena.process
        for bytes in [1, 10] {
            let index = arena.allocateSlot(process: process)
            arena.slot(index).kind.store(Slot.Kind.connected)
            arena.slot(index).sendPosition.store(UInt64(bytes))
            arena.slot(index).receivePosition.store(UInt64(bytes) * 100)
            #expect(totals() == (bytes == 1 ? [1, 100] : [11, 1100]))
            if bytes == 1 { #expect(arena.release(index, process: process)) }
            #expect(totals() == (bytes == 1 ? [1, 100] : [11, 1100]))
        }
        arena.process(process).pid.store(0x7FFF_FFFF)  // nobody lives in it
        client = nil
        test.settle()
        test.service.collectGarbage()
        #expect(test.service.status.families == 0 && totals() == [11, 1100])
    }

    @Test("A long answer comes whole, in pieces")
    func longAnswer() throws {
        let test = try ServiceUnderTest()
        let client = try test.connectSwitched()
        for _ in 0..<1000 {
            let index = client.arena.arena.allocateSlot(process: client.arena.process)
            client.arena.arena.slot(index).kind.store(Slot.Kind.connected)
        }
        let report = try decodeJSON(ServiceReport.self, Array(try ask("ps", test).text.utf8))
        #expect(report.sockets.count == 1000)
    }

    @Test("Commands")
    func commands() throws {
        let test = try ServiceUnderTest()
        #expect(try ask("ping", test) == ("pong", ToolStatus.done))
        #expect(try ask("nonsense", test).status == ToolStatus.unknownCommand)
        #expect(try ask(String(repeating: "x", count: 56), test).status == ToolStatus.unknownCommand)
        #expect(try decodeJSON(ServiceStatus.self, Array(try ask("status", test).text.utf8)).version == Version.text)
    }

    @Test("An ephemeral service ends after its last client, and when none came")
    func ephemeral() throws {
        let test = try ServiceUnderTest { $0.isEphemeral = true }
        test.advance(milliseconds: 9999)
        #expect(!test.service.hasOutlivedItsClients)
        var client: TestClient? = try test.connectSwitched()
        test.advance(milliseconds: 60_000)
        #expect(!test.service.hasOutlivedItsClients)
        _ = client
        client = nil
        test.settle()
        test.advance(milliseconds: 1999)
        #expect(!test.service.hasOutlivedItsClients)
        test.advance(milliseconds: 2)
        #expect(test.service.hasOutlivedItsClients)

        // Who only asks keeps nobody here.
        let asking = try ServiceUnderTest { $0.isEphemeral = true }
        for _ in 0..<4 {
            #expect(try ask("ping", asking) == ("pong ephemeral", ToolStatus.done))
            asking.advance(milliseconds: 2600)
        }
        #expect(asking.service.hasOutlivedItsClients)

        // The command of `sockswitch run`, this process here, runs on.
        let held = try ServiceUnderTest { $0.isEphemeral = true }
        #expect(try ask("hold", held).status == ToolStatus.done)
        #expect(try ask("hold", held).status == ToolStatus.done)
        held.advance(milliseconds: 100_000)
        #expect(!held.service.hasOutlivedItsClients)

        // Somebody has asked for a lasting one meanwhile.
        let lasting = try ServiceUnderTest { $0.isEphemeral = true }
        #expect(try ask("stay", lasting).status == ToolStatus.done)
        #expect(try ask("ping", lasting).text == "pong")
        lasting.advance(milliseconds: 100_000)
        #expect(!lasting.service.hasOutlivedItsClients)

        let lonely = try ServiceUnderTest { $0.isEphemeral = true }
        lonely.advance(milliseconds: 10_001)
        #expect(lonely.service.hasOutlivedItsClients)
    }

    @Test("Families that were there before the service are found, and only its own")
    func adopting() throws {
        let path = "/nowhere/adopting-\(getpid())"
        let test = try ServiceUnderTest { $0.path = path }
        func family(of path: String) throws -> TestArena {
            let made = try TestArena()
            made.arena.service.store(Array(path.utf8).withUnsafeBytes { ss_mark($0.baseAddress, $0.count) })
            made.arena.slot(made.arena.allocateSlot(process: made.process)).kind.store(Slot.Kind.listening)
            made.arena.switchedOff.store(1)
            return made
        }
        let ours = try family(of: path)
        let others = try family(of: path + "x")
        #expect(test.service.socketReports().isEmpty)
        #expect(test.service.adoptFamilies() == 1)
        #expect(test.service.socketReports().map(\.pid) == [getpid()])
        #expect(ours.arena.switchedOff.load() == 0, "whoever said so is gone")
        #expect(others.arena.switchedOff.load() == 1)
        test.service.switchAll(off: true)
        #expect(ours.arena.switchedOff.load() == 1)
        #expect(test.service.adoptFamilies() == 0)
    }

    @Test("A family's arena is found in the mappings of a process")
    func mappings() {
        let line = "7f0c85abc000-7f0c86ccd000 rw-s 00000000 00:01 2551                       /memfd:sockswitch (deleted)\n"
        #expect(SharedArena.isMapping(line, inode: 2551))
        #expect(!SharedArena.isMapping(line, inode: 255))
        #expect(!SharedArena.isMapping("7f0c85abc000-7f0c86ccd000 rw-p 00000000 00:00 0 \n", inode: 0))
        #expect(!SharedArena.isMapping("7f0c85abc000-7f0c86ccd000 rw-s 00000000 fe:00 2551     /tmp/memfd:x\n", inode: 2551))
        #expect(!SharedArena.isMapping("", inode: 1))
    }
}
