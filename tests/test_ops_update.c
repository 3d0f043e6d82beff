/* The kernels of an update (norm, control, apply, loss_add) on every engine: against their formulas
 * in double precision, at ragged sizes and odd addresses, with guard bytes around every tensor;
 * what they decide when gradients are not finite; and that the result does not depend on threads.
 */
#include "autograd/rng.h"
#include "kernels/device.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const int64_t sizes[] = {1, 7, 31, 33, 71, 1025, 65535, 65536, 65537, 200001, 0, 1};
enum { TENSORS = sizeof sizes / sizeof *sizes, COUNTER = TENSORS - 1, NO_GRAD = 3, FIELDS = 6 };
enum { P, G, M, V, E, LOW };
static const double BETA1 = 0.9, BETA2 = 0.99, EPS = 1e-3, MOMENTUM = 0.8, DECAY = 0.75;

/* Memory of one engine: an image of it on the host, sent and fetched as a whole. */
typedef struct {
  ii_kctx *k;
  ii_update_args a;
  char *host, *device;
  size_t bytes, at[TENSORS][FIELDS], end[TENSORS][FIELDS];
  size_t table, chunks, lr, partial, factor, seed, state;
} world;

static bool has(int tensor, int field, ii_update_kind kind, ii_dtype low) {
  if (tensor == COUNTER) return field == P || field == E;
  if (field == V) return kind == II_UPDATE_ADAMW;
  if (field == G) return tensor != NO_GRAD;
  if (field == E) return tensor % 5 != 2;
  return field != LOW || (low != II_F32 && tensor % 4 != 1);
}

static size_t reserve(world *w, size_t bytes, size_t shift) {
  const size_t at = (w->bytes + 15) / 16 * 16 + 16 + shift; /* at least 16 guard bytes */
  w->bytes = at + bytes;
  return at;
}

static void layout(world *w, ii_dtype low) {
  for (int t = 0; t < TENSORS; t++)
    for (int f = 0; f < FIELDS; f++) {
      const size_t size = f == LOW ? 2 : ii_dtype_size(w->a.real);
      if (!has(t, f, w->a.kind, low)) continue;
      w->at[t][f] = reserve(w, (size_t)sizes[t] * size, t % 3 == 1 ? size : 0);
      w->end[t][f] = w->bytes;
    }
  for (int t = 0; t < COUNTER; t++)
    w->a.chunks += (sizes[t] + II_UPDATE_CHUNK - 1) / II_UPDATE_CHUNK, w->a.elements += sizes[t];
  w->table = reserve(w, TENSORS * sizeof(ii_update_tensor), 0);
  w->chunks = reserve(w, (size_t)w->a.chunks * sizeof(ii_update_chunk), 0);
  w->lr = reserve(w, TENSORS * sizeof(double), 0);
  w->partial = reserve(w, (size_t)w->a.chunks * sizeof(double), 0);
  w->factor = reserve(w, (4 + 2 * TENSORS) * ii_dtype_size(w->a.real), 0);
  w->seed = reserve(w, 8, 0);
  w->state = reserve(w, sizeof(ii_update_state), 0);
  w->bytes += 16;
}

static double get(const world *w, int t, int f, int64_t i) {
  const char *p = w->host + w->at[t][f];
  if (f == LOW)
    return w->a.low_dtype == II_F16 ? ii_f16_to_f32(((const uint16_t *)p)[i])
                                    : ii_bf16_to_f32(((const uint16_t *)p)[i]);
  return w->a.real == II_F64 ? ((const double *)p)[i] : ((const float *)p)[i];
}

static void set(world *w, int t, int f, int64_t i, double v) {
  char *p = w->host + w->at[t][f];
  if (w->a.real == II_F64)
    ((double *)p)[i] = v;
  else
    ((float *)p)[i] = (float)v;
}

static void tables(world *w) {
  ii_update_tensor *table = (void *)(w->host + w->table);
  ii_update_chunk *chunk = (void *)(w->host + w->chunks);
  double *lr = (void *)(w->host + w->lr);
  for (int t = 0; t < TENSORS; t++) {
    void *at[FIELDS];
    for (int f = 0; f < FIELDS; f++) at[f] = w->at[t][f] ? w->device + w->at[t][f] : NULL;
    if (w->a.kind == II_UPDATE_SGD && w->a.momentum == 0) at[M] = NULL;
    table[t] = (ii_update_tensor){sizes[t], at[P],   at[G],         at[M],       at[V],
                                  at[E],    at[LOW], 0.1 * (t % 2), t == COUNTER};
    lr[t] = 1e-2 * (1 + t % 3);
    for (int64_t i = 0; t != COUNTER && i * II_UPDATE_CHUNK < sizes[t]; i++)
      *chunk++ = (ii_update_chunk){t, (int32_t)i};
  }
}

static void send(world *w) {
  assert_int_equal(ii_device_write(w->k, w->device, w->host, w->bytes), 0);
}
static void fetch(world *w) {
  assert_int_equal(ii_device_read(w->k, w->host, w->device, w->bytes), 0);
}

static ii_update_state *state_of(world *w) {
  return (void *)(w->host + w->state);
}

static world open_world(ii_kctx *k, ii_dtype real, ii_dtype low, ii_update_kind kind) {
  world w = {.k = k,
             .a = {.real = real,
                   .low_dtype = low == II_F16 ? II_F16 : II_BF16,
                   .kind = kind,
                   .tensors = TENSORS,
                   .step = 41,
                   .beta1 = BETA1,
                   .beta2 = BETA2,
                   .eps = EPS,
                   .momentum = MOMENTUM,
                   .clip_grad = 5,
                   .ema_decay = DECAY,
                   .seed_factor = 0.5,
                   .nesterov = true}};
  layout(&w, low);
  w.host = malloc(w.bytes);
  assert_non_null(w.host);
  memset(w.host, 0xff, w.bytes);
  if (ii_device_alloc(k, w.bytes, (void **)&w.device)) fail_msg("%s", k->error);
  ii_rng r = ii_rng_make(3, II_RNG_TEST, 0, 0);
  for (int t = 0; t < TENSORS; t++)
    for (int f = 0; f < LOW; f++)
      for (int64_t i = 0; w.at[t][f] && i < sizes[t]; i++)
        set(&w, t, f, i, f == V ? ii_rng_uniform(&r) : ii_rng_normal(&r));
  set(&w, COUNTER, P, 0, 20);
  set(&w, COUNTER, E, 0, 10);
  tables(&w);
  *state_of(&w) = (ii_update_state){.loss_scale = 1, .t = 2, .bad_step = -1};
  w.a.tensor = (void *)(w.device + w.table);
  w.a.chunk = (void *)(w.device + w.chunks);
  w.a.lr = (void *)(w.device + w.lr);
  w.a.partial = w.device + w.partial;
  w.a.factor = w.device + w.factor;
  w.a.seed = w.device + w.seed;
  w.a.state = (void *)(w.device + w.state);
  send(&w);
  return w;
}

static void close_world(world *w) {
  ii_device_free(w->k, w->device, w->bytes);
  free(w->host);
}

#if II_HAVE_CUDA
#define RUN(w, kernel, args)                                                                       \
  ((w)->k->device == II_CUDA ? ii_cuda_##kernel((w)->k, args) : ii_cpu_##kernel((w)->k, args))
#else
#define RUN(w, kernel, args) ii_cpu_##kernel((w)->k, args)
#endif

static void update(world *w) {
  if (RUN(w, update_norm, &w->a) || RUN(w, update_control, &w->a) || RUN(w, update_apply, &w->a))
    fail_msg("%s", w->k->error);
  fetch(w);
}

/* Every byte outside the tensors and tables is as it was. */
static void check_guards(const world *w) {
  char *inside = calloc(w->bytes, 1);
  for (int t = 0; t < TENSORS; t++)
    for (int f = 0; f < FIELDS; f++)
      if (w->at[t][f]) memset(inside + w->at[t][f], 1, w->end[t][f] - w->at[t][f]);
  memset(inside + w->table, 1, w->bytes - w->table - 16);
  for (size_t i = 0; i < w->bytes; i++)
    if (!inside[i] && (unsigned char)w->host[i] != 0xff) fail_msg("wrote to guard byte %zu", i);
  free(inside);
}

/* ---- values ---- */

static double norm_of(const world *w) {
  long double sum = 0;
  for (int t = 0; t < TENSORS; t++)
    for (int64_t i = 0; w->at[t][G] && i < sizes[t]; i++)
      sum += (long double)get(w, t, G, i) * get(w, t, G, i);
  return (double)sqrtl(sum);
}

static void near(double got, double want, double tol, const char *what, int t, int64_t i) {
  if (!(fabs(got - want) <= tol * (1 + fabs(want))))
    fail_msg("%s of tensor %d, element %lld: %.17g instead of %.17g", what, t, (long long)i, got,
             want);
}

/* Element i after an update, from the formulas, given its fields x[] before. */
static void formula(const world *w, int t, double coef, double x[FIELDS]) {
  const double lr = 1e-2 * (1 + t % 3), decay = 0.1 * (t % 2), n = 3; /* the third update */
  double g = x[G] * coef;
  if (w->a.kind == II_UPDATE_ADAMW) {
    x[P] *= 1 - lr * decay;
    x[M] = BETA1 * x[M] + (1 - BETA1) * g;
    x[V] = BETA2 * x[V] + (1 - BETA2) * g * g;
    x[P] -= lr / (1 - pow(BETA1, n)) * x[M] / (sqrt(x[V]) / sqrt(1 - pow(BETA2, n)) + EPS);
  } else {
    g += decay * x[P];
    x[M] = MOMENTUM * x[M] + g;
    x[P] -= lr * (w->a.momentum == 0 ? g : w->a.nesterov ? g + MOMENTUM * x[M] : x[M]);
  }
}

static void check_values(const world *before, const world *w, double tol) {
  const double coef = 5 / (norm_of(before) + 1e-6);
  static const char *const names[] = {"value", "gradient", "first moment", "second moment",
                                      "average"};
  for (int t = 0; t < COUNTER; t++)
    for (int64_t i = 0; i < sizes[t]; i++) {
      double x[FIELDS] = {0}, low = 0x1p-8;
      for (int f = 0; f < LOW; f++)
        if (w->at[t][f]) x[f] = get(before, t, f, i);
      if (t != NO_GRAD) formula(w, t, coef, x);
      x[E] = DECAY * x[E] + (1 - DECAY) * x[P];
      for (int f = 0; f < LOW; f++) {
        const bool untouched = f == M && w->a.kind == II_UPDATE_SGD && w->a.momentum == 0;
        if (w->at[t][f] && !untouched) near(get(w, t, f, i), x[f], tol, names[f], t, i);
      }
      if (w->a.low_dtype == II_F16) low = 0x1p-11;
      if (w->at[t][LOW] && t != NO_GRAD) near(get(w, t, LOW, i), x[P], low, "16-bit copy", t, i);
    }
  near(get(w, COUNTER, E, 0), 12, 0, "counter's average", COUNTER, 0); /* trunc(12.5) */
  const ii_update_state *s = (const void *)(w->host + w->state);
  near(s->grad_norm, norm_of(before), w->a.real == II_F64 ? 1e-13 : 1e-6, "norm", 0, 0);
  near(s->clip_coef, coef, w->a.real == II_F64 ? 1e-13 : 1e-6, "coefficient", 0, 0);
  assert_int_equal(s->t, 3);
  assert_int_equal(s->bad_step, -1);
}

static world copy_of(const world *w) {
  world c = *w;
  c.host = malloc(w->bytes);
  assert_non_null(c.host);
  memcpy(c.host, w->host, w->bytes);
  return c;
}

typedef struct {
  ii_update_kind kind;
  ii_dtype real, low;
  double momentum;
  bool nesterov;
} mode;

static const mode modes[] = {
    {II_UPDATE_ADAMW, II_F32, II_F32, 0, false}, {II_UPDATE_ADAMW, II_F32, II_BF16, 0, false},
    {II_UPDATE_ADAMW, II_F64, II_F32, 0, false}, {II_UPDATE_SGD, II_F32, II_BF16, 0.8, true},
    {II_UPDATE_SGD, II_F32, II_F32, 0.8, false}, {II_UPDATE_SGD, II_F32, II_BF16, 0, false},
    {II_UPDATE_SGD, II_F64, II_F32, 0.8, true},  {II_UPDATE_ADAMW, II_F32, II_F16, 0, false},
    {II_UPDATE_SGD, II_F32, II_F16, 0.8, true}};
enum { MODES = sizeof modes / sizeof *modes, CPU_MODES = MODES - 2 };

static world open_mode(ii_kctx *k, const mode *m) {
  world w = open_world(k, m->real, m->low, m->kind);
  w.a.momentum = m->momentum;
  w.a.nesterov = m->nesterov;
  tables(&w);
  send(&w);
  return w;
}

static void values_on(ii_kctx *k) {
  for (int i = 0; i < (k->device == II_CPU ? CPU_MODES : MODES); i++) {
    world w = open_mode(k, &modes[i]), before = copy_of(&w);
    update(&w);
    check_guards(&w);
    check_values(&before, &w, modes[i].real == II_F64 ? 1e-13 : 2e-6);
    free(before.host);
    close_world(&w);
  }
}

/* ---- engines ---- */

static void with_engines(void (*test)(ii_kctx *k)) {
  ii_kctx k;
  for (int cuda = 0; cuda <= (ii_cuda_device_count() > 0); cuda++) {
    const ii_engine_options o = {.device = cuda ? II_CUDA : II_CPU, .threads = 2};
    if (ii_engine_open(&k, &o)) fail_msg("%s", k.error);
    test(&k);
    ii_engine_close(&k);
  }
}

static void test_values(void **state) {
  with_engines(values_on);
}

static void test_threads(void **state) {
  ii_kctx k[2];
  for (int t = 0; t < 2; t++)
    assert_int_equal(ii_engine_open(&k[t], &(ii_engine_options){.threads = t + 1}), 0);
  for (int i = 0; i < CPU_MODES; i++) {
    world a = open_mode(&k[0], &modes[i]), b = open_mode(&k[1], &modes[i]);
    update(&a);
    update(&b);
    assert_memory_equal(a.host, b.host, a.table); /* from there on there are addresses */
    assert_memory_equal(a.host + a.lr, b.host + b.lr, a.bytes - a.lr);
    close_world(&a);
    close_world(&b);
  }
  for (int t = 0; t < 2; t++) ii_engine_close(&k[t]);
}

/* Double accumulation on the CPU, whatever the type; nothing is lost in small gradients. */
static void norm_on(ii_kctx *k) {
  for (int i = 0; i < 3; i++) {
    const double factor[] = {1e-12, 1, 1e9};
    world w = open_world(k, II_F32, II_F32, II_UPDATE_ADAMW);
    for (int t = 0; t < TENSORS; t++)
      for (int64_t j = 0; w.at[t][G] && j < sizes[t]; j++)
        set(&w, t, G, j, factor[i] * get(&w, t, G, j));
    const double want = norm_of(&w);
    send(&w);
    update(&w);
    near(state_of(&w)->grad_norm / want, 1, k->device == II_CPU ? 1e-13 : 1e-6, "norm", 0, 0);
    close_world(&w);
  }
}

static void test_norm(void **state) {
  with_engines(norm_on);
}

/* ---- what is decided ---- */

static const double bad[] = {NAN, INFINITY, -INFINITY};

static void same_fields(const world *a, const world *b, const char *which) {
  for (int t = 0; t < TENSORS; t++)
    for (int f = 0; f < FIELDS; f++)
      if (strchr(which, "PGMVEL"[f]) && a->at[t][f])
        assert_memory_equal(a->host + a->at[t][f], b->host + b->at[t][f],
                            a->end[t][f] - a->at[t][f]);
}

/* With a loss scale: the update is skipped, the averages advance, the scale halves; it doubles
 * after growth_interval good updates. */
static void scaled_on(ii_kctx *k) {
  for (int i = 0; i < 3; i++) {
    world w = open_world(k, II_F32, II_BF16, II_UPDATE_ADAMW);
    const double good = get(&w, 9, G, 200000);
    w.a.growth_interval = 3;
    state_of(&w)->loss_scale = 1024;
    state_of(&w)->good_updates = 2;
    set(&w, 9, G, 200000, bad[i]);
    send(&w);
    world before = copy_of(&w);
    update(&w);
    same_fields(&before, &w, "PGMVL");
    for (int64_t j = 0; j < sizes[9]; j++)
      near(get(&w, 9, E, j), DECAY * get(&before, 9, E, j) + (1 - DECAY) * get(&w, 9, P, j), 1e-6,
           "average", 9, j);
    assert_true(get(&w, COUNTER, E, 0) == 12);
    ii_update_state *s = state_of(&w);
    assert_true(s->loss_scale == 512 && s->good_updates == 0 && s->skipped == 1);
    assert_true(s->t == 2 && s->bad_step == -1 && !isfinite(s->grad_norm));
    assert_true(*(float *)(void *)(w.host + w.seed) == 256);
    set(&w, 9, G, 200000, good);
    send(&w);
    const double norm = norm_of(&w);
    static const double scales[] = {512, 512, 1024, 1024};
    for (int n = 0; n < 4; n++) {
      const double scale = state_of(&w)->loss_scale;
      update(&w);
      s = state_of(&w);
      near(s->grad_norm, norm / scale, 1e-6, "norm", 0, 0);
      near(s->clip_coef, fmin(1, 5 / (norm / scale + 1e-6)), 1e-6, "coefficient", 0, 0);
      assert_true(s->loss_scale == scales[n] && s->t == 3 + n && s->skipped == 1);
      assert_true(*(float *)(void *)(w.host + w.seed) == 0.5 * scales[n]);
    }
    assert_int_equal(s->good_updates, 1);
    free(before.host);
    close_world(&w);
  }
}

static void test_scaled(void **state) {
  with_engines(scaled_on);
}

/* The update does not feel a loss scale: gradients times 2^10 with scale 2^10 give the same bits.
 */
static void scale_is_taken_out_on(ii_kctx *k) {
  world a = open_world(k, II_F32, II_BF16, II_UPDATE_ADAMW);
  world b = open_world(k, II_F32, II_BF16, II_UPDATE_ADAMW);
  for (int t = 0; t < TENSORS; t++)
    for (int64_t j = 0; b.at[t][G] && j < sizes[t]; j++) set(&b, t, G, j, 1024 * get(&b, t, G, j));
  state_of(&b)->loss_scale = 1024;
  b.a.growth_interval = 2000;
  send(&b);
  update(&a);
  update(&b);
  same_fields(&a, &b, "PMVEL");
  assert_true(state_of(&a)->grad_norm == state_of(&b)->grad_norm);
  close_world(&a);
  close_world(&b);
}

static void test_scale_is_taken_out(void **state) {
  with_engines(scale_is_taken_out_on);
}

/* Without: nothing moves any more until bad_step is cleared. */
static void frozen_on(ii_kctx *k) {
  for (int i = 0; i < 3; i++) {
    world w = open_world(k, II_F32, II_BF16, II_UPDATE_ADAMW);
    const double good = get(&w, 0, G, 0);
    set(&w, 0, G, 0, bad[i]);
    send(&w);
    world before = copy_of(&w);
    update(&w);
    same_fields(&before, &w, "PGMVEL");
    assert_true(state_of(&w)->bad_step == 41 && state_of(&w)->bad_loss == 0);
    assert_false(isfinite(state_of(&w)->bad_value));
    set(&w, 0, G, 0, good);
    set(&before, 0, G, 0, good);
    send(&w);
    w.a.step = 42;
    update(&w);
    same_fields(&before, &w, "PGMVEL");
    assert_true(state_of(&w)->bad_step == 41 && state_of(&w)->t == 2);
    state_of(&w)->bad_step = -1;
    send(&w);
    update(&w);
    check_values(&before, &w, 2e-6);
    free(before.host);
    close_world(&w);
  }
}

static void test_frozen(void **state) {
  with_engines(frozen_on);
}

static void scale_kind_on(ii_kctx *k) {
  world w = open_world(k, II_F32, II_BF16, II_UPDATE_ADAMW);
  world before = copy_of(&w);
  w.a.kind = II_UPDATE_SCALE;
  w.a.seed = NULL;
  update(&w);
  same_fields(&before, &w, "PMVEL");
  const double coef = 5 / (norm_of(&before) + 1e-6);
  for (int t = 0; t < TENSORS; t++)
    for (int64_t i = 0; w.at[t][G] && i < sizes[t]; i++)
      near(get(&w, t, G, i), coef * get(&before, t, G, i), 1e-7, "gradient", t, i);
  assert_int_equal(state_of(&w)->t, 2);
  free(before.host);
  close_world(&w);
}

static void test_scale_kind(void **state) {
  with_engines(scale_kind_on);
}

static void losses_on(ii_kctx *k) {
  for (int scaled = 0; scaled < 2; scaled++) {
    world w = open_world(k, II_F32, II_F32, II_UPDATE_ADAMW);
    static const float losses[] = {1.5f, NAN, 0.25f, INFINITY, 2};
    for (int i = 0; i < 5; i++) {
      set(&w, 0, P, 0, losses[i]);
      send(&w);
      const ii_loss_add_args a = {.real = II_F32,
                                  .scaled = scaled,
                                  .step = 10 + i,
                                  .loss = w.device + w.at[0][P],
                                  .state = w.a.state};
      assert_int_equal(RUN(&w, loss_add, &a), 0);
      fetch(&w);
    }
    const ii_update_state *s = state_of(&w);
    assert_true(s->loss_sum == 3.75 && s->loss_count == 3);
    assert_int_equal(s->bad_step, scaled ? -1 : 11);
    assert_true(scaled || (s->bad_loss == 1 && isnan(s->bad_value)));
    close_world(&w);
  }
}

static void test_losses(void **state) {
  with_engines(losses_on);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_values), cmocka_unit_test(test_threads),
      cmocka_unit_test(test_norm),   cmocka_unit_test(test_scaled),
      cmocka_unit_test(test_frozen), cmocka_unit_test(test_scale_is_taken_out),
      cmocka_unit_test(test_losses), cmocka_unit_test(test_scale_kind)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
