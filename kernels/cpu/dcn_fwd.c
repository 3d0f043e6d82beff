/* Deformable convolution, forward. */
#include <omp.h>
#include "kernels/cpu/dcn.h"

/* y[pixel] = sum over taps and corners of weight * slab, for nv vectors of channels (a constant).
 */
static inline __attribute__((always_inline)) void sample(const ii_dcn_plan *p, const ii_dcn_work *w,
                                                         int64_t first, const int nv, int64_t count,
                                                         real *y, int64_t step) {
  const int64_t Dp = p->Dp, below = p->line * p->Dp, K = p->K;
  const real *slab = w->slab + first;
  const real *cw = w->w;
  const int32_t *at = w->at;
  for (int64_t i = 0; i < count; i++) {
    /* a sum for each corner: additions of one tap do not wait for each other */
    ii_vec sum[4][4] = {0};
    for (int64_t k = 0; k < K; k++, at++, cw += 4) {
      const real *v = slab + *at * Dp;
      for (int j = 0; j < nv; j++) {
        const real *q = v + j * II_VEC;
        sum[j][0] += *(const ii_vec *)q * cw[0];
        sum[j][1] += *(const ii_vec *)(q + Dp) * cw[1];
        sum[j][2] += *(const ii_vec *)(q + below) * cw[2];
        sum[j][3] += *(const ii_vec *)(q + below + Dp) * cw[3];
      }
    }
    for (int j = 0; j < nv; j++)
      *(ii_vec *)(y + i * step + j * II_VEC) = (sum[j][0] + sum[j][1]) + (sum[j][2] + sum[j][3]);
  }
}

/* All channels of a chunk. */
static void sample_all(const ii_dcn_plan *p, const ii_dcn_work *w, int64_t count, real *y,
                       int64_t step) {
  int64_t c = 0, left = p->Dp / II_VEC;
  for (; left >= 4; left -= 4, c += 4 * II_VEC) sample(p, w, c, 4, count, y + c, step);
  for (; left >= 2; left -= 2, c += 2 * II_VEC) sample(p, w, c, 2, count, y + c, step);
  if (left) sample(p, w, c, 1, count, y + c, step);
}

/* A chunk whose offsets are in slot; its slab is w->slab. */
static void forward_chunk(const ii_dcn_plan *p, ii_dcn_work *w, int slot, const ii_dcn_chunk *c) {
  const ii_dcn_args *a = p->a;
  int64_t y = ((c->n * a->Ho + c->ho) * a->Wo + c->wo) * a->C + c->g * p->D;
  II_FN(dcn_taps)(p, w, slot, c);
  if (a->x_dtype == II_REAL_DTYPE && p->D == p->Dp) {
    sample_all(p, w, c->count, (real *)a->y + y, a->C);
    return;
  }
  sample_all(p, w, c->count, w->rows, p->Dp);
  for (int64_t i = 0; i < c->count; i++) {
    const real *row = w->rows + i * p->Dp;
    if (a->x_dtype == II_REAL_DTYPE)
      memcpy((real *)a->y + y + i * a->C, row, (size_t)p->D * sizeof(real));
    else if (p->D == 16)
      ii_row_out(II_BF16, a->y, y + i * a->C, 16, row);
    else
      ii_row_out(II_BF16, a->y, y + i * a->C, p->D, row);
  }
}

/* Output rows [h0,h1) of block b of image n. */
static void forward_rows(const ii_dcn_plan *p, ii_dcn_work *w, int64_t n, int64_t b, int64_t h0,
                         int64_t h1) {
  ii_dcn_work one = *w; /* looks at one group */
  if (h0 >= h1) return;
  ii_dcn_chunk c = ii_dcn_first(p, n, b, h0), next = c;
  II_FN(dcn_fetch)(p, &one, 0, &c);
  for (int slot = 0;; slot ^= 1, c = next) {
    bool more = ii_dcn_next(p, b, h1, &next);
    if (more) II_FN(dcn_fetch)(p, &one, slot ^ 1, &next);
    one.slab = w->slab + (c.g - b * p->block) * p->pixels * p->Dp;
    forward_chunk(p, &one, slot, &c);
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
