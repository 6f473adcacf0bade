import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// A provider as the session and the switch call it: the table of its calls and its extension functions (WSD-I3, I4).
/// The switch fills one when it loads the provider; constant afterwards.
package struct ProviderTable {
    package var calls = WSPPROC_TABLE()
    package var info = WSAPROTOCOL_INFO()
    package var registerRdmaMemory: LPFN_WSPREGISTERRDMAMEMORY?
    package var deregisterRdmaMemory: LPFN_WSPDEREGISTERRDMAMEMORY?
    package var rdmaWrite: LPFN_WSPRDMAWRITE?
    /// Optional (WSD-I4).
    package var rdmaRead: LPFN_WSPRDMAREAD?
    package var memoryRegistrationCacheCallback: LPFN_WSPMEMORYREGISTRATIONCACHECALLBACK?
    package var allocateRdmaMemory: LPFN_WSPALLOCATERDMAMEMORY?
    package var mapRdmaMemory: LPFN_WSPMAPRDMAMEMORY?
    /// Raised by the provider when WSPEnumNetworkEvents may have news; nil: it must be asked each time.
    package var eventWord: UnsafeMutableRawPointer?

    package init() {}
}
