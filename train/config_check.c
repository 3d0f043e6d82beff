/* What must hold between keys. One function per section; each message names both keys. */
#include "data/randaugment.h"
#include "train/config.h"

static ii_status check_shape(const ii_config *cfg, ii_error *err) {
  for (int i = 0; i < 4; i++) {
    long long width = (long long)cfg->model.channels << i, groups = cfg->model.groups.v[i];
    if (width % groups != 0)
      return ii_error_set(err, II_ERR_ARG,
                          "model.groups[%d] = %lld does not divide the %lld channels of stage %d "
                          "(model.channels = %lld, doubled at each stage)",
                          i, groups, width, i, (long long)cfg->model.channels);
  }
  if (cfg->model.channels % 2 != 0)
    return ii_error_set(err, II_ERR_ARG,
                        "model.channels = %lld must be even: the stem starts with half of it",
                        (long long)cfg->model.channels);
  if ((double)cfg->model.channels * cfg->model.mlp_ratio < 1)
    return ii_error_set(err, II_ERR_ARG,
                        "model.mlp_ratio = %g leaves the MLP of %lld channels empty",
                        cfg->model.mlp_ratio, (long long)cfg->model.channels);
  if (cfg->model.kernel_size % 2 == 0 ||
      (cfg->model.dw_kernel_size & 1) != (cfg->model.dw_kernel_size > 0))
    return ii_error_set(err, II_ERR_ARG, "model.kernel_size and model.dw_kernel_size must be odd");
  if (cfg->model.remove_center && cfg->model.kernel_size == 1)
    return ii_error_set(err, II_ERR_ARG,
                        "model.remove_center leaves no point of model.kernel_size = 1");
  return II_OK;
}

/* Switches that the official model would ignore beside another one are refused. */
static ii_status check_blocks(const ii_config *cfg, ii_error *err) {
  bool v4 = cfg->model.core_op == ii_model_core_op_DCNv4;
  const ii_int_list *ids = &cfg->model.level2_post_norm_block_ids;
  if (cfg->model.res_post_norm && (cfg->model.post_norm || cfg->model.layer_scale > 0))
    return ii_error_set(err, II_ERR_ARG,
                        "model.res_post_norm has no effect beside model.post_norm or "
                        "model.layer_scale; switch it or them off");
  if (v4 && cfg->model.remove_center)
    return ii_error_set(err, II_ERR_ARG, "model.remove_center is for model.core_op = DCNv3 only");
  if (!v4 && !(cfg->model.dcn_output_bias && cfg->model.mlp_fc2_bias))
    return ii_error_set(err, II_ERR_ARG,
                        "model.dcn_output_bias and model.mlp_fc2_bias can be switched off with "
                        "model.core_op = DCNv4 only");
  for (int64_t i = 0; i < ids->count; i++) {
    if (ids->v[i] >= cfg->model.depths.v[2])
      return ii_error_set(err, II_ERR_ARG,
                          "model.level2_post_norm_block_ids names block %lld, but "
                          "model.depths[2] = %lld and blocks count from 0",
                          (long long)ids->v[i], (long long)cfg->model.depths.v[2]);
    if (i > 0 && ids->v[i] <= ids->v[i - 1])
      return ii_error_set(err, II_ERR_ARG, "model.level2_post_norm_block_ids must ascend");
  }
  return II_OK;
}

static ii_status check_head(const ii_config *cfg, ii_error *err) {
  const ii_int_list *meta = &cfg->model.meta_dims;
  if (cfg->model.use_clip_projector && cfg->model.clip_embed_dim % cfg->model.clip_heads != 0)
    return ii_error_set(err, II_ERR_ARG,
                        "model.clip_heads = %lld does not divide model.clip_embed_dim = %lld",
                        (long long)cfg->model.clip_heads, (long long)cfg->model.clip_embed_dim);
  if (cfg->model.use_clip_projector && cfg->data.img_size % 32 != 0)
    return ii_error_set(err, II_ERR_ARG,
                        "data.img_size = %lld must be a multiple of 32 with "
                        "model.use_clip_projector",
                        (long long)cfg->data.img_size);
  if (!cfg->model.use_clip_projector && (double)cfg->model.channels * 8 * cfg->model.cls_scale < 1)
    return ii_error_set(err, II_ERR_ARG, "model.cls_scale = %g leaves the head empty",
                        cfg->model.cls_scale);
  if (meta->count != 0 && (meta->count != 2 || meta->v[0] != 4 || meta->v[1] != 3))
    return ii_error_set(err, II_ERR_ARG,
                        "model.meta_dims must be [4, 3], the numbers list files give for time and "
                        "place, or []");
  if (meta->count != 0 &&
      (cfg->data.format == ii_data_format_folder || cfg->data.format == ii_data_format_imagenet))
    return ii_error_set(err, II_ERR_ARG,
                        "model.meta_dims needs data.format = list or inat2018 (or a pack made of "
                        "them): image folders have no metadata");
  if (cfg->model.num_classes == 1)
    return ii_error_set(err, II_ERR_ARG, "model.num_classes = 1 leaves nothing to learn");
  return II_OK;
}

static ii_status check_data(const ii_config *cfg, ii_error *err) {
  if (cfg->data.crop_scale.v[0] > cfg->data.crop_scale.v[1] ||
      cfg->data.crop_ratio.v[0] > cfg->data.crop_ratio.v[1])
    return ii_error_set(err, II_ERR_ARG,
                        "data.crop_scale and data.crop_ratio are [smallest, largest]");
  if (cfg->data.format == ii_data_format_list && (!*cfg->data.train_list || !*cfg->data.val_list))
    return ii_error_set(err, II_ERR_ARG,
                        "data.format = list needs data.train_list and data.val_list");
  const bool folders =
      cfg->data.format == ii_data_format_folder || cfg->data.format == ii_data_format_imagenet;
  if (*cfg->data.class_list && !folders)
    return ii_error_set(err, II_ERR_ARG,
                        "data.class_list goes with data.format = folder or imagenet");
  if (*cfg->data.ground_truth && cfg->data.format != ii_data_format_imagenet)
    return ii_error_set(err, II_ERR_ARG, "data.ground_truth goes with data.format = imagenet");
  if (cfg->data.in_memory && cfg->data.format != ii_data_format_packed)
    return ii_error_set(err, II_ERR_ARG, "data.in_memory goes with data.format = packed");
  if (*cfg->data.crop_index && cfg->data.format == ii_data_format_packed)
    return ii_error_set(err, II_ERR_ARG,
                        "data.crop_index is for images that are files, packs have their own; "
                        "--set data.crop_index= switches it off");
  if (cfg->data.batch_size == 1 && cfg->data.img_size <= 32 && !cfg->model.use_clip_projector)
    return ii_error_set(err, II_ERR_ARG,
                        "data.batch_size = 1 with data.img_size = %lld gives the batch norm of the "
                        "head a single value; take a larger batch",
                        (long long)cfg->data.img_size);
  return II_OK;
}

static ii_status check_augmentation(const ii_config *cfg, ii_error *err) {
  const ii_double_list *jitter = &cfg->data.color_jitter;
  ii_randaugment r;
  if (ii_randaugment_parse(cfg->data.auto_augment, &r, err) != II_OK)
    return ii_error_prefix(err, "data.auto_augment");
  if (jitter->count == 2)
    return ii_error_set(err, II_ERR_ARG,
                        "data.color_jitter is one number for all, three (brightness, contrast, "
                        "saturation) or four (and hue)");
  if (jitter->count == 4 && jitter->v[3] > 0.5)
    return ii_error_set(err, II_ERR_ARG,
                        "data.color_jitter: hue = %g is more than half of the colour circle (0.5)",
                        jitter->v[3]);
  return II_OK;
}

static ii_status check_mix(const ii_config *cfg, ii_error *err) {
  if ((cfg->data.mixup > 0 || cfg->data.cutmix > 0) && cfg->data.batch_size % 2 != 0)
    return ii_error_set(err, II_ERR_ARG,
                        "data.mixup and data.cutmix mix the images of a batch in pairs: "
                        "data.batch_size = %lld must be even",
                        (long long)cfg->data.batch_size);
  return II_OK;
}

static ii_status check_train(const ii_config *cfg, ii_error *err) {
  const ii_int_list *freeze = &cfg->train.freeze_stages;
  if (cfg->train.warmup_epochs > (double)cfg->train.epochs)
    return ii_error_set(err, II_ERR_ARG,
                        "train.warmup_epochs = %g is longer than train.epochs = %lld; "
                        "set both, e.g. --set train.warmup_epochs=0",
                        cfg->train.warmup_epochs, (long long)cfg->train.epochs);
  if (cfg->train.optimizer == ii_train_optimizer_sgd && cfg->train.nesterov &&
      cfg->train.momentum == 0)
    return ii_error_set(err, II_ERR_ARG,
                        "train.nesterov needs train.momentum above 0; switch it off");
  for (int64_t i = 1; i < freeze->count; i++)
    if (freeze->v[i] <= freeze->v[i - 1])
      return ii_error_set(err, II_ERR_ARG, "train.freeze_stages must ascend");
  if (!*cfg->train.output_dir)
    return ii_error_set(err, II_ERR_ARG, "train.output_dir is empty; name a folder");
  return II_OK;
}

ii_status ii_config_check(const ii_config *cfg, ii_error *err) {
  II_TRY(check_shape(cfg, err));
  II_TRY(check_blocks(cfg, err));
  II_TRY(check_head(cfg, err));
  II_TRY(check_data(cfg, err));
  II_TRY(check_augmentation(cfg, err));
  II_TRY(check_mix(cfg, err));
  return check_train(cfg, err);
}
