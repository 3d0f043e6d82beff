/* Times the deformable convolution and the depthwise convolution on the shapes of InternImage-T and
 * FlashInternImage-T at 224 pixels.
 *
 *   bench_dcn [--threads N] [--repeat R] [--batch B] [--only dcnv3|dcnv4|dwconv]
 *
 * One JSON object per line: op, shape, dtype, threads, forward and forward+backward in milliseconds
 * (median, minimum and the 90th percentile over R repetitions), and the bytes that must move at
 * least. Offsets are normal with a standard deviation of half a pixel, as in trained models. */
#include "autograd/rng.h"
#include "bench/measure.h"
#include "kernels/device.h"
#include "train/process.h"

typedef struct {
  int threads, repeat, batch;
  const char *only;
} options;

static void fail(const char *why) {
  fprintf(stderr, "bench_dcn: %s\n", why);
  exit(1);
}

/* n normal numbers as t (f32 or bf16). */
static void *normal(int64_t n, ii_dtype t, double sd, uint64_t stream) {
  ii_rng r = ii_rng_make(1, II_RNG_TEST, stream, 0);
  void *p = measure_buffer((size_t)n * ii_dtype_size(t));
  for (int64_t i = 0; i < n; i++) {
    float v = (float)(sd * ii_rng_normal(&r));
    if (t == II_F32)
      ((float *)p)[i] = v;
    else
      ((uint16_t *)p)[i] = ii_f32_to_bf16(v);
  }
  return p;
}

typedef int (*kernel)(ii_kctx *k, const void *a);

/* Repeats fwd, then fwd and bwd, and prints one line. */
static void measure(ii_kctx *k, const options *o, const char *what, kernel fwd, kernel bwd,
                    const void *args, double fwd_bytes, double both_bytes) {
  double *t[2];
  for (int both = 0; both < 2; both++) {
    t[both] = measure_buffer((size_t)o->repeat * sizeof(double));
    for (int i = -2; i < o->repeat; i++) { /* two rounds to warm up */
      double t0 = measure_now();
      if (fwd(k, args) || (both && bwd(k, args))) fail(k->error);
      if (i >= 0) t[both][i] = 1e3 * (measure_now() - t0);
    }
  }
  measure_spread f = measure_summarise(t[0], o->repeat), b = measure_summarise(t[1], o->repeat);
  printf("{%s, \"threads\": %d, \"fwd_ms\": %.3f, \"fwd_min_ms\": %.3f, \"fwd_p90_ms\": %.3f, "
         "\"fwd_bwd_ms\": %.3f, \"fwd_bwd_min_ms\": %.3f, \"fwd_bwd_p90_ms\": %.3f, "
         "\"fwd_MB\": %.1f, \"fwd_bwd_MB\": %.1f}\n",
         what, k->threads, f.median, f.min, f.p90, b.median, b.min, b.p90, fwd_bytes * 1e-6,
         both_bytes * 1e-6);
  fflush(stdout);
  free(t[0]);
  free(t[1]);
}

static int dcn_fwd(ii_kctx *k, const void *a) {
  return ii_cpu_dcn_fwd(k, a);
}
static int dcn_bwd(ii_kctx *k, const void *a) {
  return ii_cpu_dcn_bwd(k, a);
}
static int dwconv_fwd(ii_kctx *k, const void *a) {
  return ii_cpu_dwconv2d_fwd(k, a);
}
static int dwconv_bwd(ii_kctx *k, const void *a) {
  return ii_cpu_dwconv2d_bwd(k, a);
}

/* 3x3, stride 1, padding 1, G groups; v4 packs offsets and modulations and may take the softmax. */
static void bench_dcn(ii_kctx *k, const options *o, bool v4, ii_dtype t, int64_t side, int64_t C,
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
  void *x = normal(rows * C, t, 1, 1), *gy = normal(rows * C, t, 1, 2);
  void *y = measure_buffer((size_t)(rows * C) * size),
       *gx = measure_buffer((size_t)(rows * C) * size);
  const int64_t om = v4 ? rows * P : rows * 3 * G * K; /* both kinds of values in one allocation */
  char *taps = normal(om, t, 0.5, 3), *gtaps = measure_buffer((size_t)om * size);
  const int64_t mask = v4 ? 2 * K : rows * 2 * G * K;
  a.x = x, a.y = y, a.gy = gy, a.gx = gx;
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
  free(x), free(gy), free(y), free(gx), free(taps), free(gtaps);
}

static void bench_dwconv(ii_kctx *k, const options *o, int kernel_size, ii_dtype t, int64_t side,
                         int64_t C) {
  const int64_t n = o->batch * side * side * C, nw = C * kernel_size * kernel_size;
  const size_t size = ii_dtype_size(t);
  ii_dwconv2d_args a = {
      .real = II_F32, .x_dtype = t, .N = o->batch, .H = side, .W = side, .C = C, .k = kernel_size};
  void *x = normal(n, t, 1, 1), *gy = normal(n, t, 1, 2), *w = normal(nw, II_F32, 1, 3);
  void *y = measure_buffer((size_t)n * size), *gx = measure_buffer((size_t)n * size),
       *gw = measure_buffer((size_t)nw * 4), *gb = measure_buffer((size_t)C * 4);
  a.x = x, a.w = w, a.y = y, a.gy = gy, a.gx = gx, a.gw = gw, a.gb = gb;
  char what[160];
  snprintf(what, sizeof what,
           "\"op\": \"dwconv%d\", \"shape\": \"%dx%lldx%lldx%lld\", \"dtype\": \"%s\"", kernel_size,
           o->batch, (long long)side, (long long)side, (long long)C, ii_dtype_name(t));
  double act = (double)n * (double)size;
  measure(k, o, what, dwconv_fwd, dwconv_bwd, &a, 2 * act, 5 * act);
  free(x), free(gy), free(w), free(y), free(gx), free(gw), free(gb);
}

/* The four stages of the T models; D = 16 channels per group. */
static void run(ii_kctx *k, const options *o) {
  static const ii_dtype types[] = {II_F32, II_BF16};
  for (int t = 0; t < 2; t++)
    for (int i = 0; i < 4; i++) {
      int64_t side = 56 >> i, C = 64 << i, G = 4 << i;
      if (!o->only || !strcmp(o->only, "dcnv3")) bench_dcn(k, o, false, types[t], side, C, G);
      if (!o->only || !strcmp(o->only, "dcnv4")) bench_dcn(k, o, true, types[t], side, C, G);
      if (!o->only || !strcmp(o->only, "dwconv"))
        for (int size = 3; size <= 5; size += 2) bench_dwconv(k, o, size, types[t], side, C);
    }
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  options o = {.threads = 0, .repeat = 20, .batch = 8};
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) fail("an option lacks its value");
    if (!strcmp(argv[i], "--threads"))
      o.threads = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--repeat"))
      o.repeat = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--batch"))
      o.batch = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--only"))
      o.only = argv[i + 1];
    else
      fail("options: --threads N --repeat R --batch B --only dcnv3|dcnv4|dwconv");
  }
  if (o.repeat < 1 || o.batch < 1 || o.threads < 0) fail("--repeat and --batch start at 1");
  ii_kctx k;
  if (ii_engine_open(&k, &(ii_engine_options){.threads = o.threads})) fail(k.error);
  run(&k, &o);
  ii_engine_close(&k);
  return 0;
}
