// Many connections that have moved and say nothing: what it costs to wait for them. Prints, for each way to wait, how often
// the waiting thread was woken within a second, and that a message still wakes it.
//
//     idle PORT CONNECTIONS [plain]
#include "twins.h"
#include "fail.h"

static int connections, set;
static int (*ends)[2];
static struct pollfd *list;

struct waiting {
    pthread_t thread;
    int way;
    long woken, events;
};

static void *wait_a_while(void *argument) {
    struct waiting *one = argument;
    static struct epoll_event events[64];
    static uint64_t bits[1 << 12];
    struct rusage before, after;
    getrusage(RUSAGE_THREAD, &before);
    for (int part = 0; part < 2; part++) {
        // A second of silence, and then until something comes.
        int timeout = part == 0 ? 1000 : WATCHDOG_MS;
        struct timeval time = {timeout / 1000, timeout % 1000 * 1000};
        memset(bits, 0, sizeof bits);
        int highest = 0;
        for (int i = 0; i < connections; i++) {
            bits[ends[i][1] / 64] |= 1ull << ends[i][1] % 64;
            if (ends[i][1] > highest) highest = ends[i][1];
        }
        long count = one->way < 2    ? epoll_wait(set, events, 64, timeout)
                     : one->way == 2 ? poll(list, connections, timeout)
                                     : select(highest + 1, (fd_set *)bits, NULL, NULL, &time);
        getrusage(RUSAGE_THREAD, &after);
        if (part == 0) {
            if (count != 0) fail("%ld events of silent connections", count);
            one->woken = after.ru_nvcsw - before.ru_nvcsw;
        } else {
            one->events = count;
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    connections = atoi(arguments[2]);
    int plain = count > 3;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < 2 * connections + 100 ? limit.rlim_max : 2 * connections + 100;
    setrlimit(RLIMIT_NOFILE, &limit);
    listen_on(0, atoi(arguments[1]));
    ends = calloc(connections, sizeof *ends);
    list = calloc(connections, sizeof *list);
    set = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < connections; i++) {
        connect_ends(0, &ends[i][0], &ends[i][1]);
        warm_up(ends[i][0], ends[i][1], !plain);
        list[i] = (struct pollfd){ends[i][1], POLLIN, 0};
    }
    static const char *const ways[] = {"level", "edge", "poll", "select"};
    for (int way = 0; way < 4; way++) {
        struct waiting one = {.way = way};
        for (int i = 0; i < connections && way < 2; i++) {
            struct epoll_event event = {EPOLLIN | EPOLLRDHUP | (way ? EPOLLET | EPOLLOUT : 0), {.u64 = (uint64_t)i}};
            MUST(epoll_ctl(set, way ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, ends[i][1], &event) == 0);
        }
        struct epoll_event events[64];
        while (way == 1 && epoll_wait(set, events, 64, 0) > 0) {}
        MUST(pthread_create(&one.thread, NULL, wait_a_while, &one) == 0);
        poll(NULL, 0, 1200);
        char byte = 'x';
        int chosen = connections / 2;
        MUST(send(ends[chosen][0], &byte, 1, MSG_NOSIGNAL) == 1);
        MUST(pthread_join(one.thread, NULL) == 0);
        MUST(recv(ends[chosen][1], &byte, 1, 0) == 1);
        printf("%s: woken %ld events %ld\n", ways[way], one.woken, one.events);
    }
    printf("%ld connections moved\n", moved_connections);
    return 0;
}
