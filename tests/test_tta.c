/* Test-time augmentation: against separate plain evaluations, on mirrored images, and where there
 * is nothing to average. */
#include <math.h>
#include "eval/evaluate.h"
#include "kernels/device.h"
#include "train_fixture.h"

/* 4 classes; with them a set of images that no resize touches, and its mirror image. */
static const char *const LISTS[] = {"train.txt", "val.txt"};
static int warnings;

static void count_warnings(void *user, ii_say_kind kind, const char *line) {
  (void)user;
  warnings += kind == II_SAY_WARNING && strstr(line, "cannot be used") != NULL;
}

static void write_square(const char *path, int64_t size, uint64_t sample, bool mirrored) {
  static uint8_t rgb[128 * 128 * 3];
  ii_error err = {0};
  ii_rng rng = ii_rng_make(5, II_RNG_DATA, 9, sample);
  for (int64_t y = 0; y < size; y++)
    for (int64_t x = 0; x < size; x++)
      for (int c = 0; c < 3; c++) {
        const int64_t at = mirrored ? size - 1 - x : x;
        const double wave = 60 * sin(0.2 * (double)((int64_t)sample * at + y * c));
        rgb[(y * size + x) * 3 + c] = (uint8_t)(128 + wave + (double)(at % 7) * 8);
      }
  for (int64_t i = 0; i < size; i++) /* something that no wave has */
    rgb[(i * size + (mirrored ? size - 1 : 0)) * 3] = (uint8_t)ii_rng_below(&rng, 256);
  assert_int_equal(ii_image_write_png(path, rgb, size, size, &err), II_OK);
}

static void write_sets(void) {
  char path[300];
  for (int m = 0; m < 2; m++) {
    snprintf(path, sizeof path, "mkdir -p %s/squares%d/val", fixture_folder, m);
    assert_int_equal(system(path), 0);
    for (int k = 0; k < 4; k++) {
      snprintf(path, sizeof path, "squares%d/val/class_%d", m, k);
      assert_int_equal(mkdir(fixture_path(path), 0777), 0);
      for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "squares%d/val/class_%d/%d.png", m, k, i);
        write_square(fixture_path(path), 32, (uint64_t)(k * 3 + i), m == 1);
      }
    }
  }
}

static void write_text(const char *name, const char *text) {
  FILE *f = fopen(fixture_path(name), "w");
  assert_non_null(f);
  assert_true(fputs(text, f) >= 0);
  assert_int_equal(fclose(f), 0);
}

static void train(const char *more) {
  if (fixture_run("train", "--config %s%s", fixture_path("tiny.cfg"), more) != 0)
    fail_msg("%s", fixture_output("stderr"));
}

static int make(void **state) {
  char text[2000];
  size_t n = 0;
  if (fixture_make(state)) return -1;
  write_sets();
  train("");
  /* a model with metadata, on the same images as a list */
  for (int part = 0; part < 2; part++) {
    n = 0;
    for (int i = 0; i < 12; i++)
      n += (size_t)snprintf(text + n, sizeof text - n, "data/%s/class_%d/0%d.jpg %d %d %d 10.5\n",
                            part ? "val" : "train", i % 4, i / 4, i % 4, i + 1, 10 * i - 50);
    write_text(LISTS[part], text);
  }
  snprintf(text, sizeof text,
           " --set data.root=%s --set data.format=list --set data.train_list=train.txt --set "
           "data.val_list=val.txt --set model.meta_dims=[4,3] --set model.num_classes=4 --set "
           "train.epochs=1 --set train.warmup_epochs=0 --set train.output_dir=%s/meta",
           fixture_folder, fixture_folder);
  train(text);
  return 0;
}

/* An evaluation of a checkpoint: "name=value" settings up to NULL. */
static void open_options(ii_eval_options *o, const char *checkpoint, const char *const *sets) {
  ii_error err = {0};
  *o = (ii_eval_options){.checkpoint = checkpoint, .say = {count_warnings, NULL}};
  if (ii_eval_config(NULL, checkpoint, &o->config, &err) != II_OK) fail_msg("%s", err.text);
  for (; sets && *sets; sets++)
    if (ii_config_set(&o->config, *sets, &err) != II_OK) fail_msg("%s", err.text);
  if (ii_config_check(&o->config, &err) != II_OK) fail_msg("%s", err.text);
}

static ii_eval_result evaluate(const ii_eval_options *o) {
  ii_eval_result r;
  ii_error err = {0};
  warnings = 0;
  if (ii_eval_run(o, &r, &err) != II_OK) fail_msg("%s", err.text);
  return r;
}

static void scales(ii_eval_options *o, const char *text, bool flip) {
  ii_error err = {0};
  assert_int_equal(ii_tta_parse(text, &o->tta, &err), II_OK);
  o->tta.flip = flip;
}

static void same_result(const ii_accuracy *a, const ii_accuracy *b) {
  assert_int_equal(a->images, b->images);
  assert_int_equal(a->failed, b->failed);
  assert_int_equal(a->correct1, b->correct1);
  assert_int_equal(a->correct5, b->correct5);
  assert_memory_equal(&a->loss, &b->loss, sizeof a->loss);
}

static const char *best(void) {
  static char path[400];
  snprintf(path, sizeof path, "%s/out/best.h5", fixture_folder);
  return path;
}

/* One view is the plain evaluation, bit for bit; so is the plain result beside other views. */
static void one_view_is_plain(void **state) {
  static const char *const lists[] = {"1", "2", "1,2", "2,1,3"};
  ii_eval_options o;
  open_options(&o, best(), NULL);
  ii_eval_result plain = evaluate(&o);
  assert_null(plain.class_average);
  for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
    scales(&o, lists[i], false);
    ii_eval_result r = evaluate(&o);
    same_result(&r.accuracy, &plain.accuracy);
    assert_memory_equal(r.class_correct, plain.class_correct, 4 * sizeof(int64_t));
    assert_memory_equal(r.class_images, plain.class_images, 4 * sizeof(int64_t));
    if (i == 0) {
      same_result(&r.average, &plain.accuracy);
      assert_memory_equal(r.class_average, plain.class_correct, 4 * sizeof(int64_t));
    } else {
      assert_true(r.average.loss != plain.accuracy.loss);
    }
    ii_eval_free(&r);
  }
  /* a single size that is not the plain one: the plain evaluation at that size */
  scales(&o, "2", false);
  ii_eval_result r = evaluate(&o);
  open_options(&o, best(), (const char *const[]){"data.img_size=64", NULL});
  ii_eval_result larger = evaluate(&o);
  same_result(&r.average, &larger.accuracy);
  ii_eval_free(&r);
  ii_eval_free(&larger);
  ii_eval_free(&plain);
}

/* {image, mirror image} is the same set of views for an image and for its mirror image. */
static void mirrored_set_gives_the_same(void **state) {
  char root[2][400];
  ii_eval_result r[2];
  for (int m = 0; m < 2; m++) {
    ii_eval_options o;
    snprintf(root[m], sizeof root[m], "data.root=%s/squares%d", fixture_folder, m);
    open_options(&o, best(), (const char *const[]){root[m], NULL});
    scales(&o, "1", true);
    r[m] = evaluate(&o);
  }
  assert_true(r[0].accuracy.loss != r[1].accuracy.loss);
  same_result(&r[0].average, &r[1].average);
  assert_memory_equal(r[0].class_average, r[1].class_average, 4 * sizeof(int64_t));
  for (int m = 0; m < 2; m++) ii_eval_free(&r[m]);
}

/* ---- against separate runs --------------------------------------------------------------------
 * On a set of one image the loss is -log p(label), so that the loss of the average must be
 * -log of the mean of exp(-loss) of the views, each evaluated alone. */

enum { MOST_SETS = 12 };

/* The loss of one view: `image` at `size`. */
static double alone(const char *checkpoint, const char *const *sets, const char *line,
                    int64_t size) {
  char text[100];
  const char *all[MOST_SETS] = {text};
  ii_eval_options o;
  write_text("one.txt", line);
  snprintf(text, sizeof text, "data.img_size=%lld", (long long)size);
  for (int i = 0; sets[i]; i++) all[i + 1] = sets[i];
  open_options(&o, checkpoint, all);
  ii_eval_result r = evaluate(&o);
  const double loss = r.accuracy.loss;
  assert_int_equal(r.accuracy.images, 1);
  ii_eval_free(&r);
  return loss;
}

/* lines: the image and, to be averaged too, its mirror image or NULL. */
static void expect_mean(const char *checkpoint, const char *const *sets, const char *const *lines,
                        const char *list, const int64_t *sizes) {
  double sum = 0;
  int64_t views = 0;
  ii_eval_options o;
  for (int m = 0; m < 2 && lines[m]; m++)
    for (int i = 0; sizes[i]; i++, views++)
      sum += exp(-alone(checkpoint, sets, lines[m], sizes[i]));
  write_text("one.txt", lines[0]);
  open_options(&o, checkpoint, sets);
  scales(&o, list, lines[1] != NULL);
  ii_eval_result r = evaluate(&o);
  const double want = -log(sum / (double)views);
  if (!(fabs(r.average.loss - want) < 1e-6))
    fail_msg("%s %s: loss %.9g, the views alone give %.9g", lines[0], list, r.average.loss, want);
  ii_eval_free(&r);
}

static void the_mean_of_separate_runs(void **state) {
  char root[400];
  snprintf(root, sizeof root, "data.root=%s", fixture_folder);
  const char *const sets[] = {root, "data.format=list", "data.val_list=one.txt", NULL};
  const char *const photo[] = {"data/val/class_2/01.jpg 2\n", NULL};
  const char *const pair[] = {"squares0/val/class_1/1.png 1\n", "squares1/val/class_1/1.png 1\n"};
  const char *const other[] = {"squares0/val/class_3/2.png 0\n", "squares1/val/class_3/2.png 0\n"};
  expect_mean(best(), sets, photo, "1,2,3", (const int64_t[]){32, 64, 96, 0});
  expect_mean(best(), sets, photo, "3,2", (const int64_t[]){96, 64, 0});
  expect_mean(best(), sets, pair, "1", (const int64_t[]){32, 0});
  expect_mean(best(), sets, other, "1", (const int64_t[]){32, 0});
}

/* Only the outputs that data.val_columns names take part in the softmax. */
static void with_columns(void **state) {
  char root[400];
  snprintf(root, sizeof root, "data.root=%s", fixture_folder);
  const char *const sets[] = {root, "data.format=list", "data.val_list=one.txt",
                              "data.val_columns=columns.txt", NULL};
  const char *const pair[] = {"squares0/val/class_1/0.png 1\n", "squares1/val/class_1/0.png 1\n"};
  write_text("columns.txt", "3\n1\n");
  expect_mean(best(), sets, pair, "1", (const int64_t[]){32, 0});
  expect_mean(best(), sets, (const char *const[]){pair[0], NULL}, "2,1,4",
              (const int64_t[]){64, 32, 128, 0});
}

static void with_metadata(void **state) {
  const char *const sets[] = {"data.val_list=one.txt", NULL};
  const char *const lines[] = {"squares0/val/class_1/1.png 1 7 -33 151\n",
                               "squares1/val/class_1/1.png 1 7 -33 151\n"};
  const char *const moved[] = {"squares0/val/class_1/1.png 1 1 60 10\n", NULL};
  char checkpoint[400];
  snprintf(checkpoint, sizeof checkpoint, "%s/meta/best.h5", fixture_folder);
  expect_mean(checkpoint, sets, lines, "1", (const int64_t[]){32, 0});
  expect_mean(checkpoint, sets, moved, "1,2", (const int64_t[]){32, 64, 0});
  assert_true(alone(checkpoint, sets, lines[0], 32) != alone(checkpoint, sets, moved[0], 32));
}

/* On a GPU (or its emulation, where the build has one) the same rules hold, and the results are
 * those of the processor but for rounding. */
static void on_a_gpu(void **state) {
  ii_eval_options o;
  if (ii_cuda_device_count() == 0) skip();
  open_options(&o, best(), NULL);
  scales(&o, "1,2", true);
  ii_eval_result cpu = evaluate(&o);
  o.device = II_CUDA;
  ii_eval_result gpu = evaluate(&o);
  assert_true(fabs(cpu.accuracy.loss - gpu.accuracy.loss) < 1e-4);
  assert_true(fabs(cpu.average.loss - gpu.average.loss) < 1e-4);
  scales(&o, "1", false);
  ii_eval_result one = evaluate(&o);
  same_result(&one.accuracy, &gpu.accuracy);
  same_result(&one.average, &gpu.accuracy);
  ii_eval_free(&cpu);
  ii_eval_free(&gpu);
  ii_eval_free(&one);
}

/* ---- what goes wrong -------------------------------------------------------------------------*/

/* Met at each size, named once, wrong in both results. */
static void unreadable_image(void **state) {
  char text[1200], root[400];
  ii_eval_options o;
  snprintf(text, sizeof text, "cp -r %s/squares0 %s/bad && echo x >%s/bad/val/class_2/1.png",
           fixture_folder, fixture_folder, fixture_folder);
  assert_int_equal(system(text), 0);
  snprintf(root, sizeof root, "data.root=%s/bad", fixture_folder);
  open_options(&o, best(), (const char *const[]){root, NULL});
  scales(&o, "1,2,3", true);
  ii_eval_result r = evaluate(&o);
  assert_int_equal(warnings, 1);
  assert_true(r.accuracy.images == 12 && r.accuracy.failed == 1);
  assert_true(r.average.images == 12 && r.average.failed == 1);
  assert_true(r.class_average[2] <= 2);
  assert_int_equal(r.class_images[2], 3);
  ii_eval_free(&r);
}

static void sizes_of_scales(void **state) {
  static const struct {
    const char *scales;
    int64_t img_size, sizes[4];
  } good[] = {{"0.875,1,1.14", 224, {192, 224, 256}},
              {"1", 36, {36}},
              {"2,0.5", 36, {64, 32}}, /* 72 and 18, but 18 rounds up */
              {"1e0,.75", 384, {384, 288}}};
  static const struct {
    const char *scales;
    int64_t img_size;
    const char *part;
  } bad[] = {{"0.99,1.01", 224, "0.99 and 1.01 both make images of 224"},
             {"1,1", 224, "both"},
             {"1,0.95", 224, "both"},
             {"0.1", 64, "the scale 0.1 makes images of 0 pixels"},
             {"16", 384, "6144"}};
  static const char *const unreadable[] = {
      "",  ",",  "1,",  ",1",  "1;2", "a",    "1 2",
      "0", "-1", "nan", "inf", "17",  "1,,2", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,1.5"};
  ii_tta t = {0};
  int64_t sizes[II_TTA_SCALES];
  ii_error err = {0};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    assert_int_equal(ii_tta_parse(good[i].scales, &t, &err), II_OK);
    if (ii_tta_sizes(&t, good[i].img_size, sizes, &err) != II_OK) fail_msg("%s", err.text);
    assert_memory_equal(sizes, good[i].sizes, (size_t)t.count * sizeof *sizes);
  }
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_equal(ii_tta_parse(bad[i].scales, &t, &err), II_OK);
    assert_int_equal(ii_tta_sizes(&t, bad[i].img_size, sizes, &err), II_ERR_ARG);
    if (!strstr(err.text, bad[i].part)) fail_msg("%s", err.text);
    ii_error_clear(&err);
  }
  for (size_t i = 0; i < sizeof unreadable / sizeof *unreadable; i++) {
    if (ii_tta_parse(unreadable[i], &t, &err) != II_ERR_ARG) fail_msg("%s", unreadable[i]);
    ii_error_clear(&err);
  }
}

/* The program: both results in its text and in its JSON, and one sentence for a wrong list. */
static void program(void **state) {
  assert_int_equal(fixture_run("eval", "--checkpoint %s --tta-flip --tta-scales 1,2", best()), 0);
  assert_non_null(strstr(fixture_output("stdout"), "averaged over 32 64 pixels, with the mirror"));
  assert_int_equal(fixture_run("eval", "--checkpoint %s --tta-flip --json --per-class", best()), 0);
  assert_non_null(strstr(fixture_output("stdout"), "\"flip\": true, \"sizes\": [32]}"));
  assert_non_null(strstr(fixture_output("stdout"), "\"tta_top1\": "));
  assert_int_equal(fixture_run("eval", "--checkpoint %s --tta-scales=1,x", best()), 2);
  assert_non_null(strstr(fixture_output("stderr"), "--tta-scales: the scales \"1,x\""));
  assert_int_equal(fixture_run("eval", "--checkpoint %s --tta-scales=1,1.1", best()), 1);
  assert_non_null(strstr(fixture_output("stderr"), "leave one out"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sizes_of_scales),
      cmocka_unit_test(one_view_is_plain),
      cmocka_unit_test(mirrored_set_gives_the_same),
      cmocka_unit_test(the_mean_of_separate_runs),
      cmocka_unit_test(with_columns),
      cmocka_unit_test(with_metadata),
      cmocka_unit_test(on_a_gpu),
      cmocka_unit_test(unreadable_image),
      cmocka_unit_test(program),
  };
  return cmocka_run_group_tests(tests, make, fixture_remove);
}
