/* Pooling over positions, transpose, reshape. */
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

void ii_backward_reshape(ii_ctx *c, ii_node *n) { ii_grad_pass(c, n->in[0], n->out->grad); }
