import CSocketSwitch
import Synchronization

/// A file descriptor that this process owns: closed when the last reference goes.
package final class Descriptor: Sendable {
    package let raw: Int32

    /// How many are open now, for the service's descriptor budget.
    package static var openCount: Int { openDescriptors.load(ordering: .relaxed) }

    package init(_ raw: Int32) {
        self.raw = raw
        openDescriptors.wrappingAdd(1, ordering: .relaxed)
    }

    deinit {
        _ = ss_sys_close(raw)
        openDescriptors.wrappingSubtract(1, ordering: .relaxed)
    }

    /// A pidfd. Nil: there is no such process, or no descriptor for it.
    package static func ofProcess(_ pid: Int32) -> Descriptor? {
        let result = ss_syscall6(Int(SYS_pidfd_open), Int(pid), 0, 0, 0, 0, 0)
        return result < 0 ? nil : Descriptor(Int32(result))
    }

    /// Throws when `result` is a negated errno.
    package static func checked(_ result: Int, _ call: StaticString) throws(SystemError) -> Descriptor {
        if result < 0 { throw SystemError(call: call, code: Int32(-result)) }
        return Descriptor(Int32(result))
    }
}

private let openDescriptors = Atomic<Int>(0)

/// A system call that failed.
package struct SystemError: Error, CustomStringConvertible {
    package let call: StaticString
    /// errno.
    package let code: Int32

    package init(call: StaticString, code: Int32) {
        self.call = call
        self.code = code
    }

    package var description: String { "\(call): \(String(cString: strerror(code)))" }

    /// Throws when `result` is a negated errno.
    @discardableResult
    package static func check(_ result: Int, _ call: StaticString) throws(SystemError) -> Int {
        if result < 0 { throw SystemError(call: call, code: Int32(-result)) }
        return result
    }
}
