/* Deformable convolution on the CUDA engine against the CPU engine in double precision. */
#include "tests/cuda_dcn.h"
#include "kernels/cuda/dcn_fwd.h"

/* ---- Tests ------------------------------------------------------------------------------------*/

static const layout layouts[] = {
    {"7x7, 2 groups of 16", V3, 2, 7, 7, 2, 16, K3, true, 1, 0x1p-4, 0},
    {"7x7, 2 groups of 32", V4, 2, 7, 7, 2, 32, K3, false, 1, 0x1p-4, 0},
    {"5x4, 2 groups of 64", V3, 2, 5, 4, 2, 64, K3, false, 1, 0x1p-4, 0},
    {"3x2, 80 groups of 16", V4, 1, 3, 2, 80, 16, K3, false, 1, 0x1p-5, 0},
    {"2x2, 128 groups of 32", V3, 1, 2, 2, 128, 32, K3, true, 1, 0x1p-5, 0},
    {"300 maps of 2x2", V3, 300, 2, 2, 1, 8, K3, true, 1, 0x1p-5, 0},
    {"300 maps of 2x2, packed", V4, 300, 2, 2, 1, 8, K3, false, 1, 0x1p-5, 0},
    {"stride 2", V3, 2, 9, 8, 2, 16, 3, 3, 2, 1, 1, false, true, 1, 0x1p-4, 0},
    {"stride 2, packed", V4, 2, 7, 7, 3, 16, 3, 3, 2, 1, 1, false, false, 0.5, 0x1p-4, 0},
    {"far outside", V3, 2, 6, 5, 2, 16, K3, true, 1, 0.75, 0},
    {"far outside, packed", V4, 2, 5, 6, 2, 32, K3, false, 1, 0.75, 0},
    {"centre removed", V3, 2, 6, 7, 2, 16, 3, 3, 1, 1, 1, true, true, 2, 0x1p-4, 0},
    {"centre removed, packed", V4, 1, 6, 7, 3, 16, 3, 3, 1, 1, 1, true, false, 0.5, 0x1p-4, 0},
    {"5x5 window, groups of 8", V3, 1, 7, 8, 2, 8, 5, 5, 1, 2, 1, false, true, 1, 0x1p-4, 0},
    {"7x7 window, groups of 4", V4, 1, 7, 7, 2, 4, 7, 7, 1, 3, 1, false, false, 1, 0x1p-4, 0},
    {"1x1 window", V4, 2, 5, 4, 2, 6, 1, 1, 1, 0, 1, false, false, 1, 0x1p-4, 0},
    {"3x2 window", V3, 1, 5, 6, 2, 6, 3, 2, 1, 1, 1, false, true, 1, 0x1p-4, 0},
    {"dilation 2", V3, 1, 7, 6, 2, 12, 3, 3, 1, 2, 2, false, true, 1, 0x1p-4, 0},
    {"3 groups of 5", V3, 2, 5, 7, 3, 5, K3, true, 1, 0x1p-4, 0},
    {"7 groups of 1", V4, 1, 5, 3, 7, 1, K3, false, 1, 0x1p-4, 0},
    {"2 groups of 40", V3, 1, 4, 5, 2, 40, K3, true, 1, 0x1p-4, 0},
    {"group of 33", V3, 1, 4, 4, 1, 33, K3, false, 1, 0x1p-4, 0},
    {"group of 71", V4, 1, 3, 4, 1, 71, K3, true, 1, 0x1p-4, 0},
    {"19x33, more than one tile", V3, 1, 19, 33, 1, 8, K3, true, 1, 0x1p-4, 0},
    {"nothing left: 1x1 window, centre removed", V3, 1, 3, 3, 2, 4, 1, 1, 1, 0, 1, true, true, 1, 1,
     0},
    {"6x5, one matrix", V3_JOINT, 2, 6, 5, 3, 16, K3, true, 1, 0x1p-4, 96},
    {"without images", V3, 0, 4, 4, 2, 16, K3, true, 1, 0x1p-4, 0},
};

static void as_in_double_precision(void **state) {
  for (int i = 0; i < COUNT(layouts); i++) {
    problem p = make(&layouts[i]);
    magnitude q = magnitudes(&p);
    results want[2] = {reference(&p, false), reference(&p, true)};
    for (int t = 0; t < COUNT(types); t++)
      for (int add = 0; add < 2; add++) {
        const mode m = {&gpu, types[t], types[t], 0, add, ALL, 0};
        results got = run(&p, m);
        compare(&p, &m, &q, &got, &want[add]);
        results_free(&got);
      }
    results_free(&want[0]);
    results_free(&want[1]);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* x of one type, offsets of another; pointers that do not suit vectors. */
static void mixed_types_and_misaligned(void **state) {
  static const struct {
    ii_dtype type, om;
    int skew;
  } modes[] = {{II_F16, II_F32, 0},  {II_BF16, II_F32, 0}, {II_F32, II_F16, 0},
               {II_F32, II_BF16, 0}, {II_F16, II_F16, 1},  {II_BF16, II_BF16, 2},
               {II_F32, II_F32, 1},  {II_F64, II_F64, 1}};
  for (int i = 0; i < 4; i++) {
    problem p = make(&layouts[i]);
    magnitude q = magnitudes(&p);
    results want[2] = {reference(&p, false), reference(&p, true)};
    for (int j = 0; j < COUNT(modes); j++) {
      const mode m = {&gpu, modes[j].type, modes[j].om, modes[j].skew, j % 2, ALL, 0};
      results got = run(&p, m);
      compare(&p, &m, &q, &got, &want[j % 2]);
      results_free(&got);
    }
    results_free(&want[0]);
    results_free(&want[1]);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* Bit for bit, also gx where its order is fixed. */
static void images_do_not_depend_on_their_batch(void **state) {
  static const layout some[] = {
      {"7x7", V4, 5, 7, 7, 4, 16, K3, false, 1, 0x1p-4, 0},
      {"14x14", V3, 3, 14, 14, 2, 16, K3, true, 1, 0x1p-4, 0},
      {"28x28", V4, 3, 28, 28, 1, 16, K3, false, 1, 0x1p-3, 0},
      {"14x14, stride 2", V3, 3, 14, 14, 3, 32, 3, 3, 2, 1, 1, false, true, 1, 0x1p-4, 0},
      {"7x7, 3 groups of 5", V3, 4, 7, 7, 3, 5, K3, true, 1, 0x1p-4, 0},
      {"2x1, 80 groups of 16", V4, 3, 2, 1, 80, 16, K3, false, 1, 0x1p-5, 0},
      {"2x1, 128 groups of 32", V3, 3, 2, 1, 128, 32, K3, true, 1, 0x1p-5, 0},
      {"300 images of 2x2", V4, 300, 2, 2, 2, 16, K3, false, 1, 0x1p-4, 0},
      {"far outside and no numbers", V3, 5, 6, 5, 2, 16, K3, true, 1, 0.75, 0},
      {"far outside and no numbers, packed", V4, 5, 5, 6, 2, 32, K3, false, 1, 0.75, 0},
  };
  for (int i = 0; i < COUNT(some); i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&some[i]);
      if (strstr(p.l.name, "no numbers")) spoil_offsets(&p);
      const mode m = {&gpu, types[t], types[t], 0, false, ALL, 0};
      results all = run(&p, m);
      for (int64_t n = 0; n<p.l.N; n += p.l.N> 8 ? 23 : 2) {
        problem one = image_of(&p, n);
        results r = run(&one, m);
        for (int j = 0; j < RESULTS; j++)
          if (r.v[j])
            same_bits(r.v[j], all.v[j] + n * result_numel(&one, j), result_numel(&one, j),
                      result_name[j], some[i].name);
        results_free(&r);
      }
      results_free(&all);
      unmake(&p);
    }
}

/* The same once more, and each gradient alone. */
static void results_repeat(void **state) {
  for (int i = 0; i < 3; i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&layouts[i]);
      mode m = {&gpu, types[t], types[t], 0, false, ALL, 0};
      results first = run(&p, m);
      for (unsigned want = ALL; want; want = want == ALL ? 1 << GMASK : want == 2 ? 0 : want >> 1) {
        m.want = want;
        results again = run(&p, m);
        for (int j = 0; j < RESULTS; j++)
          same_bits(again.v[j], first.v[j], result_numel(&p, j), result_name[j], p.l.name);
        results_free(&again);
      }
      results_free(&first);
      unmake(&p);
    }
}

/* Taps whose offsets are no numbers, or infinite, or enormous, are as taps far outside; and what is
 * outside is not read: an infinite pixel does no harm to others. */
static void offsets_that_are_no_numbers(void **state) {
  static const double bad[] = {NAN, INFINITY, -INFINITY, 60000, -60000};
  for (int i = 0; i < 4; i++)
    for (int t = 0; t < COUNT(types); t++) {
      problem p = make(&layouts[i]), far = make(&layouts[i]);
      ii_rng r = ii_rng_make(SEED, II_RNG_TEST, 1, 0);
      const int64_t units = p.rows * p.l.G, G = p.l.G;
      for (int64_t u = 0; u < units * p.K; u += 1 + (int64_t)ii_rng_below(&r, 9)) {
        const int64_t unit = u / p.K, k = u % p.K;
        const int64_t at = unit / G * p.row + unit % G * p.off_group + 2 * k;
        p.off[at + (int64_t)ii_rng_below(&r, 2)] = bad[ii_rng_below(&r, 5)];
        far.off[at] = far.off[at + 1] = 1000;
      }
      const mode m = {&gpu, types[t], types[t], 0, false, ALL, 0};
      results a = run(&p, m), b = run(&far, m);
      for (int j = 0; j < RESULTS; j++)
        same_bits(a.v[j], b.v[j], result_numel(&p, j), result_name[j], p.l.name);
      results_free(&a);
      results_free(&b);
      unmake(&p);
      unmake(&far);
    }
}

static void nothing_outside_is_read(void **state) {
  for (int t = 0; t < COUNT(types); t++) {
    problem p = make(&layouts[2]);
    for (int64_t i = 0; i < p.n_x; i++) p.x[i] = INFINITY;
    for (int64_t i = 0; i < p.n_mask; i++) p.mask[i] = i % 2 ? NAN : INFINITY;
    for (int64_t i = 0; i < p.n_off; i++) p.off[i] = i % 4 < 2 ? -100 : NAN;
    const mode m = {&gpu, types[t], types[t], 0, false, ALL, 0};
    results r = run(&p, m);
    for (int j = 0; j < RESULTS; j++)
      for (int64_t i = 0; i < result_numel(&p, j); i++)
        if (r.v[j][i] != 0) fail_msg("%s[%lld] is %g", result_name[j], (long long)i, r.v[j][i]);
    results_free(&r);
    unmake(&p);
  }
}

/* gx in 16 bits goes through scratch memory for some images at a time: here 2 and then 1. */
static void large_images_in_turns(void **state) {
  static const layout large = {"448x448", V3, 3, 448,   448,  1, 16,     3, 3,
                               97,        1,  1, false, true, 1, 0x1p-3, 0};
  problem p = make(&large);
  magnitude q = magnitudes(&p);
  results want = reference(&p, true);
  const mode m = {&gpu, II_F16, II_F16, 0, true, ALL, 0};
  results got = run(&p, m);
  compare(&p, &m, &q, &got, &want);
  results_free(&got);
  results_free(&want);
  magnitude_free(&q);
  unmake(&p);
}

/* ---- The forward kernel for tiles -------------------------------------------------------------*/

/* Tiles that the image does not fill, several chunks of groups, few and many of them. */
static const layout tiled[] = {
    {"2x2", V4, 1, 2, 2, 4, 16, K3, false, 1, 0x1p-4, 0},
    {"9x13, far", V4, 2, 9, 13, 4, 16, K3, false, 1, 0x1p-2, 0},
    {"9x13 softmax", V3_JOINT, 2, 9, 13, 4, 16, K3, true, 1, 0x1p-4, 128},
    {"17x10, 5 groups", V4, 1, 17, 10, 5, 16, K3, false, 2, 0x1p-4, 0},
    {"3x17, 14 groups", V4, 2, 3, 17, 14, 16, K3, false, 0.5, 0x1p-4, 0},
    {"7x7, 20 groups", V3_JOINT, 1, 7, 7, 20, 16, K3, true, 1, 0x1p-4, 544},
    {"7x7, 20 groups, two tensors", V3, 1, 7, 7, 20, 16, K3, true, 1, 0x1p-4, 0},
    {"many 2x3", V4, 40, 2, 3, 1, 16, K3, false, 1, 0x1p-4, 0},
    {"9x10, 4 groups of 32", V4, 2, 9, 10, 4, 32, K3, false, 1, 0x1p-4, 0},
    {"9x10, 4 groups of 32, softmax", V3_JOINT, 2, 9, 10, 4, 32, K3, true, 1, 0x1p-3, 128},
    {"16x16, 8 groups, whole tiles", V4, 1, 16, 16, 8, 16, K3, false, 1, 0x1p-4, 0},
    {"10x3, 3 groups of 64", V4, 2, 10, 3, 3, 64, K3, false, 1, 0x1p-4, 0},
    {"3x9, 3 groups of 64, softmax", V3_JOINT, 1, 3, 9, 3, 64, K3, true, 1, 0x1p-4, 96},
    {"7x9, odd rows", V4, 2, 7, 9, 4, 16, K3, false, 1, 0x1p-4, 109},
    {"5x9, odd rows", V3_JOINT, 2, 5, 9, 9, 32, K3, true, 1, 0x1p-4, 251},
    {"5x6, separate odd rows", V3, 2, 5, 6, 3, 32, K3, true, 1, 0x1p-4, 0},
};

static bool runs_tiled(const problem *p, const mode *m) {
  ii_dcn_args a = arguments(p, m);
  const uintptr_t size = ii_dtype_size(m->type);
  a.x = (void *)(4096 + (uintptr_t)m->skew * size);
  a.y = (void *)(8192 + (uintptr_t)m->skew * size);
  a.offset = (void *)(uintptr_t)16384;
  a.mask = packed(p) ? (char *)(uintptr_t)16384 + (size_t)p->behind * ii_dtype_size(m->om)
                     : (void *)(uintptr_t)32768;
  return ii_cuda_dcn_fwd_is_tiled(&a);
}

/* Against the CPU in double precision, and bit for bit what the other kernel computes, which gets
 * the calls with misaligned pointers. */
static void tiles_as_in_double_precision(void **state) {
  for (int i = 0; i < COUNT(tiled); i++) {
    problem p = make(&tiled[i]);
    magnitude q = magnitudes(&p);
    results want = run(&p, (mode){&cpu, II_F64, II_F64, 0, false, 0, 0});
    for (int t = 1; t < COUNT(types); t++) {
      results first = {{0}};
      for (int j = 0; j < 4; j++) {
        const mode m = {&gpu, types[t], types[t], j == 3, false, 0, (int64_t[]){0, 8, 3, 0}[j]};
        if (runs_tiled(&p, &m) != (j < 2))
          fail_msg("%s (%s, %d): wrong kernel", p.l.name, ii_dtype_name(m.type), j);
        results got = run(&p, m);
        compare(&p, &m, &q, &got, &want);
        if (j) same_bits(got.v[Y], first.v[Y], p.n_y, j < 2 ? "y" : "other y", p.l.name);
        if (j) results_free(&got);
        if (!j) first = got;
      }
      results_free(&first);
    }
    results_free(&want);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* Corners outside have no term: what is not finite inside, or in the modulations of taps outside,
 * does not reach those who do not sample it. The other kernel looks at every corner. */
static void tiles_with_what_is_not_finite(void **state) {
  static const double bad[] = {INFINITY, NAN, -INFINITY};
  for (int i = 0; i < COUNT(tiled); i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&tiled[i]);
      for (int64_t n = 0; n < p.n_x; n += 3 * p.l.D + 1) p.x[n] = bad[n % 3];
      if (i % 2) spoil_offsets(&p);
      for (int64_t n = 0; n < p.rows; n += 5) { /* a tap far outside with any modulation */
        p.off[n * p.row] = -500;
        p.mask[n * p.mask_row] = p.l.softmax ? 1 : bad[n / 5 % 3];
      }
      spoil_margin(&p);
      const mode m = {&gpu, types[t], types[t], 0, false, 0, 0};
      const mode other = {&gpu, types[t], types[t], 1, false, 0, 0};
      results a = run(&p, m), b = run(&p, other);
      int64_t finite = 0, not_finite = 0;
      for (int64_t n = 0; n < p.n_y; n++) {
        const double v = a.v[Y][n], w = b.v[Y][n];
        if (isnan(v) ? !isnan(w) : v != w)
          fail_msg("%s: y[%lld] is %g, not %g", p.l.name, (long long)n, v, w);
        *(isfinite(v) ? &finite : &not_finite) += 1;
      }
      assert_true(finite > 0 && not_finite > 0);
      results_free(&a);
      results_free(&b);
      unmake(&p);
    }
}

/* The stages of every published model, and the shapes of the papers' tables. */
static void published_shapes_run_tiled(void **state) {
  static const int64_t stages[][4] = {
      /* H, W, C, D */
      {56, 56, 64, 16},   {28, 28, 128, 16},   {14, 14, 256, 16},   {7, 7, 512, 16},
      {56, 56, 80, 16},   {28, 28, 160, 16},   {14, 14, 320, 16},   {7, 7, 640, 16},
      {56, 56, 112, 16},  {28, 28, 224, 16},   {14, 14, 448, 16},   {7, 7, 896, 16},
      {96, 96, 160, 16},  {48, 48, 320, 16},   {24, 24, 640, 16},   {12, 12, 1280, 16},
      {96, 96, 192, 16},  {48, 48, 384, 16},   {24, 24, 768, 16},   {12, 12, 1536, 16},
      {56, 56, 320, 32},  {28, 28, 640, 32},   {14, 14, 1280, 32},  {7, 7, 2560, 32},
      {56, 56, 128, 32},  {28, 28, 256, 32},   {14, 14, 512, 32},   {7, 7, 1024, 32},
      {14, 14, 768, 32},  {200, 320, 128, 32}, {100, 160, 256, 32}, {50, 80, 512, 32},
      {25, 40, 1024, 32}, {64, 64, 768, 32},   {56, 56, 256, 64},   {200, 320, 512, 64}};
  for (int i = 0; i < COUNT(stages); i++)
    for (int t = 1; t < COUNT(types); t++)
      for (int version = 0; version < 2; version++) {
        const int64_t *s = stages[i], G = s[2] / s[3];
        const int64_t row = version ? (27 * G + 7) / 8 * 8 : (27 * G + 31) / 32 * 32;
        const layout l = {"", version ? V4 : V3_JOINT, 64, s[0], s[1], G, s[3], K3, !version, 1, 1,
                          row};
        const problem p = {.l = l,
                           .K = 9,
                           .Ho = s[0],
                           .Wo = s[1],
                           .C = s[2],
                           .row = row,
                           .off_group = version ? 27 : 18,
                           .mask_row = row,
                           .mask_group = version ? 27 : 9,
                           .behind = version ? 18 : 18 * G};
        for (int64_t gap = 0; gap <= row; gap += row) {
          const mode m = {&gpu, types[t], types[t], 0, false, 0, gap};
          if (!runs_tiled(&p, &m))
            fail_msg("%lldx%lldx%lld, groups of %lld (%s) does not", (long long)s[0],
                     (long long)s[1], (long long)s[2], (long long)s[3], ii_dtype_name(types[t]));
        }
      }
}

static void what_cannot_be_done_is_said(void **state) {
  layout l = layouts[0];
  problem p = make(&l);
  const mode m = {&gpu, II_F32, II_F32, 0, false, ALL, 0};
  ii_dcn_args a = arguments(&p, &m);
  a.H = 1 << 25;
  assert_int_equal(ii_cuda_dcn_fwd(&gpu, &a), 1);
  assert_non_null(strstr(gpu.error, "too large; split it into tiles"));
  a = arguments(&p, &m);
  a.kh = a.kw = 200;
  assert_int_equal(ii_cuda_dcn_fwd(&gpu, &a), 1);
  assert_non_null(strstr(gpu.error, "40000 taps; use a smaller window"));
  assert_int_equal(ii_cuda_dcn_bwd(&gpu, &a), 1);
  assert_non_null(strstr(gpu.error, "40000 taps; use a smaller window"));
  for (int i = 0; i < 2; i++) {
    a = arguments(&p, &m);
    *(i ? &a.W : &a.H) = (1 << 22) + 1;
    gpu.error[0] = 0;
    assert_int_equal(ii_cuda_dcn_bwd(&gpu, &a), 1);
    assert_non_null(strstr(gpu.error, "too large; split it into tiles"));
  }
  unmake(&p);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(as_in_double_precision),
      cmocka_unit_test(mixed_types_and_misaligned),
      cmocka_unit_test(images_do_not_depend_on_their_batch),
      cmocka_unit_test(results_repeat),
      cmocka_unit_test(offsets_that_are_no_numbers),
      cmocka_unit_test(nothing_outside_is_read),
      cmocka_unit_test(large_images_in_turns),
      cmocka_unit_test(tiles_as_in_double_precision),
      cmocka_unit_test(tiles_with_what_is_not_finite),
      cmocka_unit_test(published_shapes_run_tiled),
      cmocka_unit_test(what_cannot_be_done_is_said),
  };
  const int opened = engines_open();
  if (opened) return opened;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  engines_close();
  return failed;
}
