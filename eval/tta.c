#include "eval/tta.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "autograd/rng.h"
#include "autograd/tape.h"
#include "train/input.h"
#include "train/setup.h"

enum { LEAST_SIZE = 32, LARGEST_SIZE = 4096, MULTIPLE = 32, LARGEST_SCALE = 16 };

/* ---- scales ----------------------------------------------------------------------------------*/

ii_status ii_tta_parse(const char *text, ii_tta *t, ii_error *err) {
  const char *s = text;
  for (t->count = 0;;) {
    char *end;
    const double v = strtod(s, &end);
    if (end == s || (*end && *end != ',') || !(v > 0 && v <= LARGEST_SCALE))
      return ii_error_set(err, II_ERR_ARG,
                          "the scales \"%.100s\" are not numbers above 0 and up to %d with commas "
                          "in between, such as 0.875,1,1.14",
                          text, LARGEST_SCALE);
    if (t->count == II_TTA_SCALES)
      return ii_error_set(err, II_ERR_ARG, "the scales \"%.100s\" are more than %d", text,
                          II_TTA_SCALES);
    t->scales[t->count++] = v;
    if (!*end) return II_OK;
    s = end + 1;
  }
}

ii_status ii_tta_sizes(const ii_tta *t, int64_t img_size, int64_t sizes[II_TTA_SCALES],
                       ii_error *err) {
  for (int64_t i = 0; i < t->count; i++) {
    const double side = t->scales[i] * (double)img_size;
    const int64_t n = t->scales[i] == 1 ? img_size : (int64_t)rint(side / MULTIPLE) * MULTIPLE;
    sizes[i] = n;
    if (n < LEAST_SIZE || n > LARGEST_SIZE)
      return ii_error_set(err, II_ERR_ARG,
                          "the scale %g makes images of %lld pixels, which are not in %d..%d",
                          t->scales[i], (long long)n, LEAST_SIZE, LARGEST_SIZE);
    for (int64_t j = 0; j < i; j++)
      if (sizes[j] == sizes[i])
        return ii_error_set(err, II_ERR_ARG,
                            "the scales %g and %g both make images of %lld pixels (multiples of "
                            "%d): leave one out",
                            t->scales[j], t->scales[i], (long long)sizes[i], MULTIPLE);
  }
  return II_OK;
}

/* ---- the pass --------------------------------------------------------------------------------*/

/* A size: its images, mirrored ones included. */
typedef struct {
  int64_t size;
  bool averaged; /* false: only for the plain result */
  ii_loader *loader;
  const ii_batch *batch;
} view;

typedef struct {
  const ii_tta_options *o;
  ii_model *model;
  ii_ctx *ctx;
  view views[II_TTA_SCALES + 1]; /* the first is the plain one */
  int64_t n_views, averaged;     /* averaged: with their mirror images */
  int64_t classes, width, batch;
  ii_tensor *images, *meta; /* on the device, room for the largest */
  double *logits;           /* [batch, classes] */
  double *picked;           /* [batch, width] */
  double *sum;              /* [batch, width]: log of the sum of the probabilities */
  uint8_t *valid;           /* [batch]: at all sizes */
  int64_t added;            /* rows in sum */
  uint64_t *told;           /* hashes of the files of this batch that on_bad named */
  int64_t n_told, told_room;
} tta_pass;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Every size meets the same damaged files; each is named once. */
static void bad_file(void *user, const char *path, const char *reason) {
  tta_pass *p = user;
  const uint64_t hash = ii_hash_string(path);
  for (int64_t i = 0; i < p->n_told; i++)
    if (p->told[i] == hash) return;
  if (p->n_told < p->told_room) p->told[p->n_told++] = hash;
  ii_say_line(&p->o->plain.say, II_SAY_WARNING, "%s cannot be used and counts as wrong: %s", path,
              reason);
}

/* Adds the probabilities of rows[count, width]. */
static void add_rows(tta_pass *p, const double *rows, int64_t count) {
  const int64_t width = p->width;
  const bool first = p->added++ == 0;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i++) {
    const double *x = rows + i * width;
    double *out = p->sum + i * width, max = x[0], sum = 0;
    if (p->averaged == 1) { /* logits as they are: see tta.h */
      memcpy(out, x, (size_t)width * sizeof *x);
      continue;
    }
    for (int64_t k = 0; k < width; k++) max = x[k] > max ? x[k] : max;
    for (int64_t k = 0; k < width; k++) sum += exp(x[k] - max);
    const double whole = max + log(sum);
    for (int64_t k = 0; k < width; k++) {
      const double a = x[k] - whole, b = out[k];
      /* log(exp(a) + exp(b)): nothing underflows, so ties are the model's own */
      out[k] = first ? a : (a > b ? a : b) + log1p(exp(-fabs(a - b)));
    }
  }
}

static void mirror(float *images, int64_t count, int64_t size) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < count * size; row++) {
    float *a = images + row * size * 3, *b = a + (size - 1) * 3;
    for (; a < b; a += 3, b -= 3)
      for (int c = 0; c < 3; c++) {
        const float v = a[c];
        a[c] = b[c], b[c] = v;
      }
  }
}

/* The outputs that take part for the images of v as its batch has them now; NULL on an error. */
static const double *compute(tta_pass *p, const view *v) {
  ii_ctx *c = p->ctx;
  ii_tensor *meta = ii_model_get_config(p->model)->meta_dims[0] ? p->meta : NULL;
  p->images->shape[0] = v->batch->count;
  p->images->shape[1] = p->images->shape[2] = v->size;
  ii_tensor_write(c, p->images, v->batch->images);
  if (meta) {
    meta->shape[0] = v->batch->count;
    ii_tensor_write(c, meta, v->batch->meta);
  }
  ii_tensor *y = ii_model_forward(p->model, p->images, meta, NULL);
  ii_tensor_read_f64(c, y, p->logits);
  ii_tape_reset(c);
  return ii_ok(c)
             ? ii_validate_pick(&p->o->plain, p->logits, v->batch->count, p->classes, p->picked)
             : NULL;
}

/* The next batch at all sizes. *count is -1 at the end. */
static ii_status fetch(tta_pass *p, int64_t *count, ii_error *err) {
  p->n_told = 0;
  for (int64_t i = 0; i < p->n_views; i++) {
    view *v = &p->views[i];
    II_TRY(ii_loader_next(v->loader, &v->batch, err));
    *count = v->batch ? v->batch->count : -1;
    if (!v->batch) continue;
    for (int64_t k = 0; k < *count; k++)
      p->valid[k] = (uint8_t)(v->batch->valid[k] && (i == 0 || p->valid[k]));
  }
  return II_OK;
}

static ii_status one_batch(tta_pass *p, int64_t count, ii_accuracy *plain, ii_accuracy *average,
                           ii_error *err) {
  ii_validate_rows rows = {.count = count, .labels = p->views[0].batch->labels};
  p->added = 0;
  for (int64_t i = 0; count && i < p->n_views && ii_ok(p->ctx); i++) {
    view *v = &p->views[i];
    if (!(rows.rows = compute(p, v))) break;
    rows.valid = v->batch->valid;
    if (i == 0) ii_validate_count(&p->o->plain, &rows, p->classes, plain);
    if (!v->averaged) continue;
    add_rows(p, rows.rows, count);
    if (!p->o->tta->flip) continue;
    mirror(v->batch->images, count, v->size); /* the loader's memory, ours until the next batch */
    if ((rows.rows = compute(p, v))) add_rows(p, rows.rows, count);
  }
  if (!ii_ok(p->ctx)) return ii_error_set(err, p->ctx->err.status, "%s", p->ctx->err.text);
  ii_validate_options o = p->o->plain;
  o.class_images = NULL, o.class_correct = p->o->class_correct;
  rows.rows = p->sum, rows.valid = p->valid;
  ii_validate_count(&o, &rows, p->classes, average);
  return II_OK;
}

static ii_status run(tta_pass *p, ii_accuracy *plain, ii_accuracy *average, ii_error *err) {
  const ii_validate_options *o = &p->o->plain;
  const int64_t batches = ii_loader_batches_per_epoch(p->views[0].loader);
  const double start = now();
  for (int64_t n = 1, count = -1;; n++) {
    II_TRY(fetch(p, &count, err));
    if (count < 0) break;
    II_TRY(one_batch(p, count, plain, average, err));
    if (o->stop && *o->stop) return ii_error_set(err, II_ERR_INTERRUPTED, "stopped on request");
    plain->seconds = average->seconds = now() - start;
    ii_say_line(&o->say, II_SAY_PULSE, "%s %lld/%lld %.0f img/s top-1 %.2f %%, average %.2f %%",
                o->title, (long long)n, (long long)batches,
                (double)plain->images / (plain->seconds + 1e-9), ii_top1(plain), ii_top1(average));
  }
  II_TRY(ii_validate_finish(plain, err));
  return ii_validate_finish(average, err);
}

/* ---- opening ---------------------------------------------------------------------------------*/

/* The plain view, and the others behind it. */
static ii_status list_views(tta_pass *p, ii_error *err) {
  int64_t sizes[II_TTA_SCALES];
  const ii_tta *t = p->o->tta;
  p->views[0].size = p->o->plain.img_size;
  p->n_views = 1;
  II_TRY(ii_tta_sizes(t, p->views[0].size, sizes, err));
  for (int64_t i = 0; i < t->count; i++)
    if (sizes[i] == p->views[0].size)
      p->views[0].averaged = true;
    else
      p->views[p->n_views++] = (view){.size = sizes[i], .averaged = true};
  p->averaged = t->count * (t->flip ? 2 : 1);
  return II_OK;
}

static ii_status open_loader(tta_pass *p, view *v, ii_error *err) {
  ii_config cfg = *p->o->config;
  cfg.data.img_size = v->size;
  ii_loader_config l = ii_setup_loader(&cfg, p->o->set, false);
  l.on_bad = bad_file;
  l.context = p;
  ii_input_loader_memory(&l, p->ctx);
  return ii_loader_new(&l, &v->loader, err);
}

static ii_status open_pass(tta_pass *p, ii_error *err) {
  int64_t largest = 0;
  II_TRY(list_views(p, err));
  for (int64_t i = 0; i < p->n_views; i++) {
    II_TRY(open_loader(p, &p->views[i], err));
    if (p->views[i].size > largest) largest = p->views[i].size;
  }
  p->batch = ii_loader_batch_size(p->views[0].loader);
  p->classes = ii_model_get_config(p->model)->num_classes;
  p->width = ii_validate_width(&p->o->plain, p->classes);
  const int64_t images[] = {p->batch, largest, largest, 3}, values[] = {p->batch, II_META_VALUES};
  p->images = ii_tensor_persistent(p->ctx, II_F32, 4, images, II_MEM_INPUT);
  if (ii_loader_has_meta(p->views[0].loader))
    p->meta = ii_tensor_persistent(p->ctx, II_F32, 2, values, II_MEM_INPUT);
  if (!ii_ok(p->ctx)) return ii_error_set(err, p->ctx->err.status, "%s", p->ctx->err.text);
  p->told_room = p->batch * p->n_views;
  p->logits = malloc((size_t)(p->batch * p->classes) * sizeof *p->logits);
  p->picked = malloc((size_t)(p->batch * p->width) * sizeof *p->picked);
  p->sum = malloc((size_t)(p->batch * p->width) * sizeof *p->sum);
  p->valid = malloc((size_t)p->batch);
  p->told = malloc((size_t)p->told_room * sizeof *p->told);
  if (!p->logits || !p->picked || !p->sum || !p->valid || !p->told)
    return ii_error_set(err, II_ERR_MEMORY, "out of host memory for the logits");
  return II_OK;
}

ii_status ii_tta_validate(ii_model *model, const ii_tta_options *options, ii_accuracy *plain,
                          ii_accuracy *average, ii_error *err) {
  ii_ctx *c = ii_model_params(model)->ctx;
  tta_pass p = {.o = options, .model = model, .ctx = c};
  *plain = *average = (ii_accuracy){.finite = true};
  const bool training = c->training, recording = c->recording;
  c->training = c->recording = false;
  ii_status s = open_pass(&p, err);
  if (s == II_OK) s = run(&p, plain, average, err);
  c->training = training;
  c->recording = recording;
  ii_tape_reset(c);
  for (int64_t i = 0; i < p.n_views; i++) ii_loader_free(p.views[i].loader);
  ii_tensor_free(p.images);
  ii_tensor_free(p.meta);
  free(p.logits);
  free(p.picked);
  free(p.sum);
  free(p.valid);
  free(p.told);
  return s;
}
