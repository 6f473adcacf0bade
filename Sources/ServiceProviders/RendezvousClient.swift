import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

/// This process's connection to the rendezvous service (Sources/Rendezvous/Messages.swift has the messages).
///
/// It is made when the process first connects, accepts or listens, never blocks, and may end at any time: outstanding
/// announcements then fail with `Reason.noService`, live companions go on. All functions are called under the
/// providers' lock, unless they say otherwise.
enum RendezvousClient {
    /// Announcements that may wait for an answer: while one waits, the service may hold a duplicate of the TCP socket.
    static var maximumOutstanding: Int { 256 }
    private static var firstBackOffNanoseconds: UInt64 { 100_000_000 }
    private static var lastBackOffNanoseconds: UInt64 { 5_000_000_000 }
    /// How often, while announcements wait, packets (or the service's end) are looked for although the mailbox is silent.
    private static var lookIntervalNanoseconds: UInt64 { 20_000_000 }
    private static var packetsPerLook: Int { 64 }

    static var descriptor: Int32 { providerState.pointee.connectionPlusOne - 1 }

    /// The word that the service raises after it has sent this process a message; nil without an arena.
    static var mailbox: Word? {
        let state = providerState
        guard let arena = state.pointee.arena, state.pointee.process >= 0,
            Int(state.pointee.process) < FamilyArena.processCount
        else { return nil }
        return FamilyArena(arena).process(Int(state.pointee.process)).mailbox
    }

    /// The service has not read all that was sent to it.
    static var isUnread: Bool {
        var bytes: Int32 = 0
        return descriptor >= 0 && ss_sys_ioctl(descriptor, 0x5411 /* SIOCOUTQ */, &bytes) == 0 && bytes > 0
    }

    // MARK: The connection

    /// `.none` when there is a connection, else why not. Says hello on a new one.
    static func connect() -> Reason {
        let state = providerState
        // A raw clone: the connection, and the mailbox, are another process's.
        guard state.pointee.pid == Int32(truncatingIfNeeded: ss_sys_getpid()) else { return .sharedBeforeUpgrade }
        if state.pointee.connectionPlusOne != 0 { return .none }
        guard state.pointee.servicePathLength > 0, state.pointee.arena == nil || state.pointee.process >= 0 else {
            return .noService
        }
        let now = ss_monotonic_ns()
        if now < state.pointee.nextConnect {
            return Reason(rawValue: UInt64(state.pointee.connectionReason)) ?? .noService
        }
        let reason = open()
        if reason == .none {
            state.pointee.connectedAt = now
        } else {
            backOff(now, reason)
        }
        return reason
    }

    private static func backOff(_ now: UInt64, _ reason: Reason) {
        let state = providerState
        state.pointee.connectBackOff =
            min(max(state.pointee.connectBackOff &* 2, firstBackOffNanoseconds), lastBackOffNanoseconds)
        state.pointee.nextConnect = now &+ state.pointee.connectBackOff
        state.pointee.connectionReason = Int32(reason.rawValue)
    }

    private static func open() -> Reason {
        let state = providerState
        let type = Int32(SOCK_SEQPACKET.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
        let made = ss_sys_socket(AF_UNIX, type, 0)
        guard made >= 0 else { return made == -Int(EMFILE) ? .descriptorLimit : .noService }
        let socket = adoptOwn(Int32(made))
        guard socket >= 0 else { return .descriptorLimit }

        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let length = Int(state.pointee.servicePathLength)
        withUnsafeMutableBytes(of: &address.sun_path) { path in
            _ = memcpy(path.baseAddress!, ss_provider_state_address() + ProviderState.servicePathOffset, length)
        }
        guard ss_sys_connect(socket, &address, UInt32(2 + length + 1)) == 0 else {
            closeOwn(socket)
            return .noService
        }
        var peer = ucred()
        var peerLength = UInt32(MemoryLayout<ucred>.size)
        guard ss_sys_getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &peerLength) == 0,
            peer.uid == 0 || Int(peer.uid) == ss_sys_getuid()
        else {
            closeOwn(socket)
            return .serviceNotTrusted
        }
        state.pointee.connectionPlusOne = socket + 1
        state.pointee.connectionEpoch &+= 1
        if let mailbox { providerWord(ProviderState.mailboxSeenOffset).store(mailbox.load() &- 1) }
        providerHalfWord(ProviderState.unregisteredOffset).store(state.pointee.listening != 0 ? 1 : 0)

        let sent = send(kind: MessageKind.hello, passing: state.pointee.arenaDescriptor) { message in
            message.process = UInt32(bitPattern: state.pointee.process)
            message.pid = UInt32(bitPattern: state.pointee.pid)
        }
        guard sent == 0 else {
            drop(.noService)
            return .noService
        }
        return .none
    }

    /// The connection ended, or must end. Everything outstanding fails.
    static func drop(_ reason: Reason) {
        let state = providerState
        let socket = descriptor
        guard socket >= 0 else { return }
        state.pointee.connectionPlusOne = 0
        closeOwn(socket)
        let now = ss_monotonic_ns()
        if reason != .noService || now &- state.pointee.connectedAt < 1_000_000_000 {
            backOff(now, reason)
        } else {
            state.pointee.connectBackOff = 0
            state.pointee.nextConnect = 0
        }
        if state.pointee.listening != 0 { providerHalfWord(ProviderState.unregisteredOffset).store(1) }
        // The service cannot raise the word any more.
        mailbox?.add(1)
        while state.pointee.outstanding != 0 { Companion(state.pointee.outstanding).announcementFailed(reason) }
    }

    // MARK: Sending

    /// Sends one message, with a descriptor unless that is negative. 0; -EAGAIN: the service is busy, later; -EPIPE: the
    /// connection is gone (and dropped); another -errno: the descriptor cannot be passed.
    private static func send(kind: UInt32, passing fd: Int32, _ fill: (Message) -> Void) -> Int32 {
        let socket = descriptor
        guard socket >= 0 else { return -EPIPE }
        // 128 bytes of message, 24 of control message.
        var storage = InlineArray<20, UInt64>(repeating: 0)
        let result = withUnsafeMutableBytes(of: &storage) { bytes -> Int in
            let base = bytes.baseAddress!
            let message = Message(base)
            message.clear(kind: kind)
            fill(message)
            var piece = iovec(iov_base: base, iov_len: Message.bytes)
            var header = msghdr()
            return withUnsafeMutablePointer(to: &piece) { piece in
                header.msg_iov = piece
                header.msg_iovlen = 1
                if fd >= 0 {
                    let control = base + Message.bytes
                    control.storeBytes(of: 20, as: Int.self)
                    control.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: Int32.self)
                    control.storeBytes(of: Int32(SCM_RIGHTS), toByteOffset: 12, as: Int32.self)
                    control.storeBytes(of: fd, toByteOffset: 16, as: Int32.self)
                    header.msg_control = control
                    header.msg_controllen = 24
                }
                return ss_sys_sendmsg(socket, &header, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
            }
        }
        if result >= 0 { return 0 }
        switch Int32(truncatingIfNeeded: -result) {
        case EAGAIN, ENOBUFS, ENOMEM, EINTR, ETOOMANYREFS: return -EAGAIN
        case EPIPE, ECONNRESET, ECONNREFUSED, ENOTCONN:
            drop(.noService)
            return -EPIPE
        default: return Int32(truncatingIfNeeded: result)
        }
    }

    /// Tells the service about every listening companion that it does not know yet.
    static func registerListeners() {
        let state = providerState
        guard providerHalfWord(ProviderState.unregisteredOffset).load() != 0 else { return }
        guard connect() == .none else { return }
        var index = state.pointee.listening
        while index != 0 {
            let listener = Companion(index)
            if listener.record.pointee.registeredEpoch != state.pointee.connectionEpoch {
                let sent = send(kind: MessageKind.listen, passing: -1) { message in
                    _ = memcpy(message.address, listener.localAddress.base, 32)
                }
                guard sent == 0 else { return }
                listener.record.pointee.registeredEpoch = state.pointee.connectionEpoch
            }
            index = listener.record.pointee.next
        }
        providerHalfWord(ProviderState.unregisteredOffset).store(0)
    }

    /// A listening companion ends. Best effort: an unknown listener costs the service a wait, nothing else.
    static func unregister(_ listener: Companion) {
        guard descriptor >= 0,
            listener.record.pointee.registeredEpoch == providerState.pointee.connectionEpoch
        else { return }
        _ = send(kind: MessageKind.unlisten, passing: -1) { message in
            _ = memcpy(message.address, listener.localAddress.base, 32)
        }
    }

    /// Passes the TCP socket to the service and asks for the peer. `.none`: the answer will come; else nothing happened.
    /// `.waitingForPeer`: the service, or this process, has too much to do now.
    static func announce(_ companion: Companion) -> Reason {
        for _ in 0..<2 {
            let reason = connect()
            guard reason == .none else { return reason }
            registerListeners()
            guard hasRoomForDoorbells() else { return .descriptorLimit }
            let outstanding = providerHalfWord(ProviderState.outstandingOffset).load()
            guard outstanding < UInt32(maximumOutstanding) else { return .waitingForPeer }
            let sent = send(kind: MessageKind.announce, passing: companion.record.pointee.baseSocket) { message in
                message.slot = companion.slot
                message.generation = companion.generation
                message.role = companion.record.pointee.role
                message.process = UInt32(bitPattern: providerState.pointee.process)
            }
            switch sent {
            case 0:
                companion.enterOutstanding()
                return .none
            case -EAGAIN: return .waitingForPeer
            case -EPIPE: continue  // perhaps the service was restarted: once more
            default: return .companionFailed
            }
        }
        return .noService
    }

    /// The announcement is void. A `paired` that is on its way is then nobody's and is turned down.
    static func withdraw(_ companion: Companion) {
        companion.leaveOutstanding()
        _ = send(kind: MessageKind.withdraw, passing: -1) { message in
            message.slot = companion.slot
            message.generation = companion.generation
        }
    }

    // MARK: Receiving

    /// Whether `look` would do anything. Any thread, without the lock.
    @inline(__always)
    static var mayHaveNews: Bool {
        if providerHalfWord(ProviderState.outstandingOffset).load() != 0 { return true }
        if providerHalfWord(ProviderState.unregisteredOffset).load() != 0 { return true }
        guard let mailbox else { return false }
        return mailbox.load() != providerWord(ProviderState.mailboxSeenOffset).load()
    }

    /// Reads what the service has sent.
    static func look() {
        let state = providerState
        registerListeners()
        guard descriptor >= 0, state.pointee.pid == Int32(truncatingIfNeeded: ss_sys_getpid()) else { return }
        let raised = mailbox?.load()
        if let raised, raised == providerWord(ProviderState.mailboxSeenOffset).load() {
            let now = ss_monotonic_ns()
            guard now &- state.pointee.lastLook >= lookIntervalNanoseconds else { return }
            state.pointee.lastLook = now
        }
        for _ in 0..<packetsPerLook {
            guard receive() else {
                // Read before the packets: a message that comes later raises it again.
                if let raised { providerWord(ProviderState.mailboxSeenOffset).store(raised) }
                return
            }
        }
    }

    /// One packet. False: there is none, or the connection is gone.
    private static func receive() -> Bool {
        let socket = descriptor
        guard socket >= 0 else { return false }
        // 128 bytes of message, 64 of control messages.
        var storage = InlineArray<24, UInt64>(repeating: 0)
        return withUnsafeMutableBytes(of: &storage) { bytes in
            let base = bytes.baseAddress!
            var piece = iovec(iov_base: base, iov_len: Message.bytes)
            var header = msghdr()
            let count = withUnsafeMutablePointer(to: &piece) { piece in
                header.msg_iov = piece
                header.msg_iovlen = 1
                header.msg_control = base + Message.bytes
                header.msg_controllen = 64
                return ss_sys_recvmsg(socket, &header, Int32(MSG_DONTWAIT | MSG_CMSG_CLOEXEC))
            }
            if count == -Int(EAGAIN) { return false }
            if count == -Int(EINTR) { return true }
            guard count > 0 else {
                drop(.noService)
                return false
            }
            let descriptors = ReceivedDescriptors(base + Message.bytes, Int(header.msg_controllen))
            let message = Message(base)
            guard count == Message.bytes, UInt32(bitPattern: header.msg_flags) & UInt32(MSG_TRUNC) == 0,
                message.magic == Message.magic
            else {
                descriptors.close()
                drop(.serviceNotTrusted)
                return false
            }
            return handle(message, descriptors, truncated: UInt32(bitPattern: header.msg_flags) & UInt32(MSG_CTRUNC) != 0)
        }
    }

    /// False: the packet broke the protocol, the connection is gone.
    private static func handle(_ message: Message, _ descriptors: ReceivedDescriptors, truncated: Bool) -> Bool {
        var companion: Companion?
        if let entry = Companion.announcement(ofSlot: message.slot), entry.pointee != 0 {
            let found = Companion(entry.pointee)
            if found.generation == message.generation { companion = found }
        }
        switch message.kind {
        case MessageKind.refused where descriptors.count == 0:
            companion?.announcementFailed(Reason(rawValue: UInt64(message.reason)) ?? .companionFailed)
            return true
        case MessageKind.paired where truncated:
            // No room in the process's descriptor table.
            descriptors.close()
            companion?.announcementFailed(.descriptorLimit)
            return true
        case MessageKind.paired where descriptors.count == 3 && message.role <= 1 && message.doorbellKind <= DoorbellKind.socketPair:
            guard let companion else {
                rejectSegment(descriptors.first, side: Int(message.role))
                descriptors.close()
                return true
            }
            let reason = companion.attach(
                segment: descriptors.first, doorbell: descriptors.second, peerDoorbell: descriptors.third,
                doorbellKind: message.doorbellKind, side: message.role)
            if reason == .none { companion.announcementSucceeded() } else { companion.announcementFailed(reason) }
            return true
        default:
            descriptors.close()
            drop(.serviceNotTrusted)
            return false
        }
    }
}

/// The descriptors that came with a packet; at most three are kept.
private struct ReceivedDescriptors {
    private(set) var count = 0
    private(set) var first: Int32 = -1
    private(set) var second: Int32 = -1
    private(set) var third: Int32 = -1

    /// Collects them from control messages of `length` bytes, which the kernel wrote.
    init(_ control: UnsafeMutableRawPointer, _ length: Int) {
        var offset = 0
        while offset + 16 <= min(length, 64) {
            let size = control.load(fromByteOffset: offset, as: Int.self)
            guard size >= 16, size <= length - offset else { return }
            if control.load(fromByteOffset: offset + 8, as: Int32.self) == SOL_SOCKET,
                control.load(fromByteOffset: offset + 12, as: Int32.self) == Int32(SCM_RIGHTS)
            {
                var at = offset + 16
                while at + 4 <= offset + size {
                    add(control.load(fromByteOffset: at, as: Int32.self))
                    at += 4
                }
            }
            offset += (size + 7) & ~7
        }
    }

    private mutating func add(_ fd: Int32) {
        count += 1
        switch count {
        case 1: first = fd
        case 2: second = fd
        case 3: third = fd
        default: _ = ss_sys_close(fd)
        }
    }

    func close() {
        if first >= 0 { _ = ss_sys_close(first) }
        if second >= 0 { _ = ss_sys_close(second) }
        if third >= 0 { _ = ss_sys_close(third) }
    }
}
