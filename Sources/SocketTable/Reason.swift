/// Why a socket is (still, or again) on TCP. The number is stored in the socket's slot and shown by `sockswitch ps`;
/// numbers are never reused.
package enum Reason: UInt64, Sendable {
    case none = 0
    case notConnected = 1
    case notWorthItYet = 2
    case policy = 3
    case switchedOff = 4
    case noProvider = 5
    case noService = 6
    case serviceNotTrusted = 7
    case peerNotSwitched = 8
    case waitingForPeer = 9
    case negotiating = 10
    case sharedBeforeUpgrade = 11
    case descriptorLimit = 12
    case memoryLimit = 13
    case companionFailed = 14
    case unsupportedOption = 15
    case urgentData = 16
    case peerEnded = 17
    case protocolViolation = 18
    case positionUnknown = 19
    case ringStalled = 20
    case notInvited = 21
    case nestedEpoll = 22
    case socketTableFull = 23
    case handedOver = 24
    case peerPolicy = 25
    case ioUring = 26
    case unused = 27
    case plainCall = 28

    /// One line for an operator.
    package var text: StaticString {
        switch self {
        case .none: "on the companion"
        case .notConnected: "not connected"
        case .notWorthItYet: "too little traffic so far to be worth a companion"
        case .policy: "the policy keeps it on TCP"
        case .switchedOff: "switched off by the operator (sockswitch off)"
        case .noProvider: "no provider serves the destination's subnet"
        case .noService: "sockswitchd does not answer"
        case .serviceNotTrusted: "sockswitchd belongs to another user"
        case .peerNotSwitched: "the peer is unknown here: not under sockswitch, or with another service"
        case .waitingForPeer: "waiting for the peer's announcement"
        case .negotiating: "companion connected, session being negotiated"
        case .sharedBeforeUpgrade: "shared with another process before the companion was up"
        case .descriptorLimit: "no descriptor left for doorbells"
        case .memoryLimit: "no memory for the rings"
        case .companionFailed: "the provider failed to set up the companion"
        case .unsupportedOption: "a socket option or call that the companion cannot serve"
        case .urgentData: "urgent data was sent"
        case .peerEnded: "the connection, or one direction of it, is closed"
        case .protocolViolation: "the peer broke the session protocol"
        case .positionUnknown: "the kernel's byte counters disagree"
        case .ringStalled: "the peer did not read; TCP's buffers took over"
        case .notInvited: "nothing was sent this way since its reader could be moved, or the reader has not called in yet"
        case .nestedEpoll: "an epoll set inside another one watches it (reserved: it moves)"
        case .socketTableFull: "the socket table is full"
        case .handedOver: "passed to another program"
        case .peerPolicy: "the peer keeps it on TCP"
        case .unused: "nothing has been sent this way since it can move"
        case .plainCall: "a thread is (or was killed) inside a call of the kernel on it that began before it could move"
        case .ioUring: "the program has an io_uring that may move sockets' data past the switch"
        }
    }
}

#if !hasFeature(Embedded)
extension Reason: CaseIterable {}
#endif
