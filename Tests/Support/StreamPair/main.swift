// A TCP program that knows nothing of companions: streams seeded bytes both ways over many connections, by every call and
// in every arrangement of threads and processes that it can think of, and checks each byte.
//
//     StreamPair server [--port P]                    prints "port P"; ends when a client says so
//     StreamPair client --port P [options]            prints one line of JSON at the end
//     StreamPair both [options]                       both ends in this process
//
// Options: --seed S  --seconds N  --connections N (at a time)  --minimum-bytes N  --maximum-bytes N (a direction)
// --count N (connections in all)  --first N (number of the first connection)  --only KIND|LAYOUT|WAITING,… (87 bytes)
// --stall N (seconds without progress that are a failure)  --address A  --keep-server
// --user U (becomes this user first; needs root)

import CProgramSupport
import Glibc
import Synchronization

struct Options {
    var port: UInt16 = 0
    var seed: UInt64 = 0
    var seconds = 5.0
    var connections = 3
    var minimumBytes = 0
    var maximumBytes = 64 << 20
    var count = Int.max
    var first = 0
    var only: String?
    var stallSeconds = 30
    var address = "127.0.0.1"
    var keepServer = false
}

func usage() -> Never {
    report("usage: StreamPair server|client|both [--port P] [--seed S] [--seconds N] [--connections N] …")
    exit(2)
}

func parse() -> (role: String, options: Options) {
    var arguments = Array(CommandLine.arguments.dropFirst())
    guard !arguments.isEmpty else { usage() }
    let role = arguments.removeFirst()
    var options = Options()
    var seeded = false
    while !arguments.isEmpty {
        let name = arguments.removeFirst()
        if name == "--keep-server" {
            options.keepServer = true
            continue
        }
        guard !arguments.isEmpty else { usage() }
        let value = arguments.removeFirst()
        switch name {
        case "--port": options.port = UInt16(value) ?? 0
        case "--seed":
            options.seed = UInt64(value) ?? 0
            seeded = true
        case "--seconds": options.seconds = Double(value) ?? 5
        case "--connections": options.connections = Int(value) ?? 3
        case "--maximum-bytes": options.maximumBytes = Int(value) ?? 64 << 20
        case "--minimum-bytes": options.minimumBytes = Int(value) ?? 0
        case "--count": options.count = Int(value) ?? Int.max
        case "--first": options.first = Int(value) ?? 0
        case "--only": options.only = value
        case "--stall": options.stallSeconds = Int(value) ?? 30
        case "--address": options.address = value
        case "--user":
            guard let user = uid_t(value), setgroups(0, nil) == 0, setgid(user) == 0, setuid(user) == 0 else {
                report("--user: cannot become \(value)")
                exit(2)
            }
        default: usage()
        }
    }
    if !seeded { options.seed = UInt64.random(in: 1...UInt64.max) }
    return (role, options)
}

func now() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
}

/// First bytes of each connection, client to server.
struct Header {
    static let magic: UInt64 = 0x5354_5245_414D_5052
    static let stop = UInt64.max
    static let bytes = 128
}

func socketAddress(_ options: Options) -> (sockaddr_storage, socklen_t, Int32) {
    var storage = sockaddr_storage()
    if options.address.contains(":") {
        var address = sockaddr_in6()
        address.sin6_family = sa_family_t(AF_INET6)
        address.sin6_port = options.port.bigEndian
        inet_pton(AF_INET6, options.address, &address.sin6_addr)
        withUnsafeMutableBytes(of: &storage) { $0.storeBytes(of: address, as: sockaddr_in6.self) }
        return (storage, socklen_t(MemoryLayout<sockaddr_in6>.size), AF_INET6)
    }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = options.port.bigEndian
    inet_pton(AF_INET, options.address, &address.sin_addr)
    withUnsafeMutableBytes(of: &storage) { $0.storeBytes(of: address, as: sockaddr_in.self) }
    return (storage, socklen_t(MemoryLayout<sockaddr_in>.size), AF_INET)
}

func listener(_ options: Options) -> (Int32, UInt16) {
    var (storage, length, family) = socketAddress(options)
    let descriptor = socket(family, Int32(SOCK_STREAM.rawValue), 0)
    var one: Int32 = 1
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, 4)
    let bound = withUnsafePointer(to: &storage) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, length) }
    }
    if bound != 0 || listen(descriptor, 128) != 0 { fail(failure("bind or listen", errno)) }
    _ = withUnsafeMutablePointer(to: &storage) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(descriptor, $0, &length) }
    }
    let port = withUnsafeBytes(of: &storage) { $0.loadUnaligned(fromByteOffset: 2, as: UInt16.self).bigEndian }
    return (descriptor, port)
}

let active = Atomic<Int>(0)
let connectionsDone = Atomic<Int>(0)

func watchdog(_ options: Options) {
    _ = startThread {
        var last = -1
        var still = 0
        while true {
            sleep(1)
            let current = progress.load(ordering: .relaxed)
            still = current == last && active.load(ordering: .relaxed) > 0 ? still + 1 : 0
            last = current
            if still == 6 { describeActive() }
            if still >= options.stallSeconds {
                describeActive()
                fail("stalled: no byte moved for \(still) s (seed \(options.seed))")
            }
        }
    }
}

/// Plans of the connections that are open, for the report of a stall.
let openPlans = OpenPlans()
final class OpenPlans: @unchecked Sendable {
    private let lock = Lock()
    private var plans: [UInt64: String] = [:]
    func add(_ plan: Plan) {
        lock.lock()
        plans[plan.index] = plan.description
        lock.unlock()
    }
    func remove(_ plan: Plan) {
        lock.lock()
        plans[plan.index] = nil
        lock.unlock()
    }
    func report() {
        lock.lock()
        for text in plans.values { StreamPair.report("open: \(text)") }
        lock.unlock()
    }
}
func describeActive() { openPlans.report() }

func readHeader(_ descriptor: Int32) -> (seed: UInt64, index: UInt64, minimumBytes: Int, maximumBytes: Int, only: String?)? {
    var bytes = [UInt8](repeating: 0, count: Header.bytes)
    var done = 0
    while done < Header.bytes {
        let result = bytes.withUnsafeMutableBytes { read(descriptor, $0.baseAddress! + done, Header.bytes - done) }
        if result < 0 { fail(failure("read of the header", errno)) }
        if result == 0 {
            if done == 0 { return nil }
            fail("header cut after \(done) bytes")
        }
        done += result
    }
    return bytes.withUnsafeBytes { raw in
        if raw.load(as: UInt64.self) != Header.magic { fail("wrong header") }
        let text = String(decoding: raw[40..<Header.bytes].prefix { $0 != 0 }, as: UTF8.self)
        return (
            raw.load(fromByteOffset: 8, as: UInt64.self), raw.load(fromByteOffset: 16, as: UInt64.self),
            Int(raw.load(fromByteOffset: 24, as: UInt64.self)), Int(raw.load(fromByteOffset: 32, as: UInt64.self)),
            text.isEmpty ? nil : text
        )
    }
}

func writeHeader(_ descriptor: Int32, seed: UInt64, index: UInt64, _ options: Options) {
    var bytes = [UInt8](repeating: 0, count: Header.bytes)
    bytes.withUnsafeMutableBytes {
        $0.storeBytes(of: Header.magic, as: UInt64.self)
        $0.storeBytes(of: seed, toByteOffset: 8, as: UInt64.self)
        $0.storeBytes(of: index, toByteOffset: 16, as: UInt64.self)
        $0.storeBytes(of: UInt64(options.minimumBytes), toByteOffset: 24, as: UInt64.self)
        $0.storeBytes(of: UInt64(options.maximumBytes), toByteOffset: 32, as: UInt64.self)
        for (place, byte) in (options.only ?? "").utf8.prefix(Header.bytes - 41).enumerated() { $0[40 + place] = byte }
    }
    if write(descriptor, bytes, Header.bytes) != Header.bytes { fail(failure("write of the header", errno)) }
}

func runSession(_ descriptor: Int32, _ plan: Plan, isClient: Bool) {
    active.add(1, ordering: .relaxed)
    openPlans.add(plan)
    Session(descriptor: descriptor, plan: plan, isClient: isClient).run()
    openPlans.remove(plan)
    connectionsDone.add(1, ordering: .relaxed)
    active.subtract(1, ordering: .relaxed)
}

func connect(_ options: Options) -> Int32 {
    var (storage, length, family) = socketAddress(options)
    let descriptor = socket(family, Int32(SOCK_STREAM.rawValue), 0)
    if descriptor < 0 { fail(failure("socket", errno)) }
    let result = withUnsafePointer(to: &storage) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { Glibc.connect(descriptor, $0, length) }
    }
    if result != 0 { fail(failure("connect", errno)) }
    return descriptor
}

func serve(_ descriptor: Int32) {
    while true {
        let connection = accept(descriptor, nil, nil)
        if connection < 0 { fail(failure("accept", errno)) }
        active.add(1, ordering: .relaxed)
        let found = readHeader(connection)
        active.subtract(1, ordering: .relaxed)
        guard let header = found else {
            close(connection)
            continue
        }
        if header.index == Header.stop {
            close(connection)
            return
        }
        let plan = Plan(
            seed: header.seed, index: header.index, minimumBytes: header.minimumBytes, maximumBytes: header.maximumBytes,
            only: header.only)
        let thread = startThread { runSession(connection, plan, isClient: false) }
        pthread_detach(thread)
    }
}

func runClient(_ options: Options) {
    report("StreamPair: --seed \(options.seed)")
    let started = now()
    let next = Atomic<Int>(options.first)
    let workers = (0..<options.connections).map { _ in
        startThread {
            while now() - started < options.seconds {
                let index = next.add(1, ordering: .relaxed).oldValue
                if index - options.first >= options.count { return }
                let plan = Plan(
                    seed: options.seed, index: UInt64(index), minimumBytes: options.minimumBytes,
                    maximumBytes: options.maximumBytes, only: options.only)
                active.add(1, ordering: .relaxed)
                let descriptor = connect(options)
                writeHeader(descriptor, seed: options.seed, index: UInt64(index), options)
                active.subtract(1, ordering: .relaxed)
                runSession(descriptor, plan, isClient: true)
            }
        }
    }
    join(workers)
    if !options.keepServer {
        let descriptor = connect(options)
        writeHeader(descriptor, seed: options.seed, index: Header.stop, options)
        close(descriptor)
    }
    let seconds = now() - started
    announce(
        "{\"seed\": \(options.seed), \"connections\": \(connectionsDone.load(ordering: .relaxed)), "
            + "\"bytesChecked\": \(bytesChecked.load(ordering: .relaxed)), \"seconds\": \(seconds)}")
}

/// Runs a sender against a receiver over a Unix pair: checks the checker, and brings the runtime's lazily made tables into
/// being before any thread could hold their locks across a fork.
func rehearse() {
    var ends: [Int32] = [0, 0]
    if socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) != 0 { fail(failure("socketpair", errno)) }
    for end in ends { _ = program_set_nonblocking(end, 1) }
    let pattern = Pattern(seed: 42)
    let total = 8 << 20
    let sender = Sender(ends[0], pattern, total: total, nonBlocking: true, rests: false, seed: 1, label: "rehearsal")
    let receiver = Receiver(ends[1], pattern, total: total, nonBlocking: true, rests: false, seed: 2, label: "rehearsal")
    for kind in Plan.Waiting.allCases {
        Waiter(ends[0], kind).wait(reading: false, writing: true)
    }
    var ended = false
    while true {
        if !ended, case .done = sender.step() {
            shutdown(ends[0], Int32(SHUT_WR))
            ended = true
        }
        if case .done = receiver.step() { break }
    }
    for end in ends { close(end) }
    progress.store(0, ordering: .relaxed)
    bytesChecked.store(0, ordering: .relaxed)
}

signal(SIGPIPE, SIG_IGN)
let (role, options) = parse()
rehearse()
watchdog(options)
switch role {
case "server":
    let (descriptor, port) = listener(options)
    announce("port \(port)")
    serve(descriptor)
    while active.load(ordering: .relaxed) > 0 { usleep(1000) }
    close(descriptor)
    announce(
        "{\"connections\": \(connectionsDone.load(ordering: .relaxed)), "
            + "\"bytesChecked\": \(bytesChecked.load(ordering: .relaxed))}")
case "client":
    runClient(options)
case "both":
    let (descriptor, port) = listener(options)
    let server = startThread { serve(descriptor) }
    var client = options
    client.port = port
    runClient(client)
    join([server])
    close(descriptor)
default:
    usage()
}
