/* Kernels of the optimizer and of gradient norms: guarded runs at ragged sizes, and sums that do
 * not depend on the number of threads. Their values are tested in test_optimizer.c. */
#include "op_guard.h"
#include "kernels/buffers.h"
#include "autograd/rng.h"
#include "kernels/device.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const int64_t sizes[] = {0, 1, 7, 31, 33, 71, 1025, 65535, 65536, 65537, 200001};
enum { SIZES = sizeof sizes / sizeof *sizes, BUFFERS = 5 };

static void open_engine(ii_kctx *k, int threads) {
  if (ii_engine_open(k, &(ii_engine_options){.threads = threads})) fail_msg("%s", k->error);
}

static void *numbers(ii_dtype t, int64_t n, uint64_t stream, bool positive) {
  void *p = malloc((size_t)n * ii_dtype_size(t) + 8);
  assert_non_null(p);
  ii_rng r = ii_rng_make(3, II_RNG_TEST, stream, 0);
  for (int64_t i = 0; i < n; i++) {
    double v = positive ? ii_rng_uniform(&r) : ii_rng_normal(&r);
    if (t == II_F64)
      ((double *)p)[i] = v;
    else
      ((float *)p)[i] = (float)v;
  }
  return p;
}

static void sum_of_squares(void **state) {
  ii_kctx k[2];
  open_engine(&k[0], 1);
  open_engine(&k[1], 2);
  for (int i = 0; i < SIZES; i++)
    for (ii_dtype real = II_F32; real <= II_F64; real++) {
      void *x = numbers(real, sizes[i], (uint64_t)i, false);
      double sum[2] = {-1, -1};
      long double want = 0;
      for (int64_t j = 0; j < sizes[i]; j++) {
        long double v = real == II_F64 ? ((double *)x)[j] : ((float *)x)[j];
        want += v * v;
      }
      ii_guard_on(true);
      for (int t = 0; t < 2; t++)
        assert_int_equal(ii_cpu_sumsq(&k[t], &(ii_sumsq_args){real, sizes[i], x, &sum[t]}), 0);
      ii_guard_on(false);
      assert_memory_equal(&sum[0], &sum[1], sizeof *sum);
      assert_true(fabs(sum[0] - (double)want) <= 1e-13 * (double)want);
      free(x);
    }
  ii_engine_close(&k[0]);
  ii_engine_close(&k[1]);
}

/* Element-wise, so the same bits for every number of threads. */
static void updates(void **state) {
  ii_kctx k[2];
  open_engine(&k[0], 1);
  open_engine(&k[1], 2);
  ii_guard_on(true);
  for (int i = 0; i < SIZES; i++)
    for (int kind = 0; kind < 6; kind++) {
      ii_dtype real = kind % 2 ? II_F64 : II_F32;
      void *b[2][BUFFERS];
      uint16_t *low[2];
      int64_t n = sizes[i];
      for (int t = 0; t < 2; t++) {
        for (int j = 0; j < BUFFERS; j++) b[t][j] = numbers(real, n, (uint64_t)j, j == 2);
        void **v = b[t];
        low[t] = calloc((size_t)n + 1, sizeof **low);
        uint16_t *l = real == II_F32 ? low[t] : NULL;
        int status = 0;
        if (kind / 2 == 0)
          status =
              ii_cpu_adamw(&k[t], &(ii_adamw_args){real, n, 3, 1e-3, 0.9, 0.999, 1e-8, 0.05, 0.5,
                                                   0.99, v[0], v[1], v[2], v[3], v[4], l});
        else if (kind / 2 == 1)
          status = ii_cpu_sgd(&k[t], &(ii_sgd_args){real, n, 2, 0.1, 0.9, 1e-4, 0.5, 0.99, true,
                                                    v[0], v[1], v[3], v[4], l});
        else
          status = ii_cpu_ema(&k[t], &(ii_ema_args){real, n, 0.99, v[3], v[0]});
        assert_int_equal(status, 0);
      }
      for (int j = 0; j < BUFFERS; j++) {
        assert_false(n && memcmp(b[0][j], b[1][j], (size_t)n * ii_dtype_size(real)));
        free(b[0][j]);
        free(b[1][j]);
      }
      assert_false(n && memcmp(low[0], low[1], (size_t)n * sizeof **low));
      free(low[0]);
      free(low[1]);
    }
  ii_guard_on(false);
  assert_true(ii_guard_checked(II_K_adamw) && ii_guard_checked(II_K_sgd) &&
              ii_guard_checked(II_K_ema));
  ii_engine_close(&k[0]);
  ii_engine_close(&k[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sum_of_squares),
      cmocka_unit_test(updates),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
