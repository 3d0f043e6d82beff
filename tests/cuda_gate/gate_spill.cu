/* Planted: 128 live values per thread with room for 32 registers. */
#include "kernels/cuda/gpu.h"

namespace {
template <typename T> __global__ void __launch_bounds__(1024, 2) many(T *x, int64_t n) {
  T v[128];
#pragma unroll
  for (int j = 0; j < 128; j++) v[j] = x[j * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 128; j++) x[j * n + threadIdx.x] = v[j] * v[127 - j];
}
} // namespace

extern "C" int gate_spill(ii_kctx *k, void *x, int64_t n) {
  II_LAUNCH(k, many<float>, 1, 1024, 0, (float *)x, n);
  return 0;
}
