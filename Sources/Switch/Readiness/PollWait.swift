import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

/// poll and ppoll. `timeout` nil: for ever. `mask`: the kernel's 8-byte signal set, nil: unchanged (WSD-S1).
package func switchPoll(
    _ list: UnsafeMutablePointer<pollfd>?, _ count: Int, _ timeout: UnsafePointer<timespec>?, _ mask: UnsafeRawPointer?
) -> Int {
    guard let list, count > 0, count <= 1 << 20, let deadline = Deadline.after(timeout) else {
        return ss_sys_ppoll(list, count, timeout, mask)
    }
    let kinds = PollKinds(list, count)
    if kinds.dual == 0, kinds.plain == 0 { return ss_sys_ppoll(list, count, timeout, mask) }
    lookAtMailboxes()
    if deadline == Deadline.now, kinds.dual == 0 { return ss_sys_ppoll(list, count, timeout, mask) }
    return withScratch(PollWaiter.bytes(count, ours: kinds.dual + kinds.plain)) { memory in
        guard let memory else { return -Int(ENOMEM) }
        var waiter = PollWaiter(list, count, ours: kinds.dual + kinds.plain, memory, deadline, mask)
        waiter.mustAskKernel = deadline == Deadline.now || kinds.needKernel || kinds.wantUrgent
        waiter.wantsUrgent = kinds.wantUrgent
        return inOneSection(unless: mask) { waiter.wait() }
    }
}

/// What a list of poll entries refers to.
private struct PollKinds {
    var dual = 0
    /// Plain sockets of ours, asked for reading.
    var plain = 0
    /// The kernel has to say something about an entry that no window tells.
    var needKernel = false
    /// A dual socket's entry asks for urgent data, of which only the kernel knows.
    var wantUrgent = false

    init(_ list: UnsafeMutablePointer<pollfd>, _ count: Int) {
        var index = 0
        while index < count {
            let fd = list[index].fd
            let entry = fd >= 0 ? descriptorEntry(fd) : 0
            if fd >= 0, entryKind(entry) != DescriptorKind.socket { needKernel = true }
            if entry != 0 {
                switch entryKind(entry) {
                case DescriptorKind.socket:
                    if sessionOf(entryIndex(entry)).isDual {
                        dual &+= 1
                        if list[index].events & Int16(POLLPRI) != 0 { wantUrgent = true }
                    } else {
                        plain &+= 1
                        needKernel = true
                    }
                case DescriptorKind.epollSet:
                    if let root = ReadinessRoot.existing {
                        markNested(root, entryIndex(entry))
                        root.set(entryIndex(entry)).tidy(root)
                    }
                default: break
                }
            }
            index &+= 1
        }
    }
}

/// The dual socket behind a poll entry; 0 = the kernel answers for the entry.
@inline(__always)
private func dualSocket(_ fd: Int32) -> Int {
    guard fd >= 0 else { return 0 }
    let entry = descriptorEntry(fd)
    guard entryKind(entry) == DescriptorKind.socket else { return 0 }
    return sessionOf(entryIndex(entry)).isDual ? entryIndex(entry) : 0
}

/// One poll call with sockets of ours in its list.
struct PollWaiter {
    let list: UnsafeMutablePointer<pollfd>
    let count: Int
    /// How many sockets of ours there is room for.
    let ours: Int
    /// The kernel's list: the program's entries, then one for each doorbell.
    let extended: UnsafeMutablePointer<pollfd>
    /// The socket of each doorbell entry.
    let sockets: UnsafeMutablePointer<UInt32>
    var readers: PlainReaders
    let deadline: UInt64
    let mask: UnsafeRawPointer?
    /// Windows alone do not answer for the list: the kernel is asked in every call, not every 20 µs only.
    var mustAskKernel = false
    /// What is told comes with what the kernel has that is urgent.
    var wantsUrgent = false
    /// Doorbell entries of the present sleep.
    private var doorbells = 0
    /// Doorbells that others rely on ring on: sleep without them, but not long.
    private var leavesDoorbellsOut = false
    /// Wake-ups in a row for which nothing was found.
    private var vainWakeUps = 0
    /// What the kernel takes at most in one list, once that is known to matter.
    private var longestList = Int.max
    /// Sleeps without some of the doorbells.
    private var shortSleeps: UInt64 = 0

    /// Memory that a call needs: readers, kernel's list, sockets.
    static func bytes(_ count: Int, ours: Int) -> Int {
        ours * (PlainReaders.bytesEach + MemoryLayout<pollfd>.stride + 4) + count * MemoryLayout<pollfd>.stride
    }

    init(
        _ list: UnsafeMutablePointer<pollfd>, _ count: Int, ours: Int, _ memory: UnsafeMutableRawPointer, _ deadline: UInt64,
        _ mask: UnsafeRawPointer?
    ) {
        self.list = list
        self.count = count
        self.ours = ours
        self.deadline = deadline
        self.mask = mask
        readers = PlainReaders(memory)
        let kernelsList = memory + ours * PlainReaders.bytesEach
        extended = kernelsList.assumingMemoryBound(to: pollfd.self)
        sockets = (kernelsList + (count + ours) * MemoryLayout<pollfd>.stride).assumingMemoryBound(to: UInt32.self)
    }

    mutating func wait() -> Int {
        var now = ss_monotonic_ns()
        var hasSpun = false
        while true {
            let stamp = ss_thread_poll_stamp()
            let isDue = mustAskKernel || stamp?.pointee.list != listMark || now &- (stamp?.pointee.nanoseconds ?? 0) >= kernelPollNanoseconds
            var ready = look(now)
            if ready == 0 || isDue {
                stamp?.pointee = ss_poll_stamp(nanoseconds: now, list: listMark)
                ready = askKernel(now, ready == 0 && deadline == Deadline.now ? mask : nil)
            }
            if ready != 0 { return ready }
            if deadline == Deadline.now {
                maintain()
                return look(now)
            }
            if !hasSpun {
                hasSpun = true
                ready = spin(now)
                if ready != 0 { return ready }
            }
            ready = sleep(&now)
            if ready != PollWaiter.goOn { return ready }
        }
    }

    private static var goOn: Int { Int.min }

    /// Tells this list from the one of another call at the same place in memory.
    private var listMark: UnsafeRawPointer? {
        UnsafeRawPointer(bitPattern: UInt(bitPattern: list) ^ UInt(UInt32(bitPattern: list[0].fd)) << 40 ^ UInt(count) << 48)
    }

    // MARK: Looking

    /// Fills in the events of dual sockets and clears all others. Returns how many entries have events.
    private func look(_ now: UInt64) -> Int {
        var ready = 0
        var index = 0
        while index < count {
            var events: UInt32 = 0
            let socket = dualSocket(list[index].fd)
            if socket != 0 {
                // Urgent data are seen by the one call that asks the kernel for all entries (`collect`).
                let wanted = UInt32(UInt16(bitPattern: list[index].events)) & ~Interest.priority
                events = sessionOf(socket).readiness(list[index].fd, wanted)
                if events != 0 { ready &+= 1 }
            }
            list[index].revents = Int16(truncatingIfNeeded: events)
            index &+= 1
        }
        return ready
    }

    /// The same while spinning: the windows only, and nothing is filled in.
    private func looksReady() -> Bool {
        var index = 0
        while index < count {
            let socket = dualSocket(list[index].fd)
            if socket != 0 {
                let wanted = UInt32(UInt16(bitPattern: list[index].events))
                let session = sessionOf(socket)
                guard session.enterWatch() else { return true }
                let found = (wanted & Interest.reading != 0 && session.looksReadable)
                    || (wanted & Interest.writing != 0 && session.looksWritable)
                session.leaveWatch(0)
                if found { return true }
            }
            index &+= 1
        }
        return false
    }

    /// Asks the kernel, without waiting: about everything that is not dual, and whether the TCP carrier of what is dual has
    /// ended. Returns how many entries of the list have events, dual ones included, or -errno.
    private func askKernel(_ now: UInt64, _ mask: UnsafeRawPointer?) -> Int {
        var asked = 0
        var index = 0
        while index < count {
            var entry = list[index]
            let socket = dualSocket(entry.fd)
            if socket != 0 {
                let urgent = entry.events & Int16(POLLPRI)
                let ended = sessionOf(socket).has(Slot.Flags.tcpEnded)
                if ended, urgent == 0 { entry.fd = -1 }
                entry.events = (ended ? 0 : Int16(POLLRDHUP)) | urgent
            }
            if entry.fd >= 0 { asked &+= 1 }
            entry.revents = 0
            extended[index] = entry
            index &+= 1
        }
        if asked == 0, mask == nil { return look(now) }
        var zero = timespec(tv_sec: 0, tv_nsec: 0)
        let result = ss_sys_ppoll(extended, count, &zero, mask)
        return result < 0 ? result : collect(now)
    }

    private func maintain() {
        var index = 0
        while index < count {
            let fd = list[index].fd
            let socket = dualSocket(fd)
            if socket != 0 { sessionOf(socket).maintain(fd, deadline: deadline) }
            index &+= 1
        }
    }

    // MARK: Looking for a while

    private mutating func spin(_ start: UInt64) -> Int {
        if ss_session_state.never_spin != 0 { return 0 }
        var first = 0
        var index = 0
        while index < count, first == 0 {
            first = dualSocket(list[index].fd)
            index &+= 1
        }
        if first == 0 { return 0 }
        let session = sessionOf(first)
        var peer = UInt64.max
        if session.enterWatch() {
            peer = session.peerCPU
            session.leaveWatch(0)
        }
        var allowed = UInt64(session.connection.pointee.receiveSpinNanoseconds)
        if allowed == 0 { allowed = SpinBudget.first }
        if allowed < SpinBudget.minimum { return 0 }
        let mustYield = peer == UInt64(UInt32(bitPattern: ss_cpu()))
        let isCrowded = Crowd.isHere(start)
        if isCrowded, mustYield { return 0 }
        let budget = min(isCrowded ? min(allowed, UInt64(Crowd.pausesNanoseconds)) : allowed, Deadline.left(deadline, start))
        var yields = 0
        var lastAsked = start
        var now = start
        while now &- start < budget {
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
            let found = looksReady()
            // Somebody else has the processor: who sleeps gets it back sooner than who yields.
            let isLost = yieldsNow && Crowd.took(now &- before, now: now, foundData: found)
            if found {
                let ready = wantsUrgent ? askKernel(now, nil) : look(now)
                if ready > 0 {
                    if now &- before < SpinBudget.lost { setSpin(session, SpinBudget.grown(allowed)) }
                    return ready
                }
            }
            if now &- lastAsked >= kernelPollNanoseconds {
                lastAsked = now
                let ready = askKernel(now, nil)
                if ready != 0 { return ready }
            }
            if mustYield, yields == 20 { break }
            if isLost { break }
        }
        if !isCrowded, deadline == Deadline.never || now < deadline { setSpin(session, SpinBudget.shrunk(allowed)) }
        return 0
    }

    private func setSpin(_ session: Session, _ nanoseconds: UInt64) {
        session.connection.pointee.receiveSpinNanoseconds = UInt32(nanoseconds)
    }

    // MARK: Sleeping

    /// Arms, looks again, sleeps. `goOn`: look again.
    private mutating func sleep(_ now: inout UInt64) -> Int {
        maintain()
        var longest = leavesDoorbellsOut ? 1_000_000 : Deadline.never
        defer { wakeUp() }
        guard prepare(&longest) else { return PollWaiter.goOn }
        fullFence()  // pairs with the fences after the peer's publishing
        now = ss_monotonic_ns()
        let ready = look(now)
        if ready > 0 { return wantsUrgent ? askKernel(now, nil) : ready }
        let left = min(Deadline.left(deadline, now), longest)
        var result = sleepInKernel(left)
        // A list with all doorbells may be longer than the kernel takes (RLIMIT_NOFILE); the program's own is not.
        if result == -Int(EINVAL), doorbells > 0, limitList() { result = sleepInKernel(left) }
        let slept = now
        now = ss_monotonic_ns()
        if result < 0 { return result }
        if result > 0, doorbells > 0, now &- slept < SpinBudget.maximum {
            let session = sessionOf(Int(sockets[0]))
            setSpin(session, SpinBudget.afterShortSleep(UInt64(session.connection.pointee.receiveSpinNanoseconds)))
        }
        if result == 0 {
            leavesDoorbellsOut = false
            vainWakeUps = 0
            return deadline != Deadline.never && now >= deadline ? look(now) : PollWaiter.goOn
        }
        let found = collect(now)
        if found > 0 { return found }
        vainWakeUps &+= 1
        leavesDoorbellsOut = false
        silenceDoorbells()
        // What wakes us for nothing again and again must not keep the call beyond its time.
        return deadline != Deadline.never && now >= deadline ? 0 : PollWaiter.goOn
    }

    private mutating func sleepInKernel(_ nanoseconds: UInt64) -> Int {
        var nanoseconds = nanoseconds
        var total = count + doorbells
        if total > longestList {
            // Those whose doorbells find no room are looked at every 1 to 8 ms.
            total = longestList
            nanoseconds = min(nanoseconds, 1_000_000 << min(shortSleeps, 3))
            shortSleeps &+= 1
        }
        if nanoseconds == Deadline.never { return ss_sys_ppoll(extended, total, nil, mask) }
        var timeout = Deadline.fill(nanoseconds)
        return ss_sys_ppoll(extended, total, &timeout, mask)
    }

    /// False: the list was not too long.
    private mutating func limitList() -> Bool {
        var limit = rlimit()
        guard ss_sys_prlimit(Int32(RLIMIT_NOFILE.rawValue), nil, &limit) == 0 else { return false }
        longestList = max(count, Int(min(limit.rlim_cur, rlim_t(Int32.max))))
        return longestList < count + doorbells
    }

    /// Builds the kernel's list and arms the dual sockets. False: a plain socket has become dual meanwhile, and there is no
    /// room for its doorbell; or a dual one plain.
    private mutating func prepare(_ longest: inout UInt64) -> Bool {
        var index = 0
        while index < count {
            var entry = list[index]
            entry.revents = 0
            let fd = entry.fd
            let wanted = UInt32(UInt16(bitPattern: entry.events))
            let input = wanted & (Interest.reading | Interest.readHangUp) != 0
            var socket = dualSocket(fd)
            if socket == 0, fd >= 0, input {
                let known = descriptorEntry(fd)
                if entryKind(known) == DescriptorKind.socket {
                    guard readers.count < ours else { return false }
                    if !readers.enter(entryIndex(known)) { socket = entryIndex(known) }
                }
            }
            if socket != 0 {
                guard doorbells < ours, let events = watch(sessionOf(socket), wanted, input: input, &longest) else { return false }
                entry.events = events
                sockets[doorbells] = UInt32(socket)
                let doorbell = leavesDoorbellsOut ? -1 : sessionOf(socket).connection.pointee.notification
                extended[count + doorbells] = pollfd(fd: doorbell, events: Int16(POLLIN), revents: 0)
                doorbells &+= 1
            }
            extended[index] = entry
            index &+= 1
        }
        return true
    }

    /// Arms one dual socket, counts this thread among its sleepers, and returns what the kernel shall watch of its TCP carrier.
    /// nil: its session has just ended. Once a thread is counted, it does not end.
    private func watch(_ session: Session, _ wanted: UInt32, input: Bool, _ longest: inout UInt64) -> Int16? {
        let output = wanted & Interest.writing != 0
        session.doorbellSleepers.add(1)  // before arming: who silences the bell looks at it afterwards
        guard session.enterWatch() else {
            session.stopSleepingOnDoorbell()
            return nil
        }
        if input { session.armReceive() }
        if output, !session.sendsOnTCP, !session.looksWritable {
            session.armSend()
            // Its bell may be taken by a reader of the same socket.
            longest = min(longest, 20_000_000)
        }
        if session.hasBacklog || session.connection.pointee.writer?.needsAttention ?? false { longest = min(longest, 1_000_000) }
        session.leaveWatch(0)
        var events = wanted & Interest.priority
        // After its end TCP is readable for ever, and the stream may not be over yet.
        if session.mayWatchForEnd {
            events |= Interest.readHangUp
            if vainWakeUps > 8 {
                // It wakes us again and again for nothing: leave it alone for a while.
                longest = min(longest, 1_000_000)
            } else if input {
                events |= Interest.input
            }
        }
        if output, session.sendsOnTCP { events |= Interest.output }
        return Int16(truncatingIfNeeded: events)
    }

    /// Undoes what `prepare` counted.
    private mutating func wakeUp() {
        readers.leave()
        while doorbells > 0 {
            doorbells &-= 1
            sessionOf(Int(sockets[doorbells])).stopSleepingOnDoorbell()
        }
    }

    /// What the kernel's wait has found, and what the sessions make of it.
    private func collect(_ now: UInt64) -> Int {
        var index = 0
        while index < count {
            if extended[index].fd >= 0, extended[index].revents != 0 {
                let socket = dualSocket(list[index].fd)
                if socket != 0 { sessionOf(socket).noteTCPEvent(list[index].fd) }
            }
            index &+= 1
        }
        index = 0
        while index < doorbells {
            if extended[count + index].revents != 0 { sessionOf(Int(sockets[index])).answerRing() }
            index &+= 1
        }
        var ready = look(now)
        index = 0
        while index < count {
            let fd = list[index].fd
            if fd >= 0, extended[index].revents != 0 {
                let asked = dualSocket(fd) == 0 ? list[index].events | PollWaiter.always : list[index].events & Int16(POLLPRI)
                let known = list[index].revents
                list[index].revents |= extended[index].revents & asked
                if known == 0, list[index].revents != 0 { ready &+= 1 }
            }
            index &+= 1
        }
        return ready
    }

    private static var always: Int16 { Int16(POLLERR) | Int16(POLLHUP) | Int16(POLLNVAL) }

    private mutating func silenceDoorbells() {
        var index = 0
        while index < doorbells {
            if extended[count + index].revents != 0, !silenceDoorbell(Int(sockets[index])) { leavesDoorbellsOut = true }
            index &+= 1
        }
    }
}
