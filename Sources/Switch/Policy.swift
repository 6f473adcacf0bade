import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
#endif

/// The operator's policy: which connections may have a companion. At most 64 rules in fixed memory; the text is
/// documented at `Environment` in Rendezvous/Messages.swift.
///
/// Parsed once, at the program's first TCP socket; read-only afterwards, so any thread, a signal handler and a forked child
/// may ask. A text that is not a policy keeps everything on TCP: a rule `tcp` must not get lost in a typing error.
///
///     0 u32 rules in force    4 u32 1 = not a policy    8 u32 1 = wildcard = per-interface
///     16 + 32·n: u8 action    1 u8 family (0 any, 4, 6)    2 u8 prefix    4 u16 low port    6 u16 high port    8 16 B network
package struct Policy {
    package let base: UnsafeMutableRawPointer
    @inline(__always) package init(_ base: UnsafeMutableRawPointer) { self.base = base }

    package static var maximumRules: Int { 64 }
    package static var bytes: Int { 16 + 32 * 64 }

    /// The process's policy, at the end of the private state. Zeroed memory is the empty policy, which allows everything.
    @inline(__always)
    package static var ofProcess: Policy { Policy(ss_private_state_address() + (Int(SS_PRIVATE_STATE_BYTES) - 4096)) }

    /// Rules that can match this program.
    package var ruleCount: Int { Int(base.load(as: UInt32.self)) }
    package var isMalformed: Bool { base.load(fromByteOffset: 4, as: UInt32.self) != 0 }

    /// WSD-C14: a listener on the wildcard gets one companion an address instead of one on the wildcard.
    package var wildcardIsPerInterface: Bool { base.load(fromByteOffset: 8, as: UInt32.self) != 0 }

    /// Reads a compiled policy, leaving out the rules of other programs. `program`: the program's name (`comm`).
    /// False when the text is malformed or has more than 64 rules.
    @discardableResult
    package func parse(text: UnsafePointer<CChar>, program: UnsafePointer<CChar>) -> Bool {
        memset(base, 0, Policy.bytes)
        var scanner = PolicyScanner(text: text)
        var seen = 0
        if scanner.peek == 0 { return true }
        if scanner.take(UInt8(ascii: "w")) {
            guard scanner.take(UInt8(ascii: ",")), scanner.take(UInt8(ascii: "i")) else { return refuse() }
            base.storeBytes(of: 1, toByteOffset: 8, as: UInt32.self)
            if scanner.peek == 0 { return true }
            guard scanner.take(UInt8(ascii: ";")) else { return refuse() }
        }
        while true {
            seen &+= 1
            guard seen <= Policy.maximumRules, let applies = scanner.rule(base + 16 + 32 * ruleCount, program) else { break }
            if applies { base.storeBytes(of: UInt32(truncatingIfNeeded: ruleCount &+ 1), as: UInt32.self) }
            if scanner.peek == 0 { return true }
            guard scanner.take(UInt8(ascii: ";")) else { break }
        }
        return refuse()
    }

    private func refuse() -> Bool {
        memset(base, 0, Policy.bytes)
        base.storeBytes(of: 1, toByteOffset: 4, as: UInt32.self)
        return false
    }

    /// May a connection with this address have a companion? For connect the address is the destination, for listen and
    /// accept the local one. IPv4 in an IPv6 address is matched as IPv4.
    package func allows(address: CompactAddress) -> Bool {
        if isMalformed { return false }
        let count = min(ruleCount, Policy.maximumRules)
        if count == 0 { return true }
        var family: UInt8 = Int32(address.family) == AF_INET ? 4 : Int32(address.family) == AF_INET6 ? 6 : 0
        var bytes = UnsafeRawPointer(address.bytes)
        if family == 6, Policy.isMapped(bytes) {
            family = 4
            bytes += 12
        }
        let port = address.port
        for index in 0..<count {
            let rule = base + 16 + 32 * index
            let ruleFamily = rule.load(fromByteOffset: 1, as: UInt8.self)
            if ruleFamily != 0 {
                let prefix = Int(rule.load(fromByteOffset: 2, as: UInt8.self))
                guard ruleFamily == family, Policy.matches(bytes, rule + 8, bits: prefix) else { continue }
            }
            guard port >= rule.load(fromByteOffset: 4, as: UInt16.self), port <= rule.load(fromByteOffset: 6, as: UInt16.self)
            else { continue }
            return rule.load(as: UInt8.self) == 1
        }
        return true
    }

    private static func isMapped(_ bytes: UnsafeRawPointer) -> Bool {
        for index in 0..<10 where bytes.load(fromByteOffset: index, as: UInt8.self) != 0 { return false }
        return bytes.load(fromByteOffset: 10, as: UInt8.self) == 255 && bytes.load(fromByteOffset: 11, as: UInt8.self) == 255
    }

    private static func matches(_ bytes: UnsafeRawPointer, _ network: UnsafeMutableRawPointer, bits: Int) -> Bool {
        let whole = bits >> 3
        for index in 0..<whole {
            if bytes.load(fromByteOffset: index, as: UInt8.self) != network.load(fromByteOffset: index, as: UInt8.self) { return false }
        }
        let rest = bits & 7
        if rest == 0 { return true }
        let mask: UInt8 = ~(0xFF >> UInt8(truncatingIfNeeded: rest))
        let difference = bytes.load(fromByteOffset: whole, as: UInt8.self) ^ network.load(fromByteOffset: whole, as: UInt8.self)
        return difference & mask == 0
    }
}

/// Reads a compiled policy byte by byte; never goes beyond the terminating zero.
struct PolicyScanner {
    private var text: UnsafePointer<CChar>

    init(text: UnsafePointer<CChar>) { self.text = text }

    /// The next byte, 0 at the end.
    var peek: UInt8 { UInt8(bitPattern: text.pointee) }

    mutating func take(_ byte: UInt8) -> Bool {
        guard peek == byte, byte != 0 else { return false }
        text += 1
        return true
    }

    /// Reads one rule into 32 zeroed bytes. Nil: malformed; false: of another program, and `rule` is zeroed again.
    mutating func rule(_ rule: UnsafeMutableRawPointer, _ program: UnsafePointer<CChar>) -> Bool? {
        if take(UInt8(ascii: "a")) {
            rule.storeBytes(of: 1, as: UInt8.self)
        } else if !take(UInt8(ascii: "t")) {
            return nil
        }
        guard take(UInt8(ascii: ",")) else { return nil }
        let glob = text
        while peek != 0, peek != UInt8(ascii: ","), peek != UInt8(ascii: ";") { text += 1 }
        let globEnd = text
        guard globEnd != glob, take(UInt8(ascii: ",")), network(rule), take(UInt8(ascii: ",")), ports(rule) else { return nil }
        if PolicyScanner.matches(glob, globEnd, program) { return true }
        memset(rule, 0, 32)
        return false
    }

    private mutating func network(_ rule: UnsafeMutableRawPointer) -> Bool {
        if take(UInt8(ascii: "*")) { return true }
        let length: Int
        if take(UInt8(ascii: "4")) {
            rule.storeBytes(of: 4, toByteOffset: 1, as: UInt8.self)
            length = 4
        } else if take(UInt8(ascii: "6")) {
            rule.storeBytes(of: 6, toByteOffset: 1, as: UInt8.self)
            length = 16
        } else {
            return false
        }
        guard take(UInt8(ascii: ":")) else { return false }
        for index in 0..<length {
            guard let high = hexDigit(), let low = hexDigit() else { return false }
            rule.storeBytes(of: high << 4 | low, toByteOffset: 8 + index, as: UInt8.self)
        }
        guard take(UInt8(ascii: "/")), let prefix = number(atMost: UInt32(truncatingIfNeeded: length * 8)) else { return false }
        rule.storeBytes(of: UInt8(truncatingIfNeeded: prefix), toByteOffset: 2, as: UInt8.self)
        return true
    }

    private mutating func ports(_ rule: UnsafeMutableRawPointer) -> Bool {
        var low: UInt32 = 0
        var high: UInt32 = 65535
        if !take(UInt8(ascii: "*")) {
            guard let first = number(atMost: 65535), take(UInt8(ascii: "-")), let last = number(atMost: 65535), first <= last
            else { return false }
            low = first
            high = last
        }
        rule.storeBytes(of: UInt16(truncatingIfNeeded: low), toByteOffset: 4, as: UInt16.self)
        rule.storeBytes(of: UInt16(truncatingIfNeeded: high), toByteOffset: 6, as: UInt16.self)
        return true
    }

    private mutating func hexDigit() -> UInt8? {
        let byte = peek
        let value: UInt8
        switch byte {
        case 48...57: value = byte &- 48
        case 97...102: value = byte &- 87
        default: return nil
        }
        text += 1
        return value
    }

    private mutating func number(atMost maximum: UInt32) -> UInt32? {
        var value: UInt32 = 0
        var digits = 0
        while peek >= 48, peek <= 57 {
            value = value &* 10 &+ UInt32(peek &- 48)
            digits &+= 1
            if digits > 5 || value > maximum { return nil }
            text += 1
        }
        return digits > 0 ? value : nil
    }

    /// Glob matching with `*` only: at a mismatch the last `*` swallows one byte more. At most program × glob steps.
    private static func matches(_ glob: UnsafePointer<CChar>, _ end: UnsafePointer<CChar>, _ program: UnsafePointer<CChar>) -> Bool {
        var pattern = glob
        var name = program
        var star: UnsafePointer<CChar>?
        var swallowed = program
        while name.pointee != 0 {
            if pattern != end, pattern.pointee == 42 /* * */ {
                star = pattern
                pattern += 1
                swallowed = name
            } else if pattern != end, pattern.pointee == name.pointee {
                pattern += 1
                name += 1
            } else if let last = star {
                swallowed += 1
                name = swallowed
                pattern = last + 1
            } else {
                return false
            }
        }
        while pattern != end, pattern.pointee == 42 { pattern += 1 }
        return pattern == end
    }
}
