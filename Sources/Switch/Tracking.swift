import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// Which descriptor is which socket: tracking, duplicating, closing.

/// The slot of a tracked socket.
@inline(__always)
package func socketIndex(_ fd: Int32) -> Int? {
    let entry = descriptorEntry(fd)
    return entryKind(entry) == DescriptorKind.socket ? entryIndex(entry) : nil
}

/// Gives a new stream socket its slot. 0: it stays unknown (and on TCP).
func track(_ fd: Int32, kind: UInt64, nonBlocking: Bool) -> Int {
    guard UInt32(bitPattern: fd) < UInt32(SS_DESCRIPTORS), ensureStarted(), !runsOnBorrowedMemory() else { return 0 }
    let index = takeSlot(kind: kind, descriptor: fd)
    guard index != 0 else { return 0 }
    if nonBlocking { sessionOf(index).slot.flags.store(Slot.Flags.nonBlocking) }
    noteHighest(fd)
    setDescriptorEntry(fd, kind: DescriptorKind.socket, index: UInt32(index))
    if privateState.pointee.hasRing { keepOnTCP(index, .ioUring) }
    // stdio reads and writes it, past the switch.
    if isStandardStream(fd) { keepOnTCP(index, .unsupportedOption) }
    return index
}

/// A slot with an empty record; 0: there is none. `descriptor`: -1 for one that stands for no socket of the program.
func takeSlot(kind: UInt64, descriptor: Int32) -> Int {
    let state = privateState
    guard let memory = state.pointee.arena, let records = state.pointee.connections else { return 0 }
    let arena = FamilyArena(memory)
    var index = arena.allocateSlot(process: Int(state.pointee.process))
    if index == 0 {
        arena.reapDeadProcesses()
        index = arena.allocateSlot(process: Int(state.pointee.process))
        if index == 0 { return 0 }
    }
    let slot = arena.slot(index)
    let record = records + index
    // Zeroed memory is an empty record; only what a former socket left is reset.
    resetRecord(record)
    record.pointee.generation = slot.generation.load()
    sessionOf(index).descriptorCount.store(descriptor < 0 ? 0 : 1)
    record.pointee.descriptor = descriptor
    slot.descriptorHint.storeRelaxed(UInt64(descriptor &+ 1))
    slot.reason.store(Reason.notConnected.rawValue)
    slot.kind.store(kind)
    return index
}

private func resetRecord(_ record: UnsafeMutablePointer<Connection>) {
    record.pointee.provider = nil
    record.pointee.companion = 0
    record.pointee.companionPhase = CompanionPhase.none
    record.pointee.notification = -1
    record.pointee.up = 0
    record.pointee.local = nil
    record.pointee.remote = nil
    record.pointee.writer = nil
    record.pointee.ownsLocal = false
    if record.pointee.keepsWindows {
        record.pointee.keepsWindows = false
        record.pointee.watchers = 0
    }
    record.pointee.isExposed = false
    record.pointee.peerIsHere = false
    record.pointee.firstRegistration = 0
    record.pointee.watchedAsDual = false
    record.pointee.doorbellSleepers = 0
    record.pointee.sleepingCalls = 0
    record.pointee.replacer = 0
    record.pointee.receiveSpinNanoseconds = 0
    record.pointee.sendSpinNanoseconds = 0
    record.pointee.lastPeerCheck = 0
    record.pointee.stalledCredit = 0
    record.pointee.stalledSince = 0
    record.pointee.lastEndCheck = 0
    record.pointee.listener = 0
    record.pointee.listenerGeneration = 0
    record.pointee.dependents = 0
    record.pointee.firstAddressCompanion = 0
    record.pointee.nextAddressCompanion = 0
    record.pointee.isPending = false
    record.pointee.nextPending = 0
    record.pointee.options.clear()
    record.pointee.waitsForCompanion = false
    record.pointee.rejoins = false
    record.pointee.departure = Departure.none
}

/// Whether any descriptor can be the switch's at all.
package var switchHasDescriptors: Bool {
    !privateState.pointee.isConfined && (highestDescriptor.loadRelaxed() != 0 || privateState.pointee.arena != nil)
}

func noteHighest(_ fd: Int32) {
    var highest = highestDescriptor.load()
    guard UInt32(bitPattern: fd) >= highest else { return }
    while UInt32(bitPattern: fd) >= highest {
        let found = highestDescriptor.compareExchange(highest, UInt32(bitPattern: fd) &+ 1)
        if found == highest { break }
        highest = found
    }
    noteProgramDescriptors(fd &+ 1)
    giveWay(atOnce: false)
}

/// A new descriptor has a number that the table still knows: it was closed by a way that we did not see (a raw system
/// call). What it stood for is gone; except in a vfork child, whose parent goes on with it. The number is another file already,
/// to which nothing must be done.
@inline(__always)
func forgetStale(_ fd: Int32) {
    if descriptorEntry(fd) != 0 { dropStale(fd) }
}

@inline(never)
func dropStale(_ fd: Int32) {
    if isForeignChild() { return }
    if let index = socketIndex(fd), sessionOf(index).connection.pointee.descriptor == fd {
        sessionOf(index).connection.pointee.descriptor = otherDescriptor(descriptorEntry(fd), than: fd)
    }
    dropEntry(fd)
}

/// The socket becomes an unconnected one again: a new slot, with the options that the program has set.
func makeAnew(_ fd: Int32, _ index: Int) {
    let options = sessionOf(index).connection.pointee.options
    let flags = sessionOf(index).slot.flags.load()
    let sendBuffer = sessionOf(index).slot.sendBuffer.load()
    var before = linger()
    var length = UInt32(MemoryLayout<linger>.size)
    _ = baseGetOption(fd, SOL_SOCKET, SO_LINGER, &before, &length)
    dropEntry(fd)
    // The end of an announced connection shuts the socket, which lives on, down; a second disconnect opens it.
    Session.reset(fd)
    _ = baseSetOption(fd, SOL_SOCKET, SO_LINGER, &before, length)
    let new = track(fd, kind: Slot.Kind.fresh, nonBlocking: flags & Slot.Flags.nonBlocking != 0)
    guard new != 0 else { return }
    sessionOf(new).connection.pointee.options = options
    sessionOf(new).slot.sendBuffer.store(sendBuffer)
    sessionOf(new).slot.flags.setBits(flags & (Slot.Flags.receivesAtOnce | Slot.Flags.sendsAtOnce))
}

/// `new` refers to what `old` refers to.
func shareEntry(of old: Int32, with new: Int32) {
    forgetStale(new)
    let entry = descriptorEntry(old)
    guard entry != 0, UInt32(bitPattern: new) < UInt32(SS_DESCRIPTORS) else { return }
    if isForeignChild() {
        handOverBeforeExec(old, as: new)
        // Another connection may have taken the place of `old`.
        if entryKind(entry) == DescriptorKind.socket, !isStill(old, entryIndex(entry)) {
            _ = rawDuplicate(old, new, ss_sys_fcntl(new, F_GETFD, 0) & 1 == 0 ? 0 : O_CLOEXEC)
        }
        return
    }
    if entryKind(entry) == DescriptorKind.socket {
        sessionOf(entryIndex(entry)).descriptorCount.add(1)
        handOverToStdio(old, entryIndex(entry), as: new)
    }
    noteHighest(new)
    setDescriptorEntry(new, kind: entryKind(entry), index: UInt32(entryIndex(entry)))
}

/// A vfork child runs in our memory but with descriptors of its own: it must not touch our tables. Nor must a child that was
/// made past our hooks.
@inline(__always)
func isForeignChild() -> Bool { switchIsActive && runsOnBorrowedMemory() }

@inline(__always)
private func runsOnBorrowedMemory() -> Bool {
    ss_memory_may_be_borrowed() != 0 && ss_sys_getpid() != Int(privateState.pointee.pid)
}

// MARK: Closing

package func switchClose(_ fd: Int32) -> Int {
    let entry = descriptorEntry(fd)
    if entry == 0 { return ss_sys_close(fd) }
    if entryKind(entry) == DescriptorKind.own { return -Int(EBADF) }
    if isForeignChild() { return ss_sys_close(fd) }
    dropEntry(fd)
    return entryKind(entry) == DescriptorKind.socket ? baseClose(fd) : ss_sys_close(fd)
}

/// libc is about to close the descriptor by itself. Not for vfork children, which close their own alone.
package func switchIsClosedByLibc(_ fd: Int32) {
    if entryKind(descriptorEntry(fd)) != DescriptorKind.own { dropEntry(fd) }
}

/// Ends what the descriptor means to us; the kernel's close comes after. `socket`: the number has become another file, and the
/// socket has this one.
func dropEntry(_ fd: Int32, socket: Int32 = -1) {
    let entry = descriptorEntry(fd)
    switch entryKind(entry) {
    case DescriptorKind.socket:
        let index = entryIndex(entry)
        readinessForget(fd, index)
        clearDescriptorEntry(fd)
        let record = sessionOf(index).connection
        if Int32(bitPattern: sessionOf(index).descriptorCount.subtract(1)) <= 0 {
            // (It has none when the number is another file already.)
            endSocket(socket >= 0 ? socket : record.pointee.descriptor < 0 ? -1 : fd, index)
        } else {
            if record.pointee.descriptor == fd { record.pointee.descriptor = otherDescriptor(entry, than: fd) }
            sessionOf(index).wakeSleepingCalls()
        }
    case DescriptorKind.epollSet:
        clearDescriptorEntry(fd)
        let other = otherDescriptor(entry, than: fd)
        if other < 0 { readinessSetClosed(entryIndex(entry)) } else { readinessSetKept(entryIndex(entry), other) }
    default:
        clearDescriptorEntry(fd)
    }
}

/// Takes the sockets and epoll sets that `isForgotten` names out of the table.
func forgetEntries(_ isForgotten: (Int32) -> Bool) {
    var fd: Int32 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()) {
        let kind = entryKind(descriptorEntry(fd))
        if kind == DescriptorKind.socket || kind == DescriptorKind.epollSet, isForgotten(fd) { clearDescriptorEntry(fd) }
        fd &+= 1
    }
}

/// A descriptor other than `fd` with the same entry, or -1.
func otherDescriptor(_ entry: UInt32, than fd: Int32) -> Int32 {
    var other: Int32 = 0
    while other < Int32(bitPattern: highestDescriptor.load()) {
        if other != fd, descriptorEntry(other) == entry { return other }
        other &+= 1
    }
    return -1
}

/// The process's last descriptor of a socket goes. -1: it has gone.
private func endSocket(_ fd: Int32, _ index: Int) {
    guard let memory = privateState.pointee.arena else { return }
    let record = sessionOf(index).connection
    let isPlain = record.pointee.companion == 0 && record.pointee.companionPhase == CompanionPhase.none && !record.pointee.isPending
        && record.pointee.firstAddressCompanion == 0
    if isPlain {
        releaseListener(index)
    } else if !endCompanions(fd, index) {
        return
    }
    FamilyArena(memory).release(index, process: Int(privateState.pointee.process))
}

/// False: a listener whose companion others still need stays, retired.
@inline(never)
private func endCompanions(_ fd: Int32, _ index: Int) -> Bool {
    let session = sessionOf(index)
    let connected = session.slot.kind.load() >= Slot.Kind.connected
    let record = session.connection
    // Before the lock is taken: it may be seconds.
    if fd >= 0 { session.waitForBacklog(isLast: isAlone(session.slot)) }
    let locked = waitForPendingLock()
    defer { if locked { unlockPending() } }
    let alone = isAlone(session.slot)
    if hasListeningCompanion(index), dependents(index).load() != 0 {
        // What it accepted may still be offered: a server may close its listener first, or in the forked child that
        // serves a connection. The last one of those ends it.
        if alone { session.slot.kind.store(Slot.Kind.retired) }
        return false
    }
    removePending(index)
    let companionPhase = record.pointee.companionPhase
    let wasUp = companionPhase == CompanionPhase.up || companionPhase == CompanionPhase.negotiating
    let unread = session.end(last: alone)
    if alone, connected {
        // TCP answers unread data with a reset; so must we.
        if unread {
            Session.resetOnClose(fd)
        } else if !wasUp, companionPhase >= CompanionPhase.connecting {
            endAnnounced(fd, hasReaders: session.slot.plainReaders.count != 0)
        }
    }
    withdrawOffer(index, .none)
    if !record.pointee.keepsWindows { closeCompanion(index) }
    closeAddressCompanions(index)
    record.pointee.companionPhase = CompanionPhase.none
    releaseListener(index)
    return true
}

/// An announcement in flight holds a reference to the socket: the FIN, or what the kernel would send instead, must not wait for
/// it, nor the reset for what the peer sends afterwards. (A thread that sleeps in a receive goes on as long as the peer does.)
func endAnnounced(_ fd: Int32, hasReaders: Bool = false) {
    if closeResets(fd) { Session.reset(fd) } else { _ = ss_sys_shutdown(fd, hasReaders ? 1 : 2) }
}

/// A listening companion that outlived its listener (see `endSocket`) ends. With or without the pending lock.
func endRetiredListener(_ index: Int) {
    guard let memory = privateState.pointee.arena else { return }
    let locked = waitForPendingLock()
    defer { if locked { unlockPending() } }
    removePending(index)
    closeCompanion(index)
    closeAddressCompanions(index)
    FamilyArena(memory).release(index, process: Int(privateState.pointee.process))
}

/// Whether the kernel's close would reset the connection: bytes are unread (the urgent one, too, which is none of FIONREAD's), or
/// SO_LINGER says so.
private func closeResets(_ fd: Int32) -> Bool {
    var queued: Int32 = 0
    if ss_sys_ioctl(fd, ss_fionread, &queued) == 0, queued > 0 { return true }
    if ss_sys_ioctl(fd, Session.atMarkRequest, &queued) == 0, queued != 0 { return true }
    var value = linger()
    var length = UInt32(MemoryLayout<linger>.size)
    return ss_sys_getsockopt(fd, SOL_SOCKET, SO_LINGER, &value, &length) == 0 && value.l_onoff != 0 && value.l_linger == 0
}

/// Takes the pending list's lock; false: this thread has it already (also in a handler that interrupted its holder, set past
/// libc), goes on without, and must not give it back. Whoever has it is through within microseconds, or, when it forks or
/// the machine is busy, milliseconds: going on without it would tear the records.
@discardableResult
func waitForPendingLock() -> Bool {
    var rounds = 0
    var deadline: UInt64 = 0
    while true {
        if lockPending() { return true }
        if ownsPendingLock { return false }
        rounds &+= 1
        if rounds < 64 {
            ss_pause()
            continue
        }
        let now = ss_monotonic_ns()
        if deadline == 0 { deadline = now &+ pendingPatienceNanoseconds }
        if now >= deadline { return takePendingFromDead() }
        var pause = timespec(tv_sec: 0, tv_nsec: rounds < 128 ? 0 : 50_000)
        _ = rounds < 128 ? ss_sys_sched_yield() : ss_sys_brief_ppoll(nil, 0, &pause)
    }
}

private var pendingPatienceNanoseconds: UInt64 { 1_000_000_000 }

package func switchCloseRange(_ first: UInt32, _ last: UInt32, _ flags: Int32) -> Int {
    // What the kernel refuses closes nothing. CLOSE_RANGE_UNSHARE is 2, CLOSE_RANGE_CLOEXEC 4.
    if first > last || flags & ~6 != 0 { return ss_sys_close_range(first, last, flags) }
    let closes = flags & 4 == 0  // CLOSE_RANGE_CLOEXEC
    // CLOSE_RANGE_UNSHARE closes the calling thread's own copy of the descriptors: where there are other threads, they keep all.
    guard closes, !isForeignChild(), flags & 2 == 0 || ss_has_other_threads() == 0 else { return closeRangeAroundOwn(first, last, flags) }
    let end = min(UInt64(last) + 1, UInt64(SS_DESCRIPTORS))
    var fd = UInt64(first)
    while fd < end {
        let entry = ss_descriptor_load(UInt32(fd))
        if entry != 0, entryKind(entry) != DescriptorKind.own { _ = switchClose(Int32(fd)) }
        fd &+= 1
    }
    return closeRangeAroundOwn(first, last, flags)
}

/// close_range(2) for all but the library's own descriptors.
private func closeRangeAroundOwn(_ first: UInt32, _ last: UInt32, _ flags: Int32) -> Int {
    var start = UInt64(first)
    let end = UInt64(last)
    var fd = start
    let known = min(end + 1, UInt64(SS_DESCRIPTORS))
    while fd < known {
        if entryKind(ss_descriptor_load(UInt32(fd))) == DescriptorKind.own {
            if fd > start {
                let result = ss_sys_close_range(UInt32(start), UInt32(fd - 1), flags)
                if result < 0 { return result }
            }
            start = fd + 1
        }
        fd += 1
    }
    if start > end { return 0 }
    return ss_sys_close_range(UInt32(start), last, flags)
}

// MARK: Duplicating

package func switchDuplicate(_ fd: Int32) -> Int { switchFileControl(fd, F_DUPFD, 0) }

/// dup2 and dup3 (`flags` O_CLOEXEC or 0); `old != new`. The caller did the argument checks that dup3 makes.
package func switchDuplicate(_ old: Int32, onto new: Int32, _ flags: Int32) -> Int {
    if entryKind(descriptorEntry(old)) == DescriptorKind.own { return -Int(EBADF) }
    if entryKind(descriptorEntry(new)) == DescriptorKind.own { return -Int(EBADF) }
    if isForeignChild() {
        handOverBeforeExec(old, as: new)
        return rawDuplicate(old, new, flags)
    }
    // Only when the call will succeed may the old meaning of `new` end.
    if descriptorEntry(new) != 0, isAllowedNumber(new), ss_sys_fcntl(old, F_GETFD, 0) >= 0 { dropEntry(new) }
    let result = rawDuplicate(old, new, flags)
    if result >= 0, descriptorEntry(old) != 0 { shareEntry(of: old, with: new) }
    return result
}

/// A descriptor may have a number that a limit lowered since then forbids.
private func isAllowedNumber(_ fd: Int32) -> Bool {
    var limit = rlimit()
    return ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &limit) != 0 || rlim_t(fd) < limit.rlim_cur
}

func rawDuplicate(_ old: Int32, _ new: Int32, _ flags: Int32) -> Int {
    ss_syscall6(Int(SYS_dup3), Int(old), Int(new), Int(flags), 0, 0, 0)
}
