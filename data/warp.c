/* The value of every pixel must be that of Pillow's double arithmetic, operation by operation: with
 * round magnitudes positions are decimal fractions, and then exact results often lie on an integer,
 * where the last bit decides what is cut off. So this is double too, and the speed comes from
 * vectors and from the axes: a shear or translation interpolates along one axis alone (the other
 * fraction is exactly 0, and a cubic at 0 is its second point), which is a fifth of the work.
 *
 * All kernels read a copy with 4 bytes per pixel and the edge pixels repeated twice around it, so
 * that no tap needs a bound. */
#include "data/warp.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

typedef int32_t ints4 __attribute__((vector_size(16)));
typedef double doubles4 __attribute__((vector_size(32)));

struct ii_warper {
  uint8_t *padded;  /* [h + 2 EDGE, stride] */
  double *at;       /* [w]: positions along a row */
  double *fraction; /* [4 w]: of every byte of a row */
  uint8_t *row;     /* [4 w] */
  int64_t padded_capacity, at_capacity;
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
  free(warper->at);
  free(warper->fraction);
  free(warper->row);
  free(warper);
}

static ii_status reserve(ii_warper *wp, int64_t w, int64_t h, ii_error *err) {
  wp->stride = (w + 2 * EDGE) * 4;
  int64_t bytes = wp->stride * (h + 2 * EDGE);
  if (bytes > wp->padded_capacity) {
    free(wp->padded);
    wp->padded = malloc((size_t)bytes);
    wp->padded_capacity = wp->padded ? bytes : 0;
  }
  if (w > wp->at_capacity) {
    free(wp->at);
    free(wp->fraction);
    free(wp->row);
    wp->at = malloc((size_t)w * sizeof *wp->at);
    wp->fraction = malloc((size_t)w * 4 * sizeof *wp->fraction);
    wp->row = malloc((size_t)w * 4);
    wp->at_capacity = wp->at && wp->fraction && wp->row ? w : 0;
  }
  if (!wp->padded || !wp->at || !wp->fraction || !wp->row)
    return ii_error_set(err, II_ERR_MEMORY, "no memory to warp an image");
  return II_OK;
}

/* The padded copy. */
static void pad(ii_warper *wp, const uint8_t *in, int64_t w, int64_t h) {
  for (int64_t y = 0; y < h; y++, in += w * 3) {
    uint8_t *row = wp->padded + (y + EDGE) * wp->stride, *p = row + EDGE * 4;
    for (int64_t x = 0; x < w; x++)
      p[4 * x] = in[3 * x], p[4 * x + 1] = in[3 * x + 1], p[4 * x + 2] = in[3 * x + 2],
            p[4 * x + 3] = 0;
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

typedef struct {
  int64_t w, h;
  const double *m;
  const uint8_t *fill;
  uint8_t *out;
} job;

INLINE void warp_pixels(const ii_warper *wp, const job *j, bool bicubic, bool across, bool down) {
  const double *m = j->m, width = (double)j->w, height = (double)j->h;
  uint8_t *out = j->out;
  for (int64_t y = 0; y < j->h; y++) {
    double cy = (double)y + 0.5;
    for (int64_t x = 0; x < j->w; x++, out += 3) {
      double cx = (double)x + 0.5;
      double sx = m[0] * cx + m[1] * cy + m[2], sy = m[3] * cx + m[4] * cy + m[5];
      if (!(sx >= 0 && sx < width && sy >= 0 && sy < height)) {
        memcpy(out, j->fill, 3);
        continue;
      }
      sx -= 0.5, sy -= 0.5;
      double fx = floor(sx), fy = floor(sy);
      const uint8_t *p = pixel(wp, (int64_t)fx, (int64_t)fy);
      doubles4 v = sample(p, wp->stride, sx - fx, sy - fy, bicubic, across, down);
      store(v, out);
    }
  }
}

/* n bytes between b and c; each with its own fraction, or all with t[0]. */
INLINE void cubic_bytes(const uint8_t *restrict a, const uint8_t *restrict b,
                        const uint8_t *restrict c, const uint8_t *restrict d, int64_t n,
                        const double *restrict t, bool one, uint8_t *restrict out) {
  for (int64_t i = 0; i < n; i++) {
    int32_t p1 = b[i], p2 = c[i] - a[i], p3 = 2 * (a[i] - b[i]) + c[i] - d[i];
    int32_t p4 = b[i] - a[i] + d[i] - c[i];
    double s = one ? t[0] : t[i];
    out[i] = cut((int32_t)(p1 + s * (p2 + s * (p3 + s * p4))));
  }
}

INLINE void linear_bytes(const uint8_t *restrict b, const uint8_t *restrict c, int64_t n,
                         const double *restrict t, bool one, uint8_t *restrict out) {
  for (int64_t i = 0; i < n; i++) {
    double s = one ? t[0] : t[i];
    out[i] = (uint8_t)(int32_t)(b[i] + (c[i] - b[i]) * s);
  }
}

/* The n pixels of 4 bytes that begin at `from`, with fractions along x or y, to RGB. */
static void run_of_pixels(ii_warper *wp, const uint8_t *from, int64_t step, int64_t n,
                          const double *t, bool one, ii_filter filter, uint8_t *out) {
  uint8_t *row = wp->row;
  if (filter == II_FILTER_BICUBIC && one)
    cubic_bytes(from - step, from, from + step, from + 2 * step, n * 4, t, true, row);
  else if (filter == II_FILTER_BICUBIC)
    cubic_bytes(from - step, from, from + step, from + 2 * step, n * 4, t, false, row);
  else if (one)
    linear_bytes(from, from + step, n * 4, t, true, row);
  else
    linear_bytes(from, from + step, n * 4, t, false, row);
  for (int64_t x = 0; x < n; x++)
    out[3 * x] = row[4 * x], out[3 * x + 1] = row[4 * x + 1], out[3 * x + 2] = row[4 * x + 2];
}

static void fill_pixels(const uint8_t fill[3], int64_t n, uint8_t *out) {
  for (int64_t x = 0; x < n; x++, out += 3) out[0] = fill[0], out[1] = fill[1], out[2] = fill[2];
}

/* Along x alone. The source pixels of a row are consecutive but for roundings of positions next to
 * a whole number; rows with such a place go pixel by pixel. */
static bool shifted_row(ii_warper *wp, const job *j, int64_t y, ii_filter filter) {
  const double *m = j->m, cy = (double)y + 0.5, width = (double)j->w;
  double *at = wp->at;
  int64_t from = 0, to = j->w, w = j->w;
  for (int64_t x = 0; x < w; x++) at[x] = m[0] * ((double)x + 0.5) + m[1] * cy + m[2];
  while (from < w && !(at[from] >= 0)) from++;
  while (to > from && !(at[to - 1] < width)) to--;
  uint8_t *out = j->out + y * w * 3;
  fill_pixels(j->fill, from, out);
  fill_pixels(j->fill, w - to, out + to * 3);
  if (from == to) return true;
  double first = floor(at[from] - 0.5);
  bool regular = true;
  for (int64_t x = from; x < to; x++) {
    double s = at[x] - 0.5, f = floor(s), t = s - f;
    regular &= f == first + (double)(x - from);
    for (int c = 0; c < 4; c++) wp->fraction[4 * x + c] = t;
  }
  if (!regular) return false;
  run_of_pixels(wp, pixel(wp, (int64_t)first, y), 4, to - from, wp->fraction + 4 * from, false,
                filter, out + from * 3);
  return true;
}

static void shift_rows(ii_warper *wp, const job *j, ii_filter filter) {
  for (int64_t y = 0; y < j->h; y++) {
    if (shifted_row(wp, j, y, filter)) continue;
    for (int64_t x = 0; x < j->w; x++) {
      double sx = j->m[0] * ((double)x + 0.5) + j->m[1] * ((double)y + 0.5) + j->m[2];
      if (!(sx >= 0 && sx < (double)j->w)) continue;
      sx -= 0.5;
      double f = floor(sx);
      run_of_pixels(wp, pixel(wp, (int64_t)f, y), 4, 1, &(double){sx - f}, true, filter,
                    j->out + (y * j->w + x) * 3);
    }
  }
}

/* Along y alone, every pixel of a row by the same way. */
static void move_rows(ii_warper *wp, const job *j, ii_filter filter) {
  const double *m = j->m;
  for (int64_t y = 0; y < j->h; y++) {
    uint8_t *out = j->out + y * j->w * 3;
    double sy = m[3] * 0.5 + m[4] * ((double)y + 0.5) + m[5];
    if (!(sy >= 0 && sy < (double)j->h)) {
      fill_pixels(j->fill, j->w, out);
      continue;
    }
    sy -= 0.5;
    double f = floor(sy), t = sy - f;
    const uint8_t *from = pixel(wp, 0, (int64_t)f);
    run_of_pixels(wp, from, wp->stride, j->w, &t, true, filter, out);
  }
}

ii_status ii_warp(ii_warper *wp, const uint8_t *in, int64_t w, int64_t h, const double m[6],
                  ii_filter filter, const uint8_t fill[3], uint8_t *out, ii_error *err) {
  II_ASSERT(w > 0 && h > 0 && w <= MAX_SIDE && h <= MAX_SIDE, "%lld x %lld", (long long)w,
            (long long)h);
  II_TRY(reserve(wp, w, h, err));
  pad(wp, in, w, h);
  job j = {w, h, m, fill, out};
  bool bicubic = filter == II_FILTER_BICUBIC;
  bool same_x = m[0] == 1 && m[1] == 0 && m[2] == 0, same_y = m[3] == 0 && m[4] == 1 && m[5] == 0;
  if (same_y && m[0] == 1)
    shift_rows(wp, &j, filter);
  else if (same_x && m[3] == 0)
    move_rows(wp, &j, filter);
  else if (same_x && bicubic)
    warp_pixels(wp, &j, true, false, true);
  else if (bicubic)
    warp_pixels(wp, &j, true, true, true);
  else
    warp_pixels(wp, &j, false, true, true);
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
