/* The CPU engine's entry points: each picks the float or the double build of its kernel. */
#include "kernels/kernels.h"

#define II_KERNEL(name, args)                                                                      \
  int ii_cpu_##name##_f32(ii_kctx *k, const args *a);                                              \
  int ii_cpu_##name##_f64(ii_kctx *k, const args *a);                                              \
  int ii_cpu_##name(ii_kctx *k, const args *a) {                                                   \
    return a->real == II_F64 ? ii_cpu_##name##_f64(k, a) : ii_cpu_##name##_f32(k, a);              \
  }
#include "kernels/kernels.def"
#undef II_KERNEL
