import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// Peers that were found not to be switched, remembered for a second so that short connections to them cost nothing. A
/// remembered "no" expires soon: the peer may be restarted under the switch.
///
/// 64 entries of {hash of the address, expiry}; a collision only means that a connection announces itself a little later.
/// Lock-free, safe anywhere.
private let refusalNanoseconds: UInt64 = 1_000_000_000

private func refusalEntry(_ hash: UInt64) -> UnsafeMutableRawPointer {
    ss_refusals_address() + Int(hash & 63) * 16
}

/// Over family, address and, unless the whole host is meant, port.
private func refusalHash(_ address: CompactAddress, wholeHost: Bool) -> UInt64 {
    var storage = InlineArray<32, UInt8>(repeating: 0)
    return withUnsafeMutablePointer(to: &storage) {
        let hashed = CompactAddress(UnsafeMutableRawPointer($0))
        memcpy(hashed.base, address.base, 24)
        if wholeHost { hashed.port = 0 }
        return ss_mark(hashed.base, 24) | 1
    }
}

func rememberRefusal(_ address: CompactAddress, wholeHost: Bool) {
    let hash = refusalHash(address, wholeHost: wholeHost)
    let entry = refusalEntry(hash)
    Word(entry, 8).store(ss_monotonic_ns() &+ refusalNanoseconds)
    Word(entry, 0).store(hash)
}

func isRefused(_ address: CompactAddress, wholeHost: Bool, _ now: UInt64) -> Bool {
    let hash = refusalHash(address, wholeHost: wholeHost)
    let entry = refusalEntry(hash)
    return Word(entry, 0).load() == hash && Word(entry, 8).load() > now
}
