/* The train transform: distributions against samples of timm's, and rules that can be checked by
 * hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <math.h>
#include "data/transform.h"

typedef struct {
  int64_t w, h;
  double mean[4];        /* top, left, height, width over 2000 draws of timm 0.6.11 */
  double quantile[3][4]; /* 25, 50 and 75 % */
} reference;

static const reference references[] = {
    {500,
     375,
     {52.7005, 109.115, 268.985, 280.411},
     {{13, 44, 213, 213}, {36, 95, 276, 278}, {79, 160, 330, 344}}},
    {150,
     600,
     {228.924, 13.281, 135.054, 123.775},
     {{132, 2, 107, 107}, {200, 8, 129, 126}, {333, 21, 159, 143}}},
    {64,
     64,
     {10.5785, 10.4895, 43.146, 43.149},
     {{3, 3, 34, 33}, {8, 8, 44, 44}, {16, 16, 53, 53}}},
};

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static void test_random_box(void **state) {
  enum { N = 20000 };
  static double v[4][N];
  ii_transform t = ii_transform_default(224, true);
  for (size_t k = 0; k < sizeof references / sizeof *references; k++) {
    const reference *ref = &references[k];
    double side[4] = {(double)ref->h, (double)ref->w, (double)ref->h, (double)ref->w};
    for (int i = 0; i < N; i++) {
      ii_rng rng = ii_rng_make(1, II_RNG_TEST, k, (uint64_t)i);
      ii_box b = ii_transform_random_box(&t, ref->w, ref->h, &rng);
      assert_true(b.top >= 0 && b.left >= 0 && b.top + b.h <= ref->h && b.left + b.w <= ref->w);
      v[0][i] = (double)b.top, v[1][i] = (double)b.left;
      v[2][i] = (double)b.h, v[3][i] = (double)b.w;
    }
    for (int c = 0; c < 4; c++) {
      double mean = 0;
      for (int i = 0; i < N; i++) mean += v[c][i] / N;
      /* the reference's own error with 2000 draws is about 0.006 of the side */
      assert_true(fabs(mean - ref->mean[c]) < 0.025 * side[c]);
      qsort(v[c], N, sizeof **v, by_value);
      for (int q = 0; q < 3; q++)
        assert_true(fabs(v[c][N * (q + 1) / 4] - ref->quantile[q][c]) < 0.04 * side[c] + 1);
    }
  }
}

/* No box of an allowed ratio and scale fits: the largest centred box. */
static void test_box_fallback(void **state) {
  ii_transform t = ii_transform_default(224, true);
  t.scale[0] = 0.9;
  for (int i = 0; i < 50; i++) {
    ii_rng rng = ii_rng_make(2, II_RNG_TEST, 0, (uint64_t)i);
    ii_box b = ii_transform_random_box(&t, 1000, 101, &rng);
    assert_int_equal(b.h, 101);
    assert_int_equal(b.w, 135); /* round(101 * 4 / 3) */
    assert_int_equal(b.left, 432);
    b = ii_transform_random_box(&t, 30, 1000, &rng);
    assert_int_equal(b.w, 30);
    assert_int_equal(b.h, 40);
    assert_int_equal(b.top, 480);
  }
  ii_rng rng = ii_rng_make(2, II_RNG_TEST, 1, 0);
  ii_box b = ii_transform_random_box(&t, 1, 1, &rng);
  assert_true(b.w == 1 && b.h == 1 && b.top == 0 && b.left == 0);
}

/* An image whose pixel at (x, y) is (x + 1, y + 1, 7). */
static void position_image(ii_image *img, int64_t w, int64_t h) {
  ii_error err = {0};
  assert_int_equal(ii_image_reserve(img, w, h, &err), II_OK);
  for (int64_t y = 0; y < h; y++)
    for (int64_t x = 0; x < w; x++) {
      uint8_t *p = img->data + (y * w + x) * 3;
      p[0] = (uint8_t)(x + 1), p[1] = (uint8_t)(y + 1), p[2] = 7;
    }
}

/* Size-32 rule: windows of the image with 4 black pixels around it, or more where it is too small.
 */
static void check_small(int64_t w, int64_t h, int64_t starts_x, int64_t starts_y) {
  ii_transform t = ii_transform_default(32, true);
  ii_transformer *tr = NULL;
  ii_error err = {0};
  ii_image img = {0};
  const uint8_t *p;
  int hit_x[64] = {0}, hit_y[64] = {0}, flips = 0;
  int64_t pad_x = w + 8 >= 32 ? 4 : (32 - w + 1) / 2, pad_y = h + 8 >= 32 ? 4 : (32 - h + 1) / 2;
  assert_true(t.small_crop);
  position_image(&img, w, h);
  assert_int_equal(ii_transformer_new(&tr, &err), II_OK);
  for (int i = 0; i < 2000; i++) {
    ii_rng rng = ii_rng_make(3, II_RNG_TEST, (uint64_t)w, (uint64_t)i);
    assert_int_equal(ii_transform_pixels(tr, &t, &img, &rng, &p, &err), II_OK);
    int64_t k = 0, left, top;
    while (p[k * 3] == 0) k++; /* the first pixel that is not black tells where we are */
    int64_t x = k % 32, y = k / 32, v = p[k * 3];
    bool flipped = p[k * 3] > p[(k + 1) * 3] && p[(k + 1) * 3] > 0;
    left = flipped ? v - 1 - (31 - x) : v - 1 - x;
    top = p[k * 3 + 1] - 1 - y;
    flips += flipped;
    hit_x[left + pad_x]++, hit_y[top + pad_y]++;
    for (k = 0; k < 32 * 32; k++) {
      int64_t sx = left + (flipped ? 31 - k % 32 : k % 32), sy = top + k / 32;
      bool inside = sx >= 0 && sx < w && sy >= 0 && sy < h;
      assert_int_equal(p[k * 3], inside ? sx + 1 : 0);
      assert_int_equal(p[k * 3 + 1], inside ? sy + 1 : 0);
      assert_int_equal(p[k * 3 + 2], inside ? 7 : 0);
    }
  }
  assert_true(flips > 880 && flips < 1120);
  for (int64_t s = 0; s < starts_x; s++) assert_true(hit_x[s] > 0);
  for (int64_t s = 0; s < starts_y; s++) assert_true(hit_y[s] > 0);
  ii_transformer_free(tr);
  ii_image_free(&img);
}

static void test_small_crop(void **state) {
  check_small(32, 32, 9, 9);
  check_small(40, 33, 17, 10);
  check_small(20, 23, 1, 2);
}

/* flip_prob 0 and 1 give mirror images of each other. */
static void test_flip(void **state) {
  ii_transform t = ii_transform_default(48, true);
  ii_transformer *tr = NULL;
  ii_error err = {0};
  ii_image img = {0};
  static float a[48 * 48 * 3], b[48 * 48 * 3];
  position_image(&img, 70, 55);
  assert_int_equal(ii_transformer_new(&tr, &err), II_OK);
  for (int i = 0; i < 2; i++) {
    ii_rng rng = ii_rng_make(4, II_RNG_TEST, 0, 0);
    t.flip_prob = i;
    assert_int_equal(ii_transform_apply(tr, &t, &img, &rng, i ? b : a, &err), II_OK);
  }
  for (int y = 0; y < 48; y++)
    for (int x = 0; x < 48; x++)
      for (int c = 0; c < 3; c++)
        assert_true(a[(y * 48 + x) * 3 + c] == b[(y * 48 + 47 - x) * 3 + c]);
  ii_transformer_free(tr);
  ii_image_free(&img);
}

/* Round half to even in the centre crop: differences 1, 3, 5 begin at 0, 2, 2. */
static void test_centre(void **state) {
  ii_transformer *tr = NULL;
  ii_error err = {0};
  ii_image img = {0};
  const uint8_t *p;
  const int start[3] = {0, 2, 2};
  assert_int_equal(ii_transformer_new(&tr, &err), II_OK);
  for (int i = 0; i < 3; i++) {
    ii_transform t = ii_transform_default(20, false);
    position_image(&img, 21 + 2 * i, 20); /* no resize: the shorter side fits */
    assert_int_equal(ii_transform_pixels(tr, &t, &img, NULL, &p, &err), II_OK);
    assert_int_equal(p[0], start[i] + 1);
    position_image(&img, 20, 21 + 2 * i);
    assert_int_equal(ii_transform_pixels(tr, &t, &img, NULL, &p, &err), II_OK);
    assert_int_equal(p[1], start[i] + 1);
  }
  ii_transformer_free(tr);
  ii_image_free(&img);
}

/* Extreme shapes end in a result or an error, never in terabytes. */
static void test_extreme_shapes(void **state) {
  const int64_t shape[][2] = {{1, 1}, {1, 40000}, {40000, 1}, {2000000, 1}, {1, 2000000}};
  ii_transformer *tr = NULL;
  ii_image img = {0};
  ii_error err = {0};
  static float out[64 * 64 * 3];
  assert_int_equal(ii_transformer_new(&tr, &err), II_OK);
  for (int i = 0; i < 5; i++)
    for (int train = 0; train <= 1; train++) {
      ii_transform t = ii_transform_default(64, train);
      ii_rng rng = ii_rng_make(5, II_RNG_TEST, 0, 0);
      ii_error_clear(&err);
      assert_int_equal(ii_image_reserve(&img, shape[i][0], shape[i][1], &err), II_OK);
      memset(img.data, 100, (size_t)(img.w * img.h * 3));
      ii_status status = ii_transform_apply(tr, &t, &img, &rng, out, &err);
      if (status == II_OK)
        assert_true(out[0] == (100 / 255.0f - 0.485f) / 0.229f);
      else
        assert_true(status == II_ERR_FORMAT && i >= 3 && !train);
    }
  ii_transformer_free(tr);
  ii_image_free(&img);
}

/* Every way through the resize: the portable code and that of this processor agree, a mirrored
 * result is the mirror image, and the pixels that are said to count are enough. */
static void test_resize_ways(void **state) {
  ii_resizer *fast = NULL, *plain = NULL;
  ii_image img = {0}, part = {0};
  ii_error err = {0};
  static uint8_t a[3 * 120 * 120], b[3 * 120 * 120];
  assert_int_equal(ii_resizer_new(&fast, &err), II_OK);
  assert_int_equal(ii_resizer_new(&plain, &err), II_OK);
  ii_resizer_use_portable(plain);
  ii_rng rng = ii_rng_make(6, II_RNG_TEST, 0, 0);
  for (int i = 0; i < 600; i++) {
    int64_t w = 1 + (int64_t)ii_rng_below(&rng, 300), h = 1 + (int64_t)ii_rng_below(&rng, 300);
    assert_int_equal(ii_image_reserve(&img, w, h, &err), II_OK);
    for (int64_t k = 0; k < w * h * 3; k++)
      img.data[k] = i % 3 ? (uint8_t)ii_rng_u32(&rng) : (uint8_t)(ii_rng_u32(&rng) % 2 * 255);
    ii_resize_job j = {.src = &img, .filter = (ii_filter)(i % 2)};
    j.box.w = 1 + (int64_t)ii_rng_below(&rng, (uint64_t)w);
    j.box.h = 1 + (int64_t)ii_rng_below(&rng, (uint64_t)h);
    j.box.left = (int64_t)ii_rng_below(&rng, (uint64_t)(w - j.box.w + 1));
    j.box.top = (int64_t)ii_rng_below(&rng, (uint64_t)(h - j.box.h + 1));
    j.out_w = i % 7 == 0 && j.box.w <= 120 ? j.box.w : 1 + (int64_t)ii_rng_below(&rng, 120);
    j.out_h = i % 5 == 0 && j.box.h <= 120 ? j.box.h : 1 + (int64_t)ii_rng_below(&rng, 120);
    j.view.w = 1 + (int64_t)ii_rng_below(&rng, (uint64_t)j.out_w);
    j.view.h = 1 + (int64_t)ii_rng_below(&rng, (uint64_t)j.out_h);
    j.view.left = (int64_t)ii_rng_below(&rng, (uint64_t)(j.out_w - j.view.w + 1));
    j.view.top = (int64_t)ii_rng_below(&rng, (uint64_t)(j.out_h - j.view.h + 1));
    size_t bytes = (size_t)(j.view.w * j.view.h * 3);
    assert_int_equal(ii_resize(plain, &j, a, &err), II_OK);
    ii_box s = ii_resize_source(&j);
    assert_int_equal(ii_image_reserve(&part, s.w, s.h, &err), II_OK);
    for (int64_t y = 0; y < s.h; y++)
      memcpy(part.data + y * s.w * 3, img.data + ((s.top + y) * w + s.left) * 3, (size_t)s.w * 3);
    j.src = &part, j.top = s.top, j.left = s.left, j.mirror = i % 4 == 0;
    assert_int_equal(ii_resize(fast, &j, b, &err), II_OK);
    if (j.mirror) ii_mirror(b, j.view.w, j.view.h);
    assert_memory_equal(a, b, bytes);
    assert_int_equal(ii_resize(plain, &j, b, &err), II_OK);
    if (j.mirror) ii_mirror(b, j.view.w, j.view.h);
    assert_memory_equal(a, b, bytes);
  }
  ii_resizer_free(fast);
  ii_resizer_free(plain);
  ii_image_free(&img);
  ii_image_free(&part);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_random_box),     cmocka_unit_test(test_box_fallback),
      cmocka_unit_test(test_small_crop),     cmocka_unit_test(test_flip),
      cmocka_unit_test(test_resize_ways),    cmocka_unit_test(test_centre),
      cmocka_unit_test(test_extreme_shapes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
