// What Swift cannot say: raw system calls, the cycle counter, thread-local words and the constants hidden in macros.
// Everything here is either `static inline` or plain zero-initialised storage, so it works before any constructor ran,
// in a signal handler, in a forked child and in a vfork child.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/single_threaded.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

#include "ProgramMemory.h"
#include "ProgramSignals.h"
#include "sockswitch/spi.h"

// MARK: Raw system calls. All return a value >= 0 or -errno; none touches the caller's errno.

#if defined(__x86_64__)
static inline __attribute__((always_inline)) long ss_syscall6(long n, long a, long b, long c, long d, long e, long f) {
    long r;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}
static inline __attribute__((always_inline)) uint64_t ss_cycles(void) {
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return ((uint64_t)hi << 32) | lo;
}
static inline __attribute__((always_inline)) void ss_pause(void) { __asm__ volatile("pause"); }
static inline __attribute__((always_inline)) void ss_prefetch(const void *p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
static inline __attribute__((always_inline)) void ss_prefetch_to_write(const void *p) { __asm__ volatile("prefetchw (%0)" : : "r"(p)); }
/// About a microsecond of `ss_cycles`.
static const uint64_t ss_pace_cycles = 2400;
#elif defined(__aarch64__)
static inline __attribute__((always_inline)) long ss_syscall6(long n, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
static inline __attribute__((always_inline)) uint64_t ss_cycles(void) {
    uint64_t v;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(v));
    return v;
}
static inline __attribute__((always_inline)) void ss_pause(void) { __asm__ volatile("yield"); }
static inline __attribute__((always_inline)) void ss_prefetch(const void *p) { __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(p)); }
static inline __attribute__((always_inline)) void ss_prefetch_to_write(const void *p) { __asm__ volatile("prfm pstl1keep, [%0]" : : "r"(p)); }
/// At most a microsecond of `ss_cycles`, which count at 24 MHz to 1 GHz.
static const uint64_t ss_pace_cycles = 16;
#else
#error "SocketSwitch supports x86-64 and AArch64"
#endif

/// A system call that a pthread_cancel which arrives meanwhile interrupts: see `ss_sleeping_syscall6`.
long ss_cancellable_syscall6(long n, long a, long b, long c, long d, long e, long f);
/// A system call in which the thread may sleep as a cancellation point must: a pthread_cancel that arrives meanwhile ends
/// the thread here (a lock held across it stays locked). In a section a handler that is put off ends it (ProgramSignals.h).
static inline long ss_sleeping_syscall6(long n, long a, long b, long c, long d, long e, long f) {
    return __libc_single_threaded ? ss_interruptible_syscall6(n, a, b, c, d, e, f) : ss_cancellable_syscall6(n, a, b, c, d, e, f);
}

/// Whether the process has more than one thread. What libc knows does not come back when threads have ended (or a process of
/// several forked); the directory has a link for each one beside its own two. Not known: yes.
static inline int ss_has_other_threads(void) {
    struct stat status;
    if (__libc_single_threaded) return 0;
    return ss_syscall6(SYS_newfstatat, AT_FDCWD, (long)"/proc/self/task", (long)&status, 0, 0, 0) != 0 || status.st_nlink > 3;
}

static inline long ss_sys_open_to_read(const char *path) { return ss_syscall6(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0); }
static inline long ss_sys_read(int fd, void *p, size_t n) { return ss_syscall6(SYS_read, fd, (long)p, (long)n, 0, 0, 0); }
static inline long ss_sys_write(int fd, const void *p, size_t n) { return ss_syscall6(SYS_write, fd, (long)p, (long)n, 0, 0, 0); }
static inline long ss_sys_pread(int fd, void *p, size_t n, int64_t off) { return ss_syscall6(SYS_pread64, fd, (long)p, (long)n, (long)off, 0, 0); }
static inline long ss_sys_lseek(int fd, int64_t at, int from) { return ss_syscall6(SYS_lseek, fd, (long)at, from, 0, 0, 0); }
static inline long ss_sys_getdents64(int fd, void *p, size_t n) { return ss_syscall6(SYS_getdents64, fd, (long)p, (long)n, 0, 0, 0); }
static inline long ss_sys_close(int fd) { return ss_syscall6(SYS_close, fd, 0, 0, 0, 0, 0); }
static inline long ss_sys_close_range(unsigned a, unsigned b, int flags) { return ss_syscall6(SYS_close_range, a, b, flags, 0, 0, 0); }
static inline long ss_sys_socket(int af, int type, int proto) { return ss_syscall6(SYS_socket, af, type, proto, 0, 0, 0); }
static inline long ss_sys_bind(int fd, const void *a, unsigned n) { return ss_syscall6(SYS_bind, fd, (long)a, n, 0, 0, 0); }
static inline long ss_sys_listen(int fd, int backlog) { return ss_syscall6(SYS_listen, fd, backlog, 0, 0, 0, 0); }
static inline long ss_sys_connect(int fd, const void *a, unsigned n) { return ss_syscall6(SYS_connect, fd, (long)a, n, 0, 0, 0); }
/// The program's own connect; that of the library to its service is no cancellation point.
static inline long ss_sleeping_connect(int fd, const void *a, unsigned n) { return ss_sleeping_syscall6(SYS_connect, fd, (long)a, n, 0, 0, 0); }
static inline long ss_sys_accept4(int fd, void *a, void *n, int flags) { return ss_sleeping_syscall6(SYS_accept4, fd, (long)a, (long)n, flags, 0, 0); }
static inline long ss_sys_shutdown(int fd, int how) { return ss_syscall6(SYS_shutdown, fd, how, 0, 0, 0, 0); }
static inline long ss_sys_getsockname(int fd, void *a, void *n) { return ss_syscall6(SYS_getsockname, fd, (long)a, (long)n, 0, 0, 0); }
static inline long ss_sys_getpeername(int fd, void *a, void *n) { return ss_syscall6(SYS_getpeername, fd, (long)a, (long)n, 0, 0, 0); }
static inline long ss_sys_getsockopt(int fd, int l, int o, void *v, void *n) { return ss_syscall6(SYS_getsockopt, fd, l, o, (long)v, (long)n, 0); }
static inline long ss_sys_setsockopt(int fd, int l, int o, const void *v, unsigned n) { return ss_syscall6(SYS_setsockopt, fd, l, o, (long)v, n, 0); }
static inline long ss_sys_sendmsg(int fd, const void *m, int flags) { return flags & MSG_DONTWAIT ? ss_syscall6(SYS_sendmsg, fd, (long)m, flags, 0, 0, 0) : ss_sleeping_syscall6(SYS_sendmsg, fd, (long)m, flags, 0, 0, 0); }
static inline long ss_sys_recvmsg(int fd, void *m, int flags) { return flags & MSG_DONTWAIT ? ss_syscall6(SYS_recvmsg, fd, (long)m, flags, 0, 0, 0) : ss_sleeping_syscall6(SYS_recvmsg, fd, (long)m, flags, 0, 0, 0); }
static inline long ss_sys_sendto(int fd, const void *p, size_t n, int flags) { return flags & MSG_DONTWAIT ? ss_syscall6(SYS_sendto, fd, (long)p, (long)n, flags, 0, 0) : ss_sleeping_syscall6(SYS_sendto, fd, (long)p, (long)n, flags, 0, 0); }
static inline long ss_sys_recvfrom(int fd, void *p, size_t n, int flags) { return flags & MSG_DONTWAIT ? ss_syscall6(SYS_recvfrom, fd, (long)p, (long)n, flags, 0, 0) : ss_sleeping_syscall6(SYS_recvfrom, fd, (long)p, (long)n, flags, 0, 0); }
static inline long ss_sys_ioctl(int fd, unsigned long req, void *p) { return ss_syscall6(SYS_ioctl, fd, (long)req, (long)p, 0, 0, 0); }
static inline long ss_sys_fcntl(int fd, int cmd, long arg) { return ss_syscall6(SYS_fcntl, fd, cmd, arg, 0, 0, 0); }
static inline int ss_is_now(const struct timespec *t) { return t && t->tv_sec == 0 && t->tv_nsec == 0; }
static inline long ss_sys_ppoll(struct pollfd *p, size_t n, const struct timespec *t, const void *mask) {
    return ss_is_now(t) ? ss_syscall6(SYS_ppoll, (long)p, (long)n, (long)t, (long)mask, mask ? 8 : 0, 0)
        : ss_sleeping_syscall6(SYS_ppoll, (long)p, (long)n, (long)t, (long)mask, mask ? 8 : 0, 0);
}
/// As ppoll for so many nanoseconds, but -EINTR after SIGSTOP and SIGCONT, too, after which ppoll goes on as if nothing had
/// been: receive and send with a time-out, or with a part done, do not.
long ss_poll_until_disturbed(struct pollfd *p, size_t n, uint64_t nanoseconds);
/// For waits of the library's own, in calls that are no cancellation points.
static inline long ss_sys_brief_ppoll(struct pollfd *p, size_t n, const struct timespec *t) {
    return ss_interruptible_syscall6(SYS_ppoll, (long)p, (long)n, (long)t, 0, 0, 0);
}
static inline long ss_sys_epoll_ctl(int ep, int op, int fd, struct epoll_event *e) { return ss_syscall6(SYS_epoll_ctl, ep, op, fd, (long)e, 0, 0); }
static inline long ss_sys_epoll_pwait(int ep, struct epoll_event *e, int n, int timeout, const void *mask) {
    return timeout == 0 ? ss_syscall6(SYS_epoll_pwait, ep, (long)e, n, timeout, (long)mask, mask ? 8 : 0)
        : ss_sleeping_syscall6(SYS_epoll_pwait, ep, (long)e, n, timeout, (long)mask, mask ? 8 : 0);
}
static inline long ss_sys_epoll_pwait2(int ep, struct epoll_event *e, int n, const struct timespec *t, const void *mask) {
    return ss_is_now(t) ? ss_syscall6(SYS_epoll_pwait2, ep, (long)e, n, (long)t, (long)mask, mask ? 8 : 0)
        : ss_sleeping_syscall6(SYS_epoll_pwait2, ep, (long)e, n, (long)t, (long)mask, mask ? 8 : 0);
}
/// `left` (may be NULL) is read and, as the kernel does, updated with what is left.
static inline long ss_sys_pselect6(int n, void *r, void *w, void *e, struct timespec *left, const void *mask) {
    struct { const void *mask; size_t bytes; } signals = {mask, 8};
    return ss_is_now(left) ? ss_syscall6(SYS_pselect6, n, (long)r, (long)w, (long)e, (long)left, (long)(mask ? &signals : NULL))
        : ss_sleeping_syscall6(SYS_pselect6, n, (long)r, (long)w, (long)e, (long)left, (long)(mask ? &signals : NULL));
}
static inline long ss_sys_getrandom(void *p, size_t n) { return ss_syscall6(SYS_getrandom, (long)p, (long)n, 1, 0, 0, 0); }
static inline long ss_sys_socketpair(int d, int t, int p, int *v) { return ss_syscall6(SYS_socketpair, d, t, p, (long)v, 0, 0); }
static inline long ss_sys_eventfd(unsigned v, int flags) { return ss_syscall6(SYS_eventfd2, v, flags, 0, 0, 0, 0); }
static inline long ss_sys_memfd_create(const char *name, unsigned flags) { return ss_syscall6(SYS_memfd_create, (long)name, flags, 0, 0, 0, 0); }
static inline long ss_sys_ftruncate(int fd, int64_t n) { return ss_syscall6(SYS_ftruncate, fd, (long)n, 0, 0, 0, 0); }
static inline long ss_sys_fstat(int fd, struct stat *st) { return ss_syscall6(SYS_fstat, fd, (long)st, 0, 0, 0, 0); }
static inline long ss_sys_mmap(void *a, size_t n, int prot, int flags, int fd, int64_t off) { return ss_syscall6(SYS_mmap, (long)a, (long)n, prot, flags, fd, (long)off); }
static inline long ss_sys_munmap(void *a, size_t n) { return ss_syscall6(SYS_munmap, (long)a, (long)n, 0, 0, 0, 0); }
static inline long ss_sys_madvise(void *a, size_t n, int advice) { return ss_syscall6(SYS_madvise, (long)a, (long)n, advice, 0, 0, 0); }
static inline long ss_sys_sched_yield(void) { return ss_syscall6(SYS_sched_yield, 0, 0, 0, 0, 0, 0); }
static inline long ss_sys_getpid(void) { return ss_syscall6(SYS_getpid, 0, 0, 0, 0, 0, 0); }
static inline long ss_sys_getppid(void) { return ss_syscall6(SYS_getppid, 0, 0, 0, 0, 0, 0); }
static inline long ss_sys_gettid(void) { return ss_syscall6(SYS_gettid, 0, 0, 0, 0, 0, 0); }
static inline long ss_sys_getuid(void) { return ss_syscall6(SYS_geteuid, 0, 0, 0, 0, 0, 0); }
static inline long ss_sys_kill(int pid, int sig) { return ss_syscall6(SYS_kill, pid, sig, 0, 0, 0, 0); }
static inline long ss_sys_tkill(int tid, int sig) { return ss_syscall6(SYS_tkill, tid, sig, 0, 0, 0, 0); }
static inline long ss_sys_prlimit(int res, const struct rlimit *n, struct rlimit *o) { return ss_syscall6(SYS_prlimit64, 0, res, (long)n, (long)o, 0, 0); }
static inline long ss_sys_sigprocmask(int how, const uint64_t *n, uint64_t *o) { return ss_syscall6(SYS_rt_sigprocmask, how, (long)n, (long)o, 8, 0, 0); }
static inline long ss_sys_sendfile(int out, int in, int64_t *off, size_t n) { return ss_syscall6(SYS_sendfile, out, in, (long)off, (long)n, 0, 0); }
static inline long ss_sys_getcpu(unsigned *cpu) { return ss_syscall6(SYS_getcpu, (long)cpu, 0, 0, 0, 0, 0); }
/// Sleeps while *word == expected; shared between processes. Timeout relative, NULL for none.
static inline long ss_sys_futex_wait(uint32_t *word, uint32_t expected, const struct timespec *t) { return ss_syscall6(SYS_futex, (long)word, FUTEX_WAIT, expected, (long)t, 0, 0); }
static inline long ss_sys_futex_wake(uint32_t *word, int n) { return ss_syscall6(SYS_futex, (long)word, FUTEX_WAKE, n, 0, 0, 0); }
/// CLOCK_MONOTONIC in nanoseconds (vDSO through libc: no system call on ordinary machines).
static inline uint64_t ss_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
/// The CPU that this thread runs on now (vDSO/rseq through libc).
extern int sched_getcpu(void);
static inline int ss_cpu(void) { return sched_getcpu(); }

/// The address of the caller's stack frame.
static inline __attribute__((always_inline)) void *ss_frame_address(void) { return __builtin_frame_address(0); }

// MARK: errno

static inline int ss_errno(void) { return errno; }
static inline void ss_set_errno(int e) { errno = e; }

// MARK: Lists of epoll events (packed on x86-64: the compiler knows the layout)

static inline uint32_t ss_event_bits(const struct epoll_event *list, long i) { return list[i].events; }
static inline uint64_t ss_event_data(const struct epoll_event *list, long i) { return list[i].data.u64; }
static inline void ss_event_set(struct epoll_event *list, long i, uint32_t bits, uint64_t data) {
    list[i].events = bits;
    list[i].data.u64 = data;
}
static inline struct epoll_event *ss_event_at(struct epoll_event *list, long i) { return list + i; }
// Puts the event at `from` before those at `to` … `from - 1`.
static inline void ss_event_bring(struct epoll_event *list, long from, long to) {
    struct epoll_event event = list[from];
    memmove(list + to + 1, list + to, (size_t)(from - to) * sizeof event);
    list[to] = event;
}

// MARK: Constants that Swift does not import (casts, macros with types)

static const int ss_so_netns_cookie = 71;
static const unsigned ss_mfd_cloexec = 1u, ss_mfd_allow_sealing = 2u;
static const int ss_seal_fixed_size = 0x0001 | 0x0002 | 0x0004;  // F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
static const int ss_f_add_seals = 1033, ss_f_get_seals = 1034;
static const uint32_t ss_epollet = 1u << 31, ss_epolloneshot = 1u << 30, ss_epollwakeup = 1u << 29, ss_epollexclusive = 1u << 28;
static const unsigned long ss_fionread = FIONREAD, ss_siocinq = SIOCINQ, ss_siocoutq = SIOCOUTQ, ss_siocoutqnsd = SIOCOUTQNSD;

// MARK: Extension functions (WSD-I4)

enum {
    ss_extension_unknown = 0, ss_extension_register_memory, ss_extension_deregister_memory,
    ss_extension_register_rdma_memory, ss_extension_deregister_rdma_memory, ss_extension_rdma_write,
    ss_extension_rdma_read, ss_extension_cache_callback, ss_extension_allocate_rdma_memory, ss_extension_map_rdma_memory,
    ss_extension_count,
};
/// Which extension function a GUID of spi.h names (`ss_extension_…`); 0 for one that it does not know.
static inline int ss_extension_of(const void *guid) {
    static const GUID known[ss_extension_count - 1] = {
        WSAID_REGISTERMEMORY, WSAID_DEREGISTERMEMORY, WSAID_REGISTERRDMAMEMORY, WSAID_DEREGISTERRDMAMEMORY,
        WSAID_RDMAWRITE, WSAID_RDMAREAD, WSAID_MEMORYREGISTRATIONCACHECALLBACK, WSAID_ALLOCATERDMAMEMORY,
        WSAID_MAPRDMAMEMORY,
    };
    for (int i = 0; i < ss_extension_count - 1; i++)
        if (memcmp(guid, &known[i], sizeof(GUID)) == 0) return i + 1;
    return ss_extension_unknown;
}
/// The GUID of `ss_extension_…` number `extension` (1 …); all zero for another number.
static inline GUID ss_extension_guid(int extension) {
    static const GUID known[ss_extension_count] = {
        {0, 0, 0, {0}},
        WSAID_REGISTERMEMORY, WSAID_DEREGISTERMEMORY, WSAID_REGISTERRDMAMEMORY, WSAID_DEREGISTERRDMAMEMORY,
        WSAID_RDMAWRITE, WSAID_RDMAREAD, WSAID_MEMORYREGISTRATIONCACHECALLBACK, WSAID_ALLOCATERDMAMEMORY,
        WSAID_MAPRDMAMEMORY,
    };
    return known[extension > 0 && extension < ss_extension_count ? extension : 0];
}

// MARK: The kernel's view of one TCP connection

/// The figures of TCP_INFO that positions are taken from (`struct tcp_info` of the kernel, read by offset so that old
/// libc headers do not matter). `valid` is 0 when the kernel did not fill them.
struct ss_tcp_positions {
    uint64_t bytes_acked, bytes_received, bytes_sent, bytes_retrans;
    uint32_t notsent_bytes;
    uint8_t state;
    uint8_t valid;
};
static inline long ss_tcp_positions_of(int fd, struct ss_tcp_positions *out) {
    unsigned char b[256];
    uint32_t n = sizeof b;
    memset(b, 0, sizeof b);
    long r = ss_sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, b, &n);
    memset(out, 0, sizeof *out);
    if (r < 0) return r;
    out->state = b[0];
    memcpy(&out->bytes_acked, b + 120, 8);
    memcpy(&out->bytes_received, b + 128, 8);
    memcpy(&out->notsent_bytes, b + 144, 4);
    if (n >= 216) {
        memcpy(&out->bytes_sent, b + 200, 8);
        memcpy(&out->bytes_retrans, b + 208, 8);
        out->valid = 1;
    }
    return 0;
}

/// The other end of a TCP connection, which has been accepted, in this network namespace: a socket that a process has, or none has
/// any more, or there is none (it is on another host, or was). Some ten microseconds.
enum ss_peer { SS_PEER_UNKNOWN, SS_PEER_HELD, SS_PEER_ORPHAN, SS_PEER_GONE };
enum ss_peer ss_peer_of(int fd);
static inline int ss_peer_is_orphan(int fd) { return ss_peer_of(fd) == SS_PEER_ORPHAN; }

/// Makes a process that relays between the connections `socket` and `relayed`, both ways, until both have ended: first the bytes
/// from `sent` up to `count` at `bytes` to `relayed`, then what `socket` receives, up to `room` bytes at once; an end or a failure
/// of one becomes the other's. `is_shared`: others have `socket`, too; then nothing ends it, and the relay is over when the user of
/// the other connection has closed. The memory must be private. The process is nobody's child, gets no signal of the terminal's,
/// and has no descriptor of its maker's but these. The caller keeps both sockets. 0: it could not be made.
int ss_start_relay(int socket, int relayed, void *bytes, size_t sent, size_t count, size_t room, int is_shared);

// MARK: Storage

/// One word a descriptor: 0 = not ours. See Switch/DescriptorTable.swift.
#define SS_DESCRIPTORS (1u << 18)
extern uint32_t ss_descriptor_table[SS_DESCRIPTORS] __attribute__((swift_attr("nonisolated(unsafe)")));

/// Zero-initialised storage for the process-private state (Swift globals with initialisers would be lazy, and lazy
/// globals deadlock on re-entry and across fork).
#define SS_PRIVATE_STATE_BYTES 65536
extern unsigned char ss_private_state[SS_PRIVATE_STATE_BYTES] __attribute__((aligned(64), swift_attr("nonisolated(unsafe)")));

/// What the session must know about the process it runs in; set by the switch.
struct ss_session_state {
    void *off_word;                 // the arena's `switchedOff`, NULL before the arena exists
    uint32_t never_spin;
    uint32_t initial_ring_bytes;    // 0 = the built-in value
    uint64_t crowded_until;         // monotonic nanoseconds, and for how long at a time: see Session/Crowd.swift
    uint64_t crowded_for;
};
enum { SS_CROWDED_UNTIL_OFFSET = offsetof(struct ss_session_state, crowded_until),
       SS_CROWDED_FOR_OFFSET = offsetof(struct ss_session_state, crowded_for) };
extern struct ss_session_state ss_session_state __attribute__((swift_attr("nonisolated(unsafe)")));

static inline void *ss_session_state_address(void) { return &ss_session_state; }
/// Switch/Refusals.swift.
extern unsigned char ss_refusals[1024] __attribute__((aligned(64), swift_attr("nonisolated(unsafe)")));
static inline void *ss_refusals_address(void) { return ss_refusals; }
/// The same for the service providers: see ServiceProviders/ProviderState.swift.
#define SS_PROVIDER_STATE_BYTES 4096
extern unsigned char ss_provider_state[SS_PROVIDER_STATE_BYTES] __attribute__((aligned(64), swift_attr("nonisolated(unsafe)")));

/// The TCP/IP provider's WSPPROC_TABLE: see Switch/BaseProvider.swift.
extern WSPPROC_TABLE ss_base_provider __attribute__((swift_attr("nonisolated(unsafe)")));

static inline WSPPROC_TABLE *ss_base_provider_address(void) { return &ss_base_provider; }
static inline void *ss_provider_state_address(void) { return ss_provider_state; }
static inline void *ss_private_state_address(void) { return ss_private_state; }
static inline uint32_t ss_descriptor_load(uint32_t fd) { return __atomic_load_n(&ss_descriptor_table[fd], __ATOMIC_ACQUIRE); }
static inline void ss_descriptor_store(uint32_t fd, uint32_t v) { __atomic_store_n(&ss_descriptor_table[fd], v, __ATOMIC_RELEASE); }

/// A number that stands for some bytes (FNV-1a).
static inline uint64_t ss_mark(const void *bytes, size_t count) {
    uint64_t mark = 0xcbf29ce484222325;
    for (size_t i = 0; i < count; i++) mark = (mark ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3;
    return mark;
}

/// Where this thread remembers when, and for which list, its poll calls last asked the kernel.
struct ss_poll_stamp {
    uint64_t nanoseconds;
    const void *list;
};
struct ss_poll_stamp *ss_thread_poll_stamp(void);

/// Children that may be running on this process's memory now, with descriptors of their own (vfork and the like).
extern uint32_t ss_borrowers;
/// Holds 1 in the process that called `ss_mark_own_memory`, 0 in a copy of it that was made past our hooks; null: cannot tell.
extern uint32_t *ss_own_mark;

/// Whether vfork children are known to run now. (Where they are not counted: no.)
static inline int ss_memory_has_borrowers(void) { return __atomic_load_n(&ss_borrowers, __ATOMIC_SEQ_CST) != 0; }

/// Whether the caller may be a child on its parent's memory.
static inline int ss_memory_is_lent(void) {
#if !defined(__x86_64__)
    return 1;  // vfork is not counted
#endif
    return __atomic_load_n(&ss_borrowers, __ATOMIC_SEQ_CST) != 0;
}
/// 0: the memory on which the caller runs is its own process's alone. Else the process id must be asked for, a system call.
static inline int ss_memory_may_be_borrowed(void) {
    const uint32_t *mark = __atomic_load_n(&ss_own_mark, __ATOMIC_RELAXED);
    return !mark || __atomic_load_n(mark, __ATOMIC_RELAXED) == 0 || ss_memory_is_lent();
}
static inline void ss_lend_memory(int children) { __atomic_add_fetch(&ss_borrowers, (uint32_t)children, __ATOMIC_SEQ_CST); }
/// When the process's id has been noted, with a private page for the mark.
void ss_mark_own_memory(void *page);
/// In a child made by fork: the borrowers are its parent's.
void ss_begin_copied_memory(void);

/// What this process needs to tell which of its family are alive.
struct ss_relatives {
    /// Which PID namespace of the family's the process is in: 0 is that of the one that began it. Numbers, those of threads too,
    /// mean something only to processes in the same one.
    uint32_t space;
    /// The arena's memfd, plus one; 0: there is none.
    int32_t arena_plus_one;
};
extern struct ss_relatives ss_relatives __attribute__((swift_attr("nonisolated(unsafe)")));

/// Locks byte `index` of a file for this process (not for its children), until it ends or becomes another program. 0, or -errno.
long ss_lock_record(int fd, long index);
/// Whether another process has locked it. 1, 0, or -errno.
long ss_record_is_locked(int fd, long index);

/// This thread's kernel id, cached (0 until asked; reset in a forked child).
int32_t ss_thread_id(void);
void ss_thread_id_reset(void);
/// Whether this thread's fork is prepared: the hook before it says so (1), and the one after it, in the child, too, asks and says
/// that it is over (0). Returns what was said before.
int ss_note_fork(int prepared);
/// Whether a thread is no more. The main thread of a process that nobody has waited for yet answers to its number still.
int ss_thread_is_dead(int thread);
/// Whether `pid` is a child of this process that has ended and that nobody has waited for yet.
int ss_child_has_exited(int pid);
