#include "autograd/param.h"
#include "autograd/kernel_call.h"
#include "autograd/tape.h"
#include "autograd/tensor_priv.h"
#include <stdlib.h>
#include <string.h>

void ii_params_init(ii_params *p, ii_ctx *c) {
  *p = (ii_params){.ctx = c};
}

void ii_params_destroy(ii_params *p) {
  if (p->ctx) ii_tape_reset(p->ctx); /* a tape that was never walked back holds parameters */
  for (int64_t i = 0; i < p->count; i++) ii_tensor_free(p->at[i].value);
  for (ii_joint *j = p->joints, *next; j; j = next) {
    next = j->next;
    ii_tensor_free(j->whole);
    free(j);
  }
  free(p->at);
  *p = (ii_params){0};
}

static ii_param *new_entry(ii_params *p, const char *name, bool buffer) {
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
  return q;
}

/* A tensor of the real type; trained: with its gradient and its 16-bit copy. */
static ii_tensor *new_value(ii_ctx *c, int ndim, const int64_t *shape, bool trained) {
  ii_tensor *v = ii_tensor_persistent(c, c->real, ndim, shape, II_MEM_PARAMETERS);
  if (!v || !trained) return v;
  v->needs_grad = true;
  v->grad = ii_tensor_persistent(c, c->real, ndim, shape, II_MEM_GRADIENTS);
  if (c->compute != c->real && ndim > 1)
    v->low = ii_tensor_persistent(c, c->compute, ndim, shape, II_MEM_PARAMETERS);
  return v;
}

static ii_tensor *add(ii_params *p, const char *name, int ndim, const int64_t *shape, bool buffer) {
  ii_param *q = new_entry(p, name, buffer);
  q->value = new_value(p->ctx, ndim, shape, !buffer);
  if (q->value) p->count++;
  return q->value;
}

ii_tensor *ii_params_add(ii_params *p, const char *name, int ndim, const int64_t *shape) {
  return add(p, name, ndim, shape, false);
}

ii_tensor *ii_params_add_buffer(ii_params *p, const char *name, int ndim, const int64_t *shape) {
  return add(p, name, ndim, shape, true);
}

ii_tensor *ii_params_join(ii_params *p, int ndim, const int64_t *shape) {
  ii_joint *j = calloc(1, sizeof *j);
  II_ASSERT(j, "out of host memory for a joint parameter of %d dimensions", ndim);
  j->whole = new_value(p->ctx, ndim, shape, true);
  if (!j->whole) {
    free(j);
    return NULL;
  }
  j->whole->joint = j;
  j->next = p->joints;
  p->joints = j;
  return j->whole;
}

/* Rows of `whole` from where the value of part `v` begins, in another of its tensors. */
static ii_tensor *same_rows(ii_ctx *c, const ii_tensor *whole, const ii_tensor *v) {
  const size_t row = (size_t)(ii_numel(v->joint->whole) / v->joint->whole->shape[0]);
  const size_t first = v->offset / (row * ii_dtype_size(v->dtype));
  return whole ? ii_tensor_rows(c, whole, (int64_t)first, v->shape[0]) : NULL;
}

ii_tensor *ii_params_add_rows(ii_params *p, const char *name, ii_tensor *whole, int64_t first,
                              int64_t rows) {
  if (!whole) return NULL;
  ii_joint *j = whole->joint;
  II_ASSERT(j && j->parts < II_JOINT_PARTS && rows > 0, "%s: part %d, %lld rows", name,
            j ? j->parts : -1, (long long)rows);
  ii_param *q = new_entry(p, name, false);
  ii_tensor *v = ii_tensor_rows(p->ctx, whole, first, rows);
  if (!v) return NULL;
  q->value = v;
  v->joint = j;
  v->needs_grad = true;
  v->grad = same_rows(p->ctx, whole->grad, v);
  v->low = same_rows(p->ctx, whole->low, v);
  j->part[j->parts++] = v;
  j->used += rows;
  p->count++;
  return v;
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

/* The gradient of a joint parameter exists while some part is trainable. */
static void follow_parts(ii_ctx *c, ii_joint *j) {
  ii_tensor *whole = j->whole;
  whole->needs_grad = false;
  for (int i = 0; i < j->parts; i++) whole->needs_grad |= j->part[i]->needs_grad;
  if (whole->needs_grad && !whole->grad)
    whole->grad =
        ii_tensor_persistent(c, whole->dtype, whole->ndim, whole->shape, II_MEM_GRADIENTS);
  for (int i = 0; i < j->parts; i++) {
    ii_tensor *v = j->part[i];
    if (v->needs_grad && !v->grad) v->grad = same_rows(c, whole->grad, v);
  }
  if (whole->needs_grad) return;
  ii_tensor_free(whole->grad);
  whole->grad = NULL;
}

void ii_param_set_trainable(ii_params *p, ii_param *param, bool trainable) {
  ii_tensor *v = param->value;
  v->needs_grad = trainable;
  v->grad_valid = false;
  if (!trainable) {
    ii_tensor_free(v->grad);
    v->grad = NULL;
  }
  if (v->joint)
    follow_parts(p->ctx, v->joint);
  else if (trainable && !v->grad)
    v->grad = ii_tensor_persistent(p->ctx, v->dtype, v->ndim, v->shape, II_MEM_GRADIENTS);
}
