/* Average and max pooling, k x k windows of x[N,H,W,C] to y[N,Ho,Wo,C].
 * Mapping: a block takes rows of the output (backward: of the input); a thread a position and the
 * channels that fill 16 bytes. Backward gathers: each input position asks the windows that cover
 * it, so nothing is added atomically and the order is always the same.
 * Bytes: x and y once from memory (overlapping windows meet in the caches), argmax 4 bytes.
 * Limits: fewer than 2^31 positions in an image. */
#include <math.h>
#include "kernels/cuda/flat.h"

namespace {

enum { THREADS = 256 };

struct shape {
  int64_t N, C;
  int H, W, Ho, Wo, k, stride, pad;
};

/* Rows of the side that is written, and positions in each. */
struct extent {
  int64_t rows;
  int height, width;
};

/* Positions [begin, end) of one side that belong to a position of the other. */
struct range {
  int begin, end;
};

/* The positions in [0, size) of the window of output o. */
__device__ __forceinline__ range window(const shape &s, int o, int size) {
  const int begin = o * s.stride - s.pad, end = begin + s.k;
  return {begin > 0 ? begin : 0, end < size ? end : size};
}
/* The outputs in [0, outputs) whose window contains position i. */
__device__ __forceinline__ range cover(const shape &s, int i, int outputs) {
  const int past = i + s.pad - s.k + 1, end = (i + s.pad) / s.stride + 1;
  return {past <= 0 ? 0 : (past + s.stride - 1) / s.stride, end < outputs ? end : outputs};
}
/* Offset of channel c of position (h, w) of image n of height x width. */
__device__ __forceinline__ int64_t at(const shape &s, int height, int width, int64_t n, int h,
                                      int w, int64_t c) {
  return ((n * height + h) * width + w) * s.C + c;
}

template <typename T> struct average {
  typedef ii_real_of<T> R;
  const T *x;
  T *y;
  R scale;
  template <int V>
  __device__ __forceinline__ void run(const shape &s, int64_t n, int ho, int wo, int64_t c) const {
    R sum[V] = {};
    const range rows = window(s, ho, s.H), columns = window(s, wo, s.W);
    for (int h = rows.begin; h < rows.end; h++)
      for (int w = columns.begin; w < columns.end; w++) {
        R v[V];
        ii_get(x + at(s, s.H, s.W, n, h, w, c), v);
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] += v[i];
      }
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] *= scale;
    ii_put(y + at(s, s.Ho, s.Wo, n, ho, wo, c), sum);
  }
};

template <typename T> struct average_gradient {
  typedef ii_real_of<T> R;
  const T *gy;
  T *gx;
  R scale;
  bool accumulate;
  template <int V>
  __device__ __forceinline__ void run(const shape &s, int64_t n, int h, int w, int64_t c) const {
    R sum[V] = {};
    const range rows = cover(s, h, s.Ho), columns = cover(s, w, s.Wo);
    for (int ho = rows.begin; ho < rows.end; ho++)
      for (int wo = columns.begin; wo < columns.end; wo++) {
        R v[V];
        ii_get(gy + at(s, s.Ho, s.Wo, n, ho, wo, c), v);
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] += v[i];
      }
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] *= scale;
    ii_put_or_add(gx + at(s, s.H, s.W, n, h, w, c), sum, accumulate);
  }
};

/* The first maximum in row-major order wins; NaN wins over numbers. */
template <typename T> struct maximum {
  typedef ii_real_of<T> R;
  const T *x;
  T *y;
  int32_t *argmax;
  template <int V>
  __device__ __forceinline__ void run(const shape &s, int64_t n, int ho, int wo, int64_t c) const {
    R best[V];
    int32_t arg[V];
#pragma unroll
    for (int i = 0; i < V; i++) best[i] = R(-INFINITY), arg[i] = -1; /* nothing seen yet */
    const range rows = window(s, ho, s.H), columns = window(s, wo, s.W);
    for (int h = rows.begin; h < rows.end; h++)
      for (int w = columns.begin; w < columns.end; w++) {
        R v[V];
        ii_get(x + at(s, s.H, s.W, n, h, w, c), v);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const bool wins = arg[i] < 0 || v[i] > best[i] || (v[i] != v[i] && best[i] == best[i]);
          best[i] = wins ? v[i] : best[i];
          arg[i] = wins ? h * s.W + w : arg[i];
        }
      }
    const int64_t o = at(s, s.Ho, s.Wo, n, ho, wo, c);
    ii_put(y + o, best);
    put_indices(argmax + o, arg);
  }
  template <int V>
  static __device__ __forceinline__ void put_indices(int32_t *p, const int32_t (&v)[V]) {
    constexpr int P = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += P) {
      ii_vec<int32_t, P> piece;
#pragma unroll
      for (int j = 0; j < P; j++) piece.v[j] = v[i + j];
      ii_store(p + i, piece);
    }
  }
};

template <typename T> struct maximum_gradient {
  typedef ii_real_of<T> R;
  const T *gy;
  const int32_t *argmax;
  T *gx;
  bool accumulate;
  template <int V>
  __device__ __forceinline__ void run(const shape &s, int64_t n, int h, int w, int64_t c) const {
    constexpr int P = V < 4 ? V : 4;
    const int32_t here = h * s.W + w;
    R sum[V] = {};
    const range rows = cover(s, h, s.Ho), columns = cover(s, w, s.Wo);
    for (int ho = rows.begin; ho < rows.end; ho++)
      for (int wo = columns.begin; wo < columns.end; wo++) {
        R v[V];
        const int64_t o = at(s, s.Ho, s.Wo, n, ho, wo, c);
        ii_get(gy + o, v);
#pragma unroll
        for (int i = 0; i < V; i += P) {
          const ii_vec<int32_t, P> arg = ii_load<P>(argmax + o + i);
#pragma unroll
          for (int j = 0; j < P; j++) sum[i + j] += arg.v[j] == here ? v[i + j] : R(0);
        }
      }
    ii_put_or_add(gx + at(s, s.H, s.W, n, h, w, c), sum, accumulate);
  }
};

/* f for all positions and channels of the written side: blockIdx.x over rows, blockIdx.y over
 * pieces of a row. */
template <typename F, int V> __global__ void pool_kernel(const shape s, const extent e, const F f) {
  const int64_t runs = s.C / V, length = e.width * runs, step = (int64_t)gridDim.y * THREADS;
  for (int64_t row = blockIdx.x; row < e.rows; row += gridDim.x) {
    const int64_t n = row / e.height;
    const int h = (int)(row - n * e.height);
    for (int64_t i = (int64_t)blockIdx.y * THREADS + threadIdx.x; i < length; i += step) {
      const int w = (int)(i / runs);
      f.template run<V>(s, n, h, w, (i - w * runs) * V);
    }
  }
}

template <int V, typename F> int launch(ii_kctx *k, const shape &s, const extent &e, const F &f) {
  const dim3 grid = ii_grid_rows(k, e.rows, e.width * (s.C / V), THREADS);
  II_LAUNCH(k, (pool_kernel<F, V>), grid, THREADS, 0, s, e, f);
  return 0;
}

/* aligned: all pointers are, for the channels of 16 bytes. */
template <typename T, typename F>
int run(ii_kctx *k, const ii_pool2d_args *a, bool back, bool aligned, const F &f) {
  constexpr int V = ii_wide<T>::n;
  if (a->H * a->W > INT32_MAX || a->Ho * a->Wo > INT32_MAX)
    return ii_cuda_error(k, "pool2d: images of %lld x %lld positions are too large; at most 2^31",
                         (long long)a->H, (long long)a->W);
  const shape s = {a->N,       a->C, (int)a->H, (int)a->W, (int)a->Ho,
                   (int)a->Wo, a->k, a->stride, a->pad};
  const extent e = back ? extent{s.N * s.H, s.H, s.W} : extent{s.N * s.Ho, s.Ho, s.Wo};
  if (e.rows <= 0 || e.width <= 0 || s.C <= 0) return 0;
  return aligned && s.C % V == 0 ? launch<V>(k, s, e, f) : launch<1>(k, s, e, f);
}

template <typename T> int run_average(ii_kctx *k, const ii_pool2d_args *a, bool back) {
  constexpr int V = ii_wide<T>::n;
  typedef ii_real_of<T> R;
  const R scale = (R)(1.0 / ((double)a->k * a->k));
  const T *read = (const T *)(back ? a->gy : a->x);
  T *write = (T *)(back ? a->gx : a->y);
  const bool aligned = ii_aligned<V>(read) && ii_aligned<V>(write);
  if (back) {
    const average_gradient<T> f = {read, write, scale, a->acc_gx};
    return run<T>(k, a, true, aligned, f);
  }
  const average<T> f = {read, write, scale};
  return run<T>(k, a, false, aligned, f);
}

template <typename T> int run_maximum(ii_kctx *k, const ii_pool2d_args *a, bool back) {
  constexpr int V = ii_wide<T>::n;
  const T *read = (const T *)(back ? a->gy : a->x);
  T *write = (T *)(back ? a->gx : a->y);
  const bool aligned =
      ii_aligned<V>(read) && ii_aligned<V>(write) && ii_aligned < V < 4 ? V : 4 > (a->argmax);
  if (back) {
    const maximum_gradient<T> f = {read, a->argmax, write, a->acc_gx};
    return run<T>(k, a, true, aligned, f);
  }
  const maximum<T> f = {read, write, a->argmax};
  return run<T>(k, a, false, aligned, f);
}

} // namespace

extern "C" int ii_cuda_avg_pool2d_fwd(ii_kctx *k, const ii_pool2d_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return run_average<T>(k, a, false));
}

extern "C" int ii_cuda_avg_pool2d_bwd(ii_kctx *k, const ii_pool2d_args *a) {
  if (!a->gx) return 0;
  II_WITH_TYPE(k, a->x_dtype, T, return run_average<T>(k, a, true));
}

extern "C" int ii_cuda_max_pool2d_fwd(ii_kctx *k, const ii_pool2d_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return run_maximum<T>(k, a, false));
}

extern "C" int ii_cuda_max_pool2d_bwd(ii_kctx *k, const ii_pool2d_args *a) {
  if (!a->gx) return 0;
  II_WITH_TYPE(k, a->x_dtype, T, return run_maximum<T>(k, a, true));
}
