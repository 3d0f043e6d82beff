/* Centre feature scale: y = a (1-s) + v s, one s for the D channels of a (row, group); backward
 * ga = gy (1-s), gv = gy s, gs = sum over D of gy (v - a).
 * Mapping: a (row, group) pair is an item; 1 to 32 neighbouring lanes of a warp share one.
 * Bytes: forward items*D*(a + v + y), backward items*D*(gy + ga + gv (each twice when accumulating)
 * + a + v (with gs)); s and gs are small.
 * Limits: 16-byte accesses only where D and the pointers allow them. */
#include "kernels/cuda/reduce.h"

namespace {

template <typename X, typename S> struct mix_args {
  const X *a, *v;
  const S *s;
  X *y;
  const X *gy;
  X *ga, *gv;
  S *gs;
  bool acc_ga, acc_gv, acc_gs;
  int64_t items, D;
  int lanes;
};

template <typename X, typename S, typename R, int V>
__global__ void __launch_bounds__(256, 1) group_mix_items(mix_args<X, S> m) {
  const int lane = threadIdx.x % m.lanes;
  const int64_t thread = (int64_t)blockIdx.x * 256 + threadIdx.x, step = (int64_t)gridDim.x * 256;
  for (int64_t i = thread / m.lanes; i < m.items; i += step / m.lanes) {
    const R s = ii_up(m.s[i]);
    for (int64_t d = lane * V; d < m.D; d += m.lanes * V) {
      R a[V], v[V];
      ii_get(m.a + i * m.D + d, a);
      ii_get(m.v + i * m.D + d, v);
#pragma unroll
      for (int j = 0; j < V; j++) v[j] = a[j] * (R(1) - s) + v[j] * s;
      ii_put(m.y + i * m.D + d, v);
    }
  }
}

/* From gy of V channels: their part of gs, and ga and gv. */
template <typename X, typename S, typename R, int V>
__device__ __forceinline__ R mix_gradient(const mix_args<X, S> &m, int64_t at, R s) {
  R gy[V], a[V], v[V], sum = R(0);
  ii_get(m.gy + at, gy);
  if (m.gs) {
    ii_get(m.a + at, a);
    ii_get(m.v + at, v);
#pragma unroll
    for (int j = 0; j < V; j++) sum += gy[j] * (v[j] - a[j]);
  }
  if (m.ga) {
#pragma unroll
    for (int j = 0; j < V; j++) a[j] = gy[j] * (R(1) - s);
    ii_put_or_add(m.ga + at, a, m.acc_ga);
  }
  if (m.gv) {
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = gy[j] * s;
    ii_put_or_add(m.gv + at, v, m.acc_gv);
  }
  return sum;
}

template <typename X, typename S, typename R, int V>
__global__ void __launch_bounds__(256, 1) group_mix_items_bwd(mix_args<X, S> m) {
  const int lane = threadIdx.x % m.lanes, in_block = threadIdx.x / m.lanes;
  const int per_block = 256 / m.lanes;
  for (int64_t i0 = (int64_t)blockIdx.x * per_block; i0 < m.items;
       i0 += (int64_t)gridDim.x * per_block) {
    const int64_t i = i0 + in_block;
    const bool live = i < m.items; /* all lanes stay for the shuffles */
    R sum = R(0);
    if (live) {
      const R s = ii_up(m.s[i]);
      for (int64_t d = lane * V; d < m.D; d += m.lanes * V)
        sum += mix_gradient<X, S, R, V>(m, i * m.D + d, s);
    }
    if (!m.gs) continue;
    for (int w = m.lanes / 2; w > 0; w /= 2) sum += __shfl_xor_sync(II_FULL_MASK, sum, w);
    if (lane > 0 || !live) continue;
    R out[1] = {sum};
    ii_put_or_add(m.gs + i, out, m.acc_gs);
  }
}

template <typename X, typename S> mix_args<X, S> mix_args_of(const ii_group_mix_args *a, int V) {
  int lanes = 1;
  while (lanes < 32 && lanes * V < a->D) lanes *= 2;
  return {(const X *)a->a,
          (const X *)a->v,
          (const S *)a->s,
          (X *)a->y,
          (const X *)a->gy,
          (X *)a->ga,
          (X *)a->gv,
          (S *)a->gs,
          a->acc_ga,
          a->acc_gv,
          a->acc_gs,
          a->rows * a->G,
          a->D,
          lanes};
}

template <typename X, typename S, typename R, int V>
int forward_with(ii_kctx *k, const ii_group_mix_args *a) {
  const mix_args<X, S> m = mix_args_of<X, S>(a, V);
  II_LAUNCH(k, (group_mix_items<X, S, R, V>), ii_grid_for(k, m.items * m.lanes, 256), 256, 0, m);
  return 0;
}

template <typename X, typename S> int forward(ii_kctx *k, const ii_group_mix_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_wide<X>::n;
  const bool wide = a->D % V == 0 && ii_flat_aligned<V>((const X *)a->a) &&
                    ii_flat_aligned<V>((const X *)a->v) && ii_flat_aligned<V>((X *)a->y);
  return wide ? forward_with<X, S, R, V>(k, a) : forward_with<X, S, R, 1>(k, a);
}

template <typename X, typename S, typename R, int V>
int backward_with(ii_kctx *k, const ii_group_mix_args *a) {
  const mix_args<X, S> m = mix_args_of<X, S>(a, V);
  II_LAUNCH(k, (group_mix_items_bwd<X, S, R, V>), ii_grid_for(k, m.items * m.lanes, 256), 256, 0,
            m);
  return 0;
}

template <typename X, typename S> int backward(ii_kctx *k, const ii_group_mix_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_wide<X>::n;
  const bool wide =
      a->D % V == 0 && ii_flat_aligned<V>((const X *)a->gy) &&
      (!a->gs || (ii_flat_aligned<V>((const X *)a->a) && ii_flat_aligned<V>((const X *)a->v))) &&
      ii_flat_aligned<V>((X *)a->ga) && ii_flat_aligned<V>((X *)a->gv);
  return wide ? backward_with<X, S, R, V>(k, a) : backward_with<X, S, R, 1>(k, a);
}

} // namespace

extern "C" int ii_cuda_group_mix_fwd(ii_kctx *k, const ii_group_mix_args *a) {
  if (a->rows * a->G * a->D == 0) return 0;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->s_dtype, X, S, return forward<X, S>(k, a));
  return 0;
}

extern "C" int ii_cuda_group_mix_bwd(ii_kctx *k, const ii_group_mix_args *a) {
  if (a->rows * a->G == 0 || (!a->ga && !a->gv && !a->gs)) return 0;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->s_dtype, X, S, return backward<X, S>(k, a));
  return 0;
}
