// Copies from and to memory of the program, whose pointers may be bad: EFAULT, as the kernel's own copies answer, instead
// of a crash.
//
// The copies are ordinary instructions. Which ones they are, and where to go on when one faults, stands in the section
// `ss_guarded`; a handler of SIGSEGV and SIGBUS (ProgramSignals.c) looks the faulting instruction up there. What is not
// found is the program's own business, and gets the program's own action.
#pragma once
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#pragma clang assume_nonnull begin

// The thread sanitizer sees memcpy only.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SS_PLAIN_COPIES 1
#endif
#endif

/// `begin`, `end` (exclusive) and where to go on, as labels: one entry of the section. Where it goes on, rax or x0 is -1.
#define SS_GUARDED(begin, end, resume) \
    ".pushsection ss_guarded,\"aR\"\n" \
    ".balign 4\n" \
    ".long " begin " - .\n" \
    ".long " end " - .\n" \
    ".long " resume " - .\n" \
    ".popsection\n"

/// Copies `count` bytes (any number); the two must not overlap. 0, or -1 when one of them faulted: then some bytes of
/// `target` may have changed.
long ss_guarded_copy(void *target, const void *_Nullable source, size_t count);

/// The same for 8 bytes, without a call.
static inline __attribute__((always_inline)) long ss_guarded_copy8(void *target, const void *source) {
#if defined(SS_PLAIN_COPIES)
    memcpy(target, source, 8);
    return 0;
#elif defined(__x86_64__)
    register long failed __asm__("rax") = 0;
    uint64_t value;
    __asm__ volatile("1: movq (%[source]), %[value]\n"
                     "   movq %[value], (%[target])\n"
                     "2:\n" SS_GUARDED("1b", "2b", "2b")
                     : "+r"(failed), [value] "=&r"(value)
                     : [source] "r"(source), [target] "r"(target)
                     : "memory");
    return failed;
#else
    register long failed __asm__("x0") = 0;
    uint64_t value;
    __asm__ volatile("1: ldr %[value], [%[source]]\n"
                     "   str %[value], [%[target]]\n"
                     "2:\n" SS_GUARDED("1b", "2b", "2b")
                     : "+r"(failed), [value] "=&r"(value)
                     : [source] "r"(source), [target] "r"(target)
                     : "memory");
    return failed;
#endif
}

/// Makes the guarded copies safe in this process: takes SIGSEGV and SIGBUS, once. Before it they crash on a bad pointer as
/// any instruction does. Leaves a signal alone that the program ignores.
void ss_guard_memory(void);

/// For a handler of faults: lets the interrupted copy go on with its error. 0: the instruction is none of a copy.
int ss_resume_copy(void *context);

/// As `ss_guarded_copy`, for calls that may come before `ss_guard_memory`: reads and writes of headers and lengths.
long ss_copy_program_memory(void *_Nullable target, const void *_Nullable source, size_t count);

/// Whether all of it can be written: 0 or -1. Touches each page without changing it.
long ss_probe_program_memory(void *_Nullable memory, size_t count);

#pragma clang assume_nonnull end
