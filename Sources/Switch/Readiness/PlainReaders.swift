import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

/// The plain sockets that a thread waits for in the kernel alone: while it does, nobody may invite their peers to leave
/// TCP, since the thread could not see the cut. 16 bytes a socket: the index of its slot, and the ticket of the count.
struct PlainReaders {
    let memory: UnsafeMutableRawPointer
    private(set) var count = 0

    static var bytesEach: Int { 16 }

    init(_ memory: UnsafeMutableRawPointer) { self.memory = memory }

    /// Counts this thread in. False: the socket has become dual, and it is not counted.
    mutating func enter(_ socket: Int) -> Bool {
        let slot = sessionOf(socket).slot
        let ticket = slot.plainReaders.enter()
        // pairs with invite, which looks at plainReaders after `mode` was set
        if slot.mode.loadSequential() == Slot.Mode.dual {
            slot.plainReaders.leave(ticket)
            return false
        }
        memory.storeBytes(of: UInt64(socket), toByteOffset: count * 16, as: UInt64.self)
        memory.storeBytes(of: ticket, toByteOffset: count * 16 + 8, as: UInt64.self)
        count &+= 1
        return true
    }

    /// Counts it out everywhere.
    mutating func leave() {
        while count > 0 {
            count &-= 1
            let slot = sessionOf(Int(memory.load(fromByteOffset: count * 16, as: UInt64.self))).slot
            slot.plainReaders.leave(memory.load(fromByteOffset: count * 16 + 8, as: UInt64.self))
        }
    }
}
