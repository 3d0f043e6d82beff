/* Masks of stochastic depth, and counters. */
#include "kernels/cpu/cpu.h"

int II_FN(keep)(ii_kctx *k, const ii_keep_args *a) {
  real *y = a->y;
  const uint64_t step = a->step_at ? (uint64_t)*a->step_at : a->step;
  const ii_philox_stream stream = ii_philox_stream_of(a->seed, a->purpose, step, a->draw);
  for (int64_t i = 0; i < a->n; i++) {
    const double u = (double)ii_philox_uniform53(&stream, (uint64_t)i) * 0x1p-53;
    y[i] = u >= a->rate ? (real)(1.0 / (1.0 - a->rate)) : 0;
  }
  return 0;
}

int II_FN(shift)(ii_kctx *k, const ii_shift_args *a) {
  real *y = a->y;
  for (int64_t i = 0; i < a->n; i++) y[i] += (real)a->value;
  return 0;
}
