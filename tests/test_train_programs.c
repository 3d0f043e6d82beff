/* The programs train and eval from outside: exit codes, messages, signals, JSON. */
#include <glob.h>
#include <jansson.h>
#include <math.h>
#include <time.h>
#include "train_fixture.h"
#include "kernels/device.h"

enum { RESUMABLE = 85 };

static void nap_ms(int ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000L};
  nanosleep(&t, NULL);
}

/* A failing call: this exit code, one sentence on stderr that says `part`, nothing like a crash. */
static void fails(int code, const char *program, const char *arguments, const char *part) {
  const int got = fixture_wait(fixture_start(program, arguments));
  const char *text = fixture_output("stderr");
  if (got != code) fail_msg("%s %s: exit %d: %s", program, arguments, got, text);
  if (!strstr(text, part))
    fail_msg("%s %s: '%s' does not say '%s'", program, arguments, text, part);
  const char *end = strchr(text, '\n');
  if (!end || end[1]) fail_msg("%s %s: more than one line: %s", program, arguments, text);
}

/* What a program says when it is asked for the last GPU of a thousand. */
static const char *cuda_complaint(void) {
  if (!*ii_cuda_engine_name()) return "this build has no CUDA engine";
  return ii_cuda_device_count() ? "there is no GPU 999" : "--device cpu";
}

static void test_wrong_usage(void **unused) {
  (void)unused;
  char text[2000];
  fails(2, "train", "", "--config NAME is missing");
  fails(2, "train", "--confg x.cfg", "nearest one is --config");
  fails(2, "train", "--config", "--config needs a value");
  fails(2, "train", "--config x.cfg --plan=3", "--plan takes no value");
  fails(2, "train", "x.cfg", "\"x.cfg\" is not a flag");
  fails(2, "train", "--config x.cfg --device tpu", "use cpu, cuda or cuda:1");
  fails(2, "train", "--config x.cfg --json", "--plan");
  fails(2, "train", "--config x.cfg --init a.h5 --resume b.h5", "give one of them");
  snprintf(text, sizeof text, "--config %s --partial", fixture_path("tiny.cfg"));
  fails(1, "train", text, "--partial goes with --init");
  snprintf(text, sizeof text, "--config %s --set data.batch_size=100", fixture_path("tiny.cfg"));
  fails(1, "train", text, "data.batch_size = 100");
  fails(1, "train", "--config does_not_exist.cfg", "does_not_exist.cfg");
  snprintf(text, sizeof text, "--config %s --set train.epoch=3", fixture_path("tiny.cfg"));
  fails(1, "train", text, "train.epochs");
  snprintf(text, sizeof text, "--config %s --set train.epochs=0", fixture_path("tiny.cfg"));
  fails(1, "train", text, "out of range");
  snprintf(text, sizeof text, "--config %s --set data.root=/nonexistent", fixture_path("tiny.cfg"));
  fails(1, "train", text, "data.root");
  snprintf(text, sizeof text, "--config %s --set train.output_dir=/proc/x",
           fixture_path("tiny.cfg"));
  fails(1, "train", text, "train.output_dir");
  snprintf(text, sizeof text, "--config %s --resume /nonexistent.h5", fixture_path("tiny.cfg"));
  fails(1, "train", text, "/nonexistent.h5");
  snprintf(text, sizeof text, "--config %s --init %s", fixture_path("tiny.cfg"),
           fixture_path("tiny.cfg"));
  fails(1, "train", text, "not a checkpoint");
  snprintf(text, sizeof text, "--config %s --set train.amp=fp16", fixture_path("tiny.cfg"));
  fails(1, "train", text, "bf16");
  snprintf(text, sizeof text, "--config %s --device cuda:999", fixture_path("tiny.cfg"));
  fails(1, "train", text, cuda_complaint());
  fails(2, "eval", "", "--checkpoint PATH is missing");
  fails(2, "eval", "--chekpoint x", "nearest one is --checkpoint");
  fails(1, "eval", "--checkpoint /nonexistent.h5", "/nonexistent.h5");
}

static void test_help(void **unused) {
  (void)unused;
  assert_int_equal(fixture_run("train", "--help"), 0);
  const char *text = fixture_output("stdout");
  assert_non_null(strstr(text, "--resume"));
  assert_non_null(strstr(text, "drop_path_rate")); /* the keys as well */
  assert_non_null(strstr(text, "exit code 85"));
  assert_int_equal(fixture_run("train", "--version"), 0);
  assert_non_null(strstr(fixture_output("stdout"), "internimage.c"));
  assert_int_equal(fixture_run("eval", "--help"), 0);
  assert_non_null(strstr(fixture_output("stdout"), "--per-class"));
}

/* ---- plan
 * --------------------------------------------------------------------------------------*/

static json_t *plan(const char *arguments) {
  if (fixture_run("train", "%s --plan --json", arguments) != 0)
    fail_msg("%s", fixture_output("stderr"));
  json_t *o = json_loads(fixture_output("stdout"), 0, NULL);
  assert_non_null(o);
  assert_int_equal(json_object_size(o), 3);
  return o;
}

static int64_t memory_of(const char *arguments, const char *class) {
  json_t *o = plan(arguments);
  int64_t bytes = json_integer_value(json_object_get(json_object_get(o, "memory"), class));
  json_decref(o);
  return bytes;
}

/* The official models: parameters, and multiply-adds as counted on the official code (convolutions
 * and linear layers as modules, and 5*H*W*9*C for each deformable convolution). For H and G that
 * count leaves out the products that the official code makes without a module (CLIP head, centre
 * feature scale), at most 1 % more. */
static void test_plan(void **unused) {
  (void)unused;
  static const struct {
    const char *config;
    int64_t parameters, macs;
    double more; /* share that the official count may leave out */
  } known[] = {{"internimage_t_1k", 29918424, 4885100544, 0},
               {"internimage_s_1k", 50079880, 8305966080, 0},
               {"internimage_b_1k", 97461832, 16182426624, 0},
               {"internimage_l_22kto1k_384", 223334810, 107791887360, 0},
               {"internimage_xl_22kto1k_384", 334819780, 162929534976, 0},
               {"internimage_h_22kto1k_384", 1089636760, 534749263872, 0.01},
               {"internimage_h_22kto1k_640", 1089636760, 1485411858432, 0.01},
               {"internimage_g_22kto1k_512", 3076373352, 2701426931712, 0.01},
               {"flash_internimage_t_1k", 29815528, 4868442112, 0},
               {"flash_internimage_s_1k", 50067496, 8313241600, 0},
               {"flash_internimage_b_1k", 97448960, 16198232064, 0},
               {"flash_internimage_l_22kto1k_384", 223297080, 107821378560, 0}};
  char text[200];
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    snprintf(text, sizeof text, "--config %s.cfg", known[i].config);
    json_t *o = plan(text), *memory = json_object_get(o, "memory"), *value;
    const char *key;
    int64_t sum = 0;
    assert_int_equal(json_integer_value(json_object_get(o, "parameters")), known[i].parameters);
    const int64_t macs = json_integer_value(json_object_get(o, "macs"));
    assert_true(macs >= known[i].macs);
    assert_true((double)macs <= (double)known[i].macs * (1 + known[i].more));
    json_object_foreach(memory, key, value) {
      if (strcmp(key, "total") != 0) sum += json_integer_value(value);
    }
    assert_int_equal(sum, json_integer_value(json_object_get(memory, "total")));
    /* fp32: four bytes a number, twice for the two moments of AdamW */
    const int64_t n = 4 * known[i].parameters;
    const int64_t adam = json_integer_value(json_object_get(memory, "optimizer"));
    assert_true(adam >= 2 * n && adam < 2 * n + n / 50);
    json_decref(o);
  }
}

static void test_plan_follows_the_config(void **unused) {
  (void)unused;
  char base[700], more[800];
  snprintf(base, sizeof base, "--config %s", fixture_path("tiny.cfg")); /* classes from the data */
  snprintf(more, sizeof more, "%s --set data.batch_size=16", base);
  const int64_t a = memory_of(base, "activations"), b = memory_of(more, "activations");
  assert_true(b > 3 * a && b < 5 * a); /* batch 4 -> 16 */
  snprintf(more, sizeof more, "%s --set train.ema=false", base);
  assert_true(memory_of(base, "ema") > 0);
  assert_int_equal(memory_of(more, "ema"), 0);
  snprintf(more, sizeof more, "%s --set model.checkpoint=true --set data.batch_size=16", base);
  assert_true(memory_of(more, "activations") < b);
  snprintf(more, sizeof more, "--config %s --set data.root=/nonexistent --plan",
           fixture_path("tiny.cfg"));
  fails(1, "train", more, "model.num_classes");
  assert_int_equal(fixture_run("train", "%s --plan", base), 0);
  assert_non_null(strstr(fixture_output("stdout"), "multiply-adds"));
}

/* ---- a run, eval, signals
 * ----------------------------------------------------------------------*/

static json_t *eval_json(const char *arguments) {
  if (fixture_run("eval", "%s --json", arguments) != 0) fail_msg("%s", fixture_output("stderr"));
  json_t *o = json_loads(fixture_output("stdout"), 0, NULL);
  assert_non_null(o);
  return o;
}

/* The top-1 that training recorded last for these weights. */
static double recorded(const char *weights) {
  char line[1024], mark[64];
  double top1 = -1;
  FILE *f = fopen(fixture_path("out/metrics.jsonl"), "r");
  assert_non_null(f);
  snprintf(mark, sizeof mark, "\"weights\": \"%s\"", weights);
  while (fgets(line, sizeof line, f)) {
    if (!strstr(line, mark)) continue;
    json_t *o = json_loads(line, 0, NULL);
    top1 = json_number_value(json_object_get(o, "top1"));
    json_decref(o);
  }
  fclose(f);
  return top1;
}

static void test_train_and_eval(void **unused) {
  (void)unused;
  char text[1400];
  if (fixture_run("train", "--config %s", fixture_path("tiny.cfg")) != 0)
    fail_msg("%s", fixture_output("stderr"));
  const char *out = fixture_output("stdout");
  assert_non_null(strstr(out, "epoch 3/3 step 18/18"));
  assert_null(strchr(out, '\r')); /* not a terminal: plain lines */
  assert_null(strchr(out, '\033'));
  static const char *const flags[] = {"", " --ema"}, *const weights[] = {"raw", "ema"};
  for (int i = 0; i < 2; i++) { /* the configuration comes from the checkpoint */
    snprintf(text, sizeof text, "--checkpoint %s%s", fixture_path("out/checkpoint-000000018.h5"),
             flags[i]);
    json_t *o = eval_json(text);
    assert_int_equal(json_integer_value(json_object_get(o, "images")), 12);
    const double top1 = json_number_value(json_object_get(o, "top1"));
    assert_true(fabs(top1 - recorded(weights[i])) < 1e-3);
    assert_true(json_number_value(json_object_get(o, "top5")) == 100); /* four classes */
    json_decref(o);
  }
  strcat(text, " --per-class");
  json_t *o = eval_json(text), *classes = json_object_get(o, "classes");
  assert_int_equal(json_array_size(classes), 4);
  const char *name = json_string_value(json_object_get(json_array_get(classes, 2), "name"));
  assert_string_equal(name, "class_2");
  json_decref(o);
  snprintf(text, sizeof text, "--checkpoint %s --set data.root=/nonexistent",
           fixture_path("out/best.h5"));
  fails(1, "eval", text, "data.root");
  snprintf(text, sizeof text, "--checkpoint %s --config %s --set model.depths=[1,1,1,1]",
           fixture_path("out/best.h5"), fixture_path("tiny.cfg"));
  fails(1, "eval", text, "unexpected");
}

/* Classes go by name: a set with some of them, renamed into another order, gives the same labels.
 */
static void test_eval_by_name(void **unused) {
  (void)unused;
  char text[2000];
  snprintf(text, sizeof text,
           "mkdir -p %s/some/val && cp -r %s/data/val/class_1 %s/data/val/class_3 %s/some/val",
           fixture_folder, fixture_folder, fixture_folder, fixture_folder);
  assert_int_equal(system(text), 0);
  snprintf(text, sizeof text, "--checkpoint %s --per-class", fixture_path("out/best.h5"));
  json_t *all = eval_json(text);
  snprintf(text + strlen(text), 1000, " --set data.root=%s", fixture_path("some"));
  json_t *some = eval_json(text);
  assert_int_equal(json_integer_value(json_object_get(some, "images")), 6);
  json_t *a = json_object_get(all, "classes"), *b = json_object_get(some, "classes");
  for (size_t i = 1; i < 4; i += 2)
    assert_true(json_equal(json_array_get(a, i), json_array_get(b, i)));
  json_decref(all);
  json_decref(some);
  snprintf(text, sizeof text, "mv %s/some/val/class_1 %s/some/val/zebra", fixture_folder,
           fixture_folder);
  assert_int_equal(system(text), 0);
  snprintf(text, sizeof text, "--checkpoint %s --set data.root=%s", fixture_path("out/best.h5"),
           fixture_path("some"));
  fails(1, "eval", text, "zebra");
}

/* A result that does not reach its reader is an error, and so is a set without one usable image. */
static void test_nothing_to_say(void **unused) {
  (void)unused;
  char text[2400];
  snprintf(text, sizeof text, "%s/eval --checkpoint %s --json >/dev/full 2>/dev/null", II_BIN,
           fixture_path("out/best.h5"));
  assert_int_equal(WEXITSTATUS(system(text)), 1);
  snprintf(text, sizeof text, "%s/train --config %s --plan >/dev/full 2>/dev/null", II_BIN,
           fixture_path("tiny.cfg"));
  assert_int_equal(WEXITSTATUS(system(text)), 1);
  snprintf(text, sizeof text,
           "cp -r %s/data %s/unusable && for f in %s/unusable/val/*/*; do echo >$f; done",
           fixture_folder, fixture_folder, fixture_folder);
  assert_int_equal(system(text), 0);
  assert_int_equal(fixture_run("eval", "--checkpoint %s --set data.root=%s",
                               fixture_path("out/best.h5"), fixture_path("unusable")),
                   1);
  assert_non_null(strstr(fixture_output("stderr"), "none of the 12 validation images can be used"));
}

/* Resumed into another folder, a run has a best.h5 there too. */
static void test_resume_elsewhere(void **unused) {
  (void)unused;
  const int code =
      fixture_run("train", "--config %s --set train.output_dir=%s --resume %s --set train.epochs=4",
                  fixture_path("tiny.cfg"), fixture_path("elsewhere"),
                  fixture_path("out/checkpoint-000000018.h5"));
  if (code != 0) fail_msg("exit %d: %s", code, fixture_output("stderr"));
  assert_int_equal(access(fixture_path("elsewhere/best.h5"), F_OK), 0);
}

/* Waits until the run has made a step. */
static void wait_for_steps(const char *out) {
  char name[100];
  struct stat st;
  snprintf(name, sizeof name, "%s/metrics.jsonl", out);
  for (int i = 0; i < 3000 && (stat(fixture_path(name), &st) != 0 || st.st_size == 0); i++)
    nap_ms(10);
}

static void test_signals(void **unused) {
  (void)unused;
  static const int signals[] = {SIGTERM, SIGINT, SIGUSR1};
  char text[1400];
  for (int i = 0; i < 3; i++) {
    char out[32];
    snprintf(out, sizeof out, "signal%d", i);
    snprintf(text, sizeof text,
             "--config %s --set train.output_dir=%s --set train.epochs=10000 --set "
             "train.save_every_epochs=0 --set train.eval_every_epochs=0 --resume auto",
             fixture_path("tiny.cfg"), fixture_path(out));
    for (int round = 0; round < 2; round++) { /* and resumes, and again */
      pid_t child = fixture_start("train", text);
      wait_for_steps(out);
      for (int n = 0; round && n < 3000 && !strstr(fixture_output("stdout"), "resumed from"); n++)
        nap_ms(10);
      kill(child, signals[i]);
      const int code = fixture_wait(child);
      if (code != RESUMABLE) fail_msg("exit %d: %s", code, fixture_output("stderr"));
      assert_non_null(strstr(fixture_output("stderr"), "stopped on request after step"));
      if (round) assert_non_null(strstr(fixture_output("stdout"), "resumed from"));
    }
  }
}

/* The second signal does not wait for anything. Stopped, the process cannot handle the first before
 * the second has come. */
static void test_second_signal(void **unused) {
  (void)unused;
  char text[1400];
  snprintf(text, sizeof text,
           "--config %s --set train.output_dir=%s --set train.epochs=10000 --set "
           "train.save_every_epochs=0",
           fixture_path("tiny.cfg"), fixture_path("twice"));
  pid_t child = fixture_start("train", text);
  wait_for_steps("twice");
  kill(child, SIGSTOP);
  kill(child, SIGUSR1);
  kill(child, SIGINT);
  kill(child, SIGCONT);
  const int code = fixture_wait(child);
  assert_true(code == 128 + SIGINT || code == 128 + SIGUSR1);
  glob_t found;
  assert_int_equal(glob(fixture_path("twice/checkpoint-*"), 0, NULL, &found), GLOB_NOMATCH);
}

/* Two runs must not write into one folder. */
static void test_one_run_per_folder(void **unused) {
  (void)unused;
  char text[1400];
  snprintf(text, sizeof text, "--config %s --set train.output_dir=%s --set train.epochs=10000",
           fixture_path("tiny.cfg"), fixture_path("locked"));
  pid_t child = fixture_start("train", text);
  wait_for_steps("locked");
  fails(1, "train", text, "another run is writing");
  kill(child, SIGKILL);
  assert_int_equal(fixture_wait(child), 1000 + SIGKILL);
}

/* --init takes the weights alone. */
static void test_init(void **unused) {
  (void)unused;
  char text[1400];
  snprintf(text, sizeof text, "--config %s --set train.output_dir=%s --init %s --init-ema",
           fixture_path("tiny.cfg"), fixture_path("tuned"), fixture_path("out/best.h5"));
  assert_int_equal(fixture_wait(fixture_start("train", text)), 0);
  const char *out = fixture_output("stdout");
  assert_non_null(strstr(out, "tensors matched"));
  assert_null(strstr(out, "missing"));
  assert_non_null(strstr(out, "step 18/18"));
  snprintf(text, sizeof text,
           "--config %s --set train.output_dir=%s --init %s --set model.layer_scale=1.0",
           fixture_path("tiny.cfg"), fixture_path("refused"), fixture_path("out/best.h5"));
  fails(1, "train", text, "missing");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_wrong_usage),
                                     cmocka_unit_test(test_help),
                                     cmocka_unit_test(test_plan),
                                     cmocka_unit_test(test_plan_follows_the_config),
                                     cmocka_unit_test(test_train_and_eval),
                                     cmocka_unit_test(test_eval_by_name),
                                     cmocka_unit_test(test_nothing_to_say),
                                     cmocka_unit_test(test_resume_elsewhere),
                                     cmocka_unit_test(test_signals),
                                     cmocka_unit_test(test_second_signal),
                                     cmocka_unit_test(test_one_run_per_folder),
                                     cmocka_unit_test(test_init)};
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
