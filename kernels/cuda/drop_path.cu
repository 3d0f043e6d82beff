/* Masks of stochastic depth, and counters: one thread per element of tiny vectors.
 *
 * A sample is kept when its uniform number u = i * 2^-53 >= rate; compared as integers,
 * i >= ceil(rate * 2^53), which is exact and needs no double arithmetic. The step may stand in
 * memory, so that a recorded launch draws other masks in each step. */
#include <math.h>
#include "kernels/cuda/gpu.h"

namespace {

template <typename R>
__global__ void __launch_bounds__(128)
    keep_kernel(const ii_keep_args a, uint64_t threshold, R kept) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.n) return;
  const uint64_t step = a.step_at ? (uint64_t)*a.step_at : a.step;
  const ii_philox_stream stream = ii_philox_stream_of(a.seed, a.purpose, step, a.draw);
  static_cast<R *>(a.y)[i] = ii_philox_uniform53(&stream, (uint64_t)i) >= threshold ? kept : R(0);
}

template <typename R>
__global__ void __launch_bounds__(128) shift_kernel(R *y, int64_t n, R value) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] += value;
}

template <typename R> int keep(ii_kctx *k, const ii_keep_args *a) {
  const uint64_t threshold = (uint64_t)ceil(a->rate * 0x1p53);
  II_LAUNCH(k, keep_kernel<R>, (unsigned)ii_ceil_div(a->n, 128), 128, 0, *a, threshold,
            (R)(1.0 / (1.0 - a->rate)));
  return 0;
}

template <typename R> int shift(ii_kctx *k, const ii_shift_args *a) {
  II_LAUNCH(k, shift_kernel<R>, (unsigned)ii_ceil_div(a->n, 128), 128, 0, (R *)a->y, a->n,
            (R)a->value);
  return 0;
}

} // namespace

extern "C" int ii_cuda_keep(ii_kctx *k, const ii_keep_args *a) {
  if (a->n == 0) return 0;
  return a->real == II_F64 ? keep<double>(k, a) : keep<float>(k, a);
}

extern "C" int ii_cuda_shift(ii_kctx *k, const ii_shift_args *a) {
  if (a->n == 0) return 0;
  return a->real == II_F64 ? shift<double>(k, a) : shift<float>(k, a);
}
