/* Real-size models: weights and images come from a formula, and of the results the file keeps
 * sketches ([norm, sum, dot product with a formula vector]) and a few samples per tensor.
 *
 *   value[i] = mean + 2^log2_scale * ((splitmix64(seed + i) >> 48) / 32768 - 1)
 *
 * With millions of sampling positions some are within 1e-8 of an integer, where the gradient of an
 * offset jumps: float flips a few of them, which the documented bounds allow for. Double does not:
 * the closest position of the published cases is 7e-9 away from an integer. */
#include "tests/golden_check.h"
#include "autograd/tape.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOGITS_F32      1e-5
#define LOSS_F32        2e-6
#define GRAD_MEDIAN_F32 3e-4
#define GRAD_WORST_F32  1e-1
#define LOGITS_F64      1e-13
#define LOSS_F64        1e-14
#define GRAD_F64        1e-11
#define GRAD_FLOOR      1e-4 /* as for the tiny networks */
#define STAGE_SAMPLES   256
#define PARAM_SAMPLES   16

static uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

static double formula(uint64_t seed, uint64_t i) {
  return (double)(splitmix64(seed + i) >> 48) / 32768.0 - 1.0;
}

static uint64_t parse_seed(gc *g, const char *text) {
  char *end;
  uint64_t v = text ? strtoull(text, &end, 10) : 0;
  if (!text || !*text || *end) gc_die(g, "a seed is missing or not a number");
  return v;
}

typedef struct {
  hid_t group;
  ii_ctx *c;
  ii_model *model;
  json_t *spec, *rows;
  uint64_t input_seed, sketch_xor;
} full_case;

static json_t *read_list(gc *g, hid_t group, const char *name) {
  json_error_t e;
  json_t *list = json_loads(gc_read_text(g, group, name), 0, &e);
  if (!json_is_array(list)) gc_die(g, "%s is not a JSON list; the file is damaged", name);
  return list;
}

/* Values, and the check that names, order and shapes are those of our model. */
static bool fill_params(gc *g, full_case *f) {
  ii_params *p = ii_model_params(f->model);
  bool good = true;
  int64_t next = 0; /* the file leaves out counters, so only parameters have a place */
  for (int64_t i = 0; good && i < (int64_t)json_array_size(f->spec); i++) {
    json_t *row = json_array_get(f->spec, (size_t)i), *shape = json_array_get(row, 1);
    const char *name = json_string_value(json_array_get(row, 0));
    if (json_array_size(row) != 5 || !name || !json_is_array(shape))
      gc_die(g, "param_spec has a row that is not [name, shape, seed, scale, mean]");
    const ii_param *q = ii_params_find(p, name);
    good = q && q->value->ndim == (int)json_array_size(shape);
    for (size_t k = 0; good && k < json_array_size(shape); k++)
      good = q->value->shape[k] == json_integer_value(json_array_get(shape, k));
    gc_expect(g, good, "%s: name and shape", name);
    if (!good) break;
    if (!q->buffer) {
      while (next < p->count && p->at[next].buffer) next++;
      gc_expect(g, p->at + next == q, "%s: place in the list", name);
      next++;
    }
    uint64_t seed = parse_seed(g, json_string_value(json_array_get(row, 2)));
    double scale = exp2(json_number_value(json_array_get(row, 3)));
    double mean = json_number_value(json_array_get(row, 4));
    int64_t n = ii_numel(q->value);
    double *v = malloc((size_t)n * sizeof *v); /* freed at once: the models are large */
    if (!v) gc_die(g, "out of memory");
    for (int64_t j = 0; j < n; j++) v[j] = mean + scale * formula(seed, (uint64_t)j);
    ii_tensor_write_f64(f->c, q->value, v);
    free(v);
  }
  while (next < p->count && p->at[next].buffer) next++;
  if (good) gc_expect(g, next == p->count, "the file has all parameters of our model");
  ii_params_refresh_low(p);
  return good;
}

/* Error of a sketch and samples of v[n]: differences of norm, sum and dot product relative to the
 * norm, those of the samples to the largest sample, both no less than floor. */
static double sketch_error(const double *v, int64_t n, uint64_t seed, const double *sketch,
                           const double *samples, int64_t ns, double floor) {
  double norm = 0, sum = 0, dot = 0, largest = floor, worst = 0;
  for (int64_t i = 0; i < n; i++) {
    norm += v[i] * v[i];
    sum += v[i];
    dot += v[i] * formula(seed, (uint64_t)i);
  }
  const double got[3] = {sqrt(norm), sum, dot};
  double scale = fmax(sketch[0], floor * sqrt((double)n));
  for (int k = 0; k < 3; k++) {
    /* a sum of n rounding errors of one sign may be sqrt(n) times their norm */
    double d = fabs(got[k] - sketch[k]) / (k == 1 ? scale * sqrt((double)n) : scale);
    if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
  }
  if (ns > n) ns = n;
  for (int64_t j = 0; j < ns; j++) largest = fmax(largest, fabs(samples[j]));
  for (int64_t j = 0; j < ns; j++) {
    double d = fabs(v[j * n / ns] - samples[j]) / (largest > 0 ? largest : 1);
    if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
  }
  return worst;
}

static void compare_sketch(gc *g, const full_case *f, const double *v, int64_t n, uint64_t seed,
                           const char *what, double bound) {
  char name[GC_NAME];
  snprintf(name, sizeof name, "%s_sketch", what);
  gc_array sketch = gc_read(g, f->group, name);
  gc_shape(g, &sketch, name, 1, (int64_t[]){3});
  snprintf(name, sizeof name, "%s_samples", what);
  gc_array samples = gc_read(g, f->group, name);
  gc_shape(g, &samples, name, 1, (int64_t[]){n < STAGE_SAMPLES ? n : STAGE_SAMPLES});
  gc_compare(g, what, sketch_error(v, n, seed ^ f->sketch_xor, sketch.v, samples.v, samples.n, 0),
             bound);
}

static void compare_stages(gc *g, const full_case *f, const ii_model_taps *taps) {
  for (int s = 0; s < II_STAGES; s++) {
    char name[24];
    snprintf(name, sizeof name, "stage%d", s);
    double *v = gc_values(g, f->c, taps->stage[s], name);
    compare_sketch(g, f, v, ii_numel(taps->stage[s]), f->input_seed + 1 + (uint64_t)s, name,
                   gc_bound(g, LOGITS_F32, LOGITS_F64));
  }
}

static uint64_t seed_of(gc *g, const full_case *f, const char *name) {
  size_t i;
  json_t *row;
  json_array_foreach(f->spec, i, row) {
    const char *other = json_string_value(json_array_get(row, 0));
    if (name && strcmp(other, name) == 0)
      return parse_seed(g, json_string_value(json_array_get(row, 2)));
  }
  gc_die(g, "grad_rows names %s, param_spec does not", name ? name : "nothing");
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void compare_full_grads(gc *g, const full_case *f) {
  ii_params *p = ii_model_params(f->model);
  int64_t rows = (int64_t)json_array_size(f->rows), with_grad = 0;
  gc_array sketch = gc_read(g, f->group, "grad_sketch");
  gc_array samples = gc_read(g, f->group, "grad_samples");
  gc_shape(g, &sketch, "grad_sketch", 2, (int64_t[]){rows, 3});
  gc_shape(g, &samples, "grad_samples", 2, (int64_t[]){rows, PARAM_SAMPLES});
  double *errs = gc_alloc(g, (size_t)rows, sizeof *errs), largest = 0;
  for (int64_t i = 0; i < samples.n; i++)
    if (!isnan(samples.v[i])) largest = fmax(largest, fabs(samples.v[i]));
  for (int64_t i = 0; i < rows; i++) {
    const char *name = json_string_value(json_array_get(f->rows, (size_t)i));
    uint64_t seed = seed_of(g, f, name);
    const ii_param *q = ii_params_find(p, name);
    int64_t n = ii_numel(q->value);
    double *v = calloc((size_t)n, sizeof *v);
    if (!v) gc_die(g, "out of memory");
    if (q->value->grad_valid) ii_tensor_read_f64(f->c, q->value->grad, v);
    errs[i] = sketch_error(v, n, seed ^ f->sketch_xor, sketch.v + 3 * i,
                           samples.v + PARAM_SAMPLES * i, PARAM_SAMPLES, GRAD_FLOOR * largest);
    free(v);
    gc_compare(g, name, errs[i], gc_bound(g, GRAD_WORST_F32, GRAD_F64));
  }
  for (int64_t i = 0; i < p->count; i++)
    with_grad += !p->at[i].buffer && p->at[i].value->grad_valid;
  gc_expect(g, with_grad == rows, "%lld parameters have gradients, in our model %lld",
            (long long)rows, (long long)with_grad);
  qsort(errs, (size_t)rows, sizeof *errs, by_value);
  if (rows)
    gc_compare(g, "median over gradients", errs[rows / 2], gc_bound(g, GRAD_MEDIAN_F32, GRAD_F64));
}

static void run_step(gc *g, full_case *f) {
  ii_ctx *c = f->c;
  int64_t N = gc_integer(g, f->group, "batch", 1, 1024);
  int64_t H = gc_integer(g, f->group, "height", 32, 4096);
  int64_t W = gc_integer(g, f->group, "width", 32, 4096);
  double scale = exp2(gc_number(g, f->group, "input_log2_scale"));
  double mean = gc_number(g, f->group, "input_mean");
  int64_t n = N * 3 * H * W;
  double *x = gc_alloc(g, (size_t)n, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = mean + scale * formula(f->input_seed, (uint64_t)i);
  gc_array targets = gc_read(g, f->group, "soft_targets");
  gc_shape(g, &targets, "soft_targets", 2,
           (int64_t[]){N, ii_model_get_config(f->model)->num_classes});
  ii_model_taps taps;
  ii_tensor *images =
      gc_tensor(g, c, 4, (int64_t[]){N, H, W, 3}, gc_to_nhwc(g, x, N, 3, H, W), true);
  ii_tensor *y = gc_tensor(g, c, 2, targets.dim, targets.v, false);
  ii_tensor *logits = ii_model_forward(f->model, images, NULL, &taps);
  compare_stages(g, f, &taps);
  gc_compare_tensor(g, c, logits, f->group, "logits", LOGITS_F32, LOGITS_F64);
  ii_tensor *loss = ii_soft_cross_entropy(c, logits, y);
  gc_compare_tensor(g, c, loss, f->group, "loss", LOSS_F32, LOSS_F64);
  ii_backward(c, loss, 1.0);
  gc_ctx_ok(g, c);
  double *gx = gc_to_nchw(g, gc_values(g, c, images->grad, "grad_input"), N, 3, H, W);
  compare_sketch(g, f, gx, n, f->input_seed + 9, "grad_input",
                 gc_bound(g, GRAD_WORST_F32, GRAD_F64));
  compare_full_grads(g, f);
}

void gc_check_full_size(gc *g, hid_t group, const char *name) {
  gc_only(g, group,
          "param_spec grad_rows grad_sketch grad_samples grad_input_sketch grad_input_samples "
          "stage0_sketch stage1_sketch stage2_sketch stage3_sketch stage0_samples stage1_samples "
          "stage2_samples stage3_samples logits loss soft_targets");
  full_case f = {.group = group,
                 .input_seed = parse_seed(g, gc_text(g, group, "input_seed")),
                 .sketch_xor = parse_seed(g, gc_text(g, group, "sketch_xor"))};
  f.spec = read_list(g, group, "param_spec");
  f.rows = read_list(g, group, "grad_rows");
  f.c = gc_ctx(g, false, 0);
  f.model = gc_model(g, f.c, group);
  int64_t numel = ii_params_numel(ii_model_params(f.model));
  int64_t want = gc_integer(g, group, "num_params", 1, (int64_t)1 << 40);
  gc_expect(g, numel == want, "%lld parameters, in our model %lld", (long long)want,
            (long long)numel);
  if (fill_params(g, &f)) run_step(g, &f);
  ii_model_destroy(f.model);
  ii_ctx_close(f.c);
  json_decref(f.spec);
  json_decref(f.rows);
}
