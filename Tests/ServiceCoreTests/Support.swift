import CSocketSwitch
import ControlPlane
import Glibc
import Logging
import Rendezvous
import ServiceCore
import SocketTable
import StreamRing
import Testing

/// A clock that stands still until it is told otherwise.
final class Clock {
    var milliseconds: UInt64 = 1_000_000
}

/// A service without a listening socket, driven one turn after the other.
final class ServiceUnderTest {
    let service: Service
    let clock = Clock()

    init(_ adjust: (inout ServiceConfiguration) -> Void = { _ in }) throws {
        var configuration = ServiceConfiguration()
        configuration.path = "/nowhere"
        adjust(&configuration)
        let clock = clock
        service = try Service(configuration, log: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })) { clock.milliseconds }
    }

    func settle() { for _ in 0..<4 { service.turn(maximumMilliseconds: 0) } }

    func advance(milliseconds: UInt64) {
        clock.milliseconds += milliseconds
        settle()
    }

    func connect() throws -> TestClient {
        var ends: [Int32] = [0, 0]
        try #require(socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
        service.adopt(Descriptor(ends[0]))
        return TestClient(Descriptor(ends[1]))
    }

    /// A client that has said hello with an arena of its own.
    func connectSwitched() throws -> TestClient {
        let client = try connect()
        let arena = try TestArena()
        client.arena = arena
        client.send(MessageKind.hello, [arena.descriptor]) { $0.process = UInt32(arena.process) }
        settle()
        #expect(client.isConnected)
        return client
    }
}

/// One family's arena, made as the library makes it.
final class TestArena {
    let descriptor: Descriptor
    let arena: FamilyArena
    let process: Int

    init() throws {
        descriptor = try TestArena.memory(bytes: FamilyArena.bytes, seals: Int(ss_seal_fixed_size))
        let address = ss_sys_mmap(nil, FamilyArena.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor.raw, 0)
        try #require(address > 0)
        arena = FamilyArena(UnsafeMutableRawPointer(bitPattern: address)!)
        arena.initialize()
        process = arena.addProcess(pid: UInt64(getpid()))
    }

    deinit { _ = ss_sys_munmap(arena.base, FamilyArena.bytes) }

    static func memory(bytes: Int, seals: Int) throws -> Descriptor {
        let memory = try Descriptor.checked(ss_sys_memfd_create("sockswitch", ss_mfd_cloexec | ss_mfd_allow_sealing), "memfd_create")
        try SystemError.check(ss_sys_ftruncate(memory.raw, Int64(bytes)), "ftruncate")
        try SystemError.check(ss_sys_fcntl(memory.raw, ss_f_add_seals, seals), "seal")
        return memory
    }

    var mailbox: UInt64 { arena.process(process).mailbox.load() }
}

/// The library's side of a connection to the service.
final class TestClient {
    let socket: Descriptor
    var arena: TestArena!

    init(_ socket: Descriptor) { self.socket = socket }

    /// Ends the connection, also when a program that another test starts holds a copy of the descriptor until its exec.
    deinit { _ = ss_sys_shutdown(socket.raw, Int32(SHUT_RDWR)) }

    func send(_ kind: UInt32, _ descriptors: [Descriptor] = [], _ fill: (Message) -> Void = { _ in }) {
        var bytes = [UInt8](repeating: 0, count: Message.bytes)
        bytes.withUnsafeMutableBytes {
            let message = Message($0.baseAddress!)
            message.clear(kind: kind)
            fill(message)
        }
        sendRaw(bytes, descriptors)
    }

    func sendRaw(_ bytes: [UInt8], _ descriptors: [Descriptor] = []) {
        #expect(bytes.withUnsafeBytes { Packet.send($0, descriptors: descriptors, on: socket.raw) } == 0)
    }

    func announce(_ tcp: Descriptor, slot: UInt64, generation: UInt64 = 1, role: UInt32) {
        send(MessageKind.announce, [tcp]) {
            $0.slot = slot
            $0.generation = generation
            $0.role = role
        }
    }

    func listen(_ text: String, port: UInt16, kind: UInt32 = MessageKind.listen) {
        send(kind) { message in
            let address = CompactAddress(message.address)
            address.port = port
            if inet_pton(AF_INET, text, address.bytes) == 1 {
                address.family = UInt16(AF_INET)
            } else {
                #expect(inet_pton(AF_INET6, text, address.bytes) == 1)
                address.family = UInt16(AF_INET6)
            }
        }
    }

    struct Answer {
        var kind: UInt32
        var slot: UInt64
        var generation: UInt64
        var role: UInt32
        var reason: Reason?
        var descriptors: [Descriptor]
        var text: String
    }

    /// The next message from the service, nil if there is none.
    func receive() -> Answer? {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Packet.maximumBytes, alignment: 8)
        defer { buffer.deallocate() }
        let received = Packet.receive(into: buffer, on: socket.raw)
        guard received.result > 0 else { return nil }
        let message = Message(buffer.baseAddress!)
        guard received.result == Message.bytes, message.magic == Message.magic else {
            return Answer(kind: 0, slot: 0, generation: 0, role: 0, descriptors: [], text: String(decoding: buffer[..<received.result], as: UTF8.self))
        }
        return Answer(
            kind: message.kind, slot: message.slot, generation: message.generation, role: message.role,
            reason: Reason(rawValue: UInt64(message.reason)), descriptors: received.descriptors, text: "")
    }

    /// False once the service has ended the connection.
    var isConnected: Bool {
        var byte: UInt8 = 0
        return recv(socket.raw, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)) != 0
    }
}

/// Both ends of a TCP connection on the loopback interface.
struct Connection {
    var connector: Descriptor
    var acceptor: Descriptor
    var port: UInt16

    init(family: Int32 = AF_INET, mappedConnector: Bool = false) throws {
        let listener = try Descriptor.checked(ss_sys_socket(family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0), "socket")
        var address = [UInt8](repeating: 0, count: 28)
        address.withUnsafeMutableBytes { $0.storeBytes(of: UInt16(family), as: UInt16.self) }
        if family == AF_INET { address.replaceSubrange(4..<8, with: [127, 0, 0, 1]) } else { address[23] = 1 }
        var length = UInt32(family == AF_INET ? 16 : 28)
        try SystemError.check(ss_sys_bind(listener.raw, address, length), "bind")
        try SystemError.check(ss_sys_listen(listener.raw, 8), "listen")
        try SystemError.check(ss_sys_getsockname(listener.raw, &address, &length), "getsockname")
        port = UInt16(address[2]) << 8 | UInt16(address[3])
        var connectFamily = family
        if mappedConnector {
            connectFamily = AF_INET6
            var mapped = [UInt8](repeating: 0, count: 28)
            mapped.withUnsafeMutableBytes { $0.storeBytes(of: UInt16(AF_INET6), as: UInt16.self) }
            mapped.replaceSubrange(2..<4, with: address[2..<4])
            mapped.replaceSubrange(18..<24, with: [0xFF, 0xFF, 127, 0, 0, 1])
            address = mapped
            length = 28
        }
        connector = try Descriptor.checked(ss_sys_socket(connectFamily, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0), "socket")
        try SystemError.check(ss_sys_connect(connector.raw, address, length), "connect")
        acceptor = try Descriptor.checked(ss_sys_accept4(listener.raw, nil, nil, Int32(SOCK_CLOEXEC.rawValue)), "accept")
    }
}
