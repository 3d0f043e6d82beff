/* Softmax over the last dimension. Short rows are worked on several at a time, so that the
 * exponentials are taken over whole vectors. */
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/pieces.h"

/* y = x - max(x) of a row. A NaN anywhere becomes NaN everywhere through the sum. */
static void subtract_max(const real *restrict x, real *restrict y, int64_t n) {
  const real m = ii_row_max(x, n);
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) y[j] = x[j] - m;
}

static void softmax_rows(const real *restrict x, real *restrict y, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; r++) subtract_max(x + r * n, y + r * n, n);
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < rows * n; j++) y[j] = ii_exp(y[j]);
  for (int64_t r = 0; r < rows; r++) {
    const real scale = (real)(1.0 / ii_row_sum(y + r * n, n));
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) y[r * n + j] *= scale;
  }
}

int II_FN(softmax_fwd)(ii_kctx *k, const ii_softmax_args *a) {
  const int64_t n = a->n;
  if (n == 0 || a->rows == 0) return 0;
  const int64_t chunk = ii_chunk_rows(n), length = ii_buffer_length(chunk * n);
  real *buffers = ii_thread_buffers(k, chunk * n, 2);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, a->rows *n))
  {
    real *xb = buffers + omp_get_thread_num() * 2 * length, *yb = xb + length;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a->rows; r += chunk) {
      int64_t rows = ii_min(chunk, a->rows - r);
      real *y = ii_row_target(a->y_dtype, a->y, r * n, yb);
      softmax_rows(ii_row_in(a->x_dtype, a->x, r * n, rows * n, xb), y, rows, n);
      ii_row_out(a->y_dtype, a->y, r * n, rows * n, y);
    }
  }
  return 0;
}

/* gx = y (gy - sum(y gy)). */
static void softmax_gradient(const real *restrict y, const real *restrict gy, real *restrict gx,
                             int64_t n) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) gx[j] = y[j] * gy[j];
  const real s = (real)ii_row_sum(gx, n);
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) gx[j] = y[j] * (gy[j] - s);
}

int II_FN(softmax_bwd)(ii_kctx *k, const ii_softmax_args *a) {
  const int64_t n = a->n;
  if (n == 0 || a->rows == 0 || !a->gx) return 0;
  const int64_t chunk = ii_chunk_rows(n), length = ii_buffer_length(chunk * n);
  real *buffers = ii_thread_buffers(k, chunk * n, 3);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, a->rows *n))
  {
    real *yb = buffers + omp_get_thread_num() * 3 * length, *gb = yb + length, *ob = gb + length;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a->rows; r += chunk) {
      int64_t rows = ii_min(chunk, a->rows - r);
      const real *y = ii_row_in(a->y_dtype, a->y, r * n, rows * n, yb);
      const real *gy = ii_row_in(a->y_dtype, a->gy, r * n, rows * n, gb);
      real *gx = ii_grad_target(a->x_dtype, a->gx, r * n, a->acc_gx, ob);
      for (int64_t i = 0; i < rows; i++) softmax_gradient(y + i * n, gy + i * n, gx + i * n, n);
      ii_grad_out(a->x_dtype, a->gx, r * n, rows * n, a->acc_gx, gx);
    }
  }
  return 0;
}
