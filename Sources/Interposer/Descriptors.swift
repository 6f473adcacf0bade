import CInterposer
import CSocketSwitch

// MARK: Closing

@c(close) public func interposedClose(_ fd: Int32) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.close(fd) : trackedClose(fd)
}

@inline(never)
func trackedClose(_ fd: Int32) -> Int32 {
    ss_test_cancel()
    return answer32(switchClose(fd))
}

/// Always the switch: the range may hold descriptors of its own that must survive.
@c(close_range) public func interposedCloseRange(_ first: UInt32, _ last: UInt32, _ flags: Int32) -> Int32 {
    answer32(switchCloseRange(first, last, flags))
}

@c(closefrom) public func interposedClosefrom(_ first: Int32) {
    if switchCloseRange(UInt32(max(first, 0)), UInt32.max, 0) < 0 { ss_real.closefrom(first) }
}

// MARK: Duplicating

@c(dup) public func interposedDup(_ fd: Int32) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.dup(fd) : trackedDuplicate(fd)
}

@inline(never)
func trackedDuplicate(_ fd: Int32) -> Int32 { answer32(switchDuplicate(fd)) }

@c(dup2) public func interposedDup2(_ old: Int32, _ new: Int32) -> Int32 {
    (descriptorEntry(old) | descriptorEntry(new)) == 0 ? ss_real.dup2(old, new) : trackedDuplicate2(old, new)
}

/// dup2 of a descriptor onto itself only asks whether it is open; the library's own ones are not.
@inline(never)
func trackedDuplicate2(_ old: Int32, _ new: Int32) -> Int32 {
    if old != new { return answer32(switchDuplicate(old, onto: new, 0)) }
    if entryKind(descriptorEntry(old)) == DescriptorKind.own { return answer32(0 &- Int(EBADF)) }
    return ss_real.dup2(old, new)
}

@c(dup3) public func interposedDup3(_ old: Int32, _ new: Int32, _ flags: Int32) -> Int32 {
    (descriptorEntry(old) | descriptorEntry(new)) == 0 ? ss_real.dup3(old, new, flags) : trackedDuplicate3(old, new, flags)
}

/// Arguments that dup3 refuses go to it.
@inline(never)
func trackedDuplicate3(_ old: Int32, _ new: Int32, _ flags: Int32) -> Int32 {
    if old == new || flags & ~O_CLOEXEC != 0 { return ss_real.dup3(old, new, flags) }
    return answer32(switchDuplicate(old, onto: new, flags))
}

// MARK: fcntl and ioctl
//
// Both are variadic in C. With one integer or pointer behind the named arguments, and without one, the calling
// conventions of x86-64 and AArch64 Linux pass the same registers as for three named arguments; libc reads the third
// one unconditionally, too.

@c(fcntl) public func interposedFcntl(_ fd: Int32, _ command: Int32, _ argument: Int) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.fcntl(fd, command, argument) : trackedFileControl(fd, command, argument)
}

@c(fcntl64) public func interposedFcntl64(_ fd: Int32, _ command: Int32, _ argument: Int) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.fcntl64(fd, command, argument) : trackedFileControl(fd, command, argument)
}

@inline(never)
func trackedFileControl(_ fd: Int32, _ command: Int32, _ argument: Int) -> Int32 {
    // A process group is a negative owner, and in the bare system call's answer an error: libc asks otherwise.
    if command == F_GETOWN, entryKind(descriptorEntry(fd)) != DescriptorKind.own { return ss_real.fcntl(fd, command, argument) }
    return answer32(switchFileControl(fd, command, argument))
}

@c(ioctl) public func interposedIoctl(_ fd: Int32, _ request: UInt, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.ioctl(fd, request, argument) : trackedIOControl(fd, request, argument)
}

@inline(never)
func trackedIOControl(_ fd: Int32, _ request: UInt, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    answer32(switchIOControl(fd, request, argument))
}
