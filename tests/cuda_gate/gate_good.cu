/* A kernel with which the gate must be content: templates on the type, 16-byte accesses. */
#include "kernels/cuda/gpu.h"

namespace {
template <typename T, int V> __global__ void twice(T *x, int64_t n) {
  const int64_t i = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) * V;
  if (i + V > n) return;
  ii_vec<T, V> v = ii_load<V>(x + i);
#pragma unroll
  for (int j = 0; j < V; j++) v.v[j] = ii_down<T>(ii_up(v.v[j]) * ii_real_of<T>(2));
  ii_store<V>(x + i, v);
}
} // namespace

extern "C" int gate_good(ii_kctx *k, void *x, int64_t n) {
  II_LAUNCH(k, (twice<float, 4>), ii_grid_for(k, n, 256), 256, 0, (float *)x, n);
  II_LAUNCH(k, (twice<ii_bf16, 8>), ii_grid_for(k, n, 256), 256, 0, (ii_bf16 *)x, n);
  II_LAUNCH(k, (twice<double, 2>), ii_grid_for(k, n, 256), 256, 0, (double *)x, n);
  return 0;
}
