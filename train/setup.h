/* From a configuration to the parts of a run. */
#ifndef II_SETUP_H
#define II_SETUP_H
#include "data/loader.h"
#include "models/model.h"
#include "optim/optimizer.h"
#include "train/config.h"
#include "train/report.h"

/* Opens the training or validation images as data.format, data.root say. num_classes > 0: labels of
 * list files must be below it. Errors name the key to set. */
ii_status ii_setup_dataset(const ii_config *cfg, bool train, ii_dataset **dataset, ii_error *err);

/* The transform and the loader settings of either set; on_bad and its context are left empty. */
ii_loader_config ii_setup_loader(const ii_config *cfg, const ii_dataset *dataset, bool train);

/* cfg->model.num_classes must be known. */
ii_model_config ii_setup_model(const ii_config *cfg);

/* The type that train.amp asks for on this device. auto is none on the CPU, so that a configuration
 * gives the same numbers on every machine. fp16 on the CPU is refused by ii_ctx_open. */
ii_dtype ii_setup_compute(const ii_config *cfg, ii_device device);

/* "fp32", "bf16" or "fp16". */
const char *ii_setup_precision_name(ii_dtype compute);

ii_schedule ii_setup_schedule(const ii_config *cfg, int64_t steps_per_epoch);
ii_optimizer_options ii_setup_optimizer(const ii_config *cfg);

/* With num_classes 0 takes the number of the data set, and checks that the labels fit otherwise.
 * Says what it found. Errors: II_ERR_ARG (more classes in the data than outputs). */
ii_status ii_setup_classes(ii_config *cfg, const ii_dataset *dataset, const ii_say *say,
                           ii_error *err);

/* data.val_columns: the output of each class of the validation images, in new memory freed by the
 * caller; NULL when the key is not set. model.num_classes must be known. Errors: II_ERR_IO,
 * II_ERR_FORMAT (with the line; not as many as classes). */
ii_status ii_setup_columns(const ii_config *cfg, const ii_dataset *dataset, int32_t **columns,
                           ii_error *err);

#endif
