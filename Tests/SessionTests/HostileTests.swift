import CSocketSwitch
import Glibc
import Session
import SessionTestSupport
import SocketTable
import StreamRing
import Testing

/// What a peer may write into a window to break its owner. `a` is the owner.
struct HostileWindow: CustomTestStringConvertible, Sendable {
    let testDescription: String
    /// The owner notices when it receives; otherwise when it sends.
    var byReceiving = true
    var onCompanion = true
    var thenEnds = false
    let write: @Sendable (Window, Slot) -> Void

    static let all: [HostileWindow] = [
        HostileWindow(testDescription: "producer beyond the ring") { window, slot in
            window.producer.store(slot.receivePosition.load() + slot.receiveRingSize + 1)
        },
        HostileWindow(testDescription: "producer behind what was read") { window, slot in
            window.producer.store(slot.receivePosition.load() - 1)
        },
        HostileWindow(testDescription: "credit beyond what was sent", byReceiving: false) { window, slot in
            window.credit.store(slot.sendPosition.load() + 1_000_000)
        },
        HostileWindow(testDescription: "credit taken back", byReceiving: false) { window, slot in
            window.credit.store(slot.sendPosition.load() &- (1 << 40))
        },
        HostileWindow(testDescription: "three cuts at once") { window, slot in
            window.cutCount.store(slot.receiveCuts.load() + 3)
        },
        HostileWindow(testDescription: "cuts taken back") { window, slot in
            window.cutCount.store(slot.receiveCuts.load() - 1)
        },
        HostileWindow(testDescription: "a cut behind what was read") { window, slot in
            window.cutOnCompanion.store(slot.receivePosition.load() - 1)
            window.cutCount.store(slot.receiveCuts.load() + 1)
        },
        HostileWindow(testDescription: "a cut that is never reached, and the end", thenEnds: true) { window, slot in
            window.cutOnCompanion.store(slot.receivePosition.load() + 10)
            window.cutCount.store(slot.receiveCuts.load() + 1)
        },
        HostileWindow(testDescription: "a cut without an invitation", onCompanion: false) { window, slot in
            window.cutCount.store(1)
        },
        HostileWindow(testDescription: "a ring of four bytes") { window, slot in grow(window, slot, 4) },
        HostileWindow(testDescription: "a ring of two gibibytes") { window, slot in grow(window, slot, 1 << 31) },
        HostileWindow(testDescription: "no ring at all") { window, slot in
            window.ringChange.store(0)
            window.producer.store(slot.receivePosition.load() + 1)
        },
        HostileWindow(testDescription: "a ring that grows far from what is read") { window, slot in
            window.ringChange.store(RingChange(position: slot.receivePosition.load() + 2 << 20, size: 1 << 20).word)
            window.producer.store(slot.receivePosition.load() + 1)
        },
        HostileWindow(testDescription: "acknowledges what was not cut", byReceiving: false) { window, slot in
            window.acknowledged.store(slot.sendCuts.load() + 5)
        },
        HostileWindow(testDescription: "an invitation to nowhere", byReceiving: false) { window, _ in window.invitation.store(77) },
        HostileWindow(testDescription: "a rewind beyond what was sent", byReceiving: false) { window, slot in
            rewind(window, slot.sendPosition.load() + 1)
        },
        HostileWindow(testDescription: "a rewind behind what was read", byReceiving: false) { window, slot in
            rewind(window, slot.sendPosition.load() &- slot.sendRingSize &- 1)
        },
    ]

    private static func rewind(_ window: Window, _ position: UInt64) {
        window.rewindPosition.store(position)
        window.invitation.store(Invitation.rewind)
    }

    private static func grow(_ window: Window, _ slot: Slot, _ size: UInt64) {
        window.ringChange.store(RingChange(position: slot.receivePosition.load(), size: size).word)
        window.producer.store(slot.receivePosition.load() + 1)
    }
}

extension SessionTests {
    @Suite("Hostile peers", .serialized) struct HostileTests {
        @Test("Nonsense in the window ends the connection with a reset on both sides", arguments: HostileWindow.all)
        func nonsense(_ hostile: HostileWindow) throws {
            try withPair(.sharedMemory, onCompanion: hostile.onCompanion) { pair in
                let (a, b) = (pair.a, pair.b)
                hostile.write(a.session.local, a.slot)
                if hostile.thenEnds { b.shutDown(1) }
                let bytes = Buffer(4096)
                var result = 0
                repeat {
                    result = hostile.byReceiving ? a.receive(bytes.bytes, 4096) : a.send(bytes.bytes, 4096, Int(MSG_DONTWAIT))
                } while result > 0
                #expect(result == -Int(ECONNRESET))
                #expect(a.slot.reason.load() == Reason.protocolViolation.rawValue)
                #expect(a.receive(bytes.bytes, 10) == -Int(ECONNRESET))
                #expect(a.send(bytes.bytes, 10) == -Int(ECONNRESET))
                // The peer drains what there is, and is told.
                repeat { result = b.receive(bytes.bytes, 4096) } while result > 0
                #expect(result == -Int(ECONNRESET))
            }
        }

        @Test("A rewind that is answered is answered once, whatever the peer says afterwards") func rewindsAgain() throws {
            try withPair(.sharedMemory) { pair in
                let (a, b) = (pair.a, pair.b)
                #expect(say(a, "abcdef") == 6)
                #expect(b.handOver())
                a.session.maintain(a.fd)
                let cuts = a.slot.sendCuts.load()
                for (invitation, position) in [
                    (Invitation.rewind, a.slot.sendPosition.load() - 3), (Invitation.rewind, 1 << 50), (Invitation.toCompanion, 0),
                    (Invitation.rewind, 0), (Invitation.toTCP, 0), (Invitation.rewind, 7),
                ] {
                    a.session.local.rewindPosition.store(position)
                    a.session.local.invitation.store(invitation)
                    #expect(say(a, "g") == 1)
                }
                #expect(a.slot.sendCuts.load() == cuts)
                let buffer = Buffer(12)
                #expect(ss_sys_recvfrom(b.fd, buffer.bytes, 12, Int32(MSG_WAITALL)) == 12)
                #expect(memcmp(buffer.bytes, "abcdefgggggg", 12) == 0)
            }
        }

        @Test("Random words at random moments: no crash, no hang") func fuzz() throws {
            let seed = streamSeed("hostile words")
            var random = RandomSource(seed)
            for _ in 0..<Int(environmentNumber("HOSTILE_ROUNDS") ?? 150) {
                let state = random.next()
                try withPair(.sharedMemory) { pair in
                    let (a, b) = (pair.a, pair.b)
                    let isOver = Flag()
                    let threads = [
                        startThread {
                            var random = RandomSource(state)
                            let window = a.session.local
                            while !isOver.isSet {
                                let word = Word(window.base, Int(random.next(below: 32)) * 8)
                                switch random.next(below: 4) {
                                case 0: word.store(random.next())
                                case 1: word.store(random.next(below: 4))
                                case 2: word.store(word.load() &+ random.next(below: 3))
                                default: word.store(word.load() ^ (1 << random.next(below: 20)))
                                }
                                if random.oneIn(4) { b.session.ring() }
                                usleep(UInt32(random.next(below: 50)))
                            }
                        },
                        startThread {
                            let bytes = Buffer(5000)
                            while true {
                                let result = a.receive(bytes.bytes, 5000)
                                if result <= 0 { break }
                            }
                            isOver.set()
                            shutdown(a.fd, 2)
                        },
                        startThread {
                            let bytes = Buffer(5000)
                            while true {
                                let result = a.send(bytes.bytes, 5000)
                                if result <= 0 { break }
                            }
                            isOver.set()
                            shutdown(a.fd, 2)
                        },
                        startThread {
                            let bytes = Buffer(5000)
                            while !isOver.isSet {
                                _ = b.receive(bytes.bytes, 5000, Int(MSG_DONTWAIT))
                                _ = b.send(bytes.bytes, 3000, Int(MSG_DONTWAIT))
                                sched_yield()
                            }
                        },
                    ]
                    join(threads)
                }
            }
        }
    }
}
