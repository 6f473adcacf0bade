import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

/// Index of a record plus one; 0 = none.
typealias RecordIndex = Int32

/// One socket of the SharedMemory provider: a companion, a listening companion, or an offer that waits to become one.
///
/// The records lie in a private mapping: a forked child has a copy of each. While a record is connected, everything in
/// it that the data path reads is constant; the rest is used under the providers' lock.
struct CompanionRecord {
    /// Which use of this record: part of the SOCKET, so that a stale one is noticed. Never 0 while in use.
    var serial: UInt32 = 0
    /// `CompanionState`.
    var state: UInt32 = 0
    /// FD_… bits that WSPEnumNetworkEvents has still to report.
    var events: UInt32 = 0
    /// FD_… bits asked for with WSPEventSelect.
    var interest: UInt32 = 0

    /// `CompactAddress` each, at `localAddressOffset` and `peerAddressOffset`.
    var localAddress: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    var peerAddress: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)

    /// Neighbours in the one list that the record is in.
    var next: RecordIndex = 0
    var previous: RecordIndex = 0
    /// Of a listening companion: its paired offers (oldest first) and its failed offers.
    var paired = RecordQueue()
    var failed = RecordQueue()
    /// Of an offer: its listening companion.
    var listener: RecordIndex = 0

    /// The TCP/IP socket (the switch's), and the cookie that names it.
    var baseSocket: Int32 = -1
    var cookie: UInt64 = 0
    var hasCookie = false
    /// Both ends of the TCP connection connect (SOCKSWITCH_OFFER_REJOINS).
    var rejoins = false
    /// `Role` in the announcement, side of the segment.
    var role: UInt32 = 0
    var side: UInt32 = 0
    /// Outcome of the announcement: errno and `Reason`.
    var error: Int32 = 0
    var reason: Int32 = 0
    /// Connection epoch in which the service was told of this listening companion.
    var registeredEpoch: UInt64 = 0
    /// The process that made the record: a forked child has a copy, and must not speak for its parent.
    var pid: Int32 = 0

    /// The switch's handle (WSD-C5); `SOCKET.max` = none.
    var handle: SOCKET = SOCKET.max
    var catalogEntry: UInt32 = 0

    /// The doorbell that the peer rings, and the one that I ring.
    var doorbell: Int32 = -1
    var peerDoorbell: Int32 = -1
    /// `DoorbellKind`.
    var doorbellKind: UInt32 = DoorbellKind.events
    var segment: UnsafeMutableRawPointer?

    /// Messages written to my mailbox and read from the peer's.
    var messagesSent: UInt64 = 0
    var messagesRead: UInt64 = 0
    /// The one receive that waits for a message.
    var receive: UnsafeMutablePointer<WSAOVERLAPPED>?
    var receiveBuffer: UnsafeMutableRawPointer?
    var receiveCapacity: Int = 0

    init() {}

    static var bytes: Int { 256 }
    static var count: Int { 32768 }
    /// The records, and behind them one `RecordIndex` a slot of the socket table: its outstanding announcement.
    static var poolBytes: Int { count * bytes + FamilyArena.slotCount * 4 }

    static var serialOffset: Int { 0 }
    static var stateOffset: Int { 4 }
    static var eventsOffset: Int { 8 }
    static var interestOffset: Int { 12 }
    static var localAddressOffset: Int { 16 }
    static var peerAddressOffset: Int { 48 }
}

/// First in, first out; linked through `next`.
struct RecordQueue {
    var first: RecordIndex = 0
    var last: RecordIndex = 0
}

enum CompanionState {
    static var free: UInt32 { 0 }
    static var created: UInt32 { 1 }
    static var bound: UInt32 { 2 }
    static var listening: UInt32 { 3 }
    /// Announced (a connecting companion or an offer); in the list of outstanding ones.
    static var announced: UInt32 { 4 }
    /// An offer in its listener's queue of paired ones.
    static var paired: UInt32 { 5 }
    /// An offer in its listener's queue of failed ones.
    static var offerFailed: UInt32 { 6 }
    /// The segment is mapped, the doorbells are there.
    static var connected: UInt32 { 7 }
    /// WSPCloseSocket is at work.
    static var closing: UInt32 { 8 }
}

/// A record and its index.
struct Companion {
    let index: RecordIndex
    let record: UnsafeMutablePointer<CompanionRecord>

    var base: UnsafeMutableRawPointer { UnsafeMutableRawPointer(record) }
    var state: HalfWord { HalfWord(base, CompanionRecord.stateOffset) }
    var events: HalfWord { HalfWord(base, CompanionRecord.eventsOffset) }
    var interest: HalfWord { HalfWord(base, CompanionRecord.interestOffset) }
    var localAddress: CompactAddress { CompactAddress(base + CompanionRecord.localAddressOffset) }
    var peerAddress: CompactAddress { CompactAddress(base + CompanionRecord.peerAddressOffset) }

    var slot: UInt64 { record.pointee.cookie & 0xF_FFFF }
    var generation: UInt64 { record.pointee.cookie >> 20 }

    /// What the switch calls the socket: bits 0…15 the index, above them the serial.
    var socket: SOCKET { SOCKET(record.pointee.serial) << 16 | SOCKET(index) }

    static var pool: UnsafeMutableRawPointer? {
        UnsafeMutableRawPointer(bitPattern: UInt(truncatingIfNeeded: providerWord(ProviderState.poolOffset).load()))
    }

    /// A record of the pool; `index` must be one that was given out.
    @inline(__always)
    init(_ index: RecordIndex) {
        let pool = Companion.pool.unsafelyUnwrapped
        self.index = index
        record = (pool + Int(index - 1) * CompanionRecord.bytes).assumingMemoryBound(to: CompanionRecord.self)
    }

    /// What the switch's SOCKET stands for; nil (WSAENOTSOCK) for anything that is not a live socket of this provider.
    @inline(__always)
    init?(socket: SOCKET) {
        let index = Int(socket & 0xFFFF)
        guard index >= 1, index <= CompanionRecord.count, Companion.pool != nil else { return nil }
        self.init(RecordIndex(index))
        guard HalfWord(base, CompanionRecord.serialOffset).load() == UInt32(truncatingIfNeeded: socket >> 16),
            socket >> 48 == 0
        else { return nil }
        let found = state.load()
        guard found != CompanionState.free, found != CompanionState.closing else { return nil }
    }

    /// A fresh record in state `created`; nil: none left, or no memory. Any thread, without the lock: every connect of the
    /// program makes a companion, and most of them end without ever being announced.
    static func make() -> Companion? {
        guard preparePool() else { return nil }
        guard let companion = takeFree() ?? takeUnused() else { return nil }
        let serial = companion.record.pointee.serial
        companion.record.initialize(to: CompanionRecord())
        companion.record.pointee.pid = providerState.pointee.pid
        // 1 … 2^32 - 1, in turn.
        HalfWord(companion.base, CompanionRecord.serialOffset).store(max(serial &+ 1, 1))
        companion.state.store(CompanionState.created)
        return companion
    }

    /// The record must be in no list. Any thread, without the lock.
    func free() {
        state.store(CompanionState.free)
        let word = providerWord(ProviderState.freeRecordsOffset)
        while true {
            let top = word.load()
            record.pointee.next = RecordIndex(truncatingIfNeeded: top & 0xFFFF)
            if word.compareExchange(top, ((top >> 16) &+ 1) << 16 | UInt64(index)) { return }
        }
    }

    /// Maps the pool at first use.
    private static func preparePool() -> Bool {
        let word = providerWord(ProviderState.poolOffset)
        if word.load() != 0 { return true }
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        let address = ss_sys_mmap(nil, CompanionRecord.poolBytes, PROT_READ | PROT_WRITE, flags, -1, 0)
        guard address > 0 else { return false }
        if !word.compareExchange(0, UInt64(address)) {
            _ = ss_sys_munmap(UnsafeMutableRawPointer(bitPattern: address), CompanionRecord.poolBytes)
        }
        return true
    }

    /// The free list is a stack: index in bits 0…15 of its word, above them a count of changes, so that a record which
    /// was taken and given back in between is noticed.
    private static func takeFree() -> Companion? {
        let word = providerWord(ProviderState.freeRecordsOffset)
        while true {
            let top = word.load()
            guard top & 0xFFFF != 0 else { return nil }
            let companion = Companion(RecordIndex(top & 0xFFFF))
            let next = UInt64(UInt32(bitPattern: companion.record.pointee.next)) & 0xFFFF
            if word.compareExchange(top, ((top >> 16) &+ 1) << 16 | next) { return companion }
        }
    }

    private static func takeUnused() -> Companion? {
        let word = providerWord(ProviderState.usedRecordsOffset)
        while true {
            let used = word.load()
            guard used < UInt64(CompanionRecord.count) else { return nil }
            if word.compareExchange(used, used + 1) { return Companion(RecordIndex(used) + 1) }
        }
    }

    // MARK: Lists (under the lock)

    func link(into head: UnsafeMutablePointer<RecordIndex>) {
        record.pointee.previous = 0
        record.pointee.next = head.pointee
        if head.pointee != 0 { Companion(head.pointee).record.pointee.previous = index }
        head.pointee = index
    }

    func unlink(from head: UnsafeMutablePointer<RecordIndex>) {
        let next = record.pointee.next
        let previous = record.pointee.previous
        if previous != 0 { Companion(previous).record.pointee.next = next } else { head.pointee = next }
        if next != 0 { Companion(next).record.pointee.previous = previous }
        record.pointee.next = 0
        record.pointee.previous = 0
    }

    // MARK: Outstanding announcements (under the lock)

    /// The table entry of a slot.
    static func announcement(ofSlot slot: UInt64) -> UnsafeMutablePointer<RecordIndex>? {
        guard slot < UInt64(FamilyArena.slotCount), let pool = Companion.pool else { return nil }
        return (pool + CompanionRecord.count * CompanionRecord.bytes + Int(slot) * 4)
            .assumingMemoryBound(to: RecordIndex.self)
    }

    func enterOutstanding() {
        Companion.announcement(ofSlot: slot)?.pointee = index
        link(into: &providerState.pointee.outstanding)
        providerHalfWord(ProviderState.outstandingOffset).add(1)
        state.store(CompanionState.announced)
    }

    /// Leaves the list; the caller sets the new state.
    func leaveOutstanding() {
        Companion.announcement(ofSlot: slot)?.pointee = 0
        unlink(from: &providerState.pointee.outstanding)
        providerHalfWord(ProviderState.outstandingOffset).subtract(1)
    }
}

extension RecordQueue {
    var isEmpty: Bool { first == 0 }

    mutating func append(_ companion: Companion) {
        companion.record.pointee.next = 0
        if last != 0 { Companion(last).record.pointee.next = companion.index } else { first = companion.index }
        last = companion.index
    }

    mutating func removeFirst() -> Companion? {
        guard first != 0 else { return nil }
        let companion = Companion(first)
        first = companion.record.pointee.next
        if first == 0 { last = 0 }
        companion.record.pointee.next = 0
        return companion
    }

    /// Takes the offer with this cookie out; nil when it is not here.
    mutating func remove(cookie: UInt64) -> Companion? {
        var previous: RecordIndex = 0
        var index = first
        while index != 0 {
            let companion = Companion(index)
            if companion.record.pointee.cookie == cookie {
                let next = companion.record.pointee.next
                if previous != 0 { Companion(previous).record.pointee.next = next } else { first = next }
                if last == index { last = previous }
                companion.record.pointee.next = 0
                return companion
            }
            previous = index
            index = companion.record.pointee.next
        }
        return nil
    }
}
