import CSocketSwitch
import ControlPlane
import Glibc
import ServiceCore
import Testing

@Suite("The service's socket") struct ServiceSocketTests {
    private final class Directory {
        let path: String
        init() throws {
            var template = Array("/tmp/ss-test-XXXXXX".utf8CString)
            try #require(mkdtemp(&template) != nil)
            path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        deinit { rmdir(path) }
        /// Fails the test when something is left in the directory.
        var isEmpty: Bool { rmdir(path) == 0 && mkdir(path, 0o700) == 0 }
    }

    private func canConnect(_ path: String) -> Bool { (try? ServiceClient(path: path)) != nil }

    @Test("One service a path, and nothing is left behind")
    func exclusive() throws {
        let directory = try Directory()
        let path = directory.path + "/s"
        let first = try ServiceSocket(path: path)
        #expect(canConnect(path))
        #expect { try ServiceSocket(path: path) } throws: { if case .running = $0 as? ServiceSocket.Refusal { true } else { false } }
        #expect(canConnect(path))
        first.unpublish()
        #expect(!canConnect(path))
        first.publish()
        #expect(canConnect(path))
        first.unpublish()
        first.remove()
        #expect(directory.isEmpty)
    }

    @Test("What a dead service left is replaced")
    func stale() throws {
        let directory = try Directory()
        let path = directory.path + "/s"
        var dead: ServiceSocket? = try ServiceSocket(path: path)
        _ = dead
        dead = nil  // closes the lock and the socket, as kill -9 does, and leaves the names
        #expect(access(path, F_OK) == 0 && !canConnect(path))
        let next = try ServiceSocket(path: path)
        #expect(canConnect(path))
        next.remove()
        #expect(directory.isEmpty)
    }

    @Test("A lock that its holder is about to remove is not taken for one's own")
    func removedLock() throws {
        let directory = try Directory()
        let path = directory.path + "/s"
        for _ in 0..<50 {
            let service = try ServiceSocket(path: path)
            service.remove()
            let next = try ServiceSocket(path: path)
            next.remove()
        }
        #expect(directory.isEmpty)
    }

    @Test("What is no dead service's is neither replaced nor removed", arguments: ["", ".new", ".lock"])
    func notOurs(suffix: String) throws {
        let directory = try Directory()
        let path = directory.path + "/s"
        let name = path + suffix
        // A file.
        let file = try #require(fopen(name, "w"))
        fputs("precious", file)
        fclose(file)
        #expect(throws: ServiceSocket.Refusal.self) { try ServiceSocket(path: path) }
        var status = stat()
        #expect(lstat(name, &status) == 0 && status.st_size == 8)
        unlink(name)
        // A link, whether or not it leads anywhere.
        #expect(symlink("/no/such/file", name) == 0)
        #expect(throws: ServiceSocket.Refusal.self) { try ServiceSocket(path: path) }
        #expect(lstat(name, &status) == 0 && status.st_mode & S_IFMT == S_IFLNK)
        unlink(name)
        // Another program's socket.
        let other = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        #expect(withUnixAddress(name) { ss_sys_bind(other, $0, $1) } == 0 && listen(other, 1) == 0)
        #expect(throws: ServiceSocket.Refusal.self) { try ServiceSocket(path: path) }
        #expect(lstat(name, &status) == 0 && status.st_mode & S_IFMT == S_IFSOCK)
        close(other)
        unlink(name)
        #expect(directory.isEmpty)
    }

    @Test("Everybody may talk to root's service, only their own user to others'; what took its place is left alone")
    func modeAndRemoval() throws {
        let directory = try Directory()
        let path = directory.path + "/s"
        let service = try ServiceSocket(path: path)
        var status = stat()
        #expect(lstat(path, &status) == 0 && status.st_mode & 0o777 == (geteuid() == 0 ? 0o666 : 0o600))
        unlink(path)
        let file = try #require(fopen(path, "w"))
        fclose(file)
        service.remove()
        #expect(access(path, F_OK) == 0)
        unlink(path)
        #expect(directory.isEmpty)
    }

    @Test("Paths that cannot be", arguments: ["relative", "/" + String(repeating: "x", count: 120), "/no/such/directory/s"])
    func badPaths(path: String) {
        #expect(throws: ServiceSocket.Refusal.self) { try ServiceSocket(path: path) }
    }
}
