// What a reviewer who meant no good has found, as cases.
#include "carriers.h"
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>

static char bytes[1 << 20];

static void disconnect(int fd) {
    struct sockaddr_in nobody = {.sin_family = AF_UNSPEC};
    SHOW(connect(fd, (void *)&nobody, sizeof nobody));
}

/// Connects `client` to a new peer.
static int connect_again(int client) {
    struct sockaddr_in address;
    int listener = make_listener(&address);
    SHOW(connect(client, (void *)&address, sizeof address));
    int peer = accept(listener, NULL, NULL);
    close(listener);
    return peer;
}

// connect(AF_UNSPEC) ends the association. Other numbers, processes and epoll sets still mean the same socket.
static void disconnected_elsewhere(void) {
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        int other = way == 0 ? dup(e.client) : -1, set = epoll_create1(0), channel[2];
        struct epoll_event event = {EPOLLIN, {.u64 = 77}};
        pid_t pid = 0;
        if (way == 1) SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.client, &event));
        if (way == 2) {
            if (pipe(channel) < 0) fail("pipe");
            pid = fork();
            if (pid == 0) {
                char byte;
                if (read(channel[0], &byte, 1) != 1) _exit(1);
                _exit(recv(e.client, bytes, 4, MSG_WAITALL) != 4 || write(e.client, "back", 4) != 4);
            }
        }
        disconnect(e.client);
        if (way == 1) SHOW(epoll_wait(set, &event, 1, 0));
        int peer = connect_again(e.client);
        SHOW(write(peer, "word", 4));
        if (way == 1) {
            SHOW(epoll_wait(set, &event, 1, 5000));
            SHOW(event.data.u64);
            SHOW(event.events);
        }
        if (way == 2) {
            if (write(channel[1], "", 1) != 1) fail("write");
            int status;
            waitpid(pid, &status, 0);
            SHOW(status);
        } else {
            SHOW(recv(way == 0 ? other : e.client, bytes, 4, MSG_WAITALL));
            SHOW(write(e.client, "back", 4));
        }
        SHOW(recv(peer, bytes, 4, MSG_WAITALL));
        SHOW(memcmp(bytes, "back", 4));
        close(peer);
        close(other);
        close(set);
        close_ends(e);
    }
}

static void files_that_are_none(void) {
    int sources[] = {open("/dev/null", O_RDWR), open("/", O_RDONLY | O_DIRECTORY), eventfd(1, 0), epoll_create1(0), memfd_create("none", 0)};
    for (unsigned i = 0; i < sizeof sources / sizeof *sources; i++) {
        struct ends e = make_ends();
        SHOW(sendfile(e.client, sources[i], NULL, 100));
        SHOW(sendfile(e.client, sources[i], NULL, (size_t)-1));
        close_ends(e);
        close(sources[i]);
    }
}

// The bytes have gone, but what the call wants to say of it has no place.
static void offset_that_cannot_be_written(void) {
    struct ends e = make_ends();
    off_t *offset = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int file = memfd_create("file", 0);
    char byte;
    write(file, "12345678", 8);
    SHOW(sendfile(e.client, file, offset, 8));
    for (int i = 0; i < 8; i++) SHOW(read(e.server, &byte, 1) == 1 ? byte : -1);
    SHOW(recv(e.server, &byte, 1, MSG_DONTWAIT));
    munmap(offset, 4096);
    close(file);
    close_ends(e);
}

// MARK: Signals in the middle

static int interrupted = -1, leaves;
static sigjmp_buf place;

static void leave_or_close(int number) {
    (void)number;
    if (leaves) siglongjmp(place, 1);
    close(interrupted);
}

static void set_timer(int milliseconds) {
    struct itimerval timer = {.it_value = {milliseconds / 1000, milliseconds % 1000 * 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/// Sends back what comes, in a process of its own.
static pid_t echo(struct ends e) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    close(e.client);
    signal(SIGALRM, SIG_DFL);
    for (char byte; read(e.server, &byte, 1) == 1;)
        if (write(e.server, &byte, 1) != 1) break;
    _exit(0);
}

// A time-out of the old kind: the handler closes the socket, or jumps out, and the program closes it.
static void closed_in_the_middle(void) {
    for (leaves = 0; leaves < 2; leaves++)
        for (int i = 0; i < 5; i++) {
            struct ends e = make_ends();
            pid_t pid = echo(e);
            close(e.server);
            interrupted = e.client;
            struct sigaction action = {.sa_handler = leave_or_close};
            sigaction(SIGALRM, &action, NULL);
            set_timer(10 + i);
            char byte = 'x';
            if (sigsetjmp(place, 1) == 0)
                while (send(e.client, &byte, 1, MSG_NOSIGNAL) == 1 && recv(e.client, &byte, 1, 0) == 1) continue;
            if (leaves) SHOW(close(e.client));
            int status;
            SHOW(waitpid(pid, &status, 0) == pid);
            SHOW(status);
        }
}

static void nothing(int number) { (void)number; }

// A signal ends a call that has moved something, though its handler ran while bytes were being copied.
static void much_is_interrupted(void) {
    size_t size = 1 << 28;
    char *much = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int sends = 0; sends < 2; sends++) {
        struct ends e = make_ends();
        pid_t pid = fork();
        if (pid == 0) {
            close(e.client);
            // The peer stops before the end, and goes on for ever until then.
            for (size_t done = 0; done < size / 2;) {
                ssize_t part = sends ? recv(e.server, much, sizeof bytes, 0) : send(e.server, bytes, sizeof bytes, MSG_NOSIGNAL);
                if (part <= 0) _exit(0);
                done += part;
            }
            pause();
            _exit(0);
        }
        close(e.server);
        struct sigaction action = {.sa_handler = nothing};
        sigaction(SIGALRM, &action, NULL);
        set_timer(20);
        ssize_t done = sends ? send(e.client, much, size, MSG_NOSIGNAL) : recv(e.client, much, size, MSG_WAITALL);
        SHOW(done > 0 && done < (ssize_t)size);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        close(e.client);
    }
    munmap(much, size);
}

// MARK: A peer that goes without a word

/// How a peer is killed, or becomes another program, with bytes unread.
static void gone_with_bytes_unread(void) {
    for (int way = 0; way < 6; way++) {
        struct ends e = make_ends();
        int execs = way == 4, told[2];
        pipe(told);
        pid_t pid = fork();
        if (pid == 0) {
            close(e.client);
            fcntl(e.server, F_SETFD, FD_CLOEXEC);
            if (way == 1) write(e.server, "farewell", 8);
            if (way == 5) shutdown(e.server, SHUT_WR);
            write(told[1], "x", 1);
            usleep(30000);
            if (execs) execl("/bin/sleep", "sleep", "2", NULL);
            pause();
        }
        char much[100];
        read(told[0], much, 1);
        close(e.server);
        close(told[0]);
        close(told[1]);
        SHOW(send(e.client, "unread", 6, MSG_NOSIGNAL));
        if (way == 2) SHOW(shutdown(e.client, SHUT_WR));
        if (!execs) usleep(10000);
        if (!execs) kill(pid, SIGKILL), waitpid(pid, NULL, 0);
        struct pollfd entry = {e.client, POLLIN | POLLOUT | POLLRDHUP, 0};
        if (way == 3) {
            SHOW(recv(e.client, much, sizeof much, 0));
        } else if (way == 5) {
            // The first bytes are still taken.
            int sends = 0;
            for (uint64_t end = milliseconds() + 2000; milliseconds() < end && send(e.client, "more", 4, MSG_NOSIGNAL) == 4; sends++) usleep(1000);
            SHOW(errno == EPIPE && sends < 100);
        } else {
            // (Between FIN and reset a poll may see the former alone.)
            entry.events = POLLRDHUP;
            SHOW(poll(&entry, 1, 3000));
            usleep(20000);
            entry.events = POLLIN | POLLOUT | POLLRDHUP;
            SHOW(poll(&entry, 1, 0));
            SHOW(entry.revents);
        }
        for (int i = 0; i < 3; i++) SHOW(recv(e.client, much, sizeof much, 0));
        for (int i = 0; i < 2; i++) SHOW(send(e.client, "more", 4, MSG_NOSIGNAL));
        int error = -1;
        SHOW(getsockopt(e.client, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error}));
        SHOW(error);
        if (way != 2) SHOW(shutdown(e.client, SHUT_WR));
        SHOW(poll(&entry, 1, 0));
        SHOW(entry.revents);
        if (execs) kill(pid, SIGKILL), waitpid(pid, NULL, 0);
        SHOW(close(e.client));
    }
    // Nothing of the kind: the peer is there, and has only not read everything.
    struct ends e = make_ends();
    char byte;
    SHOW(send(e.client, "12", 2, 0));
    SHOW(shutdown(e.client, SHUT_RDWR));
    SHOW(recv(e.server, &byte, 1, 0));
    struct pollfd entry = {e.client, POLLIN | POLLOUT | POLLRDHUP, 0};
    SHOW(poll(&entry, 1, 0));
    SHOW(entry.revents);
    SHOW(send(e.client, "3", 1, MSG_NOSIGNAL));
    SHOW(poll(&entry, 1, 0));
    SHOW(entry.revents);
    close_ends(e);
}

// A child that only closes what it has inherited leaves the parent's epoll set alone, which has given the socket up meanwhile.
static void closed_by_a_child(void) {
    struct ends e = make_ends();
    int first = dup(e.server), second = dup(e.server), set = epoll_create1(EPOLL_CLOEXEC);
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, first, &(struct epoll_event){EPOLLIN | EPOLLRDHUP | EPOLLPRI, {.u32 = 1}}));
    int go[2];
    if (pipe(go)) fail("pipe");
    pid_t child = fork();
    if (child == 0) {
        char byte;
        read(go[0], &byte, 1);
        close(first);
        _exit(0);
    }
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, second, &(struct epoll_event){EPOLLOUT | EPOLLET | EPOLLONESHOT, {.u32 = 2}}));
    struct epoll_event events[4] = {0};
    SHOW(epoll_wait(set, events, 4, 100));
    write(go[1], "", 1);
    waitpid(child, NULL, 0);
    SHOW(send(e.client, bytes, 1660, 0));
    SHOW(epoll_wait(set, events, 4, 1000));
    SHOW(events[0].events);
    SHOW(events[0].data.u32);
    close(first);
    close(second);
    close(set);
    close_ends(e);
}

// What TCP takes at once is taken at once, also from a program that exits then.
static void sent_without_waiting(void) {
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        pid_t child = fork();
        if (child == 0) {
            close(e.server);
            fcntl(e.client, F_SETFL, O_NONBLOCK);
            int file = memfd_create("file", 0);
            if (ftruncate(file, 300000) != 0) fail("ftruncate");
            long sent = way == 0 ? send(e.client, bytes, 300000, 0) : way == 1 ? sendfile(e.client, file, &(off_t){0}, 300000)
                                                                             : write(e.client, bytes, 100000);
            _exit(sent == (way == 2 ? 100000 : 300000) ? 0 : 1);
        }
        close(e.client);
        int status = -1;
        waitpid(child, &status, 0);
        SHOW(status);
        long got = 0, part;
        while ((part = recv(e.server, bytes, sizeof bytes, 0)) > 0) got += part;
        SHOW(part);
        SHOW(got);
        close(e.server);
    }
}

// More entries than the kernel takes together with what ours need: RLIMIT_NOFILE counts.
static void many_polled(void) {
    struct ends e = make_ends();
    struct rlimit before, few;
    getrlimit(RLIMIT_NOFILE, &before);
    few = before;
    few.rlim_cur = 60;
    setrlimit(RLIMIT_NOFILE, &few);
    struct pollfd entries[40];
    for (int i = 0; i < 40; i++) entries[i] = (struct pollfd){e.server, POLLIN, 0};
    SHOW(poll(entries, 40, 20));
    pid_t child = fork();
    if (child == 0) {
        usleep(30000);
        write(e.client, "x", 1);
        _exit(0);
    }
    SHOW(poll(entries, 40, 5000));
    SHOW(entries[0].revents);
    SHOW(entries[39].revents);
    waitpid(child, NULL, 0);
    setrlimit(RLIMIT_NOFILE, &before);
    close_ends(e);
}

// More sets than the switch has records for: they tell what is there all the same.
static void many_sets(void) {
    struct ends e = make_ends();
    struct rlimit before;
    getrlimit(RLIMIT_NOFILE, &before);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){before.rlim_max, before.rlim_max});
    static int sets[4300];
    int told = 0, made = 0;
    for (int i = 0; i < 4300; i++) {
        sets[i] = epoll_create1(EPOLL_CLOEXEC);
        if (sets[i] >= 0 && epoll_ctl(sets[i], EPOLL_CTL_ADD, e.server, &(struct epoll_event){EPOLLIN, {.fd = i}}) == 0) made++;
    }
    SHOW(made);
    SHOW(send(e.client, "x", 1, 0));
    struct epoll_event event;
    for (int i = 0; i < 4300; i++) told += epoll_wait(sets[i], &event, 1, 500) == 1;
    SHOW(told);
    for (int i = 0; i < 4300; i++) close(sets[i]);
    setrlimit(RLIMIT_NOFILE, &before);
    close_ends(e);
}

static void *talk(void *unused) {
    (void)unused;
    int client = socket(AF_INET, SOCK_STREAM, 0), server = connect_again(client);
    char byte = 'x';
    for (int i = 0; i < 500; i++)
        if (write(client, &byte, 1) != 1 || read(server, &byte, 1) != 1) fail("talking");
    close(client);
    close(server);
    return NULL;
}

// A thread with the smallest stack there is has room for a connection, also for the first one of a program.
static void small_stacks(void) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 16384);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, talk, NULL) != 0) fail("pthread_create");
    SHOW(pthread_join(thread, NULL));
}

// A thread sleeps in epoll_wait for good, another one writes more than a ring holds, and nobody reads: TCP's buffers have room.
static int sleeper_set, sleeper_wakes;
static void *sleep_for_room(void *ignored) {
    struct epoll_event event;
    for (;;) {
        if (epoll_wait(sleeper_set, &event, 1, -1) < 1) continue;
        if (event.data.u32 == 2) return NULL;
        __atomic_add_fetch(&sleeper_wakes, 1, __ATOMIC_RELEASE);
    }
}

static void room_for_a_sleeper(void) {
    static char much[1100000];
    for (int way = 0; way < 3; way++) {
        struct ends e = make_ends();
        pthread_t thread;
        int stop[2];
        pipe(stop);
        sleeper_set = epoll_create1(0);
        uint32_t events = way == 0 ? EPOLLOUT | EPOLLET : EPOLLIN;
        epoll_ctl(sleeper_set, EPOLL_CTL_ADD, e.client, &(struct epoll_event){events, {.u32 = 1}});
        epoll_ctl(sleeper_set, EPOLL_CTL_ADD, stop[0], &(struct epoll_event){EPOLLIN, {.u32 = 2}});
        sleeper_wakes = 0;
        pthread_create(&thread, NULL, sleep_for_room, NULL);
        usleep(30000);
        size_t sent = 0;
        while (sent < sizeof much) {
            int before = __atomic_load_n(&sleeper_wakes, __ATOMIC_ACQUIRE);
            long r = send(e.client, much + sent, sizeof much - sent, MSG_DONTWAIT);
            if (r > 0) {
                sent += r;
                continue;
            }
            if (way) epoll_ctl(sleeper_set, EPOLL_CTL_MOD, e.client, &(struct epoll_event){EPOLLIN | EPOLLOUT | EPOLLONESHOT, {.u32 = 1}});
            uint64_t end = milliseconds() + 8000;
            while (__atomic_load_n(&sleeper_wakes, __ATOMIC_ACQUIRE) == before && milliseconds() < end) usleep(1000);
            if (milliseconds() >= end) break;
        }
        SHOW(sent);
        write(stop[1], "", 1);
        pthread_join(thread, NULL);
        close(sleeper_set);
        close(stop[0]);
        close(stop[1]);
        close_ends(e);
    }
}

// A number is closed while a copy of it is open, and given to another connection of the same set; then something happens to the
// first one.
static void number_of_another(void) {
    struct ends one = make_ends();
    int set = epoll_create1(0), number = one.client;
    epoll_ctl(set, EPOLL_CTL_ADD, number, &(struct epoll_event){EPOLLIN | EPOLLET, {.u32 = 1}});
    int copy = dup(number);
    close(number);
    struct ends other = make_ends();
    if (other.client != number) {
        dup2(other.client, number);
        close(other.client);
        other.client = number;
    }
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, number, &(struct epoll_event){EPOLLIN | EPOLLET, {.u32 = 2}}));
    struct epoll_event events[4];
    while (epoll_wait(set, events, 4, 50) > 0) continue;
    pthread_t thread;
    sleeper_set = set;
    sleeper_wakes = 0;
    pthread_create(&thread, NULL, sleep_for_room, NULL);
    usleep(30000);
    SHOW(shutdown(copy, SHUT_WR));
    usleep(30000);
    // The end of the thread, by an event of the second one.
    SHOW(shutdown(other.server, SHUT_WR));
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 5;
    SHOW(pthread_timedjoin_np(thread, NULL, &until));
    close(copy);
    close(one.server);
    close_ends(other);
    close(set);
}

// A child has the connection, too, and does nothing; who polls it sleeps all the same.
static void idle_beside_a_child(void) {
    struct ends e = make_ends();
    pid_t child = fork();
    if (!child) {
        pause();
        _exit(0);
    }
    char byte;
    struct rusage before, after;
    for (int way = 0; way < 2; way++) {
        pid_t writer = fork();
        if (!writer) {
            usleep(50000);
            _exit(write(e.client, "x", 1) != 1);
        }
        SHOW(poll(&(struct pollfd){e.server, POLLIN, 0}, 1, 5000));
        SHOW(read(e.server, &byte, 1));
        while (waitpid(writer, NULL, 0) < 0) {}
        getrusage(RUSAGE_SELF, &before);
        fd_set set;
        FD_ZERO(&set);
        FD_SET(e.server, &set);
        if (way == 0) SHOW(poll(&(struct pollfd){e.server, POLLIN, 0}, 1, 300));
        else SHOW(select(e.server + 1, &set, NULL, NULL, &(struct timeval){0, 300000}));
        getrusage(RUSAGE_SELF, &after);
        SHOW(after.ru_nvcsw - before.ru_nvcsw < 30);
    }
    kill(child, SIGKILL);
    while (waitpid(child, NULL, 0) < 0) {}
    close_ends(e);
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    signal(SIGPIPE, SIG_IGN);
    carrier = 1;
    small_stacks();
    CASE(small_stacks);
    CASE(disconnected_elsewhere);
    CASE(files_that_are_none);
    CASE(offset_that_cannot_be_written);
    CASE(closed_in_the_middle);
    CASE(much_is_interrupted);
    CASE(gone_with_bytes_unread);
    CASE(closed_by_a_child);
    CASE(sent_without_waiting);
    CASE(many_polled);
    CASE(many_sets);
    CASE(room_for_a_sleeper);
    CASE(number_of_another);
    CASE(idle_beside_a_child);
    printf("%d different\n", failures);
    return failures != 0;
}
