#include "layers/basic.h"
#include "autograd/kernel_call.h"
#include "autograd/rng.h"
#include <math.h>

ii_init ii_init_trunc_normal(void) {
  return (ii_init){II_INIT_TRUNC_NORMAL, 0.02};
}

ii_init ii_init_xavier(int64_t in, int64_t out) {
  return (ii_init){II_INIT_UNIFORM, sqrt(6.0 / (double)(in + out))};
}

static ii_init constant(double v) {
  return (ii_init){II_INIT_CONSTANT, v};
}

static ii_init torch_default(int64_t fan_in) {
  return (ii_init){II_INIT_UNIFORM, 1.0 / sqrt((double)fan_in)};
}

ii_linear_layer ii_linear_build(const ii_builder *b, int64_t in, int64_t out, bool bias,
                                ii_init init) {
  ii_linear_layer l = {.weight = ii_build(b, "weight", init, out, in, 0, 0)};
  if (bias) l.bias = ii_build(b, "bias", constant(0), out, 0, 0, 0);
  return l;
}

ii_linear_layer ii_linear_build_joint(const ii_builder *b, int64_t in, const ii_linear_part *part,
                                      int parts) {
  int64_t shape[2] = {0, in};
  for (int i = 0; i < parts; i++) shape[0] += part[i].out;
  shape[0] = (shape[0] + 7) / 8 * 8;
  ii_linear_layer l = {.weight = ii_params_join(b->params, 2, shape),
                       .bias = ii_params_join(b->params, 1, shape)};
  for (int i = 0; i < parts; i++) {
    ii_builder sub = ii_builder_sub(b, "%s", part[i].name);
    ii_build_rows(&sub, "weight", part[i].init, l.weight, part[i].first, part[i].out);
    ii_build_rows(&sub, "bias", constant(0), l.bias, part[i].first, part[i].out);
  }
  return l;
}

ii_tensor *ii_linear_forward(ii_ctx *c, const ii_linear_layer *l, ii_tensor *x) {
  return ii_linear(c, x, l->weight, l->bias);
}

ii_conv_layer ii_conv_build(const ii_builder *b, int64_t in, int64_t out, int k, int stride,
                            int pad, bool bias) {
  ii_init init = torch_default(in * k * k);
  ii_conv_layer l = {
      .weight = ii_build(b, "weight", init, out, in, k, k), .stride = stride, .pad = pad};
  if (bias) l.bias = ii_build(b, "bias", init, out, 0, 0, 0);
  return l;
}

ii_tensor *ii_conv_forward(ii_ctx *c, const ii_conv_layer *l, ii_tensor *x) {
  return ii_conv2d(c, x, l->weight, l->bias, l->stride, l->pad);
}

ii_dwconv_layer ii_dwconv_build(const ii_builder *b, int64_t channels, int k) {
  ii_init init = torch_default((int64_t)k * k);
  return (ii_dwconv_layer){.weight = ii_build(b, "weight", init, channels, 1, k, k),
                           .bias = ii_build(b, "bias", init, channels, 0, 0, 0)};
}

ii_tensor *ii_dwconv_forward(ii_ctx *c, const ii_dwconv_layer *l, ii_tensor *x) {
  return ii_dwconv2d(c, x, l->weight, l->bias);
}

ii_norm_layer ii_norm_build(const ii_builder *b, int64_t channels, double eps) {
  return (ii_norm_layer){.weight = ii_build(b, "weight", constant(1), channels, 0, 0, 0),
                         .bias = ii_build(b, "bias", constant(0), channels, 0, 0, 0),
                         .eps = eps};
}

ii_tensor *ii_norm_forward(ii_ctx *c, const ii_norm_layer *l, ii_tensor *x, ii_act act,
                           ii_dtype out) {
  return ii_layer_norm(c, x, l->weight, l->bias, l->eps, act, out);
}

ii_tensor *ii_norm_residual_forward(ii_ctx *c, const ii_norm_layer *l, ii_tensor *x, ii_tensor *f,
                                    ii_tensor *scale, ii_tensor *keep) {
  return ii_norm_residual(c, x, f, l->weight, l->bias, l->eps, scale, keep);
}

ii_tensor *ii_residual_norm_forward(ii_ctx *c, const ii_norm_layer *l, ii_tensor *x, ii_tensor *f,
                                    ii_tensor *keep, ii_tensor **sum) {
  return ii_residual_norm(c, x, f, keep, l->weight, l->bias, l->eps, sum);
}

ii_batch_norm_layer ii_batch_norm_build(const ii_builder *b, int64_t channels) {
  return (ii_batch_norm_layer){.weight = ii_build(b, "weight", constant(1), channels, 0, 0, 0),
                               .bias = ii_build(b, "bias", constant(0), channels, 0, 0, 0),
                               .running_mean = ii_build_buffer(b, "running_mean", channels, 0),
                               .running_var = ii_build_buffer(b, "running_var", channels, 1),
                               .batches = ii_build_buffer(b, "num_batches_tracked", 0, 0)};
}

ii_tensor *ii_batch_norm_forward(ii_ctx *c, const ii_batch_norm_layer *l, ii_tensor *x) {
  if (c->training && !c->recomputing && ii_ok(c)) { /* a batch that is recomputed counts once */
    ii_run_shift(c,
                 &(ii_shift_args){.real = c->real, .n = 1, .value = 1, .y = ii_data(l->batches)});
  }
  return ii_batch_norm(c, x, l->weight, l->bias, l->running_mean, l->running_var, 1e-5, 0.1);
}

ii_mlp_layer ii_mlp_build(const ii_builder *b, int64_t channels, int64_t hidden, bool fc2_bias) {
  ii_builder fc1 = ii_builder_sub(b, "fc1"), fc2 = ii_builder_sub(b, "fc2");
  ii_mlp_layer l;
  l.fc1 = ii_linear_build(&fc1, channels, hidden, true, ii_init_trunc_normal());
  l.fc2 = ii_linear_build(&fc2, hidden, channels, fc2_bias, ii_init_trunc_normal());
  return l;
}

ii_tensor *ii_mlp_forward(ii_ctx *c, const ii_mlp_layer *l, ii_tensor *x) {
  return ii_linear_forward(c, &l->fc2, ii_linear_gelu(c, x, l->fc1.weight, l->fc1.bias));
}

ii_tensor *ii_drop_path(ii_ctx *c, int64_t N, double rate) {
  if (rate <= 0 || !c->training) return NULL;
  ii_tensor *keep = ii_tensor_new(c, c->real, 1, &N);
  ii_run_keep(c, &(ii_keep_args){.real = c->real,
                                 .n = N,
                                 .rate = rate,
                                 .seed = c->seed,
                                 .step = c->step,
                                 .step_at = c->step_at,
                                 .draw = c->draw++,
                                 .purpose = II_RNG_DROP_PATH,
                                 .y = ii_data(keep)});
  return keep;
}
