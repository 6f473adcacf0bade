#if !hasFeature(Embedded)
import CSocketSwitch
import Rendezvous
import SocketTable
import StreamRing

/// For tests: does for two sockets of the SharedMemory provider in this process what the service does for two processes.
///
/// Both are created or bound ones; `a` gets side 0. Afterwards both are connected and FD_CONNECT is up. 0 or an errno.
/// `doorbells`: a `DoorbellKind`.
package func sharedMemoryProviderPairLocally(_ a: SOCKET, _ b: SOCKET, doorbells kind: UInt32 = DoorbellKind.events) -> Int32 {
    guard let first = Companion(socket: a), let second = Companion(socket: b), a != b else { return ENOTSOCK }
    let segment = makeLocalSegment()
    guard segment >= 0 else { return -segment }
    var bells: (Int32, Int32) = (-1, -1)
    let made = Doorbells.make(kind, &bells)
    guard made == 0 else {
        _ = ss_sys_close(segment)
        return Int32(-made)
    }
    func duplicate(_ fd: Int32) -> Int32 { Int32(ss_sys_fcntl(fd, F_DUPFD_CLOEXEC, 0)) }
    let mask = lockProviders()
    defer { unlockProviders(mask) }
    let one = first.attach(
        segment: duplicate(segment), doorbell: duplicate(bells.0), peerDoorbell: duplicate(bells.1), doorbellKind: kind, side: 0)
    let two = second.attach(segment: segment, doorbell: bells.1, peerDoorbell: bells.0, doorbellKind: kind, side: 1)
    guard one == .none, two == .none else {
        first.detach()
        second.detach()
        return errorNumber(one == .none ? two : one)
    }
    for companion in [first, second] {
        companion.record.pointee.error = 0
        companion.state.store(CompanionState.connected)
        companion.raise(UInt32(FD_CONNECT))
    }
    return 0
}

/// A sealed memfd like the service's; its descriptor, or -errno.
package func makeLocalSegment() -> Int32 {
    let made = ss_sys_memfd_create("sockswitch segment", ss_mfd_cloexec | ss_mfd_allow_sealing)
    guard made >= 0 else { return Int32(made) }
    let segment = Int32(made)
    var result = ss_sys_ftruncate(segment, Int64(Segment.bytes))
    if result == 0 { result = ss_sys_fcntl(segment, ss_f_add_seals, Int(ss_seal_fixed_size)) }
    guard result == 0 else {
        _ = ss_sys_close(segment)
        return Int32(result)
    }
    return segment
}
#endif
