#include "CSocketSwitch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>

uint32_t ss_descriptor_table[SS_DESCRIPTORS];
unsigned char ss_private_state[SS_PRIVATE_STATE_BYTES] __attribute__((aligned(64)));
struct ss_session_state ss_session_state;
unsigned char ss_refusals[1024] __attribute__((aligned(64)));
unsigned char ss_provider_state[SS_PROVIDER_STATE_BYTES] __attribute__((aligned(64)));
WSPPROC_TABLE ss_base_provider;

static __thread int32_t thread_id __attribute__((tls_model("initial-exec")));

int32_t ss_thread_id(void) {
    if (__builtin_expect(thread_id == 0, 0)) thread_id = (int32_t)ss_sys_gettid();
    return thread_id;
}

/// The kernel can begin ppoll anew only if it can write to the time-out how much of it is left. These it cannot write to.
static const struct timespec powers[] = {
#define POWER(n) {(1ll << (n)) / 1000000000, (1ll << (n)) % 1000000000}
    POWER(10), POWER(11), POWER(12), POWER(13), POWER(14), POWER(15), POWER(16), POWER(17), POWER(18), POWER(19), POWER(20),
    POWER(21), POWER(22), POWER(23), POWER(24), POWER(25), POWER(26), POWER(27), POWER(28), POWER(29), POWER(30), POWER(31),
    POWER(32), POWER(33), POWER(34), POWER(35), POWER(36), POWER(37), POWER(38), POWER(39), POWER(40),
#undef POWER
};

long ss_poll_until_disturbed(struct pollfd *p, size_t n, uint64_t nanoseconds) {
    uint64_t start = ss_monotonic_ns(), left = nanoseconds;
    for (;;) {
        // The longest that is not too long; the rest is the next ones'.
        int power = left < 1024 ? 10 : 63 - __builtin_clzll(left);
        long result = ss_sys_ppoll(p, n, &powers[(power > 40 ? 40 : power) - 10], NULL);
        uint64_t passed = ss_monotonic_ns() - start;
        if (result != 0 || passed >= nanoseconds) return result;
        left = nanoseconds - passed;
    }
}

static __thread struct ss_poll_stamp poll_stamp __attribute__((tls_model("initial-exec")));

struct ss_poll_stamp *ss_thread_poll_stamp(void) { return &poll_stamp; }

void ss_thread_id_reset(void) { thread_id = 0; }

static __thread int forks __attribute__((tls_model("initial-exec")));

int ss_note_fork(int prepared) {
    int before = forks;
    forks = prepared;
    return before;
}

/// In decimal, without an end. Returns what is behind it.
static char *put_number(char *place, int number) {
    for (int power = 1000000000; power; power /= 10) {
        if (number >= power) *place++ = (char)('0' + number / power % 10);
    }
    return place;
}

int ss_thread_is_dead(int thread) {
    if (ss_sys_tkill(thread, 0) == -ESRCH) return 1;
    char path[32] = "/proc/", text[512];
    // A /proc of another PID namespace has other threads under these numbers.
    int own = (int)ss_sys_getpid();
    long length = ss_syscall6(SYS_readlinkat, AT_FDCWD, (long)"/proc/self", (long)text, sizeof text, 0, 0);
    if (length != put_number(path, own) - path || memcmp(text, path, length) != 0) return 0;
    memcpy(path, "/proc/", 6);
    memcpy(put_number(path + 6, thread), "/stat", 6);
    long file = ss_sys_open_to_read(path);
    if (file < 0) return 0;
    long count = ss_sys_read((int)file, text, sizeof text);
    ss_sys_close((int)file);
    // "pid (name) state …", and a name may have brackets, too.
    while (count > 0 && text[count - 1] != ')') count--;
    return count > 0 && count + 1 < (long)sizeof text && (text[count + 1] == 'Z' || text[count + 1] == 'X');
}

int ss_child_has_exited(int pid) {
    siginfo_t found = {0};
    long result = ss_syscall6(SYS_waitid, P_PID, pid, (long)&found, WNOHANG | WEXITED | WNOWAIT | __WALL, 0, 0);
    return result == 0 && found.si_pid == pid;
}

struct ss_relatives ss_relatives;

static long record(int fd, int command, struct flock *lock, long index) {
    *lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = index, .l_len = 1};
    return ss_syscall6(SYS_fcntl, fd, command, (long)lock, 0, 0, 0);
}

long ss_lock_record(int fd, long index) {
    struct flock lock;
    return record(fd, F_SETLK, &lock, index);
}

long ss_record_is_locked(int fd, long index) {
    struct flock lock;
    long result = record(fd, F_GETLK, &lock, index);
    return result < 0 ? result : lock.l_type != F_UNLCK;
}

uint32_t ss_borrowers;
uint32_t *ss_own_mark;

void ss_mark_own_memory(void *page) {
    if (ss_sys_madvise(page, 4096, 18 /* MADV_WIPEONFORK */) != 0) return;
    __atomic_store_n((uint32_t *)page, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&ss_own_mark, page, __ATOMIC_RELEASE);
}

void ss_begin_copied_memory(void) {
    __atomic_store_n(&ss_borrowers, 0, __ATOMIC_SEQ_CST);
    if (ss_own_mark) __atomic_store_n(ss_own_mark, 1, __ATOMIC_RELAXED);
}

// As libc's own cancellation points do it: cancellable at any moment, but only around the bare system call. (A thread that ends
// here ends in the section of its call: handlers that come while it cleans up wait for its next sleep.)
long ss_cancellable_syscall6(long n, long a, long b, long c, long d, long e, long f) {
    int type, ignored;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
    long result = ss_interruptible_syscall6(n, a, b, c, d, e, f);
    pthread_setcanceltype(type, &ignored);
    return result;
}
