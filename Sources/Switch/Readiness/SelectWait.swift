import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
#endif

/// select and pselect. `timeout` nil: for ever; it is updated with what is left, as the kernel does.
///
/// With a socket of ours in its sets a select is a poll: the bits become entries and the answers bits, by the kernel's own
/// table (POLLIN_SET, POLLOUT_SET, POLLEX_SET).
package func switchSelect(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?, _ except: UnsafeMutableRawPointer?,
    _ timeout: UnsafeMutablePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int {
    let sets = SelectSets(count: count, read: read, write: write, except: except)
    guard count > 0, count <= 1 << 20, sets.containOurs, let deadline = Deadline.after(timeout.map { UnsafePointer($0) }) else {
        return ss_sys_pselect6(count, read, write, except, timeout, mask)
    }
    let entries = sets.entryCount
    let result = withScratch(entries * MemoryLayout<pollfd>.stride) { memory in
        guard let memory else { return -Int(ENOMEM) }
        return sets.wait(memory.assumingMemoryBound(to: pollfd.self), entries, timeout, mask)
    }
    if let timeout, deadline != Deadline.now, deadline != Deadline.never {
        timeout.pointee = Deadline.fill(Deadline.left(deadline, ss_monotonic_ns()))
    }
    return result
}

private struct SelectSets {
    let count: Int32
    let read: UnsafeMutableRawPointer?
    let write: UnsafeMutableRawPointer?
    let except: UnsafeMutableRawPointer?

    private static var readable: UInt32 { Interest.selectReading | Interest.hangUp | Interest.error | Interest.invalid }
    private static var writable: UInt32 { Interest.selectWriting | Interest.error | Interest.invalid }
    private static var exceptional: UInt32 { Interest.priority | Interest.invalid }

    /// The bits of word `index`, without those at or above `count`.
    private func word(_ set: UnsafeMutableRawPointer?, _ index: Int) -> UInt64 {
        guard let set else { return 0 }
        let left = Int(count) - index * 64
        let bits = set.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)
        return left >= 64 ? bits : bits & ((1 << UInt64(left)) &- 1)
    }

    private var words: Int { (Int(count) + 63) / 64 }

    private static func has(_ set: UnsafeMutableRawPointer?, _ fd: Int32) -> Bool {
        guard let set else { return false }
        return set.loadUnaligned(fromByteOffset: Int(fd) / 64 * 8, as: UInt64.self) & (1 << UInt64(fd % 64)) != 0
    }

    var containOurs: Bool {
        guard count > 0 else { return false }
        var index = 0
        while index < words {
            var bits = word(read, index) | word(write, index) | word(except, index)
            while bits != 0 {
                let fd = Int32(index * 64 + bits.trailingZeroBitCount)
                bits &= bits &- 1
                let kind = entryKind(descriptorEntry(fd))
                if kind == DescriptorKind.socket || kind == DescriptorKind.epollSet { return true }
            }
            index &+= 1
        }
        return false
    }

    var entryCount: Int {
        var total = 0
        var index = 0
        while index < words {
            total &+= (word(read, index) | word(write, index) | word(except, index)).nonzeroBitCount
            index &+= 1
        }
        return total
    }

    func wait(
        _ list: UnsafeMutablePointer<pollfd>, _ entries: Int, _ timeout: UnsafeMutablePointer<timespec>?, _ mask: UnsafeRawPointer?
    ) -> Int {
        var total = 0
        var index = 0
        while index < words, total < entries {
            var bits = word(read, index) | word(write, index) | word(except, index)
            while bits != 0, total < entries {
                let fd = Int32(index * 64 + bits.trailingZeroBitCount)
                bits &= bits &- 1
                var events: UInt32 = 0
                if SelectSets.has(read, fd) { events |= Interest.selectReading }
                if SelectSets.has(write, fd) { events |= Interest.selectWriting }
                if SelectSets.has(except, fd) { events |= Interest.priority }
                list[total] = pollfd(fd: fd, events: Int16(truncatingIfNeeded: events), revents: 0)
                total &+= 1
            }
            index &+= 1
        }
        while true {
            let result = switchPoll(list, total, timeout.map { UnsafePointer($0) }, mask)
            if result < 0 { return result }
            var overlooked = false
            index = 0
            while index < total {
                if list[index].revents & Int16(POLLNVAL) != 0 {
                    if isInvalid(list[index].fd) { return -Int(EBADF) }
                    list[index].fd = -1
                    overlooked = true
                }
                index &+= 1
            }
            // Another round costs the time-out once more at most; there is no such program.
            if !overlooked { return answer(list, total) }
        }
    }

    /// A closed descriptor is an error, or is overlooked, by a rule that only the kernel knows (the size of its table).
    private func isInvalid(_ fd: Int32) -> Bool {
        let bytes = words * 8
        return withScratch(bytes) { memory in
            guard let memory else { return 1 }
            memset(memory, 0, bytes)
            memory.storeBytes(of: UInt64(1) << UInt64(fd % 64), toByteOffset: Int(fd) / 64 * 8, as: UInt64.self)
            var now = timespec(tv_sec: 0, tv_nsec: 0)
            return ss_sys_pselect6(count, memory, nil, nil, &now, nil) == -Int(EBADF) ? 1 : 0
        } == 1
    }

    /// Rewrites the sets. Returns the number of bits in them.
    private func answer(_ list: UnsafeMutablePointer<pollfd>, _ total: Int) -> Int {
        var set = 0
        var index = 0
        while index < total {
            let fd = list[index].fd
            let events = UInt32(UInt16(bitPattern: list[index].revents))
            index &+= 1
            if fd < 0 { continue }
            set &+= SelectSets.keep(read, fd, events & SelectSets.readable != 0)
            set &+= SelectSets.keep(write, fd, events & SelectSets.writable != 0)
            set &+= SelectSets.keep(except, fd, events & SelectSets.exceptional != 0)
        }
        clearAbove()
        return set
    }

    private static func keep(_ set: UnsafeMutableRawPointer?, _ fd: Int32, _ ready: Bool) -> Int {
        guard let set, has(set, fd) else { return 0 }
        if ready { return 1 }
        let offset = Int(fd) / 64 * 8
        let bits = set.loadUnaligned(fromByteOffset: offset, as: UInt64.self) & ~(1 << UInt64(fd % 64))
        set.storeBytes(of: bits, toByteOffset: offset, as: UInt64.self)
        return 0
    }

    /// The kernel writes whole words: bits at or above `count` in the last one come back as 0.
    private func clearAbove() {
        let left = Int(count) - (words - 1) * 64
        guard left < 64 else { return }
        let offset = (words - 1) * 8
        SelectSets.cut(read, offset, left)
        SelectSets.cut(write, offset, left)
        SelectSets.cut(except, offset, left)
    }

    private static func cut(_ set: UnsafeMutableRawPointer?, _ offset: Int, _ left: Int) {
        guard let set else { return }
        let bits = set.loadUnaligned(fromByteOffset: offset, as: UInt64.self) & ((1 << UInt64(left)) &- 1)
        set.storeBytes(of: bits, toByteOffset: offset, as: UInt64.self)
    }
}
