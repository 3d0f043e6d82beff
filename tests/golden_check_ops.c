/* The operators and the DCN modules. The loss of all these cases is sum(output * grad_output). */
#include "tests/golden_check.h"
#include "layers/dcn_layer.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Float: the documented bounds. Double: the reference agrees with a second implementation of the
 * same formula to 1e-13 for values of order 1. */
#define OP_F32     5e-6
#define EDGE_F32   1e-6 /* integer positions: the bilinear weights are exact */
#define OP_F64     1e-13
#define MODULE_F32 5e-6
#define MODULE_F64 1e-13

typedef struct {
  ii_dcn_geometry geometry;
  int64_t N, H, W, C, Ho, Wo, taps;
  double f32, f64;
} op_case;

static op_case read_case(gc *g, hid_t group, const gc_array *x) {
  op_case o = {.geometry = {.groups = (int)gc_integer(g, group, "group", 1, 1 << 16),
                            .kernel_h = (int)gc_integer(g, group, "kernel_h", 1, 99),
                            .kernel_w = (int)gc_integer(g, group, "kernel_w", 1, 99),
                            .stride_h = (int)gc_integer(g, group, "stride_h", 1, 99),
                            .stride_w = (int)gc_integer(g, group, "stride_w", 1, 99),
                            .pad_h = (int)gc_integer(g, group, "pad_h", 0, 99),
                            .pad_w = (int)gc_integer(g, group, "pad_w", 0, 99),
                            .dilation_h = (int)gc_integer(g, group, "dilation_h", 1, 99),
                            .dilation_w = (int)gc_integer(g, group, "dilation_w", 1, 99),
                            .remove_center = gc_integer(g, group, "remove_center", 0, 1) != 0,
                            .softmax = gc_number_or(g, group, "softmax", 0) != 0,
                            .offset_scale = gc_number(g, group, "offset_scale")}};
  const ii_dcn_geometry *q = &o.geometry;
  if (x->ndim != 4) gc_die(g, "input has %d dimensions instead of 4", x->ndim);
  o.N = x->dim[0];
  o.H = x->dim[1];
  o.W = x->dim[2];
  o.C = x->dim[3];
  int64_t room_h = o.H + 2 * q->pad_h - q->dilation_h * (q->kernel_h - 1) - 1;
  int64_t room_w = o.W + 2 * q->pad_w - q->dilation_w * (q->kernel_w - 1) - 1;
  if (room_h < 0 || room_w < 0 || o.C % q->groups)
    gc_die(g, "kernel, padding or groups do not fit the input");
  o.Ho = room_h / q->stride_h + 1;
  o.Wo = room_w / q->stride_w + 1;
  o.taps = (int64_t)q->kernel_h * q->kernel_w - q->remove_center;
  o.f32 = gc_number_or(g, group, "integer_locations", 0) != 0 ? EDGE_F32 : OP_F32;
  o.f64 = OP_F64;
  return o;
}

static void compare_with(gc *g, ii_ctx *c, const ii_tensor *t, hid_t group, const char *name,
                         const op_case *o) {
  gc_compare_tensor(g, c, t, group, name, o->f32, o->f64);
}

void gc_check_dcnv3_op(gc *g, hid_t group, const char *name) {
  gc_only(g, group, "input offset mask grad_output output grad_input grad_offset grad_mask");
  gc_array x = gc_read(g, group, "input"), offset = gc_read(g, group, "offset");
  gc_array mask = gc_read(g, group, "mask"), gy = gc_read(g, group, "grad_output");
  op_case o = read_case(g, group, &x);
  const int64_t G = o.geometry.groups;
  const int64_t offset_dim[4] = {o.N, o.Ho, o.Wo, G * o.taps * 2};
  const int64_t mask_dim[4] = {o.N, o.Ho, o.Wo, G * o.taps}, y_dim[4] = {o.N, o.Ho, o.Wo, o.C};
  gc_shape(g, &offset, "offset", 4, offset_dim);
  gc_shape(g, &mask, "mask", 4, mask_dim);
  gc_shape(g, &gy, "grad_output", 4, y_dim);
  ii_ctx *c = gc_ctx(g, false, 0);
  ii_tensor *tx = gc_tensor(g, c, 4, x.dim, x.v, true);
  ii_tensor *to = gc_tensor(g, c, 4, offset.dim, offset.v, true);
  ii_tensor *tm = gc_tensor(g, c, 4, mask.dim, mask.v, true);
  ii_tensor *y = ii_dcnv3(c, tx, ii_concat(c, to, tm), &o.geometry);
  compare_with(g, c, y, group, "output", &o);
  gc_backward_from(g, c, y, gy.v);
  compare_with(g, c, tx->grad, group, "grad_input", &o);
  compare_with(g, c, to->grad, group, "grad_offset", &o);
  compare_with(g, c, tm->grad, group, "grad_mask", &o);
  ii_ctx_close(c);
}

void gc_check_dcnv4_op(gc *g, hid_t group, const char *name) {
  gc_only(g, group, "input offset_mask grad_output output grad_input grad_offset_mask");
  gc_array x = gc_read(g, group, "input"), packed = gc_read(g, group, "offset_mask");
  gc_array gy = gc_read(g, group, "grad_output");
  op_case o = read_case(g, group, &x);
  const int64_t used = o.geometry.groups * o.taps * 3, width = (used + 7) / 8 * 8;
  const int64_t packed_dim[4] = {o.N, o.Ho, o.Wo, width}, y_dim[4] = {o.N, o.Ho, o.Wo, o.C};
  gc_shape(g, &packed, "offset_mask", 4, packed_dim);
  gc_shape(g, &gy, "grad_output", 4, y_dim);
  ii_ctx *c = gc_ctx(g, false, 0);
  ii_tensor *tx = gc_tensor(g, c, 4, x.dim, x.v, true);
  ii_tensor *tp = gc_tensor(g, c, 4, packed.dim, packed.v, true);
  ii_tensor *y = ii_dcnv4(c, tx, tp, &o.geometry);
  compare_with(g, c, y, group, "output", &o);
  gc_backward_from(g, c, y, gy.v);
  compare_with(g, c, tx->grad, group, "grad_input", &o);
  compare_with(g, c, tp->grad, group, "grad_offset_mask", &o);
  const double *gp = gc_values(g, c, tp->grad, "grad_offset_mask");
  double tail = 0;
  for (int64_t i = 0; i < packed.n; i++)
    if (i % width >= used) tail = tail > 0 || gp[i] == 0 ? tail : 1;
  gc_expect(g, tail == 0, "gradient of the padding is zero");
  ii_ctx_close(c);
}

/* ---- modules ---- */

static ii_dcn_options read_options(gc *g, hid_t group) {
  const char *act = gc_text(g, group, "act_layer"), *norm = gc_text(g, group, "norm_layer");
  if ((*act && strcmp(act, "GELU") != 0) || (*norm && strcmp(norm, "LN") != 0))
    gc_die(g, "act_layer %s, norm_layer %s: only GELU and LN are known", act, norm);
  return (ii_dcn_options){.channels = gc_integer(g, group, "channels", 1, 1 << 16),
                          .groups = (int)gc_integer(g, group, "group", 1, 1 << 16),
                          .kernel_size = (int)gc_integer(g, group, "kernel_size", 1, 99),
                          .stride = (int)gc_integer(g, group, "stride", 1, 1),
                          .pad = (int)gc_integer(g, group, "pad", 0, 99),
                          .dilation = (int)gc_integer(g, group, "dilation", 1, 99),
                          .dw_kernel_size = (int)gc_number_or(g, group, "dw_kernel_size", 0),
                          .offset_scale = gc_number(g, group, "offset_scale"),
                          .center_feature_scale =
                              gc_integer(g, group, "center_feature_scale", 0, 1) != 0,
                          .remove_center = gc_integer(g, group, "remove_center", 0, 1) != 0,
                          .output_bias = gc_number_or(g, group, "output_bias", 1) != 0,
                          .without_pointwise = gc_number_or(g, group, "without_pointwise", 0) != 0};
}

void gc_check_module(gc *g, hid_t group, const char *name) {
  gc_only(g, group, "input params grad_output output grad_input grads");
  const ii_dcn_options o = read_options(g, group);
  const bool v4 = strcmp(gc_text(g, group, "official_class"), "DCNv4") == 0;
  const int64_t dim[4] = {gc_integer(g, group, "batch", 1, 1 << 16),
                          gc_integer(g, group, "height", 1, 1 << 12),
                          gc_integer(g, group, "width", 1, 1 << 12), o.channels};
  gc_array x = gc_read(g, group, "input"), gy = gc_read(g, group, "grad_output");
  const int64_t flat[3] = {dim[0], dim[1] * dim[2], dim[3]};
  gc_shape(g, &x, "input", v4 ? 3 : 4, v4 ? flat : dim);
  gc_shape(g, &gy, "grad_output", v4 ? 3 : 4, v4 ? flat : dim);
  hid_t grads = gc_open_group(g, group, "grads");
  ii_ctx *c = gc_ctx(g, false, 0);
  ii_params p;
  ii_init_list inits = {0};
  ii_params_init(&p, c);
  const ii_builder b = {.params = &p, .inits = &inits};
  ii_dcnv3_layer v3_layer = {0};
  ii_dcnv4_layer v4_layer = {0};
  if (v4)
    v4_layer = ii_dcnv4_build(&b, &o);
  else
    v3_layer = ii_dcnv3_build(&b, &o);
  gc_ctx_ok(g, c);
  if (gc_load(g, &p, group, false, "")) {
    ii_tensor *u = gc_tensor(g, c, 4, dim, x.v, true);
    ii_tensor *y = v4 ? ii_dcnv4_forward(c, &v4_layer, u) : ii_dcnv3_forward(c, &v3_layer, u);
    gc_compare_tensor(g, c, y, group, "output", MODULE_F32, MODULE_F64);
    gc_backward_from(g, c, y, gy.v);
    gc_compare_tensor(g, c, u->grad, group, "grad_input", 2 * MODULE_F32, MODULE_F64);
    const gc_grad_bounds bounds = {{2 * MODULE_F32, MODULE_F64}, {2 * MODULE_F32, MODULE_F64}};
    gc_compare_grads(g, &p, grads, "", &bounds);
  }
  ii_params_destroy(&p);
  free(inits.at);
  ii_ctx_close(c);
  H5Gclose(grads);
}
