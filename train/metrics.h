/* metrics.jsonl: one JSON object per line, one line per logged step or validation. */
#ifndef II_METRICS_H
#define II_METRICS_H
#include <stdio.h>
#include "autograd/error.h"
#include "train/validate.h"

typedef struct {
  FILE *file;
  char path[2048];
} ii_metrics;

/* Opens dir/metrics.jsonl for appending. What a run that went on past the checkpoint this one
 * resumes from left behind is dropped first, atomically: training lines of steps after last_step,
 * validation lines of steps after last_validation, incomplete lines. Errors: II_ERR_IO. */
ii_status ii_metrics_open(ii_metrics *m, const char *dir, int64_t last_step,
                          int64_t last_validation, ii_error *err);
void ii_metrics_close(ii_metrics *m);

typedef struct {
  int64_t epoch, step;        /* both counted from 1 */
  double loss, lr, grad_norm; /* loss: mean since the last record; grad_norm of the last update */
  double images_per_second, data_wait; /* data_wait: share of the time in which the
                                        * loop stood still for the loader, 0 to 1 */
  double eta_seconds;
  int64_t memory_bytes; /* peak of the process; on a GPU what it holds there */
  double loss_scale;    /* 0: none */
  int64_t skipped;      /* updates, in all */
} ii_train_record;

/* {"kind": "train", "epoch", "step", "loss", "lr", "grad_norm", "images_per_s", "data_wait",
 * "eta_s", "memory"}, with a loss scale also "loss_scale", "skipped". loss and grad_norm are null
 * when they are not finite (a skipped update). */
ii_status ii_metrics_train(ii_metrics *m, const ii_train_record *r, ii_error *err);

/* {"kind": "val", "weights": "raw" or "ema", "epoch", "step", "top1", "top5", "loss", "images",
 * "failed", "seconds"} */
ii_status ii_metrics_validation(ii_metrics *m, int64_t epoch, int64_t step, bool ema,
                                const ii_accuracy *a, ii_error *err);

#endif
