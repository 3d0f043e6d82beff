/* That golden_check can fail: altered numbers, damaged and unknown files. (That it passes on
 * tests/golden is a test of its own, see CMakeLists.txt.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include <hdf5.h>

#define GOLDEN II_TEST_DATA "/golden/"

static char folder[64];

static int make_folder(void **state) {
  strcpy(folder, "/tmp/ii_golden_XXXXXX");
  return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
  char command[128];
  snprintf(command, sizeof command, "rm -r %s", folder);
  return system(command);
}

/* Exit code of golden_check on a file of the temporary folder, and what it printed. */
static int check(const char *options, const char *name, char *output, size_t size) {
  char command[512];
  snprintf(command, sizeof command, "%s/golden_check %s %s/%s 2>&1", II_BIN, options, folder, name);
  FILE *p = popen(command, "r");
  assert_non_null(p);
  size_t n = fread(output, 1, size - 1, p);
  output[n] = 0;
  int status = pclose(p);
  assert_true(WIFEXITED(status));
  return WEXITSTATUS(status);
}

static void expect(const char *options, const char *name, int code, const char *words) {
  static char output[1 << 16];
  int got = check(options, name, output, sizeof output);
  if (got != code || !strstr(output, words))
    fail_msg("%s: exit code %d instead of %d, or \"%s\" missing in:\n%s", name, got, code, words,
             output);
}

/* Copies the first `bytes` of a reference file (all when negative) to the folder. */
static long copy(const char *from, const char *to, long bytes) {
  char path[512];
  snprintf(path, sizeof path, "%s%s", GOLDEN, from);
  FILE *in = fopen(path, "rb");
  snprintf(path, sizeof path, "%s/%s", folder, to);
  FILE *out = fopen(path, "wb");
  assert_non_null(in);
  assert_non_null(out);
  long n = 0;
  for (int c; (bytes < 0 || n < bytes) && (c = fgetc(in)) != EOF; n++) fputc(c, out);
  fclose(in);
  assert_int_equal(fclose(out), 0);
  return n;
}

/* Adds delta to number i of a data set of a file in the folder. */
static void alter(const char *file, const char *set, size_t i, double delta) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", folder, file);
  hid_t f = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), d = H5Dopen2(f, set, H5P_DEFAULT);
  assert_true(f >= 0 && d >= 0);
  hid_t space = H5Dget_space(d);
  hssize_t n = H5Sget_simple_extent_npoints(space);
  double *v = malloc((size_t)n * sizeof *v);
  assert_true(v && (hssize_t)i < n);
  assert_true(H5Dread(d, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, v) >= 0);
  v[i] += delta;
  assert_true(H5Dwrite(d, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, v) >= 0);
  free(v);
  H5Sclose(space);
  H5Dclose(d);
  assert_true(H5Fclose(f) >= 0);
}

static void test_altered_numbers(void **state) {
  copy("dcnv3_op.h5", "op.h5", -1);
  expect("", "op.h5", 0, " 0 failed");
  alter("op.h5", "k3_1x1_image/grad_offset", 5, 1e-3);
  expect("", "op.h5", 1, "grad_offset");
  /* too small for float's bound, far too large for double's */
  copy("dcnv3_op.h5", "op.h5", -1);
  alter("op.h5", "k3_1x1_image/output", 7, 1e-7);
  expect("--dtype f32", "op.h5", 0, " 0 failed");
  expect("--dtype f64", "op.h5", 1, "output");
}

static void test_altered_cases(void **state) {
  static const char *const cases[][2] = {
      {"dcnv4_op.h5", "k3_c64_g1/input"},
      {"modules.h5", "dcnv4_dw5_cfs/params/offset_mask_dw.bias"},
      {"droppath.h5", "internimage_t_like/keep_masks/levels.1.blocks.1.drop_path"},
      {"fullsize.h5", "h_real_clip_head/stage2_sketch"},
      {"train_curves.h5", "t_like_accum2/soft_targets"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    copy(cases[i][0], "altered.h5", -1);
    alter("altered.h5", cases[i][1], 1, 1);
    expect("--dtype f32", "altered.h5", 1, "FAIL");
  }
}

static void test_cut_off(void **state) {
  static const char *const files[] = {"dcnv3_op.h5", "param_groups.json.gz",
                                      "lr_schedules.json.gz"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    long size = copy(files[i], "whole", -1);
    const long lengths[] = {0, 7, 100, size / 3, size - 1};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
      copy(files[i], "cut", lengths[k]);
      expect("", "cut", 2, "golden_check: ");
    }
  }
  expect("", "no such file", 2, "cannot be opened");
}

static void test_unknown(void **state) {
  char path[512];
  snprintf(path, sizeof path, "%s/unknown.h5", folder);
  copy("dcnv3_op.h5", "unknown.h5", -1);
  hid_t f = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  hid_t g = H5Gcreate2(f, "zebra", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(g >= 0);
  H5Gclose(g);
  H5Fclose(f);
  expect("--dtype f32", "unknown.h5", 2, "zebra");
  /* a data set that no case has would go unchecked */
  copy("dcnv3_op.h5", "unknown.h5", -1);
  f = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  g = H5Gopen2(f, "k3_1x1_image", H5P_DEFAULT);
  assert_true(H5Lcopy(g, "output", g, "extra", H5P_DEFAULT, H5P_DEFAULT) >= 0);
  H5Gclose(g);
  H5Fclose(f);
  expect("--dtype f32", "unknown.h5", 2, "extra");
  copy("recipes.json", "recipes.json", -1);
  expect("", "recipes.json", 2, "JSON of no kind");
  expect("--dtype f16", "recipes.json", 2, "--dtype");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_altered_numbers), cmocka_unit_test(test_altered_cases),
      cmocka_unit_test(test_cut_off), cmocka_unit_test(test_unknown)};
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
