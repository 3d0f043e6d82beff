/* Training on the CUDA engine: the loss curves of all precisions against the CPU's, the loss scale,
 * exact resumption, errors that the host learns of late, and that a warmed-up step neither waits
 * for the device nor asks it for memory. */
#include <jansson.h>
#include <math.h>
#include "train_fixture.h"
#include "kernels/device.h"
#include "train/trainer.h"

/* ---- running ----------------------------------------------------------------------------------*/

enum { STEPS = 18 }; /* of tiny.cfg */

static ii_config *config(const char *out, const char *const *keys) {
  ii_config *cfg = calloc(1, sizeof *cfg);
  ii_error err = {0};
  char set[700];
  assert_non_null(cfg);
  assert_int_equal(ii_config_load(cfg, fixture_path("tiny.cfg"), &err), II_OK);
  snprintf(set, sizeof set, "train.output_dir=%s", fixture_path(out));
  assert_int_equal(ii_config_set(cfg, set, &err), II_OK);
  for (int i = 0; keys && keys[i]; i++)
    if (ii_config_set(cfg, keys[i], &err) != II_OK) fail_msg("%s", err.text);
  assert_int_equal(ii_config_check(cfg, &err), II_OK);
  return cfg;
}

static char said[1 << 16];
static void listen(void *user, ii_say_kind kind, const char *line) {
  (void)user;
  if (kind != II_SAY_PULSE && strlen(said) + strlen(line) + 2 < sizeof said)
    strcat(strcat(said, line), "\n");
}

static ii_status run(const char *out, ii_device device, const char *const *keys, ii_error *err) {
  ii_config *cfg = config(out, keys);
  ii_trainer_options *o = calloc(1, sizeof *o);
  ii_trainer *t;
  assert_non_null(o);
  *err = (ii_error){0};
  said[0] = 0;
  *o = (ii_trainer_options){
      .config = *cfg, .device = device, .resume = "auto", .say = {listen, NULL}};
  ii_status s = ii_trainer_open(o, &t, err);
  if (s == II_OK) s = ii_trainer_run(t, err);
  if (t) ii_trainer_close(t);
  free(o);
  free(cfg);
  return s;
}

static void run_well(const char *out, ii_device device, const char *const *keys) {
  ii_error err;
  if (run(out, device, keys, &err) != II_OK) fail_msg("%s", err.text);
}

/* One column of the training records. */
static int column(const char *out, const char *key, double value[100]) {
  char name[100], line[1024];
  int n = 0;
  snprintf(name, sizeof name, "%s/metrics.jsonl", out);
  FILE *f = fopen(fixture_path(name), "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    json_t *o = json_loads(line, 0, NULL), *v;
    assert_non_null(o);
    if (!strcmp(json_string_value(json_object_get(o, "kind")), "train")) {
      v = json_object_get(o, key);
      value[n++] = json_is_number(v) ? json_number_value(v) : NAN;
    }
    json_decref(o);
  }
  fclose(f);
  return n;
}

static const char *checkpoint(const char *out, int step) {
  char name[100];
  snprintf(name, sizeof name, "%s/checkpoint-%09d.h5", out, step);
  return fixture_path(name);
}

static ii_train_state state_of(const char *out, int step) {
  ii_h5 *f;
  ii_error err = {0};
  ii_train_state state;
  assert_int_equal(ii_h5_open(checkpoint(out, step), &f, &err), II_OK);
  assert_int_equal(ii_checkpoint_state(f, &state, &err), II_OK);
  ii_h5_close(f);
  return state;
}

#define KEYS(...)       ((const char *const[]){__VA_ARGS__, NULL})
#define EVERY_STEP      "train.log_every_steps=1"
#define FEW_VALIDATIONS "train.eval_every_epochs=0"

/* ---- which GPU --------------------------------------------------------------------------------*/

/* A number that no machine has: only a trainer that passes it on can refuse it. */
static void test_device_index(void **unused) {
  ii_config *cfg = config("index", NULL);
  ii_trainer_options *o = calloc(1, sizeof *o);
  ii_trainer *t;
  ii_error err = {0};
  (void)unused;
  assert_non_null(o);
  *o = (ii_trainer_options){.config = *cfg, .device = II_CUDA, .device_index = 999};
  assert_int_equal(ii_trainer_open(o, &t, &err), II_ERR_DEVICE);
  assert_non_null(strstr(err.text, "there is no GPU 999"));
  free(o);
  free(cfg);
}

/* ---- curves -----------------------------------------------------------------------------------*/

/* Bounds: fp32 differs by the order of sums, which 18 steps amplify; 16 bits by 2^-8 and 2^-11 in
 * every product. Unrelated runs (another seed) differ by more than 0.1 here. */
static void test_curves(void **unused) {
  static const struct {
    const char *amp;
    double bound;
  } runs[] = {{"none", 2e-4}, {"fp16", 1e-2}, {"bf16", 5e-2}};
  double cpu[100], got[100];
  (void)unused;
  run_well("curve_cpu", II_CPU, KEYS("train.amp=none", EVERY_STEP, FEW_VALIDATIONS));
  assert_int_equal(column("curve_cpu", "loss", cpu), STEPS);
  for (int i = 0; i < 3; i++) {
    char amp[32], out[32];
    double worst = 0;
    snprintf(amp, sizeof amp, "train.amp=%s", runs[i].amp);
    snprintf(out, sizeof out, "curve_%s", runs[i].amp);
    run_well(out, II_CUDA, KEYS(amp, EVERY_STEP, FEW_VALIDATIONS));
    assert_int_equal(column(out, "loss", got), STEPS);
    for (int s = 0; s < STEPS; s++) worst = fmax(worst, fabs(got[s] - cpu[s]));
    print_message("%s: largest difference of the loss in %d steps: %.2e\n", runs[i].amp, STEPS,
                  worst);
    if (!(worst < runs[i].bound)) fail_msg("%s: the loss differs by %g", runs[i].amp, worst);
    if (i) assert_true(worst > 0); /* it is another precision indeed */
  }
  run_well("curve_seed", II_CUDA, KEYS("train.seed=1", EVERY_STEP, FEW_VALIDATIONS));
  double apart = 0;
  column("curve_seed", "loss", got);
  for (int s = 0; s < STEPS; s++) apart = fmax(apart, fabs(got[s] - cpu[s]));
  assert_true(apart > 0.1);
}

/* Nothing but the end makes the host wait here, so steps, uploads and the loader run as far apart
 * as they can; a run that waited after each step is what it must equal. With the emulation's
 * lazy streams this sees a batch that is overwritten before it was used. */
static void test_steps_far_apart(void **unused) {
  (void)unused;
  run_well("apart", II_CUDA,
           KEYS("train.amp=none", "train.log_every_steps=1000", "train.save_every_epochs=0",
                FEW_VALIDATIONS));
  fixture_same_weights(checkpoint("curve_none", STEPS), checkpoint("apart", STEPS));
}

/* ---- the loss scale ---------------------------------------------------------------------------*/

/* Too large at first: updates are skipped until it fits, then all goes on; the schedule advances
 * with every step. */
static void test_overflow(void **unused) {
  double scale[100], skipped[100], lr[100], lr_cpu[100];
  (void)unused;
  run_well("overflow", II_CUDA,
           KEYS("train.amp=fp16", "train.loss_scale=16777216", EVERY_STEP, FEW_VALIDATIONS));
  assert_int_equal(column("overflow", "loss_scale", scale), STEPS);
  column("overflow", "skipped", skipped);
  int n = 0;
  for (int s = 0; s < STEPS; s++) {
    const bool bad = skipped[s] > (s ? skipped[s - 1] : 0);
    assert_true(scale[s] == (s ? scale[s - 1] : 16777216) * (bad ? 0.5 : 1));
    n += bad;
  }
  print_message("%d updates skipped\n", n);
  assert_in_range(n, 1, STEPS - 6);
  bool recovered = false; /* two good updates after skipped ones */
  for (int s = 2; s < STEPS; s++) recovered |= skipped[s] > 0 && skipped[s] == skipped[s - 2];
  assert_true(recovered);
  const ii_train_state state = state_of("overflow", STEPS);
  assert_int_equal(state.updates, STEPS - n);
  assert_int_equal(state.skipped_updates, n);
  assert_true(state.loss_scale == scale[STEPS - 1]);
  assert_int_equal(column("overflow", "lr", lr), column("curve_cpu", "lr", lr_cpu));
  for (int s = 0; s < STEPS; s++) assert_true(lr[s] == lr_cpu[s]);
  char text[64];
  snprintf(text, sizeof text, "%d of %d updates were skipped", n, STEPS);
  assert_non_null(strstr(said, text));
}

static void test_growth_and_resume(void **unused) {
  const char *const keys[] = {"train.amp=fp16",
                              "train.loss_scale=256",
                              "train.loss_scale_growth=4",
                              "train.accumulation_steps=2",
                              FEW_VALIDATIONS,
                              NULL};
  double scale[100];
  (void)unused;
  run_well("grow", II_CUDA, keys);
  assert_int_equal(column("grow", "loss_scale", scale), STEPS / 2); /* 9 updates */
  assert_true(scale[2] == 256 && scale[3] == 512 && scale[7] == 1024 && scale[8] == 1024);
  for (int stop = 5; stop <= STEPS; stop += 13 - (stop == 5) * 6) {
    const char *part[8];
    char max[40];
    int n = 0;
    for (; keys[n]; n++) part[n] = keys[n];
    snprintf(max, sizeof max, "train.max_steps=%d", stop < STEPS ? stop : 0);
    part[n++] = max;
    part[n] = NULL;
    run_well("grow_part", II_CUDA, part);
  }
  run_well("grow_part", II_CUDA, keys);
  fixture_same_weights(checkpoint("grow", STEPS), checkpoint("grow_part", STEPS));
  const ii_train_state a = state_of("grow", STEPS), b = state_of("grow_part", STEPS);
  assert_true(a.loss_scale == 1024 && b.loss_scale == 1024);
  assert_int_equal(a.good_updates, 1);
  assert_int_equal(b.good_updates, 1);
  assert_int_equal(b.updates, 9);
}

static void expect(ii_status status, const ii_error *err, const char *part) {
  if (status != II_ERR_ARG) fail_msg("status %d: %s", status, err->text);
  if (!strstr(err->text, part)) fail_msg("'%s' does not say '%s'", err->text, part);
}

/* Weights that blow up are no matter of the scale: the run says so and stops. */
static void test_scale_gives_up(void **unused) {
  ii_error err;
  (void)unused;
  expect(
      run("give_up", II_CUDA,
          KEYS("train.amp=fp16", "train.optimizer=sgd", "train.base_lr=1000", "train.clip_grad=0",
               "train.warmup_epochs=0", "train.epochs=20", "train.loss_scale=16", FEW_VALIDATIONS),
          &err),
      &err, "the loss scale has fallen to ");
}

/* ---- the host looks late ----------------------------------------------------------------------*/

static int bad_step(const char *out, const char *log_every, ii_error *err) {
  int step = -1;
  expect(run(out, II_CUDA,
             KEYS("train.amp=none", "train.optimizer=sgd", "train.base_lr=1000",
                  "train.clip_grad=0", "train.warmup_epochs=0", "train.epochs=20",
                  "train.save_every_steps=3", log_every, FEW_VALIDATIONS),
             err),
         err, "at step ");
  assert_int_equal(sscanf(strstr(err->text, "at step "), "at step %d", &step), 1);
  assert_non_null(strstr(err->text, ".jpg"));
  return step;
}

/* The step is named, however late the host looks, and no checkpoint holds what came of it. */
static void test_late_look(void **unused) {
  ii_error a, b;
  (void)unused;
  const int step = bad_step("late1", "train.log_every_steps=1", &a);
  assert_int_equal(bad_step("late50", "train.log_every_steps=50", &b), step);
  char **paths;
  int64_t n;
  ii_error err = {0};
  ii_config *cfg = config("late50", NULL);
  assert_int_equal(ii_checkpoint_find(cfg->train.output_dir, &paths, &n, &err), II_OK);
  assert_true(n > 0);
  int newest = -1;
  assert_int_equal(sscanf(strstr(paths[0], "checkpoint-"), "checkpoint-%d", &newest), 1);
  assert_true(newest <= step && newest + 3 > step);
  free(paths);
  free(cfg);
}

/* ---- what a step may not do -------------------------------------------------------------------*/

static int waits, allocations; /* calls of the CUDA runtime, counted by the linker's wrappers */

#define WRAP(name, counter, parameters, ...)                                                       \
  int __real_##name parameters;                                                                    \
  int __wrap_##name parameters;                                                                    \
  int __wrap_##name parameters {                                                                   \
    counter++;                                                                                     \
    return __real_##name(__VA_ARGS__);                                                             \
  }
WRAP(cudaStreamSynchronize, waits, (void *s), s)
WRAP(cudaDeviceSynchronize, waits, (void), )
WRAP(cudaMemcpy, waits, (void *to, const void *from, size_t n, int kind), to, from, n, kind)
WRAP(cudaMalloc, allocations, (void **p, size_t n), p, n)
WRAP(cudaMallocAsync, allocations, (void **p, size_t n, void *s), p, n, s)
WRAP(cudaHostAlloc, allocations, (void **p, size_t n, unsigned flags), p, n, flags)
WRAP(cudaFree, allocations, (void *p), p)
WRAP(cudaFreeAsync, allocations, (void *p, void *s), p, s)

/* Calls of a run of so many steps without anything to log or save between them. */
static void count(const char *amp, int steps) {
  char out[32], max[40];
  ii_kctx k;
  snprintf(out, sizeof out, "count_%d", steps);
  snprintf(max, sizeof max, "train.max_steps=%d", steps);
  assert_int_equal(ii_engine_open(&k, &(ii_engine_options){.device = II_CUDA}), 0);
  const bool exact = ii_device_exact(&k);
  ii_engine_close(&k);
  waits = allocations = 0;
  run_well(out, II_CUDA,
           KEYS(amp, max, "train.log_every_steps=1000", "train.save_every_epochs=0",
                "train.eval_every_epochs=0", "train.epochs=1", "data.batch_size=2",
                "data.mixup=0.8", "data.cutmix=1", "data.erase_prob=0.5"));
  if (exact) allocations = 0; /* the pool makes each block an allocation, so that tools see it */
}

static void test_steps_do_not_wait(void **unused) {
  (void)unused;
  static const char *const amps[] = {"train.amp=none", "train.amp=fp16"};
  for (int i = 0; i < 2; i++) {
    char command[700];
    count(amps[i], 4);
    const int w = waits, a = allocations;
    count(amps[i], 9);
    assert_int_equal(waits, w);
    assert_int_equal(allocations, a);
    assert_true(w > 0);
    snprintf(command, sizeof command, "rm -rf %s %s", fixture_path("count_4"),
             fixture_path("count_9"));
    assert_int_equal(system(command), 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_device_index),      cmocka_unit_test(test_curves),
      cmocka_unit_test(test_steps_far_apart),   cmocka_unit_test(test_overflow),
      cmocka_unit_test(test_growth_and_resume), cmocka_unit_test(test_scale_gives_up),
      cmocka_unit_test(test_late_look),         cmocka_unit_test(test_steps_do_not_wait)};
  if (ii_cuda_device_count() == 0) {
    printf("skipped: no GPU\n");
    return 77;
  }
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
