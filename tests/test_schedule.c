/* Learning-rate schedules and parameter groups against the official code's numbers (extracts of
 * them in tests/golden/optim) and against hand-made cases. */
#include "optim/param_groups.h"
#include "optim/schedule.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

/* Opens an extract and skips its comment lines. */
static FILE *open_extract(const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/golden/optim/%s", II_TEST_DATA, name);
  FILE *f = fopen(path, "r");
  if (!f) fail_msg("cannot open %s", path);
  int c;
  while ((c = fgetc(f)) == '#')
    while ((c = fgetc(f)) != '\n' && c != EOF) {
    }
  ungetc(c, f);
  return f;
}

static void assert_near(double got, double want, const char *what, long long where) {
  if (!(fabs(got - want) <= 1e-12 * fabs(want)))
    fail_msg("%s at %lld: %.17g instead of %.17g", what, where, got, want);
}

typedef struct {
  char name[128];
  ii_schedule s;
  double base;
  int groups, rows;
  double ratio[8], first[8];
} schedule_case;

static int read_schedule(FILE *f, schedule_case *c) {
  long long epochs, n, batch, world;
  double warmup_epochs, base, warmup_lr, min_lr;
  if (fscanf(f, " schedule %127s %lld %lld %lf %lld %lld %lf %lf %lf %d %d", c->name, &epochs, &n,
             &warmup_epochs, &batch, &world, &base, &warmup_lr, &min_lr, &c->groups,
             &c->rows) != 11)
    return 0;
  assert_in_range(c->groups, 1, 8);
  const double factor = ii_schedule_lr_factor(batch * world, 512);
  c->base = base * factor;
  c->s = (ii_schedule){.kind = II_SCHEDULE_COSINE,
                       .epochs = epochs,
                       .steps_per_epoch = n,
                       .accumulation = 1,
                       .warmup_epochs = warmup_epochs,
                       .warmup_lr = warmup_lr * factor,
                       .min_lr = min_lr * factor};
  for (int g = 0; g < c->groups; g++) assert_int_equal(fscanf(f, "%lf", &c->ratio[g]), 1);
  for (int g = 0; g < c->groups; g++) assert_int_equal(fscanf(f, "%lf", &c->first[g]), 1);
  return 1;
}

static void test_official_schedules(void **state) {
  FILE *f = open_extract("schedules.txt");
  int configs = 0;
  for (schedule_case c; read_schedule(f, &c); configs++) {
    assert_int_equal(ii_schedule_check(&c.s, NULL), II_OK);
    for (int g = 0; g < c.groups; g++)
      assert_near(ii_schedule_lr(&c.s, c.base * c.ratio[g], 0), c.first[g], c.name, 0);
    for (int i = 0; i < c.rows; i++) {
      long long t;
      assert_int_equal(fscanf(f, "%lld", &t), 1);
      for (int g = 0; g < c.groups; g++) {
        double want;
        assert_int_equal(fscanf(f, "%lf", &want), 1);
        const double v = c.base * c.ratio[g];
        assert_near(ii_schedule_value(&c.s, v, t), want, c.name, t);
        assert_near(ii_schedule_lr(&c.s, v, t + 1), want, c.name, t + 1); /* one step late */
      }
    }
  }
  assert_true(feof(f));
  fclose(f);
  assert_int_equal(configs, 20);
}

/* The run of the reference data's accumulation case: 24 batches per epoch, updates every second. */
static void test_accumulation(void **state) {
  const ii_schedule s = {.kind = II_SCHEDULE_COSINE,
                         .epochs = 3,
                         .steps_per_epoch = 24,
                         .accumulation = 2,
                         .warmup_epochs = 1,
                         .warmup_lr = 5e-5,
                         .min_lr = 1e-5};
  const double step = (1e-3 - 5e-5) / 24;
  const double want[] = {
      5e-5, 5e-5, 5e-5 + step, 5e-5 + step, 5e-5 + 3 * step, 5e-5 + 3 * step, 5e-5 + 5 * step};
  for (int i = 0; i < 7; i++) assert_near(ii_schedule_lr(&s, 1e-3, i), want[i], "accumulation", i);
  assert_near(ii_schedule_lr(&s, 1e-3, 23), 5e-5 + 21 * step, "accumulation", 23);
  assert_near(ii_schedule_lr(&s, 1e-3, 24), 5e-5 + 23 * step, "accumulation", 24);
  for (int i = 0; i < 6; i++) assert_int_equal(ii_schedule_is_update(&s, i), i % 2);
}

/* 7 batches per epoch in groups of 3: the seventh belongs to no update. */
static void test_ragged_accumulation(void **state) {
  const ii_schedule s = {.kind = II_SCHEDULE_COSINE,
                         .epochs = 5,
                         .steps_per_epoch = 7,
                         .accumulation = 3,
                         .min_lr = 1e-5};
  static const bool update[] = {0, 0, 1, 0, 0, 1, 0};
  int64_t updates = 0, last = -1;
  for (int64_t i = 0; i < 35; i++) {
    const double want = last < 0 ? 1e-3 : ii_schedule_value(&s, 1e-3, last);
    assert_near(ii_schedule_lr(&s, 1e-3, i), want, "ragged", i);
    assert_int_equal(ii_schedule_is_update(&s, i), update[i % 7]);
    if (update[i % 7]) {
      updates++;
      last = i;
    }
  }
  assert_int_equal(updates, 10);
}

static void test_linear(void **state) {
  const ii_schedule s = {.kind = II_SCHEDULE_LINEAR,
                         .epochs = 10,
                         .steps_per_epoch = 100,
                         .accumulation = 1,
                         .warmup_epochs = 2,
                         .warmup_lr = 0.1,
                         .min_lr = 0.5, /* not used by this schedule */
                         .linear_min_rate = 0.01};
  assert_int_equal(ii_schedule_check(&s, NULL), II_OK);
  assert_near(ii_schedule_value(&s, 1.0, 0), 0.1, "linear", 0);
  assert_near(ii_schedule_value(&s, 1.0, 50), 0.325, "linear", 50);
  assert_near(ii_schedule_value(&s, 1.0, 200), 1.0, "linear", 200); /* no jump: shifted */
  assert_near(ii_schedule_value(&s, 1.0, 600), 1.0 - 0.99 * 0.5, "linear", 600);
  assert_near(ii_schedule_value(&s, 2.0, 1000), 0.02, "linear", 1000);
}

static void test_step(void **state) {
  const ii_schedule s = {.kind = II_SCHEDULE_STEP,
                         .epochs = 10,
                         .steps_per_epoch = 10,
                         .accumulation = 1,
                         .warmup_epochs = 3.55, /* (int)35.5 iterations */
                         .warmup_lr = 0.3,
                         .decay_epochs = 2.5,
                         .decay_rate = 0.5};
  assert_int_equal(ii_schedule_check(&s, NULL), II_OK);
  assert_near(ii_schedule_value(&s, 1.0, 34), 0.3 + 34 * 0.7 / 35, "step", 34);
  assert_near(ii_schedule_value(&s, 1.0, 35), 0.5, "step", 35); /* drops count from iteration 0 */
  assert_near(ii_schedule_value(&s, 1.0, 49), 0.5, "step", 49);
  assert_near(ii_schedule_value(&s, 1.0, 50), 0.25, "step", 50);
  assert_near(ii_schedule_value(&s, 1.0, 99), 0.125, "step", 99);
}

static void test_lr_factor(void **state) {
  assert_near(ii_schedule_lr_factor(4096, 512), 8.0, "factor", 4096);
  assert_near(ii_schedule_lr_factor(32, 512), 0.0625, "factor", 32);
  assert_near(ii_schedule_lr_factor(4096, 0), 1.0, "factor", 0);
}

static void assert_refused(const ii_schedule *s, const char *word) {
  ii_error err = {0};
  assert_int_equal(ii_schedule_check(s, &err), II_ERR_ARG);
  assert_non_null(strstr(err.text, word));
}

static void test_refused(void **state) {
  const ii_schedule good = {.kind = II_SCHEDULE_COSINE,
                            .epochs = 2,
                            .steps_per_epoch = 8,
                            .accumulation = 8,
                            .warmup_epochs = 2,
                            .decay_epochs = 0.1,
                            .decay_rate = 0.1};
  assert_int_equal(ii_schedule_check(&good, NULL), II_OK);
  ii_schedule s = good;
  s.steps_per_epoch = 0;
  assert_refused(&s, "batch_size");
  s = good;
  s.accumulation = 9;
  assert_refused(&s, "accumulation_steps");
  s = good;
  s.kind = II_SCHEDULE_STEP;
  assert_refused(&s, "decay_epochs");
  s = good;
  s.kind = II_SCHEDULE_LINEAR;
  assert_refused(&s, "warmup_epochs");
}

/* ---- parameter groups ---- */

static int read_rules(FILE *f, char *name, ii_param_rules *r, int *rows) {
  int layer_decay;
  long long d[4];
  if (fscanf(f, " config %127s %lf %d %lf %lf %lld %lld %lld %lld %d", name, &r->weight_decay,
             &layer_decay, &r->layer_decay_ratio, &r->dcn_lr_mul, d, d + 1, d + 2, d + 3,
             rows) != 10)
    return 0;
  r->lr_layer_decay = layer_decay;
  for (int i = 0; i < 4; i++) r->depths[i] = d[i];
  return 1;
}

static void test_official_groups(void **state) {
  FILE *f = open_extract("param_groups.txt");
  char config[128], name[128];
  int configs = 0, rows;
  for (ii_param_rules r = {0}; read_rules(f, config, &r, &rows); configs++)
    for (int i = 0; i < rows; i++) {
      int ndim, trainable;
      double decay, ratio;
      assert_int_equal(fscanf(f, "%127s %d %lf %lf %d", name, &ndim, &decay, &ratio, &trainable),
                       5);
      const ii_param_group g = ii_param_group_of(&r, name, ndim);
      assert_near(g.weight_decay, decay, name, configs);
      assert_near(g.lr_ratio, ratio, name, configs);
      assert_int_equal(g.trainable, trainable);
    }
  assert_true(feof(f));
  fclose(f);
  assert_int_equal(configs, 20);
}

static void test_group_details(void **state) {
  ii_param_rules r = {.weight_decay = 0.1,
                      .lr_layer_decay = true,
                      .layer_decay_ratio = 0.5,
                      .dcn_lr_mul = 3,
                      .depths = {1, 2, 12, 1}};
  /* a bias of two dimensions has no decay; a prefix does not matter */
  ii_param_group g = ii_param_group_of(&r, "backbone.levels.3.blocks.0.dcn.offset.bias", 2);
  assert_near(g.weight_decay, 0, "bias", 0);
  assert_near(g.lr_ratio, 3, "offset", 0);
  g = ii_param_group_of(&r, "levels.2.blocks.1.dcn.mask.weight", 2);
  assert_near(g.lr_ratio, pow(0.5, 11), "block 1", 0);
  g = ii_param_group_of(&r, "levels.2.blocks.10.dcn.mask.weight", 2);
  assert_near(g.lr_ratio, pow(0.5, 2), "block 10", 0);
  g = ii_param_group_of(&r, "x.alpha_beta", 2);
  assert_near(g.lr_ratio, 3, "alpha_beta", 0);
  r.lr_layer_decay = false;
  g = ii_param_group_of(&r, "levels.0.blocks.0.dcn.offset.weight", 2);
  assert_near(g.lr_ratio, 1, "no layer decay", 0);
}

static void test_frozen_stages(void **state) {
  const ii_param_rules r = {.weight_decay = 0.1, .depths = {1, 1, 2, 1}, .frozen = {1, 0, 1, 0}};
  assert_false(ii_param_group_of(&r, "levels.0.norm.0.weight", 1).trainable);
  assert_true(ii_param_group_of(&r, "levels.1.downsample.conv.weight", 4).trainable);
  assert_false(ii_param_group_of(&r, "levels.2.blocks.0.mlp.fc1.weight", 2).trainable);
  assert_true(ii_param_group_of(&r, "patch_embed.conv1.weight", 4).trainable);
  assert_true(ii_param_group_of(&r, "head.weight", 2).trainable);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_official_schedules),
                                     cmocka_unit_test(test_accumulation),
                                     cmocka_unit_test(test_ragged_accumulation),
                                     cmocka_unit_test(test_linear),
                                     cmocka_unit_test(test_step),
                                     cmocka_unit_test(test_lr_factor),
                                     cmocka_unit_test(test_refused),
                                     cmocka_unit_test(test_official_groups),
                                     cmocka_unit_test(test_group_details),
                                     cmocka_unit_test(test_frozen_stages)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
