// A library that takes sigaction from libc, as libjsig does, and tells at the end how often it was called with a signal.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>

static int calls[65];

int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    if (number > 0 && number < 65 && action) calls[number]++;
    int (*next)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
    return next(number, action, old);
}

__attribute__((destructor)) static void tell(void) {
    for (int i = 1; i < 65; i++)
        if (calls[i]) printf("chained %d: %d\n", i, calls[i]);
}
