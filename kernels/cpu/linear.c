/* Linear layer: three matrix products and the column sums of the bias gradient. */
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/pieces.h"

enum {
  SUM_CHUNKS = 64,   /* pieces of rows that are summed independently */
  SUM_BLOCK = 64,    /* rows added up before they join a longer sum: keeps rounding errors small */
  SUM_COLUMNS = 1024 /* columns at a time: the running sums stay in the first-level cache */
};

/* sum[j] += four rows of x, `stride` elements apart: the sums are loaded and stored once. */
static void add_four_rows(const real *x, int64_t stride, real *restrict sum, int64_t n) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++)
    sum[j] += (x[j] + x[j + stride]) + (x[j + 2 * stride] + x[j + 3 * stride]);
}

static void add_four_bf16_rows(const uint16_t *x, int64_t stride, real *restrict sum, int64_t n) {
#pragma omp simd simdlen(II_LANES)
  for (int64_t j = 0; j < n; j++)
    sum[j] += (ii_bf16_value(x[j]) + ii_bf16_value(x[j + stride])) +
              (ii_bf16_value(x[j + 2 * stride]) + ii_bf16_value(x[j + 3 * stride]));
}

/* sum[cols] = the sums over rows [begin,end) of the columns from `col` on. */
static void sum_rows(const void *x, ii_dtype t, int64_t stride, int64_t col, int64_t cols,
                     int64_t begin, int64_t end, real *sum) {
  real block[SUM_COLUMNS], buf[SUM_COLUMNS];
  for (int64_t j = 0; j < cols; j++) sum[j] = 0;
  for (int64_t first = begin; first < end; first += SUM_BLOCK) {
    int64_t last = first + SUM_BLOCK < end ? first + SUM_BLOCK : end;
    for (int64_t j = 0; j < cols; j++) block[j] = 0;
    int64_t i = first;
    for (; i + 4 <= last; i += 4) {
      if (t == II_REAL_DTYPE)
        add_four_rows((const real *)x + i * stride + col, stride, block, cols);
      else
        add_four_bf16_rows((const uint16_t *)x + i * stride + col, stride, block, cols);
    }
    for (; i < last; i++) {
      const real *row = ii_row_in(t, x, i * stride + col, cols, buf);
#pragma omp simd simdlen(II_LANES)
      for (int64_t j = 0; j < cols; j++) block[j] += row[j];
    }
    for (int64_t j = 0; j < cols; j++) sum[j] += block[j];
  }
}

int II_FN(bias_grad)(ii_kctx *k, ii_dtype x_dtype, int64_t rows, int64_t cols, const void *x,
                     real *out, bool accumulate) {
  int64_t chunk = (rows + SUM_CHUNKS - 1) / SUM_CHUNKS;
  chunk = (chunk + SUM_BLOCK - 1) / SUM_BLOCK * SUM_BLOCK;
  int64_t chunks = chunk ? (rows + chunk - 1) / chunk : 0;
  int64_t strips = (cols + SUM_COLUMNS - 1) / SUM_COLUMNS;
  real *partial = ii_cpu_scratch(k, II_SLOT_SUMS, (size_t)(chunks * cols) * sizeof *partial);
  if (!partial) return 1;
#pragma omp parallel for num_threads(ii_team(k, rows *cols)) schedule(static)
  for (int64_t t = 0; t < chunks * strips; t++) {
    int64_t c = t / strips, col = t % strips * SUM_COLUMNS;
    int64_t n = cols - col < SUM_COLUMNS ? cols - col : SUM_COLUMNS;
    int64_t begin = c * chunk, end = begin + chunk < rows ? begin + chunk : rows;
    sum_rows(x, x_dtype, cols, col, n, begin, end, partial + c * cols + col);
  }
  for (int64_t j = 0; j < cols; j++) {
    real sum = 0;
    for (int64_t c = 0; c < chunks; c++) sum += partial[c * cols + j];
    out[j] = accumulate ? out[j] + sum : sum;
  }
  return 0;
}

int II_FN(linear_fwd)(ii_kctx *k, const ii_linear_args *a) {
  return multiply(k, &(matrix_product){.ab_dtype = a->x_dtype,
                                       .c_dtype = a->x_dtype,
                                       .batch = 1,
                                       .M = a->rows,
                                       .N = a->out,
                                       .K = a->in,
                                       .trans_b = true,
                                       .alpha = 1,
                                       .a = a->x,
                                       .b = a->w,
                                       .bias = a->b,
                                       .c = a->y});
}

int II_FN(linear_bwd)(ii_kctx *k, const ii_linear_args *a) {
  matrix_product gx = {.ab_dtype = a->x_dtype,
                       .c_dtype = a->x_dtype,
                       .batch = 1,
                       .M = a->rows,
                       .N = a->in,
                       .K = a->out,
                       .accumulate = a->acc_gx,
                       .alpha = 1,
                       .a = a->gy,
                       .b = a->w,
                       .c = a->gx};
  matrix_product gw = {.ab_dtype = a->x_dtype,
                       .c_dtype = II_REAL_DTYPE,
                       .batch = 1,
                       .M = a->out,
                       .N = a->in,
                       .K = a->rows,
                       .trans_a = true,
                       .accumulate = a->acc_gw,
                       .alpha = 1,
                       .a = a->gy,
                       .b = a->x,
                       .c = a->gw};
  if (a->gx && multiply(k, &gx)) return 1;
  if (a->gw && multiply(k, &gw)) return 1;
  if (!a->gb) return 0;
  return II_FN(bias_grad)(k, a->x_dtype, a->rows, a->out, a->gy, a->gb, a->acc_gb);
}
