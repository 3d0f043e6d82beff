/* InternImage (DCNv3; Wang et al. 2023) and FlashInternImage (DCNv4; Xiong et al. 2024)
 * classifiers: every published variant is a setting of one structure. Parameter names, order and
 * shapes are those of the official state-dict. */
#ifndef II_MODEL_H
#define II_MODEL_H
#include "autograd/ops.h"
#include "autograd/param.h"

typedef enum { II_DCNV3 = 3, II_DCNV4 = 4 } ii_core_op;

#define II_STAGES   4
#define II_MAX_POST 64 /* level-2 post norms */

/* Zero means "none" where it says so. */
typedef struct {
  ii_core_op core_op;
  int channels; /* of stage 1; doubled from stage to stage */
  int depths[II_STAGES], groups[II_STAGES];
  int kernel_size;    /* of the DCN, 3 in all published models */
  int dw_kernel_size; /* DCNv3: depthwise convolution of the offset branch, 0 means kernel_size;
                         DCNv4: 0 means there is none */
  double mlp_ratio;
  double drop_path_rate; /* of the last block; grows linearly from 0 at the first */
  double layer_scale;    /* initial value of gamma1, gamma2; 0: none */
  double offset_scale;
  bool post_norm, res_post_norm, center_feature_scale, remove_center;
  int level2_post_norm_count;            /* 0: none */
  int level2_post_norm_ids[II_MAX_POST]; /* blocks of stage 3 (index 2) followed by a norm */
  bool dcn_output_bias, mlp_fc2_bias;    /* DCNv4 models; true in all DCNv3 models */
  bool use_clip_projector;
  int clip_channels, clip_heads, clip_out; /* 1024, 16, 768 in the published models */
  double cls_scale;                        /* channels of conv_head / channels of stage 4: 1.5 */
  int num_classes;                         /* >= 1 */
  int meta_dims[2]; /* {4, 3}: the iNaturalist "meta former" heads; {0, 0}: none */
  bool checkpoint;  /* recompute each block in backward */
} ii_model_config;

/* The published defaults (those of InternImage-T without its sizes): core_op DCNv3, kernel 3,
 * mlp_ratio 4, offset_scale 1, cls_scale 1.5, biases on, clip sizes 1024/16/768, 1000 classes. */
void ii_model_config_defaults(ii_model_config *cfg);

/* Checks what a user can get wrong (sizes, divisibility, incompatible switches). */
ii_status ii_model_config_check(const ii_model_config *cfg, ii_error *err);

typedef struct ii_model ii_model;

/* Builds the parameters (zero-filled until ii_model_init or loading). The config is checked and
 * copied. NULL with *err. The model belongs to the caller and must be destroyed before its context.
 */
ii_model *ii_model_create(ii_ctx *c, const ii_model_config *cfg, ii_error *err);
void ii_model_destroy(ii_model *m);

ii_params *ii_model_params(ii_model *m);
const ii_model_config *ii_model_get_config(const ii_model *m);

/* The official initialisation; every parameter is drawn from its own stream (seed, hash of its
 * name), so it does not depend on the order of construction. Ends with refreshed bf16 copies. */
void ii_model_init(ii_model *m, uint64_t seed);

/* What a forward pass computed besides the logits; any of it may be NULL when the model has no such
 * thing. Valid until the enclosing scope or step ends. */
typedef struct {
  ii_tensor *stem;             /* [N,H/4,W/4,C1] */
  ii_tensor *stage[II_STAGES]; /* after the stage's final norm, before its downsampling, NHWC */
  ii_tensor *features;         /* what `head` multiplies, [N,F] */
} ii_model_taps;

/* images[N,H,W,3] of type real (normalised; H and W multiples of 32 for exact official shapes, at
 * least 32), meta[N,7] of type real (4 temporal, 3 spatial values) or NULL; -> logits[N,classes].
 * Batch norm and drop path follow ctx->training. taps may be NULL. */
ii_tensor *ii_model_forward(ii_model *m, ii_tensor *images, ii_tensor *meta, ii_model_taps *taps);

/* Drop probability of block `block` of stage `stage` (float32 linspace, as the official code). */
double ii_model_drop_path(const ii_model *m, int stage, int block);

/* Replaces the drawn drop-path masks: fn fills keep[N] with 1 (keep) or 0 (drop) for branch 0 (DCN)
 * or 1 (MLP) of a block and returns true; returning false draws as usual. NULL removes it. */
typedef bool (*ii_keep_fn)(void *user, int stage, int block, int branch, int64_t N, double *keep);
void ii_model_set_keep(ii_model *m, ii_keep_fn fn, void *user);

#endif
