/* The gradient of x on the CUDA engine: tiles, near and far taps, and what the matrix units make of
 * extreme numbers; see kernels/cuda/dcn_gx.h. */
#include "tests/cuda_dcn.h"

/* Maps that tiles of 8 x 8 fill and do not fill, smaller ones, taps within the halo of their tile,
 * just over it, and far from it. |offset| < 64 step. */
static const layout maps[] = {
    {"8x8, one tile", V4, 2, 8, 8, 2, 16, K3, false, 1, 0x1p-6, 0},
    {"9x17, ragged", V4, 1, 9, 17, 2, 16, K3, false, 1, 0x1p-5, 0},
    {"17x9, up to 4 pixels, softmax", V3, 1, 17, 9, 1, 32, K3, true, 1, 0x1p-4, 0},
    {"16x24, up to 8 pixels", V4, 1, 16, 24, 2, 32, K3, false, 1, 0x1p-3, 0},
    {"24x24, up to 32 pixels", V4, 1, 24, 24, 1, 16, K3, false, 1, 0x1p-1, 0},
    {"11x10, groups of 64", V3, 1, 11, 10, 2, 64, K3, true, 1, 0x1p-4, 0},
    {"10x11, group of 48", V4, 2, 10, 11, 1, 48, K3, false, 1, 0x1p-3, 0},
    {"23x18, stride 2", V4, 1, 23, 18, 2, 16, 3, 3, 2, 1, 1, false, false, 1, 0x1p-3, 0},
    {"18x23, stride 3, no padding", V3, 2, 18, 23, 1, 32, 3, 3, 3, 0, 1, false, true, 1, 0x1p-4, 0},
    {"17x12, dilation 3", V4, 1, 17, 12, 1, 16, 3, 3, 1, 3, 3, false, false, 1, 0x1p-4, 0},
    {"12x17, scale 2", V4, 1, 12, 17, 2, 16, K3, false, 2, 0x1p-4, 0},
    {"13x13, scale 1/2", V3_JOINT, 1, 13, 13, 2, 16, K3, true, 0.5, 0x1p-3, 0},
    {"20x9, 5x5 window", V4, 1, 20, 9, 2, 8, 5, 5, 1, 2, 1, false, false, 1, 0x1p-3, 0},
    {"18x18, centre removed", V3, 1, 18, 18, 1, 16, 3, 3, 1, 1, 1, true, true, 1, 0x1p-3, 0},
    {"3x40", V4, 1, 3, 40, 1, 16, K3, false, 1, 0x1p-3, 0},
    {"1x1", V4, 2, 1, 1, 2, 16, K3, false, 1, 0x1p-5, 0},
};

static void check(const problem *p, const mode *m, const magnitude *q, const results *want) {
  results got = run(p, *m);
  compare(p, m, q, &got, want);
  results_free(&got);
}

static void as_in_double_precision(void **state) {
  for (int i = 0; i < COUNT(maps); i++) {
    problem p = make(&maps[i]);
    magnitude q = magnitudes(&p);
    results want[2] = {reference(&p, false), reference(&p, true)};
    for (int t = 0; t < COUNT(types); t++)
      for (int j = 0; j < 3; j++) {
        /* the matrix units' kernel with and without gaps; the other one */
        const mode m = {
            &gpu, types[t], types[t], j == 2, (i + j) % 2, ALL, (int64_t[]){0, 8, 3}[j]};
        check(&p, &m, &q, &want[(i + j) % 2]);
      }
    results_free(&want[0]);
    results_free(&want[1]);
    magnitude_free(&q);
    unmake(&p);
  }
}

static void types_of_offsets(void **state) {
  static const ii_dtype mixed[][2] = {
      {II_F16, II_F32}, {II_F16, II_BF16}, {II_BF16, II_F32}, {II_BF16, II_F16}, {II_F32, II_BF16}};
  for (int i = 1; i < 5; i++) {
    problem p = make(&maps[i]);
    magnitude q = magnitudes(&p);
    results want = reference(&p, false);
    for (int j = 0; j < COUNT(mixed); j++) {
      const mode m = {&gpu, mixed[j][0], mixed[j][1], 0, false, ALL, 0};
      check(&p, &m, &q, &want);
    }
    results_free(&want);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* Samples on pixel centres: the corners to the right and below have weight 0, and taps lie exactly
 * on the edges of tiles, of halos and of the image. */
static void whole_offsets(void **state) {
  for (int i = 0; i < 4; i++) {
    problem p = make(&maps[i]);
    for (int64_t r = 0; r < p.rows; r++)
      for (int64_t g = 0; g < p.l.G; g++)
        for (int64_t k = 0; k < 2 * p.K; k++)
          p.off[r * p.row + g * p.off_group + k] = (double)((r * 5 + g * 3 + k * 11) % 9) - 4;
    magnitude q = magnitudes(&p);
    results want = reference(&p, false);
    for (int t = 0; t < COUNT(types); t++) {
      const mode m = {&gpu, types[t], types[t], 0, false, ALL, 0};
      check(&p, &m, &q, &want);
    }
    results_free(&want);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* Lists of far taps that are full: all taps of the outputs on the left fall on the right half. And
 * one tap beside them that is far from everything, so that all tiles look through all lists. */
static void all_taps_far(void **state) {
  static const layout wide[] = {
      {"9x50", V4, 2, 9, 50, 2, 16, K3, false, 1, 0x1p-6, 0},
      {"16x48, scale 2, softmax", V3, 1, 16, 48, 1, 32, K3, true, 2, 0x1p-6, 0},
      {"8x56, 5x5 window", V4, 1, 8, 56, 1, 16, 5, 5, 1, 2, 1, false, false, 1, 0x1p-6, 0},
      {"72x64, many tiles", V4, 1, 72, 64, 1, 16, K3, false, 1, 0x1p-6, 0},
  };
  for (int i = 0; i < COUNT(wide); i++) {
    problem p = make(&wide[i]);
    for (int64_t r = 0; r < p.rows; r++)
      for (int64_t g = 0; g < p.l.G; g++)
        for (int64_t k = 0; k < p.K; k++)
          p.off[r * p.row + g * p.off_group + 2 * k] += r % p.Wo < 24 ? 24 / p.l.scale : 0;
    p.off[0] = (double)(p.l.W - 3) / p.l.scale - 0x1p-6;
    p.off[1] = (double)(p.l.H - 3) / p.l.scale - 0x1p-6;
    magnitude q = magnitudes(&p);
    results want = reference(&p, false);
    for (int t = 0; t < COUNT(types); t++) {
      const mode m = {&gpu, types[t], t == 0 ? II_F64 : II_F32, 0, false, ALL, 0};
      check(&p, &m, &q, &want);
    }
    results_free(&want);
    magnitude_free(&q);
    unmake(&p);
  }
}

/* Modulations that are small, large, and both: fp16 numbers are scaled on the way to the matrix
 * units. In fp32, so that they are exact. */
static void modulations_of_any_size(void **state) {
  static const double size[][2] = {{0x1p-12, 0x1p-12}, {64, 64}, {0x1p-12, 8}, {0, 1}, {0, 0}};
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < COUNT(size); j++) {
      layout l = maps[i];
      l.softmax = false;
      problem p = make(&l);
      for (int64_t r = 0; r < p.rows; r++)
        for (int64_t g = 0; g < p.l.G; g++)
          for (int64_t k = 0; k < p.K; k++)
            p.mask[r * p.mask_row + g * p.mask_group + k] *= size[j][r % 7 == 0];
      magnitude q = magnitudes(&p);
      results want = reference(&p, false);
      for (int t = 2; t < COUNT(types); t++) {
        const mode m = {&gpu, types[t], II_F32, 0, false, 1 << GX, 0};
        check(&p, &m, &q, &want);
      }
      results_free(&want);
      magnitude_free(&q);
      unmake(&p);
    }
}

/* What is not finite in gy or a modulation reaches the pixels it is added to and no other. */
static void what_is_not_finite_stays_where_it_is(void **state) {
  for (int i = 0; i < 5; i++)
    for (int t = 1; t < COUNT(types); t++) {
      problem p = make(&maps[i]);
      p.gy[p.n_y / 2] = NAN;
      p.gy[p.n_y / 3] = INFINITY;
      if (!p.l.softmax) p.mask[p.rows / 2 * p.mask_row] = INFINITY;
      results want = reference(&p, false);
      const mode m = {&gpu, types[t], types[t], 0, false, 1 << GX, 0};
      results got = run(&p, m);
      int64_t finite = 0, not_finite = 0;
      double most = 0;
      for (int64_t n = 0; n < p.n_x; n++)
        if (isfinite(want.v[GX][n])) most = fmax(most, fabs(want.v[GX][n]));
      for (int64_t n = 0; n < p.n_x; n++) {
        const double a = got.v[GX][n], b = want.v[GX][n];
        if (isfinite(b) ? !(fabs(a - b) <= (2 * roundoff(types[t]) + 0x1p-18) * most) : isfinite(a))
          fail_msg("%s (%s): gx[%lld] is %g, not %g", p.l.name, ii_dtype_name(types[t]),
                   (long long)n, a, b);
        *(isfinite(b) ? &finite : &not_finite) += 1;
      }
      assert_true(finite > 0 && not_finite > 0);
      results_free(&got);
      results_free(&want);
      unmake(&p);
    }
}

/* Bit for bit: again, and each image alone; also with far taps and offsets that are no numbers. */
static void repeats_and_does_not_depend_on_the_batch(void **state) {
  for (int i = 1; i < COUNT(maps); i += 2)
    for (int t = 1; t < COUNT(types); t++) {
      layout l = maps[i];
      l.N = 3;
      problem p = make(&l);
      if (i % 4 == 3) spoil_offsets(&p);
      const mode m = {&gpu, types[t], types[t], 0, false, 1 << GX, 0};
      results all = run(&p, m), again = run(&p, m);
      same_bits(again.v[GX], all.v[GX], p.n_x, "gx", l.name);
      for (int64_t n = 0; n < 3; n += 2) {
        problem one = image_of(&p, n);
        results r = run(&one, m);
        same_bits(r.v[GX], all.v[GX] + n * one.n_x, one.n_x, "gx of one image", l.name);
        results_free(&r);
      }
      results_free(&again);
      results_free(&all);
      unmake(&p);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(as_in_double_precision),
      cmocka_unit_test(types_of_offsets),
      cmocka_unit_test(whole_offsets),
      cmocka_unit_test(all_taps_far),
      cmocka_unit_test(modulations_of_any_size),
      cmocka_unit_test(what_is_not_finite_stays_where_it_is),
      cmocka_unit_test(repeats_and_does_not_depend_on_the_batch),
  };
  const int opened = engines_open();
  if (opened) return opened;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  engines_close();
  return failed;
}
