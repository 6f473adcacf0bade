import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing
import Testing

/// Receives from the kernel alone, as a program that knows nothing of the session: until it has `count` bytes, or the end.
private func hearRaw(_ end: Endpoint, _ count: Int) -> String {
    let buffer = Buffer(count)
    var done = 0
    while done < count {
        let result = ss_sys_recvfrom(end.fd, buffer.bytes + done, count - done, 0)
        if result <= 0 { return String(decoding: UnsafeRawBufferPointer(start: buffer.bytes, count: done), as: UTF8.self) + "<\(result)>" }
        done += result
    }
    return String(decoding: UnsafeRawBufferPointer(start: buffer.bytes, count: done), as: UTF8.self)
}

private func setBuffer(_ fd: Int32, _ option: Int32, _ bytes: Int32) {
    var value = bytes
    setsockopt(fd, SOL_SOCKET, option, &value, socklen_t(MemoryLayout<Int32>.size))
}

extension SessionTests {
    /// Both directions go back to TCP at once and for good, whatever the peer does at that moment.
    @Suite("Hand-over", .serialized) struct HandOverTests {
        @Test("What lies unread in the ring comes over TCP, before what follows", arguments: ProviderUnderTest.allCases)
        func unread(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "read, unread") == 12)
                #expect(hear(b, 6) == "read, ")
                #expect(say(b, "from the ring ") == 14)
                #expect(b.handOver())
                #expect(b.slot.mode.load() == Slot.Mode.plain && b.session.sendsOnTCP && b.session.receivesOnTCP)
                #expect(ss_sys_sendto(b.fd, "from TCP", 8, 0) == 8)
                // The peer has made no call yet.
                a.session.maintain(a.fd)
                #expect(hearRaw(b, 6) == "unread")
                #expect(a.slot.bytesRewound.load() == 6 && a.slot.companionBytes.sent == a.slot.sendPosition.load() - 6)
                #expect(Reason(rawValue: a.slot.reason.load()) == .peerPolicy)
                #expect(hear(a, 22) == "from the ring from TCP")
                #expect(say(a, "over") == 4)
                #expect(hearRaw(b, 4) == "over")
                #expect(a.session.sendsOnTCP)
                a.shutDown(1)
                #expect(hearRaw(b, 1) == "<0>")
                #expect(ss_sys_sendto(b.fd, "last", 4, 0) == 4)
                #expect(hear(a, 4) == "last")
            }
        }

        @Test("A peer that only looks does its part, too", arguments: ProviderUnderTest.allCases, [true, false])
        func looking(_ provider: ProviderUnderTest, byPoll: Bool) throws {
            try withPair(provider) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "unread") == 6)
                #expect(b.handOver())
                let buffer = Buffer(6)
                // (A remote write may take its time.)
                let deadline = ss_monotonic_ns() + 5_000_000_000
                var received = -Int(EAGAIN)
                while received == -Int(EAGAIN), ss_monotonic_ns() < deadline {
                    if byPoll { _ = a.session.readiness(a.fd, UInt32(POLLIN)) } else { _ = a.session.queuedBytes(a.fd) }
                    received = ss_sys_recvfrom(b.fd, buffer.bytes, 6, Int32(MSG_DONTWAIT))
                }
                #expect(received == 6)
            }
        }

        @Test("A peer that sleeps is woken and does its part", arguments: ProviderUnderTest.allCases, [true, false])
        func asleep(_ provider: ProviderUnderTest, inPoll: Bool) throws {
            ss_session_state.never_spin = 1
            defer { ss_session_state.never_spin = 0 }
            for _ in 0..<20 {
                try withPair(provider) { pair in
                    let (a, b) = (pair.a, pair.b)
                    let sleeper = startThread {
                        #expect(say(a, "request") == 7)
                        if inPoll { a.wait(for: UInt32(POLLIN)) }
                        #expect(hear(a, 6) == "answer")
                    }
                    // Asleep, or about to be.
                    while a.slot.armedForReceiveCounter.load() == 0, provider == .sharedMemory { sched_yield() }
                    #expect(b.handOver())
                    #expect(hearRaw(b, 7) == "request")
                    #expect(ss_sys_sendto(b.fd, "answer", 6, 0) == 6)
                    join([sleeper])
                }
            }
        }

        @Test("A thread that sleeps in a receive of the end that is handed over goes on over TCP", arguments: ProviderUnderTest.allCases)
        func sleeperHere(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let sleeper = startThread { #expect(hear(pair.b, 5) == "hello") }
                #expect(pair.b.handOver())
                #expect(say(pair.a, "hello") == 5)
                join([sleeper])
            }
        }

        @Test("Both ends at once", arguments: ProviderUnderTest.allCases) func both(_ provider: ProviderUnderTest) throws {
            for _ in 0..<30 {
                try withPair(provider) { pair in
                    let threads = [pair.a, pair.b].map { end in startThread { while !end.handOver() { sched_yield() } } }
                    join(threads)
                    for (from, to) in [(pair.a, pair.b), (pair.b, pair.a)] {
                        #expect(ss_sys_sendto(from.fd, "plain", 5, 0) == 5)
                        #expect(hearRaw(to, 5) == "plain")
                    }
                }
            }
        }

        @Test("Not now: unread bytes of the ring belong before bytes that are on TCP already", arguments: ProviderUnderTest.allCases)
        func behindACut(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "ring ") == 5)
                #expect(pair.sendOverTCP(a, "tcp", 3) == 3)
                #expect(!b.handOver())
                #expect(hear(b, 5) == "ring ")
                #expect(b.handOver())
                #expect(hearRaw(b, 3) == "tcp")
            }
        }

        @Test("Not now: the peer has ended its side behind unread bytes", arguments: ProviderUnderTest.allCases, [true, false])
        func behindTheEnd(_ provider: ProviderUnderTest, closes: Bool) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "last words") == 10)
                if closes { pair.a.close() } else { pair.a.shutDown(1) }
                #expect(!pair.b.handOver())
                #expect(hear(pair.b, 10) == "last words")
                #expect(pair.b.handOver())
                #expect(hearRaw(pair.b, 1) == "<0>")
            }
        }

        @Test("Before its end a peer sends what was rewound", arguments: ProviderUnderTest.allCases, [0, 1, 2])
        func endsAfterwards(_ provider: ProviderUnderTest, how: Int) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "last words") == 10)
                #expect(pair.b.handOver())
                switch how {
                case 0: pair.a.close()
                case 1: pair.a.shutDown(Int32(SHUT_WR))
                default: pair.a.session.settleBeforeExit(isLast: true, closes: true)
                }
                #expect(hearRaw(pair.b, 10) == "last words")
                if how != 2 { #expect(hearRaw(pair.b, 1) == "<0>") }
            }
        }

        @Test("What is sent to a peer that exits is the kernel's to answer, at once", arguments: ProviderUnderTest.allCases)
        func sentToAnExit(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                // From now on it would not ask the kernel for some milliseconds.
                #expect(say(pair.b, "hello") == 5 && hear(pair.a, 5) == "hello")
                pair.a.session.settleBeforeExit(isLast: true, closes: true)
                // (A remote write may take its time.)
                let deadline = ss_monotonic_ns() + 5_000_000_000
                while pair.b.session.isInvited, pair.b.session.local.endFlags.load() == 0, ss_monotonic_ns() < deadline { sched_yield() }
                #expect(say(pair.b, "late") == 4)
                #expect(hearRaw(pair.a, 4) == "late")
            }
        }

        @Test("A hand-over before the peer was ever invited, and one before it has followed the way there",
              arguments: ProviderUnderTest.allCases)
        func early(_ provider: ProviderUnderTest) throws {
            try withPair(provider, onCompanion: false) { pair in
                #expect(say(pair.a, "plain") == 5)
                #expect(pair.b.handOver())
                #expect(hearRaw(pair.b, 5) == "plain")
            }
            try withPair(provider, onCompanion: false) { pair in
                let (a, b) = (pair.a, pair.b)
                b.session.maintain(b.fd)
                var sent = 0
                while a.session.sendsOnTCP {
                    #expect(say(a, ".") == 1)
                    sent += 1
                }
                #expect(say(a, "ring") == 4)
                #expect(b.session.receivesOnTCP)
                #expect(b.handOver())
                a.session.maintain(a.fd)
                #expect(hearRaw(b, sent + 4) == String(repeating: ".", count: sent) + "ring")
            }
        }

        /// A pair whose direction a → b is on the companion, with more in the ring than TCP takes, which is rewound.
        private func withBacklog(_ provider: ProviderUnderTest, _ body: (Pair, StreamPattern, Int) throws -> Void) throws {
            let pair = try Pair(provider.loaded, ringBytes: UInt32(Window.maximumRingBytes)) { client, server in
                setBuffer(client, SO_SNDBUF, 65536)
                setBuffer(server, SO_RCVBUF, 65536)
            }
            pair.moveToCompanion()
            try Watchdog.watch({ pair.state }) {
                let pattern = StreamPattern(12)
                let total = Int(Window.maximumRingBytes) - 1000
                #expect(pair.a.send(pattern.bytes(at: 0), total) == total)
                #expect(pair.b.handOver())
                pair.a.session.maintain(pair.a.fd)
                #expect(pair.a.session.hasBacklog)
                try body(pair, pattern, total)
            }
            pair.close()
        }

        private func drain(_ pair: Pair, _ pattern: StreamPattern, _ total: Int) {
            let buffer = Buffer(total)
            #expect(ss_sys_recvfrom(pair.b.fd, buffer.bytes, total, Int32(MSG_WAITALL)) == total)
            #expect(pattern.matches(buffer.bytes, at: 0, count: total))
        }

        @Test("A backlog goes out before new data, as TCP takes it", arguments: ProviderUnderTest.allCases, [0, 1, 2])
        func backlog(_ provider: ProviderUnderTest, way: Int) throws {
            try withBacklog(provider) { pair, pattern, total in
                let a = pair.a
                #expect(a.send("x", 1, Int(MSG_DONTWAIT)) == -Int(EAGAIN))
                #expect(a.session.readiness(a.fd, UInt32(POLLOUT)) == 0)
                #expect(!a.session.looksWritable)
                let sender = startThread {
                    switch way {
                    case 0: #expect(say(a, " and more") == 9)
                    case 1:
                        a.wait(for: UInt32(POLLOUT))
                        #expect(!a.session.hasBacklog)
                        #expect(say(a, " and more", Int(MSG_DONTWAIT)) == 9)
                    default:
                        // An end that only reads.
                        #expect(hear(a, 2) == "go")
                        #expect(say(a, " and more") == 9)
                    }
                }
                drain(pair, pattern, total)
                if way == 2 { #expect(ss_sys_sendto(pair.b.fd, "go", 2, 0) == 2) }
                #expect(hearRaw(pair.b, 9) == " and more")
                join([sender])
            }
        }

        @Test("An idle reader sends its backlog", arguments: ProviderUnderTest.allCases, [true, false])
        func backlogOfReader(_ provider: ProviderUnderTest, inPoll: Bool) throws {
            try withBacklog(provider) { pair, pattern, total in
                let reader = startThread {
                    if inPoll { pair.a.wait(for: UInt32(POLLIN)) }
                    #expect(hear(pair.a, 2) == "go")
                }
                drain(pair, pattern, total)
                #expect(ss_sys_sendto(pair.b.fd, "go", 2, 0) == 2)
                join([reader])
            }
        }

        @Test("The end waits for the backlog", arguments: ProviderUnderTest.allCases, [true, false])
        func endBehindBacklog(_ provider: ProviderUnderTest, closes: Bool) throws {
            try withBacklog(provider) { pair, pattern, total in
                let a = pair.a
                let ender = startThread {
                    if closes { return a.close() }
                    a.shutDown(1)
                    #expect(say(a, "no") == -Int(EPIPE))
                    // Whatever the program does next carries the rest on.
                    #expect(hear(a, 2) == "go")
                }
                drain(pair, pattern, total)
                #expect(hearRaw(pair.b, 1) == "<0>")
                if !closes { #expect(ss_sys_sendto(pair.b.fd, "go", 2, 0) == 2) }
                join([ender])
            }
        }

        @Test("A handed-over end that closes resets nothing that is read, and a peer learns of the end", arguments: ProviderUnderTest.allCases)
        func closes(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                #expect(say(pair.a, "once") == 4)
                #expect(pair.b.handOver())
                pair.a.session.maintain(pair.a.fd)
                #expect(hearRaw(pair.b, 4) == "once")
                pair.b.close()
                #expect(hear(pair.a, 1) == "<0>")
            }
        }

        @Test("Nobody knows whether the peer has seen it: nothing is read until that is clear", arguments: [true, false])
        func undecided(_ dies: Bool) throws {
            try withPair(.sharedMemory) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "ring") == 4)
                // As if a were stopped between its intention and its cut.
                b.session.local.cutIntent.store(a.slot.sendCuts.load() + 1)
                #expect(!b.handOver())
                let buffer = Buffer(10)
                #expect(b.receive(buffer.bytes, 10, Int(MSG_DONTWAIT)) == -Int(EAGAIN))
                if dies {
                    _ = ss_sys_shutdown(a.fd, Int32(SHUT_WR))  // the kernel's FIN, without a word in the window
                    #expect(hear(b, 5) == "ring<0>")
                } else {
                    a.session.maintain(a.fd)
                    #expect(hear(b, 4) == "ring")
                    #expect(b.handOver())
                }
            }
        }

        /// Many short streams, each with hand-overs somewhere in it.
        @Test("Every byte arrives once and in order", arguments: ProviderUnderTest.allCases, [1, 3])
        func streams(_ provider: ProviderUnderTest, threads: Int) throws {
            let seed = streamSeed("hand-overs over \(provider), \(threads) threads")
            var random = RandomSource(seed)
            let until = ss_monotonic_ns() + UInt64((environmentNumber("STREAM_SECONDS") ?? 4) * 0.5e9)
            var (rounds, handOvers, bytes) = (0, 0, UInt64(0))
            repeat {
                var plan = StreamPlan(seed: random.next() >> 20, seconds: Double(random.next(below: 60) + 5) / 1000)
                plan.threadsPerSide = threads
                plan.largestSendBits = 8 + random.next(below: 13)
                plan.handsOver = true
                TestFabric.shared.reseed(plan.seed)
                let pair = try Pair(provider.loaded, ringBytes: 4096 << UInt32(random.next(below: 6)))
                if !random.oneIn(4) { pair.moveToCompanion() }
                let result = runStreams(pair, plan)
                rounds += 1
                bytes += result.bytes
                handOvers += [pair.a, pair.b].filter { $0.slot.mode.load() == Slot.Mode.plain }.count
                pair.close()
                #expect(result.failures == 0, "round \(rounds), plan seed \(plan.seed)")
                if result.failures != 0 { break }
            } while ss_monotonic_ns() < until || handOvers == 0
            print("  \(rounds) connections, \(handOvers) hand-overs, \(bytes >> 20) MiB")
        }
    }
}
