#include "CInterposer.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The stubs: what the table holds before dlsym. Not cancellation points; everything else as libc does it.

extern void __chk_fail(void) __attribute__((noreturn));

static long result_of(long r) {
    if (r >= 0) return r;
    errno = (int)-r;
    return -1;
}

#define STUB(result, name, parameters, call) \
    static result stub_##name parameters { return (result)result_of(call); }
#define CALL(number, a, b, c, d, e, f) ss_syscall6(SYS_##number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

STUB(ssize_t, read, (int fd, void *p, size_t n), CALL(read, fd, p, n, 0, 0, 0))
STUB(ssize_t, write, (int fd, const void *p, size_t n), CALL(write, fd, p, n, 0, 0, 0))
STUB(ssize_t, readv, (int fd, const struct iovec *v, int n), CALL(readv, fd, v, n, 0, 0, 0))
STUB(ssize_t, writev, (int fd, const struct iovec *v, int n), CALL(writev, fd, v, n, 0, 0, 0))
STUB(ssize_t, recv, (int fd, void *p, size_t n, int g), CALL(recvfrom, fd, p, n, g, 0, 0))
STUB(ssize_t, send, (int fd, const void *p, size_t n, int g), CALL(sendto, fd, p, n, g, 0, 0))
STUB(ssize_t, recvfrom, (int fd, void *p, size_t n, int g, void *a, uint32_t *l), CALL(recvfrom, fd, p, n, g, a, l))
STUB(ssize_t, sendto, (int fd, const void *p, size_t n, int g, const void *a, uint32_t l), CALL(sendto, fd, p, n, g, a, l))
STUB(ssize_t, recvmsg, (int fd, struct msghdr *m, int g), CALL(recvmsg, fd, m, g, 0, 0, 0))
STUB(ssize_t, sendmsg, (int fd, const struct msghdr *m, int g), CALL(sendmsg, fd, m, g, 0, 0, 0))
STUB(ssize_t, sendfile, (int o, int i, int64_t *p, size_t n), CALL(sendfile, o, i, p, n, 0, 0))
STUB(ssize_t, sendfile64, (int o, int i, int64_t *p, size_t n), CALL(sendfile, o, i, p, n, 0, 0))
STUB(int, sendmmsg, (int fd, struct mmsghdr *m, unsigned n, int g), CALL(sendmmsg, fd, m, n, g, 0, 0))
STUB(int, recvmmsg, (int fd, struct mmsghdr *m, unsigned n, int g, struct timespec *t), CALL(recvmmsg, fd, m, n, g, t, 0))
STUB(ssize_t, splice, (int i, int64_t *p, int o, int64_t *q, size_t n, unsigned g), CALL(splice, i, p, o, q, n, g))
// Functions that no system call replaces are looked for at once.
#define FOUND(name, none, ...) \
    do { \
        __typeof__(ss_real.name) found = (__typeof__(ss_real.name))dlsym(RTLD_NEXT, #name); \
        if (found) return found(__VA_ARGS__); \
        errno = ENOSYS; \
        return none; \
    } while (0)
static int stub_fclose(void *stream) { FOUND(fclose, -1, stream); }
static void *stub_freopen(const char *path, const char *mode, void *stream) { FOUND(freopen, NULL, path, mode, stream); }
static void *stub_freopen64(const char *path, const char *mode, void *stream) { FOUND(freopen64, NULL, path, mode, stream); }
static void *stub_fdopen(int fd, const char *mode) { FOUND(fdopen, NULL, fd, mode); }
static int stub_vdprintf(int fd, const char *format, va_list arguments) { FOUND(vdprintf, -1, fd, format, arguments); }
static int stub___vdprintf_chk(int fd, int flag, const char *format, va_list arguments) {
    FOUND(__vdprintf_chk, -1, fd, flag, format, arguments);
}
static int stub_aio_read(void *request) { FOUND(aio_read, -1, request); }
static int stub_aio_write(void *request) { FOUND(aio_write, -1, request); }
static int stub_lio_listio(int mode, void *list, int count, void *event) { FOUND(lio_listio, -1, mode, list, count, event); }
// The kernel takes an offset in two halves; on 64-bit machines the first one is all of it.
STUB(ssize_t, preadv2, (int fd, const struct iovec *v, int n, int64_t o, int g), CALL(preadv2, fd, v, n, o, 0, g))
STUB(ssize_t, pwritev2, (int fd, const struct iovec *v, int n, int64_t o, int g), CALL(pwritev2, fd, v, n, o, 0, g))
static int stub_sockatmark(int fd) {
    int mark;
    return result_of(CALL(ioctl, fd, SIOCATMARK, &mark, 0, 0, 0)) < 0 ? -1 : mark;
}
static int stub_eventfd_read(int fd, uint64_t *value) { return stub_read(fd, value, 8) == 8 ? 0 : -1; }
static int stub_eventfd_write(int fd, uint64_t value) { return stub_write(fd, &value, 8) == 8 ? 0 : -1; }
static long stub_syscall(long number, long a, long b, long c, long d, long e, long f) {
    return result_of(ss_syscall6(number, a, b, c, d, e, f));
}
// liburing's functions return -errno, and may not be there at all, or come with what the program loads by dlopen, where
// RTLD_NEXT does not look. What was found stays loaded: the reference is not given back.
struct nth_object {
    int left;
    char name[4096];
};

static int copy_name(struct dl_phdr_info *object, size_t size, void *argument) {
    struct nth_object *wanted = argument;
    (void)size;
    size_t length = object->dlpi_name ? strlen(object->dlpi_name) : 0;
    if (length == 0 || length >= sizeof wanted->name || wanted->left-- > 0) return 0;
    memcpy(wanted->name, object->dlpi_name, length + 1);
    return 1;
}

/// Of an object under any name that has liburing in it. (No dlopen within dl_iterate_phdr: it has a lock.)
static void *find_in_any_object(const char *name, void *ours) {
    struct nth_object object;
    for (int n = 0;; n++) {
        object.left = n;
        if (!dl_iterate_phdr(copy_name, &object)) return NULL;
        void *library = dlopen(object.name, RTLD_NOLOAD | RTLD_LAZY);
        void *found = library ? dlsym(library, name) : NULL;
        if (found && found != ours) return found;
        if (library) dlclose(library);
    }
}

static void *find_in_liburing(const char *name, void **entry) {
    void *library = dlopen("liburing.so.2", RTLD_NOLOAD | RTLD_LAZY);
    if (!library) library = dlopen("liburing.so.1", RTLD_NOLOAD | RTLD_LAZY);
    void *real = library ? dlsym(library, name) : find_in_any_object(name, dlsym(RTLD_DEFAULT, name));
    if (real) __atomic_store_n(entry, real, __ATOMIC_RELEASE);
    return real;
}
#define IN_LIBURING(name, parameters, arguments)                                                      \
    static int stub_##name parameters {                                                               \
        int(*real) parameters = (int(*) parameters)find_in_liburing(#name, (void **)&ss_real.name);   \
        return real ? real arguments : -ENOSYS;                                                       \
    }
static int stub_io_uring_setup(unsigned entries, void *parameters) {
    return (int)CALL(io_uring_setup, entries, parameters, 0, 0, 0, 0);
}
IN_LIBURING(io_uring_queue_init, (unsigned entries, void *ring, unsigned flags), (entries, ring, flags))
IN_LIBURING(io_uring_queue_init_params, (unsigned entries, void *ring, void *parameters), (entries, ring, parameters))
IN_LIBURING(io_uring_queue_init_mem, (unsigned entries, void *ring, void *parameters, void *memory, size_t bytes),
            (entries, ring, parameters, memory, bytes))
IN_LIBURING(io_uring_submit, (void *ring), (ring))
IN_LIBURING(io_uring_submit_and_wait, (void *ring, unsigned count), (ring, count))
IN_LIBURING(io_uring_submit_and_wait_timeout, (void *ring, void *result, unsigned count, void *timeout, void *mask),
            (ring, result, count, timeout, mask))
IN_LIBURING(io_uring_submit_and_wait_min_timeout, (void *ring, void *result, unsigned count, void *timeout, unsigned least, void *mask),
            (ring, result, count, timeout, least, mask))
IN_LIBURING(io_uring_submit_and_wait_reg, (void *ring, void *result, unsigned count, int number), (ring, result, count, number))
IN_LIBURING(io_uring_wait_cqes_min_timeout, (void *ring, void *result, unsigned count, void *timeout, unsigned least, void *mask),
            (ring, result, count, timeout, least, mask))
IN_LIBURING(io_uring_submit_and_get_events, (void *ring), (ring))
IN_LIBURING(io_uring_wait_cqes, (void *ring, void *result, unsigned count, void *timeout, void *mask),
            (ring, result, count, timeout, mask))
IN_LIBURING(io_uring_wait_cqe_timeout, (void *ring, void *result, void *timeout), (ring, result, timeout))
static int stub_io_uring_enter2(unsigned ring, unsigned count, unsigned wanted, unsigned flags, void *mask, size_t size) {
    return (int)CALL(io_uring_enter, ring, count, wanted, flags, mask, size);
}
static int stub_io_uring_enter(unsigned ring, unsigned count, unsigned wanted, unsigned flags, void *mask) {
    return stub_io_uring_enter2(ring, count, wanted, flags, mask, 8);
}
static int stub_io_uring_register(unsigned ring, unsigned operation, const void *argument, unsigned count) {
    return (int)CALL(io_uring_register, ring, operation, argument, count, 0, 0);
}
IN_LIBURING(io_uring_register_files, (void *ring, const int *files, unsigned count), (ring, files, count))
IN_LIBURING(io_uring_register_files_tags, (void *ring, const int *files, const void *tags, unsigned count), (ring, files, tags, count))
IN_LIBURING(io_uring_register_files_update, (void *ring, unsigned first, const int *files, unsigned count), (ring, first, files, count))
IN_LIBURING(io_uring_register_files_update_tag, (void *ring, unsigned first, const int *files, const void *tags, unsigned count),
            (ring, first, files, tags, count))

static ssize_t stub___read_chk(int fd, void *p, size_t n, size_t size) {
    if (n > size) __chk_fail();
    return stub_read(fd, p, n);
}
static ssize_t stub___recv_chk(int fd, void *p, size_t n, size_t size, int g) {
    if (n > size) __chk_fail();
    return stub_recv(fd, p, n, g);
}
static ssize_t stub___recvfrom_chk(int fd, void *p, size_t n, size_t size, int g, void *a, uint32_t *l) {
    if (n > size) __chk_fail();
    return stub_recvfrom(fd, p, n, g, a, l);
}

STUB(int, socket, (int d, int t, int p), CALL(socket, d, t, p, 0, 0, 0))
STUB(int, bind, (int fd, const void *a, uint32_t l), CALL(bind, fd, a, l, 0, 0, 0))
STUB(int, listen, (int fd, int n), CALL(listen, fd, n, 0, 0, 0, 0))
STUB(int, accept, (int fd, void *a, uint32_t *l), CALL(accept4, fd, a, l, 0, 0, 0))
STUB(int, accept4, (int fd, void *a, uint32_t *l, int g), CALL(accept4, fd, a, l, g, 0, 0))
STUB(int, connect, (int fd, const void *a, uint32_t l), CALL(connect, fd, a, l, 0, 0, 0))
STUB(int, shutdown, (int fd, int how), CALL(shutdown, fd, how, 0, 0, 0, 0))
STUB(int, getsockopt, (int fd, int v, int o, void *p, uint32_t *l), CALL(getsockopt, fd, v, o, p, l, 0))
STUB(int, setsockopt, (int fd, int v, int o, const void *p, uint32_t l), CALL(setsockopt, fd, v, o, p, l, 0))
STUB(int, close, (int fd), CALL(close, fd, 0, 0, 0, 0, 0))
STUB(int, close_range, (unsigned a, unsigned b, int g), CALL(close_range, a, b, g, 0, 0, 0))
static void stub_closefrom(int first) { CALL(close_range, first < 0 ? 0 : first, ~0u, 0, 0, 0, 0); }
STUB(int, dup, (int fd), CALL(dup, fd, 0, 0, 0, 0, 0))
static int stub_dup2(int old, int new) {
    if (old == new) return result_of(CALL(fcntl, old, F_GETFD, 0, 0, 0, 0)) < 0 ? -1 : new;
    return (int)result_of(CALL(dup3, old, new, 0, 0, 0, 0));
}
STUB(int, dup3, (int old, int new, int g), CALL(dup3, old, new, g, 0, 0, 0))
STUB(int, fcntl, (int fd, int c, long a), CALL(fcntl, fd, c, a, 0, 0, 0))
STUB(int, fcntl64, (int fd, int c, long a), CALL(fcntl, fd, c, a, 0, 0, 0))
STUB(int, ioctl, (int fd, unsigned long q, void *a), CALL(ioctl, fd, q, a, 0, 0, 0))

static int poll_for(struct pollfd *p, unsigned long n, struct timespec *t, const void *mask) {
    return (int)result_of(CALL(ppoll, p, n, t, mask, 8, 0));
}
static int stub_poll(struct pollfd *p, unsigned long n, int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    return poll_for(p, n, ms < 0 ? NULL : &t, NULL);
}
static int stub_ppoll(struct pollfd *p, unsigned long n, const struct timespec *t, const void *mask) {
    struct timespec copy = t ? *t : (struct timespec){0, 0};
    return poll_for(p, n, t ? &copy : NULL, mask);
}
static int stub___poll_chk(struct pollfd *p, unsigned long n, int ms, size_t size) {
    if (size / sizeof *p < n) __chk_fail();
    return stub_poll(p, n, ms);
}
static int stub___ppoll_chk(struct pollfd *p, unsigned long n, const struct timespec *t, const void *mask, size_t size) {
    if (size / sizeof *p < n) __chk_fail();
    return stub_ppoll(p, n, t, mask);
}
static int select_for(int n, void *r, void *w, void *e, struct timespec *t, const void *mask) {
    struct { const void *set; size_t size; } signals = {mask, 8};
    return (int)result_of(CALL(pselect6, n, r, w, e, t, &signals));
}
static int stub_select(int n, void *r, void *w, void *e, struct timeval *t) {
    if (!t) return select_for(n, r, w, e, NULL, NULL);
    if (t->tv_sec < 0 || t->tv_usec < 0) return (int)result_of(-EINVAL);
    struct timespec left = {t->tv_sec + t->tv_usec / 1000000, t->tv_usec % 1000000 * 1000};
    int count = select_for(n, r, w, e, &left, NULL);
    *t = (struct timeval){left.tv_sec, left.tv_nsec / 1000};
    return count;
}
static int stub_pselect(int n, void *r, void *w, void *e, const struct timespec *t, const void *mask) {
    struct timespec copy = t ? *t : (struct timespec){0, 0};
    return select_for(n, r, w, e, t ? &copy : NULL, mask);
}
static int stub_epoll_create(int size) {
    return (int)result_of(size <= 0 ? -EINVAL : CALL(epoll_create1, 0, 0, 0, 0, 0, 0));
}
STUB(int, epoll_create1, (int g), CALL(epoll_create1, g, 0, 0, 0, 0, 0))
STUB(int, epoll_ctl, (int s, int o, int fd, struct epoll_event *v), CALL(epoll_ctl, s, o, fd, v, 0, 0))
STUB(int, epoll_wait, (int s, struct epoll_event *v, int n, int ms), CALL(epoll_pwait, s, v, n, ms, 0, 8))
STUB(int, epoll_pwait, (int s, struct epoll_event *v, int n, int ms, const void *m), CALL(epoll_pwait, s, v, n, ms, m, 8))
STUB(int, epoll_pwait2, (int s, struct epoll_event *v, int n, const struct timespec *t, const void *m), CALL(epoll_pwait2, s, v, n, t, m, 8))

STUB(int, execve, (const char *p, char *const *a, char *const *e), CALL(execve, p, a, e, 0, 0, 0))
STUB(int, execveat, (int d, const char *p, char *const *a, char *const *e, int g), CALL(execveat, d, p, a, e, g, 0))
STUB(int, prctl, (int o, unsigned long a, unsigned long b, unsigned long c, unsigned long d), CALL(prctl, o, a, b, c, d, 0))
STUB(int, pidfd_getfd, (int p, int fd, unsigned g), CALL(pidfd_getfd, p, fd, g, 0, 0, 0))

// These are more than a system call: libc's own function, looked for each time.
#define LATE(result, name, parameters, arguments)                                \
    static result stub_##name parameters {                                       \
        result(*real) parameters = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
        return real arguments;                                                   \
    }
LATE(int, fexecve, (int fd, char *const *a, char *const *e), (fd, a, e))
LATE(int, execvpe, (const char *p, char *const *a, char *const *e), (p, a, e))
LATE(int, posix_spawn, (void *i, const char *p, const void *f, const void *t, char *const *a, char *const *e), (i, p, f, t, a, e))
LATE(int, posix_spawnp, (void *i, const char *p, const void *f, const void *t, char *const *a, char *const *e), (i, p, f, t, a, e))
LATE(int, posix_spawn_file_actions_adddup2, (void *f, int o, int n), (f, o, n))
LATE(int, system, (const char *c), (c))
LATE(void *, popen, (const char *c, const char *m), (c, m))
LATE(int, wordexp, (const char *w, void *r, int g), (w, r, g))
LATE(int, _Fork, (void), ())
LATE(void, backtrace_symbols_fd, (void *const *a, int n, int fd), (a, n, fd))
static int stub_clone(int (*f)(void *), void *s, int g, void *a, ...) {
    va_list list;
    va_start(list, a);
    int *parent = va_arg(list, int *);
    void *tls = va_arg(list, void *);
    int *child = va_arg(list, int *);
    va_end(list);
    int (*real)(int (*)(void *), void *, int, void *, ...) = (int (*)(int (*)(void *), void *, int, void *, ...))dlsym(RTLD_NEXT, "clone");
    return real(f, s, g, a, parent, tls, child);
}

struct ss_real_functions ss_real = {
#define INITIAL(result, name, parameters) .name = stub_##name,
    SS_REAL_FUNCTIONS(INITIAL)
#undef INITIAL
};

static const char names[] =
#define NAME(result, name, parameters) #name "\0"
    SS_REAL_FUNCTIONS(NAME)
#undef NAME
    ;

void ss_find_real_functions(void) {
    void **entry = (void **)&ss_real;
    for (const char *name = names; *name; name += strlen(name) + 1, entry++) {
        void *real = dlsym(RTLD_NEXT, name);
        if (real) __atomic_store_n(entry, real, __ATOMIC_RELEASE);
    }
}

// The kernel limits one environment string to 128 KiB, so no policy is ever cut short. Untouched pages cost nothing.
static char service[4096], policy[131072], wait_mode[64], upgrade_mode[64], confinement[64];

const char *ss_copy_environment(const char *name, int which) {
    static const struct { char *storage; size_t capacity; } places[] = {
        {service, sizeof service}, {policy, sizeof policy}, {wait_mode, sizeof wait_mode},
        {upgrade_mode, sizeof upgrade_mode}, {confinement, sizeof confinement},
    };
    size_t length = strlen(name);
    if (!environ) return NULL;
    for (char **variable = environ; *variable; variable++) {
        if (strncmp(*variable, name, length) != 0 || (*variable)[length] != '=') continue;
        const char *value = *variable + length + 1;
        size_t count = strnlen(value, places[which].capacity);
        if (count == places[which].capacity) return NULL;
        memcpy(places[which].storage, value, count);
        places[which].storage[count] = 0;
        return places[which].storage;
    }
    return NULL;
}

void ss_register_fork_hooks(void) {
    pthread_atfork(ss_process_hooks.before_fork, ss_process_hooks.after_fork_in_parent, ss_process_hooks.after_fork_in_child);
}

void ss_register_quick_exit_hook(void (*hook)(void)) { at_quick_exit(hook); }

// MARK: Streams

int ss_descriptor_of_stream(void *stream) {
    int before = errno, fd = fileno(stream);
    errno = before;
    return fd;
}

int ss_flush_stream(void *stream) {
    int before = errno, error = fflush(stream) ? errno : 0;
    errno = before;
    return error;
}

/// As many of the bytes as could be written: fewer, and errno.
static size_t write_all(int fd, const char *bytes, size_t count) {
    size_t done = 0;
    while (done < count) {
        ssize_t part = write(fd, bytes + done, count - done);
        if (part <= 0) break;
        done += (size_t)part;
    }
    return done;
}

// A stream on the library's own calls, for a socket that cannot go back to TCP now.

static ssize_t read_for_stream(void *fd, char *bytes, size_t count) { return read((int)(intptr_t)fd, bytes, count); }
static ssize_t write_for_stream(void *fd, const char *bytes, size_t count) { return (ssize_t)write_all((int)(intptr_t)fd, bytes, count); }
static int seek_for_stream(void *fd, off64_t *offset, int whence) {
    (void)fd, (void)offset, (void)whence;
    errno = ESPIPE;
    return -1;
}
static int close_for_stream(void *fd) { return close((int)(intptr_t)fd); }

void *ss_open_stream(int fd, const char *mode) {
    FILE *stream = fopencookie((void *)(intptr_t)fd, mode,
                               (cookie_io_functions_t){read_for_stream, write_for_stream, seek_for_stream, close_for_stream});
    if (stream) stream->_fileno = fd;
    return stream;
}

// MARK: Names that write by themselves

// To what the switch knows they write through its own write: nothing overtakes what was sent before, and what has moved stays.

extern int ss_is_tracked(int fd);
extern void ss_before_direct_write(int fd);
extern int __vsnprintf_chk(char *, size_t, int, size_t, const char *, va_list);

enum { NO_FLAG = -1 };

static int format_into(char *text, size_t room, int flag, const char *format, va_list arguments) {
    return flag == NO_FLAG ? vsnprintf(text, room, format, arguments) : __vsnprintf_chk(text, room, flag, room, format, arguments);
}

/// Characters written, or -1 and errno.
static int write_formatted(int fd, int flag, const char *pattern, va_list arguments) {
    char small[1024];
    va_list again;
    va_copy(again, arguments);
    int count = format_into(small, sizeof small, flag, pattern, arguments), result = count;
    if (count > 0 && count < (int)sizeof small) {
        if (write_all(fd, small, (size_t)count) < (size_t)count) result = -1;
    } else if (count < 0) {
        // What cannot be formatted to its end: libc writes what there is before that.
        ss_before_direct_write(fd);
        result = flag == NO_FLAG ? ss_real.vdprintf(fd, pattern, again) : ss_real.__vdprintf_chk(fd, flag, pattern, again);
    } else if (count > 0) {
        size_t room = (size_t)count + 1;
        long place = result_of(CALL(mmap, 0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        char *text = (char *)place;
        if (place == -1) {
            result = -1;
        } else {
            // (A text that another thread changes may have another length now.)
            result = format_into(text, room, flag, pattern, again);
            if (result > count) result = count;
            if (result > 0 && write_all(fd, text, (size_t)result) < (size_t)result) result = -1;
            int error = errno;
            CALL(munmap, text, room, 0, 0, 0, 0);
            errno = error;
        }
    }
    va_end(again);
    return result;
}

__attribute__((visibility("default"))) int vdprintf(int fd, const char *format, va_list arguments) {
    return ss_is_tracked(fd) ? write_formatted(fd, NO_FLAG, format, arguments) : ss_real.vdprintf(fd, format, arguments);
}
__attribute__((visibility("default"))) int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments) {
    return ss_is_tracked(fd) ? write_formatted(fd, flag, format, arguments) : ss_real.__vdprintf_chk(fd, flag, format, arguments);
}
__attribute__((visibility("default"))) int dprintf(int fd, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int result = vdprintf(fd, format, arguments);
    va_end(arguments);
    return result;
}
__attribute__((visibility("default"))) int __dprintf_chk(int fd, int flag, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int result = __vdprintf_chk(fd, flag, format, arguments);
    va_end(arguments);
    return result;
}
/// Line by line: a pipe has room for each. Without allocating, since who calls this has often just crashed. 0, or -1: no pipe.
static int write_backtrace(void *const *addresses, int count, int fd) {
    int ends[2];
    if (CALL(pipe2, ends, O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0) != 0) return -1;
    for (int i = 0; i < count; i++) {
        ss_real.backtrace_symbols_fd(addresses + i, 1, ends[1]);
        char text[1024];
        long part;
        // (A line that cannot be written does not end it, in libc neither.)
        for (int fails = 0; (part = CALL(read, ends[0], text, sizeof text, 0, 0, 0)) > 0;)
            if (!fails) fails = write_all(fd, text, (size_t)part) < (size_t)part;
    }
    CALL(close, ends[0], 0, 0, 0, 0, 0);
    CALL(close, ends[1], 0, 0, 0, 0, 0);
    return 0;
}

__attribute__((visibility("default"))) void backtrace_symbols_fd(void *const *addresses, int count, int fd) {
    if (ss_is_tracked(fd) && write_backtrace(addresses, count, fd) == 0) return;
    ss_before_direct_write(fd);
    ss_real.backtrace_symbols_fd(addresses, count, fd);
}
__attribute__((visibility("default"))) void __backtrace_symbols_fd(void *const *addresses, int count, int fd) {
    backtrace_symbols_fd(addresses, count, fd);
}
