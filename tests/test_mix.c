/* Mixup, CutMix, soft targets and random erasing: bit for bit what timm made of the same numbers
 * (golden/augment/mix.txt, made by make_mix_cases.py), drawn with the same distributions, and the
 * same on every engine this machine has. Statistical bounds are five standard errors of fixed
 * seeds: they fail by bugs, not by chance. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <zlib.h>
#include "autograd/kernel_call.h"
#include "autograd/rng.h"
#include "autograd/tape.h"
#include "kernels/device.h"
#include "op_guard.h"
#include "test_files.h"
#include "train/mix.h"

#define FOLDER "golden/augment/"

enum { DRAWS = 20000, QUANTILES = 19 };

static ii_ctx *open_on(ii_device device, ii_dtype real) {
  ii_error err = {0};
  ii_ctx *c = ii_ctx_open(
      &(ii_ctx_options){.device = device, .threads = 2, .real = real, .compute = real}, &err);
  if (!c) fail_msg("%s", err.text);
  return c;
}

static int engines(void) {
  return ii_cuda_device_count() > 0 ? 2 : 1;
}

static void done(ii_ctx *c) {
  if (!ii_ok(c)) fail_msg("%s", c->err.text);
  ii_ctx_close(c);
}

/* A struct in the memory of the context's engine. */
static const void *on_device(ii_ctx *c, const void *p, size_t bytes) {
  return ii_data(ii_tensor_from_host(c, II_I32, 1, (int64_t[]){(int64_t)(bytes / 4)}, p));
}

static ii_mixture mixture_of(const ii_mix *m) {
  ii_mixture x = ii_mixture_of(m->lam, m->cutmix);
  x.y0 = m->y0, x.y1 = m->y1, x.x0 = m->x0, x.x1 = m->x1;
  return x;
}

static ii_config official(void) {
  ii_config cfg;
  ii_config_default(&cfg);
  cfg.data.mixup = 0.8, cfg.data.cutmix = 1.0;
  cfg.data.erase_prob = 0.25;
  cfg.train.label_smoothing = 0.1;
  return cfg;
}

/* ---- Reference data ---- */

static void read_floats(const char *name, float *v, size_t n) {
  char path[512];
  snprintf(path, sizeof path, FOLDER "%s", name);
  FILE *f = open_test_file(path);
  if (!f || fread(v, sizeof *v, n, f) != n || fgetc(f) != EOF) fail_msg("%s", path);
  fclose(f);
}

/* Calls f for each line of mix.txt that begins with word; there must be `count`. */
static void for_lines(const char *word, int count, void (*f)(const char *line)) {
  char line[1024];
  FILE *file = open_test_file(FOLDER "mix.txt");
  if (!file) fail_msg(FOLDER "mix.txt");
  for (int n = 0;; n++) {
    do
      if (!fgets(line, sizeof line, file)) {
        assert_int_equal(n, count);
        fclose(file);
        return;
      }
    while (strncmp(line, word, strlen(word)) != 0);
    f(line);
  }
}

/* a[N,C,P] <-> b[N,P,C]. */
static void swap_layout(const float *a, float *b, int64_t N, int64_t C, int64_t P) {
  for (int64_t n = 0; n < N; n++)
    for (int64_t c = 0; c < C; c++)
      for (int64_t p = 0; p < P; p++) b[(n * P + p) * C + c] = a[(n * C + c) * P + p];
}

enum { N = 4, H = 18, W = 23, C = 3, CLASSES = 7, SIZE = N * H * W * C };
static const int32_t labels[N] = {6, 6, 0, 6};

static void labels_are(const char *line) {
  char want[64];
  snprintf(want, sizeof want, "labels %d %d %d %d\n", labels[0], labels[1], labels[2], labels[3]);
  assert_string_equal(line, want);
}

static void expect_crc(const char *line, const char *what, const void *p, size_t bytes,
                       unsigned long want) {
  const unsigned long got = crc32(0, p, (uInt)bytes);
  if (got != want) fail_msg("%s: the %s differ (crc32 %lu)", line, what, got);
}

static void mix_like_timm(ii_device device, const char *line, const ii_mix *m,
                          unsigned long crc_images, unsigned long crc_targets) {
  static float nchw[SIZE], nhwc[SIZE], targets[N * CLASSES];
  ii_ctx *c = open_on(device, II_F32);
  read_floats("mix_images.f32", nchw, SIZE);
  swap_layout(nchw, nhwc, N, C, H * W);
  ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){N, H, W, C}, nhwc);
  ii_tensor *l = ii_tensor_from_host(c, II_I32, 1, (int64_t[]){N}, labels);
  ii_tensor *t = ii_tensor_new(c, II_F32, 2, (int64_t[]){N, CLASSES});
  ii_mix_batch_args a = {.real = II_F32, .N = N, .H = H, .W = W, .C = C, .x = ii_data(x)};
  const ii_mixture mix = mixture_of(m);
  a.mix = on_device(c, &mix, sizeof mix);
  ii_mix_targets_args b = {.real = II_F32, .N = N, .C = CLASSES, .smoothing = 0.1};
  b.mix = a.mix;
  b.labels = ii_data(l), b.targets = ii_data(t);
  ii_run_mix_batch(c, &a);
  ii_run_mix_targets(c, &b);
  ii_tensor_read(c, x, nhwc);
  ii_tensor_read(c, t, targets);
  swap_layout(nhwc, nchw, N, H * W, C);
  expect_crc(line, "images", nchw, sizeof nchw, crc_images);
  expect_crc(line, "targets", targets, sizeof targets, crc_targets);
  done(c);
}

static void check_mix(const char *line) {
  ii_mix m = {.lam = 1}, drawn = {.lam = 1};
  double lam_drawn;
  long long cy, cx, y0, y1, x0, x1;
  int cutmix;
  unsigned long images, targets;
  assert_int_equal(sscanf(line, "mix %*s %d %lf %lld %lld %lld %lld %lld %lld %lf %lu %lu", &cutmix,
                          &lam_drawn, &cy, &cx, &y0, &y1, &x0, &x1, &m.lam, &images, &targets),
                   11);
  m.cutmix = cutmix, m.y0 = y0, m.y1 = y1, m.x0 = x0, m.x1 = x1;
  if (cutmix) {
    ii_mix_box(&drawn, lam_drawn, H, W, cy, cx);
    if (drawn.y0 != y0 || drawn.y1 != y1 || drawn.x0 != x0 || drawn.x1 != x1)
      fail_msg("%s: the box is %lld %lld %lld %lld", line, (long long)drawn.y0, (long long)drawn.y1,
               (long long)drawn.x0, (long long)drawn.x1);
    assert_true(drawn.lam == m.lam);
  }
  for (int device = 0; device < engines(); device++)
    mix_like_timm((ii_device)device, line, &m, images, targets);
}

static void mixtures_of_timm(void **state) {
  for_lines("labels", 1, labels_are);
  for_lines("mix ", 8, check_mix);
}

static void check_erase(const char *line) {
  enum { EH = 33, EW = 41 };
  static float chw[3 * EH * EW], hwc[3 * EH * EW];
  ii_erase_rect r = {0};
  unsigned long crc;
  assert_int_equal(
      sscanf(line, "erase const %d %d %d %d %lu", &r.top, &r.left, &r.height, &r.width, &crc), 5);
  for (int device = 0; device < engines(); device++) {
    ii_ctx *c = open_on((ii_device)device, II_F32);
    read_floats("erase_input.f32", chw, 3 * EH * EW);
    swap_layout(chw, hwc, 1, 3, EH * EW);
    ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){1, EH, EW, 3}, hwc);
    ii_erase_args a = {.real = II_F32, .N = 1, .H = EH, .W = EW, .C = 3, .x = ii_data(x)};
    a.mode = II_ERASE_CONST, a.most = 1, a.count = on_device(c, &(int32_t){1}, 4);
    a.rects = on_device(c, &r, sizeof r);
    ii_run_erase(c, &a);
    ii_tensor_read(c, x, hwc);
    swap_layout(hwc, chw, 1, EH * EW, 3);
    expect_crc(line, "images", chw, sizeof chw, crc);
    done(c);
  }
}

static void erasing_of_timm(void **state) {
  for_lines("erase ", 1, check_erase);
}

/* ---- Distributions ---- */

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Our draws v[n], sorted here, against the quantiles of timm's in mix.txt: about 5 i % of ours lie
 * below timm's quantile number i, to within the errors of both samples. */
static void same_distribution(const char *name, double *v, int64_t n) {
  char line[1024], head[64];
  FILE *file = open_test_file(FOLDER "mix.txt");
  assert_non_null(file);
  const int length = snprintf(head, sizeof head, "quantiles %s ", name);
  do assert_non_null(fgets(line, sizeof line, file));
  while (strncmp(line, head, (size_t)length) != 0);
  fclose(file);
  char *at = line + length;
  const double samples = strtod(at, &at);
  qsort(v, (size_t)n, sizeof *v, ascending);
  for (int i = 1; i <= QUANTILES; i++) {
    const double q = strtod(at, &at), p = 0.05 * i;
    int64_t below = 0, upto = 0;
    for (int64_t k = 0; k < n; k++) below += v[k] < q, upto += v[k] <= q;
    const double bound = 5 * sqrt(p * (1 - p) * (1 / samples + 1 / (double)n)) + 1e-4;
    if ((double)below / (double)n > p + bound || (double)upto / (double)n < p - bound)
      fail_msg("%s: %.3f to %.3f of the draws are below %g, timm's %g quantile", name,
               (double)below / (double)n, (double)upto / (double)n, q, p);
  }
}

/* Mean and variance of n numbers between 0 and 1 (or of as wide a range). */
static void has_moments(const char *what, const double *v, int64_t n, double mean,
                        double variance) {
  double sum = 0, squares = 0, count = (double)n;
  for (int64_t i = 0; i < n; i++) sum += v[i];
  for (int64_t i = 0; i < n; i++) squares += (v[i] - mean) * (v[i] - mean);
  if (!(fabs(sum / count - mean) <= 5 * sqrt(variance / count)) ||
      !(fabs(squares / count - variance) <= 5 * variance * sqrt(2 / count)))
    fail_msg("%s: mean %g, not %g, or variance %g, not %g", what, sum / count, mean,
             squares / count, variance);
}

static void near_share(const char *what, double count, double n, double share) {
  const double bound = 5 * sqrt(share * (1 - share) / n);
  if (!(fabs(count / n - share) <= bound)) fail_msg("%s: %g, not %g", what, count / n, share);
}

static void shares_and_boxes(void **state) {
  static double mixup[DRAWS], cutmix[DRAWS];
  ii_config cfg = official();
  int64_t blends = 0, boxes = 0;
  double centre = 0;
  for (int64_t i = 0; i < DRAWS; i++) {
    const ii_mix m = ii_mix_draw(&cfg, i / 100, i % 100, 2000, 3000);
    if (!m.cutmix) {
      mixup[blends++] = m.lam;
      continue;
    }
    /* lam before the correction, from a box that is not cut off */
    const double side = (double)(m.y1 - m.y0) / 2000, area = side * (double)(m.x1 - m.x0) / 3000;
    assert_true(m.y0 >= 0 && m.y0 <= m.y1 && m.y1 <= 2000);
    assert_true(m.x0 >= 0 && m.x0 <= m.x1 && m.x1 <= 3000);
    assert_true(fabs(m.lam - (1 - area)) < 1e-12);
    centre += m.y0 == 0 || m.y1 == 2000 ? 0.5 : (double)(m.y0 + m.y1) / 4000;
    cutmix[boxes++] = m.lam;
  }
  near_share("CutMix batches", (double)boxes, DRAWS, 0.5);
  near_share("centres of boxes", centre, (double)boxes, 0.5);
  same_distribution("mixup", mixup, blends);
  has_moments("shares of mixup", mixup, blends, 0.5, 1 / (4 * (2 * 0.8 + 1))); /* Beta(a, a) */
  /* The drawn share of CutMix is uniform. Of a box of side s, what lies inside has side
   * s - s^2/4 on average in each direction, so 1 - lam is (s - s^2/4)^2 on average, s^2 uniform. */
  double left = 0;
  for (int64_t i = 0; i < boxes; i++) left += 1 - cutmix[i];
  const double mean = 1.0 / 2 - 1.0 / 5 + 1.0 / 48; /* E s^2 - E s^3/2 + E s^4/16 */
  assert_true(fabs(left / (double)boxes - mean) < 5 * 0.25 / sqrt((double)boxes));
}

/* Boxes that cannot be cut off show the share that was drawn for CutMix. */
static void cutmix_share(void **state) {
  static double drawn[DRAWS];
  ii_config cfg = official();
  int64_t n = 0;
  for (int64_t i = 0; n < DRAWS / 4; i++) {
    /* the same stream and order of draws as ii_mix_draw */
    const ii_mix m = ii_mix_draw(&cfg, 7, i, 1 << 20, 1);
    ii_rng r = ii_rng_make((uint64_t)cfg.train.seed, II_RNG_MIX, 7, (uint64_t)i);
    ii_rng_uniform(&r), ii_rng_uniform(&r);
    if (m.cutmix) drawn[n++] = ii_rng_beta(&r, 1, 1);
  }
  same_distribution("cutmix", drawn, n);
  has_moments("shares of CutMix", drawn, n, 0.5, 1.0 / 12);
}

static void switches(void **state) {
  ii_config cfg = official();
  int64_t mixed = 0;
  cfg.data.mix_prob = 0.3;
  for (int64_t i = 0; i < DRAWS; i++) mixed += ii_mix_draw(&cfg, 0, i, 64, 64).lam != 1;
  /* a box may be empty: lam 1 for about 1 in 1000 of the CutMix draws */
  assert_true(fabs((double)mixed / DRAWS - 0.3) < 5 * sqrt(0.21 / DRAWS) + 0.001);
  cfg.data.mix_prob = 1;
  cfg.data.cutmix = 0;
  for (int64_t i = 0; i < 200; i++) assert_false(ii_mix_draw(&cfg, 0, i, 64, 64).cutmix);
  cfg.data.cutmix = 1, cfg.data.mixup = 0;
  for (int64_t i = 0; i < 200; i++) assert_true(ii_mix_draw(&cfg, 0, i, 64, 64).cutmix);
  assert_true(ii_mix_wanted(&cfg));
  cfg.data.cutmix = 0;
  assert_false(ii_mix_wanted(&cfg));
  assert_true(ii_mix_draw(&cfg, 0, 0, 64, 64).lam == 1);
  cfg = official();
  const ii_mix m = ii_mix_draw(&cfg, 3, 4, 64, 64), same = ii_mix_draw(&cfg, 3, 4, 64, 64);
  assert_memory_equal(&m, &same, sizeof m);
  assert_true(ii_mix_draw(&cfg, 4, 4, 64, 64).lam != m.lam);
  assert_true(ii_mix_draw(&cfg, 3, 5, 64, 64).lam != m.lam);
  cfg.train.seed = 1;
  assert_true(ii_mix_draw(&cfg, 3, 4, 64, 64).lam != m.lam);
}

static void rectangles(void **state) {
  static double v[4][DRAWS], area[DRAWS], shape[DRAWS];
  ii_erase_rect r[II_ERASE_MAX];
  ii_config cfg = official();
  int64_t n = 0;
  for (int64_t i = 0; i < DRAWS; i++) {
    const int64_t count = ii_erase_draw(&cfg, 2, i, 5, 224, 224, r);
    assert_true(count <= 1);
    if (!count) continue;
    assert_int_equal(r[0].image, 5);
    v[0][n] = r[0].top, v[1][n] = r[0].left, v[2][n] = r[0].height, v[3][n] = r[0].width;
    /* the area is uniform, and so is the logarithm of height/width: both scaled to [0, 1] here;
     * only the few that do not fit, at the ends, are missing */
    area[n] = (v[2][n] * v[3][n] / (224 * 224) - 0.02) / (1.0 / 3 - 0.02);
    shape[n] = 0.5 + log(v[2][n] / v[3][n]) / (2 * log(1 / 0.3));
    assert_true(area[n] > -0.01 && area[n] < 1.01 && shape[n] > -0.02 && shape[n] < 1.02);
    n++;
  }
  near_share("erased images", (double)n, DRAWS, 0.25);
  same_distribution("top", v[0], n);
  same_distribution("left", v[1], n);
  same_distribution("height", v[2], n);
  same_distribution("width", v[3], n);
  has_moments("areas of rectangles", area, n, 0.5, 1.0 / 12);
  has_moments("shapes of rectangles", shape, n, 0.5, 1.0 / 12);
  cfg.data.erase_prob = 0;
  for (int64_t i = 0; i < 100; i++) assert_int_equal(ii_erase_draw(&cfg, 0, i, 0, 224, 224, r), 0);
}

/* Several rectangles share the area; each has its own noise; none touches the border on both
 * sides. */
static void many_rectangles(void **state) {
  ii_erase_rect r[II_ERASE_MAX];
  ii_config cfg = official();
  int64_t seen[5] = {0};
  cfg.data.erase_prob = 1, cfg.data.erase_count = 4;
  for (int64_t i = 0; i < 4000; i++) {
    const int64_t n = ii_erase_draw(&cfg, 0, i, 0, 32, 40, r);
    double area = 0;
    seen[n]++;
    for (int64_t k = 0; k < n; k++) {
      assert_true(r[k].height < 32 && r[k].width < 40 && r[k].top >= 0 && r[k].left >= 0);
      assert_true(r[k].top + r[k].height <= 32 && r[k].left + r[k].width <= 40);
      for (int64_t j = 0; j < k; j++) assert_int_not_equal(r[j].part, r[k].part);
      assert_int_not_equal(r[k].part, 0);
      area += r[k].height * r[k].width;
    }
    assert_true(area < 1.2 * 32 * 40 / 3.0); /* sides are rounded */
  }
  for (int n = 1; n <= 4; n++) near_share("rectangles", (double)seen[n], 4000, 0.25);
}

/* ---- Erasing ---- */

enum { EN = 6, ES = 40, EC = 3, ESIZE = EN * ES * ES * EC };

/* Sample 100 + n at place n (or at place EN-1-n), erased; from an image of 1000 everywhere. */
static void erase_all(ii_device device, const ii_config *cfg, int64_t epoch, bool reversed,
                      float *out) {
  int64_t samples[EN];
  ii_config only = *cfg;
  only.data.mixup = only.data.cutmix = 0;
  ii_ctx *c = open_on(device, II_F32);
  for (int64_t i = 0; i < ESIZE; i++) out[i] = 1000;
  for (int64_t n = 0; n < EN; n++) samples[n] = 100 + (reversed ? EN - 1 - n : n);
  ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){EN, ES, ES, EC}, out);
  ii_mixer m;
  assert_int_equal(ii_mixer_init(&m, c, &only, EN, ES, ES), II_OK);
  ii_mixer_draw(&m, 0, epoch, 0, samples, EN);
  ii_mixer_apply(&m, x);
  ii_tensor_read(c, x, out);
  ii_mixer_destroy(&m);
  done(c);
}

static void noise(void **state) {
  static float a[ESIZE], b[ESIZE];
  ii_config cfg = official();
  cfg.data.erase_prob = 1;
  double sum = 0, squares = 0, fourths = 0, pairs = 0;
  int64_t n = 0;
  for (int64_t epoch = 0; epoch < 20; epoch++) {
    erase_all(II_CPU, &cfg, epoch, false, a);
    for (int64_t i = 0; i < ESIZE; i++) {
      if (a[i] == 1000) continue;
      const double z = a[i];
      n++, sum += z, squares += z * z, fourths += z * z * z * z;
      if (i + 1 < ESIZE && a[i + 1] != 1000) pairs += z * (double)a[i + 1];
    }
  }
  const double count = (double)n, error = 5 / sqrt(count);
  assert_true(n > 20000);
  assert_true(fabs(sum / count) < error);
  assert_true(fabs(squares / count - 1) < error * sqrt(2));
  assert_true(fabs(fourths / count - 3) < error * sqrt(96));
  assert_true(fabs(pairs / count) < error);
  /* a sample's rectangle and noise do not depend on its place in the batch */
  erase_all(II_CPU, &cfg, 0, false, a);
  erase_all(II_CPU, &cfg, 0, true, b);
  for (int64_t i = 0; i < EN; i++)
    assert_memory_equal(a + i * ES * ES * EC, b + (EN - 1 - i) * ES * ES * EC,
                        ES * ES * EC * sizeof *a);
  assert_memory_not_equal(a, a + ES * ES * EC, ES * ES * EC * sizeof *a);
  erase_all(II_CPU, &cfg, 1, false, b);
  assert_memory_not_equal(a, b, sizeof a);
}

/* Only whole rectangles change; with `rand` each channel of a rectangle has one value. */
static void modes(void **state) {
  static float x[ESIZE];
  ii_config cfg = official();
  ii_erase_rect r[II_ERASE_MAX];
  cfg.data.erase_prob = 0.7;
  for (int mode = 0; mode < 3; mode++) {
    cfg.data.erase_mode = mode;
    for (int device = 0; device < engines(); device++) {
      erase_all((ii_device)device, &cfg, 0, false, x);
      for (int64_t n = 0; n < EN; n++) {
        const float *image = x + n * ES * ES * EC;
        if (!ii_erase_draw(&cfg, 0, 100 + n, 0, ES, ES, r)) r->height = r->width = 0;
        for (int64_t i = 0; i < ES * ES * EC; i++) {
          const int64_t h = i / EC / ES - r->top, w = i / EC % ES - r->left;
          const bool inside = h >= 0 && h < r->height && w >= 0 && w < r->width;
          assert_true(inside ? fabsf(image[i]) < 10 : image[i] == 1000);
          if (inside && mode == II_ERASE_CONST) assert_true(image[i] == 0);
          if (inside && mode == II_ERASE_RAND)
            assert_true(image[i] == image[((int64_t)r->top * ES + r->left) * EC + i % EC]);
        }
      }
    }
  }
}

static void same_noise_on_every_engine(void **state) {
  static float a[ESIZE], b[ESIZE];
  ii_config cfg = official();
  cfg.data.erase_prob = 0.8, cfg.data.erase_count = 3;
  if (engines() == 1) skip(); /* nothing to compare with */
  for (int mode = 0; mode < 3; mode++) {
    cfg.data.erase_mode = mode;
    erase_all(II_CPU, &cfg, 4, false, a);
    erase_all(II_CUDA, &cfg, 4, false, b);
    for (int64_t i = 0; i < ESIZE; i++)
      if (!(fabsf(a[i] - b[i]) <= 2e-6f)) fail_msg("element %lld", (long long)i);
  }
}

/* On a GPU, which cannot stop there, they are left out, and so are rectangles beyond the room. */
static void rectangles_outside_are_refused(void **state) {
  static const ii_erase_rect bad[] = {{.image = 2, .height = 1, .width = 1},
                                      {.image = -1, .height = 1, .width = 1},
                                      {.top = 3, .height = 6, .width = 1},
                                      {.left = 8, .height = 1, .width = 1},
                                      {.top = -1, .height = 1, .width = 1}};
  float ones[2 * 8 * 8], got[2 * 8 * 8];
  for (int i = 0; i < 2 * 8 * 8; i++) ones[i] = 1;
  for (int device = 0; device < engines(); device++)
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
      const bool outside = i < sizeof bad / sizeof *bad;
      const ii_erase_rect good[] = {{.height = 1, .width = 1},
                                    {.image = 1, .height = 8, .width = 8}};
      ii_ctx *c = open_on((ii_device)device, II_F32);
      ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){2, 8, 8, 1}, ones);
      ii_erase_args a = {.real = II_F32, .N = 2, .H = 8, .W = 8, .C = 1, .x = ii_data(x)};
      a.mode = II_ERASE_CONST, a.most = 1;
      a.count = on_device(c, &(int32_t){outside ? 1 : 2}, 4);
      a.rects = outside ? on_device(c, &bad[i], sizeof *bad) : on_device(c, good, sizeof good);
      ii_run_erase(c, &a);
      if (device == II_CUDA) {
        ii_tensor_read(c, x, got);
        if (!outside) ones[0] = 0;
        assert_memory_equal(got, ones, sizeof got);
        ones[0] = 1;
        assert_true(ii_ok(c));
      } else {
        assert_false(ii_ok(c));
        assert_non_null(strstr(c->err.text, outside ? "rectangle 0" : "room for 1"));
      }
      ii_ctx_close(c);
    }
}

/* Ragged and empty sizes, through the guards: nothing outside is written, all of the targets is,
 * odd addresses give the same bits. The results are compared between the engines. */
static void guarded_sizes(void **state) {
  static const int64_t sizes[][4] = {{1, 3, 3, 3}, {2, 1, 1, 1},   {4, 8, 8, 4}, {5, 7, 5, 3},
                                     {7, 3, 9, 5}, {2, 33, 31, 3}, {0, 4, 4, 3}, {4, 0, 3, 3}};
  static const ii_erase_rect all[] = {{0, 0, 0, 2, 3, 1, {{1, 2}, {3, 4}}},
                                      {0, 1, 1, 1, 2, 2, {{1, 2}, {3, 4}}},
                                      {1, 2, 0, 1, 0, 1, {{1, 2}, {4, 4}}},
                                      {3, 0, 0, 7, 5, 1, {{1, 2}, {5, 4}}}};
  static double x[2][8192], t[2][1024];
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (int cutmix = 0; cutmix < 2; cutmix++)
      for (int device = 0; device < engines(); device++) {
        const int64_t *s = sizes[i], n = s[0] * s[1] * s[2] * s[3], classes = 7 + 300 * (i == 5);
        const ii_dtype real = i % 2 ? II_F64 : II_F32;
        ii_ctx *c = open_on((ii_device)device, real);
        int32_t own[8];
        for (int k = 0; k < 8; k++) own[k] = 6 - k % 7;
        for (int64_t k = 0; k < n; k++) x[device][k] = (double)(k * 37 % 101) / 8;
        ii_tensor *images = ii_tensor_new(c, real, 4, s);
        ii_tensor *l = ii_tensor_from_host(c, II_I32, 1, s, own);
        ii_tensor *targets = ii_tensor_new(c, real, 2, (int64_t[]){s[0], classes});
        ii_tensor_write_f64(c, images, x[device]);
        ii_mix_batch_args a = {.real = real, .N = s[0], .H = s[1], .W = s[2], .C = s[3]};
        ii_mixture mix = ii_mixture_of(0.3, cutmix);
        mix.y1 = s[1] / 2, mix.x0 = s[2] / 3, mix.x1 = s[2];
        a.mix = on_device(c, &mix, sizeof mix);
        a.x = ii_data(images);
        ii_mix_targets_args b = {.real = real, .N = s[0], .C = classes, .mix = a.mix};
        b.smoothing = 0.1, b.labels = ii_data(l), b.targets = ii_data(targets);
        ii_erase_args e = {.real = real, .N = s[0], .H = s[1], .W = s[2], .C = s[3]};
        e.mode = (ii_erase_mode)(i % 3), e.rects = on_device(c, all, sizeof all), e.most = 4;
        e.count = on_device(c, &(int32_t){s[0] > 3 && s[1] > 6 ? 4 : 0}, 4);
        e.x = ii_data(images);
        ii_guard_on(true);
        ii_run_mix_batch(c, &a);
        ii_run_mix_targets(c, &b);
        ii_run_erase(c, &e);
        ii_guard_on(false);
        ii_tensor_read_f64(c, images, x[device]);
        ii_tensor_read_f64(c, targets, t[device]);
        for (int64_t k = 0; device && k < n; k++)
          if (!(fabs(x[0][k] - x[1][k]) <= 2e-6))
            fail_msg("sizes %d, cutmix %d: element %lld is %.9g and %.9g", (int)i, cutmix,
                     (long long)k, x[0][k], x[1][k]);
        for (int64_t k = 0; device && k < s[0] * classes; k++) assert_true(t[0][k] == t[1][k]);
        done(c);
      }
  assert_true(ii_guard_checked(II_KERNEL_mix_batch) > 0);
  assert_true(ii_guard_checked(II_KERNEL_mix_targets) > 0);
  assert_true(ii_guard_checked(II_KERNEL_erase) > 0);
}

/* ---- The whole step ---- */

/* -sum t log softmax(x) of one row, smoothed targets. */
static double row_loss(const double *x, int32_t label, double smoothing) {
  double sum = 0, loss = 0;
  for (int i = 0; i < CLASSES; i++) sum += exp(x[i]);
  for (int i = 0; i < CLASSES; i++)
    loss += ((i == label) * (1 - smoothing) + smoothing / CLASSES) * (log(sum) - x[i]);
  return loss;
}

/* The loss of a mixture is the mixture of the losses, and so is its gradient. */
static void loss_of_a_mixture(void **state) {
  double x[N * CLASSES];
  ii_rng r = ii_rng_make(1, II_RNG_TEST, 0, 0);
  for (int i = 0; i < N * CLASSES; i++) x[i] = 3 * ii_rng_normal(&r);
  for (int device = 0; device < engines(); device++)
    for (int mixed = 0; mixed < 2; mixed++) {
      ii_config cfg = official();
      const double lam = mixed ? 0.3 : 1;
      const ii_mixture mix = ii_mixture_of(lam, false);
      ii_mixer m;
      if (!mixed) cfg.data.mixup = cfg.data.cutmix = 0;
      ii_ctx *c = open_on((ii_device)device, II_F64);
      ii_tensor *logits = ii_tensor_new(c, II_F64, 2, (int64_t[]){N, CLASSES});
      ii_tensor_write_f64(c, logits, x);
      ii_tensor *l = ii_tensor_from_host(c, II_I32, 1, (int64_t[]){N}, labels);
      double got, want = 0;
      assert_int_equal(ii_mixer_init(&m, c, &cfg, N, H, W), II_OK);
      ii_device_write(&c->k, (char *)ii_data(m.values) + offsetof(ii_step_values, mix), &mix,
                      sizeof mix);
      ii_tensor_read_f64(c, ii_mixer_loss(&m, logits, l), &got);
      ii_mixer_destroy(&m);
      for (int n = 0; n < N; n++)
        want += (lam * row_loss(x + n * CLASSES, labels[n], 0.1) +
                 (1 - lam) * row_loss(x + n * CLASSES, labels[N - 1 - n], 0.1)) /
                N;
      assert_true(fabs(got - want) < 1e-12 * fabs(want));
      done(c);
    }
}

/* Pixels and targets belong together: of a batch whose images are their labels, what is in the
 * image is what is in the target. */
static void pixels_and_targets_agree(void **state) {
  enum { S = 32, B = 6 };
  static double x[B * S * S];
  static const int32_t own[B] = {0, 1, 2, 3, 4, 5};
  static const int64_t samples[B] = {9, 8, 7, 6, 5, 4};
  ii_config cfg = official();
  cfg.data.erase_prob = 0;
  cfg.train.label_smoothing = 0;
  int64_t blends = 0, boxes = 0;
  for (int64_t batch = 0; batch < 40; batch++)
    for (int device = 0; device < engines(); device++) {
      double t[B * B];
      ii_ctx *c = open_on((ii_device)device, II_F64);
      for (int64_t i = 0; i < B * S * S; i++) x[i] = i / (S * S) == 0 ? 1 : 0; /* image of 0s: 1 */
      ii_tensor *images = ii_tensor_new(c, II_F64, 4, (int64_t[]){B, S, S, 1});
      ii_tensor_write_f64(c, images, x);
      ii_mixer mixer;
      assert_int_equal(ii_mixer_init(&mixer, c, &cfg, B, S, S), II_OK);
      const ii_mix m = ii_mixer_draw(&mixer, 0, 0, batch, samples, B);
      ii_mixer_apply(&mixer, images);
      ii_tensor *l = ii_tensor_from_host(c, II_I32, 1, (int64_t[]){B}, own);
      ii_tensor *targets = ii_tensor_new(c, II_F64, 2, (int64_t[]){B, B});
      const ii_mixture mix = mixture_of(&m);
      ii_mix_targets_args a = {.real = II_F64, .N = B, .C = B};
      a.mix = on_device(c, &mix, sizeof mix);
      a.labels = ii_data(l), a.targets = ii_data(targets);
      ii_run_mix_targets(c, &a);
      ii_tensor_read_f64(c, images, x);
      ii_tensor_read_f64(c, targets, t);
      for (int64_t n = 0; n < B; n++) {
        double share = 0;
        for (int64_t i = 0; i < S * S; i++) share += x[n * S * S + i] / (S * S);
        assert_true(fabs(share - t[n * B]) < 1e-12);
      }
      assert_true(fabs(t[0] + t[B - 1] - 1) < 1e-12);
      boxes += m.cutmix, blends += !m.cutmix;
      ii_mixer_destroy(&mixer);
      done(c);
    }
  assert_true(boxes > 5 && blends > 5);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(mixtures_of_timm),
      cmocka_unit_test(erasing_of_timm),
      cmocka_unit_test(shares_and_boxes),
      cmocka_unit_test(cutmix_share),
      cmocka_unit_test(switches),
      cmocka_unit_test(rectangles),
      cmocka_unit_test(many_rectangles),
      cmocka_unit_test(noise),
      cmocka_unit_test(modes),
      cmocka_unit_test(same_noise_on_every_engine),
      cmocka_unit_test(rectangles_outside_are_refused),
      cmocka_unit_test(guarded_sizes),
      cmocka_unit_test(loss_of_a_mixture),
      cmocka_unit_test(pixels_and_targets_agree),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
