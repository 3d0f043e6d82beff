/* The development variants of the deformable convolution (bench/variants) against the CPU engine in
 * double precision, so that they stay runnable. Bounds: cuda_dcn.h, with each variant's own w. */
#include "tests/cuda_dcn.h"
#include "bench/variants/variants.h"

/* The published models' windows and groups; maps that fill tiles of 8 and do not; taps near, far
 * and outside. |offset| < 64 step. */
static const layout calls[] = {
    {"8x8", V4, 2, 8, 8, 2, 16, K3, false, 1, 0x1p-6, 0},
    {"9x17, odd rows", V4, 1, 9, 17, 3, 16, K3, false, 1, 0x1p-5, 91},
    {"17x9, up to 4 pixels, softmax", V3, 2, 17, 9, 2, 32, K3, true, 1, 0x1p-4, 0},
    {"16x24, up to 8 pixels", V4, 1, 16, 24, 2, 32, K3, false, 1, 0x1p-3, 0},
    {"24x24, up to 32 pixels", V4, 1, 24, 24, 1, 16, K3, false, 1, 0x1p-1, 0},
    {"11x10, groups of 64", V3_JOINT, 1, 11, 10, 2, 64, K3, true, 1, 0x1p-4, 0},
    {"12x17, scale 2", V4, 1, 12, 17, 4, 32, K3, false, 2, 0x1p-4, 0},
    {"7x10, 7 groups", V4, 2, 7, 10, 7, 16, K3, false, 1, 0x1p-5, 0},
    {"9x8, 5 groups, softmax", V3, 1, 9, 8, 5, 32, K3, true, 0.5, 0x1p-5, 0},
    {"8x11, 16 groups", V3, 1, 8, 11, 16, 16, K3, false, 1, 0x1p-5, 0},
    {"10x9, 9 groups", V3_JOINT, 1, 10, 9, 9, 16, K3, false, 1, 0x1p-5, 0},
    {"2x2", V4, 3, 2, 2, 4, 16, K3, false, 1, 0x1p-5, 0},
    {"1x1", V4, 2, 1, 1, 2, 32, K3, false, 1, 0x1p-5, 0},
};

static const dcn_variant *variant; /* that `tested` calls */
static bool refused;               /* it has no kernel for the last call */

static int forward(ii_kctx *k, const ii_dcn_args *a) {
  refused = !variant->has(a);
  return refused ? 0 : variant->forward(k, a);
}
static int backward(ii_kctx *k, const ii_dcn_args *a) {
  refused = !variant->has(a);
  return refused ? 0 : variant->backward(k, a);
}

/* Makes v the kernels of run(); `want` of its gradients. */
static unsigned choose(const dcn_variant *v) {
  variant = v;
  tested = (gpu_kernels){v->forward ? forward : NULL, v->backward ? backward : NULL, v->f16_weights,
                         v->bf16_weights};
  return (v->parts & VARIANT_GX ? 1u << GX : 0) |
         (v->parts & VARIANT_DOTS ? 1u << GOFFSET | 1u << GMASK : 0);
}

static void table_is_complete(void **state) {
  for (int i = 0; i < dcn_variant_count; i++) {
    const dcn_variant *v = &dcn_variants[i];
    assert_true(v->name && v->idea && v->takes && v->diary && v->has);
    assert_true(v->parts && !(v->parts & ~(unsigned)(VARIANT_FORWARD | VARIANT_BACKWARD)));
    assert_int_equal(v->forward != NULL, (v->parts & VARIANT_FORWARD) != 0);
    assert_int_equal(v->backward != NULL, (v->parts & VARIANT_BACKWARD) != 0);
    for (int j = 0; j < i; j++) assert_string_not_equal(v->name, dcn_variants[j].name);
  }
  assert_string_equal(dcn_variants[0].name, "product");
}

/* Runs p and compares; returns 0 when the variant has no kernel for it. */
static int check(const problem *p, const mode *m, const magnitude *q, const results *want) {
  char name[128];
  problem named = *p;
  snprintf(name, sizeof name, "%s, %s", variant->name, p->l.name);
  named.l.name = name;
  results got = run(&named, *m);
  if (!refused) compare(&named, m, q, &got, want);
  results_free(&got);
  return !refused;
}

/* With and without gaps between pixels, gradients written and added, each part alone. */
static void as_in_double_precision(void **state) {
  int ran[64][II_DTYPE_COUNT] = {{0}};
  assert_in_range(dcn_variant_count, 1, 64);
  for (int i = 0; i < COUNT(calls); i++) {
    problem p = make(&calls[i]);
    magnitude q = magnitudes(&p);
    results want[2] = {reference(&p, false), reference(&p, true)};
    for (int v = 0; v < dcn_variant_count; v++)
      for (int t = 1; t < COUNT(types); t++)
        for (int j = 0; j < 2; j++) {
          const unsigned all = choose(&dcn_variants[v]), part = (i + j) % 3 ? ALL : 1u << GX;
          const mode m = {
              &gpu, types[t], types[t], 0, (i + j) % 2, all & part ? all & part : all, j ? 8 : 0};
          ran[v][types[t]] += check(&p, &m, &q, &want[(i + j) % 2]);
        }
    results_free(&want[0]);
    results_free(&want[1]);
    magnitude_free(&q);
    unmake(&p);
  }
  for (int v = 0; v < dcn_variant_count; v++) {
    const int *n = ran[v];
    if (n[II_F16] < 4 || n[II_BF16] < 4)
      fail_msg("%s was not tested: it refused all but %d and %d calls in f16 and bf16",
               dcn_variants[v].name, n[II_F16], n[II_BF16]);
    if (strstr(dcn_variants[v].takes, "f32") && n[II_F32] < 4)
      fail_msg("%s was not tested in f32: it refused all but %d calls", dcn_variants[v].name,
               n[II_F32]);
  }
}

/* Offsets of another type, misaligned pointers: right, or refused. */
static void types_and_alignments(void **state) {
  static const struct {
    ii_dtype type, om;
    int skew;
  } modes[] = {{II_F16, II_F32, 0},  {II_F16, II_BF16, 0}, {II_BF16, II_F32, 0},
               {II_F32, II_BF16, 0}, {II_F16, II_F16, 1},  {II_BF16, II_BF16, 4},
               {II_F32, II_F32, 1},  {II_F32, II_F32, 2},  {II_F64, II_F64, 0}};
  for (int i = 1; i < 4; i++) {
    problem p = make(&calls[i]);
    magnitude q = magnitudes(&p);
    results want = reference(&p, false);
    for (int v = 0; v < dcn_variant_count; v++)
      for (int j = 0; j < COUNT(modes); j++) {
        const mode m = {
            &gpu, modes[j].type, modes[j].om, modes[j].skew, false, choose(&dcn_variants[v]), 0};
        check(&p, &m, &q, &want);
      }
    results_free(&want);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* Taps whose offsets are no numbers, infinite or enormous are as taps far outside. */
static void offsets_that_are_no_numbers(void **state) {
  static const double bad[] = {NAN, INFINITY, -INFINITY, 60000, -60000};
  problem p = make(&calls[1]), far = make(&calls[1]);
  for (int64_t t = 0; t < p.rows * p.l.G * p.K; t += 7) {
    const int64_t unit = t / p.K, G = p.l.G;
    const int64_t at = unit / G * p.row + unit % G * p.off_group + 2 * (t % p.K);
    p.off[at + t % 2] = bad[t % 5];
    far.off[at] = far.off[at + 1] = 1000;
  }
  magnitude q = magnitudes(&far);
  results want = reference(&far, false);
  for (int v = 0; v < dcn_variant_count; v++)
    for (int t = 1; t < COUNT(types); t++) {
      const mode m = {&gpu, types[t], types[t], 0, false, choose(&dcn_variants[v]), 0};
      check(&p, &m, &q, &want);
    }
  results_free(&want);
  magnitude_free(&q);
  unmake(&p);
  unmake(&far);
}

/* Bit for bit; not those that add in any order. */
static void images_do_not_depend_on_their_batch(void **state) {
  static const layout some[] = {
      {"5 of 7x9", V4, 5, 7, 9, 4, 16, K3, false, 1, 0x1p-4, 0},
      {"3 of 14x6, softmax", V3, 3, 14, 6, 2, 32, K3, true, 1, 0x1p-3, 0},
  };
  for (int i = 0; i < COUNT(some); i++) {
    problem p = make(&some[i]);
    if (i) spoil_offsets(&p);
    for (int v = 0; v < dcn_variant_count; v++)
      for (int t = 1; t < COUNT(types) && dcn_variants[v].repeats; t++) {
        const mode m = {&gpu, types[t], types[t], 0, false, choose(&dcn_variants[v]), 0};
        results all = run(&p, m);
        for (int64_t n = 0; n < p.l.N && !refused; n += 2) {
          problem one = image_of(&p, n);
          results r = run(&one, m);
          for (int j = 0; j < RESULTS; j++)
            if (r.v[j])
              same_bits(r.v[j], all.v[j] + n * result_numel(&one, j), result_numel(&one, j),
                        result_name[j], dcn_variants[v].name);
          results_free(&r);
        }
        results_free(&all);
      }
    unmake(&p);
  }
}

/* Corners outside have no term, whatever the modulation: an infinity or NaN in x, or in the
 * modulation of a tap outside, reaches the same results as in the product's kernel, and no others.
 */
static void what_is_not_finite(void **state) {
  static const double bad[] = {INFINITY, NAN, -INFINITY};
  for (int i = 1; i < 5; i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&calls[i]);
      for (int64_t n = 0; n < p.n_x; n += 5 * p.l.D * p.l.G + 1) p.x[n] = bad[n % 3];
      for (int64_t n = 0; n < p.rows; n += 5) { /* a tap far outside with any modulation */
        p.off[n * p.row] = -500;
        p.mask[n * p.mask_row] = p.l.softmax ? 1 : bad[n / 5 % 3];
      }
      for (int64_t n = 3; n < p.rows; n += 11) p.mask[n * p.mask_row + 4] = NAN;
      spoil_margin(&p);
      tested = (gpu_kernels){ii_cuda_dcn_fwd, NULL, 0, 0};
      const mode m = {&gpu, types[t], types[t], 0, false, 0, 0};
      results want = run(&p, m);
      int64_t finite = 0;
      double most = 0;
      for (int64_t n = 0; n < p.n_y; n++)
        if (isfinite(want.v[Y][n])) finite++, most = fmax(most, fabs(want.v[Y][n]));
      assert_in_range(finite, 1, p.n_y - 1);
      for (int v = 1; v < dcn_variant_count; v++) {
        choose(&dcn_variants[v]);
        if (!tested.forward) continue;
        results got = run(&p, m);
        for (int64_t n = 0; n < p.n_y && !refused; n++) {
          const double a = got.v[Y][n], b = want.v[Y][n];
          if (isnan(b) ? !isnan(a) : isinf(b) ? a != b : !(fabs(a - b) <= most * 0x1p-8))
            fail_msg("%s, %s: y[%lld] is %g, not %g", dcn_variants[v].name, p.l.name, (long long)n,
                     a, b);
        }
        results_free(&got);
      }
      results_free(&want);
      unmake(&p);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(table_is_complete),    cmocka_unit_test(as_in_double_precision),
      cmocka_unit_test(types_and_alignments), cmocka_unit_test(offsets_that_are_no_numbers),
      cmocka_unit_test(what_is_not_finite),   cmocka_unit_test(images_do_not_depend_on_their_batch),
  };
  const int opened = engines_open();
  if (opened) return opened;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  engines_close();
  return failed;
}
