/// A ring's size, and the position from which on it has it: one word, so that nobody sees the half of it (`Window.ringChange`).
///
/// A ring grows with what lies in it. Position p of the change comes to lie right behind the `s` bytes that the ring had:
///
///     before      s bytes, up to p      | bytes before p are read where they lie
///     from p on   p is at offset s      | up to the new end, and then from the beginning, over what was before p
///
/// So the sender may not go beyond the new end before the receiver has read beyond p (`Session.isSettled`). A ring that has not
/// come to its end yet just gets a later one; p stays.
package struct RingChange {
    package let word: UInt64

    @inline(__always) package init(word: UInt64) { self.word = word }
    /// `position < positionsEnd`; `size` is valid (`RingGeometry.isValid`).
    @inline(__always)
    package init(position: UInt64, size: UInt64) { word = position << RingChange.sizeBits | UInt64(size.trailingZeroBitCount) }

    private static var sizeBits: UInt64 { 5 }
    /// No ring is changed at or behind this position (which takes months to reach).
    package static var positionsEnd: UInt64 { 1 << 59 }

    @inline(__always) package var position: UInt64 { word >> RingChange.sizeBits }
    /// Bytes. From a peer: to be asked for by `RingGeometry.isValid`.
    @inline(__always) package var size: UInt64 { 1 << (word & 31) }
}

/// A ring as its receiver has it: the last change that it has followed, and the position that lies at offset 0 since.
package struct RingView {
    package private(set) var origin: UInt64
    package private(set) var change: RingChange

    @inline(__always)
    package init(origin: UInt64, change: RingChange) {
        self.origin = origin
        self.change = change
    }

    @inline(__always) package var geometry: RingGeometry { RingGeometry(origin: origin, size: change.size) }

    /// How far the bytes from `position` to `producer` can be read by `geometry`, after following `latest`, what the peer says of
    /// its ring now, if it is its turn. `producer` was seen before `latest`. nil: nonsense.
    package mutating func follow(_ latest: RingChange, at position: UInt64, _ producer: UInt64) -> UInt64? {
        let count = producer &- position
        if latest.word != change.word {
            guard RingGeometry.isValid(size: latest.size), latest.size > change.size else { return nil }
            let ahead = latest.position &- position
            if latest.position == change.position {
                change = latest
            } else if ahead == 0 {
                origin = position &- change.size
                change = latest
            } else if ahead < count {
                return ahead <= change.size && count <= latest.size ? latest.position : nil
            } else if ahead > Window.maximumRingBytes {
                return nil
            }
        }
        return count <= change.size ? producer : nil
    }
}
