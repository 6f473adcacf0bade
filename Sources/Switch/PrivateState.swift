import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

/// The switch's process-private state, in zero-initialised storage of the C shim (a Swift global with an initialiser
/// would be lazy, and lazy globals deadlock on re-entry and across fork). A forked child starts with a copy.
package struct PrivateState {
    /// `StartState`. This and the next six are atomic and reached by address, so they come first.
    package var startState: UInt32
    /// Lock of the list of pending companions: 0, or the thread that holds it.
    package var pendingLock: UInt32
    /// Readiness' root: epoll sets and registrations; nil before the first epoll set. Atomic, too.
    package var readiness: UnsafeMutableRawPointer?
    package var firstPendingSlot: UInt32
    package var trackedDescriptors: UInt32
    /// Connections that stand for others: being made, and made so far.
    package var replacementsUnderWay: UInt32
    package var replacements: UInt32
    /// The family's arena; nil before the first stream socket.
    package var arena: UnsafeMutableRawPointer?
    package var arenaDescriptor: Int32
    /// Index of this process's entry in the arena.
    package var process: Int32
    /// What getpid() said when this state was made: another pid without our fork hooks means vfork or a raw clone.
    package var pid: Int32
    /// The child entry reserved by the fork in progress.
    package var reservedChild: Int32
    /// What that entry's `pid` says until the child has claimed it.
    package var reservation: UInt64
    /// `Connection` records, one a slot.
    package var connections: UnsafeMutablePointer<Connection>?
    /// Spinning allowed (policy `SOCKSWITCH_WAIT`).
    package var neverSpin: Bool
    package var eager: Bool
    package var enabled: Bool
    /// The process has made an io_uring.
    package var hasRing: Bool
    /// The process has said hello to the service, or tried to, because of its first connection.
    package var isIntroduced: Bool
    /// A filter of system calls that was there before the program is known to permit what the library does.
    package var ignoresFilters: Bool
    /// The program has confined itself (Seccomp.swift): nothing is ever done for it again.
    package var isConfined: Bool
    /// Companions that wait for their provider (listening ones included): data calls look at the event words while > 0.
    package var pendingCompanions: Int32
    /// Signals (bit n-1) whose handler was installed without SA_RESTART.
    package var interruptingSignals: UInt64
    /// Provider entries (`Providers.swift`) and what the event words last said.
    package var providers: UnsafeMutablePointer<ProviderEntry>?
    package var providerCount: Int32
    /// Changes of the machine's addresses so far, and when TCP/IP was last asked (monotonic nanoseconds).
    package var addressChanges: UInt64
    package var lastAddressCheck: UInt64
    /// Not nil: the one SAN provider to start, instead of the built-in ones (tests).
    package var onlyProvider: LPWSPSTARTUPEX?
    /// SharedMemory: path of the service, zero-terminated, in storage that lives for ever.
    /// The signal mask that the fork in progress gives back.
    package var forkMask: UInt64
    /// The fork in progress holds the pending list's lock.
    package var forkHoldsPending: Bool
    /// And the locks of readiness.
    package var forkHoldsReadiness: Bool
    /// And has other threads beside it.
    package var forkHasCompany: Bool
    package var policyText: UnsafePointer<CChar>?
    /// Socket handles given to providers (`WPUCreateSocketHandle`).
    package var handles: UnsafeMutableRawPointer?
    package var servicePath: UnsafePointer<CChar>?
}

/// The one instance.
@inline(__always)
package var privateState: UnsafeMutablePointer<PrivateState> {
    ss_private_state_address().assumingMemoryBound(to: PrivateState.self)
}

/// There may be sockets of ours in this process: it has an arena, and has not confined itself.
@inline(__always)
var switchIsActive: Bool { privateState.pointee.arena != nil && !privateState.pointee.isConfined }

/// Head of the list of pending companions (slot index, 0 = empty). Written under the list's lock.
@inline(__always)
var firstPending: HalfWord { HalfWord(UnsafeMutableRawPointer(privateState), MemoryLayout<PrivateState>.firstPendingOffset) }

/// Descriptors at and above it were never tracked.
@inline(__always)
var highestDescriptor: HalfWord { HalfWord(UnsafeMutableRawPointer(privateState), MemoryLayout<PrivateState>.trackedDescriptorsOffset) }

@inline(__always)
var replacementsUnderWay: HalfWord {
    HalfWord(UnsafeMutableRawPointer(privateState), MemoryLayout<PrivateState>.replacementsUnderWayOffset)
}

@inline(__always)
var replacements: HalfWord { HalfWord(UnsafeMutableRawPointer(privateState), MemoryLayout<PrivateState>.replacementsOffset) }

/// The session of the socket with slot `index`; only for indices that the descriptor table gave.
@inline(__always)
package func sessionOf(_ index: Int) -> Session {
    let state = privateState
    return Session(
        slot: FamilyArena(state.pointee.arena.unsafelyUnwrapped).slot(index),
        connection: state.pointee.connections.unsafelyUnwrapped + index)
}
