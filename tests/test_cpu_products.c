/* Matrix products of the CPU engine, whoever computes them here: against sums of integers, which
 * bf16 and fp32 hold exactly; and what those on AMX promise: no read behind an operand, a limit of
 * scratch memory, the same bits with every number of threads. */
#include "kernels/cpu_amx.h"
#include "kernels/dtype.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define LIMITED "limited" /* argument of the process with a limit of threads */

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

/* A copy that ends where memory that cannot be read begins; *mapped: for munmap. */
static uint16_t *at_the_end(const uint16_t *x, int64_t n, void **mapped, size_t *bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (size_t)n * sizeof *x;
  *bytes = (size + page - 1) / page * page + page;
  *mapped = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert_true(*mapped != MAP_FAILED);
  char *end = (char *)*mapped + *bytes - page;
  assert_int_equal(mprotect(end, page, PROT_NONE), 0);
  return memcpy(end - size, x, size);
}

/* No byte behind an operand is read: they may end where the process's memory does. In a team of one
 * thread as well, though the engine has four. */
static void operands_at_the_end_of_memory(void **state) {
  if (!ii_amx_available()) skip();
  for (size_t i = 1; i < sizeof all_sizes / sizeof *all_sizes; i++) {
    const sizes *s = &all_sizes[i];
    void *mapped[2];
    size_t bytes[2];
    uint16_t *a = integers(s->K * s->M, 6), *b = integers(s->K * s->N, 7);
    uint16_t *at_a = at_the_end(a, s->K * s->M, &mapped[0], &bytes[0]);
    uint16_t *at_b = at_the_end(b, s->K * s->N, &mapped[1], &bytes[1]);
    float *c = results(s->M * s->N);
    const ii_gemm_args g = product(s, at_a, at_b, false, c);
    ii_kctx k;
    open_engine(&k, 4);
    int failed = 0;
    if (ii_amx_serves(&g))
#pragma omp parallel num_threads(2)
#pragma omp single
      failed = ii_amx_gemm(&k, &g); /* a region in a region has one thread */
    assert_int_equal(failed, 0);
    for (int64_t e = 0; e < s->M * s->N && ii_amx_serves(&g); e += 1 + s->M * s->N / 999)
      assert_true(c[e] == (float)sum_of(a, b, s, e / s->N, e % s->N));
    ii_cpu_engine_close(&k);
    for (int j = 0; j < 2; j++) munmap(mapped[j], bytes[j]);
    free(a);
    free(b);
    free(c);
  }
}

/* Infinities and NaN reach their row or column of c, the zeros that fill up tiles nothing else. */
static void what_is_not_finite_stays_in_its_row(void **state) {
  const sizes s = {19, 37, 2077};
  uint16_t *a = integers(s.K * s.M, 8), *b = integers(s.K * s.N, 9);
  float *c = results(s.M * s.N);
  a[2076 * s.M + 18] = ii_f32_to_bf16(INFINITY);
  b[2076 * s.N + 36] = ii_f32_to_bf16(NAN);
  a[5 * s.M + 7] = ii_f32_to_bf16(NAN);
  ii_kctx k;
  open_engine(&k, 2);
  const ii_gemm_args g = product(&s, a, b, false, c);
  if (ii_cpu_gemm(&k, &g)) fail_msg("%s", k.error);
  for (int64_t m = 0; m < s.M; m++)
    for (int64_t n = 0; n < s.N; n++)
      assert_int_equal(!isfinite(c[m * s.N + n]), m == 7 || m == 18 || n == 36);
  ii_cpu_engine_close(&k);
  free(a);
  free(b);
  free(c);
}

/* Products of other kinds, which the library computes, between those: whose tiles are configured
 * does not matter. */
static void beside_the_library(void **state) {
  const sizes s = {64, 80, 96}, out = {64, 48, 80};
  uint16_t *a = integers(s.K * s.M, 10), *b = integers(s.K * s.N, 11);
  uint16_t *x = integers(out.M * out.K, 12), *w = integers(out.K * out.N, 13);
  float *c = results(s.M * s.N), *y = results(out.M * out.N);
  ii_kctx k;
  open_engine(&k, 2);
  const ii_gemm_args gradient = product(&s, a, b, false, c);
  ii_gemm_args forward = product(&out, x, w, false, y);
  forward.trans_a = false;
  for (int round = 0; round < 3; round++) {
    memset(c, 0xff, (size_t)(s.M * s.N) * sizeof *c);
    memset(y, 0xff, (size_t)(out.M * out.N) * sizeof *y);
    if (ii_cpu_gemm(&k, &gradient) || ii_cpu_gemm(&k, &forward)) fail_msg("%s", k.error);
    for (int64_t e = 0; e < s.M * s.N; e++)
      assert_true(c[e] == (float)sum_of(a, b, &s, e / s.N, e % s.N));
    for (int64_t e = 0; e < out.M * out.N; e++) {
      int64_t want = 0;
      for (int64_t t = 0; t < out.K; t++)
        want += (int64_t)ii_bf16_to_f32(x[e / out.N * out.K + t]) *
                (int64_t)ii_bf16_to_f32(w[t * out.N + e % out.N]);
      assert_true(y[e] == (float)want);
    }
  }
  ii_cpu_engine_close(&k);
  free(a);
  free(b);
  free(c);
  free(x);
  free(w);
  free(y);
}

/* Many terms of a large c are not cut into more slices than there is memory for. */
static void scratch_has_a_limit(void **state) {
  if (!ii_amx_available()) skip();
  const sizes s = {768, 1024, 1 << 15};
  uint16_t *a = calloc((size_t)(s.K * s.M), sizeof *a), *b = calloc((size_t)(s.K * s.N), sizeof *b);
  float *c = results(s.M * s.N);
  assert_true(a && b);
  a[(s.K - 1) * s.M + 5] = b[(s.K - 1) * s.N + 9] = ii_f32_to_bf16(2);
  ii_kctx k;
  open_engine(&k, 2);
  const ii_gemm_args g = product(&s, a, b, false, c);
  assert_int_equal(ii_amx_gemm(&k, &g), 0);
  assert_true(ii_cpu_engine_scratch_bytes(&k) < (int64_t)40 << 20);
  for (int64_t e = 0; e < s.M * s.N; e++) assert_true(c[e] == (e == 5 * s.N + 9 ? 4 : 0));
  ii_cpu_engine_close(&k);
  free(a);
  free(b);
  free(c);
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

/* What is to be seen in a process whose OMP_THREAD_LIMIT is 1. */
static int limited_process(void) {
  ii_kctx k = {0};
  if (ii_cpu_engine_open(&k, 2) == 0 || !strstr(k.error, "OMP_THREAD_LIMIT allows 1")) return 1;
  if (ii_cpu_engine_open(&k, 0) || k.threads != 1) return 1;
  ii_cpu_engine_close(&k);
  return 0;
}

/* A limit set from outside is kept to, or an error: products in a team smaller than was asked for
 * were wrong. */
static void limit_of_threads(void **state) {
  const pid_t child = fork();
  assert_true(child >= 0);
  if (!child) {
    setenv("OMP_THREAD_LIMIT", "1", 1);
    execl("/proc/self/exe", "test_cpu_products", LIMITED, (char *)NULL);
    _exit(127);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], LIMITED)) return limited_process();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sums_of_integers_are_exact),
      cmocka_unit_test(operands_at_the_end_of_memory),
      cmocka_unit_test(what_is_not_finite_stays_in_its_row),
      cmocka_unit_test(beside_the_library),
      cmocka_unit_test(scratch_has_a_limit),
      cmocka_unit_test(threads_do_not_change_bits),
      cmocka_unit_test(limit_of_threads),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
