/* Philox4x32-10 against its published known answers, moments of the distributions, permutations,
 * independence of streams. Statistical bounds are five standard errors of fixed seeds: they fail by
 * bugs, not by chance. */
#include "autograd/rng.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* The vectors of the authors' Random123 library for philox4x32-10. */
static void known_answers(void **state) {
  static const struct {
    uint32_t ctr[4], key[2], out[4];
  } v[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
    uint32_t out[4];
    ii_philox4x32(v[i].key, v[i].ctr, out);
    assert_memory_equal(out, v[i].out, sizeof out);
  }
}

/* A stream gives the words of consecutive counters, in order, across the carry of the counter. */
static void stream_is_consecutive_blocks(void **state) {
  ii_rng r = ii_rng_make(7, II_RNG_TEST, 1, 2);
  r.ctr[0] = 0xfffffffeu;
  uint32_t ctr[4];
  memcpy(ctr, r.ctr, sizeof ctr);
  for (int block = 0; block < 4; block++) {
    uint32_t want[4];
    ii_philox4x32(r.key, ctr, want);
    for (int i = 0; i < 4; i++) assert_int_equal(ii_rng_u32(&r), want[i]);
    if (++ctr[0] == 0) ctr[1]++;
  }
  assert_int_equal(ctr[1], 1);
}

typedef struct {
  double mean, variance, skewness, kurtosis, min, max;
} moments;

static moments moments_of(const double *x, int n) {
  moments m = {.min = INFINITY, .max = -INFINITY};
  double s2 = 0, s3 = 0, s4 = 0;
  for (int i = 0; i < n; i++) {
    m.mean += x[i] / n;
    m.min = fmin(m.min, x[i]);
    m.max = fmax(m.max, x[i]);
  }
  for (int i = 0; i < n; i++) {
    double d = x[i] - m.mean;
    s2 += d * d / n;
    s3 += d * d * d / n;
    s4 += d * d * d * d / n;
  }
  m.variance = s2;
  m.skewness = s3 / pow(s2, 1.5);
  m.kurtosis = s4 / (s2 * s2);
  return m;
}

enum { DRAWS = 200000 };

static double *draws(void) {
  double *x = malloc(DRAWS * sizeof *x);
  assert_non_null(x);
  return x;
}

#define NEAR(value, want, standard_error)                                                          \
  do {                                                                                             \
    double v_ = (value), w_ = (want);                                                              \
    if (!(fabs(v_ - w_) <= 5 * (standard_error))) fail_msg(#value " is %.6g, not %.6g", v_, w_);   \
  } while (0)

static void uniform(void **state) {
  double *x = draws(), n = DRAWS;
  ii_rng r = ii_rng_make(1, II_RNG_TEST, 0, 0);
  for (int i = 0; i < DRAWS; i++) x[i] = ii_rng_uniform(&r);
  moments m = moments_of(x, DRAWS);
  assert_true(m.min >= 0 && m.max < 1 && m.min < 1e-4 && m.max > 1 - 1e-4);
  NEAR(m.mean, 0.5, sqrt(1.0 / 12 / n));
  NEAR(m.variance, 1.0 / 12, sqrt((1.0 / 80 - 1.0 / 144) / n));
  /* 16 cells: chi-square with 15 degrees of freedom is 15 +- 5.5 */
  double cells[16] = {0}, chi = 0, serial = 0;
  for (int i = 0; i < DRAWS; i++) cells[(int)(x[i] * 16)]++;
  for (int i = 0; i < 16; i++) chi += (cells[i] - n / 16) * (cells[i] - n / 16) / (n / 16);
  NEAR(chi, 15, sqrt(30));
  for (int i = 1; i < DRAWS; i++) serial += (x[i] - 0.5) * (x[i - 1] - 0.5) * 12 / n;
  NEAR(serial, 0, 1 / sqrt(n));
  /* all 53 bits are used: the lowest one too */
  int odd = 0;
  for (int i = 0; i < DRAWS; i++) odd += (int)((uint64_t)(x[i] * 0x1p53) & 1);
  NEAR(odd, n / 2, sqrt(n) / 2);
  for (int i = 0; i < 1000; i++) {
    double v = ii_rng_range(&r, -3, 2);
    assert_true(v >= -3 && v < 2);
  }
  free(x);
}

static void normal(void **state) {
  double *x = draws(), n = DRAWS;
  ii_rng r = ii_rng_make(2, II_RNG_TEST, 0, 0);
  int beyond = 0;
  for (int i = 0; i < DRAWS; i++) {
    x[i] = ii_rng_normal(&r);
    beyond += fabs(x[i]) > 2;
  }
  moments m = moments_of(x, DRAWS);
  NEAR(m.mean, 0, 1 / sqrt(n));
  NEAR(m.variance, 1, sqrt(2 / n));
  NEAR(m.skewness, 0, sqrt(6 / n));
  NEAR(m.kurtosis, 3, sqrt(24 / n));
  NEAR(beyond / n, erfc(2 / sqrt(2)), sqrt(0.0455 / n));
  assert_true(m.max > 3.5 && m.min < -3.5);
  free(x);
}

static void check_beta(double a, double b) {
  double *x = draws(), n = DRAWS, variance = a * b / ((a + b) * (a + b) * (a + b + 1));
  ii_rng r = ii_rng_make(3, II_RNG_TEST, 0, 0);
  for (int i = 0; i < DRAWS; i++) x[i] = ii_rng_beta(&r, a, b);
  moments m = moments_of(x, DRAWS);
  assert_true(m.min >= 0 && m.max <= 1);
  NEAR(m.mean, a / (a + b), sqrt(variance / n));
  NEAR(m.variance, variance, variance * sqrt((m.kurtosis - 1) / n));
  free(x);
}

static void beta(void **state) {
  check_beta(0.8, 0.8); /* mixup */
  check_beta(1, 1);     /* cutmix */
  check_beta(0.1, 0.3);
  check_beta(2.5, 7);
  ii_rng r = ii_rng_make(4, II_RNG_TEST, 0, 0);
  for (int i = 0; i < 10000; i++) { /* both gammas underflow as plain numbers */
    double v = ii_rng_beta(&r, 1e-3, 1e-3);
    assert_true(v >= 0 && v <= 1);
  }
}

static void below_is_unbiased(void **state) {
  static const uint64_t sizes[] = {1, 2, 3, 7, 1000, (uint64_t)3 << 62};
  ii_rng r = ii_rng_make(5, II_RNG_TEST, 0, 0);
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
    for (int i = 0; i < 1000; i++) assert_true(ii_rng_below(&r, sizes[s]) < sizes[s]);
  /* with 3/4 of all 64-bit numbers, a plain remainder would fall below 1/3 of them twice as often
   */
  double low = 0, n = 30000;
  for (int i = 0; i < (int)n; i++) low += ii_rng_below(&r, (uint64_t)3 << 62) < (uint64_t)1 << 62;
  NEAR(low / n, 1.0 / 3, sqrt(2.0 / 9 / n));
  double three[3] = {0};
  for (int i = 0; i < (int)n; i++) three[ii_rng_below(&r, 3)]++;
  for (int i = 0; i < 3; i++) NEAR(three[i] / n, 1.0 / 3, sqrt(2.0 / 9 / n));
}

static void permutations(void **state) {
  enum { N = 1025 };
  int64_t perm[N];
  ii_rng r = ii_rng_make(6, II_RNG_SHUFFLE, 0, 0);
  for (int64_t n = 0; n <= N; n += n < 5 ? 1 : 340) {
    bool seen[N] = {false};
    ii_rng_permutation(&r, perm, n);
    for (int64_t i = 0; i < n; i++) {
      assert_true(perm[i] >= 0 && perm[i] < n && !seen[perm[i]]);
      seen[perm[i]] = true;
    }
  }
  /* all 24 orders of 4 are equally likely: chi-square with 23 degrees of freedom */
  double count[256] = {0}, chi = 0, n = 24000;
  for (int i = 0; i < (int)n; i++) {
    ii_rng_permutation(&r, perm, 4);
    count[perm[0] * 64 + perm[1] * 16 + perm[2] * 4 + perm[3]]++;
  }
  int kinds = 0;
  for (int i = 0; i < 256; i++) {
    kinds += count[i] > 0;
    if (count[i] > 0) chi += (count[i] - n / 24) * (count[i] - n / 24) / (n / 24);
  }
  assert_int_equal(kinds, 24);
  NEAR(chi, 23, sqrt(46));
}

static double correlation(ii_rng a, ii_rng b) {
  enum { N = 4096 };
  double s = 0;
  for (int i = 0; i < N; i++) s += (ii_rng_uniform(&a) - 0.5) * (ii_rng_uniform(&b) - 0.5);
  return s * 12 / sqrt(N);
}

static bool same_start(ii_rng a, ii_rng b) {
  for (int i = 0; i < 4; i++)
    if (ii_rng_u32(&a) != ii_rng_u32(&b)) return false;
  return true;
}

/* Streams that differ in one part of their identity, by one, have nothing to do with each other. */
static void streams_are_independent(void **state) {
  for (uint64_t i = 0; i < 50; i++) {
    ii_rng base = ii_rng_make(i, II_RNG_AUGMENT, i, i);
    ii_rng other[] = {
        ii_rng_make(i + 1, II_RNG_AUGMENT, i, i),
        ii_rng_make(i, II_RNG_MIX, i, i),
        ii_rng_make(i, II_RNG_AUGMENT, i + 1, i),
        ii_rng_make(i, II_RNG_AUGMENT, i, i + 1),
        ii_rng_make(i + ((uint64_t)1 << 32), II_RNG_AUGMENT, i, i),
        ii_rng_make(i, II_RNG_AUGMENT, i + ((uint64_t)1 << 32), i),
        ii_rng_make(i, II_RNG_AUGMENT, i, i + ((uint64_t)1 << 32)),
    };
    for (size_t j = 0; j < sizeof other / sizeof *other; j++) {
      assert_false(same_start(base, other[j]));
      NEAR(correlation(base, other[j]), 0, 1);
    }
    assert_true(same_start(base, ii_rng_make(i, II_RNG_AUGMENT, i, i)));
  }
}

/* 64-bit FNV-1a has published values. */
static void hash_of_names(void **state) {
  assert_true(ii_hash_string("") == 0xcbf29ce484222325u);
  assert_true(ii_hash_string("a") == 0xaf63dc4c8601ec8cu);
  assert_true(ii_hash_string("foobar") == 0x85944171f73967e8u);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(known_answers), cmocka_unit_test(stream_is_consecutive_blocks),
      cmocka_unit_test(uniform),       cmocka_unit_test(normal),
      cmocka_unit_test(beta),          cmocka_unit_test(below_is_unbiased),
      cmocka_unit_test(permutations),  cmocka_unit_test(streams_are_independent),
      cmocka_unit_test(hash_of_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
