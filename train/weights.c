#include "train/weights.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where files keep weights; "" ends a list. */
static const char *const WEIGHT_GROUPS[] = {"/model", "/params", "/state_dict", "/", ""};
static const char *const EMA_GROUPS[] = {"/ema", "/model_ema", "/state_dict_ema", ""};

static const char *const PREFIXES[] = {"module.", "backbone."};

/* What is to be done with one tensor of the file. */
typedef struct {
  ii_param *param;
  const char *name; /* in the file */
} match;

static bool is_counter(const char *name) {
  static const char end[] = "num_batches_tracked";
  size_t n = strlen(name), m = sizeof end - 1;
  return n >= m && !strcmp(name + n - m, end);
}

static bool is_head(const char *name) {
  return !strcmp(name, "head.weight") || !strcmp(name, "head.bias");
}

/* The first group of the list that is there and has data sets. */
static ii_status find_weights(ii_h5 *f, bool ema, const char **group, char ***names, int64_t *count,
                              ii_error *err) {
  const char *const *groups = ema ? EMA_GROUPS : WEIGHT_GROUPS;
  for (int i = 0; *groups[i]; i++) {
    if (!ii_h5_has_group(f, groups[i])) continue;
    II_TRY(ii_h5_list(f, groups[i], names, count, err));
    *group = groups[i];
    if (*count) return II_OK;
    free(*names);
    *names = NULL;
  }
  if (ema)
    return ii_error_set(err, II_ERR_FORMAT,
                        "%s holds no moving average of the weights; use the weights themselves",
                        ii_h5_path(f));
  return ii_error_set(err, II_ERR_FORMAT,
                      "%s holds no weights: there are no data sets in /model, /params, "
                      "/state_dict or at its top",
                      ii_h5_path(f));
}

/* The parameter a name of the file stands for, with known prefixes stripped where that helps. */
static ii_param *find_param(const ii_params *p, const char *name, bool *stripped) {
  ii_param *q = ii_params_find(p, name);
  *stripped = false;
  for (size_t i = 0; !q && i < sizeof PREFIXES / sizeof *PREFIXES; i++) {
    size_t n = strlen(PREFIXES[i]);
    if (strncmp(name, PREFIXES[i], n) != 0) continue;
    name += n;
    q = ii_params_find(p, name);
    *stripped = q != NULL;
  }
  return q;
}

static void shape_text(const int64_t *dim, int ndim, char *text, size_t size) {
  size_t at = 0;
  text[0] = 0;
  for (int i = 0; i < ndim && at < size; i++)
    at += (size_t)snprintf(text + at, size - at, "%s%lld", i ? "x" : "", (long long)dim[i]);
  if (ndim == 0) snprintf(text, size, "scalar");
}

static void note_mismatch(ii_weights_report *r, const ii_param *q, const ii_h5_shape *found) {
  char file[40], model[40];
  if (r->mismatched++ >= II_WEIGHTS_NAMED) return;
  shape_text(found->dim, found->ndim, file, sizeof file);
  shape_text(q->value->shape, q->value->ndim, model, sizeof model);
  snprintf(r->mismatched_names[r->mismatched - 1], sizeof r->mismatched_names[0],
           "%s: %s in the file, %s in the model", q->name, file, model);
}

static bool shape_fits(const ii_tensor *t, const ii_h5_shape *s) {
  bool fits = t->ndim == s->ndim;
  for (int i = 0; fits && i < s->ndim; i++) fits = t->shape[i] == s->dim[i];
  /* a counter may be stored with or without its one dimension */
  return fits || (ii_numel(t) == 1 && ii_h5_numel(s) == 1);
}

/* Decides about one name of the file; *to is left empty when nothing is to be loaded from it. */
static ii_status consider(ii_h5 *f, const char *group, const char *name, const ii_params *p,
                          const ii_weights_options *o, bool *seen, ii_weights_report *r, match *to,
                          ii_error *err) {
  bool stripped;
  ii_h5_shape shape;
  ii_param *q = find_param(p, name, &stripped);
  if (!q) {
    if (is_counter(name)) return II_OK;
    if (r->unexpected++ < II_WEIGHTS_NAMED)
      snprintf(r->unexpected_names[r->unexpected - 1], II_PARAM_NAME, "%s", name);
    return II_OK;
  }
  if (seen[q - p->at])
    return ii_error_set(err, II_ERR_FORMAT, "%s has two tensors for '%s'", ii_h5_path(f), q->name);
  seen[q - p->at] = true;
  r->stripped += stripped;
  II_TRY(ii_h5_get_shape(f, group, name, &shape, err));
  if (!shape_fits(q->value, &shape)) {
    if (o->rand_init_head && is_head(q->name))
      r->head_replaced = true;
    else
      note_mismatch(r, q, &shape);
    return II_OK;
  }
  r->matched++;
  *to = (match){.param = q, .name = name};
  return II_OK;
}

static ii_status compare(ii_h5 *f, const char *group, char **names, int64_t count,
                         const ii_params *p, const ii_weights_options *o, ii_weights_report *r,
                         match *todo, ii_error *err) {
  bool *seen = calloc((size_t)p->count + 1, sizeof *seen);
  if (!seen) return ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  ii_status s = II_OK;
  for (int64_t i = 0; i < count && s == II_OK; i++)
    s = consider(f, group, names[i], p, o, seen, r, &todo[i], err);
  for (int64_t i = 0; i < p->count && s == II_OK; i++) {
    if (seen[i] || is_counter(p->at[i].name)) continue;
    if (r->missing++ < II_WEIGHTS_NAMED) strcpy(r->missing_names[r->missing - 1], p->at[i].name);
  }
  /* weight and bias of a replaced head go together */
  for (int64_t i = 0; i < count && r->head_replaced; i++) {
    if (!todo[i].param || !is_head(todo[i].param->name)) continue;
    todo[i].param = NULL;
    r->matched--;
  }
  free(seen);
  return s;
}

static ii_status load_one(ii_h5 *f, const char *group, const match *m, ii_ctx *c, ii_error *err) {
  ii_tensor *t = m->param->value;
  ii_h5_shape shape;
  II_TRY(ii_h5_get_shape(f, group, m->name, &shape, err));
  void *data = malloc((size_t)ii_numel(t) * ii_dtype_size(t->dtype) + 1);
  if (!data) return ii_error_set(err, II_ERR_MEMORY, "out of host memory for '%s'", m->name);
  ii_status s =
      ii_h5_read(f, group, m->name, &shape, t->dtype == II_F64 ? II_H5_F64 : II_H5_F32, data, err);
  if (s == II_OK) ii_tensor_write(c, t, data);
  free(data);
  return s;
}

/* The official rule for a head of another size: what it was initialised with, times 0.001. */
static ii_status shrink_head(ii_params *p, ii_error *err) {
  for (int64_t i = 0; i < p->count; i++) {
    ii_tensor *t = p->at[i].value;
    if (!is_head(p->at[i].name)) continue;
    int64_t n = ii_numel(t);
    double *v = malloc((size_t)n * sizeof *v + 1);
    if (!v) return ii_error_set(err, II_ERR_MEMORY, "out of host memory for the head");
    ii_tensor_read_f64(p->ctx, t, v);
    for (int64_t k = 0; k < n; k++) v[k] *= 0.001;
    ii_tensor_write_f64(p->ctx, t, v);
    free(v);
  }
  return II_OK;
}

static ii_status refuse(ii_h5 *f, const ii_weights_report *r, ii_error *err) {
  char text[700];
  ii_weights_report_text(r, text, sizeof text);
  bool head = r->mismatched > 0;
  for (int64_t i = 0; i < r->mismatched && i < II_WEIGHTS_NAMED; i++)
    head &= !strncmp(r->mismatched_names[i], "head.", 5);
  return ii_error_set(err, II_ERR_FORMAT, "%s does not fit the model: %s; %s", ii_h5_path(f), text,
                      head && !r->missing && !r->unexpected && r->mismatched <= II_WEIGHTS_NAMED
                          ? "--set train.rand_init_ft_head=true replaces the classifier"
                          : "check the configuration, or load what fits with --partial");
}

ii_status ii_weights_load(ii_h5 *f, ii_params *p, const ii_weights_options *o, ii_weights_report *r,
                          ii_error *err) {
  const char *group = NULL;
  char **names = NULL;
  int64_t count = 0;
  *r = (ii_weights_report){0};
  II_TRY(find_weights(f, o->ema, &group, &names, &count, err));
  match *todo = calloc((size_t)count, sizeof *todo);
  ii_status s = todo ? compare(f, group, names, count, p, o, r, todo, err)
                     : ii_error_set(err, II_ERR_MEMORY, "out of host memory");
  if (s == II_OK &&
      (r->matched == 0 || (!o->partial && r->missing + r->unexpected + r->mismatched)))
    s = refuse(f, r, err);
  for (int64_t i = 0; i < count && s == II_OK; i++)
    if (todo[i].param) s = load_one(f, group, &todo[i], p->ctx, err);
  if (s == II_OK && r->head_replaced) s = shrink_head(p, err);
  if (s == II_OK) ii_params_refresh_low(p);
  free(todo);
  free(names);
  return s;
}

/* ---- the report ------------------------------------------------------------------------------*/

static void append(char *text, size_t size, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void append(char *text, size_t size, const char *fmt, ...) {
  size_t at = strlen(text);
  va_list args;
  va_start(args, fmt);
  vsnprintf(text + at, size - at, fmt, args);
  va_end(args);
}

void ii_weights_report_text(const ii_weights_report *r, char *text, size_t size) {
  text[0] = 0;
  append(text, size, "%lld of %lld tensors matched", (long long)r->matched,
         (long long)(r->matched + r->missing + r->mismatched + (r->head_replaced ? 2 : 0)));
  if (r->missing) append(text, size, ", %lld missing (", (long long)r->missing);
  for (int64_t i = 0; i < r->missing && i < II_WEIGHTS_NAMED; i++)
    append(text, size, "%s%s", i ? ", " : "", r->missing_names[i]);
  if (r->missing) append(text, size, r->missing > II_WEIGHTS_NAMED ? ", ...)" : ")");
  if (r->unexpected) append(text, size, ", %lld unexpected (", (long long)r->unexpected);
  for (int64_t i = 0; i < r->unexpected && i < II_WEIGHTS_NAMED; i++)
    append(text, size, "%s%s", i ? ", " : "", r->unexpected_names[i]);
  if (r->unexpected) append(text, size, r->unexpected > II_WEIGHTS_NAMED ? ", ...)" : ")");
  if (r->mismatched) append(text, size, ", %lld of another shape (", (long long)r->mismatched);
  for (int64_t i = 0; i < r->mismatched && i < II_WEIGHTS_NAMED; i++)
    append(text, size, "%s%s", i ? "; " : "", r->mismatched_names[i]);
  if (r->mismatched) append(text, size, r->mismatched > II_WEIGHTS_NAMED ? "; ...)" : ")");
  if (r->stripped)
    append(text, size, ", prefix module. or backbone. taken off %lld names",
           (long long)r->stripped);
  if (r->head_replaced) append(text, size, ", classifier replaced by small random weights");
}
