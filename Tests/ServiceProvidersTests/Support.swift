import CSocketSwitch
import Glibc
import OwnProcess
import Rendezvous
import ServiceProviders
import Session
import SocketTable
import StreamRing
import Testing

/// The providers' state belongs to the process, so every test that touches it lies in this suite, one after the other.
@Suite(.ownProcess) struct ServiceProviders {}

/// The switch's up-calls, counted.
enum UpCalls {
    nonisolated(unsafe) static var contexts: [SOCKET: UInt] = [:]
    nonisolated(unsafe) static var nextHandle: SOCKET = 1
    nonisolated(unsafe) static var created = 0
    nonisolated(unsafe) static var closed = 0
    nonisolated(unsafe) static var completions: [(handle: SOCKET, error: Int32, count: Int)] = []
    /// The next WPUCreateSocketHandle fails with this.
    nonisolated(unsafe) static var createError: Int32 = 0

    static func reset() {
        contexts = [:]
        created = 0
        closed = 0
        completions = []
        createError = 0
    }

    static var table: WSPUPCALLTABLE {
        var table = WSPUPCALLTABLE()
        table.lpWPUCreateSocketHandle = { _, context, error in
            if UpCalls.createError != 0 {
                error?.pointee = UpCalls.createError
                UpCalls.createError = 0
                return SOCKET.max
            }
            UpCalls.created += 1
            UpCalls.nextHandle += 1
            UpCalls.contexts[UpCalls.nextHandle] = context
            return UpCalls.nextHandle
        }
        table.lpWPUQuerySocketHandleContext = { handle, context, error in
            guard let found = UpCalls.contexts[handle] else {
                error?.pointee = ENOTSOCK
                return -1
            }
            context?.pointee = found
            return 0
        }
        table.lpWPUCloseSocketHandle = { handle, error in
            guard UpCalls.contexts.removeValue(forKey: handle) != nil else {
                error?.pointee = ENOTSOCK
                return -1
            }
            UpCalls.closed += 1
            return 0
        }
        table.lpWPUCompleteOverlappedRequest = { handle, _, error, count, _ in
            UpCalls.completions.append((handle, error, count))
            return 0
        }
        return table
    }
}

/// What a call did: its result, or the error number.
struct Outcome: Equatable, CustomStringConvertible {
    var error: Int32
    static let done = Outcome(error: 0)
    static func failed(_ error: Int32) -> Outcome { Outcome(error: error) }
    var description: String { error == 0 ? "done" : String(cString: strerror(error)) }
}

/// The SharedMemory provider as the switch calls it. Ends itself; every test checks that nothing is left.
final class SharedMemory {
    var calls = WSPPROC_TABLE()
    private let descriptorsBefore = ownDescriptorCount

    init() {
        UpCalls.reset()
        var upCalls = UpCalls.table
        #expect(sharedMemoryStartupEx(UInt32(SOCKSWITCH_SPI_VERSION), nil, &upCalls, &calls) == 0)
    }

    /// WSPCleanup; then all handles are closed and every descriptor of the library's is gone.
    func end() {
        var error: Int32 = 0
        #expect(calls.lpWSPCleanup(&error) == 0)
        sharedMemoryProviderConfigure(servicePath: nil, arenaDescriptor: -1, arena: nil, process: 0)
        #expect(UpCalls.contexts.isEmpty)
        #expect(UpCalls.created == UpCalls.closed)
        #expect(ownDescriptorCount == descriptorsBefore)
    }

    private func outcome(_ body: (UnsafeMutablePointer<Int32>) -> Int32) -> Outcome {
        var error: Int32 = 0
        return body(&error) == 0 ? .done : .failed(error)
    }

    func socket(family: Int32 = AF_INET) -> SOCKET {
        var error: Int32 = 0
        var info = WSAPROTOCOL_INFO()
        info.dwCatalogEntryId = 7
        let made = calls.lpWSPSocket(family, Int32(SOCK_STREAM.rawValue), Int32(IPPROTO_TCP), &info, 0, 0, &error)
        #expect(made != SOCKET.max, "\(Outcome.failed(error))")
        return made
    }

    func bind(_ socket: SOCKET, _ address: SocketAddress) -> Outcome {
        outcome { error in address.withPointer { calls.lpWSPBind(socket, $0, $1, error) } }
    }

    func listen(_ socket: SOCKET) -> Outcome { outcome { calls.lpWSPListen(socket, 8, $0) } }

    func connect(_ socket: SOCKET, _ address: SocketAddress) -> Outcome {
        outcome { error in address.withPointer { calls.lpWSPConnect(socket, $0, $1, nil, nil, error) } }
    }

    func close(_ socket: SOCKET) -> Outcome { outcome { calls.lpWSPCloseSocket(socket, $0) } }

    func select(_ socket: SOCKET, _ bits: Int) -> Outcome { outcome { calls.lpWSPEventSelect(socket, -1, Int32(bits), $0) } }

    func events(_ socket: SOCKET) -> WSANETWORKEVENTS {
        var events = WSANETWORKEVENTS()
        var error: Int32 = 0
        #expect(calls.lpWSPEnumNetworkEvents(socket, -1, &events, &error) == 0)
        return events
    }

    func send(_ socket: SOCKET, _ pieces: [[UInt8]]) -> Outcome {
        let buffers = pieces.map { piece in
            let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: max(piece.count, 1), alignment: 8)
            copy.copyBytes(from: piece)
            return WSABUF(len: piece.count, buf: copy.baseAddress)
        }
        defer { for buffer in buffers { buffer.buf.deallocate() } }
        var sent = -1
        let result = outcome { calls.lpWSPSend(socket, buffers, UInt32(buffers.count), &sent, 0, nil, $0) }
        if result == .done { #expect(sent == pieces.reduce(0) { $0 + $1.count }) }
        return result
    }

    func receive(_ socket: SOCKET, room: Int = 256) -> (Outcome, [UInt8]) {
        var bytes = [UInt8](repeating: 0, count: max(room, 1))
        var received = 0
        var flags: UInt32 = 0
        let result = bytes.withUnsafeMutableBytes { target in
            var buffer = WSABUF(len: room, buf: target.baseAddress)
            return outcome { calls.lpWSPRecv(socket, &buffer, 1, &received, &flags, nil, $0) }
        }
        return (result, Array(bytes.prefix(result == .done ? received : 0)))
    }

    func ring(_ socket: SOCKET, flags: Int = 0) -> Outcome {
        var sent = -1
        return outcome { calls.lpWSPSend(socket, nil, 0, &sent, UInt32(flags), nil, $0) }
    }

    func silence(_ socket: SOCKET) -> Outcome {
        var received = -1
        var flags: UInt32 = 0
        return outcome { calls.lpWSPRecv(socket, nil, 0, &received, &flags, nil, $0) }
    }

    func ioctl<Input>(_ socket: SOCKET, _ code: Int, input: Input) -> Outcome {
        withUnsafeBytes(of: input) { bytes in
            var returned = 0
            return outcome { calls.lpWSPIoctl(socket, UInt32(code), bytes.baseAddress, bytes.count, nil, 0, &returned, $0) }
        }
    }

    func ioctl<Output>(_ socket: SOCKET, _ code: Int, output: inout Output) -> Outcome {
        withUnsafeMutableBytes(of: &output) { bytes in
            var returned = 0
            let result = outcome { calls.lpWSPIoctl(socket, UInt32(code), nil, 0, bytes.baseAddress, bytes.count, &returned, $0) }
            if result == .done { #expect(returned == bytes.count) }
            return result
        }
    }

    func reason(_ socket: SOCKET) -> Reason? {
        var number: Int32 = -1
        #expect(ioctl(socket, Int(SIO_SOCKSWITCH_REASON), output: &number) == .done)
        return Reason(rawValue: UInt64(UInt32(bitPattern: number)))
    }

    func notification(_ socket: SOCKET) -> Int32 {
        var descriptor: Int32 = -1
        #expect(ioctl(socket, Int(SIO_SOCKSWITCH_NOTIFICATION), output: &descriptor) == .done)
        return descriptor
    }

    func extensionFunction<Function>(_ socket: SOCKET, _ number: Int, as type: Function.Type) -> Function? {
        var id = ss_extension_guid(Int32(number))
        var function: UnsafeMutableRawPointer?
        var returned = 0
        let result = outcome {
            calls.lpWSPIoctl(
                socket, UInt32(SIO_GET_EXTENSION_FUNCTION_POINTER), &id, MemoryLayout<GUID>.size, &function, 8, &returned, $0)
        }
        if result != .done { #expect(result == .failed(EOPNOTSUPP)) }
        return result == .done ? unsafeBitCast(function, to: type) : nil
    }

    /// Two connected companions of this process.
    func pair(doorbells: UInt32 = DoorbellKind.events) -> (SOCKET, SOCKET) {
        let first = socket()
        let second = socket()
        #expect(bind(first, .loopback(1001)) == .done)
        #expect(bind(second, .loopback(1002)) == .done)
        #expect(sharedMemoryProviderPairLocally(first, second, doorbells: doorbells) == 0)
        return (first, second)
    }
}

/// An IPv4 or IPv6 socket address.
struct SocketAddress: Equatable {
    var bytes: [UInt8]

    static func loopback(_ port: UInt16) -> SocketAddress { ipv4([127, 0, 0, 1], port) }

    static func ipv4(_ address: [UInt8], _ port: UInt16) -> SocketAddress {
        SocketAddress(bytes: [UInt8(AF_INET), 0, UInt8(port >> 8), UInt8(port & 0xFF)] + address + [UInt8](repeating: 0, count: 8))
    }

    static func ipv6Loopback(_ port: UInt16) -> SocketAddress {
        SocketAddress(
            bytes: [UInt8(AF_INET6), 0, UInt8(port >> 8), UInt8(port & 0xFF)] + [UInt8](repeating: 0, count: 19) + [1, 0, 0, 0, 0])
    }

    func withPointer<Result>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
        bytes.withUnsafeBytes { body($0.baseAddress!.assumingMemoryBound(to: sockaddr.self), socklen_t($0.count)) }
    }
}

/// A TCP connection over the loopback interface.
struct TCPConnection {
    let connector: Int32
    let acceptor: Int32
    let listenerAddress: SocketAddress
    let connectorAddress: SocketAddress

    init() throws {
        let listener = Int32(ss_sys_socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0))
        defer { _ = ss_sys_close(listener) }
        let any = SocketAddress.loopback(0)
        try #require(any.withPointer { ss_sys_bind(listener, $0, $1) } == 0)
        try #require(ss_sys_listen(listener, 4) == 0)
        func name(_ fd: Int32) -> SocketAddress {
            var address = SocketAddress.loopback(0)
            var length: UInt32 = 16
            _ = ss_sys_getsockname(fd, &address.bytes, &length)
            return address
        }
        let local = name(listener)
        let connector = Int32(ss_sys_socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0))
        try #require(local.withPointer { ss_sys_connect(connector, $0, $1) } == 0)
        let acceptor = Int32(ss_sys_accept4(listener, nil, nil, Int32(SOCK_CLOEXEC.rawValue)))
        try #require(acceptor >= 0)
        (listenerAddress, connectorAddress) = (local, name(connector))
        (self.connector, self.acceptor) = (connector, acceptor)
    }

    func close() {
        _ = ss_sys_close(connector)
        _ = ss_sys_close(acceptor)
    }
}

/// Descriptors that this process has open.
func openDescriptors() -> Set<Int32> {
    var found: Set<Int32> = []
    guard let directory = opendir("/proc/self/fd") else { return found }
    defer { closedir(directory) }
    let own = dirfd(directory)
    while let entry = readdir(directory) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) { String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self)) }
        if let number = Int32(name), number != own { found.insert(number) }
    }
    return found
}
