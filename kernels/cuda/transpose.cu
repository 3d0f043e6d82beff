/* y[A,C,B,D] = or += x[A,B,C,D]: the two middle dimensions change places.
 *
 * D of 32 bytes or more: runs of D are copied as they are (rows_kernel), in units of 16 bytes where
 * addresses and D allow; both sides use whole sectors of memory.
 * Smaller D (NHWC to NCHW has 1): a block takes a tile of 32 x 32 runs through shared memory
 * (tile_kernel), reading along C*D and writing along B*D. Its rows are one element longer than 32
 * D, so that neither side has bank conflicts for D = 1 (elements of 4 bytes). Copies go by the size
 * of the type, sums by the type. Bytes: 2 or 3 times the tensor. */
#include "kernels/cuda/flat.h"

namespace {

constexpr int THREADS = 256, TILE = 32, RUN_BYTES = 32;

struct shape {
  int64_t A, B, C, D; /* D in units */
};

/* How one unit goes from x to y. */
template <typename U> struct copy_unit {
  typedef U unit;
  static __device__ __forceinline__ void run(U *y, const U &x) { *y = x; }
};
template <typename T, int V> struct add_unit {
  typedef ii_vec<T, V> unit;
  static __device__ __forceinline__ void run(unit *y, const unit &x) {
    unit sum = *y;
#pragma unroll
    for (int i = 0; i < V; i++) sum.v[i] = ii_to<T>::from(ii_up(sum.v[i]) + ii_up(x.v[i]));
    *y = sum;
  }
};

/* blockDim.x threads along D, blockDim.y runs at a time; runs in the order of y. */
template <typename F>
__global__ void rows_kernel(const shape s, const typename F::unit *x, typename F::unit *y) {
  const int64_t runs = s.A * s.B * s.C, step = (int64_t)gridDim.x * blockDim.y;
  for (int64_t to = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; to < runs; to += step) {
    const int64_t row = to / s.B, b = to - row * s.B, a = row / s.C, c = row - a * s.C;
    const int64_t from = (a * s.B + b) * s.C + c;
    for (int64_t i = threadIdx.x; i < s.D; i += blockDim.x)
      F::run(y + to * s.D + i, x[from * s.D + i]);
  }
}

/* Tiles in the order of x, one after another; D <= 16. */
template <typename F>
__global__ void tile_kernel(const shape s, int64_t tiles, const typename F::unit *x,
                            typename F::unit *y) {
  typedef typename F::unit U;
  II_SHARED(U, tile);
  const int D = (int)s.D, length = TILE * D + 1, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t across = (s.C + TILE - 1) / TILE, down = (s.B + TILE - 1) / TILE;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t row = t / across, a = row / down;
    const int64_t b0 = (row - a * down) * TILE, c0 = (t - row * across) * TILE;
    const int height = (int)(s.B - b0 < TILE ? s.B - b0 : TILE);
    const int width = (int)(s.C - c0 < TILE ? s.C - c0 : TILE);
    for (int b = warp; b < height; b += THREADS / 32) {
      const U *from = x + ((a * s.B + b0 + b) * s.C + c0) * D;
      for (int i = lane; i < width * D; i += 32) tile[b * length + i] = from[i];
    }
    __syncthreads();
    for (int c = warp; c < width; c += THREADS / 32) {
      U *to = y + ((a * s.C + c0 + c) * s.B + b0) * D;
      for (int i = lane; i < height * D; i += 32) {
        const int b = i / D;
        F::run(to + i, tile[b * length + c * D + (i - b * D)]);
      }
    }
    __syncthreads();
  }
}

unsigned blocks_for(ii_kctx *k, int64_t work) {
  const int64_t most = (int64_t)ii_cuda_sm_count(k) * 32;
  return (unsigned)(work < most ? work : most);
}

template <typename F> int run_rows(ii_kctx *k, const ii_transpose_args *a, size_t size) {
  typedef typename F::unit U;
  const shape s = {a->A, a->B, a->C, a->D * (int64_t)size / (int64_t)sizeof(U)};
  unsigned wide = 1;
  while (wide < THREADS && wide < s.D) wide *= 2;
  const dim3 block(wide, THREADS / wide, 1);
  const unsigned grid = blocks_for(k, ii_ceil_div(s.A * s.B * s.C, block.y));
  II_LAUNCH(k, (rows_kernel<F>), grid, block, 0, s, (const U *)a->x, (U *)a->y);
  return 0;
}

template <typename F> int run_tiles(ii_kctx *k, const ii_transpose_args *a) {
  typedef typename F::unit U;
  const shape s = {a->A, a->B, a->C, a->D};
  const int64_t tiles = s.A * ii_ceil_div(s.B, TILE) * ii_ceil_div(s.C, TILE);
  const size_t shared = (size_t)(TILE * (TILE * s.D + 1)) * sizeof(U);
  II_LAUNCH(k, (tile_kernel<F>), blocks_for(k, tiles), THREADS, shared, s, tiles, (const U *)a->x,
            (U *)a->y);
  return 0;
}

/* Whether runs are made of whole units of 16 bytes. */
bool wide_runs(const ii_transpose_args *a, size_t size) {
  return ((uintptr_t)a->x | (uintptr_t)a->y | (uintptr_t)a->D * size) % 16 == 0;
}

template <typename U> int copy(ii_kctx *k, const ii_transpose_args *a) {
  if (a->D * (int64_t)sizeof(U) < RUN_BYTES) return run_tiles<copy_unit<U>>(k, a);
  if (wide_runs(a, sizeof(U))) return run_rows<copy_unit<uint4>>(k, a, sizeof(U));
  return run_rows<copy_unit<U>>(k, a, sizeof(U));
}

template <typename T> int add(ii_kctx *k, const ii_transpose_args *a) {
  if (a->D * (int64_t)sizeof(T) < RUN_BYTES) return run_tiles<add_unit<T, 1>>(k, a);
  if (wide_runs(a, sizeof(T))) return run_rows<add_unit<T, ii_wide<T>::n>>(k, a, sizeof(T));
  return run_rows<add_unit<T, 1>>(k, a, sizeof(T));
}

} // namespace

extern "C" int ii_cuda_transpose(ii_kctx *k, const ii_transpose_args *a) {
  if (a->A <= 0 || a->B <= 0 || a->C <= 0 || a->D <= 0) return 0;
  if (!a->accumulate) {
    const size_t size = ii_dtype_size(a->x_dtype);
    if (size == 2) return copy<uint16_t>(k, a);
    return size == 4 ? copy<uint32_t>(k, a) : copy<uint64_t>(k, a);
  }
  II_WITH_TYPE(k, a->x_dtype, T, return add<T>(k, a));
}
