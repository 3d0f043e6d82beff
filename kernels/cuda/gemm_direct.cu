/* Matrix products where cuBLASLt has no algorithm: c[M,N] (+)= alpha op(a) op(b) + bias, one matrix
 * or a stack. Any sizes, any alignment, every combination of types of gemm.cu.
 *
 * Mapping: a block of 256 threads owns tiles of 32 x 32 results, one after another; a thread has 4
 * rows of one column. 32 x 32 numbers of each operand at a time lie in shared memory, widened, read
 * along whichever of their dimensions is contiguous. Sums in fp32 (double for double), in the order
 * of k, rounded once.
 *
 * Bytes moved: each operand once per 32 rows or columns of the result. It is for shapes that a
 * library refuses, not for speed: no tensor cores, one element per access. */
#include "kernels/cuda/gpu.h"

namespace {

enum { TILE = 32, THREADS = 256, EACH = TILE * TILE / THREADS };

/* Element (i,k) of a matrix of a stack is at i*row + k*column. */
struct operand {
  int64_t row, column, matrix;
};
struct product {
  int64_t M, N, K;
  operand a, b;
  bool accumulate;
};

/* tile[i][k] = m[i0 + i, k0 + k], zeros outside [rows, columns). */
template <typename T, typename R>
__device__ __forceinline__ void load(const operand &o, const T *m, int64_t i0, int64_t k0,
                                     int64_t rows, int64_t columns, R (&tile)[TILE][TILE + 1]) {
  const bool along = o.column == 1;
  for (int e = threadIdx.x; e < TILE * TILE; e += THREADS) {
    const int i = along ? e / TILE : e % TILE, k = along ? e % TILE : e / TILE;
    const bool there = i0 + i < rows && k0 + k < columns;
    tile[i][k] = there ? R(ii_up(m[(i0 + i) * o.row + (k0 + k) * o.column])) : R(0);
  }
}

/* bias[N] may be NULL. blockIdx.y: the matrix of the stack. */
template <typename T, typename C>
__global__ void __launch_bounds__(THREADS)
    gemm_direct(product p, ii_real_of<T> alpha, const T *a, const T *b, const ii_real_of<T> *bias,
                C *c) {
  typedef ii_real_of<T> R;
  __shared__ R left[TILE][TILE + 1], right[TILE][TILE + 1];
  const int column = threadIdx.x % TILE, row = threadIdx.x / TILE * EACH;
  const int64_t across = (p.N + TILE - 1) / TILE, tiles = (p.M + TILE - 1) / TILE * across;
  a += blockIdx.y * p.a.matrix;
  b += blockIdx.y * p.b.matrix;
  c += blockIdx.y * p.M * p.N;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t i0 = tile / across * TILE, j0 = tile % across * TILE, j = j0 + column;
    R sum[EACH] = {};
    for (int64_t k0 = 0; k0 < p.K; k0 += TILE) {
      __syncthreads();
      load(p.a, a, i0, k0, p.M, p.K, left);
      load(p.b, b, k0, j0, p.K, p.N, right);
      __syncthreads();
      for (int k = 0; k < TILE; k++)
#pragma unroll
        for (int i = 0; i < EACH; i++) sum[i] += left[row + i][k] * right[k][column];
    }
    if (j >= p.N) continue;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      if (i0 + row + i >= p.M) continue;
      C *to = c + (i0 + row + i) * p.N + j;
      R v = alpha * sum[i] + (bias ? bias[j] : R(0));
      if (p.accumulate) v += ii_up(*to);
      *to = ii_down<C>(v);
    }
  }
}

template <typename T, typename C> int run(ii_kctx *k, const ii_cuda_gemm_args *g) {
  product p = {};
  p.M = g->M;
  p.N = g->N;
  p.K = g->K;
  p.a = {g->trans_a ? 1 : g->K, g->trans_a ? g->M : 1, g->M * g->K};
  p.b = {g->trans_b ? 1 : g->N, g->trans_b ? g->K : 1, g->K * g->N};
  p.accumulate = g->accumulate;
  const int64_t tiles = ii_ceil_div(g->M, TILE) * ii_ceil_div(g->N, TILE);
  const int64_t most = (int64_t)ii_cuda_sm_count(k) * 32;
  const dim3 grid((unsigned)(tiles < most ? tiles : most), (unsigned)g->batch);
  II_LAUNCH(k, (gemm_direct<T, C>), grid, THREADS, 0, p, (ii_real_of<T>)g->alpha, (const T *)g->a,
            (const T *)g->b, (const ii_real_of<T> *)g->bias, (C *)g->c);
  return 0;
}

} // namespace

int ii_cuda_gemm_direct(ii_kctx *k, const ii_cuda_gemm_args *g) {
  II_WITH_TYPE(k, g->ab_dtype, T, {
    if constexpr (sizeof(T) == 2) {
      if (g->c_dtype == II_F32) return run<T, float>(k, g);
    }
    return run<T, T>(k, g);
  })
}
