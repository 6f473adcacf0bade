import CInterposer
import CSocketSwitch

// io_uring
//
// A ring moves the data of any descriptor without a call that names it. Of one that liburing makes, as a shared library, and
// submits to, it can be seen what is about to be submitted: while that is nothing but work on descriptors that are no business
// of the switch (a database's files), nothing changes. The first entry that is not so, and a ring that is made or used in any
// other way, moves all sockets of the process to TCP and keeps them there (`Reason.ioUring`).

@c(io_uring_setup) public func interposedRingSetup(_ entries: UInt32, _ parameters: UnsafeMutableRawPointer?) -> Int32 {
    switchRingIsMade()
    return ss_real.io_uring_setup(entries, parameters)
}

@c(io_uring_queue_init) public func interposedQueueInit(_ entries: UInt32, _ ring: UnsafeMutableRawPointer?, _ flags: UInt32) -> Int32 {
    ringBegins(flags)
    return ss_real.io_uring_queue_init(entries, ring, flags)
}

@c(io_uring_queue_init_params) public func interposedQueueInitParameters(
    _ entries: UInt32, _ ring: UnsafeMutableRawPointer?, _ parameters: UnsafeMutableRawPointer?
) -> Int32 {
    ringBegins(parameters?.load(fromByteOffset: 8, as: UInt32.self) ?? 0)
    return ss_real.io_uring_queue_init_params(entries, ring, parameters)
}

@c(io_uring_queue_init_mem) public func interposedQueueInitMemory(
    _ entries: UInt32, _ ring: UnsafeMutableRawPointer?, _ parameters: UnsafeMutableRawPointer?,
    _ memory: UnsafeMutableRawPointer?, _ bytes: Int
) -> Int32 {
    ringBegins(parameters?.load(fromByteOffset: 8, as: UInt32.self) ?? 0)
    return ss_real.io_uring_queue_init_mem(entries, ring, parameters, memory, bytes)
}

/// Entries of twice the size (IORING_SETUP_SQE128) are commands to devices: not looked at.
private func ringBegins(_ flags: UInt32) {
    if flags & (1 << 10) != 0 { switchRingIsMade() }
}

// MARK: Submitting

@c(io_uring_submit) public func interposedSubmit(_ ring: UnsafeMutableRawPointer?) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_submit(ring)
}

@c(io_uring_submit_and_wait) public func interposedSubmitAndWait(_ ring: UnsafeMutableRawPointer?, _ count: UInt32) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_submit_and_wait(ring, count)
}

@c(io_uring_submit_and_wait_timeout) public func interposedSubmitAndWaitTimeout(
    _ ring: UnsafeMutableRawPointer?, _ result: UnsafeMutableRawPointer?, _ count: UInt32, _ timeout: UnsafeMutableRawPointer?,
    _ mask: UnsafeMutableRawPointer?
) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_submit_and_wait_timeout(ring, result, count, timeout, mask)
}

@c(io_uring_submit_and_wait_min_timeout) public func interposedSubmitAndWaitMinTimeout(
    _ ring: UnsafeMutableRawPointer?, _ result: UnsafeMutableRawPointer?, _ count: UInt32, _ timeout: UnsafeMutableRawPointer?,
    _ least: UInt32, _ mask: UnsafeMutableRawPointer?
) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_submit_and_wait_min_timeout(ring, result, count, timeout, least, mask)
}

@c(io_uring_submit_and_wait_reg) public func interposedSubmitAndWaitRegistered(
    _ ring: UnsafeMutableRawPointer?, _ result: UnsafeMutableRawPointer?, _ count: UInt32, _ number: Int32
) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_submit_and_wait_reg(ring, result, count, number)
}

@c(io_uring_submit_and_get_events) public func interposedSubmitAndGetEvents(_ ring: UnsafeMutableRawPointer?) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_submit_and_get_events(ring)
}

// These submit, too, where the kernel knows no time-out of its own.

@c(io_uring_wait_cqes) public func interposedWaitEvents(
    _ ring: UnsafeMutableRawPointer?, _ result: UnsafeMutableRawPointer?, _ count: UInt32, _ timeout: UnsafeMutableRawPointer?,
    _ mask: UnsafeMutableRawPointer?
) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_wait_cqes(ring, result, count, timeout, mask)
}

@c(io_uring_wait_cqes_min_timeout) public func interposedWaitEventsMinTimeout(
    _ ring: UnsafeMutableRawPointer?, _ result: UnsafeMutableRawPointer?, _ count: UInt32, _ timeout: UnsafeMutableRawPointer?,
    _ least: UInt32, _ mask: UnsafeMutableRawPointer?
) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_wait_cqes_min_timeout(ring, result, count, timeout, least, mask)
}

@c(io_uring_wait_cqe_timeout) public func interposedWaitEventTimeout(
    _ ring: UnsafeMutableRawPointer?, _ result: UnsafeMutableRawPointer?, _ timeout: UnsafeMutableRawPointer?
) -> Int32 {
    switchRingSubmits(ring)
    return ss_real.io_uring_wait_cqe_timeout(ring, result, timeout)
}

// MARK: Past liburing's books

@c(io_uring_enter) public func interposedRingEnter(
    _ ring: UInt32, _ count: UInt32, _ wanted: UInt32, _ flags: UInt32, _ mask: UnsafeMutableRawPointer?
) -> Int32 {
    switchRingIsMade()
    return ss_real.io_uring_enter(ring, count, wanted, flags, mask)
}

@c(io_uring_enter2) public func interposedRingEnter2(
    _ ring: UInt32, _ count: UInt32, _ wanted: UInt32, _ flags: UInt32, _ mask: UnsafeMutableRawPointer?, _ size: Int
) -> Int32 {
    switchRingIsMade()
    return ss_real.io_uring_enter2(ring, count, wanted, flags, mask, size)
}

@c(io_uring_register) public func interposedRingRegister(
    _ ring: UInt32, _ operation: UInt32, _ argument: UnsafeRawPointer?, _ count: UInt32
) -> Int32 {
    switchRingIsMade()
    return ss_real.io_uring_register(ring, operation, argument, count)
}

// MARK: Descriptors that a ring knows by numbers of its own

@c(io_uring_register_files) public func interposedRegisterFiles(
    _ ring: UnsafeMutableRawPointer?, _ files: UnsafePointer<Int32>?, _ count: UInt32
) -> Int32 {
    switchRingTakes(files, count)
    return ss_real.io_uring_register_files(ring, files, count)
}

@c(io_uring_register_files_tags) public func interposedRegisterFilesTags(
    _ ring: UnsafeMutableRawPointer?, _ files: UnsafePointer<Int32>?, _ tags: UnsafeRawPointer?, _ count: UInt32
) -> Int32 {
    switchRingTakes(files, count)
    return ss_real.io_uring_register_files_tags(ring, files, tags, count)
}

@c(io_uring_register_files_update) public func interposedRegisterFilesUpdate(
    _ ring: UnsafeMutableRawPointer?, _ first: UInt32, _ files: UnsafePointer<Int32>?, _ count: UInt32
) -> Int32 {
    switchRingTakes(files, count)
    return ss_real.io_uring_register_files_update(ring, first, files, count)
}

@c(io_uring_register_files_update_tag) public func interposedRegisterFilesUpdateTag(
    _ ring: UnsafeMutableRawPointer?, _ first: UInt32, _ files: UnsafePointer<Int32>?, _ tags: UnsafeRawPointer?, _ count: UInt32
) -> Int32 {
    switchRingTakes(files, count)
    return ss_real.io_uring_register_files_update_tag(ring, first, files, tags, count)
}
