/* Deformable convolution backward, gradients of offsets and modulations by the lanes of a unit
 * (dcn_bwd.cu says how): any type, window and group. */
#ifndef II_DCN_DOTS_H
#define II_DCN_DOTS_H
#include "kernels/cuda/dcn_units.h"

/* What the kernel writes; NULL: not wanted. */
typedef struct {
  void *goffset, *gmask;
  bool acc_goffset, acc_gmask;
} ii_dcn_gradients;

/* Shared memory of one warp. out: K pairs of offsets' gradients, then K of modulations, per unit;
 * base: where those of a unit start in goffset and gmask, -1 for units that do not exist. */
template <typename R> struct ii_dcn_dots_work {
  ii_dcn_quad<R> *quad;
  int4 *at;
  int64_t *base;
  R *out;
};
template <typename R>
constexpr int64_t ii_dcn_dots_tap_bytes = sizeof(ii_dcn_quad<R>) + sizeof(int4) + 3 * sizeof(R);
constexpr int64_t ii_dcn_dots_unit_bytes = 2 * sizeof(int64_t);

template <typename R>
__device__ __forceinline__ ii_dcn_dots_work<R> ii_dcn_dots_work_of(unsigned char *memory, int per,
                                                                   int stride) {
  ii_dcn_dots_work<R> w;
  w.quad = reinterpret_cast<ii_dcn_quad<R> *>(memory);
  w.at = reinterpret_cast<int4 *>(w.quad + per * stride);
  w.base = reinterpret_cast<int64_t *>(w.at + per * stride);
  w.out = reinterpret_cast<R *>(w.base + 2 * per);
  return w;
}

/* What V channels contribute to gm, gdx/(s m), gdy/(s m) of a tap, added to sum[3]. */
template <int V, typename T, typename R>
__device__ __forceinline__ void ii_dcn_tap_dots(const T *x, int64_t x_row, const int4 &at, R lx,
                                                R ly, const R *g, R *sum) {
  ii_vec<T, V> v[4];
  R dot[4] = {};
  ii_dcn_corners<V>(x, x_row, at, v);
#pragma unroll
  for (int c = 0; c < 4; c++)
#pragma unroll
    for (int i = 0; i < V; i++) dot[c] += g[i] * ii_up(v[c].v[i]);
  const R rx = R(1) - lx, ry = R(1) - ly;
  sum[0] += ry * (rx * dot[0] + lx * dot[1]) + ly * (rx * dot[2] + lx * dot[3]);
  sum[1] += ry * (dot[1] - dot[0]) + ly * (dot[3] - dot[2]);
  sum[2] += rx * (dot[2] - dot[0]) + lx * (dot[3] - dot[1]);
}

/* The sum over L lanes of each of v[B]: lane l gets that of v[l % B]. */
template <int B, int L, typename R> __device__ __forceinline__ R ii_dcn_deal(R *v, int l) {
#pragma unroll
  for (int h = B / 2; h > 0; h /= 2) {
    const bool upper = l & h;
#pragma unroll
    for (int i = 0; i < h; i++) {
      const R mine = upper ? v[i + h] : v[i], other = upper ? v[i] : v[i + h];
      v[i] = mine + __shfl_xor_sync(II_FULL_MASK, other, h);
    }
  }
#pragma unroll
  for (int h = B; h < L; h *= 2) v[0] += __shfl_xor_sync(II_FULL_MASK, v[0], h);
  return v[0];
}

/* The gradients of one tap from its sums, to out; returns m times that of the modulation. quad, at,
 * out: the unit's. */
template <typename R>
__device__ __forceinline__ R ii_dcn_finish(const ii_dcn_quad<R> *quad, const int4 *at, R *out,
                                           int K, int k, R gm, R gx, R gy) {
  const bool inside = ii_dcn_inside(at[k]); /* else zeros, whatever gy holds */
  const R sm = quad[k].v[3];
  gm = inside ? gm : R(0);
  out[2 * k] = inside ? sm * gx : R(0);
  out[2 * k + 1] = inside ? sm * gy : R(0);
  out[2 * K + k] = gm;
  return quad[k].v[2] * gm;
}

/* 3 x 3 taps and L*V channels: taps in groups of B, then the ninth. x, gy: the lane's first
 * channel. Lane l % B owns tap k with k % B == l. Returns the lane's part of the sum of m gm. */
template <int V, int L, typename T, typename R>
__device__ __forceinline__ R ii_dcn_dots_of_nine(const ii_dcn_quad<R> *quad, const int4 *at, R *out,
                                                 int l, int64_t x_row, const T *x, const T *gy) {
  constexpr int B = L < 4 ? L : 4;
  const ii_vec<T, V> gv = ii_load<V>(gy);
  R g[V], part = R(0);
#pragma unroll
  for (int i = 0; i < V; i++) g[i] = ii_up(gv.v[i]);
#pragma unroll 1
  for (int k = 0; k < 8; k += B) {
    R gm[B], dx[B], dy[B];
#pragma unroll
    for (int j = 0; j < B; j++) {
      const ii_dcn_quad<R> q = quad[k + j];
      R sum[3] = {};
      ii_dcn_tap_dots<V>(x, x_row, at[k + j], q.v[0], q.v[1], g, sum);
      gm[j] = sum[0];
      dx[j] = sum[1];
      dy[j] = sum[2];
    }
    const R m = ii_dcn_deal<B, L>(gm, l), h = ii_dcn_deal<B, L>(dx, l),
            v = ii_dcn_deal<B, L>(dy, l);
    if (l < B) part += ii_dcn_finish(quad, at, out, 9, k + l, m, h, v);
  }
  R sum[3] = {};
  ii_dcn_tap_dots<V>(x, x_row, at[8], quad[8].v[0], quad[8].v[1], g, sum);
#pragma unroll
  for (int i = 0; i < 3; i++) sum[i] = ii_dcn_deal<1, L>(sum + i, l);
  if (l == 0) part += ii_dcn_finish(quad, at, out, 9, 8, sum[0], sum[1], sum[2]);
  return part;
}

/* Any window and any number of channels. Lane 0 owns all taps. */
template <int V, typename T, typename R>
__device__ __forceinline__ R ii_dcn_dots_of_any(const ii_dcn_shape<R> &s,
                                                const ii_dcn_quad<R> *quad, const int4 *at, R *out,
                                                int l, const T *x, const T *gy) {
  R part = R(0);
  for (int k = 0; k < s.K; k++) {
    const ii_dcn_quad<R> q = quad[k];
    const int4 corners = at[k];
    R sum[3] = {};
    for (int d = l * V; d < s.D; d += s.lanes * V) {
      const ii_vec<T, V> gv = ii_load<V>(gy + d);
      R g[V];
#pragma unroll
      for (int i = 0; i < V; i++) g[i] = ii_up(gv.v[i]);
      ii_dcn_tap_dots<V>(x + d, s.x_row, corners, q.v[0], q.v[1], g, sum);
    }
#pragma unroll
    for (int i = 0; i < 3; i++) sum[i] = ii_dcn_sum(sum[i], s.lanes);
    if (l == 0) part += ii_dcn_finish(quad, at, out, s.K, k, sum[0], sum[1], sum[2]);
  }
  return part;
}

template <typename O, typename R>
__device__ __forceinline__ void ii_dcn_put(O *p, R v, bool accumulate) {
  *p = ii_down<O>(accumulate ? ii_up(*p) + v : v);
}

/* goffset and gmask of the warp's `per` units. */
template <typename O, typename R>
__device__ __forceinline__ void ii_dcn_flush(const ii_dcn_dots_work<R> &w, int per, int K,
                                             O *goffset, O *gmask, bool acc_goffset,
                                             bool acc_gmask) {
  for (int e = threadIdx.x % 32; e < per * 3 * K; e += 32) {
    const int i = e / (3 * K), j = e - i * 3 * K;
    const int64_t base = w.base[2 * i + (j >= 2 * K)];
    if (base < 0) continue;
    if (j < 2 * K) {
      if (goffset) ii_dcn_put(goffset + base + j, w.out[e], acc_goffset);
    } else if (gmask) {
      ii_dcn_put(gmask + base + (j - 2 * K), w.out[e], acc_gmask);
    }
  }
}

/* What a lane works with: its unit and the unit's memory; lane l of the unit. */
template <typename R> struct ii_dcn_dots_lane {
  ii_dcn_unit u;
  int l;
  ii_dcn_dots_work<R> w; /* of the warp */
  ii_dcn_quad<R> *quad;
  int4 *at;
  R *out;
};

/* Lanes per unit, taps from a unit to the next. L: lanes where the sizes are known at compile time
 * (3 x 3 taps, L*V channels), else 0. */
template <int L, typename R>
__device__ __forceinline__ int ii_dcn_dots_lanes(const ii_dcn_shape<R> &s) {
  return L ? L : s.lanes;
}
template <int L, typename R>
__device__ __forceinline__ int ii_dcn_dots_stride(const ii_dcn_shape<R> &s) {
  return L ? 9 : s.stride;
}

/* Stages the taps of the warp's units, which all lanes may read then. memory: the block's. */
template <int L, typename R>
__device__ __forceinline__ ii_dcn_dots_lane<R>
ii_dcn_dots_begin(const ii_dcn_shape<R> &s, unsigned char *memory, const void *offset,
                  const void *mask) {
  const int lanes = ii_dcn_dots_lanes<L>(s), stride = ii_dcn_dots_stride<L>(s);
  const int K = L ? 9 : s.K, kh = L ? 3 : s.kh, per = 32 / lanes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int bytes = per * (stride * (int)ii_dcn_dots_tap_bytes<R> + (int)ii_dcn_dots_unit_bytes);
  ii_dcn_dots_lane<R> me;
  me.l = lane % lanes;
  me.w = ii_dcn_dots_work_of<R>(memory + (size_t)warp * ((bytes + 15) / 16 * 16), per, stride);
  me.quad = me.w.quad + lane / lanes * stride;
  me.at = me.w.at + lane / lanes * stride;
  me.out = me.w.out + lane / lanes * 3 * K;
  const ii_dcn_unit u = me.u = ii_dcn_unit_of(s, lanes);
  if (me.l == 0) {
    me.w.base[lane / lanes * 2] = u.alive ? u.row * s.offset_row + u.g * s.offset_group : -1;
    me.w.base[lane / lanes * 2 + 1] = u.alive ? u.row * s.mask_row + u.g * s.mask_group : -1;
  }
  II_DCN_WITH_OM(R, s.om, O,
                 ii_dcn_stage<false>(s, lanes, K, kh, u, me.l, static_cast<const O *>(offset),
                                     static_cast<const O *>(mask), me.quad, me.at));
  __syncwarp();
  return me;
}

/* The gradients of the warp's units, after ii_dcn_dots_begin. x, gy: of the whole call. */
template <int V, int L, typename T, typename R>
__device__ __forceinline__ void ii_dcn_dots_end(const ii_dcn_shape<R> &s,
                                                const ii_dcn_dots_lane<R> &me, const T *x,
                                                const T *gy, const ii_dcn_gradients &to) {
  const int lanes = ii_dcn_dots_lanes<L>(s), K = L ? 9 : s.K, D = L ? L * V : s.D, l = me.l;
  const int64_t C = (int64_t)s.G * D;
  x += me.u.image * s.x_row + me.u.g * D;
  gy += me.u.row * C + me.u.g * D;
  constexpr int B = L == 0 ? 1 : L < 4 ? L : 4; /* owners of taps */
  R part;
  if constexpr (L != 0)
    part = ii_dcn_dots_of_nine<V, L>(me.quad, me.at, me.out, l, s.x_row, x + l * V, gy + l * V);
  else
    part = ii_dcn_dots_of_any<V>(s, me.quad, me.at, me.out, l, x, gy);
  if (s.softmax) {
    part = ii_dcn_sum(part, lanes);
    if (l < B)
      for (int k = l; k < K; k += B)
        me.out[2 * K + k] = me.quad[k].v[2] * (me.out[2 * K + k] - part);
  }
  __syncwarp();
  II_DCN_WITH_OM(R, s.om, O,
                 ii_dcn_flush(me.w, 32 / lanes, K, static_cast<O *>(to.goffset),
                              static_cast<O *>(to.gmask), to.acc_goffset, to.acc_gmask));
}

#endif
