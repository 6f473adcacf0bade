import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// The message by which two sessions introduce themselves (WSD-N4): 128 of at most 256 bytes.
///
///     0 u32 magic   4 u32 version   8 u64 window bytes   16 u64 bytes of the ring that I send into at first
///     24 u64 process id (a hint: ends in one process wait less patiently for each other)
///     32 64 B descriptor of my window   96 32 B reserved, zero
enum Hello {
    static var bytes: Int { 128 }
    static var magic: UInt32 { 0x4853_5353 }
    static var version: UInt32 { 2 }
    static var descriptorOffset: Int { 32 }
}

/// What became of a step in setting up.
package enum SetupResult: Sendable {
    case done, pending, failed
    /// The peer declined, or gave up.
    case refused
    /// No memory for the window.
    case noMemory
}

extension Session {
    /// A peer that has turned the companion down, before or while we set up, may take the next one; a provider that fails
    /// will not work later either.
    private static func outcome(of error: Int32) -> SetupResult {
        error == ECONNREFUSED || error == ECONNRESET ? .refused : .failed
    }

    /// First step, once the companion is connected: exposes the local window and sends our hello. The connection record
    /// already names provider and companion. On failure nothing of the session is left (the companion is the caller's).
    package func begin() -> SetupResult {
        guard let provider = connection.pointee.provider else { return .failed }
        let table = provider.pointee
        let companion = connection.pointee.companion
        var error: Int32 = 0
        guard let register = table.registerRdmaMemory, let send = table.calls.lpWSPSend, let receive = table.calls.lpWSPRecv
        else { return .failed }

        // Buffers for the peer's message first: its early arrival must not drop the connection.
        connection.pointee.helloReceive = WSAOVERLAPPED()
        connection.pointee.helloReceive.hEvent = 1
        let helloAddress = UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &connection.pointee.hello) { $0 })
        var buffer = WSABUF(len: 256, buf: helloAddress)
        var received = 0
        var flags: UInt32 = 0
        if receive(companion, &buffer, 1, &received, &flags, &connection.pointee.helloReceive, &error) == SOCKET_ERROR, error != EINPROGRESS {
            return Session.outcome(of: error)
        }

        if let allocate = table.allocateRdmaMemory {
            connection.pointee.local = allocate(companion, Window.bytes, &error)
            connection.pointee.ownsLocal = false
        } else {
            connection.pointee.local = Session.mapMemory(Window.bytes)
            connection.pointee.ownsLocal = true
        }
        guard let window = connection.pointee.local else { return .noMemory }
        var hello = InlineArray<128, UInt8>(repeating: 0)
        return withUnsafeMutablePointer(to: &hello) { hello in
            let bytes = UnsafeMutableRawPointer(hello)
            bytes.storeBytes(of: Hello.magic, as: UInt32.self)
            bytes.storeBytes(of: Hello.version, toByteOffset: 4, as: UInt32.self)
            bytes.storeBytes(of: UInt64(Window.bytes), toByteOffset: 8, as: UInt64.self)
            bytes.storeBytes(of: Session.initialRing, toByteOffset: 16, as: UInt64.self)
            bytes.storeBytes(of: UInt64(ss_sys_getpid()), toByteOffset: 24, as: UInt64.self)
            let descriptor = (bytes + Hello.descriptorOffset).assumingMemoryBound(to: SOCKSWITCH_RDMA_DESCRIPTOR.self)
            var sent = 0
            var buffer = WSABUF(len: Hello.bytes, buf: bytes)
            if register(companion, window, Window.bytes, UInt32(MEM_WRITE), descriptor, &error) == SOCKET_ERROR {
                abandon()
                return .failed
            }
            connection.pointee.exposed = descriptor.pointee
            connection.pointee.isExposed = true
            if send(companion, &buffer, 1, &sent, 0, nil, &error) == SOCKET_ERROR, error != EINPROGRESS {
                abandon()
                return Session.outcome(of: error)
            }
            return .pending
        }
    }

    /// Second step, as often as it says `pending`: takes the peer's hello. `done`: the session is up; the caller sets
    /// `Slot.mode` to `dual` when everything around it is ready.
    package func negotiate() -> SetupResult {
        guard let provider = connection.pointee.provider, let result = provider.pointee.calls.lpWSPGetOverlappedResult
        else { return .failed }
        let companion = connection.pointee.companion
        var transferred = 0
        var flags: UInt32 = 0
        var error: Int32 = 0
        // True is success, as in Winsock.
        if result(companion, &connection.pointee.helloReceive, &transferred, 0, &flags, &error) == 0 {
            if error == EINPROGRESS || error == EAGAIN { return .pending }
            abandon()
            return Session.outcome(of: error)
        }
        let hello = UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &connection.pointee.hello) { $0 })
        let ring = hello.loadUnaligned(fromByteOffset: 16, as: UInt64.self)
        guard transferred >= Hello.bytes, hello.loadUnaligned(as: UInt32.self) == Hello.magic,
            hello.loadUnaligned(fromByteOffset: 4, as: UInt32.self) == Hello.version,
            hello.loadUnaligned(fromByteOffset: 8, as: UInt64.self) == UInt64(Window.bytes), RingGeometry.isValid(size: ring)
        else {
            abandon()
            return .failed
        }
        var notification: Int32 = -1
        var returned = 0
        let ioctl = provider.pointee.calls.lpWSPIoctl
        guard ioctl?(companion, UInt32(SIO_SOCKSWITCH_NOTIFICATION), nil, 0, &notification, 4, &returned, &error) == 0, notification >= 0
        else {
            abandon()
            return .failed
        }
        let descriptor = (hello + Hello.descriptorOffset).assumingMemoryBound(to: SOCKSWITCH_RDMA_DESCRIPTOR.self)
        if let map = provider.pointee.mapRdmaMemory {
            guard let remote = map(companion, descriptor, Window.bytes, &error) else {
                abandon()
                return .failed
            }
            connection.pointee.remote = remote
        } else {
            connection.pointee.remote = Session.mapMemory(Window.bytes)
            guard let mirror = connection.pointee.remote,
                let writer = RemoteWriter.make(provider: provider, companion: companion, mirror: mirror, target: descriptor, ringBytes: Session.initialRing)
            else {
                if let mirror = connection.pointee.remote { _ = ss_sys_munmap(mirror, Window.bytes) }
                abandon()
                return .failed
            }
            connection.pointee.writer = writer
        }
        connection.pointee.notification = notification
        connection.pointee.peerIsHere = hello.loadUnaligned(fromByteOffset: 24, as: UInt64.self) == UInt64(ss_sys_getpid())
        prepareSlot(peerRing: ring)
        // A half-close that came before the window must be told all the same: the peer would take the FIN for our death.
        if has(Slot.Flags.writeShutDown) { sayHalfClosed() }
        remote.ringChange.store(slot.sendRing.load())  // after the end flags: says that they count
        publish(line: 0)
        word(Connection.Offsets.up).store(Up.yes)
        fullFence()  // willShutDown sets the flag, then looks whether the session is up; here it is the other way round
        if has(Slot.Flags.writeShutDown) { sayHalfClosed() }
        return .done
    }

    private func sayHalfClosed() {
        remote.endFlags.store(endFlags)
        publish(line: 3)
    }

    /// The ring that this process begins to send with, bytes.
    static var initialRing: UInt64 {
        let wanted = UInt64(ss_session_state.initial_ring_bytes)
        return RingGeometry.isValid(size: wanted) ? wanted : Window.initialRingBytes
    }

    private func prepareSlot(peerRing: UInt64) {
        slot.sendPosition.store(0)
        slot.sendCredit.store(0)
        slot.sendCuts.store(0)
        slot.sendRingOrigin.store(0)
        slot.sendRing.store(RingChange(position: 0, size: Session.initialRing).word)
        slot.sendRingChanged.store(0)
        slot.sendFullCount.store(0)
        slot.rungForReceive.store(0)
        slot.roomWanted.store(0)
        slot.backlogPosition.store(0)
        slot.backlogEnd.store(0)
        slot.bytesRewound.store(0)
        slot.receivePosition.store(0)
        slot.receiveCuts.store(0)
        slot.tcpPosition.store(0)
        slot.invitation.store(Invitation.none)
        slot.receiveRingOrigin.store(0)
        slot.receiveRing.store(RingChange(position: 0, size: peerRing).word)
        slot.rungForSend.store(0)
        // The armed counters go on: a thread that is still in a call of an earlier session may be using them.
    }

    /// The switch gives a session up that has not come up yet.
    package func giveSetupUp() {
        if !isUp { abandon() }
    }

    /// Setting up failed or was given up: gives back what `begin` took.
    func abandon() {
        unexpose()
        if connection.pointee.ownsLocal, let window = connection.pointee.local { _ = ss_sys_munmap(window, Window.bytes) }
        connection.pointee.ownsLocal = false
        connection.pointee.remote = nil
        connection.pointee.local = nil
    }

    /// Zeroed memory that forked children share; sparse.
    static func mapMemory(_ bytes: Int) -> UnsafeMutableRawPointer? {
        let address = ss_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if address < 0 && address > -4096 { return nil }
        let pointer = UnsafeMutableRawPointer(bitPattern: address)
        if let pointer { _ = ss_sys_madvise(pointer, bytes, MADV_DONTDUMP) }
        return pointer
    }
}
