// A library whose constructor works with sockets: run before or after ours, and before main.
#include "loopback.h"
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>

static void on_signal(int signal) { (void)signal; }

__attribute__((constructor)) static void early(void) {
    int client, server;
    char bytes[8];
    connect_pair(&client, &server);
    CHECK(write(client, "abcdefgh", 8) == 8);
    CHECK(poll(&(struct pollfd){server, POLLIN, 0}, 1, 1000) == 1);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(server, &set);
    CHECK(select(server + 1, &set, NULL, NULL, &(struct timeval){1, 0}) == 1);
    CHECK(read(server, bytes, 8) == 8);
    CHECK(recv(server, bytes, 8, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(fcntl(server, F_SETFL, O_NONBLOCK) == 0);
    CHECK(read(server, bytes, 8) == -1 && errno == EAGAIN);
    int epoll = epoll_create1(0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, client, &(struct epoll_event){.events = EPOLLOUT}) == 0);
    CHECK(epoll_wait(epoll, &(struct epoll_event){0}, 1, 1000) == 1);
    CHECK(signal(SIGUSR1, on_signal) == SIG_DFL);
    CHECK(raise(SIGUSR1) == 0);
    CHECK(signal(SIGUSR1, SIG_DFL) == on_signal);
    CHECK(dup2(client, 30) == 30 && close(30) == 0);
    CHECK(write(-1, bytes, 1) == -1 && errno == EBADF);
    echo(client, server, 10, 100);
    close(epoll);
    close(client);
    close(server);
    close(pair_listener);
}
