/* Training steps that are recorded as CUDA graphs: the same bits as without, in every precision and
 * with everything that changes from step to step; also over restarts, validation and changes of the
 * memory around them; and what such a step asks of the CUDA runtime. */
#include <math.h>
#include "train_fixture.h"
#include "train/setup.h"
#include "train/step.h"
#include "train/trainer.h"

#define KEYS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Everything that is drawn, and the sums in an order of their own. */
#define ALL                                                                                        \
  "data.mixup=0.8", "data.cutmix=1", "data.mix_prob=0.8", "data.erase_prob=0.6",                   \
      "data.erase_count=2"

static void set(ii_config *cfg, const char *key) {
  ii_error err = {0};
  if (ii_config_set(cfg, key, &err) != II_OK) fail_msg("%s", err.text);
}

static ii_config *config(const char *const *keys) {
  ii_config *cfg = calloc(1, sizeof *cfg);
  ii_error err = {0};
  assert_non_null(cfg);
  assert_int_equal(ii_config_load(cfg, fixture_path("tiny.cfg"), &err), II_OK);
  for (int i = 0; keys[i]; i++) set(cfg, keys[i]);
  if (ii_config_check(cfg, &err) != II_OK) fail_msg("%s", err.text);
  return cfg;
}

static char said[1 << 16];
static void listen(void *user, ii_say_kind kind, const char *line) {
  (void)user;
  if (kind != II_SAY_PULSE && strlen(said) + strlen(line) + 2 < sizeof said)
    strcat(strcat(said, line), "\n");
}

static int times_said(const char *what) {
  int n = 0;
  for (const char *p = said; (p = strstr(p, what)); p++) n++;
  return n;
}

#define RECORDED "recorded as a CUDA graph of"

/* ---- counted calls ----------------------------------------------------------------------------*/

static struct { int waits, memory, graphs, copies, fills, kernels; } calls;

#define WRAP(type, name, counter, parameters, ...)                                                 \
  type __real_##name parameters;                                                                   \
  type __wrap_##name parameters;                                                                   \
  type __wrap_##name parameters {                                                                  \
    calls.counter++;                                                                               \
    return __real_##name(__VA_ARGS__);                                                             \
  }
WRAP(int, cudaStreamSynchronize, waits, (void *s), s)
WRAP(int, cudaDeviceSynchronize, waits, (void), )
WRAP(int, cudaMemcpy, waits, (void *to, const void *from, size_t n, int kind), to, from, n, kind)
WRAP(int, cudaMalloc, memory, (void **p, size_t n), p, n)
WRAP(int, cudaMallocAsync, memory, (void **p, size_t n, void *s), p, n, s)
WRAP(int, cudaHostAlloc, memory, (void **p, size_t n, unsigned flags), p, n, flags)
WRAP(int, cudaFree, memory, (void *p), p)
WRAP(int, cudaFreeAsync, memory, (void *p, void *s), p, s)
WRAP(int, cudaGraphLaunch, graphs, (void *g, void *s), g, s)
WRAP(int, cudaMemcpyAsync, copies, (void *to, const void *from, size_t n, int kind, void *s), to,
     from, n, kind, s)
WRAP(int, cudaMemsetAsync, fills, (void *to, int value, size_t n, void *s), to, value, n, s)
#ifdef II_TEST_EMULATED
/* ii_emu_submit(const ii_emu_config &, ii_emu_body *): what a launch becomes in the emulation */
WRAP(void, _Z13ii_emu_submitRK13ii_emu_configP11ii_emu_body, kernels, (const void *c, void *b), c,
     b)
#endif

/* A host that waits where it must not, at the launch after so many others; 0: never. */
static int spoil_after;
int __real_cudaGetLastError(void);
int __wrap_cudaGetLastError(void);
int __wrap_cudaGetLastError(void) {
  if (spoil_after && --spoil_after == 0) __real_cudaDeviceSynchronize();
  return __real_cudaGetLastError();
}

/* ---- steps by themselves ----------------------------------------------------------------------*/

enum { N = 4, SIZE = 32, PIXELS = N * SIZE * SIZE * 3, PER_EPOCH = 6 };

typedef struct {
  ii_config *cfg;
  ii_ctx *c;
  ii_model *model;
  ii_optimizer o;
  ii_schedule schedule;
  ii_step step;
  ii_input_batch b;
  int64_t keys[N];
} world;

static void open_world(world *w, const char *graph, const char *const *keys) {
  ii_error err = {0};
  memset(w, 0, sizeof *w);
  said[0] = 0;
  w->cfg = config(keys);
  set(w->cfg, "model.num_classes=5");
  set(w->cfg, graph);
  w->c = ii_ctx_open(&(ii_ctx_options){.device = II_CUDA,
                                       .real = II_F32,
                                       .compute = ii_setup_compute(w->cfg, II_CUDA),
                                       .seed = 3},
                     &err);
  if (!w->c) fail_msg("%s", err.text);
  const ii_model_config m = ii_setup_model(w->cfg);
  w->model = ii_model_create(w->c, &m, &err);
  assert_non_null(w->model);
  ii_model_init(w->model, 5);
  const ii_optimizer_options o = ii_setup_optimizer(w->cfg);
  assert_int_equal(ii_optimizer_init(&w->o, ii_model_params(w->model), &o), II_OK);
  w->schedule = ii_setup_schedule(w->cfg, PER_EPOCH);
  const ii_step_options s = {.cfg = w->cfg,
                             .model = w->model,
                             .optimizer = &w->o,
                             .schedule = &w->schedule,
                             .say = {listen, NULL}};
  if (ii_step_init(&w->step, &s, &err) != II_OK) fail_msg("%s", err.text);
  w->b.images = ii_tensor_persistent(w->c, II_F32, 4, (int64_t[]){N, SIZE, SIZE, 3}, II_MEM_INPUT);
  w->b.labels = ii_tensor_persistent(w->c, II_I32, 1, (int64_t[]){N}, II_MEM_INPUT);
  w->b.count = N;
  w->b.host_keys = w->keys;
}

static void close_world(world *w) {
  ii_step_destroy(&w->step);
  ii_tensor_free(w->b.images);
  ii_tensor_free(w->b.labels);
  ii_optimizer_destroy(&w->o);
  ii_model_destroy(w->model);
  ii_ctx_close(w->c);
  free(w->cfg);
}

/* Another batch in each step. */
static ii_status step(world *w, int64_t number, ii_error *err) {
  static float x[PIXELS];
  int32_t labels[N];
  ii_rng r = ii_rng_make(1, II_RNG_TEST, (uint64_t)number, 0);
  for (int i = 0; i < PIXELS; i++) x[i] = (float)ii_rng_range(&r, -2, 2);
  for (int i = 0; i < N; i++) labels[i] = (int32_t)ii_rng_below(&r, 5);
  for (int i = 0; i < N; i++) w->keys[i] = number * N + i;
  ii_tensor_write(w->c, w->b.images, x);
  ii_tensor_write(w->c, w->b.labels, labels);
  w->b.epoch = number / PER_EPOCH;
  w->b.index = number % PER_EPOCH;
  if (w->b.index == 0) ii_params_zero_grad(ii_model_params(w->model));
  return ii_step_run(&w->step, &w->b, number, err);
}

static void steps(world *w, int64_t from, int64_t to) {
  ii_error err = {0};
  for (int64_t i = from; i < to; i++)
    if (step(w, i, &err) != II_OK) fail_msg("step %d: %s", (int)i, err.text);
}

static void same_tensor(world *a, const ii_tensor *x, world *b, const ii_tensor *y,
                        const char *name) {
  const size_t bytes = (size_t)ii_numel(x) * ii_dtype_size(x->dtype);
  char *p = malloc(bytes + 1), *q = malloc(bytes + 1);
  assert_true(p && q && ii_numel(x) == ii_numel(y) && x->dtype == y->dtype);
  ii_tensor_read(a->c, x, p);
  ii_tensor_read(b->c, y, q);
  if (memcmp(p, q, bytes) != 0) fail_msg("%s differs", name);
  free(p);
  free(q);
}

/* Weights, their 16-bit copies, gradients that count, moments, averages, and what the device
 * knows. */
static void same_state(world *a, world *b) {
  ii_params *p = ii_model_params(a->model), *q = ii_model_params(b->model);
  ii_optimizer_item x, y;
  ii_update_state u, v;
  for (int64_t i = 0; i < p->count; i++) {
    const ii_tensor *s = p->at[i].value, *t = q->at[i].value;
    same_tensor(a, s, b, t, p->at[i].name);
    if (s->low) same_tensor(a, s->low, b, t->low, "a 16-bit copy");
    assert_true(s->grad_valid == t->grad_valid);
    if (s->grad_valid) same_tensor(a, s->grad, b, t->grad, "a gradient");
  }
  for (int64_t i = 0; ii_optimizer_state(&a->o, i, &x); i++) {
    assert_true(ii_optimizer_state(&b->o, i, &y));
    same_tensor(a, x.tensor, b, y.tensor, x.kind);
  }
  assert_int_equal(ii_optimizer_look(&a->o, &u), II_OK);
  assert_int_equal(ii_optimizer_look(&b->o, &v), II_OK);
  assert_memory_equal(&u, &v, sizeof u);
}

static int graphs_of(const world *w) {
  int n = 0;
  for (int i = 0; i < II_STEP_KINDS; i++) n += w->step.kind[i].graph.exec != NULL;
  return n;
}

/* Runs the steps with and without graphs; `kinds` of them must have been recorded. */
static void same_with_graphs(const char *name, const char *const *keys, int count, int kinds) {
  world off, on;
  ii_update_state u;
  open_world(&off, "train.cuda_graph=off", keys);
  steps(&off, 0, count);
  assert_int_equal(times_said(RECORDED), 0);
  open_world(&on, "train.cuda_graph=on", keys);
  steps(&on, 0, count);
  assert_int_equal(graphs_of(&on), kinds);
  assert_int_equal(times_said(RECORDED), kinds);
  same_state(&off, &on);
  assert_true(off.c->macs == on.c->macs && off.c->dcn_macs == on.c->dcn_macs);
  ii_optimizer_look(&on.o, &u);
  print_message("%s: %d graphs, %d updates, %d skipped, loss %.4f\n", name, kinds, (int)u.t,
                (int)u.skipped, u.loss_sum / (double)(u.loss_count ? u.loss_count : 1));
  close_world(&off);
  close_world(&on);
}

static void test_precisions(void **unused) {
  (void)unused;
  same_with_graphs("fp32", KEYS(ALL, "train.amp=none"), 8, 1);
  same_with_graphs("bf16", KEYS(ALL, "train.amp=bf16"), 8, 1);
}

/* The scale is far too large at first, so that some updates are skipped in each way. */
static void test_overflow(void **unused) {
  world w;
  ii_update_state u;
  const char *const *keys =
      KEYS(ALL, "train.amp=fp16", "train.loss_scale=16777216", "train.loss_scale_growth=2");
  (void)unused;
  open_world(&w, "train.cuda_graph=off", keys);
  steps(&w, 0, 12);
  ii_optimizer_look(&w.o, &u);
  close_world(&w);
  assert_in_range(u.skipped, 3, 11); /* the first three steps of the other run have no graph */
  same_with_graphs("fp16", keys, 12, 1);
}

/* Gradients that overwrite, add, and end in an update: a graph for each. */
static void test_accumulation(void **unused) {
  (void)unused;
  same_with_graphs("of 2", KEYS(ALL, "train.amp=none", "train.accumulation_steps=2"), 11, 2);
  same_with_graphs("of 3", KEYS(ALL, "train.amp=bf16", "train.accumulation_steps=3"), 14, 3);
  /* two steps of each epoch are left over, and what they added up is dropped */
  same_with_graphs("of 4", KEYS(ALL, "train.amp=fp16", "train.accumulation_steps=4"), 16, 2);
}

static void test_other_models(void **unused) {
  (void)unused;
  same_with_graphs("activation checkpointing", KEYS(ALL, "train.amp=bf16", "model.checkpoint=true"),
                   6, 1);
  same_with_graphs("DCNv4", KEYS(ALL, "train.amp=none", "model.core_op=DCNv4"), 6, 1);
  same_with_graphs("SGD, nothing drawn",
                   KEYS("train.amp=none", "train.optimizer=sgd", "model.drop_path_rate=0"), 6, 1);
}

/* ---- memory around the graph ------------------------------------------------------------------*/

/* A block that somebody takes after the recording lies where the graph works, if nothing prevents
 * it: then the step must be recorded anew, with neither of them disturbing the other. */
static void test_memory_taken_between(void **unused) {
  enum { WORDS = 300000 };
  static int32_t pattern[WORDS], got[WORDS];
  world off, on;
  (void)unused;
  for (int i = 0; i < WORDS; i++) pattern[i] = i * 7;
  open_world(&off, "train.cuda_graph=off", KEYS(ALL, "train.amp=none"));
  steps(&off, 0, 10);
  open_world(&on, "train.cuda_graph=on", KEYS(ALL, "train.amp=none"));
  steps(&on, 0, 5);
  assert_int_equal(graphs_of(&on), 1);
  const int64_t reserved = on.c->pool.reserved;
  ii_tensor *t = ii_tensor_persistent(on.c, II_I32, 1, (int64_t[]){WORDS}, II_MEM_INPUT);
  assert_true(on.c->pool.reserved == reserved); /* it is where the graph works */
  ii_tensor_write(on.c, t, pattern);
  steps(&on, 5, 6);
  assert_int_equal(graphs_of(&on), 0);
  steps(&on, 6, 9);
  assert_int_equal(graphs_of(&on), 1);
  assert_int_equal(times_said(RECORDED), 2);
  ii_tensor_read(on.c, t, got);
  assert_memory_equal(got, pattern, sizeof got);
  ii_tensor_free(t);
  steps(&on, 9, 10);
  same_state(&off, &on);
  close_world(&off);
  close_world(&on);
}

/* Memory that is given back before the next step, as validation does, changes nothing. */
static void test_memory_borrowed_between(void **unused) {
  world off, on;
  (void)unused;
  open_world(&off, "train.cuda_graph=off", KEYS(ALL, "train.amp=bf16"));
  steps(&off, 0, 7);
  open_world(&on, "train.cuda_graph=on", KEYS(ALL, "train.amp=bf16"));
  steps(&on, 0, 5);
  ii_tensor *t = ii_tensor_persistent(on.c, II_I32, 1, (int64_t[]){100000}, II_MEM_INPUT);
  ii_ema_swap(&on.o.ema);
  ii_ema_swap(&on.o.ema);
  ii_tensor_free(t);
  steps(&on, 5, 7);
  assert_int_equal(times_said(RECORDED), 1);
  same_state(&off, &on);
  close_world(&off);
  close_world(&on);
}

/* The engine's scratch memory grows between two steps: the graph has the old address. */
static void test_scratch_grows(void **unused) {
  enum { ROWS = 6000, COLUMNS = 700 };
  world off, on;
  (void)unused;
  open_world(&off, "train.cuda_graph=off", KEYS(ALL, "train.amp=none"));
  steps(&off, 0, 9);
  open_world(&on, "train.cuda_graph=on", KEYS(ALL, "train.amp=none"));
  steps(&on, 0, 5);
  const int64_t before = ii_engine_scratch_bytes(&on.c->k);
  ii_tensor *x = ii_tensor_persistent(on.c, II_F32, 2, (int64_t[]){ROWS, COLUMNS}, II_MEM_INPUT);
  ii_tensor *y = ii_tensor_persistent(on.c, II_F32, 1, (int64_t[]){COLUMNS}, II_MEM_INPUT);
  ii_tensor *w = ii_tensor_persistent(on.c, II_F32, 2, (int64_t[]){2, COLUMNS}, II_MEM_INPUT);
  ii_layer_norm_args a = {.real = II_F32, .x_dtype = II_F32, .y_dtype = II_F32};
  a.rows = ROWS, a.C = COLUMNS, a.eps = 1e-6, a.x = a.gy = ii_data(x), a.gamma = ii_data(y);
  a.mean = a.rstd = ii_data(x), a.ggamma = ii_data(w), a.gbeta = (float *)ii_data(w) + COLUMNS;
  assert_int_equal(ii_cuda_layer_norm_bwd(&on.c->k, &a), 0);
  ii_tensor_free(x);
  ii_tensor_free(y);
  ii_tensor_free(w);
  assert_true(ii_engine_scratch_bytes(&on.c->k) > before);
  steps(&on, 5, 9);
  assert_int_equal(times_said(RECORDED), 2);
  same_state(&off, &on);
  close_world(&off);
  close_world(&on);
}

/* ---- what cannot be recorded ------------------------------------------------------------------*/

static void test_fallback(void **unused) {
  world off, w;
  ii_error err = {0};
  const char *const *keys = KEYS(ALL, "train.amp=none");
  (void)unused;
  open_world(&off, "train.cuda_graph=off", keys);
  steps(&off, 0, 6);
  setenv("II_CUDA_SYNC", "1", 1); /* waits after every kernel */
  open_world(&w, "train.cuda_graph=auto", keys);
  steps(&w, 0, 6);
  assert_int_equal(times_said("and runs without"), 1);
  assert_int_equal(times_said("II_CUDA_SYNC"), 1);
  same_state(&off, &w);
  close_world(&w);
  open_world(&w, "train.cuda_graph=on", keys);
  unsetenv("II_CUDA_SYNC");
  ii_status s = II_OK;
  for (int64_t i = 0; i < 6 && s == II_OK; i++) s = step(&w, i, &err);
  assert_int_equal(s, II_ERR_DEVICE);
  assert_non_null(strstr(err.text, "cannot be recorded as a CUDA graph: II_CUDA_SYNC"));
  close_world(&w);
  close_world(&off);
}

/* Something goes wrong after a hundred kernels of the recording: nothing of it was done, so that
 * step and all others run without a graph. */
static void test_fallback_half_way(void **unused) {
  world off, w;
  const char *const *keys = KEYS(ALL, "train.amp=none", "train.accumulation_steps=2");
  (void)unused;
  open_world(&off, "train.cuda_graph=off", keys);
  steps(&off, 0, 9);
  open_world(&w, "train.cuda_graph=auto", keys);
  spoil_after = 0;
  for (int64_t i = 0; i < 9; i++) {
    spoil_after = times_said(RECORDED) == 1 ? 100 : 0; /* the second kind of step */
    steps(&w, i, i + 1);
  }
  spoil_after = 0;
  assert_int_equal(times_said(RECORDED), 1);
  assert_int_equal(times_said("and runs without"), 1);
  same_state(&off, &w);
  close_world(&w);
  close_world(&off);
}

/* ---- runs -------------------------------------------------------------------------------------*/

static ii_status run(const char *out, ii_device device, const char *const *keys, ii_error *err) {
  char folder[700];
  ii_trainer_options *o = calloc(1, sizeof *o);
  ii_trainer *t;
  assert_non_null(o);
  ii_config *cfg = config(keys);
  *err = (ii_error){0};
  said[0] = 0;
  snprintf(folder, sizeof folder, "train.output_dir=%s", fixture_path(out));
  set(cfg, folder);
  *o = (ii_trainer_options){
      .config = *cfg, .device = device, .resume = "auto", .say = {listen, NULL}};
  ii_status s = ii_trainer_open(o, &t, err);
  if (s == II_OK) s = ii_trainer_run(t, err);
  if (t) ii_trainer_close(t);
  free(o);
  free(cfg);
  return s;
}

static void run_well(const char *out, const char *const *keys) {
  ii_error err;
  if (run(out, II_CUDA, keys, &err) != II_OK) fail_msg("%s", err.text);
}

static const char *checkpoint(const char *out, int number) {
  char name[100];
  snprintf(name, sizeof name, "%s/checkpoint-%09d.h5", out, number);
  return fixture_path(name);
}

/* A run with validation of both sets of weights after every epoch, checkpoints in between, and an
 * end in the middle of an accumulation, from which the next one goes on. */
static void test_runs(void **unused) {
  enum { LAST = 36 };
#define RUN(graph, last)                                                                           \
  KEYS(ALL, "train.amp=bf16", "train.accumulation_steps=2", "train.save_every_steps=5",            \
       "train.epochs=6", "train.log_every_steps=1000", graph, last)
  (void)unused;
  run_well("plain", RUN("train.cuda_graph=off", "train.max_steps=0"));
  run_well("graph", RUN("train.cuda_graph=on", "train.max_steps=0"));
  assert_in_range(times_said(RECORDED), 2, 4); /* the first validation may move scratch memory */
  fixture_same_weights(checkpoint("plain", LAST), checkpoint("graph", LAST));
  run_well("parts", RUN("train.cuda_graph=on", "train.max_steps=15"));
  assert_in_range(times_said(RECORDED), 2, 4);
  run_well("parts", RUN("train.cuda_graph=auto", "train.max_steps=0"));
  assert_in_range(times_said(RECORDED), 2, 4);
  fixture_same_weights(checkpoint("plain", LAST), checkpoint("parts", LAST));
}

static void test_only_for_gpus(void **unused) {
  ii_error err;
  (void)unused;
  assert_int_equal(run("cpu", II_CPU, KEYS("train.cuda_graph=on"), &err), II_ERR_ARG);
  assert_non_null(strstr(err.text, "train.cuda_graph=on is for GPUs"));
}

/* ---- calls of the runtime ---------------------------------------------------------------------*/

static void count(int last) {
  char out[32], max[40], command[700];
  snprintf(out, sizeof out, "count_%d", last);
  snprintf(max, sizeof max, "train.max_steps=%d", last);
  memset(&calls, 0, sizeof calls);
  run_well(out, KEYS(ALL, "train.amp=fp16", max, "train.log_every_steps=1000",
                     "train.save_every_epochs=0", "train.eval_every_epochs=0", "train.epochs=1",
                     "data.batch_size=2", "train.cuda_graph=on"));
  snprintf(command, sizeof command, "rm -rf %s", fixture_path(out));
  assert_int_equal(system(command), 0);
}

/* Of six more steps each is one launch and six copies: pixels and labels to the device and there to
 * their place, what was drawn, and the rates. */
static void test_calls(void **unused) {
  (void)unused;
  count(5);
  const __typeof__(calls) before = calls;
  count(11);
  assert_int_equal(calls.graphs - before.graphs, 6);
  assert_int_equal(calls.copies - before.copies, 6 * 6);
  assert_int_equal(calls.kernels, before.kernels);
  assert_int_equal(calls.fills, before.fills);
  assert_int_equal(calls.waits, before.waits);
  assert_int_equal(calls.memory, before.memory);
  assert_true(before.waits > 0 && before.graphs > 0 && before.memory > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_precisions),           cmocka_unit_test(test_overflow),
      cmocka_unit_test(test_accumulation),         cmocka_unit_test(test_other_models),
      cmocka_unit_test(test_memory_taken_between), cmocka_unit_test(test_memory_borrowed_between),
      cmocka_unit_test(test_scratch_grows),        cmocka_unit_test(test_fallback),
      cmocka_unit_test(test_fallback_half_way),    cmocka_unit_test(test_runs),
      cmocka_unit_test(test_only_for_gpus),        cmocka_unit_test(test_calls)};
  ii_kctx k;
  if (ii_cuda_device_count() == 0) {
    printf("skipped: no GPU\n");
    return 77;
  }
  if (ii_engine_open(&k, &(ii_engine_options){.device = II_CUDA})) return 1;
  const bool exact = ii_device_exact(&k);
  ii_engine_close(&k);
  if (exact) {
    printf("skipped: each block is an allocation of its own here, which cannot be recorded\n");
    return 77;
  }
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
