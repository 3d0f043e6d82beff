/* Layer norm over the last dimension, with an optional GELU or the end of a residual branch behind
 * it, or such an end before it. With h = (x - mean) * rstd,
 * z = h * gamma + beta, g = dL/dz:
 *   dL/dx = rstd * (g gamma - mean(g gamma) - h * mean(g gamma h)), dL/dgamma = sum g h,
 *   dL/dbeta = sum g.
 * In a residual branch, y = skip + k s z with the image's k and the layer scale s, the sums
 * A = sum k gy h and B = sum k gy give dL/dgamma = s A, dL/dbeta = s B, dL/ds = gamma A + beta B.
 * The row is read from memory once; the variance is taken about the mean, in a second pass over L1.
 */
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/pieces.h"

enum { PIECE = 256 }; /* elements summed in type real before going to a double */

static double squares_about(const real *x, int64_t n, real mean) {
  double total = 0;
  for (int64_t i = 0; i < n; i += PIECE) {
    int64_t end = ii_min(n, i + PIECE);
    total += ii_short_sum(x + i, end - i, mean, true);
  }
  return total;
}

/* z = h * gamma + beta of one row. */
static void normalise(const real *restrict x, const real *restrict gamma, const real *restrict beta,
                      real *restrict z, int64_t n, real mean, real rstd) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) z[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
}

static real keep_of(const ii_layer_norm_args *a, int64_t row) {
  return a->keep ? ((const real *)a->keep)[row / a->keep_rows] : R(1.0);
}

/* y = skip + k * scale * y of one row; scale may be NULL. */
static void end_branch(const real *restrict skip, const real *restrict scale, real k,
                       real *restrict y, int64_t n) {
  if (scale) {
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) y[j] = skip[j] + k * scale[j] * y[j];
  } else {
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) y[j] = skip[j] + k * y[j];
  }
}

/* x = skip + k * f of some rows, k of each row's image. */
static void add_branch(const ii_layer_norm_args *a, int64_t r, int64_t rows,
                       const real *restrict skip, const real *restrict f, real *restrict x) {
  const int64_t C = a->C;
  for (int64_t i = 0; i < rows; i++) {
    const real k = keep_of(a, r + i);
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = i * C; j < (i + 1) * C; j++) x[j] = skip[j] + k * f[j];
  }
}

/* y of some rows that lie one behind the other, first the row numbered r; skip: of a branch that
 * the norm ends, or NULL. */
static void forward_rows(const ii_layer_norm_args *a, int64_t r, int64_t rows, const real *x,
                         const real *skip, real *y) {
  const int64_t C = a->C;
  for (int64_t i = 0; i < rows; i++) {
    const real *row = x + i * C;
    real mean = (real)(ii_row_sum(row, C) / (double)C);
    real rstd = (real)(1.0 / sqrt(squares_about(row, C, mean) / (double)C + a->eps));
    ((real *)a->mean)[r + i] = mean;
    ((real *)a->rstd)[r + i] = rstd;
    normalise(row, a->gamma, a->beta, y + i * C, C, mean, rstd);
    if (skip) end_branch(skip + i * C, a->scale, keep_of(a, r + i), y + i * C, C);
  }
  if (a->act != II_ACT_GELU) return;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < rows * C; j++) y[j] = ii_gelu(y[j]);
}

int II_FN(layer_norm_fwd)(ii_kctx *k, const ii_layer_norm_args *a) {
  const int64_t C = a->C;
  if (a->rows * C == 0) return 0;
  const int64_t chunk = ii_chunk_rows(C), length = ii_buffer_length(chunk * C);
  real *buffers = ii_thread_buffers(k, chunk * C, 3);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, a->rows *C))
  {
    real *xb = buffers + omp_get_thread_num() * 3 * length, *yb = xb + length, *sb = yb + length;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < a->rows; r += chunk) {
      const int64_t rows = ii_min(chunk, a->rows - r), n = rows * C;
      const real *skip = NULL, *x;
      if (a->place == II_NORM_AFTER_BRANCH) {
        real *sum = (real *)a->sum + r * C;
        add_branch(a, r, rows, (const real *)a->skip + r * C,
                   ii_row_in(a->y_dtype, a->f, r * C, n, yb), sum);
        x = sum;
      } else {
        x = ii_row_in(a->x_dtype, a->x, r * C, n, xb);
      }
      if (a->place == II_NORM_ENDS_BRANCH) skip = ii_row_in(a->y_dtype, a->skip, r * C, n, sb);
      real *y = ii_row_target(a->y_dtype, a->y, r * C, yb);
      forward_rows(a, r, rows, x, skip, y);
      ii_row_out(a->y_dtype, a->y, r * C, n, y);
    }
  }
  return 0;
}

/* g = gy * gelu'(z) of some rows. */
static void gelu_gradient(const ii_layer_norm_args *a, int64_t r, int64_t rows, const real *x,
                          const real *restrict gy, real *restrict g) {
  const int64_t C = a->C;
  for (int64_t i = 0; i < rows; i++)
    normalise(x + i * C, a->gamma, a->beta, g + i * C, C, ((const real *)a->mean)[r + i],
              ((const real *)a->rstd)[r + i]);
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < rows * C; j++) g[j] = gy[j] * ii_gelu_slope(g[j]);
}

/* One pass over a row in L1: adds g h and g to the parameters' sums ggamma[n] and gbeta[n], and
 * with `sums` returns in m1 and m2 the means of g gamma and of g gamma h. */
II_FAST void row_sums(const real *restrict x, const real *restrict gamma, const real *restrict g,
                      real *restrict ggamma, real *restrict gbeta, int64_t n, real mean, real rstd,
                      bool parameters, bool sums, real *m1, real *m2) {
  double sum1 = 0, sum2 = 0;
  for (int64_t i = 0; i < n; i += PIECE) {
    const int64_t end = ii_min(n, i + PIECE);
    real s1 = 0, s2 = 0;
#pragma omp simd simdlen(II_LANES) reduction(+ : s1, s2)
    for (int64_t j = i; j < end; j++) {
      const real gh = g[j] * ((x[j] - mean) * rstd);
      if (parameters) {
        ggamma[j] += gh;
        gbeta[j] += g[j];
      }
      if (sums) {
        s1 += g[j] * gamma[j];
        s2 += gh * gamma[j];
      }
    }
    sum1 += s1;
    sum2 += s2;
  }
  const double inverse = 1.0 / (double)n;
  *m1 = (real)(sum1 * inverse);
  *m2 = (real)(sum2 * inverse);
}

static void backward_row(const real *restrict x, const real *restrict gamma, const real *restrict g,
                         real *acc, real *restrict gx, int64_t n, real mean, real rstd) {
  real m1, m2;
  if (acc && gx)
    row_sums(x, gamma, g, acc, acc + n, n, mean, rstd, true, true, &m1, &m2);
  else if (acc)
    row_sums(x, gamma, g, acc, acc + n, n, mean, rstd, true, false, &m1, &m2);
  else
    row_sums(x, gamma, g, NULL, NULL, n, mean, rstd, false, true, &m1, &m2);
  if (!gx) return;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) gx[j] = rstd * (g[j] * gamma[j] - m1 - (x[j] - mean) * rstd * m2);
}

/* g = k * gy of some rows, k of each row's image. */
static void keep_gradient(const ii_layer_norm_args *a, int64_t r, int64_t rows,
                          const real *restrict gy, real *restrict g) {
  const int64_t C = a->C;
  for (int64_t i = 0; i < rows; i++) {
    const real k = keep_of(a, r + i);
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < C; j++) g[i * C + j] = k * gy[i * C + j];
  }
}

/* gamma, times the layer scale where there is one. */
static const real *scaled_gamma(const ii_layer_norm_args *a, real *restrict buffer) {
  const real *restrict gamma = a->gamma, *restrict scale = a->scale;
  if (!scale) return gamma;
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < a->C; j++) buffer[j] = gamma[j] * scale[j];
  return buffer;
}

/* The gradients of skip and f from the norm's part g of that of their sum, of some rows. */
static void branch_before(const ii_layer_norm_args *a, int64_t r, int64_t rows, real *restrict g,
                          real *buffer) {
  const int64_t n = rows * a->C, at = r * a->C;
  if (a->gsum) {
    const real *rest = (const real *)a->gsum + at;
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) g[j] += rest[j];
  }
  if (a->gf) {
    real *gf = ii_grad_target(a->y_dtype, a->gf, at, a->acc_gf, buffer);
    keep_gradient(a, r, rows, g, gf);
    ii_grad_out(a->y_dtype, a->gf, at, n, a->acc_gf, gf);
  }
  if (a->gx && a->acc_gx)
    ii_grad_out(a->x_dtype, a->gx, at, n, true, g);
  else if (a->gx)
    memcpy((real *)a->gx + at, g, (size_t)n * sizeof *g);
}

/* Backward of rows [first, last); acc: the sums A[C], B[C], where asked for. */
static void backward_rows(const void *args, int64_t first, int64_t last, real *acc, real *buffers) {
  const ii_layer_norm_args *a = args;
  const int64_t C = a->C, chunk = ii_chunk_rows(C), length = ii_buffer_length(chunk * C);
  real *xb = buffers, *gb = xb + length, *ab = gb + length, *ob = ab + length;
  const real *gamma = scaled_gamma(a, ob + length);
  const bool sums = a->ggamma || a->gbeta || a->gscale;
  const bool after = a->place == II_NORM_AFTER_BRANCH && (a->gx || a->gf);
  for (int64_t r = first; r < last; r += chunk) {
    const int64_t rows = ii_min(chunk, last - r);
    const real *x = ii_row_in(a->x_dtype, a->x, r * C, rows * C, xb);
    const real *g = ii_row_in(a->y_dtype, a->gy, r * C, rows * C, gb);
    if (a->act == II_ACT_GELU) {
      gelu_gradient(a, r, rows, x, g, ab);
      g = ab;
    } else if (a->place == II_NORM_ENDS_BRANCH && a->keep) {
      keep_gradient(a, r, rows, g, ab);
      g = ab;
    }
    real *gx = after ? ob : NULL;
    if (a->gx && !after) gx = ii_grad_target(a->x_dtype, a->gx, r * C, a->acc_gx, ob);
    for (int64_t i = 0; i < rows; i++) {
      const real mean = ((const real *)a->mean)[r + i], rstd = ((const real *)a->rstd)[r + i];
      backward_row(x + i * C, gamma, g + i * C, sums ? acc : NULL, gx ? gx + i * C : NULL, C, mean,
                   rstd);
    }
    if (after)
      branch_before(a, r, rows, ob, ab);
    else if (gx)
      ii_grad_out(a->x_dtype, a->gx, r * C, rows * C, a->acc_gx, gx);
  }
}

/* The gradients of the parameters from A and B. */
static void parameters_out(const ii_layer_norm_args *a, const double *A, const double *B) {
  const real *gamma = a->gamma, *beta = a->beta, *scale = a->scale;
  real *ggamma = a->ggamma, *gbeta = a->gbeta, *gscale = a->gscale;
  for (int64_t j = 0; j < a->C; j++) {
    const double s = scale ? (double)scale[j] : 1.0;
    if (ggamma) ggamma[j] = (real)((a->acc_ggamma ? (double)ggamma[j] : 0.0) + s * A[j]);
    if (gbeta) gbeta[j] = (real)((a->acc_gbeta ? (double)gbeta[j] : 0.0) + s * B[j]);
    if (gscale)
      gscale[j] = (real)((a->acc_gscale ? (double)gscale[j] : 0.0) + (double)gamma[j] * A[j] +
                         (double)beta[j] * B[j]);
  }
}

int II_FN(layer_norm_bwd)(ii_kctx *k, const ii_layer_norm_args *a) {
  if (a->C == 0) return 0;
  const int64_t C = a->C, width = a->ggamma || a->gbeta || a->gscale ? 2 * C : 0;
  const double *sums =
      II_FN(column_sums)(k, a->rows, C, width, backward_rows, a, ii_chunk_rows(C) * C, 5);
  if (!sums) return 1;
  if (width) parameters_out(a, sums, sums + C);
  return 0;
}
