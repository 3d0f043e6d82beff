/* Mixup, CutMix and their soft targets, in place on the batch.
 *
 * Images n and N-1-n are each other's partners, so one thread reads both places and writes both.
 * Mixup: blocks take pairs of images, a thread 16 bytes of each. CutMix: blocks take rows of the
 * box of a pair, a thread one element of each. Targets: blocks take rows, a thread one class.
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

/* Element i of image n, V at a time; `size` elements in an image. */
template <int V, typename R>
__global__ void mixup_kernel(R *x, int64_t images, int64_t size, R lam, R rest) {
  const int64_t step = (int64_t)gridDim.y * THREADS * V;
  for (int64_t n = blockIdx.x; n < images / 2; n += gridDim.x) {
    R *here = x + n * size, *there = x + (images - 1 - n) * size;
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

/* Rows [y0, y0 + rows) of images of H lines of `line` elements; elements [begin, end) of a line. */
struct box {
  int64_t H, line, y0, rows, begin, end;
};

template <typename R> __global__ void cutmix_kernel(R *x, int64_t images, const box b) {
  const int64_t step = (int64_t)gridDim.y * THREADS;
  for (int64_t row = blockIdx.x; row < images / 2 * b.rows; row += gridDim.x) {
    const int64_t n = row / b.rows, y = b.y0 + (row - n * b.rows);
    R *here = x + (n * b.H + y) * b.line, *there = x + ((images - 1 - n) * b.H + y) * b.line;
    for (int64_t i = b.begin + (int64_t)blockIdx.y * THREADS + threadIdx.x; i < b.end; i += step) {
      const R v = here[i];
      here[i] = there[i];
      there[i] = v;
    }
  }
}

template <typename R> struct mixture { R lam, rest, on, off; };

template <typename R>
__global__ void targets_kernel(R *t, const int32_t *labels, int64_t N, int64_t C,
                               const mixture<R> m) {
  const int64_t step = (int64_t)gridDim.y * THREADS;
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    const int64_t mine = labels[n], other = labels[N - 1 - n];
    const bool known = mine >= 0 && mine < C && other >= 0 && other < C;
    for (int64_t c = (int64_t)blockIdx.y * THREADS + threadIdx.x; c < C; c += step) {
      const R v = blend(m.lam, c == mine ? m.on : m.off, m.rest, c == other ? m.on : m.off);
      t[n * C + c] = known ? v : R(NAN);
    }
  }
}

template <typename R> int mixup(ii_kctx *k, const ii_mix_batch_args *a) {
  constexpr int V = ii_wide<R>::n;
  const int64_t size = a->H * a->W * a->C;
  const R lam = (R)a->lam, rest = (R)(1.0 - a->lam);
  R *x = (R *)a->x;
  if (size % V == 0 && ii_aligned<V>(x)) {
    const dim3 grid = ii_grid_rows(k, a->N / 2, size / V, THREADS);
    II_LAUNCH(k, (mixup_kernel<V, R>), grid, THREADS, 0, x, a->N, size, lam, rest);
  } else {
    const dim3 grid = ii_grid_rows(k, a->N / 2, size, THREADS);
    II_LAUNCH(k, (mixup_kernel<1, R>), grid, THREADS, 0, x, a->N, size, lam, rest);
  }
  return 0;
}

template <typename R> int cutmix(ii_kctx *k, const ii_mix_batch_args *a) {
  const box b = {a->H, a->W * a->C, a->y0, a->y1 - a->y0, a->x0 * a->C, a->x1 * a->C};
  if (b.rows <= 0 || b.end <= b.begin) return 0;
  const dim3 grid = ii_grid_rows(k, a->N / 2 * b.rows, b.end - b.begin, THREADS);
  II_LAUNCH(k, cutmix_kernel<R>, grid, THREADS, 0, (R *)a->x, a->N, b);
  return 0;
}

template <typename R> int batch(ii_kctx *k, const ii_mix_batch_args *a) {
  if (a->N < 2 || a->H * a->W * a->C <= 0) return 0;
  return a->cutmix ? cutmix<R>(k, a) : mixup<R>(k, a);
}

template <typename R> int targets(ii_kctx *k, const ii_mix_targets_args *a) {
  if (a->N <= 0 || a->C <= 0) return 0;
  const double off = a->smoothing / (double)a->C, on = 1.0 - a->smoothing + off;
  const mixture<R> m = {(R)a->lam, (R)(1.0 - a->lam), (R)on, (R)off};
  const dim3 grid = ii_grid_rows(k, a->N, a->C, THREADS);
  II_LAUNCH(k, targets_kernel<R>, grid, THREADS, 0, (R *)a->targets, a->labels, a->N, a->C, m);
  return 0;
}

} // namespace

extern "C" int ii_cuda_mix_batch(ii_kctx *k, const ii_mix_batch_args *a) {
  return a->real == II_F64 ? batch<double>(k, a) : batch<float>(k, a);
}

extern "C" int ii_cuda_mix_targets(ii_kctx *k, const ii_mix_targets_args *a) {
  return a->real == II_F64 ? targets<double>(k, a) : targets<float>(k, a);
}
