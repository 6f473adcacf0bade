import CSocketSwitch

/// What the two doorbells of a connection are. Both ends and the service hold both.
package enum DoorbellKind {
    /// An eventfd each, which whoever wants to wake the side writes to. One description for both ends, so an end can take
    /// O_NONBLOCK off it and make the other's next ring wait for ever: only for ends of one user, who could stop the other
    /// anyway.
    package static var events: UInt32 { 0 }
    /// The two ends of a Unix socket pair: the side sleeps on one of them and is woken through the other. Whether a
    /// call waits is said by the call, so nothing that an end does to them makes the other wait. A microsecond more a ring.
    package static var socketPair: UInt32 { 1 }
}

package enum Doorbells {
    #if !hasFeature(Embedded)
    /// Two new ones, by the side that each wakes. 0, or -errno: there are none then.
    package static func make(_ kind: UInt32, _ bells: inout (Int32, Int32)) -> Int {
        if kind == DoorbellKind.socketPair {
            let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
            return withUnsafeMutableBytes(of: &bells) {
                ss_sys_socketpair(AF_UNIX, type, 0, $0.baseAddress!.assumingMemoryBound(to: Int32.self))
            }
        }
        let flags = Int32(EFD_NONBLOCK) | Int32(EFD_CLOEXEC)
        let one = ss_sys_eventfd(0, flags)
        guard one >= 0 else { return one }
        let other = ss_sys_eventfd(0, flags)
        guard other >= 0 else {
            _ = ss_sys_close(Int32(one))
            return other
        }
        bells = (Int32(one), Int32(other))
        return 0
    }
    #endif

    /// Makes `bell` readable; never waits. `other`: the other side's. 0, or -errno.
    @inline(__always)
    package static func ring(_ bell: Int32, _ other: Int32, _ kind: UInt32) -> Int {
        if kind == DoorbellKind.socketPair { return ringThrough(other, bell) }
        var one: UInt64 = 1
        let result = ss_sys_write(bell, &one, 8)
        // EAGAIN: the counter is full, so the doorbell is ringing.
        return result >= 0 || result == -Int(EAGAIN) ? 0 : result
    }

    @inline(never)
    private static func ringThrough(_ other: Int32, _ bell: Int32) -> Int {
        let flags = Int32(MSG_DONTWAIT | MSG_NOSIGNAL)
        var one: UInt8 = 1
        var result = ss_sys_sendto(other, &one, 1, flags)
        if result == -Int(EAGAIN) {
            // Nobody reads a bell that lies in epoll sets alone, and for an edge there must be something new.
            _ = empty(bell)
            result = ss_sys_sendto(other, &one, 1, flags)
        }
        return result >= 0 || result == -Int(EAGAIN) ? 0 : result
    }

    /// Takes what `bell` has rung. 0; -EAGAIN: it was silent; another -errno.
    @inline(__always)
    package static func silence(_ bell: Int32, _ kind: UInt32) -> Int {
        if kind == DoorbellKind.socketPair { return empty(bell) }
        var rings: UInt64 = 0
        return min(ss_sys_read(bell, &rings, 8), 0)
    }

    @inline(never)
    private static func empty(_ bell: Int32) -> Int {
        var rings = InlineArray<32, UInt64>(repeating: 0)
        return withUnsafeMutableBytes(of: &rings) { min(ss_sys_recvfrom(bell, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT)), 0) }
    }
}
