/* linear, alone and with GELU behind it; batched matmul. */
#include "autograd/op_common.h"

/* The product; *x becomes what it was computed from. */
static ii_tensor *product(ii_ctx *c, ii_tensor **in, ii_tensor *w, ii_tensor *b,
                          ii_linear_args *a) {
  ii_tensor *x = *in;
  II_ASSERT(w->ndim >= 2 && ii_last(x) == w->shape[1], "x has %lld channels, w %lld",
            (long long)ii_last(x), (long long)w->shape[1]);
  II_ASSERT(!b || ii_numel(b) == w->shape[0], "bias of %lld for %lld outputs",
            (long long)ii_numel(b), (long long)w->shape[0]);
  *in = x = ii_cast(c, x, c->compute);
  ii_tensor *y = ii_like(c, x, c->compute, w->shape[0]);
  *a = (ii_linear_args){.real = c->real,
                        .x_dtype = c->compute,
                        .rows = ii_rows(x),
                        .in = ii_last(x),
                        .out = w->shape[0],
                        .x = ii_data(x),
                        .w = ii_weight(w, c->compute),
                        .b = ii_data(b),
                        .y = ii_data(y)};
  ii_count_macs(c, a->rows * a->in * (w->joint ? w->joint->used : a->out));
  ii_run_linear_fwd(c, a);
  return y;
}

ii_tensor *ii_linear(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b) {
  ii_linear_args a;
  ii_tensor *y = product(c, &x, w, b, &a);
  ii_tape_record(c, II_OP_linear, y, (ii_tensor *[]){x, w, b}, 3, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_linear(ii_ctx *c, ii_node *n) {
  ii_linear_args a = *(ii_linear_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.gw = ii_grad_target(c, n->in[1], &a.acc_gw);
  a.gb = ii_grad_target(c, n->in[2], &a.acc_gb);
  ii_run_linear_bwd(c, &a);
}

ii_tensor *ii_linear_gelu(ii_ctx *c, ii_tensor *x, ii_tensor *w, ii_tensor *b) {
  ii_linear_args a;
  ii_tensor *u = product(c, &x, w, b, &a), *y = ii_like(c, u, u->dtype, a.out);
  ii_run_gelu_fwd(c, &(ii_eltwise_args){.real = c->real,
                                        .x_dtype = u->dtype,
                                        .y_dtype = y->dtype,
                                        .n = ii_numel(u),
                                        .x = ii_data(u),
                                        .y = ii_data(y)});
  ii_tape_record(c, II_OP_linear_gelu, y, (ii_tensor *[]){x, w, b}, 3, &u, 1, &a, sizeof a);
  return y;
}

/* GELU's gradient takes the place of gy where nobody else has it, and gives the bias's sums in the
 * same pass. */
void ii_backward_linear_gelu(ii_ctx *c, ii_node *n) {
  ii_linear_args a = *(ii_linear_args *)n->args;
  ii_tensor *u = n->stat[0], *gy = n->out->grad;
  const bool in_place = gy->mem && gy->mem->refs == 1;
  const ii_scope scope = ii_scope_begin(c);
  ii_tensor *gu = in_place ? gy : ii_like(c, u, u->dtype, a.out);
  ii_eltwise_args g = {.real = c->real,
                       .x_dtype = u->dtype,
                       .y_dtype = gy->dtype,
                       .n = ii_numel(u),
                       .C = a.out,
                       .x = ii_data(u),
                       .gy = ii_data(gy),
                       .gx = ii_data(gu)};
  g.gb = ii_grad_target(c, n->in[2], &g.acc_gb);
  ii_run_gelu_bwd(c, &g);
  a.gy = ii_data(gu);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.gw = ii_grad_target(c, n->in[1], &a.acc_gw);
  ii_run_linear_bwd(c, &a);
  ii_scope_end(c, scope, NULL, 0);
}

ii_tensor *ii_bmm(ii_ctx *c, ii_tensor *x, ii_tensor *z, bool trans_b, double alpha) {
  x = ii_cast(c, x, c->compute);
  z = ii_cast(c, z, c->compute);
  int d = x->ndim;
  II_ASSERT(d >= 3 && d == z->ndim, "%d and %d dimensions", d, z->ndim);
  ii_bmm_args a = {.real = c->real, .x_dtype = c->compute, .batch = 1, .alpha = alpha};
  a.trans_b = trans_b;
  for (int i = 0; i < d - 2; i++) {
    II_ASSERT(x->shape[i] == z->shape[i], "batch dimension %d: %lld and %lld", i,
              (long long)x->shape[i], (long long)z->shape[i]);
    a.batch *= x->shape[i];
  }
  a.M = x->shape[d - 2];
  a.K = x->shape[d - 1];
  a.N = z->shape[trans_b ? d - 2 : d - 1];
  II_ASSERT(z->shape[trans_b ? d - 1 : d - 2] == a.K, "inner dimensions %lld and %lld",
            (long long)a.K, (long long)z->shape[trans_b ? d - 1 : d - 2]);
  ii_tensor *y = ii_like(c, x, c->compute, a.N);
  a.a = ii_data(x);
  a.b = ii_data(z);
  a.c = ii_data(y);
  ii_run_bmm_fwd(c, &a);
  ii_tape_record(c, II_OP_bmm, y, (ii_tensor *[]){x, z}, 2, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_bmm(ii_ctx *c, ii_node *n) {
  ii_bmm_args a = *(ii_bmm_args *)n->args;
  a.gc = ii_data(n->out->grad);
  a.ga = ii_grad_target(c, n->in[0], &a.acc_ga);
  a.gb = ii_grad_target(c, n->in[1], &a.acc_gb);
  ii_run_bmm_bwd(c, &a);
}
