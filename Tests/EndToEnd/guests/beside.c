// Numbers and options that change beside the switch: descriptors that a forked child has not, children on their parent's memory,
// listeners whose options are inherited, sockets as standard streams, what is left of a time-out, and what libc writes by itself.
#include "carriers.h"
#include <netinet/in.h>

static char bytes[4096];

static struct ends connect_ends(int listener, const struct sockaddr_in *address) {
    struct ends ends = {socket(AF_INET, SOCK_STREAM, 0), -1};
    if (connect(ends.client, (void *)address, sizeof *address) < 0) fail("connect");
    ends.server = accept(listener, NULL, NULL);
    if (ends.server < 0) fail("accept");
    setsockopt(ends.client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return ends;
}

static void *rests(void *argument) {
    char byte;
    read(*(int *)argument, &byte, 1);
    return NULL;
}

// The kernel copies the descriptors of a process before its memory, so beside other threads a child may know of sockets that it
// does not have. (Here by a close that nobody sees.) Its own files must not be taken for them.
static void numbers_that_a_child_has_not(void) {
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        int rest[2], status;
        pipe(rest);
        pthread_t thread;
        pthread_create(&thread, NULL, rests, &rest[0]);
        int set = way ? epoll_create1(0) : -1;
        int number = way ? set : e.client;
#if defined(__x86_64__)
        long result;
        __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_close), "D"(number) : "rcx", "r11", "memory");
#else
        close(number);
#endif
        int child = fork();
        if (!child) {
            int file = memfd_create("file", 0), wrong = file != number;
            if (write(file, "file", 4) != 4 || lseek(file, 0, SEEK_SET) != 0) wrong |= 2;
            if (read(file, bytes, 4) != 4 || memcmp(bytes, "file", 4)) wrong |= 4;
            struct pollfd entry = {file, POLLIN, 0};
            if (poll(&entry, 1, 100) != 1 || entry.revents != POLLIN) wrong |= 8;
            if (dup2(file, 0) != 0) wrong |= 16;
            _exit(wrong);
        }
        while (waitpid(child, &status, 0) < 0) {}
        SHOW(status);
        if (!way) SHOW(recv(e.server, bytes, 100, MSG_DONTWAIT));
        write(rest[1], "x", 1);
        pthread_join(thread, NULL);
        close(rest[0]);
        close(rest[1]);
        close(number);
        close(e.server);
        if (way) close(e.client);
    }
}

// A vfork child has descriptors of its own.
static void numbers_of_a_vfork_child(void) {
    struct ends e = make_ends();
    int file = memfd_create("file", 0), status;
    int child = vfork();
    if (!child) {
        close(e.client);
        if (dup3(file, e.client, 0) != e.client || write(e.client, "to the file", 11) != 11) _exit(1);
        if (lseek(e.client, 0, SEEK_SET) != 0 || read(e.client, bytes, 11) != 11 || memcmp(bytes, "to the file", 11)) _exit(2);
        _exit(send(e.client, bytes, 1, 0) < 0 && errno == ENOTSOCK ? 0 : 3);
    }
    while (waitpid(child, &status, 0) < 0) {}
    SHOW(status);
    SHOW(recv(e.server, bytes, 100, MSG_DONTWAIT));
    SHOW(write(e.client, "to the peer", 11));
    SHOW(recv(e.server, bytes, 100, 0));
    close_ends(e);
    close(file);
}

// What is accepted has what the listener was told.
static void options_of_a_listener(void) {
    for (int way = 0; way < 3; way++) {
        struct sockaddr_in address;
        int listener = make_listener(&address);
        if (way == 0) SHOW(setsockopt(listener, SOL_SOCKET, SO_RCVLOWAT, &(int){100}, sizeof(int)));
        if (way == 1) SHOW(setsockopt(listener, SOL_SOCKET, SO_TIMESTAMPNS, &(int){1}, sizeof(int)));
        if (way == 2) SHOW(setsockopt(listener, SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)));
        struct ends e = connect_ends(listener, &address);
        for (int i = 0; i < 40; i++) {
            if (write(e.client, bytes, 128) != 128 || recv(e.server, bytes, 128, MSG_WAITALL) != 128) fail("talking");
            if (write(e.server, bytes, 1) != 1 || read(e.client, bytes, 1) != 1) fail("talking");
            if (i > 20) usleep(500);
        }
        SHOW(write(e.client, bytes, 50));
        struct pollfd entry = {e.server, POLLIN, 0};
        SHOW(poll(&entry, 1, 30));
        SHOW(write(e.client, bytes, 50));
        SHOW(poll(&entry, 1, 1000));
        char control[256];
        struct iovec piece = {bytes, 100};
        struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        usleep(10000);
        SHOW(recvmsg(e.server, &message, 0));
        SHOW(message.msg_controllen);
        close_ends(e);
        close(listener);
    }
}

// stdio reads and writes by itself.
static void socket_as_standard_input(void) {
    static int before = -1;
    if (before < 0) before = dup(0);
    struct sockaddr_in address;
    int listener = make_listener(&address), client = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client, (void *)&address, sizeof address) < 0) fail("connect");
    close(0);
    SHOW(accept(listener, NULL, NULL));
    clearerr(stdin);
    for (int i = 0; i < 60; i++) {
        if (write(client, "line\n", 5) != 5) fail("write");
        struct pollfd entry = {0, POLLIN, 0};
        if (poll(&entry, 1, 2000) != 1) {
            SHOW(i);
            break;
        }
        char line[16] = "";
        if (!fgets(line, sizeof line, stdin) || strcmp(line, "line\n")) {
            SHOW(i);
            break;
        }
        if (write(0, "answer", 6) != 6 || recv(client, bytes, 6, MSG_WAITALL) != 6) fail("answer");
        if (i > 20) usleep(500);
    }
    close(client);
    dup2(before, 0);
    close(listener);
}

static void *writes_four(void *argument) {
    for (int i = 0; i < 4; i++) {
        usleep(50000);
        if (write(*(int *)argument, "four", 4) != 4) fail("write");
    }
    return NULL;
}

// More bytes than a call can say it has moved.
static void too_many_bytes(void) {
    struct ends e = make_ends();
    int file = memfd_create("file", 0);
    off_t at = 0;
    write(file, "content", 7);
    if (sendfile(e.client, file, &at, (size_t)-1) != -1 || errno != EINVAL) fail("sendfile of all there is");
    SHOW(sendfile(e.client, file, &at, (size_t)1 << 62));
    SHOW(recv(e.server, bytes, 100, 0));
    close_ends(e);
    close(file);
}

static void time_that_is_left(void) {
    struct ends e = make_ends();
    struct iovec piece = {bytes, 4};
    struct mmsghdr list[8] = {0};
    for (int i = 0; i < 8; i++) list[i].msg_hdr.msg_iov = &piece, list[i].msg_hdr.msg_iovlen = 1;
    pthread_t thread;
    pthread_create(&thread, NULL, writes_four, &e.client);
    // 50, 100, 150, 200 ms, together more than all.
    struct timespec time = {0, 450000000};
    SHOW(recvmmsg(e.server, list, 4, 0, &time));
    SHOW(time.tv_sec);
    SHOW(time.tv_nsec > 100000000 && time.tv_nsec < 300000000);
    pthread_join(thread, NULL);
    struct pollfd entry = {e.server, POLLIN, 0};
    time = (struct timespec){0, 30000000};
    SHOW(syscall(SYS_ppoll, &entry, 1, &time, NULL, 8));
    if (time.tv_nsec) fail("the time that ppoll leaves");
    SHOW(write(e.client, "x", 1));
    time = (struct timespec){5, 0};
    SHOW(syscall(SYS_ppoll, &entry, 1, &time, NULL, 8));
    SHOW(time.tv_sec);
    SHOW(time.tv_nsec > 900000000);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(e.client, &set);
    time = (struct timespec){0, 30000000};
    SHOW(syscall(SYS_pselect6, e.client + 1, &set, NULL, NULL, &time, NULL));
    if (time.tv_nsec) fail("the time that pselect6 leaves");
    close_ends(e);
}

// What libc writes follows what the peer has given back and not taken yet; and a stream finds what lies unread, whoever else has
// the socket.

static char taken[1 << 21];

/// Takes everything, late: 1 when it was the filling, and behind it the text.
static void *takes_late(void *argument) {
    int fd = ((struct ends *)argument)->server;
    usleep(1500000);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){1 << 20}, sizeof(int));
    setsockopt(((struct ends *)argument)->client, SOL_SOCKET, SO_SNDBUF, &(int){1 << 20}, sizeof(int));
    size_t sum = 0;
    for (ssize_t part; sum < sizeof taken && (part = read(fd, taken + sum, sizeof taken - sum)) > 0;) sum += part;
    size_t filling = 0;
    while (filling < sum && taken[filling] == 'x') filling++;
    return (void *)(long)(sum - filling == 9 && !memcmp(taken + filling, "the text\n", 9));
}

static void order_behind_what_is_given_back(void) {
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        memset(bytes, 'x', sizeof bytes);
        setsockopt(e.server, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
        for (int i = 0; i < 30 && send(e.client, bytes, sizeof bytes, MSG_DONTWAIT) > 0; i++) {}
        setsockopt(e.client, SOL_SOCKET, SO_SNDBUF, &(int){4096}, sizeof(int));
        setsockopt(e.server, SOL_SOCKET, SO_RCVLOWAT, &(int){2}, sizeof(int));
        pthread_t thread;
        pthread_create(&thread, NULL, takes_late, &e);
        if (way == 0) {
            SHOW(dprintf(e.client, "%s %s\n", "the", "text"));
        } else if (way == 1) {
            FILE *stream = fdopen(e.client, "w");
            SHOW(fileno(stream) == e.client);
            SHOW(fprintf(stream, "the text\n"));
            SHOW(fseek(stream, 0, SEEK_SET));
            SHOW(fflush(stream));
            SHOW(shutdown(fileno(stream), SHUT_WR));
            SHOW(fclose(stream));
        } else {
            int file = memfd_create("text", 0);
            SHOW(write(file, "the text\n", 9));
            off_t at = 0;
            SHOW(sendfile(e.client, file, &at, 9));
            close(file);
        }
        if (way != 1) close(e.client);
        void *right;
        pthread_join(thread, &right);
        SHOW(right);
        close(e.server);
    }
}

static void dprintf_stays(void) {
    struct ends e = make_ends();
    uint64_t before = tcp_bytes(e.client);
    SHOW(dprintf(e.client, "%d%n", 42, &(int){0}));
    SHOW(recv(e.server, bytes, 100, 0));
    if (moves && carrier == 1 && tcp_bytes(e.client) != before) fail("dprintf went over TCP");
    SHOW(dprintf(e.client, ""));
    SHOW(shutdown(e.client, SHUT_WR));
    SHOW(dprintf(e.client, "x"));
    close_ends(e);
}

static void streams_beside_a_child(void) {
    for (int way = 0; way < 2; way++) {
        struct ends e = make_ends();
        int rest[2];
        pipe(rest);
        int child = fork();
        if (!child) {
            close(rest[1]);
            read(rest[0], bytes, 1);
            _exit(0);
        }
        close(rest[0]);
        SHOW(write(e.client, "one line\nand more", 17));
        SHOW(shutdown(e.client, SHUT_WR));
        usleep(2000);
        FILE *stream = fdopen(e.server, way ? "r" : "r+");
        char line[32] = "";
        SHOW(fgets(line, sizeof line, stream) == line);
        say("%s", line);
        SHOW(fread(line, 1, 10, stream));
        SHOW(feof(stream) != 0);
        SHOW(ferror(stream));
        if (!way) SHOW(fprintf(stream, "answer"));
        SHOW(fclose(stream));
        SHOW(fcntl(e.server, F_GETFD));
        if (!way) SHOW(recv(e.client, bytes, 6, MSG_WAITALL));
        close(rest[1]);
        while (wait(NULL) < 0) {}
        SHOW(recv(e.client, bytes, 6, 0));
        close(e.client);
    }
}

// Texts that cannot be formatted to their end, and lines of which one cannot be written: compared with what libc itself does.
static void formatting_fails(void) {
    struct ends e = make_ends();
    SHOW(dprintf(e.client, "abc%lsdef", L"\x4321zz"));
    if (recv(e.server, bytes, 100, 0) != 3) fail("what comes before a character that the locale has not");
    SHOW(write(e.client, "on", 2));
    SHOW(recv(e.server, bytes, 100, 0));
    close_ends(e);
}

static void arguments_of_sendfile(void) {
    struct ends e = make_ends();
    int files[] = {memfd_create("file", 0), open("/proc/self/exe", O_RDONLY), open("/proc/self/cmdline", O_RDONLY),
                   open("/proc/self/exe", O_PATH), open("/dev/null", O_WRONLY), open("/dev/zero", O_RDONLY)};
    static const off_t offsets[] = {0, 3, -1, -5000, (off_t)1 << 62, INT64_MAX};
    write(files[0], "0123456789", 10);
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
        for (unsigned k = 0; k < 2 * sizeof offsets / sizeof *offsets; k++) {
            off_t at = offsets[k / 2];
            SHOW(sendfile(e.client, files[i], &at, k % 2 * 10));
            SHOW(at);
            SHOW(sendfile(e.client, files[i], (off_t *)8, k % 2 * 10));
            usleep(300);
            SHOW(recv(e.server, bytes, 100, MSG_DONTWAIT));
        }
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) close(files[i]);
    close_ends(e);
}

// A file that only aligned memory is read from.
static void file_without_a_cache(void) {
    struct ends e = make_ends();
    int file = open("/proc/self/exe", O_RDONLY | O_DIRECT);
    if (file < 0) {
        printf("no file opens with O_DIRECT here: %s\n", strerrorname_np(errno));
    } else {
        off_t at = 0;
        setsockopt(e.server, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){2}, sizeof(struct timeval));
        SHOW(sendfile(e.client, file, &at, 4096));
        SHOW(at);
        SHOW(recv(e.server, bytes, 4096, MSG_WAITALL));
        SHOW(memcmp(bytes, "\177ELF", 4));
        SHOW(sendfile(e.client, file, NULL, 512));
        SHOW(recv(e.server, bytes, 512, MSG_DONTWAIT));
        close(file);
    }
    close_ends(e);
}

// Another thread receives while a connection is given to calls past the switch: no byte twice, none lost, no end before it.

static pthread_barrier_t together;

static char many[1 << 16];

struct reader {
    int fd, way;
};

static void *reads_all(void *argument) {
    struct reader *reader = argument;
    long sum = 0, wrong = 0;
    char much[700];
    pthread_barrier_wait(&together);
    for (volatile int i = reader->way * 137 % 40000; i > 0; i--) {}
    while (1) {
        struct pollfd entry = {reader->fd, POLLIN, 0};
        int polls = reader->way % 5 > 2;
        if (polls && poll(&entry, 1, 5000) != 1) return (void *)-3000L;
        ssize_t part = reader->way % 3 ? recv(reader->fd, much, sizeof much, polls ? MSG_DONTWAIT : 0) : read(reader->fd, much, 100);
        if (part == 0) break;
        if (part < 0) return (void *)(long)-errno;
        for (ssize_t i = 0; i < part; i++) wrong += much[i] != (char)((sum + i) % 251);
        sum += part;
    }
    return (void *)(wrong ? -1000 - wrong : sum);
}

/// What is wrong with one of 64 KiB and an answer: 0 nothing.
static long received_while(int way, int makes_ring) {
    struct ends e = make_ends();
    if (write(e.client, many, sizeof many) != sizeof many) fail("write");
    if (way % 2) shutdown(e.client, SHUT_WR);
    else close(e.client);
    usleep(300);
    struct reader reader = {e.server, way};
    pthread_t thread;
    pthread_create(&thread, NULL, reads_all, &reader);
    pthread_barrier_wait(&together);
    FILE *stream = NULL;
    if (makes_ring) syscall(SYS_io_uring_setup, 1, bytes);
    else stream = fdopen(e.server, "r+");
    void *result;
    pthread_join(thread, &result);
    long wrong = (long)result == (long)sizeof many ? 0 : (long)result;
    char byte;
    if (way % 2 && (write(e.server, "x", 1) != 1 || recv(e.client, &byte, 1, 0) != 1)) wrong = -2000;
    if (stream) fclose(stream);
    else close(e.server);
    if (way % 2) close(e.client);
    return wrong;
}

static void received_while_it_changes(void) {
    for (int i = 0; i < (int)sizeof many; i++) many[i] = (char)(i % 251);
    pthread_barrier_init(&together, NULL, 2);
    long wrong = 0, first = 0;
    for (int way = 0; way < 200; way++) {
        long result = received_while(way, 0);
        if (result && wrong++ == 0) first = result;
    }
    SHOW(wrong);
    SHOW(first);
    // A process that makes a ring does so once.
    int rights = 0;
    for (int way = 0; way < 100; way++) {
        int status;
        int child = fork();
        if (!child) {
            alarm(20);
            long result = received_while(way, 1);
            if (result) fprintf(stderr, "way %d: %ld\n", way, result);
            _exit(result != 0);
        }
        while (waitpid(child, &status, 0) < 0) {}
        rights += status == 0;
    }
    SHOW(rights);
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    signal(SIGPIPE, SIG_IGN);
    CASE(numbers_that_a_child_has_not);
    CASE(numbers_of_a_vfork_child);
    CASE(options_of_a_listener);
    CASE(socket_as_standard_input);
    CASE(too_many_bytes);
    CASE(time_that_is_left);
    CASE(order_behind_what_is_given_back);
    CASE(dprintf_stays);
    CASE(streams_beside_a_child);
    CASE(formatting_fails);
    CASE(arguments_of_sendfile);
    CASE(file_without_a_cache);
    CASE(received_while_it_changes);
    printf("%d different\n", failures);
    return failures != 0;
}
