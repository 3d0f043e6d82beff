/* Test-time augmentation: the accuracy of an average over several views of each image.
 *
 * The views are the evaluation transform at several sizes, each also mirrored if wanted. The model
 * gives a view the probabilities p_k = softmax(logits) over the outputs that take part; an image's
 * are their mean, (1 / K) sum p_k, in double precision. With one view there is nothing to average:
 * its logits count as they are, so that the result is the plain one to the bit. */
#ifndef II_TTA_H
#define II_TTA_H
#include "models/model.h"
#include "train/config.h"
#include "train/validate.h"

enum { II_TTA_SCALES = 16 }; /* most scales */

typedef struct {
  int64_t count; /* scales; 0: no test-time augmentation */
  double scales[II_TTA_SCALES];
  bool flip; /* every view also mirrored left to right */
} ii_tta;

/* From "0.875,1,1.14"; flip is left alone. Errors: II_ERR_ARG (not numbers above 0 and up to 16
 * with commas in between; too many). */
ii_status ii_tta_parse(const char *text, ii_tta *tta, ii_error *err);

/* The side of the images at each scale: img_size itself at scale 1, otherwise scale * img_size
 * rounded to a multiple of 32. Errors: II_ERR_ARG (two scales of the same size; not in 32..4096).
 */
ii_status ii_tta_sizes(const ii_tta *tta, int64_t img_size, int64_t sizes[II_TTA_SCALES],
                       ii_error *err);

typedef struct {
  const ii_config *config; /* of the plain evaluation */
  const ii_dataset *set;
  const ii_tta *tta;
  ii_validate_options plain; /* as for ii_validate; title and say are those of both */
  int64_t *class_correct;    /* NULL, or [model classes]: top-1 of the average; images are counted
                              * by plain */
} ii_tta_options;

/* One pass that computes the plain result, which is that of ii_validate on the same configuration
 * to the bit, and that of the average. An image that cannot be read at any of the sizes is named
 * once and counts as wrong. Memory on the device is sized once, for the largest view. Errors: those
 * of ii_tta_sizes and ii_validate. */
ii_status ii_tta_validate(ii_model *model, const ii_tta_options *options, ii_accuracy *plain,
                          ii_accuracy *average, ii_error *err);

#endif
