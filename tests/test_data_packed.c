/* Packs: the same images and the same batches as the folder they were made of, at several thread
 * counts and in mid-epoch; damage anywhere; memory shared by processes. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "autograd/rng.h"
#include "data/checksum.h"
#include "data/jpeg_index.h"
#include "data/loader.h"
#include "data/pack.h"
#include "data/pack_h5.h"
#include "data/sample_draw.h"

#define CLASSES 4
#define EACH    70 /* 280 images: more than one block */
#define TOTAL   (CLASSES * EACH)
#define SIZE    24
#define PIXELS  (SIZE * SIZE * 3)

static char root[256], pack[300];
static ii_dataset *folder;

static char *in_root(const char *name) {
  static char path[4][600];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", root, name);
  return path[turn];
}

static int setup(void **state) {
  static uint8_t rgb[64 * 64 * 3];
  ii_error err = {0};
  strcpy(root, "/tmp/ii_packed_XXXXXX");
  if (!mkdtemp(root) || mkdir(in_root("set"), 0777) != 0) return -1;
  for (int c = 0; c < CLASSES; c++) {
    char path[600];
    snprintf(path, sizeof path, "%s/set/class %c", root, 'a' + c);
    mkdir(path, 0777);
    for (int i = 0; i < EACH; i++) {
      const int64_t size = 20 + (c * 7 + i * 5) % 40;
      snprintf(path, sizeof path, "%s/set/class %c/%d.jpg", root, 'a' + c, i);
      ii_sample_draw(3, c, i, size, rgb);
      if (ii_image_write_jpeg(path, rgb, size, size, 85, &err) != II_OK) return -1;
    }
  }
  snprintf(pack, sizeof pack, "%s/pack.h5", root);
  return ii_dataset_open_folder(in_root("set"), NULL, &folder, &err) == II_OK ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  ii_dataset_free(folder);
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

static ii_pack_result make(const ii_dataset *d, const char *path, int64_t shard_bytes) {
  ii_error err = {0};
  ii_pack_result r;
  const ii_pack_options o = {.shard_bytes = shard_bytes, .threads = 2};
  if (ii_pack_write(d, path, &o, &r, &err) != II_OK) fail_msg("%s", err.text);
  return r;
}

static ii_dataset *open_pack(const char *path, bool in_memory) {
  ii_error err = {0};
  ii_dataset *d;
  if (ii_dataset_open_packed(path, in_memory, &d, &err) != II_OK) fail_msg("%s", err.text);
  return d;
}

/* Files in the folder whose names begin so. */
static int count_files(const char *begin) {
  int n = 0;
  DIR *f = opendir(root);
  assert_non_null(f);
  for (const struct dirent *e; (e = readdir(f)) != NULL;)
    n += strncmp(e->d_name, begin, strlen(begin)) == 0;
  closedir(f);
  return n;
}

/* Names, labels and bytes are those of the folder. */
static void check_same(const ii_dataset *d) {
  char a[II_PATH_MAX], b[II_PATH_MAX];
  ii_bytes x = {0}, y = {0};
  ii_error err = {0};
  const uint8_t *p, *q;
  int64_t n, m;
  assert_int_equal(ii_dataset_size(d), TOTAL);
  assert_int_equal(ii_dataset_check_same_classes(folder, d, &err), II_OK);
  for (int64_t i = 0; i < TOTAL; i++) {
    ii_dataset_name(folder, i, a);
    ii_dataset_name(d, i, b);
    assert_string_equal(a, b);
    assert_int_equal(ii_dataset_label(d, i), i / EACH);
    assert_int_equal(ii_dataset_read(folder, i, &x, &p, &n, &err), II_OK);
    assert_int_equal(ii_dataset_read(d, i, &y, &q, &m, &err), II_OK);
    assert_int_equal(n, m);
    assert_memory_equal(p, q, (size_t)n);
  }
  ii_bytes_free(&x);
  ii_bytes_free(&y);
}

static void test_checksum(void **state) {
  char text[100];
  /* the check value of the CRC catalogue, and the vectors of RFC 3720, B.4 */
  assert_int_equal(ii_crc32c(0, "123456789", 9), 0xe3069283);
  memset(text, 0, 32);
  assert_int_equal(ii_crc32c(0, text, 32), 0x8a9136aa);
  memset(text, 0xff, 32);
  assert_int_equal(ii_crc32c(0, text, 32), 0x62a8ab43);
  for (int i = 0; i < 32; i++) text[i] = (char)i;
  assert_int_equal(ii_crc32c(0, text, 32), 0x46dd794e);
  for (int i = 0; i < 100; i++) text[i] = (char)(i * 37);
  for (int from = 0; from < 20; from++)
    for (int n = 0; n < 70; n++) {
      assert_int_equal(ii_crc32c(7, text + from, n), ii_crc32c_plain(7, text + from, n));
      assert_int_equal(ii_crc32c(ii_crc32c(0, text, from), text + from, n),
                       ii_crc32c_plain(0, text, from + n));
    }
  static uint8_t many[10000];
  for (int i = 0; i < 10000; i++) many[i] = (uint8_t)(i * i >> 3);
  for (int n = 3000; n <= 9990; n += 233)
    assert_int_equal(ii_crc32c((uint32_t)n, many + n % 9, n),
                     ii_crc32c_plain((uint32_t)n, many + n % 9, n));
}

static void test_same_images(void **state) {
  ii_pack_result r = make(folder, pack, 100000);
  assert_int_equal(r.images, TOTAL);
  ii_dataset *d = open_pack(pack, false);
  check_same(d);
  /* another one over it, of a pack, in smaller shards: the old shards are gone */
  ii_pack_result again = make(d, pack, 1);
  ii_dataset_free(d);
  assert_int_equal(again.bytes, r.bytes);
  assert_int_equal(again.shards, 2); /* blocks of at most 256 images */
  assert_int_equal(count_files("pack"), 1 + 2);
  d = open_pack(pack, false);
  check_same(d);
  /* it can be read on while it is replaced */
  make(folder, pack, 0);
  check_same(d);
  ii_dataset_free(d);
}

static void test_list_with_places(void **state) {
  ii_error err = {0};
  ii_dataset *list, *d;
  FILE *f = fopen(in_root("list.txt"), "w");
  assert_non_null(f);
  fprintf(f, "class a/0.jpg\t3\t5\t48.5\t-11.25\nclass b/1.jpg\t0\t-\t10\t-\n%s\t2\t12\t-90\t180\n",
          in_root("set/class c/2.jpg"));
  fclose(f);
  assert_int_equal(ii_dataset_open_list(in_root("list.txt"), in_root("set"), 9, &list, &err),
                   II_OK);
  make(list, in_root("places.h5"), 0);
  d = open_pack(in_root("places.h5"), false);
  assert_int_equal(ii_dataset_size(d), 3);
  assert_int_equal(ii_dataset_num_classes(d), 9);
  assert_null(ii_dataset_class_name(d, 0));
  for (int i = 0; i < 3; i++) {
    float a[II_META_VALUES], b[II_META_VALUES];
    char x[II_PATH_MAX], y[II_PATH_MAX];
    ii_dataset_meta(list, i, a);
    ii_dataset_meta(d, i, b);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(ii_dataset_label(d, i), ii_dataset_label(list, i));
    ii_dataset_name(list, i, x);
    ii_dataset_name(d, i, y);
    assert_string_equal(x, y);
  }
  ii_dataset_free(d);
  ii_dataset_free(list);
}

/* ---- batches ---------------------------------------------------------------------------------*/

static ii_loader *open_loader(const ii_dataset *d, bool train, int threads) {
  ii_loader *l = NULL;
  ii_error err = {0};
  ii_loader_config c = ii_loader_config_default(d, ii_transform_default(SIZE, train), 32);
  c.seed = 5, c.threads = threads;
  if (ii_loader_new(&c, &l, &err) != II_OK) fail_msg("%s", err.text);
  return l;
}

static void check_batches(ii_loader *a, ii_loader *b, int n) {
  ii_error err = {0};
  const ii_batch *x, *y;
  for (int s = 0; s < n; s++) {
    assert_int_equal(ii_loader_next(a, &x, &err), II_OK);
    assert_int_equal(ii_loader_next(b, &y, &err), II_OK);
    assert_int_equal(!x, !y);
    if (!x) return;
    assert_true(x->epoch == y->epoch && x->index == y->index && x->count == y->count);
    assert_memory_equal(x->labels, y->labels, (size_t)x->count * sizeof *x->labels);
    assert_memory_equal(x->samples, y->samples, (size_t)x->count * sizeof *x->samples);
    assert_memory_equal(x->images, y->images, (size_t)x->count * PIXELS * sizeof(float));
  }
}

static void test_same_batches(void **state) {
  const int threads[] = {1, 2, 7};
  make(folder, pack, 100000);
  for (int k = 0; k < 6; k++) {
    ii_dataset *d = open_pack(pack, k >= 3);
    for (int train = 0; train < 2; train++) {
      ii_loader *a = open_loader(folder, train, 1), *b = open_loader(d, train, threads[k % 3]);
      check_batches(a, b, 12); /* 8 or 9 batches an epoch */
      /* resumed in mid-epoch, in either */
      ii_loader_seek(a, train ? 3 : 0, 5);
      ii_loader_seek(b, train ? 3 : 0, 5);
      check_batches(a, b, 5);
      ii_loader_free(b);
      b = open_loader(d, train, threads[(k + 1) % 3]);
      ii_loader_seek(a, train ? 1 : 0, 2);
      ii_loader_seek(b, train ? 1 : 0, 2);
      check_batches(a, b, 3);
      ii_loader_free(a);
      ii_loader_free(b);
    }
    ii_dataset_free(d);
  }
}

/* ---- made smaller ----------------------------------------------------------------------------*/

static void test_smaller(void **state) {
  ii_error err = {0};
  ii_pack_result r;
  ii_decoder *decoder;
  ii_image img = {0};
  ii_bytes x = {0};
  const ii_pack_options o = {.max_side = 40, .threads = 3};
  assert_int_equal(ii_pack_write(folder, in_root("small.h5"), &o, &r, &err), II_OK);
  assert_true(r.reencoded > 40 && r.reencoded < TOTAL && r.undecodable == 0);
  assert_int_equal(ii_decoder_new(&decoder, &err), II_OK);
  ii_dataset *d = open_pack(in_root("small.h5"), false);
  int64_t smaller = 0;
  for (int64_t i = 0; i < TOTAL; i++) {
    const uint8_t *p;
    int64_t n, size;
    char name[II_PATH_MAX];
    ii_dataset_name(d, i, name);
    size = 20 + (i / EACH * 7 + atoi(strchr(name, '/') + 1) * 5) % 40;
    assert_int_equal(ii_dataset_read(d, i, &x, &p, &n, &err), II_OK);
    assert_int_equal(ii_image_decode(decoder, p, n, &(ii_decode_options){0}, &img, &err), II_OK);
    assert_true(img.w == img.h && (img.w == size || (size > 40 && img.w == 40)));
    smaller += img.w < size;
  }
  assert_int_equal(smaller, r.reencoded);
  ii_dataset_free(d);
  ii_decoder_free(decoder);
  ii_image_free(&img);
  ii_bytes_free(&x);
}

static void write_file(const char *path, const uint8_t *bytes, int64_t n) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, (size_t)n, f), n);
  fclose(f);
}

/* ---- for crops -------------------------------------------------------------------------------*/

/* The pack has for each image the index that is made of the folder's file, or none. */
static int64_t check_indexes(const ii_dataset *d, const ii_dataset *files) {
  ii_bytes x = {0}, y = {0};
  ii_error err = {0};
  const uint8_t *p, *q;
  int64_t n, m, found = 0, bytes = 0, told;
  for (int64_t i = 0; i < ii_dataset_size(d); i++) {
    uint8_t *made;
    int64_t made_n, stored_n;
    assert_int_equal(ii_dataset_read(files, i, &x, &p, &n, &err), II_OK);
    assert_int_equal(ii_dataset_read(d, i, &y, &q, &m, &err), II_OK);
    assert_int_equal(n, m);
    assert_memory_equal(p, q, (size_t)n);
    const uint8_t *stored = ii_dataset_packed_index(d, i, q, &stored_n);
    assert_int_equal(!stored, stored_n == 0);
    assert_null(ii_dataset_packed_index(files, i, p, &made_n));
    if (!stored) continue;
    assert_int_equal(ii_jpeg_index_make(p, n, &made, &made_n, &err), II_OK);
    assert_int_equal(stored_n, made_n);
    assert_memory_equal(stored, made, (size_t)made_n);
    free(made);
    found++, bytes += made_n;
  }
  assert_int_equal(ii_dataset_packed_indexes(d, &told), found);
  assert_int_equal(told, bytes);
  ii_bytes_free(&x);
  ii_bytes_free(&y);
  return found;
}

/* Every image has its index, on disk and in memory, in a pack made of a pack too; without them the
 * same batches (those with them are compared above). */
static void test_crop_indexes(void **state) {
  ii_error err = {0};
  ii_pack_result r;
  const ii_pack_options o = {.no_crop_index = true, .shard_bytes = 1, .threads = 3};
  ii_pack_result with = make(folder, in_root("with.h5"), 0);
  ii_dataset *d = open_pack(in_root("with.h5"), false), *again, *without;
  assert_true(with.indexed == TOTAL && with.index_bytes > 0);
  assert_int_equal(check_indexes(d, folder), TOTAL);
  assert_int_equal(ii_dataset_recoded(d), 0);
  make(d, in_root("again.h5"), 1);
  again = open_pack(in_root("again.h5"), true);
  assert_int_equal(check_indexes(again, folder), TOTAL);
  assert_int_equal(ii_pack_write(d, in_root("without.h5"), &o, &r, &err), II_OK);
  assert_true(r.indexed == 0 && r.index_bytes == 0 && r.bytes == with.bytes);
  without = open_pack(in_root("without.h5"), false);
  assert_int_equal(check_indexes(without, folder), 0);
  for (int train = 0; train < 2; train++) {
    ii_loader *a = open_loader(again, train, 1), *b = open_loader(without, train, 3);
    check_batches(a, b, 12);
    ii_loader_seek(a, train ? 2 : 0, 4);
    ii_loader_seek(b, train ? 2 : 0, 4);
    check_batches(a, b, 5);
    ii_loader_free(a);
    ii_loader_free(b);
  }
  ii_dataset_free(without);
  ii_dataset_free(again);
  ii_dataset_free(d);
}

/* Damaged files and those that are no JPEG have none. */
static void test_no_crop_index(void **state) {
  ii_error err = {0};
  ii_bytes x = {0};
  ii_dataset *list;
  assert_int_equal(ii_bytes_read(&x, in_root("set/class a/1.jpg"), &err), II_OK);
  FILE *f = fopen(in_root("cut.jpg"), "wb");
  assert_non_null(f);
  fwrite(x.data, 1, (size_t)x.size * 3 / 4, f);
  fclose(f);
  f = fopen(in_root("text.jpg"), "wb");
  fprintf(f, "this is not an image");
  fclose(f);
  f = fopen(in_root("asis.txt"), "w");
  fprintf(f, "cut.jpg\t0\nset/class a/1.jpg\t0\ntext.jpg\t0\n");
  fclose(f);
  assert_int_equal(ii_dataset_open_list(in_root("asis.txt"), root, 0, &list, &err), II_OK);
  assert_int_equal(make(list, in_root("asis.h5"), 0).indexed, 1);
  ii_dataset *d = open_pack(in_root("asis.h5"), false);
  assert_int_equal(check_indexes(d, list), 1);
  ii_dataset_free(d);
  ii_dataset_free(list);
  ii_bytes_free(&x);
}

/* A pack of one image, whose index is damaged on the disk, bit for bit: no bytes of it are given
 * out, from the disk or from memory, so that no decoder gets to see them. */
static void test_damaged_index(void **state) {
  ii_error err = {0};
  ii_bytes whole = {0}, x = {0};
  ii_dataset *list, *d;
  FILE *f = fopen(in_root("one.txt"), "w");
  assert_non_null(f);
  fprintf(f, "set/class d/1.jpg\t0\n");
  fclose(f);
  assert_int_equal(ii_dataset_open_list(in_root("one.txt"), root, 0, &list, &err), II_OK);
  make(list, in_root("one.h5"), 0);
  char shard[600] = "";
  DIR *dir = opendir(root);
  for (const struct dirent *e; (e = readdir(dir)) != NULL;)
    if (!strncmp(e->d_name, "one-", 4)) strcpy(shard, in_root(e->d_name));
  closedir(dir);
  const uint8_t *p;
  int64_t n, index_n;
  d = open_pack(in_root("one.h5"), false);
  assert_int_equal(ii_dataset_read(d, 0, &x, &p, &n, &err), II_OK);
  const uint8_t *index = ii_dataset_packed_index(d, 0, p, &index_n);
  assert_non_null(index);
  assert_int_equal(ii_bytes_read(&whole, shard, &err), II_OK);
  const uint8_t *at = memmem(whole.data, (size_t)whole.size, index, (size_t)index_n);
  assert_non_null(at);
  ii_dataset_free(d);
  for (int64_t bit = 0; bit < index_n * 8; bit += 5) {
    uint8_t *byte = whole.data + (at - whole.data) + bit / 8;
    *byte ^= (uint8_t)(1u << bit % 8);
    write_file(shard, whole.data, whole.size);
    *byte ^= (uint8_t)(1u << bit % 8);
    d = open_pack(in_root("one.h5"), bit % 3 == 0);
    ii_error_clear(&err);
    assert_int_equal(ii_dataset_read(d, 0, &x, &p, &n, &err), II_ERR_FORMAT);
    assert_non_null(strstr(err.text, "class d/1.jpg"));
    ii_dataset_free(d);
  }
  ii_dataset_free(list);
  ii_bytes_free(&whole);
  ii_bytes_free(&x);
}

/* An EXIF orientation survives: upright afterwards, it shows the same as the original. */
static void test_orientation_stays(void **state) {
  ii_error err = {0};
  ii_bytes file = {0};
  ii_image a = {0}, b = {0};
  ii_decoder *decoder;
  const uint8_t *p;
  int64_t n;
  ii_dataset *list;
  ii_pack_result r;
  static uint8_t rgb[200 * 120 * 3];
  for (int y = 0; y < 120; y++)
    for (int x = 0; x < 200; x++) {
      uint8_t *at = rgb + (y * 200 + x) * 3;
      at[0] = (uint8_t)x, at[1] = (uint8_t)(2 * y), at[2] = 90;
    }
  assert_int_equal(ii_image_write_jpeg(in_root("plain.jpg"), rgb, 200, 120, 95, &err), II_OK);
  assert_int_equal(ii_bytes_read(&file, in_root("plain.jpg"), &err), II_OK);
  static const uint8_t exif[] = {0xff, 0xe1, 0, 34, 'E', 'x', 'i', 'f', 0,    0, 'M', 'M', 0,
                                 42,   0,    0, 0,  8,   0,   1,   1,   0x12, 0, 3,   0,   0,
                                 0,    1,    0, 6,  0,   0,   0,   0,   0,    0}; /* big-endian, a
                                                                                     quarter turn */
  FILE *f = fopen(in_root("turned.jpg"), "wb");
  assert_non_null(f);
  fwrite(file.data, 1, 2, f);
  fwrite(exif, 1, sizeof exif, f);
  fwrite(file.data + 2, 1, (size_t)file.size - 2, f);
  fclose(f);
  f = fopen(in_root("turned.txt"), "w");
  fprintf(f, "turned.jpg 0\n");
  fclose(f);
  assert_int_equal(ii_dataset_open_list(in_root("turned.txt"), root, 0, &list, &err), II_OK);
  const ii_pack_options o = {.max_side = 100, .quality = 95};
  assert_int_equal(ii_pack_write(list, in_root("turned.h5"), &o, &r, &err), II_OK);
  assert_int_equal(r.reencoded, 1);
  ii_dataset *d = open_pack(in_root("turned.h5"), false);
  const ii_decode_options upright = {.apply_orientation = true};
  assert_int_equal(ii_decoder_new(&decoder, &err), II_OK);
  assert_int_equal(ii_dataset_read(d, 0, &file, &p, &n, &err), II_OK);
  assert_int_equal(ii_image_decode(decoder, p, n, &(ii_decode_options){0}, &a, &err), II_OK);
  assert_true(a.w == 100 && a.h == 60);
  assert_int_equal(ii_image_decode(decoder, p, n, &upright, &b, &err), II_OK);
  assert_true(b.w == 60 && b.h == 100);
  /* turned to the right: red grows downwards, green to the left */
  const uint8_t *top = b.data + (5 * 60 + 30) * 3, *bottom = b.data + (95 * 60 + 30) * 3;
  const uint8_t *left = b.data + (50 * 60 + 3) * 3, *right = b.data + (50 * 60 + 57) * 3;
  assert_true(bottom[0] > top[0] + 120 && left[1] > right[1] + 120);
  ii_dataset_free(d);
  ii_dataset_free(list);
  ii_decoder_free(decoder);
  ii_bytes_free(&file);
  ii_image_free(&a);
  ii_image_free(&b);
}

#ifdef __SANITIZE_ADDRESS__
/* HDF5 itself does not free everything when it refuses a damaged file. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
  return "leak:libhdf5";
}
#endif

/* ---- damage ----------------------------------------------------------------------------------*/

/* Cuts, changes, blanks out or lengthens; at the ends, where the metadata is, as often as within.
 */
static void damage(const ii_bytes *whole, int k, const char *path) {
  ii_rng rng = ii_rng_make(8, II_RNG_TEST, (uint64_t)k, 0);
  const int64_t n = whole->size;
  uint8_t *copy = malloc((size_t)n + 64);
  memcpy(copy, whole->data, (size_t)n);
  int64_t size = n;
  int64_t at = (int64_t)ii_rng_below(&rng, (uint64_t)n);
  if (k % 4 == 1) at = at % 600 < n ? at % 600 : at;
  if (k % 4 == 2) at = n - 1 - at % 3000 > 0 ? n - 1 - at % 3000 : at;
  switch (ii_rng_below(&rng, 4)) {
  case 0:
    size = at;
    break;
  case 1:
    copy[at] ^= (uint8_t)(1u << ii_rng_below(&rng, 8));
    break;
  case 2:
    for (int64_t i = at; i < n && i < at + 40; i++) copy[i] = (uint8_t)ii_rng_u32(&rng);
    break;
  default:
    memset(copy + at, 0, (size_t)(n - at < 500 ? n - at : 500));
  }
  write_file(path, copy, size);
  free(copy);
}

/* Either a sentence, or a data set that is right; its images are right or an error. */
static bool check_damaged(void) {
  ii_error err = {0};
  ii_dataset *d = NULL;
  ii_bytes x = {0}, y = {0};
  if (ii_dataset_open_packed(pack, false, &d, &err) != II_OK) {
    assert_true(err.status == II_ERR_FORMAT || err.status == II_ERR_IO);
    assert_true(strlen(err.text) > 20 && strstr(err.text, "pack"));
    return true;
  }
  bool seen = false;
  assert_int_equal(ii_dataset_size(d), TOTAL);
  for (int64_t i = 0; i < TOTAL; i++) {
    const uint8_t *p, *q;
    int64_t n, m;
    char a[II_PATH_MAX], b[II_PATH_MAX];
    ii_error_clear(&err);
    ii_dataset_name(folder, i, a);
    ii_dataset_name(d, i, b);
    assert_string_equal(a, b);
    assert_int_equal(ii_dataset_label(d, i), i / EACH);
    if (ii_dataset_read(d, i, &y, &q, &m, &err) != II_OK) {
      assert_non_null(strstr(err.text, b));
      seen = true;
      continue;
    }
    assert_int_equal(ii_dataset_read(folder, i, &x, &p, &n, &err), II_OK);
    assert_int_equal(n, m);
    assert_memory_equal(p, q, (size_t)n);
  }
  ii_dataset_free(d);
  ii_bytes_free(&x);
  ii_bytes_free(&y);
  return seen;
}

static void test_damaged_packs(void **state) {
  ii_error err = {0};
  ii_bytes whole = {0};
  int seen = 0, files = 0;
  make(folder, pack, 1);
  DIR *dir = opendir(root);
  for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
    if (strncmp(e->d_name, "pack", 4) != 0) continue;
    char *path = in_root(e->d_name), keep[600];
    strcpy(keep, path);
    assert_int_equal(ii_bytes_read(&whole, keep, &err), II_OK);
    for (int k = 0; k < 150; k++) {
      damage(&whole, k, keep);
      seen += check_damaged();
    }
    unlink(keep);
    assert_true(check_damaged()); /* missing */
    write_file(keep, whole.data, whole.size);
    assert_false(check_damaged());
    files++;
  }
  closedir(dir);
  assert_int_equal(files, 3);
  assert_true(seen > 250); /* what does not show has hit unused bytes */
  ii_bytes_free(&whole);
}

static void test_foreign_shard(void **state) {
  ii_error err = {0};
  ii_bytes whole = {0};
  ii_dataset *d;
  char mine[600] = "", other[600] = "";
  make(folder, pack, 0);
  make(folder, in_root("twin.h5"), 0);
  DIR *dir = opendir(root);
  for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
    if (!strncmp(e->d_name, "pack-", 5)) strcpy(mine, in_root(e->d_name));
    if (!strncmp(e->d_name, "twin-", 5)) strcpy(other, in_root(e->d_name));
  }
  closedir(dir);
  assert_int_equal(ii_bytes_read(&whole, other, &err), II_OK);
  write_file(mine, whole.data, whole.size);
  assert_int_equal(ii_dataset_open_packed(pack, false, &d, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "shard of another pack"));
  ii_bytes_free(&whole);
}

/* ---- what is refused -------------------------------------------------------------------------*/

/* Packs of other versions are refused with what to do about it. */
static void test_versions(void **state) {
  static const char *const says[] = {"version 1, this program reads version 2: pack the data set",
                                     "version 3, this program reads version 2: a newer program"};
  for (uint64_t version = 1; version <= 3; version += 2) {
    ii_error err = {0};
    ii_pack_file f;
    ii_dataset *d;
    assert_int_equal(ii_pack_h5_create(&f, in_root("other.h5"), &err), II_OK);
    assert_int_equal(ii_pack_h5_put_number(&f, "version", version, &err), II_OK);
    assert_int_equal(ii_pack_h5_finish(&f, &err), II_OK);
    ii_pack_h5_close(&f);
    assert_int_equal(ii_dataset_open_packed(in_root("other.h5"), false, &d, &err), II_ERR_FORMAT);
    assert_non_null(strstr(err.text, "other.h5"));
    assert_non_null(strstr(err.text, says[version / 2]));
  }
}

static bool stop_at_once(void *context, int64_t done, int64_t total) {
  return false;
}

static void test_errors(void **state) {
  ii_error err = {0};
  ii_pack_result r;
  ii_dataset *d;
  const struct {
    const char *path;
    ii_status status;
    const char *says;
  } cases[] = {{"x.hdf5", II_ERR_ARG, "ends in .h5"},
               {"no/such/x.h5", II_ERR_IO, "no/such"},
               {"stopped.h5", II_ERR_INTERRUPTED, "stopped"}};
  for (int k = 0; k < 3; k++) {
    const ii_pack_options o = {.tick = k == 2 ? stop_at_once : NULL};
    ii_error_clear(&err);
    assert_int_equal(ii_pack_write(folder, in_root(cases[k].path), &o, &r, &err), cases[k].status);
    assert_non_null(strstr(err.text, cases[k].says));
  }
  assert_int_equal(count_files("stopped"), 0);
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_packed(in_root("nothing.h5"), false, &d, &err), II_ERR_IO);
  /* an image that cannot be read: nothing is made, and the sentence names it */
  FILE *f = fopen(in_root("gone.txt"), "w");
  fprintf(f, "set/class\\ a/0.jpg 0\n");
  fclose(f);
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_list(in_root("gone.txt"), root, 0, &d, &err), II_ERR_FORMAT);
  f = fopen(in_root("gone.txt"), "w");
  fprintf(f, "gone.jpg 0\n");
  fclose(f);
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_list(in_root("gone.txt"), root, 0, &d, &err), II_OK);
  assert_int_equal(ii_pack_write(d, in_root("gone.h5"), &(ii_pack_options){0}, &r, &err),
                   II_ERR_IO);
  assert_non_null(strstr(err.text, "gone.jpg"));
  assert_int_equal(count_files("gone"), 1);
  ii_dataset_free(d);
}

/* ---- shared memory ---------------------------------------------------------------------------*/

/* Copies of the shards of the pack: their names have the number of the file in them. */
static int count_copies(void) {
  int n = 0;
  DIR *f = opendir("/dev/shm"), *files = opendir(root);
  assert_true(f && files);
  for (const struct dirent *s; (s = readdir(files)) != NULL;) {
    struct stat st;
    char number[40];
    if (strncmp(s->d_name, "pack-", 5) != 0) continue;
    assert_int_equal(stat(in_root(s->d_name), &st), 0);
    snprintf(number, sizeof number, "-%llx-%llx-%llx-", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino, (unsigned long long)st.st_size);
    rewinddir(f);
    for (const struct dirent *e; (e = readdir(f)) != NULL;)
      n += strncmp(e->d_name, "ii-pack-", 8) == 0 && strstr(e->d_name, number);
  }
  closedir(f);
  closedir(files);
  return n;
}

/* Processes that come together share one copy of each shard; the last one takes it away; the copy
 * of a killed one is used again. */
static void test_shared_memory(void **state) {
  enum { PROCESSES = 5 };
  pid_t child[PROCESSES];
  int status, ready[2], go[2];
  char byte;
  make(folder, pack, 1);
  assert_true(pipe(ready) == 0 && pipe(go) == 0);
  for (int i = 0; i < PROCESSES; i++) {
    child[i] = fork();
    if (child[i] != 0) continue;
    ii_error e = {0};
    ii_dataset *d;
    close(go[1]);
    bool good = ii_dataset_open_packed(pack, true, &d, &e) == II_OK;
    if (good) check_same(d);
    good = good && write(ready[1], good ? "y" : "n", 1) == 1;
    if (i == 4) raise(SIGKILL);
    while (read(go[0], &byte, 1) > 0) continue;
    ii_dataset_free(d);
    _exit(good ? 0 : 1);
  }
  for (int i = 0; i < PROCESSES; i++) {
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 'y');
  }
  assert_int_equal(count_copies(), 2);                       /* one of each shard */
  assert_int_equal(waitpid(child[4], &status, 0), child[4]); /* its lock is gone */
  assert_true(WIFSIGNALED(status));
  close(go[1]);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(waitpid(child[i], &status, 0), child[i]);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  assert_int_equal(count_copies(), 0);
  close(go[0]), close(ready[0]), close(ready[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_checksum),         cmocka_unit_test(test_same_images),
      cmocka_unit_test(test_list_with_places), cmocka_unit_test(test_same_batches),
      cmocka_unit_test(test_smaller),          cmocka_unit_test(test_orientation_stays),
      cmocka_unit_test(test_damaged_packs),    cmocka_unit_test(test_foreign_shard),
      cmocka_unit_test(test_errors),           cmocka_unit_test(test_versions),
      cmocka_unit_test(test_shared_memory),    cmocka_unit_test(test_crop_indexes),
      cmocka_unit_test(test_no_crop_index),    cmocka_unit_test(test_damaged_index),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
