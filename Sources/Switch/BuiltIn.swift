import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
import Session
import SocketTable
import StreamRing
#endif

/// The providers that come with the switch.
func startBuiltInProviders(arena: FamilyArena, descriptor: Int32, process: Int) {
    let kept = adoptOwn(descriptor)
    if kept >= 0 { ss_relatives.arena_plus_one = kept + 1 }
    arena.watch(process)
    sharedMemoryProviderConfigure(
        servicePath: privateState.pointee.servicePath, arenaDescriptor: kept, arena: arena.base, process: Int32(process))
    if let startup = privateState.pointee.onlyProvider {
        addProvider(startup)
        return
    }
    addProvider(sharedMemoryStartupEx)
}
