/* One training step on the device: from a batch that is there to gradients, or to updated weights.
 *
 * Everything that differs between two steps of a kind is sent to fixed places on the device first
 * (step number, mixture, rectangles, learning rates); the work after that is the same, so it can be
 * recorded once and launched by one call (ii_graph in kernels/device.h, train.cuda_graph). A step
 * is of one of four kinds: its gradients overwrite or add to what is there, and it ends with an
 * update or not; each kind has its graph. A kind runs without one until it has twice begun with the
 * same layout of memory, then it is recorded, and its graph is launched as long as the layout is
 * that one: the same blocks of the pool in use at the same places (what the graph uses was free
 * then, so nobody else has it now), the same parameters, gradients and tables, the same batch size,
 * and the engine's scratch memory where it was. Otherwise it runs without a graph and is recorded
 * anew. So results do not depend on train.cuda_graph, bit for bit.
 *
 * A graph takes none of the pool's memory: it works where the steps without it worked. */
#ifndef II_STEP_H
#define II_STEP_H
#include "models/model.h"
#include "optim/optimizer.h"
#include "train/config.h"
#include "train/input.h"
#include "train/mix.h"
#include "train/report.h"

enum { II_STEP_KINDS = 4 };

typedef struct {
  ii_graph graph;
  uint64_t layout;        /* when the last step of this kind began */
  int same;               /* steps without graph that began with this layout */
  bool *after;            /* which parameters have a gradient after a step of the graph */
  int64_t macs, dcn_macs; /* what a step of the graph adds to those of the context */
} ii_step_kind;

typedef struct {
  ii_ctx *ctx;
  const ii_config *cfg;
  ii_model *model;
  ii_params *params;
  ii_optimizer *optimizer;
  const ii_schedule *schedule;
  ii_say say;
  ii_mixer mixer;
  bool record; /* steps are recorded */
  ii_step_kind kind[II_STEP_KINDS];
} ii_step;

/* What a step works with; none of it is owned. */
typedef struct {
  const ii_config *cfg; /* train.cuda_graph, data.*, train.label_smoothing */
  ii_model *model;
  ii_optimizer *optimizer;
  const ii_schedule *schedule;
  ii_say say; /* is told when steps are recorded, and once when they cannot be */
} ii_step_options;

/* Errors: II_ERR_ARG when train.cuda_graph = on for a device without graphs; memory. *s is empty
 * then. Free with ii_step_destroy, before the model and the optimizer. */
ii_status ii_step_init(ii_step *s, const ii_step_options *o, ii_error *err);
void ii_step_destroy(ii_step *s);

/* Queues step number `step` on the batch: erasing, mixing, forward, loss, backward, and at the end
 * of an accumulation the update, after which gradients count as empty. Does not wait for the
 * device, except for the uploads of the step before the last. Errors: the context's; with
 * train.cuda_graph = on that the step could not be recorded. */
ii_status ii_step_run(ii_step *s, const ii_input_batch *b, int64_t step, ii_error *err);

#endif
