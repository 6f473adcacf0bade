import CSocketSwitch
import ControlPlane
import Glibc
import SocketTable
import StreamRing

extension Service {
    /// Every TCP socket of every live switched process, families in the order of their first process.
    package func socketReports() -> [SocketReport] {
        let families = arenas.values.map(socketReports).filter { !$0.isEmpty }.sorted { $0[0].report.pid < $1[0].report.pid }
        return reconcile(families.flatMap { $0 })
    }

    private struct Finding {
        var report: SocketReport
        /// How often it was announced.
        var attempts: UInt64
        /// The service has paired it.
        var isPaired: Bool
    }

    /// What an end says of its peer is what it was told at the time. Seen from here both ends may be known, or one for good
    /// unknown.
    private func reconcile(_ findings: [Finding]) -> [SocketReport] {
        var reasons: [String: String] = [:]
        for finding in findings { reasons["\(finding.report.local) \(finding.report.peer)"] = finding.report.reason }
        return findings.map { finding in
            var report = finding.report
            guard report.reason == "\(Reason.peerNotSwitched)" || report.reason == "\(Reason.waitingForPeer)" else { return report }
            let reason: Reason
            // (An end that was accepted may not know its own address: behind a listener for all of them, when the process has not
            // been heard of since this service began.)
            switch reasons["\(report.peer) \(report.local)"] ?? reasons[" \(report.local)"] {
            case nil:
                // Announced again and again, and nobody there.
                guard finding.attempts > 1 else { return report }
                reason = .peerNotSwitched
            case "\(Reason.policy)", "\(Reason.ioUring)", "\(Reason.unsupportedOption)", "\(Reason.handedOver)", "\(Reason.urgentData)",
                "\(Reason.companionFailed)", "\(Reason.noProvider)":
                reason = .peerPolicy
            // The ends have not seen it yet.
            default: reason = finding.isPaired ? .negotiating : .waitingForPeer
            }
            report.reason = "\(reason)"
            report.reasonText = reason.text.description
            return report
        }
    }

    private func socketReports(of family: SharedArena) -> [Finding] {
        let arena = family.arena
        // What a process calls itself may differ from what we call it (pid namespaces): the kernel told us for those
        // that have connected.
        var pids: [Int: Int32] = [:]
        for (id, process) in family.clients { pids[process] = clients[id]?.credentials.pid }
        var holders: [Int: [Int32]] = [:]
        // Of these the kernel vouches: nobody has the service look into another's process.
        var certain: [Int: [Int32]] = [:]
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
                if pids[process] != nil { certain[slot, default: []].append(pid) }
            }
        }
        let paired = Set(pairs.flatMap(\.ends).filter { $0.arena === family && $0.isOpen }.map(\.slot))
        return holders.sorted { $0.key < $1.key }.compactMap { index, pids in
            let slot = arena.slot(index)
            return report(slot, pids: pids, program: names[index] ?? "", certain: certain[index] ?? [])
                .map { Finding(report: $0, attempts: slot.attempts.load(), isPaired: paired.contains(index)) }
        }
    }

    private func commandName(of pid: Int32) -> String? {
        guard let file = fopen("/proc/\(pid)/comm", "re") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 64)
        guard fgets(&line, 64, file) != nil else { return nil }
        return String(decoding: line.prefix { $0 != 0 && $0 != 10 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// The library asks for the own address of a connection when it announces it; until then the service looks.
    private func look(at slot: Slot, _ kind: SocketReport.Kind, certain pids: [Int32]) -> SocketIdentity.Sight {
        if let known = Endpoint(slot.localAddress) { return .connected(local: known) }
        guard kind == .connected || kind == .accepted, let peer = Endpoint(slot.peerAddress) else { return .nothing }
        let hint = slot.descriptorHint.load()
        guard hint > 0, hint <= UInt64(Int32.max) else { return .nothing }
        // Asked once each: the descriptor may be another one in a moment.
        for pid in pids {
            let sight = SocketIdentity.look(at: Int32(hint) - 1, in: pid, peer: peer)
            if case .nothing = sight { continue }
            return sight
        }
        return .nothing
    }

    private func report(_ slot: Slot, pids: [Int32], program: String, certain: [Int32]) -> SocketReport? {
        var kind: SocketReport.Kind
        switch slot.kind.load() {
        case Slot.Kind.fresh: kind = .fresh
        case Slot.Kind.listening: kind = .listening
        case Slot.Kind.connected: kind = .connected
        case Slot.Kind.accepted: kind = .accepted
        default: return nil
        }
        // The carriers before the bytes: what came over the former one was counted before the change.
        let send: SocketReport.Carrier = slot.sendCuts.load() & 1 == 1 ? .companion : .tcp
        let receive: SocketReport.Carrier = slot.receiveCuts.load() & 1 == 1 ? .companion : .tcp
        let companion = slot.companionBytes
        let bytes = SocketReport.Bytes(
            tcpSent: slot.tcpBytesSent.load(), tcpReceived: slot.tcpBytesReceived.load(),
            companionSent: companion.sent, companionReceived: companion.received)
        var local = ""
        switch look(at: slot, kind, certain: certain) {
        case .connected(let endpoint): local = endpoint.text
        // A connect that was begun, and is under way or has failed.
        case .notConnected: if bytes == .init() { kind = .fresh }
        case .nothing: break
        }
        let (reason, text) = explain(slot, kind, sendsOnTCP: send == .tcp, receivesOnTCP: receive == .tcp)
        return SocketReport(
            pids: pids, program: program, kind: kind, local: local, peer: Endpoint(slot.peerAddress)?.text ?? "", sendCarrier: send,
            receiveCarrier: receive, bytes: bytes, carrierChanges: slot.carrierChanges.load(), reason: reason, reasonText: text)
    }

    /// Why the socket, or the one direction of it that has not moved, is on TCP.
    private func explain(_ slot: Slot, _ kind: SocketReport.Kind, sendsOnTCP: Bool, receivesOnTCP: Bool) -> (String, String) {
        let number = slot.reason.load()
        guard var reason = Reason(rawValue: number) else { return ("unknown", "reason \(number), which this version does not know") }
        if !sendsOnTCP, !receivesOnTCP { return ("none", Reason.none.text.description) }
        if reason == .none || reason == .notConnected, kind == .listening { return ("none", "listening") }
        switch reason {
        case .notWorthItYet where kind == .fresh: reason = .notConnected
        case .none, .notInvited, .peerPolicy:
            if kind == .fresh {
                reason = .notConnected
            } else if isSwitchedOff {
                reason = .switchedOff
            } else if slot.flags.load() & Slot.Flags.tcpEnded != 0 {
                reason = .peerEnded
            } else if reason != .peerPolicy {
                let isDual = slot.mode.load() == Slot.Mode.dual
                reason = isDual ? explainReady(slot, sendsOnTCP: sendsOnTCP, receivesOnTCP: receivesOnTCP) : .notWorthItYet
            }
        default: break
        }
        return ("\(reason)", reason.text.description)
    }

    /// The session is up and the library did not say why it is not used: what the socket's state implies.
    private func explainReady(_ slot: Slot, sendsOnTCP: Bool, receivesOnTCP: Bool) -> Reason {
        if receivesOnTCP, slot.plainReaders.count != 0 { return .plainCall }
        if sendsOnTCP, slot.plainWriters.count != 0 { return .plainCall }
        // Whether the peer's reader has invited is not to be seen from here; whether ours has, is.
        let isUnused = sendsOnTCP ? !receivesOnTCP && slot.tcpBytesSent.load() == 0 : slot.invitation.load() == Invitation.toCompanion
        return isUnused ? .unused : .notInvited
    }
}
