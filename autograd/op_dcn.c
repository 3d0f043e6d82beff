/* DCNv3 and DCNv4: one kernel. Offsets and modulations are columns of one matrix, in two layouts,
 * and in DCNv4's joint form the values are columns of it too. */
#include "autograd/op_common.h"

/* x: its first C columns are the values. */
static ii_dcn_args dcn_args(ii_ctx *c, ii_tensor *x, int64_t C, const ii_dcn_geometry *g) {
  II_ASSERT(x->ndim == 4 && g->groups > 0 && C % g->groups == 0 && C <= ii_last(x),
            "%d dimensions, %lld of %lld channels, %d groups", x->ndim, (long long)C,
            (long long)ii_last(x), g->groups);
  int extent_h = g->dilation_h * (g->kernel_h - 1) + 1;
  int extent_w = g->dilation_w * (g->kernel_w - 1) + 1;
  ii_dcn_args a = {.real = c->real,
                   .x_dtype = x->dtype,
                   .N = x->shape[0],
                   .H = x->shape[1],
                   .W = x->shape[2],
                   .C = C,
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

/* What is kept for backward beside the kernel's arguments: where the offsets begin in their rows,
 * the modulations behind them, and what is not used at a row's end. */
typedef struct {
  ii_dcn_args a;
  int64_t offset, mask, tail;
} dcn_node;

static void *at(const void *p, int64_t elements, ii_dtype t) {
  return p ? (char *)(uintptr_t)p + (size_t)elements * ii_dtype_size(t) : NULL;
}

/* om: the tensor of the offsets, which begin at column `first` and go by group (v4), or are
 * followed by the modulations of all groups (v3). */
static dcn_node layout(ii_dcn_args a, const ii_tensor *om, int64_t first, bool by_group) {
  const int64_t taps = ii_dcn_taps(a.kh, a.kw, a.remove_center), row = ii_last(om);
  II_ASSERT(ii_rows(om) == a.N * a.Ho * a.Wo && row >= first + 3 * a.G * taps,
            "offsets and modulations have %lld rows of %lld, the output %lld rows and %lld needed",
            (long long)ii_rows(om), (long long)row, (long long)(a.N * a.Ho * a.Wo),
            (long long)(first + 3 * a.G * taps));
  dcn_node n = {.offset = first, .tail = row - first - 3 * a.G * taps};
  n.mask = by_group ? 2 * taps : 2 * taps * a.G;
  a.om_dtype = om->dtype;
  a.offset = at(ii_data(om), n.offset, om->dtype);
  a.mask = at(a.offset, n.mask, om->dtype);
  a.offset_row = a.mask_row = row;
  a.offset_group = by_group ? 3 * taps : 2 * taps;
  a.mask_group = by_group ? 3 * taps : taps;
  n.a = a;
  return n;
}

static ii_tensor *dcn_forward(ii_ctx *c, ii_op op, dcn_node n, ii_tensor *x, ii_tensor *om) {
  ii_dcn_args *a = &n.a;
  ii_tensor *y = ii_tensor_new(c, a->x_dtype, 4, (int64_t[]){a->N, a->Ho, a->Wo, a->C});
  a->y = ii_data(y);
  int64_t taps = ii_dcn_taps(a->kh, a->kw, a->remove_center);
  if (!c->recomputing) c->dcn_macs += 5 * a->N * a->Ho * a->Wo * taps * a->C;
  ii_run_dcn_fwd(c, a);
  ii_tape_record(c, op, y, (ii_tensor *[]){x, om}, 2, NULL, 0, &n, sizeof n);
  return y;
}

ii_tensor *ii_dcnv3(ii_ctx *c, ii_tensor *x, ii_tensor *offset_mask, const ii_dcn_geometry *g) {
  x = ii_cast(c, x, c->compute);
  offset_mask = ii_cast(c, offset_mask, c->compute);
  ii_dcn_args a = dcn_args(c, x, ii_last(x), g);
  return dcn_forward(c, II_OP_dcnv3, layout(a, offset_mask, 0, false), x, offset_mask);
}

ii_tensor *ii_dcnv4(ii_ctx *c, ii_tensor *x, ii_tensor *offset_mask, const ii_dcn_geometry *g) {
  x = ii_cast(c, x, c->compute);
  offset_mask = ii_cast(c, offset_mask, c->compute);
  ii_dcn_args a = dcn_args(c, x, ii_last(x), g);
  return dcn_forward(c, II_OP_dcnv4, layout(a, offset_mask, 0, true), x, offset_mask);
}

ii_tensor *ii_dcnv4_joint(ii_ctx *c, ii_tensor *x, int64_t channels, const ii_dcn_geometry *g) {
  x = ii_cast(c, x, c->compute);
  ii_dcn_args a = dcn_args(c, x, channels, g);
  return dcn_forward(c, II_OP_dcnv4, layout(a, x, channels, true), x, NULL);
}

/* Where the gradients of offsets and modulations go: into g, whose unused columns become zero. */
static void place_gradients(ii_ctx *c, dcn_node *n, void *g, bool acc) {
  ii_dcn_args *a = &n->a;
  a->goffset = at(g, n->offset, a->om_dtype);
  a->gmask = at(a->goffset, n->mask, a->om_dtype);
  a->acc_goffset = a->acc_gmask = acc;
  if (!g || acc || !n->tail) return;
  ii_run_fill(c, &(ii_fill_args){.real = c->real,
                                 .y_dtype = a->om_dtype,
                                 .rows = a->N * a->Ho * a->Wo,
                                 .n = n->tail,
                                 .y_stride = a->offset_row,
                                 .y = at(g, a->offset_row - n->tail, a->om_dtype)});
}

void ii_backward_dcnv3(ii_ctx *c, ii_node *node) {
  dcn_node n = *(dcn_node *)node->args;
  bool acc;
  void *g = ii_grad_target(c, node->in[1], &acc);
  place_gradients(c, &n, g, acc);
  n.a.gy = ii_data(node->out->grad);
  n.a.gx = ii_grad_target(c, node->in[0], &n.a.acc_gx);
  ii_run_dcn_bwd(c, &n.a);
}

void ii_backward_dcnv4(ii_ctx *c, ii_node *node) {
  if (node->in[1]) {
    ii_backward_dcnv3(c, node);
    return;
  }
  dcn_node n = *(dcn_node *)node->args;
  n.a.gy = ii_data(node->out->grad);
  n.a.gx = ii_grad_target(c, node->in[0], &n.a.acc_gx);
  place_gradients(c, &n, n.a.gx, n.a.acc_gx);
  ii_run_dcn_bwd(c, &n.a);
}
