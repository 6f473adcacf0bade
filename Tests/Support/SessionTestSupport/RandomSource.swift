import CSocketSwitch
import Glibc

/// A small seeded generator (SplitMix64): the same seed gives the same numbers on every machine.
package struct RandomSource: RandomNumberGenerator, Sendable {
    private var state: UInt64

    package init(_ seed: UInt64) { state = seed }

    package mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }

    package mutating func next(below bound: UInt64) -> UInt64 { next() % bound }
    package mutating func oneIn(_ count: UInt64) -> Bool { next(below: count) == 0 }

    /// 1 … 2^`bits`, every order of magnitude equally often.
    package mutating func logUniform(bits: UInt64) -> Int {
        let magnitude = next(below: bits)
        return Int((1 << magnitude) + next(below: 1 << magnitude) + 1) - 1
    }
}

/// The bytes of a test stream: position `p` holds byte `p mod period` of a seeded table, so that any piece of the stream
/// can be sent from, and compared with, memory.
package final class StreamPattern: @unchecked Sendable {
    /// A prime: no ring size, segment size or page size divides it.
    package static let period = 1_048_573
    package static let longest = 4 << 20
    private let table: UnsafeMutableRawPointer
    /// The table as a file, for sendfile.
    package let file: Int32

    package init(_ seed: UInt64) {
        let bytes = StreamPattern.period + StreamPattern.longest
        file = memfd_create("pattern", UInt32(MFD_CLOEXEC))
        precondition(file >= 0 && ftruncate(file, bytes) == 0)
        table = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        var random = RandomSource(seed)
        var at = 0
        while at < StreamPattern.period {
            table.storeBytes(of: random.next(), toByteOffset: at, as: UInt64.self)
            at += 8
        }
        while at < bytes {
            let count = min(StreamPattern.period, bytes - at)
            at = max(StreamPattern.period, at - at % StreamPattern.period)
            memcpy(table + at, table, min(count, bytes - at))
            at += min(count, bytes - at)
        }
    }

    deinit {
        munmap(table, StreamPattern.period + StreamPattern.longest)
        close(file)
    }

    /// The next `longest` bytes of the stream from `position` on.
    package func bytes(at position: UInt64) -> UnsafeMutableRawPointer { table + offset(of: position) }
    package func offset(of position: UInt64) -> Int { Int(position % UInt64(StreamPattern.period)) }

    package func matches(_ bytes: UnsafeRawPointer, at position: UInt64, count: Int) -> Bool {
        memcmp(bytes, self.bytes(at: position), count) == 0
    }
}
