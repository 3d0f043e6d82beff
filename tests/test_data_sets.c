/* Image folders, list files, their errors, and the sample pictures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/dataset.h"
#include "data/image.h"
#include "data/sample_draw.h"

static char root[256];

static void put(const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", root, name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  assert_int_equal(fclose(f), 0);
}

static void folder(const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", root, name);
  assert_int_equal(mkdir(path, 0777), 0);
}

static int setup(void **state) {
  strcpy(root, "/tmp/ii_sets_XXXXXX");
  return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

static ii_status open_folder(const char *name, ii_dataset **d, ii_error *err) {
  char path[512];
  *d = NULL;
  ii_error_clear(err);
  snprintf(path, sizeof path, "%s/%s", root, name);
  return ii_dataset_open_folder(path, NULL, d, err);
}

static void test_folder(void **state) {
  ii_dataset *d;
  ii_error err = {0};
  char path[II_PATH_MAX], name[256], want[512];
  const char *first;
  const char *files[] = {"Zebra/b.JPEG", "Zebra/a.jpg",    "apple/x.png",       "apple/10.jpg",
                         "apple/9.jpg",  "apple/note.txt", "apple/.hidden.jpg", "Zebra/no_ending"};
  folder("t"), folder("t/apple"), folder("t/Zebra"), folder("t/apple/more.jpg");
  put("t/readme.md", "");
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    snprintf(name, sizeof name, "t/%s", files[i]);
    put(name, "x");
  }
  assert_int_equal(open_folder("t", &d, &err), II_OK);
  assert_int_equal(ii_dataset_num_classes(d), 2);
  assert_string_equal(ii_dataset_class_name(d, 0), "Zebra"); /* capitals come first */
  assert_string_equal(ii_dataset_class_name(d, 1), "apple");
  const char *order[] = {"Zebra/a.jpg", "Zebra/b.JPEG", "apple/10.jpg", "apple/9.jpg",
                         "apple/x.png"};
  assert_int_equal(ii_dataset_size(d), 5);
  for (int i = 0; i < 5; i++) {
    ii_dataset_path(d, i, path);
    snprintf(want, sizeof want, "%s/t/%s", root, order[i]);
    assert_string_equal(path, want);
    assert_int_equal(ii_dataset_label(d, i), i >= 2);
  }
  assert_int_equal(ii_dataset_ignored(d, &first), 4); /* readme, note, no_ending, folder more.jpg */
  assert_non_null(first);
  assert_false(ii_dataset_has_meta(d));
  ii_dataset_free(d);
}

static void test_folder_errors(void **state) {
  ii_dataset *d, *e;
  ii_error err = {0};
  assert_int_equal(open_folder("missing", &d, &err), II_ERR_IO);
  assert_non_null(strstr(err.text, "/missing'"));
  folder("none");
  assert_int_equal(open_folder("none", &d, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "no sub-folders"));
  folder("none/a"), folder("none/b");
  put("none/a/1.jpg", "x"), put("none/b/1.txt", "x");
  assert_int_equal(open_folder("none", &d, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "none/b' has no images"));
  put("none/b/1.jpg", "x");
  folder("other"), folder("other/a"), folder("other/c");
  put("other/a/1.jpg", "x"), put("other/c/1.jpg", "x");
  assert_int_equal(open_folder("none", &d, &err), II_OK);
  assert_int_equal(open_folder("other", &e, &err), II_OK);
  assert_int_equal(ii_dataset_check_same_classes(d, d, &err), II_OK);
  assert_int_equal(ii_dataset_check_same_classes(d, e, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "'b'"));
  ii_dataset_free(e);
  folder("other/b");
  put("other/b/1.jpg", "x");
  assert_int_equal(open_folder("other", &e, &err), II_OK);
  assert_int_equal(ii_dataset_check_same_classes(d, e, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "2 classes"));
  ii_dataset_free(e);
  ii_dataset_free(d);
}

static ii_status open_list(const char *text, int64_t classes, ii_dataset **d, ii_error *err) {
  char path[512];
  *d = NULL;
  ii_error_clear(err);
  put("list.txt", text);
  snprintf(path, sizeof path, "%s/list.txt", root);
  return ii_dataset_open_list(path, "/data/root", classes, d, err);
}

static void test_list(void **state) {
  ii_dataset *d;
  ii_error err = {0};
  char path[II_PATH_MAX];
  assert_int_equal(open_list("n01/a.JPEG 3\r\n\nb.png 0\n/abs/c.jpg 1", 0, &d, &err), II_OK);
  assert_int_equal(ii_dataset_size(d), 3);
  assert_int_equal(ii_dataset_num_classes(d), 4);
  assert_null(ii_dataset_class_name(d, 0));
  const char *paths[] = {"/data/root/n01/a.JPEG", "/data/root/b.png", "/abs/c.jpg"};
  const int labels[] = {3, 0, 1};
  for (int i = 0; i < 3; i++) {
    ii_dataset_path(d, i, path);
    assert_string_equal(path, paths[i]);
    assert_int_equal(ii_dataset_label(d, i), labels[i]);
  }
  ii_dataset_free(d);
  assert_int_equal(open_list("my photo.jpg\t2\nx\t1\n", 1000, &d, &err), II_OK);
  ii_dataset_path(d, 0, path);
  assert_string_equal(path, "/data/root/my photo.jpg");
  assert_int_equal(ii_dataset_num_classes(d), 1000);
  ii_dataset_free(d);
}

static void test_list_meta(void **state) {
  ii_dataset *d;
  ii_error err = {0};
  float m[II_META_VALUES];
  /* month 3 is a quarter turn; 30 N 60 E; then missing and zero values */
  assert_int_equal(
      open_list("a 0 3 30 60\nb 0 - 10 -\nc 0 12 0 50\nd\t1\tnan\t-90\t-180\n", 0, &d, &err),
      II_OK);
  assert_true(ii_dataset_has_meta(d));
  const double s3 = sqrt(3.0);
  const double want[4][7] = {{1, 0, 0, 0, s3 / 4, 0.75, 0.5},
                             {0, 0, 0, 0, 0, 0, 0},
                             {0, 1, 0, 0, 0, 0, 0},
                             {0, 0, 0, 0, 0, 0, -1}};
  for (int i = 0; i < 4; i++) {
    ii_dataset_meta(d, i, m);
    for (int k = 0; k < 7; k++) assert_true(fabs(m[k] - want[i][k]) < 1e-6);
  }
  ii_dataset_free(d);
}

static void test_list_errors(void **state) {
  const struct {
    const char *text;
    int64_t classes;
    const char *says;
  } cases[] = {
      {"", 0, "has no images"},
      {"a 0\nb\n", 0, "list.txt:2: expected 'path label'"},
      {"a 0\nb 1 2\n", 0, "list.txt:2: expected"},
      {"a 0 1 2 3 4 5\n", 0, "more than 5 fields"},
      {"a x\n", 0, "'x' is not a label"},
      {"my photo.jpg 1\n", 0, "found 3 fields"},
      {"a -1\n", 0, "the label -1 is not in"},
      {"a 0\n\nb 10\n", 10, "list.txt:3: the label 10 is not in 0..9"},
      {"a 99999999999999999999\n", 0, "is not in"},
      {"a 0\nb 1 3 4 5\n", 0, "this line has 5 fields, the lines before have 2"},
      {"a 0 13 4 5\n", 0, "the month '13'"},
      {"a 0 1.5 4 5\n", 0, "not a whole number"},
      {"a 0 1 91 5\n", 0, "the latitude '91'"},
      {"a 0 1 4 x\n", 0, "the longitude 'x'"},
      {"\t1\n", 0, "the path is empty"},
  };
  ii_dataset *d;
  ii_error err = {0};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_int_equal(open_list(cases[i].text, cases[i].classes, &d, &err), II_ERR_FORMAT);
    if (!strstr(err.text, cases[i].says)) fail_msg("'%s' lacks '%s'", err.text, cases[i].says);
  }
  assert_int_equal(ii_dataset_open_list("/no/such/list", "", 0, &d, &err), II_ERR_IO);
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_list(root, "", 0, &d, &err), II_ERR_IO); /* a folder */
}

/* Pictures are a function of their arguments, differ from each other, and the mean colour of a
 * class says little about it. */
static void test_sample_pictures(void **state) {
  enum { N = 40, S = 12 };
  static uint8_t a[S * S * 3], b[S * S * 3];
  double lowest = 255, highest = 0;
  for (int c = 0; c < II_SAMPLE_CLASSES; c++) {
    double mean = 0;
    for (int i = 0; i < N; i++) {
      ii_sample_draw(7, c, i, S, a);
      for (int k = 0; k < S * S * 3; k++) mean += a[k] / (double)(S * S * 3 * N);
      ii_sample_draw(7, c, i, S, b);
      assert_memory_equal(a, b, sizeof a);
      ii_sample_draw(8, c, i, S, b);
      assert_memory_not_equal(a, b, sizeof a);
    }
    lowest = mean < lowest ? mean : lowest;
    highest = mean > highest ? mean : highest;
    assert_true(strlen(ii_sample_class_name(c)) > 0);
  }
  assert_true(highest - lowest < 40); /* the spread of one picture's mean is about 50 / sqrt(40) */
}

/* What is written can be read, and is near the original. */
static void test_write_jpeg(void **state) {
  enum { S = 40 };
  static uint8_t rgb[S * S * 3];
  char path[512];
  ii_error err = {0};
  ii_bytes file = {0};
  ii_image img = {0};
  ii_decoder *d = NULL;
  double error = 0;
  for (int y = 0; y < S; y++)
    for (int x = 0; x < S; x++) {
      uint8_t *p = rgb + (y * S + x) * 3;
      p[0] = (uint8_t)(x * 5), p[1] = (uint8_t)(y * 5), p[2] = 128;
    }
  snprintf(path, sizeof path, "%s/picture.jpg", root);
  assert_int_equal(ii_image_write_jpeg(path, rgb, S, S, 95, &err), II_OK);
  assert_int_equal(ii_bytes_read(&file, path, &err), II_OK);
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  assert_int_equal(ii_image_decode(d, file.data, file.size, &(ii_decode_options){0}, &img, &err),
                   II_OK);
  assert_true(img.w == S && img.h == S);
  for (int i = 0; i < S * S * 3; i++) error += fabs((double)img.data[i] - rgb[i]) / (S * S * 3);
  assert_true(error < 2);
  assert_int_equal(ii_image_write_jpeg("/no/such/folder/a.jpg", rgb, S, S, 95, &err), II_ERR_IO);
  ii_decoder_free(d);
  ii_bytes_free(&file);
  ii_image_free(&img);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_folder),      cmocka_unit_test(test_folder_errors),
      cmocka_unit_test(test_list),        cmocka_unit_test(test_list_meta),
      cmocka_unit_test(test_list_errors), cmocka_unit_test(test_sample_pictures),
      cmocka_unit_test(test_write_jpeg),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
