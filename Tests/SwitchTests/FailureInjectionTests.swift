import CSocketSwitch
import Glibc
import Session
import SocketTable
import Switch
import Testing

// WSD-C10, N3, L6: whichever of its calls a provider fails, the companion is closed once, what was called up is given back,
// and the program talks on over TCP, byte for byte.

private typealias Failure = RecordingProvider.Failure

/// Checks after everything was closed that nothing is left of any companion.
private func expectBalance(_ what: String) {
    let recorder = Scene.recorder
    expect(recorder.violations, is: [], what)
    expect(recorder.openSockets, is: 1, "\(what): open sockets of the provider")
    expect(openHandleCount(), is: 1, "\(what): handles")
    let made = Set(recorder.calls.filter { $0.name == "WPUCreateSocketHandle" }.map(\.companion)).subtracting([1])
    for companion in made.sorted() {
        expect(recorder.count("WSPCloseSocket", of: companion), is: 1, "\(what): #\(companion) closed")
        expect(recorder.count("WPUCloseSocketHandle", of: companion), is: 1, "\(what): #\(companion)'s handle closed")
        expect(recorder.calls.last { $0.companion == companion }?.name == "WPUCloseSocketHandle", "\(what): the handle goes last")
    }
}

/// One scene in which one call fails. Returns false when that call never came.
private func play(
    _ failure: Failure, options: [(Int32, Int32, Int32)] = [], expectCompanion: Bool = false, clientReason: Reason? = nil,
    serverReason: Reason? = nil
) throws -> Bool {
    let recorder = Scene.recorder
    recorder.failures = []
    expect(switchRestartForTests(provider: RecordingProvider.startup))
    recorder.begin()
    recorder.failures = [failure]
    let scene = try Scene(listenerOptions: options, clientOptions: options)
    let what = "\(failure.name) \(failure.occurrence) ! \(failure.error)"
    expect(scene.talk(60), "\(what): data")
    // On a busy machine the talk is long enough for a connection that was refused to be announced again.
    let wasRefused = failure.error == ECONNREFUSED && recorder.count("WSPConnect") > 1
    if !wasRefused { expect(scene.isFullyOnCompanion, is: expectCompanion, "\(what): on the companion") }
    if !expectCompanion, !wasRefused {
        expect(!scene.sendsOverCompanion(scene.client) && !scene.sendsOverCompanion(scene.server), "\(what): on TCP")
        if let clientReason { expect(scene.reason(scene.client), is: clientReason, "\(what): client's reason") }
        if let serverReason { expect(scene.reason(scene.server), is: serverReason, "\(what): server's reason") }
        expect(scene.reason(scene.client) != .none && scene.reason(scene.server) != .none, "\(what): reasons")
    }
    scene.close()
    expectBalance(what)
    return recorder.calls.contains { $0.error == failure.error }
}

@Suite("Failure injection (WSD-C10, N3)") struct FailureInjectionTests {
    /// Calls of the listening companion (#2), then of the connecting one (#3), then of the accepted one (#4).
    @Test("Every call in turn")
    func everyCall() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let options = [(SOL_SOCKET, SO_KEEPALIVE, Int32(1)), (Int32(IPPROTO_TCP), Int32(TCP_NODELAY), Int32(1))]
            // Socket 1 of the provider is the one for addresses.
            let atListen: [(String, Int)] = [
                ("WSPSocket", 2), ("WSPBind", 1), ("WSPSetSockOpt", 1), ("WSPSetSockOpt", 2), ("WSPListen", 1), ("WSPEventSelect", 1),
            ]
            for (name, occurrence) in atListen {
                expect(
                    try play(
                        Failure(name: name, occurrence: occurrence, error: ENOBUFS), options: options, serverReason: .companionFailed),
                    "\(name) \(occurrence) was called")
            }
            let ofClient: [(String, Int)] = [
                ("WSPSocket", 3), ("WSPBind", 2), ("WSPSetSockOpt", 3), ("WSPSetSockOpt", 4), ("SIO_SOCKSWITCH_BASE_SOCKET", 1),
                ("WSPEventSelect", 2), ("WSPConnect", 1), ("FD_CONNECT", 1), ("WSPRecv", 2), ("WSPAllocateRdmaMemory", 2),
                ("WSPRegisterRdmaMemory", 2), ("WSPSend", 2), ("WSPGetOverlappedResult", 1), ("SIO_SOCKSWITCH_NOTIFICATION", 1),
                ("WSPMapRdmaMemory", 1),
            ]
            for (name, occurrence) in ofClient {
                for error in [ENOBUFS, ECONNREFUSED, ETIMEDOUT] {
                    let came = try play(Failure(name: name, occurrence: occurrence, error: error), options: options)
                    expect(came || name == "FD_CONNECT", "\(name) \(occurrence) was called")
                }
            }
            let ofServer: [(String, Int)] = [
                ("SIO_SOCKSWITCH_OFFER", 1), ("WSPEnumNetworkEvents", 1), ("WSPAccept", 1), ("WSPAccept after its condition", 1),
                ("WSPRecv", 1), ("WSPAllocateRdmaMemory", 1), ("WSPRegisterRdmaMemory", 1), ("WSPSend", 1),
                ("WSPGetOverlappedResult", 2), ("SIO_SOCKSWITCH_NOTIFICATION", 2), ("WSPMapRdmaMemory", 2),
            ]
            for (name, occurrence) in ofServer {
                for error in [ENOBUFS, ENETDOWN] {
                    expect(
                        try play(Failure(name: name, occurrence: occurrence, error: error), options: options),
                        "\(name) \(occurrence) was called")
                }
            }
        }
    }

    @Test("Every call, every time")
    func always() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let options = [(SOL_SOCKET, SO_KEEPALIVE, Int32(1))]
            for name in [
                "WSPBind", "WSPSetSockOpt", "WSPListen", "WSPEventSelect", "SIO_SOCKSWITCH_BASE_SOCKET", "SIO_SOCKSWITCH_OFFER", "WSPConnect",
                "FD_CONNECT", "WSPEnumNetworkEvents", "WSPAccept", "WSPAccept after its condition", "WSPRecv", "WSPSend",
                "WSPAllocateRdmaMemory", "WSPRegisterRdmaMemory", "WSPGetOverlappedResult", "SIO_SOCKSWITCH_NOTIFICATION", "WSPMapRdmaMemory",
            ] {
                _ = try play(Failure(name: name, occurrence: 0, error: ENOBUFS), options: options)
            }
        }
    }

    @Test("WSD-C9: an option that the provider does not know is no failure")
    func unknownOption() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            let options = [(SOL_SOCKET, SO_KEEPALIVE, Int32(1)), (Int32(IPPROTO_TCP), Int32(TCP_NODELAY), Int32(1))]
            for occurrence in 0...4 {
                let came = try play(
                    Failure(name: "WSPSetSockOpt", occurrence: occurrence, error: ENOPROTOOPT), options: options, expectCompanion: true)
                expect(came)
            }
        }
    }

    @Test("Failures that change nothing: WSPCloseSocket, doorbells, the reason, address questions")
    func harmless() async {
        await #expect(processExitsWith: .success) {
            Scene.begin()
            for name in ["WSPCloseSocket", "WSPDeregisterRdmaMemory", "SIO_SOCKSWITCH_REASON", "SIO_ADDRESS_LIST_CHANGE", "SIO_SOCKSWITCH_OFFER_RESULT"] {
                _ = try play(Failure(name: name, occurrence: 0, error: ENOTSOCK), expectCompanion: true)
            }
        }
    }
}
