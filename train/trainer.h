/* A training run: data, model, optimizer, validation, checkpoints, metrics, from a configuration.
 *
 * The weights after step n are a function of (configuration, data, n, number of compute threads)
 * alone: not of the number of loader threads, of restarts, or of where checkpoints were saved. */
#ifndef II_TRAINER_H
#define II_TRAINER_H
#include <signal.h>
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/report.h"
#include "train/validate.h"

typedef struct {
  ii_config config; /* complete and checked */
  ii_device device;
  int device_index;   /* CUDA: which GPU */
  const char *resume; /* NULL: a new run; "auto": the newest whole checkpoint of train.output_dir,
                         if there is one; or a checkpoint's path */
  const char *init;   /* NULL: train.init */
  bool init_ema, init_partial;       /* see ii_weights_options */
  bool accept_changed_data;          /* resume inside of an epoch although the training images are
                                        not those of the checkpoint */
  const volatile sig_atomic_t *stop; /* when it becomes nonzero: finish the step, save, return
                                        II_ERR_INTERRUPTED. May be NULL */
  ii_say say;
} ii_trainer_options;

typedef struct ii_trainer ii_trainer;

/* Everything before the first step: opens the data, builds the model, loads or restores weights,
 * and says what it did. Refuses to start a new run in a folder that has checkpoints. Errors: one
 * sentence; *trainer is NULL then. */
ii_status ii_trainer_open(const ii_trainer_options *options, ii_trainer **trainer, ii_error *err);
void ii_trainer_close(ii_trainer *t); /* NULL is allowed */

/* Trains to the end of the configuration (or max_steps). Errors: II_ERR_INTERRUPTED after saving on
 * request; a loss or gradient that is not finite (II_ERR_ARG; nothing is saved, the last checkpoint
 * stays); data, disk and device errors. */
ii_status ii_trainer_run(ii_trainer *t, ii_error *err);

#endif
