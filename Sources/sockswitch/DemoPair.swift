import ArgumentParser
import CSocketSwitch
import ControlPlane
import Glibc

/// The two ordinary TCP programs of `sockswitch demo`. They are started like any other command, switched or not, and know
/// nothing of the switch.
struct DemoPair: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo-pair", abstract: "The programs that `sockswitch demo` runs.", shouldDisplay: false,
        subcommands: [Serve.self, Ask.self])

    /// What one exchange looks like to the server that is asked.
    enum Exchange: String, ExpressibleByArgument, CaseIterable {
        /// `demo-pair serve` sends back what it gets.
        case echo
        /// redis answers ECHO.
        case redis

        static let payloadBytes = 1000

        var request: [UInt8] {
            let payload = [UInt8](repeating: UInt8(ascii: "x"), count: Exchange.payloadBytes)
            return switch self {
            case .echo: payload
            case .redis: Array("*2\r\n$4\r\nECHO\r\n$\(Exchange.payloadBytes)\r\n".utf8) + payload + Array("\r\n".utf8)
            }
        }

        var answerBytes: Int {
            switch self {
            case .echo: Exchange.payloadBytes
            case .redis: "$\(Exchange.payloadBytes)\r\n".utf8.count + Exchange.payloadBytes + 2
            }
        }
    }

    /// What `ask` tells over descriptor 3.
    struct Answer: Codable {
        var local: String
        var roundTrips: Int
        var seconds: Double
        /// Nanoseconds.
        var p50: UInt64
        var p99: UInt64
        /// What the program wrote and read.
        var bytes: UInt64
        /// What of it the kernel's TCP carried, by its own counters.
        var kernelBytes: UInt64
    }

    struct Serve: ParsableCommand {
        @Option var port: UInt16

        func run() throws {
            let listener = try tcpSocket()
            var one: Int32 = 1
            setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, 4)
            guard withLoopback(port, { bind(listener, $0, $1) }) == 0, listen(listener, 16) == 0 else { throw failure("bind") }
            var buffer = [UInt8](repeating: 0, count: 65536)
            while true {
                let connection = accept(listener, __SOCKADDR_ARG(), nil)
                guard connection >= 0 else { throw failure("accept") }
                var count = recv(connection, &buffer, buffer.count, 0)
                while count > 0 {
                    try sendAll(connection, buffer, count)
                    count = recv(connection, &buffer, buffer.count, 0)
                }
                close(connection)
            }
        }
    }

    struct Ask: ParsableCommand {
        @Option var port: UInt16
        @Option var roundTrips: Int
        @Option var exchange: Exchange

        func run() throws {
            let connection = try tcpSocket()
            guard withLoopback(port, { connect(connection, $0, $1) }) == 0 else { throw failure("connect") }
            var one: Int32 = 1
            setsockopt(connection, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
            let request = exchange.request
            var buffer = [UInt8](repeating: 0, count: 65536)
            var times: [UInt64] = []
            times.reserveCapacity(roundTrips)
            let started = ss_monotonic_ns()
            var last = started
            for _ in 0..<roundTrips {
                try sendAll(connection, request, request.count)
                var left = exchange.answerBytes
                while left > 0 {
                    let count = recv(connection, &buffer, buffer.count, 0)
                    guard count > 0 else { throw failure("recv") }
                    left -= count
                }
                let now = ss_monotonic_ns()
                times.append(now - last)
                last = now
            }
            times.sort()
            var figures = ss_tcp_positions()
            guard ss_tcp_positions_of(connection, &figures) == 0 else { throw failure("getsockopt") }
            let answer = Answer(
                local: "127.0.0.1:\(localPort(connection))", roundTrips: roundTrips, seconds: Double(last - started) / 1e9,
                p50: times[times.count / 2], p99: times[times.count * 99 / 100],
                bytes: UInt64(roundTrips) * UInt64(request.count + exchange.answerBytes),
                kernelBytes: figures.bytes_sent + figures.bytes_received)
            let line = encodeJSON(answer) + [10]
            try writeAll(3, line)
            // The connection stays until the other end has looked at it.
            _ = read(3, &buffer, 1)
        }

        private func localPort(_ socket: Int32) -> UInt16 {
            var address = sockaddr_in()
            var length = UInt32(MemoryLayout<sockaddr_in>.size)
            _ = ss_sys_getsockname(socket, &address, &length)
            return UInt16(bigEndian: address.sin_port)
        }
    }
}

private struct Failure: Error, CustomStringConvertible { let description: String }

private func failure(_ call: String) -> Failure { Failure(description: "\(call): \(String(cString: strerror(errno)))") }

private func tcpSocket() throws -> Int32 {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    guard descriptor >= 0 else { throw failure("socket") }
    return descriptor
}

private func sendAll(_ socket: Int32, _ bytes: [UInt8], _ count: Int) throws {
    var done = 0
    while done < count {
        let sent = bytes.withUnsafeBytes { send(socket, $0.baseAddress! + done, count - done, Int32(MSG_NOSIGNAL)) }
        guard sent > 0 else { throw failure("send") }
        done += sent
    }
}

private func writeAll(_ descriptor: Int32, _ bytes: [UInt8]) throws {
    var done = 0
    while done < bytes.count {
        let written = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress! + done, bytes.count - done) }
        guard written > 0 else { throw failure("write") }
        done += written
    }
}

func withLoopback<Result>(_ port: UInt16, _ body: (__CONST_SOCKADDR_ARG, socklen_t) -> Result) -> Result {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    return withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body(__CONST_SOCKADDR_ARG(__sockaddr__: $0), socklen_t(MemoryLayout<sockaddr_in>.size))
        }
    }
}
