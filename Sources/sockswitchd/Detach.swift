import ControlPlane
import FoundationEssentials
import Glibc

/// Starting the service as nobody's child.
enum Detach {
    /// Runs this program once more in a session of its own, without `--detach`, waits until it says that it serves, and
    /// returns its exit status. A second process, since a Swift program cannot be forked.
    static func restart(_ arguments: [String], log: String) -> Int32 {
        var ends: [Int32] = [0, 0]
        guard pipe2(&ends, O_CLOEXEC) == 0 else { return EXIT_FAILURE }
        let reading = Descriptor(ends[0])
        var writing: Descriptor? = Descriptor(ends[1])
        var spawn = Spawn(
            program: ownExecutablePath() ?? "/proc/self/exe", arguments: arguments + ["--ready-descriptor", "3"],
            environment: ProcessInfo.processInfo.environment)
        spawn.log = log
        spawn.descriptorThree = writing?.raw
        guard let pid = try? spawn.start() else { return EXIT_FAILURE }
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
