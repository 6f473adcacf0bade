// Plays scripts about waiting on a connection that a policy keeps on TCP and on one that has moved, and compares what
// each says. Scripts say only what the kernel guarantees.
//
//     readiness_scripts KEPT_PORT MOVED_PORT [plain [SCRIPT]]
#include "twins.h"

static FILE *out;
static const char *running = "";

static void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(out, format, arguments);
    va_end(arguments);
}

static void fail(const char *format, ...) {
    printf("%s: ", running);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    exit(1);
}

#define SAY(call) say("%d " #call " = %ld\n", __LINE__, ANSWER(call))

static void sleep_ms(int ms) { poll(NULL, 0, ms); }

static void control(int set, int operation, int fd, uint32_t events) {
    struct epoll_event event = {events, {.u64 = 7}};
    MUST(epoll_ctl(set, operation, fd, &event) == 0);
}

static void add(int set, int fd, uint32_t events) { control(set, EPOLL_CTL_ADD, fd, events); }

// The events of one wait, of at most one registration; or -errno.
static long wait_for(int set, int timeout) {
    struct epoll_event event = {0};
    long count = ANSWER(epoll_wait(set, &event, 1, timeout));
    return count == 1 ? (long)event.events : count;
}

static long polled(int fd, int events, int timeout) {
    struct pollfd entry = {fd, (short)events, 0};
    long count = ANSWER(poll(&entry, 1, timeout));
    return count == 1 ? (uint16_t)entry.revents : count;
}

static long selected(int fd, int kind, int timeout) {
    fd_set sets[3];
    for (int i = 0; i < 3; i++) FD_ZERO(&sets[i]);
    FD_SET(fd, &sets[kind]);
    struct timeval time = {timeout / 1000, timeout % 1000 * 1000};
    return ANSWER(select(fd + 1, &sets[0], &sets[1], &sets[2], &time));
}

static char block[1 << 16];

// Until the kernel, or the ring, takes no more.
static long fill(int fd) {
    long total = 0;
    for (;;) {
        ssize_t count = send(fd, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0) {
            MUST(errno == EAGAIN);
            return total;
        }
        total += count;
    }
}

static void drain(int fd, long total) {
    while (total > 0) {
        ssize_t count = recv(fd, block, sizeof block, 0);
        MUST(count > 0);
        total -= count;
    }
    MUST(total == 0);
}

// MARK: Room to send

static void room_level(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    add(set, a, EPOLLOUT);
    say("%lx\n", wait_for(set, WATCHDOG_MS));
    for (int round = 0; round < 12; round++) {
        long total = fill(a);
        say("full %lx %lx %ld\n", wait_for(set, 0), polled(a, POLLOUT, 0), selected(a, 1, 0));
        // Every third time long enough for a stream whose reader does not read to go back to TCP, and be filled there, too.
        if (round % 3 == 2) {
            wait_for(set, 80);
            total += fill(a);
            say("full %lx\n", wait_for(set, 0));
        }
        drain(b, total);
        say("room %lx\n", wait_for(set, WATCHDOG_MS));
        say("room %lx %ld\n", polled(a, POLLOUT, WATCHDOG_MS), selected(a, 1, WATCHDOG_MS));
    }
    close(set);
}

static void room_edge(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    add(set, a, EPOLLOUT | EPOLLET);
    say("%lx\n", wait_for(set, WATCHDOG_MS));
    for (int round = 0; round < 12; round++) {
        long total = fill(a);
        if (round % 3 == 2) {
            while (wait_for(set, 80) == EPOLLOUT) total += fill(a);
        }
        drain(b, total);
        say("room %lx\n", wait_for(set, WATCHDOG_MS));
    }
    close(set);
}

struct sleeper {
    pthread_t thread;
    int fd, kind;
    long result;
};

static void *sleep_in(void *argument) {
    struct sleeper *one = argument;
    switch (one->kind) {
    case 0: one->result = wait_for(one->fd, WATCHDOG_MS); break;
    case 1: one->result = polled(one->fd, POLLOUT, WATCHDOG_MS); break;
    case 2: one->result = selected(one->fd, 1, WATCHDOG_MS); break;
    case 3: one->result = wait_for(one->fd, 300); break;
    default: one->result = polled(one->fd, POLLIN, WATCHDOG_MS); break;
    }
    return NULL;
}

static void start(struct sleeper *one, int kind, int fd) {
    *one = (struct sleeper){.kind = kind, .fd = fd};
    MUST(pthread_create(&one->thread, NULL, sleep_in, one) == 0);
}

static long finish(struct sleeper *one) {
    MUST(pthread_join(one->thread, NULL) == 0);
    return one->result;
}

// A thread sleeps until there is room, another one makes it.
static void room_wakes(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    add(set, a, EPOLLOUT);
    for (int kind = 0; kind < 3; kind++)
        for (int round = 0; round < 3; round++) {
            long total = fill(a);
            struct sleeper one;
            start(&one, kind, kind == 0 ? set : a);
            sleep_ms(round * 2);
            drain(b, total);
            say("%d %lx\n", kind, finish(&one));
        }
    close(set);
}

// MARK: Urgent data

static void urgent(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC), edge = epoll_create1(EPOLL_CLOEXEC);
    add(set, b, EPOLLPRI);
    add(edge, b, EPOLLIN | EPOLLPRI | EPOLLET);
    wait_for(edge, 0);
    say("%lx %lx\n", wait_for(set, 0), polled(b, POLLPRI, 0));
    struct sleeper one;
    start(&one, 0, set);
    sleep_ms(5);
    SAY(send(a, "!", 1, MSG_OOB | MSG_NOSIGNAL));
    say("woken %lx\n", finish(&one));
    say("%lx %lx %ld\n", polled(b, POLLPRI, WATCHDOG_MS), polled(b, POLLRDBAND | POLLPRI, WATCHDOG_MS), selected(b, 2, WATCHDOG_MS));
    say("edge %lx\n", wait_for(edge, WATCHDOG_MS) & EPOLLPRI);
    char byte[4] = "";
    SAY(recv(b, byte, 1, MSG_OOB));
    say("%c %lx %lx\n", byte[0], wait_for(set, 0), polled(b, POLLPRI, 0));
    close(set);
    close(edge);
}

// MARK: Time and signals

static volatile int handled;
static void handler(int number) { handled++; }

static void handle(int number, int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(number, &action, NULL);
}

static void times(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event;
    struct pollfd entry = {b, POLLIN, 0};
    fd_set reading;
    add(set, b, EPOLLIN);
    SAY(epoll_wait(set, &event, 1, 0));
    SAY(epoll_wait(set, &event, 1, 1));
    SAY(epoll_pwait2(set, &event, 1, &(struct timespec){0, 0}, NULL));
    SAY(epoll_pwait2(set, &event, 1, &(struct timespec){0, 1}, NULL));
    SAY(epoll_pwait2(set, &event, 1, &(struct timespec){0, 100000}, NULL));
    SAY(epoll_pwait2(set, &event, 1, &(struct timespec){0, -1}, NULL));
    SAY(epoll_pwait2(set, &event, 1, &(struct timespec){-1, 0}, NULL));
    SAY(epoll_pwait2(set, &event, 1, &(struct timespec){0, 1000000000}, NULL));
    SAY(epoll_pwait2(set, &event, 0, &(struct timespec){0, 1}, NULL));
    SAY(epoll_wait(set, &event, -1, 0));
    SAY(ppoll(&entry, 1, &(struct timespec){0, 1}, NULL));
    SAY(ppoll(&entry, 1, &(struct timespec){0, -1}, NULL));
    SAY(poll(&entry, 1, 1));
#define SELECTED(seconds, microseconds) \
    ({ \
        FD_ZERO(&reading); \
        FD_SET(b, &reading); \
        time = (struct timeval){seconds, microseconds}; \
        select(b + 1, &reading, NULL, NULL, &time); \
    })
    struct timeval time;
    SAY(SELECTED(0, 0));
    say("%ld %ld %d\n", time.tv_sec, time.tv_usec, FD_ISSET(b, &reading));
    SAY(SELECTED(0, 3000));
    say("%ld %ld %d\n", time.tv_sec, time.tv_usec, FD_ISSET(b, &reading));
    SAY(SELECTED(-1, 0));
    SAY(SELECTED(0, -1));
    MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
    SAY(epoll_wait(set, &event, 1, -1));
    SAY(epoll_wait(set, &event, 1, -77));
    SAY(epoll_pwait2(set, &event, 1, NULL, NULL));
    SAY(epoll_pwait2(set, &event, 1, &(struct timespec){0, 1}, NULL));
    SAY(ppoll(&entry, 1, NULL, NULL));
    SAY(poll(&entry, 1, -5));
    SAY(SELECTED(1000, 5));
    say("%d %d %d\n", time.tv_sec == 999 || time.tv_sec == 1000, FD_ISSET(b, &reading), time.tv_usec >= 0 && time.tv_usec < 1000000);
    SAY(SELECTED(0, 2000000));
    say("%d\n", time.tv_sec * 1000000 + time.tv_usec > 1000000);
    FD_ZERO(&reading);
    FD_SET(b, &reading);
    struct timespec precise = {77, 5};
    SAY(pselect(b + 1, &reading, NULL, NULL, &precise, NULL));
    say("%ld %ld\n", precise.tv_sec, precise.tv_nsec);
    FD_ZERO(&reading);
    FD_SET(b, &reading);
    SAY(select(b + 1, &reading, NULL, NULL, NULL));
    close(set);
}

// A signal that is pending and that the call's mask lets through ends the call; one that comes with events does not.
static void masks(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event;
    struct pollfd entry = {b, POLLIN, 0};
    fd_set reading;
    sigset_t blocked, none, before;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    handle(SIGUSR1, SA_RESTART);
    MUST(pthread_sigmask(SIG_BLOCK, &blocked, &before) == 0);
    add(set, b, EPOLLIN);
    for (int ready = 0; ready < 2; ready++) {
        if (ready) {
            MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
            MUST(polled(b, POLLIN, WATCHDOG_MS) == POLLIN);
        }
        for (int way = 0; way < 4; way++) {
            handled = 0;
            raise(SIGUSR1);
            FD_ZERO(&reading);
            FD_SET(b, &reading);
            struct timespec time = {20, 0};
            if (way == 0) SAY(epoll_pwait(set, &event, 1, WATCHDOG_MS, &none));
            if (way == 1) SAY(epoll_pwait2(set, &event, 1, &time, &none));
            if (way == 2) SAY(ppoll(&entry, 1, &time, &none));
            if (way == 3) SAY(pselect(b + 1, &reading, NULL, NULL, &time, &none));
            sigset_t now;
            pthread_sigmask(SIG_SETMASK, NULL, &now);
            say("%d handled %d blocked %d\n", way, handled, sigismember(&now, SIGUSR1));
            // Taken, so that the next one is new.
            struct timespec nothing = {0, 0};
            sigtimedwait(&blocked, NULL, &nothing);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(set);
}

static pthread_t victim;
static volatile int interrupted;
// Again and again, since the first may come before the call.
static void *interrupt(void *argument) {
    while (!interrupted) {
        sleep_ms(*(int *)argument);
        if (!interrupted) pthread_kill(victim, SIGUSR1);
    }
    return NULL;
}

// A handler ends a wait, SA_RESTART or not, while it looks and while it sleeps.
static void interruptions(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event;
    struct pollfd entry = {b, POLLIN, 0};
    fd_set reading;
    add(set, b, EPOLLIN);
    victim = pthread_self();
    for (int way = 0; way < 4; way++) {
        handle(SIGUSR1, way & 1 ? SA_RESTART : 0);
        int after = way & 2 ? 10 : 0;
        for (int call = 0; call < 4; call++) {
            pthread_t thread;
            struct timespec time = {20, 0};
            long result = 0;
            FD_ZERO(&reading);
            FD_SET(b, &reading);
            interrupted = 0;
            MUST(pthread_create(&thread, NULL, interrupt, &after) == 0);
            if (call == 0) result = ANSWER(epoll_wait(set, &event, 1, WATCHDOG_MS));
            if (call == 1) result = ANSWER(poll(&entry, 1, WATCHDOG_MS));
            if (call == 2) result = ANSWER(pselect(b + 1, &reading, NULL, NULL, &time, NULL));
            if (call == 3) result = ANSWER(epoll_pwait2(set, &event, 1, NULL, NULL));
            interrupted = 1;
            MUST(pthread_join(thread, NULL) == 0);
            say("%d.%d %ld\n", way, call, result);
        }
    }
    close(set);
}

// MARK: Sets that are shared

static void duplicated_set(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC), copy = dup(set);
    add(copy, b, EPOLLIN);
    MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
    say("%lx %lx\n", wait_for(set, WATCHDOG_MS), wait_for(copy, WATCHDOG_MS));
    SAY(epoll_ctl(set, EPOLL_CTL_ADD, b, &(struct epoll_event){EPOLLIN, {.u64 = 7}}));
    SAY(close(set));
    say("%lx\n", wait_for(copy, WATCHDOG_MS));
    control(copy, EPOLL_CTL_MOD, b, EPOLLOUT);
    say("%lx\n", wait_for(copy, WATCHDOG_MS));
    set = dup2(copy, set);
    SAY(epoll_ctl(set, EPOLL_CTL_DEL, b, NULL));
    say("%lx\n", wait_for(copy, 0));
    add(set, b, EPOLLIN | EPOLLET);
    say("%lx", wait_for(copy, WATCHDOG_MS));
    say(" %lx\n", wait_for(set, 0));
    SAY(close(copy));
    struct sleeper one;
    start(&one, 0, set);
    sleep_ms(5);
    MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
    say("%lx\n", finish(&one));
    close(set);
}

static void tell(int fd, long value) { MUST(write(fd, &value, sizeof value) == sizeof value); }
static long hear(int fd) {
    long value = -12345;
    struct pollfd entry = {fd, POLLIN, 0};
    MUST(poll(&entry, 1, WATCHDOG_MS) == 1 && read(fd, &value, sizeof value) == sizeof value);
    return value;
}

// A set that was inherited, used by both sides: whoever asks is told, as long as nobody has read.
static void forked(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC), to_child[2], to_parent[2];
    char byte[8];
    add(set, b, EPOLLIN);
    wait_for(set, 20);
    MUST(pipe(to_child) == 0 && pipe(to_parent) == 0);
    fflush(stdout);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        for (;;) {
            long order = hear(to_child[0]);
            if (order == 0) tell(to_parent[1], wait_for(set, WATCHDOG_MS));
            if (order == 1) tell(to_parent[1], ANSWER(recv(b, byte, 1, MSG_DONTWAIT)));
            if (order == 2) tell(to_parent[1], wait_for(set, 0));
            if (order == 3) _exit(0);
        }
    }
    for (int round = 0; round < 6; round++) {
        MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
        // The child sees it first and leaves it; the parent sees it, too; then one of them reads.
        tell(to_child[1], 0);
        say("child %lx\n", hear(to_parent[0]));
        say("parent %lx\n", wait_for(set, WATCHDOG_MS));
        tell(to_child[1], 2);
        say("child again %lx\n", hear(to_parent[0]));
        if (round & 1) {
            SAY(recv(b, byte, 1, MSG_DONTWAIT));
        } else {
            tell(to_child[1], 1);
            say("read %ld\n", hear(to_parent[0]));
        }
        tell(to_child[1], 2);
        say("nothing %lx", hear(to_parent[0]));
        say(" %lx\n", wait_for(set, 0));
        // Both sleep.
        tell(to_child[1], 0);
        struct sleeper one;
        start(&one, 0, set);
        sleep_ms(5);
        MUST(send(a, "y", 1, MSG_NOSIGNAL) == 1);
        say("both %lx", finish(&one));
        say(" %lx\n", hear(to_parent[0]));
        SAY(recv(b, byte, 1, MSG_DONTWAIT));
    }
    tell(to_child[1], 3);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(send(a, "z", 1, MSG_NOSIGNAL) == 1);
    say("alone %lx\n", wait_for(set, WATCHDOG_MS));
    SAY(recv(b, byte, 1, 0));
    say("%lx\n", wait_for(set, 0));
    for (int i = 0; i < 2; i++) close(to_child[i]), close(to_parent[i]);
    close(set);
}

// Four threads in one set. Level: all learn of a message that nobody reads. Edge and one-shot: one does.
static void threads(int a, int b) {
    static const uint32_t modes[] = {EPOLLIN, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT};
    for (int mode = 0; mode < 3; mode++)
        for (int round = 0; round < 3; round++) {
            int set = epoll_create1(EPOLL_CLOEXEC);
            add(set, b, modes[mode]);
            struct sleeper sleepers[4];
            for (int i = 0; i < 4; i++) start(&sleepers[i], mode == 0 ? 0 : 3, set);
            sleep_ms(20);
            MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
            int woken = 0;
            for (int i = 0; i < 4; i++) woken += finish(&sleepers[i]) == EPOLLIN;
            say("%d: %d woken\n", mode, woken);
            char byte;
            MUST(recv(b, &byte, 1, 0) == 1);
            close(set);
        }
}

// A thread waits while another one changes the set.
static void changes(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    char byte;
    struct sleeper one;
    MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
    MUST(polled(b, POLLIN, WATCHDOG_MS) == POLLIN);
    start(&one, 0, set);
    sleep_ms(10);
    add(set, b, EPOLLIN);
    say("added %lx\n", finish(&one));
    control(set, EPOLL_CTL_MOD, b, EPOLLPRI);
    start(&one, 0, set);
    sleep_ms(10);
    control(set, EPOLL_CTL_MOD, b, EPOLLIN | EPOLLONESHOT);
    say("modified %lx\n", finish(&one));
    start(&one, 0, set);
    sleep_ms(10);
    control(set, EPOLL_CTL_MOD, b, EPOLLIN | EPOLLET);
    say("armed again %lx\n", finish(&one));
    MUST(recv(b, &byte, 1, 0) == 1);
    start(&one, 3, set);
    sleep_ms(10);
    MUST(epoll_ctl(set, EPOLL_CTL_DEL, b, NULL) == 0);
    MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
    say("deleted %lx\n", finish(&one));
    int copy = fcntl(b, F_DUPFD_CLOEXEC, 0);
    MUST(recv(b, &byte, 1, 0) == 1);
    add(set, copy, EPOLLIN);
    start(&one, 0, set);
    sleep_ms(10);
    // The kernel reports a registration as long as the socket lives, whatever became of its number.
    MUST(close(copy) == 0);
    MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
    say("closed %lx\n", finish(&one));
    say("%lx\n", wait_for(set, WATCHDOG_MS));
    SAY(epoll_ctl(set, EPOLL_CTL_DEL, copy, NULL));
    MUST(recv(b, &byte, 1, 0) == 1);
    say("%lx\n", wait_for(set, 0));
    int end = dup(b);
    SAY(epoll_ctl(set, EPOLL_CTL_MOD, end, &(struct epoll_event){EPOLLIN | EPOLLOUT, {.u64 = 7}}));
    say("%lx\n", wait_for(set, 0));
    close(end);
    close(set);
}

// The last descriptor goes while a thread waits for it: it is woken by nothing of it, and by the next in the set.
static void closed(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC), bell = eventfd(0, EFD_CLOEXEC);
    struct sleeper one;
    add(set, b, EPOLLIN | EPOLLRDHUP);
    start(&one, 3, set);
    sleep_ms(10);
    MUST(close(b) == 0);
    say("%lx\n", finish(&one));
    add(set, bell, EPOLLIN);
    start(&one, 0, set);
    sleep_ms(10);
    MUST(eventfd_write(bell, 1) == 0);
    say("%lx\n", finish(&one));
    say("%lx %lx\n", polled(a, POLLRDHUP | POLLIN, WATCHDOG_MS), wait_for(set, 0));
    close(bell);
    close(set);
}

// MARK: Other descriptors beside sockets

static void no_starvation(int a, int b) {
    int set = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), bell = eventfd(0, EFD_CLOEXEC);
    int ends[2];
    MUST(pipe(ends) == 0);
    struct epoll_event event = {EPOLLIN, {.u64 = 7}};
    int fds[] = {b, timer, bell, ends[0]};
    for (int i = 0; i < 4; i++) {
        event.data.u64 = (uint64_t)i;
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &event) == 0);
    }
    // The socket is always ready and nobody reads it; with room for one event the others have their turns.
    MUST(send(a, "x", 1, MSG_NOSIGNAL) == 1);
    MUST(eventfd_write(bell, 1) == 0 && write(ends[1], "x", 1) == 1);
    struct itimerspec soon = {.it_value = {0, 1000}};
    MUST(timerfd_settime(timer, 0, &soon, NULL) == 0);
    for (int maximum = 1; maximum < 6; maximum++) {
        int seen = 0;
        long deadline = milliseconds() + WATCHDOG_MS;
        while (seen != 15 && milliseconds() < deadline) {
            struct epoll_event events[8];
            int count = epoll_wait(set, events, maximum, -1);
            MUST(count > 0);
            for (int i = 0; i < count; i++) seen |= 1 << events[i].data.u64;
        }
        say("%d %x\n", maximum, seen);
    }
    close(timer);
    close(bell);
    close(ends[0]);
    close(ends[1]);
    close(set);
}

// MARK: A set in another one, in poll and in select, after the move

static void say_outside(const char *when, int outer, int inner, int timeout) {
    say("%s: outer %lx", when, wait_for(outer, timeout));
    say(" poll %lx", polled(inner, POLLIN, timeout));
    say(" select %ld\n", selected(inner, 0, timeout));
}

static void nested(int a, int b) {
    int inner = epoll_create1(EPOLL_CLOEXEC), outer = epoll_create1(EPOLL_CLOEXEC);
    char bytes[8];
    add(inner, b, EPOLLIN);
    wait_for(inner, 5);
    add(outer, inner, EPOLLIN);
    say_outside("added", outer, inner, 0);
    for (int round = 0; round < 6; round++) {
        struct sleeper one;
        start(&one, round % 2 ? 4 : 0, round % 2 ? inner : outer);
        sleep_ms(round * 3);
        MUST(send(a, "ab", 2, MSG_NOSIGNAL) == 2);
        say("%d woken %lx\n", round, finish(&one));
        say_outside("ready", outer, inner, WATCHDOG_MS);
        if (round < 4) say("inner %lx\n", wait_for(inner, WATCHDOG_MS));
        MUST(recv(b, bytes, 1, 0) == 1);
        say_outside("a byte left", outer, inner, WATCHDOG_MS);
        if (round & 1) say("inner %lx\n", wait_for(inner, WATCHDOG_MS));
        MUST(recv(b, bytes, 1, 0) == 1);
        say_outside("empty", outer, inner, 0);
        say("inner %lx\n", wait_for(inner, 0));
        say_outside("empty", outer, inner, 0);
    }
    // A descriptor beside the socket, and the socket leaves.
    int bell = eventfd(0, EFD_CLOEXEC);
    add(inner, bell, EPOLLIN);
    MUST(eventfd_write(bell, 1) == 0);
    say_outside("bell", outer, inner, WATCHDOG_MS);
    say("inner %lx\n", wait_for(inner, WATCHDOG_MS));
    say_outside("bell", outer, inner, WATCHDOG_MS);
    eventfd_t value;
    MUST(eventfd_read(bell, &value) == 0);
    say_outside("bell silent", outer, inner, 0);
    control(inner, EPOLL_CTL_MOD, b, EPOLLIN | EPOLLOUT);
    say_outside("room", outer, inner, WATCHDOG_MS);
    control(inner, EPOLL_CTL_MOD, b, EPOLLIN);
    say_outside("no interest in room", outer, inner, 0);
    MUST(send(a, "ab", 2, MSG_NOSIGNAL) == 2);
    say_outside("ready", outer, inner, WATCHDOG_MS);
    MUST(epoll_ctl(inner, EPOLL_CTL_DEL, b, NULL) == 0);
    say_outside("deleted", outer, inner, 0);
    add(inner, b, EPOLLIN);
    say_outside("added", outer, inner, WATCHDOG_MS);
    close(bell);
    close(outer);
    close(inner);
}

static const struct script {
    const char *name;
    void (*play)(int a, int b);
} scripts[] = {
    {"room_level", room_level}, {"room_edge", room_edge}, {"room_wakes", room_wakes}, {"urgent", urgent}, {"times", times},
    {"masks", masks}, {"interruptions", interruptions}, {"duplicated_set", duplicated_set}, {"forked", forked},
    {"threads", threads}, {"changes", changes}, {"closed", closed}, {"no_starvation", no_starvation}, {"nested", nested},
};

int main(int count, char **arguments) {
    if (count < 3) return 2;
    int plain = count > 3 && strcmp(arguments[3], "plain") == 0, differences = 0;
    signal(SIGPIPE, SIG_IGN);
    for (int world = 0; world < 2; world++) listen_on(world, atoi(arguments[1 + world]));
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        if (count > 4 && strcmp(scripts[i].name, arguments[4]) != 0) continue;
        char *texts[2];
        size_t lengths[2];
        running = scripts[i].name;
        for (int world = 0; world < 2; world++) {
            int a, b;
            out = open_memstream(&texts[world], &lengths[world]);
            connect_ends(world, &a, &b);
            warm_up(a, b, world == 1 && !plain);
            scripts[i].play(a, b);
            close(a);
            close(b);
            fclose(out);
        }
        if (getenv("SHOW")) printf("%s\n", texts[0]);
        if (strcmp(texts[0], texts[1]) == 0) continue;
        differences++;
        printf("%s DIFFERS\n", running);
        char *lines[2] = {texts[0], texts[1]};
        while (*lines[0] || *lines[1]) {
            size_t first = strcspn(lines[0], "\n"), second = strcspn(lines[1], "\n");
            if (first != second || strncmp(lines[0], lines[1], first) != 0)
                printf("    TCP: %.*s\n    companion: %.*s\n", (int)first, lines[0], (int)second, lines[1]);
            for (int world = 0; world < 2; world++) lines[world] += strcspn(lines[world], "\n") + (lines[world][strcspn(lines[world], "\n")] != 0);
        }
    }
    printf("%zu scripts, %d differ, %ld connections moved\n", sizeof scripts / sizeof *scripts, differences, moved_connections);
    return differences != 0;
}
