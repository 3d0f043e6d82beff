/* Optimizers, clipping, parameter freezing, moving averages and their state: against torch (numbers
 * in tests/golden/optim/steps.txt) and against what must hold. II_TEST_DEVICE=cuda: on that engine.
 */
#include "optim/optimizer.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/device.h"
#include "test_files.h"

enum { PARAMS = 4, WITH_GRAD = 3, VALUES = 17, GRADS = 13 };

static const char *const names[PARAMS] = {"levels.0.blocks.0.dcn.offset.weight",
                                          "levels.0.blocks.0.dcn.offset.bias", "head.weight",
                                          "unused.weight"};
static const int dims[PARAMS] = {2, 1, 2, 2};
static const int64_t shapes[PARAMS][2] = {{2, 3}, {3}, {1, 4}, {2, 2}};
static const int sizes[PARAMS] = {6, 3, 4, 4};

static const ii_schedule schedule = {.kind = II_SCHEDULE_COSINE,
                                     .epochs = 1,
                                     .steps_per_epoch = 40,
                                     .accumulation = 1,
                                     .warmup_epochs = 0.1,
                                     .warmup_lr = 1e-3,
                                     .min_lr = 2e-3};

static ii_ctx *open_ctx(ii_dtype real, ii_dtype compute, int threads) {
  ii_error err = {0};
  ii_ctx_options o = {.device = II_CPU, .threads = threads, .real = real, .compute = compute};
  const char *device = getenv("II_TEST_DEVICE");
  if (device) assert_int_equal(ii_device_parse(device, &o.device, &o.index, &err), II_OK);
  ii_ctx *c = ii_ctx_open(&o, &err);
  if (!c) fail_msg("%s", err.text);
  return c;
}

static void add_params(ii_params *p, ii_ctx *c) {
  ii_params_init(p, c);
  for (int i = 0; i < PARAMS; i++) ii_params_add(p, names[i], dims[i], shapes[i]);
}

static void write_values(ii_params *p, const double *x) {
  for (int i = 0; i < PARAMS; x += sizes[i++]) ii_tensor_write_f64(p->ctx, p->at[i].value, x);
  ii_params_refresh_low(p);
}

/* Adds x * scale to the gradients of the first three parameters, as a backward pass does. */
static void add_grads(ii_params *p, const double *x, double scale) {
  for (int i = 0; i < WITH_GRAD; x += sizes[i++]) {
    ii_tensor *v = p->at[i].value;
    double g[8] = {0};
    if (v->grad_valid) ii_tensor_read_f64(p->ctx, v->grad, g);
    for (int j = 0; j < sizes[i]; j++) g[j] += x[j] * scale;
    ii_tensor_write_f64(p->ctx, v->grad, g);
    v->grad_valid = true;
  }
}

static void assert_close(const double *got, const double *want, int n, double tol,
                         const char *what) {
  for (int i = 0; i < n; i++)
    if (!(fabs(got[i] - want[i]) <= tol * (1 + fabs(want[i]))))
      fail_msg("%s[%d]: %.17g instead of %.17g", what, i, got[i], want[i]);
}

static ii_optimizer_options options_adamw(void) {
  return (ii_optimizer_options){.kind = II_OPTIMIZER_ADAMW,
                                .base_lr = 0.02,
                                .beta1 = 0.8,
                                .beta2 = 0.95,
                                .eps = 1e-3,
                                .clip_grad = 1,
                                .ema = true,
                                .ema_decay = 0.9,
                                .rules = {.weight_decay = 0.1,
                                          .layer_decay_ratio = 0.5,
                                          .dcn_lr_mul = 0.1,
                                          .depths = {1, 1, 1, 1}}};
}

/* ---- torch ---- */

typedef struct {
  char name[64];
  int iterations, accumulation, clip_between;
  ii_optimizer_options o;
} torch_case;

static void read_numbers(FILE *f, double *x, int n) {
  for (int i = 0; i < n; i++) assert_int_equal(fscanf(f, "%lf", &x[i]), 1);
}

static bool read_case(FILE *f, torch_case *c) {
  char kind[16];
  int nesterov, layer_decay;
  c->o = options_adamw();
  if (fscanf(f, " case %63s %15s %d %d %d %lf %lf %d %lf %d %lf %lf", c->name, kind, &c->iterations,
             &c->accumulation, &c->clip_between, &c->o.clip_grad, &c->o.momentum, &nesterov,
             &c->o.rules.weight_decay, &layer_decay, &c->o.base_lr, &c->o.ema_decay) != 12)
    return false;
  c->o.kind = strcmp(kind, "sgd") ? II_OPTIMIZER_ADAMW : II_OPTIMIZER_SGD;
  c->o.nesterov = nesterov;
  c->o.rules.lr_layer_decay = layer_decay;
  return true;
}

/* Compares all tensors of one kind, in the order of the parameters, with the next numbers of f. */
static void compare_state(FILE *f, const ii_optimizer *o, const char *kind, double tol) {
  ii_optimizer_item item;
  for (int64_t i = 0; ii_optimizer_state(o, i, &item); i++) {
    if (strcmp(item.kind, kind)) continue;
    const int n = (int)ii_numel(item.tensor);
    double got[8], want[8];
    if (strcmp(kind, "ema") && !strcmp(item.name, "unused.weight")) continue;
    ii_tensor_read_f64(o->params->ctx, item.tensor, got);
    read_numbers(f, want, n);
    assert_close(got, want, n, tol, kind);
  }
}

static int64_t updates_of(ii_optimizer *o) {
  ii_update_state s;
  assert_int_equal(ii_optimizer_look(o, &s), II_OK);
  return s.t;
}

static void run_torch_case(FILE *f, const torch_case *t, ii_dtype real, double tol) {
  ii_ctx *c = open_ctx(real, real, 2);
  ii_params p;
  ii_optimizer o;
  ii_schedule s = schedule;
  double x[VALUES], norm, got[8];
  s.accumulation = t->accumulation;
  add_params(&p, c);
  read_numbers(f, x, VALUES);
  write_values(&p, x);
  assert_int_equal(ii_optimizer_init(&o, &p, &t->o), II_OK);
  for (int i = 0; i < t->iterations; i++) {
    ii_step_report r = {.grad_norm = -1};
    read_numbers(f, x, GRADS);
    read_numbers(f, &norm, 1);
    add_grads(&p, x, 1.0 / t->accumulation);
    if (ii_schedule_is_update(&s, i)) {
      assert_int_equal(ii_optimizer_step(&o, &s, i, &r), II_OK);
      ii_params_zero_grad(&p);
    } else if (t->clip_between) {
      assert_int_equal(ii_optimizer_clip(&o, &r), II_OK);
    }
    assert_close(&r.grad_norm, &norm, 1, tol, t->name);
  }
  assert_int_equal(updates_of(&o), t->iterations / t->accumulation);
  for (int i = 0; i < PARAMS; i++) {
    read_numbers(f, x, sizes[i]);
    ii_tensor_read_f64(c, p.at[i].value, got);
    assert_close(got, x, sizes[i], tol, t->name);
  }
  compare_state(f, &o, "ema", tol);
  compare_state(f, &o, "exp_avg", tol);
  compare_state(f, &o, "exp_avg_sq", tol);
  compare_state(f, &o, "momentum_buffer", tol);
  ii_optimizer_destroy(&o);
  ii_params_destroy(&p);
  ii_ctx_close(c);
}

static void run_torch_cases(ii_dtype real, double tol) {
  FILE *f = open_test_file("golden/optim/steps.txt");
  assert_non_null(f);
  int ch, cases = 0;
  while ((ch = fgetc(f)) == '#')
    while ((ch = fgetc(f)) != '\n' && ch != EOF) continue;
  ungetc(ch, f);
  for (torch_case t; read_case(f, &t); cases++) run_torch_case(f, &t, real, tol);
  assert_true(feof(f));
  fclose(f);
  assert_int_equal(cases, 7);
}

static void test_torch_double(void **state) {
  run_torch_cases(II_F64, 1e-13);
}
static void test_torch_float(void **state) {
  run_torch_cases(II_F32, 2e-6);
}

/* ---- properties ---- */

typedef struct {
  ii_ctx *c;
  ii_params p;
  ii_optimizer o;
} fixture;

static void fill_wave(double *x, int n, double phase) {
  for (int i = 0; i < n; i++) x[i] = sin(phase + 0.7 * i);
}

static fixture open_fixture(ii_dtype real, ii_dtype compute) {
  fixture f = {.c = open_ctx(real, compute, 1)};
  double x[VALUES];
  add_params(&f.p, f.c);
  fill_wave(x, VALUES, 0.3);
  write_values(&f.p, x);
  return f;
}

static void start(fixture *f, const ii_optimizer_options *options) {
  assert_int_equal(ii_optimizer_init(&f->o, &f->p, options), II_OK);
}

static ii_step_report one_step(fixture *f, int iteration) {
  double g[GRADS];
  ii_step_report r;
  fill_wave(g, GRADS, iteration);
  add_grads(&f->p, g, 1);
  assert_int_equal(ii_optimizer_step(&f->o, &schedule, iteration, &r), II_OK);
  ii_params_zero_grad(&f->p);
  return r;
}

static void close_fixture(fixture *f) {
  ii_optimizer_destroy(&f->o);
  ii_params_destroy(&f->p);
  ii_ctx_close(f->c);
}

static void read_all(fixture *f, double *x) {
  for (int i = 0; i < PARAMS; x += sizes[i++]) ii_tensor_read_f64(f->c, f->p.at[i].value, x);
}

static void test_unused_and_frozen(void **state) {
  fixture f = open_fixture(II_F64, II_F64);
  ii_optimizer_options o = options_adamw();
  o.rules.frozen[0] = true; /* leaves head.weight, and unused.weight without a gradient */
  start(&f, &o);
  assert_null(f.p.at[0].value->grad);
  assert_null(f.o.slot[0].m);
  double before[VALUES], after[VALUES], g[4] = {3, 0, 4, 0};
  read_all(&f, before);
  ii_tensor_write_f64(f.c, f.p.at[2].value->grad, g);
  f.p.at[2].value->grad_valid = true;
  ii_step_report r;
  assert_int_equal(ii_optimizer_step(&f.o, &schedule, 5, &r), II_OK);
  assert_close(&r.grad_norm, &(double){5}, 1, 1e-15, "norm");
  assert_close(&r.clip_coef, &(double){1 / (5 + 1e-6)}, 1, 1e-15, "coefficient");
  read_all(&f, after);
  assert_memory_equal(before, after, 9 * sizeof(double));
  assert_memory_equal(before + 13, after + 13, 4 * sizeof(double)); /* not even weight decay */
  for (int i = 9; i < 13; i++) assert_true(before[i] != after[i]);
  close_fixture(&f);
}

/* Gradients a million times too large keep all their digits. */
static void test_clip_of_large_gradients(void **state) {
  fixture f = open_fixture(II_F32, II_F32);
  const ii_optimizer_options o = options_adamw();
  start(&f, &o);
  double g[GRADS], got[8], norm = 0;
  fill_wave(g, GRADS, 1);
  for (int i = 0; i < GRADS; i++) g[i] = (float)(1e6 * g[i]);
  for (int i = 0; i < GRADS; i++) norm += g[i] * g[i];
  add_grads(&f.p, g, 1);
  ii_step_report r;
  assert_int_equal(ii_optimizer_clip(&f.o, &r), II_OK);
  for (int i = 0, at = 0; i < WITH_GRAD; at += sizes[i++]) {
    ii_tensor_read_f64(f.c, f.p.at[i].value->grad, got);
    for (int j = 0; j < sizes[i]; j++) {
      const double want = g[at + j] / (sqrt(norm) + 1e-6);
      assert_true(fabs(got[j] - want) <= 0x1p-22 * fabs(want));
    }
  }
  close_fixture(&f);
}

static void test_not_finite(void **state) {
  const double bad[] = {NAN, INFINITY};
  for (int b = 0; b < 2; b++) {
    fixture f = open_fixture(II_F32, II_F32);
    const ii_optimizer_options o = options_adamw();
    start(&f, &o);
    one_step(&f, 0);
    double before[VALUES], after[VALUES], m0[6], m1[6], g[GRADS] = {0};
    read_all(&f, before);
    ii_tensor_read_f64(f.c, f.o.slot[0].m, m0);
    g[7] = bad[b];
    add_grads(&f.p, g, 1);
    ii_step_report r;
    assert_int_equal(ii_optimizer_clip(&f.o, &r), II_OK);
    assert_false(r.finite);
    assert_int_equal(ii_optimizer_step(&f.o, &schedule, 1, &r), II_OK);
    assert_false(r.finite);
    ii_params_zero_grad(&f.p);
    read_all(&f, after);
    ii_tensor_read_f64(f.c, f.o.slot[0].m, m1);
    assert_memory_equal(before, after, sizeof before);
    assert_memory_equal(m0, m1, sizeof m0);
    assert_int_equal(updates_of(&f.o), 1);
    assert_true(one_step(&f, 2).finite);
    assert_int_equal(updates_of(&f.o), 2);
    close_fixture(&f);
  }
}

/* As one_step, with gradients multiplied by the loss scale, and one of them `bad` if that is not
 * finite; the host does not look. */
static void scaled_step(fixture *f, int iteration, double scale, double bad) {
  double g[GRADS];
  fill_wave(g, GRADS, iteration);
  if (!isfinite(bad)) g[7] = bad;
  add_grads(&f->p, g, scale);
  assert_int_equal(ii_optimizer_step(&f->o, &schedule, iteration, NULL), II_OK);
  ii_params_zero_grad(&f->p);
}

static ii_update_state look(fixture *f) {
  ii_update_state s;
  assert_int_equal(ii_optimizer_look(&f->o, &s), II_OK);
  return s;
}

static double seed_of(const fixture *f) {
  double seed;
  ii_tensor_read_f64(f->c, f->o.seed, &seed);
  return seed;
}

/* GradScaler: a step that overflows halves the scale and changes neither weights nor moments nor t,
 * while the average and the schedule go on; growth_interval good ones double it. The weights are
 * those of a run without scale that never saw the bad step. */
static void test_loss_scale(void **state) {
  fixture a = open_fixture(II_F32, II_F32), b = open_fixture(II_F32, II_F32);
  ii_optimizer_options o = options_adamw();
  start(&b, &o);
  o.loss_scale = 1024;
  o.growth_interval = 2;
  o.loss_factor = 0.25;
  start(&a, &o);
  assert_true(seed_of(&a) == 256);
  scaled_step(&a, 0, 1024, 0);
  one_step(&b, 0);
  double x[VALUES], y[VALUES], before[8], after[8];
  ii_tensor_read_f64(a.c, a.o.ema.avg[0], before);
  scaled_step(&a, 1, 1024, INFINITY);
  ii_update_state s = look(&a);
  assert_true(s.loss_scale == 512 && s.t == 1 && s.skipped == 1 && s.good_updates == 0);
  assert_true(s.bad_step == -1 && seed_of(&a) == 128);
  read_all(&a, x);
  read_all(&b, y);
  assert_memory_equal(x, y, sizeof x);
  ii_tensor_read_f64(a.c, a.o.ema.avg[0], after);
  for (int i = 0; i < sizes[0]; i++) before[i] = 0.9 * before[i] + 0.1 * x[i];
  assert_close(after, before, sizes[0], 1e-6, "average of a skipped step");
  scaled_step(&a, 2, 512, 0);
  one_step(&b, 2);
  assert_true(look(&a).loss_scale == 512 && look(&a).good_updates == 1);
  scaled_step(&a, 3, 512, 0);
  one_step(&b, 3);
  s = look(&a);
  assert_true(s.loss_scale == 1024 && s.good_updates == 0 && s.t == 3 && seed_of(&a) == 256);
  read_all(&a, x);
  read_all(&b, y);
  assert_memory_equal(x, y, sizeof x);
  close_fixture(&a);
  close_fixture(&b);
}

/* Without a scale everything stands still from the bad step on, until somebody looks. */
static void test_frozen_until_looked_at(void **state) {
  fixture f = open_fixture(II_F32, II_F32);
  const ii_optimizer_options o = options_adamw();
  start(&f, &o);
  scaled_step(&f, 0, 1, 0);
  double before[VALUES], after[VALUES], e0[8], e1[8];
  read_all(&f, before);
  ii_tensor_read_f64(f.c, f.o.ema.avg[0], e0);
  scaled_step(&f, 1, 1, NAN);
  scaled_step(&f, 2, 1, 0);
  read_all(&f, after);
  ii_tensor_read_f64(f.c, f.o.ema.avg[0], e1);
  assert_memory_equal(before, after, sizeof before);
  assert_memory_equal(e0, e1, (size_t)sizes[0] * sizeof *e0);
  ii_update_state s = look(&f);
  assert_true(s.bad_step == 1 && s.bad_loss == 0 && isnan(s.bad_value) && s.t == 1);
  assert_true(look(&f).bad_step == -1);
  scaled_step(&f, 3, 1, 0);
  assert_int_equal(look(&f).t, 2);
  ii_tensor *loss = ii_tensor_new(f.c, II_F32, 0, NULL);
  ii_tensor_write_f64(f.c, loss, &(double){2.5});
  ii_optimizer_add_loss(&f.o, loss, 4);
  ii_tensor_write_f64(f.c, loss, &(double){-INFINITY});
  ii_optimizer_add_loss(&f.o, loss, 5);
  scaled_step(&f, 5, 1, 0);
  s = look(&f);
  assert_true(s.bad_step == 5 && s.bad_loss == 1 && s.t == 2);
  assert_true(s.loss_sum == 2.5 && s.loss_count == 1);
  close_fixture(&f);
}

/* How many values of the bf16 copy of parameter `i` are not want[sizes[i]] rounded. */
static int differing_in_low(fixture *f, int i, const double *want) {
  double low[8];
  int n = 0;
  ii_tensor_read_f64(f->c, f->p.at[i].value->low, low);
  for (int j = 0; j < sizes[i]; j++)
    n += low[j] != (double)ii_bf16_to_f32(ii_f32_to_bf16((float)want[j]));
  return n;
}

static void test_bf16_copies(void **state) {
  fixture f = open_fixture(II_F32, II_BF16);
  const ii_optimizer_options o = options_adamw();
  start(&f, &o);
  for (int i = 0; i < 3; i++) one_step(&f, i);
  assert_null(f.p.at[1].value->low); /* vectors are used in fp32 */
  for (int i = 0; i < WITH_GRAD; i += 2) {
    double now[8];
    ii_tensor_read_f64(f.c, f.p.at[i].value, now);
    assert_int_equal(differing_in_low(&f, i, now), 0);
  }
  close_fixture(&f);
}

/* timm's ModelEma on an int64 counter, decay 0.5, python: e = int(0.5*e + 0.5*n), n = 1, 2, ... */
static void test_ema_of_buffers(void **state) {
  fixture f = open_fixture(II_F64, II_F64);
  ii_optimizer_options o = options_adamw();
  o.ema_decay = 0.5;
  ii_tensor *mean = ii_params_add_buffer(&f.p, "bn.running_mean", 1, (int64_t[]){2});
  ii_tensor *count = ii_params_add_buffer(&f.p, "bn.num_batches_tracked", 0, NULL);
  double x[2] = {4, -8}, got[2];
  ii_tensor_write_f64(f.c, mean, x);
  start(&f, &o);
  static const double counters[] = {0, 1, 2, 3, 4, 5};
  const double means[] = {3, 2.5, 2.25, 2.125, 2.0625, 2.03125};
  x[0] = 2;
  ii_tensor_write_f64(f.c, mean, x);
  for (int i = 0; i < 6; i++) {
    ii_tensor_write_f64(f.c, count, &(double){i + 1});
    one_step(&f, i);
    ii_tensor_read_f64(f.c, f.o.ema.avg[PARAMS], got);
    assert_close(got, (double[]){means[i], -8}, 2, 1e-15, "running mean");
    ii_tensor_read_f64(f.c, f.o.ema.avg[PARAMS + 1], got);
    assert_close(got, &counters[i], 1, 0, "counter");
  }
  close_fixture(&f);
}

/* The bf16 copy of the first parameter is that of its present value, and not that of `other`. */
static void assert_low_follows(fixture *f, const double *other) {
  double now[8];
  ii_tensor_read_f64(f->c, f->p.at[0].value, now);
  assert_int_equal(differing_in_low(f, 0, now), 0);
  assert_true(differing_in_low(f, 0, other) > 0);
}

static void test_ema_swap(void **state) {
  fixture f = open_fixture(II_F32, II_BF16);
  const ii_optimizer_options o = options_adamw();
  start(&f, &o);
  double first[VALUES], raw[VALUES], avg[VALUES], again[VALUES];
  read_all(&f, first);
  one_step(&f, 5);
  read_all(&f, raw);
  ii_ema_swap(&f.o.ema);
  read_all(&f, avg);
  for (int i = 0; i < 13; i++) { /* one update from a copy of the first weights */
    const double want = 0.9 * first[i] + 0.1 * raw[i];
    assert_close(&avg[i], &want, 1, 1e-6, "average");
    assert_true(avg[i] != raw[i]);
  }
  assert_low_follows(&f, raw);
  ii_ema_swap(&f.o.ema);
  read_all(&f, again);
  assert_memory_equal(raw, again, sizeof raw);
  ii_ema_reset(&f.o.ema);
  ii_ema_swap(&f.o.ema);
  read_all(&f, again);
  assert_memory_equal(raw, again, sizeof raw);
  close_fixture(&f);
}

/* A second optimizer that takes over weights, state and t continues bit for bit. */
static void test_state_round_trip(void **state) {
  for (int kind = II_OPTIMIZER_ADAMW; kind <= II_OPTIMIZER_SGD; kind++) {
    ii_optimizer_options o = options_adamw();
    o.kind = kind;
    o.momentum = 0.9;
    o.nesterov = true;
    fixture a = open_fixture(II_F32, II_F32), b = open_fixture(II_F32, II_F32);
    start(&a, &o);
    start(&b, &o);
    for (int i = 0; i < 3; i++) one_step(&a, i);
    double x[VALUES], y[VALUES];
    read_all(&a, x);
    write_values(&b.p, x);
    ii_optimizer_item from, to;
    int64_t items = 0;
    for (; ii_optimizer_state(&a.o, items, &from); items++) {
      assert_true(ii_optimizer_state(&b.o, items, &to));
      assert_string_equal(from.kind, to.kind);
      assert_string_equal(from.name, to.name);
      ii_tensor_read_f64(a.c, from.tensor, y);
      ii_tensor_write_f64(b.c, to.tensor, y);
    }
    assert_false(ii_optimizer_state(&b.o, items, &to));
    assert_int_equal(items, kind == II_OPTIMIZER_ADAMW ? 12 : 8);
    ii_update_state s;
    assert_int_equal(ii_optimizer_look(&a.o, &s), II_OK);
    assert_int_equal(ii_optimizer_set_state(&b.o, &s), II_OK);
    one_step(&a, 3);
    one_step(&b, 3);
    for (int64_t i = 0; i < items; i++) {
      ii_optimizer_state(&a.o, i, &from);
      ii_optimizer_state(&b.o, i, &to);
      ii_tensor_read_f64(a.c, from.tensor, x);
      ii_tensor_read_f64(b.c, to.tensor, y);
      assert_memory_equal(x, y, (size_t)ii_numel(from.tensor) * sizeof *x);
    }
    read_all(&a, x);
    read_all(&b, y);
    assert_memory_equal(x, y, sizeof x);
    close_fixture(&a);
    close_fixture(&b);
  }
}

/* Plan mode has no memory behind the tensors; the step must only count. */
static void test_plan_mode(void **state) {
  ii_error err = {0};
  const ii_ctx_options co = {.device = II_CPU, .real = II_F32, .compute = II_F32, .plan = true};
  fixture f = {.c = ii_ctx_open(&co, &err)};
  assert_non_null(f.c);
  add_params(&f.p, f.c);
  const ii_optimizer_options o = options_adamw();
  start(&f, &o);
  one_step(&f, 0);
  assert_true(f.c->pool.live_by_class[II_MEM_OPTIMIZER] >= 2 * VALUES * 4);
  assert_true(f.c->pool.live_by_class[II_MEM_EMA] >= VALUES * 4);
  close_fixture(&f);
}

int main(void) {
  if (getenv("II_TEST_DEVICE") && ii_cuda_device_count() == 0) {
    printf("skipped: no GPU for II_TEST_DEVICE=cuda\n");
    return 77;
  }
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_torch_double),
                                     cmocka_unit_test(test_torch_float),
                                     cmocka_unit_test(test_unused_and_frozen),
                                     cmocka_unit_test(test_clip_of_large_gradients),
                                     cmocka_unit_test(test_not_finite),
                                     cmocka_unit_test(test_loss_scale),
                                     cmocka_unit_test(test_frozen_until_looked_at),
                                     cmocka_unit_test(test_bf16_copies),
                                     cmocka_unit_test(test_ema_of_buffers),
                                     cmocka_unit_test(test_ema_swap),
                                     cmocka_unit_test(test_state_round_trip),
                                     cmocka_unit_test(test_plan_mode)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
