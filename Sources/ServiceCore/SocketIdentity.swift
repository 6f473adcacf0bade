import CSocketSwitch
import ControlPlane

/// What the service learns from a TCP socket that was passed to it: everything comes from the kernel, nothing from the
/// sender. Possession of the socket is the right to be paired.
struct SocketIdentity {
    var connection: ConnectionKey
    /// SO_NETNS_COOKIE; 0 when the kernel has none.
    var namespace: UInt64
    /// SO_COOKIE: tells this socket from a later one with the same addresses; 0 when unknown.
    var cookie: UInt64
    /// Shifts of the TCP windows, own and the peer's: the other end must have them the other way round.
    var windowShifts: (own: UInt8, peer: UInt8)
    /// For connections between namespaces: the namespace belongs to the service's own user namespace, so that only
    /// an administrator can have given it its addresses. Nil: not looked at.
    var isNamespaceOfAdministrator: Bool?

    enum Refusal: Error { case notTCP, notConnected }

    /// Reads a socket that the caller closes at once.
    static func read(_ socket: Int32, lookAtNamespaceOwner: Bool) throws(Refusal) -> SocketIdentity {
        guard option(socket, SOL_SOCKET, SO_TYPE) == Int32(SOCK_STREAM.rawValue),
            option(socket, SOL_SOCKET, SO_PROTOCOL) == Int32(IPPROTO_TCP),
            let family = option(socket, SOL_SOCKET, SO_DOMAIN), family == AF_INET || family == AF_INET6
        else { throw .notTCP }
        guard let local = name(socket, ss_sys_getsockname), let peer = name(socket, ss_sys_getpeername),
            local != peer, peer.port != 0
        else { throw .notConnected }
        var information = [UInt8](repeating: 0, count: 104)
        var length = UInt32(information.count)
        guard ss_sys_getsockopt(socket, Int32(IPPROTO_TCP), TCP_INFO, &information, &length) == 0,
            information[0] == ConnectionState.established
        else { throw .notConnected }
        var cookie: UInt64 = 0
        length = 8
        if ss_sys_getsockopt(socket, SOL_SOCKET, 57 /* SO_COOKIE */, &cookie, &length) != 0 { cookie = 0 }
        return SocketIdentity(
            connection: ConnectionKey(local: local, peer: peer), namespace: networkNamespaceCookie(of: socket), cookie: cookie,
            // tcpi_snd_wscale is how far the peer's announced windows are shifted, tcpi_rcv_wscale how far ours.
            windowShifts: (own: information[6] >> 4, peer: information[6] & 15),
            isNamespaceOfAdministrator: lookAtNamespaceOwner ? isOfOwnUserNamespace(socket) : nil)
    }

    /// What can be seen of another process's socket.
    enum Sight { case connected(local: Endpoint), notConnected, nothing }

    /// The connection to `peer` that is descriptor `descriptor` of process `pid`, whose own address the library does not ask for
    /// before it needs it. `nothing`: it is another one, or the service may not look (pidfd_getfd needs what ptrace needs).
    static func look(at descriptor: Int32, in pid: Int32, peer: Endpoint) -> Sight {
        guard let process = Descriptor.ofProcess(pid) else { return .nothing }
        let taken = ss_syscall6(Int(SYS_pidfd_getfd), Int(process.raw), Int(descriptor), 0, 0, 0, 0)
        guard taken >= 0 else { return .nothing }
        let socket = Descriptor(Int32(taken))
        guard let found = name(socket.raw, ss_sys_getpeername) else {
            return option(socket.raw, SOL_SOCKET, SO_PROTOCOL) == Int32(IPPROTO_TCP) ? .notConnected : .nothing
        }
        guard found == peer, let local = name(socket.raw, ss_sys_getsockname) else { return .nothing }
        return .connected(local: local)
    }

    private static func option(_ socket: Int32, _ level: Int32, _ name: Int32) -> Int32? {
        var value: Int32 = 0
        var length = UInt32(4)
        return ss_sys_getsockopt(socket, level, name, &value, &length) == 0 ? value : nil
    }

    private static func name(
        _ socket: Int32, _ call: (Int32, UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Int
    ) -> Endpoint? {
        withUnsafeTemporaryAllocation(byteCount: 128, alignment: 8) { storage in
            var length = UInt32(128)
            guard call(socket, storage.baseAddress!, &length) == 0 else { return nil }
            return Endpoint(socketAddress: storage.baseAddress!, length: Int(min(length, 128)))
        }
    }

    /// Whether the socket's network namespace is owned by the service's own user namespace. Needs CAP_NET_ADMIN there.
    private static func isOfOwnUserNamespace(_ socket: Int32) -> Bool {
        let network = ss_sys_ioctl(socket, 0x894C /* SIOCGSKNS */, nil)
        guard network >= 0 else { return false }
        defer { _ = ss_sys_close(Int32(network)) }
        let owner = ss_sys_ioctl(Int32(network), 0xB701 /* NS_GET_USERNS */, nil)
        guard owner >= 0 else { return false }
        defer { _ = ss_sys_close(Int32(owner)) }
        var theirs = stat()
        var mine = stat()
        return ss_sys_fstat(Int32(owner), &theirs) == 0 && stat("/proc/self/ns/user", &mine) == 0
            && theirs.st_dev == mine.st_dev && theirs.st_ino == mine.st_ino
    }
}

/// The kernel's numbers for the states of a TCP connection.
enum ConnectionState {
    static let established: UInt8 = 1
}

/// A connection as one of its ends sees it.
package struct ConnectionKey: Hashable, Sendable {
    package var local: Endpoint
    package var peer: Endpoint

    /// The same connection as the other end sees it.
    package var mirrored: ConnectionKey { ConnectionKey(local: peer, peer: local) }
}
