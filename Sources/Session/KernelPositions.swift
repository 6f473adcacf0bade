import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
#endif

/// States of a TCP socket (tcpi_state).
enum TCPState {
    static var established: UInt8 { 1 }
    static var finWait1: UInt8 { 4 }
    static var finWait2: UInt8 { 5 }
    static var closed: UInt8 { 7 }
    static var closeWait: UInt8 { 8 }
}

/// Positions in a TCP stream, from the kernel's own counters: how many bytes were written to, and read from, a socket
/// since its connection began. nil when the kernel's figures do not agree: then nobody may change the carrier.
enum KernelPositions {
    /// One of `TCPState`; nil: the kernel does not say.
    static func state(_ fd: Int32) -> UInt8? {
        var figures = ss_tcp_positions()
        return ss_tcp_positions_of(fd, &figures) == 0 && figures.valid != 0 ? figures.state : nil
    }

    /// The peer's FIN (or a reset) is there.
    static func finHasCome(_ fd: Int32) -> Bool {
        guard let state = state(fd) else { return true }
        return isAfterFIN(state)
    }

    static func isAfterFIN(_ state: UInt8) -> Bool {
        state != TCPState.established && state != TCPState.finWait1 && state != TCPState.finWait2
    }

    /// Bytes that any process has written to the TCP socket. The caller sees to it that nobody is writing.
    static func written(_ fd: Int32, connectingSide: Bool) -> UInt64? {
        var figures = ss_tcp_positions()
        var attempt = 0
        while attempt < 4 {
            attempt += 1
            guard ss_tcp_positions_of(fd, &figures) == 0, figures.valid != 0 else { return nil }
            guard figures.state == TCPState.established || figures.state == TCPState.closeWait else { return nil }
            let atOnce = figures.bytes_sent &- figures.bytes_retrans &+ UInt64(figures.notsent_bytes)
            var unacknowledged: Int32 = 0
            guard ss_sys_ioctl(fd, ss_siocoutq, &unacknowledged) == 0 else { return nil }
            // The acknowledgement of our SYN counts as one byte on the connecting side.
            let slowly = figures.bytes_acked &+ UInt64(UInt32(bitPattern: unacknowledged)) &- (connectingSide ? 1 : 0)
            // Acknowledgements may arrive between the two calls: then the second sum is too small. Look again.
            if slowly == atOnce { return atOnce }
        }
        return nil
    }

    /// Bytes that any process has read from the TCP socket. The caller sees to it that nobody is reading.
    static func read(_ fd: Int32) -> UInt64? {
        var before = ss_tcp_positions()
        var after = ss_tcp_positions()
        guard ss_tcp_positions_of(fd, &before) == 0, before.valid != 0 else { return nil }
        var attempt = 0
        while attempt < 8 {
            attempt += 1
            var queued: Int32 = 0
            guard ss_sys_ioctl(fd, ss_siocinq, &queued) == 0, ss_tcp_positions_of(fd, &after) == 0 else { return nil }
            // After a FIN the counters include it; there is nothing left to win from a companion then.
            guard after.state == TCPState.established || after.state == TCPState.finWait1 || after.state == TCPState.finWait2
            else { return nil }
            if after.bytes_received == before.bytes_received {
                return after.bytes_received &- UInt64(UInt32(bitPattern: queued))
            }
            before = after
        }
        return nil
    }
}

extension Session {
    /// How far a connection has been read and written over TCP, by whomever. nil: it has ended, or the kernel does not say.
    package static func positionsOnTCP(_ fd: Int32) -> (read: UInt64, written: UInt64)? {
        var figures = ss_tcp_positions()
        guard ss_tcp_positions_of(fd, &figures) == 0, figures.valid != 0, figures.state == TCPState.established,
            let read = KernelPositions.read(fd)
        else { return nil }
        return (read, figures.bytes_sent &- figures.bytes_retrans &+ UInt64(figures.notsent_bytes))
    }
}
