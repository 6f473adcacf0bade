import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// What *this process* knows about one socket: descriptors, mappings, the companion. Lies in process-private memory, so
/// a forked child starts with a copy; whatever must stay common is in the `Slot`.
///
/// One record a slot, at the slot's index. Fields of the companion are written once, when the session comes up, before
/// `Slot.mode` becomes `dual`, and are constant until the process's last descriptor is closed.
package struct Connection {
    /// Takes the address of the record: an access to a field by its name is one to the record for the thread sanitizer.
    private let head: UInt64 = 0

    // Words that several threads use without a lock: reached by address only (`Session.watchers` and so on), at the offsets
    // that `Connection.Offsets` names.

    /// Threads that look at the windows without holding a lock: unmapping waits for them.
    package var watchers: UInt64 = 0
    /// The session is up, `local` and `remote` may be used: `Up`.
    package var up: UInt64 = 0
    /// Threads of this process that sleep on the doorbell level-triggered (receive, send, poll, select).
    package var doorbellSleepers: UInt64 = 0
    /// When a receiver that found its ring empty last asked the kernel for the end (cycle counter).
    package var lastEndCheck: UInt64 = 0
    /// Threads of this process that sleep in a receive or a send, on the doorbell and under a number of the socket.
    package var sleepingCalls: UInt64 = 0
    /// The thread that puts another connection in this one's place; 0 = none.
    package var replacer: UInt64 = 0
    /// Adaptive waiting: what spinning may cost now, nanoseconds.
    package var receiveSpinNanoseconds: UInt32 = 0
    package var sendSpinNanoseconds: UInt32 = 0

    /// Generation of the slot that this record belongs to.
    package var generation: UInt64 = 0
    /// Descriptors of this process that refer to the socket. Threads that duplicate and close change it at once: by address.
    package var descriptorCount: Int32 = 0
    /// One of them.
    package var descriptor: Int32 = -1

    /// The catalogue entry and the descriptor of the companion socket; 0 = there is none.
    package var provider: UnsafePointer<ProviderTable>?
    package var companion: UInt = 0
    /// `CompanionPhase`.
    package var companionPhase: Int32 = 0
    /// Becomes readable when the peer rings; -1 before the session is up. Level-triggered until it is drained.
    package var notification: Int32 = -1

    /// Memory that the peer writes, and memory that I write for the peer (a mapping of the peer's window, or a mirror of
    /// it that is then sent with WSPRdmaWrite).
    package var local: UnsafeMutableRawPointer?
    package var remote: UnsafeMutableRawPointer?
    /// Not nil: `remote` is a mirror.
    package var writer: UnsafeMutablePointer<RemoteWriter>?
    /// `local` was mapped by the session, not by the provider.
    package var ownsLocal = false
    /// The socket is closed, and its windows and companion stay until the process ends: see `Session.end`.
    package var keepsWindows = false
    /// The descriptor under which the local window is exposed to the peer (WSD-M2), while `isExposed`.
    package var exposed = SOCKSWITCH_RDMA_DESCRIPTOR()
    package var isExposed = false

    /// The peer says that it is this very process.
    package var peerIsHere = false

    /// First registration in this process's epoll sets, 0 = none: see Switch/Readiness.
    package var firstRegistration: Int32 = 0
    /// Readiness of this process waits for both carriers: set and cleared under Readiness' lock of the socket.
    package var watchedAsDual: Bool = false
    /// A stream of small messages from a sender that is active now (`Session.notePace`): cycle counter before which looking is
    /// left off (0 = look) and that of the last receive, what this side had sent by then, and the fast receives in a row with
    /// the smallest of them in bytes. Under the receive lock.
    package var nextLook: UInt64 = 0
    package var lastReceive: UInt64 = 0
    package var sentBeforeReceive: UInt64 = 0
    package var fastReceives: UInt32 = 0
    package var smallestReceive: UInt32 = 0
    /// When the TCP socket was last looked at by a sender (cycle counter). Under the send lock.
    package var lastPeerCheck: UInt64 = 0
    /// The peer's credit when a sender was first seen to starve, and when that was (monotonic nanoseconds; 0 = it does not
    /// starve). Under the send lock.
    package var stalledCredit: UInt64 = 0
    package var stalledSince: UInt64 = 0

    /// Slot of the listener that accepted it, and that slot's generation; 0 = none.
    package var listener: Int32 = 0
    package var listenerGeneration: UInt64 = 0
    /// Of a listener: accepted sockets that may still be offered through its companion. Atomic, reached by address.
    package var dependents: UInt64 = 0
    /// Of a wildcard listener under `wildcard = per-interface`: slot of the first of its companions, one an address; of such
    /// a companion's record: the next one. 0 = none.
    package var firstAddressCompanion: Int32 = 0
    package var nextAddressCompanion: Int32 = 0
    /// In the switch's list of companions that wait for their provider.
    package var isPending = false
    package var nextPending: Int32 = 0
    package var options = RecordedOptions()
    /// Its session has been, or is to be, begun anew: it is announced like a connecting socket whichever end it is, and without
    /// a listener.
    package var rejoins = false
    /// The exec that is under way leaves it to the next image: `Departure`.
    package var departure: Int32 = 0
    /// `--upgrade eager`: announced, and the first data call, which waits for the companion, has not come yet.
    package var waitsForCompanion = false

    /// The exchange of WSD-N4: the peer's message and the operation that receives it.
    package var helloReceive = WSAOVERLAPPED()
    package var hello = InlineArray<256, UInt8>(repeating: 0)

    package init() {}

    /// Where the words at the beginning lie: key paths do not exist in Embedded Swift. Asserted by a test.
    package enum Offsets {
        package static var watchers: Int { 8 }
        package static var up: Int { 16 }
        package static var doorbellSleepers: Int { 24 }
        package static var lastEndCheck: Int { 32 }
        package static var sleepingCalls: Int { 40 }
        package static var replacer: Int { 48 }
        package static var receiveSpinNanoseconds: Int { 56 }
        package static var sendSpinNanoseconds: Int { 60 }
        package static var descriptorCount: Int { 72 }
    }
}

/// Values of `Connection.up`.
package enum Up {
    package static var no: UInt64 { 0 }
    package static var yes: UInt64 { 1 }
    /// Up, and whoever holds both locks wants to end it: no thread begins to look at the windows until that is decided.
    package static var undecided: UInt64 { 2 }
}

/// Values of `Connection.departure`.
package enum Departure {
    package static var none: Int32 { 0 }
    /// It may have a companion in the next image.
    package static var plain: Int32 { 1 }
    /// It had one in this image, and the peer has been told.
    package static var told: Int32 { 2 }
}

/// Values of `Connection.companionPhase`.
package enum CompanionPhase {
    /// No companion.
    package static var none: Int32 { 0 }
    /// Made, bound, options replayed.
    package static var bound: Int32 { 1 }
    /// Listening for companions (WSPListen done).
    package static var listening: Int32 { 2 }
    /// WSPConnect is under way.
    package static var connecting: Int32 { 3 }
    /// The listening companion was told of the accepted connection.
    package static var offered: Int32 { 4 }
    /// Connected; the sessions exchange their hellos.
    package static var negotiating: Int32 { 5 }
    /// The session is up.
    package static var up: Int32 { 6 }
}
