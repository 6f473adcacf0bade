// The calls that make another image of this process or of a child: execve and its kin, posix_spawn, system, popen. In C
// because the exec*l forms are variadic, and because lists of arguments need memory of their own on the stack.
//
// All of them may be called in vfork children and in signal handlers: no allocation, no lock of libc's.

#include "CInterposer.h"

#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct ss_process_hooks ss_process_hooks;

// What the next image is told: the variable's name, and at most this many bytes of value. Sockets that do not fit stay on TCP.
static const char variable_name[] = "SOCKSWITCH_INHERITED";
enum { VARIABLE_BYTES = 4096 };
/// Environments with more variables are passed on as they are: the copy of the list lies on the stack.
enum { MAXIMUM_VARIABLES = 4096 };

static char inheritance[VARIABLE_BYTES];

static int is_variable(const char *entry) {
    return strncmp(entry, variable_name, sizeof variable_name - 1) == 0 && entry[sizeof variable_name - 1] == '=';
}

const char *ss_take_inheritance(void) {
    if (!environ) return NULL;
    const char *found = NULL;
    char **kept = environ;
    for (char **entry = environ; *entry; entry++) {
        if (!is_variable(*entry)) {
            *kept++ = *entry;
            continue;
        }
        const char *value = *entry + sizeof variable_name;
        size_t length = strnlen(value, sizeof inheritance);
        if (found || length == sizeof inheritance) continue;
        memcpy(inheritance, value, length);
        found = inheritance;
    }
    *kept = NULL;
    return found;
}

/// exec returned.
static int exec_failed(int result) {
    if (ss_process_hooks.exec_failed) ss_process_hooks.exec_failed();
    return result;
}

/// How many variables there are; -1: too many for a copy.
static long count_variables(char *const *environment) {
    long count = 0;
    while (environment && environment[count])
        if (++count > MAXIMUM_VARIABLES) return -1;
    return count;
}

/// `list` := `variable` and the environment.
static char **with_variable(char **list, char *variable, char *const *environment, long count) {
    list[0] = variable;
    for (long i = 0; i < count; i++) list[i + 1] = environment[i];
    list[count + 1] = NULL;
    return list;
}

// Before each exec: hands over, and makes `environment` one with the variable where there is something to say. The
// environment is read only then, since a bad pointer is the kernel's to refuse. `variable` and `list` live as long as the
// caller's frame.
#define BEFORE_EXEC(environment)                                                                              \
    char variable[sizeof variable_name + VARIABLE_BYTES];                                                     \
    memcpy(variable, variable_name, sizeof variable_name - 1);                                                \
    variable[sizeof variable_name - 1] = '=';                                                                 \
    int inherits = ss_process_hooks.before_exec                                                               \
        && ss_process_hooks.before_exec(variable + sizeof variable_name, VARIABLE_BYTES);                     \
    long count = inherits ? count_variables(environment) : 0;                                                 \
    char *list[count < 0 ? 1 : count + 2];                                                                    \
    if (inherits && count >= 0) environment = with_variable(list, variable, environment, count)

static void before_spawn(void) {
    if (ss_process_hooks.before_spawn) ss_process_hooks.before_spawn();
}

int execve(const char *path, char *const arguments[], char *const environment[]) {
    BEFORE_EXEC(environment);
    return exec_failed(ss_real.execve(path, arguments, environment));
}

int execveat(int directory, const char *path, char *const arguments[], char *const environment[], int flags) {
    BEFORE_EXEC(environment);
    return exec_failed(ss_real.execveat(directory, path, arguments, environment, flags));
}

int fexecve(int fd, char *const arguments[], char *const environment[]) {
    BEFORE_EXEC(environment);
    return exec_failed(ss_real.fexecve(fd, arguments, environment));
}

int execvpe(const char *file, char *const arguments[], char *const environment[]) {
    BEFORE_EXEC(environment);
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
