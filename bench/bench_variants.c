/* Checks and times the development variants of the deformable convolution (bench/variants) beside
 * the product's kernels: what a change was worth, said by a GPU.
 *
 * Options: `help` below. JSON lines. First every variant is checked on small problems, one line per
 * part and type: "checked" (its name), "calls" it had a kernel for, "error", the greatest
 * difference to the CPU engine in double precision on the same rounded inputs, over the greatest
 * value of a result; "allowed" are the bounds of `train --doctor`, and 4 times the error of the
 * variant's own weights (variants.h). Then times, not on an emulated device, where they mean
 * nothing: "variant", part, op, shape, dtype, milliseconds between two events with cold caches
 * (median, minimum, 90th percentile), "over_product", the median over that of the product's kernel
 * for the same call, "GB_s" of the bytes that must move at least, and "pct_copy", the same as a
 * share of a copy's bandwidth.
 *
 * Exit status: 0, 1 when an error is larger than allowed, a variant had no kernel for any call of a
 * type that it takes, or something failed; 77 without a GPU. */
#include <math.h>
#include "autograd/ctx.h"
#include "bench/dcn_problem.h"
#include "bench/variants/variants.h"
#include "train/process.h"

static const char help[] =
    "bench_variants: development variants of the deformable convolution beside the product\n"
    "  --list              the variants\n"
    "  --check             compare with the CPU engine, without times\n"
    "  --only VARIANT      (may be repeated; the product is always timed)\n"
    "  --part forward | gx | dots | backward      (may be repeated)\n"
    "  --op dcnv3 | dcnv4                         (may be repeated)\n"
    "  --dtype f32 | bf16 | f16                   (may be repeated)\n"
    "  --set paper | tiny | small | base | large | all   (paper)\n"
    "  --shape N           that one of each set alone\n"
    "  --batch B           images where the set leaves it open (64)\n"
    "  --repeat R          measurements of each (15)\n"
    "  --flush MIB         of other data before each (512)\n"
    "  --device cuda[:N]\n";

enum { PARTS = 4, MOST_VARIANTS = 64 };
static const struct {
  const char *name;
  unsigned what;
} parts[PARTS] = {{"forward", VARIANT_FORWARD},
                  {"gx", VARIANT_GX},
                  {"dots", VARIANT_DOTS},
                  {"backward", VARIANT_BACKWARD}};
static const dcn_layout layouts[] = {DCN_V3, DCN_V4}; /* --op */
static const ii_dtype known_types[] = {II_F32, II_BF16, II_F16};

typedef struct {
  ii_engine_options engine;
  int repeat, batch, flush_mib, shape;
  const char *set;
  bool list, check, only[MOST_VARIANTS], part[PARTS], op[2], dtype[II_DTYPE_COUNT];
  measure_device on;
  double copy_gb_s;
} options;

static void fail(const char *why) {
  fprintf(stderr, "bench_variants: %s\n", why);
  exit(1);
}

/* ---- One call ---------------------------------------------------------------------------------*/

static ii_dcn_args call_of(const dcn_problem *p, unsigned what) {
  ii_dcn_args a = p->args;
  if (!(what & VARIANT_GX)) a.gx = NULL;
  if (!(what & VARIANT_DOTS)) a.goffset = a.gmask = NULL;
  return a;
}

static bool runs(const dcn_variant *v, const ii_dcn_args *a, unsigned what) {
  return (v->parts & what) == what && v->has(a);
}

static void call(ii_kctx *k, const dcn_variant *v, const ii_dcn_args *a, unsigned what) {
  measure_must(k, what == VARIANT_FORWARD ? v->forward(k, a) : v->backward(k, a));
}

/* ---- Checks -----------------------------------------------------------------------------------*/

/* Groups of 16, 32 and 64; maps that fill no tile. */
static const dcn_shape check_shapes[] = {
    {"check", 2, 20, 13, 64, 4}, {"check", 1, 10, 19, 64, 2}, {"check", 2, 9, 9, 128, 2}};
enum { CHECK_SHAPES = sizeof check_shapes / sizeof *check_shapes };

static double *read_numbers(ii_kctx *k, const void *p, ii_dtype t, int64_t n) {
  const size_t size = ii_dtype_size(t);
  double *v = measure_buffer((size_t)n * sizeof *v);
  char *raw = measure_buffer((size_t)n * size);
  measure_must(k, ii_device_read(k, raw, p, (size_t)n * size));
  for (int64_t i = 0; i < n; i++) {
    const void *at = raw + (size_t)i * size;
    uint16_t half;
    memcpy(&half, at, sizeof half);
    v[i] = t == II_F64   ? *(const double *)at
           : t == II_F32 ? *(const float *)at
           : t == II_F16 ? ii_f16_to_f32(half)
                         : ii_bf16_to_f32(half);
  }
  free(raw);
  return v;
}

/* The same problem for the CPU in double precision, solved. */
static dcn_problem solve(ii_kctx *cpu, ii_kctx *gpu, const dcn_problem *p, dcn_layout layout,
                         const dcn_shape *s) {
  dcn_problem d = dcn_open(cpu, layout, II_F64, s, 1, 0.5);
  const int64_t n[3] = {p->values, p->rows * p->args.C, p->rows * p->P};
  void *const from[3] = {p->x, p->gy, p->taps}, *const to[3] = {d.x, d.gy, d.taps};
  for (int i = 0; i < 3; i++) {
    double *v = read_numbers(gpu, from[i], p->type, n[i]);
    memcpy(to[i], v, (size_t)n[i] * sizeof *v);
    free(v);
  }
  d.args.real = II_F64;
  measure_must(cpu, ii_cpu_dcn_fwd(cpu, &d.args));
  measure_must(cpu, ii_cpu_dcn_bwd(cpu, &d.args));
  return d;
}

/* The greatest difference and the greatest value of a result; NaN is an infinite difference. */
typedef struct {
  double most, difference;
} deviation;

static void deviate(deviation *d, double got, double want) {
  const double off = fabs(got - want);
  d->most = fmax(d->most, fabs(want));
  if (!(off <= d->difference)) d->difference = isnan(off) ? INFINITY : off;
}

static double error_of(const deviation *d) {
  return d->difference / (d->most > 0 ? d->most : 1);
}

static double dense_error(ii_kctx *k, const void *got, ii_dtype t, const double *want, int64_t n) {
  deviation d = {0};
  double *v = read_numbers(k, got, t, n);
  for (int64_t i = 0; i < n; i++) deviate(&d, v[i], want[i]);
  free(v);
  return error_of(&d);
}

/* Of goffset and gmask, the larger. */
static double taps_error(ii_kctx *k, const dcn_problem *p, const dcn_problem *want) {
  const ii_dcn_args *a = &p->args;
  const int64_t K = 9, size = (int64_t)ii_dtype_size(p->type);
  const int64_t offset = ((char *)a->goffset - (char *)p->gtaps) / size;
  const int64_t mask = ((char *)a->gmask - (char *)p->gtaps) / size;
  deviation d[2] = {{0}};
  double *v = read_numbers(k, p->gtaps, p->type, p->rows * p->P);
  const double *w = want->gtaps;
  for (int64_t row = 0; row < p->rows; row++)
    for (int64_t g = 0; g < a->G; g++)
      for (int64_t i = 0; i < 3 * K; i++) {
        const int64_t at = i < 2 * K ? offset + row * a->offset_row + g * a->offset_group + i
                                     : mask + row * a->mask_row + g * a->mask_group + i - 2 * K;
        deviate(&d[i >= 2 * K], v[at], w[at]);
      }
  free(v);
  return fmax(error_of(&d[0]), error_of(&d[1]));
}

/* Fills results with what is NaN in every type, so that what is not written shows. */
static void forget(ii_kctx *k, const dcn_problem *p) {
  const size_t size = ii_dtype_size(p->type);
  void *const to[3] = {p->y, p->gx, p->gtaps};
  const int64_t n[3] = {p->rows * p->args.C, p->values, p->rows * p->P};
  for (int i = 0; i < 3; i++) {
    char *nan = measure_buffer((size_t)n[i] * size);
    memset(nan, 0xff, (size_t)n[i] * size);
    measure_must(k, ii_device_write(k, to[i], nan, (size_t)n[i] * size));
    free(nan);
  }
}

static double allowed_error(const dcn_variant *v, ii_dtype t) {
  if (t == II_F32) return 5e-6;
  return t == II_F16 ? 8e-4 + 4 * v->f16_weights : 6e-3 + 4 * v->bf16_weights;
}

/* What the checks of a variant and part came to. */
typedef struct {
  int calls; /* that the variant has a kernel for */
  double error;
} verdict;

static void check_part(ii_kctx *gpu, const dcn_variant *v, int part, const dcn_problem *p,
                       const dcn_problem *want, verdict *r) {
  const unsigned what = parts[part].what;
  const ii_dcn_args a = call_of(p, what);
  if (!runs(v, &a, what)) return;
  forget(gpu, p);
  call(gpu, v, &a, what);
  r->calls++;
  if (what & VARIANT_FORWARD)
    r->error = fmax(r->error, dense_error(gpu, p->y, p->type, want->y, p->rows * p->args.C));
  if (what & VARIANT_GX)
    r->error = fmax(r->error, dense_error(gpu, p->gx, p->type, want->gx, p->values));
  if (what & VARIANT_DOTS) r->error = fmax(r->error, taps_error(gpu, p, want));
}

/* Whether it must have had a kernel for some call: all take 16 bits, not all f32. */
static bool takes(const dcn_variant *v, ii_dtype t) {
  return t != II_F32 || v == &dcn_variants[0] || strstr(v->takes, "f32");
}

/* One line for each variant and part; returns how many are not as good as they must be, or were not
 * called at all. */
static int report(const options *o, ii_dtype t, verdict r[MOST_VARIANTS][PARTS]) {
  int failures = 0;
  for (int i = 0; i < dcn_variant_count; i++)
    for (int part = 0; part < PARTS; part++) {
      const dcn_variant *v = &dcn_variants[i];
      if (!o->only[i] || !o->part[part] || (v->parts & parts[part].what) != parts[part].what)
        continue;
      const double error = r[i][part].error, allowed = allowed_error(v, t);
      if (!takes(v, t)) continue;
      const bool passed = r[i][part].calls > 0 && error <= allowed;
      printf("{\"checked\": \"%s\", \"part\": \"%s\", \"dtype\": \"%s\", \"device\": \"%s\", "
             "\"calls\": %d, \"error\": %.2e, \"allowed\": %.2e, \"passed\": %s}\n",
             v->name, parts[part].name, ii_dtype_name(t), o->on.name, r[i][part].calls,
             fmin(error, 1e30), allowed, passed ? "true" : "false");
      failures += !passed;
    }
  return failures;
}

/* All variants on all small problems of a type. */
static int check_type(ii_kctx *cpu, ii_kctx *gpu, const options *o, ii_dtype t) {
  verdict r[MOST_VARIANTS][PARTS] = {{{0}}};
  for (int i = 0; i < 2 * CHECK_SHAPES; i++) {
    const dcn_shape *s = &check_shapes[i / 2];
    if (!o->op[i % 2]) continue;
    dcn_problem p = dcn_open(gpu, layouts[i % 2], t, s, 1, 0.5);
    dcn_problem want = solve(cpu, gpu, &p, layouts[i % 2], s);
    for (int v = 0; v < dcn_variant_count; v++)
      for (int part = 0; part < PARTS; part++)
        if (o->only[v] && o->part[part])
          check_part(gpu, &dcn_variants[v], part, &p, &want, &r[v][part]);
    dcn_close(cpu, &want);
    dcn_close(gpu, &p);
  }
  return report(o, t, r);
}

static int check(ii_kctx *cpu, ii_kctx *gpu, const options *o) {
  int failures = 0;
  for (int t = 0; t < II_DTYPE_COUNT; t++)
    if (o->dtype[t]) failures += check_type(cpu, gpu, o, (ii_dtype)t);
  return failures;
}

/* ---- Times ------------------------------------------------------------------------------------*/

/* Bytes that must move at least: operands once, results once. */
static double least_bytes(const dcn_problem *p, unsigned what) {
  if (what == VARIANT_BACKWARD) return p->bwd_bytes;
  const double row = (double)(p->rows * (int64_t)ii_dtype_size(p->type));
  const double C = (double)p->args.C, P = (double)p->P;
  return what == VARIANT_DOTS ? row * (2 * C + 2 * P) : row * (2 * C + P);
}

static measure_spread time_of(ii_kctx *k, options *o, const dcn_variant *v, const ii_dcn_args *a,
                              unsigned what) {
  double *t = measure_buffer((size_t)o->repeat * sizeof *t);
  for (int i = -2; i < o->repeat; i++) { /* two rounds to warm up */
    measure_start(&o->on);
    call(k, v, a, what);
    const double seconds = measure_stop(&o->on);
    if (i >= 0) t[i] = 1e3 * seconds;
  }
  const measure_spread s = measure_summarise(t, o->repeat);
  free(t);
  return s;
}

static void time_part(ii_kctx *k, options *o, const dcn_problem *p, int part) {
  const unsigned what = parts[part].what;
  const ii_dcn_args a = call_of(p, what);
  const double bytes = least_bytes(p, what);
  double product = 0;
  for (int i = 0; i < dcn_variant_count; i++) {
    const dcn_variant *v = &dcn_variants[i];
    if ((i > 0 && !o->only[i]) || !runs(v, &a, what)) continue;
    const measure_spread s = time_of(k, o, v, &a, what);
    if (i == 0) product = s.median;
    printf("{\"variant\": \"%s\", \"part\": \"%s\", %s, \"device\": \"%s\", \"ms\": %.4f, "
           "\"min_ms\": %.4f, \"p90_ms\": %.4f, \"over_product\": %.3f, \"MB\": %.1f, "
           "\"GB_s\": %.1f, \"pct_copy\": %.1f}\n",
           v->name, parts[part].name, p->what, o->on.name, s.median, s.min, s.p90,
           s.median / product, 1e-6 * bytes, 1e-6 * bytes / s.median,
           1e-4 * bytes / s.median / o->copy_gb_s);
    fflush(stdout);
  }
}

static void times(ii_kctx *k, options *o) {
  const char *set = "";
  int number = 0;
  o->copy_gb_s = measure_copy_rate(&o->on);
  printf("{\"limit\": \"copy\", \"device\": \"%s\", \"GB_s\": %.2f}\n", o->on.name, o->copy_gb_s);
  for (int i = 0; i < DCN_SHAPES; i++) {
    const dcn_shape *s = &dcn_shapes[i];
    number = strcmp(set, s->set) ? 0 : number + 1;
    set = s->set;
    if (strcmp(o->set, set) && strcmp(o->set, "all")) continue;
    if (o->shape >= 0 && number != o->shape) continue;
    for (int t = 0; t < II_DTYPE_COUNT; t++)
      for (int op = 0; op < 2 && o->dtype[t]; op++) {
        if (!o->op[op]) continue;
        dcn_problem p = dcn_open(k, layouts[op], (ii_dtype)t, s, o->batch, 0.5);
        for (int part = 0; part < PARTS; part++)
          if (o->part[part]) time_part(k, o, &p, part);
        dcn_close(k, &p);
      }
  }
}

/* ---- The command line -------------------------------------------------------------------------*/

static void list(void) {
  for (int i = 0; i < dcn_variant_count; i++) {
    const dcn_variant *v = &dcn_variants[i];
    printf("%-14s %s\n%-14s computes", v->name, v->idea, "");
    for (int part = 0; part < PARTS; part++)
      if ((v->parts & parts[part].what) == parts[part].what) printf(" %s", parts[part].name);
    printf("; takes %s; diary: %s%s\n", v->takes, v->diary,
           v->repeats ? "" : "; sums in any order");
  }
}

static bool choose(options *o, const char *option, const char *value) {
  bool known = false;
  for (int i = 0; i < dcn_variant_count && !strcmp(option, "--only"); i++)
    if (!strcmp(value, dcn_variants[i].name)) o->only[i] = known = true;
  for (int i = 0; i < PARTS && !strcmp(option, "--part"); i++)
    if (!strcmp(value, parts[i].name)) o->part[i] = known = true;
  for (int i = 0; i < 2 && !strcmp(option, "--op"); i++)
    if (!strcmp(value, dcn_layout_name(layouts[i]))) o->op[i] = known = true;
  for (int i = 0; i < 3 && !strcmp(option, "--dtype"); i++)
    if (!strcmp(value, ii_dtype_name(known_types[i]))) o->dtype[known_types[i]] = known = true;
  for (int i = 0; i < DCN_SHAPES && !strcmp(option, "--set"); i++)
    if (!strcmp(value, dcn_shapes[i].set) || !strcmp(value, "all")) known = true;
  if (known && !strcmp(option, "--set")) o->set = value;
  return known;
}

static bool number(options *o, const char *option, const char *value) {
  static const char *const names[] = {"--repeat", "--batch", "--flush", "--shape"};
  int *const to[] = {&o->repeat, &o->batch, &o->flush_mib, &o->shape};
  const int least[] = {1, 1, 0, 0};
  for (int i = 0; i < 4; i++) {
    if (strcmp(option, names[i])) continue;
    char *end;
    const long n = strtol(value, &end, 10);
    *to[i] = (int)n;
    return *value && !*end && n >= least[i] && n <= 1 << 20;
  }
  return false;
}

/* What is not chosen is meant: every variant, part, op and type. */
static void complete(options *o) {
  bool only = false, part = false, type = false;
  for (int i = 0; i < dcn_variant_count; i++) only |= o->only[i];
  for (int i = 0; i < PARTS; i++) part |= o->part[i];
  for (int i = 0; i < II_DTYPE_COUNT; i++) type |= o->dtype[i];
  for (int i = 0; i < dcn_variant_count && !only; i++) o->only[i] = true;
  for (int i = 0; i < PARTS && !part; i++) o->part[i] = true;
  for (int i = 0; i < 3 && !type; i++) o->dtype[known_types[i]] = true;
  if (!o->op[0] && !o->op[1]) o->op[0] = o->op[1] = true;
}

static void parse(options *o, int argc, char **argv) {
  *o = (options){.engine = {.device = II_CUDA},
                 .repeat = 15,
                 .batch = 64,
                 .flush_mib = 512,
                 .shape = -1,
                 .set = "paper"};
  for (int i = 1; i < argc; i++) {
    ii_error err = {0};
    char why[128];
    if (!strcmp(argv[i], "--help")) fputs(help, stdout), exit(0);
    if (!strcmp(argv[i], "--list") || !strcmp(argv[i], "--check")) {
      *(argv[i][2] == 'l' ? &o->list : &o->check) = true;
      continue;
    }
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    snprintf(why, sizeof why, "%.40s %.40s is no option; see --help", argv[i], value);
    if (!strcmp(argv[i], "--device")) {
      if (ii_device_parse(value, &o->engine.device, &o->engine.index, &err) != II_OK)
        fail(err.text);
      if (o->engine.device != II_CUDA) fail("the variants are kernels for --device cuda[:N]");
    } else if (!choose(o, argv[i], value) && !number(o, argv[i], value)) {
      fail(why);
    }
    i++;
  }
  complete(o);
}

static int run(options *o) {
  ii_kctx cpu, gpu;
  const ii_engine_options host = {.device = II_CPU};
  measure_must(&cpu, ii_engine_open(&cpu, &host));
  measure_must(&gpu, ii_engine_open(&gpu, &o->engine));
  o->on = measure_device_open(&gpu, o->engine.index, 0);
  const bool emulated = measure_emulated(&o->on);
  const int failures = check(&cpu, &gpu, o);
  measure_device_close(&o->on);
  if (emulated && !o->check)
    fprintf(stderr, "bench_variants: an emulated device: checked, not timed\n");
  if (!emulated && !o->check) {
    o->on = measure_device_open(&gpu, o->engine.index, o->flush_mib);
    times(&gpu, o);
    measure_device_close(&o->on);
  }
  ii_engine_close(&gpu);
  ii_engine_close(&cpu);
  if (failures)
    fprintf(
        stderr,
        "bench_variants: %d checks failed (\"passed\": false): an error is larger than allowed, "
        "or \"calls\" is 0\n",
        failures);
  return failures > 0;
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  options o;
  parse(&o, argc, argv);
  if (o.list) return list(), 0;
  if (ii_cuda_device_count() == 0) return fprintf(stderr, "bench_variants: no GPU here\n"), 77;
  return run(&o);
}
