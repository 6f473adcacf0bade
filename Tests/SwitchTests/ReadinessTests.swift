import CSocketSwitch
import OwnProcess
import Session
import SocketTable
import StreamRing
@testable import Switch
import Testing

private let input = Interest.input, output = Interest.output, hangUp = Interest.hangUp, readHangUp = Interest.readHangUp
private let edge = Interest.edgeTriggered, oneShot = Interest.oneShot

/// Readiness of dual sockets is that of TCP sockets: level, edge, one-shot, poll, select, several threads.
@Suite(.ownProcess)
struct ReadinessTests {
    @Test func levelTriggered() {
        let pair = SocketPair.dual(), set = Epoll()
        #expect(set.add(pair.b, input, 99) == 0)
        #expect(set.wait(0) == [])
        send(pair.a, 5)
        for _ in 0..<3 { #expect(set.wait(watchdogMilliseconds) == [.init(events: input, data: 99)]) }
        #expect(receive(pair.b, 3) == 3)
        #expect(set.wait(watchdogMilliseconds) == [.init(events: input, data: 99)])
        #expect(receive(pair.b, 3) == 2)
        #expect(set.wait(0) == [])
        #expect(set.wait(30) == [])
        #expect(set.modify(pair.b, input | output, 98) == 0)
        #expect(set.wait(watchdogMilliseconds) == [.init(events: output, data: 98)])
        #expect(set.delete(pair.b) == 0)
        send(pair.a, 1)
        #expect(set.wait(0) == [])
        pair.close()
        set.close()
    }

    /// However much of the room the plain sockets fill, none is told twice in one answer: the program would read twice.
    @Test(arguments: [2, 3, 4, 6, 8, 9])
    func nothingIsToldTwice(maximum: Int) {
        let hot = (0..<3).map { _ in SocketPair.dual() }, plain = (0..<6).map { _ in SocketPair.tracked() }, set = Epoll()
        for pair in hot + plain {
            #expect(set.add(pair.b, input) == 0)
            send(pair.a, 1)
        }
        for (round, milliseconds) in [0, watchdogMilliseconds, 0, watchdogMilliseconds].enumerated() {
            if round == 2 { for pair in hot { receive(pair.b, 1) } }  // hot, and not ready
            let told = set.wait(milliseconds, maximum: maximum).map(\.data)
            #expect(!told.isEmpty && Set(told).count == told.count, "round \(round): \(told)")
        }
        for pair in hot + plain { pair.close() }
        set.close()
    }

    @Test func errorsAreTheKernels() {
        let dual = SocketPair.dual(), raw = SocketPair.raw()
        let ours = Epoll(), theirs = Epoll(tracked: false)
        func same(_ operation: Int32, _ events: UInt32) {
            #expect(ours.control(operation, dual.b, events) == theirs.control(operation, raw.b, events))
        }
        same(3, input)
        same(2, 0)
        same(1, input)
        same(1, input)
        same(77, input)
        same(3, input | Interest.exclusive)
        same(2, 0)
        same(1, input | Interest.exclusive | readHangUp)
        same(1, input | Interest.exclusive)
        same(3, input)
        same(2, 0)
        same(2, 0)
        #expect(switchEpollControl(ours.fd, 1, dual.b, nil) == switchEpollControl(theirs.fd, 1, raw.b, nil))
        #expect(switchEpollControl(dual.a, 1, dual.b, nil) == switchEpollControl(raw.a, 1, raw.b, nil))
        var event = epoll_event()
        #expect(switchEpollWait(ours.fd, &event, 0, nil, nil) == switchEpollWait(theirs.fd, &event, 0, nil, nil))
        dual.close()
        raw.close()
        ours.close()
        theirs.close()
    }

    /// Random scripts, step by step beside an ordinary TCP connection and an ordinary epoll set: each wait must report the
    /// same events. The unread amount stays small, so both are always writable; capacity is another test's.
    @Test(arguments: [1, 2, 3, 4, 5, 6, 7, 8])
    func randomScripts(seed: UInt64) {
        var random = SeededRandom(state: seed &* 7919)
        for round in 0..<12 {
            let dual = SocketPair.dual(), raw = SocketPair.raw()
            let ours = Epoll(), theirs = Epoll(tracked: false)
            var unread = [0, 0]
            var ended = [false, false]  // side k has shut down its writing
            var registered = [false, false]
            var trail = "seed \(seed) round \(round):"
            func interest() -> UInt32 {
                let wanted: [UInt32] = [input, input | output, input | readHangUp, output, readHangUp, 0, input | readHangUp | output]
                let modes: [UInt32] = [0, 0, edge, oneShot, edge | oneShot]
                return wanted.randomElement(using: &random)! | modes.randomElement(using: &random)!
            }
            func side(_ pair: SocketPair, _ k: Int) -> Int32 { k == 0 ? pair.a : pair.b }
            for _ in 0..<60 {
                let k = Int.random(in: 0...1, using: &random)
                // Sides that got something in this step.
                var touched: Set<Int> = []
                switch Int.random(in: 0..<12, using: &random) {
                case 0...2 where !ended[k] && unread[1 - k] < 4000:
                    let count = Int.random(in: 1...500, using: &random)
                    trail += " send\(k)(\(count))"
                    #expect(send(side(dual, k), count) == count)
                    #expect(send(side(raw, k), count) == count)
                    unread[1 - k] += count
                    touched = [1 - k]
                case 3...5 where unread[k] > 0:
                    let count = Int.random(in: 1...700, using: &random)
                    trail += " receive\(k)(\(count))"
                    let expected = min(count, unread[k])
                    #expect(receive(side(dual, k), count) == expected, "\(trail)")
                    #expect(receive(side(raw, k), count) == expected)
                    unread[k] -= expected
                case 6:
                    let events = interest()
                    trail += " \(registered[k] ? "mod" : "add")\(k)(\(String(events, radix: 16)))"
                    let operation: Int32 = registered[k] ? 3 : 1
                    #expect(ours.control(operation, side(dual, k), events, UInt64(k)) == 0)
                    #expect(theirs.control(operation, side(raw, k), events, UInt64(k)) == 0)
                    registered[k] = true
                    touched = [k]
                case 7 where registered[k] && Bool.random(using: &random):
                    trail += " delete\(k)"
                    #expect(ours.delete(side(dual, k)) == 0)
                    #expect(theirs.delete(side(raw, k)) == 0)
                    registered[k] = false
                case 8 where !ended[k] && Int.random(in: 0..<5, using: &random) == 0:
                    trail += " shutdown\(k)"
                    #expect(switchShutdown(side(dual, k), 1) == 0)
                    #expect(switchShutdown(side(raw, k), 1) == 0)
                    ended[k] = true
                    touched = [1 - k]
                default: break
                }
                for pair in [dual, raw] {
                    for k in 0...1 { waitUntil { queued(side(pair, k)) == unread[k] } }
                    for k in 0...1 where ended[1 - k] { waitUntil { kernelPoll(side(pair, k)) & POLLRDHUP != 0 } }
                }
                let found = Set(ours.wait(0)), expected = Set(theirs.wait(0))
                trail += " \(expected)"
                // A kernel socket that has shut down its writing repeats its edge now and then, for acknowledgements: news of
                // nothing, and not copied.
                let idle = expected.subtracting(found).filter {
                    ended[Int($0.data)] && ($0.events == output || !touched.contains(Int($0.data)))
                }
                #expect(found.union(idle) == expected, "\(trail)")
                if found.union(idle) != expected { return }
                let wanted = [POLLIN, POLLIN | POLLOUT, POLLRDHUP, POLLIN | POLLRDHUP | POLLRDNORM | POLLWRNORM][Int.random(in: 0...3, using: &random)]
                #expect(poll([(dual.a, wanted), (dual.b, wanted)], 0) == poll([(raw.a, wanted), (raw.b, wanted)], 0), "\(trail)")
            }
            dual.close()
            raw.close()
            ours.close()
            theirs.close()
        }
    }

    /// The same registrations, before, during and after the socket's time on the companion.
    @Test func registrationsSurviveUpgradeAndReturn() {
        let pair = SocketPair.tracked(), set = Epoll()
        #expect(set.add(pair.b, input, 5) == 0)
        #expect(set.add(pair.a, output | oneShot, 6) == 0)
        #expect(Set(set.wait(watchdogMilliseconds)) == [.init(events: output, data: 6)])
        #expect(set.wait(0) == [])
        pair.upgrade()
        pair.settle()
        // The one-shot registration had fired: it stays silent.
        #expect(set.wait(0) == [])
        send(pair.a, 1)
        #expect(set.wait(watchdogMilliseconds) == [.init(events: input, data: 5)])
        #expect(receive(pair.b, 10) == 1)
        for fd in [pair.a, pair.b] {
            pair.session(fd).slot.flags.setBits(Slot.Flags.pullBack)
        }
        for _ in 0..<10 {
            for (from, to) in [(pair.a, pair.b), (pair.b, pair.a)] {
                pair.session(from).maintain(from)
                send(from, 1)
                #expect(receive(to, 1) == 1)
            }
        }
        #expect(pair.session(pair.a).sendsOnTCP && pair.session(pair.b).sendsOnTCP)
        #expect(set.wait(0) == [])
        for fd in [pair.a, pair.b] { readinessBecamePlain(socketIndex(fd) ?? 0) }
        #expect(set.wait(0) == [])
        send(pair.a, 1)
        #expect(set.wait(watchdogMilliseconds) == [.init(events: input, data: 5)])
        #expect(receive(pair.b, 1) == 1)
        #expect(set.modify(pair.a, output | oneShot, 7) == 0)
        #expect(set.wait(watchdogMilliseconds) == [.init(events: output, data: 7)])
        #expect(set.wait(0) == [])
        #expect(set.delete(pair.a) == 0)
        #expect(set.delete(pair.b) == 0)
        pair.close()
        set.close()
    }

    /// A full ring: EPOLLOUT goes, and comes back once when there is room.
    @Test(arguments: [edge, 0, oneShot])
    func roomToSend(mode: UInt32) {
        let pair = SocketPair.dual(), set = Epoll()
        #expect(set.add(pair.a, output | mode) == 0)
        #expect(set.wait(watchdogMilliseconds).map(\.events) == [output])
        for round in 0..<6 {
            if round % 2 == 1, mode == edge {
                // Quiet for long enough to leave the hot list while there is room.
                _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 5_000_000)], nil)
                #expect(set.wait(0) == [])
            }
            var filled = 0
            while true {
                let count = send(pair.a, 8192)
                if count < 0 {
                    #expect(count == -Int(EAGAIN))
                    break
                }
                filled += count
            }
            #expect(filled > 0)
            if mode == oneShot { #expect(set.modify(pair.a, output | mode) == 0) }
            #expect(set.wait(0) == [])
            let reader = PThread { [filled] in
                var left = filled
                while left > 0 {
                    let count = receive(pair.b, 65536)
                    if count <= 0 { break }
                    left -= count
                }
            }
            #expect(set.wait(watchdogMilliseconds).map(\.events) == [output])
            reader.join()
            if mode == edge { #expect(set.wait(0) == []) }
        }
        pair.close()
        set.close()
    }

    /// Bytes that arrive wake whoever waits for urgent data, who is then told what there is: room to send, here.
    @Test func arrivalIsAnEdgeForUrgentData() {
        for pair in [SocketPair.raw(), SocketPair.dual()] {
            let set = Epoll()
            #expect(set.add(pair.b, output | Interest.priority | edge) == 0)
            #expect(set.wait(watchdogMilliseconds).map(\.events) == [output])
            for quiet in [0, 5_000_000] {
                _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: quiet)], nil)
                #expect(set.wait(0) == [])
                send(pair.a, 1)
                #expect(set.wait(watchdogMilliseconds).map(\.events) == [output])
                #expect(set.wait(0) == [])
            }
            pair.close()
            set.close()
        }
    }

    @Test func roundRobinWithFewEvents() {
        let pairs = (0..<7).map { _ in SocketPair.dual() }
        let set = Epoll()
        for (index, pair) in pairs.enumerated() {
            #expect(set.add(pair.b, input, UInt64(index)) == 0)
            send(pair.a, 1)
        }
        for maximum in 1...3 {
            var seen: Set<UInt64> = []
            for _ in 0..<16 {
                let events = set.wait(watchdogMilliseconds, maximum: maximum)
                #expect(events.count <= maximum && !events.isEmpty)
                seen.formUnion(events.map(\.data))
            }
            #expect(seen.count == 7)
        }
        for pair in pairs { pair.close() }
        set.close()
    }

    /// Dual sockets that are always ready starve neither an ordinary descriptor nor are they starved by one.
    @Test(arguments: [1, 2, 8])
    func noSideStarves(maximum: Int) {
        let pairs = (0..<3).map { _ in SocketPair.dual() }
        let raw = SocketPair.raw(), set = Epoll()
        for (index, pair) in pairs.enumerated() {
            #expect(set.add(pair.b, input, UInt64(index)) == 0)
            send(pair.a, 1)
        }
        #expect(set.add(raw.b, input, 100) == 0)
        #expect(set.add(raw.a, output, 101) == 0)
        send(raw.a, 1)
        let deadline = ss_monotonic_ns() + 20_000_000_000
        var seen: Set<UInt64> = []
        while seen.count < 5, ss_monotonic_ns() < deadline { seen.formUnion(set.wait(watchdogMilliseconds, maximum: maximum).map(\.data)) }
        #expect(seen == [0, 1, 2, 100, 101])
        for pair in pairs { pair.close() }
        raw.close()
        set.close()
    }

    /// Each of many sleeps is ended by one message; the answer comes back over poll.
    @Test(arguments: [0, edge, oneShot, edge | oneShot])
    func sleepAndWake(mode: UInt32) {
        let pair = SocketPair.dual()
        let rounds = 3000
        let echo = PThread {
            let set = Epoll()
            _ = set.add(pair.b, input | mode)
            var done = 0
            while done < rounds {
                let events = set.wait(watchdogMilliseconds)
                if events.isEmpty { break }
                while true {
                    let count = receive(pair.b, 64, wait: false)
                    if count <= 0 { break }
                    done += count
                    send(pair.b, count)
                }
                if mode & oneShot != 0 { _ = set.modify(pair.b, input | mode) }
            }
            #expect(done == rounds)
            set.close()
        }
        for round in 0..<rounds {
            send(pair.a, 1)
            if round % 2 == 0 { #expect(poll([(pair.a, POLLIN)], watchdogMilliseconds) == [Int(POLLIN)]) } else {
                #expect(select([pair.a], [], watchdogMilliseconds) == [1])
            }
            #expect(receive(pair.a, 1) == 1)
            if round % 100 == 50 { _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 3_000_000)], nil) }
        }
        echo.join()
        pair.close()
    }

    /// Several threads in epoll_wait on one set, one-shot: every message is taken by somebody.
    @Test func threadsShareASet() {
        let pairs = (0..<8).map { _ in SocketPair.dual() }
        let set = Epoll()
        let perPair = 400
        let done = Counter()
        for (index, pair) in pairs.enumerated() { #expect(set.add(pair.b, input | oneShot, UInt64(index)) == 0) }
        let workers = (0..<3).map { _ in
            PThread {
                while done.value < perPair * pairs.count {
                    for event in set.wait(100, maximum: 2) {
                        let pair = pairs[Int(event.data)]
                        let count = receive(pair.b, 1, wait: false)
                        if count > 0 {
                            done.add(count)
                            send(pair.b, count)
                        }
                        #expect(set.modify(pair.b, input | oneShot, event.data) == 0)
                    }
                }
            }
        }
        let deadline = ss_monotonic_ns() + 60_000_000_000
        for _ in 0..<perPair {
            for pair in pairs { send(pair.a, 1) }
            for pair in pairs {
                #expect(poll([(pair.a, POLLIN)], watchdogMilliseconds) == [Int(POLLIN)])
                #expect(receive(pair.a, 1, wait: false) == 1)
            }
            if ss_monotonic_ns() > deadline { break }
        }
        #expect(done.value == perPair * pairs.count)
        done.add(perPair * pairs.count)
        for worker in workers { worker.join() }
        for pair in pairs { pair.close() }
        set.close()
    }

    /// A thread sleeps in epoll_wait; another one adds or changes a registration that is ready, or upgrades a socket.
    @Test func changesWakeASleeper() {
        let pair = SocketPair.dual(), other = SocketPair.dual(), set = Epoll()
        send(pair.a, 1)
        #expect(set.add(other.b, input, 1) == 0)
        func asleep(_ change: @escaping @Sendable () -> Void) -> [Epoll.Event] {
            let changer = PThread {
                _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 20_000_000)], nil)
                change()
            }
            let events = set.wait(watchdogMilliseconds)
            changer.join()
            return events
        }
        #expect(asleep { _ = set.add(pair.b, input, 2) } == [.init(events: input, data: 2)])
        #expect(set.modify(pair.b, 0, 2) == 0)
        #expect(asleep { _ = set.modify(pair.b, input | oneShot, 3) } == [.init(events: input, data: 3)])
        #expect(asleep { _ = set.modify(pair.b, output, 4) } == [.init(events: output, data: 4)])
        #expect(set.delete(pair.b) == 0)
        let late = SocketPair.tracked()
        #expect(set.add(late.b, input, 5) == 0)
        let events = asleep {
            late.upgrade()
            late.session(late.b).maintain(late.b)
            send(late.a, 1)
        }
        #expect(events == [.init(events: input, data: 5)])
        pair.close()
        other.close()
        late.close()
        set.close()
    }

    /// The peer closes: end of stream with everything that came before, in epoll and poll, and no busy loop.
    @Test func endOfStream() {
        let pair = SocketPair.dual(), set = Epoll()
        #expect(set.add(pair.b, input | readHangUp) == 0)
        send(pair.a, 3)
        #expect(set.wait(watchdogMilliseconds).map(\.events) == [input])
        _ = switchShutdown(pair.a, 1)
        waitUntil { kernelPoll(pair.b) & POLLRDHUP != 0 }
        waitUntil { set.wait(0).map(\.events) == [input | readHangUp] }
        #expect(poll([(pair.b, POLLIN | POLLRDHUP)], 0) == [Int(POLLIN | POLLRDHUP)])
        #expect(receive(pair.b, 10) == 3)
        #expect(set.wait(watchdogMilliseconds).map(\.events) == [input | readHangUp])
        #expect(receive(pair.b, 10) == 0)
        // The other direction lives on.
        #expect(set.modify(pair.b, output) == 0)
        #expect(set.wait(watchdogMilliseconds).map(\.events) == [output])
        send(pair.b, 2)
        #expect(receive(pair.a, 10) == 2)
        _ = switchClose(pair.a)
        #expect(set.modify(pair.b, 0) == 0)
        send(pair.b, 2)
        #expect(set.wait(watchdogMilliseconds).map { $0.events & hangUp } == [hangUp])
        _ = switchClose(pair.b)
        #expect(set.wait(0) == [])
        set.close()
    }

    /// Two descriptors of one socket in one set; closing one leaves both registrations working, as the kernel's do.
    @Test func duplicates() {
        let pair = SocketPair.dual(), set = Epoll()
        let copy = Int32(switchDuplicate(pair.b))
        #expect(set.add(pair.b, input, 1) == 0)
        #expect(set.add(copy, input, 2) == 0)
        #expect(set.wait(30) == [])
        send(pair.a, 1)
        waitUntil { Set(set.wait(0).map(\.data)) == [1, 2] }
        _ = switchClose(pair.b)
        waitUntil { Set(set.wait(0).map(\.data)) == [1, 2] }
        #expect(receive(copy, 5) == 1)
        for _ in 0..<3 {
            #expect(set.wait(5) == [])
            let sender = PThread {
                _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 5_000_000)], nil)
                send(pair.a, 1)
            }
            #expect(!set.wait(watchdogMilliseconds).isEmpty)
            sender.join()
            waitUntil { Set(set.wait(0).map(\.data)) == [1, 2] }
            #expect(receive(copy, 5) == 1)
        }
        _ = switchClose(copy)
        #expect(set.wait(0) == [])
        _ = switchClose(pair.a)
        set.close()
    }

    /// A set inside another one, and poll on a set.
    @Test func nested() {
        let pair = SocketPair.dual(), inner = Epoll(), outer = Epoll()
        #expect(inner.add(pair.b, input, 1) == 0)
        #expect(outer.add(inner.fd, input, 2) == 0)
        for _ in 0..<5 {
            _ = inner.wait(0)
            let sender = PThread {
                _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 5_000_000)], nil)
                send(pair.a, 2)
            }
            #expect(outer.wait(watchdogMilliseconds).map(\.data) == [2])
            sender.join()
            waitUntil { inner.wait(0).map(\.data) == [1] }
            #expect(receive(pair.b, 1) == 1)
            // Still readable, so the inner set still is.
            #expect(outer.wait(watchdogMilliseconds).map(\.data) == [2])
            #expect(poll([(inner.fd, POLLIN)], watchdogMilliseconds) == [Int(POLLIN)])
            #expect(inner.wait(watchdogMilliseconds).map(\.data) == [1])
            #expect(receive(pair.b, 1) == 1)
        }
        pair.close()
        inner.close()
        outer.close()
    }

    @Test func pollMixesCarriers() {
        let dual = SocketPair.dual(), tracked = SocketPair.tracked(), raw = SocketPair.raw()
        let fds = [dual.b, tracked.b, raw.b]
        let entries = fds.map { ($0, POLLIN) } + [(Int32(-1), POLLIN)]
        #expect(poll(entries, 0) == [0, 0, 0, 0])
        #expect(poll(entries, 10) == [0, 0, 0, 0])
        for (index, fd) in [dual.a, tracked.a, raw.a].enumerated() {
            let sender = PThread {
                _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 5_000_000)], nil)
                send(fd, 1)
            }
            var expected = [0, 0, 0, 0]
            expected[index] = Int(POLLIN)
            #expect(poll(entries, watchdogMilliseconds) == expected)
            sender.join()
            #expect(receive(fds[index], 1) == 1)
        }
        #expect(sessionOf(socketIndex(tracked.b) ?? 0).slot.plainReaders.count == 0)
        #expect(dual.session(dual.b).doorbellSleepers.load() == 0)
        let closed = Int32(ss_sys_fcntl(raw.a, F_DUPFD, 500))
        _ = ss_sys_close(closed)
        #expect(poll([(dual.b, POLLOUT), (closed, POLLIN)], 0) == [Int(POLLOUT), Int(POLLNVAL)])
        dual.close()
        tracked.close()
        raw.close()
    }

    @Test func selectAnswersInBits() {
        let dual = SocketPair.dual(), raw = SocketPair.raw()
        for pair in [dual, raw] {
            #expect(select([pair.b], [], 0) == [0])
            #expect(select([pair.b], [pair.b], 0) == [0, 1])
            send(pair.a, 1)
            #expect(select([pair.b], [pair.b], watchdogMilliseconds).last == 1)
            waitUntil { select([pair.b], [pair.b], 0) == [1, 1] }
            #expect(select([pair.a, pair.b], [], 0) == [0, 1])
        }
        let closed = Int32(ss_sys_fcntl(raw.a, F_DUPFD, 20))
        _ = ss_sys_close(closed)
        #expect(select([raw.b, closed], [], 0) == [-Int(EBADF)])
        #expect(select([dual.a, closed], [], 0) == [-Int(EBADF)])
        dual.close()
        raw.close()
    }

    /// A writer waits for room in poll while bytes lie unread in its own ring: no busy loop, and it is woken.
    @Test func writerWithUnreadInput() {
        let pair = SocketPair.dual()
        send(pair.b, 10)
        var filled = 0
        while true {
            let count = send(pair.a, 8192)
            if count <= 0 { break }
            filled += count
        }
        // (A longer poll would hand the stream over to TCP, which has room.)
        #expect(poll([(pair.a, POLLOUT)], 0) == [0])
        let reader = PThread { [filled] in
            var left = filled
            while left > 0 {
                let count = receive(pair.b, 65536)
                if count <= 0 { break }
                left -= count
            }
        }
        #expect(poll([(pair.a, POLLOUT)], watchdogMilliseconds) == [Int(POLLOUT)])
        reader.join()
        #expect(poll([(pair.a, POLLIN)], 0) == [Int(POLLIN)])
        pair.close()
    }

    /// One thread waits in epoll_wait, another in poll, a third in a blocking receive: the message wakes all who must wake.
    @Test func waitersOfAllKinds() {
        let pair = SocketPair.dual(), set = Epoll()
        #expect(set.add(pair.b, input, 1) == 0)
        for _ in 0..<50 {
            let poller = PThread { #expect(poll([(pair.b, POLLIN)], watchdogMilliseconds) == [Int(POLLIN)]) }
            let waiter = PThread { #expect(set.wait(watchdogMilliseconds).map(\.data) == [1]) }
            _ = switchPoll(nil, 0, [timespec(tv_sec: 0, tv_nsec: 1_000_000)], nil)
            send(pair.a, 1)
            poller.join()
            waiter.join()
            #expect(receive(pair.b, 1) == 1)
        }
        pair.close()
        set.close()
    }

    /// Descriptors come and go in one set from one thread while another one waits in it.
    @Test func churn() {
        let set = Epoll()
        let keeper = SocketPair.dual()
        let stop = Counter()
        #expect(set.add(keeper.b, input, 7) == 0)
        let waiter = PThread {
            while stop.value == 0 {
                for event in set.wait(100) where event.data == 7 { receive(keeper.b, 1000, wait: false) }
            }
        }
        for round in 0..<150 {
            let pair = SocketPair.dual()
            #expect(set.add(pair.b, round % 2 == 0 ? input | edge : output | edge, 1000 + UInt64(round)) == 0)
            send(pair.a, 10)
            send(keeper.a, 1)
            if round % 3 == 0 { #expect(set.delete(pair.b) == 0) }
            pair.close()
        }
        stop.add(1)
        send(keeper.a, 1)
        waiter.join()
        keeper.close()
        set.close()
    }
}

// MARK: Tools

private let POLLIN = Int32(0x001), POLLOUT = Int32(0x004), POLLNVAL = Int32(0x020), POLLRDNORM = Int32(0x040)
private let POLLWRNORM = Int32(0x100), POLLRDHUP = Int32(0x2000)

private func waitUntil(_ condition: () -> Bool) {
    let deadline = ss_monotonic_ns() + 20_000_000_000
    while !condition() {
        if ss_monotonic_ns() > deadline {
            Issue.record("watchdog")
            return
        }
        _ = ss_sys_sched_yield()
    }
}

private func kernelPoll(_ fd: Int32) -> Int32 {
    var entry = pollfd(fd: fd, events: Int16(POLLIN | POLLRDHUP), revents: 0)
    var now = timespec(tv_sec: 0, tv_nsec: 0)
    _ = ss_sys_ppoll(&entry, 1, &now, nil)
    return Int32(entry.revents)
}

/// For each descriptor of `read` and then of `write`: 1 = its bit was answered. Or [-errno].
private func select(_ read: [Int32], _ write: [Int32], _ milliseconds: Int) -> [Int] {
    var reading = [UInt64](repeating: 0, count: 16), writing = reading
    for fd in read { reading[Int(fd) / 64] |= 1 << UInt64(fd % 64) }
    for fd in write { writing[Int(fd) / 64] |= 1 << UInt64(fd % 64) }
    var timeout = timespec(tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000)
    let highest = (read + write).max() ?? 0
    let result = switchSelect(highest + 1, &reading, &writing, nil, &timeout, nil)
    if result < 0 { return [result] }
    let answers = read.map { Int(reading[Int($0) / 64] >> UInt64($0 % 64) & 1) } + write.map { Int(writing[Int($0) / 64] >> UInt64($0 % 64) & 1) }
    #expect(result == answers.reduce(0, +))
    return answers
}
