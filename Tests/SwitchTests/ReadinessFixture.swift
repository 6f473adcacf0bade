import CSocketSwitch
import ServiceProviders
import Session
import SocketTable
import StreamRing
@testable import Switch
import Testing

/// What a wait has to end within, whatever happens: only a hang takes so long.
let watchdogMilliseconds = 20_000

/// Two ends of one loopback TCP connection in this process.
struct SocketPair {
    var a: Int32
    var b: Int32

    /// Ordinary sockets that the switch does not know.
    static func raw() -> SocketPair { make(tracked: false) }

    /// Sockets of the switch, on TCP.
    static func tracked() -> SocketPair { make(tracked: true) }

    /// Sockets of the switch with both directions on a companion.
    static func dual() -> SocketPair {
        let pair = tracked()
        pair.upgrade()
        pair.settle()
        return pair
    }

    private static func make(tracked: Bool) -> SocketPair {
        func check(_ result: Int) -> Int32 {
            #expect(result >= 0)
            return Int32(result)
        }
        let stream = Int32(SOCK_STREAM.rawValue)
        // Without a service, sockets would not be tracked at all.
        privateState.pointee.enabled = true
        let listener = check(tracked ? switchSocket(AF_INET, stream, 0) : ss_sys_socket(AF_INET, stream, 0))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = UInt32(MemoryLayout<sockaddr_in>.size)
        #expect(switchBind(listener, &address, length) == 0)
        #expect(switchListen(listener, 16) == 0)
        #expect(ss_sys_getsockname(listener, &address, &length) == 0)
        let a = check(tracked ? switchSocket(AF_INET, stream, 0) : ss_sys_socket(AF_INET, stream, 0))
        #expect(switchConnect(a, &address, length) == 0)
        let b = check(switchAccept(listener, nil, nil, 0))
        _ = switchClose(listener)
        return SocketPair(a: a, b: b)
    }

    func session(_ fd: Int32) -> Session { sessionOf(socketIndex(fd) ?? 0) }

    /// Does what two switches and their service would: a companion on each side, hellos, service.
    func upgrade() {
        let entry = privateState.pointee.providers.unsafelyUnwrapped
        for fd in [a, b] {
            let index = socketIndex(fd) ?? 0
            session(fd).slot.flags.clearBits(Slot.Flags.tcpOnly)
            if session(fd).connection.pointee.companion != 0 { closeCompanion(index) }
            if session(fd).slot.localAddress.family == 0 { _ = recordLocalAddress(fd, session(fd).slot) }
            #expect(makeCompanion(index, entry))
        }
        #expect(sharedMemoryProviderPairLocally(session(a).connection.pointee.companion, session(b).connection.pointee.companion) == 0)
        for fd in [a, b] { #expect(session(fd).begin() != .failed) }
        for fd in [a, b] { #expect(session(fd).negotiate() == .done) }
        for fd in [a, b] {
            session(fd).connection.pointee.companionPhase = CompanionPhase.up
            #expect(readinessWillUpgrade(socketIndex(fd) ?? 0))
            session(fd).slot.mode.storeSequential(Slot.Mode.dual)
            readinessKick(socketIndex(fd) ?? 0)
        }
    }

    /// Moves both directions to the companion.
    func settle() {
        for _ in 0..<100 where session(a).sendsOnTCP || session(b).sendsOnTCP || session(a).receivesOnTCP || session(b).receivesOnTCP {
            for (from, to) in [(a, b), (b, a)] {
                session(to).maintain(to)
                #expect(send(from, 1) == 1)
                #expect(receive(to, 1) == 1)
            }
        }
        #expect(!session(a).sendsOnTCP && !session(b).sendsOnTCP && !session(a).receivesOnTCP && !session(b).receivesOnTCP)
    }

    func close() {
        _ = switchClose(a)
        _ = switchClose(b)
    }
}

@discardableResult
func send(_ fd: Int32, _ count: Int) -> Int {
    let bytes = [UInt8](repeating: 7, count: count)
    return bytes.withUnsafeBytes { switchSend(fd, $0.baseAddress, count, Int32(MSG_NOSIGNAL | MSG_DONTWAIT)) }
}

/// Up to `count` bytes, at once. The number received, or -errno.
@discardableResult
func receive(_ fd: Int32, _ count: Int, wait: Bool = true) -> Int {
    var bytes = [UInt8](repeating: 0, count: count)
    if wait { _ = poll([(fd, POLLIN)], watchdogMilliseconds) }
    return bytes.withUnsafeMutableBytes { switchReceive(fd, $0.baseAddress, count, Int32(MSG_DONTWAIT)) }
}

func queued(_ fd: Int32) -> Int {
    if let index = socketIndex(fd), sessionOf(index).isDual { return sessionOf(index).queuedBytes(fd) }
    var count: Int32 = 0
    return ss_sys_ioctl(fd, ss_fionread, &count) < 0 ? -1 : Int(count)
}

/// Answers of poll, or [-errno].
@discardableResult
func poll(_ entries: [(Int32, Int32)], _ milliseconds: Int) -> [Int] {
    var list = entries.map { pollfd(fd: $0.0, events: Int16(truncatingIfNeeded: $0.1), revents: 0) }
    var timeout = timespec(tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000)
    let result = list.withUnsafeMutableBufferPointer { switchPoll($0.baseAddress, $0.count, &timeout, nil) }
    if result < 0 { return [result] }
    #expect(result == list.count { $0.revents != 0 })
    return list.map { Int(UInt16(bitPattern: $0.revents)) }
}

/// An epoll set. One of the switch's, or one that it does not know.
struct Epoll {
    let fd: Int32

    init(tracked: Bool = true) {
        fd = Int32(ss_syscall6(Int(SYS_epoll_create1), Int(O_CLOEXEC), 0, 0, 0, 0, 0))
        if tracked { switchEpollCreated(fd) }
    }

    func control(_ operation: Int32, _ target: Int32, _ events: UInt32 = 0, _ data: UInt64? = nil) -> Int {
        var event = epoll_event()
        ss_event_set(&event, 0, events, data ?? UInt64(target))
        return switchEpollControl(fd, operation, target, &event)
    }

    func add(_ target: Int32, _ events: UInt32, _ data: UInt64? = nil) -> Int { control(1, target, events, data) }
    func modify(_ target: Int32, _ events: UInt32, _ data: UInt64? = nil) -> Int { control(3, target, events, data) }
    func delete(_ target: Int32) -> Int { control(2, target) }

    struct Event: Hashable, CustomStringConvertible {
        var events: UInt32
        var data: UInt64
        var description: String { "\(data):\(String(events, radix: 16))" }
    }

    func wait(_ milliseconds: Int, maximum: Int = 64) -> [Event] {
        var list = [epoll_event](repeating: epoll_event(), count: maximum)
        var timeout = timespec(tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000)
        let count = list.withUnsafeMutableBufferPointer {
            switchEpollWait(fd, $0.baseAddress, Int32(maximum), milliseconds < 0 ? nil : UnsafePointer(withUnsafeMutablePointer(to: &timeout) { $0 }), nil)
        }
        #expect(count >= 0)
        return (0..<max(count, 0)).map { index in
            list.withUnsafeBufferPointer { Event(events: ss_event_bits($0.baseAddress, index), data: ss_event_data($0.baseAddress, index)) }
        }
    }

    func close() { _ = switchClose(fd) }
}

struct SeededRandom: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
