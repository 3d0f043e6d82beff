/* Engines on two GPUs of one thread: whatever is called first on one, while the other GPU is the
 * thread's current one, works on the right one. Emulated GPUs refuse streams, launches and library
 * handles of another device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "autograd/kernel_call.h"

enum { GPUS = 2, SIDE = 4, TAPS = 9, ROWS = 6, IN = 8, OUT = 4 };

static ii_kctx gpu[GPUS];

static void did(const ii_kctx *k, int status) {
  if (status) fail_msg("%s", k->error);
}

/* n ones in device memory; room for them when `fill` is false. */
static void *ones(ii_kctx *k, int64_t n, bool fill) {
  float host[SIDE * SIDE * TAPS];
  void *p;
  assert_true(n <= (int64_t)(sizeof host / sizeof *host));
  for (int64_t i = 0; i < n; i++) host[i] = 1;
  did(k, ii_device_alloc(k, (size_t)n * sizeof *host, &p));
  if (fill) did(k, ii_device_write(k, p, host, (size_t)n * sizeof *host));
  return p;
}

static void expect(ii_kctx *k, void *p, int64_t n, const float *want) {
  float host[TAPS + ROWS * OUT];
  did(k, ii_device_read(k, host, p, (size_t)n * sizeof *host));
  for (int64_t i = 0; i < n; i++) assert_true(host[i] == want[i]);
  ii_device_free(k, p, (size_t)n * sizeof *host);
}

/* The gradient of 3 x 3 weights from images of ones counts the pixels that a tap meets. */
static void convolution(ii_kctx *k) {
  static const float want[TAPS] = {9, 12, 9, 12, 16, 12, 9, 12, 9};
  ii_conv2d_args a = {.real = II_F32,
                      .x_dtype = II_F32,
                      .N = 1,
                      .H = SIDE,
                      .W = SIDE,
                      .C = 1,
                      .O = 1,
                      .Ho = SIDE,
                      .Wo = SIDE,
                      .kh = 3,
                      .kw = 3,
                      .stride = 1,
                      .pad = 1};
  void *x = ones(k, SIDE * SIDE, true), *gy = ones(k, SIDE * SIDE, true);
  a.x = x;
  a.gy = gy;
  a.gw = ones(k, TAPS, false);
  did(k, ii_cuda_conv2d_bwd(k, &a));
  expect(k, a.gw, TAPS, want);
  ii_device_free(k, x, SIDE * SIDE * sizeof(float));
  ii_device_free(k, gy, SIDE * SIDE * sizeof(float));
}

static void product(ii_kctx *k) {
  float want[ROWS * OUT];
  for (int i = 0; i < ROWS * OUT; i++) want[i] = IN;
  void *x = ones(k, ROWS * IN, true), *w = ones(k, OUT * IN, true);
  ii_linear_args a = {.real = II_F32, .x_dtype = II_F32, .rows = ROWS, .in = IN, .out = OUT};
  a.x = x;
  a.w = w;
  a.y = ones(k, ROWS * OUT, false);
  did(k, ii_cuda_linear_fwd(k, &a));
  expect(k, a.y, ROWS * OUT, want);
  ii_device_free(k, x, ROWS * IN * sizeof(float));
  ii_device_free(k, w, OUT * IN * sizeof(float));
}

static void sums(ii_kctx *k) {
  static const float want[] = {2000, 2000, 2000};
  ii_fill_args fill = {.real = II_F32, .y_dtype = II_F32, .rows = 1, .n = 6000, .value = 1};
  void *x;
  did(k, ii_device_alloc(k, 6000 * sizeof(float), &x));
  fill.y = x;
  did(k, ii_cuda_fill(k, &fill));
  ii_linear_args a = {.real = II_F32, .x_dtype = II_F32, .rows = 2000, .in = 1, .out = 3};
  a.gy = x;
  a.gb = ones(k, 3, false);
  did(k, ii_cuda_linear_bwd(k, &a));
  expect(k, a.gb, 3, want);
  ii_device_free(k, x, 6000 * sizeof(float));
}

/* Each as the first call of a pair of fresh engines, in both orders. */
static void first_calls(void **state) {
  static void (*const calls[])(ii_kctx *) = {convolution, product, sums};
  (void)state;
  for (int i = 0; i < 3; i++) {
    for (int g = 0; g < GPUS; g++) {
      const ii_engine_options o = {.device = II_CUDA, .index = g};
      did(&gpu[g], ii_engine_open(&gpu[g], &o));
    }
    for (int turn = 0; turn < 2 * GPUS; turn++)
      for (int j = 0; j < 3; j++) calls[(i + j) % 3](&gpu[turn % GPUS]);
    for (int g = 0; g < GPUS; g++) {
      did(&gpu[g], ii_device_sync(&gpu[g]));
      ii_engine_close(&gpu[g]);
    }
  }
}

/* The library of convolutions is opened late: with the other GPU current. */
static void library_opened_late(void **state) {
  (void)state;
  for (int g = 0; g < GPUS; g++) {
    const ii_engine_options o = {.device = II_CUDA, .index = g};
    did(&gpu[g], ii_engine_open(&gpu[g], &o));
  }
  void *x[GPUS], *gw[GPUS];
  for (int g = 0; g < GPUS; g++) {
    x[g] = ones(&gpu[g], SIDE * SIDE, true);
    gw[g] = ones(&gpu[g], TAPS, false);
  }
  for (int g = 0; g < GPUS; g++) { /* the other one was used last */
    ii_conv2d_args a = {.real = II_F32,
                        .x_dtype = II_F32,
                        .N = 1,
                        .H = SIDE,
                        .W = SIDE,
                        .C = 1,
                        .O = 1,
                        .Ho = SIDE,
                        .Wo = SIDE,
                        .kh = 3,
                        .kw = 3,
                        .stride = 1,
                        .pad = 1,
                        .x = x[g],
                        .gy = x[g],
                        .gw = gw[g]};
    did(&gpu[!g], ii_device_sync(&gpu[!g]));
    did(&gpu[g], ii_cuda_conv2d_bwd(&gpu[g], &a));
  }
  for (int g = 0; g < GPUS; g++) {
    did(&gpu[g], ii_device_sync(&gpu[g]));
    ii_device_free(&gpu[g], x[g], SIDE * SIDE * sizeof(float));
    ii_device_free(&gpu[g], gw[g], TAPS * sizeof(float));
    ii_engine_close(&gpu[g]);
  }
}

int main(void) {
  setenv("II_EMU_DEVICES", "2", 1);
  if (ii_cuda_device_count() < GPUS) {
    printf("fewer than two GPUs here: skipped\n");
    return 77;
  }
  const struct CMUnitTest tests[] = {cmocka_unit_test(first_calls),
                                     cmocka_unit_test(library_opened_late)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
