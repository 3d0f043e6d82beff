#include "layers/heads.h"
#include <math.h>

static const ii_init zero = {II_INIT_CONSTANT, 0};

static ii_linear_layer sub_linear(const ii_builder *b, const char *name, int64_t in, int64_t out,
                                  bool bias) {
  ii_builder sub = ii_builder_sub(b, "%s", name);
  return ii_linear_build(&sub, in, out, bias, ii_init_trunc_normal());
}

static ii_norm_layer sub_norm(const ii_builder *b, const char *name, int64_t channels, double eps) {
  ii_builder sub = ii_builder_sub(b, "%s", name);
  return ii_norm_build(&sub, channels, eps);
}

ii_attention_pool_layer ii_attention_pool_build(const ii_builder *b, int64_t channels,
                                                int64_t heads, int64_t out) {
  ii_attention_pool_layer l = {.heads = heads};
  l.norm_q = sub_norm(b, "norm1_q.0", channels, 1e-6);
  l.norm_k = sub_norm(b, "norm1_k.0", channels, 1e-6);
  l.norm_v = sub_norm(b, "norm1_v.0", channels, 1e-6);
  ii_builder attn = ii_builder_sub(b, "cross_dcn");
  ii_tensor *q_bias = ii_build(&attn, "q_bias", zero, channels, 0, 0, 0);
  ii_tensor *k_bias = ii_build(&attn, "k_bias", zero, channels, 0, 0, 0);
  ii_tensor *v_bias = ii_build(&attn, "v_bias", zero, channels, 0, 0, 0);
  l.q = sub_linear(&attn, "q", channels, channels, false);
  l.k = sub_linear(&attn, "k", channels, channels, false);
  l.v = sub_linear(&attn, "v", channels, channels, false);
  l.proj = sub_linear(&attn, "proj", channels, out, true);
  l.q.bias = q_bias;
  l.k.bias = k_bias;
  l.v.bias = v_bias;
  return l;
}

/* [N,L,C] -> [N,heads,L,D] */
static ii_tensor *split_heads(ii_ctx *c, ii_tensor *x, int64_t N, int64_t L, int64_t heads) {
  int64_t D = ii_last(x) / heads;
  return ii_transpose(c, ii_reshape(c, x, 4, (int64_t[]){N, L, heads, D}));
}

ii_tensor *ii_attention_pool_forward(ii_ctx *c, const ii_attention_pool_layer *l,
                                     ii_tensor *tokens) {
  int64_t N = tokens->shape[0], L = tokens->shape[1], C = tokens->shape[2], H = l->heads;
  ii_tensor *mean = ii_mean_pool(c, tokens);
  ii_tensor *q = ii_norm_forward(c, &l->norm_q, mean, II_ACT_NONE, c->compute);
  ii_tensor *k = ii_norm_forward(c, &l->norm_k, tokens, II_ACT_NONE, c->compute);
  ii_tensor *v = ii_norm_forward(c, &l->norm_v, tokens, II_ACT_NONE, c->compute);
  q = split_heads(c, ii_linear_forward(c, &l->q, q), N, 1, H);
  k = split_heads(c, ii_linear_forward(c, &l->k, k), N, L, H);
  v = split_heads(c, ii_linear_forward(c, &l->v, v), N, L, H);
  ii_tensor *scores = ii_bmm(c, q, k, true, 1.0 / sqrt((double)C / (double)H));
  ii_tensor *y = ii_bmm(c, ii_softmax(c, scores, c->real), v, false, 1.0); /* [N,H,1,D] */
  return ii_linear_forward(c, &l->proj, ii_reshape(c, y, 2, (int64_t[]){N, C}));
}

ii_meta_encoder ii_meta_encoder_build(const ii_builder *b, int64_t in, int64_t width) {
  ii_meta_encoder l;
  l.in = sub_linear(b, "0", in, width, true);
  l.norm = sub_norm(b, "2", width, 1e-5);
  l.norm1 = sub_norm(b, "3.norm_fn1", width, 1e-5);
  l.norm2 = sub_norm(b, "3.norm_fn2", width, 1e-5);
  l.w1 = sub_linear(b, "3.w1", width, width, true);
  l.w2 = sub_linear(b, "3.w2", width, width, true);
  return l;
}

static ii_tensor *linear_relu_norm(ii_ctx *c, const ii_linear_layer *w, const ii_norm_layer *n,
                                   ii_tensor *x) {
  return ii_norm_forward(c, n, ii_relu(c, ii_linear_forward(c, w, x)), II_ACT_NONE, c->real);
}

ii_tensor *ii_meta_encoder_forward(ii_ctx *c, const ii_meta_encoder *l, ii_tensor *x) {
  x = linear_relu_norm(c, &l->in, &l->norm, x);
  ii_tensor *y = linear_relu_norm(c, &l->w1, &l->norm1, x);
  return ii_add(c, x, linear_relu_norm(c, &l->w2, &l->norm2, y));
}
