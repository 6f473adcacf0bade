import CSocketSwitch
#if !hasFeature(Embedded)
import StreamRing
#endif

/// What the processes of a family know together about one TCP socket: 512 bytes of the arena, this file the one
/// definition of their layout.
///
/// "Position" always means bytes since the beginning of the carrier. A direction is on TCP while its number of cuts is
/// even and on the companion while it is odd.
package struct Slot {
    package let base: UnsafeMutableRawPointer
    @inline(__always) package init(_ base: UnsafeMutableRawPointer) { self.base = base }

    package static var bytes: Int { 512 }

    /// What the socket is.
    package enum Kind {
        package static var free: UInt64 { 0 }
        package static var fresh: UInt64 { 1 }
        package static var listening: UInt64 { 2 }
        /// Connected (or connecting) by this side.
        package static var connected: UInt64 { 3 }
        /// Came from accept.
        package static var accepted: UInt64 { 4 }
        /// A listener that is closed, whose companion still serves connections that it accepted.
        package static var retired: UInt64 { 5 }
        /// No socket of the program: one of the companions, one an address, of a listener on the wildcard (WSD-C14).
        package static var addressCompanion: UInt64 { 6 }
    }

    /// How its data are carried.
    package enum Mode {
        /// Data calls go to the kernel.
        package static var plain: UInt64 { 0 }
        /// The session is up: data calls go through it, on whichever carrier each direction is.
        package static var dual: UInt64 { 1 }
    }

    package enum Flags {
        package static var nonBlocking: UInt64 { 1 }
        package static var writeShutDown: UInt64 { 2 }
        package static var readShutDown: UInt64 { 4 }
        /// FIN or reset seen on the TCP socket.
        package static var tcpEnded: UInt64 { 8 }
        /// No companion ever again (reason says why).
        package static var tcpOnly: UInt64 { 16 }
        /// This side wants both directions back on TCP (reason says why).
        package static var pullBack: UInt64 { 32 }
        /// The session is broken: every data call fails with ECONNRESET.
        package static var broken: UInt64 { 64 }
        /// The peer's FIN came without a half-close: nobody will read what goes into the ring.
        package static var peerGone: UInt64 { 128 }
        /// The kernel has told us of a reset, once and for all: whoever reads to the end of the stream hears of it.
        package static var resetSeen: UInt64 { 256 }
        /// The program has shut its sending direction down, and the FIN waits for the backlog before it.
        package static var owesFIN: UInt64 { 512 }
        /// A hand-over was refused while bytes lay unread: it is asked for again when the program has read them.
        package static var owesHandOver: UInt64 { 1024 }
        /// The peer has left the companion, and nothing is under way on it any more: the session may be begun anew.
        package static var peerLeft: UInt64 { 2048 }
        /// A process that the family's table does not know may use the socket, for as long as it exists.
        package static var strangers: UInt64 { 1 << 16 }
        /// Several processes of the family have waited for it in one epoll set.
        package static var waitedForByRelatives: UInt64 { 1 << 17 }
        /// An urgent byte has been taken out of the stream (MSG_OOB): its mark may lie ahead, and the kernel does not tell.
        package static var urgentTaken: UInt64 { 1 << 18 }
        /// A listener has an option whose effect only the kernel's own stream has, and what it accepts inherits it.
        package static var acceptsOnTCP: UInt64 { 1 << 19 }
        /// Another connection is about to stand for this one: see `Session.beginReplacing`.
        package static var replacing: UInt64 { 1 << 20 }
        /// SO_RCVTIMEO, SO_SNDTIMEO of less than nothing: the kernel waits for nothing then, and shows it as no time-out.
        package static var receivesAtOnce: UInt64 { 1 << 21 }
        package static var sendsAtOnce: UInt64 { 1 << 22 }
    }

    // Line 0: identity.
    @inline(__always) package var kind: Word { Word(base, 0) }
    @inline(__always) package var generation: Word { Word(base, 8) }
    /// Processes that hold the socket.
    @inline(__always) package var holders: Word { Word(base, 16) }
    @inline(__always) package var mode: Word { Word(base, 24) }
    @inline(__always) package var flags: Word { Word(base, 32) }
    /// `Reason`: why it is on TCP.
    @inline(__always) package var reason: Word { Word(base, 40) }
    /// When it may be announced again, and how often it has been: see Switch/Companions.
    @inline(__always) package var nextAttempt: Word { Word(base, 48) }
    @inline(__always) package var attempts: Word { Word(base, 56) }

    // Line 1: addresses, `CompactAddress` each.
    package static var localAddressOffset: Int { 64 }
    package static var peerAddressOffset: Int { 96 }
    @inline(__always) package var localAddress: CompactAddress { CompactAddress(base + Slot.localAddressOffset) }
    @inline(__always) package var peerAddress: CompactAddress { CompactAddress(base + Slot.peerAddressOffset) }

    // Line 2: sending. Written under the send lock.
    @inline(__always) package var sendLock: FamilyLock { FamilyLock(base, 128) }
    /// Position up to which the companion holds what was sent; less `bytesRewound`, the statistics "sent over the companion".
    @inline(__always) package var sendPosition: Word { Word(base, 144) }
    /// Everything before it may be overwritten: the peer's credit as last seen; from when the ring grows
    /// until that is settled, `sendRingOrigin`. See `Session.roomToSend`.
    @inline(__always) package var sendCredit: Word { Word(base, 152) }
    @inline(__always) package var sendCuts: Word { Word(base, 160) }
    /// The ring that is written: the position at its offset 0, and the last `RingChange`.
    @inline(__always) package var sendRingOrigin: Word { Word(base, 168) }
    @inline(__always) package var sendRing: Word { Word(base, 176) }
    /// How often the ring was full since it last grew, or TCP took a backlog: part of `Session.sendEdge`, and when
    /// one that is written remotely grows.
    @inline(__always) package var sendFullCount: Word { Word(base, 184) }

    // Line 3: sending, second line.
    /// Threads inside a plain kernel send: no cut while there are any.
    @inline(__always) package var plainWriters: CallCount { CallCount(base, 192) }
    /// The last `armedForReceive` number for which the doorbell was rung.
    @inline(__always) package var rungForReceive: Word { Word(base, 200) }
    @inline(__always) package var armedForSendCounter: Word { Word(base, 208) }
    @inline(__always) package var tcpBytesSent: Word { Word(base, 216) }
    @inline(__always) package var sendOperations: Word { Word(base, 224) }
    /// 1: somebody went to sleep until there is room; taken by whoever passes the ring on.
    @inline(__always) package var roomWanted: Word { Word(base, 232) }
    /// The backlog: ring positions of the bytes that the peer, which rewound, still has to get over TCP. Empty: equal.
    @inline(__always) package var backlogPosition: Word { Word(base, 240) }
    @inline(__always) package var backlogEnd: Word { Word(base, 248) }

    // Line 4: receiving. Written under the receive lock.
    @inline(__always) package var receiveLock: FamilyLock { FamilyLock(base, 256) }
    /// Position up to which the ring has been read: also the statistics "bytes received over the companion".
    @inline(__always) package var receivePosition: Word { Word(base, 272) }
    @inline(__always) package var receiveCuts: Word { Word(base, 280) }
    /// Position in the TCP stream up to which it has been read; valid while invited or on the companion.
    @inline(__always) package var tcpPosition: Word { Word(base, 288) }
    /// The invitation in force (`Invitation`).
    @inline(__always) package var invitation: Word { Word(base, 296) }
    /// The ring that is read (`RingView`): the position at its offset 0, and the last `RingChange` that was followed.
    @inline(__always) package var receiveRingOrigin: Word { Word(base, 304) }
    @inline(__always) package var receiveRing: Word { Word(base, 312) }

    // Line 5: receiving, second line.
    /// Threads inside a plain kernel receive, or asleep in a plain poll: no invitation while there are any.
    @inline(__always) package var plainReaders: CallCount { CallCount(base, 320) }
    @inline(__always) package var rungForSend: Word { Word(base, 328) }
    @inline(__always) package var armedForReceiveCounter: Word { Word(base, 336) }
    @inline(__always) package var tcpBytesReceived: Word { Word(base, 344) }
    @inline(__always) package var receiveOperations: Word { Word(base, 352) }
    /// Registrations in epoll sets, over the whole family.
    @inline(__always) package var epollRegistrations: Word { Word(base, 360) }
    /// Carrier changes that this end made or followed, for statistics.
    @inline(__always) package var carrierChanges: Word { Word(base, 368) }
    /// Bytes that were put into the ring and, after a rewind, went over TCP all the same. Written under the send lock.
    @inline(__always) package var bytesRewound: Word { Word(base, 376) }

    // Line 6: rarely changed.
    /// What companions carried that this socket had before. Written under both locks.
    @inline(__always) package var earlierSent: Word { Word(base, 384) }
    @inline(__always) package var earlierReceived: Word { Word(base, 392) }
    /// One more than the descriptor that the socket had when it was made; 0: none. Only a hint, for the service.
    @inline(__always) package var descriptorHint: Word { Word(base, 400) }
    /// How far had been written when the ring last grew, and the position at the offset 0 of the ring before. Written under the
    /// send lock.
    @inline(__always) package var sendRingChanged: Word { Word(base, 408) }
    @inline(__always) package var sendOldRingOrigin: Word { Word(base, 416) }
    /// SO_SNDBUF, bytes, since the program has set it; 0: it has not.
    @inline(__always) package var sendBuffer: Word { Word(base, 424) }

    /// What was sent over companions and not again over TCP, and what was received over them.
    package var companionBytes: (sent: UInt64, received: UInt64) {
        (
            earlierSent.loadRelaxed() &+ sendPosition.loadRelaxed() &- bytesRewound.loadRelaxed(),
            earlierReceived.loadRelaxed() &+ receivePosition.loadRelaxed()
        )
    }

    /// Counts a plain call in, in `plainReaders` or `plainWriters`. nil: the session has come up meanwhile. Its ticket, for
    /// `leave`.
    @inline(__always)
    package func enterPlain(_ calls: CallCount) -> UInt64? {
        let ticket = calls.enter()  // pairs with isZeroSequential in invite and cutToCompanion
        if mode.loadSequential() == Mode.plain { return ticket }
        calls.leave(ticket)
        return nil
    }

    /// Zeroes everything but kind, generation and holders.
    package func clear() { memset(base + 24, 0, Slot.bytes - 24) }
}

/// How many threads are inside a call on a socket. A call may outlast the socket, when another thread closes it, and even the
/// slot, when that goes to the next socket: so the count has its slot's generation beside it (bits 32 to 63), and nobody is
/// counted out where they were not counted in.
package struct CallCount {
    private let word: Word
    @inline(__always) package init(_ base: UnsafeMutableRawPointer, _ offset: Int) { word = Word(base, offset) }

    /// Counts a call in. Returns its ticket, for `leave`.
    @inline(__always) package func enter() -> UInt64 { word.add(1) }

    /// Counts it out. False: the slot is another socket's by now.
    @inline(__always) @discardableResult
    package func leave(_ ticket: UInt64) -> Bool {
        while true {
            let now = word.loadRelaxed()
            guard now >> 32 == ticket >> 32 else { return false }
            if word.compareExchange(now, now &- 1) { return true }
        }
    }

    /// For whoever published something before, and is seen by every call that comes in later.
    @inline(__always) package var isZeroSequential: Bool { UInt32(truncatingIfNeeded: word.loadSequential()) == 0 }
    package var count: UInt64 { word.load() & 0xFFFF_FFFF }

    /// A slot begins its next life.
    @inline(__always) func begin(generation: UInt64) { word.storeRelaxed(generation << 32) }
}

/// An IPv4 or IPv6 address with its port in 32 bytes.
package struct CompactAddress {
    package let base: UnsafeMutableRawPointer
    @inline(__always) package init(_ base: UnsafeMutableRawPointer) { self.base = base }

    /// AF_INET, AF_INET6 or 0.
    package var family: UInt16 {
        get { base.load(as: UInt16.self) }
        nonmutating set { base.storeBytes(of: newValue, as: UInt16.self) }
    }
    /// In host order.
    package var port: UInt16 {
        get { base.load(fromByteOffset: 2, as: UInt16.self) }
        nonmutating set { base.storeBytes(of: newValue, toByteOffset: 2, as: UInt16.self) }
    }
    package var scope: UInt32 {
        get { base.load(fromByteOffset: 4, as: UInt32.self) }
        nonmutating set { base.storeBytes(of: newValue, toByteOffset: 4, as: UInt32.self) }
    }
    /// 4 or 16 bytes in network order.
    package var bytes: UnsafeMutableRawPointer { base + 8 }

    /// Takes a socket address. False (and family 0) when it is not IPv4 or IPv6 or too short.
    @discardableResult
    package func set(_ address: UnsafeRawPointer, length: Int) -> Bool {
        memset(base, 0, 32)
        guard length >= 8 else { return false }
        let family = Int32(address.loadUnaligned(as: UInt16.self))
        if family == AF_INET, length >= 8 {
            self.family = UInt16(AF_INET)
            port = UInt16(bigEndian: address.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
            memcpy(bytes, address + 4, 4)
            return true
        }
        if family == AF_INET6, length >= 24 {
            self.family = UInt16(AF_INET6)
            port = UInt16(bigEndian: address.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
            memcpy(bytes, address + 8, 16)
            if length >= 28 { scope = address.loadUnaligned(fromByteOffset: 24, as: UInt32.self) }
            return true
        }
        return false
    }

    /// Writes a `sockaddr_in` or `sockaddr_in6` into `storage` (at least 28 bytes) and returns its length, 0 for none.
    package func fill(_ storage: UnsafeMutableRawPointer) -> Int {
        memset(storage, 0, 28)
        storage.storeBytes(of: family, as: UInt16.self)
        storage.storeBytes(of: port.bigEndian, toByteOffset: 2, as: UInt16.self)
        switch Int32(family) {
        case AF_INET:
            memcpy(storage + 4, bytes, 4)
            return 16
        case AF_INET6:
            memcpy(storage + 8, bytes, 16)
            storage.storeBytes(of: scope, toByteOffset: 24, as: UInt32.self)
            return 28
        default:
            return 0
        }
    }

    /// ::ffff:a.b.c.d, which is the IPv4 address a.b.c.d.
    package var isMappedIPv4: Bool {
        guard Int32(family) == AF_INET6 else { return false }
        for index in 0..<10 where bytes.load(fromByteOffset: index, as: UInt8.self) != 0 { return false }
        return bytes.load(fromByteOffset: 10, as: UInt16.self) == 0xFFFF
    }

    /// The same host address; port and scope may differ.
    package func hasSameHost(as other: CompactAddress) -> Bool {
        let isFour = Int32(family) == AF_INET || isMappedIPv4
        guard family != 0, other.family != 0, isFour == (Int32(other.family) == AF_INET || other.isMappedIPv4) else { return false }
        guard isFour else { return memcmp(bytes, other.bytes, 16) == 0 }
        return memcmp(bytes + (isMappedIPv4 ? 12 : 0), other.bytes + (other.isMappedIPv4 ? 12 : 0), 4) == 0
    }

    /// 0.0.0.0 or ::.
    package var isWildcard: Bool {
        for index in 0..<16 where bytes.load(fromByteOffset: index, as: UInt8.self) != 0 { return false }
        return true
    }
}
