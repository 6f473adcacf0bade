import CSocketSwitch
import Glibc
import ServiceProviders
import Session
import SocketTable
import StreamRing

/// One end of a connection, as the switch would keep it.
package final class Endpoint: @unchecked Sendable {
    package let fd: Int32
    package let index: Int
    package let session: Session
    package let provider: LoadedProvider
    private var isOpen = true

    init(fd: Int32, kind: UInt64, _ provider: LoadedProvider, family: Int32) {
        self.fd = fd
        self.provider = provider
        index = TestArena.arena.allocateSlot(process: TestArena.process)
        let record = UnsafeMutablePointer<Connection>.allocate(capacity: 1)
        record.initialize(to: Connection())
        session = Session(slot: TestArena.arena.slot(index), connection: record)
        session.slot.kind.store(kind)
        record.pointee.generation = session.slot.generation.load()
        record.pointee.descriptor = fd
        record.pointee.descriptorCount = 1
        record.pointee.provider = UnsafePointer(provider.table)
        record.pointee.companion = provider.socket(family)
    }

    package var slot: Slot { session.slot }
    package var companion: SOCKET { session.connection.pointee.companion }

    /// close(2) as the switch does it.
    package func close() {
        guard isOpen else { return }
        isOpen = false
        session.waitForBacklog(isLast: true)
        if session.end(last: true) {
            var value = linger(l_onoff: 1, l_linger: 0)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &value, socklen_t(MemoryLayout<linger>.size))
        }
        if companion != UInt.max { provider.close(companion) }
        session.connection.pointee.companion = 0
        _ = Glibc.close(fd)
        TestArena.arena.release(index, process: TestArena.process)
    }

    /// close(2) in a forked child while the parent goes on.
    package func closeInChild() {
        _ = session.end(last: false)
        _ = Glibc.close(fd)
    }

    deinit { close() }

    /// shutdown(2) as the switch does it.
    package func shutDown(_ how: Int32) {
        if session.willShutDown(how) {
            _ = ss_sys_shutdown(fd, how)
        } else if how == Int32(SHUT_RDWR) {
            _ = ss_sys_shutdown(fd, Int32(SHUT_RD))
        }
    }

    /// Everything that one wants to know when a test hangs.
    package var state: String {
        let s = slot
        var text = "fd \(fd) flags \(s.flags.load()) reason \(s.reason.load()) mode \(s.mode.load()) changes \(s.carrierChanges.load())\n"
        text += "  send: cuts \(s.sendCuts.load()) position \(s.sendPosition.load()) credit \(s.sendCredit.load()) ring \(RingChange(word: s.sendRing.load()).size)@\(s.sendRingOrigin.load())"
        text += " full \(s.sendFullCount.load()) rung \(s.rungForReceive.load()) armed \(s.armedForSendCounter.load())\n"
        text += "  receive: cuts \(s.receiveCuts.load()) position \(s.receivePosition.load()) tcp \(s.tcpPosition.load()) invitation \(s.invitation.load())"
        text += " ring \(RingChange(word: s.receiveRing.load()).size)@\(s.receiveRingOrigin.load()) rung \(s.rungForSend.load()) armed \(s.armedForReceiveCounter.load())\n"
        guard session.isUp else { return text + "  not up" }
        let w = session.local
        text += "  window: producer \(w.producer.load()) cuts \(w.cutCount.load()) onTCP \(w.cutOnTCP.load()) onCompanion \(w.cutOnCompanion.load())"
        text += " ring \(RingChange(word: w.ringChange.load()).size) credit \(w.credit.load()) invitation \(w.invitation.load())"
        text += " acknowledged \(w.acknowledged.load()) armedR \(w.armedForReceive.load()) armedS \(w.armedForSend.load()) end \(w.endFlags.load())\n"
        var queued: Int32 = 0
        _ = ioctl(fd, UInt(FIONREAD), &queued)
        return text + "  kernel: \(queued) bytes queued"
    }
}

/// The family's memory of the test process.
package enum TestArena {
    package nonisolated(unsafe) static let arena: FamilyArena = {
        let file = memfd_create("arena", UInt32(MFD_CLOEXEC))
        precondition(ftruncate(file, FamilyArena.bytes) == 0)
        let memory = mmap(nil, FamilyArena.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)!
        let arena = FamilyArena(memory)
        arena.initialize()
        ss_session_state.off_word = arena.switchedOff.address
        return arena
    }()
    package static let process: Int = arena.addProcess(pid: UInt64(getpid()))
}

/// A real TCP connection over loopback with a companion beside it, both ends in this process.
package final class Pair: @unchecked Sendable {
    package struct Failed: Error {}
    private let family: Int32
    /// The connecting and the accepted side.
    package let a: Endpoint
    package let b: Endpoint

    /// Connects, exchanges the hellos and goes dual. `before` runs while the connection is plain TCP.
    package init(
        _ provider: LoadedProvider, family: Int32 = AF_INET, ringBytes: UInt32 = 0, before: (Int32, Int32) -> Void = { _, _ in }
    ) throws {
        let (client, server) = Pair.connectedSockets(family)
        self.family = family
        before(client, server)
        a = Endpoint(fd: client, kind: Slot.Kind.connected, provider, family: family)
        b = Endpoint(fd: server, kind: Slot.Kind.accepted, provider, family: family)
        ss_session_state.initial_ring_bytes = ringBytes
        try beginSessions()
    }

    /// Binds and connects the companions of both ends, exchanges the hellos and goes dual.
    private func beginSessions() throws {
        let provider = a.provider
        for end in [a, b] {
            var address = sockaddr_storage()
            var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
            let bound = withUnsafeMutablePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { name -> Int32 in
                    _ = ss_sys_getsockname(end.fd, name, &length)
                    var error: Int32 = 0
                    return provider.table.pointee.calls.lpWSPBind(end.companion, name, length, &error)
                }
            }
            guard bound == 0 else { throw Failed() }
        }
        guard provider.pairUp(a.companion, b.companion) == 0 else { throw Failed() }
        guard a.session.begin() != .failed, b.session.begin() != .failed else { throw Failed() }
        var waiting = [a, b]
        while !waiting.isEmpty {
            var still: [Endpoint] = []
            for end in waiting {
                switch end.session.negotiate() {
                case .done: break
                case .pending: still.append(end)
                case .failed, .refused, .noMemory: throw Failed()
                }
            }
            waiting = still
            sched_yield()
        }
        for end in [a, b] { end.slot.mode.storeSequential(Slot.Mode.dual) }
    }

    /// `leaver` execs, as it were: it hands over and leaves, and what comes after it has no session. The other end, whose calls
    /// notice that, ends its own. Then both have new companions. False: not now, or the stream is over (`stop`).
    package func beginAnew(_ leaver: Endpoint, stop: () -> Bool = { false }) throws -> Bool {
        let other = leaver === a ? b : a
        while !leaver.handOver(leaves: true) {
            if stop() { return false }
            usleep(100)
        }
        guard leaver.session.connection.pointee.departure == Departure.told else { return false }
        leaver.session.connection.pointee.departure = Departure.none
        while !leaver.session.restartAfterLeaving({}) {
            if stop() { return false }
            sched_yield()
        }
        while true {
            if stop() { return false }
            guard other.slot.flags.load() & Slot.Flags.peerLeft != 0 else {
                sched_yield()
                continue
            }
            other.slot.flags.clearBits(Slot.Flags.peerLeft)
            if other.session.restart({}) { break }
        }
        try connectAgain(leaver)
        return true
    }

    /// New companions for both ends, whose sessions have ended since `leaver` left.
    package func connectAgain(_ leaver: Endpoint) throws {
        leaver.slot.flags.clearBits(Slot.Flags.tcpOnly)
        for end in [a, b] {
            end.provider.close(end.companion)
            end.session.connection.pointee.companion = end.provider.socket(family)
        }
        try beginSessions()
    }

    package func close() {
        a.close()
        b.close()
    }

    package var state: String { "a: \(a.state)\nb: \(b.state)" }

    /// A connected pair of TCP sockets: the connecting one, the accepted one.
    package static func connectedSockets(_ family: Int32) -> (Int32, Int32) {
        let listener = Int32(ss_sys_socket(family, 1, 0))
        var address = InlineArray<28, UInt8>(repeating: 0)
        return withUnsafeMutablePointer(to: &address) { pointer in
            let raw = UnsafeMutableRawPointer(pointer)
            raw.storeBytes(of: UInt16(family), as: UInt16.self)
            var length = UInt32(family == AF_INET ? 16 : 28)
            if family == AF_INET {
                raw.storeBytes(of: UInt32(0x7F00_0001).bigEndian, toByteOffset: 4, as: UInt32.self)
            } else {
                raw.storeBytes(of: 1, toByteOffset: 23, as: UInt8.self)
            }
            precondition(ss_sys_bind(listener, raw, length) == 0 && ss_sys_listen(listener, 1) == 0)
            precondition(ss_sys_getsockname(listener, raw, &length) == 0)
            let client = Int32(ss_sys_socket(family, 1, 0))
            precondition(ss_sys_connect(client, raw, length) == 0)
            let server = Int32(ss_sys_accept4(listener, nil, nil, 0))
            precondition(server >= 0)
            _ = ss_sys_close(listener)
            return (client, server)
        }
    }
}

extension Pair {
    /// Moves both directions to the companion, by one byte at a time, from one thread.
    package func moveToCompanion() {
        let byte = Buffer(1)
        Watchdog.watch({ self.state }) {
            while [a, b].contains(where: { $0.session.sendsOnTCP || $0.session.receivesOnTCP }) {
                for (from, to) in [(a, b), (b, a)] {
                    to.session.maintain(to.fd)
                    precondition(from.send(byte.bytes, 1) == 1)
                    precondition(to.receive(byte.bytes, 1) == 1)
                }
            }
        }
    }

    /// The direction's sender asks for TCP, and takes it back after its next write has gone there.
    package func sendOverTCP(_ end: Endpoint, _ bytes: UnsafeRawPointer, _ count: Int) -> Int {
        end.slot.flags.setBits(Slot.Flags.pullBack)
        defer { end.slot.flags.clearBits(Slot.Flags.pullBack) }
        return end.send(bytes, count)
    }
}
