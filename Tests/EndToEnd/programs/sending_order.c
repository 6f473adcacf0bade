// Messages that one thread sends on several connections, one after the other: epoll_wait must tell of them in that order, as on
// TCP, whether the waiter sleeps, looks or is busy meanwhile, and where the first of them stay on TCP and the others have moved.
//
//     sending_order SEED ROUNDS KEPT-PORT MOVED-PORT [plain]
#include "twins.h"
#include "fail.h"

enum { KEPT = 3, MOVED = 12, ALL = KEPT + MOVED };

static int ends[ALL][2], set;
static int sent[ALL], told[ALL];
static pthread_barrier_t begin, middle, end;
static int rounds, edge, busy;

// The kernel keeps what it has told until it is asked again, and tells of it in the old order if there is something new.
static void forget(void) {
    struct epoll_event event;
    MUST(epoll_wait(set, &event, 1, 0) == 0);
}

static void tell(void) {
    for (int count = 0; count < ALL;) {
        struct epoll_event events[2 * ALL];
        int found = epoll_wait(set, events, 2 * ALL, WATCHDOG_MS);
        MUST(found > 0);
        for (int i = 0; i < found; i++) {
            char byte;
            MUST(count < ALL);
            told[count++] = events[i].data.u32;
            MUST(recv(ends[events[i].data.u32][1], &byte, 1, MSG_DONTWAIT) == 1);
        }
    }
    forget();
}

static void *wait_for_them(void *argument) {
    for (int round = 0; round < rounds; round++) {
        pthread_barrier_wait(&begin);
        if (busy) pthread_barrier_wait(&middle);
        tell();
        pthread_barrier_wait(&end);
    }
    return NULL;
}

// Those that stay on TCP first, each part in an order of its own.
static void shuffle(void) {
    for (int i = 0; i < ALL; i++) sent[i] = i;
    for (int i = KEPT - 1; i > 0; i--) {
        int other = rand() % (i + 1), former = sent[i];
        sent[i] = sent[other], sent[other] = former;
    }
    for (int i = ALL - 1; i > KEPT; i--) {
        int other = KEPT + rand() % (i + 1 - KEPT), former = sent[i];
        sent[i] = sent[other], sent[other] = former;
    }
}

static long one_way(void) {
    long differing = 0;
    pthread_t waiter;
    struct epoll_event event = {EPOLLIN | (edge ? EPOLLET : 0)};
    for (int i = 0; i < ALL; i++) {
        event.data.u32 = i;
        MUST(epoll_ctl(set, EPOLL_CTL_MOD, ends[i][1], &event) == 0);
    }
    forget();
    MUST(pthread_create(&waiter, NULL, wait_for_them, NULL) == 0);
    for (int round = 0; round < rounds; round++) {
        shuffle();
        pthread_barrier_wait(&begin);
        if (!busy && round % 2) poll(NULL, 0, 1);  // it sleeps by now, most likely
        for (int i = 0; i < ALL; i++) {
            char byte = 'x';
            MUST(send(ends[sent[i]][0], &byte, 1, MSG_NOSIGNAL) == 1);
            // The kernel has delivered it, not only taken it.
            struct pollfd arrived = {ends[sent[i]][1], POLLIN | POLLRDHUP};
            if (sent[i] < KEPT && busy) MUST(poll(&arrived, 1, WATCHDOG_MS) == 1);
        }
        if (busy) pthread_barrier_wait(&middle);
        pthread_barrier_wait(&end);
        if (memcmp(sent, told, sizeof sent) != 0) {
            if (differing++ == 0) {
                printf("%s, %s: sent", edge ? "edge" : "level", busy ? "busy" : "waiting");
                for (int i = 0; i < ALL; i++) printf(" %d", sent[i]);
                printf("; told");
                for (int i = 0; i < ALL; i++) printf(" %d", told[i]);
                printf("\n");
            }
        }
    }
    MUST(pthread_join(waiter, NULL) == 0);
    return differing;
}

int main(int count, char **arguments) {
    if (count < 5) return 2;
    srand(atoi(arguments[1]));
    rounds = atoi(arguments[2]);
    int plain = count > 5;
    listen_on(0, atoi(arguments[3]));
    listen_on(1, atoi(arguments[4]));
    set = epoll_create1(EPOLL_CLOEXEC);
    pthread_barrier_init(&begin, NULL, 2);
    pthread_barrier_init(&middle, NULL, 2);
    pthread_barrier_init(&end, NULL, 2);
    for (int i = 0; i < ALL; i++) {
        struct epoll_event event = {EPOLLIN, {.u32 = i}};
        connect_ends(i >= KEPT, &ends[i][0], &ends[i][1]);
        warm_up(ends[i][0], ends[i][1], i >= KEPT && !plain);
        MUST(epoll_ctl(set, EPOLL_CTL_ADD, ends[i][1], &event) == 0);
    }
    long differing = 0;
    for (int way = 0; way < 4; way++) {
        edge = way & 1;
        busy = way >> 1;
        differing += one_way();
    }
    printf("%d rounds, %ld connections moved, %ld differ\n", 4 * rounds, moved_connections, differing);
    return 0;
}
