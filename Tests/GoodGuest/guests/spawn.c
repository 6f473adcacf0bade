// vfork shares the memory of the parent with the child until it has done exec: what the child closes and moves is not the
// parent's.
#include "loopback.h"
#include <spawn.h>

extern char **environ;

/// The child makes one of its own before it ends.
static int two_generations(int code) {
    int status;
    pid_t child = vfork();
    if (child == 0) {
        pid_t grandchild = vfork();
        if (grandchild == 0) _exit(code);
        if (grandchild < 0 || waitpid(grandchild, &status, 0) != grandchild) _exit(99);
        _exit(WEXITSTATUS(status) + 1);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WEXITSTATUS(status);
}

int main(void) {
    int client, server, status;
    connect_pair(&client, &server);
    for (int code = 0; code < 50; code++) CHECK(two_generations(code) == code + 1);
    echo(client, server, 50, 100);
    for (int round = 0; round < 20; round++) {
        pid_t child = vfork();
        if (child == 0) {
            close(server);
            dup2(client, 1);
            close(client);
            close(pair_listener);
            closefrom(3);
            execl("/bin/echo", "echo", "through a socket", (char *)NULL);
            _exit(1);
        }
        char line[18] = {0};
        CHECK(recv(server, line, 17, MSG_WAITALL) == 17);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(status == 0 && !strcmp(line, "through a socket\n"));
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, client, 1);
        posix_spawn_file_actions_addclosefrom_np(&actions, 3);
        char *arguments[] = {"echo", "through a socket", NULL};
        CHECK(posix_spawn(&child, "/bin/echo", &actions, NULL, arguments, environ) == 0);
        CHECK(recv(server, line, 17, MSG_WAITALL) == 17);
        CHECK(waitpid(child, &status, 0) == child);
        posix_spawn_file_actions_destroy(&actions);
        echo(client, server, 10, 100);
    }
    printf("done\n");
    return 0;
}
