/* Decoding of a part of a picture against decoding of the whole: JPEG files of every kind of
 * sampling, colour, coding and orientation, made here, and random parts of them; the same with a
 * crop index, with which a part is cut out before it is decoded. Damaged files, and indexes that
 * are damaged, of other files, or nonsense. */
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
#include "data/jpeg_index.h"

#define FOLDER II_TEST_DATA "/golden/augment/"

typedef struct {
  const char *name;
  int components; /* 1, 3 or 4 */
  int h, v;       /* sampling of the first component; the others have 1 x 1 */
  bool progressive;
  int restart; /* MCUs between restart markers; 0 = none */
  int quality;
  bool optimised; /* code tables of its own, with what it needs and no more */
} kind;

/* A JPEG file in memory, and its crop index (NULL: none). */
typedef struct {
  const uint8_t *bytes;
  int64_t n;
  const uint8_t *index;
  int64_t index_n;
} jpeg_file;

static const kind kinds[] = {
    {"4:2:0", 3, 2, 2, false, 0, 90, false},
    {"4:2:0 with restart markers", 3, 2, 2, false, 3, 92, false},
    {"4:2:0 progressive", 3, 2, 2, true, 0, 85, false},
    {"4:2:0 progressive with restart markers", 3, 2, 2, true, 7, 85, false},
    {"4:2:0 coarse", 3, 2, 2, false, 0, 20, false},
    {"4:2:2", 3, 2, 1, false, 0, 90, false},
    {"4:2:2 with restart markers", 3, 2, 1, false, 5, 90, false},
    {"4:2:2 progressive", 3, 2, 1, true, 0, 90, false},
    {"4:4:0", 3, 1, 2, false, 0, 90, false},
    {"4:4:4", 3, 1, 1, false, 0, 95, false},
    {"4:4:4 progressive", 3, 1, 1, true, 2, 95, false},
    {"4:1:1", 3, 4, 1, false, 0, 90, false},
    {"4:1:0", 3, 4, 2, false, 0, 90, false},
    {"grey", 1, 1, 1, false, 0, 90, false},
    {"grey with factors of 2", 1, 2, 2, false, 4, 90, false},
    {"grey progressive", 1, 1, 1, true, 0, 90, false},
    {"CMYK", 4, 1, 1, false, 0, 90, false},
    {"CMYK 4:2:0", 4, 2, 2, false, 0, 90, false},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* rgb as a file of this kind. orientation > 0: with an EXIF segment. */
static void encode(const kind *k, const uint8_t *rgb, int64_t w, int64_t h, int orientation,
                   unsigned char **out, unsigned long *bytes) {
  struct jpeg_compress_struct j;
  struct jpeg_error_mgr e;
  j.err = jpeg_std_error(&e);
  jpeg_create_compress(&j);
  jpeg_mem_dest(&j, out, bytes);
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
  if (k->optimised) j.optimize_coding = TRUE;
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
  ii_bytes photo = {0};
  ii_error err = {0};
  assert_int_equal(ii_bytes_read(&photo, FOLDER "photo_spaniel.JPEG", &err), II_OK);
  assert_int_equal(ii_image_decode(d, photo.data, photo.size, &(ii_decode_options){0}, img, &err),
                   II_OK);
  ii_bytes_free(&photo);
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
static int64_t check_part(ii_decoder *d, jpeg_file f, const ii_decode_options *o,
                          const ii_image *whole, ii_box part, const char *name) {
  static ii_image img; /* kept, so that buffers are reused */
  ii_box at;
  ii_error err = {0};
  int64_t w, h;
  assert_int_equal(ii_image_open(d, f.bytes, f.n, o, &w, &h, &err), II_OK);
  assert_true(w == whole->w && h == whole->h);
  ii_image_use_index(d, f.index, f.index_n);
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
    decoded += check_part(d, (jpeg_file){.bytes = bytes, .n = n}, &o, &whole, part, k->name);
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

/* The real files, PNG among them, without and with an index where they have one. A file that is
 * opened and not read must not disturb the next. */
static void test_files(void **state) {
  static const struct {
    const char *name;
    bool indexed;
  } files[] = {{"photo_sloth.JPEG", true},       {"photo_spaniel.JPEG", true},
               {"photo_exif6.JPEG", true},       {"photo_gray_nail.JPEG", true},
               {"made_progressive.JPEG", false}, {"made_cmyk.JPEG", false},
               {"made_422_odd.JPEG", true},      {"made_optimized_q100.JPEG", true},
               {"png_rgb8.png", false},          {"png_rgb8_interlaced.png", false},
               {"made_1x1.JPEG", true},          {"made_png_named_jpeg.JPEG", false}};
  ii_decoder *d = NULL;
  ii_error err = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    char path[512];
    ii_bytes bytes = {0};
    ii_image whole = {0};
    uint8_t *index;
    int64_t w, h, index_n;
    ii_decode_options o = {.apply_orientation = true};
    snprintf(path, sizeof path, FOLDER "%s", files[i].name);
    assert_int_equal(ii_bytes_read(&bytes, path, &err), II_OK);
    assert_int_equal(ii_jpeg_index_make(bytes.data, bytes.size, &index, &index_n, &err), II_OK);
    if (files[i].indexed != (index != NULL)) fail_msg("%s: index or not", files[i].name);
    assert_int_equal(ii_image_open(d, bytes.data, bytes.size, &o, &w, &h, &err), II_OK);
    assert_int_equal(ii_image_decode(d, bytes.data, bytes.size, &o, &whole, &err), II_OK);
    ii_rng rng = ii_rng_make(5, II_RNG_TEST, i, 0);
    for (int p = 0; p < 60; p++) {
      const jpeg_file f = {bytes.data, bytes.size, p % 2 ? index : NULL, p % 2 ? index_n : 0};
      check_part(d, f, &o, &whole, random_part(&rng, w, h), files[i].name);
    }
    free(index);
    ii_image_free(&whole);
    ii_bytes_free(&bytes);
  }
  ii_decoder_free(d);
}

/* ---- with a crop index -----------------------------------------------------------------------*/

/* Whether the last part was decoded from a smaller JPEG. */
static bool was_cut(const ii_decoder *d) {
  return d->hidden > 0;
}

/* Random parts of a file, with an index made of it; returns how many of them were cut out. */
static int check_cuts(ii_decoder *d, const uint8_t *bytes, int64_t n, ii_decode_options o,
                      int parts, uint64_t seed, const char *name) {
  ii_image whole = {0};
  ii_error err = {0};
  uint8_t *index;
  int64_t index_n;
  int cuts = 0;
  if (ii_image_decode(d, bytes, n, &o, &whole, &err) != II_OK) fail_msg("%s: %s", name, err.text);
  assert_false(was_cut(d));
  assert_int_equal(ii_jpeg_index_make(bytes, n, &index, &index_n, &err), II_OK);
  assert_int_equal(!index, index_n == 0);
  ii_rng rng = ii_rng_make(3, II_RNG_TEST, seed, 0);
  for (int i = 0; i < parts; i++) {
    const jpeg_file f = {bytes, n, index, index_n};
    check_part(d, f, &o, &whole, random_part(&rng, whole.w, whole.h), name);
    cuts += was_cut(d);
  }
  if (!index) assert_int_equal(cuts, 0);
  free(index);
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
    {"4:2:0", 3, 2, 2, false, 0, 90, false},
    {"4:2:0 with tables of its own", 3, 2, 2, false, 0, 75, true},
    {"4:2:2", 3, 2, 1, false, 0, 90, false},
    {"4:4:0", 3, 1, 2, false, 0, 90, true},
    {"4:4:4", 3, 1, 1, false, 0, 95, false},
    {"4:4:4 with tables of its own", 3, 1, 1, false, 0, 60, true},
    {"4:1:1", 3, 4, 1, false, 0, 90, true},
    {"4:1:0", 3, 4, 2, false, 0, 90, false},
    {"grey", 1, 1, 1, false, 0, 90, true},
    {"grey with factors of 2", 1, 2, 2, false, 0, 90, false},
};
enum { CUT_KINDS = sizeof cut_kinds / sizeof *cut_kinds };

/* Every kind in odd sizes, among them those whose last square has one or two columns of colour, and
 * turned. */
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
      uint8_t *rgb = repeated(&img, w, h);
      for (int o = 0; o <= 8; o++) {
        unsigned char *bytes = NULL;
        unsigned long n = 0;
        encode(&cut_kinds[k], rgb, w, h, o, &bytes, &n);
        cut += check_cuts(d, bytes, (int64_t)n, (ii_decode_options){.apply_orientation = o > 0}, 12,
                          (uint64_t)(k * 1000 + (int)s * 50 + o), cut_kinds[k].name);
        all += 12;
        free(bytes);
      }
      free(rgb);
    }
  assert_true(all > 10000 && cut > all / 2); /* the others need all that is up to their end */
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* All small sizes. */
static void test_small_cuts(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  int cut = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int64_t w = 1; w <= 40; w++)
    for (int64_t h = 1; h <= 40; h += w % 3 + 1) {
      const kind *k = &cut_kinds[(w * 7 + h) % CUT_KINDS];
      unsigned char *bytes = NULL;
      unsigned long n = 0;
      uint8_t *rgb = repeated(&img, w, h);
      encode(k, rgb, w, h, 0, &bytes, &n);
      cut += check_cuts(d, bytes, (int64_t)n, (ii_decode_options){0}, 6, (uint64_t)(w * 64 + h),
                        k->name);
      free(bytes);
      free(rgb);
    }
  assert_true(cut > 200);
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* Squares of black and white (pattern 0), of all but one colour (1: tables of two codes), noise (2)
 * and the picture (3). */
static void paint(const ii_image *img, int pattern, uint8_t *rgb, int64_t w, int64_t h) {
  ii_rng rng = ii_rng_make(11, II_RNG_TEST, (uint64_t)pattern, 0);
  for (int64_t y = 0; y < h; y++)
    for (int64_t x = 0; x < w; x++)
      for (int c = 0; c < 3; c++) {
        uint8_t *out = rgb + (y * w + x) * 3 + c;
        if (pattern == 0) *out = (x / 8 * 5 + y / 8 * 3) % 7 < 3 ? 255 : 0;
        if (pattern == 1) *out = (uint8_t)(x / 8 == 3 && y / 8 == 5 ? 255 : 128);
        if (pattern == 2) *out = ii_rng_u32(&rng) & 1 ? 255 : 0;
        if (pattern == 3) *out = img->data[(y % img->h * img->w + x % img->w) * 3 + c];
      }
}

/* All qualities, with the highest and lowest coefficients that there are, and tables that lack
 * nearly everything that a made-up square needs. */
static void test_extreme_cuts(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  int cut = 0, all = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int quality = 1; quality <= 100; quality += quality < 10 || quality >= 95 ? 1 : 9)
    for (int pattern = 0; pattern < 4; pattern++)
      for (int k = 0; k < CUT_KINDS; k++) {
        const int64_t w = 150 + 3 * k, h = 90 + quality % 8;
        unsigned char *bytes = NULL;
        unsigned long n = 0;
        uint8_t *rgb = malloc((size_t)(w * h * 3));
        kind with = cut_kinds[k];
        with.quality = quality, with.optimised ^= quality % 2;
        paint(&img, pattern, rgb, w, h);
        encode(&with, rgb, w, h, 0, &bytes, &n);
        cut += check_cuts(d, bytes, (int64_t)n, (ii_decode_options){0}, 6,
                          (uint64_t)(quality * 100 + pattern * 10 + k), with.name);
        all += 6;
        free(bytes);
        free(rgb);
      }
  assert_true(all > 4000 && cut > all / 2);
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* An AC table without room for one more code, whose own codes with their bits are all multiples of
 * 8 long: parts that need another length are decoded in the ordinary way. */
static void test_full_table(void **state) {
  static uint8_t rgb[256 * 256 * 3];
  struct jpeg_compress_struct j;
  struct jpeg_error_mgr e;
  unsigned char *bytes = NULL;
  unsigned long n = 0;
  ii_decoder *d = NULL;
  ii_error err = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  j.err = jpeg_std_error(&e);
  jpeg_create_compress(&j);
  jpeg_mem_dest(&j, &bytes, &n);
  j.image_width = j.image_height = 256;
  j.input_components = 1;
  j.in_color_space = JCS_GRAYSCALE;
  jpeg_set_defaults(&j);
  JHUFF_TBL *ac = j.ac_huff_tbl_ptrs[0];
  memset(ac, 0, sizeof *ac);
  for (int length = 1; length <= 16; length++) {
    ac->bits[length] = 1;
    /* the block's end; then other numbers of zeros in front of so many bits */
    if (length > 1) ac->huffval[length - 1] = (uint8_t)((length - 1) << 4 | (8 - length % 8));
  }
  jpeg_start_compress(&j, TRUE);
  for (int y = 0; y < 256; y++) {
    for (int x = 0; x < 256; x++) rgb[x] = (uint8_t)(x / 8 * 8); /* flat blocks */
    JSAMPROW rows[1] = {rgb};
    jpeg_write_scanlines(&j, rows, 1);
  }
  jpeg_finish_compress(&j);
  jpeg_destroy_compress(&j);
  const int cuts = check_cuts(d, bytes, (int64_t)n, (ii_decode_options){0}, 200, 12, "full table");
  assert_true(cuts < 100); /* where by chance every row ends and begins at the right bits */
  free(bytes);
  ii_decoder_free(d);
}

/* Other kinds of files have no index. */
static void test_no_index(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0};
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < KINDS; k++) {
    unsigned char *bytes = NULL;
    unsigned long n = 0;
    uint8_t *index;
    int64_t index_n;
    const kind *with = &kinds[k];
    encode(with, img.data, img.w, img.h, 0, &bytes, &n);
    assert_int_equal(ii_jpeg_index_make(bytes, (int64_t)n, &index, &index_n, &err), II_OK);
    const bool wanted = !with->progressive && with->restart == 0 && with->components < 4;
    assert_int_equal(index != NULL, wanted);
    free(index);
    /* nor have those that are cut off, anywhere */
    for (unsigned long cut = 0; cut < n; cut += cut < 700 || cut + 10 > n ? 1 : n / 9) {
      assert_int_equal(ii_jpeg_index_make(bytes, (int64_t)cut, &index, &index_n, &err), II_OK);
      assert_true(!index && index_n == 0);
    }
    free(bytes);
  }
  uint8_t *index;
  int64_t index_n;
  const uint8_t png[] = "\x89PNG\r\n\x1a\n";
  assert_int_equal(ii_jpeg_index_make(png, 8, &index, &index_n, &err), II_OK);
  assert_null(index);
  ii_image_free(&img);
  ii_decoder_free(d);
}

/* A scan that does not say what those of baseline files say (in lossless files it names a
 * predictor) has no index, and is left to the library whatever index comes with it. */
static void test_strange_scans(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0}, whole = {0};
  unsigned char *bytes = NULL;
  unsigned long n = 0;
  uint8_t *index, *other;
  int64_t index_n, other_n;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  encode(&cut_kinds[0], img.data, img.w, img.h, 0, &bytes, &n);
  assert_int_equal(ii_jpeg_index_make(bytes, (int64_t)n, &index, &index_n, &err), II_OK);
  int64_t at = 2;
  while (bytes[at + 1] != 0xda) at += 2 + (bytes[at + 2] << 8 | bytes[at + 3]);
  uint8_t *end = bytes + at + 2 + bytes[at + 3] - 3; /* Ss, Se, Ah and Al */
  assert_true(end[0] == 0 && end[1] == 63 && end[2] == 0);
  for (int i = 0; i < 4; i++) {
    const uint8_t strange[4][3] = {{0, 63, 0}, {1, 63, 0}, {0, 0, 0}, {0, 63, 1}};
    const ii_decode_options o = {0};
    ii_rng rng = ii_rng_make(5, II_RNG_TEST, 0, 0);
    int cuts = 0;
    memcpy(end, strange[i], 3);
    assert_int_equal(ii_jpeg_index_make(bytes, (int64_t)n, &other, &other_n, &err), II_OK);
    assert_int_equal(other != NULL, i == 0);
    free(other);
    assert_int_equal(ii_image_decode(d, bytes, (int64_t)n, &o, &whole, &err), II_OK);
    for (int c = 0; c < 20; c++) {
      const jpeg_file f = {bytes, (int64_t)n, index, index_n};
      check_part(d, f, &o, &whole, random_part(&rng, whole.w, whole.h), "strange scan");
      cuts += was_cut(d);
    }
    assert_true(i == 0 ? cuts > 10 : cuts == 0);
  }
  free(index);
  free(bytes);
  ii_image_free(&img);
  ii_image_free(&whole);
  ii_decoder_free(d);
}

/* ---- damage ----------------------------------------------------------------------------------*/

/* One of many kinds of damage; the new size. `bytes` has room for 64 bytes more. */
static int64_t damage(ii_rng *rng, uint8_t *bytes, int64_t n) {
  int64_t at = (int64_t)ii_rng_below(rng, (uint64_t)n - 64);
  const int64_t some = 1 + (int64_t)ii_rng_below(rng, 30);
  switch (ii_rng_below(rng, 7)) {
  case 0: /* a marker where there was none */
    memmove(bytes + at + 2, bytes + at, (size_t)(n - at));
    bytes[at] = 0xff, bytes[at + 1] = (uint8_t)(0xd0 + ii_rng_below(rng, 16));
    return n + 2;
  case 1: /* more bytes, or fewer */
    memmove(bytes + at + some, bytes + at, (size_t)(n - at));
    return n + some;
  case 2:
    memmove(bytes + at, bytes + at + some, (size_t)(n - at - some));
    return n - some;
  case 3:
    return at + 64;
  case 4: /* the header */
    bytes[at % 700] = (uint8_t)ii_rng_u32(rng);
    return n;
  case 5:
    bytes[at] ^= (uint8_t)(1u << (some & 7));
    return n;
  default:
    bytes[at] = (uint8_t)ii_rng_u32(rng), bytes[at + some] ^= (uint8_t)(1u << (some & 7));
    return n;
  }
}

/* A damaged file has no index; or what is there is a picture like any other, without a warning and
 * to its end, and its parts are those of the whole. */
static void test_damaged_files(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0}, whole = {0};
  int none = 0, cut = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < CUT_KINDS; k++) {
    unsigned char *bytes = NULL;
    unsigned long size = 0;
    uint8_t *rgb = repeated(&img, 256, 256);
    encode(&cut_kinds[k], rgb, 256, 256, 0, &bytes, &size);
    free(rgb);
    uint8_t *copy = malloc(size + 64);
    ii_rng rng = ii_rng_make(7, II_RNG_TEST, (uint64_t)k, 0);
    for (int i = 0; i < 200; i++) {
      memcpy(copy, bytes, size);
      uint8_t *index;
      int64_t n = damage(&rng, copy, (int64_t)size), index_n;
      const ii_decode_options strict = {.max_pixels = 1 << 22};
      assert_int_equal(ii_jpeg_index_make(copy, n, &index, &index_n, &err), II_OK);
      none += !index;
      if (!index) continue;
      if (ii_image_decode(d, copy, n, &strict, &whole, &err) == II_OK)
        for (int c = 0; c < 6; c++) {
          const jpeg_file f = {copy, n, index, index_n};
          check_part(d, f, &strict, &whole, random_part(&rng, whole.w, whole.h), cut_kinds[k].name);
          cut += was_cut(d);
        }
      free(index);
    }
    free(copy);
    free(bytes);
  }
  assert_true(none > 1000 && cut > 300);
  ii_image_free(&img);
  ii_image_free(&whole);
  ii_decoder_free(d);
}

/* Makes every row of the index the same `bits` bits of the scan: more than there are in all. */
static void repeat_rows(uint8_t *index, int64_t n, int64_t bits) {
  ii_jpeg_index x;
  assert_true(ii_jpeg_index_open(index, n, &x));
  uint8_t *p = index + 8;
  const int64_t length = bits / x.pieces < UINT16_MAX ? bits / x.pieces : UINT16_MAX;
  for (int64_t row = 0; row < x.rows; row++) {
    memset(p, 0, 4), p += 4;
    for (int64_t i = 0; i < x.pieces; i++, p += 2 + 2 * x.components)
      p[0] = (uint8_t)length, p[1] = (uint8_t)(length >> 8);
  }
}

/* An index of another file, or nonsense of any kind, for one of `bytes` bytes; the new size. */
static int64_t spoil(ii_rng *rng, uint8_t *index, int64_t n, int64_t bytes) {
  const int64_t at = (int64_t)ii_rng_below(rng, (uint64_t)n);
  switch (ii_rng_below(rng, 8)) {
  case 7:
    repeat_rows(index, n, (bytes - 1000) * 8);
    return n;
  case 0:
    return n; /* it is that of another file anyway */
  case 1:
    return at;
  case 2:
    index[at % 12] = (uint8_t)ii_rng_u32(rng);
    return n;
  case 3:
    for (int64_t i = 8; i < n; i++) index[i] = (uint8_t)ii_rng_u32(rng);
    return n;
  case 4: /* small numbers: places inside of the scan, but no more than that */
    for (int64_t i = 8; i < n; i++)
      index[i] = ii_rng_below(rng, 3) ? 0 : (uint8_t)(ii_rng_u32(rng) & 31);
    return n;
  case 5: /* the rows all over the scan */
    for (int64_t i = 8; i + 4 < n; i++)
      if (ii_rng_below(rng, 16) == 0) index[i] ^= (uint8_t)(1u << ii_rng_below(rng, 8));
    return n;
  default:
    index[at] ^= (uint8_t)(1u << ii_rng_below(rng, 8));
    return n;
  }
}

/* Whatever the index is, a part comes out or a sentence, without a step outside of anything: the
 * sanitizer watches, and the index ends where its memory does. */
static void test_wrong_indexes(void **state) {
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image img = {0}, part = {0};
  int cut = 0, all = 0;
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  picture(d, &img);
  for (int k = 0; k < CUT_KINDS; k++) {
    unsigned char *bytes = NULL, *other = NULL;
    unsigned long n = 0, other_n = 0;
    uint8_t *index, *rgb = repeated(&img, 200, 120);
    int64_t index_n;
    encode(&cut_kinds[k], rgb, 200, 120, 0, &bytes, &n);
    kind coarse = cut_kinds[k];
    coarse.quality = 50;
    encode(&coarse, rgb, 200, 120, 0, &other, &other_n);
    free(rgb);
    assert_int_equal(ii_jpeg_index_make(other, (int64_t)other_n, &index, &index_n, &err), II_OK);
    ii_rng rng = ii_rng_make(13, II_RNG_TEST, (uint64_t)k, 0);
    for (int i = 0; i < 300; i++, all++) {
      uint8_t *wrong = malloc((size_t)index_n), *exact;
      memcpy(wrong, index, (size_t)index_n);
      const int64_t size = spoil(&rng, wrong, index_n, (int64_t)n);
      exact = malloc((size_t)size + 1);
      memcpy(exact, wrong, (size_t)size);
      exact = realloc(exact, (size_t)size ? (size_t)size : 1);
      int64_t w, h;
      const ii_decode_options o = {.allow_truncated = i % 2};
      const ii_box box = random_part(&rng, 200, 120);
      ii_box at;
      ii_error_clear(&err);
      assert_int_equal(ii_image_open(d, bytes, (int64_t)n, &o, &w, &h, &err), II_OK);
      ii_image_use_index(d, exact, size);
      if (ii_image_read(d, box, &part, &at, &err) == II_OK) {
        assert_true(at.top <= box.top && at.left <= box.left && at.w == part.w && at.h == part.h);
        assert_true(at.top + at.h >= box.top + box.h && at.left + at.w >= box.left + box.w);
      } else {
        assert_true(err.status == II_ERR_FORMAT && strlen(err.text) > 10);
      }
      cut += was_cut(d);
      free(exact);
      free(wrong);
    }
    free(index);
    free(bytes);
    free(other);
  }
  assert_true(cut > all / 4);
  ii_image_free(&img);
  ii_image_free(&part);
  ii_decoder_free(d);
}

/* A header of 3 colours, each 4 x 4 blocks of a square (10 of all is the most that the library
 * decodes), with codes of 16 bits for what a made-up square consists of; the new size. */
static int64_t put_many_blocks(uint8_t *out, int w, int h) {
  uint8_t *p = out;
  const uint8_t sof[] = {0xff,       0xd8,
                         0xff,       0xc1,
                         0,          17,
                         8,          (uint8_t)(h >> 8),
                         (uint8_t)h, (uint8_t)(w >> 8),
                         (uint8_t)w, 3,
                         1,          0x44,
                         0,          2,
                         0x44,       0,
                         3,          0x44,
                         0};
  const uint8_t sos[] = {0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 63, 0, 0, 0, 0xff, 0xd9};
  memcpy(p, sof, sizeof sof), p += sizeof sof;
  memcpy(p, "\xff\xdb\0\x43", 5), p += 5; /* quantisers of 1 */
  memset(p, 1, 64), p += 64;
  for (int ac = 0; ac < 2; ac++) {
    memcpy(p, "\xff\xc4\0\x23", 4), p += 4; /* a code of each length, 0 the last one */
    *p++ = (uint8_t)(ac << 4);
    memset(p, 1, 16), p += 16;
    for (int i = 1; i <= 16; i++) *p++ = (uint8_t)(i % 16);
  }
  memcpy(p, sos, sizeof sos);
  return p + sizeof sos - out;
}

/* Made-up squares of more blocks than there can be do not fit where they are written: such files
 * are left to the library, which refuses them. */
static void test_many_blocks(void **state) {
  enum {
    W = 128,
    H = 32000,
    ROWS = H / 32,
    PIECES = W / 32,
    INDEX = 8 + ROWS * (4 + PIECES * 8) + 4
  };
  static uint8_t file[1000];
  const int64_t n = put_many_blocks(file, W, H);
  ii_decoder *d = NULL;
  ii_error err = {0};
  ii_image part = {0};
  ii_box at;
  int64_t w, h;
  uint8_t *index = calloc(1, INDEX); /* no bits in any row */
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  memcpy(index, (uint8_t[]){1, 1, 3, 0, (uint8_t)ROWS, ROWS >> 8, PIECES, 0}, 8);
  ii_jpeg_index x;
  assert_true(ii_jpeg_index_open(index, INDEX, &x) && x.rows == ROWS && x.columns == PIECES);
  const ii_decode_options o = {.allow_truncated = true};
  assert_int_equal(ii_image_open(d, file, n, &o, &w, &h, &err), II_OK);
  assert_true(w == W && h == H);
  ii_image_use_index(d, index, INDEX);
  assert_int_equal(ii_image_read(d, (ii_box){.left = 70, .w = 20, .h = H}, &part, &at, &err),
                   II_ERR_FORMAT);
  assert_false(was_cut(d));
  free(index);
  ii_image_free(&part);
  ii_decoder_free(d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_parts),         cmocka_unit_test(test_truncated),
      cmocka_unit_test(test_files),         cmocka_unit_test(test_cuts),
      cmocka_unit_test(test_small_cuts),    cmocka_unit_test(test_extreme_cuts),
      cmocka_unit_test(test_full_table),    cmocka_unit_test(test_no_index),
      cmocka_unit_test(test_strange_scans), cmocka_unit_test(test_damaged_files),
      cmocka_unit_test(test_wrong_indexes), cmocka_unit_test(test_many_blocks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
