import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// Descriptors that go to another process, or come from one (WSD-D1): SCM_RIGHTS over Unix sockets, pidfd_getfd. Who
// receives may know nothing of the switch, and who sent may have gone on using it, so such a socket is on TCP for good.

/// Whether a control message can concern the switch: false in a process without stream sockets.
@inline(__always)
package var switchPassesDescriptors: Bool { switchIsActive }

/// Before sendmsg: hands over the tracked sockets among the descriptors that the message passes, and those in epoll sets among
/// them. Memory that the program has not is left to the kernel to refuse.
package func switchWillSend(_ message: UnsafePointer<msghdr>) {
    var deadline: UInt64 = 0
    ControlMessages(of: message).forEachDescriptor { fd in
        let entry = descriptorEntry(fd)
        switch entryKind(entry) {
        case DescriptorKind.socket:
            let index = entryIndex(entry)
            handOver(fd, index, to: .stranger, mayReplace: !isWaitedFor(index), mayTake: { isSoonAlone(index, &deadline) })
        case DescriptorKind.epollSet: readinessSetPassed(entryIndex(entry))
        default: break
        }
    }
}

/// After recvmsg: whatever stood in the table under the numbers that have just come is gone, and TCP sockets among them are
/// known from now on.
package func switchHasReceived(_ message: UnsafePointer<msghdr>) {
    ControlMessages(of: message).forEachDescriptor { trackPassed($0) }
}

/// `fd` came from another process by pidfd_getfd, or is a socket of our own in a way that the table cannot tell.
package func switchHasTaken(_ fd: Int32) { trackPassed(fd) }

/// Tracks a TCP socket that another process made. A connected one stays on TCP: who else holds it is not known.
private func trackPassed(_ fd: Int32) {
    forgetStale(fd)
    guard privateState.pointee.enabled, isStreamOfTCP(fd) else { return }
    if isListening(fd) {
        adoptListener(fd)
        return
    }
    trackOnTCP(fd, kind: Slot.Kind.accepted)
}

/// Tracks a TCP socket that somebody else made, and may still hold: it stays on TCP. `kind`: how it is shown once connected.
func trackOnTCP(_ fd: Int32, kind: UInt64) {
    let flags = ss_sys_fcntl(fd, F_GETFL, 0)
    let index = track(fd, kind: Slot.Kind.fresh, nonBlocking: flags >= 0 && flags & Int(O_NONBLOCK) != 0)
    guard index != 0 else { return }
    let slot = sessionOf(index).slot
    slot.flags.setBits(Slot.Flags.tcpOnly | Slot.Flags.strangers)
    slot.reason.store(Reason.handedOver.rawValue)
    guard recordAddresses(fd, slot) else { return }
    slot.kind.store(kind == Slot.Kind.connected ? kind : Slot.Kind.accepted)
    handOverSameConnection(index)
    introduceToService()
}

/// The family itself may know the connection already: taken with pidfd_getfd from one of its processes, or passed in a way
/// that was not seen.
private func handOverSameConnection(_ new: Int) {
    guard let memory = privateState.pointee.arena else { return }
    let arena = FamilyArena(memory)
    let addresses = arena.slot(new).localAddress.base
    for index in arena.usedSlots {
        let session = sessionOf(index)
        if index != new, session.slot.kind.load() >= Slot.Kind.connected, memcmp(session.slot.localAddress.base, addresses, 64) == 0 {
            let record = session.connection
            if Int32(bitPattern: session.descriptorCount.load()) > 0, record.pointee.generation == session.slot.generation.load() {
                handOver(record.pointee.descriptor, index, to: .stranger)
            } else {
                session.slot.flags.setBits(Slot.Flags.tcpOnly | Slot.Flags.strangers)
            }
        }
    }
}

/// `ps` shows every process that has a connection, whatever becomes of it: the first one says so.
@inline(__always)
func introduceOnce() {
    if privateState.pointee.isIntroduced { return }
    privateState.pointee.isIntroduced = true
    introduceToService()
}

/// A socket that will never be announced is to be seen all the same.
func introduceToService() {
    if privateState.pointee.onlyProvider == nil { sharedMemoryProviderIntroduce() }
}

// MARK: Listeners from elsewhere

/// A listener that this process did not make (inherited over exec, passed): it is given its companion, so that what it
/// accepts can move. Harmless for anything else. Does not touch errno.
package func adoptListener(_ fd: Int32) {
    guard descriptorEntry(fd) == 0, privateState.pointee.enabled, isStreamOfTCP(fd), isListening(fd), !isForeignChild() else { return }
    let index = track(fd, kind: Slot.Kind.fresh, nonBlocking: false)
    // The backlog is not to be had; the kernel keeps its own, and the companion's bounds nothing.
    guard index != 0 else { return }
    noteInheritedSendBuffer(fd, sessionOf(index))
    noteOptionsToInherit(fd, sessionOf(index).slot)
    listenWithCompanion(fd, index, Int32(SOMAXCONN))
}

func isStreamOfTCP(_ fd: Int32) -> Bool {
    var proto: Int32 = 0
    var length = UInt32(MemoryLayout<Int32>.size)
    return ss_sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &proto, &length) == 0 && proto == Int32(IPPROTO_TCP)
}

private func isListening(_ fd: Int32) -> Bool {
    var listens: Int32 = 0
    var length = UInt32(MemoryLayout<Int32>.size)
    return ss_sys_getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens != 0
}

/// Both addresses of a connected socket. False: it is not connected.
func recordAddresses(_ fd: Int32, _ slot: Slot) -> Bool {
    var storage = InlineArray<128, UInt8>(repeating: 0)
    var length: UInt32 = 128
    let hasPeer = withUnsafeMutablePointer(to: &storage) {
        ss_sys_getpeername(fd, $0, &length) == 0 && slot.peerAddress.set($0, length: Int(length))
    }
    return recordLocalAddress(fd, slot) && hasPeer
}

// MARK: Control messages

/// The control messages of a msghdr of the program's.
private struct ControlMessages {
    private var base: UnsafeRawPointer?
    private var length = 0

    init(of message: UnsafePointer<msghdr>) {
        var header = msghdr()
        guard ss_copy_program_memory(&header, message, MemoryLayout<msghdr>.size) == 0 else { return }
        base = UnsafeRawPointer(header.msg_control)
        length = Int(header.msg_controllen)
    }

    /// The descriptors of its SCM_RIGHTS messages, as far as they can be read.
    func forEachDescriptor(_ call: (Int32) -> Void) {
        guard let base else { return }
        var offset = 0
        var head = cmsghdr()
        let headBytes = MemoryLayout<cmsghdr>.size
        while offset <= length &- headBytes, ss_copy_program_memory(&head, base + offset, headBytes) == 0 {
            let size = Int(head.cmsg_len)
            guard size >= headBytes, size <= length &- offset else { return }
            if head.cmsg_level == SOL_SOCKET, head.cmsg_type == Int32(SCM_RIGHTS) {
                var at = offset &+ headBytes
                var fd: Int32 = -1
                while at &+ 4 <= offset &+ size, ss_copy_program_memory(&fd, base + at, 4) == 0 {
                    call(fd)
                    at &+= 4
                }
            }
            offset = (offset &+ size &+ 7) & ~7
        }
    }
}
