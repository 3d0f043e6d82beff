#include "optim/optimizer.h"
#include "kernels/update_rules.h"
#include <stdlib.h>

/* ---- memory -----------------------------------------------------------------------------------*/

void ii_optimizer_destroy(ii_optimizer *o) {
  if (!o->params) return;
  for (int64_t i = 0; o->slot && i < o->params->count; i++) {
    ii_tensor_free(o->slot[i].m);
    ii_tensor_free(o->slot[i].v);
  }
  free(o->slot);
  for (int i = 0; i < 2; i++) free(o->rows[i]);
  if (!o->params->ctx->plan) ii_upload_destroy(&o->params->ctx->k, &o->upload);
  ii_tensor_free(o->rates);
  ii_tensor_free(o->seed);
  ii_tensor_free(o->state);
  ii_tensor_free(o->table);
  ii_tensor_free(o->chunks);
  ii_tensor_free(o->partial);
  ii_tensor_free(o->factors);
  ii_ema_destroy(&o->ema);
  *o = (ii_optimizer){0};
}

static ii_tensor *moment(ii_ctx *c, const ii_tensor *p) {
  return ii_tensor_persistent(c, p->dtype, p->ndim, p->shape, II_MEM_OPTIMIZER);
}

static ii_tensor *elements(ii_ctx *c, ii_dtype type, int64_t n) {
  return ii_tensor_persistent(c, type, 1, &n, II_MEM_OPTIMIZER);
}

/* Device memory for structs; their sizes are multiples of four. */
static ii_tensor *structs(ii_ctx *c, size_t size, int64_t n) {
  return elements(c, II_I32, (int64_t)(size / 4) * n);
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

/* The chunks of entry i, which start at *at; returns how many. at NULL: only counts. */
static int64_t chunks_of(const ii_optimizer *o, int64_t i, ii_update_chunk *at) {
  const ii_param *p = &o->params->at[i];
  const bool averaged = o->ema.count && !ii_ema_is_counter(p);
  if (!o->slot[i].group.trainable && !averaged) return 0;
  const int64_t n = (ii_numel(p->value) + II_UPDATE_CHUNK - 1) / II_UPDATE_CHUNK;
  for (int64_t j = 0; at && j < n; j++) at[j] = (ii_update_chunk){(int32_t)i, (int32_t)j};
  return n;
}

static void init_chunks(ii_optimizer *o) {
  ii_ctx *c = o->params->ctx;
  const int64_t tensors = o->params->count;
  for (int64_t i = 0; i < tensors; i++) {
    const int64_t n = chunks_of(o, i, NULL);
    o->chunk_count += n;
    if (n) o->elements += ii_numel(o->params->at[i].value);
  }
  ii_update_chunk *list = calloc((size_t)o->chunk_count + 1, sizeof *list);
  o->chunks = structs(c, sizeof *list, o->chunk_count);
  if (!list || !o->chunks) {
    ii_error_set(&c->err, II_ERR_MEMORY, "out of memory for the optimizer's tables");
  } else {
    for (int64_t i = 0, at = 0; i < tensors; i++) at += chunks_of(o, i, list + at);
    ii_tensor_write(c, o->chunks, list);
  }
  free(list);
}

/* A failure of the engine becomes the context's error. */
static void engine_did(ii_ctx *c, int status) {
  if (status) ii_error_set(&c->err, II_ERR_DEVICE, "%s", c->k.error);
}

static void init_update(ii_optimizer *o) {
  ii_ctx *c = o->params->ctx;
  const int64_t n = o->params->count;
  const ii_update_state first = {0};
  init_chunks(o);
  for (int i = 0; i < 2; i++) {
    o->rows[i] = calloc((size_t)n + 1, sizeof *o->rows[i]);
    if (!o->rows[i]) ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory for the optimizer");
  }
  o->rates = elements(c, II_F64, n);
  if (!c->plan && ii_ok(c))
    engine_did(c, ii_upload_init(&c->k, &o->upload, (size_t)(n + 1) * sizeof(double)));
  o->seed = elements(c, c->real, 1);
  o->state = structs(c, sizeof(ii_update_state), 1);
  o->table = structs(c, sizeof(ii_update_tensor), n);
  o->partial = elements(c, II_F64, o->chunk_count);
  o->factors = elements(c, c->real, II_FACTOR_TENSORS + 2 * n);
  if (ii_ok(c)) ii_optimizer_set_state(o, &first);
}

ii_status ii_optimizer_init(ii_optimizer *o, ii_params *params,
                            const ii_optimizer_options *options) {
  ii_ctx *c = params->ctx;
  *o = (ii_optimizer){.params = params, .options = *options};
  if (o->options.loss_factor == 0) o->options.loss_factor = 1;
  o->slot = calloc((size_t)params->count + 1, sizeof *o->slot);
  if (!o->slot) ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory for the optimizer");
  for (int64_t i = 0; i < params->count && ii_ok(c); i++) init_slot(o, i);
  if (options->ema && ii_ok(c)) ii_ema_init(&o->ema, params, options->ema_decay);
  if (ii_ok(c)) init_update(o);
  if (!ii_ok(c)) ii_optimizer_destroy(o);
  return c->err.status;
}

/* ---- state ------------------------------------------------------------------------------------*/

ii_status ii_optimizer_set_state(ii_optimizer *o, const ii_update_state *state) {
  ii_ctx *c = o->params->ctx;
  ii_update_state s = *state;
  if (o->options.loss_scale == 0) s.loss_scale = 1;
  if (s.loss_scale == 0) s.loss_scale = o->options.loss_scale;
  s.bad_step = -1;
  const double seed = s.loss_scale * o->options.loss_factor;
  ii_tensor_write(c, o->state, &s);
  ii_tensor_write_f64(c, o->seed, &seed);
  return c->err.status;
}

ii_status ii_optimizer_look(ii_optimizer *o, ii_update_state *state) {
  ii_ctx *c = o->params->ctx;
  ii_tensor_read(c, o->state, state);
  if (ii_ok(c) && !c->plan && state->bad_step >= 0) ii_optimizer_set_state(o, state);
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
