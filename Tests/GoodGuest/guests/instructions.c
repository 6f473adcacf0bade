// Prints how many instructions a call of write on standard output takes in user space, found by single steps. The parent
// steps the child between stops that the child makes itself: once around nothing, once around the call.
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(void) { syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSTOP); }

static long steps(pid_t child) {
    for (long count = 0;; count++) {
        int status;
        if (ptrace(PTRACE_SINGLESTEP, child, 0, 0) < 0 || waitpid(child, &status, 0) < 0 || !WIFSTOPPED(status)) return -1;
        if (WSTOPSIG(status) == SIGSTOP) return count;
    }
}

int main(void) {
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        for (int i = 0; i < 2; i++) {
            stop();
            stop();
            write(1, "", 0);
            stop();
        }
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    long nothing = 0, call = 0;
    for (int i = 0; i < 2; i++) {
        if (i) steps(child);
        nothing = steps(child);
        call = steps(child);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    printf("%ld\n", call - nothing);
    return 0;
}
