/* Tensors, parameters and models out of a file; the tiny networks and stochastic depth. */
#include "tests/golden_check.h"
#include "autograd/tape.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Float: the documented bounds. Double: two double implementations of the official networks differ
 * by up to 4e-13 in gradients and 4e-15 in outputs. Feature maps have no documented bound: torch
 * float32 is up to 4e-6 off in them (layer norms of few channels), and they get the same margin. */
#define OUT_F32        1e-5
#define FEATURE_F32    2e-5
#define LOSS_F32       2e-6
#define GRAD_INPUT_F32 2e-4
#define OUT_F64        1e-13
#define LOSS_F64       1e-14
#define GRAD_F64       1e-11
static const gc_grad_bounds network_bounds = {{3e-5, OUT_F64}, {1e-3, GRAD_F64}};

/* Gradients below this part of the largest one are compared as if they were that large. */
#define GRAD_FLOOR 1e-4

ii_ctx *gc_ctx(gc *g, bool plan, int threads) {
  ii_error err = {0};
  ii_ctx_options o = {.device = g->device,
                      .index = g->device_index,
                      .threads = threads,
                      .real = g->dtype == II_F64 ? II_F64 : II_F32,
                      .compute = g->dtype == II_F64 ? II_F64 : II_F32,
                      .plan = plan};
  ii_ctx *c = ii_ctx_open(&o, &err);
  if (!c) gc_die(g, "%s", err.text);
  c->training = true;
  c->recording = !plan;
  return c;
}

void gc_ctx_ok(gc *g, const ii_ctx *c) {
  if (!ii_ok(c)) gc_die(g, "%s", c->err.text);
}

ii_tensor *gc_tensor(gc *g, ii_ctx *c, int ndim, const int64_t *dim, const double *v,
                     bool needs_grad) {
  if (ndim > II_MAX_DIMS) gc_die(g, "a tensor of %d dimensions", ndim);
  ii_tensor *t = ii_tensor_new(c, c->real, ndim, dim);
  gc_ctx_ok(g, c);
  ii_tensor_write_f64(c, t, v);
  t->needs_grad = needs_grad;
  return t;
}

double *gc_values(gc *g, ii_ctx *c, const ii_tensor *t, const char *what) {
  gc_ctx_ok(g, c);
  if (!t || !t->mem) gc_die(g, "the program computed no %s", what);
  double *v = gc_alloc(g, (size_t)ii_numel(t), sizeof *v);
  ii_tensor_read_f64(c, t, v);
  return v;
}

void gc_backward_from(gc *g, ii_ctx *c, ii_tensor *y, const double *w) {
  int64_t n = ii_numel(y);
  ii_tensor *weight = gc_tensor(g, c, 2, (int64_t[]){1, n}, w, false);
  ii_tensor *row = ii_reshape(c, y, 2, (int64_t[]){1, n});
  ii_backward(c, ii_linear(c, row, weight, NULL), 1.0); /* sum(y*w); its gradient is w, exactly */
  gc_ctx_ok(g, c);
}

void gc_compare_tensor(gc *g, ii_ctx *c, const ii_tensor *t, hid_t group, const char *name,
                       double f32, double f64) {
  gc_array want = gc_read(g, group, name);
  double *got = gc_values(g, c, t, name);
  if (ii_numel(t) != want.n)
    gc_die(g, "%s has %lld numbers in the file, %lld in the program", name, (long long)want.n,
           (long long)ii_numel(t));
  gc_compare(g, name, gc_error(g, got, &want, 0), gc_bound(g, f32, f64));
}

double *gc_to_nhwc(gc *g, const double *v, int64_t N, int64_t C, int64_t H, int64_t W) {
  double *out = gc_alloc(g, (size_t)(N * C * H * W), sizeof *out);
  for (int64_t n = 0; n < N; n++)
    for (int64_t ch = 0; ch < C; ch++)
      for (int64_t i = 0; i < H * W; i++)
        out[(n * H * W + i) * C + ch] = v[(n * C + ch) * H * W + i];
  return out;
}

double *gc_to_nchw(gc *g, const double *v, int64_t N, int64_t C, int64_t H, int64_t W) {
  double *out = gc_alloc(g, (size_t)(N * C * H * W), sizeof *out);
  for (int64_t n = 0; n < N; n++)
    for (int64_t ch = 0; ch < C; ch++)
      for (int64_t i = 0; i < H * W; i++)
        out[(n * C + ch) * H * W + i] = v[(n * H * W + i) * C + ch];
  return out;
}

static bool same_shape(const ii_tensor *t, const gc_array *a) {
  bool same = t->ndim == a->ndim;
  for (int i = 0; same && i < t->ndim; i++) same = t->shape[i] == a->dim[i];
  return same;
}

bool gc_load(gc *g, ii_params *params, hid_t group, bool buffers, const char *suffix) {
  const char *source = buffers ? "buffers" : "params";
  int64_t count = 0, loaded = 0, ours = 0;
  hid_t from = gc_has(group, source) ? gc_open_group(g, group, source) : -1;
  char **names = from < 0 ? NULL : gc_names(g, from, &count);
  bool good = true;
  for (int64_t i = 0; i < count; i++) {
    size_t n = strlen(names[i]), s = strlen(suffix);
    if (n < s || strcmp(names[i] + n - s, suffix) != 0) continue;
    gc_array a = gc_read(g, from, names[i]);
    names[i][n - s] = 0;
    ii_param *p = ii_params_find(params, names[i]);
    bool fits = p && p->buffer == buffers && same_shape(p->value, &a);
    if (!fits)
      gc_expect(g, false, "%s: %s", names[i], p ? "another shape" : "not in our model");
    else
      ii_tensor_write_f64(params->ctx, p->value, a.v);
    good = good && fits;
    loaded += fits;
  }
  for (int64_t i = 0; i < params->count; i++) ours += params->at[i].buffer == buffers;
  if (good && loaded != ours) {
    gc_expect(g, false, "our model has %lld %s, the file %lld", (long long)ours,
              buffers ? "buffers" : "parameters", (long long)loaded);
    good = false;
  }
  if (from >= 0) H5Gclose(from);
  ii_params_refresh_low(params);
  return good;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

void gc_compare_grads(gc *g, ii_params *params, hid_t grads, const char *zero,
                      const gc_grad_bounds *bounds) {
  int64_t count, n = 0;
  char **names = gc_names(g, grads, &count);
  gc_array *want = gc_alloc(g, (size_t)count, sizeof *want);
  double *errs = gc_alloc(g, (size_t)count, sizeof *errs), largest = 0;
  for (int64_t i = 0; i < count; i++) {
    want[i] = gc_read(g, grads, names[i]);
    largest = fmax(largest, gc_max_abs(want[i].v, want[i].n));
  }
  for (int64_t i = 0; i < count; i++) {
    ii_param *p = ii_params_find(params, names[i]);
    gc_expect(g, p && same_shape(p->value, &want[i]), "gradient of %s: no such parameter",
              names[i]);
    if (!p || !same_shape(p->value, &want[i])) continue;
    double *got = gc_alloc(g, (size_t)want[i].n, sizeof *got); /* without gradient: zeros */
    if (p->value->grad_valid) ii_tensor_read_f64(params->ctx, p->value->grad, got);
    double err = gc_error(g, got, &want[i], GRAD_FLOOR * largest);
    gc_compare(g, names[i], err, gc_bound(g, bounds->worst[0], bounds->worst[1]));
    if (!gc_listed(zero, names[i])) errs[n++] = err;
  }
  for (int64_t i = 0; i < params->count; i++) {
    const ii_param *p = &params->at[i];
    if (p->buffer || !p->value->grad_valid || gc_has(grads, p->name)) continue;
    double *got = gc_values(g, params->ctx, p->value->grad, p->name);
    gc_expect(g, gc_max_abs(got, ii_numel(p->value)) == 0, "%s: has no gradient there", p->name);
  }
  qsort(errs, (size_t)n, sizeof *errs, by_value);
  if (n)
    gc_compare(g, "median over gradients", errs[n / 2],
               gc_bound(g, bounds->median[0], bounds->median[1]));
}

/* ---- the model of the attributes ---- */

static int read_ints(gc *g, hid_t group, const char *name, int *out, int max) {
  double v[II_MAX_POST];
  int n = gc_numbers(g, group, name, v, max);
  for (int i = 0; i < n; i++) {
    if (v[i] != floor(v[i]) || fabs(v[i]) > 1 << 20) gc_die(g, "attribute %s is damaged", name);
    out[i] = (int)v[i];
  }
  return n;
}

static void expect_text(gc *g, hid_t group, const char *name, const char *known) {
  const char *text = gc_text(g, group, name);
  if (*text && strcmp(text, known) != 0)
    gc_die(g, "attribute %s is %s: the models have only %s", name, text, known);
}

static bool flag(gc *g, hid_t group, const char *name, bool other) {
  return gc_number_or(g, group, name, other) != 0;
}

static ii_model_config read_config(gc *g, hid_t group) {
  ii_model_config m;
  ii_model_config_defaults(&m);
  const char *op = gc_text(g, group, "core_op");
  if (strcmp(op, "DCNv3") != 0 && strcmp(op, "DCNv4") != 0)
    gc_die(g, "attribute core_op is \"%s\": neither DCNv3 nor DCNv4", op);
  expect_text(g, group, "act_layer", "GELU");
  expect_text(g, group, "norm_layer", "LN");
  expect_text(g, group, "drop_path_type", "linear");
  if (gc_number_or(g, group, "drop_rate", 0) != 0 || gc_number_or(g, group, "clip_stride", 2) != 2)
    gc_die(g, "drop_rate or clip_stride has a value that the models do not have");
  m.core_op = strcmp(op, "DCNv3") == 0 ? II_DCNV3 : II_DCNV4;
  m.channels = (int)gc_integer(g, group, "channels", 1, 1 << 16);
  if (read_ints(g, group, "depths", m.depths, II_STAGES) != II_STAGES ||
      read_ints(g, group, "groups", m.groups, II_STAGES) != II_STAGES)
    gc_die(g, "attributes depths and groups need %d numbers each", II_STAGES);
  m.kernel_size = (int)gc_number_or(g, group, "kernel_size", 3);
  m.dw_kernel_size = (int)gc_number_or(g, group, "dw_kernel_size", 0);
  m.mlp_ratio = gc_number(g, group, "mlp_ratio");
  m.drop_path_rate = gc_number_or(g, group, "drop_path_rate", 0);
  m.layer_scale = gc_number_or(g, group, "layer_scale", 0);
  m.offset_scale = gc_number(g, group, "offset_scale");
  m.post_norm = flag(g, group, "post_norm", false);
  m.res_post_norm = flag(g, group, "res_post_norm", false);
  m.center_feature_scale = flag(g, group, "center_feature_scale", false);
  m.remove_center = flag(g, group, "remove_center", false);
  if (flag(g, group, "level2_post_norm", false))
    m.level2_post_norm_count =
        read_ints(g, group, "level2_post_norm_block_ids", m.level2_post_norm_ids, II_MAX_POST);
  m.dcn_output_bias = flag(g, group, "dcn_output_bias", true);
  m.mlp_fc2_bias = flag(g, group, "mlp_fc2_bias", true);
  m.use_clip_projector = flag(g, group, "use_clip_projector", false);
  m.clip_channels = (int)gc_number_or(g, group, "clip_pretrain_embed_dim", m.clip_channels);
  m.clip_heads = (int)gc_number_or(g, group, "clip_attnpool_num_heads", m.clip_heads);
  m.clip_out = (int)gc_number_or(g, group, "clip_embed_dim", m.clip_out);
  m.cls_scale = gc_number_or(g, group, "cls_scale", m.cls_scale);
  m.num_classes = (int)gc_integer(g, group, "num_classes", 1, 1 << 20);
  return m;
}

ii_model *gc_model(gc *g, ii_ctx *c, hid_t group) {
  ii_error err = {0};
  ii_model_config cfg = read_config(g, group);
  ii_model *m = ii_model_create(c, &cfg, &err);
  if (!m) gc_die(g, "%s", err.text);
  return m;
}

/* ---- networks ---- */

typedef struct {
  hid_t group;
  ii_ctx *c;
  ii_model *model;
  gc_array x, targets;
  int64_t image_dim[4]; /* NHWC */
  double *images;
} network;

/* Context, model with the file's weights, and the batch; false when the parameters disagree. */
static bool open_network(gc *g, hid_t group, network *w) {
  w->group = group;
  w->x = gc_read(g, group, "input");
  w->targets = gc_read(g, group, "soft_targets");
  const int64_t *d = w->x.dim;
  if (w->x.ndim != 4 || d[1] != 3 || d[2] < 32 || d[3] < 32)
    gc_die(g, "input is no batch of images");
  memcpy(w->image_dim, (int64_t[4]){d[0], d[2], d[3], 3}, sizeof w->image_dim);
  gc_shape(g, &w->targets, "soft_targets", 2,
           (int64_t[]){d[0], gc_integer(g, group, "num_classes", 1, 1 << 20)});
  w->images = gc_to_nhwc(g, w->x.v, d[0], 3, d[2], d[3]);
  w->c = gc_ctx(g, false, 0);
  w->model = gc_model(g, w->c, group);
  return gc_load(g, ii_model_params(w->model), group, false, "") &&
         gc_load(g, ii_model_params(w->model), group, true, "");
}

static void close_network(network *w) {
  ii_model_destroy(w->model);
  ii_ctx_close(w->c);
}

/* Forward, loss and gradients of a step on soft targets. */
static void check_step(gc *g, network *w, bool features) {
  ii_ctx *c = w->c;
  const int64_t *d = w->x.dim;
  ii_model_taps taps;
  ii_tensor *images = gc_tensor(g, c, 4, w->image_dim, w->images, true);
  ii_tensor *targets = gc_tensor(g, c, 2, w->targets.dim, w->targets.v, false);
  ii_tensor *logits = ii_model_forward(w->model, images, NULL, &taps);
  if (features) {
    gc_compare_tensor(g, c, taps.stem, w->group, "stem", FEATURE_F32, OUT_F64);
    for (int s = 0; s < II_STAGES; s++) {
      char name[24];
      snprintf(name, sizeof name, "stage%d", s);
      gc_compare_tensor(g, c, taps.stage[s], w->group, name, FEATURE_F32, OUT_F64);
    }
    gc_compare_tensor(g, c, taps.features, w->group, "head_features", FEATURE_F32, OUT_F64);
  }
  gc_compare_tensor(g, c, logits, w->group, "logits", OUT_F32, OUT_F64);
  ii_tensor *loss = ii_soft_cross_entropy(c, logits, targets);
  gc_compare_tensor(g, c, loss, w->group, "loss", LOSS_F32, LOSS_F64);
  ii_backward(c, loss, 1.0);
  gc_ctx_ok(g, c);
  double *gx = gc_values(g, c, images->grad, "grad_input");
  gc_array want = gc_read(g, w->group, "grad_input");
  gc_shape(g, &want, "grad_input", 4, d);
  gc_compare(g, "grad_input", gc_error(g, gc_to_nchw(g, gx, d[0], 3, d[2], d[3]), &want, 0),
             gc_bound(g, GRAD_INPUT_F32, GRAD_F64));
  hid_t grads = gc_open_group(g, w->group, "grads");
  gc_compare_grads(g, ii_model_params(w->model), grads,
                   gc_text(g, w->group, "grads_numerically_zero"), &network_bounds);
  H5Gclose(grads);
}

static void check_buffers(gc *g, network *w) {
  ii_params *p = ii_model_params(w->model);
  for (int64_t i = 0; i < p->count; i++) {
    if (!p->at[i].buffer) continue;
    hid_t after = gc_open_group(g, w->group, "buffers_after");
    gc_compare_tensor(g, w->c, p->at[i].value, after, p->at[i].name, OUT_F32, OUT_F64);
    H5Gclose(after);
  }
}

static void check_eval(gc *g, network *w) {
  gc_load(g, ii_model_params(w->model), w->group, true, "");
  ii_tape_reset(w->c);
  w->c->training = w->c->recording = false;
  ii_tensor *images = gc_tensor(g, w->c, 4, w->image_dim, w->images, false);
  ii_tensor *logits = ii_model_forward(w->model, images, NULL, NULL);
  gc_compare_tensor(g, w->c, logits, w->group, "logits_eval", OUT_F32, OUT_F64);
  w->c->training = w->c->recording = true;
}

/* loss_ce and loss_ls<a>p<b> (label smoothing a.b) on hard labels, for the file's logits. */
static void check_label_losses(gc *g, network *w) {
  ii_ctx *c = w->c;
  int64_t count;
  char **names = gc_names(g, w->group, &count), other[GC_NAME];
  gc_array logits = gc_read(g, w->group, "logits"), labels = gc_read(g, w->group, "hard_labels");
  gc_shape(g, &labels, "hard_labels", 1, logits.dim);
  for (int64_t i = 0; i < count; i++) {
    double smoothing = 0;
    int whole, part;
    if (strncmp(names[i], "loss_", 5) != 0) continue;
    if (sscanf(names[i], "loss_ls%dp%d", &whole, &part) == 2) {
      char text[GC_NAME];
      snprintf(text, sizeof text, "%d.%s", whole, strchr(names[i] + 7, 'p') + 1);
      smoothing = atof(text);
    } else if (strcmp(names[i], "loss_ce") != 0) {
      gc_die(g, "%s: an unknown loss", names[i]);
    }
    snprintf(other, sizeof other, "grad_logits_%s", names[i] + 5);
    ii_tape_reset(c);
    ii_tensor *x = gc_tensor(g, c, 2, logits.dim, logits.v, true);
    ii_tensor *y = ii_tensor_new(c, II_I32, 1, labels.dim);
    ii_tensor_write_f64(c, y, labels.v);
    ii_tensor *loss = ii_smooth_cross_entropy(c, x, y, smoothing);
    gc_compare_tensor(g, c, loss, w->group, names[i], LOSS_F32, LOSS_F64);
    ii_backward(c, loss, 1.0);
    gc_compare_tensor(g, c, x->grad, w->group, other, LOSS_F32, LOSS_F64);
  }
}

void gc_check_backbone(gc *g, hid_t group, const char *name) {
  gc_only(g, group,
          "input params buffers soft_targets stem stage0 stage1 stage2 stage3 head_features "
          "logits loss grads grad_input buffers_after logits_eval hard_labels loss_* "
          "grad_logits_*");
  network w;
  if (open_network(g, group, &w)) {
    check_step(g, &w, true);
    check_buffers(g, &w);
    check_eval(g, &w);
    check_label_losses(g, &w);
  }
  close_network(&w);
}

/* ---- stochastic depth ---- */

typedef struct {
  gc *g;
  hid_t masks;
  int64_t used;
} keep_source;

static void block_mask_name(char *out, size_t size, int stage, int block) {
  snprintf(out, size, "levels.%d.blocks.%d.drop_path", stage, block);
}

static bool keep(void *user, int stage, int block, int branch, int64_t N, double *out) {
  keep_source *s = user;
  char name[64];
  block_mask_name(name, sizeof name, stage, block);
  gc_array a = gc_read(s->g, s->masks, name);
  gc_shape(s->g, &a, name, 2, (int64_t[]){2, N});
  memcpy(out, a.v + branch * N, (size_t)N * sizeof *out);
  s->used++;
  return true;
}

static void check_rates(gc *g, hid_t masks, const ii_model *m) {
  int64_t count, ours = 0;
  gc_names(g, masks, &count);
  const ii_model_config *cfg = ii_model_get_config(m);
  for (int s = 0; s < II_STAGES; s++)
    for (int b = 0; b < cfg->depths[s]; b++) {
      char name[64];
      block_mask_name(name, sizeof name, s, b);
      double rate = ii_model_drop_path(m, s, b), want = 0;
      if (gc_has(masks, name)) {
        hid_t set = H5Dopen2(masks, name, H5P_DEFAULT);
        if (set < 0) gc_die(g, "%s is damaged", name);
        want = gc_number(g, set, "drop_prob");
        H5Dclose(set);
      }
      gc_expect(g, rate == want, "%s: rate %.17g, ours %.17g", name, want, rate);
      ours += rate > 0;
    }
  gc_expect(g, ours == count, "%lld blocks are dropped, in our model %lld", (long long)count,
            (long long)ours);
}

void gc_check_drop_path(gc *g, hid_t group, const char *name) {
  gc_only(g, group, "input params buffers keep_masks soft_targets logits loss grads grad_input");
  network w;
  if (open_network(g, group, &w)) {
    keep_source source = {.g = g, .masks = gc_open_group(g, group, "keep_masks")};
    check_rates(g, source.masks, w.model);
    if (g->here.err <= g->here.bound) {
      int64_t count;
      gc_names(g, source.masks, &count);
      ii_model_set_keep(w.model, keep, &source);
      check_step(g, &w, false);
      gc_expect(g, source.used == 2 * count, "all masks are used, each branch once");
    }
    H5Gclose(source.masks);
  }
  close_network(&w);
}
