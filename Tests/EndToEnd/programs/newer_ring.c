// What liburing has since 2.8 and 2.9 and an older one has not: here they submit like its own functions, past whoever stands
// before those.
#include <dlfcn.h>
static int submit(void *ring, unsigned count) {
    void *liburing = dlopen("liburing.so.2", RTLD_LAZY);
    return ((int (*)(void *, unsigned))dlsym(liburing, "io_uring_submit_and_wait"))(ring, count);
}
int io_uring_submit_and_wait_min_timeout(void *ring, void **result, unsigned count, void *timeout, unsigned least, void *mask) {
    return submit(ring, count);
}
int io_uring_wait_cqes_min_timeout(void *ring, void **result, unsigned count, void *timeout, unsigned least, void *mask) {
    return submit(ring, count);
}
int io_uring_submit_and_wait_reg(void *ring, void **result, unsigned count, int number) { return submit(ring, count); }
