import CSocketSwitch
import ControlPlane
import Glibc
import Rendezvous
import SocketTable
import StreamRing

extension Service {
    /// Acts on one well-formed packet. `descriptors` has one element for hello and announce and none otherwise.
    func handle(_ message: Message, _ descriptors: inout [Descriptor], from client: Client) {
        switch message.kind {
        case MessageKind.hello: hello(message, descriptors[0], from: client)
        case MessageKind.tool: tool(message, from: client)
        case MessageKind.listen, MessageKind.unlisten, MessageKind.announce, MessageKind.withdraw:
            guard client.arena != nil else { return dismiss(client, "no hello") }
            switch message.kind {
            case MessageKind.listen: listen(message, from: client)
            case MessageKind.unlisten: unlisten(message, from: client)
            case MessageKind.announce: announce(message, &descriptors, from: client)
            default: withdraw(message, from: client)
            }
        default: dismiss(client, "unknown message \(message.kind)")
        }
    }

    /// The last close of a socket with SO_LINGER waits until its peer has everything, and a client's peer may never take it: then
    /// it is another thread's.
    func closeForeign(_ descriptors: inout [Descriptor]) {
        while !descriptors.isEmpty {
            var value = linger()
            var length = UInt32(MemoryLayout<linger>.size)
            let last = descriptors.count - 1
            let lingers =
                ss_sys_getsockopt(descriptors[last].raw, SOL_SOCKET, SO_LINGER, &value, &length) == 0 && value.l_onoff != 0 && value.l_linger > 0
            let kept = lingers ? Unmanaged.passRetained(descriptors[last]) : nil
            descriptors.removeLast()
            if let kept { closeInBackground(kept) }
        }
    }

    /// `descriptor` is the last reference.
    private func closeInBackground(_ descriptor: Unmanaged<Descriptor>) {
        var thread = pthread_t()
        let error = pthread_create(
            &thread, nil,
            { descriptor in
                Unmanaged<Descriptor>.fromOpaque(descriptor!).release()
                return nil
            }, descriptor.toOpaque())
        if error == 0 { pthread_detach(thread) } else { descriptor.release() }
    }

    private func hello(_ message: Message, _ descriptor: Descriptor, from client: Client) {
        guard client.arena == nil else { return dismiss(client, "second hello") }
        let process = Int(message.process)
        guard process < FamilyArena.processCount else { return dismiss(client, "process index") }
        guard let identity = SharedArena.identity(of: descriptor) else { return dismiss(client, "arena") }
        let arena: SharedArena
        if let known = arenas[identity] {
            arena = known
        } else {
            do { arena = try SharedArena(descriptor, identity: identity) } catch { return dismiss(client, "arena: \(error)") }
            arenas[identity] = arena
        }
        hadClient = true
        client.arena = arena
        client.process = process
        arena.clients[client.id] = process
        // Both ways: the family may have been switched off by a service that is gone.
        arena.arena.switchedOff.store(isSwitchedOff ? 1 : 0)
    }

    private func listen(_ message: Message, from client: Client) {
        guard let endpoint = Endpoint(CompactAddress(message.address)) else { return dismiss(client, "address") }
        // Beyond the bound a listener is not known: who connects to it stays on TCP.
        guard endpoint.port != 0, client.listenerCount < configuration.maximumListenersPerClient else { return }
        client.listenerCount += 1
        client.listeners[endpoint, default: 0] += 1
        listeners.add(endpoint, namespace: client.namespace)
    }

    private func unlisten(_ message: Message, from client: Client) {
        guard let endpoint = Endpoint(CompactAddress(message.address)) else { return dismiss(client, "address") }
        guard let count = client.listeners[endpoint] else { return }
        client.listenerCount -= 1
        client.listeners[endpoint] = count > 1 ? count - 1 : nil
        listeners.remove(endpoint, namespace: client.namespace)
    }

    private func withdraw(_ message: Message, from client: Client) {
        let name = Client.SlotName(slot: message.slot, generation: message.generation)
        guard let serial = client.announcements.removeValue(forKey: name) else { return rejectPairs(of: client, name) }
        if announcements.remove(serial: serial) != nil { totals.withdrawn += 1 }
    }

    private func announce(_ message: Message, _ descriptors: inout [Descriptor], from client: Client) {
        let identity: Result<SocketIdentity, SocketIdentity.Refusal> = Result { () throws(SocketIdentity.Refusal) in
            try .read(descriptors[0].raw, lookAtNamespaceOwner: configuration.pairsAcrossNamespaces)
        }
        // Before anything else: as long as the service holds the socket, its end does not reach the peer.
        closeForeign(&descriptors)

        totals.announced += 1
        let name = Client.SlotName(slot: message.slot, generation: message.generation)
        let role = message.role
        guard role <= Role.rejoiner else { return dismiss(client, "role") }
        guard name.slot > 0, name.slot < UInt64(FamilyArena.slotCount) else { return dismiss(client, "slot") }
        // Repeated: the first one is void.
        if let serial = client.announcements.removeValue(forKey: name) { _ = announcements.remove(serial: serial) }
        switch identity {
        case .success(let identity):
            arrange(
                Announcement(
                    client: client.id, name: name, role: role, identity: identity,
                    deadline: now + configuration.announcementMilliseconds),
                from: client)
        case .failure(.notConnected): refuse(name, .peerEnded, to: client)
        case .failure(.notTCP): refuse(name, .unsupportedOption, to: client)
        }
    }

    func refuse(_ announcement: Announcement, _ reason: Reason) {
        if let client = clients[announcement.client] { refuse(announcement.name, reason, to: client) }
    }

    func refuse(_ name: Client.SlotName, _ reason: Reason, to client: Client) {
        totals.refused += 1
        let message = makeMessage(kind: MessageKind.refused) {
            $0.slot = name.slot
            $0.generation = name.generation
            $0.reason = UInt32(reason.rawValue)
        }
        send(Client.Outgoing(bytes: message, isForMailbox: true), to: client)
    }
}
