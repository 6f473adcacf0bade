import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

// fork (WSD-D1): the windows, the doorbells and the slots are shared by nature. What is left is to hold every slot for the
// child before it exists, and to let the child forget what only its parent may finish: announcements.

/// The three hooks of pthread_atfork. Run for fork, daemon, forkpty; not for vfork and posix_spawn, whose children only
/// exec (they are recognised by their process id).
package func switchBeforeFork() {
    let state = privateState
    guard switchIsActive, let memory = state.pointee.arena else { return }
    if FamilyArena(memory).isFullOfProcesses { giveSocketsUp() }
    let hasCompany = ss_has_other_threads() != 0
    let holdsPending = waitForPendingLock()
    let holdsReadiness = readinessBeforeFork()
    let mask = sharedMemoryProviderBeforeFork()
    // Other threads may be forking, too: only now, and until the provider's lock is given back, these are this thread's.
    ss_note_fork(1)
    state.pointee.forkHoldsPending = holdsPending
    state.pointee.forkHoldsReadiness = holdsReadiness
    state.pointee.forkMask = mask
    state.pointee.forkHasCompany = hasCompany
    let arena = FamilyArena(memory)
    let child = arena.reserveChild(of: Int(state.pointee.process))
    state.pointee.reservedChild = Int32(child)
    state.pointee.reservation = child >= 0 ? arena.process(child).pid.load() : 0
}

/// The child will be a stranger to the family: what it inherits must be the kernel's alone.
@inline(never)
private func giveSocketsUp() {
    var fd: Int32 = 0
    while fd < Int32(bitPattern: highestDescriptor.load()) {
        if let index = socketIndex(fd) { handOver(fd, index, to: .stranger) }
        fd &+= 1
    }
}

package func switchAfterForkInParent() {
    guard ss_note_fork(0) != 0 else { return }
    let holdsPending = privateState.pointee.forkHoldsPending
    let holdsReadiness = privateState.pointee.forkHoldsReadiness
    sharedMemoryProviderAfterForkInParent(privateState.pointee.forkMask)
    if holdsReadiness { readinessAfterForkInParent() }
    if holdsPending { unlockPending() }
}

package func switchAfterForkInChild() {
    ss_thread_id_reset()
    defer { ss_begin_signals_after_fork() }
    let state = privateState
    let isPrepared = ss_note_fork(0) != 0
    state.pointee.pid = Int32(ss_sys_getpid())
    replacementsUnderWay.store(0)
    ss_begin_copied_memory()
    guard switchIsActive, let memory = state.pointee.arena else { return }
    guard isPrepared else {
        // Another thread started the switch meanwhile: who knows how much of it this memory has.
        forgetEntries { _ in true }
        state.pointee.isConfined = true
        return ss_give_signals_up()
    }
    let arena = FamilyArena(memory)
    // Its parent is not in its PID namespace: then it is the first one there of the family.
    if ss_sys_getppid() == 0 { ss_relatives.space = UInt32(truncatingIfNeeded: arena.spaces.add(1)) }
    state.pointee.process = state.pointee.reservedChild
    arena.watch(Int(state.pointee.process))
    state.pointee.isIntroduced = false
    let pid = UInt64(UInt32(bitPattern: state.pointee.pid))
    if state.pointee.process >= 0, !arena.claim(Int(state.pointee.process), state.pointee.reservation, pid: pid) {
        // This child stood still for so long that it was taken for dead.
        state.pointee.process = Int32(arena.addProcess(pid: pid))
        arena.watch(Int(state.pointee.process))
        if state.pointee.process >= 0 { holdInherited(arena, Int(state.pointee.process)) }
    }
    if state.pointee.process >= 0 {
        memcpy(arena.process(Int(state.pointee.process)).name, arena.process(0).name, ProcessEntry.nameBytes)
    }
    sharedMemoryProviderAfterForkInChild(process: state.pointee.process, mask: state.pointee.forkMask)
    takeOverRecords(arena)
    unlockPending()
    refetchEventWords()
    readinessAfterForkInChild()
    forgetUninherited(arena, Int(state.pointee.process))
}

/// While the fork was under way other threads went on, and the kernel copies the descriptors before the memory: the table may know
/// sockets and sets that came too late to be this process's, under numbers that its next files will have. A socket that came too
/// late to be held is the kernel's alone: its parent does not know of this holder. So is each one of a child that found no room
/// among the family's processes.
private func forgetUninherited(_ arena: FamilyArena, _ process: Int) {
    let mayDiffer = privateState.pointee.forkHasCompany
    guard process < 0 || mayDiffer else { return }
    forgetEntries { fd in
        let entry = descriptorEntry(fd)
        if entryKind(entry) == DescriptorKind.socket, process < 0 || !arena.isHeld(entryIndex(entry), by: process) { return true }
        if mayDiffer, ss_sys_fcntl(fd, F_GETFD, 0) == -Int(EBADF) { dropStale(fd) }
        return false
    }
}

/// Holds again what this process has records of, as far as the slots are still the same.
private func holdInherited(_ arena: FamilyArena, _ process: Int) {
    for index in arena.usedSlots {
        let record = sessionOf(index).connection
        let slot = arena.slot(index)
        if Int32(bitPattern: sessionOf(index).descriptorCount.load()) > 0, slot.kind.load() != Slot.Kind.free, slot.generation.load() == record.pointee.generation {
            arena.hold(index, process: process)
        }
    }
}

/// The inherited records become the child's own. Companions under way, and offers, are the parent's: the child, once it is
/// alone, begins anew. Its copies are closed, which the providers keep from the peer.
private func takeOverRecords(_ arena: FamilyArena) {
    for index in arena.usedSlots {
        let session = sessionOf(index)
        if session.connection.pointee.generation != 0 { session.forgetOtherThreads() }
        switch session.connection.pointee.companionPhase {
        case CompanionPhase.connecting, CompanionPhase.negotiating:
            removePending(index)
            session.forgetSetup()
            closeCompanion(index)
        case CompanionPhase.offered:
            session.connection.pointee.companionPhase = CompanionPhase.none
        default:
            break
        }
    }
}
