/* Packs and crop indexes whose writer is killed: what was there before is there, or the whole new
 * one. */
#include <dirent.h>
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
#include <time.h>
#include <unistd.h>
#include "data/jpeg_index.h"
#include "data/pack.h"
#include "data/pack_h5.h"
#include "data/sample_draw.h"
#include "data/scan.h"

enum { CLASSES = 4, EACH = 70, TOTAL = CLASSES * EACH }; /* more than one block */

static char root[256];
static ii_dataset *folder, *first_class;

static char *in_root(const char *name) {
  static char path[4][600];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", root, name);
  return path[turn];
}

static int setup(void **state) {
  static uint8_t rgb[64 * 64 * 3];
  char path[600];
  ii_error err = {0};
  strcpy(root, "/tmp/ii_killed_XXXXXX");
  if (!mkdtemp(root) || mkdir(in_root("set"), 0777) != 0) return -1;
  for (int i = 0; i < TOTAL; i++) {
    const int64_t size = 20 + i * 5 % 40;
    snprintf(path, sizeof path, "%s/set/%c", root, 'a' + i / EACH);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/set/%c/%d.jpg", root, 'a' + i / EACH, i);
    ii_sample_draw(3, i / EACH, i, size, rgb);
    if (ii_image_write_jpeg(path, rgb, size, size, 85, &err) != II_OK) return -1;
  }
  FILE *f = fopen(in_root("list.txt"), "w");
  for (int i = 0; i < EACH; i++) fprintf(f, "a/%d.jpg 0\n", i);
  fclose(f);
  const ii_status s =
      ii_dataset_open_list(in_root("list.txt"), in_root("set"), 0, &first_class, &err);
  if (s != II_OK) return -1;
  return ii_dataset_open_folder(in_root("set"), NULL, &folder, &err) == II_OK ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  ii_dataset_free(folder);
  ii_dataset_free(first_class);
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
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

/* A writer, in a process of its own, dies just before its nth step: an array put into a file,
 * a file synced, renamed or removed. 0: it lives on. */
static int steps_left;

static void step(void) {
  if (steps_left > 0 && --steps_left == 0) kill(getpid(), SIGKILL);
}

int __real_fsync(int fd);
int __real_rename(const char *from, const char *to);
int __real_unlink(const char *path);
ii_status __real_ii_pack_h5_put(ii_pack_file *f, const char *name, ii_pack_type type,
                                const void *data, int64_t n, bool summed, ii_error *err);
int __wrap_fsync(int fd);
int __wrap_rename(const char *from, const char *to);
int __wrap_unlink(const char *path);
ii_status __wrap_ii_pack_h5_put(ii_pack_file *f, const char *name, ii_pack_type type,
                                const void *data, int64_t n, bool summed, ii_error *err);

int __wrap_fsync(int fd) {
  step();
  return __real_fsync(fd);
}

int __wrap_rename(const char *from, const char *to) {
  step();
  return __real_rename(from, to);
}

int __wrap_unlink(const char *path) {
  step();
  return __real_unlink(path);
}

ii_status __wrap_ii_pack_h5_put(ii_pack_file *f, const char *name, ii_pack_type type,
                                const void *data, int64_t n, bool summed, ii_error *err) {
  step();
  return __real_ii_pack_h5_put(f, name, type, data, n, summed, err);
}

typedef enum { NOTHING, OLD, NEW } what_is_there;

/* ---- packs -----------------------------------------------------------------------------------*/

/* The old pack has crop indexes, the new one two shards instead. */
static bool write_pack(const char *path, bool old) {
  ii_pack_result r;
  ii_error e = {0};
  const ii_pack_options o = {.shard_bytes = !old, .threads = 2, .no_crop_index = !old};
  return ii_pack_write(folder, path, &o, &r, &e) == II_OK;
}

static what_is_there look_at_pack(const char *path) {
  ii_error err = {0};
  ii_dataset *d;
  int64_t bytes;
  if (ii_dataset_open_packed(path, false, &d, &err) != II_OK) fail_msg("%s", err.text);
  check_same(d);
  const bool old = ii_dataset_packed_indexes(d, &bytes) > 0;
  ii_dataset_free(d);
  return old ? OLD : NEW;
}

/* ---- crop indexes ----------------------------------------------------------------------------*/

/* The old one is of one class alone. */
static bool write_crop_index(const char *path, bool old) {
  ii_scan_options o = {.threads = 2};
  ii_scan_report r = {0};
  ii_crop_summary x;
  ii_error e = {0};
  const ii_dataset *d = old ? first_class : folder;
  const bool good = ii_crop_writer_new(d, path, &o.crops, &e) == II_OK &&
                    ii_scan(d, &o, &r, &e) == II_OK &&
                    ii_crop_writer_finish(o.crops, &x, &e) == II_OK;
  ii_crop_writer_free(o.crops);
  ii_scan_free(&r);
  return good;
}

static what_is_there look_at_crop_index(const char *path) {
  ii_error err = {0};
  ii_dataset *d;
  ii_bytes file = {0}, index = {0};
  assert_int_equal(ii_dataset_open_folder(in_root("set"), NULL, &d, &err), II_OK);
  if (ii_dataset_use_crop_index(d, path, &err) != II_OK) fail_msg("%s", err.text);
  const int64_t images = ii_dataset_crop_indexed(d);
  assert_true(images == EACH || images == TOTAL);
  for (int64_t i = 0; i < images; i++) {
    const uint8_t *bytes;
    uint8_t *made;
    int64_t n, made_n;
    assert_int_equal(ii_dataset_read(d, i, &file, &bytes, &n, &err), II_OK);
    assert_int_equal(ii_dataset_crop_index(d, i, bytes, n, &index), II_CROP_INDEX_FOUND);
    if (i % 16 != 0) continue;
    assert_int_equal(ii_jpeg_index_make(bytes, n, &made, &made_n, &err), II_OK);
    assert_int_equal(made_n, index.size);
    assert_memory_equal(made, index.data, (size_t)made_n);
    free(made);
  }
  ii_bytes_free(&file);
  ii_bytes_free(&index);
  ii_dataset_free(d);
  return images == EACH ? OLD : NEW;
}

/* ---- killed ----------------------------------------------------------------------------------*/

typedef struct {
  const char *name, *begin; /* begin: of the names of all of its files */
  bool (*write)(const char *path, bool old);
  what_is_there (*look)(const char *path);
  int unnamed, named; /* at least so many kills before it has its name, and after that */
  int files;          /* of the old one */
} subject;

/* Writes the new one; dies before its nth step. */
static pid_t start_writer(const subject *s, const char *path, int n) {
  const pid_t child = fork();
  if (child != 0) return child;
  steps_left = n;
  _exit(s->write(path, false) ? 0 : 1);
}

/* The writer's end; true if it was not killed. */
static bool finished(pid_t child) {
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) ? WEXITSTATUS(status) == 0 : WTERMSIG(status) == SIGKILL);
  return WIFEXITED(status);
}

static what_is_there look_at(const subject *s, const char *path) {
  return access(path, F_OK) == 0 ? s->look(path) : NOTHING;
}

static void begin_with(const subject *s, const char *path, bool old) {
  unlink(path);
  if (old) assert_true(s->write(path, true));
}

/* Before every step there is; returns how many seconds all of them take. */
static double kill_at_steps(const subject *s, const char *path, bool old) {
  struct timespec begin, end;
  int unnamed = 0, named = 0, n = 1;
  for (bool done = false; !done; n++) {
    begin_with(s, path, old);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    done = finished(start_writer(s, path, n));
    clock_gettime(CLOCK_MONOTONIC, &end);
    const what_is_there now = look_at(s, path);
    if (now == NEW) {
      named += !done;
    } else {
      assert_true(now == (old ? OLD : NOTHING) && named == 0 && !done);
      unnamed++;
    }
  }
  assert_true(unnamed >= s->unnamed && named >= s->named);
  return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}

/* And at other moments, of which it does not matter which they are. */
static void test_killed(void **state) {
  enum { MOMENTS = 20 };
  static const subject subjects[] = {
      /* 10 arrays in each of two shards, 3 in the index, all files and the folder on the disk */
      {"pack.h5", "pack", write_pack, look_at_pack, 2 * 10 + 3 + 5, 2, 2},
      {"set.crops", "set.crops", write_crop_index, look_at_crop_index, 7 + 2, 0, 1}};
  for (int k = 0; k < 2; k++) {
    const subject *s = &subjects[k];
    char path[600];
    strcpy(path, in_root(s->name));
    for (int old = 0; old < 2; old++) {
      const double whole = kill_at_steps(s, path, old);
      for (int moment = 0; moment < MOMENTS; moment++) {
        begin_with(s, path, old);
        const pid_t child = start_writer(s, path, 0);
        usleep((useconds_t)(whole * 1e6 * moment / MOMENTS));
        kill(child, SIGKILL);
        const bool done = finished(child);
        const what_is_there now = look_at(s, path);
        assert_true(now == NEW || (now == (old ? OLD : NOTHING) && !done));
      }
    }
    begin_with(s, path, true); /* leaves nothing of the killed ones behind */
    assert_int_equal(count_files(s->begin), s->files);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_killed)};
  return cmocka_run_group_tests(tests, setup, teardown);
}
