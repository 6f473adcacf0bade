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

/// FNV-1a over family, address and, unless the whole host is meant, port.
private func refusalHash(_ address: CompactAddress, wholeHost: Bool) -> UInt64 {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325
    var index = 0
    while index < 24 {
        if !(wholeHost && (index == 2 || index == 3)) {
            hash = (hash ^ UInt64(address.base.load(fromByteOffset: index, as: UInt8.self))) &* 0x100_0000_01B3
        }
        index &+= 1
    }
    return hash | 1
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
