// A thread sleeps in a call on a socket that another thread closes, and the number goes to the next connection. Whatever
// becomes of the call, the next connection's bytes are its own: none is taken from it, none comes to it.
#include "carriers.h"

static char bytes[1 << 20];
static int called, file;

// The thread that is about to sleep; 0: it has not come so far.
static _Atomic pid_t caller;

// Until it has slept for some milliseconds, or is through, whatever else the machine is busy with.
static void await_sleep(void) {
    while (!caller) usleep(1000);
    char path[64], status[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)caller);
    for (int asleep = 0; asleep < 5; usleep(1000)) {
        FILE *file = fopen(path, "r");
        if (!file) break;
        char *state = fgets(status, sizeof status, file) ? strrchr(status, ')') : NULL;
        asleep = state && state[2] == 'S' ? asleep + 1 : 0;
        fclose(file);
        if (!state) break;
    }
    caller = 0;
}

static pthread_t asleep_in(void *(*call)(void *)) {
    pthread_t thread;
    pthread_create(&thread, NULL, call, NULL);
    await_sleep();
    return thread;
}

static void *receiving(void *unused) {
    char taken[64];
    caller = gettid();
    recv(called, taken, sizeof taken, 0);
    return NULL;
}

static void *looking_for_more(void *unused) {
    char taken[64];
    caller = gettid();
    recv(called, taken, sizeof taken, MSG_PEEK | MSG_WAITALL);
    return NULL;
}

static void *sending(void *unused) {
    caller = gettid();
    send(called, "MISDIRECTED", 11, MSG_NOSIGNAL);
    return NULL;
}

static void *sending_much(void *unused) {
    static char much[16 << 20];
    memset(much, 'M', sizeof much);
    caller = gettid();
    send(called, much, sizeof much, MSG_NOSIGNAL);
    return NULL;
}

static void *sending_file(void *unused) {
    off_t start = 0;
    caller = gettid();
    sendfile(called, file, &start, 64 << 20);
    return NULL;
}

static void fill(int fd) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (int idle = 0; idle < 20;) {
        if (write(fd, bytes, sizeof bytes) > 0) idle = 0;
        else idle++, usleep(1000);
    }
    fcntl(fd, F_SETFL, 0);
}

static void close_under(void *(*call)(void *), int fills) {
    struct ends e = make_ends();
    if (fills) fill(e.client);
    called = e.client;
    pthread_t thread = asleep_in(call);
    // Not the number but what stands behind it is closed, so that the next connection gets it for certain.
    SHOW(close(e.client));
    struct ends next = make_ends();
    SHOW(next.client == e.client);
    SHOW(write(next.server, "for the next", 12));
    usleep(20000);
    // Wakes the call: with bytes, with room, and with the end.
    int idle = 0;
    if (fills)
        while (idle < 20)
            if (recv(e.server, bytes, sizeof bytes, MSG_DONTWAIT) > 0) idle = 0;
            else idle++, usleep(1000);
    write(e.server, "for nobody", 10);
    usleep(20000);
    close(e.server);
    pthread_join(thread, NULL);
    memset(bytes, 0, 64);
    SHOW(recv(next.client, bytes, 64, MSG_DONTWAIT));
    say("%s\n", bytes);
    SHOW(recv(next.server, bytes, 64, MSG_DONTWAIT));
    SHOW(write(next.client, "on", 2));
    SHOW(recv(next.server, bytes, 64, 0));
    close_ends(next);
}

static void closed_in_recv(void) { close_under(receiving, 0); }
static void closed_in_peek(void) { close_under(looking_for_more, 0); }
static void closed_in_send(void) { close_under(sending, 1); }
static void closed_in_large_send(void) { close_under(sending_much, 1); }
static void closed_in_sendfile(void) { close_under(sending_file, 1); }

// One of two numbers is closed and goes to another connection: the call goes on where it was.
static void closed_a_duplicate(void) {
    struct ends e = make_ends();
    int other = dup(e.client);
    called = e.client;
    pthread_t thread = asleep_in(receiving);
    SHOW(close(e.client));
    struct ends next = make_ends();
    SHOW(next.client == e.client);
    SHOW(write(next.server, "for the next", 12));
    SHOW(write(e.server, "for the call", 12));
    pthread_join(thread, NULL);
    SHOW(recv(next.client, bytes, 64, MSG_DONTWAIT));
    SHOW(write(e.server, "x", 1));
    SHOW(recv(other, bytes, 64, 0));
    close(other);
    close(e.server);
    close_ends(next);
}

// The same with an epoll set: what is told of in the set that gets the number is not for the call.
static int set;
static void *waiting(void *unused) {
    struct epoll_event event;
    caller = gettid();
    epoll_wait(set, &event, 1, 3000);
    return NULL;
}

static void closed_set(void) {
    for (int order = 0; order < 2; order++) {
        struct ends e = make_ends(), next = make_ends();
        struct epoll_event event = {EPOLLIN, {.u32 = 1}};
        set = epoll_create1(0);
        epoll_ctl(set, EPOLL_CTL_ADD, e.client, &event);
        pthread_t thread = asleep_in(waiting);
        close(set);
        int after = epoll_create1(0);
        SHOW(after == set);
        event.events = EPOLLIN | EPOLLET;
        event.data.u32 = 2;
        SHOW(epoll_ctl(after, EPOLL_CTL_ADD, next.client, &event));
        if (write(order ? e.server : next.server, "x", 1) != 1) fail("write");
        usleep(30000);
        if (write(order ? next.server : e.server, "x", 1) != 1) fail("write");
        pthread_join(thread, NULL);
        SHOW(epoll_wait(after, &event, 1, 1000));
        SHOW(event.data.u32);
        close(after);
        close_ends(e);
        close_ends(next);
    }
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    signal(SIGPIPE, SIG_IGN);
    file = memfd_create("file", 0);
    if (ftruncate(file, 64 << 20) < 0) fail("ftruncate");
    CASE(closed_in_recv);
    CASE(closed_in_peek);
    CASE(closed_in_send);
    CASE(closed_in_large_send);
    CASE(closed_in_sendfile);
    CASE(closed_a_duplicate);
    CASE(closed_set);
    printf("%d different\n", failures);
    return failures != 0;
}
