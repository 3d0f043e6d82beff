/* Numbers that no numeric gradient meets: ties, NaN, infinities, numbers near the ends of the
 * range, and labels that name no class. Lengths leave a rest beside whole vectors. */
#include "op_cases.h"
#include "autograd/op_common.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { LONG = 71 };

static const ii_dtype types[][2] = {
    {II_F32, II_F32}, {II_F64, II_F64}, {II_F32, II_BF16}, {II_F32, II_F16}};
#define TYPES (op_device() == II_CUDA ? 4 : 3)

static ii_ctx *open_ctx(int type) {
  ii_error err = {0};
  ii_ctx *c = ii_ctx_open(
      &(ii_ctx_options){
          .device = op_device(), .threads = 2, .real = types[type][0], .compute = types[type][1]},
      &err);
  if (!c) fail_msg("%s", err.text);
  c->recording = true;
  return c;
}

static ii_tensor *tensor(ii_ctx *c, int ndim, const int64_t *shape, const double *v) {
  ii_tensor *t = ii_tensor_new(c, c->compute, ndim, shape);
  ii_tensor_write_f64(c, t, v);
  t->needs_grad = true;
  return t;
}

/* ---- element-wise ---- */

typedef struct {
  ii_tensor *(*op)(ii_ctx *, ii_tensor *);
  const char *name;
  double at_minus_infinity, at_infinity; /* limits */
} function;

static void functions_at_the_ends(void **state) {
  static const function f[] = {{ii_gelu, "gelu", 0, INFINITY},
                               {ii_relu, "relu", 0, INFINITY},
                               {ii_silu, "silu", 0, INFINITY},
                               {ii_sigmoid, "sigmoid", 0, 1}};
  static const double far[] = {88, 89, 100, 1e4, 1e30};
  for (int type = 0; type < TYPES; type++)
    for (int i = 0; i < 4; i++) {
      ii_ctx *c = open_ctx(type);
      double x[LONG], y[LONG];
      const double most = types[type][1] == II_F16 ? 65504 : INFINITY;
      for (int k = 0; k < LONG; k++)
        x[k] = k % 7 == 6 ? NAN : (k % 2 ? -1 : 1) * fmin(most, far[k / 7 % 5]);
      ii_tensor *t = f[i].op(c, tensor(c, 1, (int64_t[]){LONG}, x));
      ii_tensor_read_f64(c, t, y);
      for (int k = 0; k < LONG; k++) {
        double want = x[k] < 0 ? f[i].at_minus_infinity : isinf(f[i].at_infinity) ? x[k] : 1;
        bool good = isnan(x[k]) ? isnan(y[k]) : fabs(y[k] - want) <= 1e-2 * fabs(want) + 1e-30;
        if (!good) fail_msg("%s(%g) is %g", f[i].name, x[k], y[k]);
      }
      assert_true(ii_ok(c));
      ii_ctx_close(c);
    }
}

/* Half a unit in the last place of bf16, a little more, and what underflow may lose. */
static double bf16_tolerance(double want) {
  return want == 0 ? 1e-30 : 0.502 * ldexp(1, (int)floor(log2(fabs(want))) - 7) + 1e-30;
}

/* GELU and its gradient of every finite bf16 number against erf: an engine may look them up. */
static void gelu_of_every_bf16_number(void **state) {
  enum { C = 256, ROWS = 255, N = ROWS * C };
  double *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y), *gx = malloc(N * sizeof *gx);
  assert_true(x && y && gx);
  ii_ctx *c = open_ctx(2);
  ii_tensor *in = ii_tensor_new(c, II_BF16, 2, (int64_t[]){ROWS, C});
  ii_tensor *out = ii_tensor_new(c, II_BF16, 2, (int64_t[]){ROWS, C});
  ii_tensor *sums = ii_tensor_new(c, II_F32, 1, (int64_t[]){C});
  for (int i = 0; i < N; i++) /* 255 exponents, both signs */
    x[i] = (double)ii_bf16_to_f32((uint16_t)((i & 1) << 15 | i >> 1));
  ii_tensor_write_f64(c, in, x);
  ii_eltwise_args a = {.real = II_F32, .x_dtype = II_BF16, .y_dtype = II_BF16, .n = N, .C = C};
  a.x = ii_data(in);
  a.y = ii_data(out);
  ii_run_gelu_fwd(c, &a);
  ii_tensor_read_f64(c, out, y);
  for (int i = 0; i < N; i++) gx[i] = 1;
  ii_tensor_write_f64(c, out, gx);
  a.gy = a.gx = ii_data(out);
  a.gb = ii_data(sums);
  ii_run_gelu_bwd(c, &a);
  ii_tensor_read_f64(c, out, gx);
  double got[C], column[C] = {0};
  ii_tensor_read_f64(c, sums, got);
  assert_true(ii_ok(c));
  for (int i = 0; i < N; i++) {
    const double below = 0.5 * erfc(-x[i] * M_SQRT1_2), value = x[i] * below;
    const double slope = below + x[i] * exp(-0.5 * x[i] * x[i]) / sqrt(2 * M_PI);
    if (!(fabs(y[i] - value) <= bf16_tolerance(value)))
      fail_msg("gelu(%g) is %g, not %g", x[i], y[i], value);
    if (!(fabs(gx[i] - slope) <= bf16_tolerance(slope) + 3e-7))
      fail_msg("gelu'(%g) is %g, not %g", x[i], gx[i], slope);
    column[i % C] += slope;
  }
  for (int j = 0; j < C; j++) assert_true(fabs(got[j] - column[j]) <= 1e-6 * ROWS);
  ii_ctx_close(c);
  free(x);
  free(y);
  free(gx);
}

/* ---- max pooling ---- */

/* A 2x2 window of stride 2 over a 2x4 image of LONG channels: the same values in all channels. */
static void pool(int type, const double *x, double *y, double *gx) {
  ii_ctx *c = open_ctx(type);
  double wide[8 * LONG];
  for (int i = 0; i < 8 * LONG; i++) wide[i] = x[i / LONG];
  ii_tensor *in = tensor(c, 4, (int64_t[]){1, 2, 4, LONG}, wide);
  ii_tensor *out = ii_max_pool2d(c, in, 2, 2, 0);
  double all[2 * LONG], ones[2 * LONG];
  ii_tensor_read_f64(c, out, all);
  for (int i = 0; i < 2 * LONG; i++) ones[i] = 1;
  ii_tensor *w = ii_tensor_new(c, c->compute, 2, (int64_t[]){1, 2 * LONG});
  ii_tensor_write_f64(c, w, ones);
  ii_backward(c, ii_linear(c, ii_reshape(c, out, 2, (int64_t[]){1, -1}), w, NULL), 1);
  double g[8 * LONG];
  ii_tensor_read_f64(c, in->grad, g);
  for (int i = 0; i < 8; i++)
    for (int k = 0; k < LONG; k++) {
      assert_true(g[i * LONG + k] == g[i * LONG]);
      gx[i] = g[i * LONG];
    }
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < LONG; k++)
      assert_true(all[i * LONG + k] == all[i * LONG] || isnan(all[i * LONG + k]));
  y[0] = all[0];
  y[1] = all[LONG];
  assert_true(ii_ok(c));
  ii_ctx_close(c);
}

static void maximum_of_ties_and_nan(void **state) {
  static const struct {
    double x[8], y[2];
    int winner[2];
  } cases[] = {{{1, 1, 5, 7, 1, 1, 7, 7}, {1, 7}, {0, 3}}, /* the first of equal ones */
               {{2, 3, NAN, 9, 3, 1, 9, 9}, {3, NAN}, {1, 2}},
               {{2, NAN, 1, 2, 3, 1, 9, NAN}, {NAN, NAN}, {1, 7}},
               {{-INFINITY, -INFINITY, INFINITY, 1, -INFINITY, -INFINITY, 2, INFINITY},
                {-INFINITY, INFINITY},
                {0, 2}}};
  for (int type = 0; type < TYPES; type++)
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
      double y[2], gx[8];
      pool(type, cases[i].x, y, gx);
      for (int k = 0; k < 2; k++)
        assert_true(isnan(cases[i].y[k]) ? isnan(y[k]) : y[k] == cases[i].y[k]);
      for (int k = 0; k < 8; k++)
        assert_true(gx[k] == (k == cases[i].winner[0] || k == cases[i].winner[1]));
    }
}

/* ---- softmax and losses ---- */

static void softmax_of_infinities_and_nan(void **state) {
  for (int type = 0; type < TYPES; type++) {
    ii_ctx *c = open_ctx(type);
    double x[3 * LONG], y[3 * LONG];
    for (int i = 0; i < LONG; i++) {
      x[i] = i == 5 || i == LONG - 1 ? 1e4 : -INFINITY; /* halves */
      x[LONG + i] = i == 40 ? NAN : i;                  /* all NaN */
      x[2 * LONG + i] = -3e4;                           /* all the same */
    }
    ii_tensor_read_f64(c, ii_softmax(c, tensor(c, 2, (int64_t[]){3, LONG}, x), c->real), y);
    for (int i = 0; i < LONG; i++) {
      assert_true(y[i] == (i == 5 || i == LONG - 1 ? 0.5 : 0));
      assert_true(isnan(y[LONG + i]));
      assert_true(fabs(y[2 * LONG + i] * LONG - 1) < 1e-6);
    }
    assert_true(ii_ok(c));
    ii_ctx_close(c);
  }
}

static void labels_outside_the_classes(void **state) {
  static const int32_t bad[] = {-1, LONG, INT32_MAX};
  for (int i = 0; i < 3; i++) {
    ii_ctx *c = open_ctx(0);
    const double x[2 * LONG] = {0};
    ii_tensor *logits = tensor(c, 2, (int64_t[]){2, LONG}, x);
    const int32_t labels[] = {3, bad[i]};
    ii_tensor *t = ii_tensor_from_host(c, II_I32, 1, (int64_t[]){2}, labels);
    ii_tensor *loss = ii_smooth_cross_entropy(c, logits, t, 0.1);
    if (op_device() == II_CPU) {
      assert_int_equal(c->err.status, II_ERR_DEVICE);
      assert_non_null(strstr(c->err.text, "sample 1 is not one of 71 classes"));
    } else { /* a GPU cannot stop here: the loss is no number, which stops the training */
      double value;
      ii_tensor_read_f64(c, loss, &value);
      assert_true(isnan(value) && ii_ok(c));
    }
    ii_backward(c, loss, 1);
    ii_ctx_close(c);
  }
}

/* Logits so far apart that exp of their difference is nothing: the loss is the difference. */
static void loss_of_distant_logits(void **state) {
  for (int type = 0; type < TYPES; type++) {
    ii_ctx *c = open_ctx(type);
    double x[LONG] = {0}, loss, g[LONG];
    x[3] = 4096;
    ii_tensor *logits = tensor(c, 2, (int64_t[]){1, LONG}, x);
    ii_tensor *t = ii_tensor_from_host(c, II_I32, 1, (int64_t[]){1}, (int32_t[]){8});
    ii_tensor *l = ii_smooth_cross_entropy(c, logits, t, 0);
    ii_tensor_read_f64(c, l, &loss);
    assert_true(loss == 4096);
    ii_backward(c, l, 1);
    ii_tensor_read_f64(c, logits->grad, g);
    for (int i = 0; i < LONG; i++) assert_true(g[i] == (i == 3) - (i == 8));
    ii_ctx_close(c);
  }
}

int main(void) {
  const int missing = op_device_missing();
  if (missing) return missing;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(functions_at_the_ends),      cmocka_unit_test(gelu_of_every_bf16_number),
      cmocka_unit_test(maximum_of_ties_and_nan),    cmocka_unit_test(softmax_of_infinities_and_nan),
      cmocka_unit_test(labels_outside_the_classes), cmocka_unit_test(loss_of_distant_logits),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
