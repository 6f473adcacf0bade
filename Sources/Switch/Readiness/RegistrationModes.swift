import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// Between plain and dual. Everything here runs under the socket's lock.
extension ReadinessRoot {
    /// The program's own registration, as the kernel shall have it while the socket is plain.
    func tellKernelPlainly(_ index: UInt32, _ operation: Int32, _ set: Int32) -> Int {
        let one = registration(index)
        var event = epoll_event()
        let tagged = one.has(Registration.State.tagged)
        ss_event_set(&event, 0, one.events, tagged ? Tag.make(self, index, one.generation, doorbell: false) : one.data)
        return ss_sys_epoll_ctl(set, operation, one.descriptor, &event)
    }

    @discardableResult
    func makeDual(_ index: UInt32, operation: Int32) -> Bool {
        var failure = 0
        return makeDual(index, operation: operation, through: set(Int(registration(index).set)).descriptor, failure: &failure)
    }

    /// Replaces (`modify`) or makes (`add`) the kernel's registration of the TCP carrier and adds the doorbell. False: the
    /// kernel would not (`failure` = -errno), and everything is as before.
    func makeDual(_ index: UInt32, operation: Int32, through set: Int32, failure: inout Int) -> Bool {
        let one = registration(index)
        let container = self.set(Int(one.set))
        let session = sessionOf(one.socket)
        let absent = one.has(Registration.State.absent)
        let outcome = container.lock.lock()
        defer { if outcome == .acquired { container.lock.unlock() } }
        container.flags.setBits(EpollSet.Flags.tags)
        container.dualCount.add(1)
        container.conversions &+= 1

        one.kernelEvents = one.neededKernelEvents(sendsOnTCP: session.sendsOnTCP)
        var event = epoll_event()
        ss_event_set(&event, 0, one.kernelEvents, Tag.make(self, index, one.generation, doorbell: false))
        var how = absent ? ControlOperation.add : operation
        if how == ControlOperation.modify, one.events & Interest.exclusive != 0 {
            // The kernel does not change an exclusive registration.
            _ = ss_sys_epoll_ctl(set, ControlOperation.delete, one.descriptor, &event)
            how = ControlOperation.add
        }
        failure = ss_sys_epoll_ctl(set, how, one.descriptor, &event)
        if failure < 0 {
            container.dualCount.subtract(1)
            return false
        }
        one.receiveEdge = session.receiveEdge
        one.sendEdge = session.sendEdge
        one.remove(Registration.State.absent | Registration.State.tagged)
        one.insert(Registration.State.dual)
        container.heat(self, index)
        if addDoorbell(index, through: set, failure: &failure) { return true }
        container.makeCold(self, index)
        one.remove(Registration.State.dual | Registration.State.look)
        container.dualCount.subtract(1)
        if operation == ControlOperation.add {
            _ = ss_sys_epoll_ctl(set, ControlOperation.delete, one.descriptor, &event)
        } else {
            restoreKernel(index, through: set)
        }
        return false
    }

    /// The kernel shall have the program's own registration again.
    private func restoreKernel(_ index: UInt32, through set: Int32) {
        let one = registration(index)
        let container = self.set(Int(one.set))
        if one.isOneShot, mayTag(one.socket, container) { one.insert(Registration.State.tagged) }
        if one.has(Registration.State.disabled), container.has(EpollSet.Flags.forked), !container.has(EpollSet.Flags.nested) {
            // A relative has the kernel's set, too, and may go on with this registration: it stays, edge-triggered and ours, and
            // what it reports is nobody's until a program changes it. By the generation others see that it has fired.
            one.insert(Registration.State.tagged)
            one.beginChange()
            var event = epoll_event()
            ss_event_set(&event, 0, one.kernelEvents, Tag.make(self, index, one.generation, doorbell: false))
            _ = ss_sys_epoll_ctl(set, ControlOperation.modify, one.descriptor, &event)
            return
        }
        if one.has(Registration.State.disabled) {
            // The kernel cannot be told "fired": it would still report errors.
            _ = ss_sys_epoll_ctl(set, ControlOperation.delete, one.descriptor, nil)
            one.insert(Registration.State.absent)
        } else if one.events & Interest.exclusive != 0 {
            _ = ss_sys_epoll_ctl(set, ControlOperation.delete, one.descriptor, nil)
            _ = tellKernelPlainly(index, ControlOperation.add, set)
        } else {
            _ = tellKernelPlainly(index, ControlOperation.modify, set)
        }
    }

    /// Whether the kernel may hold our tag for a plain registration.
    func mayTag(_ socket: Int, _ container: EpollSet) -> Bool {
        !container.has(EpollSet.Flags.unswitchable) && !changesForRelatives(container, socket)
    }

    /// A plain registration that we are about to forget goes on under the program's own data.
    func untag(_ index: UInt32) {
        let one = registration(index)
        let gone = Registration.State.disabled | Registration.State.absent
        guard one.has(Registration.State.tagged), !one.has(gone) else { return }
        one.remove(Registration.State.tagged)
        _ = tellKernelPlainly(index, ControlOperation.modify, set(Int(one.set)).descriptor)
    }

    /// Ends a registration that the program has deleted before.
    func forgetDormant(_ index: UInt32) {
        let one = registration(index)
        _ = ss_sys_epoll_ctl(set(Int(one.set)).descriptor, ControlOperation.delete, one.descriptor, nil)
        removeDoorbell(index)
        drop(index)
    }

    /// Back to the program's own registration, or to what another process has made of it; if that has deleted it, it is dropped.
    func makePlain(_ index: UInt32) {
        let one = registration(index)
        if one.has(Registration.State.dormant) { return forgetDormant(index) }
        // The kernel's part of an orphan cannot be changed any more: it stays ours, and asks the kernel from now on.
        guard one.has(Registration.State.dual), !one.isOrphan else { return }
        let container = set(Int(one.set))
        if container.isParents(one) { return }
        removeDoorbell(index)
        let outcome = container.lock.lock()
        container.makeCold(self, index)
        container.conversions &+= 1
        one.remove(Registration.State.dual | Registration.State.look | Registration.State.edge | Registration.State.starved)
        // (One that is silent is not in the kernel's set at all.)
        if !container.has(EpollSet.Flags.forked) || one.kernelEvents == 0 || !follow(index) {
            restoreKernel(index, through: container.descriptor)
        }
        container.dualCount.subtract(1)
        if outcome == .acquired { container.lock.unlock() }
        if one.has(Registration.State.dead) { drop(index) }
    }

    // MARK: The doorbell in the kernel's set

    private func addDoorbell(_ index: UInt32, through set: Int32, failure: inout Int) -> Bool {
        let one = registration(index)
        let doorbell = connectionRecord(one.socket).pointee.notification
        guard doorbell >= 0 else { return true }
        var event = epoll_event()
        ss_event_set(&event, 0, Interest.input | Interest.edgeTriggered, Tag.make(self, index, one.generation, doorbell: true))
        failure = ss_sys_epoll_ctl(set, ControlOperation.add, doorbell, &event)
        if failure == 0 {
            one.insert(Registration.State.doorbell)
            return true
        }
        guard failure == -Int(EEXIST) else { return false }
        // Another descriptor of the same socket brought it.
        let owner = doorbellOwner(of: one.socket, set: one.set)
        if owner != 0 {
            registration(owner).insert(Registration.State.sharedDoorbell)
            return true
        }
        failure = ss_sys_epoll_ctl(set, ControlOperation.modify, doorbell, &event)
        if failure == 0 { one.insert(Registration.State.doorbell) }
        return failure == 0
    }

    private func doorbellOwner(of socket: Int, set: UInt32) -> UInt32 {
        var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
        while index != 0 {
            let one = registration(index)
            if one.set == set, one.has(Registration.State.doorbell) { return index }
            index = one.nextInSocket
        }
        return 0
    }

    /// Takes the doorbell out of the kernel's set, or leaves it to another registration of the same socket. Must precede
    /// closing it: the peer holds the same description, so the kernel would keep it.
    func removeDoorbell(_ index: UInt32) {
        let one = registration(index)
        guard one.has(Registration.State.doorbell) else { return }
        let container = set(Int(one.set))
        let doorbell = connectionRecord(one.socket).pointee.notification
        one.remove(Registration.State.doorbell)
        var heir = UInt32(bitPattern: connectionRecord(one.socket).pointee.firstRegistration)
        while heir != 0 {
            let other = registration(heir)
            if heir != index, other.set == one.set, other.has(Registration.State.dual) {
                var event = epoll_event()
                let tag = Tag.make(self, heir, other.generation, doorbell: true)
                ss_event_set(&event, 0, Interest.input | Interest.edgeTriggered, tag)
                let outcome = container.lock.lock()
                other.insert(Registration.State.doorbell | (one.state & Registration.State.sharedDoorbell))
                if outcome == .acquired { container.lock.unlock() }
                if doorbell >= 0 { _ = ss_sys_epoll_ctl(container.descriptor, ControlOperation.modify, doorbell, &event) }
                return
            }
            heir = other.nextInSocket
        }
        if doorbell >= 0 { _ = ss_sys_epoll_ctl(container.descriptor, ControlOperation.delete, doorbell, nil) }
    }

    // MARK: Records

    /// The program added or changed a dual registration: it reports what is ready now, also to a thread that sleeps.
    func rearm(_ index: UInt32, _ bits: UInt32, _ data: UInt64) {
        let one = registration(index)
        let container = set(Int(one.set))
        let outcome = container.lock.lock()
        one.events = bits
        one.data = data
        guard outcome == .acquired else { return one.remove(Registration.State.dormant) }
        // A client that waits for each answer anew comes through here for each: one change of the state, and no clock.
        let before = one.replace(
            Registration.State.disabled | Registration.State.dormant,
            by: Registration.State.edge | Registration.State.look | Registration.State.hot)
        one.lastActive = container.lastWait.loadRelaxed()
        one.since = container.lookMark
        if before & Registration.State.hot == 0 { container.linkHot(self, index) }
        container.watchTCP(self, index)
        if container.sleepers.loadSequential() != 0 || container.has(EpollSet.Flags.nested) {
            // A sleeper armed what was hot when it went to sleep; this one was not.
            one.arm()
            let found = sessionOf(one.socket).readiness(one.polled, one.events & Interest.events)
            if found != 0 { container.kick(self, index) } else { container.letSleeperCount(one) }
        }
        container.lock.unlock()
    }

    /// Forgets a registration. The kernel's part is the caller's.
    func drop(_ index: UInt32) {
        let one = registration(index)
        let container = set(Int(one.set))
        let outcome = container.lock.lock()
        container.unlink(self, index)
        if one.has(Registration.State.dual) { container.dualCount.subtract(1) }
        one.state = 0
        if outcome == .acquired { container.lock.unlock() }
        // It may have been the one by which the kernel calls a nested set ready.
        if container.has(EpollSet.Flags.nested), container.hotCount != 0 { container.handOver(self) }
        unlinkFromSocket(index)
        waitForUsers(of: index)
        let registrations = sessionOf(one.socket).slot.epollRegistrations
        let count = registrations.load()
        if count != 0 { _ = registrations.compareExchange(count, count &- 1) }
        giveBack(registration: index)
    }

    /// Until no thread maintains the session by the registration's descriptor any more. A bound, since one of them may be
    /// this one, interrupted by a signal handler.
    private func waitForUsers(of index: UInt32) {
        let one = registration(index)
        var patience = 0
        while one.users.load() != 0, patience < 20_000 {
            _ = ss_sys_sched_yield()
            patience &+= 1
        }
    }

    /// The registration's descriptor is about to be closed, and the socket lives on in `another`: so does the registration,
    /// with all that the kernel may ever have to watch for it. Its edges cost no more than a look.
    func orphan(_ index: UInt32, another: Int32) {
        let one = registration(index)
        let container = set(Int(one.set))
        let outcome = container.lock.lock()
        // Being told makes the kernel report it once, which a nested set could not take back.
        if !one.isOrphan, !container.has(EpollSet.Flags.nested), !container.isParents(one), !container.isRelatives(one) {
            one.kernelEvents |= Interest.output | Interest.priority
            var event = epoll_event()
            ss_event_set(&event, 0, one.kernelEvents, Tag.make(self, index, one.generation, doorbell: false))
            _ = ss_sys_epoll_ctl(container.descriptor, ControlOperation.modify, one.descriptor, &event)
        }
        one.polled = another
        if outcome == .acquired { container.lock.unlock() }
        waitForUsers(of: index)
    }

    private func unlinkFromSocket(_ index: UInt32) {
        let connection = connectionRecord(registration(index).socket)
        let next = registration(index).nextInSocket
        var current = UInt32(bitPattern: connection.pointee.firstRegistration)
        if current == index {
            connection.pointee.firstRegistration = Int32(bitPattern: next)
            return
        }
        while current != 0 {
            let one = registration(current)
            if one.nextInSocket == index {
                one.nextInSocket = next
                return
            }
            current = one.nextInSocket
        }
    }
}
