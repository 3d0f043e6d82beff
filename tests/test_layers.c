/* What the reference data does not show of layers and models: initial values, stochastic depth, and
 * the metadata branch of the iNaturalist model. */
#include "layers/basic.h"
#include "models/model.h"
#include "autograd/rng.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static ii_ctx *open_ctx(ii_dtype real, uint64_t seed) {
  ii_error err = {0};
  ii_ctx *c = ii_ctx_open(
      &(ii_ctx_options){.threads = 1, .real = real, .compute = real, .seed = seed}, &err);
  if (!c) fail_msg("%s", err.text);
  return c;
}

static ii_model_config small_config(ii_core_op op) {
  ii_model_config cfg;
  ii_model_config_defaults(&cfg);
  cfg.core_op = op;
  cfg.channels = 16;
  for (int s = 0; s < II_STAGES; s++) {
    cfg.depths[s] = s == 2 ? 2 : 1;
    cfg.groups[s] = 2 << s;
  }
  cfg.num_classes = 7;
  return cfg;
}

static ii_model *build(ii_ctx *c, const ii_model_config *cfg, uint64_t seed) {
  ii_error err = {0};
  ii_model *m = ii_model_create(c, cfg, &err);
  if (!m) fail_msg("%s", err.text);
  ii_model_init(m, seed);
  return m;
}

static double *values(ii_ctx *c, const ii_tensor *t) {
  double *v = malloc((size_t)ii_numel(t) * sizeof *v);
  assert_non_null(v);
  ii_tensor_read_f64(c, t, v);
  return v;
}

/* ---- initial values ---- */

static bool ends(const char *s, const char *end) {
  size_t n = strlen(s), m = strlen(end);
  return n >= m && !strcmp(s + n - m, end);
}

static bool has_any(const char *s, const char *const *words) {
  for (; *words; words++)
    if (strstr(s, *words)) return true;
  return false;
}

/* Inputs of one output of the layer that the parameter belongs to, from its weight's shape. */
static double fan_in(const ii_params *p, const ii_param *q) {
  char name[II_PARAM_NAME];
  snprintf(name, sizeof name, "%.*s.weight", (int)(strrchr(q->name, '.') - q->name), q->name);
  const ii_tensor *w = ii_params_find(p, name)->value;
  return (double)(ii_numel(w) / w->shape[0]);
}

typedef struct {
  enum { CONSTANT, UNIFORM, NORMAL } kind;
  double value; /* the constant, the largest size, the standard deviation */
} law;

/* The published rules by name: torch's defaults for convolutions; deformable modules start with
 * offsets, masks and gates of zero and Xavier projections; all other linear layers N(0, 0.02^2)
 * without bias; norms are the identity. */
static law law_of(const ii_params *p, const ii_param *q, double layer_scale) {
  static const char *const convolutions[] = {"patch_embed.conv",
                                             "downsample.conv",
                                             "conv_head.0.",
                                             "dcnv3_head_x",
                                             "dw_conv.0.",
                                             "offset_mask_dw.",
                                             NULL};
  static const char *const zeros[] = {"dcn.offset.", "dcn.mask.", "dcn.offset_mask.",
                                      "center_feature_scale_proj", NULL};
  static const char *const projections[] = {"put_proj.weight", "value_proj.weight", NULL};
  static const char *const norms[] = {"norm",           "dw_conv.1.1.",   "conv_head.1.0.",
                                      "meta_head_1.2.", "meta_head_2.2.", NULL};
  const char *name = q->name;
  if (ends(name, "gamma1") || ends(name, "gamma2")) return (law){CONSTANT, layer_scale};
  if (q->buffer) return (law){CONSTANT, ends(name, "running_var")};
  if (has_any(name, convolutions)) return (law){UNIFORM, 1 / sqrt(fan_in(p, q))};
  if (has_any(name, zeros)) return (law){CONSTANT, 0};
  if (has_any(name, projections)) return (law){UNIFORM, sqrt(3 / fan_in(p, q))};
  if (has_any(name, norms)) return (law){CONSTANT, ends(name, "weight")};
  if (ends(name, "bias")) return (law){CONSTANT, 0};
  return (law){NORMAL, 0.02};
}

/* Six standard deviations of the mean and of the mean square; fourth moments: 1/5 of a uniform
 * number's, 3 of a normal one's. */
static void check_law(const char *name, law l, const double *v, int64_t n) {
  double mean = 0, square = 0, largest = 0;
  for (int64_t i = 0; i < n; i++) {
    if (l.kind == CONSTANT && (float)v[i] != (float)l.value)
      fail_msg("%s starts with %g, not %g", name, v[i], l.value);
    mean += v[i] / (double)n;
    square += v[i] * v[i] / (double)n;
    largest = fmax(largest, fabs(v[i]));
  }
  if (l.kind == CONSTANT) return;
  const bool uniform = l.kind == UNIFORM;
  double want = l.value * l.value * (uniform ? 1.0 / 3 : 1);
  double spread = l.value * l.value * sqrt(uniform ? 1.0 / 5 - 1.0 / 9 : 2);
  if (!(fabs(mean) <= 6 * sqrt(want / (double)n))) fail_msg("%s: mean %g", name, mean);
  if (!(fabs(square - want) <= 6 * spread / sqrt((double)n)))
    fail_msg("%s: mean square %g, not %g", name, square, want);
  if (uniform ? largest > l.value * (1 + 1e-6) : n > 1000 && largest < 2 * l.value)
    fail_msg("%s: largest %g of %s %g", name, largest, uniform ? "uniform" : "normal", l.value);
}

static void check_initial_values(const ii_model_config *cfg) {
  ii_ctx *c = open_ctx(II_F32, 0);
  ii_model *m = build(c, cfg, 11), *other = build(c, cfg, 12), *again = build(c, cfg, 11);
  const ii_params *p = ii_model_params(m);
  for (int64_t i = 0; i < p->count; i++) {
    const ii_param *q = &p->at[i];
    int64_t n = ii_numel(q->value);
    double *v = values(c, q->value), *w = values(c, ii_model_params(other)->at[i].value);
    double *same = values(c, ii_model_params(again)->at[i].value);
    law l = law_of(p, q, cfg->layer_scale);
    check_law(q->name, l, v, n);
    assert_memory_equal(v, same, (size_t)n * sizeof *v);
    if (l.kind != CONSTANT && !memcmp(v, w, (size_t)n * sizeof *v))
      fail_msg("%s does not depend on the seed", q->name);
    /* each parameter has numbers of its own */
    for (int64_t k = 0; k < i && l.kind != CONSTANT; k++)
      if (((const float *)ii_data(p->at[k].value))[0] == (float)v[0])
        fail_msg("%s begins as %s", q->name, p->at[k].name);
    free(v);
    free(w);
    free(same);
  }
  ii_model_destroy(m);
  ii_model_destroy(other);
  ii_model_destroy(again);
  ii_ctx_close(c);
}

static void test_initial_values(void **state) {
  ii_model_config cfg = small_config(II_DCNV3); /* as T and as L */
  check_initial_values(&cfg);
  cfg.post_norm = true;
  cfg.layer_scale = 1e-5;
  check_initial_values(&cfg);
  cfg = small_config(II_DCNV3); /* as H with metadata */
  cfg.dw_kernel_size = 5;
  cfg.center_feature_scale = cfg.res_post_norm = cfg.use_clip_projector = true;
  cfg.level2_post_norm_count = 1;
  cfg.clip_channels = 64;
  cfg.clip_heads = 4;
  cfg.clip_out = 48;
  cfg.meta_dims[0] = 4;
  cfg.meta_dims[1] = 3;
  check_initial_values(&cfg);
  cfg = small_config(II_DCNV4); /* Flash */
  cfg.dw_kernel_size = 3;
  cfg.mlp_fc2_bias = cfg.dcn_output_bias = false;
  check_initial_values(&cfg);
}

/* ---- stochastic depth ---- */

static void test_drop_path(void **state) {
  enum { N = 20000 };
  const double rate = 0.3;
  ii_ctx *c = open_ctx(II_F64, 7);
  assert_null(ii_drop_path(c, N, rate)); /* not training */
  c->training = true;
  assert_null(ii_drop_path(c, N, 0));
  assert_int_equal(c->draw, 0);
  double *v[4];
  for (int i = 0; i < 4; i++) { /* again, another draw, another step */
    c->step = i == 3;
    c->draw = i == 2;
    v[i] = values(c, ii_drop_path(c, N, rate));
    assert_int_equal(c->draw, 1 + (i == 2));
  }
  int64_t kept = 0;
  for (int i = 0; i < N; i++) {
    assert_true(v[0][i] == 0 || v[0][i] == 1 / (1 - rate));
    kept += v[0][i] > 0;
  }
  assert_true(fabs((double)kept - N * (1 - rate)) < 5 * sqrt(N * rate * (1 - rate)));
  assert_memory_equal(v[0], v[1], N * sizeof **v);
  assert_memory_not_equal(v[0], v[2], N * sizeof **v);
  assert_memory_not_equal(v[0], v[3], N * sizeof **v);
  for (int i = 0; i < 4; i++) free(v[i]);
  ii_ctx_close(c);
}

/* ---- metadata ---- */

enum { WIDTH = 64, CLASSES = 7 };

/* y = W x + b of the layer called name. */
static void linear(ii_ctx *c, const ii_params *p, const char *name, const double *x, double *y) {
  char full[II_PARAM_NAME];
  snprintf(full, sizeof full, "%s.weight", name);
  const ii_tensor *t = ii_params_find(p, full)->value;
  snprintf(full, sizeof full, "%s.bias", name);
  double *w = values(c, t), *b = values(c, ii_params_find(p, full)->value);
  for (int64_t o = 0; o < t->shape[0]; o++) {
    y[o] = b[o];
    for (int64_t i = 0; i < t->shape[1]; i++) y[o] += w[o * t->shape[1] + i] * x[i];
  }
  free(w);
  free(b);
}

static void layer_norm(ii_ctx *c, const ii_params *p, const char *name, double eps, double *x) {
  char full[II_PARAM_NAME];
  snprintf(full, sizeof full, "%s.weight", name);
  const ii_tensor *t = ii_params_find(p, full)->value;
  snprintf(full, sizeof full, "%s.bias", name);
  double *w = values(c, t), *b = values(c, ii_params_find(p, full)->value), mean = 0, var = 0;
  const int64_t n = ii_numel(t);
  for (int64_t i = 0; i < n; i++) mean += x[i] / (double)n;
  for (int64_t i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / (double)n;
  for (int64_t i = 0; i < n; i++) x[i] = (x[i] - mean) / sqrt(var + eps) * w[i] + b[i];
  free(w);
  free(b);
}

/* LN(ReLU(W x)) */
static void encode(ii_ctx *c, const ii_params *p, const char *head, const char *w, const char *norm,
                   const double *x, double *y) {
  char name[II_PARAM_NAME];
  snprintf(name, sizeof name, "%s.%s", head, w);
  linear(c, p, name, x, y);
  for (int i = 0; i < WIDTH; i++) y[i] = fmax(0, y[i]);
  snprintf(name, sizeof name, "%s.%s", head, norm);
  layer_norm(c, p, name, 1e-5, y);
}

/* What the seven numbers of one image add to its logits. */
static void meta_logits(ii_ctx *c, const ii_params *p, const double *meta, double *logits) {
  double all[2 * WIDTH], h[WIDTH], r[WIDTH];
  for (int k = 0; k < 2; k++) {
    char head[24];
    double *y = all + k * WIDTH;
    snprintf(head, sizeof head, "meta_head_%d", k + 1);
    encode(c, p, head, "0", "2", meta + 4 * k, y);
    encode(c, p, head, "3.w1", "3.norm_fn1", y, h);
    encode(c, p, head, "3.w2", "3.norm_fn2", h, r);
    for (int i = 0; i < WIDTH; i++) y[i] += r[i];
  }
  layer_norm(c, p, "meta_norm", 1e-6, all);
  linear(c, p, "meta_head", all, logits);
}

/* Two images, the same but for their metadata: the difference of their logits is the metadata's. */
static void test_metadata(void **state) {
  enum { SIDE = 32 };
  ii_ctx *c = open_ctx(II_F64, 0);
  ii_model_config cfg = small_config(II_DCNV3);
  cfg.meta_dims[0] = 4;
  cfg.meta_dims[1] = 3;
  ii_model *m = build(c, &cfg, 3);
  ii_params *p = ii_model_params(m);
  ii_rng r = ii_rng_make(1, II_RNG_TEST, 0, 0);
  for (int64_t i = 0; i < p->count; i++) { /* biases of 0 and weights of 1 would hide mistakes */
    if (!strstr(p->at[i].name, "meta_")) continue;
    double *v = values(c, p->at[i].value);
    for (int64_t k = 0; k < ii_numel(p->at[i].value); k++) v[k] += 0.3 * ii_rng_normal(&r);
    ii_tensor_write_f64(c, p->at[i].value, v);
    free(v);
  }
  double meta[14], want[2][CLASSES], got[2 * CLASSES];
  for (int i = 0; i < 14; i++) meta[i] = ii_rng_range(&r, -1, 1);
  ii_tensor *images = ii_tensor_new(c, II_F64, 4, (int64_t[]){2, SIDE, SIDE, 3});
  double *v = malloc(2 * SIDE * SIDE * 3 * sizeof *v);
  assert_non_null(v);
  for (int i = 0; i < SIDE * SIDE * 3; i++) v[i] = v[i + SIDE * SIDE * 3] = ii_rng_normal(&r);
  ii_tensor_write_f64(c, images, v);
  free(v);
  ii_tensor *t = ii_tensor_from_host(c, II_F64, 2, (int64_t[]){2, 7}, meta);
  ii_tensor_read_f64(c, ii_model_forward(m, images, t, NULL), got);
  assert_true(ii_ok(c));
  for (int n = 0; n < 2; n++) meta_logits(c, p, meta + 7 * n, want[n]);
  for (int k = 0; k < CLASSES; k++) {
    double ours = got[k] - got[CLASSES + k], by_formula = want[0][k] - want[1][k];
    assert_true(fabs(by_formula) > 1e-3 && fabs(ours - by_formula) < 1e-11);
  }
  ii_model_destroy(m);
  ii_ctx_close(c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_initial_values),
      cmocka_unit_test(test_drop_path),
      cmocka_unit_test(test_metadata),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
