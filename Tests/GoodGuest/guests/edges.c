// Prints the result and errno of calls at the edges of the socket interface, on TCP sockets, on other descriptors and on
// none. With and without the library the output must be the same, descriptor numbers included.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wnonnull"

static void show(int line, const char *what, long result) {
    int error = result < 0 ? errno : 0;
    printf("%d %s = %ld %s\n", line, what, result, error ? strerrorname_np(error) : "");
    fflush(stdout);
}
#define SHOW(call) (errno = 0, show(__LINE__, #call, (long)(call)))

static char big[1 << 16];
// Pointers and counts that the compiler must not reason about.
static void *volatile null;
static void *volatile bad = (void *)8;

// A pair that has talked enough to be worth a companion. Its listener stays open.
static int connected(int family, int *server) {
    static int listeners[2] = {-1, -1};
    static union { struct sockaddr a; struct sockaddr_in v4; struct sockaddr_in6 v6; } addresses[2];
    int *listener = &listeners[family == AF_INET6];
    struct sockaddr *address = &addresses[family == AF_INET6].a;
    socklen_t length = family == AF_INET ? sizeof addresses->v4 : sizeof addresses->v6;
    if (*listener < 0) {
        address->sa_family = family;
        if (family == AF_INET) addresses[0].v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        else addresses[1].v6.sin6_addr = in6addr_loopback;
        *listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(*listener, address, length) < 0 || listen(*listener, 8) < 0) return -1;
        getsockname(*listener, address, &length);
    }
    int client = socket(family, SOCK_STREAM, IPPROTO_TCP);
    if (connect(client, address, length) < 0) return -1;
    *server = accept4(*listener, NULL, NULL, 0);
    // Without Nagle's delays what was written is there to read.
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    setsockopt(*server, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    char byte = 'a';
    for (int i = 0; i < 20; i++) {
        if (write(client, &byte, 1) != 1 || read(*server, &byte, 1) != 1) return -1;
        if (write(*server, &byte, 1) != 1 || read(client, &byte, 1) != 1) return -1;
    }
    return client;
}

static void numbers(void) {
    static const int fds[] = {-1, INT_MIN, INT_MAX, 1 << 18, 999};
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++) {
        int fd = fds[i];
        char byte[8] = {0};
        struct iovec v = {byte, 1};
        struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
        struct epoll_event e = {0};
        SHOW(read(fd, byte, 1));
        SHOW(write(fd, byte, 1));
        SHOW(readv(fd, &v, 1));
        SHOW(writev(fd, &v, 1));
        SHOW(recv(fd, byte, 1, 0));
        SHOW(send(fd, byte, 1, 0));
        SHOW(recvfrom(fd, byte, 1, 0, null, null));
        SHOW(sendto(fd, byte, 1, 0, null, 0));
        SHOW(recvmsg(fd, &m, 0));
        SHOW(sendmsg(fd, &m, 0));
        SHOW(sendfile(fd, 0, NULL, 1));
        SHOW(bind(fd, null, 0));
        SHOW(listen(fd, 1));
        SHOW(accept(fd, NULL, NULL));
        SHOW(accept4(fd, NULL, NULL, 0));
        SHOW(connect(fd, null, 0));
        SHOW(shutdown(fd, SHUT_RD));
        SHOW(getsockopt(fd, 0, 0, null, null));
        SHOW(setsockopt(fd, 0, 0, null, 0));
        SHOW(close(fd));
        SHOW(dup(fd));
        SHOW(dup2(fd, 5));
        SHOW(dup2(fd, fd));
        SHOW(dup2(0, fd == 999 ? -1 : fd));
        SHOW(dup3(fd, fd, 0));
        SHOW(dup3(fd, 5, O_CLOEXEC));
        SHOW(fcntl(fd, F_GETFL));
        SHOW(fcntl(fd, F_DUPFD, 0));
        SHOW(ioctl(fd, FIONREAD, byte));
        SHOW(epoll_ctl(fd, EPOLL_CTL_ADD, 0, &e));
        SHOW(epoll_wait(fd, &e, 1, 0));
        struct pollfd p = {fd, POLLIN, 0};
        SHOW(poll(&p, 1, 0));
        SHOW(p.revents);
    }
}

static void others(void) {
    char byte[64];
    int set = epoll_create1(EPOLL_CLOEXEC), file = open("/proc/self/exe", O_RDONLY), pair[2], pipes[2];
    struct epoll_event e = {.events = EPOLLIN};
    struct iovec v = {byte, 1};
    SHOW(set);
    SHOW(read(set, byte, 1));
    SHOW(read(set, byte, 0));
    SHOW(write(set, byte, 1));
    SHOW(readv(set, &v, 1));
    SHOW(writev(set, &v, 1));
    SHOW(recv(set, byte, 1, 0));
    SHOW(send(set, byte, 1, 0));
    SHOW(ioctl(set, FIONREAD, byte));
    SHOW(fcntl(set, F_GETFD));
    SHOW(getsockopt(set, SOL_SOCKET, SO_TYPE, byte, (socklen_t[]){4}));
    SHOW(accept(set, NULL, NULL));
    SHOW(shutdown(set, 2));
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, set, &e));
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, file, &e));
    SHOW(epoll_ctl(set, EPOLL_CTL_DEL, file, NULL));
    SHOW(epoll_ctl(set, 77, 0, &e));
    SHOW(epoll_wait(set, &e, 0, 0));
    SHOW(epoll_wait(set, &e, -1, 0));
    SHOW(epoll_wait(set, bad, 1, 0));
    SHOW(epoll_pwait(set, &e, 1, 0, NULL));
    SHOW(epoll_create(0));
    SHOW(epoll_create1(77));
    int again = dup(set);
    SHOW(again);
    SHOW(close(again));
    SHOW(dup2(set, set) == set);
    SHOW(dup2(set, 40));
    SHOW(epoll_wait(40, &e, 1, 0));
    SHOW(close(40));
    SHOW(close(set));
    SHOW(epoll_wait(set, &e, 1, 0));
    SHOW(recv(file, byte, 1, 0));
    SHOW(read(file, byte, 1));
    SHOW(write(file, byte, 1));
    SHOW(close(file));
    SHOW(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    SHOW(write(pair[0], "abc", 3));
    SHOW(recv(pair[1], byte, sizeof byte, MSG_PEEK));
    SHOW(read(pair[1], byte, sizeof byte));
    SHOW(close(pair[0]) + close(pair[1]));
    SHOW(pipe(pipes));
    SHOW(write(pipes[1], "abc", 3));
    SHOW(read(pipes[0], byte, 2));
    SHOW(close(pipes[0]));
    SHOW(write(pipes[1], "abc", 3));
    SHOW(close(pipes[1]));
    SHOW(socket(AF_INET, SOCK_DGRAM, 0));
    SHOW(close(3));
    SHOW(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    SHOW(socket(AF_INET, SOCK_STREAM | 0x10, 0));
    SHOW(socket(AF_INET, 77, 0));
    SHOW(socket(77, SOCK_STREAM, 0));
    SHOW(socket(AF_UNIX, SOCK_STREAM, 0));
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    SHOW(bind(3, (void *)&path, sizeof(sa_family_t)));
    SHOW(listen(3, 1));
    SHOW(fcntl(3, F_SETFL, O_NONBLOCK));
    SHOW(accept(3, NULL, NULL));
    SHOW(close(3));
}

static void stream(int family) {
    char byte[256] = {0};
    int server, client = connected(family, &server);
    printf("client %d server %d\n", client, server);
    struct sockaddr_storage name;
    socklen_t length = sizeof name;

    SHOW(read(client, byte, 0));
    SHOW(readv(client, (struct iovec[]){{byte, 0}}, 1));
    SHOW(readv(client, null, 0));
    SHOW(readv(client, null, 1));
    SHOW(readv(client, (struct iovec[]){{byte, 1}}, -1));
    SHOW(readv(client, (struct iovec[]){{byte, (size_t)-1}}, 1));
    static struct iovec many[1025];
    for (int i = 0; i < 1025; i++) many[i] = (struct iovec){byte, 1};
    SHOW(readv(client, many, 1025));
    SHOW(writev(client, many, 1025));
    SHOW(writev(client, many, -1));
    SHOW(writev(client, null, 0));
    SHOW(writev(client, null, 1));
    SHOW(writev(client, many, 0));
    SHOW(write(client, byte, 0));
    SHOW(send(client, byte, 0, 0));
    SHOW(write(client, null, 1));
    SHOW(send(client, null, 1, 0));
    SHOW(recv(client, byte, 1, MSG_DONTWAIT));
    SHOW(recvmsg(client, null, MSG_DONTWAIT));
    SHOW(sendmsg(client, null, 0));
    SHOW(sendmsg(client, &(struct msghdr){.msg_iov = many, .msg_iovlen = 1025}, 0));
    SHOW(recvmsg(client, &(struct msghdr){.msg_iov = many, .msg_iovlen = 1025}, MSG_DONTWAIT));

    SHOW(writev(client, many, 1024));
    SHOW(recv(server, big, 1024, MSG_WAITALL));
    SHOW(recv(server, byte, 1, MSG_DONTWAIT));
    SHOW(send(client, "hello", 5, MSG_MORE));
    SHOW(send(client, " world", 6, 0));
    SHOW(recv(server, byte, 11, MSG_PEEK) > 0);
    memset(&name, 77, sizeof name);
    SHOW(recvfrom(server, byte, 5, 0, (void *)&name, &length));
    SHOW(length);
    SHOW(((char *)&name)[0]);
    length = 3;
    SHOW(recvfrom(server, byte, 1, 0, null, &length));
    SHOW(length);
    SHOW(recvfrom(server, byte, 1, 0, (void *)&name, null));
    length = (socklen_t)-5;
    SHOW(recvfrom(server, byte, 1, 0, (void *)&name, &length));
    SHOW(length);
    SHOW(recv(server, byte, sizeof byte, 0));
    struct iovec v = {byte, sizeof byte};
    char control[128];
    struct msghdr m = {&name, sizeof name, &v, 1, control, sizeof control, 77};
    SHOW(send(client, "hello", 5, 0));
    SHOW(recvmsg(server, &m, 0));
    SHOW(m.msg_namelen);
    SHOW(m.msg_controllen);
    SHOW(m.msg_flags);
    m.msg_namelen = (socklen_t)-1;
    SHOW(recvmsg(server, &m, MSG_DONTWAIT));
    SHOW(recvmsg(server, &(struct msghdr){0}, MSG_DONTWAIT));
    SHOW(recv(server, byte, 1, MSG_ERRQUEUE));
    SHOW(recvfrom(server, byte, 1, MSG_ERRQUEUE, (void *)&name, &(socklen_t){sizeof name}));

    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    SHOW(sendto(client, "abc", 3, 0, (void *)&to, sizeof to));
    SHOW(sendto(client, "abc", 3, 0, (void *)&to, 0));
    SHOW(sendto(client, "abc", 3, 0, (void *)&to, 129));
    SHOW(sendto(client, "abc", 3, 0, (void *)&to, (socklen_t)-1));
    SHOW(sendto(client, "abc", 3, 0, null, 16));
    SHOW(recv(server, byte, 6, MSG_WAITALL));

    int left = -1;
    SHOW(recv(server, byte, sizeof byte, MSG_DONTWAIT));
    SHOW(recv(server, byte, sizeof byte, MSG_DONTWAIT));
    SHOW(write(client, "12345", 5));
    SHOW(poll(&(struct pollfd){server, POLLIN, 0}, 1, 1000));
    SHOW(recv(server, byte, 0, 0));
    SHOW(recv(server, byte, 0, MSG_DONTWAIT));
    SHOW(recvmsg(server, &(struct msghdr){0}, 0));
    SHOW(read(server, byte, 0));
    SHOW(recv(server, byte, sizeof byte, MSG_PEEK));
    SHOW(recv(server, byte, 2, MSG_PEEK | MSG_TRUNC));
    SHOW(writev(client, (struct iovec[]){{null, 3}}, 1));
    SHOW(readv(server, (struct iovec[]){{null, 3}}, 1));
    SHOW(sendmsg(client, &(struct msghdr){.msg_iov = (struct iovec[]){{byte, (size_t)-1}}, .msg_iovlen = 1}, 0));
    SHOW(sendmsg(client, &(struct msghdr){.msg_name = byte, .msg_namelen = -1}, 0));
    SHOW(ioctl(server, FIONREAD, &left));
    SHOW(left);
    SHOW(ioctl(server, 0xdeadbeef, &left));
    SHOW(ioctl(server, FIONREAD, bad));
    SHOW(read(server, byte, sizeof byte));
    SHOW(ioctl(server, FIONBIO, &(int){1}));
    SHOW(fcntl(server, F_GETFL) & O_NONBLOCK);
    SHOW(read(server, byte, sizeof byte));
    SHOW(readv(server, many, 3));
    SHOW(fcntl(server, F_SETFL, 0));
    SHOW(fcntl(server, F_GETFD));
    SHOW(fcntl(server, F_SETFD, FD_CLOEXEC));
    SHOW(fcntl(server, F_GETFD));
    SHOW(fcntl(server, 9999, 1));
    SHOW(fcntl(server, F_DUPFD_CLOEXEC, 100));
    SHOW(fcntl(server, F_DUPFD, -1));
    SHOW(write(100, "x", 1));
    SHOW(recv(client, byte, 1, 0));
    SHOW(close(100));
    SHOW(write(100, "x", 1));

    SHOW(dup2(server, server) == server);
    SHOW(dup3(server, server, 0));
    SHOW(dup3(server, 50, 77));
    SHOW(dup3(server, 50, O_CLOEXEC));
    SHOW(fcntl(50, F_GETFD));
    SHOW(dup2(50, -1));
    SHOW(dup2(50, INT_MAX));
    SHOW(write(50, "y", 1));
    SHOW(recv(client, byte, 1, 0));
    SHOW(dup2(0, 50));
    SHOW(send(50, "y", 1, 0) < 0);
    SHOW(close(dup(server)));
    SHOW(close_range(6, 5, 0));
    SHOW(close_range(50, 60, 0));
    SHOW(fcntl(50, F_GETFD));

    int value = -1;
    length = sizeof value;
    SHOW(getsockopt(client, SOL_SOCKET, SO_TYPE, &value, &length));
    SHOW(value);
    SHOW(getsockopt(client, SOL_SOCKET, SO_ERROR, &value, &length));
    SHOW(value);
    SHOW(getsockopt(client, IPPROTO_TCP, TCP_NODELAY, &value, &length));
    SHOW(value);
    SHOW(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
    SHOW(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, 1));
    SHOW(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, null, 4));
    SHOW(setsockopt(client, IPPROTO_TCP, 7777, &value, 4));
    SHOW(getsockopt(client, IPPROTO_TCP, TCP_NODELAY, &value, &length));
    SHOW(value);
    SHOW(getsockopt(client, SOL_SOCKET, 7777, &value, &length));
    SHOW(getsockopt(client, SOL_SOCKET, SO_TYPE, &value, null));
    SHOW(connect(client, (void *)&to, sizeof to));
    SHOW(listen(client, 1));
    SHOW(accept(client, NULL, NULL));
    SHOW(bind(client, (void *)&to, sizeof to));

    int file = open("/proc/self/exe", O_RDONLY);
    off_t offset = 1;
    SHOW(sendfile(client, file, &offset, 3));
    SHOW(offset);
    SHOW(recv(server, byte, 3, MSG_WAITALL));
    SHOW(memcmp(byte, "ELF", 3));
    SHOW(sendfile(client, server, NULL, 3));
    SHOW(sendfile(client, -1, NULL, 3));
    SHOW(close(file));

    SHOW(shutdown(client, 77));
    SHOW(shutdown(client, SHUT_WR));
    SHOW(shutdown(client, SHUT_WR));
    SHOW(write(client, "abc", 3));
    SHOW(send(client, "abc", 3, MSG_NOSIGNAL));
    SHOW(send(client, byte, 0, MSG_NOSIGNAL));
    SHOW(read(server, byte, sizeof byte));
    SHOW(read(server, byte, sizeof byte));
    SHOW(write(server, "still", 5));
    SHOW(recv(client, byte, sizeof byte, 0));
    SHOW(close(server));
    SHOW(recv(client, byte, sizeof byte, 0));
    SHOW(shutdown(client, SHUT_RDWR));
    SHOW(close(client));
    SHOW(close(client));
    SHOW(read(client, byte, 1));
}

static void waiting(void) {
    char byte[64];
    int server, client = connected(AF_INET, &server);
    struct pollfd list[3] = {{server, POLLIN | POLLOUT | POLLRDHUP, 0}, {-1, POLLIN, 77}, {client, POLLIN, 0}};
    SHOW(poll(list, 3, 0));
    SHOW(list[0].revents);
    SHOW(list[1].revents);
    SHOW(list[2].revents);
    SHOW(poll(list + 2, 1, 5));
    SHOW(poll(NULL, 0, 1));
    SHOW(poll(null, 1, 1));
    SHOW(poll(null, 0, 1));
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    SHOW(poll(list, limit.rlim_cur + 1, 0));
    SHOW(poll(list, (nfds_t)-1, 0));
    SHOW(ppoll(list + 2, 1, &(struct timespec){0, 1000}, NULL));
    SHOW(ppoll(list + 2, 1, &(struct timespec){0, -1}, NULL));
    SHOW(ppoll(list + 2, 1, &(struct timespec){-1, 0}, NULL));
    SHOW(ppoll(list + 2, 1, &(struct timespec){0, 1000000000}, NULL));

    fd_set reading, writing, except;
    struct timeval time = {0, 1000};
#define SETS \
    do { \
        FD_ZERO(&reading); \
        FD_ZERO(&writing); \
        FD_ZERO(&except); \
        FD_SET(client, &reading); \
        FD_SET(server, &writing); \
    } while (0)
    SETS;
    SHOW(select(server + 1, &reading, &writing, &except, &time));
    SHOW(FD_ISSET(client, &reading));
    SHOW(FD_ISSET(server, &writing));
    SETS;
    time = (struct timeval){0, 2000};
    SHOW(select(client + 1, &reading, NULL, NULL, &time));
    SHOW(time.tv_sec * 1000000 + time.tv_usec);
    SETS;
    SHOW(select(client + 1, &reading, NULL, NULL, &(struct timeval){0, 0}));
    SHOW(FD_ISSET(client, &reading));
    SETS;
    SHOW(select(client + 1, &reading, NULL, NULL, &(struct timeval){-1, 0}));
    SHOW(select(client + 1, &reading, NULL, NULL, &(struct timeval){0, -1}));
    SHOW(select(client + 1, &reading, NULL, NULL, &(struct timeval){0, 1000001}) >= 0 ? 0 : -1);
    SETS;
    SHOW(select(-1, &reading, NULL, NULL, &(struct timeval){0, 0}));
    SHOW(select(0, &reading, NULL, NULL, &(struct timeval){0, 0}));
    SETS;
    struct timespec wait = {0, 1000000};
    SHOW(pselect(client + 1, &reading, NULL, NULL, &wait, NULL));
    SHOW(wait.tv_nsec);
    SHOW(pselect(client + 1, &reading, NULL, NULL, &(struct timespec){0, -1}, NULL));
    SHOW(write(server, "abc", 3));
    SETS;
    SHOW(select(server + 1, &reading, &writing, &except, NULL));
    SHOW(FD_ISSET(client, &reading));

    int set = epoll_create(1);
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.u64 = 0x123456789abcdef}, got[4];
    SHOW(epoll_ctl(set, EPOLL_CTL_MOD, client, &e));
    SHOW(epoll_ctl(set, EPOLL_CTL_DEL, client, &e));
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, client, NULL));
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, client, &e));
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, client, &e));
    SHOW(epoll_wait(set, got, 4, 1000));
    SHOW(got[0].events);
    SHOW(got[0].data.u64 == e.data.u64);
    SHOW(epoll_wait(set, got, 0, 0));
    SHOW(epoll_pwait(set, got, 4, -1, NULL));
    SHOW(epoll_pwait2(set, got, 4, &(struct timespec){0, 0}, NULL));
    SHOW(epoll_pwait2(set, got, 4, &(struct timespec){0, -1}, NULL));
    SHOW(read(client, byte, sizeof byte));
    SHOW(epoll_wait(set, got, 4, 2));
    e.events = EPOLLOUT | EPOLLONESHOT;
    SHOW(epoll_ctl(set, EPOLL_CTL_MOD, client, &e));
    SHOW(epoll_wait(set, got, 4, 1000));
    SHOW(epoll_wait(set, got, 4, 0));
    e.events = EPOLLIN | EPOLLRDHUP;
    SHOW(epoll_ctl(set, EPOLL_CTL_MOD, client, &e));
    SHOW(close(server));
    SHOW(epoll_wait(set, got, 4, 1000));
    SHOW(got[0].events);
    SHOW(epoll_ctl(set, EPOLL_CTL_DEL, client, NULL));
    SHOW(epoll_wait(set, got, 4, 0));
    SHOW(close(set));
    SHOW(close(client));
}

// Several messages at once, and the calls that work past the socket interface.
static void multiple(void) {
    char bytes[64];
    int server, client = connected(AF_INET, &server), pipes[2];
    struct iovec v[4] = {{"ab", 2}, {"cde", 3}, {bytes, 4}, {bytes + 4, 4}};
    struct mmsghdr list[4] = {{{.msg_iov = v, .msg_iovlen = 2}}, {{.msg_iov = v + 1, .msg_iovlen = 1}},
        {{.msg_iov = v + 2, .msg_iovlen = 1}}, {{.msg_iov = v + 3, .msg_iovlen = 1}}};
    SHOW(sendmmsg(client, list, 2, 0));
    SHOW(list[0].msg_len);
    SHOW(list[1].msg_len);
    SHOW(recvmmsg(server, list + 2, 2, MSG_WAITALL, null));
    SHOW(list[2].msg_len);
    SHOW(list[3].msg_len);
    SHOW(memcmp(bytes, "abcdecde", 8));
    SHOW(recvmmsg(server, list + 2, 2, MSG_DONTWAIT, null));
    SHOW(sendmmsg(client, list, 1, 0));
    SHOW(recvmmsg(server, list + 2, 2, MSG_WAITFORONE, null));
    SHOW(list[2].msg_len);
    SHOW(sendmmsg(client, list, 2, 0));
    SHOW(recv(server, bytes, 4, MSG_WAITALL));
    struct timespec time = {1, 0};
    SHOW(recvmmsg(server, list + 2, 1, 0, &time));
    SHOW(sendmmsg(client, null, 1, 0));
    SHOW(sendmmsg(client, list, 0, 0));
    SHOW(recvmmsg(server, list, 0, 0, null));
    SHOW(recvmmsg(server, list + 2, 1, MSG_DONTWAIT, &(struct timespec){-1, 0}));
    SHOW(sendmmsg(-1, list, 1, 0));
    SHOW(recvmmsg(-1, list, 1, 0, null));
    SHOW(pipe(pipes));
    SHOW(splice(-1, null, pipes[1], null, 3, 0));
    SHOW(splice(pipes[0], null, pipes[1], null, 3, SPLICE_F_NONBLOCK));
    SHOW(close(client) + close(server));

    // A socket fresh from connect.
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(bind(listener, (void *)&address, length) + listen(listener, 1) + getsockname(listener, (void *)&address, &length));
    client = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(connect(client, (void *)&address, length));
    server = accept(listener, NULL, NULL);
    SHOW(write(client, "spliced", 7));
    SHOW(splice(server, null, pipes[1], null, 7, 0));
    SHOW(read(pipes[0], bytes, 7));
    SHOW(write(pipes[1], "spliced", 7));
    SHOW(splice(pipes[0], null, client, null, 7, 0));
    SHOW(recv(server, bytes, 7, MSG_WAITALL));
    FILE *file = fdopen(server, "r+");
    setvbuf(file, NULL, _IOLBF, 0);
    char line[64];
    for (int i = 0; i < 40; i++) {
        sprintf(line, "line %d\n", i);
        if (write(client, line, strlen(line)) < 0 || !fgets(bytes, sizeof bytes, file) || strcmp(bytes, line)) SHOW(-1L);
        fputs(line, file);
        fflush(file);
        if (recv(client, bytes, strlen(line), MSG_WAITALL) != strlen(line)) SHOW(-1L);
    }
    SHOW(fclose(file));
    SHOW(recv(client, bytes, 1, 0));
    // The number that fclose freed is a file's now.
    int reused = open("/proc/self/exe", O_RDONLY);
    SHOW(reused == server);
    SHOW(read(reused, bytes, 4));
    SHOW(readv(reused, (struct iovec[]){{bytes, 4}}, 1));
    SHOW(write(reused, bytes, 4));
    SHOW(recv(reused, bytes, 4, 0));
    SHOW(close(reused));
    SHOW(fdopen(-1, "r") == NULL);
    SHOW(close(pipes[0]) + close(pipes[1]) + close(client) + close(listener));
}

// The address arguments of accept.
static void accepting(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    union { struct sockaddr_in v4; char bytes[128]; } peer;
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    SHOW(accept(listener, NULL, NULL));
    SHOW(bind(listener, (void *)&address, sizeof address));
    SHOW(bind(listener, (void *)&address, sizeof address));
    SHOW(listen(listener, 16));
    SHOW(getsockname(listener, (void *)&address, &length));
    SHOW(accept(listener, NULL, NULL));
    SHOW(accept4(listener, NULL, NULL, 77));
    static const socklen_t lengths[] = {0, 3, 16, 128, (socklen_t)-1};
    for (int i = 0; i < 7; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        SHOW(connect(client, (void *)&address, sizeof address));
        SHOW(connect(client, (void *)&address, sizeof address));
        SHOW(poll(&(struct pollfd){listener, POLLIN, 0}, 1, 1000));
        memset(&peer, 77, sizeof peer);
        length = i < 5 ? lengths[i] : 16;
        void *place = i == 5 ? null : &peer;
        int server;
        SHOW(server = accept4(listener, place, i == 6 ? null : &length, i & 1 ? SOCK_CLOEXEC | SOCK_NONBLOCK : 0));
        SHOW(length);
        SHOW(peer.bytes[0]);
        SHOW(peer.bytes[5]);
        SHOW(fcntl(server, F_GETFD));
        SHOW(fcntl(server, F_GETFL));
        SHOW(close(server));
        SHOW(close(client));
    }
    int client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    SHOW(connect(client, (void *)&address, 3));
    SHOW(connect(client, null, sizeof address));
    SHOW(connect(client, (void *)&address, sizeof address));
    SHOW(poll(&(struct pollfd){client, POLLOUT, 0}, 1, 1000));
    SHOW(connect(client, (void *)&address, sizeof address));
    SHOW(connect(client, (void *)&address, sizeof address));
    SHOW(close(client));
    SHOW(close(listener));
    client = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(connect(client, (void *)&address, sizeof address));
    SHOW(close(client));
}

static volatile int alarms;
static void on_alarm(int signal) { alarms += signal == SIGALRM; }
static void tick(void) {
    struct itimerval once = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &once, NULL);
}

// Which calls a signal interrupts, by how its handler was installed. A restarted call would wait for ever, so a child
// sends a byte after the alarm.
static void interrupted(const char *how, int restarts) {
    char byte;
    int server, client = connected(AF_INET, &server);
    alarms = 0;
    pid_t child = 0;
    if (restarts && (child = fork()) == 0) {
        usleep(120000);
        _exit(write(server, "x", 1) != 1);
    }
    printf("%s\n", how);
    tick();
    SHOW(read(client, &byte, 1));
    SHOW(alarms);
    int status = -1;
    if (child) {
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
        SHOW(status);
    }
    tick();
    SHOW(poll(&(struct pollfd){client, POLLIN, 0}, 1, 2000));
    tick();
    fd_set set;
    FD_ZERO(&set);
    FD_SET(client, &set);
    SHOW(select(client + 1, &set, NULL, NULL, NULL));
    SHOW(FD_ISSET(client, &set));
    SHOW(alarms);
    int epoll = epoll_create1(0);
    SHOW(epoll_ctl(epoll, EPOLL_CTL_ADD, client, &(struct epoll_event){.events = EPOLLIN}));
    tick();
    SHOW(epoll_wait(epoll, &(struct epoll_event){0}, 1, 2000));
    sigset_t blocked, none;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    kill(getpid(), SIGALRM);
    SHOW(poll(&(struct pollfd){client, POLLIN, 0}, 1, 1));
    SHOW(ppoll(&(struct pollfd){client, POLLIN, 0}, 1, NULL, &none));
    kill(getpid(), SIGALRM);
    SHOW(epoll_pwait(epoll, &(struct epoll_event){0}, 1, -1, &none));
    kill(getpid(), SIGALRM);
    SHOW(pselect(client + 1, &set, NULL, NULL, NULL, &none));
    sigprocmask(SIG_UNBLOCK, &blocked, NULL);
    SHOW(alarms);
    struct timeval limit = {0, 30000};
    SHOW(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    SHOW(recv(client, &byte, 1, 0));
    close(epoll);
    close(client);
    close(server);
}

static void signals(void) {
    struct sigaction action = {.sa_handler = on_alarm}, old;
    SHOW(sigaction(SIGALRM, NULL, &old));
    SHOW(old.sa_handler == SIG_DFL);
    SHOW(sigaction(SIGALRM, &action, &old));
    interrupted("sigaction", 0);
    action.sa_flags = SA_RESTART;
    SHOW(sigaction(SIGALRM, &action, &old));
    SHOW(old.sa_flags & SA_RESTART);
    interrupted("sigaction, SA_RESTART", 1);
    SHOW(signal(SIGALRM, on_alarm) == on_alarm);
    interrupted("signal", 1);
    SHOW(siginterrupt(SIGALRM, 1));
    interrupted("siginterrupt 1", 0);
    SHOW(siginterrupt(SIGALRM, 0));
    interrupted("siginterrupt 0", 1);
    SHOW(sigaction(0, &action, NULL));
    SHOW(sigaction(65, &action, NULL));
    SHOW(sigaction(SIGKILL, &action, NULL));
    SHOW(signal(SIGKILL, on_alarm) == SIG_ERR);
    SHOW(errno == EINVAL);
    SHOW(signal(SIGALRM, SIG_IGN) == on_alarm);
    SHOW(signal(SIGALRM, SIG_DFL) == SIG_IGN);
    SHOW(sysv_signal(SIGALRM, on_alarm) == SIG_DFL);
    SHOW(sigaction(SIGALRM, NULL, &old));
    SHOW(old.sa_flags & (SA_RESTART | SA_NODEFER));
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    numbers();
    others();
    stream(AF_INET);
    stream(AF_INET6);
    multiple();
    accepting();
    waiting();
    signals();
    closefrom(3);
    printf("%d\n", socket(AF_INET, SOCK_STREAM, 0));
    return 0;
}
