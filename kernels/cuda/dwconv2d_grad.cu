/* Gradients of the weights of a depthwise convolution by a pass of their own (dwconv2d.cu:
 * formulas, and the kernel that takes 3 x 3 windows together with gx); and the sum of its parts.
 *
 * k = 5, 7: a block has some channels, the k rows of the window (threadIdx.y) and S strips of TILE
 * neighbouring pixels at a time (threadIdx.z) of a contiguous range of all strips; a thread has V
 * channels (16 bytes) and sums k x V products in registers over its strips. The S parts are added
 * in order in shared memory, the ranges' parts by a second kernel: two runs give the same bits.
 *
 * Bytes moved: gy and x once; the k rows of a block read the same gy through the first-level cache.
 * Known limits: other k go by blocks of 32 channels of one tap, which read gy and x once per tap.
 * Sizes that 16 bytes do not divide, and misaligned pointers, go one channel per thread. */
#include "kernels/cuda/dwconv2d.h"
#include "kernels/cuda/flat.h"

namespace {

enum {
  TILE = 4,   /* pixels of a strip */
  LANES = 16, /* most vectors of channels in a block */
  GRAD_THREADS = 256,
  GRAD_DEPTH = 16,   /* most strips at a time; their parts are added one by one */
  GRAD_BLOCKS = 512, /* about so many blocks share the sums of gw and gb */
  GRAD_STRIPS = 16,  /* strips a thread sums at least, where there are as many */
  ANY_LANES = 8,
  SUM_LANES = 32 /* parts that are added at once: a thread's loads wait for each other */
};

struct image {
  int64_t N, H, W, C;
};

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

/* Any k: a block has 32 channels of one tap (or of gb), ANY_LANES lanes share the pixels. */
template <typename T, typename R>
__global__ void __launch_bounds__(32 * ANY_LANES)
    dwconv2d_grad_any(image s, int k, const T *x, const T *gy, R *parts) {
  __shared__ R lanes[ANY_LANES][32];
  const int64_t c = (int64_t)blockIdx.y * 32 + threadIdx.x, pixels = s.N * s.H * s.W;
  const int t = blockIdx.x, half = (k - 1) / 2;
  const int64_t up = t / k - half, left = t % k - half;
  R sum = R(0);
  for (int64_t p = threadIdx.y; c < s.C && p < pixels; p += ANY_LANES) {
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
  for (int i = 1; i < ANY_LANES; i++) sum += lanes[i][threadIdx.x];
  parts[t * s.C + c] = sum;
}

/* ---- Sums of parts ----------------------------------------------------------------------------*/

/* gw and gb (+)= the sums of n parts, in order. */
template <typename R>
__global__ void __launch_bounds__(32 * SUM_LANES)
    dwconv2d_sum_parts(int64_t C, int kk, int64_t n, const R *parts, R *gw, R *gb, bool acc_gw,
                       bool acc_gb) {
  __shared__ R lanes[SUM_LANES][32];
  const int64_t count = (kk + 1) * C, at = (int64_t)blockIdx.x * 32 + threadIdx.x;
  R sum = R(0);
  if (at < count)
#pragma unroll 4
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
  II_LAUNCH(k, (dwconv2d_grad_any<T, R>), grid, dim3(32, ANY_LANES), 0, image_of(a), a->k,
            (const T *)a->x, (const T *)a->gy, *parts);
  return 0;
}

template <typename T, typename R, int V> int launch(ii_kctx *k, const ii_dwconv2d_args *a) {
  int64_t n = 0;
  R *parts = NULL;
  const int failed = a->k == 5   ? launch_grad<T, R, V, 5>(k, a, &n, &parts)
                     : a->k == 7 ? launch_grad<T, R, V, 7>(k, a, &n, &parts)
                                 : launch_grad_any<T, R>(k, a, &n, &parts);
  return failed || ii_dwconv2d_sum_parts(k, a, n, parts);
}

template <typename T> bool wide(const ii_dwconv2d_args *a) {
  constexpr int V = ii_wide<T>::n;
  return a->C % V == 0 && ii_aligned<V>((const T *)a->x) && ii_aligned<V>((const T *)a->gy);
}

} // namespace

int ii_dwconv2d_weight_gradients(ii_kctx *k, const ii_dwconv2d_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    if (wide<T>(a)) return launch<T, R, ii_wide<T>::n>(k, a);
    return launch<T, R, 1>(k, a);
  })
  return 0;
}

int ii_dwconv2d_sum_parts(ii_kctx *k, const ii_dwconv2d_args *a, int64_t n, const void *parts) {
  const int kk = a->k * a->k;
  const unsigned grid = (unsigned)ii_ceil_div((kk + 1) * a->C, 32);
  const dim3 block(32, SUM_LANES);
  if (a->real == II_F64)
    II_LAUNCH(k, dwconv2d_sum_parts<double>, grid, block, 0, a->C, kk, n, (const double *)parts,
              (double *)a->gw, (double *)a->gb, a->acc_gw, a->acc_gb);
  else
    II_LAUNCH(k, dwconv2d_sum_parts<float>, grid, block, 0, a->C, kk, n, (const float *)parts,
              (float *)a->gw, (float *)a->gb, a->acc_gw, a->acc_gb);
  return 0;
}
