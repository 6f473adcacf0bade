import CSocketSwitch

/// Bits of poll and epoll: the same numbers in both interfaces.
enum Interest {
    static var input: UInt32 { 0x001 }
    static var priority: UInt32 { 0x002 }
    static var output: UInt32 { 0x004 }
    static var error: UInt32 { 0x008 }
    static var hangUp: UInt32 { 0x010 }
    static var invalid: UInt32 { 0x020 }
    static var readNormal: UInt32 { 0x040 }
    static var readBand: UInt32 { 0x080 }
    static var writeNormal: UInt32 { 0x100 }
    static var writeBand: UInt32 { 0x200 }
    static var readHangUp: UInt32 { 0x2000 }

    /// What a program asks for to learn that it may read. (TCP knows no bands: it never reports these two events.)
    static var reading: UInt32 { input | readNormal }
    static var writing: UInt32 { output | writeNormal }
    /// What select asks for, of other kinds of descriptors, too.
    static var selectReading: UInt32 { reading | readBand }
    static var selectWriting: UInt32 { writing | writeBand }

    static var edgeTriggered: UInt32 { 1 << 31 }
    static var oneShot: UInt32 { 1 << 30 }
    static var wakeUp: UInt32 { 1 << 29 }
    static var exclusive: UInt32 { 1 << 28 }
    /// What may stand beside `exclusive` (EPOLLEXCLUSIVE_OK_BITS of the kernel).
    static var allowedWithExclusive: UInt32 { input | output | error | hangUp | wakeUp | edgeTriggered | exclusive }
    /// The bits that are events, not modes.
    static var events: UInt32 { 0x0FFF_FFFF }
}

/// EPOLL_CTL_…
enum ControlOperation {
    static var add: Int32 { 1 }
    static var delete: Int32 { 2 }
    static var modify: Int32 { 3 }
}
