/* Atomics for emulate.h: plain read-modify-write, since no thread is interrupted inside one. They
 * are kept out of the race checker's instrumentation (memcpy, since an assignment operator that is
 * not inlined would be instrumented) and announce themselves to it instead. */
#ifndef II_EMULATE_ATOMIC_H
#define II_EMULATE_ATOMIC_H

#define II_EMU_ATOMIC(name, type, expression)                                                      \
  __attribute__((noinline, no_sanitize_thread)) static type name##_body(type *p, type v,           \
                                                                        II_EMU_SITE) {             \
    ii_emu_atomic_access(p, sizeof *p, #name, #type, __builtin_return_address(0), II_EMU_HERE);    \
    type old, now;                                                                                 \
    memcpy(static_cast<void *>(&old), static_cast<const void *>(p), sizeof old);                   \
    now = (expression);                                                                            \
    memcpy(static_cast<void *>(p), static_cast<const void *>(&now), sizeof now);                   \
    return old;                                                                                    \
  }                                                                                                \
  static inline type name(type *p, type v, II_EMU_SITE) {                                          \
    return name##_body(p, v, II_EMU_HERE);                                                         \
  }                                                                                                \
  static inline type name##_block(type *p, type v, II_EMU_SITE) {                                  \
    return name##_body(p, v, II_EMU_HERE);                                                         \
  }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
II_EMU_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))
II_EMU_ATOMIC(atomicAdd, unsigned, old + v)
II_EMU_ATOMIC(atomicAdd, unsigned long long, old + v)
II_EMU_ATOMIC(atomicAdd, float, old + v)
II_EMU_ATOMIC(atomicAdd, double, old + v)
II_EMU_ATOMIC(atomicAdd, __half, __hadd(old, v))
II_EMU_ATOMIC(atomicAdd, __half2, __hadd2(old, v))
II_EMU_ATOMIC(atomicAdd, __nv_bfloat16, __hadd(old, v))
II_EMU_ATOMIC(atomicAdd, __nv_bfloat162, __hadd2(old, v))
II_EMU_ATOMIC(atomicAdd, float2, make_float2(old.x + v.x, old.y + v.y))
II_EMU_ATOMIC(atomicAdd, float4, make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w))
II_EMU_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)v))
II_EMU_ATOMIC(atomicSub, unsigned, old - v)
II_EMU_ATOMIC(atomicMin, int, old < v ? old : v)
II_EMU_ATOMIC(atomicMin, unsigned, old < v ? old : v)
II_EMU_ATOMIC(atomicMin, long long, old < v ? old : v)
II_EMU_ATOMIC(atomicMin, unsigned long long, old < v ? old : v)
II_EMU_ATOMIC(atomicMax, int, old > v ? old : v)
II_EMU_ATOMIC(atomicMax, unsigned, old > v ? old : v)
II_EMU_ATOMIC(atomicMax, long long, old > v ? old : v)
II_EMU_ATOMIC(atomicMax, unsigned long long, old > v ? old : v)
II_EMU_ATOMIC(atomicAnd, int, old &v)
II_EMU_ATOMIC(atomicAnd, unsigned, old &v)
II_EMU_ATOMIC(atomicAnd, unsigned long long, old &v)
II_EMU_ATOMIC(atomicOr, int, old | v)
II_EMU_ATOMIC(atomicOr, unsigned, old | v)
II_EMU_ATOMIC(atomicOr, unsigned long long, old | v)
II_EMU_ATOMIC(atomicXor, int, old ^ v)
II_EMU_ATOMIC(atomicXor, unsigned, old ^ v)
II_EMU_ATOMIC(atomicXor, unsigned long long, old ^ v)
II_EMU_ATOMIC(atomicExch, int, v)
II_EMU_ATOMIC(atomicExch, unsigned, v)
II_EMU_ATOMIC(atomicExch, unsigned long long, v)
II_EMU_ATOMIC(atomicExch, float, v)
II_EMU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
II_EMU_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
#undef II_EMU_ATOMIC

#define II_EMU_CAS(type)                                                                           \
  __attribute__((noinline, no_sanitize_thread)) static type atomicCAS(type *p, type expected,      \
                                                                      type v, II_EMU_SITE) {       \
    ii_emu_atomic_access(p, sizeof *p, "atomicCAS", #type, __builtin_return_address(0),            \
                         II_EMU_HERE);                                                             \
    const type old = *p;                                                                           \
    if (old == expected) *p = v;                                                                   \
    return old;                                                                                    \
  }
II_EMU_CAS(int)
II_EMU_CAS(unsigned)
II_EMU_CAS(unsigned long long)
II_EMU_CAS(unsigned short)
#undef II_EMU_CAS
#pragma GCC diagnostic pop

#endif
