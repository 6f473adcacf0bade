// Handlers in the middle of calls: what they do there, and how they leave, must be as on TCP. See carriers.h.
#include "carriers.h"

static struct ends ends;
static char bytes[1 << 18];
enum { MUCH = 1 << 22 };
static volatile int failed, jumps, told;
static sigjmp_buf place;

static void handle(int number, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    if (sigaction(number, &action, NULL) < 0) fail("sigaction");
}

static void every(int microseconds) {
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

/// Reads until the end in a process of its own; it ends with 0 when there were `expected` bytes.
static pid_t count(struct ends e, long expected) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    every(0);
    close(e.client);
    static char much[1 << 16];
    long sum = 0;
    for (ssize_t part; (part = read(e.server, much, sizeof much)) > 0;)
        for (ssize_t i = 0; i < part; i++) sum += much[i] == 'x';
    if (sum != expected) fprintf(stderr, "%ld of %ld bytes\n", sum, expected);
    _exit(sum != expected);
}

/// Sends back what comes.
static pid_t echo(struct ends e) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    close(e.client);
    static char much[1 << 16];
    for (ssize_t part; (part = read(e.server, much, sizeof much)) > 0;)
        if (write(e.server, much, part) != part) break;
    _exit(0);
}

static int ended(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid) fail("waitpid");
    return status;
}

// MARK: A handler sends on the connection on which its thread is sending

static volatile long sent_by_handler;

static void send_one(int number) {
    (void)number;
    int error = errno;
    if (send(ends.client, "y", 1, MSG_NOSIGNAL) == 1) sent_by_handler++; else failed++;
    errno = error;
}

static void send_much(size_t each) {
    for (size_t left = MUCH; left > 0;) {
        ssize_t part = send(ends.client, bytes, each < left ? each : left, MSG_NOSIGNAL);
        if (part <= 0) {
            failed++;
            break;
        }
        left -= part;
    }
}

static void sends_in_a_handler(void) {
    for (size_t size = 1 << 8; size <= sizeof bytes; size <<= 5) {
        ends = make_ends();
        memset(bytes, 'x', sizeof bytes);
        failed = 0;
        pid_t pid = count(ends, MUCH);
        close(ends.server);
        handle(SIGALRM, send_one, SA_RESTART);
        every(300);
        send_much(size);
        every(0);
        SHOW(failed);
        close(ends.client);
        SHOW(ended(pid));
    }
}

// MARK: The same on a stack that lies above the thread's

static char *stacks;
enum { STACK = 1 << 17 };

static void *on_low_stack(void *size) {
    sigaltstack(&(stack_t){.ss_sp = stacks + STACK, .ss_size = STACK}, NULL);
    sigset_t alarm_only;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
    send_much((size_t)size);
    pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
    sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL);
    return NULL;
}

static void stack_above(void) {
    stacks = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigset_t alarm_only;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    sigprocmask(SIG_BLOCK, &alarm_only, NULL);
    for (long size = 16; size <= 4096; size *= 16) {
        ends = make_ends();
        memset(bytes, 'x', sizeof bytes);
        failed = 0;
        pid_t pid = count(ends, MUCH);
        close(ends.server);
        handle(SIGALRM, send_one, SA_RESTART | SA_ONSTACK);
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstack(&attributes, stacks, STACK);
        pthread_t thread;
        if (pthread_create(&thread, &attributes, on_low_stack, (void *)size) != 0) fail("pthread_create");
        every(300);
        pthread_join(thread, NULL);
        every(0);
        SHOW(failed);
        close(ends.client);
        SHOW(ended(pid));
    }
    sigprocmask(SIG_UNBLOCK, &alarm_only, NULL);
    munmap(stacks, 2 * STACK);
}

// MARK: A handler jumps out of a call; other threads go on with the connection

static void jump(int number) {
    (void)number;
    jumps++;
    siglongjmp(place, 1);
}

static int takes_one(int fd) {
    char byte;
    struct pollfd entry = {fd, POLLIN, 0};
    return poll(&entry, 1, 5000) == 1 && recv(fd, &byte, 1, MSG_DONTWAIT) == 1;
}

/// Another thread sends and receives, by every kind of wait.
static void *others(void *set) {
    struct epoll_event event;
    char byte;
    static struct timeval patience = {5, 0};
    setsockopt(ends.client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (send(ends.client, "o", 1, MSG_NOSIGNAL) != 1 || !takes_one(ends.client)) failed++;
    if (send(ends.client, "o", 1, MSG_NOSIGNAL) != 1 || recv(ends.client, &byte, 1, 0) != 1) failed++;
    if (send(ends.client, "o", 1, MSG_NOSIGNAL) != 1 || epoll_wait((int)(long)set, &event, 1, 5000) != 1 || !takes_one(ends.client)) failed++;
    setsockopt(ends.client, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 0}, sizeof patience);
    return NULL;
}

static void jumps_out(void) {
    for (int kind = 0; kind < 5; kind++) {
        ends = make_ends();
        pid_t pid = echo(ends);
        close(ends.server);
        int set = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(set, EPOLL_CTL_ADD, ends.client, &event);
        handle(SIGALRM, jump, 0);
        failed = 0;
        for (volatile int i = 0; i < 100; i++) {
            volatile int outstanding = 0;
            if (sigsetjmp(place, 1) == 0) {
                struct itimerval timer = {.it_value = {0, 100 + i * 17 % 900}};
                setitimer(ITIMER_REAL, &timer, NULL);
                for (;;) {
                    char byte;
                    fd_set readable;
                    if (outstanding == 0 && send(ends.client, "x", 1, MSG_NOSIGNAL) == 1) outstanding = 1;
                    if (kind == 1) poll(&(struct pollfd){ends.client, POLLIN, 0}, 1, -1);
                    if (kind == 2) epoll_wait(set, &event, 1, -1);
                    FD_ZERO(&readable);
                    FD_SET(ends.client, &readable);
                    if (kind == 3) select(ends.client + 1, &readable, NULL, NULL, NULL);
                    // (Every other one waits for what does not come.)
                    if (kind == 4 || i % 2) recv(ends.client, &byte, 1, 0); else if (recv(ends.client, &byte, 1, 0) == 1) outstanding = 0;
                }
            }
            // What is under way has come, or never will: the echo is through with all of it.
            usleep(2000);
            while (recv(ends.client, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
            pthread_t thread;
            if (pthread_create(&thread, NULL, others, (void *)(long)set) != 0) fail("pthread_create");
            pthread_join(thread, NULL);
        }
        SHOW(failed);
        SHOW(close(ends.client));
        SHOW(ended(pid));
        close(set);
    }
}

// MARK: Which handlers end a call, and which do not

static void tell(int number) {
    (void)number;
    told++;
}

static void nothing(int number) { (void)number; }

static void some_restart(void) {
    for (int kind = 0; kind < 2; kind++) {
        ends = make_ends();
        pid_t pid = echo(ends);
        close(ends.server);
        handle(SIGALRM, nothing, SA_RESTART);
        handle(SIGUSR1, tell, kind ? 0 : SA_RESTART);
        told = 0;
        every(200);
        char byte;
        // Answers that come, in spite of all the signals that restart.
        int answers = 0;
        for (int i = 0; i < 3000; i++) answers += send(ends.client, "x", 1, MSG_NOSIGNAL) == 1 && recv(ends.client, &byte, 1, 0) == 1;
        SHOW(answers);
        // One that does not come, until the other signal does, or what it has sent. (A fork begins anew at every signal, and the
        // signal that ends the call may have come before it.)
        every(0);
        pid_t parent = getpid(), teller = fork();
        if (teller == 0) {
            usleep(30000);
            kill(parent, SIGUSR1);
            for (int i = 0; kind && i < 100; i++) {
                usleep(30000);
                kill(parent, SIGUSR1);
            }
            usleep(30000);
            send(ends.client, "z", 1, MSG_NOSIGNAL);
            _exit(0);
        }
        every(200);
        SHOW(recv(ends.client, &byte, 1, 0));
        SHOW(kind ? told > 0 : told);
        every(0);
        if (kind) kill(teller, SIGKILL);
        SHOW(ended(teller));
        close(ends.client);
        SHOW(ended(pid));
    }
}

// The time-out comes at any moment of the call, and always ends it.
static void alarms(void) {
    ends = make_ends();
    int ended_calls = 0;
    handle(SIGALRM, nothing, 0);
    char byte;
    for (int i = 0; i < 2000; i++) {
        // The second one is for those that came before the call.
        struct itimerval timer = {{0, 20000}, {0, 1 + i % 150}};
        setitimer(ITIMER_REAL, &timer, NULL);
        int kind = i % 3;
        ssize_t result = kind == 0 ? recv(ends.client, &byte, 1, 0)
            : kind == 1 ? poll(&(struct pollfd){ends.client, POLLIN, 0}, 1, -1)
            : read(ends.client, &byte, 1);
        ended_calls += result == -1 && errno == EINTR;
    }
    every(0);
    SHOW(ended_calls);
    close_ends(ends);
}

// MARK: A call that begins anew

static void set_non_blocking(int number) {
    (void)number;
    fcntl(ends.client, F_SETFL, fcntl(ends.client, F_GETFL) | O_NONBLOCK);
}

static void set_time_out(int number) {
    (void)number;
    setsockopt(ends.client, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 50000}, sizeof(struct timeval));
}

static void begins_anew(void) {
    void (*handlers[])(int) = {set_non_blocking, set_time_out, nothing};
    for (int i = 0; i < 3; i++) {
        ends = make_ends();
        handle(SIGALRM, handlers[i], SA_RESTART);
        setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, 20000}}, NULL);
        char byte;
        // (A receive of nothing does not begin anew.)
        SHOW(recv(ends.client, &byte, i < 2, 0));
        close_ends(ends);
    }
}

// MARK: Threads that end in a call clean up

static volatile int cleaned_up;

static void clean_up(void *call) { cleaned_up += 1 << (long)call; }

static void leave(int number) {
    (void)number;
    pthread_exit(NULL);
}

// A listener whose queue is full: connect waits.
static int full_listener(struct sockaddr_in *address) {
    int listener = make_listener(address);
    listen(listener, 0);
    for (int i = 0; i < 3; i++) connect(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), (void *)address, sizeof *address);
    return listener;
}

enum { RECV, READ, POLL, EPOLL_WAIT, READV, RECVFROM, RECVMSG, PPOLL, SELECT, PSELECT, EPOLL_PWAIT, ACCEPT, ACCEPT4, CONNECT,
       SEND, WRITE, WRITEV, SENDTO, SENDMSG, SENDMMSG, RECVMMSG, CALLS };

static void *wait_for_ever(void *call) {
    static char byte;
    int fd = ends.client;
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(fd, &readable);
    struct epoll_event event = {.events = EPOLLIN};
    int set = epoll_create1(0);
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    struct iovec one = {&byte, 1}, all = {bytes, sizeof bytes};
    struct mmsghdr in = {{.msg_iov = &one, .msg_iovlen = 1}}, out = {{.msg_iov = &all, .msg_iovlen = 1}};
    struct sockaddr_in address;
    int accepts = (long)call == ACCEPT || (long)call == ACCEPT4;
    int listener = accepts ? make_listener(&address) : (long)call == CONNECT ? full_listener(&address) : -1;
    pthread_cleanup_push(clean_up, call);
    switch ((long)call) {
    case RECV: recv(fd, &byte, 1, 0); break;
    case READ: read(fd, &byte, 1); break;
    case POLL: poll(&(struct pollfd){fd, POLLIN, 0}, 1, -1); break;
    case EPOLL_WAIT: epoll_wait(set, &event, 1, -1); break;
    case READV: readv(fd, &one, 1); break;
    case RECVFROM: recvfrom(fd, &byte, 1, MSG_PEEK, NULL, NULL); break;
    case RECVMSG: recvmsg(fd, &in.msg_hdr, MSG_WAITALL); break;
    case PPOLL: ppoll(&(struct pollfd){fd, POLLIN, 0}, 1, NULL, NULL); break;
    case SELECT: select(fd + 1, &readable, NULL, NULL, NULL); break;
    case PSELECT: pselect(fd + 1, &readable, NULL, NULL, NULL, NULL); break;
    case EPOLL_PWAIT: epoll_pwait(set, &event, 1, -1, NULL); break;
    case ACCEPT: accept(listener, NULL, NULL); break;
    case ACCEPT4: accept4(listener, NULL, NULL, SOCK_CLOEXEC); break;
    case CONNECT: connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&address, sizeof address); break;
    case SEND: while (send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) > 0) continue; break;
    case WRITE: while (write(fd, bytes, sizeof bytes) > 0) continue; break;
    case WRITEV: while (writev(fd, &all, 1) > 0) continue; break;
    case SENDTO: while (sendto(fd, bytes, sizeof bytes, 0, NULL, 0) > 0) continue; break;
    case SENDMSG: while (sendmsg(fd, &out.msg_hdr, 0) > 0) continue; break;
    case SENDMMSG: while (sendmmsg(fd, &out, 1, 0) > 0) continue; break;
    case RECVMMSG: recvmmsg(fd, &in, 1, 0, NULL); break;
    }
    pthread_cleanup_pop(0);
    return NULL;
}

static void ends_of_threads(void) {
    handle(SIGUSR1, leave, 0);
    for (int cancels = 0; cancels < 2; cancels++) {
        cleaned_up = 0;
        for (long call = 0; call < CALLS; call++) {
            ends = make_ends();
            pthread_t thread;
            void *result;
            pthread_create(&thread, NULL, wait_for_ever, (void *)call);
            usleep(20000);
            if (cancels) pthread_cancel(thread); else pthread_kill(thread, SIGUSR1);
            pthread_join(thread, &result);
            SHOW(result == (cancels ? PTHREAD_CANCELED : NULL));
            SHOW(cleaned_up);
            // The connection goes on. (One that is full is not asked, nor one whose recvmmsg left the kernel's ERESTARTSYS behind.)
            if (call < SEND) SHOW(send(ends.server, "x", 1, 0) == 1 && takes_one(ends.client));
            close_ends(ends);
        }
    }
}

// MARK: Real-time signals of one number come in the order in which they were sent

static volatile long values_seen, out_of_order;

static void note_value(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    if (info->si_value.sival_int != values_seen || info->si_errno != 0 || info->si_pid != getpid()) out_of_order++;
    values_seen++;
}

static void *queues(void *thread) {
    for (int i = 0; i < 3000; i++) {
        while (pthread_sigqueue(*(pthread_t *)thread, SIGRTMIN + 2, (union sigval){.sival_int = i}) != 0) usleep(100);
        if (i % 16 == 15) usleep(150);
    }
    usleep(20000);
    told = 1;
    return NULL;
}

static void real_time_signals_in_order(void) {
    ends = make_ends();
    pid_t pid = echo(ends);
    close(ends.server);
    values_seen = out_of_order = told = 0;
    struct sigaction action = {.sa_sigaction = note_value, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + 2, &action, NULL);
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pthread_t me = pthread_self(), thread;
    pthread_create(&thread, NULL, queues, &me);
    sigprocmask(SIG_SETMASK, &before, NULL);
    while (!told) {
        if (send(ends.client, bytes, 1000, 0) != 1000) failed++;
        if (recv(ends.client, bytes, 1000, MSG_WAITALL) <= 0) failed++;
    }
    pthread_join(thread, NULL);
    SHOW(values_seen);
    SHOW(out_of_order);
    close(ends.client);
    SHOW(ended(pid));
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    signal(SIGPIPE, SIG_IGN);
    CASE(sends_in_a_handler);
    CASE(stack_above);
    CASE(jumps_out);
    CASE(some_restart);
    CASE(alarms);
    CASE(begins_anew);
    CASE(ends_of_threads);
    CASE(real_time_signals_in_order);
    printf("%d different\n", failures);
    return failures != 0;
}
