/* Depthwise convolution, k x k, stride 1, padding h = (k-1)/2, NHWC:
 *
 *   y[n,r,q,c]  = b[c] + sum_{i,j} x[n, r+i-h, q+j-h, c] w[c,i,j]
 *   gx[n,r,q,c] = sum_{i,j} gy[n, r+i-h, q+j-h, c] w[c, k-1-i, k-1-j]    (the same, w turned round)
 *   gw[c,i,j]   = sum_{n,r,q} gy[n,r,q,c] x[n, r+i-h, q+j-h, c],    gb[c] = sum gy[n,r,q,c]
 *
 * A thread owns a word of channels (4 bytes: 2 of a 16-bit type, 1 of fp32) and tiles of pixels,
 * one after another. It loads the tile's window at once, then goes through it row by row: each
 * number is widened once and added to the sums of all outputs that it belongs to. Weights are in
 * registers, for all tiles of the thread. Neighbouring threads are neighbouring words
 * (threadIdx.x), then neighbouring tiles (threadIdx.y), whose windows overlap in the first-level
 * cache.
 *
 * k = 3: gx, gw and gb are one pass, dwconv2d_gradients. Turned round, gw is a sum over the pixels
 * of x, gw[c,k-1-i,k-1-j] = sum x[n,r,q,c] gy[n, r+i-h, q+j-h, c], over the very window of gy that
 * gx needs. A thread keeps its sums over all of its tiles; a block adds those of its threads in
 * order, and a second kernel those of the blocks. The order follows from the shape and the number
 * of multiprocessors: two runs on one GPU give the same bits. Other k: gx alone, and
 * dwconv2d_grad.cu.
 *
 * Bytes moved, in tensors: forward 2, k = 3 backward 3 (gy, x, gx), the floor; k = 5, 7 backward 4.
 * Counts: docs/kernels.md, "Depthwise convolution". Registers: registers.txt.
 * Known limits: numbers outside the image are zeros that are multiplied, so next to the border an
 * infinite weight (in gw: an infinite gy) gives NaN. k other than 3, 5, 7, 7 in double precision,
 * and sizes beyond `tiled` take dwconv2d_any, one result per thread. 16-bit channels that are odd
 * in number or not on 4 bytes go one by one. */
#include "kernels/cuda/dwconv2d.h"
#include "kernels/cuda/flat.h"

namespace {

enum { THREADS = 128, COLUMNS = 4 /* of a tile */ };

/* Blocks that registers let a multiprocessor hold. */
template <typename R> struct resident { static constexpr int convolve = 5, gradients = 3; };
template <> struct resident<double> { static constexpr int convolve = 4, gradients = 2; };

/* Rows of a tile: as many as registers hold windows of. */
template <int K> struct rows_of { static constexpr int n = K == 7 ? 2 : 4; };

/* Sizes as the kernels see them: a vector of V channels is one word of memory. */
struct image {
  int64_t N;
  int H, W, C; /* C: words of a pixel */
};

/* V elements as they lie in memory, in one register where they have 4 bytes: as a struct of 16-bit
 * numbers nvcc takes them apart where two paths meet. */
template <int bytes> struct word_of;
template <> struct word_of<2> { typedef unsigned short type; };
template <> struct word_of<4> { typedef unsigned type; };
template <> struct word_of<8> { typedef uint2 type; };
template <typename T, int V> using word = typename word_of<sizeof(T) * V>::type;

/* ---- Tiles ------------------------------------------------------------------------------------*/

/* Tiles are numbered along rows of tiles, down the image, image by image. `step`: from one tile of
 * a thread to its next, as images, rows and columns of tiles. */
struct tiling {
  int down, across; /* tiles of an image */
  int step_row, step_column;
  int64_t N, step_image;
};
struct place {
  int64_t n;
  int row, column; /* of tiles */
};

__device__ __forceinline__ place first_tile(const tiling &t) {
  const unsigned at = blockIdx.x * blockDim.y + threadIdx.y, row = at / (unsigned)t.across;
  return {(int64_t)(row / (unsigned)t.down), (int)(row % (unsigned)t.down),
          (int)(at % (unsigned)t.across)};
}

__device__ __forceinline__ void next_tile(const tiling &t, place *p) {
  p->column += t.step_column;
  p->row += t.step_row;
  p->n += t.step_image;
  if (p->column >= t.across) p->column -= t.across, p->row++;
  if (p->row >= t.down) p->row -= t.down, p->n++;
}

/* v = the D x S pixels from (h,w) on, zeros outside. at: the place of (h,w) in memory, pitch: words
 * of a row of the image. */
template <int D, int S, typename W>
__device__ __forceinline__ void load_pixels(const W *at, int64_t pitch, const image &s, int h,
                                            int w, W (&v)[D][S]) {
  if (h >= 0 && w >= 0 && h + D <= s.H && w + S <= s.W) {
#pragma unroll
    for (int i = 0; i < D; i++, at += pitch)
#pragma unroll
      for (int j = 0; j < S; j++) v[i][j] = at[(unsigned)(j * s.C)];
    return;
  }
#pragma unroll
  for (int i = 0; i < D; i++, at += pitch) {
    const bool row = (unsigned)(h + i) < (unsigned)s.H;
#pragma unroll
    for (int j = 0; j < S; j++) {
      v[i][j] = W();
      if (row && (unsigned)(w + j) < (unsigned)s.W) v[i][j] = at[(unsigned)(j * s.C)];
    }
  }
}

template <typename T, int V, typename R>
__device__ __forceinline__ void widen(const word<T, V> &packed, R (&r)[V]) {
  ii_vec<T, V> v;
  memcpy(&v, &packed, sizeof v);
#pragma unroll
  for (int i = 0; i < V; i++) r[i] = (R)ii_up(v.v[i]);
}

/* weight[t] = tap t of the thread's channels (zeros behind C), turned round if `flip`. shared:
 * [taps][blockDim.x * V]. */
template <int V, int TAPS, typename R>
__device__ __forceinline__ void load_weights(const R *w, int64_t C, bool flip, R *shared,
                                             R (&weight)[TAPS][V]) {
  const int width = blockDim.x * V, own = threadIdx.x * V;
  const int64_t c0 = (int64_t)blockIdx.y * width;
  for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < width; c += blockDim.x * blockDim.y)
#pragma unroll
    for (int t = 0; t < TAPS; t++)
      shared[t * width + c] = c0 + c < C ? w[(c0 + c) * TAPS + (flip ? TAPS - 1 - t : t)] : R(0);
  __syncthreads();
#pragma unroll
  for (int t = 0; t < TAPS; t++)
#pragma unroll
    for (int i = 0; i < V; i++) weight[t][i] = shared[t * width + own + i];
}

/* `inside` of the S pixels at `at` = or += sum. */
template <typename T, int S, int V, typename R>
__device__ __forceinline__ void store_row(word<T, V> *at, int C, int inside, R (&sum)[S][V],
                                          bool accumulate) {
  if (inside >= S && !accumulate) {
#pragma unroll
    for (int j = 0; j < S; j++) ii_put<V>(reinterpret_cast<T *>(at + (unsigned)(j * C)), sum[j]);
    return;
  }
#pragma unroll
  for (int j = 0; j < S; j++)
    if (j < inside)
      ii_put_or_add<V>(reinterpret_cast<T *>(at + (unsigned)(j * C)), sum[j], accumulate);
}

/* ---- y, and gx alone --------------------------------------------------------------------------*/

template <typename T, typename R, int V, int K>
__global__ void __launch_bounds__(THREADS)
    dwconv2d_tiles(image s, tiling t, const T *x, const R *w, const R *b, T *y, bool flip,
                   bool accumulate) {
  constexpr int D = rows_of<K>::n, S = COLUMNS, HALF = (K - 1) / 2;
  II_SHARED(R, shared);
  R weight[K * K][V], bias[V];
  load_weights<V>(w, (int64_t)s.C * V, flip, shared, weight);
  const int c = blockIdx.y * blockDim.x + threadIdx.x; /* in words */
  if (c >= s.C) return;
#pragma unroll
  for (int i = 0; i < V; i++) bias[i] = b ? b[(int64_t)c * V + i] : R(0);
  const int64_t pitch = (int64_t)s.W * s.C;
  for (place p = first_tile(t); p.n < t.N; next_tile(t, &p)) {
    const int h = p.row * D, q = p.column * S;
    const int64_t own = ((p.n * s.H + h) * s.W + q) * s.C + c;
    word<T, V> v[D + K - 1][S + K - 1];
    load_pixels((const word<T, V> *)x + own - HALF * (pitch + s.C), pitch, s, h - HALF, q - HALF,
                v);
    word<T, V> *to = (word<T, V> *)y + own;
    R sum[D][S][V];
#pragma unroll
    for (int r = 0; r < D + K - 1; r++) { /* row r of the window counts for rows r-K+1..r of sums */
#pragma unroll
      for (int j = 0; j < S + K - 1; j++) {
        R up[V];
        widen<T, V>(v[r][j], up);
#pragma unroll
        for (int i = 0; i < D; i++)
#pragma unroll
          for (int o = 0; o < S; o++) {
            const int down = r - i, right = j - o;
            if (down < 0 || down >= K || right < 0 || right >= K) continue;
#pragma unroll
            for (int e = 0; e < V; e++)
              sum[i][o][e] =
                  (down + right ? sum[i][o][e] : bias[e]) + up[e] * weight[down * K + right][e];
          }
      }
      if (r >= K - 1)
        store_row<T>(to + (r - (K - 1)) * pitch, s.C, h + r - (K - 1) < s.H ? s.W - q : 0,
                     sum[r - (K - 1)], accumulate);
    }
  }
}

/* Any k: one result per thread. */
template <typename T, typename R>
__global__ void __launch_bounds__(THREADS)
    dwconv2d_any(int64_t N, int64_t H, int64_t W, int64_t C, int k, const T *x, const R *w,
                 const R *b, T *y, bool flip, bool accumulate) {
  const int64_t count = N * H * W * C, step = (int64_t)gridDim.x * THREADS;
  const int half = (k - 1) / 2, kk = k * k;
  for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < count; at += step) {
    const int64_t c = at % C, q = at / C % W, row = at / C / W, h = row % H;
    R sum[1] = {b ? b[c] : R(0)};
    for (int t = 0; t < kk; t++) {
      const int64_t r = t / k - half, p = t % k - half;
      if (h + r < 0 || h + r >= H || q + p < 0 || q + p >= W) continue;
      sum[0] += R(ii_up(x[at + (r * W + p) * C])) * w[c * kk + (flip ? kk - 1 - t : t)];
    }
    ii_put_or_add<1>(y + at, sum, accumulate);
  }
}

/* ---- gx, gw and gb ----------------------------------------------------------------------------*/

/* Adds acc of threadIdx.y = 1.. to that of 0, in order. */
template <int V, int N, typename R>
__device__ __forceinline__ void add_parts(R *shared, R (&acc)[N][V]) {
  const int width = blockDim.x * V, own = threadIdx.x * V;
  for (int y = 1; y < (int)blockDim.y; y++) {
    __syncthreads();
    if ((int)threadIdx.y == y)
#pragma unroll
      for (int j = 0; j < N; j++)
#pragma unroll
        for (int i = 0; i < V; i++) shared[j * width + own + i] = acc[j][i];
    __syncthreads();
    if (threadIdx.y == 0)
#pragma unroll
      for (int j = 0; j < N; j++)
#pragma unroll
        for (int i = 0; i < V; i++) acc[j][i] += shared[j * width + own + i];
  }
}

template <typename T, typename R, int V, int K>
__global__ void __launch_bounds__(THREADS, resident<R>::gradients)
    dwconv2d_gradients(image s, tiling t, const T *x, const T *gy, const R *w, T *gx, R *parts,
                       bool accumulate) {
  constexpr int D = rows_of<K>::n, S = COLUMNS, HALF = (K - 1) / 2, TAPS = K * K;
  II_SHARED(R, shared);
  R weight[TAPS][V], acc[TAPS + 1][V] = {}; /* the last: gb */
  load_weights<V>(w, (int64_t)s.C * V, true, shared, weight);
  const int c = blockIdx.y * blockDim.x + threadIdx.x; /* in words */
  const int64_t pitch = (int64_t)s.W * s.C;
  for (place p = first_tile(t); c < s.C && p.n < t.N; next_tile(t, &p)) {
    const int h = p.row * D, q = p.column * S;
    const int64_t own = ((p.n * s.H + h) * s.W + q) * s.C + c;
    word<T, V> v[D + K - 1][S + K - 1], a[D][S];
    load_pixels((const word<T, V> *)gy + own - HALF * (pitch + s.C), pitch, s, h - HALF, q - HALF,
                v);
    load_pixels((const word<T, V> *)x + own, pitch, s, h, q, a);
    word<T, V> *to = (word<T, V> *)gx + own;
    R sum[D][S][V] = {}, other[D][S][V];
#pragma unroll
    for (int r = 0; r < D + K - 1; r++) {
      if (r < D)
#pragma unroll
        for (int o = 0; o < S; o++) widen<T, V>(a[r][o], other[r][o]);
      /* Rows below the image are zeros, and their sums are not stored: maps of 14 and 7 rows end in
       * the middle of a tile. The forward needs more registers with such a branch. */
      const bool inside = h - HALF + r < s.H;
#pragma unroll
      for (int j = 0; j < S + K - 1 && inside; j++) {
        R up[V];
        widen<T, V>(v[r][j], up);
        if (r >= HALF && r < HALF + D && j >= HALF && j < HALF + S)
#pragma unroll
          for (int e = 0; e < V; e++) acc[TAPS][e] += up[e];
#pragma unroll
        for (int i = 0; i < D; i++)
#pragma unroll
          for (int o = 0; o < S; o++) {
            const int down = r - i, right = j - o;
            if (down < 0 || down >= K || right < 0 || right >= K) continue;
#pragma unroll
            for (int e = 0; e < V; e++) {
              sum[i][o][e] += up[e] * weight[down * K + right][e];
              acc[down * K + right][e] += up[e] * other[i][o][e];
            }
          }
      }
      if (gx && r >= K - 1)
        store_row<T>(to + (r - (K - 1)) * pitch, s.C, h + r - (K - 1) < s.H ? s.W - q : 0,
                     sum[r - (K - 1)], accumulate);
    }
  }
  add_parts<V, TAPS + 1>(shared, acc);
  if (threadIdx.y != 0 || c >= s.C) return;
  R *out = parts + ((int64_t)blockIdx.x * (TAPS + 1) * s.C + c) * V;
#pragma unroll
  for (int j = 0; j < TAPS; j++) ii_put<V>(out + (int64_t)(TAPS - 1 - j) * s.C * V, acc[j]);
  ii_put<V>(out + (int64_t)TAPS * s.C * V, acc[TAPS]);
}

/* ---- Launches ---------------------------------------------------------------------------------*/

/* How blocks share the work: `across` blocks of `lanes` words each, `depth` tiles at a time. */
struct division {
  unsigned lanes, depth, across, blocks;
  image s;
  tiling t;
};

/* The words of a pixel in equal blocks: the fewest idle threads, and 128 bytes where nothing else
 * is better. */
void divide_words(int64_t words, division *d) {
  static const unsigned choices[] = {32, 64, 48, 40, 56, 24, 16};
  d->lanes = 0;
  if (words < 16) d->lanes = (unsigned)words;
  for (unsigned lanes : choices) {
    if (words < 16) break;
    const int64_t depth = THREADS / lanes, across = ii_ceil_div(words, lanes);
    const int64_t best = d->lanes ? THREADS / d->lanes : 0;
    if (d->lanes == 0 || depth * ii_ceil_div(words, d->lanes) > best * across) d->lanes = lanes;
  }
  d->depth = THREADS / d->lanes;
  d->across = (unsigned)ii_ceil_div(words, d->lanes);
}

/* `rows`: of a tile; at_once: blocks a multiprocessor holds. One wave of blocks, each with the
 * same number of tiles as far as they go; few tiles are spread over more blocks. */
division divide(const ii_kctx *k, const ii_dwconv2d_args *a, int V, int rows, int at_once) {
  division d;
  divide_words(a->C / V, &d);
  d.s = {a->N, (int)a->H, (int)a->W, (int)(a->C / V)};
  d.t.down = (int)ii_ceil_div(a->H, rows);
  d.t.across = (int)ii_ceil_div(a->W, COLUMNS);
  d.t.N = a->N;
  const int64_t tiles = a->N * d.t.down * d.t.across, processors = ii_cuda_sm_count(k);
  while (d.depth > 1 && ii_ceil_div(tiles, d.depth) * d.across < 2 * processors)
    d.depth = (d.depth + 1) / 2;
  const int64_t turns = ii_ceil_div(tiles, d.depth);
  const int64_t most = ii_ceil_div(processors * at_once, d.across);
  d.blocks = (unsigned)(turns ? ii_ceil_div(turns, ii_ceil_div(turns, most)) : 0);
  const int64_t step = (int64_t)d.blocks * d.depth, step_rows = step / d.t.across;
  d.t.step_column = (int)(step % d.t.across);
  d.t.step_row = (int)(step_rows % d.t.down);
  d.t.step_image = step_rows / d.t.down;
  return d;
}

/* One of y = x * w + b and gx (+)= gy * turned w. */
struct pass {
  const void *x, *w, *b;
  void *y;
  bool flip, accumulate;
};

template <typename T, typename R, int V, int K>
int launch_tiles(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  const division d = divide(k, a, V, rows_of<K>::n, resident<R>::convolve);
  II_LAUNCH(k, (dwconv2d_tiles<T, R, V, K>), dim3(d.blocks, d.across), dim3(d.lanes, d.depth),
            K * K * d.lanes * V * sizeof(R), d.s, d.t, (const T *)p->x, (const R *)p->w,
            (const R *)p->b, (T *)p->y, p->flip, p->accumulate);
  return 0;
}

template <typename T, typename R>
int launch_any(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  const unsigned grid = ii_grid_for(k, a->N * a->H * a->W * a->C, THREADS);
  II_LAUNCH(k, (dwconv2d_any<T, R>), grid, THREADS, 0, a->N, a->H, a->W, a->C, a->k,
            (const T *)p->x, (const R *)p->w, (const R *)p->b, (T *)p->y, p->flip, p->accumulate);
  return 0;
}

/* Whether the kernels of tiles, which count in int, can take this call. */
bool tiled(const ii_dwconv2d_args *a) {
  return (a->k == 3 || a->k == 5 || (a->k == 7 && a->real != II_F64)) && a->H < INT32_MAX / 2 &&
         a->W < INT32_MAX / 2 && a->C <= 1 << 20;
}

template <typename T, typename R, int V>
int convolve(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  if (a->k == 3) return launch_tiles<T, R, V, 3>(k, a, p);
  if (a->k == 5) return launch_tiles<T, R, V, 5>(k, a, p);
  if constexpr (sizeof(R) == 4) return launch_tiles<T, R, V, 7>(k, a, p);
  return launch_any<T, R>(k, a, p);
}

/* Channels of a word. */
template <typename T> struct channels_of { static constexpr int n = sizeof(T) == 2 ? 2 : 1; };

template <typename T>
bool in_words(const ii_dwconv2d_args *a, const void *p, const void *q, const void *r) {
  constexpr int V = channels_of<T>::n;
  return a->C % V == 0 && ii_aligned<V>((const T *)p) && ii_aligned<V>((const T *)q) &&
         ii_aligned<V>((const T *)r);
}

int run_pass(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  if (a->N * a->H * a->W * a->C == 0) return 0;
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    if (!tiled(a)) return launch_any<T, R>(k, a, p);
    if (in_words<T>(a, p->x, p->y, NULL)) return convolve<T, R, channels_of<T>::n>(k, a, p);
    return convolve<T, R, 1>(k, a, p);
  })
  return 0;
}

template <typename T, typename R, int V>
int launch_gradients(ii_kctx *k, const ii_dwconv2d_args *a) {
  const division d = divide(k, a, V, rows_of<3>::n, resident<R>::gradients);
  const size_t part = (size_t)(10 * a->C) * sizeof(R);
  R *parts = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, d.blocks * part);
  if (!parts) return 1;
  II_LAUNCH(k, (dwconv2d_gradients<T, R, V, 3>), dim3(d.blocks, d.across), dim3(d.lanes, d.depth),
            10 * d.lanes * V * sizeof(R), d.s, d.t, (const T *)a->x, (const T *)a->gy,
            (const R *)a->w, (T *)a->gx, parts, a->acc_gx);
  return ii_dwconv2d_sum_parts(k, a, d.blocks, parts);
}

/* gx (which may be NULL), gw and gb in one pass. */
int run_gradients(ii_kctx *k, const ii_dwconv2d_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    if (in_words<T>(a, a->x, a->gy, a->gx)) return launch_gradients<T, R, channels_of<T>::n>(k, a);
    return launch_gradients<T, R, 1>(k, a);
  })
  return 0;
}

} // namespace

extern "C" int ii_cuda_dwconv2d_fwd(ii_kctx *k, const ii_dwconv2d_args *a) {
  const pass p = {a->x, a->w, a->b, a->y, false, false};
  return run_pass(k, a, &p);
}

extern "C" int ii_cuda_dwconv2d_bwd(ii_kctx *k, const ii_dwconv2d_args *a) {
  const bool weights = a->C > 0 && (a->gw || a->gb), empty = a->N * a->H * a->W * a->C == 0;
  if (weights && a->k == 3 && tiled(a) && !empty) return run_gradients(k, a);
  const pass p = {a->gy, a->w, NULL, a->gx, true, a->acc_gx};
  if (a->gx && run_pass(k, a, &p)) return 1;
  return weights && ii_dwconv2d_weight_gradients(k, a);
}
