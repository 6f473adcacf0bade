import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import SocketTable
import StreamRing
#endif

/// What the built-in providers know in this process, in zero-initialised storage of the C shim. A forked child starts
/// with a copy, which `sharedMemoryProviderAfterForkInChild` puts in order.
///
/// Everything below the first line is read and written under the providers' lock, unless it says otherwise.
package struct ProviderState {
    // The first 72 bytes are words, reached through `Word`, `HalfWord` and `FamilyLock` at these offsets.
    static var lockOffset: Int { 0 }
    /// Descriptors that the library keeps (`HalfWord`).
    static var ownDescriptorsOffset: Int { 16 }
    /// Descriptors that the program is known to have (`HalfWord`).
    static var programDescriptorsOffset: Int { 20 }
    /// Value of the process's mailbox word up to which the service's packets were read (`Word`).
    static var mailboxSeenOffset: Int { 24 }
    /// Announcements without an answer (`HalfWord`).
    static var outstandingOffset: Int { 32 }
    /// 1 while the service may not know of a listening companion (`HalfWord`).
    static var unregisteredOffset: Int { 36 }
    /// The companion records (CompanionRecord.swift): their address, how many were ever used, the free ones (`Word`).
    static var poolOffset: Int { 40 }
    static var usedRecordsOffset: Int { 48 }
    static var freeRecordsOffset: Int { 56 }
    /// How often the library began, and ended, to make a descriptor its own or to close one (`HalfWord`).
    static var ownMovesBegunOffset: Int { 64 }
    static var ownMovesEndedOffset: Int { 68 }

    var words: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)

    /// Heads of doubly linked lists of records.
    var listening: RecordIndex
    var outstanding: RecordIndex

    /// From WSPStartupEx (WSD-I3): constant after it.
    var upCalls: WSPUPCALLTABLE
    /// Calls of WSPStartupEx less calls of WSPCleanup.
    var startCount: Int32

    // The rendezvous connection: see RendezvousClient.swift.
    /// Plus one, so that zeroed storage means "none".
    var connectionPlusOne: Int32
    /// Raised with every connection: what was told over an earlier one is forgotten.
    var connectionEpoch: UInt64
    /// Not before this time (monotonic nanoseconds) is the service tried again, and the wait after that.
    var nextConnect: UInt64
    var connectBackOff: UInt64
    /// When packets were last looked for (monotonic nanoseconds).
    var lastLook: UInt64
    var connectedAt: UInt64
    /// `Reason` for which there is no connection.
    var connectionReason: Int32
    /// What getpid() said at configuration and in the hook of fork: another pid means a raw clone.
    var pid: Int32

    // Configuration.
    var arenaDescriptor: Int32
    var process: Int32
    var arena: UnsafeMutableRawPointer?
    var servicePathLength: Int32

    // Addresses: see AddressList.swift.
    var addressSocketPlusOne: Int32
    /// Changes noticed so far, and how many of them each provider has reported.
    var addressChanges: UInt64
    var addressChangesReported: (tcpip: UInt64, sharedMemory: UInt64)
    var lastAddressReport: UInt64

    /// Offset of the service's path within the storage: at most 107 bytes, zero-terminated.
    static var servicePathOffset: Int { 2048 }
}

@inline(__always)
var providerState: UnsafeMutablePointer<ProviderState> {
    ss_provider_state_address().assumingMemoryBound(to: ProviderState.self)
}

@inline(__always)
func providerWord(_ offset: Int) -> Word { Word(ss_provider_state_address(), offset) }

@inline(__always)
func providerHalfWord(_ offset: Int) -> HalfWord { HalfWord(ss_provider_state_address(), offset) }

/// Takes the providers' lock, with every signal blocked, so that no handler can come in between or leave with
/// `longjmp`. Held for a few system calls at most; never while foreign code (an up-call, a condition function) runs.
/// Returns the signal mask to give to `unlockProviders`.
func lockProviders() -> UInt64 {
    var all = UInt64.max
    var before: UInt64 = 0
    _ = ss_sys_sigprocmask(SIG_SETMASK, &all, &before)
    _ = FamilyLock(ss_provider_state_address(), ProviderState.lockOffset).lock()
    return before
}

func unlockProviders(_ mask: UInt64) {
    FamilyLock(ss_provider_state_address(), ProviderState.lockOffset).unlock()
    var before = mask
    _ = ss_sys_sigprocmask(SIG_SETMASK, &before, nil)
}

/// SOCKET_ERROR, with the error number stored.
@inline(__always)
func socketError(_ error: UnsafeMutablePointer<Int32>?, _ number: Int32) -> Int32 {
    error?.pointee = number
    return -1
}

/// INVALID_SOCKET, with the error number stored.
@inline(__always)
func invalidSocket(_ error: UnsafeMutablePointer<Int32>?, _ number: Int32) -> SOCKET {
    error?.pointee = number
    return SOCKET.max
}
