/* Training on packs, with a crop index and with the samplers, stopped in mid-epoch and gone on
 * with: the same weights to the bit; skip lists named in the configuration. */
#include "train_fixture.h"
#include "data/pack.h"
#include "data/scan.h"
#include "data/skip_list.h"
#include "train/setup.h"
#include "train/trainer.h"

static void load_config(ii_config *cfg, const char *out) {
  ii_error err = {0};
  char set[700];
  assert_int_equal(ii_config_load(cfg, fixture_path("tiny.cfg"), &err), II_OK);
  snprintf(set, sizeof set, "train.output_dir=%s", fixture_path(out));
  assert_int_equal(ii_config_set(cfg, set, &err), II_OK);
}

static void set_key(ii_config *cfg, const char *assignment) {
  ii_error err = {0};
  if (ii_config_set(cfg, assignment, &err) != II_OK) fail_msg("%s", err.text);
}

static char said[1 << 16];
static void listen(void *user, ii_say_kind kind, const char *line) {
  if (kind != II_SAY_PULSE && strlen(said) + strlen(line) + 2 < sizeof said)
    strcat(strcat(said, line), "\n");
}

static void run(const ii_config *cfg, const char *resume) {
  ii_trainer *t;
  ii_error err = {0};
  said[0] = 0;
  if (ii_config_check(cfg, &err) != II_OK) fail_msg("%s", err.text);
  ii_trainer_options *o = calloc(1, sizeof *o);
  *o = (ii_trainer_options){.config = *cfg, .resume = resume, .say = {listen, NULL}};
  if (ii_trainer_open(o, &t, &err) != II_OK) fail_msg("%s", err.text);
  if (ii_trainer_run(t, &err) != II_OK) fail_msg("%s", err.text);
  ii_trainer_close(t);
  free(o);
}

static const char *last(const char *out) {
  char name[100];
  snprintf(name, sizeof name, "%s/checkpoint-000000018.h5", out);
  return fixture_path(name);
}

static void pack_part(const char *part) {
  ii_error err = {0};
  ii_pack_result r;
  ii_dataset *d;
  char from[600], to[600];
  snprintf(from, sizeof from, "%s/data/%s", fixture_folder, part);
  snprintf(to, sizeof to, "%s/data/%s.h5", fixture_folder, part);
  assert_int_equal(ii_dataset_open_folder(from, NULL, &d, &err), II_OK);
  if (ii_pack_write(d, to, &(ii_pack_options){0}, &r, &err) != II_OK) fail_msg("%s", err.text);
  ii_dataset_free(d);
}

static void test_packed_is_the_folder(void **state) {
  ii_config cfg;
  pack_part("train");
  pack_part("val");
  load_config(&cfg, "folder");
  run(&cfg, NULL);
  load_config(&cfg, "packed");
  set_key(&cfg, "train.max_steps=8"); /* of 6 to an epoch */
  run(&cfg, NULL);
  set_key(&cfg, "train.max_steps=0");
  set_key(&cfg, "data.format=packed");
  set_key(&cfg, "data.workers=1");
  run(&cfg, "auto");
  assert_non_null(strstr(said, "24 training and 12 validation images, 4 classes"));
  fixture_same_weights(last("folder"), last("packed"));
  load_config(&cfg, "memory");
  set_key(&cfg, "data.format=packed");
  set_key(&cfg, "data.in_memory=true");
  run(&cfg, NULL);
  fixture_same_weights(last("folder"), last("memory"));
}

/* Of the folder as it is, but for one image that was another one then. */
static void make_crop_index(void) {
  const char *path = fixture_path("data/train/class_2/03.jpg");
  ii_error err = {0};
  ii_dataset *d;
  ii_scan_options o = {0};
  ii_scan_report r;
  ii_crop_summary x;
  fixture_image(path, 1, 77);
  assert_int_equal(ii_dataset_open_folder(fixture_path("data/train"), NULL, &d, &err), II_OK);
  if (ii_crop_writer_new(d, fixture_path("data/train.crops"), &o.crops, &err) != II_OK ||
      ii_scan(d, &o, &r, &err) != II_OK || ii_crop_writer_finish(o.crops, &x, &err) != II_OK)
    fail_msg("%s", err.text);
  assert_int_equal(x.entries, 24);
  ii_crop_writer_free(o.crops);
  ii_scan_free(&r);
  ii_dataset_free(d);
  fixture_image(path, 2, 3);
}

static void test_crop_index_is_the_folder(void **state) {
  ii_config cfg;
  make_crop_index();
  load_config(&cfg, "folder2");
  run(&cfg, NULL);
  load_config(&cfg, "crops");
  set_key(&cfg, "data.crop_index=train.crops");
  set_key(&cfg, "train.max_steps=8");
  run(&cfg, NULL);
  assert_non_null(strstr(said, "data.crop_index: 24 of 24 images have an entry"));
  const char *changed = strstr(said, "class_2/03.jpg has changed since the crop index was made");
  assert_true(changed && !strstr(strchr(changed, '\n'), "has changed since")); /* once */
  set_key(&cfg, "train.max_steps=0");
  set_key(&cfg, "data.workers=1");
  run(&cfg, "auto");
  fixture_same_weights(last("folder2"), last("crops"));
}

static void test_samplers_resume(void **state) {
  static const char *const samplers[] = {"fixed", "repeated", "balanced"};
  for (int i = 0; i < 3; i++) {
    ii_config cfg;
    char key[64], out[64];
    snprintf(key, sizeof key, "data.sampler=%s", samplers[i]);
    load_config(&cfg, samplers[i]);
    set_key(&cfg, key);
    set_key(&cfg, "data.erase_prob=1"); /* drawn by the trainer, from the keys of the draws */
    run(&cfg, NULL);
    snprintf(out, sizeof out, "part_%s", samplers[i]);
    load_config(&cfg, out);
    set_key(&cfg, key);
    set_key(&cfg, "data.erase_prob=1");
    set_key(&cfg, "train.max_steps=9");
    run(&cfg, NULL);
    set_key(&cfg, "train.max_steps=0");
    run(&cfg, "auto");
    fixture_same_weights(last(samplers[i]), last(out));
  }
}

/* The list takes its images out of training, not out of the validation. */
static void test_skip_list_key(void **state) {
  ii_config cfg;
  ii_error err = {0};
  ii_dataset *d;
  ii_scan_report r;
  for (int part = 0; part < 2; part++) {
    FILE *f =
        fopen(fixture_path(part ? "data/val/class_1/x.jpg" : "data/train/class_1/x.jpg"), "w");
    assert_non_null(f);
    fputs("no picture", f);
    fclose(f);
  }
  load_config(&cfg, "skips");
  set_key(&cfg, "data.skip_list=skip.txt");
  assert_int_equal(ii_setup_dataset(&cfg, true, &d, &err), II_ERR_IO); /* there is none yet */
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_folder(fixture_path("data/train"), NULL, &d, &err), II_OK);
  assert_int_equal(ii_scan(d, &(ii_scan_options){0}, &r, &err), II_OK);
  assert_int_equal(r.bad_count, 1);
  assert_int_equal(ii_scan_write_list(d, &r, fixture_path("data/skip.txt"), &err), II_OK);
  ii_scan_free(&r);
  ii_dataset_free(d);
  assert_int_equal(ii_setup_dataset(&cfg, true, &d, &err), II_OK);
  assert_int_equal(ii_dataset_size(d), 24);
  ii_dataset_free(d);
  assert_int_equal(ii_setup_dataset(&cfg, false, &d, &err), II_OK);
  assert_int_equal(ii_dataset_size(d), 13);
  ii_dataset_free(d);
  run(&cfg, NULL);
  assert_non_null(strstr(said, "data.skip_list: 1 images left out"));
  assert_null(strstr(said, "takes its place")); /* no bad file met in training */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_packed_is_the_folder),
      cmocka_unit_test(test_samplers_resume),
      cmocka_unit_test(test_crop_index_is_the_folder),
      cmocka_unit_test(test_skip_list_key),
  };
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
