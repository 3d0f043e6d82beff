/* Accuracy of a model on a data set: what training's validation and `eval` share.
 *
 * Official rule: evaluation mode (running statistics, no drop path), no mixed precision, plain
 * cross entropy. Each image of the set counts exactly once; one that cannot be read counts as
 * wrong. */
#ifndef II_VALIDATE_H
#define II_VALIDATE_H
#include <signal.h>
#include "data/loader.h"
#include "models/model.h"
#include "train/report.h"

typedef struct {
  int64_t images; /* all of the set */
  int64_t failed; /* of these, unreadable: counted as wrong, not part of the loss */
  int64_t correct1, correct5;
  double loss; /* mean cross entropy of the readable images */
  double seconds;
  bool finite; /* false: some output was not a finite number */
} ii_accuracy;

/* Percent of all images. */
double ii_top1(const ii_accuracy *a);
double ii_top5(const ii_accuracy *a);

typedef struct {
  int64_t img_size;        /* side of the loader's images */
  const int32_t *label_of; /* NULL, or the model's class for each class of the data set */
  /* NULL, or the output for each class of the data set: the other outputs do not take part. Not
   * beside label_of */
  const int32_t *columns;
  int64_t column_count;
  int64_t *class_images;             /* NULL, or [model classes] to count into, by true class */
  int64_t *class_correct;            /* NULL, or [model classes]: top-1 */
  const volatile sig_atomic_t *stop; /* NULL, or stop when it becomes nonzero */
  ii_say say;                        /* pulses */
  const char *title;                 /* of the pulses: "validation" */
} ii_validate_options;

/* One pass over loader (not endless, not shuffled; sought to its start first). Ties in the logits
 * count for the lower class number, as in a stable sort. Errors: those of the loader and the
 * context; II_ERR_FORMAT when not one image can be read; II_ERR_INTERRUPTED when stopped. */
ii_status ii_validate(ii_model *model, ii_loader *loader, const ii_validate_options *options,
                      ii_accuracy *result, ii_error *err);

/* ---- The parts, for evaluations that compute the rows in another way (eval/tta.h) ---- */

/* How many outputs take part: those of options->columns, or all of the model's classes. */
int64_t ii_validate_width(const ii_validate_options *options, int64_t classes);

/* The outputs that take part of logits[count, classes], [count, width]: logits itself, or with
 * columns picked, which has that room and is overwritten. */
const double *ii_validate_pick(const ii_validate_options *options, const double *logits,
                               int64_t count, int64_t classes, double *picked);

typedef struct {
  int64_t count;
  const int32_t *labels; /* [count]: of the data set */
  const uint8_t *valid;  /* [count]: 0 counts as wrong and failed; its row is not looked at */
  const double *rows;    /* [count, width]: logits, or the logarithms of anything that is in
                          * proportion to the probabilities */
} ii_validate_rows;

/* Adds a batch to result (which begins as {.finite = true}) and to the counters of options. The
 * loss is a sum until ii_validate_finish divides it. */
void ii_validate_count(const ii_validate_options *options, const ii_validate_rows *batch,
                       int64_t classes, ii_accuracy *result);

/* Errors: II_ERR_FORMAT when not one image could be read. */
ii_status ii_validate_finish(ii_accuracy *result, ii_error *err);

#endif
