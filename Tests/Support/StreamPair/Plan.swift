/// What one connection does. Both ends compute it from the run's seed and the connection's number.
struct Plan: CustomStringConvertible {
    enum Kind: String, CaseIterable {
        /// Both directions at once, each end in its own layout.
        case stream
        /// Request and answer, strictly in turns, blocking.
        case lockstep
        /// Several threads send at once without agreeing on anything; every byte names its thread and its turn.
        case contended
    }

    enum Layout: String, CaseIterable {
        /// One thread, non-blocking, both directions from one wait.
        case loop
        /// One thread sends, one receives.
        case twoThreads
        /// Several threads take turns at sending, several at receiving.
        case turns
        /// Parent and child, one sends, the other receives.
        case forked
    }

    enum Waiting: String, CaseIterable { case poll, select, epollLevel, epollEdge, epollOneShot }

    /// One end's way of doing it.
    struct End: CustomStringConvertible {
        var layout: Layout
        var nonBlocking: Bool
        var waiting: Waiting
        /// Threads a direction (`turns`).
        var threads: Int
        var childSends: Bool
        var childClosesOthers: Bool
        var description: String {
            "\(layout.rawValue)\(layout == .turns ? "×\(threads)" : "")/\(nonBlocking ? waiting.rawValue : "blocking")"
                + (layout == .forked ? (childSends ? "/childSends" : "/childReceives") : "")
        }
    }

    let seed: UInt64
    let index: UInt64
    let kind: Kind
    let client: End
    let server: End
    /// Bytes of each direction.
    let toServer: Int
    let toClient: Int
    /// Short random rests between calls, so that both ends also fall asleep.
    let rests: Bool
    /// Contended: sending threads, receiving threads.
    let senders: Int
    let receivers: Int

    init(seed: UInt64, index: UInt64, minimumBytes: Int, maximumBytes: Int, only: String?) {
        self.seed = seed
        self.index = index
        var random = Random(seed: Random.mix(seed ^ Random.mix(index)))
        let kindRoll = random.below(8)
        var kind: Kind = kindRoll == 0 ? .lockstep : kindRoll == 1 ? .contended : .stream
        kind = Plan.narrowed(kind, only)
        self.kind = kind
        func end(_ random: inout Random) -> End {
            var layout = Layout.allCases[random.below(Layout.allCases.count)]
            layout = Plan.narrowed(layout, only)
            let nonBlocking = random.chance(1, in: 2) || layout == .loop
            var waiting = Waiting.allCases[random.below(Waiting.allCases.count)]
            waiting = Plan.narrowed(waiting, only)
            return End(
                layout: layout, nonBlocking: nonBlocking, waiting: waiting, threads: 2 + random.below(3),
                childSends: random.chance(1, in: 2), childClosesOthers: random.chance(1, in: 2))
        }
        client = end(&random)
        server = end(&random)
        let ceiling = kind == .stream ? maximumBytes : max(1, maximumBytes / 8)
        let floor = min(minimumBytes, ceiling)
        toServer = max(floor, random.size(upTo: ceiling))
        toClient = max(floor, random.chance(1, in: 16) ? 0 : random.size(upTo: ceiling))
        rests = random.chance(1, in: 3)
        senders = 2 + random.below(4)
        receivers = 1 + random.below(3)
    }

    /// `choice`, or when `only` names some of its kind and not it, one of those.
    private static func narrowed<Choice: RawRepresentable & CaseIterable & Equatable>(_ choice: Choice, _ only: String?) -> Choice
    where Choice.RawValue == String {
        guard let only else { return choice }
        let wanted = only.split(separator: ",").compactMap { Choice(rawValue: String($0)) }
        guard !wanted.isEmpty, !wanted.contains(choice) else { return choice }
        return wanted[Array(Choice.allCases).firstIndex(of: choice)! % wanted.count]
    }

    func pattern(toServer: Bool) -> Pattern {
        Pattern(seed: Random.mix(seed &+ index &* 2 &+ (toServer ? 0 : 1)))
    }

    var description: String {
        "connection \(index): \(kind.rawValue) client \(client) server \(server) up \(toServer) down \(toClient)"
            + (rests ? " rests" : "")
    }
}
