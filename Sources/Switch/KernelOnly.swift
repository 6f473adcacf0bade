import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
#endif

/// The program makes an io_uring: from now on every socket of this process, and of its children, stays on TCP.
package func switchRingIsMade() {
    if privateState.pointee.hasRing { return }
    privateState.pointee.hasRing = true
    var fd: Int32 = 0
    while fd < privateState.pointee.highestDescriptor {
        if let index = socketIndex(fd) {
            if switchKeepsOnTCP(fd) { sessionOf(index).slot.reason.store(Reason.ioUring.rawValue) }
        }
        fd &+= 1
    }
}

/// The program is about to use the descriptor by a call that reaches the kernel past the switch (fdopen, splice). A socket
/// that is still on TCP stays there for good (`Reason.unsupportedOption`). False: the session is up, and its data would be
/// missed. True for every descriptor that is no tracked socket.
package func switchKeepsOnTCP(_ fd: Int32) -> Bool {
    guard let index = socketIndex(fd) else { return true }
    if sessionOf(index).isDual { return false }
    keepOnTCP(index, .unsupportedOption)
    return true
}
