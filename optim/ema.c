#include "optim/ema.h"
#include "autograd/kernel_call.h"
#include <stdlib.h>
#include <string.h>

void ii_ema_destroy(ii_ema *e) {
  for (int64_t i = 0; i < e->count; i++) ii_tensor_free(e->avg[i]);
  free(e->avg);
  *e = (ii_ema){0};
}

ii_status ii_ema_init(ii_ema *e, ii_params *params, double decay) {
  ii_ctx *c = params->ctx;
  *e = (ii_ema){.params = params, .decay = decay};
  e->avg = calloc((size_t)params->count + 1, sizeof(ii_tensor *));
  if (!e->avg) return ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory for the average");
  for (int64_t i = 0; i < params->count; i++) {
    const ii_tensor *p = params->at[i].value;
    e->avg[i] = ii_tensor_persistent(c, p->dtype, p->ndim, p->shape, II_MEM_EMA);
    e->count = i + 1;
    if (!e->avg[i]) {
      ii_ema_destroy(e);
      return c->err.status;
    }
  }
  ii_ema_reset(e);
  return c->err.status;
}

void ii_ema_reset(ii_ema *e) {
  for (int64_t i = 0; i < e->count; i++) {
    const ii_tensor *p = e->params->at[i].value;
    ii_run_cast(e->params->ctx, &(ii_cast_args){.real = p->dtype,
                                                .x_dtype = p->dtype,
                                                .y_dtype = p->dtype,
                                                .n = ii_numel(p),
                                                .x = ii_data(p),
                                                .y = ii_data(e->avg[i])});
  }
}

bool ii_ema_is_counter(const ii_param *p) {
  static const char suffix[] = "num_batches_tracked";
  const size_t n = strlen(p->name), m = sizeof suffix - 1;
  return p->buffer && n >= m && !strcmp(p->name + n - m, suffix) && ii_numel(p->value) == 1;
}

/* A tensor as long as the longest of the average; NULL after an error. */
static ii_tensor *spare_tensor(const ii_ema *e) {
  int64_t most = 0;
  for (int64_t i = 0; i < e->count; i++)
    if (ii_numel(e->avg[i]) > most) most = ii_numel(e->avg[i]);
  return ii_tensor_persistent(e->params->ctx, e->avg[0]->dtype, 1, &most, II_MEM_EMA);
}

void ii_ema_swap(ii_ema *e) {
  if (!e->count) return;
  ii_ctx *c = e->params->ctx;
  ii_tensor *spare = spare_tensor(e);
  if (!spare) return;
  for (int64_t i = 0; i < e->count; i++) {
    ii_tensor *p = e->params->at[i].value, *avg = e->avg[i];
    spare->shape[0] = ii_numel(p);
    ii_tensor_copy(c, spare, p);
    ii_tensor_copy(c, p, avg);
    ii_tensor_copy(c, avg, spare);
  }
  ii_tensor_free(spare);
  ii_params_refresh_low(e->params);
}
