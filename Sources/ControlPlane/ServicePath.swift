import CSocketSwitch
import Glibc

/// Where the service's socket is.
package enum ServicePath {
    package static let systemWide = "/run/sockswitch.sock"

    /// The service that a user gets who says nothing: `$SOCKSWITCH_SERVICE`, the system-wide one for root, a socket in
    /// the user's runtime directory, or one in a private directory in /tmp.
    package static func standard(environment: (String) -> String? = environmentValue, uid: UInt32 = geteuid()) -> String {
        if let path = environment("SOCKSWITCH_SERVICE"), !path.isEmpty { return path }
        if uid == 0 { return systemWide }
        if let directory = environment("XDG_RUNTIME_DIR"), directory.hasPrefix("/") { return directory + "/sockswitch.sock" }
        return "/tmp/sockswitch-\(uid)/service.sock"
    }

    /// The longest path that fits in a `sockaddr_un` with its terminating zero, and with the suffix of a lock file.
    package static let maximumBytes = 100

    package static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// True for the private directory in /tmp, which the service makes and removes itself.
    package static func isPrivateDirectory(_ directory: String) -> Bool { directory == "/tmp/sockswitch-\(geteuid())" }

    /// Says what is wrong with a private directory (another's, or open to others), or nil.
    package static func complaint(aboutPrivateDirectory directory: String, uid: UInt32 = geteuid()) -> String? {
        var status = Glibc.stat()
        guard lstat(directory, &status) == 0 else { return "\(directory): \(String(cString: strerror(errno)))" }
        if status.st_mode & S_IFMT != S_IFDIR { return "\(directory) is not a directory" }
        if status.st_uid != uid { return "\(directory) belongs to user \(status.st_uid), not to \(uid)" }
        if status.st_mode & 0o077 != 0 { return "\(directory) is open to other users (mode 0\(String(status.st_mode & 0o777, radix: 8)))" }
        return nil
    }
}

/// A variable of the environment.
@Sendable package func environmentValue(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }

/// Calls `body` with the `sockaddr_un` of `path`; nil when the path is too long.
package func withUnixAddress<Result>(_ path: String, _ body: (UnsafeRawPointer, UInt32) -> Result) -> Result? {
    let bytes = Array(path.utf8)
    guard bytes.count < 108, !bytes.isEmpty, !bytes.contains(0) else { return nil }
    return withUnsafeTemporaryAllocation(byteCount: 110, alignment: 8) { storage in
        memset(storage.baseAddress!, 0, 110)
        storage.storeBytes(of: UInt16(AF_UNIX), as: UInt16.self)
        for (index, byte) in bytes.enumerated() { storage[2 + index] = byte }
        return body(storage.baseAddress!, UInt32(2 + bytes.count + 1))
    }
}
