/* Deformable convolution: geometry, the padded slab, and the positions and weights of the taps. */
#ifdef __AVX512F__ /* without this, loops over taps use half of a register */
#pragma GCC target("prefer-vector-width=512")
#endif
#include <math.h>
#include "kernels/cpu/dcn.h"
#include "kernels/cpu/fast_math.h"

/* About this many taps per chunk: their arrays (some 100 bytes each, in backward), the lines of the
 * slabs they touch and the next chunk's offsets stay in the first cache. */
#define CHUNK_TAPS 128

/* Slabs of one thread, together; second-level caches have 1 or 2 MiB where this matters. */
#define SLAB_BYTES (1 << 20)

static size_t aligned(size_t bytes) {
  return (bytes + 63) & ~(size_t)63;
}

/* Hands out pieces of one block; with base NULL it only counts. */
typedef struct {
  char *base;
  size_t used;
} arena;

static void *take(arena *m, int64_t n, size_t size) {
  void *p = m->base ? m->base + m->used : NULL;
  m->used += aligned((size_t)n * size);
  return p;
}

static void lay_out(arena *m, ii_dcn_plan *p, ii_dcn_work *w, int threads, bool backward) {
  p->base_x = take(m, p->a->Wo * p->K + II_TAP_BLOCK, sizeof(real));
  p->tap_x = take(m, p->cap, sizeof(real));
  p->tap_y = take(m, p->cap, sizeof(real));
  p->pixel_of_tap = take(m, p->cap, sizeof(int32_t));
  for (int i = 0; i < threads; i++) {
    ii_dcn_work t = {.filled = -1};
    t.slab = take(m, p->block * p->pixels * p->Dp, sizeof(real));
    t.rows = take(m, p->chunk * p->Dp, sizeof(real));
    for (int slot = 0; slot < 2; slot++) {
      t.off_of[slot] = take(m, p->cap * 2, sizeof(real));
      t.m_of[slot] = take(m, p->cap, sizeof(real));
    }
    t.w = take(m, p->cap * 4, sizeof(real));
    t.lx = take(m, p->cap, sizeof(real));
    t.ly = take(m, p->cap, sizeof(real));
    t.at = take(m, p->cap, sizeof(int32_t));
    if (backward) {
      t.gslab = take(m, p->block * p->pixels * p->Dp, sizeof(real));
      t.s = take(m, p->cap * 4, sizeof(real));
      t.goff = take(m, p->cap * 2, sizeof(real));
      t.gm = take(m, p->cap, sizeof(real));
    }
    take(m, 2, 64); /* so that no cache line is shared by two threads' prefetchers */
    if (w) w[i] = t;
  }
}

/* The tables: where windows start, and where in the window the taps are. */
static void fill_tables(ii_dcn_plan *p) {
  const ii_dcn_args *a = p->a;
  int64_t K = p->K, half = ((int64_t)a->dil_w * (a->kw - 1)) >> 1;
  for (int64_t wo = 0; wo < a->Wo; wo++)
    for (int64_t k = 0; k < K; k++)
      p->base_x[wo * K + k] =
          (real)((double)(wo * a->stride_w - a->pad_w + half) - (double)half * a->offset_scale);
  for (int64_t t = a->Wo * K; t < a->Wo * K + II_TAP_BLOCK; t++) p->base_x[t] = 0;
  int64_t k = 0;
  for (int i = 0; i < a->kw; i++)
    for (int j = 0; j < a->kh; j++) {
      if (a->remove_center && i == a->kw / 2 && j == a->kh / 2) continue;
      p->tap_x[k] = (real)((int64_t)i * a->dil_w);
      p->tap_y[k++] = (real)((int64_t)j * a->dil_h);
    }
  for (int64_t t = 0; t < p->cap; t++) {
    p->tap_x[t] = K ? p->tap_x[t % K] : 0;
    p->tap_y[t] = K ? p->tap_y[t % K] : 0;
    p->pixel_of_tap[t] = t < p->chunk * K ? (int32_t)(t / K) : 0;
  }
}

/* Groups per block: see dcn.h; and there should be some four blocks for each thread. */
static void choose_blocks(ii_dcn_plan *p, int threads, bool backward, int64_t max_block) {
  int64_t bytes = (backward ? 2 : 1) * p->pixels * p->Dp * (int64_t)sizeof(real);
  int64_t fits = bytes > 0 ? SLAB_BYTES / bytes : 1, share = p->a->N * p->a->G / (4 * threads);
  p->block = fits < share ? fits : share;
  if (p->block > max_block) p->block = max_block;
  if (p->block > p->a->G) p->block = p->a->G;
  if (p->block < 1) p->block = 1;
  p->blocks = (p->a->G + p->block - 1) / p->block;
  p->block = (p->a->G + p->blocks - 1) / p->blocks; /* evenly */
  p->blocks = (p->a->G + p->block - 1) / p->block;
}

int II_FN(dcn_prepare)(ii_kctx *k, const ii_dcn_args *a, bool backward, int64_t max_block,
                       ii_dcn_plan *p, ii_dcn_work **work) {
  *p = (ii_dcn_plan){.a = a, .D = a->C / a->G, .scale = (real)a->offset_scale};
  p->K = ii_dcn_taps(a->kh, a->kw, a->remove_center);
  p->Dp = (p->D + II_VEC - 1) / II_VEC * II_VEC;
  p->line = a->W + 2;
  p->pixels = p->line * (a->H + 3);
  if (p->pixels > INT32_MAX)
    return ii_kernel_error(k, "dcn: an image of %lld x %lld is too large; split it into tiles",
                           (long long)a->H, (long long)a->W);
  p->chunk = p->K && p->K < CHUNK_TAPS ? CHUNK_TAPS / p->K : 1;
  int64_t chunks = (a->Wo + p->chunk - 1) / p->chunk; /* of equal length, if possible */
  p->chunk = a->Wo > 0 ? (a->Wo + chunks - 1) / chunks : 1;
  p->cap = ii_dcn_padded(p, p->chunk);
  choose_blocks(p, k->threads, backward, max_block);
  arena m = {0};
  ii_dcn_work *w = take(&m, k->threads, sizeof *w);
  lay_out(&m, p, w, k->threads, backward);
  m.base = ii_cpu_scratch(k, 0, m.used);
  if (!m.base) return 1;
  m.used = 0;
  w = take(&m, k->threads, sizeof *w);
  lay_out(&m, p, w, k->threads, backward);
  fill_tables(p);
  *work = w;
  return 0;
}

void II_FN(dcn_clear)(const ii_dcn_plan *p, ii_dcn_work *w) {
  memset(w->slab, 0, (size_t)(p->block * p->pixels * p->Dp) * sizeof(real));
}

/* A row of pixels of `groups` groups, from side by side to `apart` elements apart; D is known to
 * the compiler where it matters. */
static inline __attribute__((always_inline)) void split_groups(real *dst, int64_t dst_step,
                                                               int64_t apart, const real *src,
                                                               int64_t src_step, int64_t groups,
                                                               int64_t pixels, int64_t D) {
  for (int64_t i = 0; i < pixels; i++)
    for (int64_t g = 0; g < groups; g++)
      memcpy(dst + i * dst_step + g * apart, src + i * src_step + g * D, (size_t)D * sizeof(real));
}

void II_FN(dcn_fill)(const ii_dcn_plan *p, ii_dcn_work *w, int64_t n, int64_t b) {
  const ii_dcn_args *a = p->a;
  if (w->filled == n * p->blocks + b) return;
  w->filled = n * p->blocks + b;
  const int64_t groups = ii_dcn_groups(p, b), apart = p->pixels * p->Dp;
  for (int64_t h = 0; h < a->H; h++) {
    real *dst = w->slab + ((h + 1) * p->line + 1) * p->Dp;
    int64_t at = (n * a->H + h) * a->W * a->C + b * p->block * p->D;
    const real *x = (const real *)a->x + at;
    if (a->x_dtype != II_REAL_DTYPE) {
      for (int64_t i = 0; i < a->W; i++, at += a->C, dst += p->Dp)
        for (int64_t g = 0; g < groups; g++)
          if (p->D == 16)
            ii_row_in(II_BF16, a->x, at + g * 16, 16, dst + g * apart);
          else
            ii_row_in(II_BF16, a->x, at + g * p->D, p->D, dst + g * apart);
    } else if (p->D == II_VEC) {
      split_groups(dst, p->Dp, apart, x, a->C, groups, a->W, II_VEC);
    } else {
      split_groups(dst, p->Dp, apart, x, a->C, groups, a->W, p->D);
    }
  }
}

/* n values from each of `count` places `step` apart into one list. */
static inline __attribute__((always_inline)) void load_list(ii_dtype t, const void *src, int64_t at,
                                                            int64_t step, int64_t count, int64_t n,
                                                            real *dst) {
  for (int64_t i = 0; i < count; i++) {
    const real *v = ii_row_in(t, src, at + i * step, n, dst + i * n);
    if (v != dst + i * n) memcpy(dst + i * n, v, (size_t)n * sizeof(real));
  }
}

void II_FN(dcn_fetch)(const ii_dcn_plan *p, ii_dcn_work *w, int slot, const ii_dcn_chunk *c) {
  const ii_dcn_args *a = p->a;
  const int64_t row = (c->n * a->Ho + c->ho) * a->Wo + c->wo, count = c->count;
  int64_t off = ii_dcn_offset_at(a, row, c->g), mask = ii_dcn_mask_at(a, row, c->g);
  real *to_off = w->off_of[slot], *to_m = w->m_of[slot];
  if (p->K == 9 && a->om_dtype == II_REAL_DTYPE) { /* sizes known: two or three moves each */
    load_list(II_REAL_DTYPE, a->offset, off, a->offset_row, count, 18, to_off);
    load_list(II_REAL_DTYPE, a->mask, mask, a->mask_row, count, 9, to_m);
  } else if (p->K == 9) {
    load_list(II_BF16, a->offset, off, a->offset_row, count, 18, to_off);
    load_list(II_BF16, a->mask, mask, a->mask_row, count, 9, to_m);
  } else {
    load_list(a->om_dtype, a->offset, off, a->offset_row, count, p->K * 2, to_off);
    load_list(a->om_dtype, a->mask, mask, a->mask_row, count, p->K, to_m);
  }
  int64_t end = ii_dcn_padded(p, count);
  for (int64_t t = count * p->K; t < end; t++) {
    to_off[2 * t] = to_off[2 * t + 1] = (real)NAN; /* a tap without a sample */
    to_m[t] = 0;
  }
}

/* m = softmax(m) over the K taps of each pixel. */
static void softmax_taps(int64_t K, int64_t count, real *m) {
  for (int64_t i = 0; i < count; i++, m += K) {
    real max = m[0], sum = 0;
    for (int64_t k = 1; k < K; k++) max = m[k] > max ? m[k] : max;
    for (int64_t k = 0; k < K; k++) {
      m[k] = ii_exp(m[k] - max);
      sum += m[k];
    }
    for (int64_t k = 0; k < K; k++) m[k] /= sum;
  }
}

/* Positions, corner weights and slab pixels of `end` taps, whole blocks. The comparisons are false
 * for NaN, and what is converted to an integer lies within [-1, max(H,W)]. */
static void locate(const ii_dcn_plan *p, ii_dcn_work *w, const real *base_x, real base_y,
                   int64_t end) {
  const real scale = p->scale, H = (real)p->a->H, W = (real)p->a->W;
  const int32_t line = (int32_t)p->line, nowhere = ii_dcn_nowhere(p);
  const real *restrict off = w->off, *restrict bx = base_x, *restrict m = w->m;
  const real *restrict tx = p->tap_x, *restrict ty = p->tap_y;
  real *restrict cw = w->w, *restrict lx = w->lx, *restrict ly = w->ly;
  int32_t *restrict at = w->at;
#pragma omp simd
  for (int64_t t = 0; t < end; t++) {
    real x = (tx[t] + off[2 * t]) * scale + bx[t];
    real y = (ty[t] + off[2 * t + 1]) * scale + base_y, mt = m[t];
    int32_t in = -((int32_t)(x > -1) & (int32_t)(y > -1) & (int32_t)(x < W) & (int32_t)(y < H));
    x = x > -1 ? x : R(-1.0);
    y = y > -1 ? y : R(-1.0);
    x = x < W ? x : W;
    y = y < H ? y : H;
    mt = in ? mt : R(0.0);
    int32_t ix = (int32_t)x, iy = (int32_t)y;
    real fx = x - (real)ix, fy = y - (real)iy;
    int32_t left = fx < 0, up = fy < 0;
    ix -= left;
    iy -= up;
    fx += (real)left;
    fy += (real)up;
    real top = (1 - fy) * mt, bottom = fy * mt;
    lx[t] = fx;
    ly[t] = fy;
    at[t] = (((iy + 1) * line + ix + 1) & in) | (nowhere & ~in);
    cw[4 * t] = (1 - fx) * top;
    cw[4 * t + 1] = fx * top;
    cw[4 * t + 2] = (1 - fx) * bottom;
    cw[4 * t + 3] = fx * bottom;
  }
}

void II_FN(dcn_taps)(const ii_dcn_plan *p, ii_dcn_work *w, int slot, const ii_dcn_chunk *c) {
  const ii_dcn_args *a = p->a;
  int64_t half = ((int64_t)a->dil_h * (a->kh - 1)) >> 1;
  real base_y =
      (real)((double)(c->ho * a->stride_h - a->pad_h + half) - (double)half * a->offset_scale);
  w->off = w->off_of[slot];
  w->m = w->m_of[slot];
  if (a->softmax) softmax_taps(p->K, c->count, w->m);
  locate(p, w, p->base_x + c->wo * p->K, base_y, ii_dcn_padded(p, c->count));
}
