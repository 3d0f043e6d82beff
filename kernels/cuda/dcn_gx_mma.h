/* Deformable convolution, the gradient of x as a product of matrices: the kernel that
 * dcn_gx_mma.cu describes, with its launch. PARTS: numbers of type T that a weight is written as,
 * 2, or 1 in a development variant. For one .cu file each: all names are in an anonymous namespace.
 */
#ifndef II_DCN_GX_MMA_H
#define II_DCN_GX_MMA_H
#include "kernels/cuda/dcn_gx_sum.h"
#include "kernels/cuda/dcn_mma.h"

namespace {

namespace wmma = nvcuda::wmma;

enum { ROWS = II_DCN_ROWS, TAPS = II_DCN_TAPS, WARPS = 4 };
enum { PITCH = II_DCN_PIXELS + 4 }; /* floats from a row of A to the next: on other banks */

template <int N> constexpr int out_pitch = N + 4; /* floats */

/* Bytes of shared memory of one warp: A, gy, offsets and modulations, pending far taps; or, in the
 * same place, the sums of the tile, or what dcn_gx_sum.h needs. */
constexpr int most_of(int a, int b, int c) {
  return a > b ? (a > c ? a : c) : (b > c ? b : c);
}
template <typename O, int N>
constexpr int warp_bytes =
    (most_of(ROWS * (PITCH * 4 + ii_dcn_pitch<N> * 2 + ii_dcn_om_words<O> * 4) + 2 * ROWS * 8,
             II_DCN_PIXELS *out_pitch<N> * 4,
             ROWS *(int)sizeof(ii_dcn_listed<float>) + II_DCN_PIXELS * N * 4) +
     31) /
    32 * 32;

/* What a warp works with. offset, mask, gy as in ii_dcn_sum_work. */
template <typename T, typename O> struct work {
  ii_dcn_tile t;
  int64_t C;
  const O *offset, *mask;
  const T *gy;
  float *a;      /* [ROWS][PITCH] */
  T *g;          /* [ROWS][ii_dcn_pitch<N>] */
  uint32_t *om;  /* [ROWS][om_words] */
  int2 *pending; /* [2*ROWS]: output, tap */
};

/* Whether one of the two elements in a word is infinite or NaN: bits of v | ... & 0x80008000. */
template <typename T> __device__ __forceinline__ uint32_t not_finite(uint32_t v) {
  constexpr bool half = sizeof(T) == 2 && !std::is_same<T, ii_bf16>::value;
  return (v & (half ? 0x7c007c00u : 0x7f807f80u)) + (half ? 0x04000400u : 0x00800080u);
}

/* gy of the lanes' outputs q to w.g. Returns whether this lane saw a number that is not finite. */
template <int N, typename T, typename O>
__device__ __forceinline__ bool stage_gy(const work<T, O> &w, int q) {
  constexpr int pieces = N / 8;
  const int lane = threadIdx.x % 32;
  uint32_t bad = 0;
#pragma unroll
  for (int i = 0; i < pieces; i++) {
    const int row = (i * 32 + lane) / pieces, d = lane % pieces * 8;
    const int64_t from = __shfl_sync(II_FULL_MASK, q, row);
    const uint4 v = *reinterpret_cast<const uint4 *>(w.gy + from * w.C + d);
    bad |= not_finite<T>(v.x) | not_finite<T>(v.y) | not_finite<T>(v.z) | not_finite<T>(v.w);
    *reinterpret_cast<uint4 *>(w.g + row * ii_dcn_pitch<N> + d) = v;
  }
  return (bad & 0x80008000u) != 0;
}

/* A tap's four corners in a row of A; (y, x): the top left one, within the tile. */
__device__ __forceinline__ void add_tap(float *row, int y, int x, float lx, float ly, float m) {
  const bool t = (unsigned)y < II_DCN_TILE, b = (unsigned)(y + 1) < II_DCN_TILE;
  const bool l = (unsigned)x < II_DCN_TILE, r = (unsigned)(x + 1) < II_DCN_TILE;
  const float top = (1.0f - ly) * m, bottom = ly * m;
  float *at = row + y * II_DCN_TILE + x;
  float v[4] = {};
  if (t && l) v[0] = at[0];
  if (t && r) v[1] = at[1];
  if (b && l) v[2] = at[II_DCN_TILE];
  if (b && r) v[3] = at[II_DCN_TILE + 1];
  if (t && l) at[0] = v[0] + (1.0f - lx) * top;
  if (t && r) at[1] = v[1] + lx * top;
  if (b && l) at[II_DCN_TILE] = v[2] + (1.0f - lx) * bottom;
  if (b && r) at[II_DCN_TILE + 1] = v[3] + lx * bottom;
}

/* Raises *top to the largest exponent (biased) of the modulations of the warp's outputs; mask: this
 * lane's in shared memory, r: their norm. False when one is not finite or beyond 2^100. */
template <typename O>
__device__ __forceinline__ bool raise_top(const ii_dcn_shape<float> &s, const O *mask,
                                          const ii_dcn_norm<float> &r, unsigned *top) {
  float most = r.part; /* that of the largest logit */
  bool finite = fabsf(most) <= 0x1p100f;
  if (!s.softmax) {
    most = 0.0f;
#pragma unroll
    for (int k = 0; k < TAPS; k++) {
      const float m = fabsf(float(ii_up(mask[k])));
      finite = finite && m <= 0x1p100f;
      most = fmaxf(most, m);
    }
  }
  *top = max(*top, __reduce_max_sync(II_FULL_MASK, __float_as_uint(most) >> 23));
  return __all_sync(II_FULL_MASK, finite);
}

/* The factor of A while the largest exponent is `top`: 2^(11 - exponent) for fp16. */
template <typename T> __device__ __forceinline__ float factor_of(unsigned top) {
  if (std::is_same<T, ii_bf16>::value) return 1.0f;
  return __uint_as_float((265u - top) << 23);
}

/* The lane's row of A: all taps of output (ho, wo), or tap `only`. Returns the blocks touched. */
template <typename T, typename O>
__device__ __forceinline__ unsigned
build_row(const ii_dcn_shape<float> &s, const work<T, O> &w, int ho, int wo, int only,
          const O *offset, const O *mask, const ii_dcn_norm<float> &r, float factor) {
  float *row = w.a + threadIdx.x % 32 * PITCH;
  const ii_dcn_grid g = ii_dcn_grid_of(s, ho, wo);
  int top = II_DCN_TILE, bottom = 0; /* rows of the tile between which taps fall */
  float column = 0.0f;
#pragma unroll 1
  for (int k = 0; k < TAPS; k += 3, column += g.step_x)
#pragma unroll
    for (int j = 0; j < 3; j++) {
      const float dx = ii_up(offset[2 * (k + j)]), dy = ii_up(offset[2 * (k + j) + 1]);
      ii_dcn_sample p;
      if (!ii_dcn_sample_of(g, s.scale, column, float(j) * g.step_y, dx, dy, &p)) continue;
      if (only >= 0 && only != k + j) continue;
      const float m = ii_dcn_modulation(s, r, float(ii_up(mask[k + j]))) * factor;
      const int y = p.y - w.t.y;
      top = min(top, y);
      bottom = max(bottom, y + 1);
      add_tap(row, y, p.x - w.t.x, p.lx, p.ly, m);
    }
  if (top >= II_DCN_TILE) return 0;
  top = max(top, 0) >> 1;
  bottom = min(bottom, II_DCN_TILE - 1) >> 1;
  return bottom < top ? 0u : (2u << bottom) - (1u << top);
}

/* Block b of A, 32 rows x 16 numbers, from fp32 to 16 first parts and 16 second parts per row. */
template <int PARTS, typename T> __device__ __forceinline__ void split(float *a, int b) {
  const int lane = threadIdx.x % 32, piece = lane % 4;
  float *from = a + (lane / 8 + lane / 4 % 2 * 4) * PITCH + b * 16; /* two rows on other banks */
  ii_vec<float, 4> v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = ii_load<4>(from + i * 8 * PITCH + piece * 4);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    ii_vec<T, 4> first, second;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      first.v[j] = ii_down<T>(v[i].v[j]);
      second.v[j] = ii_down<T>(v[i].v[j] - ii_up(first.v[j]));
    }
    T *to = reinterpret_cast<T *>(from + i * 8 * PITCH) + piece * 4;
    *reinterpret_cast<ii_vec<T, 4> *>(to) = first;
    if constexpr (PARTS == 2) *reinterpret_cast<ii_vec<T, 4> *>(to + 16) = second;
  }
}

/* Zeros in the blocks of A that `blocks` names. */
__device__ __forceinline__ void clear(float *a, unsigned blocks) {
  const int lane = threadIdx.x % 32;
  float *to = a + (lane / 8 + lane / 4 % 2 * 4) * PITCH + lane % 4 * 4;
#pragma unroll 1
  for (int b = 0; b < 4; b++)
    if (blocks >> b & 1u)
#pragma unroll
      for (int i = 0; i < 4; i++)
        *reinterpret_cast<float4 *>(to + i * 8 * PITCH + b * 16) =
            make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums;

/* sum += A^T gy over the 32 rows, for the blocks of pixels in `blocks`. */
template <int N, int PARTS, typename T, typename O>
__device__ __forceinline__ void multiply(const work<T, O> &w, unsigned blocks,
                                         sums (&sum)[4][N / 16]) {
  const T *a = reinterpret_cast<const T *>(w.a);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> g[N / 16];
#pragma unroll
    for (int n = 0; n < N / 16; n++)
      wmma::load_matrix_sync(g[n], w.g + half * 16 * ii_dcn_pitch<N> + n * 16, ii_dcn_pitch<N>);
#pragma unroll
    for (int b = 0; b < 4; b++)
      if (blocks >> b & 1u) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::col_major> first, second;
        const T *at = a + half * 16 * 2 * PITCH + b * 32;
        wmma::load_matrix_sync(first, at, 2 * PITCH);
        if constexpr (PARTS == 2) wmma::load_matrix_sync(second, at + 16, 2 * PITCH);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
          wmma::mma_sync(sum[b][n], first, g[n], sum[b][n]);
          if constexpr (PARTS == 2) wmma::mma_sync(sum[b][n], second, g[n], sum[b][n]);
        }
      }
  }
}

/* Far taps for the tile, 32 candidates after another. */
typedef struct {
  ii_dcn_sources from;
  int batch;     /* number of the first of the 32 source tiles that come next */
  unsigned hits; /* of the 32 before them, those whose lists are not done */
  int first;     /* next candidate in the first of those lists */
  int pending;
} far_walk;

/* Lets 32 far taps wait in w.pending, or all that are left. group: n*G + g. */
template <typename T, typename O>
__device__ __forceinline__ void find_pending(const ii_dcn_shape<float> &s, const ii_dcn_tiling &p,
                                             const ii_dcn_far &far, unsigned group,
                                             const work<T, O> &w, far_walk *f) {
  const int lane = threadIdx.x % 32;
  while (f->pending < ROWS) {
    if (f->hits == 0) {
      if (f->batch >= f->from.nh * f->from.nw) break;
      f->hits = ii_dcn_hits(p, far, group, w.t, f->from, f->batch);
      f->batch += 32;
      continue;
    }
    const int source = f->batch - 33 + __ffs((int)f->hits);
    const int h = f->from.h + source / f->from.nw, v = f->from.w + source % f->from.nw;
    const int64_t list = (int64_t)group * p.sources + h * p.sources_w + v;
    const int count = far.count[list], i = f->first + lane;
    bool here = i < count;
    int2 found;
    if (here) {
      const ii_dcn_far_tap tap = far.taps[list * p.list + i];
      const int which = ii_dcn_far_which(tap), at = which % II_DCN_PIXELS;
      const int ho = h * II_DCN_TILE + at / II_DCN_TILE, wo = v * II_DCN_TILE + at % II_DCN_TILE;
      here = ii_dcn_far_here(w.t, tap, ho, wo);
      found = make_int2(ho * s.Wo + wo, which / II_DCN_PIXELS);
    }
    const unsigned all = __ballot_sync(II_FULL_MASK, here);
    if (here) w.pending[f->pending + __popc(all & ((1u << lane) - 1u))] = found;
    f->pending += __popc(all);
    f->first += 32;
    if (f->first >= count) f->hits &= f->hits - 1, f->first = 0;
  }
  __syncwarp();
}

/* The next 32 rows: the lane's output and tap (-1: all) to *q and *only, -1 and 0 for a lane
 * without. False at the end. next: the first near output not taken yet. */
template <typename T, typename O>
__device__ __forceinline__ bool
next_rows(const ii_dcn_shape<float> &s, const ii_dcn_tiling &p, const ii_dcn_far &far,
          unsigned group, const work<T, O> &w, int *next, far_walk *f, int *q, int *only) {
  const int lane = threadIdx.x % 32, near = w.t.nh * w.t.nw;
  *only = -1;
  if (*next < near) {
    const int i = *next + lane;
    *q = i < near ? (w.t.ho + i / w.t.nw) * s.Wo + w.t.wo + i % w.t.nw : -1;
    *next += ROWS;
    return true;
  }
  find_pending(s, p, far, group, w, f);
  if (f->pending == 0) return false;
  const int2 mine = lane < f->pending ? w.pending[lane] : make_int2(-1, -1);
  const int left = f->pending > ROWS ? f->pending - ROWS : 0;
  const int2 later = lane < left ? w.pending[ROWS + lane] : mine;
  __syncwarp();
  if (lane < left) w.pending[lane] = later;
  f->pending = left;
  *q = mine.x;
  *only = mine.y;
  return true;
}

/* The sums of the tile, times 1/factor in *back. False when something is not finite. */
template <int N, int PARTS, typename T, typename O>
__device__ __forceinline__ bool gather(const ii_dcn_shape<float> &s, const ii_dcn_tiling &p,
                                       const ii_dcn_far &far, unsigned group, const work<T, O> &w,
                                       sums (&sum)[4][N / 16], float *back) {
  const int lane = threadIdx.x % 32;
  far_walk f = {ii_dcn_sources_of(s, w.t, far.reach[group]), 0, 0, 0, 0};
  unsigned top = 27;  /* 2^-100: below that there is no scaling any more */
  unsigned last = 15; /* blocks of A to be cleared */
  int next = 0, q, only;
  while (next_rows(s, p, far, group, w, &next, &f, &q, &only)) {
    const bool alive = q >= 0;
    const int first = __shfl_sync(II_FULL_MASK, q, 0);
    if (!alive) q = first; /* something that is there; the row stays zero */
    ii_dcn_stage_om(s, w.offset, w.mask, q, w.om);
    const bool bad = stage_gy<N>(w, q);
    clear(w.a, last);
    if (__any_sync(II_FULL_MASK, bad)) return false;
    __syncwarp();
    const uint32_t *om = w.om + lane * ii_dcn_om_words<O>;
    const O *offset = reinterpret_cast<const O *>(om);
    const O *mask = reinterpret_cast<const O *>(om + ii_dcn_om_front<O>);
    const unsigned before = top;
    const ii_dcn_norm<float> r = ii_dcn_norm_of(s, TAPS, mask);
    if (!raise_top(s, mask, r, &top)) return false;
    if (!std::is_same<T, ii_bf16>::value && top != before) {
      const float change = factor_of<T>(top) / factor_of<T>(before);
#pragma unroll
      for (int b = 0; b < 4; b++)
#pragma unroll
        for (int n = 0; n < N / 16; n++)
#pragma unroll
          for (int i = 0; i < sum[b][n].num_elements; i++) sum[b][n].x[i] *= change;
    }
    unsigned blocks = 0;
    if (alive) {
      const int ho = q / s.Wo;
      blocks = build_row(s, w, ho, q - ho * s.Wo, only, offset, mask, r, factor_of<T>(top));
    }
    blocks = __reduce_or_sync(II_FULL_MASK, blocks);
    last = blocks;
    __syncwarp();
#pragma unroll 1
    for (int b = 0; b < 4; b++)
      if (blocks >> b & 1u) split<PARTS, T>(w.a, b);
    __syncwarp();
    multiply<N, PARTS>(w, blocks, sum);
    __syncwarp();
  }
  *back = 1.0f / factor_of<T>(top);
  return true;
}

/* The tile's sums, times `back`, to gx. from: [pixels][pitch] in shared memory. */
template <int N, typename T>
__device__ __forceinline__ void put(const ii_dcn_shape<float> &s, const ii_dcn_tile &t,
                                    const float *from, int pitch, float back, T *gx,
                                    bool accumulate) {
  constexpr int pieces = N / 8;
  const int lane = threadIdx.x % 32, d = lane % pieces * 8;
#pragma unroll 2
  for (int at = lane / pieces; at < II_DCN_PIXELS; at += 32 / pieces) {
    const int y = t.y + at / II_DCN_TILE, x = t.x + at % II_DCN_TILE;
    if (y >= s.H || x >= s.W) continue;
    T *to = gx + ((int64_t)y * s.W + x) * s.x_row + d;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const ii_vec<float, 4> part = ii_load<4>(from + at * pitch + d + i);
#pragma unroll
      for (int j = 0; j < 4; j++) v[i + j] = part.v[j] * back;
    }
    if (accumulate) {
      const ii_vec<T, 8> old = ii_load<8>(to);
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] += ii_up(old.v[i]);
    }
    ii_vec<T, 8> out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.v[i] = ii_down<T>(v[i]);
    ii_store<8>(to, out);
  }
}

/* The other way, for tiles that meet numbers that are not finite. */
template <int N, typename T, typename O>
__device__ __forceinline__ void gather_otherwise(const ii_dcn_shape<float> &s,
                                                 const ii_dcn_tiling &p, const ii_dcn_far &far,
                                                 unsigned group, const work<T, O> &w) {
  ii_dcn_sum_work<O, T, float> o = {w.t, N, N, w.offset, w.mask, w.gy, NULL, w.a};
  o.list = reinterpret_cast<ii_dcn_listed<float> *>(w.a + II_DCN_PIXELS * N);
  __syncwarp();
  for (int i = threadIdx.x % 32; i < II_DCN_PIXELS * N; i += 32) o.sum[i] = 0.0f;
  __syncwarp();
  ii_dcn_add_all(s, p, far, group, o);
}

template <typename T, typename O, int N, int PARTS>
__global__ void __launch_bounds__(32 * WARPS, 3)
    dcn_gx_mma(const ii_dcn_shape<float> s, const ii_dcn_tiling p, const ii_dcn_far far,
               int64_t items, const O *offset, const O *mask, const T *gy, T *gx, bool accumulate) {
  II_SHARED(unsigned char, memory);
  const int warp = threadIdx.x / 32, slices = s.D / N;
  int64_t item = (int64_t)blockIdx.x * WARPS + warp;
  if (item >= items) return;
  const int slice = (int)(item % slices);
  item /= slices;
  const int g = (int)(item % s.G);
  item /= s.G;
  const unsigned group = (unsigned)(item / p.tiles) * (unsigned)s.G + (unsigned)g;
  work<T, O> w;
  w.t = ii_dcn_tile_of(s, p, group, (int)(item % p.tiles));
  w.C = (int64_t)s.G * s.D;
  const int channel = g * s.D + slice * N;
  w.offset = offset + w.t.n * s.Q * s.offset_row + g * s.offset_group;
  w.mask = mask + w.t.n * s.Q * s.mask_row + g * s.mask_group;
  w.gy = gy + w.t.n * s.Q * w.C + channel;
  w.a = reinterpret_cast<float *>(memory + warp * warp_bytes<O, N>);
  w.g = reinterpret_cast<T *>(w.a + ROWS * PITCH);
  w.pending = reinterpret_cast<int2 *>(w.g + ROWS * ii_dcn_pitch<N>);
  w.om = reinterpret_cast<uint32_t *>(w.pending + 2 * ROWS);

  sums sum[4][N / 16];
#pragma unroll
  for (int b = 0; b < 4; b++)
#pragma unroll
    for (int n = 0; n < N / 16; n++) wmma::fill_fragment(sum[b][n], 0.0f);
  float back = 1.0f;
  int pitch = out_pitch<N>;
  if (gather<N, PARTS>(s, p, far, group, w, sum, &back)) {
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
      for (int n = 0; n < N / 16; n++)
        wmma::store_matrix_sync(w.a + b * 16 * pitch + n * 16, sum[b][n], pitch,
                                wmma::mem_row_major);
    __syncwarp();
  } else {
    gather_otherwise<N>(s, p, far, group, w);
    pitch = N;
  }
  put<N>(s, w.t, w.a, pitch, back, gx + w.t.n * s.pixels * s.x_row + channel, accumulate);
}

template <typename T, typename O, int N, int PARTS>
int launch(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far) {
  ii_dcn_shape<float> s = {};
  if (ii_dcn_shape_of(k, a, &s)) return 1;
  const int64_t items = a->N * t.tiles * a->G * (s.D / N), blocks = ii_ceil_div(items, WARPS);
  if (blocks > INT_MAX) return ii_cuda_error(k, "dcn: too many pixels; use smaller batches");
  constexpr int shared = WARPS * warp_bytes<O, N>;
  static_assert(shared <= II_DCN_MOST_SHARED, "some GPUs have no more");
  II_CUDA_TRY(k, cudaFuncSetAttribute(dcn_gx_mma<T, O, N, PARTS>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  II_LAUNCH(k, (dcn_gx_mma<T, O, N, PARTS>), (unsigned)blocks, 32 * WARPS, (size_t)shared, s, t,
            far, items, (const O *)a->offset, (const O *)a->mask, (const T *)a->gy, (T *)a->gx,
            a->acc_gx);
  return 0;
}

/* gx of a call that ii_cuda_dcn_gx_has_mma accepts, every weight as the sum of PARTS numbers. */
template <int PARTS, typename T>
int run(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far) {
  II_DCN_WITH_OM(float, a->om_dtype, O,
                 return a->C / a->G % 32 ? (launch<T, O, 16, PARTS>(k, a, t, far))
                                         : (launch<T, O, 32, PARTS>(k, a, t, far)));
  return 0;
}

} // namespace

#endif
