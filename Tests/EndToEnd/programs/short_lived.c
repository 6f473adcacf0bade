// Connections of some dozens of requests, that move in the middle and are closed soon, in the manner of a load generator:
// threads with a set each, level-triggered, interest in writing only while there is a request to send. An event that epoll
// tells of is there: a read after EPOLLIN finds bytes, no event comes of what is closed, and none twice.
// `short_lived SECONDS [plain]`
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fail.h"

enum { CLIENTS = 2, CONNECTIONS = 8, REQUEST = 100, ANSWER = 750 };

static struct sockaddr_in address;
static time_t end;
static atomic_long requests, moved, idle;

static void control(int set, int operation, int fd, uint32_t events, int which) {
    if (epoll_ctl(set, operation, fd, &(struct epoll_event){.events = events, .data.u32 = which}) < 0) fail("epoll_ctl");
}

static void serve(int listener) {
    static char bytes[8192];
    struct epoll_event events[64];
    int set = epoll_create1(0);
    control(set, EPOLL_CTL_ADD, listener, EPOLLIN, listener);
    for (;;) {
        int count = epoll_wait(set, events, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.u32;
            if (fd == listener) {
                for (int new; (new = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;)
                    control(set, EPOLL_CTL_ADD, new, EPOLLIN | EPOLLET | EPOLLRDHUP, new);
                continue;
            }
            ssize_t part;
            while ((part = read(fd, bytes, sizeof bytes)) > 0)
                if (write(fd, bytes, ANSWER) != ANSWER) fail("write of an answer");
            if (part == 0) close(fd);
        }
    }
}

static int connect_one(int set, int which) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&address, sizeof address) < 0) fail("connect");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    control(set, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT, which);
    return fd;
}

/// Whether TCP has sent less than the program has.
static int has_moved(int fd, long sent) {
    unsigned char info[256] = {0};
    uint64_t bytes;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &(socklen_t){sizeof info}) < 0) fail("TCP_INFO");
    memcpy(&bytes, info + 200, 8);  // tcpi_bytes_sent
    return bytes < (uint64_t)sent;
}

static void *use(void *number) {
    static char request[REQUEST];
    struct { int fd, done, got, asked; } all[CONNECTIONS];
    struct epoll_event events[64];
    char bytes[8192];
    int set = epoll_create1(0), last = 10 + 90 * (int)(long)number;
    for (int i = 0; i < CONNECTIONS; i++) all[i].fd = -1;
    while (time(NULL) < end) {
        for (int i = 0; i < CONNECTIONS; i++)
            if (all[i].fd < 0) all[i].fd = connect_one(set, i), all[i].done = all[i].got = all[i].asked = 0;
        int count = epoll_wait(set, events, 64, 100);
        for (int k = 0; k < count; k++) {
            int i = events[k].data.u32, fd = all[i].fd;
            if (events[k].events & ~EPOLLOUT) {
                ssize_t part = read(fd, bytes, sizeof bytes);
                if (part < 0 && errno == EAGAIN) {
                    idle++;
                    printf("nothing to read after event %x, request %d\n", events[k].events, all[i].done);
                } else if (part <= 0) {
                    fail("read");
                } else {
                    all[i].got += part;
                }
                if (all[i].got > ANSWER) fail("too much came");
                if (all[i].got == ANSWER) {
                    all[i].got = all[i].asked = 0;
                    requests++;
                    if (++all[i].done >= last + i) {
                        moved += has_moved(fd, all[i].done * REQUEST);
                        close(fd);
                        all[i].fd = -1;
                        continue;
                    }
                    control(set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT, i);
                }
            }
            if (events[k].events & EPOLLOUT) {
                if (all[i].asked++) fail("asked to write twice");
                if (write(fd, request, REQUEST) != REQUEST) fail("write of a request");
                control(set, EPOLL_CTL_MOD, fd, EPOLLIN, i);
            }
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    end = time(NULL) + atoi(arguments[1]);
    int plain = count > 2, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (bind(listener, (void *)&address, sizeof address) < 0 || listen(listener, 128) < 0) fail("listen");
    getsockname(listener, (void *)&address, &(socklen_t){sizeof address});
    // More processes than processors: what the service is to do waits, too.
    pid_t servers[2];
    for (int i = 0; i < 2; i++)
        if ((servers[i] = fork()) == 0) serve(listener);
    close(listener);
    pthread_t threads[CLIENTS];
    for (long i = 0; i < CLIENTS; i++) pthread_create(&threads[i], NULL, use, (void *)i);
    for (int i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) kill(servers[i], SIGKILL), waitpid(servers[i], NULL, 0);
    printf("%ld requests, %ld connections moved, %ld reads of nothing\n", requests, moved, idle);
    return idle != 0 || plain != (moved == 0);
}
