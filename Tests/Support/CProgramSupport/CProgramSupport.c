#define _GNU_SOURCE
#include "CProgramSupport.h"

#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/wait.h>
#include <unistd.h>

int program_fork(void) { return fork(); }

int program_wait(int pid) {
    int status = 0;
    if (waitpid(pid, &status, 0) != pid) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

int program_select(int descriptor, int reading, int writing, int timeout_milliseconds) {
    fd_set readers, writers;
    FD_ZERO(&readers);
    FD_ZERO(&writers);
    if (reading) FD_SET(descriptor, &readers);
    if (writing) FD_SET(descriptor, &writers);
    struct timeval limit = {timeout_milliseconds / 1000, (timeout_milliseconds % 1000) * 1000};
    int count = select(descriptor + 1, &readers, &writers, NULL, &limit);
    if (count <= 0) return count;
    return (FD_ISSET(descriptor, &readers) ? 1 : 0) | (FD_ISSET(descriptor, &writers) ? 2 : 0);
}

int program_readable_bytes(int descriptor) {
    int count = 0;
    return ioctl(descriptor, FIONREAD, &count) < 0 ? -1 : count;
}

int program_set_nonblocking(int descriptor, int enable) {
    int flags = fcntl(descriptor, F_GETFL);
    if (flags < 0) return -1;
    return fcntl(descriptor, F_SETFL, enable ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

int program_pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set);
}

double program_cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

int program_memfd(void) { return memfd_create("program-chunk", MFD_CLOEXEC); }

int program_close_range(unsigned first, unsigned last) { return close_range(first, last, 0); }
