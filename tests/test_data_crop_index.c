/* Crop indexes of image files: what training sees with one is what it sees without, to the bit,
 * whatever became of the images or of the index meanwhile; how the file is written and read; the
 * program scan, killed, without room, and beside another one. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "data/crop_index.h"
#include "data/jpeg_index.h"
#include "data/loader.h"
#include "data/pack.h"
#include "data/sample_draw.h"
#include "data/scan.h"
#include "data/skip_list.h"
#include "train/preview.h"
#include "train/setup.h"

enum { CLASSES = 3, EACH = 10, TOTAL = CLASSES * EACH, SIZE = 48, PIXELS = SIZE * SIZE * 3 };
enum { NO_INDEX = 2 + 1 }; /* of a class: two PNG files and a progressive one */
enum { JPEGS = CLASSES * (EACH - NO_INDEX) };

static char root[256];
static ii_dataset *plain, *indexed; /* the same folder */

static char *in_root(const char *name) {
  static char path[8][600];
  static int turn;
  turn = (turn + 1) % 8;
  snprintf(path[turn], sizeof path[turn], "%s/%s", root, name);
  return path[turn];
}

static void slurp(const char *path, ii_bytes *b) {
  ii_error err = {0};
  if (ii_bytes_read(b, path, &err) != II_OK) fail_msg("%s", err.text);
}

static void put(const char *path, const void *bytes, int64_t n) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(bytes, 1, (size_t)n, f), n);
  assert_int_equal(fclose(f), 0);
}

static void copy(const char *from, const char *to) {
  ii_bytes b = {0};
  slurp(from, &b);
  put(to, b.data, b.size);
  ii_bytes_free(&b);
}

/* ---- the images ------------------------------------------------------------------------------*/

static void make_image(const char *path, int c, int i) {
  static uint8_t rgb[400 * 400 * 3];
  ii_error err = {0};
  const int64_t w = 130 + (c * 67 + i * 53) % 230, h = 120 + (c * 41 + i * 71) % 230;
  if (i % EACH == 7) {
    copy(II_TEST_DATA "/golden/augment/made_progressive.JPEG", path);
    return;
  }
  ii_sample_draw(5, c, i, w > h ? w : h, rgb);
  const ii_status s = i % 5 == 4 ? ii_image_write_png(path, rgb, w, h, &err)
                                 : ii_image_write_jpeg(path, rgb, w, h, 85, &err);
  if (s != II_OK) fail_msg("%s", err.text);
}

/* CLASSES folders of `each` images below root/name. */
static void make_set(const char *name, int each) {
  char path[700];
  mkdir(in_root(name), 0777);
  for (int c = 0; c < CLASSES; c++) {
    snprintf(path, sizeof path, "%s/%s/%c", root, name, 'a' + c);
    mkdir(path, 0777);
    for (int i = 0; i < each; i++) {
      snprintf(path, sizeof path, "%s/%s/%c/%d.%s", root, name, 'a' + c, i,
               i % 5 == 4 ? "png" : "jpg");
      make_image(path, c, i);
    }
  }
}

static ii_dataset *open_set(const char *name) {
  ii_dataset *d;
  ii_error err = {0};
  if (ii_dataset_open_folder(in_root(name), NULL, &d, &err) != II_OK) fail_msg("%s", err.text);
  return d;
}

static ii_crop_summary make_index(const ii_dataset *d, const char *path, int threads) {
  ii_scan_options o = {.threads = threads};
  ii_scan_report r;
  ii_crop_summary x;
  ii_error err = {0};
  if (ii_crop_writer_new(d, path, &o.crops, &err) != II_OK || ii_scan(d, &o, &r, &err) != II_OK ||
      ii_crop_writer_finish(o.crops, &x, &err) != II_OK)
    fail_msg("%s", err.text);
  ii_crop_writer_free(o.crops);
  ii_scan_free(&r);
  return x;
}

static void use(ii_dataset *d, const char *path) {
  ii_error err = {0};
  if (ii_dataset_use_crop_index(d, path, &err) != II_OK) fail_msg("%s", err.text);
}

static int setup(void **state) {
  strcpy(root, "/tmp/ii_crops_XXXXXX");
  if (!mkdtemp(root)) return -1;
  make_set("set", EACH);
  plain = open_set("set"), indexed = open_set("set");
  make_index(plain, in_root("set.crops"), 3);
  use(indexed, in_root("set.crops"));
  return 0;
}

static int teardown(void **state) {
  char command[400];
  ii_dataset_free(plain);
  ii_dataset_free(indexed);
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

/* ---- loaders ---------------------------------------------------------------------------------*/

/* How often the decoder is given an index. */
static atomic_llong given;

void __real_ii_image_use_index(ii_decoder *d, const uint8_t *index, int64_t n);
void __wrap_ii_image_use_index(ii_decoder *d, const uint8_t *index, int64_t n);

void __wrap_ii_image_use_index(ii_decoder *d, const uint8_t *index, int64_t n) {
  atomic_fetch_add(&given, 1);
  __real_ii_image_use_index(d, index, n);
}

typedef struct {
  int count;
  char path[II_PATH_MAX], what[300];
} stale_files;

static void on_stale(void *context, const char *path, const char *what) {
  stale_files *s = context;
  s->count++;
  snprintf(s->path, sizeof s->path, "%s", path);
  snprintf(s->what, sizeof s->what, "%s", what);
}

enum { BATCH = 7 };

static ii_loader *open_loader(const ii_dataset *d, int threads, stale_files *stale) {
  ii_transform t = ii_transform_default(SIZE, true);
  ii_error err = {0};
  ii_loader *l;
  t.random_filter = true;
  assert_int_equal(ii_randaugment_parse("rand-m9-mstd0.5-inc1", &t.auto_augment, &err), II_OK);
  ii_loader_config c = ii_loader_config_default(d, t, BATCH);
  c.seed = 77, c.threads = threads;
  c.prefetch = 1 + threads % 3;
  if (stale) c.on_stale = on_stale, c.context = stale;
  if (ii_loader_new(&c, &l, &err) != II_OK) fail_msg("%s", err.text);
  return l;
}

static const ii_batch *next(ii_loader *l) {
  const ii_batch *b = NULL;
  ii_error err = {0};
  if (ii_loader_next(l, &b, &err) != II_OK) fail_msg("%s", err.text);
  return b;
}

/* Both give the same `batches` batches from batch `from` of epoch 0 on. */
static void same_batches(const ii_dataset *a, int threads_a, const ii_dataset *b, int threads_b,
                         int64_t from, int64_t batches, stale_files *stale, const char *where) {
  ii_loader *la = open_loader(a, threads_a, NULL), *lb = open_loader(b, threads_b, stale);
  const int64_t each = ii_loader_batches_per_epoch(la);
  ii_loader_seek(la, from / each, from % each);
  ii_loader_seek(lb, from / each, from % each);
  for (int64_t i = 0; i < batches; i++) {
    const ii_batch *x = next(la), *y = next(lb);
    assert_true(x->epoch == y->epoch && x->index == y->index && x->count == y->count);
    if (memcmp(x->keys, y->keys, (size_t)x->count * sizeof *x->keys) ||
        memcmp(x->labels, y->labels, (size_t)x->count * sizeof *x->labels) ||
        memcmp(x->images, y->images, (size_t)(x->count * PIXELS) * sizeof *x->images))
      fail_msg("batch %lld differs: %s", (long long)(from + i), where);
  }
  ii_loader_free(la);
  ii_loader_free(lb);
}

/* ---- the same batches ------------------------------------------------------------------------*/

static void test_same_batches(void **state) {
  static const int threads[] = {1, 2, 7};
  stale_files stale = {0};
  assert_int_equal(ii_dataset_crop_indexed(indexed), JPEGS);
  for (int t = 0; t < 3; t++) {
    atomic_store(&given, 0);
    same_batches(plain, 1, indexed, threads[t], 0, 13, &stale, "from the start");
    assert_true(atomic_load(&given) > 13 * BATCH / 2); /* it was in use, for most images */
    same_batches(plain, 1, indexed, threads[t], 6, 5, &stale, "resumed in mid-epoch");
  }
  assert_int_equal(stale.count, 0);
}

/* ---- the file --------------------------------------------------------------------------------*/

static bool same_file(const char *a, const char *b) {
  ii_bytes x = {0}, y = {0};
  slurp(a, &x);
  slurp(b, &y);
  const bool same = x.size == y.size && !memcmp(x.data, y.data, (size_t)x.size);
  ii_bytes_free(&x), ii_bytes_free(&y);
  return same;
}

static void test_file(void **state) {
  static const int threads[] = {1, 2, 7};
  for (int t = 0; t < 3; t++) {
    const ii_crop_summary x = make_index(plain, in_root("again.crops"), threads[t]);
    assert_true(x.entries == JPEGS && x.bytes > JPEGS * 20);
    assert_true(same_file(in_root("again.crops"), in_root("set.crops")));
    assert_int_not_equal(access(in_root("again.crops.tmp"), F_OK), 0);
  }
  for (int64_t i = 0; i < TOTAL; i++) {
    char path[II_PATH_MAX];
    ii_bytes file = {0}, index = {0};
    ii_dataset_path(indexed, i, path);
    slurp(path, &file);
    const bool has = i % EACH % 5 != 4 && i % EACH != 7;
    assert_int_equal(ii_dataset_crop_index(indexed, i, file.data, file.size, &index),
                     has ? II_CROP_INDEX_FOUND : II_CROP_INDEX_NONE);
    assert_int_equal(ii_dataset_crop_index(plain, i, file.data, file.size, &index),
                     II_CROP_INDEX_NONE);
    file.data[file.size / 2] ^= 1;
    assert_int_equal(ii_dataset_crop_index(indexed, i, file.data, file.size, &index),
                     has ? II_CROP_INDEX_STALE : II_CROP_INDEX_NONE);
    file.data[file.size / 2] ^= 1;
    file.data = realloc(file.data, (size_t)file.size + 1);
    file.data[file.size] = 0;
    for (int more = -1; more <= 1; more += 2)
      assert_int_equal(ii_dataset_crop_index(indexed, i, file.data, file.size + more, &index),
                       has ? II_CROP_INDEX_STALE : II_CROP_INDEX_NONE);
    ii_bytes_free(&file);
    ii_bytes_free(&index);
  }
}

/* A thread that is ahead waits; the order in which images come does not matter. */
static struct {
  ii_crop_writer *writer;
  int64_t images;
  atomic_llong added;
} flood;

static void add_numbered(int64_t i) {
  const int64_t n = 1 + i * 7919 % 400;
  uint8_t *index = malloc((size_t)n);
  assert_non_null(index);
  for (int64_t k = 0; k < n; k++) index[k] = (uint8_t)(i * 31 + k);
  ii_crop_writer_add(flood.writer, i, (const uint8_t *)&i, sizeof i, i % 11 ? index : NULL,
                     i % 11 ? n : 0);
  if (i % 11 == 0) free(index);
  atomic_fetch_add(&flood.added, 1);
}

static void *add_all_but_0(void *unused) {
  for (int64_t i = 1; i < flood.images; i++) add_numbered(i);
  return NULL;
}

static void test_order(void **state) {
  enum { IMAGES = 60000 };
  ii_error err = {0};
  ii_dataset *d;
  pthread_t thread;
  ii_crop_summary x;
  FILE *f = fopen(in_root("many.txt"), "w");
  assert_non_null(f);
  for (int i = 0; i < IMAGES; i++) fprintf(f, "n%d.jpg %d\n", i, i % 3);
  fclose(f);
  assert_int_equal(ii_dataset_open_list(in_root("many.txt"), root, 0, &d, &err), II_OK);
  for (int turn = 0; turn < 2; turn++) { /* in order by one thread, and with a gap by two */
    const char *path = in_root(turn ? "gap.crops" : "order.crops");
    if (ii_crop_writer_new(d, path, &flood.writer, &err) != II_OK) fail_msg("%s", err.text);
    flood.images = IMAGES;
    atomic_store(&flood.added, 0);
    if (!turn) add_numbered(0);
    assert_int_equal(pthread_create(&thread, NULL, add_all_but_0, NULL), 0);
    if (turn) {
      while (atomic_load(&flood.added) < 4095) usleep(1000);
      usleep(100000);
      assert_int_equal(atomic_load(&flood.added), 4095);
      add_numbered(0);
    }
    pthread_join(thread, NULL);
    if (ii_crop_writer_finish(flood.writer, &x, &err) != II_OK) fail_msg("%s", err.text);
    assert_int_equal(x.entries, IMAGES - (IMAGES + 10) / 11);
    ii_crop_writer_free(flood.writer);
  }
  assert_true(same_file(in_root("order.crops"), in_root("gap.crops")));
  use(d, in_root("gap.crops"));
  ii_bytes b = {0};
  for (int64_t i = 0; i < IMAGES; i++) {
    const int64_t n = 1 + i * 7919 % 400;
    const ii_crop_index_state s = ii_dataset_crop_index(d, i, (const uint8_t *)&i, sizeof i, &b);
    assert_int_equal(s, i % 11 ? II_CROP_INDEX_FOUND : II_CROP_INDEX_NONE);
    if (s == II_CROP_INDEX_NONE) continue;
    assert_int_equal(b.size, n);
    for (int64_t k = 0; k < n; k++) assert_int_equal(b.data[k], (uint8_t)(i * 31 + k));
  }
  ii_bytes_free(&b);
  ii_dataset_free(d);
}

/* ---- images that changed ---------------------------------------------------------------------*/

/* The first image of the stream that is one of the changed, by its path. */
static void first_of(const ii_dataset *d, const bool *changed, char *path) {
  ii_loader *l = open_loader(d, 1, NULL);
  for (;;) {
    const ii_batch *b = next(l);
    for (int64_t i = 0; i < b->count; i++)
      if (changed[b->samples[i]]) {
        ii_dataset_path(d, b->samples[i], path);
        ii_loader_free(l);
        return;
      }
  }
}

static void test_changed_images(void **state) {
  bool changed[TOTAL] = {false};
  make_set("stale", EACH);
  ii_dataset *before = open_set("stale");
  make_index(before, in_root("stale.crops"), 2);
  use(before, in_root("stale.crops"));
  for (int64_t i = 0; i < TOTAL; i++) {
    char path[II_PATH_MAX];
    ii_bytes was = {0}, other = {0};
    ii_dataset_path(before, i, path);
    if (i % EACH % 5 == 4 || i % EACH == 7 || i % 7 == 0) continue;
    slurp(path, &was);
    make_image(in_root("other.jpg"), 1, 100 + (int)i);
    slurp(in_root("other.jpg"), &other);
    /* another picture: with its own size, or cut off or filled up to the old one */
    uint8_t *bytes = calloc(1, (size_t)(was.size + other.size));
    memcpy(bytes, other.data, (size_t)other.size);
    put(path, bytes, i % 2 ? other.size : was.size > other.size ? was.size : other.size);
    if (i % 2 == 0 && was.size < other.size) { /* or the same with another last byte */
      memcpy(bytes, was.data, (size_t)was.size);
      bytes[was.size - 3] ^= 1;
      put(path, bytes, was.size);
    }
    free(bytes);
    changed[i] = true;
    ii_bytes_free(&was);
    ii_bytes_free(&other);
  }
  ii_dataset *now = open_set("stale");
  for (int threads = 1; threads <= 7; threads += 3) {
    char want[II_PATH_MAX];
    stale_files stale = {0};
    same_batches(now, 1, before, threads, 0, 13, &stale, "changed images");
    first_of(now, changed, want);
    assert_int_equal(stale.count, 1);
    assert_string_equal(stale.path, want);
    assert_non_null(strstr(stale.what, "has changed since"));
  }
  ii_dataset_free(before);
  ii_dataset_free(now);
}

/* ---- index files that are damaged, or for something else -------------------------------------*/

static ii_status try_use(const char *folder, const char *path, ii_error *err) {
  ii_dataset *d = open_set(folder);
  ii_error_clear(err);
  const ii_status s = ii_dataset_use_crop_index(d, path, err);
  ii_dataset_free(d);
  return s;
}

/* HDF5 1.10 itself leaks a little when metadata turn out to be damaged. */
#if defined(__SANITIZE_ADDRESS__)
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
  return "leak:libhdf5\n";
}
#endif

/* Bytes are lost or flipped: one sentence at once, or the same pictures. */
static void check_damaged(const ii_bytes *file, int64_t n, int64_t *refused) {
  ii_error err = {0};
  put(in_root("hurt.crops"), file->data, n);
  ii_dataset *d = open_set("few"), *without = open_set("few");
  const ii_status s = ii_dataset_use_crop_index(d, in_root("hurt.crops"), &err);
  if (s == II_OK) {
    same_batches(without, 1, d, 2, 0, 2, NULL, "damaged crop index");
  } else {
    assert_int_equal(s, II_ERR_FORMAT);
    assert_true(strstr(err.text, "make it again with scan") && !strchr(err.text, '\n'));
    ++*refused;
  }
  ii_dataset_free(d);
  ii_dataset_free(without);
}

static void test_damaged_files(void **state) {
  enum { LENGTHS = 120, FLIPS = 400 };
  ii_bytes file = {0};
  ii_rng rng = ii_rng_make(3, II_RNG_TEST, 0, 0);
  int64_t refused = 0;
  make_set("few", 4);
  ii_dataset *d = open_set("few");
  make_index(d, in_root("few.crops"), 1);
  ii_dataset_free(d);
  slurp(in_root("few.crops"), &file);
  for (int i = 0; i < LENGTHS; i++)
    check_damaged(&file, i < 60 ? file.size - 1 - i : file.size * (i - 60) / 60, &refused);
  assert_int_equal(refused, LENGTHS);
  refused = 0;
  for (int i = 0; i < FLIPS; i++) {
    ii_bytes hurt = {.data = malloc((size_t)file.size), .size = file.size};
    memcpy(hurt.data, file.data, (size_t)file.size);
    for (int64_t k = i % 3 == 0 ? 8 : 1; k > 0; k--)
      hurt.data[ii_rng_below(&rng, (uint64_t)file.size)] ^= (uint8_t)(1 + ii_rng_below(&rng, 255));
    check_damaged(&hurt, hurt.size, &refused);
    free(hurt.data);
  }
  for (int64_t i = 0; i < file.size - 7; i++) { /* a name that would be another image's */
    if (memcmp(file.data + i, "a/0.jpg", 8) != 0) continue;
    const int64_t before = refused;
    file.data[i + 2] = '9';
    check_damaged(&file, file.size, &refused);
    assert_int_equal(refused, before + 1);
    file.data[i + 2] = '0';
  }
  assert_true(refused > FLIPS / 50 && refused < FLIPS); /* of both kinds there are some */
  ii_bytes_free(&file);
}

/* Every entry is damaged in the file, behind the back of the data set that has opened it. */
static void test_damaged_entries(void **state) {
  ii_bytes file = {0};
  stale_files stale = {0};
  copy(in_root("set.crops"), in_root("spoilt.crops"));
  ii_dataset *d = open_set("set");
  use(d, in_root("spoilt.crops"));
  slurp(in_root("spoilt.crops"), &file);
  int fd = open(in_root("spoilt.crops"), O_WRONLY);
  for (int64_t i = 0; i < file.size; i++) file.data[i] ^= 0x55;
  assert_int_equal(pwrite(fd, file.data, (size_t)file.size, 0), file.size);
  same_batches(plain, 1, d, 3, 0, 9, &stale, "damaged entries");
  assert_int_equal(stale.count, 1);
  assert_non_null(strstr(stale.what, "damaged entry"));
  assert_int_equal(ftruncate(fd, 100), 0);
  stale.count = 0;
  same_batches(plain, 1, d, 3, 0, 9, &stale, "shortened file");
  assert_int_equal(stale.count, 1);
  close(fd);
  ii_bytes_free(&file);
  ii_dataset_free(d);
}

static void test_wrong_files(void **state) {
  ii_error err = {0};
  ii_pack_result r;
  ii_dataset *d;
  ii_crop_writer *w;
  /* of another data set; of one without baseline JPEG files; none; no crop index */
  mkdir(in_root("others"), 0777);
  mkdir(in_root("others/k"), 0777);
  make_image(in_root("others/k/x.jpg"), 0, 0);
  make_image(in_root("others/k/y.jpg"), 0, 1);
  assert_int_equal(try_use("others", in_root("set.crops"), &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "made for another data set?"));
  assert_true(strstr(err.text, "'k/x.jpg'") && strstr(err.text, "'a/0.jpg'"));
  mkdir(in_root("png"), 0777);
  mkdir(in_root("png/k"), 0777);
  make_image(in_root("png/k/x.png"), 0, 4);
  d = open_set("png");
  assert_int_equal(make_index(d, in_root("png.crops"), 1).entries, 0);
  ii_dataset_free(d);
  assert_int_equal(try_use("png", in_root("png.crops"), &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "is of no image"));
  assert_int_equal(try_use("set", in_root("nowhere.crops"), &err), II_ERR_IO);
  assert_non_null(strstr(err.text, "No such file"));
  assert_int_equal(try_use("set", in_root("set/a/0.jpg"), &err), II_ERR_FORMAT);
  assert_int_equal(try_use("set", in_root("set"), &err), II_ERR_IO);
  assert_int_equal(ii_pack_write(plain, in_root("p.h5"), &(ii_pack_options){0}, &r, &err), II_OK);
  assert_int_equal(try_use("set", in_root("p.h5"), &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "no crop index"));
  /* packs have their own */
  ii_error_clear(&err);
  assert_int_equal(ii_dataset_open_packed(in_root("p.h5"), false, &d, &err), II_OK);
  assert_int_equal(ii_dataset_use_crop_index(d, in_root("set.crops"), &err), II_ERR_ARG);
  assert_non_null(strstr(err.text, "is a pack"));
  ii_error_clear(&err);
  assert_int_equal(ii_crop_writer_new(d, in_root("never.crops"), &w, &err), II_ERR_ARG);
  assert_int_not_equal(access(in_root("never.crops.tmp"), F_OK), 0);
  ii_dataset_free(d);
}

/* ---- other kinds of data sets, and part of the images ----------------------------------------*/

/* A list in another order, with images the index does not know, and a skip list. */
static void test_lists(void **state) {
  ii_error err = {0};
  ii_dataset *d, *without;
  char name[II_PATH_MAX];
  copy(in_root("set/a/0.jpg"), in_root("set/new.jpg"));
  FILE *f = fopen(in_root("list.txt"), "w");
  assert_non_null(f);
  fprintf(f, "new.jpg 0\n");
  for (int64_t i = TOTAL - 1; i >= 0; i--) {
    ii_dataset_name(plain, i, name);
    fprintf(f, "%s %d\n", name, (int)ii_dataset_label(plain, i));
  }
  fprintf(f, "%s %d\n", "a/1.jpg", 0); /* twice */
  fclose(f);
  copy(in_root("set/b/2.jpg"), in_root("kept.jpg"));
  put(in_root("set/b/2.jpg"), "no picture", 10);
  for (int k = 0; k < 2; k++)
    assert_int_equal(
        ii_dataset_open_list(in_root("list.txt"), in_root("set"), 0, k ? &without : &d, &err),
        II_OK);
  ii_scan_report r;
  assert_int_equal(ii_scan(d, &(ii_scan_options){0}, &r, &err), II_OK);
  assert_int_equal(ii_scan_write_list(d, &r, in_root("skip.txt"), &err), II_OK);
  ii_scan_free(&r);
  assert_int_equal(ii_dataset_skip(d, in_root("skip.txt"), &err), II_OK);
  assert_int_equal(ii_dataset_skip(without, in_root("skip.txt"), &err), II_OK);
  use(d, in_root("set.crops"));
  assert_int_equal(ii_dataset_size(d), TOTAL + 1);
  assert_int_equal(ii_dataset_crop_indexed(d), JPEGS);
  stale_files stale = {0};
  atomic_store(&given, 0);
  same_batches(without, 1, d, 3, 0, 9, &stale, "list");
  assert_true(atomic_load(&given) > 9 * BATCH / 2);
  assert_int_equal(stale.count, 0);
  copy(in_root("kept.jpg"), in_root("set/b/2.jpg"));
  unlink(in_root("set/new.jpg"));
  ii_dataset_free(d);
  ii_dataset_free(without);
}

/* ---- the programs ----------------------------------------------------------------------------*/

static int shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int shell(const char *fmt, ...) {
  char line[2000], command[4000];
  va_list args;
  va_start(args, fmt);
  vsnprintf(line, sizeof line, fmt, args);
  va_end(args);
  snprintf(command, sizeof command, "cd '%s'; PATH=%s:$PATH; (%s) >out 2>err", root, II_BIN, line);
  const int status = system(command);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool said(const char *file, const char *text) {
  static char buffer[1 << 16];
  FILE *f = fopen(in_root(file), "r");
  assert_non_null(f);
  buffer[fread(buffer, 1, sizeof buffer - 1, f)] = 0;
  fclose(f);
  return strstr(buffer, text) != NULL;
}

static void test_program(void **state) {
  char text[100];
  assert_int_equal(shell("scan --folder set --crop-index cli.crops --out cli.txt --quiet"), 0);
  snprintf(text, sizeof text, "crop index: cli.crops, %d of %d images", JPEGS, TOTAL);
  assert_true(said("out", text));
  assert_true(same_file(in_root("cli.crops"), in_root("set.crops")));
  assert_int_equal(shell("scan --folder png --crop-index none.crops --quiet"), 0);
  assert_true(said("out", "only baseline JPEG"));
  static const struct {
    const char *arguments, *says;
    int code;
  } wrong[] = {{"--packed p.h5 --crop-index cli.crops", "is a pack", 2},
               {"--folder set --crop-index", "needs a value", 2},
               {"--folder set --crop-index ''", "needs a value", 2},
               {"--folder set --crop-index nowhere/x.crops", "nowhere/x.crops", 1},
               {"--folder set --crop-index set", "it is a folder", 1},
               {"--folder set --out ./cli.crops --crop-index set/../cli.crops", "same file", 2}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    assert_int_equal(shell("scan %s", wrong[i].arguments), wrong[i].code);
    assert_true(said("err", wrong[i].says) && !said("out", "images")); /* before it begins */
  }
  assert_true(same_file(in_root("cli.crops"), in_root("set.crops")));
  /* no room: one sentence, and nothing of the new one is left */
  assert_int_equal(shell("trap '' XFSZ; ulimit -f 8; scan --folder set --crop-index cli.crops"), 1);
  assert_true(said("err", "check the free space") || said("err", "cannot write"));
  assert_int_not_equal(access(in_root("cli.crops.tmp"), F_OK), 0);
  assert_true(same_file(in_root("cli.crops"), in_root("set.crops")));
  /* another process is at it */
  int fd = open(in_root("cli.crops.tmp"), O_RDWR | O_CREAT, 0666);
  assert_int_equal(flock(fd, LOCK_EX), 0);
  assert_int_equal(shell("scan --folder set --crop-index cli.crops"), 1);
  assert_true(said("err", "another process"));
  close(fd); /* what a killed one left is no hindrance */
  assert_int_equal(shell("scan --folder set --crop-index cli.crops"), 0);
  assert_true(same_file(in_root("cli.crops"), in_root("set.crops")));
}

/* Each image has what a fresh index of its file has. */
static void check_entries(ii_dataset *d, const char *crop_index, int64_t want) {
  ii_bytes file = {0}, b = {0};
  const uint8_t *bytes;
  int64_t n, found = 0;
  use(d, crop_index);
  for (int64_t i = 0; i < ii_dataset_size(d); i++) {
    ii_error err = {0};
    uint8_t *index;
    int64_t index_n;
    assert_int_equal(ii_dataset_read(d, i, &file, &bytes, &n, &err), II_OK);
    if (ii_dataset_crop_index(d, i, bytes, n, &b) != II_CROP_INDEX_FOUND) continue;
    assert_int_equal(ii_jpeg_index_make(bytes, n, &index, &index_n, &err), II_OK);
    assert_true(index_n == b.size && !memcmp(index, b.data, (size_t)index_n));
    free(index);
    found++;
  }
  assert_int_equal(found, want);
  ii_bytes_free(&file);
  ii_bytes_free(&b);
  ii_dataset_free(d);
}

/* iNaturalist and the flat folder of ImageNet, by their own names. */
static void test_layouts(void **state) {
  static const char inat[] =
      "{\"images\": [{\"id\": 7, \"file_name\": \"set/c/1.jpg\"}, {\"id\": 3, \"file_name\": "
      "\"set/a/4.png\"}, {\"id\": 4, \"file_name\": \"set/b/0.jpg\"}], \"categories\": [{\"id\": "
      "12, \"name\": \"x\"}, {\"id\": 5, \"name\": \"y\"}], \"annotations\": [{\"id\": 0, "
      "\"image_id\": 7, \"category_id\": 12}, {\"id\": 1, \"image_id\": 3, \"category_id\": 5}, "
      "{\"id\": 2, \"image_id\": 4, \"category_id\": 12}]}";
  ii_error err = {0};
  ii_dataset *d;
  put(in_root("train2018.json"), inat, sizeof inat - 1);
  assert_int_equal(shell("scan --inat train2018.json --crop-index inat.crops --quiet"), 0);
  assert_int_equal(ii_dataset_open_inat(in_root("train2018.json"), NULL, root, &d, &err), II_OK);
  check_entries(d, in_root("inat.crops"), 2);
  put(in_root("truth.txt"), "0 n02000000\n1 n01000000\n", 24);
  assert_int_equal(shell("cp set/b/0.jpg set/b/0.JPEG; cp set/b/1.jpg set/b/1.JPEG"), 0);
  assert_int_equal(shell("scan --imagenet-val set/b --truth truth.txt --crop-index val.crops"), 0);
  assert_int_equal(ii_dataset_open_imagenet_val(in_root("set/b"), in_root("truth.txt"), &d, &err),
                   II_OK);
  check_entries(d, in_root("val.crops"), 2);
  assert_int_equal(shell("rm set/b/0.JPEG set/b/1.JPEG"), 0);
}

static pid_t start_scan(void) {
  const pid_t child = fork();
  if (child != 0) return child;
  const int null = open("/dev/null", O_WRONLY);
  dup2(null, 1), dup2(null, 2);
  execl(II_BIN "/scan", "scan", "--folder", in_root("set"), "--crop-index", in_root("killed.crops"),
        "--threads", "2", (char *)NULL);
  _exit(127);
}

/* At any moment: what is there under the name is the old file or the whole new one. */
static void test_killed(void **state) {
  static const char old[] = "the old one";
  int finished = 0, stopped = 0;
  for (int i = 0; i < 40; i++) {
    const int with = (const int[]){SIGKILL, SIGINT, SIGTERM}[i % 3];
    int status;
    put(in_root("killed.crops"), old, sizeof old);
    const pid_t child = start_scan();
    usleep((useconds_t)(i * 2500));
    kill(child, with);
    assert_int_equal(waitpid(child, &status, 0), child);
    ii_bytes b = {0};
    slurp(in_root("killed.crops"), &b);
    if (b.size == sizeof old && !memcmp(b.data, old, sizeof old))
      stopped++;
    else
      finished += same_file(in_root("killed.crops"), in_root("set.crops"));
    assert_int_equal(stopped + finished, i + 1);
    /* a program that ends by itself leaves nothing behind */
    if (WIFEXITED(status)) assert_true(access(in_root("killed.crops.tmp"), F_OK) != 0);
    ii_bytes_free(&b);
  }
  unlink(in_root("killed.crops.tmp"));
  assert_true(stopped > 0);
}

/* ---- the configuration -----------------------------------------------------------------------*/

static char note[4000];

static void hear(void *user, ii_say_kind kind, const char *text) {
  snprintf(note + strlen(note), sizeof note - strlen(note), "%s\n", text);
}

static void config(ii_config *cfg, const char *crop_index) {
  ii_error err = {0};
  char text[1000];
  snprintf(text, sizeof text,
           "data = { root = \"%s/tree\"; img_size = 32; batch_size = 4; workers = 2; crop_index = "
           "\"%s\"; auto_augment = \"rand-m9-mstd0.5-inc1\"; };\n",
           root, crop_index);
  put(in_root("c.cfg"), text, (int64_t)strlen(text));
  if (ii_config_load(cfg, in_root("c.cfg"), &err) != II_OK) fail_msg("%s", err.text);
}

static void make_tree(void) {
  if (access(in_root("tree"), F_OK) == 0) return;
  mkdir(in_root("tree"), 0777);
  make_set("tree/train", 6);
  make_set("tree/val", 3);
  assert_int_equal(shell("scan --folder tree/train --crop-index tree/train.crops"), 0);
}

static void test_key(void **state) {
  ii_config cfg;
  ii_error err = {0};
  ii_dataset *d;
  const ii_say say = {.fn = hear};
  make_tree();
  config(&cfg, "train.crops");
  assert_int_equal(ii_setup_dataset(&cfg, true, &d, &err), II_OK);
  note[0] = 0;
  assert_int_equal(ii_setup_classes(&cfg, d, &say, &err), II_OK);
  assert_non_null(strstr(note, "data.crop_index: 15 of 18 images have an entry"));
  ii_dataset_free(d);
  assert_int_equal(ii_setup_dataset(&cfg, false, &d, &err), II_OK);
  assert_int_equal(ii_dataset_crop_indexed(d), 0); /* training alone */
  ii_dataset_free(d);
  config(&cfg, "val.crops");
  assert_int_equal(ii_setup_dataset(&cfg, true, &d, &err), II_ERR_IO);
  assert_non_null(strstr(err.text, "val.crops"));
  ii_error_clear(&err);
  config(&cfg, "train.crops");
  cfg.data.format = ii_data_format_packed;
  assert_int_equal(ii_config_check(&cfg, &err), II_ERR_ARG);
  assert_non_null(strstr(err.text, "packs have their own"));
}

/* The programs that show and measure what training sees. */
static void test_other_programs(void **state) {
  make_tree();
  static const char keys[] = "--set data.root=tree --set model.num_classes=3 "
                             "--set data.img_size=64 --set data.workers=2 --set data.batch_size=4 "
                             "--set data.auto_augment=rand-m9-mstd0.5-inc1";
  assert_int_equal(shell("augment_preview --config quickstart.cfg %s --out a.png", keys), 0);
  assert_int_equal(shell("augment_preview --config quickstart.cfg %s --out b.png --set "
                         "data.crop_index=train.crops",
                         keys),
                   0);
  assert_true(same_file(in_root("a.png"), in_root("b.png")));
  assert_int_equal(shell("train --config quickstart.cfg %s --profile-data --profile-seconds 0.2 "
                         "--set data.crop_index=train.crops",
                         keys),
                   0);
  assert_true(said("out", "15 of them are in the crop index train.crops") &&
              !said("err", "has changed"));
  for (int i = 0; i < CLASSES * 6; i++) { /* all of them: on a slow machine it sees only a few */
    char path[100];
    snprintf(path, sizeof path, "tree/train/%c/%d.jpg", 'a' + i / 6, i % 6);
    if (i % 6 != 4) make_image(in_root(path), 2, 3);
  }
  assert_int_equal(shell("train --config quickstart.cfg %s --profile-data --profile-seconds 0.2 "
                         "--set data.crop_index=train.crops",
                         keys),
                   0);
  assert_true(said("err", "has changed since") || said("out", "has changed since"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_same_batches),   cmocka_unit_test(test_file),
      cmocka_unit_test(test_order),          cmocka_unit_test(test_changed_images),
      cmocka_unit_test(test_damaged_files),  cmocka_unit_test(test_damaged_entries),
      cmocka_unit_test(test_wrong_files),    cmocka_unit_test(test_lists),
      cmocka_unit_test(test_program),        cmocka_unit_test(test_layouts),
      cmocka_unit_test(test_killed),         cmocka_unit_test(test_key),
      cmocka_unit_test(test_other_programs),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
