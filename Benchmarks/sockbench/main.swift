// Measures one connection, or the making of many. An ordinary TCP (or Unix socket) program: Benchmarks/run.py starts both
// ends with or without the switch, and looks whether the switch really carried the bytes.
//
//     sockbench server|client --mode pingpong|oneway|connect --transport tcp|unix --address PORT|PATH
//         [--cpu N] [--size BYTES] [--count N] [--warm-up N] [--spin] [--yield] [--hold] [--batch N]
//     sockbench processors        how long a cache line takes from CPU 0 to CPU 1 and back: the floor of every round trip
//
// The client prints one line of JSON (nanoseconds, CPU seconds of this process); the server prints one at the end.

import CProgramSupport
import Glibc
import Synchronization

func parse() -> Options {
    var options = Options()
    var arguments = Array(CommandLine.arguments.dropFirst())
    guard !arguments.isEmpty else { stop("say server or client") }
    options.role = arguments.removeFirst()
    while !arguments.isEmpty {
        let name = arguments.removeFirst()
        switch name {
        case "--spin": options.spin = true
        case "--yield": options.yield = true
        case "--hold": options.hold = true
        default:
            guard !arguments.isEmpty else { stop("\(name) needs a value") }
            let value = arguments.removeFirst()
            switch name {
            case "--mode": options.mode = value
            case "--transport": options.transport = value
            case "--address": options.address = value
            case "--cpu": options.cpu = Int(value) ?? -1
            case "--size": options.size = Int(value) ?? 64
            case "--count": options.count = Int(value) ?? 100_000
            case "--warm-up": options.warmUp = Int(value) ?? 2_000
            case "--batch": options.batch = Int(value) ?? 0
            default: stop("unknown option \(name)")
            }
        }
    }
    return options
}

func listen(_ options: Options) -> Int32 {
    let descriptor = makeSocket(options)
    var one: Int32 = 1
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, 4)
    if withAddress(options, { bind(descriptor, $0, $1) }) != 0 { stopForErrno("bind") }
    if Glibc.listen(descriptor, 512) != 0 { stopForErrno("listen") }
    return descriptor
}

func connect(_ options: Options) -> Int32 {
    let descriptor = makeSocket(options)
    if withAddress(options, { Glibc.connect(descriptor, $0, $1) }) != 0 { stopForErrno("connect") }
    return descriptor
}

let bulk = 1 << 20

func serve(_ options: Options) {
    let listener = listen(options)
    say("listening")
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: max(bulk, options.size), alignment: 4096)
    memset(buffer, 1, max(bulk, options.size))
    if options.mode == "connect" {
        for _ in 0..<options.count + options.warmUp {
            let descriptor = accept(listener, nil, nil)
            if descriptor < 0 { stopForErrno("accept") }
            let channel = Channel(descriptor: descriptor, spin: false, yield: false)
            if channel.receiveAll(buffer, options.size) { channel.send(buffer, options.size) }
            if channel.receive(buffer, 1) != 0 { stop("the client said more") }
            close(descriptor)
        }
        return say("{\"cpuSeconds\": \(program_cpu_seconds())}")
    }
    let descriptor = accept(listener, nil, nil)
    if descriptor < 0 { stopForErrno("accept") }
    prepare(descriptor, options)
    let channel = Channel(descriptor: descriptor, spin: options.spin, yield: options.yield)
    for _ in 0..<options.warmUp {
        guard channel.receiveAll(buffer, options.size) else { stop("the client went") }
        channel.send(buffer, options.size)
    }
    let cpu = program_cpu_seconds()
    if options.mode == "pingpong" {
        for _ in 0..<options.count {
            guard channel.receiveAll(buffer, options.size) else { stop("the client went") }
            channel.send(buffer, options.size)
        }
    } else {
        var left = options.count * options.size
        while left > 0 {
            let result = channel.receive(buffer, min(bulk, left))
            if result == 0 { stop("the client went") }
            left -= result
        }
        channel.send(buffer, 1)
    }
    let used = program_cpu_seconds() - cpu
    say("{\"cpuSeconds\": \(used)}")
    if options.hold { _ = Channel(descriptor: descriptor, spin: false, yield: false).waitForEnd(buffer) }
    close(descriptor)
}

extension Channel {
    /// Sleeps until the other end closes.
    func waitForEnd(_ buffer: UnsafeMutableRawPointer) -> Bool {
        _ = program_set_nonblocking(descriptor, 0)
        return receive(buffer, 1) == 0
    }
}

func result(_ samples: Samples, seconds: Double, cpu: Double, count: Int, bytes: Int) {
    let sorted = samples.sorted()
    var text = "{\"count\": \(count), \"seconds\": \(seconds), \"perSecond\": \(Double(count) / seconds), "
    text += "\"bytesPerSecond\": \(Double(bytes) / seconds), \"cpuSeconds\": \(cpu)"
    if !sorted.isEmpty {
        for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("maximum", 1.0)] {
            text += ", \"\(name)\": \(percentile(sorted, part))"
        }
    }
    say(text + "}")
}

func ask(_ options: Options) {
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: max(bulk, options.size), alignment: 4096)
    memset(buffer, 2, max(bulk, options.size))
    var samples = Samples(capacity: max(1, options.count))
    if options.mode == "connect" {
        for _ in 0..<options.warmUp { oneConnection(options, buffer) }
        let batch = options.batch > 0 ? options.batch : options.count
        if options.batch > 0 { say("warm") }
        var seconds = 0.0, cpu = 0.0, left = options.count
        while left > 0 {
            waitForTurn(options)
            let cpuBefore = program_cpu_seconds()
            let started = nanoseconds()
            var last = started
            for _ in 0..<min(batch, left) {
                oneConnection(options, buffer)
                let now = nanoseconds()
                samples.add(now - last)
                last = now
            }
            left -= batch
            let took = Double(last - started) * 1e-9
            seconds += took
            cpu += program_cpu_seconds() - cpuBefore
            if options.batch > 0 { say("{\"seconds\": \(took)}") }
        }
        return result(samples, seconds: seconds, cpu: cpu, count: options.count, bytes: 0)
    }
    let descriptor = connect(options)
    prepare(descriptor, options)
    let channel = Channel(descriptor: descriptor, spin: options.spin, yield: options.yield)
    for _ in 0..<options.warmUp {
        channel.send(buffer, options.size)
        guard channel.receiveAll(buffer, options.size) else { stop("the server went") }
    }
    let cpu = program_cpu_seconds()
    let started = nanoseconds()
    var last = started
    if options.mode == "pingpong" {
        for _ in 0..<options.count {
            channel.send(buffer, options.size)
            guard channel.receiveAll(buffer, options.size) else { stop("the server went") }
            let now = nanoseconds()
            samples.add(now - last)
            last = now
        }
    } else {
        for _ in 0..<options.count { channel.send(buffer, options.size) }
        guard channel.receiveAll(buffer, 1) else { stop("the server went") }
        last = nanoseconds()
    }
    let seconds = Double(last - started) * 1e-9
    let used = program_cpu_seconds() - cpu
    let rounds = options.mode == "pingpong" ? 2 : 1
    result(samples, seconds: seconds, cpu: used, count: options.count, bytes: options.count * options.size * rounds)
    if options.hold {
        var byte: UInt8 = 0
        _ = read(0, &byte, 1)
    }
    close(descriptor)
}

/// With `--batch`: waits for a byte of input, so that several of these programs can take turns.
func waitForTurn(_ options: Options) {
    guard options.batch > 0 else { return }
    var byte: UInt8 = 0
    if read(0, &byte, 1) != 1 { stop("nobody gives turns") }
}

func oneConnection(_ options: Options, _ buffer: UnsafeMutableRawPointer) {
    let descriptor = connect(options)
    let channel = Channel(descriptor: descriptor, spin: false, yield: false)
    channel.send(buffer, options.size)
    guard channel.receiveAll(buffer, options.size) else { stop("the server went") }
    close(descriptor)
}

let ball = Atomic<Int>(0)
let throwCount = 1_000_000

/// The median of nine times a hundred thousand round trips or so.
func measureProcessors() {
    var thread = pthread_t()
    let other: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = { _ in
        if program_pin(1) != 0 { stopForErrno("sched_setaffinity") }
        for number in 1...throwCount {
            while ball.load(ordering: .acquiring) != 2 * number - 1 {}
            ball.store(2 * number, ordering: .releasing)
        }
        return nil
    }
    if program_pin(0) != 0 || pthread_create(&thread, nil, other, nil) != 0 { stopForErrno("two CPUs") }
    var times: [Double] = []
    let part = throwCount / 10
    var start = nanoseconds()
    for number in 1...throwCount {
        ball.store(2 * number - 1, ordering: .releasing)
        while ball.load(ordering: .acquiring) != 2 * number {}
        if number % part == 0 {
            let now = nanoseconds()
            if number > part { times.append(Double(now - start) / Double(part)) }
            start = now
        }
    }
    pthread_join(thread, nil)
    say("{\"cacheLineNanoseconds\": \(times.sorted()[times.count / 2])}")
}

signal(SIGPIPE, SIG_IGN)
if CommandLine.arguments.dropFirst().first == "processors" {
    measureProcessors()
    exit(0)
}
let options = parse()
if options.cpu >= 0 && program_pin(Int32(options.cpu)) != 0 { stopForErrno("sched_setaffinity") }
switch options.role {
case "server": serve(options)
case "client": ask(options)
default: stop("say server or client")
}
