/* Decoding of a part of a picture against decoding of the whole: JPEG files of every kind of
 * sampling, colour, coding and orientation, made here, and random parts of them. Files
 * with restart markers, from which a part is cut before it is decoded: also damaged. Recoding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jpeglib.h>
#include "autograd/rng.h"
#include "data/decode.h"
#include "data/jpeg_recode.h"

#define FOLDER II_TEST_DATA "/golden/augment/"

typedef struct {
  const char *name;
  int components; /* 1, 3 or 4 */
  int h, v;       /* sampling of the first component; the others have 1 x 1 */
  bool progressive;
  int restart; /* MCUs between restart markers; 0 = none */
  int quality;
} kind;

static const kind kinds[] = {
    {"4:2:0", 3, 2, 2, false, 0, 90},
    {"4:2:0 with restart markers", 3, 2, 2, false, 3, 92},
    {"4:2:0 progressive", 3, 2, 2, true, 0, 85},
    {"4:2:0 progressive with restart markers", 3, 2, 2, true, 7, 85},
    {"4:2:0 coarse", 3, 2, 2, false, 0, 20},
    {"4:2:2", 3, 2, 1, false, 0, 90},
    {"4:2:2 with restart markers", 3, 2, 1, false, 5, 90},
    {"4:2:2 progressive", 3, 2, 1, true, 0, 90},
    {"4:4:0", 3, 1, 2, false, 0, 90},
    {"4:4:4", 3, 1, 1, false, 0, 95},
    {"4:4:4 progressive", 3, 1, 1, true, 2, 95},
    {"4:1:1", 3, 4, 1, false, 0, 90},
    {"4:1:0", 3, 4, 2, false, 0, 90},
    {"grey", 1, 1, 1, false, 0, 90},
    {"grey with factors of 2", 1, 2, 2, false, 4, 90},
    {"grey progressive", 1, 1, 1, true, 0, 90},
    {"CMYK", 4, 1, 1, false, 0, 90},
    {"CMYK 4:2:0", 4, 2, 2, false, 0, 90},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* rgb as a file of this kind. orientation > 0: with an EXIF segment. */
static void encode(const kind *k, const uint8_t *rgb, int64_t w, int64_t h, int orientation,
                   unsigned char **file, unsigned long *bytes) {
  struct jpeg_compress_struct j;
  struct jpeg_error_mgr e;
  j.err = jpeg_std_error(&e);
  jpeg_create_compress(&j);
  jpeg_mem_dest(&j, file, bytes);
  j.image_width = (JDIMENSION)w, j.image_height = (JDIMENSION)h;
  j.input_components = k->components;
  j.in_color_space = k->components == 1 ? JCS_GRAYSCALE : k->components == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&j);
  jpeg_set_quality(&j, k->quality, TRUE);
  j.comp_info[0].h_samp_factor = k->h, j.comp_info[0].v_samp_factor = k->v;
  for (int c = 1; c < k->components; c++)
    j.comp_info[c].h_samp_factor = j.comp_info[c].v_samp_factor = 1;
  if (k->components == 4) /* the fourth one is as fine as the first */
    j.comp_info[3].h_samp_factor = k->h, j.comp_info[3].v_samp_factor = k->v;
  if (k->progressive) jpeg_simple_progression(&j);
  j.restart_interval = (unsigned)k->restart;
  jpeg_start_compress(&j, TRUE);
  uint8_t app1[] = {'E', 'x', 'i', 'f', 0,    0, 'M', 'M', 0, 42, 0, 0, 0,
                    8,   0,   1,   1,   0x12, 0, 3,   0,   0, 0,  1, 0, (uint8_t)orientation,
                    0,   0,   0,   0,   0,    0};
  if (orientation > 0) jpeg_write_marker(&j, JPEG_APP0 + 1, app1, sizeof app1);
  uint8_t *row = malloc((size_t)w * 4);
  for (int64_t y = 0; y < h; y++) {
    for (int64_t x = 0; x < w; x++)
      for (int c = 0; c < k->components; c++)
        row[x * k->components + c] = rgb[(y * w + x) * 3 + c % 3];
    JSAMPROW rows[1] = {row};
    jpeg_write_scanlines(&j, rows, 1);
  }
  free(row);
  jpeg_finish_compress(&j);
  jpeg_destroy_compress(&j);
}

/* A photograph, and noise in its right half, where neighbours have nothing in common. */
static void picture(ii_decoder *d, ii_image *img) {
  ii_bytes file = {0};
  ii_error err = {0};
  assert_int_equal(ii_bytes_read(&file, FOLDER "photo_spaniel.JPEG", &err), II_OK);
  assert_int_equal(ii_image_decode(d, file.data, file.size, &(ii_decode_options){0}, img, &err),
                   II_OK);
  ii_bytes_free(&file);
  ii_rng rng = ii_rng_make(1, II_RNG_TEST, 0, 0);
  for (int64_t y = 0; y < img->h; y++)
    for (int64_t i = img->w / 2 * 3; i < img->w * 3; i++)
      img->data[y * img->w * 3 + i] = (uint8_t)ii_rng_u32(&rng);
}

static ii_box random_part(ii_rng *rng, int64_t w, int64_t h) {
  ii_box b;
  /* every fourth at an end, every eighth tiny */
  b.w = 1 + (int64_t)ii_rng_below(rng, (uint64_t)w),
  b.h = 1 + (int64_t)ii_rng_below(rng, (uint64_t)h);
  if (ii_rng_below(rng, 8) == 0) b.w = 1 + b.w % 5 % w, b.h = 1 + b.h % 5 % h;
  if (b.w > w) b.w = w;
  if (b.h > h) b.h = h;
  b.left = (int64_t)ii_rng_below(rng, (uint64_t)(w - b.w + 1));
  b.top = (int64_t)ii_rng_below(rng, (uint64_t)(h - b.h + 1));
  if (ii_rng_below(rng, 4) == 0) b.left = ii_rng_below(rng, 2) ? 0 : w - b.w;
  if (ii_rng_below(rng, 4) == 0) b.top = ii_rng_below(rng, 2) ? 0 : h - b.h;
  return b;
}

/* Decodes the part and compares; returns the pixels decoded. */
static int64_t check_part(ii_decoder *d, const uint8_t *bytes, int64_t n,
                          const ii_decode_options *o, const ii_image *whole, ii_box part,
                          const char *name) {
  static ii_image img; /* kept, so that buffers are reused */
  ii_box at;
  ii_error err = {0};
  int64_t w, h;
  assert_int_equal(ii_image_open(d, bytes, n, o, &w, &h, &err), II_OK);
  assert_true(w == whole->w && h == whole->h);
  if (ii_image_read(d, part, &img, &at, &err) != II_OK) fail_msg("%s: %s", name, err.text);
  assert_true(at.w == img.w && at.h == img.h);
  assert_true(at.left >= 0 && at.top >= 0 && at.left + at.w <= w && at.top + at.h <= h);
  assert_true(at.left <= part.left && at.top <= part.top && at.left + at.w >= part.left + part.w &&
              at.top + at.h >= part.top + part.h);
  for (int64_t y = part.top; y < part.top + part.h; y++)
    if (memcmp(img.data + ((y - at.top) * img.w + part.left - at.left) * 3,
               whole->data + (y * w + part.left) * 3, (size_t)part.w * 3) != 0)
      fail_msg("%s, %lld x %lld: row %lld of part %lld %lld %lld %lld differs", name, (long long)w,
               (long long)h, (long long)y, (long long)part.top, (long long)part.left,
               (long long)part.h, (long long)part.w);
  return at.w * at.h;
}

static void check_file(ii_decoder *d, const kind *k, const uint8_t *bytes, int64_t n,
                       ii_decode_options o, int parts, uint64_t seed) {
  ii_image whole = {0};
  ii_error err = {0};
  if (ii_image_decode(d, bytes, n, &o, &whole, &err) != II_OK)
    fail_msg("%s: %s", k->name, err.text);
  ii_rng rng = ii_rng_make(2, II_RNG_TEST, seed, 0);
  int64_t wanted = 0, decoded = 0;
  for (int i = 0; i < parts; i++) {
    ii_box part = random_part(&rng, whole.w, whole.h);
    wanted += part.w * part.h;
    decoded += check_part(d, bytes, n, &o, &whole, part, k->name);
  }
  /* it must really be a part: at most one block of up to 32 pixels more on either side */
  if (whole.w > 300 && !o.allow_truncated) assert_true(decoded < wanted * 3 / 2);
  ii_image_free(&whole);
}

/* Every kind, upright and turned, large and small: more than 3000 parts. */
static void test_parts(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < KINDS; k++) {
    const int64_t shape[][2] = {{img.w, img.h}, {img.w - 13, 101}, {37, 41}, {9, 7}, {1, 3}};
    for (int s = 0; s < 5; s++)
      for (int o = s == 0 ? 1 : 0; o <= (s == 2 ? 8 : 1); o++) {
        unsigned char *file = NULL;
        unsigned long bytes = 0;
        uint8_t *rgb = malloc((size_t)(shape[s][0] * shape[s][1] * 3));
        for (int64_t y = 0; y < shape[s][1]; y++)
          memcpy(rgb + y * shape[s][0] * 3, img.data + (y * img.w + img.w - shape[s][0]) * 3,
                 (size_t)shape[s][0] * 3);
        encode(&kinds[k], rgb, shape[s][0], shape[s][1], o, &file, &bytes);
        check_file(d, &kinds[k], file, (int64_t)bytes,
                   (ii_decode_options){.apply_orientation = true}, s == 0 ? 60 : 12,
                   (uint64_t)(k * 100 + s * 10 + o));
        free(file);
        free(rgb);
      }
  }
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* Files that end early, where that is allowed: also the missing part is the same. */
static void test_truncated(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < KINDS; k++) {
    unsigned char *file = NULL;
    unsigned long bytes = 0;
    encode(&kinds[k], img.data, img.w, img.h, 0, &file, &bytes);
    for (int cut = 1; cut <= 5; cut++)
      check_file(d, &kinds[k], file, (int64_t)(bytes * (unsigned)cut / 6),
                 (ii_decode_options){.allow_truncated = true}, 8, (uint64_t)(9000 + k * 10 + cut));
    free(file);
  }
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* The real files, PNG among them. A file that is opened and not read must not disturb the next. */
static void test_files(void **state) {
  const char *const names[] = {"photo_sloth.JPEG",      "photo_spaniel.JPEG",
                               "photo_exif6.JPEG",      "photo_gray_nail.JPEG",
                               "made_progressive.JPEG", "made_cmyk.JPEG",
                               "made_422_odd.JPEG",     "made_optimized_q100.JPEG",
                               "png_rgb8.png",          "png_rgb8_interlaced.png",
                               "made_1x1.JPEG",         "made_png_named_jpeg.JPEG"};
  ii_decoder *d = NULL;
  ii_error err = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[512];
    ii_bytes file = {0};
    int64_t w, h;
    kind k = {.name = names[i]};
    ii_decode_options o = {.apply_orientation = true};
    snprintf(path, sizeof path, FOLDER "%s", names[i]);
    assert_int_equal(ii_bytes_read(&file, path, &err), II_OK);
    assert_int_equal(ii_image_open(d, file.data, file.size, &o, &w, &h, &err), II_OK);
    ii_image whole = {0};
    assert_int_equal(ii_image_decode(d, file.data, file.size, &o, &whole, &err), II_OK);
    ii_rng rng = ii_rng_make(5, II_RNG_TEST, i, 0);
    for (int p = 0; p < 30; p++)
      check_part(d, file.data, file.size, &o, &whole, random_part(&rng, w, h), k.name);
    ii_image_free(&whole);
    ii_bytes_free(&file);
  }
  ii_decoder_free(d);
}

/* ---- files that can be cut -------------------------------------------------------------------*/

/* Whether the last part was decoded from a smaller JPEG. */
static bool was_cut(const ii_decoder *d, const ii_image *whole) {
  return (int64_t)d->jpeg.image_width * d->jpeg.image_height < whole->w * whole->h;
}

/* Random parts of a file; returns how many of them were cut out. */
static int check_cuts(ii_decoder *d, const uint8_t *bytes, int64_t n, ii_decode_options o,
                      int parts, uint64_t seed, const char *name) {
  ii_image whole = {0};
  ii_error err = {0};
  int cuts = 0;
  if (ii_image_decode(d, bytes, n, &o, &whole, &err) != II_OK) fail_msg("%s: %s", name, err.text);
  assert_false(was_cut(d, &whole));
  ii_rng rng = ii_rng_make(3, II_RNG_TEST, seed, 0);
  for (int i = 0; i < parts; i++) {
    check_part(d, bytes, n, &o, &whole, random_part(&rng, whole.w, whole.h), name);
    cuts += was_cut(d, &whole);
  }
  ii_image_free(&whole);
  return cuts;
}

/* The picture again and again, as w x h pixels; freed by the caller. */
static uint8_t *repeated(const ii_image *img, int64_t w, int64_t h) {
  uint8_t *rgb = malloc((size_t)(w * h * 3));
  assert_non_null(rgb);
  for (int64_t y = 0; y < h; y++)
    for (int64_t x = 0; x < w; x++)
      memcpy(rgb + (y * w + x) * 3, img->data + (y % img->h * img->w + x % img->w) * 3, 3);
  return rgb;
}

static const kind cut_kinds[] = {
    {"4:2:0", 3, 2, 2, false, 0, 90},      {"4:2:2", 3, 2, 1, false, 0, 90},
    {"4:4:0", 3, 1, 2, false, 0, 90},      {"4:4:4", 3, 1, 1, false, 0, 95},
    {"4:1:1", 3, 4, 1, false, 0, 90},      {"4:1:0", 3, 4, 2, false, 0, 90},
    {"grey", 1, 1, 1, false, 0, 90},       {"grey with factors of 2", 1, 2, 2, false, 0, 90},
    {"CMYK 4:2:0", 4, 2, 2, false, 0, 90},
};
enum { CUT_KINDS = sizeof cut_kinds / sizeof *cut_kinds };

/* Every kind with all intervals that divide a row, or do not; odd sizes, among them those whose
 * last MCU has one or two columns of colour. */
static void test_cuts(void **state) {
  static const int64_t shapes[][2] = {{320, 96}, {321, 97}, {323, 33}, {318, 50}, {33, 200},
                                      {35, 35},  {17, 40},  {161, 65}, {8, 64},   {19, 300}};
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  int cut = 0, all = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < CUT_KINDS; k++)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
      const int64_t w = shapes[s][0], h = shapes[s][1];
      const int64_t mcu = cut_kinds[k].components == 1 ? 8 : 8 * cut_kinds[k].h;
      const int64_t mcus = (w + mcu - 1) / mcu;
      uint8_t *rgb = repeated(&img, w, h);
      for (int r = 1; r <= mcus; r++) {
        if (mcus % r != 0 && r != 5) continue;
        unsigned char *file = NULL;
        unsigned long bytes = 0;
        kind with = cut_kinds[k];
        with.restart = r;
        encode(&with, rgb, w, h, r % 8, &file, &bytes);
        int n = check_cuts(d, file, (int64_t)bytes, (ii_decode_options){.apply_orientation = false},
                           16, (uint64_t)(k * 1000 + (int)s * 50 + r), with.name);
        if (mcus % r != 0) assert_int_equal(n, 0);
        if (mcus % r == 0) cut += n, all += 16;
        free(file);
      }
      free(rgb);
    }
  assert_true(all > 4000 && cut > all / 2); /* the others need all that is up to their end */
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* A scan that does not say what those of baseline files say (in lossless files it names a
 * predictor) is left to the library. */
static void test_strange_scans(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  unsigned char *file = NULL;
  unsigned long bytes = 0;
  kind with = cut_kinds[0];
  with.restart = 1;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  encode(&with, img.data, img.w, img.h, 0, &file, &bytes);
  int64_t at = 2;
  while (file[at + 1] != 0xda) at += 2 + (file[at + 2] << 8 | file[at + 3]);
  uint8_t *end = file + at + 2 + file[at + 3] - 3; /* Ss, Se, Ah and Al */
  assert_true(end[0] == 0 && end[1] == 63 && end[2] == 0);
  for (int i = 0; i < 4; i++) {
    const uint8_t strange[4][3] = {{0, 63, 0}, {1, 63, 0}, {0, 0, 0}, {0, 63, 1}};
    memcpy(end, strange[i], 3);
    int n = check_cuts(d, file, (int64_t)bytes, (ii_decode_options){0}, 20, 5, "strange scan");
    assert_true(i == 0 ? n > 10 : n == 0);
  }
  free(file);
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* Recoding: the same pixels; a progressive file is not one any more; parts are cut out of it. */
static void test_recoded(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0}, a = {0}, b = {0};
  const ii_decode_options upright = {.apply_orientation = true};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < KINDS; k++)
    for (int w = 160; w < 320; w += 31) {
      unsigned char *file = NULL;
      unsigned long bytes = 0;
      uint8_t *out;
      int64_t n;
      const int orientation = w % 9;
      encode(&kinds[k], img.data, w, img.w * img.h / w, orientation, &file, &bytes);
      assert_int_equal(ii_jpeg_recode(file, (int64_t)bytes, &out, &n, &err), II_OK);
      if (kinds[k].components == 4) { /* stays as it is */
        assert_null(out);
        free(file);
        continue;
      }
      assert_non_null(out);
      assert_int_equal(ii_image_decode(d, file, (int64_t)bytes, &upright, &a, &err), II_OK);
      assert_int_equal(ii_image_decode(d, out, n, &upright, &b, &err), II_OK);
      assert_false(d->jpeg.progressive_mode);
      assert_int_equal(d->orientation, orientation > 0 ? orientation : 1);
      assert_true(a.w == b.w && a.h == b.h);
      assert_memory_equal(a.data, b.data, (size_t)(a.w * a.h * 3));
      int cuts = check_cuts(d, out, n, upright, 20, (uint64_t)(k * 100 + w), kinds[k].name);
      assert_true(cuts >= 10);
      free(out);
      free(file);
    }
  ii_image_free(&img);
  ii_image_free(&a);
  ii_image_free(&b);
  ii_decoder_free(d);
}

/* What is damaged stays as it is: the decoder is to see that damage. */
static void test_not_recoded(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  unsigned char *file = NULL;
  unsigned long bytes = 0;
  uint8_t *out;
  int64_t n;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < KINDS; k++) {
    encode(&kinds[k], img.data, img.w, img.h, 0, &file, &bytes);
    for (unsigned long cut = 0; cut + 2 < bytes; cut += cut < 700 ? 7 : bytes / 9) {
      assert_int_equal(ii_jpeg_recode(file, (int64_t)cut, &out, &n, &err), II_OK);
      assert_null(out);
    }
    file[bytes / 2] = 0xff, file[bytes / 2 + 1] = 0xc4; /* a marker where there is none */
    assert_int_equal(ii_jpeg_recode(file, (int64_t)bytes, &out, &n, &err), II_OK);
    assert_null(out);
    free(file);
    file = NULL;
  }
  assert_int_equal(ii_jpeg_recode((const uint8_t *)"\x89PNG\r\n\x1a\n", 8, &out, &n, &err), II_OK);
  assert_null(out);
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* One of many kinds of damage; the new size. `file` has room for 64 bytes more. */
static int64_t damage(ii_rng *rng, uint8_t *file, int64_t n) {
  int64_t at = (int64_t)ii_rng_below(rng, (uint64_t)n - 64), markers[4096], count = 0;
  for (int64_t i = 700; i + 1 < n && count < 4096; i++)
    if (file[i] == 0xff && file[i + 1] >= 0xd0 && file[i + 1] <= 0xd7) markers[count++] = i;
  int64_t marker = count ? markers[ii_rng_below(rng, (uint64_t)count)] : at;
  const int64_t some = 1 + (int64_t)ii_rng_below(rng, 30);
  switch (ii_rng_below(rng, 9)) {
  case 0: /* another number */
    file[marker + 1] = (uint8_t)(0xd0 + ii_rng_below(rng, 8));
    return n;
  case 1: /* no marker any more */
    memmove(file + marker, file + marker + 2, (size_t)(n - marker - 2));
    return n - 2;
  case 2: /* one more */
    memmove(file + at + 2, file + at, (size_t)(n - at));
    file[at] = 0xff, file[at + 1] = (uint8_t)(0xd0 + ii_rng_below(rng, 16));
    return n + 2;
  case 3: /* more bytes, or fewer, in a segment */
    memmove(file + at + some, file + at, (size_t)(n - at));
    return n + some;
  case 4:
    memmove(file + at, file + at + some, (size_t)(n - at - some));
    return n - some;
  case 5: /* nine segments gone: the numbers are in order again after eight of them */
    if (count < 20) return n;
    marker = markers[ii_rng_below(rng, (uint64_t)count - 10)];
    memmove(file + marker, file + markers[count - 1], (size_t)(n - markers[count - 1]));
    return n - (markers[count - 1] - marker);
  case 6:
    return at + 64;
  case 7: /* the header */
    file[at % 700] = (uint8_t)ii_rng_u32(rng);
    return n;
  default:
    file[at] = (uint8_t)ii_rng_u32(rng), file[at + some] ^= (uint8_t)(1u << (some & 7));
    return n;
  }
}

/* A damaged file looks the same in parts as whole, and is refused in parts only if it is whole. */
static void test_damaged_cuts(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0}, whole = {0}, part = {0};
  int refused = 0, cut = 0, all = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < CUT_KINDS; k++) {
    unsigned char *file = NULL;
    unsigned long bytes = 0;
    kind with = cut_kinds[k];
    with.restart = 1 + k % 2;
    uint8_t *rgb = repeated(&img, 256, 256);
    encode(&with, rgb, 256, 256, 0, &file, &bytes);
    free(rgb);
    uint8_t *copy = malloc(bytes + 64);
    ii_rng rng = ii_rng_make(7, II_RNG_TEST, (uint64_t)k, 0);
    for (int i = 0; i < 150; i++) {
      memcpy(copy, file, bytes);
      int64_t n = damage(&rng, copy, (int64_t)bytes), w, h;
      const ii_decode_options strict = {.max_pixels = 1 << 22};
      const ii_decode_options o = {.allow_truncated = true, .max_pixels = 1 << 22};
      bool good = ii_image_decode(d, copy, n, &strict, &whole, &err) == II_OK;
      bool shown = ii_image_decode(d, copy, n, &o, &whole, &err) == II_OK;
      for (int c = 0; shown && c < 6; c++) {
        ii_box box = random_part(&rng, whole.w, whole.h), at;
        check_part(d, copy, n, &o, &whole, box, with.name);
        cut += was_cut(d, &whole), all++;
        assert_int_equal(ii_image_open(d, copy, n, &strict, &w, &h, &err), II_OK);
        bool part_good = ii_image_read(d, box, &part, &at, &err) == II_OK;
        assert_true(part_good || !good);
      }
      refused += !good;
    }
    free(copy);
    free(file);
  }
  assert_true(refused > 20 && cut > all / 4);
  ii_image_free(&img);
  ii_image_free(&whole);
  ii_image_free(&part);
  ii_decoder_free(d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_parts),        cmocka_unit_test(test_truncated),
      cmocka_unit_test(test_files),        cmocka_unit_test(test_cuts),
      cmocka_unit_test(test_recoded),      cmocka_unit_test(test_not_recoded),
      cmocka_unit_test(test_damaged_cuts), cmocka_unit_test(test_strange_scans),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
