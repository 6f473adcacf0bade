import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// Sockets that somebody is going to use who does not know the switch (WSD-D1): another program after exec, the receiver of
// a passed descriptor, the stdio streams of this program. What they find is the kernel's socket, so it must be the whole
// stream: a session in use is ended where it is, and none is begun any more.

/// Who may use the socket past the switch from now on.
package enum HandOver {
    /// This process's next image.
    case image
    /// Somebody whom the family's table does not know and never will.
    case stranger
    /// libc's stdio in this process.
    case stdio
}

/// Takes the socket behind `fd` back to TCP and keeps it there. Sockets that are not connected yet will stay there;
/// listeners are left alone, since what they accept is a socket of its own. No effect on errno. May be called in a vfork
/// child, on its parent's tables.
///
/// `mayReplace`: the user wants this very descriptor, so another connection in its place serves, if that is the only way to
/// what a peer has left behind. A child that merely inherits it does not. `mayTake`: even if others who have the socket lose it
/// thereby; see `leaveRemainder`.
package func handOver(_ fd: Int32, _ index: Int, to user: HandOver, mayReplace: Bool = false, mayTake: () -> Bool = { false }) {
    let slot = sessionOf(index).slot
    let kind = slot.kind.load()
    guard kind == Slot.Kind.fresh || kind == Slot.Kind.connected || kind == Slot.Kind.accepted else { return }
    if user == .stranger { slot.flags.setBits(Slot.Flags.strangers) }
    // On TCP for another reason: that one stays.
    if slot.flags.load() & Slot.Flags.tcpOnly != 0, !sessionOf(index).isDual { return }
    if switchHandOver(fd, user == .stdio ? .unsupportedOption : .handedOver) || !mayReplace { return }
    var isMine = false
    let isLeft = leaveRemainder(fd, index) {
        isMine = mayTake()
        return isMine
    }
    if isLeft {
        if user == .stranger, !isForeignChild() { trackOnTCP(fd, kind: kind) }
    } else if isMine, isLost(fd, index) {
        // No descriptors, no memory, no process: rather an error than a stream without its middle.
        Session.reset(fd)
    }
}

/// Whether there are bytes that nobody will read: the ring has them, and whoever does not go on with this session has the socket.
private func isLost(_ fd: Int32, _ index: Int) -> Bool {
    let session = sessionOf(index)
    return session.isDual && !isForeignChild() && isAlone(session.slot) && session.hasStrandedBytes(fd)
}

/// `new` is going to be a further descriptor of the socket behind `old`. As one of the three standard streams it is stdio's,
/// which reads and writes inside libc, past the switch.
@inline(__always)
func handOverToStdio(_ old: Int32, _ index: Int, as new: Int32) {
    if isStandardStream(new) { handOver(old, index, to: .stdio) }
}

/// The image that has it reads and writes it. (At any other number a helper may have inherited it by mistake.)
@inline(__always)
func isStandardStream(_ fd: Int32) -> Bool { UInt32(bitPattern: fd) <= 2 }
