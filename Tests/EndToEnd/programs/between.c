// An image that nothing is preloaded into (it is linked statically): makes a child that keeps every descriptor for a while, and
// execs its arguments with the environment that it was given.
#include <stdio.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (count < 2) return 2;
    pid_t child = fork();
    if (child < 0) return 3;
    if (child == 0) {
        alarm(5);
        pause();
        return 0;
    }
    execv(arguments[1], arguments + 1);
    perror("execv");
    return 1;
}
