#include "kernels/emulate/fiber.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define II_EMU_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define II_EMU_TSAN 1
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace ii_emu {

#if defined(__x86_64__)
/* swapcontext costs 0.4 us, for two system calls; this 10 ns. Saves what the ABI says a function
 * must keep; jumps instead of returning, since a return would be mispredicted. */
extern "C" void ii_emu_switch(void **from, void *to);
asm(R"(
.text
.p2align 4
.globl ii_emu_switch
.type ii_emu_switch,@function
ii_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size ii_emu_switch,.-ii_emu_switch
)");
#endif

static fiber *pool;     /* under the kernel lock, as everything here */
static int fibers_made; /* stacks start at different lines of the cache: 3 times faster */

/* Frames are several times larger under AddressSanitizer or without optimisation. */
static const size_t STACK_BYTES = 256 << 10;

static fiber *make_fiber() {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = STACK_BYTES + page;
  void *m =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED || mprotect(m, page, PROT_NONE) != 0) {
    fprintf(stderr, "emulated GPU: no memory for the stack of a thread\n");
    abort();
  }
  fiber *f = (fiber *)calloc(1, sizeof *f);
  f->stack = (char *)m + page;
  f->bytes = STACK_BYTES - (size_t)(fibers_made++ * 7 % 61) * 64;
#ifdef II_EMU_TSAN
  f->thread = __tsan_create_fiber(0);
#endif
  return f;
}

fiber *fiber_take(void (*entry)(void)) {
  fiber *f = pool;
  if (f)
    pool = f->next;
  else
    f = make_fiber();
  f->fake_stack = NULL;
#if defined(__x86_64__)
  void **top = (void **)(((uintptr_t)f->stack + f->bytes) & ~(uintptr_t)63);
  *--top = NULL; /* the return address of entry(), and its alignment */
  *--top = (void *)entry;
  for (int i = 0; i < 6; i++) *--top = NULL;
  f->context = top;
#else
  if (!f->context) f->context = calloc(1, sizeof(ucontext_t));
  ucontext_t *u = (ucontext_t *)f->context;
  getcontext(u);
  u->uc_stack.ss_sp = f->stack;
  u->uc_stack.ss_size = f->bytes;
  u->uc_link = NULL;
  makecontext(u, entry, 0);
#endif
  return f;
}

void fiber_give(fiber *f) {
  f->next = pool;
  pool = f;
}

__attribute__((no_sanitize_thread)) void fiber_switch(fiber *from, fiber *to, bool last) {
#ifdef II_EMU_ASAN
  __sanitizer_start_switch_fiber(last ? NULL : &from->fake_stack, to->stack, to->bytes);
#else
  (void)last;
#endif
#ifdef II_EMU_TSAN
  __tsan_switch_to_fiber(to->thread, 0);
#endif
#if defined(__x86_64__)
  ii_emu_switch(&from->context, to->context);
#else
  swapcontext((ucontext_t *)from->context, (ucontext_t *)to->context);
#endif
#ifdef II_EMU_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

void fiber_entered(void) {
#ifdef II_EMU_ASAN
  __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
}

void fiber_of_host(fiber *f) {
  *f = fiber();
#ifdef II_EMU_TSAN
  f->thread = __tsan_get_current_fiber();
#endif
#if !defined(__x86_64__)
  static thread_local ucontext_t own;
  f->context = &own;
#endif
#ifdef II_EMU_ASAN
  static thread_local void *base;
  static thread_local size_t bytes;
  pthread_attr_t attr;
  if (!base && pthread_getattr_np(pthread_self(), &attr) == 0) {
    pthread_attr_getstack(&attr, &base, &bytes);
    pthread_attr_destroy(&attr);
  }
  f->stack = (char *)base;
  f->bytes = bytes;
#endif
}

} // namespace ii_emu
