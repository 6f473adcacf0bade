// Bad pointers: EFAULT, never a crash, and no byte lost.
#include "carriers.h"
#include <limits.h>

static char *page;  // readable and writable; the page behind it is not there
static void *volatile null;
static void *bads[6];
static const char *names[] = {"NULL", "8", "unmapped", "kernel's", "non-canonical", "-1"};
enum { BADS = 6 };

static void prepare(void) {
    page = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    void *all[] = {NULL, (void *)8, page + 4096, (void *)0xffff888000000000, (void *)0x8000000000000, (void *)-1};
    memcpy(bads, all, sizeof all);
}

static void sending(void) {
    struct ends e = make_ends();
    char got[64];
    for (int i = 0; i < BADS; i++) {
        void *bad = bads[i];
        say("%s\n", names[i]);
        SHOW(write(e.client, bad, 1));
        SHOW(write(e.client, bad, 8));
        SHOW(write(e.client, bad, 100));
        SHOW(write(e.client, bad, 5000));
        SHOW(write(e.client, bad, 0));
        SHOW(send(e.client, bad, 8, MSG_DONTWAIT));
        SHOW(sendto(e.client, bad, 8, 0, null, 0));
        SHOW(writev(e.client, (struct iovec[]){{bad, 8}}, 1));
        SHOW(writev(e.client, (struct iovec[]){{"good", 4}, {bad, 8}}, 2));
        SHOW(writev(e.client, (struct iovec[]){{bad, 8}, {"good", 4}}, 2));
        SHOW(writev(e.client, bad, 1));
        SHOW(writev(e.client, bad, 0));
        SHOW(sendmsg(e.client, bad, 0));
        SHOW(sendmsg(e.client, &(struct msghdr){.msg_iov = bad, .msg_iovlen = 1}, 0));
        SHOW(sendmsg(e.client, &(struct msghdr){.msg_iov = (struct iovec[]){{bad, 9}}, .msg_iovlen = 1}, 0));
        SHOW(sendmmsg(e.client, bad, 1, 0));
        SHOW(sendmmsg(e.client, (struct mmsghdr[]){{{.msg_iov = bad, .msg_iovlen = 1}}}, 1, 0));
        if (bad) SHOW(sendfile(e.client, open("/proc/self/exe", O_RDONLY), bad, 10));
    }
    SHOW(write(e.client, page + 4095, 1));
    SHOW(recv(e.server, got, 64, 0));
    SHOW(write(e.client, page + 4090, 7));
    SHOW(write(e.client, page + 4096 - 100, 108));
    SHOW(write(e.client, "fine", 4));
    SHOW(recv(e.server, got, 64, 0));
    SHOW(recv(e.server, got, 64, MSG_DONTWAIT));
    close_ends(e);
}

// How much of the good beginning is sent the kernel decides by its own pieces; it must be what the result says.
static void half_good(void) {
    struct ends e = make_ends();
    size_t good = 300000;
    char *memory = mmap(NULL, good + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory += (8192 - (uintptr_t)(memory + good) % 4096) % 4096;
    munmap(memory + good, 4096);
    char *got = malloc(good);
    for (size_t i = 0; i < good; i++) memory[i] = i * 7 + i / 251;
    long sent = send(e.client, memory, good + 1, MSG_DONTWAIT), received = 0;
    if (sent < 0) SHOW(sent);
    while (received < sent) {
        long r = recv(e.server, got + received, good - received, 0);
        if (r <= 0) fail("recv");
        received += r;
    }
    SHOW(sent > 0 && received == sent && !memcmp(got, memory, received));
    SHOW(recv(e.server, got, 1, MSG_DONTWAIT));
    close_ends(e);
    munmap(memory, good);
    free(got);
}

static void receiving(void) {
    struct ends e = make_ends();
    char got[64];
    socklen_t length;
    for (int i = 0; i < BADS; i++) {
        void *bad = bads[i];
        say("%s\n", names[i]);
        SHOW(recv(e.server, bad, 8, MSG_DONTWAIT));
        SHOW(readv(e.server, bad, 0));
        SHOW(recvmsg(e.server, bad, MSG_DONTWAIT));
        SHOW(recvmmsg(e.server, bad, 1, MSG_DONTWAIT, null));
        SHOW(write(e.client, "0123456789", 10));
        SHOW(read(e.server, bad, 1));
        SHOW(read(e.server, bad, 8));
        SHOW(read(e.server, bad, 100));
        SHOW(recv(e.server, bad, 8, MSG_PEEK));
        SHOW(recv(e.server, bad, 100, MSG_WAITALL | MSG_DONTWAIT));
        SHOW(recv(e.server, bad, 0, 0));
        SHOW(readv(e.server, bad, 1));
        SHOW(readv(e.server, (struct iovec[]){{bad, 8}}, 1));
        SHOW(readv(e.server, (struct iovec[]){{got, 2}, {bad, 8}}, 2));
        SHOW(recvmsg(e.server, bad, 0));
        SHOW(recvmsg(e.server, &(struct msghdr){.msg_iov = bad, .msg_iovlen = 1}, 0));
        SHOW(recvmmsg(e.server, bad, 1, 0, null));
        SHOW(recvmmsg(e.server, (struct mmsghdr[]){{{.msg_iov = (struct iovec[]){{bad, 1}}, .msg_iovlen = 1}}}, 1, 0, null));
        if (bad) SHOW(recvmmsg(e.server, (struct mmsghdr[]){{{.msg_iov = (struct iovec[]){{got, 1}}, .msg_iovlen = 1}}}, 1, MSG_PEEK, bad));
        SHOW(ioctl(e.server, FIONREAD, bad));
        SHOW(ioctl(e.server, FIONBIO, bad));
        SHOW(recvfrom(e.server, got, 1, MSG_PEEK, (void *)got, bad));
        length = 16;
        SHOW(recvfrom(e.server, got, 1, MSG_PEEK, bad, &length));
        SHOW(poll(bad, 1, 0));
        SHOW(select(e.server + 1, bad, null, null, &(struct timeval){0, 0}));
        memset(got, 0, sizeof got);
        SHOW(recv(e.server, got, 64, 0));
        SHOW(memcmp(got, "0123456789", 10));
    }
    SHOW(write(e.client, "0123456789", 10));
    memset(page + 4090, 0, 6);
    SHOW(recv(e.server, page + 4090, 10, 0));
    SHOW(recv(e.server, page + 4090, 6, 0));
    SHOW(memcmp(page + 4090, "012345", 6));
    char *constant = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SHOW(read(e.server, constant, 4));
    SHOW(recv(e.server, null, 2, MSG_TRUNC));
    SHOW(recv(e.server, got, 64, 0));
    SHOW(memcmp(got, "89", 2));
    munmap(constant, 4096);
    close_ends(e);
}

// Lengths that no memory has: read and write refuse what would leave the program's memory, the others take as much as a call can.
static void huge_counts(void) {
    static char got[64];
    static const size_t counts[] = {-1, SSIZE_MAX, (size_t)SSIZE_MAX + 1, (size_t)1 << 62};
    struct ends e = make_ends();
    struct sockaddr_in address;
    socklen_t length;
    for (int i = 0; i < 4; i++) {
        size_t huge = counts[i];
        say("%zx\n", huge);
        SHOW(write(e.client, got, huge));
        SHOW(write(e.client, page + 4086, huge));
        SHOW(read(e.server, got, huge));
        SHOW(syscall(SYS_write, e.client, got, huge));
        SHOW(send(e.client, page + 4086, huge, MSG_DONTWAIT));
        SHOW(sendto(e.client, page + 4086, huge, MSG_DONTWAIT, (void *)&address, 0));
        SHOW(recv(e.server, got, huge, MSG_DONTWAIT));
        SHOW(write(e.client, "0123456789", 10));
        SHOW(read(e.server, got, huge));
        SHOW(syscall(SYS_read, e.server, got, huge));
        SHOW(recv(e.server, null, huge, MSG_TRUNC | MSG_PEEK));
        SHOW(recv(e.server, got, huge, MSG_PEEK));
        length = sizeof address;
        SHOW(recvfrom(e.server, got, huge, MSG_PEEK, (void *)&address, &length));
        SHOW(recv(e.server, got, huge, 0));
        SHOW(memcmp(got, "0123456789", 10));
        SHOW(write(e.client, "0123456789", 10));
        SHOW(recv(e.server, null, huge, MSG_TRUNC));
        SHOW(recv(e.server, got, 64, MSG_DONTWAIT));
        SHOW(write(e.client, "abcdefghij", 10));
        SHOW(recvfrom(e.server, got, huge, 0, (void *)&address, &length));
        SHOW(memcmp(got, "abcdefghij", 10));
    }
    // More than a call takes, and still the program's.
    SHOW(write(e.client, "0123456789", 10));
    SHOW(read(e.server, got, 0x80000000));
    SHOW(memcmp(got, "0123456789", 10));
    close_ends(e);
}

static void readiness(void) {
    struct ends e = make_ends();
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN}, got;
    SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.server, &event));
    for (int i = 0; i < BADS; i++) {
        void *bad = bads[i];
        say("%s\n", names[i]);
        SHOW(epoll_ctl(set, EPOLL_CTL_MOD, e.server, bad));
        SHOW(epoll_ctl(set, EPOLL_CTL_ADD, e.client, bad));
        SHOW(epoll_wait(set, bad, 1, 0));
        SHOW(write(e.client, "x", 1));
        SHOW(epoll_wait(set, bad, 1, 1000));
        if (bad) SHOW(epoll_pwait2(set, &got, 1, bad, null));
        SHOW(epoll_wait(set, &got, 1, 1000));
        SHOW(read(e.server, &(char){0}, 1));
    }
    close(set);
    close_ends(e);
}

static void file_that_shrank(void) {
    struct ends e = make_ends();
    char name[] = "/tmp/sockswitch-XXXXXX", got[16];
    int file = mkstemp(name);
    unlink(name);
    ftruncate(file, 4096);
    char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    SHOW(write(e.client, memory, 10));
    SHOW(ftruncate(file, 0));
    SHOW(write(e.client, memory, 10));
    SHOW(recv(e.server, memory, 10, 0));
    SHOW(recv(e.server, got, 10, 0));
    munmap(memory, 4096);
    close(file);
    close_ends(e);
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    prepare();
    CASE(sending);
    CASE(half_good);
    CASE(receiving);
    CASE(huge_counts);
    CASE(readiness);
    CASE(file_that_shrank);
    printf("%d different\n", failures);
    return failures != 0;
}
