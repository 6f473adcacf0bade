/// The bytes of one direction of one connection: a function of a seed and the offset in the stream, so that either end
/// can make or check any part of it without remembering any other.
struct Pattern {
    let seed: UInt64

    @inline(__always)
    private func word(_ index: Int) -> UInt64 {
        Random.mix(seed &+ UInt64(truncatingIfNeeded: index) &* 0x9E37_79B9_7F4A_7C15)
    }

    @inline(__always)
    private func byte(_ offset: Int) -> UInt8 { UInt8(truncatingIfNeeded: word(offset >> 3) >> UInt64((offset & 7) * 8)) }

    /// Writes the bytes at stream offsets `offset ..< offset + count`.
    func fill(_ buffer: UnsafeMutableRawPointer, offset: Int, count: Int) {
        var done = 0
        while done < count && (offset + done) & 7 != 0 {
            buffer.storeBytes(of: byte(offset + done), toByteOffset: done, as: UInt8.self)
            done += 1
        }
        while count - done >= 8 {
            buffer.storeBytes(of: word((offset + done) >> 3), toByteOffset: done, as: UInt64.self)
            done += 8
        }
        while done < count {
            buffer.storeBytes(of: byte(offset + done), toByteOffset: done, as: UInt8.self)
            done += 1
        }
    }

    /// Index in `buffer` of the first byte that differs from stream offset `offset + index`; nil when all agree.
    func firstDifference(_ buffer: UnsafeRawPointer, offset: Int, count: Int) -> Int? {
        var done = 0
        while done < count {
            if (offset + done) & 7 == 0 && count - done >= 8 {
                if buffer.loadUnaligned(fromByteOffset: done, as: UInt64.self) == word((offset + done) >> 3) {
                    done += 8
                    continue
                }
                for index in done..<done + 8 where buffer.load(fromByteOffset: index, as: UInt8.self) != byte(offset + index) {
                    return index
                }
            }
            if buffer.load(fromByteOffset: done, as: UInt8.self) != byte(offset + done) { return done }
            done += 1
        }
        return nil
    }

    func expected(at offset: Int) -> UInt8 { byte(offset) }

    /// Where in the stream the eight bytes at `buffer` would be right, searched around `offset`; for failure reports: it
    /// tells lost bytes (positive distance) from repeated ones (negative).
    func displacement(_ buffer: UnsafeRawPointer, offset: Int, count: Int) -> Int? {
        guard count >= 8 else { return nil }
        let reach = 8 << 20
        for distance in 1...reach {
            for candidate in [distance, -distance] where offset + candidate >= 0 {
                if byte(offset + candidate) == buffer.load(as: UInt8.self),
                    firstDifference(buffer, offset: offset + candidate, count: 8) == nil
                {
                    return candidate
                }
            }
        }
        return nil
    }
}
