import CSocketSwitch
#if !hasFeature(Embedded)
import StreamRing
#endif

/// Whether others want the processors on which this process looks for data instead of sleeping. Giving the processor away
/// (`sched_yield`) is cheap while only the peer takes it; where a third program computes, each such gift lasts a whole time
/// slice, a thousand times as long as the wake-up that it was to spare. So whoever finds that out goes to sleep, and nobody
/// in the process yields again for a while, which doubles as long as it stays so; until then looking is a few microseconds
/// of pauses, for a peer that runs on another processor.
///
/// Two words for the whole process, read and written without order: what is lost is at most a look.
package enum Crowd {
    /// How long looking goes on without giving the processor away.
    package static var pausesNanoseconds: UInt32 { 8_000 }
    /// A yield that found nothing and took so long went to somebody who is not our peer.
    private static var lostNanoseconds: UInt64 { 100_000 }
    /// The same though data are there: our peer may have had much to do, but not so much.
    private static var longestTurnNanoseconds: UInt64 { 1_000_000 }
    private static var firstPauseNanoseconds: UInt64 { 2_000_000 }
    private static var longestPauseNanoseconds: UInt64 { 64_000_000 }
    /// Found out again so soon after the last pause, it is still the same crowd.
    private static var sameCrowdNanoseconds: UInt64 { 50_000_000 }

    private static var until: Word { Word(ss_session_state_address(), Int(SS_CROWDED_UNTIL_OFFSET)) }
    private static var pause: Word { Word(ss_session_state_address(), Int(SS_CROWDED_FOR_OFFSET)) }

    /// Nobody should yield now. `now`: monotonic nanoseconds.
    @inline(__always)
    package static func isHere(_ now: UInt64) -> Bool { now < until.loadRelaxed() }

    /// After a yield. True: it went to somebody else; sleep.
    @inline(__always)
    package static func took(_ nanoseconds: UInt64, now: UInt64, foundData: Bool) -> Bool {
        if nanoseconds < (foundData ? longestTurnNanoseconds : lostNanoseconds) { return false }
        note(now)
        return true
    }

    @inline(never)
    private static func note(_ now: UInt64) {
        let last = until.loadRelaxed()
        let isSame = now &- last < sameCrowdNanoseconds
        let next = isSame ? min(pause.loadRelaxed() &* 2, longestPauseNanoseconds) : firstPauseNanoseconds
        pause.storeRelaxed(next)
        until.storeRelaxed(now &+ next)
    }
}
