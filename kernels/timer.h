/* Seconds of the work between two points of an engine's stream, as the device itself sees it: for
 * benchmarks. Start and stop do not wait. */
#ifndef II_TIMER_H
#define II_TIMER_H
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  void *started, *stopped; /* CUDA: events */
  double from, to;         /* CPU: seconds of the monotonic clock */
} ii_timer;

/* All return 0, or nonzero with a sentence in k->error. */
int ii_timer_init(ii_kctx *k, ii_timer *t);
void ii_timer_destroy(ii_kctx *k, ii_timer *t);
int ii_timer_start(ii_kctx *k, ii_timer *t);
int ii_timer_stop(ii_kctx *k, ii_timer *t);
/* Waits until the work before the stop is done; its errors become this call's. */
int ii_timer_seconds(ii_kctx *k, ii_timer *t, double *seconds);

#ifdef __cplusplus
}
#endif
#endif
