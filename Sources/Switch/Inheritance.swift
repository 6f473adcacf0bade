import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// exec into a switched image (WSD-D1): a variable of the environment tells it which of the descriptors that it inherits are
// TCP sockets that the former image knew, so that `ps` shows them, listeners have their companions at once, and connections
// may have one again. It is an image in a family of its own: the arena does not outlive exec, since the next program may be
// another user's, or not to be trusted with the family's memory.
//
// A connection may move again if nobody else holds it. The former image knew that, and it is still so if there was no image
// in between that could have forked without being seen: one that is not switched passes the variable on with the rest of its
// environment. Nothing in the kernel counts images. So the former image says which file it executed, as whom, and how far
// the connection had been read and written; and it says so only if the environment that it passed loads the library. The
// next image believes it if it is that file, is run by the same user, and nobody has read or written meanwhile. Otherwise
// the connection stays on TCP.

/// Which file an image is made from.
package struct ImageIdentity {
    package var device: UInt64 = 0
    package var inode: UInt64 = 0
    package init() {}
    package init(device: UInt64, inode: UInt64) {
        self.device = device
        self.inode = inode
    }
}

/// Real and effective user of this process.
private func currentUsers() -> UInt64 {
    let real = ss_syscall6(Int(SYS_getuid), 0, 0, 0, 0, 0, 0)
    let effective = ss_syscall6(Int(SYS_geteuid), 0, 0, 0, 0, 0, 0)
    return UInt64(UInt32(truncatingIfNeeded: real)) << 32 | UInt64(UInt32(truncatingIfNeeded: effective))
}

/// Text of the variable: hexadecimal numbers between commas.
///
///     pid, device and inode of the next image's file, users,
///     then for each socket: descriptor, kind of the slot, `Departure`, bytes read, bytes written
struct InheritanceText {
    let start: UnsafeMutablePointer<CChar>
    let capacity: Int
    private var length = 0

    /// For five numbers more.
    var hasRoom: Bool { length &+ 90 < capacity }

    init(_ start: UnsafeMutablePointer<CChar>, _ capacity: Int) {
        self.start = start
        self.capacity = capacity
    }

    /// At most 17 characters; when they do not fit, nothing.
    mutating func append(_ number: UInt64) {
        guard length &+ 18 < capacity else { return }
        if length > 0 {
            start[length] = CChar(UInt8(ascii: ","))
            length &+= 1
        }
        var digits = max(1, (67 - number.leadingZeroBitCount) / 4)
        while digits > 0 {
            digits &-= 1
            let digit = UInt8(truncatingIfNeeded: number >> UInt64(digits &* 4) & 15)
            start[length] = CChar(digit < 10 ? UInt8(ascii: "0") &+ digit : UInt8(ascii: "a") &+ digit &- 10)
            length &+= 1
        }
        start[length] = 0
    }
}

/// Reads such a text.
struct InheritanceReader {
    private var at: UnsafePointer<CChar>

    init(_ text: UnsafePointer<CChar>) { at = text }

    /// nil: there is no further number, or what is there is none.
    mutating func next() -> UInt64? {
        var value: UInt64 = 0
        var digits = 0
        while digits <= 16 {
            let character = UInt8(bitPattern: at.pointee)
            switch character {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): value = value << 4 | UInt64(character &- UInt8(ascii: "0"))
            case UInt8(ascii: "a")...UInt8(ascii: "f"): value = value << 4 | UInt64(character &- UInt8(ascii: "a") &+ 10)
            case UInt8(ascii: ","), 0:
                if character != 0 { at += 1 }
                return digits > 0 ? value : nil
            default: return nil
            }
            at += 1
            digits &+= 1
        }
        return nil
    }

    mutating func nextDescriptor() -> Int32? {
        guard let value = next(), value < UInt64(SS_DESCRIPTORS) else { return nil }
        return Int32(value)
    }
}

/// Before exec: writes the variable's text for the sockets in `inherited`. False: there are none. Those that do not fit are
/// left out, and stay on TCP unseen.
func writeInheritance(_ text: inout InheritanceText, _ inherited: SlotSet, _ image: ImageIdentity) -> Bool {
    text.append(UInt64(UInt32(bitPattern: privateState.pointee.pid)))
    text.append(image.device)
    text.append(image.inode)
    text.append(currentUsers())
    var count = 0
    var fd: Int32 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()), text.hasRoom {
        if let index = socketIndex(fd), inherited.contains(index) {
            let flags = ss_sys_fcntl(fd, F_GETFD, 0)
            if flags >= 0, flags & 1 == 0 {
                let session = sessionOf(index)
                var departure = session.connection.pointee.departure
                var positions = (read: UInt64(0), written: UInt64(0))
                if departure != Departure.none {
                    if let found = Session.positionsOnTCP(fd) { positions = found } else { departure = Departure.none }
                }
                text.append(UInt64(fd))
                text.append(session.slot.kind.load())
                text.append(UInt64(UInt32(bitPattern: departure)))
                text.append(positions.read)
                text.append(positions.written)
                count &+= 1
            }
        }
        fd &+= 1
    }
    return count > 0
}

/// In the new image, called by the library's constructor, before there is another thread. Nothing that the text says can
/// harm another process: it is the program's own environment. `isImage`: whether this is the file in question.
package func switchAdopt(_ text: UnsafePointer<CChar>, isImage: (ImageIdentity) -> Bool = { _ in false }) {
    var numbers = InheritanceReader(text)
    guard privateState.pointee.enabled, let pid = numbers.next(), pid == UInt64(ss_sys_getpid()), let device = numbers.next(),
        let inode = numbers.next(), let users = numbers.next()
    else { return }
    let isNext = inode != 0 && users == currentUsers() && isImage(ImageIdentity(device: device, inode: inode))
    while let fd = numbers.nextDescriptor(), let kind = numbers.next(), let departure = numbers.next(), let read = numbers.next(),
        let written = numbers.next()
    {
        guard descriptorEntry(fd) == 0, isStreamOfTCP(fd) else { continue }
        if kind == Slot.Kind.listening {
            adoptListener(fd)
        } else if isNext, departure != UInt64(UInt32(bitPattern: Departure.none)), let now = Session.positionsOnTCP(fd),
            now == (read, written)
        {
            adoptConnection(fd, kind: kind, hasMoved: departure == UInt64(UInt32(bitPattern: Departure.told)))
        } else {
            trackOnTCP(fd, kind: kind)
        }
    }
}

/// Tracks a connection that this process alone holds, in its next image: it may have a companion again.
private func adoptConnection(_ fd: Int32, kind: UInt64, hasMoved: Bool) {
    let flags = ss_sys_fcntl(fd, F_GETFL, 0)
    let index = track(fd, kind: Slot.Kind.fresh, nonBlocking: flags >= 0 && flags & Int(O_NONBLOCK) != 0)
    guard index != 0 else { return }
    let slot = sessionOf(index).slot
    guard recordAddresses(fd, slot) else {
        slot.flags.setBits(Slot.Flags.strangers)
        return keepOnTCP(index, .handedOver)
    }
    let isConnector = kind == Slot.Kind.connected
    slot.kind.store(isConnector ? Slot.Kind.connected : Slot.Kind.accepted)
    if slot.flags.load() & Slot.Flags.tcpOnly != 0 {
        // The reason stands already.
    } else if !policyAllows(isConnector ? slot.peerAddress : slot.localAddress) {
        keepOnTCP(index, .policy)
    } else if providerServing(slot.peerAddress, asListener: false) == nil {
        keepOnTCP(index, .noProvider)
    } else {
        prepareToRejoin(index)
        noteInheritedSendBuffer(fd, sessionOf(index))
        slot.reason.store(Reason.notWorthItYet.rawValue)
        // It has proved worth it.
        if hasMoved { slot.sendOperations.store(4) }
    }
    introduceToService()
}

/// A set of slot numbers, on the stack.
struct SlotSet {
    private var words = InlineArray<512, UInt64>(repeating: 0)

    mutating func insert(_ index: Int) { words[(index >> 6) & 511] |= 1 << UInt64(index & 63) }
    func contains(_ index: Int) -> Bool { words[(index >> 6) & 511] & 1 << UInt64(index & 63) != 0 }
}
