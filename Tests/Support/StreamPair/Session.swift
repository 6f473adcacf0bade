import CProgramSupport
import Glibc

/// Runs one end of one connection by its plan, and closes it. Failures end the process.
struct Session {
    let descriptor: Int32
    let plan: Plan
    let isClient: Bool

    private var end: Plan.End { isClient ? plan.client : plan.server }
    private var outgoing: Int { isClient ? plan.toServer : plan.toClient }
    private var incoming: Int { isClient ? plan.toClient : plan.toServer }
    private var choices: UInt64 { Random.mix(plan.seed &+ plan.index &* 4 &+ (isClient ? 2 : 3)) }

    func run() {
        switch plan.kind {
        case .contended: Contended(descriptor: descriptor, plan: plan, isClient: isClient).run()
        case .lockstep: lockstep()
        case .stream:
            if end.nonBlocking && program_set_nonblocking(descriptor, 1) != 0 { fail(failure("fcntl", errno)) }
            switch end.layout {
            case .loop: loop()
            case .twoThreads: threads(1)
            case .turns: threads(end.threads)
            case .forked: forked()
            }
        }
        if close(descriptor) != 0 { fail(failure("close", errno)) }
    }

    private var label: String { "\(isClient ? "client" : "server") of \(plan)" }

    private func sender(nonBlocking: Bool) -> Sender {
        Sender(
            descriptor, plan.pattern(toServer: isClient), total: outgoing, nonBlocking: nonBlocking, rests: plan.rests,
            seed: choices, label: label)
    }

    private func receiver(nonBlocking: Bool) -> Receiver {
        Receiver(
            descriptor, plan.pattern(toServer: !isClient), total: incoming, nonBlocking: nonBlocking, rests: plan.rests,
            seed: ~choices, label: label)
    }

    private func endSending() {
        if shutdown(descriptor, Int32(SHUT_WR)) != 0 { fail("\(failure("shutdown", errno)); \(plan)") }
    }

    private func loop() {
        let sender = sender(nonBlocking: true)
        let receiver = receiver(nonBlocking: true)
        let waiter = Waiter(descriptor, end.waiting)
        var random = Random(seed: choices &+ 77)
        var sending = true
        var receiving = true
        while sending || receiving {
            var blockedSending = !sending
            var blockedReceiving = !receiving
            while !blockedSending || !blockedReceiving {
                if !blockedSending && (blockedReceiving || random.chance(1, in: 2)) {
                    switch sender.step() {
                    case .moved: break
                    case .wouldBlock: blockedSending = true
                    case .done:
                        endSending()
                        sending = false
                        blockedSending = true
                    }
                } else if !blockedReceiving {
                    switch receiver.step() {
                    case .moved: break
                    case .wouldBlock: blockedReceiving = true
                    case .done:
                        receiving = false
                        blockedReceiving = true
                    }
                }
            }
            if sending || receiving { waiter.wait(reading: receiving, writing: sending) }
        }
    }

    /// In blocking mode only a call with MSG_DONTWAIT (or sendfile) can answer "would block": then poll.
    private func waiter() -> Waiter { Waiter(descriptor, end.nonBlocking ? end.waiting : .poll) }

    private func send() {
        let sender = sender(nonBlocking: end.nonBlocking)
        let waiter = waiter()
        while true {
            switch sender.step() {
            case .moved: break
            case .wouldBlock: waiter.wait(reading: false, writing: true)
            case .done: return endSending()
            }
        }
    }

    private func receive() {
        let receiver = receiver(nonBlocking: end.nonBlocking)
        let waiter = waiter()
        while true {
            switch receiver.step() {
            case .moved: break
            case .wouldBlock: waiter.wait(reading: true, writing: false)
            case .done: return
            }
        }
    }

    private func threads(_ number: Int) {
        if number == 1 {
            let thread = startThread { send() }
            receive()
            return join([thread])
        }
        let sender = sender(nonBlocking: end.nonBlocking)
        let receiver = receiver(nonBlocking: end.nonBlocking)
        let sendLock = Lock()
        let receiveLock = Lock()
        var senders: [pthread_t] = []
        var receivers: [pthread_t] = []
        for _ in 0..<number {
            senders.append(startThread { takeTurns(sendLock, writing: true) { sender.step() } })
            receivers.append(startThread { takeTurns(receiveLock, writing: false) { receiver.step() } })
        }
        join(senders)
        endSending()
        join(receivers)
    }

    private func takeTurns(_ lock: Lock, writing: Bool, _ step: () -> Step) {
        // Edge-triggered sets want one waiter that sees every edge; with several, poll.
        let waiter = Waiter(descriptor, end.nonBlocking && end.waiting != .epollEdge ? end.waiting : .poll)
        while true {
            lock.lock()
            let outcome = step()
            lock.unlock()
            switch outcome {
            case .moved: break
            case .wouldBlock: waiter.wait(reading: !writing, writing: writing)
            case .done: return
            }
        }
    }

    private func forked() {
        let child = program_fork()
        if child < 0 { fail(failure("fork", errno)) }
        if child == 0 {
            if end.childClosesOthers {
                if descriptor > 3 { _ = program_close_range(3, UInt32(descriptor) - 1) }
                _ = program_close_range(UInt32(descriptor) + 1, UInt32.max)
            }
            if end.childSends { send() } else { receive() }
            _exit(0)
        }
        if end.childSends { receive() } else { send() }
        let code = program_wait(child)
        if code != 0 { fail("forked child \(child) ended with \(code); \(plan)") }
    }

    private func lockstep() {
        var one: Int32 = 1
        if setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4) != 0 { fail(failure("TCP_NODELAY", errno)) }
        let sender = sender(nonBlocking: false)
        let receiver = receiver(nonBlocking: false)
        // Sender and receiver of one direction cut the stream at the same places.
        var cuts = Random(seed: Random.mix(plan.seed &+ plan.index) &+ 5)
        var sent = 0
        var received = 0
        while sent < outgoing || received < incoming {
            let request = cuts.size(upTo: 1 << 16)
            let answer = cuts.size(upTo: 1 << 16)
            sent = min(outgoing, sent + (isClient ? request : answer))
            received = min(incoming, received + (isClient ? answer : request))
            sender.limit = sent
            receiver.limit = received
            if isClient { drive { sender.step() } }
            drive { receiver.step() }
            if !isClient { drive { sender.step() } }
        }
        endSending()
        receiver.limit = nil
        drive { receiver.step() }
    }

    private func drive(_ step: () -> Step) {
        while true {
            switch step() {
            case .moved: break
            case .wouldBlock: usleep(50)
            case .done: return
            }
        }
    }
}
