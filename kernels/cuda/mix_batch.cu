/* Mixup, CutMix and their soft targets, in place on the batch.
 *
 * Which of the two, and how, stands in memory (ii_mixture): one launch of one size serves every
 * step, also one that mixes nothing. Images n and N-1-n are each other's partners, so one thread
 * reads both places and writes both. Blocks take pairs of images in x and pieces of them in y.
 * Mixup: a thread takes 16 bytes of each. CutMix: blocks take rows of the box, a thread one element
 * of each. Targets: blocks take rows, a thread one class.
 * Bytes: mixup reads and writes the batch once; CutMix the box's share of it. Products and sums are
 * rounded one by one (no fused multiply-add), as in the official code and on the CPU. */
#include "kernels/cuda/flat.h"

namespace {

constexpr int THREADS = 256;

/* a x + b y. */
__device__ __forceinline__ float blend(float a, float x, float b, float y) {
  return __fadd_rn(__fmul_rn(a, x), __fmul_rn(b, y));
}
__device__ __forceinline__ double blend(double a, double x, double b, double y) {
  return __dadd_rn(__dmul_rn(a, x), __dmul_rn(b, y));
}

__device__ __forceinline__ void shares(const ii_mixture &m, float *lam, float *rest) {
  *lam = m.lam32, *rest = m.rest32;
}
__device__ __forceinline__ void shares(const ii_mixture &m, double *lam, double *rest) {
  *lam = m.lam, *rest = m.rest;
}

/* Images [H, line] of a batch, line = W*C elements. */
struct shape {
  int64_t images, H, line, C;
};

/* Element i of image n, V at a time. */
template <int V, typename R>
__device__ __forceinline__ void blend_images(R *x, const shape &s, const ii_mixture &m) {
  const int64_t size = s.H * s.line, step = (int64_t)gridDim.y * THREADS * V;
  R lam, rest;
  shares(m, &lam, &rest);
  for (int64_t n = blockIdx.x; n < s.images / 2; n += gridDim.x) {
    R *here = x + n * size, *there = x + (s.images - 1 - n) * size;
    for (int64_t i = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * V; i < size; i += step) {
      ii_vec<R, V> a = ii_load<V>(here + i), b = ii_load<V>(there + i);
#pragma unroll
      for (int j = 0; j < V; j++) {
        const R p = a.v[j], q = b.v[j];
        a.v[j] = blend(lam, p, rest, q);
        b.v[j] = blend(lam, q, rest, p);
      }
      ii_store(here + i, a);
      ii_store(there + i, b);
    }
  }
}

/* Blocks of a pair take the rows of the box in turn. */
template <typename R>
__device__ __forceinline__ void swap_boxes(R *x, const shape &s, const ii_mixture &m) {
  const int64_t begin = m.x0 * s.C, end = m.x1 * s.C;
  for (int64_t n = blockIdx.x; n < s.images / 2; n += gridDim.x)
    for (int64_t y = m.y0 + blockIdx.y; y < m.y1; y += gridDim.y) {
      R *here = x + (n * s.H + y) * s.line, *there = x + ((s.images - 1 - n) * s.H + y) * s.line;
      for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
        const R v = here[i];
        here[i] = there[i];
        there[i] = v;
      }
    }
}

template <int V, typename R>
__global__ void mix_kernel(R *x, const shape s, const ii_mixture *mix) {
  const ii_mixture m = *mix;
  if (m.mode == II_MIX_BLEND) blend_images<V>(x, s, m);
  if (m.mode == II_MIX_BOX) swap_boxes(x, s, m);
}

/* Class values of a label that is right and of all others, smoothed. */
template <typename R> struct values { R on, off; };

template <typename R>
__global__ void targets_kernel(R *t, const int32_t *labels, int64_t N, int64_t C, const values<R> v,
                               const ii_mixture *mix) {
  const int64_t step = (int64_t)gridDim.y * THREADS;
  R lam, rest;
  shares(*mix, &lam, &rest);
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    const int64_t mine = labels[n], other = labels[N - 1 - n];
    const bool known = mine >= 0 && mine < C && other >= 0 && other < C;
    for (int64_t c = (int64_t)blockIdx.y * THREADS + threadIdx.x; c < C; c += step) {
      const R mixed = blend(lam, c == mine ? v.on : v.off, rest, c == other ? v.on : v.off);
      t[n * C + c] = known ? mixed : R(NAN);
    }
  }
}

template <typename R> int batch(ii_kctx *k, const ii_mix_batch_args *a) {
  constexpr int V = ii_wide<R>::n;
  const shape s = {a->N, a->H, a->W * a->C, a->C};
  const int64_t size = s.H * s.line;
  R *x = (R *)a->x;
  if (a->N < 2 || size <= 0) return 0;
  if (size % V == 0 && ii_aligned<V>(x)) {
    const dim3 grid = ii_grid_rows(k, a->N / 2, size / V, THREADS);
    II_LAUNCH(k, (mix_kernel<V, R>), grid, THREADS, 0, x, s, a->mix);
  } else {
    const dim3 grid = ii_grid_rows(k, a->N / 2, size, THREADS);
    II_LAUNCH(k, (mix_kernel<1, R>), grid, THREADS, 0, x, s, a->mix);
  }
  return 0;
}

template <typename R> int targets(ii_kctx *k, const ii_mix_targets_args *a) {
  if (a->N <= 0 || a->C <= 0) return 0;
  const double off = a->smoothing / (double)a->C, on = 1.0 - a->smoothing + off;
  const values<R> v = {(R)on, (R)off};
  const dim3 grid = ii_grid_rows(k, a->N, a->C, THREADS);
  II_LAUNCH(k, targets_kernel<R>, grid, THREADS, 0, (R *)a->targets, a->labels, a->N, a->C, v,
            a->mix);
  return 0;
}

} // namespace

extern "C" int ii_cuda_mix_batch(ii_kctx *k, const ii_mix_batch_args *a) {
  return a->real == II_F64 ? batch<double>(k, a) : batch<float>(k, a);
}

extern "C" int ii_cuda_mix_targets(ii_kctx *k, const ii_mix_targets_args *a) {
  return a->real == II_F64 ? targets<double>(k, a) : targets<float>(k, a);
}
