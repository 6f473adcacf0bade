import CSocketSwitch

/// A *window*: memory that the peer of a connection may write and that only its owner reads (WSD-M2, WSD-T1).
///
/// It holds the receive ring and the words by which the peer talks to its owner. Every word has one writer, the peer,
/// so the whole protocol works by remote writes alone (RDMA) and needs no atomic read-modify-write across the
/// connection. **Nothing in a window is trusted**: the owner bounds each value before use.
///
/// This file is the one definition of the layout. Words that are published together share a 64-byte line, the unit in
/// which a provider that cannot map memory writes them; lines that change at different rates are kept apart.
///
///     line 0  the peer as the sender of the data that arrives here   producer, cuts, ring, mark
///     line 1  the peer as the receiver of the data that I send       credit, CPU
///     line 2  the same, rarely changed                               invitation, rewind, acknowledgement, armed for receiving
///     line 3  the peer as the sender, rarely changed                 armed for sending, end-of-stream flags
///     4096…   the ring
package struct Window {
    package let base: UnsafeMutableRawPointer

    @inline(__always) package init(_ base: UnsafeMutableRawPointer) { self.base = base }

    package static var lineBytes: Int { 64 }
    package static var controlBytes: Int { 4096 }
    /// The ring's largest size in bytes, and the size of the mapping that is reserved (sparsely) for it.
    package static var maximumRingBytes: UInt64 { 1 << 20 }
    /// The size that a ring begins with; it grows when it proves too small.
    package static var initialRingBytes: UInt64 { 1 << 15 }
    package static var minimumRingBytes: UInt64 { 1 << 12 }
    package static var bytes: Int { 4096 + (1 << 20) }

    // Line 0.
    /// Position (bytes since the ring's beginning) up to which the ring holds data.
    @inline(__always) package var producer: Word { Word(base, 0) }
    /// Cuts made so far; odd = the stream is on the companion.
    @inline(__always) package var cutCount: Word { Word(base, 8) }
    /// Position in the TCP stream at which the last odd cut left TCP.
    @inline(__always) package var cutOnTCP: Word { Word(base, 16) }
    /// Position in the ring at which the last even cut left the companion.
    @inline(__always) package var cutOnCompanion: Word { Word(base, 24) }
    /// The size of the ring, and since when: `RingChange`. 0: the peer's session has not opened yet.
    @inline(__always) package var ringChange: Word { Word(base, 32) }
    /// The number of the cut to TCP that the peer is about to make: it looks for a rewind between this and the cut.
    @inline(__always) package var cutIntent: Word { Word(base, 48) }
    /// When and on which CPU the peer last sent: `SenderMark`.
    @inline(__always) package var senderMark: Word { Word(base, 56) }

    // Line 1.
    /// Position up to which the peer has consumed what I sent.
    @inline(__always) package var credit: Word { Word(base, 64) }
    /// CPU on which the peer last received.
    @inline(__always) package var receiverCPU: Word { Word(base, 72) }

    // Line 2.
    /// The peer's invitation: `Invitation`.
    @inline(__always) package var invitation: Word { Word(base, 128) }
    /// Cuts that the peer has followed.
    @inline(__always) package var acknowledged: Word { Word(base, 136) }
    /// A number that the peer raises each time it goes to sleep for data: ring it once for each number.
    @inline(__always) package var armedForReceive: Word { Word(base, 144) }
    /// Position at which the peer stopped reading the ring for good: valid while its invitation is `Invitation.rewind`.
    @inline(__always) package var rewindPosition: Word { Word(base, 152) }

    // Line 3.
    /// The same for a peer that sleeps until it may send.
    @inline(__always) package var armedForSend: Word { Word(base, 192) }
    /// `EndFlags`, set before the FIN that they explain.
    @inline(__always) package var endFlags: Word { Word(base, 200) }

    @inline(__always) package var ring: UnsafeMutableRawPointer { base + Window.controlBytes }
}

/// The value of `Window.senderMark`: the cycle counter, less its lowest bits, above 16 bits of CPU number. All processors of a
/// host count alike, so marks tell in which order its processes sent on several connections.
package enum SenderMark {
    private static var processorBits: UInt64 { 0xFFFF }
    /// Cycles by which a processor may read the counter early or late among its other work.
    @inline(__always) package static var slack: UInt64 { 1_000 }

    @inline(__always)
    package static func make(_ cycles: UInt64, _ cpu: Int32) -> UInt64 {
        (cycles >> 4) << 16 | UInt64(UInt32(bitPattern: cpu)) & processorBits
    }
    @inline(__always) package static func cpu(_ mark: UInt64) -> UInt64 { mark & processorBits }
    /// `mark` for a sender that has moved to another CPU without sending.
    @inline(__always)
    package static func moved(_ mark: UInt64, to cpu: UInt64) -> UInt64 { mark & ~processorBits | cpu & processorBits }
    /// Whether `mark` was made after `other`; the counter may have wrapped between them.
    @inline(__always)
    package static func isLater(_ mark: UInt64, than other: UInt64) -> Bool { Int64(bitPattern: mark &- other) > 0 }
}

/// Values of `Window.invitation`.
package enum Invitation {
    package static var none: UInt64 { 0 }
    /// "Send over the companion from your next write on."
    package static var toCompanion: UInt64 { 1 }
    /// "Send over TCP from your next write on."
    package static var toTCP: UInt64 { 2 }
    /// "I read no more of the ring than up to `rewindPosition`: send what lies behind it over TCP, and go on there."
    package static var rewind: UInt64 { 3 }
    /// In a slot only: the rewind is published, and whether the peer has seen it is open.
    package static var rewindUndecided: UInt64 { 4 }
}

/// Bits of `Window.endFlags`.
package enum EndFlags {
    /// The peer shut down its sending direction but still reads (half-close).
    package static var halfClosed: UInt64 { 1 }
    /// The peer's last descriptor is gone.
    package static var closed: UInt64 { 2 }
    /// The peer is about to end its sending direction: it looks for a rewind between this and the end.
    package static var ending: UInt64 { 4 }
    /// The peer has gone back to TCP, both ways and for good as far as this companion is concerned: its process becomes another
    /// program, which may want to begin anew, with a new companion. The last word that it says here.
    package static var left: UInt64 { 8 }
}
