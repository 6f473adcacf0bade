#include "CSocketSwitch.h"

#include <sys/wait.h>

/// One direction of a relay: what has been received and not been sent yet lies at `start` … `end`.
struct direction {
    int from, to;
    char *bytes;
    size_t start, end, room;
    int has_ended;  // `from` has told its end; with nothing left, `to` has been told, too
    int is_shared;  // others have `to`, too: what ends for us does not end for them
};

static int is_over(const struct direction *d) { return d->has_ended && d->start == d->end; }

static int may_come_later(long result) { return result == -EAGAIN || result == -EINTR || result == -ENOBUFS || result == -ENOMEM; }

/// Moves what can be moved now. 0: one of the two connections has failed.
static int move(struct direction *d) {
    if (d->start == d->end && !d->has_ended) {
        long count = ss_sys_recvfrom(d->from, d->bytes, d->room, MSG_DONTWAIT);
        if (count < 0) return may_come_later(count);
        d->start = 0;
        d->end = (size_t)count;
        d->has_ended = count == 0;
    }
    if (d->start < d->end) {
        long count = ss_sys_sendto(d->to, d->bytes + d->start, d->end - d->start, MSG_DONTWAIT | MSG_NOSIGNAL);
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

/// Until both directions have ended; where others have the socket, until the one who was given this connection has closed it, and
/// what follows is theirs. Whatever else ends it, a signal, too, resets.
static void relay(struct direction *one, struct direction *other) {
    struct direction *both[] = {one, other};
    if (!other->is_shared) reset_on_close(one->from, 1);
    reset_on_close(other->from, 1);
    while (other->is_shared ? !is_over(other) : !is_over(one) || !is_over(other)) {
        struct pollfd list[2] = {{.fd = one->from}, {.fd = other->from}};
        for (int i = 0; i < 2; i++) {
            if (is_over(both[i])) continue;
            if (both[i]->start == both[i]->end) list[i].events |= POLLIN;
            else list[1 - i].events |= POLLOUT;
        }
        // What is not asked for anything may tell of a reset; but not, again and again, that both its halves have ended.
        for (int i = 0; i < 2; i++) if (list[i].events == 0 && (!both[i]->has_ended || is_over(both[1 - i]))) list[i].fd = -1;
        long result = ss_sys_ppoll(list, 2, NULL, NULL);
        if (result < 0 && result != -EINTR) return;
        int is_broken = (list[0].revents | list[1].revents) & POLLERR;
        for (int i = 0; i < 2 && !is_broken; i++) is_broken = !is_over(both[i]) && !move(both[i]);
        if (is_broken) return;
    }
    if (!other->is_shared) reset_on_close(one->from, 0);
    reset_on_close(other->from, 0);
}

static void close_all(unsigned first, unsigned last) {
    if (ss_sys_close_range(first, last, 0) == 0) return;
    // Before Linux 5.9.
    for (unsigned fd = first; fd <= last && fd < SS_DESCRIPTORS; fd++) ss_sys_close((int)fd);
}

/// In a process of its own, with nothing of its parent's but the two sockets.
static __attribute__((noreturn)) void run_relay(
    int socket, int relayed, char *bytes, size_t sent, size_t count, size_t room, int is_shared) {
    ss_syscall6(SYS_setsid, 0, 0, 0, 0, 0, 0);
    ss_syscall6(SYS_chdir, (long)"/", 0, 0, 0, 0, 0);
    ss_syscall6(SYS_prctl, 15 /* PR_SET_NAME */, (long)"socksw-relay", 0, 0, 0, 0);
    unsigned low = (unsigned)(socket < relayed ? socket : relayed), high = (unsigned)(socket < relayed ? relayed : socket);
    if (low > 0) close_all(0, low - 1);
    if (high > low + 1) close_all(low + 1, high - 1);
    close_all(high + 1, ~0u);
    static char back[16384];  // the stack may be a small one of the program's
    struct direction forth = {.from = socket, .to = relayed, .bytes = bytes, .start = sent, .end = count, .room = room};
    struct direction answer = {.from = relayed, .to = socket, .bytes = back, .room = sizeof back, .is_shared = is_shared};
    relay(&forth, &answer);
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
