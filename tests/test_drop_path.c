/* Kernels keep and shift, on every engine: the mask is the one that the stream's uniform numbers
 * give, whatever its length and place. */
#include "autograd/kernel_call.h"
#include "autograd/rng.h"
#include "autograd/tape.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static ii_ctx *open_ctx(ii_device device, ii_dtype real) {
  ii_error err = {0};
  ii_ctx *c = ii_ctx_open(
      &(ii_ctx_options){.device = device, .threads = 1, .real = real, .compute = real}, &err);
  if (!c) fail_msg("%s", err.text);
  return c;
}

/* Every other draw finds the step in the engine's memory, where a recorded step finds it. */
static void mask_of(ii_ctx *c, int64_t n, double rate, uint64_t draw, double *got) {
  const int64_t step[] = {123};
  ii_tensor *y = ii_tensor_new(c, c->real, 1, &n);
  ii_tensor *at = ii_tensor_from_host(c, II_I32, 1, (int64_t[]){2}, step);
  ii_run_keep(c, &(ii_keep_args){.real = c->real,
                                 .n = n,
                                 .rate = rate,
                                 .seed = 7,
                                 .purpose = II_RNG_DROP_PATH,
                                 .step = draw % 2 ? 5 : 123,
                                 .step_at = draw % 2 ? ii_data(at) : NULL,
                                 .draw = draw,
                                 .y = ii_data(y)});
  ii_tensor_read_f64(c, y, got);
  assert_true(ii_ok(c));
  ii_tape_reset(c);
}

static void keep_follows_the_stream(ii_ctx *c) {
  static const int64_t sizes[] = {0, 1, 7, 128, 1025};
  static const double rates[] = {0.1, 0.5, 1.0 / 3, 0.999};
  double got[1025];
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (size_t j = 0; j < sizeof rates / sizeof *rates; j++) {
      mask_of(c, sizes[i], rates[j], i, got);
      ii_rng r = ii_rng_make(7, II_RNG_DROP_PATH, 123, i);
      for (int64_t n = 0; n < sizes[i]; n++) {
        double want = ii_rng_uniform(&r) >= rates[j] ? 1 / (1 - rates[j]) : 0;
        if (c->real == II_F32) want = (float)want;
        if (got[n] != want) fail_msg("sample %lld: %.9g, not %.9g", (long long)n, got[n], want);
      }
    }
}

/* One in three is dropped: of 1025, 342 with a standard deviation of 15. */
static void keep_has_its_rate(ii_ctx *c) {
  double got[1025];
  int dropped = 0;
  mask_of(c, 1025, 1.0 / 3, 9, got);
  for (int i = 0; i < 1025; i++) dropped += got[i] == 0;
  assert_in_range(dropped, 342 - 75, 342 + 75);
}

static void shift_adds(ii_ctx *c) {
  double v[3] = {1, -2, 0.5};
  ii_tensor *y = ii_tensor_new(c, c->real, 1, (int64_t[]){3});
  ii_tensor_write_f64(c, y, v);
  ii_run_shift(c, &(ii_shift_args){.real = c->real, .n = 3, .value = 1.5, .y = ii_data(y)});
  ii_tensor_read_f64(c, y, v);
  assert_true(v[0] == 2.5 && v[1] == -0.5 && v[2] == 2);
  ii_tape_reset(c);
}

static void on_every_engine(void **state) {
  for (int device = II_CPU; device <= (ii_cuda_device_count() ? II_CUDA : II_CPU); device++)
    for (int real = II_F32; real <= II_F64; real++) {
      ii_ctx *c = open_ctx((ii_device)device, (ii_dtype)real);
      keep_follows_the_stream(c);
      keep_has_its_rate(c);
      shift_adds(c);
      ii_ctx_close(c);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(on_every_engine)};
  return cmocka_run_group_tests_name("drop path", tests, NULL, NULL);
}
