/* The small layers: parameters and forward, nothing else. `b` is a builder at the layer's own
 * prefix. */
#ifndef II_BASIC_H
#define II_BASIC_H
#include "autograd/ops.h"
#include "layers/builder.h"

typedef struct {
  ii_tensor *weight, *bias; /* [out,in], [out] or NULL */
} ii_linear_layer;

/* weight: init; bias: zeros, when wanted. */
ii_linear_layer ii_linear_build(const ii_builder *b, int64_t in, int64_t out, bool bias,
                                ii_init init);
/* Several linear layers of the same input, with biases, as one: parts <name>.weight [out,in] and
 * <name>.bias [out] are parameters of their own, added in this order, and rows from `first` on of
 * the layer's joint weight and bias; its output has the same columns, and columns of zeros that
 * make their number a multiple of 8: 16 bytes of the narrowest type, as matrix units want them.
 * first: the parts' rows lie behind each other, from 0 on. */
typedef struct {
  const char *name;
  int64_t first, out;
  ii_init init; /* of the weight; the bias is zero */
} ii_linear_part;
ii_linear_layer ii_linear_build_joint(const ii_builder *b, int64_t in, const ii_linear_part *part,
                                      int parts);
ii_tensor *ii_linear_forward(ii_ctx *c, const ii_linear_layer *l, ii_tensor *x);

/* The initialisations that recur: timm's trunc_normal(std 0.02) and Xavier uniform,
 * sqrt(6/(in+out)). */
ii_init ii_init_trunc_normal(void);
ii_init ii_init_xavier(int64_t in, int64_t out);

/* Convolution k x k with torch's default initialisation: weight and bias U(+-1/sqrt(in*k*k)). */
typedef struct {
  ii_tensor *weight, *bias; /* [out,in,k,k], [out] or NULL */
  int stride, pad;
} ii_conv_layer;
ii_conv_layer ii_conv_build(const ii_builder *b, int64_t in, int64_t out, int k, int stride,
                            int pad, bool bias);
ii_tensor *ii_conv_forward(ii_ctx *c, const ii_conv_layer *l, ii_tensor *x);

/* Depthwise k x k, stride 1, same size; torch's default initialisation U(+-1/k). */
typedef struct {
  ii_tensor *weight, *bias; /* [C,1,k,k], [C] */
} ii_dwconv_layer;
ii_dwconv_layer ii_dwconv_build(const ii_builder *b, int64_t channels, int k);
ii_tensor *ii_dwconv_forward(ii_ctx *c, const ii_dwconv_layer *l, ii_tensor *x);

/* Layer norm: weight 1, bias 0. */
typedef struct {
  ii_tensor *weight, *bias; /* NULL weight: the layer does not exist */
  double eps;
} ii_norm_layer;
ii_norm_layer ii_norm_build(const ii_builder *b, int64_t channels, double eps);
ii_tensor *ii_norm_forward(ii_ctx *c, const ii_norm_layer *l, ii_tensor *x, ii_act act,
                           ii_dtype out);
/* norm(*sum), *sum = x + keep * f, as ii_residual_norm. */
ii_tensor *ii_residual_norm_forward(ii_ctx *c, const ii_norm_layer *l, ii_tensor *x, ii_tensor *f,
                                    ii_tensor *keep, ii_tensor **sum);
/* x + keep * scale * norm(f), as ii_norm_residual. */
ii_tensor *ii_norm_residual_forward(ii_ctx *c, const ii_norm_layer *l, ii_tensor *x, ii_tensor *f,
                                    ii_tensor *scale, ii_tensor *keep);

/* Batch norm: weight 1, bias 0, running mean 0 and variance 1, eps 1e-5, momentum 0.1. */
typedef struct {
  ii_tensor *weight, *bias, *running_mean, *running_var, *batches;
} ii_batch_norm_layer;
ii_batch_norm_layer ii_batch_norm_build(const ii_builder *b, int64_t channels);
ii_tensor *ii_batch_norm_forward(ii_ctx *c, const ii_batch_norm_layer *l, ii_tensor *x);

/* fc1 -> GELU -> fc2 over the last dimension. */
typedef struct {
  ii_linear_layer fc1, fc2;
} ii_mlp_layer;
ii_mlp_layer ii_mlp_build(const ii_builder *b, int64_t channels, int64_t hidden, bool fc2_bias);
ii_tensor *ii_mlp_forward(ii_ctx *c, const ii_mlp_layer *l, ii_tensor *x);

/* The factors of stochastic depth for N samples: 1/(1-rate) with probability 1-rate, else 0, drawn
 * from (ctx->seed, ctx->step, ctx->draw++). NULL when rate is 0 or the context is not training. */
ii_tensor *ii_drop_path(ii_ctx *c, int64_t N, double rate);

#endif
