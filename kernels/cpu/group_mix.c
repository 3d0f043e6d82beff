/* Centre feature scale: y = a (1-s) + v s, one s for the D channels of a group. A (row, group) pair
 * is an item here: items are independent, and s is indexed by item. */
#include "kernels/cpu/fast_math.h"
#include "kernels/cpu/pieces.h"

II_FAST void mix(const real *restrict a, const real *restrict v, const real *restrict s,
                 real *restrict y, int64_t items, int64_t D) {
  for (int64_t i = 0; i < items; i++)
#pragma omp simd simdlen(II_LANES)
    for (int64_t d = 0; d < D; d++)
      y[i * D + d] = a[i * D + d] * (R(1.0) - s[i]) + v[i * D + d] * s[i];
}

/* gx[item, d] = gy * s, or gy * (1-s) if `rest`. */
II_FAST void scale(const real *restrict gy, const real *restrict s, bool rest, real *restrict gx,
                   int64_t items, int64_t D) {
  for (int64_t i = 0; i < items; i++) {
    const real f = rest ? R(1.0) - s[i] : s[i];
#pragma omp simd simdlen(II_LANES)
    for (int64_t d = 0; d < D; d++) gx[i * D + d] = gy[i * D + d] * f;
  }
}

II_FAST void scale_gradient(const real *restrict a, const real *restrict v, const real *restrict gy,
                            real *restrict gs, int64_t items, int64_t D) {
  for (int64_t i = 0; i < items; i++) {
    real sum = 0;
#pragma omp simd simdlen(II_LANES) reduction(+ : sum)
    for (int64_t d = 0; d < D; d++) sum += gy[i * D + d] * (v[i * D + d] - a[i * D + d]);
    gs[i] = sum;
  }
}

int II_FN(group_mix_fwd)(ii_kctx *k, const ii_group_mix_args *a) {
  const int64_t D = a->D, items = a->rows * a->G;
  if (items * D == 0) return 0;
  const int64_t chunk = ii_chunk_rows(D), length = ii_buffer_length(chunk * D);
  real *buffers = ii_thread_buffers(k, chunk * D, 4);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, items *D))
  {
    real *ab = buffers + omp_get_thread_num() * 4 * length, *vb = ab + length, *sb = vb + length;
    real *yb = sb + length;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < items; i += chunk) {
      const int64_t m = ii_min(chunk, items - i), n = m * D;
      const real *x = ii_row_in(a->x_dtype, a->a, i * D, n, ab);
      const real *v = ii_row_in(a->x_dtype, a->v, i * D, n, vb);
      const real *s = ii_row_in(a->s_dtype, a->s, i, m, sb);
      real *y = ii_row_target(a->x_dtype, a->y, i * D, yb);
      if (D == 16) /* the published group width: a loop of known length */
        mix(x, v, s, y, m, 16);
      else
        mix(x, v, s, y, m, D);
      ii_row_out(a->x_dtype, a->y, i * D, n, y);
    }
  }
  return 0;
}

/* ga (rest) or gv of the items i...i+m. */
static void value_gradient(const ii_group_mix_args *a, void *gx, bool accumulate, bool rest,
                           const real *gy, const real *s, int64_t i, int64_t m, real *buf) {
  if (!gx) return;
  real *g = ii_grad_target(a->x_dtype, gx, i * a->D, accumulate, buf);
  if (a->D == 16)
    scale(gy, s, rest, g, m, 16);
  else
    scale(gy, s, rest, g, m, a->D);
  ii_grad_out(a->x_dtype, gx, i * a->D, m * a->D, accumulate, g);
}

static void backward_items(const ii_group_mix_args *a, int64_t i, int64_t m, real *buffers,
                           int64_t length) {
  const int64_t D = a->D, n = m * D;
  real *gb = buffers, *sb = gb + length, *ab = sb + length, *vb = ab + length, *ob = vb + length;
  const real *gy = ii_row_in(a->x_dtype, a->gy, i * D, n, gb);
  const real *s = ii_row_in(a->s_dtype, a->s, i, m, sb);
  value_gradient(a, a->ga, a->acc_ga, true, gy, s, i, m, ob);
  value_gradient(a, a->gv, a->acc_gv, false, gy, s, i, m, ob);
  if (!a->gs) return;
  const real *x = ii_row_in(a->x_dtype, a->a, i * D, n, ab);
  const real *v = ii_row_in(a->x_dtype, a->v, i * D, n, vb);
  real *gs = ii_grad_target(a->s_dtype, a->gs, i, a->acc_gs, ob);
  if (D == 16)
    scale_gradient(x, v, gy, gs, m, 16);
  else
    scale_gradient(x, v, gy, gs, m, D);
  ii_grad_out(a->s_dtype, a->gs, i, m, a->acc_gs, gs);
}

int II_FN(group_mix_bwd)(ii_kctx *k, const ii_group_mix_args *a) {
  const int64_t D = a->D, items = a->rows * a->G;
  const int64_t chunk = ii_chunk_rows(ii_max(D, 1)), length = ii_buffer_length(chunk * D + chunk);
  real *buffers = ii_thread_buffers(k, chunk * D + chunk, 5);
  if (!buffers) return 1;
#pragma omp parallel num_threads(ii_team(k, items *D))
  {
    real *mine = buffers + omp_get_thread_num() * 5 * length;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < items; i += chunk)
      backward_items(a, i, ii_min(chunk, items - i), mine, length);
  }
  return 0;
}
