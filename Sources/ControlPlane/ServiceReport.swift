import FoundationEssentials

/// What `sockswitch ps --json` prints. The keys are stable: fields may come, none will go or change its meaning.
package struct ServiceReport: Codable, Sendable, Equatable {
    package var service: ServiceStatus
    package var sockets: [SocketReport]

    package init(service: ServiceStatus, sockets: [SocketReport]) {
        self.service = service
        self.sockets = sockets
    }
}

/// The service itself: what `sockswitch status --json` prints.
package struct ServiceStatus: Codable, Sendable, Equatable {
    package var version: String
    package var pid: Int32
    package var socket: String
    package var ephemeral: Bool
    /// `sockswitch off` is in force.
    package var switchedOff: Bool
    package var uptimeSeconds: UInt64
    /// Connections to the service now, tools included.
    package var clients: Int
    /// Families of processes (a process and the children that it forked) whose sockets are known.
    package var families: Int
    /// Addresses on which switched processes listen.
    package var listeners: Int
    /// Connections paired and, as far as the service can see, still open.
    package var pairs: Int
    /// Announcements that wait for their other end now.
    package var announcements: Int
    package var totals: Totals

    /// Counted since the service started.
    package struct Totals: Codable, Sendable, Equatable {
        package var announced: UInt64 = 0
        package var paired: UInt64 = 0
        package var refused: UInt64 = 0
        package var withdrawn: UInt64 = 0
        /// Clients that broke the protocol and were disconnected.
        package var dismissed: UInt64 = 0
        /// Bytes that sockets of switched programs, living and gone, sent and received over companions.
        package var companionSent: UInt64 = 0
        package var companionReceived: UInt64 = 0

        package init() {}
    }

    package init(
        version: String, pid: Int32, socket: String, ephemeral: Bool, switchedOff: Bool, uptimeSeconds: UInt64,
        clients: Int, families: Int, listeners: Int, pairs: Int, announcements: Int, totals: Totals
    ) {
        self.version = version
        self.pid = pid
        self.socket = socket
        self.ephemeral = ephemeral
        self.switchedOff = switchedOff
        self.uptimeSeconds = uptimeSeconds
        self.clients = clients
        self.families = families
        self.listeners = listeners
        self.pairs = pairs
        self.announcements = announcements
        self.totals = totals
    }
}

/// One TCP socket of a switched process.
package struct SocketReport: Codable, Sendable, Equatable {
    package enum Kind: String, Codable, Sendable { case fresh, listening, connected, accepted }
    package enum Carrier: String, Codable, Sendable { case tcp, companion }

    package struct Bytes: Codable, Sendable, Equatable {
        package var tcpSent: UInt64
        package var tcpReceived: UInt64
        package var companionSent: UInt64
        package var companionReceived: UInt64

        package init(tcpSent: UInt64 = 0, tcpReceived: UInt64 = 0, companionSent: UInt64 = 0, companionReceived: UInt64 = 0) {
            self.tcpSent = tcpSent
            self.tcpReceived = tcpReceived
            self.companionSent = companionSent
            self.companionReceived = companionReceived
        }
    }

    /// The first of `pids`.
    package var pid: Int32
    /// Every live process that holds the socket, as the service sees it.
    package var pids: [Int32]
    package var program: String
    package var kind: Kind
    /// `127.0.0.1:6379` or `[::1]:80`; empty when there is none (yet).
    package var local: String
    package var peer: String
    package var sendCarrier: Carrier
    package var receiveCarrier: Carrier
    package var bytes: Bytes
    /// Both directions together, since the connection was made.
    package var carrierChanges: UInt64
    /// Name of a `Reason`; `none` when both directions are on the companion.
    package var reason: String
    package var reasonText: String

    package init(
        pids: [Int32], program: String, kind: Kind, local: String, peer: String, sendCarrier: Carrier,
        receiveCarrier: Carrier, bytes: Bytes, carrierChanges: UInt64, reason: String, reasonText: String
    ) {
        pid = pids.first ?? 0
        self.pids = pids
        self.program = program
        self.kind = kind
        self.local = local
        self.peer = peer
        self.sendCarrier = sendCarrier
        self.receiveCarrier = receiveCarrier
        self.bytes = bytes
        self.carrierChanges = carrierChanges
        self.reason = reason
        self.reasonText = reasonText
    }
}

package enum Version {
    package static let text = "0.1.0"
}

/// JSON with keys in a stable order.
package func encodeJSON(_ value: some Encodable, pretty: Bool = false) -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = pretty ? [.sortedKeys, .prettyPrinted, .withoutEscapingSlashes] : [.sortedKeys, .withoutEscapingSlashes]
    // Plain structs of numbers and strings: encoding cannot fail.
    return Array((try? encoder.encode(value)) ?? .init())
}

package func decodeJSON<Value: Decodable>(_ type: Value.Type, _ bytes: [UInt8]) throws -> Value {
    do { return try JSONDecoder().decode(type, from: .init(bytes)) } catch { throw ServiceError.badAnswer("\(error)") }
}
