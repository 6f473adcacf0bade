import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

/// epoll_wait, epoll_pwait, epoll_pwait2. `timeout` nil: for ever.
///
/// Sets without a dual socket wait in the kernel. Others look at their hot sockets first, at the kernel at least every
/// 20 µs, and sleep in the kernel when everything is armed (WSD-S1).
package func switchEpollWait(
    _ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32, _ timeout: UnsafePointer<timespec>?,
    _ mask: UnsafeRawPointer?
) -> Int {
    let entry = descriptorEntry(set)
    if entryKind(entry) == DescriptorKind.own { return -Int(EBADF) }
    guard entryKind(entry) == DescriptorKind.epollSet, let root = ReadinessRoot.existing, let events, maximum > 0,
        let deadline = Deadline.after(timeout)
    else { return kernelWait(nil, set, events, maximum, timeout, mask) }
    lookAtMailboxes()
    let record = root.set(entryIndex(entry))
    if record.has(EpollSet.Flags.inherited) { record.adopt(root) }
    if record.has(EpollSet.Flags.holdsSets) { root.tidyNestedSets() }
    var waiter = EpollWaiter(
        root: root, set: record, descriptor: set, events: events, maximum: Int(maximum), deadline: deadline, mask: mask)
    return inOneSection(unless: mask) {
        if record.dualCount.load() == 0 {
            let result = waiter.waitPlainly(timeout)
            if result != EpollWaiter.goOn { return result }
        }
        return waiter.wait()
    }
}

/// The kernel's wait with what it has to say it with.
private func kernelWait(
    _ root: ReadinessRoot?, _ set: Int32, _ events: UnsafeMutablePointer<epoll_event>?, _ maximum: Int32,
    _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int {
    if timeout == nil { return ss_sys_epoll_pwait(set, events, maximum, -1, mask) }
    if root?.noPreciseWait.loadRelaxed() ?? 0 == 0 {
        let result = ss_sys_epoll_pwait2(set, events, maximum, timeout, mask)
        if result != -Int(ENOSYS), result != -Int(EPERM) { return result }
        root?.noPreciseWait.store(1)
    }
    guard let timeout else { return -Int(EINVAL) }
    if timeout.pointee.tv_sec < 0 || timeout.pointee.tv_nsec < 0 || timeout.pointee.tv_nsec > 999_999_999 { return -Int(EINVAL) }
    let seconds = min(timeout.pointee.tv_sec, Int(Int32.max) / 1000 - 1)
    return ss_sys_epoll_pwait(set, events, maximum, Int32(seconds * 1000 + (timeout.pointee.tv_nsec + 999_999) / 1_000_000), mask)
}

/// One epoll_wait call.
struct EpollWaiter {
    let root: ReadinessRoot
    let set: EpollSet
    /// The set's life when the call began: see `outlivesSet`.
    let life: UInt64
    private(set) var descriptor: Int32
    let events: UnsafeMutablePointer<epoll_event>
    let maximum: Int
    let deadline: UInt64
    let mask: UnsafeRawPointer?

    init(
        root: ReadinessRoot, set: EpollSet, descriptor: Int32, events: UnsafeMutablePointer<epoll_event>, maximum: Int,
        deadline: UInt64, mask: UnsafeRawPointer?
    ) {
        self.root = root
        self.set = set
        life = set.life.load()
        self.descriptor = descriptor
        self.events = events
        self.maximum = maximum
        self.deadline = deadline
        self.mask = mask
    }

    static var goOn: Int { Int.min }

    /// Without a dual socket in the set. `goOn`: one appeared.
    mutating func waitPlainly(_ timeout: UnsafePointer<timespec>?) -> Int {
        set.sleepers.add(1)
        // Who makes a socket dual looks at `sleepers` afterwards.
        if set.dualCount.loadSequential() != 0 {
            set.sleepers.subtract(1)
            return EpollWaiter.goOn
        }
        let result = kernelWait(root, descriptor, events, Int32(truncatingIfNeeded: maximum), timeout, mask)
        if outlivesSet { return withoutOurs(result) }
        set.sleepers.subtract(1)
        if result <= 0 || !set.has(EpollSet.Flags.tags) { return result }
        let kept = sift(0, result)
        if kept > 0 { return leave(kept) }
        return deadline == Deadline.now && set.dualCount.load() == 0 ? 0 : EpollWaiter.goOn
    }

    mutating func wait() -> Int {
        var now = ss_monotonic_ns()
        set.lastWait.storeRelaxed(now)
        var hasSpun = false
        while true {
            if set.hasToFollow(root) { set.followAll(root) }
            // The kernel has its turn with room left for the hot sockets, so that neither side starves.
            let isDue = deadline == Deadline.now || now &- set.lastKernelPoll.loadRelaxed() >= kernelPollNanoseconds
            let share = isDue ? kernelShare() : 0
            var count = look(now, kernelShare: share, mayAsk: deadline == Deadline.now)
            if count != 0 { return leave(count) }
            if !(asksKernelLast ? share > 0 : share == maximum) || mask != nil {
                let conversions = set.conversions
                count = askKernel(0, maximum, deadline == Deadline.now ? mask : nil, now)
                if count < 0 { return leave(count) }
                if !asksKernelLast { count = set.scan(root, events, count, maximum, now, mayAsk: deadline == Deadline.now, conversions) }
                if count > 0 { return leave(count) }
            }
            if deadline == Deadline.now {
                // A program that never waits has no other moment for this.
                if set.hotCount != 0 { set.maintainAll(root) }
                return leave(0)
            }
            if !hasSpun {
                hasSpun = true
                count = spin(now)
                if count != 0 { return leave(count) }
            }
            count = sleep(&now)
            if outlivesSet {
                return count == EpollWaiter.goOn ? -Int(EBADF) : count
            }
            if count != EpollWaiter.goOn { return leave(count) }
            // The number that the program gave may have been closed alone.
            descriptor = set.descriptor
        }
    }

    /// Another thread has closed the set. Its number and its record may stand for another one, whose events are not for us.
    private var outlivesSet: Bool { self.set.life.load() != life }

    /// Of `count` events that the kernel had in a set that is closed by now, the program's own, which it would have told of; there
    /// are no records any more to tell what ours mean.
    private func withoutOurs(_ count: Int) -> Int {
        if count <= 0 { return count }
        var kept = 0
        var position = 0
        while position < count {
            let data = ss_event_data(events, position)
            if data & Tag.prefixMask != root.tagPrefix {
                ss_event_set(events, kept, ss_event_bits(events, position), data)
                kept &+= 1
            }
            position &+= 1
        }
        return kept > 0 ? kept : -Int(EBADF)
    }

    /// The set has connections that only the kernel knows of: what came on them before something that the hot rings tell must
    /// be told with it. (With room for one event only, kernel and rings take turns; and who only looks wants to know everything
    /// about the hot ones, of which the kernel may know something, too.)
    private var asksKernelLast: Bool { maximum > 1 && deadline != Deadline.now && set.quietStreams > 0 }

    /// One look at the kernel, for `kernelShare` events (0: its turn has not come), and at the rings. Events found; or -errno.
    private func look(_ now: UInt64, kernelShare share: Int, mayAsk: Bool) -> Int {
        if asksKernelLast { return lookInOrder(now, kernelIsDue: share > 0, mayAsk: mayAsk) }
        let conversions = set.conversions
        let count = share > 0 ? askKernel(0, share, nil, now) : 0
        return count < 0 ? count : set.scan(root, events, count, maximum, now, mayAsk: mayAsk, conversions)
    }

    /// The kernel after the rings, so that nothing is missing that came before what they tell. What it has on TCP stands first,
    /// what it has of rings by their bells where it belongs.
    private func lookInOrder(_ now: UInt64, kernelIsDue: Bool, mayAsk: Bool) -> Int {
        withUnsafeTemporaryAllocation(of: UInt64.self, capacity: 64) { marks in
            var order = SendingOrder(events, 0, marks)
            let conversions = set.conversions
            set.scan(root, &order, maximum &- min(set.quietStreams, maximum / 2), now, mayAsk: mayAsk, conversions)
            if order.count == 0, !kernelIsDue { return 0 }
            if order.count > 0, set.conversions != conversions { return order.count }
            order.bound = SenderMark.make(ss_cycles(), 0)
            let found = askKernel(order.count, maximum &- order.count, nil, now)
            if found < 0 { return order.count > 0 ? order.count : found }
            order.putBehind(found &- order.count)
            set.scan(root, &order, maximum, now, mayAsk: mayAsk, conversions)
            return order.count
        }
    }

    /// The kernel was asked. If it had something of the program's, it most likely has it the next time, too, and is asked
    /// then, however soon: two calls in a row must not tell different stories.
    private func noteKernelPoll(_ now: UInt64, _ count: Int) { set.lastKernelPoll.storeRelaxed(count > 0 ? 0 : now) }

    /// How many events the kernel may report before the hot sockets are looked at: all but one for each of them, and at least
    /// half. It is asked only once: what is level-triggered it would report again. A call that only looks wants to know
    /// everything, so it keeps room only for those that can be ready.
    private func kernelShare() -> Int {
        let hot = deadline == Deadline.now ? set.hotCandidates(root, atMost: maximum / 2 + 1) : Int(set.hotCount)
        if hot == 0 { return maximum }
        if maximum > 1 { return maximum &- min(hot, maximum / 2) }
        let turn = set.kernelsTurn.loadRelaxed()
        set.kernelsTurn.storeRelaxed(turn ^ 1)
        return turn == 0 ? 1 : 0
    }

    /// Events that the kernel has now, without ours, appended at `count`. The new count, or -errno.
    private func askKernel(_ count: Int, _ room: Int, _ mask: UnsafeRawPointer?, _ now: UInt64) -> Int {
        var rounds: UInt64 = 0
        if room <= 0 { return count }
        while true {
            let found = ss_sys_epoll_pwait(descriptor, ss_event_at(events, count), Int32(truncatingIfNeeded: room), 0, mask)
            if found < 0 { return found }
            let kept = sift(count, found)
            noteKernelPoll(now, kept &- count)
            rounds &+= 1
            // Nothing but our own, and there may be more behind them: with little room as many rounds as there are sockets with
            // two edges each. (More come only from peers that are busy this very moment.)
            if kept > count || found < room || rounds >= 4 &+ 2 &* set.dualCount.loadRelaxed() { return kept }
        }
    }

    /// Takes our own events out of `events[from ..< from + count]`: what they mean goes to the hot list. Returns where the
    /// program's events end.
    private func sift(_ from: Int, _ count: Int) -> Int {
        if count == 0 { return from }
        if !set.has(EpollSet.Flags.tags) { return from + count }
        let outcome = set.lock.lock()
        defer { if outcome == .acquired { set.lock.unlock() } }
        var kept = from
        var position = from
        while position < from + count {
            let bits = ss_event_bits(events, position)
            var data = ss_event_data(events, position)
            position &+= 1
            if data & Tag.prefixMask == root.tagPrefix {
                guard let own = take(data, bits, acquired: outcome == .acquired) else { continue }
                data = own
            }
            ss_event_set(events, kept, bits, data)
            kept &+= 1
        }
        return kept
    }

    /// One event of ours. Not nil: it is the program's after all, with this data.
    private func take(_ tag: UInt64, _ bits: UInt32, acquired: Bool) -> UInt64? {
        let index = Tag.index(tag)
        let one = root.registration(index)
        guard one.isLive, set.base == root.set(Int(one.set)).base else { return nil }
        // The kernel goes on with what the program forgot while a relative keeps the socket: nobody else's event.
        let changes = (one.generation ^ Tag.generation(tag)) & Tag.generationMask
        guard changes <= Tag.changeMask else { return nil }
        let current = changes == 0
        if !one.has(Registration.State.dual) {
            // Plain, and one-shot now or once: it may have fired.
            guard one.has(Registration.State.tagged), !Tag.isDoorbell(tag) else { return nil }
            if current, one.isOneShot {
                if one.has(Registration.State.disabled) { return nil }
                one.insert(Registration.State.disabled)
            }
            return one.data
        }
        guard current else { return nil }
        guard acquired else {
            set.flags.setBits(EpollSet.Flags.attention)
            return nil
        }
        if Tag.isDoorbell(tag) {
            sessionOf(one.socket).answerRing()
            if one.has(Registration.State.sharedDoorbell) {
                var other = set.firstRegistration
                while other != 0 {
                    let candidate = root.registration(other)
                    if candidate.socket == one.socket, candidate.has(Registration.State.dual) { set.heat(root, other) }
                    other = candidate.nextInSet
                }
            } else {
                set.heat(root, index)
            }
        } else {
            sessionOf(one.socket).noteTCPEvent(one.polled)
            one.insert(Registration.State.edge)
            set.heat(root, index)
        }
        return nil
    }

    // MARK: Looking for a while

    /// Looks at the hot sockets until the budget is spent. Events found, or 0; or -errno.
    private mutating func spin(_ start: UInt64) -> Int {
        if ss_session_state.never_spin != 0 || set.hotCount == 0 { return 0 }
        let allowed = set.spinNanoseconds.loadRelaxed()
        if allowed < SpinBudget.minimum { return 0 }
        let hottest = set.hottest
        let mustYield = hottest != 0 && peerIsHere(hottest)
        let isCrowded = Crowd.isHere(start)
        if isCrowded, mustYield { return 0 }
        let budget = min(isCrowded ? min(allowed, UInt64(Crowd.pausesNanoseconds)) : allowed, Deadline.left(deadline, start))
        var yields = 0
        var now = start
        while now &- start < budget, !set.hasToFollow(root) {
            let elapsed = now &- start
            let yieldsNow = mustYield || elapsed >= UInt64(Crowd.pausesNanoseconds)
            if yieldsNow {
                _ = ss_sys_sched_yield()
                yields &+= 1
            } else {
                ss_pause()
                ss_pause()
                ss_pause()
                ss_pause()
            }
            let before = now
            now = ss_monotonic_ns()
            let isDue = now &- set.lastKernelPoll.loadRelaxed() >= kernelPollNanoseconds
            let count = look(now, kernelShare: isDue ? maximum : 0, mayAsk: false)
            if count < 0 { return count }
            // Somebody else has the processor: who sleeps gets it back sooner than who yields.
            let isLost = yieldsNow && Crowd.took(now &- before, now: now, foundData: count > 0)
            if count > 0 {
                if now &- before < SpinBudget.lost { set.spinNanoseconds.storeRelaxed(SpinBudget.grown(allowed)) }
                return count
            }
            if mustYield, yields == 20 { break }
            if isLost { break }
        }
        if !isCrowded, deadline == Deadline.never || now < deadline { set.spinNanoseconds.storeRelaxed(SpinBudget.shrunk(allowed)) }
        return 0
    }

    private func peerIsHere(_ index: UInt32) -> Bool {
        guard set.lock.lock() == .acquired else { return false }
        let one = root.registration(index)
        let peer = one.has(Registration.State.dual) ? sessionOf(one.socket).peerCPU : UInt64.max
        set.lock.unlock()
        return peer == UInt64(UInt32(bitPattern: ss_cpu()))
    }

    // MARK: Sleeping

    /// Arms, looks again, sleeps. `goOn`: look again.
    private mutating func sleep(_ now: inout UInt64) -> Int {
        if set.hotCount != 0 { set.maintainAll(root) }
        set.sleepers.add(1)  // before arming: who leaves later sees that somebody relies on it
        let longest = set.armAll(root)
        now = ss_monotonic_ns()
        var count = look(now, kernelShare: 0, mayAsk: true)
        if count > 0 {
            stopSleeping()
            return count
        }
        let start = now
        let conversions = set.conversions
        let left = min(Deadline.left(deadline, start), longest)
        let room = Int32(truncatingIfNeeded: maximum)
        var timeout = left == Deadline.never ? timespec() : Deadline.fill(left)
        count = left == Deadline.never
            ? kernelWait(root, descriptor, events, room, nil, mask)
            : kernelWait(root, descriptor, events, room, &timeout, mask)
        if outlivesSet { return withoutOurs(count) }
        stopSleeping()
        if count < 0 { return count }
        now = ss_monotonic_ns()
        if count > 0, now &- start < SpinBudget.maximum {
            // Woken sooner than a wake-up costs: looking a little longer would have been cheaper.
            set.spinNanoseconds.storeRelaxed(SpinBudget.afterShortSleep(set.spinNanoseconds.loadRelaxed()))
        }
        let isOver = deadline != Deadline.never && now >= deadline
        count = sift(0, count)
        if set.hasToFollow(root) { set.followAll(root) }
        noteKernelPoll(now, count)
        // What the rings have by now may have come behind something that the kernel has by now: it is the next look's.
        if !isOver, asksKernelLast { return count > 0 ? count : EpollWaiter.goOn }
        count = set.scan(root, events, count, maximum, now, mayAsk: isOver, conversions)
        return count > 0 || isOver ? count : EpollWaiter.goOn
    }

    private func stopSleeping() {
        set.sleepers.subtract(1)
        set.disarmAll(root)
    }

    /// What must be in order before others use the set while this thread is away.
    private mutating func leave(_ result: Int) -> Int {
        if set.hotCount != 0 {
            if set.sleepers.load() != 0 || set.has(EpollSet.Flags.nested) { set.handOver(root) }
            if set.has(EpollSet.Flags.shared) { set.handOverToRelatives(root) }
        }
        if set.has(EpollSet.Flags.fired) { set.handOverFired(root) }
        return result
    }
}
