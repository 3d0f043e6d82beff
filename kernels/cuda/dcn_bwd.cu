/* Deformable convolution, backward. S_c = <gy, corner c> over the D channels of a unit, corners
 * TL TR BL BR = 0..3, fractions lx, ly, modulation m, scale s. A tap inside the image has
 *   gm  = (1-ly) ((1-lx) S_0 + lx S_1) + ly ((1-lx) S_2 + lx S_3)
 *   gdx = s m ((1-ly) (S_1 - S_0) + ly (S_3 - S_2))
 *   gdy = s m ((1-lx) (S_2 - S_0) + lx (S_3 - S_1))
 * With softmax, the gradient of logit k is m_k (gm_k - sum_j m_j gm_j).
 *
 * The gradient of x is gathered by kernels of its own (dcn_gx.h); here are those of offsets and
 * modulations. No atomics anywhere: all results are the same in every run.
 *
 * Mapping: dcn_units.h; two phases, each by one warp for its 32/lanes units.
 *   dots: a lane gathers V channels of the corners (16 bytes) and has its part of gm, gdx, gdy;
 *     lanes trade those of B taps in such a way that each ends with the whole sums of one tap
 *     (B-1 shuffles per number and B taps, not B log2(lanes)).
 *   flush: goffset and gmask from shared memory to where the strides say, in memory order, in their
 *     own type, each once.
 *
 * Bytes, 64 x 56 x 56 x 128, G = 4, fp16: 51.4 MB (x) + 51.4 (gy) + 43.4 (offsets and modulations)
 * + 43.4 (their gradients) = 190 MB; through L1 36 gathers of 16 bytes per 8 channels, 1.85 GB.
 * Counts of instructions and registers: docs/kernels.md.
 * Limits: as forward. */
#include "kernels/cuda/dcn_dots.h"
#include "kernels/cuda/dcn_gx.h"

namespace {

/* Scratch memory for far taps, if one image does not need more. */
const int64_t scratch_bytes = 64 << 20;

template <typename T, int V, int L>
__global__ void dcn_bwd(const ii_dcn_shape<ii_real_of<T>> s, const T *__restrict__ x,
                        const void *offset, const void *mask, const T *__restrict__ gy,
                        const ii_dcn_gradients to) {
  II_SHARED(unsigned char, memory);
  const ii_dcn_dots_lane<ii_real_of<T>> me = ii_dcn_dots_begin<L>(s, memory, offset, mask);
  ii_dcn_dots_end<V, L>(s, me, x, gy, to);
}

template <typename T, int V, int L>
int launch(ii_kctx *k, const ii_dcn_args *a, ii_dcn_shape<ii_real_of<T>> s,
           const ii_dcn_gradients &to) {
  ii_dcn_launch l = {};
  if (ii_dcn_plan(k, L ? L : ii_dcn_lanes(s.D / V), ii_dcn_dots_tap_bytes<ii_real_of<T>>,
                  ii_dcn_dots_unit_bytes, &s, &l))
    return 1;
  II_LAUNCH(k, (dcn_bwd<T, V, L>), l.blocks, l.threads, l.shared, s, (const T *)a->x, a->offset,
            a->mask, (const T *)a->gy, to);
  return 0;
}

/* The kernel for the call, as in dcn_fwd.cu. */
template <typename T> int dots(ii_kctx *k, const ii_dcn_args *a) {
  constexpr int V = ii_wide<T>::n;
  const T *x = (const T *)a->x, *gy = (const T *)a->gy;
  const ii_dcn_gradients to = {a->goffset, a->gmask, a->acc_goffset, a->acc_gmask};
  ii_dcn_shape<ii_real_of<T>> s = {};
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  if (s.D % V == 0 && s.x_row % V == 0 && ii_aligned<V>(x) && ii_aligned<V>(gy)) {
    if constexpr (sizeof(T) < 8) {
      if (ii_dcn_nine(a, s, 16 / V, V)) return launch<T, V, 16 / V>(k, a, s, to);
      if (ii_dcn_nine(a, s, 32 / V, V)) return launch<T, V, 32 / V>(k, a, s, to);
      if (ii_dcn_nine(a, s, 64 / V, V)) return launch<T, V, 64 / V>(k, a, s, to);
    }
    return launch<T, V, 0>(k, a, s, to);
  }
  if constexpr (sizeof(T) == 2)
    if (s.D % 2 == 0 && s.x_row % 2 == 0 && ii_aligned<2>(x) && ii_aligned<2>(gy))
      return launch<T, 2, 0>(k, a, s, to);
  return launch<T, 1, 0>(k, a, s, to);
}

/* gx = 0, where there is nothing to sum. */
template <typename T> __global__ void dcn_clear(T *gx, int64_t numel, int64_t C, int64_t x_row) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < numel; i += step)
    gx[i / C * x_row + i % C] = ii_down<T>(ii_real_of<T>(0));
}
template <typename T> int clear(ii_kctx *k, const ii_dcn_args *a) {
  const int64_t numel = a->N * a->H * a->W * a->C;
  II_LAUNCH(k, dcn_clear<T>, ii_grid_for(k, numel, 256), 256, 0, (T *)a->gx, numel, a->C, a->x_row);
  return 0;
}

template <typename T> int run(ii_kctx *k, const ii_dcn_args *a) {
  const bool gx = a->gx && a->N * a->H * a->W * a->C > 0;
  if (a->N * a->Ho * a->Wo * a->G * ii_dcn_taps(a->kh, a->kw, a->remove_center) == 0)
    return gx && !a->acc_gx ? clear<T>(k, a) : 0;
  ii_dcn_shape<ii_real_of<T>> s = {}; /* first of all whether the image is one for 32 bits */
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  if (s.K > II_DCN_MOST_TAPS)
    return ii_cuda_error(k, "dcn: no kernel for windows of %d taps; use a smaller window", s.K);
  const ii_dcn_tiling t = ii_dcn_tiling_of(a);
  if (gx &&
      ii_cuda_dcn_gather(k, a, t, ii_cuda_dcn_gx_has_mma(a) ? ii_cuda_dcn_gx_mma : ii_cuda_dcn_gx))
    return 1;
  if (!a->goffset && !a->gmask) return 0;
  return ii_cuda_dcn_dots_has_mma(a, t) ? ii_cuda_dcn_dots_mma(k, a) : dots<T>(k, a);
}

} // namespace

int ii_cuda_dcn_gather(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t,
                       ii_dcn_gx_kernel gx) {
  const int64_t fit = scratch_bytes / ii_dcn_far_bytes(t, a->G);
  const int64_t turns = ii_ceil_div(a->N, fit < 1 ? 1 : fit), step = ii_ceil_div(a->N, turns);
  void *memory = ii_cuda_scratch(k, II_SLOT_DCN, (size_t)ii_dcn_far_bytes(t, step * a->G));
  if (!memory) return 1;
  for (int64_t n = 0; n < a->N; n += step) {
    const ii_dcn_args b = ii_dcn_images(a, n, a->N - n < step ? a->N - n : step);
    ii_dcn_far far = {};
    if (ii_cuda_dcn_find_far(k, &b, t, memory, &far) || gx(k, &b, t, far)) return 1;
  }
  return 0;
}

int ii_cuda_dcn_dots(ii_kctx *k, const ii_dcn_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return dots<T>(k, a));
}

extern "C" int ii_cuda_dcn_bwd(ii_kctx *k, const ii_dcn_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return run<T>(k, a));
}
