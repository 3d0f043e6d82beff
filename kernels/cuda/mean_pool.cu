/* Mean over the positions of an image: y[n,c] = sum_p x[n,p,c] / P; backward gx = gy / P.
 * Mapping: forward by columns as in reduce.h, one block for the positions of an image and at most
 * 256 vectors of channels; backward element by element.
 * Bytes: forward N*P*C*x, backward N*P*C*gx (twice when accumulating); y and gy are small.
 * Limits: an image is not divided over several blocks, so a few images of many positions leave most
 * of the GPU idle (classification heads have 49 to 256 positions and many images). */
#include "kernels/cuda/reduce.h"

namespace {

template <typename X, typename Y, typename R, int V>
__global__ void __launch_bounds__(II_COLUMN_THREADS, 1)
    mean_pool_columns(const X *px, Y *py, int64_t N, ii_columns s, R scale) {
  __shared__ R shared[II_COLUMN_THREADS * V];
  const int tx = threadIdx.x % s.width, ty = threadIdx.x / s.width;
  const int64_t vec0 = (int64_t)blockIdx.x * s.width, vec = vec0 + tx, C = s.vecs * V;
  const int64_t left = C - vec0 * V;
  const int columns = (int)(left < s.width * V ? left : s.width * V);
  for (int64_t n = blockIdx.y; n < N; n += gridDim.y) {
    const X *x = px + n * s.rows * C + vec * V;
    R sum[V] = {};
    if (ty < s.height && vec < s.vecs)
      for (int64_t p = ty; p < s.rows; p += s.height) {
        R v[V];
        ii_get(x + p * C, v);
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] += v[j];
      }
    __syncthreads(); /* the image before has been read */
#pragma unroll
    for (int j = 0; j < V; j++) shared[threadIdx.x * V + j] = sum[j];
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += II_COLUMN_THREADS) {
      R total = shared[i];
      for (int h = 1; h < s.height; h++) total += shared[h * s.width * V + i];
      py[n * C + vec0 * V + i] = ii_down<Y>(total * scale);
    }
  }
}

template <typename X, typename Y, typename R> struct spread {
  const Y *gy;
  X *gx;
  bool accumulate;
  R scale;
  int64_t C;
  template <int V> __device__ __forceinline__ void run(int64_t i, int64_t c, int64_t n) const {
    R g[V];
    ii_get(gy + n * C + c, g);
#pragma unroll
    for (int j = 0; j < V; j++) g[j] *= scale;
    ii_put_or_add(gx + i, g, accumulate);
  }
};

template <typename X, typename Y, typename R, int V>
int forward_with(ii_kctx *k, const ii_mean_pool_args *a) {
  const ii_columns s = ii_columns_for(k, a->P, a->C / V);
  const R scale = (R)(a->P > 0 ? 1.0 / (double)a->P : 0.0);
  const dim3 grid(s.tiles, (unsigned)(a->N < 65535 ? a->N : 65535));
  II_LAUNCH(k, (mean_pool_columns<X, Y, R, V>), grid, II_COLUMN_THREADS, 0, (const X *)a->x,
            (Y *)a->y, a->N, s, scale);
  return 0;
}

template <typename X, typename Y> int forward(ii_kctx *k, const ii_mean_pool_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_wide<X>::n;
  return a->C % V == 0 && ii_flat_aligned<V>((const X *)a->x) ? forward_with<X, Y, R, V>(k, a)
                                                              : forward_with<X, Y, R, 1>(k, a);
}

template <typename X, typename Y> int backward(ii_kctx *k, const ii_mean_pool_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_wide<X>::n;
  const spread<X, Y, R> f = {(const Y *)a->gy, (X *)a->gx, a->acc_gx, (R)(1.0 / (double)a->P),
                             a->C};
  return a->C % V == 0 && ii_flat_aligned<V>(f.gy) && ii_flat_aligned<V>(f.gx)
             ? ii_run_columns<V>(k, f, a->N, a->P, a->C)
             : ii_run_columns<1>(k, f, a->N, a->P, a->C);
}

} // namespace

extern "C" int ii_cuda_mean_pool_fwd(ii_kctx *k, const ii_mean_pool_args *a) {
  if (a->N * a->C == 0) return 0;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y, return forward<X, Y>(k, a));
  return 0;
}

extern "C" int ii_cuda_mean_pool_bwd(ii_kctx *k, const ii_mean_pool_args *a) {
  if (!a->gx || a->N * a->P * a->C == 0) return 0;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y, return backward<X, Y>(k, a));
  return 0;
}
