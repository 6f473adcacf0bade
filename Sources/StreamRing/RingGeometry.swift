import CSocketSwitch

/// Where the bytes of a stream lie in a ring: position `p` is at `(p - origin) mod size`.
///
/// Pure arithmetic on values that the caller has already bounded.
package struct RingGeometry {
    package let origin: UInt64
    /// Bytes; a power of two in `Window.minimumRingBytes ... Window.maximumRingBytes`.
    package let size: UInt64

    @inline(__always)
    package init(origin: UInt64, size: UInt64) {
        self.origin = origin
        self.size = size
    }

    /// Whether a size that came from a peer can be used at all.
    @inline(__always)
    package static func isValid(size: UInt64) -> Bool {
        size >= Window.minimumRingBytes && size <= Window.maximumRingBytes && size & (size &- 1) == 0
    }

    /// What lies in one piece at `position`, at most up to `end`.
    @inline(__always)
    package func piece(_ position: UInt64, upTo end: UInt64) -> (start: Int, count: Int) {
        let start = index(position)
        return (start, min(Int(truncatingIfNeeded: end &- position), Int(size) &- start))
    }

    @inline(__always)
    package func index(_ position: UInt64) -> Int { Int(truncatingIfNeeded: (position &- origin) & (size &- 1)) }

    /// Copies `count` bytes of the program into the ring at `position`. `count <= size`. False: the program's memory
    /// cannot be read; the ring then holds some of it, or none.
    @inline(__always)
    package func write(_ ring: UnsafeMutableRawPointer, at position: UInt64, from source: UnsafeRawPointer, count: Int) -> Bool {
        let (start, first) = piece(position, upTo: position &+ UInt64(count))
        guard copyBytes(ring + start, source, first) else { return false }
        return first == count || copyBytes(ring, source + first, count &- first)
    }

    /// Copies `count` bytes out of the ring at `position` to the program. `count <= size`. False: the program's memory
    /// cannot be written.
    @inline(__always)
    package func read(_ ring: UnsafeMutableRawPointer, at position: UInt64, into target: UnsafeMutableRawPointer, count: Int) -> Bool {
        let (start, first) = piece(position, upTo: position &+ UInt64(count))
        guard copyBytes(target, ring + start, first) else { return false }
        return first == count || copyBytes(target + first, ring, count &- first)
    }
}

/// Copies from or to the program, whose pointer may be bad (false). The shortest messages of request/response traffic
/// need no call.
@inline(__always)
package func copyBytes(_ target: UnsafeMutableRawPointer, _ source: UnsafeRawPointer, _ count: Int) -> Bool {
    count == 8 ? ss_guarded_copy8(target, source) == 0 : ss_guarded_copy(target, source, count) == 0
}
