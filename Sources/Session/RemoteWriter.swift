import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// Carries what this side writes into its mirror of the peer's window over to the peer, for a provider that cannot map
/// memory: with WSPRdmaWrite, ordered, completions polled (WSD-T7).
///
/// Bytes of the ring are written from the mirror itself: they do not change before the peer has given credit for them,
/// and credit comes only after they arrived. Lines of words do change, so each is sent from a snapshot. A line 0 never
/// announces a producer position whose bytes have not been posted before it.
///
/// Writes take effect later than they are posted, so "publish, then look whether the other side sleeps" decides nothing
/// here. Instead a ring is posted behind whatever a sleeper may wait for: it cannot arrive before it. For the same reason
/// nothing that travels another way (bytes or a FIN on TCP) may follow what is only posted: `flush` first.
///
/// Private to the process (an RDMA connection cannot be shared by fork). Has a lock of its own, since both directions
/// publish lines; everything in the record is used under it.
package struct RemoteWriter {
    let provider: UnsafePointer<ProviderTable>
    let companion: UInt
    let mirror: UnsafeMutableRawPointer
    var target: SOCKSWITCH_RDMA_DESCRIPTOR
    /// Operations are posted and completed in order: these count them.
    var posted: UInt64 = 0
    var completed: UInt64 = 0
    /// Ring position up to which bytes were posted, and up to which they should be.
    var sentPosition: UInt64 = 0
    var wantedPosition: UInt64 = 0
    /// Of the ring in the mirror.
    var geometry: RingGeometry
    /// Lines (bit k = line k) that changed and could not be posted yet.
    var dirtyLines: UInt64 = 0
    /// A ring belongs behind the lines.
    var owesRing = false

    /// One operation in flight with its snapshot.
    struct Operation {
        var overlapped = WSAOVERLAPPED()
        var snapshot = InlineArray<64, UInt8>(repeating: 0)
    }

    static var depth: UInt64 { 64 }
    /// Kept for lines, so that credits and cuts never wait behind data.
    static var reserved: UInt64 { 16 }
    /// Bytes of ring that one operation carries at most.
    static var maximumWrite: UInt64 { 1 << 17 }
    /// How long a line may wait, under its caller's lock, for an operation to become free.
    static var publishPatienceNanoseconds: UInt64 { 20_000_000 }
    static var flushPatienceNanoseconds: UInt64 { 1_000_000_000 }
    /// One mapping: the lock, two words that are read without it, the record, the operations.
    static var failedOffset: Int { 16 }
    static var busyOffset: Int { 24 }
    static var recordOffset: Int { 64 }
    static var operationsOffset: Int { 1024 }
    static var mappingBytes: Int { operationsOffset + Int(depth) * MemoryLayout<Operation>.stride }

    static func make(
        provider: UnsafePointer<ProviderTable>, companion: UInt, mirror: UnsafeMutableRawPointer,
        target: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>, ringBytes: UInt64
    ) -> UnsafeMutablePointer<RemoteWriter>? {
        guard provider.pointee.rdmaWrite != nil, let memory = Session.mapMemory(mappingBytes) else { return nil }
        let writer = (memory + recordOffset).bindMemory(to: RemoteWriter.self, capacity: 1)
        writer.initialize(
            to: RemoteWriter(
                provider: provider, companion: companion, mirror: mirror, target: target.pointee,
                geometry: RingGeometry(origin: 0, size: ringBytes)))
        let operations = writer.operations
        for index in 0..<Int(depth) { (operations + index).initialize(to: Operation()) }
        return writer
    }

    static func destroy(_ writer: UnsafeMutablePointer<RemoteWriter>) {
        _ = ss_sys_munmap(UnsafeMutableRawPointer(writer) - recordOffset, mappingBytes)
    }
}

extension UnsafeMutablePointer where Pointee == RemoteWriter {
    private var memory: UnsafeMutableRawPointer { UnsafeMutableRawPointer(self) - RemoteWriter.recordOffset }
    private var lock: FamilyLock { FamilyLock(memory, 0) }
    private var failed: Word { Word(memory, RemoteWriter.failedOffset) }
    private var busy: Word { Word(memory, RemoteWriter.busyOffset) }

    var operations: UnsafeMutablePointer<RemoteWriter.Operation> {
        (memory + RemoteWriter.operationsOffset).assumingMemoryBound(to: RemoteWriter.Operation.self)
    }

    /// A write failed: the companion is lost. Without the lock.
    package var hasFailed: Bool { failed.load() != 0 }

    /// Something is in flight or could not be posted yet: a sleeper must look in again, or it would not notice a failure.
    /// Without the lock.
    package var needsAttention: Bool { busy.loadRelaxed() != 0 }

    /// The companion was found lost otherwise.
    func fail() { failed.store(1) }

    /// Bytes that may be accepted from the program now: what can be posted at once. Nothing is accepted that would have to
    /// wait for a later call of the program, which might never come.
    var capacity: UInt64 {
        guard !hasFailed, lock.lock() == .acquired else { return 0 }
        defer { lock.unlock() }
        collect()
        // The pieces of a whole ring, one more where it wraps, and the line that announces them.
        return free < RemoteWriter.reserved &+ Window.maximumRingBytes / RemoteWriter.maximumWrite &+ 2 ? 0 : Window.maximumRingBytes
    }

    /// Takes completions in and posts what had to wait.
    func progress() {
        guard needsAttention, lock.lock() == .acquired else { return }
        advance()
        lock.unlock()
    }

    /// The ring has grown; nothing of it is on its way. The peer hears of it before it hears of bytes.
    func grow(origin: UInt64, size: UInt64) {
        guard lock.lock() == .acquired else { return }
        pointee.geometry = RingGeometry(origin: origin, size: size)
        pointee.dirtyLines |= 1
        advance()
        lock.unlock()
    }

    /// The ring's bytes up to `position` go to the peer, then the line that announces them, then a ring.
    func send(upTo position: UInt64) {
        guard lock.lock() == .acquired else { return }
        pointee.wantedPosition = position
        pointee.dirtyLines |= 1
        pointee.owesRing = true
        advance()
        lock.unlock()
    }

    /// Sends a line. `rings`: somebody may sleep until it arrives.
    func publish(line: Int, rings: Bool = false) {
        guard lock.lock() == .acquired else { return }
        pointee.dirtyLines |= 1 << UInt64(line)
        if rings { pointee.owesRing = true }
        advance()
        // A credit or an acknowledgement must not wait for a call that may never come.
        if pointee.dirtyLines != 0 {
            let deadline = ss_monotonic_ns() &+ RemoteWriter.publishPatienceNanoseconds
            while pointee.dirtyLines != 0, !hasFailed, ss_monotonic_ns() < deadline {
                _ = ss_sys_sched_yield()
                advance()
            }
        }
        lock.unlock()
    }

    /// Waits (for at most about a second) until everything written so far, and the ring up to `position`, has taken effect at
    /// the peer. False: it has not.
    func flush(upTo position: UInt64) -> Bool {
        let deadline = ss_monotonic_ns() &+ RemoteWriter.flushPatienceNanoseconds
        while true {
            guard lock.lock() == .acquired else { return false }
            if pointee.wantedPosition != position {
                pointee.wantedPosition = position
                pointee.dirtyLines |= 1
                pointee.owesRing = true
            }
            advance()
            let isDone = pointee.sentPosition == position && pointee.dirtyLines == 0 && pointee.posted == pointee.completed
            lock.unlock()
            if hasFailed { return false }
            if isDone { return true }
            if ss_monotonic_ns() > deadline { return false }
            _ = ss_sys_sched_yield()
        }
    }

    /// Waits (for at most about a second) until nothing is in flight any more, successful or not: the memory goes away next.
    /// False: the provider still uses it.
    func drain() -> Bool {
        let deadline = ss_monotonic_ns() &+ RemoteWriter.flushPatienceNanoseconds
        while true {
            guard lock.lock() == .acquired else { return false }
            collect()
            let isDone = pointee.posted == pointee.completed
            lock.unlock()
            if isDone { return true }
            if ss_monotonic_ns() > deadline { return false }
            _ = ss_sys_sched_yield()
        }
    }

    // MARK: Under the lock

    private func advance() {
        collect()
        post()
        busy.storeRelaxed(
            pointee.posted != pointee.completed || pointee.dirtyLines != 0 || pointee.owesRing
                || pointee.sentPosition != pointee.wantedPosition ? 1 : 0)
    }

    private func collect() {
        guard let result = pointee.provider.pointee.calls.lpWSPGetOverlappedResult else { return }
        while pointee.completed != pointee.posted {
            let operation = operations + Int(pointee.completed % RemoteWriter.depth)
            var transferred = 0
            var flags: UInt32 = 0
            var error: Int32 = 0
            var attempts = 0
            while result(pointee.companion, &operation.pointee.overlapped, &transferred, 0, &flags, &error) == 0 {
                if error == EINPROGRESS || error == EAGAIN { return }
                failed.store(1)
                // Did the operation fail, or the question? An operation that failed says so again.
                attempts &+= 1
                if attempts == 2 { break }
            }
            pointee.completed &+= 1
        }
    }

    private func post() {
        guard !hasFailed else { return }
        while pointee.sentPosition != pointee.wantedPosition, free > 1 {
            let piece = pointee.geometry.piece(pointee.sentPosition, upTo: pointee.wantedPosition)
            let count = min(piece.count, Int(RemoteWriter.maximumWrite))
            guard write(Window(pointee.mirror).ring + piece.start, count, at: Window.controlBytes + piece.start) else { break }
            pointee.sentPosition &+= UInt64(count)
            pointee.dirtyLines |= 1
        }
        var line: UInt64 = 0
        while line < 4 {
            if pointee.dirtyLines & (1 << line) != 0 {
                guard free > 0, writeLine(Int(line)) else { return }
                pointee.dirtyLines &= ~(1 << line)
            }
            line &+= 1
        }
        if pointee.owesRing { ring() }
    }

    private func ring() {
        guard let send = pointee.provider.pointee.calls.lpWSPSend else { return }
        var sent = 0
        var error: Int32 = 0
        if send(pointee.companion, nil, 0, &sent, 0, nil, &error) == SOCKET_ERROR {
            if error == EAGAIN { return }
            failed.store(1)
        }
        pointee.owesRing = pointee.sentPosition != pointee.wantedPosition
    }

    private var free: UInt64 { RemoteWriter.depth &- (pointee.posted &- pointee.completed) }

    private func writeLine(_ line: Int) -> Bool {
        let operation = operations + Int(pointee.posted % RemoteWriter.depth)
        let snapshot = UnsafeMutableRawPointer(withUnsafeMutablePointer(to: &operation.pointee.snapshot) { $0 })
        let words = pointee.mirror + line * Window.lineBytes
        var offset = 0
        while offset < Window.lineBytes {
            snapshot.storeBytes(of: Word(words, offset).load(), toByteOffset: offset, as: UInt64.self)
            offset &+= 8
        }
        // Never announce bytes that have not been posted before this line.
        if line == 0 { snapshot.storeBytes(of: pointee.sentPosition, as: UInt64.self) }
        return write(snapshot, Window.lineBytes, at: line * Window.lineBytes)
    }

    private func write(_ source: UnsafeMutableRawPointer, _ count: Int, at offset: Int) -> Bool {
        guard let rdmaWrite = pointee.provider.pointee.rdmaWrite else { return false }
        let operation = operations + Int(pointee.posted % RemoteWriter.depth)
        operation.pointee.overlapped = WSAOVERLAPPED()
        operation.pointee.overlapped.hEvent = 1
        var buffer = WSABUF(len: count, buf: source)
        var written = 0
        var error: Int32 = 0
        if rdmaWrite(pointee.companion, &buffer, 1, &pointee.target, offset, &written, 0, &operation.pointee.overlapped, &error) == SOCKET_ERROR,
            error != EINPROGRESS
        {
            if error != EAGAIN { failed.store(1) }
            return false
        }
        pointee.posted &+= 1
        return true
    }
}
