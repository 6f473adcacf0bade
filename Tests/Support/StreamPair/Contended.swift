import CProgramSupport
import Glibc
import Synchronization

/// Several threads send on one socket at the same time. A byte's high three bits name its thread, the low five count
/// that thread's bytes: whatever way the calls interleave, each thread's own bytes must arrive in their order.
struct Contended {
    let descriptor: Int32
    let plan: Plan
    let isClient: Bool

    private func bytesOfThread(_ total: Int, _ thread: Int) -> Int {
        total / plan.senders + (thread < total % plan.senders ? 1 : 0)
    }

    func run() {
        let outgoing = isClient ? plan.toServer : plan.toClient
        let incoming = isClient ? plan.toClient : plan.toServer
        let senders = (0..<plan.senders).map { thread in
            startThread { send(thread, bytesOfThread(outgoing, thread)) }
        }
        let tally = Tally()
        let receivers = (0..<plan.receivers).map { number in startThread { receive(number, tally) } }
        join(senders)
        if shutdown(descriptor, Int32(SHUT_WR)) != 0 { fail(failure("shutdown", errno)) }
        join(receivers)
        for thread in 0..<plan.senders {
            let expected = bytesOfThread(incoming, thread)
            for turn in 0..<32 {
                let wanted = expected / 32 + (turn < expected % 32 ? 1 : 0)
                let got = tally.counts[thread << 5 | turn]
                if got != wanted { fail("\(got) bytes instead of \(wanted) with tag \(thread)/\(turn); \(plan)") }
            }
        }
    }

    private func send(_ thread: Int, _ total: Int) {
        let capacity = 1 << 16
        let buffer = UnsafeMutablePointer<UInt8>.allocate(capacity: capacity + 32)
        defer { buffer.deallocate() }
        for index in 0..<capacity + 32 { buffer[index] = UInt8(thread << 5 | index & 31) }
        var random = Random(seed: Random.mix(plan.seed ^ plan.index) &+ UInt64(thread) &+ (isClient ? 0 : 100))
        var position = 0
        while position < total {
            if plan.rests && random.chance(1, in: 64) { rest(&random) }
            let count = min(random.size(upTo: capacity), total - position)
            let bytes = buffer + (position & 31)
            let result: Int
            switch random.below(3) {
            case 0: result = Glibc.write(descriptor, bytes, count)
            case 1: result = Glibc.send(descriptor, bytes, count, Int32(MSG_NOSIGNAL))
            default:
                var vector = iovec(iov_base: bytes, iov_len: count)
                result = writev(descriptor, &vector, 1)
            }
            if result != count { fail("\(failure("concurrent send", errno)): \(result) of \(count) bytes; \(plan)") }
            position += result
            progress.add(result, ordering: .relaxed)
        }
    }

    private final class Tally: @unchecked Sendable {
        let lock = Lock()
        var counts = [Int](repeating: 0, count: 256)
    }

    private func receive(_ number: Int, _ tally: Tally) {
        let capacity = 1 << 16
        let buffer = UnsafeMutablePointer<UInt8>.allocate(capacity: capacity)
        defer { buffer.deallocate() }
        var random = Random(seed: Random.mix(plan.seed ^ plan.index) &+ UInt64(number) &+ 1000)
        var counts = [Int](repeating: 0, count: 256)
        var next = [Int](repeating: 0, count: 8)
        while true {
            let count = random.size(upTo: capacity)
            let result =
                random.chance(1, in: 2) ? Glibc.read(descriptor, buffer, count) : Glibc.recv(descriptor, buffer, count, 0)
            if result < 0 { fail("\(failure("concurrent recv", errno)); \(plan)") }
            if result == 0 { break }
            progress.add(result, ordering: .relaxed)
            bytesChecked.add(result, ordering: .relaxed)
            for index in 0..<result {
                let byte = Int(buffer[index])
                counts[byte] += 1
                if plan.receivers == 1 {
                    let thread = byte >> 5
                    if byte & 31 != next[thread] & 31 {
                        fail("thread \(thread): byte \(next[thread]) has count \(byte & 31); \(plan)")
                    }
                    next[thread] += 1
                }
            }
        }
        tally.lock.lock()
        for index in 0..<256 { tally.counts[index] += counts[index] }
        tally.lock.unlock()
    }
}
