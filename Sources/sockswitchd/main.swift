import ArgumentParser
import CSocketSwitch
import ControlPlane
import Glibc
import Logging
import ServiceCore

struct SockswitchDaemon: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sockswitchd",
        abstract: "The SocketSwitch rendezvous service: pairs the two ends of TCP connections.",
        discussion: """
            Processes that run under `sockswitch run` pass their TCP sockets to this service. It reads the addresses from \
            the sockets themselves, finds the two ends of one connection, and gives both a piece of shared memory, over \
            which they go on. It sees no data.

            `sockswitch run` starts a service by itself when there is none. Root's serves every user of \
            the machine; their `run` finds it by itself if it was started without --ephemeral.

            EXAMPLES
              sockswitchd                                  serve at the standard place
              sockswitchd --socket /srv/box/sockswitch.sock  … at another, for example one shared with a container
              sockswitch status                            ask whether it runs
            """,
        version: Version.text)

    @Option(help: ArgumentHelp(
        "The Unix socket to serve at.",
        discussion: "Default: $SOCKSWITCH_SERVICE, else /run/sockswitch.sock for root, else $XDG_RUNTIME_DIR/sockswitch.sock, else /tmp/sockswitch-UID/service.sock.",
        valueName: "path"))
    var socket: String?

    @Flag(help: "End two seconds after the last client is gone.")
    var ephemeral = false

    @Flag(help: "Return as soon as the service serves, and leave it running in the background.")
    var detach = false

    @Option(name: .customLong("log-file"), help: ArgumentHelp("With --detach: where messages go, once it serves.", valueName: "path"))
    var logFile = "/dev/null"

    @Option(name: .customLong("log-level"), help: "trace, debug, info, notice, warning, error or critical.")
    var logLevel = Logger.Level.notice

    @Option(help: ArgumentHelp("How long a connection's end waits for its other end.", valueName: "milliseconds"))
    var patience: UInt64 = 500

    @Flag(name: .customLong("across-namespaces"), help: ArgumentHelp(
        "Also pair ends in different network namespaces (containers). Needs root.",
        discussion: "Both namespaces must be made by root. Use it only when no two of their networks have the same addresses."))
    var acrossNamespaces = false

    /// The parent of a detached service waits at this descriptor.
    @Option(name: .customLong("ready-descriptor"), help: .hidden)
    var readyDescriptor: Int32?

    /// The service outlives whoever started it, and serves others: standard streams that were closed must not become files of its
    /// own, and limits meant for a program must not end it.
    private func becomeIndependent() {
        for number in Int32(0)...2 where fcntl(number, F_GETFD) < 0 { _ = open("/dev/null", O_RDWR) }
        signal(SIGXFSZ, SIG_IGN)
        for resource in [RLIMIT_FSIZE, RLIMIT_CPU, RLIMIT_AS] {
            var limit = rlimit()
            guard getrlimit(resource, &limit) == 0 else { continue }
            limit.rlim_cur = limit.rlim_max
            setrlimit(resource, &limit)
        }
    }

    func validate() throws {
        if patience < 1 || patience > 3_600_000 { throw ValidationError("--patience must be from 1 to 3600000 milliseconds.") }
        if acrossNamespaces, geteuid() != 0 { throw ValidationError("--across-namespaces needs root.") }
    }

    func run() throws {
        becomeIndependent()
        LoggingSystem.bootstrap(StreamLogHandler.standardError)
        var log = Logger(label: "sockswitchd")
        log.logLevel = logLevel
        if detach {
            let arguments = CommandLine.arguments.filter { $0 != "--detach" }
            throw ExitCode(Detach.restart(arguments, log: logFile) { log.error("\($0)") })
        }

        var configuration = ServiceConfiguration()
        configuration.path = socket ?? ServicePath.standard()
        configuration.isEphemeral = ephemeral
        configuration.announcementMilliseconds = patience
        configuration.pairsAcrossNamespaces = acrossNamespaces

        umask(0o077)
        _ = chdir("/")
        let place: ServiceSocket
        do {
            place = try ServiceSocket(path: configuration.path)
        } catch {
            if case .running = error, readyDescriptor != nil, !acrossNamespaces {
                if ephemeral { return }
                do {
                    try ServiceClient(path: configuration.path).stay()
                    log.notice("\(error), and stays with the options that it was started with")
                    return
                } catch { log.error("\(error)") }
            }
            log.error("\(error)")
            throw ExitCode(EX_UNAVAILABLE)
        }
        let signals = try Signals()
        let service = try Service(configuration, log: log)
        service.listen(on: place.socket)
        // In the background: from here on messages go to the log, as standard output does.
        if readyDescriptor != nil { dup2(STDOUT_FILENO, STDERR_FILENO) }
        log.notice("serving", metadata: ["socket": "\(place.path)", "version": "\(Version.text)"])
        if let readyDescriptor {
            var byte: UInt8 = 1
            write(readyDescriptor, &byte, 1)
            close(readyDescriptor)
        }
        let families = service.adoptFamilies()
        if families > 0 { log.notice("programs were here before", metadata: ["families": "\(families)"]) }
        while true {
            service.run(wake: signals.descriptor) { signals.arrived }
            place.unpublish()
            if signals.arrived { break }
            // A client may have come while we decided to end: it is accepted, then heard.
            for _ in 0..<3 { service.turn(maximumMilliseconds: 0) }
            if service.hasOutlivedItsClients { break }
            place.publish()
        }
        place.remove()
        log.notice("ended")
    }
}

extension Logger.Level: @retroactive ExpressibleByArgument {}

/// SIGTERM, SIGINT and SIGHUP as a descriptor.
final class Signals {
    let descriptor: Descriptor
    private var hasArrived = false

    init() throws {
        signal(SIGPIPE, SIG_IGN)
        var set: UInt64 = 0
        for number in [SIGTERM, SIGINT, SIGHUP] { set |= 1 << UInt64(number - 1) }
        try SystemError.check(ss_sys_sigprocmask(SIG_BLOCK, &set, nil), "sigprocmask")
        let result = withUnsafePointer(to: &set) {
            ss_syscall6(Int(SYS_signalfd4), -1, Int(bitPattern: $0), 8, Int(O_NONBLOCK | O_CLOEXEC), 0, 0)
        }
        descriptor = try .checked(result, "signalfd")
    }

    var arrived: Bool {
        var information = [UInt8](repeating: 0, count: 128)
        if read(descriptor.raw, &information, 128) == 128 { hasArrived = true }
        return hasArrived
    }
}

SockswitchDaemon.main()
