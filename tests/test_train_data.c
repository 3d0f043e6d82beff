/* What training says of its data: a resumed run notices other images, a loader that cannot keep up
 * is named once, and --profile-data measures the loader alone. */
#include "train_fixture.h"
#include "train/data_profile.h"
#include "train/trainer.h"

static char said[1 << 16];
static volatile sig_atomic_t stop;
static int lines_left; /* lines of progress until a run that was advised is stopped; 0: it is not */

static void listen(void *user, ii_say_kind kind, const char *line) {
  if (kind != II_SAY_PULSE && strlen(said) + strlen(line) + 2 < sizeof said)
    strcat(strcat(said, line), "\n");
  if (lines_left > 0 && strstr(said, "cannot keep up") && --lines_left == 0) stop = 1;
}

/* sets: of "key=value", with spaces between them. */
static ii_status run(const char *out, const char *sets, bool resume, bool accept, ii_error *err) {
  char text[700];
  ii_trainer *t;
  ii_trainer_options *o = calloc(1, sizeof *o);
  *o = (ii_trainer_options){.resume = resume ? "auto" : NULL,
                            .accept_changed_data = accept,
                            .stop = &stop,
                            .say = {listen, NULL}};
  said[0] = 0;
  stop = 0;
  assert_int_equal(ii_config_load(&o->config, fixture_path("tiny.cfg"), err), II_OK);
  snprintf(text, sizeof text, "train.output_dir=%s", fixture_path(out));
  assert_int_equal(ii_config_set(&o->config, text, err), II_OK);
  snprintf(text, sizeof text, "%s", sets);
  for (char *rest, *set = strtok_r(text, " ", &rest); set; set = strtok_r(NULL, " ", &rest))
    assert_int_equal(ii_config_set(&o->config, set, err), II_OK);
  assert_int_equal(ii_config_check(&o->config, err), II_OK);
  ii_status s = ii_trainer_open(o, &t, err);
  if (s == II_OK) {
    s = ii_trainer_run(t, err);
    ii_trainer_close(t);
  }
  free(o);
  return s;
}

static void rename_image(const char *from, const char *to) {
  char a[600], b[600];
  snprintf(a, sizeof a, "%s/data/train/class_0/%s", fixture_folder, from);
  snprintf(b, sizeof b, "%s/data/train/class_0/%s", fixture_folder, to);
  assert_int_equal(rename(a, b), 0);
}

static void must(ii_status s, const ii_error *err) {
  if (s != II_OK) fail_msg("%s", err->text);
}

static void test_changed_data(void **state) {
  static const char warning[] = "the training images are not those of the checkpoint";
  ii_error err = {0};
  must(run("changed", "train.max_steps=8", false, false, &err), &err); /* 6 to an epoch */
  must(run("changed", "train.max_steps=9", true, false, &err), &err);
  assert_null(strstr(said, warning));
  rename_image("00.jpg", "99.jpg"); /* as many images, in another order */
  assert_int_equal(run("changed", "train.max_steps=12", true, false, &err), II_ERR_ARG);
  assert_non_null(strstr(err.text, "as many, with other names, labels or order"));
  assert_non_null(strstr(err.text, "epoch 2"));
  assert_non_null(strstr(err.text, "--accept-changed-data"));
  ii_error_clear(&err);
  must(run("changed", "train.max_steps=12", true, true, &err), &err);
  assert_non_null(strstr(said, warning));
  assert_non_null(strstr(said, "the rest of this epoch"));
  /* the checkpoint is of the new images now, and of the end of an epoch */
  rename_image("99.jpg", "00.jpg");
  must(run("changed", "train.max_steps=14", true, false, &err), &err);
  assert_non_null(strstr(said, warning));
  assert_null(strstr(said, "the rest of this epoch"));
  must(run("changed", "train.max_steps=0", true, false, &err), &err);
  assert_null(strstr(said, warning));
}

static int times_said(const char *what) {
  int n = 0;
  for (const char *p = said; (p = strstr(p, what)) != NULL; p++) n++;
  return n;
}

/* Pictures so large that one thread is slower with them than the network with a small one. A line
 * per step: on a fast machine none of them makes a second alone. */
static void test_slow_loader_is_named_once(void **state) {
  enum { SIDE = 3600 };
  uint8_t *rgb = malloc(SIDE * SIDE * 3);
  ii_error err = {0};
  assert_non_null(rgb);
  ii_rng rng = ii_rng_make(3, II_RNG_DATA, 0, 0);
  for (int64_t i = 0; i < SIDE * SIDE * 3; i++) rgb[i] = (uint8_t)ii_rng_below(&rng, 256);
  assert_int_equal(
      ii_image_write_jpeg(fixture_path("data/train/class_0/00.jpg"), rgb, SIDE, SIDE, 90, &err),
      II_OK);
  free(rgb);
  for (int k = 0; k < 4; k++)
    for (int i = k == 0; i < 6; i++) {
      char path[600];
      snprintf(path, sizeof path, "%s/data/train/class_%d/%02d.jpg", fixture_folder, k, i);
      unlink(path);
      assert_int_equal(link(fixture_path("data/train/class_0/00.jpg"), path), 0);
    }
  lines_left = 12;
  const ii_status s =
      run("slow", "data.workers=1 train.log_every_steps=1 train.epochs=60", false, false, &err);
  assert_int_equal(lines_left, 0);
  assert_int_equal(s, II_ERR_INTERRUPTED);
  assert_int_equal(times_said("cannot keep up"), 1);
  assert_non_null(strstr(said, "the 1 loader thread (data.workers;"));
  assert_non_null(strstr(said, "--profile-data"));
}

static double number_after(const char *text, const char *name) {
  const char *p = strstr(text, name);
  if (!p) fail_msg("no '%s' in:\n%s", name, text);
  return strtod(p + strlen(name), NULL);
}

/* A file that cannot be used comes round in every epoch and is named once. */
static void test_profile_names_bad_files_once(void **state) {
  rename_image("00.jpg", "00.away");
  FILE *f = fopen(fixture_path("data/train/class_0/00.jpg"), "w");
  assert_non_null(f);
  fputs("no picture", f);
  fclose(f);
  assert_int_equal(fixture_run("train", "--config %s --profile-data --profile-seconds 0.5",
                               fixture_path("tiny.cfg")),
                   0);
  const char *text = fixture_output("stdout");
  snprintf(said, sizeof said, "%s", text);
  assert_int_equal(times_said("class_0/00.jpg cannot be used"), 1);
  assert_true(number_after(text, "and are no part of this.\n") > 1); /* so often in the first run */
  rename_image("00.away", "00.jpg");
}

static void test_profile(void **state) {
  for (int i = 0; i < 2; i++) {
    assert_int_equal(fixture_run("train",
                                 "--config %s --set data.workers=%d --set data.format=%s --set "
                                 "data.erase_prob=1 --profile-data --profile-seconds 0.3 "
                                 "--profile-rate 1e9",
                                 fixture_path("tiny.cfg"), i ? 1 : 3, "folder"),
                     0);
    const char *text = fixture_output("stdout");
    assert_non_null(strstr(text, "24 training images to 32 px, batches of 4, 2 ahead"));
    assert_int_equal(strstr(text, "3 threads") != NULL, i == 0);
    assert_non_null(strstr(text, "1 thread\n"));
    static const char *const rows[] = {"images/s  ", "images/s per core  ", "MB/s read  ",
                                       "  decode (what is needed)  ", "  together  "};
    for (int k = 0; k < 5; k++) assert_true(number_after(text, rows[k]) > 0);
    assert_true(number_after(text, "would be needed: ") > 1000);
    assert_non_null(strstr(text, "more than there are processors"));
    assert_string_equal(fixture_output("stderr"), "");
  }
  assert_int_not_equal(access(fixture_path("out"), F_OK), 0); /* nothing was trained */
  assert_int_equal(fixture_run("train", "--config %s --profile-rate 5", fixture_path("tiny.cfg")),
                   2);
  assert_non_null(strstr(fixture_output("stderr"), "goes with --profile-data"));
  assert_int_equal(fixture_run("train", "--config %s --profile-data --profile-seconds x",
                               fixture_path("tiny.cfg")),
                   2);
  assert_int_equal(
      fixture_run("train", "--config %s --accept-changed-data", fixture_path("tiny.cfg")), 2);
}

/* Until the program has a handler for SIGINT. */
static void wait_for_handler(pid_t child) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/%d/status", (int)child);
  for (int tries = 0; tries < 6000; tries++, usleep(10000)) {
    unsigned long long caught = 0;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) sscanf(line, "SigCgt: %llx", &caught);
    fclose(f);
    if (caught >> (SIGINT - 1) & 1) return;
  }
  fail_msg("no handler");
}

/* Ctrl-C: the report of what there is, and a good end. */
static void test_profile_stops(void **state) {
  char text[1000];
  snprintf(text, sizeof text, "--config %s --profile-data --profile-seconds 1000",
           fixture_path("tiny.cfg"));
  const pid_t child = fixture_start("train", text);
  wait_for_handler(child);
  usleep(300000);
  assert_int_equal(kill(child, SIGINT), 0);
  assert_int_equal(fixture_wait(child), 0);
  assert_non_null(strstr(fixture_output("stdout"), "stopped"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_changed_data), cmocka_unit_test(test_profile),
      cmocka_unit_test(test_profile_stops), cmocka_unit_test(test_profile_names_bad_files_once),
      cmocka_unit_test(test_slow_loader_is_named_once)};
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
