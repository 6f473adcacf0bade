import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
#endif

/// The program is about to use the descriptor by a call that reaches the kernel past the switch (fdopen, splice). A socket
/// that is still on TCP stays there for good (`Reason.unsupportedOption`). False: the session is up, and its data would be
/// missed. True for every descriptor that is no tracked socket.
package func switchKeepsOnTCP(_ fd: Int32) -> Bool {
    guard let index = socketIndex(fd) else { return true }
    if sessionOf(index).isDual { return false }
    keepOnTCP(index, .unsupportedOption)
    return true
}
