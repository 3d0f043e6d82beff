/* Checkpoints: everything a run needs to go on exactly where it was, in one HDF5 file.
 *
 *   /model/<name>                 parameters and buffers under their official state-dict names
 *   /ema/<name>                   the moving average, when the run has one
 *   /optimizer/<kind>/<name>      exp_avg, exp_avg_sq or momentum_buffer
 *   /gradient/<name>              what has been accumulated so far, in the middle of an update
 *   /classes                      names of the classes, when the data set has names
 *   attributes of the root        format, version, program, config (text), and ii_train_state
 *
 * Random numbers are counter-based, so seed and position are their whole state. Files are written
 * atomically and carry a checksum of every byte (h5file.h). */
#ifndef II_CHECKPOINT_H
#define II_CHECKPOINT_H
#include "autograd/param.h"
#include "optim/optimizer.h"
#include "train/h5file.h"

#define II_CHECKPOINT_VERSION 1

/* The position of a run. */
typedef struct {
  int64_t epoch, batch;    /* the next batch is number `batch` of `epoch`; batch = steps_per_epoch:
                              the epoch is trained but not yet validated */
  int64_t step;            /* batches trained on */
  int64_t steps_per_epoch; /* what epoch and batch were counted with */
  int64_t updates;         /* optimizer steps done */
  int64_t images;          /* seen in training, repetitions counted */
  int64_t seed;
  int64_t bad_files;      /* failures to decode a training image */
  int64_t validated_step; /* step of the last validation; below 0: none yet */
  double best_top1;       /* percent; below 0: not validated yet */
  int64_t best_is_ema;    /* whether the moving average reached it (0, 1) */
  double loss_sum;        /* of the steps since the last record of metrics.jsonl */
  int64_t loss_count;
  double loss_scale;       /* the present one; 0: none */
  int64_t good_updates;    /* since it last changed */
  int64_t skipped_updates; /* because of overflow */
  int64_t data_images;   /* of the training set that epoch and batch are a position in; 0: unknown,
                            an older checkpoint */
  int64_t data_checksum; /* ii_dataset_fingerprint */
} ii_train_state;

/* What is saved. All pointers are borrowed. */
typedef struct {
  ii_train_state state;
  const char *config;  /* text of the whole configuration */
  int64_t class_count; /* 0: no names */
  const char *const *classes;
  ii_params *params;
  const ii_optimizer *optimizer;
} ii_checkpoint_content;

/* Writes a checkpoint; path is replaced in one step, or untouched after an error. Errors:
 * II_ERR_IO, II_ERR_MEMORY. */
ii_status ii_checkpoint_save(const char *path, const ii_checkpoint_content *content, ii_error *err);

/* Reads the position; the file must be a whole checkpoint of ours of a known version.
 * Errors: II_ERR_FORMAT. */
ii_status ii_checkpoint_state(ii_h5 *file, ii_train_state *state, ii_error *err);

/* The configuration text (malloced). Errors: II_ERR_FORMAT, when there is none. */
ii_status ii_checkpoint_config(ii_h5 *file, char **text, ii_error *err);

/* The class names (one malloced block); *count is 0 when it has none. */
ii_status ii_checkpoint_classes(ii_h5 *file, char ***names, int64_t *count, ii_error *err);

/* Restores everything: weights, average, optimizer state, accumulated gradients, update counter.
 * All names and shapes must agree. Refreshes the bf16 copies. After an error the weights are a
 * mixture; throw them away. Errors: II_ERR_FORMAT. */
ii_status ii_checkpoint_restore(ii_h5 *file, ii_params *params, ii_optimizer *optimizer,
                                ii_error *err);

/* ---- the folder of a run ---------------------------------------------------------------------*/

#define II_RUN_PATH 2048

/* The file names of a run: dir/checkpoint-<step, 9 digits>.h5 and dir/best.h5. */
void ii_checkpoint_path(const char *dir, int64_t step, char out[II_RUN_PATH]);
void ii_checkpoint_best_path(const char *dir, char out[II_RUN_PATH]);

/* The checkpoints of a folder, newest step first, then best.h5 if it is there. One malloced block.
 * A missing folder has none. Errors: II_ERR_IO, II_ERR_MEMORY. */
ii_status ii_checkpoint_find(const char *dir, char ***paths, int64_t *count, ii_error *err);

/* Opens the newest checkpoint that is whole; *file is NULL when there is none. For each one that is
 * damaged, skipped(user, sentence) is called. */
ii_status ii_checkpoint_open_newest(const char *dir, ii_h5 **file,
                                    void (*skipped)(void *user, const char *why), void *user,
                                    ii_error *err);

/* After checkpoint-<step>.h5 has been written: removes all but it and the keep - 1 newest before,
 * those of later steps (a resumed run only leaves them behind when they are damaged; counted, they
 * would drive out the good ones), and what interrupted writes left. best.h5 stays.
 * Errors: II_ERR_IO. */
ii_status ii_checkpoint_prune(const char *dir, int64_t step, int64_t keep, ii_error *err);

/* Makes `to` another name of the file `from`, atomically (a copy where links do not work). */
ii_status ii_checkpoint_link(const char *from, const char *to, ii_error *err);

#endif
