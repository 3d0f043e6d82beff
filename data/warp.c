/* The value of every pixel must be that of Pillow's double arithmetic, operation by operation: with
 * round magnitudes positions are decimal fractions, and then exact results often lie on an integer,
 * where the last bit decides what is cut off. But that is so for few pixels: a row is computed in
 * single precision first (data/warp_near.h), and in double where that leaves a doubt. A shear or
 * translation interpolates along one axis alone (the other fraction is exactly 0, and a cubic at 0
 * is its second point).
 *
 * All kernels read a copy with 4 bytes per pixel and the edge pixels repeated twice around it, so
 * that no tap needs a bound. */
#include "data/warp.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "data/warp_near.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* the same bits with and without fused multiply-add */
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* the vector functions are all inlined */
#endif

/* with constant arguments that choose what is left of the body */
#define INLINE static inline __attribute__((always_inline))

#define EDGE     2
#define MAX_SIDE 32767
#define LAST_BITS                                                                                  \
  1e-6 /* by more than that no position is rounded: so near to a pixel those of a row              \
        * may lie on both sides of it, and then have other neighbours */

typedef int32_t ints4 __attribute__((vector_size(16)));
typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef double doubles4 __attribute__((vector_size(32)));

/* What the arrays of a row have for each pixel. */
typedef struct {
  double at[2];
  int64_t place;
  float value[4], t[2];
  uint8_t bytes[4], doubt[4], base[4], spread[4];
} row_room;
enum { ROW_END = 16 }; /* pixels behind a row that may be looked at */

struct ii_warper {
  uint8_t *padded;        /* [h + 2 EDGE, stride] */
  double *at_x, *at_y;    /* [w]: the positions of a row */
  float *tx, *ty;         /* [w]: fractions */
  int64_t *place;         /* [w]: of the pixels left of and above the positions, in bytes */
  float *value;           /* [4 w] */
  uint8_t *bytes;         /* [4 w] */
  uint8_t *doubt;         /* [4 w], and room to look behind it */
  uint8_t *base, *spread; /* [4 w] */
  void *rows;             /* all of these */
  int64_t padded_capacity, row_capacity;
  int64_t stride; /* bytes of a padded row */
};

ii_status ii_warper_new(ii_warper **warper, ii_error *err) {
  *warper = calloc(1, sizeof **warper);
  if (!*warper) return ii_error_set(err, II_ERR_MEMORY, "no memory for a warp");
  return II_OK;
}

void ii_warper_free(ii_warper *warper) {
  if (!warper) return;
  free(warper->padded);
  free(warper->rows);
  free(warper);
}

static ii_status reserve(ii_warper *wp, int64_t w, int64_t h, ii_error *err) {
  wp->stride = (w + 2 * EDGE) * 4;
  int64_t bytes = wp->stride * (h + 2 * EDGE) + 4 * II_NEAR_ROOM;
  if (bytes > wp->padded_capacity) {
    free(wp->padded);
    wp->padded = malloc((size_t)bytes);
    wp->padded_capacity = wp->padded ? bytes : 0;
  }
  if (w > wp->row_capacity) {
    free(wp->rows);
    wp->rows = calloc((size_t)w + ROW_END, sizeof(row_room));
    wp->row_capacity = wp->rows ? w : 0;
  }
  if (!wp->padded || !wp->rows)
    return ii_error_set(err, II_ERR_MEMORY, "no memory to warp an image");
  int64_t n = wp->row_capacity + ROW_END;
  wp->at_x = wp->rows, wp->at_y = wp->at_x + n;
  wp->place = (int64_t *)(wp->at_y + n);
  wp->value = (float *)(wp->place + n);
  wp->tx = wp->value + 4 * n, wp->ty = wp->tx + n;
  wp->bytes = (uint8_t *)(wp->ty + n), wp->doubt = wp->bytes + 4 * n;
  wp->base = wp->doubt + 4 * n, wp->spread = wp->base + 4 * n;
  return II_OK;
}

/* Pixels of 3 bytes to pixels of 4. */
static void add_fourth(const uint8_t *in, int64_t n, uint8_t *out) {
  const bytes16 none = {0};
  int64_t x = 0;
  for (; x + 6 <= n; x += 4) { /* reads 16 bytes, of which 12 count */
    bytes16 v;
    memcpy(&v, in + 3 * x, sizeof v);
    v = __builtin_shufflevector(v, none, 0, 1, 2, 16, 3, 4, 5, 16, 6, 7, 8, 16, 9, 10, 11, 16);
    memcpy(out + 4 * x, &v, sizeof v);
  }
  for (; x < n; x++)
    out[4 * x] = in[3 * x], out[4 * x + 1] = in[3 * x + 1], out[4 * x + 2] = in[3 * x + 2],
            out[4 * x + 3] = 0;
}

/* The padded copy. */
static void pad(ii_warper *wp, const uint8_t *in, int64_t w, int64_t h) {
  for (int64_t y = 0; y < h; y++, in += w * 3) {
    uint8_t *row = wp->padded + (y + EDGE) * wp->stride, *p = row + EDGE * 4;
    add_fourth(in, w, p);
    for (int64_t e = 0; e < EDGE; e++) {
      memcpy(row + e * 4, p, 4);
      memcpy(p + (w + e) * 4, p + (w - 1) * 4, 4);
    }
  }
  uint8_t *first = wp->padded + EDGE * wp->stride, *last = first + (h - 1) * wp->stride;
  for (int64_t e = 1; e <= EDGE; e++) {
    memcpy(first - e * wp->stride, first, (size_t)wp->stride);
    memcpy(last + e * wp->stride, last, (size_t)wp->stride);
  }
}

/* Pixel (x, y) of the copy; x in -EDGE..w - 1 + EDGE, y alike. */
static inline const uint8_t *pixel(const ii_warper *wp, int64_t x, int64_t y) {
  return wp->padded + (y + EDGE) * wp->stride + (x + EDGE) * 4;
}

static inline uint8_t cut(int32_t v) {
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* Compilers turn the general forms of these three into long sequences. */
#ifdef __AVX2__
static inline ints4 load(const uint8_t *p) {
  int32_t b;
  memcpy(&b, p, sizeof b);
  return (ints4)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(b));
}

static inline doubles4 real(ints4 v) {
  return (doubles4)_mm256_cvtepi32_pd((__m128i)v);
}

static inline void store(doubles4 v, uint8_t *out) {
  __m128i i = _mm256_cvttpd_epi32((__m256d)v);
  i = _mm_packus_epi16(_mm_packs_epi32(i, i), i);
  uint32_t rgb = (uint32_t)_mm_cvtsi128_si32(i);
  out[0] = (uint8_t)rgb, out[1] = (uint8_t)(rgb >> 8), out[2] = (uint8_t)(rgb >> 16);
}
#else
static inline ints4 load(const uint8_t *p) {
  return (ints4){p[0], p[1], p[2], 0};
}

static inline doubles4 real(ints4 v) {
  return __builtin_convertvector(v, doubles4);
}

static inline void store(doubles4 v, uint8_t *out) {
  for (int c = 0; c < 3; c++) out[c] = cut((int32_t)v[c]);
}
#endif

/* Between b and c at fraction t; the differences of bytes are exact in integers. */
INLINE doubles4 cubic(ints4 a, ints4 b, ints4 c, ints4 d, double t) {
  doubles4 p2 = real(c - a), p3 = real(2 * (a - b) + c - d), p4 = real(b - a + d - c);
  return real(b) + t * (p2 + t * (p3 + t * p4));
}

INLINE doubles4 cubic_of_reals(doubles4 a, doubles4 b, doubles4 c, doubles4 d, double t) {
  doubles4 p2 = -a + c, p3 = 2 * (a - b) + c - d, p4 = -a + b - c + d;
  return b + t * (p2 + t * (p3 + t * p4));
}

/* One pixel: at the fraction (tx, ty) right of and below pixel p. across, down: whether there is
 * anything to interpolate along x, y. */
INLINE doubles4 sample(const uint8_t *p, int64_t stride, double tx, double ty, bool bicubic,
                       bool across, bool down) {
  if (bicubic) {
    if (!down) return cubic(load(p - 4), load(p), load(p + 4), load(p + 8), tx);
    const uint8_t *a = p - stride, *c = p + stride, *d = c + stride;
    if (!across) return cubic(load(a), load(p), load(c), load(d), ty);
    return cubic_of_reals(cubic(load(a - 4), load(a), load(a + 4), load(a + 8), tx),
                          cubic(load(p - 4), load(p), load(p + 4), load(p + 8), tx),
                          cubic(load(c - 4), load(c), load(c + 4), load(c + 8), tx),
                          cubic(load(d - 4), load(d), load(d + 4), load(d + 8), tx), ty);
  }
  const uint8_t *c = p + stride;
  doubles4 top = real(load(p)) + real(load(p + 4) - load(p)) * tx;
  doubles4 bottom = real(load(c)) + real(load(c + 4) - load(c)) * tx;
  return top + (bottom - top) * ty;
}

/* Along which axes there is anything to interpolate. */
typedef enum { ALONG_X, ALONG_Y, ALONG_BOTH } axes;

typedef struct {
  int64_t w, h;
  const double *m;
  ii_filter filter;
  axes kind;
  const uint8_t *fill;
  uint8_t *out;
} job;

/* Whether all pixels around are the same; then all differences of any formula are 0. */
static bool flat(const uint8_t *p, int64_t stride) {
  uint8_t row[4][16];
  for (int i = 0; i < 4; i++) memcpy(row[i], p - 4 + (i - 1) * stride, 16);
  return memcmp(row[0], row[0] + 4, 12) == 0 && memcmp(row[0], row[1], 16) == 0 &&
         memcmp(row[0], row[2], 16) == 0 && memcmp(row[0], row[3], 16) == 0;
}

/* The value of the pixel at (sx, sy), for which single precision is not enough. */
static void exact(const ii_warper *wp, const job *j, double sx, double sy, uint8_t *out) {
  sx -= 0.5, sy -= 0.5;
  double fx = floor(sx), fy = floor(sy), tx = sx - fx, ty = sy - fy;
  const uint8_t *p = pixel(wp, (int64_t)fx, (int64_t)fy);
  if (flat(p, wp->stride)) {
    memcpy(out, p, 3);
    return;
  }
  doubles4 v;
  if (j->filter != II_FILTER_BICUBIC)
    v = sample(p, wp->stride, tx, ty, false, true, true);
  else if (j->kind == ALONG_X)
    v = sample(p, wp->stride, tx, ty, true, true, false);
  else if (j->kind == ALONG_Y)
    v = sample(p, wp->stride, tx, ty, true, false, true);
  else
    v = sample(p, wp->stride, tx, ty, true, true, true);
  store(v, out);
}

/* The positions of row y; *from..*to-1 lie inside of the image (each coordinate rises or falls
 * along a row, so they follow each other). */
static void find_row(ii_warper *wp, const job *j, int64_t y, int64_t *from, int64_t *to) {
  const double *m = j->m, cy = (double)y + 0.5, width = (double)j->w, height = (double)j->h;
  const double m0 = m[0], m1 = m[1] * cy, m2 = m[2], m3 = m[3], m4 = m[4] * cy, m5 = m[5];
  const int32_t w = (int32_t)j->w;
  double *restrict at_x = wp->at_x, *restrict at_y = wp->at_y;
  for (int32_t x = 0; x < w; x++) {
    double cx = (double)x + 0.5;
    at_x[x] = m0 * cx + m1 + m2;
    at_y[x] = m3 * cx + m4 + m5;
  }
  int64_t a = 0, b = j->w;
  while (a < b && !(at_x[a] >= 0 && at_x[a] < width && at_y[a] >= 0 && at_y[a] < height)) a++;
  while (b > a &&
         !(at_x[b - 1] >= 0 && at_x[b - 1] < width && at_y[b - 1] >= 0 && at_y[b - 1] < height))
    b--;
  *from = a, *to = b;
}

/* Where the pixels from..to-1 of a row are, and their fractions in single precision. */
static void split_row(ii_warper *wp, int64_t from, int64_t to) {
  const double *restrict at_x = wp->at_x, *restrict at_y = wp->at_y;
  float *restrict tx = wp->tx, *restrict ty = wp->ty;
  int64_t *restrict place = wp->place, stride = wp->stride;
  for (int64_t x = from; x < to; x++) {
    double sx = at_x[x] - 0.5, sy = at_y[x] - 0.5, fx = floor(sx), fy = floor(sy);
    tx[x] = (float)(sx - fx), ty[x] = (float)(sy - fy);
    place[x] = (int64_t)fy * stride + (int64_t)fx * 4;
  }
}

/* The pixels from..to-1 of a row, nearly: wp->bytes and wp->doubt. */
static void near_row(ii_warper *wp, const job *j, int64_t from, int64_t to) {
  const bool bicubic = j->filter == II_FILTER_BICUBIC;
  const uint8_t *origin = pixel(wp, 0, 0);
  const int64_t n = to - from;
  const bool run = j->kind == ALONG_X || (j->kind == ALONG_Y && j->m[3] == 0);
  if (run) { /* all pixels have one fraction, but for the last bits of positions along x */
    double sx = wp->at_x[from] - 0.5, sy = wp->at_y[from] - 0.5, fx = floor(sx), fy = floor(sy);
    double t = j->kind == ALONG_X ? sx - fx : sy - fy;
    if (t > LAST_BITS && t < 1 - LAST_BITS) {
      ii_near_run(pixel(wp, (int64_t)fx, (int64_t)fy), j->kind == ALONG_X ? 4 : wp->stride, n,
                  (float)t, bicubic, wp->spread, wp->bytes, wp->doubt);
      return;
    }
  }
  split_row(wp, from, to);
  if (j->kind == ALONG_Y)
    ii_near_down(origin, wp->stride, wp->place + from, wp->ty + from, n, bicubic, wp->value,
                 wp->base, wp->spread, wp->bytes, wp->doubt);
  else
    ii_near_both(origin, wp->stride, wp->place + from, wp->tx + from, wp->ty + from, n, bicubic,
                 wp->value, wp->bytes, wp->doubt);
}

/* Pixels of 4 bytes to pixels of 3. */
static void drop_fourth(const uint8_t *in, int64_t n, uint8_t *out) {
  int64_t x = 0;
  for (; x + 8 <= n; x += 4) { /* writes 16 bytes, of which 12 stay */
    bytes16 v;
    memcpy(&v, in + 4 * x, sizeof v);
    v = __builtin_shufflevector(v, v, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    memcpy(out + 3 * x, &v, sizeof v);
  }
  for (; x < n; x++)
    out[3 * x] = in[4 * x], out[3 * x + 1] = in[4 * x + 1], out[3 * x + 2] = in[4 * x + 2];
}

/* Pixels with a byte that is not certain once more. */
static void settle_doubts(const ii_warper *wp, const job *j, int64_t from, int64_t to,
                          uint8_t *row) {
  enum { TOGETHER = 16 };
  for (int64_t x = from; x < to; x += TOGETHER) {
    const uint8_t *doubt = wp->doubt + 4 * (x - from);
    uint64_t parts[TOGETHER / 2], any = 0;
    memcpy(parts, doubt, sizeof parts); /* there is room behind the row */
    for (int i = 0; i < TOGETHER / 2; i++) any |= parts[i];
    if (any == 0) continue;
    for (int64_t k = x; k < to && k < x + TOGETHER; k++, doubt += 4)
      if (doubt[0] | doubt[1] | doubt[2]) exact(wp, j, wp->at_x[k], wp->at_y[k], row + 3 * k);
  }
}

static void fill_pixels(const uint8_t fill[3], int64_t n, uint8_t *out) {
  for (int64_t x = 0; x < n; x++, out += 3) out[0] = fill[0], out[1] = fill[1], out[2] = fill[2];
}

static void warp_row(ii_warper *wp, const job *j, int64_t y) {
  uint8_t *row = j->out + y * j->w * 3;
  int64_t from, to;
  find_row(wp, j, y, &from, &to);
  fill_pixels(j->fill, from, row);
  fill_pixels(j->fill, j->w - to, row + to * 3);
  if (from == to) return;
  near_row(wp, j, from, to);
  drop_fourth(wp->bytes, to - from, row + 3 * from);
  settle_doubts(wp, j, from, to, row);
}

ii_status ii_warp(ii_warper *wp, const uint8_t *in, int64_t w, int64_t h, const double m[6],
                  ii_filter filter, const uint8_t fill[3], uint8_t *out, ii_error *err) {
  II_ASSERT(w > 0 && h > 0 && w <= MAX_SIDE && h <= MAX_SIDE, "%lld x %lld", (long long)w,
            (long long)h);
  II_TRY(reserve(wp, w, h, err));
  pad(wp, in, w, h);
  job j = {w, h, m, filter, ALONG_BOTH, fill, out};
  bool same_x = m[0] == 1 && m[1] == 0 && m[2] == 0, same_y = m[3] == 0 && m[4] == 1 && m[5] == 0;
  if (same_y && m[0] == 1)
    j.kind = ALONG_X;
  else if (same_x && m[4] == 1)
    j.kind = ALONG_Y;
  for (int64_t y = 0; y < h; y++) warp_row(wp, &j, y);
  return II_OK;
}

static void turn_around(const uint8_t *in, int64_t pixels, uint8_t *out) {
  for (int64_t i = 0; i < pixels; i++) memcpy(out + i * 3, in + (pixels - 1 - i) * 3, 3);
}

/* A square by a quarter: counter-clockwise, or clockwise. */
static void quarter(const uint8_t *in, int64_t n, bool clockwise, uint8_t *out) {
  for (int64_t y = 0; y < n; y++)
    for (int64_t x = 0; x < n; x++, out += 3) {
      int64_t sx = clockwise ? y : n - 1 - y, sy = clockwise ? n - 1 - x : x;
      memcpy(out, in + (sy * n + sx) * 3, 3);
    }
}

/* Python's round(v, 15): the nearest decimal fraction. */
static double round_15(double v) {
  char text[32];
  snprintf(text, sizeof text, "%.15f", v);
  return strtod(text, NULL);
}

ii_status ii_rotate(ii_warper *wp, const uint8_t *in, int64_t w, int64_t h, double degrees,
                    ii_filter filter, const uint8_t fill[3], uint8_t *out, ii_error *err) {
  double angle = fmod(degrees, 360.0);
  if (angle < 0) angle += 360.0;
  if (angle == 0 || angle == 180 || (w == h && (angle == 90 || angle == 270))) {
    if (angle == 0)
      memcpy(out, in, (size_t)(w * h * 3));
    else if (angle == 180)
      turn_around(in, w * h, out);
    else
      quarter(in, w, angle == 270, out);
    return II_OK;
  }
  double a = -(angle * (M_PI / 180.0)), c = round_15(cos(a)), s = round_15(sin(a));
  double cx = (double)w / 2.0, cy = (double)h / 2.0;
  double m[6] = {c, s, 0, round_15(-sin(a)), c, 0};
  m[2] = m[0] * -cx + m[1] * -cy + 0.0 + cx;
  m[5] = m[3] * -cx + m[4] * -cy + 0.0 + cy;
  return ii_warp(wp, in, w, h, m, filter, fill, out, err);
}
