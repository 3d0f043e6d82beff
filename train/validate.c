#include "train/validate.h"
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include "autograd/tape.h"

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

/* The forward pass of one batch; its logits, [count * classes] (malloced), or NULL with the
 * context's error. */
static double *forward(ii_model *model, ii_ctx *c, const ii_batch *b, int64_t size) {
  const int64_t classes = ii_model_get_config(model)->num_classes;
  double *logits = malloc((size_t)(b->count * classes) * sizeof *logits);
  if (!logits) {
    ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory for the logits of a batch");
    return NULL;
  }
  ii_tensor *meta = NULL;
  ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){b->count, size, size, 3}, b->images);
  if (b->meta && ii_model_get_config(model)->meta_dims[0])
    meta = ii_tensor_from_host(c, II_F32, 2, (int64_t[]){b->count, II_META_VALUES}, b->meta);
  ii_tensor *y = ii_model_forward(model, x, meta, NULL);
  if (ii_ok(c)) ii_tensor_read_f64(c, y, logits);
  return logits;
}

static void count_batch(const ii_batch *b, const double *logits, int64_t classes,
                        const ii_validate_options *o, ii_accuracy *r) {
  for (int64_t i = 0; i < b->count; i++) {
    int64_t label = o->label_of ? o->label_of[b->labels[i]] : b->labels[i];
    double nll = 0;
    bool top1 = false;
    II_ASSERT(label >= 0 && label < classes, "label %lld of %lld classes", (long long)label,
              (long long)classes);
    if (b->valid[i]) {
      score(logits + i * classes, classes, label, r, &nll, &top1);
      r->loss += nll;
    }
    if (o->class_images) o->class_images[label]++;
    if (o->class_correct) o->class_correct[label] += top1;
  }
  r->images += b->count;
  r->failed += b->failed;
}

static ii_status pass(ii_model *model, ii_loader *loader, const ii_validate_options *o,
                      ii_accuracy *r, ii_error *err) {
  ii_ctx *c = ii_model_params(model)->ctx;
  const int64_t classes = ii_model_get_config(model)->num_classes;
  const int64_t batches = ii_loader_batches_per_epoch(loader);
  const double start = now();
  ii_loader_seek(loader, 0, 0);
  for (int64_t n = 0;; n++) {
    const ii_batch *b;
    II_TRY(ii_loader_next(loader, &b, err));
    if (!b) break;
    if (o->stop && *o->stop) return ii_error_set(err, II_ERR_INTERRUPTED, "stopped on request");
    double *logits = b->count ? forward(model, c, b, o->img_size) : NULL;
    ii_tape_reset(c);
    if (ii_ok(c)) count_batch(b, logits, classes, o, r);
    free(logits);
    if (!ii_ok(c)) return ii_error_set(err, c->err.status, "%s", c->err.text);
    r->seconds = now() - start;
    ii_say_line(&o->say, II_SAY_PULSE, "%s %lld/%lld %.0f img/s top-1 %.2f %%", o->title,
                (long long)n + 1, (long long)batches, (double)r->images / (r->seconds + 1e-9),
                ii_top1(r));
  }
  const int64_t read = r->images - r->failed;
  if (read == 0)
    return ii_error_set(err, II_ERR_FORMAT,
                        "none of the %lld validation images can be used; check the data set",
                        (long long)r->images);
  r->loss /= (double)read;
  return II_OK;
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
  ii_status s = pass(model, loader, o, r, err);
  c->training = training;
  c->recording = recording;
  c->compute = compute;
  ii_tape_reset(c);
  return s;
}
