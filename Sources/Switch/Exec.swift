import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// exec, and posix_spawn and its kin: another image gets the descriptors that are not close-on-exec (WSD-D1). It may know
// nothing of the switch, so those sockets are handed over before it exists.
//
// A vfork child runs on its parent's memory with descriptors of its own. It hands over on its parent's behalf, and touches
// no table: what it closes, moves and marks is not the parent's.

/// Before this process's image is replaced, or, in a vfork child, its parent's is left. No memory is needed, errno stays.
///
/// True: the next image, should it be switched, can go on with what is in `text`, the value of SOCKSWITCH_INHERITED.
/// `findImage` says which file it is, if it will run under the switch; it is asked only when there is a connection to leave.
package func switchBeforeExec(
    _ text: UnsafeMutablePointer<CChar>?, _ capacity: Int, findImage: (inout ImageIdentity) -> Bool = { _ in false }
) -> Bool {
    guard switchIsActive, let memory = privateState.pointee.arena else { return false }
    if isForeignChild() {
        handOverInheritable { fd, index in handOver(fd, index, to: .stranger, mayReplace: true, mayTake: { isStandardStream(fd) }) }
        return false
    }
    var inherited = SlotSet()
    var image = ImageIdentity()
    var isAsked = false
    var isKnown = false
    var deadline: UInt64 = 0
    handOverInheritable { fd, index in
        inherited.insert(index)
        sessionOf(index).connection.pointee.departure = Departure.none
        if text != nil, sessionOf(index).slot.kind.load() >= Slot.Kind.connected {
            if !isAsked { isKnown = findImage(&image) }
            isAsked = true
            if isKnown, leaveToNextImage(fd, index) { return }
        }
        handOver(fd, index, to: .image, mayReplace: true, mayTake: { isStandardStream(fd) || isSoonAlone(index, &deadline) })
    }
    switchBeforeExit(closes: false)
    // The others close with the image. This process, which lives on under its number, must not seem to hold them.
    let arena = FamilyArena(memory)
    let process = Int(privateState.pointee.process)
    guard process >= 0 else { return false }
    for index in arena.usedSlots {
        if !inherited.contains(index) { arena.releaseUnlessLast(index, process: process) }
    }
    guard let text else { return false }
    var writer = InheritanceText(text, capacity)
    return writeInheritance(&writer, inherited, image)
}

/// exec returned: the program goes on. What was handed over stays on TCP; what was left to the next image may move again.
package func switchExecFailed() {
    guard switchIsActive, let memory = privateState.pointee.arena, !isForeignChild(), privateState.pointee.process >= 0 else { return }
    let arena = FamilyArena(memory)
    let process = Int(privateState.pointee.process)
    var fd: Int32 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()) {
        if let index = socketIndex(fd) {
            let isSame = arena.slot(index).generation.load() == sessionOf(index).connection.pointee.generation
            // Another process has closed it in between, as the last one that seemed to hold it: it is a plain socket now.
            if !isSame || !arena.holdAgain(index, process: process) {
                clearDescriptorEntry(fd)
            } else {
                sessionOf(index).goOnAfterExec()
                returnFromDeparture(index)
            }
        }
        fd &+= 1
    }
}

/// Before posix_spawn, system or popen make a child: its image gets what is not close-on-exec.
package func switchBeforeSpawn() {
    guard switchIsActive else { return }
    handOverInheritable { fd, index in handOver(fd, index, to: .stranger) }
}

/// The program is going to pass `fd` to a child that execs (a dup2 in the file actions of posix_spawn).
package func switchPassesToChild(_ fd: Int32) {
    if let index = socketIndex(fd) { handOver(fd, index, to: .stranger, mayReplace: !isWaitedFor(index), mayTake: { true }) }
}

/// Whether an epoll set of this process, which knows sockets and not numbers, has it.
func isWaitedFor(_ index: Int) -> Bool { sessionOf(index).connection.pointee.firstRegistration != 0 }

/// A vfork child makes `fd` outlive its exec, by duplicating it or by taking close-on-exec off. Now, while it still has
/// everything: before the exec it may close what the parent's epoll sets need.
func handOverBeforeExec(_ fd: Int32, as new: Int32) {
    guard let index = socketIndex(fd), isStill(fd, index) else { return }
    handOver(fd, index, to: .stranger, mayReplace: true, mayTake: { isStandardStream(new) })
}

/// Whether nobody else has the socket, or soon: super-servers fork, and close what is the child's. `deadline` of all that one call
/// waits for: 0 at first.
func isSoonAlone(_ index: Int, _ deadline: inout UInt64) -> Bool {
    while !isAlone(sessionOf(index).slot) {
        let now = ss_monotonic_ns()
        if deadline == 0 { deadline = now &+ 50_000_000 }
        if now >= deadline { return false }
        var pause = timespec(tv_sec: 0, tv_nsec: 1_000_000)
        _ = ss_sys_brief_ppoll(nil, 0, &pause)
    }
    return true
}

/// Names every tracked socket that the next image inherits to `handOver`.
private func handOverInheritable(_ handOver: (Int32, Int) -> Void) {
    let foreign = isForeignChild()
    var fd: Int32 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()) {
        if let index = socketIndex(fd) {
            let flags = ss_sys_fcntl(fd, F_GETFD, 0)
            if flags >= 0, flags & 1 /* FD_CLOEXEC */ == 0, !foreign || isStill(fd, index) {
                handOver(fd, index)
            }
        }
        fd &+= 1
    }
}

/// Whether a vfork child's `fd` is what the parent's table says: the child may have put something else there.
func isStill(_ fd: Int32, _ index: Int) -> Bool {
    let slot = sessionOf(index).slot
    guard slot.kind.load() >= Slot.Kind.connected else { return true }
    var storage = InlineArray<160, UInt8>(repeating: 0)
    return withUnsafeMutablePointer(to: &storage) { pointer in
        let bytes = UnsafeMutableRawPointer(pointer)
        let address = CompactAddress(bytes + 128)
        var length: UInt32 = 128
        // (After the end of both halves the kernel does not know the peer any more.)
        let result = ss_sys_getpeername(fd, bytes, &length)
        guard result == -Int(ENOTCONN) || result == 0 && address.set(bytes, length: Int(length)) && address.port == slot.peerAddress.port
        else { return false }
        length = 128
        // The ports alone: a program may connect to the wildcard address, which the kernel takes for another.
        return ss_sys_getsockname(fd, bytes, &length) == 0 && address.set(bytes, length: Int(length))
            && address.port == slot.localAddress.port
    }
}
