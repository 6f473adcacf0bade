#if !hasFeature(Embedded)
import CSocketSwitch
import ServiceProviders
import Session
import SocketTable

/// For tests: starts the switch of this process with `provider` as its one SAN provider, and without a service.
/// False: it had been started before.
package func switchStartForTests(provider: LPWSPSTARTUPEX) -> Bool {
    let state = privateState
    guard state.pointee.arena == nil else { return false }
    switchStart(service: nil, policy: nil, wait: nil, upgrade: nil)
    state.pointee.enabled = true
    state.pointee.onlyProvider = provider
    return ensureStarted()
}

/// For tests: ends the use of every provider (WSD-X3) and starts `provider` afresh, with nothing remembered of peers.
/// No socket with a companion may be open.
package func switchRestartForTests(provider: LPWSPSTARTUPEX) -> Bool {
    let state = privateState
    guard firstPending.load() == 0, let entries = state.pointee.providers else { return false }
    for index in 0..<Int(state.pointee.providerCount) {
        let entry = entries + index
        var error: Int32 = 0
        if entry.pointee.addressSocket != 0 { _ = entry.pointee.table.calls.lpWSPCloseSocket?(entry.pointee.addressSocket, &error) }
        entry.pointee.addressSocket = 0
        _ = entry.pointee.table.calls.lpWSPCleanup?(&error)
    }
    state.pointee.providerCount = 0
    memset(ss_refusals_address(), 0, 1024)
    return addProvider(provider)
}
#endif
