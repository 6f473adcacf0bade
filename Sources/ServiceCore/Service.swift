import CSocketSwitch
import ControlPlane
import Glibc
import Logging
import Rendezvous
import SocketTable
import StreamRing

/// How the service behaves. Times in milliseconds.
package struct ServiceConfiguration: Sendable {
    package var path = ""
    /// End when nobody needs the service any more.
    package var isEphemeral = false
    /// How long an announcement waits for its other end.
    package var announcementMilliseconds: UInt64 = 5000
    /// Ephemeral: how long after the last client the service ends, and how long it waits for the first.
    package var lingerMilliseconds: UInt64 = 2000
    package var firstClientMilliseconds: UInt64 = 10000
    /// Pair ends that lie in different network namespaces, which then have to belong to the service's own user namespace
    /// (containers that root made). Needs root.
    package var pairsAcrossNamespaces = false
    /// Bounds for one client.
    package var maximumAnnouncementsPerClient = 4096
    package var maximumListenersPerClient = 4096
    /// Messages that wait for a slow client before the service stops reading what it sends.
    package var queueBound = 512
    /// A client that has not read for so long is disconnected.
    package var blockedMilliseconds: UInt64 = 10000
    /// Descriptors that the service may have open; 0: as many as the system lets it.
    package var descriptorLimit = 0

    package init() {}
}

/// The rendezvous service: a single-threaded event loop that pairs the two ends of TCP connections.
///
/// It trusts nobody: not the packets, not the descriptors, not the arenas. What a client can cost it is bounded.
/// Not thread-safe: one thread owns it.
package final class Service {
    package internal(set) var configuration: ServiceConfiguration
    let log: Logger
    private let clock: () -> UInt64
    private let poller: Descriptor
    private var listening: Descriptor?
    private var isListeningPaused = false

    var clients: [UInt64: Client] = [:]
    private var nextClient: UInt64 = 16
    /// Commands of `sockswitch run` that still run: an ephemeral service stays for what they may yet start. By epoll token.
    private var held: [UInt64: Held] = [:]
    var arenas: [SharedArena.Identity: SharedArena] = [:]
    /// Families without a connected process that still live.
    private var orphans: [SharedArena.Identity] = []
    var listeners = ListenerRegistry()
    var announcements = AnnouncementTable()
    let inspector = ConnectionInspector()
    var pairs: [Pair] = []
    var totals = ServiceStatus.Totals()
    package internal(set) var isSwitchedOff = false
    let started: UInt64
    let descriptorLimit: Int
    private let ownUser = geteuid()

    private var nextSlowTurn: UInt64?
    private var retryAt: UInt64?
    private var emptySince: UInt64
    var hadClient = false
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 16)

    static let listeningToken: UInt64 = 0

    /// `clock`: monotonic milliseconds.
    package init(
        _ configuration: ServiceConfiguration, log: Logger, clock: @escaping () -> UInt64 = { ss_monotonic_ns() / 1_000_000 }
    ) throws {
        self.configuration = configuration
        self.log = log
        self.clock = clock
        started = clock()
        emptySince = started
        descriptorLimit = configuration.descriptorLimit > 0 ? configuration.descriptorLimit : Service.raisedDescriptorLimit()
        let result = epoll_create1(Int32(EPOLL_CLOEXEC))
        poller = try .checked(result < 0 ? -Int(errno) : Int(result), "epoll_create1")
    }

    deinit { buffer.deallocate() }

    private static func raisedDescriptorLimit() -> Int {
        var limit = rlimit()
        guard ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &limit) == 0 else { return 1024 }
        if limit.rlim_cur < limit.rlim_max {
            var wanted = limit
            wanted.rlim_cur = limit.rlim_max
            if ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), &wanted, nil) == 0 { limit = wanted }
        }
        return Int(min(limit.rlim_cur, 1 << 20))
    }

    var now: UInt64 { clock() }

    // MARK: The loop

    /// Takes connections from a listening socket, which must not block.
    package func listen(on socket: Descriptor) {
        listening = socket
        watch(socket.raw, EPOLL_CTL_ADD, UInt32(EPOLLIN.rawValue), Service.listeningToken)
    }

    /// Serves until `shouldEnd` says so or, when ephemeral, until nobody is left. `wake`: a descriptor that becomes readable
    /// when `shouldEnd` is to be asked.
    package func run(wake: Descriptor, shouldEnd: () -> Bool) {
        watch(wake.raw, EPOLL_CTL_ADD, UInt32(EPOLLIN.rawValue), 1)
        while !shouldEnd(), !hasOutlivedItsClients { turn(maximumMilliseconds: nil) }
    }

    /// Waits for events, at most until the next deadline or for `maximumMilliseconds`, and handles them.
    package func turn(maximumMilliseconds: UInt64?) {
        var events = [epoll_event](repeating: epoll_event(), count: 64)
        let count = ss_sys_epoll_pwait(poller.raw, &events, Int32(events.count), timeout(atMost: maximumMilliseconds), nil)
        for event in events.prefix(max(0, count)) {
            let token = event.data.u64
            if token == Service.listeningToken {
                acceptClients()
            } else if let ended = held.removeValue(forKey: token) {
                watch(ended.descriptor.raw, EPOLL_CTL_DEL, 0, 0)
                emptySince = now
            } else if let client = clients[token] {
                if event.events & UInt32(EPOLLOUT.rawValue) != 0 { flush(client) }
                let hangUp = UInt32(EPOLLHUP.rawValue) | UInt32(EPOLLERR.rawValue)
                if event.events & hangUp != 0, client.queuedCount >= configuration.queueBound {
                    // Gone, and we do not read what it sent: epoll would report it for ever.
                    drop(client)
                } else if event.events & ~UInt32(EPOLLOUT.rawValue) != 0 {
                    receive(from: client)
                }
            }
        }
        handleTime()
    }

    private func timeout(atMost maximum: UInt64?) -> Int32 {
        var deadline = [announcements.nextDeadline, nextSlowTurn, retryAt, endDeadline].compactMap { $0 }.min()
        let now = now
        if let maximum { deadline = min(deadline ?? .max, now + maximum) }
        guard let deadline else { return -1 }
        return Int32(clamping: deadline > now ? deadline - now : 0)
    }

    private func handleTime() {
        let now = now
        for expired in announcements.takeExpired(now: now) {
            forget(expired)
            refuse(expired, expired.role == Role.connector ? .waitingForPeer : .peerNotSwitched)
        }
        if let retryAt, retryAt <= now {
            self.retryAt = nil
            if isListeningPaused, let listening {
                isListeningPaused = false
                watch(listening.raw, EPOLL_CTL_ADD, UInt32(EPOLLIN.rawValue), Service.listeningToken)
            }
            for client in Array(clients.values) where client.queuedCount > 0 {
                if now - client.blockedSince > configuration.blockedMilliseconds {
                    dismiss(client, "does not read")
                } else {
                    flush(client)
                }
            }
        }
        if let nextSlowTurn, nextSlowTurn <= now { slowTurn(now) }
        if nextSlowTurn == nil, !pairs.isEmpty || !orphans.isEmpty { nextSlowTurn = now + 1000 }
    }

    /// Once a second, while there are pairs or families without a client.
    private func slowTurn(_ now: UInt64) {
        nextSlowTurn = nil
        pairs.removeAll { !$0.isOpen }
        for index in pairs.indices where pairs[index].mailboxes?.bothHaveSpoken == true { pairs[index].mailboxes = nil }
        // A few a second, in turn: looking for living processes is expensive.
        for _ in 0..<min(8, orphans.count) {
            let identity = orphans.removeFirst()
            guard let arena = arenas[identity], arena.clients.isEmpty else { continue }
            if arena.hasLivingProcess() { orphans.append(identity) } else { forget(arena) }
        }
    }

    /// Families without a client cost a look now and then: not for any number of them.
    var hasRoomForOrphan: Bool { orphans.count < 256 }

    /// A family of which no process has connected to this service (yet).
    func adopt(_ arena: SharedArena) {
        arenas[arena.identity] = arena
        orphans.append(arena.identity)
        arena.arena.switchedOff.store(isSwitchedOff ? 1 : 0)
    }

    private func forget(_ arena: SharedArena) {
        totals.add(arena.arena.companionBytes)
        arenas[arena.identity] = nil
        pairs.removeAll { pair in pair.ends.contains { $0.arena === arena } }
        emptySince = now
    }

    /// Looks at families and pairs at once instead of at the next second.
    package func collectGarbage() { slowTurn(now) }

    /// Whoever only asks, as the command-line tool does, keeps nobody here.
    private var endDeadline: UInt64? {
        guard configuration.isEphemeral, arenas.isEmpty, held.isEmpty else { return nil }
        return emptySince + (hadClient ? configuration.lingerMilliseconds : configuration.firstClientMilliseconds)
    }

    /// Ephemeral, and nobody needs it any more.
    package var hasOutlivedItsClients: Bool { endDeadline.map { $0 <= now } ?? false }

    private func watch(_ descriptor: Int32, _ operation: Int32, _ interest: UInt32, _ token: UInt64) {
        var event = epoll_event()
        event.events = interest
        event.data.u64 = token
        _ = ss_sys_epoll_ctl(poller.raw, operation, descriptor, &event)
    }

    // MARK: Clients

    private func acceptClients() {
        guard let listening else { return }
        for _ in 0..<64 {
            let result = ss_sys_accept4(listening.raw, nil, nil, Int32(SOCK_NONBLOCK.rawValue) | Int32(SOCK_CLOEXEC.rawValue))
            if result >= 0 {
                adopt(Descriptor(Int32(result)))
            } else if result == -Int(EMFILE) || result == -Int(ENFILE) || result == -Int(ENOMEM) || result == -Int(ENOBUFS) {
                // Try again in a moment: the connection stays in the queue and would wake us for ever.
                watch(listening.raw, EPOLL_CTL_DEL, 0, 0)
                isListeningPaused = true
                retryAt = min(retryAt ?? .max, now + 100)
                return
            } else if result != -Int(ECONNABORTED), result != -Int(EINTR) {
                return
            }
        }
    }

    /// Takes a connected socket as a client.
    package func adopt(_ socket: Descriptor) {
        guard let credentials = PeerCredentials(of: socket.raw) else { return }
        let isPrivileged = credentials.uid == 0 || credentials.uid == ownUser
        // Others share half of what the service has, so that its own user and root always get in.
        guard clients.count < descriptorLimit / (isPrivileged ? 2 : 4) else { return }
        _ = ss_sys_fcntl(socket.raw, F_SETFL, Int(O_NONBLOCK))
        let client = Client(
            id: nextClient, socket: socket, credentials: credentials, namespace: networkNamespaceCookie(of: socket.raw))
        nextClient += 1
        clients[client.id] = client
        client.interest = UInt32(EPOLLIN.rawValue)
        watch(socket.raw, EPOLL_CTL_ADD, client.interest, client.id)
        log.debug("client", metadata: ["pid": "\(credentials.pid)", "uid": "\(credentials.uid)"])
    }

    func isPrivileged(_ client: Client) -> Bool { client.credentials.uid == 0 || client.credentials.uid == ownUser }

    func isConnected(_ client: Client) -> Bool { clients[client.id] === client }

    /// Ends the connection of a client that broke the protocol.
    func dismiss(_ client: Client, _ why: String) {
        guard isConnected(client) else { return }
        totals.dismissed += 1
        log.warning("client dismissed", metadata: ["pid": "\(client.credentials.pid)", "uid": "\(client.credentials.uid)", "why": "\(why)"])
        drop(client)
    }

    /// Forgets a client and everything that stands for it.
    func drop(_ client: Client) {
        guard clients.removeValue(forKey: client.id) != nil else { return }
        watch(client.socket.raw, EPOLL_CTL_DEL, 0, 0)
        _ = ss_sys_shutdown(client.socket.raw, Int32(SHUT_RDWR))
        for serial in client.announcements.values { _ = announcements.remove(serial: serial) }
        client.announcements = [:]
        rejectPairs(of: client)
        for (endpoint, count) in client.listeners {
            for _ in 0..<count { listeners.remove(endpoint, namespace: client.namespace) }
        }
        client.queue = []
        client.queueHead = 0
        if let arena = client.arena {
            client.arena = nil
            arena.clients[client.id] = nil
            if arena.clients.isEmpty {
                if hasRoomForOrphan, arena.hasLivingProcess() {
                    orphans.append(arena.identity)
                } else {
                    forget(arena)
                }
            }
        }
    }

    private struct Held {
        var pid: Int32
        var descriptor: Descriptor
    }

    /// The client's process is the command that `sockswitch run` is about to become. False: it cannot be watched.
    func hold(_ client: Client) -> Bool {
        let pid = client.credentials.pid
        if held.values.contains(where: { $0.pid == pid }) { return true }
        guard held.count < min(1024, descriptorLimit / 4) else { return false }
        guard let descriptor = Descriptor.ofProcess(pid) else { return false }
        let token = nextClient
        nextClient += 1
        watch(descriptor.raw, EPOLL_CTL_ADD, UInt32(EPOLLIN.rawValue), token)
        held[token] = Held(pid: pid, descriptor: descriptor)
        hadClient = true
        return true
    }

    private func updateInterest(_ client: Client, waitsForRoom: Bool) {
        var interest: UInt32 = 0
        if client.queuedCount < configuration.queueBound { interest |= UInt32(EPOLLIN.rawValue) }
        if waitsForRoom { interest |= UInt32(EPOLLOUT.rawValue) }
        if interest != client.interest {
            client.interest = interest
            watch(client.socket.raw, EPOLL_CTL_MOD, interest, client.id)
        }
    }

    // MARK: Messages

    private func receive(from client: Client) {
        // Some packets a turn, so that nobody keeps the others waiting.
        for _ in 0..<32 {
            guard isConnected(client), client.queuedCount < configuration.queueBound else { return }
            var received = Packet.receive(into: buffer, on: client.socket.raw)
            defer { closeForeign(&received.descriptors) }
            if received.result == -Int(EAGAIN) { return }
            if received.result <= 0 { return drop(client) }
            if received.isTruncated || received.result != Message.bytes { return dismiss(client, "malformed packet") }
            let message = Message(buffer.baseAddress!)
            guard message.magic == Message.magic else { return dismiss(client, "other protocol") }
            let expectsDescriptor = message.kind == MessageKind.hello || message.kind == MessageKind.announce
            guard received.descriptors.count == (expectsDescriptor ? 1 : 0) else { return dismiss(client, "descriptors") }
            handle(message, &received.descriptors, from: client)
        }
    }

    /// Sends now if it can be done, else later.
    func send(_ outgoing: Client.Outgoing, to client: Client) {
        guard isConnected(client) else { return }
        client.enqueue(outgoing)
        if client.queuedCount == 1 { flush(client) }
    }

    private func flush(_ client: Client) {
        while client.queuedCount > 0 {
            let outgoing = client.queue[client.queueHead]
            let result = outgoing.bytes.withUnsafeBytes { Packet.send($0, descriptors: outgoing.descriptors, on: client.socket.raw) }
            switch result {
            case 0:
                client.blockedSince = 0
                client.dequeue()
                if outgoing.isForMailbox, let arena = client.arena { arena.arena.process(client.process).mailbox.add(1) }
            case -Int(EAGAIN), -Int(ETOOMANYREFS), -Int(ENOBUFS), -Int(ENOMEM):
                if client.blockedSince == 0 { client.blockedSince = now }
                retryAt = min(retryAt ?? .max, now + (result == -Int(EAGAIN) ? 1000 : 50))
                return updateInterest(client, waitsForRoom: result == -Int(EAGAIN))
            default:
                return drop(client)
            }
        }
        updateInterest(client, waitsForRoom: false)
    }
}
