import CProgramSupport
import Glibc

struct Options {
    var role = ""
    var mode = "pingpong"
    var transport = "tcp"
    /// A port for tcp, a path for unix.
    var address = ""
    var cpu = -1
    var size = 64
    var count = 100_000
    var warmUp = 2_000
    /// Connections a turn; 0: all at once.
    var batch = 0
    /// Non-blocking calls, tried again until they succeed.
    var spin = false
    /// Between two tries: give the CPU away (both ends on one core).
    var yield = false
    /// Keep the connection open after the result until a line comes on standard input.
    var hold = false
}

func stop(_ text: String) -> Never {
    var line = "sockbench: \(text)\n"
    line.withUTF8 { _ = write(2, $0.baseAddress!, $0.count) }
    exit(1)
}

func stopForErrno(_ call: String) -> Never { stop("\(call): \(String(cString: strerror(errno)))") }

func say(_ text: String) {
    var line = text + "\n"
    line.withUTF8 { _ = write(1, $0.baseAddress!, $0.count) }
}

@inline(__always)
func nanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
}

func withAddress<Result>(_ options: Options, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
    if options.transport == "unix" {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(options.address.utf8)) }
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
        }
    }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = (UInt16(options.address) ?? 0).bigEndian
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    return withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
    }
}

func makeSocket(_ options: Options) -> Int32 {
    let descriptor = socket(options.transport == "unix" ? AF_UNIX : AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    if descriptor < 0 { stopForErrno("socket") }
    return descriptor
}

func prepare(_ descriptor: Int32, _ options: Options) {
    if options.transport == "tcp" {
        var one: Int32 = 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
    }
    if options.spin && program_set_nonblocking(descriptor, 1) != 0 { stopForErrno("fcntl") }
}

/// One end of a connection with the waiting that was asked for.
struct Channel {
    let descriptor: Int32
    let spin: Bool
    let yield: Bool

    @inline(__always)
    private func again() {
        if yield { sched_yield() } else { program_relax() }
    }

    /// Sends all bytes.
    @inline(__always)
    func send(_ bytes: UnsafeMutableRawPointer, _ count: Int) {
        var done = 0
        while done < count {
            let result = write(descriptor, bytes + done, count - done)
            if result > 0 {
                done += result
            } else if result < 0 && errno == EAGAIN && spin {
                again()
            } else {
                stopForErrno("write")
            }
        }
    }

    /// Some bytes; 0 at the end of the stream.
    @inline(__always)
    func receive(_ bytes: UnsafeMutableRawPointer, _ count: Int) -> Int {
        while true {
            let result = read(descriptor, bytes, count)
            if result >= 0 { return result }
            if errno != EAGAIN || !spin { stopForErrno("read") }
            again()
        }
    }

    /// Exactly `count` bytes; false at the end of the stream.
    @inline(__always)
    func receiveAll(_ bytes: UnsafeMutableRawPointer, _ count: Int) -> Bool {
        var done = 0
        while done < count {
            let result = receive(bytes + done, count - done)
            if result == 0 { return false }
            done += result
        }
        return true
    }
}

/// Every sample is kept, so percentiles are exact.
struct Samples {
    private let values: UnsafeMutablePointer<UInt32>
    private(set) var count = 0
    init(capacity: Int) {
        values = .allocate(capacity: capacity)
        values.initialize(repeating: 0, count: capacity)  // faults the pages in before the measurement
    }

    @inline(__always)
    mutating func add(_ nanoseconds: UInt64) {
        values[count] = UInt32(truncatingIfNeeded: min(nanoseconds, UInt64(UInt32.max)))
        count += 1
    }

    func sorted() -> [UInt32] { UnsafeBufferPointer(start: values, count: count).sorted() }
}

func percentile(_ sorted: [UInt32], _ part: Double) -> UInt32 {
    sorted.isEmpty ? 0 : sorted[min(sorted.count - 1, Int(Double(sorted.count) * part))]
}
