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
/// | at least 65,536 | from 15,872 on: no program minds |
/// | below the hard limit | at S or above: the soft limit is raised for the moment of the move; descriptors above it stay valid |
/// | the hard limit, at least 1,024 | the top quarter, at most S/8 of them |
/// | the hard limit, less than 1,024 | nowhere: such a program counts its descriptors |
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
            minimum = DescriptorPlacement.preferredMinimum
        } else if hard > soft {
            var higher = before
            higher.rlim_cur = rlim_t(hard)
            guard ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), &higher, nil) == 0 else { return }
            raised = true
            minimum = max(soft, min(DescriptorPlacement.preferredMinimum, hard / 2))
        } else if soft >= 1024, ownDescriptorCount + 2 <= soft / 8 {
            minimum = soft / 4 * 3
        }
    }

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
    clearDescriptorEntry(fd)
    _ = ss_sys_close(fd)
    providerHalfWord(ProviderState.ownDescriptorsOffset).subtract(1)
}

/// Descriptors that the library keeps in this process now.
package var ownDescriptorCount: Int { Int(providerHalfWord(ProviderState.ownDescriptorsOffset).load()) }
