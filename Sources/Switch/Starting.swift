import CSocketSwitch
#if !hasFeature(Embedded)
import Rendezvous
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

/// Reads the configuration. Called once, from the library's constructor; does nothing else, so that a program without
/// stream sockets pays nothing. The strings must live for ever.
package func switchStart(
    service: UnsafePointer<CChar>?, policy: UnsafePointer<CChar>?, wait: UnsafePointer<CChar>?, upgrade: UnsafePointer<CChar>?,
    seccomp: UnsafePointer<CChar>? = nil
) {
    let state = privateState
    startBaseProvider()
    state.pointee.pid = Int32(ss_sys_getpid())
    state.pointee.servicePath = service
    state.pointee.enabled = service != nil
    state.pointee.neverSpin = startsWith(wait, "never")
    state.pointee.eager = startsWith(upgrade, "eager")
    state.pointee.ignoresFilters = startsWith(seccomp, "ignore")
    ss_session_state.never_spin = state.pointee.neverSpin ? 1 : 0
    state.pointee.policyText = policy
}

private func startsWith(_ text: UnsafePointer<CChar>?, _ prefix: StaticString) -> Bool {
    guard let text else { return false }
    return strncmp(text, UnsafeRawPointer(prefix.utf8Start).assumingMemoryBound(to: CChar.self), prefix.utf8CodeUnitCount) == 0
}

/// Values of `PrivateState.startState`.
enum StartState {
    static var notYet: UInt32 { 0 }
    static var underWay: UInt32 { 1 }
    static var ready: UInt32 { 2 }
    static var impossible: UInt32 { 3 }
}

/// Makes the arena and starts the providers, at the first stream socket. False: this process stays on TCP (no memory, a
/// seccomp filter, …). Errors of the program are not touched.
package func ensureStarted() -> Bool {
    let word = HalfWord(UnsafeMutableRawPointer(privateState), MemoryLayout<PrivateState>.startStateOffset)
    let found = word.load()
    if found == StartState.ready { return true }
    if found != StartState.notYet { return false }
    // A vfork child is on its parent's memory: its own sockets stay on TCP, and the parent starts with its own first one.
    if ss_memory_is_lent() != 0, ss_sys_getpid() != Int(privateState.pointee.pid) { return false }
    guard word.compareExchange(StartState.notYet, StartState.underWay) == StartState.notYet else {
        // Another thread (or the one that this signal handler interrupted) is at it: the socket stays on TCP.
        return false
    }
    let isForbidden = isForbidden()
    if isForbidden { ss_give_signals_up() }
    let done = privateState.pointee.enabled && !isForbidden && startSwitch()
    word.store(done ? StartState.ready : StartState.impossible)
    return done
}

extension MemoryLayout where T == PrivateState {
    /// The record's first fields.
    static var startStateOffset: Int { 0 }
    static var pendingLockOffset: Int { 4 }
    static var readinessOffset: Int { 8 }
    static var firstPendingOffset: Int { 16 }
    static var trackedDescriptorsOffset: Int { 20 }
    static var replacementsUnderWayOffset: Int { 24 }
    static var replacementsOffset: Int { 28 }
}

/// A filter of system calls is in force: it may punish what the library would do.
private func isForbidden() -> Bool { !privateState.pointee.ignoresFilters && isConfinedFromOutside() }

private func startSwitch() -> Bool {
    let state = privateState
    let name: StaticString = "sockswitch"
    guard !FamilyArena.exceedsFileSizeLimit else { return false }
    let created = ss_sys_memfd_create(
        UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self), ss_mfd_cloexec | ss_mfd_allow_sealing)
    if created < 0 { return false }
    let descriptor = Int32(created)
    guard ss_sys_ftruncate(descriptor, Int64(FamilyArena.bytes)) == 0,
        ss_sys_fcntl(descriptor, ss_f_add_seals, Int(ss_seal_fixed_size)) == 0,
        let memory = mapShared(descriptor, FamilyArena.bytes),
        let records = mapPrivate(SwitchMemory.bytes)
    else {
        _ = ss_sys_close(descriptor)
        return false
    }
    let arena = FamilyArena(memory)
    arena.initialize()
    state.pointee.pid = Int32(ss_sys_getpid())
    ss_mark_own_memory(records + SwitchMemory.markOffset)
    let process = arena.addProcess(pid: UInt64(UInt32(bitPattern: state.pointee.pid)))
    readProgramName(into: arena.process(process).name)
    state.pointee.process = Int32(process)
    state.pointee.connections = (records + SwitchMemory.connectionsOffset).bindMemory(to: Connection.self, capacity: FamilyArena.slotCount)
    state.pointee.providers = records.bindMemory(to: ProviderEntry.self, capacity: SwitchMemory.maximumProviders)
    state.pointee.handles = records + SwitchMemory.handlesOffset
    state.pointee.arena = memory
    ss_session_state.off_word = arena.switchedOff.address
    startPolicy(programName: arena.process(process).name)
    startBuiltInProviders(arena: arena, descriptor: descriptor, process: process)
    return true
}

/// The switch's process-private mapping.
enum SwitchMemory {
    static var maximumProviders: Int { 8 }
    static var handlesOffset: Int { 65536 }
    static var maximumHandles: Int { 65536 }
    /// A page of its own, beside memory that is there anyway: a mapping of one page could fall into a hole of the program's.
    static var markOffset: Int { handlesOffset + maximumHandles * 16 }
    static var connectionsOffset: Int { markOffset + 4096 }
    static var bytes: Int { connectionsOffset + FamilyArena.slotCount * MemoryLayout<Connection>.stride }
}

private func mapShared(_ descriptor: Int32, _ bytes: Int) -> UnsafeMutableRawPointer? {
    let address = ss_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor, 0)
    return address < 0 && address > -4096 ? nil : UnsafeMutableRawPointer(bitPattern: address)
}

func mapPrivate(_ bytes: Int) -> UnsafeMutableRawPointer? {
    let address = ss_sys_mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return address < 0 && address > -4096 ? nil : UnsafeMutableRawPointer(bitPattern: address)
}

private func readProgramName(into name: UnsafeMutableRawPointer) {
    let path: StaticString = "/proc/self/comm"
    let opened = ss_sys_open_to_read(UnsafeRawPointer(path.utf8Start).assumingMemoryBound(to: CChar.self))
    guard opened >= 0 else { return }
    let count = ss_sys_read(Int32(opened), name, ProcessEntry.nameBytes - 1)
    _ = ss_sys_close(Int32(opened))
    if count > 0, name.load(fromByteOffset: count - 1, as: UInt8.self) == 10 { name.storeBytes(of: 0, toByteOffset: count - 1, as: UInt8.self) }
}
