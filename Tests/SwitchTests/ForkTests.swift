import Glibc
import Testing

/// The products of this build, which lie beside the test bundle.
private let productDirectory: String = {
    var path = [CChar](repeating: 0, count: 4096)
    readlink("/proc/self/exe", &path, 4095)
    var directory = String(decoding: path.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    // `swift test` loads the bundle into a helper of the toolchain; its argument says where the bundle is.
    for argument in CommandLine.arguments where argument.contains(".xctest") || argument.hasSuffix("PackageTests.xctest") {
        directory = argument.hasPrefix("/") ? argument : directory
    }
    return directory.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/")
}()

/// Runs a program to its end; its exit status, or -1.
private func run(_ arguments: [String]) -> Int32 {
    var strings: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    defer { for string in strings { free(string) } }
    var pid: pid_t = 0
    guard posix_spawn(&pid, arguments[0], nil, nil, &strings, environ) == 0 else { return -1 }
    var status: Int32 = 0
    while waitpid(pid, &status, 0) != pid { if errno != EINTR { return -1 } }
    return status & 0x7F == 0 ? status >> 8 & 0xFF : 128 + status & 0x7F
}

@Suite("fork (WSD-D1)") struct ForkTests {
    /// The programs, and the conditions they check, are in Tests/Support/ForkGuest.
    @Test("Parents and children", arguments: [
        "inherited", "shared", "serverPerConnection", "workers", "offered", "killed", "heldByTwo", "heldWhileConnecting",
    ])
    func fork(scenario: String) {
        var directory = Array("/tmp/sockswitch-fork-XXXXXX".utf8CString)
        let made = mkdtemp(&directory)
        #expect(made != nil)
        let path = String(decoding: directory.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { rmdir(path) }
        let service = path + "/service"
        #expect(run([productDirectory + "/sockswitchd", "--socket", service, "--ephemeral", "--detach"]) == 0)
        #expect(run([productDirectory + "/ForkGuest", scenario, service]) == 0)
        unlink(service)
    }
}
