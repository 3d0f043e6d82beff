/* Pixel shuffle, NHWC: y[n, h*r+a, w*r+b, c] = x[n, h, w, c*r*r + a*r + b]; its backward gathers gy
 * the same way. Mapping: blocks take rows of x; a thread has one pixel of x and V channels of y,
 * whose V*r*r elements of x are neighbours; of y it has one run of V channels in each of r*r
 * pixels. For r = 2 the elements of x move as one vector, V = 1 of 4 bytes and more, 2 of 16 bits;
 * other r element by element through the caches. Neighbouring threads have neighbouring channels.
 * Bytes: 2 (3) times the tensor. Limits: W*C of a row below 2^32. */
#include "kernels/cuda/flat.h"

namespace {

enum { THREADS = 256 };

struct shape {
  int64_t rows;  /* of all images of x */
  uint32_t W, C; /* width of x, channels of y */
  int r;
};

/* Channels from c on of pixel w of a row of x. */
struct spot {
  int64_t row;
  uint32_t w, c;
};

/* Where they begin in x, and in part (a, b) of the pixel's square of y. */
__device__ __forceinline__ int64_t deep(const shape &s, const spot &p) {
  return ((p.row * s.W + p.w) * s.C + p.c) * (s.r * s.r);
}
__device__ __forceinline__ int64_t flat(const shape &s, const spot &p, int a, int b) {
  return (((p.row * s.r + a) * s.W + p.w) * s.r + b) * s.C + p.c;
}

/* r = 2: V channels, 4 V elements of x. */
template <typename T, int V> struct fours {
  static constexpr int channels = V;
  static __device__ __forceinline__ void forward(const shape &s, const spot &p, const T *x, T *y) {
    ii_real_of<T> v[4 * V], run[V]; /* exact: every T goes through its R unchanged */
    ii_get(x + deep(s, p), v);
#pragma unroll
    for (int part = 0; part < 4; part++) {
#pragma unroll
      for (int i = 0; i < V; i++) run[i] = v[i * 4 + part];
      ii_put(y + flat(s, p, part / 2, part % 2), run);
    }
  }
  static __device__ __forceinline__ void backward(const shape &s, const spot &p, const T *gy, T *gx,
                                                  bool accumulate) {
    ii_real_of<T> v[4 * V], run[V];
#pragma unroll
    for (int part = 0; part < 4; part++) {
      ii_get(gy + flat(s, p, part / 2, part % 2), run);
#pragma unroll
      for (int i = 0; i < V; i++) v[i * 4 + part] = run[i];
    }
    ii_put_or_add(gx + deep(s, p), v, accumulate);
  }
};

/* Any r, one channel, r * r elements of x. */
template <typename T> struct singles {
  static constexpr int channels = 1;
  static __device__ __forceinline__ void forward(const shape &s, const spot &p, const T *x, T *y) {
    const T *from = x + deep(s, p);
    for (int a = 0; a < s.r; a++)
      for (int b = 0; b < s.r; b++) y[flat(s, p, a, b)] = from[a * s.r + b];
  }
  static __device__ __forceinline__ void backward(const shape &s, const spot &p, const T *gy, T *gx,
                                                  bool accumulate) {
    T *to = gx + deep(s, p);
    for (int a = 0; a < s.r; a++)
      for (int b = 0; b < s.r; b++) {
        ii_real_of<T> g[1];
        ii_get(gy + flat(s, p, a, b), g);
        ii_put_or_add(to + a * s.r + b, g, accumulate);
      }
  }
};

/* from, to: x and y, or (backward) gy and gx. blockIdx.x over rows, blockIdx.y within a row. */
template <typename F, bool back, typename T>
__global__ void shuffle_kernel(const shape s, const T *from, T *to, bool accumulate) {
  const uint32_t runs = s.C / F::channels, length = s.W * runs;
  for (int64_t row = blockIdx.x; row < s.rows; row += gridDim.x)
    for (uint64_t i = (uint64_t)blockIdx.y * THREADS + threadIdx.x; i < length;
         i += gridDim.y * THREADS) {
      const uint32_t w = (uint32_t)i / runs;
      const spot p = {row, w, ((uint32_t)i - w * runs) * F::channels};
      if (back)
        F::backward(s, p, from, to, accumulate);
      else
        F::forward(s, p, from, to);
    }
}

template <typename F, typename T>
int launch(ii_kctx *k, const ii_pixel_shuffle_args *a, const shape &s, bool back) {
  const dim3 grid = ii_grid_rows(k, s.rows, (int64_t)s.W * (s.C / F::channels), THREADS);
  if (back)
    II_LAUNCH(k, (shuffle_kernel<F, true, T>), grid, THREADS, 0, s, (const T *)a->gy, (T *)a->gx,
              a->acc_gx);
  else
    II_LAUNCH(k, (shuffle_kernel<F, false, T>), grid, THREADS, 0, s, (const T *)a->x, (T *)a->y,
              false);
  return 0;
}

template <typename T> int run(ii_kctx *k, const ii_pixel_shuffle_args *a, bool back) {
  constexpr int V = sizeof(T) == 2 ? 2 : 1;
  const shape s = {a->N * a->H, (uint32_t)a->W, (uint32_t)a->C, a->r};
  if (s.rows <= 0 || a->W * a->C * a->r <= 0) return 0;
  if (a->W * a->C > (int64_t)UINT32_MAX)
    return ii_cuda_error(k,
                         "pixel_shuffle: a row of %lld x %lld elements is too long; at most 2^32",
                         (long long)a->W, (long long)a->C);
  const T *x = (const T *)(back ? a->gx : a->x), *y = (const T *)(back ? a->gy : a->y);
  if (s.r == 2 && s.C % V == 0 && ii_flat_aligned<4 * V>(x) && ii_flat_aligned<V>(y))
    return launch<fours<T, V>, T>(k, a, s, back);
  return launch<singles<T>, T>(k, a, s, back);
}

} // namespace

extern "C" int ii_cuda_pixel_shuffle_fwd(ii_kctx *k, const ii_pixel_shuffle_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return run<T>(k, a, false));
}

extern "C" int ii_cuda_pixel_shuffle_bwd(ii_kctx *k, const ii_pixel_shuffle_args *a) {
  if (!a->gx) return 0;
  II_WITH_TYPE(k, a->x_dtype, T, return run<T>(k, a, true));
}
