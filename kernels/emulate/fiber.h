/* Stacks for the threads of a kernel and the switch between them. A fiber starts at fiber_main()
 * each time it is taken from the pool; one that ends gives its stack back. */
#ifndef II_EMULATE_FIBER_H
#define II_EMULATE_FIBER_H
#include <stddef.h>
#include <stdint.h>

namespace ii_emu {

struct fiber {
  void *context;
  char *stack; /* lowest byte */
  size_t bytes;
  void *fake_stack; /* AddressSanitizer's */
  void *thread;     /* ThreadSanitizer's */
  fiber *next;      /* in the pool */
};

/* A fresh fiber that will call entry() when it is first switched to; entry must not return, and is
 * not seen by ThreadSanitizer (no_sanitize_thread), which would miss the return. */
fiber *fiber_take(void (*entry)(void));
/* Back to the pool; it may be the running one, when the next switch leaves it with `last`. */
void fiber_give(fiber *f);
/* From the running fiber to another one. last: the running one never continues. */
void fiber_switch(fiber *from, fiber *to, bool last);
/* First call of every entry(). */
void fiber_entered(void);
/* Fills in the calling thread's own stack, so that it can be switched back to. */
void fiber_of_host(fiber *f);

} // namespace ii_emu

#endif
