import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing
import Testing

/// Sends text; the number of bytes taken, or -errno.
func say(_ end: Endpoint, _ text: String, _ flags: Int = 0) -> Int {
    text.utf8.withContiguousStorageIfAvailable { end.send($0.baseAddress!, $0.count, flags) } ?? -1
}

/// Receives up to `count` bytes until it has them all, or the stream ends or fails.
func hear(_ end: Endpoint, _ count: Int) -> String {
    let buffer = Buffer(count)
    var done = 0
    while done < count {
        let result = end.receive(buffer.bytes + done, count - done)
        if result <= 0 { return String(decoding: UnsafeRawBufferPointer(start: buffer.bytes, count: done), as: UTF8.self) + "<\(result)>" }
        done += result
    }
    return String(decoding: UnsafeRawBufferPointer(start: buffer.bytes, count: done), as: UTF8.self)
}

/// Receives at most `piece` bytes at a time until the stream ends; how many there were.
func readToTheEnd(_ end: Endpoint, _ pattern: StreamPattern, atMost piece: Int) -> UInt64 {
    let buffer = Buffer(piece)
    var position = UInt64(0)
    while true {
        let result = end.receive(buffer.bytes, piece)
        if result <= 0 { return position }
        #expect(pattern.matches(buffer.bytes, at: position, count: result))
        position += UInt64(result)
        Watchdog.pat()
    }
}

/// A pair with both directions on the companion, closed at the end, watched meanwhile.
func withPair(
    _ provider: ProviderUnderTest, ringBytes: UInt32 = 0, onCompanion: Bool = true, _ body: (Pair) throws -> Void
) throws {
    let pair = try Pair(provider.loaded, ringBytes: ringBytes)
    if onCompanion { pair.moveToCompanion() }
    try Watchdog.watch({ pair.state }) { try body(pair) }
    pair.close()
}

extension SessionTests {
    @Suite("Carrier changes", .serialized) struct CarrierTests {
        @Test("The words that threads share lie where the session looks for them")
        func layout() {
            #expect(MemoryLayout<Connection>.offset(of: \.watchers) == Connection.Offsets.watchers)
            #expect(MemoryLayout<Connection>.offset(of: \.up) == Connection.Offsets.up)
            #expect(MemoryLayout<Connection>.offset(of: \.doorbellSleepers) == Connection.Offsets.doorbellSleepers)
            #expect(MemoryLayout<Connection>.offset(of: \.lastEndCheck) == Connection.Offsets.lastEndCheck)
            #expect(MemoryLayout<Connection>.offset(of: \.replacer) == Connection.Offsets.replacer)
            #expect(MemoryLayout<Connection>.offset(of: \.sleepingCalls) == Connection.Offsets.sleepingCalls)
            #expect(MemoryLayout<Connection>.offset(of: \.receiveSpinNanoseconds) == Connection.Offsets.receiveSpinNanoseconds)
            #expect(MemoryLayout<Connection>.offset(of: \.sendSpinNanoseconds) == Connection.Offsets.sendSpinNanoseconds)
            #expect(MemoryLayout<Connection>.offset(of: \.descriptorCount) == Connection.Offsets.descriptorCount)
        }

        @Test("Positions are right when bytes were sent, and partly read, before the session came up",
              arguments: ProviderUnderTest.allCases, [AF_INET, AF_INET6])
        func bytesBefore(_ provider: ProviderUnderTest, family: Int32) throws {
            let pair = try Pair(provider.loaded, family: family) { client, server in
                _ = ss_sys_sendto(client, "abcdefgh", 8, 0)
                _ = ss_sys_sendto(server, "12345678", 8, 0)
                var some = [UInt8](repeating: 0, count: 8)
                precondition(ss_sys_recvfrom(server, &some, 3, 0) == 3)
                precondition(ss_sys_recvfrom(client, &some, 5, 0) == 5)
            }
            for end in [pair.a, pair.b] { end.session.maintain(end.fd) }
            while [pair.a, pair.b].contains(where: { $0.session.local.invitation.load() == Invitation.none }) { sched_yield() }
            #expect(say(pair.a, "ijk") == 3)
            #expect(say(pair.b, "90") == 2)
            #expect(!pair.a.session.sendsOnTCP && !pair.b.session.sendsOnTCP)
            Watchdog.watch({ pair.state }) {
                #expect(hear(pair.b, 8) == "defghijk")
                #expect(hear(pair.a, 5) == "67890")
            }
            pair.close()
        }

        @Test("Nobody is invited while a thread sits in a plain receive, and nothing is cut while one sits in a plain send",
              arguments: ProviderUnderTest.allCases)
        func plainCalls(_ provider: ProviderUnderTest) throws {
            try withPair(provider, onCompanion: false) { pair in
                let (a, b) = (pair.a, pair.b)
                let reader = b.slot.plainReaders.enter()
                b.session.maintain(b.fd)
                #expect(b.slot.invitation.load() == Invitation.none)
                b.slot.plainReaders.leave(reader)
                b.session.maintain(b.fd)
                #expect(b.slot.invitation.load() == Invitation.toCompanion)
                while a.session.local.invitation.load() == Invitation.none { sched_yield() }
                let writer = a.slot.plainWriters.enter()
                #expect(say(a, "tcp") == 3 && a.session.sendsOnTCP)
                a.slot.plainWriters.leave(writer)
                #expect(say(a, " ring") == 5 && !a.session.sendsOnTCP)
                #expect(hear(b, 8) == "tcp ring")
            }
        }

        @Test("A cut back is made while the upgrade is not acknowledged; a third cut waits",
              arguments: ProviderUnderTest.allCases)
        func twoOutstanding(_ provider: ProviderUnderTest) throws {
            try withPair(provider, onCompanion: false) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "tcp ") == 4)
                b.session.maintain(b.fd)
                while a.session.sendsOnTCP { _ = say(a, "x") }  // the invitation may be on its way
                #expect(say(a, " ring ") == 6)
                #expect(pair.sendOverTCP(a, "tcp again ", 10) == 10)
                #expect(a.slot.sendCuts.load() == 2)
                #expect(say(a, "still tcp") == 9)
                #expect(a.slot.sendCuts.load() == 2)
                var text = ""
                while !text.hasSuffix("still tcp") { text += hear(b, 1) }
                #expect(text.hasPrefix("tcp x") && text.hasSuffix("x ring tcp again still tcp"))
                while a.session.sendsOnTCP {
                    #expect(say(a, "y") == 1)
                    #expect(hear(b, 1) == "y")
                }
                #expect(a.slot.sendCuts.load() == 3)
            }
        }

        @Test("One receive, and one look ahead, go on over both cuts that may be outstanding", arguments: ProviderUnderTest.allCases)
        func receiveOverCuts(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let buffer = Buffer(100)
                #expect(say(pair.a, "ring ") == 5)
                #expect(pair.sendOverTCP(pair.a, "tcp", 3) == 3)
                while pair.b.session.queuedBytes(pair.b.fd) < 8 { sched_yield() }
                #expect(pair.b.receive(buffer.bytes, 100, Int(MSG_PEEK)) == 8)
                #expect(memcmp(buffer.bytes, "ring tcp", 8) == 0)
                #expect(pair.b.receive(buffer.bytes, pieces: [1, 2, 1, 90]) == 8)
                #expect(memcmp(buffer.bytes, "ring tcp", 8) == 0)
            }
            try withPair(provider, onCompanion: false) { pair in
                let (a, b) = (pair.a, pair.b)
                let buffer = Buffer(1 << 16)
                b.session.maintain(b.fd)
                var sent = 0
                while a.session.sendsOnTCP {
                    #expect(say(a, ".") == 1)
                    sent += 1
                }
                // The last of them went into the ring.
                #expect(pair.sendOverTCP(a, "tcp", 3) == 3)
                while b.session.queuedBytes(b.fd) < sent + 3 { sched_yield() }
                #expect(b.receive(buffer.bytes, pieces: [1, 1, 1 << 15], Int(MSG_PEEK)) >= sent)
                #expect(b.receive(buffer.bytes, pieces: [1, 1, 1 << 15]) == sent + 3)
                #expect(memcmp(buffer.bytes + sent, "tcp", 3) == 0)
            }
        }

        @Test("Data in the ring, then the end of the stream; the other direction goes on", arguments: ProviderUnderTest.allCases)
        func halfClose(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "last words") == 10)
                pair.a.shutDown(1)
                #expect(hear(pair.b, 11) == "last words<0>")
                #expect(hear(pair.b, 1) == "<0>")
                #expect(say(pair.b, "answer") == 6)
                #expect(hear(pair.a, 6) == "answer")
                #expect(say(pair.a, "no") == -Int(EPIPE))
                #expect(!pair.b.session.sendsOnTCP)
                pair.b.shutDown(1)
                #expect(hear(pair.a, 1) == "<0>")
            }
        }

        @Test("Whoever shut down both ways resets what comes later, as on TCP", arguments: ProviderUnderTest.allCases, [[2], [0, 1], [1, 0]])
        func shutDownBothWays(_ provider: ProviderUnderTest, _ ways: [Int32]) throws {
            try withPair(provider) { pair in
                #expect(say(pair.b, "before") == 6)
                while pair.a.session.queuedBytes(pair.a.fd) < 6 { sched_yield() }
                for way in ways { pair.a.shutDown(way) }
                #expect(hear(pair.b, 1) == "<0>")
                #expect(hear(pair.a, 6) == "before")
                #expect(say(pair.b, "after") == 5)
                var entry = pollfd(fd: pair.b.fd, events: 0, revents: 0)
                #expect(poll(&entry, 1, -1) == 1)
                let answer = say(pair.b, "more")
                #expect(answer == -Int(EPIPE) || answer == -Int(ECONNRESET))
                #expect(hear(pair.a, 1) == "<-\(ECONNRESET)>")
                #expect(hear(pair.a, 1) == "<0>")
            }
        }

        @Test("A message header is written at the end of the stream, too", arguments: ProviderUnderTest.allCases)
        func headerAtTheEnd(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                pair.a.shutDown(1)
                var bytes = [UInt8](repeating: 0, count: 64)
                bytes.withUnsafeMutableBytes { bytes in
                    var piece = iovec(iov_base: bytes.baseAddress, iov_len: 8)
                    var message = msghdr()
                    message.msg_name = bytes.baseAddress
                    message.msg_namelen = 16
                    message.msg_control = bytes.baseAddress
                    message.msg_controllen = 32
                    message.msg_flags = 0x55
                    let result = withUnsafeMutablePointer(to: &piece) { piece in
                        message.msg_iov = piece
                        message.msg_iovlen = 1
                        return pair.b.session.receive(pair.b.fd, &message, 0)
                    }
                    #expect(result == 0)
                    #expect(message.msg_namelen == 0 && message.msg_controllen == 0 && message.msg_flags == 0)
                }
            }
        }

        @Test("Data in the ring outlive their sender", arguments: ProviderUnderTest.allCases)
        func closeAfterSend(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let bytes = Buffer(20000)
                #expect(pair.a.send(bytes.bytes, 20000) == 20000)
                pair.a.close()
                #expect(pair.b.receive(bytes.bytes, 20000, Int(MSG_WAITALL)) == 20000)
                #expect(hear(pair.b, 1) == "<0>")
            }
        }

        @Test("The end of the stream behind cuts in both directions", arguments: ProviderUnderTest.allCases)
        func endBehindCuts(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "ring") == 4)
                #expect(pair.sendOverTCP(pair.a, "tcp", 3) == 3)
                pair.a.shutDown(1)
                #expect(hear(pair.b, 8) == "ringtcp<0>")
            }
            try withPair(provider, onCompanion: false) { pair in
                #expect(say(pair.a, "tcp") == 3)
                pair.b.session.maintain(pair.b.fd)
                while pair.a.session.sendsOnTCP { _ = say(pair.a, ".") }
                #expect(say(pair.a, "ring") == 4)
                pair.a.shutDown(1)
                let text = hear(pair.b, 1 << 16)
                #expect(text.hasPrefix("tcp.") && text.hasSuffix(".ring<0>"))
            }
        }

        @Test("Closing with unread bytes in the ring resets, also when they lie behind a cut", arguments: ProviderUnderTest.allCases)
        func unreadBytes(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "unread") == 6)
                while pair.b.session.queuedBytes(pair.b.fd) == 0 { sched_yield() }
                pair.b.close()
                #expect(hear(pair.a, 1) == "<-\(ECONNRESET)>")
            }
            try withPair(provider, onCompanion: false) { pair in
                pair.b.session.maintain(pair.b.fd)
                while pair.a.session.sendsOnTCP {
                    #expect(say(pair.a, ".") == 1)
                    if pair.a.session.sendsOnTCP { #expect(hear(pair.b, 1) == ".") }
                }
                #expect(say(pair.a, "unread") == 6)
                while pair.b.session.local.producer.load() != 7 { sched_yield() }
                #expect(pair.b.session.receivesOnTCP)
                #expect(pair.b.session.end(last: true))
            }
        }

        @Test("FIONREAD promises what lies behind a cut only when everything before it has arrived", arguments: ProviderUnderTest.allCases)
        func readableBehindCut(_ provider: ProviderUnderTest) throws {
            try withPair(provider, onCompanion: false) { pair in
                // More than fits into this side's TCP: the rest waits in the sender's.
                var small: Int32 = 4096
                setsockopt(pair.b.fd, SOL_SOCKET, SO_RCVBUF, &small, socklen_t(MemoryLayout<Int32>.size))
                setsockopt(pair.a.fd, SOL_SOCKET, SO_SNDBUF, &small, socklen_t(MemoryLayout<Int32>.size))
                let count = 8 << 20
                let pattern = StreamPattern(9)
                var sent = 0
                while true {
                    let result = pair.a.send(pattern.bytes(at: UInt64(sent)), min(65536, count - sent), Int(MSG_DONTWAIT))
                    if result <= 0 { break }
                    sent += result
                }
                pair.b.session.maintain(pair.b.fd)
                while pair.a.session.sendsOnTCP {
                    if say(pair.a, "x", Int(MSG_DONTWAIT)) == 1 { sent += 1 }
                }
                let buffer = Buffer(1 << 20)
                var received = 0
                while received < sent {
                    let promised = pair.b.session.queuedBytes(pair.b.fd)
                    let result = pair.b.receive(buffer.bytes, 1 << 20, Int(MSG_DONTWAIT))
                    #expect(promised <= 0 || result > 0, "promised \(promised), \(result) after \(received) of \(sent)")
                    if result > 0 { received += result } else { sched_yield() }
                }
            }
        }

        @Test("One thread writes 3 MiB to itself: TCP's buffers take what no ring holds", arguments: ProviderUnderTest.allCases)
        func writesToItself(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let count = 3 << 20
                let pattern = StreamPattern(7)
                #expect(pair.a.send(pattern.bytes(at: 0), count) == count)
                #expect(pair.a.slot.reason.load() == Reason.ringStalled.rawValue)
                let buffer = Buffer(count)
                #expect(pair.b.receive(buffer.bytes, count, Int(MSG_WAITALL)) == count)
                #expect(pattern.matches(buffer.bytes, at: 0, count: count))
                // The reader has followed: back to the companion, as soon as its acknowledgement is here.
                repeat { #expect(say(pair.a, "x") == 1 && hear(pair.b, 1) == "x") } while pair.a.session.sendsOnTCP
            }
        }

        @Test("The same with a non-blocking socket that waits in poll", arguments: ProviderUnderTest.allCases)
        func writesToItselfWithPoll(_ provider: ProviderUnderTest) throws {
            try writesToItself(provider, 3 << 20, StreamPattern(8)) {
                $0.wait(for: UInt32(POLLOUT))
                Watchdog.pat()
            }
        }

        @Test("The same with one that asks again and again, and waits nowhere", arguments: ProviderUnderTest.allCases)
        func writesToItselfWithoutWaiting(_ provider: ProviderUnderTest) throws {
            try writesToItself(provider, 3 << 20, StreamPattern(10)) { _ in usleep(1000) }
        }

        private func writesToItself(_ provider: ProviderUnderTest, _ count: Int, _ pattern: StreamPattern, whenFull: (Endpoint) -> Void) throws {
            try withPair(provider) { pair in
                var done = 0
                while done < count {
                    let result = pair.a.send(pattern.bytes(at: UInt64(done)), count - done, Int(MSG_DONTWAIT))
                    if result == -Int(EAGAIN) { whenFull(pair.a) } else { done += result }
                }
                #expect(pair.a.slot.reason.load() == Reason.ringStalled.rawValue)
                let buffer = Buffer(count)
                #expect(pair.b.receive(buffer.bytes, count, Int(MSG_WAITALL)) == count)
                #expect(pattern.matches(buffer.bytes, at: 0, count: count))
            }
        }

        @Test("Small after large, many pieces, zero bytes", arguments: ProviderUnderTest.allCases)
        func mixedSizes(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let pattern = StreamPattern(10)
                let sizes = [8, 1 << 20, 8, 8, 300_000, 1, 65536, 8]
                let rounds = 5
                let sender = startThread {
                    var position = UInt64(0)
                    for _ in 0..<rounds {
                        for size in sizes {
                            var pieces = [Int](repeating: size / 500, count: 500)
                            pieces.append(size - size / 500 * 500)
                            #expect(pair.a.send(pattern.bytes(at: position), pieces: pieces) == size)
                            position += UInt64(size)
                            #expect(pair.a.send(pattern.bytes(at: position), 0) == 0)
                        }
                    }
                }
                let buffer = Buffer(1 << 20)
                var position = UInt64(0)
                for _ in 0..<rounds {
                    for size in sizes {
                        #expect(pair.b.receive(buffer.bytes, size, Int(MSG_WAITALL)) == size)
                        #expect(pattern.matches(buffer.bytes, at: position, count: size))
                        position += UInt64(size)
                        Watchdog.pat()
                    }
                }
                join([sender])
            }
        }

        /// Without the tests' own locks: order is nobody's business then, but each byte arrives once.
        @Test("Three senders and three receivers at once lose and duplicate nothing", arguments: ProviderUnderTest.allCases)
        func crowd(_ provider: ProviderUnderTest) throws {
            let seed = streamSeed("crowd over \(provider)")
            try withPair(provider) { pair in
                let pattern = StreamPattern(seed)
                let (sent, received) = (Histogram(), Histogram())
                let isOver = Flag()
                var threads: [pthread_t] = []
                for number in 0..<UInt64(3) {
                    threads.append(startThread {
                        var random = RandomSource(seed &+ number)
                        for _ in 0..<400 {
                            let count = random.logUniform(bits: 16)
                            let bytes = pattern.bytes(at: random.next())
                            #expect(pair.a.send(bytes, count) == count)
                            sent.add(bytes, count)
                            Watchdog.pat()
                        }
                        if sent.finish() == 3 { pair.a.shutDown(1) }
                    })
                    threads.append(startThread {
                        var random = RandomSource(seed &+ 100 &+ number)
                        let buffer = Buffer(1 << 17)
                        while true {
                            let result = pair.b.receive(buffer.bytes, random.logUniform(bits: 17))
                            #expect(result >= 0)
                            if result <= 0 { break }
                            received.add(buffer.bytes, result)
                        }
                    })
                }
                let changer = startThread { runCarrierChanges([pair.a, pair.b], seed: seed) { isOver.isSet } }
                join(threads)
                isOver.set()
                join([changer])
                #expect(sent.counts == received.counts)
            }
        }

        @Test("Who looks at the windows while they are unmapped sees the end, not a crash", arguments: ProviderUnderTest.allCases)
        func endWhileWatched(_ provider: ProviderUnderTest) throws {
            for _ in 0..<20 {
                try withPair(provider) { pair in
                    let isOver = Flag()
                    let watchers = (0..<3).map { number in
                        startThread {
                            while !isOver.isSet {
                                _ = pair.b.session.readiness(pair.b.fd, UInt32(POLLIN | POLLOUT))
                                pair.b.session.maintain(pair.b.fd)
                                _ = pair.b.session.queuedBytes(pair.b.fd)
                            }
                        }
                    }
                    #expect(say(pair.a, "hello") == 5)
                    #expect(hear(pair.b, 5) == "hello")
                    _ = pair.b.session.end(last: true)
                    isOver.set()
                    join(watchers)
                }
            }
        }
    }
}

/// How often each byte value was seen.
private final class Histogram: @unchecked Sendable {
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private(set) var counts = [Int](repeating: 0, count: 256)
    private var finished = 0

    init() { pthread_mutex_init(lock, nil) }

    func add(_ bytes: UnsafeRawPointer, _ count: Int) {
        var mine = [Int](repeating: 0, count: 256)
        mine.withUnsafeMutableBufferPointer { mine in
            for index in 0..<count { mine[Int(bytes.load(fromByteOffset: index, as: UInt8.self))] += 1 }
        }
        pthread_mutex_lock(lock)
        for value in 0..<256 { counts[value] += mine[value] }
        pthread_mutex_unlock(lock)
    }

    func finish() -> Int {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        finished += 1
        return finished
    }
}
