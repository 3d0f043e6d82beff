/* Accuracy of a checkpoint on the validation images of a configuration, also with test-time
 * augmentation. */
#ifndef II_EVALUATE_H
#define II_EVALUATE_H
#include "eval/tta.h"
#include "train/config.h"
#include "train/report.h"
#include "train/validate.h"

typedef struct {
  ii_config config; /* complete and checked */
  ii_device device;
  int device_index;       /* CUDA: which GPU */
  const char *checkpoint; /* ours, or any HDF5 file with the weights (weights.h) */
  bool ema;               /* evaluate the moving average */
  ii_tta tta;             /* count 0: none */
  ii_say say;
} ii_eval_options;

typedef struct {
  ii_accuracy accuracy;
  int64_t classes;        /* of the model */
  int64_t *class_images;  /* [classes] */
  int64_t *class_correct; /* [classes], top-1 */
  ii_accuracy average;    /* with test-time augmentation: its result */
  int64_t *class_average; /* [classes], top-1 of it; NULL without */
  char **class_names;     /* [classes], or NULL when neither checkpoint nor data has names */
} ii_eval_result;

/* The configuration named, or with name NULL the one stored in the checkpoint; the caller applies
 * overrides and checks it. Errors: those of ii_config_load and ii_h5_open; II_ERR_FORMAT when the
 * checkpoint has none. */
ii_status ii_eval_config(const char *name, const char *checkpoint, ii_config *cfg, ii_error *err);

/* Builds the model, loads the weights (all of them, or refuses), and evaluates. When both the
 * checkpoint and the data know the names of their classes, labels go by name: a data set may then
 * have some of the classes, in any order. Free with ii_eval_free. */
ii_status ii_eval_run(const ii_eval_options *options, ii_eval_result *result, ii_error *err);
void ii_eval_free(ii_eval_result *result);

#endif
