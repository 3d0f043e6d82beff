/* Deformable convolution: geometry, the padded slab, and the positions and weights of the taps. */
#ifdef __AVX512F__ /* without this, loops over taps use half of a register */
#pragma GCC target("prefer-vector-width=512")
#endif
#include <math.h>
#include "kernels/cpu/dcn.h"
#include "kernels/cpu/fast_math.h"

/* At most this many taps per chunk, if possible: their arrays (some 100 bytes each, in backward)
 * and the lines of the slabs they touch stay in the first cache. Nine times a power of two, so that
 * 3 x 3 windows of 2, 4, 8... groups need no padding. */
#define CHUNK_TAPS 144

/* Slabs of one thread, together: most of a second-level cache of 2 MiB. With a smaller one, rows
 * above and below still stay in it. */
#define SLAB_BYTES (7 << 18)

/* Groups per block, at most: more would push each other's lines out of the first cache. */
#define MAX_BLOCK 32

/* Pixels a multiple of so many bytes apart would compete for few sets of the first cache (slower
 * by 10 % with 32 groups of 16); they are moved apart by one line more. */
#define CROWDED 1024

#ifdef II_REAL_F64
#define FLOOR __builtin_floor
#else
#define FLOOR __builtin_floorf
#endif

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
  p->base_x = take(m, p->a->Wo * p->list + II_TAP_BLOCK, sizeof(real));
  p->tap_x = take(m, p->cap, sizeof(real));
  p->tap_y = take(m, p->cap, sizeof(real));
  p->group_at = take(m, p->cap, sizeof(int32_t));
  for (int i = 0; i < 2; i++) p->gy_at[i] = take(m, p->cap, sizeof(int32_t));
  for (int i = 0; i < threads; i++) {
    ii_dcn_work t = {.filled = -1};
    t.slab = take(m, p->pixels * p->wide, sizeof(real));
    t.rows = take(m, p->chunk * p->channels, sizeof(real));
    for (int slot = 0; slot < 2; slot++) {
      t.slot[slot].off_list = take(m, p->cap * 2, sizeof(real));
      t.slot[slot].m_list = take(m, p->cap, sizeof(real));
    }
    t.w = take(m, p->cap * 4, sizeof(real));
    t.lx = take(m, p->cap, sizeof(real));
    t.ly = take(m, p->cap, sizeof(real));
    t.at = take(m, p->cap, sizeof(int32_t));
    if (backward) {
      t.gslab = take(m, p->pixels * p->wide, sizeof(real));
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
  int64_t K = p->K, half = ((int64_t)a->dil_w * (a->kw - 1)) >> 1, k = 0;
  for (int64_t wo = 0; wo < a->Wo; wo++)
    for (int64_t t = 0; t < p->list; t++)
      p->base_x[wo * p->list + t] =
          (real)((double)(wo * a->stride_w - a->pad_w + half) - (double)half * a->offset_scale);
  for (int64_t t = 0; t < II_TAP_BLOCK; t++) p->base_x[a->Wo * p->list + t] = 0;
  for (int i = 0; i < a->kw; i++)
    for (int j = 0; j < a->kh; j++) {
      if (a->remove_center && i == a->kw / 2 && j == a->kh / 2) continue;
      p->tap_x[k] = (real)((int64_t)i * a->dil_w);
      p->tap_y[k++] = (real)((int64_t)j * a->dil_h);
    }
  for (int64_t t = 0; t < p->cap; t++) {
    bool real_tap = t < p->chunk * p->list;
    int64_t unit = real_tap ? t / K : 0, pixel = unit / p->block, g = unit % p->block;
    p->tap_x[t] = K ? p->tap_x[t % K] : 0;
    p->tap_y[t] = K ? p->tap_y[t % K] : 0;
    p->group_at[t] = (int32_t)((p->line + 1) * p->wide + g * p->Dp);
    p->gy_at[0][t] = (int32_t)(pixel * a->C + g * p->D);
    p->gy_at[1][t] = (int32_t)(unit * p->Dp);
  }
}

/* Groups per block: see dcn.h; and there should be some four blocks for each thread. */
static void choose_blocks(ii_dcn_plan *p, int threads, bool backward, int64_t max_block) {
  int64_t bytes = (backward ? 2 : 1) * p->pixels * p->Dp * (int64_t)sizeof(real);
  int64_t fits = bytes > 0 ? SLAB_BYTES / bytes : 1, share = p->a->N * p->a->G / (4 * threads);
  p->block = fits < share ? fits : share;
  if (p->block > MAX_BLOCK) p->block = MAX_BLOCK;
  if (p->block > max_block) p->block = max_block;
  if (p->block > p->a->G) p->block = p->a->G;
  if (p->block < 1) p->block = 1;
  while (p->a->G % p->block) p->block--;
  p->blocks = p->a->G / p->block;
  p->channels = p->block * p->Dp;
  p->wide = p->channels;
  if (p->wide * (int64_t)sizeof(real) % CROWDED == 0) p->wide += 64 / (int64_t)sizeof(real);
  p->list = p->block * p->K;
}

int II_FN(dcn_prepare)(ii_kctx *k, const ii_dcn_args *a, bool backward, int64_t max_block,
                       ii_dcn_plan *p, ii_dcn_work **work) {
  *p = (ii_dcn_plan){.a = a, .D = a->C / a->G, .scale = (real)a->offset_scale};
  p->K = ii_dcn_taps(a->kh, a->kw, a->remove_center);
  p->Dp = (p->D + II_VEC - 1) / II_VEC * II_VEC;
  p->line = a->W + 2;
  p->pixels = p->line * (a->H + 3);
  if (p->pixels > INT32_MAX / (p->Dp + 16))
    return ii_kernel_error(k, "dcn: an image of %lld x %lld is too large; split it into tiles",
                           (long long)a->H, (long long)a->W);
  choose_blocks(p, k->threads, backward, max_block);
  p->chunk = p->list && p->list < CHUNK_TAPS ? CHUNK_TAPS / p->list : 1;
  int64_t chunks = (a->Wo + p->chunk - 1) / p->chunk; /* of equal length, if possible */
  p->chunk = a->Wo > 0 ? (a->Wo + chunks - 1) / chunks : 1;
  p->cap = ii_dcn_padded(p->chunk * p->list);
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
  memset(w->slab, 0, (size_t)(p->pixels * p->wide) * sizeof(real));
}

/* n values from at on as `real`, into dst. */
static inline __attribute__((always_inline)) void load(ii_dtype t, const void *src, int64_t at,
                                                       int64_t n, real *dst) {
  const real *v = ii_row_in(t, src, at, n, dst);
  if (v != dst) memcpy(dst, v, (size_t)n * sizeof(real));
}

void II_FN(dcn_fill)(const ii_dcn_plan *p, ii_dcn_work *w, int64_t n, int64_t b) {
  const ii_dcn_args *a = p->a;
  if (w->filled == n * p->blocks + b) return;
  w->filled = n * p->blocks + b;
  for (int64_t h = 0; h < a->H; h++) {
    real *dst = w->slab + ((h + 1) * p->line + 1) * p->wide;
    int64_t at = (n * a->H + h) * a->W * a->x_row + b * p->block * p->D;
    if (p->block == a->G && p->wide == a->x_row && a->x_row == a->C)
      load(a->x_dtype, a->x, at, a->W * a->C, dst);
    else if (p->D == p->Dp)
      for (int64_t i = 0; i < a->W; i++)
        load(a->x_dtype, a->x, at + i * a->x_row, p->channels, dst + i * p->wide);
    else
      for (int64_t i = 0; i < a->W; i++)
        for (int64_t g = 0; g < p->block; g++)
          load(a->x_dtype, a->x, at + i * a->x_row + g * p->D, p->D, dst + i * p->wide + g * p->Dp);
  }
}

/* n values from each of groups places, of each of count pixels, into one list. */
static inline __attribute__((always_inline)) void load_list(ii_dtype t, const void *src, int64_t at,
                                                            int64_t row, int64_t count,
                                                            int64_t group, int64_t groups,
                                                            int64_t n, real *dst) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t g = 0; g < groups; g++, dst += n) load(t, src, at + i * row + g * group, n, dst);
}

/* The same; places side by side are taken together. */
static void load_lists(ii_dtype t, const void *src, int64_t at, int64_t row, int64_t count,
                       int64_t group, int64_t groups, int64_t n, real *dst) {
  if (group == n || groups == 1) {
    n *= groups;
    groups = 1;
    if (row == n) n *= count, count = 1;
  }
  if (n == 18) /* sizes known: two or three moves each */
    load_list(t, src, at, row, count, group, groups, 18, dst);
  else if (n == 9)
    load_list(t, src, at, row, count, group, groups, 9, dst);
  else
    load_list(t, src, at, row, count, group, groups, n, dst);
}

void II_FN(dcn_fetch)(const ii_dcn_plan *p, ii_dcn_slot *s, const ii_dcn_chunk *c) {
  const ii_dcn_args *a = p->a;
  const int64_t row = (c->n * a->Ho + c->ho) * a->Wo + c->wo, g = c->b * p->block, K = p->K;
  int64_t off = ii_dcn_offset_at(a, row, g), mask = ii_dcn_mask_at(a, row, g);
  s->taps = c->count * p->list;
  bool side_by_side = (p->block == 1 || (a->offset_group == 2 * K && a->mask_group == K)) &&
                      (c->count == 1 || (a->offset_row == 2 * p->list && a->mask_row == p->list));
  s->in_place = side_by_side && a->om_dtype == II_REAL_DTYPE && s->taps % II_TAP_BLOCK == 0;
  if (s->in_place) {
    s->off = (const real *)a->offset + off;
    s->m = (const real *)a->mask + mask;
    if (a->softmax) s->m = memcpy(s->m_list, s->m, (size_t)s->taps * sizeof(real));
    return;
  }
  s->off = s->off_list;
  s->m = s->m_list;
  load_lists(a->om_dtype, a->offset, off, a->offset_row, c->count, a->offset_group, p->block, 2 * K,
             s->off_list);
  load_lists(a->om_dtype, a->mask, mask, a->mask_row, c->count, a->mask_group, p->block, K,
             s->m_list);
  for (; s->taps < ii_dcn_padded(c->count * p->list); s->taps++) {
    s->off_list[2 * s->taps] = s->off_list[2 * s->taps + 1] = (real)NAN; /* without a sample */
    s->m_list[s->taps] = 0;
  }
}

/* m = softmax(m) over the K taps of each of `count` pixels and groups. */
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

/* Positions, corner weights and slab places of a chunk's taps. The comparisons are false for NaN,
 * and what is converted to an integer lies within [-1, max(H,W)]. */
static void locate(const ii_dcn_plan *p, ii_dcn_work *w, const ii_dcn_slot *s, const real *base_x,
                   real base_y) {
  const real scale = p->scale, H = (real)p->a->H, W = (real)p->a->W;
  const int32_t line = (int32_t)p->line, wide = (int32_t)p->wide, nowhere = ii_dcn_nowhere(p);
  const real *restrict off = s->off, *restrict bx = base_x, *restrict m = s->m;
  const real *restrict tx = p->tap_x, *restrict ty = p->tap_y;
  const int32_t *restrict group_at = p->group_at;
  real *restrict tl = w->w, *restrict tr = tl + p->cap, *restrict bl = tr + p->cap;
  real *restrict br = bl + p->cap, *restrict lx = w->lx, *restrict ly = w->ly;
  int32_t *restrict at = w->at;
#pragma omp simd
  for (int64_t t = 0; t < s->taps; t++) {
    real x = (tx[t] + off[2 * t]) * scale + bx[t];
    real y = (ty[t] + off[2 * t + 1]) * scale + base_y, mt = m[t];
    int32_t in = -((int32_t)(x > -1) & (int32_t)(y > -1) & (int32_t)(x < W) & (int32_t)(y < H));
    x = x > -1 ? x : R(-1.0);
    y = y > -1 ? y : R(-1.0);
    x = x < W ? x : W;
    y = y < H ? y : H;
    mt = in ? mt : R(0.0);
    real left = FLOOR(x), up = FLOOR(y), fx = x - left, fy = y - up;
    int32_t ix = (int32_t)left, iy = (int32_t)up;
    real top = (1 - fy) * mt, bottom = fy * mt;
    /* what is not `in` may not fit into 31 bits here, and is not used */
    uint32_t place = (uint32_t)(iy * line + ix) * (uint32_t)wide + (uint32_t)group_at[t];
    lx[t] = fx;
    ly[t] = fy;
    at[t] = ((int32_t)place & in) | (nowhere & ~in);
    tl[t] = (1 - fx) * top;
    tr[t] = fx * top;
    bl[t] = (1 - fx) * bottom;
    br[t] = fx * bottom;
  }
}

void II_FN(dcn_taps)(const ii_dcn_plan *p, ii_dcn_work *w, const ii_dcn_slot *s,
                     const ii_dcn_chunk *c) {
  const ii_dcn_args *a = p->a;
  int64_t half = ((int64_t)a->dil_h * (a->kh - 1)) >> 1;
  real base_y =
      (real)((double)(c->ho * a->stride_h - a->pad_h + half) - (double)half * a->offset_scale);
  if (a->softmax) softmax_taps(p->K, c->count * p->block, s->m_list);
  locate(p, w, s, p->base_x + c->wo * p->list, base_y);
}
