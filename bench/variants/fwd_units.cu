/* Deformable convolution, forward: version 0 of docs/kernels.md, the kernel of the first CUDA
 * engine. The mathematics is that of kernels/cuda/dcn_fwd.cu:
 *   y[u,d] = sum_k sum_c w[k,c] x[at(k,c), d],  w = m_k times the bilinear weight of corner c.
 *
 * Mapping: dcn_units.h. A unit's L lanes share its nine taps, each computed once and left in shared
 * memory; then each lane gathers 16 bytes (V channels) per corner, 36 of them, under a predicate
 * that keeps corners outside the image from being read, and stores 16 bytes.
 *
 * Bytes, 64 x 56 x 56 x 128, G = 4, fp16: least 51.4 (x) + 51.4 (y) + 43.4 (offsets and
 * modulations) = 146 MB; this kernel moves those and whatever part of x falls out of the caches
 * before the windows around it are done. Through L1: 36 gathers of 16 bytes per 8 channels, 1.85
 * GB. Offsets and modulations are read once, in pieces of their own type.
 * Limits: dcn_variant_is_published; images below 2^31 pixels, sides up to 2^22. */
#include "bench/variants/variants.h"
#include "kernels/cuda/dcn_units.h"

namespace {

/* V channels of one unit: y = sum over its taps. x: their place in pixel 0 of the image, whose
 * pixels are `apart` elements apart. */
template <int V, typename T>
__device__ __forceinline__ void gather(const ii_dcn_quad<float> *quad, const int4 *at,
                                       int64_t apart, const T *x, T *y) {
  float sum[V] = {};
#pragma unroll 3
  for (int k = 0; k < 9; k++) {
    const ii_dcn_quad<float> w = quad[k];
    ii_vec<T, V> v[4];
    ii_dcn_corners<V>(x, apart, at[k], v);
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
      for (int i = 0; i < V; i++) sum[i] += w.v[c] * ii_up(v[c].v[i]);
  }
  ii_vec<T, V> out;
#pragma unroll
  for (int i = 0; i < V; i++) out.v[i] = ii_down<T>(sum[i]);
  ii_store<V>(y, out);
}

template <typename T, int V, int L>
__global__ void fwd_units(const ii_dcn_shape<float> s, const T *__restrict__ x, const void *offset,
                          const void *mask, T *__restrict__ y) {
  constexpr int per = 32 / L, D = L * V;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, l = lane % L;
  II_SHARED(unsigned char, memory);
  ii_dcn_quad<float> *quad = reinterpret_cast<ii_dcn_quad<float> *>(
      memory + (size_t)(warp * per * 9) * (sizeof *quad + sizeof(int4)));
  int4 *at = reinterpret_cast<int4 *>(quad + per * 9);
  quad += lane / L * 9;
  at += lane / L * 9;

  const ii_dcn_unit u = ii_dcn_unit_of(s, L);
  II_DCN_WITH_OM(float, s.om, O,
                 ii_dcn_stage<true>(s, L, 9, 3, u, l, static_cast<const O *>(offset),
                                    static_cast<const O *>(mask), quad, at));
  __syncwarp();
  if (!u.alive) return;
  x += u.image * s.x_row + u.g * D + l * V;
  y += u.row * ((int64_t)s.G * D) + u.g * D + l * V;
  gather<V>(quad, at, s.x_row, x, y);
}

template <typename T, int L> int launch(ii_kctx *k, const ii_dcn_args *a) {
  constexpr int V = ii_wide<T>::n;
  const int64_t tap = sizeof(ii_dcn_quad<float>) + sizeof(int4);
  ii_dcn_shape<float> s = {};
  ii_dcn_launch l = {};
  if (ii_dcn_shape_of(k, a, &s) || ii_dcn_plan(k, L, tap, 0, &s, &l)) return 1;
  II_LAUNCH(k, (fwd_units<T, V, L>), l.blocks, l.threads, l.shared, s, (const T *)a->x, a->offset,
            a->mask, (T *)a->y);
  return 0;
}

template <typename T> int run(ii_kctx *k, const ii_dcn_args *a) {
  constexpr int V = ii_wide<T>::n;
  const int64_t D = a->C / a->G;
  if (D == 16) return launch<T, 16 / V>(k, a);
  if (D == 32) return launch<T, 32 / V>(k, a);
  return launch<T, 64 / V>(k, a);
}

} // namespace

extern "C" int dcn_variant_fwd_units(ii_kctx *k, const ii_dcn_args *a) {
  if (a->x_dtype == II_F32) return run<float>(k, a);
  if (a->x_dtype == II_F16) return run<ii_f16>(k, a);
  return run<ii_bf16>(k, a);
}
