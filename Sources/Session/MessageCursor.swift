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

    /// All bytes of all buffers, at most what one call moves; or -EMSGSIZE, -EINVAL or -EFAULT as the kernel would say of such
    /// a message.
    func total(_ message: UnsafePointer<msghdr>) -> Int {
        if message.pointee.msg_name != nil, message.pointee.msg_namelen > UInt32(Int32.max) { return -Int(EINVAL) }
        if vectorCount < 0 || vectorCount > MessageCursor.maximumVectors { return -Int(EMSGSIZE) }
        var sum = 0
        var i = 0
        while i < vectorCount {
            let vector = vectors.unsafelyUnwrapped[i]
            let length = Int(vector.iov_len)
            if length < 0 { return -Int(EINVAL) }
            if length > 0, vector.iov_base == nil { return -Int(EFAULT) }
            sum = min(sum &+ min(length, MessageCursor.maximumBytes), MessageCursor.maximumBytes)
            i &+= 1
        }
        return sum
    }

    /// UIO_MAXIOV.
    private static var maximumVectors: Int { 1024 }
    /// MAX_RW_COUNT: the kernel moves no more in one call.
    private static var maximumBytes: Int { 0x7FFF_F000 }

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
