#include "models/model.h"

void ii_model_config_defaults(ii_model_config *cfg) {
  *cfg = (ii_model_config){.core_op = II_DCNV3,
                           .kernel_size = 3,
                           .mlp_ratio = 4.0,
                           .offset_scale = 1.0,
                           .dcn_output_bias = true,
                           .mlp_fc2_bias = true,
                           .clip_channels = 1024,
                           .clip_heads = 16,
                           .clip_out = 768,
                           .cls_scale = 1.5,
                           .num_classes = 1000};
}

static ii_status check_stages(const ii_model_config *cfg, ii_error *err) {
  if (cfg->channels < 2 || cfg->channels % 2)
    return ii_error_set(err, II_ERR_ARG, "model.channels is %d: it must be even and at least 2",
                        cfg->channels);
  for (int s = 0; s < II_STAGES; s++) {
    int64_t C = (int64_t)cfg->channels << s;
    if (cfg->depths[s] < 1)
      return ii_error_set(err, II_ERR_ARG, "model.depths[%d] is %d: every stage needs a block", s,
                          cfg->depths[s]);
    if (cfg->groups[s] < 1 || C % cfg->groups[s])
      return ii_error_set(err, II_ERR_ARG,
                          "model.groups[%d] is %d: it must divide the %lld channels of that stage",
                          s, cfg->groups[s], (long long)C);
  }
  if ((double)cfg->channels * cfg->mlp_ratio < 1)
    return ii_error_set(err, II_ERR_ARG, "model.mlp_ratio is %g: the hidden layer would be empty",
                        cfg->mlp_ratio);
  return II_OK;
}

static ii_status check_post_norms(const ii_model_config *cfg, ii_error *err) {
  for (int k = 0; k < cfg->level2_post_norm_count; k++)
    if (cfg->level2_post_norm_ids[k] < 0 || cfg->level2_post_norm_ids[k] >= cfg->depths[2])
      return ii_error_set(err, II_ERR_ARG,
                          "model.level2_post_norm_block_ids names block %d, but the third stage "
                          "has blocks 0 to %d",
                          cfg->level2_post_norm_ids[k], cfg->depths[2] - 1);
  return II_OK;
}

ii_status ii_model_config_check(const ii_model_config *cfg, ii_error *err) {
  if (cfg->core_op != II_DCNV3 && cfg->core_op != II_DCNV4)
    return ii_error_set(err, II_ERR_ARG, "model.core_op must be DCNv3 or DCNv4");
  II_TRY(check_stages(cfg, err));
  II_TRY(check_post_norms(cfg, err));
  if (cfg->kernel_size < 1 || cfg->kernel_size % 2 == 0)
    return ii_error_set(err, II_ERR_ARG, "model.kernel_size is %d: it must be odd",
                        cfg->kernel_size);
  if (cfg->dw_kernel_size < 0 || (cfg->dw_kernel_size && cfg->dw_kernel_size % 2 == 0))
    return ii_error_set(err, II_ERR_ARG,
                        "model.dw_kernel_size is %d: it must be odd, or 0 for none",
                        cfg->dw_kernel_size);
  if (cfg->core_op == II_DCNV4 && cfg->remove_center)
    return ii_error_set(err, II_ERR_ARG,
                        "model.remove_center is not a setting of DCNv4 models: remove it or use "
                        "core_op DCNv3");
  if (cfg->core_op == II_DCNV3 && !(cfg->dcn_output_bias && cfg->mlp_fc2_bias))
    return ii_error_set(err, II_ERR_ARG,
                        "model.dcn_output_bias and model.mlp_fc2_bias can be switched off in DCNv4 "
                        "models only");
  if (cfg->remove_center && cfg->kernel_size < 3)
    return ii_error_set(err, II_ERR_ARG, "model.remove_center leaves no tap of a 1x1 kernel");
  if (cfg->num_classes < 1)
    return ii_error_set(err, II_ERR_ARG, "model.num_classes is %d: at least 1 is needed",
                        cfg->num_classes);
  if (cfg->use_clip_projector && (cfg->clip_channels < 1 || cfg->clip_heads < 1 ||
                                  cfg->clip_out < 1 || cfg->clip_channels % cfg->clip_heads))
    return ii_error_set(err, II_ERR_ARG,
                        "the clip projector has %d channels in %d heads: the heads must divide the "
                        "channels",
                        cfg->clip_channels, cfg->clip_heads);
  if (!!cfg->meta_dims[0] != !!cfg->meta_dims[1])
    return ii_error_set(err, II_ERR_ARG, "model.meta_dims needs two sizes, or none");
  return II_OK;
}
