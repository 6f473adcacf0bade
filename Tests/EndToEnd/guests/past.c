// Calls that reach a socket by another way than the socket interface: every byte and its order the same as on TCP.
#include "carriers.h"
#include <aio.h>
#include <execinfo.h>
#include <linux/aio_abi.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <termios.h>
#include <sys/eventfd.h>
#include <sys/un.h>

int main(int, char **);

static void expect(int fd, const char *text) {
    char got[256] = {0};
    long count = recv(fd, got, strlen(text), MSG_WAITALL);
    say("%s %ld %s\n", text, count, memcmp(got, text, strlen(text)) ? got : "the same");
}

static void formatted(void) {
    struct ends e = make_ends();
    char big[3000];
    memset(big, 'b', sizeof big);
    big[sizeof big - 1] = 0;
    for (int i = 0; i < 3; i++) {
        SHOW(write(e.client, "before ", 7));
        SHOW(dprintf(e.client, "%d %s ", 42, "formatted"));
        SHOW(write(e.client, "after", 5));
        expect(e.server, "before 42 formatted after");
    }
    SHOW(dprintf(e.server, "%s", big));
    SHOW(recv(e.client, big, 2999, MSG_WAITALL));
    SHOW(dprintf(-1, "x"));
    close_ends(e);
}

static void stream(void) {
    struct ends e = make_ends();
    SHOW(write(e.client, "first line\n", 11));
    SHOW(write(e.server, "before ", 7));
    FILE *file = fdopen(e.server, "r+");
    setvbuf(file, NULL, _IOLBF, 0);
    char line[64] = "";
    SHOW(write(e.client, "second line\n", 12));
    say("%s", fgets(line, sizeof line, file));
    say("%s", fgets(line, sizeof line, file));
    fprintf(file, "printed %d\n", 7);
    fflush(file);
    expect(e.client, "before printed 7\n");
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(fgets(line, sizeof line, file) == NULL);
    SHOW(fclose(file));
    SHOW(recv(e.client, line, 1, 0));
    close(e.client);
}

// What a handler of crashes does, here on a connection that knows nothing of libc's own writing yet.
static void traced(void) {
    struct ends e = make_ends();
    char big[3000];
    void *addresses[] = {(void *)main, NULL};
    SHOW(write(e.client, "before ", 7));
    memset(big, 0, sizeof big);
    backtrace_symbols_fd(addresses, 2, e.client);
    SHOW(write(e.client, "after", 5));
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(recv(e.server, big, sizeof big, MSG_WAITALL) > 20);
    say("%s\n", big);
    close_ends(e);
}

static void close_unseen(int fd) {
    long result = fd;
#if defined(__x86_64__)
    __asm__ volatile("syscall" : "=a"(result) : "0"((long)SYS_close), "D"((long)fd) : "rcx", "r11", "memory");
#else
    register long x8 __asm__("x8") = SYS_close, x0 __asm__("x0") = fd;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8) : "memory");
    result = x0;
#endif
    SHOW(result);
}

static struct sockaddr_un named(int fd) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    socklen_t length = sizeof name;
    bind(fd, (void *)&name, sizeof(sa_family_t));
    getsockname(fd, (void *)&name, &length);
    return name;
}

// A socket whose number another one has now, by which a connection with bytes unread is passed on.
static void closed_unseen(void) {
    for (int way = 0; way < 6; way++) {
        say("way %d\n", way);
        struct ends e = make_ends(), passed = make_ends();
        int number = e.server, channel[2] = {-1, -1}, received = -1;
        int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
        struct sockaddr_un name;
        FILE *file = NULL;
        char line[64] = "";
        if (way < 4) {
            SHOW(write(e.client, "a line\n", 7));
            file = fdopen(number, "r+");
            say("%s", fgets(line, sizeof line, file));
            SHOW(fputs("left in the buffer", file));
        }
        if (way < 2) SHOW(fclose(file));
        if (way == 2) SHOW(freopen("/dev/null", "r+", file) == file);
        if (way == 3) SHOW(freopen(NULL, "r", file) == NULL);
        if (way < 4) expect(e.client, "left in the buffer");
        if (way > 3) close_unseen(number);
        SHOW(recv(e.client, line, 1, 0));
        if (way == 2) {
            SHOW(fileno(file) == number);
            SHOW(fclose(file));
        }
        if (way == 4) {
            channel[0] = socket(AF_UNIX, SOCK_DGRAM, 0);
            channel[1] = socket(AF_UNIX, SOCK_DGRAM, 0);
            name = named(channel[1]);
            SHOW(connect(channel[0], (void *)&name, sizeof(sa_family_t) + 6));
        } else if (way == 5) {
            name = named(listener);
            channel[1] = client;
            SHOW(listen(listener, 1));
            SHOW(connect(channel[1], (void *)&name, sizeof(sa_family_t) + 6));
            channel[0] = accept(listener, NULL, NULL);
        } else if (socketpair(AF_UNIX, SOCK_STREAM, 0, channel)) fail("socketpair");
        SHOW(channel[0] == number);
        SHOW(write(passed.client, "unread", 6));
        char control[CMSG_SPACE(sizeof(int))] = {0};
        struct msghdr m = {.msg_iov = &(struct iovec){line, 1}, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &passed.server, sizeof(int));
        SHOW(sendmsg(channel[0], &m, 0));
        SHOW(close(passed.server));
        SHOW(write(passed.client, " bytes", 6));
        SHOW(recvmsg(channel[1], &m, 0));
        if ((c = CMSG_FIRSTHDR(&m))) memcpy(&received, CMSG_DATA(c), sizeof(int));
        expect(received, "unread bytes");
        SHOW(write(received, "back", 4));
        expect(passed.client, "back");
        close(received);
        close(channel[0]);
        close(channel[1]);
        close(client);
        close(listener);
        close(passed.client);
        close(e.client);
    }
}

// What is owed to a connection at its end is not done to the socket that has its number by then.
static void number_taken(void) {
    struct ends e = make_ends();
    struct linger linger = {7, 7};
    socklen_t length = sizeof linger;
    SHOW(write(e.client, "unread", 6));
    close_unseen(e.server);
    SHOW(socket(AF_INET, SOCK_STREAM, 0) == e.server);
    SHOW(getsockopt(e.server, SOL_SOCKET, SO_LINGER, &linger, &length));
    SHOW(linger.l_onoff);
    SHOW(linger.l_linger);
    struct pollfd p = {e.client, POLLIN};
    SHOW(poll(&p, 1, 1000));
    close_ends(e);
}

static void positioned(void) {
    struct ends e = make_ends();
    char got[16] = "";
    struct iovec v[2] = {{"abc", 3}, {"de", 2}}, r[2] = {{got, 2}, {got + 2, 14}};
    SHOW(pread(e.server, got, 1, 0));
    SHOW(pwrite(e.client, "x", 1, 0));
    SHOW(pread(e.server, got, 1, -1));
    SHOW(preadv(e.server, r, 2, 0));
    SHOW(pwritev(e.client, v, 2, 0));
    SHOW(preadv2(e.server, r, 2, 0, 0));
    SHOW(pwritev2(e.client, v, 2, 5, 0));
    SHOW(pwritev2(e.client, v, 2, -2, 0));
    SHOW(preadv2(e.server, r, 2, -1, RWF_NOWAIT));
    SHOW(pwritev2(e.client, v, 2, -1, 0));
    SHOW(preadv2(e.server, r, 2, -1, 0));
    SHOW(memcmp(got, "abcde", 5));
    SHOW(pwritev2(e.client, v, 2, -1, RWF_NOWAIT));
    SHOW(preadv2(e.server, r, 1, -1, RWF_HIPRI | RWF_NOWAIT));
    SHOW(preadv2(e.server, r, 2, -1, 0x4000));
    SHOW(preadv2(e.server, r, 2, -1, 0));
    SHOW(preadv2(e.server, r, 0, -1, 0));
    SHOW(preadv2(e.server, r, -1, -1, 0));
    SHOW(pwritev2(e.client, NULL, 1, -1, 0));
    SHOW(lseek(e.client, 0, SEEK_CUR));
    close_ends(e);
}

static void files(void) {
    struct ends e = make_ends(), f = make_ends();
    char got[16] = "";
    int pipes[2], file = open("/proc/self/exe", O_RDONLY);
    off_t offset = 0;
    pipe2(pipes, O_NONBLOCK);
    SHOW(write(e.client, "0123456789", 10));
    SHOW(sendfile(f.client, e.server, NULL, 5));
    SHOW(sendfile(f.client, e.server, &offset, 5));
    SHOW(sendfile(pipes[1], e.server, NULL, 5));
    SHOW(copy_file_range(e.server, NULL, f.client, NULL, 5, 0));
    SHOW(copy_file_range(file, NULL, f.client, NULL, 5, 0));
    SHOW(tee(e.server, pipes[1], 5, 0));
    SHOW(tee(pipes[0], f.client, 5, 0));
    SHOW(vmsplice(e.client, &(struct iovec){"x", 1}, 1, 0));
    SHOW(splice(e.server, NULL, pipes[1], NULL, 5, SPLICE_F_NONBLOCK));
    SHOW(read(pipes[0], got, 16));
    SHOW(recv(e.server, got, 16, MSG_DONTWAIT));
    SHOW(write(pipes[1], "spliced", 7));
    SHOW(write(f.client, "before ", 7));
    SHOW(splice(pipes[0], NULL, f.client, NULL, 7, 0));
    SHOW(write(f.client, " after", 6));
    expect(f.server, "before spliced after");
    SHOW(fsync(e.client));
    SHOW(ftruncate(e.client, 0));
    SHOW(posix_fadvise(e.client, 0, 0, POSIX_FADV_NORMAL));
    SHOW(isatty(e.client));
    close(file);
    close(pipes[0]);
    close(pipes[1]);
    close_ends(e);
    close_ends(f);
}

static void asynchronous(void) {
    struct ends e = make_ends();
    char got[16] = "";
    SHOW(write(e.client, "one ", 4));
    struct aiocb w = {.aio_fildes = e.client, .aio_buf = "two", .aio_nbytes = 3}, r = {.aio_fildes = e.server, .aio_buf = got, .aio_nbytes = 7};
    const struct aiocb *wait[] = {&w};
    SHOW(aio_write(&w));
    SHOW(aio_suspend(wait, 1, NULL));
    SHOW(aio_return(&w));
    expect(e.server, "one two");
    SHOW(write(e.client, "one two", 7));
    wait[0] = &r;
    SHOW(aio_read(&r));
    SHOW(aio_suspend(wait, 1, NULL));
    SHOW(aio_return(&r));
    SHOW(memcmp(got, "one two", 7));
    close_ends(e);
    e = make_ends();
    struct aiocb *list[] = {&w, &r};
    w.aio_fildes = e.client;
    r.aio_fildes = e.server;
    r.aio_nbytes = 3;
    w.aio_lio_opcode = LIO_WRITE;
    r.aio_lio_opcode = LIO_READ;
    memset(got, 0, sizeof got);
    SHOW(lio_listio(LIO_WAIT, list, 2, NULL));
    SHOW(memcmp(got, "two", 3));
    close_ends(e);
}

// The kernel's own asynchronous calls, which libc has no functions for.
static void submitted(void) {
    struct ends e = make_ends();
    char got[16] = "";
    aio_context_t context = 0;
    struct io_event events[4];
    struct iovec v = {" four", 5};
    SHOW(syscall(SYS_io_setup, 8, &context));
    SHOW(write(e.client, "one two", 7));
    struct iocb w = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = e.client, .aio_buf = (uintptr_t)" three", .aio_nbytes = 6};
    struct iocb r = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = e.server, .aio_buf = (uintptr_t)got, .aio_nbytes = 16};
    struct iocb wv = {.aio_lio_opcode = IOCB_CMD_PWRITEV, .aio_fildes = e.client, .aio_buf = (uintptr_t)&v, .aio_nbytes = 1};
    struct iocb *all[] = {&w, &wv, NULL, (void *)8};
    SHOW(syscall(SYS_io_submit, context, 2, all));
    SHOW(syscall(SYS_io_getevents, context, 2, 2, events, NULL));
    SHOW(events[0].res);
    SHOW(events[1].res);
    SHOW(write(e.client, "!", 1));
    expect(e.server, "one two three four!");
    close_ends(e);
    e = make_ends();
    SHOW(write(e.client, "0123456789", 10));
    all[0] = &r;
    r.aio_fildes = e.server;
    SHOW(syscall(SYS_io_submit, context, 1, all));
    SHOW(syscall(SYS_io_getevents, context, 1, 1, events, NULL));
    SHOW(events[0].res);
    SHOW(memcmp(got, "0123456789", 10));
    SHOW(syscall(SYS_io_submit, context, 2, all + 2));
    SHOW(syscall(SYS_io_submit, context, 1, all + 3));
    SHOW(syscall(SYS_io_submit, context, 1, NULL));
    SHOW(syscall(SYS_io_submit, context, 0, all));
    SHOW(syscall(SYS_io_submit, context, -1L, all));
    SHOW(write(e.server, "back", 4));
    struct iocb p = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = e.client, .aio_buf = POLLIN};
    all[0] = &p;
    SHOW(syscall(SYS_io_submit, context, 1, all));
    SHOW(syscall(SYS_io_getevents, context, 1, 1, events, &(struct timespec){2}));
    SHOW(events[0].res);
    expect(e.client, "back");
    SHOW(syscall(SYS_io_destroy, context));
    close_ends(e);
}

static void aliases(void) {
    struct ends e = make_ends();
    uint64_t value = 0;
    extern long __read(int, void *, size_t), __write(int, const void *, size_t), __send(int, const void *, size_t, int);
    char got[16] = "";
    SHOW(__write(e.client, "abc", 3));
    SHOW(__send(e.client, "def", 3, 0));
    SHOW(recv(e.server, got, 6, MSG_WAITALL));
    SHOW(write(e.client, "ghi", 3));
    SHOW(__read(e.server, got, 3));
    SHOW(memcmp(got, "ghidef", 6));
    SHOW(eventfd_write(e.client, 0x4142434445464748));
    SHOW(eventfd_read(e.server, &value));
    SHOW(value == 0x4142434445464748);
    SHOW(sockatmark(e.server));
    SHOW(sockatmark(-1));
    close_ends(e);
}

static void system_calls(void) {
    struct ends e = make_ends();
    char got[64] = "";
    struct iovec v = {got, 3}, o = {"wri", 3};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1}, n = {.msg_iov = &o, .msg_iovlen = 1};
    int value = 0;
    struct pollfd p = {e.server, POLLIN, 0};
    SHOW(syscall(SYS_write, e.client, "abc", 3));
    SHOW(syscall(SYS_writev, e.client, &o, 1));
    SHOW(syscall(SYS_sendto, e.client, "def", 3, 0, NULL, 0));
    SHOW(syscall(SYS_sendmsg, e.client, &n, 0));
    SHOW(syscall(SYS_pwritev2, e.client, &o, 1, -1L, -1L, 0));
    SHOW(syscall(SYS_poll, &p, 1, 1000));
    SHOW(p.revents);
    SHOW(syscall(SYS_ppoll, &p, 1, NULL, NULL, 8));
    expect(e.server, "abcwridefwriwri");
    SHOW(syscall(SYS_recvfrom, e.server, got, 1, MSG_DONTWAIT, NULL, NULL));
    SHOW(write(e.client, "0123456789abcdef", 16));
    SHOW(syscall(SYS_ioctl, e.server, FIONREAD, &value));
    SHOW(value);
    SHOW(syscall(SYS_read, e.server, got, 3));
    SHOW(syscall(SYS_readv, e.server, &v, 1));
    SHOW(syscall(SYS_recvfrom, e.server, got, 3, 0, NULL, NULL));
    SHOW(syscall(SYS_recvmsg, e.server, &m, 0));
    SHOW(syscall(SYS_preadv2, e.server, &v, 1, -1L, -1L, 0));
    SHOW(recv(e.server, got, 64, 0));
    int copy = syscall(SYS_dup, e.client);
    SHOW(copy > e.client);
    SHOW(syscall(SYS_write, copy, "dup", 3));
    SHOW(syscall(SYS_close, copy));
    expect(e.server, "dup");
    SHOW(syscall(SYS_fcntl, e.client, F_SETFL, O_NONBLOCK));
    SHOW(recv(e.client, got, 1, 0));
    SHOW(syscall(SYS_shutdown, e.client, SHUT_WR));
    SHOW(syscall(SYS_read, e.server, got, 3));
    SHOW(syscall(SYS_read, -1, got, 3));
    SHOW(syscall(SYS_write, e.server, (void *)8, 3));
    SHOW(syscall(100000, 1, 2, 3));
    SHOW(syscall(SYS_close, e.server));
    SHOW(recv(e.client, got, 1, 0));
    close(e.client);
}

static int print(int fd, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int count = vdprintf(fd, format, arguments);
    va_end(arguments);
    return count;
}

// Calls for files and terminals, which say what a socket is, or do nothing to it.
static void for_files(void) {
    struct ends e = make_ends();
    struct stat status;
    struct statfs system;
    struct statvfs other;
    struct termios terminal;
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    char name[64] = "";
    SHOW(write(e.client, "stays", 5));
    SHOW(fdatasync(e.server));
    SHOW(fallocate(e.server, 0, 0, 10));
    SHOW(posix_fallocate(e.server, 0, 10));
    SHOW(readahead(e.server, 0, 10));
    SHOW(sync_file_range(e.server, 0, 10, SYNC_FILE_RANGE_WRITE));
    SHOW(fstat(e.server, &status));
    SHOW(status.st_mode);
    SHOW(fstatat(e.server, "", &status, AT_EMPTY_PATH));
    SHOW(fstatfs(e.server, &system));
    SHOW(system.f_type);
    SHOW(fstatvfs(e.server, &other));
    SHOW(fchmod(e.server, 0600));
    SHOW(fchmodat(e.server, "x", 0600, 0));
    SHOW(fchown(e.server, getuid(), getgid()));
    SHOW(fchownat(e.server, "", getuid(), getgid(), AT_EMPTY_PATH));
    SHOW(futimens(e.server, NULL));
    SHOW(flock(e.server, LOCK_EX));
    SHOW(flock(e.server, LOCK_UN));
    SHOW(lockf(e.server, F_TLOCK, 0));
    SHOW(ttyname(e.server) == NULL);
    SHOW(ttyname_r(e.server, name, sizeof name));
    SHOW(tcgetattr(e.server, &terminal));
    SHOW(tcsetattr(e.server, TCSANOW, &terminal));
    SHOW(tcdrain(e.server));
    SHOW(tcflow(e.server, TCOON));
    SHOW(tcflush(e.server, TCIFLUSH));
    SHOW(tcgetpgrp(e.server));
    SHOW(tcsetpgrp(e.server, getpgrp()));
    SHOW(tcgetsid(e.server));
    SHOW(tcsendbreak(e.server, 0));
    SHOW(isfdtype(e.server, S_IFSOCK));
    SHOW(getpeername(e.server, (void *)&address, &length));
    SHOW(length);
    SHOW(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, e.server, 0) == MAP_FAILED);
    int copy = dup3(e.server, 900, O_CLOEXEC);
    SHOW(copy);
    SHOW(close(copy));
    int set = epoll_create(1);
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &(struct epoll_event){EPOLLIN}));
    SHOW(epoll_wait(set, &(struct epoll_event){0}, 1, 1000));
    close(set);
    struct aiocb none = {.aio_fildes = e.server, .aio_buf = name, .aio_nbytes = 1};
    SHOW(aio_cancel(e.server, NULL));
    SHOW(aio_error(&none));
    SHOW(aio_fsync(O_SYNC, &none));
    const struct aiocb *wait[] = {&none};
    SHOW(aio_suspend(wait, 1, NULL));
    SHOW(aio_error(&none));
    expect(e.server, "stays");
    SHOW(print(e.client, "%s %d", "printed", 3));
    expect(e.server, "printed 3");
    close_ends(e);
}

// The rest of stdio on a stream that was opened on a connection with bytes on their way.
static void blocks(void) {
    struct ends e = make_ends();
    char block[64] = "";
    SHOW(write(e.client, "0123456789", 10));
    FILE *file = fdopen(e.server, "r+");
    flockfile(file);
    SHOW(fread_unlocked(block, 1, 4, file));
    funlockfile(file);
    SHOW(ftrylockfile(file));
    SHOW(fread(block + 4, 2, 3, file));
    funlockfile(file);
    SHOW(memcmp(block, "0123456789", 10));
    SHOW(fwrite("block", 1, 5, file));
    SHOW(fwrite_unlocked(" block", 1, 6, file));
    SHOW(fflush(file));
    expect(e.client, "block block");
    SHOW(fclose(file));
    close(e.client);
}

static volatile int signals_seen;
static void on_io(int signal) { signals_seen++; }

static void wait_for_signal(void) {
    for (int i = 0; i < 2000 && !signals_seen; i++) usleep(1000);
    say("signal %d\n", signals_seen > 0);
    signals_seen = 0;
}

static int last_words = -1;
static void say_last_words(void) {
    if (last_words >= 0) write(last_words, "last words", 10);
}

// The end of a process that runs no destructors: with nothing and with something unread, with what its handlers send, with what
// the other end wants from it on TCP, and with more than TCP takes at once.
static void ended_quickly(void) {
    static char much[300000];
    for (int way = 0; way < 5; way++) {
        struct ends e = make_ends();
        int pipes[2], status = -1;
        char byte;
        say("way %d\n", way);
        if (pipe(pipes) < 0) fail("pipe");
        pid_t child = fork();
        if (child == 0) {
            close(e.client);
            if (way == 2) {
                last_words = e.server;
                at_quick_exit(say_last_words);
            }
            if (way == 3) write(e.server, "owed bytes", 10);
            if (way == 4) {
                fcntl(e.server, F_SETFL, O_NONBLOCK);
                if (write(e.server, much, sizeof much) != sizeof much) _exit(1);
            }
            if (read(pipes[0], &byte, 1) != 1) _exit(1);
            quick_exit(3);
        }
        close(e.server);
        if (way == 1) SHOW(send(e.client, "unread", 6, 0));
        if (way > 2) {
            struct pollfd p = {e.client, POLLIN};
            SHOW(poll(&p, 1, 5000));
        }
        if (way == 3) SHOW(setsockopt(e.client, SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)));
        if (write(pipes[1], "x", 1) != 1) fail("write");
        if (way == 4) SHOW(recv(e.client, much, sizeof much, MSG_WAITALL));
        waitpid(child, &status, 0);
        if (way == 3) expect(e.client, "owed bytes");
        SHOW(WEXITSTATUS(status));
        if (way == 2) expect(e.client, "last words");
        if (way != 1) SHOW(recv(e.client, &byte, 1, 0));
        struct pollfd p = {e.client, POLLIN};
        SHOW(poll(&p, 1, 1000));
        SHOW(p.revents);
        SHOW(send(e.client, "x", 1, 0));
        usleep(2000);
        SHOW(send(e.client, "x", 1, 0));
        close(e.client);
        close(pipes[0]);
        close(pipes[1]);
    }
}

// A stream whose last bytes nobody takes: fclose tells of it, and so it does where the switch has sent them before.
static void closed_in_vain(void) {
    struct ends e = make_ends();
    struct pollfd p = {e.client, POLLIN};
    FILE *file = fdopen(e.client, "w");
    SHOW(setsockopt(e.server, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)));
    SHOW(close(e.server));
    SHOW(poll(&p, 1, 1000));
    SHOW(fputs("lost", file));
    errno = 0;
    int closed = fclose(file);
    if (closed != EOF || errno != ECONNRESET) {
        printf("fclose: %d %s\n", closed, strerrorname_np(errno));
        failures++;
    }
}

// SIGIO when data, and when the end, arrive: what was asked for before and after the connection moved.
static void signal_driven(void) {
    signal(SIGIO, on_io);
    signal(SIGUSR2, on_io);
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        char got[8];
        signals_seen = 0;
        SHOW(fcntl(e.server, F_SETOWN, getpid()));
        SHOW(fcntl(e.server, F_GETOWN) == getpid());
        if (way == 0) SHOW(fcntl(e.server, F_SETFL, O_ASYNC));
        else if (way == 1) SHOW(ioctl(e.server, FIOASYNC, &(int){1}));
        else {
            SHOW(fcntl(e.server, F_SETSIG, SIGUSR2));
            SHOW(fcntl(e.server, F_SETFL, O_ASYNC | O_NONBLOCK));
        }
        SHOW(fcntl(e.server, F_GETFL));
        SHOW(write(e.client, "x", 1));
        wait_for_signal();
        SHOW(recv(e.server, got, 8, 0));
        SHOW(write(e.client, "y", 1));
        wait_for_signal();
        SHOW(recv(e.server, got, 8, 0));
        SHOW(fcntl(e.server, F_SETFL, 0));
        SHOW(write(e.client, "z", 1));
        SHOW(recv(e.server, got, 8, 0));
        close_ends(e);
    }
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    signal(SIGPIPE, SIG_IGN);
    CASE(formatted);
    CASE(stream);
    CASE(traced);
    CASE(closed_unseen);
    CASE(number_taken);
    CASE(positioned);
    CASE(files);
    CASE(asynchronous);
    CASE(submitted);
    CASE(aliases);
    CASE(system_calls);
    CASE(for_files);
    CASE(blocks);
    CASE(ended_quickly);
    CASE(closed_in_vain);
    CASE(signal_driven);
    printf("%d different\n", failures);
    return failures != 0;
}
