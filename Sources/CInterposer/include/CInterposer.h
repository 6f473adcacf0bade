// What the libc entry points need and Swift cannot say: the table of the real functions, the environment's copy,
// thread cancellation.
#pragma once
#include "CSocketSwitch.h"

#include <stdarg.h>

// Only that: a system header that is named here first would belong to this module and be unseen in the core's files.

#pragma clang assume_nonnull begin

// X(result, name, parameters): one line a function that the library takes the place of. Pointers are spelled
// `_Nullable` because the program may pass anything. fcntl and ioctl are variadic in C; on both ABIs that the library
// supports (System V x86-64, AAPCS64) a call with one integer argument after the named ones is the same as a call with
// three named arguments.
#define SS_P void *_Nullable
#define SS_C const void *_Nullable
#define SS_LENGTH uint32_t *_Nullable
#define SS_LIST char *_Nullable const *_Nullable
#define SS_REAL_FUNCTIONS(X) \
    X(ssize_t, read, (int fd, SS_P buffer, size_t count)) \
    X(ssize_t, write, (int fd, SS_C buffer, size_t count)) \
    X(ssize_t, readv, (int fd, const struct iovec *_Nullable list, int count)) \
    X(ssize_t, writev, (int fd, const struct iovec *_Nullable list, int count)) \
    X(ssize_t, recv, (int fd, SS_P buffer, size_t count, int flags)) \
    X(ssize_t, send, (int fd, SS_C buffer, size_t count, int flags)) \
    X(ssize_t, recvfrom, (int fd, SS_P buffer, size_t count, int flags, SS_P address, SS_LENGTH length)) \
    X(ssize_t, sendto, (int fd, SS_C buffer, size_t count, int flags, SS_C address, uint32_t length)) \
    X(ssize_t, recvmsg, (int fd, struct msghdr *_Nullable message, int flags)) \
    X(ssize_t, sendmsg, (int fd, const struct msghdr *_Nullable message, int flags)) \
    X(ssize_t, sendfile, (int out, int in, int64_t *_Nullable offset, size_t count)) \
    X(ssize_t, sendfile64, (int out, int in, int64_t *_Nullable offset, size_t count)) \
    X(int, sendmmsg, (int fd, struct mmsghdr *_Nullable list, unsigned count, int flags)) \
    X(int, recvmmsg, (int fd, struct mmsghdr *_Nullable list, unsigned count, int flags, struct timespec *_Nullable timeout)) \
    X(ssize_t, splice, (int in, int64_t *_Nullable in_offset, int out, int64_t *_Nullable out_offset, size_t count, unsigned flags)) \
    X(int, fclose, (SS_P stream)) \
    X(SS_P, freopen, (const char *_Nullable path, const char *_Nullable mode, SS_P stream)) \
    X(SS_P, freopen64, (const char *_Nullable path, const char *_Nullable mode, SS_P stream)) \
    X(void, backtrace_symbols_fd, (SS_P const *_Nullable addresses, int count, int fd)) \
    X(SS_P, fdopen, (int fd, const char *_Nullable mode)) \
    X(int, vdprintf, (int fd, const char *_Nullable format, va_list arguments)) \
    X(int, __vdprintf_chk, (int fd, int flag, const char *_Nullable format, va_list arguments)) \
    X(ssize_t, preadv2, (int fd, const struct iovec *_Nullable list, int count, int64_t offset, int flags)) \
    X(ssize_t, pwritev2, (int fd, const struct iovec *_Nullable list, int count, int64_t offset, int flags)) \
    X(int, aio_read, (SS_P request)) \
    X(int, aio_write, (SS_P request)) \
    X(int, lio_listio, (int mode, SS_P list, int count, SS_P event)) \
    X(int, sockatmark, (int fd)) \
    X(int, eventfd_read, (int fd, uint64_t *_Nullable value)) \
    X(int, eventfd_write, (int fd, uint64_t value)) \
    X(long, syscall, (long number, long a, long b, long c, long d, long e, long f)) \
    X(int, io_uring_setup, (unsigned entries, SS_P parameters)) \
    X(int, io_uring_queue_init, (unsigned entries, SS_P ring, unsigned flags)) \
    X(int, io_uring_queue_init_params, (unsigned entries, SS_P ring, SS_P parameters)) \
    X(int, io_uring_queue_init_mem, (unsigned entries, SS_P ring, SS_P parameters, SS_P memory, size_t bytes)) \
    X(int, io_uring_submit, (SS_P ring)) \
    X(int, io_uring_submit_and_wait, (SS_P ring, unsigned count)) \
    X(int, io_uring_submit_and_wait_timeout, (SS_P ring, SS_P result, unsigned count, SS_P timeout, SS_P mask)) \
    X(int, io_uring_submit_and_wait_min_timeout, \
      (SS_P ring, SS_P result, unsigned count, SS_P timeout, unsigned least, SS_P mask)) \
    X(int, io_uring_submit_and_wait_reg, (SS_P ring, SS_P result, unsigned count, int number)) \
    X(int, io_uring_submit_and_get_events, (SS_P ring)) \
    X(int, io_uring_wait_cqes, (SS_P ring, SS_P result, unsigned count, SS_P timeout, SS_P mask)) \
    X(int, io_uring_wait_cqes_min_timeout, \
      (SS_P ring, SS_P result, unsigned count, SS_P timeout, unsigned least, SS_P mask)) \
    X(int, io_uring_wait_cqe_timeout, (SS_P ring, SS_P result, SS_P timeout)) \
    X(int, io_uring_enter, (unsigned ring, unsigned count, unsigned wanted, unsigned flags, SS_P mask)) \
    X(int, io_uring_enter2, (unsigned ring, unsigned count, unsigned wanted, unsigned flags, SS_P mask, size_t size)) \
    X(int, io_uring_register, (unsigned ring, unsigned operation, SS_C argument, unsigned count)) \
    X(int, io_uring_register_files, (SS_P ring, const int *_Nullable files, unsigned count)) \
    X(int, io_uring_register_files_tags, (SS_P ring, const int *_Nullable files, SS_C tags, unsigned count)) \
    X(int, io_uring_register_files_update, (SS_P ring, unsigned first, const int *_Nullable files, unsigned count)) \
    X(int, io_uring_register_files_update_tag, (SS_P ring, unsigned first, const int *_Nullable files, SS_C tags, unsigned count)) \
    X(ssize_t, __read_chk, (int fd, SS_P buffer, size_t count, size_t size)) \
    X(ssize_t, __recv_chk, (int fd, SS_P buffer, size_t count, size_t size, int flags)) \
    X(ssize_t, __recvfrom_chk, (int fd, SS_P buffer, size_t count, size_t size, int flags, SS_P address, SS_LENGTH length)) \
    X(int, socket, (int domain, int type, int protocol)) \
    X(int, bind, (int fd, SS_C address, uint32_t length)) \
    X(int, listen, (int fd, int backlog)) \
    X(int, accept, (int fd, SS_P address, SS_LENGTH length)) \
    X(int, accept4, (int fd, SS_P address, SS_LENGTH length, int flags)) \
    X(int, connect, (int fd, SS_C address, uint32_t length)) \
    X(int, shutdown, (int fd, int how)) \
    X(int, getsockopt, (int fd, int level, int name, SS_P value, SS_LENGTH length)) \
    X(int, setsockopt, (int fd, int level, int name, SS_C value, uint32_t length)) \
    X(int, close, (int fd)) \
    X(int, close_range, (unsigned first, unsigned last, int flags)) \
    X(void, closefrom, (int first)) \
    X(int, dup, (int fd)) \
    X(int, dup2, (int old, int new)) \
    X(int, dup3, (int old, int new, int flags)) \
    X(int, fcntl, (int fd, int command, long argument)) \
    X(int, fcntl64, (int fd, int command, long argument)) \
    X(int, ioctl, (int fd, unsigned long request, SS_P argument)) \
    X(int, poll, (struct pollfd *_Nullable list, unsigned long count, int timeout)) \
    X(int, ppoll, (struct pollfd *_Nullable list, unsigned long count, const struct timespec *_Nullable timeout, SS_C mask)) \
    X(int, __poll_chk, (struct pollfd *_Nullable list, unsigned long count, int timeout, size_t size)) \
    X(int, __ppoll_chk, (struct pollfd *_Nullable list, unsigned long count, const struct timespec *_Nullable timeout, SS_C mask, size_t size)) \
    X(int, select, (int count, SS_P read, SS_P write, SS_P except, struct timeval *_Nullable timeout)) \
    X(int, pselect, (int count, SS_P read, SS_P write, SS_P except, const struct timespec *_Nullable timeout, SS_C mask)) \
    X(int, epoll_create, (int size)) \
    X(int, epoll_create1, (int flags)) \
    X(int, epoll_ctl, (int set, int operation, int fd, struct epoll_event *_Nullable event)) \
    X(int, epoll_wait, (int set, struct epoll_event *_Nullable events, int maximum, int timeout)) \
    X(int, epoll_pwait, (int set, struct epoll_event *_Nullable events, int maximum, int timeout, SS_C mask)) \
    X(int, epoll_pwait2, (int set, struct epoll_event *_Nullable events, int maximum, const struct timespec *_Nullable timeout, SS_C mask)) \
    X(int, execve, (const char *_Nullable path, SS_LIST arguments, SS_LIST environment)) \
    X(int, execvpe, (const char *_Nullable file, SS_LIST arguments, SS_LIST environment)) \
    X(int, fexecve, (int fd, SS_LIST arguments, SS_LIST environment)) \
    X(int, execveat, (int directory, const char *_Nullable path, SS_LIST arguments, SS_LIST environment, int flags)) \
    X(int, posix_spawn, (SS_P pid, const char *_Nullable path, SS_C actions, SS_C attributes, SS_LIST arguments, SS_LIST environment)) \
    X(int, posix_spawnp, (SS_P pid, const char *_Nullable file, SS_C actions, SS_C attributes, SS_LIST arguments, SS_LIST environment)) \
    X(int, posix_spawn_file_actions_adddup2, (SS_P actions, int old, int replacement)) \
    X(int, system, (const char *_Nullable command)) \
    X(int, wordexp, (const char *_Nullable words, SS_P result, int flags)) \
    X(SS_P, popen, (const char *_Nullable command, const char *_Nullable mode)) \
    X(int, prctl, (int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)) \
    X(int, pidfd_getfd, (int process, int fd, unsigned flags)) \
    X(int, _Fork, (void)) \
    X(int, clone, (int (*_Nullable function)(void *_Nullable), SS_P stack, int flags, SS_P argument, ...))

/// The functions behind ours, each with libc's own signature, errno and cancellation. Until `ss_find_real_functions` ran
/// they are bare system calls (with errno), so that a call from another library's constructor works.
struct ss_real_functions {
#define SS_MEMBER(result, name, parameters) result (*_Nonnull name) parameters;
    SS_REAL_FUNCTIONS(SS_MEMBER)
#undef SS_MEMBER
};
extern struct ss_real_functions ss_real __attribute__((visibility("hidden"), swift_attr("nonisolated(unsafe)")));

/// Fills `ss_real` with dlsym(RTLD_NEXT, …). Called once, from the constructor.
void ss_find_real_functions(void) __attribute__((visibility("hidden")));

/// The value of an environment variable, copied into storage of its own the first time (programs overwrite the
/// memory of their environment); NULL when absent or longer than `capacity` - 1 bytes. `which`: 0...4, one storage each.
const char *_Nullable ss_copy_environment(const char *name, int which) __attribute__((visibility("hidden")));

/// The descriptor of a struct aiocb, and of entry `index` of a list of pointers to them; -1 for a pointer that is none.
static inline int ss_descriptor_of_aio(const void *_Nullable request) {
    int fd;
    return ss_copy_program_memory(&fd, request, sizeof fd) == 0 ? fd : -1;
}
static inline const void *_Nullable ss_aio_in(const void *_Nullable list, int index) {
    const void *_Nullable request;
    return list && ss_copy_program_memory(&request, (const char *)list + index * (long)sizeof request, sizeof request) == 0 ? request : NULL;
}
static inline int ss_descriptor_of_aio_in(const void *_Nullable list, int index) { return ss_descriptor_of_aio(ss_aio_in(list, index)); }
/// Whether it is an LIO_READ: 0, in the second member of struct aiocb.
static inline int ss_is_aio_read_in(const void *_Nullable list, int index) {
    const char *_Nullable request = ss_aio_in(list, index);
    int operation;
    return request && ss_copy_program_memory(&operation, request + sizeof(int), sizeof operation) == 0 && operation == 0;
}

/// What the former image of this process left as SOCKSWITCH_INHERITED, taken out of the environment: it is for
/// this image alone. NULL: nothing.
const char *_Nullable ss_take_inheritance(void) __attribute__((visibility("hidden")));
/// Once, in the constructor: the linker's lock is none to wait for between fork and exec.
void ss_find_own_name(void) __attribute__((visibility("hidden")));

/// Acts on a pending cancellation of the calling thread: every tracked call that libc makes a cancellation point does
/// this before it begins and when a signal interrupted it.
extern void pthread_testcancel(void);
static inline void ss_test_cancel(void) { pthread_testcancel(); }

/// The arguments of an exec, as the program gave them.
struct ss_exec {
    /// The file: `path` below `directory`, or `directory` itself (AT_EMPTY_PATH), or `path` in the directories of PATH.
    int directory;
    const char *_Nullable path;
    int flags;
    int searches;
    char *_Nullable const *_Nullable environment;
};

/// Not 0: the next image will load this library, and is made from this file. Reads the program's memory with care.
int ss_find_next_image(const struct ss_exec *exec, uint64_t *device, uint64_t *inode) __attribute__((visibility("hidden")));

/// Whether this image is made from the file, or is the interpreter of it.
int ss_is_this_image(uint64_t device, uint64_t inode) __attribute__((visibility("hidden")));

/// What the switch wants to do before another image or another process exists (Processes.c): NULL until the constructor.
struct ss_process_hooks {
    /// Writes at most `capacity` bytes to `text`; not 0: the next image is to have it as SOCKSWITCH_INHERITED.
    int (*_Nullable before_exec)(char *_Nullable text, size_t capacity, const struct ss_exec *exec);
    void (*_Nullable exec_failed)(void);
    void (*_Nullable before_spawn)(void);
    void (*_Nullable passes_to_child)(int fd);
    void (*_Nullable before_fork)(void);
    void (*_Nullable after_fork_in_parent)(void);
    void (*_Nullable after_fork_in_child)(void);
};
extern struct ss_process_hooks ss_process_hooks __attribute__((visibility("hidden"), swift_attr("nonisolated(unsafe)")));

/// Called by quick_exit, behind the program's own handlers.
void ss_register_quick_exit_hook(void (*hook)(void)) __attribute__((visibility("hidden")));

/// fileno and fflush of a FILE, which leave errno alone. The latter returns the error, or 0.
int ss_descriptor_of_stream(SS_P stream) __attribute__((visibility("hidden")));
int ss_flush_stream(SS_P stream) __attribute__((visibility("hidden")));

/// fdopen of a stream that reads, writes and closes by the library's own calls. (It knows no wide characters.)
SS_P ss_open_stream(int fd, const char *_Nullable mode) __attribute__((visibility("hidden")));

/// pthread_atfork with the hooks of `ss_process_hooks`.
void ss_register_fork_hooks(void) __attribute__((visibility("hidden")));

#pragma clang assume_nonnull end
