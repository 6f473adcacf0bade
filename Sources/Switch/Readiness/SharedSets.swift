import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// Epoll sets that several processes have, since they were there at a fork (WSD-D1). The kernel's list is one; what the
// processes remember of it is not. So what one of them changes must be in the kernel's list, in the program's own words.
// As soon as a child has used a set that it inherited (most never do, as one that saves a server's data):
//
//  - Before a process changes its registration of a socket that another process holds, too, the socket goes back to TCP
//    and stays there (`giveUpForRelatives`), and so does one whose one-shot registration has fired (`handOverFired`).
//  - A process that finds such a socket back on TCP looks at what the kernel's list says of it before it touches that
//    (`ReadinessRoot.follow`). What is still its own it gives back; what is not is another process's, and true.
//  - Where the hand-over is refused, since bytes lie unread that only the ring has, processes see what others have deleted,
//    but not what they have changed. Nor do they see what was changed before a child first used the set.
//
// Whatever nobody changes stays on the companion, for all of them.

/// Whether `socket`, about to be registered in `container` or changed there, must be told to the kernel in the program's words,
/// because another process may go on from there.
func changesForRelatives(_ container: EpollSet, _ socket: Int) -> Bool {
    let slot = sessionOf(socket).slot
    guard container.has(EpollSet.Flags.forked), slot.holders.load() != 1, slot.kind.load() != Slot.Kind.listening,
        let arena = privateState.pointee.arena, FamilyArena(arena).inheritedSetUses.load() != 0
    else { return false }
    // Who is alive need not be asked for what stays on TCP anyway.
    return staysOnTCP(socket) || !isAlone(slot)
}

/// Before such a change.
func giveUpForRelatives(_ fd: Int32, _ socket: Int) {
    if !staysOnTCP(socket) { _ = switchHandOver(fd, .sharedBeforeUpgrade) }
}

/// This process has handed a socket over, or deleted a registration of it, that others may remember otherwise.
func tellRelatives() {
    if let arena = privateState.pointee.arena { FamilyArena(arena).handOversAmongRelatives.add(1) }
}

private func staysOnTCP(_ socket: Int) -> Bool {
    let session = sessionOf(socket)
    return !session.isDual && session.has(Slot.Flags.tcpOnly)
}

extension EpollSet {
    /// Such a socket has gone back to TCP, or left a set, since this process last looked at its registrations here.
    @inline(__always) func hasToFollow(_ root: ReadinessRoot) -> Bool {
        has(Flags.forked) && handOversSeen != ReadinessRoot.handOversAmongRelatives
    }

    /// What this process has inherited and not used yet is most likely the parent's alone, who may have changed it meanwhile: the
    /// kernel's part of it stays as it is.
    func isParents(_ one: Registration) -> Bool { has(Flags.inherited) && sessionOf(one.socket).slot.holders.load() > 1 }

    /// A relative may have handed the socket over: what the kernel's list has is no longer ours to change.
    func isRelatives(_ one: Registration) -> Bool { has(Flags.forked) && !sessionOf(one.socket).isDual }

    /// Registrations of sockets that another process has handed over become plain. Without any lock.
    func followAll(_ root: ReadinessRoot) {
        handOversSeen = ReadinessRoot.handOversAmongRelatives
        root.forEachRegistration(of: self) { index, one in
            guard one.has(Registration.State.dual) else { return }
            root.underSocketLock(index, of: self) {
                followRelatives(root, one.socket)
                root.dropIfDeleted(index)
            }
        }
    }

    /// A one-shot registration has told this process something, and now waits for nobody: the other processes shall know.
    func handOverFired(_ root: ReadinessRoot) {
        flags.clearBits(Flags.fired)
        root.forEachRegistration(of: self) { _, one in
            guard one.has(Registration.State.dual), one.has(Registration.State.disabled), !isAlone(sessionOf(one.socket).slot) else { return }
            _ = switchHandOver(one.polled, .sharedBeforeUpgrade)
        }
    }
}

extension ReadinessRoot {
    /// Changes whenever a socket that several processes hold goes back to TCP, or leaves an epoll set while it cannot.
    static var handOversAmongRelatives: UInt32 {
        guard let arena = privateState.pointee.arena else { return 0 }
        return UInt32(truncatingIfNeeded: FamilyArena(arena).handOversAmongRelatives.load())
    }

    /// What a registration that has just stopped being dual is, by the kernel's list. False: it is ours still, or nobody can
    /// tell, and the caller tells the kernel. Under the locks of the socket and the set.
    func follow(_ index: UInt32) -> Bool {
        let one = registration(index)
        let own = Tag.make(self, index, one.generation, doorbell: false)
        switch KernelRegistration.find(one.descriptor, in: set(Int(one.set)).descriptor, preferring: own) {
        case .unknown:
            return false
        case .absent:
            one.insert(Registration.State.dead)
        case .found(let events, let data):
            if data == own { return false }
            if data & Tag.prefixMask == tagPrefix {
                // Fired, and given another tag: see `restoreKernel`.
                one.generation = one.generation & ~Tag.changeMask | Tag.generation(data) & Tag.changeMask
                one.insert(Registration.State.disabled | Registration.State.tagged)
            } else {
                one.events = events
                one.data = data
                one.remove(Registration.State.disabled | Registration.State.tagged)
            }
        }
        return true
    }
}

extension ReadinessRoot {
    /// A dual registration that another process has deleted goes, which can be found where the hand-over was refused. True: it
    /// is gone. Under the socket's lock.
    @discardableResult
    func dropIfDeleted(_ index: UInt32) -> Bool {
        let one = registration(index)
        guard one.isLive, one.has(Registration.State.dual), !one.isOrphan else { return false }
        let container = set(Int(one.set))
        guard changesForRelatives(container, one.socket) else { return false }
        let outcome = container.lock.lock()
        let isSilent = one.kernelEvents == 0
        if outcome == .acquired { container.lock.unlock() }
        guard !isSilent, case .absent = KernelRegistration.find(one.descriptor, in: container.descriptor, preferring: 0) else { return false }
        removeDoorbell(index)
        drop(index)
        return true
    }
}

/// What the kernel's list of an epoll set says of one descriptor.
private enum KernelRegistration {
    case unknown
    case absent
    case found(UInt32, UInt64)

    /// Longer lists are not read to the end: it takes as long as the list is, for each socket.
    private static var longest: Int { 65536 }

    /// Of several (a number that was closed and given anew) the one with the data `wanted`, or any.
    static func find(_ fd: Int32, in set: Int32, preferring wanted: UInt64) -> KernelRegistration {
        var path = InlineArray<32, CChar>(repeating: 0)
        var at = 0
        let directory: StaticString = "/proc/self/fdinfo/"
        while at < directory.utf8CodeUnitCount {
            path[at] = CChar(bitPattern: directory.utf8Start[at])
            at &+= 1
        }
        var divisor: Int32 = 1
        while set / divisor >= 10 { divisor &*= 10 }
        while divisor > 0 {
            path[at] = CChar(UInt8(ascii: "0")) &+ CChar(truncatingIfNeeded: set / divisor % 10)
            at &+= 1
            divisor /= 10
        }
        let opened = withUnsafeMutablePointer(to: &path) { ss_sys_open_to_read($0) }
        guard opened >= 0 else { return .unknown }
        defer { _ = ss_sys_close(Int32(opened)) }
        var storage = InlineArray<4096, UInt8>(repeating: 0)
        return withUnsafeMutablePointer(to: &storage) { pointer in
            let text = UnsafeMutableRawPointer(pointer)
            var line = RegistrationLine()
            var result = KernelRegistration.absent
            var read = 0
            while true {
                let count = ss_sys_read(Int32(opened), text, 4096)
                if count < 0 { return .unknown }
                if count == 0 { return result }
                for position in 0..<count
                where line.take(text.load(fromByteOffset: position, as: UInt8.self)) && line.descriptor == UInt64(fd) {
                    result = .found(UInt32(truncatingIfNeeded: line.events), line.data)
                    if line.data == wanted { return result }
                }
                read &+= count
                if read >= longest { return .unknown }
            }
        }
    }
}

/// A line of such a list: "tfd:", the descriptor in decimal, "events:" and "data:" in hexadecimal, and more.
private struct RegistrationLine {
    private(set) var descriptor: UInt64 = 0
    private(set) var events: UInt64 = 0
    private(set) var data: UInt64 = 0
    private var isRegistration = false
    private var hasEnded = true
    private var field = 0
    private var isNumber = false
    private var hasDigits = false

    /// One character. True: it ends a line that tells of a registration, which stands here until the next one.
    mutating func take(_ character: UInt8) -> Bool {
        if hasEnded {
            self = RegistrationLine()
            hasEnded = false
            isRegistration = character == UInt8(ascii: "t")
        }
        switch character {
        case UInt8(ascii: "\n"):
            hasEnded = true
            return isRegistration && field >= 3
        case UInt8(ascii: ":"):
            field &+= 1
            isNumber = true
            hasDigits = false
        case UInt8(ascii: "0")...UInt8(ascii: "9"): append(character &- UInt8(ascii: "0"))
        case UInt8(ascii: "a")...UInt8(ascii: "f"): append(character &- UInt8(ascii: "a") &+ 10)
        default: if hasDigits { isNumber = false }
        }
        return false
    }

    private mutating func append(_ digit: UInt8) {
        guard isNumber else { return }
        hasDigits = true
        switch field {
        case 1: descriptor = descriptor &* 10 &+ UInt64(digit)
        case 2: events = events << 4 | UInt64(digit)
        case 3: data = data << 4 | UInt64(digit)
        default: break
        }
    }
}
