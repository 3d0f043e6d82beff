#include "eval/evaluate.h"
#include <stdlib.h>
#include <string.h>
#include "train/checkpoint.h"
#include "train/input.h"
#include "train/setup.h"
#include "train/weights.h"

typedef struct {
  ii_config cfg;
  const ii_eval_options *o;
  ii_h5 *file;
  ii_dataset *set;
  ii_loader *loader;
  ii_ctx *ctx;
  ii_model *model;
  char **names; /* of the checkpoint's classes */
  int64_t n_names;
  int32_t *label_of; /* the model's class for each class of the data */
  int32_t *columns;  /* of ii_setup_columns */
} evaluation;

ii_status ii_eval_config(const char *name, const char *checkpoint, ii_config *cfg, ii_error *err) {
  ii_h5 *f;
  char *text = NULL;
  if (name) return ii_config_load(cfg, name, err);
  II_TRY(ii_h5_open(checkpoint, &f, err));
  ii_status s = ii_checkpoint_config(f, &text, err);
  ii_h5_close(f);
  if (s == II_OK) s = ii_config_parse_text(cfg, text, checkpoint, err);
  free(text);
  return s;
}

/* ---- classes ---------------------------------------------------------------------------------*/

static int64_t find_name(const evaluation *e, const char *name) {
  for (int64_t i = 0; i < e->n_names; i++)
    if (!strcmp(e->names[i], name)) return i;
  return -1;
}

static ii_status map_by_name(evaluation *e, ii_error *err) {
  const int64_t n = ii_dataset_num_classes(e->set);
  e->label_of = calloc((size_t)n, sizeof *e->label_of);
  if (!e->label_of) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  for (int64_t i = 0; i < n; i++) {
    const char *name = ii_dataset_class_name(e->set, i);
    int64_t label = find_name(e, name);
    if (label < 0)
      return ii_error_set(err, II_ERR_ARG,
                          "the data has a class \"%.200s\" that %s was not trained on", name,
                          e->o->checkpoint);
    e->label_of[i] = (int32_t)label;
  }
  if (n < e->n_names)
    ii_say_line(&e->o->say, II_SAY_NOTE, "the data has %lld of the %lld classes", (long long)n,
                (long long)e->n_names);
  return II_OK;
}

static ii_status open_data(evaluation *e, ii_error *err) {
  II_TRY(ii_setup_dataset(&e->cfg, false, &e->set, err));
  II_TRY(ii_checkpoint_classes(e->file, &e->names, &e->n_names, err));
  if (e->n_names && ii_dataset_class_name(e->set, 0)) {
    if (e->cfg.model.num_classes == 0) e->cfg.model.num_classes = e->n_names;
    if (e->cfg.model.num_classes != e->n_names)
      return ii_error_set(
          err, II_ERR_ARG, "model.num_classes = %lld, but %s was trained on %lld classes",
          (long long)e->cfg.model.num_classes, e->o->checkpoint, (long long)e->n_names);
    /* the classes of a column map have names of their own */
    if (*e->cfg.data.val_columns) return ii_setup_columns(&e->cfg, e->set, &e->columns, err);
    return map_by_name(e, err);
  }
  II_TRY(ii_setup_classes(&e->cfg, e->set, &e->o->say, err));
  return ii_setup_columns(&e->cfg, e->set, &e->columns, err);
}

/* ---- model -----------------------------------------------------------------------------------*/

static void mention_average(const evaluation *e) {
  ii_train_state state;
  ii_error none = {0};
  if (e->o->ema || !ii_h5_is_ours(e->file)) return;
  if (ii_checkpoint_state(e->file, &state, &none) != II_OK || state.best_is_ema != 1) return;
  ii_say_line(&e->o->say, II_SAY_NOTE,
              "the best accuracy of this run was that of the moving average: see --ema");
}

static ii_status open_model(evaluation *e, ii_error *err) {
  char text[1024];
  const ii_model_config m = ii_setup_model(&e->cfg);
  ii_weights_report report;
  const ii_weights_options w = {.ema = e->o->ema};
  e->ctx = ii_ctx_open(&(ii_ctx_options){.device = e->o->device,
                                         .index = e->o->device_index,
                                         .threads = (int)e->cfg.train.threads,
                                         .real = II_F32,
                                         .compute = II_F32},
                       err);
  if (!e->ctx) return err->status;
  e->model = ii_model_create(e->ctx, &m, err);
  if (!e->model) return err->status;
  II_TRY(ii_weights_load(e->file, ii_model_params(e->model), &w, &report, err));
  ii_weights_report_text(&report, text, sizeof text);
  if (e->o->device == II_CUDA)
    ii_say_line(&e->o->say, II_SAY_NOTE, "device: %s", ii_cuda_engine_name());
  ii_say_line(&e->o->say, II_SAY_NOTE, "%s of %s: %s", e->o->ema ? "moving average" : "weights",
              e->o->checkpoint, text);
  mention_average(e);
  return ii_ok(e->ctx) ? II_OK : ii_error_set(err, e->ctx->err.status, "%s", e->ctx->err.text);
}

/* ---- evaluation ------------------------------------------------------------------------------*/

static void bad_file(void *user, const char *path, const char *reason) {
  const evaluation *e = user;
  ii_say_line(&e->o->say, II_SAY_WARNING, "%s cannot be used and counts as wrong: %s", path,
              reason);
}

/* Names for the table: the checkpoint's, or those of the data. One block. */
static char **copy_names(const evaluation *e, int64_t classes) {
  size_t size = 0;
  const bool own = e->n_names == classes;
  if (!own && !ii_dataset_class_name(e->set, 0)) return NULL;
  for (int pass = 0;; pass++) {
    char **out = pass ? malloc((size_t)classes * sizeof *out + size) : NULL;
    if (pass && !out) return NULL;
    char *text = (char *)(out + classes);
    for (int64_t i = 0; i < classes; i++) {
      const char *name = own                                  ? e->names[i]
                         : i < ii_dataset_num_classes(e->set) ? ii_dataset_class_name(e->set, i)
                                                              : "";
      const size_t n = strlen(name) + 1;
      if (!pass) {
        size += n;
        continue;
      }
      out[i] = memcpy(text, name, n);
      text += n;
    }
    if (pass) return out;
  }
}

static ii_status plain(evaluation *e, const ii_validate_options *v, ii_eval_result *r,
                       ii_error *err) {
  ii_loader_config l = ii_setup_loader(&e->cfg, e->set, false);
  l.on_bad = bad_file;
  l.context = e;
  ii_input_loader_memory(&l, e->ctx);
  if (ii_loader_new(&l, &e->loader, err) != II_OK) return ii_error_prefix(err, "validation images");
  return ii_validate(e->model, e->loader, v, &r->accuracy, err);
}

static ii_status run(evaluation *e, ii_eval_result *r, ii_error *err) {
  int64_t sizes[II_TTA_SCALES];
  II_TRY(ii_tta_sizes(&e->o->tta, e->cfg.data.img_size, sizes, err));
  II_TRY(ii_h5_open(e->o->checkpoint, &e->file, err));
  II_TRY(open_data(e, err));
  II_TRY(open_model(e, err));
  r->classes = e->cfg.model.num_classes;
  r->class_images = calloc((size_t)r->classes, sizeof *r->class_images);
  r->class_correct = calloc((size_t)r->classes, sizeof *r->class_correct);
  if (e->o->tta.count) r->class_average = calloc((size_t)r->classes, sizeof *r->class_average);
  if (!r->class_images || !r->class_correct || (e->o->tta.count && !r->class_average))
    return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  r->class_names = copy_names(e, r->classes);
  const ii_validate_options v = {.img_size = e->cfg.data.img_size,
                                 .label_of = e->label_of,
                                 .columns = e->columns,
                                 .column_count = ii_dataset_num_classes(e->set),
                                 .class_images = r->class_images,
                                 .class_correct = r->class_correct,
                                 .say = e->o->say,
                                 .title = "evaluation"};
  if (!e->o->tta.count) return plain(e, &v, r, err);
  const ii_tta_options t = {.config = &e->cfg,
                            .set = e->set,
                            .tta = &e->o->tta,
                            .plain = v,
                            .class_correct = r->class_average};
  return ii_tta_validate(e->model, &t, &r->accuracy, &r->average, err);
}

ii_status ii_eval_run(const ii_eval_options *o, ii_eval_result *r, ii_error *err) {
  *r = (ii_eval_result){0};
  evaluation *e = calloc(1, sizeof *e);
  if (!e) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  e->cfg = o->config;
  e->o = o;
  ii_status s = run(e, r, err);
  ii_loader_free(e->loader); /* its memory is the context's */
  if (e->model) ii_model_destroy(e->model);
  if (e->ctx) ii_ctx_close(e->ctx);
  ii_dataset_free(e->set);
  ii_h5_close(e->file);
  free(e->names);
  free(e->label_of);
  free(e->columns);
  free(e);
  if (s != II_OK) ii_eval_free(r);
  return s;
}

void ii_eval_free(ii_eval_result *r) {
  free(r->class_images);
  free(r->class_correct);
  free(r->class_average);
  free(r->class_names);
  *r = (ii_eval_result){0};
}
