/* Optimizer steps, the sum of squares of gradients, and moving averages of buffers. Factors are
 * computed in double and rounded once; each step passes over memory once. */
#include <tgmath.h>
#include "kernels/cpu/pieces.h"

enum { SUMSQ_BLOCK = 65536 };

int II_FN(sumsq)(ii_kctx *k, const ii_sumsq_args *a) {
  int64_t blocks = ii_ceil_div(a->n, SUMSQ_BLOCK);
  double *partial = ii_cpu_scratch(k, 0, (size_t)(blocks + 1) * sizeof(double)), total = 0;
  if (!partial) return 1;
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t b = 0; b < blocks; b++) {
    const real *x = (const real *)a->x + b * SUMSQ_BLOCK;
    int64_t n = ii_min(SUMSQ_BLOCK, a->n - b * SUMSQ_BLOCK);
    double s = 0;
#pragma omp simd simdlen(II_LANES) reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)x[i];
    partial[b] = s;
  }
  for (int64_t b = 0; b < blocks; b++) total += partial[b];
  *a->out = total;
  return 0;
}

/* d*ema + (1-d)*p as a step towards p: with d and 1-d rounded to float each, their sum is not 1
 * (1 - 1.7e-8 for d = 0.9999), and the average would settle 1.7e-4 below the weights. */
static void ema_chunk(real *restrict ema, const real *restrict p, int64_t n, double decay) {
  const real e = (real)(1.0 - decay);
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) ema[j] += e * (p[j] - ema[j]);
}

/* What follows a step on the chunk p[i...], still in L1. */
static void after_step(void *ema, uint16_t *low, const real *p, int64_t i, int64_t n,
                       double decay) {
  if (ema) ema_chunk((real *)ema + i, p + i, n, decay);
  if (low) ii_row_out(II_BF16, low, i, n, p + i);
}

int II_FN(ema)(ii_kctx *k, const ii_ema_args *a) {
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK)
    ema_chunk((real *)a->ema + i, (const real *)a->p + i, ii_min(II_CHUNK, a->n - i), a->decay);
  return 0;
}

typedef struct {
  real scale, shrink, b1, b1c, b2, b2c, step, root, eps;
} adamw_factors;

static void adamw_chunk(const adamw_factors *f, real *restrict p, const real *restrict g,
                        real *restrict m, real *restrict v, int64_t n) {
  const adamw_factors c = *f;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) {
    real gj = c.scale * g[j];
    real mj = c.b1 * m[j] + c.b1c * gj;
    real vj = c.b2 * v[j] + c.b2c * gj * gj;
    m[j] = mj;
    v[j] = vj;
    p[j] = p[j] * c.shrink - c.step * mj / (sqrt(vj) * c.root + c.eps);
  }
}

int II_FN(adamw)(ii_kctx *k, const ii_adamw_args *a) {
  const double t = (double)a->t;
  const adamw_factors f = {
      .scale = (real)a->grad_scale,
      .shrink = (real)(1.0 - a->lr * a->weight_decay),
      .b1 = (real)a->beta1,
      .b1c = (real)(1.0 - a->beta1),
      .b2 = (real)a->beta2,
      .b2c = (real)(1.0 - a->beta2),
      .step = (real)(a->lr / (1.0 - pow(a->beta1, t))),
      .root = (real)(1.0 / sqrt(1.0 - pow(a->beta2, t))),
      .eps = (real)a->eps,
  };
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK) {
    int64_t n = ii_min(II_CHUNK, a->n - i);
    real *p = a->p;
    adamw_chunk(&f, p + i, (const real *)a->g + i, (real *)a->m + i, (real *)a->v + i, n);
    after_step(a->ema, a->low, p, i, n, a->ema_decay);
  }
  return 0;
}

static void sgd_chunk(const ii_sgd_args *a, real *restrict p, const real *restrict g, int64_t n) {
  const real scale = (real)a->grad_scale, wd = (real)a->weight_decay, lr = (real)a->lr;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) p[j] -= lr * (scale * g[j] + wd * p[j]);
}

static void sgd_momentum_chunk(const ii_sgd_args *a, real *restrict p, const real *restrict g,
                               real *restrict m, int64_t n) {
  const real scale = (real)a->grad_scale, wd = (real)a->weight_decay, lr = (real)a->lr;
  const real mu = (real)a->momentum;
  const bool first = a->t == 1, nesterov = a->nesterov;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) {
    real gj = scale * g[j] + wd * p[j];
    real mj = first ? gj : mu * m[j] + gj;
    m[j] = mj;
    p[j] -= lr * (nesterov ? gj + mu * mj : mj);
  }
}

int II_FN(sgd)(ii_kctx *k, const ii_sgd_args *a) {
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK) {
    int64_t n = ii_min(II_CHUNK, a->n - i);
    real *p = a->p;
    const real *g = (const real *)a->g + i;
    if (a->momentum == 0.0)
      sgd_chunk(a, p + i, g, n);
    else
      sgd_momentum_chunk(a, p + i, g, (real *)a->m + i, n);
    after_step(a->ema, a->low, p, i, n, a->ema_decay);
  }
  return 0;
}
