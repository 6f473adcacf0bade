import CSocketSwitch
#if !hasFeature(Embedded)
import SocketTable
import StreamRing
#endif

// The local addresses with their subnets, from the kernel's routing socket (WSD-I5), and whether they changed (WSD-I6).
// Raw netlink: getifaddrs allocates.

/// The parts of <linux/rtnetlink.h> that are needed here.
private enum RouteNetlink {
    static var family: Int32 { 16 }  // AF_NETLINK
    static var requestAndDump: UInt16 { 0x301 }  // NLM_F_REQUEST | NLM_F_DUMP
    static var error: UInt16 { 2 }  // NLMSG_ERROR
    static var done: UInt16 { 3 }  // NLMSG_DONE
    static var newLink: UInt16 { 16 }  // RTM_NEWLINK
    static var getLink: UInt16 { 18 }  // RTM_GETLINK
    static var newAddress: UInt16 { 20 }  // RTM_NEWADDR
    static var getAddress: UInt16 { 22 }  // RTM_GETADDR
    static var attributeAddress: UInt16 { 1 }  // IFA_ADDRESS
    static var attributeLocal: UInt16 { 2 }  // IFA_LOCAL
    static var interfaceUp: UInt32 { 1 }  // IFF_UP
    /// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
    static var changeGroups: UInt32 { 0x1 | 0x10 | 0x100 }

    static func open() -> Int32 {
        let type = Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        return Int32(truncatingIfNeeded: ss_sys_socket(family, type, 0))
    }
}

/// Interfaces that are down, by index; those with an index that does not fit count as up.
private struct InterfaceSet {
    private var bits = InlineArray<16, UInt64>(repeating: 0)

    mutating func insert(_ index: UInt32) {
        if index < 1024 { bits[Int(index >> 6)] |= 1 << UInt64(index & 63) }
    }

    func contains(_ index: UInt32) -> Bool { index < 1024 && bits[Int(index >> 6)] & (1 << UInt64(index & 63)) != 0 }
}

/// The list under construction.
private struct AddressListBuilder {
    let list: UnsafeMutablePointer<SOCKET_ADDRESS_LIST>
    static var capacity: Int { 64 }

    /// `address`: 4 or 16 bytes in network order.
    func append(family: Int32, address: UnsafeRawPointer, prefixLength: UInt32, interface: UInt32) {
        let count = Int(list.pointee.iAddressCount)
        guard count < AddressListBuilder.capacity else { return }
        // The array is the structure's last member.
        let fromEnd = (AddressListBuilder.capacity - count) * MemoryLayout<SOCKSWITCH_SUBNET>.stride
        let storage = UnsafeMutableRawPointer(list) + MemoryLayout<SOCKET_ADDRESS_LIST>.size - fromEnd
        let entry = storage.assumingMemoryBound(to: SOCKSWITCH_SUBNET.self)
        memset(storage, 0, MemoryLayout<SOCKSWITCH_SUBNET>.size)
        storage.storeBytes(of: UInt16(family), as: UInt16.self)
        if family == AF_INET {
            memcpy(storage + 4, address, 4)
        } else {
            memcpy(storage + 8, address, 16)
            // fe80::/10 means something on its link only.
            let isLinkLocal = address.load(as: UInt8.self) == 0xFE && address.load(fromByteOffset: 1, as: UInt8.self) & 0xC0 == 0x80
            if isLinkLocal { storage.storeBytes(of: interface, toByteOffset: 24, as: UInt32.self) }
        }
        entry.pointee.PrefixLength = prefixLength
        list.pointee.iAddressCount += 1
    }

    /// 127.0.0.1/8 and ::1/128: always there, whatever the kernel says.
    func appendLoopback() {
        var address = (UInt64(0), UInt64(1).bigEndian)
        withUnsafeMutableBytes(of: &address) { bytes in
            let base = bytes.baseAddress!
            append(family: AF_INET6, address: base, prefixLength: 128, interface: 0)
            base.storeBytes(of: UInt32(0x7F00_0001).bigEndian, as: UInt32.self)
            append(family: AF_INET, address: base, prefixLength: 8, interface: 0)
        }
    }

    func appendMessage(_ message: UnsafeRawPointer, _ length: Int, downInterfaces: InterfaceSet) {
        // struct ifaddrmsg: family, prefix length, flags, scope; interface.
        guard length >= 8 else { return }
        let family = Int32(message.load(as: UInt8.self))
        let prefixLength = UInt32(message.load(fromByteOffset: 1, as: UInt8.self))
        let interface = message.load(fromByteOffset: 4, as: UInt32.self)
        let size = family == AF_INET ? 4 : 16
        guard family == AF_INET || family == AF_INET6, prefixLength <= UInt32(size * 8),
            !downInterfaces.contains(interface)
        else { return }
        var address: UnsafeRawPointer?
        var offset = 8
        while offset + 4 <= length {
            let attributeLength = Int(message.load(fromByteOffset: offset, as: UInt16.self))
            let type = message.load(fromByteOffset: offset + 2, as: UInt16.self)
            guard attributeLength >= 4, attributeLength <= length - offset else { break }
            if attributeLength >= 4 + size {
                // On a point-to-point link IFA_ADDRESS is the peer's, IFA_LOCAL mine.
                if type == RouteNetlink.attributeLocal || (type == RouteNetlink.attributeAddress && address == nil) {
                    address = message + offset + 4
                }
            }
            offset += (attributeLength + 3) & ~3
        }
        guard let address, !isAppendedLoopback(family, address) else { return }
        append(family: family, address: address, prefixLength: prefixLength, interface: interface)
    }

    private func isAppendedLoopback(_ family: Int32, _ address: UnsafeRawPointer) -> Bool {
        if family == AF_INET { return address.load(as: UInt8.self) == 127 }
        for index in 0..<15 where address.load(fromByteOffset: index, as: UInt8.self) != 0 { return false }
        return address.load(fromByteOffset: 15, as: UInt8.self) == 1
    }
}

/// Asks for all of something and hands every answer of type `answer` (header cut off) to `body`. False when the kernel
/// would not say.
private func dump(_ socket: Int32, _ request: UInt16, _ answer: UInt16, _ body: (UnsafeRawPointer, Int) -> Void) -> Bool {
    // The kernel fills at most 8 KiB at a time for a reader who gives it 8 KiB. (The stack may be a thread's small one.)
    let size = 8192
    let memory = ss_sys_mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard memory > 0, let base = UnsafeMutableRawPointer(bitPattern: memory) else { return false }
    defer { _ = ss_sys_munmap(base, size) }
    // struct nlmsghdr: length, type, flags, sequence, port; behind it zeroes (any family).
    base.storeBytes(of: 32, as: UInt32.self)
    base.storeBytes(of: request, toByteOffset: 4, as: UInt16.self)
    base.storeBytes(of: RouteNetlink.requestAndDump, toByteOffset: 6, as: UInt16.self)
    base.storeBytes(of: UInt32(request), toByteOffset: 8, as: UInt32.self)
    guard ss_sys_sendto(socket, base, 32, Int32(MSG_NOSIGNAL)) == 32 else { return false }
    // Every datagram is one round; a host with more addresses than this fits in no list anyway.
    for _ in 0..<4096 {
        let count = ss_sys_recvfrom(socket, base, size, Int32(MSG_DONTWAIT))
        if count == -Int(EINTR) { continue }
        guard count > 0 else { return false }
        var offset = 0
        while offset + 16 <= count {
            let length = Int(base.load(fromByteOffset: offset, as: UInt32.self))
            let type = base.load(fromByteOffset: offset + 4, as: UInt16.self)
            guard length >= 16, length <= count - offset else { break }
            if type == RouteNetlink.done { return true }
            if type == RouteNetlink.error { return false }
            if type == answer { body(UnsafeRawPointer(base + offset + 16), length - 16) }
            offset += (length + 3) & ~3
        }
    }
    return false
}

/// SIO_ADDRESS_LIST_QUERY: the IPv4 and IPv6 addresses of all interfaces that are up, each with its subnet's prefix
/// length; at most 64, loopback first. Where the kernel does not answer (seccomp, no netlink): loopback alone.
///
/// Any thread; little stack, a few system calls.
func fillAddressList(_ list: UnsafeMutablePointer<SOCKET_ADDRESS_LIST>) {
    let builder = AddressListBuilder(list: list)
    list.pointee.iAddressCount = 0
    builder.appendLoopback()
    let socket = RouteNetlink.open()
    guard socket >= 0 else { return }
    var down = InterfaceSet()
    _ = dump(socket, RouteNetlink.getLink, RouteNetlink.newLink) { message, length in
        // struct ifinfomsg: family, type; index; flags.
        guard length >= 16 else { return }
        if message.load(fromByteOffset: 8, as: UInt32.self) & RouteNetlink.interfaceUp == 0 {
            down.insert(message.load(fromByteOffset: 4, as: UInt32.self))
        }
    }
    let downInterfaces = down
    _ = dump(socket, RouteNetlink.getAddress, RouteNetlink.newAddress) { message, length in
        builder.appendMessage(message, length, downInterfaces: downInterfaces)
    }
    _ = ss_sys_close(socket)
}

/// Who asks for address changes: each provider is told of each change once.
enum AddressListReader { case tcpip, sharedMemory }

/// SIO_ADDRESS_LIST_CHANGE: whether an address or an interface changed since this provider last asked; true the first
/// time. Without a routing socket (no descriptor, seccomp) true once a second, so that the list is simply read again.
///
/// Any thread; one system call when nothing changed.
func addressListChanged(for reader: AddressListReader) -> Bool {
    let mask = lockProviders()
    defer { unlockProviders(mask) }
    let state = providerState
    if state.pointee.addressSocketPlusOne == 0 {
        state.pointee.addressSocketPlusOne = openChangeSocket() + 1
        state.pointee.addressChanges &+= 1
        state.pointee.lastAddressReport = ss_monotonic_ns()
    } else if state.pointee.addressSocketPlusOne < 0 {
        let now = ss_monotonic_ns()
        if now &- state.pointee.lastAddressReport >= 1_000_000_000 {
            state.pointee.addressChanges &+= 1
            state.pointee.lastAddressReport = now
        }
    } else if drainChanges(state.pointee.addressSocketPlusOne - 1) {
        state.pointee.addressChanges &+= 1
    }
    let changes = state.pointee.addressChanges
    switch reader {
    case .tcpip:
        defer { state.pointee.addressChangesReported.tcpip = changes }
        return state.pointee.addressChangesReported.tcpip != changes
    case .sharedMemory:
        defer { state.pointee.addressChangesReported.sharedMemory = changes }
        return state.pointee.addressChangesReported.sharedMemory != changes
    }
}

/// One of the library's own descriptors, or a number below -1.
private func openChangeSocket() -> Int32 {
    let made = RouteNetlink.open()
    guard made >= 0 else { return -2 }
    let socket = adoptOwn(made)
    guard socket >= 0 else { return -2 }
    // struct sockaddr_nl: family, padding, port, groups.
    var address = (UInt16(RouteNetlink.family), UInt16(0), UInt32(0), RouteNetlink.changeGroups)
    guard ss_sys_bind(socket, &address, 12) == 0 else {
        closeOwn(socket)
        return -2
    }
    return socket
}

/// Whether something was reported; an overrun (ENOBUFS) counts.
private func drainChanges(_ socket: Int32) -> Bool {
    var changed = false
    var ignored: UInt64 = 0
    for _ in 0..<64 {
        let count = ss_sys_recvfrom(socket, &ignored, 8, Int32(MSG_DONTWAIT))
        if count == -Int(EAGAIN) || count == 0 { break }
        changed = true
    }
    return changed
}

/// A forked child would take its parent's notifications; the next question opens a new one.
func closeAddressSocket() {
    let socket = providerState.pointee.addressSocketPlusOne - 1
    providerState.pointee.addressSocketPlusOne = 0
    closeOwn(socket)
}
