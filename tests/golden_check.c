/* golden_check [options] FILE...: see usage() and golden_check.h. Files are told apart by what is
 * in them, never by their names, and a group of no known kind is an error: nothing goes unchecked.
 */
#include "tests/golden_check.h"
#include "train/process.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>

static const char usage_text[] =
    "usage: golden_check [--device cpu|cuda|cuda:N] [--dtype f32|f64|both] [--verbose] FILE...\n"
    "\n"
    "Compares this program with reference data computed by the official code, in the format of\n"
    "the project's reference files: HDF5 files of operator, module, network, stochastic-depth,\n"
    "full-size and training cases, and JSON files (also gzipped) of parameter groups and rates.\n"
    "One line per case: the error that comes closest to its bound, and the tensor it is in.\n"
    "Both number types are checked unless --dtype says otherwise; full-size networks in f32 only.\n"
    "Exit code: 0 all agree, 1 something disagrees, 2 a file or an option cannot be used,\n"
    "77 there is no such device here.\n";

void gc_die(const gc *g, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fflush(stdout);
  fprintf(stderr, "golden_check: ");
  if (g->file) fprintf(stderr, "%s: ", g->file);
  if (g->where[0]) fprintf(stderr, "%s: ", g->where);
  vfprintf(stderr, fmt, ap);
  fprintf(stderr, "\n");
  va_end(ap);
  exit(2);
}

void *gc_alloc(gc *g, size_t count, size_t size) {
  if (g->blocks == g->block_capacity) {
    g->block_capacity = g->block_capacity ? 2 * g->block_capacity : 256;
    g->memory = realloc(g->memory, (size_t)g->block_capacity * sizeof *g->memory);
    if (!g->memory) gc_die(g, "out of memory");
  }
  void *p = calloc(count ? count : 1, size);
  if (!p) gc_die(g, "out of memory for %zu bytes", count * size);
  return g->memory[g->blocks++] = p;
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void gc_case_begin(gc *g, const char *kind, const char *name, ii_dtype dtype) {
  g->kind = kind;
  g->dtype = dtype;
  snprintf(g->where, sizeof g->where, "%s", name);
  g->here = (gc_worst){0};
  g->compared = 0;
}

/* How far a comparison is on its way to its bound; exact ones are at 0 or beyond all bounds. */
static double strain(const gc_worst *w) {
  if (w->bound > 0) return w->err / w->bound;
  return w->err > 0 ? INFINITY : 0;
}

void gc_compare(gc *g, const char *tensor, double err, double bound) {
  gc_worst now = {.err = isnan(err) ? INFINITY : err, .bound = bound};
  snprintf(now.tensor, sizeof now.tensor, "%s", tensor);
  if (g->verbose || !(now.err <= bound))
    printf("  %s %-50s %9.2e  bound %.0e\n", now.err <= bound ? "    " : "BAD ", tensor, now.err,
           bound);
  if (!g->compared++ || strain(&now) > strain(&g->here)) g->here = now;
}

void gc_expect(gc *g, bool holds, const char *fmt, ...) {
  char text[GC_NAME];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  gc_compare(g, text, holds ? 0 : INFINITY, 0);
}

void gc_case_end(gc *g) {
  const char *type = g->dtype == II_DTYPE_COUNT ? "-" : ii_dtype_name(g->dtype);
  bool pass = g->compared > 0 && g->here.err <= g->here.bound;
  if (!g->compared)
    snprintf(g->here.tensor, sizeof g->here.tensor, "nothing to compare");
  else if (g->here.err == 0)
    snprintf(g->here.tensor, sizeof g->here.tensor, "(all of %lld exactly equal)",
             (long long)g->compared);
  printf("%s %-12s %-36s %-3s worst %8.1e of %7.1e  %s\n", pass ? "ok  " : "FAIL", g->kind,
         g->where, type, g->here.err, g->here.bound, g->here.tensor);
  fflush(stdout);
  if (!g->cases || strain(&g->here) > strain(&g->overall) || (!pass && !g->failed)) {
    g->overall = g->here;
    snprintf(g->overall_case, sizeof g->overall_case, "%s: %s (%s)", g->file, g->where, type);
  }
  g->cases++;
  g->failed += !pass;
  for (int64_t i = 0; i < g->blocks; i++) free(g->memory[i]);
  g->blocks = 0;
  g->where[0] = 0;
}

double gc_max_diff(const double *a, const double *b, int64_t n) {
  double m = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = fabs(a[i] - b[i]);
    if (!(d <= m)) m = isfinite(d) ? d : INFINITY;
  }
  return m;
}

double gc_max_abs(const double *a, int64_t n) {
  double m = 0;
  for (int64_t i = 0; i < n; i++) m = fmax(m, fabs(a[i]));
  return m;
}

typedef struct {
  const char *kind, *has, *attr; /* words that must all be in the group, and an attribute */
  void (*check)(gc *g, hid_t group, const char *name);
  bool f64_on_request; /* double only when asked for: it takes minutes */
} gc_kind;

static const gc_kind kinds[] = {
    {"DCNv3 op", "input offset mask output grad_offset grad_mask", "offset_scale",
     gc_check_dcnv3_op, false},
    {"DCNv4 op", "input offset_mask output grad_offset_mask", "offset_scale", gc_check_dcnv4_op,
     false},
    {"module", "input params output grad_output grads", "official_class", gc_check_module, false},
    {"drop path", "input params keep_masks logits grads", "drop_path_rate", gc_check_drop_path,
     false},
    {"full size", "param_spec grad_rows grad_sketch logits", "input_seed", gc_check_full_size,
     true},
    {"training", "params final_minus_init images loss lr", "num_steps", gc_check_training, false},
    {"network", "input params soft_targets logits grads", "official_class", gc_check_backbone,
     false},
};

static bool has_all(hid_t group, const char *words) {
  char copy[GC_NAME], *rest = copy;
  snprintf(copy, sizeof copy, "%s", words);
  for (char *w; (w = strtok_r(rest, " ", &rest));)
    if (!gc_has(group, w)) return false;
  return true;
}

static void check_group(gc *g, hid_t file, const char *name) {
  gc_case_begin(g, "", name, II_F32);
  hid_t group = gc_open_group(g, file, name);
  const gc_kind *kind = NULL;
  for (size_t i = 0; !kind && i < sizeof kinds / sizeof *kinds; i++)
    if (has_all(group, kinds[i].has) && gc_has_attr(group, kinds[i].attr)) kind = &kinds[i];
  if (!kind) gc_die(g, "this group is of no kind that golden_check knows, so it cannot be checked");
  for (int pass = 0; pass < 2; pass++) {
    if (pass ? !g->f64 : !g->f32) continue;
    if (pass && kind->f64_on_request && !g->dtype_given) continue;
    gc_case_begin(g, kind->kind, name, pass ? II_F64 : II_F32);
    kind->check(g, group, name);
    gc_case_end(g);
  }
  H5Gclose(group);
}

static void check_hdf5(gc *g) {
  hid_t file = gc_open_file(g);
  int64_t count;
  char **names = gc_names(g, file, &count), **own = malloc((size_t)(count + 1) * sizeof *own);
  if (!own) gc_die(g, "out of memory");
  for (int64_t i = 0; i < count; i++) own[i] = strdup(names[i]); /* a case frees gc_alloc */
  if (!count) gc_die(g, "the file has no cases");
  for (int64_t i = 0; i < count; i++) {
    check_group(g, file, own[i]);
    free(own[i]);
  }
  free(own);
  H5Fclose(file);
}

/* The whole file, decompressed if it is gzipped; malloced. */
static char *read_all(gc *g, size_t *size) {
  gzFile f = gzopen(g->file, "rb");
  if (!f) gc_die(g, "the file cannot be opened");
  char *text = NULL;
  size_t capacity = 0, n = 0;
  for (;;) {
    if (n == capacity) {
      capacity = capacity ? 2 * capacity : 1 << 20;
      text = realloc(text, capacity);
      if (!text) gc_die(g, "out of memory");
    }
    int got = gzread(f, text + n, (unsigned)(capacity - n));
    if (got < 0) gc_die(g, "the file is damaged: its compressed data cannot be read");
    if (got == 0) break;
    n += (size_t)got;
  }
  if (gzclose_r(f) != Z_OK) gc_die(g, "the file is cut off");
  *size = n;
  return text;
}

static void check_json(gc *g) {
  size_t size;
  char *text = read_all(g, &size);
  json_error_t e;
  json_t *root = json_loadb(text, size, 0, &e);
  free(text);
  if (!root) gc_die(g, "neither HDF5 nor JSON: line %d: %s", e.line, e.text);
  const json_t *configs = json_object_get(root, "configs");
  const json_t *schedules = json_object_get(root, "schedules");
  if (json_is_array(configs) && json_array_size(configs))
    gc_check_param_groups(g, configs);
  else if (json_is_array(schedules) && json_array_size(schedules))
    gc_check_schedules(g, schedules);
  else
    gc_die(g, "JSON of no kind that golden_check knows (no list `configs` or `schedules`)");
  json_decref(root);
}

static void check_file(gc *g, const char *path) {
  static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  unsigned char first[8] = {0};
  g->file = path;
  FILE *f = fopen(path, "rb");
  if (!f) gc_die(g, "the file cannot be opened");
  size_t n = fread(first, 1, sizeof first, f);
  fclose(f);
  if (!n) gc_die(g, "the file is empty or cannot be read");
  double t0 = seconds();
  int64_t before = g->cases;
  if (n == 8 && memcmp(first, signature, 8) == 0)
    check_hdf5(g);
  else
    check_json(g);
  printf("     %s: %lld cases in %.1f s\n", path, (long long)(g->cases - before), seconds() - t0);
}

static int parse_options(gc *g, int argc, char **argv) {
  int i = 1;
  for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    ii_error err = {0};
    if (strcmp(argv[i], "--help") == 0) {
      fputs(usage_text, stdout);
      exit(0);
    } else if (strcmp(argv[i], "--verbose") == 0) {
      g->verbose = true;
    } else if (strcmp(argv[i], "--device") == 0) {
      if (ii_device_parse(value, &g->device, &g->device_index, &err) != II_OK)
        gc_die(g, "--device: %s", err.text);
      i++;
    } else if (strcmp(argv[i], "--dtype") == 0) {
      g->dtype_given = true;
      g->f32 = strcmp(value, "f64") != 0;
      g->f64 = strcmp(value, "f32") != 0;
      if (g->f32 && g->f64 && strcmp(value, "both") != 0)
        gc_die(g, "--dtype must be f32, f64 or both, not \"%s\"", value);
      i++;
    } else {
      gc_die(g, "unknown option %s; --help lists them", argv[i]);
    }
  }
  if (i >= argc) gc_die(g, "no file given; --help says how");
  return i;
}

/* Says on what the numbers were computed when it is not the processor. */
static void announce_device(const gc *g) {
  ii_kctx k;
  if (g->device == II_CPU) return;
  const ii_engine_options o = {.device = g->device, .index = g->device_index};
  if (ii_engine_open(&k, &o)) {
    fprintf(stderr, "golden_check: %s\n", k.error);
    exit(77);
  }
  ii_engine_close(&k);
  printf("device: %s\n", ii_cuda_engine_name());
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  gc g = {.device = II_CPU, .f32 = true, .f64 = true};
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  int i = parse_options(&g, argc, argv);
  announce_device(&g);
  for (; i < argc; i++) check_file(&g, argv[i]);
  free(g.memory);
  printf("%lld cases, %lld failed; closest to its bound: %s %s, %.2e of %.1e\n", (long long)g.cases,
         (long long)g.failed, g.overall_case, g.overall.tensor, g.overall.err, g.overall.bound);
  return g.failed ? 1 : 0;
}
