/* Parameter groups: what the optimizer does with a parameter, decided by its name and shape alone.
 *
 * Rules of the official optimizer.py and of the models' layer-decay tables:
 * - weight decay 0 for one-dimensional tensors and names that end in ".bias", else weight_decay;
 * - with lr_layer_decay, lr ratio = layer_decay_ratio^(blocks after the one it belongs to):
 *   levels.{i}.blocks.{j}.* by its block; levels.{i}.norm.* and levels.{i}.downsample.* with the
 *   first block of stage i+1; patch_embed.* with the very first block; everything else (heads, the
 *   last stage's norm, levels.2.post_norms.*) ratio 1;
 * - with lr_layer_decay, names that contain "offset", "attention_weights",
 *   "center_feature_scale_proj" or "alpha_beta" are multiplied by dcn_lr_mul as well (offset_mask
 *   and its depthwise convolution in DCNv4; not the mask of DCNv3);
 * - without lr_layer_decay every ratio is 1, dcn_lr_mul included;
 * - names that contain levels.{i} of a frozen stage i are not trained.
 * Names may have a prefix ("backbone."), as in the official substring matching.
 *
 * No state, no allocation; may be called from any thread. */
#ifndef II_PARAM_GROUPS_H
#define II_PARAM_GROUPS_H
#include <stdbool.h>
#include <stdint.h>

#define II_PARAM_STAGES 4

typedef struct {
  double weight_decay;
  bool lr_layer_decay;
  double layer_decay_ratio;
  double dcn_lr_mul;               /* 1 = none */
  int64_t depths[II_PARAM_STAGES]; /* blocks per stage */
  bool frozen[II_PARAM_STAGES];    /* freeze_stages */
} ii_param_rules;

typedef struct {
  double weight_decay;
  double lr_ratio; /* the parameter's base rate = scaled base_lr * lr_ratio */
  bool trainable;
} ii_param_group;

/* The group of the parameter called name (its state-dict name) with ndim dimensions. */
ii_param_group ii_param_group_of(const ii_param_rules *rules, const char *name, int ndim);

#endif
