/* Batch norm over rows, per channel. With h = (x - mean) * rstd and R rows:
 *   training: dL/dx = gamma rstd (gy - sum(gy)/R - h * sum(gy h)/R); eval: dL/dx = gamma rstd gy.
 */
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/pieces.h"

static void add_values(const void *args, int64_t first, int64_t last, real *restrict acc,
                       real *buffer) {
  const ii_batch_norm_args *a = args;
  for (int64_t r = first; r < last; r++) {
    const real *x = ii_row_in(a->x_dtype, a->x, r * a->C, a->C, buffer);
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < a->C; c++) acc[c] += x[c];
  }
}

static void add_squares(const void *args, int64_t first, int64_t last, real *restrict acc,
                        real *buffer) {
  const ii_batch_norm_args *a = args;
  const real *mean = a->mean;
  for (int64_t r = first; r < last; r++) {
    const real *x = ii_row_in(a->x_dtype, a->x, r * a->C, a->C, buffer);
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < a->C; c++) acc[c] += (x[c] - mean[c]) * (x[c] - mean[c]);
  }
}

static void update_running(real *running, int64_t c, double batch, double momentum) {
  running[c] = (real)((1.0 - momentum) * (double)running[c] + momentum * batch);
}

/* mean and rstd of the batch, and the running statistics. */
static int batch_statistics(ii_kctx *k, const ii_batch_norm_args *a) {
  const double rows = (double)a->rows;
  real *mean = a->mean, *rstd = a->rstd;
  const double *sums = II_FN(column_sums)(k, a->rows, a->C, a->C, add_values, a, a->C, 1);
  if (!sums) return 1;
  for (int64_t c = 0; c < a->C; c++) {
    mean[c] = (real)(sums[c] / rows);
    update_running(a->running_mean, c, sums[c] / rows, a->momentum);
  }
  sums = II_FN(column_sums)(k, a->rows, a->C, a->C, add_squares, a, a->C, 1);
  if (!sums) return 1;
  for (int64_t c = 0; c < a->C; c++) {
    rstd[c] = (real)(1.0 / sqrt(sums[c] / rows + a->eps));
    update_running(a->running_var, c, sums[c] / (rows > 1 ? rows - 1 : 1), a->momentum);
  }
  return 0;
}

static void running_statistics(const ii_batch_norm_args *a) {
  for (int64_t c = 0; c < a->C; c++) {
    ((real *)a->mean)[c] = ((const real *)a->running_mean)[c];
    ((real *)a->rstd)[c] = (real)(1.0 / sqrt((double)((real *)a->running_var)[c] + a->eps));
  }
}

static void normalise(const ii_batch_norm_args *a, const real *restrict x, real *restrict y) {
  const real *mean = a->mean, *rstd = a->rstd, *gamma = a->gamma, *beta = a->beta;
#pragma omp simd simdlen(II_LANES)
  for (int64_t c = 0; c < a->C; c++) y[c] = (x[c] - mean[c]) * rstd[c] * gamma[c] + beta[c];
}

int II_FN(batch_norm_fwd)(ii_kctx *k, const ii_batch_norm_args *a) {
  const int64_t C = a->C, length = ii_buffer_length(C);
  if (a->rows == 0) { /* nothing to take statistics of */
    for (int64_t c = 0; c < C; c++) ((real *)a->mean)[c] = ((real *)a->rstd)[c] = 0;
    return 0;
  }
  if (!a->training)
    running_statistics(a);
  else if (batch_statistics(k, a) != 0)
    return 1;
  real *buffers = ii_thread_buffers(k, C, 2);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, a->rows *C))
  {
    real *xb = buffers + omp_get_thread_num() * 2 * length, *yb = xb + length;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a->rows; r++) {
      real *y = ii_row_target(a->y_dtype, a->y, r * C, yb);
      normalise(a, ii_row_in(a->x_dtype, a->x, r * C, C, xb), y);
      ii_row_out(a->y_dtype, a->y, r * C, C, y);
    }
  }
  return 0;
}

/* acc: sums for ggamma[C] and gbeta[C]. */
static void add_gradients(const void *args, int64_t first, int64_t last, real *restrict acc,
                          real *buffers) {
  const ii_batch_norm_args *a = args;
  const int64_t C = a->C;
  const real *mean = a->mean, *rstd = a->rstd;
  for (int64_t r = first; r < last; r++) {
    const real *x = ii_row_in(a->x_dtype, a->x, r * C, C, buffers);
    const real *g = ii_row_in(a->y_dtype, a->gy, r * C, C, buffers + ii_buffer_length(C));
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < C; c++) {
      acc[c] += g[c] * ((x[c] - mean[c]) * rstd[c]);
      acc[C + c] += g[c];
    }
  }
}

static void input_gradient_training(const ii_batch_norm_args *a, const real *restrict x,
                                    const real *restrict g, const real *restrict means,
                                    real *restrict gx) {
  const real *mean = a->mean, *rstd = a->rstd, *gamma = a->gamma;
  const int64_t C = a->C;
#pragma omp simd simdlen(II_LANES)
  for (int64_t c = 0; c < C; c++) {
    real h = (x[c] - mean[c]) * rstd[c];
    gx[c] = gamma[c] * rstd[c] * (g[c] - means[C + c] - h * means[c]);
  }
}

static void input_gradient_eval(const ii_batch_norm_args *a, const real *restrict g,
                                real *restrict gx) {
  const real *rstd = a->rstd, *gamma = a->gamma;
#pragma omp simd simdlen(II_LANES)
  for (int64_t c = 0; c < a->C; c++) gx[c] = gamma[c] * rstd[c] * g[c];
}

/* means: mean(gy h)[C] and mean(gy)[C]; only read in training. */
static int input_gradient(ii_kctx *k, const ii_batch_norm_args *a, const real *means) {
  const int64_t C = a->C, length = ii_buffer_length(C);
  real *buffers = ii_thread_buffers(k, C, 3);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, a->rows *C))
  {
    real *xb = buffers + omp_get_thread_num() * 3 * length, *gb = xb + length, *ob = gb + length;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a->rows; r++) {
      const real *g = ii_row_in(a->y_dtype, a->gy, r * C, C, gb);
      real *gx = ii_grad_target(a->x_dtype, a->gx, r * C, a->acc_gx, ob);
      if (a->training)
        input_gradient_training(a, ii_row_in(a->x_dtype, a->x, r * C, C, xb), g, means, gx);
      else
        input_gradient_eval(a, g, gx);
      ii_grad_out(a->x_dtype, a->gx, r * C, C, a->acc_gx, gx);
    }
  }
  return 0;
}

int II_FN(batch_norm_bwd)(ii_kctx *k, const ii_batch_norm_args *a) {
  const int64_t C = a->C;
  real *means = NULL;
  if (a->ggamma || a->gbeta || (a->gx && a->training)) {
    const double *sums = II_FN(column_sums)(k, a->rows, C, 2 * C, add_gradients, a, C, 2);
    means = ii_cpu_scratch(k, 3, (size_t)(2 * C + 1) * sizeof(real));
    if (!sums || !means) return 1;
    ii_sums_out(a->ggamma, sums, C, a->acc_ggamma);
    ii_sums_out(a->gbeta, sums + C, C, a->acc_gbeta);
    for (int64_t c = 0; c < 2 * C; c++) means[c] = (real)(sums[c] / (double)ii_max(1, a->rows));
  }
  return a->gx ? input_gradient(k, a, means) : 0;
}
