/* Pooling over positions, transpose, slice, concat, reshape. */
#include "autograd/op_common.h"
#include "autograd/tensor_priv.h"
#include <string.h>

ii_tensor *ii_mean_pool(ii_ctx *c, ii_tensor *x) {
  II_ASSERT(x->ndim >= 3, "%d dimensions", x->ndim);
  ii_mean_pool_args a = {.real = c->real,
                         .x_dtype = x->dtype,
                         .y_dtype = x->dtype,
                         .N = x->shape[0],
                         .P = 1,
                         .C = ii_last(x),
                         .x = ii_data(x)};
  for (int i = 1; i < x->ndim - 1; i++) a.P *= x->shape[i];
  ii_tensor *y = ii_tensor_new(c, x->dtype, 2, (int64_t[]){a.N, a.C});
  a.y = ii_data(y);
  ii_run_mean_pool_fwd(c, &a);
  ii_tape_record(c, II_OP_mean_pool, y, &x, 1, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_mean_pool(ii_ctx *c, ii_node *n) {
  ii_mean_pool_args a = *(ii_mean_pool_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  ii_run_mean_pool_bwd(c, &a);
}

ii_tensor *ii_transpose(ii_ctx *c, ii_tensor *x) {
  II_ASSERT(x->ndim == 4, "%d dimensions", x->ndim);
  const int64_t *s = x->shape;
  ii_tensor *y = ii_tensor_new(c, x->dtype, 4, (int64_t[]){s[0], s[2], s[1], s[3]});
  ii_transpose_args a = {.real = c->real,
                         .x_dtype = x->dtype,
                         .A = s[0],
                         .B = s[1],
                         .C = s[2],
                         .D = s[3],
                         .x = ii_data(x),
                         .y = ii_data(y)};
  ii_run_transpose(c, &a);
  ii_tape_record(c, II_OP_transpose, y, &x, 1, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_transpose(ii_ctx *c, ii_node *n) {
  ii_transpose_args a = *(ii_transpose_args *)n->args, b = a;
  b.B = a.C;
  b.C = a.B;
  b.x = ii_data(n->out->grad);
  b.y = ii_grad_target(c, n->in[0], &b.accumulate);
  if (b.y) ii_run_transpose(c, &b);
}

/* Copies columns [x_from, +n) of x into columns [y_from, +n) of y. */
static void copy_columns(ii_ctx *c, const ii_tensor *x, int64_t x_from, void *y, int64_t y_last,
                         int64_t y_from, int64_t n, bool accumulate) {
  size_t size = ii_dtype_size(x->dtype);
  const char *from = ii_data(x);
  if (!from || !y) return;
  ii_run_copy2d(c, &(ii_copy2d_args){.real = c->real,
                                     .x_dtype = x->dtype,
                                     .rows = ii_rows(x),
                                     .n = n,
                                     .x_stride = ii_last(x),
                                     .y_stride = y_last,
                                     .x = from + (size_t)x_from * size,
                                     .y = (char *)y + (size_t)y_from * size,
                                     .accumulate = accumulate});
}

ii_tensor *ii_slice(ii_ctx *c, ii_tensor *x, int64_t from, int64_t n) {
  II_ASSERT(from >= 0 && n >= 0 && from + n <= ii_last(x), "columns %lld + %lld of %lld",
            (long long)from, (long long)n, (long long)ii_last(x));
  ii_tensor *y = ii_like(c, x, x->dtype, n);
  copy_columns(c, x, from, ii_data(y), n, 0, n, false);
  ii_tape_record(c, II_OP_slice, y, &x, 1, NULL, 0, &from, sizeof from);
  return y;
}

void ii_backward_slice(ii_ctx *c, ii_node *n) {
  ii_tensor *x = n->in[0];
  bool acc;
  void *gx = ii_grad_target(c, x, &acc);
  if (gx && !acc)
    ii_run_fill(c, &(ii_fill_args){
                       .real = c->real, .y_dtype = x->dtype, .rows = 1, .n = ii_numel(x), .y = gx});
  copy_columns(c, n->out->grad, 0, gx, ii_last(x), *(int64_t *)n->args, ii_last(n->out), true);
}

ii_tensor *ii_concat(ii_ctx *c, ii_tensor *a, ii_tensor *b) {
  II_ASSERT(a->dtype == b->dtype && ii_rows(a) == ii_rows(b), "%lld rows of %s, %lld of %s",
            (long long)ii_rows(a), ii_dtype_name(a->dtype), (long long)ii_rows(b),
            ii_dtype_name(b->dtype));
  int64_t na = ii_last(a), nb = ii_last(b);
  ii_tensor *y = ii_like(c, a, a->dtype, na + nb);
  copy_columns(c, a, 0, ii_data(y), na + nb, 0, na, false);
  copy_columns(c, b, 0, ii_data(y), na + nb, na, nb, false);
  ii_tape_record(c, II_OP_concat, y, (ii_tensor *[]){a, b}, 2, NULL, 0, NULL, 0);
  return y;
}

void ii_backward_concat(ii_ctx *c, ii_node *n) {
  int64_t from = 0;
  for (int i = 0; i < 2; i++) {
    int64_t last = ii_last(n->in[i]);
    bool acc;
    void *g = ii_grad_target(c, n->in[i], &acc);
    copy_columns(c, n->out->grad, from, g, last, 0, last, acc);
    from += last;
  }
}

ii_tensor *ii_reshape(ii_ctx *c, ii_tensor *x, int ndim, const int64_t *shape) {
  int64_t full[II_MAX_DIMS], known = 1;
  II_ASSERT(ndim <= II_MAX_DIMS, "%d dimensions", ndim);
  for (int i = 0; i < ndim; i++) known *= shape[i] < 0 ? 1 : shape[i];
  for (int i = 0; i < ndim; i++)
    full[i] = shape[i] < 0 ? (known ? ii_numel(x) / known : 0) : shape[i];
  ii_tensor *y = ii_tensor_view(c, x, ndim, full);
  ii_tape_record(c, II_OP_reshape, y, &x, 1, NULL, 0, NULL, 0);
  return y;
}

void ii_backward_reshape(ii_ctx *c, ii_node *n) {
  ii_grad_pass(c, n->in[0], n->out->grad);
}
