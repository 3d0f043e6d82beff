/* What the compiler calls at each access of memory in code built with -fsanitize=thread. The
 * program is not linked with that library; what the calls are for is another file's matter:
 * race.cpp (II_EMULATE_RACE) compares accesses, profile.cpp (II_EMULATE_PROFILE) counts them. */
#include "kernels/emulate/emulate_internal.h"

#if defined(II_EMULATE_RACE) || defined(II_EMULATE_PROFILE)

using namespace ii_emu;

extern "C" {

#define II_EMU_HOOK(n)                                                                             \
  void __tsan_read##n(void *p) {                                                                   \
    compiled_access(p, n, READ, true, __builtin_return_address(0));                                \
  }                                                                                                \
  void __tsan_write##n(void *p) {                                                                  \
    compiled_access(p, n, WRITE, true, __builtin_return_address(0));                               \
  }                                                                                                \
  void __tsan_unaligned_read##n(void *p) {                                                         \
    compiled_access(p, n, READ, false, __builtin_return_address(0));                               \
  }                                                                                                \
  void __tsan_unaligned_write##n(void *p) {                                                        \
    compiled_access(p, n, WRITE, false, __builtin_return_address(0));                              \
  }                                                                                                \
  void __tsan_volatile_read##n(void *p) {                                                          \
    compiled_access(p, n, READ, true, __builtin_return_address(0));                                \
  }                                                                                                \
  void __tsan_volatile_write##n(void *p) {                                                         \
    compiled_access(p, n, WRITE, true, __builtin_return_address(0));                               \
  }
II_EMU_HOOK(1)
II_EMU_HOOK(2)
II_EMU_HOOK(4)
II_EMU_HOOK(8)
II_EMU_HOOK(16)

void __tsan_read_range(void *p, unsigned long n) {
  if (n) compiled_access(p, n, READ | COPY, false, __builtin_return_address(0));
}
void __tsan_write_range(void *p, unsigned long n) {
  if (n) compiled_access(p, n, WRITE | COPY, false, __builtin_return_address(0));
}
void __tsan_init(void) {}
void __tsan_func_entry(void *pc) {
  compiled_entry(pc);
}
void __tsan_func_exit(void) {
  compiled_exit();
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {}

/* std::atomic and guards of local statics in host code. */
#define II_EMU_ATOMICS(bits, type)                                                                 \
  type __tsan_atomic##bits##_load(const volatile type *p, int) {                                   \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile type *p, type v, int) {                                \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                \
  type __tsan_atomic##bits##_exchange(volatile type *p, type v, int) {                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                            \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_add(volatile type *p, type v, int) {                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_sub(volatile type *p, type v, int) {                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                             \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type *p, type *old, type v, int,      \
                                                    int) {                                         \
    return __atomic_compare_exchange_n(p, old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type *p, type *old, type v, int, int) { \
    return __atomic_compare_exchange_n(p, old, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
  }
II_EMU_ATOMICS(8, unsigned char)
II_EMU_ATOMICS(32, unsigned)
II_EMU_ATOMICS(64, unsigned long)

} // extern "C"
#endif
