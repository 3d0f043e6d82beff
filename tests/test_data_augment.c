/* RandAugment and colour jitter: every operation against Pillow's results, bit for bit (the cases
 * of golden/augment/ops.txt, made by golden/augment/make_op_cases.py), the notation, and what is
 * drawn against timm's draws. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <math.h>
#include <zlib.h>
#include "data/normalise.h"
#include "data/randaugment.h"
#include "data/warp.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* formulas here are operation by operation */
#endif

#define FOLDER II_TEST_DATA "/golden/augment/"

static const uint8_t fill[3] = {124, 116, 104};
static ii_augmenter *augmenter;

static int setup(void **state) {
  ii_error err = {0};
  return ii_augmenter_new(&augmenter, &err) == II_OK ? 0 : -1;
}

static int teardown(void **state) {
  ii_augmenter_free(augmenter);
  return 0;
}

static void load(const char *name, ii_image *img) {
  char path[512];
  ii_bytes file = {0};
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_decode_options options = {0};
  snprintf(path, sizeof path, FOLDER "ops_%s.png", name);
  if (ii_bytes_read(&file, path, &err) != II_OK) fail_msg("%s", err.text);
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  if (ii_image_decode(d, file.data, file.size, &options, img, &err) != II_OK)
    fail_msg("%s", err.text);
  ii_decoder_free(d);
  ii_bytes_free(&file);
}

/* timm's name of an operation; false: of the set that gets stronger with the magnitude. */
static ii_augment_op op_of(const char *name, bool *increasing) {
  char base[64];
  snprintf(base, sizeof base, "%s", name);
  char *end = strstr(base, "Increasing");
  if (increasing) *increasing = end != NULL;
  if (end) *end = 0;
  end = strstr(base, "Rel");
  if (end) *end = 0;
  for (int i = 0; i < II_AUG_COUNT; i++)
    if (strcmp(ii_augment_op_name(i), base) == 0) return (ii_augment_op)i;
  fail_msg("unknown operation %s", name);
  return II_AUG_COUNT;
}

static void expect(const char *line, const ii_image *img, unsigned long crc) {
  unsigned long got = crc32(0, img->data, (uInt)(img->w * img->h * 3));
  if (got != crc) fail_msg("%s: got crc32 %lu", line, got);
}

static void apply(ii_augment_op op, double arg, ii_filter filter, ii_image *img) {
  ii_error err = {0};
  assert_int_equal(ii_augment_apply(augmenter, op, arg, filter, fill, img, &err), II_OK);
}

static int check_image(const char *line) {
  char name[64];
  int w, h;
  unsigned long crc;
  ii_image img = {0};
  if (sscanf(line, "image %63s %d %d %lu", name, &w, &h, &crc) != 4) return 0;
  load(name, &img);
  assert_true(img.w == w && img.h == h);
  expect(line, &img, crc);
  ii_image_free(&img);
  return 1;
}

static int check_randaug(const char *line) {
  char name[64], op_name[64];
  double magnitude, want;
  int sign;
  bool increasing;
  unsigned long crc;
  ii_image img = {0};
  if (sscanf(line, "randaug %63s %63s %lf %d %lf %lu", name, op_name, &magnitude, &sign, &want,
             &crc) != 6)
    return 0;
  ii_augment_op op = op_of(op_name, &increasing);
  double arg = ii_randaugment_level(op, increasing, magnitude, sign < 0);
  if (arg != want) fail_msg("%s: argument %.17g", line, arg);
  load(name, &img);
  apply(op, arg, II_FILTER_BICUBIC, &img);
  expect(line, &img, crc);
  ii_image_free(&img);
  return 1;
}

static int check_op(const char *line) {
  char name[64], op_name[64], filter[32];
  double arg;
  unsigned long crc;
  ii_image img = {0};
  if (sscanf(line, "op %63s %63s %lf %31s %lu", name, op_name, &arg, filter, &crc) != 5) return 0;
  load(name, &img);
  apply(op_of(op_name, NULL), arg,
        strcmp(filter, "bicubic") == 0 ? II_FILTER_BICUBIC : II_FILTER_BILINEAR, &img);
  expect(line, &img, crc);
  ii_image_free(&img);
  return 1;
}

static int check_jitter(const char *line) {
  char name[64], op_name[64];
  double factor;
  int at = 0, used;
  ii_image img = {0};
  if (sscanf(line, "jitter %63s %n", name, &at) != 1 || at == 0) return 0;
  load(name, &img);
  while (sscanf(line + at, "%63s %lf %n", op_name, &factor, &used) == 2) {
    apply(op_of(op_name, NULL), factor, II_FILTER_BICUBIC, &img);
    at += used;
  }
  expect(line, &img, strtoul(line + at, NULL, 10));
  ii_image_free(&img);
  return 1;
}

static void run(int (*check)(const char *line), int count) {
  FILE *f = fopen(FOLDER "ops.txt", "r");
  char line[512];
  int n = 0;
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = 0;
    n += check(line);
  }
  fclose(f);
  assert_int_equal(n, count);
}

static void test_golden(void **state) {
  run(check_image, 4);
  run(check_randaug, 261);
  run(check_op, 16);
  run(check_jitter, 26);
}

/* Flat, two-coloured, tiny and large images: where divisions by nothing and borders are. */
static void test_edges(void **state) {
  const int64_t shape[][2] = {{1, 1}, {2, 3}, {3, 2}, {1, 50}, {50, 1}, {1030, 3}, {3, 1030}};
  const double args[] = {0.0, 0.3, -0.3, 1.0, 1.9, 4.0, 30.0, -30.0, 90.0, 256.0};
  for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
    for (int op = 0; op < II_AUG_COUNT; op++)
      for (size_t a = 0; a < sizeof args / sizeof *args; a++)
        for (int f = 0; f < 2; f++) {
          ii_image img = {0};
          ii_error err = {0};
          assert_int_equal(ii_image_reserve(&img, shape[s][0], shape[s][1], &err), II_OK);
          int64_t n = img.w * img.h * 3;
          memset(img.data, 77, (size_t)n);
          apply((ii_augment_op)op, args[a], (ii_filter)f, &img);
          assert_true(img.w == shape[s][0] && img.h == shape[s][1]);
          if (op == II_AUG_AUTO_CONTRAST || op == II_AUG_EQUALIZE || op == II_AUG_SHARPNESS ||
              op == II_AUG_COLOR || op == II_AUG_CONTRAST || op == II_AUG_HUE)
            for (int64_t i = 0; i < n; i++) assert_int_equal(img.data[i], 77);
          ii_image_free(&img);
        }
}

static void test_notation(void **state) {
  ii_randaugment r;
  ii_error err = {0};
  assert_int_equal(ii_randaugment_parse("", &r, &err), II_OK);
  assert_int_equal(r.layers, 0);
  assert_int_equal(ii_randaugment_parse("rand", &r, &err), II_OK);
  assert_true(r.layers == 2 && r.magnitude == 10 && r.std == 0 && r.max == 10 && !r.increasing &&
              !r.weighted);
  assert_int_equal(ii_randaugment_parse("rand-m9-mstd0.5-inc1", &r, &err), II_OK);
  assert_true(r.layers == 2 && r.magnitude == 9 && r.std == 0.5 && r.max == 10 && r.increasing &&
              !r.weighted);
  assert_int_equal(ii_randaugment_parse("rand-inc0-n3-w0-mmax20-mstd101-m15", &r, &err), II_OK);
  assert_true(r.layers == 3 && r.magnitude == 15 && isinf(r.std) && r.max == 20 && r.increasing &&
              r.weighted);
  const char *wrong[] = {"augmix",     "random-m9",  "rand-",     "rand-x3",        "rand-m",
                         "rand-m9.5",  "rand-m9-m8", "rand-n0",   "rand-n17",       "rand-w1",
                         "rand-m9x",   "rand--m9",   "rand-mmax", "rand-n14-w0",    "rand-m-9",
                         "rand-mstdx", "original",   "rand-m101", "rand-mstd1e9999"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    ii_error_clear(&err);
    assert_int_equal(ii_randaugment_parse(wrong[i], &r, &err), II_ERR_ARG);
    assert_non_null(strstr(err.text, wrong[i]));
  }
}

/* ---- against the plain formulas --------------------------------------------------------------*/

static double cubic_of(const double p[4], double t) {
  double p2 = -p[0] + p[2], p3 = 2 * (p[0] - p[1]) + p[2] - p[3], p4 = -p[0] + p[1] - p[2] + p[3];
  return p[1] + t * (p2 + t * (p3 + t * p4));
}

static int64_t inside(int64_t v, int64_t n) {
  return v < 0 ? 0 : v >= n ? n - 1 : v;
}

/* Pillow's value of channel c at (sx, sy): double, operation by operation, cut off. */
static uint8_t warped(const uint8_t *in, int64_t w, int64_t h, double sx, double sy, int c,
                      bool bicubic) {
  sx -= 0.5, sy -= 0.5;
  const int64_t x = (int64_t)floor(sx), y = (int64_t)floor(sy);
  const double tx = sx - (double)x, ty = sy - (double)y;
  double rows[4], v;
  for (int r = 0; r < 4; r++) {
    double p[4];
    for (int k = 0; k < 4; k++)
      p[k] = in[(inside(y + r - 1, h) * w + inside(x + k - 1, w)) * 3 + c];
    rows[r] = bicubic ? cubic_of(p, tx) : p[1] + (p[2] - p[1]) * tx;
  }
  v = bicubic ? cubic_of(rows, ty) : rows[1] + (rows[2] - rows[1]) * ty;
  return (uint8_t)(v <= 0 ? 0 : v >= 255 ? 255 : (int)v);
}

static void check_warp(ii_warper *wp, const uint8_t *in, int64_t w, int64_t h, const double m[6],
                       bool bicubic, uint8_t *out) {
  ii_error err = {0};
  assert_int_equal(
      ii_warp(wp, in, w, h, m, bicubic ? II_FILTER_BICUBIC : II_FILTER_BILINEAR, fill, out, &err),
      II_OK);
  for (int64_t y = 0; y < h; y++)
    for (int64_t x = 0; x < w; x++) {
      const double cx = (double)x + 0.5, cy = (double)y + 0.5;
      const double sx = m[0] * cx + m[1] * cy + m[2], sy = m[3] * cx + m[4] * cy + m[5];
      const bool out_of_it = !(sx >= 0 && sx < (double)w && sy >= 0 && sy < (double)h);
      for (int c = 0; c < 3; c++) {
        uint8_t v = out_of_it ? fill[c] : warped(in, w, h, sx, sy, c, bicubic);
        if (out[(y * w + x) * 3 + c] != v)
          fail_msg("%lld x %lld, matrix %g %g %g %g %g %g, bicubic %d: pixel (%lld, %lld)",
                   (long long)w, (long long)h, m[0], m[1], m[2], m[3], m[4], m[5], bicubic,
                   (long long)x, (long long)y);
      }
    }
}

/* All kinds of matrices, with fractions that are whole, round and neither; noise, smooth pictures
 * and flat ones, where whole numbers come out and the last bit decides. */
static void test_warp_formula(void **state) {
  static uint8_t in[70 * 60 * 3], out[70 * 60 * 3];
  static const double parts[] = {0, 1, -2, 0.5, 0.25, -0.4, 0.1, 0.27131, -0.3, 1e-9, 12.8, 40};
  ii_rng rng = ii_rng_make(9, II_RNG_TEST, 0, 0);
  ii_error err = {0};
  ii_warper *wp;
  assert_int_equal(ii_warper_new(&wp, &err), II_OK);
  for (int i = 0; i < 2100; i++) {
    const int64_t w = 1 + (int64_t)ii_rng_below(&rng, 70), h = 1 + (int64_t)ii_rng_below(&rng, 60);
    const int kind = i % 4, shape = i / 4 % 7;
    for (int64_t k = 0; k < w * h * 3; k++) {
      const int64_t x = k / 3 % w, y = k / 3 / w;
      in[k] = (uint8_t)(kind == 0   ? ii_rng_u32(&rng)
                        : kind == 1 ? 3 * x + 2 * y
                        : kind == 2 ? (x / 9 + y / 7) % 2 * 255
                                    : 100 + (ii_rng_u32(&rng) & 1));
    }
    double a = parts[ii_rng_below(&rng, 12)], b = parts[ii_rng_below(&rng, 12)];
    if (i % 3 == 0) a = ii_rng_range(&rng, -0.5, 0.5);
    double m[6] = {1, 0, 0, 0, 1, 0};
    if (shape == 0) m[1] = a;
    if (shape == 1) m[3] = a;
    if (shape == 2) m[2] = a;
    if (shape == 3) m[5] = a;
    if (shape == 4) m[0] = m[4] = cos(a), m[1] = sin(a), m[3] = -sin(a), m[2] = b, m[5] = a;
    if (shape == 6) { /* one row lies on the pixels, but for the last bits of the positions */
      m[1] = (double)(1 + i % 9) / 10;
      m[2] = (double)ii_rng_below(&rng, 20) - 10 -
             m[1] * ((double)ii_rng_below(&rng, (uint32_t)h) + 0.5);
    }
    if (shape == 5) m[0] = 0.7, m[1] = a, m[2] = b, m[3] = b / 40, m[4] = 1.3, m[5] = -a;
    check_warp(wp, in, w, h, m, i % 2, out);
  }
  ii_warper_free(wp);
}

/* Normalised values are those of the formula for every byte, channel and number of pixels. */
static void test_normalise(void **state) {
  static const double means[][3] = {{0.485, 0.456, 0.406}, {0.5, 0.5, 0.5}, {0, 0.1, 1.0 / 3}};
  static const double stds[][3] = {{0.229, 0.224, 0.225}, {0.5, 0.5, 0.5}, {1, 1e-3, 7.7}};
  static uint8_t rgb[300 * 3];
  static float out[300 * 3 + 1];
  ii_normaliser n = {0};
  for (int i = 0; i < 900; i++) rgb[i] = (uint8_t)(i / 3 + i % 3 * 85);
  for (int k = 0; k < 3; k++)
    for (int64_t pixels = 0; pixels <= 300; pixels += pixels < 40 ? 1 : 13) {
      ii_normaliser_set(&n, means[k], stds[k]);
      out[pixels * 3] = 77;
      ii_normalise(&n, rgb, pixels, out);
      assert_true(out[pixels * 3] == 77);
      for (int64_t i = 0; i < pixels * 3; i++) {
        volatile float part = (float)rgb[i] / 255.0f, less = part - (float)means[k][i % 3];
        assert_true(out[i] == less / (float)stds[k][i % 3]);
      }
    }
}

/* ---- what is drawn ---- */

typedef struct {
  int64_t count, negative;
  double sum, squares;
} draws;

static void add(draws *d, double v) {
  d->count++, d->negative += v < 0;
  d->sum += v, d->squares += v * v;
}

static double deviation(const draws *d) {
  double mean = d->sum / (double)d->count;
  return sqrt(fmax(0, d->squares / (double)d->count - mean * mean));
}

enum { IMAGES = 40000 };

static int64_t draw_all(const char *text, draws by_op[II_AUG_COUNT]) {
  ii_randaugment r;
  ii_error err = {0};
  int64_t n = 0;
  assert_int_equal(ii_randaugment_parse(text, &r, &err), II_OK);
  for (int i = 0; i < IMAGES; i++) {
    ii_rng rng = ii_rng_make(3, II_RNG_AUGMENT, 1, (uint64_t)i);
    ii_augment_step steps[II_AUGMENT_STEPS];
    int count = ii_randaugment_draw(&r, &rng, steps);
    assert_true(count >= 0 && count <= r.layers);
    for (int k = 0; k < count; k++) add(&by_op[steps[k].op], steps[k].arg);
    n += count;
  }
  return n;
}

static draws ours[II_AUG_COUNT];
static double times; /* our images / timm's */

/* Counts, means and deviations, each within 4.5 standard errors of timm's own sample. */
static int check_drawn(const char *line) {
  char name[64];
  long long count, negative;
  draws ref;
  if (sscanf(line, "drawn %63s %lld %lf %lf %lld", name, &count, &ref.sum, &ref.squares,
             &negative) != 5)
    return 0;
  ref.count = count, ref.negative = negative;
  const draws *d = &ours[op_of(name, NULL)];
  double n = (double)count, sd = deviation(&ref);
  assert_true(fabs((double)d->count / times - n) < 4.5 * sqrt(n));
  assert_true(fabs(d->sum / (double)d->count - ref.sum / n) <= 4.5 * sd / sqrt(n) + 1e-6);
  /* posterize: nearly always 1, timm's sample has two zeros */
  double part = strncmp(name, "Posterize", 9) == 0 ? 0.6 : 0.2;
  assert_true(fabs(deviation(d) - sd) <= part * sd + 1e-6);
  assert_true(fabs((double)d->negative / times - (double)negative) <= 4.5 * sqrt((double)negative));
  return 1;
}

static void test_draws(void **state) {
  memset(ours, 0, sizeof ours);
  times = IMAGES / 2000.0;
  int64_t n = draw_all("rand-m9-mstd0.5-inc1", ours);
  assert_true(llabs(n - IMAGES) < 600);
  run(check_drawn, 15);
  /* every operation as often as every other one: 4.5 standard errors */
  for (int i = 0; i < 15; i++)
    assert_true(fabs((double)ours[i].count - IMAGES / 15.0) < 4.5 * sqrt(IMAGES / 15.0));
  /* magnitudes: N(9, 1/2) cut off at 10, so that the rotation's mean size is 26.97 degrees, and
   * about 2.3 % are 10: black images by posterize */
  double size = sqrt(ours[II_AUG_ROTATE].squares / (double)ours[II_AUG_ROTATE].count);
  assert_true(fabs(size - 27.0) < 0.15);
  double black = 1 - ours[II_AUG_POSTERIZE].sum / (double)ours[II_AUG_POSTERIZE].count;
  assert_true(black > 0.013 && black < 0.035);
}

/* Other notations: uniform magnitudes, the set that is not increasing, weights. */
static void test_draws_general(void **state) {
  draws d[II_AUG_COUNT] = {0};
  draw_all("rand-m8-mstd101", d);
  double n = (double)d[II_AUG_SHARPNESS].count;
  /* factor 0.1 + 0.18 m with m ~ U(0, 8): mean 0.82, deviation 1.44 / sqrt(12) */
  assert_true(fabs(d[II_AUG_SHARPNESS].sum / n - 0.82) < 4.5 * 0.4157 / sqrt(n));
  assert_true(fabs(deviation(&d[II_AUG_SHARPNESS]) - 0.4157) < 0.02);
  memset(d, 0, sizeof d);
  int64_t all = draw_all("rand-m9-w0-n13", d);
  assert_true(d[II_AUG_POSTERIZE].count == 0 && d[II_AUG_INVERT].count == 0);
  /* 13 of 13 without repetition: each in every image, applied with probability 1/2 */
  assert_true(llabs(all - 13 * IMAGES / 2) < 2200);
  for (int i = 0; i < 15; i++)
    if (i != II_AUG_POSTERIZE && i != II_AUG_INVERT)
      assert_true(llabs(d[i].count - IMAGES / 2) < 450);
  memset(d, 0, sizeof d);
  draw_all("rand-m9-w0-n1", d);
  assert_true(fabs((double)d[II_AUG_ROTATE].count - 0.15 * IMAGES) < 4.5 * sqrt(0.15 * IMAGES));
  assert_true(fabs((double)d[II_AUG_SHEAR_Y].count - 0.1 * IMAGES) < 4.5 * sqrt(0.1 * IMAGES));
  assert_true(fabs((double)d[II_AUG_COLOR].count - 0.0125 * IMAGES) < 4.5 * sqrt(0.0125 * IMAGES));
}

static void test_jitter(void **state) {
  const double strength[4] = {0.4, 0.2, 0, 0.1};
  draws d[II_AUG_COUNT] = {0};
  int64_t first[II_AUG_COUNT] = {0};
  for (int i = 0; i < IMAGES; i++) {
    ii_rng rng = ii_rng_make(4, II_RNG_AUGMENT, 1, (uint64_t)i);
    ii_augment_step steps[II_AUGMENT_STEPS];
    assert_int_equal(ii_jitter_draw(strength, &rng, steps), 3);
    first[steps[0].op]++;
    for (int k = 0; k < 3; k++) add(&d[steps[k].op], steps[k].arg);
  }
  const struct {
    ii_augment_op op;
    double mean, half;
  } want[] = {{II_AUG_BRIGHTNESS, 1, 0.4}, {II_AUG_CONTRAST, 1, 0.2}, {II_AUG_HUE, 0, 0.1}};
  for (int i = 0; i < 3; i++) {
    const draws *v = &d[want[i].op];
    double sd = want[i].half / sqrt(3);
    assert_int_equal(v->count, IMAGES);
    assert_true(fabs(v->sum / IMAGES - want[i].mean) < 4.5 * sd / sqrt(IMAGES));
    assert_true(fabs(deviation(v) - sd) < 0.02 * sd);
    assert_true(llabs(first[want[i].op] - IMAGES / 3) < 450);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_golden),        cmocka_unit_test(test_edges),
      cmocka_unit_test(test_notation),      cmocka_unit_test(test_draws),
      cmocka_unit_test(test_draws_general), cmocka_unit_test(test_jitter),
      cmocka_unit_test(test_warp_formula),  cmocka_unit_test(test_normalise),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
