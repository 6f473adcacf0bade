import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// What the rest of the switch tells readiness. None of these may be called while a set's or a socket's lock of readiness is
// held, that is: never from inside `Session.readiness`, `noteTCPEvent`, `arm…` or `looks…`. Session locks may be held.

/// The session of socket `socket` is up and becomes dual: from now on its registrations in this process's epoll sets wait
/// for both carriers. False: one of them cannot; nothing has changed and the socket must stay on TCP.
///
/// Call it when the session is up and before `Slot.mode` becomes dual; then `readinessKick`.
@discardableResult
package func readinessWillUpgrade(_ socket: Int) -> Bool {
    guard let root = ReadinessRoot.existing else {
        connectionRecord(socket).pointee.watchedAsDual = true
        return true
    }
    let lock = root.socketLock(socket)
    guard lock.lock() == .acquired else { return false }
    defer { lock.unlock() }
    let connection = connectionRecord(socket)
    if connection.pointee.watchedAsDual { return true }
    if anyRegistration(root, socket, isUntellable) { return false }
    var index = UInt32(bitPattern: connection.pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        if !one.has(Registration.State.dual), !root.makeDual(index, operation: ControlOperation.modify) {
            var made = UInt32(bitPattern: connection.pointee.firstRegistration)
            while made != 0 {
                let next = root.registration(made).nextInSocket
                root.makePlain(made)
                made = next
            }
            return false
        }
        index = one.nextInSocket
    }
    connection.pointee.watchedAsDual = true
    return true
}

/// Both directions are on TCP and stay there: the kernel gets the program's own registrations back. Call it after
/// `Slot.mode` became plain, or before the session ends.
package func readinessBecamePlain(_ socket: Int) {
    let connection = connectionRecord(socket)
    guard let root = ReadinessRoot.existing else {
        connection.pointee.watchedAsDual = false
        return
    }
    let lock = root.socketLock(socket)
    let outcome = lock.lock()
    makeAllPlain(root, socket)
    if outcome == .acquired { lock.unlock() }
}

/// Under the socket's lock.
private func makeAllPlain(_ root: ReadinessRoot, _ socket: Int) {
    let connection = connectionRecord(socket)
    connection.pointee.watchedAsDual = false
    var index = UInt32(bitPattern: connection.pointee.firstRegistration)
    while index != 0 {
        let next = root.registration(index).nextInSocket
        root.makePlain(index)
        index = next
    }
}

/// Before the program changes or loses a registration: a relative may have handed the socket over, and given the kernel's set,
/// which is ours, too, the registrations that it knows. Under the socket's lock.
func followRelatives(_ root: ReadinessRoot, _ socket: Int) {
    let session = sessionOf(socket)
    guard connectionRecord(socket).pointee.watchedAsDual, !session.isDual, session.slot.invitation.load() == Invitation.rewind
    else { return }
    makeAllPlain(root, socket)
}

/// The kernel's part of one of its registrations cannot be changed any more (see `orphan`): it must stay what it is.
func readinessHasOrphans(_ socket: Int) -> Bool {
    anyRegistration(socket) { $1.isOrphan } ?? true
}

/// One of the epoll sets that the socket is registered in goes to the next image, which would know nothing of that.
func readinessOutlivesExec(_ socket: Int) -> Bool {
    anyRegistration(socket) { isInheritable(DescriptorKind.epollSet << 28 | $1.set) } ?? true
}

/// nil: it cannot be known, in a signal handler that interrupted the holder of the lock.
private func anyRegistration(_ socket: Int, _ holds: (ReadinessRoot, Registration) -> Bool) -> Bool? {
    guard let root = ReadinessRoot.existing else { return false }
    let lock = root.socketLock(socket)
    guard lock.lock() == .acquired else { return nil }
    defer { lock.unlock() }
    return anyRegistration(root, socket, holds)
}

/// Under the socket's lock.
private func anyRegistration(_ root: ReadinessRoot, _ socket: Int, _ holds: (ReadinessRoot, Registration) -> Bool) -> Bool {
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        if holds(root, one) { return true }
        index = one.nextInSocket
    }
    return false
}

/// Nobody will sift the events of this process's sets any more: the kernel gets every registration of the socket as the
/// program made it, one-shot ones included.
func readinessLeaveToKernel(_ socket: Int) {
    readinessBecamePlain(socket)
    guard let root = ReadinessRoot.existing else { return }
    let lock = root.socketLock(socket)
    let outcome = lock.lock()
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        if one.has(Registration.State.tagged), socketIndex(one.descriptor) == socket {
            one.remove(Registration.State.tagged)
            // One that has fired waits for nothing until the program changes it.
            if one.has(Registration.State.disabled) { one.events &= ~Interest.events }
            let operation = one.has(Registration.State.absent) ? ControlOperation.add : ControlOperation.modify
            _ = root.tellKernelPlainly(index, operation, root.set(Int(one.set)).descriptor)
        }
        index = one.nextInSocket
    }
    if outcome == .acquired { lock.unlock() }
}

/// Descriptor `fd` of socket `socket` is about to be closed or replaced. If it is the process's last one, forgets the
/// registrations and takes the doorbell out of the kernel's sets; otherwise they go on, as the kernel's do. Call it *before*
/// close, before `Session.end`, and before `descriptorCount` is lowered.
@inline(__always)
package func readinessForget(_ fd: Int32, _ socket: Int) {
    if connectionRecord(socket).pointee.firstRegistration != 0 { forgetRegistrations(fd, socket) }
}

@inline(never)
private func forgetRegistrations(_ fd: Int32, _ socket: Int) {
    guard let root = ReadinessRoot.existing else { return }
    let lock = root.socketLock(socket)
    guard lock.lock() == .acquired else {
        forgetInHandler(root, fd, socket)
        return
    }
    defer { lock.unlock() }
    followRelatives(root, socket)
    // Another process of the family that holds the socket may share the kernel's set: leave its registration alone.
    let alone = sessionOf(socket).slot.holders.load() <= 1
    let another = sessionOf(socket).descriptorCount.load() > 1 ? otherDescriptor(descriptorEntry(fd), than: fd) : -1
    // An announcement that the service has not read yet holds a reference to the socket: the kernel would not take it out of its
    // sets at the close, and would go on to tell of it.
    let mayOutlive = alone && another < 0 && sessionOf(socket).slot.attempts.load() != 0
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        let next = one.nextInSocket
        if one.descriptor == fd {
            if one.has(Registration.State.dormant) {
                root.forgetDormant(index)
                index = next
                continue
            }
            if one.has(Registration.State.dual) {
                if another >= 0 {
                    root.orphan(index, another: another)
                    index = next
                    continue
                }
                if alone { root.removeDoorbell(index) }
            } else if another >= 0 || !alone {
                // The kernel goes on reporting it, as long as the description lives; we could not change it any more.
                if another >= 0 {
                    keepOnTCP(socket, .sharedBeforeUpgrade)
                    if one.has(Registration.State.absent) || one.has(Registration.State.tagged) && one.has(Registration.State.disabled) {
                        // The kernel would still have it, fired, for a descriptor that gets the number again: so have we.
                        one.polled = another
                        index = next
                        continue
                    }
                }
                if !root.set(Int(one.set)).isParents(one) { root.untag(index) }
            }
            if mayOutlive { _ = ss_sys_epoll_ctl(root.set(Int(one.set)).descriptor, ControlOperation.delete, fd, nil) }
            root.drop(index)
        } else if one.polled == fd {
            if another >= 0 {
                root.orphan(index, another: another)
            } else {
                if alone { root.removeDoorbell(index) }
                root.drop(index)
            }
        }
        index = next
    }
}

/// The same in a signal handler that interrupted the holder of the lock: marks, and leaves the rest to the set's next call.
private func forgetInHandler(_ root: ReadinessRoot, _ fd: Int32, _ socket: Int) {
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        if one.descriptor == fd {
            one.insert(Registration.State.dead | Registration.State.disabled)
            let container = root.set(Int(one.set))
            let doorbell = connectionRecord(socket).pointee.notification
            if one.has(Registration.State.doorbell), doorbell >= 0 {
                _ = ss_sys_epoll_ctl(container.descriptor, ControlOperation.delete, doorbell, nil)
            }
        }
        index = one.nextInSocket
    }
}

/// Something about the socket may have changed in user space while threads sleep in epoll_wait.
package func readinessKick(_ socket: Int) {
    guard let root = ReadinessRoot.existing, connectionRecord(socket).pointee.firstRegistration != 0 else { return }
    let lock = root.socketLock(socket)
    let outcome = lock.lock()
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        if one.has(Registration.State.dual) {
            let container = root.set(Int(one.set))
            if container.lock.lock() == .acquired {
                container.heat(root, index)
                one.insert(Registration.State.edge)
                if container.sleepers.loadSequential() != 0 || container.has(EpollSet.Flags.nested) { container.kick(root, index) }
                container.lock.unlock()
            } else {
                container.flags.setBits(EpollSet.Flags.attention)
            }
        }
        index = one.nextInSocket
    }
    if outcome == .acquired { lock.unlock() }
}

/// A send of the program found too little room on the companion. Its edge-triggered registrations wait for room from now on,
/// which a registration that is not hot has not asked the peer to tell.
@inline(__always)
func readinessNoteFull(_ socket: Int) {
    if sessionOf(socket).slot.epollRegistrations.loadRelaxed() != 0 { awaitRoom(socket) }
}

@inline(never)
private func awaitRoom(_ socket: Int) {
    awaitRoomForRelatives(sessionOf(socket))
    guard let root = ReadinessRoot.existing, connectionRecord(socket).pointee.firstRegistration != 0 else { return }
    let lock = root.socketLock(socket)
    let outcome = lock.lock()
    var index = UInt32(bitPattern: connectionRecord(socket).pointee.firstRegistration)
    while index != 0 {
        let one = root.registration(index)
        if one.has(Registration.State.dual), !one.has(Registration.State.disabled), one.wantsOutput {
            let container = root.set(Int(one.set))
            if container.lock.lock() == .acquired {
                container.heat(root, index)
                if container.sleepers.loadSequential() != 0 || container.has(EpollSet.Flags.nested) {
                    container.watchTCP(root, index)
                    one.arm()
                    let found = sessionOf(socket).readiness(one.polled, one.events & Interest.events)
                    if found & Interest.writing != 0 { container.kick(root, index) } else { container.letSleeperCount(one) }
                }
                container.lock.unlock()
            } else {
                container.flags.setBits(EpollSet.Flags.attention)
            }
        }
        index = one.nextInSocket
    }
    if outcome == .acquired { lock.unlock() }
}

/// A relative may wait for the room that this process found wanting: asleep since there was some, or in a set of its own. The
/// bell is everybody's.
private func awaitRoomForRelatives(_ session: Session) {
    guard session.slot.holders.load() > 1, session.enterWatch() else { return }
    session.armSend()
    if session.looksWritable { session.ringOurselves() }
    session.leaveWatch(0)
}

/// The same for a message of which `result` bytes were taken.
func readinessNoteSent(_ socket: Int, _ message: UnsafePointer<msghdr>, _ result: Int) {
    guard sessionOf(socket).slot.epollRegistrations.loadRelaxed() != 0 else { return }
    var left = result
    if left > 0, let vectors = message.pointee.msg_iov {
        var index = 0
        while index < Int(message.pointee.msg_iovlen) {
            left &-= Int(bitPattern: UInt(vectors[index].iov_len))
            index &+= 1
        }
    }
    if left != 0 { awaitRoom(socket) }
}

/// A descriptor of epoll set record `set` is about to go to another program, which will be told what the kernel's set says: from
/// now on that is the program's own words. What is in it goes back to TCP and stays there.
package func readinessSetPassed(_ set: Int) {
    guard let root = ReadinessRoot.existing else { return }
    root.set(set).flags.setBits(EpollSet.Flags.unswitchable)
    root.forgetAllDormant()
    root.giveUpWords(root.set(set))
}

/// One descriptor of epoll set record `set` is about to be closed or replaced, and `other` still refers to it.
package func readinessSetKept(_ set: Int, _ other: Int32) { ReadinessRoot.existing?.set(set).descriptor = other }

/// The last descriptor of epoll set record `set` in this process is about to be closed or replaced.
package func readinessSetClosed(_ set: Int) {
    guard let root = ReadinessRoot.existing else { return }
    let container = root.set(set)
    container.life.add(1)
    container.flags.clearBits(EpollSet.Flags.nested)
    // Records go one by one, since each needs its socket's lock first.
    while true {
        guard container.lock.lock() == .acquired else { return }
        let index = container.firstRegistration
        let socket = index == 0 ? 0 : root.registration(index).socket
        container.lock.unlock()
        if index == 0 { break }
        let lock = root.socketLock(socket)
        guard lock.lock() == .acquired else { return }
        if container.firstRegistration == index, root.registration(index).socket == socket {
            leaveDoorbell(root, index)
            root.drop(index)
        }
        lock.unlock()
    }
    root.giveBack(set: set)
}

/// The kernel drops the set with its last descriptor; only an heir in our own records must learn of the doorbell.
private func leaveDoorbell(_ root: ReadinessRoot, _ index: UInt32) { root.registration(index).remove(Registration.State.doorbell) }

/// A set reports this socket whose registrations cannot be told from the program's own: it must not become dual.
package func readinessIsUntellable(_ socket: Int) -> Bool {
    anyRegistration(socket, isUntellable) ?? true
}

private func isUntellable(_ root: ReadinessRoot, _ one: Registration) -> Bool {
    root.set(Int(one.set)).has(EpollSet.Flags.unswitchable)
}

/// Something else waits for the set: what is dual in it stays armed from now on.
func markNested(_ root: ReadinessRoot, _ record: Int) {
    let container = root.set(record)
    if container.has(EpollSet.Flags.nested) { return }
    container.flags.setBits(EpollSet.Flags.nested)
    guard container.dualCount.load() != 0, container.lock.lock() == .acquired else { return }
    container.heatEverything(root)
    container.lock.unlock()
    container.handOver(root)
}

/// Holds readiness still across fork, so that the child finds whole lists. Registrations that the program has deleted go for
/// good before: parent and child share the kernel's set, and what one of them ends the other could not revive.
/// True: `readinessAfterForkInParent` is to let go of it.
package func readinessBeforeFork() -> Bool {
    guard let root = ReadinessRoot.existing else { return false }
    var rounds = 0
    root.lockAll()
    while rounds < 100, root.hasDormant {
        root.unlockAll()
        root.forgetAllDormant()
        root.lockAll()
        rounds &+= 1
    }
    return true
}
package func readinessAfterForkInParent() {
    ReadinessRoot.existing?.noteShared(inherited: false)
    ReadinessRoot.existing?.unlockAll()
}
package func readinessAfterForkInChild() {
    ReadinessRoot.existing?.resetAfterFork()
    ReadinessRoot.existing?.noteShared(inherited: true)
}
