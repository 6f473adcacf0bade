import CSocketSwitch
import Glibc
import Rendezvous

/// Why the service could not be asked.
package enum ServiceError: Error, CustomStringConvertible {
    case notRunning(path: String, code: Int32)
    case notTrusted(path: String, uid: UInt32)
    case noAnswer(path: String)
    case notPermitted(path: String)
    case unknownCommand(String)
    case badAnswer(String)

    package var description: String {
        switch self {
        case .notRunning(let path, let code):
            "no service at \(path) (\(String(cString: strerror(code)))); `sockswitch run -- COMMAND` starts one"
        case .notTrusted(let path, let uid): "the service at \(path) belongs to user \(uid), who is neither root nor you"
        case .noAnswer(let path): "the service at \(path) does not answer"
        case .notPermitted(let path): "the service at \(path) answers this only to root and its own user"
        case .unknownCommand(let command): "the service does not know the command \(command) (another version?)"
        case .badAnswer(let why): "the service's answer makes no sense: \(why)"
        }
    }
}

/// A connection of the command-line tool to the service. Blocking, with a time limit for each answer.
package struct ServiceClient {
    package let path: String
    private let socket: Descriptor
    /// The service's process and user.
    package let service: PeerCredentials

    /// Connects, and checks that the service belongs to root or to this user.
    package init(path: String, timeoutSeconds: Int = 10) throws {
        self.path = path
        socket = try .checked(ss_sys_socket(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0), "socket")
        var limit = timeval(tv_sec: timeoutSeconds, tv_usec: 0)
        _ = ss_sys_setsockopt(socket.raw, SOL_SOCKET, SO_RCVTIMEO, &limit, UInt32(MemoryLayout<timeval>.size))
        _ = ss_sys_setsockopt(socket.raw, SOL_SOCKET, SO_SNDTIMEO, &limit, UInt32(MemoryLayout<timeval>.size))
        let raw = socket.raw
        let result = withUnixAddress(path) { ss_sys_connect(raw, $0, $1) } ?? -Int(ENAMETOOLONG)
        // Its queue has been full for so long.
        if result == -Int(EAGAIN) { throw ServiceError.noAnswer(path: path) }
        guard result == 0 else { throw ServiceError.notRunning(path: path, code: Int32(-result)) }
        guard let service = PeerCredentials(of: socket.raw) else { throw ServiceError.noAnswer(path: path) }
        guard service.uid == 0 || service.uid == geteuid() else { throw ServiceError.notTrusted(path: path, uid: service.uid) }
        self.service = service
    }

    /// Sends one tool command and returns the whole answer.
    package func ask(_ command: String) throws -> [UInt8] {
        let text = Array(command.utf8)
        guard text.count < Message.textBytes else { throw ServiceError.unknownCommand(command) }
        try withUnsafeTemporaryAllocation(byteCount: Message.bytes, alignment: 8) { bytes in
            let message = Message(bytes.baseAddress!)
            message.clear(kind: MessageKind.tool)
            for (index, byte) in text.enumerated() { message.text.storeBytes(of: byte, toByteOffset: index, as: UInt8.self) }
            let result = Packet.send(UnsafeRawBufferPointer(bytes), descriptors: [], on: socket.raw)
            guard result == 0 else { throw silence(result) }
        }
        var answer: [UInt8] = []
        var status: UInt32?
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Packet.maximumBytes, alignment: 8)
        defer { buffer.deallocate() }
        while status == nil {
            let received = Packet.receive(into: buffer, on: socket.raw, wait: true)
            guard received.result > 0, !received.isTruncated else { throw silence(received.result) }
            let message = Message(buffer.baseAddress!)
            if received.result == Message.bytes, message.magic == Message.magic {
                guard message.kind == MessageKind.toolEnd else { throw ServiceError.badAnswer("message \(message.kind)") }
                status = message.reason
            } else {
                answer.append(contentsOf: buffer[..<received.result])
            }
        }
        switch status {
        case ToolStatus.done: return answer
        case ToolStatus.notPermitted: throw ServiceError.notPermitted(path: path)
        default: throw ServiceError.unknownCommand(command)
        }
    }

    /// The service has just ended, or (a time-out) it does not answer.
    private func silence(_ result: Int) -> ServiceError {
        result == 0 || result == -Int(ECONNRESET) || result == -Int(EPIPE)
            ? .notRunning(path: path, code: ECONNRESET) : .noAnswer(path: path)
    }

    /// The service does not end by itself.
    package func isLasting() throws -> Bool { try ask("ping") == Array("pong".utf8) }

    /// An ephemeral service becomes a lasting one.
    package func stay() throws { _ = try ask("stay") }

    /// An ephemeral service stays until this process has ended, whatever program it becomes.
    package func hold() throws { _ = try ask("hold") }
}
