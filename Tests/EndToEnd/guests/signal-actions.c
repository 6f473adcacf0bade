// What a program sees of its signal actions, which are entered through the library: handlers get what the kernel would have
// given them, and every call shows what was set. Prints it; with and without the library the output must be the same.
#include "carriers.h"
#include <ucontext.h>

static char stack[1 << 16] __attribute__((aligned(64)));
static int depth, raised;

static void show_mask(const char *what, const sigset_t *set) {
    printf("%s:", what);
    for (int i = 1; i < 65; i++)
        if (sigismember(set, i) == 1) printf(" %d", i);
    printf("\n");
}

static void on_signal(int signal, siginfo_t *info, void *context) {
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    printf("handler %d depth %d code %d value %d pid %d alternate stack %d errno %d\n", signal, depth, info->si_code, info->si_value.sival_int,
        info->si_code == SI_TIMER || info->si_pid == getpid(), (char *)&now >= stack && (char *)&now < stack + sizeof stack, errno);
    show_mask("mask", &now);
    show_mask("mask of the context", &((ucontext_t *)context)->uc_sigmask);
    depth++;
    if (++raised < 3) raise(signal);
    depth--;
    printf("handler %d leaves\n", signal);
}

static void on_plain_signal(int signal) { printf("plain handler %d\n", signal); }

static void show_action(int signal) {
    struct sigaction now;
    memset(&now, 0, sizeof now);
    errno = 0;
    printf("sigaction %d %d", sigaction(signal, NULL, &now), errno);
    printf(" handler %s flags %x\n",
        now.sa_sigaction == on_signal ? "on_signal" : now.sa_handler == on_plain_signal ? "on_plain_signal"
            : now.sa_handler == SIG_DFL ? "SIG_DFL" : now.sa_handler == SIG_IGN ? "SIG_IGN" : "?", now.sa_flags);
    show_mask("its mask", &now.sa_mask);
}

static const char *name(void *handler) {
    return handler == SIG_DFL ? "SIG_DFL" : handler == SIG_IGN ? "SIG_IGN" : handler == SIG_ERR ? "SIG_ERR" : handler == (void *)2 ? "SIG_HOLD"
        : handler == on_plain_signal ? "on_plain_signal" : handler == on_signal ? "on_signal" : "?";
}

static void set_action(int signal, const struct sigaction *action) {
    struct sigaction old;
    int result = sigaction(signal, action, &old);
    printf("set %d, was %s\n", result, name(old.sa_sigaction));
}

/// Sends it in several ways, and without need.
static void send_all(int signal) {
    sigset_t mask;
    errno = 77;
    raised = 0;
    raise(signal);
    sigqueue(getpid(), signal, (union sigval){.sival_int = 42});
    sigprocmask(SIG_SETMASK, NULL, &mask);
    show_mask("mask afterwards", &mask);
}

extern void (*bsd_signal(int, void (*)(int)))(int);
extern void (*sysv_signal(int, void (*)(int)))(int);
extern void (*__sysv_signal(int, void (*)(int)))(int);

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
    static const int flags[] = {0, SA_ONSTACK, SA_NODEFER, SA_RESTART, SA_NODEFER | SA_ONSTACK | SA_RESTART};
    static const int signals[] = {SIGUSR1, SIGCHLD, SIGIO, 64};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        for (unsigned k = 0; k < sizeof flags / sizeof *flags; k++) {
            struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags[k]};
            sigaddset(&action.sa_mask, SIGUSR2);
            if (k == 3) sigfillset(&action.sa_mask);
            set_action(signals[i], &action);
            show_action(signals[i]);
            send_all(signals[i]);
            struct sigaction ignored = {.sa_handler = SIG_IGN};
            if (k == 4) set_action(signals[i], &ignored);
            if (k == 4) show_action(signals[i]);
        }

    // Those that fire once.
    struct sigaction once = {.sa_handler = on_plain_signal, .sa_flags = SA_RESETHAND};
    sigaction(SIGCHLD, &once, NULL);
    show_action(SIGCHLD);
    raise(SIGCHLD);
    show_action(SIGCHLD);
    raise(SIGCHLD);
    sigaction(SIGCHLD, &once, NULL);
    raise(SIGCHLD);

    // The older functions.
    void (*(*functions[])(int, void (*)(int)))(int) = {signal, ssignal, bsd_signal, sysv_signal, __sysv_signal};
    for (unsigned i = 0; i < sizeof functions / sizeof *functions; i++) {
        printf("%s", name(functions[i](SIGURG, on_plain_signal)));
        printf(" %s\n", name(functions[i](SIGURG, on_plain_signal)));
        show_action(SIGURG);
        raise(SIGURG);
        printf("siginterrupt %d", siginterrupt(SIGURG, 1));
        show_action(SIGURG);
        printf("%s\n", name(functions[i](SIGURG, SIG_IGN)));
        printf("%s\n", name(functions[i](SIGURG, on_plain_signal)));
        show_action(SIGURG);
        printf("siginterrupt %d", siginterrupt(SIGURG, 0));
        show_action(SIGURG);
        printf("%s\n", name(functions[i](SIGURG, SIG_DFL)));
    }
    printf("sigset %s", name(sigset(SIGURG, on_plain_signal)));
    show_action(SIGURG);
    printf("hold %s\n", name(sigset(SIGURG, SIG_HOLD)));
    raise(SIGURG);
    printf("held %s\n", name(sigset(SIGURG, on_plain_signal)));
    raise(SIGURG);
    printf("sigignore %d\n", sigignore(SIGURG));
    show_action(SIGURG);
    static const int invalid[] = {0, -1, 65, SIGKILL, SIGSTOP, 32, 33, 1000};
    for (unsigned i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        errno = 0;
        printf("invalid %d: %s %d", invalid[i], name(signal(invalid[i], on_plain_signal)), errno);
        errno = 0;
        printf(" %d %d", sigaction(invalid[i], &once, NULL), errno);
        errno = 0;
        printf(" %s %d", name(sigset(invalid[i], on_plain_signal)), errno);
        errno = 0;
        printf(" %d %d", sigignore(invalid[i]), errno);
        errno = 0;
        printf(" %d %d\n", siginterrupt(invalid[i], 1), errno);
    }

    // Children: a vfork child's actions are its own.
    signal(SIGUSR1, on_plain_signal);
    pid_t child = vfork();
    if (child == 0) {
        show_action(SIGUSR1);
        signal(SIGUSR1, SIG_DFL);
        signal(SIGUSR2, on_plain_signal);
        show_action(SIGUSR1);
        show_action(SIGUSR2);
        raise(SIGUSR2);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    show_action(SIGUSR1);
    show_action(SIGUSR2);
    raise(SIGUSR1);
    child = fork();
    if (child == 0) {
        show_action(SIGUSR1);
        raise(SIGUSR1);
        signal(SIGUSR1, SIG_DFL);
        raise(SIGUSR1);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("child %d\n", status);
    raise(SIGUSR1);

    // With a mask of its own a wait lets in what is held back otherwise.
    moves = !getenv("PLAIN");
    struct ends ends = make_ends();
    sigset_t usr1, none;
    sigemptyset(&none);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, ends.client, &event);
    for (int i = 0; i < 3; i++) {
        fd_set readable;
        FD_ZERO(&readable);
        FD_SET(ends.client, &readable);
        raise(SIGUSR1);
        errno = 0;
        int result = i == 0 ? ppoll(&(struct pollfd){ends.client, POLLIN, 0}, 1, NULL, &none)
            : i == 1 ? epoll_pwait(set, &event, 1, -1, &none) : pselect(ends.client + 1, &readable, NULL, NULL, NULL, &none);
        printf("wait %d %d\n", result, errno);
        sigset_t mask;
        sigprocmask(SIG_SETMASK, NULL, &mask);
        show_mask("mask", &mask);
    }

    // Handlers that are entered from there find the mask of the wait, and their own.
    sigaddset(&usr1, SIGURG);
    sigaddset(&usr1, SIGCHLD);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    static const int masks[] = {0, SA_NODEFER, SA_RESETHAND};
    for (unsigned i = 0; i < 15; i++) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | masks[i / 5]};
        sigaddset(&action.sa_mask, SIGUSR2);
        sigaction(SIGUSR1, &action, NULL);
        fd_set readable;
        FD_ZERO(&readable);
        FD_SET(ends.client, &readable);
        raised = 3;
        raise(SIGUSR1);
        errno = 0;
        int way = i % 5;
        int result = way == 0 ? ppoll(&(struct pollfd){ends.client, POLLIN, 0}, 1, NULL, &none)
            : way == 1 ? epoll_pwait(set, &event, 1, -1, &none)
            : way == 2 ? pselect(ends.client + 1, &readable, NULL, NULL, NULL, &none)
            : way == 3 ? sigsuspend(&none) : ppoll(NULL, 0, NULL, &none);
        printf("wait %d %d\n", result, errno);
    }
    return 0;
}
