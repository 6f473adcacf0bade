import CSocketSwitch

/// Walks the buffers of a message, in either direction.
struct MessageCursor {
    let vectors: UnsafeMutablePointer<iovec>?
    let vectorCount: Int
    var index = 0
    /// Bytes of `vectors[index]` already done.
    var offset = 0

    init(_ message: UnsafePointer<msghdr>) {
        vectors = message.pointee.msg_iov
        vectorCount = vectors == nil ? 0 : Int(message.pointee.msg_iovlen)
    }

    var isAtStart: Bool { index == 0 && offset == 0 }

    /// All bytes of all buffers; negative (as the kernel: EINVAL) when they do not fit.
    func total() -> Int {
        var sum = 0
        var i = 0
        while i < vectorCount {
            let length = Int(bitPattern: UInt(vectors.unsafelyUnwrapped[i].iov_len))
            if length < 0 { return -1 }
            sum = sum &+ length
            if sum < 0 { return -1 }
            i &+= 1
        }
        return sum
    }

    /// The next piece; nil at the end.
    mutating func piece() -> (start: UnsafeMutableRawPointer, count: Int)? {
        while index < vectorCount {
            let vector = vectors.unsafelyUnwrapped[index]
            let left = Int(vector.iov_len) &- offset
            if left > 0, let base = vector.iov_base { return (base + offset, left) }
            index &+= 1
            offset = 0
        }
        return nil
    }

    /// `count` bytes of the current piece are done; at most its length.
    mutating func advance(_ count: Int) { offset &+= count }
}
