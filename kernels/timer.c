#include "kernels/timer.h"
#include <string.h>
#include <time.h>

#if II_HAVE_CUDA /* kernels/cuda/timer.cu */
int ii_cuda_timer_init(ii_kctx *k, ii_timer *t);
void ii_cuda_timer_destroy(ii_kctx *k, ii_timer *t);
int ii_cuda_timer_start(ii_kctx *k, ii_timer *t);
int ii_cuda_timer_stop(ii_kctx *k, ii_timer *t);
int ii_cuda_timer_seconds(ii_kctx *k, ii_timer *t, double *seconds);
#define ON_GPU(k, call)                                                                            \
  if ((k)->device == II_CUDA) return call
#else
#define ON_GPU(k, call) (void)(k)
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int ii_timer_init(ii_kctx *k, ii_timer *t) {
  memset(t, 0, sizeof *t);
  ON_GPU(k, ii_cuda_timer_init(k, t));
  return 0;
}

void ii_timer_destroy(ii_kctx *k, ii_timer *t) {
#if II_HAVE_CUDA
  if (k->device == II_CUDA) ii_cuda_timer_destroy(k, t);
#endif
  memset(t, 0, sizeof *t);
}

int ii_timer_start(ii_kctx *k, ii_timer *t) {
  ON_GPU(k, ii_cuda_timer_start(k, t));
  t->from = now();
  return 0;
}

int ii_timer_stop(ii_kctx *k, ii_timer *t) {
  ON_GPU(k, ii_cuda_timer_stop(k, t));
  t->to = now();
  return 0;
}

int ii_timer_seconds(ii_kctx *k, ii_timer *t, double *seconds) {
  ON_GPU(k, ii_cuda_timer_seconds(k, t, seconds));
  *seconds = t->to - t->from;
  return 0;
}
