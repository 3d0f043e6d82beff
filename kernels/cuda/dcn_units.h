/* Deformable convolution on the GPU: what its kernels share.
 *
 * A unit is one output pixel and one group: D channels, K taps. The units of an image are numbered
 * as in memory, q*G + g, and each is worked on by `lanes` neighbouring lanes of one warp (a power
 * of two), each of which has V channels at a time. No unit depends on another one, a warp has units
 * of one image only, and how many warps a block has does not change any result.
 *
 * Staging: a tap's position, corner weights and corner addresses are computed once, by one of the
 * unit's lanes, and left in the warp's part of shared memory, where all lanes read them (two
 * 16-byte broadcasts per tap). Warps never wait for each other. Units are an odd number of taps
 * apart there, which keeps the lanes of different units on different banks. */
#ifndef II_DCN_UNITS_H
#define II_DCN_UNITS_H
#include <limits.h>
#include <math.h>
#include "kernels/cuda/gpu.h"

/* ---- What a kernel is told --------------------------------------------------------------------*/

template <typename R> struct ii_dcn_shape {
  int64_t pixels; /* H*W */
  int64_t x_row;  /* from a pixel of x to the next, and of gx */
  int64_t offset_row, offset_group, mask_row, mask_group;
  int N, H, W, Q, Wo, G, D, K; /* Q = Ho*Wo */
  int kh, stride_h, stride_w, dil_h, dil_w;
  int first_h, first_w; /* where the centre of the window of output pixel 0 is: ch - pad_h */
  int centre;           /* the tap that is left out, INT_MAX when none is */
  int om;               /* om_dtype */
  bool softmax;
  R scale, shift_h, shift_w; /* offset_scale; ch*scale, cw*scale */
  int lanes, stride;         /* lanes per unit; taps from a unit to the next in shared memory */
  int warps;                 /* per image */
};

/* How it is launched; 32/lanes units per warp. */
typedef struct {
  unsigned blocks, threads, shared;
} ii_dcn_launch;

/* Most shared memory a kernel may use without asking for more. */
#define II_DCN_SHARED (48 * 1024)

/* Bytes of shared memory of one warp: `tap_bytes` per tap and `unit_bytes` per unit. */
static inline int64_t ii_dcn_warp_bytes(int lanes, int stride, int64_t tap_bytes,
                                        int64_t unit_bytes) {
  const int64_t units = 32 / lanes;
  return (units * (stride * tap_bytes + unit_bytes) + 15) / 16 * 16;
}

/* The smallest power of two that is not below n; 32 at most. */
static inline int ii_dcn_lanes(int64_t n) {
  int lanes = 1;
  while (lanes < n && lanes < 32) lanes *= 2;
  return lanes;
}

/* Fills *s but for lanes and stride. Returns 1 with k->error for sizes the kernels cannot index. */
template <typename R>
static inline int ii_dcn_shape_of(ii_kctx *k, const ii_dcn_args *a, ii_dcn_shape<R> *s) {
  const int64_t side = 1 << 22; /* further away, fp32 knows half a pixel, and then none */
  const int64_t K = ii_dcn_taps(a->kh, a->kw, a->remove_center);
  if (a->H > side || a->W > side || a->H * a->W > INT_MAX || a->Ho * a->Wo > INT_MAX ||
      a->C > INT_MAX || a->Ho * a->Wo * a->G > INT_MAX)
    return ii_cuda_error(k, "dcn: an image of %lld x %lld is too large; split it into tiles",
                         (long long)a->H, (long long)a->W);
  if (a->N > INT_MAX)
    return ii_cuda_error(k, "dcn: %lld images are too many; use smaller batches", (long long)a->N);
  const int64_t ch = ((int64_t)a->dil_h * (a->kh - 1)) >> 1;
  const int64_t cw = ((int64_t)a->dil_w * (a->kw - 1)) >> 1;
  s->pixels = a->H * a->W;
  s->x_row = a->x_row;
  s->offset_row = a->offset_row;
  s->offset_group = a->offset_group;
  s->mask_row = a->mask_row;
  s->mask_group = a->mask_group;
  s->N = (int)a->N;
  s->H = (int)a->H;
  s->W = (int)a->W;
  s->Q = (int)(a->Ho * a->Wo);
  s->Wo = (int)a->Wo;
  s->G = (int)a->G;
  s->D = (int)(a->C / a->G);
  s->K = (int)K;
  s->kh = a->kh;
  s->stride_h = a->stride_h;
  s->stride_w = a->stride_w;
  s->dil_h = a->dil_h;
  s->dil_w = a->dil_w;
  s->first_h = (int)(ch - a->pad_h);
  s->first_w = (int)(cw - a->pad_w);
  s->centre = a->remove_center ? a->kw / 2 * a->kh + a->kh / 2 : INT_MAX;
  s->om = a->om_dtype;
  s->softmax = a->softmax;
  s->scale = (R)a->offset_scale;
  s->shift_h = (R)((double)ch * a->offset_scale);
  s->shift_w = (R)((double)cw * a->offset_scale);
  return 0;
}

/* Chooses s->lanes (`lanes`, or more where shared memory asks for fewer units per warp), s->stride
 * and the launch: four warps per block, fewer where that would leave multiprocessors without work.
 * Returns 1 with k->error when a unit has more taps than fit. */
template <typename R>
static inline int ii_dcn_plan(ii_kctx *k, int lanes, int64_t tap_bytes, int64_t unit_bytes,
                              ii_dcn_shape<R> *s, ii_dcn_launch *l) {
  s->lanes = lanes;
  s->stride = s->K | 1;
  int64_t bytes;
  for (;; s->lanes *= 2) {
    bytes = ii_dcn_warp_bytes(s->lanes, s->stride, tap_bytes, unit_bytes);
    if (bytes <= II_DCN_SHARED) break;
    if (s->lanes == 32)
      return ii_cuda_error(k, "dcn: no kernel for windows of %d taps; use a smaller window", s->K);
  }
  s->warps = (int)ii_ceil_div((int64_t)s->Q * s->G * s->lanes, 32);
  const int64_t warps = (int64_t)s->warps * s->N;
  int64_t each = 4;
  while (each > 1 && (each * bytes > II_DCN_SHARED || warps < each * 2 * ii_cuda_sm_count(k)))
    each /= 2;
  if (warps > INT_MAX) return ii_cuda_error(k, "dcn: too many output pixels; use smaller batches");
  l->blocks = (unsigned)ii_ceil_div(warps, each);
  l->threads = (unsigned)(32 * each);
  l->shared = (unsigned)(each * bytes);
  return 0;
}

/* Whether the kernels with compile-time sizes apply: 3 x 3 taps and `lanes` vectors per group. */
template <typename R>
static inline bool ii_dcn_nine(const ii_dcn_args *a, const ii_dcn_shape<R> &s, int lanes, int V) {
  return a->kh == 3 && a->kw == 3 && s.K == 9 && s.D == lanes * V;
}

/* p moved by n elements of type t; NULL stays. */
static inline void *ii_dcn_skip(const void *p, int64_t n, ii_dtype t) {
  return p ? (char *)(uintptr_t)p + n * (int64_t)ii_dtype_size(t) : NULL;
}

/* `count` images of a, from n on: a backward in turns. */
static inline ii_dcn_args ii_dcn_images(const ii_dcn_args *a, int64_t n, int64_t count) {
  const int64_t rows = n * a->Ho * a->Wo, pixels = n * a->H * a->W;
  ii_dcn_args b = *a;
  b.N = count;
  b.x = ii_dcn_skip(a->x, pixels * a->x_row, a->x_dtype);
  b.gy = ii_dcn_skip(a->gy, rows * a->C, a->x_dtype);
  b.gx = ii_dcn_skip(a->gx, pixels * a->x_row, a->x_dtype);
  b.offset = ii_dcn_skip(a->offset, rows * a->offset_row, a->om_dtype);
  b.mask = ii_dcn_skip(a->mask, rows * a->mask_row, a->om_dtype);
  b.goffset = ii_dcn_skip(a->goffset, rows * a->offset_row, a->om_dtype);
  b.gmask = ii_dcn_skip(a->gmask, rows * a->mask_row, a->om_dtype);
  return b;
}

/* ---- Small device functions -------------------------------------------------------------------*/

/* Four numbers of one tap. */
template <typename R> struct alignas(16) ii_dcn_quad { R v[4]; };

static __device__ __forceinline__ float ii_dcn_exp(float v) {
  return expf(v);
}
static __device__ __forceinline__ double ii_dcn_exp(double v) {
  return exp(v);
}
static __device__ __forceinline__ float ii_dcn_floor(float v) {
  return floorf(v);
}
static __device__ __forceinline__ double ii_dcn_floor(double v) {
  return floor(v);
}

/* Sum and maximum over the lanes of a unit; all lanes of the warp take part. */
template <typename R> __device__ __forceinline__ R ii_dcn_sum(R v, int lanes) {
  for (int m = lanes / 2; m > 0; m /= 2) v += __shfl_xor_sync(II_FULL_MASK, v, m);
  return v;
}
template <typename R> __device__ __forceinline__ R ii_dcn_max(R v, int lanes) {
  for (int m = lanes / 2; m > 0; m /= 2) {
    const R o = __shfl_xor_sync(II_FULL_MASK, v, m);
    v = o > v ? o : v;
  }
  return v;
}

/* Runs the statements with O standing for the type of offsets and modulations. R: accumulator. */
#define II_DCN_WITH_OM(R, om, O, ...)                                                              \
  if constexpr (sizeof(R) == 8) {                                                                  \
    typedef double O;                                                                              \
    __VA_ARGS__;                                                                                   \
  } else if ((om) == II_F32) {                                                                     \
    typedef float O;                                                                               \
    __VA_ARGS__;                                                                                   \
  } else if ((om) == II_F16) {                                                                     \
    typedef ii_f16 O;                                                                              \
    __VA_ARGS__;                                                                                   \
  } else {                                                                                         \
    typedef ii_bf16 O;                                                                             \
    __VA_ARGS__;                                                                                   \
  }

/* ---- Units and taps ---------------------------------------------------------------------------*/

typedef struct {
  int64_t row, image; /* output row; first pixel of the image in x */
  int g, ho, wo;
  bool alive; /* false for lanes beyond the last unit: they repeat one and must not write */
} ii_dcn_unit;

/* The unit of this lane. The units of an image begin with a new warp, so 32 bits suffice here. */
template <typename R>
__device__ __forceinline__ ii_dcn_unit ii_dcn_unit_of(const ii_dcn_shape<R> &s, int lanes) {
  const unsigned warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  unsigned n = warp / (unsigned)s.warps, last = (unsigned)(s.Q * s.G) - 1;
  unsigned i = (warp - n * (unsigned)s.warps) * (32u / lanes) + threadIdx.x % 32 / lanes;
  ii_dcn_unit u;
  u.alive = n < (unsigned)s.N && i <= last;
  if (!u.alive) n = 0, i = last;
  const unsigned q = i / (unsigned)s.G;
  u.g = (int)(i - q * (unsigned)s.G);
  u.ho = (int)(q / (unsigned)s.Wo);
  u.wo = (int)(q - (unsigned)u.ho * (unsigned)s.Wo);
  u.row = (int64_t)n * s.Q + q;
  u.image = n * s.pixels;
  return u;
}

/* Where a tap samples: fractions, and the pixels TL TR BL BR of the image, -1 where outside. All
 * are outside when the tap contributes nothing; otherwise at least one is inside. */
template <typename R> struct ii_dcn_place {
  R lx, ly;
  int x0, y0; /* the top left one, from -1 on */
  int4 at;
};
static __device__ __forceinline__ bool ii_dcn_inside(int4 at) {
  return (at.x & at.y & at.z & at.w) >= 0;
}

/* Tap k of the window at (ho,wo), kh taps per column; dx, dy its offsets. */
template <typename R>
__device__ __forceinline__ ii_dcn_place<R> ii_dcn_locate(const ii_dcn_shape<R> &s, int kh, int ho,
                                                         int wo, int k, R dx, R dy) {
  k += k >= s.centre;
  const int i = k / kh, j = k - i * kh;
  const R base_x = R(wo * s.stride_w + s.first_w) - s.shift_w;
  const R base_y = R(ho * s.stride_h + s.first_h) - s.shift_h;
  const R x = (R(i * s.dil_w) + dx) * s.scale + base_x;
  const R y = (R(j * s.dil_h) + dy) * s.scale + base_y;
  ii_dcn_place<R> p = {R(0), R(0), 0, 0, {-1, -1, -1, -1}};
  if (y > R(-1) && x > R(-1) && y < R(s.H) && x < R(s.W)) { /* false for NaN */
    const R left = ii_dcn_floor(x), up = ii_dcn_floor(y);
    const int x0 = (int)left, y0 = (int)up, at = y0 * s.W + x0;
    const bool l = x0 >= 0, r = x0 < s.W - 1, t = y0 >= 0, b = y0 < s.H - 1;
    p.x0 = x0;
    p.y0 = y0;
    p.lx = x - left;
    p.ly = y - up;
    p.at.x = t && l ? at : -1;
    p.at.y = t && r ? at + 1 : -1;
    p.at.z = b && l ? at + s.W : -1;
    p.at.w = b && r ? at + s.W + 1 : -1;
  }
  return p;
}

/* What staging leaves of a tap: forward the weights of its corners, modulation included; backward
 * lx, ly, m and scale*m. */
template <bool forward, typename R>
__device__ __forceinline__ ii_dcn_quad<R> ii_dcn_quad_of(const ii_dcn_place<R> &p, R m, R scale) {
  if (!forward) return {{p.lx, p.ly, m, scale * m}};
  if (!ii_dcn_inside(p.at)) m = R(0); /* whatever m is: NaN too */
  const R top = (R(1) - p.ly) * m, bottom = p.ly * m, none = R(0);
  /* a corner outside has no term, whatever m is: 0 times an infinite weight would be NaN */
  return {{p.at.x < 0 ? none : (R(1) - p.lx) * top, p.at.y < 0 ? none : p.lx * top,
           p.at.z < 0 ? none : (R(1) - p.lx) * bottom, p.at.w < 0 ? none : p.lx * bottom}};
}

/* The taps of unit u, by its `lanes` lanes l: quad[K] and at[K] in shared memory. All lanes of the
 * warp take part; __syncwarp before other lanes read. offset, mask: of the whole call. */
template <bool forward, typename O, typename R>
__device__ __forceinline__ void ii_dcn_stage(const ii_dcn_shape<R> &s, int lanes, int K, int kh,
                                             const ii_dcn_unit &u, int l, const O *offset,
                                             const O *mask, ii_dcn_quad<R> *quad, int4 *at) {
  offset += u.row * s.offset_row + u.g * s.offset_group;
  mask += u.row * s.mask_row + u.g * s.mask_group;
  R most = R(-INFINITY), part = R(1);
  for (int k = l; k < K; k += lanes) {
    const R m = ii_up(mask[k]);
    quad[k].v[0] = m; /* this lane's until the loop below replaces it */
    most = m > most ? m : most;
  }
  if (s.softmax) {
    most = ii_dcn_max(most, lanes);
    R sum = R(0);
    for (int k = l; k < K; k += lanes) {
      const R e = ii_dcn_exp(quad[k].v[0] - most);
      quad[k].v[0] = e;
      sum += e;
    }
    part = R(1) / ii_dcn_sum(sum, lanes);
  }
  for (int k = l; k < K; k += lanes) {
    const R dx = ii_up(offset[2 * k]), dy = ii_up(offset[2 * k + 1]);
    const ii_dcn_place<R> p = ii_dcn_locate(s, kh, u.ho, u.wo, k, dx, dy);
    quad[k] = ii_dcn_quad_of<forward>(p, quad[k].v[0] * part, s.scale);
    at[k] = p.at;
  }
}

/* V channels of the four corners of a tap, 0 where outside. x: the unit's first channel of these in
 * pixel 0 of its image. */
template <int V, typename T>
__device__ __forceinline__ void ii_dcn_corners(const T *x, int64_t C, int4 at, ii_vec<T, V> *v) {
  const ii_vec<T, V> zero = {};
  v[0] = v[1] = v[2] = v[3] = zero;
  if (at.x >= 0) v[0] = ii_load<V>(x + at.x * C);
  if (at.y >= 0) v[1] = ii_load<V>(x + at.y * C);
  if (at.z >= 0) v[2] = ii_load<V>(x + at.z * C);
  if (at.w >= 0) v[3] = ii_load<V>(x + at.w * C);
}

#endif
