/* The DCNv3 and DCNv4 modules: projections, offset branch and the deformable core. */
#ifndef II_DCN_LAYER_H
#define II_DCN_LAYER_H
#include "layers/basic.h"

/* Options of both modules; square kernel, stride, padding, dilation. */
typedef struct {
  int64_t channels;
  int groups, kernel_size, stride, pad, dilation;
  int dw_kernel_size; /* v3: 0 means kernel_size; v4: 0 means no depthwise convolution */
  double offset_scale;
  bool center_feature_scale, remove_center;
  bool output_bias, without_pointwise; /* v4 only */
} ii_dcn_options;

/* DCNv3 (official ops_dcnv3 module): v = input_proj(u); t = GELU(LN(dwconv(u))); offsets and mask
 * logits linear in t; y = core(v, offsets, softmax(mask)); with center_feature_scale
 * a = sigmoid(t Wc^T + bc), y = y*(1-a) + v*a; output_proj(y). With stride > 1 the offset branch is
 * computed at full resolution, as in the official module, and does not fit: stride must be 1. */
typedef struct {
  ii_dcn_geometry geometry;
  ii_tensor *center_weight, *center_bias; /* [G,C], [G]; NULL without center_feature_scale */
  ii_dwconv_layer dw;
  ii_norm_layer dw_norm;
  ii_linear_layer offset_mask; /* joint: offsets, then mask */
  ii_linear_layer input_proj, output_proj;
} ii_dcnv3_layer;
ii_dcnv3_layer ii_dcnv3_build(const ii_builder *b, const ii_dcn_options *o);
/* u[N,H,W,C] -> [N,H,W,C] of the compute type. */
ii_tensor *ii_dcnv3_forward(ii_ctx *c, const ii_dcnv3_layer *l, ii_tensor *u);

/* DCNv4 (official DCNv4 module): v = value_proj(u); the packed offsets and (unnormalised)
 * modulations are linear in u, or in a plain depthwise convolution of it; with center_feature_scale
 * the scale is computed from the core's OUTPUT; output_proj. without_pointwise: no projections.
 * Where values and offsets are linear in the same u, and nothing else wants the values, one product
 * gives both. */
typedef struct {
  ii_dcn_geometry geometry;
  ii_tensor *center_weight, *center_bias;
  ii_dwconv_layer dw;                                   /* weight NULL: none */
  ii_linear_layer joint;                                /* value_proj, then offset_mask */
  ii_linear_layer offset_mask, value_proj, output_proj; /* weight NULL: none, or in `joint` */
} ii_dcnv4_layer;
ii_dcnv4_layer ii_dcnv4_build(const ii_builder *b, const ii_dcn_options *o);
ii_tensor *ii_dcnv4_forward(ii_ctx *c, const ii_dcnv4_layer *l, ii_tensor *u);

#endif
