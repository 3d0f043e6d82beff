/* Planted: a variable that is never used. */
#include "kernels/cuda/gpu.h"

namespace {
template <typename T> __global__ void unused(T *x) {
  int forgotten = 3;
  x[threadIdx.x] = T(1);
}
} // namespace

extern "C" int gate_warning(ii_kctx *k, void *x) {
  II_LAUNCH(k, unused<float>, 1, 32, 0, (float *)x);
  return 0;
}
