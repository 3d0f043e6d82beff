/* Deformable convolution, forward: one launch, softmax included, every element of y written once.
 *   y[u,d] = sum_k sum_c w[k,c] x[at(k,c), d],  w = m_k times the bilinear weight of corner c.
 * The published models' shapes are dcn_fwd_tiles.cu's; here is the kernel for everything else: any
 * window, stride, D, type, alignment.
 *
 * Mapping: dcn_units.h. A unit's lanes share its taps, then each lane gathers V channels (16 bytes
 * where the pointers allow it) per corner, 4K of them, by steps of lanes*V channels.
 *
 * Bytes: x, offsets and modulations once, y once, and whatever part of x falls out of the caches
 * before the windows around it are done. Through L1: 4K gathers of V channels. Offsets and
 * modulations are read in pieces of their own type.
 * Registers on sm_80, 90, 100: at most 88; no spills.
 * Limits: images below 2^31 pixels, sides up to 2^22. */
#include "kernels/cuda/dcn_fwd.h"
#include "kernels/cuda/dcn_units.h"

namespace {

/* V channels of one unit: y = sum over its taps. x: their place in pixel 0 of the image, whose
 * pixels are `apart` elements apart. */
template <int V, typename T, typename R>
__device__ __forceinline__ void gather(const ii_dcn_quad<R> *quad, const int4 *at, int K,
                                       int64_t apart, const T *x, T *y) {
  R sum[V] = {};
#pragma unroll 3
  for (int k = 0; k < K; k++) {
    const ii_dcn_quad<R> w = quad[k];
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

template <typename T, int V>
__global__ void dcn_fwd(const ii_dcn_shape<ii_real_of<T>> s, const T *__restrict__ x,
                        const void *offset, const void *mask, T *__restrict__ y) {
  typedef ii_real_of<T> R;
  const int lanes = s.lanes, K = s.K, D = s.D, stride = s.stride, per = 32 / lanes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, l = lane % lanes;
  II_SHARED(unsigned char, memory);
  ii_dcn_quad<R> *quad = reinterpret_cast<ii_dcn_quad<R> *>(
      memory + (size_t)(warp * per * stride) * (sizeof *quad + sizeof(int4)));
  int4 *at = reinterpret_cast<int4 *>(quad + per * stride);
  quad += lane / lanes * stride;
  at += lane / lanes * stride;

  const ii_dcn_unit u = ii_dcn_unit_of(s, lanes);
  II_DCN_WITH_OM(R, s.om, O,
                 ii_dcn_stage<true>(s, lanes, K, s.kh, u, l, static_cast<const O *>(offset),
                                    static_cast<const O *>(mask), quad, at));
  __syncwarp();
  if (!u.alive) return;
  x += u.image * s.x_row + u.g * D;
  y += u.row * ((int64_t)s.G * D) + u.g * D;
  for (int d = l * V; d < D; d += lanes * V) gather<V>(quad, at, K, s.x_row, x + d, y + d);
}

template <typename T, int V>
int launch(ii_kctx *k, const ii_dcn_args *a, ii_dcn_shape<ii_real_of<T>> s) {
  const int64_t tap = sizeof(ii_dcn_quad<ii_real_of<T>>) + sizeof(int4);
  ii_dcn_launch l = {};
  if (ii_dcn_plan(k, ii_dcn_lanes(s.D / V), tap, 0, &s, &l)) return 1;
  II_LAUNCH(k, (dcn_fwd<T, V>), l.blocks, l.threads, l.shared, s, (const T *)a->x, a->offset,
            a->mask, (T *)a->y);
  return 0;
}

/* The kernel for the call: the widest vectors that divide a group and fit the pointers. */
template <typename T> int run(ii_kctx *k, const ii_dcn_args *a) {
  constexpr int V = ii_wide<T>::n;
  const T *x = (const T *)a->x, *y = (const T *)a->y;
  ii_dcn_shape<ii_real_of<T>> s = {};
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  if (s.D % V == 0 && a->x_row % V == 0 && ii_aligned<V>(x) && ii_aligned<V>(y))
    return launch<T, V>(k, a, s);
  if constexpr (sizeof(T) == 2)
    if (s.D % 2 == 0 && a->x_row % 2 == 0 && ii_aligned<2>(x) && ii_aligned<2>(y))
      return launch<T, 2>(k, a, s);
  return launch<T, 1>(k, a, s);
}

} // namespace

extern "C" int ii_cuda_dcn_fwd(ii_kctx *k, const ii_dcn_args *a) {
  if (a->N * a->G * a->C * a->Ho * a->Wo == 0) return 0;
  if (ii_cuda_dcn_fwd_is_tiled(a)) return ii_cuda_dcn_fwd_tiles(k, a);
  II_WITH_TYPE(k, a->x_dtype, T, return run<T>(k, a));
}
