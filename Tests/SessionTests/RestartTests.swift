import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing
import Testing

/// What the end that stayed does in its data calls: the flag that leads to `restart`.
private func noticed(_ end: Endpoint) -> Bool { end.slot.flags.load() & Slot.Flags.peerLeft != 0 }

extension SessionTests {
    /// A session that is ended by an exec at one end, and begun anew.
    @Suite("Beginning anew", .serialized) struct RestartTests {
        @Test("The end that stays begins anew when it has read and sent everything", arguments: ProviderUnderTest.allCases)
        func order(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "for the next image") == 18)
                #expect(say(b, "read later") == 10)
                let carried = a.slot.companionBytes
                #expect(b.handOver(leaves: true))
                #expect(b.session.connection.pointee.departure == Departure.told)
                #expect(b.session.restartAfterLeaving {})
                #expect(b.slot.mode.load() == Slot.Mode.plain && !b.session.isUp)
                // Bytes of the ring are unread, and so is what the next image says.
                #expect(say(b, " over TCP") == 9)
                #expect(!a.session.restart {})
                #expect(hear(a, 10) == "read later")
                #expect(hear(a, 9) == " over TCP")
                // The rewind is answered in that call at the latest.
                #expect(hear(b, 18) == "for the next image")
                #expect(provider == .remoteWrites || noticed(a))
                var retired = false
                guard a.session.restart({ retired = true }) else {
                    // What it wrote met memory that is gone, and it hears of that early or late: it goes on over TCP.
                    #expect(provider == .remoteWrites && !retired)
                    #expect(say(a, "plain") == 5 && hear(b, 5) == "plain")
                    #expect(a.session.has(Slot.Flags.tcpOnly) && !a.session.has(Slot.Flags.broken))
                    return
                }
                #expect(retired && !noticed(a) && a.slot.mode.load() == Slot.Mode.plain && !a.session.isUp)
                #expect(a.slot.companionBytes.received == carried.received + 10)
                #expect(a.slot.companionBytes.sent == carried.sent - 18)
                #expect(say(a, "plain") == 5 && hear(b, 5) == "plain")
                #expect(!a.session.restart {})
            }
        }

        @Test("Again and again, from either end, with nothing left behind") func again() throws {
            let open = UpCalls.open
            try withPair(.sharedMemory) { pair in
                for round in 0..<20 {
                    let (leaver, other) = round % 3 == 0 ? (pair.a, pair.b) : (pair.b, pair.a)
                    #expect(say(leaver, "last of this image, ") == 20)
                    #expect(leaver.handOver(leaves: true))
                    #expect(leaver.session.restartAfterLeaving {})
                    #expect(say(leaver, "first of the next") == 17)
                    #expect(hear(other, 37) == "last of this image, first of the next")
                    #expect(noticed(other) && other.session.restart {})
                    try pair.connectAgain(leaver)
                    pair.moveToCompanion()
                    #expect(pair.a.session.isDual && !pair.b.session.sendsOnTCP)
                }
                #expect(UpCalls.open == open + 2)
            }
        }

        @Test("A connection that was never invited, or whose end has come, is not begun anew", arguments: ProviderUnderTest.allCases)
        func limits(_ provider: ProviderUnderTest) throws {
            try withPair(provider, onCompanion: false) { pair in
                #expect(pair.b.handOver(leaves: true))
                #expect(say(pair.b, "early") == 5 && hear(pair.a, 5) == "early")
                #expect(noticed(pair.a) && pair.a.session.restart {})
            }
            try withPair(provider) { pair in
                pair.b.shutDown(1)
                #expect(hear(pair.a, 1) == "<0>")
                #expect(pair.b.handOver(leaves: true))
                #expect(pair.b.session.connection.pointee.departure == Departure.none)
            }
            try withPair(provider) { pair in
                // One that wants TCP for good has nothing to begin.
                pair.a.slot.flags.setBits(Slot.Flags.tcpOnly)
                #expect(pair.b.handOver(leaves: true))
                #expect(say(pair.b, "x") == 1 && hear(pair.a, 1) == "x" && say(pair.a, "y") == 1)
                #expect(!noticed(pair.a) && !pair.a.session.restart {})
            }
        }

        @Test("A thread asleep in a call keeps the old session until it is awake", arguments: ProviderUnderTest.allCases)
        func asleep(_ provider: ProviderUnderTest) throws {
            try withPair(provider) { pair in
                let (a, b) = (pair.a, pair.b)
                let armed = a.slot.armedForReceiveCounter.load()
                let sleeper = startThread { #expect(hear(a, 2) == "ab") }
                while a.slot.armedForReceiveCounter.load() == armed || a.session.doorbellSleepers.load() == 0 { sched_yield() }
                #expect(b.handOver(leaves: true))
                #expect(b.session.restartAfterLeaving {})
                #expect(say(b, "a") == 1)
                // Where writing is remote, what it wrote may have met memory that is gone: it stays on TCP then.
                while !noticed(a), !a.session.has(Slot.Flags.tcpOnly) { sched_yield() }
                // Woken by each attempt, it falls asleep again: in the session, or in the kernel once that is over.
                _ = a.session.restart {}
                #expect(say(b, "b") == 1)
                join([sleeper])
                while a.session.isUp, !a.session.has(Slot.Flags.tcpOnly), !a.session.restart({}) { a.session.maintain(a.fd) }
                #expect(provider == .remoteWrites || !a.session.isUp)
            }
        }

        @Test("What a hostile peer says last ends its own companion only")
        func hostile() throws {
            try withPair(.sharedMemory) { pair in
                let (a, b) = (pair.a, pair.b)
                // It says that it has left, and has neither cut nor rewound.
                b.session.remote.endFlags.store(EndFlags.left)
                #expect(say(a, "still in the ring") == 17)
                #expect(!a.session.restart {})
                #expect(hear(b, 17) == "still in the ring")
                #expect(pair.sendOverTCP(b, "tcp", 3) == 3)
                #expect(hear(a, 3) == "tcp")
                #expect(!a.session.restart {})
                a.slot.flags.setBits(Slot.Flags.pullBack)
                #expect(say(a, "tcp") == 3 && hear(b, 3) == "tcp")
                a.slot.flags.clearBits(Slot.Flags.pullBack)
                #expect(a.session.restart {})
            }
        }

        /// Streams that go on in all their threads while sessions end and begin.
        @Test("Every byte arrives once and in order", arguments: ProviderUnderTest.allCases, [1, 3])
        func streams(_ provider: ProviderUnderTest, threads: Int) throws {
            let seed = streamSeed("new beginnings over \(provider), \(threads) threads")
            var random = RandomSource(seed)
            let until = ss_monotonic_ns() + UInt64((environmentNumber("STREAM_SECONDS") ?? 4) * 0.5e9)
            var (rounds, bytes, changes) = (0, UInt64(0), UInt64(0))
            let beginnings = Counter()
            repeat {
                var plan = StreamPlan(seed: random.next() >> 20, seconds: Double(random.next(below: 300) + 20) / 1000)
                plan.threadsPerSide = threads
                plan.largestSendBits = 8 + random.next(below: 13)
                plan.beginsAnew = true
                TestFabric.shared.reseed(plan.seed)
                let pair = try Pair(provider.loaded, ringBytes: 4096 << UInt32(random.next(below: 6)))
                if !random.oneIn(4) { pair.moveToCompanion() }
                let result = runStreams(pair, plan, beginnings: beginnings)
                rounds += 1
                bytes += result.bytes
                changes += result.changes
                pair.close()
                #expect(result.failures == 0, "round \(rounds), plan seed \(plan.seed)")
                if result.failures != 0 { break }
            } while ss_monotonic_ns() < until || beginnings.value == 0
            print("  \(rounds) connections, \(beginnings.value) new beginnings, \(changes) carrier changes, \(bytes >> 20) MiB")
        }
    }
}
