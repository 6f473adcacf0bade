import CSocketSwitch
import Glibc
import Rendezvous
import ServiceProviders
import SocketTable
import StreamRing
import Testing

/// The rendezvous service played by the test itself, packet by packet. Nothing in the provider waits for it, so one thread
/// does both sides and nothing depends on time.
final class ScriptedService {
    let directory: String
    var path: String { directory + "/service" }
    private var listener: Int32 = -1
    private(set) var connection: Int32 = -1

    struct Packet: Equatable {
        var kind: UInt32
        var slot: UInt64
        var generation: UInt64
        var role: UInt32
        var port: UInt16
        var process: UInt32
        var descriptorCount: Int
        var peerPort: UInt16?
    }

    init() throws {
        var template = Array("/tmp/sockswitch-test-XXXXXX".utf8CString)
        try #require(mkdtemp(&template) != nil)
        directory = template.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
        try open()
    }

    func open() throws {
        listener = Int32(ss_sys_socket(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0))
        var address = [UInt8](repeating: 0, count: 110)
        address[0] = UInt8(AF_UNIX)
        address.replaceSubrange(2..<2 + path.utf8.count, with: Array(path.utf8))
        try #require(ss_sys_bind(listener, address, UInt32(3 + path.utf8.count)) == 0)
        try #require(ss_sys_listen(listener, 8) == 0)
    }

    /// The service dies: as after kill -9, its socket file stays.
    func die() {
        for descriptor in [connection, listener] where descriptor >= 0 { _ = ss_sys_close(descriptor) }
        connection = -1
        listener = -1
    }

    func restart() throws {
        unlink(path)
        try open()
    }

    func remove() {
        die()
        unlink(path)
        rmdir(directory)
    }

    /// Takes the next connection of the library.
    @discardableResult
    func accept() -> Bool {
        let accepted = Int32(ss_sys_accept4(listener, nil, nil, Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)))
        guard accepted >= 0 else { return false }
        connection = accepted
        return true
    }

    /// Goes back to an earlier connection.
    func adopt(_ connection: Int32) { self.connection = connection }

    /// The next packet that the library sent, nil if there is none. Received descriptors are looked at and closed.
    func receive() -> Packet? {
        var storage = [UInt64](repeating: 0, count: 24)
        return storage.withUnsafeMutableBytes { bytes -> Packet? in
            let base = bytes.baseAddress!
            var piece = iovec(iov_base: base, iov_len: Message.bytes)
            return withUnsafeMutablePointer(to: &piece) { piece -> Packet? in
                var header = msghdr()
                header.msg_iov = piece
                header.msg_iovlen = 1
                header.msg_control = base + Message.bytes
                header.msg_controllen = 64
                let count = ss_sys_recvmsg(connection, &header, Int32(MSG_CMSG_CLOEXEC))
                guard count > 0 else { return nil }
                #expect(count == Message.bytes)
                let message = Message(base)
                #expect(message.magic == Message.magic)
                var descriptors: [Int32] = []
                if header.msg_controllen >= 20 {
                    let length = (base + Message.bytes).load(as: Int.self)
                    for offset in stride(from: 16, to: length, by: 4) {
                        descriptors.append((base + Message.bytes).load(fromByteOffset: offset, as: Int32.self))
                    }
                }
                var peerPort: UInt16?
                if message.kind == MessageKind.announce, let socket = descriptors.first {
                    var address = [UInt8](repeating: 0, count: 28)
                    var size: UInt32 = 28
                    if ss_sys_getpeername(socket, &address, &size) == 0 { peerPort = UInt16(address[2]) << 8 | UInt16(address[3]) }
                }
                for descriptor in descriptors { _ = ss_sys_close(descriptor) }
                return Packet(
                    kind: message.kind, slot: message.slot, generation: message.generation, role: message.role,
                    port: CompactAddress(message.address).port, process: message.process, descriptorCount: descriptors.count,
                    peerPort: peerPort)
            }
        }
    }

    func send(_ kind: UInt32, _ descriptors: [Int32] = [], _ fill: (Message) -> Void = { _ in }) {
        var bytes = [UInt8](repeating: 0, count: Message.bytes)
        bytes.withUnsafeMutableBytes {
            let message = Message($0.baseAddress!)
            message.clear(kind: kind)
            fill(message)
        }
        sendRaw(bytes, descriptors)
    }

    func sendRaw(_ bytes: [UInt8], _ descriptors: [Int32] = []) {
        var control = [UInt64](repeating: 0, count: 2 + (descriptors.count + 1) / 2 + 1)
        var bytes = bytes
        let sent = bytes.withUnsafeMutableBytes { payload in
            control.withUnsafeMutableBytes { control -> Int in
                var piece = iovec(iov_base: payload.baseAddress, iov_len: payload.count)
                return withUnsafeMutablePointer(to: &piece) { piece in
                    var header = msghdr()
                    header.msg_iov = piece
                    header.msg_iovlen = 1
                    if !descriptors.isEmpty {
                        let base = control.baseAddress!
                        base.storeBytes(of: 16 + 4 * descriptors.count, as: Int.self)
                        base.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: Int32.self)
                        base.storeBytes(of: Int32(SCM_RIGHTS), toByteOffset: 12, as: Int32.self)
                        for (index, descriptor) in descriptors.enumerated() {
                            base.storeBytes(of: descriptor, toByteOffset: 16 + 4 * index, as: Int32.self)
                        }
                        header.msg_control = base
                        header.msg_controllen = (16 + 4 * descriptors.count + 7) & ~7
                    }
                    return ss_sys_sendmsg(connection, &header, Int32(MSG_NOSIGNAL))
                }
            }
        }
        #expect(sent == bytes.count)
    }

    func refuse(slot: UInt64, generation: UInt64, _ reason: Reason) {
        send(MessageKind.refused) {
            $0.slot = slot
            $0.generation = generation
            $0.reason = UInt32(reason.rawValue)
        }
    }

    /// What `paired` hands to one end.
    struct Ends {
        let segment: Int32
        let doorbells: [Int32]

        init() {
            segment = makeLocalSegment()
            doorbells = (0..<2).map { _ in Int32(ss_sys_eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))) }
        }

        func close() { for descriptor in [segment] + doorbells { _ = ss_sys_close(descriptor) } }
    }

    func pair(slot: UInt64, generation: UInt64, side: Int, _ ends: Ends) {
        send(MessageKind.paired, [ends.segment, ends.doorbells[side], ends.doorbells[1 - side]]) {
            $0.slot = slot
            $0.generation = generation
            $0.role = UInt32(side)
        }
    }

    var isConnectionOpen: Bool {
        var byte: UInt8 = 0
        return ss_sys_recvfrom(connection, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) != 0
    }
}
