import CSocketSwitch
import Glibc
import SocketTable
import Switch
import Testing

@Suite("Policy in the library") struct PolicyTests {
    private final class Memory {
        let base = UnsafeMutableRawPointer.allocate(byteCount: Switch.Policy.bytes + 64, alignment: 16)
        init() { memset(base, 0xEE, Switch.Policy.bytes + 64) }
        deinit { base.deallocate() }
        var isIntactBehind: Bool {
            (Switch.Policy.bytes..<(Switch.Policy.bytes + 64)).allSatisfy { base.load(fromByteOffset: $0, as: UInt8.self) == 0xEE }
        }
    }

    private func allows(_ text: String, program: String = "redis-server", _ address: String, _ port: UInt16) -> Bool {
        let memory = Memory()
        let policy = Policy(memory.base)
        policy.parse(text: text, program: program)
        #expect(memory.isIntactBehind)
        return withUnsafeTemporaryAllocation(byteCount: 32, alignment: 8) { storage in
            memset(storage.baseAddress!, 0, 32)
            let compact = CompactAddress(storage.baseAddress!)
            compact.port = port
            if inet_pton(AF_INET, address, compact.bytes) == 1 {
                compact.family = UInt16(AF_INET)
            } else if inet_pton(AF_INET6, address, compact.bytes) == 1 {
                compact.family = UInt16(AF_INET6)
            }
            return policy.allows(address: compact)
        }
    }

    private func isPolicy(_ text: String) -> Bool {
        let memory = Memory()
        let result = Policy(memory.base).parse(text: text, program: "x")
        #expect(memory.isIntactBehind)
        #expect(result != Policy(memory.base).isMalformed)
        return result
    }

    @Test("Nothing said allows everything")
    func empty() {
        #expect(allows("", "127.0.0.1", 80))
        let memory = Memory()
        memset(memory.base, 0, Policy.bytes)
        #expect(Policy(memory.base).ruleCount == 0 && !Policy(memory.base).isMalformed)
    }

    @Test("The first rule that matches decides")
    func firstMatch() {
        let text = "a,*,4:7f000001/32,80-90;t,*,*,80-80;t,*,4:0a000000/8,*"
        #expect(allows(text, "127.0.0.1", 80))
        #expect(!allows(text, "127.0.0.2", 80))
        #expect(allows(text, "127.0.0.2", 81))
        #expect(!allows(text, "10.255.0.1", 1))
        #expect(allows(text, "11.0.0.1", 1))
        #expect(!allows(text, "::1", 80))
    }

    @Test("WSD-C14: the setting for wildcard listeners comes first and changes no rule")
    func wildcard() {
        for (text, expected) in [("", false), ("a,*,*,*", false), ("w,i", true), ("w,i;t,*,*,80-80", true)] {
            let memory = Memory()
            #expect(Policy(memory.base).parse(text: text, program: "x"))
            #expect(Policy(memory.base).wildcardIsPerInterface == expected, "\(text)")
        }
        #expect(!allows("w,i;t,*,*,80-80", "127.0.0.1", 80))
        #expect(allows("w,i;t,*,*,80-80", "127.0.0.1", 81))
        let rule = "a,*,*,1-1"
        #expect(isPolicy("w,i;" + Array(repeating: rule, count: 64).joined(separator: ";")))
    }

    @Test("Prefixes of every length", arguments: 0...32)
    func prefixes(bits: Int) {
        // 255.255.255.255 differs from the network in every bit after the prefix.
        let mask: UInt32 = bits == 0 ? 0 : ~0 << UInt32(32 - bits)
        let digits = String(mask, radix: 16)
        let text = "t,*,4:" + String(repeating: "0", count: 8 - digits.count) + digits + "/\(bits),*"
        #expect(!allows(text, "255.255.255.255", 1))
        if bits > 0 {
            let other = mask ^ (1 << UInt32(32 - bits))
            #expect(allows(text, "\(other >> 24).\(other >> 16 & 255).\(other >> 8 & 255).\(other & 255)", 1))
        }
    }

    @Test("IPv6, and IPv4 in IPv6 clothes")
    func families() {
        #expect(!allows("t,*,6:20010db8000000000000000000000000/32,*", "2001:db8:ffff::1", 1))
        #expect(allows("t,*,6:20010db8000000000000000000000000/32,*", "2001:db9::1", 1))
        #expect(!allows("t,*,4:7f000000/8,*", "::ffff:127.0.0.1", 1))
        #expect(allows("t,*,4:00000000/0,*", "::1", 1))
        #expect(allows("t,*,6:00000000000000000000000000000000/0,*", "1.2.3.4", 1))
        #expect(allows("t,*,6:00000000000000000000000000000000/0,*", "::ffff:1.2.3.4", 1))
    }

    @Test("Globs", arguments: [
        ("*", "anything", true), ("redis", "redis", true), ("redis", "redis-server", false), ("redis*", "redis-server", true),
        ("*server", "redis-server", true), ("r*s*r", "redis-server", true), ("*", "", true), ("a*", "", false),
        ("*a*b*c*", "xaxbxc", true), ("*a*b*c*", "xaxcxb", false), ("**", "x", true), ("a*a", "a", false), ("*aab", "aaaaab", true),
    ])
    func globs(glob: String, program: String, matches: Bool) {
        #expect(allows("t,\(glob),*,*", program: program, "127.0.0.1", 1) == !matches)
    }

    @Test("Sixty-four rules, also when most are of other programs")
    func bounds() {
        let rule = "a,*,*,1-1"
        #expect(isPolicy(Array(repeating: rule, count: 64).joined(separator: ";")))
        #expect(!isPolicy(Array(repeating: rule, count: 65).joined(separator: ";")))
        #expect(!allows((Array(repeating: "a,other,*,*", count: 63) + ["t,*,*,*"]).joined(separator: ";"), "127.0.0.1", 1))
    }

    @Test("What is not a policy keeps everything on TCP", arguments: [
        "x", "a", "a,", "a,*", "a,*,*", "a,*,*,", "a,,*,*", "a,*,*,*;", ";", "a,*,*,*,", "a,*,*,* ", "allow,*,*,*", "a,*,4:7f0000/8,*",
        "a,*,4:7F000000/8,*", "a,*,4:7f000000/33,*", "a,*,4:7f000000/,*", "a,*,4:7f000000,*", "a,*,5:7f000000/8,*", "a,*,*,70000-70000",
        "w", "w,", "w,x", "w,i,", "w,i;", "w,i;w,i", "a,*,*,*;w,i", "a,*,*,5-4", "a,*,*,5", "a,*,*,99999999999-1", "a,*,6:00/8,*", "a,*,*,*;t", "a,*,*,*;;t,*,*,*", "a*;*,*,*",
    ])
    func garbage(text: String) {
        #expect(!isPolicy(text))
        #expect(!allows(text, "127.0.0.1", 1))
    }

    @Test("Random bytes do no harm", arguments: [1, 2, 3] as [UInt64])
    func random(seed: UInt64) {
        var state = seed
        func next(_ bound: UInt64) -> UInt64 {
            state = state &* 6364136223846793005 &+ 1442695040888963407
            return (state >> 33) % bound
        }
        let alphabet = Array("at,;*46:/-0123456789abcdefxr".utf8)
        for _ in 0..<20_000 {
            let count = Int(next(60))
            let text = String(decoding: (0..<count).map { _ in alphabet[Int(next(UInt64(alphabet.count)))] }, as: UTF8.self)
            _ = isPolicy(text)
        }
    }
}
