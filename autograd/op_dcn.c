/* DCNv3 and DCNv4: one kernel, two layouts of offsets and modulations. */
#include "autograd/op_common.h"

static ii_dcn_args dcn_args(ii_ctx *c, ii_tensor *x, const ii_dcn_geometry *g) {
  II_ASSERT(x->ndim == 4 && g->groups > 0 && x->shape[3] % g->groups == 0,
            "%d dimensions, %lld channels, %d groups", x->ndim, (long long)ii_last(x), g->groups);
  int extent_h = g->dilation_h * (g->kernel_h - 1) + 1;
  int extent_w = g->dilation_w * (g->kernel_w - 1) + 1;
  ii_dcn_args a = {.real = c->real,
                   .x_dtype = x->dtype,
                   .N = x->shape[0],
                   .H = x->shape[1],
                   .W = x->shape[2],
                   .C = x->shape[3],
                   .x_row = x->shape[3],
                   .G = g->groups,
                   .kh = g->kernel_h,
                   .kw = g->kernel_w,
                   .stride_h = g->stride_h,
                   .stride_w = g->stride_w,
                   .pad_h = g->pad_h,
                   .pad_w = g->pad_w,
                   .dil_h = g->dilation_h,
                   .dil_w = g->dilation_w,
                   .remove_center = g->remove_center,
                   .softmax = g->softmax,
                   .offset_scale = g->offset_scale,
                   .x = ii_data(x)};
  II_ASSERT(a.stride_h > 0 && a.stride_w > 0, "strides %d, %d", a.stride_h, a.stride_w);
  II_ASSERT(a.H + 2 * a.pad_h >= extent_h && a.W + 2 * a.pad_w >= extent_w,
            "window %dx%d on an image of %lldx%lld", extent_h, extent_w, (long long)a.H,
            (long long)a.W);
  a.Ho = (a.H + 2 * a.pad_h - extent_h) / a.stride_h + 1;
  a.Wo = (a.W + 2 * a.pad_w - extent_w) / a.stride_w + 1;
  return a;
}

static ii_tensor *dcn_forward(ii_ctx *c, ii_dcn_args *a) {
  ii_tensor *y = ii_tensor_new(c, a->x_dtype, 4, (int64_t[]){a->N, a->Ho, a->Wo, a->C});
  a->y = ii_data(y);
  int64_t taps = ii_dcn_taps(a->kh, a->kw, a->remove_center);
  if (!c->recomputing) c->dcn_macs += 5 * a->N * a->Ho * a->Wo * taps * a->C;
  ii_run_dcn_fwd(c, a);
  return y;
}

static void want_rows(const ii_tensor *t, const ii_dcn_args *a, int64_t last, const char *what) {
  II_ASSERT(ii_rows(t) == a->N * a->Ho * a->Wo && ii_last(t) == last,
            "%s has %lld rows of %lld, the output %lld rows and %lld needed", what,
            (long long)ii_rows(t), (long long)ii_last(t), (long long)(a->N * a->Ho * a->Wo),
            (long long)last);
}

ii_tensor *ii_dcnv3(ii_ctx *c, ii_tensor *x, ii_tensor *offset, ii_tensor *mask,
                    const ii_dcn_geometry *g) {
  x = ii_cast(c, x, c->compute);
  offset = ii_cast(c, offset, c->compute);
  mask = ii_cast(c, mask, c->compute);
  ii_dcn_args a = dcn_args(c, x, g);
  int64_t taps = ii_dcn_taps(a.kh, a.kw, a.remove_center);
  want_rows(offset, &a, a.G * taps * 2, "offset");
  want_rows(mask, &a, a.G * taps, "mask");
  a.om_dtype = offset->dtype;
  a.offset = ii_data(offset);
  a.mask = ii_data(mask);
  a.offset_row = ii_last(offset);
  a.offset_group = taps * 2;
  a.mask_row = ii_last(mask);
  a.mask_group = taps;
  ii_tensor *y = dcn_forward(c, &a);
  ii_tape_record(c, II_OP_dcnv3, y, (ii_tensor *[]){x, offset, mask}, 3, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_dcnv3(ii_ctx *c, ii_node *n) {
  ii_dcn_args a = *(ii_dcn_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.goffset = ii_grad_target(c, n->in[1], &a.acc_goffset);
  a.gmask = ii_grad_target(c, n->in[2], &a.acc_gmask);
  ii_run_dcn_bwd(c, &a);
}

ii_tensor *ii_dcnv4(ii_ctx *c, ii_tensor *x, ii_tensor *offset_mask, const ii_dcn_geometry *g) {
  x = ii_cast(c, x, c->compute);
  offset_mask = ii_cast(c, offset_mask, c->compute);
  ii_dcn_args a = dcn_args(c, x, g);
  int64_t taps = ii_dcn_taps(a.kh, a.kw, a.remove_center);
  II_ASSERT(ii_last(offset_mask) >= a.G * taps * 3, "rows of %lld, %lld needed",
            (long long)ii_last(offset_mask), (long long)(a.G * taps * 3));
  want_rows(offset_mask, &a, ii_last(offset_mask), "offset_mask");
  a.om_dtype = offset_mask->dtype;
  a.offset = ii_data(offset_mask);
  size_t skip = (size_t)(2 * taps) * ii_dtype_size(a.om_dtype);
  a.mask = a.offset ? (const char *)a.offset + skip : NULL;
  a.offset_row = a.mask_row = ii_last(offset_mask);
  a.offset_group = a.mask_group = taps * 3;
  ii_tensor *y = dcn_forward(c, &a);
  ii_tape_record(c, II_OP_dcnv4, y, (ii_tensor *[]){x, offset_mask}, 2, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_dcnv4(ii_ctx *c, ii_node *n) {
  ii_dcn_args a = *(ii_dcn_args *)n->args;
  ii_tensor *om = n->in[1];
  int64_t taps = ii_dcn_taps(a.kh, a.kw, a.remove_center);
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.goffset = ii_grad_target(c, om, &a.acc_goffset);
  a.acc_gmask = a.acc_goffset;
  if (a.goffset) {
    a.gmask = (char *)a.goffset + (size_t)(2 * taps) * ii_dtype_size(a.om_dtype);
    bool padded = ii_last(om) > a.G * taps * 3;
    if (padded && !a.acc_goffset)
      ii_run_fill(c, &(ii_fill_args){
                         .real = c->real, .y_dtype = om->dtype, .n = ii_numel(om), .y = a.goffset});
  }
  ii_run_dcn_bwd(c, &a);
}
