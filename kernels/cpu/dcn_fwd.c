/* Deformable convolution, forward. */
#include <omp.h>
#include "kernels/cpu/dcn.h"

/* y[pixel] = sum over taps and corners of weight * slab, for nv vectors of channels of each group
 * from `first` on; pixels and groups of y are `step` and `apart` elements apart. nv and K are
 * constants where it matters. */
static inline __attribute__((always_inline)) void sample(const ii_dcn_plan *p, const ii_dcn_work *w,
                                                         int64_t first, const int nv,
                                                         const int64_t K, int64_t count, real *y,
                                                         int64_t step, int64_t apart) {
  const int64_t wide = p->wide, below = p->line * wide;
  const real *slab = w->slab + first, *slab_below = slab + below;
  const real *tl = w->w, *tr = tl + p->cap, *bl = tr + p->cap, *br = bl + p->cap;
  const int32_t *at = w->at;
  for (int64_t i = 0; i < count; i++) {
    for (int64_t g = 0; g < p->block; g++, at += K, tl += K, tr += K, bl += K, br += K) {
      /* a sum for each corner: additions of one tap do not wait for each other */
      ii_vec sum[4][4] = {0};
#pragma GCC unroll 9
      for (int64_t k = 0; k < K; k++) {
        const real *v = slab + at[k], *u = slab_below + at[k];
        for (int j = 0; j < nv; j++, v += II_VEC, u += II_VEC) {
          sum[j][0] += *(const ii_vec *)v * tl[k];
          sum[j][1] += *(const ii_vec *)(v + wide) * tr[k];
          sum[j][2] += *(const ii_vec *)u * bl[k];
          sum[j][3] += *(const ii_vec *)(u + wide) * br[k];
        }
      }
      for (int j = 0; j < nv; j++)
        *(ii_vec *)(y + i * step + g * apart + j * II_VEC) =
            (sum[j][0] + sum[j][1]) + (sum[j][2] + sum[j][3]);
    }
  }
}

/* All channels of a chunk. */
static void sample_all(const ii_dcn_plan *p, const ii_dcn_work *w, int64_t count, real *y,
                       int64_t step, int64_t apart) {
  int64_t c = 0, left = p->Dp / II_VEC, K = p->K;
  if (left == 1 && K == 9) {
    sample(p, w, 0, 1, 9, count, y, step, apart);
    return;
  }
  for (; left >= 4; left -= 4, c += 4 * II_VEC) sample(p, w, c, 4, K, count, y + c, step, apart);
  for (; left >= 2; left -= 2, c += 2 * II_VEC) sample(p, w, c, 2, K, count, y + c, step, apart);
  if (left) sample(p, w, c, 1, K, count, y + c, step, apart);
}

/* A chunk whose offsets are in s. */
static void forward_chunk(const ii_dcn_plan *p, ii_dcn_work *w, const ii_dcn_slot *s,
                          const ii_dcn_chunk *c) {
  const ii_dcn_args *a = p->a;
  int64_t y = ((c->n * a->Ho + c->ho) * a->Wo + c->wo) * a->C + c->b * p->block * p->D;
  II_FN(dcn_taps)(p, w, s, c);
  if (a->x_dtype == II_REAL_DTYPE && p->D == p->Dp) {
    sample_all(p, w, c->count, (real *)a->y + y, a->C, p->D);
    return;
  }
  sample_all(p, w, c->count, w->rows, p->channels, p->Dp);
  for (int64_t i = 0; i < c->count; i++, y += a->C) {
    const real *row = w->rows + i * p->channels;
    if (p->D == p->Dp) {
      ii_row_out(II_BF16, a->y, y, p->channels, row);
      continue;
    }
    for (int64_t g = 0; g < p->block; g++, row += p->Dp)
      if (a->x_dtype == II_REAL_DTYPE)
        memcpy((real *)a->y + y + g * p->D, row, (size_t)p->D * sizeof(real));
      else
        ii_row_out(II_BF16, a->y, y + g * p->D, p->D, row);
  }
}

/* Output rows [h0,h1) of block b of image n. */
static void forward_rows(const ii_dcn_plan *p, ii_dcn_work *w, int64_t n, int64_t b, int64_t h0,
                         int64_t h1) {
  if (h0 >= h1) return;
  ii_dcn_chunk c = ii_dcn_first(p, n, b, h0), next = c;
  II_FN(dcn_fetch)(p, &w->slot[0], &c);
  for (int slot = 0;; slot ^= 1, c = next) {
    bool more = ii_dcn_next(p, h1, &next);
    if (more) II_FN(dcn_fetch)(p, &w->slot[slot ^ 1], &next);
    forward_chunk(p, w, &w->slot[slot], &c);
    if (!more) return;
  }
}

int II_FN(dcn_fwd)(ii_kctx *k, const ii_dcn_args *a) {
  if (a->N * a->G * a->C * a->Ho * a->Wo == 0) return 0;
  ii_dcn_plan p;
  ii_dcn_work *work;
  if (II_FN(dcn_prepare)(k, a, false, a->G, &p, &work)) return 1;
  /* Rows are split only when there are too few blocks for the threads; results do not depend on it.
   */
  int64_t blocks = a->N * p.blocks, parts = (k->threads + blocks - 1) / blocks;
  if (parts > a->Ho) parts = a->Ho;
#pragma omp parallel num_threads(k->threads)
  {
    ii_dcn_work *w = &work[omp_get_thread_num()];
    II_FN(dcn_clear)(&p, w);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks * parts; i++) {
      int64_t n = i / parts / p.blocks, b = i / parts % p.blocks, part = i % parts;
      II_FN(dcn_fill)(&p, w, n, b);
      forward_rows(&p, w, n, b, a->Ho * part / parts, a->Ho * (part + 1) / parts);
    }
  }
  return 0;
}
