#include "optim/optimizer.h"
#include "autograd/kernel_call.h"
#include <math.h>
#include <stdlib.h>

/* torch.nn.utils.clip_grad_norm_ adds this to the norm. */
static const double CLIP_EPS = 1e-6;

void ii_optimizer_destroy(ii_optimizer *o) {
  for (int64_t i = 0; o->slot && i < o->params->count; i++) {
    ii_tensor_free(o->slot[i].m);
    ii_tensor_free(o->slot[i].v);
  }
  free(o->slot);
  free(o->host_sums);
  ii_tensor_free(o->sums);
  ii_ema_destroy(&o->ema);
  *o = (ii_optimizer){0};
}

static ii_tensor *moment(ii_ctx *c, const ii_tensor *p) {
  return ii_tensor_persistent(c, p->dtype, p->ndim, p->shape, II_MEM_OPTIMIZER);
}

/* The group and the moments of entry i. */
static void init_slot(ii_optimizer *o, int64_t i) {
  ii_param *p = &o->params->at[i];
  ii_optimizer_slot *s = &o->slot[i];
  if (p->buffer) return;
  s->group = ii_param_group_of(&o->options.rules, p->name, p->value->ndim);
  ii_param_set_trainable(o->params, p, s->group.trainable);
  if (!s->group.trainable) return;
  const bool adamw = o->options.kind == II_OPTIMIZER_ADAMW;
  if (adamw || o->options.momentum != 0) s->m = moment(o->params->ctx, p->value);
  if (adamw) s->v = moment(o->params->ctx, p->value);
}

ii_status ii_optimizer_init(ii_optimizer *o, ii_params *params,
                            const ii_optimizer_options *options) {
  ii_ctx *c = params->ctx;
  const int64_t n = params->count;
  *o = (ii_optimizer){.params = params, .options = *options};
  o->slot = calloc((size_t)n + 1, sizeof *o->slot);
  o->host_sums = calloc((size_t)n + 1, sizeof *o->host_sums);
  if (!o->slot || !o->host_sums)
    ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory for the optimizer");
  else
    o->sums = ii_tensor_persistent(c, II_F64, 1, &n, II_MEM_OPTIMIZER);
  for (int64_t i = 0; i < n && ii_ok(c); i++) init_slot(o, i);
  if (options->ema && ii_ok(c)) ii_ema_init(&o->ema, params, options->ema_decay);
  if (!ii_ok(c)) ii_optimizer_destroy(o);
  return c->err.status;
}

/* Whether this update touches entry i: trainable, and reached by a gradient. */
static bool has_gradient(const ii_optimizer *o, int64_t i) {
  return o->slot[i].group.trainable && o->params->at[i].value->grad_valid;
}

/* The global L2 norm of the gradients of all trainable parameters, summed in double. */
static double grad_norm(ii_optimizer *o) {
  ii_ctx *c = o->params->ctx;
  double *out = ii_data(o->sums), sum = 0;
  for (int64_t i = 0; i < o->params->count; i++) {
    if (!has_gradient(o, i)) continue;
    const ii_tensor *g = o->params->at[i].value->grad;
    ii_run_sumsq(
        c, &(ii_sumsq_args){
               .real = g->dtype, .n = ii_numel(g), .x = ii_data(g), .out = out ? out + i : NULL});
  }
  ii_tensor_read(c, o->sums, o->host_sums);
  for (int64_t i = 0; i < o->params->count; i++)
    if (has_gradient(o, i)) sum += o->host_sums[i];
  return sqrt(sum);
}

static ii_step_report measure(ii_optimizer *o) {
  const double norm = grad_norm(o), limit = o->options.clip_grad;
  const double coef = limit > 0 ? fmin(1.0, limit / (norm + CLIP_EPS)) : 1.0;
  return (ii_step_report){.grad_norm = norm, .clip_coef = coef, .finite = isfinite(norm)};
}

/* g = coef*g through `room`: 0 moved by coef towards g. (g moved towards 0 by 1-coef would leave
 * the rounding of g, not that of coef*g.) */
static void scale(ii_ctx *c, const ii_tensor *g, const ii_tensor *room, double coef) {
  const int64_t n = ii_numel(g);
  ii_run_fill(c,
              &(ii_fill_args){.real = g->dtype, .y_dtype = g->dtype, .n = n, .y = ii_data(room)});
  ii_run_ema(
      c, &(ii_ema_args){
             .real = g->dtype, .n = n, .decay = 1 - coef, .ema = ii_data(room), .p = ii_data(g)});
  ii_run_cast(c, &(ii_cast_args){.real = g->dtype,
                                 .x_dtype = g->dtype,
                                 .y_dtype = g->dtype,
                                 .n = n,
                                 .x = ii_data(room),
                                 .y = ii_data(g)});
}

ii_status ii_optimizer_clip(ii_optimizer *o, ii_step_report *report) {
  ii_ctx *c = o->params->ctx;
  *report = measure(o);
  if (!report->finite || report->clip_coef == 1.0 || !ii_ok(c)) return c->err.status;
  int64_t largest = 0;
  for (int64_t i = 0; i < o->params->count; i++)
    if (has_gradient(o, i) && ii_numel(o->params->at[i].value) > largest)
      largest = ii_numel(o->params->at[i].value);
  ii_tensor *scaled = ii_tensor_persistent(c, c->real, 1, &largest, II_MEM_OPTIMIZER);
  for (int64_t i = 0; i < o->params->count && scaled; i++)
    if (has_gradient(o, i)) scale(c, o->params->at[i].value->grad, scaled, report->clip_coef);
  ii_tensor_free(scaled);
  return c->err.status;
}

static void step_adamw(ii_optimizer *o, int64_t i, double lr, double scale) {
  const ii_tensor *p = o->params->at[i].value;
  const ii_optimizer_slot *s = &o->slot[i];
  ii_run_adamw(o->params->ctx, &(ii_adamw_args){.real = p->dtype,
                                                .n = ii_numel(p),
                                                .t = o->t,
                                                .lr = lr,
                                                .beta1 = o->options.beta1,
                                                .beta2 = o->options.beta2,
                                                .eps = o->options.eps,
                                                .weight_decay = s->group.weight_decay,
                                                .grad_scale = scale,
                                                .ema_decay = o->options.ema_decay,
                                                .p = ii_data(p),
                                                .m = ii_data(s->m),
                                                .v = ii_data(s->v),
                                                .ema = o->ema.count ? ii_data(o->ema.avg[i]) : NULL,
                                                .g = ii_data(p->grad),
                                                .low = ii_data(p->low)});
}

static void step_sgd(ii_optimizer *o, int64_t i, double lr, double scale) {
  const ii_tensor *p = o->params->at[i].value;
  const ii_optimizer_slot *s = &o->slot[i];
  ii_run_sgd(o->params->ctx, &(ii_sgd_args){.real = p->dtype,
                                            .n = ii_numel(p),
                                            .t = o->t,
                                            .lr = lr,
                                            .momentum = o->options.momentum,
                                            .weight_decay = s->group.weight_decay,
                                            .grad_scale = scale,
                                            .ema_decay = o->options.ema_decay,
                                            .nesterov = o->options.nesterov && s->m,
                                            .p = ii_data(p),
                                            .m = ii_data(s->m),
                                            .ema = o->ema.count ? ii_data(o->ema.avg[i]) : NULL,
                                            .g = ii_data(p->grad),
                                            .low = ii_data(p->low)});
}

double ii_optimizer_lr(const ii_optimizer *o, const ii_schedule *schedule, int64_t iteration,
                       int64_t i) {
  return ii_schedule_lr(schedule, o->options.base_lr * o->slot[i].group.lr_ratio, iteration);
}

ii_status ii_optimizer_step(ii_optimizer *o, const ii_schedule *schedule, int64_t iteration,
                            ii_step_report *report) {
  ii_ctx *c = o->params->ctx;
  *report = measure(o);
  if (!report->finite || !ii_ok(c)) return c->err.status;
  o->t++;
  for (int64_t i = 0; i < o->params->count; i++) {
    if (!has_gradient(o, i)) {
      if (o->ema.count) ii_ema_update(&o->ema, i);
      continue;
    }
    const double lr = ii_optimizer_lr(o, schedule, iteration, i);
    if (o->options.kind == II_OPTIMIZER_ADAMW)
      step_adamw(o, i, lr, report->clip_coef);
    else
      step_sgd(o, i, lr, report->clip_coef);
  }
  return c->err.status;
}

bool ii_optimizer_state(const ii_optimizer *o, int64_t i, ii_optimizer_item *item) {
  const bool adamw = o->options.kind == II_OPTIMIZER_ADAMW;
  for (int64_t j = 0; j < o->params->count; j++) {
    const ii_optimizer_item all[] = {
        {adamw ? "exp_avg" : "momentum_buffer", o->params->at[j].name, o->slot[j].m},
        {"exp_avg_sq", o->params->at[j].name, o->slot[j].v},
        {"ema", o->params->at[j].name, o->ema.count ? o->ema.avg[j] : NULL}};
    for (int k = 0; k < 3; k++) {
      if (!all[k].tensor) continue;
      if (i-- == 0) return *item = all[k], true;
    }
  }
  return false;
}
