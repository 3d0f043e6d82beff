/* Passes over flat memory: every element is read and written once, whatever is done in between.
 *
 * V neighbouring elements per thread, moved in pieces of 16 bytes; a tail of fewer than V elements
 * goes one by one, and so does everything when a pointer is not aligned for the pieces. */
#ifndef II_FLAT_H
#define II_FLAT_H
#include "kernels/cuda/gpu.h"

enum { II_FLAT_THREADS = 256 };

/* R (float or double) to any element type, as the CPU engine does it: 16 bits through float. */
template <typename T> struct ii_to {
  template <typename R> static __device__ __forceinline__ T from(R v) {
    return ii_down<T>((float)v);
  }
};
template <> struct ii_to<double> {
  template <typename R> static __device__ __forceinline__ double from(R v) { return (double)v; }
};

/* Elements of T per access when V elements are wanted: V, or as many as 16 bytes hold. */
template <typename T, int V> struct ii_piece {
  static constexpr int n = V < ii_wide<T>::n ? V : ii_wide<T>::n;
};

/* r[V] = p[0..V) widened to R; p aligned to min(V elements, 16 bytes). */
template <int V, typename R, typename T>
__device__ __forceinline__ void ii_get(const T *p, R (&r)[V]) {
  constexpr int P = ii_piece<T, V>::n;
#pragma unroll
  for (int i = 0; i < V; i += P) {
    const ii_vec<T, P> v = ii_load<P>(p + i);
#pragma unroll
    for (int j = 0; j < P; j++) r[i + j] = (R)ii_up(v.v[j]);
  }
}

/* p[0..V) = r[V] rounded to T. */
template <int V, typename R, typename T>
__device__ __forceinline__ void ii_put(T *p, const R (&r)[V]) {
  constexpr int P = ii_piece<T, V>::n;
#pragma unroll
  for (int i = 0; i < V; i += P) {
    ii_vec<T, P> v;
#pragma unroll
    for (int j = 0; j < P; j++) v.v[j] = ii_to<T>::from(r[i + j]);
    ii_store(p + i, v);
  }
}

/* p[0..V) = r, or += r (in R) if `add`, which is the same for all threads. */
template <int V, typename R, typename T>
__device__ __forceinline__ void ii_put_or_add(T *p, R (&r)[V], bool add) {
  if (add) {
    R old[V];
    ii_get(p, old);
#pragma unroll
    for (int j = 0; j < V; j++) r[j] += old[j];
  }
  ii_put(p, r);
}

/* Whether p suits ii_get and ii_put with V elements. */
template <int V, typename T> static inline bool ii_flat_aligned(const T *p) {
  return ii_aligned<ii_piece<T, V>::n>(p);
}

/* V so that the narrower of two types fills 16 bytes. */
template <typename A, typename B> struct ii_flat_width {
  static constexpr int n = 16 / (int)(sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));
};

/* Whether one call may have activations of both types: they are the same, or one is fp32 and the
 * other has 16 bits. */
template <typename A, typename B> struct ii_mixable { static constexpr bool ok = false; };
template <typename A> struct ii_mixable<A, A> { static constexpr bool ok = true; };
template <> struct ii_mixable<float, ii_f16> { static constexpr bool ok = true; };
template <> struct ii_mixable<ii_f16, float> { static constexpr bool ok = true; };
template <> struct ii_mixable<float, ii_bf16> { static constexpr bool ok = true; };
template <> struct ii_mixable<ii_bf16, float> { static constexpr bool ok = true; };

/* Blocks for work of rows x length items: x over rows, y over pieces of a row, in loops. */
static inline dim3 ii_grid_rows(const ii_kctx *k, int64_t rows, int64_t length, int threads) {
  const int64_t most = (int64_t)ii_cuda_sm_count(k) * 32;
  const int64_t x = rows < most ? rows : most, room = ii_ceil_div(most, x);
  const int64_t pieces = ii_ceil_div(length, threads), y = pieces < room ? pieces : room;
  return dim3((unsigned)x, (unsigned)(y < 65535 ? y : 65535), 1);
}

namespace {

/* f.run<V>(i) for i = 0, V, 2V, ..., f.run<1>(i) for the tail. */
template <int V, typename F> __global__ void ii_flat_kernel(int64_t n, const F f) {
  const int64_t first = (int64_t)blockIdx.x * II_FLAT_THREADS + threadIdx.x;
  const int64_t step = (int64_t)gridDim.x * II_FLAT_THREADS, whole = n / V;
  for (int64_t i = first; i < whole; i += step) f.template run<V>(i * V);
  if (V > 1 && first < n - whole * V) f.template run<1>(whole * V + first);
}

/* Runs f over n elements, V at a time if `aligned`. */
template <int V, typename F> int ii_flat_run(ii_kctx *k, int64_t n, bool aligned, const F &f) {
  if (n <= 0) return 0;
  if (aligned) {
    const unsigned grid = ii_grid_for(k, ii_ceil_div(n, V), II_FLAT_THREADS);
    II_LAUNCH(k, (ii_flat_kernel<V, F>), grid, II_FLAT_THREADS, 0, n, f);
  } else {
    const unsigned grid = ii_grid_for(k, n, II_FLAT_THREADS);
    II_LAUNCH(k, (ii_flat_kernel<1, F>), grid, II_FLAT_THREADS, 0, n, f);
  }
  return 0;
}

} // namespace

#endif
