import CInterposer
import CSocketSwitch

// Every entry point has the same form. One look at the descriptor table: 0 means that the switch has nothing to do with
// this descriptor, and the entry is a jump to the real function, with its errno, its cancellation point and whatever other
// preloaded library stands behind us. Otherwise a function of its own, so that the jump needs no stack frame, asks the
// switch and answers the way libc does. All entries may be called from any thread, in signal handlers, in forked and in
// vfork children, and before the library's constructor.

/// A result of the switch (a value >= 0, or -errno) in libc's form: -1 and errno. Success leaves errno alone.
@inline(__always)
func answer(_ result: Int) -> Int {
    if result >= 0 { return result }
    ss_set_errno(Int32(truncatingIfNeeded: 0 &- result))
    return -1
}

@inline(__always)
func answer32(_ result: Int) -> Int32 { Int32(truncatingIfNeeded: answer(result)) }

/// The same for calls that are cancellation points: an interrupted one gives a cancellation that came meanwhile its turn.
@inline(__always)
func answerCancellable(_ result: Int) -> Int {
    if result == 0 &- Int(EINTR) { ss_test_cancel() }
    return answer(result)
}

/// The kernel moves at most so many bytes in a call (MAX_RW_COUNT), and cuts greater counts short.
@inline(__always)
private var mostInACall: UInt { 0x7FFF_F000 }

/// The count that the switch gets. What the kernel cuts short may be more than there is memory for, also of a negative number.
@inline(__always)
func clamped(_ count: Int) -> Int { Int(bitPattern: min(UInt(bitPattern: count), mostInACall)) }

/// Unlike send and recv, read and write look before that at whether all of it could be the program's memory. True: it cannot
/// (EFAULT).
@inline(__always)
func isBeyondMemory(_ fd: Int32, _ buffer: UnsafeRawPointer?, _ count: Int) -> Bool {
    if UInt(bitPattern: count) <= mostInACall || entryKind(descriptorEntry(fd)) != DescriptorKind.socket { return false }
    let end = UInt(bitPattern: buffer).addingReportingOverflow(UInt(bitPattern: count))
    return end.overflow || end.partialValue > 1 << 47
}

/// read and write are the switch's for sockets only. ENOTSOCK says that the descriptor is something else: an epoll set, or
/// a file that took the number of a socket which libc closed behind our back (fclose). Then the real function answers.
@inline(__always)
func isNoSocket(_ result: Int) -> Bool { result == 0 &- Int(ENOTSOCK) }
