import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// What this process remembers of one socket in one epoll set: 128 bytes of private memory.
///
/// Fields of the first line belong to the set's lock, `nextInSocket` to the socket's; identity (descriptor, set, socket)
/// is written under both. A forked child has a copy of its own.
struct Registration {
    let base: UnsafeMutableRawPointer
    @inline(__always) init(_ base: UnsafeMutableRawPointer) { self.base = base }

    static var bytes: Int { 128 }

    enum State {
        static var live: UInt32 { 1 }
        /// The kernel watches the TCP socket edge-triggered, with our tag, and the doorbell beside it.
        static var dual: UInt32 { 2 }
        /// One-shot and fired: reports nothing until the program changes it.
        static var disabled: UInt32 { 4 }
        /// In the set's hot list.
        static var hot: UInt32 { 8 }
        /// Edge-triggered: something happened that no counter of the session shows.
        static var edge: UInt32 { 16 }
        /// The kernel reported the TCP socket, or the program changed the registration: look at everything.
        static var look: UInt32 { 32 }
        /// This registration stands for the doorbell in the kernel's set.
        static var doorbell: UInt32 { 64 }
        /// Plain, but the kernel holds our tag: so we learn that a one-shot registration has fired.
        static var tagged: UInt32 { 128 }
        /// Plain and fired when the session ended: not in the kernel's set until the program changes it. Its descriptor may be
        /// closed, if another one of the socket is open.
        static var absent: UInt32 { 256 }
        /// Forgotten by a signal handler that interrupted the holder of the lock: to be freed.
        static var dead: UInt32 { 512 }
        /// Edge-triggered: the program was told that there is no room to send.
        static var starved: UInt32 { 1024 }
        /// Other registrations of the same socket in this set rely on this one's doorbell.
        static var sharedDoorbell: UInt32 { 2048 }
        /// Dual, and the program has deleted it: the kernel keeps ours until the descriptor goes, because a program that
        /// deletes a registration (a client after each write, say) soon makes it anew. Always with `disabled`.
        static var dormant: UInt32 { 4096 }
        /// The socket has, or had, another registration in this process.
        static var notAlone: UInt32 { 8192 }
        /// A listener when it was registered.
        static var listener: UInt32 { 16384 }
    }

    @inline(__always) private func half(_ offset: Int) -> UnsafeMutablePointer<UInt32> {
        (base + offset).assumingMemoryBound(to: UInt32.self)
    }
    @inline(__always) private func full(_ offset: Int) -> UnsafeMutablePointer<UInt64> {
        (base + offset).assumingMemoryBound(to: UInt64.self)
    }

    @inline(__always) var descriptor: Int32 {
        get { Int32(bitPattern: half(0).pointee) }
        nonmutating set { half(0).pointee = UInt32(bitPattern: newValue) }
    }
    /// Atomic, like `generation`: an old tag leads to a record that is being taken into use for another set.
    @inline(__always) var set: UInt32 {
        get { HalfWord(base, 4).loadRelaxed() }
        nonmutating set { HalfWord(base, 4).store(newValue) }
    }
    @inline(__always) var socket: Int { get { Int(half(8).pointee) } nonmutating set { half(8).pointee = UInt32(newValue) } }
    /// As the program gave them, modes included.
    @inline(__always) var events: UInt32 { get { half(12).pointee } nonmutating set { half(12).pointee = newValue } }
    @inline(__always) var data: UInt64 { get { full(16).pointee } nonmutating set { full(16).pointee = newValue } }
    /// Bits of `State`. Atomic: some change under the set's lock, some under the socket's.
    @inline(__always) var state: UInt32 {
        get { HalfWord(base, 24).loadRelaxed() }
        nonmutating set { HalfWord(base, 24).store(newValue) }
    }
    /// What the kernel watches of a dual socket's TCP carrier; 0: it is not in the kernel's set (`NestedSets`).
    @inline(__always) var kernelEvents: UInt32 { get { half(28).pointee } nonmutating set { half(28).pointee = newValue } }
    @inline(__always) var hotNext: UInt32 { get { half(32).pointee } nonmutating set { half(32).pointee = newValue } }
    @inline(__always) var hotPrevious: UInt32 { get { half(36).pointee } nonmutating set { half(36).pointee = newValue } }
    /// `Session.receiveEdge` and `sendEdge` when an edge was last reported.
    @inline(__always) var receiveEdge: UInt64 { get { full(40).pointee } nonmutating set { full(40).pointee = newValue } }
    @inline(__always) var sendEdge: UInt64 { get { full(48).pointee } nonmutating set { full(48).pointee = newValue } }
    /// Monotonic nanoseconds of the last sign of life.
    @inline(__always) var lastActive: UInt64 { get { full(56).pointee } nonmutating set { full(56).pointee = newValue } }

    @inline(__always) var nextInSocket: UInt32 { get { half(64).pointee } nonmutating set { half(64).pointee = newValue } }
    @inline(__always) var nextInSet: UInt32 { get { half(68).pointee } nonmutating set { half(68).pointee = newValue } }
    @inline(__always) var previousInSet: UInt32 { get { half(72).pointee } nonmutating set { half(72).pointee = newValue } }
    /// Counts the uses of this record (from bit 7 on) and its changes in this use (bits 0 to 6): old tags are recognised by it.
    @inline(__always) var generation: UInt32 {
        get { HalfWord(base, 76).loadRelaxed() }
        nonmutating set { HalfWord(base, 76).store(newValue) }
    }
    func beginUse() { generation = (generation | Tag.changeMask) &+ 1 }
    func beginChange() { generation = generation & ~Tag.changeMask | (generation &+ 1) & Tag.changeMask }
    /// When the kernel was last asked about the TCP carrier.
    @inline(__always) var lastKernelLook: UInt64 { get { full(80).pointee } nonmutating set { full(80).pointee = newValue } }
    /// Threads that call the session's `maintain` for it without the set's lock.
    @inline(__always) var users: Word { Word(base, 88) }

    /// A descriptor of the socket that is open: `descriptor`, or another one after the program has closed it. The kernel
    /// goes on reporting a registration as long as the socket lives, under a number that nobody can change it by.
    @inline(__always) var polled: Int32 {
        get { Int32(bitPattern: HalfWord(base, 104).loadRelaxed()) }
        nonmutating set { HalfWord(base, 104).store(UInt32(bitPattern: newValue)) }
    }
    @inline(__always) var isOrphan: Bool { polled != descriptor }

    /// The number with which this registration last asked for a ring, 0 = taken back.
    @inline(__always) var armed: UInt64 { get { full(96).pointee } nonmutating set { full(96).pointee = newValue } }

    /// The look (its time, monotonic nanoseconds) that last reported it to the program.
    @inline(__always) var reported: UInt64 { get { full(112).pointee } nonmutating set { full(112).pointee = newValue } }

    /// A `SenderMark`: the kernel's list has a registration where the program made, changed or was told of it last, if nothing
    /// has come since. 0: none of this.
    @inline(__always) var since: UInt64 { get { full(120).pointee } nonmutating set { full(120).pointee = newValue } }

    @inline(__always) func has(_ bit: UInt32) -> Bool { state & bit != 0 }
    /// For who comes by a tag: pairs with the store of `State.live`, which is the last one of a record taken into use.
    @inline(__always) var isLive: Bool { HalfWord(base, 24).load() & State.live != 0 }

    /// Zeroes everything but `generation`. What others look at by an old tag is written atomically.
    func clear() {
        state = 0
        set = 0
        memset(base, 0, 4)
        memset(base + 8, 0, 16)
        memset(base + 28, 0, 48)
        memset(base + 80, 0, Registration.bytes - 80)
    }
    @inline(__always) func insert(_ bits: UInt32) { _ = replace(0, by: bits) }
    @inline(__always) func remove(_ bits: UInt32) { _ = replace(bits, by: 0) }

    /// Takes away and sets bits at once. Returns what was there before.
    @inline(__always)
    func replace(_ removed: UInt32, by inserted: UInt32) -> UInt32 {
        let word = HalfWord(base, 24)
        var found = word.loadRelaxed()
        while true {
            let wanted = found & ~removed | inserted
            if wanted == found { return found }
            let seen = word.compareExchange(found, wanted)
            if seen == found { return found }
            found = seen
        }
    }

    @inline(__always) var isEdgeTriggered: Bool { events & Interest.edgeTriggered != 0 }
    @inline(__always) var isOneShot: Bool { events & Interest.oneShot != 0 }

    /// The kernel's mask for the TCP carrier of a dual socket. Edge-triggered: a FIN that the program leaves unread must
    /// not keep the kernel's set ready.
    func neededKernelEvents(sendsOnTCP: Bool) -> UInt32 {
        var needed = Interest.edgeTriggered | Interest.input | Interest.readHangUp | (events & Interest.priority)
        if sendsOnTCP, events & Interest.writing != 0 { needed |= Interest.output }
        return needed
    }
}

/// The 64 bits that the kernel keeps for a registration of ours: 28 random bits of this process, then generation (12 of the use,
/// 7 of the change), doorbell (1), index (16).
enum Tag {
    static var prefixMask: UInt64 { ~0 << 36 }
    static var generationMask: UInt32 { 0x7FFFF }
    static var changeMask: UInt32 { 0x7F }

    @inline(__always)
    static func make(_ root: ReadinessRoot, _ index: UInt32, _ generation: UInt32, doorbell: Bool) -> UInt64 {
        root.tagPrefix | UInt64(generation & generationMask) << 17 | (doorbell ? 1 << 16 : 0) | UInt64(index & 0xFFFF)
    }
    @inline(__always) static func index(_ tag: UInt64) -> UInt32 { UInt32(tag & 0xFFFF) }
    @inline(__always) static func isDoorbell(_ tag: UInt64) -> Bool { tag & (1 << 16) != 0 }
    @inline(__always) static func generation(_ tag: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: tag >> 17) & generationMask }
}
