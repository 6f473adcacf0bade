import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// `--upgrade eager`: what runs, runs over companions as early and as completely as possible, for tests and for seeing what
// moving costs. A connection is announced when it is made instead of when it proved worth it, its first data call waits for a
// moment until both ends are there, and the invitation follows at once.

/// How long the first data call of a connection waits. The other end may be this very thread, so nothing depends on its
/// coming.
private var patienceNanoseconds: UInt64 { 20_000_000 }

/// After connect, accept, or a look at SO_ERROR: announces the connection if it is established. (On this host it mostly is
/// when a non-blocking connect has just said EINPROGRESS.)
@inline(__always)
func announceEagerly(_ fd: Int32, _ index: Int) {
    if privateState.pointee.eager { announceAtOnce(fd, index) }
}

@inline(never)
private func announceAtOnce(_ fd: Int32, _ index: Int) {
    let session = sessionOf(index)
    let connection = session.connection
    guard session.slot.kind.load() >= Slot.Kind.connected, !session.has(Slot.Flags.tcpOnly), !session.isDual,
        connection.pointee.companionPhase <= CompanionPhase.bound, !connection.pointee.waitsForCompanion, isConnected(fd)
    else { return }
    connection.pointee.waitsForCompanion = true
    considerCompanion(fd, index)
}

/// Before a plain data call: waits until the other end has been found and has invited. True: the session is up.
@inline(__always)
func movesEagerly(_ fd: Int32, _ index: Int) -> Bool {
    privateState.pointee.eager && waitForCompanion(fd, index)
}

@inline(never)
private func waitForCompanion(_ fd: Int32, _ index: Int) -> Bool {
    let session = sessionOf(index)
    let connection = session.connection
    guard connection.pointee.waitsForCompanion else { return false }
    connection.pointee.waitsForCompanion = false
    let deadline = ss_monotonic_ns() &+ patienceNanoseconds
    while ss_monotonic_ns() < deadline {
        let phase = connection.pointee.companionPhase
        guard phase >= CompanionPhase.connecting, phase <= CompanionPhase.up, !session.isInvited else { break }
        considerCompanion(fd, index)
        _ = ss_sys_sched_yield()
    }
    return session.isDual
}

/// The session has just come up, in a call of the program on whichever socket: invites now instead of in the next read.
func inviteEagerly(_ index: Int) {
    guard privateState.pointee.eager else { return }
    let session = sessionOf(index)
    session.maintain(session.connection.pointee.descriptor)
}

private func isConnected(_ fd: Int32) -> Bool {
    var storage = InlineArray<128, UInt8>(repeating: 0)
    var length: UInt32 = 128
    return withUnsafeMutablePointer(to: &storage) { ss_sys_getpeername(fd, $0, &length) == 0 }
}
