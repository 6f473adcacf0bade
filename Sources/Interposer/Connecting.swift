import CInterposer
import CSocketSwitch

/// To the program this is TCP/IP (WSD-I1). Only TCP candidates reach the switch (WSD-C2); what
/// protocol 0 or another number means there, the switch knows.
@c(socket) public func interposedSocket(_ domain: Int32, _ type: Int32, _ proto: Int32) -> Int32 {
    let isInternet = domain == AF_INET || domain == AF_INET6
    // The type's low four bits are the type, the others SOCK_CLOEXEC and SOCK_NONBLOCK.
    guard isInternet, type & 0xF == Int32(SOCK_STREAM.rawValue) else { return untracked(ss_real.socket(domain, type, proto)) }
    return answer32(switchSocket(domain, type, proto))
}

/// A new socket that is none of the switch's may have a number that the table still knows.
@inline(__always)
private func untracked(_ fd: Int32) -> Int32 {
    forgetStale(fd)
    return fd
}

@c(bind) public func interposedBind(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.bind(fd, address, length) : trackedBind(fd, address, length)
}

@inline(never)
func trackedBind(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int32 {
    answer32(switchBind(fd, address, length))
}

@c(listen) public func interposedListen(_ fd: Int32, _ backlog: Int32) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.listen(fd, backlog) : trackedListen(fd, backlog)
}

@inline(never)
func trackedListen(_ fd: Int32, _ backlog: Int32) -> Int32 { answer32(switchListen(fd, backlog)) }

@c(connect) public func interposedConnect(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.connect(fd, address, length) : trackedConnect(fd, address, length)
}

@inline(never)
func trackedConnect(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int32 {
    ss_test_cancel()
    return Int32(truncatingIfNeeded: answerCancellable(switchConnect(fd, address, length)))
}

@c(accept) public func interposedAccept(
    _ fd: Int32, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int32 {
    isListenerOfSwitch(fd) ? trackedAccept(fd, address, length, 0) : untracked(ss_real.accept(fd, address, length))
}

@c(accept4) public func interposedAccept4(
    _ fd: Int32, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?, _ flags: Int32
) -> Int32 {
    isListenerOfSwitch(fd) ? trackedAccept(fd, address, length, flags) : untracked(ss_real.accept4(fd, address, length, flags))
}

@inline(never)
func trackedAccept(
    _ fd: Int32, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?, _ flags: Int32
) -> Int32 {
    ss_test_cancel()
    return Int32(truncatingIfNeeded: answerCancellable(switchAccept(fd, address, length, flags)))
}

/// A listener may come from outside (inherited over exec, passed by a supervisor): connections that it accepts are the
/// switch's all the same. Any other listener (Unix sockets) keeps libc's accept.
@inline(__always)
private func isListenerOfSwitch(_ fd: Int32) -> Bool {
    descriptorEntry(fd) != 0 || isForeignListener(fd)
}

@inline(never)
private func isForeignListener(_ fd: Int32) -> Bool {
    adoptListener(fd)
    return descriptorEntry(fd) != 0
}

@c(shutdown) public func interposedShutdown(_ fd: Int32, _ how: Int32) -> Int32 {
    descriptorEntry(fd) == 0 ? ss_real.shutdown(fd, how) : trackedShutdown(fd, how)
}

@inline(never)
func trackedShutdown(_ fd: Int32, _ how: Int32) -> Int32 { answer32(switchShutdown(fd, how)) }

// MARK: Options

@c(getsockopt) public func interposedGetsockopt(
    _ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int32 {
    descriptorEntry(fd) == 0
        ? ss_real.getsockopt(fd, level, name, value, length) : trackedGetOption(fd, level, name, value, length)
}

@inline(never)
func trackedGetOption(
    _ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int32 {
    answer32(switchGetOption(fd, level, name, value, length))
}

@c(setsockopt) public func interposedSetsockopt(
    _ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: UInt32
) -> Int32 {
    descriptorEntry(fd) == 0
        ? ss_real.setsockopt(fd, level, name, value, length) : trackedSetOption(fd, level, name, value, length)
}

@inline(never)
func trackedSetOption(
    _ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: UInt32
) -> Int32 {
    answer32(switchSetOption(fd, level, name, value, length))
}
