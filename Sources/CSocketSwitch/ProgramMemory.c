#include "CSocketSwitch.h"

#include <ucontext.h>

// MARK: The copies

#if defined(SS_PLAIN_COPIES)
long ss_guarded_copy(void *target, const void *source, size_t count) {
    memcpy(target, source, count);
    return 0;
}
#elif defined(__x86_64__)
// Up to 4 KiB with SSE registers (faster than a call of memcpy where messages are small), the rest as the kernel does it.
__asm__(".text\n"
        ".p2align 6\n"
        ".globl ss_guarded_copy\n"
        ".hidden ss_guarded_copy\n"
        ".type ss_guarded_copy, @function\n"
        "ss_guarded_copy:\n"
        ".cfi_startproc\n"
        "    xorl %eax, %eax\n"
        ".Lcopy_begin:\n"
        "    cmpq $16, %rdx\n"
        "    jb 5f\n"
        "    cmpq $32, %rdx\n"
        "    ja 1f\n"
        "    movups (%rsi), %xmm0\n"
        "    movups -16(%rsi,%rdx), %xmm1\n"
        "    movups %xmm0, (%rdi)\n"
        "    movups %xmm1, -16(%rdi,%rdx)\n"
        "    ret\n"
        "1:  cmpq $64, %rdx\n"
        "    ja 2f\n"
        "    movups (%rsi), %xmm0\n"
        "    movups 16(%rsi), %xmm1\n"
        "    movups -32(%rsi,%rdx), %xmm2\n"
        "    movups -16(%rsi,%rdx), %xmm3\n"
        "    movups %xmm0, (%rdi)\n"
        "    movups %xmm1, 16(%rdi)\n"
        "    movups %xmm2, -32(%rdi,%rdx)\n"
        "    movups %xmm3, -16(%rdi,%rdx)\n"
        "    ret\n"
        "2:  cmpq $4096, %rdx\n"
        "    jae 4f\n"
        // 64 bytes a turn while more than 64 are left, then the last 64, which may overlap what is done.
        "    leaq -64(%rdi,%rdx), %r8\n"
        "    leaq -64(%rsi,%rdx), %r9\n"
        ".p2align 5\n"
        "3:  movups (%rsi), %xmm0\n"
        "    movups 16(%rsi), %xmm1\n"
        "    movups 32(%rsi), %xmm2\n"
        "    movups 48(%rsi), %xmm3\n"
        "    movups %xmm0, (%rdi)\n"
        "    movups %xmm1, 16(%rdi)\n"
        "    movups %xmm2, 32(%rdi)\n"
        "    movups %xmm3, 48(%rdi)\n"
        "    addq $64, %rsi\n"
        "    addq $64, %rdi\n"
        "    cmpq %r8, %rdi\n"
        "    jb 3b\n"
        "    movups (%r9), %xmm0\n"
        "    movups 16(%r9), %xmm1\n"
        "    movups 32(%r9), %xmm2\n"
        "    movups 48(%r9), %xmm3\n"
        "    movups %xmm0, (%r8)\n"
        "    movups %xmm1, 16(%r8)\n"
        "    movups %xmm2, 32(%r8)\n"
        "    movups %xmm3, 48(%r8)\n"
        "    ret\n"
        "4:  movq %rdx, %rcx\n"
        "    rep movsb\n"
        "    ret\n"
        "5:  cmpl $8, %edx\n"
        "    jb 6f\n"
        "    movq (%rsi), %rcx\n"
        "    movq -8(%rsi,%rdx), %r8\n"
        "    movq %rcx, (%rdi)\n"
        "    movq %r8, -8(%rdi,%rdx)\n"
        "    ret\n"
        "6:  testl %edx, %edx\n"
        "    je 8f\n"
        "7:  movzbl -1(%rsi,%rdx), %ecx\n"
        "    movb %cl, -1(%rdi,%rdx)\n"
        "    decl %edx\n"
        "    jne 7b\n"
        "8:  ret\n"
        ".Lcopy_end:\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size ss_guarded_copy, . - ss_guarded_copy\n"
        SS_GUARDED(".Lcopy_begin", ".Lcopy_end", ".Lcopy_end"));
#else
__asm__(".text\n"
        ".p2align 6\n"
        ".globl ss_guarded_copy\n"
        ".hidden ss_guarded_copy\n"
        ".type ss_guarded_copy, %function\n"
        "ss_guarded_copy:\n"
        ".cfi_startproc\n"
        "    mov x3, x0\n"
        "    mov x0, #0\n"
        ".Lcopy_begin:\n"
        "1:  cmp x2, #64\n"
        "    b.lo 2f\n"
        "    ldp q0, q1, [x1]\n"
        "    ldp q2, q3, [x1, #32]\n"
        "    stp q0, q1, [x3]\n"
        "    stp q2, q3, [x3, #32]\n"
        "    add x1, x1, #64\n"
        "    add x3, x3, #64\n"
        "    sub x2, x2, #64\n"
        "    b 1b\n"
        "2:  cmp x2, #8\n"
        "    b.lo 3f\n"
        "    ldr x4, [x1], #8\n"
        "    str x4, [x3], #8\n"
        "    sub x2, x2, #8\n"
        "    b 2b\n"
        "3:  cbz x2, 4f\n"
        "    ldrb w4, [x1], #1\n"
        "    strb w4, [x3], #1\n"
        "    sub x2, x2, #1\n"
        "    b 3b\n"
        "4:  ret\n"
        ".Lcopy_end:\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size ss_guarded_copy, . - ss_guarded_copy\n"
        SS_GUARDED(".Lcopy_begin", ".Lcopy_end", ".Lcopy_end"));
#endif

// MARK: Which instructions they are

struct guarded {
    int32_t begin, end, resume;  // each relative to its own place
};
extern const struct guarded __start_ss_guarded[] __attribute__((visibility("hidden")));
extern const struct guarded __stop_ss_guarded[] __attribute__((visibility("hidden")));

static uintptr_t place(const int32_t *relative) { return (uintptr_t)relative + (uintptr_t)(intptr_t)*relative; }

/// Lets the interrupted copy go on with its error. 0: the instruction is none of a copy.
int ss_resume_copy(void *interrupted) {
    ucontext_t *context = interrupted;
#if defined(__x86_64__)
    uintptr_t instruction = (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
#else
    uintptr_t instruction = (uintptr_t)context->uc_mcontext.pc;
#endif
    for (const struct guarded *copy = __start_ss_guarded; copy < __stop_ss_guarded; copy++) {
        if (instruction < place(&copy->begin) || instruction >= place(&copy->end)) continue;
#if defined(__x86_64__)
        context->uc_mcontext.gregs[REG_RIP] = (greg_t)place(&copy->resume);
        context->uc_mcontext.gregs[REG_RAX] = -1;
#else
        context->uc_mcontext.pc = place(&copy->resume);
        context->uc_mcontext.regs[0] = (unsigned long long)-1;
#endif
        return 1;
    }
    return 0;
}

// MARK: For calls that may come before the guard

long ss_copy_program_memory(void *target, const void *source, size_t count) {
    if (!target || !source) return count == 0 ? 0 : -1;
    ss_guard_memory();
    return ss_guarded_copy(target, source, count);
}

/// Writes the byte that is there.
static long probe(unsigned char *byte) {
#if defined(__x86_64__)
    register long failed __asm__("rax") = 0;
    __asm__ volatile("1: lock orb $0, (%[byte])\n2:\n" SS_GUARDED("1b", "2b", "2b")
                     : "+r"(failed) : [byte] "r"(byte) : "memory", "cc");
#else
    register long failed __asm__("x0") = 0;
    uint32_t value, again;
    __asm__ volatile("1: ldxrb %w[value], [%[byte]]\n"
                     "   stxrb %w[again], %w[value], [%[byte]]\n"
                     "   cbnz %w[again], 1b\n"
                     "2:\n" SS_GUARDED("1b", "2b", "2b")
                     : "+r"(failed), [value] "=&r"(value), [again] "=&r"(again) : [byte] "r"(byte) : "memory");
#endif
    return failed;
}

long ss_probe_program_memory(void *memory, size_t count) {
    if (count == 0) return 0;
    uintptr_t at = (uintptr_t)memory, last = at + (count - 1);
    if (last < at) return -1;
    ss_guard_memory();
    for (; at < last; at = (at | 4095) + 1)
        if (probe((unsigned char *)at) < 0) return -1;
    return probe((unsigned char *)last);
}
