/* The update itself: tables for the kernels, and the order in which they are queued. */
#include <math.h>
#include <string.h>
#include "autograd/kernel_call.h"
#include "optim/optimizer.h"

static void engine_did(ii_ctx *c, int status) {
  if (status) ii_error_set(&c->err, II_ERR_DEVICE, "%s", c->k.error);
}

/* Whether this update touches entry i: trainable, and reached by a gradient. */
static bool has_gradient(const ii_optimizer *o, int64_t i) {
  return o->slot[i].group.trainable && o->params->at[i].value->grad_valid;
}

/* Brings the device's table up to date. It changes when a gradient comes where none came before:
 * not from step to step. */
static void write_table(ii_optimizer *o) {
  const int64_t n = o->params->count;
  const size_t bytes = (size_t)n * sizeof(ii_update_tensor);
  ii_update_tensor *rows = o->rows[1];
  memset(rows, 0, bytes); /* the padding too: it is compared */
  for (int64_t i = 0; i < n; i++) {
    const ii_param *p = &o->params->at[i];
    const ii_optimizer_slot *s = &o->slot[i];
    rows[i].n = ii_numel(p->value);
    rows[i].p = ii_data(p->value);
    rows[i].g = has_gradient(o, i) ? ii_data(p->value->grad) : NULL;
    rows[i].m = ii_data(s->m);
    rows[i].v = ii_data(s->v);
    rows[i].ema = o->ema.count ? ii_data(o->ema.avg[i]) : NULL;
    rows[i].low = ii_data(p->value->low);
    rows[i].weight_decay = s->group.weight_decay;
    rows[i].counter = ii_ema_is_counter(p);
  }
  if (!memcmp(rows, o->rows[0], bytes)) return;
  ii_tensor_write(o->params->ctx, o->table, rows);
  if (!ii_ok(o->params->ctx)) return;
  o->table_writes++;
  o->rows[1] = o->rows[0];
  o->rows[0] = rows;
}

static ii_update_args arguments(const ii_optimizer *o, ii_update_kind kind, int64_t step) {
  const ii_ctx *c = o->params->ctx;
  return (ii_update_args){.real = c->real,
                          .low_dtype = c->compute == II_F16 ? II_F16 : II_BF16,
                          .kind = kind,
                          .tensors = o->params->count,
                          .chunks = o->chunk_count,
                          .elements = o->elements,
                          .tensor = ii_data(o->table),
                          .chunk = ii_data(o->chunks),
                          .step = step,
                          .step_at = c->step_at,
                          .beta1 = o->options.beta1,
                          .beta2 = o->options.beta2,
                          .eps = o->options.eps,
                          .momentum = o->options.momentum,
                          .clip_grad = o->options.clip_grad,
                          .ema_decay = o->options.ema_decay,
                          .seed_factor = o->options.loss_factor,
                          .nesterov = o->options.nesterov,
                          .growth_interval =
                              o->options.loss_scale > 0 ? o->options.growth_interval : 0,
                          .partial = ii_data(o->partial),
                          .factor = ii_data(o->factors),
                          .state = ii_data(o->state)};
}

static void run(ii_ctx *c, const ii_update_args *a) {
  ii_run_update_norm(c, a);
  ii_run_update_control(c, a);
  ii_run_update_apply(c, a);
}

static ii_step_report report_of(const ii_update_state *s) {
  return (ii_step_report){.grad_norm = s->grad_norm,
                          .clip_coef = s->clip_coef,
                          .finite = isfinite(s->grad_norm) && s->bad_step < 0};
}

ii_status ii_optimizer_clip(ii_optimizer *o, ii_step_report *report) {
  ii_ctx *c = o->params->ctx;
  ii_update_state s;
  const ii_update_args a = arguments(o, II_UPDATE_SCALE, 0);
  write_table(o);
  run(c, &a);
  ii_optimizer_look(o, &s);
  *report = report_of(&s);
  return c->err.status;
}

void ii_optimizer_add_loss(ii_optimizer *o, const ii_tensor *loss, int64_t iteration) {
  ii_run_loss_add(o->params->ctx, &(ii_loss_add_args){.real = loss->dtype,
                                                      .scaled = o->options.loss_scale > 0,
                                                      .step = iteration,
                                                      .step_at = o->params->ctx->step_at,
                                                      .loss = ii_data(loss),
                                                      .state = ii_data(o->state)});
}

double ii_optimizer_lr(const ii_optimizer *o, const ii_schedule *schedule, int64_t iteration,
                       int64_t i) {
  return ii_schedule_lr(schedule, o->options.base_lr * o->slot[i].group.lr_ratio, iteration);
}

void ii_optimizer_send_rates(ii_optimizer *o, const ii_schedule *schedule, int64_t iteration) {
  ii_ctx *c = o->params->ctx;
  const int64_t n = o->params->count;
  void *host = NULL;
  if (c->plan || !ii_ok(c)) return;
  engine_did(c, ii_upload_begin(&c->k, &o->upload, &host));
  if (!ii_ok(c)) return;
  double *rate = host;
  for (int64_t i = 0; i < n; i++) rate[i] = ii_optimizer_lr(o, schedule, iteration, i);
  engine_did(c, ii_upload_send(&c->k, &o->upload, ii_data(o->rates), (size_t)n * sizeof *rate));
}

void ii_optimizer_update(ii_optimizer *o, int64_t iteration) {
  const bool adamw = o->options.kind == II_OPTIMIZER_ADAMW;
  ii_update_args a = arguments(o, adamw ? II_UPDATE_ADAMW : II_UPDATE_SGD, iteration);
  write_table(o);
  a.lr = ii_data(o->rates);
  a.seed = ii_data(o->seed);
  run(o->params->ctx, &a);
}

ii_status ii_optimizer_step(ii_optimizer *o, const ii_schedule *schedule, int64_t iteration,
                            ii_step_report *report) {
  ii_optimizer_send_rates(o, schedule, iteration);
  ii_optimizer_update(o, iteration);
  if (report) {
    ii_update_state s;
    ii_optimizer_look(o, &s);
    *report = report_of(&s);
  }
  return o->params->ctx->err.status;
}
