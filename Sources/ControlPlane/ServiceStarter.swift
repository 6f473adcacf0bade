import CSocketSwitch
import Glibc

/// Finds the service that a command is to use, and starts one if there is none.
package struct ServiceStarter {
    /// Where the service's program may be.
    package var program: String
    package var path: String
    package var log = "/dev/null"
    /// What keeps the service from starting is said on standard error by the service itself.
    package var letsServiceComplain = true

    package init(program: String, path: String) {
        self.program = program
        self.path = path
    }

    package enum Failure: Error, CustomStringConvertible {
        case noProgram(String)
        case cannotStart(String, path: String, status: Int32)
        case noAnswer(String)
        case other(any Error)

        package var description: String {
            switch self {
            case .noProgram(let program): "there is no \(program)"
            case .cannotStart(let program, let path, let status):
                "\(program) --socket \(path) ended with status \(status)"
            case .noAnswer(let path): "no answer at \(path)"
            case .other(let error): "\(error)"
            }
        }
    }

    /// The path of the service for someone who names none: the own one, or the system's if only that runs. One that
    /// `sockswitch run` has started for root is root's, though others may reach it: it ends when root's programs do.
    package static func pathInUse() -> String {
        let standard = ServicePath.standard()
        if environmentValue("SOCKSWITCH_SERVICE") == nil, standard != ServicePath.systemWide,
            (try? ServiceClient(path: standard)) == nil,
            (try? ServiceClient(path: ServicePath.systemWide, timeoutSeconds: 5).isLasting()) == true
        {
            return ServicePath.systemWide
        }
        return standard
    }

    /// True when a trusted service answers; it then stays until this process has ended. One that runs and does not (it is stopped,
    /// or hangs) is an error: another cannot take its place, and the command must not wait for it.
    private func answers() throws -> Bool {
        do {
            try ServiceClient(path: path, timeoutSeconds: 2).hold()
            return true
        } catch ServiceError.unknownCommand, ServiceError.notPermitted {
            // Not all services can, and not for everybody's processes: an answer all the same.
            return true
        } catch ServiceError.notRunning {
            return false
        }
    }

    /// Many may do this at once: one service wins the lock, the others' end at once without complaint.
    package func ensureRunning() throws(Failure) {
        do { if try answers() { return } } catch { throw .other(error) }
        guard access(program, X_OK) == 0 else { throw .noProgram(program) }
        for _ in 0..<20 {
            var spawn = Spawn(
                program: program, arguments: ["sockswitchd", "--detach", "--ephemeral", "--socket", path, "--log-file", log],
                environment: Spawn.unswitchedEnvironment())
            spawn.log = log
            spawn.keepsStandardError = letsServiceComplain
            let pid: Int32
            do { pid = try spawn.start() } catch { throw .other(error) }
            let status = exitStatus(of: pid)
            if status != 0 { throw .cannotStart(program, path: path, status: status) }
            do { if try answers() { return } } catch { throw .other(error) }
            // Another service held the lock and was about to end.
            usleep(50_000)
        }
        throw .noAnswer(path)
    }
}
