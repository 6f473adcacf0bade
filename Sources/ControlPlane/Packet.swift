import CSocketSwitch

/// Packets with descriptors over a Unix `SOCK_SEQPACKET` connection.
package enum Packet {
    /// The largest that either side sends: a chunk of text.
    package static let maximumBytes = 64 << 10
    /// A message of ours brings at most three; a packet with more is a stranger's.
    package static let maximumDescriptors = 4

    private static let headerBytes = 16
    private static func aligned(_ bytes: Int) -> Int { (bytes + 7) & ~7 }

    /// Sends without blocking and without SIGPIPE. 0 or -errno (EAGAIN: the receiver does not read; ETOOMANYREFS: too
    /// many descriptors of this user are on their way).
    package static func send(
        _ bytes: UnsafeRawBufferPointer, descriptors: [Descriptor], on socket: Int32, flags: Int32 = 0
    ) -> Int {
        precondition(descriptors.count <= maximumDescriptors)
        var piece = iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        return withUnsafeTemporaryAllocation(byteCount: 64, alignment: 8) { control in
            withUnsafeMutablePointer(to: &piece) { piece in
                var message = msghdr()
                message.msg_iov = piece
                message.msg_iovlen = 1
                if !descriptors.isEmpty {
                    let length = headerBytes + 4 * descriptors.count
                    control.storeBytes(of: length, as: Int.self)
                    control.storeBytes(of: Int32(SOL_SOCKET), toByteOffset: 8, as: Int32.self)
                    control.storeBytes(of: Int32(1), toByteOffset: 12, as: Int32.self)  // SCM_RIGHTS
                    for (index, descriptor) in descriptors.enumerated() {
                        control.storeBytes(of: descriptor.raw, toByteOffset: headerBytes + 4 * index, as: Int32.self)
                    }
                    message.msg_control = control.baseAddress
                    message.msg_controllen = aligned(length)
                }
                while true {
                    let result = ss_sys_sendmsg(
                        socket, &message, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL) | flags)
                    if result == -Int(EINTR) { continue }
                    return min(result, 0)
                }
            }
        }
    }

    package struct Received {
        /// Bytes in the buffer; 0 = end of the connection; -errno.
        package var result: Int
        package var descriptors: [Descriptor] = []
        /// The packet or its control data did not fit. What did come of the descriptors is in `descriptors`.
        package var isTruncated = false
    }

    /// Receives without blocking. Every descriptor that came is owned by the answer, whatever the packet was.
    package static func receive(into buffer: UnsafeMutableRawBufferPointer, on socket: Int32, wait: Bool = false) -> Received {
        var piece = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
        return withUnsafeTemporaryAllocation(byteCount: 256, alignment: 8) { control in
            withUnsafeMutablePointer(to: &piece) { piece in
                var message = msghdr()
                message.msg_iov = piece
                message.msg_iovlen = 1
                // Room for one control record with our four descriptors and not for more.
                message.msg_control = control.baseAddress
                message.msg_controllen = headerBytes + 4 * maximumDescriptors
                let flags = Int32(truncatingIfNeeded: MSG_CMSG_CLOEXEC) | (wait ? 0 : Int32(MSG_DONTWAIT))
                var received = Received(result: 0)
                repeat {
                    received.result = ss_sys_recvmsg(socket, &message, flags)
                } while received.result == -Int(EINTR)
                guard received.result >= 0 else { return received }
                received.isTruncated = message.msg_flags & Int32(MSG_TRUNC | MSG_CTRUNC) != 0
                var offset = 0
                let length = min(Int(message.msg_controllen), control.count)
                while offset + headerBytes <= length {
                    let recordLength = control.loadUnaligned(fromByteOffset: offset, as: Int.self)
                    guard recordLength >= headerBytes, recordLength <= length - offset else { break }
                    let level = control.loadUnaligned(fromByteOffset: offset + 8, as: Int32.self)
                    let type = control.loadUnaligned(fromByteOffset: offset + 12, as: Int32.self)
                    if level == SOL_SOCKET, type == 1 {
                        for index in 0..<((recordLength - headerBytes) / 4) {
                            let raw = control.loadUnaligned(fromByteOffset: offset + headerBytes + 4 * index, as: Int32.self)
                            received.descriptors.append(Descriptor(raw))
                        }
                    }
                    offset += aligned(recordLength)
                }
                return received
            }
        }
    }
}
