/* Deformable convolution, gradient of x: how the work is divided.
 *
 * gx is cut into tiles of 8 x 8 pixels. A tile gathers what the outputs around it send there, so
 * that each element of gx is added up by one warp, in an order that depends on nothing but the
 * image, and is written once, in its final type: no atomics, no scratch memory for sums.
 *
 * An output is *near* a tile when the centre of its window (its home) is at most `halo` pixels away
 * from it; a tile goes through all taps of its near outputs. What an output sends to a tile that it
 * is not near to is *far*: with the halo of 2 of a 3 x 3 window, taps that offsets move by more
 * than one pixel near the edge of a tile, and by more than a tile everywhere. Far taps are found
 * first, by a kernel of their own (dcn_far.cu), and listed by tiles of 8 x 8 outputs with the box
 * of the pixels they touch. A tile of gx looks through the boxes of the output tiles within
 * `reach`, the largest distance of a far tap in that image and group, 32 at a time, and then
 * through the lists of those that touch it. A list has room for all taps of its outputs: any
 * offsets give the right result, and what is slow is a large map whose offsets are all wild, where
 * every tile goes through every list. */
#ifndef II_DCN_GX_H
#define II_DCN_GX_H
#include "kernels/cuda/dcn_units.h"

enum { II_DCN_TILE = 8, II_DCN_PIXELS = II_DCN_TILE * II_DCN_TILE };

typedef struct {
  int tiles_w, tiles;     /* of gx: per row, per image */
  int sources_w, sources; /* of the output */
  int halo_h, halo_w;
  int list; /* taps of an output tile and group, all of which may be far */
} ii_dcn_tiling;

/* A far tap in 8 bytes: the pixel of its top left corner, from -1 on, and which it is of its output
 * tile, k*64 + output within the tile, 9 bits in either word. ii_dcn_shape_of and
 * II_DCN_MOST_TAPS see to it that all fit. */
typedef struct {
  unsigned y, x;
} ii_dcn_far_tap;

enum { II_DCN_MOST_TAPS = (1 << 18) / II_DCN_PIXELS };

static __device__ __forceinline__ ii_dcn_far_tap ii_dcn_pack_far(int y, int x, int which) {
  const ii_dcn_far_tap t = {(unsigned)(y + 1) << 9 | (unsigned)which >> 9,
                            (unsigned)(x + 1) << 9 | ((unsigned)which & 511u)};
  return t;
}
static __device__ __forceinline__ int ii_dcn_far_y(ii_dcn_far_tap t) {
  return (int)(t.y >> 9) - 1;
}
static __device__ __forceinline__ int ii_dcn_far_x(ii_dcn_far_tap t) {
  return (int)(t.x >> 9) - 1;
}
static __device__ __forceinline__ int ii_dcn_far_which(ii_dcn_far_tap t) {
  return (int)((t.y & 511u) << 9 | (t.x & 511u));
}

/* The far taps of a call, in memory of the device. Index of an output tile: (n*G + g)*sources +
 * tile. */
typedef struct {
  int4 *box;            /* rows x <= . < y and columns z <= . < w of the pixels touched */
  int *count;           /* far taps */
  int *reach;           /* [n*G + g], pixels from a home to a pixel, 0 when nothing is far */
  ii_dcn_far_tap *taps; /* room for ii_dcn_tiling.list each */
} ii_dcn_far;

/* Bytes that ii_dcn_far of `groups` = N*G maps takes. */
static inline int64_t ii_dcn_far_bytes(const ii_dcn_tiling &t, int64_t groups) {
  const int64_t each = sizeof(int4) + sizeof(int) + t.list * sizeof(ii_dcn_far_tap);
  return groups * (t.sources * each + (int64_t)sizeof(int)) + 64;
}

static inline ii_dcn_tiling ii_dcn_tiling_of(const ii_dcn_args *a) {
  const double scale = a->offset_scale < 0 ? -a->offset_scale : a->offset_scale;
  const double reach_h = a->dil_h * ((a->kh - 1) / 2.0) * scale;
  const double reach_w = a->dil_w * ((a->kw - 1) / 2.0) * scale;
  ii_dcn_tiling t;
  t.tiles_w = (int)ii_ceil_div(a->W, II_DCN_TILE);
  t.tiles = t.tiles_w * (int)ii_ceil_div(a->H, II_DCN_TILE);
  t.sources_w = (int)ii_ceil_div(a->Wo, II_DCN_TILE);
  t.sources = t.sources_w * (int)ii_ceil_div(a->Ho, II_DCN_TILE);
  t.halo_h = 1 + (int)ceil(reach_h < 1024 ? reach_h : 1024);
  t.halo_w = 1 + (int)ceil(reach_w < 1024 ? reach_w : 1024);
  t.list = II_DCN_PIXELS * (int)ii_dcn_taps(a->kh, a->kw, a->remove_center);
  return t;
}

/* Fills `far`, whose memory is that of `memory` (ii_dcn_far_bytes); dcn_far.cu. */
int ii_cuda_dcn_find_far(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, void *memory,
                         ii_dcn_far *far);
/* gx of a->N images from there: of any call (dcn_gx.cu), and faster where has_mma says there is
 * such a kernel (dcn_gx_mma.cu). */
int ii_cuda_dcn_gx(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far);
bool ii_cuda_dcn_gx_has_mma(const ii_dcn_args *a);
int ii_cuda_dcn_gx_mma(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t,
                       const ii_dcn_far &far);

/* gx of all images by one of these kernels, some images at a time, so that the scratch memory of
 * their lists of far taps stays small; dcn_bwd.cu. */
typedef int (*ii_dcn_gx_kernel)(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t,
                                const ii_dcn_far &far);
int ii_cuda_dcn_gather(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t,
                       ii_dcn_gx_kernel gx);

/* goffset and gmask of any call (dcn_bwd.cu), and faster where has_mma says there is such a kernel
 * (dcn_dots_mma.cu). Pointers that are NULL are not written. */
int ii_cuda_dcn_dots(ii_kctx *k, const ii_dcn_args *a);
bool ii_cuda_dcn_dots_has_mma(const ii_dcn_args *a, const ii_dcn_tiling &t);
int ii_cuda_dcn_dots_mma(ii_kctx *k, const ii_dcn_args *a);

/* ---- Device functions -------------------------------------------------------------------------*/

/* The first of n outputs (in one direction) whose home is at v or behind; n when there is none. */
static __device__ __forceinline__ int ii_dcn_first_at(int v, int first, int stride, int n) {
  v -= first;
  const int o = v <= 0 ? 0 : (v + stride - 1) / stride;
  return o < n ? o : n;
}
/* Whether an output with that home is near the tile that begins at `tile`. */
static __device__ __forceinline__ bool ii_dcn_near(int home, int tile, int halo) {
  return home >= tile - halo && home < tile + II_DCN_TILE + halo;
}

/* A tile of gx and the outputs near it. */
typedef struct {
  int64_t n;
  int g, y, x;        /* group; first pixel */
  int ho, wo, nh, nw; /* near outputs: nh x nw from (ho, wo) on */
} ii_dcn_tile;

template <typename R>
__device__ __forceinline__ ii_dcn_tile ii_dcn_tile_of(const ii_dcn_shape<R> &s,
                                                      const ii_dcn_tiling &p, unsigned group,
                                                      int at) {
  ii_dcn_tile t;
  t.n = group / (unsigned)s.G;
  t.g = (int)(group - (unsigned)t.n * (unsigned)s.G);
  t.y = at / p.tiles_w * II_DCN_TILE;
  t.x = at % p.tiles_w * II_DCN_TILE;
  t.ho = ii_dcn_first_at(t.y - p.halo_h, s.first_h, s.stride_h, s.Q / s.Wo);
  t.wo = ii_dcn_first_at(t.x - p.halo_w, s.first_w, s.stride_w, s.Wo);
  t.nh = ii_dcn_first_at(t.y + II_DCN_TILE + p.halo_h, s.first_h, s.stride_h, s.Q / s.Wo) - t.ho;
  t.nw = ii_dcn_first_at(t.x + II_DCN_TILE + p.halo_w, s.first_w, s.stride_w, s.Wo) - t.wo;
  return t;
}

/* Output tiles that may have far taps for a tile of gx: nh x nw from (h, w) on, none when nothing
 * is far. */
typedef struct {
  int h, w, nh, nw;
} ii_dcn_sources;

template <typename R>
__device__ __forceinline__ ii_dcn_sources ii_dcn_sources_of(const ii_dcn_shape<R> &s,
                                                            const ii_dcn_tile &t, int reach) {
  ii_dcn_sources r = {0, 0, 0, 0};
  if (reach == 0) return r;
  const int Ho = s.Q / s.Wo;
  const int top = ii_dcn_first_at(t.y - reach, s.first_h, s.stride_h, Ho);
  const int left = ii_dcn_first_at(t.x - reach, s.first_w, s.stride_w, s.Wo);
  const int bottom = ii_dcn_first_at(t.y + II_DCN_TILE + reach, s.first_h, s.stride_h, Ho);
  const int right = ii_dcn_first_at(t.x + II_DCN_TILE + reach, s.first_w, s.stride_w, s.Wo);
  if (top >= bottom || left >= right) return r;
  r.h = top / II_DCN_TILE;
  r.w = left / II_DCN_TILE;
  r.nh = (bottom - 1) / II_DCN_TILE + 1 - r.h;
  r.nw = (right - 1) / II_DCN_TILE + 1 - r.w;
  return r;
}

/* Whether output (ho,wo) is near tile t, which then has had all its taps. */
static __device__ __forceinline__ bool ii_dcn_was_near(const ii_dcn_tile &t, int ho, int wo) {
  return (unsigned)(ho - t.ho) < (unsigned)t.nh && (unsigned)(wo - t.wo) < (unsigned)t.nw;
}
static __device__ __forceinline__ bool ii_dcn_touches(const ii_dcn_tile &t, int4 box) {
  return box.x < t.y + II_DCN_TILE && box.y > t.y && box.z < t.x + II_DCN_TILE && box.w > t.x;
}

/* Whether a listed tap of output (ho,wo) is for tile t. */
static __device__ __forceinline__ bool ii_dcn_far_here(const ii_dcn_tile &t, ii_dcn_far_tap tap,
                                                       int ho, int wo) {
  const int y = ii_dcn_far_y(tap) - t.y, x = ii_dcn_far_x(tap) - t.x;
  return y >= -1 && y < II_DCN_TILE && x >= -1 && x < II_DCN_TILE && !ii_dcn_was_near(t, ho, wo);
}

/* Of the output tiles r, the 32 from number `first` on: a bit for each whose far taps may touch
 * tile t, the same in all lanes. An output tile without any has an empty box. group: n*G + g. */
static __device__ __forceinline__ unsigned ii_dcn_hits(const ii_dcn_tiling &p,
                                                       const ii_dcn_far &far, unsigned group,
                                                       const ii_dcn_tile &t,
                                                       const ii_dcn_sources &r, int first) {
  const int i = first + (int)threadIdx.x % 32;
  bool hit = i < r.nh * r.nw;
  if (hit)
    hit = ii_dcn_touches(
        t, far.box[(int64_t)group * p.sources + (r.h + i / r.nw) * p.sources_w + r.w + i % r.nw]);
  return __ballot_sync(II_FULL_MASK, hit);
}

/* Modulation by logit or number v: largest logit of an output's group, and 1 / sum of exp(logit -
 * largest); 0 and 1 without softmax. */
template <typename R> struct ii_dcn_norm { R most, part; };

template <typename O, typename R>
__device__ __forceinline__ ii_dcn_norm<R> ii_dcn_norm_of(const ii_dcn_shape<R> &s, int K,
                                                         const O *mask) {
  ii_dcn_norm<R> r = {R(0), R(1)};
  if (!s.softmax) return r;
  R sum = R(0);
  r.most = R(-INFINITY);
  for (int k = 0; k < K; k++) {
    const R v = ii_up(mask[k]);
    r.most = v > r.most ? v : r.most;
  }
  for (int k = 0; k < K; k++) sum += ii_dcn_exp(ii_up(mask[k]) - r.most);
  r.part = R(1) / sum;
  return r;
}
template <typename R>
__device__ __forceinline__ R ii_dcn_modulation(const ii_dcn_shape<R> &s, const ii_dcn_norm<R> &r,
                                               R v) {
  return s.softmax ? ii_dcn_exp(v - r.most) * r.part : v;
}

#endif
