import CSocketSwitch
import Glibc
import Session
import SocketTable
import Switch
import Testing

// The seed's sequence: which calls the switch makes on a SAN provider, in which order, with which arguments. Every test
// runs in a process of its own, since the switch's state is the process's.

private let noDelay = (Int32(IPPROTO_TCP), Int32(TCP_NODELAY), Int32(1))
private let keepAlive = (SOL_SOCKET, SO_KEEPALIVE, Int32(1))
private let reuse = (SOL_SOCKET, SO_REUSEADDR, Int32(1))

@Suite("The seed's sequence (WSD-C, N, L)") struct SeedSequenceTests {
    @Test("WSD-I3, I5: a provider is started and asked for its addresses on a socket of its own")
    func starting() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            expect(recorder.lines, is: ["#0 WSPStartupEx version 1 family 2 protocol 6"])
            let scene = try Scene()
            expect(recorder.protocolInfo.iSocketType, is: 1)
            expect(recorder.lines(of: 1).filter { !$0.contains("EXTENSION") }, is: [
                "#1 WSPSocket AF_INET type 1 protocol 6", "  #1 WPUCreateSocketHandle catalog 2", "#1 SIO_SOCKSWITCH_EVENT_WORD",
                "#1 SIO_ADDRESS_LIST_QUERY",
            ])
            scene.close()
            expect(recorder.violations, is: [])
        }
    }

    @Test("WSD-C4 … C11, N2, N4, X2: connecting")
    func connecting() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            var made = 0
            let scene = try Scene(clientOptions: [noDelay], afterListen: { made = recorder.lastMade })
            let number = made + 1
            let local = try #require(SocketName.local(scene.client))
            let peer = try #require(SocketName.peer(scene.client))
            // One question and its answer are not worth a companion.
            expect(scene.request(10) && scene.answer(10))
            expect(recorder.lines(of: number), is: [])
            expect(scene.reason(scene.client), is: .notWorthItYet)
            // Programs set options after they have connected, too.
            Scene.set(scene.client, keepAlive)
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            expect(scene.reason(scene.client), is: .none)
            let lines = recorder.lines(of: number)
            expect(lines, is: [
                "#\(number) WSPSocket AF_INET type 1 protocol 6", "  #\(number) WPUCreateSocketHandle catalog 2",
                "#\(number) WSPBind \(local)", "#\(number) WSPSetSockOpt 6/1 1.0.0.0", "#\(number) WSPSetSockOpt 1/9 1.0.0.0",
                "#\(number) SIO_SOCKSWITCH_BASE_SOCKET fd \(scene.client)", "#\(number) WSPEventSelect FD_CONNECT",
                "#\(number) WSPConnect \(peer) pending", "#\(number) WSPEnumNetworkEvents FD_CONNECT 0",
                // WSD-N4: the buffer for the peer's message comes before anything is sent. Its hello is there already.
                "#\(number) WSPRecv 256 bytes", "#\(number) WSPAllocateRdmaMemory",
                "#\(number) WSPRegisterRdmaMemory access 2", "#\(number) WSPSend 128 bytes",
                "#\(number) WSPGetOverlappedResult 128 bytes", "#\(number) SIO_SOCKSWITCH_NOTIFICATION",
                "#\(number) WSPMapRdmaMemory",
            ])
            // WSD-N5: the switch answers a later connect alone. WSD-C12: the program sees its own socket.
            expect(peer.withBytes { switchConnect(scene.client, $0, $1) }, is: -Int(EISCONN))
            expect(recorder.lines(of: number), is: lines)
            expect(SocketName.local(scene.client) == local && SocketName.peer(scene.client) == peer)
            scene.close()
            expect(Array(recorder.lines(of: number).dropFirst(lines.count)), is: [
                "#\(number) WSPDeregisterRdmaMemory", "#\(number) WSPCloseSocket", "  #\(number) WPUCloseSocketHandle",
            ])
            expect(recorder.violations, is: [])
            expect(recorder.openSockets, is: 1)  // the one for the addresses
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("WSD-L1, L2, L4: listening and accepting")
    func listening() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            var atListen: [String] = []
            let scene = try Scene(listenerOptions: [reuse, keepAlive], afterListen: { atListen = recorder.lines(of: 2) })
            let client = try #require(SocketName.local(scene.client))
            expect(atListen, is: [
                "#2 WSPSocket AF_INET type 1 protocol 6", "  #2 WPUCreateSocketHandle catalog 2", "#2 WSPBind \(scene.listenName)",
                "#2 WSPSetSockOpt 1/2 1.0.0.0", "#2 WSPSetSockOpt 1/9 1.0.0.0", "#2 WSPListen backlog 16",
                "#2 WSPEventSelect FD_ACCEPT",
            ])
            expect(recorder.lines(of: 2), is: atListen)
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            expect(Array(recorder.lines(of: 2).dropFirst(atListen.count)), is: [
                "#2 SIO_SOCKSWITCH_OFFER fd \(scene.server) of \(client)", "#2 WSPEnumNetworkEvents FD_ACCEPT",
                "#2 WSPAccept condition(\(client)) = CF_ACCEPT = #4",
            ])
            expect(recorder.lines(of: 4), is: [
                "  #4 WPUCreateSocketHandle catalog 2", "#4 WSPRecv 256 bytes posted", "#4 WSPAllocateRdmaMemory",
                "#4 WSPRegisterRdmaMemory access 2", "#4 WSPSend 128 bytes", "#4 WSPGetOverlappedResult 128 bytes",
                "#4 SIO_SOCKSWITCH_NOTIFICATION", "#4 WSPMapRdmaMemory",
            ])
            scene.close()
            for number in 2...4 {
                expect(recorder.lines(of: number).suffix(2), is: ["#\(number) WSPCloseSocket", "  #\(number) WPUCloseSocketHandle"])
                expect(recorder.count("WSPCloseSocket", of: number), is: 1)
            }
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }
}
