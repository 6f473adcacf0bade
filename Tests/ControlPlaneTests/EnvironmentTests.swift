import ControlPlane
import Glibc
import Testing

@Suite("Places and programs") struct EnvironmentTests {
    @Test("Where the service is")
    func servicePath() {
        func path(_ environment: [String: String], _ uid: UInt32) -> String {
            ServicePath.standard(environment: { environment[$0] }, uid: uid)
        }
        #expect(path(["SOCKSWITCH_SERVICE": "/x/y", "XDG_RUNTIME_DIR": "/run/user/5"], 5) == "/x/y")
        #expect(path(["XDG_RUNTIME_DIR": "/run/user/5"], 5) == "/run/user/5/sockswitch.sock")
        #expect(path(["XDG_RUNTIME_DIR": "relative"], 5) == "/tmp/sockswitch-5/service.sock")
        #expect(path(["SOCKSWITCH_SERVICE": ""], 0) == "/run/sockswitch.sock")
    }

    @Test("A private directory must be the user's own and closed to others")
    func privateDirectory() throws {
        var template = Array("/tmp/sockswitch-test-XXXXXX".utf8CString)
        try #require(mkdtemp(&template) != nil)
        let path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { rmdir(path) }
        #expect(ServicePath.complaint(aboutPrivateDirectory: path) == nil)
        #expect(ServicePath.complaint(aboutPrivateDirectory: path, uid: geteuid() + 1) != nil)
        chmod(path, 0o755)
        #expect(ServicePath.complaint(aboutPrivateDirectory: path) != nil)
        #expect(symlink("/etc", path + "/link") == 0)
        #expect(ServicePath.complaint(aboutPrivateDirectory: path + "/link") != nil)
        unlink(path + "/link")
    }

    @Test("Programs are found as execvp finds them, and scripts raise no objection")
    func programs() throws {
        #expect(ProgramFile.find("sh", searchPath: "/nowhere:/bin") == "/bin/sh")
        #expect(ProgramFile.find("no-such-program", searchPath: "/bin") == nil)
        #expect(ProgramFile.find("/bin/sh", searchPath: nil) == "/bin/sh")
        #expect(ProgramFile.obstacle("/bin/sh") == nil)
        #expect(ProgramFile.obstacle("/etc/passwd") == nil)
    }
}
