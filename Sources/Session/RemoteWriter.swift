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
/// Private to the process (an RDMA connection cannot be shared by fork). Has a lock of its own, since both directions
/// publish lines.
package struct RemoteWriter {
    var provider: UnsafePointer<ProviderTable>
    var companion: UInt
    var mirror: UnsafeMutableRawPointer
    var target: SOCKSWITCH_RDMA_DESCRIPTOR
    /// Operations are posted and completed in order: these count them.
    var posted: UInt64 = 0
    var completed: UInt64 = 0
    /// Ring position up to which bytes were posted, and up to which they should be.
    var sentPosition: UInt64 = 0
    var wantedPosition: UInt64 = 0
    /// Lines (bit k = line k) that changed and could not be posted yet.
    var dirtyLines: UInt64 = 0
    /// A write failed: the companion is lost.
    package var failed = false
    /// Something waits for a completion before it can be posted: a sleeper must look in again.
    package var needsAttention = false

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
    /// The record lies behind its lock, the operations behind the record, all in one mapping.
    static var recordOffset: Int { 64 }
    static var operationsOffset: Int { 1024 }
    static var mappingBytes: Int { operationsOffset + Int(depth) * MemoryLayout<Operation>.stride }

    static func make(
        provider: UnsafePointer<ProviderTable>, companion: UInt, mirror: UnsafeMutableRawPointer,
        target: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>
    ) -> UnsafeMutablePointer<RemoteWriter>? {
        guard provider.pointee.rdmaWrite != nil, let memory = Session.mapMemory(mappingBytes) else { return nil }
        let writer = (memory + recordOffset).bindMemory(to: RemoteWriter.self, capacity: 1)
        writer.initialize(to: RemoteWriter(provider: provider, companion: companion, mirror: mirror, target: target.pointee))
        let operations = writer.operations
        for index in 0..<Int(depth) { (operations + index).initialize(to: Operation()) }
        return writer
    }

    static func destroy(_ writer: UnsafeMutablePointer<RemoteWriter>) {
        _ = ss_sys_munmap(UnsafeMutableRawPointer(writer) - recordOffset, mappingBytes)
    }
}

extension UnsafeMutablePointer where Pointee == RemoteWriter {
    private var lock: FamilyLock { FamilyLock(UnsafeMutableRawPointer(self) - RemoteWriter.recordOffset, 0) }

    var operations: UnsafeMutablePointer<RemoteWriter.Operation> {
        (UnsafeMutableRawPointer(self) + (RemoteWriter.operationsOffset - RemoteWriter.recordOffset))
            .assumingMemoryBound(to: RemoteWriter.Operation.self)
    }

    /// Bytes that may be accepted from the program now: what can be posted at once. Nothing is accepted that would have to
    /// wait for a later call of the program, which might never come.
    var capacity: UInt64 {
        let free = RemoteWriter.depth &- (pointee.posted &- pointee.completed)
        // Two pieces where the ring wraps, and the line that announces them.
        return free < RemoteWriter.reserved &+ 3 || pointee.failed ? 0 : RemoteWriter.maximumWrite
    }

    /// Takes completions in and posts what had to wait.
    func progress() {
        guard lock.lock() == .acquired else { return }
        collect()
        post()
        lock.unlock()
    }

    /// The ring's bytes up to `position` go to the peer, then the line that announces them.
    func send(upTo position: UInt64) {
        guard lock.lock() == .acquired else { return }
        pointee.wantedPosition = position
        pointee.dirtyLines |= 1
        collect()
        post()
        lock.unlock()
    }

    func publish(line: Int) {
        guard lock.lock() == .acquired else { return }
        pointee.dirtyLines |= 1 << UInt64(line)
        collect()
        post()
        // A credit or an acknowledgement must not wait for a call that may never come.
        var patience = 0
        while pointee.dirtyLines != 0, !pointee.failed, patience < 200_000 {
            ss_pause()
            collect()
            post()
            patience &+= 1
        }
        lock.unlock()
    }

    /// Waits (for at most about a second) until everything up to `position` has been posted. False: it was not.
    func sendAll(upTo position: UInt64) -> Bool {
        let deadline = ss_monotonic_ns() &+ 1_000_000_000
        while true {
            send(upTo: position)
            if pointee.failed { return false }
            if pointee.sentPosition == position, pointee.dirtyLines == 0 { return true }
            if ss_monotonic_ns() > deadline { return false }
            _ = ss_sys_sched_yield()
        }
    }

    /// Waits (for at most about a second) until everything posted has completed: the memory goes away next.
    func drain() {
        let deadline = ss_monotonic_ns() &+ 1_000_000_000
        while pointee.completed != pointee.posted, !pointee.failed, ss_monotonic_ns() < deadline {
            progress()
            _ = ss_sys_sched_yield()
        }
    }

    // MARK: Under the lock

    private func collect() {
        guard let result = pointee.provider.pointee.calls.lpWSPGetOverlappedResult else { return }
        while pointee.completed != pointee.posted {
            let operation = operations + Int(pointee.completed % RemoteWriter.depth)
            var transferred = 0
            var flags: UInt32 = 0
            var error: Int32 = 0
            if result(pointee.companion, &operation.pointee.overlapped, &transferred, 0, &flags, &error) == 0 {
                if error != EINPROGRESS && error != EAGAIN { pointee.failed = true }
                return
            }
            pointee.completed &+= 1
        }
    }

    private func post() {
        guard !pointee.failed else { return }
        while pointee.sentPosition != pointee.wantedPosition, free > 1 {
            let ring = Window(pointee.mirror)
            let origin = ring.ringOrigin.loadRelaxed()
            let size = ring.ringBytes.loadRelaxed()
            let index = (pointee.sentPosition &- origin) & (size &- 1)
            let count = min(min(pointee.wantedPosition &- pointee.sentPosition, size &- index), RemoteWriter.maximumWrite)
            guard write(ring.ring + Int(index), Int(count), at: Window.controlBytes + Int(index)) else { return }
            pointee.sentPosition &+= count
            pointee.dirtyLines |= 1
        }
        var line: UInt64 = 0
        while line < 4 {
            if pointee.dirtyLines & (1 << line) != 0 {
                guard free > 0, writeLine(Int(line)) else { break }
                pointee.dirtyLines &= ~(1 << line)
            }
            line &+= 1
        }
        pointee.needsAttention = pointee.dirtyLines != 0 || pointee.sentPosition != pointee.wantedPosition
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
            if error != EAGAIN { pointee.failed = true }
            return false
        }
        pointee.posted &+= 1
        return true
    }
}
