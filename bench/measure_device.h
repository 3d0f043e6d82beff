/* What the benchmarks share about engines: opening one by name, timing work on it with cold caches,
 * and numbers to compute with. Failures print and exit. */
#ifndef II_BENCH_MEASURE_DEVICE_H
#define II_BENCH_MEASURE_DEVICE_H
#include "autograd/rng.h"
#include "bench/measure.h"
#include "kernels/about.h"
#include "kernels/device.h"
#include "kernels/timer.h"

typedef struct {
  ii_kctx *k; /* not owned */
  double
      l1_gb_s; /* a GPU's first-level caches at the highest clock, 128 bytes a cycle; 0: not told */
  char name[288]; /* "cpu", or the engine and the GPU: for the field "device" of results */
  char *flush;    /* memory of the device; NULL: caches stay warm */
  size_t flush_bytes;
  ii_timer timer;
} measure_device;

static inline void measure_must(ii_kctx *k, int status) {
  if (!status) return;
  fprintf(stderr, "%s\n", k->error);
  exit(1);
}

/* flush_mib: caches are filled with that much other data before timed work; 0: not at all. */
static inline measure_device measure_device_open(ii_kctx *k, int index, int flush_mib) {
  measure_device d = {.k = k, .name = "cpu", .flush_bytes = (size_t)flush_mib << 20};
  if (k->device == II_CUDA) {
    ii_gpu g;
    char error[256];
    measure_must(k, ii_gpu_describe(index, &g, error, sizeof error));
    snprintf(d.name, sizeof d.name, "%s, %.200s", ii_cuda_engine_name(), g.name);
    d.l1_gb_s = 128e-3 * g.processors * g.clock_mhz;
  }
  if (flush_mib) {
    void *p;
    measure_must(k, ii_device_alloc(k, d.flush_bytes, &p));
    d.flush = p;
    measure_must(k, ii_device_zero(k, p, d.flush_bytes));
  }
  measure_must(k, ii_timer_init(k, &d.timer));
  return d;
}

static inline void measure_device_close(measure_device *d) {
  ii_timer_destroy(d->k, &d->timer);
  if (d->flush) ii_device_free(d->k, d->flush, d->flush_bytes);
  *d = (measure_device){0};
}

/* Copies bytes of device memory; the CPU engine's with all its threads. Does not wait. */
static inline void measure_device_copy(const measure_device *d, void *to, const void *from,
                                       size_t bytes) {
  if (d->k->device == II_CPU)
    measure_copy(to, from, bytes, d->k->threads);
  else
    measure_must(d->k, ii_device_copy(d->k, to, from, bytes));
}

/* Begins timed work, with cold caches. A GPU is still busy flushing when the work is queued, so
 * that its launches cost nothing. */
static inline void measure_start(measure_device *d) {
  if (d->flush) measure_device_copy(d, d->flush, d->flush + d->flush_bytes / 2, d->flush_bytes / 2);
  measure_must(d->k, ii_timer_start(d->k, &d->timer));
}

/* Ends it: seconds since measure_start. */
static inline double measure_stop(measure_device *d) {
  double seconds;
  measure_must(d->k, ii_timer_stop(d->k, &d->timer));
  measure_must(d->k, ii_timer_seconds(d->k, &d->timer, &seconds));
  return seconds;
}

/* Bytes read and written per second by a plain copy, in GB/s: the median of 7 copies far larger
 * than any cache. */
static inline double measure_copy_rate(measure_device *d) {
  const size_t bytes = (size_t)(d->k->device == II_CUDA ? 512 : 128) << 20;
  void *a, *b;
  double t[7];
  measure_must(d->k, ii_device_alloc(d->k, bytes, &a) || ii_device_alloc(d->k, bytes, &b));
  measure_must(d->k, ii_device_zero(d->k, a, bytes) || ii_device_zero(d->k, b, bytes));
  for (int i = 0; i < 7; i++) {
    measure_start(d);
    measure_device_copy(d, i % 2 ? a : b, i % 2 ? b : a, bytes);
    t[i] = measure_stop(d);
  }
  ii_device_free(d->k, a, bytes);
  ii_device_free(d->k, b, bytes);
  return 2e-9 * (double)bytes / measure_summarise(t, 7).median;
}

/* Whether this GPU is emulated: its times mean nothing. */
static inline bool measure_emulated(const measure_device *d) {
  return strstr(d->name, "emulated") != NULL;
}

/* Fills device memory with n normal numbers of type t and standard deviation sd, from stream
 * `stream`; a pattern of prime length that repeats keeps this fast. */
static inline void measure_fill_normal(ii_kctx *k, void *p, ii_dtype t, int64_t n, double sd,
                                       uint64_t stream) {
  enum { PERIOD = 65537 };
  const int64_t first = n < PERIOD ? n : PERIOD;
  const size_t size = ii_dtype_size(t);
  ii_rng r = ii_rng_make(1, II_RNG_TEST, stream, 0);
  char *host = measure_buffer((size_t)first * size);
  for (int64_t i = 0; i < first; i++) {
    const double v = sd * ii_rng_normal(&r);
    if (t == II_F32)
      ((float *)(void *)host)[i] = (float)v;
    else if (t == II_F64)
      ((double *)(void *)host)[i] = v;
    else
      ((uint16_t *)(void *)host)[i] =
          t == II_F16 ? ii_f32_to_f16((float)v) : ii_f32_to_bf16((float)v);
  }
  measure_must(k, ii_device_write(k, p, host, (size_t)first * size));
  for (int64_t done = first; done < n;) {
    const int64_t part = done < n - done ? done : n - done;
    measure_must(k, ii_device_copy(k, (char *)p + (size_t)done * size, p, (size_t)part * size));
    done += part;
  }
  free(host);
}

#endif
