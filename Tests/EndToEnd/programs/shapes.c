// Streams of unfavourable shapes, every byte checked: what other systems of this kind collapsed under.
//
//     shapes server PORT SHAPE ROUNDS        shapes client PORT SHAPE ROUNDS
//
// SHAPE: mixed    blocking and non-blocking calls take turns on one socket, at both ends
//        small    one byte, then 256 KiB at once; the answer is one byte
//        pieces   writev of 64 pieces of odd sizes, readv of 32 others
//        signals  as mixed, with a timer signal every millisecond whose handler restarts calls or not, in turn
// Both ends print the microseconds of the rounds, then wait for the end of standard input.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 256 * 1024, PIECES = 64 };

static unsigned char bytes[BLOCK], received[BLOCK];
static unsigned long sentPosition, receivedPosition, calls, interruptions;
static volatile sig_atomic_t ticks;

static unsigned char at(unsigned long position) { return (unsigned char)(position * 31 + position / 251); }

static void die(const char *what) {
    fprintf(stderr, "shapes: %s: %s (sent %lu, received %lu)\n", what, strerror(errno), sentPosition, receivedPosition);
    exit(1);
}

static void await(int fd, short events) {
    struct pollfd entry = {fd, events, 0};
    while (poll(&entry, 1, -1) < 0)
        if (errno != EINTR) die("poll");
}

/// Every second call does not block: by MSG_DONTWAIT, or by O_NONBLOCK, which the description keeps.
static int mode(int fd, unsigned long call) {
    if (call % 4 < 2) fcntl(fd, F_SETFL, (fcntl(fd, F_GETFL) & ~O_NONBLOCK) | (call % 4 ? O_NONBLOCK : 0));
    return call % 4 == 3 ? MSG_DONTWAIT : 0;
}

static int isPassing(int mixes) {
    if (errno == EINTR) return ++interruptions;
    return mixes && errno == EAGAIN;
}

static void sendAll(int fd, size_t count, int mixes) {
    for (size_t index = 0; index < count; index++) bytes[index] = at(sentPosition + index);
    size_t done = 0;
    while (done < count) {
        ssize_t result = send(fd, bytes + done, count - done, mixes ? mode(fd, calls++) : 0);
        if (result > 0) done += (size_t)result;
        else if (result == 0 || !isPassing(mixes)) die("send");
        else if (errno == EAGAIN) await(fd, POLLOUT);
    }
    sentPosition += count;
}

static void check(const unsigned char *start, size_t count) {
    for (size_t index = 0; index < count; index++)
        if (start[index] != at(receivedPosition + index)) die("a byte differs");
    receivedPosition += count;
}

static void receiveAll(int fd, size_t count, int mixes) {
    size_t done = 0;
    while (done < count) {
        ssize_t result = recv(fd, received + done, count - done, mixes ? mode(fd, calls++) : 0);
        if (result > 0) done += (size_t)result;
        else if (result == 0 || !isPassing(mixes)) die("recv");
        else if (errno == EAGAIN) await(fd, POLLIN);
    }
    check(received, count);
}

static size_t pieces(struct iovec *vector, int count, unsigned char *start, unsigned long seed) {
    size_t used = 0;
    for (int number = 0; number < count; number++) {
        size_t length = (seed * 7919 + (unsigned long)number * 104729) % 3001;
        if (number % 9 == 0) length = 0;
        vector[number] = (struct iovec){start + used, length};
        used += length;
    }
    return used;
}

static size_t sendPieces(int fd, unsigned long round) {
    struct iovec vector[PIECES];
    size_t count = pieces(vector, PIECES, bytes, round);
    for (size_t index = 0; index < count; index++) bytes[index] = at(sentPosition + index);
    ssize_t result = writev(fd, vector, PIECES);
    if (result < 0) die("writev");
    sentPosition += (size_t)result;
    if ((size_t)result < count) sendAll(fd, count - (size_t)result, 0);
    return count;
}

static void receivePieces(int fd, unsigned long round) {
    struct iovec vector[PIECES];
    size_t left = pieces(vector, PIECES, received, round);
    while (left > 0) {
        size_t room = pieces(vector, 32, received, left);
        if (room > left) return receiveAll(fd, left, 0);
        ssize_t result = readv(fd, vector, 32);
        if (result <= 0) die("readv");
        check(received, (size_t)result);
        left -= (size_t)result;
    }
}

static void tick(int number) { (void)number, ticks++; }

/// The handler restarts interrupted calls in one half of the rounds and ends them in the other.
static void setHandler(int restarts) {
    struct sigaction action = {.sa_handler = tick, .sa_flags = restarts ? SA_RESTART : 0};
    sigaction(SIGALRM, &action, NULL);
}

int main(int count, char **arguments) {
    if (count != 5) return 2;
    int serves = !strcmp(arguments[1], "server");
    const char *shape = arguments[3];
    unsigned long rounds = strtoul(arguments[4], NULL, 10);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[2])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (serves) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (void *)&address, sizeof address) || listen(fd, 1)) die("listen");
        fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    } else if (connect(fd, (void *)&address, sizeof address)) {
        die("connect");
    }
    if (fd < 0) die("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int mixes = !strcmp(shape, "mixed") || !strcmp(shape, "signals");
    int alarms = !strcmp(shape, "signals");
    if (alarms) {
        setHandler(1);
        struct itimerval every = {{0, 1000}, {0, 1000}};
        setitimer(ITIMER_REAL, &every, NULL);
    }
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (unsigned long round = 0; round < rounds; round++) {
        if (alarms) setHandler(round % 64 < 32);
        if (mixes) {
            size_t size = 1 + round * 7919 % 60000;
            if (serves) receiveAll(fd, size, 1), sendAll(fd, size / 3 + 1, 1);
            else sendAll(fd, size, 1), receiveAll(fd, size / 3 + 1, 1);
        } else if (!strcmp(shape, "small")) {
            if (serves) receiveAll(fd, 7, 0), receiveAll(fd, BLOCK - 6, 0), sendAll(fd, 1, 0);
            else sendAll(fd, 1, 0), sendAll(fd, BLOCK, 0), receiveAll(fd, 1, 0);
        } else if (serves) {
            receivePieces(fd, round);
            if (round % 16 == 15) sendAll(fd, 1, 0);
        } else {
            sendPieces(fd, round);
            if (round % 16 == 15) receiveAll(fd, 1, 0);
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (alarms) {
        struct itimerval never = {0};
        setitimer(ITIMER_REAL, &never, NULL);
    }
    printf("done in %ld us, %lu bytes sent, %lu received, %d ticks, %lu interruptions\n",
           (end.tv_sec - start.tv_sec) * 1000000 + (end.tv_nsec - start.tv_nsec) / 1000, sentPosition, receivedPosition, (int)ticks,
           interruptions);
    fflush(stdout);
    while (read(0, received, sizeof received) > 0) {}
    return 0;
}
