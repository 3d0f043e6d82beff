/* Residual branch: y = x + keep * gamma * f. */
#include "kernels/cpu/pieces.h"

/* y = x + s * gamma * f over rows of C channels; gamma may be NULL. */
static void add_branch(const real *restrict x, const real *restrict f, const real *restrict gamma,
                       real s, real *restrict y, int64_t rows, int64_t C) {
  if (!gamma) {
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < rows * C; j++) y[j] = x[j] + s * f[j];
    return;
  }
  for (int64_t r = 0; r < rows * C; r += C)
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < C; c++) y[r + c] = x[r + c] + s * gamma[c] * f[r + c];
}

int II_FN(residual_fwd)(ii_kctx *k, const ii_residual_args *a) {
  const int64_t C = a->C, total = a->N * a->rows * C;
  if (total == 0) return 0;
  const int64_t chunk = ii_chunk_rows(C), length = ii_buffer_length(chunk * C);
  const int64_t chunks = ii_ceil_div(a->rows, chunk); /* of one image: keep is constant in each */
  real *buffers = ii_thread_buffers(k, chunk * C, 3);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, total))
  {
    real *xb = buffers + omp_get_thread_num() * 3 * length, *fb = xb + length, *yb = fb + length;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < a->N * chunks; t++) {
      const int64_t n = t / chunks, r = t % chunks * chunk, rows = ii_min(chunk, a->rows - r);
      const int64_t i = (n * a->rows + r) * C, count = rows * C;
      const real s = a->keep ? ((const real *)a->keep)[n] : R(1.0);
      const real *x = ii_row_in(a->x_dtype, a->x, i, count, xb);
      const real *f = ii_row_in(a->f_dtype, a->f, i, count, fb);
      real *y = ii_row_target(a->x_dtype, a->y, i, yb);
      add_branch(x, f, a->gamma, s, y, rows, C);
      ii_row_out(a->x_dtype, a->y, i, count, y);
    }
  }
  return 0;
}

/* Backward of one row; f or gf may be NULL. */
static void backward_row(const real *restrict gy, const real *restrict f,
                         const real *restrict gamma, real s, real *restrict acc, real *restrict gf,
                         int64_t C) {
  if (f) {
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < C; c++) acc[c] += s * gy[c] * f[c];
  }
  if (gf && gamma) {
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < C; c++) gf[c] = s * gamma[c] * gy[c];
  } else if (gf) {
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < C; c++) gf[c] = s * gy[c];
  }
}

/* Backward of rows [first, last) of all images; acc: sums for ggamma, where asked for. */
static void backward_rows(const void *args, int64_t first, int64_t last, real *acc, real *buffers) {
  const ii_residual_args *a = args;
  const int64_t C = a->C, chunk = ii_chunk_rows(C), length = ii_buffer_length(chunk * C);
  real *fb = buffers, *gb = fb + length, *ob = gb + length;
  for (int64_t r = first; r < last; r += chunk) {
    const int64_t rows = ii_min(chunk, last - r), n = rows * C;
    const real *gy = ii_row_in(a->x_dtype, a->gy, r * C, n, gb);
    const real *f = a->ggamma ? ii_row_in(a->f_dtype, a->f, r * C, n, fb) : NULL;
    real *gf = a->gf ? ii_grad_target(a->f_dtype, a->gf, r * C, a->acc_gf, ob) : NULL;
    for (int64_t i = 0; i < rows; i++) {
      const real s = a->keep ? ((const real *)a->keep)[(r + i) / a->rows] : R(1.0);
      backward_row(gy + i * C, f ? f + i * C : NULL, a->gamma, s, acc, gf ? gf + i * C : NULL, C);
    }
    if (gf) ii_grad_out(a->f_dtype, a->gf, r * C, n, a->acc_gf, gf);
  }
}

int II_FN(residual_bwd)(ii_kctx *k, const ii_residual_args *a) {
  if (a->C == 0) return 0;
  const double *sums = II_FN(column_sums)(k, a->N * a->rows, a->C, a->ggamma ? a->C : 0,
                                          backward_rows, a, ii_chunk_rows(a->C) * a->C, 3);
  if (!sums) return 1;
  ii_sums_out(a->ggamma, sums, a->C, a->acc_ggamma);
  return 0;
}
