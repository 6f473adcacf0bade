import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// epoll_ctl. The kernel's set always holds what the program registered, so every error is the kernel's own. While a socket
// is plain the kernel has the program's registration itself; while it is dual it has ours, and interest lives here.

/// epoll_create and epoll_create1: the interposer tells the switch about the new set.
package func switchEpollCreated(_ set: Int32) {
    guard set >= 0, set < Int32(SS_DESCRIPTORS) else { return }
    forgetStale(set)
    guard let root = ReadinessRoot.make() else { return }
    let index = root.takeSet(set)
    if index == 0 { return }
    noteHighest(set)
    setDescriptorEntry(set, kind: DescriptorKind.epollSet, index: UInt32(index))
}

/// epoll_ctl(2).
package func switchEpollControl(_ set: Int32, _ operation: Int32, _ fd: Int32, _ event: UnsafeMutablePointer<epoll_event>?) -> Int {
    if operation == ControlOperation.add, descriptorEntry(fd) == 0 { adoptListener(fd) }
    let target = descriptorEntry(fd)
    let container = descriptorEntry(set)
    if entryKind(target) == DescriptorKind.own || entryKind(container) == DescriptorKind.own { return -Int(EBADF) }
    guard let root = ReadinessRoot.existing ?? (entryKind(target) == DescriptorKind.socket ? ReadinessRoot.make() : nil) else {
        let result = ss_sys_epoll_ctl(set, operation, fd, event)
        if result == 0, entryKind(target) == DescriptorKind.socket { keepOnTCP(entryIndex(target), .memoryLimit) }
        return result
    }
    if let event, entryKind(container) == DescriptorKind.epollSet, ss_event_data(event, 0) & Tag.prefixMask == root.tagPrefix {
        root.set(entryIndex(container)).flags.setBits(EpollSet.Flags.unswitchable)
    }
    if entryKind(target) == DescriptorKind.socket {
        if entryKind(container) == DescriptorKind.epollSet {
            let record = root.set(entryIndex(container))
            if record.has(EpollSet.Flags.inherited) { record.adopt(root) }
            if changesForRelatives(record, entryIndex(target)) {
                giveUpForRelatives(fd, entryIndex(target))
            } else if operation != ControlOperation.delete, record.has(EpollSet.Flags.unswitchable),
                connectionRecord(entryIndex(target)).pointee.watchedAsDual
            {
                _ = switchHandOver(fd, .unsupportedOption)
            }
        }
        let control = SocketControl(root: root, set: set, fd: fd, socket: entryIndex(target))
        var result = control.perform(operation, event)
        // No record left for the set or the registration: the kernel's socket must be all there is to it.
        if result == -Int(ENOMEM), sessionOf(entryIndex(target)).isDual {
            if switchHandOver(fd, .memoryLimit) { result = control.perform(operation, event) }
        } else if result == 0, operation == ControlOperation.add, entryKind(descriptorEntry(set)) != DescriptorKind.epollSet,
            sessionOf(entryIndex(target)).isDual
        {
            _ = switchHandOver(fd, .memoryLimit)
        }
        return result
    }
    let result = ss_sys_epoll_ctl(set, operation, fd, event)
    if result == 0, operation == ControlOperation.add, entryKind(target) == DescriptorKind.epollSet {
        markNested(root, entryIndex(target))
        if entryKind(container) == DescriptorKind.epollSet { root.set(entryIndex(container)).flags.setBits(EpollSet.Flags.holdsSets) }
    }
    return result
}

@inline(__always)
func connectionRecord(_ socket: Int) -> UnsafeMutablePointer<Connection> { sessionOf(socket).connection }

/// One epoll_ctl call on one socket of ours.
struct SocketControl {
    let root: ReadinessRoot
    let set: Int32
    let fd: Int32
    let socket: Int

    func perform(_ operation: Int32, _ event: UnsafeMutablePointer<epoll_event>?) -> Int {
        let lock = root.socketLock(socket)
        guard lock.lock() == .acquired else {
            // In a signal handler that interrupted this very call.
            let result = ss_sys_epoll_ctl(set, operation, fd, event)
            if result == 0 { keepOnTCP(socket, .memoryLimit) }
            return result
        }
        defer { lock.unlock() }
        followRelatives(root, socket)
        let container = descriptorEntry(set)
        var record = entryKind(container) == DescriptorKind.epollSet ? entryIndex(container) : 0
        if record == 0 {
            // A set that we have not seen being made: inherited through exec, or duplicated in a way of its own. The
            // kernel tells whether it is one.
            let result = ss_sys_epoll_ctl(set, operation, fd, event)
            if result < 0 || operation != ControlOperation.add { return result }
            switchEpollCreated(set)
            record = entryKind(descriptorEntry(set)) == DescriptorKind.epollSet ? entryIndex(descriptorEntry(set)) : 0
            guard record != 0, let event, remember(record, event) else {
                keepOnTCP(socket, .memoryLimit)
                return result
            }
            if connectionRecord(socket).pointee.watchedAsDual {
                let index = find(record)
                if index == 0 || !root.makeDual(index, operation: ControlOperation.modify) { keepOnTCP(socket, .memoryLimit) }
            }
            return result
        }
        var index = find(record)
        if index != 0, root.dropIfDeleted(index) { index = 0 }
        if let event, operation != ControlOperation.delete, ss_event_bits(event, 0) & Interest.exclusive != 0 {
            // The kernel's first question, before it looks for a registration.
            if operation == ControlOperation.modify || ss_event_bits(event, 0) & ~Interest.allowedWithExclusive != 0 {
                return -Int(EINVAL)
            }
        }
        switch operation {
        case ControlOperation.add: return add(record, index, event)
        case ControlOperation.modify: return modify(index, event)
        case ControlOperation.delete: return delete(index, event)
        default: return ss_sys_epoll_ctl(set, operation, fd, event)
        }
    }

    /// The registration of this descriptor in set record `record`; 0 = none.
    private func find(_ record: Int) -> UInt32 {
        var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
        while index != 0 {
            let one = root.registration(index)
            if one.set == UInt32(record), one.descriptor == fd { return index }
            index = one.nextInSocket
        }
        return 0
    }

    // MARK: Adding

    private func add(_ record: Int, _ index: UInt32, _ event: UnsafeMutablePointer<epoll_event>?) -> Int {
        guard let event else { return ss_sys_epoll_ctl(set, ControlOperation.add, fd, nil) }
        if index != 0 {
            let one = root.registration(index)
            if one.has(Registration.State.dormant) {
                if revive(index, event) { return 0 }
                return addDual(record, event)
            }
            if one.has(Registration.State.dual) || one.has(Registration.State.absent) { return -Int(EEXIST) }
        }
        if connectionRecord(socket).pointee.watchedAsDual { return addDual(record, event) }
        let bits = ss_event_bits(event, 0)
        if bits & Interest.oneShot == 0 || !root.mayTag(socket, root.set(record)) {
            let result = ss_sys_epoll_ctl(set, ControlOperation.add, fd, event)
            if result == 0 {
                if index != 0 {
                    // The descriptor was closed behind our back and belongs to another registration of the kernel now.
                    root.registration(index).remove(Registration.State.tagged | Registration.State.disabled)
                    root.registration(index).events = bits
                    root.registration(index).data = ss_event_data(event, 0)
                } else if !remember(record, event) {
                    keepOnTCP(socket, .memoryLimit)
                }
            }
            return result
        }
        // One-shot: with our tag, so that we learn when it fires. Should the socket become dual, that must be known.
        guard index == 0, remember(record, event) else {
            let result = ss_sys_epoll_ctl(set, ControlOperation.add, fd, event)
            if result == 0 { keepOnTCP(socket, .memoryLimit) }
            return result
        }
        let made = find(record)
        root.registration(made).insert(Registration.State.tagged)
        root.set(record).flags.setBits(EpollSet.Flags.tags)
        let result = root.tellKernelPlainly(made, ControlOperation.add, set)
        if result < 0 { root.drop(made) }
        return result
    }

    /// Takes a dormant registration back into use: no call of the kernel's. False: it is gone, and must be made anew.
    private func revive(_ index: UInt32, _ event: UnsafeMutablePointer<epoll_event>) -> Bool {
        let bits = ss_event_bits(event, 0)
        if bits & Interest.exclusive != 0 {
            root.forgetDormant(index)
            return false
        }
        root.rearm(index, bits, ss_event_data(event, 0))
        return true
    }

    /// The program deletes a dual registration: it stays in the kernel, without a voice. False: it must really go.
    private func putToSleep(_ index: UInt32) -> Bool {
        let one = root.registration(index)
        guard one.has(Registration.State.dual), one.events & Interest.exclusive == 0,
            sessionOf(socket).slot.holders.load() == 1
        else { return false }
        let container = root.set(Int(one.set))
        // In a nested set it would not be without a voice.
        guard container.descriptor == set, !container.has(EpollSet.Flags.nested), container.lock.lock() == .acquired
        else { return false }
        let before = one.replace(
            Registration.State.hot | Registration.State.look | Registration.State.edge | Registration.State.starved,
            by: Registration.State.dormant | Registration.State.disabled)
        if before & Registration.State.hot != 0 { container.unlinkHot(root, index) }
        container.lock.unlock()
        return true
    }

    /// Makes the record of a registration. False: there is no memory for it.
    private func remember(_ record: Int, _ event: UnsafeMutablePointer<epoll_event>) -> Bool {
        let index = root.takeRegistration()
        if index == 0 { return false }
        let one = root.registration(index)
        one.descriptor = fd
        one.polled = fd
        one.set = UInt32(record)
        one.socket = socket
        one.events = ss_event_bits(event, 0)
        one.data = ss_event_data(event, 0)
        let isListener = sessionOf(socket).slot.kind.loadRelaxed() == Slot.Kind.listening
        one.state = Registration.State.live | (isListener ? Registration.State.listener : 0)
        let connection = connectionRecord(socket)
        if connection.pointee.firstRegistration != 0 { markNotAlone(one) }
        one.nextInSocket = UInt32(bitPattern: connection.pointee.firstRegistration)
        connection.pointee.firstRegistration = Int32(bitPattern: index)
        sessionOf(socket).slot.epollRegistrations.add(1)
        let container = root.set(record)
        let outcome = container.lock.lock()
        container.link(root, index)
        if outcome == .acquired { container.lock.unlock() }
        return true
    }

    private func markNotAlone(_ new: Registration) {
        new.insert(Registration.State.notAlone)
        var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
        while index != 0 {
            let one = root.registration(index)
            let container = root.set(Int(one.set))
            let outcome = container.lock.lock()
            one.insert(Registration.State.notAlone)
            if outcome == .acquired { container.lock.unlock() }
            index = one.nextInSocket
        }
    }

    private func addDual(_ record: Int, _ event: UnsafeMutablePointer<epoll_event>) -> Int {
        guard remember(record, event) else { return -Int(ENOMEM) }
        let index = find(record)
        var failure = 0
        guard root.makeDual(index, operation: ControlOperation.add, through: set, failure: &failure) else {
            root.drop(index)
            return failure
        }
        root.rearm(index, ss_event_bits(event, 0), ss_event_data(event, 0))
        return 0
    }

    // MARK: Changing

    private func modify(_ index: UInt32, _ event: UnsafeMutablePointer<epoll_event>?) -> Int {
        guard index != 0, let event else { return ss_sys_epoll_ctl(set, ControlOperation.modify, fd, event) }
        let one = root.registration(index)
        if one.has(Registration.State.dormant) { return -Int(ENOENT) }
        let bits = ss_event_bits(event, 0)
        let data = ss_event_data(event, 0)
        if one.has(Registration.State.dual) {
            if one.events & Interest.exclusive != 0 { return -Int(EINVAL) }
            root.rearm(index, bits, data)
            return 0
        }
        let oldEvents = one.events
        let oldData = one.data
        let wasTagged = one.has(Registration.State.tagged)
        let container = root.set(Int(one.set))
        let mayTag = root.mayTag(socket, container)
        if !wasTagged, bits & Interest.oneShot == 0 || !mayTag && !one.has(Registration.State.absent) {
            let result = ss_sys_epoll_ctl(set, ControlOperation.modify, fd, event)
            if result == 0 {
                one.events = bits
                one.data = data
            }
            return result
        }
        // A new generation: an event of the former registration that another thread is just fetching must not disable it.
        let outcome = container.lock.lock()
        container.flags.setBits(EpollSet.Flags.tags)
        one.events = bits
        one.data = data
        if mayTag { one.insert(Registration.State.tagged) } else { one.remove(Registration.State.tagged) }
        one.beginChange()
        let wasDisabled = one.has(Registration.State.disabled)
        one.remove(Registration.State.disabled)
        if outcome == .acquired { container.lock.unlock() }
        let absent = one.has(Registration.State.absent)
        let result = root.tellKernelPlainly(index, absent ? ControlOperation.add : ControlOperation.modify, set)
        if result == 0 {
            one.remove(Registration.State.absent)
        } else {
            one.events = oldEvents
            one.data = oldData
            if wasDisabled { one.insert(Registration.State.disabled) }
        }
        return result
    }

    // MARK: Deleting

    private func delete(_ index: UInt32, _ event: UnsafeMutablePointer<epoll_event>?) -> Int {
        guard index != 0 else { return ss_sys_epoll_ctl(set, ControlOperation.delete, fd, event) }
        let one = root.registration(index)
        if one.has(Registration.State.dormant) { return -Int(ENOENT) }
        if putToSleep(index) { return 0 }
        let absent = one.has(Registration.State.absent) || one.has(Registration.State.dual) && one.kernelEvents == 0
        let result = absent ? 0 : ss_sys_epoll_ctl(set, ControlOperation.delete, fd, event)
        // ENOENT: another process that shares the set has deleted it.
        if result == 0 || result == -Int(ENOENT) {
            if one.has(Registration.State.dual), changesForRelatives(root.set(Int(one.set)), socket) { tellRelatives() }
            root.removeDoorbell(index)
            root.drop(index)
        }
        return result
    }
}
