import CSocketSwitch
import Glibc
import ServiceProviders
import SocketTable
import Testing

extension ServiceProviders {
    /// The kernel behind the provider interface.
    @Suite struct TCPIP {
        var calls = WSPPROC_TABLE()

        init() { #expect(tcpipStartupEx(UInt32(SOCKSWITCH_SPI_VERSION), nil, nil, &calls) == 0) }

        @Test("a connection from socket to close, many buffers in one call")
        func connection() {
            var error: Int32 = 0
            let listener = calls.lpWSPSocket(AF_INET, 1, 0, nil, 0, 0, &error)
            var on: Int32 = 1
            #expect(calls.lpWSPSetSockOpt(listener, SOL_SOCKET, SO_REUSEADDR, &on, 4, &error) == 0)
            #expect(SocketAddress.loopback(0).withPointer { calls.lpWSPBind(listener, $0, $1, &error) } == 0)
            #expect(calls.lpWSPListen(listener, 4, &error) == 0)
            var name = SocketAddress.loopback(0)
            var length: socklen_t = 16
            #expect(ss_sys_getsockname(Int32(listener), &name.bytes, &length) == 0)
            let client = calls.lpWSPSocket(AF_INET, 1, 0, nil, 0, 0, &error)
            #expect(name.withPointer { calls.lpWSPConnect(client, $0, $1, nil, nil, &error) } == 0)
            let server = calls.lpWSPAccept(listener, nil, nil, nil, UInt(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), &error)
            #expect(fcntl(Int32(server), F_GETFD) == FD_CLOEXEC)

            // 100 buffers of one byte: more than are passed in one call, so a short send.
            var bytes = (0..<100).map { UInt8($0) }
            var sent = 0
            bytes.withUnsafeMutableBytes { memory in
                let buffers = (0..<100).map { WSABUF(len: 1, buf: memory.baseAddress! + $0) }
                #expect(calls.lpWSPSend(client, buffers, 100, &sent, UInt32(MSG_NOSIGNAL), nil, &error) == 0)
            }
            #expect(sent == 64)
            var target = [UInt8](repeating: 0, count: 128)
            var received = 0
            var flags = UInt32(MSG_PEEK)
            target.withUnsafeMutableBytes { memory in
                var buffers = [WSABUF(len: 10, buf: memory.baseAddress), WSABUF(len: 100, buf: memory.baseAddress! + 10)]
                #expect(calls.lpWSPRecv(server, &buffers, 2, &received, &flags, nil, &error) == 0)
            }
            #expect(received == 64 && Array(target.prefix(64)) == Array(bytes.prefix(64)))
            target.withUnsafeMutableBytes { memory in
                var buffer = WSABUF(len: 128, buf: memory.baseAddress)
                flags = 0
                #expect(calls.lpWSPRecv(server, &buffer, 1, &received, &flags, nil, &error) == 0)
                #expect(received == 64)
                #expect(calls.lpWSPRecv(server, &buffer, 1, &received, &flags, nil, &error) == -1)
                #expect(error == EAGAIN)
            }
            for socket in [listener, client, server] { #expect(calls.lpWSPCloseSocket(socket, &error) == 0) }
        }

        @Test("errors are the kernel's")
        func errors() {
            var error: Int32 = 0
            #expect(calls.lpWSPSocket(AF_INET, 99, 0, nil, 0, 0, &error) == SOCKET.max)
            #expect(error == EINVAL)
            for nonsense in [SOCKET.max, 1 << 40, 900_000] {
                #expect(calls.lpWSPListen(nonsense, 1, &error) == -1)
                #expect(error == EBADF)
            }
            let socket = calls.lpWSPSocket(AF_INET, 1, 0, nil, 0, 0, &error)
            #expect(SocketAddress.loopback(1).withPointer { calls.lpWSPConnect(socket, $0, $1, nil, nil, &error) } == -1)
            #expect(error == ECONNREFUSED)
            var overlapped = WSAOVERLAPPED()
            #expect(calls.lpWSPSend(socket, nil, 0, nil, 0, &overlapped, &error) == -1)
            #expect(error == EOPNOTSUPP)
            #expect(calls.lpWSPCloseSocket(socket, &error) == 0)
        }

        @Test("the address list has loopback and what getifaddrs says, with the same prefixes (WSD-I5); changes are reported once (WSD-I6)")
        func addresses() {
            var error: Int32 = 0
            var returned = 0
            let list = UnsafeMutablePointer<SOCKET_ADDRESS_LIST>.allocate(capacity: 1)
            defer { list.deallocate() }
            #expect(calls.lpWSPIoctl(0, UInt32(SIO_ADDRESS_LIST_QUERY), nil, 0, list, 100, &returned, &error) == -1)
            #expect(error == EFAULT)
            let size = MemoryLayout<SOCKET_ADDRESS_LIST>.size
            #expect(calls.lpWSPIoctl(0, UInt32(SIO_ADDRESS_LIST_QUERY), nil, 0, list, size, &returned, &error) == 0)
            #expect(returned == size)
            var found: Set<[UInt8]> = []
            withUnsafePointer(to: &list.pointee.Address) { entries in
                let entries = UnsafeRawPointer(entries)
                for index in 0..<Int(list.pointee.iAddressCount) {
                    let entry = entries + index * MemoryLayout<SOCKSWITCH_SUBNET>.stride
                    let isIPv4 = Int32(entry.load(as: UInt16.self)) == AF_INET
                    let address = UnsafeRawBufferPointer(start: entry + (isIPv4 ? 4 : 8), count: isIPv4 ? 4 : 16)
                    found.insert(Array(address) + [UInt8(entry.load(fromByteOffset: 128, as: UInt32.self))])
                }
            }
            var expected: Set<[UInt8]> = [[127, 0, 0, 1, 8], [UInt8](repeating: 0, count: 15) + [1, 128]]
            var interfaces: UnsafeMutablePointer<ifaddrs>?
            #expect(getifaddrs(&interfaces) == 0)
            var next = interfaces
            while let interface = next {
                next = interface.pointee.ifa_next
                guard let address = interface.pointee.ifa_addr, let mask = interface.pointee.ifa_netmask,
                    interface.pointee.ifa_flags & UInt32(IFF_UP) != 0
                else { continue }
                let family = Int32(address.pointee.sa_family)
                guard family == AF_INET || family == AF_INET6 else { continue }
                let (offset, count) = family == AF_INET ? (4, 4) : (8, 16)
                let bytes = UnsafeRawBufferPointer(start: UnsafeRawPointer(address) + offset, count: count)
                let prefix = UnsafeRawBufferPointer(start: UnsafeRawPointer(mask) + offset, count: count)
                if family == AF_INET, bytes[0] == 127 { continue }
                expected.insert(Array(bytes) + [UInt8(prefix.reduce(0) { $0 + $1.nonzeroBitCount })])
            }
            freeifaddrs(interfaces)
            #expect(found == expected)

            func changed() -> Bool { calls.lpWSPIoctl(0, UInt32(SIO_ADDRESS_LIST_CHANGE), nil, 0, nil, 0, nil, &error) == 0 }
            _ = changed()
            #expect(!changed())
            #expect(error == EAGAIN)
        }
    }
}
