/* Deformable convolution on the CPU: what the forward and the backward kernel share.
 *
 * Work is done per image and block of groups. A block's channels are copied into a slab: pixels of
 * `wide` = block*Dp channels (Dp is D rounded up to whole vectors), with a border of zeros, so that
 * every corner of every tap is one load without a test. A block is as many groups as have their
 * slab in the second-level cache, and the lines around one pixel in the first. `wide` may be a
 * little more, see CROWDED. Slab row r holds image row r-1; rows 0, H+1 and H+2 are zero, columns 0
 * and W+1 too. A tap without a sample points at the first pixel of row H+1, where all four of its
 * corners are zero.
 *
 * Output pixels are taken in chunks (a part of one row). For a chunk the taps are a flat list,
 * t = (pixel*block + group)*K + k, the order in which v3 has them in memory: where a chunk's
 * offsets and modulations lie side by side, they are read, and their gradients written, in place;
 * otherwise they are copied and the list is padded to whole steps with taps without a sample.
 * Positions and weights are computed with vectors over t, sampling with vectors over the channels.
 */
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
  int64_t D, Dp, K;       /* channels per group, the same padded, taps */
  int64_t line, pixels;   /* slab: pixels per row, pixels in all */
  int64_t block, blocks;  /* groups per block (a divisor of G), number of blocks */
  int64_t channels, list; /* per pixel and block: channels block*Dp, taps block*K */
  int64_t wide;           /* elements from a pixel to the next in the slab */
  int64_t chunk, cap;     /* output pixels per chunk, taps per padded chunk */
  real scale;             /* offset_scale */
  real *base_x;           /* [Wo*list + II_TAP_BLOCK]: position of the pixel's window, x */
  real *tap_x, *tap_y;    /* [cap]: i*dil_w and j*dil_h of a tap */
  int32_t *group_at;      /* [cap]: slab element of pixel (0,0) in a tap's group */
  int32_t *gy_at[2];      /* [cap]: where in gy a tap's channels start: in place, in rows */
} ii_dcn_plan;

/* A chunk's offsets and modulations: in place, or in lists. Whole II_TAP_BLOCKs: what does not fill
 * them is copied into lists and padded. */
typedef struct {
  const real *off, *m; /* [taps*2], [taps] */
  real *off_list, *m_list;
  int64_t taps;
  bool in_place;
} ii_dcn_slot;

/* One thread's working memory. */
typedef struct {
  real *slab;  /* [pixels*wide]: x of a block of groups */
  real *gslab; /* [pixels*wide]: its gradient (backward) */
  real *rows;  /* [chunk*channels]: y or gy when they cannot be used in place */
  /* This chunk and the next one, which is fetched while this one is worked on: copies have left
   * the store buffer when they are read as vectors. */
  ii_dcn_slot slot[2];
  real *w;       /* [4][cap]: modulation times bilinear weight of the corners TL TR BL BR */
  real *lx, *ly; /* [cap]: fractional positions */
  real *s;       /* [cap*4]: <gy, corner> (backward) */
  real *goff, *gm;
  int32_t *at;    /* [cap]: slab element of the top left corner */
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

/* A chunk: `count` output pixels of block b from (n,ho,wo) on. */
typedef struct {
  int64_t n, b, ho, wo, count;
} ii_dcn_chunk;

/* Output rows from h0 to h1 of block b of image n as chunks. next: false after the last one. */
static inline ii_dcn_chunk ii_dcn_first(const ii_dcn_plan *p, int64_t n, int64_t b, int64_t h0) {
  int64_t Wo = p->a->Wo;
  return (ii_dcn_chunk){n, b, h0, 0, Wo < p->chunk ? Wo : p->chunk};
}
static inline bool ii_dcn_next(const ii_dcn_plan *p, int64_t h1, ii_dcn_chunk *c) {
  int64_t Wo = p->a->Wo;
  c->wo += p->chunk;
  if (c->wo >= Wo) c->wo = 0, c->ho++;
  c->count = Wo - c->wo < p->chunk ? Wo - c->wo : p->chunk;
  return c->ho < h1;
}

/* Fetches a chunk's offsets and modulations. */
void II_FN(dcn_fetch)(const ii_dcn_plan *p, ii_dcn_slot *s, const ii_dcn_chunk *c);

/* Taps of a chunk that was fetched into s: fills at, w, lx, ly. */
void II_FN(dcn_taps)(const ii_dcn_plan *p, ii_dcn_work *w, const ii_dcn_slot *s,
                     const ii_dcn_chunk *c);

/* Index of the first offset and of the first modulation of output pixel (n,ho,wo), group g. */
static inline int64_t ii_dcn_offset_at(const ii_dcn_args *a, int64_t row, int64_t g) {
  return row * a->offset_row + g * a->offset_group;
}
static inline int64_t ii_dcn_mask_at(const ii_dcn_args *a, int64_t row, int64_t g) {
  return row * a->mask_row + g * a->mask_group;
}

/* n taps, rounded up to whole steps. */
static inline int64_t ii_dcn_padded(int64_t n) {
  return (n + II_TAP_BLOCK - 1) / II_TAP_BLOCK * II_TAP_BLOCK;
}

/* The slab element of a tap without a sample. */
static inline int32_t ii_dcn_nowhere(const ii_dcn_plan *p) {
  return (int32_t)((p->a->H + 1) * p->line * p->wide);
}

#endif
