/* Planted: a literal and an argument of type double in kernels of float. */
#include "kernels/cuda/gpu.h"

namespace {
template <typename T> __global__ void literal(T *x) {
  x[threadIdx.x] = x[threadIdx.x] * 0.1;
}
template <typename T> __global__ void argument(T *x, double scale) {
  x[threadIdx.x] *= (T)scale;
}
/* Not planted: moves doubles and computes nothing with them. */
__global__ void moves(double *to, const double *from) {
  to[threadIdx.x] = from[threadIdx.x];
}
} // namespace

extern "C" int gate_double(ii_kctx *k, void *x, void *y) {
  II_LAUNCH(k, literal<float>, 1, 32, 0, (float *)x);
  II_LAUNCH(k, argument<float>, 1, 32, 0, (float *)x, 0.5);
  II_LAUNCH(k, argument<double>, 1, 32, 0, (double *)x, 0.5);
  II_LAUNCH(k, moves, 1, 32, 0, (double *)x, (const double *)y);
  return 0;
}
