import CSocketSwitch
import ControlPlane
import Rendezvous
import SocketTable

extension Service {
    /// Pairs a new announcement, lets it wait, or refuses it.
    func arrange(_ new: Announcement, from client: Client) {
        // The same end once more, perhaps from a process that shares the socket: the new one takes the place.
        for old in announcements.candidates(new.identity.connection) where old.identity.namespace == new.identity.namespace {
            takeBack(old, .waitingForPeer)
        }
        if let other = partner(of: new) {
            _ = announcements.remove(serial: other.serial)
            forget(other)
            return pair(other, new)
        }
        if new.role == Role.connector,
            !listeners.hasListener(
                for: new.identity.connection.peer, namespace: new.identity.namespace,
                orAnyOther: configuration.pairsAcrossNamespaces)
        {
            return refuse(new, .peerNotSwitched)
        }
        guard client.announcements.count < configuration.maximumAnnouncementsPerClient else { return refuse(new, .waitingForPeer) }
        client.announcements[new.name] = announcements.add(new)
    }

    /// Takes a finished announcement off its client's list.
    func forget(_ announcement: Announcement) {
        guard let client = clients[announcement.client] else { return }
        if client.announcements[announcement.name] == announcement.serial { client.announcements[announcement.name] = nil }
    }

    private func takeBack(_ old: Announcement, _ reason: Reason) {
        guard announcements.remove(serial: old.serial) != nil else { return }
        forget(old)
        refuse(old, reason)
    }

    /// The waiting announcement of the other end.
    private func partner(of new: Announcement) -> Announcement? {
        let candidates = announcements.candidates(new.identity.connection.mirrored)
        let near = candidates.filter { $0.identity.namespace == new.identity.namespace }
        for candidate in near.isEmpty && configuration.pairsAcrossNamespaces ? candidates : near {
            switch mayPair(candidate, new, alone: candidates.count == 1) {
            case .same: return candidate
            case .gone: takeBack(candidate, .peerEnded)
            case .unknown: continue
            }
        }
        return nil
    }

    /// `.same`: they are the two ends of one connection. `.gone`: the waiting one is of a connection that is over.
    private func mayPair(_ waiting: Announcement, _ new: Announcement, alone: Bool) -> ConnectionInspector.Answer {
        guard let client = clients[waiting.client], let newClient = clients[new.client] else { return .gone }
        let one = waiting.identity
        let other = new.identity
        guard one.windowShifts.own == other.windowShifts.peer, one.windowShifts.peer == other.windowShifts.own else { return .gone }
        if one.namespace != other.namespace {
            // The same addresses may exist in several namespaces. Only an administrator's are believed, and only when
            // there is no choice.
            guard alone, one.isNamespaceOfAdministrator == true, other.isNamespaceOfAdministrator == true,
                !one.connection.local.isLoopback, !one.connection.local.isLinkLocal
            else { return .unknown }
        }
        let answer = inspector.check(
            one.connection, namespace: one.namespace, cookie: one.cookie, pid: client.credentials.pid)
        if answer != .unknown { return answer }
        // Nobody can be asked. A user may be taken in only by their own processes, which could do so anyway.
        return one.namespace == other.namespace && client.credentials.uid == newClient.credentials.uid ? .same : .unknown
    }

    private func pair(_ waiting: Announcement, _ new: Announcement) {
        guard let first = clients[waiting.client], let second = clients[new.client],
            let firstArena = first.arena, let secondArena = second.arena
        else { return refuse(new, .peerEnded) }
        // Three descriptors are passed to each end; both must have room to take them.
        let open = Descriptor.openCount
        guard open + 16 < descriptorLimit, max(first.queuedDescriptors, second.queuedDescriptors) < 3 * configuration.queueBound,
            let made = try? PairDescriptors.make(
                doorbells: first.credentials.uid == second.credentials.uid ? DoorbellKind.events : DoorbellKind.socketPair)
        else {
            refuse(waiting, .descriptorLimit)
            return refuse(new, .descriptorLimit)
        }
        // The connector is side 0, unless both connected (simultaneous open) or begin anew.
        let side = waiting.role == new.role ? 0 : waiting.role == Role.connector ? 0 : 1
        totals.paired += 1
        // The companion that such a connection had before is over.
        if waiting.role == Role.rejoiner || new.role == Role.rejoiner {
            let names = [(firstArena, waiting.name), (secondArena, new.name)]
            pairs.removeAll { pair in
                pair.ends.contains { end in
                    names.contains { end.arena === $0 && UInt64(end.slot) == $1.slot && end.generation == $1.generation }
                }
            }
        }
        // The waiting end may be gone without our knowing; the new one has just spoken.
        send(paired(waiting, made, side: side), to: first)
        guard isConnected(first) else { return refuse(new, .peerEnded) }
        log.debug("paired", metadata: ["local": "\(new.identity.connection.local.text)", "peer": "\(new.identity.connection.peer.text)"])
        let ends = [end(first, firstArena, waiting.name), end(second, secondArena, new.name)]
        // Known before the second end is told: if that one is gone already, the first is turned down in its name.
        pairs.append(
            Pair(
                ends: side == 0 ? ends : ends.reversed(), mailboxes: SegmentMailboxes(of: made.segment),
                doorbells: open < descriptorLimit / 4 * 3 ? made.doorbells : nil))
        send(paired(new, made, side: 1 - side), to: second)
    }

    private func end(_ client: Client, _ arena: SharedArena, _ name: Client.SlotName) -> Pair.End {
        Pair.End(client: client.id, arena: arena, slot: Int(name.slot), generation: name.generation)
    }

    /// A client is gone, or has taken back the announcement of `name`: whoever was paired with it meanwhile is told.
    func rejectPairs(of client: Client, _ name: Client.SlotName? = nil) {
        for pair in pairs {
            guard let mailboxes = pair.mailboxes else { continue }
            for (side, end) in pair.ends.enumerated() where end.client == client.id {
                if let name, name.slot != UInt64(end.slot) || name.generation != end.generation { continue }
                mailboxes.reject(side: side)
            }
        }
    }

    private func paired(_ announcement: Announcement, _ made: PairDescriptors, side: Int) -> Client.Outgoing {
        let message = makeMessage(kind: MessageKind.paired) {
            $0.slot = announcement.name.slot
            $0.generation = announcement.name.generation
            $0.role = UInt32(side)
            $0.doorbellKind = made.doorbells.kind
        }
        return Client.Outgoing(
            bytes: message, descriptors: [made.segment] + made.doorbells.passed(to: side), isForMailbox: true)
    }
}
