import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// The library's descriptors live in somebody else's process. Each is moved high, close-on-exec, where the program's own
// numbering and its EMFILE behaviour stay what they were, and is entered in the descriptor table as `DescriptorKind.own`.

/// Where the library's descriptors go: decided from RLIMIT_NOFILE each time, since the program may change it.
///
/// | soft limit S | place |
/// |---|---|
/// | at least 65,536 | from 15,872 on: few programs come so far |
/// | below the hard limit | at S or above: the soft limit is raised for the moment of the move; descriptors above it stay valid |
/// | the hard limit, at least 1,024 | the top quarter, at most S/8 of them |
/// | the hard limit, less than 1,024 | nowhere: such a program counts its descriptors |
///
/// Where they lie below S they are taken from the program's. So none is added that would leave it less than an eighth of S
/// beyond what it has, and they give way when it comes closer than that (`ownDescriptorsInTheWay`).
struct DescriptorPlacement {
    /// Lowest number to use; -1: none is allowed.
    private(set) var minimum: Int = -1
    private var raised = false
    private var before = rlimit()

    /// 512 below 16,384: the kernel doubles a descriptor table at powers of two, and fork copies it. High, because a
    /// program that raises its own limit later (redis, to 10,032) expects small numbers all the same.
    private static var preferredMinimum: Int { 15872 }

    /// Looks at the limits, and raises the soft one when that is needed. `restore()` must follow soon.
    init() {
        guard ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &before) == 0 else { return }
        let soft = Int(min(UInt64(before.rlim_cur), UInt64(SS_DESCRIPTORS)))
        let hard = Int(min(UInt64(before.rlim_max), UInt64(SS_DESCRIPTORS)))
        if soft >= 65536 {
            if leavesRoom(soft) { minimum = DescriptorPlacement.preferredMinimum }
        } else if hard > soft {
            var higher = before
            higher.rlim_cur = rlim_t(hard)
            guard ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), &higher, nil) == 0 else { return }
            raised = true
            let lowest = max(soft, min(DescriptorPlacement.preferredMinimum, hard / 2))
            // Known to be full before anybody goes to the trouble of making one.
            if ownDescriptorCount + 2 <= hard - lowest { minimum = lowest }
        } else if soft >= leastDescriptorLimit, ownDescriptorCount + 2 <= soft / 8, leavesRoom(soft) {
            minimum = soft / 4 * 3
        }
    }

    private func leavesRoom(_ soft: Int) -> Bool { programDescriptorCount + ownDescriptorCount + 2 <= soft - soft / 8 }

    func restore() {
        guard raised else { return }
        var limit = before
        _ = ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), &limit, nil)
    }

    /// Moves `fd`; the number given is closed in every case. The new number, or -EMFILE.
    func move(_ fd: Int32) -> Int32 {
        guard minimum >= 0 else {
            _ = ss_sys_close(fd)
            return -EMFILE
        }
        providerHalfWord(ProviderState.ownMovesBegunOffset).add(1)
        defer { providerHalfWord(ProviderState.ownMovesEndedOffset).add(1) }
        let moved = ss_sys_fcntl(fd, F_DUPFD_CLOEXEC, minimum)
        _ = ss_sys_close(fd)
        guard moved >= 0 else { return -EMFILE }
        guard moved < Int(SS_DESCRIPTORS) else {
            _ = ss_sys_close(Int32(moved))
            return -EMFILE
        }
        setDescriptorEntry(Int32(moved), kind: DescriptorKind.own, index: 0)
        providerHalfWord(ProviderState.ownDescriptorsOffset).add(1)
        return Int32(moved)
    }
}

/// Makes a descriptor one of the library's own: moved high, close-on-exec, in the descriptor table. `fd` itself is closed
/// in every case. Returns the new number, or -EMFILE (`Reason.descriptorLimit`).
///
/// Any thread; async-signal-safe. The soft RLIMIT_NOFILE may be raised for a few microseconds.
package func adoptOwn(_ fd: Int32) -> Int32 {
    let placement = DescriptorPlacement()
    let moved = placement.move(fd)
    placement.restore()
    return moved
}

/// The same for two at once; both, or neither (then both are closed and the result is -EMFILE twice).
package func adoptOwn(_ first: Int32, _ second: Int32) -> (Int32, Int32) {
    let placement = DescriptorPlacement()
    let one = placement.move(first)
    let two = placement.move(second)
    placement.restore()
    if one >= 0, two >= 0 { return (one, two) }
    closeOwn(one)
    closeOwn(two)
    return (-EMFILE, -EMFILE)
}

/// Closes a descriptor that `adoptOwn` returned; a negative number is ignored.
package func closeOwn(_ fd: Int32) {
    guard fd >= 0 else { return }
    providerHalfWord(ProviderState.ownMovesBegunOffset).add(1)
    clearDescriptorEntry(fd)
    _ = ss_sys_close(fd)
    providerHalfWord(ProviderState.ownMovesEndedOffset).add(1)
    providerHalfWord(ProviderState.ownDescriptorsOffset).subtract(1)
}

/// Descriptors that the library keeps in this process now.
package var ownDescriptorCount: Int { Int(providerHalfWord(ProviderState.ownDescriptorsOffset).load()) }

/// How often descriptors became the library's own or ceased to be; nil while one does. If it is the same before and after, an
/// open descriptor that the table did not know meanwhile was the program's.
///
/// SYNC POINT: pairs with `DescriptorPlacement.move` and `closeOwn`, which count before the first step and after the last.
package func ownDescriptorMoves() -> UInt32? {
    fullFence()
    let ended = providerHalfWord(ProviderState.ownMovesEndedOffset).load()
    return providerHalfWord(ProviderState.ownMovesBegunOffset).load() == ended ? ended : nil
}

/// In a forked child: other threads' moves ended with them.
func forgetDescriptorMoves() {
    providerHalfWord(ProviderState.ownMovesEndedOffset).store(providerHalfWord(ProviderState.ownMovesBegunOffset).load())
}

// MARK: The program comes first

/// Descriptors that the program is known to have: the highest number that it was given, since the kernel gives the lowest
/// one that is free.
private var programDescriptorCount: Int { Int(providerHalfWord(ProviderState.programDescriptorsOffset).load()) }

/// The program was given a higher number than ever: `count` is that number plus one.
package func noteProgramDescriptors(_ count: Int32) {
    providerHalfWord(ProviderState.programDescriptorsOffset).store(UInt32(bitPattern: count))
}

/// How many of the library's descriptors should be closed, because they lie below the soft limit and the program comes close
/// to it. `atOnce`: the program was refused one.
package func ownDescriptorsInTheWay(atOnce: Bool) -> Int {
    guard ownDescriptorCount > 0 else { return 0 }
    var limit = rlimit()
    guard ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &limit) == 0 else { return 0 }
    let soft = Int(min(UInt64(limit.rlim_cur), UInt64(SS_DESCRIPTORS)))
    // Numbers that the program skipped because they are ours make its highest one look too high: a reason to be early.
    if !atOnce, programDescriptorCount + ownDescriptorCount <= soft - soft / 8 { return 0 }
    var count = 0
    for fd in 0..<soft where entryKind(ss_descriptor_load(UInt32(fd))) == DescriptorKind.own { count += 1 }
    return count
}

/// Whether two more could be had now: asked before the service is troubled.
func hasRoomForDoorbells() -> Bool {
    let placement = DescriptorPlacement()
    placement.restore()
    return placement.minimum >= 0
}
