/* Loops are written for the compiler to turn into vector instructions. What decides the last bit is
 * kept: single precision where Pillow has it, cutting off where it does, no fused multiply-add. */
#include "data/augment_ops.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "data/warp.h"

#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512") /* the loops are long: half the time */
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

struct ii_augmenter {
  ii_warper *warper;
  ii_image spare; /* changes places with the image */
  uint16_t *sums; /* [3 w]: three rows added up */
  int64_t sums_capacity;
};

const char *ii_augment_op_name(ii_augment_op op) {
  static const char *const names[II_AUG_COUNT] = {
      "AutoContrast", "Equalize",   "Invert",     "Rotate",     "Posterize", "Solarize",
      "SolarizeAdd",  "Color",      "Contrast",   "Brightness", "Sharpness", "ShearX",
      "ShearY",       "TranslateX", "TranslateY", "Hue"};
  return names[op];
}

ii_status ii_augmenter_new(ii_augmenter **augmenter, ii_error *err) {
  ii_augmenter *a = calloc(1, sizeof *a);
  if (!a) return ii_error_set(err, II_ERR_MEMORY, "no memory for augmentation");
  ii_status status = ii_warper_new(&a->warper, err);
  if (status != II_OK)
    free(a);
  else
    *augmenter = a;
  return status;
}

void ii_augmenter_free(ii_augmenter *a) {
  if (!a) return;
  ii_warper_free(a->warper);
  ii_image_free(&a->spare);
  free(a->sums);
  free(a);
}

/* ---- by table ---- */

static void look_up(uint8_t table[3][256], uint8_t *p, int64_t pixels) {
  for (int64_t i = 0; i < pixels; i++, p += 3)
    p[0] = table[0][p[0]], p[1] = table[1][p[1]], p[2] = table[2][p[2]];
}

/* 255 / (highest - lowest) as slope, both ends kept; in double, cut off. */
static void auto_contrast(uint8_t *p, int64_t pixels) {
  uint8_t lo[3] = {255, 255, 255}, hi[3] = {0, 0, 0}, table[3][256];
  for (int64_t i = 0; i < pixels; i++)
    for (int c = 0; c < 3; c++) {
      uint8_t v = p[3 * i + c];
      lo[c] = v < lo[c] ? v : lo[c];
      hi[c] = v > hi[c] ? v : hi[c];
    }
  for (int c = 0; c < 3; c++) {
    double scale = hi[c] > lo[c] ? 255.0 / (hi[c] - lo[c]) : 1.0;
    double offset = hi[c] > lo[c] ? -lo[c] * scale : 0.0;
    for (int v = 0; v < 256; v++) {
      int t = (int)(v * scale + offset);
      table[c][v] = (uint8_t)(t < 0 ? 0 : t > 255 ? 255 : t);
    }
  }
  look_up(table, p, pixels);
}

static void equalize_table(const int64_t count[256], uint8_t table[256]) {
  int64_t used = 0, sum = 0, last = 0;
  for (int v = 0; v < 256; v++) {
    used += count[v] > 0, sum += count[v];
    if (count[v] > 0) last = count[v];
  }
  int64_t step = (sum - last) / 255, n = step / 2;
  for (int v = 0; v < 256; v++) {
    if (used <= 1 || step == 0) {
      table[v] = (uint8_t)v;
      continue;
    }
    table[v] = (uint8_t)(n / step < 255 ? n / step : 255);
    n += count[v];
  }
}

static void equalize(uint8_t *p, int64_t pixels) {
  /* two counters each, so that neighbours of the same value do not wait for each other */
  uint32_t counts[2][3][256] = {0};
  uint8_t table[3][256];
  for (int64_t i = 0; i < pixels; i++)
    for (int c = 0; c < 3; c++) counts[i & 1][c][p[3 * i + c]]++;
  for (int c = 0; c < 3; c++) {
    int64_t count[256];
    for (int v = 0; v < 256; v++) count[v] = (int64_t)counts[0][c][v] + counts[1][c][v];
    equalize_table(count, table[c]);
  }
  look_up(table, p, pixels);
}

/* ---- byte by byte ---- */

static void invert(uint8_t *p, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = (uint8_t)(255 - p[i]);
}

static void posterize(uint8_t *p, int64_t n, int bits) {
  uint8_t mask = (uint8_t)(bits >= 8 ? 0xff : bits <= 0 ? 0 : 0xff << (8 - bits));
  for (int64_t i = 0; i < n; i++) p[i] &= mask;
}

static void solarize(uint8_t *p, int64_t n, int threshold) {
  for (int64_t i = 0; i < n; i++) p[i] = (uint8_t)(p[i] < threshold ? p[i] : 255 - p[i]);
}

static void solarize_add(uint8_t *p, int64_t n, int add) {
  for (int64_t i = 0; i < n; i++) {
    int more = p[i] + add;
    more = more > 255 ? 255 : more < 0 ? 0 : more;
    p[i] = (uint8_t)(p[i] < 128 ? more : p[i]);
  }
}

/* from + factor (to - from), cut off and to a byte. */
static inline uint8_t blend(int from, int to, float factor) {
  float v = (float)from + factor * (float)(to - from);
  v = v < 0.0f ? 0.0f : v > 255.0f ? 255.0f : v;
  return (uint8_t)(int)v;
}

static void blend_constant(uint8_t *p, int64_t n, int from, float factor) {
  for (int64_t i = 0; i < n; i++) p[i] = blend(from, p[i], factor);
}

static inline int grey(const uint8_t *p) {
  return (19595 * p[0] + 38470 * p[1] + 7471 * p[2] + 32768) >> 16;
}

static void contrast(uint8_t *p, int64_t pixels, float factor) {
  int64_t sum = 0;
  for (int64_t i = 0; i < pixels; i++) sum += grey(p + 3 * i);
  blend_constant(p, pixels * 3, (int)((double)sum / (double)pixels + 0.5), factor);
}

static void color(uint8_t *p, int64_t pixels, float factor) {
  for (int64_t i = 0; i < pixels; i++) {
    int g = grey(p + 3 * i);
    uint8_t r[3] = {blend(g, p[3 * i], factor), blend(g, p[3 * i + 1], factor),
                    blend(g, p[3 * i + 2], factor)};
    p[3 * i] = r[0], p[3 * i + 1] = r[1], p[3 * i + 2] = r[2];
  }
}

/* ---- with neighbours ---- */

/* One inner row: from the smoothed row to the row itself. The smoothed value is the sum of the 3 x
 * 3 pixels with the centre taken 5 times, divided by 13 and rounded. */
static void sharpen_row(const uint8_t *restrict in, int64_t w, const uint16_t *restrict sum,
                        float factor, uint8_t *restrict out) {
  for (int64_t i = 3; i < (w - 1) * 3; i++) {
    uint16_t s = (uint16_t)(sum[i - 3] + sum[i] + sum[i + 3] + 4 * in[i]);
    out[i] = blend((uint16_t)(2 * s + 13) / 26, in[i], factor);
  }
  for (int c = 0; c < 3; c++) { /* the border is not smoothed, so it stays */
    out[c] = in[c];
    out[(w - 1) * 3 + c] = in[(w - 1) * 3 + c];
  }
}

static ii_status sharpness(ii_augmenter *a, const ii_image *img, float factor, ii_error *err) {
  int64_t w = img->w, h = img->h, n = w * 3;
  if (n > a->sums_capacity) {
    free(a->sums);
    a->sums = malloc((size_t)n * sizeof *a->sums);
    a->sums_capacity = a->sums ? n : 0;
    if (!a->sums) return ii_error_set(err, II_ERR_MEMORY, "no memory to sharpen an image");
  }
  const uint8_t *in = img->data;
  uint8_t *out = a->spare.data;
  uint16_t *restrict sums = a->sums;
  memcpy(out, in, (size_t)n);
  memcpy(out + (h - 1) * n, in + (h - 1) * n, (size_t)n);
  for (int64_t y = 1; y < h - 1; y++) {
    const uint8_t *row = in + y * n;
    for (int64_t i = 0; i < n; i++) sums[i] = (uint16_t)(row[i - n] + row[i] + row[i + n]);
    sharpen_row(row, w, sums, factor, out + y * n);
  }
  return II_OK;
}

/* ---- hue, by way of Pillow's 8-bit hue, saturation and value ---- */

static inline uint8_t to_byte(double v) {
  int i = (int)v;
  return (uint8_t)(i < 0 ? 0 : i > 255 ? 255 : i);
}

static void to_hsv(const uint8_t *p, uint8_t hsv[3]) {
  uint8_t r = p[0], g = p[1], b = p[2];
  uint8_t hi = r > g ? r : g, lo = r < g ? r : g;
  hi = hi > b ? hi : b, lo = lo < b ? lo : b;
  hsv[0] = hsv[1] = 0, hsv[2] = hi;
  if (hi == lo) return;
  float range = (float)(hi - lo);
  float rc = (float)(hi - r) / range, gc = (float)(hi - g) / range, bc = (float)(hi - b) / range;
  float h = r == hi ? bc - gc : g == hi ? (float)(2.0 + rc - bc) : (float)(4.0 + gc - rc);
  h = (float)fmod(h / 6.0 + 1.0, 1.0);
  hsv[0] = to_byte(h * 255.0);
  hsv[1] = to_byte(range / (float)hi * 255.0);
}

static void from_hsv(const uint8_t hsv[3], uint8_t *p) {
  uint8_t v = hsv[2];
  if (hsv[1] == 0) {
    p[0] = p[1] = p[2] = v;
    return;
  }
  double sixth = hsv[0] * 6.0 / 255.0;
  int sector = (int)sixth;
  float f = (float)(sixth - sector), s = (float)(hsv[1] / 255.0);
  uint8_t low = to_byte(round(v * (1.0 - s)));
  uint8_t falling = to_byte(round(v * (1.0 - s * f)));
  uint8_t rising = to_byte(round(v * (1.0 - s * (1.0 - f))));
  const uint8_t rgb[6][3] = {{v, rising, low},  {falling, v, low}, {low, v, rising},
                             {low, falling, v}, {rising, low, v},  {v, low, falling}};
  memcpy(p, rgb[sector % 6], 3);
}

static void hue(uint8_t *p, int64_t pixels, double part) {
  uint8_t shift = (uint8_t)(int)(part * 255.0);
  for (int64_t i = 0; i < pixels; i++, p += 3) {
    uint8_t hsv[3];
    to_hsv(p, hsv);
    hsv[0] = (uint8_t)(hsv[0] + shift);
    from_hsv(hsv, p);
  }
}

/* ---- all of them ---- */

static bool needs_spare(ii_augment_op op) {
  return op == II_AUG_ROTATE || op == II_AUG_SHARPNESS ||
         (op >= II_AUG_SHEAR_X && op <= II_AUG_TRANSLATE_Y);
}

static ii_status with_spare(ii_augmenter *a, ii_augment_op op, double arg, ii_filter filter,
                            const uint8_t fill[3], ii_image *img, ii_error *err) {
  int64_t w = img->w, h = img->h;
  II_TRY(ii_image_reserve(&a->spare, w, h, err));
  uint8_t *out = a->spare.data;
  double m[6] = {1, 0, 0, 0, 1, 0};
  if (op == II_AUG_SHEAR_X) m[1] = arg;
  if (op == II_AUG_SHEAR_Y) m[3] = arg;
  if (op == II_AUG_TRANSLATE_X) m[2] = arg * (double)w;
  if (op == II_AUG_TRANSLATE_Y) m[5] = arg * (double)h;
  if (op == II_AUG_SHARPNESS)
    II_TRY(sharpness(a, img, (float)arg, err));
  else if (op == II_AUG_ROTATE)
    II_TRY(ii_rotate(a->warper, img->data, w, h, arg, filter, fill, out, err));
  else
    II_TRY(ii_warp(a->warper, img->data, w, h, m, filter, fill, out, err));
  ii_image t = *img;
  *img = a->spare, a->spare = t;
  return II_OK;
}

ii_status ii_augment_apply(ii_augmenter *a, ii_augment_op op, double arg, ii_filter filter,
                           const uint8_t fill[3], ii_image *img, ii_error *err) {
  II_ASSERT(img->w > 0 && img->h > 0 && img->w <= 32767 && img->h <= 32767, "%lld x %lld",
            (long long)img->w, (long long)img->h);
  if (needs_spare(op)) return with_spare(a, op, arg, filter, fill, img, err);
  uint8_t *p = img->data;
  int64_t pixels = img->w * img->h, n = pixels * 3;
  switch (op) {
  case II_AUG_AUTO_CONTRAST:
    auto_contrast(p, pixels);
    break;
  case II_AUG_EQUALIZE:
    equalize(p, pixels);
    break;
  case II_AUG_INVERT:
    invert(p, n);
    break;
  case II_AUG_POSTERIZE:
    posterize(p, n, (int)arg);
    break;
  case II_AUG_SOLARIZE:
    solarize(p, n, (int)arg);
    break;
  case II_AUG_SOLARIZE_ADD:
    solarize_add(p, n, (int)arg);
    break;
  case II_AUG_COLOR:
    color(p, pixels, (float)arg);
    break;
  case II_AUG_CONTRAST:
    contrast(p, pixels, (float)arg);
    break;
  case II_AUG_BRIGHTNESS:
    blend_constant(p, n, 0, (float)arg);
    break;
  case II_AUG_HUE:
    hue(p, pixels, arg);
    break;
  default:
    II_ASSERT(false, "operation %d", (int)op);
  }
  return II_OK;
}
