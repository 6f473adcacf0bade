// Cancels threads that sleep in calls which are cancellation points.
#include "loopback.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/un.h>

static int client, server, listener, local;
static void cleanup(void *name) { printf("%s: cleaned up\n", (char *)name); }
static void *sleeper(void *name) {
    char byte;
    pthread_cleanup_push(cleanup, name);
    if (!strcmp(name, "read")) read(client, &byte, 1);
    else if (!strcmp(name, "recv")) recv(client, &byte, 1, 0);
    else if (!strcmp(name, "accept")) accept(listener, NULL, NULL);
    else if (!strcmp(name, "local accept")) accept(local, NULL, NULL);
    else if (!strcmp(name, "poll")) poll(&(struct pollfd){client, POLLIN, 0}, 1, -1);
    else if (!strcmp(name, "select")) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(client, &set);
        select(client + 1, &set, NULL, NULL, NULL);
    } else if (!strcmp(name, "epoll_wait")) {
        int epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event);
        epoll_wait(epoll, &event, 1, -1);
    }
    printf("%s: returned\n", (char *)name);
    pthread_cleanup_pop(0);
    return NULL;
}

int main(int argc, char **argv) {
    struct sockaddr_in address;
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    connect_pair(&client, &server);
    echo(client, server, 50, 100);
    listener = listen_on_loopback(&address);
    local = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(local, (void *)&path, sizeof(sa_family_t)) == 0);
    CHECK(listen(local, 1) == 0);
    for (int i = 1; i < argc; i++) {
        pthread_t thread;
        void *result;
        CHECK(pthread_create(&thread, NULL, sleeper, argv[i]) == 0);
        usleep(50000);
        CHECK(pthread_cancel(thread) == 0);
        CHECK(pthread_join(thread, &result) == 0);
        printf("%s: %s\n", argv[i], result == PTHREAD_CANCELED ? "cancelled" : "ended");
        fflush(stdout);
    }
    echo(client, server, 20, 100);
    return 0;
}
