// What the fuzzer (Tests/Fuzz) has found, and reviews of the same code, as cases.
#include "carriers.h"
#include <aio.h>

static char bytes[1 << 20];

static int revents(int fd) {
    struct pollfd entry = {fd, POLLIN | POLLOUT | POLLRDHUP, 0};
    poll(&entry, 1, 0);
    return entry.revents;
}

static void await_events(int fd, int events) {
    for (uint64_t end = milliseconds() + 10000; (revents(fd) & events) != events && milliseconds() < end;) usleep(500);
}

// A call that has moved bytes leaves the error to the next one.
static void errors_after_bytes(void) {
    for (int way = 0; way < 4; way++) {
        struct ends e = make_ends();
        close(e.server);
        await_events(e.client, POLLRDHUP);
        SHOW(send(e.client, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) > 0);
        await_events(e.client, POLLERR);
        SHOW(revents(e.client));
        int error = 0;
        socklen_t length = sizeof error;
        if (way == 0) SHOW(send(e.client, bytes, 1, MSG_NOSIGNAL));
        if (way == 1) SHOW(send(e.client, bytes, 0, MSG_NOSIGNAL));
        if (way == 2) SHOW(getsockopt(e.client, SOL_SOCKET, SO_ERROR, &error, &length)), SHOW(error);
        if (way == 3) SHOW(recv(e.client, bytes, 1, 0));
        SHOW(revents(e.client));
        SHOW(send(e.client, bytes, 1, MSG_NOSIGNAL));
        close(e.client);
    }
}

// The reset that a look ahead has met is shown until a call has told of it, whichever that is.
static void resets(void) {
    for (int way = 0; way < 6; way++) {
        struct ends e = make_ends();
        if (way == 4) SHOW(shutdown(e.client, SHUT_RD));
        if (write(e.client, "unread", 6) != 6 || write(e.server, "seen", 4) != 4) fail("write");
        close(e.server);
        await_events(e.client, POLLERR);
        SHOW(way >= 4 ? recv(e.client, bytes, 5, MSG_WAITALL) : recv(e.client, bytes, 4, 0));
        SHOW(revents(e.client));
        int error = 0;
        socklen_t length = sizeof error;
        if (way == 0) SHOW(recv(e.client, bytes, 4, 0));
        if (way == 1) SHOW(send(e.client, bytes, 0, MSG_NOSIGNAL));
        if (way == 2) SHOW(getsockopt(e.client, SOL_SOCKET, SO_ERROR, &error, &length)), SHOW(error);
        if (way == 3) SHOW(recv(e.client, bytes, 4, MSG_WAITALL));
        if (way == 5) SHOW(setsockopt(e.client, SOL_SOCKET, SO_RCVLOWAT, &(int){2}, sizeof(int)));
        SHOW(revents(e.client));
        SHOW(recv(e.client, bytes, 4, 0));
        close(e.client);
    }
}

static int file_of(size_t count) {
    int file = memfd_create("found", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)count) < 0) fail("memfd");
    return file;
}

static void files(void) {
    // The kernel sends it as one, although the peer answers the beginning with a reset.
    struct ends e = make_ends();
    int file = file_of(10147);
    SHOW(shutdown(e.server, SHUT_RDWR));
    SHOW(sendfile(e.client, file, NULL, 10147));
    SHOW(lseek(file, 0, SEEK_CUR));
    close(file);
    close_ends(e);
    // The end of a file needs no room.
    e = make_ends();
    file = file_of(10);
    off_t end = 10;
    while (send(e.client, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
    SHOW(sendfile(e.client, file, &end, 100));
    close(file);
    close_ends(e);
}

// The kernel resets the connection when the last descriptor goes with bytes unread, also by the end of a process.
static void unread_at_exit(void) {
    struct ends e = make_ends();
    if (write(e.client, "unread", 6) != 6) fail("write");
    await_events(e.server, POLLIN);
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, NULL, 0);
    SHOW(revents(e.client));
    pid = fork();
    if (pid == 0) {
        close(e.client);
        usleep(20000);
        _exit(0);
    }
    close(e.server);
    waitpid(pid, NULL, 0);
    await_events(e.client, POLLERR);
    SHOW(revents(e.client));
    SHOW(recv(e.client, bytes, 1, 0));
    close(e.client);
}

// Before the connection has moved, too, and whoever else still looks at it. An urgent byte is unread as others are.
static void resets_at_once(void) {
    for (int way = 0; way < 3; way++) {
        struct sockaddr_in address;
        int listener = make_listener(&address), client = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(client, (void *)&address, sizeof address) < 0) fail("connect");
        int server = accept(listener, NULL, NULL);
        if (way == 0) {
            struct linger linger = {1, 0};
            setsockopt(server, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        } else {
            SHOW(send(client, "unread", 6, way == 1 ? 0 : MSG_OOB));
        }
        if (way == 2) SHOW(recv(server, bytes, 6, 0));
        SHOW(close(server));
        await_events(client, POLLERR);
        SHOW(revents(client));
        SHOW(send(client, bytes, 16, MSG_NOSIGNAL));
        SHOW(recv(client, bytes, 16, 0));
        close(client);
        close(listener);
    }
}

// Parent and child share the kernel's set: what the parent registers anew, the child's hand-over must not take away.
static void registrations_across_fork(void) {
    struct ends e = make_ends();
    int set = epoll_create1(EPOLL_CLOEXEC), one = 1;
    struct epoll_event event = {EPOLLIN | EPOLLET, {.u32 = 7}}, got = {0};
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &event));
    SHOW(epoll_ctl(set, EPOLL_CTL_DEL, e.server, NULL));
    int pipes[2];
    if (pipe(pipes) < 0) fail("pipe");
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        if (read(pipes[0], &byte, 1) != 1) _exit(1);
        setsockopt(e.server, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one);
        _exit(0);
    }
    event.data.u32 = 8;
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &event));
    if (write(pipes[1], "x", 1) != 1) fail("write");
    waitpid(pid, NULL, 0);
    SHOW(write(e.client, "hello", 5));
    SHOW(epoll_wait(set, &got, 1, 5000));
    SHOW(got.data.u32);
    SHOW(epoll_ctl(set, EPOLL_CTL_DEL, e.server, NULL));
    close(pipes[0]);
    close(pipes[1]);
    close(set);
    close_ends(e);
}

// A one-shot registration that has fired stays the parent's to change and to delete when a child hands the socket over.
static void one_shots_across_fork(void) {
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        int set = epoll_create1(EPOLL_CLOEXEC), one = 1;
        struct epoll_event event = {EPOLLIN | EPOLLONESHOT, {.u32 = 7}}, got = {0};
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &event));
        SHOW(write(e.client, "hello", 5));
        SHOW(epoll_wait(set, &got, 1, 5000));
        pid_t pid = fork();
        if (pid == 0) {
            setsockopt(e.server, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
        SHOW(write(e.client, "hello", 5));
        SHOW(epoll_wait(set, &got, 1, 0));
        if (way == 0) {
            event.data.u32 = 8;
            SHOW(epoll_ctl(set, EPOLL_CTL_MOD, e.server, &event));
            SHOW(epoll_wait(set, &got, 1, 5000));
            SHOW(got.data.u32);
            SHOW(recv(e.server, bytes, 10, MSG_WAITALL));
            SHOW(epoll_ctl(set, EPOLL_CTL_MOD, e.server, &event));
            SHOW(epoll_wait(set, &got, 1, 0));
            SHOW(write(e.client, "hello", 5));
            SHOW(epoll_wait(set, &got, 1, 5000));
        }
        SHOW(epoll_ctl(set, EPOLL_CTL_DEL, e.server, NULL));
        SHOW(epoll_ctl(set, EPOLL_CTL_DEL, e.server, NULL));
        close(set);
        close_ends(e);
    }
}

// What a child gives back to the kernel, which knows its parent's registrations of before, the parent can change; and what the
// parent has changed meanwhile stays changed.
static void changes_across_fork(void) {
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        int set = epoll_create1(EPOLL_CLOEXEC), one = 1, changed[2];
        struct epoll_event event = {EPOLLIN, {.u32 = 7}}, got = {0};
        pipe(changed);
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &event));
        pid_t pid = fork();
        if (pid == 0) {
            char byte;
            if (way == 1) read(changed[0], &byte, 1);
            setsockopt(e.server, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one);
            _exit(0);
        }
        if (way == 0) waitpid(pid, NULL, 0);
        event.data.u32 = 8;
        SHOW(epoll_ctl(set, EPOLL_CTL_MOD, e.server, &event));
        write(changed[1], "x", 1);
        if (way == 1) waitpid(pid, NULL, 0);
        for (int round = 0; round < 3; round++) {
            SHOW(write(e.client, "hello", 5));
            SHOW(epoll_wait(set, &got, 1, 5000));
            SHOW(got.data.u32);
            SHOW(recv(e.server, bytes, 5, MSG_WAITALL));
            SHOW(epoll_wait(set, &got, 1, 0));
        }
        event.events = EPOLLOUT;
        SHOW(epoll_ctl(set, EPOLL_CTL_MOD, e.server, &event));
        SHOW(epoll_wait(set, &got, 1, 5000));
        SHOW(epoll_ctl(set, EPOLL_CTL_DEL, e.server, NULL));
        SHOW(epoll_wait(set, &got, 1, 0));
        close(changed[0]);
        close(changed[1]);
        close(set);
        close_ends(e);
    }
}

// The kernel knows a registration by its number and socket, also while that number is closed: one-shot, it has fired when the
// socket goes back to TCP, and its descriptor is closed, or replaced by another one of the same socket.
static void numbers_used_again(void) {
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        int set = epoll_create1(EPOLL_CLOEXEC), one = 1, number = dup(e.server);
        struct epoll_event event = {EPOLLIN | EPOLLONESHOT, {.u32 = 7}}, got = {0};
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, number, &event));
        SHOW(write(e.client, "hello", 5));
        SHOW(epoll_wait(set, &got, 1, 5000));
        SHOW(setsockopt(e.server, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one));
        if (way == 0) close(number);
        SHOW(dup2(e.server, number) == number);
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, number, &event));
        SHOW(epoll_wait(set, &got, 1, 0));
        if (way == 2) SHOW(epoll_ctl(set, EPOLL_CTL_DEL, number, &event));
        event.data.u32 = 8;
        SHOW(epoll_ctl(set, way == 2 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, number, &event));
        SHOW(epoll_wait(set, &got, 1, 5000));
        SHOW(got.data.u32);
        SHOW(epoll_wait(set, &got, 1, 0));
        close(e.server);
        SHOW(epoll_ctl(set, EPOLL_CTL_MOD, number, &event));
        SHOW(epoll_wait(set, &got, 1, 5000));
        close(number);
        SHOW(epoll_wait(set, &got, 1, 0));
        close(set);
        close(e.client);
    }
}

// It does nothing, also where nothing can be spliced any more.
static void splices_of_nothing(void) {
    struct ends e = make_ends();
    int pipes[2], null = open("/dev/null", O_RDWR);
    pipe(pipes);
    SHOW(write(e.client, "unread", 6));
    await_events(e.server, POLLIN);
    close(e.server);
    await_events(e.client, POLLHUP);
    SHOW(splice(pipes[0], NULL, e.client, NULL, 0, 0));
    SHOW(splice(e.client, NULL, pipes[1], NULL, 0, 0));
    SHOW(splice(e.client, NULL, null, NULL, 0, 0));
    SHOW(read(e.client, bytes, 1));
    close(null);
    close(pipes[0]);
    close(pipes[1]);
    close(e.client);
}

// A child finds no room, and its parent is told of the room that is made then.
static void room_across_fork(void) {
    struct ends e = make_ends();
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {EPOLLOUT | EPOLLET, {.u32 = 7}}, got = {0};
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.client, &event));
    SHOW(epoll_wait(set, &got, 1, 5000));
    SHOW(epoll_wait(set, &got, 1, 20));
    pid_t pid = fork();
    if (pid == 0) {
        while (send(e.client, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
        pause();
    }
    while (!(revents(e.server) & POLLIN)) usleep(1000);
    usleep(50000);
    while (recv(e.server, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
    SHOW(epoll_wait(set, &got, 1, 5000));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(set);
    close_ends(e);
}

// What is unread cannot be sent again over TCP to a socket that has shut down both halves: it would be answered by a reset.
static void options_after_shutdown(void) {
    struct ends e = make_ends();
    int one = 1, queued = 0;
    if (write(e.client, "unread", 6) != 6) fail("write");
    await_events(e.server, POLLIN);
    SHOW(shutdown(e.server, SHUT_RDWR));
    await_events(e.client, POLLRDHUP);
    SHOW(setsockopt(e.server, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one));
    SHOW(revents(e.client));
    SHOW(ioctl(e.server, FIONREAD, &queued));
    SHOW(queued);
    SHOW(recv(e.server, bytes, 4, 0));
    SHOW(recv(e.server, bytes, 4, 0));
    SHOW(recv(e.server, bytes, 4, 0));
    SHOW(revents(e.client));
    SHOW(recv(e.client, bytes, 4, 0));
    close_ends(e);
}

// A look ahead that meets a reset behind a carrier change leaves it to the next call.
static void looking_at_a_reset(void) {
    struct ends e = make_ends();
    int one = 1;
    if (write(e.server, "ring", 4) != 4) fail("write");
    await_events(e.client, POLLIN);
    SHOW(setsockopt(e.server, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one));
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(shutdown(e.client, SHUT_RD));
    SHOW(write(e.server, "late", 4));
    await_events(e.client, POLLERR);
    SHOW(recv(e.client, bytes, 100, MSG_PEEK | MSG_DONTWAIT));
    SHOW(revents(e.client));
    SHOW(recv(e.client, bytes, 100, 0));
    SHOW(recv(e.client, bytes, 100, 0));
    SHOW(revents(e.client));
    close_ends(e);
}

// One receive does not go beyond an urgent mark, though the bytes before it came over the companion.
static void up_to_a_mark(void) {
    static const int flags[] = {0, MSG_WAITALL, MSG_PEEK};
    for (int i = 0; i < 3; i++) {
        struct ends e = make_ends();
        int mark = -1;
        SHOW(send(e.client, "abc", 3, 0));
        SHOW(send(e.client, "U", 1, MSG_OOB));
        SHOW(send(e.client, "def", 3, 0));
        struct pollfd urgent = {e.server, POLLPRI};
        SHOW(poll(&urgent, 1, 5000));
        SHOW(recv(e.server, bytes, 100, flags[i]));
        if (flags[i] & MSG_PEEK) SHOW(recv(e.server, bytes, 100, 0));
        SHOW(ioctl(e.server, SIOCATMARK, &mark));
        SHOW(mark);
        // It is one message of several, though it could be looked at several times.
        struct iovec piece = {bytes, 1};
        struct mmsghdr messages[2] = {{{.msg_iov = &piece, .msg_iovlen = 1}, 0}, {{.msg_iov = &piece, .msg_iovlen = 1}, 0}};
        SHOW(recvmmsg(e.server, messages, 2, MSG_OOB | MSG_PEEK, NULL));
        SHOW(recv(e.server, bytes, 1, MSG_OOB));
        SHOW(bytes[0]);
        SHOW(recv(e.server, bytes, 100, 0));
        close_ends(e);
    }
}

// The kernel answers what is sent to a process that has ended with a reset, however soon it is sent.
static void sent_to_the_dead(void) {
    for (int i = 0; i < 10; i++) {
        struct ends e = make_ends();
        int pipes[2];
        if (pipe(pipes) < 0) fail("pipe");
        pid_t pid = fork();
        if (pid == 0) {
            close(e.client);
            if (read(pipes[0], bytes, 1) != 1) _exit(1);
            exit(0);
        }
        close(e.server);
        if (write(pipes[1], "x", 1) != 1) fail("write");
        waitpid(pid, NULL, 0);
        SHOW(send(e.client, bytes, 100, MSG_NOSIGNAL));
        await_events(e.client, POLLERR);
        SHOW(revents(e.client));
        close(e.client);
        close(pipes[0]);
        close(pipes[1]);
    }
}

// Options that need the kernel's stream, set when it cannot be had yet, since unread bytes lie before it.
static void options_in_between(void) {
    struct ends e = make_ends();
    int one = 1, six = 6;
    if (write(e.client, "ring", 4) != 4) fail("write");
    await_events(e.server, POLLIN);
    SHOW(setsockopt(e.client, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one));
    SHOW(setsockopt(e.server, SOL_SOCKET, SO_RCVLOWAT, &six, sizeof six));
    pid_t pid = fork();
    if (pid == 0) {
        usleep(50000);
        _exit(write(e.client, "kernel", 6) != 6);
    }
    SHOW(recv(e.server, bytes, 100, 0));
    waitpid(pid, NULL, 0);
    // From here on it is the kernel's.
    SHOW(write(e.client, "five.", 5));
    SHOW(revents(e.server));
    SHOW(write(e.client, "nine", 4));
    await_events(e.server, POLLIN);
    SHOW(revents(e.server));
    SHOW(recv(e.server, bytes, 100, 0));
    close_ends(e);
    e = make_ends();
    if (write(e.client, "ring", 4) != 4) fail("write");
    await_events(e.server, POLLIN);
    SHOW(setsockopt(e.client, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one));
    SHOW(setsockopt(e.server, IPPROTO_TCP, 36 /* TCP_INQ */, &one, sizeof one));
    SHOW(recv(e.server, bytes, 100, 0));
    SHOW(write(e.client, "counted", 7));
    char control[256];
    struct iovec piece = {bytes, 100};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    SHOW(recvmsg(e.server, &message, 0));
    SHOW(message.msg_controllen > 0);
    close_ends(e);
}

// A reset that a send has told of, after both halves were shut, is not told again.
static void told_once(void) {
    int file = file_of(2000);
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        SHOW(write(e.client, bytes, 31));
        SHOW(shutdown(e.client, SHUT_RDWR));
        SHOW(write(e.server, bytes, 1610));
        usleep(1000);
        for (int again = 0; again < 2; again++) {
            if (way == 0) SHOW(send(e.client, bytes, 1084, MSG_DONTWAIT | MSG_NOSIGNAL));
            else SHOW(sendfile(e.client, file, &(off_t){0}, 1084));
            SHOW(revents(e.client));
        }
        close_ends(e);
    }
    close(file);
}

// Where the rest of a stream cannot be had from the kernel splice says EINVAL, on which programs copy.
static long splice_or_copy(int fd, int inlet, size_t count) {
    long result = splice(fd, NULL, inlet, NULL, count, SPLICE_F_NONBLOCK);
    if (result >= 0 || errno != EINVAL) return result;
    result = recv(fd, bytes, count, MSG_DONTWAIT);
    return result > 0 ? write(inlet, bytes, result) : result;
}

// What it leaves behind of a connection that was reset, or of which this side has shut both halves.
static void splices_after_ends(void) {
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        int ends[2];
        pipe(ends);
        SHOW(write(e.client, bytes, 29));
        await_events(e.server, POLLIN);
        if (way == 0) {
            SHOW(setsockopt(e.client, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)));
            SHOW(close(e.client));
            usleep(1000);
            SHOW(send(e.server, bytes, 100, MSG_DONTWAIT | MSG_NOSIGNAL));
        } else SHOW(shutdown(e.server, SHUT_RDWR));
        SHOW(splice_or_copy(e.server, ends[1], 1));
        SHOW(revents(e.server));
        SHOW(send(e.server, bytes, 100, MSG_DONTWAIT | MSG_NOSIGNAL));
        SHOW(splice_or_copy(e.server, ends[1], 100));
        SHOW(revents(e.server));
        if (way) close(e.client);
        close(e.server);
        close(ends[0]);
        close(ends[1]);
    }
}

// What lies unread when both ends have said their last is read past the calls of sockets, too.
static void read_after_both_ends(void) {
    for (int way = 0; way < 10; way++) {
        struct ends e = make_ends();
        int ends[2];
        pipe(ends);
        memset(bytes, way + 1, 29);
        SHOW(write(e.client, bytes, 31));
        SHOW(recv(e.server, bytes + 100, 31, MSG_WAITALL));
        SHOW(shutdown(e.client, SHUT_WR));
        SHOW(write(e.server, bytes, 29));
        if (way & 1) close(e.server);
        else SHOW(shutdown(e.server, SHUT_WR));
        await_events(e.client, POLLIN | POLLRDHUP);
        memset(bytes, 0, 100);
        struct aiocb request = {.aio_fildes = e.client, .aio_buf = bytes, .aio_nbytes = 100, .aio_lio_opcode = LIO_READ};
        struct aiocb *list[] = {&request};
        if (way < 2) SHOW(splice(e.client, NULL, ends[1], NULL, 100, 0)), SHOW(read(ends[0], bytes, 100));
        else if (way < 4) SHOW(sendfile(ends[1], e.client, NULL, 100)), SHOW(read(ends[0], bytes, 100));
        else if (way < 6) {
            FILE *stream = fdopen(dup(e.client), "r");
            SHOW(fread(bytes, 1, 100, stream));
            SHOW(feof(stream));
            fclose(stream);
        } else if (way < 8) SHOW(aio_read(&request));
        else SHOW(lio_listio(LIO_WAIT, list, 1, NULL));
        if (way >= 6) {
            SHOW(aio_suspend((const struct aiocb **)list, 1, NULL));
            SHOW(aio_return(&request));
        }
        for (int i = 0; i < 30; i++) say("%d ", bytes[i]);
        SHOW(recv(e.client, bytes, 100, MSG_DONTWAIT));
        SHOW(revents(e.client));
        SHOW(send(e.client, bytes, 1, MSG_NOSIGNAL));
        if (!(way & 1)) close(e.server);
        close(e.client);
        close(ends[0]);
        close(ends[1]);
    }
}

// Who writes past the calls of sockets need not have read what lies there.
static void written_beside_a_remainder(void) {
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        int ends[2];
        pipe(ends);
        SHOW(write(e.server, bytes, 29));
        SHOW(shutdown(e.server, SHUT_WR));
        await_events(e.client, POLLIN | POLLRDHUP);
        struct aiocb request = {.aio_fildes = e.client, .aio_buf = "written", .aio_nbytes = 7, .aio_lio_opcode = LIO_WRITE};
        struct aiocb *list[] = {&request};
        if (way == 0) SHOW(write(ends[1], "written", 7)), SHOW(splice(ends[0], NULL, e.client, NULL, 7, 0));
        if (way == 1) SHOW(aio_write(&request)), SHOW(aio_suspend((const struct aiocb **)list, 1, NULL)), SHOW(aio_return(&request));
        if (way == 2) SHOW(lio_listio(LIO_WAIT, list, 1, NULL)), SHOW(aio_return(&request));
        SHOW(recv(e.server, bytes, 100, 0));
        say("%.7s\n", bytes);
        SHOW(write(e.client, "more", 4));
        SHOW(recv(e.server, bytes, 4, MSG_WAITALL));
        SHOW(recv(e.client, bytes, 100, 0));
        SHOW(recv(e.client, bytes, 100, 0));
        close_ends(e);
        close(ends[0]);
        close(ends[1]);
    }
}

// A splice does not go past an urgent mark, whether or not the urgent byte has been taken.
static void splices_up_to_a_mark(void) {
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        int ends[2], mark = -1;
        pipe(ends);
        SHOW(write(e.client, bytes, 996));
        SHOW(send(e.client, bytes, 87, MSG_OOB));
        SHOW(write(e.client, bytes, 4));
        await_events(e.server, POLLIN);
        usleep(20000);
        if (way) SHOW(recv(e.server, bytes, 1, MSG_OOB));
        SHOW(splice_or_copy(e.server, ends[1], 60000));
        SHOW(ioctl(e.server, SIOCATMARK, &mark));
        SHOW(mark);
        SHOW(recv(e.server, bytes, 100, MSG_DONTWAIT));
        close_ends(e);
        close(ends[0]);
        close(ends[1]);
    }
}

// recvmmsg tells of a reset before it looks for data; recvmsg behind them.
static void reset_before_messages(void) {
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        int child = fork();
        if (!child) {
            write(e.server, "last", 4);
            pause();
        }
        close(e.server);
        SHOW(write(e.client, "unread", 6));
        SHOW(recv(e.client, bytes, 1, MSG_PEEK));
        kill(child, SIGKILL);
        while (waitpid(child, NULL, 0) < 0) {}
        usleep(20000);  // nobody has asked since
        struct iovec pieces[2] = {{bytes, 4}, {bytes + 4, 4}};
        struct mmsghdr list[2] = {{.msg_hdr = {.msg_iov = &pieces[0], .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &pieces[1], .msg_iovlen = 1}}};
        if (way) SHOW(recv(e.client, bytes, 2, 0));
        for (int i = 0; i < 3; i++) SHOW(recvmmsg(e.client, list, 2, MSG_DONTWAIT, NULL));
        SHOW(revents(e.client));
        SHOW(recv(e.client, bytes, 4, MSG_DONTWAIT));
        close(e.client);
    }
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    signal(SIGPIPE, SIG_IGN);
    CASE(errors_after_bytes);
    CASE(resets);
    CASE(files);
    CASE(unread_at_exit);
    CASE(resets_at_once);
    CASE(registrations_across_fork);
    CASE(one_shots_across_fork);
    CASE(changes_across_fork);
    CASE(numbers_used_again);
    CASE(splices_of_nothing);
    CASE(room_across_fork);
    CASE(options_after_shutdown);
    CASE(looking_at_a_reset);
    CASE(up_to_a_mark);
    CASE(sent_to_the_dead);
    CASE(options_in_between);
    CASE(told_once);
    CASE(splices_after_ends);
    CASE(read_after_both_ends);
    CASE(written_beside_a_remainder);
    CASE(reset_before_messages);
    CASE(splices_up_to_a_mark);
    printf("%d different\n", failures);
    return failures != 0;
}
