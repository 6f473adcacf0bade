import ArgumentParser
import ControlPlane
import Glibc

struct Status: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Say whether the service runs, and what it has done.",
        discussion: """
            Ends with status 69 when no service answers, with 77 when it answers root and its own user alone.

            EXAMPLES
              sockswitch status
              sockswitch status --json | jq .totals.companionSent
            """)

    @Flag(help: "Print JSON with stable keys.")
    var json = false

    @OptionGroup var service: ServiceOption

    func run() throws {
        let status = try service.askForStatus("status")
        if json { return print(String(decoding: encodeJSON(status, pretty: true), as: UTF8.self)) }
        print("""
            service        sockswitchd \(status.version), process \(status.pid), up \(status.uptimeSeconds) s\(status.ephemeral ? ", ends with its last client" : "")
            socket         \(status.socket)
            switched       \(status.switchedOff ? "off: connections go back to TCP with their next call" : "on")
            clients        \(status.clients) in \(status.families) process famil\(status.families == 1 ? "y" : "ies"), listening on \(status.listeners) address\(status.listeners == 1 ? "" : "es")
            pairs          \(status.pairs) open, of \(status.totals.paired) that this service has made
            bytes          \(status.totals.companionSent) sent, \(status.totals.companionReceived) received over companions
            announcements  \(status.announcements) waiting, \(status.totals.announced) in all, \(status.totals.refused) refused, \(status.totals.withdrawn) withdrawn
            dismissed      \(status.totals.dismissed) client\(status.totals.dismissed == 1 ? "" : "s") for breaking the protocol
            """)
    }
}

struct Off: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Bring every connection back to TCP, and keep new ones there.",
        discussion: """
            No connection breaks, no byte is lost. In force until `sockswitch on`, or until another service takes this one's place.

            EXAMPLES
              sockswitch off    now tcpdump and the firewall see every byte again
              sockswitch ps     shows who has gone back: a program moves in its next socket call
              sockswitch on
            """)

    @OptionGroup var service: ServiceOption

    func run() throws {
        // What is there, and not what this service has paired: another one may have done that.
        let moved = try decodeJSON(ServiceReport.self, service.ask("ps")).sockets
            .filter { $0.sendCarrier == .companion || $0.receiveCarrier == .companion }.count
        _ = try service.askForStatus("off")
        print("Switched off. \(moved == 0 ? "No socket was on a companion." : "\(moved) socket\(moved == 1 ? " goes" : "s go") back to TCP.")")
    }
}

struct On: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Allow companions again after `sockswitch off`.",
        discussion: """
            Connections move again by themselves, as their traffic goes on.

            EXAMPLES
              sockswitch on
            """)

    @OptionGroup var service: ServiceOption

    func run() throws {
        _ = try service.askForStatus("on")
        print("Switched on.")
    }
}
