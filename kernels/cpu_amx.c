/* Gradients of weights, c = a^T b in fp32 from bf16 a[K,M] and b[K,N], on AMX. One instruction
 * multiplies a tile of 16 columns of a and 32 terms with one of 16 columns of b, both as 16 x 16
 * pairs of neighbouring terms (a's with the columns down, b's with the pairs down), and adds to
 * 16 x 16 sums in fp32. Operands are packed into tiles, zeros where they end: b's by interleaving
 * rows, a's are transposed as well. c^T is computed where that makes a the narrower one.
 *
 * c is cut into blocks, and the terms of a long product with few results into slices, which are
 * added afterwards. A task computes one block over one slice, packing what it needs; the panels are
 * small enough for the second-level cache. Reading the operands bounds it: they come from memory or
 * from a cache that is shared, 64 bytes at a time from many rows, and are asked for ahead of time.
 */
#include "kernels/cpu_amx.h"
#include "kernels/cpu_onednn.h"

/* clang until 15 has the second name. */
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__AVX512BW__)
#include <cpuid.h>
#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
  SIDE = 16,        /* columns of a tile, and pairs of terms */
  TERMS = 2 * SIDE, /* terms of a tile */
  TILE = SIDE * TERMS,
  SUMS = SIDE * SIDE,
  PIECE = 256,  /* terms that are packed at a time */
  SLICE = 2048, /* terms of a slice at least */
  MAX_SLICES = 16,
  MOST_SUMS = 1 << 23, /* of several slices of c, all together: 32 MiB */
  DOWN = 16,           /* tiles of a block of c at most: 512 KiB */
  ACROSS = 32,
  PACKED = (DOWN + ACROSS) * SIDE * PIECE,
  BF16_BIT = 1 << 22, /* of cpuid 7, edx */
  TILE_BIT = 1 << 24,
  ASK_PERMISSION = 0x1023, /* arch_prctl(ARCH_REQ_XCOMP_PERM, tile data) */
  TILE_DATA = 18
};

bool ii_amx_available(void) {
  unsigned a, b, c, d; /* not every compiler's __builtin_cpu_supports knows AMX */
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16_BIT) && (d & TILE_BIT) &&
         syscall(SYS_arch_prctl, ASK_PERMISSION, TILE_DATA) == 0;
}

/* All eight tile registers of this thread: 16 rows of 64 bytes. */
static void tiles_open(void) {
  struct {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    config.row_bytes[i] = 2 * TERMS;
    config.rows[i] = SIDE;
  }
  __asm__ volatile("" ::"r"(&config) : "memory"); /* all of it is read */
  _tile_loadconfig(&config);
}

static int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
/* Tiles that n columns take: an even number. */
static int64_t tile_pairs(int64_t n) {
  return ceil_div(n, 2 * SIDE) * 2;
}

/* ---- packing ---- */

/* Transposes 16 x 16 numbers of 32 bits: 4 x 4 inside the quarters, then the quarters. */
static inline void transpose(__m512i r[SIDE]) {
  __m512i t[SIDE];
  for (int i = 0; i < SIDE; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < SIDE; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int j = 0; j < 4; j++) {
    t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
    t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
    t[j + 8] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
    t[j + 12] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
  }
  for (int j = 0; j < 4; j++) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    r[j + 4] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0x88);
    r[j + 12] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0xdd);
  }
}

typedef struct {
  const uint16_t *p; /* [terms,columns] */
  int64_t terms, columns;
} operand;

/* Two tiles, 32 terms from t on of 32 columns from c on, the pairs down. The same columns of the 32
 * terms behind them are asked for: the hardware does not see so many rows coming. */
static inline void interleave(const operand *o, int64_t t, int64_t c, uint16_t *out) {
  const __m512i quarters = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const int64_t columns = min_of(2 * SIDE, o->columns - c), terms = o->terms - t;
  const __mmask32 some = columns == 2 * SIDE ? ~0u : (1u << columns) - 1;
  const uint16_t *p = o->p + t * o->columns + c;
  for (int64_t i = 0; i < SIDE; i++, p += 2 * o->columns) {
    __m512i even = _mm512_setzero_si512(), odd = even;
    if (2 * i + TERMS < terms) {
      _mm_prefetch((const char *)(p + TERMS * o->columns), _MM_HINT_T0);
      _mm_prefetch((const char *)(p + (TERMS + 1) * o->columns), _MM_HINT_T0);
    }
    if (2 * i < terms) even = _mm512_maskz_loadu_epi16(some, p);
    if (2 * i + 1 < terms) odd = _mm512_maskz_loadu_epi16(some, p + o->columns);
    even = _mm512_permutexvar_epi64(quarters, even);
    odd = _mm512_permutexvar_epi64(quarters, odd);
    _mm512_store_si512(out + i * TERMS, _mm512_unpacklo_epi16(even, odd));
    _mm512_store_si512(out + TILE + i * TERMS, _mm512_unpackhi_epi16(even, odd));
  }
}

/* Packs `pairs` times 32 columns from `column` on, `tiles` times 32 terms from `term` on:
 * out[pair][tile][2], transposed for a; goes through the operand row by row. */
static void pack(const operand *o, bool transposed, int64_t column, int64_t pairs, int64_t term,
                 int64_t tiles, uint16_t *out) {
  __m512i r[SIDE];
  for (int64_t t = 0; t < tiles; t++)
    for (int64_t i = 0; i < pairs; i++) {
      uint16_t *two = out + (i * tiles + t) * 2 * TILE;
      interleave(o, term + t * TERMS, column + i * 2 * SIDE, two);
      for (int tile = 0; tile < 2 && transposed; tile++) {
        uint16_t *one = two + tile * TILE;
        for (int j = 0; j < SIDE; j++) r[j] = _mm512_load_si512(one + j * TERMS);
        transpose(r);
        for (int j = 0; j < SIDE; j++) _mm512_store_si512(one + j * TERMS, r[j]);
      }
    }
}

/* ---- multiplying ---- */

/* sums[2][2], 16 x 16 each, `down` between the rows of them: += (or = with first) the product of 32
 * columns of a and 32 of b, packed in `tiles` tiles each. The compiler does not know that these
 * instructions read and write memory. */
static inline void multiply_tiles(const uint16_t *a, const uint16_t *b, int64_t tiles, bool first,
                                  float *sums, int64_t down) {
  __asm__ volatile("" ::: "memory");
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + SUMS, 64);
    _tile_loadd(2, sums + down, 64);
    _tile_loadd(3, sums + down + SUMS, 64);
  }
  for (int64_t i = 0; i < tiles; i++, a += 2 * TILE, b += 2 * TILE) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + TILE, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + TILE, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + SUMS, 64);
  _tile_stored(2, sums + down, 64);
  _tile_stored(3, sums + down + SUMS, 64);
  __asm__ volatile("" ::: "memory");
}

/* ---- blocks ---- */

typedef struct {
  int64_t down, across;             /* of c or c^T, in tiles */
  int64_t block_down, block_across; /* of a block */
  int64_t blocks_across, blocks;
  int64_t slices, slice; /* slice: terms of one */
  bool transposed;
} product_plan;

typedef struct {
  int64_t i, j, down, across; /* corner and sides, in tiles */
} block;

/* The slices, on which the order of a sum depends, follow from the sizes alone. The blocks do not
 * matter to it: they are made small enough that every thread has some. */
static product_plan plan_of(const operand *a, const operand *b, bool transposed, int threads) {
  product_plan p = {.down = tile_pairs(a->columns),
                    .across = tile_pairs(b->columns),
                    .block_down = DOWN,
                    .block_across = ACROSS,
                    .transposed = transposed};
  const int64_t fit = MOST_SUMS / SUMS / p.down / p.across;
  p.slices = min_of(ceil_div(a->terms, SLICE), fit > MAX_SLICES ? MAX_SLICES : fit > 1 ? fit : 1);
  p.slice = ceil_div(ceil_div(a->terms, p.slices), TERMS) * TERMS;
  p.slices = ceil_div(a->terms, p.slice);
  for (;;) {
    p.block_down = min_of(p.block_down, p.down);
    p.block_across = min_of(p.block_across, p.across);
    p.blocks_across = ceil_div(p.across, p.block_across);
    p.blocks = ceil_div(p.down, p.block_down) * p.blocks_across;
    const bool enough = threads == 1 || p.blocks * p.slices >= 2 * threads;
    if (enough || p.block_down + p.block_across == 4) return p;
    if (p.block_across >= p.block_down)
      p.block_across = tile_pairs(p.block_across * SIDE / 2);
    else
      p.block_down = tile_pairs(p.block_down * SIDE / 2);
  }
}

static block block_of(const product_plan *p, int64_t number) {
  block b = {.i = number / p->blocks_across * p->block_down,
             .j = number % p->blocks_across * p->block_across};
  b.down = min_of(p->block_down, p->down - b.i);
  b.across = min_of(p->block_across, p->across - b.j);
  return b;
}

/* sums[down][across] of a block over a slice, a piece of the terms at a time; packed: for both
 * operands. */
static void block_sums(const product_plan *p, const block *at, int64_t slice, const operand *a,
                       const operand *b, uint16_t *packed, float *sums) {
  const int64_t begin = slice * p->slice, end = min_of(begin + p->slice, a->terms);
  uint16_t *packed_b = packed + DOWN * SIDE * PIECE;
  for (int64_t t = begin; t < end; t += PIECE) {
    const int64_t tiles = ceil_div(min_of(PIECE, end - t), TERMS);
    pack(a, true, at->i * SIDE, at->down / 2, t, tiles, packed);
    pack(b, false, at->j * SIDE, at->across / 2, t, tiles, packed_b);
    for (int64_t j = 0; j < at->across; j += 2)
      for (int64_t i = 0; i < at->down; i += 2)
        multiply_tiles(packed + i * tiles * TILE, packed_b + j * tiles * TILE, tiles, t == begin,
                       sums + (i * at->across + j) * SUMS, at->across * SUMS);
  }
}

/* Tile (i, j) of c or c^T: the sum over the slices, `apart` floats apart. */
static void tile_out(const ii_gemm_args *g, const product_plan *p, int64_t i, int64_t j,
                     const float *sums, int64_t apart) {
  __m512i r[SIDE];
  for (int row = 0; row < SIDE; row++) {
    __m512 sum = _mm512_load_ps(sums + row * SIDE);
    for (int64_t s = 1; s < p->slices; s++)
      sum = _mm512_add_ps(sum, _mm512_load_ps(sums + s * apart + row * SIDE));
    r[row] = _mm512_castps_si512(sum);
  }
  if (p->transposed) transpose(r);
  const int64_t m = (p->transposed ? j : i) * SIDE, n = (p->transposed ? i : j) * SIDE;
  const int64_t rows = min_of(SIDE, g->M - m), columns = min_of(SIDE, g->N - n);
  if (columns <= 0) return;
  const __mmask16 some = (__mmask16)((1u << columns) - 1);
  for (int64_t row = 0; row < rows; row++) {
    float *c = (float *)g->c + (m + row) * g->N + n;
    __m512 v = _mm512_castsi512_ps(r[row]);
    if (g->accumulate) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(some, c));
    _mm512_mask_storeu_ps(c, some, v);
  }
}

/* With one slice a thread has room for one block of sums and stores it; else there is room for all
 * of them, sums[block][slice], and they are added when all are there. */
static int multiply(ii_kctx *k, const ii_gemm_args *g, const operand *a, const operand *b,
                    bool transposed) {
  const product_plan p = plan_of(a, b, transposed, k->threads);
  const int64_t size = p.block_down * p.block_across * SUMS;
  const bool whole = p.slices == 1;
  const int64_t room = (whole ? k->threads : p.blocks * p.slices) * size;
  const size_t bytes = (size_t)room * sizeof(float) + (size_t)k->threads * PACKED * sizeof *a->p;
  float *all = ii_cpu_scratch(k, II_SLOT_LIBRARY, bytes);
  if (!all) return 1;
#pragma omp parallel num_threads(k->threads)
  {
    const int64_t thread = omp_get_thread_num();
    uint16_t *packed = (uint16_t *)(all + room) + thread * PACKED;
    tiles_open();
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < p.blocks * p.slices; t++) {
      const block at = block_of(&p, t / p.slices);
      float *sums = all + (whole ? thread : t) * size;
      block_sums(&p, &at, t % p.slices, a, b, packed, sums);
      for (int64_t i = 0; whole && i < at.down * at.across; i++)
        tile_out(g, &p, at.i + i / at.across, at.j + i % at.across, sums + i * SUMS, size);
    }
    _tile_release();
    for (int64_t n = 0; !whole && n < p.blocks; n++) {
      const block at = block_of(&p, n);
      const float *sums = all + n * p.slices * size;
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < at.down * at.across; i++)
        tile_out(g, &p, at.i + i / at.across, at.j + i % at.across, sums + i * SUMS, size);
    }
  }
  return 0;
}

bool ii_amx_serves(const ii_gemm_args *g) {
  const bool types = g->ab_dtype == II_BF16 && g->c_dtype == II_F32;
  return types && g->trans_a && !g->trans_b && !g->stacked && !g->bias && g->alpha == 1.0f &&
         g->K >= TERMS;
}

int ii_amx_gemm(ii_kctx *k, const ii_gemm_args *g) {
  const operand a = {g->a, g->K, g->M}, b = {g->b, g->K, g->N};
  return g->M <= g->N ? multiply(k, g, &a, &b, false) : multiply(k, g, &b, &a, true);
}

#else

bool ii_amx_available(void) {
  return false;
}
bool ii_amx_serves(const ii_gemm_args *g) {
  return false;
}
int ii_amx_gemm(ii_kctx *k, const ii_gemm_args *g) {
  return ii_kernel_error(k, "this program was built for processors without AMX");
}

#endif
