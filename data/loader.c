/* A ring of batch slots between the workers and the consumer, under one mutex.
 *
 * The stream is numbered: `opened` batches have been given to the workers, the consumer has asked
 * for `asked` and got `taken_out` of them, and batch s lives in slot s % slots. Asking for a batch
 * gives the one before back; at most `prefetch` are open that nobody has asked for. Workers take
 * runs of a few images from the newest open batch; when it has none left, the next batch is opened
 * if the ring has room. Opening is where the samples of a batch are looked up, so one permutation
 * at a time is enough. */
#include "data/loader.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "data/crop_index.h"
#include "data/parallel.h"

#define MAX_BAD_RUN 50
#define MAX_THREADS 1024

/* A file that could not be used, kept until the batch is handed out. */
typedef struct {
  int64_t place; /* in the batch, for a fixed order of reports */
  int64_t order; /* within the place */
  int64_t sample;
  char reason[II_ERROR_TEXT];
} bad_file;

typedef struct {
  ii_batch batch;
  int64_t taken, done; /* images given to workers, finished */
  bad_file *bad;
  int64_t bad_count, bad_capacity;
  ii_error error; /* of the lowest place that has one */
  int64_t error_place;
  ii_crop_index_state stale; /* of the lowest place whose entry cannot be used; NONE: no such */
  int64_t stale_place, stale_sample;
} slot;

typedef struct {
  ii_loader *loader;
  pthread_t thread;
  ii_decoder *decoder;
  ii_transformer *transformer;
  ii_bytes file, index;
  ii_image image;
  ii_error error;                 /* of the last attempt */
  ii_crop_index_state entry;      /* of the last attempt */
  ii_stopwatch *watch, stopwatch; /* watch: NULL, or &stopwatch */
} worker;

struct ii_loader {
  ii_loader_config config;
  int64_t per_epoch;   /* batches */
  ii_sampler *sampler; /* under the lock */

  pthread_mutex_t lock;
  pthread_cond_t work;  /* for workers: there may be something to take, or the end */
  pthread_cond_t ready; /* for the consumer: an image is finished */
  bool lock_made, work_made, ready_made;
  bool stop;
  int64_t busy;                     /* workers inside an image */
  int64_t base_epoch, base_index;   /* where the stream begins */
  int64_t opened, asked, taken_out; /* batches since then */
  slot *slots;
  int64_t slot_count;

  worker *workers;
  int threads, started;
  int64_t run; /* images a worker takes at a time */

  int64_t bad_run; /* invalid images in a row, evaluation */
  ii_error failed; /* the error the stream stands still at */
  bool stale_told; /* on_stale was called */
  ii_loader_stats stats;
  ii_stage_times times; /* with config.measure, under the lock */
};

ii_loader_config ii_loader_config_default(const ii_dataset *dataset, ii_transform transform,
                                          int64_t batch) {
  bool train = transform.train;
  return (ii_loader_config){.dataset = dataset,
                            .transform = transform,
                            .decode = {.apply_orientation = train},
                            .batch = batch,
                            .world = 1,
                            .shuffle = train,
                            .drop_last = train,
                            .endless = train,
                            .replace_bad = train,
                            .prefetch = 2};
}

/* ---- which images are in a batch ---- */

/* Position of batch s of the stream. Without `endless` the stream ends with its first epoch. */
static bool position(const ii_loader *l, int64_t s, int64_t *epoch, int64_t *index) {
  int64_t at = l->base_index + s;
  if (!l->config.endless && at >= l->per_epoch) return false;
  *epoch = l->base_epoch + at / l->per_epoch;
  *index = at % l->per_epoch;
  return true;
}

static slot *slot_of(ii_loader *l, int64_t s) {
  return &l->slots[s % l->slot_count];
}

/* Gives the next batch to the workers if the stream goes on and the ring has room. */
static bool open_next(ii_loader *l) {
  int64_t epoch, index;
  if (l->opened - l->asked >= l->config.prefetch) return false;
  if (!position(l, l->opened, &epoch, &index)) return false;
  slot *s = slot_of(l, l->opened);
  s->batch.epoch = epoch, s->batch.index = index;
  s->batch.count = ii_sampler_batch(l->sampler, epoch, index, s->batch.keys);
  s->batch.failed = 0;
  s->taken = s->done = s->bad_count = 0;
  s->stale = II_CROP_INDEX_NONE;
  ii_error_clear(&s->error);
  l->opened++;
  /* a rank's share of the last batch may be empty; nobody would tell the consumer */
  if (s->batch.count == 0) pthread_cond_signal(&l->ready);
  return true;
}

/* ---- one image ---- */

/* Gives the decoder what the crop index has for these bytes, if it would be of use. */
static void use_index(worker *w, int64_t sample, const uint8_t *bytes, int64_t n, ii_box source,
                      int64_t width, int64_t height) {
  const ii_dataset *d = w->loader->config.dataset;
  int64_t packed_n;
  const uint8_t *packed = ii_dataset_packed_index(d, sample, bytes, &packed_n);
  w->stopwatch.times.bytes += packed_n; /* read with the image */
  if (source.w == width && source.h == height) return;
  if (packed) {
    ii_image_use_index(w->decoder, packed, packed_n);
    return;
  }
  ii_lap(w->watch, II_STAGE_DECODE);
  w->entry = ii_dataset_crop_index(d, sample, bytes, n, &w->index);
  ii_lap(w->watch, II_STAGE_READ);
  if (w->entry != II_CROP_INDEX_FOUND) return;
  w->stopwatch.times.bytes += w->index.size;
  ii_image_use_index(w->decoder, w->index.data, w->index.size);
}

static ii_status load_sample(worker *w, int64_t sample, int64_t key, int64_t epoch, float *out) {
  const ii_loader_config *c = &w->loader->config;
  const uint8_t *bytes;
  int64_t n;
  ii_error_clear(&w->error);
  w->entry = II_CROP_INDEX_NONE;
  ii_lap(w->watch, II_STAGE_OTHER);
  II_TRY(ii_dataset_read(c->dataset, sample, &w->file, &bytes, &n, &w->error));
  w->stopwatch.times.bytes += n;
  ii_lap(w->watch, II_STAGE_READ);
  int64_t width, height;
  II_TRY(ii_image_open(w->decoder, bytes, n, &c->decode, &width, &height, &w->error));
  ii_rng rng = ii_rng_make(c->seed, II_RNG_AUGMENT, (uint64_t)epoch, (uint64_t)key);
  ii_transform_plan plan = ii_transform_draw(&c->transform, width, height, &rng);
  ii_box at;
  use_index(w, sample, bytes, n, plan.source, width, height);
  II_TRY(ii_image_read(w->decoder, plan.source, &w->image, &at, &w->error));
  ii_lap(w->watch, II_STAGE_DECODE);
  II_TRY(ii_transform_part(w->transformer, &c->transform, &plan, &w->image, at.top, at.left, &rng,
                           out, &w->error));
  w->stopwatch.times.images++;
  return II_OK;
}

static void note_bad(worker *w, slot *s, int64_t place, int64_t order, int64_t sample) {
  ii_loader *l = w->loader;
  pthread_mutex_lock(&l->lock);
  if (s->bad_count == s->bad_capacity) {
    int64_t room = s->bad_capacity ? s->bad_capacity * 2 : 16;
    bad_file *more = realloc(s->bad, (size_t)room * sizeof *more);
    if (more) s->bad = more, s->bad_capacity = room;
  }
  if (s->bad_count < s->bad_capacity) {
    bad_file *b = &s->bad[s->bad_count++];
    b->place = place, b->order = order, b->sample = sample;
    memcpy(b->reason, w->error.text, sizeof b->reason);
  } else if (s->error.status == II_OK) {
    ii_error_set(&s->error, II_ERR_MEMORY, "no memory to report damaged image files");
    s->error_place = place;
  }
  pthread_mutex_unlock(&l->lock);
}

static void note_error(ii_loader *l, slot *s, int64_t place, const ii_error *error) {
  pthread_mutex_lock(&l->lock);
  if (s->error.status == II_OK || place < s->error_place) s->error = *error, s->error_place = place;
  pthread_mutex_unlock(&l->lock);
}

static void note_stale(worker *w, slot *s, int64_t place, int64_t sample) {
  pthread_mutex_lock(&w->loader->lock);
  if (s->stale == II_CROP_INDEX_NONE || place < s->stale_place)
    s->stale = w->entry, s->stale_place = place, s->stale_sample = sample;
  pthread_mutex_unlock(&w->loader->lock);
}

/* Loads what belongs at `place` of the batch, or a replacement. */
static void load_place(worker *w, slot *s, int64_t place) {
  const ii_loader_config *c = &w->loader->config;
  ii_batch *b = &s->batch;
  int64_t key = b->keys[place], size = ii_dataset_size(c->dataset);
  int64_t pixels = c->transform.size * c->transform.size * 3;
  float *out = b->images + place * pixels;
  int64_t sample = key % size;
  int failures = 0;
  b->valid[place] = 1;
  for (;;) {
    ii_status status = load_sample(w, sample, key, b->epoch, out);
    if (w->entry == II_CROP_INDEX_STALE || w->entry == II_CROP_INDEX_DAMAGED)
      note_stale(w, s, place, sample);
    if (status == II_OK) break;
    if (status == II_ERR_MEMORY) {
      note_error(w->loader, s, place, &w->error);
      break;
    }
    note_bad(w, s, place, failures, sample);
    if (!c->replace_bad) {
      memset(out, 0, (size_t)pixels * sizeof *out);
      b->valid[place] = 0;
      break;
    }
    if (++failures > MAX_BAD_RUN) {
      ii_error error = {0};
      char path[II_PATH_MAX];
      ii_dataset_path(c->dataset, sample, path);
      ii_error_set(&error, II_ERR_FORMAT,
                   "more than %d image files in a row cannot be used, the last one is '%s' (%s); "
                   "check the data set",
                   MAX_BAD_RUN, path, w->error.text);
      note_error(w->loader, s, place, &error);
      break;
    }
    sample = (sample + 1) % size;
  }
  b->samples[place] = sample;
  b->labels[place] = ii_dataset_label(c->dataset, sample);
  if (b->meta) ii_dataset_meta(c->dataset, sample, b->meta + place * II_META_VALUES);
}

/* ---- workers ---- */

static void wait_for_work(worker *w) {
  ii_loader *l = w->loader;
  ii_lap(w->watch, II_STAGE_OTHER);
  pthread_cond_wait(&l->work, &l->lock);
  ii_lap(w->watch, II_STAGE_WAIT);
}

/* Takes up to l->run places of the newest batch; waits for work; false at the end. Locked. */
static bool take(worker *w, slot **s, int64_t *from, int64_t *to) {
  ii_loader *l = w->loader;
  for (;;) {
    if (l->stop) return false;
    if (l->opened > 0) {
      slot *newest = slot_of(l, l->opened - 1);
      int64_t left = newest->batch.count - newest->taken;
      if (left > 0) {
        *s = newest, *from = newest->taken;
        newest->taken += left < l->run ? left : l->run;
        *to = newest->taken;
        return true;
      }
    }
    if (!open_next(l))
      wait_for_work(w);
    else
      pthread_cond_broadcast(&l->work);
  }
}

static void *work(void *arg) {
  worker *w = arg;
  ii_loader *l = w->loader;
  slot *s;
  int64_t from, to;
  if (w->watch) ii_stopwatch_start(w->watch);
  pthread_mutex_lock(&l->lock);
  while (take(w, &s, &from, &to)) {
    l->busy++;
    bool stop = false;
    for (int64_t i = from; i < to && !stop; i++) {
      pthread_mutex_unlock(&l->lock);
      load_place(w, s, i);
      pthread_mutex_lock(&l->lock);
      stop = l->stop;
      if (!w->watch) continue;
      ii_stage_times_add(&l->times, &w->stopwatch.times);
      w->stopwatch.times = (ii_stage_times){0};
    }
    s->done += to - from;
    l->busy--;
    pthread_cond_signal(&l->ready);
  }
  pthread_mutex_unlock(&l->lock);
  return NULL;
}

static ii_status start_worker(ii_loader *l, worker *w, ii_error *err) {
  w->loader = l;
  II_TRY(ii_decoder_new(&w->decoder, err));
  II_TRY(ii_transformer_new(&w->transformer, err));
  if (l->config.measure) w->watch = &w->stopwatch;
  ii_transformer_measure(w->transformer, w->watch);
  sigset_t all, before; /* signals go to the thread that called us */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int rc = pthread_create(&w->thread, NULL, work, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (rc != 0)
    return ii_error_set(err, II_ERR_IO, "cannot start a loader thread: %s", strerror(rc));
  l->started++;
  return II_OK;
}

/* ---- making and freeing ---- */

static ii_status check(const ii_loader_config *c, ii_error *err) {
  II_TRY(ii_transform_check(&c->transform, err));
  if (c->threads < 0 || c->threads > MAX_THREADS)
    return ii_error_set(err, II_ERR_ARG, "%d loader threads are not in 0..%d", c->threads,
                        MAX_THREADS);
  if (c->prefetch < 1 || c->prefetch > 1000)
    return ii_error_set(err, II_ERR_ARG, "%d prefetched batches are not in 1..1000", c->prefetch);
  return II_OK;
}

static void *batch_alloc(const ii_loader_config *c, size_t bytes) {
  return c->alloc ? c->alloc(c->memory, bytes) : malloc(bytes);
}

static void batch_release(const ii_loader_config *c, void *p) {
  if (c->alloc)
    c->release(c->memory, p);
  else
    free(p);
}

static ii_status make_slots(ii_loader *l, ii_error *err) {
  const ii_loader_config *c = &l->config;
  int64_t n = c->batch, pixels = c->transform.size * c->transform.size * 3;
  l->slot_count = c->prefetch + 1;
  l->slots = calloc((size_t)l->slot_count, sizeof *l->slots);
  bool good = l->slots != NULL;
  for (int64_t i = 0; good && i < l->slot_count; i++) {
    ii_batch *b = &l->slots[i].batch;
    b->images = batch_alloc(c, (size_t)(n * pixels) * sizeof *b->images);
    b->labels = batch_alloc(c, (size_t)n * sizeof *b->labels);
    b->valid = malloc((size_t)n);
    b->samples = malloc((size_t)n * sizeof *b->samples);
    b->keys = malloc((size_t)n * sizeof *b->keys);
    good = b->images && b->labels && b->valid && b->samples && b->keys;
    if (ii_dataset_has_meta(c->dataset)) {
      b->meta = batch_alloc(c, (size_t)n * II_META_VALUES * sizeof *b->meta);
      good = good && b->meta;
    }
  }
  if (!good)
    return ii_error_set(err, II_ERR_MEMORY,
                        "no memory for %lld batches of %lld images; use a smaller batch or fewer "
                        "prefetched batches",
                        (long long)l->slot_count, (long long)n);
  return II_OK;
}

static ii_status start(ii_loader *l, ii_error *err) {
  const ii_loader_config *c = &l->config;
  const ii_sampler_config sampler = {.dataset = c->dataset,
                                     .sampling = c->sampling,
                                     .batch = c->batch,
                                     .rank = c->rank,
                                     .world = c->world,
                                     .seed = c->seed,
                                     .shuffle = c->shuffle,
                                     .drop_last = c->drop_last};
  II_TRY(ii_sampler_new(&sampler, &l->sampler, err));
  l->per_epoch = ii_sampler_batches(l->sampler);
  l->threads = c->threads > 0 ? c->threads : ii_parallel_processors();
  /* long runs spare locking, short ones keep all threads busy to the end of a batch */
  l->run = c->batch / (4 * l->threads);
  l->run = l->run < 1 ? 1 : l->run > 16 ? 16 : l->run;
  II_TRY(make_slots(l, err));
  l->lock_made = pthread_mutex_init(&l->lock, NULL) == 0;
  l->work_made = pthread_cond_init(&l->work, NULL) == 0;
  l->ready_made = pthread_cond_init(&l->ready, NULL) == 0;
  l->workers = calloc((size_t)l->threads, sizeof *l->workers);
  if (!l->lock_made || !l->work_made || !l->ready_made || !l->workers)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for loader threads");
  for (int i = 0; i < l->threads; i++) II_TRY(start_worker(l, &l->workers[i], err));
  return II_OK;
}

ii_status ii_loader_new(const ii_loader_config *config, ii_loader **loader, ii_error *err) {
  II_TRY(check(config, err));
  ii_loader *l = calloc(1, sizeof *l);
  if (!l) return ii_error_set(err, II_ERR_MEMORY, "no memory for a loader");
  l->config = *config;
  ii_status status = start(l, err);
  if (status != II_OK)
    ii_loader_free(l);
  else
    *loader = l;
  return status;
}

static void free_slot(const ii_loader_config *c, slot *s) {
  batch_release(c, s->batch.images);
  batch_release(c, s->batch.labels);
  free(s->batch.valid);
  free(s->batch.samples);
  free(s->batch.keys);
  batch_release(c, s->batch.meta);
  free(s->bad);
}

void ii_loader_free(ii_loader *l) {
  if (!l) return;
  if (l->started > 0) {
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->started; i++) pthread_join(l->workers[i].thread, NULL);
  }
  for (int i = 0; l->workers && i < l->threads; i++) {
    worker *w = &l->workers[i];
    ii_decoder_free(w->decoder);
    ii_transformer_free(w->transformer);
    ii_bytes_free(&w->file);
    ii_bytes_free(&w->index);
    ii_image_free(&w->image);
  }
  free(l->workers);
  for (int64_t i = 0; l->slots && i < l->slot_count; i++) free_slot(&l->config, &l->slots[i]);
  free(l->slots);
  ii_sampler_free(l->sampler);
  if (l->lock_made) pthread_mutex_destroy(&l->lock);
  if (l->work_made) pthread_cond_destroy(&l->work);
  if (l->ready_made) pthread_cond_destroy(&l->ready);
  free(l);
}

int64_t ii_loader_batch_size(const ii_loader *l) {
  return l->config.batch;
}
bool ii_loader_has_meta(const ii_loader *l) {
  return ii_dataset_has_meta(l->config.dataset);
}
int64_t ii_loader_batches_per_epoch(const ii_loader *l) {
  return l->per_epoch;
}
int ii_loader_threads(const ii_loader *l) {
  return l->threads;
}
ii_loader_stats ii_loader_get_stats(const ii_loader *l) {
  return l->stats;
}

void ii_loader_times(ii_loader *l, ii_stage_times *times) {
  pthread_mutex_lock(&l->lock);
  *times = l->times;
  pthread_mutex_unlock(&l->lock);
}

/* ---- the consumer ---- */

void ii_loader_seek(ii_loader *l, int64_t epoch, int64_t index) {
  II_ASSERT(epoch >= 0 && index >= 0 && index <= l->per_epoch, "epoch %lld batch %lld of %lld",
            (long long)epoch, (long long)index, (long long)l->per_epoch);
  pthread_mutex_lock(&l->lock);
  /* nothing more of the open batch is given out; then wait for what is in work */
  if (l->opened > 0) {
    slot *newest = slot_of(l, l->opened - 1);
    newest->taken = newest->batch.count;
  }
  l->asked = l->opened - l->config.prefetch; /* no room: nothing new is opened meanwhile */
  while (l->busy > 0) pthread_cond_wait(&l->ready, &l->lock);
  l->base_epoch = epoch, l->base_index = index;
  l->opened = l->asked = l->taken_out = 0;
  l->bad_run = 0;
  ii_error_clear(&l->failed);
  pthread_cond_broadcast(&l->work);
  pthread_mutex_unlock(&l->lock);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_place(const void *a, const void *b) {
  const bad_file *x = a, *y = b;
  if (x->place != y->place) return x->place < y->place ? -1 : 1;
  return x->order < y->order ? -1 : x->order > y->order;
}

static void tell_stale(ii_loader *l, const slot *s) {
  char path[II_PATH_MAX];
  if (s->stale == II_CROP_INDEX_NONE || l->stale_told || !l->config.on_stale) return;
  l->stale_told = true;
  ii_dataset_path(l->config.dataset, s->stale_sample, path);
  l->config.on_stale(l->config.context, path,
                     s->stale == II_CROP_INDEX_STALE
                         ? "has changed since the crop index was made and is decoded without it, "
                           "as others may be; run scan --crop-index again"
                         : "has a damaged entry in the crop index and is decoded without it, as "
                           "others may be; run scan --crop-index again");
}

/* Reports the batch's bad files and counts its invalid images. */
static ii_status inspect(ii_loader *l, slot *s) {
  ii_batch *b = &s->batch;
  if (s->bad_count > 0) qsort(s->bad, (size_t)s->bad_count, sizeof *s->bad, by_place);
  char path[II_PATH_MAX] = "";
  for (int64_t i = 0; i < s->bad_count; i++) {
    ii_dataset_path(l->config.dataset, s->bad[i].sample, path);
    if (l->config.on_bad) l->config.on_bad(l->config.context, path, s->bad[i].reason);
  }
  l->stats.bad_files += s->bad_count;
  tell_stale(l, s);
  if (s->error.status != II_OK)
    return ii_error_set(&l->failed, s->error.status, "%s", s->error.text);
  for (int64_t i = 0; i < b->count; i++) {
    l->bad_run = b->valid[i] ? 0 : l->bad_run + 1;
    b->failed += !b->valid[i];
    if (l->bad_run > MAX_BAD_RUN)
      return ii_error_set(&l->failed, II_ERR_FORMAT,
                          "more than %d image files in a row cannot be used, the last reported is "
                          "'%s'; check the data set",
                          MAX_BAD_RUN, path);
  }
  return II_OK;
}

ii_status ii_loader_next(ii_loader *l, const ii_batch **batch, ii_error *err) {
  *batch = NULL;
  if (l->failed.status != II_OK) return ii_error_set(err, l->failed.status, "%s", l->failed.text);
  int64_t epoch, index;
  pthread_mutex_lock(&l->lock);
  if (!position(l, l->taken_out, &epoch, &index)) {
    pthread_mutex_unlock(&l->lock);
    return II_OK;
  }
  l->asked = l->taken_out + 1;
  pthread_cond_signal(&l->work);
  slot *s = slot_of(l, l->taken_out);
  double begin = now();
  while (l->opened <= l->taken_out || s->done < s->batch.count)
    pthread_cond_wait(&l->ready, &l->lock);
  l->stats.wait_seconds += now() - begin;
  l->taken_out++;
  pthread_mutex_unlock(&l->lock);
  if (inspect(l, s) != II_OK) return ii_error_set(err, l->failed.status, "%s", l->failed.text);
  l->stats.batches++;
  l->stats.images += s->batch.count;
  *batch = &s->batch;
  return II_OK;
}
