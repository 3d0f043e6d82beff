/* Deformable convolution: the gradient of x with every sum in one order, whatever the GPU does at
 * the same time.
 *   gx[p,d] = sum over outputs q, taps k of m a_c(q,k) gy[q,d] where corner c of the tap is pixel p
 *
 * Mapping: one warp owns a tile of TILE_H x TILE_W pixels of gx, of one image and one slice of up
 * to 32 channels of a group, in shared memory. It goes through all outputs of the image, 32 at a
 * time: lane i works out tap k of output i, and those that touch the tile are listed in the order
 * of the lanes. Then the lanes, as channels, walk the list and add. Slices of 16 channels or fewer
 * are given to two teams of lanes, which own the even and the odd rows of the tile; of 8 or fewer
 * to four, by rows and columns; so every element has one owner, and the four corners of a tap are
 * spread evenly. The order of a sum (32 outputs, tap, output, corner) depends on nothing else.
 *
 * Bytes: gx once, in its final type and without scratch; but the offsets and modulations of a group
 * once per tile and slice, from the second-level cache. So the work per image grows with the square
 * of its size: 56 x 56 has 28 tiles, each of 882 steps (a tap of 32 outputs, some 60 instructions)
 * and about 1400 taps to add; 200 x 320 has 500 tiles, each of 18000 steps. Estimated, not
 * measured: 64 x 56 x 56 x 128, G = 4, about as long as the atomics; 1 x 200 x 320 x 128, G = 4,
 * ten times as long.
 * Registers on sm_80, 90, 100: 56, 48, 48; fp64 72, 64, 56; no spills.
 * Limits: as forward. */
#include "kernels/cuda/dcn_units.h"

namespace {

enum { TILE_H = 8, TILE_W = 16, TILE = TILE_H * TILE_W };

/* The division of the work: all in units of warps. */
typedef struct {
  int tiles, tiles_w, slices, wide; /* per image; per row; per group; channels per slice */
} plan;

/* Where the tile of this warp is. */
typedef struct {
  int64_t n;
  int g, first; /* group, first channel of the slice in it */
  int y, x;     /* corner */
} tile;

__device__ __forceinline__ tile tile_of(const plan &p, int G) {
  unsigned b = blockIdx.x;
  tile t;
  t.first = (int)(b % p.slices) * p.wide;
  b /= p.slices;
  t.g = (int)(b % G);
  b /= G;
  const int at = (int)(b % p.tiles);
  t.n = b / p.tiles;
  t.y = at / p.tiles_w * TILE_H;
  t.x = at % p.tiles_w * TILE_W;
  return t;
}

/* A listed tap: corner weights with the modulation; x, y: the top left corner within the tile, from
 * -1 on; z: the output pixel. */
template <typename R> struct listed {
  ii_dcn_quad<R> w;
  int4 at;
};

/* Largest logit of an output's group, and 1 / sum of exp(logit - largest); 0 and 1 without softmax,
 * when m = logit. */
template <typename R> struct norm { R most, part; };

template <typename O, typename R>
__device__ __forceinline__ norm<R> norm_of(const ii_dcn_shape<R> &s, const O *mask) {
  norm<R> r = {R(0), R(1)};
  if (!s.softmax) return r;
  R sum = R(0);
  r.most = R(-INFINITY);
  for (int k = 0; k < s.K; k++) {
    const R v = ii_up(mask[k]);
    r.most = v > r.most ? v : r.most;
  }
  for (int k = 0; k < s.K; k++) sum += ii_dcn_exp(ii_up(mask[k]) - r.most);
  r.part = R(1) / sum;
  return r;
}

/* Tap k of output q (offset, mask: of its group). False when it does not touch the tile. */
template <typename O, typename R>
__device__ __forceinline__ bool find(const ii_dcn_shape<R> &s, const tile &t, const O *offset,
                                     const O *mask, const norm<R> &r, int q, int k, listed<R> *e) {
  const int ho = q / s.Wo, wo = q - ho * s.Wo;
  const R dx = ii_up(offset[2 * k]), dy = ii_up(offset[2 * k + 1]);
  const ii_dcn_place<R> p = ii_dcn_locate(s, s.kh, ho, wo, k, dx, dy);
  const int y = p.y0 - t.y, x = p.x0 - t.x;
  if (!ii_dcn_inside(p.at) || y < -1 || y >= TILE_H || x < -1 || x >= TILE_W) return false;
  e->at = make_int4(x, y, q, 0);
  R m = ii_up(mask[k]);
  if (s.softmax) m = ii_dcn_exp(m - r.most) * r.part;
  e->w = ii_dcn_quad_of<true>(p, m, s.scale);
  return true;
}

/* The warp's 32 outputs from q on: taps one by one, listed and added to sum[TILE][wide]. gy: the
 * slice's first channel in the image's output 0. */
template <typename O, typename T, typename R>
__device__ __forceinline__ void add_outputs(const ii_dcn_shape<R> &s, const plan &p, const tile &t,
                                            const O *offset, const O *mask, const T *gy, int q,
                                            listed<R> *list, R *sum) {
  const int lane = threadIdx.x % 32, d = lane % p.wide, team = lane / p.wide;
  const int teams = p.wide > 16 ? 1 : p.wide > 8 ? 2 : 4;
  const int64_t C = (int64_t)s.G * s.D, row = t.n * s.Q + (q + lane < s.Q ? q + lane : q);
  offset += row * s.offset_row + t.g * s.offset_group;
  mask += row * s.mask_row + t.g * s.mask_group;
  const norm<R> r = norm_of<O, R>(s, mask);
  for (int k = 0; k < s.K; k++) {
    listed<R> mine;
    const bool here = find(s, t, offset, mask, r, q + lane, k, &mine) && q + lane < s.Q;
    const unsigned all = __ballot_sync(II_FULL_MASK, here);
    if (here) list[__popc(all & ((1u << lane) - 1u))] = mine;
    __syncwarp();
    if (d + t.first < s.D && team < teams)
      for (int i = 0; i < __popc(all); i++) {
        const listed<R> e = list[i];
        const R g = ii_up(gy[e.at.z * C + d]);
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const int y = e.at.y + c / 2, x = e.at.x + c % 2;
          if ((((y & 1) + 2 * (x & 1)) & (teams - 1)) == team && y >= 0 && y < TILE_H && x >= 0 &&
              x < TILE_W)
            sum[(y * TILE_W + x) * p.wide + d] += e.w.v[c] * g;
        }
      }
    __syncwarp();
  }
}

template <typename T, typename O>
__global__ void dcn_gx(const ii_dcn_shape<ii_real_of<T>> s, const plan p, const O *offset,
                       const O *mask, const T *gy, T *gx, bool accumulate) {
  typedef ii_real_of<T> R;
  II_SHARED(unsigned char, memory);
  listed<R> *list = reinterpret_cast<listed<R> *>(memory);
  R *sum = reinterpret_cast<R *>(list + 32);
  const tile t = tile_of(p, s.G);
  const int64_t C = (int64_t)s.G * s.D;
  const int first = t.g * s.D + t.first, left = s.D - t.first < p.wide ? s.D - t.first : p.wide;
  for (int i = threadIdx.x; i < TILE * p.wide; i += 32) sum[i] = R(0);
  __syncwarp();
  gy += t.n * s.Q * C + first;
  for (int q = 0; q < s.Q; q += 32) add_outputs(s, p, t, offset, mask, gy, q, list, sum);
  gx += t.n * s.pixels * C + first;
  for (int i = threadIdx.x; i < TILE * p.wide; i += 32) {
    const int at = i / p.wide, d = i - at * p.wide, y = t.y + at / TILE_W, x = t.x + at % TILE_W;
    if (d >= left || y >= s.H || x >= s.W) continue;
    T *to = gx + ((int64_t)y * s.W + x) * C + d;
    *to = ii_down<T>(accumulate ? ii_up(*to) + sum[i] : sum[i]);
  }
}

template <typename T, typename O> int run(ii_kctx *k, const ii_dcn_args *a) {
  typedef ii_real_of<T> R;
  ii_dcn_shape<R> s = {};
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  plan p = {};
  p.tiles_w = (int)ii_ceil_div(a->W, TILE_W);
  p.tiles = p.tiles_w * (int)ii_ceil_div(a->H, TILE_H);
  p.wide = ii_dcn_lanes(s.D);
  p.slices = (int)ii_ceil_div(s.D, p.wide);
  const int64_t blocks = a->N * p.tiles * a->G * p.slices;
  if (blocks > INT_MAX) return ii_cuda_error(k, "dcn: too many pixels; use smaller batches");
  const size_t shared = 32 * sizeof(listed<R>) + (size_t)(TILE * p.wide) * sizeof(R);
  II_LAUNCH(k, (dcn_gx<T, O>), (unsigned)blocks, 32, shared, s, p, (const O *)a->offset,
            (const O *)a->mask, (const T *)a->gy, (T *)a->gx, a->acc_gx);
  return 0;
}

template <typename T> int run_om(ii_kctx *k, const ii_dcn_args *a) {
  II_DCN_WITH_OM(ii_real_of<T>, a->om_dtype, O, return (run<T, O>(k, a)));
}

} // namespace

int ii_cuda_dcn_gx_ordered(ii_kctx *k, const ii_dcn_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return run_om<T>(k, a));
}
