import CSocketSwitch
#if !hasFeature(Embedded)
import StreamRing
#endif

/// Points of monotonic time, nanoseconds, by which a wait ends.
enum Deadline {
    static var never: UInt64 { UInt64.max }
    /// The wait only looks.
    static var now: UInt64 { 0 }

    /// nil: not a valid time-out (EINVAL).
    static func after(_ timeout: UnsafePointer<timespec>?) -> UInt64? {
        guard let timeout else { return never }
        let seconds = timeout.pointee.tv_sec
        let nanoseconds = timeout.pointee.tv_nsec
        if seconds < 0 || nanoseconds < 0 || nanoseconds > 999_999_999 { return nil }
        if seconds == 0, nanoseconds == 0 { return now }
        if seconds > 4_000_000_000 { return never }
        return ss_monotonic_ns() &+ UInt64(seconds) &* 1_000_000_000 &+ UInt64(nanoseconds)
    }

    /// Nanoseconds left; `never` stays `never`.
    @inline(__always)
    static func left(_ deadline: UInt64, _ time: UInt64) -> UInt64 {
        deadline == never ? never : deadline > time ? deadline &- time : 0
    }

    static func fill(_ nanoseconds: UInt64) -> timespec {
        timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
    }
}

/// How long looking may go on before sleeping, nanoseconds: about what a sleep and a wake-up cost.
enum SpinBudget {
    static var first: UInt64 { 50_000 }
    static var maximum: UInt64 { 100_000 }
    /// Below it looking is not worth beginning.
    static var minimum: UInt64 { 2_000 }
    /// A yield that took so long gave the processor to somebody who is not our peer.
    static var lost: UInt64 { 100_000 }

    static func grown(_ budget: UInt64) -> UInt64 { min(budget &+ budget / 4, maximum) }
    static func shrunk(_ budget: UInt64) -> UInt64 { max(budget / 2, minimum / 2) }
    static func afterShortSleep(_ budget: UInt64) -> UInt64 { min(budget &* 2 &+ 2_000, maximum) }
}

/// Makes one section of a wait call, so that a handler that comes while it looks instead of sleeping still ends it with EINTR.
/// Not of one that sleeps with a mask of its own: until then the program holds back what is to end the sleep.
@inline(__always)
func inOneSection(unless mask: UnsafeRawPointer?, _ wait: () -> Int) -> Int {
    if mask != nil { return wait() }
    ss_enter_section()
    defer { ss_leave_section() }
    return wait()
}
