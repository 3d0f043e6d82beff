/* Once every buffer has its size, preparing images takes no memory and gives none back. The linker
 * sends what the project's code asks of the allocator through counters here; what libjpeg and
 * libpng take inside themselves is counted apart (without a sanitizer, which has its own allocator)
 * and printed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/loader.h"
#include "data/pack.h"
#include "data/sample_draw.h"
#include "data/scan.h"

static atomic_bool counting;
static atomic_llong own_calls, all_calls;

static void count(atomic_llong *calls) {
  if (atomic_load(&counting)) atomic_fetch_add(calls, 1);
}

/* ---- of the project's code: -Wl,--wrap -------------------------------------------------------*/

#define COUNTED(result, name, parameters, arguments)                                               \
  result __real_##name parameters;                                                                 \
  result __wrap_##name parameters;                                                                 \
  result __wrap_##name parameters {                                                                \
    count(&own_calls);                                                                             \
    return __real_##name arguments;                                                                \
  }
COUNTED(void *, malloc, (size_t n), (n))
COUNTED(void *, calloc, (size_t n, size_t each), (n, each))
COUNTED(void *, realloc, (void *p, size_t n), (p, n))
COUNTED(void *, aligned_alloc, (size_t to, size_t n), (to, n))
COUNTED(int, posix_memalign, (void **p, size_t to, size_t n), (p, to, n))
COUNTED(char *, strdup, (const char *s), (s))
COUNTED(void, free, (void *p), (p))

/* ---- of everybody ----------------------------------------------------------------------------*/

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t each);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);

void *malloc(size_t n) {
  count(&all_calls);
  return __libc_malloc(n);
}
void *calloc(size_t n, size_t each) {
  count(&all_calls);
  return __libc_calloc(n, each);
}
void *realloc(void *p, size_t n) {
  count(&all_calls);
  return __libc_realloc(p, n);
}
void free(void *p) {
  if (p) count(&all_calls);
  __libc_free(p);
}
#endif

/* ---- the images ------------------------------------------------------------------------------*/

enum { IMAGES = 18, SIZE = 48 };
static char root[256];

static ii_dataset *make_set(bool png) {
  static uint8_t rgb[220 * 220 * 3];
  char path[300];
  ii_error err = {0};
  ii_dataset *d;
  for (int i = 0; i < IMAGES; i++) {
    const int64_t w = 90 + i * 41 % 130, h = 80 + i * 29 % 130, side = w > h ? w : h;
    snprintf(path, sizeof path, "%s/%s%d", root, png ? "png" : "jpg", i % 2);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s%d/%d.%s", root, png ? "png" : "jpg", i % 2, i,
             png ? "png" : "jpg");
    ii_sample_draw(5, i % 2, i, side, rgb);
    const ii_status s = png ? ii_image_write_png(path, rgb, w, h, &err)
                            : ii_image_write_jpeg(path, rgb, w, h, 85, &err);
    if (s != II_OK) fail_msg("%s", err.text);
  }
  snprintf(path, sizeof path, "%s/list_%s.txt", root, png ? "png" : "jpg");
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  for (int i = 0; i < IMAGES; i++)
    fprintf(f, "%s%d/%d.%s %d\n", png ? "png" : "jpg", i % 2, i, png ? "png" : "jpg", i % 2);
  fclose(f);
  if (ii_dataset_open_list(path, root, 0, &d, &err) != II_OK) fail_msg("%s", err.text);
  return d;
}

static ii_dataset *packed(const ii_dataset *d, bool in_memory) {
  char path[300];
  ii_error err = {0};
  ii_pack_result r;
  ii_dataset *p;
  snprintf(path, sizeof path, "%s/p%d%d.h5", root, (int)in_memory, rand());
  if (ii_pack_write(d, path, &(ii_pack_options){.threads = 1}, &r, &err) != II_OK ||
      ii_dataset_open_packed(path, in_memory, &p, &err) != II_OK)
    fail_msg("%s", err.text);
  return p;
}

/* The JPEG files once more, with a crop index. */
static ii_dataset *with_crop_index(const ii_dataset *d) {
  char path[300], list[300];
  ii_error err = {0};
  ii_scan_options o = {.threads = 1};
  ii_scan_report r;
  ii_crop_summary x;
  ii_dataset *indexed;
  snprintf(path, sizeof path, "%s/jpg.crops", root);
  snprintf(list, sizeof list, "%s/list_jpg.txt", root);
  if (ii_crop_writer_new(d, path, &o.crops, &err) != II_OK || ii_scan(d, &o, &r, &err) != II_OK ||
      ii_crop_writer_finish(o.crops, &x, &err) != II_OK ||
      ii_dataset_open_list(list, root, 0, &indexed, &err) != II_OK ||
      ii_dataset_use_crop_index(indexed, path, &err) != II_OK)
    fail_msg("%s", err.text);
  ii_crop_writer_free(o.crops);
  ii_scan_free(&r);
  assert_int_equal(ii_dataset_crop_indexed(indexed), IMAGES);
  return indexed;
}

static int setup(void **state) {
  strcpy(root, "/tmp/ii_memory_XXXXXX");
  return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

/* ---- counting --------------------------------------------------------------------------------*/

static ii_loader *open_loader(const ii_dataset *d, bool train, int threads) {
  ii_transform t = ii_transform_default(SIZE, train);
  ii_loader *l;
  ii_error err = {0};
  t.random_filter = train;
  if (train) ii_randaugment_parse("rand-m9-mstd0.5-inc1", &t.auto_augment, &err);
  ii_loader_config c = ii_loader_config_default(d, t, 4);
  c.threads = threads, c.endless = false, c.measure = true;
  if (ii_loader_new(&c, &l, &err) != II_OK) fail_msg("%s", err.text);
  return l;
}

/* The same two epochs each time: calls of our own code, and what the libraries made. */
static int64_t pass(ii_loader *l, int64_t *libraries) {
  ii_error err = {0};
  const ii_batch *b;
  int64_t images = 0;
  atomic_store(&own_calls, 0), atomic_store(&all_calls, 0);
  atomic_store(&counting, true);
  for (int64_t epoch = 0; epoch < 2; epoch++) {
    ii_loader_seek(l, epoch, 0);
    do {
      if (ii_loader_next(l, &b, &err) != II_OK) fail_msg("%s", err.text);
      images += b ? b->count : 0;
    } while (b);
  }
  atomic_store(&counting, false);
  assert_true(images >= 2 * (IMAGES - 3));
  *libraries = (atomic_load(&all_calls) - atomic_load(&own_calls)) / images;
  return atomic_load(&own_calls);
}

static void check_one_thread(const ii_dataset *d, const char *what) {
  for (int train = 0; train < 2; train++) {
    int64_t libraries;
    ii_loader *l = open_loader(d, train, 1);
    const int64_t first = pass(l, &libraries); /* buffers grow */
    assert_true(first > 0);                    /* the counters count */
    const int64_t calls = pass(l, &libraries);
    if (calls != 0)
      fail_msg("%s, %s: %lld calls of the allocator in an epoch whose buffers are there", what,
               train ? "training" : "evaluation", (long long)calls);
    print_message("%s, %s: 0 calls of our own per image, %lld inside the libraries\n", what,
                  train ? "training" : "evaluation", (long long)libraries);
    ii_loader_free(l);
  }
}

/* Which thread gets which image is chance: at last each has had the largest. */
static void check_threads(const ii_dataset *d) {
  int64_t libraries;
  ii_loader *l = open_loader(d, true, 3);
  int quiet = 0;
  for (int i = 0; quiet < 3; i++) {
    if (i == 400) fail_msg("3 threads still take memory");
    quiet = pass(l, &libraries) == 0 ? quiet + 1 : 0;
  }
  ii_loader_free(l);
}

static void check_kind(bool png) {
  ii_dataset *files = make_set(png), *pack = packed(files, false), *memory = packed(files, true);
  check_one_thread(files, png ? "PNG files" : "JPEG files");
  check_one_thread(pack, png ? "pack of PNG" : "pack of JPEG");
  check_one_thread(memory, png ? "pack of PNG in memory" : "pack of JPEG in memory");
  check_threads(files);
  check_threads(pack);
  if (!png) {
    ii_dataset *indexed = with_crop_index(files);
    check_one_thread(indexed, "JPEG files with a crop index");
    check_threads(indexed);
    ii_dataset_free(indexed);
  }
  ii_dataset_free(files);
  ii_dataset_free(pack);
  ii_dataset_free(memory);
}

static void test_jpeg(void **state) {
  check_kind(false);
}
static void test_png(void **state) {
  check_kind(true);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_jpeg), cmocka_unit_test(test_png)};
  return cmocka_run_group_tests(tests, setup, teardown);
}
