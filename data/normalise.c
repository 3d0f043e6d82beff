/* A quotient is got from the product with the rounded inverse and one correction by fused
 * multiply-add: with r = 1/b, q = a r and q + (a - q b) r, which is a/b correctly rounded but for
 * rare cases. There are 768 quotients in all, so whether this holds for them is looked up and not
 * proved; if not, all values come from a table. */
#include "data/normalise.h"
#include <math.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* the same bits on every processor */
#endif

static const float inverse_255 = 1.0f / 255.0f;

static float quotient(float a, float b, float inverse) {
  float q = a * inverse;
  return fmaf(fmaf(-q, b, a), inverse, q);
}

void ii_normaliser_set(ii_normaliser *n, const double mean[3], const double std[3]) {
  if (memcmp(n->mean, mean, sizeof n->mean) == 0 && memcmp(n->std, std, sizeof n->std) == 0) return;
  n->by_products = true;
  for (int c = 0; c < 3; c++) {
    n->minus[c] = (float)mean[c], n->divisor[c] = (float)std[c];
    n->inverse[c] = 1.0f / n->divisor[c];
    for (int v = 0; v < 256; v++) {
      float exact = ((float)v / 255.0f - n->minus[c]) / n->divisor[c];
      float product = quotient(quotient((float)v, 255.0f, inverse_255) - n->minus[c], n->divisor[c],
                               n->inverse[c]);
      n->value[v][c] = exact;
      n->by_products &= memcmp(&exact, &product, sizeof exact) == 0;
    }
  }
  memcpy(n->mean, mean, sizeof n->mean);
  memcpy(n->std, std, sizeof n->std);
}

#ifdef __AVX512F__
static inline __m512 quotients(__m512 a, __m512 b, __m512 inverse) {
  __m512 q = _mm512_mul_ps(a, inverse);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(q, b, a), inverse, q);
}

/* Three vectors are 16 pixels; each has its own order of channels. Returns the pixels done. */
static int64_t by_products(const ii_normaliser *n, const uint8_t *rgb, int64_t pixels, float *out) {
  float minus[48], divisor[48], inverse[48];
  __m512 m[3], d[3], r[3];
  int64_t done = 0;
  if (!n->by_products) return 0;
  for (int i = 0; i < 48; i++)
    minus[i] = n->minus[i % 3], divisor[i] = n->divisor[i % 3], inverse[i] = n->inverse[i % 3];
  for (int k = 0; k < 3; k++) {
    m[k] = _mm512_loadu_ps(minus + 16 * k), d[k] = _mm512_loadu_ps(divisor + 16 * k);
    r[k] = _mm512_loadu_ps(inverse + 16 * k);
  }
  for (; done + 16 <= pixels; done += 16)
    for (int k = 0; k < 3; k++, rgb += 16, out += 16) {
      __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)rgb));
      __m512 v =
          quotients(_mm512_cvtepi32_ps(bytes), _mm512_set1_ps(255.0f), _mm512_set1_ps(inverse_255));
      _mm512_storeu_ps(out, quotients(_mm512_sub_ps(v, m[k]), d[k], r[k]));
    }
  return done;
}
#else
static int64_t by_products(const ii_normaliser *n, const uint8_t *rgb, int64_t pixels, float *out) {
  return 0;
}
#endif

void ii_normalise(const ii_normaliser *n, const uint8_t *rgb, int64_t pixels, float *out) {
  for (int64_t i = by_products(n, rgb, pixels, out); i < pixels; i++)
    for (int c = 0; c < 3; c++) out[3 * i + c] = n->value[rgb[3 * i + c]][c];
}
