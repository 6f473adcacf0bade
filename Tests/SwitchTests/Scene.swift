import CSocketSwitch
import Glibc
import Session
import SocketTable
import Switch
import Testing

/// A program with a server and a client in one thread, that calls the switch as the interposed libc functions do.
final class Scene {
    var listener: Int32 = -1
    var client: Int32 = -1
    var server: Int32 = -1
    var listenName: SocketName
    /// Bytes that went each way so far: what byte comes next depends on it.
    private var toServer = 0
    private var toClient = 30_011

    static var recorder: RecordingProvider { .shared }

    /// Starts the switch of this process with the recording provider; a process that hangs is ended.
    static func begin() {
        alarm(300)
        RecordingProvider.shared.reset()
        expect(switchStartForTests(provider: RecordingProvider.startup))
    }

    /// Options as (level, name, value) that are set before bind on the listener and before connect on the client.
    init(
        _ address: String = "127.0.0.1", connectTo: String? = nil, listenerOptions: [(Int32, Int32, Int32)] = [],
        clientOptions: [(Int32, Int32, Int32)] = [], clientIsNonBlocking: Bool = false, afterListen: () -> Void = {}
    ) throws {
        listenName = SocketName(address, 0)
        let stream = Int32(SOCK_STREAM.rawValue)
        listener = Int32(switchSocket(listenName.family, stream, 0))
        try #require(listener >= 0)
        for option in listenerOptions { Scene.set(listener, option) }
        expect(listenName.withBytes { switchBind(listener, $0, $1) }, is: 0)
        expect(switchListen(listener, 16), is: 0)
        listenName = try #require(SocketName.local(listener))
        afterListen()

        let target = SocketName(connectTo ?? address, listenName.port)
        client = Int32(switchSocket(target.family, stream, 0))
        try #require(client >= 0)
        for option in clientOptions { Scene.set(client, option) }
        if clientIsNonBlocking {
            expect(switchFileControl(client, F_SETFL, Int(O_NONBLOCK)), is: 0)
            expect(target.withBytes { switchConnect(client, $0, $1) }, is: -Int(EINPROGRESS))
        } else {
            expect(target.withBytes { switchConnect(client, $0, $1) }, is: 0)
        }
        server = Int32(switchAccept(listener, nil, nil, 0))
        try #require(server >= 0)
    }

    /// Sockets that are connected already, with nothing said yet.
    init(client: Int32, server: Int32, listener: Int32) {
        self.client = client
        self.server = server
        self.listener = listener
        listenName = SocketName.local(listener) ?? SocketName("127.0.0.1", 0)
    }

    /// A second client of the IPv4 listener; nobody has accepted it yet.
    func connectAnother() -> Int32 {
        let fd = Int32(switchSocket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
        expect(listenName.withBytes { switchConnect(fd, $0, $1) }, is: 0)
        return fd
    }

    static func set(_ fd: Int32, _ option: (Int32, Int32, Int32)) {
        var value = option.2
        expect(switchSetOption(fd, option.0, option.1, &value, 4), is: 0)
    }

    func slot(_ fd: Int32) -> Slot { sessionOf(socketIndex(fd) ?? 0).slot }
    func reason(_ fd: Int32) -> Reason { Reason(rawValue: slot(fd).reason.load()) ?? .none }
    func phase(_ fd: Int32) -> Int32 { sessionOf(socketIndex(fd) ?? 0).connection.pointee.companionPhase }
    func sendsOverCompanion(_ fd: Int32) -> Bool { slot(fd).sendCuts.load() & 1 == 1 }
    var isFullyOnCompanion: Bool {
        sendsOverCompanion(client) && sendsOverCompanion(server)
            && slot(client).receiveCuts.load() & 1 == 1 && slot(server).receiveCuts.load() & 1 == 1
    }

    // MARK: Talking

    /// 2 × 65,521 bytes that look random, the second half like the first: position p of a direction carries byte p mod 65,521.
    private static let pattern: [UInt8] = {
        var state: UInt64 = 0x9E37_79B9_7F4A_7C15
        let half = (0..<period).map { _ -> UInt8 in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 40)
        }
        return half + half
    }()
    private static let period = 65_521

    private static func send(_ fd: Int32, _ count: Int, _ position: inout Int) -> Bool {
        let start = position % period
        var done = 0
        while done < count {
            let sent = pattern.withUnsafeBytes {
                switchSend(fd, $0.baseAddress! + start + done, count - done, Int32(MSG_NOSIGNAL))
            }
            if sent <= 0 { return false }
            done += sent
        }
        position += count
        return true
    }

    private static func receive(_ fd: Int32, _ count: Int, _ from: Int, piece: Int = Int.max) -> Bool {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let got = bytes.withUnsafeMutableBytes { switchReceive(fd, $0.baseAddress! + done, min(piece, count - done), 0) }
            if got <= 0 { return false }
            done += got
        }
        return pattern.withUnsafeBytes { memcmp($0.baseAddress! + from % period, bytes, count) == 0 }
    }

    /// The client sends, the server reads and compares (in pieces of at most `piece` bytes).
    func request(_ count: Int, piece: Int = Int.max) -> Bool {
        let from = toServer
        return Scene.send(client, count, &toServer) && Scene.receive(server, count, from, piece: piece)
    }

    func answer(_ count: Int) -> Bool {
        let from = toClient
        return Scene.send(server, count, &toClient) && Scene.receive(client, count, from)
    }

    /// Requests and answers of 1 … `size` bytes. False: a byte was wrong, or a call failed.
    func talk(_ rounds: Int, size: Int = 3000) -> Bool {
        for round in 0..<rounds {
            let count = 1 + (round * 997) % size
            guard request(count), answer(size + 1 - count) else { return false }
        }
        return true
    }

    /// Both ends close, and see the end of the stream as over TCP.
    func close() {
        expect(switchClose(client), is: 0)
        var one: UInt8 = 0
        expect(switchReceive(server, &one, 1, 0), is: 0)
        expect(switchClose(server), is: 0)
        expect(switchClose(listener), is: 0)
    }
}
