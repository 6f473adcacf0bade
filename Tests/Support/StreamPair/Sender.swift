import CProgramSupport
import Glibc
import Synchronization

enum Step { case moved, wouldBlock, done }

/// Sends `0 ..< total` of a pattern in pieces of random size by random calls. Not safe for concurrent use: threads that
/// share one take turns under a lock.
final class Sender {
    private let descriptor: Int32
    private let pattern: Pattern
    private let nonBlocking: Bool
    private var random: Random
    private(set) var position = 0
    /// Ends `step` with `.done` when reached.
    var limit: Int
    private var pieceEnd = 0
    private var pieceStart = 0
    private let buffer = UnsafeMutableRawPointer.allocate(byteCount: maximumPiece, alignment: 64)
    private let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: Sender.maximumVectors)
    private var file: Int32 = -1
    private var fileBytes = 0
    private let rests: Bool

    private static let maximumVectors = 32

    private let label: String

    init(
        _ descriptor: Int32, _ pattern: Pattern, total: Int, nonBlocking: Bool, rests: Bool, seed: UInt64, label: String
    ) {
        self.label = label
        self.descriptor = descriptor
        self.pattern = pattern
        self.nonBlocking = nonBlocking
        self.rests = rests
        limit = total
        random = Random(seed: seed)
    }

    deinit {
        buffer.deallocate()
        vectors.deallocate()
        if file >= 0 { close(file) }
    }

    func step() -> Step {
        if position == limit { return .done }
        if rests && random.chance(1, in: 24) { rest(&random) }
        if position == pieceEnd {
            pieceStart = position
            pieceEnd = position + min(random.size(upTo: maximumPiece), limit - position)
            pattern.fill(buffer, offset: pieceStart, count: pieceEnd - pieceStart)
        }
        let count = pieceEnd - position
        let (result, call, mayBeShort) = send(buffer + (position - pieceStart), count)
        if result < 0 {
            let code = errno
            if code == EINTR { return .moved }
            if code == EAGAIN && (nonBlocking || mayBeShort) { return .wouldBlock }
            fail("\(failure(call, code)) at offset \(position) of \(limit); \(label)")
        }
        if result == 0 { fail("\(call) of \(count) bytes returned 0 at offset \(position); \(label)") }
        if result > count { fail("\(call) of \(count) bytes returned \(result)") }
        if result < count && !nonBlocking && !mayBeShort {
            fail("\(call) on a blocking socket took \(result) of \(count) bytes at offset \(position); \(label)")
        }
        position += result
        progress.add(result, ordering: .relaxed)
        return .moved
    }

    private func send(_ bytes: UnsafeMutableRawPointer, _ count: Int) -> (result: Int, call: String, mayBeShort: Bool) {
        switch random.below(18) {
        case 0...3: return (Glibc.write(descriptor, bytes, count), "write", false)
        case 4...6: return (Glibc.send(descriptor, bytes, count, Int32(MSG_NOSIGNAL)), "send", false)
        case 7: return (Glibc.sendto(descriptor, bytes, count, 0, nil, 0), "sendto", false)
        case 8, 9:
            return (writev(descriptor, vectors, Int32(split(bytes, count))), "writev", false)
        case 10, 11:
            var header = msghdr()
            header.msg_iov = vectors
            header.msg_iovlen = split(bytes, count)
            return (Glibc.sendmsg(descriptor, &header, Int32(MSG_NOSIGNAL)), "sendmsg", false)
        case 12, 13:
            return (Glibc.send(descriptor, bytes, count, Int32(MSG_DONTWAIT)), "send(MSG_DONTWAIT)", true)
        case 14 where position + count < limit:
            return (Glibc.send(descriptor, bytes, count, Int32(MSG_MORE)), "send(MSG_MORE)", false)
        case 15:
            if Glibc.write(descriptor, bytes, 0) != 0 { fail(failure("write of no bytes", errno)) }
            return (Glibc.write(descriptor, bytes, count), "write", false)
        default: return (transmit(bytes, count), "sendfile", true)
        }
    }

    /// Cuts the bytes into up to 32 vectors, empty ones among them.
    private func split(_ bytes: UnsafeMutableRawPointer, _ count: Int) -> Int {
        let number = 1 + random.below(Sender.maximumVectors)
        var done = 0
        for index in 0..<number {
            let left = count - done
            let length = index == number - 1 ? left : random.chance(1, in: 8) ? 0 : min(left, random.size(upTo: max(1, left)))
            vectors[index] = iovec(iov_base: bytes + done, iov_len: length)
            done += length
        }
        return number
    }

    /// WSD-S5: the bytes go through a file. The kernel may send its very pages, so bytes once sent are never overwritten:
    /// each piece gets a new place, and a large file a successor.
    private func transmit(_ bytes: UnsafeMutableRawPointer, _ count: Int) -> Int {
        if file >= 0 && fileBytes > 32 << 20 {
            close(file)
            file = -1
        }
        if file < 0 {
            file = program_memfd()
            fileBytes = 0
            if file < 0 { fail(failure("memfd_create", errno)) }
        }
        let start = fileBytes
        if pwrite(file, bytes, count, off_t(start)) != count { fail(failure("pwrite", errno)) }
        fileBytes += count
        var offset = off_t(start)
        let result = sendfile(descriptor, file, &offset, count)
        if result > 0 && offset != start + result { fail("sendfile moved \(result) bytes and its offset from \(start) to \(offset)") }
        return result
    }
}
