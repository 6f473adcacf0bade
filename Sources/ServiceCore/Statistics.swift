import CSocketSwitch
import ControlPlane
import Glibc
import SocketTable
import StreamRing

extension Service {
    /// Every TCP socket of every live switched process, families in the order of their first process.
    package func socketReports() -> [SocketReport] {
        arenas.values.map(socketReports).filter { !$0.isEmpty }.sorted { $0[0].pid < $1[0].pid }.flatMap { $0 }
    }

    private func socketReports(of family: SharedArena) -> [SocketReport] {
        let arena = family.arena
        // What a process calls itself may differ from what we call it (pid namespaces): the kernel told us for those
        // that have connected.
        var pids: [Int: Int32] = [:]
        for (id, process) in family.clients { pids[process] = clients[id]?.credentials.pid }
        var holders: [Int: [Int32]] = [:]
        var names: [Int: String] = [:]
        for process in arena.liveProcesses {
            let entry = arena.process(process)
            let own = entry.pid.load()
            let pid: Int32
            if let known = pids[process] {
                pid = known
            } else if own > 0, own <= UInt64(Int32.max), ss_sys_kill(Int32(own), 0) != -Int(ESRCH) {
                pid = Int32(own)
            } else {
                continue
            }
            for slot in arena.slotsHeld(by: process) {
                if holders[slot]?.isEmpty ?? true { names[slot] = commandName(of: pid) ?? entry.text }
                if !(holders[slot]?.contains(pid) ?? false) { holders[slot, default: []].append(pid) }
            }
        }
        return holders.sorted { $0.key < $1.key }.compactMap { index, pids in
            report(arena.slot(index), pids: pids, program: names[index] ?? "")
        }
    }

    private func commandName(of pid: Int32) -> String? {
        guard let file = fopen("/proc/\(pid)/comm", "re") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 64)
        guard fgets(&line, 64, file) != nil else { return nil }
        return String(decoding: line.prefix { $0 != 0 && $0 != 10 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private func report(_ slot: Slot, pids: [Int32], program: String) -> SocketReport? {
        let kind: SocketReport.Kind
        switch slot.kind.load() {
        case Slot.Kind.fresh: kind = .fresh
        case Slot.Kind.listening: kind = .listening
        case Slot.Kind.connected: kind = .connected
        case Slot.Kind.accepted: kind = .accepted
        default: return nil
        }
        let send: SocketReport.Carrier = slot.sendCuts.load() & 1 == 1 ? .companion : .tcp
        let receive: SocketReport.Carrier = slot.receiveCuts.load() & 1 == 1 ? .companion : .tcp
        let (reason, text) = explain(slot, kind, isOnCompanion: send == .companion && receive == .companion)
        return SocketReport(
            pids: pids, program: program, kind: kind, local: Endpoint(slot.localAddress)?.text ?? "",
            peer: Endpoint(slot.peerAddress)?.text ?? "", sendCarrier: send, receiveCarrier: receive,
            bytes: .init(
                tcpSent: slot.tcpBytesSent.load(), tcpReceived: slot.tcpBytesReceived.load(),
                companionSent: slot.sendPosition.load(), companionReceived: slot.receivePosition.load()),
            carrierChanges: slot.carrierChanges.load(), reason: reason, reasonText: text)
    }

    /// Why (a direction of) the socket is on TCP.
    private func explain(_ slot: Slot, _ kind: SocketReport.Kind, isOnCompanion: Bool) -> (String, String) {
        let number = slot.reason.load()
        guard let reason = Reason(rawValue: number) else { return ("unknown", "reason \(number), which this version does not know") }
        if isOnCompanion { return ("none", Reason.none.text.description) }
        if reason == .none || reason == .notConnected, kind == .listening { return ("none", "listening") }
        guard reason == .none else { return ("\(reason)", reason.text.description) }
        // The library did not say: what the socket's state implies.
        let isDual = slot.mode.load() == Slot.Mode.dual
        let implied: Reason = kind == .fresh ? .notConnected : isSwitchedOff ? .switchedOff : isDual ? .notInvited : .notWorthItYet
        return ("\(implied)", implied.text.description)
    }
}
