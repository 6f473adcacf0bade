import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// exec into a switched image (WSD-D1): a variable of the environment tells it which of the descriptors that it inherits are
// TCP sockets that the former image knew, so that `ps` shows them and listeners have their companions at once. It is an image
// without memory of what was, in a family of its own: the arena does not outlive exec, since the next program may be another
// user's, or not to be trusted with the family's memory. And who else holds a connection is not known without it (there may
// have been an image in between that is not switched), so connections stay on TCP.

/// Text of the variable: hexadecimal numbers between commas.
///
///     pid, then for each socket: descriptor, kind of the slot
struct InheritanceText {
    let start: UnsafeMutablePointer<CChar>
    let capacity: Int
    private var length = 0

    /// For two numbers more.
    var hasRoom: Bool { length &+ 36 < capacity }

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
func writeInheritance(_ text: inout InheritanceText, _ inherited: SlotSet) -> Bool {
    text.append(UInt64(UInt32(bitPattern: privateState.pointee.pid)))
    var count = 0
    var fd: Int32 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()), text.hasRoom {
        if let index = socketIndex(fd), inherited.contains(index) {
            let flags = ss_sys_fcntl(fd, F_GETFD, 0)
            if flags >= 0, flags & 1 == 0 {
                text.append(UInt64(fd))
                text.append(sessionOf(index).slot.kind.load())
                count &+= 1
            }
        }
        fd &+= 1
    }
    return count > 0
}

/// In the new image, called by the library's constructor, before there is another thread. Nothing that the text says can
/// harm another process: it is the program's own environment.
package func switchAdopt(_ text: UnsafePointer<CChar>) {
    var numbers = InheritanceReader(text)
    guard privateState.pointee.enabled, let pid = numbers.next(), pid == UInt64(ss_sys_getpid()) else { return }
    while let fd = numbers.nextDescriptor(), let kind = numbers.next() {
        guard descriptorEntry(fd) == 0, isStreamOfTCP(fd) else { continue }
        if kind == Slot.Kind.listening { adoptListener(fd) } else { trackOnTCP(fd, kind: kind) }
    }
}

/// A set of slot numbers, on the stack.
struct SlotSet {
    private var words = InlineArray<512, UInt64>(repeating: 0)

    mutating func insert(_ index: Int) { words[(index >> 6) & 511] |= 1 << UInt64(index & 63) }
    func contains(_ index: Int) -> Bool { words[(index >> 6) & 511] & 1 << UInt64(index & 63) != 0 }
}
