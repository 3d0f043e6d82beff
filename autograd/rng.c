#include "autograd/rng.h"
#include <math.h>

void ii_philox4x32(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4]) {
  ii_philox_block(key, ctr, out);
}

ii_rng ii_rng_make(uint64_t seed, ii_rng_purpose purpose, uint64_t a, uint64_t b) {
  const ii_philox_stream s = ii_philox_stream_of(seed, (uint32_t)purpose, a, b);
  return (ii_rng){.key = {s.key[0], s.key[1]}, .ctr = {0, 0, s.tail[0], s.tail[1]}};
}

ii_philox_stream ii_rng_stream(const ii_rng *r) {
  return (ii_philox_stream){{r->key[0], r->key[1]}, {r->ctr[2], r->ctr[3]}};
}

uint32_t ii_rng_u32(ii_rng *r) {
  if (r->left == 0) {
    ii_philox4x32(r->key, r->ctr, r->out);
    if (++r->ctr[0] == 0) r->ctr[1]++;
    r->left = 4;
  }
  return r->out[4 - r->left--];
}

double ii_rng_uniform(ii_rng *r) {
  uint64_t hi = ii_rng_u32(r) >> 5, lo = ii_rng_u32(r) >> 6; /* 27 + 26 bits */
  return (double)(hi << 26 | lo) * 0x1p-53;
}

double ii_rng_range(ii_rng *r, double lo, double hi) {
  return lo + (hi - lo) * ii_rng_uniform(r);
}

double ii_rng_normal(ii_rng *r) {
  double u = 1.0 - ii_rng_uniform(r), v = ii_rng_uniform(r); /* u in (0, 1] */
  return sqrt(-2.0 * log(u)) * cos(2.0 * M_PI * v);
}

uint64_t ii_rng_below(ii_rng *r, uint64_t n) {
  uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
  do {
    x = (uint64_t)ii_rng_u32(r) << 32;
    x |= ii_rng_u32(r);
  } while (x >= limit);
  return x % n;
}

/* Gamma(shape, 1) by Marsaglia and Tsang 2000; shape < 1 through Gamma(shape + 1) * U^(1/shape). */
static double log_gamma_draw(ii_rng *r, double shape) {
  double boost = 0;
  if (shape < 1) {
    boost = log(1.0 - ii_rng_uniform(r)) / shape;
    shape += 1;
  }
  double d = shape - 1.0 / 3.0, c = 1.0 / sqrt(9.0 * d);
  for (;;) {
    double x = ii_rng_normal(r), v = 1.0 + c * x;
    if (v <= 0) continue;
    v = v * v * v;
    double u = 1.0 - ii_rng_uniform(r);
    if (log(u) < 0.5 * x * x + d - d * v + d * log(v)) return log(d * v) + boost;
  }
}

double ii_rng_beta(ii_rng *r, double a, double b) {
  /* in logarithms: for small a, b both gammas may underflow */
  double x = log_gamma_draw(r, a), y = log_gamma_draw(r, b);
  return 1.0 / (1.0 + exp(y - x));
}

void ii_rng_permutation(ii_rng *r, int64_t *perm, int64_t n) {
  for (int64_t i = 0; i < n; i++) perm[i] = i;
  for (int64_t i = n - 1; i > 0; i--) {
    int64_t j = (int64_t)ii_rng_below(r, (uint64_t)i + 1), t = perm[i];
    perm[i] = perm[j], perm[j] = t;
  }
}

uint64_t ii_hash_string(const char *s) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
  return h;
}
