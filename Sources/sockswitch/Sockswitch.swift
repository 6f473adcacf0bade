import ArgumentParser
import ControlPlane
import Glibc

@main
struct Sockswitch: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sockswitch",
        abstract: "Lets unmodified programs talk through shared memory instead of TCP.",
        discussion: """
            Put `sockswitch run --` before two programs that talk to each other over TCP on this machine. Their \
            connections stay real TCP connections; once a connection proves worth it, its bytes go through shared memory \
            instead. Whatever cannot be served stays on TCP, and `sockswitch ps` says why.

            EXAMPLES
              sockswitch run -- redis-server --port 6379
              sockswitch run -- redis-benchmark -p 6379 -t get,set
              sockswitch ps         which connections left TCP, and why others did not
              sockswitch off        bring every connection back to TCP; none breaks
              sockswitch demo       see all that on this machine, in half a minute
            """,
        version: Version.text,
        subcommands: [Run.self, Ps.self, Status.self, Off.self, On.self, PolicyCommand.self, Demo.self, DemoPair.self])
}

/// Which service is meant.
struct ServiceOption: ParsableArguments {
    @Option(help: ArgumentHelp(
        "The service's socket.",
        discussion: "Default: $SOCKSWITCH_SERVICE, else your own service, else the system's.", valueName: "path"))
    var service: String?

    var path: String { service ?? ServiceStarter.pathInUse() }

    /// Asks the service; ends the program with a message when there is none (69), or when it does not answer us (77).
    func ask(_ command: String) throws -> [UInt8] {
        do {
            return try ServiceClient(path: path).ask(command)
        } catch let error as ServiceError {
            complain("\(error)")
            if case .notPermitted = error { throw ExitCode(EX_NOPERM) }
            throw ExitCode(EX_UNAVAILABLE)
        }
    }

    func askForStatus(_ command: String) throws -> ServiceStatus {
        try decodeJSON(ServiceStatus.self, ask(command))
    }
}

/// Writes a line to standard error.
func printError(_ text: String) {
    let line = Array((text + "\n").utf8)
    _ = write(STDERR_FILENO, line, line.count)
}

/// A message in the name of this program.
func complain(_ message: String) { printError("sockswitch: \(message)") }
