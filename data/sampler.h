/* Which image comes at which place of a batch, for each rank, as a function of (settings, epoch,
 * batch) alone.
 *
 * A draw is named by its key: image + size * copy, where copy counts the times an image has been
 * drawn before in the epoch (0 but for `repeated` and `balanced`). Augmentation is drawn from the
 * key, so that copies differ.
 *
 * Global batch b is what all ranks together see. Except for `fixed`, the ranks see parts of one
 * order that does not depend on their number, so `world` ranks with a batch each see what one rank
 * with a batch `world` times as large sees. What remains of an epoch behind its last whole global
 * batch is left out with drop_last, another part in each epoch (of `fixed`: on each rank);
 * otherwise it is shared out evenly as a shorter batch, which may be empty on some ranks. */
#ifndef II_SAMPLER_H
#define II_SAMPLER_H
#include "data/dataset.h"

typedef enum {
  /* Each image once in an epoch, in a new order (or in the data set's without shuffle). */
  II_SAMPLE_ALL,
  /* The official NodeDistributedSampler: the images are dealt out to the ranks once and for all, so
   * that a rank always sees the same ones, in a new order in each epoch. Where the ranks do not
   * divide the images, the first of the deal are dealt again to fill up: each rank has
   * ceil(size / world). */
  II_SAMPLE_FIXED,
  /* Repeated augmentation (timm's RepeatAugSampler): a new order in each epoch in which each image
   * stands `repeats` times in a row, dealt out to the ranks one by one; the epoch ends after as
   * many draws as there are images, so that only 1 / repeats of them are in it. As there, that
   * number is rounded down to a multiple of 256 and then of the ranks; below 256 images, where
   * timm has no draw at all, it is not rounded. */
  II_SAMPLE_REPEATED,
  /* As many draws as images; a class with n images gets a share of them in proportion to
   * n^(1 - balance), rounded up or down at random; within a class all images are drawn equally
   * often, but for one. balance 0 is like ALL, 1 gives all classes that have images the same share.
   */
  II_SAMPLE_BALANCED
} ii_sampling_kind;

typedef struct {
  ii_sampling_kind kind;
  int64_t repeats; /* REPEATED: > 0 */
  double balance;  /* BALANCED: 0..1 */
} ii_sampling;

typedef struct {
  const ii_dataset *dataset; /* must outlive the sampler */
  ii_sampling sampling;
  int64_t batch; /* of a rank, > 0 */
  int64_t rank, world;
  uint64_t seed;
  bool shuffle; /* false: only with II_SAMPLE_ALL */
  bool drop_last;
} ii_sampler_config;

typedef struct ii_sampler ii_sampler;

/* Errors: II_ERR_ARG (settings; fewer draws than one batch with drop_last), II_ERR_MEMORY. */
ii_status ii_sampler_new(const ii_sampler_config *config, ii_sampler **sampler, ii_error *err);
void ii_sampler_free(ii_sampler *sampler); /* NULL is allowed */

/* Batches of one epoch; the same for all ranks. */
int64_t ii_sampler_batches(const ii_sampler *sampler);

/* Writes the keys of batch `index` (below ii_sampler_batches) of `epoch` to keys [config.batch] and
 * returns how many there are. One thread at a time; quick within an epoch, in any order. */
int64_t ii_sampler_batch(ii_sampler *sampler, int64_t epoch, int64_t index, int64_t *keys);

#endif
