import CSocketSwitch
#if !hasFeature(Embedded)
import StreamRing
#endif

/// The memory that a process shares with the children that it forks, and, for statistics, with the service.
///
/// It is one sealed memfd, mapped sparsely: what is not used costs no memory. It holds
///
///     page 0        header: magic, sizes, switched off?, …
///     processes     one 128-byte entry a process of the family: pid, mailbox, name
///     holders       one bitmap a process: which slots it holds
///     slots         one 512-byte `Slot` a TCP socket
///
/// A slot belongs to a *socket* (open file description), not to a descriptor: it lives until no process of the family
/// holds it. Whoever notices that a process died without letting go takes its bits away (`reapDeadProcesses`).
/// Nothing in the arena is written by a peer. The service may read all of it and writes the mailboxes and `switchedOff`.
package struct FamilyArena {
    package let base: UnsafeMutableRawPointer

    @inline(__always) package init(_ base: UnsafeMutableRawPointer) { self.base = base }

    package static var magic: UInt64 { 0x534F_434B_5357_3031 }  // "SOCKSW01"
    package static var slotCount: Int { 32768 }
    package static var processCount: Int { 2048 }
    package static var processBytes: Int { 128 }
    package static var holderBytes: Int { slotCount / 8 }

    package static var processesOffset: Int { 4096 }
    package static var holdersOffset: Int { processesOffset + processCount * processBytes }
    package static var slotsOffset: Int { holdersOffset + processCount * holderBytes }
    package static var bytes: Int { slotsOffset + slotCount * Slot.bytes }

    // MARK: Header

    @inline(__always) package var magic: Word { Word(base, 0) }
    /// Set by the service: 1 = no socket of this family may use a companion (`sockswitch off`).
    @inline(__always) package var switchedOff: Word { Word(base, 64) }
    /// Which service the family belongs to: a mark of its path (see `ss_mark`), 0 for none.
    @inline(__always) package var service: Word { Word(base, 72) }
    /// Slots that were ever used: nothing lies at or above it.
    @inline(__always) package var highWater: Word { Word(base, 128) }
    @inline(__always) var nextFree: Word { Word(base, 192) }
    @inline(__always) var processHighWater: Word { Word(base, 200) }
    /// PID namespaces of the family's processes so far, without the first one's: see `ss_relatives`.
    @inline(__always) package var spaces: Word { Word(base, 208) }
    /// Sockets that went back to TCP, or left an epoll set, while several processes held them, so far.
    @inline(__always) package var handOversAmongRelatives: Word { Word(base, 216) }
    /// Uses of inherited epoll sets: how often a process of the family has begun to use one.
    @inline(__always) package var inheritedSetUses: Word { Word(base, 224) }
    /// Bytes that sockets which are closed by now sent and received over companions, for statistics.
    @inline(__always) package var retiredSent: Word { Word(base, 256) }
    @inline(__always) package var retiredReceived: Word { Word(base, 264) }

    /// The slots that may be in use.
    package var usedSlots: Range<Int> { 1..<Int(max(1, min(highWater.load(), UInt64(FamilyArena.slotCount)))) }

    /// Whether RLIMIT_FSIZE forbids such a file: making it would not fail, it would send SIGXFSZ.
    package static var exceedsFileSizeLimit: Bool {
        var limit = rlimit()
        return ss_sys_prlimit(Int32(RLIMIT_FSIZE.rawValue), nil, &limit) != 0 || limit.rlim_cur < rlim_t(bytes)
    }

    /// Prepares fresh zeroed memory.
    package func initialize() {
        nextFree.store(1)  // slot 0 is never used: 0 means "none" in the descriptor table
        highWater.store(1)
        magic.store(FamilyArena.magic)
    }

    // MARK: Processes

    @inline(__always)
    package func process(_ index: Int) -> ProcessEntry { ProcessEntry(base + FamilyArena.processesOffset + index * FamilyArena.processBytes) }

    package var usedProcessCount: Int { min(Int(processHighWater.load()), FamilyArena.processCount) }

    /// Takes a process entry; -1 when the table is full. `pid`: also a `ProcessEntry.reservation`.
    package func addProcess(pid: UInt64, space: UInt32 = ss_relatives.space) -> Int {
        for index in 0..<FamilyArena.processCount {
            let entry = process(index)
            guard entry.state.compareExchange(ProcessEntry.free, ProcessEntry.live) else { continue }
            entry.space.store(UInt64(space))
            entry.isWatched.store(0)
            entry.pid.store(pid)
            entry.mailbox.store(0)
            while true {
                let high = processHighWater.load()
                if high > UInt64(index) || processHighWater.compareExchange(high, UInt64(index) + 1) { break }
            }
            return index
        }
        return -1
    }

    /// Nobody who is forked now can be counted among the holders of a socket.
    package var isFullOfProcesses: Bool {
        if processHighWater.load() < UInt64(FamilyArena.processCount) { return false }
        reapDeadProcesses()
        for index in 0..<FamilyArena.processCount where process(index).state.load() == ProcessEntry.free { return false }
        return true
    }

    /// A forked child takes the entry whose `pid` was `reservation`. False: it was so long in coming that the entry was
    /// given up; its holds are gone.
    package func claim(_ index: Int, _ reservation: UInt64, pid: UInt64) -> Bool {
        process(index).pid.compareExchange(reservation, pid)
    }

    /// Lets those of the family that number processes otherwise see whether this process, whose entry it is, is alive: it keeps a
    /// record lock. In a reserved entry, before it is claimed.
    package func watch(_ index: Int) {
        guard index >= 0 else { return }
        process(index).space.store(UInt64(ss_relatives.space))
        guard ss_relatives.arena_plus_one > 0, ss_lock_record(ss_relatives.arena_plus_one - 1, index) == 0 else { return }
        process(index).isWatched.store(1)
    }

    /// Whether the process of a live entry, which said that it is `pid`, exists no more.
    private func hasEnded(_ index: Int, _ pid: UInt64) -> Bool {
        guard pid != 0, pid <= UInt64(Int32.max) else { return false }
        if process(index).space.load() == UInt64(ss_relatives.space) {
            // A child that nobody has waited for yet has its number still, but no file any more.
            return ss_sys_kill(Int32(pid), 0) == -Int(ESRCH) || ss_child_has_exited(Int32(pid)) != 0
        }
        // Its number means nothing here. Whom nobody can ask about stays.
        return process(index).isWatched.load() != 0 && ss_relatives.arena_plus_one > 0
            && ss_record_is_locked(ss_relatives.arena_plus_one - 1, index) == 0
    }

    /// Process `process` holds the slot from now on. For a slot that cannot become free meanwhile.
    package func hold(_ index: Int, process: Int) {
        let mask = UInt64(1) << UInt64(index & 63)
        if holderWord(process, index >> 6).setBits(mask) & mask == 0 { slot(index).holders.add(1) }
    }

    /// True when process entry `process` holds slot `index`. Both must be in range.
    package func isHeld(_ index: Int, by process: Int) -> Bool {
        holderWord(process, index >> 6).load() & (1 << UInt64(index & 63)) != 0
    }

    /// Gives the entry of a process back, with every slot that it still held.
    package func removeProcess(_ index: Int) {
        let entry = process(index)
        guard entry.state.compareExchange(ProcessEntry.live, ProcessEntry.leaving) else { return }
        for word in 0..<(FamilyArena.slotCount / 64) {
            let bits = holderWord(index, word)
            var held = bits.load()
            if held == 0 { continue }
            held = bits.exchange(0)
            while held != 0 {
                let bit = held.trailingZeroBitCount
                held &= held &- 1
                dropHolder(word * 64 + bit)
            }
        }
        entry.pid.store(0)
        entry.state.store(ProcessEntry.free)
    }

    /// Frees what processes left behind that were killed, or that never were: a fork that failed, a child that died before
    /// its first instruction of ours. Costs one system call a process of the family. `now`: monotonic nanoseconds.
    package func reapDeadProcesses(now: UInt64 = ss_monotonic_ns()) {
        for index in 0..<usedProcessCount {
            let entry = process(index)
            guard entry.state.load() == ProcessEntry.live else { continue }
            let pid = entry.pid.load()
            let isGone: Bool
            if pid & ProcessEntry.reserved != 0 {
                isGone = Int64(bitPattern: now &- pid & ~ProcessEntry.reserved) > FamilyArena.reservationNanoseconds
            } else {
                isGone = hasEnded(index, pid)
            }
            // Of several that noticed, one removes; the entry may be another process's by the time the others get here.
            if isGone, entry.pid.compareExchange(pid, 0) { removeProcess(index) }
        }
    }

    /// How long a child may take from fork to its first instruction of ours.
    package static var reservationNanoseconds: Int64 { 10_000_000_000 }

    /// Before fork: gives the coming child a hold on everything that `parent` holds. -1 when the table is full.
    package func reserveChild(of parent: Int) -> Int {
        reapDeadProcesses()
        let child = addProcess(pid: ProcessEntry.reservation(now: ss_monotonic_ns()))
        if child < 0 { return -1 }
        for word in 0..<(FamilyArena.slotCount / 64) where parent >= 0 && word * 64 < Int(highWater.load()) {
            var held = holderWord(parent, word).load()
            while held != 0 {
                let bit = held.trailingZeroBitCount
                held &= held &- 1
                if holdAlso(word * 64 + bit) { holderWord(child, word).setBits(1 << UInt64(bit)) }
            }
        }
        return child
    }

    /// One holder more, unless another thread has given the slot up meanwhile.
    private func holdAlso(_ index: Int) -> Bool {
        let holders = slot(index).holders
        while true {
            let count = holders.load()
            if count == 0 { return false }
            if holders.compareExchange(count, count &+ 1) { return true }
        }
    }

    @inline(__always)
    func holderWord(_ process: Int, _ word: Int) -> Word {
        Word(base, FamilyArena.holdersOffset + process * FamilyArena.holderBytes + word * 8)
    }

    // MARK: Slots

    @inline(__always)
    package func slot(_ index: Int) -> Slot { Slot(base + FamilyArena.slotsOffset + index * Slot.bytes) }

    /// Takes a slot for a socket of process `process`; 0 when the table is full, or the process has no entry (-1).
    package func allocateSlot(process: Int) -> Int {
        guard process >= 0 else { return 0 }
        var index = Int(nextFree.loadRelaxed())
        for _ in 0..<FamilyArena.slotCount {
            if index < 1 || index >= FamilyArena.slotCount { index = 1 }
            let slot = slot(index)
            if slot.kind.loadRelaxed() == Slot.Kind.free, slot.kind.compareExchange(Slot.Kind.free, Slot.Kind.fresh) {
                nextFree.storeRelaxed(UInt64(index) + 1)
                while true {
                    let high = highWater.load()
                    if high > UInt64(index) || highWater.compareExchange(high, UInt64(index) + 1) { break }
                }
                let generation = slot.generation.loadRelaxed() &+ 1  // nobody else's since the exchange
                slot.generation.store(generation)
                slot.plainReaders.begin(generation: generation)
                slot.plainWriters.begin(generation: generation)
                slot.holders.store(1)
                holderWord(process, index >> 6).setBits(1 << UInt64(index & 63))
                return index
            }
            index += 1
        }
        return 0
    }

    /// Process `process` has closed its last descriptor of the slot. True when nobody else holds it: the slot is free.
    @discardableResult
    package func release(_ index: Int, process: Int) -> Bool {
        let mask = UInt64(1) << UInt64(index & 63)
        guard process >= 0, holderWord(process, index >> 6).clearBits(mask) & mask != 0 else { return false }
        return dropHolder(index)
    }

    /// Process `process` is about to lose the slot's socket, unless its exec fails. The last holder keeps it: a slot that
    /// became free could not be taken back.
    package func releaseUnlessLast(_ index: Int, process: Int) {
        let mask = UInt64(1) << UInt64(index & 63)
        let bits = holderWord(process, index >> 6)
        guard bits.load() & mask != 0, slot(index).holders.load() > 1, bits.clearBits(mask) & mask != 0 else { return }
        let holders = slot(index).holders
        while true {
            let count = holders.load()
            if count <= 1 {
                bits.setBits(mask)
                return
            }
            if holders.compareExchange(count, count &- 1) { return }
        }
    }

    /// Undoes `releaseUnlessLast`. False: the slot has become free meanwhile.
    package func holdAgain(_ index: Int, process: Int) -> Bool {
        let mask = UInt64(1) << UInt64(index & 63)
        let bits = holderWord(process, index >> 6)
        if bits.load() & mask != 0 { return true }
        guard holdAlso(index) else { return false }
        bits.setBits(mask)
        return true
    }

    @discardableResult
    private func dropHolder(_ index: Int) -> Bool {
        let slot = slot(index)
        guard slot.holders.subtract(1) == 0 else { return false }
        let (sent, received) = slot.companionBytes
        if sent | received != 0 {  // a connection that never moved does not touch the shared line
            retiredSent.add(sent)
            retiredReceived.add(received)
        }
        slot.clear()
        if UInt64(index) < nextFree.loadRelaxed() { nextFree.storeRelaxed(UInt64(index)) }
        slot.kind.store(Slot.Kind.free)
        return true
    }
}

/// One process of a family.
package struct ProcessEntry {
    package let base: UnsafeMutableRawPointer
    @inline(__always) init(_ base: UnsafeMutableRawPointer) { self.base = base }

    package static var free: UInt64 { 0 }
    package static var live: UInt64 { 1 }
    package static var leaving: UInt64 { 2 }

    @inline(__always) package var state: Word { Word(base, 0) }
    /// As the process sees itself (its own pid namespace); or a reservation.
    @inline(__always) package var pid: Word { Word(base, 8) }
    /// Bit of `pid`: reserved for a child that is about to be forked. The other bits say when, in monotonic nanoseconds, and
    /// so tell one reservation of the entry from the next.
    package static var reserved: UInt64 { 1 << 63 }
    package static func reservation(now: UInt64) -> UInt64 { now | reserved }
    /// In which PID namespace that number is meant: `ss_relatives.space`.
    @inline(__always) package var space: Word { Word(base, 32) }
    /// 1: the process keeps a lock on the arena's byte of the entry's number as long as it lives.
    @inline(__always) package var isWatched: Word { Word(base, 40) }
    /// The service raises it when it has sent this process a message.
    @inline(__always) package var mailbox: Word { Word(base, 64) }
    /// The program's name (`comm`), zero-terminated, at most 15 bytes.
    @inline(__always) package var name: UnsafeMutableRawPointer { base + 16 }
    package static var nameBytes: Int { 16 }
}
