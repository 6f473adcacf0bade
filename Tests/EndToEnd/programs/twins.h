// Connections of two kinds in one program: some that a policy keeps on TCP, by their port, and some that may move to
// companions. The program knows nothing of the switch: that a connection has moved it learns from the kernel, whose
// counter of sent bytes stands still.
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WATCHDOG_MS = 20000 };
static const char *const names[2] = {"TCP", "companion"};
static int listeners[2];

static void fail(const char *format, ...);

#define MUST(condition) \
    do { \
        if (!(condition)) fail("line %d: %s: %s", __LINE__, #condition, strerror(errno)); \
    } while (0)

// Result of a call in one number: a failed one is -errno.
#define ANSWER(call) ({ errno = 0; long answer = (long)(call); answer < 0 ? -(long)errno : answer; })

static long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void listen_on(int world, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    MUST(bind(listener, (void *)&address, sizeof address) == 0 && listen(listener, 64) == 0);
    listeners[world] = listener;
}

static void connect_ends(int world, int *client, int *server) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    MUST(getsockname(listeners[world], (void *)&address, &length) == 0);
    *client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(*client >= 0 && connect(*client, (void *)&address, length) == 0);
    *server = accept4(listeners[world], NULL, NULL, SOCK_CLOEXEC);
    MUST(*server >= 0);
    MUST(setsockopt(*client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)) == 0);
    MUST(setsockopt(*server, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)) == 0);
}

// The kernel's own answer, past the switch: a connection that moved has a TCP socket, too.
static int kernel_poll(int fd, int events) {
    struct pollfd entry = {fd, (short)events, 0};
    syscall(SYS_poll, &entry, 1, 0);
    return entry.revents;
}

static uint64_t sent_by_kernel(int fd) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
    return info.tcpi_bytes_sent;
}

// One byte there, and whether the kernel has seen it.
static int goes_over_tcp(int from, int to) {
    char byte = 'w';
    uint64_t before = sent_by_kernel(from);
    MUST(send(from, &byte, 1, MSG_NOSIGNAL) == 1);
    MUST(recv(to, &byte, 1, 0) == 1);
    return sent_by_kernel(from) != before;
}

// Talks until both directions have left TCP, or, where they shall not leave it, some bytes long. Counts what has moved.
static long moved_connections;

static void warm_up(int a, int b, int moves) {
    if (!moves) {
        for (int i = 0; i < 10; i++) MUST(goes_over_tcp(a, b) && goes_over_tcp(b, a));
        return;
    }
    long deadline = milliseconds() + WATCHDOG_MS;
    while (goes_over_tcp(a, b) | goes_over_tcp(b, a))
        if (milliseconds() > deadline) fail("a connection does not leave TCP");
    moved_connections++;
}
