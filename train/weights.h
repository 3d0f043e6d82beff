/* Loading weights into a model from any HDF5 file of tensors with state-dict names: our
 * checkpoints, or converted files with the tensors in /model, /params, /state_dict or at the top.
 * Nothing is left out silently: every name is matched, missing, unexpected or of the wrong shape,
 * and all but a complete match is refused unless asked for. */
#ifndef II_WEIGHTS_H
#define II_WEIGHTS_H
#include "autograd/param.h"
#include "train/h5file.h"

typedef struct {
  bool ema;            /* the moving average (/ema, /model_ema) instead of the weights */
  bool partial;        /* load what fits, leave the rest as it is */
  bool rand_init_head; /* head.weight, head.bias of another size: keep the present values times
                          0.001 and drop the file's (the official RAND_INIT_FT_HEAD rule) */
} ii_weights_options;

#define II_WEIGHTS_NAMED 3 /* examples that a report names */

typedef struct {
  int64_t matched, missing, unexpected, mismatched;
  int64_t stripped;   /* names that lost a prefix "module." or "backbone." */
  bool head_replaced; /* see rand_init_head */
  char missing_names[II_WEIGHTS_NAMED][II_PARAM_NAME];
  char unexpected_names[II_WEIGHTS_NAMED][II_PARAM_NAME];
  char mismatched_names[II_WEIGHTS_NAMED][II_PARAM_NAME + 112]; /* with both shapes */
} ii_weights_report;

/* Overwrites the parameters and buffers with those of the file and refreshes the bf16 copies.
 * Prefixes "module." and "backbone." are stripped where the model has no such name, and the counter
 * num_batches_tracked, which nothing reads, may be missing or left over. *report is filled also
 * when loading is refused, in which case no value was changed.
 * Errors: II_ERR_FORMAT (no weights in it, names or shapes that do not fit). */
ii_status ii_weights_load(ii_h5 *file, ii_params *params, const ii_weights_options *options,
                          ii_weights_report *report, ii_error *err);

/* One line: "412 of 412 tensors matched", "410 of 412 tensors matched, 2 missing (a, b), ...". */
void ii_weights_report_text(const ii_weights_report *report, char *text, size_t size);

#endif
