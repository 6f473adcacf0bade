import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing
import Testing

extension Slot {
    var sendRingSize: UInt64 { RingChange(word: sendRing.load()).size }
    var receiveRingSize: UInt64 { RingChange(word: receiveRing.load()).size }
}

/// Not under the thread sanitizer, which must see the copies.
private let copiesAreGuarded = dlsym(nil, "__tsan_init") == nil

extension SessionTests {
    /// A ring that is full grows with what lies in it: see `RingChange`.
    @Suite("Growing rings", .serialized) struct GrowthTests {
        @Test("A ring that proves too small grows up to its largest size", arguments: ProviderUnderTest.allCases)
        func toTheLargest(_ provider: ProviderUnderTest) throws {
            try withPair(provider, ringBytes: 4096) { pair in
                #expect(pair.a.slot.sendRingSize == 4096)
                let pattern = StreamPattern(9)
                let reader = startThread { _ = readToTheEnd(pair.b, pattern, atMost: 1 << 18) }
                var position = UInt64(0)
                while pair.a.slot.sendRingSize < Window.maximumRingBytes {
                    #expect(pair.a.send(pattern.bytes(at: position), 1 << 20) == 1 << 20)
                    position += 1 << 20
                }
                pair.a.shutDown(1)
                join([reader])
                #expect(pair.b.slot.receiveRingSize >= Window.maximumRingBytes / 4)
            }
        }

        @Test("Who has chosen the size of the send buffer is held up as long as the ring is not read")
        func chosenBuffer() throws {
            try withPair(.sharedMemory, ringBytes: 4096) { pair in
                pair.a.slot.sendBuffer.store(10_000)
                let pattern = StreamPattern(15)
                // As large as chosen at once, and larger when it is read.
                #expect(pair.a.send(pattern.bytes(at: 0), 100_000, Int(MSG_DONTWAIT)) == 16384)
                #expect(pair.a.send(pattern.bytes(at: 16384), 100_000, Int(MSG_DONTWAIT)) == -Int(EAGAIN))
                #expect(!pair.a.session.looksWritable)
                let buffer = Buffer(100_000)
                #expect(pair.b.receive(buffer.bytes, 10_000) == 10_000)
                #expect(pair.a.send(pattern.bytes(at: 16384), 100_000, Int(MSG_DONTWAIT)) == 10_000)
                #expect(pair.b.receive(buffer.bytes, 100_000) == 16384)
                #expect(pattern.matches(buffer.bytes, at: 10_000, count: 16384))
                #expect(pair.a.send(pattern.bytes(at: 26384), 100_000, Int(MSG_DONTWAIT)) > 16384)
            }
        }

        /// Sends and receives, all without waiting and by one thread, until the ring holds some bytes, and has its largest size or
        /// not. As long as it would take more if it were as large as it can be, and for half of that in any case, everything is
        /// taken.
        private struct Mixture {
            let pair: Pair
            let pattern: StreamPattern
            var random: RandomSource
            let buffer = Buffer(1 << 20)
            let brink = Brink()
            var sent = UInt64(0)
            var received = UInt64(0)
            /// Sizes that a ring had with unread bytes on both sides of the change.
            var grownAround = 0

            mutating func countToSend() -> Int {
                min(1 + random.logUniform(bits: 18), Int(Window.maximumRingBytes) / 2 - Int(sent - received))
            }

            mutating func send() {
                let count = countToSend()
                guard count > 0 else { return }
                let before = pair.a.slot.sendRing.load()
                let result = random.oneIn(3)
                    ? pair.a.send(pattern.bytes(at: sent), pieces: [count / 3, 0, count - count / 3], Int(MSG_DONTWAIT))
                    : pair.a.send(pattern.bytes(at: sent), count, Int(MSG_DONTWAIT))
                #expect(result == count)
                sent += UInt64(max(result, 0))
                let change = RingChange(word: pair.a.slot.sendRing.load())
                if change.word != before, change.position > received, change.position < sent { grownAround += 1 }
            }

            /// As many bytes as `send` may send, and then memory that cannot be read: any part of them may go.
            mutating func sendTooMuch() {
                let count = countToSend()
                guard count > 0 else { return }
                let start = brink.end - count
                memcpy(start, pattern.bytes(at: sent), count)
                let pieces = random.oneIn(2) ? [count + 100] : [count / 2, count - count / 2, 100]
                let result = pair.a.send(start, pieces: pieces, Int(MSG_DONTWAIT))
                #expect(result == -Int(EFAULT) || result > 0 && result <= count)
                sent += UInt64(max(result, 0))
            }

            mutating func receive() {
                let count = 1 + random.logUniform(bits: 18)
                let expected = min(count, Int(sent - received))
                let peeks = random.oneIn(4)
                let flags = Int(MSG_DONTWAIT) | (peeks ? Int(MSG_PEEK) : 0)
                let result = random.oneIn(3)
                    ? pair.b.receive(buffer.bytes, pieces: [count / 4, count - count / 4], flags) : pair.b.receive(buffer.bytes, count, flags)
                #expect(result == (expected == 0 ? -Int(EAGAIN) : expected))
                guard result > 0 else { return }
                #expect(pattern.matches(buffer.bytes, at: received, count: result))
                if !peeks { received += UInt64(result) }
            }

            /// Into as much room as `receive` may have, and then memory that cannot be written.
            mutating func receiveIntoTooLittle() {
                let count = 1 + random.logUniform(bits: 18)
                guard count < Int(sent - received) else { return }
                let start = brink.end - count
                let pieces = random.oneIn(2) ? [count + 100] : [count / 2, count - count / 2, 100]
                let result = pair.b.receive(start, pieces: pieces, Int(MSG_DONTWAIT))
                #expect(result == -Int(EFAULT) || result > 0 && result <= count)
                guard result > 0 else { return }
                #expect(pattern.matches(start, at: received, count: result))
                received += UInt64(result)
            }

            mutating func step() {
                switch random.next(below: 8) {
                case 0 where copiesAreGuarded: sendTooMuch()
                case 1 where copiesAreGuarded: receiveIntoTooLittle()
                case 0...4: send()
                default: receive()
                }
                #expect(pair.b.session.queuedBytes(pair.b.fd) == Int(sent - received))
                #expect(!pair.a.session.sendsOnTCP && pair.a.session.looksWritable)
                Watchdog.pat()
            }
        }

        /// Half a mebibyte in front of memory that cannot be touched.
        private final class Brink {
            private static let bytes = 1 << 19
            private let memory = mmap(nil, bytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
            var end: UnsafeMutableRawPointer { memory + Brink.bytes }
            init() {
                ss_guard_memory()
                mprotect(end, 4096, PROT_NONE)
            }
            deinit { munmap(memory, Brink.bytes + 4096) }
        }

        @Test("Everything that TCP would take is taken, whatever lies in the ring")
        func mixed() throws {
            let seed = streamSeed("growing rings")
            var random = RandomSource(seed)
            var grownAround = 0
            for _ in 0..<200 {
                try withPair(.sharedMemory, ringBytes: 4096 << UInt32(random.next(below: 7))) { pair in
                    var mixture = Mixture(pair: pair, pattern: StreamPattern(12), random: RandomSource(random.next()))
                    for _ in 0..<random.next(below: 80) { mixture.step() }
                    grownAround += mixture.grownAround
                    #expect(pair.a.slot.tcpBytesSent.load() < 1000 && pair.a.slot.carrierChanges.load() < 4)
                }
            }
            #expect(grownAround > 20)
        }

        @Test("What lies unread around a change goes over TCP when the reader hands over")
        func handedOver() throws {
            let seed = streamSeed("growing rings, handed over")
            var random = RandomSource(seed)
            for _ in 0..<60 {
                try withPair(.sharedMemory, ringBytes: 4096 << UInt32(random.next(below: 7))) { pair in
                    var mixture = Mixture(pair: pair, pattern: StreamPattern(13), random: RandomSource(random.next()))
                    for _ in 0..<random.next(below: 40) { mixture.step() }
                    #expect(pair.b.handOver())
                    var left = Int(mixture.sent - mixture.received)
                    while left > 0 {
                        pair.a.session.maintain(pair.a.fd)
                        let result = ss_sys_recvfrom(pair.b.fd, mixture.buffer.bytes, left, Int32(MSG_DONTWAIT))
                        guard result > 0 else { continue }
                        #expect(mixture.pattern.matches(mixture.buffer.bytes, at: mixture.received, count: result))
                        mixture.received += UInt64(result)
                        left -= result
                    }
                    #expect(say(pair.a, "end") == 3 && hear(pair.b, 3) == "end")
                }
            }
        }

        @Test("A reader that reads slowly, in another thread, and a writer that never waits")
        func twoThreads() throws {
            let seed = streamSeed("growing rings, two threads")
            var random = RandomSource(seed)
            for _ in 0..<40 {
                try withPair(.sharedMemory, ringBytes: 4096) { pair in
                    let pattern = StreamPattern(14)
                    let total = UInt64(1 + random.next(below: 3 << 20))
                    let reads = random.next()
                    let reader = startThread {
                        var random = RandomSource(reads)
                        let buffer = Buffer(1 << 17)
                        var position = UInt64(0)
                        while position < total {
                            let result = pair.b.receive(buffer.bytes, 1 + random.logUniform(bits: 17))
                            #expect(result > 0)
                            guard result > 0 else { return }
                            #expect(pattern.matches(buffer.bytes, at: position, count: result))
                            position += UInt64(result)
                            Watchdog.pat()
                        }
                    }
                    var position = UInt64(0)
                    while position < total {
                        let count = min(1 + random.logUniform(bits: 16), Int(total - position))
                        let result = pair.a.send(pattern.bytes(at: position), count, Int(MSG_DONTWAIT))
                        #expect(result > 0 || result == -Int(EAGAIN) && pair.a.slot.sendRingSize == Window.maximumRingBytes)
                        if result > 0 { position += UInt64(result) } else { sched_yield() }
                    }
                    join([reader])
                }
            }
        }

        @Test("A view follows a change when it is its turn, and takes no nonsense for one")
        func views() {
            func view() -> RingView { RingView(origin: 0, change: RingChange(position: 0, size: 4096)) }
            func follow(_ view: inout RingView, _ position: UInt64, _ size: UInt64, at start: UInt64, _ producer: UInt64) -> UInt64? {
                view.follow(RingChange(position: position, size: size), at: start, producer)
            }
            var same = view()
            #expect(follow(&same, 0, 4096, at: 5000, 9096) == 9096)
            #expect(follow(&same, 0, 4096, at: 5000, 9097) == nil)
            #expect(follow(&same, 0, 4096, at: 5000, 4999) == nil)
            // Behind what has been seen: not yet.
            var early = view()
            #expect(follow(&early, 9096, 16384, at: 5000, 9000) == 9000 && early.geometry.size == 4096)
            #expect(follow(&early, 9096, 16384, at: 5000, 9096) == 9096 && early.geometry.size == 4096)
            // In the middle: up to it, and then over.
            #expect(follow(&early, 9096, 16384, at: 5000, 20000) == 9096 && early.geometry.size == 4096)
            #expect(follow(&early, 9096, 16384, at: 9096, 20000) == 20000)
            #expect(early.geometry.index(9096) == 4096 && early.geometry.size == 16384)
            // Growing on, before the end is reached.
            #expect(follow(&early, 9096, 65536, at: 10000, 20000) == 20000)
            #expect(early.geometry.index(9096) == 4096 && early.geometry.size == 65536)
            for (position, size) in [(UInt64(4999), UInt64(16384)), (5000, 2048), (5000, 1 << 21), (5000 + 2 << 20, 16384), (9097, 16384)] {
                var view = view()
                #expect(follow(&view, position, size, at: 5000, 20000) == nil, "\(position) \(size)")
            }
        }
    }
}
