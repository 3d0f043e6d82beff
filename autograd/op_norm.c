/* Layer norm, batch norm, softmax. */
#include "autograd/op_common.h"

static void want_vector(const ii_tensor *v, int64_t n, const char *what) {
  II_ASSERT(ii_numel(v) == n, "%s has %lld elements for %lld channels", what,
            (long long)ii_numel(v), (long long)n);
}

ii_tensor *ii_layer_norm(ii_ctx *c, ii_tensor *x, ii_tensor *gamma, ii_tensor *beta, double eps,
                         ii_act act, ii_dtype out) {
  int64_t rows = ii_rows(x), C = ii_last(x);
  want_vector(gamma, C, "gamma");
  want_vector(beta, C, "beta");
  ii_tensor *y = ii_like(c, x, out, C);
  ii_tensor *stat[2] = {ii_tensor_new(c, c->real, 1, &rows), ii_tensor_new(c, c->real, 1, &rows)};
  ii_layer_norm_args a = {.real = c->real,
                          .x_dtype = x->dtype,
                          .y_dtype = out,
                          .rows = rows,
                          .C = C,
                          .eps = eps,
                          .act = act,
                          .x = ii_data(x),
                          .gamma = ii_data(gamma),
                          .beta = ii_data(beta),
                          .y = ii_data(y),
                          .mean = ii_data(stat[0]),
                          .rstd = ii_data(stat[1])};
  ii_run_layer_norm_fwd(c, &a);
  ii_tape_record(c, II_OP_layer_norm, y, (ii_tensor *[]){x, gamma, beta}, 3, stat, 2, &a, sizeof a);
  return y;
}

void ii_backward_layer_norm(ii_ctx *c, ii_node *n) {
  ii_layer_norm_args a = *(ii_layer_norm_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.ggamma = ii_grad_target(c, n->in[1], &a.acc_ggamma);
  a.gbeta = ii_grad_target(c, n->in[2], &a.acc_gbeta);
  ii_run_layer_norm_bwd(c, &a);
}

ii_tensor *ii_norm_residual(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *gamma,
                            ii_tensor *beta, double eps, ii_tensor *scale, ii_tensor *keep) {
  int64_t rows = ii_rows(f), C = ii_last(f), N = x->shape[0];
  want_vector(gamma, C, "gamma");
  want_vector(beta, C, "beta");
  II_ASSERT(ii_rows(x) == rows && ii_last(x) == C, "x has %lld rows of %lld, f %lld of %lld",
            (long long)ii_rows(x), (long long)ii_last(x), (long long)rows, (long long)C);
  if (scale) want_vector(scale, C, "the layer scale");
  II_ASSERT(!keep || ii_numel(keep) == N, "keep for %lld samples", (long long)N);
  ii_tensor *y = ii_tensor_new(c, x->dtype, x->ndim, x->shape);
  ii_tensor *stat[2] = {ii_tensor_new(c, c->real, 1, &rows), ii_tensor_new(c, c->real, 1, &rows)};
  ii_layer_norm_args a = {.real = c->real,
                          .x_dtype = f->dtype,
                          .y_dtype = x->dtype,
                          .rows = rows,
                          .C = C,
                          .keep_rows = N ? rows / N : 0,
                          .eps = eps,
                          .residual = true,
                          .x = ii_data(f),
                          .gamma = ii_data(gamma),
                          .beta = ii_data(beta),
                          .skip = ii_data(x),
                          .scale = ii_data(scale),
                          .keep = ii_data(keep),
                          .y = ii_data(y),
                          .mean = ii_data(stat[0]),
                          .rstd = ii_data(stat[1])};
  ii_run_layer_norm_fwd(c, &a);
  ii_tape_record(c, II_OP_norm_residual, y, (ii_tensor *[]){x, f, gamma, beta, scale, keep}, 6,
                 stat, 2, &a, sizeof a);
  return y;
}

void ii_backward_norm_residual(ii_ctx *c, ii_node *n) {
  ii_layer_norm_args a = *(ii_layer_norm_args *)n->args;
  a.skip = NULL;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[1], &a.acc_gx);
  a.ggamma = ii_grad_target(c, n->in[2], &a.acc_ggamma);
  a.gbeta = ii_grad_target(c, n->in[3], &a.acc_gbeta);
  a.gscale = ii_grad_target(c, n->in[4], &a.acc_gscale);
  ii_run_layer_norm_bwd(c, &a);
  ii_grad_pass(c, n->in[0], n->out->grad);
}

ii_tensor *ii_batch_norm(ii_ctx *c, ii_tensor *x, ii_tensor *gamma, ii_tensor *beta,
                         ii_tensor *running_mean, ii_tensor *running_var, double eps,
                         double momentum) {
  int64_t C = ii_last(x);
  want_vector(gamma, C, "gamma");
  want_vector(beta, C, "beta");
  want_vector(running_mean, C, "running_mean");
  want_vector(running_var, C, "running_var");
  ii_tensor *y = ii_like(c, x, c->real, C);
  ii_tensor *stat[2] = {ii_tensor_new(c, c->real, 1, &C), ii_tensor_new(c, c->real, 1, &C)};
  ii_batch_norm_args a = {.real = c->real,
                          .x_dtype = x->dtype,
                          .y_dtype = c->real,
                          .rows = ii_rows(x),
                          .C = C,
                          .eps = eps,
                          /* a recomputed forward must not update the running statistics again */
                          .momentum = c->recomputing ? 0 : momentum,
                          .training = c->training,
                          .x = ii_data(x),
                          .gamma = ii_data(gamma),
                          .beta = ii_data(beta),
                          .running_mean = ii_data(running_mean),
                          .running_var = ii_data(running_var),
                          .y = ii_data(y),
                          .mean = ii_data(stat[0]),
                          .rstd = ii_data(stat[1])};
  ii_run_batch_norm_fwd(c, &a);
  ii_tape_record(c, II_OP_batch_norm, y, (ii_tensor *[]){x, gamma, beta}, 3, stat, 2, &a, sizeof a);
  return y;
}

void ii_backward_batch_norm(ii_ctx *c, ii_node *n) {
  ii_batch_norm_args a = *(ii_batch_norm_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  a.ggamma = ii_grad_target(c, n->in[1], &a.acc_ggamma);
  a.gbeta = ii_grad_target(c, n->in[2], &a.acc_gbeta);
  ii_run_batch_norm_bwd(c, &a);
}

ii_tensor *ii_softmax(ii_ctx *c, ii_tensor *x, ii_dtype out) {
  ii_tensor *y = ii_like(c, x, out, ii_last(x));
  ii_softmax_args a = {.real = c->real,
                       .x_dtype = x->dtype,
                       .y_dtype = out,
                       .rows = ii_rows(x),
                       .n = ii_last(x),
                       .x = ii_data(x),
                       .y = ii_data(y)};
  ii_run_softmax_fwd(c, &a);
  ii_tape_record(c, II_OP_softmax, y, &x, 1, NULL, 0, &a, sizeof a);
  return y;
}

void ii_backward_softmax(ii_ctx *c, ii_node *n) {
  ii_softmax_args a = *(ii_softmax_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  ii_run_softmax_bwd(c, &a);
}
