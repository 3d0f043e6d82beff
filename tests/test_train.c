/* The trainer from inside: exact resumption at any step, overfitting, validation, metrics; and the
 * weights loader. */
#include <jansson.h>
#include <math.h>
#include "train_fixture.h"
#include "train/trainer.h"
#include "train/weights.h"
#include "autograd/tape.h"
#include "train/setup.h"

static void load_config(ii_config *cfg, const char *out) {
  ii_error err = {0};
  char set[700];
  assert_int_equal(ii_config_load(cfg, fixture_path("tiny.cfg"), &err), II_OK);
  snprintf(set, sizeof set, "train.output_dir=%s", fixture_path(out));
  assert_int_equal(ii_config_set(cfg, set, &err), II_OK);
}

static void set_key(ii_config *cfg, const char *assignment) {
  ii_error err = {0};
  assert_int_equal(ii_config_set(cfg, assignment, &err), II_OK);
}

/* What the trainer said, for looking at. */
static char said[1 << 16];
static void listen(void *user, ii_say_kind kind, const char *line) {
  (void)user;
  if (kind != II_SAY_PULSE && strlen(said) + strlen(line) + 2 < sizeof said)
    strcat(strcat(said, line), "\n");
}

static ii_status run(const ii_config *cfg, const char *resume, const char *init, ii_error *err) {
  ii_trainer *t;
  said[0] = 0;
  *err = (ii_error){0};
  assert_int_equal(ii_config_check(cfg, err), II_OK);
  ii_trainer_options *o = calloc(1, sizeof *o);
  *o = (ii_trainer_options){.config = *cfg, .resume = resume, .init = init, .say = {listen, NULL}};
  ii_status s = ii_trainer_open(o, &t, err);
  if (s == II_OK) {
    s = ii_trainer_run(t, err);
    ii_trainer_close(t);
  } else {
    assert_null(t);
  }
  free(o);
  assert_int_equal(s, err->status);
  return s;
}

static void run_well(const ii_config *cfg, const char *resume) {
  ii_error err;
  if (run(cfg, resume, NULL, &err) != II_OK) fail_msg("%s", err.text);
}

static const char *checkpoint(const char *out, int step) {
  char name[100];
  snprintf(name, sizeof name, "%s/checkpoint-%09d.h5", out, step);
  return fixture_path(name);
}

/* The loss column of metrics.jsonl, by step. */
static int losses(const char *out, double loss[100]) {
  char name[100], line[1024];
  int n = 0;
  snprintf(name, sizeof name, "%s/metrics.jsonl", out);
  FILE *f = fopen(fixture_path(name), "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    json_t *o = json_loads(line, 0, NULL);
    assert_non_null(o); /* each line is one JSON object */
    if (!strcmp(json_string_value(json_object_get(o, "kind")), "train"))
      loss[n++] = json_real_value(json_object_get(o, "loss"));
    json_decref(o);
  }
  fclose(f);
  return n;
}

/* Stopping after any step and going on changes nothing: weights, average, moments, metrics. Here
 * with an accumulation of 4 over epochs of 6 steps, so that stops fall inside a group of gradients
 * and next to groups that are dropped at the end of an epoch. */
static void resume_exactly(const char *const *keys, const char *name) {
  ii_config cfg;
  char whole[64], part[64], set[64];
  double a[100], b[100];
  snprintf(whole, sizeof whole, "whole_%s", name);
  load_config(&cfg, whole);
  for (int i = 0; keys[i]; i++) set_key(&cfg, keys[i]);
  run_well(&cfg, NULL);
  snprintf(part, sizeof part, "part_%s", name);
  for (int stop = 1; stop <= 18; stop += stop % 6 == 5 ? 1 : 2) {
    load_config(&cfg, part);
    for (int i = 0; keys[i]; i++) set_key(&cfg, keys[i]);
    set_key(&cfg, stop % 2 ? "data.workers=1" : "data.workers=3");
    snprintf(set, sizeof set, "train.max_steps=%d", stop);
    if (stop < 18) set_key(&cfg, set);
    run_well(&cfg, "auto");
  }
  fixture_same_weights(checkpoint(whole, 18), checkpoint(part, 18));
  const int n = losses(whole, a);
  assert_int_equal(n, 9);
  assert_int_equal(losses(part, b), n);
  for (int i = 0; i < n; i++) assert_true(a[i] == b[i]);
}

static void test_resume_exact(void **unused) {
  (void)unused;
  resume_exactly((const char *const[]){NULL}, "plain");
  resume_exactly((const char *const[]){"train.accumulation_steps=4", NULL}, "accumulated");
}

static void test_resume_exact_bf16(void **unused) {
  (void)unused;
  resume_exactly((const char *const[]){"train.amp=\"bf16\"", "model.checkpoint=true", NULL},
                 "bf16");
}

/* Mixing and erasing depend on seed, epoch, batch and sample alone; the configuration is live. */
static void test_resume_exact_mixed(void **unused) {
  (void)unused;
  double a[100], b[100];
  resume_exactly(
      (const char *const[]){"data.mixup=0.8", "data.cutmix=1", "data.erase_prob=0.5", NULL},
      "mixed");
  assert_int_equal(losses("whole_mixed", a), losses("whole_plain", b));
  assert_true(a[0] != b[0]);
}

/* Recomputing blocks in backward must not change a bit. */
static void test_activation_checkpointing(void **unused) {
  (void)unused;
  ii_config cfg;
  load_config(&cfg, "keep");
  run_well(&cfg, NULL);
  load_config(&cfg, "recompute");
  set_key(&cfg, "model.checkpoint=true");
  run_well(&cfg, NULL);
  fixture_same_weights(checkpoint("keep", 18), checkpoint("recompute", 18));
}

static void test_seed_matters(void **unused) {
  (void)unused;
  ii_config cfg;
  double a[100], b[100];
  load_config(&cfg, "seed0");
  run_well(&cfg, NULL);
  load_config(&cfg, "seed1");
  set_key(&cfg, "train.seed=1");
  run_well(&cfg, NULL);
  assert_int_equal(losses("seed0", a), losses("seed1", b));
  assert_true(a[0] != b[0]);
}

/* Enough steps learn the 24 images by heart; both kinds of operator. */
static void overfit(const char *op) {
  ii_config cfg;
  ii_error err = {0};
  ii_h5 *f;
  ii_train_state state;
  char out[32], set[64];
  double loss[100];
  snprintf(out, sizeof out, "overfit_%s", op);
  load_config(&cfg, out);
  snprintf(set, sizeof set, "model.core_op=\"%s\"", op);
  set_key(&cfg, set);
  set_key(&cfg, "data.batch_size=12"); /* 2 steps per epoch */
  set_key(&cfg, "train.epochs=80");
  set_key(&cfg, "train.log_every_steps=4");
  set_key(&cfg, "train.label_smoothing=0");
  set_key(&cfg, "train.eval_every_epochs=0");
  set_key(&cfg, "train.base_lr=5e-3");
  set_key(&cfg, "model.drop_path_rate=0");
  set_key(&cfg, "data.crop_scale=[0.8, 1.0]");
  set_key(&cfg, "data.hflip=0");
  run_well(&cfg, NULL);
  const int n = losses(out, loss);
  assert_int_equal(n, 40);
  assert_true(fabs(loss[0] - log(4)) < 0.5); /* chance at the beginning */
  print_message("%s: loss %.4f after 160 steps\n", op, loss[n - 1]);
  if (loss[n - 1] >= 0.05) fail_msg("%s: the loss is still %g", op, loss[n - 1]);
  assert_int_equal(ii_h5_open(checkpoint(out, 160), &f, &err), II_OK);
  assert_int_equal(ii_checkpoint_state(f, &state, &err), II_OK);
  ii_h5_close(f);
  assert_true(state.best_top1 >= 90); /* the classes are easy: unseen images too */
}

static void test_overfit(void **unused) {
  (void)unused;
  overfit("DCNv3");
  overfit("DCNv4");
}

/* ---- folders and refusals
 * ----------------------------------------------------------------------*/

static void expect(ii_status status, const ii_error *err, ii_status wanted, const char *part) {
  if (status != wanted) fail_msg("status %d, not %d: %s", status, wanted, err->text);
  if (!strstr(err->text, part)) fail_msg("'%s' does not say '%s'", err->text, part);
  assert_null(strchr(err->text, '\n'));
}

static void test_refusals(void **unused) {
  (void)unused;
  ii_config cfg;
  ii_error err;
  load_config(&cfg, "refuse");
  set_key(&cfg, "train.max_steps=2");
  run_well(&cfg, NULL);
  expect(run(&cfg, NULL, NULL, &err), &err, II_ERR_ARG, "--resume auto");
  run_well(&cfg, "auto");
  assert_non_null(strstr(said, "nothing to do"));
  set_key(&cfg, "data.batch_size=8");
  expect(run(&cfg, "auto", NULL, &err), &err, II_ERR_ARG, "steps per epoch");
  assert_non_null(strstr(said, "data.batch_size was 4, is 8"));
  set_key(&cfg, "data.batch_size=4");
  set_key(&cfg, "model.channels=16");
  expect(run(&cfg, "auto", NULL, &err), &err, II_ERR_ARG, "model.channels = 8");
  load_config(&cfg, "refuse");
  expect(run(&cfg, "/nonexistent/x.h5", NULL, &err), &err, II_ERR_IO, "/nonexistent/x.h5");
  set_key(&cfg, "train.max_steps=4");
  run_well(&cfg, "auto");
  const char *older = checkpoint("refuse", 2);
  expect(run(&cfg, older, NULL, &err), &err, II_ERR_ARG, "newer");
  set_key(&cfg, "train.optimizer=\"sgd\"");
  expect(run(&cfg, "auto", NULL, &err), &err, II_ERR_FORMAT, "train.optimizer");
  set_key(&cfg, "train.optimizer=\"adamw\"");
  assert_int_equal(truncate(checkpoint("refuse", 4), 5000), 0);
  run_well(&cfg, "auto");
  assert_non_null(strstr(said, "skipped: "));
  assert_non_null(strstr(said, "damaged or cut off"));
  assert_non_null(strstr(said, "step 2"));
  load_config(&cfg, "refuse2");
  set_key(&cfg, "data.root=\"/nonexistent\"");
  expect(run(&cfg, NULL, NULL, &err), &err, II_ERR_IO, "data.root");
  load_config(&cfg, "tiny.cfg/x"); /* a file is in the way */
  expect(run(&cfg, NULL, NULL, &err), &err, II_ERR_IO, "train.output_dir");
}

/* Checkpoints by minutes (here after each step), and how many are kept. */
static void test_save_by_time_and_keep_last(void **unused) {
  (void)unused;
  ii_config cfg;
  ii_error err = {0};
  char **paths, last[32];
  int64_t n;
  load_config(&cfg, "minutes");
  set_key(&cfg, "train.save_every_epochs=0");
  set_key(&cfg, "train.save_every_minutes=0.0000001");
  set_key(&cfg, "train.keep_last=3");
  run_well(&cfg, NULL);
  assert_int_equal(ii_checkpoint_find(cfg.train.output_dir, &paths, &n, &err), II_OK);
  assert_int_equal(n, 4); /* three and best.h5 */
  for (int i = 0; i < 3; i++) {
    /* the end, and the two steps before it */
    snprintf(last, sizeof last, "checkpoint-%09d.h5", 18 - i);
    assert_non_null(strstr(paths[i], last));
  }
  free(paths);
  load_config(&cfg, "epochs");
  set_key(&cfg, "train.save_every_epochs=2");
  set_key(&cfg, "train.keep_last=10");
  set_key(&cfg, "train.eval_every_epochs=0");
  run_well(&cfg, NULL);
  assert_int_equal(ii_checkpoint_find(cfg.train.output_dir, &paths, &n, &err), II_OK);
  assert_int_equal(n, 3); /* after epochs 2 and 3, and best.h5 */
  assert_non_null(strstr(paths[1], "checkpoint-000000012.h5"));
  free(paths);
}

/* List files with the numbers of time and place that iNaturalist models take beside the image. */
static void write_list(const char *name, const char *part, int images) {
  FILE *f = fopen(fixture_path(name), "w");
  assert_non_null(f);
  for (int k = 0; k < 4; k++)
    for (int i = 0; i < images; i++)
      fprintf(f, "%s/class_%d/%02d.jpg %d %d %.1f %.1f\n", part, k, i, k, 1 + i, 10.0 * k, 5.0 * i);
  assert_int_equal(fclose(f), 0);
}

static void test_lists_with_metadata(void **unused) {
  (void)unused;
  ii_config cfg;
  ii_error err;
  write_list("data/train.txt", "train", 6);
  write_list("data/val.txt", "val", 3);
  load_config(&cfg, "lists");
  set_key(&cfg, "data.format=\"list\"");
  set_key(&cfg, "model.meta_dims=[4, 3]");
  run_well(&cfg, NULL);
  assert_non_null(strstr(said, "24 training and 12 validation images, 4 classes"));
  /* the label of a validation image that the model does not have */
  FILE *f = fopen(fixture_path("data/val.txt"), "a");
  fputs("val/class_0/00.jpg 4 1 1.0 1.0\n", f);
  fclose(f);
  set_key(&cfg, "train.output_dir=\"/tmp/never\"");
  expect(run(&cfg, NULL, NULL, &err), &err, II_ERR_FORMAT, "val.txt:13");
  /* a label that would make a classifier of terabytes */
  f = fopen(fixture_path("data/train.txt"), "a");
  fputs("train/class_0/00.jpg 999999999 1 1.0 1.0\n", f);
  fclose(f);
  expect(run(&cfg, NULL, NULL, &err), &err, II_ERR_ARG, "largest label");
}

/* A rate that blows the weights up: a sentence with step and image, and nothing is overwritten. */
static void test_not_finite(void **unused) {
  (void)unused;
  ii_config cfg;
  ii_error err;
  load_config(&cfg, "blowup");
  set_key(&cfg, "train.base_lr=1000");
  set_key(&cfg, "train.warmup_epochs=0");
  set_key(&cfg, "train.optimizer=\"sgd\"");
  set_key(&cfg, "train.clip_grad=0");
  set_key(&cfg, "train.save_every_steps=1");
  set_key(&cfg, "train.epochs=50");
  expect(run(&cfg, NULL, NULL, &err), &err, II_ERR_ARG, "at step ");
  assert_non_null(strstr(err.text, ".jpg"));
  ii_h5 *f;
  ii_train_state state;
  ii_error none = {0};
  assert_int_equal(ii_checkpoint_open_newest(cfg.train.output_dir, &f, NULL, NULL, &none), II_OK);
  assert_non_null(f);
  assert_int_equal(ii_checkpoint_state(f, &state, &none), II_OK);
  char step[32];
  snprintf(step, sizeof step, "at step %d ", (int)state.step);
  assert_non_null(strstr(err.text, step));
  ii_h5_close(f);
}

/* A damaged training image is replaced, named and counted; a damaged validation image counts as
 * wrong, once. */
static void test_bad_images(void **unused) {
  (void)unused;
  ii_config cfg;
  const char *bad[2] = {"data/train/class_1/02.jpg", "data/val/class_2/01.jpg"};
  char saved[700], path[600];
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%s", fixture_path(bad[i]));
    snprintf(saved, sizeof saved, "%s.saved", path);
    assert_int_equal(rename(path, saved), 0);
    FILE *f = fopen(path, "w");
    fputs("not an image", f);
    fclose(f);
  }
  load_config(&cfg, "bad");
  set_key(&cfg, "train.epochs=2");
  run_well(&cfg, NULL);
  assert_non_null(strstr(said, "train/class_1/02.jpg cannot be used"));
  assert_non_null(strstr(said, "2 times a training image"));
  assert_non_null(strstr(said, "val/class_2/01.jpg cannot be used and counts as wrong"));
  char name[100];
  snprintf(name, sizeof name, "bad/metrics.jsonl");
  FILE *f = fopen(fixture_path(name), "r");
  char line[1024];
  int lines = 0;
  while (fgets(line, sizeof line, f)) {
    if (!strstr(line, "\"val\"")) continue;
    assert_non_null(strstr(line, "\"images\": 12, \"failed\": 1"));
    lines++;
  }
  fclose(f);
  assert_int_equal(lines, 4);
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%s", fixture_path(bad[i]));
    snprintf(saved, sizeof saved, "%s.saved", path);
    assert_int_equal(rename(saved, path), 0);
  }
}

/* ---- validation against a count by hand
 * --------------------------------------------------------*/

/* ii_validate over batches that do not divide the set equals one forward pass per image, ranked by
 * sorting; over all outputs, and over four of them in another order. */
static void test_validation_counts(void **unused) {
  (void)unused;
  ii_config cfg;
  ii_error err = {0};
  ii_dataset *d;
  ii_loader *all, *single;
  ii_accuracy got;
  load_config(&cfg, "count");
  cfg.model.num_classes = 7; /* more than 5, so that top-5 says something */
  assert_int_equal(ii_setup_dataset(&cfg, false, &d, &err), II_OK);
  ii_ctx *c = ii_ctx_open(&(ii_ctx_options){.threads = 1, .real = II_F32, .compute = II_F32}, &err);
  const ii_model_config m = ii_setup_model(&cfg);
  ii_model *model = ii_model_create(c, &m, &err);
  assert_non_null(model);
  ii_model_init(model, 5);
  ii_loader_config l = ii_setup_loader(&cfg, d, false);
  assert_int_equal(ii_loader_new(&l, &all, &err), II_OK);
  const ii_validate_options o = {.img_size = 32, .title = "test"};
  c->training = true; /* as in the middle of training */
  assert_int_equal(ii_validate(model, all, &o, &got, &err), II_OK);
  assert_true(c->training);
  c->training = false;
  static const int32_t columns[] = {6, 2, 0, 5};
  ii_accuracy some;
  const ii_validate_options of_some = {
      .img_size = 32, .title = "test", .columns = columns, .column_count = 4};
  assert_int_equal(ii_validate(model, all, &of_some, &some, &err), II_OK);
  int64_t top1_of_some = 0;
  double loss_of_some = 0;
  l.batch = 1;
  assert_int_equal(ii_loader_new(&l, &single, &err), II_OK);
  int64_t n = 0, top1 = 0, top5 = 0;
  double loss = 0;
  for (const ii_batch *b; ii_loader_next(single, &b, &err) == II_OK && b; n++) {
    double y[7], sum = 0;
    ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){1, 32, 32, 3}, b->images);
    ii_tensor_read_f64(c, ii_model_forward(model, x, NULL, NULL), y);
    ii_tape_reset(c);
    int better = 0;
    for (int k = 0; k < 7; k++) better += y[k] > y[b->labels[0]];
    for (int k = 0; k < 7; k++) sum += exp(y[k]);
    loss += log(sum) - y[b->labels[0]];
    const double mine = y[columns[b->labels[0]]];
    int above = 0;
    sum = 0;
    for (int k = 0; k < 4; k++) above += y[columns[k]] > mine, sum += exp(y[columns[k]]);
    top1_of_some += above < 1;
    loss_of_some += log(sum) - mine;
    top1 += better < 1;
    top5 += better < 5;
  }
  assert_int_equal(n, 12);
  assert_int_equal(got.images, 12);
  assert_int_equal(got.correct1, top1);
  assert_int_equal(got.correct5, top5);
  assert_true(fabs(got.loss - loss / 12) < 1e-6);
  assert_int_equal(some.correct1, top1_of_some);
  assert_int_equal(some.correct5, 12);
  assert_true(fabs(some.loss - loss_of_some / 12) < 1e-6);
  ii_loader_free(all);
  ii_loader_free(single);
  ii_model_destroy(model);
  ii_ctx_close(c);
  ii_dataset_free(d);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_resume_exact),
                                     cmocka_unit_test(test_resume_exact_bf16),
                                     cmocka_unit_test(test_resume_exact_mixed),
                                     cmocka_unit_test(test_activation_checkpointing),
                                     cmocka_unit_test(test_seed_matters),
                                     cmocka_unit_test(test_overfit),
                                     cmocka_unit_test(test_refusals),
                                     cmocka_unit_test(test_save_by_time_and_keep_last),
                                     cmocka_unit_test(test_lists_with_metadata),
                                     cmocka_unit_test(test_not_finite),
                                     cmocka_unit_test(test_bad_images),
                                     cmocka_unit_test(test_validation_counts)};
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
