#ifndef C_PROGRAM_SUPPORT_H
#define C_PROGRAM_SUPPORT_H

// What the test and benchmark programs need from libc and Swift's Glibc module does not offer: epoll, fork, the fd_set
// macros, CPU affinity. Plain calls: the programs stay ordinary, unmodified users of libc.

#include <sys/epoll.h>

int program_fork(void);

/// Exit code of `pid`, 256 + signal number when it was killed, -1 on error. Blocks.
int program_wait(int pid);

/// select(2) on one descriptor (< FD_SETSIZE): bit 0 of the answer readable, bit 1 writable; -1 on error, 0 on time-out.
int program_select(int descriptor, int reading, int writing, int timeout_milliseconds);

/// Bytes that FIONREAD promises, or -1.
int program_readable_bytes(int descriptor);

int program_set_nonblocking(int descriptor, int enable);

/// Puts the calling process (its first thread and all later ones) on one CPU.
int program_pin(int cpu);

/// CPU time of this process, user and system, in seconds.
double program_cpu_seconds(void);

/// A memfd for the bytes that sendfile sends.
int program_memfd(void);

/// close_range(2) through libc: closes `first` to `last`, both included.
int program_close_range(unsigned first, unsigned last);

static inline void program_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
