import CProgramSupport
import Glibc
import Synchronization

/// Largest piece that one call sends or asks for.
let maximumPiece = 4 << 20

/// Bytes moved by this process; the watchdog looks whether it grows.
let progress = Atomic<Int>(0)
let bytesChecked = Atomic<Int>(0)

func report(_ text: String) {
    let line = text + "\n"
    var copy = line
    copy.withUTF8 { _ = Glibc.write(2, $0.baseAddress!, $0.count) }
}

func announce(_ text: String) {
    var line = text + "\n"
    line.withUTF8 { _ = Glibc.write(1, $0.baseAddress!, $0.count) }
}

/// Reports and ends the process at once (also a forked child or one of several threads).
func fail(_ text: String) -> Never {
    report("FAILED [pid \(getpid())] \(text)")
    _exit(1)
}

func failure(_ call: String, _ code: Int32) -> String { "\(call): \(String(cString: strerror(code))) (\(code))" }

final class Work: @unchecked Sendable {
    let body: () -> Void
    init(_ body: @escaping () -> Void) { self.body = body }
}

/// A joinable thread. The programs under test use plain pthreads.
func startThread(_ body: @escaping () -> Void) -> pthread_t {
    var thread = pthread_t()
    let context = Unmanaged.passRetained(Work(body)).toOpaque()
    let code = pthread_create(
        &thread, nil,
        {
            Unmanaged<Work>.fromOpaque($0!).takeRetainedValue().body()
            return nil
        }, context)
    if code != 0 { fail(failure("pthread_create", code)) }
    return thread
}

func join(_ threads: [pthread_t]) {
    for thread in threads { pthread_join(thread, nil) }
}

final class Lock: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    init() { pthread_mutex_init(mutex, nil) }
    deinit {
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }
    func lock() { pthread_mutex_lock(mutex) }
    func unlock() { pthread_mutex_unlock(mutex) }
}

/// A rest of up to 2 ms.
func rest(_ random: inout Random) { usleep(UInt32(random.below(2000))) }
