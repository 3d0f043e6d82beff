/* Depthwise convolution, k x k, stride 1, padding h = (k-1)/2, NHWC:
 *
 *   y[n,r,q,c]  = b[c] + sum_{i,j} x[n, r+i-h, q+j-h, c] w[c,i,j]
 *   gx[n,r,q,c] = sum_{i,j} gy[n, r+i-h, q+j-h, c] w[c, k-1-i, k-1-j]    (the same, w turned round)
 *   gw[c,i,j]   = sum_{n,r,q} gy[n,r,q,c] x[n, r+i-h, q+j-h, c],    gb[c] = sum gy[n,r,q,c]
 *
 * y and gx: a thread owns V channels (16 bytes) of TILE neighbouring pixels of a row ("a strip").
 * Per row of the window it keeps the k weights in registers and walks over the TILE+k-1 pixels
 * once, adding each to the sums it belongs to. The weights of a block's channels lie in shared
 * memory as [k*k][channels], R. Strips are numbered so that ROWS rows under each other are
 * neighbours in a block: their windows overlap in the first-level cache.
 *
 * gw, gb: a block has some channels, the k rows of the window (threadIdx.y) and S strips at a time
 * (threadIdx.z) of a contiguous range of all strips; a thread sums k x V products in registers over
 * its strips. The S parts are added in order in shared memory, the ranges' parts by a second
 * kernel, in an order given by the shape alone: two runs give the same bits.
 *
 * Bytes moved: forward reads x and writes y once, 2 tensors; with b, gx and the weights' gradients
 * the floor is 3 tensors (read gy and x, write gx) where we read gy twice: 4. Everything else hits
 * the caches: of a 16-bit tensor a thread of k = 3 loads 18 pieces for 4 outputs. Registers on
 * sm_90: see registers.txt.
 * Known limits: k other than 3, 5, 7 goes one element per thread. Sizes that 16 bytes do not
 * divide, and misaligned pointers, go one channel per thread. */
#include "kernels/cuda/flat.h"

namespace {

enum {
  TILE = 4,      /* pixels of a strip */
  ROWS = 4,      /* rows of neighbouring strips */
  LANES = 16,    /* most vectors of channels in a block */
  THREADS = 128, /* forward and gx */
  GRAD_THREADS = 256,
  GRAD_DEPTH = 16,   /* most strips at a time; their parts are added one by one */
  GRAD_BLOCKS = 512, /* about so many blocks share the sums of gw and gb */
  GRAD_STRIPS = 16,  /* strips a thread sums at least, where there are as many */
  SUM_LANES = 8
};

struct image {
  int64_t N, H, W, C;
};

/* ---- y and gx ---------------------------------------------------------------------------------*/

/* tile[t][width] = weights of channels c0.. (zeros behind C); flip: turned round. */
template <typename R>
__device__ __forceinline__ void load_weights(const R *w, int64_t c0, int64_t C, int width, int kk,
                                             bool flip, R *tile) {
  const int threads = blockDim.x * blockDim.y;
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width * kk; i += threads) {
    const int t = i / width, c = i % width;
    tile[i] = c0 + c < C ? w[(c0 + c) * kk + (flip ? kk - 1 - t : t)] : R(0);
  }
}

/* sum[o] += window row at `row` (pixel w0 - half first) times the k weights of that row. */
template <int V, int K, typename R, typename T>
__device__ __forceinline__ void add_row(const T *row, int64_t w0, int64_t W, int64_t C,
                                        const R *tile, int width, R (&sum)[TILE][V]) {
  R weight[K][V];
#pragma unroll
  for (int j = 0; j < K; j++)
#pragma unroll
    for (int i = 0; i < V; i++) weight[j][i] = tile[j * width + i];
#pragma unroll
  for (int p = 0; p < TILE + K - 1; p++) {
    const int64_t q = w0 + p - (K - 1) / 2;
    if (q < 0 || q >= W) continue;
    R v[V];
    ii_get<V>(row + q * C, v);
#pragma unroll
    for (int o = 0; o < TILE; o++) {
      const int j = p - o;
      if (j < 0 || j >= K) continue;
#pragma unroll
      for (int i = 0; i < V; i++) sum[o][i] += v[i] * weight[j][i];
    }
  }
}

template <typename T, typename R, int V, int K>
__global__ void __launch_bounds__(THREADS)
    dwconv2d_strips(image s, const T *x, const R *w, const R *b, T *y, bool flip, bool accumulate) {
  II_SHARED(R, tile);
  const int width = blockDim.x * V;
  const int64_t c0 = (int64_t)blockIdx.y * width, c = c0 + threadIdx.x * V;
  load_weights(w, c0, s.C, width, K * K, flip, tile);
  __syncthreads();
  if (c >= s.C) return;
  const int64_t across = (s.W + TILE - 1) / TILE, down = (s.H + ROWS - 1) / ROWS;
  const int64_t strips = s.N * down * across * ROWS, step = (int64_t)gridDim.x * blockDim.y;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; at < strips; at += step) {
    const int64_t w0 = at / ROWS % across * TILE, block = at / ROWS / across;
    const int64_t h = block % down * ROWS + at % ROWS, n = block / down;
    if (h >= s.H) continue;
    R sum[TILE][V];
#pragma unroll
    for (int o = 0; o < TILE; o++)
#pragma unroll
      for (int i = 0; i < V; i++) sum[o][i] = b ? b[c + i] : R(0);
#pragma unroll 1
    for (int i = 0; i < K; i++) {
      const int64_t r = h + i - (K - 1) / 2;
      if (r < 0 || r >= s.H) continue;
      add_row<V, K>(x + (n * s.H + r) * s.W * s.C + c, w0, s.W, s.C,
                    tile + i * K * width + threadIdx.x * V, width, sum);
    }
    T *out = y + ((n * s.H + h) * s.W + w0) * s.C + c;
#pragma unroll
    for (int o = 0; o < TILE; o++)
      if (w0 + o < s.W) ii_put_or_add<V>(out + o * s.C, sum[o], accumulate);
  }
}

/* Any k: one result per thread. */
template <typename T, typename R>
__global__ void __launch_bounds__(THREADS)
    dwconv2d_any(image s, int k, const T *x, const R *w, const R *b, T *y, bool flip,
                 bool accumulate) {
  const int64_t count = s.N * s.H * s.W * s.C, step = (int64_t)gridDim.x * THREADS;
  const int half = (k - 1) / 2, kk = k * k;
  for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < count; at += step) {
    const int64_t c = at % s.C, q = at / s.C % s.W, row = at / s.C / s.W, h = row % s.H;
    R sum[1] = {b ? b[c] : R(0)};
    for (int t = 0; t < kk; t++) {
      const int64_t r = t / k - half, p = t % k - half;
      if (h + r < 0 || h + r >= s.H || q + p < 0 || q + p >= s.W) continue;
      sum[0] += R(ii_up(x[at + (r * s.W + p) * s.C])) * w[c * kk + (flip ? kk - 1 - t : t)];
    }
    ii_put_or_add<1>(y + at, sum, accumulate);
  }
}

/* ---- gw and gb --------------------------------------------------------------------------------*/

/* acc[j] += g[o] * window row at `row`, the row of x that tap row meets. */
template <int V, int K, typename R, typename T>
__device__ __forceinline__ void correlate_row(const T *row, int64_t w0, int64_t W, int64_t C,
                                              const R (&g)[TILE][V], R (&acc)[K + 1][V]) {
#pragma unroll
  for (int p = 0; p < TILE + K - 1; p++) {
    const int64_t q = w0 + p - (K - 1) / 2;
    if (q < 0 || q >= W) continue;
    R v[V];
    ii_get<V>(row + q * C, v);
#pragma unroll
    for (int o = 0; o < TILE; o++) {
      const int j = p - o;
      if (j < 0 || j >= K) continue;
#pragma unroll
      for (int i = 0; i < V; i++) acc[j][i] += v[i] * g[o][i];
    }
  }
}

/* Adds the accumulators of threadIdx.z = 1.. to those of 0, through shared memory. */
template <int V, int N, typename R>
__device__ __forceinline__ void add_parts(R *shared, R (&acc)[N][V]) {
  const int own = (threadIdx.y * blockDim.x + threadIdx.x) * V;
  const int pitch = blockDim.y * blockDim.x * V;
  for (int z = 1; z < (int)blockDim.z; z++) {
    if ((int)threadIdx.z == z)
#pragma unroll
      for (int j = 0; j < N; j++)
#pragma unroll
        for (int i = 0; i < V; i++) shared[j * pitch + own + i] = acc[j][i];
    __syncthreads();
    if (threadIdx.z == 0)
#pragma unroll
      for (int j = 0; j < N; j++)
#pragma unroll
        for (int i = 0; i < V; i++) acc[j][i] += shared[j * pitch + own + i];
    __syncthreads();
  }
}

/* parts[blockIdx.x][k*k + 1][C]: sums of gw and, behind, gb over strips [x*per, (x+1)*per). */
template <typename T, typename R, int V, int K>
__global__ void __launch_bounds__(GRAD_THREADS)
    dwconv2d_grad(image s, int64_t per, const T *x, const T *gy, R *parts) {
  II_SHARED(R, shared);
  const int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * V;
  const int64_t across = (s.W + TILE - 1) / TILE, strips = s.N * s.H * across;
  const int64_t first = blockIdx.x * per, last = first + per < strips ? first + per : strips;
  const int up = (int)threadIdx.y - (K - 1) / 2;
  R acc[K + 1][V] = {}; /* the last row: gb */
  for (int64_t at = first + threadIdx.z; c < s.C && at < last; at += blockDim.z) {
    const int64_t w0 = at % across * TILE, row = at / across, h = row % s.H;
    R g[TILE][V];
#pragma unroll
    for (int o = 0; o < TILE; o++) {
#pragma unroll
      for (int i = 0; i < V; i++) g[o][i] = R(0);
      if (w0 + o < s.W) ii_get<V>(gy + (row * s.W + w0 + o) * s.C + c, g[o]);
#pragma unroll
      for (int i = 0; i < V; i++) acc[K][i] += g[o][i];
    }
    if (h + up >= 0 && h + up < s.H)
      correlate_row<V, K>(x + (row + up) * s.W * s.C + c, w0, s.W, s.C, g, acc);
  }
  add_parts<V, K + 1>(shared, acc);
  if (threadIdx.z != 0 || c >= s.C) return;
  R *out = parts + (int64_t)blockIdx.x * (K * K + 1) * s.C + c;
#pragma unroll
  for (int j = 0; j < K; j++) ii_put<V>(out + (threadIdx.y * K + j) * s.C, acc[j]);
  if (threadIdx.y == 0) ii_put<V>(out + K * K * s.C, acc[K]);
}

/* gw and gb (+)= the sums of n parts, in order. */
template <typename R>
__global__ void __launch_bounds__(32 * SUM_LANES)
    dwconv2d_sum_parts(int64_t C, int kk, int64_t n, const R *parts, R *gw, R *gb, bool acc_gw,
                       bool acc_gb) {
  __shared__ R lanes[SUM_LANES][32];
  const int64_t count = (kk + 1) * C, at = (int64_t)blockIdx.x * 32 + threadIdx.x;
  R sum = R(0);
  if (at < count)
    for (int64_t i = threadIdx.y; i < n; i += SUM_LANES) sum += parts[i * count + at];
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || at >= count) return;
  for (int i = 1; i < SUM_LANES; i++) sum += lanes[i][threadIdx.x];
  const int64_t t = at / C, c = at % C;
  R *to = t == kk ? gb : gw;
  if (!to) return;
  to += t == kk ? c : c * kk + t;
  *to = (t == kk ? acc_gb : acc_gw) ? *to + sum : sum;
}

/* Any k: a block has 32 channels of one tap (or of gb), SUM_LANES lanes share the pixels. */
template <typename T, typename R>
__global__ void __launch_bounds__(32 * SUM_LANES)
    dwconv2d_grad_any(image s, int k, const T *x, const T *gy, R *parts) {
  __shared__ R lanes[SUM_LANES][32];
  const int64_t c = (int64_t)blockIdx.y * 32 + threadIdx.x, pixels = s.N * s.H * s.W;
  const int t = blockIdx.x, half = (k - 1) / 2;
  const int64_t up = t / k - half, left = t % k - half;
  R sum = R(0);
  for (int64_t p = threadIdx.y; c < s.C && p < pixels; p += SUM_LANES) {
    const int64_t h = p / s.W % s.H, q = p % s.W;
    const bool inside = h + up >= 0 && h + up < s.H && q + left >= 0 && q + left < s.W;
    const R g = R(ii_up(gy[p * s.C + c]));
    if (t == k * k)
      sum += g;
    else if (inside)
      sum += g * R(ii_up(x[(p + up * s.W + left) * s.C + c]));
  }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= s.C) return;
  for (int i = 1; i < SUM_LANES; i++) sum += lanes[i][threadIdx.x];
  parts[t * s.C + c] = sum;
}

/* ---- Launches ---------------------------------------------------------------------------------*/

image image_of(const ii_dwconv2d_args *a) {
  return {a->N, a->H, a->W, a->C};
}

/* C in blocks of `lanes` vectors: as few blocks as LANES allow, and equal ones. */
struct division {
  unsigned blocks, lanes;
};
division divide_channels(int64_t C, int V) {
  const int64_t vectors = ii_ceil_div(C, V), blocks = ii_ceil_div(vectors, LANES);
  return {(unsigned)blocks, (unsigned)ii_ceil_div(vectors, blocks)};
}

/* One of y = x * w + b and gx (+)= gy * turned w. */
struct pass {
  const void *x, *w, *b;
  void *y;
  bool flip, accumulate;
};

template <typename T, typename R, int V, int K>
int launch_strips(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  const division d = divide_channels(a->C, V);
  const dim3 block(d.lanes, THREADS / d.lanes);
  const int64_t strips = a->N * ii_ceil_div(a->H, ROWS) * ROWS * ii_ceil_div(a->W, TILE);
  const int64_t want = ii_ceil_div(strips, block.y);
  const int64_t most = ii_ceil_div((int64_t)ii_cuda_sm_count(k) * 16, d.blocks);
  const dim3 grid((unsigned)(want < most ? want : most), d.blocks);
  II_LAUNCH(k, (dwconv2d_strips<T, R, V, K>), grid, block, K * K * d.lanes * V * sizeof(R),
            image_of(a), (const T *)p->x, (const R *)p->w, (const R *)p->b, (T *)p->y, p->flip,
            p->accumulate);
  return 0;
}

template <typename T, typename R>
int launch_any(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  const unsigned grid = ii_grid_for(k, a->N * a->H * a->W * a->C, THREADS);
  II_LAUNCH(k, (dwconv2d_any<T, R>), grid, THREADS, 0, image_of(a), a->k, (const T *)p->x,
            (const R *)p->w, (const R *)p->b, (T *)p->y, p->flip, p->accumulate);
  return 0;
}

template <typename T, typename R, int V>
int convolve(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  switch (a->k) {
  case 3:
    return launch_strips<T, R, V, 3>(k, a, p);
  case 5:
    return launch_strips<T, R, V, 5>(k, a, p);
  case 7:
    return launch_strips<T, R, V, 7>(k, a, p);
  default:
    return launch_any<T, R>(k, a, p);
  }
}

template <typename T> bool wide(const ii_dwconv2d_args *a, const void *p, const void *q) {
  constexpr int V = ii_wide<T>::n;
  return a->C % V == 0 && ii_aligned<V>((const T *)p) && ii_aligned<V>((const T *)q);
}

int run_pass(ii_kctx *k, const ii_dwconv2d_args *a, const pass *p) {
  if (a->N * a->H * a->W * a->C == 0) return 0;
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    if (wide<T>(a, p->x, p->y)) return convolve<T, R, ii_wide<T>::n>(k, a, p);
    return convolve<T, R, 1>(k, a, p);
  })
  return 0;
}

template <typename T, typename R, int V, int K>
int launch_grad(ii_kctx *k, const ii_dwconv2d_args *a, int64_t *n, R **parts) {
  const division d = divide_channels(a->C, V);
  unsigned depth = GRAD_THREADS / (d.lanes * K);
  if (depth < 1) depth = 1;
  if (depth > GRAD_DEPTH) depth = GRAD_DEPTH;
  const int64_t strips = a->N * a->H * ii_ceil_div(a->W, TILE);
  const int64_t most = ii_ceil_div(GRAD_BLOCKS, d.blocks);
  int64_t ranges = strips / (depth * GRAD_STRIPS);
  if (ranges > most) ranges = most;
  if (ranges < 1) ranges = 1;
  *n = ranges;
  *parts =
      (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, (size_t)(ranges * (K * K + 1) * a->C) * sizeof(R));
  if (!*parts) return 1;
  const size_t shared = depth > 1 ? (K + 1) * K * d.lanes * V * sizeof(R) : 0;
  II_LAUNCH(k, (dwconv2d_grad<T, R, V, K>), dim3((unsigned)ranges, d.blocks),
            dim3(d.lanes, K, depth), shared, image_of(a), ii_ceil_div(strips, ranges),
            (const T *)a->x, (const T *)a->gy, *parts);
  return 0;
}

template <typename T, typename R>
int launch_grad_any(ii_kctx *k, const ii_dwconv2d_args *a, int64_t *n, R **parts) {
  const int kk = a->k * a->k;
  *n = 1;
  *parts = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, (size_t)((kk + 1) * a->C) * sizeof(R));
  if (!*parts) return 1;
  const dim3 grid((unsigned)kk + 1, (unsigned)ii_ceil_div(a->C, 32));
  II_LAUNCH(k, (dwconv2d_grad_any<T, R>), grid, dim3(32, SUM_LANES), 0, image_of(a), a->k,
            (const T *)a->x, (const T *)a->gy, *parts);
  return 0;
}

template <typename T, typename R, int V>
int weight_gradients(ii_kctx *k, const ii_dwconv2d_args *a) {
  int64_t n = 0;
  R *parts = NULL;
  int failed;
  switch (a->k) {
  case 3:
    failed = launch_grad<T, R, V, 3>(k, a, &n, &parts);
    break;
  case 5:
    failed = launch_grad<T, R, V, 5>(k, a, &n, &parts);
    break;
  case 7:
    failed = launch_grad<T, R, V, 7>(k, a, &n, &parts);
    break;
  default:
    failed = launch_grad_any<T, R>(k, a, &n, &parts);
  }
  if (failed) return 1;
  const int kk = a->k * a->k;
  II_LAUNCH(k, dwconv2d_sum_parts<R>, (unsigned)ii_ceil_div((kk + 1) * a->C, 32),
            dim3(32, SUM_LANES), 0, a->C, kk, n, parts, (R *)a->gw, (R *)a->gb, a->acc_gw,
            a->acc_gb);
  return 0;
}

} // namespace

extern "C" int ii_cuda_dwconv2d_fwd(ii_kctx *k, const ii_dwconv2d_args *a) {
  const pass p = {a->x, a->w, a->b, a->y, false, false};
  return run_pass(k, a, &p);
}

extern "C" int ii_cuda_dwconv2d_bwd(ii_kctx *k, const ii_dwconv2d_args *a) {
  const pass p = {a->gy, a->w, NULL, a->gx, true, a->acc_gx};
  if (a->gx && run_pass(k, a, &p)) return 1;
  if (a->C == 0 || (!a->gw && !a->gb)) return 0;
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    if (wide<T>(a, a->x, a->gy)) return weight_gradients<T, R, ii_wide<T>::n>(k, a);
    return weight_gradients<T, R, 1>(k, a);
  })
  return 0;
}
