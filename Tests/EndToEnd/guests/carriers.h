// Pairs of connected sockets in one process, on TCP and moved to the companion, and cases whose every result must be the
// same on both.
//
// To 127.0.0.2 the policy of the test keeps connections on TCP; those to 127.0.0.1 move. Whether one has moved the kernel's
// own counters tell: it has when TCP sees none of its bytes. The program is run without the switch, too: then neither
// moves, and the cases are checked against themselves.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wnonnull"
#pragma GCC diagnostic ignored "-Wunused-result"

struct ends {
    int client, server;
};

static char said[2][1 << 18];
static size_t said_bytes[2];
static int carrier;  // 0: TCP, 1: companion

static void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    said_bytes[carrier] += vsnprintf(said[carrier] + said_bytes[carrier], sizeof said[0] - said_bytes[carrier], format, arguments);
    va_end(arguments);
    if (said_bytes[carrier] >= sizeof said[0]) abort();
}

static void show(int line, const char *what, long result) {
    int error = result < 0 ? errno : 0;
    say("%d %s = %ld %s\n", line, what, result, error ? strerrorname_np(error) : "");
}
#define SHOW(call) (errno = 0, show(__LINE__, #call, (long)(call)))

static void fail(const char *what) {
    perror(what);
    exit(2);
}

static uint64_t tcp_bytes(int fd) {
    unsigned char info[256] = {0};
    socklen_t length = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &length) < 0) fail("TCP_INFO");
    uint64_t bytes;
    memcpy(&bytes, info + 200, 8);  // tcpi_bytes_sent
    return bytes;
}

static uint64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ull + now.tv_nsec / 1000000;
}

static int moves = 1;  // connections to 127.0.0.1 must

/// A new listener for connections of this carrier, and its address.
static int make_listener(struct sockaddr_in *address) {
    socklen_t length = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK + (carrier == 0))}};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)address, length) < 0 || listen(listener, 16) < 0) fail("listen");
    getsockname(listener, (void *)address, &length);
    return listener;
}

/// A connection to this listener, on its carrier.
static struct ends make_ends_at(int listener, struct sockaddr_in *address) {
    struct ends ends = {socket(AF_INET, SOCK_STREAM, 0), -1};
    if (connect(ends.client, (void *)address, sizeof *address) < 0) fail("connect");
    ends.server = accept(listener, NULL, NULL);
    if (ends.server < 0) fail("accept");
    setsockopt(ends.client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    setsockopt(ends.server, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    for (uint64_t end = milliseconds() + 20000;;) {
        uint64_t before = tcp_bytes(ends.client) + tcp_bytes(ends.server);
        char byte = 'a';
        for (int i = 0; i < 8; i++) {
            if (write(ends.client, &byte, 1) != 1 || read(ends.server, &byte, 1) != 1) fail("talking");
            if (write(ends.server, &byte, 1) != 1 || read(ends.client, &byte, 1) != 1) fail("talking");
        }
        int moved = tcp_bytes(ends.client) + tcp_bytes(ends.server) == before;
        if (carrier == 0 || !moves) {
            if (moved) fail("a connection moved that must not");
            return ends;
        }
        if (moved) return ends;
        if (milliseconds() > end) fail("the connection does not move");
        usleep(1000);
    }
}

static struct ends make_ends(void) {
    static int listeners[2] = {-1, -1};
    static struct sockaddr_in addresses[2];
    if (listeners[carrier] < 0) listeners[carrier] = make_listener(&addresses[carrier]);
    return make_ends_at(listeners[carrier], &addresses[carrier]);
}

static void close_ends(struct ends ends) {
    close(ends.client);
    close(ends.server);
}

static int failures;

static void compare(const char *name, void (*function)(void)) {
    // One connection that has moved stays: the service ends when nobody needs it.
    static struct ends kept = {-1, -1};
    carrier = 1;
    if (kept.client < 0) kept = make_ends();
    for (carrier = 0; carrier < 2; carrier++) {
        said_bytes[carrier] = 0;
        said[carrier][0] = 0;
        function();
    }
    carrier = 0;
    if (strcmp(said[0], said[1]) == 0) {
        printf("%s: the same, %zu bytes of results\n", name, said_bytes[0]);
        fflush(stdout);
        return;
    }
    failures++;
    printf("%s: DIFFERENT\n", name);
    char *places[2] = {said[0], said[1]}, *lines[2];
    while (*places[0] || *places[1]) {
        for (int i = 0; i < 2; i++) {
            lines[i] = places[i];
            char *end = strchr(places[i], '\n');
            if (end) *end = 0, places[i] = end + 1;
            else places[i] += strlen(places[i]);
        }
        if (strcmp(lines[0], lines[1])) printf("  on TCP:           %s\n  on the companion: %s\n", lines[0], lines[1]);
    }
    fflush(stdout);
}

// `carriers [plain] [CASE…]`: all cases, or those named.
static int chosen(int count, char **arguments, const char *name) {
    int any = 0;
    for (int i = 1; i < count; i++) {
        if (!strcmp(arguments[i], "plain")) continue;
        any = 1;
        if (!strcmp(arguments[i], name)) return 1;
    }
    return !any;
}
#define CASE(name) if (chosen(count, arguments, #name)) compare(#name, name)
