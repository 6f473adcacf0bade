import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

/// What one blocking call remembers between its sleeps.
struct WaitState {
    /// Of the slot, when the call began: see `Session.stands`.
    let generation: UInt64
    /// Our doorbell was found rung: it must be silenced before the next sleep.
    var rang = false
    /// A handler ran since the last wait: what was moved in part is not waited for any longer.
    var interrupted = false
    /// The call has moved bytes: whatever disturbs its sleep ends it.
    var hasMoved = false
    /// Monotonic nanoseconds; 0 = not asked yet, `never` = no time-out (SO_RCVTIMEO, SO_SNDTIMEO).
    var deadline: UInt64 = 0

    static var never: UInt64 { UInt64.max }

    /// One call is one section from here to `leave`.
    init(_ slot: Slot) {
        generation = slot.generation.loadRelaxed()
        ss_enter_section()
    }

    func leave() { ss_leave_section() }

    /// For a call of the kernel's own, which ends or restarts it as it sees fit.
    func outside<Result>(_ body: () -> Result) -> Result {
        let depth = ss_suspend_section()
        defer { ss_resume_section(depth) }
        return body()
    }

    /// Once a call: `timeOut` is SO_RCVTIMEO or SO_SNDTIMEO. Not before it must sleep, since it costs a system call.
    @inline(__always)
    mutating func setDeadline(_ fd: Int32, _ timeOut: Int32) {
        if deadline == 0 { deadline = Session.deadline(fd, timeOut) }
    }

    /// Runs the handlers that came meanwhile, at a moment at which the call has nothing to do but wait: the kernel looks for them
    /// there. nil: none ran. 0: they are such that it would begin the call anew. Else -EINTR, right where nothing has been moved.
    mutating func takeHandlers(_ fd: Int32, _ timeOut: Int32) -> Int? {
        guard ss_waiting_handlers() != 0 else { return nil }
        setDeadline(fd, timeOut)  // first: a handler may close the socket
        let ran = ss_take_handlers()
        guard ran != 0 else { return nil }
        interrupted = true
        return ran & UInt32(SS_HANDLER_INTERRUPTS) == 0 && deadline == WaitState.never ? 0 : -Int(EINTR)
    }
}

// Waiting, adaptively: look for a while, then sleep in the kernel. Budgets are times, never counts; they shrink when
// looking was in vain and grow when sleeping was shorter than a wake-up costs. A peer on this very CPU is given it
// (WSD-S2, T8).
//
// One doorbell serves both directions of a socket and every thread and process that holds it. So whoever waits to receive
// is counted before it arms and looks; whoever silences the bell looks for the others afterwards, and passes on or leaves
// ringing what may be theirs. Who waits for room looks again every 20 ms whatever happens.
extension Session {
    /// The most that looking may cost before sleeping, nanoseconds: about what a sleep and a wake-up cost.
    static var maximumSpinNanoseconds: UInt32 { 100_000 }
    static var firstSpinNanoseconds: UInt32 { 50_000 }
    static var minimumSpinNanoseconds: UInt32 { 3_000 }
    /// A sender whose peer takes nothing for so long hands over to TCP and its larger buffers: soon when the two may be
    /// waiting for each other (the peer is stuck in sending, too, or is this very process), later when the peer is just slow.
    /// (redis's test of shutdown counts on it that what a stopped reader leaves full stays full for more than a second.)
    static var deadlockNanoseconds: UInt64 { 20_000_000 }
    static var stallNanoseconds: UInt64 { 2_000_000_000 }
    /// The least of it for one who waits only so long, in a send, poll or select.
    static var shortStallNanoseconds: UInt64 { 100_000_000 }

    private var patienceNanoseconds: UInt64 {
        let armed = local.armedForSend.load()
        let bothSend = armed != 0 && armed != slot.rungForSend.loadRelaxed()
        return bothSend || connection.pointee.peerIsHere ? Session.deadlockNanoseconds : Session.stallNanoseconds
    }

    /// How long a sleep may be that no ring ends.
    static var tickNanoseconds: UInt64 { 1_000_000 }

    // MARK: The two waits. 0: look again; or -errno.

    func waitToReceive(_ fd: Int32, _ wait: inout WaitState) -> Int {
        wait.interrupted = false
        if let result = wait.takeHandlers(fd, SO_RCVTIMEO) { return result }
        guard enterWatch() else { return 0 }
        if slot.invitation.loadRelaxed() == Invitation.rewindUndecided {
            // The peer stands still between two words; no ring will tell of the second.
            leaveWatch(0)
            wait.setDeadline(fd, SO_RCVTIMEO)
            return sleep(fd, 0, -1, &wait, atMost: Session.tickNanoseconds, receiving: true)
        }
        if spin(receiving: true) { return leaveWatch(0) }
        doorbellSleepers.add(1)  // before arming: whoever silences the bell looks at it afterwards
        let drained = wait.rang
        if drained { drainDoorbellForReceiver() }
        wait.rang = false
        armReceive()
        connection.pointee.writer?.progress()
        if looksReadable || hasNews || isRewound {
            stopSleepingOnDoorbell()
            // This thread may leave some of it to those whose ring it has just silenced.
            if drained, receiversMayWait { ringOurselves() }
            return leaveWatch(0)
        }
        // What TCP has ready lies behind a cut that the ring has not reached: no reason to wake up.
        let isBehindCut = !receivesOnTCP && local.cutCount.load() != slot.receiveCuts.load()
        let tick = isBehindCut || connection.pointee.writer?.needsAttention ?? false
        let notification = connection.pointee.notification
        leaveWatch(0)
        defer { stopSleepingOnDoorbell() }
        wait.setDeadline(fd, SO_RCVTIMEO)
        var events = isBehindCut ? 0 : Int16(POLLIN) | (mayWatchForEnd ? Int16(POLLRDHUP) : 0)
        if hasBacklog { events |= Int16(POLLOUT) }
        return sleepInCall(fd, events, notification, &wait, atMost: tick ? Session.tickNanoseconds : WaitState.never, receiving: true)
    }

    /// Sleeps, unless the socket is being closed: who closes it first lowers its count of numbers, then wakes those whom it
    /// finds counted here.
    private func sleepInCall(
        _ fd: Int32, _ events: Int16, _ notification: Int32, _ wait: inout WaitState, atMost: UInt64, receiving: Bool
    ) -> Int {
        sleepingCalls.add(1)
        defer { Session.takeBack(sleepingCalls) }
        guard stands(wait.generation) else { return 0 }
        return sleep(fd, events, notification, &wait, atMost: atMost, receiving: receiving)
    }

    /// For a receiver that looks ahead until there is enough: nobody rings for what lies behind bytes that are not read.
    func waitForMore(_ fd: Int32, _ wait: inout WaitState) -> Int {
        wait.setDeadline(fd, SO_RCVTIMEO)
        return sleep(-1, 0, -1, &wait, atMost: Session.tickNanoseconds, receiving: true)
    }

    func waitToSend(_ fd: Int32, _ wait: inout WaitState) -> Int {
        wait.interrupted = false
        if let result = wait.takeHandlers(fd, SO_SNDTIMEO) { return result }
        guard enterWatch() else { return 0 }
        wait.setDeadline(fd, SO_SNDTIMEO)
        if sendsOnTCP || sendNeedsTCP {
            // The kernel knows everything. (POLLRDHUP would stay up after the peer's half-close.)
            leaveWatch(0)
            return sleepInCall(fd, Int16(POLLOUT), -1, &wait, atMost: WaitState.never, receiving: false)
        }
        if spin(receiving: false) { return leaveWatch(0) }
        var mayListen = true
        if wait.rang { mayListen = drainDoorbellForSender() }
        wait.rang = false
        armSend()
        connection.pointee.writer?.progress()
        if looksWritable || hasNews { return leaveWatch(0) }
        if slot.sendLock.tryLock() {
            let isMoved = isUp && goToTCPIfStalled(wait.deadline)
            slot.sendLock.unlock()
            if isMoved { return leaveWatch(0) }
        }
        let notification = mayListen ? connection.pointee.notification : -1
        let tick = !mayListen || connection.pointee.writer != nil
        leaveWatch(0)
        let events = mayWatchForEnd ? Int16(POLLRDHUP) : 0
        let atMost = tick ? Session.tickNanoseconds : Session.deadlockNanoseconds
        doorbellSleepers.add(1)
        let result = sleepInCall(fd, events, notification, &wait, atMost: atMost, receiving: false)
        stopSleepingOnDoorbell()
        if slot.sendLock.lock() == .acquired {
            if isUp, stands(wait.generation) { noteTCPEnd(connection.pointee.descriptor) }
            slot.sendLock.unlock()
        }
        return result
    }

    /// The socket on which a call began is still this process's. While the call slept another thread may have closed it: then
    /// the number that the program gave, and the slot, may stand for other connections, and neither is touched again. (Before
    /// each later attempt the call takes the number from the record, since the one that it was given may be closed alone.)
    func stands(_ generation: UInt64) -> Bool {
        connection.pointee.generation == generation && slot.generation.loadRelaxed() == generation
            && Int32(bitPattern: descriptorCount.load()) > 0
    }

    /// The connection was broken off, or its companion was lost: an attempt will say so.
    var hasNews: Bool {
        has(Slot.Flags.broken) || connection.pointee.writer?.hasFailed ?? false && !has(Slot.Flags.tcpOnly | Slot.Flags.peerGone)
    }

    /// TCP would have taken more than a ring holds before it blocks a writer. So a writer whose reader does not read at
    /// all for a while goes back to TCP, whose buffers take the rest; in good time, if it gives up at `deadline` (monotonic
    /// nanoseconds). Under the send lock.
    @discardableResult
    func goToTCPIfStalled(_ deadline: UInt64) -> Bool {
        if sendsOnTCP || looksWritable {
            connection.pointee.stalledSince = 0
            return false
        }
        let credit = local.credit.load()
        let now = ss_monotonic_ns()
        if connection.pointee.stalledSince == 0 || credit != connection.pointee.stalledCredit {
            connection.pointee.stalledCredit = credit
            connection.pointee.stalledSince = now
            return false
        }
        let stalled = now &- connection.pointee.stalledSince
        let isLate = stalled >= Session.shortStallNanoseconds && (deadline <= now || deadline &- now <= stalled)
        guard isLate || stalled >= patienceNanoseconds else { return false }
        connection.pointee.stalledSince = 0
        guard cutToTCP() else { return false }
        slot.reason.store(Reason.ringStalled.rawValue)
        return true
    }

    // MARK: Looking at the windows without a lock

    /// Keeps the windows mapped until `leaveWatch`. False: they are gone.
    package func enterWatch() -> Bool {
        var patience = 0
        ss_enter_section()
        while true {
            watchers.add(1)
            let up = word(Connection.Offsets.up).load()
            if up == Up.yes { return true }
            watchers.subtract(1)
            // (A signal handler that interrupted the very thread that decides would wait in vain.)
            if up == Up.no || patience == 1000 {
                ss_leave_section()
                return false
            }
            patience &+= 1
            _ = ss_sys_sched_yield()
        }
    }

    @discardableResult
    package func leaveWatch(_ result: Int) -> Int {
        watchers.subtract(1)
        ss_leave_section()
        return result
    }

    var watchers: Word { word(Connection.Offsets.watchers) }

    /// Looks until the direction makes progress or the budget is spent.
    private func spin(receiving: Bool) -> Bool {
        if receiving ? looksReadable : looksWritable { return true }
        if ss_session_state.never_spin != 0 { return false }
        if receiving ? receivesOnTCP : sendsOnTCP { return false }
        let peerCPU = receiving ? SenderMark.cpu(local.senderMark.loadRelaxed()) : local.receiverCPU.loadRelaxed()
        let ownCPU = UInt64(UInt32(bitPattern: ss_cpu()))
        // Tell the peer where we wait.
        if receiving {
            remote.receiverCPU.storeRelaxed(ownCPU)
        } else {
            remote.senderMark.storeRelaxed(SenderMark.moved(remote.senderMark.loadRelaxed(), to: ownCPU))
        }
        let start = ss_monotonic_ns()
        let isCrowded = Crowd.isHere(start)
        if peerCPU == ownCPU {
            if isCrowded { return false }
            var yields = 0
            var before = start
            while yields < 20 {
                _ = ss_sys_sched_yield()
                let found = receiving ? looksReadable : looksWritable
                let now = ss_monotonic_ns()
                if found, isMuch(receiving) { return true }
                let isLost = Crowd.took(now &- before, now: now, foundData: found)
                if found || isLost { return found }
                before = now
                yields &+= 1
            }
            return false
        }
        let spinWord = spinBudget(receiving)
        var budget = spinWord.loadRelaxed()
        if budget == 0 { budget = Session.firstSpinNanoseconds }
        let longest = isCrowded ? min(budget, Crowd.pausesNanoseconds) : budget
        var elapsed: UInt64 = 0
        while elapsed < UInt64(longest) {
            if elapsed < UInt64(Crowd.pausesNanoseconds) {
                var pauses = 0
                while pauses < 8 {
                    ss_pause()
                    if receiving ? looksReadable : looksWritable {
                        spinWord.store(min(budget &+ budget / 4, Session.maximumSpinNanoseconds))
                        return true
                    }
                    pauses &+= 1
                }
            } else {
                _ = ss_sys_sched_yield()
                let found = receiving ? looksReadable : looksWritable
                let now = ss_monotonic_ns()
                if found, isMuch(receiving) { return true }
                let isLost = Crowd.took(now &- start &- elapsed, now: now, foundData: found)
                if found || isLost { return found }
            }
            connection.pointee.writer?.progress()
            elapsed = ss_monotonic_ns() &- start
        }
        if !isCrowded { spinWord.store(max(budget / 2, Session.minimumSpinNanoseconds)) }
        return false
    }

    /// The peer has moved so many bytes that it may well have had the processor for long.
    private func isMuch(_ receiving: Bool) -> Bool {
        !receiving || local.producer.load() &- slot.receivePosition.load() >= 4096
    }

    private func spinBudget(_ receiving: Bool) -> HalfWord {
        HalfWord(
            UnsafeMutableRawPointer(connection),
            receiving ? Connection.Offsets.receiveSpinNanoseconds : Connection.Offsets.sendSpinNanoseconds)
    }

    // MARK: Sleeping

    private func sleep(_ fd: Int32, _ events: Int16, _ notification: Int32, _ wait: inout WaitState, atMost: UInt64, receiving: Bool) -> Int {
        var entries: (pollfd, pollfd) = (pollfd(fd: fd, events: events, revents: 0), pollfd(fd: notification, events: Int16(POLLIN), revents: 0))
        let start = ss_monotonic_ns()
        var nanoseconds = atMost
        if wait.deadline != WaitState.never {
            if start >= wait.deadline { return -Int(EAGAIN) }
            nanoseconds = min(nanoseconds, wait.deadline &- start)
        }
        let result = withUnsafeMutableBytes(of: &entries) { bytes in
            let list = bytes.baseAddress?.assumingMemoryBound(to: pollfd.self)
            // The kernel's own call would not begin anew: then a stop ends it, too.
            if wait.hasMoved || wait.deadline != WaitState.never { return ss_poll_until_disturbed(list, 2, nanoseconds) }
            var timeout = timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
            return ss_sys_ppoll(list, 2, nanoseconds == WaitState.never ? nil : withUnsafePointer(to: &timeout) { $0 }, nil)
        }
        if result == -Int(EINTR) {
            if let answer = wait.takeHandlers(fd, receiving ? SO_RCVTIMEO : SO_SNDTIMEO) { return answer }
            // A stop, or a handler that was set past libc, which is taken for one that restarts.
            wait.interrupted = true
            return wait.deadline == WaitState.never ? 0 : result
        }
        if result < 0 { return result }
        wait.rang = entries.1.revents != 0
        // The TCP socket has something to say: the next attempt asks it.
        if entries.0.revents != 0 { lastEndCheck.storeRelaxed(0) }
        if result > 0, ss_session_state.never_spin == 0 {
            // Woken sooner than a wake-up costs: looking a little longer would have been cheaper.
            let slept = ss_monotonic_ns() &- start
            if slept < UInt64(Session.maximumSpinNanoseconds) {
                let spinWord = spinBudget(receiving)
                spinWord.store(min(spinWord.loadRelaxed() &* 2 &+ 2_000, Session.maximumSpinNanoseconds))
            }
        }
        return 0
    }

    private static var longestSeconds: Int { 4_000_000_000 }

    /// The time-out that the program set on the socket, as a point of monotonic time.
    fileprivate static func deadline(_ fd: Int32, _ option: Int32) -> UInt64 {
        var value = timeval()
        var length = UInt32(MemoryLayout<timeval>.size)
        guard ss_sys_getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 else { return WaitState.never }
        // Longer than nanoseconds can tell: no handler begins such a call anew, either.
        if value.tv_sec > longestSeconds { return WaitState.never - 1 }
        let nanoseconds = UInt64(max(value.tv_sec, 0)) &* 1_000_000_000 &+ UInt64(max(value.tv_usec, 0)) &* 1000
        return nanoseconds == 0 ? WaitState.never : ss_monotonic_ns() &+ nanoseconds
    }
}
