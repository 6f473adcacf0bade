import CSocketSwitch
import Foundation
import OwnProcess
import Session
import SocketTable
@testable import Switch
import Synchronization
import Testing

/// Threads wait in one set while others send, change and delete registrations, close sockets, and move streams between the
/// carriers. Nothing is lost: every byte is reported to somebody. Also under thread sanitizer.
@Suite(.ownProcess)
struct ReadinessStressTests {
    private static let pairCount = 6
    private static let input = Interest.input

    /// What the threads share.
    private final class Stage: Sendable {
        let pairs: [SocketPair]
        let set: Epoll
        let modes: [Mode]
        let sent = Counter()
        let received = Counter()
        let stop = Counter()
        let changes = Counter()

        init() {
            pairs = (0..<pairCount).map { _ in SocketPair.dual() }
            set = Epoll()
            modes = (0..<pairCount).map { _ in Mode() }
        }
    }

    /// The modes of one registration as its servers shall make it again.
    private final class Mode: Sendable {
        private let word = Atomic<UInt32>(0)
        var value: UInt32 {
            get { word.load(ordering: .sequentiallyConsistent) }
            set { word.store(newValue, ordering: .sequentiallyConsistent) }
        }
    }

    @Test func nothingIsLost() {
        let environment = ProcessInfo.processInfo.environment
        let seed = environment["STREAM_SEED"].flatMap(UInt64.init) ?? UInt64.random(in: 1...999_999)
        let seconds = environment["STREAM_SECONDS"].flatMap(Double.init) ?? 2
        print("seed \(seed)")
        let stage = Stage()
        for (index, pair) in stage.pairs.enumerated() { #expect(stage.set.add(pair.b, ReadinessStressTests.input, UInt64(index)) == 0) }
        var threads = (0..<3).map { _ in PThread { ReadinessStressTests.serve(stage) } }
        threads += (0..<2).map { number in PThread { ReadinessStressTests.talk(stage, SeededRandom(state: seed &+ UInt64(number))) } }
        threads.append(PThread { ReadinessStressTests.change(stage, SeededRandom(state: seed &+ 77)) })
        threads.append(PThread { ReadinessStressTests.comeAndGo(stage, SeededRandom(state: seed &+ 99)) })
        let end = ss_monotonic_ns() + UInt64(seconds * 1e9)
        while ss_monotonic_ns() < end { _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 10_000_000)], nil) }
        // Talkers and changers stop; servers go on until they have everything.
        stage.stop.add(1)
        for thread in threads[3...] { thread.join() }
        let deadline = ss_monotonic_ns() + 20_000_000_000
        while stage.received.value < stage.sent.value, ss_monotonic_ns() < deadline {
            _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 1_000_000)], nil)
        }
        expect(stage.received.value, is: stage.sent.value, "seed \(seed): bytes")
        expect(stage.sent.value > 1000 && stage.changes.value > 100, "seed \(seed): \(stage.sent.value) bytes, \(stage.changes.value) changes")
        stage.stop.add(1)
        for thread in threads[..<3] { thread.join() }
        for pair in stage.pairs { pair.close() }
        stage.set.close()
    }

    /// Reads what is reported, and arms one-shot registrations again.
    private static func serve(_ stage: Stage) {
        while stage.stop.value < 2 {
            for event in stage.set.wait(20, maximum: 3) where event.data < pairCount {
                let fd = stage.pairs[Int(event.data)].b
                while true {
                    let count = receive(fd, 64, wait: false)
                    if count <= 0 { break }
                    stage.received.add(count)
                }
                let mode = stage.modes[Int(event.data)].value
                if mode & Interest.oneShot != 0 { _ = stage.set.modify(fd, input | mode, event.data) }
            }
        }
    }

    private static func talk(_ stage: Stage, _ seeded: SeededRandom) {
        var random = seeded
        while stage.stop.value == 0 {
            if stage.sent.value - stage.received.value > 20_000 {
                _ = ss_sys_sched_yield()
                continue
            }
            let count = send(stage.pairs.randomElement(using: &random)!.a, Int.random(in: 1...100, using: &random))
            if count > 0 { stage.sent.add(count) }
        }
    }

    /// Registrations change and go, copies of descriptors go under them, and streams go to TCP and come back.
    private static func change(_ stage: Stage, _ seeded: SeededRandom) {
        var random = seeded
        let choices: [UInt32] = [0, Interest.edgeTriggered, Interest.oneShot, Interest.edgeTriggered | Interest.oneShot]
        while stage.stop.value == 0 {
            let index = Int.random(in: 0..<pairCount, using: &random)
            let pair = stage.pairs[index]
            switch Int.random(in: 0..<5, using: &random) {
            case 0, 1:
                let mode = choices.randomElement(using: &random)!
                stage.modes[index].value = mode
                _ = stage.set.modify(pair.b, input | mode, UInt64(index))
            case 2:
                _ = stage.set.delete(pair.b)
                _ = stage.set.add(pair.b, input | stage.modes[index].value, UInt64(index))
            case 3:
                let copy = Int32(switchDuplicate(pair.b))
                _ = stage.set.add(copy, input | Interest.edgeTriggered, 1000)
                // Some go on reporting under a number that is closed.
                if Int.random(in: 0..<50, using: &random) != 0 { _ = stage.set.delete(copy) }
                _ = switchClose(copy)
            default:
                for fd in [pair.a, pair.b] {
                    let flags = stage.pairs[index].session(fd).slot.flags
                    if Bool.random(using: &random) { flags.setBits(Slot.Flags.pullBack) } else { flags.clearBits(Slot.Flags.pullBack) }
                    pair.session(fd).maintain(fd)
                }
            }
            stage.changes.add(1)
            _ = ss_sys_sched_yield()
        }
        // A mode that an answer to an old event may have overwritten.
        for (index, pair) in stage.pairs.enumerated() {
            stage.modes[index].value = 0
            expect(stage.set.modify(pair.b, input, UInt64(index)), is: 0)
        }
    }

    /// Whole connections appear in the set and are closed while it is waited for.
    private static func comeAndGo(_ stage: Stage, _ seeded: SeededRandom) {
        var random = seeded
        while stage.stop.value == 0 {
            let pair = SocketPair.dual()
            _ = stage.set.add(pair.b, input | (Bool.random(using: &random) ? Interest.edgeTriggered : Interest.oneShot), 1000)
            send(pair.a, 5)
            if Bool.random(using: &random) { _ = stage.set.delete(pair.b) }
            pair.close()
        }
    }
}
