/* Deformable convolution on the CPU: what the forward and the backward kernel share.
 *
 * Work is done per image and block of groups. Each group's channels are copied into a slab: pixels
 * of Dp channels (D rounded up to whole vectors), with a border of zeros, so that every corner of
 * every tap is one load without a test. A block is as many groups as have their slabs in the
 * second-level cache: its groups take turns row by row, so that a row's offsets, modulations and
 * gradients, which lie side by side for all groups, come from memory once and in order. Slab row r
 * holds image row r-1; rows 0, H+1 and H+2 are zero, columns 0 and W+1 too. A tap without a sample
 * points at the first pixel of row H+1, where all four of its corners are zero.
 *
 * Output pixels are taken in chunks (a part of one row). For a chunk the taps are a flat list,
 * t = pixel*K + k, padded to whole blocks with taps without a sample: positions and weights are
 * computed with vectors over t, sampling with vectors over the channels. */
#ifndef II_CPU_DCN_H
#define II_CPU_DCN_H
#include "kernels/cpu/cpu.h"

#if defined(__AVX512F__)
#define II_VEC_BYTES 64
#elif defined(__AVX__) || defined(II_REAL_F64)
#define II_VEC_BYTES 32
#pragma GCC diagnostic ignored                                                                     \
    "-Wpsabi" /* such vectors are passed between inlined functions only */
#else
#define II_VEC_BYTES 16
#endif
#define II_VEC       ((int64_t)(II_VEC_BYTES / sizeof(real))) /* channels per vector */
#define II_TAP_BLOCK 16 /* taps per step of the loops over t */

/* A vector of channels at any address of a `real`. */
typedef real ii_vec __attribute__((vector_size(II_VEC_BYTES), aligned(sizeof(real)), may_alias));

/* One call's geometry and tables, shared by all threads. */
typedef struct {
  const ii_dcn_args *a;
  int64_t D, Dp, K;      /* channels per group, the same padded, taps */
  int64_t line, pixels;  /* slab: pixels per row, pixels in all */
  int64_t chunk, cap;    /* output pixels per chunk, taps per padded chunk */
  int64_t block, blocks; /* groups per block (the last one may be smaller), number of blocks */
  real scale;            /* offset_scale */
  real *base_x;          /* [Wo*K + block]: position of the pixel's window, x */
  real *tap_x, *tap_y;   /* [cap]: i*dil_w and j*dil_h of tap t%K */
  int32_t *pixel_of_tap; /* [cap]: t/K; 0 for padding */
} ii_dcn_plan;

/* One thread's working memory. */
typedef struct {
  real *slab;    /* [block][pixels*Dp]: x of a block of groups */
  real *gslab;   /* [block][pixels*Dp]: its gradient (backward) */
  real *rows;    /* [chunk*Dp]: y or gy when they cannot be used in place */
  /* offsets [cap*2] and modulations [cap] of this chunk and of the next one, which is fetched while
   * this one is worked on: the copies have left the store buffer when they are read as vectors */
  real *off_of[2], *m_of[2];
  real *off, *m; /* those of this chunk; m after softmax */
  real *w;       /* [cap*4]: modulation times bilinear weight of the corners TL TR BL BR */
  real *lx, *ly; /* [cap]: fractional positions */
  real *s;       /* [cap*4]: <gy, corner> (backward) */
  real *goff, *gm;
  int32_t *at;    /* [cap]: slab pixel of the top left corner */
  int64_t filled; /* n*blocks+b of the block in the slab; -1: none */
} ii_dcn_work;

/* Shared and per-thread memory from the engine's scratch slot 0, tables filled in. *work points to
 * k->threads entries inside it. max_block limits the groups per block. Returns 1 with k->error when
 * memory is exhausted. */
int II_FN(dcn_prepare)(ii_kctx *k, const ii_dcn_args *a, bool backward, int64_t max_block,
                       ii_dcn_plan *p, ii_dcn_work **work);

/* Clears the slab (its border stays zero afterwards); once per thread before the first fill. */
void II_FN(dcn_clear)(const ii_dcn_plan *p, ii_dcn_work *w);

/* Copies block b of image n into the slab unless it is there already. */
void II_FN(dcn_fill)(const ii_dcn_plan *p, ii_dcn_work *w, int64_t n, int64_t b);

/* Number of groups in block b. */
static inline int64_t ii_dcn_groups(const ii_dcn_plan *p, int64_t b) {
  int64_t left = p->a->G - b * p->block;
  return left < p->block ? left : p->block;
}

/* A chunk: `count` output pixels of group g from (n,ho,wo) on. */
typedef struct {
  int64_t n, g, ho, wo, count;
} ii_dcn_chunk;

/* Output rows [h0,h1) of block b of image n as chunks: the groups of the block take turns at each
 * part of a row. next: false after the last one. */
static inline ii_dcn_chunk ii_dcn_first(const ii_dcn_plan *p, int64_t n, int64_t b, int64_t h0) {
  int64_t Wo = p->a->Wo;
  return (ii_dcn_chunk){n, b * p->block, h0, 0, Wo < p->chunk ? Wo : p->chunk};
}
static inline bool ii_dcn_next(const ii_dcn_plan *p, int64_t b, int64_t h1, ii_dcn_chunk *c) {
  int64_t Wo = p->a->Wo;
  if (++c->g < b * p->block + ii_dcn_groups(p, b)) return true;
  c->g = b * p->block;
  c->wo += p->chunk;
  if (c->wo >= Wo) c->wo = 0, c->ho++;
  c->count = Wo - c->wo < p->chunk ? Wo - c->wo : p->chunk;
  return c->ho < h1;
}

/* Fetches a chunk's offsets and modulations into off_of[slot], m_of[slot]. */
void II_FN(dcn_fetch)(const ii_dcn_plan *p, ii_dcn_work *w, int slot, const ii_dcn_chunk *c);

/* Taps of the chunk that was fetched into slot: sets off and m, fills at, w, lx, ly. */
void II_FN(dcn_taps)(const ii_dcn_plan *p, ii_dcn_work *w, int slot, const ii_dcn_chunk *c);

/* Index of the first offset and of the first modulation of output pixel (n,ho,wo), group g. */
static inline int64_t ii_dcn_offset_at(const ii_dcn_args *a, int64_t row, int64_t g) {
  return row * a->offset_row + g * a->offset_group;
}
static inline int64_t ii_dcn_mask_at(const ii_dcn_args *a, int64_t row, int64_t g) {
  return row * a->mask_row + g * a->mask_group;
}

/* Taps of `count` pixels, rounded up to whole blocks. */
static inline int64_t ii_dcn_padded(const ii_dcn_plan *p, int64_t count) {
  return (count * p->K + II_TAP_BLOCK - 1) / II_TAP_BLOCK * II_TAP_BLOCK;
}

/* The slab pixel of a tap without a sample. */
static inline int32_t ii_dcn_nowhere(const ii_dcn_plan *p) {
  return (int32_t)((p->a->H + 1) * p->line);
}

#endif
