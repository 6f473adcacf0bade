import CSocketSwitch

/// Walks the buffers of a message, in either direction. The list and the buffers are the program's: `total` has read the
/// list once, and what the buffers are worth only the copies know.
struct MessageCursor {
    let vectors: UnsafeMutablePointer<iovec>?
    let vectorCount: Int
    var index = 0
    /// Bytes of `vectors[index]` already done.
    var offset = 0
    /// What one call may still move.
    private var budget = MessageCursor.maximumBytes
    /// A buffer proved bad: the call is over.
    var isBad = false

    init(_ message: UnsafePointer<msghdr>) {
        vectors = message.pointee.msg_iov
        vectorCount = Int(message.pointee.msg_iovlen)
    }

    var isAtStart: Bool { index == 0 && offset == 0 }

    /// All bytes of all buffers, at most what one call moves; or -EMSGSIZE, -EINVAL or -EFAULT as the kernel would say of such
    /// a message. A buffer that cannot be the program's is refused at once, any other bad one when something is copied.
    func total(_ message: UnsafePointer<msghdr>) -> Int {
        if message.pointee.msg_name != nil, message.pointee.msg_namelen > UInt32(Int32.max) { return -Int(EINVAL) }
        if vectorCount < 0 || vectorCount > MessageCursor.maximumVectors { return -Int(EMSGSIZE) }
        var sum = 0
        var i = 0
        while i < vectorCount {
            var vector = iovec()
            guard let vectors, ss_guarded_copy(&vector, vectors + i, MemoryLayout<iovec>.size) == 0 else { return -Int(EFAULT) }
            let length = Int(vector.iov_len)
            if length < 0 { return -Int(EINVAL) }
            if MessageCursor.isNoAddress(vector.iov_base, length) { return -Int(EFAULT) }
            sum = min(sum &+ min(length, MessageCursor.maximumBytes), MessageCursor.maximumBytes)
            i &+= 1
        }
        return sum
    }

    /// Whether a buffer lies outside of what can be a program's at all. Where that ends above 2^47 only the kernel knows: it
    /// looks at the buffer before it looks at the descriptor.
    private static func isNoAddress(_ base: UnsafeMutableRawPointer?, _ length: Int) -> Bool {
        let end = UInt(bitPattern: base).addingReportingOverflow(UInt(length))
        if end.overflow || end.partialValue >= 1 << 56 { return true }
        return end.partialValue >= (1 << 47) &- 4096 && ss_sys_recvfrom(-1, base, length, Int32(MSG_DONTWAIT)) == -Int(EFAULT)
    }

    /// UIO_MAXIOV.
    private static var maximumVectors: Int { 1024 }
    /// MAX_RW_COUNT: the kernel moves no more in one call.
    static var maximumBytes: Int { 0x7FFF_F000 }

    /// Stands for NULL, and is as bad.
    static var nowhere: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bitPattern: 8).unsafelyUnwrapped }

    /// The kernel takes and gives a stream in chunks: one that cannot be copied whole counts for nothing.
    static var chunkBytes: Int { 32768 }

    /// The next piece; nil at the end.
    mutating func piece() -> (start: UnsafeMutableRawPointer, count: Int)? {
        while index < vectorCount, budget > 0 {
            let vector = vectors.unsafelyUnwrapped[index]
            let left = min(Int(vector.iov_len) &- offset, budget)
            if left > 0 { return ((vector.iov_base ?? MessageCursor.nowhere) + offset, left) }
            index &+= 1
            offset = 0
        }
        return nil
    }

    /// `count` bytes of the current piece are done; at most its length.
    mutating func advance(_ count: Int) {
        offset &+= count
        budget &-= count
    }

    /// `count` bytes are done.
    mutating func skip(_ count: Int) {
        var left = count
        while left > 0, let piece = piece() {
            let part = min(left, piece.count)
            advance(part)
            left &-= part
        }
    }
}
