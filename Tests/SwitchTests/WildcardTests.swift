import CSocketSwitch
import Glibc
import Session
import SocketTable
import Switch
import Testing

private func usePerInterface() { expect(Policy.ofProcess.parse(text: "w,i", program: "x")) }

/// What a listening companion gets, from WSPSocket to WSPEventSelect.
private func listening(_ number: Int, _ address: String, _ port: UInt16) -> [String] {
    let isIPv6 = address.contains(":")
    return [
        "#\(number) WSPSocket \(isIPv6 ? "AF_INET6" : "AF_INET") type 1 protocol 6", "  #\(number) WPUCreateSocketHandle catalog 2",
        "#\(number) WSPBind \(SocketName(address, port))", "#\(number) WSPSetSockOpt 1/9 1.0.0.0", "#\(number) WSPListen backlog 16",
        "#\(number) WSPEventSelect FD_ACCEPT",
    ]
}

private let keepAlive = (SOL_SOCKET, SO_KEEPALIVE, Int32(1))

@Suite("Wildcard listeners under `wildcard = per-interface` (WSD-C14)") struct WildcardTests {
    @Test("One companion for each address that the provider serves, of the listener's families, none on the wildcard")
    func eachAddress() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            usePerInterface()
            let recorder = Scene.recorder
            recorder.addresses = [("127.0.0.1", 8), ("10.99.0.1", 16), ("::1", 128)]
            let cases: [(String, String, [String])] = [
                ("0.0.0.0", "127.0.0.1", ["127.0.0.1", "10.99.0.1"]), ("::", "::1", ["127.0.0.1", "10.99.0.1", "::1"]),
                ("::", "127.0.0.1", ["127.0.0.1", "10.99.0.1", "::1"]),
            ]
            for (listen, target, served) in cases {
                let before = max(recorder.lastMade, 1)
                let firstCall = recorder.calls.count
                var atListen: [String] = []
                let scene = try Scene(listen, connectTo: target, listenerOptions: [keepAlive], afterListen: {
                    atListen = recorder.calls[firstCall...].filter { $0.companion > before && !$0.isIdle }.map(\.line)
                })
                let expected = served.enumerated().flatMap { listening(before + 1 + $0, $1, scene.listenName.port) }
                expect(atListen, is: expected, "\(listen)")
                // The offer goes to the companion of the address that the client chose.
                expect(scene.talk(20), "\(listen) from \(target)")
                expect(scene.isFullyOnCompanion, "\(listen) from \(target)")
                let offers = recorder.calls[firstCall...].filter { $0.name == "SIO_SOCKSWITCH_OFFER" }.map(\.companion)
                expect(offers, is: [before + 1 + served.firstIndex(of: target)!])
                scene.close()
                for number in (before + 1)...(before + served.count) {
                    expect(recorder.lines(of: number).suffix(2), is: ["#\(number) WSPCloseSocket", "  #\(number) WPUCloseSocketHandle"])
                    expect(recorder.count("WSPCloseSocket", of: number), is: 1)
                }
                expect(recorder.violations, is: [])
                expect(openHandleCount(), is: 1)
            }
        }
    }

    @Test("IPV6_V6ONLY: no companion on IPv4 addresses")
    func onlyIPv6() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            usePerInterface()
            let recorder = Scene.recorder
            let only = (Int32(IPPROTO_IPV6), IPV6_V6ONLY, Int32(1))
            let scene = try Scene("::", connectTo: "::1", listenerOptions: [only])
            expect(recorder.calls.filter { $0.name == "WSPBind" }.map(\.arguments), is: ["\(SocketName("::1", scene.listenName.port))"])
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            scene.close()
            expect(recorder.violations, is: [])
        }
    }

    @Test("An address that is not served, or whose companion fails at any call, stays on TCP; the others go on")
    func failures() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            usePerInterface()
            let recorder = Scene.recorder
            for name in ["WSPSocket", "WSPBind", "WSPSetSockOpt", "WSPListen", "WSPEventSelect"] {
                expect(switchRestartForTests(provider: RecordingProvider.startup))
                recorder.begin()
                recorder.addresses = [("127.0.0.1", 8), ("10.99.0.1", 16), ("::1", 128)]
                // Of companions: the provider's first socket is the one for address questions.
                recorder.failures = [.init(name: name, occurrence: name == "WSPSocket" ? 2 : 1, error: ENOBUFS)]
                let failed = try Scene("::", connectTo: "127.0.0.1", listenerOptions: [keepAlive])
                expect(failed.talk(30), name)
                expect(!failed.isFullyOnCompanion, name)
                expect(failed.reason(failed.server), is: .noProvider, name)
                let client = Int32(switchSocket(AF_INET6, Int32(SOCK_STREAM.rawValue), 0))
                expect(SocketName("::1", failed.listenName.port).withBytes { switchConnect(client, $0, $1) }, is: 0)
                let other = Scene(client: client, server: Int32(switchAccept(failed.listener, nil, nil, 0)), listener: failed.listener)
                expect(other.talk(20), name)
                expect(other.isFullyOnCompanion, name)
                _ = switchClose(failed.client)
                _ = switchClose(failed.server)
                other.close()
                expect(recorder.openSockets, is: 1, name)
                expect(recorder.violations, is: [])
                expect(openHandleCount(), is: 1, name)
            }
        }
    }

    @Test("Without an address there is no companion, and the listener says why")
    func noAddress() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            usePerInterface()
            let recorder = Scene.recorder
            recorder.addresses = []
            let scene = try Scene("0.0.0.0", connectTo: "127.0.0.1")
            expect(recorder.count("WSPBind"), is: 0)
            expect(scene.reason(scene.listener), is: .noProvider)
            expect(scene.talk(30))
            expect(scene.reason(scene.server), is: .noProvider)
            scene.close()
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("A listener that is closed first still lets what it accepted become worth a companion")
    func oneShotServer() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            usePerInterface()
            let recorder = Scene.recorder
            recorder.addresses = [("127.0.0.1", 8), ("10.99.0.1", 16)]
            let scene = try Scene("0.0.0.0", connectTo: "127.0.0.1")
            _ = switchClose(scene.listener)
            expect(recorder.count("WSPCloseSocket"), is: 0)
            expect(scene.talk(20))
            expect(scene.isFullyOnCompanion)
            for number in [2, 3] { expect(recorder.count("WSPCloseSocket", of: number), is: 1, "nobody needs it any more") }
            expect(scene.talk(20))
            _ = switchClose(scene.client)
            _ = switchClose(scene.server)
            expect(recorder.violations, is: [])
            expect(openHandleCount(), is: 1)
        }
    }

    @Test("Listeners on one address are as ever; so is the wildcard without the policy")
    func otherListeners() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let recorder = Scene.recorder
            let wildcard = try Scene("0.0.0.0", connectTo: "127.0.0.1")
            expect(recorder.calls.filter { $0.name == "WSPBind" }.map(\.arguments), is: ["\(wildcard.listenName)"])
            wildcard.close()
            usePerInterface()
            let one = try Scene("127.0.0.1")
            expect(recorder.calls.filter { $0.name == "WSPBind" }.map(\.arguments), is: ["\(wildcard.listenName)", "\(one.listenName)"])
            one.close()
            expect(recorder.violations, is: [])
        }
    }
}
