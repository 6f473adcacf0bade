import CProgramSupport
import Glibc
import Synchronization

/// Receives a pattern by random calls and checks every byte. Not safe for concurrent use: see `Sender`.
final class Receiver {
    private let descriptor: Int32
    private let pattern: Pattern
    private let nonBlocking: Bool
    private var random: Random
    private(set) var position = 0
    private let total: Int
    /// `step` answers `.done` here without looking for the end of the stream (request and answer).
    var limit: Int?
    private let buffer = UnsafeMutableRawPointer.allocate(byteCount: maximumPiece, alignment: 64)
    private let vectors = UnsafeMutablePointer<iovec>.allocate(capacity: 16)
    private let rests: Bool
    private let label: String

    init(
        _ descriptor: Int32, _ pattern: Pattern, total: Int, nonBlocking: Bool, rests: Bool, seed: UInt64, label: String
    ) {
        self.descriptor = descriptor
        self.pattern = pattern
        self.total = total
        self.nonBlocking = nonBlocking
        self.rests = rests
        self.label = label
        random = Random(seed: seed)
    }

    deinit {
        buffer.deallocate()
        vectors.deallocate()
    }

    func step() -> Step {
        if let limit, position == limit { return .done }
        if rests && random.chance(1, in: 24) { rest(&random) }
        var count = random.size(upTo: maximumPiece)
        if let limit { count = min(count, limit - position) }
        let (result, call, flags) = receive(count)
        if result < 0 {
            let code = errno
            if code == EINTR { return .moved }
            if code == EAGAIN && (nonBlocking || flags.contains(.mayWouldBlock)) { return .wouldBlock }
            fail("\(failure(call, code)) at offset \(position) of \(total); \(label)")
        }
        if result > count { fail("\(call) of \(count) bytes returned \(result); \(label)") }
        if result == 0 {
            if position != total { fail("\(call): end of file at offset \(position) of \(total); \(label)") }
            return .done
        }
        if position + result > total { fail("\(call): \(position + result - total) bytes past the end; \(label)") }
        if flags.contains(.whole) && result < count && position + result < total {
            fail("\(call) gave \(result) of \(count) bytes at offset \(position); \(label)")
        }
        check(result, call)
        if !flags.contains(.peek) {
            position += result
            progress.add(result, ordering: .relaxed)
            bytesChecked.add(result, ordering: .relaxed)
        }
        return .moved
    }

    private func check(_ count: Int, _ call: String) {
        guard let index = pattern.firstDifference(buffer, offset: position, count: count) else { return }
        let offset = position + index
        let got = buffer.load(fromByteOffset: index, as: UInt8.self)
        let moved = pattern.displacement(buffer + index, offset: offset, count: count - index)
        fail(
            "\(call): wrong byte at offset \(offset) (\(index) of \(count) in the call): \(got) instead of "
                + "\(pattern.expected(at: offset)); "
                + (moved.map { "these bytes belong \($0) further on" } ?? "unknown bytes") + "; \(label)")
    }

    private struct Flags: OptionSet {
        let rawValue: Int
        static let mayWouldBlock = Flags(rawValue: 1)
        static let whole = Flags(rawValue: 2)
        static let peek = Flags(rawValue: 4)
    }

    private func receive(_ count: Int) -> (result: Int, call: String, flags: Flags) {
        switch random.below(18) {
        case 0...3: return (Glibc.read(descriptor, buffer, count), "read", [])
        case 4...6: return (Glibc.recv(descriptor, buffer, count, 0), "recv", [])
        case 7: return (Glibc.recvfrom(descriptor, buffer, count, 0, nil, nil), "recvfrom", [])
        case 8, 9: return (readv(descriptor, vectors, Int32(split(count))), "readv", [])
        case 10, 11:
            var header = msghdr()
            header.msg_iov = vectors
            header.msg_iovlen = split(count)
            return (Glibc.recvmsg(descriptor, &header, 0), "recvmsg", [])
        case 12, 13:
            return (Glibc.recv(descriptor, buffer, count, Int32(MSG_DONTWAIT)), "recv(MSG_DONTWAIT)", .mayWouldBlock)
        case 14, 15:
            let whole = nonBlocking ? Flags.mayWouldBlock : Flags.whole
            return (Glibc.recv(descriptor, buffer, count, Int32(MSG_WAITALL)), "recv(MSG_WAITALL)", whole)
        case 16:
            return (Glibc.recv(descriptor, buffer, count, Int32(MSG_PEEK)), "recv(MSG_PEEK)", .peek)
        default:
            let promised = program_readable_bytes(descriptor)
            if promised < 0 { fail(failure("ioctl(FIONREAD)", errno)) }
            let result = Glibc.recv(descriptor, buffer, count, Int32(MSG_DONTWAIT))
            if promised > 0 && result <= 0 {
                fail("FIONREAD promised \(promised) bytes at offset \(position), recv gave \(result), errno \(errno); \(label)")
            }
            return (result, "FIONREAD+recv", .mayWouldBlock)
        }
    }

    private func split(_ count: Int) -> Int {
        let number = 1 + random.below(16)
        var done = 0
        for index in 0..<number {
            let left = count - done
            let length = index == number - 1 ? left : min(left, random.size(upTo: max(1, left)) - 1)
            vectors[index] = iovec(iov_base: buffer + done, iov_len: length)
            done += length
        }
        return number
    }
}
