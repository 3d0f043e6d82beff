/* What an update decides and computes once, in double, for both engines: whether to update, the
 * clip coefficient, the loss scale, and the factors that the pass over the tensors needs. */
#ifndef II_UPDATE_RULES_H
#define II_UPDATE_RULES_H
#include <math.h>
#include "kernels/kernels.h"

/* torch.nn.utils.clip_grad_norm_ adds this to the norm. */
#define II_CLIP_EPS 1e-6

/* Factors at the beginning of ii_update_args.factor, then two for each tensor. */
enum {
  II_FACTOR_GRAD = 0, /* on the gradients: clip coefficient / loss scale */
  II_FACTOR_ROOT,     /* AdamW: 1/sqrt(1 - beta2^t) */
  II_FACTOR_FIRST,    /* SGD: 1 at the first update, else 0 */
  II_FACTOR_TENSORS = 4
};

/* After the measurement of the gradients (multiplied by the loss scale): fills in *s what to do.
 * GradScaler's rules for the scale (torch.cuda.amp): halved by an update that is not finite, and
 * doubled after growth_interval updates in a row that are. Returns the factor on the gradients. */
II_EVERYWHERE double ii_update_decide(const ii_update_args *a, double sum_of_squares,
                                      ii_update_state *s) {
  const double scale = s->loss_scale, norm = sqrt(sum_of_squares) / scale;
  const bool finite = isfinite(norm);
  s->grad_norm = norm;
  s->clip_coef = a->clip_grad > 0 ? fmin(1.0, a->clip_grad / (norm + II_CLIP_EPS)) : 1.0;
  s->action = II_UPDATE_NOTHING;
  if (a->kind == II_UPDATE_SCALE) {
    if (finite && s->clip_coef < 1.0) s->action = II_UPDATE_ALL;
    return s->clip_coef;
  }
  if (s->bad_step >= 0) return 0;
  if (finite) {
    s->action = II_UPDATE_ALL;
    s->t++;
    if (a->growth_interval > 0 && ++s->good_updates >= a->growth_interval) {
      if (isfinite((float)(2 * scale))) s->loss_scale = 2 * scale;
      s->good_updates = 0;
    }
  } else if (a->growth_interval > 0) {
    s->action = II_UPDATE_AVERAGE;
    s->skipped++;
    s->good_updates = 0;
    s->loss_scale = scale / 2;
  } else {
    s->bad_step = a->step_at ? *a->step_at : a->step;
    s->bad_loss = false;
    s->bad_value = norm;
  }
  return s->clip_coef / scale;
}

/* The bias corrections 1 - beta^t of AdamW; 1, 1 for others. */
II_EVERYWHERE void ii_update_corrections(const ii_update_args *a, int64_t t, double out[2]) {
  const bool adamw = a->kind == II_UPDATE_ADAMW && t > 0;
  out[0] = adamw ? 1.0 - pow(a->beta1, (double)t) : 1.0;
  out[1] = adamw ? 1.0 - pow(a->beta2, (double)t) : 1.0;
}

/* The two factors of one tensor. AdamW: step size, and what decay leaves of the value; SGD: rate,
 * and weight decay. */
II_EVERYWHERE void ii_update_tensor_factors(const ii_update_args *a, double weight_decay, double lr,
                                            double correction1, double out[2]) {
  const bool adamw = a->kind == II_UPDATE_ADAMW;
  out[0] = adamw ? lr / correction1 : lr;
  out[1] = adamw ? 1.0 - lr * weight_decay : weight_decay;
}

/* The average of a counter, which is an integer in the official code: truncated each time. */
II_EVERYWHERE double ii_update_counter(double average, double now, double decay) {
  return trunc(decay * average + (1.0 - decay) * now);
}

/* Adds a loss to the sum since the last reset. One that is not finite is left out; without a loss
 * scale to lower it stops all further updates. */
II_EVERYWHERE void ii_update_add_loss(const ii_loss_add_args *a, double loss, ii_update_state *s) {
  if (isfinite(loss)) {
    s->loss_sum += loss;
    s->loss_count++;
  } else if (!a->scaled && s->bad_step < 0) {
    s->bad_step = a->step_at ? *a->step_at : a->step;
    s->bad_loss = true;
    s->bad_value = loss;
  }
}

#endif
