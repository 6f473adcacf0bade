import CSocketSwitch
#if !hasFeature(Embedded)
import StreamRing
#endif

/// A lock in family-shared memory: between threads, and between a process and the children that it forked (WSD-D2, D4).
///
/// Uncontended it is one compare-exchange. The word holds the kernel thread id of the owner and, in its top bit, "somebody
/// sleeps". An owner that died (kill -9) is noticed by whoever waits, also before its
/// parent has waited for it, who then takes the lock over; every critical section therefore publishes its result with one
/// final store.
///
/// Between the two stands the PID namespace that the id is meant in (`ss_relatives`, its last 9 bits): an owner in another one
/// cannot be asked about, and counts as dead when it has not moved for two seconds.
///
/// While it is held no handler of the program runs in this thread (ProgramSignals.h); one that comes runs in `unlock`. Not
/// re-entrant: `lock()` answers `.ownedByThisThread` to a handler that interrupted the owner all the same, since it was set
/// past libc.
/// Async-signal-safe; never allocates; fork-safe (a child waits for the parent's thread as for any other).
package struct FamilyLock {
    package enum Outcome { case acquired, ownedByThisThread }

    let word: HalfWord
    /// The owner's stack depth (address of a local): tells a handler that interrupted the owner all the same, which lies deeper,
    /// from a frame that its `longjmp` has abandoned.
    let frame: Word

    /// The lock takes 16 bytes at `offset`: the word, and the owner's frame.
    @inline(__always)
    package init(_ base: UnsafeMutableRawPointer, _ offset: Int) {
        word = HalfWord(base, offset)
        frame = Word(base, offset + 8)
    }

    private static var sleepers: UInt32 { 0x8000_0000 }

    /// Thread ids have at most 22 bits (PID_MAX_LIMIT).
    private static var threadBits: UInt32 { 22 }
    @inline(__always)
    private static var me: UInt32 {
        UInt32(bitPattern: ss_thread_id()) | ss_relatives.space << threadBits & ~sleepers
    }

    @inline(__always)
    package func lock() -> Outcome {
        ss_enter_section()
        let me = FamilyLock.me
        if word.compareExchange(0, me) == 0 {
            frame.storeRelaxed(FamilyLock.stackPosition())
            return .acquired
        }
        let outcome = lockSlowly(me)
        if outcome == .ownedByThisThread { ss_leave_section() }
        return outcome
    }

    @inline(__always)
    package func tryLock() -> Bool {
        ss_enter_section()
        guard word.compareExchange(0, FamilyLock.me) == 0 else {
            ss_leave_section()
            return false
        }
        frame.storeRelaxed(FamilyLock.stackPosition())
        return true
    }

    @inline(__always)
    package func unlock() {
        if word.exchange(0) & FamilyLock.sleepers != 0 { _ = ss_sys_futex_wake(word.address, 1) }
        ss_leave_section()
    }

    @inline(__always)
    static func stackPosition() -> UInt64 { UInt64(UInt(bitPattern: ss_frame_address())) }

    /// Sleeps of 20 ms in a row from which nobody woke us. (Whoever gives the lock back wakes a sleeper.)
    private static var patience: Int { 100 }

    @inline(never)
    private func lockSlowly(_ me: UInt32) -> Outcome {
        var rounds = 0
        var vainSleeps = 0
        while true {
            let found = word.load()
            let owner = found & ~FamilyLock.sleepers
            if owner == 0 {
                // Keep the sleepers' bit: somebody may still sleep behind us.
                if word.compareExchange(found, me | FamilyLock.sleepers) == found {
                    frame.storeRelaxed(FamilyLock.stackPosition())
                    return .acquired
                }
                continue
            }
            if owner == me {
                // The stack grows down: the owner's frame lies above ours when we are its signal handler.
                if frame.loadRelaxed() > FamilyLock.stackPosition() { return .ownedByThisThread }
                frame.storeRelaxed(FamilyLock.stackPosition())
                return .acquired
            }
            rounds &+= 1
            if rounds < 64 {
                ss_pause()
                continue
            }
            if found & FamilyLock.sleepers == 0, word.compareExchange(found, found | FamilyLock.sleepers) != found { continue }
            var timeout = timespec(tv_sec: 0, tv_nsec: 20_000_000)
            let result = ss_sys_futex_wait(word.address, owner | FamilyLock.sleepers, &timeout)
            vainSleeps = result == -Int(ETIMEDOUT) ? vainSleeps &+ 1 : 0
            let isGone = (owner ^ me) >> FamilyLock.threadBits == 0
                ? vainSleeps > 0 && ss_thread_is_dead(Int32(bitPattern: owner & (1 << FamilyLock.threadBits &- 1))) != 0
                : vainSleeps >= FamilyLock.patience
            if isGone {
                if word.compareExchange(owner | FamilyLock.sleepers, me | FamilyLock.sleepers) == owner | FamilyLock.sleepers {
                    frame.storeRelaxed(FamilyLock.stackPosition())
                    return .acquired
                }
            }
        }
    }
}
