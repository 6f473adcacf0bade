import CSocketSwitch
import Glibc
import Session
import SocketTable
import StreamRing
import Synchronization

/// What a random stream test does.
package struct StreamPlan: Sendable {
    package var seed: UInt64
    package var seconds: Double
    package var threadsPerSide = 1
    /// The directions go on until so many carrier changes were made (both ends counted), however long that takes.
    package var minimumChanges: UInt64 = 0
    /// Largest single send, as a power of two; at most 22.
    package var largestSendBits: UInt64 = 22
    /// One end or both are handed over at random moments.
    package var handsOver = false
    /// The session is ended by one end and begun anew at random moments, as over exec.
    package var beginsAnew = false
    package init(seed: UInt64, seconds: Double) {
        self.seed = seed
        self.seconds = seconds
    }
}

/// One direction of a stream and who is where in it. The position words may lie in memory that processes share.
package struct StreamDirection: @unchecked Sendable {
    let from: Endpoint
    let to: Endpoint
    let pattern: StreamPattern
    let memory: UnsafeMutableRawPointer

    package static var bytes: Int { 64 }

    package init(from: Endpoint, to: Endpoint, pattern: StreamPattern, memory: UnsafeMutableRawPointer) {
        self.from = from
        self.to = to
        self.pattern = pattern
        self.memory = memory
    }

    package var sent: Word { Word(memory, 0) }
    package var received: Word { Word(memory, 8) }
    package var ended: Word { Word(memory, 16) }
    /// A sender's block, a receiver's block: the tests' own locks, so that the order of bytes is known.
    var sendLock: FamilyLock { FamilyLock(memory, 24) }
    var receiveLock: FamilyLock { FamilyLock(memory, 40) }
    /// 1 + the number of senders that go on.
    package var failures: Word { Word(memory, 56) }
}

private let dontWait = Int(MSG_DONTWAIT)

/// Sends random blocks in random ways until `stop` says so; then one of the senders shuts the direction down.
package func runSender(_ direction: StreamDirection, _ plan: StreamPlan, _ number: UInt64, stop: @Sendable () -> Bool) {
    var random = RandomSource(plan.seed &+ 1000 &+ number)
    let end = direction.from
    while true {
        _ = direction.sendLock.lock()
        if direction.ended.load() != 0 { return direction.sendLock.unlock() }
        if stop() {
            direction.ended.store(1)
            end.shutDown(1)
            return direction.sendLock.unlock()
        }
        let total = random.logUniform(bits: plan.largestSendBits)
        let way = random.next(below: 6)
        var done = 0
        while done < total {
            let position = direction.sent.load()
            let left = total - done
            let bytes = direction.pattern.bytes(at: position)
            let flags = random.oneIn(2) ? dontWait : 0
            var result: Int
            switch way {
            case 0, 1: result = end.send(bytes, left, flags)
            case 2, 3: result = end.send(bytes, pieces: randomPieces(left, &random), flags)
            case 4:
                var offset = Int64(direction.pattern.offset(of: position))
                result = end.sendFile(direction.pattern.file, &offset, left)
                if result > 0, offset != Int64(direction.pattern.offset(of: position) + result) { result = -9999 }
            default:
                if flags != 0 { end.wait(for: UInt32(POLLOUT)) }
                result = end.send(bytes, left, flags)
            }
            if result == -Int(EAGAIN), flags != 0 {
                if random.oneIn(2) { end.wait(for: UInt32(POLLOUT)) } else { sched_yield() }
                continue
            }
            guard result > 0, flags != 0 || result == left else {
                reportFailure(direction, "send \(left) of \(total), way \(way), flags \(flags): \(result) at \(position)")
                break
            }
            Watchdog.pat()
            done += result
            direction.sent.store(position + UInt64(result))
        }
        direction.sendLock.unlock()
        if direction.failures.load() != 0 { return }
    }
}

/// Receives in random ways, compares each byte, until the end of the stream.
package func runReceiver(_ direction: StreamDirection, _ plan: StreamPlan, _ number: UInt64) {
    var random = RandomSource(plan.seed &+ 2000 &+ number)
    let end = direction.to
    let buffer = Buffer(1 << 20)
    while true {
        _ = direction.receiveLock.lock()
        let isOver = receiveOnce(direction, end, buffer, &random)
        direction.receiveLock.unlock()
        if isOver || direction.failures.load() != 0 { return }
        if random.oneIn(200) { usleep(UInt32(random.next(below: 500))) }
    }
}

private func receiveOnce(_ direction: StreamDirection, _ end: Endpoint, _ buffer: Buffer, _ random: inout RandomSource) -> Bool {
    let position = direction.received.load()
    let wanted = random.logUniform(bits: 20)
    let way = random.next(below: 7)
    var result: Int
    switch way {
    case 0, 1: result = end.receive(buffer.bytes, wanted)
    case 2: result = end.receive(buffer.bytes, pieces: randomPieces(wanted, &random))
    case 3:
        result = end.receive(buffer.bytes, wanted, Int(MSG_PEEK))
        if result > 0, !direction.pattern.matches(buffer.bytes, at: position, count: result) {
            reportFailure(direction, "peek \(wanted): wrong bytes at \(position) in \(result)")
            return true
        }
        if result > 0 {
            memset(buffer.bytes, 0, result)
            let peeked = result
            result = end.receive(buffer.bytes, result)
            // What was peeked is there; it may come in two parts when the carrier changes between them.
            if result <= 0 { reportFailure(direction, "receive after a peek of \(peeked): \(result) at \(position)") }
        }
    case 4:
        let all = min(wanted, 1 << 16)
        result = end.receive(buffer.bytes, all, Int(MSG_WAITALL))
        if result >= 0, result < all, direction.ended.load() == 0 {
            reportFailure(direction, "MSG_WAITALL \(all): \(result) at \(position)")
            return true
        }
    default:
        result = end.receive(buffer.bytes, wanted, dontWait)
        if result == -Int(EAGAIN) {
            if random.oneIn(2) { end.wait(for: UInt32(POLLIN)) } else { sched_yield() }
            return false
        }
    }
    Watchdog.pat()
    if result == 0 {
        if direction.ended.load() == 0 || direction.received.load() != direction.sent.load() {
            reportFailure(direction, "end of stream at \(position), sent \(direction.sent.load())")
        }
        return true
    }
    guard result > 0 else {
        reportFailure(direction, "receive \(wanted), way \(way): \(result) at \(position)")
        return true
    }
    guard direction.pattern.matches(buffer.bytes, at: position, count: result) else {
        reportFailure(direction, "receive \(wanted), way \(way): wrong bytes at \(position) in \(result)")
        return true
    }
    direction.received.store(position + UInt64(result))
    return false
}

private func reportFailure(_ direction: StreamDirection, _ text: String) {
    direction.failures.add(1)
    print("STREAM FAILURE: \(text)\nfrom: \(direction.from.state)\nto: \(direction.to.state)")
    // Whoever blocks in this stream must come out.
    shutdown(direction.from.fd, 2)
    shutdown(direction.to.fd, 2)
}

/// `total` in random pieces, at most 64, some of them empty.
private func randomPieces(_ total: Int, _ random: inout RandomSource) -> [Int] {
    var pieces: [Int] = []
    var left = total
    while left > 0, pieces.count < 63 {
        let piece = random.oneIn(10) ? 0 : min(left, random.logUniform(bits: 18))
        pieces.append(piece)
        left -= piece
    }
    if left > 0 { pieces.append(left) }
    return pieces
}

/// Asks for TCP on one side or on both at random moments and takes it back at others, until `stop`.
package func runCarrierChanges(_ ends: [Endpoint], seed: UInt64, stop: @Sendable () -> Bool) {
    var random = RandomSource(seed &+ 3000)
    while !stop() {
        let end = ends[Int(random.next(below: UInt64(ends.count)))]
        let wholeFamily = random.oneIn(4)
        if wholeFamily { TestArena.arena.switchedOff.store(1) } else { end.slot.flags.setBits(Slot.Flags.pullBack) }
        usleep(UInt32(random.next(below: 400)))
        if wholeFamily { TestArena.arena.switchedOff.store(0) } else { end.slot.flags.clearBits(Slot.Flags.pullBack) }
        usleep(UInt32(random.next(below: 400)))
    }
}

/// Hands an end over at a random moment, with the patience of a program that asks again when the answer is "not now".
private func runHandOver(_ end: Endpoint, _ plan: StreamPlan, _ number: UInt64, stop: @Sendable () -> Bool) {
    var random = RandomSource(plan.seed &+ 4000 &+ number)
    if random.oneIn(4) { return }
    usleep(UInt32(random.next(below: UInt64(plan.seconds * 1e6))))
    while !stop(), !end.handOver() { usleep(UInt32(random.next(below: 300))) }
}

/// Begins the session anew again and again, at random moments.
private func runNewBeginnings(_ pair: Pair, _ plan: StreamPlan, _ count: Counter, stop: @escaping @Sendable () -> Bool) {
    var random = RandomSource(plan.seed &+ 5000)
    while !stop() {
        usleep(UInt32(random.next(below: 2000)))
        do {
            guard try pair.beginAnew(random.oneIn(2) ? pair.a : pair.b, stop: stop) else { return }
            count.add()
        } catch {
            print("STREAM FAILURE: no new session")
            return
        }
    }
}

/// Carrier changes that both ends counted.
package func carrierChanges(_ pair: Pair) -> UInt64 {
    pair.a.slot.carrierChanges.load() + pair.b.slot.carrierChanges.load()
}

/// Runs both directions of a pair at once, with carrier changes, to their ends. Returns the number of failures.
package func runStreams(
    _ pair: Pair, _ plan: StreamPlan, prefix: UInt64 = 0, beginnings: Counter = Counter()
) -> (failures: UInt64, bytes: UInt64, changes: UInt64) {
    let memory = Buffer(2 * StreamDirection.bytes)
    memset(memory.bytes, 0, memory.count)
    let directions = [
        StreamDirection(from: pair.a, to: pair.b, pattern: StreamPattern(plan.seed), memory: memory.bytes),
        StreamDirection(from: pair.b, to: pair.a, pattern: StreamPattern(plan.seed &+ 1), memory: memory.bytes + StreamDirection.bytes),
    ]
    let until = ss_monotonic_ns() + UInt64(plan.seconds * 1e9)
    let stop: @Sendable () -> Bool = { ss_monotonic_ns() >= until && carrierChanges(pair) >= plan.minimumChanges }
    Watchdog.watch({ "seed \(plan.seed)\n\(pair.state)" }) {
        var threads: [pthread_t] = []
        for number in 0..<UInt64(plan.threadsPerSide) {
            for (side, direction) in directions.enumerated() {
                let id = number * 2 + UInt64(side)
                threads.append(startThread { runSender(direction, plan, id, stop: stop) })
                threads.append(startThread { runReceiver(direction, plan, id) })
            }
        }
        let isOver = Flag()
        var others = [startThread { runCarrierChanges([pair.a, pair.b], seed: plan.seed) { isOver.isSet } }]
        if plan.beginsAnew { others.append(startThread { runNewBeginnings(pair, plan, beginnings) { isOver.isSet } }) }
        if plan.handsOver {
            for (number, end) in [pair.a, pair.b].enumerated() {
                others.append(startThread { runHandOver(end, plan, UInt64(number)) { isOver.isSet } })
            }
        }
        join(threads)
        isOver.set()
        join(others)
    }
    let failures = directions.reduce(UInt64(0)) { $0 + $1.failures.load() }
    let bytes = directions.reduce(UInt64(0)) { $0 + $1.received.load() }
    return (failures, bytes, carrierChanges(pair))
}

package final class Flag: Sendable {
    private let value = Atomic<Bool>(false)
    package init() {}
    package var isSet: Bool { value.load(ordering: .acquiring) }
    package func set() { value.store(true, ordering: .releasing) }
}

/// Counted by one thread, read by another.
package final class Counter: Sendable {
    private let count = Atomic<Int>(0)
    package init() {}
    package var value: Int { count.load(ordering: .acquiring) }
    package func add() { count.wrappingAdd(1, ordering: .releasing) }
}
