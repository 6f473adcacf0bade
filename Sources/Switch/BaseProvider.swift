import CSocketSwitch
#if !hasFeature(Embedded)
import ServiceProviders
#endif

// The TCP/IP provider as the switch calls it: through its WSPPROC_TABLE, like every provider (WSD-I3, C1, C3, L1, S3). Each
// function answers as the system call does: a value >= 0, or -errno.
//
// Data calls on sockets without a companion stay direct system calls: they are the program's own calls on its own
// descriptor, must cost nothing, and WSABUF would only be a copy of what the kernel takes anyway.

/// The provider's table, filled by the library's constructor; by the first call when that comes before it (then there is
/// one thread only).
@inline(__always)
private var calls: UnsafeMutablePointer<WSPPROC_TABLE> {
    let table = ss_base_provider_address().unsafelyUnwrapped
    if table.pointee.lpWSPGetQOSByName == nil { startBaseProvider() }
    return table
}

/// WSD-I3: the TCP/IP provider is started before all others. Harmless when it was.
@inline(never)
func startBaseProvider() {
    _ = tcpipStartupEx(UInt32(SOCKSWITCH_SPI_VERSION), nil, nil, ss_base_provider_address())
}

/// What SAN providers are told of TCP/IP (WSD-I1, I3).
func baseProviderInfo() -> WSAPROTOCOL_INFO {
    var info = WSAPROTOCOL_INFO()
    info.iVersion = Int32(SOCKSWITCH_SPI_VERSION)
    info.iAddressFamily = AF_INET
    info.iSocketType = 1
    info.iProtocol = 6
    info.dwCatalogEntryId = 1
    info.dwServiceFlags1 = UInt32(XP1_GUARANTEED_DELIVERY | XP1_GUARANTEED_ORDER | XP1_GRACEFUL_CLOSE)
    return info
}

@inline(__always)
private func handle(_ fd: Int32) -> SOCKET { SOCKET(bitPattern: Int(fd)) }

@inline(__always)
private func outcomeOf(_ result: Int32, _ error: Int32) -> Int { result == SOCKET_ERROR ? -Int(error) : Int(result) }

@inline(__always)
private func outcomeOf(_ made: SOCKET, _ error: Int32) -> Int { made == SOCKET.max ? -Int(error) : Int(bitPattern: made) }

func baseSocket(_ domain: Int32, _ type: Int32, _ proto: Int32) -> Int {
    var error: Int32 = 0
    return outcomeOf(calls.pointee.lpWSPSocket(domain, type, proto, nil, 0, 0, &error), error)
}

func baseBind(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int {
    var error: Int32 = 0
    return outcomeOf(calls.pointee.lpWSPBind(handle(fd), address?.assumingMemoryBound(to: sockaddr.self), length, &error), error)
}

func baseListen(_ fd: Int32, _ backlog: Int32) -> Int {
    var error: Int32 = 0
    return outcomeOf(calls.pointee.lpWSPListen(handle(fd), backlog, &error), error)
}

func baseConnect(_ fd: Int32, _ address: UnsafeRawPointer?, _ length: UInt32) -> Int {
    var error: Int32 = 0
    let name = address?.assumingMemoryBound(to: sockaddr.self)
    return outcomeOf(calls.pointee.lpWSPConnect(handle(fd), name, length, nil, nil, &error), error)
}

/// `flags`: of accept4(2).
func baseAccept(_ fd: Int32, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?, _ flags: Int32) -> Int {
    var error: Int32 = 0
    let name = address?.assumingMemoryBound(to: sockaddr.self)
    return outcomeOf(calls.pointee.lpWSPAccept(handle(fd), name, length, nil, UInt(UInt32(bitPattern: flags)), &error), error)
}

func baseClose(_ fd: Int32) -> Int {
    var error: Int32 = 0
    return outcomeOf(calls.pointee.lpWSPCloseSocket(handle(fd), &error), error)
}

func baseSetOption(_ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: UInt32) -> Int {
    var error: Int32 = 0
    return outcomeOf(calls.pointee.lpWSPSetSockOpt(handle(fd), level, name, value, length, &error), error)
}

func baseGetOption(
    _ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int {
    var error: Int32 = 0
    return outcomeOf(calls.pointee.lpWSPGetSockOpt(handle(fd), level, name, value, length, &error), error)
}

/// WSD-I6: whether the machine's addresses have changed since the last question.
func baseAddressesChanged() -> Bool {
    var error: Int32 = 0
    var returned = 0
    return calls.pointee.lpWSPIoctl(0, UInt32(SIO_ADDRESS_LIST_CHANGE), nil, 0, nil, 0, &returned, &error) == 0
}
