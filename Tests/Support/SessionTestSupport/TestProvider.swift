import CSocketSwitch
import Glibc
import StreamRing

// A SAN provider that cannot map memory. It offers WSPSend, WSPRecv, WSPRegisterRdmaMemory, WSPDeregisterRdmaMemory and
// WSPRdmaWrite and nothing else. Its network is this process: a thread carries operations out late and in bursts, in
// order for each socket (like an RDMA queue pair), and reports their completion later still.
//
// What it promises beyond that is what an RDMA network promises: writes, messages and rings of one socket take effect
// in the order in which they were posted; an aligned word is never torn; of one 64-byte line the words at lower addresses
// (which announce) appear after those at higher ones (which are announced). A completed operation has taken effect.

/// The calls of the provider that a test can make fail.
package enum TestCall: Hashable, Sendable {
    case socket, bind, send, receive, ring, overlappedResult, notification, register, rdmaWrite
    /// The write is posted, and completes with the error; everything behind it is flushed with ECANCELED.
    case rdmaWriteCompletion
    /// The same for a message.
    case sendCompletion
}

/// The network of the provider: every socket, the delivery thread, the errors that were ordered.
package final class TestFabric: @unchecked Sendable {
    package static let shared = TestFabric()

    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let news = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    fileprivate var sockets: [SOCKET: TestSocket] = [:]
    fileprivate var upCalls = WSPUPCALLTABLE()
    private var nextSocket: SOCKET = 1000
    private var nextKey: UInt64 = 77
    private var random = RandomSource(1)
    private var failures: [TestCall: (countdown: Int, error: Int32)] = [:]
    private var queued = 0
    private var isDelivering = false
    /// Calls made, by kind.
    private var counts: [TestCall: Int] = [:]

    private init() {
        mutex.initialize(to: pthread_mutex_t())
        news.initialize(to: pthread_cond_t())
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(news, nil)
    }

    /// Sets the seed of delays and bursts.
    package func reseed(_ seed: UInt64) { locked { random = RandomSource(seed) } }

    /// The `nth` call from now on (1 = the next one) fails with `error`, once.
    package func fail(_ call: TestCall, nth: Int, error: Int32 = EIO) { locked { failures[call] = (nth, error) } }
    package func forgetFailures() { locked { failures = [:] } }
    package func isFailurePending(_ call: TestCall) -> Bool { locked { failures[call] != nil } }
    package func count(of call: TestCall) -> Int { locked { counts[call] ?? 0 } }
    package var openSockets: Int { locked { sockets.count } }
    package var registeredRegions: Int { locked { sockets.values.reduce(0) { $0 + $1.regions.count } } }

    fileprivate func locked<T>(_ body: () -> T) -> T {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body()
    }

    /// Under the lock: the error ordered for this call, or nil.
    fileprivate func failure(_ call: TestCall) -> Int32? {
        counts[call, default: 0] += 1
        guard var plan = failures[call] else { return nil }
        plan.countdown -= 1
        if plan.countdown > 0 {
            failures[call] = plan
            return nil
        }
        failures[call] = nil
        return plan.error
    }

    fileprivate func makeSocket() -> TestSocket {
        nextSocket += 1
        let made = TestSocket(id: nextSocket)
        sockets[nextSocket] = made
        return made
    }

    fileprivate func makeKey() -> UInt64 {
        nextKey += 1
        return nextKey
    }

    /// Under the lock.
    fileprivate func post(_ socket: TestSocket, _ operation: TestOperation) {
        socket.queue.append(operation)
        queued += 1
        if !isDelivering {
            isDelivering = true
            startThread { TestFabric.shared.deliver() }
        }
        pthread_cond_signal(news)
    }

    // MARK: The delivery thread

    private func deliver() {
        pthread_mutex_lock(mutex)
        while true {
            while queued == 0 { pthread_cond_wait(news, mutex) }
            let busy = sockets.values.filter { !$0.queue.isEmpty }.sorted { $0.id < $1.id }
            let socket = busy[Int(random.next(below: UInt64(busy.count)))]
            let burst = random.oneIn(4) ? Int.max : Int(random.next(below: 16)) + 1
            let (before, between) = (delay(), random.oneIn(3) ? delay() : 0)
            rest(before)
            var done: [TestOperation] = []
            while done.count < burst, !socket.queue.isEmpty {
                var operation = socket.queue.removeFirst()
                queued -= 1
                operation.result = socket.isClosed ? ECANCELED : carryOut(socket, operation)
                if operation.result != 0 { lose(socket, operation.result) }
                done.append(operation)
            }
            rest(between)
            for operation in done { complete(operation.overlapped, operation.result, operation.count) }
            // "Readable when progress is possible": the end of the connection is such progress.
            if socket.error != 0, !socket.isClosed { raise(socket) }
        }
    }

    /// Microseconds.
    private func delay() -> UInt32 {
        if random.oneIn(2) { return 0 }
        if random.oneIn(50) { return UInt32(random.next(below: 3000)) }
        return UInt32(random.next(below: 60))
    }

    private func rest(_ microseconds: UInt32) {
        if microseconds == 0 { return }
        pthread_mutex_unlock(mutex)
        usleep(microseconds)
        pthread_mutex_lock(mutex)
    }

    /// The connection of a socket is lost: what it and its peer wait to receive fails.
    private func lose(_ socket: TestSocket, _ error: Int32) {
        if socket.error == 0 { socket.error = error }
        for end in [socket, socket.peer] {
            guard let end, let (overlapped, _) = end.receive else { continue }
            end.receive = nil
            complete(overlapped, ECONNRESET, 0)
        }
    }

    fileprivate func raise(_ socket: TestSocket) {
        var one: UInt64 = 1
        _ = ss_sys_write(socket.notification, &one, 8)
    }

    private func complete(_ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: Int32, _ count: Int) {
        guard let overlapped else { return }
        overlapped.pointee.InternalHigh = UInt(count)
        overlapped.pointee.Error = error
        overlapped.pointee.Internal = 1
    }

    private func carryOut(_ socket: TestSocket, _ operation: TestOperation) -> Int32 {
        if socket.error != 0 { return ECANCELED }
        if operation.failsWith != 0 { return operation.failsWith }
        guard let peer = socket.peer, !peer.isClosed else { return ECONNRESET }
        switch operation.kind {
        case .ring:
            raise(peer)
        case .message(let bytes):
            peer.inbox.append(bytes)
            if let (overlapped, buffer) = peer.receive {
                peer.receive = nil
                complete(overlapped, 0, take(peer, buffer))
            }
        case .write(let source, let key, let offset):
            guard let region = peer.regions[key], region.flags & UInt32(MEM_WRITE) != 0,
                offset >= 0, operation.count <= region.length - offset
            else { return EACCES }
            write(region.base + offset, source, operation.count, offset: offset)
        }
        return 0
    }

    private func write(_ target: UnsafeMutableRawPointer, _ source: UnsafeMutableRawPointer, _ count: Int, offset: Int) {
        guard offset < Window.controlBytes else {
            memcpy(target, source, count)
            return
        }
        var at = count & ~7
        while at > 0 {
            at -= 8
            Word(target, at).store(source.load(fromByteOffset: at, as: UInt64.self))
        }
    }

    fileprivate func take(_ socket: TestSocket, _ buffer: UnsafeMutableRawPointer) -> Int {
        let message = socket.inbox.removeFirst()
        message.withUnsafeBytes { buffer.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        return message.count
    }

    /// Under the lock: nothing of the socket's is touched afterwards.
    fileprivate func close(_ socket: TestSocket) {
        socket.isClosed = true
        queued -= socket.queue.count
        for operation in socket.queue { complete(operation.overlapped, ECANCELED, 0) }
        socket.queue = []
        if let (overlapped, _) = socket.receive { complete(overlapped, ECANCELED, 0) }
        socket.receive = nil
        socket.regions = [:]
        if let peer = socket.peer, let (overlapped, _) = peer.receive {
            peer.receive = nil
            complete(overlapped, ECONNRESET, 0)
        }
        socket.peer?.peer = nil
        _ = Glibc.close(socket.notification)
        sockets[socket.id] = nil
    }
}

private struct TestOperation {
    enum Kind {
        case ring
        case message([UInt8])
        case write(source: UnsafeMutableRawPointer, key: UInt64, offset: Int)
    }
    var kind: Kind
    var count = 0
    var overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?
    var failsWith: Int32 = 0
    var result: Int32 = 0
}

private final class TestSocket {
    let id: SOCKET
    weak var peer: TestSocket?
    let notification = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
    var handle: SOCKET = 0
    var regions: [UInt64: (base: UnsafeMutableRawPointer, length: Int, flags: UInt32)] = [:]
    var queue: [TestOperation] = []
    var inbox: [[UInt8]] = []
    var receive: (UnsafeMutablePointer<WSAOVERLAPPED>, UnsafeMutableRawPointer)?
    /// Not 0: the connection is lost; every operation fails.
    var error: Int32 = 0
    var isClosed = false

    init(id: SOCKET) { self.id = id }
}

/// Connects two sockets of the provider. 0 or an errno.
package func testProviderPair(_ a: SOCKET, _ b: SOCKET) -> Int32 {
    let fabric = TestFabric.shared
    return fabric.locked {
        guard let one = fabric.sockets[a], let two = fabric.sockets[b], one !== two else { return ENOTSOCK }
        one.peer = two
        two.peer = one
        return 0
    }
}

/// Whether the provider's side of the connection is in its error state.
package func testProviderIsLost(_ socket: SOCKET) -> Bool {
    TestFabric.shared.locked { TestFabric.shared.sockets[socket].map { $0.error != 0 } ?? true }
}

// MARK: The calls

package func testProviderStartupEx(
    _ version: UInt32, _ info: UnsafePointer<WSAPROTOCOL_INFO>?, _ upCalls: UnsafePointer<WSPUPCALLTABLE>?,
    _ table: UnsafeMutablePointer<WSPPROC_TABLE>?
) -> Int32 {
    guard let upCalls, let table else { return EINVAL }
    TestFabric.shared.upCalls = upCalls.pointee
    table.pointee.lpWSPSocket = { _, _, _, info, _, _, error in
        let fabric = TestFabric.shared
        return fabric.locked {
            if let failure = fabric.failure(.socket) {
                error?.pointee = failure
                return UInt.max
            }
            let made = fabric.makeSocket()
            made.handle = fabric.upCalls.lpWPUCreateSocketHandle(info?.pointee.dwCatalogEntryId ?? 0, made.id, error)
            return made.id
        }
    }
    table.pointee.lpWSPBind = { socket, _, _, error in
        withSocket(socket, .bind, error) { _ in 0 }
    }
    table.pointee.lpWSPCloseSocket = { socket, error in
        let fabric = TestFabric.shared
        let handle = fabric.locked { () -> SOCKET? in
            guard let found = fabric.sockets[socket] else { return nil }
            fabric.close(found)
            return found.handle
        }
        guard let handle else { return failed(error, ENOTSOCK) }
        return fabric.upCalls.lpWPUCloseSocketHandle(handle, error)
    }
    table.pointee.lpWSPSend = testProviderSend
    table.pointee.lpWSPRecv = testProviderReceive
    table.pointee.lpWSPGetOverlappedResult = { socket, overlapped, transferred, _, _, error in
        let fabric = TestFabric.shared
        return fabric.locked {
            if let failure = fabric.failure(.overlappedResult) {
                error?.pointee = failure
                return 0
            }
            guard let overlapped else { return 0 }
            guard overlapped.pointee.Internal != 0 else {
                error?.pointee = EINPROGRESS
                return 0
            }
            transferred?.pointee = Int(overlapped.pointee.InternalHigh)
            error?.pointee = overlapped.pointee.Error
            return overlapped.pointee.Error == 0 ? 1 : 0
        }
    }
    table.pointee.lpWSPIoctl = testProviderIoctl
    return 0
}

private func failed(_ error: UnsafeMutablePointer<Int32>?, _ number: Int32) -> Int32 {
    error?.pointee = number
    return SOCKET_ERROR
}

/// Finds the socket, consults the ordered failures, runs `body` under the lock; it returns 0 or an errno.
private func withSocket(
    _ socket: SOCKET, _ call: TestCall, _ error: UnsafeMutablePointer<Int32>?, _ body: (TestSocket) -> Int32
) -> Int32 {
    let fabric = TestFabric.shared
    let number = fabric.locked { () -> Int32 in
        guard let found = fabric.sockets[socket] else { return ENOTSOCK }
        return fabric.failure(call) ?? body(found)
    }
    return number == 0 ? 0 : failed(error, number)
}

private func testProviderSend(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ sent: UnsafeMutablePointer<Int>?, _ flags: UInt32,
    _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    if flags & UInt32(SOCKSWITCH_SEND_WAKES_SELF) != 0 {
        let fabric = TestFabric.shared
        return fabric.locked { fabric.sockets[socket].map(fabric.raise) != nil } ? 0 : failed(error, ENOTSOCK)
    }
    let length = (0..<Int(count)).reduce(0) { $0 + buffers![$1].len }
    return withSocket(socket, length == 0 ? .ring : .send, error) { socket in
        if socket.error != 0 || socket.peer == nil { return ECONNRESET }
        if length == 0 {
            TestFabric.shared.post(socket, TestOperation(kind: .ring))
            return 0
        }
        guard length <= 256 else { return EMSGSIZE }
        var bytes: [UInt8] = []
        for index in 0..<Int(count) {
            bytes += UnsafeRawBufferPointer(start: buffers![index].buf, count: buffers![index].len)
        }
        var operation = TestOperation(kind: .message(bytes), count: length, overlapped: overlapped)
        operation.failsWith = TestFabric.shared.failure(.sendCompletion) ?? 0
        TestFabric.shared.post(socket, operation)
        sent?.pointee = length
        return 0
    }
}

private func testProviderReceive(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ received: UnsafeMutablePointer<Int>?,
    _ flags: UnsafeMutablePointer<UInt32>?, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    withSocket(socket, .receive, error) { socket in
        if count == 0 {
            if socket.error != 0 { return ECONNRESET }
            var rings: UInt64 = 0
            return ss_sys_read(socket.notification, &rings, 8) == 8 ? 0 : EAGAIN
        }
        guard count == 1, let buffer = buffers?.pointee.buf, buffers!.pointee.len >= 256, let overlapped else { return EMSGSIZE }
        overlapped.pointee.Internal = 0
        if socket.inbox.isEmpty {
            socket.receive = (overlapped, buffer)
            return EINPROGRESS
        }
        let length = TestFabric.shared.take(socket, buffer)
        overlapped.pointee.InternalHigh = UInt(length)
        overlapped.pointee.Error = 0
        overlapped.pointee.Internal = 1
        received?.pointee = length
        return 0
    }
}

private func testProviderIoctl(
    _ socket: SOCKET, _ code: UInt32, _ input: UnsafeRawPointer?, _ inputSize: Int, _ output: UnsafeMutableRawPointer?,
    _ outputSize: Int, _ returned: UnsafeMutablePointer<Int>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    switch code {
    case UInt32(SIO_SOCKSWITCH_NOTIFICATION):
        return withSocket(socket, .notification, error) {
            output?.storeBytes(of: $0.notification, as: Int32.self)
            return 0
        }
    case UInt32(SIO_GET_EXTENSION_FUNCTION_POINTER):
        guard let input, let output else { return failed(error, EFAULT) }
        switch ss_extension_of(input) {
        case Int32(ss_extension_register_rdma_memory):
            let function: LPFN_WSPREGISTERRDMAMEMORY = testProviderRegister
            output.storeBytes(of: unsafeBitCast(function, to: UnsafeRawPointer.self), as: UnsafeRawPointer.self)
        case Int32(ss_extension_deregister_rdma_memory):
            let function: LPFN_WSPDEREGISTERRDMAMEMORY = testProviderDeregister
            output.storeBytes(of: unsafeBitCast(function, to: UnsafeRawPointer.self), as: UnsafeRawPointer.self)
        case Int32(ss_extension_rdma_write):
            let function: LPFN_WSPRDMAWRITE = testProviderRdmaWrite
            output.storeBytes(of: unsafeBitCast(function, to: UnsafeRawPointer.self), as: UnsafeRawPointer.self)
        default:
            return failed(error, EOPNOTSUPP)
        }
        returned?.pointee = 8
        return 0
    default:
        return failed(error, EOPNOTSUPP)
    }
}

private func testProviderRegister(
    _ socket: SOCKET, _ buffer: UnsafeMutableRawPointer?, _ length: Int, _ flags: UInt32,
    _ descriptor: UnsafeMutablePointer<SOCKSWITCH_RDMA_DESCRIPTOR>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    withSocket(socket, .register, error) { socket in
        guard let buffer, let descriptor else { return EFAULT }
        let key = TestFabric.shared.makeKey()
        socket.regions[key] = (buffer, length, flags)
        memset(descriptor, 0, 64)
        UnsafeMutableRawPointer(descriptor).storeBytes(of: key, as: UInt64.self)
        return 0
    }
}

private func testProviderDeregister(
    _ socket: SOCKET, _ descriptor: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>?, _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    let fabric = TestFabric.shared
    let known = fabric.locked { () -> Bool in
        guard let found = fabric.sockets[socket], let descriptor else { return false }
        return found.regions.removeValue(forKey: UnsafeRawPointer(descriptor).loadUnaligned(as: UInt64.self)) != nil
    }
    return known ? 0 : failed(error, EINVAL)
}

private func testProviderRdmaWrite(
    _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ target: UnsafePointer<SOCKSWITCH_RDMA_DESCRIPTOR>?,
    _ offset: Int, _ written: UnsafeMutablePointer<Int>?, _ flags: UInt32, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?,
    _ error: UnsafeMutablePointer<Int32>?
) -> Int32 {
    withSocket(socket, .rdmaWrite, error) { socket in
        if socket.error != 0 { return ECONNRESET }
        guard count == 1, let buffers, let source = buffers.pointee.buf, let target, let overlapped else { return EFAULT }
        overlapped.pointee.Internal = 0
        let key = UnsafeRawPointer(target).loadUnaligned(as: UInt64.self)
        var operation = TestOperation(
            kind: .write(source: source, key: key, offset: offset), count: buffers.pointee.len, overlapped: overlapped)
        operation.failsWith = TestFabric.shared.failure(.rdmaWriteCompletion) ?? 0
        TestFabric.shared.post(socket, operation)
        return EINPROGRESS
    }
}
