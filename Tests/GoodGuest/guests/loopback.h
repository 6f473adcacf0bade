// An echo over TCP inside one program: what the small guests do with sockets.
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("line %d: %s: %s\n", __LINE__, #condition, strerror(errno)); \
            exit(1); \
        } \
    } while (0)

static inline int listen_on_loopback(struct sockaddr_in *address) {
    socklen_t length = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listener >= 0);
    CHECK(bind(listener, (void *)address, sizeof *address) == 0);
    CHECK(listen(listener, 64) == 0);
    CHECK(getsockname(listener, (void *)address, &length) == 0);
    return listener;
}

// The listener stays open, since a connection whose listener is gone stays on TCP; -1: not made yet, or closed.
static int pair_listener = -1;

static inline void connect_pair(int *client, int *server) {
    static struct sockaddr_in address;
    if (pair_listener < 0) pair_listener = listen_on_loopback(&address);
    CHECK((*client = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(connect(*client, (void *)&address, sizeof address) == 0);
    CHECK((*server = accept(pair_listener, NULL, NULL)) >= 0);
}

// Sends `rounds` numbered messages of `size` bytes there and back and checks each byte of them.
static inline void echo(int client, int server, int rounds, int size) {
    static __thread unsigned char out[65536], in[65536];
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < size; i++) out[i] = (unsigned char)(round * 31 + i);
        int from = round & 1 ? server : client, to = round & 1 ? client : server;
        CHECK(send(from, out, size, 0) == size);
        CHECK(recv(to, in, size, MSG_WAITALL) == size);
        CHECK(memcmp(in, out, size) == 0);
    }
}
