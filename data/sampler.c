#include "data/sampler.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "autograd/rng.h"

/* The second identity of the streams of II_RNG_SHUFFLE; the first is the epoch. */
enum { ORDER, DEAL, OWN_ORDER, SHARES, CLASS_ORDER };

struct ii_sampler {
  ii_sampler_config c;
  int64_t size;   /* of the data set */
  int64_t draws;  /* in an epoch: of all ranks together, or of this one for FIXED */
  int64_t *order; /* [draws] keys, or images for REPEATED [size]; NULL without shuffle */
  int64_t epoch;  /* of order; -1: none */
  int64_t *own;   /* FIXED: [draws] the images of this rank */
  /* BALANCED: the images of class k are by_class[first[k]] .. by_class[first[k + 1] - 1] */
  int64_t *by_class, *first;
  int64_t *scratch; /* BALANCED: [size] */
};

/* ---- the orders ------------------------------------------------------------------------------*/

static ii_rng stream(const ii_sampler *s, int64_t epoch, int what) {
  return ii_rng_make(s->c.seed, II_RNG_SHUFFLE, (uint64_t)epoch, (uint64_t)what);
}

static void shuffle(ii_rng *rng, int64_t *v, int64_t n) {
  for (int64_t i = n - 1; i > 0; i--) {
    const int64_t k = (int64_t)ii_rng_below(rng, (uint64_t)i + 1), t = v[i];
    v[i] = v[k], v[k] = t;
  }
}

/* The images of this rank in its order. */
static void order_fixed(ii_sampler *s, int64_t epoch) {
  ii_rng rng = stream(s, epoch, OWN_ORDER);
  ii_rng_permutation(&rng, s->order, s->draws);
  for (int64_t i = 0; i < s->draws; i++) s->order[i] = s->own[s->order[i]];
}

/* How often the images of class k are drawn: shares of the epoch laid end to end, cut at whole
 * numbers + u. */
static void order_balanced(ii_sampler *s, int64_t epoch) {
  const int64_t classes = ii_dataset_num_classes(s->c.dataset);
  const double power = 1 - s->c.sampling.balance;
  ii_rng shares = stream(s, epoch, SHARES), order = stream(s, epoch, ORDER);
  ii_rng within = stream(s, epoch, CLASS_ORDER);
  const double u = ii_rng_uniform(&shares);
  double sum = 0, before = 0;
  int64_t n = 0;
  for (int64_t k = 0; k < classes; k++)
    if (s->first[k + 1] > s->first[k]) sum += pow((double)(s->first[k + 1] - s->first[k]), power);
  for (int64_t k = 0; k < classes; k++) {
    const int64_t have = s->first[k + 1] - s->first[k];
    if (have == 0) continue;
    before += pow((double)have, power);
    int64_t end = (int64_t)floor((double)s->draws * (before / sum) + u);
    if (end > s->draws || s->first[k + 1] == s->size) end = s->draws; /* the last one */
    for (int64_t copy = 0; n < end; copy++) {
      memcpy(s->scratch, s->by_class + s->first[k], (size_t)have * sizeof *s->scratch);
      shuffle(&within, s->scratch, have);
      for (int64_t i = 0; i < have && n < end; i++) s->order[n++] = s->scratch[i] + copy * s->size;
    }
  }
  shuffle(&order, s->order, s->draws);
}

static void use_epoch(ii_sampler *s, int64_t epoch) {
  if (!s->order || s->epoch == epoch) return;
  ii_rng rng = stream(s, epoch, ORDER);
  switch (s->c.sampling.kind) {
  case II_SAMPLE_ALL:
  case II_SAMPLE_REPEATED:
    ii_rng_permutation(&rng, s->order, s->size);
    break;
  case II_SAMPLE_FIXED:
    order_fixed(s, epoch);
    break;
  case II_SAMPLE_BALANCED:
    order_balanced(s, epoch);
    break;
  }
  s->epoch = epoch;
}

/* ---- making ----------------------------------------------------------------------------------*/

/* Deals the images out: this rank gets every world-th of a fixed order. */
static ii_status deal(ii_sampler *s, ii_error *err) {
  int64_t *all = malloc((size_t)s->size * sizeof *all);
  s->own = malloc((size_t)s->draws * sizeof *s->own);
  if (all && s->own) {
    ii_rng rng = stream(s, 0, DEAL);
    ii_rng_permutation(&rng, all, s->size);
    for (int64_t i = 0; i < s->draws; i++) s->own[i] = all[(i * s->c.world + s->c.rank) % s->size];
  }
  free(all);
  return all && s->own ? II_OK : ii_error_set(err, II_ERR_MEMORY, "no memory for an order");
}

static ii_status sort_by_class(ii_sampler *s, ii_error *err) {
  const int64_t classes = ii_dataset_num_classes(s->c.dataset);
  s->first = calloc((size_t)classes + 2, sizeof *s->first);
  s->by_class = malloc((size_t)s->size * sizeof *s->by_class);
  s->scratch = malloc((size_t)s->size * sizeof *s->scratch);
  if (!s->first || !s->by_class || !s->scratch)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for an order");
  /* counted one further up, first[k + 1] is then where class k is filled in from */
  for (int64_t i = 0; i < s->size; i++) s->first[ii_dataset_label(s->c.dataset, i) + 2]++;
  for (int64_t k = 0; k < classes; k++) s->first[k + 2] += s->first[k + 1];
  for (int64_t i = 0; i < s->size; i++)
    s->by_class[s->first[ii_dataset_label(s->c.dataset, i) + 1]++] = i;
  return II_OK;
}

static ii_status check(const ii_sampler_config *c, ii_error *err) {
  const ii_sampling *s = &c->sampling;
  if (c->batch < 1 || c->batch > 1000000)
    return ii_error_set(err, II_ERR_ARG, "the batch of %lld images is not in 1..1000000",
                        (long long)c->batch);
  if (c->world < 1 || c->rank < 0 || c->rank >= c->world)
    return ii_error_set(err, II_ERR_ARG, "rank %lld of %lld does not exist", (long long)c->rank,
                        (long long)c->world);
  if (s->kind == II_SAMPLE_REPEATED && (s->repeats < 1 || s->repeats > 1000))
    return ii_error_set(err, II_ERR_ARG, "each image %lld times is not in 1..1000",
                        (long long)s->repeats);
  if (s->kind == II_SAMPLE_BALANCED && !(s->balance >= 0 && s->balance <= 1))
    return ii_error_set(err, II_ERR_ARG, "the balance of classes %g is not in 0..1", s->balance);
  if (s->kind != II_SAMPLE_ALL && !c->shuffle)
    return ii_error_set(err, II_ERR_ARG, "only all images can be taken without shuffling");
  return II_OK;
}

/* How many draws REPEATED has, of all ranks together. */
static int64_t repeated_draws(int64_t size, int64_t world) {
  enum { ROUND = 256 };
  return size < ROUND ? size : size / ROUND * ROUND / world * world;
}

static ii_status build(ii_sampler *s, ii_error *err) {
  const ii_sampler_config *c = &s->c;
  const bool fixed = c->sampling.kind == II_SAMPLE_FIXED;
  const int64_t ranks = fixed ? 1 : c->world;
  s->size = s->draws = ii_dataset_size(c->dataset);
  if (fixed) s->draws = (s->size + c->world - 1) / c->world;
  if (c->sampling.kind == II_SAMPLE_REPEATED) s->draws = repeated_draws(s->size, c->world);
  s->epoch = -1;
  if (c->drop_last && s->draws < c->batch * ranks)
    return ii_error_set(err, II_ERR_ARG,
                        "an epoch has %lld images, fewer than one batch of %lld x %lld rank%s; "
                        "use a smaller batch",
                        (long long)(fixed ? s->size : s->draws), (long long)c->batch,
                        (long long)c->world, c->world == 1 ? "" : "s");
  if (!c->shuffle) return II_OK;
  s->order = malloc((size_t)(fixed ? s->draws : s->size) * sizeof *s->order);
  if (!s->order) return ii_error_set(err, II_ERR_MEMORY, "no memory for an order");
  if (fixed) return deal(s, err);
  return c->sampling.kind == II_SAMPLE_BALANCED ? sort_by_class(s, err) : II_OK;
}

ii_status ii_sampler_new(const ii_sampler_config *config, ii_sampler **sampler, ii_error *err) {
  II_TRY(check(config, err));
  ii_sampler *s = calloc(1, sizeof *s);
  if (!s) return ii_error_set(err, II_ERR_MEMORY, "no memory for a sampler");
  s->c = *config;
  ii_status status = build(s, err);
  if (status != II_OK)
    ii_sampler_free(s);
  else
    *sampler = s;
  return status;
}

void ii_sampler_free(ii_sampler *s) {
  if (!s) return;
  free(s->order);
  free(s->own);
  free(s->by_class);
  free(s->first);
  free(s->scratch);
  free(s);
}

/* ---- batches ---------------------------------------------------------------------------------*/

int64_t ii_sampler_batches(const ii_sampler *s) {
  const int64_t global = s->c.batch * (s->c.sampling.kind == II_SAMPLE_FIXED ? 1 : s->c.world);
  return s->c.drop_last ? s->draws / global : (s->draws + global - 1) / global;
}

static int64_t copy_repeated(const ii_sampler *s, int64_t index, int64_t *keys) {
  const ii_sampler_config *c = &s->c;
  const int64_t repeats = c->sampling.repeats;
  int64_t n = 0;
  for (int64_t at = index * c->batch * c->world + c->rank; n < c->batch && at < s->draws;
       at += c->world, n++)
    keys[n] = s->order[at / repeats] + at % repeats * s->size;
  return n;
}

int64_t ii_sampler_batch(ii_sampler *s, int64_t epoch, int64_t index, int64_t *keys) {
  const ii_sampler_config *c = &s->c;
  II_ASSERT(epoch >= 0 && index >= 0 && index < ii_sampler_batches(s), "epoch %lld batch %lld",
            (long long)epoch, (long long)index);
  use_epoch(s, epoch);
  if (c->sampling.kind == II_SAMPLE_REPEATED) return copy_repeated(s, index, keys);
  const bool fixed = c->sampling.kind == II_SAMPLE_FIXED;
  const int64_t ranks = fixed ? 1 : c->world, rank = fixed ? 0 : c->rank;
  const int64_t start = index * c->batch * ranks, left = s->draws - start;
  int64_t from = rank * c->batch, n = c->batch;
  if (left < c->batch * ranks) {
    from = left * rank / ranks;
    n = left * (rank + 1) / ranks - from;
  }
  for (int64_t i = 0; i < n; i++)
    keys[i] = s->order ? s->order[start + from + i] : start + from + i;
  return n;
}
