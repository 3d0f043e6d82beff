/* Deformable convolution, forward, for the published models: windows of 3 x 3, stride, padding and
 * dilation 1, groups of 16, 32 or 64 channels, offsets and modulations of the type of x (fp32,
 * fp16, bf16), v3 and v4. Everything else is dcn_fwd.cu's; the mathematics and the bits are the
 * same. y[u,d] = sum_k sum_c w[k,c] x[at(k,c), d],  w = m_k times the bilinear weight of corner c.
 *
 * Mapping: a block has a tile of pixels of one image and some groups of each.
 *   rows: the offsets and modulations of the tile go to shared memory, once, 16 bytes at a time
 *     where they are aligned; the only barrier follows.
 *   taps: a warp takes U units (pixel and group, numbered by pixel) at a time. Lane l has unit l %
 * U and taps l / U, l / U + 32 / U, ...: position, four weights, one address, left in the warp's
 *     part of shared memory.
 *   gather: L lanes per unit, 16 bytes (V channels) each, so that eight neighbouring lanes read
 *     different banks. Per tap two broadcasts of shared memory, four gathers.
 *
 * No branches: of a tap at x, two columns are read, base = clamp(floor x, 0, W-2) and base + 1,
 * with weights
 *     w_0 = min(sat(1 - t), sat(1 + t)),  w_1 = min(sat(t), sat(2 - t)),  t = x - base,
 * sat(v) = v limited to [0,1], and 0 for NaN. Between pixels these are 1 - t and t; at the margins
 * the one column inside gets what the bilinear formula gives it, the other one 0; further outside,
 * and for NaN, both are 0. Likewise rows. So the four corners are always at the same distances from
 * each other, which are added to the image's address once per block: a gather's address is a 32-bit
 * offset that all four corners share. 0 times an infinity or NaN is NaN, however, where the formula
 * has no term at all: a lane whose sums contain a NaN computes them again, term by term.
 *
 * Bytes and instructions: docs/kernels.md.
 * Limits: images of at least 2 x 2 pixels, below 4 GiB; others go to dcn_fwd.cu. */
#include <math.h>
#include <type_traits>
#include "kernels/cuda/dcn_fwd.h"
#include "kernels/cuda/dcn_units.h"

namespace {

/* ---- What the kernel is told ------------------------------------------------------------------*/

/* Sizes in bytes are named so; q / d for small numbers is quotient(q, by_d). */
typedef struct {
  const unsigned char *x, *offset, *mask; /* of the launch's first image */
  unsigned char *y;
  int64_t x_image, y_image, offset_image, mask_image; /* bytes per image */
  unsigned pitch, line,
      y_pitch; /* from pixel to pixel and row to row of x, pixels of y: 16 bytes */
  unsigned offset_row, mask_row;     /* bytes */
  unsigned offset_group, mask_group; /* bytes, in global and in shared memory */
  int H, W, G;
  float scale;
  bool softmax, wide; /* wide: rows of offsets and modulations can be read 16 bytes at a time */
  /* A tile: pixels tw x th, groups gc; `record` bytes of shared memory per pixel: span 0 (offsets,
   * or everything) at 0, span 1 (modulations) at `second`; `to_mask` from a group's first offset.
   */
  int tw, th, gc, chunks; /* chunks of groups */
  unsigned by_tw, by_gc, by_chunks;
  unsigned record, second, to_mask;
  unsigned length0, length1; /* bytes per pixel and group of the two spans */
  unsigned copy_shift;       /* 2^copy_shift threads copy a pixel's */
  unsigned rows_bytes;       /* shared memory before the warps' parts */
} tiles;

static unsigned reciprocal(int64_t d) {
  return (unsigned)(((int64_t)1 << 31) / d + (((int64_t)1 << 31) % d != 0));
}
/* n / d with by = reciprocal(d), while n * d < 2^31. */
__device__ __forceinline__ unsigned quotient(unsigned n, unsigned by) {
  return __umulhi(2 * n, by);
}

/* ---- Taps -------------------------------------------------------------------------------------*/

/* Where a block is: its image, its first pixel and group, how much of the tile exists. */
typedef struct {
  int64_t image;
  int x0, y0, g0, groups, width, height;
} place;

/* The numbers of a warp's U units in shared memory. w: weights of the corners of 9 taps; words 0..8
 * of at: where the first corner is in the image, 9: twice that of y, plus 1 where y is to be
 * written, in 16 bytes; 10: the unit's number. Two arrays, because 9 and 3 times 16 bytes from unit
 * to unit, but not 12, are on different banks for the units of eight neighbouring lanes. */
template <int U> struct alignas(16) warp_taps {
  float4 w[U][9];
  uint4 at[U][3];
};

/* Weights of columns base and base + 1 for a sample at x; last = W - 2. */
__device__ __forceinline__ void hat(float x, float last, float *w0, float *w1, int *base) {
  const float low = floorf(fmaxf(fminf(x, last), 0.0f)), t = x - low;
  *w0 = fminf(__saturatef(1.0f - t), __saturatef(1.0f + t));
  *w1 = fminf(__saturatef(t), __saturatef(2.0f - t));
  *base = (int)low;
}

/* A unit: where it is in the tile, and where its numbers are in shared memory. */
typedef struct {
  unsigned pixel, g;
  int x, y; /* of the image */
} unit;

__device__ __forceinline__ unit unit_of(const tiles &t, const place &b, unsigned i) {
  unit u;
  u.pixel = quotient(i, t.by_gc);
  u.g = i - u.pixel * t.gc;
  const unsigned ty = quotient(u.pixel, t.by_tw);
  u.y = b.y0 + (int)ty;
  u.x = b.x0 + (int)(u.pixel - ty * t.tw);
  return u;
}

/* Position of tap (i,j) along one axis, as in dcn_units.h with pad = 1, dil = 1. */
__device__ __forceinline__ float position(float tap, float delta, float scale, float base) {
  return (tap + delta) * scale + base;
}

template <typename T> __device__ __forceinline__ float number(const unsigned char *p) {
  return ii_up(*reinterpret_cast<const T *>(p));
}

/* Modulations of the taps k = h + r*S of a unit that S lanes share, 32/S lanes apart: softmax. The
 * order of the sum does not depend on S: that of dcn_units.h. */
template <int S, int R> __device__ __forceinline__ void soften(float (&m)[R], int h) {
  float most = -INFINITY, e[8 / S] = {};
#pragma unroll
  for (int r = 0; r < R; r++)
    if (h + r * S < 9) most = m[r] > most ? m[r] : most;
#pragma unroll
  for (int d = 32 / S; d < 32; d *= 2) {
    const float o = __shfl_xor_sync(II_FULL_MASK, most, d);
    most = o > most ? o : most;
  }
#pragma unroll
  for (int r = 0; r < R; r++)
    if (h + r * S < 9) {
      m[r] = ii_dcn_exp(m[r] - most);
      e[r % (8 / S)] += m[r];
    }
#pragma unroll
  for (int n = 8 / S / 2; n > 0; n /= 2)
#pragma unroll
    for (int r = 0; r < n; r++) e[r] += e[r + n];
#pragma unroll
  for (int d = 16; d >= 32 / S; d /= 2) e[0] += __shfl_xor_sync(II_FULL_MASK, e[0], d);
  const float part = 1.0f / e[0];
#pragma unroll
  for (int r = 0; r < R; r++) m[r] *= part;
}

/* The taps of units first .. first + U - 1 of the tile. Units that do not exist get those of the
 * first one, and no place in y. All lanes take part; __syncwarp follows. */
template <typename T, int D, int U>
__device__ __forceinline__ void stage(const tiles &t, const place &b, const unsigned char *rows,
                                      unsigned first, int lane, warp_taps<U> *taps) {
  constexpr int S = 32 / U, R = (9 + S - 1) / S;
  /* first >> 31 is 0. Written so that what follows from h is computed anew for each round of units:
   * it would take a dozen registers to keep. */
  const int h = lane / U + (int)(first >> 31);
  unit u = unit_of(t, b, first + lane % U);
  const bool alive = u.x < b.x0 + b.width && u.y < b.y0 + b.height && (int)u.g < b.groups;
  if (!alive) u = {0, 0, b.x0, b.y0};
  const unsigned char *offset = rows + u.pixel * t.record + u.g * t.offset_group;
  const unsigned char *mask = rows + u.pixel * t.record + t.to_mask + u.g * t.mask_group;
  const float base_x = (float)u.x - t.scale, base_y = (float)u.y - t.scale;
  const float last_x = (float)(t.W - 2), last_y = (float)(t.H - 2);
  const unsigned channel = (unsigned)((b.g0 + u.g) * (D * (int)sizeof(T) / 16));
  float m[R];
  float4 *weights = taps->w[lane % U];
  uint4 *words = taps->at[lane % U];
#pragma unroll
  for (int r = 0; r < R; r++)
    m[r] = h + r * S < 9 ? number<T>(mask + (h + r * S) * sizeof(T)) : 0.0f;
  if (t.softmax) soften<S>(m, h);
#pragma unroll
  for (int r = 0; r < R; r++) {
    const int k = h + r * S;
    if (k >= 9) continue;
    int i = k * 11 >> 5, j = k - 3 * i; /* k / 3, k % 3 */
    if constexpr (S == 2) {             /* one instruction each */
      i = h ? (2 * r + 1) / 3 : 2 * r / 3;
      j = h ? (2 * r + 1) % 3 : 2 * r % 3;
    }
    const float dx = number<T>(offset + 2 * k * sizeof(T));
    const float dy = number<T>(offset + (2 * k + 1) * sizeof(T));
    float l, r_, top, bottom;
    int x, y;
    hat(position((float)i, dx, t.scale, base_x), last_x, &l, &r_, &x);
    hat(position((float)j, dy, t.scale, base_y), last_y, &top, &bottom, &y);
    top *= m[r];
    bottom *= m[r];
    weights[k] = {l * top, r_ * top, l * bottom, r_ * bottom};
    const unsigned at = (unsigned)y * t.line + (unsigned)x * t.pitch + channel;
    if (r < R - 1) {
      reinterpret_cast<unsigned *>(words)[k] = at;
    } else { /* k == 8 */
      const unsigned to = (unsigned)(u.y * t.W + u.x) * t.y_pitch + channel;
      words[2] = {at, to * 2 + alive, first + lane % U, 0};
    }
  }
}

/* ---- Sums -------------------------------------------------------------------------------------*/

/* V channels of a unit, by the formula: for lanes whose sums contain a NaN. x: its channels in the
 * first pixel of the image. */
template <typename T, int V>
__device__ __forceinline__ void term_by_term(const tiles &t, const place &b,
                                             const unsigned char *rows, unsigned i, const uint4 *x,
                                             float *sum) {
  const unit u = unit_of(t, b, i);
  const unsigned char *offset = rows + u.pixel * t.record + u.g * t.offset_group;
  const unsigned char *mask = rows + u.pixel * t.record + t.to_mask + u.g * t.mask_group;
  float most = -INFINITY, part = 1.0f;
  if (t.softmax) {
    float e[8] = {};
    for (int k = 0; k < 9; k++) most = fmaxf(most, number<T>(mask + k * sizeof(T)));
#pragma unroll
    for (int k = 0; k < 9; k++) e[k % 8] += ii_dcn_exp(number<T>(mask + k * sizeof(T)) - most);
    part = 1.0f / (((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7])));
  }
#pragma unroll
  for (int v = 0; v < V; v++) sum[v] = 0.0f;
#pragma unroll 1
  for (int k = 0; k < 9; k++) {
    const int i3 = k / 3, j3 = k - 3 * i3;
    float m = number<T>(mask + k * sizeof(T));
    if (t.softmax) m = ii_dcn_exp(m - most) * part;
    const float px =
        position((float)i3, number<T>(offset + 2 * k * sizeof(T)), t.scale, (float)u.x - t.scale);
    const float py = position((float)j3, number<T>(offset + (2 * k + 1) * sizeof(T)), t.scale,
                              (float)u.y - t.scale);
    if (!(py > -1.0f && px > -1.0f && py < (float)t.H && px < (float)t.W)) continue;
    const float left = floorf(px), up = floorf(py), lx = px - left, ly = py - up;
#pragma unroll 1
    for (int c = 0; c < 4; c++) {
      const int cx = (int)left + (c & 1), cy = (int)up + (c >> 1);
      if (cx < 0 || cy < 0 || cx >= t.W || cy >= t.H) continue;
      const float w = (c & 1 ? lx : 1.0f - lx) * ((c >> 1 ? ly : 1.0f - ly) * m);
      const unsigned at = (unsigned)cy * t.line + (unsigned)cx * t.pitch;
      const ii_vec<T, V> v = ii_load<V>(reinterpret_cast<const T *>(x + at));
#pragma unroll
      for (int n = 0; n < V; n++) sum[n] += w * ii_up(v.v[n]);
    }
  }
}

/* The elements of T in 16 bytes as floats, one instruction each at most. */
template <typename T> __device__ __forceinline__ void widen(const uint4 &v, float *to) {
  const unsigned word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if constexpr (sizeof(T) == 4) {
      to[i] = __uint_as_float(word[i]);
    } else if constexpr (std::is_same<T, ii_bf16>::value) {
      to[2 * i] = __uint_as_float(word[i] << 16);
      to[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    } else {
      T pair[2];
      memcpy((void *)pair, &word[i], sizeof pair);
      to[2 * i] = ii_up(pair[0]);
      to[2 * i + 1] = ii_up(pair[1]);
    }
}

/* The units whose taps are in shared memory: L lanes each. corner: the image's address, and the
 * same moved by a pixel, a row, both. */
template <typename T, int V, int L, int U>
__device__ __forceinline__ void gather(const tiles &t, const place &b, const unsigned char *rows,
                                       const warp_taps<U> *taps, int lane,
                                       const uint4 *const *corners, unsigned char *y) {
  const uint4 *const corner[4] = {corners[0], corners[1], corners[2], corners[3]};
#pragma unroll 1
  for (int first = 0; first < U; first += 32 / L) {
    const float4 *weights = taps->w[first + lane / L];
    const uint4 *stored = taps->at[first + lane / L];
    const unsigned channel = lane % L;
    float sum[V] = {};
    uint4 at[3];
#pragma unroll
    for (int k = 0; k < 9; k++) {
      if (k % 4 == 0) at[k / 4] = stored[k / 4];
      const float4 w = weights[k];
      const float weight[4] = {w.x, w.y, w.z, w.w};
      const unsigned words[4] = {at[k / 4].x, at[k / 4].y, at[k / 4].z, at[k / 4].w};
      const unsigned from = words[k % 4] + channel;
      uint4 v[4];
#pragma unroll
      for (int c = 0; c < 4; c++) v[c] = __ldg(corner[c] + from);
#pragma unroll
      for (int c = 0; c < 4; c++) {
        float wide[V];
        widen<T>(v[c], wide);
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] += weight[c] * wide[i];
      }
    }
    if (!(at[2].y & 1)) continue;
    float any = sum[0];
#pragma unroll
    for (int i = 1; i < V; i++) any += sum[i];
    if (any != any) {
      const unsigned g = at[2].z - quotient(at[2].z, t.by_gc) * t.gc;
      term_by_term<T, V>(t, b, rows, at[2].z, corner[0] + (b.g0 + g) * L + lane % L, sum);
    }
    ii_vec<T, V> out;
#pragma unroll
    for (int i = 0; i < V; i++) out.v[i] = ii_down<T>(sum[i]);
    ii_store<V>(reinterpret_cast<T *>(y + ((size_t)(at[2].y >> 1) * 16 + lane % L * 16)), out);
  }
}

/* ---- Rows -------------------------------------------------------------------------------------*/

/* Copies `bytes` of each pixel of the tile, the first one's at `from`, `row` apart: some
 * neighbouring threads per pixel (2^t.copy_shift), each a word at a time, four loads in flight. */
template <typename word>
__device__ __forceinline__ void copy_span(const tiles &t, const place &b, const unsigned char *from,
                                          unsigned row, unsigned bytes, unsigned char *to) {
  enum { AHEAD = 4 };
  const unsigned all = t.tw * b.height, step = blockDim.x >> t.copy_shift;
  const unsigned first = threadIdx.x & ((1u << t.copy_shift) - 1);
  for (unsigned at = first * sizeof(word); at < bytes; at += sizeof(word) << t.copy_shift)
    for (unsigned p = threadIdx.x >> t.copy_shift; p < all; p += AHEAD * step) {
      word v[AHEAD];
      bool there[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const unsigned pixel = p + i * step, ty = quotient(pixel, t.by_tw), tx = pixel - ty * t.tw;
        there[i] = pixel < all && (int)tx < b.width;
        if (there[i])
          v[i] = __ldcs(reinterpret_cast<const word *>(from + (size_t)(ty * t.W + tx) * row + at));
      }
#pragma unroll
      for (int i = 0; i < AHEAD; i++)
        if (there[i]) *reinterpret_cast<word *>(to + (p + i * step) * t.record + at) = v[i];
    }
}

/* The offsets and modulations of the tile's pixels and groups. */
template <typename word>
__device__ __forceinline__ void copy_rows(const tiles &t, const place &b, unsigned char *rows) {
  const int64_t pixel = (int64_t)b.y0 * t.W + b.x0;
  copy_span<word>(
      t, b, t.offset + b.image * t.offset_image + pixel * t.offset_row + b.g0 * t.offset_group,
      t.offset_row, t.length0 * b.groups, rows);
  if (t.length1)
    copy_span<word>(t, b,
                    t.mask + b.image * t.mask_image + pixel * t.mask_row + b.g0 * t.mask_group,
                    t.mask_row, t.length1 * b.groups, rows + t.second);
}

/* ---- The kernel -------------------------------------------------------------------------------*/

enum { MOST_WARPS = 8, CORNERS = 4 * sizeof(void *) };

/* Units that a warp works on at a time: more are fewer instructions per unit, but 256 units' rows
 * and the warps' parts must fit 48 KiB, and fp32 is not bound by instructions. */
template <typename T, int L> constexpr int units_for = sizeof(T) == 2 && L <= 4 ? 16 : 8;

template <typename T, int L>
__global__ void __launch_bounds__(32 * MOST_WARPS, 4) dcn_fwd_tiles(const tiles t) {
  constexpr int V = ii_wide<T>::n, U = units_for<T, L>;
  II_SHARED(unsigned char, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const unsigned image = quotient(blockIdx.z, t.by_chunks);
  place b;
  b.image = image;
  b.x0 = (int)blockIdx.x * t.tw;
  b.y0 = (int)blockIdx.y * t.th;
  b.g0 = (int)(blockIdx.z - image * t.chunks) * t.gc;
  b.groups = min(t.gc, t.G - b.g0);
  b.width = min(t.tw, t.W - b.x0);
  b.height = min(t.th, t.H - b.y0);

  if (t.wide)
    copy_rows<uint4>(t, b, shared);
  else if constexpr (sizeof(T) == 2)
    copy_rows<unsigned short>(t, b, shared);
  else
    copy_rows<unsigned>(t, b, shared);
  const uint4 **corner = reinterpret_cast<const uint4 **>(shared + t.rows_bytes);
  if (threadIdx.x < 4)
    corner[threadIdx.x] = reinterpret_cast<const uint4 *>(t.x + b.image * t.x_image) +
                          (threadIdx.x % 2 ? t.pitch : 0) + (threadIdx.x / 2 ? t.line : 0);
  __syncthreads();

  unsigned char *y = t.y + b.image * t.y_image;
  warp_taps<U> *taps = reinterpret_cast<warp_taps<U> *>(shared + t.rows_bytes + CORNERS) + warp;
  const unsigned units = t.tw * b.height * t.gc;
  for (unsigned first = warp * U; first < units; first += warps * U) {
    stage<T, L * V, U>(t, b, shared, first, lane, taps);
    __syncwarp();
    gather<T, V, L, U>(t, b, shared, taps, lane, corner, y);
    __syncwarp();
  }
}

/* ---- Launches ---------------------------------------------------------------------------------*/

/* Offsets and modulations by group (v4), or those of all groups behind each other (v3). */
typedef enum { OTHER, BY_GROUP, BY_KIND } layout;

layout layout_of(const ii_dcn_args *a) {
  const int64_t size = (int64_t)ii_dtype_size(a->om_dtype);
  const int64_t between = (const char *)a->mask - (const char *)a->offset;
  if (a->offset_group == 27 && a->mask_group == 27 && a->offset_row == a->mask_row &&
      between == 18 * size)
    return BY_GROUP;
  return a->offset_group == 18 && a->mask_group == 9 ? BY_KIND : OTHER;
}

bool aligned(const void *p, int64_t step) {
  return (uintptr_t)p % 16 == 0 && step % 16 == 0;
}

/* About n / parts for the number of parts that `most` asks for, so that the last is not small. */
int64_t evenly(int64_t n, int64_t most) {
  return ii_ceil_div(n, ii_ceil_div(n, most));
}

/* Sizes of tiles, for a GPU of `processors`: about 256 units, so that the halo of a tile is small
 * beside it, halved while that would leave multiprocessors without work. */
void choose_tile(const ii_dcn_args *a, int units, int64_t processors, tiles *t) {
  /* chunks of 8 groups begin at multiples of 16 bytes */
  int64_t gc = a->G <= 12 ? a->G : 8, tw = evenly(a->W, 8), th;
  const int64_t chunks = ii_ceil_div(a->G, gc), most = 256 / (tw * gc);
  th = evenly(a->H, most < 1 ? 1 : most);
  while (tw * th * gc > units &&
         a->N * chunks * ii_ceil_div(a->W, tw) * ii_ceil_div(a->H, th) < 2 * processors) {
    if (th > 1)
      th = evenly(a->H, th / 2);
    else if (tw > 1)
      tw = evenly(a->W, tw / 2);
    else
      break;
  }
  t->tw = (int)tw;
  t->th = (int)th;
  t->gc = (int)gc;
  t->chunks = (int)chunks;
  t->by_tw = reciprocal(tw);
  t->by_gc = reciprocal(gc);
  t->by_chunks = reciprocal(chunks);
}

/* How offsets and modulations lie in a tile's part of shared memory. */
void choose_rows(const ii_dcn_args *a, tiles *t) {
  const unsigned size = (unsigned)ii_dtype_size(a->om_dtype);
  const bool by_group = layout_of(a) == BY_GROUP;
  const int64_t between = (const char *)a->mask - (const char *)a->offset;
  /* one span per pixel: v4, and v3 where modulations follow their offsets */
  const bool one =
      by_group || (t->chunks == 1 && a->offset_row == a->mask_row && between == 18 * size * a->G);
  t->offset_row = (unsigned)a->offset_row * size;
  t->mask_row = (unsigned)a->mask_row * size;
  t->offset_group = (by_group ? 27 : 18) * size;
  t->mask_group = (by_group ? 27 : 9) * size;
  t->length0 = (one ? 27 : 18) * size;
  t->length1 = (one ? 0 : 9) * size;
  t->second = (t->length0 * t->gc + 15) / 16 * 16;
  t->record = t->second + (t->length1 * t->gc + 15) / 16 * 16;
  t->to_mask = by_group ? 18 * size : one ? 18 * size * t->gc : t->second;
  t->wide = aligned(a->offset, t->offset_row) && (one || aligned(a->mask, t->mask_row)) &&
            (t->chunks == 1 || (t->length0 * t->gc % 16 == 0 && t->length1 * t->gc % 16 == 0));
  while (t->copy_shift < 5 && (t->wide ? 16u : size) << t->copy_shift < t->length0 * t->gc)
    t->copy_shift++;
  t->rows_bytes = t->record * t->tw * t->th;
}

template <typename T, int L> int launch(ii_kctx *k, const ii_dcn_args *a) {
  const int64_t size = sizeof(T), Q = a->H * a->W, U = units_for<T, L>;
  tiles t = {};
  choose_tile(a, (int)U, ii_cuda_sm_count(k), &t);
  choose_rows(a, &t);
  t.x_image = Q * a->x_row * size;
  t.y_image = Q * a->C * size;
  t.offset_image = Q * t.offset_row;
  t.mask_image = Q * t.mask_row;
  t.pitch = (unsigned)(a->x_row * size / 16);
  t.line = (unsigned)(a->W * a->x_row * size / 16);
  t.y_pitch = (unsigned)(a->C * size / 16);
  t.H = (int)a->H;
  t.W = (int)a->W;
  t.G = (int)a->G;
  t.scale = (float)a->offset_scale;
  t.softmax = a->softmax;
  const int64_t wanted = ii_ceil_div((int64_t)t.tw * t.th * t.gc, U);
  const int64_t warps = wanted < MOST_WARPS ? wanted : (int64_t)MOST_WARPS;
  const unsigned shared =
      t.rows_bytes + CORNERS + (unsigned)(warps * (int64_t)sizeof(warp_taps<U>));
  const int64_t most = 65535 / t.chunks; /* images of one launch: a grid's third size */
  for (int64_t n = 0; n < a->N; n += most) {
    t.x = (const unsigned char *)a->x + n * t.x_image;
    t.y = (unsigned char *)a->y + n * t.y_image;
    t.offset = (const unsigned char *)a->offset + n * t.offset_image;
    t.mask = (const unsigned char *)a->mask + n * t.mask_image;
    const int64_t images = a->N - n < most ? a->N - n : most;
    const dim3 grid((unsigned)ii_ceil_div(a->W, t.tw), (unsigned)ii_ceil_div(a->H, t.th),
                    (unsigned)(images * t.chunks));
    II_LAUNCH(k, (dcn_fwd_tiles<T, L>), grid, (unsigned)(32 * warps), shared, t);
  }
  return 0;
}

template <typename T> int run(ii_kctx *k, const ii_dcn_args *a) {
  constexpr int V = ii_wide<T>::n;
  const int64_t D = a->C / a->G;
  if (D == 16) return launch<T, 16 / V>(k, a);
  if (D == 32) return launch<T, 32 / V>(k, a);
  return launch<T, 64 / V>(k, a);
}

} // namespace

extern "C" bool ii_cuda_dcn_fwd_is_tiled(const ii_dcn_args *a) {
  const int64_t size = (int64_t)ii_dtype_size(a->x_dtype), D = a->C / a->G, Q = a->H * a->W;
  const int64_t row = a->x_row > a->mask_row ? a->x_row : a->mask_row;
  const int64_t longest = row > a->offset_row ? row : a->offset_row;
  const bool window = a->kh == 3 && a->kw == 3 && a->stride_h == 1 && a->stride_w == 1 &&
                      a->pad_h == 1 && a->pad_w == 1 && a->dil_h == 1 && a->dil_w == 1 &&
                      !a->remove_center;
  /* sides: a grid's second size, and those of dcn_units.h; groups: quotient(), of a grid's third
   * size by chunks of 8; 32-bit offsets in an image */
  const bool sizes = a->W >= 2 && a->H >= 2 && a->W <= 1 << 22 && a->H <= 65535 &&
                     a->G <= 8 * 32768 && Q <= INT32_MAX && longest <= UINT32_MAX / size / Q;
  return window && sizes && (D == 16 || D == 32 || D == 64) && a->x_dtype != II_F64 &&
         a->om_dtype == a->x_dtype && layout_of(a) != OTHER && aligned(a->x, a->x_row * size) &&
         aligned(a->y, 0);
}

extern "C" int ii_cuda_dcn_fwd_tiles(ii_kctx *k, const ii_dcn_args *a) {
  if (a->x_dtype == II_F32) return run<float>(k, a);
  if (a->x_dtype == II_F16) return run<ii_f16>(k, a);
  return run<ii_bf16>(k, a);
}
