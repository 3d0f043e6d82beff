/* Exchange of two dimensions. */
#include <string.h>
#include "kernels/cpu/pieces.h"

enum { PIECE = 512 /* elements converted at a time */ };

/* y[n] += x[n] in type real, both stored as t. */
static void add_run(ii_dtype t, void *y, int64_t yi, const void *x, int64_t xi, int64_t n) {
  real xbuf[PIECE], ybuf[PIECE];
  for (int64_t i = 0; i < n; i += PIECE) {
    int64_t m = n - i < PIECE ? n - i : PIECE;
    const real *from = ii_row_in(t, x, xi + i, m, xbuf);
    const real *old = ii_row_in(t, y, yi + i, m, ybuf);
    real *to = ii_row_target(t, y, yi + i, ybuf);
    for (int64_t j = 0; j < m; j++) to[j] = old[j] + from[j];
    ii_row_out(t, y, yi + i, m, to);
  }
}

int II_FN(transpose)(ii_kctx *k, const ii_transpose_args *a) {
  size_t size = ii_dtype_size(a->x_dtype);
  int64_t count = a->A * a->B * a->C * a->D;
  if (count == 0) return 0;
#pragma omp parallel for num_threads(ii_team(k, count)) schedule(static)
  for (int64_t row = 0; row < a->A * a->C; row++) {
    int64_t n = row / a->C, c = row % a->C;
    for (int64_t b = 0; b < a->B; b++) {
      int64_t to = (row * a->B + b) * a->D, from = ((n * a->B + b) * a->C + c) * a->D;
      if (a->accumulate)
        add_run(a->x_dtype, a->y, to, a->x, from, a->D);
      else if (a->D == 1 && size == 4)
        ((uint32_t *)a->y)[to] = ((const uint32_t *)a->x)[from];
      else
        memcpy((char *)a->y + (size_t)to * size, (const char *)a->x + (size_t)from * size,
               (size_t)a->D * size);
    }
  }
  return 0;
}
