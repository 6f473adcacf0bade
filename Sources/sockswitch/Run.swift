import ArgumentParser
import ControlPlane
import Glibc

extension PolicyFile.Wildcard: ExpressibleByArgument {}

struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run a command under the switch.",
        discussion: """
            The command's TCP connections to other switched programs on this machine move to shared memory. sockswitch \
            replaces itself by the command: same process, same standard streams, same exit status.

            When no service answers, one is started in the background; it ends by itself two seconds after this command \
            and the last switched program that has made a socket.

            RULES
            A rule is any of these keys, in any order; a missing key means any:
              program=GLOB     the program's name, of which 15 bytes count (* is the only wildcard)
              address=ADDRESS  or a network, as in 10.0.0.0/8 or [2001:db8::]/32
              port=N           or N-M
            For outgoing connections address and port are the destination's, for accepted ones the listener's. The first rule \
            that matches decides: those of --allow and --tcp in their order on the command line, then those of the \
            policy file. What no rule matches is allowed.

            EXAMPLES
              sockswitch run -- nginx -g 'daemon off;'
              sockswitch run --tcp 'port=9000-9100' -- ./server
              sockswitch run --allow port=6379 --tcp '' -- ./client   (nothing but redis)
              sockswitch run --policy site.policy -- make check
            """)

    @Option(name: .long, help: ArgumentHelp("A file with rules; see `sockswitch policy --help`.", valueName: "file"))
    var policy: String?

    @Option(name: .long, help: ArgumentHelp("Allow companions for what the rule matches. Repeatable.", valueName: "rule"))
    var allow: [String] = []

    @Option(name: .long, help: ArgumentHelp("Keep on TCP what the rule matches. Repeatable.", valueName: "rule"))
    var tcp: [String] = []

    enum Wait: String, ExpressibleByArgument, CaseIterable { case adaptive, never }

    @Option(help: "How a reader waits: spin briefly where it pays (adaptive), or sleep at once (never). Default: adaptive.")
    var wait: Wait?

    enum Upgrade: String, ExpressibleByArgument, CaseIterable { case `default`, eager }

    @Option(help: "When a connection moves: once it proves worth it (default), or as soon as it is made (eager).")
    var upgrade: Upgrade?

    @Option(help: ArgumentHelp(
        "What a program that listens on all addresses gets: one companion for all of them (any), or one for each address that a provider serves (per-interface). Default: what the policy file says, else any."))
    var wildcard: PolicyFile.Wildcard?

    @OptionGroup var service: ServiceOption

    @Flag(name: .customLong("no-start"), help: "Do not start a service when none answers; the command then runs on TCP until there is one.")
    var noStart = false

    @Flag(name: .shortAndLong, help: "No warnings.")
    var quiet = false

    @Argument(parsing: .captureForPassthrough, help: ArgumentHelp("The command and its arguments.", valueName: "command"))
    var command: [String] = []

    func run() throws {
        var command = command
        if command.first == "--" {
            command.removeFirst()
        } else if let option = command.first, option.hasPrefix("-") {
            if option == "--help" || option == "-h" { throw CleanExit.helpRequest(self) }
            if option == "--version" { throw CleanExit.message(Version.text) }
            throw ValidationError("Unknown option '\(option)'. If it begins the command, put `--` before it.")
        }
        guard let name = command.first else { throw ValidationError("Say which command to run: sockswitch run -- COMMAND") }
        let policy = try compiledPolicy()

        guard let executable = ownExecutablePath() else { throw ValidationError("Cannot tell where sockswitch itself is.") }
        let directory = ServicePath.directory(of: executable)
        guard let library = [directory, directory + "/../lib", directory + "/../lib/sockswitch"]
            .map({ $0 + "/libsockswitch.so" }).first(where: { access($0, R_OK) == 0 })
        else {
            complain("there is no libsockswitch.so in \(directory) or \(directory)/../lib")
            throw ExitCode(EX_UNAVAILABLE)
        }
        if library.contains(where: { $0 == " " || $0 == ":" }) {
            complain("the loader cannot preload \(library): its path has a blank or a colon")
            throw ExitCode(EX_UNAVAILABLE)
        }

        let path = service.path
        if !noStart {
            do throws(ServiceStarter.Failure) {
                var starter = ServiceStarter(program: directory + "/sockswitchd", path: path)
                starter.letsServiceComplain = !quiet
                try starter.ensureRunning()
            } catch {
                warn("no service, so \(name) runs on TCP: \(error)")
            }
        }
        setenv("SOCKSWITCH_SERVICE", path, 1)
        if let policy { setenv("SOCKSWITCH_POLICY", policy, 1) }
        if let wait { setenv("SOCKSWITCH_WAIT", wait.rawValue, 1) }
        if let upgrade { setenv("SOCKSWITCH_UPGRADE", upgrade.rawValue, 1) }
        let preloaded = environmentValue("LD_PRELOAD") ?? ""
        let others = preloaded.split(whereSeparator: { $0 == ":" || $0 == " " }).filter { !$0.hasSuffix("/libsockswitch.so") }
        // The last one: whoever else takes libc's names (a sanitizer, libjsig) calls on to the switch, as it would to libc.
        setenv("LD_PRELOAD", (others + [Substring(library)]).joined(separator: ":"), 1)

        if let file = ProgramFile.find(name, searchPath: environmentValue("PATH")), let obstacle = ProgramFile.obstacle(file) {
            warn("\(name) \(obstacle)")
        }
        if let obstacle = ProcessLimits.obstacle { warn("\(name) \(obstacle)") }
        withCStrings(command) { _ = execvp($0[0]!, $0) }
        let code = errno
        complain("\(name): \(String(cString: strerror(code)))")
        throw ExitCode(code == ENOENT || code == ENOTDIR ? 127 : 126)
    }

    private func warn(_ message: String) {
        if !quiet { complain("warning: \(message)") }
    }

    /// Nil when no rule is given: what an outer `sockswitch run` said stays in force.
    private func compiledPolicy() throws -> String? {
        if policy == nil, allow.isEmpty, tcp.isEmpty, wildcard == nil { return nil }
        do throws(PolicyError) {
            var rules = PolicyFile()
            // The parser keeps the two options apart; the command line has them in their order.
            for (action, keys) in rulesInOrder() { rules.rules.append(try PolicyFile.rule(action, keys: keys, source: "--\(action)")) }
            if let policy {
                let file = try PolicyFile(parsing: try readPolicy(policy), source: policy)
                rules.rules += file.rules
                rules.wildcard = file.wildcard
            }
            if let wildcard { rules.wildcard = wildcard }
            if rules.rules.count > PolicyFile.maximumRules {
                throw PolicyError(
                    source: policy ?? "command line", line: 1, column: 1, message: "more than \(PolicyFile.maximumRules) rules in all", text: "")
            }
            return rules.compiled
        } catch {
            printError("\(error)")
            throw ExitCode(EX_DATAERR)
        }
    }

    private func rulesInOrder() -> [(PolicyRule.Action, String)] {
        var allow = allow[...]
        var tcp = tcp[...]
        var rules: [(PolicyRule.Action, String)] = []
        for argument in CommandLine.arguments {
            if argument == "--" { break }
            if argument == "--allow" || argument.hasPrefix("--allow="), let keys = allow.popFirst() { rules.append((.allow, keys)) }
            if argument == "--tcp" || argument.hasPrefix("--tcp="), let keys = tcp.popFirst() { rules.append((.tcp, keys)) }
        }
        return rules + allow.map { (.allow, $0) } + tcp.map { (.tcp, $0) }
    }
}

/// The text of a policy file; a policy error without a place when it cannot be read.
func readPolicy(_ path: String) throws(PolicyError) -> String {
    guard let file = fopen(path, "re") else {
        throw PolicyError(source: path, message: String(cString: strerror(errno)))
    }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4096)
    while bytes.count <= 1 << 20 {
        let count = fread(&chunk, 1, chunk.count, file)
        if count == 0, ferror(file) != 0 {
            throw PolicyError(source: path, message: String(cString: strerror(errno)))
        }
        if count == 0 { break }
        bytes += chunk[..<count]
    }
    if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { bytes.removeFirst(3) }  // a byte order mark
    guard bytes.count <= 1 << 20, let text = String(validating: bytes, as: UTF8.self) else {
        throw PolicyError(source: path, message: "not a text file of at most 1 MiB")
    }
    return text
}
