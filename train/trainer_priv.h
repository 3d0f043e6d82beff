/* For trainer*.c alone. */
#ifndef II_TRAINER_PRIV_H
#define II_TRAINER_PRIV_H
#include <stdio.h>
#include "train/metrics.h"
#include "train/step.h"
#include "train/trainer.h"

/* Measurements between two records. */
typedef struct {
  double begin; /* when the window began */
  double wait;  /* of it, seconds waiting for data */
  int64_t steps, images;
  double seconds_per_step;    /* smoothed over the whole run of this process; 0: not known yet */
  double pulsed;              /* when a pulse was last shown */
  double judged, judged_wait; /* seconds of finished windows since the loader's share was last
                               * judged, and of them those waiting for data */
  int64_t windows;            /* finished in this process */
  bool advised;               /* the loader was said to be slow */
} ii_pace;

/* The host looks at what the device knows after this many steps at the latest. */
enum { II_LOOK_STEPS = 1024 };

struct ii_trainer {
  ii_trainer_options o;
  const ii_config *cfg; /* = &o.config */
  const char *dir;      /* = train.output_dir */
  int lock;             /* descriptor of the folder, locked */
  FILE *log;
  ii_say say; /* to the caller and to the log file */
  ii_dataset *train_set, *val_set;
  int32_t *val_columns; /* of ii_setup_columns */
  ii_loader *loader;
  ii_ctx *ctx;
  ii_input input; /* ctx NULL: not there yet */
  ii_model *model;
  ii_params *params;
  ii_optimizer optimizer; /* params NULL: not there yet */
  ii_schedule schedule;
  ii_step step; /* ctx NULL: not there yet */
  ii_metrics metrics;
  ii_train_state state;
  char *config_text;
  const char **classes;                /* [num_classes], or NULL for data without names */
  ii_update_state device;              /* as it was when the host looked last */
  int64_t looked;                      /* after how many steps that was; -1: never */
  double mean_loss;                    /* that was shown last; NaN: none yet */
  int64_t first_sample[II_LOOK_STEPS]; /* of the last steps' batches, by step */
  ii_pace pace;
  double saved_at; /* when the last checkpoint was written, for save_every_minutes */
  double opened_at;
};

double ii_trainer_now(void);

/* trainer.c */
/* Waits for the steps so far and brings t->state and t->device up to date. Errors: a loss or
 * gradient was not finite (names the step), the loss scale has become useless, the device failed.
 */
ii_status ii_trainer_look(ii_trainer *t, ii_error *err);
/* Begins a new mean of the losses; after ii_trainer_look. */
void ii_trainer_new_mean(ii_trainer *t);

/* trainer_open.c */
void ii_trainer_banner(const ii_trainer *t);

/* trainer_progress.c */
int64_t ii_trainer_total_steps(const ii_trainer *t);
void ii_trainer_pace_reset(ii_trainer *t);
/* After each step: pulses, and every log_every_steps a progress line and a record. */
ii_status ii_trainer_progress(ii_trainer *t, double waited, int64_t images, ii_error *err);
/* "1h02m", "3m20s", "12s". */
void ii_duration_text(double seconds, char *text, size_t size);

/* trainer_save.c */
/* Writes dir/checkpoint-<step>.h5 and prunes. `from` is NULL, or the path of a checkpoint of this
 * very moment that is linked instead. */
ii_status ii_trainer_save(ii_trainer *t, const char *from, ii_error *err);
ii_status ii_trainer_save_best(ii_trainer *t, ii_error *err);
/* Validates raw and averaged weights, records both; *best is set when this is the best so far. */
ii_status ii_trainer_validate(ii_trainer *t, bool *best, ii_error *err);

#endif
