/* kernels/timer.h on a GPU: two events around the work. No kernels. */
#include "kernels/timer.h"
#include "kernels/cuda/gpu.h"

extern "C" int ii_cuda_timer_init(ii_kctx *k, ii_timer *t) {
  cudaEvent_t from, to;
  II_CUDA_TRY(k, cudaSetDevice(ii_cuda(k)->device));
  II_CUDA_TRY(k, cudaEventCreate(&from));
  t->started = from;
  II_CUDA_TRY(k, cudaEventCreate(&to));
  t->stopped = to;
  return 0;
}

extern "C" void ii_cuda_timer_destroy(ii_kctx *k, ii_timer *t) {
  (void)k;
  if (t->started) cudaEventDestroy((cudaEvent_t)t->started);
  if (t->stopped) cudaEventDestroy((cudaEvent_t)t->stopped);
}

extern "C" int ii_cuda_timer_start(ii_kctx *k, ii_timer *t) {
  II_CUDA_TRY(k, cudaEventRecord((cudaEvent_t)t->started, ii_cuda_stream(k)));
  return 0;
}

extern "C" int ii_cuda_timer_stop(ii_kctx *k, ii_timer *t) {
  II_CUDA_TRY(k, cudaEventRecord((cudaEvent_t)t->stopped, ii_cuda_stream(k)));
  return 0;
}

extern "C" int ii_cuda_timer_seconds(ii_kctx *k, ii_timer *t, double *seconds) {
  float ms = 0;
  II_CUDA_TRY(k, cudaEventSynchronize((cudaEvent_t)t->stopped));
  II_CUDA_TRY(k, cudaEventElapsedTime(&ms, (cudaEvent_t)t->started, (cudaEvent_t)t->stopped));
  *seconds = 1e-3 * (double)ms;
  return 0;
}
