/* augment_preview: its pictures are those of the training loader and of the batch stages, to the
 * bit; its files and its complaints. */
#include <glob.h>
#include <jansson.h>
#include <math.h>
#include "data/loader.h"
#include "train/label_font.h"
#include "train/preview.h"
#include "train/setup.h"
#include "train_fixture.h"

enum { SIZE = 32, PIXELS = SIZE * SIZE * 3, DRAWS = 3 };

static const char *const STRONG[] = {"data.auto_augment=rand-m9-n3-mstd0.5-inc1",
                                     "data.interpolation=random",
                                     "data.erase_prob=0.7",
                                     "data.mixup=0.8",
                                     "data.cutmix=1",
                                     "data.batch_size=8",
                                     "train.seed=11",
                                     NULL};

static void open_config(ii_config *cfg, const char *const *sets) {
  ii_error err = {0};
  if (ii_config_load(cfg, fixture_path("tiny.cfg"), &err) != II_OK) fail_msg("%s", err.text);
  for (; sets && *sets; sets++)
    if (ii_config_set(cfg, *sets, &err) != II_OK) fail_msg("%s", err.text);
  if (ii_config_check(cfg, &err) != II_OK) fail_msg("%s", err.text);
}

static ii_preview preview(const ii_preview_options *o) {
  ii_preview p;
  ii_error err = {0};
  if (ii_preview_make(o, &p, &err) != II_OK) fail_msg("%s", err.text);
  return p;
}

static const ii_preview_cell *cell(const ii_preview *p, int64_t row, int64_t column) {
  return &p->cells[row * p->columns + column];
}

/* The bytes that a normalised image was made of, cut off where erasing left their range. */
static void undo(const ii_config *cfg, const float *v, uint8_t *out) {
  for (int i = 0; i < PIXELS; i++) {
    const double x = 255 * ((double)v[i] * cfg->data.std.v[i % 3] + cfg->data.mean.v[i % 3]);
    out[i] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : rint(x));
  }
}

static void same_pixels(const char *what, const ii_preview_cell *c, const uint8_t *want) {
  assert_true(c->pixels.w == SIZE && c->pixels.h == SIZE);
  if (memcmp(c->pixels.data, want, PIXELS) != 0)
    fail_msg("%s of epoch %lld differs", what, (long long)c->epoch);
}

/* The place of a picture in the sheet shows it pixel for pixel. */
static void in_the_sheet(const ii_image *sheet, ii_box at, const uint8_t *want) {
  assert_true(at.w == SIZE && at.h == SIZE);
  for (int64_t y = 0; y < SIZE; y++)
    assert_memory_equal(sheet->data + ((at.top + y) * sheet->w + at.left) * 3, want + y * SIZE * 3,
                        SIZE * 3);
}

/* Looks for the row's key among the batches of an epoch as training gets them, and hands out its
 * image; the first batch of all is also kept in batch and keys. */
static void find_in_training(ii_loader *l, int64_t epoch, int64_t key, float *out) {
  ii_error err = {0};
  const ii_batch *b;
  for (int64_t i = 0; i < ii_loader_batches_per_epoch(l); i++) {
    ii_loader_seek(l, epoch, i);
    assert_int_equal(ii_loader_next(l, &b, &err), II_OK);
    for (int64_t k = 0; k < b->count; k++)
      if (b->keys[k] == key) {
        memcpy(out, b->images + k * PIXELS, PIXELS * sizeof *out);
        return;
      }
  }
  fail_msg("key %lld is not in epoch %lld", (long long)key, (long long)epoch);
}

static ii_loader *open_loader(const ii_config *cfg, const ii_dataset *d, bool train) {
  ii_error err = {0};
  ii_loader *l;
  const ii_loader_config c = ii_setup_loader(cfg, d, train);
  if (ii_loader_new(&c, &l, &err) != II_OK) fail_msg("%s", err.text);
  return l;
}

/* Draws of all epochs, against the loader of training; evaluation, against the other loader. */
static void cells_are_those_of_training(void **state) {
  static float v[PIXELS];
  uint8_t want[PIXELS];
  ii_config cfg;
  ii_error err = {0};
  ii_dataset *d;
  ii_image sheet = {0};
  ii_box *at;
  open_config(&cfg, STRONG);
  const ii_preview_options o = {.config = &cfg, .count = 5, .draws = DRAWS, .cell = SIZE};
  ii_preview p = preview(&o);
  assert_true(p.rows == 5 && p.columns == 2 + 2 * DRAWS);
  assert_int_equal(ii_preview_sheet(&p, true, &sheet, &at, &err), II_OK);
  assert_int_equal(ii_setup_dataset(&cfg, true, &d, &err), II_OK);
  ii_loader *l = open_loader(&cfg, d, true);
  for (int64_t r = 0; r < p.rows; r++)
    for (int64_t e = 0; e < DRAWS; e++) {
      find_in_training(l, e, p.row[r].key, v);
      undo(&cfg, v, want);
      same_pixels("draw", cell(&p, r, 2 + e), want);
      assert_int_equal(cell(&p, r, 2 + e)->epoch, e);
      in_the_sheet(&sheet, at[r * p.columns + 2 + e], want);
    }
  ii_loader_free(l);
  cfg.data.eval_batch_size = 24;
  l = open_loader(&cfg, d, false);
  const ii_batch *b;
  assert_int_equal(ii_loader_next(l, &b, &err), II_OK);
  for (int64_t r = 0; r < p.rows; r++) {
    undo(&cfg, b->images + p.row[r].sample * PIXELS, want);
    same_pixels("evaluation", cell(&p, r, 1), want);
    in_the_sheet(&sheet, at[r * p.columns + 1], want);
    assert_int_equal(p.row[r].label, b->labels[p.row[r].sample]);
  }
  ii_loader_free(l);
  ii_dataset_free(d);
  ii_image_free(&sheet);
  free(at);
  ii_preview_free(&p);
}

/* The first batch as training erases and mixes it. With a small batch the rows are their own
 * partners too. */
static void batch_is_that_of_training(void **state) {
  static float v[8 * PIXELS];
  uint8_t want[PIXELS];
  for (int seed = 0; seed < 6; seed++) {
    char text[40];
    ii_config cfg;
    ii_error err = {0};
    ii_dataset *d;
    const ii_batch *b;
    open_config(&cfg, STRONG);
    snprintf(text, sizeof text, "train.seed=%d", seed);
    assert_int_equal(ii_config_set(&cfg, text, &err), II_OK);
    const ii_preview_options o = {.config = &cfg, .count = seed % 2 ? 8 : 2, .draws = 1};
    ii_preview p = preview(&o);
    assert_int_equal(ii_setup_dataset(&cfg, true, &d, &err), II_OK);
    ii_loader *l = open_loader(&cfg, d, true);
    assert_int_equal(ii_loader_next(l, &b, &err), II_OK);
    ii_ctx *c = ii_ctx_open(&(ii_ctx_options){.real = II_F32, .compute = II_F32}, &err);
    ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){8, SIZE, SIZE, 3}, b->images);
    ii_mixer mixer;
    assert_int_equal(ii_mixer_init(&mixer, c, &cfg, 8, SIZE, SIZE), II_OK);
    const ii_mix m = ii_mixer_draw(&mixer, 0, 0, 0, b->keys, 8);
    ii_mixer_apply(&mixer, x);
    ii_tensor_read(c, x, v);
    ii_mixer_destroy(&mixer);
    for (int64_t r = 0; r < p.rows; r++) {
      const ii_preview_cell *k = cell(&p, r, 3);
      assert_int_equal(k->kind, II_PREVIEW_BATCH);
      undo(&cfg, v + r * PIXELS, want);
      same_pixels("batch", k, want);
      assert_true(k->mix.lam == m.lam && k->mix.cutmix == m.cutmix);
      assert_int_equal(k->partner, b->samples[7 - r]);
    }
    ii_ctx_close(c);
    ii_loader_free(l);
    ii_dataset_free(d);
    ii_preview_free(&p);
  }
}

/* Image files have the draws of the images of a data set with the same numbers. */
static void files_draw_by_their_number(void **state) {
  static float v[PIXELS];
  uint8_t want[PIXELS];
  char path[2][600];
  ii_config cfg;
  ii_error err = {0};
  ii_dataset *d;
  open_config(&cfg, STRONG);
  for (int i = 0; i < 2; i++)
    snprintf(path[i], sizeof path[i], "%s/data/train/class_0/0%d.jpg", fixture_folder, i);
  const char *const files[] = {path[0], path[1]};
  const ii_preview_options o = {.config = &cfg, .files = files, .n_files = 2, .draws = DRAWS};
  ii_preview p = preview(&o);
  assert_true(p.rows == 2 && p.columns == 2 + DRAWS);
  assert_int_equal(ii_setup_dataset(&cfg, true, &d, &err), II_OK);
  ii_loader *l = open_loader(&cfg, d, true);
  for (int64_t r = 0; r < 2; r++)
    for (int64_t e = 0; e < DRAWS; e++) {
      find_in_training(l, e, r, v); /* of a folder the images are in order of their names */
      undo(&cfg, v, want);
      same_pixels("file", cell(&p, r, 2 + e), want);
    }
  ii_loader_free(l);
  ii_dataset_free(d);
  ii_preview_free(&p);
}

/* With nothing random but a certain flip, a draw is the mirrored evaluation of a square image. */
static void description(void **state) {
  static const char *const sets[] = {"data.crop_scale=[1,1]", "data.crop_ratio=[1,1]",
                                     "data.hflip=1", "data.auto_augment=", NULL};
  char text[2000];
  ii_config cfg;
  open_config(&cfg, sets);
  cfg.data.color_jitter.count = 0;
  cfg.data.small_crop = false;
  const ii_preview_options o = {.config = &cfg, .count = 2, .draws = 1};
  ii_preview p = preview(&o);
  assert_int_equal(p.columns, 3); /* nothing is erased or mixed */
  assert_int_equal(p.cell, 96);
  for (int64_t r = 0; r < 2; r++) {
    const uint8_t *a = cell(&p, r, 1)->pixels.data, *b = cell(&p, r, 2)->pixels.data;
    for (int64_t i = 0; i < SIZE * SIZE; i++)
      assert_memory_equal(a + i * 3, b + (i / SIZE * SIZE + SIZE - 1 - i % SIZE) * 3, 3);
    ii_preview_describe(&p, r, 2, text, sizeof text);
    assert_string_equal(text, "crop 36x36 at 0,0 bicubic\nmirrored");
    ii_preview_describe(&p, r, 1, text, sizeof text);
    assert_string_equal(text, "resize 32x32 bicubic\nview 32x32 at 0,0");
    ii_preview_describe(&p, r, 0, text, sizeof text);
    assert_non_null(strstr(text, "class_"));
    assert_non_null(strstr(text, "\n36x36\n"));
    for (size_t room = 1; room < 30; room++) { /* cut off, never beyond its room */
      memset(text, 'x', sizeof text);
      ii_preview_describe(&p, r, 2, text, room);
      assert_true(strlen(text) < room && text[room] == 'x');
    }
  }
  ii_preview_free(&p);
}

/* data.test_crop: the shorter side to img_size and the middle of that, or the whole stretched. Of
 * 50 x 30 pixels: 32 * 50 / 30 = 53 columns, of which (53 - 32) / 2 = 10.5 are left out. */
static void evaluation_with_and_without_crop(void **state) {
  enum { W = 50, H = 30 };
  static uint8_t rgb[W * H * 3], want[PIXELS];
  char path[600], text[400];
  ii_error err = {0};
  ii_resizer *resizer;
  for (int i = 0; i < W * H * 3; i++) rgb[i] = (uint8_t)(i * 37 % 251);
  snprintf(path, sizeof path, "%s/wide.png", fixture_folder);
  assert_int_equal(ii_image_write_png(path, rgb, W, H, &err), II_OK);
  assert_int_equal(ii_resizer_new(&resizer, &err), II_OK);
  for (int crop = 0; crop < 2; crop++) {
    const char *const sets[] = {crop ? "data.test_crop=true" : "data.test_crop=false", NULL};
    const char *const files[] = {path};
    const ii_image img = {.w = W, .h = H, .data = rgb};
    const int64_t left = crop ? 10 : 0;
    ii_config cfg;
    open_config(&cfg, sets);
    const ii_preview_options o = {.config = &cfg, .files = files, .n_files = 1};
    ii_preview p = preview(&o);
    const ii_resize_job job = {.src = &img,
                               .box = {0, 0, H, W},
                               .filter = II_FILTER_BICUBIC,
                               .out_w = crop ? 53 : SIZE,
                               .out_h = SIZE,
                               .view = {0, left, SIZE, SIZE}};
    assert_int_equal(ii_resize(resizer, &job, want, &err), II_OK);
    same_pixels("evaluation", cell(&p, 0, 1), want);
    ii_preview_describe(&p, 0, 1, text, sizeof text);
    assert_string_equal(text, crop ? "resize 53x32 bicubic\nview 32x32 at 10,0"
                                   : "resize 32x32 bicubic\nview 32x32 at 0,0");
    ii_preview_free(&p);
  }
  ii_resizer_free(resizer);
}

/* An H is two bars and one between them; what lies outside of the picture is left out. */
static void letters(void **state) {
  enum { W = 10, H = 14, GUARD = 64 };
  static const uint8_t ink[3] = {1, 2, 3}, paper[3] = {255, 255, 255};
  uint8_t pixels[W * H * 3 + 2 * GUARD];
  ii_image img = {.w = W, .h = H, .data = pixels + GUARD};
  memset(pixels, 255, sizeof pixels);
  ii_label_draw(&img, "H", 1, 0, 0, 2, ink);
  for (int y = 0; y < H; y++)
    for (int x = 0; x < W; x++) {
      const bool set = x / 2 == 0 || x / 2 == 4 || y / 2 == 3;
      assert_memory_equal(img.data + (y * W + x) * 3, set ? ink : paper, 3);
    }
  for (int y = -20; y < 20; y += 3) ii_label_draw(&img, "gjH \x80", 5, y - 3, y, 3, ink);
  for (int i = 0; i < GUARD; i++)
    assert_true(pixels[i] == 255 && pixels[sizeof pixels - 1 - (size_t)i] == 255);
}

static int64_t scaled(int64_t at, int64_t size, int64_t of) {
  return at * size / of;
}

/* The original in a sheet with captions has the outline of the crop, within a pixel of where it
 * lies, and nothing else; also where the picture is hundreds of times as high as wide. */
static void crops_are_outlined(void **state) {
  static const int64_t sizes[][2] = {{100, 60}, {61, 200}, {3, 900}, {1000, 2}};
  static uint8_t grey[12200 * 3];
  char path[4][600];
  const char *files[4];
  ii_config cfg;
  ii_error err = {0};
  ii_image sheet = {0};
  ii_box *at;
  memset(grey, 100, sizeof grey);
  for (int i = 0; i < 4; i++) {
    snprintf(path[i], sizeof path[i], "%s/outline%d.png", fixture_folder, i);
    assert_int_equal(ii_image_write_png(path[i], grey, sizes[i][0], sizes[i][1], &err), II_OK);
    files[i] = path[i];
  }
  open_config(&cfg, (const char *const[]){"data.small_crop=false", NULL});
  const ii_preview_options o = {.config = &cfg, .files = files, .n_files = 4, .draws = 1};
  ii_preview p = preview(&o);
  assert_int_equal(ii_preview_sheet(&p, true, &sheet, &at, &err), II_OK);
  for (int64_t r = 0; r < 4; r++) {
    const ii_image *img = &cell(&p, r, 0)->pixels;
    const ii_box place = at[r * p.columns], box = cell(&p, r, 2)->plan.resize.box;
    int64_t left = img->w, right = -1, top = img->h, bottom = -1, count = 0;
    for (int64_t y = 0; y < img->h; y++)
      for (int64_t x = 0; x < img->w; x++) {
        const uint8_t *v = sheet.data + ((place.top + y) * sheet.w + place.left + x) * 3;
        if (v[0] == 100 && v[1] == 100 && v[2] == 100) continue;
        left = x < left ? x : left, right = x > right ? x : right, count++;
        top = y < top ? y : top, bottom = y > bottom ? y : bottom;
      }
    const int64_t w = right - left + 1, h = bottom - top + 1;
    assert_in_range(left - scaled(box.left, img->w, sizes[r][0]) + 1, 0, 2);
    assert_in_range(top - scaled(box.top, img->h, sizes[r][1]) + 1, 0, 2);
    assert_in_range(right + 1 - scaled(box.left + box.w, img->w, sizes[r][0]) + 1, 0, 2);
    assert_in_range(bottom + 1 - scaled(box.top + box.h, img->h, sizes[r][1]) + 1, 0, 2);
    assert_int_equal(count, w < 3 || h < 3 ? w * h : 2 * (w + h) - 4);
  }
  free(at);
  ii_image_free(&sheet);
  ii_preview_free(&p);
}

/* Sides from 96 to 256, whole multiples of small sizes. */
static void cell_sizes(void **state) {
  static const int64_t known[][2] = {{32, 96},   {36, 108},  {95, 190}, {96, 96},
                                     {224, 224}, {256, 256}, {384, 256}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    assert_int_equal(ii_preview_cell_size(known[i][0]), known[i][1]);
}

/* ---- the program -----------------------------------------------------------------------------*/

static void decode(const char *path, ii_image *img) {
  ii_bytes file = {0};
  ii_error err = {0};
  ii_decoder *d;
  const ii_decode_options options = {0};
  assert_int_equal(ii_bytes_read(&file, path, &err), II_OK);
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  if (ii_image_decode(d, file.data, file.size, &options, img, &err) != II_OK)
    fail_msg("%s", err.text);
  ii_decoder_free(d);
  ii_bytes_free(&file);
}

static void writes_the_sheet(void **state) {
  ii_config cfg;
  ii_error err = {0};
  ii_image sheet = {0}, file = {0};
  char out[600], text[1400];
  snprintf(out, sizeof out, "%s/sheet.png", fixture_folder);
  open_config(&cfg, (const char *const[]){"train.seed=3", "data.mixup=1", NULL});
  const ii_preview_options o = {.config = &cfg, .count = 4, .draws = 2};
  ii_preview p = preview(&o);
  snprintf(text, sizeof text, "--config %s --set data.mixup=1 --seed 3 --draws 2 --out %s",
           fixture_path("tiny.cfg"), out);
  if (fixture_run("augment_preview", "%s", text) != 0) fail_msg("%s", fixture_output("stderr"));
  assert_non_null(strstr(fixture_output("stdout"), "Mixup"));
  assert_int_equal(ii_preview_sheet(&p, true, &sheet, NULL, &err), II_OK);
  decode(out, &file);
  assert_true(file.w == sheet.w && file.h == sheet.h);
  assert_memory_equal(file.data, sheet.data, (size_t)(sheet.w * sheet.h * 3));
  /* once more: only when told to, here without captions and as JSON */
  assert_int_equal(fixture_run("augment_preview", "%s", text), 1);
  assert_non_null(strstr(fixture_output("stderr"), "--overwrite replaces it"));
  if (fixture_run("augment_preview", "%s --overwrite --no-captions --json", text) != 0)
    fail_msg("%s", fixture_output("stderr"));
  json_t *json = json_loads(fixture_output("stdout"), 0, NULL);
  json_t *row = json_array_get(json_object_get(json, "images"), 3);
  assert_int_equal(json_array_size(json_object_get(row, "draws")), 2);
  assert_int_equal(json_array_size(json_object_get(row, "batches")), 2);
  assert_int_equal(json_integer_value(json_object_get(row, "key")), p.row[3].key);
  json_decref(json);
  assert_int_equal(ii_preview_sheet(&p, false, &sheet, NULL, &err), II_OK);
  decode(out, &file);
  assert_true(file.h == sheet.h);
  assert_memory_equal(file.data, sheet.data, (size_t)(sheet.w * sheet.h * 3));
  ii_image_free(&file);
  ii_image_free(&sheet);
  ii_preview_free(&p);
}

/* One sentence that says `part`, this exit code, and no file. */
static void fails(int code, const char *arguments, const char *part) {
  glob_t found;
  const int got = fixture_wait(fixture_start("augment_preview", arguments));
  const char *text = fixture_output("stderr"), *end = strchr(text, '\n');
  if (got != code || !strstr(text, part) || !end || end[1])
    fail_msg("%s: exit %d: %s", arguments, got, text);
  assert_int_equal(glob(fixture_path("new.png*"), 0, NULL, &found), GLOB_NOMATCH);
  globfree(&found);
}

static void wrong_inputs(void **state) {
  char base[1300], text[2000];
  fails(2, "--out x.png", "--config NAME is missing");
  fails(2, "--config tiny.cfg", "--out FILE.png is missing");
  fails(2, "--confi tiny.cfg", "nearest one is --config");
  fails(2, "--config a --out b --draws x", "--draws x is not a whole number in 0..64");
  fails(2, "--config a --out b --size 7", "--size 7 is not a whole number in 8..4096");
  fails(2, "--config a --out b --count 0", "--count 0 is not a whole number");
  fails(2, "--config a --out b --count 2 x.jpg", "--count is for a data set");
  fails(1, "--config does_not_exist.cfg --out b", "does_not_exist.cfg");
  snprintf(base, sizeof base, "--config %s --out %s", fixture_path("tiny.cfg"),
           fixture_path("new.png"));
  static const char *const more[][2] = {
      {"--count 5", "there are 1..4 in a batch (data.batch_size)"},
      {"--set data.root=/nonexistent", "data.root"},
      {"/nonexistent.jpg", "/nonexistent.jpg"},
      {"--seed -1", "train.seed"},
      {"--set data.auto_augment=nonsense", "rand-m9-mstd0.5-inc1"},
      {"--size 4096 --draws 64", "is too large"}};
  for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
    snprintf(text, sizeof text, "%s %s", base, more[i][0]);
    fails(1, text, more[i][1]);
  }
  snprintf(text, sizeof text, "%s %s", base, fixture_path("tiny.cfg")); /* not an image */
  fails(1, text, "tiny.cfg");
  snprintf(text, sizeof text, "--config %s --out %s", fixture_path("tiny.cfg"),
           fixture_path("no/folder/new.png"));
  fails(1, text, "cannot write");
  snprintf(text, sizeof text, "--config %s --overwrite --out %s", fixture_path("tiny.cfg"),
           fixture_path("data"));
  fails(1, text, "not a regular file");
  assert_int_equal(fixture_run("augment_preview", "--help"), 0);
  assert_non_null(strstr(fixture_output("stdout"), "--overwrite"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(cell_sizes),
      cmocka_unit_test(cells_are_those_of_training),
      cmocka_unit_test(batch_is_that_of_training),
      cmocka_unit_test(files_draw_by_their_number),
      cmocka_unit_test(description),
      cmocka_unit_test(letters),
      cmocka_unit_test(crops_are_outlined),
      cmocka_unit_test(evaluation_with_and_without_crop),
      cmocka_unit_test(writes_the_sheet),
      cmocka_unit_test(wrong_inputs),
  };
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
