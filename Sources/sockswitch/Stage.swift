import CSocketSwitch
import ControlPlane
import Glibc

struct StageFailure: Error, CustomStringConvertible { let description: String }

/// What the demo runs on: a directory and a service of its own, and the programs that it started. Interrupts end a wait with
/// a failure, so that `clear` is always reached.
struct Stage {
    let sockswitch: String
    let directory: String
    var service: String { directory + "/service.sock" }
    private var processes: [Int32] = []
    private var logs = 0

    private static let patienceSeconds = 60.0

    init(sockswitch: String) throws {
        self.sockswitch = sockswitch
        // The service's socket lies in it, and the kernel wants short paths for those.
        let parent = environmentValue("TMPDIR").flatMap { $0.utf8.count <= ServicePath.maximumBytes / 2 ? $0 : nil } ?? "/tmp"
        var name = Array("\(parent)/sockswitch-demo-XXXXXX".utf8CString)
        guard mkdtemp(&name) != nil else { throw StageFailure(description: "mkdtemp: \(String(cString: strerror(errno)))") }
        directory = String(decoding: name.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
        var interrupts = Stage.interrupts
        sigprocmask(SIG_BLOCK, &interrupts, nil)
    }

    /// Ends all programs, waits for the service, which ends with its last client, and removes the directory.
    mutating func clear() {
        for process in processes { kill(process, SIGKILL) }
        for process in processes { _ = exitStatus(of: process) }
        processes = []
        if let client = try? ServiceClient(path: service) { kill(client.service.pid, SIGTERM) }
        var left = 500
        while left > 0, (try? ServiceClient(path: service)) != nil {
            usleep(10_000)
            left -= 1
        }
        for log in 0..<logs { unlink("\(directory)/\(log).log") }
        for file in [service, service + ".lock", directory + "/dump.rdb"] { unlink(file) }
        rmdir(directory)
    }

    // MARK: Programs

    private func spawn(_ command: [String], switched: Bool, log: String) throws -> Spawn {
        let whole = switched ? [sockswitch, "run", "--service", service, "--"] + command : command
        guard let program = ProgramFile.find(whole[0], searchPath: environmentValue("PATH")) else {
            throw StageFailure(description: "there is no \(whole[0])")
        }
        var spawn = Spawn(program: program, arguments: whole, environment: Spawn.unswitchedEnvironment())
        spawn.log = log
        return spawn
    }

    private mutating func nextLog() -> String {
        logs += 1
        return "\(directory)/\(logs - 1).log"
    }

    /// Its process.
    mutating func start(_ command: [String], switched: Bool) throws -> Int32 {
        let process = try spawn(command, switched: switched, log: nextLog()).start()
        processes.append(process)
        return process
    }

    /// What a program prints that ends well.
    mutating func output(of command: [String], switched: Bool) throws -> String {
        let log = nextLog()
        let process = try spawn(command, switched: switched, log: log).start()
        processes.append(process)
        let status = try wait(for: process)
        let text = Stage.contents(log)
        guard status == 0 else { throw StageFailure(description: "\(command[0]) ended with status \(status)\n\(text)") }
        return text
    }

    /// A program that has descriptor 3 to talk over: its process, the first line that it says, and this end.
    mutating func startTalking(_ command: [String], switched: Bool) throws -> (Int32, [UInt8], Descriptor) {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            throw StageFailure(description: "socketpair: \(String(cString: strerror(errno)))")
        }
        let (mine, theirs) = (Descriptor(ends[0]), Descriptor(ends[1]))
        let log = nextLog()
        var spawn = try spawn(command, switched: switched, log: log)
        spawn.descriptorThree = theirs.raw
        let process = try spawn.start()
        processes.append(process)
        var line: [UInt8] = []
        var bytes = [UInt8](repeating: 0, count: 4096)
        var said: Int?
        try waitUntil("\(command[0]) answered") {
            let count = recv(mine.raw, &bytes, bytes.count, Int32(MSG_DONTWAIT))
            if count > 0 { line += bytes[..<count] }
            said = line.firstIndex(of: 10)
            // Nobody else holds the other end once the program has ended.
            if said == nil, try hasEnded(process) {
                throw StageFailure(description: "\(command.joined(separator: " ")) ended\n\(Stage.contents(log))")
            }
            return said != nil
        }
        return (process, Array(line[..<(said ?? line.count)]), mine)
    }

    /// Lets it go by itself, or ends it.
    mutating func end(_ process: Int32, kindly: Bool) throws {
        if !kindly { kill(process, SIGKILL) }
        let status = try wait(for: process)
        if kindly, status != 0 { throw StageFailure(description: "process \(process) ended with status \(status)") }
    }

    private mutating func wait(for process: Int32) throws -> Int32 {
        try waitUntil("process \(process) ended") { try hasEnded(process) }
        processes.removeAll { $0 == process }
        return exitStatus(of: process)
    }

    private func hasEnded(_ process: Int32) throws -> Bool {
        var info = siginfo_t()
        return waitid(P_PID, id_t(process), &info, Int32(WEXITED | WNOHANG | WNOWAIT)) == 0 && info.si_signo != 0
    }

    func waitForListener(_ port: UInt16, _ server: Int32) throws {
        try waitUntil("something listens on port \(port)") {
            if try hasEnded(server) {
                throw StageFailure(description: "the server ended\n\(Stage.contents("\(directory)/\(logs - 1).log"))")
            }
            let probe = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            defer { close(probe) }
            return withLoopback(port) { connect(probe, $0, $1) } == 0
        }
    }

    /// A port that was free a moment ago.
    static func freePort() throws -> UInt16 {
        let probe = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(probe) }
        var address = sockaddr_in()
        var length = UInt32(MemoryLayout<sockaddr_in>.size)
        guard withLoopback(0, { bind(probe, $0, $1) }) == 0, ss_sys_getsockname(probe, &address, &length) == 0 else {
            throw StageFailure(description: "no free port: \(String(cString: strerror(errno)))")
        }
        return UInt16(bigEndian: address.sin_port)
    }

    // MARK: Waiting

    private static var interrupts: sigset_t {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in [SIGINT, SIGTERM, SIGHUP] { sigaddset(&set, signal) }
        return set
    }

    private func waitUntil(_ what: String, _ condition: () throws -> Bool) throws {
        let deadline = ss_monotonic_ns() + UInt64(Stage.patienceSeconds * 1e9)
        while try !condition() {
            var interrupts = Stage.interrupts
            var pause = timespec(tv_sec: 0, tv_nsec: 10_000_000)
            if sigtimedwait(&interrupts, nil, &pause) > 0 { throw StageFailure(description: "interrupted") }
            if ss_monotonic_ns() > deadline { throw StageFailure(description: "waited in vain until \(what)") }
        }
    }

    private static func contents(_ path: String) -> String {
        guard let file = fopen(path, "re") else { return "" }
        defer { fclose(file) }
        var text: [UInt8] = []
        var bytes = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = fread(&bytes, 1, bytes.count, file)
            if count == 0 { return String(decoding: text, as: UTF8.self) }
            text += bytes[..<count]
        }
    }
}
