// What the parts of the fuzzer share. The rules of the comparison stand at the head of oracle.c.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// The two worlds in which every step is taken: libc's own functions on TCP sockets that the switch never saw, and the
// interposed ones.
enum { NATIVE, SWITCHED, WORLDS };
// The two ends of the connection: the one that connected and the one that was accepted.
enum { CONNECTOR, ACCEPTOR, ENDS };
enum { MAXIMUM_ACTORS = 4, MAXIMUM_ALIASES = 4, MAXIMUM_STEPS = 256, EXTRAS = 40, BUFFER_BYTES = 2 << 20, NUMBERS = 1024 };

#define CALLS(X)                                                                                                      \
    X(ssize_t, read, (int, void *, size_t))                                                                           \
    X(ssize_t, write, (int, const void *, size_t))                                                                    \
    X(ssize_t, readv, (int, const struct iovec *, int))                                                               \
    X(ssize_t, writev, (int, const struct iovec *, int))                                                              \
    X(ssize_t, send, (int, const void *, size_t, int))                                                                \
    X(ssize_t, recv, (int, void *, size_t, int))                                                                      \
    X(ssize_t, sendto, (int, const void *, size_t, int, const struct sockaddr *, socklen_t))                          \
    X(ssize_t, recvfrom, (int, void *, size_t, int, struct sockaddr *, socklen_t *))                                  \
    X(ssize_t, sendmsg, (int, const struct msghdr *, int))                                                            \
    X(ssize_t, recvmsg, (int, struct msghdr *, int))                                                                  \
    X(int, sendmmsg, (int, struct mmsghdr *, unsigned, int))                                                          \
    X(int, recvmmsg, (int, struct mmsghdr *, unsigned, int, struct timespec *))                                       \
    X(ssize_t, sendfile, (int, int, off_t *, size_t))                                                                 \
    X(ssize_t, splice, (int, off64_t *, int, off64_t *, size_t, unsigned))                                            \
    X(int, socket, (int, int, int))                                                                                   \
    X(int, bind, (int, const struct sockaddr *, socklen_t))                                                           \
    X(int, listen, (int, int))                                                                                        \
    X(int, accept, (int, struct sockaddr *, socklen_t *))                                                             \
    X(int, connect, (int, const struct sockaddr *, socklen_t))                                                        \
    X(int, shutdown, (int, int))                                                                                      \
    X(int, close, (int))                                                                                              \
    X(int, dup, (int))                                                                                                \
    X(int, dup2, (int, int))                                                                                          \
    X(int, fcntl, (int, int, ...))                                                                                    \
    X(int, ioctl, (int, unsigned long, ...))                                                                          \
    X(int, getsockopt, (int, int, int, void *, socklen_t *))                                                          \
    X(int, setsockopt, (int, int, int, const void *, socklen_t))                                                      \
    X(int, getsockname, (int, struct sockaddr *, socklen_t *))                                                        \
    X(int, getpeername, (int, struct sockaddr *, socklen_t *))                                                        \
    X(int, poll, (struct pollfd *, nfds_t, int))                                                                      \
    X(int, ppoll, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *))                               \
    X(int, select, (int, fd_set *, fd_set *, fd_set *, struct timeval *))                                             \
    X(int, epoll_create1, (int))                                                                                      \
    X(int, epoll_ctl, (int, int, int, struct epoll_event *))                                                          \
    X(int, epoll_wait, (int, struct epoll_event *, int, int))

struct calls {
#define MEMBER(result, name, parameters) result(*name) parameters;
    CALLS(MEMBER)
#undef MEMBER
};
extern struct calls calls[WORLDS];

enum operation {
    SEND, WRITE, WRITEV, SENDTO, SENDMSG, SENDMMSG, SPLICE_IN, SENDFILE,
    RECV, READ, READV, RECVFROM, RECVMSG, SPLICE_OUT, RECVMMSG,
    POLL, SELECT, EPOLL_CTL, EPOLL_WAIT,
    SHUTDOWN, CLOSE, LINGER_CLOSE, DUP, NONBLOCK, SETSOCKOPT, GETSOCKOPT, IOCTL, NAMES, MISUSE,
    TOGGLE, FORK, LEAVE,
    OPERATIONS
};

// Of a step's `a`: the registration is edge-triggered.
enum { EDGE_BIT = 64 };
enum memory { GOOD, NOTHING, UNMAPPED, READ_ONLY, HALF };

// One call. Made from the seed alone, so that leaving out some steps does not change the others.
struct step {
    uint8_t operation, end, alias, actor, memory, waits, restarts, looks, pieces;
    uint32_t size;
    int32_t flags, a, b;
};

struct outcome {
    int64_t value;
    int32_t error, signals, extras;
    int32_t extra[EXTRAS];
    // Before an epoll_ctl, by which step the end was registered under this descriptor's number; 0: by none.
    int32_t registration;
    bool skipped, wrongBytes, isAmountFree, waited, onCompanion, carried, unacknowledged;
    uint64_t moved;
};

// What an end looks like from outside: the part that a program can see without changing anything.
struct view {
    int32_t open, events, queued, state;
    // Of the kernel's connection, at the other end: segments on their way, and times that one was sent again in vain.
    int32_t unacknowledged, retries;
    // Bytes that the kernel has been given here, and that have not been acknowledged.
    int32_t held;
};

#define NO_MARK UINT64_MAX

struct end {
    // Descriptors by process and alias; -1: none.
    int descriptor[MAXIMUM_ACTORS][MAXIMUM_ALIASES];
    uint64_t sent, received;
    // Where the last urgent byte that was sent to this end stands; `NO_MARK`: none was. It was the first one, and nothing was
    // sent with it; urgent bytes are ordinary ones here, before which a receive ends (SO_OOBINLINE).
    uint64_t mark;
    bool isMarkFirst, isInline;
    bool writeShut, readShut, over;
    // A send took less than it was given, and no edge has told of room since; much was under way since the last edge; the
    // registration (the step that made it) has told of room.
    bool full, crowded, toldRoom[MAXIMUM_STEPS];
    // How much the peer had sent when the registration last told of data.
    uint64_t toldData[MAXIMUM_STEPS];
    // More than `limit` has been under way to this end since an edge told of data.
    bool flooded;
    // TCP keeps back some of what is under way to this end.
    bool lags;
    // An option was set with which TCP tells again of what there is.
    bool retold;
    // Below this many bytes under way the amounts are TCP's to determine (see oracle.c); 0 once a buffer size was set.
    uint32_t limit;
};

struct plan {
    uint64_t seed;
    bool twoProcesses, moveFirst, noDelay, inet6, isUrgent;
    int count;
    struct step steps[MAXIMUM_STEPS];
};

struct statistics {
    uint64_t sequences, steps, skipped, dataCalls[ENDS], onCompanion[ENDS], splits, extraEdges;
    uint64_t byOperation[OPERATIONS];
};

struct shared {
    struct plan plan;
    bool enabled[MAXIMUM_STEPS];
    struct end ends[WORLDS][ENDS];
    int epoll[WORLDS][ENDS];
    struct outcome outcome[WORLDS];
    struct view view;
    bool alive[MAXIMUM_ACTORS];
    pid_t pid[MAXIMUM_ACTORS];
    int step, world;
    uint64_t lastSign;
    const char *phase;
    bool toggled, timed, stamped, differs, isError, isKernelFull[WORLDS];
    // The worlds have parted by what TCP leaves open, and are not compared any more.
    bool isOver;
    int failedStep;
    char verdict[4096], detail[300], room[WORLDS][200];
    char results[MAXIMUM_STEPS][256];
    struct statistics statistics;
};
extern struct shared *shared;

struct options {
    bool noBadPointers, noSplices, noExactRestarts, urgent, sharedEpoll, stacks;
    const char *service;
};
extern struct options options;

// steps.c
void make_plan(struct plan *, uint64_t seed);
bool takes_flags(int operation);
void describe(const struct step *, char *text, size_t size);
const char *operation_name(int operation);

// perform.c
void prepare_memory(void);
void install_handlers(void);
void perform(const struct step *, int world, int actor, struct outcome *);
void take_view(int world, int end, int actor, struct view *);
bool drain(int world, int end, int actor);
uint64_t kernel_written(int fd);
void describe_room(int fd, char *text, size_t size);

// oracle.c
uint64_t under_way(int world, int sender);
uint64_t until_mark(int world, int sender);
/// Whether nothing comes from an end any more: it has shut down its sending half, or nobody holds it.
bool has_ended(int world, int sender);
uint64_t begin_of_receive(const struct end *, uint64_t position, size_t size);
bool compare_outcomes(const struct step *, const struct outcome *native, const struct outcome *switched);
/// Of an urgent byte: TCP tells of it, though it has been passed (oracle.c, 12).
bool has_stayed_at_mark(int end, const struct view *native);
bool views_agree(int end, const struct view *native, const struct view *switched, bool isLate, bool isLast);
void differ(const char *format, ...) __attribute__((format(printf, 1, 2)));

// worlds.c
void run_plan(void);
int holder(int world, int end, int hint);
void forget_end(int world, int end);
void ask_service(const char *command);
uint64_t now_us(void);
