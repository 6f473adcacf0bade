import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import SocketTable
#endif

// Programs call select(getdtablesize(), …) with sets of 1,024 bits. The kernel takes no more of a set than its table of
// descriptors is long (the power of two above the highest that was ever open), so natively that works however high
// RLIMIT_NOFILE is. With the library's own descriptors the table is 16,384 long, and so remains, even over exec: the kernel
// would read and overwrite what lies behind the sets.

/// The count with which the kernel shall be asked instead of `count`: not more than the table would be long without the
/// library's descriptors. Any thread and any handler; errno stays, and the sets are not written.
///
/// Up to 1,024, as long as an `fd_set` is, nothing is taken away. (Natively a table can be shorter. What a program asks for
/// was open once, so it is in the table natively; here it must be, too, or a closed descriptor were no error any more.)
@inline(__always)
package func switchSelectLength(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?, _ except: UnsafeMutableRawPointer?
) -> Int32 {
    count <= SelectLength.ofSet ? count : SelectLength(count: count, read: read, write: write, except: except).decide()
}

private struct SelectLength {
    let count: Int32
    let read: UnsafeMutableRawPointer?
    let write: UnsafeMutableRawPointer?
    let except: UnsafeMutableRawPointer?

    /// Bits of an `fd_set`.
    static var ofSet: Int32 { 1024 }
    /// What a look at the descriptors found.
    private static var unknown: Int32 { -1 }

    @inline(never)
    func decide() -> Int32 {
        // No system call may be made: what the switch knew of the program's descriptors. A higher one is overlooked;
        // the program's memory is not overwritten for its sake.
        if privateState.pointee.isConfined { return ownDescriptorCount > 0 ? highestNoted() : count }
        if !SelectLength.tableIsLong() { return SelectLength.ofSet }
        var round = 0
        while round < 64 {
            // A descriptor that becomes the library's own, or was one, looks like the program's for a moment.
            if let moves = ownDescriptorMoves() {
                var found = highestListed()
                if found == SelectLength.unknown { found = highestAmongSets() }
                if found <= SelectLength.ofSet || ownDescriptorMoves() == moves { return found }
            }
            _ = ss_sys_sched_yield()
            round &+= 1
        }
        return highestNoted()
    }

    private func highestNoted() -> Int32 { length(Int32(truncatingIfNeeded: highestDescriptor.load()) &- 1) }

    /// The length of the table if `fd` were the highest, within `count`.
    private func length(_ fd: Int32) -> Int32 {
        if fd < SelectLength.ofSet { return SelectLength.ofSet }
        return fd >= 1 << 30 ? count : min(count, 1 << (32 &- Int32(fd.leadingZeroBitCount)))
    }

    /// Whether the kernel looks at bit 1,024. One that is closed would be an error then, and one that is open comes back as 0
    /// or counts; only behind its table it is overlooked.
    private static func tableIsLong() -> Bool {
        var set = InlineArray<17, UInt64>(repeating: 0)
        set[16] = 1
        var now = timespec(tv_sec: 0, tv_nsec: 0)
        let result = withUnsafeMutablePointer(to: &set) { ss_sys_pselect6(ofSet &+ 1, $0, nil, nil, &now, nil) }
        return result != 0 || set[16] == 0
    }

    // MARK: The list in /proc

    /// By the list of the thread's descriptors. Once one is found only those beyond the table that it needs matter, so the
    /// system calls are few however many descriptors there are; the kernel makes an inode for each entry, so the buffer
    /// is small. The list takes a descriptor; no handler runs meanwhile, that could leave it behind.
    private func highestListed() -> Int32 {
        let path: StaticString = "/proc/thread-self/fd"
        ss_enter_section()
        defer { ss_leave_section() }
        let opened = ss_sys_open_to_read(UnsafeRawPointer(path.utf8Start).assumingMemoryBound(to: CChar.self))
        guard opened >= 0 else { return SelectLength.unknown }
        defer { _ = ss_sys_close(Int32(opened)) }
        var storage = InlineArray<8, UInt64>(repeating: 0)
        return withUnsafeMutablePointer(to: &storage) { pointer in
            var result = SelectLength.ofSet
            var next = result
            while result < count {
                while entryKind(descriptorEntry(next)) == DescriptorKind.own { next &+= 1 }
                // The position in the list is the number plus 2.
                guard ss_sys_lseek(Int32(opened), Int64(next) + 2, SEEK_SET) >= 0 else { return SelectLength.unknown }
                let bytes = ss_sys_getdents64(Int32(opened), pointer, 64)
                if bytes == 0 { break }
                let before = next
                var at = 0
                while at &+ 20 <= bytes {
                    let entry = UnsafeMutableRawPointer(pointer) + at
                    let size = Int(entry.load(fromByteOffset: 16, as: UInt16.self))
                    guard size >= 20, at &+ size <= bytes else { return SelectLength.unknown }
                    let fd = SelectLength.number(entry + 19, size &- 19)
                    at &+= size
                    if fd < next { continue }
                    next = fd &+ 1
                    if fd == Int32(opened) || entryKind(descriptorEntry(fd)) == DescriptorKind.own { continue }
                    result = length(fd)
                    next = result
                }
                if next == before { return SelectLength.unknown }
            }
            return result
        }
    }

    /// The number in a name; -1: it is none.
    private static func number(_ name: UnsafeMutableRawPointer, _ room: Int) -> Int32 {
        var value: Int32 = 0
        var at = 0
        while at < room {
            let digit = name.load(fromByteOffset: at, as: UInt8.self)
            if digit == 0 { return at > 0 ? value : -1 }
            guard digit >= UInt8(ascii: "0"), digit <= UInt8(ascii: "9"), value < 100_000_000 else { return -1 }
            value = value &* 10 &+ Int32(digit &- UInt8(ascii: "0"))
            at &+= 1
        }
        return -1
    }

    // MARK: Without /proc

    /// Where there is no such list (chroot, EMFILE): the highest descriptor that the switch tracks, or the highest bit, of
    /// those below 16,384, whose descriptor is open and the program's. So what lies behind short sets is taken for part of
    /// them only if the program has descriptors above 1,024, and then it would be natively, too. One that is neither
    /// tracked nor in a set makes the table longer natively: then a closed one beside it is overlooked here.
    private func highestAmongSets() -> Int32 {
        ss_guard_memory()
        var list = InlineArray<64, pollfd>(repeating: pollfd())
        var highest = Int32(truncatingIfNeeded: min(highestDescriptor.load(), UInt32(SS_DESCRIPTORS))) &- 1
        while highest >= SelectLength.ofSet, isUnknownOrOwn(highest) { highest &-= 1 }
        var first = SelectLength.ofSet
        while first < min(count, 16384) {
            var bits: UInt64 = 0
            guard take(read, first, &bits), take(write, first, &bits), take(except, first, &bits) else { break }
            var total = 0
            while bits != 0 {
                let fd = first &+ Int32(truncatingIfNeeded: bits.trailingZeroBitCount)
                bits &= bits &- 1
                if fd >= count || entryKind(descriptorEntry(fd)) == DescriptorKind.own { continue }
                list[total] = pollfd(fd: fd, events: 0, revents: 0)
                total &+= 1
            }
            if total > 0 {
                var now = timespec(tv_sec: 0, tv_nsec: 0)
                // It fails where RLIMIT_NOFILE is below 64.
                let result = withUnsafeMutablePointer(to: &list) {
                    ss_sys_ppoll(UnsafeMutableRawPointer($0).assumingMemoryBound(to: pollfd.self), total, &now, nil)
                }
                while result >= 0, total > 0 {
                    total &-= 1
                    if list[total].revents & Int16(POLLNVAL) == 0 { highest = max(highest, list[total].fd) }
                }
            }
            first &+= 64
        }
        return length(highest)
    }

    private func isUnknownOrOwn(_ fd: Int32) -> Bool {
        let entry = descriptorEntry(fd)
        return entry == 0 || entryKind(entry) == DescriptorKind.own
    }

    /// Adds the word of a set that begins with bit `first`. False: it cannot be read, nor could the kernel.
    private func take(_ set: UnsafeMutableRawPointer?, _ first: Int32, _ bits: inout UInt64) -> Bool {
        guard let set else { return true }
        var word: UInt64 = 0
        guard ss_guarded_copy8(&word, set + Int(first) / 8) == 0 else { return false }
        bits |= word
        return true
    }
}
