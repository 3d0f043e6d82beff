/* vpdpbusd adds to each 32-bit lane the four products of its four bytes with four signed bytes. A
 * weight of 24 bits is three such bytes (q = d0 + 2^8 d1 + 2^16 d2 with digits in -128..127), so
 * four taps of 16 outputs take three instructions, exactly: all sums are of integers and stay far
 * below 2^31.
 *
 * Horizontal pass: blocks of 16 rows are turned into quads, 4 consecutive pixels of one channel and
 * row as the bytes of one lane: [w / 4, channel, row, 4]. Its result is kept as quads too, 4
 * consecutive rows as the bytes of one lane: [h / 4, out_w * 3, 4], which is what the vertical pass
 * wants. Windows of taps begin at any position; they are widened to whole quads by weights of 0. */
#include "data/resize_quads.h"
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

#define ROWS        16
#define WEIGHT_BITS 22
#define PAD         64 /* bytes readable and writable behind a buffer */

/* The weights in quads: for each output the first quad, how many, and [quads, 3 digits, 4 taps]. */
typedef struct {
  int64_t room; /* quads per output */
  int32_t *first, *count;
  int8_t *digits;
  int64_t output_capacity, digit_capacity;
} quad_weights;

struct ii_quads {
  quad_weights x, y;
  uint8_t *turned, *middle;
  int64_t turned_capacity, middle_capacity;
};

ii_status ii_quads_new(ii_quads **quads, ii_error *err) {
  *quads = calloc(1, sizeof **quads);
  if (!*quads) return ii_error_set(err, II_ERR_MEMORY, "no memory for a resizer");
  return II_OK;
}

void ii_quads_free(ii_quads *q) {
  if (!q) return;
  quad_weights *w[2] = {&q->x, &q->y};
  for (int i = 0; i < 2; i++) free(w[i]->first), free(w[i]->count), free(w[i]->digits);
  free(q->turned);
  free(q->middle);
  free(q);
}

static ii_status grow(void *p, int64_t *capacity, int64_t bytes, ii_error *err) {
  void **at = p;
  if (bytes <= *capacity) return II_OK;
  free(*at);
  *at = calloc(1, (size_t)bytes);
  *capacity = *at ? bytes : 0;
  if (!*at) return ii_error_set(err, II_ERR_MEMORY, "no memory to resize an image");
  return II_OK;
}

static ii_status convert(quad_weights *q, ii_weights w, ii_error *err) {
  q->room = (w.taps + 3 + 3) / 4;
  int64_t capacity = q->output_capacity; /* shared by first and count */
  II_TRY(grow(&q->first, &capacity, w.outputs * (int64_t)sizeof *q->first, err));
  II_TRY(grow(&q->count, &q->output_capacity, w.outputs * (int64_t)sizeof *q->count, err));
  II_TRY(grow(&q->digits, &q->digit_capacity, w.outputs * q->room * 12, err));
  for (int64_t i = 0; i < w.outputs; i++) {
    int32_t first = w.first[i], n = w.count[i], shift = first % 4;
    int8_t *digits = q->digits + i * q->room * 12;
    q->first[i] = first / 4, q->count[i] = (shift + n + 3) / 4;
    memset(digits, 0, (size_t)q->count[i] * 12);
    for (int32_t j = 0; j < n; j++) {
      int32_t v = w.weight[i * w.taps + j], at = shift + j;
      for (int d = 0; d < 3; d++) {
        int8_t digit = (int8_t)(uint8_t)(v & 255);
        digits[at / 4 * 12 + d * 4 + at % 4] = digit;
        v = (v - digit) / 256;
      }
    }
  }
  return II_OK;
}

static inline __m512i digit(const int8_t *p) {
  int32_t v;
  memcpy(&v, p, sizeof v);
  return _mm512_set1_epi32(v);
}

/* From the sums of the three digits to bytes, rounded and clipped. */
static inline __m128i to_bytes(const __m512i sum[3]) {
  __m512i v = _mm512_add_epi32(_mm512_slli_epi32(sum[1], 8), _mm512_slli_epi32(sum[2], 16));
  v = _mm512_add_epi32(_mm512_add_epi32(v, sum[0]), _mm512_set1_epi32(1 << (WEIGHT_BITS - 1)));
  v = _mm512_max_epi32(_mm512_srai_epi32(v, WEIGHT_BITS), _mm512_setzero_si512());
  return _mm512_cvtusepi32_epi8(v);
}

/* `rows` (at most ROWS) rows to quads. The last quad of a row may hold what follows in memory only
 * where that is inside of the row. */
static void turn(const uint8_t *in, int64_t stride, int64_t w, int64_t rows, uint8_t *turned) {
  const __m128i order = _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *p = in + r * stride;
    uint8_t *t = turned + r * 4;
    for (int64_t x = 0; x < w; x += 4, p += 12, t += 3 * ROWS * 4) {
      uint8_t last[16] = {0};
      if (w - x < 6) memcpy(last, p, (size_t)((w - x < 4 ? w - x : 4) * 3));
      __m128i v = _mm_loadu_si128((const __m128i *)(w - x < 6 ? last : p));
      v = _mm_shuffle_epi8(v, order);
      int32_t c[3] = {_mm_cvtsi128_si32(v), _mm_extract_epi32(v, 1), _mm_extract_epi32(v, 2)};
      for (int i = 0; i < 3; i++) memcpy(t + i * ROWS * 4, &c[i], 4);
    }
  }
}

/* A block of ROWS rows; out: its first row of quads, of which each has `stride` bytes. */
static void horizontal(const quad_weights *w, const uint8_t *turned, int64_t out_w, bool mirror,
                       uint8_t *out, int64_t stride) {
  for (int64_t i = 0; i < out_w; i++, out += 12) {
    int64_t x = mirror ? out_w - 1 - i : i;
    const int8_t *digits = w->digits + x * w->room * 12;
    const uint8_t *t = turned + (int64_t)w->first[x] * 3 * ROWS * 4;
    __m512i sum[3][3];
    for (int c = 0; c < 3; c++)
      for (int d = 0; d < 3; d++) sum[c][d] = _mm512_setzero_si512();
    for (int32_t q = 0; q < w->count[x]; q++, t += 3 * ROWS * 4, digits += 12)
      for (int d = 0; d < 3; d++) {
        __m512i weight = digit(digits + d * 4);
        for (int c = 0; c < 3; c++)
          sum[c][d] = _mm512_dpbusd_epi32(sum[c][d], _mm512_loadu_si512(t + c * ROWS * 4), weight);
      }
    /* 3 channels x 4 quads of rows -> 4 x 3; the fourth column is overwritten by the next pixel */
    __m128i r = to_bytes(sum[0]), g = to_bytes(sum[1]), b = to_bytes(sum[2]);
    __m128i rg0 = _mm_unpacklo_epi32(r, g), rg1 = _mm_unpackhi_epi32(r, g);
    __m128i b0 = _mm_unpacklo_epi32(b, b), b1 = _mm_unpackhi_epi32(b, b);
    _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi64(rg0, b0));
    _mm_storeu_si128((__m128i *)(out + stride), _mm_unpackhi_epi64(rg0, b0));
    _mm_storeu_si128((__m128i *)(out + 2 * stride), _mm_unpacklo_epi64(rg1, b1));
    _mm_storeu_si128((__m128i *)(out + 3 * stride), _mm_unpackhi_epi64(rg1, b1));
  }
}

/* One row of n bytes from rows of quads. */
static void vertical_row(const int8_t *digits, int32_t quads, const uint8_t *in, int64_t stride,
                         int64_t n, uint8_t *out) {
  for (int64_t i = 0; i < n; i += 16) {
    __m512i sum[3] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    const uint8_t *p = in + i * 4;
    for (int32_t q = 0; q < quads; q++, p += stride) {
      __m512i v = _mm512_loadu_si512(p);
      for (int d = 0; d < 3; d++)
        sum[d] = _mm512_dpbusd_epi32(sum[d], v, digit(digits + q * 12 + d * 4));
    }
    int64_t left = n - i;
    __mmask16 mask = left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
    _mm_mask_storeu_epi8(out + i, mask, to_bytes(sum));
  }
}

ii_status ii_quads_resize(ii_quads *q, const uint8_t *in, int64_t stride, int64_t w, int64_t h,
                          ii_weights x, ii_weights y, bool mirror, uint8_t *out, ii_error *err) {
  int64_t n = x.outputs * 3, row = (n * 4 + PAD + 63) / 64 * 64, blocks = (h + ROWS - 1) / ROWS;
  II_TRY(convert(&q->x, x, err));
  II_TRY(convert(&q->y, y, err));
  II_TRY(grow(&q->turned, &q->turned_capacity, (w + 3) / 4 * 3 * ROWS * 4, err));
  II_TRY(grow(&q->middle, &q->middle_capacity, blocks * 4 * row + PAD, err));
  for (int64_t b = 0; b < blocks; b++) {
    int64_t rows = h - b * ROWS < ROWS ? h - b * ROWS : ROWS;
    turn(in + b * ROWS * stride, stride, w, rows, q->turned);
    horizontal(&q->x, q->turned, x.outputs, mirror, q->middle + b * 4 * row, row);
  }
  for (int64_t i = 0; i < y.outputs; i++)
    vertical_row(q->y.digits + i * q->y.room * 12, q->y.count[i], q->middle + q->y.first[i] * row,
                 row, n, out + i * n);
  return II_OK;
}

#else

ii_status ii_quads_new(ii_quads **quads, ii_error *err) {
  *quads = NULL;
  return II_OK;
}

void ii_quads_free(ii_quads *quads) {}

ii_status ii_quads_resize(ii_quads *quads, const uint8_t *in, int64_t stride, int64_t w, int64_t h,
                          ii_weights x, ii_weights y, bool mirror, uint8_t *out, ii_error *err) {
  return ii_error_set(err, II_ERR_ARG, "built without AVX-512 VNNI");
}

#endif
