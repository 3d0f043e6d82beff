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
#include "kernels/cuda/dcn_gx.h"

namespace {

/* Scratch memory for far taps, if one image does not need more. */
const int64_t scratch_bytes = 64 << 20;

/* What the kernel writes; NULL: not wanted. */
typedef struct {
  void *goffset, *gmask;
  bool acc_goffset, acc_gmask;
} gradients;

/* Shared memory of one warp. out: K pairs of offsets' gradients, then K of modulations, per unit;
 * base: where those of a unit start in goffset and gmask, -1 for units that do not exist. */
template <typename R> struct workspace {
  ii_dcn_quad<R> *quad;
  int4 *at;
  int64_t *base;
  R *out;
};
template <typename R>
constexpr int64_t tap_bytes = sizeof(ii_dcn_quad<R>) + sizeof(int4) + 3 * sizeof(R);
constexpr int64_t unit_bytes = 2 * sizeof(int64_t);

template <typename R>
__device__ __forceinline__ workspace<R> workspace_of(unsigned char *memory, int per, int stride) {
  workspace<R> w;
  w.quad = reinterpret_cast<ii_dcn_quad<R> *>(memory);
  w.at = reinterpret_cast<int4 *>(w.quad + per * stride);
  w.base = reinterpret_cast<int64_t *>(w.at + per * stride);
  w.out = reinterpret_cast<R *>(w.base + 2 * per);
  return w;
}

/* What V channels contribute to gm, gdx/(s m), gdy/(s m) of a tap, added to sum[3]. */
template <int V, typename T, typename R>
__device__ __forceinline__ void tap_dots(const T *x, int64_t x_row, const int4 &at, R lx, R ly,
                                         const R *g, R *sum) {
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
template <int B, int L, typename R> __device__ __forceinline__ R deal(R *v, int l) {
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
__device__ __forceinline__ R finish(const ii_dcn_quad<R> *quad, const int4 *at, R *out, int K,
                                    int k, R gm, R gx, R gy) {
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
__device__ __forceinline__ R dots_of_nine(const ii_dcn_quad<R> *quad, const int4 *at, R *out, int l,
                                          int64_t x_row, const T *x, const T *gy) {
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
      tap_dots<V>(x, x_row, at[k + j], q.v[0], q.v[1], g, sum);
      gm[j] = sum[0];
      dx[j] = sum[1];
      dy[j] = sum[2];
    }
    const R m = deal<B, L>(gm, l), h = deal<B, L>(dx, l), v = deal<B, L>(dy, l);
    if (l < B) part += finish(quad, at, out, 9, k + l, m, h, v);
  }
  R sum[3] = {};
  tap_dots<V>(x, x_row, at[8], quad[8].v[0], quad[8].v[1], g, sum);
#pragma unroll
  for (int i = 0; i < 3; i++) sum[i] = deal<1, L>(sum + i, l);
  if (l == 0) part += finish(quad, at, out, 9, 8, sum[0], sum[1], sum[2]);
  return part;
}

/* Any window and any number of channels. Lane 0 owns all taps. */
template <int V, typename T, typename R>
__device__ __forceinline__ R dots_of_any(const ii_dcn_shape<R> &s, const ii_dcn_quad<R> *quad,
                                         const int4 *at, R *out, int l, const T *x, const T *gy) {
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
      tap_dots<V>(x + d, s.x_row, corners, q.v[0], q.v[1], g, sum);
    }
#pragma unroll
    for (int i = 0; i < 3; i++) sum[i] = ii_dcn_sum(sum[i], s.lanes);
    if (l == 0) part += finish(quad, at, out, s.K, k, sum[0], sum[1], sum[2]);
  }
  return part;
}

template <typename O, typename R> __device__ __forceinline__ void put(O *p, R v, bool accumulate) {
  *p = ii_down<O>(accumulate ? ii_up(*p) + v : v);
}

/* goffset and gmask of the warp's `per` units. */
template <typename O, typename R>
__device__ __forceinline__ void flush(const workspace<R> &w, int per, int K, O *goffset, O *gmask,
                                      bool acc_goffset, bool acc_gmask) {
  for (int e = threadIdx.x % 32; e < per * 3 * K; e += 32) {
    const int i = e / (3 * K), j = e - i * 3 * K;
    const int64_t base = w.base[2 * i + (j >= 2 * K)];
    if (base < 0) continue;
    if (j < 2 * K) {
      if (goffset) put(goffset + base + j, w.out[e], acc_goffset);
    } else if (gmask) {
      put(gmask + base + (j - 2 * K), w.out[e], acc_gmask);
    }
  }
}

template <typename T, int V, int L>
__global__ void dcn_bwd(const ii_dcn_shape<ii_real_of<T>> s, const T *__restrict__ x,
                        const void *offset, const void *mask, const T *__restrict__ gy,
                        const gradients to) {
  typedef ii_real_of<T> R;
  const int lanes = L ? L : s.lanes, K = L ? 9 : s.K, kh = L ? 3 : s.kh, D = L ? L * V : s.D;
  const int stride = L ? 9 : s.stride, per = 32 / lanes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, l = lane % lanes;
  II_SHARED(unsigned char, memory);
  const int bytes = per * (stride * (int)tap_bytes<R> + (int)unit_bytes);
  const workspace<R> w =
      workspace_of<R>(memory + (size_t)warp * ((bytes + 15) / 16 * 16), per, stride);
  ii_dcn_quad<R> *quad = w.quad + lane / lanes * stride;
  int4 *at = w.at + lane / lanes * stride;
  R *out = w.out + lane / lanes * 3 * K;

  const ii_dcn_unit u = ii_dcn_unit_of(s, lanes);
  if (l == 0) {
    w.base[lane / lanes * 2] = u.alive ? u.row * s.offset_row + u.g * s.offset_group : -1;
    w.base[lane / lanes * 2 + 1] = u.alive ? u.row * s.mask_row + u.g * s.mask_group : -1;
  }
  II_DCN_WITH_OM(R, s.om, O,
                 ii_dcn_stage<false>(s, lanes, K, kh, u, l, static_cast<const O *>(offset),
                                     static_cast<const O *>(mask), quad, at));
  __syncwarp();
  const int64_t C = (int64_t)s.G * D;
  x += u.image * s.x_row + u.g * D;
  gy += u.row * C + u.g * D;
  constexpr int B = L == 0 ? 1 : L < 4 ? L : 4; /* owners of taps */
  R part;
  if constexpr (L != 0)
    part = dots_of_nine<V, L>(quad, at, out, l, s.x_row, x + l * V, gy + l * V);
  else
    part = dots_of_any<V>(s, quad, at, out, l, x, gy);
  if (s.softmax) {
    part = ii_dcn_sum(part, lanes);
    if (l < B)
      for (int k = l; k < K; k += B) out[2 * K + k] = quad[k].v[2] * (out[2 * K + k] - part);
  }
  __syncwarp();
  II_DCN_WITH_OM(R, s.om, O,
                 flush(w, per, K, static_cast<O *>(to.goffset), static_cast<O *>(to.gmask),
                       to.acc_goffset, to.acc_gmask));
}

template <typename T, int V, int L>
int launch(ii_kctx *k, const ii_dcn_args *a, ii_dcn_shape<ii_real_of<T>> s, const gradients &to) {
  ii_dcn_launch l = {};
  if (ii_dcn_plan(k, L ? L : ii_dcn_lanes(s.D / V), tap_bytes<ii_real_of<T>>, unit_bytes, &s, &l))
    return 1;
  II_LAUNCH(k, (dcn_bwd<T, V, L>), l.blocks, l.threads, l.shared, s, (const T *)a->x, a->offset,
            a->mask, (const T *)a->gy, to);
  return 0;
}

/* The kernel for the call, as in dcn_fwd.cu. */
template <typename T> int dots(ii_kctx *k, const ii_dcn_args *a) {
  constexpr int V = ii_wide<T>::n;
  const T *x = (const T *)a->x, *gy = (const T *)a->gy;
  const gradients to = {a->goffset, a->gmask, a->acc_goffset, a->acc_gmask};
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

const void *skip(const void *p, int64_t n, ii_dtype t) {
  return p ? (const char *)p + n * (int64_t)ii_dtype_size(t) : NULL;
}

/* `count` images of a, from n on. */
ii_dcn_args images(const ii_dcn_args *a, int64_t n, int64_t count) {
  const int64_t rows = n * a->Ho * a->Wo, pixels = n * a->H * a->W;
  ii_dcn_args b = *a;
  b.N = count;
  b.x = skip(a->x, pixels * a->x_row, a->x_dtype);
  b.gy = skip(a->gy, rows * a->C, a->x_dtype);
  b.gx = (void *)skip(a->gx, pixels * a->x_row, a->x_dtype);
  b.offset = skip(a->offset, rows * a->offset_row, a->om_dtype);
  b.mask = skip(a->mask, rows * a->mask_row, a->om_dtype);
  b.goffset = (void *)skip(a->goffset, rows * a->offset_row, a->om_dtype);
  b.gmask = (void *)skip(a->gmask, rows * a->mask_row, a->om_dtype);
  return b;
}

/* gx, so many images at a time that their lists of far taps fit scratch_bytes, or one. */
int gather(ii_kctx *k, const ii_dcn_args *a) {
  const ii_dcn_tiling t = ii_dcn_tiling_of(a);
  const int64_t fit = scratch_bytes / ii_dcn_far_bytes(t, a->G);
  const int64_t turns = ii_ceil_div(a->N, fit < 1 ? 1 : fit), step = ii_ceil_div(a->N, turns);
  void *memory = ii_cuda_scratch(k, II_SLOT_DCN, (size_t)ii_dcn_far_bytes(t, step * a->G));
  if (!memory) return 1;
  for (int64_t n = 0; n < a->N; n += step) {
    const ii_dcn_args b = images(a, n, a->N - n < step ? a->N - n : step);
    ii_dcn_far far = {};
    if (ii_cuda_dcn_find_far(k, &b, t, memory, &far)) return 1;
    if (ii_cuda_dcn_gx_has_mma(&b) ? ii_cuda_dcn_gx_mma(k, &b, t, far)
                                   : ii_cuda_dcn_gx(k, &b, t, far))
      return 1;
  }
  return 0;
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
  if (gx && gather(k, a)) return 1;
  if (!a->goffset && !a->gmask) return 0;
  return ii_cuda_dcn_dots_has_mma(a, ii_dcn_tiling_of(a)) ? ii_cuda_dcn_dots_mma(k, a)
                                                          : dots<T>(k, a);
}

} // namespace

extern "C" int ii_cuda_dcn_bwd(ii_kctx *k, const ii_dcn_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return run<T>(k, a));
}
