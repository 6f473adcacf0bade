import CSocketSwitch
import ControlPlane

/// Adds 1 to eventfds that the ends of a connection share with the service. A write could wait for ever: an end may fill
/// the counter and take O_NONBLOCK off the description that all three share. The kernel itself, when it reports the end of an
/// asynchronous operation, never waits. One thread; made for one round of rings.
final class EventRinger {
    private var context: UInt = 0
    /// What is read, without bytes.
    private let file: Descriptor?

    init() {
        file = try? .checked(ss_sys_memfd_create("sockswitch rings", ss_mfd_cloexec), "memfd_create")
        if file != nil, withUnsafeMutablePointer(to: &context, { ss_syscall6(Int(SYS_io_setup), 1, Int(bitPattern: $0), 0, 0, 0, 0) }) < 0 {
            context = 0
        }
    }

    deinit { if context != 0 { _ = ss_syscall6(Int(SYS_io_destroy), Int(bitPattern: context), 0, 0, 0, 0, 0) } }

    /// False: this kernel does not offer it, and the caller may write. (One that is full rings already: true.)
    func ring(_ event: Int32) -> Bool {
        guard context != 0, let file else { return !isWritable(event) }
        // struct iocb: operation 0 (IOCB_CMD_PREAD) at 16, descriptor at 20, flag 1 (IOCB_FLAG_RESFD) at 56, eventfd at 60.
        var operation = InlineArray<8, UInt64>(repeating: 0)
        return withUnsafeMutableBytes(of: &operation) { bytes in
            let base = bytes.baseAddress!
            base.storeBytes(of: file.raw, toByteOffset: 20, as: Int32.self)
            base.storeBytes(of: 1, toByteOffset: 56, as: UInt32.self)
            base.storeBytes(of: event, toByteOffset: 60, as: Int32.self)
            var list = UInt(bitPattern: base)
            let submitted = withUnsafePointer(to: &list) {
                ss_syscall6(Int(SYS_io_submit), Int(bitPattern: context), 1, Int(bitPattern: $0), 0, 0, 0)
            }
            guard submitted == 1 else { return !isWritable(event) }
            var outcome = InlineArray<4, UInt64>(repeating: 0)
            return withUnsafeMutableBytes(of: &outcome) {
                ss_syscall6(Int(SYS_io_getevents), Int(bitPattern: context), 1, 1, Int(bitPattern: $0.baseAddress), 0, 0)
            } == 1
        }
    }

    private func isWritable(_ event: Int32) -> Bool {
        var entry = pollfd(fd: event, events: Int16(POLLOUT), revents: 0)
        return poll(&entry, 1, 0) == 1 && entry.revents & Int16(POLLOUT) != 0
    }
}
