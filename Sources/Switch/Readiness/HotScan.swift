import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

/// How long the kernel may go unasked, nanoseconds: sockets on TCP, listeners, timers must not starve.
@inline(__always) var kernelPollNanoseconds: UInt64 { 20_000 }
/// A socket without a sign of life for so long leaves the hot list, nanoseconds.
@inline(__always) var quietNanoseconds: UInt64 { 1_000_000 }

// Looking at hot registrations. All of this runs under the set's lock, which `readinessForget` takes before a descriptor
// is closed: descriptors and windows stay what they are meanwhile. Of the session it uses only what neither waits for a
// lock nor calls back.
extension Registration {
    @inline(__always) var wantsInput: Bool { events & (Interest.reading | Interest.readHangUp) != 0 }
    /// Bytes that arrive are an edge for it: the kernel wakes who waits for any of these, whatever it then has to report.
    @inline(__always) var wantsArrivals: Bool {
        events & (Interest.selectReading | Interest.readHangUp | Interest.priority) != 0
    }
    @inline(__always) var wantsOutput: Bool { events & Interest.writing != 0 }

    @inline(__always) private static var over: UInt64 {
        Slot.Flags.tcpEnded | Slot.Flags.broken | Slot.Flags.peerGone | Slot.Flags.readShutDown
    }

    /// The events to report now, by the rules of the registration's mode. For an edge-triggered one this takes the edge.
    /// `mayAsk`: ask the kernel about a direction on TCP even if it was asked less than 20 µs ago.
    @inline(__always)
    func evaluate(_ now: UInt64, mayAsk: Bool) -> UInt32 {
        let state = self.state
        if state & State.disabled != 0 { return 0 }
        let session = sessionOf(socket)
        let input = wantsInput
        let output = wantsOutput
        let writable = output && session.looksWritable
        if isEdgeTriggered { return takeEdge(session, state, output: output, writable: writable, now) }
        let readable = input && session.looksReadable
        if !readable, !writable {
            let ended = session.slot.flags.loadRelaxed() & Registration.over != 0
            guard ended || state & State.look != 0 || (input && session.receivesOnTCP) || (output && session.sendsOnTCP)
                || events & Interest.priority != 0
            else { return 0 }
            if !mayAsk, state & State.look == 0, now &- lastKernelLook < kernelPollNanoseconds { return 0 }
            remove(State.look)
            let found = session.readiness(polled, events & Interest.events)
            // What TCP has, it has the next time, too.
            lastKernelLook = found == 0 ? now : 0
            return found
        }
        return session.readiness(polled, events & Interest.events)
    }

    private func takeEdge(_ session: Session, _ state: UInt32, output: Bool, writable: Bool, _ now: UInt64) -> UInt32 {
        // Counters first, readiness afterwards: what comes between is a new edge.
        let received = session.receiveEdge
        let sent = session.sendEdge
        var moved = state & State.edge != 0 || (wantsArrivals && received != receiveEdge)
        let onTCP = session.sendsOnTCP
        if output, writable, sent != sendEdge || state & State.starved != 0 { moved = true }
        // Back on TCP: the kernel is asked once; after that its own edge tells (`watchTCP`).
        if output, onTCP, sent != sendEdge { moved = true }
        guard moved else { return 0 }
        remove(State.edge | State.look)
        receiveEdge = received
        let found = session.readiness(polled, events & Interest.events)
        if output {
            if found & Interest.writing != 0 {
                sendEdge = sent
                remove(State.starved)
            } else {
                // As the kernel, which remembers that somebody asked in vain: room is news from now on.
                if onTCP { sendEdge = sent }
                insert(State.starved)
            }
        }
        return found
    }

    /// Whether `evaluate` might report something, without a system call and without taking an edge.
    func mayBeReady() -> Bool {
        if state & State.disabled != 0 { return false }
        let session = sessionOf(socket)
        let output = wantsOutput
        if isEdgeTriggered {
            if has(State.edge) || (wantsArrivals && session.receiveEdge != receiveEdge) { return true }
            if output, session.sendsOnTCP, session.sendEdge != sendEdge { return true }
            return output && session.looksWritable && (session.sendEdge != sendEdge || has(State.starved))
        }
        if has(State.look) || session.slot.flags.loadRelaxed() & Registration.over != 0 { return true }
        return (wantsInput && session.looksReadable) || (output && session.looksWritable)
    }

    /// Where it stands among others that have something to say: when that was sent, or when it was put behind the others.
    func place(_ since: UInt64) -> UInt64 {
        let sent = sessionOf(socket).peerMark
        return since == 0 || SenderMark.isLater(sent, than: since) ? sent : since
    }

    /// It waits for something that only the kernel knows.
    var waitsOnTCP: Bool {
        let session = sessionOf(socket)
        return wantsInput && session.receivesOnTCP || wantsOutput && session.sendsOnTCP || events & Interest.priority != 0
    }

    /// A sender that waits for room on the companion.
    var waitsForRoom: Bool {
        guard wantsOutput, !has(State.disabled) else { return false }
        let session = sessionOf(socket)
        return session.isUp && !session.sendsOnTCP && !session.looksWritable
    }

    /// Asks the peer to ring for what this registration waits for. The caller looks again afterwards.
    func arm(fences: Bool = true) {
        guard !has(State.disabled) else { return }
        let session = sessionOf(socket)
        guard session.isUp else { return }
        if isEdgeTriggered ? wantsArrivals : wantsInput { armed = session.armReceive(fences: fences) }
        if waitsForRoom { session.armSend(fences: fences) }
    }

    /// Awake again: the peer need not ring for what this thread looks at anyway. Unless somebody else may rely on it.
    func disarm() {
        let number = armed
        if number == 0 { return }
        armed = 0
        let session = sessionOf(socket)
        guard session.isUp, !has(State.notAlone), session.slot.holders.loadRelaxed() <= 1,
            session.doorbellSleepers.loadSequential() == 0
        else { return }
        session.disarmReceive(number)
    }

    /// The provider has writes, or TCP a backlog, that only our calls carry on.
    var needsAttention: Bool {
        if sessionOf(socket).hasBacklog { return true }
        guard let writer = sessionOf(socket).connection.pointee.writer else { return false }
        return writer.needsAttention
    }
}

/// The events of one look at the hot list, kept in the order in which the peers sent.
struct SendingOrder {
    let list: UnsafeMutablePointer<epoll_event>
    /// Where the next event goes.
    private(set) var count: Int
    /// What was sent later is left to the next look; 0: nothing is.
    var bound: UInt64 = 0
    /// The latest mark so far.
    private(set) var latest: UInt64 = 0
    private var first: Int
    /// Room for the marks of so many as are compared with each other at most; those found later stand behind them.
    private let marks: UnsafeMutableBufferPointer<UInt64>

    init(_ list: UnsafeMutablePointer<epoll_event>, _ count: Int, _ marks: UnsafeMutableBufferPointer<UInt64>) {
        self.list = list
        self.count = count
        first = count
        self.marks = marks
    }

    /// `others` events that stand behind ours come before them.
    mutating func putBehind(_ others: Int) {
        var position = count
        while count > 0, position < count &+ others {
            ss_event_bring(list, position, position &- count)
            position &+= 1
        }
        first &+= others
        count &+= others
    }

    mutating func add(_ bits: UInt32, _ data: UInt64, _ mark: UInt64) {
        if count &- first == marks.count { first = count }
        var place = count &- first
        if place == 0 || SenderMark.isLater(mark, than: latest) { latest = mark }
        while place > 0, SenderMark.isLater(marks[place &- 1], than: mark) {
            marks[place] = marks[place &- 1]
            place &-= 1
        }
        marks[place] = mark
        ss_event_set(list, count, bits, data)
        if first &+ place != count { ss_event_bring(list, count, first &+ place) }
        count &+= 1
    }
}

extension EpollSet {
    /// Looks around the hot list and appends what is ready at `count`, in the order in which the peers sent. Returns the new
    /// count. Begins where the last look ended for want of room. `conversions`: as of before the kernel was asked for what the
    /// list has already.
    func scan(
        _ root: ReadinessRoot, _ list: UnsafeMutablePointer<epoll_event>, _ count: Int, _ maximum: Int, _ now: UInt64,
        mayAsk: Bool, _ conversions: UInt32
    ) -> Int {
        if hotCount == 0, !has(Flags.attention) { return count }
        return withUnsafeTemporaryAllocation(of: UInt64.self, capacity: 64) { marks in
            var order = SendingOrder(list, count, marks)
            scan(root, &order, maximum, now, mayAsk: mayAsk, conversions)
            return order.count
        }
    }

    /// The same, added to what `order` has.
    func scan(_ root: ReadinessRoot, _ order: inout SendingOrder, _ maximum: Int, _ now: UInt64, mayAsk: Bool, _ conversions: UInt32) {
        guard lock.lock() == .acquired else { return }
        defer { lock.unlock() }
        // What the list has is told first, and the rest by the next call.
        if order.count > 0, self.conversions != conversions { return }
        if has(Flags.attention) { heatEverything(root) }
        if hotCount == 1 { return lookAround(root, &order, maximum, now, mayAsk: mayAsk) }
        while hotCount != 0, order.count < maximum {
            let before = order.count
            let began = SenderMark.make(ss_cycles() &- SenderMark.slack, 0)
            lookMark = began
            lookAround(root, &order, maximum, now, mayAsk: mayAsk)
            // Has somebody sent while we looked? Then somebody may have sent before that on a connection that we had passed.
            if order.count == before || !SenderMark.isLater(order.latest, than: began) { return }
        }
    }

    private func lookAround(_ root: ReadinessRoot, _ order: inout SendingOrder, _ maximum: Int, _ now: UInt64, mayAsk: Bool) {
        var left = hotCount
        var index = hotHead
        while left > 0 {
            if order.count >= maximum {
                hotHead = index
                return
            }
            let one = root.registration(index)
            let next = one.hotNext
            let since = one.since
            // The mark after the first look: what comes between the two is too late, and must not be told under an older mark.
            let isTooLate = order.bound != 0
                && (!one.mayBeReady() || SenderMark.isLater(sessionOf(one.socket).peerMark, than: order.bound))
            let found = isTooLate ? 0 : report(root, index, now, mayAsk: mayAsk)
            if found != 0 {
                // The mark after the look: whatever it found had left its mark by then.
                order.add(found, one.data, one.place(since))
            } else if one.has(Registration.State.disabled) {
                makeCold(root, index)
            } else if now > one.lastActive, now &- one.lastActive > quietNanoseconds {
                letGo(root, index, now)
            }
            index = next
            left &-= 1
        }
    }

    /// What a registration has to say in this look, and the books about it. 0: nothing, or it has been told already.
    @inline(__always)
    func report(_ root: ReadinessRoot, _ index: UInt32, _ now: UInt64, mayAsk: Bool) -> UInt32 {
        let one = root.registration(index)
        if one.reported == now { return 0 }
        let found = one.evaluate(now, mayAsk: mayAsk)
        if found == 0 { return 0 }
        one.reported = now
        one.since = lookMark
        one.lastActive = now
        hottest = index
        if one.isOneShot {
            one.insert(Registration.State.disabled)
            if has(Flags.forked), sessionOf(one.socket).slot.holders.loadRelaxed() > 1 { flags.setBits(Flags.fired) }
            makeCold(root, index)
        }
        return found
    }

    /// How many hot registrations `scan` might report, counted up to `atMost`.
    func hotCandidates(_ root: ReadinessRoot, atMost: Int) -> Int {
        guard hotCount != 0, lock.lock() == .acquired else { return 0 }
        var found = 0
        var left = hotCount
        var index = hotHead
        while left > 0, found < atMost {
            let one = root.registration(index)
            if one.mayBeReady() || one.waitsOnTCP { found &+= 1 }
            index = one.hotNext
            left &-= 1
        }
        lock.unlock()
        return found
    }

    /// Takes a quiet registration out of the hot list, armed, unless there is something after all.
    private func letGo(_ root: ReadinessRoot, _ index: UInt32, _ now: UInt64) {
        let one = root.registration(index)
        if one.waitsForRoom || one.needsAttention { return }
        watchTCP(root, index)
        one.arm()
        if one.isEdgeTriggered {
            if one.mayBeReady() { return }
        } else if one.evaluate(now, mayAsk: true) != 0 {
            return
        }
        makeCold(root, index)
    }

    /// Has the kernel watch what it must watch now that the sending direction may be on TCP again.
    func watchTCP(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        let needed = one.neededKernelEvents(sendsOnTCP: sessionOf(one.socket).sendsOnTCP)
        // (The number of an orphan may be another socket's by now.)
        if needed & ~one.kernelEvents == 0 || isRelatives(one) || socketIndex(one.descriptor) != one.socket { return }
        let operation = one.kernelEvents == 0 ? ControlOperation.add : ControlOperation.modify
        one.kernelEvents |= needed
        var event = epoll_event()
        ss_event_set(&event, 0, one.kernelEvents, Tag.make(root, index, one.generation, doorbell: false))
        _ = ss_sys_epoll_ctl(descriptor, operation, one.descriptor, &event)
    }

    /// Every dual registration becomes hot.
    func heatEverything(_ root: ReadinessRoot) {
        flags.clearBits(Flags.attention)
        var index = firstRegistration
        while index != 0 {
            let one = root.registration(index)
            let next = one.nextInSet
            if one.has(Registration.State.dual) { heat(root, index) }
            index = next
        }
    }

    /// Something may have happened to the registration: look at it closely.
    func heat(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        one.insert(Registration.State.look)
        one.lastActive = ss_monotonic_ns()
        if !one.has(Registration.State.disabled) { makeHot(root, index) }
    }

    /// Arms all hot registrations. Returns how long a sleep may last at most, nanoseconds.
    func armAll(_ root: ReadinessRoot) -> UInt64 {
        var longest = UInt64.max
        guard lock.lock() == .acquired else { return 1_000_000 }
        var index = hotHead
        var left = hotCount
        while left > 0 {
            let one = root.registration(index)
            watchTCP(root, index)
            one.arm(fences: false)
            if one.needsAttention {
                longest = min(longest, 1_000_000)
            } else if one.waitsForRoom {
                // Its bell may be taken by a reader of the same socket.
                longest = min(longest, 20_000_000)
            }
            index = one.hotNext
            left &-= 1
        }
        lock.unlock()
        fullFence()  // pairs with the fences after the peer's publishing
        return longest
    }

    /// After a sleep, or instead of one.
    func disarmAll(_ root: ReadinessRoot) {
        if sleepers.loadSequential() != 0 || has(Flags.nested) { return }
        guard lock.lock() == .acquired else { return }
        var index = hotHead
        var left = hotCount
        while left > 0 {
            let one = root.registration(index)
            one.disarm()
            index = one.hotNext
            left &-= 1
        }
        lock.unlock()
    }

    /// Lets the sessions of hot registrations invite, follow cuts and pull back.
    func maintainAll(_ root: ReadinessRoot) {
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 32) { batch in
            guard lock.lock() == .acquired else { return }
            var left = hotCount
            while left > 0 {
                var taken = 0
                while taken < 32, left > 0, hotHead != 0 {
                    let index = hotHead
                    let one = root.registration(index)
                    one.users.add(1)
                    batch[taken] = index
                    taken &+= 1
                    left &-= 1
                    hotHead = one.hotNext
                }
                if taken == 0 { break }
                lock.unlock()
                var position = 0
                while position < taken {
                    let one = root.registration(batch[position])
                    sessionOf(one.socket).maintain(one.polled)
                    one.users.subtract(1)
                    position &+= 1
                }
                guard lock.lock() == .acquired else { return }
            }
            lock.unlock()
        }
    }

    /// Wakes one thread that sleeps in this set although hot registrations are not armed or have something to report:
    /// called by a thread that leaves the set to others.
    func handOver(_ root: ReadinessRoot) {
        _ = armAll(root)
        guard lock.lock() == .acquired else { return }
        var index = hotHead
        var left = hotCount
        while left > 0 {
            let one = root.registration(index)
            if one.mayBeReady() {
                kick(root, index)
                break
            }
            index = one.hotNext
            left &-= 1
        }
        lock.unlock()
    }

    /// The first use that a forked process makes of a set that it inherited: from now on its relatives leave it what they do not
    /// take, and what one of them changes is for the others (`changesForRelatives`).
    func adopt(_ root: ReadinessRoot) {
        guard lock.lock() == .acquired else { return }
        flags.clearBits(Flags.inherited)
        if let arena = privateState.pointee.arena { FamilyArena(arena).inheritedSetUses.add(1) }
        var index = firstRegistration
        while index != 0 {
            let one = root.registration(index)
            if one.has(Registration.State.dual) { sessionOf(one.socket).slot.flags.setBits(Slot.Flags.waitedForByRelatives) }
            index = one.nextInSet
        }
        heatEverything(root)
        lock.unlock()
    }

    /// The kernel tells of a ring once. What this process has been told of, and leaves, another process that waits in the
    /// same set of the kernel's must be told of, too, as of a level-triggered registration.
    func handOverToRelatives(_ root: ReadinessRoot) {
        guard lock.lock() == .acquired else { return }
        var index = hotHead
        var left = hotCount
        while left > 0 {
            let one = root.registration(index)
            let slot = sessionOf(one.socket).slot
            if slot.flags.loadRelaxed() & Slot.Flags.waitedForByRelatives != 0, slot.holders.load() > 1, one.mayBeReady() {
                kick(root, index)
            }
            index = one.hotNext
            left &-= 1
        }
        lock.unlock()
    }

    /// A thread that went to sleep before this registration waited for room does not count the time after which a reader is taken
    /// to have stopped (`armAll`): it is woken for that, and sleeps on. Under the lock.
    func letSleeperCount(_ one: Registration) {
        if sleepers.loadSequential() != 0, one.waitsForRoom { sessionOf(one.socket).ringOurselves() }
    }

    /// Makes the set ready in the kernel's eyes: changing a registration makes the kernel look at it anew, and TCP mostly has room
    /// while its direction is carried elsewhere. Otherwise the doorbell does it. Under the lock.
    func kick(_ root: ReadinessRoot, _ index: UInt32) {
        let one = root.registration(index)
        let session = sessionOf(one.socket)
        // Silent, and not in the kernel's set; or a relative's words are there.
        if one.kernelEvents == 0 || isRelatives(one) { return }
        // The number of an orphan may be another socket's by now.
        if socketIndex(one.descriptor) != one.socket { return session.ringOurselves() }
        one.kernelEvents |= Interest.output
        var event = epoll_event()
        ss_event_set(&event, 0, one.kernelEvents, Tag.make(root, index, one.generation, doorbell: false))
        let result = ss_sys_epoll_ctl(descriptor, ControlOperation.modify, one.descriptor, &event)
        let isTold = result == 0 && !session.sendsOnTCP && Session.kernelEvents(one.polled, EPOLLOUT.rawValue) & EPOLLOUT.rawValue != 0
        if !isTold { session.ringOurselves() }
    }
}
