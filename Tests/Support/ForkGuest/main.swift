import CSocketSwitch
import Glibc
import Session
import SocketTable
import Switch

// ForkGuest SCENARIO SERVICE: a program that forks with sockets of the switch, calling the switch as the interposed
// libc functions and the hooks of fork do. It is one thread, as such programs are. Exit status 0: everything was right;
// else a line on standard error says what was not. SERVICE is the path of a running sockswitchd.

// MARK: Small tools

func check(_ condition: Bool, _ what: String, line: Int = #line) {
    if condition { return }
    let text = "ForkGuest \(CommandLine.arguments.dropFirst().first ?? ""), process \(getpid()), line \(line): \(what)\n"
    _ = text.withCString { write(2, $0, strlen($0)) }
    _exit(1)
}

/// fork(2) with the switch's hooks. The child never returns.
func spawn(_ child: () -> Void) -> pid_t {
    let fork = unsafeBitCast(dlsym(nil, "fork"), to: (@convention(c) () -> pid_t).self)
    switchBeforeFork()
    let pid = fork()
    if pid != 0 {
        switchAfterForkInParent()
        check(pid > 0, "fork")
        return pid
    }
    switchAfterForkInChild()
    alarm(120)
    child()
    _exit(0)
}

func expectSuccess(of pid: pid_t, line: Int = #line) {
    var status: Int32 = 0
    check(waitpid(pid, &status, 0) == pid && status == 0, "child \(pid) ended with status \(status)", line: line)
}

func slot(_ fd: Int32) -> Slot { sessionOf(socketIndex(fd) ?? 0).slot }
func isOnCompanion(_ fd: Int32) -> Bool { slot(fd).sendCuts.load() & 1 == 1 && slot(fd).receiveCuts.load() & 1 == 1 }

struct Listener {
    let fd: Int32
    var name = sockaddr_in()

    init() {
        fd = Int32(switchSocket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
        name.sin_family = sa_family_t(AF_INET)
        name.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = UInt32(MemoryLayout<sockaddr_in>.size)
        check(switchBind(fd, &name, length) == 0 && switchListen(fd, 64) == 0, "listen")
        check(ss_sys_getsockname(fd, &name, &length) == 0, "getsockname")
    }

    func connect() -> Int32 {
        var name = name
        let made = Int32(switchSocket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
        check(switchConnect(made, &name, UInt32(MemoryLayout<sockaddr_in>.size)) == 0, "connect")
        return made
    }

    func accept() -> Int32 {
        let accepted = Int32(switchAccept(fd, nil, nil, 0))
        check(accepted >= 0, "accept")
        return accepted
    }
}

func sendAll(_ fd: Int32, _ bytes: [UInt8]) {
    var done = 0
    while done < bytes.count {
        let sent = bytes.withUnsafeBytes { switchSend(fd, $0.baseAddress! + done, bytes.count - done, Int32(MSG_NOSIGNAL)) }
        check(sent > 0, "send: \(sent)")
        done += sent
    }
}

func receiveExactly(_ fd: Int32, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
        let got = bytes.withUnsafeMutableBytes { switchReceive(fd, $0.baseAddress! + done, count - done, 0) }
        check(got > 0, "receive: \(got)")
        done += got
    }
    return bytes
}

func pattern(_ seed: Int, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: (seed + $0) &* 2_654_435_761 >> 7) } }

/// Sends and has it sent back, and compares.
func ask(_ fd: Int32, _ rounds: Int, from seed: Int = 0) {
    for round in 0..<rounds {
        let bytes = pattern(seed + round, 1 + (seed + round) * 37 % 2000)
        sendAll(fd, bytes)
        check(receiveExactly(fd, bytes.count) == bytes, "round \(round): other bytes came back")
    }
}

/// Talks until both directions are on the companion.
func askUntilOnCompanion(_ fd: Int32) {
    let start = ss_monotonic_ns()
    var seed = 0
    while !isOnCompanion(fd) {
        ask(fd, 2, from: seed)
        seed += 2
        check(ss_monotonic_ns() - start < 60_000_000_000, "never upgraded: reason \(slot(fd).reason.load())")
        usleep(1000)
    }
}

/// Sends everything back until the end of the stream.
func echo(_ fd: Int32) {
    var bytes = [UInt8](repeating: 0, count: 4096)
    while true {
        let got = bytes.withUnsafeMutableBytes { switchReceive(fd, $0.baseAddress!, 4096, 0) }
        check(got >= 0, "receive: \(got)")
        if got == 0 { return }
        sendAll(fd, Array(bytes.prefix(got)))
    }
}

/// Both ends in this process, upgraded.
func upgradedPair(_ listener: Listener) -> (client: Int32, server: Int32) {
    let client = listener.connect()
    let server = listener.accept()
    let start = ss_monotonic_ns()
    var seed = 0
    while !isOnCompanion(client) || !isOnCompanion(server) {
        for (from, to) in [(client, server), (server, client)] {
            let bytes = pattern(seed, 100)
            sendAll(from, bytes)
            check(receiveExactly(to, 100) == bytes, "other bytes")
            seed += 1
        }
        check(ss_monotonic_ns() - start < 60_000_000_000, "never upgraded: reasons \(slot(client).reason.load()), \(slot(server).reason.load())")
        usleep(1000)
    }
    return (client, server)
}

/// A child that connects, talks until it is on the companion, and some more.
func clientProcess(_ listener: Listener, firstPiece: Int = 0) -> pid_t {
    spawn {
        _ = switchClose(listener.fd)
        let fd = listener.connect()
        if firstPiece > 0 {
            sendAll(fd, pattern(7, firstPiece))
            check(receiveExactly(fd, firstPiece) == pattern(7, firstPiece), "first piece")
        }
        askUntilOnCompanion(fd)
        let onTCP = slot(fd).tcpBytesSent.load()
        ask(fd, 200)
        check(slot(fd).tcpBytesSent.load() == onTCP, "bytes over TCP after the upgrade")
        check(switchClose(fd) == 0, "close")
    }
}

// MARK: Scenarios

/// The parent keeps one end, the child the other, of a connection that was upgraded before the fork.
func inherited() {
    let listener = Listener()
    let (client, server) = upgradedPair(listener)
    let received = slot(client).receivePosition.load()
    let onTCP = slot(client).tcpBytesSent.load()
    let child = spawn {
        _ = switchClose(client)
        _ = switchClose(listener.fd)
        let onTCP = slot(server).tcpBytesSent.load()
        echo(server)
        check(slot(server).tcpBytesSent.load() == onTCP, "the child sent over TCP")
        check(switchClose(server) == 0, "close")
    }
    check(switchClose(server) == 0, "close")
    ask(client, 300)
    check(isOnCompanion(client) && slot(client).tcpBytesSent.load() == onTCP, "the parent sent over TCP")
    check(slot(client).receivePosition.load() > received, "nothing came over the companion")
    check(switchClose(client) == 0, "close")
    expectSuccess(of: child)
}

/// Parent and child write into, and then read from, the same socket in turn: one stream.
func shared() {
    let listener = Listener()
    let (client, server) = upgradedPair(listener)
    for round in 0..<20 {
        let child = spawn {
            sendAll(client, pattern(round, 700))
            check(receiveExactly(client, 300) == pattern(round, 300), "the child's part")
        }
        sendAll(server, pattern(round, 300) + pattern(round + 1, 500))
        check(receiveExactly(server, 700) == pattern(round, 700), "what the child sent")
        expectSuccess(of: child)
        sendAll(client, pattern(round + 2, 900))
        check(receiveExactly(client, 500) == pattern(round + 1, 500), "what the child left")
        check(receiveExactly(server, 900) == pattern(round + 2, 900), "what the parent sent")
    }
    check(isOnCompanion(client) && isOnCompanion(server), "left the companion")
}

/// PostgreSQL: accept, fork, the parent closes the connection, the child the listener; then it is worth a companion.
func serverPerConnection() {
    let listener = Listener()
    let clients = (0..<3).map { _ in clientProcess(listener) }
    let workers = clients.map { _ in
        let connection = listener.accept()
        let worker = spawn {
            _ = switchClose(listener.fd)
            echo(connection)
            check(isOnCompanion(connection), "the child's connection is not on the companion: \(slot(connection).reason.load())")
            check(switchClose(connection) == 0, "close")
        }
        check(switchClose(connection) == 0, "close")
        return worker
    }
    for pid in clients + workers { expectSuccess(of: pid) }
}

/// nginx: workers inherit the listener and accept by themselves.
func workers() {
    let listener = Listener()
    let workers = (0..<2).map { _ in
        spawn {
            for _ in 0..<2 {
                let connection = listener.accept()
                echo(connection)
                check(isOnCompanion(connection), "not on the companion: \(slot(connection).reason.load())")
                _ = switchClose(connection)
            }
        }
    }
    let clients = (0..<4).map { _ in clientProcess(listener) }
    for pid in clients + workers { expectSuccess(of: pid) }
}

/// The connection has been offered when its process forks: the child begins anew.
func offered() {
    let listener = Listener()
    let client = clientProcess(listener, firstPiece: 64)
    let connection = listener.accept()
    // Four pieces received are worth a companion; the client, which has sent once, does not think so yet.
    var first: [UInt8] = []
    for _ in 0..<4 { first += receiveExactly(connection, 16) }
    let record = sessionOf(socketIndex(connection) ?? 0).connection
    check(record.pointee.companionPhase == CompanionPhase.offered, "phase \(record.pointee.companionPhase)")
    let worker = spawn {
        check(record.pointee.companionPhase == CompanionPhase.none, "phase \(record.pointee.companionPhase) in the child")
        _ = switchClose(listener.fd)
        sendAll(connection, first)
        echo(connection)
        check(isOnCompanion(connection), "not on the companion: \(slot(connection).reason.load())")
    }
    check(switchClose(connection) == 0, "close")
    for pid in [client, worker] { expectSuccess(of: pid) }
}

/// A child that held the socket is killed: what it held is taken back, and the socket can be upgraded.
func killed() {
    let listener = Listener()
    let client = clientProcess(listener)
    let connection = listener.accept()
    let holder = spawn { while true { pause() } }
    // Killed before it has run at all it would be taken back, too, but later.
    let entry = FamilyArena(privateState.pointee.arena!).process(Int(privateState.pointee.reservedChild))
    while entry.pid.load() & ProcessEntry.reserved != 0 { usleep(1000) }
    check(slot(connection).holders.load() == 2, "holders \(slot(connection).holders.load())")
    check(kill(holder, SIGKILL) == 0 && waitpid(holder, nil, 0) == holder, "kill")
    echo(connection)
    check(slot(connection).holders.load() == 1, "holders \(slot(connection).holders.load())")
    check(isOnCompanion(connection), "not on the companion: \(slot(connection).reason.load())")
    expectSuccess(of: client)
}

/// A socket that two processes hold is not upgraded, and says why.
func heldByTwo() {
    let listener = Listener()
    let client = listener.connect()
    let server = listener.accept()
    let holder = spawn { while true { pause() } }
    for round in 0..<50 {
        for (from, to) in [(client, server), (server, client)] {
            sendAll(from, pattern(round, 500))
            check(receiveExactly(to, 500) == pattern(round, 500), "other bytes")
        }
    }
    for fd in [client, server] {
        check(slot(fd).mode.load() == Slot.Mode.plain && slot(fd).sendCuts.load() == 0, "upgraded")
        check(slot(fd).reason.load() == Reason.sharedBeforeUpgrade.rawValue, "reason \(slot(fd).reason.load())")
    }
    kill(holder, SIGKILL)
    waitpid(holder, nil, 0)
}

/// redis while it saves: the connection is offered, a child that holds it is forked, then its companion is connected. It
/// waits, and moves once the child has ended.
func heldWhileConnecting() {
    let listener = Listener()
    let client = clientProcess(listener, firstPiece: 64)
    let connection = listener.accept()
    var first: [UInt8] = []
    for _ in 0..<4 { first += receiveExactly(connection, 16) }
    let record = sessionOf(socketIndex(connection) ?? 0).connection
    check(record.pointee.companionPhase == CompanionPhase.offered, "phase \(record.pointee.companionPhase)")
    let holder = spawn { while true { pause() } }
    sendAll(connection, first)
    var bytes = [UInt8](repeating: 0, count: 4096)
    func echoOnce() {
        let got = bytes.withUnsafeMutableBytes { switchReceive(connection, $0.baseAddress!, 4096, 0) }
        check(got > 0, "receive: \(got)")
        sendAll(connection, Array(bytes.prefix(got)))
    }
    while record.pointee.companionPhase == CompanionPhase.offered { echoOnce() }
    for _ in 0..<50 {
        echoOnce()
        check(slot(connection).mode.load() == Slot.Mode.plain, "upgraded")
        check(slot(connection).reason.load() == Reason.sharedBeforeUpgrade.rawValue, "reason \(slot(connection).reason.load())")
    }
    kill(holder, SIGKILL)
    waitpid(holder, nil, 0)
    echo(connection)
    check(isOnCompanion(connection), "not on the companion: \(slot(connection).reason.load())")
    expectSuccess(of: client)
}

alarm(150)
signal(SIGPIPE, SIG_IGN)
check(CommandLine.arguments.count == 3, "usage: ForkGuest SCENARIO SERVICE")
switchStart(service: UnsafePointer(strdup(CommandLine.arguments[2])), policy: nil, wait: nil, upgrade: nil)
switch CommandLine.arguments[1] {
case "inherited": inherited()
case "shared": shared()
case "serverPerConnection": serverPerConnection()
case "workers": workers()
case "offered": offered()
case "killed": killed()
case "heldByTwo": heldByTwo()
case "heldWhileConnecting": heldWhileConnecting()
default: check(false, "no such scenario")
}
