#include "train/checkpoint.h"
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the position, as attributes --------------------------------------------------------------*/

typedef struct {
  const char *name;
  size_t offset;
  int flags;
} field;

enum {
  REAL = 1, /* double; otherwise int64_t */
  ADDED = 2 /* not in the first checkpoints of this version: 0 when it is missing */
};

static const field FIELDS[] = {
    {"epoch", offsetof(ii_train_state, epoch), 0},
    {"batch", offsetof(ii_train_state, batch), 0},
    {"step", offsetof(ii_train_state, step), 0},
    {"steps_per_epoch", offsetof(ii_train_state, steps_per_epoch), 0},
    {"updates", offsetof(ii_train_state, updates), 0},
    {"images", offsetof(ii_train_state, images), 0},
    {"seed", offsetof(ii_train_state, seed), 0},
    {"bad_files", offsetof(ii_train_state, bad_files), 0},
    {"validated_step", offsetof(ii_train_state, validated_step), 0},
    {"best_top1", offsetof(ii_train_state, best_top1), REAL},
    {"best_is_ema", offsetof(ii_train_state, best_is_ema), 0},
    {"loss_sum", offsetof(ii_train_state, loss_sum), REAL},
    {"loss_count", offsetof(ii_train_state, loss_count), 0},
    {"loss_scale", offsetof(ii_train_state, loss_scale), REAL | ADDED},
    {"good_updates", offsetof(ii_train_state, good_updates), ADDED},
    {"skipped_updates", offsetof(ii_train_state, skipped_updates), ADDED},
    {"data_images", offsetof(ii_train_state, data_images), ADDED},
    {"data_checksum", offsetof(ii_train_state, data_checksum), ADDED},
};
enum { FIELD_COUNT = sizeof FIELDS / sizeof *FIELDS };

static ii_status save_state(ii_h5 *f, const ii_train_state *state, ii_error *err) {
  for (int i = 0; i < FIELD_COUNT; i++) {
    const void *at = (const char *)state + FIELDS[i].offset;
    if (FIELDS[i].flags & REAL)
      II_TRY(ii_h5_set_f64(f, FIELDS[i].name, *(const double *)at, err));
    else
      II_TRY(ii_h5_set_i64(f, FIELDS[i].name, *(const int64_t *)at, err));
  }
  return II_OK;
}

ii_status ii_checkpoint_state(ii_h5 *f, ii_train_state *state, ii_error *err) {
  int64_t version;
  if (!ii_h5_is_ours(f))
    return ii_error_set(err, II_ERR_FORMAT,
                        "%s holds weights but no training position; start from it with --init",
                        ii_h5_path(f));
  II_TRY(ii_h5_get_i64(f, "version", &version, err));
  if (version != II_CHECKPOINT_VERSION)
    return ii_error_set(err, II_ERR_FORMAT,
                        "%s is a checkpoint of version %lld; this program reads version %d",
                        ii_h5_path(f), (long long)version, II_CHECKPOINT_VERSION);
  for (int i = 0; i < FIELD_COUNT; i++) {
    void *at = (char *)state + FIELDS[i].offset;
    if ((FIELDS[i].flags & ADDED) && !ii_h5_has_attr(f, FIELDS[i].name))
      memset(at, 0, 8);
    else if (FIELDS[i].flags & REAL)
      II_TRY(ii_h5_get_f64(f, FIELDS[i].name, at, err));
    else
      II_TRY(ii_h5_get_i64(f, FIELDS[i].name, at, err));
  }
  if (state->epoch < 0 || state->batch < 0 || state->batch > state->steps_per_epoch ||
      state->step < 0 || state->updates < 0 || state->loss_count < 0 || !(state->loss_scale >= 0) ||
      state->good_updates < 0 || state->skipped_updates < 0)
    return ii_error_set(err, II_ERR_FORMAT, "%s has an impossible position", ii_h5_path(f));
  return II_OK;
}

/* ---- tensors ----------------------------------------------------------------------------------*/

/* One buffer for all copies between tensors and the file. */
typedef struct {
  void *data;
  size_t size;
} staging;

static ii_status stage(staging *s, const ii_tensor *t, ii_error *err) {
  size_t bytes = (size_t)ii_numel(t) * ii_dtype_size(t->dtype);
  if (bytes > s->size || !s->data) {
    free(s->data);
    s->size = bytes + 64;
    s->data = malloc(s->size);
  }
  if (s->data) return II_OK;
  s->size = 0;
  return ii_error_set(err, II_ERR_MEMORY, "out of host memory for %zu bytes of a checkpoint",
                      bytes);
}

static ii_h5_shape shape_of(const ii_tensor *t) {
  ii_h5_shape s = {.ndim = t->ndim};
  for (int i = 0; i < t->ndim; i++) s.dim[i] = t->shape[i];
  return s;
}

static ii_h5_type type_of(const ii_tensor *t) {
  II_ASSERT(t->dtype == II_F32 || t->dtype == II_F64, "a checkpoint of %s",
            ii_dtype_name(t->dtype));
  return t->dtype == II_F64 ? II_H5_F64 : II_H5_F32;
}

static ii_status save_tensor(ii_h5 *f, const char *group, const char *name, ii_ctx *c,
                             const ii_tensor *t, staging *s, ii_error *err) {
  ii_h5_shape shape = shape_of(t);
  II_TRY(stage(s, t, err));
  ii_tensor_read(c, t, s->data);
  return ii_h5_write(f, group, name, type_of(t), type_of(t), &shape, s->data, err);
}

static ii_status load_tensor(ii_h5 *f, const char *group, const char *name, ii_ctx *c, ii_tensor *t,
                             staging *s, ii_error *err) {
  ii_h5_shape shape = shape_of(t);
  II_TRY(stage(s, t, err));
  II_TRY(ii_h5_read(f, group, name, &shape, type_of(t), s->data, err));
  ii_tensor_write(c, t, s->data);
  return II_OK;
}

/* Where a part of the optimizer's state is kept; the average has a group of its own. */
static void group_of(const char *kind, char group[64]) {
  if (!strcmp(kind, "ema"))
    strcpy(group, "/ema");
  else
    snprintf(group, 64, "/optimizer/%s", kind);
}

static ii_status save_optimizer(ii_h5 *f, const ii_optimizer *o, staging *s, ii_error *err) {
  ii_optimizer_item item;
  char group[64];
  II_TRY(ii_h5_group(f, "/optimizer", err));
  for (int64_t i = 0; ii_optimizer_state(o, i, &item); i++) {
    group_of(item.kind, group);
    if (!ii_h5_has_group(f, group)) II_TRY(ii_h5_group(f, group, err));
    II_TRY(save_tensor(f, group, item.name, o->params->ctx, item.tensor, s, err));
  }
  return II_OK;
}

static ii_status save_gradients(ii_h5 *f, ii_params *p, staging *s, ii_error *err) {
  for (int64_t i = 0; i < p->count; i++) {
    const ii_tensor *v = p->at[i].value;
    if (!v->grad || !v->grad_valid) continue;
    if (!ii_h5_has_group(f, "/gradient")) II_TRY(ii_h5_group(f, "/gradient", err));
    II_TRY(save_tensor(f, "/gradient", p->at[i].name, p->ctx, v->grad, s, err));
  }
  return II_OK;
}

static ii_status save_all(ii_h5 *f, const ii_checkpoint_content *c, staging *s, ii_error *err) {
  II_TRY(ii_h5_set_text(f, "format", "internimage checkpoint", err));
  II_TRY(ii_h5_set_i64(f, "version", II_CHECKPOINT_VERSION, err));
  II_TRY(ii_h5_set_text(f, "program", "internimage.c " II_VERSION, err));
  II_TRY(ii_h5_set_text(f, "config", c->config, err));
  II_TRY(save_state(f, &c->state, err));
  if (c->class_count) II_TRY(ii_h5_write_texts(f, "/", "classes", c->class_count, c->classes, err));
  II_TRY(ii_h5_group(f, "/model", err));
  for (int64_t i = 0; i < c->params->count; i++)
    II_TRY(save_tensor(f, "/model", c->params->at[i].name, c->params->ctx, c->params->at[i].value,
                       s, err));
  II_TRY(save_optimizer(f, c->optimizer, s, err));
  return save_gradients(f, c->params, s, err);
}

ii_status ii_checkpoint_save(const char *path, const ii_checkpoint_content *c, ii_error *err) {
  staging s = {0};
  ii_h5 *f;
  II_TRY(ii_h5_create(path, &f, err));
  ii_status status = save_all(f, c, &s, err);
  free(s.data);
  if (status == II_OK) return ii_h5_commit(f, err);
  ii_h5_abandon(f);
  return status;
}

/* ---- reading ----------------------------------------------------------------------------------*/

ii_status ii_checkpoint_config(ii_h5 *f, char **text, ii_error *err) {
  if (ii_h5_has_attr(f, "config")) return ii_h5_get_text(f, "config", text, err);
  return ii_error_set(err, II_ERR_FORMAT,
                      "%s does not say which configuration it belongs to; "
                      "give --config",
                      ii_h5_path(f));
}

ii_status ii_checkpoint_classes(ii_h5 *f, char ***names, int64_t *count, ii_error *err) {
  char **sets = NULL;
  int64_t n = 0;
  bool there = false;
  *names = NULL;
  *count = 0;
  II_TRY(ii_h5_list(f, "/", &sets, &n, err));
  for (int64_t i = 0; i < n; i++) there |= !strcmp(sets[i], "classes");
  free(sets);
  return there ? ii_h5_read_texts(f, "/", "classes", names, count, err) : II_OK;
}

static ii_status load_gradients(ii_h5 *f, ii_params *p, staging *s, ii_error *err) {
  char **names = NULL;
  int64_t n = 0;
  ii_params_zero_grad(p);
  if (!ii_h5_has_group(f, "/gradient")) return II_OK;
  II_TRY(ii_h5_list(f, "/gradient", &names, &n, err));
  ii_status status = II_OK;
  for (int64_t i = 0; i < n && status == II_OK; i++) {
    ii_param *q = ii_params_find(p, names[i]);
    if (!q || !q->value->grad)
      status = ii_error_set(err, II_ERR_FORMAT, "%s has a gradient of '%s', which is not trained",
                            ii_h5_path(f), names[i]);
    else
      status = load_tensor(f, "/gradient", names[i], p->ctx, q->value->grad, s, err);
    if (status == II_OK) q->value->grad_valid = true;
  }
  free(names);
  return status;
}

static ii_status load_all(ii_h5 *f, ii_params *p, ii_optimizer *o, staging *s, ii_error *err) {
  ii_train_state state;
  ii_optimizer_item item;
  char group[64];
  II_TRY(ii_checkpoint_state(f, &state, err));
  for (int64_t i = 0; i < p->count; i++)
    II_TRY(load_tensor(f, "/model", p->at[i].name, p->ctx, p->at[i].value, s, err));
  for (int64_t i = 0; ii_optimizer_state(o, i, &item); i++) {
    group_of(item.kind, group);
    if (load_tensor(f, group, item.name, p->ctx, item.tensor, s, err) != II_OK)
      return ii_error_prefix(err, "the optimizer's state does not fit this run (did "
                                  "train.optimizer, train.ema or train.freeze_stages change?)");
  }
  ii_optimizer_set_state(o, &(ii_update_state){.t = state.updates,
                                               .loss_scale = state.loss_scale,
                                               .good_updates = state.good_updates,
                                               .skipped = state.skipped_updates,
                                               .loss_sum = state.loss_sum,
                                               .loss_count = state.loss_count});
  return load_gradients(f, p, s, err);
}

ii_status ii_checkpoint_restore(ii_h5 *f, ii_params *params, ii_optimizer *optimizer,
                                ii_error *err) {
  staging s = {0};
  ii_status status = load_all(f, params, optimizer, &s, err);
  free(s.data);
  if (status == II_OK) ii_params_refresh_low(params);
  return status;
}
