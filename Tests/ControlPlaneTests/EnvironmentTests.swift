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

    @Test("Programs are found as execvp finds them, and a script is what its interpreter is")
    func programs() throws {
        #expect(ProgramFile.find("sh", searchPath: "/nowhere:/bin") == "/bin/sh")
        #expect(ProgramFile.find("no-such-program", searchPath: "/bin") == nil)
        #expect(ProgramFile.find("/bin/sh", searchPath: nil) == "/bin/sh")
        #expect(ProgramFile.obstacle("/bin/sh") == nil)
        #expect(ProgramFile.obstacle("/etc/passwd") == nil)
        var template = Array("/tmp/sockswitch-test-XXXXXX".utf8CString)
        close(try #require(mkstemp(&template) as Int32?))
        let script = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { unlink(script) }
        func obstacle(_ text: String) throws -> ProgramFile.Obstacle? {
            let file = try #require(fopen(script, "w"))
            fputs(text, file)
            fclose(file)
            return ProgramFile.obstacle(script)
        }
        // ldconfig is linked statically.
        let ldconfig = ProgramFile.Obstacle.interpreter("/sbin/ldconfig", .staticallyLinked)
        #expect(try obstacle("#!/sbin/ldconfig\n") == ldconfig)
        #expect(try obstacle("#! \t/sbin/ldconfig -p") == ldconfig)
        for harmless in ["#!/bin/sh\n", "#!\n/sbin/ldconfig", "#!/no/such/file\n", "#!\(script)\n", "", "/sbin/ldconfig"] {
            #expect(try obstacle(harmless) == nil, "\(harmless)")
        }
    }
}
