/* Global mean pooling and 2-D average and max pooling. Backward kernels gather: each input position
 * asks the windows that cover it, so that no two threads write to the same place. */
#include <math.h>
#include "kernels/cpu/pieces.h"

/* Sum of x[n, 0..P, c0..c0+m) into sum[m]. */
static void sum_positions(const ii_mean_pool_args *a, int64_t n, int64_t c0, int64_t m,
                          double *restrict sum) {
  real acc[II_CHUNK], xb[II_CHUNK];
  for (int64_t c = 0; c < m; c++) sum[c] = 0;
  for (int64_t p = 0; p < a->P; p += II_SUM_ROWS) {
    for (int64_t c = 0; c < m; c++) acc[c] = 0;
    for (int64_t q = p; q < ii_min(a->P, p + II_SUM_ROWS); q++) {
      const real *x = ii_row_in(a->x_dtype, a->x, (n * a->P + q) * a->C + c0, m, xb);
#pragma omp simd simdlen(II_LANES)
      for (int64_t c = 0; c < m; c++) acc[c] += x[c];
    }
#pragma omp simd simdlen(II_LANES)
    for (int64_t c = 0; c < m; c++) sum[c] += acc[c];
  }
}

int II_FN(mean_pool_fwd)(ii_kctx *k, const ii_mean_pool_args *a) {
  enum { CHANNELS = 256 };
  const int64_t pieces = ii_ceil_div(a->C, CHANNELS);
  const double scale = a->P > 0 ? 1.0 / (double)a->P : 0.0;
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->N * a->P * a->C))
  for (int64_t t = 0; t < a->N * pieces; t++) {
    const int64_t n = t / pieces, c0 = t % pieces * CHANNELS, m = ii_min(CHANNELS, a->C - c0);
    double sum[CHANNELS];
    real yb[CHANNELS];
    sum_positions(a, n, c0, m, sum);
    real *y = ii_row_target(a->y_dtype, a->y, n * a->C + c0, yb);
    for (int64_t c = 0; c < m; c++) y[c] = (real)(sum[c] * scale);
    ii_row_out(a->y_dtype, a->y, n * a->C + c0, m, y);
  }
  return 0;
}

int II_FN(mean_pool_bwd)(ii_kctx *k, const ii_mean_pool_args *a) {
  if (!a->gx || a->P == 0) return 0;
  const real scale = (real)(1.0 / (double)a->P);
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->N * a->P * a->C))
  for (int64_t r = 0; r < a->N * a->P; r++) {
    for (int64_t c0 = 0; c0 < a->C; c0 += II_CHUNK) {
      real gb[II_CHUNK], ob[II_CHUNK];
      const int64_t m = ii_min(II_CHUNK, a->C - c0), i = r * a->C + c0;
      const real *gy = ii_row_in(a->y_dtype, a->gy, r / a->P * a->C + c0, m, gb);
      real *gx = ii_grad_target(a->x_dtype, a->gx, i, a->acc_gx, ob);
#pragma omp simd simdlen(II_LANES)
      for (int64_t c = 0; c < m; c++) gx[c] = gy[c] * scale;
      ii_grad_out(a->x_dtype, a->gx, i, m, a->acc_gx, gx);
    }
  }
  return 0;
}

/* First and last+1 of the positions in [0, size) of the window of output o. */
static int64_t window_begin(const ii_pool2d_args *a, int64_t o) {
  return ii_max(0, o * a->stride - a->pad);
}
static int64_t window_end(const ii_pool2d_args *a, int64_t o, int64_t size) {
  return ii_min(size, o * a->stride - a->pad + a->k);
}

/* First and last+1 of the outputs in [0, outputs) whose window contains position i. */
static int64_t cover_begin(const ii_pool2d_args *a, int64_t i) {
  const int64_t past = i + a->pad - a->k + 1; /* o * stride >= past */
  return past <= 0 ? 0 : ii_ceil_div(past, a->stride);
}
static int64_t cover_end(const ii_pool2d_args *a, int64_t i, int64_t outputs) {
  return ii_min(outputs, (i + a->pad) / a->stride + 1);
}

/* One piece of work: m channels from c0 on of one position of image n. */
typedef struct {
  int64_t n, h, w, c0, m;
} place;

typedef void (*place_fn)(const ii_pool2d_args *a, const place *p);

/* Calls f for all channels of all positions of N images of height x width. */
static int for_places(ii_kctx *k, const ii_pool2d_args *a, int64_t height, int64_t width,
                      place_fn f) {
  const int64_t work = a->N * height * width * a->C * a->k * a->k;
#pragma omp parallel for schedule(static) num_threads(ii_team(k, work))
  for (int64_t row = 0; row < a->N * height; row++) {
    for (int64_t w = 0; w < width; w++) {
      for (int64_t c0 = 0; c0 < a->C; c0 += II_CHUNK) {
        const place p = {row / height, row % height, w, c0, ii_min(II_CHUNK, a->C - c0)};
        f(a, &p);
      }
    }
  }
  return 0;
}

/* Offset of the channels of p at position (h, w) of images of height x width. */
static int64_t offset(const ii_pool2d_args *a, const place *p, int64_t height, int64_t width,
                      int64_t h, int64_t w) {
  return ((p->n * height + h) * width + w) * a->C + p->c0;
}

static void average(const ii_pool2d_args *a, const place *p) {
  real xb[II_CHUNK], yb[II_CHUNK];
  const int64_t i = offset(a, p, a->Ho, a->Wo, p->h, p->w), m = p->m;
  const real scale = (real)(1.0 / ((double)a->k * a->k));
  real *restrict y = ii_row_target(a->x_dtype, a->y, i, yb);
  for (int64_t c = 0; c < m; c++) y[c] = 0;
  for (int64_t h = window_begin(a, p->h); h < window_end(a, p->h, a->H); h++) {
    for (int64_t w = window_begin(a, p->w); w < window_end(a, p->w, a->W); w++) {
      const real *x = ii_row_in(a->x_dtype, a->x, offset(a, p, a->H, a->W, h, w), m, xb);
#pragma omp simd simdlen(II_LANES)
      for (int64_t c = 0; c < m; c++) y[c] += x[c];
    }
  }
  for (int64_t c = 0; c < m; c++) y[c] *= scale;
  ii_row_out(a->x_dtype, a->y, i, m, y);
}

static void average_gradient(const ii_pool2d_args *a, const place *p) {
  real gb[II_CHUNK], ob[II_CHUNK];
  const int64_t i = offset(a, p, a->H, a->W, p->h, p->w), m = p->m;
  const real scale = (real)(1.0 / ((double)a->k * a->k));
  real *restrict gx = ii_grad_target(a->x_dtype, a->gx, i, a->acc_gx, ob);
  for (int64_t c = 0; c < m; c++) gx[c] = 0;
  for (int64_t h = cover_begin(a, p->h); h < cover_end(a, p->h, a->Ho); h++) {
    for (int64_t w = cover_begin(a, p->w); w < cover_end(a, p->w, a->Wo); w++) {
      const real *gy = ii_row_in(a->x_dtype, a->gy, offset(a, p, a->Ho, a->Wo, h, w), m, gb);
#pragma omp simd simdlen(II_LANES)
      for (int64_t c = 0; c < m; c++) gx[c] += gy[c];
    }
  }
  for (int64_t c = 0; c < m; c++) gx[c] *= scale;
  ii_grad_out(a->x_dtype, a->gx, i, m, a->acc_gx, gx);
}

int II_FN(avg_pool2d_fwd)(ii_kctx *k, const ii_pool2d_args *a) {
  return for_places(k, a, a->Ho, a->Wo, average);
}

int II_FN(avg_pool2d_bwd)(ii_kctx *k, const ii_pool2d_args *a) {
  return a->gx ? for_places(k, a, a->H, a->W, average_gradient) : 0;
}

static void maximum(const ii_pool2d_args *a, const place *p) {
  real xb[II_CHUNK], yb[II_CHUNK];
  const int64_t i = offset(a, p, a->Ho, a->Wo, p->h, p->w), m = p->m;
  real *restrict y = ii_row_target(a->x_dtype, a->y, i, yb);
  int32_t *restrict arg = a->argmax + i;
  for (int64_t c = 0; c < m; c++) y[c] = (real)-INFINITY;
  for (int64_t c = 0; c < m; c++) arg[c] = -1; /* nothing seen yet */
  for (int64_t h = window_begin(a, p->h); h < window_end(a, p->h, a->H); h++) {
    for (int64_t w = window_begin(a, p->w); w < window_end(a, p->w, a->W); w++) {
      const real *x = ii_row_in(a->x_dtype, a->x, offset(a, p, a->H, a->W, h, w), m, xb);
      const int32_t here = (int32_t)(h * a->W + w);
#pragma omp simd simdlen(II_LANES)
      for (int64_t c = 0; c < m; c++) {
        const bool wins = (arg[c] < 0) | (x[c] > y[c]) | ((x[c] != x[c]) & (y[c] == y[c]));
        y[c] = wins ? x[c] : y[c];
        arg[c] = wins ? here : arg[c];
      }
    }
  }
  ii_row_out(a->x_dtype, a->y, i, m, y);
}

static void maximum_gradient(const ii_pool2d_args *a, const place *p) {
  real gb[II_CHUNK], ob[II_CHUNK];
  const int64_t i = offset(a, p, a->H, a->W, p->h, p->w), m = p->m;
  const int32_t here = (int32_t)(p->h * a->W + p->w);
  real *restrict gx = ii_grad_target(a->x_dtype, a->gx, i, a->acc_gx, ob);
  for (int64_t c = 0; c < m; c++) gx[c] = 0;
  for (int64_t h = cover_begin(a, p->h); h < cover_end(a, p->h, a->Ho); h++) {
    for (int64_t w = cover_begin(a, p->w); w < cover_end(a, p->w, a->Wo); w++) {
      const int64_t o = offset(a, p, a->Ho, a->Wo, h, w);
      const real *gy = ii_row_in(a->x_dtype, a->gy, o, m, gb);
      const int32_t *arg = a->argmax + o;
#pragma omp simd simdlen(II_LANES)
      for (int64_t c = 0; c < m; c++) gx[c] += arg[c] == here ? gy[c] : R(0.0);
    }
  }
  ii_grad_out(a->x_dtype, a->gx, i, m, a->acc_gx, gx);
}

int II_FN(max_pool2d_fwd)(ii_kctx *k, const ii_pool2d_args *a) {
  return for_places(k, a, a->Ho, a->Wo, maximum);
}

int II_FN(max_pool2d_bwd)(ii_kctx *k, const ii_pool2d_args *a) {
  return a->gx ? for_places(k, a, a->H, a->W, maximum_gradient) : 0;
}
