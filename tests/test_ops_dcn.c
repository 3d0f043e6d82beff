/* What DCN must do beyond its formula: an image in a batch of 8 equals the image alone, taps that
 * are not numbers contribute nothing, and at pixel centres the derivative is the right one. */
#include "op_dcn_cases.h"
#include "op_guard.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { SEED = 41 };

static ii_tensor *call_v3(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_dcnv3(c, in[0], ii_concat(c, in[1], in[2]), &k->dcn);
}

static ii_tensor *call_v4(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_dcnv4(c, in[0], in[1], &k->dcn);
}

/* 3x3 window, padding 1; v4 rows are padded to a multiple of 8 */
static op_case make_case(ii_op op, int64_t N, int64_t size, int G, int D, int stride,
                         bool softmax) {
  int64_t out = (size - 1) / stride + 1;
  op_case k = {.op = op, .name = "dcn", .call = op == II_OP_dcnv3 ? call_v3 : call_v4};
  k.dcn = (ii_dcn_geometry){G, 3, 3, stride, stride, 1, 1, 1, 1, false, softmax, 1.0};
  k.in[0] = (op_input){IN_ACT, DRAW_NORMAL, 4, {N, size, size, G * D}, 0};
  if (op == II_OP_dcnv3) {
    k.in[1] = (op_input){IN_ACT, DRAW_OFFSET, 4, {N, out, out, G * 18}, 0};
    k.in[2] = (op_input){IN_ACT, DRAW_NORMAL, 4, {N, out, out, G * 9}, 0};
  } else {
    k.in[1] = (op_input){IN_ACT, DRAW_OFFSET, 4, {N, out, out, (G * 27 + 7) / 8 * 8}, 0};
  }
  return k;
}

typedef struct {
  op_case k;
  double *in[OP_INPUTS];
  double *proj;
  int64_t n_out;
} problem;

static problem make_problem(op_case k) {
  problem p = {.k = k};
  ii_rng r = ii_rng_make(SEED, II_RNG_TEST, 0, 0);
  op_draw_inputs(&p.k, &r, p.in);
  const int64_t *x = k.in[0].shape, *o = k.in[1].shape;
  p.n_out = o[0] * o[1] * o[2] * x[3];
  p.proj = malloc((size_t)p.n_out * sizeof *p.proj);
  assert_non_null(p.proj);
  for (int64_t i = 0; i < p.n_out; i++) p.proj[i] = op_round(ii_rng_normal(&r));
  return p;
}

static void problem_free(problem *p) {
  for (int i = 0; i < OP_INPUTS; i++) free(p->in[i]);
  free(p->proj);
}

static void want_bits(const double *a, const double *b, int64_t n, const char *what,
                      int64_t image) {
  if (memcmp(a, b, (size_t)n * sizeof *a))
    fail_msg("%s of image %lld depends on its batch", what, (long long)image);
}

static void check_batch(op_case k, op_mode mode) {
  problem p = make_problem(k);
  int64_t N = k.in[0].shape[0];
  op_result all = op_run(mode, 2, &k, p.in, p.proj);
  for (int i = 0; i < 3; i++) k.in[i].shape[0] = 1;
  for (int64_t image = 0; image < N; image += 3) {
    double *in[OP_INPUTS] = {0};
    int64_t n_out = p.n_out / N;
    for (int i = 0; i < 3; i++)
      if (p.in[i]) in[i] = p.in[i] + image * op_input_numel(&k.in[i]);
    op_result one = op_run(mode, 2, &k, in, p.proj + image * n_out);
    want_bits(one.out, all.out + image * n_out, n_out, "result", image);
    for (int i = 0; i < 3; i++)
      if (one.grad[i]) {
        int64_t n = op_input_numel(&k.in[i]);
        want_bits(one.grad[i], all.grad[i] + image * n, n, "gradient", image);
      }
    op_result_free(&one);
  }
  op_result_free(&all);
  problem_free(&p);
}

static void image_does_not_depend_on_batch(void **state) {
  static const int sizes[] = {7, 14, 28};
  for (int i = 0; i < 3; i++) {
    check_batch(make_case(II_OP_dcnv3, 8, sizes[i], 2, 16, 1, true), MODE_F32);
    check_batch(make_case(II_OP_dcnv4, 8, sizes[i], 2, 16, 1, false), MODE_F32);
    check_batch(make_case(II_OP_dcnv3, 8, sizes[i], 1, 16, 2, true), MODE_BF16);
    check_batch(make_case(II_OP_dcnv4, 8, sizes[i], 1, 8, 1, false), MODE_BF16);
  }
}

static void want_close(const double *a, const double *b, int64_t n, const char *what) {
  for (int64_t i = 0; i < n; i++)
    if (!(fabs(a[i] - b[i]) <= 1e-12 * (1 + fabs(b[i]))))
      fail_msg("%s %lld is %.17g, not %.17g", what, (long long)i, a[i], b[i]);
}

/* A tap whose offset is NaN or infinite is as one with modulation 0: same result, same gradients of
 * all others, none of its own. */
static void check_bad_offsets(bool softmax) {
  static const double bad[] = {NAN, INFINITY, -INFINITY, 1e30, -1e30};
  problem p = make_problem(make_case(II_OP_dcnv3, 2, 7, 2, 8, 1, softmax));
  int64_t taps = op_input_numel(&p.k.in[2]);
  bool *off = calloc((size_t)taps, sizeof *off);
  assert_non_null(off);
  ii_rng r = ii_rng_make(SEED, II_RNG_TEST, 1, 0);
  double *broken[OP_INPUTS] = {p.in[0], NULL, p.in[2]};
  broken[1] = malloc((size_t)(2 * taps) * sizeof **broken);
  assert_non_null(broken[1]);
  memcpy(broken[1], p.in[1], (size_t)(2 * taps) * sizeof **broken);
  for (int64_t t = 0; t < taps; t += 1 + (int64_t)ii_rng_below(&r, 9)) {
    off[t] = true;
    broken[1][2 * t + (int64_t)ii_rng_below(&r, 2)] = bad[ii_rng_below(&r, 5)];
    p.in[1][2 * t] = p.in[1][2 * t + 1] = 1000; /* outside, and a number */
  }
  for (op_mode m = MODE_F64; m < op_modes(); m++) {
    ii_guard_on(true);
    op_result got = op_run(m, 2, &p.k, broken, p.proj);
    ii_guard_on(false);
    op_result want = op_run(m, 2, &p.k, p.in, p.proj);
    want_close(got.out, want.out, want.n, "result");
    for (int i = 0; i < 3; i++)
      want_close(got.grad[i], want.grad[i], op_input_numel(&p.k.in[i]), "gradient");
    for (int64_t t = 0; t < taps; t++)
      if (off[t])
        assert_true(got.grad[1][2 * t] == 0 && got.grad[1][2 * t + 1] == 0 &&
                    (softmax || got.grad[2][t] == 0));
    op_result_free(&got);
    op_result_free(&want);
  }
  free(off);
  free(broken[1]);
  problem_free(&p);
}

static void offsets_that_are_no_numbers(void **state) {
  check_bad_offsets(false);
  check_bad_offsets(true);
}

static double loss(problem *p) {
  op_result r = op_run(MODE_F64, 1, &p->k, p->in, NULL);
  long double s = 0;
  for (int64_t i = 0; i < r.n; i++) s += (long double)r.out[i] * p->proj[i];
  op_result_free(&r);
  return (double)s;
}

/* At pixel centres the result is continuous with a kink. Between them it is linear in each
 * coordinate, so the difference quotient to the right is exact up to rounding. Taps at -1 are
 * outside by definition (their right derivative is not zero) and are left out. */
static void right_derivative_at_pixel_centres(void **state) {
  enum { SIZE = 5 };
  problem p = make_problem(make_case(II_OP_dcnv3, 1, SIZE, 2, 4, 1, true));
  int64_t n = op_input_numel(&p.k.in[1]);
  for (int64_t i = 0; i < n; i++) p.in[1][i] = (double)(i * 7 % 5) - 2;
  op_result r = op_run(MODE_F64, 1, &p.k, p.in, p.proj);
  double before = loss(&p);
  int inside = 0, seen = 0;
  for (int64_t i = 0; i < n; i += 3) {
    int64_t tap = i / 2 % 9, pixel = i / 36, axis = i % 2;
    double base = (double)(axis ? pixel / SIZE : pixel % SIZE) - 1;
    double at = base + op_dcn_position(&p.k.dcn, (int)axis, (int)tap, p.in[1][i]);
    if (at == -1) continue;
    double old = p.in[1][i], h = 0.25;
    p.in[1][i] += h;
    double quotient = (loss(&p) - before) / h;
    p.in[1][i] = old;
    if (!(fabs(quotient - r.grad[1][i]) <= 1e-11))
      fail_msg("offset %lld: gradient %.15g, to the right %.15g", (long long)i, r.grad[1][i],
               quotient);
    seen++;
    inside += quotient != 0;
  }
  assert_true(seen > 100 && inside > 50);
  op_result_free(&r);
  problem_free(&p);
}

/* Offsets of zero and equal modulations: a plain convolution with known sums. */
static void zero_offsets_are_a_window(void **state) {
  problem p = make_problem(make_case(II_OP_dcnv3, 1, 4, 1, 2, 1, true));
  int64_t n = op_input_numel(&p.k.in[1]);
  memset(p.in[1], 0, (size_t)n * sizeof **p.in);
  memset(p.in[2], 0, (size_t)(n / 2) * sizeof **p.in);
  op_result r = op_run(MODE_F64, 1, &p.k, p.in, NULL);
  for (int h = 0; h < 4; h++)
    for (int w = 0; w < 4; w++)
      for (int c = 0; c < 2; c++) {
        double sum = 0;
        for (int i = h - 1; i <= h + 1; i++)
          for (int j = w - 1; j <= w + 1; j++)
            if (i >= 0 && i < 4 && j >= 0 && j < 4) sum += p.in[0][(i * 4 + j) * 2 + c] / 9;
        assert_true(fabs(r.out[(h * 4 + w) * 2 + c] - sum) < 1e-14);
      }
  op_result_free(&r);
  problem_free(&p);
}

/* v4 is v3 with offsets and modulations in one row. */
static void packed_and_separate_agree(void **state) {
  enum { G = 3, ROW = 88 };
  problem v3 = make_problem(make_case(II_OP_dcnv3, 2, 6, G, 5, 2, true));
  problem v4 = make_problem(make_case(II_OP_dcnv4, 2, 6, G, 5, 2, true));
  int64_t rows = op_input_numel(&v4.k.in[1]) / ROW;
  memcpy(v4.in[0], v3.in[0], (size_t)op_input_numel(&v3.k.in[0]) * sizeof **v3.in);
  memcpy(v4.proj, v3.proj, (size_t)v3.n_out * sizeof *v3.proj);
  for (int64_t q = 0; q < rows * G; q++) {
    double *to = v4.in[1] + q / G * ROW + q % G * 27;
    memcpy(to, v3.in[1] + q * 18, 18 * sizeof *to);
    memcpy(to + 18, v3.in[2] + q * 9, 9 * sizeof *to);
  }
  op_result a = op_run(MODE_F32, 2, &v3.k, v3.in, v3.proj);
  op_result b = op_run(MODE_F32, 2, &v4.k, v4.in, v4.proj);
  want_close(b.out, a.out, a.n, "result");
  want_close(b.grad[0], a.grad[0], op_input_numel(&v3.k.in[0]), "gradient of x");
  for (int64_t q = 0; q < rows * G; q++) {
    const double *from = b.grad[1] + q / G * ROW + q % G * 27;
    want_close(from, a.grad[1] + q * 18, 18, "gradient of an offset");
    want_close(from + 18, a.grad[2] + q * 9, 9, "gradient of a modulation");
  }
  for (int64_t i = 0; i < rows; i++)
    for (int j = 27 * G; j < ROW; j++) assert_true(b.grad[1][i * ROW + j] == 0);
  op_result_free(&a);
  op_result_free(&b);
  problem_free(&v3);
  problem_free(&v4);
}

static int close_contexts(void **state) {
  op_ctx_close_all();
  return 0;
}

int main(void) {
  const int missing = op_device_missing();
  if (missing) return missing;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(image_does_not_depend_on_batch),
      cmocka_unit_test(offsets_that_are_no_numbers),
      cmocka_unit_test(right_derivative_at_pixel_centres),
      cmocka_unit_test(zero_offsets_are_a_window),
      cmocka_unit_test(packed_and_separate_agree),
  };
  return cmocka_run_group_tests(tests, NULL, close_contexts);
}
