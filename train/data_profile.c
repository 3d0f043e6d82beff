#include "train/data_profile.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "autograd/rng.h"
#include "data/crop_index.h"
#include "data/parallel.h"
#include "train/setup.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool stop_wanted(const ii_data_profile_options *o) {
  return o->stop && *o->stop;
}

/* ---- measuring -------------------------------------------------------------------------------*/

/* The files that were named. A small data set comes round many times in a second. */
enum { MOST_TOLD = 20 };
typedef struct {
  const ii_data_profile_options *o;
  uint64_t hashes[MOST_TOLD];
  int count;
  bool stale; /* an unusable entry of the crop index was named */
} told;

static void bad_file(void *user, const char *path, const char *reason) {
  told *t = user;
  const uint64_t hash = ii_hash_string(path);
  for (int i = 0; i < t->count; i++)
    if (t->hashes[i] == hash) return;
  if (t->count == MOST_TOLD) return;
  t->hashes[t->count++] = hash;
  ii_say_line(&t->o->say, II_SAY_WARNING, "%s cannot be used, the next image takes its place: %s%s",
              path, reason, t->count == MOST_TOLD ? " (others are only counted)" : "");
}

static void stale_entry(void *user, const char *path, const char *what) {
  told *t = user;
  if (t->stale) return;
  t->stale = true;
  ii_say_line(&t->o->say, II_SAY_WARNING, "%s %s", path, what);
}

/* Takes batches for some seconds. What the threads did before the first one is not counted: nor is
 * the moment in which they start. */
static ii_status take_batches(const ii_data_profile_options *o, ii_loader *l,
                              ii_data_profile_run *r, ii_error *err) {
  const ii_batch *b;
  ii_stage_times before;
  II_TRY(ii_loader_next(l, &b, err));
  ii_loader_times(l, &before);
  const double begin = now();
  do {
    if (stop_wanted(o)) break;
    II_TRY(ii_loader_next(l, &b, err));
    r->batches++;
  } while (now() - begin < o->seconds);
  r->seconds = now() - begin;
  ii_loader_times(l, &r->times);
  ii_stage_times_subtract(&r->times, &before);
  r->bad_files = ii_loader_get_stats(l).bad_files;
  return II_OK;
}

/* An epoch of its own for each run, so that a second one does not find all its files in memory. */
static ii_status run(told *t, const ii_dataset *d, int threads, ii_data_profile *p, ii_error *err) {
  const ii_data_profile_options *o = t->o;
  ii_data_profile_run *r = &p->runs[p->run_count];
  ii_loader_config c = ii_setup_loader(o->config, d, true);
  ii_loader *l;
  c.threads = threads;
  c.measure = true;
  c.on_bad = bad_file;
  c.on_stale = stale_entry;
  c.context = t;
  if (ii_loader_new(&c, &l, err) != II_OK)
    return ii_error_prefix(err, "training images (data.batch_size = %lld)",
                           (long long)o->config->data.batch_size);
  *r = (ii_data_profile_run){.threads = ii_loader_threads(l)};
  ii_say_line(&o->say, II_SAY_PULSE, "measuring %d thread%s for %g s ...", r->threads,
              r->threads == 1 ? "" : "s", o->seconds);
  ii_loader_seek(l, p->run_count, 0);
  ii_status s = take_batches(o, l, r, err);
  ii_loader_free(l);
  if (s == II_OK && r->batches > 0 && r->times.images > 0) p->run_count++;
  return s;
}

/* Reads and decodes whole images in this thread. */
static ii_status decode_alone(const ii_data_profile_options *o, const ii_dataset *d,
                              ii_data_profile *p, ii_error *err) {
  const ii_decode_options options = ii_setup_loader(o->config, d, true).decode;
  ii_decoder *decoder;
  ii_bytes file = {0};
  ii_image image = {0};
  ii_stopwatch watch = {0};
  const uint8_t *bytes;
  int64_t n;
  II_TRY(ii_decoder_new(&decoder, err));
  ii_rng rng = ii_rng_make((uint64_t)o->config->train.seed, II_RNG_DATA, 0, 0);
  ii_say_line(&o->say, II_SAY_PULSE, "measuring decoding alone ...");
  const double begin = now();
  do {
    ii_error bad = {0}; /* has been said by the loader */
    const int64_t i = (int64_t)ii_rng_below(&rng, (uint64_t)ii_dataset_size(d));
    ii_stopwatch_start(&watch);
    if (ii_dataset_read(d, i, &file, &bytes, &n, &bad) != II_OK) continue;
    ii_lap(&watch, II_STAGE_READ);
    if (ii_image_decode(decoder, bytes, n, &options, &image, &bad) != II_OK) continue;
    ii_lap(&watch, II_STAGE_DECODE);
    p->decode_images++;
  } while (now() - begin < o->seconds / 2 && !stop_wanted(o));
  p->decode_seconds = ii_stage_times_cpu(&watch.times);
  ii_decoder_free(decoder);
  ii_bytes_free(&file);
  ii_image_free(&image);
  return II_OK;
}

static ii_status measure_all(const ii_data_profile_options *o, const ii_dataset *d,
                             ii_data_profile *p, ii_error *err) {
  told t = {.o = o};
  p->images = ii_dataset_size(d);
  p->indexed = ii_dataset_crop_indexed(d);
  II_TRY(run(&t, d, (int)o->config->data.workers, p, err));
  if (!stop_wanted(o) && p->run_count && p->runs[0].threads > 1) II_TRY(run(&t, d, 1, p, err));
  if (!stop_wanted(o)) II_TRY(decode_alone(o, d, p, err));
  p->stopped = stop_wanted(o);
  return II_OK;
}

ii_status ii_data_profile_measure(const ii_data_profile_options *o, ii_data_profile *p,
                                  ii_error *err) {
  ii_dataset *d;
  *p = (ii_data_profile){.processors = ii_parallel_processors()};
  II_TRY(ii_setup_dataset(o->config, true, &d, err));
  ii_status s = measure_all(o, d, p, err);
  ii_dataset_free(d);
  return s;
}

/* ---- the report ------------------------------------------------------------------------------*/

/* Seconds in which a read waits for the disk or the network. */
static double disk_wait(const ii_data_profile_run *r) {
  return fmax(0, r->times.wall[II_STAGE_READ] - r->times.cpu[II_STAGE_READ]);
}

int64_t ii_data_profile_workers(const ii_data_profile *p, double rate) {
  const ii_data_profile_run *r = &p->runs[0];
  const double each = (ii_stage_times_cpu(&r->times) + disk_wait(r)) / (double)r->times.images;
  return (int64_t)fmax(1, ceil(rate * each - 1e-9));
}

static void print_head(FILE *f, const ii_data_profile_options *o, const ii_data_profile *p) {
  const ii_config *c = o->config;
  fprintf(f, "data     %s: %lld training images to %lld px, batches of %lld, %lld ahead\n",
          c->data.root, (long long)p->images, (long long)c->data.img_size,
          (long long)c->data.batch_size, (long long)c->data.prefetch);
  if (p->indexed)
    fprintf(f, "crops    %lld of them are in the crop index %s\n", (long long)p->indexed,
            c->data.crop_index);
  fprintf(f, "threads  %d (data.workers = %lld); this process may use %d processor%s\n",
          p->runs[0].threads, (long long)c->data.workers, p->processors,
          p->processors == 1 ? "" : "s");
  if (p->stopped) fprintf(f, "stopped early: this is what was measured until then\n");
}

/* A line of the table: a value of each run, and its share if it has one. */
static void print_row(FILE *f, const ii_data_profile *p, const char *name, int digits,
                      const double *value, const double *share) {
  fprintf(f, "%-32s", name);
  for (int i = 0; i < p->run_count; i++) {
    fprintf(f, "%*s%12.*f", i > 0 && !share ? 7 : 0, "", digits, value[i]);
    if (share) fprintf(f, " %4.0f %%", 100 * share[i]);
  }
  fprintf(f, "\n");
}

static void print_rates(FILE *f, const ii_data_profile *p) {
  double rate[2], per_core[2], cores[2], bytes[2];
  char title[2][16] = {"", ""};
  for (int i = 0; i < p->run_count; i++) {
    const ii_data_profile_run *r = &p->runs[i];
    rate[i] = (double)r->times.images / r->seconds;
    per_core[i] = (double)r->times.images / ii_stage_times_cpu(&r->times);
    cores[i] = ii_stage_times_cpu(&r->times) / r->seconds;
    bytes[i] = 1e-6 * (double)r->times.bytes / r->seconds;
    snprintf(title[i], sizeof title[i], "%d thread%s", r->threads, r->threads == 1 ? "" : "s");
  }
  fprintf(f, "\n%-32s%12s", "", title[0]);
  fprintf(f, p->run_count > 1 ? "       %12s\n" : "\n", title[1]);
  print_row(f, p, "images/s", 1, rate, NULL);
  print_row(f, p, "images/s per core", 1, per_core, NULL);
  print_row(f, p, "cores they kept busy", 2, cores, NULL);
  print_row(f, p, "MB/s read", 1, bytes, NULL);
}

static void print_stages(FILE *f, const ii_data_profile *p) {
  static const char *const names[II_STAGE_WAIT] = {"read",
                                                   "decode (what is needed)",
                                                   "crop, resize, flip",
                                                   "RandAugment or jitter",
                                                   "normalise, write",
                                                   "other (locks, order, bad files)"};
  double ms[2], share[2];
  fprintf(f, "processor time per image, ms\n");
  for (int stage = 0; stage < II_STAGE_WAIT; stage++) {
    char name[64];
    for (int i = 0; i < p->run_count; i++) {
      const ii_stage_times *t = &p->runs[i].times;
      ms[i] = 1e3 * t->cpu[stage] / (double)t->images;
      share[i] = t->cpu[stage] / ii_stage_times_cpu(t);
    }
    snprintf(name, sizeof name, "  %s", names[stage]);
    print_row(f, p, name, 3, ms, share);
  }
  for (int i = 0; i < p->run_count; i++)
    ms[i] = 1e3 * ii_stage_times_cpu(&p->runs[i].times) / (double)p->runs[i].times.images;
  print_row(f, p, "  together", 3, ms, NULL);
}

/* Shares of the threads' elapsed time. */
static void print_waits(FILE *f, const ii_data_profile *p) {
  double disk[2], consumer[2], share[2], none[2];
  for (int i = 0; i < p->run_count; i++) {
    const ii_data_profile_run *r = &p->runs[i];
    const double all = r->seconds * r->threads;
    disk[i] = 1e3 * disk_wait(r) / (double)r->times.images;
    share[i] = disk_wait(r) / all;
    consumer[i] = 1e3 * r->times.wall[II_STAGE_WAIT] / (double)r->times.images;
    none[i] = fmin(1, r->times.wall[II_STAGE_WAIT] / all);
  }
  fprintf(f, "waiting per image, ms, and share of the threads' time\n");
  print_row(f, p, "  for files", 3, disk, share);
  print_row(f, p, "  for the consumer", 3, consumer, none);
}

static void print_conclusions(FILE *f, const ii_data_profile_options *o, const ii_data_profile *p) {
  const double round_numbers[] = {500, 1000, 2000, 4000};
  const double *rates = o->rate > 0 ? &o->rate : round_numbers;
  const int count = o->rate > 0 ? 1 : 4;
  const ii_data_profile_run *r = &p->runs[0];
  const double each = ii_stage_times_cpu(&r->times) / (double)r->times.images;
  if (p->decode_images > 0) {
    const double alone = p->decode_seconds / (double)p->decode_images;
    fprintf(f,
            "\nReading and decoding whole images and nothing else: %.1f images/s per core (%.3f ms "
            "each); the pipeline has %.0f %% of that.\n",
            1 / alone, 1e3 * alone, 100 * alone / each);
  }
  fprintf(f, "%sdata.workers that would be needed:", p->decode_images > 0 ? "" : "\n");
  for (int i = 0; i < count; i++) {
    const int64_t n = ii_data_profile_workers(p, rates[i]);
    fprintf(f, "%s %lld for %g images/s%s", i ? "," : "", (long long)n, rates[i],
            n > p->processors ? " (more than there are processors)" : "");
  }
  const double mb = 1e-6 * (double)(o->config->data.batch_size * o->config->data.img_size *
                                    o->config->data.img_size * 3 * 4);
  fprintf(f,
          ".\nA batch is %.1f MB for the device, %.2f GB/s at %.0f images/s; Mixup, CutMix and "
          "erasing happen there and are no part of this.\n",
          mb, 1e-3 * mb * (double)r->times.images / r->seconds / (double)o->config->data.batch_size,
          (double)r->times.images / r->seconds);
  if (r->bad_files > 0)
    fprintf(f, "%lld times an image could not be used: the program scan finds them all.\n",
            (long long)r->bad_files);
}

ii_status ii_data_profile_text(const ii_data_profile_options *o, const ii_data_profile *p,
                               char **text, ii_error *err) {
  size_t size = 0;
  *text = NULL;
  FILE *f = open_memstream(text, &size);
  if (!f) return ii_error_set(err, II_ERR_MEMORY, "out of host memory for the report");
  if (p->run_count == 0) {
    fprintf(f, "stopped before anything was measured\n");
  } else {
    print_head(f, o, p);
    print_rates(f, p);
    print_stages(f, p);
    print_waits(f, p);
    print_conclusions(f, o, p);
  }
  if (fclose(f) == 0) return II_OK;
  free(*text);
  *text = NULL;
  return ii_error_set(err, II_ERR_MEMORY, "out of host memory for the report");
}
