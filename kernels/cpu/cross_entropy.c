/* Cross entropy with soft targets and with label smoothing: with p = softmax(x),
 *   dL/dx = gy/N (p sum(t) - t),  t = targets, or (1-e) onehot(label) + e/C. */
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/pieces.h"

static double log_sum_exp(const real *restrict x, real *restrict buf, int64_t n) {
  const real m = ii_row_max(x, n);
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) buf[j] = ii_exp(x[j] - m);
  return (double)m + log(ii_row_sum(buf, n));
}

static double soft_row(const ii_ce_args *a, int64_t r, const real *x, double lse) {
  const real *t = (const real *)a->targets + r * a->C;
  double loss = 0;
#pragma omp simd simdlen(II_LANES) reduction(+ : loss)
  for (int64_t c = 0; c < a->C; c++) loss += (double)t[c] * (lse - (double)x[c]);
  return loss;
}

static double smooth_row(const ii_ce_args *a, int64_t r, const real *x, double lse) {
  double sum = 0;
#pragma omp simd simdlen(II_LANES) reduction(+ : sum)
  for (int64_t c = 0; c < a->C; c++) sum += lse - (double)x[c];
  return (1.0 - a->smoothing) * (lse - (double)x[a->labels[r]]) + a->smoothing * sum / (double)a->C;
}

typedef double (*row_fn)(const ii_ce_args *a, int64_t r, const real *x, double lse);

static int loss_fwd(ii_kctx *k, const ii_ce_args *a, row_fn row) {
  const int64_t C = a->C, length = ii_buffer_length(C);
  real *buffers = ii_thread_buffers(k, C, 2);
  double *losses = ii_cpu_scratch(k, 0, (size_t)(a->N + 1) * sizeof(double)), total = 0;
  if (!buffers || !losses) return 1;
#pragma omp parallel num_threads(ii_team(k, a->N *C))
  {
    real *xb = buffers + omp_get_thread_num() * 2 * length, *eb = xb + length;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a->N; r++) {
      const real *x = ii_row_in(a->x_dtype, a->x, r * C, C, xb);
      const double lse = C > 0 ? log_sum_exp(x, eb, C) : 0.0;
      ((real *)a->lse)[r] = (real)lse;
      losses[r] = C > 0 ? row(a, r, x, lse) : 0.0;
    }
  }
  for (int64_t r = 0; r < a->N; r++) total += losses[r];
  *(real *)a->loss = (real)(a->N > 0 ? total / (double)a->N : 0.0);
  return 0;
}

/* A label outside the classes would read and write outside the row. */
static int check_labels(ii_kctx *k, const ii_ce_args *a) {
  for (int64_t r = 0; r < a->N; r++)
    if (a->labels[r] < 0 || a->labels[r] >= a->C)
      return ii_kernel_error(k, "cross entropy: label %d of sample %lld is not one of %lld classes",
                             a->labels[r], (long long)r, (long long)a->C);
  return 0;
}

int II_FN(soft_ce_fwd)(ii_kctx *k, const ii_ce_args *a) {
  return loss_fwd(k, a, soft_row);
}

int II_FN(smooth_ce_fwd)(ii_kctx *k, const ii_ce_args *a) {
  return check_labels(k, a) != 0 ? 1 : loss_fwd(k, a, smooth_row);
}

/* gx = s (exp(x - lse) * total - t), t a row of targets or, when NULL, the constant `rest`. */
static void row_gradient(const real *restrict x, const real *restrict t, real rest, real lse,
                         real total, real s, real *restrict gx, int64_t C) {
  if (t) {
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < C; c++) gx[c] = s * (ii_exp(x[c] - lse) * total - t[c]);
  } else {
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < C; c++) gx[c] = s * (ii_exp(x[c] - lse) * total - rest);
  }
}

/* Soft targets where labels is NULL. */
static int loss_bwd(ii_kctx *k, const ii_ce_args *a, const int32_t *labels) {
  const int64_t C = a->C, length = ii_buffer_length(C);
  if (!a->gx || a->N * C == 0) return 0;
  real *buffers = ii_thread_buffers(k, C, 2);
  if (!buffers) return 1;
  const real s = (real)((double)*(const real *)a->gy / (double)a->N);
  const real rest = (real)(a->smoothing / (double)C);
#pragma omp parallel num_threads(ii_team(k, a->N *C))
  {
    real *xb = buffers + omp_get_thread_num() * 2 * length, *ob = xb + length;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a->N; r++) {
      const real *x = ii_row_in(a->x_dtype, a->x, r * C, C, xb);
      const real lse = ((const real *)a->lse)[r];
      const real *t = labels ? NULL : (const real *)a->targets + r * C;
      real *gx = ii_grad_target(a->x_dtype, a->gx, r * C, a->acc_gx, ob);
      row_gradient(x, t, rest, lse, t ? (real)ii_row_sum(t, C) : R(1.0), s, gx, C);
      if (labels) gx[labels[r]] -= s * (real)(1.0 - a->smoothing);
      ii_grad_out(a->x_dtype, a->gx, r * C, C, a->acc_gx, gx);
    }
  }
  return 0;
}

int II_FN(soft_ce_bwd)(ii_kctx *k, const ii_ce_args *a) {
  return loss_bwd(k, a, NULL);
}

int II_FN(smooth_ce_bwd)(ii_kctx *k, const ii_ce_args *a) {
  return check_labels(k, a) != 0 ? 1 : loss_bwd(k, a, a->labels);
}
