/* The self-test of the kernels of the update: three tensors, one update, on both engines. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernels/device.h"
#include "kernels/selftest_priv.h"

enum { TENSORS = 3, CHUNKS = 4, ARRAYS = 5 };
static const int64_t sizes[TENSORS] = {II_UPDATE_CHUNK + 5, 37, 8};
static const ii_update_chunk chunks[CHUNKS] = {{0, 0}, {0, 1}, {1, 0}, {2, 0}};

enum { VALUE, GRADIENT, MOMENT, SQUARE, AVERAGE };

/* Everything lies in one block, on the host and on the device alike. */
typedef struct {
  ii_dtype t;
  int variant;
  size_t bytes, state, table, chunk, lr, partial, factor, seed, loss;
  size_t array[TENSORS][ARRAYS], low[TENSORS];
  char *host;
  void *device;
} block;

bool ii_selftest_is_update(int kernel) {
  return kernel == II_K_update_norm || kernel == II_K_update_control ||
         kernel == II_K_update_apply || kernel == II_K_loss_add;
}

static size_t place(block *b, size_t bytes, size_t shift) {
  const size_t at = (b->bytes + 63) / 64 * 64 + shift;
  b->bytes = at + bytes;
  return at;
}

static void lay_out(block *b, int variant, ii_dtype t) {
  const size_t size = ii_dtype_size(t);
  *b = (block){.t = t, .variant = variant};
  b->state = place(b, sizeof(ii_update_state), 0);
  b->table = place(b, sizeof(ii_update_tensor) * TENSORS, 0);
  b->chunk = place(b, sizeof chunks, 0);
  b->lr = place(b, sizeof(double) * TENSORS, 0);
  b->partial = place(b, 8 * CHUNKS, 0);
  b->factor = place(b, size * (4 + 2 * TENSORS), 0);
  b->seed = place(b, size, 0);
  b->loss = place(b, size, 0);
  for (int i = 0; i < TENSORS; i++) {
    for (int j = 0; j < ARRAYS; j++)
      b->array[i][j] = place(b, (size_t)sizes[i] * size, variant ? size : 0);
    b->low[i] = place(b, (size_t)sizes[i] * 2, variant ? 2 : 0);
  }
}

static void fill(block *b, char *base) {
  ii_update_state *state = (void *)(b->host + b->state);
  ii_update_tensor *table = (void *)(b->host + b->table);
  double *lr = (void *)(b->host + b->lr);
  memset(b->host, 0xff, b->bytes);
  *state = (ii_update_state){
      .loss_scale = b->variant ? 8 : 1, .t = b->variant ? 0 : 2, .loss_sum = 0.5, .bad_step = -1};
  memcpy(b->host + b->chunk, chunks, sizeof chunks);
  ii_selftest_set(b->t, b->host + b->loss, 0, 0.75);
  for (int i = 0; i < TENSORS; i++) {
    lr[i] = 1e-2 * (i + 1);
    table[i] = (ii_update_tensor){.n = sizes[i],
                                  .p = base + b->array[i][VALUE],
                                  .g = base + b->array[i][GRADIENT],
                                  .m = base + b->array[i][MOMENT],
                                  .v = b->variant ? NULL : base + b->array[i][SQUARE],
                                  .ema = i == 1 ? NULL : base + b->array[i][AVERAGE],
                                  .low = base + b->low[i],
                                  .weight_decay = 0.05 * i};
    for (int j = 0; j < ARRAYS; j++)
      for (int64_t e = 0; e < sizes[i]; e++)
        ii_selftest_set(b->t, b->host + b->array[i][j], e,
                        ii_selftest_draw(i * ARRAYS + j, e, b->t, j == SQUARE));
  }
}

static int run_kernels(ii_kctx *k, const block *b) {
  char *base = b->device;
  ii_any_args a = {.update_norm = {.real = b->t,
                                   .low_dtype = II_BF16,
                                   .kind = b->variant ? II_UPDATE_SGD : II_UPDATE_ADAMW,
                                   .tensors = TENSORS,
                                   .chunks = CHUNKS,
                                   .step = 7,
                                   .beta1 = 0.9,
                                   .beta2 = 0.999,
                                   .eps = 1e-8,
                                   .momentum = 0.9,
                                   .clip_grad = 5,
                                   .ema_decay = 0.99,
                                   .seed_factor = 0.5,
                                   .nesterov = true,
                                   .growth_interval = b->variant ? 100 : 0,
                                   .tensor = (const void *)(base + b->table),
                                   .chunk = (const void *)(base + b->chunk),
                                   .lr = (const void *)(base + b->lr),
                                   .partial = base + b->partial,
                                   .factor = base + b->factor,
                                   .seed = base + b->seed,
                                   .state = (void *)(base + b->state)}};
  for (int i = 0; i < TENSORS; i++) a.update_norm.elements += sizes[i];
  if (ii_selftest_call(k, II_K_update_norm, &a) || ii_selftest_call(k, II_K_update_control, &a) ||
      ii_selftest_call(k, II_K_update_apply, &a))
    return 1;
  a = (ii_any_args){.loss_add = {.real = b->t,
                                 .scaled = b->variant,
                                 .step = 7,
                                 .loss = base + b->loss,
                                 .state = (void *)(base + b->state)}};
  return ii_selftest_call(k, II_K_loss_add, &a);
}

/* Runs the update on k; the block's host memory then holds the results. */
static int update(ii_kctx *k, block *b, int variant, ii_dtype t) {
  lay_out(b, variant, t);
  b->host = malloc(b->bytes);
  if (!b->host) {
    snprintf(k->error, sizeof k->error, "out of memory for the self-test of the update");
    return 1;
  }
  if (ii_device_alloc(k, b->bytes, &b->device)) return 1;
  fill(b, b->device);
  return ii_device_write(k, b->device, b->host, b->bytes) || run_kernels(k, b) ||
         ii_device_read(k, b->host, b->device, b->bytes);
}

static void release(ii_kctx *k, block *b) {
  if (b->device) ii_device_free(k, b->device, b->bytes);
  free(b->host);
}

static double distance(double got, double want) {
  if (!isfinite(got) || !isfinite(want)) return INFINITY;
  return fabs(got - want) / fmax(fabs(want), 1e-30);
}

static void compare_array(const block *got, const block *want, size_t at, size_t ref, int64_t n,
                          bool low, ii_selftest_result *r) {
  const ii_dtype t = low ? II_BF16 : got->t, w = low ? II_BF16 : want->t;
  double worst = 0, scale = 1e-30;
  for (int64_t i = 0; i < n; i++) {
    const double g = ii_selftest_get(t, got->host + at, i);
    const double v = ii_selftest_get(w, want->host + ref, i);
    if (!isfinite(g) || !isfinite(v)) worst = INFINITY;
    scale = fmax(scale, fabs(v));
    worst = fmax(worst, fabs(g - v));
  }
  ii_selftest_worse(r, worst / scale, ii_selftest_bound(t));
}

static void compare_tensors(const block *got, const block *want, ii_selftest_result *r) {
  for (int i = 0; i < TENSORS; i++) {
    for (int j = 0; j < ARRAYS; j++) /* what is not written stays as it was, on both sides */
      compare_array(got, want, got->array[i][j], want->array[i][j], sizes[i], false, r);
    compare_array(got, want, got->low[i], want->low[i], sizes[i], true, r);
  }
}

static void compare(const block *got, const block *want, int kernel, ii_selftest_result *r) {
  const ii_update_state *g = (const void *)(got->host + got->state);
  const ii_update_state *w = (const void *)(want->host + want->state);
  const double bound = ii_selftest_bound(got->t);
  if (kernel == II_K_update_norm) {
    ii_selftest_worse(r, distance(g->grad_norm, w->grad_norm), bound);
  } else if (kernel == II_K_update_control) {
    const bool same = g->t == w->t && g->good_updates == w->good_updates &&
                      g->skipped == w->skipped && g->bad_step == w->bad_step &&
                      g->action == w->action && g->loss_scale == w->loss_scale;
    ii_selftest_worse(r, same ? distance(g->clip_coef, w->clip_coef) : INFINITY, bound);
    ii_selftest_worse(r,
                      distance(ii_selftest_get(got->t, got->host + got->seed, 0),
                               ii_selftest_get(want->t, want->host + want->seed, 0)),
                      bound);
  } else if (kernel == II_K_loss_add) {
    ii_selftest_worse(
        r, g->loss_count == w->loss_count ? distance(g->loss_sum, w->loss_sum) : INFINITY, bound);
  } else {
    compare_tensors(got, want, r);
  }
}

int ii_selftest_update(ii_kctx *tested, ii_kctx *reference, int kernel, int variant, ii_dtype t,
                       ii_selftest_result *r) {
  block got = {0}, want = {0};
  int bad = update(reference, &want, variant, II_F64);
  if (bad) snprintf(tested->error, sizeof tested->error, "%.480s", reference->error);
  bad = bad || update(tested, &got, variant, t);
  if (!bad) compare(&got, &want, kernel, r);
  release(tested, &got);
  release(reference, &want);
  return bad;
}
