import ArgumentParser
import ControlPlane
import Glibc

struct Ps: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show every TCP socket of every switched process: its carriers, its bytes, and why it is on TCP.",
        discussion: """
            SEND and RECV are the two directions of a connection: `companion` (shared memory) or `tcp`. A process id with \
            +N is shared by N more processes. Bytes are counted by carrier, out/in.

            EXAMPLES
              sockswitch ps
              sockswitch ps --json | jq '.sockets[] | select(.peer != "" and .sendCarrier == "tcp") | {local, peer, reason}'
            """)

    @Flag(help: "Print JSON with stable keys, everything included.")
    var json = false

    @Flag(help: "Include sockets that are neither connected nor listening.")
    var all = false

    @OptionGroup var service: ServiceOption

    func run() throws {
        let report = try decodeJSON(ServiceReport.self, service.ask("ps"))
        if json { return print(String(decoding: encodeJSON(report, pretty: true), as: UTF8.self)) }
        if report.service.switchedOff { print("Switched off: connections go back to TCP, each with its next call, until `sockswitch on`.") }
        let shown = report.sockets.contains { all || $0.kind != .fresh }
        print(shown ? report.table(includingFresh: all) : "No switched program has a TCP socket. Start one with `sockswitch run -- COMMAND`.")
    }
}
