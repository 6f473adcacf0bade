// sockswitch/spi.h: the provider interface of SocketSwitch (Windows Sockets Direct's SPI with Linux types).
//
// A *service provider* carries the connections of programs over one kind of system area network (SAN): a reliable,
// connection-oriented interconnect reached from user mode. The *switch* (libsockswitch.so, inside an unmodified
// program) calls it through the table that WSPStartupEx fills. For every TCP connection of the program that a
// provider can serve, the switch makes a *companion socket* beside the program's TCP socket, which always exists; the
// companion connects when the connection has proved worth it, and the switch's session protocol then moves the byte
// stream over to it. WSD-… names the rules of Windows Sockets Direct that a call implements.
//
// The life of a companion, as the switch calls it:
//
//     connecting side                             accepting side
//     WSPSocket  WSPBind  WSPSetSockOpt…          WSPSocket  WSPBind  WSPSetSockOpt…           WSD-C5, C7, C9
//                                                 WSPListen  WSPEventSelect(FD_ACCEPT)         WSD-L1, L2
//     SIO_SOCKSWITCH_BASE_SOCKET                  SIO_SOCKSWITCH_OFFER  (one a connection)
//     WSPEventSelect(FD_CONNECT)  WSPConnect                                                   WSD-N2
//     WSPEnumNetworkEvents                        WSPEnumNetworkEvents  WSPAccept              WSD-L4
//     WSPRecv  WSPSend   one message of at most 256 bytes each way, either order               WSD-N4
//     WSPRegisterRdmaMemory, WSPRdmaWrite (or WSPMapRdmaMemory), WSPSend and WSPRecv without content
//     WSPCloseSocket                              WSPCloseSocket                               WSD-X2
//
// A companion that cannot be set up costs the program nothing: whatever call fails, the switch calls WSPCloseSocket
// once, and the connection stays on TCP (WSD-C10). A *listening* companion never carries data.
//
// ## Rules for every call
//
// Result. Calls that return `int` return 0, or SOCKET_ERROR with the error number in *lpErrno; calls that return
//     SOCKET or a pointer return INVALID_SOCKET or NULL instead. The one exception is WSPGetOverlappedResult.
//     *lpErrno is written only on failure. lpErrno may be NULL; the caller's `errno` must stay untouched.
// Errors are errno values, for which Winsock names are given below. A SOCKET that the provider does not know is
//     WSAENOTSOCK (ENOTSOCK), a call that the socket's state does not allow WSAEINVAL (EINVAL), a pointer that must
//     not be NULL WSAEFAULT (EFAULT); these are not repeated at each call.
// Blocking. No call but WSPCleanup may block or take long: it runs inside a call of the program, which expects TCP's
//     timing. What takes time is started, answered with WSA_IO_PENDING (EINPROGRESS), and reported later.
// Threads. Calls come from any thread of the program, several at a time. For one socket the switch makes one call at
//     a time, but for these, which may come together with each other and with any call but WSPCloseSocket: WSPSend
//     without content, WSPRecv without content, WSPRdmaWrite on behalf of the sender and of the receiver.
// Signals. Calls are made from signal handlers, too, which may have interrupted the provider in the same thread. A lock
//     that is held across such a call must not be waited for: block signals while holding it, or fail.
// Memory. The provider must not use malloc inside a call: the program may be inside malloc. Whoever allocated something
//     frees it. A pointer argument is valid until the call returns, unless the call says otherwise.
// Descriptors that a provider keeps open should be high and close-on-exec: they live among the program's.
// Fork. The child has a copy of the provider's memory and descriptors. Connected companions must work in parent and
//     child (the switch's locks keep them from calling at the same time); everything pending belongs to the parent.
// Standard output and standard error belong to the program. A provider writes nothing there.
#ifndef SOCKSWITCH_SPI_H
#define SOCKSWITCH_SPI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

/// The version of this interface. WSPStartupEx refuses any other.
#define SOCKSWITCH_SPI_VERSION 1u

/// A provider's socket descriptor (chosen by the provider: an index, a pointer, anything but 0 and INVALID_SOCKET) in
/// calls down, the switch's socket handle in calls up (WSD-C6). Neither is a file descriptor, except in the TCP/IP
/// provider. A value must not be used again soon after WSPCloseSocket.
typedef uintptr_t SOCKET;
#define INVALID_SOCKET ((SOCKET)~(uintptr_t)0)
#define SOCKET_ERROR (-1)

/// A provider id or the name of an extension function, in the byte layout of Windows.
typedef struct SOCKSWITCH_GUID { uint32_t Data1; uint16_t Data2, Data3; uint8_t Data4[8]; } GUID;

/// Errors are errno values. The Winsock names stand beside them.
enum {
    WSA_IO_PENDING = 115,      // EINPROGRESS: started, will complete later
    WSA_IO_INCOMPLETE = 115,   // EINPROGRESS: has not completed yet
    WSAEWOULDBLOCK = 11,       // EAGAIN: nothing there now
    WSAECONNREFUSED = 111, WSAECONNRESET = 104, WSAEHOSTUNREACH = 113, WSAEOPNOTSUPP = 95, WSAENOBUFS = 105,
    WSAEINVAL = 22, WSAENOTSOCK = 88, WSAEADDRINUSE = 98, WSAENOPROTOOPT = 92, WSAETIMEDOUT = 110, WSAENETDOWN = 100,
    WSA_OPERATION_ABORTED = 125, // ECANCELED: WSPCloseSocket ended it
};

/// One buffer: `len` bytes at `buf`. `buf` may be NULL when `len` is 0.
typedef struct WSABUF { size_t len; void *buf; } WSABUF;

/// One asynchronous operation (WSD-T7). The caller owns it and keeps it (and the buffers) until the operation
/// completed; it zeroes everything but hEvent beforehand. It is in use by one operation at a time.
typedef struct WSAOVERLAPPED {
    uintptr_t Internal;      // provider: 0 while pending, else 1 (completed); written last
    uintptr_t InternalHigh;  // provider: bytes transferred
    int32_t Error;           // provider: 0 or errno of the completed operation
    uint32_t Flags;          // provider: flags of a completed receive
    uintptr_t hEvent;        // caller: low bit set = no notification wanted, the switch polls WSPGetOverlappedResult
} WSAOVERLAPPED;

/// What a provider, or the TCP/IP provider below it, is.
typedef struct WSAPROTOCOL_INFO {
    uint32_t dwServiceFlags1;   // XP1_… below
    GUID ProviderId;            // the provider's own, the same in every process
    uint32_t dwCatalogEntryId;  // given by the switch: to be handed to WPUCreateSocketHandle
    int32_t iVersion;           // SOCKSWITCH_SPI_VERSION
    int32_t iAddressFamily, iSocketType, iProtocol;  // AF_INET or AF_INET6, SOCK_STREAM, IPPROTO_TCP
    uint32_t dwMessageSize;     // 0: a byte stream
    char szProtocol[64];        // for people; zero-terminated
} WSAPROTOCOL_INFO;
enum {
    XP1_GUARANTEED_DELIVERY = 0x2, XP1_GUARANTEED_ORDER = 0x4, XP1_GRACEFUL_CLOSE = 0x20, XP1_SAN_SUPPORT_SDP = 0x80000,
};

/// What WSPEnumNetworkEvents reports: FD_… bits, and for each of them, at its FD_…_BIT, 0 or an errno. Only FD_ACCEPT
/// and FD_CONNECT are asked of a SAN provider (WSD-S1).
typedef struct WSANETWORKEVENTS { int32_t lNetworkEvents; int32_t iErrorCode[10]; } WSANETWORKEVENTS;
enum { FD_READ = 1, FD_WRITE = 2, FD_OOB = 4, FD_ACCEPT = 8, FD_CONNECT = 16, FD_CLOSE = 32 };
enum { FD_ACCEPT_BIT = 3, FD_CONNECT_BIT = 4 };
/// Answers of a condition function.
enum { CF_ACCEPT = 0, CF_REJECT = 1, CF_DEFER = 2 };

/// The condition function of WSPAccept (WSD-L4): called on the same thread before WSPAccept returns, with no lock of
/// the provider's held. It may make up-calls happen, but calls the provider for no other reason.
///
/// - lpCallerId: the address of the peer's TCP/IP socket (a sockaddr).
/// - lpCalleeId: the SOCKSWITCH_OFFER that this connection answers; empty where the provider works without offers.
/// - dwCallbackData: as given to WSPAccept.
/// - Returns CF_ACCEPT, CF_REJECT (the peer is told), or CF_DEFER (asked again at the next WSPAccept).
typedef int (*LPCONDITIONPROC)(const WSABUF *lpCallerId, const WSABUF *lpCalleeId, uintptr_t dwCallbackData);

/// WSPIoctl codes. "Any socket": also a fresh one, which was made for the question. Sizes are those of the type
/// named; a buffer that is too small is WSAEINVAL (in) or WSAEFAULT (out). A code that the provider does not know is
/// WSAEOPNOTSUPP. None of them blocks.
enum {
    /// In: GUID. Out: function pointer (WSD-I4). Any socket; the answer holds for all of them. WSAEOPNOTSUPP: the
    /// provider has no such function.
    SIO_GET_EXTENSION_FUNCTION_POINTER = 0xC8000006u,
    /// Out: SOCKET_ADDRESS_LIST (WSD-I5). Any socket. A destination in one of the subnets is this provider's
    /// (WSD-N1); a listener gets a companion when it is bound to one of the addresses, or to the wildcard.
    SIO_ADDRESS_LIST_QUERY = 0x48000016u,
    /// No buffers (WSD-I6). Any socket. 0: the list may have changed since this was last asked, or was never asked.
    /// WSAEWOULDBLOCK: it has not.
    SIO_ADDRESS_LIST_CHANGE = 0x28000017u,
    /// In: SOCKSWITCH_OFFER, the connected TCP/IP socket of this companion; before WSPConnect, again before each
    /// further one. The descriptor stays the switch's and is used no later than in WSPConnect.
    SIO_SOCKSWITCH_BASE_SOCKET = 0x98005301u,
    /// Out: int, a descriptor that becomes readable (level-triggered) when the peer has made progress possible: after
    /// its WSPSend without content, or after a completion. Of a connected companion, for as long as it is open. The
    /// provider's: it may be polled and put into epoll sets, never read or closed; WSPRecv without content silences
    /// it.
    SIO_SOCKSWITCH_NOTIFICATION = 0x58005302u,
    /// In: SOCKSWITCH_OFFER, an accepted TCP/IP connection, on the listening companion of its listener: "pair this
    /// one, if the peer wants to". 0: an FD_ACCEPT will follow, for WSPAccept or SIO_SOCKSWITCH_OFFER_RESULT.
    /// EALREADY: it was offered before. WSAENETDOWN, WSAENOBUFS: not now. The descriptor is used during the call
    /// only.
    SIO_SOCKSWITCH_OFFER = 0x98005303u,
    /// Out: uint64_t *, a word that changes when WSPEnumNetworkEvents may have news of any of the provider's sockets.
    /// Any socket. Readable for as long as the process lives; a forked child must ask for its own. WSAEOPNOTSUPP:
    /// there is none, the switch asks WSPEnumNetworkEvents each time.
    SIO_SOCKSWITCH_EVENT_WORD = 0x58005305u,
    /// Out: int32_t, why the last WSPConnect or offer on this socket failed: a SOCKSWITCH_REASON_… number, 0 for none.
    SIO_SOCKSWITCH_REASON = 0x58005304u,
    /// Out: SOCKSWITCH_OFFER_RESULT, the oldest offer of this listening companion that failed; each is given once.
    /// WSAEWOULDBLOCK: no more.
    SIO_SOCKSWITCH_OFFER_RESULT = 0x58005306u,
    /// In: SOCKSWITCH_OFFER (its Cookie), on the listening companion: the offer is void, nothing more is heard of it.
    /// ENOENT: no such offer waits.
    SIO_SOCKSWITCH_WITHDRAW_OFFER = 0x98005307u,
};

/// dwFlags of a WSPSend without content: not the peer is woken but whoever waits on this side's own notification descriptor,
/// in whatever process. Never fails for want of the peer.
enum { SOCKSWITCH_SEND_WAKES_SELF = 1 };

/// Why a socket is on TCP: the numbers of SIO_SOCKSWITCH_REASON and SOCKSWITCH_OFFER_RESULT, as `sockswitch ps` shows
/// them. A provider uses those that fit; SOCKSWITCH_REASON_COMPANION_FAILED says nothing more.
enum {
    SOCKSWITCH_REASON_NONE = 0,  // on the companion
    SOCKSWITCH_REASON_NOT_CONNECTED = 1,  // not connected
    SOCKSWITCH_REASON_NOT_WORTH_IT_YET = 2,  // too little traffic so far to be worth a companion
    SOCKSWITCH_REASON_POLICY = 3,  // the policy keeps it on TCP
    SOCKSWITCH_REASON_SWITCHED_OFF = 4,  // switched off by the operator (sockswitch off)
    SOCKSWITCH_REASON_NO_PROVIDER = 5,  // no provider serves the destination's subnet
    SOCKSWITCH_REASON_NO_SERVICE = 6,  // sockswitchd does not answer
    SOCKSWITCH_REASON_SERVICE_NOT_TRUSTED = 7,  // sockswitchd belongs to another user
    SOCKSWITCH_REASON_PEER_NOT_SWITCHED = 8,  // the peer is unknown here: not under sockswitch, or with another service
    SOCKSWITCH_REASON_WAITING_FOR_PEER = 9,  // waiting for the peer's announcement
    SOCKSWITCH_REASON_NEGOTIATING = 10,  // companion connected, session being negotiated
    SOCKSWITCH_REASON_SHARED_BEFORE_UPGRADE = 11,  // shared with another process before the companion was up
    SOCKSWITCH_REASON_DESCRIPTOR_LIMIT = 12,  // no descriptor left for doorbells
    SOCKSWITCH_REASON_MEMORY_LIMIT = 13,  // no memory for the rings
    SOCKSWITCH_REASON_COMPANION_FAILED = 14,  // the provider failed to set up the companion
    SOCKSWITCH_REASON_UNSUPPORTED_OPTION = 15,  // a socket option or call that the companion cannot serve
    SOCKSWITCH_REASON_URGENT_DATA = 16,  // urgent data was sent
    SOCKSWITCH_REASON_PEER_ENDED = 17,  // the connection, or one direction of it, is closed
    SOCKSWITCH_REASON_PROTOCOL_VIOLATION = 18,  // the peer broke the session protocol
    SOCKSWITCH_REASON_POSITION_UNKNOWN = 19,  // the kernel's byte counters disagree
    SOCKSWITCH_REASON_RING_STALLED = 20,  // the peer did not read; TCP's buffers took over
    SOCKSWITCH_REASON_NOT_INVITED = 21,  // nothing sent since the reader could be moved, or it has not called in yet
    SOCKSWITCH_REASON_NESTED_EPOLL = 22,  // reserved (an epoll set inside another one watches it: it moves)
    SOCKSWITCH_REASON_SOCKET_TABLE_FULL = 23,  // the socket table is full
    SOCKSWITCH_REASON_HANDED_OVER = 24,  // passed to another program
    SOCKSWITCH_REASON_PEER_POLICY = 25,  // the peer keeps it on TCP
    SOCKSWITCH_REASON_IO_URING = 26,  // the program has an io_uring that may move sockets' data past the switch
    SOCKSWITCH_REASON_UNUSED = 27,  // nothing has been sent this way since it can move
    SOCKSWITCH_REASON_PLAIN_CALL = 28,  // a thread is inside a call of the kernel that began before it could move
};

/// One local address that a provider controls, with the length of its subnet's prefix in bits (0 … 32 for IPv4, 0 … 128
/// for IPv6). The port is 0. Flags is reserved, 0.
typedef struct SOCKSWITCH_SUBNET { struct sockaddr_storage Address; uint32_t PrefixLength; uint32_t Flags; } SOCKSWITCH_SUBNET;
/// The first iAddressCount (0 … 64) entries are valid. An interface without an address does not appear (WSD-C14).
typedef struct SOCKET_ADDRESS_LIST { int32_t iAddressCount; SOCKSWITCH_SUBNET Address[64]; } SOCKET_ADDRESS_LIST;

/// A TCP/IP connection for which a companion may be asked: `BaseSocket` stays the switch's.
/// `Cookie` names the connection: the slot of the switch's socket table in bits 0…19, the slot's generation above.
/// At most one announcement (connecting or offered) of a slot waits at a time.
/// `Flags`: 0, or SOCKSWITCH_OFFER_REJOINS for a connection whose session is begun anew after an exec: both ends connect, and
/// wait for each other; no listening companion has a part in it.
enum { SOCKSWITCH_OFFER_REJOINS = 1 };
typedef struct SOCKSWITCH_OFFER { int32_t BaseSocket; uint32_t Flags; uint64_t Cookie; } SOCKSWITCH_OFFER;

/// The end of an offer that did not lead to a companion: the offer's cookie and why (SOCKSWITCH_REASON_…).
typedef struct SOCKSWITCH_OFFER_RESULT { uint64_t Cookie; int32_t Reason; uint32_t Reserved; } SOCKSWITCH_OFFER_RESULT;

/// The SAN options (WSD-T5), at level SOL_SOCKET; each an int, in bytes.
enum {
    /// The longest message of WSPSend; at least 256. Read only.
    SO_MAX_MSG_SIZE = 0x2003,
    /// The longest WSPRdmaWrite or WSPRdmaRead. Read only.
    SO_MAX_RDMA_SIZE = 0x700D,
    /// From this size on the provider prefers RDMA to messages; 0: always. The switch may set another.
    SO_RDMA_THRESHOLD_SIZE = 0x700E,
};

/// Identifies exposed memory to the connected peer (WSD-M2). Opaque to the switch, which carries it to the peer in a
/// message: plain bytes, at most 64, no pointers. A provider that receives one must expect nonsense in it.
typedef struct WSPUPRDMADESCRIPTOR { uint8_t Opaque[64]; } SOCKSWITCH_RDMA_DESCRIPTOR;
/// What the peer may do with exposed memory, and no more (WSD-M2, M3).
enum { MEM_READ = 1, MEM_WRITE = 2, MEM_READWRITE = 3 };

/// Up-calls (WSD-C6), given to WSPStartupEx; the provider copies the table. Each may be called on any thread that is
/// inside a provider call, with no lock of the provider's held. None of them blocks. They use the switch's handle.
typedef struct WSPUPCALLTABLE {
    /// In WSPSocket and in WSPAccept after CF_ACCEPT: makes the switch's handle of a new socket (WSD-C5).
    /// - dwCatalogEntryId: from the WSAPROTOCOL_INFO given to WSPSocket; for an accepted socket, the listener's.
    /// - dwContext: the provider's SOCKET.
    /// - Returns the handle, or INVALID_SOCKET with *lpErrno (WSAENOBUFS): the provider then fails with that error.
    SOCKET (*lpWPUCreateSocketHandle)(uint32_t dwCatalogEntryId, uintptr_t dwContext, int *lpErrno);
    /// Gives the dwContext of a handle. WSAENOTSOCK: the switch does not know it.
    int (*lpWPUQuerySocketHandleContext)(SOCKET s, uintptr_t *lpContext, int *lpErrno);
    /// The last up-call for a handle, from WSPCloseSocket: the provider is about to free its record (WSD-X2). Exactly
    /// one for each handle that was made. WSAENOTSOCK: the switch does not know it.
    int (*lpWPUCloseSocketHandle)(SOCKET s, int *lpErrno);
    /// An overlapped operation whose hEvent has the low bit clear has completed, after its call had answered
    /// WSA_IO_PENDING (WSD-T7). The provider has filled in lpOverlapped, and does not touch it afterwards.
    /// - dwError: 0 or errno, as in lpOverlapped. cbTransferred: bytes, likewise.
    int (*lpWPUCompleteOverlappedRequest)(SOCKET s, WSAOVERLAPPED *lpOverlapped, int32_t dwError, size_t cbTransferred, int *lpErrno);
} WSPUPCALLTABLE;

struct WSPPROC_TABLE;

/// WSPStartupEx, the entry point of a provider library (symbol "WSPStartupEx"), called once a process and catalogue
/// entry, after the TCP/IP provider was started (WSD-I3), perhaps again after a matching WSPCleanup.
///
/// - wVersionRequested: SOCKSWITCH_SPI_VERSION.
/// - lpTCPIPProtocolInfo: what the program believes that it uses; the provider copies what it needs. May be NULL.
/// - lpUpCallTable: copied by the provider.
/// - lpProcTable: zeroed by the switch; the provider fills in every member.
/// - Returns 0 or an errno: EPROTONOSUPPORT (WSAVERNOTSUPPORTED) for another version, EINVAL. The provider is then not
///   used in this process.
typedef int (*LPWSPSTARTUPEX)(uint32_t wVersionRequested, const WSAPROTOCOL_INFO *lpTCPIPProtocolInfo,
                              const WSPUPCALLTABLE *lpUpCallTable, struct WSPPROC_TABLE *lpProcTable);

/// The calls of a provider. Filled by WSPStartupEx, constant afterwards. "Companion" below: any socket of the provider.
typedef struct WSPPROC_TABLE {
    /// Ends the use of the provider in this process: as many calls as of WSPStartupEx. The last one closes every socket
    /// that is left, as WSPCloseSocket does, and gives back everything (WSD-X3). WSAENETDOWN (WSANOTINITIALISED): not
    /// started. No other call may be under way.
    int (*lpWSPCleanup)(int *lpErrno);

    /// Makes a companion (WSD-C5). Calls WPUCreateSocketHandle and keeps the handle until WSPCloseSocket. Made for
    /// listeners and for connections that have proved worth it, once more for questions: should cost memory at most.
    /// - af: AF_INET or AF_INET6, else EAFNOSUPPORT (WSAEAFNOSUPPORT).
    /// - type: SOCK_STREAM, else ESOCKTNOSUPPORT (WSAESOCKTNOSUPPORT); SOCK_NONBLOCK and SOCK_CLOEXEC may be added
    ///   and mean nothing. A raw or datagram socket is never asked for (WSD-C2).
    /// - protocol: 0 or IPPROTO_TCP, else EPROTONOSUPPORT (WSAEPROTONOSUPPORT).
    /// - lpProtocolInfo: the provider's own, with the catalogue entry's id; for WSPDuplicateSocket's successor what
    ///   that call filled in. May be NULL.
    /// - g, dwFlags: reserved, 0.
    /// - Errors: WSAENOBUFS (no record left), what WPUCreateSocketHandle said.
    SOCKET (*lpWSPSocket)(int af, int type, int protocol, const WSAPROTOCOL_INFO *lpProtocolInfo, uint32_t g, uint32_t dwFlags, int *lpErrno);

    /// Gives the companion the address and the port that the TCP/IP socket has (WSD-C7, C8): fully qualified, or the
    /// wildcard with a port for a listener on all interfaces. Once a socket, immediately after WSPSocket. It must not
    /// make the address unavailable to TCP, nor fail because another companion has it.
    /// - name, namelen: sockaddr_in or sockaddr_in6, bytes. WSAEINVAL: neither, too short, or bound already.
    int (*lpWSPBind)(SOCKET s, const struct sockaddr *name, socklen_t namelen, int *lpErrno);

    /// Makes a bound companion a listening one (WSD-L1); the program's own listen has succeeded. Offers may follow.
    /// Succeeds also while the provider's network is down: it then listens as soon as it can.
    /// - backlog: as the program gave it. Connections beyond it are refused (WSD-L3).
    int (*lpWSPListen)(SOCKET s, int backlog, int *lpErrno);

    /// Takes the oldest connection that a listening companion has ready, asks the condition function, and answers
    /// with a new, connected companion that has a handle of its own (WSD-L2, L4). Called after FD_ACCEPT until it
    /// fails with WSAEWOULDBLOCK.
    /// - addr, addrlen: filled with the peer's TCP/IP address unless NULL; *addrlen in: room, out: length, bytes.
    /// - lpfnCondition: may be NULL: accepted. dwCallbackData: handed to it.
    /// - Errors: WSAEWOULDBLOCK (nothing there, or deferred), WSAECONNREFUSED (the condition function rejected it;
    ///   the peer was told), what WPUCreateSocketHandle said (likewise).
    /// - TCP/IP provider: no condition function; dwCallbackData is the flags of accept4.
    SOCKET (*lpWSPAccept)(SOCKET s, struct sockaddr *addr, socklen_t *addrlen, LPCONDITIONPROC lpfnCondition, uintptr_t dwCallbackData, int *lpErrno);

    /// Connects a bound companion, never blocking (WSD-N2). SIO_SOCKSWITCH_BASE_SOCKET came before.
    /// - name, namelen: the address of the peer's TCP/IP socket, bytes.
    /// - lpCallerData, lpCalleeData: reserved, NULL.
    /// - 0: connected. WSA_IO_PENDING or WSAEWOULDBLOCK: FD_CONNECT will tell the outcome. Otherwise it failed.
    /// - Errors, here and with FD_CONNECT: WSAECONNREFUSED, WSAECONNRESET, WSAEHOSTUNREACH only if the provider can
    ///   guarantee that TCP would fail, too (WSD-N3). ENETUNREACH (WSAENETUNREACH): the peer does not take part.
    ///   WSAENETDOWN: the provider's network is down. WSAENOBUFS, EMFILE (WSAEMFILE): too much is under way, no
    ///   memory, no descriptor. WSAETIMEDOUT. EALREADY (WSAEALREADY), EISCONN (WSAEISCONN). After an error the switch
    ///   tries again or closes.
    int (*lpWSPConnect)(SOCKET s, const struct sockaddr *name, socklen_t namelen, const WSABUF *lpCallerData, WSABUF *lpCalleeData, int *lpErrno);

    /// Ends a companion, in whatever state it is (WSD-X2): an outstanding connect or offer is given up; pending
    /// overlapped operations complete with WSA_OPERATION_ABORTED, before it returns; registered and exposed memory is
    /// released and mappings from WSPAllocateRdmaMemory and WSPMapRdmaMemory are gone; the last up-call is
    /// WPUCloseSocketHandle. A peer that still waits for a message gets WSAECONNREFUSED. A listening companion's
    /// offers end with it, its accepted companions do not. In a forked child it ends the child's use alone. The
    /// SOCKET is unknown afterwards, also when the call reports an error.
    int (*lpWSPCloseSocket)(SOCKET s, int *lpErrno);

    /// Sends one message to the connected peer, whole and in order after those before it and after every WSPRdmaWrite
    /// before it. Without content (no buffer, or only empty ones): wakes the peer, whose notification descriptor
    /// becomes readable; several such may become one.
    /// - lpBuffers, dwBufferCount: the pieces, at most IOV_MAX of them, SO_MAX_MSG_SIZE bytes together, else EMSGSIZE
    ///   (WSAEMSGSIZE). They stay the caller's; in use until the operation completed.
    /// - lpNumberOfBytesSent: bytes, when it completed at once; may be NULL.
    /// - dwFlags: 0; without content also SOCKSWITCH_SEND_WAKES_SELF. (TCP/IP provider: the flags of send.)
    /// - lpOverlapped: NULL, or the operation. 0: completed at once, lpOverlapped is filled in and no notification
    ///   follows. WSA_IO_PENDING: will complete.
    /// - Errors: WSAEWOULDBLOCK (no room now), ENOTCONN (WSAENOTCONN), WSAECONNRESET, WSAENOBUFS: nothing was sent.
    int (*lpWSPSend)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, size_t *lpNumberOfBytesSent, uint32_t dwFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);

    /// Takes, or waits for, the peer's next message. One that arrives before a receive was posted is kept (WSD-N4).
    /// Without room (no buffer, or only empty ones): silences the own notification descriptor; WSAEWOULDBLOCK: it was
    /// silent.
    /// - lpBuffers, dwBufferCount: one buffer of at least 256 bytes and SO_MAX_MSG_SIZE, else EMSGSIZE (WSAEMSGSIZE).
    ///   In use until the operation completed.
    /// - lpNumberOfBytesRecvd: bytes, when it completed at once; may be NULL. lpFlags: in: 0, out: 0; may be NULL.
    ///   (TCP/IP provider: in: the flags of recv, out: msg_flags.)
    /// - lpOverlapped: NULL, or the operation. 0: completed at once, lpOverlapped is filled in and no notification
    ///   follows. WSA_IO_PENDING: posted. A provider takes one posted receive a socket, perhaps more, else WSAENOBUFS.
    /// - Errors: WSAEWOULDBLOCK (no message, and no lpOverlapped), WSAECONNREFUSED (the peer rejected, or closed before
    ///   it had read any message), WSAECONNRESET, EPROTO (the peer sent nonsense), ENOTCONN (WSAENOTCONN).
    int (*lpWSPRecv)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, size_t *lpNumberOfBytesRecvd, uint32_t *lpFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);

    /// Asks what became of an overlapped operation (WSD-T7): what lets a provider without a thread make progress.
    /// - Returns 1 (TRUE) when it completed without error; else 0 (FALSE), with *lpErrno the operation's error, or
    ///   WSA_IO_INCOMPLETE while it is pending. WSAEINVAL: no such operation.
    /// - lpcbTransfer: bytes transferred; lpdwFlags: the operation's flags; written once it completed; may be NULL.
    /// - fWait: the switch gives 0. A provider need not wait for another value.
    int (*lpWSPGetOverlappedResult)(SOCKET s, WSAOVERLAPPED *lpOverlapped, size_t *lpcbTransfer, int fWait, uint32_t *lpdwFlags, int *lpErrno);

    /// Says which events WSPEnumNetworkEvents reports: FD_ACCEPT on a listening companion, FD_CONNECT on a connecting
    /// one (WSD-N2, L2); 0: none. Replaces what was asked before. What has happened already counts.
    /// - hEventObject: an eventfd, to which the provider adds 1 whenever it records an event; stays the caller's. -1:
    ///   none, the switch watches SIO_SOCKSWITCH_EVENT_WORD. A provider that has no thread to write it ignores it.
    int (*lpWSPEventSelect)(SOCKET s, int hEventObject, int32_t lNetworkEvents, int *lpErrno);

    /// Reports and forgets the events of a companion that WSPEventSelect asked for. FD_CONNECT: the connect has
    /// ended, its errno in iErrorCode[FD_CONNECT_BIT]; reported once. FD_ACCEPT: WSPAccept or
    /// SIO_SOCKSWITCH_OFFER_RESULT has something; reported as long as that is so.
    /// - hEventObject: reset by the provider if it is the one that was selected; -1: none.
    /// - lpNetworkEvents: filled in; lNetworkEvents 0: nothing new.
    int (*lpWSPEnumNetworkEvents)(SOCKET s, int hEventObject, WSANETWORKEVENTS *lpNetworkEvents, int *lpErrno);

    /// Replays an option that the program set on its TCP socket (WSD-C9), or sets a SAN option (WSD-T5).
    /// - level, optname, optval, optlen (bytes): as in setsockopt. optval is copied if it is needed.
    /// - 0 also where there is nothing to do. WSAENOPROTOOPT: not known here, the switch goes on with the companion.
    ///   WSAEOPNOTSUPP: only TCP can honour it (filters, kernel TLS), the companion is closed.
    int (*lpWSPSetSockOpt)(SOCKET s, int level, int optname, const void *optval, socklen_t optlen, int *lpErrno);

    /// Reads a SAN option (WSD-T5); all others are answered by TCP/IP (WSD-S3).
    /// - optlen: in: room, out: length, bytes; less room than an int: WSAEINVAL. WSAENOPROTOOPT: not known.
    int (*lpWSPGetSockOpt)(SOCKET s, int level, int optname, void *optval, socklen_t *optlen, int *lpErrno);

    /// Control operations: SIO_… above, which says for each what goes in and out.
    /// - lpvInBuffer, cbInBuffer, lpvOutBuffer, cbOutBuffer: bytes; need not be aligned for input.
    /// - lpcbBytesReturned: bytes written to the output buffer; may be NULL.
    int (*lpWSPIoctl)(SOCKET s, uint32_t dwIoControlCode, const void *lpvInBuffer, size_t cbInBuffer, void *lpvOutBuffer, size_t cbOutBuffer, size_t *lpcbBytesReturned, int *lpErrno);

    /// Prepares a connected companion to be taken over by another process (WSD-D3), whose WSPSocket gets
    /// lpProtocolInfo.
    /// - dwProcessId: its pid, as this process sees it. lpProtocolInfo: filled in, good for one WSPSocket.
    /// - WSAEOPNOTSUPP: the provider cannot; the connection is moved back to TCP first.
    int (*lpWSPDuplicateSocket)(SOCKET s, uint32_t dwProcessId, WSAPROTOCOL_INFO *lpProtocolInfo, int *lpErrno);

    /// Fills a quality-of-service template by name. May always answer WSAEOPNOTSUPP.
    int (*lpWSPGetQOSByName)(SOCKET s, const WSABUF *lpQOSName, void *lpQOS, int *lpErrno);
} WSPPROC_TABLE;

// MARK: Extensions, fetched one by one with SIO_GET_EXTENSION_FUNCTION_POINTER (WSD-I4)
//
// WSPRegisterRdmaMemory, WSPDeregisterRdmaMemory and one of WSPRdmaWrite and WSPMapRdmaMemory are required; a provider
// answers WSAEOPNOTSUPP for those that it lacks. They work on connected companions, else ENOTCONN (WSAENOTCONN).

/// Registers a buffer for local use: the source of sends and RDMA writes, the target of receives and RDMA reads
/// (WSD-M1). The provider may keep the registration in a cache after it was given back (WSD-M4).
/// - lpBuffer, dwBufferLength: bytes; stays the caller's, mapped until it is deregistered. dwFlags: MEM_….
/// - Returns a handle for WSPDeregisterMemory, or NULL: WSAENOBUFS (WSD-T4).
typedef void *(*LPFN_WSPREGISTERMEMORY)(SOCKET s, void *lpBuffer, size_t dwBufferLength, uint32_t dwFlags, int *lpErrno);

/// Gives a registration of WSPRegisterMemory back. No operation may be using it.
typedef int (*LPFN_WSPDEREGISTERMEMORY)(SOCKET s, void *Handle, int *lpErrno);

/// Exposes memory to the connected peer, and to nobody else, for as long as it is registered and the companion is open
/// (WSD-M2, M3).
/// - lpBuffer, dwBufferLength: bytes; from WSPAllocateRdmaMemory where the provider has that, else page-aligned
///   memory of the switch's. A provider may refuse other memory: WSAEINVAL.
/// - dwFlags: MEM_READ, MEM_WRITE or both: what the peer may do.
/// - lpRdmaBufferDescriptor: filled in; the switch sends it to the peer.
/// - Errors: WSAENOBUFS (WSD-T4).
typedef int (*LPFN_WSPREGISTERRDMAMEMORY)(SOCKET s, void *lpBuffer, size_t dwBufferLength, uint32_t dwFlags, SOCKSWITCH_RDMA_DESCRIPTOR *lpRdmaBufferDescriptor, int *lpErrno);

/// The peer can reach the memory no longer. lpRdmaBufferDescriptor: as WSPRegisterRdmaMemory filled it in.
typedef int (*LPFN_WSPDEREGISTERRDMAMEMORY)(SOCKET s, const SOCKSWITCH_RDMA_DESCRIPTOR *lpRdmaBufferDescriptor, int *lpErrno);

/// Writes into memory that the peer has exposed with MEM_WRITE (WSD-T3). Writes of one companion become visible to
/// the peer in the order of the calls; within a call, an aligned line of 64 bytes is seen no sooner than what was
/// written before the call.
/// - lpBuffers, dwBufferCount: the source's pieces, at most SO_MAX_RDMA_SIZE bytes together; in use until it completed.
/// - lpTargetBuffer: the peer's descriptor, checked by the provider. dwTargetBufferOffset: bytes from its beginning.
///   Anything that does not lie wholly inside: WSAEINVAL, and nothing is written.
/// - lpdwNumberOfBytesWritten: bytes, when it completed at once; may be NULL. dwFlags: reserved, 0.
/// - lpOverlapped: as in WSPSend. Errors: WSAEWOULDBLOCK, WSAENOBUFS, WSAECONNRESET.
typedef int (*LPFN_WSPRDMAWRITE)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, const SOCKSWITCH_RDMA_DESCRIPTOR *lpTargetBuffer, size_t dwTargetBufferOffset, size_t *lpdwNumberOfBytesWritten, uint32_t dwFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);

/// Optional. Reads from memory that the peer has exposed with MEM_READ (WSD-T3). lpBuffers are the target's pieces; all
/// else as for WSPRdmaWrite.
typedef int (*LPFN_WSPRDMAREAD)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, const SOCKSWITCH_RDMA_DESCRIPTOR *lpTargetBuffer, size_t dwTargetBufferOffset, size_t *lpdwNumberOfBytesRead, uint32_t dwFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);

/// Optional, for providers that cache registrations (WSD-M4). A mapping is about to go away (munmap, mremap, fork):
/// the provider drops every registration that it keeps, unused, in Size bytes from lpvAddress, before it returns.
/// Concerns all sockets of the process. Any thread, while other calls run.
typedef int (*LPFN_WSPMEMORYREGISTRATIONCACHECALLBACK)(void *lpvAddress, size_t Size, int *lpErrno);

/// SocketSwitch's own, optional. Allocates zeroed, page-aligned memory that the peer will be able to reach; the
/// switch then exposes it with WSPRegisterRdmaMemory. Shared with children that the process forks. The provider's:
/// gone with WSPCloseSocket. Absent: the switch allocates by itself.
/// - dwBufferLength: bytes. Called once a companion. NULL: WSAENOBUFS.
typedef void *(*LPFN_WSPALLOCATERDMAMEMORY)(SOCKET s, size_t dwBufferLength, int *lpErrno);

/// SocketSwitch's own, optional. Maps the peer's exposed memory: the fast path is then a copy and no provider call.
/// Stores become visible to the peer in the order of the processor's memory model. Shared with children that the
/// process forks. The provider's: gone with WSPCloseSocket.
/// - lpRdmaBufferDescriptor: the peer's, checked by the provider. dwBufferLength: bytes that must be reachable.
/// - NULL: WSAEINVAL (the descriptor, or the length), WSAENOBUFS.
typedef void *(*LPFN_WSPMAPRDMAMEMORY)(SOCKET s, const SOCKSWITCH_RDMA_DESCRIPTOR *lpRdmaBufferDescriptor, size_t dwBufferLength, int *lpErrno);

/// The names of the extension functions: initialisers of a GUID.
#define WSAID_REGISTERMEMORY   {0xC0B422F5u, 0xF58C, 0x11d1, {0xAD, 0x6C, 0x00, 0xC0, 0x4F, 0xA3, 0x4A, 0x2D}}
#define WSAID_DEREGISTERMEMORY {0xC0B422F6u, 0xF58C, 0x11d1, {0xAD, 0x6C, 0x00, 0xC0, 0x4F, 0xA3, 0x4A, 0x2D}}
#define WSAID_REGISTERRDMAMEMORY {0xC0B422F7u, 0xF58C, 0x11d1, {0xAD, 0x6C, 0x00, 0xC0, 0x4F, 0xA3, 0x4A, 0x2D}}
#define WSAID_DEREGISTERRDMAMEMORY {0xC0B422F8u, 0xF58C, 0x11d1, {0xAD, 0x6C, 0x00, 0xC0, 0x4F, 0xA3, 0x4A, 0x2D}}
#define WSAID_RDMAWRITE {0xC0B422F9u, 0xF58C, 0x11d1, {0xAD, 0x6C, 0x00, 0xC0, 0x4F, 0xA3, 0x4A, 0x2D}}
#define WSAID_RDMAREAD {0xC0B422FAu, 0xF58C, 0x11d1, {0xAD, 0x6C, 0x00, 0xC0, 0x4F, 0xA3, 0x4A, 0x2D}}
#define WSAID_MEMORYREGISTRATIONCACHECALLBACK {0xE5DA4AF8u, 0xD824, 0x48CD, {0xA7, 0x99, 0x63, 0x37, 0xA9, 0x8E, 0xD2, 0xAF}}
#define WSAID_ALLOCATERDMAMEMORY {0x50C5E701u, 0x5357, 0x4954, {0x43, 0x48, 0x00, 0x41, 0x4C, 0x4C, 0x4F, 0x43}}
#define WSAID_MAPRDMAMEMORY {0x50C5E702u, 0x5357, 0x4954, {0x43, 0x48, 0x00, 0x4D, 0x41, 0x50, 0x52, 0x4D}}

#ifdef __cplusplus
}
#endif
#endif
