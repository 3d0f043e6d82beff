#include "layers/dcn_layer.h"

static ii_dcn_geometry geometry_of(const ii_dcn_options *o, bool softmax) {
  return (ii_dcn_geometry){.groups = o->groups,
                           .kernel_h = o->kernel_size,
                           .kernel_w = o->kernel_size,
                           .stride_h = o->stride,
                           .stride_w = o->stride,
                           .pad_h = o->pad,
                           .pad_w = o->pad,
                           .dilation_h = o->dilation,
                           .dilation_w = o->dilation,
                           .remove_center = o->remove_center,
                           .softmax = softmax,
                           .offset_scale = o->offset_scale};
}

static const ii_init zero = {II_INIT_CONSTANT, 0};

static void build_center(const ii_builder *b, const ii_dcn_options *o, ii_tensor **weight,
                         ii_tensor **bias) {
  if (!o->center_feature_scale) return;
  *weight = ii_build(b, "center_feature_scale_proj_weight", zero, o->groups, o->channels, 0, 0);
  *bias = ii_build(b, "center_feature_scale_proj_bias", zero, o->groups, 0, 0, 0);
}

static ii_linear_layer build_linear(const ii_builder *b, const char *name, int64_t in, int64_t out,
                                    bool bias, ii_init init) {
  ii_builder sub = ii_builder_sub(b, "%s", name);
  return ii_linear_build(&sub, in, out, bias, init);
}

ii_dcnv3_layer ii_dcnv3_build(const ii_builder *b, const ii_dcn_options *o) {
  ii_dcnv3_layer l = {.geometry = geometry_of(o, true)};
  int64_t C = o->channels;
  int64_t taps = ii_dcn_taps(o->kernel_size, o->kernel_size, o->remove_center);
  ii_init xavier = ii_init_xavier(C, C);
  build_center(b, o, &l.center_weight, &l.center_bias);
  ii_builder dw = ii_builder_sub(b, "dw_conv.0"), norm = ii_builder_sub(b, "dw_conv.1.1");
  l.dw = ii_dwconv_build(&dw, C, o->dw_kernel_size ? o->dw_kernel_size : o->kernel_size);
  l.dw_norm = ii_norm_build(&norm, C, 1e-6);
  const ii_linear_part parts[] = {{"offset", 0, o->groups * taps * 2, zero},
                                  {"mask", o->groups * taps * 2, o->groups * taps, zero}};
  l.offset_mask = ii_linear_build_joint(b, C, parts, 2);
  l.input_proj = build_linear(b, "input_proj", C, C, true, xavier);
  l.output_proj = build_linear(b, "output_proj", C, C, true, xavier);
  return l;
}

/* y*(1-s) + v*s with s = sigmoid(from W^T + b) per group. */
static ii_tensor *mix_center(ii_ctx *c, ii_tensor *y, ii_tensor *v, ii_tensor *from, ii_tensor *w,
                             ii_tensor *bias) {
  if (!w) return y;
  return ii_group_mix(c, y, v, ii_sigmoid(c, ii_linear(c, from, w, bias)));
}

ii_tensor *ii_dcnv3_forward(ii_ctx *c, const ii_dcnv3_layer *l, ii_tensor *u) {
  u = ii_cast(c, u, c->compute);
  ii_tensor *v = ii_linear_forward(c, &l->input_proj, u);
  ii_tensor *t = ii_dwconv_forward(c, &l->dw, u);
  t = ii_norm_forward(c, &l->dw_norm, t, II_ACT_GELU, c->compute);
  ii_tensor *y = ii_dcnv3(c, v, ii_linear_forward(c, &l->offset_mask, t), &l->geometry);
  y = mix_center(c, y, v, t, l->center_weight, l->center_bias);
  return ii_linear_forward(c, &l->output_proj, y);
}

ii_dcnv4_layer ii_dcnv4_build(const ii_builder *b, const ii_dcn_options *o) {
  ii_dcnv4_layer l = {.geometry = geometry_of(o, false)};
  int64_t C = o->channels;
  int64_t taps = ii_dcn_taps(o->kernel_size, o->kernel_size, o->remove_center);
  int64_t packed = (o->groups * taps * 3 + 7) / 8 * 8;
  ii_init xavier = ii_init_xavier(C, C);
  build_center(b, o, &l.center_weight, &l.center_bias);
  if (o->dw_kernel_size) {
    ii_builder dw = ii_builder_sub(b, "offset_mask_dw");
    l.dw = ii_dwconv_build(&dw, C, o->dw_kernel_size);
  }
  if (!o->without_pointwise && !o->dw_kernel_size && !o->center_feature_scale) {
    const ii_linear_part parts[] = {{"offset_mask", C, packed, zero}, {"value_proj", 0, C, xavier}};
    l.joint = ii_linear_build_joint(b, C, parts, 2);
  } else {
    l.offset_mask = build_linear(b, "offset_mask", C, packed, true, zero);
    if (!o->without_pointwise) l.value_proj = build_linear(b, "value_proj", C, C, true, xavier);
  }
  if (!o->without_pointwise)
    l.output_proj = build_linear(b, "output_proj", C, C, o->output_bias, xavier);
  return l;
}

ii_tensor *ii_dcnv4_forward(ii_ctx *c, const ii_dcnv4_layer *l, ii_tensor *u) {
  u = ii_cast(c, u, c->compute);
  if (l->joint.weight) {
    ii_tensor *joint = ii_linear_forward(c, &l->joint, u);
    ii_tensor *y = ii_dcnv4_joint(c, joint, l->output_proj.weight->shape[1], &l->geometry);
    return ii_linear_forward(c, &l->output_proj, y);
  }
  ii_tensor *v = l->value_proj.weight ? ii_linear_forward(c, &l->value_proj, u) : u;
  ii_tensor *t = l->dw.weight ? ii_dwconv_forward(c, &l->dw, u) : u;
  ii_tensor *y = ii_dcnv4(c, v, ii_linear_forward(c, &l->offset_mask, t), &l->geometry);
  y = mix_center(c, y, v, y, l->center_weight, l->center_bias);
  return l->output_proj.weight ? ii_linear_forward(c, &l->output_proj, y) : y;
}
