/* Deformable convolution, gradient of x: a tile's sums by the 32 lanes of a warp, any type, window
 * and group (dcn_gx.cu says how). All channels of a slice are added in the same order. */
#ifndef II_DCN_GX_SUM_H
#define II_DCN_GX_SUM_H
#include "kernels/cuda/dcn_gx.h"

/* A tap in work: corner weights with the modulation; x, y: the top left corner within the tile,
 * from -1 on; z: the output pixel. */
template <typename R> struct ii_dcn_listed {
  ii_dcn_quad<R> w;
  int4 at;
};

/* What a warp works with; wide: channels per slice; offset, mask: of the group in output 0 of the
 * image; gy: the slice's first channel there; list[32], sum[II_DCN_PIXELS][wide]: in shared memory.
 */
template <typename O, typename T, typename R> struct ii_dcn_sum_work {
  ii_dcn_tile t;
  int wide, left; /* left: channels of the slice */
  const O *offset, *mask;
  const T *gy;
  ii_dcn_listed<R> *list;
  R *sum;
};

/* Tap k of output q. False when it does not touch the tile. */
template <typename O, typename T, typename R>
__device__ __forceinline__ bool
ii_dcn_find(const ii_dcn_shape<R> &s, const ii_dcn_sum_work<O, T, R> &w, const ii_dcn_norm<R> &r,
            int q, int k, ii_dcn_listed<R> *e) {
  const int ho = q / s.Wo, wo = q - ho * s.Wo;
  const O *from = w.offset + q * s.offset_row + 2 * k;
  const ii_dcn_place<R> p = ii_dcn_locate(s, s.kh, ho, wo, k, R(ii_up(from[0])), R(ii_up(from[1])));
  const int y = p.y0 - w.t.y, x = p.x0 - w.t.x;
  if (!ii_dcn_inside(p.at) || y < -1 || y >= II_DCN_TILE || x < -1 || x >= II_DCN_TILE)
    return false;
  e->at = make_int4(x, y, q, 0);
  const R m = ii_dcn_modulation(s, r, R(ii_up(w.mask[q * s.mask_row + k])));
  e->w = ii_dcn_quad_of<true>(p, m, s.scale);
  return true;
}

/* Adds the lanes' taps, where `here`, to the tile. */
template <typename O, typename T, typename R>
__device__ __forceinline__ void ii_dcn_add(const ii_dcn_shape<R> &s,
                                           const ii_dcn_sum_work<O, T, R> &w, bool here,
                                           const ii_dcn_listed<R> &mine) {
  const int lane = threadIdx.x % 32, d = lane % w.wide, team = lane / w.wide;
  const int teams = w.wide > 16 ? 1 : w.wide > 8 ? 2 : 4;
  const int64_t C = (int64_t)s.G * s.D;
  const unsigned all = __ballot_sync(II_FULL_MASK, here);
  if (here) w.list[__popc(all & ((1u << lane) - 1u))] = mine;
  __syncwarp();
  if (d < w.left && team < teams)
    for (int i = 0; i < __popc(all); i++) {
      const ii_dcn_listed<R> e = w.list[i];
      const R g = ii_up(w.gy[e.at.z * C + d]);
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int y = e.at.y + c / 2, x = e.at.x + c % 2;
        if ((((y & 1) + 2 * (x & 1)) & (teams - 1)) == team && (unsigned)y < II_DCN_TILE &&
            (unsigned)x < II_DCN_TILE)
          w.sum[(y * II_DCN_TILE + x) * w.wide + d] += e.w.v[c] * g;
      }
    }
  __syncwarp();
}

template <typename O, typename T, typename R>
__device__ __forceinline__ void ii_dcn_add_near(const ii_dcn_shape<R> &s,
                                                const ii_dcn_sum_work<O, T, R> &w) {
  const int count = w.t.nh * w.t.nw;
  for (int first = 0; first < count; first += 32) {
    const int i = first + (int)threadIdx.x % 32, at = i < count ? i : first;
    const int q = (w.t.ho + at / w.t.nw) * s.Wo + w.t.wo + at % w.t.nw;
    const ii_dcn_norm<R> r = ii_dcn_norm_of(s, s.K, w.mask + q * s.mask_row);
    for (int k = 0; k < s.K; k++) {
      ii_dcn_listed<R> mine;
      const bool here = i < count && ii_dcn_find(s, w, r, q, k, &mine);
      ii_dcn_add(s, w, here, mine);
    }
  }
}

/* The far taps of output tile (h, v); taps: its list, count: its length. */
template <typename O, typename T, typename R>
__device__ __forceinline__ void ii_dcn_add_far(const ii_dcn_shape<R> &s,
                                               const ii_dcn_sum_work<O, T, R> &w, int h, int v,
                                               int count, const ii_dcn_far_tap *taps) {
  for (int first = 0; first < count; first += 32) {
    const int i = first + (int)threadIdx.x % 32;
    bool here = i < count;
    ii_dcn_listed<R> mine;
    if (here) {
      const int which = ii_dcn_far_which(taps[i]), at = which % II_DCN_PIXELS;
      const int ho = h * II_DCN_TILE + at / II_DCN_TILE, wo = v * II_DCN_TILE + at % II_DCN_TILE;
      here = ii_dcn_far_here(w.t, taps[i], ho, wo);
      const int q = ho * s.Wo + wo;
      if (here) {
        const ii_dcn_norm<R> r = ii_dcn_norm_of(s, s.K, w.mask + q * s.mask_row);
        here = ii_dcn_find(s, w, r, q, which / II_DCN_PIXELS, &mine);
      }
    }
    ii_dcn_add(s, w, here, mine);
  }
}

/* All of the tile: near outputs, then far taps. group: n*G + g. w.sum has been cleared; __syncwarp
 * before other lanes' sums are read has been done. */
template <typename O, typename T, typename R>
__device__ __forceinline__ void ii_dcn_add_all(const ii_dcn_shape<R> &s, const ii_dcn_tiling &p,
                                               const ii_dcn_far &far, unsigned group,
                                               const ii_dcn_sum_work<O, T, R> &w) {
  ii_dcn_add_near(s, w);
  const ii_dcn_sources r = ii_dcn_sources_of(s, w.t, far.reach[group]);
  for (int first = 0; first < r.nh * r.nw; first += 32)
    for (unsigned hits = ii_dcn_hits(p, far, group, w.t, r, first); hits; hits &= hits - 1) {
      const int i = first + __ffs((int)hits) - 1, h = r.h + i / r.nw, v = r.w + i % r.nw;
      const int64_t at = (int64_t)group * p.sources + h * p.sources_w + v;
      ii_dcn_add_far(s, w, h, v, far.count[at], far.taps + at * p.list);
    }
}

#endif
