/* Every op of ops.def, forward and backward, on the cases of op_cases_*.c. For each case:
 *
 * gradients  fp64 central differences of sum(proj * result) for every differentiable input, along
 *            random directions through all of its elements and along single elements. The
 * five-point formula with step h = 2^-10 errs by h^4/30 f5 = 3e-14 f5 and, from rounding, by about
 *            1e-16 |f| / h = 1e-13 |f|; the bound of 1e-8 of the gradient's norm is far above both
 *            and far below any real mistake.
 * values     fp64 against plain loops (op_reference.c).
 * guards     the same run on guarded buffers, see op_guard.h.
 * types      f32, bf16 and mixed precision against f64 on the same numbers.
 * threads    2 threads twice, bit for bit.
 * images     an image alone against the same image in its batch, bit for bit; on the CUDA engine
 *            within roundings where a library multiplies matrices.
 *
 * II_TEST_DEVICE=cuda runs all of it on the CUDA engine (real or emulated), fp16 included.
 * II_TEST_SEED=<number> changes all random numbers; the seed is printed. An argument selects cases
 * by name (cmocka's filter, with * and ?). */
#include "op_cases.h"
#include "op_guard.h"
#include "kernels/buffers.h"
#include <fnmatch.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define STEP           0x1p-10
#define GRADIENT_BOUND 1e-8
#define DIRECTIONS     2
#define SINGLES        8

static uint64_t seed = 20240229;
static double worst_gradient;
static const char *worst_gradient_case = "none";

typedef struct {
  ii_rng rng;
  double *in[OP_INPUTS];
  double *proj;
  int64_t n_out;
} drawn;

static drawn draw_case(const op_case *k) {
  drawn d = {.rng = ii_rng_make(seed, II_RNG_TEST, ii_hash_string(k->name), 0)};
  op_draw_inputs(k, &d.rng, d.in);
  op_result r = op_run(MODE_F64, 1, k, d.in, NULL);
  d.n_out = r.n;
  op_result_free(&r);
  d.proj = malloc(((size_t)d.n_out + 1) * sizeof *d.proj);
  assert_non_null(d.proj);
  for (int64_t i = 0; i < d.n_out; i++) d.proj[i] = op_round(ii_rng_normal(&d.rng));
  return d;
}

static void drawn_free(drawn *d) {
  for (int i = 0; i < OP_INPUTS; i++) free(d->in[i]);
  free(d->proj);
}

static double norm2(const double *v, int64_t n) {
  long double s = 0;
  for (int64_t i = 0; i < n; i++) s += (long double)v[i] * v[i];
  return sqrt((double)s);
}

/* sum(proj * result) with input `which` moved by t along direction */
static double loss_at(const op_case *k, drawn *d, int which, const double *direction, double t) {
  int64_t n = op_input_numel(&k->in[which]);
  double *x = d->in[which], *moved = malloc(((size_t)n + 1) * sizeof *moved);
  assert_non_null(moved);
  for (int64_t i = 0; i < n; i++) moved[i] = x[i] + t * direction[i];
  d->in[which] = moved;
  op_result r = op_run(MODE_F64, 1, k, d->in, NULL);
  d->in[which] = x;
  free(moved);
  long double loss = 0;
  for (int64_t i = 0; i < d->n_out; i++) loss += (long double)d->proj[i] * r.out[i];
  op_result_free(&r);
  return (double)loss;
}

static double numeric(const op_case *k, drawn *d, int which, const double *direction) {
  double near = loss_at(k, d, which, direction, STEP) - loss_at(k, d, which, direction, -STEP);
  double far =
      loss_at(k, d, which, direction, 2 * STEP) - loss_at(k, d, which, direction, -2 * STEP);
  return (8 * near - far) / (12 * STEP);
}

static void check_direction(const op_case *k, drawn *d, int which, const double *g,
                            const double *direction, const char *what, int64_t index) {
  int64_t n = op_input_numel(&k->in[which]);
  long double along = 0;
  for (int64_t i = 0; i < n; i++) along += (long double)g[i] * direction[i];
  double want = numeric(k, d, which, direction);
  /* a gradient that is zero by its nature is measured against the size of the projection */
  double scale = fmax(norm2(g, n), 1e-2 * norm2(d->proj, d->n_out) + 1e-30);
  double error = fabs((double)along - want) / scale;
  if (error > worst_gradient) {
    worst_gradient = error;
    worst_gradient_case = k->name;
  }
  if (!(error <= GRADIENT_BOUND))
    fail_msg(
        "gradient of input %d, %s %lld: %.12g, numerically %.12g (error %.3g of the norm %.3g)",
        which, what, (long long)index, (double)along, want, error, scale);
}

static void check_gradient(const op_case *k, drawn *d, int which, const double *g) {
  int64_t n = op_input_numel(&k->in[which]);
  double *direction = calloc((size_t)n + 1, sizeof *direction);
  assert_non_null(direction);
  for (int64_t i = 0; i < n; i++) assert_true(isfinite(g[i]));
  bool large = k->flags & CASE_LARGE;
  for (int t = 0; n && t < (large ? 1 : DIRECTIONS); t++) {
    for (int64_t i = 0; i < n; i++) direction[i] = ii_rng_u32(&d->rng) & 1 ? 1 : -1;
    check_direction(k, d, which, g, direction, "direction", t);
  }
  memset(direction, 0, (size_t)n * sizeof *direction);
  for (int t = 0; n && t < (large ? 1 : SINGLES); t++) {
    int64_t i = n <= SINGLES ? t % n : (int64_t)ii_rng_below(&d->rng, (uint64_t)n);
    direction[i] = 1;
    check_direction(k, d, which, g, direction, "element", i);
    direction[i] = 0;
  }
  free(direction);
}

static void check_gradients(const op_case *k, drawn *d) {
  ii_guard_on(true);
  op_result r = op_run(MODE_F64, 2, k, d->in, d->proj);
  ii_guard_on(false);
  for (int64_t i = 0; i < r.n; i++) assert_true(isfinite(r.out[i]));
  for (int i = 0; i < OP_INPUTS; i++)
    if (r.grad[i]) check_gradient(k, d, i, r.grad[i]);
  op_result_free(&r);
}

static void want_near(const char *what, const double *a, const double *want, int64_t n) {
  double size = 0;
  for (int64_t i = 0; i < n; i++) size = fmax(size, fabs(want[i]));
  for (int64_t i = 0; i < n; i++)
    if (!(fabs(a[i] - want[i]) <= 1e-12 * (1 + size)))
      fail_msg("%s %lld is %.15g, by the formula %.15g", what, (long long)i, a[i], want[i]);
}

static void check_values(const op_case *k, drawn *d) {
  op_result r = op_run(MODE_F64, 2, k, d->in, NULL);
  double *want = malloc(((size_t)r.n + 1) * sizeof *want), *state[OP_INPUTS] = {0};
  assert_non_null(want);
  for (int i = 0; i < OP_INPUTS; i++)
    if (r.state[i]) {
      state[i] = calloc((size_t)op_input_numel(&k->in[i]) + 1, sizeof **state);
      assert_non_null(state[i]);
    }
  if (op_reference(k, d->in, want, state)) {
    want_near("result", r.out, want, r.n);
    for (int i = 0; i < OP_INPUTS; i++)
      if (state[i]) want_near("state", r.state[i], state[i], op_input_numel(&k->in[i]));
  } else {
    assert_true(k->flags & CASE_COMPOSITE);
  }
  for (int i = 0; i < OP_INPUTS; i++) free(state[i]);
  free(want);
  op_result_free(&r);
}

/* ---- parity of types ---- */

/* Relative bounds of the error's norm. A result of n terms summed in f32 errs by about sqrt(n)
 * roundings; 8 covers the few operations around the sum and unlucky signs. A bf16 result has one
 * rounding of its own, at most 2^-8, three where the backward reads rounded results. */
static double bound(const op_case *k, op_mode mode) {
  double terms = fmax(k->terms, 64);
  double f32 = 8 * 0x1p-24 * sqrt(terms);
  if (mode == MODE_F32) return f32;
  const double rounding = mode >= MODE_F16 ? 0x1p-11 : 0x1p-8;
  return rounding * (k->flags & CASE_READS_ROUNDED ? 3 : 1) + f32;
}

static void compare(const op_case *k, op_mode mode, const char *what, int index, const double *a,
                    const double *want, int64_t n) {
  static const char *const names[MODE_COUNT] = {"f64", "f32", "bf16", "mixed", "f16", "mixed f16"};
  double *diff = malloc(((size_t)n + 1) * sizeof *diff), largest = 0, size = 0;
  assert_non_null(diff);
  for (int64_t i = 0; i < n; i++) {
    diff[i] = a[i] - want[i];
    largest = isfinite(diff[i]) ? fmax(largest, fabs(diff[i])) : INFINITY;
    size = fmax(size, fabs(want[i]));
  }
  /* results that cancel to nothing are measured against the numbers they come from, about 1 */
  double norm = norm2(diff, n) / fmax(norm2(want, n), 1e-3 * sqrt((double)n) + 1e-30);
  double max = largest / fmax(size, 1e-3), b = bound(k, mode);
  free(diff);
  /* no single element may be wrong by more than two bounds of the largest element */
  if (!(norm <= b && max <= 2 * b))
    fail_msg("%s %s %d: normalised error %.3g (bound %.3g), largest %.3g (bound %.3g)", names[mode],
             what, index, norm, b, max, 2 * b);
}

static void check_types(const op_case *k, drawn *d) {
  op_result want = op_run(MODE_F64, 1, k, d->in, d->proj);
  for (op_mode m = MODE_F32; m < op_modes(); m++) {
    ii_guard_on(true);
    op_result r = op_run(m, 2, k, d->in, d->proj);
    ii_guard_on(false);
    compare(k, m, "result", 0, r.out, want.out, want.n);
    for (int i = 0; i < OP_INPUTS; i++) {
      int64_t n = op_input_numel(&k->in[i]);
      if (want.grad[i]) compare(k, m, "gradient of input", i, r.grad[i], want.grad[i], n);
      if (want.state[i]) compare(k, m, "state", i, r.state[i], want.state[i], n);
    }
    op_result_free(&r);
  }
  op_result_free(&want);
}

/* ---- threads and batches ---- */

static void want_same(const char *what, int index, const double *a, const double *b, int64_t n) {
  if (n && memcmp(a, b, (size_t)n * sizeof *a))
    for (int64_t i = 0; i < n; i++)
      if (memcmp(&a[i], &b[i], sizeof *a))
        fail_msg("%s %d: element %lld of %lld is %.17g and %.17g", what, index, (long long)i,
                 (long long)n, a[i], b[i]);
}

/* From run to run all is the same. */
static void check_threads(const op_case *k, drawn *d) {
  for (op_mode m = MODE_F32; m <= MODE_BF16; m++) {
    op_result two = op_run(m, 2, k, d->in, d->proj), again = op_run(m, 2, k, d->in, d->proj);
    want_same("second run, result", 0, two.out, again.out, two.n);
    for (int i = 0; i < OP_INPUTS; i++)
      if (two.grad[i])
        want_same("second run, gradient", i, two.grad[i], again.grad[i], op_input_numel(&k->in[i]));
    op_result_free(&again);
    op_result_free(&two);
  }
}

static bool batched(const op_case *k, int i) {
  op_kind kind = k->in[i].kind;
  return kind == IN_ACT || kind == IN_REAL || kind == IN_CONST || kind == IN_LABELS;
}

/* cuBLASLt and cuDNN choose an algorithm, and so the order of sums, by all sizes of a product. */
static bool by_library(const op_case *k) {
  const bool product = k->op == II_OP_linear || k->op == II_OP_linear_gelu || k->op == II_OP_bmm ||
                       k->op == II_OP_conv2d ||
                       k->op == II_OP_checkpoint; /* of a block with a linear layer */
  return op_device() == II_CUDA && product;
}

static void check_image_part(const op_case *k, op_mode m, const char *what, int index,
                             const double *alone, const double *in_batch, int64_t n) {
  if (by_library(k))
    compare(k, m, what, index, alone, in_batch, n);
  else
    want_same(what, index, alone, in_batch, n);
}

static void check_image(const op_case *k, drawn *d, op_mode m, int64_t image,
                        const op_result *all) {
  op_case one = *k;
  double *in[OP_INPUTS];
  int64_t N = k->in[0].shape[0], per_out = d->n_out / N;
  one.fix = NULL;
  for (int i = 0; i < OP_INPUTS; i++) {
    in[i] = d->in[i];
    if (!batched(k, i)) continue;
    one.in[i].shape[0] = 1;
    in[i] += image * op_input_numel(&one.in[i]);
  }
  op_result r = op_run(m, 2, &one, in, d->proj + image * per_out);
  check_image_part(k, m, "result of an image alone and in its batch, image", (int)image, r.out,
                   all->out + image * per_out, per_out);
  for (int i = 0; i < OP_INPUTS; i++) {
    int64_t n = op_input_numel(&one.in[i]);
    if (r.grad[i] && batched(k, i))
      check_image_part(k, m, "gradient of an image alone and in its batch, input", i, r.grad[i],
                       all->grad[i] + image * n, n);
  }
  op_result_free(&r);
}

static void check_images(const op_case *k, drawn *d) {
  int64_t N = k->in[0].shape[0];
  if (N < 2 || (k->flags & CASE_WHOLE_BATCH)) return;
  for (op_mode m = MODE_F32; m <= MODE_BF16; m++) {
    op_result all = op_run(m, 2, k, d->in, d->proj);
    check_image(k, d, m, 0, &all);
    check_image(k, d, m, N - 1, &all);
    op_result_free(&all);
  }
}

static void test_case(void **state) {
  const op_case *k = *state;
  drawn d = draw_case(k);
  check_values(k, &d);
  check_gradients(k, &d);
  check_types(k, &d);
  check_threads(k, &d);
  check_images(k, &d);
  drawn_free(&d);
}

/* ---- completeness ---- */

enum { FAMILIES = 4 };
static op_case_list families[FAMILIES];

static void op_without_generator(void **state) {
  for (int op = 0; op < II_OP_COUNT; op++) {
    bool found = false;
    for (int f = 0; f < FAMILIES; f++)
      for (int i = 0; i < families[f].count; i++) found |= (int)families[f].at[i].op == op;
    if (!found) fail_msg("op %s has no case in tests/op_cases_*.c", ii_op_table[op].name);
  }
}

/* Runs last: kernels of ops must have gone through the guards (those of the optimizer have their
 * own tests). */
static void kernel_without_guarded_run(void **state) {
  static const char *const names[II_K_COUNT] = {
#define II_KERNEL(name, args) #name,
#include "kernels/kernels.def"
#undef II_KERNEL
  };
  for (int i = 0; i < II_K_COUNT; i++) {
    bool other = i == II_K_keep || i == II_K_shift || i == II_K_update_norm ||
                 i == II_K_update_control || i == II_K_update_apply || i == II_K_loss_add ||
                 i == II_K_mix_batch || i == II_K_mix_targets || i == II_K_erase;
    if (!other && !ii_guard_checked(i)) fail_msg("kernel %s was never checked", names[i]);
  }
}

int main(int argc, char **argv) {
  const int missing = op_device_missing();
  if (missing) return missing;
  const char *s = getenv("II_TEST_SEED");
  if (s) seed = strtoull(s, NULL, 10);
  printf("seed %llu (set II_TEST_SEED to change it)\n", (unsigned long long)seed);
  families[0] = op_cases_matrix();
  families[1] = op_cases_norm();
  families[2] = op_cases_simple();
  families[3] = op_cases_dcn();
  int count = 0;
  for (int f = 0; f < FAMILIES; f++) count += families[f].count;
  struct CMUnitTest *tests = calloc((size_t)count + 2, sizeof *tests);
  if (!tests) return 1;
  int n = 0;
  tests[n++] = (struct CMUnitTest)cmocka_unit_test(op_without_generator);
  for (int f = 0; f < FAMILIES; f++)
    for (int i = 0; i < families[f].count; i++) {
      const op_case *k = &families[f].at[i];
      tests[n++] = (struct CMUnitTest){
          .name = k->name, .test_func = test_case, .initial_state = (void *)(uintptr_t)k};
    }
  if (argc > 1)
    cmocka_set_test_filter(argv[1]);
  else
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(kernel_without_guarded_run);
  int wanted = argc <= 1;
  for (int i = 0; i < n && !wanted; i++) wanted = fnmatch(argv[1], tests[i].name, 0) == 0;
  if (!wanted) {
    printf("no case is called '%s'\n", argv[1]);
    return 1;
  }
  int failed = _cmocka_run_group_tests("ops", tests, (size_t)n, NULL, NULL);
  printf("worst gradient error %.2g of the norm (bound %.0g): %s\n", worst_gradient, GRADIENT_BOUND,
         worst_gradient_case);
  op_ctx_close_all();
  free(tests);
  return failed;
}
