/* Optimizers: AdamW and SGD over a model's parameter list, with the official parameter groups,
 * clipping by the global gradient norm and the moving average of the weights.
 *
 * One update of the official loop is: [gradients accumulated over A iterations] -> clip -> step ->
 * average -> next learning rate. Here:
 *
 *     ii_optimizer_add_loss(&o, loss, step);                A times, each on its own batch
 *     ii_backward_seeded(ctx, loss, o.seed);
 *     ii_optimizer_step(&o, &schedule, step, NULL);         clips, steps, averages
 *     ii_params_zero_grad(params);
 *
 * None of these waits for the device. What depends on values that only the device knows is decided
 * there (ii_update_state in kernels/kernels.h) and read when somebody wants to know it:
 *
 * - With a loss scale (fp16) the gradients are those of loss * loss_scale; the scale is taken out
 * of the norm and of the update. An update whose gradients are not finite is skipped (weights,
 *   moments and t stay, the averages advance, as in the official loop) and halves the scale;
 *   growth_interval updates in a row without that double it.
 * - Without one, a loss or gradients that are not finite freeze everything, averages included,
 * until ii_optimizer_look has reported it.
 *
 * Clipping is done once, on the sum, at the update. The official code without mixed precision also
 * clips what has been accumulated so far after every iteration in between; ii_optimizer_clip is
 * that step, for reproducing such a run.
 *
 * Parameters that are frozen, or that no gradient has reached (unused ones), are left alone: no
 * decay, no moments, not part of the norm; as torch does with parameters without .grad.
 *
 * Used by one thread, the one that owns the context. Failures of memory or kernels are the
 * context's sticky error, whose status the functions return. */
#ifndef II_OPTIMIZER_H
#define II_OPTIMIZER_H
#include "autograd/param.h"
#include "kernels/device.h"
#include "optim/ema.h"
#include "optim/param_groups.h"
#include "optim/schedule.h"

/* In the order of the choices of the key train.optimizer. */
typedef enum { II_OPTIMIZER_ADAMW = 0, II_OPTIMIZER_SGD } ii_optimizer_kind;

typedef struct {
  ii_optimizer_kind kind;
  double base_lr;           /* already scaled with the batch; each parameter multiplies its ratio */
  double beta1, beta2, eps; /* adamw */
  double momentum;          /* sgd; 0 = none */
  bool nesterov;            /* sgd */
  double clip_grad;         /* largest global norm; 0 = no clipping */
  bool ema;
  double ema_decay;
  double loss_factor;      /* of a loss in the sum that is differentiated: 1/A; 0 counts as 1 */
  double loss_scale;       /* the first loss scale; 0: none is used */
  int64_t growth_interval; /* updates without overflow that double it */
  ii_param_rules rules;
} ii_optimizer_options;

/* What the optimizer keeps for one entry of the parameter list. */
typedef struct {
  ii_param_group group;
  ii_tensor *m; /* AdamW: mean of the gradient; SGD: momentum buffer. NULL: none */
  ii_tensor *v; /* AdamW: mean of its square. NULL: none */
} ii_optimizer_slot;

typedef struct {
  ii_params *params; /* not owned; no entries may be added while the optimizer exists */
  ii_optimizer_options options;
  ii_optimizer_slot *slot; /* params->count, in the same order; owned */
  ii_ema ema;              /* empty (count 0) without ema */
  ii_tensor *seed;         /* the gradient of the next loss: loss scale * loss_factor */
  /* what the update's kernels work on (kernels.h), in device memory */
  ii_tensor *state, *table, *chunks, *partial, *factors;
  ii_tensor *rates; /* of the next update, one for each entry, F64 */
  ii_upload upload; /* of the rates */
  int64_t chunk_count, elements;
  ii_update_tensor *rows[2]; /* the table as it was written last, and as it should be */
  int64_t table_writes;      /* how often it was written */
} ii_optimizer;

typedef struct {
  double grad_norm; /* global L2 norm before clipping */
  double clip_coef; /* what the gradients were multiplied by */
  bool finite;      /* false: the norm is infinite or NaN, and the weights were not changed */
} ii_step_report;

/* Makes the optimizer of *params: sets which parameters are trainable, allocates zero moments
 * (II_MEM_OPTIMIZER) and the average as a copy of the weights (II_MEM_EMA). Call it when the
 * weights have their first values, or call ii_ema_reset after loading them. Returns the context's
 * status; on an error *o is empty. Free with ii_optimizer_destroy, before the parameters. */
ii_status ii_optimizer_init(ii_optimizer *o, ii_params *params,
                            const ii_optimizer_options *options);
void ii_optimizer_destroy(ii_optimizer *o);

/* Multiplies the gradients accumulated so far by min(1, clip_grad / (norm + 1e-6)), in place, and
 * fills *report (waits for the device). Nothing is changed when clip_grad is 0 or the norm is not
 * finite. Only for the iterations between two updates (see above); ii_optimizer_step clips by
 * itself. */
ii_status ii_optimizer_clip(ii_optimizer *o, ii_step_report *report);

/* Counts a loss (one element of type real) of the batch number `iteration` towards the mean that
 * ii_optimizer_look gives. */
void ii_optimizer_add_loss(ii_optimizer *o, const ii_tensor *loss, int64_t iteration);

/* One update at `iteration` (counted as in schedule.h): gradients * min(1, clip_grad/(norm +
 * 1e-6)), AdamW or SGD with the rates of *schedule, 16-bit copies, average of everything. Gradients
 * keep their values (the factor is applied on the way). When the norm is not finite the weights
 * stay, see above. report may be NULL; otherwise the call waits for the device, and a freeze ends
 * with it (the caller decides what to do about it). */
ii_status ii_optimizer_step(ii_optimizer *o, const ii_schedule *schedule, int64_t iteration,
                            ii_step_report *report);

/* The two halves of ii_optimizer_step, for updates that are recorded (ii_graph_begin): the first
 * sends the rates of an iteration to their place on the device, the second queues the kernels,
 * which is the same work each time. What ctx->step_at says, where it is set, goes before
 * `iteration`. */
void ii_optimizer_send_rates(ii_optimizer *o, const ii_schedule *schedule, int64_t iteration);
void ii_optimizer_update(ii_optimizer *o, int64_t iteration);

/* What the device knows: waits for it. bad_step >= 0 tells that everything is frozen since that
 * iteration, and ends it. */
ii_status ii_optimizer_look(ii_optimizer *o, ii_update_state *state);

/* Replaces it: updates done, loss scale and its counters after a restart (a loss_scale of 0 stands
 * for the first one of the options; ignored without loss scale), or the losses, to begin a new
 * mean. */
ii_status ii_optimizer_set_state(ii_optimizer *o, const ii_update_state *state);

/* The rate of parameter i of the list at an iteration. */
double ii_optimizer_lr(const ii_optimizer *o, const ii_schedule *schedule, int64_t iteration,
                       int64_t i);

/* The state besides the weights and ii_update_state, for checkpoints: a tensor of the parameter's
 * type and shape for each (kind, name). Write to it to restore. */
typedef struct {
  const char *kind; /* "exp_avg", "exp_avg_sq" (AdamW), "momentum_buffer" (SGD), "ema" */
  const char *name; /* state-dict name of the parameter or buffer */
  ii_tensor *tensor;
} ii_optimizer_item;

/* Gives state tensor number i (0, 1, ...) in *item; false when there are not so many. */
bool ii_optimizer_state(const ii_optimizer *o, int64_t i, ii_optimizer_item *item);

#endif
