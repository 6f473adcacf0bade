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

    @inline(__always)
    package func index(_ position: UInt64) -> Int { Int(truncatingIfNeeded: (position &- origin) & (size &- 1)) }

    /// Copies `count` bytes into the ring at `position`. `count <= size`.
    @inline(__always)
    package func write(_ ring: UnsafeMutableRawPointer, at position: UInt64, from source: UnsafeRawPointer, count: Int) {
        let start = index(position)
        let first = min(count, Int(size) &- start)
        copyBytes(ring + start, source, first)
        if first < count { copyBytes(ring, source + first, count &- first) }
    }

    /// Copies `count` bytes out of the ring at `position`. `count <= size`.
    @inline(__always)
    package func read(_ ring: UnsafeMutableRawPointer, at position: UInt64, into target: UnsafeMutableRawPointer, count: Int) {
        let start = index(position)
        let first = min(count, Int(size) &- start)
        copyBytes(target, ring + start, first)
        if first < count { copyBytes(target + first, ring, count &- first) }
    }
}

/// memcpy with the short sizes of request/response traffic inlined.
@inline(__always)
package func copyBytes(_ target: UnsafeMutableRawPointer, _ source: UnsafeRawPointer, _ count: Int) {
    if count == 8 {
        target.storeBytes(of: source.loadUnaligned(as: UInt64.self), as: UInt64.self)
    } else {
        memcpy(target, source, count)
    }
}
