#include "data/warp_near.h"
#include <string.h>
#ifdef __SSE4_1__
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* the vector functions are all inlined */
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float floats4 __attribute__((vector_size(16)));
typedef float floats8 __attribute__((vector_size(32)));
typedef float floats16 __attribute__((vector_size(64)));

/* What the pixels before, at, after and after next of a fraction t count. */
INLINE void weights(float t, bool bicubic, float w[4]) {
  w[0] = bicubic ? t * (t * (2.0f - t) - 1.0f) : 0.0f;
  w[1] = bicubic ? t * t * (t - 2.0f) + 1.0f : 1.0f - t;
  w[2] = bicubic ? t * (t * (1.0f - t) + 1.0f) : t;
  w[3] = bicubic ? t * t * (t - 1.0f) : 0.0f;
}

/* 4 pixels in a row, and one. Compilers turn the general form into long sequences. */
#ifdef __AVX512F__
INLINE floats16 load_4(const uint8_t *p) {
  __m128i v = _mm_loadu_si128((const __m128i *)p);
  return (floats16)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v));
}
#else
INLINE floats16 load_4(const uint8_t *p) {
  floats16 v;
  for (int i = 0; i < 16; i++) v[i] = (float)p[i];
  return v;
}
#endif

#ifdef __SSE4_1__
INLINE floats4 load_1(const uint8_t *p) {
  int32_t v;
  memcpy(&v, p, sizeof v);
  return (floats4)_mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(v)));
}
#else
INLINE floats4 load_1(const uint8_t *p) {
  return (floats4){(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
}
#endif

/* 16 values to bytes, and whether they are certain. */
#ifdef __AVX512F__
INLINE void round_16(floats16 v, uint8_t *bytes, uint8_t *doubt) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i low = _mm512_max_epi32(_mm512_cvttps_epi32((__m512)(v - II_NEAR_ERROR)), zero);
  __m512i high = _mm512_max_epi32(_mm512_cvttps_epi32((__m512)(v + II_NEAR_ERROR)), zero);
  __m128i a = _mm512_cvtusepi32_epi8(low), b = _mm512_cvtusepi32_epi8(high);
  _mm_storeu_si128((__m128i *)bytes, a);
  _mm_storeu_si128((__m128i *)doubt, _mm_xor_si128(a, b));
}
#else
INLINE uint8_t cut(float v) {
  int32_t i = (int32_t)v;
  return (uint8_t)(i < 0 ? 0 : i > 255 ? 255 : i);
}

INLINE void round_16(floats16 v, uint8_t *bytes, uint8_t *doubt) {
  for (int i = 0; i < 16; i++) {
    bytes[i] = cut(v[i] - II_NEAR_ERROR);
    doubt[i] = bytes[i] ^ cut(v[i] + II_NEAR_ERROR);
  }
}
#endif

INLINE void run(const uint8_t *p, int64_t step, int64_t n, float t, bool bicubic, uint8_t *bytes,
                uint8_t *doubt) {
  float w[4];
  weights(t, bicubic, w);
  for (int64_t i = 0; i < 4 * n; i += 16, p += 16) {
    floats16 v = w[1] * load_4(p) + w[2] * load_4(p + step);
    if (bicubic) v += w[0] * load_4(p - step) + w[3] * load_4(p + 2 * step);
    round_16(v, bytes + i, doubt + i);
  }
}

/* What lies between equal bytes is such a byte, exactly: differences of 0, whatever they are
 * multiplied with. In photographs that is every tenth byte, all of them whole numbers. */
static void keep_equal(const uint8_t *restrict base, const uint8_t *restrict spread, int64_t n,
                       uint8_t *restrict bytes, uint8_t *restrict doubt) {
  for (int64_t i = 0; i < 4 * n; i++) {
    bytes[i] = spread[i] ? bytes[i] : base[i];
    doubt[i] = spread[i] ? doubt[i] : 0;
  }
}

void ii_near_run(const uint8_t *p, int64_t step, int64_t n, float t, bool bicubic,
                 uint8_t *restrict spread, uint8_t *bytes, uint8_t *doubt) {
  const uint8_t *restrict a = p - step, *restrict b = p, *restrict c = p + step;
  const uint8_t *restrict d = c + step;
  const uint8_t far = bicubic ? 0xff : 0; /* whether the outer two count */
  for (int64_t i = 0; i < 4 * n; i++)
    spread[i] = (uint8_t)((b[i] ^ c[i]) | (((a[i] ^ b[i]) | (c[i] ^ d[i])) & far));
  if (bicubic)
    run(p, step, n, t, true, bytes, doubt);
  else
    run(p, step, n, t, false, bytes, doubt);
  keep_equal(p, spread, n, bytes, doubt);
}

/* The weights of 4 neighbours, each for the 4 bytes of its pixel, as polynomials in t. */
INLINE floats16 weights_16(float t, bool bicubic) {
#define EACH(a, b, c, d) ((floats16){a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d})
  if (!bicubic) return EACH(0, 1, 0, 0) + t * EACH(0, -1, 1, 0);
  return EACH(0, 1, 0, 0) +
         t * (EACH(-1, 0, 1, 0) + t * (EACH(2, -2, 1, -1) + t * EACH(-1, 1, -1, 1)));
#undef EACH
}

INLINE floats4 sum_of_4(floats16 v) {
  floats8 half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) +
         __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

INLINE void both(const uint8_t *image, int64_t stride, const int64_t *at, const float *tx,
                 const float *ty, int64_t n, bool bicubic, float *out) {
  for (int64_t i = 0; i < n; i++) {
    const uint8_t *p = image + at[i] - 4;
    float w[4];
    weights(ty[i], bicubic, w);
    floats16 v = w[1] * load_4(p) + w[2] * load_4(p + stride);
    if (bicubic) v += w[0] * load_4(p - stride) + w[3] * load_4(p + 2 * stride);
    floats4 sum = sum_of_4(v * weights_16(tx[i], bicubic));
    memcpy(out + 4 * i, &sum, sizeof sum);
  }
}

INLINE void down(const uint8_t *image, int64_t stride, const int64_t *at, const float *ty,
                 int64_t n, bool bicubic, float *out, uint8_t *base, uint8_t *spread) {
  for (int64_t i = 0; i < n; i++) {
    const uint8_t *p = image + at[i];
    float w[4];
    uint32_t a, b, c, d;
    memcpy(&a, p - stride, 4), memcpy(&b, p, 4);
    memcpy(&c, p + stride, 4), memcpy(&d, p + 2 * stride, 4);
    a = (b ^ c) | (bicubic ? (a ^ b) | (c ^ d) : 0);
    memcpy(base + 4 * i, &b, 4), memcpy(spread + 4 * i, &a, 4);
    weights(ty[i], bicubic, w);
    floats4 v = w[1] * load_1(p) + w[2] * load_1(p + stride);
    if (bicubic) v += w[0] * load_1(p - stride) + w[3] * load_1(p + 2 * stride);
    memcpy(out + 4 * i, &v, sizeof v);
  }
}

static void round_row(const float *value, int64_t n, uint8_t *bytes, uint8_t *doubt) {
  for (int64_t i = 0; i < 4 * n; i += 16) {
    floats16 v;
    memcpy(&v, value + i, sizeof v);
    round_16(v, bytes + i, doubt + i);
  }
}

void ii_near_both(const uint8_t *image, int64_t stride, const int64_t *at, const float *tx,
                  const float *ty, int64_t n, bool bicubic, float *value, uint8_t *bytes,
                  uint8_t *doubt) {
  if (bicubic)
    both(image, stride, at, tx, ty, n, true, value);
  else
    both(image, stride, at, tx, ty, n, false, value);
  round_row(value, n, bytes, doubt);
}

void ii_near_down(const uint8_t *image, int64_t stride, const int64_t *at, const float *ty,
                  int64_t n, bool bicubic, float *value, uint8_t *base, uint8_t *spread,
                  uint8_t *bytes, uint8_t *doubt) {
  if (bicubic)
    down(image, stride, at, ty, n, true, value, base, spread);
  else
    down(image, stride, at, ty, n, false, value, base, spread);
  round_row(value, n, bytes, doubt);
  keep_equal(base, spread, n, bytes, doubt);
}
