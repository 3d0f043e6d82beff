/* Exponential moving average of a model's whole state (parameters and buffers), the second set of
 * weights that is evaluated and saved beside the trained one.
 *
 * Rule of the official training (timm ModelEma, version 1): a constant decay d from the first
 * update on, no warm-up of the decay; the average starts as a copy of the weights; after every
 * optimizer step avg = d*avg + (1-d)*value for every entry of the state-dict. Counters
 * (num_batches_tracked) are integers there, so their average is truncated each time.
 *
 * Used by one thread, the one that owns the context. Failures are the context's sticky error. */
#ifndef II_EMA_H
#define II_EMA_H
#include "autograd/param.h"

typedef struct {
  ii_params *params; /* not owned; no entries may be added while the average exists */
  ii_tensor **avg;   /* params->count tensors of the parameters' type and shape, owned */
  int64_t count;
  double decay;
} ii_ema;

/* Allocates the average of *params (class II_MEM_EMA) and makes it a copy of them. Returns the
 * status of the context (II_ERR_MEMORY); on an error *e is empty. Free with ii_ema_destroy. */
ii_status ii_ema_init(ii_ema *e, ii_params *params, double decay);
void ii_ema_destroy(ii_ema *e);

/* Overwrites the average with the present values; to be called when weights were loaded after
 * ii_ema_init. */
void ii_ema_reset(ii_ema *e);

/* Whether an entry is a counter, whose average is truncated. Counters are the only integers of a
 * state-dict; here they are stored as numbers. The optimizer's update does the averaging. */
bool ii_ema_is_counter(const ii_param *p);

/* Exchanges average and weights and refreshes the 16-bit copies. Evaluate the average between two
 * calls; the second one restores both bit for bit. Values are exchanged, not memory: rows of joint
 * parameters have to stay where they are. Takes memory for one more tensor while it runs; without
 * it nothing is exchanged and the context has its error. */
void ii_ema_swap(ii_ema *e);

#endif
