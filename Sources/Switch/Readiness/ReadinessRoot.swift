import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// The process-private memory of poll, select and epoll: one sparse mapping.
///
///     page 0   tag prefix, locks, free lists
///     …        `EpollSet` records
///     …        `Registration` records
///
/// Locks are taken in the order socket, set, pool (or sets). Sections are short; a signal handler that interrupted the
/// holder is told so by the lock and then does without.
struct ReadinessRoot {
    let base: UnsafeMutableRawPointer
    @inline(__always) init(_ base: UnsafeMutableRawPointer) { self.base = base }

    static var setCount: Int { 4096 }
    /// Index 0 is never used. The index must fit in a tag.
    static var registrationCount: Int { 65536 }
    static var socketLocks: Int { 64 }
    static var socketLocksOffset: Int { 1024 }
    static var setsOffset: Int { 4096 }
    static var registrationsOffset: Int { setsOffset + setCount * EpollSet.bytes }
    static var bytes: Int { registrationsOffset + registrationCount * Registration.bytes }

    @inline(__always) private func half(_ offset: Int) -> UnsafeMutablePointer<UInt32> {
        (base + offset).assumingMemoryBound(to: UInt32.self)
    }

    /// 28 random bits, in the place where tags have them; constant.
    @inline(__always) var tagPrefix: UInt64 { Word(base, 0).loadRelaxed() }
    /// Not 0: the kernel (or a filter) has no epoll_pwait2.
    @inline(__always) var noPreciseWait: Word { Word(base, 8) }

    @inline(__always) private var poolLock: FamilyLock { FamilyLock(base, 64) }
    @inline(__always) private var freeRegistration: UInt32 { get { half(80).pointee } nonmutating set { half(80).pointee = newValue } }
    @inline(__always) private var usedRegistrations: UInt32 { get { half(84).pointee } nonmutating set { half(84).pointee = newValue } }

    @inline(__always) private var setsLock: FamilyLock { FamilyLock(base, 128) }
    @inline(__always) private var freeSet: UInt32 { get { half(144).pointee } nonmutating set { half(144).pointee = newValue } }
    @inline(__always) var usedSets: UInt32 { get { half(148).pointee } nonmutating set { half(148).pointee = newValue } }

    /// Guards a socket's list of registrations and the change between plain and dual.
    @inline(__always)
    func socketLock(_ socket: Int) -> FamilyLock {
        FamilyLock(base, ReadinessRoot.socketLocksOffset + (socket & (ReadinessRoot.socketLocks - 1)) * 16)
    }

    @inline(__always)
    func set(_ index: Int) -> EpollSet { EpollSet(base + ReadinessRoot.setsOffset + index * EpollSet.bytes) }

    @inline(__always)
    func registration(_ index: UInt32) -> Registration {
        Registration(base + ReadinessRoot.registrationsOffset + Int(index) * Registration.bytes)
    }

    // MARK: The root itself

    private static var location: Word {
        Word(UnsafeMutableRawPointer(privateState), MemoryLayout<PrivateState>.readinessOffset)
    }

    /// nil before the first epoll set of the process, or when there is no memory.
    @inline(__always)
    static var existing: ReadinessRoot? {
        guard let base = UnsafeMutableRawPointer(bitPattern: UInt(location.load())) else { return nil }
        return ReadinessRoot(base)
    }

    static func make() -> ReadinessRoot? {
        if let root = existing { return root }
        let address = ss_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard address > 0, let base = UnsafeMutableRawPointer(bitPattern: address) else { return nil }
        var random: UInt64 = 0
        if ss_sys_getrandom(&random, 8) != 8 { random = ss_cycles() &* 0x9E37_79B9_7F4A_7C15 ^ UInt64(ss_sys_getpid()) }
        // Neither a small number nor a pointer nor a negative number: what programs use as data.
        let prefix = (random | 1 << 62) & ~(1 << 63)
        Word(base, 0).store(prefix & Tag.prefixMask)
        let root = ReadinessRoot(base)
        root.usedRegistrations = 1
        root.usedSets = 1
        if location.compareExchange(0, UInt64(UInt(bitPattern: base))) { return root }
        _ = ss_sys_munmap(base, bytes)
        return existing
    }

    // MARK: Records

    /// A blank record; 0 when there is none left.
    func takeRegistration() -> UInt32 {
        guard poolLock.lock() == .acquired else { return 0 }
        var index = freeRegistration
        if index != 0 {
            freeRegistration = registration(index).nextInSocket
        } else if usedRegistrations < UInt32(ReadinessRoot.registrationCount) {
            index = usedRegistrations
            usedRegistrations = index &+ 1
        }
        poolLock.unlock()
        guard index != 0 else { return 0 }
        let one = registration(index)
        one.clear()
        one.beginUse()
        return index
    }

    func giveBack(registration index: UInt32) {
        registration(index).state = 0
        guard poolLock.lock() == .acquired else { return }
        registration(index).nextInSocket = freeRegistration
        freeRegistration = index
        poolLock.unlock()
    }

    /// A blank record for the set behind `descriptor`; 0 when there is none left.
    func takeSet(_ descriptor: Int32) -> Int {
        guard setsLock.lock() == .acquired else { return 0 }
        var index = freeSet
        if index != 0 {
            freeSet = set(Int(index)).next
        } else if usedSets < UInt32(ReadinessRoot.setCount) {
            index = usedSets
            usedSets = index &+ 1
        }
        if index != 0 {
            let one = set(Int(index))
            // The lock's 16 bytes stay: a late waiter of the set's former life may still hold it for a moment.
            memset(one.base + 16, 0, EpollSet.lifeOffset - 16)
            one.descriptor = descriptor
            one.spinNanoseconds.storeRelaxed(SpinBudget.first)
        }
        setsLock.unlock()
        return Int(index)
    }

    func giveBack(set index: Int) {
        guard setsLock.lock() == .acquired else { return }
        set(index).next = freeSet
        freeSet = UInt32(index)
        setsLock.unlock()
    }

    // MARK: Fork

    /// Holds every lock, so that a child finds whole lists. Pairs with `unlockAll`.
    func lockAll() {
        for index in 0..<ReadinessRoot.socketLocks { _ = socketLock(index).lock() }
        var sets = 1
        while true {
            while sets < Int(usedSets) {
                _ = set(sets).lock.lock()
                sets &+= 1
            }
            _ = setsLock.lock()
            if sets >= Int(usedSets) { break }
            setsLock.unlock()  // another one has been made meanwhile
        }
        _ = poolLock.lock()
    }

    func unlockAll() {
        poolLock.unlock()
        for index in 1..<max(1, Int(usedSets)) { set(index).lock.unlock() }
        setsLock.unlock()  // not before: now there may be one more
        for index in 0..<ReadinessRoot.socketLocks { socketLock(index).unlock() }
    }

    private func isDormant(_ index: Int) -> Bool {
        registration(UInt32(index)).state & (Registration.State.live | Registration.State.dormant)
            == Registration.State.live | Registration.State.dormant
    }

    /// Under all locks.
    var hasDormant: Bool {
        for index in 1..<max(1, Int(usedRegistrations)) where isDormant(index) { return true }
        return false
    }

    func forgetAllDormant() {
        for index in 1..<max(1, Int(usedRegistrations)) where isDormant(index) {
            let lock = socketLock(registration(UInt32(index)).socket)
            guard lock.lock() == .acquired else { continue }
            if isDormant(index) { forgetDormant(UInt32(index)) }
            lock.unlock()
        }
    }

    /// Every registration of the set is told to the kernel in the program's own words. Takes session locks and sockets' locks.
    func giveUpWords(_ set: EpollSet) {
        forEachRegistration(of: set) { index, one in
            if one.has(Registration.State.dual) { _ = switchHandOver(one.polled, .handedOver) }
            underSocketLock(index, of: set) { untag(index) }
        }
    }

    /// Without any lock: what is found may change or go meanwhile.
    func forEachRegistration(of set: EpollSet, _ call: (UInt32, Registration) -> Void) {
        for index in 1..<max(1, UInt32(usedRegistrations)) where isLive(index, set) { call(index, registration(index)) }
    }

    /// Under the lock of its socket, if it is still a registration of this set.
    func underSocketLock(_ index: UInt32, of set: EpollSet, _ call: () -> Void) {
        let one = registration(index)
        let socket = one.socket
        let lock = socketLock(socket)
        guard lock.lock() == .acquired else { return }
        if isLive(index, set), one.socket == socket { call() }
        lock.unlock()
    }

    private func isLive(_ index: UInt32, _ set: EpollSet) -> Bool {
        let one = registration(index)
        return one.isLive && self.set(Int(one.set)).base == set.base
    }

    /// Every set is the kernel's set of two processes now.
    func noteShared(inherited: Bool) {
        for index in 1..<max(1, Int(usedSets)) {
            let one = set(index)
            if !one.has(EpollSet.Flags.forked) { one.handOversSeen = ReadinessRoot.handOversAmongRelatives }
            one.flags.setBits(
                EpollSet.Flags.forked | (inherited ? EpollSet.Flags.inherited : 0) | (one.dualCount.load() != 0 ? EpollSet.Flags.shared : 0))
        }
    }

    /// In a forked child: locks that the parent's threads held are free, and nobody sleeps here.
    func resetAfterFork() {
        memset(base + ReadinessRoot.socketLocksOffset, 0, ReadinessRoot.socketLocks * 16)
        memset(base + 64, 0, 16)
        memset(base + 128, 0, 16)
        for index in 1..<max(1, Int(usedSets)) {
            let one = set(index)
            memset(one.base, 0, 16)
            one.sleepers.store(0)
        }
        for index in 1..<max(1, usedRegistrations) { registration(index).users.store(0) }
    }
}
