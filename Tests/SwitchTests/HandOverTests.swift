import CSocketSwitch
import Glibc
import OwnProcess
import Session
import SocketTable
import StreamRing
@testable import Switch
import Testing

private let input = Interest.input, output = Interest.output, edge = Interest.edgeTriggered

/// Bytes that the kernel alone gives, past the switch, or -errno.
private func receiveRaw(_ fd: Int32, _ count: Int) -> Int {
    var bytes = [UInt8](repeating: 0, count: count)
    return bytes.withUnsafeMutableBytes { ss_sys_recvfrom(fd, $0.baseAddress, count, Int32(MSG_WAITALL)) }
}

/// What the kernel's own wait says of a set.
private func waitRaw(_ set: Epoll) -> [Epoll.Event] {
    var list = [epoll_event](repeating: epoll_event(), count: 8)
    let count = list.withUnsafeMutableBufferPointer { ss_sys_epoll_pwait(set.fd, $0.baseAddress, 8, Int32(watchdogMilliseconds), nil) }
    return (0..<max(count, 0)).map { index in
        list.withUnsafeBufferPointer { Epoll.Event(events: ss_event_bits($0.baseAddress, index), data: ss_event_data($0.baseAddress, index)) }
    }
}

/// Calls past the switch on a connection that has moved (WSD-D3).
@Suite(.ownProcess) struct HandOverTests {
    private func isPlain(_ pair: SocketPair, _ fd: Int32, _ reason: Reason) -> Bool {
        let slot = pair.session(fd).slot
        return slot.mode.load() == Slot.Mode.plain && slot.reason.load() == reason.rawValue
    }

    @Test("fdopen and splice: the bytes that lie in the ring are in the kernel's socket at once, also if one thread has both ends")
    func callsOfTheKernel() throws {
        let pair = SocketPair.dual()
        #expect(send(pair.a, 5) == 5)
        #expect(switchKeepsOnTCP(pair.b))
        #expect(isPlain(pair, pair.b, .unsupportedOption))
        let file = try #require(fdopen(dup(pair.b), "r"))
        for _ in 0..<5 { #expect(fgetc(file) == 7) }
        #expect(send(pair.a, 8) == 8)
        var pipes: [Int32] = [0, 0]
        #expect(pipe(&pipes) == 0)
        #expect(splice(pair.b, nil, pipes[1], nil, 8, 0) == 8)
        #expect(splice(pipes[0], nil, pair.b, nil, 8, 0) == 8)
        #expect(receive(pair.a, 8) == 8)
        // And through the switch, which now is the kernel.
        #expect(send(pair.b, 3) == 3)
        #expect(receive(pair.a, 3) == 3)
        fclose(file)
        for one in pipes { close(one) }
        pair.close()
    }

    @Test("Options that only the kernel's stream has work after the connection has moved", arguments: [SO_RCVLOWAT, SO_PEEK_OFF, SO_OOBINLINE, 60])
    func options(_ option: Int32) {
        let pair = SocketPair.dual()
        #expect(send(pair.a, 5) == 5)
        var value: Int32 = option == 60 ? 1 : 3
        #expect(switchSetOption(pair.b, SOL_SOCKET, option, &value, 4) == 0)
        #expect(isPlain(pair, pair.b, .unsupportedOption))
        if option == SO_PEEK_OFF {
            var bytes = [UInt8](repeating: 0, count: 9)
            #expect(switchReceive(pair.b, &bytes, 9, Int32(MSG_PEEK)) == 2)
        }
        #expect(receive(pair.b, 5) == 5)
        #expect(send(pair.a, 2) == 2)
        #expect(poll([(pair.b, POLLIN)], 0) == [option == SO_RCVLOWAT ? 0 : Int(POLLIN)])
        pair.close()
    }

    @Test("Epoll sets get the program's own registrations back, with what is ready", arguments: [input, input | edge, input | output | edge])
    func registrations(_ events: UInt32) {
        let pair = SocketPair.dual(), set = Epoll()
        #expect(set.add(pair.b, events, 42) == 0)
        _ = set.wait(0)
        #expect(send(pair.a, 5) == 5)
        #expect(switchHandOver(pair.b))
        #expect(isPlain(pair, pair.b, .handedOver))
        #expect(waitRaw(set) == [.init(events: events & ~edge, data: 42)])
        #expect(receiveRaw(pair.b, 5) == 5)
        #expect(send(pair.a, 1) == 1)
        #expect(waitRaw(set) == [.init(events: events & ~edge, data: 42)])
        pair.close()
        set.close()
    }

    enum Waiting: CaseIterable { case epoll, poll, receive }

    @Test("A peer that is asleep, in whichever call, is woken and sends what was rewound", arguments: Waiting.allCases)
    func peerAsleep(_ waiting: Waiting) {
        let pair = SocketPair.dual(), set = Epoll()
        // As if the ends were in two processes.
        for fd in [pair.a, pair.b] { pair.session(fd).connection.pointee.peerIsHere = false }
        #expect(set.add(pair.a, input) == 0)
        #expect(send(pair.a, 5) == 5)
        let armed = pair.session(pair.a).slot.armedForReceiveCounter.load()
        let peer = PThread {
            switch waiting {
            case .epoll: #expect(set.wait(watchdogMilliseconds).count == 1)
            case .poll: #expect(poll([(pair.a, POLLIN)], watchdogMilliseconds) == [Int(POLLIN)])
            case .receive: break
            }
            var byte: UInt8 = 0
            #expect(switchReceive(pair.a, &byte, 1, 0) == 1)
        }
        while pair.session(pair.a).slot.armedForReceiveCounter.load() == armed { sched_yield() }
        #expect(switchHandOver(pair.b))
        #expect(receiveRaw(pair.b, 5) == 5)
        #expect(send(pair.b, 1) == 1)
        peer.join()
        pair.close()
        set.close()
    }

    @Test("Threads asleep at the end that is handed over go on over TCP", arguments: Waiting.allCases)
    func asleepHere(_ waiting: Waiting) {
        let pair = SocketPair.dual(), set = Epoll()
        #expect(set.add(pair.b, input, 42) == 0)
        let armed = pair.session(pair.b).slot.armedForReceiveCounter.load()
        let sleeper = PThread {
            switch waiting {
            case .epoll: #expect(set.wait(watchdogMilliseconds) == [.init(events: input, data: 42)])
            case .poll: #expect(poll([(pair.b, POLLIN)], watchdogMilliseconds) == [Int(POLLIN)])
            case .receive: break
            }
            var byte: UInt8 = 0
            #expect(switchReceive(pair.b, &byte, 1, 0) == 1)
        }
        while pair.session(pair.b).slot.armedForReceiveCounter.load() == armed { sched_yield() }
        #expect(switchHandOver(pair.b))
        #expect(send(pair.a, 1) == 1)
        sleeper.join()
        pair.close()
        set.close()
    }

    @Test("The end of the process is the last chance, for a process that makes no call any more")
    func exit() {
        let pair = SocketPair.dual()
        for fd in [pair.a, pair.b] { pair.session(fd).connection.pointee.peerIsHere = false }
        #expect(send(pair.a, 5) == 5)
        #expect(switchHandOver(pair.b))
        #expect(queued(pair.b) == 0)
        switchBeforeExit(closes: false)
        #expect(receiveRaw(pair.b, 5) == 5)
        pair.close()
    }

    @Test("A socket that has not moved just stays: nothing of a companion is left")
    func notMoved() {
        let pair = SocketPair.tracked()
        #expect(switchHandOver(pair.a))
        #expect(isPlain(pair, pair.a, .handedOver))
        #expect(pair.session(pair.a).has(Slot.Flags.tcpOnly))
        #expect(pair.session(pair.a).connection.pointee.companion == 0)
        #expect(switchHandOver(-1) && switchHandOver(0))
        pair.close()
    }
}
