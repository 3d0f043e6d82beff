/* Column sums: out[n] (+)= sum over r of x[rows,n][r], the gradient of a bias.
 *
 * Two stages, both in a fixed order. First: a block of 256 threads sums a piece of the rows for a
 * strip of columns; `lanes` (a power of two up to 32) neighbouring threads read V columns each, 16
 * bytes where alignment and n allow, 256/lanes rows at a time; their sums meet in shared memory by
 * halving. Second: 8 threads per column add up the pieces. Short matrices need one piece and no
 * second stage. The order depends on rows, n, type and alignment alone.
 *
 * Bytes moved: x once, pieces*n sums (at most 1/16 of the rows) written and read.
 * Limits: pieces <= MAX_PIECES (grid.y); columns are limited by grid.x only. */
#include "kernels/cuda/gpu.h"

namespace {

enum {
  THREADS = 256,
  MAX_PIECES = 256,
  LEAST_STEPS = 16, /* rows per thread under which more blocks do not pay */
  STRIP = 32        /* columns per block of the second stage */
};

template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    sum_pieces(int64_t rows, int64_t n, int64_t piece, int lanes, const T *x, ii_real_of<T> *out,
               bool accumulate) {
  typedef ii_real_of<T> R;
  __shared__ R sums[V * THREADS];
  const int t = threadIdx.x;
  const int64_t col = ((int64_t)blockIdx.x * lanes + t % lanes) * V;
  const int64_t begin = (int64_t)blockIdx.y * piece;
  const int64_t end = begin + piece < rows ? begin + piece : rows;
  R sum[V];
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] = R(0);
  if (col < n) {
    const int step = THREADS / lanes;
#pragma unroll 4
    for (int64_t r = begin + t / lanes; r < end; r += step) {
      const ii_vec<T, V> in = ii_load<V>(x + r * n + col);
#pragma unroll
      for (int v = 0; v < V; v++) sum[v] += ii_up(in.v[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < V; v++) sums[v * THREADS + t] = sum[v];
  for (int half = THREADS / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (t < half) {
#pragma unroll
      for (int v = 0; v < V; v++) sums[v * THREADS + t] += sums[v * THREADS + t + half];
    }
  }
  if (t >= lanes || col >= n) return; /* the last halving was this thread's own */
  R *to = out + (int64_t)blockIdx.y * n + col;
#pragma unroll
  for (int v = 0; v < V; v++) to[v] = (accumulate ? to[v] : R(0)) + sums[v * THREADS + t];
}

template <typename R>
__global__ void __launch_bounds__(THREADS)
    add_pieces(int64_t n, int pieces, const R *partial, R *out, bool accumulate) {
  __shared__ R sums[THREADS];
  const int t = threadIdx.x;
  const int64_t col = (int64_t)blockIdx.x * STRIP + t % STRIP;
  R sum = R(0);
  if (col < n) {
#pragma unroll 4
    for (int p = t / STRIP; p < pieces; p += THREADS / STRIP) sum += partial[p * n + col];
  }
  sums[t] = sum;
  for (int half = THREADS / 2; half >= STRIP; half /= 2) {
    __syncthreads();
    if (t < half) sums[t] += sums[t + half];
  }
  if (t >= STRIP || col >= n) return;
  out[col] = (accumulate ? out[col] : R(0)) + sums[t];
}

template <typename T, int V>
int column_sums(ii_kctx *k, int64_t rows, int64_t n, const T *x, ii_real_of<T> *out,
                bool accumulate) {
  typedef ii_real_of<T> R;
  const int64_t vectors = ii_ceil_div(n, V);
  int lanes = 1;
  while (lanes < 32 && lanes < vectors) lanes *= 2;
  const int step = THREADS / lanes;
  int64_t piece = ii_ceil_div(ii_ceil_div(rows, MAX_PIECES), step) * step;
  if (piece < LEAST_STEPS * step) piece = LEAST_STEPS * step;
  const int64_t pieces = rows > piece ? ii_ceil_div(rows, piece) : 1;
  R *partial = out;
  if (pieces > 1) {
    partial = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, (size_t)(pieces * n) * sizeof(R));
    if (!partial) return 1;
  }
  const dim3 grid((unsigned)ii_ceil_div(vectors, lanes), (unsigned)pieces);
  II_LAUNCH(k, (sum_pieces<T, V>), grid, THREADS, 0, rows, n, piece, lanes, x, partial,
            accumulate && pieces == 1);
  if (pieces == 1) return 0;
  II_LAUNCH(k, (add_pieces<R>), (unsigned)ii_ceil_div(n, STRIP), THREADS, 0, n, (int)pieces,
            (const R *)partial, out, accumulate);
  return 0;
}

template <typename T>
int choose_width(ii_kctx *k, int64_t rows, int64_t n, const void *x, void *out, bool accumulate) {
  constexpr int V = ii_wide<T>::n;
  const T *in = (const T *)x;
  ii_real_of<T> *to = (ii_real_of<T> *)out;
  if (n % V == 0 && ii_aligned<V>(in)) return column_sums<T, V>(k, rows, n, in, to, accumulate);
  return column_sums<T, 1>(k, rows, n, in, to, accumulate);
}

} // namespace

int ii_cuda_column_sums(ii_kctx *k, ii_dtype real, ii_dtype x_dtype, int64_t rows, int64_t n,
                        const void *x, void *out, bool accumulate) {
  if (n <= 0) return 0;
  if (real != ii_dtype_real(x_dtype))
    return ii_cuda_error(k, "column sums of %s are not computed in %s", ii_dtype_name(x_dtype),
                         ii_dtype_name(real));
  II_WITH_TYPE(k, x_dtype, T, return choose_width<T>(k, rows, n, x, out, accumulate));
  return 0;
}
