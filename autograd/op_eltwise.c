/* Element-wise functions, addition, residual, group mix, cast. */
#include "autograd/op_common.h"
#include <string.h>

static ii_eltwise_args eltwise_args(ii_ctx *c, ii_tensor *x, ii_tensor *y) {
  return (ii_eltwise_args){.real = c->real,
                           .x_dtype = x->dtype,
                           .y_dtype = y->dtype,
                           .n = ii_numel(x),
                           .x = ii_data(x),
                           .y = ii_data(y)};
}

#define II_ELTWISE(name)                                                                           \
  ii_tensor *ii_##name(ii_ctx *c, ii_tensor *x) {                                                  \
    ii_tensor *y = ii_tensor_new(c, x->dtype, x->ndim, x->shape);                                  \
    ii_eltwise_args a = eltwise_args(c, x, y);                                                     \
    ii_run_##name##_fwd(c, &a);                                                                    \
    ii_tape_record(c, II_OP_##name, y, &x, 1, NULL, 0, &a, sizeof a);                              \
    return y;                                                                                      \
  }                                                                                                \
  void ii_backward_##name(ii_ctx *c, ii_node *n) {                                                 \
    ii_eltwise_args a = *(ii_eltwise_args *)n->args;                                               \
    a.gy = ii_data(n->out->grad);                                                                  \
    a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);                                                 \
    ii_run_##name##_bwd(c, &a);                                                                    \
  }
II_ELTWISE(gelu)
II_ELTWISE(relu)
II_ELTWISE(silu)
II_ELTWISE(sigmoid)

static void want_same_shape(const ii_tensor *a, const ii_tensor *b) {
  bool same = a->ndim == b->ndim && !memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape);
  II_ASSERT(same, "shapes differ: %d dimensions with %lld elements, %d with %lld", a->ndim,
            (long long)ii_numel(a), b->ndim, (long long)ii_numel(b));
}

ii_tensor *ii_add(ii_ctx *c, ii_tensor *x, ii_tensor *z) {
  want_same_shape(x, z);
  II_ASSERT(x->dtype == z->dtype, "%s + %s", ii_dtype_name(x->dtype), ii_dtype_name(z->dtype));
  ii_tensor *y = ii_tensor_new(c, x->dtype, x->ndim, x->shape);
  ii_run_add_fwd(c, &(ii_add_args){.real = c->real,
                                   .x_dtype = x->dtype,
                                   .n = ii_numel(x),
                                   .a = ii_data(x),
                                   .b = ii_data(z),
                                   .c = ii_data(y)});
  ii_tape_record(c, II_OP_add, y, (ii_tensor *[]){x, z}, 2, NULL, 0, NULL, 0);
  return y;
}

void ii_backward_add(ii_ctx *c, ii_node *n) {
  ii_grad_pass(c, n->in[0], n->out->grad);
  ii_grad_pass(c, n->in[1], n->out->grad);
}

ii_tensor *ii_residual(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *gamma, ii_tensor *keep) {
  want_same_shape(x, f);
  int64_t N = x->shape[0], C = ii_last(x);
  II_ASSERT(!gamma || ii_numel(gamma) == C, "gamma for %lld channels", (long long)C);
  II_ASSERT(!keep || ii_numel(keep) == N, "keep for %lld samples", (long long)N);
  ii_tensor *y = ii_tensor_new(c, x->dtype, x->ndim, x->shape);
  ii_residual_args a = {.real = c->real,
                        .x_dtype = x->dtype,
                        .f_dtype = f->dtype,
                        .N = N,
                        .rows = N && C ? ii_numel(x) / (N * C) : 0,
                        .C = C,
                        .x = ii_data(x),
                        .f = ii_data(f),
                        .gamma = ii_data(gamma),
                        .keep = ii_data(keep),
                        .y = ii_data(y)};
  ii_run_residual_fwd(c, &a);
  ii_node *n = ii_tape_record(c, II_OP_residual, y, (ii_tensor *[]){x, f, gamma, keep}, 4, NULL, 0,
                              &a, sizeof a);
  /* f is read in backward for the gradient of gamma only */
  if (n && f->mem && !(gamma && gamma->needs_grad)) {
    n->saved &= ~S_IN(1);
    ii_block_release(f->mem);
  }
  return y;
}

void ii_backward_residual(ii_ctx *c, ii_node *n) {
  ii_residual_args a = *(ii_residual_args *)n->args;
  ii_tensor *x = n->in[0], *f = n->in[1], *g = n->out->grad;
  /* asks the tensors, not the data: a plan has no data and must take the same path */
  if (!n->in[2] && !n->in[3] && x->dtype == f->dtype) {
    ii_grad_pass(c, f, g);
  } else {
    a.gy = ii_data(g);
    a.gf = ii_grad_target(c, f, &a.acc_gf);
    a.ggamma = ii_grad_target(c, n->in[2], &a.acc_ggamma);
    ii_run_residual_bwd(c, &a);
  }
  ii_grad_pass(c, x, g);
}

ii_tensor *ii_group_mix(ii_ctx *c, ii_tensor *x, ii_tensor *v, ii_tensor *s) {
  want_same_shape(x, v);
  II_ASSERT(x->dtype == v->dtype && ii_last(x) % ii_last(s) == 0 && ii_rows(s) == ii_rows(x),
            "%lld channels in %lld groups", (long long)ii_last(x), (long long)ii_last(s));
  ii_tensor *y = ii_tensor_new(c, x->dtype, x->ndim, x->shape);
  ii_group_mix_args a = {.real = c->real,
                         .x_dtype = x->dtype,
                         .s_dtype = s->dtype,
                         .rows = ii_rows(x),
                         .G = ii_last(s),
                         .D = ii_last(x) / ii_last(s),
                         .a = ii_data(x),
                         .v = ii_data(v),
                         .s = ii_data(s),
                         .y = ii_data(y)};
  ii_run_group_mix_fwd(c, &a);
  ii_tape_record(c, II_OP_group_mix, y, (ii_tensor *[]){x, v, s}, 3, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_group_mix(ii_ctx *c, ii_node *n) {
  ii_group_mix_args a = *(ii_group_mix_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.ga = ii_grad_target(c, n->in[0], &a.acc_ga);
  a.gv = ii_grad_target(c, n->in[1], &a.acc_gv);
  a.gs = ii_grad_target(c, n->in[2], &a.acc_gs);
  ii_run_group_mix_bwd(c, &a);
}

ii_tensor *ii_cast(ii_ctx *c, ii_tensor *x, ii_dtype to) {
  if (x->dtype == to) return x;
  ii_tensor *y = ii_tensor_new(c, to, x->ndim, x->shape);
  ii_cast_args a = {.real = c->real,
                    .x_dtype = x->dtype,
                    .y_dtype = to,
                    .n = ii_numel(x),
                    .x = ii_data(x),
                    .y = ii_data(y)};
  ii_run_cast(c, &a);
  ii_tape_record(c, II_OP_cast, y, &x, 1, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_cast(ii_ctx *c, ii_node *n) {
  ii_cast_args a = *(ii_cast_args *)n->args, b = a;
  b.x_dtype = a.y_dtype;
  b.y_dtype = a.x_dtype;
  b.x = ii_data(n->out->grad);
  b.y = ii_grad_target(c, n->in[0], &b.accumulate);
  if (b.y) ii_run_cast(c, &b);
}
