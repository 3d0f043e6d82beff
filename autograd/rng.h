/* Random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
 * 1, 2, 3").
 *
 * Counter-based: number i of the stream (key, counter) is a pure function of both, so results do
 * not depend on the number of threads, on the order of evaluation, or on a restart. Nothing here
 * holds global state; all functions may be called from any thread. */
#ifndef II_RNG_H
#define II_RNG_H
#include <stdint.h>
#include "kernels/philox.h"

/* What a stream is for; part of the key, so that streams never overlap. */
typedef enum {
  II_RNG_INIT = 1,  /* a = hash of the parameter's name */
  II_RNG_DROP_PATH, /* a = step, b = op number within the step */
  II_RNG_SHUFFLE,   /* a = epoch */
  II_RNG_AUGMENT,   /* a = epoch, b = sample */
  II_RNG_MIX,       /* a = epoch, b = batch */
  II_RNG_DATA,      /* synthetic data: a = class, b = sample */
  II_RNG_TEST,
  II_RNG_ERASE /* random erasing: a = epoch, b = sample */
} ii_rng_purpose;

typedef struct {
  uint32_t key[2];
  uint32_t ctr[4]; /* ctr[0] is the block index, advanced by the draws; the rest is the identity */
  uint32_t out[4];
  int left; /* how many of out are still unused */
} ii_rng;

/* One Philox4x32-10 block: out = philox(key, ctr). */
void ii_philox4x32(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4]);

/* The stream of (seed, purpose, a, b) (ii_philox_stream_of), at its beginning. */
ii_rng ii_rng_make(uint64_t seed, ii_rng_purpose purpose, uint64_t a, uint64_t b);

/* The same stream from its beginning, for kernels that draw number i by themselves. */
ii_philox_stream ii_rng_stream(const ii_rng *r);

uint32_t ii_rng_u32(ii_rng *r);                       /* 32 uniform bits */
double ii_rng_uniform(ii_rng *r);                     /* [0, 1), 53 bits */
double ii_rng_range(ii_rng *r, double lo, double hi); /* [lo, hi) */
double ii_rng_normal(ii_rng *r);                   /* N(0, 1), Box-Muller; uses one pair a call */
uint64_t ii_rng_below(ii_rng *r, uint64_t n);      /* [0, n), n > 0, unbiased (rejection) */
double ii_rng_beta(ii_rng *r, double a, double b); /* Beta(a, b), a, b > 0, from two gammas */

/* Fills perm[0..n) with a uniformly random permutation (Fisher-Yates). */
void ii_rng_permutation(ii_rng *r, int64_t *perm, int64_t n);

/* FNV-1a of a string, for keying streams by name. */
uint64_t ii_hash_string(const char *s);

#endif
