/* The ops: each runs its kernel now and records itself on the tape (when the context records and an
 * input needs a gradient). Results belong to the innermost scope. Shapes are checked: a mismatch is
 * a programmer error (II_ASSERT). After an error in the context every op returns a tensor of the
 * right shape and does nothing.
 *
 * Types: `real` is the context's real type, `compute` its compute type (ctx.h). linear, conv2d,
 * dwconv2d, bmm and DCN convert their activations to `compute` by themselves and give results of
 * that type, as the official autocast does; weights are read through their bf16 copies then.
 * Formulas and layouts are those of the argument structs in kernels/kernels.h. */
#ifndef II_OPS_H
#define II_OPS_H
#include "autograd/ctx.h"

/* y[...,out] = x[...,in] w[out,in]^T + b[out]; b may be NULL. */
ii_tensor *ii_linear(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b);

/* gelu(linear(x, w, b)) with GELU in its erf form; what is kept for backward is x and the linear
 * layer's result, which is rounded to `compute` as by ii_linear. */
ii_tensor *ii_linear_gelu(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b);

/* x[N,H,W,C], w[O,C,kh,kw], b[O] or NULL -> [N,Ho,Wo,O], Ho = (H + 2*pad - kh)/stride + 1. */
ii_tensor *ii_conv2d(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b, int stride, int pad);

/* Depthwise, stride 1, same size: x[N,H,W,C], w[C,1,k,k] with k odd, b[C] or NULL. */
ii_tensor *ii_dwconv2d(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b);

/* Over the last dimension, then `act`; the result has type out (real or compute). */
ii_tensor *ii_layer_norm(ii_ctx *c, ii_tensor *x, ii_tensor *gamma, ii_tensor *beta, double eps,
                         ii_act act, ii_dtype out);

/* y = x + keep[n]*scale[c]*LN(f)[c]: the residual branch of a block that ends with its layer norm,
 * in one pass; x[N,...,C] of type real, f of the same shape; scale[C] and keep[N] may be NULL. keep
 * gets no gradient. */
ii_tensor *ii_norm_residual(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *gamma,
                            ii_tensor *beta, double eps, ii_tensor *scale, ii_tensor *keep);

/* *sum = x + keep[n]*f and LN(*sum): the end of a residual branch and the norm that follows it, in
 * one pass; x[N,...,C] of type real, f of the same shape; the result has f's type. keep[N] may be
 * NULL and gets no gradient. */
ii_tensor *ii_residual_norm(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *keep,
                            ii_tensor *gamma, ii_tensor *beta, double eps, ii_tensor **sum);

/* Over all dimensions but the last. In training mode (ctx) batch statistics are used and the
 * running ones [C] are updated in place with `momentum`. The result has type real. */
ii_tensor *ii_batch_norm(ii_ctx *c, ii_tensor *x, ii_tensor *gamma, ii_tensor *beta,
                         ii_tensor *running_mean, ii_tensor *running_var, double eps,
                         double momentum);

/* Element-wise; the result has x's type. */
ii_tensor *ii_gelu(ii_ctx *c, ii_tensor *x);
ii_tensor *ii_relu(ii_ctx *c, ii_tensor *x);
ii_tensor *ii_silu(ii_ctx *c, ii_tensor *x);
ii_tensor *ii_sigmoid(ii_ctx *c, ii_tensor *x);

/* Over the last dimension; the result has type out. */
ii_tensor *ii_softmax(ii_ctx *c, ii_tensor *x, ii_dtype out);

/* Geometry of a deformable convolution. */
typedef struct {
  int groups, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool remove_center, softmax;
  double offset_scale;
} ii_dcn_geometry;

/* x[N,H,W,C], offset_mask[N,Ho,Wo,P], P >= 3*G*K: 2*G*K offsets (x,y interleaved), then G*K
 * modulations; the tail is ignored and gets zero gradient -> [N,Ho,Wo,C]. With geometry.softmax,
 * modulations are logits. Ho = (H + 2*pad_h - (dilation_h*(kernel_h-1)+1))/stride_h + 1, Wo alike.
 */
ii_tensor *ii_dcnv3(ii_ctx *c, ii_tensor *x, ii_tensor *offset_mask,
                    const ii_dcn_geometry *geometry);

/* offset_mask[N,Ho,Wo,P], P >= 3*G*K (the official module pads to a multiple of 8): per group 2K
 * offsets (x,y interleaved), then K modulations; the tail is ignored and gets zero gradient. */
ii_tensor *ii_dcnv4(ii_ctx *c, ii_tensor *x, ii_tensor *offset_mask,
                    const ii_dcn_geometry *geometry);
/* The same with both in one tensor [N,H,W,channels+P], x first; Ho = H, Wo = W. */
ii_tensor *ii_dcnv4_joint(ii_ctx *c, ii_tensor *x_offset_mask, int64_t channels,
                          const ii_dcn_geometry *geometry);

/* y = x + keep[n]*gamma[c]*f; x[N,...,C] of type real, f of the same shape; gamma[C] and keep[N]
 * may be NULL. keep gets no gradient. */
ii_tensor *ii_residual(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *gamma, ii_tensor *keep);

/* a + b, same shape and type. */
ii_tensor *ii_add(ii_ctx *c, ii_tensor *a, ii_tensor *b);

/* a*(1-s) + v*s, a and v [...,C], s[...,G] spread over the C/G channels of its group. */
ii_tensor *ii_group_mix(ii_ctx *c, ii_tensor *a, ii_tensor *v, ii_tensor *s);

/* Mean over all dimensions between the first and the last: x[N,...,C] -> [N,C] of x's type. */
ii_tensor *ii_mean_pool(ii_ctx *c, ii_tensor *x);

/* Window k x k, x[N,H,W,C]. */
ii_tensor *ii_avg_pool2d(ii_ctx *c, ii_tensor *x, int k, int stride, int pad);
ii_tensor *ii_max_pool2d(ii_ctx *c, ii_tensor *x, int k, int stride, int pad);

/* alpha * a[...,M,K] op(b): b[...,K,N], or [...,N,K] with trans_b. Leading dimensions agree. */
ii_tensor *ii_bmm(ii_ctx *c, ii_tensor *a, ii_tensor *b, bool trans_b, double alpha);

/* [A,B,C,D] -> [A,C,B,D]. */
ii_tensor *ii_transpose(ii_ctx *c, ii_tensor *x);

/* x[N,H,W,C*r*r] -> [N,H*r,W*r,C]. */
ii_tensor *ii_pixel_shuffle(ii_ctx *c, ii_tensor *x, int r);

/* Mean cross entropy; one element of type real. targets[N,C] of type real; labels[N] int32, each in
 * [0,C). */
ii_tensor *ii_soft_cross_entropy(ii_ctx *c, ii_tensor *logits, ii_tensor *targets);
ii_tensor *ii_smooth_cross_entropy(ii_ctx *c, ii_tensor *logits, ii_tensor *labels,
                                   double smoothing);

/* x itself when it has the type already. */
ii_tensor *ii_cast(ii_ctx *c, ii_tensor *x, ii_dtype to);

/* Columns [from, from + n) of the last dimension. */
ii_tensor *ii_slice(ii_ctx *c, ii_tensor *x, int64_t from, int64_t n);

/* The last dimensions of a and b after each other; all other dimensions and the type agree. */
ii_tensor *ii_concat(ii_ctx *c, ii_tensor *a, ii_tensor *b);

/* Same elements, other shape; shares memory. One entry of shape may be -1. */
ii_tensor *ii_reshape(ii_ctx *c, ii_tensor *x, int ndim, const int64_t *shape);

/* Activation checkpointing: y = fn(c, x, user), keeping only x; backward runs fn again. Drop path
 * draws the same numbers both times. fn must be a function of x, parameters and user alone. */
typedef ii_tensor *(*ii_block_fn)(ii_ctx *c, ii_tensor *x, const void *user);
ii_tensor *ii_checkpoint(ii_ctx *c, ii_tensor *x, ii_block_fn fn, const void *user);

#endif
