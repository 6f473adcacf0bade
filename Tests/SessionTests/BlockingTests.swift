import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing
import Synchronization
import Testing

extension SessionTests {
    /// Blocking calls keep the kernel's rules (WSD-S2).
    @Suite("Blocking calls", .serialized) struct BlockingTests {
        private func setTimeout(_ end: Endpoint, _ option: Int32) {
            var value = timeval(tv_sec: 0, tv_usec: 30_000)
            setsockopt(end.fd, SOL_SOCKET, option, &value, socklen_t(MemoryLayout<timeval>.size))
        }

        @Test("SO_RCVTIMEO ends a wait on either carrier", arguments: ProviderUnderTest.allCases, [true, false])
        func receiveTimeout(_ provider: ProviderUnderTest, onCompanion: Bool) throws {
            try withPair(provider, onCompanion: onCompanion) { pair in
                setTimeout(pair.b, SO_RCVTIMEO)
                #expect(hear(pair.b, 1) == "<-\(EAGAIN)>")
                #expect(say(pair.a, "abc") == 3)
                #expect(hear(pair.b, 3) == "abc")
                #expect(say(pair.a, "abc") == 3)
                let bytes = Buffer(10)
                #expect(pair.b.receive(bytes.bytes, 10, Int(MSG_WAITALL)) == 3)
            }
        }

        @Test("SO_SNDTIMEO ends a wait when no carrier takes more", arguments: ProviderUnderTest.allCases)
        func sendTimeout(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                setTimeout(pair.a, SO_SNDTIMEO)
                let bytes = Buffer(1 << 20)
                var (result, total) = (0, 0)
                repeat {
                    result = pair.a.send(bytes.bytes, bytes.count)
                    total += max(result, 0)
                } while result > 0
                #expect(result == -Int(EAGAIN))
                let buffer = Buffer(total)
                #expect(pair.b.receive(buffer.bytes, total, Int(MSG_WAITALL)) == total)
            }
        }

        private func handle(_ restarts: Bool) {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { _ in }
            action.sa_flags = restarts ? SA_RESTART : 0
            #expect(ss_program_sigaction(SIGUSR1, &action, nil) == 0)
        }

        @Test("A handler without SA_RESTART ends a wait with EINTR", arguments: ProviderUnderTest.allCases, [true, false])
        func interrupted(_ provider: ProviderUnderTest, onCompanion: Bool) throws {
            handle(false)
            try withPair(provider, onCompanion: onCompanion) { pair in
                let isOver = Flag()
                let receiver = startThread {
                    #expect(hear(pair.b, 1) == "<-\(EINTR)>")
                    isOver.set()
                }
                while !isOver.isSet {
                    pthread_kill(receiver, SIGUSR1)
                    usleep(1000)
                }
                join([receiver])
            }
        }

        @Test("A handler with SA_RESTART does not", arguments: ProviderUnderTest.allCases, [true, false])
        func restarted(_ provider: ProviderUnderTest, onCompanion: Bool) throws {
            handle(true)
            try withPair(provider, onCompanion: onCompanion) { pair in
                let receiver = startThread { #expect(hear(pair.b, 5) == "hello") }
                for _ in 0..<20 {
                    pthread_kill(receiver, SIGUSR1)
                    usleep(500)
                }
                #expect(say(pair.a, "hello") == 5)
                join([receiver])
            }
        }

        @Test("Non-blocking calls say EAGAIN and nothing else", arguments: ProviderUnderTest.allCases)
        func nonBlocking(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                pair.a.slot.flags.setBits(Slot.Flags.nonBlocking)
                pair.b.slot.flags.setBits(Slot.Flags.nonBlocking)
                let bytes = Buffer(1 << 20)
                #expect(pair.b.receive(bytes.bytes, 1) == -Int(EAGAIN))
                #expect(pair.b.receive(bytes.bytes, 1, Int(MSG_WAITALL)) == -Int(EAGAIN))
                var total = 0
                while true {
                    let result = pair.a.send(bytes.bytes, bytes.count)
                    if result < 0 {
                        #expect(result == -Int(EAGAIN))
                        break
                    }
                    total += result
                }
                while total > 0 {
                    let result = pair.b.receive(bytes.bytes, bytes.count)
                    if result == -Int(EAGAIN) { pair.b.wait(for: UInt32(POLLIN)) } else { total -= result }
                }
                #expect(total == 0)
            }
        }

        /// One message is under way at a time: a ring that is lost is never made good, and the watchdog speaks up.
        @Test("A byte that comes at the very moment at which its reader goes to sleep wakes it")
        func lastLook() throws {
            let rounds = 40_000
            ss_session_state.never_spin = 1
            defer { ss_session_state.never_spin = 0 }
            try withPair(.sharedMemory) { pair in
                let received = Counter()
                let reader = startThread {
                    let buffer = Buffer(1)
                    for _ in 0..<rounds {
                        if pair.b.receive(buffer.bytes, 1) != 1 { return }
                        received.add()
                    }
                }
                var random = RandomSource(streamSeed("moments"))
                let buffer = Buffer(1)
                for round in 0..<rounds {
                    // It has the last byte, and needs a moment until it sleeps: the next one comes somewhere in that moment.
                    while received.value < round { ss_pause() }
                    let start = ss_cycles()
                    let delay = random.next(below: 4000)
                    while ss_cycles() &- start < delay {}
                    #expect(pair.a.send(buffer.bytes, 1) == 1)
                    if round & 255 == 0 { Watchdog.pat() }
                }
                join([reader])
                #expect(received.value == rounds)
            }
        }

        @Test("Request and response, always asleep in between, lose no wake-up", arguments: ProviderUnderTest.allCases, [true, false])
        func pingPong(_ provider: ProviderUnderTest, inPoll: Bool) throws {
            let seed = streamSeed("ping-pong over \(provider)")
            let rounds = Int((environmentNumber("STREAM_SECONDS") ?? 4) * 200)
            ss_session_state.never_spin = 1
            defer { ss_session_state.never_spin = 0 }
            try withPair(provider) { pair in
                let isOver = Flag()
                let threads = [pair.a, pair.b].enumerated().map { side, end in
                    startThread {
                        var random = RandomSource(seed)
                        let buffer = Buffer(64)
                        for round in 0..<rounds {
                            let (count, isMine) = (random.logUniform(bits: 6), round & 1 == side)
                            if isMine {
                                memset(buffer.bytes, Int32(round & 255), count)
                                #expect(end.send(buffer.bytes, count) == count)
                                continue
                            }
                            var done = 0
                            while done < count {
                                if inPoll { end.wait(for: UInt32(POLLIN)) }
                                let result = end.receive(buffer.bytes + done, count - done, inPoll ? Int(MSG_DONTWAIT) : 0)
                                if result == -Int(EAGAIN), inPoll { continue }
                                #expect(result > 0)
                                if result <= 0 { return }
                                done += result
                            }
                            #expect(buffer.bytes.load(as: UInt8.self) == UInt8(round & 255))
                            Watchdog.pat()
                        }
                    }
                }
                let changer = startThread { runCarrierChanges([pair.a, pair.b], seed: seed) { isOver.isSet } }
                join(threads)
                isOver.set()
                join([changer])
            }
        }

        /// The same from the other side: who waits for room sleeps until the reader has made some.
        @Test("A writer that always finds the ring full loses no wake-up", arguments: ProviderUnderTest.allCases, [true, false])
        func fullRing(_ provider: ProviderUnderTest, inPoll: Bool) throws {
            ss_session_state.never_spin = 1
            defer { ss_session_state.never_spin = 0 }
            try withPair(provider, ringBytes: 4096) { pair in
                let pattern = StreamPattern(11)
                let total = UInt64(8 << 20)
                let sender = startThread {
                    var position = UInt64(0)
                    while position < total {
                        let result = pair.a.send(pattern.bytes(at: position), 50_000, inPoll ? Int(MSG_DONTWAIT) : 0)
                        if result == -Int(EAGAIN), inPoll { pair.a.wait(for: UInt32(POLLOUT)) } else { position += UInt64(result) }
                        Watchdog.pat()
                    }
                    pair.a.shutDown(1)
                }
                #expect(readToTheEnd(pair.b, pattern, atMost: 3000) >= total)
                join([sender])
            }
        }

        /// A reader of one direction and a writer of the other share a doorbell: neither may lose its rings to the other.
        @Test("A blocked reader and a blocked writer of one socket wake each other's rings up", arguments: ProviderUnderTest.allCases)
        func sharedDoorbell(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let rounds = 300
                let big = Buffer(200_000)
                let isOver = Flag()
                let threads = [
                    startThread {  // a: reads small messages
                        for _ in 0..<rounds {
                            #expect(hear(pair.a, 4) == "ping")
                            Watchdog.pat()
                        }
                    },
                    startThread {  // a: writes again and again
                        while !isOver.isSet { _ = pair.a.send(big.bytes, big.count) }
                        pair.a.shutDown(1)
                    },
                    startThread {  // b: answers now and then, and reads
                        let buffer = Buffer(1 << 16)
                        var (number, read) = (0, 0)
                        while true {
                            let result = pair.b.receive(buffer.bytes, buffer.count)
                            if result <= 0 { break }
                            read += result
                            if number < rounds, read > number * 50_000 {
                                number += 1
                                #expect(say(pair.b, "ping") == 4)
                            }
                            if number == rounds { isOver.set() }
                        }
                    },
                ]
                join(threads)
            }
        }
    }
}
