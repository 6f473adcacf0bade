import CSocketSwitch
import ControlPlane
import Rendezvous
import SocketTable
import StreamRing

/// What is made for one connection: the segment and the two sides' doorbells.
struct PairDescriptors {
    var segment: Descriptor
    var doorbells: PairDoorbells

    /// `kind`: a `DoorbellKind`. Throws EMFILE, ENFILE or ENOMEM.
    static func make(doorbells kind: UInt32) throws(SystemError) -> PairDescriptors {
        PairDescriptors(segment: try makeSegment(), doorbells: try .make(kind))
    }

    /// Memory of fixed size without a name in the file system (WSD-M2).
    private static func makeSegment() throws(SystemError) -> Descriptor {
        let noExecution: UInt32 = 8  // MFD_NOEXEC_SEAL, Linux 6.3
        let flags = ss_mfd_cloexec | ss_mfd_allow_sealing
        var result = ss_sys_memfd_create("sockswitch", flags | noExecution)
        if result == -Int(EINVAL) { result = ss_sys_memfd_create("sockswitch", flags) }
        let segment = try Descriptor.checked(result, "memfd_create")
        try SystemError.check(ss_sys_ftruncate(segment.raw, Int64(Segment.bytes)), "ftruncate")
        try SystemError.check(ss_sys_fcntl(segment.raw, ss_f_add_seals, Int(ss_seal_fixed_size)), "fcntl(F_ADD_SEALS)")
        return segment
    }
}

/// The doorbells of a connection, by the side that each wakes.
struct PairDoorbells {
    var bells: [Descriptor]
    /// `DoorbellKind`.
    var kind: UInt32

    static func make(_ kind: UInt32) throws(SystemError) -> PairDoorbells {
        var bells: (Int32, Int32) = (-1, -1)
        try SystemError.check(Doorbells.make(kind, &bells), kind == DoorbellKind.socketPair ? "socketpair" : "eventfd")
        return PairDoorbells(bells: [Descriptor(bells.0), Descriptor(bells.1)], kind: kind)
    }

    func passed(to side: Int) -> [Descriptor] { [bells[side], bells[1 - side]] }

    /// Wakes both sides. An eventfd that its ends have filled and made to wait is rung by the kernel through `ringer`.
    func ring(_ ringer: EventRinger) {
        for (side, bell) in bells.enumerated() {
            if kind == DoorbellKind.events, ringer.ring(bell.raw) { continue }
            _ = Doorbells.ring(bell.raw, bells[1 - side].raw, kind)
        }
    }
}

/// A connection that was paired, for as long as both its slots stand for it.
struct Pair {
    struct End {
        var client: UInt64
        var arena: SharedArena
        var slot: Int
        var generation: UInt64

        var isOpen: Bool {
            let slot = arena.arena.slot(slot)
            return slot.kind.load() != Slot.Kind.free && slot.generation.load() == generation
        }
    }

    /// In the order of the segment's sides.
    var ends: [End]
    /// Kept until both sides have said something; nil when it could not be mapped, too.
    var mailboxes: SegmentMailboxes?
    /// Kept to wake sleepers when the operator switches off; nil when the service is short of descriptors.
    var doorbells: PairDoorbells?

    var isOpen: Bool { ends.allSatisfy(\.isOpen) }
}

/// The service's mapping of the first page of a segment: it speaks there for a side that is gone, or has taken its
/// announcement back, before it could know that it was paired. Otherwise the other side would wait for its hello for ever.
final class SegmentMailboxes {
    private let base: UnsafeMutableRawPointer
    private static let bytes = Segment.windowOffset(side: 0)

    init?(of segment: Descriptor) {
        let address = ss_sys_mmap(nil, SegmentMailboxes.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.raw, 0)
        guard address > 0, let base = UnsafeMutableRawPointer(bitPattern: address) else { return nil }
        self.base = base
    }

    deinit { _ = ss_sys_munmap(base, SegmentMailboxes.bytes) }

    private func mailbox(_ side: Int) -> UnsafeMutableRawPointer { base + Segment.mailboxOffset(side: side) }

    private func hasSpoken(_ side: Int) -> Bool { Word(mailbox(side), 0).load() != 0 }

    var bothHaveSpoken: Bool { hasSpoken(0) && hasSpoken(1) }

    /// Turns the other side down in the name of a side that has not said anything.
    func reject(side: Int) {
        guard !hasSpoken(side) else { return }
        Word(mailbox(side), Segment.mailboxLengthOffset).store(Segment.rejectedLength)
        Word(mailbox(side), 0).store(1)
    }
}
