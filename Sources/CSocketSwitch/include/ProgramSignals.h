// The program's signal handlers, and the moments at which they may run.
//
// The switch does in the program's own threads what the kernel does in its own space, so a handler could find it in the
// middle of something: a lock taken, bytes copied and not yet counted. In a *section* none runs. One that comes then is put
// off: its signal is sent again, to this thread, and held back until the section ends. A call that may sleep is one section
// as a whole, as it is in the kernel: the signal ends the sleep, and the handler runs when the call has let go of everything.
//
// For this every handler of the program (but those of faults) is entered through ours. What the program set, and sees, is
// kept here. Actions that were set past libc's functions are the kernel's alone, and such handlers run at any moment.
#pragma once
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

/// What handlers have run, or wait.
enum {
    SS_HANDLER_INTERRUPTS = 1,  // set without SA_RESTART
    SS_HANDLER_RESTARTS = 2,
};

/// One a thread.
struct ss_section {
    int32_t depth;     // 0: handlers run at once
    uint32_t waiting;  // kinds of those that were put off
    uint32_t ran;      // kinds of those that have run since the last `ss_take_handlers`
    uint64_t mask;     // the program's mask, while some wait
    int32_t held;      // a real-time signal that runs before all others of its number, or 0; `info` is its
    siginfo_t info;
};
extern __thread struct ss_section ss_section __attribute__((tls_model("initial-exec")));

/// Runs the handlers that wait. For the end of the outermost section.
void ss_end_section(void);

static inline __attribute__((always_inline)) void ss_enter_section(void) {
    ss_section.depth++;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static inline __attribute__((always_inline)) void ss_leave_section(void) {
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (--ss_section.depth == 0 && __builtin_expect(ss_section.waiting != 0, 0)) ss_end_section();
}

/// Kinds of the handlers that wait in this section; 0: none.
static inline uint32_t ss_waiting_handlers(void) { return ss_section.waiting; }

/// In a call that holds nothing: runs the handlers that wait, and goes on in the section. Kinds of those that ran.
uint32_t ss_take_handlers(void);

/// The sections of this thread are left for a while, as for a call that the kernel is to restart or to end itself. What
/// `ss_resume_section` needs. The caller holds nothing.
int32_t ss_suspend_section(void);
static inline void ss_resume_section(int32_t depth) {
    ss_section.depth = depth;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/// A system call that may sleep, within a section: a handler that is put off ends it with -EINTR, even one that came right
/// before it. Outside of sections as any system call.
long ss_interruptible_syscall6(long n, long a, long b, long c, long d, long e, long f);

/// In a forked child: it is in no section, and what waited in its parent is its parent's.
void ss_begin_signals_after_fork(void);

/// The program's own actions go to the kernel, for good: no system call may be made for it any more.
void ss_give_signals_up(void);

// MARK: What the program calls: as the functions of libc, errno included.

int ss_program_sigaction(int signal, const struct sigaction *_Nullable action, struct sigaction *_Nullable old);
/// signal(3).
void *_Nullable ss_program_signal(int signal, void *_Nullable handler);
/// sysv_signal(3): once, and nothing is held back meanwhile.
void *_Nullable ss_program_sysv_signal(int signal, void *_Nullable handler);
int ss_program_siginterrupt(int signal, int interrupts);
void *_Nullable ss_program_sigset(int signal, void *_Nullable handler);
int ss_program_sigignore(int signal);

#pragma clang assume_nonnull end
