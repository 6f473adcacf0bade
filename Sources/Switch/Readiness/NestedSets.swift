import CSocketSwitch
#if !hasFeature(Embedded)
import Session
import SocketTable
import StreamRing
#endif

// A set that another one, poll or select watches. Who watches it asks the kernel, so the kernel must find it ready exactly
// when something in it is.
//
// It becomes ready by a doorbell, or by a thread that leaves something behind (`handOver`, `rearm`). But the program may
// take what was reported without waiting in the set again, and then the kernel would go on calling it ready. So before
// anything asks the kernel about such a set, what is no longer true is taken back.

extension ReadinessRoot {
    /// The program asks about a set that holds other sets.
    func tidyNestedSets() {
        for index in 1..<max(1, Int(usedSets)) where set(index).has(EpollSet.Flags.nested) { set(index).tidy(self) }
    }
}

extension EpollSet {
    /// Takes back what makes the kernel call the set ready although none of its dual sockets is. Threads that sleep in it do
    /// that themselves.
    func tidy(_ root: ReadinessRoot) {
        guard dualCount.load() != 0, sleepers.load() == 0, kernelCallsItReady, lock.lock() == .acquired else { return }
        var index = firstRegistration
        while index != 0 {
            let one = root.registration(index)
            if one.isReadyNow() {
                lock.unlock()
                return
            }
            index = one.nextInSet
        }
        index = firstRegistration
        while index != 0 {
            let one = root.registration(index)
            one.users.add(1)
            let isReady = one.has(Registration.State.dual) && !retract(root, index)
            one.users.subtract(1)
            if isReady { break }
            // Gone, while the lock was not held: what is left is looked at next time.
            if !one.has(Registration.State.live) { break }
            index = one.nextInSet
        }
        lock.unlock()
    }

    private var kernelCallsItReady: Bool {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        var now = timespec(tv_sec: 0, tv_nsec: 0)
        return ss_sys_ppoll(&entry, 1, &now, nil) > 0
    }

    /// One registration that is not ready: armed, not kicked any more, and its bell silent. Under the lock, which is let go for
    /// the bell. False: it is ready after all, by an end of the stream that nobody had noticed.
    private func retract(_ root: ReadinessRoot, _ index: UInt32) -> Bool {
        let one = root.registration(index)
        let session = sessionOf(one.socket)
        if session.enterWatch() {
            session.noteTCPEnd(one.polled)
            session.leaveWatch(0)
        }
        if one.isReadyNow() { return false }
        // One that reports nothing (fired, or deleted) is taken out, since the kernel always reports errors; `rearm` has the
        // kernel watch again.
        let isSilent = one.has(Registration.State.disabled)
        var needed = isSilent ? 0 : one.neededKernelEvents(sendsOnTCP: session.sendsOnTCP)
        // An end, or our own SHUT_RD, is there for ever: who is not ready by it has not asked for it. (An edge may be on its way.)
        if !session.mayWatchForEnd, !one.isEdgeTriggered { needed &= ~(Interest.input | Interest.readHangUp) }
        // (A number that was closed may have been given to the same socket again. Otherwise nobody can change the kernel's part
        // of an orphan: the end of a stream makes the set ready by it until a wait in the set, which then finds nothing.)
        if one.kernelEvents != needed, socketIndex(one.descriptor) == one.socket {
            one.kernelEvents = needed
            var event = epoll_event()
            ss_event_set(&event, 0, needed, Tag.make(root, index, one.generation, doorbell: false))
            let operation = isSilent ? ControlOperation.delete : ControlOperation.modify
            _ = ss_sys_epoll_ctl(descriptor, operation, one.descriptor, &event)
        }
        one.arm()
        lock.unlock()
        silenceForNestedSets(root, one.socket)
        _ = lock.lock()
        return true
    }
}

extension Registration {
    /// Whether a wait would report it, without taking an edge. Under the set's lock.
    func isReadyNow() -> Bool {
        guard has(State.dual) else { return false }
        return isEdgeTriggered ? mayBeReady() : evaluate(ss_monotonic_ns(), mayAsk: true) != 0
    }
}
