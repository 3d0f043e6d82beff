/* Blocked fp64 product: each thread takes tiles of c, copies the blocks of a and b that a tile
 * needs into contiguous panels, and runs a register-tiled loop over them. */
#include <omp.h>
#include <string.h>
#include "kernels/cpu_gemm64.h"
#include "kernels/cpu_onednn.h"

enum {
  LANES = 8,                  /* doubles of one vector value */
  MR = 6,                     /* rows of the register tile */
  NR = 2 * LANES,             /* columns of the register tile */
  TILE_M = 8 * MR,            /* rows of c per tile */
  TILE_N = 6 * NR,            /* columns of c per tile */
  BLOCK_K = 256,              /* depth of a panel: both panels stay in the second-level cache */
  PANEL_A = TILE_M * BLOCK_K, /* doubles */
  PANEL_B = TILE_N * BLOCK_K
};

typedef double vec __attribute__((vector_size(LANES * sizeof(double)), aligned(8)));

typedef struct {
  const double *p;
  int64_t row, col; /* strides */
} view;

static int64_t min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* panel[strip][k][width] = the strips of `width` lines of v, zero beyond `lines`. */
static void pack(double *panel, view v, int64_t lines, int64_t depth, int width) {
  for (int64_t first = 0; first < lines; first += width, panel += depth * width) {
    int64_t n = min64(width, lines - first);
    const double *src = v.p + first * v.row;
    for (int64_t k = 0; k < depth; k++)
      for (int i = 0; i < width; i++)
        panel[k * width + i] = i < n ? src[i * v.row + k * v.col] : 0.0;
  }
}

/* acc[MR][NR] = the product of one strip of a and one of b. */
static void register_tile(const double *restrict a, const double *restrict b, int64_t depth,
                          double *restrict acc) {
  vec s[MR][2];
  memset(s, 0, sizeof s);
  for (int64_t k = 0; k < depth; k++, a += MR, b += NR) {
    vec b0 = *(const vec *)b, b1 = *(const vec *)(b + LANES);
#pragma GCC unroll 6
    for (int i = 0; i < MR; i++) {
      s[i][0] += a[i] * b0;
      s[i][1] += a[i] * b1;
    }
  }
  memcpy(acc, s, sizeof s);
}

/* c tile (+)= alpha * panels; the first block of K also decides about bias and old contents. */
static void multiply_panels(const ii_gemm64_args *g, double *c, const double *bias,
                            const double *pa, const double *pb, int64_t m, int64_t n, int64_t depth,
                            bool first) {
  double acc[MR * NR];
  for (int64_t j = 0; j < n; j += NR)
    for (int64_t i = 0; i < m; i += MR) {
      register_tile(pa + i * depth, pb + j * depth, depth, acc);
      for (int64_t y = 0; y < min64(MR, m - i); y++) {
        double *out = c + (i + y) * g->N + j;
        for (int64_t x = 0; x < min64(NR, n - j); x++) {
          double old = first && !g->accumulate ? 0.0 : out[x];
          if (first && bias) old += bias[j + x];
          out[x] = old + g->alpha * acc[y * NR + x];
        }
      }
    }
}

/* The tile of c whose first element is (i, j) of product number `item`. */
static void compute_tile(const ii_gemm64_args *g, int64_t item, int64_t i, int64_t j,
                         double *panels) {
  int64_t m = min64(TILE_M, g->M - i), n = min64(TILE_N, g->N - j);
  view a = {g->a + item * g->M * g->K, g->trans_a ? 1 : g->K, g->trans_a ? g->M : 1};
  view b = {g->b + item * g->K * g->N, g->trans_b ? g->K : 1, g->trans_b ? 1 : g->N};
  double *c = g->c + (item * g->M + i) * g->N + j;
  const double *bias = g->bias ? g->bias + j : NULL;
  int64_t k = 0;
  do { /* once even if K is 0: bias and zeros are still to be written */
    int64_t depth = min64(BLOCK_K, g->K - k);
    view ak = {a.p + i * a.row + k * a.col, a.row, a.col};
    view bk = {b.p + j * b.row + k * b.col, b.row, b.col};
    pack(panels, ak, m, depth, MR);
    pack(panels + PANEL_A, bk, n, depth, NR);
    multiply_panels(g, c, bias, panels, panels + PANEL_A, m, n, depth, k == 0);
    k += BLOCK_K;
  } while (k < g->K);
}

int ii_cpu_gemm64(ii_kctx *k, const ii_gemm64_args *g) {
  if (g->batch == 0 || g->M == 0 || g->N == 0) return 0;
  int64_t tiles_m = (g->M + TILE_M - 1) / TILE_M, tiles_n = (g->N + TILE_N - 1) / TILE_N;
  int64_t tiles = g->batch * tiles_m * tiles_n;
  size_t each = (PANEL_A + PANEL_B) * sizeof(double);
  double *panels = ii_cpu_scratch(k, II_SLOT_LIBRARY, (size_t)k->threads * each);
  if (!panels) return 1;
#pragma omp parallel for num_threads(k->threads) schedule(static) if (tiles > 1)
  for (int64_t t = 0; t < tiles; t++) {
    int64_t j = t % tiles_n, i = t / tiles_n % tiles_m, item = t / tiles_n / tiles_m;
    double *mine = panels + (size_t)omp_get_thread_num() * (PANEL_A + PANEL_B);
    compute_tile(g, item, i * TILE_M, j * TILE_N, mine);
  }
  return 0;
}
