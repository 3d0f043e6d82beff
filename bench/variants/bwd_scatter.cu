/* Deformable convolution, backward: version 0 of docs/kernels.md, the kernel of the first CUDA
 * engine. Gradients of offsets and modulations are kernels/cuda/dcn_bwd.cu's; gx is scattered:
 * every tap adds m a_c gy to gx at its corners, a_c the bilinear weights.
 *
 * Mapping: dcn_units.h; three phases, each by one warp for its 32/L units.
 *   scatter: gx by atomics. The lanes are dealt out anew, one channel each, so that a unit's
 *     additions at a corner are neighbours in memory and leave the multiprocessor together.
 *   dots, flush: dcn_bwd.cu. No atomics there: goffset and gmask are the same in every run.
 * gx in 16 bits is added up in fp32 scratch memory, as many images at a time as fit 32 MiB (so that
 * it stays in the second-level cache from the zero fill to the conversion), or one.
 *
 * Bytes, 64 x 56 x 56 x 128, G = 4, fp16: least 51.4 (x) + 51.4 (gy) + 43.4 (offsets and
 * modulations) + 51.4 (gx) + 43.4 (their gradients) = 241 MB. This kernel: those, 206 MB of scratch
 * memory (zeros, and read back) which stay in the second-level cache, and 36 fp32 additions per
 * element, 925 million, as atomics on whole sectors, 3.7 GB into that cache: what bounds it.
 * Limits: dcn_variant_is_published; images below 2^31 pixels, sides up to 2^22. The order of the
 * sums of gx, and so their last bits, are free. */
#include "bench/variants/variants.h"
#include "kernels/cuda/dcn_dots.h"

namespace {

const int64_t scratch_bytes = 32 << 20;

/* gx += m a_c gy, for the units of the warp. gx: sums in fp32, pixels `apart` elements apart. */
template <int V, int L, typename T>
__device__ __forceinline__ void scatter(const ii_dcn_shape<float> &s,
                                        const ii_dcn_dots_lane<float> &me, const T *gy, float *gx,
                                        int64_t apart) {
  constexpr int per = 32 / L, D = L * V, spread = D < 32 ? D : 32; /* lanes per unit, here */
  const int lane = threadIdx.x % 32;
  const int64_t gy_at = me.u.alive ? me.u.row * ((int64_t)s.G * D) + me.u.g * D : -1;
  const int64_t gx_at = me.u.image * apart + me.u.g * D;
  for (int first = 0; first < per; first += 32 / spread) {
    const int i = first + lane / spread, from = i < per ? i * L : 0;
    const int64_t gy_i = __shfl_sync(II_FULL_MASK, gy_at, from);
    const int64_t gx_i = __shfl_sync(II_FULL_MASK, gx_at, from);
    if (i >= per || gy_i < 0) continue;
    for (int d = lane % spread; d < D; d += spread) {
      const float g = ii_up(gy[gy_i + d]);
      float *to = gx + gx_i + d;
      for (int k = 0; k < 9; k++) {
        const ii_dcn_quad<float> q = me.w.quad[i * 9 + k];
        const int4 at = me.w.at[i * 9 + k];
        const float lx = q.v[0], ly = q.v[1], top = (1.0f - ly) * (q.v[2] * g);
        const float bottom = ly * (q.v[2] * g);
        if (at.x >= 0) atomicAdd(to + at.x * apart, (1.0f - lx) * top);
        if (at.y >= 0) atomicAdd(to + at.y * apart, lx * top);
        if (at.z >= 0) atomicAdd(to + at.z * apart, (1.0f - lx) * bottom);
        if (at.w >= 0) atomicAdd(to + at.w * apart, lx * bottom);
      }
    }
  }
}

/* sums: of gx, or NULL. */
template <typename T, int V, int L>
__global__ void bwd_scatter(const ii_dcn_shape<float> s, const T *__restrict__ x,
                            const void *offset, const void *mask, const T *__restrict__ gy,
                            float *sums, int64_t apart, const ii_dcn_gradients to) {
  II_SHARED(unsigned char, memory);
  const ii_dcn_dots_lane<float> me = ii_dcn_dots_begin<L>(s, memory, offset, mask);
  if (sums) scatter<V, L>(s, me, gy, sums, apart);
  if (to.goffset || to.gmask) ii_dcn_dots_end<V, L>(s, me, x, gy, to);
}

/* gx = its sums, or += ; by pieces of four channels. */
template <typename T>
__global__ void convert(const float *sums, T *gx, int64_t pieces, int64_t per_pixel, int64_t x_row,
                        bool accumulate) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < pieces; i += step) {
    T *to = gx + i / per_pixel * x_row + i % per_pixel * 4;
    const ii_vec<float, 4> v = ii_load<4>(sums + i * 4);
    ii_vec<T, 4> out = {};
    if (accumulate) out = ii_load<4>(to);
#pragma unroll
    for (int j = 0; j < 4; j++) out.v[j] = ii_down<T>(v.v[j] + ii_up(out.v[j]));
    ii_store<4>(to, out);
  }
}

/* gx = 0, likewise; between its pixels is something else. */
__global__ void clear(float *gx, int64_t pieces, int64_t per_pixel, int64_t x_row) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < pieces; i += step)
    ii_store<4>(gx + i / per_pixel * x_row + i % per_pixel * 4, ii_vec<float, 4>{});
}

template <typename T, int L>
int launch(ii_kctx *k, const ii_dcn_args *a, float *sums, int64_t apart) {
  constexpr int V = ii_wide<T>::n;
  const ii_dcn_gradients to = {a->goffset, a->gmask, a->acc_goffset, a->acc_gmask};
  ii_dcn_shape<float> s = {};
  ii_dcn_launch l = {};
  if (ii_dcn_shape_of(k, a, &s) ||
      ii_dcn_plan(k, L, ii_dcn_dots_tap_bytes<float>, ii_dcn_dots_unit_bytes, &s, &l))
    return 1;
  II_LAUNCH(k, (bwd_scatter<T, V, L>), l.blocks, l.threads, l.shared, s, (const T *)a->x, a->offset,
            a->mask, (const T *)a->gy, sums, apart, to);
  return 0;
}

template <typename T> int run(ii_kctx *k, const ii_dcn_args *a, float *sums, int64_t apart) {
  constexpr int V = ii_wide<T>::n;
  const int64_t D = a->C / a->G;
  if (D == 16) return launch<T, 16 / V>(k, a, sums, apart);
  if (D == 32) return launch<T, 32 / V>(k, a, sums, apart);
  return launch<T, 64 / V>(k, a, sums, apart);
}

/* 16-bit gx: sums in scratch memory, some images at a time, then one conversion. */
template <typename T> int run_by_scratch(ii_kctx *k, const ii_dcn_args *a) {
  if (!a->gx) return run<T>(k, a, NULL, a->C);
  const int64_t each = a->H * a->W * a->C, fit = scratch_bytes / (each * (int64_t)sizeof(float));
  const int64_t turns = ii_ceil_div(a->N, fit < 1 ? 1 : fit), step = ii_ceil_div(a->N, turns);
  float *sums = (float *)ii_cuda_scratch(k, II_SLOT_DCN, (size_t)(step * each) * sizeof *sums);
  if (!sums) return 1;
  for (int64_t n = 0; n < a->N; n += step) {
    const ii_dcn_args b = ii_dcn_images(a, n, a->N - n < step ? a->N - n : step);
    const size_t bytes = (size_t)(b.N * each) * sizeof *sums;
    II_CUDA_TRY(k, cudaMemsetAsync(sums, 0, bytes, ii_cuda_stream(k)));
    if (run<T>(k, &b, sums, a->C)) return 1;
    const int64_t pieces = b.N * each / 4;
    II_LAUNCH(k, convert<T>, ii_grid_for(k, pieces, 256), 256, 0, (const float *)sums, (T *)b.gx,
              pieces, a->C / 4, a->x_row, a->acc_gx);
  }
  return 0;
}

} // namespace

extern "C" int dcn_variant_bwd_scatter(ii_kctx *k, const ii_dcn_args *a) {
  if (a->x_dtype == II_F16) return run_by_scratch<ii_f16>(k, a);
  if (a->x_dtype == II_BF16) return run_by_scratch<ii_bf16>(k, a);
  if (a->gx && !a->acc_gx) {
    const int64_t pieces = a->N * a->H * a->W * a->C / 4;
    II_LAUNCH(k, clear, ii_grid_for(k, pieces, 256), 256, 0, (float *)a->gx, pieces, a->C / 4,
              a->x_row);
  }
  return run<float>(k, a, (float *)a->gx, a->x_row);
}
