/* Training runs, step by step: loss, logits, gradient norm, rates, and the weights at the end.
 *
 * Bounds for float are the documented ones; the runs amplify rounding, most in the case that starts
 * from the official initialisation (all sampling positions integer: the sides of the kinks are
 * decided by rounding once the offsets move). For what is not documented, each file carries the
 * deviation of the same run in torch float32, and ten times that is allowed. Double deviates by the
 * same amplification of 1e-16 instead of 6e-8. */
#include "tests/golden_check.h"
#include "autograd/tape.h"
#include "optim/optimizer.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  double loss, logits, norm, weights, buffers;
} run_bounds;

typedef struct {
  hid_t group;
  ii_ctx *c;
  ii_model *model;
  ii_params *params;
  ii_optimizer optimizer;
  ii_schedule schedule;
  run_bounds bounds;
  int64_t steps, batches, batch, classes, height, width;
  double smoothing;
  bool hard_labels;
  const char *zero; /* parameters whose true gradient is zero */
  double **initial; /* first value of every entry of params */
} run;

static run_bounds bounds_of(gc *g, hid_t group) {
  if (g->dtype == II_F64) return (run_bounds){1e-12, 1e-11, 1e-11, 1e-11, 1e-9};
  bool official = gc_number_or(g, group, "official_init", 0) != 0;
  bool sensitive = official || strcmp(gc_text(g, group, "core_op"), "DCNv4") == 0;
  run_bounds b = {.loss = sensitive ? 1e-4 : 5e-6, .weights = official ? 5e-2 : 5e-4};
  b.norm = fmax(10 * gc_number_or(g, group, "fp32_max_rel_grad_norm_dev", 0), b.loss);
  b.logits = 20 * b.loss; /* a loss averages over images, a largest error does not */
  b.buffers = b.logits;
  return b;
}

static ii_optimizer_options read_options(gc *g, hid_t group) {
  double betas[2];
  if (gc_numbers(g, group, "betas", betas, 2) != 2) gc_die(g, "attribute betas needs two numbers");
  ii_optimizer_options o = {.kind = II_OPTIMIZER_ADAMW,
                            .base_lr = gc_number(g, group, "base_lr"),
                            .beta1 = betas[0],
                            .beta2 = betas[1],
                            .eps = gc_number(g, group, "eps"),
                            .clip_grad = gc_number_or(g, group, "clip_grad", 0),
                            .ema = true,
                            .ema_decay = gc_number(g, group, "ema_decay")};
  double mul = gc_number_or(g, group, "dcn_lr_mul", -1), depths[II_STAGES];
  o.rules = (ii_param_rules){.weight_decay = gc_number(g, group, "weight_decay"),
                             .lr_layer_decay = gc_number(g, group, "lr_layer_decay") != 0,
                             .layer_decay_ratio = gc_number_or(g, group, "lr_layer_decay_ratio", 1),
                             .dcn_lr_mul = mul < 0 ? 1 : mul}; /* -1: none */
  if (gc_numbers(g, group, "depths", depths, II_STAGES) != II_STAGES)
    gc_die(g, "attribute depths needs %d numbers", II_STAGES);
  for (int i = 0; i < II_STAGES; i++) o.rules.depths[i] = (int64_t)depths[i];
  return o;
}

static ii_schedule read_schedule(gc *g, hid_t group) {
  ii_error err = {0};
  ii_schedule s = {.kind = II_SCHEDULE_COSINE,
                   .epochs = gc_integer(g, group, "epochs", 1, 100000),
                   .steps_per_epoch = gc_integer(g, group, "n_iter_per_epoch", 1, 1000000),
                   .accumulation = gc_integer(g, group, "accumulation_steps", 0, 10000),
                   .warmup_epochs = gc_number(g, group, "warmup_epochs"),
                   .warmup_lr = gc_number(g, group, "warmup_lr"),
                   .min_lr = gc_number(g, group, "min_lr")};
  if (s.accumulation == 0) s.accumulation = 1;
  if (ii_schedule_check(&s, &err) != II_OK) gc_die(g, "%s", err.text);
  return s;
}

static void open_run(gc *g, hid_t group, run *r) {
  *r = (run){.group = group,
             .bounds = bounds_of(g, group),
             .schedule = read_schedule(g, group),
             .steps = gc_integer(g, group, "num_steps", 1, 1000000),
             .batches = gc_integer(g, group, "num_batches", 1, 1000000),
             .batch = gc_integer(g, group, "batch", 1, 65536),
             .classes = gc_integer(g, group, "num_classes", 1, 1 << 20),
             .height = gc_integer(g, group, "height", 32, 4096),
             .width = gc_integer(g, group, "width", 32, 4096),
             .smoothing = gc_number_or(g, group, "label_smoothing", 0),
             .zero = gc_text(g, group, "params_with_zero_gradient")};
  const char *loss = gc_text(g, group, "loss");
  r->hard_labels = strcmp(loss, "label_smoothing_cross_entropy") == 0;
  if (!r->hard_labels && strcmp(loss, "soft_target_cross_entropy") != 0)
    gc_die(g, "attribute loss is \"%s\": an unknown loss", loss);
  r->c = gc_ctx(g, false, 1); /* many steps of tiny kernels: threads would only wait */
  r->model = gc_model(g, r->c, group);
  r->params = ii_model_params(r->model);
}

/* The first values; false when names or shapes disagree. */
static bool load_run(gc *g, run *r) {
  if (!gc_load(g, r->params, r->group, false, "") ||
      !gc_load(g, r->params, r->group, true, ":init"))
    return false;
  r->initial = gc_alloc(g, (size_t)r->params->count, sizeof *r->initial);
  for (int64_t i = 0; i < r->params->count; i++)
    r->initial[i] = gc_values(g, r->c, r->params->at[i].value, r->params->at[i].name);
  ii_optimizer_options o = read_options(g, r->group);
  ii_optimizer_init(&r->optimizer, r->params, &o);
  gc_ctx_ok(g, r->c);
  return true;
}

/* groups: JSON [name, weight decay, ratio of the rate] for every parameter. */
static void compare_groups(gc *g, const run *r) {
  json_error_t e;
  json_t *list = json_loads(gc_read_text(g, r->group, "groups"), 0, &e), *row;
  if (!json_is_array(list)) gc_die(g, "groups is not a JSON list; the file is damaged");
  size_t k;
  json_array_foreach(list, k, row) {
    const char *name = json_string_value(json_array_get(row, 0));
    const ii_param *p = name ? ii_params_find(r->params, name) : NULL;
    gc_expect(g, p != NULL, "%s: a parameter of our model", name ? name : "?");
    if (!p) continue;
    const ii_param_group *own = &r->optimizer.slot[p - r->params->at].group;
    double decay = json_number_value(json_array_get(row, 1));
    double ratio = json_number_value(json_array_get(row, 2));
    gc_expect(g, own->weight_decay == decay, "%s: weight decay", name);
    gc_compare(g, "ratio of the learning rate", fabs(own->lr_ratio - ratio) / ratio, 1e-12);
  }
  int64_t trained = 0;
  for (int64_t i = 0; i < r->params->count; i++) trained += !r->params->at[i].buffer;
  gc_expect(g, trained == (int64_t)json_array_size(list), "number of parameters in groups");
  json_decref(list);
}

static void compare_rates(gc *g, const run *r) {
  gc_array lr = gc_read(g, r->group, "lr");
  gc_shape(g, &lr, "lr", 2, (int64_t[]){r->steps, 2});
  char *columns = gc_text(g, r->group, "lr_columns"), *rest = columns;
  for (int k = 0; k < 2; k++) {
    const char *name = strtok_r(rest, ",", &rest);
    const ii_param *p = name ? ii_params_find(r->params, name) : NULL;
    if (!p) gc_die(g, "attribute lr_columns does not name two parameters");
    double worst = 0;
    for (int64_t t = 0; t < r->steps; t++) {
      double own = ii_optimizer_lr(&r->optimizer, &r->schedule, t, p - r->params->at);
      worst = fmax(worst, fabs(own - lr.v[2 * t + k]) / lr.v[2 * t + k]);
    }
    gc_compare(g, "learning rate", worst, 1e-12);
  }
}

static ii_tensor *loss_of(gc *g, run *r, ii_tensor *logits, const gc_array *targets, int64_t b) {
  ii_ctx *c = r->c;
  if (r->hard_labels) {
    ii_tensor *y = ii_tensor_new(c, II_I32, 1, &r->batch);
    gc_ctx_ok(g, c);
    ii_tensor_write_f64(c, y, targets->v + b * r->batch);
    return ii_smooth_cross_entropy(c, logits, y, r->smoothing);
  }
  ii_tensor *y = gc_tensor(g, c, 2, (int64_t[]){r->batch, r->classes},
                           targets->v + b * r->batch * r->classes, false);
  return ii_soft_cross_entropy(c, logits, y);
}

/* Differences of one value per step, relative; the worst of all steps counts. */
typedef struct {
  double loss, logits, norm;
} deviations;

static double relative(double got, double want) {
  double d = fabs(got - want) / fabs(want);
  return isfinite(d) ? d : INFINITY;
}

static void compare_weights(gc *g, run *r, const char *name, bool average);

static void compare_norm(deviations *d, const ii_step_report *report, double want) {
  d->norm = fmax(d->norm, relative(report->grad_norm, want));
}

static void run_steps(gc *g, run *r, deviations *d) {
  ii_ctx *c = r->c;
  const int64_t N = r->batch, image = 3 * r->height * r->width;
  gc_array x = gc_read(g, r->group, "images"), loss = gc_read(g, r->group, "loss");
  gc_array norm = gc_read(g, r->group, "grad_norm"), logits = gc_read(g, r->group, "logits");
  gc_array y = gc_read(g, r->group, r->hard_labels ? "hard_labels" : "soft_targets");
  gc_shape(g, &x, "images", 5, (int64_t[]){r->batches, N, 3, r->height, r->width});
  gc_shape(g, &y, "targets", 3 - r->hard_labels, (int64_t[]){r->batches, N, r->classes});
  gc_shape(g, &loss, "loss", 1, &r->steps);
  gc_shape(g, &norm, "grad_norm", 1, &r->steps);
  gc_shape(g, &logits, "logits", 3, (int64_t[]){r->steps, N, r->classes});
  double *own = gc_alloc(g, (size_t)(N * r->classes), sizeof *own), value;
  double *nhwc = gc_to_nhwc(g, x.v, r->batches * N, 3, r->height, r->width);
  for (int64_t t = 0; t < r->steps; t++) {
    ii_step_report report = {0};
    const int64_t b = t % r->batches;
    c->step = (uint64_t)t;
    ii_tensor *images =
        gc_tensor(g, c, 4, (int64_t[]){N, r->height, r->width, 3}, nhwc + b * N * image, false);
    ii_tensor *z = ii_model_forward(r->model, images, NULL, NULL);
    ii_tensor *l = loss_of(g, r, z, &y, b);
    gc_ctx_ok(g, c);
    ii_tensor_read_f64(c, z, own);
    ii_tensor_read_f64(c, l, &value);
    const gc_array now = {.n = N * r->classes, .v = logits.v + t * N * r->classes};
    d->logits = fmax(d->logits, gc_error(g, own, &now, 0));
    value /= (double)r->schedule.accumulation; /* as the official loop keeps it */
    d->loss = fmax(d->loss, relative(value, loss.v[t]));
    ii_backward(c, l, 1.0 / (double)r->schedule.accumulation);
    bool update = ii_schedule_is_update(&r->schedule, t);
    /* without mixed precision the official loop clips after every iteration */
    if (update)
      ii_optimizer_step(&r->optimizer, &r->schedule, t, &report);
    else
      ii_optimizer_clip(&r->optimizer, &report);
    if (update) ii_params_zero_grad(r->params);
    ii_tape_reset(c);
    gc_ctx_ok(g, c);
    compare_norm(d, &report, norm.v[t]);
    if (g->verbose)
      printf("       step %3lld  loss %.1e  logits %.1e  norm %.1e\n", (long long)t,
             relative(value, loss.v[t]), gc_error(g, own, &now, 0),
             relative(report.grad_norm, norm.v[t]));
    if (t == 0 && gc_has(r->group, "step1_minus_init"))
      compare_weights(g, r, "step1_minus_init", false);
  }
}

static double updates_of(run *r) {
  ii_update_state s;
  ii_optimizer_look(&r->optimizer, &s);
  return (double)s.t;
}

/* |difference| / |update| over all parameters with a gradient, in the l2 norm. */
static void compare_weights(gc *g, run *r, const char *name, bool average) {
  hid_t want = gc_open_group(g, r->group, name);
  double diff = 0, update = 0, size = 0;
  int64_t count, used = 0;
  gc_names(g, want, &count);
  for (int64_t i = 0; i < r->params->count; i++) {
    const ii_param *p = &r->params->at[i];
    if (p->buffer) continue;
    gc_array a = gc_read(g, want, p->name); /* float32: the difference to the first value */
    gc_shape(g, &a, p->name, p->value->ndim, p->value->shape);
    used++;
    if (gc_listed(r->zero, p->name)) continue;
    const ii_tensor *t = average ? r->optimizer.ema.avg[i] : p->value;
    double *v = gc_values(g, r->c, t, p->name);
    for (int64_t j = 0; j < a.n; j++) {
      double d = v[j] - r->initial[i][j] - a.v[j];
      /* the double run is allowed the rounding of the stored difference */
      if (g->dtype == II_F64) d = fmax(0, fabs(d) - 0x1p-24 * (1 + 1e-6) * fabs(a.v[j]));
      diff += d * d;
      update += a.v[j] * a.v[j];
      size += v[j] * v[j];
    }
  }
  gc_expect(g, used == count, "%s has as many parameters as our model", name);
  double bound = r->bounds.weights;
  /* the average moves by so little that float rounds much of it away. An update rounds twice, each
   * time by at most half a unit in the last place, 2^-24 |w|; signs vary from number to number and
   * from update to update, so that n updates walk sqrt(n) times as far, not n times */
  if (average && g->dtype == II_F32)
    bound += 2 * sqrt(updates_of(r)) * sqrt(size / update) * 0x1p-24;
  gc_compare(g, name, update > 0 ? sqrt(diff / update) : sqrt(diff), bound);
  H5Gclose(want);
}

/* A parameter with zero true gradient moves by amplified rounding noise. Where it stands before the
 * batch norm it shifts the running mean, and nothing else, by conv_head's weight times its noise.
 */
static double noise_of_mean(gc *g, run *r) {
  const ii_param *w = ii_params_find(r->params, "conv_head.0.weight");
  double noise = 0;
  if (!w || g->dtype == II_F64) return 0;
  double *weight = gc_values(g, r->c, w->value, "conv_head");
  hid_t final = gc_open_group(g, r->group, "final_minus_init");
  for (int64_t i = 0; i < r->params->count; i++) {
    const ii_param *p = &r->params->at[i];
    int64_t C = w->value->shape[1];
    if (p->buffer || !gc_listed(r->zero, p->name) || ii_numel(p->value) != C) continue;
    gc_array a = gc_read(g, final, p->name);
    double *v = gc_values(g, r->c, p->value, p->name), largest = 0;
    for (int64_t j = 0; j < C; j++) largest = fmax(largest, fabs(v[j] - r->initial[i][j] - a.v[j]));
    for (int64_t o = 0; o < w->value->shape[0]; o++) {
      double row = 0;
      for (int64_t j = 0; j < C; j++) row += fabs(weight[o * C + j]);
      noise = fmax(noise, row * largest);
    }
  }
  H5Gclose(final);
  return noise;
}

static void compare_buffers(gc *g, run *r, const char *suffix, bool average) {
  for (int64_t i = 0; i < r->params->count; i++) {
    const ii_param *p = &r->params->at[i];
    if (!p->buffer) continue;
    hid_t buffers = gc_open_group(g, r->group, "buffers");
    char name[GC_NAME];
    snprintf(name, sizeof name, "%s:%s", p->name, suffix);
    gc_array a = gc_read(g, buffers, name);
    gc_shape(g, &a, name, p->value->ndim, p->value->shape);
    double *v = gc_values(g, r->c, average ? r->optimizer.ema.avg[i] : p->value, name);
    double bound = r->bounds.buffers, largest = gc_max_abs(a.v, a.n);
    if (strstr(name, "running_mean") && largest > 0) {
      /* an average holds this share of all values it has seen, the rest is the first value */
      double decay = pow(r->optimizer.options.ema_decay, updates_of(r));
      bound += noise_of_mean(g, r) * (average ? 1 - decay : 1) / largest;
    }
    gc_compare(g, name, gc_error(g, v, &a, 0), bound);
    H5Gclose(buffers);
  }
}

void gc_check_training(gc *g, hid_t group, const char *name) {
  gc_only(g, group,
          "params buffers images soft_targets hard_labels loss logits grad_norm lr groups "
          "fp32_loss fp32_grad_norm step1_minus_init final_minus_init ema_minus_init");
  run r;
  deviations d = {0};
  open_run(g, group, &r);
  if (load_run(g, &r)) {
    compare_groups(g, &r);
    compare_rates(g, &r);
    run_steps(g, &r, &d);
    gc_compare(g, "loss of the worst step", d.loss, r.bounds.loss);
    gc_compare(g, "logits of the worst step", d.logits, r.bounds.logits);
    gc_compare(g, "gradient norm of the worst step", d.norm, r.bounds.norm);
    compare_weights(g, &r, "final_minus_init", false);
    compare_weights(g, &r, "ema_minus_init", true);
    compare_buffers(g, &r, "final", false);
    compare_buffers(g, &r, "ema", true);
  }
  ii_optimizer_destroy(&r.optimizer);
  ii_model_destroy(r.model);
  ii_ctx_close(r.c);
}
