import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

/// Maps a segment that the service (or a test) made: exactly `Segment.bytes`, of fixed size (so that no peer can cause
/// SIGBUS), left out of core dumps. Nil: not such a segment, or no memory (`Reason.memoryLimit`).
private func mapSegment(_ fd: Int32) -> UnsafeMutableRawPointer? {
    var status = stat()
    guard ss_sys_fstat(fd, &status) == 0, Int(status.st_size) == Segment.bytes else { return nil }
    let seals = ss_sys_fcntl(fd, ss_f_get_seals, 0)
    guard seals >= 0, seals & Int(ss_seal_fixed_size) == Int(ss_seal_fixed_size) else { return nil }
    let address = ss_sys_mmap(nil, Segment.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    guard address > 0 else { return nil }
    let memory = UnsafeMutableRawPointer(bitPattern: address)
    _ = ss_sys_madvise(memory, Segment.bytes, MADV_DONTDUMP)
    return memory
}

/// A program whose address space is limited counts on what it leaves: companions take an eighth of it at most.
private var mayMapAnother: Bool {
    var limit = rlimit()
    guard ss_sys_prlimit(Int32(RLIMIT_AS.rawValue), nil, &limit) == 0 else { return true }
    // Each has two doorbells.
    return rlim_t((ownDescriptorCount / 2 + 1) * Segment.bytes) <= limit.rlim_cur / 8
}

private func markRejected(_ memory: UnsafeMutableRawPointer, side: Int, message: UInt64) {
    let mailbox = memory + Segment.mailboxOffset(side: side)
    Word(mailbox, Segment.mailboxLengthOffset).store(Segment.rejectedLength)
    Word(mailbox, 0).store(message)  // pairs with the load in Companion.readMessage
}

/// Turns down a segment that nobody here waits for. The descriptor stays the caller's.
func rejectSegment(_ fd: Int32, side: Int) {
    guard let memory = mapSegment(fd) else { return }
    markRejected(memory, side: side, message: 1)
    _ = ss_sys_munmap(memory, Segment.bytes)
}

extension Companion {
    /// Takes a segment and the doorbells (all three descriptors in every case). `.none`, or why that was not possible.
    /// Under the lock.
    func attach(segment: Int32, doorbell: Int32, peerDoorbell: Int32, doorbellKind: UInt32, side: UInt32) -> Reason {
        // (The peer has to be told that it is turned down.)
        let memory = mapSegment(segment)
        _ = ss_sys_close(segment)
        if let memory, !mayMapAnother {
            _ = ss_sys_close(doorbell)
            _ = ss_sys_close(peerDoorbell)
            markRejected(memory, side: Int(side), message: 1)
            _ = ss_sys_munmap(memory, Segment.bytes)
            return .memoryLimit
        }
        guard let memory else {
            _ = ss_sys_close(doorbell)
            _ = ss_sys_close(peerDoorbell)
            return .memoryLimit
        }
        let (mine, peers) = adoptOwn(doorbell, peerDoorbell)
        guard mine >= 0 else {
            markRejected(memory, side: Int(side), message: 1)
            _ = ss_sys_munmap(memory, Segment.bytes)
            return .descriptorLimit
        }
        record.pointee.side = side
        record.pointee.segment = memory
        record.pointee.doorbell = mine
        record.pointee.peerDoorbell = peers
        record.pointee.doorbellKind = doorbellKind
        return .none
    }

    /// Wakes the peer, or this side's own sleepers. 0, or -errno.
    @inline(__always)
    func ring(own: Bool) -> Int {
        let (mine, peers) = (record.pointee.doorbell, record.pointee.peerDoorbell)
        return Doorbells.ring(own ? mine : peers, own ? peers : mine, record.pointee.doorbellKind)
    }

    /// 0; -EAGAIN: it was silent; another -errno.
    @inline(__always)
    func silence() -> Int { Doorbells.silence(record.pointee.doorbell, record.pointee.doorbellKind) }

    /// Gives segment and doorbells up. The peer is told if it still waits for the session to come up, but not by a
    /// forked child, whose parent may go on.
    func detach() {
        closeOwn(record.pointee.doorbell)
        closeOwn(record.pointee.peerDoorbell)
        record.pointee.doorbell = -1
        record.pointee.peerDoorbell = -1
        guard let memory = record.pointee.segment else { return }
        record.pointee.segment = nil
        if record.pointee.messagesRead == 0, record.pointee.pid == providerState.pointee.pid {
            markRejected(memory, side: Int(record.pointee.side), message: record.pointee.messagesSent &+ 1)
        }
        _ = ss_sys_munmap(memory, Segment.bytes)
    }

    /// The memory that the peer writes and I read, and the other one; nil before the segment is there.
    var localWindow: UnsafeMutableRawPointer? {
        guard let memory = record.pointee.segment else { return nil }
        return memory + Segment.windowOffset(side: Int(record.pointee.side & 1))
    }

    var remoteWindow: UnsafeMutableRawPointer? {
        guard let memory = record.pointee.segment else { return nil }
        return memory + Segment.windowOffset(side: 1 - Int(record.pointee.side & 1))
    }

    // MARK: Messages (WSD-N4): at most 256 bytes, one at a time in each direction

    private var mailbox: UnsafeMutableRawPointer? {
        guard let memory = record.pointee.segment else { return nil }
        return memory + Segment.mailboxOffset(side: Int(record.pointee.side & 1))
    }

    private var peerMailbox: UnsafeMutableRawPointer? {
        guard let memory = record.pointee.segment else { return nil }
        return memory + Segment.mailboxOffset(side: 1 - Int(record.pointee.side & 1))
    }

    /// Writes `count` buffers of 1 … 256 bytes together as one message. 0, or EAGAIN: the peer has not read the last one.
    /// Under the lock.
    func writeMessage(_ buffers: UnsafePointer<WSABUF>, _ count: Int) -> Int32 {
        guard let mailbox, let peerMailbox else { return ENOTCONN }
        let sent = record.pointee.messagesSent
        guard sent == 0 || Word(peerMailbox, Segment.mailboxReadOffset).load() == sent else { return EAGAIN }
        var length = 0
        for index in 0..<count {
            let buffer = buffers[index]
            guard buffer.len > 0, let bytes = buffer.buf else { continue }
            guard buffer.len <= Segment.maximumMessageBytes - length else { return EMSGSIZE }
            memcpy(mailbox + Segment.mailboxMessageOffset + length, bytes, buffer.len)
            length += buffer.len
        }
        Word(mailbox, Segment.mailboxLengthOffset).store(UInt64(length))
        record.pointee.messagesSent = sent &+ 1
        Word(mailbox, 0).store(sent &+ 1)  // pairs with the load in readMessage
        return 0
    }

    /// Reads the peer's next message into a buffer of at least 256 bytes. Its length; -EAGAIN: none yet; -ECONNREFUSED:
    /// the peer gave the connection up; -EPROTO: nonsense. Under the lock.
    func readMessage(_ target: UnsafeMutableRawPointer) -> Int {
        guard let mailbox, let peerMailbox else { return -Int(ENOTCONN) }
        let read = record.pointee.messagesRead
        let written = Word(peerMailbox, 0).load()
        guard written != read else { return -Int(EAGAIN) }
        let length = Word(peerMailbox, Segment.mailboxLengthOffset).load()
        if length == Segment.rejectedLength { return -Int(ECONNREFUSED) }
        guard written == read &+ 1, length >= 1, length <= UInt64(Segment.maximumMessageBytes) else {
            return -Int(EPROTO)
        }
        memcpy(target, peerMailbox + Segment.mailboxMessageOffset, Int(length))
        record.pointee.messagesRead = written
        Word(mailbox, Segment.mailboxReadOffset).store(written)  // pairs with the load in writeMessage
        return Int(length)
    }

    // MARK: The end of an announcement (under the lock)

    func announcementSucceeded() {
        leaveOutstanding()
        record.pointee.error = 0
        record.pointee.reason = Int32(Reason.none.rawValue)
        if record.pointee.listener != 0 {
            let listener = Companion(record.pointee.listener)
            state.store(CompanionState.paired)
            listener.record.pointee.paired.append(self)
            listener.raise(UInt32(FD_ACCEPT))
        } else {
            state.store(CompanionState.connected)
            raise(UInt32(FD_CONNECT))
        }
    }

    func announcementFailed(_ reason: Reason) {
        leaveOutstanding()
        record.pointee.reason = Int32(reason.rawValue)
        record.pointee.error = errorNumber(reason)
        if record.pointee.listener != 0 {
            let listener = Companion(record.pointee.listener)
            state.store(CompanionState.offerFailed)
            listener.record.pointee.failed.append(self)
            listener.raise(UInt32(FD_ACCEPT))
        } else {
            state.store(CompanionState.bound)
            raise(UInt32(FD_CONNECT))
        }
    }

    func raise(_ bits: UInt32) {
        var found = events.load()
        while found & bits != bits {
            let original = events.compareExchange(found, found | bits)
            if original == found { return }
            found = original
        }
    }
}

/// The error with which a provider call fails for a reason. Never one that says that TCP would fail, too (WSD-N3).
func errorNumber(_ reason: Reason) -> Int32 {
    switch reason {
    case .none: 0
    case .noService, .serviceNotTrusted: ENETDOWN
    case .descriptorLimit: EMFILE
    case .memoryLimit, .waitingForPeer: ENOBUFS
    default: ENETUNREACH
    }
}
