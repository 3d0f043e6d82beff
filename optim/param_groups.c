#include "optim/param_groups.h"
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static bool ends_with(const char *s, const char *end) {
  const size_t n = strlen(s), m = strlen(end);
  return n >= m && strcmp(s + n - m, end) == 0;
}

static bool starts_with(const char *s, const char *start) {
  return strncmp(s, start, strlen(start)) == 0;
}

static bool is_dcn_name(const char *name) {
  return strstr(name, "offset") || strstr(name, "attention_weights") ||
         strstr(name, "center_feature_scale_proj") || strstr(name, "alpha_beta");
}

/* How many blocks come after block `block` of stage `stage`. */
static int64_t blocks_after(const ii_param_rules *r, int64_t stage, int64_t block) {
  int64_t after = r->depths[stage] - 1 - block;
  for (int64_t i = stage + 1; i < II_PARAM_STAGES; i++) after += r->depths[i];
  return after;
}

/* The exponent of the layer decay; 0 for names that belong to no block. */
static int64_t layer_exponent(const ii_param_rules *r, const char *name) {
  const char *at = strstr(name, "levels.");
  int stage = -1, block = -1, end = 0;
  if (at && sscanf(at, "levels.%d.%n", &stage, &end) == 1 && end > 0 && stage >= 0 &&
      stage < II_PARAM_STAGES) {
    const char *rest = at + end;
    if (sscanf(rest, "blocks.%d", &block) == 1 && block >= 0 && block < r->depths[stage])
      return blocks_after(r, stage, block);
    if ((starts_with(rest, "norm.") || starts_with(rest, "downsample.")) &&
        stage + 1 < II_PARAM_STAGES)
      return blocks_after(r, stage + 1, 0);
    return 0;
  }
  return strstr(name, "patch_embed") ? blocks_after(r, 0, 0) : 0;
}

static bool is_frozen(const ii_param_rules *r, const char *name) {
  const char *at = strstr(name, "levels.");
  int stage = -1;
  return at && sscanf(at, "levels.%d", &stage) == 1 && stage >= 0 && stage < II_PARAM_STAGES &&
         r->frozen[stage];
}

ii_param_group ii_param_group_of(const ii_param_rules *rules, const char *name, int ndim) {
  ii_param_group g = {.weight_decay = rules->weight_decay, .lr_ratio = 1.0};
  if (ndim == 1 || ends_with(name, ".bias")) g.weight_decay = 0.0;
  if (rules->lr_layer_decay) {
    g.lr_ratio = pow(rules->layer_decay_ratio, (double)layer_exponent(rules, name));
    if (is_dcn_name(name)) g.lr_ratio *= rules->dcn_lr_mul;
  }
  g.trainable = !is_frozen(rules, name);
  return g;
}
