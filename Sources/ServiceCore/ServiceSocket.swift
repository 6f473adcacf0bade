import CSocketSwitch
import ControlPlane
import Glibc
import Synchronization

/// The listening socket in the file system, and the lock that says whose it is.
///
/// `PATH.lock` is locked as long as the service lives, so a socket at PATH at which nobody listens while nobody holds the
/// lock is a dead service's and may be replaced; what is no socket, or another program's, is never touched, whoever asks. The
/// socket appears under its name only once it listens.
package final class ServiceSocket {
    package enum Refusal: Error, CustomStringConvertible {
        case running(path: String)
        case badPath(String)
        case system(String, SystemError)

        package var description: String {
            switch self {
            case .running(let path): "a service runs at \(path) already"
            case .badPath(let why): why
            case .system(let path, let error): "\(path): \(error)"
            }
        }
    }

    package let path: String
    package let socket: Descriptor
    private let lock: Descriptor
    private let ownsDirectory: Bool
    private var isPublished = true
    /// The socket's own node: what is removed in the end must be this one.
    private let node: Node

    private var temporaryPath: String { ServiceSocket.temporaryPath(path) }
    private var lockPath: String { ServiceSocket.lockPath(path) }
    private static func temporaryPath(_ path: String) -> String { "\(path).new" }
    private static func lockPath(_ path: String) -> String { "\(path).lock" }
    /// The mask is the process's, and tests make several services in one.
    private static let umaskLock = Mutex(())

    /// Takes the path. A service of root's is open to every user; another only to its own.
    package init(path: String) throws(Refusal) {
        guard path.utf8.count <= ServicePath.maximumBytes, path.hasPrefix("/") else {
            throw .badPath("\(path): the socket's path must be absolute and have at most \(ServicePath.maximumBytes) bytes")
        }
        self.path = path
        let directory = ServicePath.directory(of: path)
        ownsDirectory = ServicePath.isPrivateDirectory(directory)
        lock = try ServiceSocket.takeLock(path, privateDirectory: ownsDirectory ? directory : nil)
        let temporary = ServiceSocket.temporaryPath(path)
        for name in [path, temporary] {
            if let complaint = ServiceSocket.complaint(about: name) {
                unlink(ServiceSocket.lockPath(path))
                throw complaint
            }
        }
        do throws(SystemError) {
            socket = try .checked(ServiceSocket.newSocket(), "socket")
            let raw = socket.raw
            unlink(temporary)
            // Made with its mode: in a directory that is another user's, chmod could be led to any file.
            let bound = ServiceSocket.umaskLock.withLock { _ in
                let mask = umask(geteuid() == 0 ? 0o111 : 0o177)
                defer { umask(mask) }
                return withUnixAddress(temporary) { ss_sys_bind(raw, $0, $1) } ?? -Int(ENAMETOOLONG)
            }
            try SystemError.check(bound, "bind")
            try SystemError.check(ss_sys_listen(raw, 4096), "listen")
            guard let made = Node(of: temporary) else { throw SystemError(call: "lstat", code: ENOENT) }
            node = made
            if rename(temporary, path) != 0 { throw SystemError(call: "rename", code: errno) }
        } catch {
            unlink(temporary)
            unlink(ServiceSocket.lockPath(path))
            throw .system(path, error)
        }
    }

    /// One entry of the file system.
    private struct Node: Equatable {
        let device: UInt64
        let number: UInt64
        let type: UInt32

        init?(of path: String) {
            var status = stat()
            guard lstat(path, &status) == 0 else { return nil }
            (device, number, type) = (UInt64(status.st_dev), UInt64(status.st_ino), status.st_mode & S_IFMT)
        }
    }

    private static func newSocket() -> Int {
        ss_sys_socket(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_NONBLOCK.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    }

    /// What keeps `path` from being replaced; nil: nothing is there, or what a dead service left.
    private static func complaint(about path: String) -> Refusal? {
        guard let node = Node(of: path) else { return nil }
        guard node.type == S_IFSOCK else { return .badPath("\(path) exists, and is no socket") }
        let raw = ServiceSocket.newSocket()
        guard raw >= 0 else { return .system(path, SystemError(call: "socket", code: Int32(-raw))) }
        let probe = Descriptor(Int32(raw))
        // Refused: nobody listens. Any other answer is of somebody who lives; EPROTOTYPE of one who speaks otherwise.
        let result = withUnixAddress(path) { ss_sys_connect(probe.raw, $0, $1) } ?? -Int(ENAMETOOLONG)
        return result == -Int(ECONNREFUSED) ? nil : .badPath("\(path) is another program's socket")
    }

    /// The lock file may be removed by its holder, who is about to end, between our open and our lock: then the lock is
    /// that of a file without a name, and we try again.
    private static func takeLock(_ path: String, privateDirectory: String?) throws(Refusal) -> Descriptor {
        for _ in 0..<100 {
            if let privateDirectory {
                if mkdir(privateDirectory, 0o700) != 0, errno != EEXIST {
                    throw .system(privateDirectory, SystemError(call: "mkdir", code: errno))
                }
                if let complaint = ServicePath.complaint(aboutPrivateDirectory: privateDirectory) {
                    if access(privateDirectory, F_OK) != 0 { continue }
                    throw .badPath(complaint)
                }
            }
            let raw = open(lockPath(path), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
            if raw < 0 {
                if errno == ENOENT, privateDirectory != nil { continue }
                throw .system(lockPath(path), SystemError(call: "open", code: errno))
            }
            let lock = Descriptor(raw)
            var found = stat()
            guard fstat(raw, &found) == 0, found.st_mode & S_IFMT == S_IFREG, found.st_size == 0 else {
                throw .badPath("\(lockPath(path)) exists, and is no lock file")
            }
            if flock(raw, LOCK_EX | LOCK_NB) != 0 {
                if errno == EWOULDBLOCK { throw .running(path: path) }
                throw .system(lockPath(path), SystemError(call: "flock", code: errno))
            }
            var locked = stat()
            var named = stat()
            if fstat(raw, &locked) == 0, lstat(lockPath(path), &named) == 0, locked.st_ino == named.st_ino,
                locked.st_dev == named.st_dev
            {
                return lock
            }
        }
        throw .running(path: path)
    }

    /// Takes the name away so that no further client comes. Clients that came before may still be in the queue.
    package func unpublish() {
        if isPublished, rename(path, temporaryPath) == 0 { isPublished = false }
    }

    /// The opposite.
    package func publish() {
        if !isPublished, rename(temporaryPath, path) == 0 { isPublished = true }
    }

    /// Removes every name. The service is over afterwards.
    package func remove() {
        let name = isPublished ? path : temporaryPath
        if Node(of: name) == node { unlink(name) }
        unlink(lockPath)
        if ownsDirectory { rmdir(ServicePath.directory(of: path)) }
    }
}
