/* Deformable convolution, backward.
 *
 * With S_c = <gy, corner c>, a tap needs four dot products and nothing else of its channels:
 *   gmask = sum_c a_c S_c,  gdx = s m ((1-ly)(S_TR - S_TL) + ly (S_BR - S_BL)),  gdy likewise,
 * and adds m a_c gy to the gradient of its corners. Those sums go to a slab of the thread, so no
 * two threads add to the same place. */
#ifdef __AVX512F__ /* without this, loops over taps use half of a register */
#pragma GCC target("prefer-vector-width=512")
#endif
#include <omp.h>
#include "kernels/cpu/dcn.h"

#ifdef II_REAL_F64
typedef int64_t bits; /* as many as a real has */
#else
typedef int32_t bits;
#endif

/* r = (a0+a1, a2+a3, ..., b0+b1, ...): after log2(II_VEC) rounds each lane is the sum of a vector.
 */
static inline __attribute__((always_inline)) ii_vec fold(ii_vec a, ii_vec b) {
  typedef bits lanes __attribute__((vector_size(II_VEC_BYTES)));
  typedef real exact __attribute__((vector_size(II_VEC_BYTES)));
  lanes even, odd;
  for (int i = 0; i < II_VEC; i++) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  exact x = a, y = b;
  return __builtin_shuffle(x, y, even) + __builtin_shuffle(x, y, odd);
}

static inline __attribute__((always_inline)) ii_vec fold4(const ii_vec *v) {
  return fold(fold(v[0], v[1]), fold(v[2], v[3]));
}

/* The four dot products of one tap, as II_VEC/4 partial sums each, and its additions to the
 * gradient of x. v, gv: the top left corner in slab and gslab; cw: its four weights, `cap` elements
 * apart; nv: vectors (constant). */
static inline __attribute__((always_inline)) ii_vec one_tap(const real *v, real *gv, const real *cw,
                                                            int64_t cap, const real *gy,
                                                            const int nv, int64_t wide,
                                                            int64_t below) {
  ii_vec s[4];
  const real *u = v + below;
  real *gu = gv + below;
  for (int j = 0; j < nv; j++) {
    const int64_t at = j * II_VEC;
    ii_vec g = *(const ii_vec *)(gy + at);
    ii_vec p[4] = {g * *(const ii_vec *)(v + at), g * *(const ii_vec *)(v + wide + at),
                   g * *(const ii_vec *)(u + at), g * *(const ii_vec *)(u + wide + at)};
    for (int c = 0; c < 4; c++) {
      if (j == 0)
        s[c] = p[c];
      else
        s[c] += p[c];
    }
    *(ii_vec *)(gv + at) += g * cw[0];
    *(ii_vec *)(gv + wide + at) += g * cw[cap];
    *(ii_vec *)(gu + at) += g * cw[2 * cap];
    *(ii_vec *)(gu + wide + at) += g * cw[3 * cap];
  }
  return fold4(s);
}

/* All taps of a chunk, nv vectors of channels (a constant): w->s (=, or += where add) and gslab. */
static inline __attribute__((always_inline)) void
scatter(const ii_dcn_plan *p, const ii_dcn_work *w, int64_t first, const int nv, const bool add,
        int64_t taps, const real *gy, const int32_t *gy_at) {
  enum { TAPS = II_VEC_BYTES / sizeof(real) / 4 }; /* whose dot products fill a vector */
  const int64_t wide = p->wide, below = p->line * wide, cap = p->cap;
  const real *slab = w->slab + first, *cw = w->w;
  real *gslab = w->gslab + first, *out = w->s;
  const int32_t *at = w->at;
  for (int64_t t = 0; t < taps; t += TAPS) {
    ii_vec f[4] = {0};
#pragma GCC unroll 4
    for (int i = 0; i < TAPS; i++)
      f[i] = one_tap(slab + at[t + i], gslab + at[t + i], cw + t + i, cap, gy + gy_at[t + i], nv,
                     wide, below);
    ii_vec sum = TAPS == 4 ? fold4(f) : TAPS == 2 ? fold(f[0], f[1]) : f[0];
    if (add)
      *(ii_vec *)(out + 4 * t) += sum;
    else
      *(ii_vec *)(out + 4 * t) = sum;
  }
}

/* All channels of a chunk of `taps` taps. */
static void scatter_all(const ii_dcn_plan *p, const ii_dcn_work *w, int64_t taps, const real *gy,
                        const int32_t *gy_at) {
  int64_t c = 0, left = p->Dp / II_VEC;
  if (left >= 4)
    scatter(p, w, 0, 4, false, taps, gy, gy_at), c = 4 * II_VEC, left -= 4;
  else if (left >= 2)
    scatter(p, w, 0, 2, false, taps, gy, gy_at), c = 2 * II_VEC, left -= 2;
  else if (left)
    scatter(p, w, 0, 1, false, taps, gy, gy_at), left = 0;
  else
    memset(w->s, 0, (size_t)taps * 4 * sizeof(real));
  for (; left >= 2; left -= 2, c += 2 * II_VEC) scatter(p, w, c, 2, true, taps, gy + c, gy_at);
  if (left) scatter(p, w, c, 1, true, taps, gy + c, gy_at);
}

/* v, or +0 where the mask is 0. A plain selection would make the compiler load v's operands only
 * where they are needed, and then not vectorise. */
static inline real keep(real v, bits mask) {
  union {
    real f;
    bits i;
  } u = {v};
  u.i &= mask;
  return u.f;
}

/* gm and goff of a chunk's taps from their dot products; taps without a sample get zeros, whatever
 * gy holds. */
static void tap_gradients(const ii_dcn_plan *p, const ii_dcn_work *w, const ii_dcn_slot *of,
                          real *restrict goff, real *restrict gm) {
  const real scale = p->scale;
  const int32_t nowhere = ii_dcn_nowhere(p);
  const real *restrict s = w->s, *restrict m = of->m, *restrict lx = w->lx, *restrict ly = w->ly;
  const int32_t *restrict at = w->at;
#pragma omp simd
  for (int64_t t = 0; t < of->taps; t++) {
    real tl = s[4 * t], tr = s[4 * t + 1], bl = s[4 * t + 2], br = s[4 * t + 3];
    real x = lx[t], y = ly[t], sm = scale * m[t];
    real sum = (1 - y) * ((1 - x) * tl + x * tr) + y * ((1 - x) * bl + x * br);
    real gx = sm * ((1 - y) * (tr - tl) + y * (br - bl));
    real gy = sm * ((1 - x) * (bl - tl) + x * (br - tr));
    bits in = -(bits)(at[t] != nowhere);
    gm[t] = keep(sum, in);
    goff[2 * t] = keep(gx, in);
    goff[2 * t + 1] = keep(gy, in);
  }
}

/* gm becomes the gradient of the logits: m_k (gm_k - sum_j m_j gm_j). */
static void softmax_gradient(int64_t K, int64_t count, const real *m, real *gm) {
  for (int64_t i = 0; i < count; i++, m += K, gm += K) {
    real sum = 0;
    for (int64_t k = 0; k < K; k++) sum += m[k] * gm[k];
    for (int64_t k = 0; k < K; k++) gm[k] = m[k] * (gm[k] - sum);
  }
}

/* Stores (or adds) n values. */
static inline __attribute__((always_inline)) void store(ii_dtype t, bool add, void *dst, int64_t at,
                                                        int64_t n, const real *v) {
  if (t == II_REAL_DTYPE) {
    real *d = (real *)dst + at;
    if (add)
      for (int64_t j = 0; j < n; j++) d[j] += v[j];
    else
      memcpy(d, v, (size_t)n * sizeof(real));
  } else {
    uint16_t *d = (uint16_t *)dst + at;
#pragma omp simd
    for (int64_t j = 0; j < n; j++)
      d[j] = ii_f32_to_bf16((float)v[j] + (add ? ii_bf16_to_f32(d[j]) : 0));
  }
}

/* A list of n values for each of groups places of each of count pixels. */
static inline __attribute__((always_inline)) void store_list(ii_dtype t, bool add, void *dst,
                                                             int64_t at, int64_t row, int64_t count,
                                                             int64_t group, int64_t groups,
                                                             int64_t n, const real *v) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t g = 0; g < groups; g++, v += n) store(t, add, dst, at + i * row + g * group, n, v);
}

/* The same; places side by side are taken together. */
static void store_lists(ii_dtype t, bool add, void *dst, int64_t at, int64_t row, int64_t count,
                        int64_t group, int64_t groups, int64_t n, const real *v) {
  if (group == n || groups == 1) {
    n *= groups;
    groups = 1;
    if (row == n) n *= count, count = 1;
  }
  if (n == 18 && !add) /* sizes known: two or three moves each */
    store_list(t, false, dst, at, row, count, group, groups, 18, v);
  else if (n == 9 && !add)
    store_list(t, false, dst, at, row, count, group, groups, 9, v);
  else
    store_list(t, add, dst, at, row, count, group, groups, n, v);
}

/* gy of a chunk, whose first element is at: in place, or in w->rows; *gy_at: where in it a tap's
 * channels start. A chunk that is shorter than the others is copied too, because the taps that pad
 * its list may read any pixel of a full one. */
static const real *load_gy(const ii_dcn_plan *p, ii_dcn_work *w, int64_t at, int64_t count,
                           const int32_t **gy_at) {
  const ii_dcn_args *a = p->a;
  *gy_at = p->gy_at[0];
  if (a->x_dtype == II_REAL_DTYPE && p->D == p->Dp && count == p->chunk)
    return (const real *)a->gy + at;
  *gy_at = p->gy_at[1];
  const int64_t groups = p->D == p->Dp ? 1 : p->block, n = p->D == p->Dp ? p->channels : p->D;
  for (int64_t i = 0; i < count; i++)
    for (int64_t g = 0; g < groups; g++) {
      real *row = w->rows + i * p->channels + g * p->Dp;
      const real *v = ii_row_in(a->x_dtype, a->gy, at + i * a->C + g * n, n, row);
      if (v != row) memcpy(row, v, (size_t)n * sizeof(real));
      for (int64_t d = n; d < p->Dp; d++) row[d] = 0;
    }
  return w->rows;
}

/* A chunk whose offsets are in s. */
static void backward_chunk(const ii_dcn_plan *p, ii_dcn_work *w, const ii_dcn_slot *s,
                           const ii_dcn_chunk *c) {
  const ii_dcn_args *a = p->a;
  const int64_t row = (c->n * a->Ho + c->ho) * a->Wo + c->wo, g = c->b * p->block;
  const int64_t off = ii_dcn_offset_at(a, row, g), mask = ii_dcn_mask_at(a, row, g);
  const int32_t *gy_at;
  II_FN(dcn_taps)(p, w, s, c);
  const real *gy = load_gy(p, w, row * a->C + g * p->D, c->count, &gy_at);
  scatter_all(p, w, s->taps, gy, gy_at);
  bool off_in_place = s->in_place && a->goffset && !a->acc_goffset;
  bool mask_in_place = s->in_place && a->gmask && !a->acc_gmask;
  real *goff = off_in_place ? (real *)a->goffset + off : w->goff;
  real *gm = mask_in_place ? (real *)a->gmask + mask : w->gm;
  tap_gradients(p, w, s, goff, gm);
  if (a->softmax) softmax_gradient(p->K, c->count * p->block, s->m, gm);
  if (a->goffset && !off_in_place)
    store_lists(a->om_dtype, a->acc_goffset, a->goffset, off, a->offset_row, c->count,
                a->offset_group, p->block, 2 * p->K, goff);
  if (a->gmask && !mask_in_place)
    store_lists(a->om_dtype, a->acc_gmask, a->gmask, mask, a->mask_row, c->count, a->mask_group,
                p->block, p->K, gm);
}

/* Output rows [h0,h1) of block b of image n: goffset, gmask, and the sums in w->gslab. */
static void backward_rows(const ii_dcn_plan *p, ii_dcn_work *w, int64_t n, int64_t b, int64_t h0,
                          int64_t h1) {
  memset(w->gslab, 0, (size_t)(p->pixels * p->wide) * sizeof(real));
  if (h0 >= h1) return;
  ii_dcn_chunk c = ii_dcn_first(p, n, b, h0), next = c;
  II_FN(dcn_fetch)(p, &w->slot[0], &c);
  for (int slot = 0;; slot ^= 1, c = next) {
    bool more = ii_dcn_next(p, h1, &next);
    if (more) II_FN(dcn_fetch)(p, &w->slot[slot ^ 1], &next);
    backward_chunk(p, w, &w->slot[slot], &c);
    if (!more) return;
  }
}

/* Image row h of gx, block b: the sum of `parts` slabs, `apart` elements from one to the next; it
 * is formed in the first one. */
static void store_gx_row(const ii_dcn_plan *p, real *slab, int64_t parts, int64_t apart, int64_t n,
                         int64_t b, int64_t h) {
  const ii_dcn_args *a = p->a;
  real *sum = slab + ((h + 1) * p->line + 1) * p->wide;
  for (int64_t r = 1; r < parts; r++)
#pragma omp simd
    for (int64_t i = 0; i < a->W * p->wide; i++) sum[i] += sum[r * apart + i];
  int64_t at = (n * a->H + h) * a->W * a->x_row + b * p->block * p->D;
  if (p->block == a->G && p->wide == a->x_row && a->x_row == a->C)
    store(a->x_dtype, a->acc_gx, a->gx, at, a->W * a->C, sum);
  else if (p->D == p->Dp)
    for (int64_t i = 0; i < a->W; i++)
      store(a->x_dtype, a->acc_gx, a->gx, at + i * a->x_row, p->channels, sum + i * p->wide);
  else
    for (int64_t i = 0; i < a->W; i++)
      for (int64_t g = 0; g < p->block; g++)
        store(a->x_dtype, a->acc_gx, a->gx, at + i * a->x_row + g * p->D, p->D,
              sum + i * p->wide + g * p->Dp);
}

/* Few groups and many threads: the rows of a group are split into `parts`, whose slabs are added in
 * order. `parts` must not depend on the batch, so that the sums of one image do not; images are
 * taken `wave` at a time, which bounds the memory for their slabs. A block is one group here. */
static void backward_parts(const ii_dcn_plan *p, ii_dcn_work *work, int threads, int64_t parts,
                           int64_t wave, real *slabs) {
  const ii_dcn_args *a = p->a;
  const int64_t size = p->pixels * p->wide;
#pragma omp parallel num_threads(threads)
  {
    ii_dcn_work w = work[omp_get_thread_num()];
    II_FN(dcn_clear)(p, &w);
    for (int64_t n0 = 0; n0 < a->N; n0 += wave) {
      int64_t images = a->N - n0 < wave ? a->N - n0 : wave, groups = images * a->G;
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < groups * parts; i++) {
        int64_t n = n0 + i / parts / a->G, g = i / parts % a->G, part = i % parts;
        II_FN(dcn_fill)(p, &w, n, g);
        w.gslab = slabs + i * size;
        backward_rows(p, &w, n, g, a->Ho * part / parts, a->Ho * (part + 1) / parts);
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < (a->gx ? groups * a->H : 0); i++) {
        int64_t ng = i / a->H;
        store_gx_row(p, slabs + ng * parts * size, parts, size, n0 + ng / a->G, ng % a->G,
                     i % a->H);
      }
    }
  }
}

/* As many groups as threads, or more: each is done by one thread. */
static void backward_blocks(const ii_dcn_plan *p, ii_dcn_work *work, int threads) {
  const ii_dcn_args *a = p->a;
#pragma omp parallel num_threads(threads)
  {
    ii_dcn_work *w = &work[omp_get_thread_num()];
    II_FN(dcn_clear)(p, w);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < a->N * p->blocks; i++) {
      int64_t n = i / p->blocks, b = i % p->blocks;
      II_FN(dcn_fill)(p, w, n, b);
      backward_rows(p, w, n, b, 0, a->Ho);
      for (int64_t h = 0; h < (a->gx ? a->H : 0); h++) store_gx_row(p, w->gslab, 1, 0, n, b, h);
    }
  }
}

int II_FN(dcn_bwd)(ii_kctx *k, const ii_dcn_args *a) {
  if (a->N * a->G == 0) return 0;
  int64_t parts = (k->threads + a->G - 1) / a->G;
  if (parts > a->Ho) parts = a->Ho > 0 ? a->Ho : 1;
  ii_dcn_plan p;
  ii_dcn_work *work;
  if (II_FN(dcn_prepare)(k, a, true, parts > 1 ? 1 : a->G, &p, &work)) return 1;
  if (parts == 1) {
    backward_blocks(&p, work, k->threads);
    return 0;
  }
  int64_t wave = 4 * k->threads / (a->G * parts) + 1;
  if (wave > a->N) wave = a->N;
  size_t bytes = (size_t)(wave * a->G * parts * p.pixels * p.wide) * sizeof(real);
  real *slabs = ii_cpu_scratch(k, 1, bytes);
  if (!slabs) return 1;
  backward_parts(&p, work, k->threads, parts, wave, slabs);
  return 0;
}
