// A plugin with a ring, for a program that knows nothing of liburing: until its input says otherwise the ring does nothing while
// the plugin talks over TCP, then it sends by the ring.
#include <arpa/inet.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static struct io_uring ring;
static int done(void) {
    struct io_uring_cqe *event;
    if (io_uring_submit(&ring) != 1 || io_uring_wait_cqe(&ring, &event)) return -1;
    int result = event->res;
    io_uring_cqe_seen(&ring, event);
    return result;
}
int use_ring(const char *port) {
    char block[64] = "request", answer[64];
    int result = io_uring_queue_init(8, &ring, 0), sends = 0;
    printf("ring %d\n", result), fflush(stdout);
    if (result) return 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&address, sizeof address)) return 1;
    for (long round = 0;; round++) {
        struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
        if (sends) io_uring_prep_send(entry, fd, block, 64, MSG_WAITALL);
        else io_uring_prep_nop(entry);
        if (done() != (sends ? 64 : 0)) return 1;
        if (!sends && send(fd, block, 64, 0) != 64) return 1;
        if (recv(fd, answer, 64, MSG_WAITALL) != 64 || memcmp(block, answer, 64)) return 1;
        if (sends && !(sends++ - 100)) printf("sent by the ring\n"), fflush(stdout);
        if (round % 100 == 0) printf("round %ld\n", round), fflush(stdout);
        if (!sends && poll(&(struct pollfd){0, POLLIN}, 1, 0) > 0) sends = 1;
        usleep(1000);
    }
}
