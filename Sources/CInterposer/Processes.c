// The calls that make another image of this process or of a child: execve and its kin, posix_spawn, system, popen. In C
// because the exec*l forms are variadic, and because lists of arguments need memory of their own on the stack.
//
// All of them may be called in vfork children and in signal handlers: no allocation, no lock of libc's.

#include "CInterposer.h"

#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

struct ss_process_hooks ss_process_hooks;

static void before_exec(void) {
    if (ss_process_hooks.before_exec) ss_process_hooks.before_exec();
}

/// exec returned.
static int exec_failed(int result) {
    if (ss_process_hooks.exec_failed) ss_process_hooks.exec_failed();
    return result;
}

static void before_spawn(void) {
    if (ss_process_hooks.before_spawn) ss_process_hooks.before_spawn();
}

int execve(const char *path, char *const arguments[], char *const environment[]) {
    before_exec();
    return exec_failed(ss_real.execve(path, arguments, environment));
}

int execveat(int directory, const char *path, char *const arguments[], char *const environment[], int flags) {
    before_exec();
    return exec_failed(ss_real.execveat(directory, path, arguments, environment, flags));
}

int fexecve(int fd, char *const arguments[], char *const environment[]) {
    before_exec();
    return exec_failed(ss_real.fexecve(fd, arguments, environment));
}

int execvpe(const char *file, char *const arguments[], char *const environment[]) {
    before_exec();
    return exec_failed(ss_real.execvpe(file, arguments, environment));
}

int execv(const char *path, char *const arguments[]) { return execve(path, arguments, environ); }

int execvp(const char *file, char *const arguments[]) { return execvpe(file, arguments, environ); }

/// The arguments from `first` on up to NULL, without it.
static ptrdiff_t count_arguments(va_list list, const char *_Nullable first) {
    if (!first) return 0;
    ptrdiff_t count = 1;
    while (va_arg(list, char *)) count++;
    return count;
}

static void collect_arguments(char **into, ptrdiff_t count, va_list list, const char *_Nullable first) {
    into[0] = (char *)first;
    for (ptrdiff_t i = 1; i <= count; i++) into[i] = va_arg(list, char *);
}

// `arguments` is a variable array of this call, as in libc's own: what the caller pushed is as long.
#define COLLECT(first)                              \
    va_list list;                                   \
    va_start(list, first);                          \
    ptrdiff_t count = count_arguments(list, first); \
    va_end(list);                                   \
    char *arguments[count + 1];                     \
    va_start(list, first);                          \
    collect_arguments(arguments, count, list, first)

int execl(const char *path, const char *_Nullable first, ...) {
    COLLECT(first);
    va_end(list);
    return execve(path, arguments, environ);
}

int execlp(const char *file, const char *_Nullable first, ...) {
    COLLECT(first);
    va_end(list);
    return execvpe(file, arguments, environ);
}

int execle(const char *path, const char *_Nullable first, ...) {
    COLLECT(first);
    // What follows the NULL.
    char *const *environment = va_arg(list, char *const *);
    va_end(list);
    return execve(path, arguments, environment);
}

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                char *const arguments[], char *const environment[]) {
    before_spawn();
    return ss_real.posix_spawn(pid, path, actions, attributes, arguments, environment);
}

int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                 char *const arguments[], char *const environment[]) {
    before_spawn();
    return ss_real.posix_spawnp(pid, file, actions, attributes, arguments, environment);
}

/// A descriptor that is close-on-exec loses that by being duplicated: what the child will find under `new` is said here.
int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int old, int new) {
    if (ss_process_hooks.passes_to_child) ss_process_hooks.passes_to_child(old);
    return ss_real.posix_spawn_file_actions_adddup2(actions, old, new);
}

int system(const char *command) {
    if (command) before_spawn();
    return ss_real.system(command);
}

FILE *popen(const char *command, const char *mode) {
    before_spawn();
    return ss_real.popen(command, mode);
}

// clone(2) as libc offers it. A child with memory of its own is a forked one; with its parent's memory it is a thread, or
// like a vfork child.

struct beginning {
    int (*function)(void *);
    void *argument;
};

/// Runs in the child, on the stack that the program gave it; the parent's memory, and so `beginning`, was copied.
static int begin_child(void *beginning) {
    struct beginning child = *(struct beginning *)beginning;
    ss_process_hooks.after_fork_in_child();
    return child.function(child.argument);
}

static int make_child(int (*function)(void *), void *stack, int flags, void *argument, va_list list) {
    int *parent_tid = va_arg(list, int *);
    void *tls = va_arg(list, void *);
    int *child_tid = va_arg(list, int *);
    if (flags & (CLONE_VM | CLONE_FILES) || !function || !stack || !ss_process_hooks.before_fork)
        return ss_real.clone(function, stack, flags, argument, parent_tid, tls, child_tid);
    struct beginning beginning = {function, argument};
    ss_process_hooks.before_fork();
    int child = ss_real.clone(begin_child, stack, flags, &beginning, parent_tid, tls, child_tid);
    ss_process_hooks.after_fork_in_parent();
    return child;
}

// Two functions of one body.
#define CLONE(name)                                                                     \
    int name(int (*function)(void *), void *stack, int flags, void *argument, ...) {    \
        va_list list;                                                                   \
        va_start(list, argument);                                                       \
        int child = make_child(function, stack, flags, argument, list);                 \
        va_end(list);                                                                   \
        return child;                                                                   \
    }
CLONE(clone)
CLONE(__clone)
