/* Updates of all parameters: the sum of squares of the gradients, the decisions and factors
 * (computed in double and rounded once), and one pass over memory for step, average and 16-bit
 * copy. */
#include <tgmath.h>
#include "kernels/cpu/pieces.h"
#include "kernels/update_rules.h"

/* ---- the norm ---- */

static double sum_of_squares(const real *x, int64_t n) {
  double s = 0;
#pragma omp simd simdlen(II_LANES) reduction(+ : s)
  for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)x[i];
  return s;
}

/* First element of a chunk, and how many it has. */
static int64_t chunk_range(const ii_update_args *a, int64_t chunk, int64_t *n) {
  const ii_update_chunk *c = &a->chunk[chunk];
  const int64_t first = (int64_t)c->part * II_UPDATE_CHUNK;
  *n = ii_min(II_UPDATE_CHUNK, a->tensor[c->tensor].n - first);
  return first;
}

int II_FN(update_norm)(ii_kctx *k, const ii_update_args *a) {
  double *partial = a->partial;
#pragma omp parallel for schedule(dynamic, 1) num_threads(ii_team(k, a->elements))
  for (int64_t c = 0; c < a->chunks; c++) {
    int64_t n;
    const int64_t first = chunk_range(a, c, &n);
    const real *g = a->tensor[a->chunk[c].tensor].g;
    partial[c] = g ? sum_of_squares(g + first, n) : 0;
  }
  return 0;
}

/* ---- what to do ---- */

/* Chunk by chunk, tensor by tensor. */
static double total(const ii_update_args *a) {
  const double *partial = a->partial;
  double sum = 0, tensor = 0;
  for (int64_t c = 0; c < a->chunks; c++) {
    tensor += partial[c];
    if (c + 1 < a->chunks && a->chunk[c + 1].tensor == a->chunk[c].tensor) continue;
    sum += tensor;
    tensor = 0;
  }
  return sum;
}

static void average_counter(const ii_update_args *a, const ii_update_tensor *t) {
  real *ema = t->ema;
  if (ema) *ema = (real)ii_update_counter(*ema, *(const real *)t->p, a->ema_decay);
}

int II_FN(update_control)(ii_kctx *k, const ii_update_args *a) {
  real *factor = a->factor;
  double corrections[2], two[2];
  (void)k;
  factor[II_FACTOR_GRAD] = (real)ii_update_decide(a, total(a), a->state);
  if (a->kind == II_UPDATE_SCALE) return 0;
  ii_update_corrections(a, a->state->t, corrections);
  factor[II_FACTOR_ROOT] = (real)(1.0 / sqrt(corrections[1]));
  factor[II_FACTOR_FIRST] = a->state->t == 1;
  for (int64_t i = 0; i < a->tensors; i++) {
    const ii_update_tensor *t = &a->tensor[i];
    ii_update_tensor_factors(a, t->weight_decay, a->lr[i], corrections[0], two);
    factor[II_FACTOR_TENSORS + 2 * i] = (real)two[0];
    factor[II_FACTOR_TENSORS + 2 * i + 1] = (real)two[1];
    if (t->counter && a->state->action != II_UPDATE_NOTHING) average_counter(a, t);
  }
  if (a->seed) *(real *)a->seed = (real)(a->state->loss_scale * a->seed_factor);
  return 0;
}

int II_FN(loss_add)(ii_kctx *k, const ii_loss_add_args *a) {
  (void)k;
  ii_update_add_loss(a, *(const real *)a->loss, a->state);
  return 0;
}

/* ---- the pass ---- */

/* d*ema + (1-d)*p as a step towards p: with d and 1-d rounded to float each, their sum is not 1
 * (1 - 1.7e-8 for d = 0.9999), and the average would settle 1.7e-4 below the weights. */
static void ema_piece(real *restrict ema, const real *restrict p, int64_t n, real e) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) ema[j] += e * (p[j] - ema[j]);
}

typedef struct {
  real scale, shrink, b1, b1c, b2, b2c, step, root, eps;
} adamw_factors;

static void adamw_piece(const adamw_factors *f, real *restrict p, const real *restrict g,
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

typedef struct {
  real scale, lr, decay, momentum;
  bool first, nesterov;
} sgd_factors;

static void sgd_piece(const sgd_factors *f, real *restrict p, const real *restrict g, int64_t n) {
  const real scale = f->scale, wd = f->decay, lr = f->lr;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) p[j] -= lr * (scale * g[j] + wd * p[j]);
}

static void sgd_momentum_piece(const sgd_factors *f, real *restrict p, const real *restrict g,
                               real *restrict m, int64_t n) {
  const real scale = f->scale, wd = f->decay, lr = f->lr, mu = f->momentum;
  const bool first = f->first, nesterov = f->nesterov;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) {
    real gj = scale * g[j] + wd * p[j];
    real mj = first ? gj : mu * m[j] + gj;
    m[j] = mj;
    p[j] -= lr * (nesterov ? gj + mu * mj : mj);
  }
}

static void scale_piece(real *g, real factor, int64_t n) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) g[j] *= factor;
}

/* The factors of all kinds for one tensor. */
typedef struct {
  adamw_factors adamw;
  sgd_factors sgd;
  real ema;
} factors;

static factors factors_of(const ii_update_args *a, int64_t tensor) {
  const real *f = a->factor, *two = f + II_FACTOR_TENSORS + 2 * tensor;
  return (factors){.adamw = {.scale = f[II_FACTOR_GRAD],
                             .shrink = two[1],
                             .b1 = (real)a->beta1,
                             .b1c = (real)(1.0 - a->beta1),
                             .b2 = (real)a->beta2,
                             .b2c = (real)(1.0 - a->beta2),
                             .step = two[0],
                             .root = f[II_FACTOR_ROOT],
                             .eps = (real)a->eps},
                   .sgd = {.scale = f[II_FACTOR_GRAD],
                           .lr = two[0],
                           .decay = two[1],
                           .momentum = (real)a->momentum,
                           .first = f[II_FACTOR_FIRST] != 0,
                           .nesterov = a->nesterov},
                   .ema = (real)(1.0 - a->ema_decay)};
}

/* Elements [i, i+n), few enough for the first-level cache. */
static void update_piece(const ii_update_args *a, const ii_update_tensor *t, const factors *f,
                         int64_t i, int64_t n) {
  real *p = (real *)t->p + i, *g = t->g ? (real *)t->g + i : NULL;
  const bool step = g && a->state->action == II_UPDATE_ALL;
  if (a->kind == II_UPDATE_SCALE) {
    if (g) scale_piece(g, f->sgd.scale, n);
    return;
  }
  if (step && a->kind == II_UPDATE_ADAMW)
    adamw_piece(&f->adamw, p, g, (real *)t->m + i, (real *)t->v + i, n);
  else if (step && t->m)
    sgd_momentum_piece(&f->sgd, p, g, (real *)t->m + i, n);
  else if (step)
    sgd_piece(&f->sgd, p, g, n);
  if (t->ema) ema_piece((real *)t->ema + i, p, n, f->ema);
  if (step && t->low) ii_row_out(a->low_dtype, t->low, i, n, p);
}

int II_FN(update_apply)(ii_kctx *k, const ii_update_args *a) {
  if (a->state->action == II_UPDATE_NOTHING) return 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(ii_team(k, a->elements))
  for (int64_t c = 0; c < a->chunks; c++) {
    const int64_t tensor = a->chunk[c].tensor;
    const factors f = factors_of(a, tensor);
    int64_t n;
    const int64_t first = chunk_range(a, c, &n);
    for (int64_t i = 0; i < n; i += II_CHUNK)
      update_piece(a, &a->tensor[tensor], &f, first + i, ii_min(II_CHUNK, n - i));
  }
  return 0;
}
