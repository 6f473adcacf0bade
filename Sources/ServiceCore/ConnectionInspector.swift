import CSocketSwitch
import ControlPlane
import Glibc

/// Asks the kernel (sock_diag) whether a socket that was announced a while ago still is the one that has its addresses.
///
/// The service does not keep announced sockets, so without this somebody could announce a connection, end it with a
/// reset, and be paired with the next connection that happens to get the same port.
final class ConnectionInspector {
    enum Answer { case same, gone, unknown }

    private let ownNamespace: UInt64
    private var sockets: [UInt64: Descriptor] = [:]
    private var sequence: UInt32 = 0

    init() {
        let socket = ConnectionInspector.open()
        ownNamespace = socket.map { networkNamespaceCookie(of: $0.raw) } ?? 0
        if let socket { sockets[ownNamespace] = socket }
    }

    private static func open() -> Descriptor? {
        let result = ss_sys_socket(AF_NETLINK, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 4 /* NETLINK_SOCK_DIAG */)
        return result < 0 ? nil : Descriptor(Int32(result))
    }

    /// Is the established socket with these addresses, in the namespace with this cookie, the one with `cookie`?
    /// `pid`: a process that may live in that namespace, to enter it by; this needs privileges.
    func check(_ connection: ConnectionKey, namespace: UInt64, cookie: UInt64, pid: Int32) -> Answer {
        guard cookie != 0, let socket = socket(namespace: namespace, pid: pid) else { return .unknown }
        sequence &+= 1
        // nlmsghdr (16 bytes), inet_diag_req_v2 (56 bytes).
        return withUnsafeTemporaryAllocation(byteCount: 512, alignment: 8) { buffer in
            memset(buffer.baseAddress!, 0, 512)
            buffer.storeBytes(of: UInt32(72), as: UInt32.self)
            buffer.storeBytes(of: UInt16(20), toByteOffset: 4, as: UInt16.self)  // SOCK_DIAG_BY_FAMILY
            buffer.storeBytes(of: UInt16(1), toByteOffset: 6, as: UInt16.self)  // NLM_F_REQUEST
            buffer.storeBytes(of: sequence, toByteOffset: 8, as: UInt32.self)
            buffer.storeBytes(of: UInt8(connection.local.isIPv4 ? AF_INET : AF_INET6), toByteOffset: 16, as: UInt8.self)
            buffer.storeBytes(of: UInt8(IPPROTO_TCP), toByteOffset: 17, as: UInt8.self)
            buffer.storeBytes(of: UInt32.max, toByteOffset: 20, as: UInt32.self)
            buffer.storeBytes(of: connection.local.port.bigEndian, toByteOffset: 24, as: UInt16.self)
            buffer.storeBytes(of: connection.peer.port.bigEndian, toByteOffset: 26, as: UInt16.self)
            store(connection.local, in: buffer, at: 28)
            store(connection.peer, in: buffer, at: 44)
            buffer.storeBytes(of: cookie, toByteOffset: 64, as: UInt64.self)
            guard ss_sys_sendto(socket.raw, buffer.baseAddress!, 72, 0) == 72 else { return .unknown }
            // The kernel answers before sendto returns.
            for _ in 0..<4 {
                let count = ss_sys_recvfrom(socket.raw, buffer.baseAddress!, 512, Int32(MSG_DONTWAIT))
                guard count >= 20 else { return .unknown }
                guard buffer.load(fromByteOffset: 8, as: UInt32.self) == sequence else { continue }
                switch buffer.load(fromByteOffset: 4, as: UInt16.self) {
                case 20: return buffer.load(fromByteOffset: 17, as: UInt8.self) == ConnectionState.established ? .same : .gone
                case 2:  // NLMSG_ERROR
                    let code = buffer.load(fromByteOffset: 16, as: Int32.self)
                    return code == -ENOENT || code == -ESTALE ? .gone : .unknown
                default: return .unknown
                }
            }
            return .unknown
        }
    }

    private func store(_ endpoint: Endpoint, in buffer: UnsafeMutableRawBufferPointer, at offset: Int) {
        if endpoint.isIPv4 {
            buffer.storeBytes(of: UInt32(truncatingIfNeeded: endpoint.low).bigEndian, toByteOffset: offset, as: UInt32.self)
        } else {
            let bytes = endpoint.networkBytes
            buffer.storeBytes(of: bytes.0, toByteOffset: offset, as: UInt64.self)
            buffer.storeBytes(of: bytes.1, toByteOffset: offset + 8, as: UInt64.self)
        }
    }

    /// A netlink socket in the namespace; a few are kept.
    private func socket(namespace: UInt64, pid: Int32) -> Descriptor? {
        if let known = sockets[namespace] { return known }
        guard namespace != 0, ownNamespace != 0, geteuid() == 0, pid > 0 else { return nil }
        let home = Glibc.open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)
        guard home >= 0 else { return nil }
        defer { close(home) }
        let target = Glibc.open("/proc/\(pid)/ns/net", O_RDONLY | O_CLOEXEC)
        guard target >= 0 else { return nil }
        defer { close(target) }
        guard setns(target, 0x4000_0000 /* CLONE_NEWNET */) == 0 else { return nil }
        let made = ConnectionInspector.open()
        guard setns(home, 0x4000_0000) == 0 else { fatalError("cannot return to the own network namespace") }
        guard let made, networkNamespaceCookie(of: made.raw) == namespace else { return nil }
        if sockets.count >= 64 { sockets = sockets.filter { $0.key == ownNamespace } }
        sockets[namespace] = made
        return made
    }
}
