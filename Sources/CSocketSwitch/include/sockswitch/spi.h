// sockswitch/spi.h: the provider interface of SocketSwitch (Windows Sockets Direct's SPI with Linux types).
#ifndef SOCKSWITCH_SPI_H
#define SOCKSWITCH_SPI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SOCKSWITCH_SPI_VERSION 1u

/// A provider's socket descriptor (chosen by the provider) or, in up-calls, the switch's socket handle.
typedef uintptr_t SOCKET;
#define INVALID_SOCKET ((SOCKET)~(uintptr_t)0)
#define SOCKET_ERROR (-1)

typedef struct SOCKSWITCH_GUID { uint32_t Data1; uint16_t Data2, Data3; uint8_t Data4[8]; } GUID;

/// Errors are errno values. The Winsock names stand beside them.
enum {
    WSA_IO_PENDING = 115,      // EINPROGRESS
    WSA_IO_INCOMPLETE = 115,   // EINPROGRESS
    WSAEWOULDBLOCK = 11,       // EAGAIN
    WSAECONNREFUSED = 111, WSAECONNRESET = 104, WSAEHOSTUNREACH = 113, WSAEOPNOTSUPP = 95, WSAENOBUFS = 105,
    WSAEINVAL = 22, WSAENOTSOCK = 88, WSAEADDRINUSE = 98, WSAENOPROTOOPT = 92, WSAETIMEDOUT = 110, WSAENETDOWN = 100,
    WSA_OPERATION_ABORTED = 125, // ECANCELED
};

typedef struct WSABUF { size_t len; void *buf; } WSABUF;

/// One asynchronous operation. The caller owns it and keeps it (and the buffers) until the operation completed.
typedef struct WSAOVERLAPPED {
    uintptr_t Internal;      // provider: 0 while pending, else 1 (completed)
    uintptr_t InternalHigh;  // provider: bytes transferred
    int32_t Error;           // provider: 0 or errno of the completed operation
    uint32_t Flags;          // provider: flags of a completed receive
    uintptr_t hEvent;        // caller: low bit set = no notification wanted, the switch polls WSPGetOverlappedResult
} WSAOVERLAPPED;

typedef struct WSAPROTOCOL_INFO {
    uint32_t dwServiceFlags1;   // XP1_… below
    GUID ProviderId;
    uint32_t dwCatalogEntryId;
    int32_t iVersion;           // SOCKSWITCH_SPI_VERSION
    int32_t iAddressFamily, iSocketType, iProtocol;
    uint32_t dwMessageSize;
    char szProtocol[64];
} WSAPROTOCOL_INFO;
enum {
    XP1_GUARANTEED_DELIVERY = 0x2, XP1_GUARANTEED_ORDER = 0x4, XP1_GRACEFUL_CLOSE = 0x20, XP1_SAN_SUPPORT_SDP = 0x80000,
};

typedef struct WSANETWORKEVENTS { int32_t lNetworkEvents; int32_t iErrorCode[10]; } WSANETWORKEVENTS;
enum { FD_READ = 1, FD_WRITE = 2, FD_OOB = 4, FD_ACCEPT = 8, FD_CONNECT = 16, FD_CLOSE = 32 };
enum { FD_ACCEPT_BIT = 3, FD_CONNECT_BIT = 4 };
enum { CF_ACCEPT = 0, CF_REJECT = 1, CF_DEFER = 2 };

/// The condition function of WSPAccept (WSD-L4): called on the same thread before WSPAccept returns.
typedef int (*LPCONDITIONPROC)(const WSABUF *lpCallerId, const WSABUF *lpCalleeId, uintptr_t dwCallbackData);

/// WSPIoctl codes.
enum {
    SIO_GET_EXTENSION_FUNCTION_POINTER = 0xC8000006u,  // in: GUID, out: function pointer (WSD-I4)
    SIO_ADDRESS_LIST_QUERY = 0x48000016u,              // out: SOCKET_ADDRESS_LIST (WSD-I5)
    SIO_ADDRESS_LIST_CHANGE = 0x28000017u,             // 0 = changed since last asked, EAGAIN = not (WSD-I6)
    SIO_SOCKSWITCH_BASE_SOCKET = 0x98005301u,          // in: SOCKSWITCH_OFFER, the connected TCP/IP socket of this companion
    SIO_SOCKSWITCH_NOTIFICATION = 0x58005302u,         // out: int, descriptor that becomes readable when progress is possible
    SIO_SOCKSWITCH_OFFER = 0x98005303u,                // in: SOCKSWITCH_OFFER, on a listening companion
    SIO_SOCKSWITCH_EVENT_WORD = 0x58005305u,           // out: uint64_t *, raised when WSPEnumNetworkEvents may have news; any socket
    SIO_SOCKSWITCH_REASON = 0x58005304u,               // out: int32, SOCKSWITCH_REASON_… of the last failure
    SIO_SOCKSWITCH_OFFER_RESULT = 0x58005306u,         // out: SOCKSWITCH_OFFER_RESULT, an offer that failed; EAGAIN = no more
    SIO_SOCKSWITCH_WITHDRAW_OFFER = 0x98005307u,       // in: SOCKSWITCH_OFFER (its Cookie), on a listening companion
};

/// One local address that a provider controls, with the length of its subnet's prefix in bits.
typedef struct SOCKSWITCH_SUBNET { struct sockaddr_storage Address; uint32_t PrefixLength; uint32_t Flags; } SOCKSWITCH_SUBNET;
typedef struct SOCKET_ADDRESS_LIST { int32_t iAddressCount; SOCKSWITCH_SUBNET Address[64]; } SOCKET_ADDRESS_LIST;

/// An accepted TCP/IP connection for which a companion may be asked: `BaseSocket` stays the switch's.
/// `Cookie` names the connection: the slot of the switch's socket table in bits 0…19, the slot's generation above.
typedef struct SOCKSWITCH_OFFER { int32_t BaseSocket; uint32_t Reserved; uint64_t Cookie; } SOCKSWITCH_OFFER;

/// The end of an offer that did not lead to a companion: the offer's cookie and why (SOCKSWITCH_REASON_…).
typedef struct SOCKSWITCH_OFFER_RESULT { uint64_t Cookie; int32_t Reason; uint32_t Reserved; } SOCKSWITCH_OFFER_RESULT;

/// Option level of the SAN options (WSD-T5).
enum { SO_MAX_MSG_SIZE = 0x2003, SO_MAX_RDMA_SIZE = 0x700D, SO_RDMA_THRESHOLD_SIZE = 0x700E };

/// Identifies exposed memory to the connected peer (WSD-M2). Opaque; at most 64 bytes on the wire.
typedef struct WSPUPRDMADESCRIPTOR { uint8_t Opaque[64]; } SOCKSWITCH_RDMA_DESCRIPTOR;
enum { MEM_READ = 1, MEM_WRITE = 2, MEM_READWRITE = 3 };

/// Up-calls (WSD-C6). Each may be called on any thread that is inside a provider call.
typedef struct WSPUPCALLTABLE {
    SOCKET (*lpWPUCreateSocketHandle)(uint32_t dwCatalogEntryId, uintptr_t dwContext, int *lpErrno);
    int (*lpWPUQuerySocketHandleContext)(SOCKET s, uintptr_t *lpContext, int *lpErrno);
    int (*lpWPUCloseSocketHandle)(SOCKET s, int *lpErrno);
    int (*lpWPUCompleteOverlappedRequest)(SOCKET s, WSAOVERLAPPED *lpOverlapped, int32_t dwError, size_t cbTransferred, int *lpErrno);
} WSPUPCALLTABLE;

struct WSPPROC_TABLE;

/// The entry point of a provider library.
typedef int (*LPWSPSTARTUPEX)(uint32_t wVersionRequested, const WSAPROTOCOL_INFO *lpTCPIPProtocolInfo,
                              const WSPUPCALLTABLE *lpUpCallTable, struct WSPPROC_TABLE *lpProcTable);

typedef struct WSPPROC_TABLE {
    int (*lpWSPCleanup)(int *lpErrno);
    SOCKET (*lpWSPSocket)(int af, int type, int protocol, const WSAPROTOCOL_INFO *lpProtocolInfo, uint32_t g, uint32_t dwFlags, int *lpErrno);
    int (*lpWSPBind)(SOCKET s, const struct sockaddr *name, socklen_t namelen, int *lpErrno);
    int (*lpWSPListen)(SOCKET s, int backlog, int *lpErrno);
    SOCKET (*lpWSPAccept)(SOCKET s, struct sockaddr *addr, socklen_t *addrlen, LPCONDITIONPROC lpfnCondition, uintptr_t dwCallbackData, int *lpErrno);
    int (*lpWSPConnect)(SOCKET s, const struct sockaddr *name, socklen_t namelen, const WSABUF *lpCallerData, WSABUF *lpCalleeData, int *lpErrno);
    int (*lpWSPCloseSocket)(SOCKET s, int *lpErrno);
    int (*lpWSPSend)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, size_t *lpNumberOfBytesSent, uint32_t dwFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);
    int (*lpWSPRecv)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, size_t *lpNumberOfBytesRecvd, uint32_t *lpFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);
    int (*lpWSPGetOverlappedResult)(SOCKET s, WSAOVERLAPPED *lpOverlapped, size_t *lpcbTransfer, int fWait, uint32_t *lpdwFlags, int *lpErrno);
    int (*lpWSPEventSelect)(SOCKET s, int hEventObject, int32_t lNetworkEvents, int *lpErrno);
    int (*lpWSPEnumNetworkEvents)(SOCKET s, int hEventObject, WSANETWORKEVENTS *lpNetworkEvents, int *lpErrno);
    int (*lpWSPSetSockOpt)(SOCKET s, int level, int optname, const void *optval, socklen_t optlen, int *lpErrno);
    int (*lpWSPGetSockOpt)(SOCKET s, int level, int optname, void *optval, socklen_t *optlen, int *lpErrno);
    int (*lpWSPIoctl)(SOCKET s, uint32_t dwIoControlCode, const void *lpvInBuffer, size_t cbInBuffer, void *lpvOutBuffer, size_t cbOutBuffer, size_t *lpcbBytesReturned, int *lpErrno);
    int (*lpWSPDuplicateSocket)(SOCKET s, uint32_t dwProcessId, WSAPROTOCOL_INFO *lpProtocolInfo, int *lpErrno);
    int (*lpWSPGetQOSByName)(SOCKET s, const WSABUF *lpQOSName, void *lpQOS, int *lpErrno);
} WSPPROC_TABLE;

/// Extensions, fetched one by one with SIO_GET_EXTENSION_FUNCTION_POINTER (WSD-I4).
typedef void *(*LPFN_WSPREGISTERMEMORY)(SOCKET s, void *lpBuffer, size_t dwBufferLength, uint32_t dwFlags, int *lpErrno);
typedef int (*LPFN_WSPDEREGISTERMEMORY)(SOCKET s, void *Handle, int *lpErrno);
typedef int (*LPFN_WSPREGISTERRDMAMEMORY)(SOCKET s, void *lpBuffer, size_t dwBufferLength, uint32_t dwFlags, SOCKSWITCH_RDMA_DESCRIPTOR *lpRdmaBufferDescriptor, int *lpErrno);
typedef int (*LPFN_WSPDEREGISTERRDMAMEMORY)(SOCKET s, const SOCKSWITCH_RDMA_DESCRIPTOR *lpRdmaBufferDescriptor, int *lpErrno);
typedef int (*LPFN_WSPRDMAWRITE)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, const SOCKSWITCH_RDMA_DESCRIPTOR *lpTargetBuffer, size_t dwTargetBufferOffset, size_t *lpdwNumberOfBytesWritten, uint32_t dwFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);
typedef int (*LPFN_WSPRDMAREAD)(SOCKET s, const WSABUF *lpBuffers, uint32_t dwBufferCount, const SOCKSWITCH_RDMA_DESCRIPTOR *lpTargetBuffer, size_t dwTargetBufferOffset, size_t *lpdwNumberOfBytesRead, uint32_t dwFlags, WSAOVERLAPPED *lpOverlapped, int *lpErrno);
typedef int (*LPFN_WSPMEMORYREGISTRATIONCACHECALLBACK)(void *lpvAddress, size_t Size, int *lpErrno);
/// SocketSwitch's own, optional. Allocates memory that the peer will be able to map; the switch then exposes it with
/// WSPRegisterRdmaMemory. Absent: the switch allocates by itself.
typedef void *(*LPFN_WSPALLOCATERDMAMEMORY)(SOCKET s, size_t dwBufferLength, int *lpErrno);
/// SocketSwitch's own, optional. Maps the peer's exposed memory: the fast path is then a copy and no provider call.
typedef void *(*LPFN_WSPMAPRDMAMEMORY)(SOCKET s, const SOCKSWITCH_RDMA_DESCRIPTOR *lpRdmaBufferDescriptor, size_t dwBufferLength, int *lpErrno);

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
