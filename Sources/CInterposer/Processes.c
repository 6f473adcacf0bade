// The calls that make another image of this process or of a child: execve and its kin, posix_spawn, system, popen. In C
// because the exec*l forms are variadic, and because lists of arguments need memory of their own on the stack.
//
// All of them may be called in vfork children and in signal handlers: no allocation, no lock of libc's.

#include "CInterposer.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <wordexp.h>

struct ss_process_hooks ss_process_hooks;

// What the next image is told: the variable's name, and at most this many bytes of value. Sockets that do not fit stay on TCP.
static const char variable_name[] = "SOCKSWITCH_INHERITED";
enum { VARIABLE_BYTES = 65536 };
/// Environments with more variables are passed on as they are: the copy of the list lies on the stack.
enum { MAXIMUM_VARIABLES = 4096 };

// The variable of the one exec that is under way; before that, in the constructor, what the former image left.
static char variable[sizeof variable_name + VARIABLE_BYTES];
static int variable_is_taken;

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
        size_t length = strnlen(value, VARIABLE_BYTES);
        if (found || length == VARIABLE_BYTES) continue;
        memcpy(variable, value, length + 1);
        found = variable;
    }
    *kept = NULL;
    return found;
}

/// exec returned. `owns`: the variable was this call's.
static int exec_failed(int result, int owns) {
    if (ss_process_hooks.exec_failed) ss_process_hooks.exec_failed();
    if (owns) __atomic_store_n(&variable_is_taken, 0, __ATOMIC_RELEASE);
    return result;
}

// Which image comes next.

// This library's file, as the linker was told of it.
static const char *own_name;

void ss_find_own_name(void) {
    Dl_info own;
    if (dladdr(&variable_is_taken, &own) && own.dli_fname && own.dli_fname[0] == '/') own_name = own.dli_fname;
}

/// Whether the environment has this very library loaded before the next image.
static int loads_this_library(char *const *environment) {
    static const char preload[] = "LD_PRELOAD=";
    if (!environment || !own_name) return 0;
    for (long i = 0; i <= MAXIMUM_VARIABLES; i++) {
        char *entry;
        char start[sizeof preload - 1];
        if (ss_copy_program_memory(&entry, environment + i, sizeof entry) != 0 || !entry) return 0;
        if (ss_copy_program_memory(start, entry, sizeof start) != 0 || memcmp(start, preload, sizeof start) != 0) continue;
        // A list between blanks or colons.
        size_t length = strlen(own_name);
        for (const char *at = entry + sizeof start; *at;) {
            size_t item = strcspn(at, " :");
            if (item == length && memcmp(at, own_name, length) == 0) return 1;
            at += item;
            at += strspn(at, " :");
        }
        return 0;
    }
    return 0;
}

static int identify(int directory, const char *path, int flags, uint64_t *device, uint64_t *inode) {
    struct stat status;
    if (ss_syscall6(SYS_newfstatat, directory, (long)path, (long)&status, flags, 0, 0) != 0 || !S_ISREG(status.st_mode)) return 0;
    *device = status.st_dev;
    *inode = status.st_ino;
    return 1;
}

/// As execvpe looks for it. (Where the two should not agree the next image will not recognise itself.)
static int identify_in_path(const char *file, uint64_t *device, uint64_t *inode) {
    const char *path = getenv("PATH");
    if (!path) path = "/bin:/usr/bin";
    size_t length = strlen(file);
    char name[4096];
    while (1) {
        size_t directory = strcspn(path, ":");
        if (directory + length + 2 <= sizeof name) {
            memcpy(name, path, directory);
            name[directory] = '/';
            memcpy(name + directory + (directory > 0), file, length + 1);
            if (ss_syscall6(SYS_faccessat, AT_FDCWD, (long)name, X_OK, 0, 0, 0) == 0 && identify(AT_FDCWD, name, 0, device, inode))
                return 1;
        }
        path += directory;
        if (!*path++) return 0;
    }
}

int ss_find_next_image(const struct ss_exec *exec, uint64_t *device, uint64_t *inode) {
    if (!loads_this_library(exec->environment)) return 0;
    if (exec->searches && exec->path && !strchr(exec->path, '/')) return identify_in_path(exec->path, device, inode);
    return identify(exec->directory, exec->path, exec->flags & (AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW), device, inode);
}

static int is_file(const char *path, uint64_t device, uint64_t inode) {
    uint64_t found_device, found_inode;
    return identify(AT_FDCWD, path, 0, &found_device, &found_inode) && found_device == device && found_inode == inode;
}

int ss_is_this_image(uint64_t device, uint64_t inode) {
    if (is_file("/proc/self/exe", device, inode)) return 1;
    // A script: the image is its interpreter.
    const char *name = (const char *)getauxval(AT_EXECFN);
    return name && is_file(name, device, inode);
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
// environment is read only then, since a bad pointer is the kernel's to refuse. `list` lives as long as the caller's frame.
#define BEFORE_EXEC(environment, ...)                                                                             \
    struct ss_exec exec = {__VA_ARGS__, environment};                                                             \
    int owns = begin_exec(&exec);                                                                                 \
    long count = owns ? count_variables(environment) : 0;                                                         \
    char *list[count < 0 ? 1 : count + 2];                                                                        \
    if (owns && count >= 0) environment = with_variable(list, variable, environment, count)

/// Not 0: the next image is to have `variable`, which is the caller's until its exec has failed. (In a vfork child it never is.)
static int begin_exec(const struct ss_exec *exec) {
    if (!ss_process_hooks.before_exec) return 0;
    int owns = !__atomic_exchange_n(&variable_is_taken, 1, __ATOMIC_ACQUIRE);
    if (owns) {
        memcpy(variable, variable_name, sizeof variable_name - 1);
        variable[sizeof variable_name - 1] = '=';
    }
    if (ss_process_hooks.before_exec(owns ? variable + sizeof variable_name : NULL, VARIABLE_BYTES, exec)) return 1;
    if (owns) __atomic_store_n(&variable_is_taken, 0, __ATOMIC_RELEASE);
    return 0;
}

static void before_spawn(void) {
    if (ss_process_hooks.before_spawn) ss_process_hooks.before_spawn();
}

int execve(const char *path, char *const arguments[], char *const environment[]) {
    BEFORE_EXEC(environment, AT_FDCWD, path, 0, 0);
    return exec_failed(ss_real.execve(path, arguments, environment), owns);
}

int execveat(int directory, const char *path, char *const arguments[], char *const environment[], int flags) {
    BEFORE_EXEC(environment, directory, path, flags, 0);
    return exec_failed(ss_real.execveat(directory, path, arguments, environment, flags), owns);
}

int fexecve(int fd, char *const arguments[], char *const environment[]) {
    BEFORE_EXEC(environment, fd, "", AT_EMPTY_PATH, 0);
    return exec_failed(ss_real.fexecve(fd, arguments, environment), owns);
}

int execvpe(const char *file, char *const arguments[], char *const environment[]) {
    BEFORE_EXEC(environment, AT_FDCWD, file, 0, 1);
    return exec_failed(ss_real.execvpe(file, arguments, environment), owns);
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

/// Runs a shell for each command in `words`, and for nothing else.
int wordexp(const char *words, wordexp_t *result, int flags) {
    if (!(flags & WRDE_NOCMD) && words[strcspn(words, "$`")]) before_spawn();
    return ss_real.wordexp(words, result, flags);
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
    if (flags & (CLONE_VM | CLONE_FILES) || !function || !stack || !ss_process_hooks.before_fork) {
        int lends = flags & CLONE_VM && !(flags & CLONE_THREAD);
        if (lends) ss_lend_memory(1);
        int child = ss_real.clone(function, stack, flags, argument, parent_tid, tls, child_tid);
        // Otherwise nobody knows when it ends.
        if (lends && (flags & CLONE_VFORK || child < 0)) ss_lend_memory(-1);
        return child;
    }
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

// vfork(2), which comes back twice on one stack: the return address waits in a register, and the child is counted from before it
// exists until its parent goes on. (Elsewhere libc's is used, and whether the memory is lent is never certain.)
#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".globl vfork\n.type vfork, @function\n"
    ".globl __vfork\n.type __vfork, @function\n"
    ".hidden ss_borrowers\n"
    ".hidden ss_section\n"
    "__vfork:\n"
    "    .cfi_startproc\n"
    "    endbr64\n"
    "    jmp 3f\n"
    "    .cfi_endproc\n"
    ".size __vfork, .-__vfork\n"
    "vfork:\n"
    "    .cfi_startproc\n"
    "    endbr64\n"
    "3:\n"
    "    lock incl ss_borrowers(%rip)\n"
    "    popq %rdi\n"
    "    .cfi_adjust_cfa_offset -8\n"
    "    .cfi_register %rip, %rdi\n"
    "    movl $58, %eax\n"  // SYS_vfork
    "    syscall\n"
    "    pushq %rdi\n"
    "    .cfi_adjust_cfa_offset 8\n"
    "    .cfi_rel_offset %rip, 0\n"
    "    testl %eax, %eax\n"
    "    jz 1f\n"
    "    lock decl ss_borrowers(%rip)\n"
    // The child may have been killed in the middle of a section of its own, in this thread's memory.
    "    movq ss_section@gottpoff(%rip), %rcx\n"
    "    movq $0, %fs:(%rcx)\n"
    "    cmpl $-4095, %eax\n"
    "    jae 2f\n"
    "1:  ret\n"
    "2:  negl %eax\n"
    "    pushq %rax\n"
    "    .cfi_adjust_cfa_offset 8\n"
    "    call __errno_location@PLT\n"
    "    popq %rcx\n"
    "    .cfi_adjust_cfa_offset -8\n"
    "    movl %ecx, (%rax)\n"
    "    movl $-1, %eax\n"
    "    ret\n"
    "    .cfi_endproc\n"
    ".size vfork, .-vfork\n");
#endif
