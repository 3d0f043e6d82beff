/* From ops to kernels: ii_run_<kernel>(ctx, &args) picks the engine of the context's device, does
 * nothing in plan mode or after an error, makes a failure the context's error, and times the call
 * when the context has a profile. An engine that lacks a kernel does not link. */
#ifndef II_KERNEL_CALL_H
#define II_KERNEL_CALL_H
#include "autograd/ctx.h"

enum {
#define II_KERNEL(name, args) II_KERNEL_##name,
#include "kernels/kernels.def"
#undef II_KERNEL
  II_KERNEL_COUNT
};

bool ii_kernel_begin(ii_ctx *c, double *t0);
void ii_kernel_end(ii_ctx *c, int kernel, double t0, int status);

#if II_HAVE_CUDA
#define II_ENGINE_CALL(name, k, a)                                                                 \
  ((k)->device == II_CUDA ? ii_cuda_##name(k, a) : ii_cpu_##name(k, a))
#else
#define II_ENGINE_CALL(name, k, a) ii_cpu_##name(k, a)
#endif

#define II_KERNEL(name, args)                                                                      \
  static inline void ii_run_##name(ii_ctx *c, const args *a) {                                     \
    double t0;                                                                                     \
    if (!ii_kernel_begin(c, &t0)) return;                                                          \
    ii_kernel_end(c, II_KERNEL_##name, t0, II_ENGINE_CALL(name, &c->k, a));                        \
  }
#include "kernels/kernels.def"
#undef II_KERNEL

#endif
