/* Joint parameters: parts of one matrix are trained, frozen, averaged, saved and loaded exactly as
 * parameters of their own are, and what pads them stays zero. Two models compute the same, one with
 * three linear layers of the same input, one with a joint one. II_TEST_DEVICE=cuda: on that engine.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "autograd/ops.h"
#include "autograd/rng.h"
#include "autograd/tape.h"
#include "layers/basic.h"
#include "train/checkpoint.h"
#include "train/weights.h"

enum { ROWS = 6, IN = 5, PARTS = 3, USED = 13, PADDED = 16, UPDATES = 4 };

/* in the order of the lists, which is not that of the rows */
static const struct {
  const char *name;
  int64_t first, out;
} part[PARTS] = {{"levels.0.blocks.0.dcn.offset", 0, 6},
                 {"levels.3.blocks.0.dcn.mask", 9, 4},
                 {"levels.1.blocks.0.dcn.value_proj", 6, 3}};

static const ii_schedule schedule = {.kind = II_SCHEDULE_COSINE,
                                     .epochs = 1,
                                     .steps_per_epoch = 40,
                                     .accumulation = 1,
                                     .min_lr = 1e-3};

static char folder[] = "/tmp/ii_test_joint_XXXXXX";

typedef struct {
  ii_ctx *ctx;
  ii_params params;
  ii_init_list inits;
  ii_optimizer optimizer;
  ii_linear_layer joint;           /* or */
  ii_linear_layer separate[PARTS]; /* in the order of the rows */
  double x[ROWS * IN], target[ROWS * USED];
} world;

static ii_optimizer_options options(void) {
  return (ii_optimizer_options){.kind = II_OPTIMIZER_ADAMW,
                                .base_lr = 0.05,
                                .beta1 = 0.8,
                                .beta2 = 0.95,
                                .eps = 1e-3,
                                .clip_grad = 0.1,
                                .ema = true,
                                .ema_decay = 0.7,
                                .rules = {.weight_decay = 0.1,
                                          .lr_layer_decay = true,
                                          .layer_decay_ratio = 0.5,
                                          .dcn_lr_mul = 0.1,
                                          .depths = {1, 1, 1, 1}}};
}

static void build(world *w, bool joint) {
  const ii_init init = {II_INIT_UNIFORM, 1};
  const ii_builder b = {.params = &w->params, .inits = &w->inits};
  ii_linear_part parts[PARTS];
  for (int i = 0; i < PARTS; i++)
    parts[i] = (ii_linear_part){part[i].name, part[i].first, part[i].out, init};
  if (joint) w->joint = ii_linear_build_joint(&b, IN, parts, PARTS);
  for (int i = 0; i < PARTS && !joint; i++) {
    const ii_builder sub = ii_builder_sub(&b, "%s", part[i].name);
    const int place = part[i].first == 0 ? 0 : part[i].first == 6 ? 1 : 2;
    w->separate[place] = ii_linear_build(&sub, IN, part[i].out, true, init);
  }
  ii_init_apply(&w->params, &w->inits, 7);
  for (int64_t i = 1; i < w->params.count; i += 2) { /* biases that are not zero */
    double v[8];
    for (int j = 0; j < 8; j++) v[j] = 0.1 * (double)(i + j);
    ii_tensor_write_f64(w->ctx, w->params.at[i].value, v);
  }
}

static void world_open(world *w, bool joint, ii_dtype real, ii_dtype compute) {
  ii_error err = {0};
  ii_rng r = ii_rng_make(3, II_RNG_TEST, 0, 0);
  ii_ctx_options o = {.threads = 1, .real = real, .compute = compute};
  const char *device = getenv("II_TEST_DEVICE");
  *w = (world){0};
  if (device) assert_int_equal(ii_device_parse(device, &o.device, &o.index, &err), II_OK);
  w->ctx = ii_ctx_open(&o, &err);
  if (!w->ctx) fail_msg("%s", err.text);
  ii_params_init(&w->params, w->ctx);
  build(w, joint);
  const ii_optimizer_options oo = options();
  assert_int_equal(ii_optimizer_init(&w->optimizer, &w->params, &oo), II_OK);
  for (int i = 0; i < ROWS * IN; i++) w->x[i] = ii_rng_normal(&r);
  for (int i = 0; i < ROWS * USED; i++) w->target[i] = 1.0 / USED + (i % USED == i % 5 ? 0.3 : 0);
}

static void world_close(world *w) {
  if (!ii_ok(w->ctx)) fail_msg("%s", w->ctx->err.text);
  ii_optimizer_destroy(&w->optimizer);
  ii_params_destroy(&w->params);
  free(w->inits.at);
  assert_int_equal(w->ctx->pool.live, 0);
  ii_ctx_close(w->ctx);
}

static ii_tensor *logits(world *w) {
  ii_ctx *c = w->ctx;
  ii_tensor *x = ii_tensor_new(c, c->real, 2, (int64_t[]){ROWS, IN});
  ii_tensor_write_f64(c, x, w->x);
  if (w->joint.weight) return ii_slice(c, ii_linear_forward(c, &w->joint, x), 0, USED);
  ii_tensor *y = ii_linear_forward(c, &w->separate[0], x);
  for (int i = 1; i < PARTS; i++) y = ii_concat(c, y, ii_linear_forward(c, &w->separate[i], x));
  return y;
}

static void read_logits(world *w, double *v) {
  ii_tensor_read_f64(w->ctx, logits(w), v);
  ii_tape_reset(w->ctx);
}

static void backward(world *w) {
  ii_ctx *c = w->ctx;
  c->training = c->recording = true;
  ii_tensor *t = ii_tensor_new(c, c->real, 2, (int64_t[]){ROWS, USED});
  ii_tensor_write_f64(c, t, w->target);
  ii_backward(c, ii_soft_cross_entropy(c, logits(w), t), 1);
  ii_tape_reset(c);
  c->training = c->recording = false;
}

/* Two micro-steps to an update, of different data. */
static void train(world *w, int from, int to) {
  for (int i = from; i < to; i++) {
    ii_params_zero_grad(&w->params);
    backward(w);
    for (int j = 0; j < ROWS * IN; j++) w->x[j] = -w->x[j];
    backward(w);
    assert_int_equal(ii_optimizer_step(&w->optimizer, &schedule, i, NULL), II_OK);
  }
}

static void want_near(world *a, const ii_tensor *x, world *b, const ii_tensor *y, double bound,
                      const char *what, const char *name) {
  double p[64], q[64];
  assert_true(ii_numel(x) == ii_numel(y) && ii_numel(x) <= 64);
  ii_tensor_read_f64(a->ctx, x, p);
  ii_tensor_read_f64(b->ctx, y, q);
  for (int64_t i = 0; i < ii_numel(x); i++)
    if (!(fabs(p[i] - q[i]) <= bound * (1 + fabs(q[i]))))
      fail_msg("%s of %s: element %lld is %.17g, not %.17g", what, name, (long long)i, p[i], q[i]);
}

/* Values, gradients, moments and averages under the same names. */
static void want_same_state(world *a, world *b, double bound) {
  ii_optimizer_item p, q;
  assert_int_equal(a->params.count, b->params.count);
  for (int64_t i = 0; i < a->params.count; i++) {
    const ii_param *x = &a->params.at[i], *y = &b->params.at[i];
    assert_string_equal(x->name, y->name);
    assert_int_equal(x->value->ndim, y->value->ndim);
    want_near(a, x->value, b, y->value, bound, "value", x->name);
    assert_int_equal(x->value->grad_valid, y->value->grad_valid);
    assert_int_equal(x->value->grad != NULL, y->value->grad != NULL);
    if (x->value->grad_valid)
      want_near(a, x->value->grad, b, y->value->grad, bound, "gradient", x->name);
    assert_int_equal(x->value->low != NULL, y->value->low != NULL);
    if (x->value->low) want_near(a, x->value->low, b, y->value->low, bound, "copy", x->name);
  }
  for (int64_t i = 0; ii_optimizer_state(&a->optimizer, i, &p); i++) {
    assert_true(ii_optimizer_state(&b->optimizer, i, &q));
    assert_string_equal(p.name, q.name);
    want_near(a, p.tensor, b, q.tensor, bound, p.kind, p.name);
  }
}

static void want_zero_rows(world *w, const ii_tensor *t) {
  double v[PADDED * IN];
  const int64_t row = ii_numel(t) / PADDED;
  assert_int_equal(t->shape[0], PADDED);
  ii_tensor_read_f64(w->ctx, t, v);
  for (int64_t i = USED * row; i < PADDED * row; i++) assert_true(v[i] == 0);
}

static void want_padding_zero(world *w) {
  want_zero_rows(w, w->joint.weight);
  want_zero_rows(w, w->joint.bias);
  if (w->joint.weight->low) want_zero_rows(w, w->joint.weight->low);
}

/* ---- tests ------------------------------------------------------------------------------------*/

static void check_training(ii_dtype real, ii_dtype compute, double bound) {
  world a, b;
  double p[ROWS * USED], q[ROWS * USED];
  world_open(&a, true, real, compute);
  world_open(&b, false, real, compute);
  assert_int_equal(ii_params_numel(&a.params), USED * (IN + 1));
  want_same_state(&a, &b, 0);
  train(&a, 0, UPDATES);
  train(&b, 0, UPDATES);
  want_same_state(&a, &b, bound);
  read_logits(&a, p);
  read_logits(&b, q);
  for (int i = 0; i < ROWS * USED; i++) assert_true(fabs(p[i] - q[i]) <= bound * 8);
  want_padding_zero(&a);
  world_close(&a);
  world_close(&b);
}

static void trained_as_separate_parameters(void **state) {
  check_training(II_F64, II_F64, 1e-13);
  check_training(II_F32, II_F32, 1e-5);
  check_training(II_F32, II_BF16, 2e-2); /* the same sums in another order may round otherwise */
}

/* The 16-bit copy that the product reads is that of the parts' values. */
static void copies_follow_values(void **state) {
  world w;
  double v[IN * 8], low[IN * 8];
  world_open(&w, true, II_F32, II_BF16);
  train(&w, 0, UPDATES);
  for (int64_t i = 0; i < w.params.count; i += 2) {
    const ii_tensor *t = w.params.at[i].value;
    ii_tensor_read_f64(w.ctx, t, v);
    ii_tensor_read_f64(w.ctx, t->low, low);
    for (int64_t j = 0; j < ii_numel(t); j++)
      assert_true(low[j] == ii_bf16_to_f32(ii_f32_to_bf16((float)v[j])));
  }
  double all[PADDED * IN];
  ii_tensor_read_f64(w.ctx, w.joint.weight->low, all);
  for (int i = 0; i < PARTS; i++) {
    ii_tensor_read_f64(w.ctx, w.params.at[2 * i].value->low, low);
    assert_memory_equal(all + part[i].first * IN, low, (size_t)(part[i].out * IN) * sizeof *low);
  }
  world_close(&w);
}

static void set_trainable(world *w, int i, bool on) {
  for (int k = 0; k < 2; k++) ii_param_set_trainable(&w->params, &w->params.at[2 * i + k], on);
}

static void frozen_parts_stay(void **state) {
  world a, b;
  double before[IN * 8], after[IN * 8];
  world_open(&a, true, II_F64, II_F64);
  world_open(&b, false, II_F64, II_F64);
  set_trainable(&a, 0, false);
  set_trainable(&b, 0, false);
  const ii_tensor *frozen = a.params.at[0].value;
  ii_tensor_read_f64(a.ctx, frozen, before);
  train(&a, 0, UPDATES);
  train(&b, 0, UPDATES);
  ii_tensor_read_f64(a.ctx, frozen, after);
  assert_memory_equal(before, after, (size_t)ii_numel(frozen) * sizeof *before);
  assert_false(frozen->grad_valid);
  want_same_state(&a, &b, 1e-13);
  for (int i = 1; i < PARTS; i++) set_trainable(&a, i, false);
  assert_false(a.joint.weight->needs_grad || a.joint.bias->needs_grad);
  assert_int_equal(a.ctx->pool.live_by_class[II_MEM_GRADIENTS], 0);
  backward(&a); /* nothing to be done, and no harm */
  for (int i = 0; i < PARTS; i++) {
    set_trainable(&a, i, true);
    set_trainable(&b, i, true);
  }
  train(&a, UPDATES, 2 * UPDATES);
  train(&b, UPDATES, 2 * UPDATES);
  want_same_state(&a, &b, 1e-13);
  want_padding_zero(&a);
  world_close(&a);
  world_close(&b);
}

/* Gradients that hold something are added to; those that do not begin anew. */
static void parts_accumulate_on_their_own(void **state) {
  world a, b;
  world_open(&a, true, II_F64, II_F64);
  world_open(&b, false, II_F64, II_F64);
  for (int i = 0; i < 2; i++) {
    world *w = i ? &b : &a;
    backward(w);
    backward(w);
    w->params.at[0].value->grad_valid = w->params.at[3].value->grad_valid = false;
    backward(w);
  }
  want_same_state(&a, &b, 1e-13);
  world_close(&a);
  world_close(&b);
}

static void average_takes_the_weights_place(void **state) {
  world a, b;
  double trained[ROWS * USED], mean[ROWS * USED], want[ROWS * USED], again[ROWS * USED];
  world_open(&a, true, II_F64, II_F64);
  world_open(&b, false, II_F64, II_F64);
  train(&a, 0, UPDATES);
  train(&b, 0, UPDATES);
  read_logits(&a, trained);
  ii_ema_swap(&a.optimizer.ema);
  ii_ema_swap(&b.optimizer.ema);
  read_logits(&a, mean);
  read_logits(&b, want);
  for (int i = 0; i < ROWS * USED; i++) assert_true(fabs(mean[i] - want[i]) < 1e-12);
  assert_memory_not_equal(mean, trained, sizeof mean);
  ii_ema_swap(&a.optimizer.ema);
  ii_ema_swap(&b.optimizer.ema);
  read_logits(&a, again);
  assert_memory_equal(again, trained, sizeof again);
  train(&a, UPDATES, UPDATES + 2);
  train(&b, UPDATES, UPDATES + 2);
  want_same_state(&a, &b, 1e-13);
  want_padding_zero(&a);
  world_close(&a);
  world_close(&b);
}

static void save(world *w, const char *path) {
  ii_error err = {0};
  const ii_checkpoint_content content = {
      .state = {.steps_per_epoch = 1, .updates = UPDATES, .loss_scale = 1},
      .config = "",
      .params = &w->params,
      .optimizer = &w->optimizer};
  if (ii_checkpoint_save(path, &content, &err) != II_OK) fail_msg("%s", err.text);
}

/* A checkpoint says nothing of how parameters lie in memory: either model goes on with the other's,
 * in the middle of an accumulation too. */
static void check_exchange(bool from_joint) {
  world a, b;
  char path[300];
  ii_h5 *f;
  ii_error err = {0};
  snprintf(path, sizeof path, "%s/%d.h5", folder, from_joint);
  world_open(&a, from_joint, II_F64, II_F64);
  world_open(&b, !from_joint, II_F64, II_F64);
  train(&a, 0, UPDATES);
  ii_params_zero_grad(&a.params);
  backward(&a);
  save(&a, path);
  memcpy(b.x, a.x, sizeof b.x);
  if (ii_h5_open(path, &f, &err) != II_OK) fail_msg("%s", err.text);
  if (ii_checkpoint_restore(f, &b.params, &b.optimizer, &err) != II_OK) fail_msg("%s", err.text);
  ii_h5_close(f);
  want_same_state(&a, &b, 0);
  for (int i = 0; i < 2; i++) {
    world *w = i ? &b : &a;
    backward(w);
    assert_int_equal(ii_optimizer_step(&w->optimizer, &schedule, UPDATES, NULL), II_OK);
  }
  want_same_state(&a, &b, 1e-13);
  if (!from_joint) want_padding_zero(&b);
  world_close(&a);
  world_close(&b);
}

static void checkpoints_are_exchangeable(void **state) {
  check_exchange(true);
  check_exchange(false);
}

/* A file with one of the parts: the others keep their values. */
static void loaded_in_part(void **state) {
  world w;
  char path[300];
  double v[6 * IN], got[6 * IN], other[4 * IN], kept[4 * IN];
  const ii_h5_shape shape = {.ndim = 2, .dim = {6, IN}};
  ii_error err = {0};
  ii_weights_report report;
  ii_h5 *f;
  snprintf(path, sizeof path, "%s/part.h5", folder);
  for (int i = 0; i < 6 * IN; i++) v[i] = i;
  assert_int_equal(ii_h5_create(path, &f, &err), II_OK);
  assert_int_equal(ii_h5_group(f, "/model", &err), II_OK);
  assert_int_equal(ii_h5_write(f, "/model", "levels.0.blocks.0.dcn.offset.weight", II_H5_F64,
                               II_H5_F64, &shape, v, &err),
                   II_OK);
  assert_int_equal(ii_h5_commit(f, &err), II_OK);
  world_open(&w, true, II_F64, II_F64);
  ii_tensor_read_f64(w.ctx, w.params.at[2].value, other);
  if (ii_h5_open(path, &f, &err) != II_OK) fail_msg("%s", err.text);
  if (ii_weights_load(f, &w.params, &(ii_weights_options){.partial = true}, &report, &err) != II_OK)
    fail_msg("%s", err.text);
  ii_h5_close(f);
  assert_int_equal(report.matched, 1);
  assert_int_equal(report.missing, 5);
  ii_tensor_read_f64(w.ctx, w.params.at[0].value, got);
  ii_tensor_read_f64(w.ctx, w.params.at[2].value, kept);
  assert_memory_equal(got, v, sizeof v);
  assert_memory_equal(kept, other, sizeof other);
  want_padding_zero(&w);
  world_close(&w);
}

static int make_folder(void **state) {
  return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state) {
  static const char *const files[] = {"0.h5", "1.h5", "part.h5"};
  char path[300];
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s", folder, files[i]);
    unlink(path);
  }
  return rmdir(folder);
}

int main(void) {
  if (getenv("II_TEST_DEVICE") && ii_cuda_device_count() == 0) {
    printf("skipped: no GPU for II_TEST_DEVICE=cuda\n");
    return 77;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(trained_as_separate_parameters),
      cmocka_unit_test(copies_follow_values),
      cmocka_unit_test(frozen_parts_stay),
      cmocka_unit_test(parts_accumulate_on_their_own),
      cmocka_unit_test(average_takes_the_weights_place),
      cmocka_unit_test(checkpoints_are_exchangeable),
      cmocka_unit_test(loaded_in_part),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
