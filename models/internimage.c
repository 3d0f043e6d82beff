/* InternImage and FlashInternImage: stem, four stages of blocks, head (paper Fig. 3; the official
 * intern_image.py and flash_intern_image.py for names, order and the places of the norms). */
#include "layers/dcn_layer.h"
#include "layers/heads.h"
#include "autograd/tape.h"
#include "models/model.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NORM_EPS   1e-6
#define META_WIDTH 64

typedef struct {
  ii_model *model;
  int stage, index;
  double drop_path;
  ii_tensor *gamma1, *gamma2; /* NULL: no layer scale */
  ii_norm_layer norm1, norm2, res_norm1, res_norm2;
  ii_dcnv3_layer v3;
  ii_dcnv4_layer v4;
  ii_mlp_layer mlp;
} block_layer;

typedef struct {
  block_layer *blocks;
  ii_norm_layer norm;                    /* after the last block; weight NULL: none */
  ii_norm_layer post_norms[II_MAX_POST]; /* level-2 post norms */
  ii_conv_layer down;
  ii_norm_layer down_norm;
} stage_layer;

struct ii_model {
  ii_ctx *ctx;
  ii_model_config cfg;
  ii_params params;
  ii_init_list inits;
  ii_conv_layer stem1, stem2;
  ii_norm_layer stem_norm1, stem_norm2;
  stage_layer stages[II_STAGES];
  ii_conv_layer head_conv; /* conv_head */
  ii_batch_norm_layer head_norm;
  ii_conv_layer clip_x4, clip_x3;
  ii_attention_pool_layer clip;
  ii_norm_layer fc_norm;
  ii_meta_encoder meta1, meta2;
  ii_norm_layer meta_norm;
  ii_linear_layer meta_head, head;
  ii_keep_fn keep;
  void *keep_user;
};

static int64_t stage_channels(const ii_model_config *cfg, int stage) {
  return (int64_t)cfg->channels << stage;
}

static bool has_stage_norm(const ii_model_config *cfg) {
  return !cfg->post_norm || cfg->center_feature_scale;
}

/* Element i of torch.linspace(0, end, total) in float32, bit for bit as torch's kernel for 8-lane
 * vectors computes it: the second half is counted from the end with a fused multiply-add, and in
 * the part that whole pairs of vectors cover, the lanes of a vector step on from its first element.
 * The casts keep the compiler from fusing what torch rounds twice. */
static float linspace(float end, int total, int i) {
  const float step = end / (float)(total - 1);
  const int lane = i < total / 16 * 16 ? i % 8 : 0, base = i - lane;
  const float first =
      base < total / 2 ? (float)((double)step * base) : fmaf(-step, (float)(total - 1 - base), end);
  const float offset = (float)((double)step * lane);
  return (float)((double)first + (double)offset);
}

double ii_model_drop_path(const ii_model *m, int stage, int block) {
  int total = 0, i = block;
  for (int s = 0; s < II_STAGES; s++) total += m->cfg.depths[s];
  for (int s = 0; s < stage; s++) i += m->cfg.depths[s];
  return total < 2 ? 0 : linspace((float)m->cfg.drop_path_rate, total, i);
}

/* ---- construction ---- */

static void build_block(ii_model *m, const ii_builder *b, block_layer *l, int stage, int index) {
  const ii_model_config *cfg = &m->cfg;
  int64_t C = stage_channels(cfg, stage);
  l->model = m;
  l->stage = stage;
  l->index = index;
  l->drop_path = ii_model_drop_path(m, stage, index);
  if (cfg->layer_scale > 0) {
    ii_init gamma = {II_INIT_CONSTANT, cfg->layer_scale};
    l->gamma1 = ii_build(b, "gamma1", gamma, C, 0, 0, 0);
    l->gamma2 = ii_build(b, "gamma2", gamma, C, 0, 0, 0);
  }
  ii_builder norm1 = ii_builder_sub(b, "norm1.0"), norm2 = ii_builder_sub(b, "norm2.0");
  ii_builder dcn = ii_builder_sub(b, "dcn"), mlp = ii_builder_sub(b, "mlp");
  ii_dcn_options o = {.channels = C,
                      .groups = cfg->groups[stage],
                      .kernel_size = cfg->kernel_size,
                      .stride = 1,
                      .pad = (cfg->kernel_size - 1) / 2,
                      .dilation = 1,
                      .dw_kernel_size = cfg->dw_kernel_size,
                      .offset_scale = cfg->offset_scale,
                      .output_bias = cfg->dcn_output_bias};
  bool v3 = cfg->core_op == II_DCNV3;
  l->norm1 = ii_norm_build(&norm1, C, NORM_EPS);
  if (v3) {
    /* the official FlashInternImage does not hand these two to its operator */
    o.center_feature_scale = cfg->center_feature_scale;
    o.remove_center = cfg->remove_center;
    l->v3 = ii_dcnv3_build(&dcn, &o);
  } else {
    l->v4 = ii_dcnv4_build(&dcn, &o);
  }
  l->norm2 = ii_norm_build(&norm2, C, NORM_EPS);
  l->mlp = ii_mlp_build(&mlp, C, (int64_t)((double)C * cfg->mlp_ratio), v3 || cfg->mlp_fc2_bias);
  if (cfg->res_post_norm) {
    ii_builder r1 = ii_builder_sub(b, "res_post_norm1.0"),
               r2 = ii_builder_sub(b, "res_post_norm2.0");
    l->res_norm1 = ii_norm_build(&r1, C, NORM_EPS);
    l->res_norm2 = ii_norm_build(&r2, C, NORM_EPS);
  }
}

static ii_status build_stage(ii_model *m, int stage) {
  const ii_model_config *cfg = &m->cfg;
  stage_layer *s = &m->stages[stage];
  int64_t C = stage_channels(cfg, stage);
  ii_builder root = {.params = &m->params, .inits = &m->inits};
  ii_builder level = ii_builder_sub(&root, "levels.%d", stage);
  s->blocks = calloc((size_t)cfg->depths[stage], sizeof *s->blocks);
  if (!s->blocks) return ii_error_set(&m->ctx->err, II_ERR_MEMORY, "out of host memory");
  for (int i = 0; i < cfg->depths[stage]; i++) {
    ii_builder b = ii_builder_sub(&level, "blocks.%d", i);
    build_block(m, &b, &s->blocks[i], stage, i);
  }
  if (has_stage_norm(cfg)) {
    ii_builder b = ii_builder_sub(&level, "norm.0");
    s->norm = ii_norm_build(&b, C, NORM_EPS);
  }
  for (int i = 0; stage == 2 && i < cfg->level2_post_norm_count; i++) {
    ii_builder b = ii_builder_sub(&level, "post_norms.%d.0", i);
    s->post_norms[i] = ii_norm_build(&b, C, NORM_EPS);
  }
  if (stage < II_STAGES - 1) {
    ii_builder conv = ii_builder_sub(&level, "downsample.conv");
    ii_builder norm = ii_builder_sub(&level, "downsample.norm.1");
    s->down = ii_conv_build(&conv, C, 2 * C, 3, 2, 1, false);
    s->down_norm = ii_norm_build(&norm, 2 * C, NORM_EPS);
  }
  return m->ctx->err.status;
}

static void build_stem(ii_model *m) {
  int64_t C = m->cfg.channels;
  ii_builder root = {.params = &m->params, .inits = &m->inits};
  ii_builder stem = ii_builder_sub(&root, "patch_embed");
  ii_builder conv1 = ii_builder_sub(&stem, "conv1"), norm1 = ii_builder_sub(&stem, "norm1.1");
  ii_builder conv2 = ii_builder_sub(&stem, "conv2"), norm2 = ii_builder_sub(&stem, "norm2.1");
  m->stem1 = ii_conv_build(&conv1, 3, C / 2, 3, 2, 1, true);
  m->stem_norm1 = ii_norm_build(&norm1, C / 2, NORM_EPS);
  m->stem2 = ii_conv_build(&conv2, C / 2, C, 3, 2, 1, true);
  m->stem_norm2 = ii_norm_build(&norm2, C, NORM_EPS);
}

static void build_meta(ii_model *m, const ii_builder *root) {
  const int *dims = m->cfg.meta_dims;
  ii_builder b1 = ii_builder_sub(root, "meta_head_1"), b2 = ii_builder_sub(root, "meta_head_2");
  ii_builder norm = ii_builder_sub(root, "meta_norm"), head = ii_builder_sub(root, "meta_head");
  m->meta1 = ii_meta_encoder_build(&b1, dims[0], META_WIDTH);
  m->meta2 = ii_meta_encoder_build(&b2, dims[1], META_WIDTH);
  m->meta_norm = ii_norm_build(&norm, 2 * META_WIDTH, NORM_EPS);
  m->meta_head =
      ii_linear_build(&head, 2 * META_WIDTH, m->cfg.num_classes, true, ii_init_trunc_normal());
}

static void build_head(ii_model *m) {
  const ii_model_config *cfg = &m->cfg;
  ii_builder root = {.params = &m->params, .inits = &m->inits};
  int64_t C4 = stage_channels(cfg, 3), features;
  if (cfg->meta_dims[0]) build_meta(m, &root);
  if (cfg->use_clip_projector) {
    ii_builder x4 = ii_builder_sub(&root, "dcnv3_head_x4.0");
    ii_builder x3 = ii_builder_sub(&root, "dcnv3_head_x3");
    ii_builder clip = ii_builder_sub(&root, "clip_projector");
    ii_builder norm = ii_builder_sub(&root, "fc_norm.0");
    m->clip_x4 = ii_conv_build(&x4, C4, 4 * (int64_t)cfg->clip_channels, 1, 1, 0, true);
    m->clip_x3 = ii_conv_build(&x3, C4 / 2, cfg->clip_channels, 1, 1, 0, true);
    m->clip = ii_attention_pool_build(&clip, cfg->clip_channels, cfg->clip_heads, cfg->clip_out);
    m->fc_norm = ii_norm_build(&norm, cfg->clip_out, NORM_EPS);
    features = cfg->clip_out;
  } else {
    ii_builder conv = ii_builder_sub(&root, "conv_head.0"),
               bn = ii_builder_sub(&root, "conv_head.1.0");
    features = (int64_t)((double)C4 * cfg->cls_scale);
    m->head_conv = ii_conv_build(&conv, C4, features, 1, 1, 0, false);
    m->head_norm = ii_batch_norm_build(&bn, features);
  }
  ii_builder head = ii_builder_sub(&root, "head");
  m->head = ii_linear_build(&head, features, cfg->num_classes, true, ii_init_trunc_normal());
}

ii_model *ii_model_create(ii_ctx *c, const ii_model_config *cfg, ii_error *err) {
  if (ii_model_config_check(cfg, err) != II_OK) return NULL;
  ii_model *m = calloc(1, sizeof *m);
  if (!m) {
    ii_error_set(err, II_ERR_MEMORY, "out of host memory");
    return NULL;
  }
  m->ctx = c;
  m->cfg = *cfg;
  ii_params_init(&m->params, c);
  build_stem(m);
  for (int s = 0; s < II_STAGES && ii_ok(c); s++) build_stage(m, s);
  if (ii_ok(c)) build_head(m);
  if (!ii_ok(c)) {
    ii_error_set(err, c->err.status, "%s", c->err.text);
    ii_model_destroy(m);
    return NULL;
  }
  return m;
}

void ii_model_destroy(ii_model *m) {
  if (!m) return;
  for (int s = 0; s < II_STAGES; s++) free(m->stages[s].blocks);
  ii_params_destroy(&m->params);
  free(m->inits.at);
  free(m);
}

ii_params *ii_model_params(ii_model *m) {
  return &m->params;
}
const ii_model_config *ii_model_get_config(const ii_model *m) {
  return &m->cfg;
}
void ii_model_init(ii_model *m, uint64_t seed) {
  ii_init_apply(&m->params, &m->inits, seed);
}

void ii_model_set_keep(ii_model *m, ii_keep_fn fn, void *user) {
  m->keep = fn;
  m->keep_user = user;
}

/* ---- forward ---- */

static ii_tensor *keep_mask(ii_ctx *c, const block_layer *l, int branch, int64_t N) {
  const ii_model *m = l->model;
  if (!m->keep || !c->training || l->drop_path <= 0) return ii_drop_path(c, N, l->drop_path);
  double *keep = ii_arena_alloc(c, (size_t)N * sizeof *keep);
  if (!m->keep(m->keep_user, l->stage, l->index, branch, N, keep))
    return ii_drop_path(c, N, l->drop_path);
  for (int64_t n = 0; n < N; n++) keep[n] /= 1.0 - l->drop_path;
  ii_tensor *t = ii_tensor_new(c, c->real, 1, &N);
  ii_tensor_write_f64(c, t, keep);
  return t;
}

static ii_tensor *core(ii_ctx *c, const block_layer *l, ii_tensor *x) {
  return l->model->cfg.core_op == II_DCNV3 ? ii_dcnv3_forward(c, &l->v3, x)
                                           : ii_dcnv4_forward(c, &l->v4, x);
}

/* x plus a branch that ends with `norm`, if there is one. */
static ii_tensor *end_branch(ii_ctx *c, const ii_norm_layer *norm, ii_tensor *x, ii_tensor *f,
                             ii_tensor *gamma, ii_tensor *keep) {
  return norm ? ii_norm_residual_forward(c, norm, x, f, gamma, keep)
              : ii_residual(c, x, f, gamma, keep);
}

/* The residual stream, and the norm that comes next of it: made in one pass where that is possible;
 * h is NULL where no norm was asked for. */
typedef struct {
  ii_tensor *x, *h;
} stream;

/* As end_branch, then the norm `next`, unless that is NULL. */
static stream join(ii_ctx *c, const ii_norm_layer *norm, ii_tensor *x, ii_tensor *f,
                   ii_tensor *gamma, ii_tensor *keep, const ii_norm_layer *next) {
  stream s = {x, NULL};
  if (next && !norm && !gamma) {
    s.h = ii_residual_norm_forward(c, next, x, f, keep, &s.x);
    return s;
  }
  s.x = end_branch(c, norm, x, f, gamma, keep);
  if (next) s.h = ii_norm_forward(c, next, s.x, II_ACT_NONE, c->compute);
  return s;
}

/* Precedence of the official code: post_norm, then layer scale, then res_post_norm. in.h: norm1 of
 * the stream, or NULL. next: the first norm of what follows, or NULL. */
static stream block_run(ii_ctx *c, const block_layer *l, stream in, const ii_norm_layer *next) {
  const ii_model_config *cfg = &l->model->cfg;
  const int64_t N = in.x->shape[0];
  const bool res_norm = cfg->res_post_norm && !l->gamma1;
  ii_tensor *x = in.x, *f;
  ii_scope scope = ii_scope_begin(c);
  stream s;
  if (cfg->post_norm) {
    f = core(c, l, x);
    x = end_branch(c, &l->norm1, x, f, l->gamma1, keep_mask(c, l, 0, N));
    f = ii_mlp_forward(c, &l->mlp, x);
    s = (stream){end_branch(c, &l->norm2, x, f, l->gamma2, keep_mask(c, l, 1, N)), NULL};
  } else {
    f = core(c, l, in.h ? in.h : ii_norm_forward(c, &l->norm1, x, II_ACT_NONE, c->compute));
    s = join(c, res_norm ? &l->res_norm1 : NULL, x, f, l->gamma1, keep_mask(c, l, 0, N), &l->norm2);
    f = ii_mlp_forward(c, &l->mlp, s.h);
    s = join(c, res_norm ? &l->res_norm2 : NULL, s.x, f, l->gamma2, keep_mask(c, l, 1, N), next);
  }
  ii_scope_end(c, scope, (ii_tensor *[]){s.x, s.h}, s.h ? 2 : 1);
  return s;
}

/* A block by itself, for ii_checkpoint. */
static ii_tensor *block_forward(ii_ctx *c, ii_tensor *x, const void *user) {
  return block_run(c, user, (stream){x, NULL}, NULL).x;
}

/* The level-2 post norm after block i of a stage, or NULL. */
static const ii_norm_layer *post_norm(const ii_model *m, int stage, int i) {
  for (int k = 0; stage == 2 && k < m->cfg.level2_post_norm_count; k++)
    if (m->cfg.level2_post_norm_ids[k] == i) return &m->stages[stage].post_norms[k];
  return NULL;
}

static ii_tensor *stage_forward(ii_model *m, int stage, ii_tensor *x) {
  ii_ctx *c = m->ctx;
  const ii_model_config *cfg = &m->cfg;
  stage_layer *l = &m->stages[stage];
  stream s = {x, NULL};
  ii_scope scope = ii_scope_begin(c);
  for (int i = 0; i < cfg->depths[stage]; i++) {
    const ii_norm_layer *post = post_norm(m, stage, i);
    const bool norm_follows = i + 1 < cfg->depths[stage] && !post && !cfg->post_norm;
    if (cfg->checkpoint)
      s.x = ii_checkpoint(c, s.x, block_forward, &l->blocks[i]);
    else
      s = block_run(c, &l->blocks[i], s, norm_follows ? &l->blocks[i + 1].norm1 : NULL);
    if (post) s.x = ii_norm_forward(c, post, s.x, II_ACT_NONE, c->real);
    /* ends with every block what the one before it left */
    ii_scope_end(c, scope, (ii_tensor *[]){s.x, s.h}, s.h ? 2 : 1);
  }
  return l->norm.weight ? ii_norm_forward(c, &l->norm, s.x, II_ACT_NONE, c->real) : s.x;
}

/* x3, x4: outputs of the last two stages -> [N, clip_out]. */
static ii_tensor *clip_forward(ii_model *m, ii_tensor *x3, ii_tensor *x4) {
  ii_ctx *c = m->ctx;
  ii_tensor *up = ii_pixel_shuffle(c, ii_conv_forward(c, &m->clip_x4, x4), 2);
  ii_tensor *z = ii_add(c, up, ii_conv_forward(c, &m->clip_x3, x3));
  z = ii_reshape(c, z, 3, (int64_t[]){z->shape[0], z->shape[1] * z->shape[2], z->shape[3]});
  z = ii_attention_pool_forward(c, &m->clip, z);
  return ii_norm_forward(c, &m->fc_norm, z, II_ACT_NONE, c->compute);
}

static ii_tensor *conv_head_forward(ii_model *m, ii_tensor *x) {
  ii_ctx *c = m->ctx;
  x = ii_batch_norm_forward(c, &m->head_norm, ii_conv_forward(c, &m->head_conv, x));
  return ii_mean_pool(c, ii_gelu(c, x));
}

static ii_tensor *meta_forward(ii_model *m, ii_tensor *meta) {
  ii_ctx *c = m->ctx;
  const int *dims = m->cfg.meta_dims;
  ii_tensor *a = ii_meta_encoder_forward(c, &m->meta1, ii_slice(c, meta, 0, dims[0]));
  ii_tensor *b = ii_meta_encoder_forward(c, &m->meta2, ii_slice(c, meta, dims[0], dims[1]));
  ii_tensor *z = ii_norm_forward(c, &m->meta_norm, ii_concat(c, a, b), II_ACT_NONE, c->compute);
  return ii_linear_forward(c, &m->meta_head, z);
}

ii_tensor *ii_model_forward(ii_model *m, ii_tensor *images, ii_tensor *meta, ii_model_taps *taps) {
  ii_ctx *c = m->ctx;
  ii_model_taps none;
  if (!taps) taps = &none;
  *taps = (ii_model_taps){0};
  II_ASSERT(images->ndim == 4 && images->shape[3] == 3, "%d dimensions", images->ndim);
  II_ASSERT(!m->cfg.meta_dims[0] == !meta, "metadata %s", meta ? "not expected" : "missing");
  ii_tensor *x = ii_conv_forward(c, &m->stem1, images);
  x = ii_norm_forward(c, &m->stem_norm1, x, II_ACT_GELU, c->compute);
  x = ii_conv_forward(c, &m->stem2, x);
  x = ii_norm_forward(c, &m->stem_norm2, x, II_ACT_NONE, c->real);
  taps->stem = x;
  for (int s = 0; s < II_STAGES; s++) {
    taps->stage[s] = x = stage_forward(m, s, x);
    if (s < II_STAGES - 1) {
      x = ii_conv_forward(c, &m->stages[s].down, x);
      x = ii_norm_forward(c, &m->stages[s].down_norm, x, II_ACT_NONE, c->real);
    }
  }
  taps->features =
      m->cfg.use_clip_projector ? clip_forward(m, taps->stage[2], x) : conv_head_forward(m, x);
  ii_tensor *logits = ii_linear_forward(c, &m->head, taps->features);
  return meta ? ii_add(c, logits, meta_forward(m, meta)) : logits;
}
