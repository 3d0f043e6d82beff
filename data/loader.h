/* The stream of batches: threads decode and transform images ahead of the consumer.
 *
 * What is in batch b of epoch e is a function of (dataset, transform, config without threads and
 * prefetch, e, b) alone: which images is the business of data/sampler.h, also for several ranks;
 * augmentation comes from the Philox stream of (seed, epoch, key of the draw). So the stream does
 * not depend on the number of threads, and it can be entered anywhere.
 *
 * Files that cannot be read or decoded, always reported through on_bad and counted:
 * - replace_bad (training): the next sample of the dataset takes the place, with its label. More
 *   than 50 failures in a row in the search are an error.
 * - otherwise (evaluation): the place stays, with valid = 0, an image of zeros and the true label.
 *   The evaluator counts it as wrong and says how many there were: dropping or replacing it would
 *   make the accuracy that of another data set. More than 50 in a row are an error.
 *
 * One thread calls these functions; the workers block all signals, so that handlers run
 * elsewhere.*/
#ifndef II_LOADER_H
#define II_LOADER_H
#include "data/sampler.h"
#include "data/transform.h"

typedef struct ii_loader ii_loader;

typedef struct {
  const ii_dataset *dataset; /* must outlive the loader */
  ii_transform transform;
  ii_decode_options decode;
  ii_sampling sampling;
  int64_t batch;       /* images per batch of this rank, > 0 */
  int64_t rank, world; /* 0 <= rank < world */
  uint64_t seed;
  bool shuffle;     /* a new order for each epoch; otherwise the dataset's order */
  bool drop_last;   /* leave out the images that do not fill a global batch */
  bool endless;     /* go on with the next epoch instead of ending after one */
  bool replace_bad; /* see above */
  int threads;      /* 0: ii_parallel_processors() */
  int prefetch;     /* > 0: so many batches at most are prepared or being prepared beside the one
                     * that is in use or waited for */
  bool measure;     /* for ii_loader_times; costs some microseconds per image */
  /* Where images, labels and meta live; NULL: ordinary memory. alloc gives NULL when there is none.
   * Called by ii_loader_new and ii_loader_free alone. */
  void *(*alloc)(void *memory, size_t bytes);
  void (*release)(void *memory, void *p);
  void *memory;
  /* Called by ii_loader_next, in the order of the stream, for each file that could not be used.
   * May be NULL. */
  void (*on_bad)(void *context, const char *path, const char *reason);
  /* Called by ii_loader_next once, for the first image of the stream whose entry in the data set's
   * crop index cannot be used, with what follows the path in a sentence ("has changed ..."): its
   * picture is right all the same. May be NULL. */
  void (*on_stale)(void *context, const char *path, const char *what);
  void *context;
} ii_loader_config;

/* Ready-made settings: train = shuffle, drop_last, endless, replace_bad and EXIF orientation on;
 * evaluation = all of these off. Each image once, rank 0 of 1, seed 0, threads 0, prefetch 2, no
 * callback. */
ii_loader_config ii_loader_config_default(const ii_dataset *dataset, ii_transform transform,
                                          int64_t batch);

/* A batch; belongs to the loader and is valid until the next call of ii_loader_next, ii_loader_seek
 * or ii_loader_free. */
typedef struct {
  int64_t epoch, index; /* its position: batch `index` of `epoch` */
  int64_t count;        /* images in it: config.batch, or fewer in the last batch of an epoch */
  int64_t failed;       /* how many of them have valid = 0 */
  float *images;        /* [count, size, size, 3] */
  int32_t *labels;      /* [count] */
  float *meta;          /* [count, II_META_VALUES]; NULL when the dataset has none */
  uint8_t *valid;   /* [count]: 0 where the file could not be decoded (never with replace_bad) */
  int64_t *samples; /* [count]: index in the dataset of what was loaded */
  int64_t *keys; /* [count]: of the draws (data/sampler.h); random numbers for an image go by it */
} ii_batch;

typedef struct {
  int64_t batches, images; /* handed out */
  int64_t bad_files;       /* failures reported so far (a file counts each time it is met) */
  double wait_seconds;     /* time ii_loader_next spent waiting for data */
} ii_loader_stats;

/* Starts the threads at batch 0 of epoch 0. All memory for batches is taken here.
 * Errors: II_ERR_ARG (settings; fewer images than one global batch with drop_last), II_ERR_MEMORY,
 * II_ERR_IO (threads). */
ii_status ii_loader_new(const ii_loader_config *config, ii_loader **loader, ii_error *err);

/* Stops at once, whatever is being prepared (waits for the images in work), and frees everything.
 * NULL is allowed. */
void ii_loader_free(ii_loader *loader);

/* Images per batch of this rank. */
int64_t ii_loader_batch_size(const ii_loader *loader);

/* Whether its batches have metadata. */
bool ii_loader_has_meta(const ii_loader *loader);

/* Batches of one epoch. */
int64_t ii_loader_batches_per_epoch(const ii_loader *loader);

/* The threads in use. */
int ii_loader_threads(const ii_loader *loader);

/* Makes batch `index` (0..batches_per_epoch; the latter is the end of the epoch) of `epoch` the
 * next one; what was prepared is dropped. Also starts a further pass after the end of an epoch. */
void ii_loader_seek(ii_loader *loader, int64_t epoch, int64_t index);

/* Hands out the next batch, waiting for it if need be; *batch is NULL at the end of the epoch
 * (never when endless). After an error the stream stands still: the same error comes again until
 * ii_loader_seek. Errors: II_ERR_FORMAT (more than 50 bad files in a row), II_ERR_MEMORY. */
ii_status ii_loader_next(ii_loader *loader, const ii_batch **batch, ii_error *err);

ii_loader_stats ii_loader_get_stats(const ii_loader *loader);

/* With config.measure: what all threads together have spent so far on the images they have
 * finished. */
void ii_loader_times(ii_loader *loader, ii_stage_times *times);

#endif
