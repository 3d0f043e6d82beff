/* What the benchmarks share: a clock, order statistics, and the two limits of a machine that
 * results are set against. For the main programs of this folder only: failures print and exit. */
#ifndef II_BENCH_MEASURE_H
#define II_BENCH_MEASURE_H
#include <stdarg.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Seconds of a clock that only runs forward. */
static inline double measure_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
  double median, min, p90;
} measure_spread;

static inline int measure_by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Order statistics of t[n], n > 0. Sorts t. */
static inline measure_spread measure_summarise(double *t, int n) {
  qsort(t, (size_t)n, sizeof *t, measure_by_value);
  double median = n % 2 ? t[n / 2] : 0.5 * (t[n / 2 - 1] + t[n / 2]);
  return (measure_spread){median, t[0], t[n * 9 / 10]};
}

/* Memory of `bytes` (64-byte aligned, touched); ends the program when there is none. */
static inline void *measure_buffer(size_t bytes) {
  void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  if (!p) {
    fprintf(stderr, "out of memory for a buffer of %zu bytes\n", bytes);
    exit(1);
  }
  memset(p, 1, bytes);
  return p;
}

/* Copies bytes with `threads` threads, each its own part. */
static inline void measure_copy(void *to, const void *from, size_t bytes, int threads) {
  const size_t part = bytes / (size_t)threads / 64 * 64;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; i++) {
    size_t at = (size_t)i * part;
    memcpy((char *)to + at, (const char *)from + at, i == threads - 1 ? bytes - at : part);
  }
}

#endif
