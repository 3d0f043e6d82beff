/* Times whole training steps of a configuration: forward, loss, backward, then clipping, optimizer
 * and moving average, through the code that the trainer runs, on synthetic images.
 *
 *   bench_step [--config internimage_t_1k] [--set key=value] [--batch 8] [--size 224]
 *              [--device cpu|cuda[:N]] [--amp none|bf16|fp16] [--steps 4] [--threads N] [--profile]
 *              [--forward]
 *
 * One JSON object on one line: seconds per step (median, spread, parts), images per second, losses,
 * memory by class at the peak, and the GFLOP/s of the matrix kernels; --profile adds calls and
 * milliseconds per step of every kernel, largest first. The first step is not counted (the pool and
 * oneDNN's kernels are built in it); its seconds are given apart. On a GPU the host waits at the
 * end of each counted step alone; the parts, and the kernels' times, come from as many further
 * steps that wait after each part or kernel. The counted steps of a GPU are the trainer's
 * (train/step.h), with mixing, and with --set train.cuda_graph=on recorded as a graph.
 *
 * --forward: only the forward pass, in evaluation mode and with its result on the host at the end
 * of each step, which with --batch 1 is the latency of an image; the images are on the device
 * before.
 */
#include <sys/resource.h>
#include "autograd/tape.h"
#include "bench/measure_device.h"
#include "train/process.h"
#include "train/setup.h"
#include "train/step.h"

#define MAX_STEPS 1000

typedef struct {
  ii_config cfg;
  const char *config_name;
  ii_device device;
  int index, steps;
  bool profile, forward;
} options;

typedef struct {
  double total, forward, backward, update, loss, grad_norm;
} step_times;

typedef struct {
  ii_ctx *ctx;
  ii_model *model;
  ii_optimizer optimizer;
  ii_schedule schedule;
  ii_profile profile;
  float *images;
  int32_t *labels;
  /* of a GPU's counted steps: the trainer's step, its batch, and the images as they came, since
   * mixing changes them in place */
  ii_step step;
  ii_input_batch batch;
  ii_tensor *unmixed;
  step_times warm, at[MAX_STEPS], parts[MAX_STEPS]; /* parts: the steps that wait */
  int ran;
  char device[288];
  bool wait; /* after each part of a step */
} bench;

static void fail(const char *why) {
  fprintf(stderr, "bench_step: %s\n", why);
  exit(1);
}

static void set_key(options *o, const char *key, const char *value) {
  char text[512];
  ii_error err = {0};
  snprintf(text, sizeof text, "%s%s%s", key, *key ? "=" : "", value);
  if (ii_config_set(&o->cfg, text, &err) != II_OK) fail(err.text);
}

/* Later options override earlier ones; the configuration file comes before all of them. */
static void parse(options *o, int argc, char **argv) {
  static const char *const key[][2] = {{"--set", ""},
                                       {"--batch", "data.batch_size"},
                                       {"--size", "data.img_size"},
                                       {"--amp", "train.amp"},
                                       {"--threads", "train.threads"}};
  ii_error err = {0};
  *o = (options){.config_name = "internimage_t_1k", .steps = 4};
  for (int i = 1; i + 1 < argc; i++)
    if (!strcmp(argv[i], "--config")) o->config_name = argv[i + 1];
  if (ii_config_load(&o->cfg, o->config_name, &err) != II_OK) fail(err.text);
  set_key(o, "data.batch_size", "8");
  set_key(o, "train.amp", "none");
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : NULL;
    bool known = false;
    if (!strcmp(argv[i], "--profile") || !strcmp(argv[i], "--forward")) {
      *(argv[i][2] == 'p' ? &o->profile : &o->forward) = true;
      continue;
    }
    if (!value) fail("an option is unknown or lacks its value; see the head of bench_step.c");
    for (size_t k = 0; k < sizeof key / sizeof *key; k++)
      if (!strcmp(argv[i], key[k][0])) set_key(o, key[k][1], value), known = true;
    if (!strcmp(argv[i], "--steps")) o->steps = atoi(value), known = true;
    if (!strcmp(argv[i], "--config")) known = true;
    if (!strcmp(argv[i], "--device")) {
      if (ii_device_parse(value, &o->device, &o->index, &err) != II_OK) fail(err.text);
      known = true;
    }
    if (!known) fail("unknown option; see the head of bench_step.c");
    i++;
  }
  if (o->steps < 1 || o->steps > MAX_STEPS) fail("--steps is from 1 to 1000");
  if (!o->cfg.model.num_classes) o->cfg.model.num_classes = 1000;
  if (ii_config_check(&o->cfg, &err) != II_OK) fail(err.text);
}

static void open_bench(bench *b, const options *o) {
  ii_error err = {0};
  ii_ctx_options co = {.device = o->device,
                       .index = o->index,
                       .threads = (int)o->cfg.train.threads,
                       .real = II_F32,
                       .compute = ii_setup_compute(&o->cfg, o->device),
                       .seed = (uint64_t)o->cfg.train.seed};
  b->ctx = ii_ctx_open(&co, &err);
  if (!b->ctx) fail(err.text);
  measure_device d = measure_device_open(&b->ctx->k, o->index, 0);
  snprintf(b->device, sizeof b->device, "%s", d.name);
  measure_device_close(&d);
  ii_model_config m = ii_setup_model(&o->cfg);
  b->model = ii_model_create(b->ctx, &m, &err);
  if (!b->model) fail(err.text);
  ii_model_init(b->model, (uint64_t)o->cfg.train.seed);
  ii_optimizer_options oo = ii_setup_optimizer(&o->cfg);
  b->schedule = ii_setup_schedule(&o->cfg, 10000);
  if (ii_schedule_check(&b->schedule, &err) != II_OK) fail(err.text);
  if (ii_optimizer_init(&b->optimizer, ii_model_params(b->model), &oo) != II_OK)
    fail(b->ctx->err.text);
  const int64_t N = o->cfg.data.batch_size, S = o->cfg.data.img_size, n = N * S * S * 3;
  b->images = measure_buffer((size_t)n * sizeof *b->images);
  b->labels = measure_buffer((size_t)N * sizeof *b->labels);
  ii_rng r = ii_rng_make(0, II_RNG_TEST, 0, 0);
  for (int64_t i = 0; i < n; i++) b->images[i] = (float)ii_rng_range(&r, -2, 2);
  for (int64_t i = 0; i < N; i++) b->labels[i] = (int32_t)(i % m.num_classes);
}

/* Memory for the counted steps of a GPU. */
static void open_step(bench *b, const options *o) {
  ii_error err = {0};
  ii_ctx *c = b->ctx;
  const int64_t N = o->cfg.data.batch_size, S = o->cfg.data.img_size, shape[] = {N, S, S, 3};
  const ii_step_options so = {
      .cfg = &o->cfg, .model = b->model, .optimizer = &b->optimizer, .schedule = &b->schedule};
  b->unmixed = ii_tensor_persistent(c, II_F32, 4, shape, II_MEM_INPUT);
  b->batch = (ii_input_batch){.count = N,
                              .images = ii_tensor_persistent(c, II_F32, 4, shape, II_MEM_INPUT),
                              .labels = ii_tensor_persistent(c, II_I32, 1, &N, II_MEM_INPUT),
                              .host_keys = measure_buffer((size_t)N * sizeof(int64_t))};
  if (!ii_ok(c)) fail(c->err.text);
  for (int64_t i = 0; i < N; i++) b->batch.host_keys[i] = i;
  ii_tensor_write(c, b->unmixed, b->images);
  ii_tensor_write(c, b->batch.labels, b->labels);
  if (ii_step_init(&b->step, &so, &err) != II_OK) fail(err.text);
}

static void close_bench(bench *b) {
  ii_step_destroy(&b->step);
  ii_tensor_free(b->unmixed);
  ii_tensor_free(b->batch.images);
  ii_tensor_free(b->batch.labels);
  free(b->batch.host_keys);
  free(b->images);
  free(b->labels);
  ii_optimizer_destroy(&b->optimizer);
  ii_model_destroy(b->model);
  ii_ctx_close(b->ctx);
}

static double part_done(const bench *b) {
  if (b->wait) measure_must(&b->ctx->k, ii_device_sync(&b->ctx->k));
  return measure_now();
}

static step_times one_step(bench *b, const options *o, int64_t iteration) {
  ii_ctx *c = b->ctx;
  const int64_t N = o->cfg.data.batch_size, S = o->cfg.data.img_size;
  step_times t;
  ii_step_report report;
  b->ran++;
  double t0 = measure_now();
  c->training = c->recording = true;
  c->step = (uint64_t)iteration;
  c->draw = 0;
  ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){N, S, S, 3}, b->images);
  ii_tensor *y = ii_tensor_from_host(c, II_I32, 1, &N, b->labels);
  ii_tensor *logits = ii_model_forward(b->model, x, NULL, NULL);
  ii_tensor *loss = ii_smooth_cross_entropy(c, logits, y, o->cfg.train.label_smoothing);
  double t1 = part_done(b);
  ii_backward(c, loss, 1.0);
  double t2 = part_done(b);
  ii_optimizer_step(&b->optimizer, &b->schedule, iteration, &report);
  ii_params_zero_grad(ii_model_params(b->model));
  ii_tensor_read_f64(c, loss, &t.loss);
  ii_tape_reset(c);
  measure_must(&c->k, ii_device_sync(&c->k));
  double t3 = measure_now();
  if (!ii_ok(c)) fail(c->err.text);
  t.forward = t1 - t0;
  t.backward = t2 - t1;
  t.update = t3 - t2;
  t.total = t3 - t0;
  t.grad_norm = report.grad_norm;
  return t;
}

/* The forward pass alone; `loss` is the first logit. */
static step_times one_forward(bench *b, const options *o) {
  ii_ctx *c = b->ctx;
  const int64_t N = o->cfg.data.batch_size, S = o->cfg.data.img_size;
  step_times t = {0};
  double *logits = measure_buffer((size_t)(N * o->cfg.model.num_classes) * sizeof *logits);
  b->ran++;
  c->training = c->recording = false;
  ii_scope s = ii_scope_begin(c);
  ii_tensor *x = ii_tensor_from_host(c, II_F32, 4, (int64_t[]){N, S, S, 3}, b->images);
  measure_must(&c->k, ii_device_sync(&c->k));
  const double start = measure_now();
  ii_tensor *y = ii_model_forward(b->model, x, NULL, NULL);
  ii_tensor_read_f64(c, y, logits);
  t.total = t.forward = measure_now() - start;
  if (!ii_ok(c)) fail(c->err.text);
  ii_scope_end(c, s, NULL, 0);
  t.loss = logits[0];
  free(logits);
  return t;
}

/* As the trainer does it: the host waits at the end alone. */
static step_times trainer_step(bench *b) {
  ii_ctx *c = b->ctx;
  ii_error err = {0};
  step_times t = {0};
  ii_update_state state;
  const int64_t iteration = b->ran++;
  const double start = measure_now();
  measure_must(&c->k, ii_device_copy(&c->k, ii_data(b->batch.images), ii_data(b->unmixed),
                                     (size_t)ii_numel(b->unmixed) * sizeof(float)));
  if (ii_step_run(&b->step, &b->batch, iteration, &err) != II_OK) fail(err.text);
  measure_must(&c->k, ii_device_sync(&c->k));
  t.total = measure_now() - start;
  if (ii_optimizer_look(&b->optimizer, &state) != II_OK) fail(c->err.text);
  t.loss = state.loss_count ? state.loss_sum / (double)state.loss_count : 0;
  t.grad_norm = state.grad_norm;
  return t;
}

static step_times one(bench *b, const options *o, bool counted) {
  if (o->forward) return one_forward(b, o);
  return counted && b->step.ctx ? trainer_step(b) : one_step(b, o, b->ran);
}

static int64_t graph_pieces(const bench *b) {
  int64_t n = 0;
  for (int i = 0; i < II_STEP_KINDS; i++) n += b->step.kind[i].graph.pieces;
  return n;
}

/* Order statistics of one member of the counted steps. */
static measure_spread over_steps(const step_times *s, int steps, size_t member) {
  double t[MAX_STEPS];
  for (int i = 0; i < steps; i++) memcpy(&t[i], (const char *)&s[i] + member, sizeof *t);
  return measure_summarise(t, steps);
}

static void print_memory(const ii_ctx *c) {
  const double mib = 1.0 / 1048576;
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  printf(", \"peak_mib\": %.1f, \"reserved_mib\": %.1f, \"scratch_mib\": %.1f, "
         "\"peak_rss_mib\": %.1f, \"memory_mib\": {",
         (double)c->pool.peak * mib, (double)c->pool.reserved * mib,
         (double)ii_engine_scratch_bytes(&c->k) * mib, (double)u.ru_maxrss / 1024);
  for (int i = 0; i < II_MEM_CLASSES; i++)
    printf("%s\"%s\": %.1f", i ? ", " : "", ii_mem_class_name((ii_mem_class)i),
           (double)c->pool.peak_by_class[i] * mib);
  printf("}");
}

/* Seconds per step of the kernels that run in a matrix multiplication. */
static double matrix_seconds(const ii_profile *p, int steps) {
  static const char *const names[] = {"linear_fwd", "linear_bwd", "conv2d_fwd",
                                      "conv2d_bwd", "bmm_fwd",    "bmm_bwd"};
  double s = 0;
  for (int i = 0; ii_profile_name(i); i++)
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
      if (!strcmp(ii_profile_name(i), names[k])) s += p->seconds[i];
  return s / steps;
}

static void print_profile(const ii_profile *p, int steps, double step) {
  bool done[64] = {false};
  double sum = 0;
  printf(", \"profile\": [");
  for (int n = 0;; n++) {
    int best = -1;
    for (int i = 0; ii_profile_name(i); i++)
      if (p->calls[i] && !done[i] && (best < 0 || p->seconds[i] > p->seconds[best])) best = i;
    if (best < 0) break;
    done[best] = true;
    sum += p->seconds[best];
    printf("%s{\"kernel\": \"%s\", \"calls\": %.1f, \"ms\": %.2f}", n ? ", " : "",
           ii_profile_name(best), (double)p->calls[best] / steps, p->seconds[best] * 1e3 / steps);
  }
  printf("], \"outside_kernels_ms\": %.2f", (step - sum / steps) * 1e3);
}

static void report(const bench *b, const options *o) {
  const ii_ctx *c = b->ctx;
  const int n = o->steps;
  const long long N = o->cfg.data.batch_size, S = o->cfg.data.img_size;
  const char *type = ii_dtype_name(c->compute);
  measure_spread total = over_steps(b->at, n, offsetof(step_times, total));
  double mean = 0;
  for (int i = 0; i < n; i++) mean += b->parts[i].total / n;
  /* two operations for a multiply-add, three passes: forward and the gradients of both factors */
  double flop = (o->forward ? 2.0 : 6.0) * (double)c->macs / b->ran,
         matrix = matrix_seconds(&b->profile, n);
  printf(
      "{\"name\": \"%s %s %lldx%lld %s%s\", \"config\": \"%s\", \"batch\": %lld, \"size\": %lld, "
      "\"dtype\": \"%s\", \"device\": \"%s\", \"threads\": %d, \"steps\": %d",
      o->forward ? "forward" : "step", o->config_name, N, S, type, graph_pieces(b) ? ", graph" : "",
      o->config_name, N, S, type, b->device, c->k.threads, n);
  printf(", \"graph_pieces\": %lld", (long long)graph_pieces(b));
  printf(", \"step_s\": %.6f, \"step_min_s\": %.6f, \"step_p90_s\": %.6f, \"first_step_s\": %.4f",
         total.median, total.min, total.p90, b->warm.total);
  printf(", \"forward_s\": %.6f, \"backward_s\": %.6f, \"update_s\": %.6f, \"images_per_s\": %.3f",
         over_steps(b->parts, n, offsetof(step_times, forward)).median,
         over_steps(b->parts, n, offsetof(step_times, backward)).median,
         over_steps(b->parts, n, offsetof(step_times, update)).median, (double)N / total.median);
  printf(", \"first_loss\": %.6f, \"loss\": %.6f, \"grad_norm\": %.5f", b->warm.loss,
         b->at[n - 1].loss, b->at[n - 1].grad_norm);
  printf(", \"gflop\": %.2f, \"step_gflops\": %.1f, \"matrix_s\": %.4f, \"matrix_gflops\": %.1f",
         flop * 1e-9, flop * 1e-9 / total.median, matrix, matrix > 0 ? flop * 1e-9 / matrix : 0);
  print_memory(c);
  if (o->profile) print_profile(&b->profile, n, mean);
  printf("}\n");
}

/* The counted steps, and those with the parts: on the CPU, where nothing overlaps, the same ones.
 */
static void run(bench *b, const options *o) {
  enum { SETTLE = 4 }; /* libraries choose algorithms, memory settles, a graph is recorded */
  const bool gpu = o->device == II_CUDA;
  if (gpu && !o->forward) open_step(b, o);
  b->warm = one(b, o, true);
  for (int i = 0; gpu && i < SETTLE; i++) one(b, o, true);
  b->ctx->profile = gpu ? NULL : &b->profile;
  for (int i = 0; i < o->steps; i++) b->at[i] = one(b, o, true);
  b->ctx->profile = &b->profile;
  b->wait = true;
  for (int i = 0; i < o->steps; i++) b->parts[i] = gpu ? one(b, o, false) : b->at[i];
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  static options o;
  static bench b;
  parse(&o, argc, argv);
  open_bench(&b, &o);
  run(&b, &o);
  report(&b, &o);
  close_bench(&b);
  return 0;
}
