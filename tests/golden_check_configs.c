/* The shipped recipes against the official yamls: hyper-parameters, parameter groups, sizes,
 * multiply-adds and learning rates. What is checked is the .cfg file itself, loaded as train does,
 * and the model, optimizer and schedule made from it. Models are built in plan mode: no memory. */
#include "tests/golden_check.h"
#include "train/setup.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RATE 1e-12 /* documented bound of rates and ratios: both sides are double */

/* Our recipe of each official yaml. The 1K recipes have no layer decay to leave out. */
static const struct {
  const char *yaml, *config;
} recipes[] = {
    {"configs/internimage_t_1k_224.yaml", "internimage_t_1k"},
    {"configs/internimage_s_1k_224.yaml", "internimage_s_1k"},
    {"configs/internimage_b_1k_224.yaml", "internimage_b_1k"},
    {"configs/internimage_l_22kto1k_384.yaml", "internimage_l_22kto1k_384"},
    {"configs/internimage_xl_22kto1k_384.yaml", "internimage_xl_22kto1k_384"},
    {"configs/internimage_h_22kto1k_384.yaml", "internimage_h_22kto1k_384"},
    {"configs/internimage_h_22kto1k_640.yaml", "internimage_h_22kto1k_640"},
    {"configs/internimage_g_22kto1k_512.yaml", "internimage_g_22kto1k_512"},
    {"configs/without_lr_decay/internimage_t_1k_224.yaml", "internimage_t_1k"},
    {"configs/without_lr_decay/internimage_s_1k_224.yaml", "internimage_s_1k"},
    {"configs/without_lr_decay/internimage_b_1k_224.yaml", "internimage_b_1k"},
    {"configs/without_lr_decay/internimage_l_22kto1k_384.yaml",
     "internimage_l_22kto1k_384_nodecay"},
    {"configs/without_lr_decay/internimage_xl_22kto1k_384.yaml",
     "internimage_xl_22kto1k_384_nodecay"},
    {"configs/without_lr_decay/internimage_h_22kto1k_640.yaml",
     "internimage_h_22kto1k_640_nodecay"},
    {"configs/without_lr_decay/internimage_g_22kto1k_512.yaml",
     "internimage_g_22kto1k_512_nodecay"},
    {"configs/inaturalist2018/internimage_h_22ktoinat18_384.yaml", "internimage_h_inat18_384"},
    {"configs/flash_intern_image_t_1k_224.yaml", "flash_internimage_t_1k"},
    {"configs/flash_intern_image_s_1k_224.yaml", "flash_internimage_s_1k"},
    {"configs/flash_intern_image_b_1k_224.yaml", "flash_internimage_b_1k"},
    {"configs/flash_intern_image_l_22kto1k_384.yaml", "flash_internimage_l_22kto1k_384"},
};

/* Official names of what a row's opts may override on top of its yaml. */
static const struct {
  const char *official, *key;
} overrides[] = {
    {"MODEL.DROP_PATH_RATE", "model.drop_path_rate"},
    {"MODEL.LABEL_SMOOTHING", "train.label_smoothing"},
    {"DATA.IMG_SIZE", "data.img_size"},
    {"TRAIN.EPOCHS", "train.epochs"},
    {"TRAIN.WARMUP_EPOCHS", "train.warmup_epochs"},
    {"TRAIN.WEIGHT_DECAY", "train.weight_decay"},
    {"TRAIN.BASE_LR", "train.base_lr"},
    {"TRAIN.WARMUP_LR", "train.warmup_lr"},
    {"TRAIN.MIN_LR", "train.min_lr"},
    {"TRAIN.CLIP_GRAD", "train.clip_grad"},
    {"TRAIN.LR_LAYER_DECAY", "train.lr_layer_decay"},
    {"TRAIN.LR_LAYER_DECAY_RATIO", "train.lr_layer_decay_ratio"},
    {"TRAIN.LR_SCHEDULER.NAME", "train.schedule"},
    {"TRAIN.LR_SCHEDULER.DECAY_EPOCHS", "train.decay_epochs"},
    {"TRAIN.LR_SCHEDULER.DECAY_RATE", "train.decay_rate"},
};

/* ---- JSON ---- */

static const json_t *member(gc *g, const json_t *object, const char *key) {
  const json_t *v = json_object_get(object, key);
  if (!v) gc_die(g, "the file has no %s here; it is damaged", key);
  return v;
}

static const char *string_of(gc *g, const json_t *object, const char *key) {
  const json_t *v = member(g, object, key);
  if (!json_is_string(v)) gc_die(g, "%s is not a string", key);
  return json_string_value(v);
}

/* Numbers and booleans; null and missing give none. */
static double number_of(gc *g, const json_t *object, const char *key, double none) {
  const json_t *v = json_object_get(object, key);
  if (!v || json_is_null(v)) return none;
  if (json_is_boolean(v)) return json_is_true(v);
  if (!json_is_number(v)) gc_die(g, "%s is not a number", key);
  return json_number_value(v);
}

static double need_number(gc *g, const json_t *object, const char *key) {
  double v = number_of(g, object, key, NAN);
  if (isnan(v)) gc_die(g, "the file has no number %s here; it is damaged", key);
  return v;
}

static void equal(gc *g, const char *what, double ours, double official) {
  gc_expect(g, ours == official, "%s: official %.17g, ours %.17g", what, official, ours);
}

static double relative(double ours, double official) {
  double d = fabs(ours - official);
  if (!isfinite(d)) return INFINITY;
  return official == 0 ? d : d / fabs(official);
}

static void equal_list(gc *g, const char *what, const ii_int_list *ours, const json_t *official) {
  size_t n = json_array_size(official); /* 0 for null */
  equal(g, what, (double)ours->count, (double)n);
  for (size_t i = 0; i < n && (int64_t)i < ours->count; i++)
    equal(g, what, (double)ours->v[i], json_number_value(json_array_get(official, i)));
}

/* ---- the recipe ---- */

static void set(gc *g, ii_config *cfg, const char *key, const char *value) {
  char text[GC_NAME];
  ii_error err = {0};
  snprintf(text, sizeof text, "%s=%s", key, value);
  if (ii_config_set(cfg, text, &err) != II_OK) gc_die(g, "%s", err.text);
}

static void apply_override(gc *g, ii_config *cfg, const char *official, const json_t *value) {
  char text[64];
  for (size_t i = 0; i < sizeof overrides / sizeof *overrides; i++) {
    if (strcmp(overrides[i].official, official) != 0) continue;
    if (json_is_string(value))
      snprintf(text, sizeof text, "%s", json_string_value(value));
    else if (json_is_boolean(value))
      snprintf(text, sizeof text, "%s", json_is_true(value) ? "true" : "false");
    else if (json_is_integer(value))
      snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
    else
      snprintf(text, sizeof text, "%.17g", json_number_value(value));
    set(g, cfg, overrides[i].key, text);
    return;
  }
  gc_die(g, "opts overrides %s, which golden_check has no key for", official);
}

/* The shipped configuration of a row, with the row's batch (of all processes) and classes: the
 * yamls leave the default of 1000. */
static ii_config load_recipe(gc *g, const json_t *row, int64_t batch) {
  const char *yaml = string_of(g, row, "yaml"), *name = NULL;
  ii_config cfg;
  ii_error err = {0};
  char text[32];
  for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++)
    if (strcmp(recipes[i].yaml, yaml) == 0) name = recipes[i].config;
  if (!name) gc_die(g, "%s is none of the official configurations that have a recipe here", yaml);
  if (ii_config_load(&cfg, name, &err) != II_OK) gc_die(g, "%s", err.text);
  const json_t *opts = json_object_get(row, "opts");
  for (size_t i = 0; i + 1 < json_array_size(opts); i += 2) {
    const char *key = json_string_value(json_array_get(opts, i));
    apply_override(g, &cfg, key ? key : "?", json_array_get(opts, i + 1));
  }
  snprintf(text, sizeof text, "%lld", (long long)batch);
  set(g, &cfg, "data.batch_size", text);
  snprintf(text, sizeof text, "%.0f", number_of(g, row, "num_classes", 1000));
  set(g, &cfg, "model.num_classes", text);
  if (ii_config_check(&cfg, &err) != II_OK) gc_die(g, "%s", err.text);
  return cfg;
}

static void compare_model_keys(gc *g, const ii_config *cfg, const json_t *row) {
  const json_t *m = member(g, row, "model");
  bool v4 = strcmp(string_of(g, m, "core_op"), "DCNv4") == 0;
  bool meta = strcmp(string_of(g, row, "model_type"), "intern_image_meta_former") == 0;
  equal(g, "core_op", cfg->model.core_op == ii_model_core_op_DCNv4, v4);
  equal(g, "channels", (double)cfg->model.channels, need_number(g, m, "channels"));
  equal_list(g, "depths", &cfg->model.depths, member(g, m, "depths"));
  equal_list(g, "groups", &cfg->model.groups, member(g, m, "groups"));
  equal(g, "kernel_size", (double)cfg->model.kernel_size, number_of(g, m, "kernel_size", 3));
  equal(g, "mlp_ratio", cfg->model.mlp_ratio, need_number(g, m, "mlp_ratio"));
  equal(g, "layer_scale", cfg->model.layer_scale, number_of(g, m, "layer_scale", 0));
  equal(g, "offset_scale", cfg->model.offset_scale, need_number(g, m, "offset_scale"));
  equal(g, "post_norm", cfg->model.post_norm, need_number(g, m, "post_norm"));
  equal(g, "res_post_norm", cfg->model.res_post_norm, need_number(g, m, "res_post_norm"));
  equal(g, "dw_kernel_size", (double)cfg->model.dw_kernel_size,
        number_of(g, m, "dw_kernel_size", 0));
  equal(g, "use_clip_projector", cfg->model.use_clip_projector,
        number_of(g, m, "use_clip_projector", 0));
  equal_list(g, "level2_post_norm_block_ids", &cfg->model.level2_post_norm_block_ids,
             number_of(g, m, "level2_post_norm", 0) != 0
                 ? json_object_get(m, "level2_post_norm_block_ids")
                 : NULL);
  equal(g, "center_feature_scale", cfg->model.center_feature_scale,
        number_of(g, m, "center_feature_scale", 0));
  equal(g, "remove_center", cfg->model.remove_center, number_of(g, m, "remove_center", 0));
  equal(g, "dcn_output_bias", cfg->model.dcn_output_bias, number_of(g, m, "dcn_output_bias", 1));
  equal(g, "mlp_fc2_bias", cfg->model.mlp_fc2_bias, number_of(g, m, "mlp_fc2_bias", 1));
  equal(g, "meta_dims", (double)cfg->model.meta_dims.count, meta ? 2 : 0);
  equal(g, "drop_path_rate", cfg->model.drop_path_rate, need_number(g, row, "drop_path_rate"));
}

static void compare_augmentation(gc *g, const ii_config *cfg, const json_t *aug) {
  static const char *const modes[] = {"pixel", "const", "rand"}; /* as in options.def */
  const char *mode = string_of(g, aug, "remode");
  equal(g, "interpolation", cfg->data.interpolation == ii_data_interpolation_bicubic,
        strcmp(string_of(g, aug, "interpolation"), "bicubic") == 0);
  equal(g, "auto_augment", strcmp(cfg->data.auto_augment, string_of(g, aug, "auto_augment")), 0);
  equal(g, "color_jitter", cfg->data.color_jitter.v[0], need_number(g, aug, "color_jitter"));
  equal(g, "erase_prob", cfg->data.erase_prob, need_number(g, aug, "reprob"));
  equal(g, "erase_mode", strcmp(modes[cfg->data.erase_mode], mode), 0);
  equal(g, "erase_count", (double)cfg->data.erase_count, need_number(g, aug, "recount"));
  equal(g, "mixup", cfg->data.mixup, need_number(g, aug, "mixup"));
  equal(g, "cutmix", cfg->data.cutmix, need_number(g, aug, "cutmix"));
  equal(g, "mix_prob", cfg->data.mix_prob, need_number(g, aug, "mixup_prob"));
  equal(g, "mix_switch_prob", cfg->data.mix_switch_prob, need_number(g, aug, "switch_prob"));
}

static void compare_train_keys(gc *g, const ii_config *cfg, const json_t *row) {
  const json_t *t = member(g, row, "train"), *betas = member(g, t, "betas");
  const ii_optimizer_options o = ii_setup_optimizer(cfg);
  const ii_schedule s = ii_setup_schedule(cfg, 1);
  double steps = number_of(g, t, "accumulation_steps", 0);
  equal(g, "img_size", (double)cfg->data.img_size, need_number(g, row, "img_size"));
  compare_augmentation(g, cfg, member(g, row, "aug"));
  equal(g, "label_smoothing", cfg->train.label_smoothing, need_number(g, row, "label_smoothing"));
  equal(g, "epochs", (double)cfg->train.epochs, need_number(g, t, "epochs"));
  equal(g, "warmup_epochs", cfg->train.warmup_epochs, need_number(g, t, "warmup_epochs"));
  equal(g, "weight_decay", cfg->train.weight_decay, need_number(g, t, "weight_decay"));
  equal(g, "base_lr", cfg->train.base_lr, need_number(g, t, "base_lr_yaml"));
  gc_compare(g, "scaled base_lr", relative(o.base_lr, need_number(g, t, "base_lr_scaled")), RATE);
  gc_compare(g, "scaled warmup_lr", relative(s.warmup_lr, need_number(g, t, "warmup_lr_scaled")),
             RATE);
  gc_compare(g, "scaled min_lr", relative(s.min_lr, need_number(g, t, "min_lr_scaled")), RATE);
  equal(g, "clip_grad", cfg->train.clip_grad, number_of(g, t, "clip_grad", 0));
  equal(g, "lr_layer_decay", cfg->train.lr_layer_decay, need_number(g, t, "lr_layer_decay"));
  if (cfg->train.lr_layer_decay) /* without it the ratio means nothing */
    equal(g, "lr_layer_decay_ratio", cfg->train.lr_layer_decay_ratio,
          need_number(g, t, "lr_layer_decay_ratio"));
  equal(g, "dcn_lr_mul", cfg->train.dcn_lr_mul, number_of(g, t, "dcn_lr_mul", 1));
  equal_list(g, "freeze_stages", &cfg->train.freeze_stages, json_object_get(t, "freeze_backbone"));
  equal(g, "optimizer is adamw", cfg->train.optimizer == ii_train_optimizer_adamw,
        strcmp(string_of(g, t, "optimizer"), "adamw") == 0);
  equal(g, "eps", cfg->train.eps, need_number(g, t, "eps"));
  for (size_t i = 0; i < 2; i++)
    equal(g, "betas", cfg->train.betas.v[i], json_number_value(json_array_get(betas, i)));
  equal(g, "ema", cfg->train.ema, need_number(g, t, "ema"));
  equal(g, "ema_decay", cfg->train.ema_decay, need_number(g, t, "ema_decay"));
  equal(g, "accumulation_steps", (double)cfg->train.accumulation_steps, steps > 0 ? steps : 1);
}

/* ---- the model ---- */

static bool same_shape(const ii_tensor *t, const json_t *shape) {
  bool same = json_is_array(shape) && (int)json_array_size(shape) == t->ndim;
  for (int i = 0; same && i < t->ndim; i++)
    same = json_integer_value(json_array_get(shape, (size_t)i)) == t->shape[i];
  return same;
}

/* Rows [name, shape, ...] against our parameters or buffers, in order. */
static void compare_list(gc *g, const ii_params *p, bool buffers, const json_t *rows) {
  int64_t at = 0;
  size_t i;
  const json_t *row;
  json_array_foreach(rows, i, row) {
    const char *name = json_string_value(json_array_get(row, 0));
    while (at < p->count && p->at[at].buffer != buffers) at++;
    if (at == p->count) {
      gc_expect(g, false, "%s: missing in our model", name ? name : "?");
      return;
    }
    const ii_param *q = &p->at[at++];
    gc_expect(g, name && strcmp(q->name, name) == 0, "%s: in our model it is %s", name, q->name);
    gc_expect(g, same_shape(q->value, json_array_get(row, 1)), "%s: shape", q->name);
  }
  while (at < p->count && p->at[at].buffer != buffers) at++;
  gc_expect(g, at == p->count, "%s: not in the official model",
            at < p->count ? p->at[at].name : "last name");
}

static void compare_param_groups(gc *g, const ii_config *cfg, const ii_params *p,
                                 const json_t *row) {
  const json_t *rows = member(g, row, "groups"), *entry;
  const ii_optimizer_options o = ii_setup_optimizer(cfg);
  int64_t numel = ii_params_numel(p), trained = 0;
  size_t i;
  compare_list(g, p, false, rows);
  compare_list(g, p, true, member(g, row, "buffers"));
  json_array_foreach(rows, i, entry) {
    const char *name = json_string_value(json_array_get(entry, 0));
    const ii_param *q = name ? ii_params_find(p, name) : NULL;
    if (!q) continue; /* reported above */
    const ii_param_group own = ii_param_group_of(&o.rules, name, q->value->ndim);
    double decay = json_number_value(json_array_get(entry, 2));
    double ratio = json_number_value(json_array_get(entry, 3));
    bool trainable = json_is_true(json_array_get(entry, 4));
    gc_expect(g, own.weight_decay == decay, "%s: weight decay", name);
    gc_compare(g, name, relative(own.lr_ratio, ratio), RATE);
    gc_expect(g, own.trainable == trainable, "%s: requires_grad", name);
    trained += own.trainable ? ii_numel(q->value) : 0;
  }
  equal(g, "number of parameters", (double)numel, need_number(g, row, "num_params"));
  equal(g, "trained parameters", (double)trained, need_number(g, row, "num_params_requires_grad"));
}

static void compare_drop_path(gc *g, const ii_model *m, const json_t *rows) {
  const ii_model_config *cfg = ii_model_get_config(m);
  size_t next = 0;
  for (int s = 0; s < II_STAGES; s++)
    for (int b = 0; b < cfg->depths[s]; b++) {
      double rate = ii_model_drop_path(m, s, b);
      char name[64];
      if (rate == 0) continue; /* such a block has no entry */
      snprintf(name, sizeof name, "levels.%d.blocks.%d.drop_path", s, b);
      const json_t *row = json_array_get(rows, next++);
      const char *other = json_string_value(json_array_get(row, 0));
      gc_expect(g, other && strcmp(other, name) == 0, "%s: order", name);
      equal(g, name, rate, json_number_value(json_array_get(row, 1)));
    }
  equal(g, "blocks with drop path", (double)next, (double)json_array_size(rows));
}

/* What the official count, made by hooks on convolution and linear modules, leaves out: products
 * done by plain functions. These are the centre-feature gates of DCNv3 (H*W*C*G per block) and q, k
 * and v of the attention pooling (one mean token, and twice all tokens at 1/16 of the image). */
static int64_t unhooked_macs(const ii_model_config *m, int64_t size) {
  int64_t macs = 0, tokens = size / 16 * (size / 16), width = m->clip_channels;
  for (int s = 0; m->center_feature_scale && m->core_op == II_DCNV3 && s < II_STAGES; s++) {
    int64_t side = size / (4 << s), C = (int64_t)m->channels << s;
    macs += m->depths[s] * side * side * C * m->groups[s];
  }
  if (m->use_clip_projector) macs += (1 + 2 * tokens) * width * width;
  return macs;
}

static void compare_macs(gc *g, ii_ctx *c, ii_model *m, const ii_config *cfg, const json_t *macs) {
  if (json_is_null(macs)) return; /* the file has none for the model with metadata */
  const int64_t size = cfg->data.img_size, dim[4] = {1, size, size, 3};
  c->training = false;
  c->macs = c->dcn_macs = 0;
  ii_tensor *images = ii_tensor_new(c, c->real, 4, dim);
  ii_model_forward(m, images, NULL, NULL);
  gc_ctx_ok(g, c);
  double hooked = need_number(g, macs, "conv") + need_number(g, macs, "linear");
  double dcn = need_number(g, macs, "dcn_official_formula");
  int64_t extra = unhooked_macs(ii_model_get_config(m), size);
  equal(g, "multiply-adds of products", (double)(c->macs - extra), hooked);
  equal(g, "multiply-adds of the operator", (double)c->dcn_macs, dcn);
  equal(g, "total multiply-adds", (double)(c->macs - extra + c->dcn_macs),
        need_number(g, macs, "total"));
}

static void check_row(gc *g, const json_t *row) {
  ii_error err = {0};
  gc_case_begin(g, "recipe", string_of(g, row, "yaml"), II_DTYPE_COUNT);
  const ii_config cfg = load_recipe(g, row, (int64_t)need_number(g, row, "global_batch"));
  compare_model_keys(g, &cfg, row);
  compare_train_keys(g, &cfg, row);
  ii_ctx *c = gc_ctx(g, true, 1);
  const ii_model_config mc = ii_setup_model(&cfg);
  ii_model *m = ii_model_create(c, &mc, &err);
  if (!m) gc_die(g, "%s", err.text);
  compare_param_groups(g, &cfg, ii_model_params(m), row);
  compare_drop_path(g, m, member(g, row, "drop_path"));
  compare_macs(g, c, m, &cfg, member(g, row, "macs"));
  ii_model_destroy(m);
  ii_ctx_close(c);
  gc_case_end(g);
}

void gc_check_param_groups(gc *g, const json_t *configs) {
  size_t i;
  const json_t *row;
  json_array_foreach(configs, i, row) check_row(g, row);
}

/* ---- learning rates ---- */

static int schedule_kind(gc *g, const char *name) {
  static const char *const names[] = {"cosine", "linear", "step"};
  for (int i = 0; i < 3; i++)
    if (strcmp(names[i], name) == 0) return i;
  gc_die(g, "scheduler %s is unknown", name);
}

/* One column: the rates of a parameter at all indices of the row. */
static void compare_column(gc *g, const json_t *row, const ii_schedule *s, double v, size_t k,
                           const char *name) {
  const json_t *index = member(g, row, "update_index");
  const json_t *rates = member(g, row, "lr_after_step_update");
  const json_t *first = json_array_get(member(g, row, "lr_before_first_update"), k);
  double worst = relative(ii_schedule_lr(s, v, 0), json_number_value(first));
  if (json_array_size(index) != json_array_size(rates) || !json_array_size(index))
    gc_die(g, "update_index and lr_after_step_update differ in length");
  for (size_t i = 0; i < json_array_size(index); i++) {
    int64_t t = json_integer_value(json_array_get(index, i));
    const json_t *want = json_array_get(json_array_get(rates, i), k);
    if (t < 0 || !json_is_number(want)) gc_die(g, "lr_after_step_update is damaged");
    worst = fmax(worst, relative(ii_schedule_value(s, v, t), json_number_value(want)));
    /* in effect one iteration later */
    worst = fmax(worst, relative(ii_schedule_lr(s, v, t + 1), json_number_value(want)));
  }
  gc_compare(g, name, worst, RATE);
}

static void check_schedule(gc *g, const json_t *row) {
  ii_error err = {0};
  gc_case_begin(g, "rates", string_of(g, row, "yaml"), II_DTYPE_COUNT);
  const double batch = need_number(g, row, "world_size") * need_number(g, row, "batch_per_gpu");
  const ii_config cfg = load_recipe(g, row, (int64_t)batch);
  const ii_schedule s = ii_setup_schedule(&cfg, (int64_t)need_number(g, row, "n_iter_per_epoch"));
  const ii_optimizer_options o = ii_setup_optimizer(&cfg);
  const json_t *groups = member(g, row, "groups"), *group;
  if (ii_schedule_check(&s, &err) != II_OK) gc_die(g, "%s", err.text);
  equal(g, "scheduler", s.kind, schedule_kind(g, string_of(g, row, "scheduler")));
  equal(g, "num_steps", (double)(s.epochs * s.steps_per_epoch), need_number(g, row, "num_steps"));
  equal(g, "warmup_steps", floor(s.warmup_epochs * (double)s.steps_per_epoch),
        need_number(g, row, "warmup_steps"));
  gc_compare(g, "base_lr", relative(o.base_lr, need_number(g, row, "base_lr")), RATE);
  gc_compare(g, "warmup_lr", relative(s.warmup_lr, need_number(g, row, "warmup_lr")), RATE);
  gc_compare(g, "min_lr", relative(s.min_lr, need_number(g, row, "min_lr")), RATE);
  size_t k;
  json_array_foreach(groups, k, group) {
    const char *name = json_string_value(json_array_get(group, 0));
    if (!name) gc_die(g, "groups has a row without name");
    double ratio = ii_param_group_of(&o.rules, name, 2).lr_ratio;
    gc_compare(g, name, relative(ratio, json_number_value(json_array_get(group, 1))), RATE);
    compare_column(g, row, &s, o.base_lr * ratio, k, name);
  }
  gc_case_end(g);
}

void gc_check_schedules(gc *g, const json_t *schedules) {
  size_t i;
  const json_t *row;
  json_array_foreach(schedules, i, row) check_schedule(g, row);
}
