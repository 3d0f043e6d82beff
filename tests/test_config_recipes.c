/* The shipped recipes carry the numbers of the official yamls: tests/golden/recipes.json has the
 * hyper-parameters that the official code reads from each of its 20 classification configs. Beside
 * them, the two paper recipes that have no yaml, against the paper's table. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <string.h>
#include "train/config.h"

static const char *recipe; /* for messages */

static const json_t *member(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  if (!value) fail_msg("%s: recipes.json lacks %s", recipe, key);
  return value;
}

/* null stands for "not there", which our keys write as `none`. */
static double number(const json_t *object, const char *key, double none) {
  const json_t *value = member(object, key);
  if (json_is_null(value)) return none;
  if (json_is_boolean(value)) return json_is_true(value);
  assert_true(json_is_number(value));
  return json_number_value(value);
}

static void equal(const char *key, double ours, double official) {
  if (!(ours == official)) fail_msg("%s: %s is %.17g, official %.17g", recipe, key, ours, official);
}

/* For products of the same numbers in another order. */
static void close_to(const char *key, double ours, double official) {
  double difference = ours - official;
  if (!(difference <= 1e-15 * official && -difference <= 1e-15 * official))
    fail_msg("%s: %s is %.17g, official %.17g", recipe, key, ours, official);
}

static void equal_ints(const char *key, const ii_int_list *ours, const json_t *official) {
  size_t count = json_is_null(official) ? 0 : json_array_size(official);
  equal(key, (double)ours->count, (double)count);
  for (size_t i = 0; i < count; i++)
    equal(key, (double)ours->v[i], json_number_value(json_array_get(official, i)));
}

static void check_model(const ii_config *cfg, const json_t *row) {
  const json_t *m = member(row, "model");
  bool v4 = strcmp(json_string_value(member(m, "core_op")), "DCNv4") == 0;
  equal("core_op", cfg->model.core_op == ii_model_core_op_DCNv4, v4);
  equal("kernel_size", (double)cfg->model.kernel_size, 3);
  equal("channels", (double)cfg->model.channels, number(m, "channels", -1));
  equal_ints("depths", &cfg->model.depths, member(m, "depths"));
  equal_ints("groups", &cfg->model.groups, member(m, "groups"));
  equal("mlp_ratio", cfg->model.mlp_ratio, number(m, "mlp_ratio", -1));
  equal("layer_scale", cfg->model.layer_scale, number(m, "layer_scale", 0));
  equal("offset_scale", cfg->model.offset_scale, number(m, "offset_scale", -1));
  equal("post_norm", cfg->model.post_norm, number(m, "post_norm", -1));
  equal("res_post_norm", cfg->model.res_post_norm, number(m, "res_post_norm", -1));
  equal("dw_kernel_size", (double)cfg->model.dw_kernel_size, number(m, "dw_kernel_size", 0));
  equal("use_clip_projector", cfg->model.use_clip_projector, number(m, "use_clip_projector", -1));
  equal("center_feature_scale", cfg->model.center_feature_scale,
        number(m, "center_feature_scale", -1));
  equal("level2_post_norm", cfg->model.level2_post_norm_block_ids.count > 0,
        number(m, "level2_post_norm", -1));
  equal_ints("level2_post_norm_block_ids", &cfg->model.level2_post_norm_block_ids,
             member(m, "level2_post_norm_block_ids"));
  equal("remove_center", cfg->model.remove_center, v4 ? 0 : number(m, "remove_center", -1));
  equal("dcn_output_bias", cfg->model.dcn_output_bias, v4 ? number(m, "dcn_output_bias", -1) : 1);
  equal("mlp_fc2_bias", cfg->model.mlp_fc2_bias, v4 ? number(m, "mlp_fc2_bias", -1) : 1);
  equal("drop_path_rate", cfg->model.drop_path_rate, number(row, "drop_path_rate", -1));
  equal("cls_scale", cfg->model.cls_scale, 1.5);
  /* the yaml's number of classes is overwritten by the data set's */
  bool inat = strstr(json_string_value(member(row, "yaml")), "inat18") != NULL;
  equal("num_classes", (double)cfg->model.num_classes, inat ? 8142 : 1000);
  equal("meta_dims", (double)cfg->model.meta_dims.count, inat ? 2 : 0);
  equal("rand_init_ft_head", cfg->train.rand_init_ft_head, inat);
}

static void check_training(const ii_config *cfg, const json_t *row) {
  const json_t *t = member(row, "train"), *betas = member(t, "betas");
  double factor = number(row, "global_batch", -1) / (double)cfg->train.lr_reference_batch;
  equal("epochs", (double)cfg->train.epochs, number(t, "epochs", -1));
  equal("warmup_epochs", cfg->train.warmup_epochs, number(t, "warmup_epochs", -1));
  equal("weight_decay", cfg->train.weight_decay, number(t, "weight_decay", -1));
  equal("base_lr", cfg->train.base_lr, number(t, "base_lr_yaml", -1));
  close_to("base_lr scaled", cfg->train.base_lr * factor, number(t, "base_lr_scaled", -1));
  close_to("warmup_lr scaled", cfg->train.warmup_lr * factor, number(t, "warmup_lr_scaled", -1));
  close_to("min_lr scaled", cfg->train.min_lr * factor, number(t, "min_lr_scaled", -1));
  equal("clip_grad", cfg->train.clip_grad, number(t, "clip_grad", 0));
  equal("lr_layer_decay", cfg->train.lr_layer_decay, number(t, "lr_layer_decay", -1));
  if (cfg->train.lr_layer_decay) /* without effect otherwise */
    equal("lr_layer_decay_ratio", cfg->train.lr_layer_decay_ratio,
          number(t, "lr_layer_decay_ratio", -1));
  equal("dcn_lr_mul", cfg->train.dcn_lr_mul, number(t, "dcn_lr_mul", 1));
  equal_ints("freeze_stages", &cfg->train.freeze_stages, member(t, "freeze_backbone"));
  assert_string_equal(json_string_value(member(t, "optimizer")), "adamw");
  equal("optimizer", cfg->train.optimizer, ii_train_optimizer_adamw);
  equal("schedule", cfg->train.schedule, ii_train_schedule_cosine);
  equal("eps", cfg->train.eps, number(t, "eps", -1));
  for (size_t i = 0; i < 2; i++)
    equal("betas", cfg->train.betas.v[i], json_number_value(json_array_get(betas, i)));
  equal("ema", cfg->train.ema, number(t, "ema", -1));
  equal("ema_decay", cfg->train.ema_decay, number(t, "ema_decay", -1));
  /* 0 in the yamls; the official command line makes it 1 */
  equal("accumulation_steps", (double)cfg->train.accumulation_steps, 1);
  equal("accumulation_steps", number(t, "accumulation_steps", -1), 0);
  equal("label_smoothing", cfg->train.label_smoothing, number(row, "label_smoothing", -1));
  equal("img_size", (double)cfg->data.img_size, number(row, "img_size", -1));
  assert_string_equal(json_string_value(member(row, "interpolation")), "bicubic");
  equal("interpolation", cfg->data.interpolation, ii_data_interpolation_bicubic);
}

/* The data pipeline is the same in all yamls (official config.py and timm defaults). */
static void check_data(const ii_config *cfg, bool flash) {
  static const double mean[3] = {0.485, 0.456, 0.406}, std[3] = {0.229, 0.224, 0.225};
  equal("crop_scale", cfg->data.crop_scale.v[0], 0.08);
  equal("crop_scale", cfg->data.crop_scale.v[1], 1);
  equal("crop_ratio", cfg->data.crop_ratio.v[0], 3.0 / 4.0);
  equal("crop_ratio", cfg->data.crop_ratio.v[1], 4.0 / 3.0);
  equal("hflip", cfg->data.hflip, 0.5);
  equal("test_crop", cfg->data.test_crop, true);
  equal("small_crop", cfg->data.small_crop, false);
  for (int c = 0; c < 3; c++) {
    equal("mean", cfg->data.mean.v[c], mean[c]);
    equal("std", cfg->data.std.v[c], std[c]);
  }
  equal("train_exif", cfg->data.train_exif, ii_data_train_exif_apply);
  equal("eval_exif", cfg->data.eval_exif,
        flash ? ii_data_eval_exif_apply : ii_data_eval_exif_ignore);
}

/* The yamls set a colour jitter of 0.4 too, which timm leaves aside when RandAugment is on. */
static void check_augmentation(const ii_config *cfg) {
  assert_string_equal(cfg->data.auto_augment, "rand-m9-mstd0.5-inc1");
  equal("color_jitter", (double)cfg->data.color_jitter.count, 1);
  equal("color_jitter", cfg->data.color_jitter.v[0], 0.4);
}

/* All of it in runs from scratch; none in fine-tuning (the official yamls switch it off there). */
static void check_mix(const ii_config *cfg, bool scratch) {
  equal("erase_prob", cfg->data.erase_prob, scratch ? 0.25 : 0);
  equal("erase_mode", cfg->data.erase_mode, ii_data_erase_mode_pixel);
  equal("erase_count", (double)cfg->data.erase_count, 1);
  equal("mixup", cfg->data.mixup, scratch ? 0.8 : 0);
  equal("cutmix", cfg->data.cutmix, scratch ? 1 : 0);
  equal("mix_prob", cfg->data.mix_prob, 1);
  equal("mix_switch_prob", cfg->data.mix_switch_prob, 0.5);
}

static void load(const char *name, ii_config *cfg) {
  ii_error err = {0};
  char path[512];
  recipe = name;
  snprintf(path, sizeof path, "%s/%s.cfg", II_SOURCE_CONFIGS, name);
  if (ii_config_load(cfg, path, &err) != II_OK || ii_config_check(cfg, &err) != II_OK)
    fail_msg("%s", err.text);
}

static void test_official_yamls(void **state) {
  json_error_t jerr;
  json_t *root = json_load_file(II_TEST_DATA "/golden/recipes.json", 0, &jerr);
  if (!root) fail_msg("recipes.json: %s", jerr.text);
  const json_t *rows = member(root, "recipes");
  assert_int_equal(json_array_size(rows), 20);
  for (size_t i = 0; i < json_array_size(rows); i++) {
    const json_t *row = json_array_get(rows, i);
    ii_config cfg;
    load(json_string_value(member(row, "config")), &cfg);
    check_model(&cfg, row);
    check_training(&cfg, row);
    check_data(&cfg, cfg.model.core_op == ii_model_core_op_DCNv4);
    check_augmentation(&cfg);
    check_mix(&cfg, strstr(json_string_value(member(row, "yaml")), "_1k_224") != NULL);
  }
  json_decref(root);
}

/* The paper's table 7: IN-22K pre-training of L and XL, batch 4096 at 192 px. */
static void test_paper_22k(void **state) {
  static const char *const names[] = {"internimage_l_22k_192", "internimage_xl_22k_192"};
  for (int i = 0; i < 2; i++) {
    ii_config cfg;
    load(names[i], &cfg);
    equal("channels", (double)cfg.model.channels, i ? 192 : 160);
    equal("depth 3", (double)cfg.model.depths.v[2], i ? 24 : 22);
    equal("layer_scale", cfg.model.layer_scale, 1e-5);
    equal("offset_scale", cfg.model.offset_scale, 2);
    equal("post_norm", cfg.model.post_norm, true);
    equal("drop_path_rate", cfg.model.drop_path_rate, i ? 0.2 : 0.1);
    equal("num_classes", (double)cfg.model.num_classes, 21841);
    equal("img_size", (double)cfg.data.img_size, 192);
    equal("epochs", (double)cfg.train.epochs, 90);
    equal("warmup_epochs", cfg.train.warmup_epochs, 5);
    equal("rate at batch 4096", cfg.train.base_lr * 4096 / (double)cfg.train.lr_reference_batch,
          1e-3);
    equal("weight_decay", cfg.train.weight_decay, 0.05);
    equal("clip_grad", cfg.train.clip_grad, 5);
    equal("label_smoothing", cfg.train.label_smoothing, 0.1);
    equal("ema", cfg.train.ema, false);
    assert_string_equal(cfg.data.auto_augment, "");
    equal("color_jitter", cfg.data.color_jitter.v[0], 0.4);
    check_mix(&cfg, true);
    equal("lr_layer_decay", cfg.train.lr_layer_decay, false);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_official_yamls),
                                     cmocka_unit_test(test_paper_22k)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
