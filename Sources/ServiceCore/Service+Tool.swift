import CSocketSwitch
import ControlPlane
import Rendezvous
import SocketTable
import StreamRing

extension Service {
    /// A command of the command-line tool.
    func tool(_ message: Message, from client: Client) {
        let text = String(
            decoding: UnsafeRawBufferPointer(start: message.text, count: Message.textBytes).prefix { $0 != 0 }, as: UTF8.self)
        guard isPrivileged(client) || text == "ping" else { return end(ToolStatus.notPermitted, to: client) }
        switch text {
        case "ping":
            // Others' programs use a service of root's only if it is there to stay.
            answer(Array((configuration.isEphemeral ? "pong ephemeral" : "pong").utf8), to: client)
        case "hold":
            guard hold(client) else { return end(ToolStatus.unknownCommand, to: client) }
        case "stay":
            if configuration.isEphemeral { log.notice("asked to stay") }
            configuration.isEphemeral = false
        case "status":
            answer(encodeJSON(status), to: client)
        case "ps":
            answer(encodeJSON(ServiceReport(service: status, sockets: socketReports())), to: client)
        case "off":
            switchAll(off: true)
            answer(encodeJSON(status), to: client)
        case "on":
            switchAll(off: false)
            answer(encodeJSON(status), to: client)
        default:
            return end(ToolStatus.unknownCommand, to: client)
        }
        end(ToolStatus.done, to: client)
    }

    private func answer(_ text: [UInt8], to client: Client) {
        var start = 0
        while start < text.count {
            let count = min(Message.toolChunkBytes, text.count - start)
            send(Client.Outgoing(bytes: Array(text[start..<(start + count)])), to: client)
            start += count
        }
    }

    private func end(_ status: UInt32, to client: Client) {
        send(Client.Outgoing(bytes: makeMessage(kind: MessageKind.toolEnd) { $0.reason = status }), to: client)
    }

    /// Pulls all live connections back to TCP, or allows companions again, and wakes whoever sleeps.
    package func switchAll(off: Bool) {
        isSwitchedOff = off
        for arena in arenas.values { arena.arena.switchedOff.store(off ? 1 : 0) }
        let ringer = EventRinger()
        for pair in pairs { pair.doorbells?.ring(ringer) }
        log.notice("switched \(off ? "off" : "on")")
    }

    package var status: ServiceStatus {
        var totals = totals
        for arena in arenas.values { totals.add(arena.arena.companionBytes) }
        return ServiceStatus(
            version: Version.text, pid: Int32(ss_sys_getpid()), socket: configuration.path, ephemeral: configuration.isEphemeral,
            switchedOff: isSwitchedOff, uptimeSeconds: (now - started) / 1000, clients: clients.count, families: arenas.count,
            listeners: listeners.count, pairs: pairs.count, announcements: announcements.count, totals: totals)
    }
}

extension ServiceStatus.Totals {
    /// What a family says of itself; it may be nonsense.
    mutating func add(_ bytes: (sent: UInt64, received: UInt64)) {
        companionSent &+= bytes.sent
        companionReceived &+= bytes.received
    }
}
