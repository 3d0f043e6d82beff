/* Planted: a kernel of float whose double arithmetic is in a function that is not inlined. */
#include "kernels/cuda/gpu.h"

namespace {
__noinline__ __device__ float tenth(float v) {
  return (float)(v * 0.1);
}
template <typename T> __global__ void calls(T *x) {
  x[threadIdx.x] = tenth(x[threadIdx.x]);
}
} // namespace

extern "C" int gate_call(ii_kctx *k, void *x) {
  II_LAUNCH(k, calls<float>, 1, 32, 0, (float *)x);
  return 0;
}
