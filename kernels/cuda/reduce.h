/* What the kernels with sums have in common: types of a call, vectors in the accumulator's type,
 * rows shared by neighbouring threads, sums over the columns of a matrix, the normal distribution.
 *
 * Rows. A row of C elements belongs to `lanes` neighbouring threads: 8, 16 or 32 lanes of a warp,
 * several rows in a block, or a whole block. A thread holds up to II_HELD bytes of its row in
 * registers, as N vectors of V elements; vector i of lane l is number i*lanes + l of the row.
 * Rows that are longer (8192 in fp32), or not aligned for vectors, take kernels with V = 1 and
 * N = 0, which read memory again where the others read registers.
 *
 * Columns. A matrix is cut into chunks of rows. A block adds up the rows of a chunk, column by
 * column; the sums of the chunks are added in order by a second kernel (no atomics, so the same
 * result every time). Threads of a block are `height` rows of `width` vectors, neighbours in memory
 * as in the block. */
#ifndef II_REDUCE_H
#define II_REDUCE_H
#include <math.h>
#include "kernels/cuda/flat.h"

/* ---- Types of a call --------------------------------------------------------------------------*/

#define II_PAIR_CASE(dx, TX, dy, TY, X, Y, ...)                                                    \
  case (dx)*II_DTYPE_COUNT + (dy): {                                                               \
    typedef TX X;                                                                                  \
    typedef TY Y;                                                                                  \
    __VA_ARGS__;                                                                                   \
    break;                                                                                         \
  }
/* Runs the statements with X and Y standing for the types of two activations of one call. Ends the
 * enclosing function with an error where kernels.h does not allow the combination. */
#define II_WITH_PAIR(k, real, x_dtype, y_dtype, X, Y, ...)                                         \
  if (((real) == II_F64) != ((x_dtype) == II_F64))                                                 \
    return ii_cuda_error(k, "%s: no kernel for type %s with real %s", __func__,                    \
                         ii_dtype_name(x_dtype), ii_dtype_name(real));                             \
  switch ((int)(x_dtype)*II_DTYPE_COUNT + (int)(y_dtype)) {                                        \
    II_PAIR_CASE(II_F32, float, II_F32, float, X, Y, __VA_ARGS__)                                  \
    II_PAIR_CASE(II_F32, float, II_F16, ii_f16, X, Y, __VA_ARGS__)                                 \
    II_PAIR_CASE(II_F32, float, II_BF16, ii_bf16, X, Y, __VA_ARGS__)                               \
    II_PAIR_CASE(II_F16, ii_f16, II_F32, float, X, Y, __VA_ARGS__)                                 \
    II_PAIR_CASE(II_F16, ii_f16, II_F16, ii_f16, X, Y, __VA_ARGS__)                                \
    II_PAIR_CASE(II_BF16, ii_bf16, II_F32, float, X, Y, __VA_ARGS__)                               \
    II_PAIR_CASE(II_BF16, ii_bf16, II_BF16, ii_bf16, X, Y, __VA_ARGS__)                            \
    II_PAIR_CASE(II_F64, double, II_F64, double, X, Y, __VA_ARGS__)                                \
  default:                                                                                         \
    return ii_cuda_error(k, "%s: no kernel for types %s and %s", __func__, ii_dtype_name(x_dtype), \
                         ii_dtype_name(y_dtype));                                                  \
  }

/* Elements that make 16 bytes in the wider of two types. */
template <typename X, typename Y> struct ii_pair_wide {
  static constexpr int n = 16 / (int)(sizeof(X) > sizeof(Y) ? sizeof(X) : sizeof(Y));
};

static __device__ __forceinline__ float ii_exp(float x) {
  return expf(x);
}
static __device__ __forceinline__ double ii_exp(double x) {
  return exp(x);
}
static __device__ __forceinline__ float ii_log(float x) {
  return logf(x);
}
static __device__ __forceinline__ double ii_log(double x) {
  return log(x);
}
static __device__ __forceinline__ float ii_sqrt(float x) {
  return sqrtf(x);
}
static __device__ __forceinline__ double ii_sqrt(double x) {
  return sqrt(x);
}

/* ---- Rows -------------------------------------------------------------------------------------*/

enum { II_ROW_THREADS = 256, II_HELD = 64 };
/* How rows are held by R. */
template <typename R, int V> struct ii_held {
  static constexpr int n = II_HELD / ((int)sizeof(R) * V); /* vectors of a thread */
};
template <typename R> struct ii_row_block { /* threads, at most: more leave too few registers */
  static constexpr int most = sizeof(R) == 4 ? 512 : 256;
};

typedef struct {
  int lanes;   /* threads of a row */
  int threads; /* of a block; a multiple of lanes and of 32 */
  unsigned blocks;
} ii_rows;

/* Rows of `length` elements for a kernel that accumulates in R with vectors of V, `held` of them
 * per thread (0: any length). */
template <typename R, int V, int held>
static inline ii_rows ii_rows_for(const ii_kctx *k, int64_t rows, int64_t length) {
  const int64_t vecs = ii_ceil_div(length, V);
  ii_rows s = {32, II_ROW_THREADS, 0};
  if (held > 0 && vecs > 32 * held) {
    s.lanes = s.threads = 32 * (int)ii_ceil_div(vecs, 32 * held);
  } else if (held == 0 && vecs > 2048) {
    s.lanes = s.threads = ii_row_block<R>::most;
  } else {
    for (int lanes = 32; lanes >= 8;
         lanes /= 2) { /* the fewest idle lanes, then the fewest lanes */
      const int64_t steps = ii_ceil_div(vecs, lanes);
      if (held > 0 && steps > held) break;
      if (steps * lanes <= ii_ceil_div(vecs, s.lanes) * s.lanes) s.lanes = lanes;
    }
  }
  const int64_t blocks = ii_ceil_div(rows, s.threads / s.lanes);
  const int64_t limit = (int64_t)ii_cuda_sm_count(k) * 32;
  s.blocks = (unsigned)(blocks < limit ? blocks : limit);
  return s;
}

/* Columns are counted in int inside kernels. */
static inline bool ii_row_length_ok(ii_kctx *k, const char *op, int64_t length) {
  if (length <= INT32_MAX / 2) return true;
  ii_cuda_error(k, "%s: rows of %lld elements, at most %d are supported", op, (long long)length,
                INT32_MAX / 2);
  return false;
}

/* Whether rows of `length` can be held in registers. */
template <typename R, int V> static inline bool ii_rows_held(int64_t length) {
  return length % V == 0 && length / V <= ii_held<R, V>::n * ii_row_block<R>::most;
}

/* Vectors of a row per thread: N where rows are held, a constant to unroll. */
template <int V, int N> __device__ __forceinline__ int ii_row_steps(int C, int lanes) {
  return N > 0 ? N : (C + lanes * V - 1) / (lanes * V);
}

/* Sum over the threads of a row; all threads of the block take part, each gets the result of its
 * own row. shared: room for 32 values, which may be used again right after. */
template <typename R> __device__ __forceinline__ R ii_row_sum(R a, int lanes, R *shared) {
  if (lanes > 32) return ii_block_sum(a, shared);
  for (int m = lanes / 2; m > 0; m /= 2) a += __shfl_xor_sync(II_FULL_MASK, a, m);
  return a;
}

template <typename R> __device__ __forceinline__ R ii_row_max(R a, int lanes, R *shared) {
  for (int m = (lanes < 32 ? lanes : 32) / 2; m > 0; m /= 2) {
    const R o = __shfl_xor_sync(II_FULL_MASK, a, m);
    a = o > a ? o : a;
  }
  if (lanes <= 32) return a;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = lanes / 32;
  __syncthreads();
  if (lane == 0) shared[warp] = a;
  __syncthreads();
  return ii_lanes_max<32>(shared[lane < warps ? lane : 0]);
}

/* Launch bounds name one block per multiprocessor, or ptxas spills registers to make room for more.
 */

/* ---- Columns ----------------------------------------------------------------------------------*/

enum { II_COLUMN_THREADS = 256 };

typedef struct {
  int64_t rows, vecs; /* of the matrix; a row is vecs vectors */
  int width, height;  /* of a block, width * height <= II_COLUMN_THREADS */
  int64_t chunk_rows; /* rows of a block */
  unsigned tiles, chunks;
} ii_columns;

static inline ii_columns ii_columns_for(const ii_kctx *k, int64_t rows, int64_t vecs) {
  ii_columns s = {rows, vecs, 1, 1, 0, 0, 0};
  if (vecs == 0) return s;
  const int64_t tiles = ii_ceil_div(vecs, II_COLUMN_THREADS);
  s.tiles = (unsigned)tiles;
  s.width = (int)ii_ceil_div(vecs, tiles);
  s.height = II_COLUMN_THREADS / s.width;
  const int64_t most = ii_ceil_div((int64_t)ii_cuda_sm_count(k) * 8, tiles);
  const int64_t want = ii_ceil_div(rows, 8 * s.height), chunks = want < most ? want : most;
  if (rows == 0) return s;
  s.chunk_rows = ii_ceil_div(rows, chunks);
  s.chunks = (unsigned)ii_ceil_div(rows, s.chunk_rows);
  return s;
}

/* blockDim.y of the kernels that add up the parts, 32 columns by so many parts at once. */
static inline unsigned ii_parts_at_once(int64_t parts) {
  unsigned h = 1;
  while (h < 32 && h < parts) h *= 2;
  return h;
}

/* Where the sums of Q quantities go; NULLs are skipped. */
template <typename R> struct ii_column_out {
  R *out[2];
  bool accumulate[2];
  R *means; /* [Q, C]: the sums times `scale` */
  R scale;
};

namespace {

/* f.add(r, c, acc) adds V columns of row r, from column c on, to acc[Q][V] (and may write what it
 * computes on the way); a thread asks for increasing r. partial[chunks, Q, C], or NULL when the
 * sums are not wanted. */
template <typename F, typename R, int Q, int V>
__global__ void __launch_bounds__(II_COLUMN_THREADS, 1)
    ii_column_partials(F f, ii_columns s, R *partial) {
  __shared__ R shared[II_COLUMN_THREADS * V];
  const int tx = threadIdx.x % s.width, ty = threadIdx.x / s.width;
  const int64_t vec0 = (int64_t)blockIdx.x * s.width, vec = vec0 + tx;
  const int64_t first = blockIdx.y * s.chunk_rows, end = first + s.chunk_rows;
  const int64_t last = end < s.rows ? end : s.rows;
  R acc[Q][V] = {};
  if (ty < s.height && vec < s.vecs)
    for (int64_t r = first + ty; r < last; r += s.height) f.add(r, vec * V, acc);
  if (!partial) return;
  const int64_t C = s.vecs * V, left = (s.vecs - vec0) * V;
  const int columns = (int)(left < s.width * V ? left : s.width * V);
#pragma unroll
  for (int q = 0; q < Q; q++) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < V; j++) shared[threadIdx.x * V + j] = acc[q][j];
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += II_COLUMN_THREADS) {
      R sum = shared[i];
      for (int h = 1; h < s.height; h++) sum += shared[h * s.width * V + i];
      partial[((int64_t)blockIdx.y * Q + q) * C + vec0 * V + i] = sum;
    }
  }
}

/* Adds the partial sums [parts, width] in order: blocks of 32 columns, blockDim.y parts at a time.
 * Column i is quantity i / C. */
template <typename R>
__global__ void __launch_bounds__(1024)
    ii_column_finish(const R *partial, int64_t parts, int64_t width, int64_t C,
                     ii_column_out<R> o) {
  __shared__ R shared[1024];
  const int64_t i = (int64_t)blockIdx.x * 32 + threadIdx.x;
  R sum = R(0);
  if (i < width)
    for (int64_t p = threadIdx.y; p < parts; p += blockDim.y) sum += partial[p * width + i];
  shared[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || i >= width) return;
  for (int h = 1; h < (int)blockDim.y; h++) sum += shared[h * 32 + threadIdx.x];
  const bool second = i >= C;
  const int64_t c = second ? i - C : i;
  R *out = second ? o.out[1] : o.out[0];
  const bool accumulate = second ? o.accumulate[1] : o.accumulate[0];
  if (o.means) o.means[i] = sum * o.scale;
  if (out) out[c] = (accumulate ? out[c] : R(0)) + sum;
}

/* The second stage: partial[parts, quantities, C] (quantities 1 or 2). */
template <typename R>
int ii_finish_columns(ii_kctx *k, const R *partial, int64_t parts, int quantities, int64_t C,
                      const ii_column_out<R> &o) {
  const int64_t width = quantities * C;
  II_LAUNCH(k, ii_column_finish<R>, (unsigned)ii_ceil_div(width, 32),
            dim3(32, ii_parts_at_once(parts)), 0, partial, parts, width, C, o);
  return 0;
}

/* Both stages, for a functor with Q quantities; `sums` false: f only writes. C > 0. */
template <typename R, int Q, int V, typename F>
int ii_sum_columns(ii_kctx *k, const F &f, int64_t rows, int64_t C, bool sums,
                   const ii_column_out<R> &o) {
  const ii_columns s = ii_columns_for(k, rows, C / V);
  R *partial = NULL;
  if (sums) {
    partial = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, (s.chunks + 1) * Q * (size_t)C * sizeof(R));
    if (!partial) return 1;
  }
  if (s.chunks > 0)
    II_LAUNCH(k, (ii_column_partials<F, R, Q, V>), dim3(s.tiles, s.chunks), II_COLUMN_THREADS, 0, f,
              s, partial);
  return sums ? ii_finish_columns<R>(k, partial, s.chunks, Q, C, o) : 0;
}

/* f.run<V>(i, c, n) for every V neighbouring elements of images[n, rows, C]: i the place of the
 * first, c its column. size: rows * C; the threads of a row of blocks advance by `step` elements,
 * which is step_c columns. */
template <int V, typename F>
__global__ void __launch_bounds__(II_COLUMN_THREADS, 1)
    ii_column_map(F f, int64_t images, int64_t size, int64_t C, int64_t step, int64_t step_c) {
  const int64_t first = ((int64_t)blockIdx.x * II_COLUMN_THREADS + threadIdx.x) * V;
  const int64_t first_c = first % C;
  for (int64_t n = blockIdx.y; n < images; n += gridDim.y) {
    int64_t c = first_c;
    for (int64_t i = first; i < size; i += step) {
      f.template run<V>(n * size + i, c, n);
      c += step_c;
      if (c >= C) c -= C;
    }
  }
}

template <int V, typename F>
int ii_run_columns(ii_kctx *k, const F &f, int64_t images, int64_t rows, int64_t C) {
  const int64_t size = rows * C, wide = ii_ceil_div(size / V, II_COLUMN_THREADS);
  const int64_t most = (int64_t)ii_cuda_sm_count(k) * 32, high = images < 65535 ? images : 65535;
  const int64_t each = ii_ceil_div(most, high), blocks = wide < each ? wide : each;
  const int64_t step = blocks * II_COLUMN_THREADS * V;
  II_LAUNCH(k, (ii_column_map<V, F>), dim3((unsigned)blocks, (unsigned)high), II_COLUMN_THREADS, 0,
            f, images, size, C, step, step % C);
  return 0;
}

} // namespace

#endif
