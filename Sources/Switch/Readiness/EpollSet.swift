import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// What this process remembers of one epoll set: 128 bytes of private memory.
///
/// The hot list holds the registrations that were active lately: the wait call looks at them without a system call. All
/// others are armed, and the kernel's own set finds them by their doorbell.
struct EpollSet {
    let base: UnsafeMutableRawPointer
    @inline(__always) init(_ base: UnsafeMutableRawPointer) { self.base = base }

    static var bytes: Int { 128 }

    enum Flags {
        /// Another set, poll or select watches this set: it must become ready in the kernel's eyes, too.
        static var nested: UInt64 { 1 }
        /// The program's own data looks like our tags, or another program has the set, too: no socket in it may become dual.
        static var unswitchable: UInt64 { 2 }
        /// The kernel may hold tags of ours: look through what it reports. Never taken back.
        static var tags: UInt64 { 4 }
        /// A signal handler could not take the lock: look at all registrations.
        static var attention: UInt64 { 8 }
        /// It had dual sockets at a fork: a relative may wait in the same set of the kernel's.
        static var shared: UInt64 { 16 }
        /// Another set is in it.
        static var holdsSets: UInt64 { 64 }
        /// Inherited, and this process has neither waited in it nor changed it yet.
        static var inherited: UInt64 { 32 }
        /// It was there at a fork: a relative may have it, too. Never taken back.
        static var forked: UInt64 { 128 }
        /// A one-shot registration has fired since the last look at such.
        static var fired: UInt64 { 256 }
    }

    @inline(__always) private func half(_ offset: Int) -> UnsafeMutablePointer<UInt32> {
        (base + offset).assumingMemoryBound(to: UInt32.self)
    }

    /// Guards the lists, the registrations in them and the fields without an atomic type. Never held in a system call that
    /// can sleep, nor while calling what takes a session's lock and waits for it.
    @inline(__always) var lock: FamilyLock { FamilyLock(base, 0) }
    /// One of the descriptors.
    @inline(__always) var descriptor: Int32 {
        get { Int32(bitPattern: HalfWord(base, 16).loadRelaxed()) }
        nonmutating set { HalfWord(base, 16).store(UInt32(bitPattern: newValue)) }
    }
    /// How often a registration has become dual or plain: what the kernel has told of one before must not be told once more by a
    /// look at the hot ones after it. Changed under the lock.
    @inline(__always) var conversions: UInt32 {
        get { HalfWord(base, 20).load() }
        nonmutating set { HalfWord(base, 20).store(newValue) }
    }
    @inline(__always) var hotHead: UInt32 { get { half(24).pointee } nonmutating set { half(24).pointee = newValue } }
    /// Looked at without the lock, too.
    @inline(__always) var hotCount: UInt32 {
        get { HalfWord(base, 28).loadRelaxed() }
        nonmutating set { HalfWord(base, 28).store(newValue) }
    }
    @inline(__always) var firstRegistration: UInt32 { get { half(32).pointee } nonmutating set { half(32).pointee = newValue } }
    /// The registration that was last reported, for its peer's CPU.
    @inline(__always) var hottest: UInt32 {
        get { HalfWord(base, 36).loadRelaxed() }
        nonmutating set { HalfWord(base, 36).store(newValue) }
    }
    /// Dual registrations.
    @inline(__always) var dualCount: Word { Word(base, 40) }
    /// Threads that sleep in the kernel's wait.
    @inline(__always) var sleepers: Word { Word(base, 48) }
    /// When the kernel was last asked, monotonic nanoseconds.
    @inline(__always) var lastKernelPoll: Word { Word(base, 56) }
    @inline(__always) var flags: Word { Word(base, 64) }
    /// What looking may cost before sleeping, nanoseconds. Races are harmless.
    @inline(__always) var spinNanoseconds: Word { Word(base, 72) }
    /// With room for one event only, kernel and rings take turns.
    @inline(__always) var kernelsTurn: Word { Word(base, 80) }
    /// When a thread last began to wait or to look, monotonic nanoseconds: a time that costs nothing.
    @inline(__always) var lastWait: Word { Word(base, 104) }
    /// `ReadinessRoot.handOversAmongRelatives` when registrations were last looked for that a relative has handed over.
    @inline(__always) var handOversSeen: UInt32 {
        get { HalfWord(base, 92).loadRelaxed() }
        nonmutating set { HalfWord(base, 92).store(newValue) }
    }
    @inline(__always) var next: UInt32 { get { half(88).pointee } nonmutating set { half(88).pointee = newValue } }

    /// When the hot list was last looked at, a `SenderMark`.
    @inline(__always) var lookMark: UInt64 {
        get { (base + 112).assumingMemoryBound(to: UInt64.self).pointee }
        nonmutating set { (base + 112).assumingMemoryBound(to: UInt64.self).pointee = newValue }
    }
    /// Which set of the program's the record stands for: raised when one is closed, and kept when the next one takes it. A wait
    /// may outlast its set.
    @inline(__always) var life: Word { Word(base, EpollSet.lifeOffset) }
    static var lifeOffset: Int { 120 }
    /// Registrations of sockets that are no listeners.
    @inline(__always) var streamCount: Word { Word(base, 96) }
    /// Connections that are not in the hot list: on TCP, or armed. When something comes on them only the kernel knows.
    @inline(__always) var quietStreams: Int {
        let streams = streamCount.loadRelaxed()
        let hot = UInt64(hotCount)
        return streams > hot ? Int(streams &- hot) : 0
    }

    @inline(__always) func has(_ flag: UInt64) -> Bool { flags.load() & flag != 0 }

    // MARK: Lists. Under the lock.

    /// Puts a registration at the end of the hot list.
    func makeHot(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        guard !one.has(Registration.State.hot) else { return }
        one.insert(Registration.State.hot)
        linkHot(root, index)
    }

    /// For a caller who has set `State.hot`.
    func linkHot(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        let head = hotHead
        if head == 0 {
            one.hotNext = index
            one.hotPrevious = index
            hotHead = index
        } else {
            let first = root.registration(head)
            let last = first.hotPrevious
            one.hotNext = head
            one.hotPrevious = last
            root.registration(last).hotNext = index
            first.hotPrevious = index
        }
        hotCount &+= 1
    }

    func makeCold(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        guard one.has(Registration.State.hot) else { return }
        one.remove(Registration.State.hot)
        unlinkHot(root, index)
    }

    /// For a caller who has taken `State.hot` away.
    func unlinkHot(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        let next = one.hotNext
        let previous = one.hotPrevious
        if next == index {
            hotHead = 0
        } else {
            root.registration(next).hotPrevious = previous
            root.registration(previous).hotNext = next
            if hotHead == index { hotHead = next }
        }
        hotCount &-= 1
    }

    func link(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        let first = firstRegistration
        one.nextInSet = first
        one.previousInSet = 0
        if first != 0 { root.registration(first).previousInSet = index }
        firstRegistration = index
        if !one.has(Registration.State.listener) { streamCount.add(1) }
    }

    func unlink(_ root: ReadinessRoot, _ index: UInt32) {
        makeCold(root, index)
        let one = root.registration(index)
        if !one.has(Registration.State.listener) { streamCount.subtract(1) }
        let next = one.nextInSet
        let previous = one.previousInSet
        if next != 0 { root.registration(next).previousInSet = previous }
        if previous != 0 { root.registration(previous).nextInSet = next } else { firstRegistration = next }
        if hottest == index { hottest = 0 }
    }
}
