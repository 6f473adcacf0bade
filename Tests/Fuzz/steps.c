// Sequences from seeds, and how they are written down.
#include "fuzz.h"

static uint64_t state;
static uint64_t next(void) {
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}
static uint32_t below(uint32_t n) { return (uint32_t)(next() % n); }
static bool chance(uint32_t percent) { return below(100) < percent; }
#define PICK(...) pick((const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))
static int pick(const int *list, size_t count) { return list[below((uint32_t)count)]; }

static const struct { const char *name; int weight; } operations[OPERATIONS] = {
    [SEND] = {"send", 20}, [WRITE] = {"write", 12}, [WRITEV] = {"writev", 8}, [SENDTO] = {"sendto", 3},
    [SENDMSG] = {"sendmsg", 8}, [SENDMMSG] = {"sendmmsg", 4}, [SPLICE_IN] = {"splice from a pipe", 1}, [SENDFILE] = {"sendfile", 4},
    [RECV] = {"recv", 24}, [READ] = {"read", 14}, [READV] = {"readv", 8}, [RECVFROM] = {"recvfrom", 4},
    [RECVMSG] = {"recvmsg", 10}, [SPLICE_OUT] = {"splice into a pipe", 1}, [RECVMMSG] = {"recvmmsg", 5},
    [POLL] = {"poll", 10}, [SELECT] = {"select", 6}, [EPOLL_CTL] = {"epoll_ctl", 12}, [EPOLL_WAIT] = {"epoll_wait", 20},
    [SHUTDOWN] = {"shutdown", 4}, [CLOSE] = {"close", 3}, [LINGER_CLOSE] = {"close with linger", 2}, [DUP] = {"dup", 4},
    [NONBLOCK] = {"O_NONBLOCK", 6}, [SETSOCKOPT] = {"setsockopt", 6}, [GETSOCKOPT] = {"getsockopt", 6},
    [IOCTL] = {"ioctl", 4}, [NAMES] = {"getsockname", 3}, [MISUSE] = {"misuse", 3}, [TOGGLE] = {"off or on", 8},
    [FORK] = {"fork", 2}, [LEAVE] = {"exit", 1},
};
const char *operation_name(int operation) { return operations[operation].name; }

static uint32_t any_size(void) {
    switch (below(20)) {
    case 0: return 0;
    case 1: case 2: case 3: return 1;
    case 4: case 5: case 6: case 7: return 1 + below(64);
    case 8: case 9: case 10: case 11: return 1 + below(2000);
    case 12: case 13: return 4096 - 2 + below(5);
    case 14: return 8192 + below(8192);
    case 15: return 16384 - 2 + below(5);
    case 16: return 32768 - 2 + below(5);
    case 17: return 65536 - 2 + below(5);
    case 18: return 1 + below(262144);
    default: return chance(50) ? 1 << 20 : 1 + below(1 << 20);
    }
}

static int send_flags(void) {
    int flags = 0;
    if (chance(60)) flags |= MSG_DONTWAIT;
    if (chance(30)) flags |= MSG_NOSIGNAL;
    if (chance(4)) flags |= MSG_MORE;
    if (chance(3)) flags |= PICK(MSG_EOR, MSG_CONFIRM, MSG_DONTROUTE);
    return flags;
}

static int receive_flags(void) {
    int flags = 0;
    if (chance(75)) flags |= MSG_DONTWAIT;
    if (chance(20)) flags |= MSG_PEEK;
    if (chance(10)) flags |= MSG_TRUNC;
    if (chance(12)) flags |= MSG_WAITALL;
    if (chance(3)) flags |= PICK(MSG_NOSIGNAL, MSG_CMSG_CLOEXEC, MSG_ERRQUEUE);
    return flags;
}

bool takes_flags(int operation) {
    return operation != READ && operation != WRITE && operation != READV && operation != WRITEV && operation != SENDFILE
        && operation != SPLICE_IN && operation != SPLICE_OUT && operation <= RECVMMSG;
}

static struct step any_step(const bool *enabled) {
    struct step step = {0};
    int total = 0;
    for (int i = 0; i < OPERATIONS; i++) total += enabled[i] ? operations[i].weight : 0;
    int at = (int)below((uint32_t)total);
    for (int i = 0; i < OPERATIONS; i++) {
        if (!enabled[i]) continue;
        at -= operations[i].weight;
        if (at < 0) {
            step.operation = (uint8_t)i;
            break;
        }
    }
    step.end = (uint8_t)below(2);
    step.alias = (uint8_t)below(MAXIMUM_ALIASES);
    step.actor = (uint8_t)below(MAXIMUM_ACTORS);
    step.looks = chance(70);
    step.waits = chance(25);
    step.restarts = chance(50);
    step.size = any_size();
    step.pieces = (uint8_t)(chance(80) ? 1 + below(5) : below(60));
    if (chance(6) && !options.noBadPointers) step.memory = (uint8_t)PICK(NOTHING, UNMAPPED, READ_ONLY, HALF);
    // An error after some messages recvmmsg leaves in the socket for the next call, whatever that is: only the kernel can.
    if (step.operation == RECVMMSG || step.operation == SENDFILE || step.operation == SPLICE_IN || step.operation == SPLICE_OUT) step.memory = GOOD;
    // More the kernel sends in parts, and an error that the second one meets is lost.
    if (step.operation == SENDFILE && step.size > 60000) step.size %= 60000;
    if (step.operation <= SENDFILE) step.flags = send_flags();
    else if (step.operation <= RECVMMSG) step.flags = receive_flags();
    step.a = (int32_t)next();
    step.b = (int32_t)next();
    return step;
}

/// Urgent data come in bursts, so that marks meet: some calls that one end sends or the other receives with, half of them urgent.
static struct { uint32_t left; uint8_t sender; } burst;
static void make_urgent(struct step *step) {
    bool sends = step->operation <= SENDFILE, begins = burst.left == 0;
    if (!takes_flags(step->operation) || (begins && !chance(sends ? 10 : 2))) return;
    if (!begins) {
        burst.left--;
        step->end = sends ? burst.sender : 1 - burst.sender;
        if (chance(50)) return;
    } else if (sends) {
        burst.left = below(12);
        burst.sender = step->end;
    }
    step->flags |= MSG_OOB;
    // More than TCP takes at once would be left out (oracle.c, 10).
    if (sends) step->size = 1 + below(chance(50) ? 1 : 2000);
}

void make_plan(struct plan *plan, uint64_t seed) {
    memset(plan, 0, sizeof *plan);
    plan->seed = seed;
    state = seed * 0x2545F4914F6CDD1Dull + 1;
    plan->twoProcesses = chance(50);
    plan->moveFirst = chance(85);
    plan->noDelay = chance(90);
    plan->inet6 = chance(20);
    // With it a direction stays on TCP: in some of them only.
    plan->isUrgent = options.urgent || seed % 8 == 5;
    // Not every sequence uses everything: what is left out lets the rest come further.
    bool enabled[OPERATIONS];
    for (int i = 0; i < OPERATIONS; i++) enabled[i] = chance(60);
    enabled[SEND] = enabled[RECV] = true;
    // After it the connection stays on TCP.
    if (options.noSplices || !chance(15)) enabled[SPLICE_IN] = enabled[SPLICE_OUT] = false;
    if (chance(50)) enabled[SHUTDOWN] = enabled[CLOSE] = enabled[LINGER_CLOSE] = false;
    plan->count = (int)(chance(70) ? 5 + below(60) : 60 + below(MAXIMUM_STEPS - 60));
    burst.left = 0;
    for (int i = 0; i < plan->count; i++) {
        plan->steps[i] = any_step(enabled);
        if (plan->isUrgent) make_urgent(&plan->steps[i]);
    }
}

static void flag_names(int flags, char *text, size_t size) {
    static const struct { int flag; const char *name; } names[] = {
        {MSG_DONTWAIT, "MSG_DONTWAIT"}, {MSG_NOSIGNAL, "MSG_NOSIGNAL"}, {MSG_MORE, "MSG_MORE"}, {MSG_EOR, "MSG_EOR"},
        {MSG_CONFIRM, "MSG_CONFIRM"}, {MSG_DONTROUTE, "MSG_DONTROUTE"}, {MSG_OOB, "MSG_OOB"}, {MSG_PEEK, "MSG_PEEK"},
        {MSG_TRUNC, "MSG_TRUNC"}, {MSG_WAITALL, "MSG_WAITALL"}, {MSG_CMSG_CLOEXEC, "MSG_CMSG_CLOEXEC"},
        {MSG_ERRQUEUE, "MSG_ERRQUEUE"},
    };
    size_t at = 0;
    text[0] = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (flags & names[i].flag && at < size)
            at += (size_t)snprintf(text + at, size - at, "%s%s", at ? " | " : "", names[i].name);
    if (!at) snprintf(text, size, "0");
}

void describe(const struct step *s, char *text, size_t size) {
    static const char *memories[] = {"bytes", "NULL", "unmapped", "read_only", "half_mapped"};
    const char *fd = s->end == CONNECTOR ? "a" : "b", *m = memories[s->memory];
    char flags[200];
    flag_names(s->flags, flags, sizeof flags);
    const char *wait = s->waits ? s->restarts ? "  /* signals: SA_RESTART twice, then not */" : "  /* signals, no SA_RESTART */" : "";
    switch (s->operation) {
    case SEND: snprintf(text, size, "send(%s, %s, %u, %s);%s", fd, m, s->size, flags, wait); break;
    case WRITE: snprintf(text, size, "write(%s, %s, %u);%s", fd, m, s->size, wait); break;
    case WRITEV: snprintf(text, size, "writev(%s, %s: %u bytes in %u pieces);%s", fd, m, s->size, s->pieces, wait); break;
    case SENDTO: snprintf(text, size, "sendto(%s, %s, %u, %s, address, %d);%s", fd, m, s->size, flags, (int)((unsigned)s->a % 40), wait); break;
    case SENDMSG: snprintf(text, size, "sendmsg(%s, %s: %u bytes in %u pieces, %s);%s", fd, m, s->size, s->pieces, flags, wait); break;
    case SENDMMSG: snprintf(text, size, "sendmmsg(%s, %s: %u messages of %u bytes, %s);%s", fd, m, s->pieces, s->size, flags, wait); break;
    case SPLICE_IN: snprintf(text, size, "splice(pipe with %u bytes, NULL, %s, NULL, %u, 0);%s", s->size, fd, s->size, wait); break;
    case SPLICE_OUT: snprintf(text, size, "splice(%s, NULL, pipe, NULL, %u, 0);%s", fd, s->size, wait); break;
    case SENDFILE: snprintf(text, size, "sendfile(%s, file, %s, %u);%s", fd, s->a & 1 ? "&offset" : "NULL", s->size, wait); break;
    case RECV: snprintf(text, size, "recv(%s, %s, %u, %s);%s", fd, m, s->size, flags, wait); break;
    case READ: snprintf(text, size, "read(%s, %s, %u);%s", fd, m, s->size, wait); break;
    case READV: snprintf(text, size, "readv(%s, %s: %u bytes in %u pieces);%s", fd, m, s->size, s->pieces, wait); break;
    case RECVFROM: snprintf(text, size, "recvfrom(%s, %s, %u, %s, address, &length);%s", fd, m, s->size, flags, wait); break;
    case RECVMSG: snprintf(text, size, "recvmsg(%s, %s: %u bytes in %u pieces, %s);%s", fd, m, s->size, s->pieces, flags, wait); break;
    case RECVMMSG: snprintf(text, size, "recvmmsg(%s, %s: %u messages of %u bytes, %s);%s", fd, m, s->pieces, s->size, flags, wait); break;
    case POLL: snprintf(text, size, "poll({%s}, events 0x%x, %d ms);", fd, s->a & 0xffff, s->waits ? 5 : 0); break;
    case SELECT: snprintf(text, size, "select({%s}, %d, %d ms);", fd, s->a & 7, s->waits ? 5 : 0); break;
    case EPOLL_CTL: snprintf(text, size, "epoll_ctl(set of %s, %s, 0x%x);", fd, s->b & 1 ? "ADD" : s->b & 2 ? "MOD" : "DEL", (unsigned)s->a); break;
    case EPOLL_WAIT: snprintf(text, size, "epoll_wait(set of %s, %d ms);", fd, s->waits ? 5 : 0); break;
    case SHUTDOWN: snprintf(text, size, "shutdown(%s, %d);", fd, (int)((unsigned)s->a % 3)); break;
    case CLOSE: snprintf(text, size, "close(%s);", fd); break;
    case LINGER_CLOSE: snprintf(text, size, "setsockopt(%s, SO_LINGER, {1, %d}); close(%s);", fd, s->a & 1, fd); break;
    case DUP: snprintf(text, size, "%s(%s);", s->a & 1 ? "dup" : s->a & 2 ? "F_DUPFD" : "dup2", fd); break;
    case NONBLOCK: snprintf(text, size, "%s(%s, %d);", s->b & 1 ? "O_NONBLOCK" : "FIONBIO", fd, s->a & 1); break;
    case TOGGLE: snprintf(text, size, "/* sockswitch %s */", s->a & 1 ? "on" : "off"); break;
    case FORK: snprintf(text, size, "fork();  /* the child holds %s, too */", fd); break;
    case LEAVE: snprintf(text, size, "/* the forked child ends */"); break;
    default: snprintf(text, size, "%s(%s, %d, %d);", operation_name(s->operation), fd, s->a, s->b);
    }
}
