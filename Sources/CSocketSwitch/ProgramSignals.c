#include "CSocketSwitch.h"

#include <ucontext.h>

__thread struct ss_section ss_section __attribute__((tls_model("initial-exec")));

// libc's, under the name that nobody takes: sigaction is ours in the library.
extern int __sigaction(int, const struct sigaction *, struct sigaction *);

enum {
    SIGNALS = 65,
    RESTORER = 0x04000000,  // SA_RESTORER, which libc adds
};

static uint64_t bit_of(int signal) { return 1ull << (signal - 1); }

/// Caused by an instruction: these cannot wait. SIGSEGV and SIGBUS are ours once the copies are guarded (ProgramMemory.h).
static uint64_t faults(void) {
    return bit_of(SIGSEGV) | bit_of(SIGBUS) | bit_of(SIGFPE) | bit_of(SIGILL) | bit_of(SIGTRAP) | bit_of(SIGSYS);
}

/// What a section may hold back: not those, nor the two that libc keeps for itself.
static uint64_t deferrable(void) { return ~(faults() | bit_of(32) | bit_of(33)); }

static int is_deferrable(int signal) {
    return signal >= 1 && signal < SIGNALS && deferrable() & bit_of(signal) && signal != SIGKILL && signal != SIGSTOP;
}

static int is_guarded(int signal) { return signal == SIGSEGV || signal == SIGBUS; }

// MARK: What the program has set

/// An action, without what the kernel keeps for us as it is.
struct action {
    void (*handler)(int, siginfo_t *, void *);
    uint64_t mask;
    int flags;
};

static struct {
    uint32_t version;  // odd: being changed
    uint32_t spent;    // SA_RESETHAND: it has run
    struct action action;
} programs[SIGNALS];

#define DEFAULT ((void (*)(int, siginfo_t *, void *))SIG_DFL)
#define IGNORE ((void (*)(int, siginfo_t *, void *))SIG_IGN)

static int32_t owner;        // the process whose actions these are: a vfork child has its own, in the same memory
static uint32_t lock;        // 1: a thread changes them
static uint32_t is_guarding;  // SIGSEGV and SIGBUS are ours
static uint32_t is_given_up;
static uint64_t interrupting;  // siginterrupt: bit n - 1, signal(3) leaves SA_RESTART out

static uint64_t take_lock(void) {
    uint64_t all = ~(uint64_t)0, before = 0;
    ss_sys_sigprocmask(SIG_BLOCK, &all, &before);
    // A holder that died in a fork is not waited for long.
    for (int round = 0; round < 1000000; round++) {
        uint32_t free = 0;
        if (__atomic_compare_exchange_n(&lock, &free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) break;
        ss_pause();
    }
    return before;
}

static void give_lock(uint64_t mask) {
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    ss_sys_sigprocmask(SIG_SETMASK, &mask, NULL);
}

/// A child on its parent's memory.
static int is_foreign(void) {
    int32_t known = __atomic_load_n(&owner, __ATOMIC_RELAXED);
    if (known != 0 && !ss_memory_may_be_borrowed()) return 0;
    int32_t me = (int32_t)ss_sys_getpid();
    if (known == 0) __atomic_store_n(&owner, me, __ATOMIC_RELAXED);
    return known != 0 && known != me;
}

static uint64_t *mask_of(const sigset_t *set) { return (uint64_t *)set; }

__attribute__((constructor)) static void note_owner(void) { owner = (int32_t)ss_sys_getpid(); }

static struct action short_form(const struct sigaction *action) {
    return (struct action){action->sa_sigaction, *mask_of(&action->sa_mask), action->sa_flags};
}

static void remember(int signal, struct action action) {
    uint32_t version = programs[signal].version;
    __atomic_store_n(&programs[signal].version, version | 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    programs[signal].action = action;
    programs[signal].spent = 0;
    __atomic_store_n(&programs[signal].version, (version | 1) + 1, __ATOMIC_RELEASE);
}

/// The program's action, as it stood at one moment.
static struct action recall(int signal) {
    for (;;) {
        uint32_t version = __atomic_load_n(&programs[signal].version, __ATOMIC_ACQUIRE);
        struct action action = programs[signal].action;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (version % 2 == 0 && __atomic_load_n(&programs[signal].version, __ATOMIC_RELAXED) == version) return action;
        ss_pause();
    }
}

static void set_default(int signal) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    __sigaction(signal, &action, NULL);
}

/// What the kernel leaves of an action that fires once.
static void reset(int signal, const struct action *fired) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_flags = fired->flags;
    *mask_of(&action.sa_mask) = fired->mask;
    __sigaction(signal, &action, NULL);
}

/// Sends the signal that a handler was called with to this thread once more.
static long send_again(int signal, siginfo_t *info) {
    return ss_syscall6(SYS_rt_tgsigqueueinfo, ss_sys_getpid(), ss_sys_gettid(), signal, (long)info, 0, 0);
}

// Real-time signals come in order. One that is sent again stands behind those that wait already; so what it carries is kept,
// and each that comes after gives what it carries to the next, until the one that was sent again has come.

enum { FIRST_QUEUED = 34, SENT_AGAIN = 0x5353 };

static long put_off(struct ss_section *section, int signal, siginfo_t *info, const struct action *action) {
    if (signal < FIRST_QUEUED || section->held != 0 || action->flags & (SA_NODEFER | SA_RESETHAND)) return send_again(signal, info);
    siginfo_t again = *info;
    again.si_errno = SENT_AGAIN;
    long result = send_again(signal, &again);
    if (result == 0) {
        section->info = *info;
        section->held = signal;
    }
    return result;
}

/// What the handler is to see of the signal that has come.
static void pass_on(struct ss_section *section, siginfo_t *info) {
    siginfo_t first = section->info;
    if (info->si_errno == SENT_AGAIN) section->held = 0;
    else section->info = *info;
    *info = first;
}

// MARK: Faults

static void on_fault(int signal, siginfo_t *info, void *context) {
    // Only what the processor reported (si_code > 0) is about the instruction.
    if (info->si_code > 0 && ss_resume_copy(context)) return;
    struct action action = recall(signal);
    if (action.handler == IGNORE) return;
    if (action.handler == DEFAULT) {
        // With the true context: the signal comes once more when this handler has returned.
        set_default(signal);
        send_again(signal, info);
        return;
    }
    if (action.flags & SA_RESETHAND) remember(signal, (struct action){DEFAULT, action.mask, action.flags});
    action.handler(signal, info, context);
}

/// Puts our handler into force as `action` would be. 0, or -1 and errno.
static int guard(int signal, const struct sigaction *action) {
    struct sigaction ours = *action;
    if (action->sa_handler == SIG_IGN) return __sigaction(signal, &ours, NULL);  // what is ignored stays so over exec
    ours.sa_sigaction = on_fault;
    ours.sa_flags = (ours.sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
    if (action->sa_handler == SIG_DFL) {
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&ours.sa_mask);
    }
    return __sigaction(signal, &ours, NULL);
}

void ss_guard_memory(void) {
    if (__atomic_load_n(&is_guarding, __ATOMIC_ACQUIRE) || __atomic_load_n(&is_given_up, __ATOMIC_ACQUIRE)) return;
    int error = errno;
    uint64_t mask = take_lock();
    if (!is_guarding && !is_foreign()) {
        for (int signal = 1; signal < SIGNALS; signal++) {
            struct sigaction action;
            if (!is_guarded(signal) || __sigaction(signal, NULL, &action) != 0) continue;
            remember(signal, short_form(&action));
            guard(signal, &action);
        }
        __atomic_store_n(&is_guarding, 1, __ATOMIC_RELEASE);
    }
    give_lock(mask);
    errno = error;
}

// MARK: All others

extern const char ss_sleep_begin[], ss_sleep_call[], ss_sleep_interrupted[];

/// A sleep that has not begun yet does not begin.
static void end_sleep(ucontext_t *context) {
#if defined(__x86_64__)
    greg_t *instruction = &context->uc_mcontext.gregs[REG_RIP];
#else
    unsigned long long *instruction = &context->uc_mcontext.pc;
#endif
    uintptr_t at = (uintptr_t)*instruction;
    if (at >= (uintptr_t)ss_sleep_begin && at <= (uintptr_t)ss_sleep_call) *instruction = (__typeof__(*instruction))(uintptr_t)ss_sleep_interrupted;
}

static uint64_t hold_all(void) {
    uint64_t all = deferrable(), before = 0;
    ss_sys_sigprocmask(SIG_BLOCK, &all, &before);
    return before;
}

// Entered with the very mask that the program's handler is to find: in a wait with a mask of its own (sigsuspend, ppoll) only the
// kernel knows it. So another signal may come right at the beginning, and find the section as this one does.
static void on_signal(int signal, siginfo_t *info, void *context) {
    int error = errno;
    struct ss_section *section = &ss_section;
    struct action action = recall(signal);
    uint32_t kind = action.flags & SA_RESTART ? SS_HANDLER_RESTARTS : SS_HANDLER_INTERRUPTS;
    if (section->depth > 0) {
        uint64_t mask = hold_all();
        // (Where no more signals can be queued it is better called in the middle of something than never.)
        if (put_off(section, signal, info, &action) == 0) {
            uint64_t *interrupted = mask_of(&((ucontext_t *)context)->uc_sigmask);
            // (One that came at the beginning has been put off, but knew only the mask in here.)
            if (section->waiting == 0 || ~*interrupted & deferrable()) section->mask = *interrupted;
            section->waiting |= kind;
            *interrupted |= deferrable();
            end_sleep(context);
            errno = error;
            return;
        }
        ss_sys_sigprocmask(SIG_SETMASK, &mask, NULL);
    }
    if (action.flags & SA_RESETHAND) {
        uint64_t mask = hold_all();
        if (__atomic_exchange_n(&programs[signal].spent, 1, __ATOMIC_RELAXED) != 0) {
            send_again(signal, info);  // to what the first one has left
            errno = error;
            return;
        }
        reset(signal, &action);
        ss_sys_sigprocmask(SIG_SETMASK, &mask, NULL);
    }
    if (section->held == signal) pass_on(section, info);
    uint32_t ran = section->ran;
    errno = error;
    // (A handler without SA_SIGINFO does not look at what it is given besides.)
    action.handler(signal, info, context);
    section->ran = ran | kind;
}

static int put_in_force(int signal, const struct sigaction *action) {
    if (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN) return __sigaction(signal, action, NULL);
    struct sigaction ours = *action;
    ours.sa_sigaction = on_signal;
    ours.sa_flags = (ours.sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
    struct action before = recall(signal);
    remember(signal, short_form(action));
    int result = __sigaction(signal, &ours, NULL);
    if (result != 0) remember(signal, before);
    return result;
}

/// What the kernel has, as the program set it.
static void translate(int signal, struct sigaction *found) {
    void *handler = (void *)found->sa_sigaction;
    if (handler != (void *)on_signal && handler != (void *)on_fault) return;
    struct action action = recall(signal);
    found->sa_sigaction = action.handler;
    found->sa_flags = action.flags | (handler == (void *)on_signal ? found->sa_flags & RESTORER : 0);
    *mask_of(&found->sa_mask) = action.mask & ~(bit_of(SIGKILL) | bit_of(SIGSTOP));
}

int ss_program_sigaction(int signal, const struct sigaction *action, struct sigaction *old) {
    int guards = is_guarded(signal) && __atomic_load_n(&is_guarding, __ATOMIC_ACQUIRE);
    if (!guards && (!is_deferrable(signal) || __atomic_load_n(&is_given_up, __ATOMIC_ACQUIRE))) return __sigaction(signal, action, old);
    struct sigaction wanted, before;
    if (action) wanted = *action;
    int result;
    if (!action || is_foreign()) {
        // A child of vfork sets its own action, and sees what it inherited; our record is its parent's.
        result = __sigaction(signal, NULL, &before);
        if (result == 0) translate(signal, &before);
        if (result == 0 && action) result = __sigaction(signal, &wanted, NULL);
    } else {
        uint64_t mask = take_lock();
        result = __sigaction(signal, NULL, &before);
        if (result == 0) {
            translate(signal, &before);
            if (guards) {
                result = guard(signal, &wanted);
                struct sigaction in_force;
                if (result == 0 && __sigaction(signal, NULL, &in_force) == 0) {
                    wanted.sa_flags |= in_force.sa_flags & RESTORER;
                    remember(signal, short_form(&wanted));
                }
            } else {
                result = put_in_force(signal, &wanted);
            }
        }
        give_lock(mask);
    }
    if (result == 0 && old) *old = before;
    return result;
}

void ss_give_signals_up(void) {
    uint64_t mask = take_lock();
    for (int signal = 1; signal < SIGNALS; signal++) {
        struct sigaction action;
        if ((!is_deferrable(signal) && !is_guarded(signal)) || __sigaction(signal, NULL, &action) != 0) continue;
        struct sigaction found = action;
        translate(signal, &action);
        if (action.sa_sigaction != found.sa_sigaction) __sigaction(signal, &action, NULL);
    }
    __atomic_store_n(&is_given_up, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&is_guarding, 0, __ATOMIC_RELEASE);
    give_lock(mask);
}

void ss_begin_signals_after_fork(void) {
    __atomic_store_n(&owner, (int32_t)ss_sys_getpid(), __ATOMIC_RELAXED);
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    for (int signal = 1; signal < SIGNALS; signal++)
        if (programs[signal].version % 2) programs[signal].version++;
    struct ss_section *section = &ss_section;
    uint64_t mask = section->mask;
    int held = section->waiting != 0;
    *section = (struct ss_section){0};
    if (held) ss_sys_sigprocmask(SIG_SETMASK, &mask, NULL);
}

// MARK: Sections

void ss_end_section(void) {
    struct ss_section *section = &ss_section;
    uint64_t mask = section->mask;
    section->waiting = 0;
    ss_sys_sigprocmask(SIG_SETMASK, &mask, NULL);
}

uint32_t ss_take_handlers(void) {
    struct ss_section *section = &ss_section;
    if (section->waiting == 0) return 0;
    int32_t depth = section->depth;
    section->ran = 0;
    section->depth = 0;
    ss_end_section();
    ss_resume_section(depth);
    return section->ran;
}

int32_t ss_suspend_section(void) {
    int32_t depth = ss_section.depth;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    ss_section.depth = 0;
    if (ss_section.waiting != 0) ss_end_section();
    return depth;
}

// From `ss_sleep_begin` to the call itself `end_sleep` makes it an error; so what has come before is seen here, and what comes
// later interrupts the kernel.
__attribute__((noinline)) static long sleep_in_section(const uint32_t *waiting, long n, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
    long result = n;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile(".globl ss_sleep_begin\n.hidden ss_sleep_begin\n"
                     ".globl ss_sleep_call\n.hidden ss_sleep_call\n"
                     ".globl ss_sleep_interrupted\n.hidden ss_sleep_interrupted\n"
                     "ss_sleep_begin:\n"
                     "    cmpl $0, (%[waiting])\n"
                     "    jne ss_sleep_interrupted\n"
                     "ss_sleep_call:\n"
                     "    syscall\n"
                     "    jmp 1f\n"
                     "ss_sleep_interrupted:\n"
                     "    movq %[interrupted], %%rax\n"
                     "1:\n"
                     : "+a"(result)
                     : [waiting] "r"(waiting), [interrupted] "i"(-EINTR), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory", "cc");
    return result;
#else
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    uint32_t found;
    __asm__ volatile(".globl ss_sleep_begin\n.hidden ss_sleep_begin\n"
                     ".globl ss_sleep_call\n.hidden ss_sleep_call\n"
                     ".globl ss_sleep_interrupted\n.hidden ss_sleep_interrupted\n"
                     "ss_sleep_begin:\n"
                     "    ldr %w[found], [%[waiting]]\n"
                     "    cbnz %w[found], ss_sleep_interrupted\n"
                     "ss_sleep_call:\n"
                     "    svc 0\n"
                     "    b 1f\n"
                     "ss_sleep_interrupted:\n"
                     "    mov x0, %[interrupted]\n"
                     "1:\n"
                     : "+r"(x0), [found] "=&r"(found)
                     : [waiting] "r"(waiting), [interrupted] "i"(-EINTR), "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
#endif
}

long ss_interruptible_syscall6(long n, long a, long b, long c, long d, long e, long f) {
    if (ss_section.depth == 0) return ss_syscall6(n, a, b, c, d, e, f);
    return sleep_in_section(&ss_section.waiting, n, a, b, c, d, e, f);
}

// MARK: The other functions of libc, all of which end in sigaction

static void *set_handler(int signal, void *handler, int flags) {
    struct sigaction action, old;
    memset(&action, 0, sizeof action);
    action.sa_handler = (__sighandler_t)handler;
    action.sa_flags = flags;
    if (handler == (void *)SIG_ERR || signal < 1 || signal >= SIGNALS) {
        errno = EINVAL;
        return (void *)SIG_ERR;
    }
    if (!(flags & SA_NODEFER)) sigaddset(&action.sa_mask, signal);
    return ss_program_sigaction(signal, &action, &old) < 0 ? (void *)SIG_ERR : (void *)old.sa_handler;
}

void *ss_program_signal(int signal, void *handler) {
    int restarts = signal < 1 || signal >= SIGNALS || !(__atomic_load_n(&interrupting, __ATOMIC_RELAXED) & bit_of(signal));
    return set_handler(signal, handler, restarts ? SA_RESTART : 0);
}

void *ss_program_sysv_signal(int signal, void *handler) {
    return set_handler(signal, handler, SA_RESETHAND | SA_NODEFER);
}

int ss_program_siginterrupt(int signal, int interrupts) {
    struct sigaction action;
    if (ss_program_sigaction(signal, NULL, &action) < 0) return -1;
    if (interrupts) {
        __atomic_or_fetch(&interrupting, bit_of(signal), __ATOMIC_RELAXED);
        action.sa_flags &= ~SA_RESTART;
    } else {
        __atomic_and_fetch(&interrupting, ~bit_of(signal), __ATOMIC_RELAXED);
        action.sa_flags |= SA_RESTART;
    }
    return ss_program_sigaction(signal, &action, NULL);
}

// SIG_HOLD, 2, is no handler: it blocks the signal.
void *ss_program_sigset(int signal, void *handler) {
    struct sigaction action, old;
    if (handler == (void *)SIG_ERR || signal < 1 || signal >= SIGNALS) {
        errno = EINVAL;
        return (void *)SIG_ERR;
    }
    int holds = handler == (void *)2;
    memset(&action, 0, sizeof action);
    action.sa_handler = (__sighandler_t)handler;
    if (ss_program_sigaction(signal, holds ? NULL : &action, &old) < 0) return (void *)SIG_ERR;
    uint64_t set = bit_of(signal), before = 0;
    ss_sys_sigprocmask(holds ? SIG_BLOCK : SIG_UNBLOCK, &set, &before);
    return before & set ? (void *)2 : (void *)old.sa_handler;
}

int ss_program_sigignore(int signal) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_IGN;
    return ss_program_sigaction(signal, &action, NULL);
}
