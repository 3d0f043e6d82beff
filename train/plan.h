/* What a training run will cost, from a dry run of its real code: no weights, no data, no kernels.
 */
#ifndef II_PLAN_H
#define II_PLAN_H
#include "autograd/pool.h"
#include "train/config.h"
#include "kernels/kernels.h"

typedef struct {
  int64_t parameters;             /* numbers that are trained or frozen, without buffers */
  int64_t macs;                   /* multiply-adds of the forward pass of one image; the DCN core
                                     counts 5*Ho*Wo*K*C, as in the published figures */
  int64_t batch, img_size;        /* what the memory is for */
  int64_t memory[II_MEM_CLASSES]; /* bytes at the peak of a training step */
  int64_t memory_total;
  ii_dtype compute;
} ii_plan;

/* Runs two training steps in plan mode. cfg->model.num_classes must be known. */
ii_status ii_plan_make(const ii_config *cfg, ii_device device, ii_plan *plan, ii_error *err);

/* A table for people, and {"parameters": .., "macs": .., "memory": {"<class>": bytes, "total":
 * ..}}. Malloced. Errors: II_ERR_MEMORY. */
ii_status ii_plan_text(const ii_plan *plan, char **text, ii_error *err);
ii_status ii_plan_json(const ii_plan *plan, char **text, ii_error *err);

#endif
