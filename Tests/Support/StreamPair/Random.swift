/// SplitMix64: small, seedable, the same sequence on both ends of a connection.
struct Random {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    static func mix(_ value: UInt64) -> UInt64 {
        var z = value
        z = (z ^ (z &>> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z &>> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z &>> 31)
    }

    mutating func next() -> UInt64 {
        state = state &+ 0x9E37_79B9_7F4A_7C15
        return Random.mix(state)
    }

    /// 0 ..< bound; bound > 0.
    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }

    mutating func chance(_ one: Int, in many: Int) -> Bool { below(many) < one }

    /// 1 ... maximum, every power of two as likely as the next: many small values, a few large ones.
    mutating func size(upTo maximum: Int) -> Int {
        let bits = below(Int.bitWidth - maximum.leadingZeroBitCount)
        return min(maximum, (1 << bits) + below(1 << bits))
    }
}
