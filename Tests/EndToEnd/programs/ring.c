// A ring of liburing's works on a file while the program talks over TCP.
//
//     ring PORT FILE files        nothing but that
//     ring PORT FILE socket       after a while the ring sends what the program sent before
//     ring PORT FILE registered   the same, by a number under which the ring knows the socket
//     ring PORT FILE enter        after a while the ring is entered past liburing's books
//     ring PORT FILE newer[012]   as `socket`, submitted by functions that liburing has since 2.8 and 2.9
//     ring PORT FILE left         the ring reads what the program's peer has left behind when it closed
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int io_uring_submit_and_wait_min_timeout(struct io_uring *, struct io_uring_cqe **, unsigned, struct __kernel_timespec *, unsigned, sigset_t *);
int io_uring_wait_cqes_min_timeout(struct io_uring *, struct io_uring_cqe **, unsigned, struct __kernel_timespec *, unsigned, sigset_t *);
int io_uring_submit_and_wait_reg(struct io_uring *, struct io_uring_cqe **, unsigned, int);
static struct io_uring ring;
static int newer = -1;
static int submit(void) {
    struct io_uring_cqe *event;
    if (newer == 0) return io_uring_submit_and_wait_min_timeout(&ring, &event, 1, NULL, 0, NULL);
    if (newer == 1) return io_uring_wait_cqes_min_timeout(&ring, &event, 1, NULL, 0, NULL);
    if (newer == 2) return io_uring_submit_and_wait_reg(&ring, &event, 1, 0);
    return io_uring_submit(&ring);
}
static int done(void) {
    struct io_uring_cqe *event;
    if (submit() < 0 || io_uring_wait_cqe(&ring, &event)) return -1;
    int result = event->res;
    io_uring_cqe_seen(&ring, event);
    return result;
}
int main(int count, char **arguments) {
    char block[64] = "request", answer[64], page[512];
    int result = io_uring_queue_init(8, &ring, 0);
    printf("ring %d\n", result);
    if (result) return result == -38 || result == -1 ? 3 : 1;
    // Lists that there are not.
    if (io_uring_register_files(&ring, (void *)8, 2) != -EFAULT || io_uring_register_files(&ring, NULL, 2) != -EFAULT) return 1;
    if (!strncmp(arguments[3], "newer", 5)) newer = arguments[3][5] - '0';
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), file = open(arguments[2], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (connect(fd, (void *)&address, sizeof address) || file < 0) return 1;
    printf("talking\n"), fflush(stdout);
    for (long round = 0;; round++) {
        memset(page, round, sizeof page);
        io_uring_prep_write(io_uring_get_sqe(&ring), file, page, sizeof page, round % 16 * 512);
        if (done() != sizeof page) return 1;
        io_uring_prep_read(io_uring_get_sqe(&ring), file, page, sizeof page, round % 16 * 512);
        if (done() != sizeof page || page[1] != (char)round) return 1;
        if (round == 300 && !strcmp(arguments[3], "registered")) {
            int files[2] = {file, fd};
            if (io_uring_register_files(&ring, files, 2)) return 1;
        }
        if (round >= 300 && !strcmp(arguments[3], "enter")) io_uring_enter(ring.ring_fd, 0, 0, 0, NULL);
        if (round == 600 && !strcmp(arguments[3], "left")) strcpy(block, "the end");
        if (round >= 300 && (newer >= 0 || !strcmp(arguments[3], "socket"))) {
            io_uring_prep_send(io_uring_get_sqe(&ring), fd, block, 64, MSG_WAITALL);
            if (done() != 64) return 1;
        } else if (round > 300 && !strcmp(arguments[3], "registered")) {
            struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
            io_uring_prep_write(entry, 1, block, 64, 0);
            entry->flags |= IOSQE_FIXED_FILE;
            if (done() != 64) return 1;
        } else if (send(fd, block, 64, 0) != 64) return 1;
        if (round == 600 && !strcmp(arguments[3], "left")) {
            // The echo comes, and the end behind it.
            usleep(300000);
            for (int turn = 0, expected = 64; turn < 2; turn++, expected = 0) {
                io_uring_prep_recv(io_uring_get_sqe(&ring), fd, answer, 64, 0);
                if (done() != expected || expected && memcmp(block, answer, 64)) return 1;
            }
            printf("round 600\n"), fflush(stdout);
            pause();
        }
        if (recv(fd, answer, 64, MSG_WAITALL) != 64 || memcmp(block, answer, 64)) return 1;
        if (round % 100 == 0) printf("round %ld\n", round), fflush(stdout);
        usleep(1000);
    }
}
