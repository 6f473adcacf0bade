// The two worlds, the processes that act in them, and how a plan is gone through.
#include "fuzz.h"
#include <dlfcn.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <sys/wait.h>

struct calls calls[WORLDS];
struct shared *shared;
struct options options;

enum { LISTEN, ACCEPT, CONNECT, STEP, VIEW, DRAIN, BRANCH, WRITABLE, BYE };
struct command {
    int kind, world, end, index, newActor;
    struct step step;
};

static int control[MAXIMUM_ACTORS][2];
static int listener[WORLDS] = {-1, -1};
static struct sockaddr_storage address[WORLDS];
static socklen_t addressLength;

__attribute__((constructor)) static void find_calls(void) {
    void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
#define FIND(result, name, parameters)                                                                                \
    calls[SWITCHED].name = name;                                                                                      \
    calls[NATIVE].name = (result(*) parameters)dlsym(libc, #name);
    CALLS(FIND)
#undef FIND
}

uint64_t now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

static void fail(const char *what) {
    snprintf(shared->verdict, sizeof shared->verdict, "%s: %s", what, strerror(errno));
    shared->isError = true;
    _exit(1);
}

// MARK: The service, asked in its own protocol (Sources/Rendezvous/Messages.swift)

static int serviceSocket = -1;
void ask_service(const char *command) {
    struct { uint32_t magic, kind; char zero[64], text[56]; } packet = {0x53535703, 8, {0}, {0}};
    if (serviceSocket < 0) {
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        snprintf(name.sun_path, sizeof name.sun_path, "%s", options.service);
        serviceSocket = calls[NATIVE].socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (calls[NATIVE].connect(serviceSocket, (struct sockaddr *)&name, sizeof name) < 0) fail("connecting to the service");
    }
    snprintf(packet.text, sizeof packet.text, "%s", command);
    char answer[1 << 16];
    if (calls[NATIVE].send(serviceSocket, &packet, sizeof packet, MSG_NOSIGNAL) != sizeof packet) fail("asking the service");
    for (;;) {
        ssize_t count = calls[NATIVE].recv(serviceSocket, answer, sizeof answer, 0);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) fail("the service's answer");
        if (count == sizeof packet && memcmp(answer, &packet.magic, 4) == 0 && answer[4] == 9) return;
    }
}

// MARK: Actors

static void set_up_listener(int world) {
    struct sockaddr_in six4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool v6 = shared->plan.inet6;
    struct sockaddr *name = v6 ? (struct sockaddr *)&six : (struct sockaddr *)&six4;
    int fd = listener[world] = calls[world].socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || calls[world].bind(fd, name, v6 ? sizeof six : sizeof six4) < 0 || calls[world].listen(fd, 4) < 0) fail("listening");
}

static void act(const struct command *command, int actor) {
    int world = command->world, one = 1;
    struct end *ends = shared->ends[world];
    switch (command->kind) {
    case ACCEPT: {
        int fd = calls[world].accept(listener[world], NULL, NULL);
        if (fd < 0) fail("accepting");
        calls[world].close(listener[world]);
        ends[ACCEPTOR].descriptor[actor][0] = fd;
        if (shared->plan.noDelay) calls[world].setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        break;
    }
    case CONNECT: {
        int fd = calls[world].socket(shared->plan.inet6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
        if (calls[world].connect(fd, (struct sockaddr *)&address[world], addressLength) < 0) fail("connecting");
        ends[CONNECTOR].descriptor[actor][0] = fd;
        if (shared->plan.noDelay) calls[world].setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        break;
    }
    case STEP: perform(&command->step, world, actor, &shared->outcome[world]); break;
    case VIEW: take_view(world, command->end, actor, &shared->view); break;
    case DRAIN: shared->outcome[world].value = drain(world, command->end, actor); break;
    case WRITABLE: {
        struct pollfd entry = {ends[command->end].descriptor[actor][0], POLLOUT, 0};
        for (int i = 1; entry.fd < 0 && i < MAXIMUM_ALIASES; i++) entry.fd = ends[command->end].descriptor[actor][i];
        shared->outcome[world].value = calls[world].poll(&entry, 1, command->index);
        describe_room(entry.fd, shared->room[world], sizeof shared->room[world]);
        // Bytes wait in the kernel's buffers, and it is they that are full.
        int held = 0;
        shared->isKernelFull[world] = calls[NATIVE].poll(&entry, 1, 0) == 0 && calls[NATIVE].ioctl(entry.fd, TIOCOUTQ, &held) == 0 && held > 0;
        break;
    }
    default: break;
    }
}

static void actor_loop(int actor);

static void branch(const struct command *command, int actor) {
    int new = command->newActor;
    for (int w = 0; w < WORLDS; w++)
        for (int e = 0; e < ENDS; e++)
            memcpy(shared->ends[w][e].descriptor[new], shared->ends[w][e].descriptor[actor], sizeof shared->ends[w][e].descriptor[new]);
    pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid == 0) actor_loop(new);
    shared->pid[new] = pid;
    shared->alive[new] = true;
}

static void exactly(int fd, void *bytes, size_t count, bool isWrite) {
    while (count > 0) {
        ssize_t moved = isWrite ? calls[NATIVE].write(fd, bytes, count) : calls[NATIVE].read(fd, bytes, count);
        if (moved < 0 && errno == EINTR) continue;
        if (moved <= 0) _exit(3);
        bytes = (char *)bytes + moved;
        count -= (size_t)moved;
    }
}

static void actor_loop(int actor) {
    for (;;) {
        struct command command;
        exactly(control[actor][1], &command, sizeof command, false);
        if (command.kind == BYE) exit(0);
        if (command.kind == BRANCH) branch(&command, actor);
        else act(&command, actor);
        char done = 1;
        exactly(control[actor][1], &done, 1, true);
    }
}

static void tell(int actor, const struct command *command) {
    shared->lastSign = now_us();
    if (actor == 0) {
        if (command->kind == BRANCH) branch(command, 0);
        else act(command, 0);
        return;
    }
    char done;
    exactly(control[actor][0], (void *)command, sizeof *command, true);
    exactly(control[actor][0], &done, 1, false);
}

static bool holds(int world, int end, int actor) {
    for (int i = 0; i < MAXIMUM_ALIASES; i++)
        if (shared->alive[actor] && shared->ends[world][end].descriptor[actor][i] >= 0) return true;
    return false;
}
int holder(int world, int end, int hint) {
    int found[MAXIMUM_ACTORS], count = 0;
    for (int i = 0; i < MAXIMUM_ACTORS; i++)
        if (holds(world, end, i)) found[count++] = i;
    return count ? found[hint % count] : -1;
}

// MARK: Settling

static bool see(struct view views[WORLDS][ENDS]) {
    bool isSettled = true;
    for (int w = 0; w < WORLDS; w++)
        for (int e = 0; e < ENDS; e++) {
            int actor = holder(w, e, 0);
            views[w][e] = (struct view){0};
            if (actor < 0) continue;
            tell(actor, &(struct command){.kind = VIEW, .world = w, .end = e});
            views[w][e] = shared->view;
            if (w != NATIVE) continue;
            uint64_t coming = until_mark(w, 1 - e);
            bool isWhole = under_way(w, 1 - e) <= shared->ends[w][e].limit;
            int state = shared->view.state;
            if (isWhole && (uint64_t)shared->view.queued != coming && state != TCP_CLOSE) isSettled = false;
            if (coming > 0 && shared->view.queued == 0 && state != TCP_CLOSE) isSettled = false;
            if (isWhole && has_ended(w, 1 - e) && (state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2)) isSettled = false;
        }
    // What comes behind an urgent mark (if it is much, the first of it) has come when it has been acknowledged.
    for (int w = 0; w < WORLDS; w++)
        for (int e = 0; e < ENDS; e++) {
            uint64_t hidden = under_way(w, e) - until_mark(w, e), held = (uint64_t)views[w][e].held;
            bool isWhole = under_way(w, e) <= shared->ends[w][e].limit;
            if (hidden > 0 && held > 0 && (isWhole || held >= hidden - 1)) isSettled = false;
        }
    for (int w = 0; w < WORLDS; w++) {
        struct view first = views[w][0];
        views[w][0].unacknowledged = views[w][1].unacknowledged, views[w][0].retries = views[w][1].retries;
        views[w][1].unacknowledged = first.unacknowledged, views[w][1].retries = first.retries;
    }
    return isSettled;
}

/// Whether the kernel sends something again, in any of the four sockets.
static bool is_trying_again(struct view views[WORLDS][ENDS]) {
    for (int w = 0; w < WORLDS; w++)
        for (int e = 0; e < ENDS; e++)
            if (views[w][e].retries > 0) return true;
    return false;
}

static void settle(bool looks) {
    struct view views[WORLDS][ENDS];
    uint64_t start = now_us();
    shared->phase = looks ? "look" : "glance";
    for (unsigned round = 0;; round++) {
        uint64_t elapsed = now_us() - start;
        // Delayed acknowledgements and MSG_MORE hold bytes back for 40 and 200 ms; what has not come then has been lost
        // by a reset.
        bool isSettled = see(views) || elapsed > 400000, agree = true;
        for (int e = 0; e < ENDS; e++) agree &= views_agree(e, &views[NATIVE][e], &views[SWITCHED][e], elapsed > 400000, false);
        if (isSettled && agree) return;
        if (elapsed > 400000)
            for (int e = 0; e < ENDS; e++) shared->isOver |= has_stayed_at_mark(e, &views[NATIVE][e]);
        if (shared->isOver) return;
        if (elapsed > 3000000 && (elapsed > 30000000 || !is_trying_again(views))) {
            for (int e = 0; e < ENDS; e++) views_agree(e, &views[NATIVE][e], &views[SWITCHED][e], true, true);
            return;
        }
        if (round > 20) usleep(round > 200 ? 5000 : 200);
    }
}

/// Both worlds go on with the same amount under way.
static bool level(int sender) {
    if (under_way(NATIVE, sender) == under_way(SWITCHED, sender)) return true;
    shared->phase = "draining";
    for (int w = 0; w < WORLDS; w++) {
        int actor = holder(w, 1 - sender, 0);
        if (actor < 0) return true;
        // What the sender has taken back from the ring follows as far as there is room, with each of its calls (oracle.c, 7).
        // So the last round in vain is one after such a call.
        uint64_t left;
        int inVain = 0;
        do {
            left = under_way(w, sender);
            tell(actor, &(struct command){.kind = DRAIN, .world = w, .end = 1 - sender});
            if (!shared->outcome[w].value && w == SWITCHED) see((struct view[WORLDS][ENDS]){0}), shared->phase = "draining";
            inVain = under_way(w, sender) == left ? inVain + 1 : 0;
        } while (w == SWITCHED && !shared->outcome[w].value && inVain < 2);
        if (shared->outcome[w].value) continue;
        if (w == NATIVE) return false;
        differ("of what was sent, %llu bytes did not come or came wrong", (unsigned long long)under_way(w, sender));
    }
    return true;
}

// MARK: Going through a plan

static bool would_block(const struct step *step) {
    int actor = holder(NATIVE, step->end, step->actor);
    if (actor < 0 || step->operation > RECVMMSG || step->operation == RECVMMSG) return false;
    bool hasFlags = takes_flags(step->operation);
    if (hasFlags && step->flags & MSG_DONTWAIT) return false;
    if (step->operation <= SENDFILE) {
        uint64_t size = (uint64_t)step->size * (step->operation == SENDMMSG ? step->pieces : 1);
        return under_way(NATIVE, step->end) + size > shared->ends[NATIVE][step->end].limit;
    }
    // Who wants the urgent byte never waits.
    if (step->flags & MSG_OOB) return false;
    uint64_t coming = until_mark(NATIVE, 1 - step->end);
    return coming == 0 || (hasFlags && step->flags & MSG_WAITALL && coming < step->size);
}

/// Whether TCP leaves something open that an urgent mark is about (oracle.c, 10), or the switch's own way of doing it does.
static bool is_open_at_mark(const struct step *step) {
    struct end *end = &shared->ends[NATIVE][step->end], *peer = &shared->ends[NATIVE][1 - step->end];
    // There it gets nothing, and the copying in its place would.
    if (step->operation == SPLICE_OUT) return end->mark == end->received;
    if (step->operation > SENDFILE || !(step->flags & MSG_OOB)) return false;
    uint64_t size = (uint64_t)step->size * (step->operation == SENDMMSG ? step->pieces : 1);
    if (end->limit < 1000 || under_way(NATIVE, step->end) + size > end->limit) return true;
    // Of several urgent bytes in a row it depends on the segments which are dropped.
    if (step->operation == SENDMMSG && step->size == 1) return true;
    return peer->isMarkFirst && peer->mark > peer->received;
}

/// After EAGAIN where TCP had room: room comes without a reader, as it is there on TCP.
static bool has_room_in_time(const struct step *step) {
    shared->phase = "waiting for room";
    int64_t native = 0;
    for (int w = 0; w < WORLDS; w++) {
        tell(holder(w, step->end, step->actor), &(struct command){.kind = WRITABLE, .world = w, .end = step->end, .index = w == NATIVE ? 0 : 5000});
        if (w == NATIVE) native = shared->outcome[w].value;
        if (native != 1) return true;
    }
    // It went over to TCP's buffers.
    shared->toggled = true;
    if (shared->outcome[SWITCHED].value == 1 || shared->isKernelFull[SWITCHED]) return true;
    differ("EAGAIN, and no room within five seconds, where TCP has some. TCP: %s; the switch: %s", shared->room[NATIVE],
           shared->room[SWITCHED]);
    return false;
}

static bool take(const struct step *step, int index) {
    struct statistics *statistics = &shared->statistics;
    shared->step = index;
    if (step->operation == TOGGLE) {
        shared->phase = "telling the service";
        ask_service(step->a & 1 ? "on" : "off");
        shared->toggled = true;
        return true;
    }
    if (step->operation == FORK) {
        shared->phase = "fork";
        int parent = holder(NATIVE, step->end, step->actor), new = 0;
        for (int i = MAXIMUM_ACTORS - 1; i > 1; i--)
            if (!shared->alive[i] && !shared->pid[i]) new = i;
        if (parent >= 0 && new) tell(parent, &(struct command){.kind = BRANCH, .newActor = new});
        return true;
    }
    if (step->operation == LEAVE) {
        shared->phase = "ending a child";
        // It may be the last that holds an end: see at SHUTDOWN.
        for (int e = 0; e < ENDS; e++)
            if (under_way(NATIVE, e) > shared->ends[NATIVE][e].limit) return true;
        for (int i = 2; i < MAXIMUM_ACTORS; i++)
            if (shared->alive[i]) {
                struct command bye = {.kind = BYE};
                exactly(control[i][0], &bye, sizeof bye, true);
                while (kill(shared->pid[i], 0) == 0 && shared->phase) usleep(100);
                shared->alive[i] = false;
                break;
            }
        settle(step->looks);
        return !shared->differs && !shared->isOver;
    }
    if (is_open_at_mark(step) || (!step->waits && would_block(step))) return true;
    if (step->operation == SHUTDOWN || step->operation == CLOSE || step->operation == LINGER_CLOSE) {
        // What is under way above the limit would hold the end back.
        if (under_way(NATIVE, step->end) > shared->ends[NATIVE][step->end].limit) return true;
        // What comes after it TCP answers with a reset; so it answers a close, if anything has come.
        bool isOpen = step->operation == SHUTDOWN || shared->ends[NATIVE][step->end].limit < 1000;
        if (isOpen && under_way(NATIVE, 1 - step->end) > shared->ends[NATIVE][step->end].limit) return true;
    }
    // See oracle.c, 8.
    struct end *peer = &shared->ends[NATIVE][1 - step->end];
    if (step->operation == SENDMMSG && step->pieces > 1 && !shared->plan.noDelay && peer->readShut && peer->writeShut) return true;
    struct step pushed = *step;
    if (step->operation <= SENDFILE && (peer->readShut || holder(NATIVE, 1 - step->end, 0) < 0)) pushed.flags &= ~MSG_MORE;
    step = &pushed;
    for (int w = 0; w < WORLDS; w++) {
        // An epoll set is used by one process.
        bool isEpoll = step->operation == EPOLL_CTL || step->operation == EPOLL_WAIT;
        int actor = holder(w, step->end, step->actor), first = step->end == ACCEPTOR && shared->plan.twoProcesses;
        if (isEpoll && !options.sharedEpoll) actor = holds(w, step->end, first) ? first : -1;
        shared->outcome[w] = (struct outcome){.skipped = true};
        if (actor < 0) continue;
        shared->world = w;
        shared->phase = "call";
        tell(actor, &(struct command){.kind = STEP, .world = w, .step = *step});
    }
    struct outcome *native = &shared->outcome[NATIVE], *switched = &shared->outcome[SWITCHED];
    bool mayStall = step->operation <= SENDFILE && (native->isAmountFree || switched->isAmountFree);
    if (step->operation == SPLICE_IN || step->operation == SPLICE_OUT || (mayStall && step->waits)) shared->toggled = true;
    // (More than once: a signal may come first again.)
    for (int again = 0; again < 10 && step->operation == SPLICE_OUT && native->value > 0; again++) {
        bool isLate = switched->error == EAGAIN || switched->error == EINTR
            || (switched->value == 0 && shared->ends[SWITCHED][step->end].readShut);
        if (!isLate) break;
        see((struct view[WORLDS][ENDS]){0});
        *switched = (struct outcome){.skipped = true};
        tell(holder(SWITCHED, step->end, step->actor), &(struct command){.kind = STEP, .world = SWITCHED, .step = *step});
    }
    snprintf(shared->results[index], sizeof shared->results[index], "%lld %s", (long long)native->value,
             native->error ? strerrorname_np(native->error) : "");
    if (native->skipped && switched->skipped) {
        statistics->skipped++;
        return true;
    }
    statistics->steps++;
    statistics->byOperation[step->operation]++;
    int direction = step->operation <= SENDFILE ? step->end : 1 - step->end;
    if (switched->carried && step->operation <= SENDFILE) {
        statistics->dataCalls[direction]++;
        statistics->onCompanion[direction] += switched->onCompanion;
    }
    if (!compare_outcomes(step, native, switched)) return false;
    if (mayStall && native->value > 0 && switched->error == EAGAIN && step->b % 4 == 0 && !has_room_in_time(step)) return false;
    // See oracle.c, 8.
    bool isAnswered = (peer->readShut && peer->writeShut) || holder(NATIVE, 1 - step->end, 0) < 0;
    if (step->operation <= SENDFILE && isAnswered && (native->moved > 0) != (switched->moved > 0)) return false;
    // Or the rest of it is late.
    if (step->operation == SPLICE_OUT && switched->moved < native->moved) see((struct view[WORLDS][ENDS]){0});
    if (step->operation <= RECVMMSG && !level(direction)) return false;
    if (shared->differs) return false;
    settle(step->looks);
    return !shared->differs && !shared->isOver;
}

/// Bytes to and fro until both directions of the switched connection are on the companion.
static bool move_to_companion(void) {
    uint64_t deadline = now_us() + 5000000;
    bool moved[ENDS] = {false, false};
    shared->phase = "glance";
    while (!moved[0] || !moved[1]) {
        if (now_us() > deadline) return false;
        for (int sender = 0; sender < ENDS; sender++) {
            for (int w = 0; w < WORLDS; w++) {
                struct step send = {.operation = SEND, .end = (uint8_t)sender, .size = 1};
                tell(holder(w, sender, 0), &(struct command){.kind = STEP, .world = w, .step = send});
                if (w == SWITCHED) moved[sender] = shared->outcome[w].onCompanion;
                tell(holder(w, 1 - sender, 0), &(struct command){.kind = DRAIN, .world = w, .end = 1 - sender});
            }
        }
    }
    return true;
}

void run_plan(void) {
    struct plan *plan = &shared->plan;
    prepare_memory();
    install_handlers();
    signal(SIGCHLD, SIG_IGN);
    for (int w = 0; w < WORLDS; w++)
        for (int e = 0; e < ENDS; e++) {
            memset(shared->ends[w][e].descriptor, -1, sizeof shared->ends[w][e].descriptor);
            shared->ends[w][e].limit = 16384;
            shared->ends[w][e].mark = NO_MARK;
        }
    for (int i = 0; i < MAXIMUM_ACTORS; i++)
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, control[i]) < 0) fail("socketpair");
    shared->alive[0] = true;
    shared->phase = "setting up";
    shared->step = -1;
    ask_service("on");
    for (int w = 0; w < WORLDS; w++) {
        set_up_listener(w);
        addressLength = sizeof address[w];
        calls[NATIVE].getsockname(listener[w], (struct sockaddr *)&address[w], &addressLength);
    }
    int second = 0;
    if (plan->twoProcesses) {
        second = 1;
        tell(0, &(struct command){.kind = BRANCH, .newActor = 1});
        for (int w = 0; w < WORLDS; w++) calls[w].close(listener[w]);
    }
    for (int w = 0; w < WORLDS; w++) {
        tell(0, &(struct command){.kind = CONNECT, .world = w});
        tell(second, &(struct command){.kind = ACCEPT, .world = w});
    }
    if (plan->moveFirst && !move_to_companion()) {
        snprintf(shared->verdict, sizeof shared->verdict, "the switched connection did not move to its companion");
        shared->isError = true;
        return;
    }
    // It moves by itself in the middle.
    shared->toggled = !plan->moveFirst;
    shared->statistics.sequences++;
    for (int i = 0; i < plan->count; i++)
        if (shared->enabled[i] && !take(&plan->steps[i], i)) return;
}
