import ControlPlane
import FoundationEssentials
import Glibc

/// Starting the service as nobody's child.
enum Detach {
    /// Runs this program once more in a session of its own, without `--detach`, waits until it says that it serves, and
    /// returns its exit status. Until then its standard error is ours. A second process, since a Swift program cannot be forked.
    static func restart(_ arguments: [String], log: String, complain: (String) -> Void) -> Int32 {
        var ends: [Int32] = [0, 0]
        guard pipe2(&ends, O_CLOEXEC) == 0 else {
            complain("\(SystemError(call: "pipe", code: errno))")
            return EX_OSERR
        }
        let reading = Descriptor(ends[0])
        var writing: Descriptor? = Descriptor(ends[1])
        var spawn = Spawn(
            program: ownExecutablePath() ?? "/proc/self/exe", arguments: arguments + ["--ready-descriptor", "3"],
            environment: ProcessInfo.processInfo.environment)
        spawn.log = log
        spawn.keepsStandardError = true
        spawn.descriptorThree = writing?.raw
        let file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard file >= 0 else {
            complain("\(log): \(SystemError(call: "open", code: errno))")
            return EX_CANTCREAT
        }
        close(file)
        let pid: Int32
        do throws(SystemError) { pid = try spawn.start() } catch {
            complain("\(spawn.program): \(error)")
            return EX_OSERR
        }
        writing = nil
        // One byte: it serves. End of file: it has ended.
        var byte: UInt8 = 0
        while true {
            let count = read(reading.raw, &byte, 1)
            if count == 1 { return EXIT_SUCCESS }
            if count == 0 { return exitStatus(of: pid) }
            if errno != EINTR { return EXIT_FAILURE }
        }
    }
}
