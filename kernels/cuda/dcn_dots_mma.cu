/* Deformable convolution: the gradients of offsets and modulations for 16-bit types and windows of
 * 3 x 3, as a product of matrices. dcn_bwd.cu says what is computed from the products S_c of gy
 * with the corners of a tap. The 36 corners of an output are few pixels, near its home; for a tile
 * of outputs all products with all pixels around, S[q,p] = sum over channels of gy[q,d] x[p,d], are
 * left to the tensor cores, and a tap picks its four numbers from them.
 *
 * Mapping: a warp owns 8 x 4 outputs, one per lane, of one group; the warps of a block share
 * nothing. Up to 32 channels at a time of gy and of 12 x 8 pixels of x come to shared memory (zeros
 * outside the image); 2 x 6 blocks of 16 x 16 products stay in registers until all channels are
 * done, then take the place of x and gy. A lane goes through its 9 taps. Corners that are not among
 * the 12 x 8 pixels are far: the warp computes their products together, 8 lanes per corner. Results
 * leave in pieces of 4 bytes where two are wanted in one word, in memory order.
 *
 * Bytes: x 3 times (12 x 8 pixels for 8 x 4), of which all but the first come from the caches; gy,
 * offsets, modulations and their gradients once. Counts: docs/kernels.md.
 * Limits: groups of a multiple of 16 channels, stride 1, windows that reach one pixel; x, gy and
 * the rows of x 16-byte aligned. */
#include "kernels/cuda/dcn_mma.h"

namespace {

namespace wmma = nvcuda::wmma;

enum { ROWS = II_DCN_ROWS, TAPS = II_DCN_TAPS, WARPS = 4 };
enum {
  TILE_W = 8,
  TILE_H = 4,
  AROUND_W = 12,
  AROUND_H = 8,
  AROUND = AROUND_W * AROUND_H,
  EDGE = 2
};
enum { PITCH = AROUND + 4, OUT = 3 * TAPS }; /* floats from an output to the next */

/* What the kernel writes; NULL: not wanted. */
typedef struct {
  void *goffset, *gmask;
  bool acc_goffset, acc_gmask;
} gradients;

/* Bytes of shared memory of one warp: products (before them x and gy), offsets and modulations,
 * results. */
template <int N> constexpr int inputs_bytes = (AROUND + ROWS) * ii_dcn_pitch<N> * 2;
template <int N>
constexpr int products_bytes =
    inputs_bytes<N> > ROWS *PITCH * 4 ? inputs_bytes<N> : ROWS *PITCH * 4;
template <typename O, int N>
constexpr int warp_bytes = (products_bytes<N> + ROWS * (ii_dcn_om_words<O> + OUT) * 4 + 31) / 32 *
                           32;

/* What a warp works with. x: the group's first channel in pixel 0 of the image; gy, offset, mask:
 * in output 0 of it. */
template <typename T, typename O> struct work {
  int y, x; /* first pixel around */
  int64_t C;
  const T *px, *gy;
  const O *offset, *mask;
  float *s; /* [ROWS][PITCH]; before that x and gy */
  uint32_t *om;
  float *out; /* [ROWS][OUT]: offsets, modulations */
};

/* Channels d ... d+N-1 of the pixels around and of the lanes' outputs q. */
template <int N, typename T, typename O>
__device__ __forceinline__ void stage(const ii_dcn_shape<float> &s, const work<T, O> &w, int q,
                                      int d) {
  constexpr int pieces = N / 8;
  const int lane = threadIdx.x % 32, at = lane % pieces * 8;
  T *x = reinterpret_cast<T *>(w.s), *gy = x + AROUND * ii_dcn_pitch<N>;
#pragma unroll 4
  for (int i = 0; i < AROUND * pieces / 32; i++) {
    const int p = (i * 32 + lane) / pieces, v = w.y + p / AROUND_W, h = w.x + p % AROUND_W;
    uint4 word = make_uint4(0, 0, 0, 0);
    if ((unsigned)v < (unsigned)s.H && (unsigned)h < (unsigned)s.W)
      word = *reinterpret_cast<const uint4 *>(w.px + ((int64_t)v * s.W + h) * s.x_row + d + at);
    *reinterpret_cast<uint4 *>(x + p * ii_dcn_pitch<N> + at) = word;
  }
#pragma unroll
  for (int i = 0; i < pieces; i++) {
    const int row = (i * 32 + lane) / pieces;
    const int64_t from = __shfl_sync(II_FULL_MASK, q, row);
    *reinterpret_cast<uint4 *>(gy + row * ii_dcn_pitch<N> + at) =
        *reinterpret_cast<const uint4 *>(w.gy + from * w.C + d + at);
  }
}

typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums;

/* All products of the lanes' outputs q with the pixels around, to w.s. */
template <int N, typename T, typename O>
__device__ __forceinline__ void products(const ii_dcn_shape<float> &s, const work<T, O> &w, int q) {
  constexpr int across = AROUND / 16;
  const T *x = reinterpret_cast<const T *>(w.s), *gy = x + AROUND * ii_dcn_pitch<N>;
  sums sum[2][across];
#pragma unroll
  for (int i = 0; i < 2 * across; i++) wmma::fill_fragment(sum[i / across][i % across], 0.0f);
#pragma unroll 1
  for (int d = 0; d < s.D; d += N) {
    stage<N>(s, w, q, d);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < N; k += 16) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a[2];
      wmma::load_matrix_sync(a[0], gy + k, ii_dcn_pitch<N>);
      wmma::load_matrix_sync(a[1], gy + 16 * ii_dcn_pitch<N> + k, ii_dcn_pitch<N>);
#pragma unroll
      for (int i = 0; i < across; i++) {
        wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b;
        wmma::load_matrix_sync(b, x + i * 16 * ii_dcn_pitch<N> + k, ii_dcn_pitch<N>);
        wmma::mma_sync(sum[0][i], a[0], b, sum[0][i]);
        wmma::mma_sync(sum[1][i], a[1], b, sum[1][i]);
      }
    }
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < 2 * across; i++)
    wmma::store_matrix_sync(w.s + i / across * 16 * PITCH + i % across * 16,
                            sum[i / across][i % across], PITCH, wmma::mem_row_major);
  __syncwarp();
}

/* The products of lane `from`'s output q with the corners of a tap at (y, x), by the whole warp. */
template <typename T, typename O>
__device__ __forceinline__ void far_products(const ii_dcn_shape<float> &s, const work<T, O> &w,
                                             int from, int q, int y, int x, float (&dot)[4]) {
  const int lane = threadIdx.x % 32;
  q = __shfl_sync(II_FULL_MASK, q, from);
  y = __shfl_sync(II_FULL_MASK, y, from) + lane / 16;
  x = __shfl_sync(II_FULL_MASK, x, from) + lane / 8 % 2;
  float sum = 0.0f;
  if ((unsigned)y < (unsigned)s.H && (unsigned)x < (unsigned)s.W)
    for (int d = lane % 8 * 8; d < s.D; d += 64) {
      const ii_vec<T, 8> a = ii_load<8>(w.gy + q * w.C + d);
      const ii_vec<T, 8> b = ii_load<8>(w.px + ((int64_t)y * s.W + x) * s.x_row + d);
#pragma unroll
      for (int i = 0; i < 8; i++) sum += ii_up(a.v[i]) * ii_up(b.v[i]);
    }
  sum = ii_lanes_sum<8>(sum);
#pragma unroll
  for (int c = 0; c < 4; c++) dot[c] = __shfl_sync(II_FULL_MASK, sum, c * 8);
}

/* The gradients of tap k from its products to the lane's results; returns m times that of the
 * modulation. */
__device__ __forceinline__ float finish(float *out, int k, const float (&dot)[4], float lx,
                                        float ly, float m, float scale) {
  const float rx = 1.0f - lx, ry = 1.0f - ly;
  const float gm = ry * (rx * dot[0] + lx * dot[1]) + ly * (rx * dot[2] + lx * dot[3]);
  out[2 * k] = scale * m * (ry * (dot[1] - dot[0]) + ly * (dot[3] - dot[2]));
  out[2 * k + 1] = scale * m * (rx * (dot[2] - dot[0]) + lx * (dot[3] - dot[1]));
  out[2 * TAPS + k] = gm;
  return m * gm;
}

/* All taps of the lane's output (ho, wo) to its results. */
template <typename T, typename O>
__device__ __forceinline__ void taps(const ii_dcn_shape<float> &s, const work<T, O> &w, bool alive,
                                     int q, int ho, int wo) {
  const int lane = threadIdx.x % 32;
  const uint32_t *om = w.om + lane * ii_dcn_om_words<O>;
  const O *offset = reinterpret_cast<const O *>(om);
  const O *mask = reinterpret_cast<const O *>(om + ii_dcn_om_front<O>);
  const ii_dcn_norm<float> r = ii_dcn_norm_of(s, TAPS, mask);
  const ii_dcn_grid g = ii_dcn_grid_of(s, ho, wo);
  const float *products = w.s + lane * PITCH;
  float *out = w.out + lane * OUT, part = 0.0f, column = 0.0f;
#pragma unroll 1
  for (int k = 0; k < TAPS; k += 3, column += g.step_x)
#pragma unroll
    for (int j = 0; j < 3; j++) {
      const float dx = ii_up(offset[2 * (k + j)]), dy = ii_up(offset[2 * (k + j) + 1]);
      const float m = ii_dcn_modulation(s, r, float(ii_up(mask[k + j])));
      ii_dcn_sample p = {0.0f, 0.0f, 0, 0};
      const bool inside =
          ii_dcn_sample_of(g, s.scale, column, float(j) * g.step_y, dx, dy, &p) && alive;
      const int y = p.y - w.y, x = p.x - w.x;
      const bool near = (unsigned)y < AROUND_H - 1 && (unsigned)x < AROUND_W - 1;
      float dot[4] = {};
      if (inside && near) {
        const float *at = products + y * AROUND_W + x;
        dot[0] = at[0];
        dot[1] = at[1];
        dot[2] = at[AROUND_W];
        dot[3] = at[AROUND_W + 1];
      }
      unsigned far = __ballot_sync(II_FULL_MASK, inside && !near);
      while (far) {
        const int from = __ffs((int)far) - 1;
        float found[4];
        far_products(s, w, from, q, p.y, p.x, found);
#pragma unroll
        for (int c = 0; c < 4; c++) dot[c] = lane == from ? found[c] : dot[c];
        far &= far - 1;
      }
      if (inside) {
        part += finish(out, k + j, dot, p.lx, p.ly, m, s.scale);
      } else { /* zeros, whatever m and gy are */
        out[2 * (k + j)] = out[2 * (k + j) + 1] = out[2 * TAPS + k + j] = 0.0f;
      }
    }
  if (s.softmax)
    for (int k = 0; k < TAPS; k++)
      out[2 * TAPS + k] =
          ii_dcn_modulation(s, r, float(ii_up(mask[k]))) * (out[2 * TAPS + k] - part);
}

/* The results of the warp's outputs to where the lanes' q says; q < 0: none. goffset, gmask: of the
 * group in output 0 of the image. */
template <typename O>
__device__ __forceinline__ void flush(const ii_dcn_shape<float> &s, const float *out, int q,
                                      O *goffset, O *gmask, bool acc_goffset, bool acc_gmask) {
  typedef ii_dcn_om_lane<O> lane_type;
  const lane_type l = ii_dcn_om_lane_of<O>();
  O *to = l.modulation ? gmask : goffset;
  const int64_t apart = l.modulation ? s.mask_row : s.offset_row;
  const bool accumulate = l.modulation ? acc_gmask : acc_goffset;
  /* two at once, where they are neighbours and lie on 4 bytes in every row */
  const bool pair = lane_type::each == 2 && l.second > l.first && apart % 2 == 0 &&
                    reinterpret_cast<uintptr_t>(to + l.first) % 4 == 0;
  const float *from = out + l.row * OUT + (l.modulation ? 2 * TAPS : 0);
#pragma unroll 4
  for (int r = 0; r < ROWS; r += lane_type::at_once, from += lane_type::at_once * OUT) {
    const int row = __shfl_sync(II_FULL_MASK, q, r + l.row);
    if (!to || !l.used || row < 0) continue;
    O *at = to + row * apart;
    float a = from[l.first], b = from[l.second];
    if (accumulate) {
      a += ii_up(at[l.first]);
      b += ii_up(at[l.second]);
    }
    if constexpr (lane_type::each == 2) {
      if (pair) {
        *reinterpret_cast<ii_vec<O, 2> *>(at + l.first) = {{ii_down<O>(a), ii_down<O>(b)}};
        continue;
      }
      if (l.second > l.first) at[l.second] = ii_down<O>(b);
    }
    at[l.first] = ii_down<O>(a);
  }
}

template <typename T, typename O, int N>
__global__ void __launch_bounds__(32 * WARPS)
    dcn_dots_mma(const ii_dcn_shape<float> s, int tiles_w, int tiles, int64_t items, const T *x,
                 const O *offset, const O *mask, const T *gy, const gradients to) {
  II_SHARED(unsigned char, memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t item = (int64_t)blockIdx.x * WARPS + warp;
  if (item >= items) return;
  const int g = (int)(item % s.G);
  item /= s.G;
  const int tile = (int)(item % tiles);
  const int64_t n = item / tiles, first = n * s.Q;
  const int ho = tile / tiles_w * TILE_H + lane / TILE_W;
  const int wo = tile % tiles_w * TILE_W + lane % TILE_W;
  const bool alive = ho < s.Q / s.Wo && wo < s.Wo;
  const int q = alive ? ho * s.Wo + wo : tile / tiles_w * TILE_H * s.Wo + tile % tiles_w * TILE_W;
  const int64_t at_offset = first * s.offset_row + g * s.offset_group;
  const int64_t at_mask = first * s.mask_row + g * s.mask_group;
  work<T, O> w;
  w.y = tile / tiles_w * TILE_H + s.first_h - EDGE;
  w.x = tile % tiles_w * TILE_W + s.first_w - EDGE;
  w.C = (int64_t)s.G * s.D;
  w.px = x + n * s.pixels * s.x_row + g * s.D;
  w.gy = gy + first * w.C + g * s.D;
  w.offset = offset + at_offset;
  w.mask = mask + at_mask;
  w.s = reinterpret_cast<float *>(memory + warp * warp_bytes<O, N>);
  w.om = reinterpret_cast<uint32_t *>(w.s + products_bytes<N> / 4);
  w.out = reinterpret_cast<float *>(w.om + ROWS * ii_dcn_om_words<O>);

  ii_dcn_stage_om(s, w.offset, w.mask, q, w.om);
  products<N>(s, w, q);
  taps(s, w, alive, q, ho, wo);
  __syncwarp();
  O *goffset = static_cast<O *>(to.goffset), *gmask = static_cast<O *>(to.gmask);
  flush(s, w.out, alive ? q : -1, goffset ? goffset + at_offset : NULL,
        gmask ? gmask + at_mask : NULL, to.acc_goffset, to.acc_gmask);
}

template <typename T, typename O, int N> int launch(ii_kctx *k, const ii_dcn_args *a) {
  ii_dcn_shape<float> s = {};
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  const int tiles_w = (int)ii_ceil_div(a->Wo, TILE_W);
  const int tiles = tiles_w * (int)ii_ceil_div(a->Ho, TILE_H);
  const int64_t items = a->N * tiles * a->G, blocks = ii_ceil_div(items, WARPS);
  if (blocks > INT_MAX) return ii_cuda_error(k, "dcn: too many pixels; use smaller batches");
  constexpr int shared = WARPS * warp_bytes<O, N>;
  static_assert(shared <= II_DCN_MOST_SHARED, "some GPUs have no more");
  const gradients to = {a->goffset, a->gmask, a->acc_goffset, a->acc_gmask};
  II_CUDA_TRY(k, cudaFuncSetAttribute(dcn_dots_mma<T, O, N>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  II_LAUNCH(k, (dcn_dots_mma<T, O, N>), (unsigned)blocks, 32 * WARPS, (size_t)shared, s, tiles_w,
            tiles, items, (const T *)a->x, (const O *)a->offset, (const O *)a->mask,
            (const T *)a->gy, to);
  return 0;
}

template <typename T> int run(ii_kctx *k, const ii_dcn_args *a) {
  II_DCN_WITH_OM(float, a->om_dtype, O,
                 return a->C / a->G % 32 ? (launch<T, O, 16>(k, a)) : (launch<T, O, 32>(k, a)));
  return 0;
}

} // namespace

bool ii_cuda_dcn_dots_has_mma(const ii_dcn_args *a, const ii_dcn_tiling &t) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(a->x) | reinterpret_cast<uintptr_t>(a->gy);
  return (a->x_dtype == II_F16 || a->x_dtype == II_BF16) && a->kh == 3 && a->kw == 3 &&
         !a->remove_center && a->stride_h == 1 && a->stride_w == 1 && t.halo_h == EDGE &&
         t.halo_w == EDGE && a->C / a->G % 16 == 0 && a->x_row % 8 == 0 && at % 16 == 0;
}

int ii_cuda_dcn_dots_mma(ii_kctx *k, const ii_dcn_args *a) {
  return a->x_dtype == II_F16 ? run<ii_f16>(k, a) : run<ii_bf16>(k, a);
}
