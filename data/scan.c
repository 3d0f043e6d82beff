#include "data/scan.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include "data/checksum.h"
#include "data/dataset_build.h"
#include "data/decode.h"
#include "data/jpeg_index.h"
#include "data/parallel.h"
#include "data/skip_list.h"

typedef struct {
  ii_decoder *decoder;
  ii_bytes buffer;
  ii_image image;
  ii_scan_report sums; /* of this thread; its bad images without order */
  int64_t bad_capacity;
  ii_error error; /* no memory */
} scanner;

typedef struct {
  const ii_dataset *set;
  const ii_scan_options *o;
  scanner *scanners; /* [threads] */
} scan;

static bool named_png(const ii_dataset *d, int64_t sample) {
  char name[II_PATH_MAX];
  ii_dataset_name(d, sample, name);
  const char *dot = strrchr(name, '.');
  return dot && strcasecmp(dot, ".png") == 0;
}

static void count_good(scanner *w, const ii_dataset *d, int64_t sample, const uint8_t *bytes,
                       int64_t n) {
  ii_scan_report *r = &w->sums;
  const int64_t a = w->image.w, b = w->image.h, shorter = a < b ? a : b, longer = a < b ? b : a;
  const bool png = bytes[0] == 0x89;
  r->jpeg += !png;
  r->png += png;
  r->misnamed += png != named_png(d, sample);
  r->turned += !png && ii_exif_orientation(bytes, n) != 1;
  if (r->min_side == 0 || shorter < r->min_side) r->min_side = shorter;
  if (longer > r->max_side) r->max_side = longer;
  if (a * b > r->max_pixels) r->max_pixels = a * b;
}

static void note_bad(scanner *w, int64_t sample, const uint8_t *bytes, int64_t n,
                     const ii_error *why) {
  ii_scan_report *r = &w->sums;
  if (ii_dataset_grow(&r->bad, &w->bad_capacity, r->bad_count + 1, sizeof *r->bad, &w->error))
    return;
  ii_scan_bad *b = &r->bad[r->bad_count++];
  *b = (ii_scan_bad){.sample = sample, .bytes = n, .crc = ii_crc32c(0, bytes, n)};
  memcpy(b->reason, why->text, sizeof b->reason);
}

/* Each image comes, those without an index too. */
static void add_index(const scan *s, scanner *w, int64_t i, const uint8_t *bytes, int64_t n,
                      bool usable) {
  uint8_t *index = NULL;
  int64_t index_n = 0;
  if (!s->o->crops) return;
  if (usable && bytes[0] != 0x89) ii_jpeg_index_make(bytes, n, &index, &index_n, &w->error);
  ii_crop_writer_add(s->o->crops, i, bytes, n, index, index_n);
}

static void scan_one(void *context, int thread, int64_t i) {
  const scan *s = context;
  scanner *w = &s->scanners[thread];
  ii_error err = {0};
  const uint8_t *bytes = NULL;
  int64_t n = 0;
  w->sums.images++;
  ii_status status = ii_dataset_read(s->set, i, &w->buffer, &bytes, &n, &err);
  if (status != II_OK) n = 0;
  w->sums.bytes += n;
  if (status == II_OK)
    status = ii_image_decode(w->decoder, bytes, n, &s->o->decode, &w->image, &err);
  if (status == II_OK)
    count_good(w, s->set, i, bytes, n);
  else if (status == II_ERR_MEMORY)
    ii_error_set(&w->error, status, "%s", err.text);
  else
    note_bad(w, i, bytes, n, &err);
  add_index(s, w, i, bytes, n, status == II_OK);
}

static bool tick(void *context, int64_t done) {
  const scan *s = context;
  ii_error none = {0};
  if (s->o->crops && ii_crop_writer_check(s->o->crops, &none) != II_OK) return false;
  return !s->o->tick || s->o->tick(s->o->context, done);
}

static int by_sample(const void *a, const void *b) {
  const ii_scan_bad *x = a, *y = b;
  return x->sample < y->sample ? -1 : x->sample > y->sample;
}

static ii_status add_up(const scan *s, int threads, ii_scan_report *r, ii_error *err) {
  int64_t capacity = 0;
  for (int i = 0; i < threads; i++) {
    const scanner *w = &s->scanners[i];
    const ii_scan_report *x = &w->sums;
    if (w->error.status != II_OK) return ii_error_set(err, w->error.status, "%s", w->error.text);
    r->images += x->images, r->bytes += x->bytes;
    r->jpeg += x->jpeg, r->png += x->png, r->misnamed += x->misnamed, r->turned += x->turned;
    if (x->min_side && (!r->min_side || x->min_side < r->min_side)) r->min_side = x->min_side;
    if (x->max_side > r->max_side) r->max_side = x->max_side;
    if (x->max_pixels > r->max_pixels) r->max_pixels = x->max_pixels;
    if (x->bad_count == 0) continue;
    II_TRY(ii_dataset_grow(&r->bad, &capacity, r->bad_count + x->bad_count, sizeof *r->bad, err));
    memcpy(r->bad + r->bad_count, x->bad, (size_t)x->bad_count * sizeof *r->bad);
    r->bad_count += x->bad_count;
  }
  if (r->bad_count > 0) qsort(r->bad, (size_t)r->bad_count, sizeof *r->bad, by_sample);
  return II_OK;
}

static ii_status run(const ii_parallel *loop, const scan *s, ii_error *err) {
  ii_error stopped = {0};
  const ii_status status = ii_parallel_run(loop, ii_dataset_size(s->set), &stopped);
  /* what the writer says is why it was stopped */
  if (s->o->crops) II_TRY(ii_crop_writer_check(s->o->crops, err));
  return status == II_OK ? II_OK : ii_error_set(err, status, "%s", stopped.text);
}

ii_status ii_scan(const ii_dataset *dataset, const ii_scan_options *options, ii_scan_report *report,
                  ii_error *err) {
  const int threads = options->threads > 0 ? options->threads : ii_parallel_processors();
  scan s = {.set = dataset, .o = options};
  *report = (ii_scan_report){0};
  s.scanners = calloc((size_t)threads, sizeof *s.scanners);
  ii_status status = s.scanners ? II_OK : ii_error_set(err, II_ERR_MEMORY, "no memory for a scan");
  for (int i = 0; status == II_OK && i < threads; i++)
    status = ii_decoder_new(&s.scanners[i].decoder, err);
  const ii_parallel loop = {threads, scan_one, tick, &s};
  if (status == II_OK) status = run(&loop, &s, err);
  if (status == II_OK) status = add_up(&s, threads, report, err);
  for (int i = 0; s.scanners && i < threads; i++) {
    ii_decoder_free(s.scanners[i].decoder);
    ii_bytes_free(&s.scanners[i].buffer);
    ii_image_free(&s.scanners[i].image);
    ii_scan_free(&s.scanners[i].sums);
  }
  free(s.scanners);
  if (status != II_OK) ii_scan_free(report);
  return status;
}

void ii_scan_free(ii_scan_report *report) {
  free(report->bad);
  *report = (ii_scan_report){0};
}

static bool write_lines(FILE *f, const ii_dataset *d, const ii_scan_report *r) {
  char name[II_PATH_MAX];
  fprintf(f, "# %lld of %lld images cannot be used: name, size, CRC-32C, reason\n%s\n",
          (long long)r->bad_count, (long long)r->images, II_SKIP_ESCAPES);
  for (int64_t i = 0; i < r->bad_count; i++) {
    const ii_scan_bad *b = &r->bad[i];
    ii_dataset_name(d, b->sample, name);
    ii_skip_write_text(f, name);
    fprintf(f, "\t%lld\t%08x\t", (long long)b->bytes, (unsigned)b->crc);
    ii_skip_write_text(f, b->reason);
    fputc('\n', f);
  }
  return fflush(f) == 0 && !ferror(f) && fsync(fileno(f)) == 0;
}

ii_status ii_scan_write_list(const ii_dataset *dataset, const ii_scan_report *report,
                             const char *path, ii_error *err) {
  char temporary[II_PATH_MAX];
  if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", path);
  FILE *f = fopen(temporary, "w");
  bool good = f && write_lines(f, dataset, report);
  if (f && fclose(f) != 0) good = false;
  if (good && rename(temporary, path) == 0) return II_OK;
  ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  if (f) unlink(temporary);
  return II_ERR_IO;
}

void ii_progress_text(int64_t done, int64_t total, double seconds, char *out, int64_t size) {
  enum { WIDTH = 30 };
  char bar[WIDTH + 1];
  const double share = total > 0 ? (double)done / (double)total : 1;
  const int full = (int)(share * WIDTH);
  const double rate = seconds > 0 ? (double)done / seconds : 0;
  const int64_t left = rate > 0 ? (int64_t)((double)(total - done) / rate + 0.5) : 0;
  for (int i = 0; i < WIDTH; i++) bar[i] = i < full ? '=' : i == full ? '>' : ' ';
  bar[WIDTH] = 0;
  snprintf(out, (size_t)size, "[%s] %3d %%  %lld/%lld  %.0f/s  %lld:%02lld left", bar,
           (int)(share * 100), (long long)done, (long long)total, rate, (long long)(left / 60),
           (long long)(left % 60));
}
