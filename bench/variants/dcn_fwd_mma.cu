/* Deformable convolution, forward, as a product of matrices, for 16-bit types and the published
 * models' windows: 3 x 3, stride, padding and dilation 1. For a tile of outputs and a group
 *   y[u,d] = sum over the pixels p around the tile of A[u,p] x[p,d]
 * with A[u,p] = the sum of m_k a_c over the taps k of output u that have corner c in pixel p.
 *
 * A is built in registers. In either direction, a tap's corners are sought among five pixels around
 * the output only, of which tap 0 may reach the first four, tap 2 the last four: while an offset
 * moves it by at most one pixel outwards and two inwards. Their weights are
 *   sat(1 - |x - h|)       x: the sample, h: a pixel; sat: limited to [0,1]
 * zeros included: 16 to 25 multiply-adds per tap, no address, nothing read back. Taps further away
 * are *far*: they get the weight 0 here and are added corner by corner afterwards, or, where most
 * of a warp's are far, all of its taps are gathered like that.
 *
 * Mapping: a block has 4 x 8 pixels of an image and some groups of each, a warp one group, a lane
 * one output, whose row of A it owns.
 *   - offsets and modulations of the block come to shared memory 16 bytes at a time where they are
 *     aligned (the only barrier follows), the 8 x 12 pixels around, with zeros outside the image,
 *     32 channels at a time, to the warp's part of it;
 *   - a row of A is 8 x 8 pixels, those around the upper or lower 4 x 4 outputs. Each number is
 *     split into two of type T, their sum being good to 2^-22 (fp16) or 2^-17 (bf16) of it. fp16
 *     numbers are scaled, by output, so that the largest modulation is between 2^11 and 2^12: the
 *     sum of nine does not overflow, the second parts do not vanish;
 *   - 16 outputs x 16 pixels x 16 channels at a time go to the tensor cores, sums in fp32, which
 *     return through shared memory as vectors of 16 bytes.
 * A zero of A times an infinity is NaN where the formula has no term, and a modulation may be no
 * number: a vector whose sums contain a NaN is computed again, term by term.
 *
 * Bytes: x 3 times (8 x 12 pixels for 4 x 8), of which all but the first come from the caches; y,
 * offsets and modulations once. Counts: docs/kernels.md.
 * Limits: dcn_variant_has_fwd_mma. */
#include <math.h>
#include "bench/variants/variants.h"
#include "kernels/cuda/dcn_fwd.h"
#include "kernels/cuda/dcn_mma.h"

namespace {

namespace wmma = nvcuda::wmma;

enum { TILE_W = 4, TILE_H = 8, UNITS = 32, EDGE = 2, TAPS = 9 };
enum { AROUND_W = 8, AROUND_H = 12, AROUND = AROUND_W * AROUND_H, REACH = 5 };
enum { MOST_GROUPS = 4 }; /* of a block */
/* Far taps of a warp, of 288, beyond which the product does not pay. */
enum { MOST_FAR = 128 };
/* A: 16-bit numbers. A row has 64 first parts, 64 second parts, and 8 so that the rows of eight
 * lanes lie on different banks; the lower outputs' rows begin half of all banks later, because four
 * lanes of either half write together. */
enum { ROW = 64, A_PITCH = 2 * ROW + 8, A_HALF = 16 * A_PITCH + 32 };
enum { A_BYTES = 2 * (A_HALF + 16 * A_PITCH) };

template <int N> constexpr int x_bytes = AROUND *ii_dcn_pitch<N> * 2;
template <int N> constexpr int sum_pitch = N + 8; /* floats: fragments, and rows of 16 bytes */

/* Channels of a group of D at a time. */
template <int D> constexpr int most_channels = D < 32 ? D : 32;

/* What an output leaves for the lanes that write it. */
typedef struct {
  float back;       /* 1 / the factor of its row of A */
  float most, part; /* softmax: the largest logit, 1 / the sum */
} leftover;

/* A tap that is added by itself: weights of its corners, the first of which is `at` times 16 bytes
 * from the image's first pixel. */
typedef struct {
  float4 w;
  unsigned at;
} far_tap;

/* Bytes of shared memory of one warp: A, x (later the sums, then a far tap of each lane),
 * leftovers. */
template <int N>
constexpr int warp_bytes = (A_BYTES + x_bytes<N> + UNITS * (int)sizeof(leftover) + 31) / 32 * 32;
template <int N> constexpr int sums_bytes = UNITS *sum_pitch<N> * 4;
static_assert(sums_bytes<16> + UNITS * 24 <= x_bytes<16>, "far taps lie behind the sums");
static_assert(sums_bytes<32> + UNITS * 24 <= x_bytes<32>, "far taps lie behind the sums");

/* One of the two places that offsets and modulations come from; bytes. */
typedef struct {
  const unsigned char *from; /* of the launch's first image */
  int64_t image;             /* from image to image */
  unsigned row;              /* from pixel to pixel */
  unsigned group;            /* per group, 0: nothing is there */
  unsigned shift;            /* 2^shift threads copy a pixel's */
} span;

/* Within an image, x and y are addressed by 32 bits, in units of 16 bytes. */
typedef struct {
  const unsigned char *x;
  unsigned char *y;
  int64_t x_image, y_image; /* bytes from image to image */
  unsigned pitch, line;     /* 16 bytes: from pixel to pixel, row to row of x */
  unsigned y_pitch;         /* the same of y's pixels */
  span rows[2];
  int H, W, G, gc; /* gc: groups per block */
  unsigned chunks, by_chunks;
  float scale;
  bool softmax, wide;      /* wide: rows can be read 16 bytes at a time */
  unsigned record, second; /* shared memory of a pixel's rows; the second span's place in it */
  unsigned offset_group, mask_group, to_mask; /* to_mask: from a pixel's offsets; SECOND: there */
} call;
enum { SECOND = 0xffffffffu };

/* z / chunks, by = reciprocal(chunks), while their product is below 2^31. */
unsigned reciprocal(int64_t d) {
  return (unsigned)(((int64_t)1 << 31) / d + (((int64_t)1 << 31) % d != 0));
}
__device__ __forceinline__ unsigned quotient(unsigned n, unsigned by) {
  return __umulhi(2 * n, by);
}

/* Where a block is. */
typedef struct {
  int64_t image;
  int x0, y0, g0, groups, width, height;
} place;

/* ---- Rows -------------------------------------------------------------------------------------*/

/* Where a span begins in the tile's first pixel, and how far from 16 bytes that is. */
__device__ __forceinline__ const unsigned char *begin_of(const call &t, const place &b,
                                                         const span &s, unsigned *skew) {
  const unsigned char *from = s.from + b.image * s.image +
                              (unsigned)(b.y0 * t.W + b.x0) * (int64_t)s.row +
                              (unsigned)b.g0 * s.group;
  *skew = t.wide ? (unsigned)(reinterpret_cast<uintptr_t>(from) & 15u) : 0u;
  return from - *skew;
}

/* Copies `bytes` of each pixel of the tile: some neighbouring threads per pixel, a word at a time,
 * four loads in flight. Pixels outside the image get those of one inside. */
template <typename word>
__device__ __forceinline__ void copy_span(const call &t, const place &b, const span &s,
                                          const unsigned char *begin, unsigned bytes,
                                          unsigned char *to) {
  enum { AHEAD = 4 };
  const word *from = reinterpret_cast<const word *>(begin);
  const unsigned step = blockDim.x >> s.shift, first = threadIdx.x & ((1u << s.shift) - 1);
  const unsigned pitch = s.row / sizeof(word), line = t.W * pitch;
  for (unsigned at = first; at * sizeof(word) < bytes; at += 1u << s.shift)
    for (unsigned p = threadIdx.x >> s.shift; p < UNITS; p += AHEAD * step) {
      word v[AHEAD];
#pragma unroll
      for (unsigned i = 0; i < AHEAD; i++) {
        const unsigned pixel = p + i * step;
        const unsigned ty = min(pixel / TILE_W, b.height - 1u),
                       tx = min(pixel % TILE_W, b.width - 1u);
        v[i] = __ldcs(from + (ty * line + tx * pitch + at));
      }
#pragma unroll
      for (unsigned i = 0; i < AHEAD; i++) {
        const unsigned pixel = p + i * step;
        if (pixel >= UNITS) continue;
        unsigned char *slot = to + pixel * t.record + at * sizeof(word);
        if constexpr (sizeof(word) == 16) { /* records are a multiple of 8 bytes, no more */
          reinterpret_cast<uint2 *>(slot)[0] = make_uint2(v[i].x, v[i].y);
          reinterpret_cast<uint2 *>(slot)[1] = make_uint2(v[i].z, v[i].w);
        } else {
          *reinterpret_cast<word *>(slot) = v[i];
        }
      }
    }
}

/* The offsets and modulations of the block; to skew[] where they begin in a record's spans. */
__device__ __forceinline__ void copy_rows(const call &t, const place &b, unsigned char *rows,
                                          unsigned (&skew)[2]) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    skew[i] = 0;
    if (t.rows[i].group == 0) continue;
    const unsigned char *from = begin_of(t, b, t.rows[i], &skew[i]);
    const unsigned bytes = skew[i] + t.rows[i].group * (unsigned)b.groups;
    if (t.wide)
      copy_span<uint4>(t, b, t.rows[i], from, bytes, rows + i * t.second);
    else
      copy_span<unsigned short>(t, b, t.rows[i], from, bytes, rows + i * t.second);
  }
}

/* ---- A row of A -------------------------------------------------------------------------------*/

/* Two numbers of type T in a word, and back; the first one in the lower half. */
template <typename T> __device__ __forceinline__ unsigned pack(float a, float b) {
  const ii_vec<T, 2> pair = {{ii_down<T>(a), ii_down<T>(b)}};
  unsigned word;
  memcpy(&word, &pair, sizeof word);
  return word;
}
template <typename T> __device__ __forceinline__ void unpack(unsigned word, float *a, float *b) {
  ii_vec<T, 2> pair;
  memcpy((void *)&pair, &word, sizeof word);
  *a = ii_up(pair.v[0]);
  *b = ii_up(pair.v[1]);
}

/* n numbers of type T from p on, which may lie between two words; nothing beyond them is read. */
template <typename T, int n>
__device__ __forceinline__ void read_numbers(const unsigned char *p, float (&v)[n]) {
  const unsigned half = (unsigned)(reinterpret_cast<uintptr_t>(p) & 2u);
  const unsigned *word = reinterpret_cast<const unsigned *>(p - half);
  const unsigned short *number = reinterpret_cast<const unsigned short *>(p);
  unsigned w[n / 2 + 1];
#pragma unroll
  for (int i = 0; i < n / 2; i++) w[i] = word[i];
  w[n / 2] = number[n / 2 * 2 - 1];
#pragma unroll
  for (int i = 0; i < n / 2; i++)
    unpack<T>(__funnelshift_r(w[i], w[i + 1], half * 8), &v[2 * i], &v[2 * i + 1]);
  if constexpr (n % 2) v[n - 1] = ii_up(reinterpret_cast<const T *>(p)[n - 1]);
}

/* Softmax of m; the order of the sum is that of the other kernels. */
__device__ __forceinline__ void soften(float (&m)[TAPS], float *most, float *part) {
  float e[8] = {};
  *most = -INFINITY;
#pragma unroll
  for (int k = 0; k < TAPS; k++) *most = m[k] > *most ? m[k] : *most;
#pragma unroll
  for (int k = 0; k < TAPS; k++) {
    m[k] = ii_dcn_exp(m[k] - *most);
    e[k % 8] += m[k];
  }
  *part = 1.0f / (((e[0] + e[4]) + (e[2] + e[6])) + ((e[1] + e[5]) + (e[3] + e[7])));
#pragma unroll
  for (int k = 0; k < TAPS; k++) m[k] *= *part;
}

/* The power of two that modulations are multiplied with, and its reciprocal. */
template <typename T>
__device__ __forceinline__ float factor_of(const float (&m)[TAPS], float *back) {
  if constexpr (std::is_same<T, ii_bf16>::value) {
    *back = 1.0f;
    return 1.0f;
  }
  float most = 0.0f;
#pragma unroll
  for (int k = 0; k < TAPS; k++) most = fmaxf(most, fabsf(m[k]));
  const unsigned top = max(27u, __float_as_uint(most) >> 23); /* 2^-100: no more than that */
  *back = __uint_as_float((top - 11u) << 23);
  return __uint_as_float((265u - top) << 23);
}

/* Five neighbouring numbers to a row of 8 pixels, of either plane, from pixel tx on. */
template <typename T>
__device__ __forceinline__ void store_five(unsigned char *to, const float (&v)[REACH], int tx) {
  const float six[6] = {v[0], v[1], v[2], v[3], v[4], 0.0f};
  const unsigned odd = tx & 1 ? 0x5432u : 0x7654u;
  unsigned first[3], second[3];
#pragma unroll
  for (int i = 0; i < 3; i++) {
    float a, b;
    first[i] = pack<T>(six[2 * i], six[2 * i + 1]);
    unpack<T>(first[i], &a, &b);
    second[i] = pack<T>(six[2 * i] - a, six[2 * i + 1] - b);
  }
#pragma unroll
  for (int plane = 0; plane < 2; plane++) {
    const unsigned *w = plane ? second : first;
    const unsigned o0 = __byte_perm(0, w[0], odd), o1 = __byte_perm(w[0], w[1], odd),
                   o2 = __byte_perm(w[1], w[2], odd);
    const bool right = tx & 2;
    *reinterpret_cast<uint4 *>(to + plane * 2 * ROW) =
        make_uint4(right ? 0 : o0, right ? o0 : o1, right ? o1 : o2, right ? o2 : 0);
  }
}

/* Of the five pixels around an output, in one direction, those that tap 0, 1 or 2 may reach. */
__host__ __device__ constexpr int first_of(int tap) {
  return tap == 2 ? 1 : 0;
}
__host__ __device__ constexpr int last_of(int tap) {
  return tap == 0 ? 3 : 4;
}
/* Their weights for a sample at x, 0 being the output's pixel. False when x is not between them:
 * the tap is far. */
__device__ __forceinline__ bool hats(int tap, float x, float (&w)[REACH]) {
  const int first = first_of(tap) - EDGE, last = last_of(tap) - EDGE;
#pragma unroll
  for (int h = first; h <= last; h++) {
    const float v = h == first  ? (float)(first + 1) - x
                    : h == last ? x - (float)(last - 1)
                                : 1.0f - fabsf(x - (float)h);
    w[h + EDGE] = __saturatef(v);
  }
  return x >= (float)first && x <= (float)last;
}

/* The row of the lane's output (ty, tx) of its 4 x 4. row: in shared memory; offset, mask: the
 * output's. To *far: its far taps, as bits. */
template <typename T>
__device__ __forceinline__ leftover build_row(const call &t, int ty, int tx,
                                              const unsigned char *offset,
                                              const unsigned char *mask, unsigned char *row,
                                              unsigned *far) {
  float d[2 * TAPS], m[TAPS];
  leftover left = {1.0f, 0.0f, 1.0f};
  *far = 0;
  read_numbers<T>(mask, m);
  if (t.softmax) soften(m, &left.most, &left.part);
  const float factor = factor_of<T>(m, &left.back);
  read_numbers<T>(offset, d);
  unsigned char *to = row + ty * 16;
#pragma unroll
  for (int i = 0; i < 3; i++) /* rows that no tap of the window reaches */
#pragma unroll
    for (int plane = 0; plane < 2; plane++)
      *reinterpret_cast<uint4 *>(row + ((ty + REACH + i) & 7) * 16 + plane * 2 * ROW) =
          make_uint4(0, 0, 0, 0);
  float a[REACH][REACH] = {};
#pragma unroll
  for (int j = 0; j < 3; j++) {
#pragma unroll
    for (int i = 0; i < 3; i++) {
      const int k = i * 3 + j;
      float across[REACH], down[REACH];
      const bool near_x = hats(i, (d[2 * k] + (float)(i - 1)) * t.scale, across);
      const bool near_y = hats(j, (d[2 * k + 1] + (float)(j - 1)) * t.scale, down);
      const float w = near_x && near_y ? m[k] * factor : 0.0f;
      if (!(near_x && near_y)) *far |= 1u << k;
#pragma unroll
      for (int v = first_of(j); v <= last_of(j); v++)
#pragma unroll
        for (int h = first_of(i); h <= last_of(i); h++) a[v][h] += across[h] * (down[v] * w);
    }
    if (j == 1) store_five<T>(to, a[0], tx);
  }
#pragma unroll
  for (int v = 1; v < REACH; v++) store_five<T>(to + v * 16, a[v], tx);
  return left;
}

/* ---- Product ----------------------------------------------------------------------------------*/

/* N channels of the pixels around, zeros outside the image. Eight neighbouring lanes have eight
 * pixels: of other banks. */
template <int N> struct around {
  static constexpr int pieces = N / 8, at_once = 4 / pieces, loads = AROUND_H / at_once;
  uint4 v[loads];
};

/* x: the group's channels in pixel 0 of the image. */
template <int N>
__device__ __forceinline__ void load_around(const call &t, const place &b, const uint4 *x,
                                            around<N> *a) {
  const int lane = threadIdx.x % 32, piece = lane / 8 % a->pieces, row = lane / 8 / a->pieces;
  const int h = b.x0 - EDGE + lane % 8, v = b.y0 - EDGE + row;
  const bool here = (unsigned)h < (unsigned)t.W;
  unsigned at = (unsigned)v * t.line + (unsigned)h * t.pitch + (unsigned)piece;
#pragma unroll
  for (int i = 0; i < a->loads; i++, at += a->at_once * t.line) {
    a->v[i] = make_uint4(0, 0, 0, 0);
    if (here && (unsigned)(v + i * a->at_once) < (unsigned)t.H) a->v[i] = __ldg(x + at);
  }
}
template <int N>
__device__ __forceinline__ void store_around(const around<N> &a, unsigned char *to) {
  const int lane = threadIdx.x % 32, piece = lane / 8 % a.pieces, row = lane / 8 / a.pieces;
  to += (row * AROUND_W + lane % 8) * ii_dcn_pitch<N> * 2 + piece * 16;
#pragma unroll
  for (int i = 0; i < a.loads; i++)
    *reinterpret_cast<uint4 *>(to + i * a.at_once * AROUND_W * ii_dcn_pitch<N> * 2) = a.v[i];
}

/* The sums of the 32 outputs, [UNITS][sum_pitch] to the place of x. The upper outputs see the first
 * 8 of 12 rows of pixels, the lower ones the last 8. */
template <typename T, int N>
__device__ __forceinline__ void multiply(const unsigned char *a, unsigned char *x) {
  constexpr int steps = AROUND / 16, skip = steps - ROW / 16, wide = N / 16;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum[2][wide];
#pragma unroll
  for (int i = 0; i < 2 * wide; i++) wmma::fill_fragment(sum[i / wide][i % wide], 0.0f);
#pragma unroll
  for (int s = 0; s < steps; s++) {
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> pixels[wide];
#pragma unroll
    for (int n = 0; n < wide; n++)
      wmma::load_matrix_sync(pixels[n],
                             reinterpret_cast<const T *>(x) + s * 16 * ii_dcn_pitch<N> + n * 16,
                             ii_dcn_pitch<N>);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = s - half * skip;
      if (at < 0 || at >= ROW / 16) continue;
#pragma unroll
      for (int plane = 0; plane < 2; plane++) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> weights;
        wmma::load_matrix_sync(
            weights, reinterpret_cast<const T *>(a) + half * A_HALF + plane * ROW + at * 16,
            A_PITCH);
#pragma unroll
        for (int n = 0; n < wide; n++)
          wmma::mma_sync(sum[half][n], weights, pixels[n], sum[half][n]);
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2 * wide; i++)
    wmma::store_matrix_sync(reinterpret_cast<float *>(x) + i / wide * 16 * sum_pitch<N> +
                                i % wide * 16,
                            sum[i / wide][i % wide], sum_pitch<N>, wmma::mem_row_major);
}

/* ---- Far taps ---------------------------------------------------------------------------------*/

/* Weights of columns base and base + 1 for a sample at x, as in dcn_fwd_tiles.cu; last = W - 2. */
__device__ __forceinline__ void hat(float x, float last, float *w0, float *w1, int *base) {
  const float low = floorf(fmaxf(fminf(x, last), 0.0f)), t = x - low;
  *w0 = fminf(__saturatef(1.0f - t), __saturatef(1.0f + t));
  *w1 = fminf(__saturatef(t), __saturatef(2.0f - t));
  *base = (int)low;
}

/* Tap k of output (y, x), whose sums are scaled by 1 / left.back. */
template <typename T>
__device__ __forceinline__ far_tap far_tap_of(const call &t, int y, int x, int k,
                                              const unsigned char *offset,
                                              const unsigned char *mask, const leftover &left) {
  const int i = k * 11 >> 5, j = k - 3 * i; /* k / 3, k % 3 */
  const T *d = reinterpret_cast<const T *>(offset) + 2 * k;
  float m = ii_up(reinterpret_cast<const T *>(mask)[k]), w[4];
  if (t.softmax) m = ii_dcn_exp(m - left.most) * left.part;
  m *= __uint_as_float(0x7f000000u - __float_as_uint(left.back)); /* 1 / back, a power of two */
  int h, v;
  hat(((float)i + ii_up(d[0])) * t.scale + ((float)x - t.scale), (float)(t.W - 2), &w[0], &w[1],
      &h);
  hat(((float)j + ii_up(d[1])) * t.scale + ((float)y - t.scale), (float)(t.H - 2), &w[2], &w[3],
      &v);
  w[2] *= m;
  w[3] *= m;
  far_tap f;
  f.w = make_float4(w[0] * w[2], w[1] * w[2], w[0] * w[3], w[1] * w[3]);
  f.at = (unsigned)v * t.line + (unsigned)h * t.pitch;
  return f;
}

/* Adds a tap to 8 sums; x: their channels in pixel 0 of the image. */
template <typename T>
__device__ __forceinline__ void add_tap(const call &t, const float4 &w, unsigned at, const uint4 *x,
                                        float (&v)[8]) {
  const float weight[4] = {w.x, w.y, w.z, w.w};
  uint4 word[4];
#pragma unroll
  for (int c = 0; c < 4; c++) word[c] = __ldg(x + (at + c / 2 * t.line + c % 2 * t.pitch));
#pragma unroll
  for (int c = 0; c < 4; c++) {
    float wide[8];
    unpack<T>(word[c].x, &wide[0], &wide[1]);
    unpack<T>(word[c].y, &wide[2], &wide[3]);
    unpack<T>(word[c].z, &wide[4], &wide[5]);
    unpack<T>(word[c].w, &wide[6], &wide[7]);
#pragma unroll
    for (int n = 0; n < 8; n++) v[n] += weight[c] * wide[n];
  }
}

/* Adds the far taps of the lanes' outputs (far: as bits; row, offset, mask: the lane's output) to
 * the sums: one of each lane at a time, so that no two are of the same output, and N/8 lanes for
 * each. x: the N channels in pixel 0 of the image. */
template <typename T, int N>
__device__ __forceinline__ void
add_all_far(const call &t, const place &b, unsigned far, int row, const unsigned char *offset,
            const unsigned char *mask, const leftover &left, const uint4 *x, unsigned char *sums) {
  constexpr int pieces = N / 8;
  const int lane = threadIdx.x % 32, piece = lane % pieces;
  float4 *weights = reinterpret_cast<float4 *>(sums + sums_bytes<N>);
  uint2 *places = reinterpret_cast<uint2 *>(weights + UNITS);
  for (;;) {
    const unsigned all = __ballot_sync(II_FULL_MASK, far != 0);
    if (!all) break;
    if (far) {
      const far_tap f = far_tap_of<T>(t, b.y0 + row / TILE_W, b.x0 + row % TILE_W,
                                      __ffs((int)far) - 1, offset, mask, left);
      const int to = __popc(all & ((1u << lane) - 1));
      weights[to] = f.w;
      places[to] = make_uint2(f.at, (unsigned)row);
      far &= far - 1;
    }
    __syncwarp();
    const int count = __popc(all);
#pragma unroll 1
    for (int e = lane / pieces; e < count; e += 32 / pieces) {
      const uint2 p = places[e];
      float4 *sum = reinterpret_cast<float4 *>(reinterpret_cast<float *>(sums) +
                                               p.y * sum_pitch<N> + piece * 8);
      const float4 a = sum[0], c = sum[1];
      float v[8] = {a.x, a.y, a.z, a.w, c.x, c.y, c.z, c.w};
      add_tap<T>(t, weights[e], p.x, x + piece, v);
      sum[0] = make_float4(v[0], v[1], v[2], v[3]);
      sum[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
    __syncwarp();
  }
}

/* ---- Results ----------------------------------------------------------------------------------*/

/* An output's numbers; from: its 8 channels in pixel 0 of the image. */
typedef struct {
  int x, y;
  const unsigned char *offset, *mask;
  const uint4 *from;
  float most, part;
} output;

/* The sums by the formula: tap by tap, corner by corner, only those inside. */
template <typename T>
__device__ __forceinline__ void term_by_term(const call &t, const output &u, float (&sum)[8]) {
#pragma unroll
  for (int n = 0; n < 8; n++) sum[n] = 0.0f;
#pragma unroll 1
  for (int k = 0; k < TAPS; k++) {
    const int i = k * 11 >> 5, j = k - 3 * i; /* k / 3, k % 3 */
    const T *offset = reinterpret_cast<const T *>(u.offset) + 2 * k;
    float m = ii_up(reinterpret_cast<const T *>(u.mask)[k]);
    if (t.softmax) m = ii_dcn_exp(m - u.most) * u.part;
    const float x = ((float)i + ii_up(offset[0])) * t.scale + ((float)u.x - t.scale);
    const float y = ((float)j + ii_up(offset[1])) * t.scale + ((float)u.y - t.scale);
    if (!(y > -1.0f && x > -1.0f && y < (float)t.H && x < (float)t.W)) continue;
    const float left = floorf(x), up = floorf(y), lx = x - left, ly = y - up;
#pragma unroll 1
    for (int c = 0; c < 4; c++) {
      const int h = (int)left + (c & 1), v = (int)up + (c >> 1);
      if (h < 0 || v < 0 || h >= t.W || v >= t.H) continue;
      const float w = (c & 1 ? lx : 1.0f - lx) * ((c >> 1 ? ly : 1.0f - ly) * m);
      const uint4 word = __ldg(u.from + ((unsigned)v * t.line + (unsigned)h * t.pitch));
      float wide[8];
      unpack<T>(word.x, &wide[0], &wide[1]);
      unpack<T>(word.y, &wide[2], &wide[3]);
      unpack<T>(word.z, &wide[4], &wide[5]);
      unpack<T>(word.w, &wide[6], &wide[7]);
#pragma unroll
      for (int n = 0; n < 8; n++) sum[n] += w * wide[n];
    }
  }
}

/* True for a sum that must be computed term by term. */
__device__ __forceinline__ bool is_no_number(const float (&v)[8]) {
  float any = v[0];
#pragma unroll
  for (int i = 1; i < 8; i++) any += v[i];
  return any != any;
}

template <typename T> __device__ __forceinline__ void store(uint4 *y, const float (&v)[8]) {
  __stwb(y, make_uint4(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]),
                       pack<T>(v[6], v[7])));
}

/* N channels of the 32 outputs to y. Eight neighbouring lanes have eight rows of the sums, two of
 * which meet on the same banks: half of the lanes read the later four numbers first. offset, mask:
 * of the group in the tile's first pixel, in shared memory; x, y: its N channels in pixel 0. */
template <typename T, int N>
__device__ __forceinline__ void put(const call &t, const place &b, const unsigned char *offset,
                                    const unsigned char *mask, const leftover *left,
                                    const float *sums, const uint4 *x, uint4 *y) {
  constexpr int pieces = N / 8, at_once = 32 / pieces;
  const int lane = threadIdx.x % 32, piece = lane / at_once, tx = lane % TILE_W;
  int row = lane % at_once;
  const bool later = row & 4;
  const float4 *from = reinterpret_cast<const float4 *>(sums + row * sum_pitch<N>) + 2 * piece;
  unsigned to = (unsigned)((b.y0 + row / TILE_W) * t.W + b.x0 + tx) * t.y_pitch + piece;
  const int rows = tx < b.width ? b.height * TILE_W : 0;
#pragma unroll 1
  for (; row < rows; row += at_once) {
    const leftover l = left[row];
    const float4 a = from[later], c = from[!later];
    float v[8] = {later ? c.x : a.x, later ? c.y : a.y, later ? c.z : a.z, later ? c.w : a.w,
                  later ? a.x : c.x, later ? a.y : c.y, later ? a.z : c.z, later ? a.w : c.w};
    if constexpr (!std::is_same<T, ii_bf16>::value)
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] *= l.back;
    if (is_no_number(v)) {
      const output u = {b.x0 + tx,
                        b.y0 + row / TILE_W,
                        offset + row * t.record,
                        mask + row * t.record,
                        x + piece,
                        l.most,
                        l.part};
      term_by_term<T>(t, u, v);
    }
    store<T>(y + to, v);
    from += at_once * sum_pitch<N> / 4;
    to += at_once / TILE_W * (unsigned)t.W * t.y_pitch;
  }
}

/* The 32 outputs without a product, for warps most of whose taps are far: all taps to the place of
 * A, then D/8 lanes per output. row, my_offset, my_mask, left: of the lane's output; offset, mask:
 * of the tile's first; x, y: the group's channels in pixel 0. */
template <typename T, int D>
__device__ __forceinline__ void
gather_all(const call &t, const place &b, int row, const unsigned char *my_offset,
           const unsigned char *my_mask, leftover left, const unsigned char *offset,
           const unsigned char *mask, const leftover *lefts, unsigned char *a, const uint4 *x,
           uint4 *y) {
  constexpr int pieces = D / 8, at_once = 32 / pieces;
  static_assert(TAPS * UNITS * 20 <= A_BYTES, "all taps fit");
  float4 *weights = reinterpret_cast<float4 *>(a);
  unsigned *places = reinterpret_cast<unsigned *>(weights + TAPS * UNITS);
  left.back = 1.0f;
#pragma unroll 1
  for (int k = 0; k < TAPS; k++) {
    const far_tap f =
        far_tap_of<T>(t, b.y0 + row / TILE_W, b.x0 + row % TILE_W, k, my_offset, my_mask, left);
    weights[k * UNITS + row] = f.w;
    places[k * UNITS + row] = f.at;
  }
  __syncwarp();
  const int piece = threadIdx.x % 32 % pieces;
#pragma unroll 1
  for (int r = (int)threadIdx.x % 32 / pieces; r < b.height * TILE_W; r += at_once) {
    const int ty = b.y0 + r / TILE_W, tx = b.x0 + r % TILE_W;
    if (r % TILE_W >= b.width) continue;
    float v[8] = {};
#pragma unroll 3
    for (int k = 0; k < TAPS; k++)
      add_tap<T>(t, weights[k * UNITS + r], places[k * UNITS + r], x + piece, v);
    if (is_no_number(v)) {
      const output u = {
          tx,           ty, offset + r * t.record, mask + r * t.record, x + piece, lefts[r].most,
          lefts[r].part};
      term_by_term<T>(t, u, v);
    }
    store<T>(y + ((unsigned)(ty * t.W + tx) * t.y_pitch + piece), v);
  }
}

/* ---- The kernel -------------------------------------------------------------------------------*/

template <typename T, int D>
__global__ void __launch_bounds__(32 * MOST_GROUPS, 3) dcn_fwd_mma(const call t) {
  constexpr int N = most_channels<D>;
  II_SHARED(unsigned char, memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned image = quotient(blockIdx.z, t.by_chunks);
  place b;
  b.image = image;
  b.x0 = (int)blockIdx.x * TILE_W;
  b.y0 = (int)blockIdx.y * TILE_H;
  b.g0 = (int)(blockIdx.z - image * t.chunks) * t.gc;
  b.groups = min(t.gc, t.G - b.g0);
  b.width = min((int)TILE_W, t.W - b.x0);
  b.height = min((int)TILE_H, t.H - b.y0);

  unsigned char *a = memory + warp * warp_bytes<N>, *around_bytes = a + A_BYTES;
  leftover *left = reinterpret_cast<leftover *>(around_bytes + x_bytes<N>);
  unsigned char *rows = memory + t.gc * warp_bytes<N>;
  const int channel = (b.g0 + warp) * (D / 8);
  const uint4 *x = reinterpret_cast<const uint4 *>(t.x + b.image * t.x_image) + channel;
  around<N> pixels;
  if (warp < b.groups) load_around<N>(t, b, x, &pixels);
  unsigned skew[2];
  copy_rows(t, b, rows, skew);
  __syncthreads();
  if (warp >= b.groups) return;

  const unsigned char *offset = rows + skew[0] + warp * t.offset_group;
  const unsigned char *mask =
      rows + warp * t.mask_group + (t.to_mask == SECOND ? t.second + skew[1] : skew[0] + t.to_mask);
  /* a lane's output: (ty, tx) of the upper or lower half */
  const int ty = lane / 8, lower = lane / 4 % 2, tx = lane % 4, row = lower * 16 + ty * 4 + tx;
  const unsigned char *my_offset = offset + row * t.record, *my_mask = mask + row * t.record;
  unsigned far;
  const leftover mine = build_row<T>(t, ty, tx, my_offset, my_mask,
                                     a + 2 * (lower * A_HALF + (ty * 4 + tx) * A_PITCH), &far);
  left[row] = mine;
  if (row / TILE_W >= b.height || tx >= b.width) far = 0;
  uint4 *y = reinterpret_cast<uint4 *>(t.y + b.image * t.y_image) + channel;
  if (__reduce_add_sync(II_FULL_MASK, (unsigned)__popc(far)) > MOST_FAR) {
    __syncwarp();
    gather_all<T, D>(t, b, row, my_offset, my_mask, mine, offset, mask, left, a, x, y);
    return;
  }
#pragma unroll
  for (int d = 0; d < D; d += N) {
    if (d) {
      load_around<N>(t, b, x + d / 8, &pixels);
      __syncwarp();
    }
    store_around<N>(pixels, around_bytes);
    __syncwarp();
    multiply<T, N>(a, around_bytes);
    __syncwarp();
    add_all_far<T, N>(t, b, far, row, my_offset, my_mask, mine, x + d / 8, around_bytes);
    put<T, N>(t, b, offset, mask, left, reinterpret_cast<const float *>(around_bytes), x + d / 8,
              y + d / 8);
  }
}

/* ---- Launches ---------------------------------------------------------------------------------*/

bool aligned(const void *p, int64_t step) {
  return (uintptr_t)p % 16 == 0 && step % 16 == 0;
}

/* How offsets and modulations lie in memory and in a block's part of shared memory. */
void choose_rows(const ii_dcn_args *a, call *t) {
  const int64_t between = (const char *)a->mask - (const char *)a->offset;
  const bool by_group = a->offset_group == 27;
  /* one span per pixel: v4, and v3 where modulations follow their offsets */
  const bool one =
      by_group || (t->chunks == 1 && a->offset_row == a->mask_row && between == 36 * a->G);
  const int64_t Q = a->H * a->W;
  span *s = t->rows;
  s[0] = {(const unsigned char *)a->offset, Q * a->offset_row * 2, (unsigned)a->offset_row * 2,
          one ? 54u : 36u, 0};
  s[1] = {(const unsigned char *)a->mask, Q * a->mask_row * 2, (unsigned)a->mask_row * 2,
          one ? 0u : 18u, 0};
  t->offset_group = by_group ? 54 : 36;
  t->mask_group = by_group ? 54 : 18;
  t->to_mask = by_group ? 36 : one ? 36 * (unsigned)a->G : SECOND;
  t->wide = aligned(a->offset, s[0].row) && (one || aligned(a->mask, s[1].row));
  unsigned bytes[2];
  for (int i = 0; i < 2; i++) {
    const unsigned used = s[i].group ? s[i].group * (unsigned)t->gc + (t->wide ? 14 : 0) : 0;
    bytes[i] = (used + 15) / 16 * 16;
    while (s[i].shift < 5 && (t->wide ? 16u : 2u) << s[i].shift < s[i].group * (unsigned)t->gc)
      s[i].shift++;
  }
  t->second = bytes[0];
  t->record = bytes[0] + bytes[1] + 8; /* an odd number of 8 bytes: on other banks */
}

template <typename T, int D> int launch(ii_kctx *k, const ii_dcn_args *a) {
  call t = {};
  t.gc = (int)ii_ceil_div(a->G, ii_ceil_div(a->G, (int64_t)MOST_GROUPS));
  t.chunks = (unsigned)ii_ceil_div(a->G, (int64_t)t.gc);
  t.by_chunks = reciprocal(t.chunks);
  t.x_image = a->H * a->W * a->x_row * 2;
  t.y_image = a->H * a->W * a->C * 2;
  t.pitch = (unsigned)(a->x_row / 8);
  t.line = (unsigned)(a->W * a->x_row / 8);
  t.y_pitch = (unsigned)(a->C / 8);
  t.H = (int)a->H;
  t.W = (int)a->W;
  t.G = (int)a->G;
  t.scale = (float)a->offset_scale;
  t.softmax = a->softmax;
  choose_rows(a, &t);
  const int shared = t.gc * warp_bytes<most_channels<D>> + (int)t.record * UNITS;
  II_CUDA_TRY(k, cudaFuncSetAttribute(dcn_fwd_mma<T, D>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const int64_t most = 65535 / (int64_t)t.chunks; /* images of one launch: a grid's third size */
  const span first[2] = {t.rows[0], t.rows[1]};
  for (int64_t n = 0; n < a->N; n += most) {
    t.x = (const unsigned char *)a->x + n * t.x_image;
    t.y = (unsigned char *)a->y + n * t.y_image;
    for (int i = 0; i < 2; i++) t.rows[i].from = first[i].from + n * first[i].image;
    const int64_t images = a->N - n < most ? a->N - n : most;
    const dim3 grid((unsigned)ii_ceil_div(a->W, TILE_W), (unsigned)ii_ceil_div(a->H, TILE_H),
                    (unsigned)images * t.chunks);
    II_LAUNCH(k, (dcn_fwd_mma<T, D>), grid, 32 * (unsigned)t.gc, (size_t)shared, t);
  }
  return 0;
}

template <typename T> int run(ii_kctx *k, const ii_dcn_args *a) {
  const int64_t D = a->C / a->G;
  if (D == 16) return launch<T, 16>(k, a);
  if (D == 32) return launch<T, 32>(k, a);
  return launch<T, 64>(k, a);
}

} // namespace

bool dcn_variant_has_fwd_mma(const ii_dcn_args *a) {
  return ii_cuda_dcn_fwd_is_tiled(a) && a->x_dtype != II_F32;
}

int dcn_variant_fwd_mma(ii_kctx *k, const ii_dcn_args *a) {
  return a->x_dtype == II_F16 ? run<ii_f16>(k, a) : run<ii_bf16>(k, a);
}
