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

    @Test("Paths that cannot be", arguments: ["relative", "/" + String(repeating: "x", count: 120), "/no/such/directory/s"])
    func badPaths(path: String) {
        #expect(throws: ServiceSocket.Refusal.self) { try ServiceSocket(path: path) }
    }
}
