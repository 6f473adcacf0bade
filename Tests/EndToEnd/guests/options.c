// Flags, options, ends and interruptions: what each call returns, and what it leaves behind.
#include "carriers.h"
#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/resource.h>

static char got[1 << 20];

static void expect(int fd, const char *text) {
    long count = recv(fd, got, strlen(text), MSG_WAITALL);
    say("%s %ld %s\n", text, count, count < 0 ? strerrorname_np(errno) : memcmp(got, text, strlen(text)) ? "different" : "the same");
}

// Until the socket is readable: what was sent on it before is then there, whatever carried it.
static void await(int fd, short events) {
    struct pollfd p = {fd, events, 0};
    int ready = poll(&p, 1, 5000);
    say("ready %d %x\n", ready, p.revents);
}

static void await_bytes(int fd, int count) {
    int queued = -1;
    for (int i = 0; i < 5000 && queued < count; i++) {
        ioctl(fd, FIONREAD, &queued);
        if (queued < count) usleep(1000);
    }
    say("queued %d\n", queued);
}

static void peeking(void) {
    struct ends e = make_ends();
    SHOW(write(e.client, "0123456789", 10));
    await_bytes(e.server, 10);
    SHOW(recv(e.server, got, 4, MSG_PEEK));
    SHOW(recv(e.server, got, 64, MSG_PEEK));
    SHOW(memcmp(got, "0123456789", 10));
    SHOW(recv(e.server, got, 10, MSG_PEEK | MSG_WAITALL));
    SHOW(recv(e.server, got, 20, MSG_PEEK | MSG_DONTWAIT));
    SHOW(recv(e.server, got, 20, MSG_PEEK | MSG_WAITALL | MSG_DONTWAIT));
    struct iovec v[3] = {{got, 3}, {got + 3, 0}, {got + 3, 60}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 3};
    SHOW(recvmsg(e.server, &m, MSG_PEEK));
    SHOW(recv(e.server, got, 3, MSG_TRUNC));
    SHOW(recv(e.server, got, 3, MSG_PEEK | MSG_TRUNC));
    SHOW(recv(e.server, got, 64, 0));
    SHOW(memcmp(got, "3456789", 7));
    SHOW(recv(e.server, got, 64, MSG_PEEK | MSG_DONTWAIT));
    // MSG_PEEK with MSG_WAITALL waits for all.
    pid_t child = fork();
    if (!child) {
        usleep(20000);
        write(e.client, "abc", 3);
        usleep(20000);
        write(e.client, "def", 3);
        _exit(0);
    }
    SHOW(recv(e.server, got, 6, MSG_PEEK | MSG_WAITALL));
    SHOW(recv(e.server, got, 6, MSG_WAITALL));
    SHOW(memcmp(got, "abcdef", 6));
    waitpid(child, NULL, 0);
    SHOW(write(e.client, "xy", 2));
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(recv(e.server, got, 6, MSG_PEEK | MSG_WAITALL));
    SHOW(recv(e.server, got, 6, MSG_WAITALL));
    SHOW(recv(e.server, got, 6, MSG_PEEK));
    SHOW(recv(e.server, got, 6, MSG_WAITALL));
    close_ends(e);
}

static void flags(void) {
    struct ends e = make_ends();
    char control[256];
    struct iovec v = {got, 64};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    SHOW(recv(e.server, got, 1, MSG_DONTWAIT));
    SHOW(recv(e.server, got, 1, MSG_OOB));
    SHOW(recv(e.server, got, 1, MSG_OOB | MSG_DONTWAIT));
    SHOW(recv(e.server, got, 1, MSG_ERRQUEUE));
    SHOW(recvmsg(e.server, &m, MSG_ERRQUEUE | MSG_DONTWAIT));
    SHOW(send(e.client, "more", 4, MSG_MORE));
    SHOW(send(e.client, "end", 3, MSG_NOSIGNAL | MSG_DONTROUTE));
    expect(e.server, "moreend");
    SHOW(send(e.client, "eor", 3, MSG_EOR));
    SHOW(send(e.client, "confirm", 7, MSG_CONFIRM));
    expect(e.server, "eorconfirm");
    SHOW(send(e.client, "zero", 4, MSG_ZEROCOPY));
    expect(e.server, "zero");
    SHOW(recv(e.server, got, 1, MSG_DONTWAIT));
    SHOW(send(e.client, "cmsg", 4, 0));
    m.msg_controllen = sizeof control;
    m.msg_flags = -1;
    SHOW(recvmsg(e.server, &m, MSG_CMSG_CLOEXEC));
    say("%d %zu\n", m.msg_flags, m.msg_controllen);
    SHOW(sendmsg(e.client, &(struct msghdr){.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 8}, 0));
    memset(control, 0, sizeof control);
    struct cmsghdr *c = (void *)control;
    c->cmsg_len = CMSG_LEN(4);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    SHOW(sendmsg(e.client, &(struct msghdr){.msg_iov = &(struct iovec){"rights", 6}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(4)}, 0));
    c->cmsg_type = 77;
    SHOW(sendmsg(e.client, &(struct msghdr){.msg_iov = &(struct iovec){"unknown", 7}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(4)}, 0));
    c->cmsg_len = 3;
    SHOW(sendmsg(e.client, &(struct msghdr){.msg_iov = &(struct iovec){"short", 5}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(4)}, 0));
    SHOW(sendmsg(e.client, &(struct msghdr){.msg_iov = &(struct iovec){"bad", 3}, .msg_iovlen = 1, .msg_control = (void *)8, .msg_controllen = 20}, 0));
    SHOW(recv(e.server, got, 64, MSG_DONTWAIT) > 0 ? 1 : -1);
    SHOW(send(e.client, got, 0, 0));
    SHOW(send(e.client, got, 0, MSG_DONTWAIT));
    SHOW(write(e.client, got, 0));
    SHOW(writev(e.client, &(struct iovec){got, 0}, 1));
    SHOW(read(e.server, got, 0));
    SHOW(recv(e.server, got, 0, MSG_DONTWAIT));
    SHOW(recv(e.server, got, 1, MSG_DONTWAIT | 0x8000000));
    close_ends(e);
}

static void waiting_for_all(void) {
    struct ends e = make_ends();
    SHOW(setsockopt(e.server, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 40000}, sizeof(struct timeval)));
    uint64_t start = milliseconds();
    SHOW(recv(e.server, got, 10, 0));
    SHOW(milliseconds() - start >= 35);
    SHOW(write(e.client, "abc", 3));
    start = milliseconds();
    SHOW(recv(e.server, got, 10, MSG_WAITALL));
    SHOW(milliseconds() - start >= 35);
    SHOW(recv(e.server, got, 10, MSG_WAITALL));
    SHOW(read(e.server, got, 10));
    struct iovec v[2] = {{got, 2}, {got + 2, 8}};
    SHOW(write(e.client, "defg", 4));
    SHOW(recvmsg(e.server, &(struct msghdr){.msg_iov = v, .msg_iovlen = 2}, MSG_WAITALL));
    SHOW(memcmp(got, "defg", 4));
    SHOW(write(e.client, "h", 1));
    SHOW(recv(e.server, got, 3, MSG_WAITALL | MSG_PEEK));
    SHOW(recv(e.server, got, 3, MSG_WAITALL));
    SHOW(setsockopt(e.server, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 0}, sizeof(struct timeval)));
    SHOW(write(e.client, "ij", 2));
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(recv(e.server, got, 10, MSG_WAITALL));
    SHOW(recv(e.server, got, 10, MSG_WAITALL));
    close_ends(e);
}

// Writes until nothing more goes, and goes on going nowhere (TCP's buffers grow).
static long fill(int fd) {
    long sent = 0, result;
    for (int idle = 0; idle < 4;) {
        struct pollfd p = {fd, POLLOUT, 0};
        if (poll(&p, 1, 30) != 0) idle = 0;
        result = send(fd, got, 50000, MSG_DONTWAIT);
        if (result > 0) sent += result, idle = 0;
        else if (errno != EAGAIN) fail("send");
        else idle++;
    }
    return sent;
}

// A writer that nobody reads: how much goes is the carrier's business, how it ends is not.
static void full(void) {
    struct ends e = make_ends();
    memset(got, 'f', sizeof got);
    SHOW(fcntl(e.client, F_SETFL, O_NONBLOCK));
    long sent = fill(e.client), result;
    SHOW(write(e.client, got, 50000));
    SHOW(send(e.client, got, 1 << 20, MSG_WAITALL));
    SHOW(writev(e.client, (struct iovec[]){{got, 100000}, {got, 100000}, {got, 100000}}, 3));
    struct pollfd p = {e.client, POLLOUT, 0};
    SHOW(poll(&p, 1, 0));
    SHOW(fcntl(e.client, F_SETFL, 0));
    SHOW(send(e.client, got, 1 << 20, MSG_DONTWAIT));
    SHOW(setsockopt(e.client, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){0, 30000}, sizeof(struct timeval)));
    uint64_t start = milliseconds();
    SHOW(write(e.client, got, 1 << 20));
    SHOW(milliseconds() - start >= 25);
    SHOW(writev(e.client, (struct iovec[]){{got, 100000}, {got, 100000}, {got, 100000}}, 3));
    long received = 0;
    while ((result = recv(e.server, got, sizeof got, MSG_DONTWAIT)) > 0) received += result;
    for (int i = 0; i < 200 && received < sent; i++) {
        usleep(5000);
        while ((result = recv(e.server, got, sizeof got, MSG_DONTWAIT)) > 0) received += result;
    }
    SHOW(received - sent);
    SHOW(write(e.client, "again", 5));
    expect(e.server, "again");
    close_ends(e);
}

static volatile int signals_seen, jumps;
static sigjmp_buf back;
static void count_signal(int signal) {
    signals_seen++;
    if (jumps) siglongjmp(back, 1);
}

static void handle(int signal, int flags) {
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = flags};
    sigaction(signal, &action, NULL);
}

static void ends_of_streams(void) {
    signal(SIGPIPE, SIG_DFL);
    handle(SIGPIPE, SA_RESTART);
    signals_seen = 0;
    for (int way = 0; way < 9; way++) {
        struct ends e = make_ends();
        int error = -1;
        socklen_t length = sizeof error;
        say("way %d\n", way);
        if (way == 0) close(e.server);  // a plain end
        if (way == 1) {  // with bytes that the other end had not read
            SHOW(write(e.client, "unread", 6));
            await_bytes(e.server, 6);
            close(e.server);
        }
        if (way == 2) {  // with bytes for the other end
            SHOW(write(e.server, "goodbye", 7));
            close(e.server);
        }
        if (way == 3) {  // both
            SHOW(write(e.client, "unread", 6));
            await_bytes(e.server, 6);
            SHOW(write(e.server, "goodbye", 7));
            close(e.server);
        }
        if (way == 4 || way == 5) {  // by a reset
            if (way == 5) SHOW(write(e.server, "goodbye", 7));
            SHOW(setsockopt(e.server, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)));
            close(e.server);
        }
        if (way == 6) {  // lingering
            SHOW(write(e.server, "goodbye", 7));
            SHOW(setsockopt(e.server, SOL_SOCKET, SO_LINGER, &(struct linger){1, 2}, sizeof(struct linger)));
            SHOW(close(e.server));
        }
        if (way == 7) SHOW(shutdown(e.server, SHUT_WR));
        if (way == 8) SHOW(shutdown(e.server, SHUT_RDWR));
        await(e.client, POLLIN | POLLRDHUP);
        if (way == 3 || way == 1) SHOW(getsockopt(e.client, SOL_SOCKET, SO_ERROR, &error, &length) ?: error != 0);
        SHOW(recv(e.client, got, 64, 0));
        SHOW(recv(e.client, got, 64, 0));
        SHOW(recv(e.client, got, 64, MSG_DONTWAIT));
        SHOW(getsockopt(e.client, SOL_SOCKET, SO_ERROR, &error, &length));
        SHOW(error);
        SHOW(write(e.client, "one", 3));
        usleep(2000);
        SHOW(write(e.client, "two", 3));
        usleep(2000);
        SHOW(send(e.client, "three", 5, MSG_NOSIGNAL));
        SHOW(write(e.client, "four", 4));
        SHOW(getsockopt(e.client, SOL_SOCKET, SO_ERROR, &error, &length));
        SHOW(error);
        SHOW(recv(e.client, got, 64, 0));
        if (way >= 7) SHOW(recv(e.server, got, 64, MSG_DONTWAIT));
        SHOW(signals_seen);
        signals_seen = 0;
        await(e.client, POLLIN | POLLOUT | POLLRDHUP);
        close(e.client);
        if (way >= 7) close(e.server);
    }
}

static void half_closed(void) {
    struct ends e = make_ends();
    signals_seen = 0;
    handle(SIGPIPE, SA_RESTART);
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(write(e.client, "x", 1));
    SHOW(send(e.client, "x", 1, MSG_NOSIGNAL));
    SHOW(send(e.client, "x", 0, 0));
    SHOW(sendfile(e.client, open("/proc/self/exe", O_RDONLY), NULL, 10));
    SHOW(signals_seen);
    SHOW(recv(e.server, got, 64, 0));
    for (int i = 0; i < 3; i++) {
        SHOW(write(e.server, "still", 5));
        expect(e.client, "still");
    }
    SHOW(shutdown(e.client, SHUT_RD));
    SHOW(recv(e.client, got, 64, 0));
    SHOW(shutdown(e.client, 3));
    SHOW(shutdown(e.client, -1));
    close_ends(e);

    e = make_ends();
    SHOW(write(e.server, "before", 6));
    await_bytes(e.client, 6);
    SHOW(shutdown(e.client, SHUT_RD));
    await(e.client, POLLIN | POLLRDHUP);
    SHOW(recv(e.client, got, 64, 0));
    SHOW(recv(e.client, got, 64, 0));
    SHOW(recv(e.client, got, 64, MSG_DONTWAIT));
    SHOW(write(e.client, "out", 3));
    expect(e.server, "out");
    SHOW(write(e.server, "after", 5));
    await_bytes(e.client, 5);
    SHOW(recv(e.client, got, 64, 0));
    SHOW(recv(e.client, got, 64, 0));
    close_ends(e);
}

static void connected_already(void) {
    struct ends e = make_ends();
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    SHOW(connect(e.client, (void *)&address, sizeof address));
    SHOW(connect(e.client, NULL, 0));
    SHOW(sendto(e.client, "to", 2, 0, (void *)&address, sizeof address));
    SHOW(sendto(e.client, "fast", 4, MSG_FASTOPEN, (void *)&address, sizeof address));
    expect(e.server, "to");
    SHOW(recv(e.server, got, 64, MSG_DONTWAIT));
    SHOW(listen(e.client, 1));
    SHOW(accept(e.client, NULL, NULL));
    SHOW(bind(e.client, (void *)&address, sizeof address));
    SHOW(connect(e.client, &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr)));
    SHOW(write(e.client, "x", 1));
    SHOW(recv(e.client, got, 1, 0));
    SHOW(recv(e.server, got, 64, 0));
    SHOW(recv(e.server, got, 64, 0));
    close_ends(e);
}

static void values(void) {
    struct ends e = make_ends();
    static const struct { int level, name, value; const char *text; } options[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"}, {SOL_SOCKET, SO_SNDBUF, 8192, "SO_SNDBUF"}, {SOL_SOCKET, SO_RCVBUF, 8192, "SO_RCVBUF"},
        {SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"}, {SOL_SOCKET, SO_PRIORITY, 3, "SO_PRIORITY"}, {SOL_SOCKET, SO_MARK, 3, "SO_MARK"},
        {SOL_SOCKET, SO_BUSY_POLL, 10, "SO_BUSY_POLL"}, {SOL_SOCKET, SO_TIMESTAMP, 1, "SO_TIMESTAMP"}, {SOL_SOCKET, SO_RCVLOWAT, 1, "SO_RCVLOWAT"},
        {SOL_SOCKET, SO_SNDLOWAT, 1, "SO_SNDLOWAT"}, {SOL_SOCKET, SO_BROADCAST, 1, "SO_BROADCAST"}, {SOL_SOCKET, SO_DONTROUTE, 1, "SO_DONTROUTE"},
        {IPPROTO_TCP, TCP_NODELAY, 0, "TCP_NODELAY"}, {IPPROTO_TCP, TCP_CORK, 1, "TCP_CORK"}, {IPPROTO_TCP, TCP_QUICKACK, 1, "TCP_QUICKACK"},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, 5000, "TCP_USER_TIMEOUT"}, {IPPROTO_TCP, TCP_KEEPIDLE, 50, "TCP_KEEPIDLE"}, {IPPROTO_TCP, TCP_KEEPINTVL, 5, "TCP_KEEPINTVL"},
        {IPPROTO_TCP, TCP_KEEPCNT, 5, "TCP_KEEPCNT"}, {IPPROTO_TCP, TCP_LINGER2, 5, "TCP_LINGER2"}, {IPPROTO_TCP, TCP_DEFER_ACCEPT, 5, "TCP_DEFER_ACCEPT"},
        {IPPROTO_TCP, TCP_WINDOW_CLAMP, 65536, "TCP_WINDOW_CLAMP"}, {IPPROTO_TCP, TCP_MAXSEG, 1000, "TCP_MAXSEG"}, {IPPROTO_TCP, TCP_SYNCNT, 5, "TCP_SYNCNT"},
        {IPPROTO_TCP, TCP_FASTOPEN, 5, "TCP_FASTOPEN"}, {IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1, "TCP_FASTOPEN_CONNECT"}, {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 65536, "TCP_NOTSENT_LOWAT"},
        {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1, "TCP_THIN_LINEAR_TIMEOUTS"}, {IPPROTO_TCP, TCP_INQ, 1, "TCP_INQ"}, {IPPROTO_TCP, TCP_TIMESTAMP, 1, "TCP_TIMESTAMP"},
        {IPPROTO_IP, IP_TOS, 16, "IP_TOS"}, {IPPROTO_IP, IP_TTL, 50, "IP_TTL"}, {IPPROTO_TCP, 7777, 1, "unknown"}, {IPPROTO_IPV6, IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
    };
    for (unsigned i = 0; i < sizeof options / sizeof *options; i++) {
        int value = options[i].value;
        socklen_t length = sizeof value;
        say("%s ", options[i].text);
        SHOW(setsockopt(e.client, options[i].level, options[i].name, &value, sizeof value));
        value = -1;
        SHOW(getsockopt(e.client, options[i].level, options[i].name, &value, &length));
        if (options[i].name != TCP_TIMESTAMP && options[i].name != TCP_MAXSEG) SHOW(value);
        SHOW(write(e.client, "out", 3));
        expect(e.server, "out");
        SHOW(write(e.server, "in", 2));
        expect(e.client, "in");
        if (options[i].name == TCP_CORK && options[i].level == IPPROTO_TCP) setsockopt(e.client, IPPROTO_TCP, TCP_CORK, &(int){0}, sizeof(int));
    }
    int value;
    socklen_t length = sizeof value;
    SHOW(setsockopt(e.client, IPPROTO_TCP, TCP_ULP, "nothing", 7));
    SHOW(setsockopt(e.client, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    SHOW(getsockopt(e.client, SOL_SOCKET, SO_ERROR, &value, &length));
    SHOW(value);
    SHOW(write(e.client, "out", 3));
    expect(e.server, "out");
    close_ends(e);
}

// Options that need the kernel's own stream, set on a connection that has moved, with bytes under way.
static void kernel_options(void) {
    for (int way = 0; way < 4; way++) {
        struct ends e = make_ends();
        say("way %d\n", way);
        SHOW(write(e.client, "0123456789", 10));
        await_bytes(e.server, 10);
        if (way == 0) {
            SHOW(setsockopt(e.server, SOL_SOCKET, SO_RCVLOWAT, &(int){20}, sizeof(int)));
            SHOW(poll(&(struct pollfd){e.server, POLLIN, 0}, 1, 20));
            SHOW(write(e.client, "0123456789", 10));
            SHOW(poll(&(struct pollfd){e.server, POLLIN, 0}, 1, 2000));
            SHOW(recv(e.server, got, 64, 0));
            SHOW(write(e.client, "0123456789", 10));
        }
        if (way == 1) {
            SHOW(setsockopt(e.server, SOL_SOCKET, SO_PEEK_OFF, &(int){2}, sizeof(int)));
            SHOW(recv(e.server, got, 3, MSG_PEEK));
            SHOW(memcmp(got, "234", 3));
            SHOW(recv(e.server, got, 3, MSG_PEEK));
            SHOW(memcmp(got, "567", 3));
        }
        if (way == 2) {
            SHOW(setsockopt(e.client, SOL_SOCKET, SO_ZEROCOPY, &(int){1}, sizeof(int)));
            SHOW(send(e.client, "zero", 4, MSG_ZEROCOPY));
            await(e.client, POLLERR);
            char control[256];
            SHOW(recvmsg(e.client, &(struct msghdr){.msg_control = control, .msg_controllen = sizeof control}, MSG_ERRQUEUE));
            expect(e.server, "0123456789zero");
            SHOW(write(e.client, "0123456789", 10));
        }
        if (way == 3) {
            static char *mapping;
            struct { uint64_t address; uint32_t length, skip, inq; int32_t error; uint64_t copy; int32_t copied; uint32_t flags; uint64_t control, bytes; uint32_t cflags, reserved; } z = {0};
            socklen_t length = sizeof z;
            mapping = mmap(NULL, 65536, PROT_READ, MAP_SHARED, e.server, 0);
            z.address = (uintptr_t)mapping;
            z.length = 65536;
            z.copy = (uintptr_t)got;
            z.copied = 64;
            SHOW(getsockopt(e.server, IPPROTO_TCP, 35, &z, &length));
            say("skip %u copied %d\n", z.skip, z.copied);
            munmap(mapping, 65536);
            SHOW(write(e.client, "0123456789", 10));
        }
        expect(e.server, "0123456789");
        SHOW(write(e.server, "back", 4));
        expect(e.client, "back");
        close_ends(e);
    }
}

// More of them, each set in the middle of a stream.
static void kernel_filters(void) {
    struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, 0xffffffff);
    struct sock_fprog program = {1, &all};
    for (int way = 0; way < 5; way++) {
        struct ends e = make_ends();
        say("way %d\n", way);
        SHOW(write(e.client, "before ", 7));
        await_bytes(e.server, 7);
        if (way == 0) SHOW(setsockopt(e.server, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
        if (way == 1) SHOW(setsockopt(e.server, SOL_SOCKET, SO_ATTACH_BPF, &(int){-1}, sizeof(int)));
        if (way == 2) SHOW(setsockopt(e.server, SOL_SOCKET, SO_TIMESTAMPNS, &(int){1}, sizeof(int)));
        if (way == 3) SHOW(setsockopt(e.server, SOL_SOCKET, SO_TIMESTAMPING, &(int){SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE}, sizeof(int)));
        if (way == 4) {
            SHOW(setsockopt(e.server, IPPROTO_TCP, TCP_REPAIR, &(int){7}, sizeof(int)));
            SHOW(setsockopt(e.server, IPPROTO_TCP, TCP_REPAIR, &(int){1}, sizeof(int)) == 0 || errno == EPERM);
            SHOW(setsockopt(e.server, IPPROTO_TCP, TCP_REPAIR, &(int){-1}, sizeof(int)) == 0 || errno == EPERM);
        }
        expect(e.server, "before ");
        SHOW(write(e.client, "after", 5));
        await_bytes(e.server, 5);
        char control[256];
        struct msghdr message = {.msg_iov = &(struct iovec){got, 64}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        // (Whether a time comes with it depends on how long any socket of the host has wanted times.)
        SHOW(recvmsg(e.server, &message, 0));
        SHOW(write(e.server, "back", 4));
        expect(e.client, "back");
        close_ends(e);
    }
}

// A list that is longer than an fd_set, and than most programs' limit of descriptors.
static void long_lists(void) {
    struct ends e = make_ends();
    struct rlimit before, higher;
    getrlimit(RLIMIT_NOFILE, &before);
    higher = before;
    higher.rlim_cur = before.rlim_max < 5000 ? before.rlim_max : 5000;
    setrlimit(RLIMIT_NOFILE, &higher);
    static struct pollfd list[3000];
    for (int i = 0; i < 3000; i++) list[i] = (struct pollfd){i % 3 == 0 ? e.server : i % 3 == 1 ? e.client : -1, i % 3 == 1 ? POLLOUT : POLLIN, 0};
    SHOW(poll(list, 3000, 0));
    SHOW(write(e.client, "x", 1));
    await(e.server, POLLIN);
    SHOW(poll(list, 3000, 1000));
    SHOW(list[2997].revents);
    SHOW(list[2998].revents);
    SHOW(list[2999].revents);
    expect(e.server, "x");
    for (int i = 1; i < 3000; i += 3) list[i].fd = -1;
    SHOW(poll(list, 3000, 20));
    SHOW(poll(list, 6000, 0));
    setrlimit(RLIMIT_NOFILE, &before);
    close_ends(e);
}

// Sets of 1,024 bits and a count that is far longer: the kernel stops at the end of the process's table of descriptors. A set
// ends where no memory is, or is followed by bytes that must stay.
static int calls_select(int how, int n, fd_set *read_set, fd_set *write_set, fd_set *except_set, int milliseconds) {
    struct timeval limit = {milliseconds / 1000, milliseconds % 1000 * 1000};
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    extern int __select(int, fd_set *, fd_set *, fd_set *, struct timeval *);
    switch (how) {
    case 0: return select(n, read_set, write_set, except_set, &limit);
    case 1: return pselect(n, read_set, write_set, except_set, &time, NULL);
    case 2: return __select(n, read_set, write_set, except_set, &limit);
    case 3: return syscall(SYS_pselect6, n, read_set, write_set, except_set, &time, NULL);
#ifdef SYS_select
    case 4: return syscall(SYS_select, n, read_set, write_set, except_set, &limit);
#endif
    default: return select(n, read_set, write_set, except_set, &limit);
    }
}

static void select_counts(int *pipe_ends, struct ends e, char *sets, int room, int n) {
    for (int how = 0; how < 5; how++) {
        for (int which = 0; which < 3; which++) {
            memset(sets, 0x5a, 3 * room);
            fd_set *set[3];
            for (int i = 0; i < 3; i++) {
                set[i] = (void *)(sets + i * room);
                FD_ZERO(set[i]);
            }
            if (which != 1) FD_SET(pipe_ends[0], set[0]), FD_SET(pipe_ends[1], set[1]);
            if (which != 0) FD_SET(e.server, set[0]), FD_SET(e.client, set[1]), FD_SET(e.server, set[2]);
            errno = 0;
            int ready = calls_select(how, n, set[0], set[1], set[2], 1000);
            int damage = 0;
            for (int i = 0; i < 3; i++)
                for (int at = sizeof(fd_set); at < room; at++) damage += ((char *)set[i])[at] != 0x5a;
            say("%d %d: %d %s, %d%d %d%d%d, %d bytes changed\n", how, which, ready, ready < 0 ? strerrorname_np(errno) : "",
                FD_ISSET(pipe_ends[0], set[0]), FD_ISSET(pipe_ends[1], set[1]), FD_ISSET(e.server, set[0]),
                FD_ISSET(e.client, set[1]), FD_ISSET(e.server, set[2]), damage);
            if (ready < 0 || damage) failures++;
            // At the very end of what is mapped, one after the other; and none at all.
            char *last = sets + 3 * room;
            for (int i = 0; i < 3; i++) {
                fd_set *end = (void *)(last - sizeof(fd_set));
                FD_ZERO(end);
                if (i == 1) FD_SET(which ? e.client : pipe_ends[1], end);
                else FD_SET(which ? e.server : pipe_ends[0], end);
                errno = 0;
                ready = calls_select(how, n, i == 0 ? end : NULL, i == 1 ? end : NULL, i == 2 ? end : NULL, i == 2 ? 0 : 1000);
                say("%d %d at the end: %d %s\n", how, i, ready, ready < 0 ? strerrorname_np(errno) : "");
                if (ready != (i != 2)) failures++;
            }
        }
        SHOW(calls_select(how, n, NULL, NULL, NULL, 1));
    }
}

// Until another descriptor is EMFILE. 0 gives them back.
static void take_descriptors(int take) {
    static struct rlimit before;
    static int taken[128], count;
    if (take) {
        getrlimit(RLIMIT_NOFILE, &before);
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){128, before.rlim_max});
        for (count = 0; count < 128 && (taken[count] = dup(1)) >= 0;) count++;
        SHOW(dup(1));
    } else {
        setrlimit(RLIMIT_NOFILE, &before);
        while (count > 0) close(taken[--count]);
    }
}

static void short_sets(void) {
    struct ends e = make_ends();
    int pipe_ends[2], room = 16384;
    if (pipe(pipe_ends)) fail("pipe");
    struct rlimit before, higher;
    getrlimit(RLIMIT_NOFILE, &before);
    higher = before;
    higher.rlim_cur = before.rlim_max < 1 << 20 ? before.rlim_max : 1 << 20;
    setrlimit(RLIMIT_NOFILE, &higher);
    char *sets = mmap(NULL, 3 * room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (sets == MAP_FAILED || mprotect(sets + 3 * room, 4096, PROT_NONE)) fail("mprotect");
    SHOW(write(pipe_ends[1], "x", 1));
    SHOW(write(e.client, "x", 1));
    await(e.server, POLLIN);
    select_counts(pipe_ends, e, sets, room, getdtablesize());
    select_counts(pipe_ends, e, sets, room, 1 << 20);
    select_counts(pipe_ends, e, sets, room, 1025);
    select_counts(pipe_ends, e, sets, room, 1024);
    take_descriptors(1);
    select_counts(pipe_ends, e, sets, room, 1 << 20);
    take_descriptors(0);
    munmap(sets, 3 * room + 4096);
    expect(e.server, "x");
    setrlimit(RLIMIT_NOFILE, &before);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    close_ends(e);
}

// The same with a table that really is longer, and with sets that are as long: in a child, since a table stays as long as
// it was.
static void long_sets_in_child(struct ends e) {
    int pipe_ends[2];
    if (pipe(pipe_ends)) fail("pipe");
    struct rlimit higher;
    getrlimit(RLIMIT_NOFILE, &higher);
    if (higher.rlim_cur < 5000) higher.rlim_cur = higher.rlim_max < 5000 ? higher.rlim_max : 5000;
    setrlimit(RLIMIT_NOFILE, &higher);
    int server = fcntl(e.server, F_DUPFD, 2500), client = fcntl(e.client, F_DUPFD, 2510), other = dup2(pipe_ends[0], 2600);
    SHOW(server);
    SHOW(client);
    SHOW(other);
    SHOW(write(pipe_ends[1], "x", 1));
    static uint64_t sets[2][1 << 14];
#define LONG_BIT(set, fd) (sets[set][(fd) / 64] >> (fd) % 64 & 1)
    int counts[12] = {3000, 2501, 2511, 4096, getdtablesize(), 1 << 20};
    for (int at = 0; at < 12; at++) {
        if (at == 6) take_descriptors(1);
        counts[at] = counts[at % 6];
        for (int how = 0; how < 5; how++) {
            memset(sets, 0, sizeof sets);
            sets[0][server / 64] |= 1ull << server % 64;
            sets[0][other / 64] |= 1ull << other % 64;
            sets[1][client / 64] |= 1ull << client % 64;
            errno = 0;
            int ready = calls_select(how, counts[at], (void *)sets[0], (void *)sets[1], NULL, 1000);
            if (ready != (counts[at] > server) + (counts[at] > other) + (counts[at] > client)) failures++;
            say("%d %d: %d %s %d%d%d\n", at, how, ready, ready < 0 ? strerrorname_np(errno) : "", (int)LONG_BIT(0, server),
                (int)LONG_BIT(0, other), (int)LONG_BIT(1, client));
            // The pipe alone, and a number that is closed.
            memset(sets, 0, sizeof sets);
            sets[0][other / 64] |= 1ull << other % 64;
            SHOW(calls_select(how, counts[at], (void *)sets[0], NULL, NULL, counts[at] > other ? 1000 : 0));
            sets[0][2400 / 64] |= 1ull << 2400 % 64;
            SHOW(calls_select(how, counts[at], (void *)sets[0], NULL, NULL, 0));
        }
    }
    // Beyond the table: overlooked.
    memset(sets, 0, sizeof sets);
    sets[0][5000 / 64] |= 1ull << 5000 % 64;
    int ready = select(6000, (void *)sets[0], NULL, NULL, &(struct timeval){0, 0});
    SHOW(ready);
    if (ready != 0 || !LONG_BIT(0, 5000)) failures++;
}

static void long_sets(void) {
    struct ends e = make_ends();
    SHOW(write(e.client, "x", 1));
    await(e.server, POLLIN);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        // What it says reaches its parent.
        said_bytes[carrier] = failures = 0;
        long_sets_in_child(e);
        _exit(write(e.server, said[carrier], said_bytes[carrier]) < 0 || failures);
    }
    int status = -1;
    char text[1 << 14];
    long count = 0, more;
    while (waitpid(child, &status, WNOHANG) == 0) {
        more = recv(e.client, text + count, sizeof text - 1 - count, MSG_DONTWAIT);
        if (more > 0) count += more;
        else usleep(1000);
    }
    while ((more = recv(e.client, text + count, sizeof text - 1 - count, MSG_DONTWAIT)) > 0) count += more;
    text[count] = 0;
    failures += status != 0;
    say("%s%x\n", text, status);
    expect(e.server, "x");
    close_ends(e);
}

// A signal every so often, until the call that it is to interrupt has returned: one alone could come before the call.
static void tick(int milliseconds) {
    setitimer(ITIMER_REAL, &(struct itimerval){{0, milliseconds * 1000}, {0, milliseconds * 1000}}, NULL);
}

// What begins a connection, and who owns one.
static void beginnings(void) {
    struct sockaddr_in address;
    int listener = make_listener(&address), client = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(setsockopt(listener, IPPROTO_TCP, TCP_FASTOPEN, &(int){5}, sizeof(int)));
    SHOW(setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &(int){1}, sizeof(int)));
    SHOW(sendto(client, "first", 5, MSG_FASTOPEN, (void *)&address, sizeof address));
    int server = accept(listener, NULL, NULL);
    expect(server, "first");
    SHOW(write(server, "back", 4));
    expect(client, "back");
    close_ends((struct ends){client, server});
    handle(SIGALRM, 0);
    tick(20);
    SHOW(accept(listener, NULL, NULL));
    SHOW(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    handle(SIGALRM, SA_RESTART);
    client = socket(AF_INET, SOCK_STREAM, 0);
    pid_t child = fork();
    if (!child) {
        usleep(100000);
        _exit(connect(client, (void *)&address, sizeof address) < 0 || write(client, "x", 1) != 1);
    }
    server = accept(listener, NULL, NULL);
    tick(0);
    SHOW(server > 0);
    int status = 1;
    while (waitpid(child, &status, 0) < 0) {}
    SHOW(status);
    SHOW(ioctl(server, SIOCSPGRP, &(int){getpid()}));
    int owner = 0;
    SHOW(ioctl(server, SIOCGPGRP, &owner));
    SHOW(owner == getpid());
    SHOW(fcntl(server, F_GETOWN) == getpid());
    SHOW(ioctl(server, SIOCSPGRP, &(int){1 << 30}));
    expect(server, "x");
    close_ends((struct ends){client, server});
    close(listener);
}

// Who writes to `fd` after a while is a child.
static pid_t later(int fd, const char *text, int milliseconds) {
    pid_t child = fork();
    if (!child) {
        usleep(milliseconds * 1000);
        _exit(write(fd, text, strlen(text)) < 0);
    }
    return child;
}

static void reap(pid_t child) {
    while (waitpid(child, NULL, 0) < 0) {}
}

static void set_patience(int fd, int option, long seconds, long microseconds) {
    SHOW(setsockopt(fd, SOL_SOCKET, option, &(struct timeval){seconds, microseconds}, sizeof(struct timeval)));
}

// Time-outs that are over before they begin, and those that nobody lives to see.
static void strange_patience(void) {
    static char much[64 << 20];
    struct ends e = make_ends();
    pid_t child;
    for (int round = 0; round < 2; round++) {
        set_patience(e.server, SO_RCVTIMEO, -1, 0);
        uint64_t start = milliseconds();
        SHOW(recv(e.server, got, 10, 0));
        SHOW(read(e.server, got, 10));
        SHOW(recv(e.server, got, 10, MSG_WAITALL | MSG_PEEK));
        SHOW(milliseconds() - start < 1000);
        SHOW(write(e.client, "abc", 3));
        await(e.server, POLLIN);
        SHOW(recv(e.server, got, 10, MSG_WAITALL));
        static const struct timeval long_ones[] = {{INT64_MAX / 1000000, INT64_MAX % 1000000}, {18446744074, 0}, {4000000001, 0}, {0, 0}};
        for (int i = 0; i < 4; i++) {
            set_patience(e.server, SO_RCVTIMEO, long_ones[i].tv_sec, long_ones[i].tv_usec);
            child = later(e.client, "late", 50);
            SHOW(recv(e.server, got, 10, 0));
            reap(child);
        }
    }
    // What is accepted inherits it.
    struct sockaddr_in address;
    int listener = make_listener(&address);
    set_patience(listener, SO_SNDTIMEO, -5, 0);
    struct ends inherits = make_ends_at(listener, &address);
    long sent = write(inherits.server, much, sizeof much);
    SHOW(sent > 0 && sent < (long)sizeof much);
    close(listener);
    close_ends(inherits);
    set_patience(e.client, SO_SNDTIMEO, -1, 0);
    sent = write(e.client, much, sizeof much);
    SHOW(sent > 0 && sent < (long)sizeof much);
    SHOW(fill(e.client) >= 0);
    SHOW(write(e.client, much, sizeof much));
    close_ends(e);
}

static pid_t stop_soon(void) {
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        usleep(100000);
        kill(getppid(), SIGSTOP);
        usleep(50000);
        _exit(kill(getppid(), SIGCONT) != 0);
    }
    return child;
}

// Stopped in a call, and continued: it ends if it has a time-out or has done a part, and goes on if not.
static void stops(void) {
    static char much[64 << 20];
    struct ends e = make_ends();
    pid_t child = stop_soon(), writer = later(e.client, "abc", 400);
    SHOW(recv(e.server, got, 10, 0));
    reap(child), reap(writer);
    SHOW(write(e.client, "ab", 2));
    child = stop_soon();
    SHOW(recv(e.server, got, 6, MSG_WAITALL));
    reap(child);
    SHOW(write(e.client, "ab", 2));
    child = stop_soon();
    SHOW(recv(e.server, got, 6, MSG_WAITALL | MSG_PEEK));
    reap(child);
    SHOW(recv(e.server, got, 6, 0));
    set_patience(e.server, SO_RCVTIMEO, 5, 0);
    child = stop_soon();
    SHOW(recv(e.server, got, 10, 0));
    reap(child);
    child = stop_soon();
    long sent = write(e.client, much, sizeof much);
    SHOW(sent > 0 && sent < (long)sizeof much);
    reap(child);
    set_patience(e.client, SO_SNDTIMEO, 5, 0);
    SHOW(fill(e.client) >= 0);
    child = stop_soon();
    SHOW(write(e.client, much, sizeof much));
    reap(child);
    close_ends(e);
}

static void show_edges(int set) {
    struct epoll_event found[4];
    int count = epoll_wait(set, found, 4, 0);
    say("%d edges", count);
    for (int i = 0; i < count; i++) say(" %d: %x", found[i].data.u32, found[i].events);
    say("\n");
}

// The end of a stream is one edge for each registration, however many others have been told of it.
static void edges_of_several(void) {
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        int sets[2], other = -1;
        for (int i = 0; i < 2; i++) {
            sets[i] = epoll_create1(0);
            SHOW(epoll_ctl(sets[i], EPOLL_CTL_ADD, e.server, &(struct epoll_event){EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {.u32 = 1}}));
            show_edges(sets[i]);
        }
        if (way == 0) SHOW(shutdown(e.client, SHUT_WR));
        if (way == 1) close(e.client), e.client = -1;
        if (way == 2) {
            SHOW(setsockopt(e.client, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)));
            close(e.client), e.client = -1;
        }
        await(e.server, POLLRDHUP);
        for (int round = 0; round < 2; round++) {
            for (int i = 0; i < 2; i++) show_edges(sets[i]);
            SHOW(poll(&(struct pollfd){e.server, POLLPRI, 0}, 1, 0));
            SHOW(poll(&(struct pollfd){e.server, POLLIN | POLLRDHUP, 0}, 1, 0));
        }
        // A registration that comes later has an edge of its own, and the others none.
        other = dup(e.server);
        SHOW(epoll_ctl(sets[0], EPOLL_CTL_ADD, other, &(struct epoll_event){EPOLLIN | EPOLLRDHUP | EPOLLET, {.u32 = 2}}));
        for (int round = 0; round < 2; round++) for (int i = 0; i < 2; i++) show_edges(sets[i]);
        close(other), close(sets[0]), close(sets[1]);
        close_ends(e);
    }
}

// What a fired registration leaves behind, when its number is gone and a child keeps the socket, is nobody else's.
static void left_behind(void) {
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        int other = dup(e.server), set = epoll_create1(0);
        pid_t child = fork();
        if (!child) pause();
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &(struct epoll_event){EPOLLIN | EPOLLRDHUP | EPOLLET | EPOLLONESHOT, {.u32 = 1}}));
        SHOW(shutdown(e.server, SHUT_RDWR));
        show_edges(set);
        if (way == 0) SHOW(dup2(other, e.server) == e.server);
        if (way == 1) SHOW(close(e.server));
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, other, &(struct epoll_event){EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLONESHOT, {.u32 = 2}}));
        show_edges(set);
        show_edges(set);
        if (way == 1) SHOW(dup2(other, e.server) == e.server);
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &(struct epoll_event){EPOLLIN, {.u32 = 3}}));
        SHOW(epoll_ctl(set, EPOLL_CTL_MOD, e.server, &(struct epoll_event){EPOLLIN, {.u32 = 4}}));
        show_edges(set);
        kill(child, SIGKILL);
        reap(child);
        close(set), close(other);
        close_ends(e);
    }
}

/// A child keeps the socket, and with it what the kernel has of the registration. What that reports is not told as the next
/// socket's event.
static void left_to_a_child(void) {
    for (int way = 0; way < 2; way++) {
        int own = carrier, set = epoll_create1(EPOLL_CLOEXEC);
        // What has fired is silent; what has not is told as the program registered it (on TCP).
        if (way == 1) carrier = 0;
        struct ends e = make_ends();
        carrier = own;
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &(struct epoll_event){EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, {.u32 = 1}}));
        if (way == 0) {
            SHOW(write(e.client, "x", 1));
            show_edges(set);
        }
        pid_t child = fork();
        if (!child) pause();
        SHOW(close(e.server));
        carrier = 0;
        struct ends other = make_ends();
        carrier = own;
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, other.server, &(struct epoll_event){EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, {.u32 = 2}}));
        SHOW(shutdown(e.client, SHUT_WR));
        struct epoll_event event;
        int count = epoll_wait(set, &event, 1, 100);
        if (count != way || (count == 1 && event.data.u32 != 1)) say("carrier %d: %d events, data %u\n", carrier, count, event.data.u32);
        SHOW(write(other.client, "y", 1));
        show_edges(set);
        kill(child, SIGKILL);
        reap(child);
        close(set), close(e.client);
        close_ends(other);
    }
}

/// That something is urgent is told with whatever else there is, however soon poll and select are called again.
static void urgent_and_more(void) {
    struct ends e = make_ends();
    SHOW(write(e.client, "data", 4));
    SHOW(send(e.client, "u", 1, MSG_OOB));
    struct pollfd urgent = {e.server, POLLIN | POLLPRI, 0};
    while (!(urgent.revents & POLLPRI) && poll(&urgent, 1, 0) >= 0) {}
    for (int i = 0; i < 4; i++) {
        int found = poll(&urgent, 1, i % 2 ? 50 : 0);
        say("%d: %x\n", found, urgent.revents);
    }
    for (int i = 0; i < 4; i++) {
        fd_set in, except;
        FD_ZERO(&in);
        FD_ZERO(&except);
        FD_SET(e.server, &in);
        FD_SET(e.server, &except);
        int found = select(e.server + 1, &in, NULL, &except, &(struct timeval){0, i % 2 ? 50000 : 0});
        say("%d: %d %d\n", found, FD_ISSET(e.server, &in) != 0, FD_ISSET(e.server, &except) != 0);
    }
    close_ends(e);
}

/// Who splices what only the ring has gets another connection, behind a relay: urgent bytes and their marks come through it.
static void urgent_through_a_relay(void) {
    static char much[70000];
    struct ends e = make_ends();
    int pipes[2], queued = 0;
    if (pipe(pipes) < 0) fail("pipe");
    SHOW(write(e.server, much, sizeof much));
    SHOW(write(pipes[1], "x", 1));
    SHOW(splice(pipes[0], NULL, e.server, NULL, 1, 0));
    SHOW(recv(e.client, much, 100, MSG_WAITALL));
    SHOW(splice(e.client, NULL, pipes[1], NULL, 1, 0));
    SHOW(recv(e.client, much, sizeof much - 100, MSG_WAITALL));
    int ends[][2] = {{e.client, e.server}, {e.server, e.client}};
    for (int i = 0; i < 4; i++) {
        int from = ends[i % 2][0], to = ends[i % 2][1];
        SHOW(send(from, "urgent!", i < 2 ? 7 : 1, MSG_OOB));
        struct pollfd urgent = {to, POLLPRI, 0};
        SHOW(poll(&urgent, 1, 2000));
        SHOW(urgent.revents);
        SHOW(ioctl(to, FIONREAD, &queued));
        SHOW(queued);
        if (i < 2) SHOW(recv(to, got, 64, 0));
        SHOW(recv(to, got, 1, MSG_OOB));
        SHOW(got[0]);
        SHOW(write(from, "more", 4));
        SHOW(recv(to, got, 64, 0));
        SHOW(got[0]);
    }
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(recv(e.server, got, 64, 0));
    close(pipes[0]), close(pipes[1]);
    close_ends(e);
}

/// Who has shut down both halves is still there when the other end splices what it sent: told of no reset, but of what comes.
static void spliced_after_both_halves(void) {
    struct ends e = make_ends();
    int pipes[2], error = 0;
    socklen_t length = sizeof error;
    if (pipe(pipes) < 0) fail("pipe");
    SHOW(write(e.server, "rest of it", 10));
    SHOW(shutdown(e.server, SHUT_RDWR));
    SHOW(splice(e.client, NULL, pipes[1], NULL, 4, 0));
    for (int i = 0; i < 2; i++) {
        usleep(50000);
        struct pollfd left = {e.server, POLLIN | POLLOUT | POLLRDHUP, 0};
        SHOW(poll(&left, 1, 0));
        SHOW(left.revents);
        SHOW(getsockopt(e.server, SOL_SOCKET, SO_ERROR, &error, &length));
        SHOW(error);
        if (i == 0) SHOW(recv(e.client, got, 64, 0));
        if (i == 0) SHOW(recv(e.client, got, 64, 0));
        if (i == 0) SHOW(send(e.client, "x", 1, MSG_NOSIGNAL));
    }
    SHOW(send(e.client, "x", 1, MSG_NOSIGNAL));
    close(pipes[0]), close(pipes[1]);
    close_ends(e);
}

static void interruptions(void) {
    static const int ways[] = {0, SA_RESTART};
    for (int i = 0; i < 2; i++) {
        struct ends e = make_ends();
        say("flags %x\n", ways[i]);
        handle(SIGALRM, ways[i]);
        signals_seen = 0;
        tick(20);
        pid_t child = later(e.client, "late", 120);
        SHOW(recv(e.server, got, 64, 0));
        tick(0);
        SHOW(signals_seen > 0);
        while (waitpid(child, NULL, 0) < 0) {}
        if (!ways[i]) SHOW(recv(e.server, got, 64, 0));
        // After a part has come, a signal ends MSG_WAITALL in any case.
        SHOW(write(e.client, "part", 4));
        tick(20);
        SHOW(recv(e.server, got, 64, MSG_WAITALL));
        tick(0);
        // With a time-out nothing is restarted.
        SHOW(setsockopt(e.server, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){2, 0}, sizeof(struct timeval)));
        tick(20);
        SHOW(recv(e.server, got, 64, 0));
        tick(0);
        SHOW(setsockopt(e.server, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 0}, sizeof(struct timeval)));
        // A write that went in part says so.
        memset(got, 'w', sizeof got);
        long sent = fill(e.client), result;
        tick(30);
        if (!ways[i]) SHOW(write(e.client, got, 100));
        SHOW(setsockopt(e.client, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){2, 0}, sizeof(struct timeval)));
        tick(30);
        SHOW(write(e.client, got, 100000));
        tick(0);
        SHOW(setsockopt(e.client, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){0, 0}, sizeof(struct timeval)));
        fflush(stdout);
        pid_t reader = fork();
        if (!reader) {
            static char bytes[100000];
            long left = sent;
            while (left > 0) {
                long r = read(e.server, bytes, left < 100000 ? left : 100000);
                if (r <= 0) _exit(1);
                left -= r;
            }
            pause();
        }
        // 64 MiB do not fit anywhere: the signal comes in the middle.
        static char *much;
        if (!much) much = calloc(1, 64 << 20);
        tick(100);
        result = write(e.client, much, 64 << 20);
        tick(0);
        SHOW(result > 0 && result < 64 << 20);
        kill(reader, SIGKILL);
        while (waitpid(reader, NULL, 0) < 0) {}
        close_ends(e);
    }
    // Handlers of both kinds: each signal does as its own handler says.
    handle(SIGUSR1, 0);
    handle(SIGALRM, SA_RESTART);
    for (int i = 0; i < 4; i++) {
        struct ends e = make_ends();
        int with = i & 1 ? SIGUSR1 : SIGALRM;
        signals_seen = 0;
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGALRM);
        // A signal that the program itself holds back changes nothing.
        if (i >= 2) sigprocmask(SIG_BLOCK, &set, NULL), raise(SIGALRM);
        pid_t child = fork();
        if (!child) {
            for (int k = 0; k < 6; k++) usleep(20000), kill(getppid(), with);
            _exit(write(e.client, "both", 4) != 4);
        }
        SHOW(recv(e.server, got, 64, 0));
        say("%s %d\n", with == SIGUSR1 ? "SIGUSR1" : "SIGALRM", signals_seen > 0);
        kill(child, SIGKILL);
        while (waitpid(child, NULL, 0) < 0) {}
        sigprocmask(SIG_UNBLOCK, &set, NULL);
        say("%d\n", signals_seen > 0);
        close_ends(e);
    }
    signal(SIGUSR1, SIG_DFL);
    // Away by longjmp, then on as if nothing had happened.
    struct ends e = make_ends();
    handle(SIGALRM, SA_RESTART);
    for (int i = 0; i < 3; i++) {
        jumps = 1;
        if (!sigsetjmp(back, 1)) {
            tick(10);
            SHOW(i == 2 ? poll(&(struct pollfd){e.server, POLLIN, 0}, 1, -1) : recv(e.server, got, 64, i ? MSG_WAITALL : 0));
        }
        jumps = 0;
        tick(0);
        SHOW(write(e.client, "jumped", 6));
        expect(e.server, "jumped");
        SHOW(write(e.server, "jumped", 6));
        expect(e.client, "jumped");
    }
    close_ends(e);
}

// A close that has to wait for a reader: all arrives, and the end after it. (How long it takes is the carrier's.)
static void lingering(void) {
    for (int reads = 0; reads < 2; reads++) {
        struct ends e = make_ends();
        static char much[65536];
        long sent = 0, received = 0, r;
        while ((r = send(e.server, much, sizeof much, MSG_DONTWAIT)) > 0) sent += r;
        SHOW(setsockopt(e.server, SOL_SOCKET, SO_LINGER, &(struct linger){1, 1}, sizeof(struct linger)));
        pid_t child = reads ? fork() : -1;
        if (child == 0) {
            close(e.server);
            usleep(100000);
            while ((r = recv(e.client, much, sizeof much, 0)) > 0) received += r;
            _exit(r != 0 || received != sent);
        }
        uint64_t start = milliseconds();
        SHOW(close(e.server));
        SHOW(milliseconds() - start < 1500);
        if (reads) {
            int status = 1;
            while (waitpid(child, &status, 0) < 0) {}
            SHOW(status);
        } else {
            while ((r = recv(e.client, much, sizeof much, 0)) > 0) received += r;
            SHOW(r);
            SHOW(received == sent);
        }
        close(e.client);
    }
}

enum { WAITERS = 4, MESSAGES = 200 };
static int shared_fd;
static void *take_some(void *taken) {
    int set = epoll_create1(0);
    epoll_ctl(set, EPOLL_CTL_ADD, shared_fd, &(struct epoll_event){EPOLLIN | EPOLLEXCLUSIVE});
    for (char byte;;) {
        struct epoll_event event;
        if (epoll_wait(set, &event, 1, 10000) != 1) return (void *)1;
        long r = recv(shared_fd, &byte, 1, MSG_DONTWAIT);
        if (r > 0) __atomic_add_fetch((int *)taken, 1, __ATOMIC_RELAXED);
        if (r == 0) break;
    }
    close(set);
    return NULL;
}

// One socket in several sets that wish to be woken one at a time: at least one is, each time.
static void exclusive(void) {
    struct ends e = make_ends();
    int taken = 0;
    pthread_t threads[WAITERS];
    shared_fd = e.server;
    for (int i = 0; i < WAITERS; i++) pthread_create(&threads[i], NULL, take_some, &taken);
    for (int i = 0; i < MESSAGES; i++) {
        send(e.client, "x", 1, 0);
        for (uint64_t end = milliseconds() + 5000; __atomic_load_n(&taken, __ATOMIC_RELAXED) <= i && milliseconds() < end;) usleep(i % 3 * 200);
    }
    SHOW(taken);
    SHOW(shutdown(e.client, SHUT_WR));
    for (int i = 0; i < WAITERS; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        SHOW(result == NULL);
    }
    close_ends(e);
}

static int cancelled_fd;
static void *cancelled(void *flags) { return (void *)recv(cancelled_fd, got, 64, (long)flags); }

static void cancellation(void) {
    struct ends e = make_ends();
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        void *result = NULL;
        cancelled_fd = e.server;
        pthread_create(&thread, NULL, cancelled, (void *)(long)(i & 1 ? MSG_WAITALL : 0));
        usleep(i < 2 ? 20000 : 0);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        SHOW(result == PTHREAD_CANCELED);
        SHOW(write(e.client, "cancelled", 9));
        expect(e.server, "cancelled");
    }
    close_ends(e);
}

static void queues(void) {
    struct ends e = make_ends();
    int value = -1;
    SHOW(ioctl(e.server, FIONREAD, &value) ?: value);
    SHOW(ioctl(e.client, SIOCOUTQ, &value) ?: value);
    SHOW(write(e.client, "0123456789", 10));
    await_bytes(e.server, 10);
    // What has arrived is acknowledged sooner or later, read or not.
    for (int i = 0; i < 500; i++) {
        ioctl(e.client, SIOCOUTQ, &value);
        if (!value) break;
        usleep(1000);
    }
    SHOW(value);
    SHOW(ioctl(e.client, SIOCOUTQNSD, &value) ?: value);
    SHOW(ioctl(e.server, SIOCINQ, &value) ?: value);
    SHOW(ioctl(e.server, SIOCATMARK, &value) ?: value);
    SHOW(recv(e.server, got, 4, 0));
    SHOW(ioctl(e.server, FIONREAD, &value) ?: value);
    SHOW(ioctl(e.server, SIOCATMARK, &value) ?: value);
    SHOW(ioctl(e.server, FIOCLEX));
    SHOW(fcntl(e.server, F_GETFD));
    SHOW(ioctl(e.server, FIONCLEX));
    SHOW(ioctl(e.server, FIONBIO, &(int){1}));
    SHOW(fcntl(e.server, F_GETFL));
    SHOW(recv(e.server, got, 64, 0));
    SHOW(recv(e.server, got, 64, 0));
    SHOW(fcntl(e.server, F_SETFL, O_APPEND | O_RDWR));
    SHOW(fcntl(e.server, F_GETFL));
    SHOW(fcntl(e.server, F_DUPFD, 500));
    SHOW(fcntl(e.server, F_DUPFD_CLOEXEC, 510));
    SHOW(fcntl(510, F_GETFD));
    SHOW(write(e.client, "dup", 3));
    expect(510, "dup");
    close(500);
    close(510);
    close_ends(e);
}

// What brought other providers down: blocking and not, large after small, many pieces at once.
static void mixtures(void) {
    struct ends e = make_ends();
    static char out[600000];
    for (size_t i = 0; i < sizeof out; i++) out[i] = i * 13 + i / 509;
    for (int round = 0; round < 6; round++) {
        pid_t child = fork();
        if (!child) {
            size_t done = 0;
            struct iovec v[1000];
            while (done < sizeof out) {
                long r;
                size_t left = sizeof out - done;
                if (done % 3 == 0) {
                    int pieces = 0;
                    size_t at = done;
                    while (pieces < 1000 && at < sizeof out) {
                        size_t n = pieces % 7 == 3 ? 4096 : 1 + pieces % 5;
                        if (n > sizeof out - at) n = sizeof out - at;
                        v[pieces++] = (struct iovec){out + at, n};
                        at += n;
                    }
                    r = writev(e.client, v, pieces);
                } else if (done % 3 == 1) {
                    r = send(e.client, out + done, left < 100000 ? left : 100000, MSG_DONTWAIT);
                    if (r < 0 && errno == EAGAIN) {
                        poll(&(struct pollfd){e.client, POLLOUT, 0}, 1, -1);
                        continue;
                    }
                } else r = write(e.client, out + done, left < 3 ? left : 3);
                if (r <= 0) _exit(1);
                done += r;
            }
            _exit(0);
        }
        size_t done = 0;
        while (done < sizeof out) {
            size_t want = round % 2 ? 70000 : done % 5 ? 17 : 60000;
            if (want > sizeof out - done) want = sizeof out - done;
            long r = recv(e.server, got + done, want, round % 3 == 0 ? MSG_WAITALL : round % 3 == 1 ? MSG_DONTWAIT : 0);
            if (r < 0 && errno == EAGAIN) {
                poll(&(struct pollfd){e.server, POLLIN, 0}, 1, -1);
                continue;
            }
            if (r <= 0) fail("recv");
            done += r;
        }
        SHOW(memcmp(got, out, sizeof out));
        int status;
        waitpid(child, &status, 0);
        SHOW(status);
    }
    close_ends(e);
}

static int owned_by(int fd, int owner) { return fcntl(fd, F_SETOWN, owner) < 0 ? -1 : fcntl(fd, F_GETOWN) == owner; }

// A process group is a negative owner, which the bare system call cannot tell from an error: on both carriers alike.
static void owners(void) {
    struct ends e = make_ends();
    struct f_owner_ex owner;
    if (owned_by(e.client, -getpgrp()) != 1) {
        printf("F_GETOWN is not the process group\n");
        failures++;
    }
    SHOW(fcntl(e.client, F_GETOWN_EX, &owner));
    SHOW(owner.type);
    SHOW(owner.pid == getpgrp());
    SHOW(owned_by(e.client, getpid()));
    SHOW(owned_by(e.client, 0));
    close_ends(e);
}

// A number that the limit forbids: nothing is closed.
static void forbidden_numbers(void) {
    struct ends e = make_ends();
    struct rlimit before, lower;
    getrlimit(RLIMIT_NOFILE, &before);
    lower = before;
    lower.rlim_cur = 100;
    SHOW(write(e.server, "unread ", 7));
    SHOW(write(e.client, "unread ", 7));
    SHOW(dup2(e.client, 500));
    SHOW(close(e.client));
    e.client = 500;
    SHOW(setrlimit(RLIMIT_NOFILE, &lower));
    SHOW(dup2(0, 500));
    SHOW(dup3(0, 500, O_CLOEXEC));
    SHOW(dup2(e.server, 500));
    SHOW(write(e.client, "still", 5));
    expect(e.server, "unread still");
    SHOW(write(e.server, "here", 4));
    expect(e.client, "unread here");
    SHOW(fcntl(e.client, F_SETFL, O_NONBLOCK));
    SHOW(recv(e.client, got, 1, 0));
    SHOW(setrlimit(RLIMIT_NOFILE, &before));
    SHOW(close(e.client));
    SHOW(recv(e.server, got, 1, 0));
    close(e.server);
}

static void *close_all_of_its_own(void *argument) {
    SHOW(syscall(SYS_close_range, 3, ~0U, 2 /* CLOSE_RANGE_UNSHARE */));
    return NULL;
}

// A thread gives up its own copy of all descriptors; those of the others stay.
static void closed_in_a_thread(void) {
    struct ends e = make_ends();
    pthread_t thread;
    SHOW(write(e.client, "before ", 7));
    pthread_create(&thread, NULL, close_all_of_its_own, NULL);
    pthread_join(thread, NULL);
    SHOW(write(e.client, "after", 5));
    expect(e.server, "before after");
    SHOW(write(e.server, "back", 4));
    expect(e.client, "back");
    // A process of one thread has nothing left.
    pid_t child = fork();
    if (!child) {
        close_range(3, ~0U, 2);
        _exit(write(e.client, "x", 1) < 0 ? errno : 0);
    }
    int status;
    waitpid(child, &status, 0);
    SHOW(WEXITSTATUS(status));
    close(e.client);
    SHOW(recv(e.server, got, 1, 0));
    close(e.server);
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    alarm(0);
    CASE(peeking);
    CASE(flags);
    CASE(waiting_for_all);
    CASE(full);
    CASE(ends_of_streams);
    CASE(half_closed);
    CASE(connected_already);
    CASE(values);
    CASE(kernel_options);
    CASE(kernel_filters);
    CASE(beginnings);
    CASE(long_lists);
    CASE(short_sets);
    CASE(long_sets);
    CASE(strange_patience);
    CASE(stops);
    CASE(edges_of_several);
    CASE(left_behind);
    CASE(left_to_a_child);
    CASE(urgent_and_more);
    CASE(urgent_through_a_relay);
    CASE(spliced_after_both_halves);
    CASE(interruptions);
    CASE(cancellation);
    CASE(lingering);
    CASE(exclusive);
    CASE(queues);
    CASE(mixtures);
    CASE(owners);
    CASE(forbidden_numbers);
    CASE(closed_in_a_thread);
    printf("%d different\n", failures);
    return failures != 0;
}
