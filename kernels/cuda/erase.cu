/* Random erasing: rectangles of noise, drawn by counter, in place.
 *
 * The rectangles and their number stand in memory, so one launch of one size serves every step.
 * blockIdx.y is the rectangle (in a loop), blockIdx.x walks through it; a thread makes the four
 * neighbouring elements of one Philox block. Rectangles of an image may overlap, and then the last
 * one counts: an element that a later one has is left to that one, so that the order in which the
 * blocks run means nothing. Bytes: the rectangles, written once. Blocks beyond the rectangles of a
 * step end at once. */
#include "kernels/cuda/gpu.h"

namespace {

constexpr int THREADS = 128;

struct shape {
  int64_t N, H, W, C;
};

__device__ __forceinline__ float root(float v) {
  return sqrtf(v);
}
__device__ __forceinline__ double root(double v) {
  return sqrt(v);
}
__device__ __forceinline__ float natural_log(float v) {
  return logf(v);
}
__device__ __forceinline__ double natural_log(double v) {
  return log(v);
}
/* sin and cos of pi v. */
__device__ __forceinline__ void turn(float v, float *s, float *c) {
  sincospif(v, s, c);
}
__device__ __forceinline__ void turn(double v, double *s, double *c) {
  *s = sinpi(v), *c = cospi(v);
}

/* The four normal numbers of one block. */
template <typename R>
__device__ __forceinline__ void normals(const ii_erase_rect &r, int64_t block, R (&z)[4]) {
  const uint32_t ctr[4] = {(uint32_t)block, r.part, r.noise.tail[0], r.noise.tail[1]};
  uint32_t w[4];
  ii_philox_block(r.noise.key, ctr, w);
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const R u = (R)((w[i] >> 8) + 1) * R(0x1p-24f), v = (R)(w[i + 1] >> 8) * R(0x1p-24f);
    const R radius = root(R(-2) * natural_log(u));
    R sine, cosine;
    turn(R(2) * v, &sine, &cosine);
    z[i] = radius * cosine, z[i + 1] = radius * sine;
  }
}

__device__ __forceinline__ bool has(const ii_erase_rect &r, int64_t y, int64_t x) {
  return y >= r.top && y - r.top < r.height && x >= r.left && x - r.left < r.width;
}

/* Whether one of the rectangles i+1 to n-1 of the same image has the pixel. */
__device__ __forceinline__ bool later(const ii_erase_rect *rects, int i, int n, int64_t y,
                                      int64_t x) {
  const int image = rects[i].image;
  for (int j = i + 1; j < n && rects[j].image == image; j++)
    if (has(rects[j], y, x)) return true;
  return false;
}

template <typename R, ii_erase_mode mode>
__device__ __forceinline__ void erase_rect(R *x, const shape &s, const ii_erase_rect *rects, int at,
                                           int n) {
  const ii_erase_rect r = rects[at];
  const int64_t width = r.width * s.C, count = r.height * width, blocks = (count + 3) / 4;
  R *corner = x + ((r.image * s.H + r.top) * s.W + r.left) * s.C;
  for (int64_t b = (int64_t)blockIdx.x * THREADS + threadIdx.x; b < blocks;
       b += (int64_t)gridDim.x * THREADS) {
    R z[4] = {};
    if (mode == II_ERASE_PIXEL) normals(r, b, z);
    for (int j = 0; j < 4 && b * 4 + j < count; j++) {
      const int64_t e = b * 4 + j, row = e / width, i = e - row * width;
      R v = z[0]; /* z[j] without an indexed array */
      if (mode == II_ERASE_PIXEL) v = j == 0 ? z[0] : j == 1 ? z[1] : j == 2 ? z[2] : z[3];
      if (mode == II_ERASE_RAND) {
        const int64_t c = i % s.C;
        normals(r, c / 4, z);
        v = c % 4 == 0 ? z[0] : c % 4 == 1 ? z[1] : c % 4 == 2 ? z[2] : z[3];
      }
      if (!later(rects, at, n, r.top + row, r.left + i / s.C)) corner[row * s.W * s.C + i] = v;
    }
  }
}

template <typename R, ii_erase_mode mode>
__global__ void erase_kernel(R *x, const shape s, const int32_t *count, int64_t most,
                             const ii_erase_rect *rects) {
  const int n = *count < most ? *count : (int)most;
  for (int i = blockIdx.y; i < n; i += gridDim.y)
    if (ii_erase_inside(s.N, s.H, s.W, rects + i)) erase_rect<R, mode>(x, s, rects, i, n);
}

template <typename R> int run(ii_kctx *k, const ii_erase_args *a) {
  const shape s = {a->N, a->H, a->W, a->C};
  const int64_t size = a->H * a->W * a->C;
  if (a->N <= 0 || size <= 0 || a->most <= 0) return 0;
  /* a rectangle is a third of an image at most, and a thread may take several blocks of it */
  const int64_t want = ii_ceil_div(size, 4 * 4 * THREADS), y = a->most < 65535 ? a->most : 65535;
  const dim3 grid((unsigned)(want < 64 ? want : 64), (unsigned)y, 1);
  R *x = (R *)a->x;
  if (a->mode == II_ERASE_PIXEL)
    II_LAUNCH(k, (erase_kernel<R, II_ERASE_PIXEL>), grid, THREADS, 0, x, s, a->count, a->most,
              a->rects);
  else if (a->mode == II_ERASE_CONST)
    II_LAUNCH(k, (erase_kernel<R, II_ERASE_CONST>), grid, THREADS, 0, x, s, a->count, a->most,
              a->rects);
  else
    II_LAUNCH(k, (erase_kernel<R, II_ERASE_RAND>), grid, THREADS, 0, x, s, a->count, a->most,
              a->rects);
  return 0;
}

} // namespace

extern "C" int ii_cuda_erase(ii_kctx *k, const ii_erase_args *a) {
  return a->real == II_F64 ? run<double>(k, a) : run<float>(k, a);
}
