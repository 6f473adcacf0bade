// Does the same readiness operations to two worlds of TCP connections, one whose connections a policy keeps on TCP and
// one whose connections have moved to companions, and compares every answer: results, errno, events, data words.
//
//     readiness SEED SECONDS KEPT_PORT MOVED_PORT [plain]
//
// KEPT_PORT must be kept on TCP by the policy. `plain`: nothing is switched; validates this program against two TCP worlds.
//
// What the kernel guarantees is compared exactly. It may report an edge-triggered registration again although nothing has
// happened to it (an acknowledgement of a FIN, say); such an event is accepted from either world if it tells the truth.
#include "twins.h"

enum { PAIRS = 3, ENDS = 2 * PAIRS, COPIES = 3, SETS = 2, LIMIT = 8192, BELL = ENDS * COPIES, TARGETS };
static const uint32_t MODES = EPOLLET | EPOLLONESHOT | EPOLLWAKEUP | EPOLLEXCLUSIVE;

// MARK: The two worlds. Descriptor numbers are fixed, so that a number that is used again is used again in both.

static int base;

static int descriptor(int world, int end, int copy) { return base + world * 100 + end * COPIES + copy; }
static int bell(int world) { return base + world * 100 + BELL; }
static int set_of(int world, int set) { return base + world * 100 + 50 + set; }
static int outer(int world) { return base + world * 100 + 60; }
static int target_descriptor(int world, int target) { return base + world * 100 + target; }

// MARK: What both worlds have in common

static struct registration {
    int on;
    uint32_t events;
    int fired;           // one-shot and reported
    int input, all;      // what has happened since it was last reported: bytes; anything that wakes every waiter
} registrations[SETS][TARGETS];
static int open_copies[ENDS][COPIES];
static int unread[ENDS];
static int writing_ended[ENDS], reading_ended[ENDS], closed[ENDS], gone[ENDS];
static int bell_rung;
static int nesting;  // set 0 is in another one

static uint64_t seed, state;
static char trail[1 << 20];
static size_t trail_length;
static long steps, rounds, tolerated[2], tolerated_outside;

static uint64_t next(void) {
    state += 0x9E3779B97F4A7C15;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}
static int below(int n) { return (int)(next() % (uint64_t)n); }
static int chance(int percent) { return below(100) < percent; }

static void note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(trail + trail_length, sizeof trail - trail_length, format, arguments);
    va_end(arguments);
    if (length > 0 && trail_length + (size_t)length < sizeof trail) trail_length += (size_t)length;
}

static void fail(const char *format, ...) {
    printf("DIFFERENCE (seed %lu, step %ld): ", seed + (uint64_t)rounds, steps);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n%s\n", trail);
    fflush(stdout);
    exit(1);
}

static void same(const char *what, long first, long second) {
    if (first != second) fail("%s: %ld on TCP, %ld on the companion", what, first, second);
}

// MARK: Connections

static void place(int fd, int number) {
    MUST(dup2(fd, number) == number);
    MUST(close(fd) == 0);
}

static void connect_pair(int world, int pair) {
    int client, server;
    connect_ends(world, &client, &server);
    place(client, descriptor(world, 2 * pair, 0));
    place(server, descriptor(world, 2 * pair + 1, 0));
}

// MARK: Until both worlds have seen everything

static int any_copy(int world, int end) {
    for (int copy = 0; copy < COPIES; copy++)
        if (open_copies[end][copy]) return descriptor(world, end, copy);
    return -1;
}

static void settle(void) {
    long deadline = milliseconds() + WATCHDOG_MS;
    for (int world = 0; world < 2; world++)
        for (int end = 0; end < ENDS; end++) {
            int fd = any_copy(world, end);
            if (fd < 0) continue;
            while (1) {
                int count = -1;
                ioctl(fd, FIONREAD, &count);
                int ended = writing_ended[end ^ 1] || closed[end ^ 1];
                int seen = kernel_poll(fd, POLLRDHUP);
                if ((count == unread[end] || gone[end]) && (!ended || seen) && (!gone[end] || seen & POLLHUP)) break;
                if (milliseconds() > deadline)
                    fail("%s end %d: %d bytes instead of %d, kernel says %x", names[world], end, count, unread[end], seen);
                sched_yield();
            }
        }
}

// MARK: Events

struct found {
    uint32_t events[TARGETS];
};

static long wait_once(int world, int set, int way, int timeout, struct epoll_event *events, int maximum) {
    struct timespec time = {timeout / 1000, timeout % 1000 * 1000000L};
    sigset_t mask;
    sigemptyset(&mask);
    switch (way) {
    case 0: return ANSWER(epoll_wait(set_of(world, set), events, maximum, timeout));
    case 1: return ANSWER(epoll_pwait(set_of(world, set), events, maximum, timeout, &mask));
    default: return ANSWER(epoll_pwait2(set_of(world, set), events, maximum, timeout < 0 ? NULL : &time, NULL));
    }
}

// Adds to `found` what one wait reports.
static long collect(int world, int set, int way, int timeout, int maximum, struct found *found) {
    struct epoll_event events[TARGETS + 1];
    memset(events, 0x55, sizeof events);
    long count = wait_once(world, set, way, timeout, events, maximum);
    if (count < 0) fail("%s: epoll_wait: %s", names[world], strerror((int)-count));
    if (count > maximum) fail("%s: epoll_wait: %ld events, %d asked for", names[world], count, maximum);
    for (long i = 0; i < count; i++) {
        uint64_t target = events[i].data.u64 ^ 0x5EED0000u;
        if (target >= TARGETS) fail("%s: epoll_wait: data %lx", names[world], events[i].data.u64);
        for (long k = 0; k < i; k++)
            if (events[k].data.u64 == events[i].data.u64) fail("%s: target %lu twice in one answer", names[world], target);
        found->events[target] |= events[i].events;
    }
    return count;
}

static uint32_t level(int world, int target, uint32_t interest) {
    uint32_t wanted = interest & ~MODES;
    int fd = target == BELL ? bell(world) : any_copy(world, target / COPIES);
    if (fd < 0) return 0;
    struct pollfd entry = {fd, (short)wanted, 0};
    MUST(poll(&entry, 1, 0) >= 0);
    return (uint16_t)entry.revents;
}

static void compare(int set, struct found found[2]) {
    for (int target = 0; target < TARGETS; target++) {
        struct registration *one = &registrations[set][target];
        uint32_t kernel = found[0].events[target], ours = found[1].events[target];
        if (kernel || ours) note(" %d:%x", target, kernel | ours);
        int due = one->all || (one->input && one->events & (EPOLLIN | EPOLLRDNORM | EPOLLRDBAND | EPOLLPRI));
        if (kernel != ours) {
            int truths = 1;
            for (int world = 0; world < 2; world++) {
                uint32_t said = found[world].events[target];
                if (said && said != level(world, target, one->events)) truths = 0;
            }
            if (!(one->events & EPOLLET) || due || !truths || (kernel && ours) || !one->on || one->fired)
                fail("set %d target %d (events %x%s%s): %x on TCP, %x on the companion", set, target, one->events,
                     one->on ? "" : ", off", one->fired ? ", fired" : "", kernel, ours);
            tolerated[ours != 0]++;
        }
        if (kernel || ours) {
            one->input = one->all = 0;
            if (one->events & EPOLLONESHOT) {
                // A tolerated event of one world must not disable it there alone.
                one->fired = kernel == ours;
                one->all = kernel != ours;
                for (int world = 0; world < 2 && !one->fired; world++) {
                    struct epoll_event event = {one->events, {.u64 = target ^ 0x5EED0000u}};
                    epoll_ctl(set_of(world, set), EPOLL_CTL_MOD, target_descriptor(world, target), &event);
                }
            }
        }
    }
}

// Something has happened to an end: bytes, or what wakes everybody.
static void touch(int end, int all) {
    for (int set = 0; set < SETS; set++)
        for (int copy = 0; copy < COPIES; copy++) {
            registrations[set][end * COPIES + copy].input |= !all;
            registrations[set][end * COPIES + copy].all |= all;
        }
}

// MARK: Operations

static void do_send(int end, int copy) {
    static char bytes[4096];
    int count = 1 + below(600);
    note(" send%d.%d(%d)", end, copy, count);
    long answers[2];
    for (int world = 0; world < 2; world++)
        answers[world] = ANSWER(send(descriptor(world, end, copy), bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT));
    same("send", answers[0], answers[1]);
    note("=%ld", answers[0]);
    if (answers[0] <= 0) return;
    if (closed[end ^ 1]) {
        gone[end] = 1;  // the answer is a reset
        touch(end, 1);
    } else {
        unread[end ^ 1] += (int)answers[0];
        touch(end ^ 1, 0);
    }
}

static void do_receive(int end, int copy, int flags) {
    static char bytes[4096];
    int count = chance(5) ? 4096 : 1 + below(700);
    note(" receive%d.%d(%d,%x)", end, copy, count, flags);
    long answers[2];
    for (int world = 0; world < 2; world++)
        answers[world] = ANSWER(recv(descriptor(world, end, copy), bytes, count, MSG_DONTWAIT | flags));
    same("recv", answers[0], answers[1]);
    note("=%ld", answers[0]);
    if (answers[0] > 0 && !(flags & MSG_PEEK)) unread[end] -= (int)answers[0];
}

static uint32_t random_interest(void) {
    static const uint32_t wanted[] = {
        EPOLLIN, EPOLLIN, EPOLLIN | EPOLLOUT, EPOLLOUT, EPOLLIN | EPOLLRDHUP, EPOLLRDHUP, EPOLLRDNORM | EPOLLWRNORM, 0,
        EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI, EPOLLPRI, EPOLLWRBAND | EPOLLRDBAND, EPOLLERR | EPOLLHUP};
    static const uint32_t modes[] = {0, 0, 0, EPOLLET, EPOLLET, EPOLLONESHOT, EPOLLET | EPOLLONESHOT, EPOLLWAKEUP};
    uint32_t events = wanted[below(sizeof wanted / sizeof *wanted)] | modes[below(sizeof modes / sizeof *modes)];
    return chance(4) ? events | EPOLLEXCLUSIVE : events;
}

static void do_control(int set, int target) {
    struct registration *one = &registrations[set][target];
    static const int often[] = {EPOLL_CTL_MOD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CTL_ADD};
    int operation = one->on ? often[below(4)] : chance(90) ? EPOLL_CTL_ADD : 1 + below(3);
    if (chance(1)) operation = 77;
    struct epoll_event event = {random_interest(), {.u64 = (uint64_t)target ^ 0x5EED0000u}};
    note(" control%d(%d,%d,%x)", set, operation, target, event.events);
    long answers[2];
    for (int world = 0; world < 2; world++)
        answers[world] = ANSWER(epoll_ctl(set_of(world, set), operation, target_descriptor(world, target), &event));
    same("epoll_ctl", answers[0], answers[1]);
    note("=%ld", answers[0]);
    if (answers[0] < 0) return;
    if (operation == EPOLL_CTL_DEL)
        memset(one, 0, sizeof *one);
    else
        *one = (struct registration){.on = 1, .events = event.events, .all = 1};
}

static void *send_later(void *argument) {
    int *what = argument;
    struct timespec little = {0, 300000};
    nanosleep(&little, NULL);
    if (send(what[0], "later", 5, MSG_NOSIGNAL | MSG_DONTWAIT) != 5) what[0] = -1;
    return NULL;
}

static void do_wait(int set) {
    struct found found[2];
    memset(found, 0, sizeof found);
    int way = below(3), kind = below(10);
    int end = below(ENDS);
    int sendable = any_copy(0, end) >= 0 && !writing_ended[end] && !reading_ended[end ^ 1] && !closed[end ^ 1]
        && unread[end ^ 1] < 4000 && !gone[end] && !gone[end ^ 1];
    if (kind == 0 && sendable) {
        // Another thread sends while this one sleeps. It must wake up if anybody here waits for that.
        int due = 0;
        for (int copy = 0; copy < COPIES; copy++) {
            struct registration *one = &registrations[set][(end ^ 1) * COPIES + copy];
            due |= one->on && !one->fired && one->events & (EPOLLIN | EPOLLRDNORM);
        }
        note(" wait%d(later %d)", set, end);
        for (int world = 0; world < 2; world++) {
            int what[1] = {any_copy(world, end)};
            pthread_t thread;
            MUST(pthread_create(&thread, NULL, send_later, what) == 0);
            long count = collect(world, set, way, due ? WATCHDOG_MS : 2, TARGETS, &found[world]);
            if (due && count == 0) fail("%s: not woken by a message", names[world]);
            MUST(pthread_join(thread, NULL) == 0 && what[0] >= 0);
        }
        unread[end ^ 1] += 5;
        touch(end ^ 1, 0);
        settle();
        for (int world = 0; world < 2; world++) collect(world, set, way, 0, TARGETS, &found[world]);
    } else if (kind == 1) {
        // Little room: after enough waits everything has been reported.
        int maximum = 1 + below(3), waits = 4 * TARGETS;
        note(" wait%d(%d a time)", set, maximum);
        for (int world = 0; world < 2; world++)
            for (int i = 0; i < waits; i++)
                if (collect(world, set, way, 0, maximum, &found[world]) == 0) break;
    } else {
        int timeout = kind == 2 ? 1 : 0;
        note(" wait%d(%d)", set, timeout);
        for (int world = 0; world < 2; world++) collect(world, set, way, timeout, TARGETS, &found[world]);
        // A wait that may sleep reports what is ready; what has become ready in the last 20 µs it may leave to the next.
        for (int world = 0; world < 2 && timeout; world++) collect(world, set, way, 0, TARGETS, &found[world]);
    }
    compare(set, found);
}

static void do_poll(void) {
    static const short wanted[] = {POLLIN, POLLOUT, POLLIN | POLLOUT, POLLRDHUP, POLLPRI, 0, POLLIN | POLLRDHUP | POLLRDNORM | POLLWRNORM, POLLHUP, -1};
    struct pollfd lists[2][12];
    int count = below(12);
    note(" poll(");
    for (int i = 0; i < count; i++) {
        int target = chance(10) ? -1 : below(TARGETS);
        short events = wanted[below(sizeof wanted / sizeof *wanted)];
        note(" %d:%x", target, (uint16_t)events);
        for (int world = 0; world < 2; world++)
            lists[world][i] = (struct pollfd){target < 0 ? target : target_descriptor(world, target), events, 0x5555};
    }
    int precise = chance(50), timeout = chance(80) ? 0 : 1;
    long answers[2];
    for (int world = 0; world < 2; world++)
        answers[world] = precise ? ANSWER(ppoll(lists[world], count, &(struct timespec){0, timeout * 1000000L}, NULL))
                                 : ANSWER(poll(lists[world], count, timeout));
    note(")=%ld", answers[0]);
    same("poll", answers[0], answers[1]);
    for (int i = 0; i < count; i++) same("revents", lists[0][i].revents, lists[1][i].revents);
}

static void do_select(void) {
    static uint64_t sets[2][3][LIMIT / 64];
    memset(sets, 0, sizeof sets);
    int used[TARGETS][3] = {0};
    int highest = 0, count = below(8);
    note(" select(");
    for (int i = 0; i < count; i++) {
        int target = below(TARGETS), kind = below(3);
        // A closed descriptor is an error; now and then.
        if (target != BELL && !open_copies[target / COPIES][target % COPIES] && !chance(5)) continue;
        note(" %d:%c", target, "rwx"[kind]);
        used[target][kind] = 1;
        if (target > highest) highest = target;
        for (int world = 0; world < 2; world++) {
            int fd = target_descriptor(world, target);
            sets[world][kind][fd / 64] |= 1ull << fd % 64;
        }
    }
    int precise = chance(50), nothing = chance(10);
    long answers[2];
    for (int world = 0; world < 2; world++) {
        fd_set *three[3];
        for (int kind = 0; kind < 3; kind++) three[kind] = nothing && kind == 2 ? NULL : (fd_set *)sets[world][kind];
        struct timeval time = {0, 0};
        struct timespec times = {0, 0};
        int number = target_descriptor(world, highest) + 1;
        answers[world] = precise ? ANSWER(pselect(number, three[0], three[1], three[2], &times, NULL))
                                 : ANSWER(select(number, three[0], three[1], three[2], &time));
        if (time.tv_sec || time.tv_usec) fail("%s: select's time-out", names[world]);
    }
    note(")=%ld", answers[0]);
    same("select", answers[0], answers[1]);
    for (int target = 0; target < TARGETS; target++)
        for (int kind = 0; kind < 3; kind++)
            if (used[target][kind]) {
                int bits[2];
                for (int world = 0; world < 2; world++) {
                    int fd = target_descriptor(world, target);
                    bits[world] = (int)(sets[world][kind][fd / 64] >> fd % 64 & 1);
                }
                same("select's bit", bits[0], bits[1]);
            }
}

static void do_duplicate(int end, int copy) {
    int other = -1;
    for (int i = 0; i < COPIES; i++)
        if (open_copies[end][i] && i != copy) other = i;
    if (other < 0) return;
    note(" duplicate%d.%d", end, copy);
    for (int world = 0; world < 2; world++) {
        int from = descriptor(world, end, other), to = descriptor(world, end, copy);
        MUST((below(2) ? dup2(from, to) : dup3(from, to, O_CLOEXEC)) == to);
    }
    open_copies[end][copy] = 1;
}

static void do_close(int end, int copy, int last) {
    int count = 0;
    for (int i = 0; i < COPIES; i++) count += open_copies[end][i];
    if (count == 0 || (count == 1 && open_copies[end][copy] && !last)) return;
    note(" close%d.%d", end, copy);
    long answers[2];
    for (int world = 0; world < 2; world++) answers[world] = ANSWER(close(descriptor(world, end, copy)));
    same("close", answers[0], answers[1]);
    if (answers[0] < 0 || --count > 0) {
        open_copies[end][copy] = 0;
        return;
    }
    open_copies[end][copy] = 0;
    closed[end] = 1;
    if (unread[end] > 0) gone[end ^ 1] = 1;
    unread[end] = 0;
    touch(end ^ 1, 1);
    for (int set = 0; set < SETS; set++) memset(&registrations[set][end * COPIES], 0, COPIES * sizeof(struct registration));
}

static void do_shutdown(int end, int copy) {
    int how = chance(80) ? SHUT_WR : below(3);
    note(" shutdown%d.%d(%d)", end, copy, how);
    long answers[2];
    for (int world = 0; world < 2; world++) answers[world] = ANSWER(shutdown(descriptor(world, end, copy), how));
    same("shutdown", answers[0], answers[1]);
    note("=%ld", answers[0]);
    if (answers[0] < 0) return;
    if (how != SHUT_RD) {
        if (!writing_ended[end]) touch(end ^ 1, 1);  // a second time the peer hears nothing
        writing_ended[end] = 1;
    }
    if (how != SHUT_WR) reading_ended[end] = 1;
    touch(end, 1);
}

static void do_bell(void) {
    note(" bell%d", bell_rung);
    uint64_t value = 1;
    for (int world = 0; world < 2; world++)
        MUST((bell_rung ? read(bell(world), &value, 8) : write(bell(world), &value, 8)) == 8);
    bell_rung = !bell_rung;
    for (int set = 0; set < SETS; set++) {
        registrations[set][BELL].input = bell_rung;
        if (!bell_rung) registrations[set][BELL].all |= 1;  // room to write is news, too
    }
}

// A registration of set 0 whose descriptor is closed, while another one keeps the socket open: nobody can change it any more.
static int has_orphan(void) {
    for (int target = 0; target < BELL; target++) {
        int end = target / COPIES;
        if (registrations[0][target].on && !open_copies[end][target % COPIES] && !closed[end]) return 1;
    }
    return 0;
}

static void ask_from_outside(int world, long answers[3]) {
    struct epoll_event event;
    struct pollfd entry = {set_of(world, 0), POLLIN, 0};
    static uint64_t bits[LIMIT / 64];
    memset(bits, 0, sizeof bits);
    bits[set_of(world, 0) / 64] |= 1ull << set_of(world, 0) % 64;
    answers[0] = ANSWER(epoll_wait(outer(world), &event, 1, 0));
    answers[1] = ANSWER(poll(&entry, 1, 0));
    answers[2] = ANSWER(select(set_of(world, 0) + 1, (fd_set *)bits, NULL, NULL, &(struct timeval){0, 0}));
}

// Set 0 from outside: another set that holds it, poll and select must find it ready when a wait would.
static void look_from_outside(void) {
    for (int target = 0; target < TARGETS; target++)
        if (registrations[0][target].on && registrations[0][target].events & EPOLLET) return;  // its edges may differ
    long answers[2][3];
    for (int world = 0; world < 2; world++) ask_from_outside(world, answers[world]);
    note(" outside%ld", answers[0][0]);
    if (answers[0][0] == 0 && answers[1][0] == 1 && has_orphan()) {
        // The end of a stream makes it ready by an orphan until a wait in it has looked: once, and the wait finds nothing.
        struct found found[2];
        memset(found, 0, sizeof found);
        for (int world = 0; world < 2; world++) collect(world, 0, 0, 0, TARGETS, &found[world]);
        compare(0, found);
        tolerated_outside++;
        for (int world = 0; world < 2; world++) ask_from_outside(world, answers[world]);
    }
    same("the outer set", answers[0][0], answers[1][0]);
    same("poll on a set", answers[0][1], answers[1][1]);
    same("select on a set", answers[0][2], answers[1][2]);
}

static void put_inside(void) {
    for (int world = 0; world < 2; world++)
        MUST(epoll_ctl(outer(world), EPOLL_CTL_ADD, set_of(world, 0), &(struct epoll_event){EPOLLIN, {.u64 = 1}}) == 0);
    note(" nested");
}

static void step(void) {
    int end = below(ENDS), copy = below(COPIES), set = below(SETS);
    if (!open_copies[end][copy] && chance(80)) {
        int fd = any_copy(0, end);
        if (fd >= 0) copy = fd - descriptor(0, end, 0);
    }
    switch (below(20)) {
    case 0 ... 3:
        if (unread[end ^ 1] < 4000 && !reading_ended[end ^ 1] && !gone[end ^ 1]) do_send(end, copy);
        break;
    case 4 ... 6: do_receive(end, copy, chance(20) ? MSG_PEEK : 0); break;
    case 7 ... 10: do_control(set, chance(5) ? BELL : end * COPIES + copy); break;
    case 11: do_poll(); break;
    case 12: do_select(); break;
    case 13: do_duplicate(end, below(COPIES)); break;
    case 14:
        if (chance(50)) do_close(end, copy, 0);
        break;
    case 15:
        if (chance(6)) do_shutdown(end, copy);
        break;
    case 16:
        if (chance(2)) do_close(end, copy, 1);
        break;
    case 17: do_bell(); break;
    default: break;
    }
    settle();
    if (nesting && chance(50)) look_from_outside();
    do_wait(below(SETS));
    if (nesting && chance(50)) look_from_outside();
    steps++;
}

static void begin_round(int plain) {
    static const int bases[] = {60, 940, 3000};
    base = bases[below(3)];
    memset(registrations, 0, sizeof registrations);
    memset(open_copies, 0, sizeof open_copies);
    memset(unread, 0, sizeof unread);
    memset(writing_ended, 0, sizeof writing_ended);
    memset(reading_ended, 0, sizeof reading_ended);
    memset(closed, 0, sizeof closed);
    memset(gone, 0, sizeof gone);
    bell_rung = 0;
    trail_length = 0;
    note("base %d:", base);
    for (int world = 0; world < 2; world++) {
        place(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), bell(world));
        place(epoll_create1(EPOLL_CLOEXEC), outer(world));
        for (int set = 0; set < SETS; set++) place(epoll_create1(EPOLL_CLOEXEC), set_of(world, set));
        for (int pair = 0; pair < PAIRS; pair++) connect_pair(world, pair);
    }
    for (int end = 0; end < ENDS; end++) open_copies[end][0] = 1;
    nesting = chance(30);
    int nests_late = chance(50);
    if (nesting && !nests_late) put_inside();
    // Registrations made on TCP move with their sockets; a moved socket in a set is no special case either.
    for (int pair = 0; pair < PAIRS; pair++) {
        if (chance(50))
            for (int i = 0; i < 4; i++) do_control(below(SETS), (2 * pair + below(2)) * COPIES);
        if (chance(30)) {
            settle();
            do_wait(below(SETS));
        }
        for (int world = 0; world < 2; world++)
            warm_up(descriptor(world, 2 * pair, 0), descriptor(world, 2 * pair + 1, 0), world == 1 && !plain);
        settle();
        for (int side = 0; side < 2; side++) {
            int end = 2 * pair + side;
            // A receive need not reach over a carrier change.
            for (int world = 0; world < 2; world++) {
                char bytes[64];
                for (int left = unread[end]; left > 0;) {
                    long taken = ANSWER(recv(descriptor(world, end, 0), bytes, sizeof bytes, MSG_DONTWAIT));
                    if (taken <= 0 || taken > left) fail("%s: %ld of %d bytes", names[world], taken, left);
                    left -= (int)taken;
                }
            }
            unread[end] = 0;
            touch(end, 0);
        }
    }
    // What the warm-up has left behind in edges is no concern of the comparison.
    for (int set = 0; set < SETS; set++) {
        struct found found[2];
        memset(found, 0, sizeof found);
        for (int world = 0; world < 2; world++) collect(world, set, 0, 0, TARGETS, &found[world]);
        compare(set, found);
    }
    if (nesting && nests_late) put_inside();
    note(" |");
}

static void end_round(void) {
    for (int world = 0; world < 2; world++) {
        for (int end = 0; end < ENDS; end++)
            for (int copy = 0; copy < COPIES; copy++)
                if (open_copies[end][copy]) MUST(close(descriptor(world, end, copy)) == 0);
        for (int set = 0; set < SETS; set++) MUST(close(set_of(world, set)) == 0);
        MUST(close(bell(world)) == 0 && close(outer(world)) == 0);
    }
}

int main(int count, char **arguments) {
    if (count < 5) return 2;
    seed = strtoull(arguments[1], NULL, 10);
    double seconds = atof(arguments[2]);
    int plain = count > 5;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max < LIMIT) {
        printf("the hard limit of descriptors is too low\n");
        return 1;
    }
    limit.rlim_cur = LIMIT;
    setrlimit(RLIMIT_NOFILE, &limit);
    printf("seed %lu\n", seed);
    for (int world = 0; world < 2; world++) listen_on(world, atoi(arguments[3 + world]));
    long deadline = milliseconds() + (long)(seconds * 1000);
    do {
        // Each round has a seed of its own, so that one that failed can be run first.
        state = seed + (uint64_t)rounds;
        begin_round(plain);
        for (int i = 0; i < 120; i++) step();
        end_round();
        rounds++;
    } while (milliseconds() < deadline);
    printf("%ld rounds, %ld steps, %ld connections moved; %ld edges of TCP and %ld of companions that nothing had caused, "
           "%ld sets ready by an orphan\n",
           rounds, steps, moved_connections, tolerated[0], tolerated[1], tolerated_outside);
    return 0;
}
