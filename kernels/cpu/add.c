/* c = a + b. */
#include "kernels/cpu/pieces.h"

int II_FN(add_fwd)(ii_kctx *k, const ii_add_args *a) {
#pragma omp parallel for schedule(static) num_threads(ii_team(k, a->n))
  for (int64_t i = 0; i < a->n; i += II_CHUNK) {
    real ab[II_CHUNK], bb[II_CHUNK], cb[II_CHUNK];
    int64_t n = ii_min(II_CHUNK, a->n - i);
    const real *x = ii_row_in(a->x_dtype, a->a, i, n, ab);
    const real *y = ii_row_in(a->x_dtype, a->b, i, n, bb);
    real *c = ii_row_target(a->x_dtype, a->c, i, cb);
#pragma omp simd simdlen(II_LANES)
    for (int64_t j = 0; j < n; j++) c[j] = x[j] + y[j];
    ii_row_out(a->x_dtype, a->c, i, n, c);
  }
  return 0;
}
