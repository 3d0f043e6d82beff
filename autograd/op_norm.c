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

static void want_branch(const ii_tensor *x, const ii_tensor *f, const ii_tensor *keep) {
  II_ASSERT(ii_rows(x) == ii_rows(f) && ii_last(x) == ii_last(f),
            "x has %lld rows of %lld, f %lld of %lld", (long long)ii_rows(x), (long long)ii_last(x),
            (long long)ii_rows(f), (long long)ii_last(f));
  II_ASSERT(!keep || ii_numel(keep) == x->shape[0], "keep for %lld samples",
            (long long)x->shape[0]);
}

/* The gradients of x and f in x + keep * f, whose gradient is g. */
static void branch_gradient(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *keep, ii_tensor *g) {
  const int64_t N = x->shape[0], C = ii_last(x);
  if (!keep && x->dtype == f->dtype) {
    ii_grad_pass(c, f, g);
  } else {
    ii_residual_args a = {.real = c->real,
                          .x_dtype = x->dtype,
                          .f_dtype = f->dtype,
                          .N = N,
                          .rows = N && C ? ii_numel(x) / (N * C) : 0,
                          .C = C,
                          .keep = ii_data(keep),
                          .gy = ii_data(g)};
    a.gf = ii_grad_target(c, f, &a.acc_gf);
    ii_run_residual_bwd(c, &a);
  }
  ii_grad_pass(c, x, g);
}

ii_tensor *ii_norm_residual(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *gamma,
                            ii_tensor *beta, double eps, ii_tensor *scale, ii_tensor *keep) {
  int64_t rows = ii_rows(f), C = ii_last(f), N = x->shape[0];
  want_vector(gamma, C, "gamma");
  want_vector(beta, C, "beta");
  if (scale) want_vector(scale, C, "the layer scale");
  want_branch(x, f, keep);
  ii_tensor *y = ii_tensor_new(c, x->dtype, x->ndim, x->shape);
  ii_tensor *stat[2] = {ii_tensor_new(c, c->real, 1, &rows), ii_tensor_new(c, c->real, 1, &rows)};
  ii_layer_norm_args a = {.real = c->real,
                          .x_dtype = f->dtype,
                          .y_dtype = x->dtype,
                          .rows = rows,
                          .C = C,
                          .keep_rows = N ? rows / N : 0,
                          .eps = eps,
                          .place = II_NORM_ENDS_BRANCH,
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

ii_tensor *ii_residual_norm(ii_ctx *c, ii_tensor *x, ii_tensor *f, ii_tensor *keep,
                            ii_tensor *gamma, ii_tensor *beta, double eps, ii_tensor **sum) {
  int64_t rows = ii_rows(f), C = ii_last(f), N = x->shape[0];
  want_vector(gamma, C, "gamma");
  want_vector(beta, C, "beta");
  want_branch(x, f, keep);
  II_ASSERT(x->dtype == c->real, "x is %s", ii_dtype_name(x->dtype));
  ii_tensor *s = ii_tensor_new(c, x->dtype, x->ndim, x->shape);
  ii_tensor *y = ii_tensor_new(c, f->dtype, x->ndim, x->shape);
  ii_tensor *stat[2] = {ii_tensor_new(c, c->real, 1, &rows), ii_tensor_new(c, c->real, 1, &rows)};
  ii_layer_norm_args a = {.real = c->real,
                          .x_dtype = x->dtype,
                          .y_dtype = f->dtype,
                          .rows = rows,
                          .C = C,
                          .keep_rows = N ? rows / N : 0,
                          .eps = eps,
                          .place = II_NORM_AFTER_BRANCH,
                          .gamma = ii_data(gamma),
                          .beta = ii_data(beta),
                          .skip = ii_data(x),
                          .keep = ii_data(keep),
                          .f = ii_data(f),
                          .sum = ii_data(s),
                          .y = ii_data(y),
                          .mean = ii_data(stat[0]),
                          .rstd = ii_data(stat[1])};
  ii_run_layer_norm_fwd(c, &a);
  ii_node *n = ii_tape_record(c, II_OP_residual_norm, s, (ii_tensor *[]){x, f, keep, gamma, beta},
                              5, stat, 2, &a, sizeof a);
  ii_tape_second(n, y);
  *sum = s;
  return y;
}

void ii_backward_residual_norm(ii_ctx *c, ii_node *n) {
  ii_layer_norm_args a = *(ii_layer_norm_args *)n->args;
  ii_tensor *s = n->out, *f = n->in[1];
  if (!n->also->grad) { /* the norm's result was not used */
    branch_gradient(c, n->in[0], f, n->in[2], s->grad);
    return;
  }
  bool rest; /* s has another part of its gradient, which is added to in place */
  a.x = a.sum;
  a.gy = ii_data(n->also->grad);
  a.gx = ii_grad_target(c, s, &rest);
  if (rest) a.gsum = a.gx;
  /* the same numbers: no second copy */
  const bool same = !n->in[2] && f->dtype == s->dtype;
  if (!same) a.gf = ii_grad_target(c, f, &a.acc_gf);
  a.ggamma = ii_grad_target(c, n->in[3], &a.acc_ggamma);
  a.gbeta = ii_grad_target(c, n->in[4], &a.acc_gbeta);
  ii_run_layer_norm_bwd(c, &a);
  ii_grad_pass(c, n->in[0], s->grad);
  if (same) ii_grad_pass(c, f, s->grad);
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
