// Closes every descriptor at its start, as daemons do, in each of the ways there are; then works with sockets.
#include "loopback.h"

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "close";
    int client, server;
    for (int round = 0; round < 2; round++) {
        if (!strcmp(way, "close")) for (int fd = 3; fd < 1024; fd++) close(fd);
        else if (!strcmp(way, "closefrom")) closefrom(3);
        else if (!strcmp(way, "close_range")) CHECK(close_range(3, ~0u, 0) == 0);
        else for (int fd = 3; fd < 1024; fd++) dup2(0, fd), close(fd);
        pair_listener = -1;
        connect_pair(&client, &server);
        printf("%s: descriptors %d %d\n", way, client, server);
        echo(client, server, 200, 1000);
        pid_t child = fork();
        if (child == 0) {
            close(server);
            echo(client, client, 0, 0);
            CHECK(write(client, "child", 5) == 5);
            _exit(0);
        }
        char word[8] = {0};
        int status;
        CHECK(recv(server, word, 5, MSG_WAITALL) == 5);
        CHECK(waitpid(child, &status, 0) == child);
        printf("%s %d\n", word, status);
        echo(client, server, 20, 1000);
    }
    return 0;
}
