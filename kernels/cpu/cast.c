/* Conversion between F32, F64 and BF16, chunk by chunk through type real. */
#include "kernels/cpu/pieces.h"

static bool convertible(ii_dtype t) {
  return t == II_F32 || t == II_F64 || t == II_BF16;
}

/* n elements at p[i...] as real: in place, or in buf. */
static const real *load(ii_dtype t, const void *p, int64_t i, int64_t n, real *restrict buf) {
  if (t == II_REAL_DTYPE || t == II_BF16) return ii_row_in(t, p, i, n, buf);
  if (t == II_F32) {
    const float *restrict x = (const float *)p + i;
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) buf[j] = (real)x[j];
  } else {
    const double *restrict x = (const double *)p + i;
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) buf[j] = (real)x[j];
  }
  return buf;
}

static void store(ii_dtype t, void *p, int64_t i, int64_t n, const real *restrict v) {
  if (t == II_BF16) {
    ii_row_out(t, p, i, n, v);
  } else if (t == II_F32) {
    float *restrict y = (float *)p + i;
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) y[j] = (float)v[j];
  } else {
    double *restrict y = (double *)p + i;
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) y[j] = (double)v[j];
  }
}

int II_FN(cast)(ii_kctx *k, const ii_cast_args *a) {
  if (!convertible(a->x_dtype) || !convertible(a->y_dtype))
    return ii_kernel_error(k, "cast: from %s to %s is not possible on the CPU; use f32, f64, bf16",
                           ii_dtype_name(a->x_dtype), ii_dtype_name(a->y_dtype));
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK) {
    real xb[II_CHUNK], yb[II_CHUNK];
    int64_t n = ii_min(II_CHUNK, a->n - i);
    const real *x = load(a->x_dtype, a->x, i, n, xb);
    if (a->accumulate) {
      const real *y = load(a->y_dtype, a->y, i, n, yb);
#pragma omp simd simdlen(II_LANES)
      for (int64_t j = 0; j < n; j++) yb[j] = y[j] + x[j];
      x = yb;
    }
    store(a->y_dtype, a->y, i, n, x);
  }
  return 0;
}
