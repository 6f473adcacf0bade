// The first socket of a process is made while a child runs on its memory: by another thread, or by that child itself. What the
// child closes is its own, and the process's connections move all the same.
#include "carriers.h"

static _Atomic int has_begun, is_to_close, has_closed;
static int number;

static void *lend(void *nothing) {
    if (!vfork()) {
        has_begun = 1;
        while (!is_to_close) usleep(1000);
        // The number was free when this child came: it is not the process's socket.
        close(number);
        has_closed = 1;
        _exit(0);
    }
    return nothing;
}

static void beside_another_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, lend, NULL);
    while (!has_begun) usleep(1000);
    struct ends ends = make_ends();
    number = ends.client;
    is_to_close = 1;
    while (!has_closed) usleep(1000);
    pthread_join(thread, NULL);
    char byte = 'a';
    uint64_t before = tcp_bytes(ends.client);
    SHOW(write(ends.client, &byte, 1));
    SHOW(read(ends.server, &byte, 1));
    if (carrier) say("%d\n", moves && tcp_bytes(ends.client) != before);
    else say("0\n");
    close_ends(ends);
}

static void by_the_child(void) {
    int status;
    pid_t child = vfork();
    if (!child) _exit(socket(AF_INET, SOCK_STREAM, 0) < 0);
    SHOW(waitpid(child, &status, 0) == child && status == 0);
    close_ends(make_ends());
}

// Each case in a process that has not made a socket.
static void in_new_process(void (*function)(void)) {
    pid_t child = fork();
    if (!child) {
        for (carrier = 1;; carrier--) {
            has_begun = is_to_close = has_closed = 0;
            function();
            if (carrier == 0) break;
        }
        _exit(said_bytes[0] != said_bytes[1] || strcmp(said[0], said[1]));
    }
    int status;
    if (waitpid(child, &status, 0) != child || status) {
        printf("%#x DIFFERENT\n", status);
        failures++;
    }
}

int main(int count, char **arguments) {
    moves = !(count > 1 && !strcmp(arguments[1], "plain"));
    in_new_process(beside_another_thread);
    in_new_process(by_the_child);
    printf("\n%d different\n", failures);
    return failures != 0;
}
