import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// One stream, two carriers: the session of one connected socket, as this process sees it.
///
/// A value of two pointers; copying it copies nothing. See Documentation/Protocol.md.
package struct Session {
    package let slot: Slot
    package let connection: UnsafeMutablePointer<Connection>

    @inline(__always)
    package init(slot: Slot, connection: UnsafeMutablePointer<Connection>) {
        self.slot = slot
        self.connection = connection
    }

    /// Data calls go through the session (else: plain kernel calls).
    @inline(__always)
    package var isDual: Bool { slot.mode.load() == Slot.Mode.dual }
}
