/* Matrix products of the CPU engine, whoever computes them here: against sums of integers, which
 * bf16 and fp32 hold exactly, and for the weights' gradients of one layer with different numbers of
 * threads. */
#include "kernels/cpu_amx.h"
#include "kernels/dtype.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

typedef struct {
  int64_t M, N, K;
} sizes;

/* Single columns, rests of tiles and pieces, both orders of a narrow and a wide side, more than one
 * block either way, several slices, the last one short. */
static const sizes all_sizes[] = {{1, 1, 1},     {3, 5, 31},      {1, 40, 32},     {27, 32, 33},
                                  {64, 48, 95},  {31, 112, 513},  {112, 33, 2100}, {300, 16, 64},
                                  {16, 600, 64}, {288, 544, 300}, {544, 288, 300}, {17, 65, 9000}};

static uint32_t next(uint32_t *seed) {
  *seed = *seed * 1664525u + 1013904223u;
  return *seed >> 8;
}

static uint16_t *integers(int64_t n, uint32_t seed) {
  uint16_t *x = malloc((size_t)n * sizeof *x);
  assert_non_null(x);
  for (int64_t i = 0; i < n; i++) x[i] = ii_f32_to_bf16((float)(next(&seed) % 9) - 4);
  return x;
}

static float *results(int64_t n) {
  float *c = malloc((size_t)(n + 1) * sizeof *c);
  assert_non_null(c);
  for (int64_t i = 0; i <= n; i++) c[i] = (float)(i % 7) - 3;
  return c;
}

/* c[m,n] of a stored [K,M] and b stored [K,N]. */
static int64_t sum_of(const uint16_t *a, const uint16_t *b, const sizes *s, int64_t m, int64_t n) {
  int64_t sum = 0;
  for (int64_t t = 0; t < s->K; t++)
    sum += (int64_t)ii_bf16_to_f32(a[t * s->M + m]) * (int64_t)ii_bf16_to_f32(b[t * s->N + n]);
  return sum;
}

static void open_engine(ii_kctx *k, int threads) {
  memset(k, 0, sizeof *k);
  if (ii_cpu_engine_open(k, threads)) fail_msg("%s", k->error);
}

static ii_gemm_args product(const sizes *s, const uint16_t *a, const uint16_t *b, bool accumulate,
                            float *c) {
  return (ii_gemm_args){.ab_dtype = II_BF16,
                        .c_dtype = II_F32,
                        .batch = 1,
                        .M = s->M,
                        .N = s->N,
                        .K = s->K,
                        .trans_a = true,
                        .accumulate = accumulate,
                        .alpha = 1,
                        .a = a,
                        .b = b,
                        .c = c};
}

static void sums_of_integers_are_exact(void **state) {
  for (size_t i = 0; i < sizeof all_sizes / sizeof *all_sizes; i++)
    for (int threads = 1; threads <= 3; threads++) {
      const sizes *s = &all_sizes[i];
      const bool accumulate = (i + (size_t)threads) % 2;
      uint16_t *a = integers(s->K * s->M, 1), *b = integers(s->K * s->N, 2);
      float *c = results(s->M * s->N), *old = results(s->M * s->N);
      ii_kctx k;
      open_engine(&k, threads);
      const ii_gemm_args g = product(s, a, b, accumulate, c);
      if (ii_cpu_gemm(&k, &g)) fail_msg("%s", k.error);
      for (int64_t e = 0; e < s->M * s->N; e++) {
        const int64_t want =
            sum_of(a, b, s, e / s->N, e % s->N) + (accumulate ? (int64_t)old[e] : 0);
        if (c[e] != (float)want)
          fail_msg("%lld x %lld, %lld terms, %d threads: element %lld is %g, not %lld",
                   (long long)s->M, (long long)s->N, (long long)s->K, threads, (long long)e,
                   (double)c[e], (long long)want);
      }
      assert_true(c[s->M * s->N] == old[s->M * s->N]); /* nothing behind the end */
      ii_cpu_engine_close(&k);
      free(a);
      free(b);
      free(c);
      free(old);
    }
}

/* What ii_amx_gemm promises: the bits do not depend on the number of threads. */
static void threads_do_not_change_bits(void **state) {
  if (!ii_amx_available()) skip();
  for (size_t i = 0; i < sizeof all_sizes / sizeof *all_sizes; i++) {
    const sizes *s = &all_sizes[i];
    const size_t bytes = (size_t)(s->M * s->N) * sizeof(float);
    uint16_t *a = integers(s->K * s->M, 3), *b = integers(s->K * s->N, 4);
    uint32_t seed = 5;
    for (int64_t e = 0; e < s->K * s->M; e++) a[e] ^= next(&seed) & 0x7f; /* no more integers */
    float *first = results(s->M * s->N), *c = results(s->M * s->N);
    for (int threads = 1; threads <= 5; threads++) {
      const ii_gemm_args g = product(s, a, b, false, threads == 1 ? first : c);
      if (!ii_amx_serves(&g)) continue;
      ii_kctx k;
      open_engine(&k, threads);
      assert_int_equal(ii_amx_gemm(&k, &g), 0);
      if (threads > 1) assert_memory_equal(c, first, bytes);
      ii_cpu_engine_close(&k);
    }
    free(a);
    free(b);
    free(first);
    free(c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sums_of_integers_are_exact),
      cmocka_unit_test(threads_do_not_change_bits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
