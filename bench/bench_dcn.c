/* Times the deformable convolution and the depthwise convolution on the shapes of InternImage-T and
 * FlashInternImage-T at 224 pixels.
 *
 *   bench_dcn [--device cpu|cuda[:N]] [--threads N] [--repeat R] [--batch B] [--flush MIB]
 *             [--only dcnv3|dcnv4|dwconv] [--deterministic 1]
 *
 * One JSON object per line: op, shape, dtype, device, forward and forward+backward in milliseconds
 * (median, minimum and the 90th percentile over R repetitions; on a GPU between two events), and
 * the bytes that must move at least. Caches are warm on the CPU and filled with --flush MiB (128)
 * of other data on a GPU. --deterministic 1: the backward without atomics. Offsets are normal with
 * a standard deviation of half a pixel, as in trained models. */
#include "autograd/ctx.h"
#include "bench/measure_device.h"
#include "train/process.h"

typedef struct {
  ii_engine_options engine;
  int repeat, batch, flush_mib;
  const char *only;
  measure_device on;
} options;

static void fail(const char *why) {
  fprintf(stderr, "bench_dcn: %s\n", why);
  exit(1);
}

/* Device memory for n elements of type t; goes back by release. */
static void *memory(options *o, int64_t n, ii_dtype t) {
  void *p;
  measure_must(o->on.k, ii_device_alloc(o->on.k, (size_t)n * ii_dtype_size(t), &p));
  return p;
}

static void release(options *o, void *p, int64_t n, ii_dtype t) {
  ii_device_free(o->on.k, p, (size_t)n * ii_dtype_size(t));
}

/* n normal numbers. */
static void *normal(options *o, int64_t n, ii_dtype t, double sd, uint64_t stream) {
  void *p = memory(o, n, t);
  measure_fill_normal(o->on.k, p, t, n, sd, stream);
  return p;
}

typedef int (*kernel)(ii_kctx *k, const void *a);

/* Repeats fwd, then fwd and bwd, and prints one line. */
static void measure(ii_kctx *k, options *o, const char *what, kernel fwd, kernel bwd,
                    const void *args, double fwd_bytes, double both_bytes) {
  double *t[2];
  for (int both = 0; both < 2; both++) {
    t[both] = measure_buffer((size_t)o->repeat * sizeof(double));
    for (int i = -2; i < o->repeat; i++) { /* two rounds to warm up */
      measure_start(&o->on);
      if (fwd(k, args) || (both && bwd(k, args))) fail(k->error);
      const double seconds = measure_stop(&o->on);
      if (i >= 0) t[both][i] = 1e3 * seconds;
    }
  }
  measure_spread f = measure_summarise(t[0], o->repeat), b = measure_summarise(t[1], o->repeat);
  printf("{%s, \"device\": \"%s\", \"threads\": %d, \"fwd_ms\": %.3f, \"fwd_min_ms\": %.3f, "
         "\"fwd_p90_ms\": %.3f, "
         "\"fwd_bwd_ms\": %.3f, \"fwd_bwd_min_ms\": %.3f, \"fwd_bwd_p90_ms\": %.3f, "
         "\"fwd_MB\": %.1f, \"fwd_bwd_MB\": %.1f}\n",
         what, o->on.name, k->threads, f.median, f.min, f.p90, b.median, b.min, b.p90,
         fwd_bytes * 1e-6, both_bytes * 1e-6);
  fflush(stdout);
  free(t[0]);
  free(t[1]);
}

#if II_HAVE_CUDA
#define ON(name, k, a) ((k)->device == II_CUDA ? ii_cuda_##name(k, a) : ii_cpu_##name(k, a))
#else
#define ON(name, k, a) ii_cpu_##name(k, a)
#endif
static int dcn_fwd(ii_kctx *k, const void *a) {
  return ON(dcn_fwd, k, a);
}
static int dcn_bwd(ii_kctx *k, const void *a) {
  return ON(dcn_bwd, k, a);
}
static int dwconv_fwd(ii_kctx *k, const void *a) {
  return ON(dwconv2d_fwd, k, a);
}
static int dwconv_bwd(ii_kctx *k, const void *a) {
  return ON(dwconv2d_bwd, k, a);
}

/* 3x3, stride 1, padding 1, G groups; v4 packs offsets and modulations and may take the softmax. */
static void bench_dcn(ii_kctx *k, options *o, bool v4, ii_dtype t, int64_t side, int64_t C,
                      int64_t G) {
  const int64_t K = 9, rows = o->batch * side * side, P = (3 * G * K + 7) / 8 * 8;
  ii_dcn_args a = {.real = II_F32,
                   .x_dtype = t,
                   .om_dtype = t,
                   .N = o->batch,
                   .H = side,
                   .W = side,
                   .C = C,
                   .G = G,
                   .Ho = side,
                   .Wo = side,
                   .kh = 3,
                   .kw = 3,
                   .stride_h = 1,
                   .stride_w = 1,
                   .pad_h = 1,
                   .pad_w = 1,
                   .dil_h = 1,
                   .dil_w = 1,
                   .offset_scale = 1};
  const size_t size = ii_dtype_size(t);
  void *x = normal(o, rows * C, t, 1, 1), *gy = normal(o, rows * C, t, 1, 2);
  void *y = memory(o, rows * C, t), *gx = memory(o, rows * C, t);
  const int64_t om = v4 ? rows * P : rows * 3 * G * K; /* both kinds of values in one allocation */
  char *taps = normal(o, om, t, 0.5, 3), *gtaps = memory(o, om, t);
  const int64_t mask = v4 ? 2 * K : rows * 2 * G * K;
  a.x = x, a.y = y, a.gy = gy, a.gx = gx, a.x_row = C;
  a.offset = taps, a.mask = taps + (size_t)mask * size;
  a.goffset = gtaps, a.gmask = gtaps + (size_t)mask * size;
  a.offset_row = v4 ? P : 2 * G * K, a.offset_group = v4 ? 3 * K : 2 * K;
  a.mask_row = v4 ? P : G * K, a.mask_group = v4 ? 3 * K : K;
  char what[160];
  snprintf(what, sizeof what,
           "\"op\": \"%s\", \"shape\": \"%dx%lldx%lldx%lld\", \"groups\": %lld, \"dtype\": \"%s\"",
           v4 ? "dcnv4" : "dcnv3", o->batch, (long long)side, (long long)side, (long long)C,
           (long long)G, ii_dtype_name(t));
  double act = (double)(rows * C) * (double)size, list = (double)om * (double)size;
  measure(k, o, what, dcn_fwd, dcn_bwd, &a, 2 * act + list, 5 * act + 3 * list);
  release(o, x, rows * C, t), release(o, gy, rows * C, t);
  release(o, y, rows * C, t), release(o, gx, rows * C, t);
  release(o, taps, om, t), release(o, gtaps, om, t);
}

static void bench_dwconv(ii_kctx *k, options *o, int kernel_size, ii_dtype t, int64_t side,
                         int64_t C) {
  const int64_t n = o->batch * side * side * C, nw = C * kernel_size * kernel_size;
  const size_t size = ii_dtype_size(t);
  ii_dwconv2d_args a = {
      .real = II_F32, .x_dtype = t, .N = o->batch, .H = side, .W = side, .C = C, .k = kernel_size};
  void *x = normal(o, n, t, 1, 1), *gy = normal(o, n, t, 1, 2), *w = normal(o, nw, II_F32, 1, 3);
  void *y = memory(o, n, t), *gx = memory(o, n, t), *gw = memory(o, nw, II_F32),
       *gb = memory(o, C, II_F32);
  a.x = x, a.w = w, a.y = y, a.gy = gy, a.gx = gx, a.gw = gw, a.gb = gb;
  char what[160];
  snprintf(what, sizeof what,
           "\"op\": \"dwconv%d\", \"shape\": \"%dx%lldx%lldx%lld\", \"dtype\": \"%s\"", kernel_size,
           o->batch, (long long)side, (long long)side, (long long)C, ii_dtype_name(t));
  double act = (double)n * (double)size;
  measure(k, o, what, dwconv_fwd, dwconv_bwd, &a, 2 * act, 5 * act);
  release(o, x, n, t), release(o, gy, n, t), release(o, y, n, t), release(o, gx, n, t);
  release(o, w, nw, II_F32), release(o, gw, nw, II_F32), release(o, gb, C, II_F32);
}

/* The four stages of the T models; D = 16 channels per group. */
static void run(ii_kctx *k, options *o) {
  static const ii_dtype types[] = {II_F32, II_BF16, II_F16};
  const int n_types = k->device == II_CUDA ? 3 : 2;
  for (int t = 0; t < n_types; t++)
    for (int i = 0; i < 4; i++) {
      int64_t side = 56 >> i, C = 64 << i, G = 4 << i;
      if (!o->only || !strcmp(o->only, "dcnv3")) bench_dcn(k, o, false, types[t], side, C, G);
      if (!o->only || !strcmp(o->only, "dcnv4")) bench_dcn(k, o, true, types[t], side, C, G);
      if (!o->only || !strcmp(o->only, "dwconv"))
        for (int size = 3; size <= 5; size += 2) bench_dwconv(k, o, size, types[t], side, C);
    }
}

static void parse(options *o, int argc, char **argv) {
  *o = (options){.repeat = 20, .batch = 8, .flush_mib = -1};
  for (int i = 1; i < argc; i += 2) {
    ii_error err = {0};
    if (i + 1 == argc) fail("an option lacks its value");
    if (!strcmp(argv[i], "--threads"))
      o->engine.threads = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--repeat"))
      o->repeat = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--batch"))
      o->batch = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--flush"))
      o->flush_mib = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--deterministic"))
      o->engine.deterministic = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--only"))
      o->only = argv[i + 1];
    else if (strcmp(argv[i], "--device"))
      fail("unknown option; see the head of bench_dcn.c");
    else if (ii_device_parse(argv[i + 1], &o->engine.device, &o->engine.index, &err) != II_OK)
      fail(err.text);
  }
  if (o->repeat < 1 || o->batch < 1 || o->engine.threads < 0)
    fail("--repeat and --batch start at 1");
  if (o->flush_mib < 0) o->flush_mib = o->engine.device == II_CUDA ? 512 : 0;
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  options o;
  ii_kctx k;
  parse(&o, argc, argv);
  if (ii_engine_open(&k, &o.engine)) fail(k.error);
  o.on = measure_device_open(&k, o.engine.index, o.flush_mib);
  run(&k, &o);
  measure_device_close(&o.on);
  ii_engine_close(&k);
  return 0;
}
