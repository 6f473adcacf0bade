#include "CSocketSwitch.h"

#include <sys/wait.h>

/// One direction of a relay: what has been received and not been sent yet lies at `start` … `end`.
struct direction {
    int from, to;
    char *bytes;
    size_t start, end, room;
    int has_ended;  // `from` has told its end; with nothing left, `to` has been told, too
    int is_shared;  // others have `to`, too: what ends for us does not end for them
    int is_urgent;  // what lies there is one byte, an urgent one
};

static int is_over(const struct direction *d) { return d->has_ended && d->start == d->end; }

static int may_come_later(long result) { return result == -EAGAIN || result == -EINTR || result == -ENOBUFS || result == -ENOMEM; }

/// Bytes received, 0 at the end, or -errno. An urgent byte comes alone, so that its mark is passed on with it (WSD-T6).
static long receive(struct direction *d) {
    int is_at_mark = 0;
    d->is_urgent = 0;
    if (ss_sys_ioctl(d->from, SIOCATMARK, &is_at_mark) == 0 && is_at_mark) {
        long count = ss_sys_recvfrom(d->from, d->bytes, 1, MSG_OOB | MSG_DONTWAIT);
        int is_inline = 0;
        unsigned length = sizeof is_inline;
        if (count == -EINVAL && ss_sys_getsockopt(d->from, SOL_SOCKET, SO_OOBINLINE, &is_inline, &length) == 0 && is_inline)
            count = ss_sys_recvfrom(d->from, d->bytes, 1, MSG_DONTWAIT);
        d->is_urgent = count == 1;
        if (count == 1 || count == -EAGAIN) return count;
    }
    return ss_sys_recvfrom(d->from, d->bytes, d->room, MSG_DONTWAIT);
}

/// Moves what can be moved now. 0: one of the two connections has failed.
static int move(struct direction *d) {
    if (d->start == d->end && !d->has_ended) {
        long count = receive(d);
        if (count < 0) return may_come_later(count);
        d->start = 0;
        d->end = (size_t)count;
        d->has_ended = count == 0;
    }
    if (d->start < d->end) {
        long count = ss_sys_sendto(d->to, d->bytes + d->start, d->end - d->start,
            MSG_DONTWAIT | MSG_NOSIGNAL | (d->is_urgent ? MSG_OOB : 0));
        if (count < 0) return may_come_later(count);
        d->start += (size_t)count;
    }
    if (is_over(d) && !d->is_shared) ss_sys_shutdown(d->to, SHUT_WR);
    return 1;
}

static void reset_on_close(int fd, int does) {
    struct linger now = {.l_onoff = does};
    ss_sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

/// Until both directions have ended. Where others have the socket, and when `stop` is readable, at the latest when the one who was
/// given this connection has closed it: what follows is theirs, or nobody's. Whatever else ends it resets.
static void relay(struct direction *one, struct direction *other, int stop) {
    struct direction *both[] = {one, other};
    if (!other->is_shared) reset_on_close(one->from, 1);
    reset_on_close(other->from, 1);
    int has_hung_up[2] = {0, 0}, is_stopping = 0;
    uint64_t ended = 0;
    while (!is_over(one) || !is_over(other)) {
        int may_leave = is_over(other) && (other->is_shared || is_stopping);
        // Its user has closed, or shut down its sending half: then it is still there after a while. (Who dies tells its end before it
        // lets go.) And those who have the socket do not end the half in its place.
        if (may_leave) {
            if (ss_peer_of(other->from) != SS_PEER_HELD) break;
            uint64_t now = ss_monotonic_ns();
            if (ended == 0) ended = now;
            if (now - ended >= 100000000 && other->is_shared) ss_sys_shutdown(other->to, SHUT_WR);
        }
        struct pollfd list[3] = {{.fd = one->from}, {.fd = other->from}, {.fd = is_stopping ? -1 : stop, .events = POLLIN}};
        for (int i = 0; i < 2; i++) {
            if (is_over(both[i])) continue;
            if (both[i]->start == both[i]->end) list[i].events |= POLLIN | POLLPRI;
            else list[1 - i].events |= POLLOUT;
        }
        // What is not asked for anything may tell of a reset; but not, again and again, that both its halves have ended.
        for (int i = 0; i < 2; i++)
            if (list[i].events == 0 && (has_hung_up[i] || !both[i]->has_ended || is_over(both[1 - i]))) list[i].fd = -1;
        // (Who has shut down its sending half closes without a word.)
        struct timespec now_and_then = {.tv_nsec = 200000000};
        long result = ss_sys_ppoll(list, 3, may_leave ? &now_and_then : NULL, NULL);
        if (result < 0 && result != -EINTR) return;
        if (list[2].revents) is_stopping = 1;
        for (int i = 0; i < 2; i++) has_hung_up[i] |= list[i].revents & POLLHUP;
        int is_broken = (list[0].revents | list[1].revents) & POLLERR;
        for (int i = 0; i < 2 && !is_broken; i++) is_broken = !is_over(both[i]) && !move(both[i]);
        if (is_broken) return;
    }
    if (!other->is_shared) reset_on_close(one->from, 0);
    reset_on_close(other->from, 0);
}

/// In a process of its own, with nothing of its parent's but the two sockets.
static __attribute__((noreturn)) void run_relay(
    int socket, int relayed, char *bytes, size_t sent, size_t count, size_t room, int is_shared) {
    ss_syscall6(SYS_setsid, 0, 0, 0, 0, 0, 0);
    ss_syscall6(SYS_chdir, (long)"/", 0, 0, 0, 0, 0);
    ss_syscall6(SYS_prctl, 15 /* PR_SET_NAME */, (long)"socksw-relay", 0, 0, 0, 0);
    unsigned low = (unsigned)(socket < relayed ? socket : relayed), high = (unsigned)(socket < relayed ? relayed : socket);
    if (low > 0) ss_sys_close_range(0, low - 1, 0);
    if (high > low + 1) ss_sys_close_range(low + 1, high - 1, 0);
    ss_sys_close_range(high + 1, ~0u, 0);
    // Who stops the maker's unit or container stops this, too, but not before its user. (All signals stay blocked.)
    uint64_t termination = 1ull << (SIGTERM - 1);
    int stop = (int)ss_syscall6(SYS_signalfd4, -1, (long)&termination, 8, 0, 0, 0);
    static char back[16384];  // the stack may be a small one of the program's
    struct direction forth = {.from = socket, .to = relayed, .bytes = bytes, .start = sent, .end = count, .room = room};
    struct direction answer = {.from = relayed, .to = socket, .bytes = back, .room = sizeof back, .is_shared = is_shared};
    relay(&forth, &answer, stop);
    for (;;) ss_syscall6(SYS_exit_group, 0, 0, 0, 0, 0, 0);
}

/// fork(2) without libc, whose handlers are none of the relay's, and without a SIGCHLD.
static long bare_fork(void) { return ss_syscall6(SYS_clone, 0, 0, 0, 0, 0, 0); }

int ss_start_relay(int socket, int relayed, void *bytes, size_t sent, size_t count, size_t room, int is_shared) {
    uint64_t all = ~0ull, before = 0;
    ss_sys_sigprocmask(SIG_SETMASK, &all, &before);
    long child = bare_fork();
    if (child == 0) {
        // A grandchild has no parent that would have to know of it.
        long relay = bare_fork();
        if (relay == 0) run_relay(socket, relayed, bytes, sent, count, room, is_shared);
        for (;;) ss_syscall6(SYS_exit_group, relay < 0, 0, 0, 0, 0, 0);
    }
    int status = 1;
    if (child > 0) while (ss_syscall6(SYS_wait4, child, (long)&status, __WALL, 0, 0, 0) == -EINTR) {}
    ss_sys_sigprocmask(SIG_SETMASK, &before, NULL);
    return child > 0 && status == 0;
}
