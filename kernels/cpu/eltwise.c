/* GELU, ReLU, SiLU and sigmoid: y = f(x), gx = f'(.) gy, GELU's with the sums of its columns on the
 * way. 16-bit tensors pass through chunks that stay in L1; of a 16-bit x, GELU and its slope are
 * looked up: memory binds these loops then, not the polynomials. */
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/pieces.h"

typedef void (*fwd_fn)(const real *restrict x, real *restrict y, int64_t n);
typedef void (*bwd_fn)(const real *s, const real *gy, real *gx, int64_t n); /* gx may be gy */

static int run_fwd(ii_kctx *k, const ii_eltwise_args *a, fwd_fn f) {
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK) {
    real xb[II_CHUNK], yb[II_CHUNK];
    int64_t n = ii_min(II_CHUNK, a->n - i);
    real *y = ii_row_target(a->y_dtype, a->y, i, yb);
    f(ii_row_in(a->x_dtype, a->x, i, n, xb), y, n);
    ii_row_out(a->y_dtype, a->y, i, n, y);
  }
  return 0;
}

/* saved: what f' is computed from, x or y. */
static int run_bwd(ii_kctx *k, const ii_eltwise_args *a, const void *saved, ii_dtype saved_dtype,
                   bwd_fn f) {
  if (!a->gx) return 0;
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK) {
    real sb[II_CHUNK], gb[II_CHUNK], ob[II_CHUNK];
    int64_t n = ii_min(II_CHUNK, a->n - i);
    real *gx = ii_grad_target(a->x_dtype, a->gx, i, a->acc_gx, ob);
    f(ii_row_in(saved_dtype, saved, i, n, sb), ii_row_in(a->y_dtype, a->gy, i, n, gb), gx, n);
    ii_grad_out(a->x_dtype, a->gx, i, n, a->acc_gx, gx);
  }
  return 0;
}

/* slope(s) from the saved x or y. */
II_FAST real relu(real x) {
  return x <= R(0.0) ? R(0.0) : x;
}
II_FAST real relu_slope(real y) {
  return y > R(0.0) ? R(1.0) : R(0.0);
}
II_FAST real silu(real x) {
  return x * ii_sigmoid(x);
}
II_FAST real silu_slope(real x) {
  real s = ii_sigmoid(x);
  return s + s * (x * (R(1.0) - s));
}
II_FAST real sigmoid_slope(real y) {
  return y * (R(1.0) - y);
}

#define ELTWISE(name, value, slope)                                                                \
  static void name##_chunk(const real *restrict x, real *restrict y, int64_t n) {                  \
    _Pragma("omp simd simdlen(II_LANES)") for (int64_t i = 0; i < n; i++) y[i] = value(x[i]);      \
  }                                                                                                \
  static void name##_slope_chunk(const real *s, const real *gy, real *gx, int64_t n) {             \
    _Pragma("omp simd simdlen(II_LANES)") for (int64_t i = 0; i < n; i++) gx[i] =                  \
        slope(s[i]) * gy[i];                                                                       \
  }
#define ELTWISE_KERNELS(name, saved)                                                               \
  int II_FN(name##_fwd)(ii_kctx * k, const ii_eltwise_args *a) {                                   \
    return run_fwd(k, a, name##_chunk);                                                            \
  }                                                                                                \
  int II_FN(name##_bwd)(ii_kctx * k, const ii_eltwise_args *a) {                                   \
    return run_bwd(k, a, a->saved, a->saved##_dtype, name##_slope_chunk);                          \
  }

ELTWISE(gelu, ii_gelu, ii_gelu_slope)
ELTWISE(relu, relu, relu_slope)
ELTWISE(silu, silu, silu_slope)
ELTWISE(sigmoid, ii_sigmoid, sigmoid_slope)
ELTWISE_KERNELS(relu, y)
ELTWISE_KERNELS(silu, x)
ELTWISE_KERNELS(sigmoid, y)

/* GELU of every bf16 number, rounded, and its slope. Few thousands of the entries are in use (|x|
 * from 2^-7 to 8): they stay in L1. */
enum { BF16_NUMBERS = 1 << 16 };
typedef struct {
  real slope[BF16_NUMBERS];
  uint16_t value[BF16_NUMBERS];
} gelu_table;

static void fill_table(void *memory) {
  gelu_table *t = memory;
  uint16_t number[II_CHUNK];
  real x[II_CHUNK], y[II_CHUNK];
  for (int64_t i = 0, n; i < BF16_NUMBERS; i += n) {
    n = ii_min(II_CHUNK, BF16_NUMBERS - i);
    for (int64_t j = 0; j < n; j++) number[j] = (uint16_t)(i + j);
    ii_row_in(II_BF16, number, 0, n, x);
    gelu_chunk(x, y, n);
    ii_row_out(II_BF16, t->value, i, n, y);
    for (int64_t j = 0; j < n; j++) y[j] = 1;
    gelu_slope_chunk(x, y, t->slope + i, n);
  }
}

int II_FN(gelu_fwd)(ii_kctx *k, const ii_eltwise_args *a) {
  if (a->x_dtype != II_BF16 || a->y_dtype != II_BF16) return run_fwd(k, a, gelu_chunk);
  const gelu_table *t = ii_cpu_gelu_table(k, sizeof *t, fill_table);
  if (!t) return 1;
  const uint16_t *x = a->x, *value = t->value;
  uint16_t *y = a->y;
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK) {
    const int64_t end = ii_min(i + II_CHUNK, a->n);
    for (int64_t j = i; j < end; j++) y[j] = value[x[j]];
  }
  return 0;
}

static void look_up(const real *table, const uint16_t *restrict x, real *restrict out, int64_t n) {
  int64_t first = 0;
#ifdef II_AVX512
  for (; first + 16 <= n; first += 16) {
    __m512i at = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(x + first)));
    _mm512_storeu_ps(out + first, _mm512_i32gather_ps(at, table, sizeof *table));
  }
#endif
  for (int64_t j = first; j < n; j++) out[j] = table[x[j]];
}

static void product_chunk(const real *s, const real *gy, real *gx, int64_t n) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++) gx[j] = s[j] * gy[j];
}

typedef struct {
  const ii_eltwise_args *a;
  const real *slope; /* of every bf16 number, where x is bf16; else NULL */
} gelu_rows_args;

/* GELU's gradient of rows [first,last), added to acc[C] on the way (see ii_add_rows_fn). Several
 * short rows at a time: the chain of a gradient is long, and ends and starts with every loop. */
static void gelu_rows(const void *args, int64_t first, int64_t last, real *acc, real *buffers) {
  const ii_eltwise_args *a = ((const gelu_rows_args *)args)->a;
  const real *slope = ((const gelu_rows_args *)args)->slope;
  const int64_t C = a->C, chunk = ii_chunk_rows(C), length = ii_buffer_length(chunk * C);
  real *out = buffers + 2 * length;
  for (int64_t r = first; r < last; r += chunk) {
    const int64_t rows = ii_min(chunk, last - r), n = rows * C;
    const real *gy = ii_row_in(a->y_dtype, a->gy, r * C, n, buffers + length);
    real *gx = a->gx ? ii_grad_target(a->x_dtype, a->gx, r * C, a->acc_gx, out) : out;
    if (slope) {
      look_up(slope, (const uint16_t *)a->x + r * C, buffers, n);
      product_chunk(buffers, gy, gx, n);
    } else {
      gelu_slope_chunk(ii_row_in(a->x_dtype, a->x, r * C, n, buffers), gy, gx, n);
    }
    for (int64_t i = 0; i < rows; i++) {
#pragma omp simd simdlen(II_LANES)
      for (int64_t j = 0; j < C; j++) acc[j] += gx[i * C + j];
    }
    if (a->gx) ii_grad_out(a->x_dtype, a->gx, r * C, n, a->acc_gx, gx);
  }
}

int II_FN(gelu_bwd)(ii_kctx *k, const ii_eltwise_args *a) {
  if (!a->gb) return run_bwd(k, a, a->x, a->x_dtype, gelu_slope_chunk);
  const int64_t C = a->C, rows = C ? a->n / C : 0, chunk = C ? ii_chunk_rows(C) * C : 0;
  const gelu_table *t = NULL;
  if (a->x_dtype == II_BF16 && !(t = ii_cpu_gelu_table(k, sizeof *t, fill_table))) return 1;
  const gelu_rows_args args = {a, t ? t->slope : NULL};
  const double *sums = II_FN(column_sums)(k, rows, C, C, gelu_rows, &args, chunk, 3);
  if (!sums) return 1;
  ii_sums_out(a->gb, sums, C, a->acc_gb);
  return 0;
}
