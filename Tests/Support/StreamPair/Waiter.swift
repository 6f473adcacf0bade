import CProgramSupport
import Glibc

/// Waits until a non-blocking descriptor can go on, in one of the ways that programs use. One waiter belongs to one thread.
/// A wait that times out is waited again and never "tried anyway": a lost wake-up must show as a stall.
final class Waiter {
    private let descriptor: Int32
    private let kind: Plan.Waiting
    private var set: Int32 = -1
    private var registered: UInt32 = 0

    init(_ descriptor: Int32, _ kind: Plan.Waiting) {
        self.descriptor = descriptor
        self.kind = kind
        switch kind {
        case .poll, .select: break
        case .epollLevel, .epollEdge, .epollOneShot:
            set = epoll_create1(Int32(EPOLL_CLOEXEC))
            if set < 0 { fail(failure("epoll_create1", errno)) }
        }
    }

    deinit { if set >= 0 { close(set) } }

    private func control(_ operation: Int32, _ events: UInt32) {
        var event = epoll_event()
        event.events = events
        event.data.u64 = 0x1234_5678_9ABC_DEF0
        if epoll_ctl(set, operation, descriptor, &event) != 0 { fail(failure("epoll_ctl(\(operation))", errno)) }
    }

    func wait(reading: Bool, writing: Bool) {
        let limit: Int32 = 10_000
        while true {
            switch kind {
            case .poll:
                var entry = pollfd(
                    fd: descriptor, events: Int16((reading ? POLLIN : 0) | (writing ? POLLOUT : 0)), revents: 0)
                let count = Glibc.poll(&entry, 1, limit)
                if count < 0 && errno != EINTR { fail(failure("poll", errno)) }
                if count > 0 { return }
            case .select:
                let bits = program_select(descriptor, reading ? 1 : 0, writing ? 1 : 0, limit)
                if bits < 0 && errno != EINTR { fail(failure("select", errno)) }
                if bits > 0 { return }
            case .epollLevel, .epollEdge, .epollOneShot:
                arm(reading: reading, writing: writing)
                var event = epoll_event()
                let count = epoll_wait(set, &event, 1, limit)
                if count < 0 && errno != EINTR { fail(failure("epoll_wait", errno)) }
                if count > 0 {
                    let cookie = event.data.u64
                    if cookie != 0x1234_5678_9ABC_DEF0 { fail("epoll_wait gave data \(cookie) that was never registered") }
                    if kind == .epollOneShot { registered = 1 }
                    return
                }
            }
        }
    }

    private func arm(reading: Bool, writing: Bool) {
        let interest =
            (reading ? EPOLLIN.rawValue | EPOLLRDHUP.rawValue : 0) | (writing ? EPOLLOUT.rawValue : 0)
        switch kind {
        case .epollEdge:
            // Registered once for everything, as edge-triggered programs do; both directions are tried after a wake-up.
            let all = EPOLLIN.rawValue | EPOLLOUT.rawValue | EPOLLRDHUP.rawValue | EPOLLET.rawValue
            if registered == 0 { control(EPOLL_CTL_ADD, all) }
            registered = all
        case .epollOneShot:
            let wanted = interest | EPOLLONESHOT.rawValue
            if registered != wanted { control(registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, wanted) }
            registered = wanted
        default:
            if registered != interest { control(registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, interest) }
            registered = interest
        }
    }
}
