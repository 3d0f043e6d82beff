#include "train/metrics.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether a line belongs to the part of the run that the checkpoint contains. */
static bool keep_line(const char *line, size_t n, int64_t last_step, int64_t last_validation) {
  if (n == 0 || line[n - 1] != '\n') return false;
  json_t *o = json_loadb(line, n, 0, NULL);
  json_t *step = json_object_get(o, "step");
  const char *kind = json_string_value(json_object_get(o, "kind"));
  int64_t last = kind && !strcmp(kind, "val") ? last_validation : last_step;
  bool keep = json_is_integer(step) && json_integer_value(step) <= last;
  json_decref(o);
  return keep;
}

static bool copy_kept(FILE *from, FILE *to, int64_t last_step, int64_t last_validation) {
  char *line = NULL;
  size_t capacity = 0;
  bool good = true;
  for (ssize_t n; good && (n = getline(&line, &capacity, from)) > 0;)
    if (keep_line(line, (size_t)n, last_step, last_validation))
      good = fwrite(line, 1, (size_t)n, to) == (size_t)n;
  free(line);
  return good && !ferror(from);
}

/* Rewrites the file without what comes after. */
static ii_status cut(const char *path, int64_t last_step, int64_t last_validation, ii_error *err) {
  char temporary[2048 + 8];
  FILE *from = fopen(path, "r");
  if (!from && errno == ENOENT) return II_OK;
  snprintf(temporary, sizeof temporary, "%s.tmp", path);
  FILE *to = from ? fopen(temporary, "w") : NULL;
  bool good = to && copy_kept(from, to, last_step, last_validation);
  int why = errno;
  if (from) fclose(from);
  if (to && (fflush(to) != 0 || fsync(fileno(to)) != 0)) good = false, why = errno;
  if (to && fclose(to) != 0) good = false, why = errno;
  if (good && rename(temporary, path) != 0) good = false, why = errno;
  if (good) return II_OK;
  if (to) unlink(temporary);
  return ii_error_set(err, II_ERR_IO, "%s cannot be rewritten: %s", path, strerror(why));
}

ii_status ii_metrics_open(ii_metrics *m, const char *dir, int64_t last_step,
                          int64_t last_validation, ii_error *err) {
  *m = (ii_metrics){0};
  snprintf(m->path, sizeof m->path, "%s/metrics.jsonl", dir);
  II_TRY(cut(m->path, last_step, last_validation, err));
  m->file = fopen(m->path, "a");
  if (m->file) return II_OK;
  return ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", m->path, strerror(errno));
}

void ii_metrics_close(ii_metrics *m) {
  if (m->file) fclose(m->file);
  m->file = NULL;
}

/* Each record reaches the file at once, so that curves can be followed. */
static ii_status flush(ii_metrics *m, ii_error *err) {
  if (fflush(m->file) == 0 && !ferror(m->file)) return II_OK;
  return ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", m->path, strerror(errno));
}

/* JSON has no NaN and no infinity. */
static void number(FILE *f, const char *key, double x) {
  if (isfinite(x))
    fprintf(f, ", \"%s\": %.9g", key, x);
  else
    fprintf(f, ", \"%s\": null", key);
}

ii_status ii_metrics_train(ii_metrics *m, const ii_train_record *r, ii_error *err) {
  fprintf(m->file, "{\"kind\": \"train\", \"epoch\": %" PRId64 ", \"step\": %" PRId64, r->epoch,
          r->step);
  number(m->file, "loss", r->loss);
  number(m->file, "lr", r->lr);
  number(m->file, "grad_norm", r->grad_norm);
  fprintf(m->file,
          ", \"images_per_s\": %.6g, \"data_wait\": %.4f, \"eta_s\": %.0f, \"memory\": %" PRId64,
          r->images_per_second, r->data_wait, r->eta_seconds, r->memory_bytes);
  if (r->loss_scale > 0)
    fprintf(m->file, ", \"loss_scale\": %.9g, \"skipped\": %" PRId64, r->loss_scale, r->skipped);
  fprintf(m->file, "}\n");
  return flush(m, err);
}

ii_status ii_metrics_validation(ii_metrics *m, int64_t epoch, int64_t step, bool ema,
                                const ii_accuracy *a, ii_error *err) {
  fprintf(m->file,
          "{\"kind\": \"val\", \"weights\": \"%s\", \"epoch\": %" PRId64 ", \"step\": %" PRId64
          ", \"top1\": %.6g, \"top5\": %.6g",
          ema ? "ema" : "raw", epoch, step, ii_top1(a), ii_top5(a));
  number(m->file, "loss", a->finite ? a->loss : NAN); /* weights that blew up have no loss */
  fprintf(m->file, ", \"images\": %" PRId64 ", \"failed\": %" PRId64 ", \"seconds\": %.3f}\n",
          a->images, a->failed, a->seconds);
  return flush(m, err);
}
