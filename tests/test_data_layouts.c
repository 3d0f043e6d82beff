/* Data sets as they are downloaded: ImageNet-1K with its flat validation folder, ImageNet-22K with
 * a class list, iNaturalist 2018; and the validation of a large head on some of its columns. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include "data/dataset.h"
#include "train/setup.h"

static char root[256];

static char *in_root(const char *name) {
  static char path[4][600];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", root, name);
  return path[turn];
}

static void put(const char *name, const void *bytes, size_t n) {
  FILE *f = fopen(in_root(name), "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, n, f), n);
  fclose(f);
}

static void put_text(const char *name, const char *text) {
  put(name, text, strlen(text));
}

static void folder(const char *name) {
  assert_int_equal(mkdir(in_root(name), 0777), 0);
}

static int setup(void **state) {
  strcpy(root, "/tmp/ii_layouts_XXXXXX");
  return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

static void check_image(const ii_dataset *d, int64_t i, const char *name, int32_t label) {
  char got[II_PATH_MAX];
  ii_dataset_name(d, i, got);
  assert_string_equal(got, name);
  assert_int_equal(ii_dataset_label(d, i), label);
}

/* ---- a MATLAB file, written from its specification -------------------------------------------*/

typedef struct {
  uint8_t bytes[600000];
  size_t n;
} buffer;

static void add_u32(buffer *b, uint32_t v) {
  for (int i = 0; i < 4; i++) b->bytes[b->n++] = (uint8_t)(v >> (8 * i));
}

/* An element: the short form if it fits and is wanted. */
static void add_element(buffer *b, uint32_t type, const void *data, uint32_t n, bool allow_short) {
  if (allow_short && n <= 4) {
    add_u32(b, n << 16 | type);
    memset(b->bytes + b->n, 0, 4);
    memcpy(b->bytes + b->n, data, n);
    b->n += 4;
    return;
  }
  add_u32(b, type);
  add_u32(b, n);
  memcpy(b->bytes + b->n, data, n);
  b->n += n;
  while (b->n % 8) b->bytes[b->n++] = 0;
}

/* Begins a matrix; the size is filled in by end_matrix. */
static size_t begin_matrix(buffer *b, uint32_t class, int32_t rows, int32_t columns,
                           const char *name) {
  const uint32_t flags[2] = {class, 0};
  const int32_t dims[2] = {rows, columns};
  add_u32(b, 14);
  add_u32(b, 0);
  const size_t at = b->n;
  add_element(b, 6, flags, 8, false);
  add_element(b, 5, dims, 8, false);
  add_element(b, 1, name, (uint32_t)strlen(name), true);
  return at;
}

static void end_matrix(buffer *b, size_t at) {
  const uint32_t n = (uint32_t)(b->n - at);
  for (int i = 0; i < 4; i++) b->bytes[at - 4 + (size_t)i] = (uint8_t)(n >> (8 * i));
}

static void add_number(buffer *b, double v) {
  const size_t at = begin_matrix(b, 6, 1, 1, "");
  const uint16_t small = (uint16_t)v;
  if (v < 700)
    add_element(b, 4, &small, 2, true); /* numbers are stored as narrow as they allow */
  else
    add_element(b, 9, &v, 8, false);
  end_matrix(b, at);
}

static void add_text(buffer *b, const char *text) {
  uint16_t wide[64];
  const uint32_t n = (uint32_t)strlen(text);
  const size_t at = begin_matrix(b, 4, 1, (int32_t)n, "");
  for (uint32_t i = 0; i < n; i++) wide[i] = (uint8_t)text[i];
  if (n % 2)
    add_element(b, 4, wide, 2 * n, true);
  else
    add_element(b, 16, text, n, true);
  end_matrix(b, at);
}

/* The synset with the id. 37 is prime to 1000, so all differ and they are out of order. */
static void wnid_of(int id, char out[16]) {
  snprintf(out, 16, "n%08d", 10000000 + id * 37 % 1000 * 11);
}

static void write_meta(const char *name, int count, bool packed) {
  static buffer b, out;
  static const char fields[4][16] = {"ILSVRC2012_ID", "WNID", "words", "num_children"};
  const int32_t length = 16;
  b.n = out.n = 0;
  const size_t at = begin_matrix(&b, 2, count, 1, "synsets");
  add_element(&b, 5, &length, 4, true);
  add_element(&b, 1, fields, sizeof fields, false);
  for (int id = 1; id <= count; id++) {
    char wnid[16];
    wnid_of(id, wnid);
    if (id > 1000) strcpy(wnid, "n99999999");
    add_number(&b, id);
    add_text(&b, wnid);
    add_text(&b, id % 2 ? "kit fox" : "a");
    add_number(&b, 0);
  }
  end_matrix(&b, at);
  memset(out.bytes, ' ', 128);
  memcpy(out.bytes, "MATLAB 5.0 MAT-file", 19);
  memcpy(out.bytes + 124, "\0\1IM", 4);
  out.n = 128;
  if (packed) {
    uLongf n = sizeof out.bytes - 200;
    assert_int_equal(compress(out.bytes + 136, &n, b.bytes, b.n), Z_OK);
    add_u32(&out, 15);
    add_u32(&out, (uint32_t)n);
    out.n += n;
  } else {
    memcpy(out.bytes + out.n, b.bytes, b.n);
    out.n += b.n;
  }
  put(name, out.bytes, out.n);
}

/* ---- ImageNet-1K -----------------------------------------------------------------------------*/

static void test_imagenet_kit(void **state) {
  ii_error err = {0};
  ii_dataset *d;
  char ids[20000] = "", found[II_PATH_MAX];
  const int images = 2500;
  folder("kit"), folder("kit/val");
  assert_false(ii_imagenet_find_truth(in_root("kit"), found));
  folder("kit/ILSVRC2012_devkit_t12"), folder("kit/ILSVRC2012_devkit_t12/data");
  for (int i = 0, n = 0; i < images; i++) n += sprintf(ids + n, "%d\n", 1 + i * 7 % 1000);
  put_text("kit/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", ids);
  for (int packed = 0; packed < 2; packed++) {
    write_meta("kit/ILSVRC2012_devkit_t12/data/meta.mat", 1860, packed);
    assert_true(ii_imagenet_find_truth(in_root("kit"), found));
    if (ii_dataset_open_imagenet_val(in_root("kit/val"), found, &d, &err) != II_OK)
      fail_msg("%s", err.text);
    assert_int_equal(ii_dataset_size(d), images);
    assert_int_equal(ii_dataset_num_classes(d), 1000);
    for (int i = 0; i < images; i++) {
      char name[64], wnid[16];
      const int id = 1 + i * 7 % 1000;
      snprintf(name, sizeof name, "ILSVRC2012_val_%08d.JPEG", i + 1);
      wnid_of(id, wnid);
      check_image(d, i, name, id * 37 % 1000); /* the rank of the synset among all */
      assert_string_equal(ii_dataset_class_name(d, ii_dataset_label(d, i)), wnid);
    }
    ii_dataset_free(d);
  }
  /* not all synsets; damage anywhere; an id that does not exist */
  write_meta("kit/ILSVRC2012_devkit_t12/data/meta.mat", 999, false);
  assert_int_equal(ii_dataset_open_imagenet_val(in_root("kit/val"), found, &d, &err),
                   II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "meta.mat"));
  write_meta("kit/ILSVRC2012_devkit_t12/data/meta.mat", 1000, true);
  put_text("kit/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "1\n1001\n");
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_imagenet_val(in_root("kit/val"), found, &d, &err),
                   II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "truth.txt:2"));
}

static void test_damaged_meta(void **state) {
  ii_error err = {0};
  ii_bytes file = {0};
  ii_dataset *d;
  int bad = 0;
  folder("hurt");
  put_text("hurt/ILSVRC2012_validation_ground_truth.txt", "5\n");
  for (int packed = 0; packed < 2; packed++) {
    write_meta("hurt/meta.mat", 1000, packed);
    assert_int_equal(ii_bytes_read(&file, in_root("hurt/meta.mat"), &err), II_OK);
    for (int64_t k = 0; k < 300; k++) {
      const int64_t at = k < 100 ? k * 4 : file.size / 300 * k;
      uint8_t *copy = malloc((size_t)file.size);
      memcpy(copy, file.data, (size_t)file.size);
      if (k % 2) memset(copy + at, (int)k, (size_t)(file.size - at < 5 ? file.size - at : 5));
      put("hurt/meta.mat", copy, (size_t)(k % 2 ? file.size : at + 1));
      free(copy);
      ii_error_clear(&err);
      if (ii_dataset_open_imagenet_val("/x", in_root("hurt"), &d, &err) == II_OK)
        ii_dataset_free(d);
      else
        bad++;
    }
  }
  assert_true(bad > 300);
  ii_bytes_free(&file);
}

static void test_imagenet_pairs(void **state) {
  ii_error err = {0};
  ii_dataset *d;
  const struct {
    const char *text, *says;
  } wrong[] = {{"a.JPEG 7\n", ":1: expected a file and a synset"},
               {"ImageId,PredictionString\nval_1\n", ":2: expected"},
               {"", "names no image"}};
  put_text("truth.csv", "ImageId,PredictionString\n"
                        "ILSVRC2012_val_00048981,n03995372 85 1 499 272\n"
                        "ILSVRC2012_val_00037956,n03481172 131 0 499 254 n03481172 1 2 3 4 \n"
                        "b.png\tn03995372\r\n");
  assert_int_equal(ii_dataset_open_imagenet_val("/data/val", in_root("truth.csv"), &d, &err),
                   II_OK);
  assert_int_equal(ii_dataset_size(d), 3);
  assert_int_equal(ii_dataset_num_classes(d), 2);
  check_image(d, 0, "ILSVRC2012_val_00048981.JPEG", 1);
  check_image(d, 1, "ILSVRC2012_val_00037956.JPEG", 0);
  check_image(d, 2, "b.png", 1);
  assert_string_equal(ii_dataset_class_name(d, 0), "n03481172");
  ii_dataset_free(d);
  for (int i = 0; i < 3; i++) {
    put_text("truth.csv", wrong[i].text);
    ii_error_clear(&err);
    assert_int_equal(ii_dataset_open_imagenet_val("/x", in_root("truth.csv"), &d, &err),
                     II_ERR_FORMAT);
    assert_non_null(strstr(err.text, wrong[i].says));
  }
}

static void set_key(ii_config *cfg, const char *text) {
  ii_error err = {0};
  if (ii_config_set(cfg, text, &err) != II_OK) fail_msg("%s", err.text);
}

static ii_config config_of(const char *format, const char *name) {
  ii_config cfg;
  char text[700];
  ii_config_default(&cfg);
  snprintf(text, sizeof text, "data.format=\"%s\"", format);
  set_key(&cfg, text);
  snprintf(text, sizeof text, "data.root=\"%s\"", in_root(name));
  set_key(&cfg, text);
  return cfg;
}

/* The whole layout through the configuration: training folders and flat validation agree. */
static void test_imagenet_format(void **state) {
  ii_error err = {0};
  ii_dataset *train, *val;
  folder("in1k"), folder("in1k/train"), folder("in1k/val");
  folder("in1k/train/n02000000"), folder("in1k/train/n01000000");
  put_text("in1k/train/n02000000/a.JPEG", "x"), put_text("in1k/train/n01000000/b.JPEG", "x");
  ii_config cfg = config_of("imagenet", "in1k");
  assert_int_equal(ii_setup_dataset(&cfg, false, &val, &err), II_ERR_IO);
  assert_non_null(strstr(err.text, "ILSVRC2012_devkit_t12"));
  ii_error_clear(&err);
  put_text("in1k/val_truth.txt", "c n02000000\nd n01000000\n");
  assert_int_equal(ii_setup_dataset(&cfg, true, &train, &err), II_OK);
  assert_int_equal(ii_setup_dataset(&cfg, false, &val, &err), II_OK);
  assert_int_equal(ii_dataset_check_same_classes(train, val, &err), II_OK);
  check_image(val, 0, "c.JPEG", 1);
  ii_dataset_free(val);
  /* sorted into folders it is found too; what else is in root/val does not matter */
  folder("in1k/val/n01000000"), folder("in1k/val/n02000000");
  put_text("in1k/val/n02000000/c.JPEG", "x"), put_text("in1k/val/n01000000/d.JPEG", "x");
  put_text("in1k/val/readme.txt", "x");
  assert_int_equal(ii_setup_dataset(&cfg, false, &val, &err), II_OK);
  assert_int_equal(ii_dataset_check_same_classes(train, val, &err), II_OK);
  check_image(val, 1, "n02000000/c.JPEG", 1);
  ii_dataset_free(val);
  ii_dataset_free(train);
}

/* ---- ImageNet-22K ----------------------------------------------------------------------------*/

/* Labels come from the list: of the 21,841 classes some have no folder in the later release. */
static void test_class_list(void **state) {
  ii_error err = {0};
  ii_dataset *d;
  const char *first;
  folder("in22k"), folder("in22k/n3"), folder("in22k/n1"), folder("in22k/n9");
  put_text("in22k/n3/a.JPEG", "x"), put_text("in22k/n1/b.JPEG", "x");
  put_text("in22k/n9/c.JPEG", "x");
  put_text("names.txt", "n2 nobody\nn3\tfox\nn4\nn1\n");
  put_text("names.json", "{\"n1\": 3, \"n2\": 0, \"n3\": 1, \"n4\": 2}");
  for (int json = 0; json < 2; json++) {
    const char *list = in_root(json ? "names.json" : "names.txt");
    if (ii_dataset_open_folder(in_root("in22k"), list, &d, &err) != II_OK) fail_msg("%s", err.text);
    assert_int_equal(ii_dataset_num_classes(d), 4);
    assert_int_equal(ii_dataset_size(d), 2);
    check_image(d, 0, "n3/a.JPEG", 1);
    check_image(d, 1, "n1/b.JPEG", 3);
    assert_int_equal(ii_dataset_ignored(d, &first), 1);
    assert_non_null(strstr(first, "/n9"));
    ii_dataset_free(d);
  }
  const struct {
    const char *name, *text, *says;
  } wrong[] = {{"l.txt", "n1\n\nn2\n", "l.txt:2: expected the name"},
               {"l.txt", "", "is empty"},
               {"l.txt", "n1\nn1\n", "'n1' twice"},
               {"l.txt", "n7\n", "none of the classes"},
               {"l.json", "{\"n1\": 0, \"n2\": 0}", "one number of its own"},
               {"l.json", "{\"n1\": 1}", "one number of its own"},
               {"l.json", "[1]", "is empty"},
               {"l.json", "{\"n1\": 0", "cannot read"}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    put_text(wrong[i].name, wrong[i].text);
    ii_error_clear(&err);
    assert_int_equal(ii_dataset_open_folder(in_root("in22k"), in_root(wrong[i].name), &d, &err),
                     II_ERR_FORMAT);
    if (!strstr(err.text, wrong[i].says)) fail_msg("'%s' lacks '%s'", err.text, wrong[i].says);
  }
}

static void test_val_columns(void **state) {
  ii_error err = {0};
  ii_dataset *d;
  int32_t *columns;
  folder("big"), folder("big/val"), folder("big/val/a"), folder("big/val/b");
  put_text("big/val/a/1.jpg", "x"), put_text("big/val/b/1.jpg", "x");
  ii_config cfg = config_of("folder", "big");
  set_key(&cfg, "model.num_classes=400");
  set_key(&cfg, "data.class_list=\"missing.txt\""); /* of the training images alone */
  set_key(&cfg, "data.val_columns=\"map.txt\"");
  assert_int_equal(ii_setup_dataset(&cfg, false, &d, &err), II_OK);
  const struct {
    const char *text, *says;
  } wrong[] = {{"359\n", "has 1 lines"},
               {"359\n368\n9\n", "has 3 lines"},
               {"359\n400\n", ":2: expected the number of an output in 0..399"},
               {"x\n", ":1: expected"}};
  for (int i = 0; i < 4; i++) {
    put_text("big/map.txt", wrong[i].text);
    ii_error_clear(&err);
    assert_int_equal(ii_setup_columns(&cfg, d, &columns, &err), II_ERR_FORMAT);
    if (!strstr(err.text, wrong[i].says)) fail_msg("'%s' lacks '%s'", err.text, wrong[i].says);
  }
  put_text("big/map.txt", "359\n368\n");
  ii_error_clear(&err);
  assert_int_equal(ii_setup_columns(&cfg, d, &columns, &err), II_OK);
  assert_true(columns[0] == 359 && columns[1] == 368);
  free(columns);
  ii_dataset_free(d);
}

/* ---- iNaturalist -----------------------------------------------------------------------------*/

static const char inat[] =
    "{\"info\": {}, \"images\": ["
    "{\"id\": 7, \"file_name\": \"train_val2018/Aves/12/x.jpg\", \"width\": 8, \"height\": 6},"
    "{\"id\": 3, \"file_name\": \"train_val2018/Fungi/5/y.jpg\"},"
    "{\"id\": 4, \"file_name\": \"z.jpg\"}],"
    "\"categories\": [{\"id\": 12, \"name\": \"Corvus\"}, {\"id\": 5, \"name\": \"Amanita\"}],"
    "\"annotations\": [{\"id\": 0, \"image_id\": 7, \"category_id\": 12},"
    "{\"id\": 1, \"image_id\": 3, \"category_id\": 5},"
    "{\"id\": 2, \"image_id\": 4, \"category_id\": 12}]}";

static const char places[] =
    "[{\"id\": 7, \"lat\": 30, \"lon\": 60.0, \"date\": \"2017-03-14 10:00:00+00:00\"},"
    "{\"id\": 3, \"lat\": null, \"lon\": null, \"date\": null},"
    "{\"id\": 4, \"lat\": -90.0, \"lon\": 10.0, \"date\": \"2015-12-01\"}]";

static void test_inat(void **state) {
  ii_error err = {0};
  ii_dataset *d;
  folder("inat");
  put_text("inat/train2018.json", inat);
  put_text("inat/train2018_locations.json", places);
  ii_config cfg = config_of("inat2018", "inat");
  set_key(&cfg, "model.num_classes=0");
  if (ii_setup_dataset(&cfg, true, &d, &err) != II_OK) fail_msg("%s", err.text);
  assert_int_equal(ii_dataset_size(d), 3);
  assert_false(ii_dataset_has_meta(d));
  check_image(d, 0, "train_val2018/Aves/12/x.jpg", 0); /* labels: order of the categories */
  check_image(d, 1, "train_val2018/Fungi/5/y.jpg", 1);
  check_image(d, 2, "z.jpg", 0);
  assert_string_equal(ii_dataset_class_name(d, 1), "Amanita");
  ii_dataset_free(d);
  set_key(&cfg, "model.meta_dims=4,3");
  if (ii_setup_dataset(&cfg, true, &d, &err) != II_OK) fail_msg("%s", err.text);
  const double s3 = sqrt(3.0);
  const double want[3][7] = {{1, 0, 0, 0, s3 / 4, 0.75, 0.5}, {0}, {0, 1, 0, 0, 0, 0, -1}};
  for (int i = 0; i < 3; i++) {
    float m[II_META_VALUES];
    ii_dataset_meta(d, i, m);
    for (int k = 0; k < 7; k++) assert_true(fabs(m[k] - want[i][k]) < 1e-6);
  }
  ii_dataset_free(d);
}

static void test_inat_errors(void **state) {
  ii_error err = {0};
  ii_dataset *d;
  const struct {
    const char *from, *to, *says;
  } cases[] = {{"\"image_id\": 3", "\"image_id\": 4", "annotation 1"},
               {"\"category_id\": 5", "\"category_id\": 6", "unknown category of annotation 1"},
               {"\"id\": 7,", "\"id\": \"7\",", "annotation 0"},
               {"\"file_name\": \"z.jpg\"", "\"file\": \"z.jpg\"", "image 2"},
               {"\"categories\"", "\"groups\"", "categories"},
               {"{\"info\"", "[\"info\"", "cannot read"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[2000];
    const char *at = strstr(inat, cases[i].from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - inat), inat, cases[i].to,
             at + strlen(cases[i].from));
    put_text("bad.json", text);
    ii_error_clear(&err);
    assert_int_equal(ii_dataset_open_inat(in_root("bad.json"), NULL, root, &d, &err),
                     II_ERR_FORMAT);
    if (!strstr(err.text, cases[i].says)) fail_msg("'%s' lacks '%s'", err.text, cases[i].says);
  }
  put_text("ok.json", inat);
  put_text("two.json", "[{}, {}]");
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_inat(in_root("ok.json"), in_root("two.json"), root, &d, &err),
                   II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "2 places for 3 images"));
  put_text("two.json", "[{\"id\": 7}, {\"id\": 4}, {\"id\": 3}]");
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_inat(in_root("ok.json"), in_root("two.json"), root, &d, &err),
                   II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "other images from number 1"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_imagenet_kit),   cmocka_unit_test(test_damaged_meta),
      cmocka_unit_test(test_imagenet_pairs), cmocka_unit_test(test_imagenet_format),
      cmocka_unit_test(test_class_list),     cmocka_unit_test(test_val_columns),
      cmocka_unit_test(test_inat),           cmocka_unit_test(test_inat_errors),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
