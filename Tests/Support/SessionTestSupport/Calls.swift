import CSocketSwitch
import Glibc
import Session
import SocketTable
import StreamRing

extension Endpoint {
    /// Sends from consecutive memory; >= 0 or -errno.
    package func send(_ bytes: UnsafeRawPointer, _ count: Int, _ flags: Int = 0) -> Int {
        plainly(slot.plainWriters) { ss_sys_sendto(fd, bytes, count, Int32(flags) | noSignal) }
            ?? session.send(fd, bytes, count, Int32(flags) | noSignal)
    }

    /// A plain call, counted as the switch does it. nil: the socket is dual.
    private func plainly(_ counter: CallCount, _ call: () -> Int) -> Int? {
        if session.isDual { return nil }
        let ticket = counter.enter()
        defer { counter.leave(ticket) }
        return slot.mode.loadSequential() == Slot.Mode.plain ? call() : nil
    }

    /// Sends consecutive memory cut into pieces of the given lengths.
    package func send(_ bytes: UnsafeMutableRawPointer, pieces: [Int], _ flags: Int = 0) -> Int {
        withMessage(bytes, pieces) { message in
            plainly(slot.plainWriters) { ss_sys_sendmsg(fd, message, Int32(flags) | noSignal) }
                ?? session.send(fd, message, Int32(flags) | noSignal)
        }
    }

    package func receive(_ bytes: UnsafeMutableRawPointer, _ count: Int, _ flags: Int = 0) -> Int {
        plainly(slot.plainReaders) { ss_sys_recvfrom(fd, bytes, count, Int32(flags)) } ?? session.receive(fd, bytes, count, Int32(flags))
    }

    package func receive(_ bytes: UnsafeMutableRawPointer, pieces: [Int], _ flags: Int = 0) -> Int {
        withMessage(bytes, pieces) { message in
            plainly(slot.plainReaders) { ss_sys_recvmsg(fd, message, Int32(flags)) } ?? session.receive(fd, message, Int32(flags))
        }
    }

    package func sendFile(_ file: Int32, _ offset: inout Int64, _ count: Int) -> Int {
        plainly(slot.plainWriters) { ss_sys_sendfile(fd, file, &offset, count) } ?? session.sendFile(fd, file, &offset, count)
    }

    /// Hands the socket over as the switch does; from then on the calls above are the kernel's.
    package func handOver(leaves: Bool = false) -> Bool {
        guard session.handOver(fd, .handedOver, leaves: leaves) else { return false }
        slot.mode.storeSequential(Slot.Mode.plain)
        session.ringOurselves()
        session.awaitRewound(fd)
        return true
    }

    private var noSignal: Int32 { Int32(MSG_NOSIGNAL) }

    private func withMessage(_ bytes: UnsafeMutableRawPointer, _ pieces: [Int], _ body: (UnsafeMutablePointer<msghdr>) -> Int) -> Int {
        var vectors: [iovec] = []
        var at = 0
        for piece in pieces {
            vectors.append(iovec(iov_base: bytes + at, iov_len: piece))
            at += piece
        }
        return vectors.withUnsafeMutableBufferPointer { list in
            var message = msghdr()
            message.msg_iov = list.baseAddress
            message.msg_iovlen = list.count
            return body(&message)
        }
    }

    /// Sleeps in ppoll until the socket is ready, by the means that the switch's own poll uses: readiness, arming, a last
    /// look, then the kernel on both descriptors. Returns the events.
    @discardableResult
    package func wait(for interest: UInt32) -> UInt32 {
        var listens = true
        while true {
            if !session.isDual {
                var entry = pollfd(fd: fd, events: Int16(truncatingIfNeeded: interest), revents: 0)
                if plainly(slot.plainReaders, { ss_sys_ppoll(&entry, 1, nil, nil) }) ?? 0 > 0 { return UInt32(UInt16(bitPattern: entry.revents)) }
                continue
            }
            session.maintain(fd)
            session.doorbellSleepers.add(1)
            defer { session.stopSleepingOnDoorbell() }
            guard session.enterWatch() else { return interest }
            var events = interest & UInt32(POLLIN) != 0 ? Int16(POLLIN) : 0
            session.armReceive()
            if interest & UInt32(POLLOUT) != 0, session.sendsOnTCP { events |= Int16(POLLOUT) } else { session.armSend() }
            if !session.has(Slot.Flags.tcpEnded) { events |= Int16(POLLRDHUP) } else { events &= ~Int16(POLLIN) }
            session.leaveWatch(0)
            fullFence()
            let ready = session.readiness(fd, interest)
            if ready != 0 { return ready }
            var list = [
                pollfd(fd: fd, events: events, revents: 0),
                pollfd(fd: listens ? session.connection.pointee.notification : -1, events: Int16(POLLIN), revents: 0),
            ]
            // As the switch: who waits for room does not rely on the bell alone.
            var tick = timespec(tv_sec: 0, tv_nsec: listens && !session.hasBacklog ? 20_000_000 : 1_000_000)
            listens = true
            let result = interest & UInt32(POLLOUT) != 0 || session.hasBacklog
                ? ss_sys_ppoll(&list, 2, &tick, nil) : ss_sys_ppoll(&list, 2, nil, nil)
            guard result > 0 else { continue }
            if list[0].revents != 0 { session.noteTCPEvent(fd) }
            let found = session.readiness(fd, interest)
            if found != 0 { return found }
            if list[1].revents != 0, session.enterWatch() {
                if interest & UInt32(POLLIN) != 0 { session.drainDoorbellForReceiver() } else { listens = session.drainDoorbellForSender() }
                session.leaveWatch(0)
            }
        }
    }
}

/// Memory for a test, freed with it.
package final class Buffer: @unchecked Sendable {
    package let bytes: UnsafeMutableRawPointer
    package let count: Int
    package init(_ count: Int) {
        self.count = count
        bytes = .allocate(byteCount: count, alignment: 64)
        memset(bytes, 0xA5, count)
    }
    deinit { bytes.deallocate() }
}
