#include "train/step.h"
#include <stdlib.h>
#include "autograd/tape.h"

/* Steps of a kind that begin with the same layout before one is recorded: libraries have their
 * plans and scratch memory its size after the first, and the second shows that nothing grew. */
enum { WARM_STEPS = 2 };

/* ---- layout -----------------------------------------------------------------------------------*/

static uint64_t mix_in(uint64_t hash, uint64_t v) {
  hash = (hash ^ v) * 0x9E3779B97F4A7C15u;
  return hash ^ hash >> 29;
}

static uint64_t mix_tensor(uint64_t hash, const ii_tensor *t) {
  return mix_in(hash, (uintptr_t)ii_data(t));
}

/* Of everything that a recorded step takes for granted. */
static uint64_t layout(const ii_step *s, const ii_input_batch *b) {
  const ii_ctx *c = s->ctx;
  uint64_t h = ii_pool_layout(&c->pool);
  h = mix_in(h, (uint64_t)ii_engine_layout(&c->k));
  h = mix_in(h, (uint64_t)s->optimizer->table_writes);
  h = mix_in(h, (uint64_t)b->count);
  h = mix_tensor(mix_tensor(mix_tensor(h, b->images), b->labels), b->meta);
  for (int64_t i = 0; i < s->params->count; i++) {
    const ii_tensor *v = s->params->at[i].value;
    h = mix_tensor(mix_tensor(mix_tensor(h, v), v->grad), v->low);
    h = mix_in(h, (uint64_t)v->needs_grad << 1 | v->grad_valid);
  }
  return h;
}

static int kind_of(const ii_step *s, bool update) {
  bool adds = false;
  for (int64_t i = 0; i < s->params->count; i++) adds |= s->params->at[i].value->grad_valid;
  return adds << 1 | update;
}

/* Which parameters have a gradient: read, or set. */
static void get_valid(const ii_params *p, bool *valid) {
  for (int64_t i = 0; i < p->count; i++) valid[i] = p->at[i].value->grad_valid;
}

static void set_valid(ii_params *p, const bool *valid) {
  for (int64_t i = 0; i < p->count; i++) p->at[i].value->grad_valid = valid[i];
}

/* ---- one step ---------------------------------------------------------------------------------*/

/* Queues the work that is the same in each step of a kind. */
static void work(ii_step *s, const ii_input_batch *b, int64_t step, bool update) {
  ii_ctx *c = s->ctx;
  c->training = c->recording = true;
  c->step = (uint64_t)step;
  c->draw = 0;
  ii_tensor *meta = ii_model_get_config(s->model)->meta_dims[0] ? b->meta : NULL;
  ii_mixer_apply(&s->mixer, b->images);
  ii_tensor *logits = ii_model_forward(s->model, b->images, meta, NULL);
  ii_tensor *loss = ii_mixer_loss(&s->mixer, logits, b->labels);
  ii_optimizer_add_loss(s->optimizer, loss, step);
  ii_backward_seeded(c, loss, s->optimizer->seed);
  ii_tape_reset(c);
  if (!update) return;
  ii_optimizer_update(s->optimizer, step);
  ii_params_zero_grad(s->params);
}

static ii_status context_status(const ii_ctx *c, ii_error *err) {
  return ii_ok(c) ? II_OK : ii_error_set(err, c->err.status, "%s", c->err.text);
}

/* Recording failed, and nothing was done: the step is yet to be made. Says so once. */
static ii_status go_on_without(ii_step *s, ii_error *err) {
  ii_ctx *c = s->ctx;
  char why[sizeof c->err.text];
  snprintf(why, sizeof why, "%s", ii_ok(c) ? c->k.error : c->err.text);
  ii_error_clear(&c->err);
  s->record = false;
  if (s->cfg->train.cuda_graph == ii_train_cuda_graph_on)
    return ii_error_set(err, II_ERR_DEVICE,
                        "the training step cannot be recorded as a CUDA graph: %s; "
                        "train.cuda_graph=auto goes on without",
                        why);
  ii_say_line(&s->say, II_SAY_WARNING,
              "the training step cannot be recorded as a CUDA graph and runs without: %s", why);
  return II_OK;
}

/* Records the step; the graph of the kind is there afterwards, unless s->record has become false.
 */
static ii_status record(ii_step *s, ii_step_kind *k, const ii_input_batch *b, int64_t step,
                        bool update, ii_error *err) {
  ii_ctx *c = s->ctx;
  ii_params *p = s->params;
  bool *before = malloc((size_t)p->count * sizeof *before + 1);
  if (!before) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  get_valid(p, before);
  const int64_t macs = c->macs, dcn_macs = c->dcn_macs;
  ii_graph_destroy(&c->k, &k->graph);
  bool failed = ii_graph_begin(&c->k) != 0;
  if (!failed) {
    c->pool.fixed = true; /* new memory would be the graph's, freed memory would not be back */
    work(s, b, step, update);
    c->pool.fixed = false;
    get_valid(p, k->after);
    failed = ii_graph_end(&c->k, ii_ok(c) ? &k->graph : NULL) != 0 || !ii_ok(c);
    set_valid(p, before);
    k->macs = c->macs - macs, k->dcn_macs = c->dcn_macs - dcn_macs;
    c->macs = macs, c->dcn_macs = dcn_macs;
  }
  free(before);
  if (failed) return go_on_without(s, err);
  ii_say_line(&s->say, II_SAY_NOTE, "step %lld recorded as a CUDA graph of %lld pieces%s",
              (long long)step, (long long)k->graph.pieces, update ? "" : " (without update)");
  return II_OK;
}

/* The kind's graph, if it fits the memory as it is now, recorded if it is time; else NULL. */
static ii_status graph_for(ii_step *s, const ii_input_batch *b, int64_t step, bool update,
                           ii_step_kind **kind, ii_error *err) {
  ii_step_kind *k = &s->kind[kind_of(s, update)];
  *kind = NULL;
  if (!s->record || s->ctx->profile) return II_OK;
  const uint64_t now = layout(s, b);
  const bool same = now == k->layout;
  k->layout = now;
  if (!same) k->same = 0;
  if (!same || (!k->graph.exec && k->same < WARM_STEPS)) {
    ii_graph_destroy(&s->ctx->k, &k->graph);
    k->same++;
    return II_OK;
  }
  if (!k->graph.exec) II_TRY(record(s, k, b, step, update, err));
  if (s->record) *kind = k;
  return II_OK;
}

ii_status ii_step_run(ii_step *s, const ii_input_batch *b, int64_t step, ii_error *err) {
  ii_ctx *c = s->ctx;
  const bool update = ii_schedule_is_update(s->schedule, step);
  ii_step_kind *k;
  ii_mixer_draw(&s->mixer, step, b->epoch, b->index, b->host_keys, b->count);
  if (update) ii_optimizer_send_rates(s->optimizer, s->schedule, step);
  II_TRY(context_status(c, err));
  II_TRY(graph_for(s, b, step, update, &k, err));
  if (!k) {
    work(s, b, step, update);
    return context_status(c, err);
  }
  if (ii_graph_launch(&c->k, &k->graph))
    return ii_error_set(&c->err, II_ERR_DEVICE, "%s", c->k.error), context_status(c, err);
  set_valid(s->params, k->after);
  c->macs += k->macs;
  c->dcn_macs += k->dcn_macs;
  return II_OK;
}

/* ---- open and close ---------------------------------------------------------------------------*/

ii_status ii_step_init(ii_step *s, const ii_step_options *o, ii_error *err) {
  ii_params *p = ii_model_params(o->model);
  ii_ctx *c = p->ctx;
  *s = (ii_step){.ctx = c,
                 .cfg = o->cfg,
                 .model = o->model,
                 .params = p,
                 .optimizer = o->optimizer,
                 .schedule = o->schedule,
                 .say = o->say};
  const int graphs = o->cfg->train.cuda_graph;
  if (graphs == ii_train_cuda_graph_on && c->k.device != II_CUDA) {
    *s = (ii_step){0};
    return ii_error_set(err, II_ERR_ARG,
                        "train.cuda_graph=on is for GPUs: use --device cuda, or auto or off");
  }
  s->record = graphs != ii_train_cuda_graph_off && c->k.device == II_CUDA && !c->plan;
  const int64_t size = o->cfg->data.img_size;
  ii_mixer_init(&s->mixer, c, o->cfg, o->cfg->data.batch_size, size, size);
  for (int i = 0; i < II_STEP_KINDS && ii_ok(c); i++) {
    s->kind[i].after = calloc((size_t)p->count + 1, sizeof *s->kind[i].after);
    if (!s->kind[i].after) ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory");
  }
  if (ii_ok(c)) return II_OK;
  ii_step_destroy(s);
  return context_status(c, err);
}

void ii_step_destroy(ii_step *s) {
  if (!s->ctx) return;
  for (int i = 0; i < II_STEP_KINDS; i++) {
    ii_graph_destroy(&s->ctx->k, &s->kind[i].graph);
    free(s->kind[i].after);
  }
  ii_mixer_destroy(&s->mixer);
  *s = (ii_step){0};
}
