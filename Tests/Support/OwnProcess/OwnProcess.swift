import Glibc
import Testing

/// Gives every test of a suite a process of its own, in a plain `swift test`, too.
///
/// Providers, switch and descriptor table have one state a process, and some tests count the process's descriptors, change
/// its limits or handle signals. Swift Testing runs all suites of a package in one process and at the same time. With this
/// trait a test starts the test program once more, for itself alone; what that prints when it fails becomes the issue.
/// Exit tests (`processExitsWith`) do the same for a closure, but cannot capture what a fixture or an argument list needs.
package struct OwnProcess: SuiteTrait, TestTrait, TestScoping {
    package var isRecursive: Bool { true }

    /// Once a test function, around all its arguments: suites have nothing to run by themselves.
    package func scopeProvider(for test: Test, testCase: Test.Case?) -> OwnProcess? {
        test.isSuite || testCase != nil ? nil : self
    }

    package func provideScope(for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void) async throws {
        if getenv(OwnProcess.marker) != nil { return try await function() }
        await Turns.shared.take()
        let outcome = await withCheckedContinuation { continuation in
            runInThread { continuation.resume(returning: OwnProcess.run(test)) }
        }
        await Turns.shared.giveBack()
        // A process that found no test of this name has shown nothing.
        if outcome.status != 0 || !outcome.output.contains("Test run with 1 test") {
            Issue.record("its process ended with \(outcome.ending)\n\(outcome.output)", sourceLocation: test.sourceLocation)
        }
    }

    /// In the environment of a process that was made for one test.
    private static let marker = "SOCKSWITCH_TEST_PROCESS"

    /// Only a hang takes so long. Streams of a chosen length (`STREAM_SECONDS`) take that on top.
    private static var secondsAllowed: Int { 600 + (getenv("STREAM_SECONDS").flatMap { Int(String(cString: $0)) } ?? 0) }

    private struct Outcome: Sendable {
        /// As waitpid gives it; -1: not even started.
        var status: Int32
        var output: String
        var ending: String {
            if status < 0 { return "an error before it began" }
            return status & 0x7F == 0 ? "status \(status >> 8)" : "signal \(status & 0x7F)"
        }
    }

    private static func run(_ test: Test) -> Outcome {
        let arguments = [
            CommandLine.arguments[0], "--testing-library", "swift-testing", "--no-parallel", "--filter", "^\(quoted("\(test.id)"))$",
        ]
        var environment: [String] = ["\(marker)=1"]
        var entry = environ
        while let text = entry.pointee {
            environment.append(String(cString: text))
            entry += 1
        }
        var ends: [Int32] = [-1, -1]
        guard pipe2(&ends, O_CLOEXEC) == 0 else { return Outcome(status: -1, output: String(cString: strerror(errno))) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 2)
        defer { posix_spawn_file_actions_destroy(&actions) }
        var process = pid_t()
        let error = withStrings(arguments) { arguments in
            withStrings(environment) { posix_spawn(&process, "/proc/self/exe", &actions, nil, arguments, $0) }
        }
        close(ends[1])
        defer { close(ends[0]) }
        guard error == 0 else { return Outcome(status: -1, output: String(cString: strerror(error))) }
        var output = readToEnd(ends[0], seconds: secondsAllowed)
        if output == nil {
            // What it forked dies with it or shortly after: its end of the pipe is not waited for.
            kill(process, SIGKILL)
            output = "it took more than \(secondsAllowed) seconds"
        }
        var status: Int32 = -1
        while waitpid(process, &status, 0) < 0, errno == EINTR {}
        return Outcome(status: status, output: output ?? "")
    }

    /// nil: the time was over.
    private static func readToEnd(_ descriptor: Int32, seconds: Int) -> String? {
        var output: [UInt8] = []
        var bytes = [UInt8](repeating: 0, count: 4096)
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        let deadline = now.tv_sec + seconds
        while true {
            clock_gettime(CLOCK_MONOTONIC, &now)
            var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let ready = poll(&waiting, 1, Int32(max(0, deadline - now.tv_sec)) * 1000)
            if ready < 0, errno == EINTR { continue }
            guard ready > 0 else { return nil }
            let count = read(descriptor, &bytes, bytes.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return String(decoding: output, as: UTF8.self) }
            output += bytes[..<count]
        }
    }

    /// The text as a regular expression that matches it alone.
    private static func quoted(_ text: String) -> String {
        text.reduce(into: "") { $0 += $1.isLetter || $1.isNumber || $1 == "_" || $1 == " " ? String($1) : "\\\($1)" }
    }

    private static func withStrings<Result>(
        _ strings: [String], _ body: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> Result
    ) -> Result {
        var pointers = strings.map { strdup($0) } + [nil]
        defer { for pointer in pointers { free(pointer) } }
        return pointers.withUnsafeMutableBufferPointer { body($0.baseAddress!) }
    }
}

extension Trait where Self == OwnProcess {
    /// Every test of the suite runs in a process of its own.
    package static var ownProcess: OwnProcess { OwnProcess() }
}

/// As many processes at a time as there are processors: many tests have deadlines, and threads that spin.
private actor Turns {
    static let shared = Turns()
    private var free = max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))
    private var waiting: [CheckedContinuation<Void, Never>] = []

    func take() async {
        if free > 0 {
            free -= 1
        } else {
            await withCheckedContinuation { waiting.append($0) }
        }
    }

    func giveBack() {
        if waiting.isEmpty { free += 1 } else { waiting.removeFirst().resume() }
    }
}

/// Waiting for a process blocks, which tasks must not.
private func runInThread(_ body: @escaping @Sendable () -> Void) {
    final class Box {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    let made = pthread_create(&thread, nil, { Unmanaged<Box>.fromOpaque($0!).takeRetainedValue().body(); return nil },
        Unmanaged.passRetained(Box(body)).toOpaque())
    precondition(made == 0)
    pthread_detach(thread)
}
