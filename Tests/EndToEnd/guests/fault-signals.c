// SIGSEGV and SIGBUS while the library has them: handlers get what the kernel would have given them, sigaction tells what the
// program set, default actions end the process as they should, and memory tricks work. `fault-signals CASE`: prints what
// it saw; with and without the library the output, and the way that the process ends, must be the same.
#include "carriers.h"
#include <ucontext.h>

static struct ends ends;
static sigjmp_buf back;
static char *guard_page;
static void *volatile bad;
static char stack[1 << 16] __attribute__((aligned(64)));

static void touch(void) { *(volatile char *)guard_page = 1; }

// The library has work with the signal itself, too.
static void use(void) {
    char got[8];
    printf("write %ld", (long)write(ends.client, bad, 8));
    printf(" %s", strerrorname_np(errno));
    printf(" send %ld", (long)send(ends.client, "12345678", 8, 0));
    printf(" recv %ld", (long)recv(ends.server, bad, 8, 0));
    printf(" recv %ld\n", (long)recv(ends.server, got, 8, 0));
    fflush(stdout);
}

static int on_stack(void *place) { return (char *)place >= stack && (char *)place < stack + sizeof stack; }

static void show_mask(const char *what, const sigset_t *set) {
    printf("%s:", what);
    for (int i = 1; i < 32; i++)
        if (sigismember(set, i)) printf(" %d", i);
    printf("\n");
}

static void on_signal(int signal, siginfo_t *info, void *context) {
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    printf("handler %d code %d address %ld alternate stack %d\n", signal, info->si_code,
        info->si_code > 0 ? (long)((char *)info->si_addr - guard_page) : 0L, on_stack(&now));
    show_mask("mask", &now);
    show_mask("mask of the context", &((ucontext_t *)context)->uc_sigmask);
    siglongjmp(back, 1);
}

static void on_plain_signal(int signal) {
    printf("plain handler %d\n", signal);
    siglongjmp(back, 1);
}

static void on_trick(int signal, siginfo_t *info, void *context) { mprotect(guard_page, 4096, PROT_READ | PROT_WRITE); }

static void show_action(int signal) {
    struct sigaction now;
    memset(&now, 0, sizeof now);
    printf("sigaction %d", sigaction(signal, NULL, &now));
    printf(" handler %s flags %x\n",
        now.sa_sigaction == on_signal ? "on_signal" : now.sa_handler == on_plain_signal ? "on_plain_signal"
            : now.sa_sigaction == on_trick ? "on_trick" : now.sa_handler == SIG_DFL ? "SIG_DFL"
            : now.sa_handler == SIG_IGN ? "SIG_IGN" : "?", now.sa_flags);
    show_mask("its mask", &now.sa_mask);
}

static void handlers(int before) {
    static const int flags[] = {SA_SIGINFO, SA_SIGINFO | SA_ONSTACK, SA_SIGINFO | SA_NODEFER, SA_SIGINFO | SA_RESETHAND, SA_SIGINFO | SA_RESTART};
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    if (!before) ends = make_ends();
    for (int i = 0; i < 5; i++) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = flags[i]}, old;
        sigaddset(&action.sa_mask, SIGUSR1);
        show_action(SIGSEGV);
        printf("set %d\n", sigaction(SIGSEGV, &action, &old));
        if (before && i == 0) ends = make_ends();
        show_action(SIGSEGV);
        use();
        if (!sigsetjmp(back, 1)) touch();
        show_action(SIGSEGV);
        if (flags[i] & SA_RESETHAND) continue;
        use();
        if (!sigsetjmp(back, 1)) kill(getpid(), SIGSEGV);
        if (!sigsetjmp(back, 1)) raise(SIGSEGV);
        use();
    }
    printf("signal %d\n", signal(SIGSEGV, on_plain_signal) == (void *)on_signal);
    show_action(SIGSEGV);
    if (!sigsetjmp(back, 1)) touch();
    printf("siginterrupt %d\n", siginterrupt(SIGSEGV, 1));
    show_action(SIGSEGV);
    printf("sysv_signal %d\n", sysv_signal(SIGSEGV, on_plain_signal) == on_plain_signal);
    show_action(SIGSEGV);
    if (!sigsetjmp(back, 1)) touch();
    show_action(SIGSEGV);
    printf("sigset %d\n", sigset(SIGSEGV, on_plain_signal) == SIG_DFL);
    show_action(SIGSEGV);
    if (!sigsetjmp(back, 1)) touch();
    printf("sigset hold %d\n", sigset(SIGSEGV, SIG_HOLD) == on_plain_signal);
    printf("sigset release %d\n", sigset(SIGSEGV, on_plain_signal) == SIG_HOLD);
    use();
    printf("ignored %d\n", signal(SIGBUS, SIG_IGN) == SIG_DFL);
    show_action(SIGBUS);
    kill(getpid(), SIGBUS);
    printf("sigignore %d\n", sigignore(SIGBUS));
    printf("invalid %d %d\n", signal(SIGSEGV, SIG_ERR) == SIG_ERR, sigaction(SIGKILL, &(struct sigaction){.sa_handler = SIG_IGN}, NULL));
    use();
}

static void trick(void) {
    ends = make_ends();
    sigaction(SIGSEGV, &(struct sigaction){.sa_sigaction = on_trick, .sa_flags = SA_SIGINFO}, NULL);
    for (int i = 0; i < 100; i++) {
        mprotect(guard_page, 4096, PROT_NONE);
        touch();
        if (i % 10 == 0) use();
    }
    printf("tricks done\n");
}

// A child that only forks sees what its parent set; one that is made by vfork sets its own.
static void children(void) {
    ends = make_ends();
    sigaction(SIGSEGV, &(struct sigaction){.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO}, NULL);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        show_action(SIGSEGV);
        use();
        signal(SIGSEGV, SIG_DFL);
        use();
        touch();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("child %d\n", WTERMSIG(status));
    if (!(child = vfork())) {
        signal(SIGSEGV, SIG_DFL);
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    waitpid(child, &status, 0);
    printf("vfork child %d\n", status);
    show_action(SIGSEGV);
    if (!sigsetjmp(back, 1)) touch();
    use();
}

static int deeper(int depth) {
    volatile char big[4096];
    big[0] = depth;
    return depth ? deeper(depth + 1) + big[0] : 0;
}

int main(int count, char **arguments) {
    const char *what = arguments[1];
    moves = !getenv("PLAIN");
    carrier = moves;
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    guard_page = mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bad = guard_page + 4096;
    if (!strcmp(what, "before")) handlers(1);
    else if (!strcmp(what, "after")) handlers(0);
    else if (!strcmp(what, "trick")) trick();
    else if (!strcmp(what, "children")) children();
    else {
        ends = make_ends();
        use();
        fflush(stdout);
        if (!strcmp(what, "fault")) touch();
        if (!strcmp(what, "kill")) kill(getpid(), SIGSEGV);
        if (!strcmp(what, "raise")) raise(SIGBUS);
        if (!strcmp(what, "overflow")) printf("%d\n", deeper(1));
        if (!strcmp(what, "reset")) {
            signal(SIGSEGV, on_plain_signal);
            signal(SIGSEGV, SIG_DFL);
            touch();
        }
    }
    return 0;
}
