import CSocketSwitch
import Glibc
import SocketTable

/// An address and port, normalised: IPv4 is kept v4-mapped, so that an IPv6 socket that carries IPv4 and its IPv4 peer
/// agree. The scope of a link-local address is left out: the two ends may see it under different interfaces.
package struct Endpoint: Hashable, Sendable {
    /// The IPv6 address in host order.
    package var high: UInt64
    package var low: UInt64
    package var port: UInt16

    private static let mappedPrefix: UInt64 = 0xFFFF << 32

    /// Nil unless the address is IPv4 or IPv6.
    package init?(_ address: CompactAddress) {
        switch Int32(address.family) {
        case AF_INET:
            high = 0
            low = Endpoint.mappedPrefix | UInt64(UInt32(bigEndian: address.bytes.load(as: UInt32.self)))
        case AF_INET6:
            high = UInt64(bigEndian: address.bytes.load(as: UInt64.self))
            low = UInt64(bigEndian: address.bytes.load(fromByteOffset: 8, as: UInt64.self))
        default:
            return nil
        }
        port = address.port
    }

    /// Nil unless the kernel's socket address is IPv4 or IPv6.
    init?(socketAddress: UnsafeRawPointer, length: Int) {
        let made: Endpoint? = withUnsafeTemporaryAllocation(byteCount: 32, alignment: 8) { storage in
            let address = CompactAddress(storage.baseAddress!)
            return address.set(socketAddress, length: length) ? Endpoint(address) : nil
        }
        guard let made else { return nil }
        self = made
    }

    private init(high: UInt64, low: UInt64, port: UInt16) {
        self.high = high
        self.low = low
        self.port = port
    }

    package var isIPv4: Bool { high == 0 && low >> 32 == 0xFFFF }
    package var isLoopback: Bool { isIPv4 ? low >> 24 & 0xFF == 127 : high == 0 && low == 1 }
    package var isLinkLocal: Bool { isIPv4 ? low >> 16 & 0xFFFF == 0xA9FE : high >> 54 == 0x3FA }

    /// The wildcard addresses that also accept connections to this one.
    package var wildcards: [Endpoint] {
        let any = Endpoint(high: 0, low: 0, port: port)
        return isIPv4 ? [Endpoint(high: 0, low: Endpoint.mappedPrefix, port: port), any] : [any]
    }

    /// The 16 bytes of the address in network order.
    var networkBytes: (UInt64, UInt64) { (high.bigEndian, low.bigEndian) }

    /// `127.0.0.1:80`, `[::1]:80`.
    package var text: String {
        if isIPv4 { return "\(low >> 24 & 255).\(low >> 16 & 255).\(low >> 8 & 255).\(low & 255):\(port)" }
        var bytes = networkBytes
        var buffer = [CChar](repeating: 0, count: 64)
        guard inet_ntop(AF_INET6, &bytes, &buffer, 64) != nil else { return "" }
        return "[\(String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))]:\(port)"
    }
}
