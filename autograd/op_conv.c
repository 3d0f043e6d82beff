/* Dense and depthwise convolution, pixel shuffle, 2-D pooling. */
#include "autograd/op_common.h"

static void want_bias(const ii_tensor *b, int64_t n) {
  II_ASSERT(!b || ii_numel(b) == n, "bias of %lld for %lld channels", (long long)ii_numel(b),
            (long long)n);
}

static void want_image(const ii_tensor *x) {
  II_ASSERT(x->ndim == 4, "an image needs 4 dimensions N,H,W,C, not %d", x->ndim);
}

ii_tensor *ii_conv2d(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b, int stride, int pad) {
  want_image(x);
  II_ASSERT(w->ndim == 4 && w->shape[1] == x->shape[3], "x has %lld channels, w %lld",
            (long long)x->shape[3], (long long)w->shape[1]);
  II_ASSERT(stride > 0 && pad >= 0, "stride %d, padding %d", stride, pad);
  want_bias(b, w->shape[0]);
  x = ii_cast(c, x, c->compute);
  ii_conv2d_args a = {.real = c->real,
                      .x_dtype = c->compute,
                      .N = x->shape[0],
                      .H = x->shape[1],
                      .W = x->shape[2],
                      .C = x->shape[3],
                      .O = w->shape[0],
                      .kh = (int)w->shape[2],
                      .kw = (int)w->shape[3],
                      .stride = stride,
                      .pad = pad,
                      .x = ii_data(x),
                      .w = ii_weight(w, c->compute),
                      .b = ii_data(b)};
  II_ASSERT(a.H + 2 * pad >= a.kh && a.W + 2 * pad >= a.kw, "kernel %dx%d on an image of %lldx%lld",
            a.kh, a.kw, (long long)a.H, (long long)a.W);
  a.Ho = (a.H + 2 * pad - a.kh) / stride + 1;
  a.Wo = (a.W + 2 * pad - a.kw) / stride + 1;
  ii_tensor *y = ii_tensor_new(c, c->compute, 4, (int64_t[]){a.N, a.Ho, a.Wo, a.O});
  a.y = ii_data(y);
  ii_count_macs(c, a.N * a.Ho * a.Wo * a.O * a.C * a.kh * a.kw);
  ii_run_conv2d_fwd(c, &a);
  ii_tape_record(c, II_OP_conv2d, y, (ii_tensor *[]){x, w, b}, 3, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_conv2d(ii_ctx *c, ii_node *n) {
  ii_conv2d_args a = *(ii_conv2d_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.gw = ii_grad_target(c, n->in[1], &a.acc_gw);
  a.gb = ii_grad_target(c, n->in[2], &a.acc_gb);
  ii_run_conv2d_bwd(c, &a);
}

ii_tensor *ii_dwconv2d(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b) {
  want_image(x);
  II_ASSERT(w->ndim == 4 && w->shape[0] == x->shape[3] && w->shape[1] == 1 &&
                w->shape[2] == w->shape[3] && w->shape[2] % 2 == 1,
            "x has %lld channels, w is %lld,%lld,%lld,%lld", (long long)x->shape[3],
            (long long)w->shape[0], (long long)w->shape[1], (long long)w->shape[2],
            (long long)w->shape[3]);
  want_bias(b, w->shape[0]);
  x = ii_cast(c, x, c->compute);
  ii_tensor *y = ii_like(c, x, c->compute, ii_last(x));
  ii_dwconv2d_args a = {.real = c->real,
                        .x_dtype = c->compute,
                        .N = x->shape[0],
                        .H = x->shape[1],
                        .W = x->shape[2],
                        .C = x->shape[3],
                        .k = (int)w->shape[2],
                        .x = ii_data(x),
                        .w = ii_data(w),
                        .b = ii_data(b),
                        .y = ii_data(y)};
  ii_count_macs(c, ii_numel(x) * a.k * a.k);
  ii_run_dwconv2d_fwd(c, &a);
  ii_tape_record(c, II_OP_dwconv2d, y, (ii_tensor *[]){x, w, b}, 3, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_dwconv2d(ii_ctx *c, ii_node *n) {
  ii_dwconv2d_args a = *(ii_dwconv2d_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.gw = ii_grad_target(c, n->in[1], &a.acc_gw);
  a.gb = ii_grad_target(c, n->in[2], &a.acc_gb);
  ii_run_dwconv2d_bwd(c, &a);
}

ii_tensor *ii_pixel_shuffle(ii_ctx *c, ii_tensor *x, int r) {
  want_image(x);
  II_ASSERT(r > 0 && x->shape[3] % (r * r) == 0, "%lld channels do not divide into %d*%d",
            (long long)x->shape[3], r, r);
  ii_pixel_shuffle_args a = {.real = c->real,
                             .x_dtype = x->dtype,
                             .N = x->shape[0],
                             .H = x->shape[1],
                             .W = x->shape[2],
                             .C = x->shape[3] / (r * r),
                             .r = r,
                             .x = ii_data(x)};
  ii_tensor *y = ii_tensor_new(c, x->dtype, 4, (int64_t[]){a.N, a.H * r, a.W * r, a.C});
  a.y = ii_data(y);
  ii_run_pixel_shuffle_fwd(c, &a);
  ii_tape_record(c, II_OP_pixel_shuffle, y, &x, 1, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_pixel_shuffle(ii_ctx *c, ii_node *n) {
  ii_pixel_shuffle_args a = *(ii_pixel_shuffle_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  ii_run_pixel_shuffle_bwd(c, &a);
}

static ii_pool2d_args pool_args(ii_ctx *c, ii_tensor *x, int k, int stride, int pad) {
  want_image(x);
  II_ASSERT(k > 0 && stride > 0 && 2 * pad <= k, "window %d, stride %d, padding %d", k, stride,
            pad);
  ii_pool2d_args a = {.real = c->real,
                      .x_dtype = x->dtype,
                      .N = x->shape[0],
                      .H = x->shape[1],
                      .W = x->shape[2],
                      .C = x->shape[3],
                      .k = k,
                      .stride = stride,
                      .pad = pad,
                      .x = ii_data(x)};
  II_ASSERT(a.H + 2 * pad >= k && a.W + 2 * pad >= k, "window %d on an image of %lldx%lld", k,
            (long long)a.H, (long long)a.W);
  a.Ho = (a.H + 2 * pad - k) / stride + 1;
  a.Wo = (a.W + 2 * pad - k) / stride + 1;
  return a;
}

ii_tensor *ii_avg_pool2d(ii_ctx *c, ii_tensor *x, int k, int stride, int pad) {
  ii_pool2d_args a = pool_args(c, x, k, stride, pad);
  ii_tensor *y = ii_tensor_new(c, x->dtype, 4, (int64_t[]){a.N, a.Ho, a.Wo, a.C});
  a.y = ii_data(y);
  ii_run_avg_pool2d_fwd(c, &a);
  ii_tape_record(c, II_OP_avg_pool2d, y, &x, 1, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_avg_pool2d(ii_ctx *c, ii_node *n) {
  ii_pool2d_args a = *(ii_pool2d_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  ii_run_avg_pool2d_bwd(c, &a);
}

ii_tensor *ii_max_pool2d(ii_ctx *c, ii_tensor *x, int k, int stride, int pad) {
  ii_pool2d_args a = pool_args(c, x, k, stride, pad);
  const int64_t shape[4] = {a.N, a.Ho, a.Wo, a.C};
  ii_tensor *y = ii_tensor_new(c, x->dtype, 4, shape);
  ii_tensor *argmax = ii_tensor_new(c, II_I32, 4, shape);
  a.y = ii_data(y);
  a.argmax = ii_data(argmax);
  ii_run_max_pool2d_fwd(c, &a);
  ii_tape_record(c, II_OP_max_pool2d, y, &x, 1, &argmax, 1, &a, sizeof a);
  return y;
}

void ii_backward_max_pool2d(ii_ctx *c, ii_node *n) {
  ii_pool2d_args a = *(ii_pool2d_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  ii_run_max_pool2d_bwd(c, &a);
}
