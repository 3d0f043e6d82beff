#include "train/validate.h"
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include "autograd/tape.h"
#include "train/input.h"

double ii_top1(const ii_accuracy *a) {
  return a->images ? 100.0 * (double)a->correct1 / (double)a->images : 0;
}

double ii_top5(const ii_accuracy *a) {
  return a->images ? 100.0 * (double)a->correct5 / (double)a->images : 0;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What one row of logits says about its label. A row with a NaN is wrong and not finite. */
static void score(const double *row, int64_t classes, int64_t label, ii_accuracy *r, double *nll,
                  bool *top1) {
  int64_t above = 0;
  double max = row[0], sum = 0;
  bool finite = true;
  for (int64_t c = 0; c < classes; c++) {
    finite &= isfinite(row[c]);
    if (row[c] > max) max = row[c];
    above += row[c] > row[label] || (row[c] == row[label] && c < label);
  }
  for (int64_t c = 0; c < classes; c++) sum += exp(row[c] - max);
  *nll = max + log(sum) - row[label];
  *top1 = finite && above == 0;
  r->finite &= finite;
  r->correct1 += *top1;
  r->correct5 += finite && above < 5;
}

/* Queues the forward pass of one batch. */
static ii_tensor *forward(ii_model *model, const ii_input_batch *b) {
  ii_tensor *meta = ii_model_get_config(model)->meta_dims[0] ? b->meta : NULL;
  return ii_model_forward(model, b->images, meta, NULL);
}

int64_t ii_validate_width(const ii_validate_options *o, int64_t classes) {
  return o->columns ? o->column_count : classes;
}

const double *ii_validate_pick(const ii_validate_options *o, const double *logits, int64_t count,
                               int64_t classes, double *picked) {
  if (!o->columns) return logits;
  for (int64_t i = 0; i < count; i++)
    for (int64_t k = 0; k < o->column_count; k++)
      picked[i * o->column_count + k] = logits[i * classes + o->columns[k]];
  return picked;
}

void ii_validate_count(const ii_validate_options *o, const ii_validate_rows *b, int64_t classes,
                       ii_accuracy *r) {
  const int32_t *label_of = o->columns ? o->columns : o->label_of;
  const int64_t width = ii_validate_width(o, classes);
  for (int64_t i = 0; i < b->count; i++) {
    const int64_t label = label_of ? label_of[b->labels[i]] : b->labels[i];
    double nll = 0;
    bool top1 = false;
    II_ASSERT(label >= 0 && label < classes, "label %lld of %lld classes", (long long)label,
              (long long)classes);
    if (b->valid[i]) {
      score(b->rows + i * width, width, o->columns ? b->labels[i] : label, r, &nll, &top1);
      r->loss += nll;
    }
    r->failed += !b->valid[i];
    if (o->class_images) o->class_images[label]++;
    if (o->class_correct) o->class_correct[label] += top1;
  }
  r->images += b->count;
}

ii_status ii_validate_finish(ii_accuracy *r, ii_error *err) {
  const int64_t read = r->images - r->failed;
  if (read == 0)
    return ii_error_set(err, II_ERR_FORMAT,
                        "none of the %lld validation images can be used; check the data set",
                        (long long)r->images);
  r->loss /= (double)read;
  return II_OK;
}

/* One batch: its results are read while the next one is on its way. false at the end of the set. */
static bool one_batch(ii_model *model, ii_loader *loader, ii_input *in, double *logits,
                      const ii_validate_options *o, ii_accuracy *r, ii_error *err) {
  ii_ctx *c = in->ctx;
  const int64_t classes = ii_model_get_config(model)->num_classes;
  const ii_input_batch *b;
  if (ii_input_next(in, loader, &b, err) != II_OK || b->count < 0) return false;
  ii_tensor *y = b->count ? forward(model, b) : NULL;
  if (ii_input_ahead(in, loader, err) != II_OK) return false;
  if (y) ii_tensor_read_f64(c, y, logits);
  ii_tape_reset(c);
  if (!ii_ok(c)) return false;
  double *picked = logits + ii_loader_batch_size(loader) * classes;
  const ii_validate_rows rows = {.count = b->count,
                                 .labels = b->host_labels,
                                 .valid = b->host_valid,
                                 .rows = ii_validate_pick(o, logits, b->count, classes, picked)};
  ii_validate_count(o, &rows, classes, r);
  return true;
}

static ii_status pass(ii_model *model, ii_loader *loader, ii_input *in, double *logits,
                      const ii_validate_options *o, ii_accuracy *r, ii_error *err) {
  const int64_t batches = ii_loader_batches_per_epoch(loader);
  const double start = now();
  ii_loader_seek(loader, 0, 0);
  for (int64_t n = 1; one_batch(model, loader, in, logits, o, r, err); n++) {
    if (o->stop && *o->stop) return ii_error_set(err, II_ERR_INTERRUPTED, "stopped on request");
    r->seconds = now() - start;
    ii_say_line(&o->say, II_SAY_PULSE, "%s %lld/%lld %.0f img/s top-1 %.2f %%", o->title,
                (long long)n, (long long)batches, (double)r->images / (r->seconds + 1e-9),
                ii_top1(r));
  }
  II_TRY(err->status);
  if (!ii_ok(in->ctx)) return ii_error_set(err, in->ctx->err.status, "%s", in->ctx->err.text);
  return ii_validate_finish(r, err);
}

static ii_status measure(ii_model *model, ii_loader *loader, const ii_validate_options *o,
                         ii_accuracy *r, ii_error *err) {
  ii_ctx *c = ii_model_params(model)->ctx;
  const int64_t batch = ii_loader_batch_size(loader);
  ii_input in;
  const int64_t values = batch * ii_model_get_config(model)->num_classes;
  const int64_t picked = o->columns ? batch * o->column_count : 0;
  double *logits = malloc((size_t)(values + picked) * sizeof *logits);
  if (!logits) return ii_error_set(err, II_ERR_MEMORY, "out of host memory for the logits");
  ii_status s = ii_input_init(&in, c, batch, o->img_size, ii_loader_has_meta(loader));
  if (s == II_OK)
    s = pass(model, loader, &in, logits, o, r, err);
  else
    ii_error_set(err, s, "%s", c->err.text);
  ii_input_destroy(&in);
  free(logits);
  return s;
}

ii_status ii_validate(ii_model *model, ii_loader *loader, const ii_validate_options *o,
                      ii_accuracy *r, ii_error *err) {
  ii_ctx *c = ii_model_params(model)->ctx;
  *r = (ii_accuracy){.finite = true};
  II_ASSERT(c->real == II_F32, "validation in %s", ii_dtype_name(c->real));
  const bool training = c->training, recording = c->recording;
  const ii_dtype compute = c->compute;
  c->training = c->recording = false;
  c->compute = c->real; /* the official validation runs without mixed precision */
  ii_status s = measure(model, loader, o, r, err);
  c->training = training;
  c->recording = recording;
  c->compute = compute;
  ii_tape_reset(c);
  return s;
}
