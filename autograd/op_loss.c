/* Cross entropies. */
#include "autograd/op_common.h"

static ii_ce_args ce_args(ii_ctx *c, ii_tensor *logits, ii_tensor *loss, ii_tensor *lse) {
  return (ii_ce_args){.real = c->real,
                      .x_dtype = logits->dtype,
                      .N = logits->shape[0],
                      .C = logits->shape[1],
                      .x = ii_data(logits),
                      .loss = ii_data(loss),
                      .lse = ii_data(lse)};
}

ii_tensor *ii_soft_cross_entropy(ii_ctx *c, ii_tensor *logits, ii_tensor *targets) {
  II_ASSERT(logits->ndim == 2 && ii_numel(targets) == ii_numel(logits) && targets->dtype == c->real,
            "%lld logits, %lld targets", (long long)ii_numel(logits), (long long)ii_numel(targets));
  ii_tensor *loss = ii_tensor_new(c, c->real, 1, (int64_t[]){1});
  ii_tensor *lse = ii_tensor_new(c, c->real, 1, logits->shape);
  ii_ce_args a = ce_args(c, logits, loss, lse);
  a.targets = ii_data(targets);
  ii_run_soft_ce_fwd(c, &a);
  ii_tape_record(c, II_OP_soft_ce, loss, (ii_tensor *[]){logits, targets}, 2, &lse, 1, &a,
                 sizeof a);
  return loss;
}

void ii_backward_soft_ce(ii_ctx *c, ii_node *n) {
  ii_ce_args a = *(ii_ce_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  ii_run_soft_ce_bwd(c, &a);
}

ii_tensor *ii_smooth_cross_entropy(ii_ctx *c, ii_tensor *logits, ii_tensor *labels,
                                   double smoothing) {
  II_ASSERT(logits->ndim == 2 && ii_numel(labels) == logits->shape[0] && labels->dtype == II_I32,
            "%lld rows of logits, %lld labels", (long long)logits->shape[0],
            (long long)ii_numel(labels));
  ii_tensor *loss = ii_tensor_new(c, c->real, 1, (int64_t[]){1});
  ii_tensor *lse = ii_tensor_new(c, c->real, 1, logits->shape);
  ii_ce_args a = ce_args(c, logits, loss, lse);
  a.labels = ii_data(labels);
  a.smoothing = smoothing;
  ii_run_smooth_ce_fwd(c, &a);
  ii_tape_record(c, II_OP_smooth_ce, loss, (ii_tensor *[]){logits, labels}, 2, &lse, 1, &a,
                 sizeof a);
  return loss;
}

void ii_backward_smooth_ce(ii_ctx *c, ii_node *n) {
  ii_ce_args a = *(ii_ce_args *)n->args;
  a.gy = ii_data(n->out->grad);
  a.gx = ii_grad_target(c, n->in[0], &a.acc_gx);
  ii_run_smooth_ce_bwd(c, &a);
}
