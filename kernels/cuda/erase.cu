/* Random erasing: rectangles of noise, drawn by counter, in place.
 *
 * The rectangles are arguments of the launch, so nothing is uploaded and nobody waits: up to
 * LIST of them at a time, each of another image, because rectangles of one image may overlap and
 * are written one after another. blockIdx.y is the rectangle, blockIdx.x walks through it; a thread
 * makes the four neighbouring elements of one Philox block. Bytes: the rectangles, written once. */
#include "kernels/cuda/gpu.h"

namespace {

constexpr int THREADS = 128, LIST = 32;

struct list {
  ii_erase_rect at[LIST];
};

struct shape {
  int64_t H, W, C;
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

template <typename R, ii_erase_mode mode>
__global__ void erase_kernel(R *x, const shape s, const list rects) {
  const ii_erase_rect &r = rects.at[blockIdx.y];
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
      corner[row * s.W * s.C + i] = v;
    }
  }
}

/* How many rectangles from `first` on fit into one launch, and the elements of the largest. */
int gather(const ii_erase_args *a, int64_t first, list *l, int64_t *largest) {
  int n = 0;
  *largest = 0;
  for (int64_t i = first; i < a->count && n < LIST; i++, n++) {
    const ii_erase_rect *r = &a->rects[i];
    for (int j = 0; j < n; j++)
      if (l->at[j].image == r->image) return n;
    const int64_t size = (int64_t)r->height * r->width * a->C;
    if (size > *largest) *largest = size;
    l->at[n] = *r;
  }
  return n;
}

template <typename R> int run(ii_kctx *k, const ii_erase_args *a) {
  const shape s = {a->H, a->W, a->C};
  list l = {};
  int64_t largest;
  for (int64_t first = 0; first < a->count;) {
    const int n = gather(a, first, &l, &largest);
    first += n;
    if (largest == 0) continue;
    const int64_t want = ii_ceil_div(ii_ceil_div(largest, 4), THREADS);
    const dim3 grid((unsigned)(want < 1024 ? want : 1024), (unsigned)n, 1);
    if (a->mode == II_ERASE_PIXEL)
      II_LAUNCH(k, (erase_kernel<R, II_ERASE_PIXEL>), grid, THREADS, 0, (R *)a->x, s, l);
    else if (a->mode == II_ERASE_CONST)
      II_LAUNCH(k, (erase_kernel<R, II_ERASE_CONST>), grid, THREADS, 0, (R *)a->x, s, l);
    else
      II_LAUNCH(k, (erase_kernel<R, II_ERASE_RAND>), grid, THREADS, 0, (R *)a->x, s, l);
  }
  return 0;
}

} // namespace

extern "C" int ii_cuda_erase(ii_kctx *k, const ii_erase_args *a) {
  for (int64_t i = 0; i < a->count; i++)
    if (!ii_erase_inside(a, &a->rects[i])) return ii_cuda_error(k, II_ERASE_OUTSIDE, (long long)i);
  return a->real == II_F64 ? run<double>(k, a) : run<float>(k, a);
}
