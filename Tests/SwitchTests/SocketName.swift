import CSocketSwitch
import Glibc

/// An IPv4 or IPv6 address with its port, as the kernel takes it and as a person reads it: "127.0.0.1:80", "[::1]:80".
struct SocketName: CustomStringConvertible, Equatable {
    var family: Int32
    /// 4 or 16 bytes.
    var address: [UInt8]
    var port: UInt16

    init(_ text: String, _ port: UInt16) {
        var bytes = [UInt8](repeating: 0, count: 16)
        family = inet_pton(AF_INET, text, &bytes) == 1 ? AF_INET : AF_INET6
        if family == AF_INET6 { precondition(inet_pton(AF_INET6, text, &bytes) == 1, "no address: \(text)") }
        address = Array(bytes.prefix(family == AF_INET ? 4 : 16))
        self.port = port
    }

    /// Nil: not such an address.
    init?(_ name: UnsafeRawPointer?, length: Int) {
        guard let name, length >= 16 else { return nil }
        family = Int32(name.loadUnaligned(as: UInt16.self))
        guard family == AF_INET || family == AF_INET6 && length >= 28 else { return nil }
        port = UInt16(bigEndian: name.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
        let start = name + (family == AF_INET ? 4 : 8)
        address = (0..<(family == AF_INET ? 4 : 16)).map { start.load(fromByteOffset: $0, as: UInt8.self) }
    }

    /// ::ffff:a.b.c.d is a.b.c.d.
    var unmapped: SocketName {
        guard family == AF_INET6, address.starts(with: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255]) else { return self }
        var name = self
        name.family = AF_INET
        name.address = Array(address.suffix(4))
        return name
    }

    static func local(_ fd: Int32) -> SocketName? { ask(fd) { ss_sys_getsockname($0, $1, $2) } }
    static func peer(_ fd: Int32) -> SocketName? { ask(fd) { ss_sys_getpeername($0, $1, $2) } }

    private static func ask(_ fd: Int32, _ call: (Int32, UnsafeMutableRawPointer, UnsafeMutablePointer<UInt32>) -> Int) -> SocketName? {
        var storage = sockaddr_storage()
        var length = UInt32(MemoryLayout<sockaddr_storage>.size)
        guard call(fd, &storage, &length) == 0 else { return nil }
        return SocketName(&storage, length: Int(length))
    }

    /// Calls `body` with the sockaddr.
    func withBytes<R>(_ body: (UnsafeRawPointer, UInt32) -> R) -> R {
        var storage = sockaddr_storage()
        return withUnsafeMutableBytes(of: &storage) { bytes in
            bytes.storeBytes(of: UInt16(family), as: UInt16.self)
            bytes.storeBytes(of: port.bigEndian, toByteOffset: 2, as: UInt16.self)
            for (index, byte) in address.enumerated() { bytes[(family == AF_INET ? 4 : 8) + index] = byte }
            return body(UnsafeRawPointer(bytes.baseAddress!), family == AF_INET ? 16 : 28)
        }
    }

    var description: String {
        var text = [CChar](repeating: 0, count: 64)
        inet_ntop(family, address, &text, 64)
        let host = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return family == AF_INET ? "\(host):\(port)" : "[\(host)]:\(port)"
    }
}
