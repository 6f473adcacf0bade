import CInterposer
import CSocketSwitch

// MARK: poll, ppoll

@c(poll) public func interposedPoll(_ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    containsTracked(list, count) ? trackedPoll(list, count, timeout) : ss_real.poll(list, count, timeout)
}

@c(ppoll) public func interposedPpoll(
    _ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int32 {
    containsTracked(list, count) ? trackedPpoll(list, count, timeout, mask) : ss_real.ppoll(list, count, timeout, mask)
}

/// `timeout` in milliseconds, negative for ever.
@inline(never)
func trackedPoll(_ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: Int32) -> Int32 {
    if timeout < 0 { return trackedPpoll(list, count, nil, nil) }
    var time = timespec(milliseconds: timeout)
    return trackedPpoll(list, count, &time, nil)
}

/// The kernel's signal set is the beginning of libc's. The switch does not change the time.
@inline(never)
func trackedPpoll(
    _ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int32 {
    // A list that cannot be written is the kernel's to refuse, and so is a time that cannot be read.
    guard ss_probe_program_memory(list, Int(bitPattern: count) &* MemoryLayout<pollfd>.stride) == 0 else {
        return ss_real.ppoll(list, count, timeout, mask)
    }
    var time = timespec()
    guard let timeout else { return pollCancellably(list, count, nil, mask) }
    guard ss_copy_program_memory(&time, timeout, MemoryLayout<timespec>.size) == 0 else {
        return ss_real.ppoll(list, count, timeout, mask)
    }
    return pollCancellably(list, count, &time, mask)
}

private func pollCancellably(
    _ list: UnsafeMutablePointer<pollfd>?, _ count: UInt, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int32 {
    ss_test_cancel()
    return Int32(truncatingIfNeeded: answerCancellable(switchPoll(list, Int(bitPattern: count), timeout, mask)))
}

/// Whether the switch has to do with one of the descriptors. A list longer than the kernel would read is not read here.
@inline(never)
func containsTracked(_ list: UnsafeMutablePointer<pollfd>?, _ count: UInt) -> Bool {
    guard let list, switchHasDescriptors, count <= 1024 || count <= descriptorLimit() else { return false }
    ss_guard_memory()
    var index = 0
    while index < Int(bitPattern: count) {
        var entry = pollfd()
        if ss_guarded_copy8(&entry, list + index) != 0 { return false }
        if descriptorEntry(entry.fd) != 0 { return true }
        index &+= 1
    }
    return false
}

@inline(never)
private func descriptorLimit() -> UInt {
    var limit = rlimit()
    return ss_sys_prlimit(Int32(bitPattern: RLIMIT_NOFILE.rawValue), nil, &limit) == 0 ? limit.rlim_cur : 0
}

// MARK: select, pselect

@c(select) public func interposedSelect(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?,
    _ except: UnsafeMutableRawPointer?, _ timeout: UnsafeMutablePointer<timeval>?
) -> Int32 {
    let count = switchSelectLength(count, read, write, except)
    return containsTracked(count, read, write, except)
        ? trackedSelect(count, read, write, except, timeout) : ss_real.select(count, read, write, except, timeout)
}

/// On Linux select leaves in `timeout` what remains of it.
@inline(never)
func trackedSelect(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?,
    _ except: UnsafeMutableRawPointer?, _ timeout: UnsafeMutablePointer<timeval>?
) -> Int32 {
    ss_test_cancel()
    guard areWritable(count, read, write, except) else { return ss_real.select(count, read, write, except, timeout) }
    guard let timeout else {
        return Int32(truncatingIfNeeded: answerCancellable(switchSelect(count, read, write, except, nil, nil)))
    }
    guard ss_probe_program_memory(timeout, MemoryLayout<timeval>.size) == 0 else {
        return ss_real.select(count, read, write, except, timeout)
    }
    if timeout.pointee.tv_sec < 0 || timeout.pointee.tv_usec < 0 { return answer32(0 &- Int(EINVAL)) }
    var time = timespec()
    let (seconds, overflow) = timeout.pointee.tv_sec.addingReportingOverflow(timeout.pointee.tv_usec / 1_000_000)
    time.tv_sec = overflow ? Int.max : seconds
    time.tv_nsec = timeout.pointee.tv_usec % 1_000_000 &* 1000
    let result = switchSelect(count, read, write, except, &time, nil)
    timeout.pointee.tv_sec = time.tv_sec
    timeout.pointee.tv_usec = time.tv_nsec / 1000
    return Int32(truncatingIfNeeded: answerCancellable(result))
}

@c(pselect) public func interposedPselect(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?,
    _ except: UnsafeMutableRawPointer?, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int32 {
    let count = switchSelectLength(count, read, write, except)
    return containsTracked(count, read, write, except)
        ? trackedPselect(count, read, write, except, timeout, mask)
        : ss_real.pselect(count, read, write, except, timeout, mask)
}

/// pselect keeps the program's `timeout` as it is.
@inline(never)
func trackedPselect(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?,
    _ except: UnsafeMutableRawPointer?, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int32 {
    ss_test_cancel()
    guard areWritable(count, read, write, except) else { return ss_real.pselect(count, read, write, except, timeout, mask) }
    guard let timeout else {
        return Int32(truncatingIfNeeded: answerCancellable(switchSelect(count, read, write, except, nil, mask)))
    }
    var time = timespec()
    guard ss_copy_program_memory(&time, timeout, MemoryLayout<timespec>.size) == 0 else {
        return ss_real.pselect(count, read, write, except, timeout, mask)
    }
    return Int32(truncatingIfNeeded: answerCancellable(switchSelect(count, read, write, except, &time, mask)))
}

/// Whether the switch has to do with one of the descriptors in the sets. `count` is what `switchSelectLength` left.
@inline(never)
func containsTracked(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?, _ except: UnsafeMutableRawPointer?
) -> Bool {
    guard count > 0, switchHasDescriptors else { return false }
    ss_guard_memory()
    let end = min(count, Int32(SS_DESCRIPTORS))
    var first: Int32 = 0
    while first < end {
        var bits = word(read, first) | word(write, first) | word(except, first)
        if end &- first < 64 { bits &= (1 &<< UInt(truncatingIfNeeded: end &- first)) &- 1 }
        while bits != 0 {
            if descriptorEntry(first &+ Int32(truncatingIfNeeded: bits.trailingZeroBitCount)) != 0 { return true }
            bits &= bits &- 1
        }
        first &+= 64
    }
    return false
}

/// The word of a descriptor set in which `fd` has its bit; 0 for no set, and for one that cannot be read.
@inline(__always)
private func word(_ set: UnsafeMutableRawPointer?, _ fd: Int32) -> UInt {
    guard let set else { return 0 }
    var bits: UInt = 0
    return ss_guarded_copy8(&bits, set + Int(fd >> 6) &* 8) == 0 ? bits : 0
}

/// Whether the kernel could answer in these sets: it reads and writes whole words.
private func areWritable(
    _ count: Int32, _ read: UnsafeMutableRawPointer?, _ write: UnsafeMutableRawPointer?, _ except: UnsafeMutableRawPointer?
) -> Bool {
    let bytes = (Int(max(count, 0)) + 63) / 64 * 8
    return (read == nil || ss_probe_program_memory(read, bytes) == 0)
        && (write == nil || ss_probe_program_memory(write, bytes) == 0)
        && (except == nil || ss_probe_program_memory(except, bytes) == 0)
}

extension timespec {
    /// `milliseconds` >= 0.
    @inline(__always)
    init(milliseconds: Int32) {
        self.init(tv_sec: Int(milliseconds / 1000), tv_nsec: Int(milliseconds % 1000) &* 1_000_000)
    }
}
