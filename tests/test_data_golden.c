/* Decoding, resize and evaluation transform against Pillow's results, bit for bit: the cases listed
 * in golden/augment/expected.txt (made by golden/augment/make_cases.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <math.h>
#include <zlib.h>
#include "data/transform.h"

#define FOLDER II_TEST_DATA "/golden/augment/"

static const ii_decode_options plain = {0};

static void read_file(const char *name, ii_bytes *bytes) {
  char path[512];
  ii_error err = {0};
  snprintf(path, sizeof path, FOLDER "%s", name);
  if (ii_bytes_read(bytes, path, &err) != II_OK) fail_msg("%s", err.text);
}

static void decode(const ii_bytes *file, ii_decode_options options, ii_image *img) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  if (ii_image_decode(d, file->data, file->size, &options, img, &err) != II_OK)
    fail_msg("%s", err.text);
  ii_decoder_free(d);
}

static void load(const char *name, ii_decode_options options, ii_image *img) {
  ii_bytes file = {0};
  /* the one truncated file was decoded with tolerance */
  if (strstr(name, "truncated")) options.allow_truncated = true;
  read_file(name, &file);
  decode(&file, options, img);
  ii_bytes_free(&file);
}

static void expect(const char *line, const uint8_t *p, int64_t n, unsigned long crc) {
  unsigned long got = crc32(0, p, (uInt)n);
  if (got != crc) fail_msg("%s: got crc32 %lu", line, got);
}

static void check_image(const char *line, const ii_image *img, int w, int h, unsigned long crc) {
  if (img->w != w || img->h != h) fail_msg("%s: got %d x %d", line, (int)img->w, (int)img->h);
  expect(line, img->data, img->w * img->h * 3, crc);
}

static int check_decode(const char *line) {
  char name[256];
  int w, h;
  unsigned long crc;
  ii_image img = {0};
  bool upright = strncmp(line, "oriented", 8) == 0;
  if (sscanf(line, upright ? "oriented %255s %d %d %lu" : "decode %255s %d %d %lu", name, &w, &h,
             &crc) != 4)
    return 0;
  load(name, (ii_decode_options){.apply_orientation = upright}, &img);
  check_image(line, &img, w, h, crc);
  ii_image_free(&img);
  return 1;
}

/* The same file with an EXIF segment put behind its first marker. */
static int check_exif(const char *line) {
  char name[256];
  int w, h, o;
  unsigned long crc;
  if (sscanf(line, "exif %d %255s %d %d %lu", &o, name, &w, &h, &crc) != 5) return 0;
  uint8_t app1[] = {0xff, 0xe1, 0, 34, 'E', 'x',        'i', 'f', 0,    0,    'M', 'M',
                    0,    42,   0, 0,  0,   8,          0,   1,   0x01, 0x12, 0,   3,
                    0,    0,    0, 1,  0,   (uint8_t)o, 0,   0,   0,    0,    0,   0};
  ii_bytes file = {0};
  ii_image img = {0};
  read_file(name, &file);
  uint8_t *with = malloc((size_t)file.size + sizeof app1);
  memcpy(with, file.data, 2);
  memcpy(with + 2, app1, sizeof app1);
  memcpy(with + 2 + sizeof app1, file.data + 2, (size_t)file.size - 2);
  ii_bytes changed = {.data = with, .size = file.size + (int64_t)sizeof app1};
  decode(&changed, (ii_decode_options){.apply_orientation = true}, &img);
  check_image(line, &img, w, h, crc);
  free(with);
  ii_bytes_free(&file);
  ii_image_free(&img);
  return 1;
}

static int check_eval(const char *line) {
  char name[256];
  int size;
  unsigned long crc;
  if (sscanf(line, "eval %d %255s %lu", &size, name, &crc) != 3) return 0;
  ii_transform t = ii_transform_default(size, false);
  ii_transformer *tr = NULL;
  ii_error err = {0};
  ii_image img = {0};
  const uint8_t *pixels;
  load(name, plain, &img);
  assert_int_equal(ii_transformer_new(&tr, &err), II_OK);
  assert_int_equal(ii_transform_pixels(tr, &t, &img, NULL, &pixels, &err), II_OK);
  expect(line, pixels, (int64_t)size * size * 3, crc);
  ii_transformer_free(tr);
  ii_image_free(&img);
  return 1;
}

/* The whole result, and then each of its quarters as a view. */
static int check_resize_with(const char *line, bool portable) {
  char name[256], filter[32];
  int top, left, h, w, oh, ow;
  unsigned long crc;
  if (sscanf(line, "resize %255s %d %d %d %d %d %d %31s %lu", name, &top, &left, &h, &w, &oh, &ow,
             filter, &crc) != 9)
    return 0;
  ii_filter f = strcmp(filter, "bicubic") == 0 ? II_FILTER_BICUBIC : II_FILTER_BILINEAR;
  ii_image img = {0};
  ii_resizer *r = NULL;
  ii_error err = {0};
  ii_resize_job job = {.src = &img,
                       .box = {top, left, h, w},
                       .filter = f,
                       .out_w = ow,
                       .out_h = oh,
                       .view = {0, 0, oh, ow}};
  uint8_t *out = malloc((size_t)(oh * ow * 3)), *part = malloc((size_t)(oh * ow * 3));
  load(name, plain, &img);
  assert_int_equal(ii_resizer_new(&r, &err), II_OK);
  if (portable) ii_resizer_use_portable(r);
  assert_int_equal(ii_resize(r, &job, out, &err), II_OK);
  expect(line, out, (int64_t)oh * ow * 3, crc);
  for (int q = 0; q < 4; q++) {
    int64_t my = oh / 2, mx = ow / 2;
    ii_box view = {q & 2 ? my : 0, q & 1 ? mx : 0, q & 2 ? oh - my : my, q & 1 ? ow - mx : mx};
    job.view = view;
    assert_int_equal(ii_resize(r, &job, part, &err), II_OK);
    for (int64_t y = 0; y < view.h; y++)
      assert_memory_equal(part + y * view.w * 3, out + ((view.top + y) * ow + view.left) * 3,
                          view.w * 3);
  }
  free(out);
  free(part);
  ii_resizer_free(r);
  ii_image_free(&img);
  return 1;
}

static int check_resize(const char *line) {
  return check_resize_with(line, false) && check_resize_with(line, true);
}

static void run(int (*check)(const char *line), int at_least) {
  FILE *f = fopen(FOLDER "expected.txt", "r");
  char line[512];
  int n = 0;
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = 0;
    n += check(line);
  }
  fclose(f);
  assert_true(n >= at_least);
}

static void test_decode(void **state) {
  run(check_decode, 30);
}
static void test_exif(void **state) {
  run(check_exif, 8);
}
static void test_resize(void **state) {
  run(check_resize, 24);
}
static void test_eval(void **state) {
  run(check_eval, 20);
}

/* Every 8th row and column of torchvision's float tensor [3, 28, 28]. */
static void test_normalised(void **state) {
  ii_transform t = ii_transform_default(224, false);
  ii_transformer *tr = NULL;
  ii_error err = {0};
  ii_image img = {0};
  static float out[224 * 224 * 3], want[3][28][28];
  ii_bytes file = {0};
  read_file("photo_sloth_224.f32", &file);
  assert_int_equal(file.size, sizeof want);
  memcpy(want, file.data, sizeof want);
  load("photo_sloth.JPEG", plain, &img);
  assert_int_equal(ii_transformer_new(&tr, &err), II_OK);
  assert_int_equal(ii_transform_apply(tr, &t, &img, NULL, out, &err), II_OK);
  for (int c = 0; c < 3; c++)
    for (int y = 0; y < 28; y++)
      for (int x = 0; x < 28; x++) assert_true(out[(y * 8 * 224 + x * 8) * 3 + c] == want[c][y][x]);
  ii_transformer_free(tr);
  ii_image_free(&img);
  ii_bytes_free(&file);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_decode),     cmocka_unit_test(test_exif),
      cmocka_unit_test(test_resize),     cmocka_unit_test(test_eval),
      cmocka_unit_test(test_normalised),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
