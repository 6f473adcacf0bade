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

/// Starts a program; its process id, or -1.
private func start(_ arguments: [String]) -> pid_t {
    var strings: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    defer { for string in strings { free(string) } }
    var pid: pid_t = 0
    return posix_spawn(&pid, arguments[0], nil, nil, &strings, environ) == 0 ? pid : -1
}

/// Waits for a program's end, at most a minute; its exit status, 128 + signal, or -1.
private func wait(for pid: pid_t) -> Int32 {
    var status: Int32 = 0
    var rounds = 0
    while true {
        let ended = waitpid(pid, &status, WNOHANG)
        if ended == pid { break }
        if ended < 0, errno != EINTR { return -1 }
        rounds += 1
        if rounds == 30_000 { kill(pid, SIGKILL) }
        usleep(2000)
    }
    return status & 0x7F == 0 ? status >> 8 & 0xFF : 128 + status & 0x7F
}

@Suite("fork (WSD-D1)") struct ForkTests {
    /// The programs, and the conditions they check, are in Tests/Support/ForkGuest.
    @Test("Parents and children", arguments: [
        "inherited", "shared", "serverPerConnection", "workers", "offered", "killed", "heldByTwo", "heldWhileConnecting",
    ])
    func fork(scenario: String) throws {
        var directory = Array("/tmp/sockswitch-fork-XXXXXX".utf8CString)
        try #require(mkdtemp(&directory) != nil)
        let path = String(decoding: directory.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let socket = path + "/service"
        let service = start([productDirectory + "/sockswitchd", "--socket", socket, "--log-level", "warning"])
        try #require(service > 0)
        // It listens when its name is there; a service that ends without is no child any more.
        while access(socket, F_OK) != 0, waitpid(service, nil, WNOHANG) == 0 { usleep(2000) }
        let guest = start([productDirectory + "/ForkGuest", scenario, socket])
        #expect(guest > 0 && wait(for: guest) == 0)
        kill(service, SIGTERM)
        #expect(wait(for: service) == 0)
        #expect(rmdir(path) == 0, "the service leaves nothing behind")
    }
}
