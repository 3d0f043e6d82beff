/* What threads must not change: batches of the full recipe, bit for bit, from a folder (with
 * a crop index too) and a pack, begun anywhere; how far ahead they may work; how many there are;
 * what they say of their time. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "data/loader.h"
#include "data/pack.h"
#include "data/parallel.h"
#include "data/sample_draw.h"
#include "data/scan.h"

enum { CLASSES = 3, EACH = 10, TOTAL = CLASSES * EACH, SIZE = 48, PIXELS = SIZE * SIZE * 3 };

static char root[256];
enum { FOLDER, PACK, PACK_IN_MEMORY, CROP_INDEX, SETS };
static ii_dataset *sets[SETS];
static const char *const set_names[] = {"folder", "pack", "pack in memory", "crop index"};

static char *in_root(const char *name) {
  static char path[4][600];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", root, name);
  return path[turn];
}

/* The folder once more, with a crop index. */
static ii_status open_indexed(ii_error *err) {
  ii_scan_options o = {.threads = 3};
  ii_scan_report r;
  ii_crop_summary x;
  II_TRY(ii_dataset_open_folder(in_root("set"), NULL, &sets[CROP_INDEX], err));
  II_TRY(ii_crop_writer_new(sets[CROP_INDEX], in_root("set.crops"), &o.crops, err));
  II_TRY(ii_scan(sets[CROP_INDEX], &o, &r, err));
  ii_scan_free(&r);
  II_TRY(ii_crop_writer_finish(o.crops, &x, err));
  ii_crop_writer_free(o.crops);
  return ii_dataset_use_crop_index(sets[CROP_INDEX], in_root("set.crops"), err);
}

static int setup(void **state) {
  static uint8_t rgb[160 * 160 * 3];
  char name[100];
  ii_error err = {0};
  ii_pack_result r;
  strcpy(root, "/tmp/ii_threads_XXXXXX");
  if (!mkdtemp(root) || mkdir(in_root("set"), 0777) != 0) return -1;
  for (int c = 0; c < CLASSES; c++) {
    snprintf(name, sizeof name, "set/%c", 'a' + c);
    mkdir(in_root(name), 0777);
    for (int i = 0; i < EACH; i++) {
      const int64_t size = 60 + (c * 37 + i * 23) % 100;
      ii_sample_draw(5, c, i, size, rgb);
      snprintf(name, sizeof name, "set/%c/%d.%s", 'a' + c, i, i % 5 == 4 ? "png" : "jpg");
      const ii_status s = i % 5 == 4
                              ? ii_image_write_png(in_root(name), rgb, size, size, &err)
                              : ii_image_write_jpeg(in_root(name), rgb, size, size, 85, &err);
      if (s != II_OK) return -1;
    }
  }
  if (ii_dataset_open_folder(in_root("set"), NULL, &sets[FOLDER], &err) != II_OK) return -1;
  if (ii_pack_write(sets[FOLDER], in_root("p.h5"), &(ii_pack_options){.threads = 2}, &r, &err) !=
      II_OK)
    return -1;
  for (int k = PACK; k <= PACK_IN_MEMORY; k++)
    if (ii_dataset_open_packed(in_root("p.h5"), k == PACK_IN_MEMORY, &sets[k], &err) != II_OK)
      return -1;
  return open_indexed(&err) == II_OK ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  for (int k = 0; k < SETS; k++) ii_dataset_free(sets[k]);
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

static ii_loader_config recipe(const ii_dataset *d, int64_t batch, int threads) {
  ii_transform t = ii_transform_default(SIZE, true);
  ii_error err = {0};
  t.random_filter = true;
  assert_int_equal(ii_randaugment_parse("rand-m9-mstd0.5-inc1", &t.auto_augment, &err), II_OK);
  ii_loader_config c = ii_loader_config_default(d, t, batch);
  c.seed = 77;
  c.threads = threads;
  return c;
}

static ii_loader *open_loader(ii_loader_config c) {
  ii_loader *l = NULL;
  ii_error err = {0};
  if (ii_loader_new(&c, &l, &err) != II_OK) fail_msg("%s", err.text);
  return l;
}

static const ii_batch *next(ii_loader *l) {
  const ii_batch *b = NULL;
  ii_error err = {0};
  if (ii_loader_next(l, &b, &err) != II_OK) fail_msg("%s", err.text);
  return b;
}

/* ---- the same batches ------------------------------------------------------------------------*/

enum { BATCH = 7, PER_EPOCH = TOTAL / BATCH, STREAM = 2 * PER_EPOCH + 1, RESUMED = PER_EPOCH + 2 };

typedef struct {
  int64_t keys[BATCH], samples[BATCH];
  int32_t labels[BATCH];
  float images[BATCH * PIXELS];
} kept;

static void check_same(const ii_batch *b, int64_t s, const kept *want, const char *where) {
  assert_true(b->epoch == s / PER_EPOCH && b->index == s % PER_EPOCH && b->count == BATCH);
  /* the keys are also what erasing and mixing are drawn from */
  if (memcmp(b->keys, want->keys, sizeof want->keys) ||
      memcmp(b->samples, want->samples, sizeof want->samples) ||
      memcmp(b->labels, want->labels, sizeof want->labels) ||
      memcmp(b->images, want->images, sizeof want->images))
    fail_msg("batch %lld differs: %s", (long long)s, where);
}

static void test_same_batches(void **state) {
  static const int threads[] = {1, 2, 7};
  static kept want[STREAM];
  ii_loader *l = open_loader(recipe(sets[FOLDER], BATCH, 1));
  for (int s = 0; s < STREAM; s++) {
    const ii_batch *b = next(l);
    memcpy(want[s].keys, b->keys, sizeof want[s].keys);
    memcpy(want[s].samples, b->samples, sizeof want[s].samples);
    memcpy(want[s].labels, b->labels, sizeof want[s].labels);
    memcpy(want[s].images, b->images, sizeof want[s].images);
  }
  ii_loader_free(l);
  assert_memory_not_equal(want[0].images, want[PER_EPOCH].images, sizeof want[0].images);
  for (int k = 0; k < SETS; k++)
    for (int t = 0; t < 3; t++)
      for (int resumed = 0; resumed < 2; resumed++) {
        char where[100];
        snprintf(where, sizeof where, "%s, %d threads, %s", set_names[k], threads[t],
                 resumed ? "resumed in mid-epoch" : "from the start");
        ii_loader_config c = recipe(sets[k], BATCH, threads[t]);
        c.prefetch = 1 + t, c.measure = t == 2;
        l = open_loader(c);
        if (resumed) ii_loader_seek(l, 1, 2);
        for (int s = resumed ? RESUMED : 0; s < STREAM; s++)
          check_same(next(l), s, &want[s], where);
        ii_loader_free(l);
      }
}

/* ---- how far ahead ---------------------------------------------------------------------------*/

static atomic_llong reads;

ii_status __real_ii_dataset_read(const ii_dataset *d, int64_t i, ii_bytes *buffer,
                                 const uint8_t **bytes, int64_t *n, ii_error *err);
ii_status __wrap_ii_dataset_read(const ii_dataset *d, int64_t i, ii_bytes *buffer,
                                 const uint8_t **bytes, int64_t *n, ii_error *err);

ii_status __wrap_ii_dataset_read(const ii_dataset *d, int64_t i, ii_bytes *buffer,
                                 const uint8_t **bytes, int64_t *n, ii_error *err) {
  atomic_fetch_add(&reads, 1);
  return __real_ii_dataset_read(d, i, buffer, bytes, n, err);
}

/* So many images are begun, and then no more. */
static void expect_reads(int64_t want) {
  for (int ms = 0; atomic_load(&reads) < want; ms++) {
    if (ms > 60000) fail_msg("%lld images, not %lld", atomic_load(&reads), (long long)want);
    usleep(1000);
  }
  usleep(30000);
  assert_int_equal(atomic_load(&reads), want);
}

static void test_back_pressure(void **state) {
  static const int threads[] = {1, 2, 7};
  for (int prefetch = 1; prefetch <= 3; prefetch += 2)
    for (int t = 0; t < 3; t++) {
      ii_loader_config c = recipe(sets[FOLDER], 4, threads[t]);
      c.prefetch = prefetch;
      atomic_store(&reads, 0);
      ii_loader *l = open_loader(c);
      expect_reads(4 * prefetch);
      for (int taken = 1; taken <= 3; taken++) {
        next(l);
        expect_reads(4 * (taken + prefetch));
      }
      ii_loader_seek(l, 1, 0); /* drops all, and begins again */
      atomic_store(&reads, 0);
      next(l);
      ii_loader_free(l);
      assert_true(atomic_load(&reads) <= 4 * (2 + 2 * prefetch));
    }
}

/* ---- how many --------------------------------------------------------------------------------*/

static void put(const char *name, const char *text) {
  char path[600];
  snprintf(path, sizeof path, "%s/%s", root, name);
  for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')) != NULL; *p++ = '/') {
    *p = 0;
    mkdir(path, 0777);
  }
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
}

static double quota(const char *machine) {
  return ii_parallel_quota(in_root(machine));
}

static void test_quota(void **state) {
  assert_true(quota("m0") == 0); /* no such files */
  put("m1/proc/self/cgroup", "0::/a/b\n");
  assert_true(quota("m1") == 0);
  put("m1/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  assert_true(quota("m1") == 0);
  put("m1/sys/fs/cgroup/a/cpu.max", "150000 100000\n"); /* of a group around it */
  assert_true(quota("m1") == 1.5);
  put("m1/sys/fs/cgroup/a/b/cpu.max", "25000 50000\n");
  assert_true(quota("m1") == 0.5);
  put("m1/sys/fs/cgroup/a/b/cpu.max", "800000 100000\n");
  assert_true(quota("m1") == 1.5);
  put("m2/proc/self/cgroup", "0::/../../outside\n"); /* a container's view */
  put("m2/sys/fs/cgroup/cpu.max", "300000 100000\n");
  assert_true(quota("m2") == 3);
  put("m3/proc/self/cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/x\n0::/x\n");
  put("m3/sys/fs/cgroup/cpuset/x/cpu.cfs_quota_us", "1000\n"); /* nobody's */
  put("m3/sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "-1\n");
  put("m3/sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n");
  assert_true(quota("m3") == 0);
  put("m3/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "250000\n");
  put("m3/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  assert_true(quota("m3") == 2.5);
  put("m3/sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "50000\n");
  assert_true(quota("m3") == 0.5);
  put("m4/proc/self/cgroup", "nonsense\n0:\n\n3:cpu\n0::\n");
  put("m4/sys/fs/cgroup/cpu.max", "nonsense\n");
  assert_true(quota("m4") == 0);
}

static void test_affinity(void **state) {
  cpu_set_t all, one;
  int first = 0;
  assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
  const int processors = ii_parallel_processors();
  assert_true(processors >= 1 && processors <= CPU_COUNT(&all));
  while (!CPU_ISSET(first, &all)) first++;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  assert_int_equal(ii_parallel_processors(), 1);
  ii_loader *l = open_loader(recipe(sets[FOLDER], BATCH, 0));
  assert_int_equal(ii_loader_threads(l), 1);
  ii_loader_free(l);
  assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
  assert_int_equal(ii_parallel_processors(), processors);
  l = open_loader(recipe(sets[FOLDER], BATCH, 0));
  assert_int_equal(ii_loader_threads(l), processors);
  ii_loader_free(l);
}

/* ---- what they say of their time -------------------------------------------------------------*/

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_times(void **state) {
  ii_bytes file = {0};
  for (int k = 0; k < 4; k++) {
    const int threads = k % 2 ? 3 : 1;
    const ii_dataset *d = sets[k < 2 ? FOLDER : PACK];
    ii_loader_config c = recipe(d, BATCH, threads);
    ii_stage_times t;
    int64_t bytes = 0, images = 0;
    double wall = 0;
    c.measure = true, c.endless = false;
    const double begin = now();
    ii_loader *l = open_loader(c);
    for (const ii_batch *b; (b = next(l)) != NULL;)
      for (int64_t i = 0; i < b->count; i++, images++) {
        const uint8_t *at;
        int64_t n, index_n;
        ii_error err = {0};
        assert_int_equal(ii_dataset_read(d, b->samples[i], &file, &at, &n, &err), II_OK);
        ii_dataset_packed_index(d, b->samples[i], at, &index_n); /* read with it */
        bytes += n + index_n;
        assert_int_equal(file.size, n + index_n);
      }
    ii_loader_times(l, &t);
    const double end = now();
    ii_loader_free(l);
    assert_int_equal(t.images, images);
    assert_int_equal(t.bytes, bytes);
    for (int s = 0; s < II_STAGE_COUNT; s++) {
      assert_true(t.cpu[s] >= 0 && t.wall[s] >= 0);
      assert_true(s >= II_STAGE_OTHER || (t.cpu[s] > 0 && t.wall[s] > 0));
      wall += t.wall[s];
    }
    /* stages follow each other */
    assert_true(wall <= threads * (end - begin));
    c.measure = false;
    l = open_loader(c);
    next(l);
    ii_loader_times(l, &t);
    assert_true(t.images == 0 && ii_stage_times_cpu(&t) == 0);
    ii_loader_free(l);
  }
  ii_bytes_free(&file);
}

/* ---- scan ------------------------------------------------------------------------------------*/

static void test_scan(void **state) {
  static const int threads[] = {1, 2, 7};
  ii_scan_report want = {0};
  for (int k = 0; k < 2; k++)
    for (int t = 0; t < 3; t++) {
      ii_error err = {0};
      ii_scan_report r;
      if (ii_scan(sets[k], &(ii_scan_options){.threads = threads[t]}, &r, &err) != II_OK)
        fail_msg("%s", err.text);
      if (k == 0 && t == 0) want = r;
      assert_true(r.images == TOTAL && r.bad_count == 0 && r.png == TOTAL / 5);
      assert_true(r.bytes == want.bytes && r.max_pixels == want.max_pixels);
      ii_scan_free(&r);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_same_batches), cmocka_unit_test(test_back_pressure),
      cmocka_unit_test(test_quota),        cmocka_unit_test(test_affinity),
      cmocka_unit_test(test_times),        cmocka_unit_test(test_scan),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
