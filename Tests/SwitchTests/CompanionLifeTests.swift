import CSocketSwitch
import Glibc
import Session
import SocketTable
import Switch
import Testing

/// Waits until the switch would announce the socket again.
private func letBackOffPass(_ scene: Scene, _ fd: Int32) {
    scene.slot(fd).nextAttempt.store(0)
    memset(ss_refusals_address(), 0, 1024)
}

/// The server is offered, and the provider will not notice when that is taken back.
private func sceneWithAnOfferToStay() throws -> Scene {
    Scene.recorder.failures = [.init(name: "SIO_SOCKSWITCH_WITHDRAW_OFFER", occurrence: 0, error: ENOENT)]
    let scene = try Scene()
    expect(scene.request(64, piece: 16) && scene.answer(10))
    expect(scene.phase(scene.server), is: CompanionPhase.offered)
    return scene
}

@Suite("The life of companions (WSD-C, N, L)") struct CompanionLifeTests {
    @Test("Hundreds of messages go over the companion, none over TCP any more")
    func manyMessages() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let scene = try Scene()
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            let onTCP = [scene.client, scene.server].map { scene.slot($0).tcpBytesSent.load() }
            expect(scene.talk(400))
            expect([scene.client, scene.server].map { scene.slot($0).tcpBytesSent.load() }, is: onTCP)
            expect(scene.slot(scene.client).sendCuts.load(), is: 1)
            expect(scene.slot(scene.server).sendCuts.load(), is: 1)
            scene.close()
            expect(Scene.recorder.violations, is: [])
        }
    }

    @Test("Eager: announced when they are made; one byte at most goes over TCP", arguments: [false, true])
    func eager(isNonBlocking: Bool) async {
        await #expect(processExitsWith: .success) { [isNonBlocking] in
            Scene.begin()
            privateState.pointee.eager = true
            let scene = try Scene(clientIsNonBlocking: isNonBlocking)
            expect(Scene.recorder.count("WSPConnect"), is: 1)
            expect(Scene.recorder.count("SIO_SOCKSWITCH_OFFER"), is: 1)
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            // This provider tells the server of the hello only in the server's own call, behind the first byte.
            expect(scene.slot(scene.client).tcpBytesSent.load() <= 1)
            expect(scene.slot(scene.server).tcpBytesSent.load(), is: 0)
            scene.close()
            expect(Scene.recorder.violations, is: [])
        }
    }

    @Test("WSD-N2: a connect that is done at once")
    func connectAtOnce() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            recorder.connectsAtOnce = true
            let scene = try Scene()
            // The server offers first: it has received four pieces before the client's second request.
            expect(scene.request(64, piece: 16) && scene.answer(10))
            expect(recorder.count("SIO_SOCKSWITCH_OFFER"), is: 1)
            expect(recorder.count("WSPConnect"), is: 0)
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            let lines = recorder.lines(of: 3)
            let connect = try #require(lines.firstIndex { $0.contains("WSPConnect") })
            expect(!lines[connect].contains("pending"))
            // WSD-N4: the receive is posted, and the hello sent, before the peer's can have come.
            expect(lines[connect + 1], is: "#3 WSPRecv 256 bytes posted")
            expect(lines.contains("#3 WSPEnumNetworkEvents FD_CONNECT 0"), is: false)
            scene.close()
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-L4, L6: the condition function rejects a connection that the program has closed meanwhile")
    func reject() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let scene = try sceneWithAnOfferToStay()
            let client = try #require(SocketName.local(scene.client))
            _ = switchClose(scene.server)
            // The client does not know yet, and its second request is worth a companion.
            var byte: UInt8 = 0
            expect(switchSend(scene.client, &byte, 1, Int32(MSG_NOSIGNAL)), is: 1)
            let accepts = recorder.lines(of: 2).filter { $0.contains("WSPAccept") }
            expect(accepts, is: ["#2 WSPAccept condition(\(client)) = CF_REJECT ! \(ECONNREFUSED)"])
            lookAtMailboxes()
            expect(recorder.lines(of: 3).suffix(3).map { $0 }, is: [
                "#3 SIO_SOCKSWITCH_REASON ! \(EOPNOTSUPP)", "#3 WSPCloseSocket", "  #3 WPUCloseSocketHandle",
            ])
            _ = switchClose(scene.client)
            _ = switchClose(scene.listener)
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-L4: an offer of a socket that is closed does not get its slot's next socket the companion")
    func rejectFormer() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let former = try sceneWithAnOfferToStay()
            let client = former.connectAnother()
            let slot = socketIndex(former.server)
            _ = switchClose(former.server)
            let scene = Scene(client: client, server: Int32(switchAccept(former.listener, nil, nil, 0)), listener: former.listener)
            expect(socketIndex(scene.server), is: slot)
            expect(scene.request(64, piece: 16) && scene.answer(10))
            expect(scene.phase(scene.server), is: CompanionPhase.offered)
            var byte: UInt8 = 0
            expect(switchSend(former.client, &byte, 1, Int32(MSG_NOSIGNAL)), is: 1)
            let accepts = recorder.calls.filter { $0.name == "WSPAccept" && !$0.isIdle }.map(\.arguments)
            expect(accepts.count, is: 1)
            expect(accepts.first?.hasSuffix("CF_REJECT") ?? false, "\(accepts)")
            expect(scene.phase(scene.server), is: CompanionPhase.offered)
            expect(recorder.violations, is: [])
        }
    }

    @Test("Closing an offered socket withdraws the offer")
    func withdraw() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let scene = try Scene()
            expect(scene.request(64, piece: 16) && scene.answer(10))
            expect(scene.phase(scene.server), is: CompanionPhase.offered)
            expect(scene.reason(scene.server), is: .waitingForPeer)
            _ = switchClose(scene.server)
            expect(recorder.lines(of: 2).last ?? "", is: "#2 SIO_SOCKSWITCH_WITHDRAW_OFFER")
            _ = switchClose(scene.client)
            _ = switchClose(scene.listener)
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-C10: a refusal that may pass is tried again, and is remembered for other sockets meanwhile")
    func refusedThenAccepted() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            recorder.reason = Int32(Reason.peerNotSwitched.rawValue)
            recorder.failures = [.init(name: "FD_CONNECT", occurrence: 1, error: ENETUNREACH)]
            let scene = try Scene()
            expect(scene.talk(10, size: 100))
            expect(scene.reason(scene.client), is: .peerNotSwitched)
            expect(recorder.count("WSPCloseSocket", of: 3), is: 1)
            let connects = recorder.count("WSPConnect")
            expect(scene.talk(10, size: 100))
            expect(recorder.count("WSPConnect"), is: connects, "not at once again")
            let other = Scene(client: scene.connectAnother(), server: Int32(switchAccept(scene.listener, nil, nil, 0)), listener: scene.listener)
            expect(other.talk(10, size: 100))
            expect(other.reason(other.client), is: .peerNotSwitched)
            expect(recorder.count("WSPConnect"), is: connects, "nor by another socket")
            _ = switchClose(other.client)
            _ = switchClose(other.server)
            letBackOffPass(scene, scene.client)
            expect(scene.talk(20, size: 100))
            expect(scene.isFullyOnCompanion)
            expect(recorder.lines(of: 4).prefix(5).map { $0 }, is: [
                "#4 WSPSocket AF_INET type 1 protocol 6", "  #4 WPUCreateSocketHandle catalog 2",
                "#4 WSPBind \(SocketName.local(scene.client)!)", "#4 SIO_SOCKSWITCH_BASE_SOCKET fd \(scene.client)",
                "#4 WSPEventSelect FD_CONNECT",
            ], "made anew")
            scene.close()
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-N3: a peer that turned the companion down before the session began here may take the next one")
    func turnedDown() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            recorder.failures = [.init(name: "WSPRecv", occurrence: 1, error: ECONNREFUSED)]
            let scene = try Scene()
            let ends = [scene.client, scene.server]
            for _ in 0..<10 where !ends.contains(where: { scene.reason($0) == .peerPolicy }) {
                // However long a round takes here, what was turned down is not tried again before the next look.
                expect(scene.talk(1))
                for end in ends where scene.slot(end).nextAttempt.load() != 0 { scene.slot(end).nextAttempt.store(.max) }
            }
            expect(!scene.isFullyOnCompanion)
            expect(ends.allSatisfy { scene.reason($0) != .companionFailed })
            expect(ends.contains { scene.reason($0) == .peerPolicy })
            for _ in 0..<4 where !scene.isFullyOnCompanion {
                letBackOffPass(scene, scene.client)
                letBackOffPass(scene, scene.server)
                expect(scene.talk(20))
            }
            expect(scene.isFullyOnCompanion)
            scene.close()
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("An offer that the provider gives back is offered again later")
    func offerRefused() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let scene = try Scene()
            expect(scene.request(64, piece: 16) && scene.answer(10))
            expect(scene.phase(scene.server), is: CompanionPhase.offered)
            recorder.refuseOffers(Int32(Reason.peerNotSwitched.rawValue))
            lookAtMailboxes()
            expect(scene.phase(scene.server), is: CompanionPhase.none)
            expect(scene.reason(scene.server), is: .peerNotSwitched)
            letBackOffPass(scene, scene.server)
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            scene.close()
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("A listener that is closed first still lets what it accepted become worth a companion")
    func oneShotServer() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let scene = try Scene()
            expect(switchClose(scene.listener), is: 0)
            expect(recorder.count("WSPCloseSocket", of: 2), is: 0)
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            // Nobody needs it any more.
            expect(recorder.count("WSPCloseSocket", of: 2), is: 1)
            expect(scene.talk(20))
            _ = switchClose(scene.client)
            _ = switchClose(scene.server)
            // One that never becomes worth it.
            let idle = try Scene()
            let listening = recorder.lastMade
            _ = switchClose(idle.listener)
            expect(recorder.count("WSPCloseSocket", of: listening), is: 0)
            _ = switchClose(idle.client)
            _ = switchClose(idle.server)
            expect(recorder.count("WSPCloseSocket", of: listening), is: 1)
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("A program that gives up its accepted sockets, in every phase, leaves nothing behind", arguments: 0...7)
    func giveUp(after steps: Int) async {
        await #expect(processExitsWith: .success) { [steps] in
            Scene.begin()
            let recorder = Scene.recorder
            for closesServerFirst in [true, false] {
                let scene = try Scene()
                var open = true
                for step in 0..<steps { open = open && (step % 2 == 0 ? scene.request(50) : scene.answer(50)) }
                expect(open)
                // A second connection shows that the lists of the switch are whole.
                for fd in closesServerFirst ? [scene.server, scene.client, scene.listener] : [scene.listener, scene.client, scene.server] {
                    _ = switchClose(fd)
                    lookAtMailboxes()
                }
                let next = try Scene()
                expect(next.talk(20))
                expect(next.isFullyOnCompanion)
                next.close()
                expect(recorder.violations, is: [])
                expect(openHandleCount(), is: 1)
            }
        }
    }

    @Test("connect(AF_UNSPEC) ends the companion with the connection; the socket can be connected again")
    func dissolve() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            for rounds in [0, 1, 20] {
                let scene = try Scene(clientOptions: [(Int32(IPPROTO_TCP), Int32(TCP_NODELAY), 1)])
                expect(scene.talk(rounds))
                var unspecified = sockaddr()
                unspecified.sa_family = sa_family_t(AF_UNSPEC)
                expect(switchConnect(scene.client, &unspecified, 16), is: 0)
                let other = try Scene()
                _ = switchClose(other.client)
                other.client = scene.client
                let peer = SocketName("127.0.0.1", other.listenName.port)
                expect(peer.withBytes { switchConnect(scene.client, $0, $1) }, is: 0)
                _ = switchClose(other.server)
                other.server = Int32(switchAccept(other.listener, nil, nil, 0))
                expect(other.talk(20))
                expect(other.isFullyOnCompanion)
                _ = switchClose(scene.server)
                _ = switchClose(scene.listener)
                other.close()
                expect(recorder.violations, is: [])
                expect(openHandleCount(), is: 1, "\(rounds)")
            }
        }
    }

    @Test("A provider that cannot map memory is written to with WSPRdmaWrite; one that lacks what is needed is left alone")
    func missingExtensions() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let all = (1..<Int32(ss_extension_count)).map { $0 }
            for hidden in all.map({ [$0] }) + [[Int32(ss_extension_map_rdma_memory), Int32(ss_extension_rdma_write)], all] {
                recorder.hidesExtensions = Set(hidden)
                expect(switchRestartForTests(provider: RecordingProvider.startup))
                recorder.begin()
                let scene = try Scene()
                expect(scene.talk(40), "without \(hidden)")
                let needed = [Int32(ss_extension_register_rdma_memory), Int32(ss_extension_allocate_rdma_memory)]
                let works = hidden.count == 1 && !needed.contains(hidden[0])
                expect(scene.isFullyOnCompanion, is: works, "without \(hidden)")
                scene.close()
                expect(recorder.violations, is: [])
                expect(openHandleCount(), is: 1, "without \(hidden)")
            }
        }
    }
}
