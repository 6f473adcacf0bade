import ArgumentParser
import CSocketSwitch
import ControlPlane
import Glibc

struct Demo: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show the same two programs on TCP and then under the switch, with figures and proof.",
        discussion: """
            Starts a server and clients twice: as they are, and under `sockswitch run`. Then it asks the switch and the \
            kernel what carried the bytes of one connection. With redis installed (redis-server, redis-benchmark) that is \
            the server; otherwise a small echo server that comes with sockswitch. It uses a service of its own and free \
            ports of the loopback interface, and leaves nothing behind.

            Ends with status 0 only if companions carried at least 99 % of the bytes.

            EXAMPLES
              sockswitch demo
              sockswitch demo --server echo     without redis, though it is there
            """)

    enum Server: String, ExpressibleByArgument, CaseIterable { case redis, echo }

    @Option(help: "The server: redis or echo. Default: redis if it is installed.")
    var server: Server?

    @Option(name: .customLong("round-trips"), help: "Requests that the proof's one client makes.")
    var roundTrips = 100_000

    func validate() throws {
        guard roundTrips >= 100, roundTrips <= 10_000_000 else { throw ValidationError("--round-trips wants 100 to 10000000.") }
    }

    func run() throws {
        guard let own = ownExecutablePath() else { throw ValidationError("Cannot tell where sockswitch itself is.") }
        let search = environmentValue("PATH")
        let redis = ["redis-server", "redis-benchmark"].allSatisfy { ProgramFile.find($0, searchPath: search) != nil }
        let server = server ?? (redis ? .redis : .echo)
        if server == .redis, !redis {
            complain("redis-server or redis-benchmark is not on the PATH")
            throw ExitCode(EX_UNAVAILABLE)
        }
        var stage = try Stage(sockswitch: own)
        do {
            defer { stage.clear() }
            print("The same programs twice: on TCP as they are, then with `sockswitch run --` before their names.")
            let onTCP = try act(&stage, server, switched: false)
            let switched = try act(&stage, server, switched: true)
            report(server, onTCP, switched)
            if Double(switched.companionBytes) < 0.99 * Double(switched.client.bytes) || Double(switched.client.kernelBytes) > 0.01 * Double(switched.client.bytes) {
                let share = Double(switched.companionBytes) / Double(max(1, switched.client.bytes)) * 100
                complain(switched.companionBytes == 0
                    ? "the bytes stayed on TCP: \(switched.reason)"
                    : "companions carried \(Int(share)) % of the bytes, and 99 are wanted; a connection begins on TCP: more --round-trips?")
                throw ExitCode(EXIT_FAILURE)
            }
        } catch let error as StageFailure {
            complain("demo: \(error)")
            throw ExitCode(EXIT_FAILURE)
        }
    }

    // MARK: One way

    private struct Act {
        /// Name and requests a second.
        var rates: [(String, Double)] = []
        var client: DemoPair.Answer
        var companionBytes: UInt64 = 0
        var reason = ""
        var rows = ""
    }

    private static let benchmarks = [
        ("GET, 1 client", ["-c", "1", "-n", "50000"]), ("GET, 50 clients", ["-c", "50", "-n", "200000"]),
        ("GET, 50 clients, 16 at a time", ["-c", "50", "-P", "16", "-n", "1000000"]),
    ]

    private func act(_ stage: inout Stage, _ server: Server, switched: Bool) throws -> Act {
        let port = try Stage.freePort()
        let serverCommand: [String] =
            switch server {
            case .redis: ["redis-server", "--port", "\(port)", "--bind", "127.0.0.1", "--save", "", "--dir", stage.directory]
            case .echo: [stage.sockswitch, "demo-pair", "serve", "--port", "\(port)"]
            }
        let running = try stage.start(serverCommand, switched: switched)
        try stage.waitForListener(port, running)
        var rates: [(String, Double)] = []
        if server == .redis {
            for (name, options) in Demo.benchmarks {
                let output = try stage.output(
                    of: ["redis-benchmark", "-p", "\(port)", "-t", "get", "--csv"] + options, switched: switched)
                guard let rate = Demo.rate(output) else { throw StageFailure(description: "redis-benchmark said: \(output)") }
                rates.append((name, rate))
            }
        }
        let (client, line, talk) = try stage.startTalking([
            stage.sockswitch, "demo-pair", "ask", "--port", "\(port)", "--round-trips", "\(roundTrips)", "--exchange",
            server == .redis ? "redis" : "echo",
        ], switched: switched)
        var act = Act(rates: rates, client: try decodeJSON(DemoPair.Answer.self, line))
        if switched {
            let report = try decodeJSON(ServiceReport.self, ServiceClient(path: stage.service).ask("ps"))
            var shown = report
            shown.sockets = report.sockets.filter { $0.local == act.client.local || $0.peer == act.client.local }
            act.rows = shown.table(includingFresh: false)
            if let socket = shown.sockets.first(where: { $0.local == act.client.local }) {
                act.companionBytes = socket.bytes.companionSent + socket.bytes.companionReceived
                act.reason = socket.reasonText
            }
        }
        shutdown(talk.raw, Int32(SHUT_WR))  // lets the client go
        try stage.end(client, kindly: true)
        try stage.end(running, kindly: false)
        return act
    }

    /// The requests a second of redis-benchmark's one row.
    private static func rate(_ csv: String) -> Double? {
        guard let row = csv.split(separator: "\n").first(where: { $0.hasPrefix("\"GET\"") }) else { return nil }
        let fields = row.split(separator: ",")
        return fields.count > 1 ? Double(fields[1].filter { $0 != "\"" }) : nil
    }

    // MARK: What it prints

    private func report(_ server: Server, _ onTCP: Act, _ switched: Act) {
        var table = Table([("", .left), ("ON TCP", .right), ("SWITCHED", .right), ("GAIN", .right)])
        for (index, (name, rate)) in onTCP.rates.enumerated() {
            let other = switched.rates[index].1
            table.add(["redis \(name)", "\(thousands(rate)) /s", "\(thousands(other)) /s", "\(tenths(other / rate)) x"])
        }
        let exchange = "\(server.rawValue), 1 KB there and back"
        for (name, key) in [("median", \DemoPair.Answer.p50), ("99th of 100", \.p99)] {
            let (slow, fast) = (Double(onTCP.client[keyPath: key]) / 1000, Double(switched.client[keyPath: key]) / 1000)
            table.add(["\(exchange), \(name)", "\(tenths(slow)) us", "\(tenths(fast)) us", "\(tenths(slow / fast)) x"])
        }
        print("\n\(table.text)\n")
        print("The proof: the last client of each kind is asked what it wrote and read, the kernel what its TCP carried of that,")
        print("and `sockswitch ps` what the companion carried.\n")
        var proof = Table([("", .left), ("PROGRAM", .right), ("KERNEL'S TCP", .right), ("COMPANION", .right)])
        proof.add(["on TCP", "\(onTCP.client.bytes)", "\(onTCP.client.kernelBytes)", "-"])
        proof.add(["switched", "\(switched.client.bytes)", "\(switched.client.kernelBytes)", "\(switched.companionBytes)"])
        print("\(proof.text)\n\n\(switched.rows)\n")
        print("Figures of one run on this machine; `make bench` measures with baselines, percentiles and CPU time.")
    }
}

private func thousands(_ value: Double) -> String {
    var digits = String(Int(value.rounded()))
    var at = digits.count - 3
    while at > 0 {
        digits.insert(",", at: digits.index(digits.startIndex, offsetBy: at))
        at -= 3
    }
    return digits
}

private func tenths(_ value: Double) -> String {
    let tenths = Int((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10)"
}
