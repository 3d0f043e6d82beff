/* Deformable convolution, forward. */
#include <omp.h>
#include "kernels/cpu/dcn.h"

/* y[pixel] = sum over taps and corners of weight * slab, for nv vectors of channels (a constant). */
static inline __attribute__((always_inline)) void
sample(const ii_dcn_plan *p, const ii_dcn_work *w, int64_t first, const int nv, int64_t count,
       real *y, int64_t step) {
  const int64_t Dp = p->Dp, below = p->line * p->Dp, K = p->K;
  const real *slab = w->slab + first;
  const real *cw = w->w;
  const int32_t *at = w->at;
  for (int64_t i = 0; i < count; i++) {
    ii_vec top[4] = {0}, bottom[4] = {0};
    for (int64_t k = 0; k < K; k++, at++, cw += 4) {
      const real *v = slab + *at * Dp;
      for (int j = 0; j < nv; j++) {
        const real *q = v + j * II_VEC;
        top[j] += *(const ii_vec *)q * cw[0];
        bottom[j] += *(const ii_vec *)(q + below) * cw[2];
        top[j] += *(const ii_vec *)(q + Dp) * cw[1];
        bottom[j] += *(const ii_vec *)(q + below + Dp) * cw[3];
      }
    }
    for (int j = 0; j < nv; j++) *(ii_vec *)(y + i * step + j * II_VEC) = top[j] + bottom[j];
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

/* Output rows [h0,h1) of one image and group. */
static void forward_rows(const ii_dcn_plan *p, ii_dcn_work *w, int64_t n, int64_t g, int64_t h0,
                         int64_t h1) {
  const ii_dcn_args *a = p->a;
  bool in_place = a->x_dtype == II_REAL_DTYPE && p->D == p->Dp;
  for (int64_t ho = h0; ho < h1; ho++)
    for (int64_t wo = 0; wo < a->Wo; wo += p->chunk) {
      int64_t count = a->Wo - wo < p->chunk ? a->Wo - wo : p->chunk;
      int64_t y = ((n * a->Ho + ho) * a->Wo + wo) * a->C + g * p->D;
      II_FN(dcn_taps)(p, w, n, g, ho, wo, count);
      if (in_place) {
        sample_all(p, w, count, (real *)a->y + y, a->C);
        continue;
      }
      sample_all(p, w, count, w->rows, p->Dp);
      for (int64_t i = 0; i < count; i++) {
        const real *row = w->rows + i * p->Dp;
        if (a->x_dtype == II_REAL_DTYPE)
          memcpy((real *)a->y + y + i * a->C, row, (size_t)p->D * sizeof(real));
        else ii_row_out(a->x_dtype, a->y, y + i * a->C, p->D, row);
      }
    }
}

int II_FN(dcn_fwd)(ii_kctx *k, const ii_dcn_args *a) {
  if (a->N * a->G * a->C * a->Ho * a->Wo == 0) return 0;
  ii_dcn_plan p;
  ii_dcn_work *work;
  if (II_FN(dcn_prepare)(k, a, false, &p, &work)) return 1;
  /* Rows are split only when there are too few groups for the threads; results do not depend on it.
   * A thread takes about a quarter of its share at a time, so neighbours do not write to the same
   * cache lines, and a thread that the system delays is helped out. */
  int64_t groups = a->N * a->G, parts = (k->threads + groups - 1) / groups;
  if (parts > a->Ho) parts = a->Ho;
  int64_t items = groups * parts, step = items / (k->threads * 4) + 1;
#pragma omp parallel num_threads(k->threads)
  {
    int self = omp_get_thread_num();
    II_FN(dcn_clear)(&p, &work[self]);
#pragma omp for schedule(dynamic, step)
    for (int64_t i = 0; i < items; i++) {
      int64_t ng = i / parts, part = i % parts;
      II_FN(dcn_fill)(&p, &work[self], ng / a->G, ng % a->G);
      forward_rows(&p, &work[self], ng / a->G, ng % a->G, a->Ho * part / parts,
                   a->Ho * (part + 1) / parts);
    }
  }
  return 0;
}
