/* Times the deformable convolution and the depthwise convolution on the published shapes.
 *
 *   bench_dcn [--device cpu|cuda[:N]] [--threads N] [--repeat R] [--batch B] [--flush MIB]
 *             [--set tiny|small|base|large|paper|all] [--shape N] [--dtype f32|bf16|f16]...
 *             [--only dcnv3|dcnv4|dcnv4_joint|dwconv]... [--softmax 1]
 *
 * One JSON object per line: op, shape, dtype, device; forward, backward and forward+backward in
 * milliseconds (median, minimum and the 90th percentile over R repetitions; on a GPU between two
 * events), and the bytes that must move at least. On a GPU the first lines give the bandwidth of a
 * copy, measured, and of the first-level caches, computed (128 bytes per cycle and multiprocessor
 * at the highest clock); the results then say how much of both they reach: *_pct_copy of the bytes
 * that must move, *_pct_l1 of the 36 corners per output channel that both directions read.
 *
 * Sets: dcn_problem.h; --batch for shapes without a number of images. --shape N: that one of its
 * set alone. Caches are warm on the CPU and filled with --flush MiB (512) of other data on a GPU.
 * --softmax 0: DCNv3's modulations come as they are. Offsets are normal with a standard deviation
 * of half a pixel, as in trained models. */
#include "autograd/ctx.h"
#include "bench/dcn_problem.h"
#include "train/process.h"

enum { DWCONV = 3, OPS }; /* after the layouts */

typedef struct {
  ii_engine_options engine;
  int repeat, batch, flush_mib, shape;
  const char *set;
  bool only[OPS], dtype[II_DTYPE_COUNT], softmax;
  measure_device on;
  double copy_gb_s; /* 0: not measured */
} options;

static void fail(const char *why) {
  fprintf(stderr, "bench_dcn: %s\n", why);
  exit(1);
}

typedef int (*kernel)(ii_kctx *k, const void *a);

/* What is timed: a call, or two. */
typedef struct {
  const char *name;
  kernel first, second; /* NULL: nothing */
  double bytes, gathered;
} direction;

static void print_times(const options *o, const direction *d, measure_spread t) {
  printf(", \"%s_ms\": %.4f, \"%s_min_ms\": %.4f, \"%s_p90_ms\": %.4f, \"%s_MB\": %.1f", d->name,
         t.median, d->name, t.min, d->name, t.p90, d->name, d->bytes * 1e-6);
  if (o->copy_gb_s > 0)
    printf(", \"%s_pct_copy\": %.1f", d->name, 1e-4 * d->bytes / t.median / o->copy_gb_s);
  if (o->copy_gb_s > 0 && o->on.l1_gb_s > 0 && d->gathered > 0)
    printf(", \"%s_pct_l1\": %.1f", d->name, 1e-4 * d->gathered / t.median / o->on.l1_gb_s);
}

/* Repeats each direction and prints one line. */
static void measure(ii_kctx *k, options *o, const char *what, const direction *d,
                    const void *args) {
  double *t = measure_buffer((size_t)o->repeat * sizeof *t);
  printf("{%s, \"device\": \"%s\", \"threads\": %d", what, o->on.name, k->threads);
  for (int n = 0; n < 3; n++) {
    for (int i = -2; i < o->repeat; i++) { /* two rounds to warm up */
      measure_start(&o->on);
      if (d[n].first(k, args) || (d[n].second && d[n].second(k, args))) fail(k->error);
      const double seconds = measure_stop(&o->on);
      if (i >= 0) t[i] = 1e3 * seconds;
    }
    print_times(o, &d[n], measure_summarise(t, o->repeat));
  }
  printf("}\n");
  fflush(stdout);
  free(t);
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

static void bench_dcn(ii_kctx *k, options *o, dcn_layout layout, ii_dtype t, const dcn_shape *s) {
  dcn_problem p = dcn_open(k, layout, t, s, o->batch, 0.5);
  p.args.softmax &= o->softmax;
  const direction d[3] = {{"fwd", dcn_fwd, NULL, p.fwd_bytes, p.gathered},
                          {"bwd", dcn_bwd, NULL, p.bwd_bytes, p.gathered},
                          {"fwd_bwd", dcn_fwd, dcn_bwd, p.fwd_bytes + p.bwd_bytes, 2 * p.gathered}};
  measure(k, o, p.what, d, &p.args);
  dcn_close(k, &p);
}

static void bench_dwconv(ii_kctx *k, options *o, int kernel_size, ii_dtype t, const dcn_shape *s) {
  const int64_t N = s->images ? s->images : o->batch, C = s->C, n = N * s->H * s->W * C;
  const int64_t nw = C * kernel_size * kernel_size;
  const size_t size = ii_dtype_size(t);
  ii_dwconv2d_args a = {
      .real = II_F32, .x_dtype = t, .N = N, .H = s->H, .W = s->W, .C = C, .k = kernel_size};
  void *x = dcn_memory(k, n, t), *gy = dcn_memory(k, n, t), *w = dcn_memory(k, nw, II_F32);
  void *y = dcn_memory(k, n, t), *gx = dcn_memory(k, n, t), *gw = dcn_memory(k, nw, II_F32),
       *gb = dcn_memory(k, C, II_F32);
  measure_fill_normal(k, x, t, n, 1, 1);
  measure_fill_normal(k, gy, t, n, 1, 2);
  measure_fill_normal(k, w, II_F32, nw, 1, 3);
  a.x = x, a.w = w, a.y = y, a.gy = gy, a.gx = gx, a.gw = gw, a.gb = gb;
  char what[192];
  snprintf(what, sizeof what,
           "\"op\": \"dwconv%d\", \"set\": \"%s\", \"shape\": \"%lldx%dx%dx%d\", \"dtype\": \"%s\"",
           kernel_size, s->set, (long long)N, s->H, s->W, s->C, ii_dtype_name(t));
  const double act = (double)n * (double)size;
  const direction d[3] = {{"fwd", dwconv_fwd, NULL, 2 * act, 0},
                          {"bwd", dwconv_bwd, NULL, 3 * act, 0},
                          {"fwd_bwd", dwconv_fwd, dwconv_bwd, 5 * act, 0}};
  measure(k, o, what, d, &a);
  void *const all[] = {x, gy, y, gx};
  for (int i = 0; i < 4; i++) ii_device_free(k, all[i], (size_t)n * size);
  ii_device_free(k, w, (size_t)nw * 4), ii_device_free(k, gw, (size_t)nw * 4);
  ii_device_free(k, gb, (size_t)C * 4);
}

static void limits(options *o) {
  if (o->engine.device != II_CUDA || measure_emulated(&o->on)) return;
  o->copy_gb_s = measure_copy_rate(&o->on);
  printf("{\"limit\": \"copy\", \"device\": \"%s\", \"GB_s\": %.2f}\n", o->on.name, o->copy_gb_s);
  if (o->on.l1_gb_s > 0)
    printf("{\"limit\": \"l1\", \"device\": \"%s\", \"GB_s\": %.2f}\n", o->on.name, o->on.l1_gb_s);
}

static void run(ii_kctx *k, options *o) {
  const char *set = "";
  int number = 0;
  for (int i = 0; i < DCN_SHAPES; i++) {
    const dcn_shape *s = &dcn_shapes[i];
    number = strcmp(set, s->set) ? 0 : number + 1;
    set = s->set;
    if (strcmp(o->set, set) && strcmp(o->set, "all")) continue;
    if (o->shape >= 0 && number != o->shape) continue;
    for (int t = 0; t < II_DTYPE_COUNT; t++) {
      if (!o->dtype[t]) continue;
      for (int l = 0; l < DWCONV; l++)
        if (o->only[l]) bench_dcn(k, o, (dcn_layout)l, (ii_dtype)t, s);
      for (int size = 3; size <= 5 && o->only[DWCONV]; size += 2)
        bench_dwconv(k, o, size, (ii_dtype)t, s);
    }
  }
}

/* ---- the command line ---- */

static bool choose(options *o, const char *option, const char *value) {
  static const ii_dtype types[] = {II_F32, II_BF16, II_F16};
  bool known = !strcmp(option, "--set") && !strcmp(value, "all");
  for (int l = 0; l < DWCONV && !strcmp(option, "--only"); l++)
    if (!strcmp(value, dcn_layout_name((dcn_layout)l))) o->only[l] = known = true;
  if (!strcmp(option, "--only") && !strcmp(value, "dwconv")) o->only[DWCONV] = known = true;
  for (int t = 0; t < 3 && !strcmp(option, "--dtype"); t++)
    if (!strcmp(value, ii_dtype_name(types[t]))) o->dtype[types[t]] = known = true;
  for (int i = 0; i < DCN_SHAPES && !strcmp(option, "--set"); i++)
    if (!strcmp(value, dcn_shapes[i].set)) known = true;
  if (known && !strcmp(option, "--set")) o->set = value;
  return known;
}

static void number(options *o, const char *option, const char *value) {
  int n = atoi(value);
  if (!strcmp(option, "--threads"))
    o->engine.threads = n;
  else if (!strcmp(option, "--repeat"))
    o->repeat = n;
  else if (!strcmp(option, "--batch"))
    o->batch = n;
  else if (!strcmp(option, "--shape"))
    o->shape = n;
  else if (!strcmp(option, "--flush"))
    o->flush_mib = n;
  else if (!strcmp(option, "--softmax"))
    o->softmax = n != 0;
  else
    fail("unknown option or value; see the head of bench_dcn.c");
}

/* What is not chosen: all types the engine has, and DCNv3, DCNv4 and dwconv. */
static void complete(options *o) {
  bool types = false, ops = false;
  for (int t = 0; t < II_DTYPE_COUNT; t++) types |= o->dtype[t];
  for (int i = 0; i < OPS; i++) ops |= o->only[i];
  if (!types) o->dtype[II_F32] = o->dtype[II_BF16] = true;
  if (!types) o->dtype[II_F16] = o->engine.device == II_CUDA;
  if (!ops) o->only[DCN_V3] = o->only[DCN_V4] = o->only[DWCONV] = true;
  if (o->repeat < 1 || o->batch < 1 || o->engine.threads < 0)
    fail("--repeat and --batch start at 1");
  if (o->flush_mib < 0) o->flush_mib = o->engine.device == II_CUDA ? 512 : 0;
}

static void parse(options *o, int argc, char **argv) {
  *o = (options){
      .repeat = 20, .batch = 8, .flush_mib = -1, .shape = -1, .set = "tiny", .softmax = true};
  for (int i = 1; i < argc; i += 2) {
    ii_error err = {0};
    if (i + 1 == argc) fail("an option lacks its value");
    if (!strcmp(argv[i], "--device")) {
      if (ii_device_parse(argv[i + 1], &o->engine.device, &o->engine.index, &err) != II_OK)
        fail(err.text);
    } else if (!choose(o, argv[i], argv[i + 1])) {
      number(o, argv[i], argv[i + 1]);
    }
  }
  complete(o);
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  options o;
  ii_kctx k;
  parse(&o, argc, argv);
  if (ii_engine_open(&k, &o.engine)) fail(k.error);
  o.on = measure_device_open(&k, o.engine.index, o.flush_mib);
  limits(&o);
  run(&k, &o);
  measure_device_close(&o.on);
  ii_engine_close(&k);
  return 0;
}
