/* Damaged JPEG, PNG and list files by the hundred: each ends in an image or in one clear sentence,
 * never in a crash, a leak (under the sanitizers) or a long computation. The damage is drawn from a
 * fixed seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <unistd.h>
#include "autograd/rng.h"
#include "data/dataset.h"
#include "data/image.h"

#define FOLDER II_TEST_DATA "/golden/augment/"

/* Small files of every kind. */
static const char *const files[] = {
    "made_420_odd.JPEG", "made_progressive.JPEG",  "made_gray_odd.JPEG",
    "made_cmyk.JPEG",    "made_q5.JPEG",           "made_422_odd.JPEG",
    "png_rgb8.png",      "png_palette8_alpha.png", "png_rgb8_interlaced.png",
    "png_greya16.png",   "png_grey1.png",          "noise_b.png",
};
#define FILES ((int)(sizeof files / sizeof *files))
#define EACH  60

static void read_file(const char *name, ii_bytes *bytes) {
  char path[512];
  ii_error err = {0};
  snprintf(path, sizeof path, FOLDER "%s", name);
  if (ii_bytes_read(bytes, path, &err) != II_OK) fail_msg("%s", err.text);
}

/* One of: cut short, some bits turned, a run of bytes overwritten, a piece doubled or left out. The
 * result is in memory of its exact size, for the sanitizer to see any step beyond. */
static uint8_t *damaged(const ii_bytes *file, ii_rng *rng, int64_t *size) {
  int64_t n = file->size, at = (int64_t)ii_rng_below(rng, (uint64_t)n);
  int64_t run = 1 + (int64_t)ii_rng_below(rng, 40);
  if (at + run > n) run = n - at;
  uint64_t kind = ii_rng_below(rng, 5);
  *size = kind == 0 ? at : kind == 3 ? n + run : kind == 4 ? n - run : n;
  uint8_t *out = malloc((size_t)(*size > 0 ? *size : 1));
  if (kind == 3) {
    memcpy(out, file->data, (size_t)(at + run));
    memcpy(out + at + run, file->data + at, (size_t)(n - at));
    return out;
  }
  if (kind == 4) {
    memcpy(out, file->data, (size_t)at);
    memcpy(out + at, file->data + at + run, (size_t)(n - at - run));
    return out;
  }
  memcpy(out, file->data, (size_t)*size);
  for (int64_t i = 0; kind == 1 && i < 1 + run / 4; i++)
    out[ii_rng_below(rng, (uint64_t)n)] ^= (uint8_t)(1u << ii_rng_below(rng, 8));
  for (int64_t i = 0; kind == 2 && i < run; i++) out[at + i] = (uint8_t)ii_rng_u32(rng);
  return out;
}

static void check_sentence(const ii_error *err) {
  assert_true(strlen(err->text) > 10);
  assert_null(strchr(err->text, '\n'));
}

static void test_damaged_images(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  ii_bytes file = {0};
  int good = 0, bad = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  for (int f = 0; f < FILES; f++) {
    read_file(files[f], &file);
    for (int k = 0; k < EACH; k++) {
      ii_rng rng = ii_rng_make(6, II_RNG_TEST, (uint64_t)f, (uint64_t)k);
      int64_t size;
      uint8_t *bytes = damaged(&file, &rng, &size);
      /* a damaged header may promise gigabytes: keep the test small */
      ii_decode_options o = {
          .apply_orientation = true, .allow_truncated = k % 3 == 0, .max_pixels = 1000000};
      ii_error_clear(&err);
      ii_status status = ii_image_decode(d, bytes, size, &o, &img, &err);
      if (status == II_OK) {
        volatile unsigned sum = 0; /* every byte is there and, for the sanitizer, readable */
        for (int64_t i = 0; i < img.w * img.h * 3; i++) sum += img.data[i];
        assert_true(img.w > 0 && img.h > 0 && img.w * img.h <= o.max_pixels);
        good++;
      } else {
        assert_int_equal(status, II_ERR_FORMAT);
        check_sentence(&err);
        bad++;
      }
      free(bytes);
    }
    /* the decoder is none the worse for it */
    ii_error_clear(&err);
    assert_int_equal(ii_image_decode(d, file.data, file.size, &(ii_decode_options){0}, &img, &err),
                     II_OK);
  }
  assert_true(good > 50 && bad > 200);
  ii_decoder_free(d);
  ii_image_free(&img);
  ii_bytes_free(&file);
}

/* Cut anywhere: strictly an error, with tolerance an image whose first rows are right. */
static void test_truncated(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0}, whole = {0};
  ii_bytes file = {0};
  int tolerated = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  for (int f = 0; f < FILES; f++) {
    read_file(files[f], &file);
    bool png = strstr(files[f], ".png") != NULL;
    /* rows come one after the other, and there is more in the file than its header */
    bool in_order =
        !strstr(files[f], "progressive") && !strstr(files[f], "interlaced") && file.size > 300;
    assert_int_equal(
        ii_image_decode(d, file.data, file.size, &(ii_decode_options){0}, &whole, &err), II_OK);
    int64_t end = png ? file.size - 12 - 6 : file.size; /* before the end chunk and checksums */
    for (int64_t n = end - 1; n > 0; n -= 1 + end / 40) {
      uint8_t *cut = malloc((size_t)n);
      memcpy(cut, file.data, (size_t)n);
      ii_error_clear(&err);
      assert_int_equal(ii_image_decode(d, cut, n, &(ii_decode_options){0}, &img, &err),
                       II_ERR_FORMAT);
      check_sentence(&err);
      ii_error_clear(&err);
      ii_decode_options tolerant = {.allow_truncated = true};
      if (ii_image_decode(d, cut, n, &tolerant, &img, &err) == II_OK) {
        assert_true(img.w == whole.w && img.h == whole.h);
        if (in_order && n > end - end / 8)
          assert_memory_equal(img.data, whole.data, (size_t)(3 * img.w));
        tolerated++;
      }
      free(cut);
    }
  }
  assert_true(tolerated > 100);
  ii_decoder_free(d);
  ii_image_free(&img);
  ii_image_free(&whole);
  ii_bytes_free(&file);
}

/* Headers that promise 4 gigapixels are refused before memory is taken. */
static void test_bombs(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  ii_bytes file = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  read_file("made_420_odd.JPEG", &file);
  int64_t at = 2;
  while (file.data[at + 1] != 0xc0) at += 2 + (file.data[at + 2] << 8 | file.data[at + 3]);
  memset(file.data + at + 5, 0xfe, 4); /* 65278 x 65278 */
  assert_int_equal(ii_image_decode(d, file.data, file.size, &(ii_decode_options){0}, &img, &err),
                   II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "65278 x 65278 pixels is above the limit of 178956970"));
  assert_int_equal(img.capacity, 0);
  read_file("made_png_named_jpeg.JPEG", &file);
  ii_error_clear(&err);
  ii_decode_options o = {.max_pixels = 12999}; /* it has 130 x 100 */
  assert_int_equal(ii_image_decode(d, file.data, file.size, &o, &img, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "above the limit"));
  o.max_pixels = 13000;
  ii_error_clear(&err);
  assert_int_equal(ii_image_decode(d, file.data, file.size, &o, &img, &err), II_OK);
  ii_decoder_free(d);
  ii_image_free(&img);
  ii_bytes_free(&file);
}

/* A file without its Huffman or quantisation tables is decoded by a used decoder as by a new one.
 */
static void test_tables_are_not_kept(void **state) {
  const ii_decode_options o = {0};
  ii_bytes other = {0}, file = {0};
  read_file("made_q5.JPEG", &other);
  read_file("made_420_odd.JPEG", &file);
  for (int k = 0; k < 2; k++) {
    const uint8_t table = k ? 0xdb : 0xc4;
    ii_decoder *used = NULL, *fresh = NULL;
    ii_image a = {0}, b = {0};
    ii_error err = {0};
    uint8_t *cut = malloc((size_t)file.size);
    int64_t n = 2, at = 2;
    memcpy(cut, file.data, 2);
    while (file.data[at + 1] != 0xda) {
      const int64_t size = 2 + (file.data[at + 2] << 8 | file.data[at + 3]);
      if (file.data[at + 1] != table) memcpy(cut + n, file.data + at, (size_t)size), n += size;
      at += size;
    }
    memcpy(cut + n, file.data + at, (size_t)(file.size - at));
    n += file.size - at;
    assert_true(n < file.size);
    assert_int_equal(ii_decoder_new(&used, &err), II_OK);
    assert_int_equal(ii_decoder_new(&fresh, &err), II_OK);
    assert_int_equal(ii_image_decode(used, other.data, other.size, &o, &a, &err), II_OK);
    const ii_status s = ii_image_decode(used, cut, n, &o, &a, &err);
    ii_error_clear(&err);
    assert_int_equal(ii_image_decode(fresh, cut, n, &o, &b, &err), s);
    if (s == II_OK) assert_memory_equal(a.data, b.data, (size_t)(a.w * a.h * 3));
    free(cut);
    ii_decoder_free(used);
    ii_decoder_free(fresh);
    ii_image_free(&a);
    ii_image_free(&b);
  }
  ii_bytes_free(&other);
  ii_bytes_free(&file);
}

static void test_damaged_lists(void **state) {
  static char text[4096];
  char path[64];
  int bad = 0;
  ii_bytes file = {.data = (uint8_t *)text};
  for (int i = 0; i < 60; i++)
    file.size += sprintf(text + file.size, "class%d/image%d.jpg %d %d %d.5 -%d.25\n", i % 7, i,
                         i % 7, 1 + i % 12, i, i + 1);
  strcpy(path, "/tmp/ii_list_XXXXXX");
  int fd = mkstemp(path);
  assert_true(fd >= 0);
  close(fd);
  for (int k = 0; k < 200; k++) {
    ii_rng rng = ii_rng_make(6, II_RNG_TEST, 1000, (uint64_t)k);
    ii_error err = {0};
    ii_dataset *d = NULL;
    int64_t size;
    uint8_t *bytes = damaged(&file, &rng, &size);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fwrite(bytes, 1, (size_t)size, f);
    fclose(f);
    free(bytes);
    if (ii_dataset_open_list(path, "/root", 7, &d, &err) != II_OK) {
      assert_int_equal(err.status, II_ERR_FORMAT);
      assert_non_null(strstr(err.text, path));
      check_sentence(&err);
      bad++;
    }
    ii_dataset_free(d);
  }
  unlink(path);
  assert_true(bad > 50);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_damaged_images), cmocka_unit_test(test_truncated),
      cmocka_unit_test(test_bombs),          cmocka_unit_test(test_tables_are_not_kept),
      cmocka_unit_test(test_damaged_lists),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
