import CSocketSwitch
import Glibc
import SocketTable
import Synchronization

/// Starts a thread with a copy of the closure; the handle is for `join`.
@discardableResult
package func startThread(_ body: @escaping @Sendable () -> Void) -> pthread_t {
    final class Box {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    let start: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = { box in
        // The test runner's threads block every signal.
        var none = sigset_t()
        pthread_sigmask(SIG_SETMASK, &none, nil)
        Unmanaged<Box>.fromOpaque(box!).takeRetainedValue().body()
        return nil
    }
    let result = pthread_create(&thread, nil, start, Unmanaged.passRetained(Box(body)).toOpaque())
    precondition(result == 0)
    return thread
}

package func join(_ threads: [pthread_t]) {
    for thread in threads { pthread_join(thread, nil) }
}

/// Ends the process with a report when nothing has moved for a minute. Tests say `Watchdog.pat()` whenever something did.
package enum Watchdog {
    private static let pats = Atomic<UInt64>(0)
    private static let report = Mutex<(@Sendable () -> String)?>(nil)
    private static let starter: Void = {
        startThread {
            var (last, quiet) = (UInt64(0), 0)
            while true {
                sleep(1)
                let now = pats.load(ordering: .relaxed)
                (last, quiet) = now == last && report.withLock({ $0 != nil }) ? (last, quiet + 1) : (now, 0)
                if quiet < limitSeconds { continue }
                print("WATCHDOG: no progress for \(limitSeconds) s\n\(report.withLock { $0?() } ?? "")")
                fflush(nil)
                abort()
            }
        }
    }()

    private static let limitSeconds = 60

    package static func pat() { pats.wrappingAdd(1, ordering: .relaxed) }

    /// Watches while `body` runs; `state` is printed when it hangs.
    package static func watch<T>(_ state: @escaping @Sendable () -> String, _ body: () throws -> T) rethrows -> T {
        _ = starter
        pat()
        report.withLock { $0 = state }
        defer { report.withLock { $0 = nil } }
        return try body()
    }
}
