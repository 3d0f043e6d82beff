/* Dense convolution straight from its formula (kernels.h), any size and type.
 *
 *   y[n,ho,wo,o]  = b[o] + sum_{i,j,c} x[n, ho*s-p+i, wo*s-p+j, c] w[o,c,i,j]
 *   gx[n,h,w,c]   = sum_{i,j,o} gy[n, (h+p-i)/s, (w+p-j)/s, o] w[o,c,i,j], where s divides
 *   gw[o,c,i,j]   = sum_{n,ho,wo} gy[n,ho,wo,o] x[n, ho*s-p+i, wo*s-p+j, c]
 *
 * Forward and gx: one thread per result, neighbouring threads have neighbouring channels. gw: a
 * block has 32 channels of one (o,i,j) and 8 lanes that share the output pixels and are added in
 * order at the end.
 *
 * Bytes moved, known limits: every result reads its whole window through the caches, so this is
 * arithmetic at the speed of loads, tens of times slower than cuDNN. It serves gradient checks in
 * double, and shapes that cuDNN refuses, which no published model has. */
#include "kernels/cuda/conv_direct.h"
#include "kernels/cuda/gpu.h"

namespace {

enum { THREADS = 256, LANES_C = 32, LANES_P = 8 };

struct shape {
  int64_t N, H, W, C, O, Ho, Wo;
  int kh, kw, stride, pad;
};

shape shape_of(const ii_conv2d_args *a) {
  return {a->N, a->H, a->W, a->C, a->O, a->Ho, a->Wo, a->kh, a->kw, a->stride, a->pad};
}

template <typename T, typename R>
__global__ void __launch_bounds__(THREADS)
    conv_direct_fwd(shape s, const T *x, const T *w, const R *b, T *y) {
  const int64_t count = s.N * s.Ho * s.Wo * s.O, step = (int64_t)gridDim.x * THREADS;
  for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < count; at += step) {
    const int64_t o = at % s.O, wo = at / s.O % s.Wo, row = at / s.O / s.Wo;
    const int64_t ho = row % s.Ho, n = row / s.Ho;
    R sum = b ? b[o] : R(0);
    for (int i = 0; i < s.kh; i++)
      for (int j = 0; j < s.kw; j++) {
        const int64_t h = ho * s.stride - s.pad + i, v = wo * s.stride - s.pad + j;
        if (h < 0 || h >= s.H || v < 0 || v >= s.W) continue;
        const T *px = x + ((n * s.H + h) * s.W + v) * s.C;
        const T *pw = w + (o * s.C * s.kh + i) * s.kw + j;
        for (int64_t c = 0; c < s.C; c++) sum += R(ii_up(px[c])) * R(ii_up(pw[c * s.kh * s.kw]));
      }
    y[at] = ii_down<T>(sum);
  }
}

template <typename T, typename R>
__global__ void __launch_bounds__(THREADS)
    conv_direct_bwd_data(shape s, const T *gy, const T *w, T *gx, bool accumulate) {
  const int64_t count = s.N * s.H * s.W * s.C, step = (int64_t)gridDim.x * THREADS;
  for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < count; at += step) {
    const int64_t c = at % s.C, row = at / s.C / s.W, n = row / s.H;
    const int v = (int)(at / s.C % s.W), h = (int)(row % s.H);
    R sum = accumulate ? R(ii_up(gx[at])) : R(0);
    for (int i = 0; i < s.kh; i++)
      for (int j = 0; j < s.kw; j++) {
        const int up = h + s.pad - i, left = v + s.pad - j; /* 32 bits: divided quickly */
        if (up < 0 || left < 0 || up % s.stride || left % s.stride) continue;
        const int ho = up / s.stride, wo = left / s.stride;
        if (ho >= s.Ho || wo >= s.Wo) continue;
        const T *pg = gy + ((n * s.Ho + ho) * s.Wo + wo) * s.O;
        const T *pw = w + (c * s.kh + i) * s.kw + j;
        for (int64_t o = 0; o < s.O; o++)
          sum += R(ii_up(pg[o])) * R(ii_up(pw[o * s.C * s.kh * s.kw]));
      }
    gx[at] = ii_down<T>(sum);
  }
}

template <typename T, typename R>
__global__ void __launch_bounds__(LANES_C *LANES_P)
    conv_direct_bwd_filter(shape s, const T *x, const T *gy, R *gw, bool accumulate) {
  __shared__ R sums[LANES_P][LANES_C];
  const int64_t chunks = (s.C + LANES_C - 1) / LANES_C, taps = (int64_t)s.kh * s.kw;
  const int64_t c = blockIdx.x % chunks * LANES_C + threadIdx.x;
  const int64_t tap = blockIdx.x / chunks % taps, o = blockIdx.x / chunks / taps;
  const int64_t i = tap / s.kw, j = tap % s.kw, pixels = s.N * s.Ho * s.Wo;
  R sum = R(0);
  for (int64_t p = threadIdx.y; c < s.C && p < pixels; p += LANES_P) {
    const int64_t h = p / s.Wo % s.Ho * s.stride - s.pad + i;
    const int64_t v = p % s.Wo * s.stride - s.pad + j, n = p / s.Wo / s.Ho;
    if (h < 0 || h >= s.H || v < 0 || v >= s.W) continue;
    sum += R(ii_up(gy[p * s.O + o])) * R(ii_up(x[((n * s.H + h) * s.W + v) * s.C + c]));
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= s.C) return;
  for (int lane = 1; lane < LANES_P; lane++) sum += sums[lane][threadIdx.x];
  R *out = gw + (o * s.C + c) * taps + tap;
  *out = accumulate ? *out + sum : sum;
}

} // namespace

int ii_conv_direct_fwd(ii_kctx *k, const ii_conv2d_args *a) {
  const shape s = shape_of(a);
  const unsigned grid = ii_grid_for(k, s.N * s.Ho * s.Wo * s.O, THREADS);
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    II_LAUNCH(k, (conv_direct_fwd<T, R>), grid, THREADS, 0, s, (const T *)a->x, (const T *)a->w,
              (const R *)a->b, (T *)a->y);
  })
  return 0;
}

int ii_conv_direct_bwd_data(ii_kctx *k, const ii_conv2d_args *a) {
  const shape s = shape_of(a);
  const unsigned grid = ii_grid_for(k, s.N * s.H * s.W * s.C, THREADS);
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    II_LAUNCH(k, (conv_direct_bwd_data<T, R>), grid, THREADS, 0, s, (const T *)a->gy,
              (const T *)a->w, (T *)a->gx, a->acc_gx);
  })
  return 0;
}

int ii_conv_direct_bwd_filter(ii_kctx *k, const ii_conv2d_args *a) {
  const shape s = shape_of(a);
  const int64_t blocks = s.O * s.kh * s.kw * ii_ceil_div(s.C, LANES_C);
  if (blocks > INT32_MAX)
    return ii_cuda_error(k, "convolution with %lld weights: too many for the direct kernel",
                         (long long)(s.O * s.C * s.kh * s.kw));
  II_WITH_TYPE(k, a->x_dtype, T, {
    typedef ii_real_of<T> R;
    II_LAUNCH(k, (conv_direct_bwd_filter<T, R>), (unsigned)blocks, dim3(LANES_C, LANES_P), 0, s,
              (const T *)a->x, (const T *)a->gy, (R *)a->gw, a->acc_gw);
  })
  return 0;
}
