import CSocketSwitch
import Glibc
import ServiceProviders

/// A SAN provider that writes down every call between it and the switch, in both directions, with its arguments, and that
/// fails on command. Its network is this process: memory, doorbells and messages are those of the SharedMemory provider,
/// round which it is wrapped; pairing it does itself.
///
/// A line of the record is "#2 WSPBind 127.0.0.1:4711": the companion (numbered in the order in which the provider's
/// sockets are made), the call, its arguments, and " ! 105" when it failed. Calls within a call are indented.
///
/// For one thread. The table holds C functions, so there is one instance a process.
final class RecordingProvider: @unchecked Sendable {
    static let shared = RecordingProvider()

    struct Call {
        var companion: Int
        var name: String
        var arguments: String
        var depth: Int
        var error: Int32 = 0
        /// Asked, and nothing there: how often a caller polls is its own affair.
        var isIdle = false
        var line: String {
            let failure = error == 0 ? "" : " ! \(error)"
            return String(repeating: "  ", count: depth) + "#\(companion) \(name)"
                + (arguments.isEmpty ? "" : " \(arguments)") + failure
        }
    }

    /// The call to fail: the `occurrence`th of that name (1 …), or every one (0).
    struct Failure {
        var name: String
        var occurrence: Int
        var error: Int32
    }

    private struct Connecting {
        var local: SocketName
        var peer: SocketName
        /// Errno of the outcome, once there is one.
        var outcome: Int32?
        var isReported = false
    }

    private struct Offer {
        var asked: SOCKSWITCH_OFFER
        var local: SocketName
        var peer: SocketName
        var connector: SOCKET?
        /// Made before WSPAccept, when the connect had to be done at once.
        var made: SOCKET?
    }

    private struct Listening {
        var offers: [Offer] = []
        var failed: [SOCKSWITCH_OFFER_RESULT] = []
    }

    private(set) var calls: [Call] = []
    /// What broke the interface's rules: calls on sockets that are closed, unknown handles.
    private(set) var violations: [String] = []
    var failures: [Failure] = []
    /// WSPConnect is done when it returns, if the peer is there already.
    var connectsAtOnce = false
    /// The local addresses of the network: WSD-I5.
    var addresses: [(String, UInt32)] = [("127.0.0.1", 8), ("::1", 128)]
    var addressesChanged = false
    /// Answer to SIO_SOCKSWITCH_REASON; 0: not supported.
    var reason: Int32 = 0
    var hidesExtensions: Set<Int32> = []

    private var inner = WSPPROC_TABLE()
    private var upCalls = WSPUPCALLTABLE()
    private var depth = 0
    private var numbers: [SOCKET: Int] = [:]
    private var closed: Set<SOCKET> = []
    private var handles: [SOCKET: SOCKET] = [:]
    private var occurrences: [String: Int] = [:]
    private var baseSockets: [SOCKET: SOCKSWITCH_OFFER] = [:]
    private var connecting: [SOCKET: Connecting] = [:]
    private var listening: [SOCKET: Listening] = [:]
    private let eventWord = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    private let extensions = UnsafeMutablePointer<UnsafeRawPointer?>.allocate(capacity: Int(ss_extension_count))

    private init() {
        eventWord.initialize(to: 1)
        extensions.initialize(repeating: nil, count: Int(ss_extension_count))
    }

    /// After a restart: counts sockets from 1 again.
    func begin() {
        reset()
        numbers = [:]
        closed = []
        handles = [:]
        baseSockets = [:]
        connecting = [:]
        listening = [:]
    }

    /// Forgets the record, and the failures to come.
    func reset() {
        calls = []
        violations = []
        failures = []
        occurrences = [:]
        connectsAtOnce = false
        reason = 0
        addressesChanged = false
    }

    // MARK: Reading the record

    /// The record of one companion without idle polls.
    func lines(of companion: Int) -> [String] {
        calls.filter { $0.companion == companion && !$0.isIdle }.map(\.line)
    }

    var lines: [String] { calls.filter { !$0.isIdle }.map(\.line) }
    var madeCount: Int { numbers.count }
    /// The number of the socket that was made last.
    var lastMade: Int { numbers.values.max() ?? 0 }
    var openSockets: Int { numbers.count - closed.count }

    func companions(where test: (Call) -> Bool) -> [Int] { Set(calls.filter(test).map(\.companion)).sorted() }
    func count(_ name: String, of companion: Int? = nil) -> Int {
        calls.count { $0.name == name && (companion == nil || $0.companion == companion) }
    }

    // MARK: Writing it

    private func begin(_ socket: SOCKET, _ name: String, _ arguments: String = "") -> Int {
        if socket != 0, closed.contains(socket) { violations.append("\(name) on closed #\(numbers[socket] ?? 0)") }
        calls.append(Call(companion: numbers[socket] ?? 0, name: name, arguments: arguments, depth: depth))
        depth += 1
        occurrences[name, default: 0] += 1
        return calls.count - 1
    }

    /// The errno with which the call under way is to fail, or 0.
    private func injected(_ call: Int) -> Int32 { injected(calls[call].name) }

    private func injected(_ name: String) -> Int32 {
        failures.first { $0.name == name && ($0.occurrence == 0 || $0.occurrence == occurrences[name, default: 0]) }?.error ?? 0
    }

    private func end(_ call: Int, _ error: Int32) {
        depth -= 1
        calls[call].error = error
    }

    private func finish(_ call: Int, _ result: Int32, _ number: Int32, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
        end(call, result == SOCKET_ERROR ? number : 0)
        if result == SOCKET_ERROR { error?.pointee = number }
        return result
    }

    /// A call that does nothing itself but pass on, or fail.
    private func pass(
        _ socket: SOCKET, _ name: String, _ arguments: String, _ error: UnsafeMutablePointer<Int32>?,
        _ body: (UnsafeMutablePointer<Int32>) -> Int32
    ) -> Int32 {
        let call = begin(socket, name, arguments)
        var number = injected(call)
        let result = number != 0 ? SOCKET_ERROR : body(&number)
        return finish(call, result, number, error)
    }

    private func raiseEvent() { eventWord.pointee += 1 }

    // MARK: Up-calls

    private func createHandle(_ entry: UInt32, _ context: UInt, _ error: UnsafeMutablePointer<Int32>?) -> SOCKET {
        numbers[context] = numbers.count + 1
        let call = begin(context, "WPUCreateSocketHandle", "catalog \(entry)")
        let handle = upCalls.lpWPUCreateSocketHandle(entry, context, error)
        if handle != SOCKET.max {
            if handles[handle] != nil { violations.append("handle \(handle) given twice") }
            handles[handle] = context
            var back: UInt = 0
            var number: Int32 = 0
            if upCalls.lpWPUQuerySocketHandleContext(handle, &back, &number) != 0 || back != context {
                violations.append("WPUQuerySocketHandleContext of \(handle)")
            }
        }
        end(call, handle == SOCKET.max ? ENOBUFS : 0)
        return handle
    }

    private func closeHandle(_ handle: SOCKET, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
        let call = begin(handles[handle] ?? 0, "WPUCloseSocketHandle")
        if handles.removeValue(forKey: handle) == nil { violations.append("handle \(handle) closed twice") }
        let result = upCalls.lpWPUCloseSocketHandle(handle, error)
        end(call, result)
        return result
    }

    // MARK: Starting

    static let startup: LPWSPSTARTUPEX = { version, info, upCalls, table in
        recorder.start(version, info, upCalls, table)
    }

    private(set) var protocolInfo = WSAPROTOCOL_INFO()

    private func start(
        _ version: UInt32, _ info: UnsafePointer<WSAPROTOCOL_INFO>?, _ calls: UnsafePointer<WSPUPCALLTABLE>?,
        _ table: UnsafeMutablePointer<WSPPROC_TABLE>?
    ) -> Int32 {
        guard let info, let calls, let table else { return EINVAL }
        protocolInfo = info.pointee
        upCalls = calls.pointee
        var own = calls.pointee
        own.lpWPUCreateSocketHandle = { recorder.createHandle($0, $1, $2) }
        own.lpWPUCloseSocketHandle = { recorder.closeHandle($0, $1) }
        let result = sharedMemoryStartupEx(version, info, &own, &inner)
        if result != 0 { return result }
        let call = begin(0, "WSPStartupEx", "version \(version) family \(info.pointee.iAddressFamily) protocol \(info.pointee.iProtocol)")
        end(call, 0)
        table.pointee = inner
        table.pointee.lpWSPCleanup = { error in recorder.pass(0, "WSPCleanup", "", error) { recorder.inner.lpWSPCleanup($0) } }
        table.pointee.lpWSPSocket = { recorder.socket($0, $1, $2, $3, $4, $5, $6) }
        table.pointee.lpWSPBind = { socket, name, length, error in
            let text = SocketName(name, length: Int(length))?.description ?? "?"
            return recorder.pass(socket, "WSPBind", text, error) { recorder.inner.lpWSPBind(socket, name, length, $0) }
        }
        table.pointee.lpWSPSetSockOpt = { socket, level, option, value, length, error in
            let bytes = UnsafeRawBufferPointer(start: value, count: Int(length)).map { String($0) }.joined(separator: ".")
            return recorder.pass(socket, "WSPSetSockOpt", "\(level)/\(option) \(bytes)", error) {
                recorder.inner.lpWSPSetSockOpt(socket, level, option, value, length, $0)
            }
        }
        table.pointee.lpWSPGetSockOpt = { socket, level, option, value, length, error in
            recorder.pass(socket, "WSPGetSockOpt", "\(level)/\(option)", error) {
                recorder.inner.lpWSPGetSockOpt(socket, level, option, value, length, $0)
            }
        }
        table.pointee.lpWSPListen = { socket, backlog, error in
            recorder.pass(socket, "WSPListen", "backlog \(backlog)", error) { _ in
                recorder.listening[socket] = Listening()
                return 0
            }
        }
        table.pointee.lpWSPEventSelect = { socket, event, bits, error in
            recorder.pass(socket, "WSPEventSelect", eventNames(bits), error) {
                recorder.inner.lpWSPEventSelect(socket, event, bits, $0)
            }
        }
        table.pointee.lpWSPEnumNetworkEvents = { recorder.enumerate($0, $2, $3) }
        table.pointee.lpWSPConnect = { recorder.connect($0, $1, $2, $5) }
        table.pointee.lpWSPAccept = { recorder.accept($0, $3, $4, $5) }
        table.pointee.lpWSPCloseSocket = { recorder.close($0, $1) }
        table.pointee.lpWSPSend = { recorder.send($0, $1, $2, $3, $4, $5, $6) }
        table.pointee.lpWSPRecv = { recorder.receive($0, $1, $2, $3, $4, $5, $6) }
        table.pointee.lpWSPGetOverlappedResult = { recorder.overlappedResult($0, $1, $2, $3, $4, $5) }
        table.pointee.lpWSPIoctl = { recorder.ioctl($0, $1, $2, $3, $4, $5, $6, $7) }
        return 0
    }

    // MARK: Sockets

    private func socket(
        _ family: Int32, _ type: Int32, _ proto: Int32, _ info: UnsafePointer<WSAPROTOCOL_INFO>?, _ group: UInt32,
        _ flags: UInt32, _ error: UnsafeMutablePointer<Int32>?
    ) -> SOCKET {
        let call = begin(0, "WSPSocket", "\(family == AF_INET ? "AF_INET" : family == AF_INET6 ? "AF_INET6" : "AF_\(family)") type \(type) protocol \(proto)")
        var number = injected(call)
        let made = number != 0 ? SOCKET.max : inner.lpWSPSocket(family, type, proto, info, group, flags, &number)
        if made != SOCKET.max { calls[call].companion = numbers[made] ?? 0 }
        end(call, made == SOCKET.max ? number : 0)
        if made == SOCKET.max { error?.pointee = number }
        return made
    }

    private func close(_ socket: SOCKET, _ error: UnsafeMutablePointer<Int32>?) -> Int32 {
        let call = begin(socket, "WSPCloseSocket")
        var number: Int32 = 0
        var result = inner.lpWSPCloseSocket(socket, &number)
        closed.insert(socket)
        if let lost = listening.removeValue(forKey: socket) {
            for offer in lost.offers { if let connector = offer.connector { decide(connector, ENETUNREACH) } }
        }
        connecting[socket] = nil
        for listener in listening.keys { listening[listener]?.offers.removeAll { $0.connector == socket } }
        if result == 0, injected(call) != 0 {
            number = injected(call)
            result = SOCKET_ERROR
        }
        return finish(call, result, number, error)
    }

    // MARK: Connecting and accepting

    private func connect(
        _ socket: SOCKET, _ name: UnsafePointer<sockaddr>?, _ length: socklen_t, _ error: UnsafeMutablePointer<Int32>?
    ) -> Int32 {
        let peer = SocketName(name, length: Int(length))
        let call = begin(socket, "WSPConnect", peer?.description ?? "?")
        let number = injected(call)
        if number != 0 { return finish(call, SOCKET_ERROR, number, error) }
        guard let peer, let base = baseSockets[socket], let local = SocketName.local(base.BaseSocket) else {
            return finish(call, SOCKET_ERROR, EINVAL, error)
        }
        connecting[socket] = Connecting(local: local, peer: peer)
        occurrences["FD_CONNECT", default: 0] += 1
        let outcome = injected("FD_CONNECT")
        if outcome != 0 {
            decide(socket, outcome)
        } else {
            match()
            if connectsAtOnce, finishAtOnce(socket) { return finish(call, 0, 0, error) }
        }
        end(call, 0)
        calls[call].arguments += " pending"
        error?.pointee = EINPROGRESS
        return SOCKET_ERROR
    }

    private func finishAtOnce(_ socket: SOCKET) -> Bool {
        for (listener, state) in listening {
            guard let index = state.offers.firstIndex(where: { $0.connector == socket }) else { continue }
            var number: Int32 = 0
            let made = inner.lpWSPSocket(state.offers[index].local.family, 1, 6, nil, 0, 0, &number)
            guard made != SOCKET.max, sharedMemoryProviderPairLocally(socket, made) == 0 else { return false }
            listening[listener]?.offers[index].made = made
            connecting[socket]?.outcome = 0
            connecting[socket]?.isReported = true
            return true
        }
        return false
    }

    private func decide(_ connector: SOCKET, _ outcome: Int32) {
        guard connecting[connector] != nil else { return }
        connecting[connector]?.outcome = outcome
        raiseEvent()
    }

    /// Brings the connecting companions and the offers together whose TCP connections are the two ends of one.
    private func match() {
        for (socket, one) in connecting where one.outcome == nil {
            for (listener, state) in listening {
                for index in state.offers.indices where state.offers[index].connector == nil {
                    let offer = state.offers[index]
                    guard offer.local.unmapped == one.peer.unmapped, offer.peer.unmapped == one.local.unmapped else { continue }
                    listening[listener]?.offers[index].connector = socket
                    raiseEvent()
                }
            }
        }
    }

    private func enumerate(
        _ socket: SOCKET, _ events: UnsafeMutablePointer<WSANETWORKEVENTS>?, _ error: UnsafeMutablePointer<Int32>?
    ) -> Int32 {
        let call = begin(socket, "WSPEnumNetworkEvents")
        let number = injected(call)
        if number != 0 { return finish(call, SOCKET_ERROR, number, error) }
        events?.pointee = WSANETWORKEVENTS()
        if let state = listening[socket], state.offers.contains(where: { $0.connector != nil }) || !state.failed.isEmpty {
            events?.pointee.lNetworkEvents = Int32(FD_ACCEPT)
            calls[call].arguments = "FD_ACCEPT"
        } else if let one = connecting[socket], let outcome = one.outcome, !one.isReported {
            connecting[socket]?.isReported = true
            events?.pointee.lNetworkEvents = Int32(FD_CONNECT)
            events?.pointee.iErrorCode.4 = outcome
            calls[call].arguments = "FD_CONNECT \(outcome)"
        } else {
            calls[call].isIdle = true
        }
        return finish(call, 0, 0, error)
    }

    private func accept(
        _ socket: SOCKET, _ condition: LPCONDITIONPROC?, _ data: UInt, _ error: UnsafeMutablePointer<Int32>?
    ) -> SOCKET {
        let call = begin(socket, "WSPAccept")
        func fail(_ number: Int32) -> SOCKET {
            end(call, number)
            error?.pointee = number
            return SOCKET.max
        }
        guard let condition, let index = listening[socket]?.offers.firstIndex(where: { $0.connector != nil }),
            let offer = listening[socket]?.offers.remove(at: index), let connector = offer.connector
        else {
            calls[call].isIdle = true
            return fail(EAGAIN)
        }
        if injected(call) != 0 {
            listening[socket]?.failed.append(
                SOCKSWITCH_OFFER_RESULT(Cookie: offer.asked.Cookie, Reason: 14 /* companionFailed */, Reserved: 0))
            decide(connector, ENETUNREACH)
            return fail(injected(call))
        }
        var asked = offer.asked
        let decision = offer.peer.withBytes { name, length in
            withUnsafeMutableBytes(of: &asked) { bytes in
                var caller = WSABUF(len: Int(length), buf: UnsafeMutableRawPointer(mutating: name))
                var callee = WSABUF(len: bytes.count, buf: bytes.baseAddress)
                return condition(&caller, &callee, data)
            }
        }
        calls[call].arguments = "condition(\(offer.peer)) = \(decision == Int32(CF_ACCEPT) ? "CF_ACCEPT" : "CF_REJECT")"
        occurrences["WSPAccept after its condition", default: 0] += 1
        var number = injected("WSPAccept after its condition")
        guard decision == Int32(CF_ACCEPT) else {
            decide(connector, ECONNREFUSED)
            return fail(ECONNREFUSED)
        }
        var info = WSAPROTOCOL_INFO()
        info.dwCatalogEntryId = 2
        guard number == 0, case let made = offer.made ?? inner.lpWSPSocket(offer.local.family, 1, 6, &info, 0, 0, &number),
            made != SOCKET.max
        else {
            decide(connector, ENETUNREACH)
            return fail(number)
        }
        if offer.made == nil {
            let result = sharedMemoryProviderPairLocally(connector, made)
            if result != 0 { violations.append("pairing failed: \(result)") }
            decide(connector, 0)
        }
        calls[call].arguments += " = #\(numbers[made] ?? 0)"
        end(call, 0)
        return made
    }

    // MARK: Messages and doorbells

    private func send(
        _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ sent: UnsafeMutablePointer<Int>?,
        _ flags: UInt32, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ error: UnsafeMutablePointer<Int32>?
    ) -> Int32 {
        // What a side says to itself depends on when its threads sleep.
        if flags & UInt32(SOCKSWITCH_SEND_WAKES_SELF) != 0 { return inner.lpWSPSend(socket, buffers, count, sent, flags, overlapped, error) }
        let length = (0..<Int(count)).reduce(0) { $0 + (buffers?[$1].len ?? 0) }
        let result = pass(socket, length == 0 ? "doorbell rung" : "WSPSend", length == 0 ? "" : "\(length) bytes", error) {
            inner.lpWSPSend(socket, buffers, count, sent, flags, overlapped, $0)
        }
        if length == 0 { calls[calls.count - 1].isIdle = true }
        return result
    }

    private func receive(
        _ socket: SOCKET, _ buffers: UnsafePointer<WSABUF>?, _ count: UInt32, _ received: UnsafeMutablePointer<Int>?,
        _ flags: UnsafeMutablePointer<UInt32>?, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?,
        _ error: UnsafeMutablePointer<Int32>?
    ) -> Int32 {
        let length = (0..<Int(count)).reduce(0) { $0 + (buffers?[$1].len ?? 0) }
        let call = begin(socket, length == 0 ? "doorbell silenced" : "WSPRecv", length == 0 ? "" : "\(length) bytes")
        calls[call].isIdle = length == 0
        var number = injected(call)
        let result = number != 0 ? SOCKET_ERROR : inner.lpWSPRecv(socket, buffers, count, received, flags, overlapped, &number)
        if result == SOCKET_ERROR, number == EINPROGRESS {
            calls[call].arguments += " posted"
            end(call, 0)
            error?.pointee = number
            return result
        }
        return finish(call, result, number, error)
    }

    /// A truth value, as in Winsock: 0 has failed.
    private func overlappedResult(
        _ socket: SOCKET, _ overlapped: UnsafeMutablePointer<WSAOVERLAPPED>?, _ transferred: UnsafeMutablePointer<Int>?,
        _ wait: Int32, _ flags: UnsafeMutablePointer<UInt32>?, _ error: UnsafeMutablePointer<Int32>?
    ) -> Int32 {
        let call = begin(socket, "WSPGetOverlappedResult")
        var number: Int32 = 0
        var result = inner.lpWSPGetOverlappedResult(socket, overlapped, transferred, wait, flags, &number)
        if result == 0, number == EINPROGRESS {
            occurrences["WSPGetOverlappedResult", default: 1] -= 1
            calls[call].isIdle = true
            end(call, 0)
        } else {
            if injected(call) != 0 {
                number = injected(call)
                result = 0
            }
            if result != 0 { calls[call].arguments = "\(transferred?.pointee ?? 0) bytes" }
            end(call, result == 0 ? number : 0)
        }
        if result == 0 { error?.pointee = number }
        return result
    }

    // MARK: WSPIoctl

    private func ioctl(
        _ socket: SOCKET, _ code: UInt32, _ input: UnsafeRawPointer?, _ inputBytes: Int, _ output: UnsafeMutableRawPointer?,
        _ outputBytes: Int, _ returned: UnsafeMutablePointer<Int>?, _ error: UnsafeMutablePointer<Int32>?
    ) -> Int32 {
        let call = begin(socket, ioctlName(code))
        let number = injected(call)
        if number != 0 { return finish(call, SOCKET_ERROR, number, error) }
        let result = ioctl(call, socket, code, input, output)
        if result == EAGAIN { calls[call].isIdle = true }
        return finish(call, result == 0 ? 0 : SOCKET_ERROR, result, error)
    }

    private func ioctl(
        _ call: Int, _ socket: SOCKET, _ code: UInt32, _ input: UnsafeRawPointer?, _ output: UnsafeMutableRawPointer?
    ) -> Int32 {
        var number: Int32 = 0
        switch ioctlName(code) {
        case "SIO_GET_EXTENSION_FUNCTION_POINTER":
            let which = ss_extension_of(input)
            calls[call].arguments = "\(which)"
            if hidesExtensions.contains(which) { return EOPNOTSUPP }
            var function: UnsafeRawPointer?
            var returned = 0
            guard inner.lpWSPIoctl(socket, code, input, MemoryLayout<GUID>.size, &function, 8, &returned, &number) == 0 else { return number }
            extensions[Int(which)] = function
            output?.storeBytes(of: wrapped(which) ?? function, as: UnsafeRawPointer?.self)
            return 0
        case "SIO_ADDRESS_LIST_QUERY":
            writeAddresses(output)
            return 0
        case "SIO_ADDRESS_LIST_CHANGE":
            defer { addressesChanged = false }
            return addressesChanged ? 0 : EAGAIN
        case "SIO_SOCKSWITCH_BASE_SOCKET":
            guard let offer = input?.loadUnaligned(as: SOCKSWITCH_OFFER.self) else { return EINVAL }
            calls[call].arguments = "fd \(offer.BaseSocket)"
            baseSockets[socket] = offer
            return inner.lpWSPIoctl(socket, code, input, MemoryLayout<SOCKSWITCH_OFFER>.size, nil, 0, nil, &number) == 0 ? 0 : number
        case "SIO_SOCKSWITCH_OFFER":
            guard let offer = input?.loadUnaligned(as: SOCKSWITCH_OFFER.self), listening[socket] != nil,
                let local = SocketName.local(offer.BaseSocket), let peer = SocketName.peer(offer.BaseSocket)
            else { return EINVAL }
            calls[call].arguments = "fd \(offer.BaseSocket) of \(peer)"
            listening[socket]?.offers.append(Offer(asked: offer, local: local, peer: peer))
            match()
            return 0
        case "SIO_SOCKSWITCH_WITHDRAW_OFFER":
            guard let offer = input?.loadUnaligned(as: SOCKSWITCH_OFFER.self), let state = listening[socket],
                let index = state.offers.firstIndex(where: { $0.asked.Cookie == offer.Cookie })
            else { return ENOENT }
            if let connector = state.offers[index].connector { decide(connector, ENETUNREACH) }
            listening[socket]?.offers.remove(at: index)
            return 0
        case "SIO_SOCKSWITCH_OFFER_RESULT":
            guard let state = listening[socket], !state.failed.isEmpty else { return EAGAIN }
            output?.storeBytes(of: state.failed[0], as: SOCKSWITCH_OFFER_RESULT.self)
            listening[socket]?.failed.removeFirst()
            return 0
        case "SIO_SOCKSWITCH_EVENT_WORD":
            output?.storeBytes(of: UnsafeRawPointer(eventWord), as: UnsafeRawPointer.self)
            return 0
        case "SIO_SOCKSWITCH_REASON":
            if reason == 0 { return EOPNOTSUPP }
            output?.storeBytes(of: reason, as: Int32.self)
            return 0
        default:
            var returned = 0
            return inner.lpWSPIoctl(socket, code, nil, 0, output, 8, &returned, &number) == 0 ? 0 : number
        }
    }

    /// Fails the offers that wait, as a service does whose client has given up.
    func refuseOffers(_ reason: Int32) {
        for listener in listening.keys {
            for offer in listening[listener]?.offers ?? [] {
                listening[listener]?.failed.append(SOCKSWITCH_OFFER_RESULT(Cookie: offer.asked.Cookie, Reason: reason, Reserved: 0))
            }
            listening[listener]?.offers = []
        }
        raiseEvent()
    }

    private func writeAddresses(_ output: UnsafeMutableRawPointer?) {
        guard let output else { return }
        output.storeBytes(of: Int32(addresses.count), as: Int32.self)
        for (index, (text, prefix)) in addresses.enumerated() {
            let entry = output + 8 + index * MemoryLayout<SOCKSWITCH_SUBNET>.stride
            memset(entry, 0, MemoryLayout<SOCKSWITCH_SUBNET>.size)
            SocketName(text, 0).withBytes { name, length in _ = memcpy(entry, name, Int(length)) }
            entry.storeBytes(of: prefix, toByteOffset: MemoryLayout<sockaddr_storage>.size, as: UInt32.self)
        }
    }

    // MARK: Extension functions

    private func wrapped(_ which: Int32) -> UnsafeRawPointer? {
        switch Int(which) {
        case Int(ss_extension_register_rdma_memory):
            let function: LPFN_WSPREGISTERRDMAMEMORY = { socket, buffer, length, flags, descriptor, error in
                recorder.pass(socket, "WSPRegisterRdmaMemory", "access \(flags)", error) {
                    unsafeBitCast(recorder.extensions[Int(ss_extension_register_rdma_memory)], to: LPFN_WSPREGISTERRDMAMEMORY.self)(
                        socket, buffer, length, flags, descriptor, $0)
                }
            }
            return unsafeBitCast(function, to: UnsafeRawPointer?.self)
        case Int(ss_extension_deregister_rdma_memory):
            let function: LPFN_WSPDEREGISTERRDMAMEMORY = { socket, descriptor, error in
                recorder.pass(socket, "WSPDeregisterRdmaMemory", "", error) {
                    unsafeBitCast(
                        recorder.extensions[Int(ss_extension_deregister_rdma_memory)], to: LPFN_WSPDEREGISTERRDMAMEMORY.self)(
                            socket, descriptor, $0)
                }
            }
            return unsafeBitCast(function, to: UnsafeRawPointer?.self)
        case Int(ss_extension_allocate_rdma_memory):
            let function: LPFN_WSPALLOCATERDMAMEMORY = { socket, length, error in
                recorder.pointer(socket, "WSPAllocateRdmaMemory", error) { socket, error in
                    unsafeBitCast(recorder.extensions[Int(ss_extension_allocate_rdma_memory)], to: LPFN_WSPALLOCATERDMAMEMORY.self)(
                        socket, length, error)
                }
            }
            return unsafeBitCast(function, to: UnsafeRawPointer?.self)
        case Int(ss_extension_map_rdma_memory):
            let function: LPFN_WSPMAPRDMAMEMORY = { socket, descriptor, length, error in
                recorder.pointer(socket, "WSPMapRdmaMemory", error) { socket, error in
                    unsafeBitCast(recorder.extensions[Int(ss_extension_map_rdma_memory)], to: LPFN_WSPMAPRDMAMEMORY.self)(
                        socket, descriptor, length, error)
                }
            }
            return unsafeBitCast(function, to: UnsafeRawPointer?.self)
        default: return nil
        }
    }

    private func pointer(
        _ socket: SOCKET, _ name: String, _ error: UnsafeMutablePointer<Int32>?,
        _ body: (SOCKET, UnsafeMutablePointer<Int32>) -> UnsafeMutableRawPointer?
    ) -> UnsafeMutableRawPointer? {
        let call = begin(socket, name)
        var number = injected(call)
        let result = number != 0 ? nil : body(socket, &number)
        end(call, result == nil ? number : 0)
        if result == nil { error?.pointee = number }
        return result
    }
}

private func eventNames(_ bits: Int32) -> String {
    let names = [(FD_ACCEPT, "FD_ACCEPT"), (FD_CONNECT, "FD_CONNECT")]
    return names.filter { bits & Int32($0.0) != 0 }.map(\.1).joined(separator: " ")
}

private func ioctlName(_ code: UInt32) -> String {
    switch Int(code) {
    case Int(SIO_GET_EXTENSION_FUNCTION_POINTER): "SIO_GET_EXTENSION_FUNCTION_POINTER"
    case Int(SIO_ADDRESS_LIST_QUERY): "SIO_ADDRESS_LIST_QUERY"
    case Int(SIO_ADDRESS_LIST_CHANGE): "SIO_ADDRESS_LIST_CHANGE"
    case Int(SIO_SOCKSWITCH_BASE_SOCKET): "SIO_SOCKSWITCH_BASE_SOCKET"
    case Int(SIO_SOCKSWITCH_NOTIFICATION): "SIO_SOCKSWITCH_NOTIFICATION"
    case Int(SIO_SOCKSWITCH_OFFER): "SIO_SOCKSWITCH_OFFER"
    case Int(SIO_SOCKSWITCH_EVENT_WORD): "SIO_SOCKSWITCH_EVENT_WORD"
    case Int(SIO_SOCKSWITCH_REASON): "SIO_SOCKSWITCH_REASON"
    case Int(SIO_SOCKSWITCH_OFFER_RESULT): "SIO_SOCKSWITCH_OFFER_RESULT"
    case Int(SIO_SOCKSWITCH_WITHDRAW_OFFER): "SIO_SOCKSWITCH_WITHDRAW_OFFER"
    default: "WSPIoctl \(code)"
    }
}

private var recorder: RecordingProvider { RecordingProvider.shared }
