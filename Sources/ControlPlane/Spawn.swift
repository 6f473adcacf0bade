import CSocketSwitch
import FoundationEssentials
import Glibc

/// Starting another program in a session of its own, with nothing of ours: no descriptor, no blocked signal.
package struct Spawn {
    package var program: String
    package var arguments: [String]
    package var environment: [String: String]
    /// Where standard output and standard error go.
    package var log = "/dev/null"
    /// Standard error stays ours instead.
    package var keepsStandardError = false
    /// Becomes descriptor 3.
    package var descriptorThree: Int32?

    /// `program` is a path; `arguments` begin with the program's name.
    package init(program: String, arguments: [String], environment: [String: String]) {
        self.program = program
        self.arguments = arguments
        self.environment = environment
    }

    /// This process's environment without what `sockswitch run` put into it: for programs that must not be switched.
    package static func unswitchedEnvironment() -> [String: String] {
        var environment = ProcessInfo.processInfo.environment.filter { !$0.key.hasPrefix("SOCKSWITCH_") }
        let libraries = environment["LD_PRELOAD"]?.split(whereSeparator: { $0 == ":" || $0 == " " })
            .filter { !$0.hasSuffix("/libsockswitch.so") } ?? []
        environment["LD_PRELOAD"] = libraries.isEmpty ? nil : libraries.joined(separator: ":")
        return environment
    }

    /// Returns the process id.
    package func start() throws(SystemError) -> Int32 {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        if !keepsStandardError { posix_spawn_file_actions_adddup2(&actions, 1, 2) }
        if let descriptorThree { posix_spawn_file_actions_adddup2(&actions, descriptorThree, 3) }
        posix_spawn_file_actions_addclosefrom_np(&actions, descriptorThree == nil ? 3 : 4)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        sigfillset(&signals)
        posix_spawnattr_setsigdefault(&attributes, &signals)
        let sessionFlag: Int16 = 0x80  // POSIX_SPAWN_SETSID
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK) | Int16(POSIX_SPAWN_SETSIGDEF) | sessionFlag)

        var pid: pid_t = 0
        let result = withCStrings(arguments) { arguments in
            withCStrings(environment.map { "\($0.key)=\($0.value)" }) { environment in
                posix_spawn(&pid, program, &actions, &attributes, arguments, environment)
            }
        }
        if result != 0 { throw SystemError(call: "posix_spawn", code: result) }
        return pid
    }
}

/// Calls `body` with a null-terminated array of C strings.
package func withCStrings<Result>(
    _ strings: [String], _ body: (UnsafePointer<UnsafeMutablePointer<CChar>?>) -> Result
) -> Result {
    var pointers: [UnsafeMutablePointer<CChar>?] = strings.map { strdup($0) }
    pointers.append(nil)
    defer { for pointer in pointers { free(pointer) } }
    return pointers.withUnsafeBufferPointer { body($0.baseAddress!) }
}

/// Waits for a child and returns its exit status, 128 + signal if it was killed.
package func exitStatus(of pid: Int32) -> Int32 {
    var status: Int32 = 0
    while waitpid(pid, &status, 0) < 0 { if errno != EINTR { return 127 } }
    return status & 0x7F == 0 ? status >> 8 & 0xFF : 128 + status & 0x7F
}

/// Path of the running program.
package func ownExecutablePath() -> String? {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = buffer.withUnsafeMutableBytes { readlink("/proc/self/exe", $0.baseAddress!, $0.count) }
    return count > 0 && count < buffer.count ? String(decoding: buffer[..<count], as: UTF8.self) : nil
}
