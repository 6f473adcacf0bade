import CSocketSwitch

/// Who is at the other end of a Unix connection, as the kernel says (SO_PEERCRED): the process that called connect, or
/// for a client the one that called listen.
package struct PeerCredentials: Sendable, Equatable {
    package var pid: Int32
    package var uid: UInt32

    package init?(of socket: Int32) {
        var raw: (Int32, UInt32, UInt32) = (0, 0, 0)
        var length = UInt32(12)
        guard ss_sys_getsockopt(socket, SOL_SOCKET, Int32(SO_PEERCRED), &raw, &length) == 0, length == 12 else { return nil }
        pid = raw.0
        uid = raw.1
    }
}

/// The cookie of the network namespace that a socket was made in: unique until the machine restarts; 0 when the kernel
/// has none (before 5.14). The accepted end of a Unix connection has the namespace of the *connecting* socket.
package func networkNamespaceCookie(of socket: Int32) -> UInt64 {
    var cookie: UInt64 = 0
    var length = UInt32(8)
    guard ss_sys_getsockopt(socket, SOL_SOCKET, ss_so_netns_cookie, &cookie, &length) == 0, length == 8 else { return 0 }
    return cookie
}
