/* Sums over rows for the gradients of parameters and for batch statistics. */
#include <string.h>
#include "kernels/cpu/pieces.h"

const double *II_FN(column_sums)(ii_kctx *k, int64_t rows, int64_t cost, int64_t width,
                                 ii_add_rows_fn add, const void *args, int64_t buffer_n,
                                 int buffer_count) {
  int64_t block = II_SUM_ROWS * ii_max(1, ii_ceil_div(rows, (int64_t)II_SUM_ROWS * II_SUM_BLOCKS));
  int64_t blocks = ii_ceil_div(rows, block), length = ii_buffer_length(buffer_n);
  double *partial = ii_cpu_scratch(k, 0, (size_t)((blocks + 1) * width + 1) * sizeof(double));
  real *acc =
      ii_cpu_scratch(k, 2, (size_t)(k->threads * ii_buffer_length(width) + 1) * sizeof(real));
  real *buffers = ii_thread_buffers(k, buffer_n, buffer_count);
  if (!partial || !acc || !buffers) return NULL;
  double *sums = partial + blocks * width;
  memset(sums, 0, (size_t)width * sizeof(double));
#pragma omp parallel num_threads(ii_team(k, rows *cost))
  {
    int thread = omp_get_thread_num();
    real *restrict mine = acc + thread * ii_buffer_length(width);
    real *buffer = buffers + thread * buffer_count * length;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      double *restrict out = partial + b * width;
      memset(out, 0, (size_t)width * sizeof(double));
      int64_t end = ii_min(rows, (b + 1) * block);
      for (int64_t r = b * block; r < end; r += II_SUM_ROWS) {
        memset(mine, 0, (size_t)width * sizeof(real));
        add(args, r, ii_min(end, r + II_SUM_ROWS), mine, buffer);
#pragma omp simd
        for (int64_t c = 0; c < width; c++) out[c] += mine[c];
      }
    }
#pragma omp for schedule(static)
    for (int64_t c0 = 0; c0 < width; c0 += 64) {
      int64_t c1 = ii_min(width, c0 + 64);
      for (int64_t b = 0; b < blocks; b++)
        for (int64_t c = c0; c < c1; c++) sums[c] += partial[b * width + c];
    }
  }
  return sums;
}
