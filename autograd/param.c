#include "autograd/param.h"
#include "autograd/kernel_call.h"
#include "autograd/tape.h"
#include <stdlib.h>
#include <string.h>

void ii_params_init(ii_params *p, ii_ctx *c) {
  *p = (ii_params){.ctx = c};
}

void ii_params_destroy(ii_params *p) {
  if (p->ctx) ii_tape_reset(p->ctx); /* a tape that was never walked back holds parameters */
  for (int64_t i = 0; i < p->count; i++) ii_tensor_free(p->at[i].value);
  free(p->at);
  *p = (ii_params){0};
}

static ii_tensor *add(ii_params *p, const char *name, int ndim, const int64_t *shape, bool buffer) {
  ii_ctx *c = p->ctx;
  II_ASSERT(strlen(name) < II_PARAM_NAME, "parameter name '%s' is too long", name);
  II_ASSERT(!ii_params_find(p, name), "two parameters are called '%s'", name);
  if (p->count == p->capacity) {
    p->capacity = p->capacity ? 2 * p->capacity : 256;
    p->at = realloc(p->at, (size_t)p->capacity * sizeof *p->at);
    II_ASSERT(p->at, "out of host memory for %lld parameters", (long long)p->capacity);
  }
  ii_param *q = &p->at[p->count];
  *q = (ii_param){.buffer = buffer};
  strcpy(q->name, name);
  q->value = ii_tensor_persistent(c, c->real, ndim, shape, II_MEM_PARAMETERS);
  if (!q->value) return NULL;
  p->count++;
  if (!buffer) {
    q->value->needs_grad = true;
    q->value->grad = ii_tensor_persistent(c, c->real, ndim, shape, II_MEM_GRADIENTS);
    if (c->compute != c->real && ndim > 1)
      q->value->low = ii_tensor_persistent(c, c->compute, ndim, shape, II_MEM_PARAMETERS);
  }
  return q->value;
}

ii_tensor *ii_params_add(ii_params *p, const char *name, int ndim, const int64_t *shape) {
  return add(p, name, ndim, shape, false);
}

ii_tensor *ii_params_add_buffer(ii_params *p, const char *name, int ndim, const int64_t *shape) {
  return add(p, name, ndim, shape, true);
}

ii_param *ii_params_find(const ii_params *p, const char *name) {
  for (int64_t i = 0; i < p->count; i++)
    if (!strcmp(p->at[i].name, name)) return &p->at[i];
  return NULL;
}

int64_t ii_params_numel(const ii_params *p) {
  int64_t n = 0;
  for (int64_t i = 0; i < p->count; i++)
    if (!p->at[i].buffer) n += ii_numel(p->at[i].value);
  return n;
}

void ii_params_zero_grad(ii_params *p) {
  for (int64_t i = 0; i < p->count; i++) p->at[i].value->grad_valid = false;
}

void ii_params_refresh_low(ii_params *p) {
  for (int64_t i = 0; i < p->count; i++) {
    ii_tensor *v = p->at[i].value;
    if (!v->low) continue;
    ii_run_cast(p->ctx, &(ii_cast_args){.real = p->ctx->real,
                                        .x_dtype = v->dtype,
                                        .y_dtype = v->low->dtype,
                                        .n = ii_numel(v),
                                        .x = ii_data(v),
                                        .y = ii_data(v->low)});
  }
}

void ii_param_set_trainable(ii_params *p, ii_param *param, bool trainable) {
  ii_tensor *v = param->value;
  v->needs_grad = trainable;
  v->grad_valid = false;
  if (!trainable) {
    ii_tensor_free(v->grad);
    v->grad = NULL;
  } else if (!v->grad) {
    v->grad = ii_tensor_persistent(p->ctx, v->dtype, v->ndim, v->shape, II_MEM_GRADIENTS);
  }
}
