/* Checkpoints: what goes in comes out bit for bit, damage of any kind is noticed and never crashes,
 * a write is all or nothing, the folder of a run is searched and pruned correctly. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>
#include <cmocka.h>
#include <hdf5.h>
#include "autograd/rng.h"
#include "train/checkpoint.h"

static char folder[256];

/* HDF5 cannot drop a file that it failed to write (test_failed_write_changes_nothing). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
  return "leak:libhdf5";
}

/* A context, four tensors and an optimizer; nothing is computed. */
typedef struct {
  ii_ctx *ctx;
  ii_params params;
  ii_optimizer optimizer;
} world;

static void fill(ii_ctx *c, ii_tensor *t, ii_rng *rng) {
  int64_t n = ii_numel(t);
  double *v = malloc((size_t)n * sizeof *v);
  for (int64_t i = 0; i < n; i++) v[i] = ii_rng_normal(rng);
  ii_tensor_write_f64(c, t, v);
  free(v);
}

static void world_open(world *w, uint64_t seed, ii_optimizer_kind kind) {
  ii_error err = {0};
  ii_rng rng = ii_rng_make(seed, II_RNG_TEST, 0, 0);
  w->ctx = ii_ctx_open(&(ii_ctx_options){.threads = 1, .real = II_F32, .compute = II_F32}, &err);
  assert_non_null(w->ctx);
  ii_params_init(&w->params, w->ctx);
  ii_params_add(&w->params, "levels.0.blocks.0.dcn.offset.weight", 2, (int64_t[]){7, 5});
  ii_params_add(&w->params, "levels.0.blocks.0.dcn.offset.bias", 1, (int64_t[]){7});
  ii_params_add(&w->params, "patch_embed.conv1.weight", 4, (int64_t[]){3, 2, 3, 3});
  ii_params_add_buffer(&w->params, "conv_head.1.0.running_mean", 1, (int64_t[]){4});
  ii_optimizer_options o = {.kind = kind,
                            .base_lr = 0.1,
                            .momentum = 0.9,
                            .ema = true,
                            .ema_decay = 0.5,
                            .loss_scale = 65536,
                            .growth_interval = 2000,
                            .rules = {.depths = {1, 1, 1, 1}}};
  assert_int_equal(ii_optimizer_init(&w->optimizer, &w->params, &o), II_OK);
  for (int64_t i = 0; i < w->params.count; i++) fill(w->ctx, w->params.at[i].value, &rng);
  ii_optimizer_item item;
  for (int64_t i = 0; ii_optimizer_state(&w->optimizer, i, &item); i++)
    fill(w->ctx, item.tensor, &rng);
}

static void world_close(world *w) {
  ii_optimizer_destroy(&w->optimizer);
  ii_params_destroy(&w->params);
  ii_ctx_close(w->ctx);
}

static ii_train_state example_state(int64_t step) {
  return (ii_train_state){.epoch = 3,
                          .batch = 17,
                          .step = step,
                          .steps_per_epoch = 40,
                          .updates = 68,
                          .images = 4384,
                          .seed = 99,
                          .bad_files = 2,
                          .validated_step = 120,
                          .best_top1 = 71.25,
                          .best_is_ema = 1,
                          .loss_sum = 0.1 + 0.2,
                          .loss_count = 7,
                          .loss_scale = 4096,
                          .good_updates = 123,
                          .skipped_updates = 5};
}

static ii_status save(world *w, const char *path, int64_t step, ii_error *err) {
  static const char *const classes[] = {"cat", "d\xc3\xb6g", "a class with spaces"};
  return ii_checkpoint_save(path,
                            &(ii_checkpoint_content){.state = example_state(step),
                                                     .config = "model = { };\n",
                                                     .class_count = 3,
                                                     .classes = classes,
                                                     .params = &w->params,
                                                     .optimizer = &w->optimizer},
                            err);
}

static bool same(ii_ctx *a, const ii_tensor *x, ii_ctx *b, const ii_tensor *y) {
  size_t bytes = (size_t)ii_numel(x) * ii_dtype_size(x->dtype);
  char *p = malloc(bytes), *q = malloc(bytes);
  ii_tensor_read(a, x, p);
  ii_tensor_read(b, y, q);
  bool equal = memcmp(p, q, bytes) == 0;
  free(p);
  free(q);
  return equal;
}

static void in_folder(const char *name, char path[512]) {
  snprintf(path, 512, "%s/%s", folder, name);
}

static void round_trip(ii_optimizer_kind kind) {
  world a, b;
  ii_error err = {0};
  ii_h5 *f;
  char path[512], *text, **names;
  int64_t n;
  ii_train_state state, expected = example_state(137);
  in_folder("round.h5", path);
  world_open(&a, 1, kind);
  world_open(&b, 2, kind);
  ii_tensor *w = a.params.at[0].value;
  ii_rng rng = ii_rng_make(5, II_RNG_TEST, 0, 0);
  fill(a.ctx, w->grad, &rng); /* in the middle of an accumulation */
  w->grad_valid = true;
  assert_int_equal(save(&a, path, 137, &err), II_OK);
  assert_int_equal(ii_h5_open(path, &f, &err), II_OK);
  assert_true(ii_h5_is_ours(f));
  assert_int_equal(ii_checkpoint_state(f, &state, &err), II_OK);
  assert_memory_equal(&state, &expected, sizeof state);
  assert_int_equal(ii_checkpoint_config(f, &text, &err), II_OK);
  assert_string_equal(text, "model = { };\n");
  free(text);
  assert_int_equal(ii_checkpoint_classes(f, &names, &n, &err), II_OK);
  assert_int_equal(n, 3);
  assert_string_equal(names[1], "d\xc3\xb6g");
  assert_string_equal(names[2], "a class with spaces");
  free(names);
  b.params.at[1].value->grad_valid = true; /* must not survive */
  assert_int_equal(ii_checkpoint_restore(f, &b.params, &b.optimizer, &err), II_OK);
  ii_h5_close(f);
  for (int64_t i = 0; i < a.params.count; i++)
    assert_true(same(a.ctx, a.params.at[i].value, b.ctx, b.params.at[i].value));
  ii_optimizer_item x, y;
  int64_t items = 0;
  for (; ii_optimizer_state(&a.optimizer, items, &x); items++) {
    assert_true(ii_optimizer_state(&b.optimizer, items, &y));
    assert_true(same(a.ctx, x.tensor, b.ctx, y.tensor));
  }
  assert_int_equal(items, kind == II_OPTIMIZER_ADAMW ? 3 * 2 + 4 : 3 + 4);
  ii_update_state u;
  assert_int_equal(ii_optimizer_look(&b.optimizer, &u), II_OK);
  assert_int_equal(u.t, 68);
  assert_true(u.loss_scale == 4096 && u.loss_sum == expected.loss_sum);
  assert_int_equal(u.good_updates, 123);
  assert_int_equal(u.skipped, 5);
  assert_int_equal(u.loss_count, 7);
  assert_true(b.params.at[0].value->grad_valid);
  assert_false(b.params.at[1].value->grad_valid);
  assert_true(same(a.ctx, w->grad, b.ctx, b.params.at[0].value->grad));
  world_close(&a);
  world_close(&b);
}

static void test_round_trip(void **unused) {
  (void)unused;
  round_trip(II_OPTIMIZER_ADAMW);
  round_trip(II_OPTIMIZER_SGD);
}

/* The same contents give the same bytes, so files can be compared with cmp. */
static void test_reproducible(void **unused) {
  (void)unused;
  world a;
  ii_error err = {0};
  char p[512], q[512], command[1100];
  in_folder("same1.h5", p);
  in_folder("same2.h5", q);
  world_open(&a, 1, II_OPTIMIZER_ADAMW);
  assert_int_equal(save(&a, p, 1, &err), II_OK);
  sleep(1); /* HDF5 would write times in seconds */
  assert_int_equal(save(&a, q, 1, &err), II_OK);
  snprintf(command, sizeof command, "cmp -s %s %s", p, q);
  assert_int_equal(system(command), 0);
  world_close(&a);
}

/* ---- damage ----------------------------------------------------------------------------------*/

static unsigned char *read_file(const char *path, size_t *size) {
  FILE *f = fopen(path, "rb");
  assert_non_null(f);
  fseek(f, 0, SEEK_END);
  *size = (size_t)ftell(f);
  rewind(f);
  unsigned char *data = malloc(*size + 1);
  assert_int_equal(fread(data, 1, *size, f), *size);
  fclose(f);
  return data;
}

static void write_file(const char *path, const void *data, size_t size) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, size, f), size);
  fclose(f);
}

/* Opens and reads everything; returns the status. On an error there is a sentence with the path. */
static ii_status try_all(const char *path, world *w) {
  ii_error err = {0};
  ii_h5 *f;
  char *text, **names;
  int64_t n;
  ii_status s = ii_h5_open(path, &f, &err);
  if (s == II_OK) {
    ii_train_state state;
    s = ii_checkpoint_state(f, &state, &err);
    if (s == II_OK && (s = ii_checkpoint_config(f, &text, &err)) == II_OK) free(text);
    if (s == II_OK && (s = ii_checkpoint_classes(f, &names, &n, &err)) == II_OK) free(names);
    if (s == II_OK) s = ii_checkpoint_restore(f, &w->params, &w->optimizer, &err);
    ii_h5_close(f);
  }
  assert_int_equal(s, err.status);
  if (s != II_OK) {
    assert_non_null(strstr(err.text, path));
    assert_null(strchr(err.text, '\n'));
  }
  return s;
}

static void test_damage(void **unused) {
  (void)unused;
  enum { FLIPS = 400, CUTS = 200, BURSTS = 100 };
  world w;
  ii_error err = {0};
  char good[512], bad[512];
  size_t size;
  ii_rng rng = ii_rng_make(7, II_RNG_TEST, 0, 0);
  in_folder("good.h5", good);
  in_folder("bad.h5", bad);
  world_open(&w, 1, II_OPTIMIZER_ADAMW);
  assert_int_equal(save(&w, good, 9, &err), II_OK);
  assert_int_equal(try_all(good, &w), II_OK);
  unsigned char *data = read_file(good, &size);
  for (int i = 0; i < FLIPS; i++) { /* half of them in the first 2 KiB: block, superblock, groups */
    uint64_t bit = ii_rng_below(&rng, 8 * (uint64_t)(i % 2 ? size : 2048));
    data[bit / 8] ^= (unsigned char)(1u << bit % 8);
    write_file(bad, data, size);
    assert_int_not_equal(try_all(bad, &w), II_OK);
    data[bit / 8] ^= (unsigned char)(1u << bit % 8);
  }
  for (int i = 0; i < CUTS; i++) { /* shorter, and longer */
    size_t n = i < 4 ? (size_t)i : (size_t)ii_rng_below(&rng, size);
    write_file(bad, data, n);
    assert_int_not_equal(try_all(bad, &w), II_OK);
  }
  data[size] = 0;
  write_file(bad, data, size + 1);
  assert_int_not_equal(try_all(bad, &w), II_OK);
  for (int i = 0; i < BURSTS; i++) { /* a run of foreign bytes, as after a bad block */
    size_t n = 1 + (size_t)ii_rng_below(&rng, 600), at = (size_t)ii_rng_below(&rng, size - n);
    unsigned char *copy = malloc(size);
    memcpy(copy, data, size);
    for (size_t k = 0; k < n; k++) copy[at + k] = (unsigned char)ii_rng_u32(&rng);
    if (memcmp(copy, data, size) != 0) {
      write_file(bad, copy, size);
      assert_int_not_equal(try_all(bad, &w), II_OK);
    }
    free(copy);
  }
  write_file(bad, data, size);
  assert_int_equal(try_all(bad, &w), II_OK);
  free(data);
  world_close(&w);
}

static void expect_open_error(const char *path, ii_status status, const char *part) {
  ii_error err = {0};
  ii_h5 *f;
  assert_int_equal(ii_h5_open(path, &f, &err), status);
  assert_null(f);
  if (!strstr(err.text, part)) fail_msg("'%s' does not say '%s'", err.text, part);
}

static void test_not_a_checkpoint(void **unused) {
  (void)unused;
  char path[512];
  in_folder("none.h5", path);
  expect_open_error(path, II_ERR_IO, "No such file");
  write_file(path, "hello", 5);
  expect_open_error(path, II_ERR_FORMAT, "not a checkpoint");
  write_file(path, "", 0);
  expect_open_error(path, II_ERR_FORMAT, "not a checkpoint");
  unlink(path);
  assert_int_equal(mkfifo(path, 0600), 0); /* must not wait for a writer */
  expect_open_error(path, II_ERR_IO, "not a file");
  expect_open_error(folder, II_ERR_IO, "not a file");
  unlink(path);
}

/* A file of others may promise any size; the product of the sides must not overflow. */
static void test_huge_shape(void **unused) {
  (void)unused;
  char path[512];
  ii_error err = {0};
  ii_h5 *f;
  ii_h5_shape shape;
  const hsize_t dim[4] = {INT32_MAX, INT32_MAX, INT32_MAX, 2}, chunk[4] = {1, 1, 1, 1};
  in_folder("huge.h5", path);
  hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  hid_t space = H5Screate_simple(4, dim, NULL), how = H5Pcreate(H5P_DATASET_CREATE);
  assert_true(file >= 0 && space >= 0 && H5Pset_chunk(how, 4, chunk) >= 0);
  hid_t set = H5Dcreate2(file, "x", H5T_IEEE_F32LE, space, H5P_DEFAULT, how, H5P_DEFAULT);
  assert_true(set >= 0);
  H5Dclose(set);
  H5Pclose(how);
  H5Sclose(space);
  H5Fclose(file);
  assert_int_equal(ii_h5_open(path, &f, &err), II_OK);
  assert_int_equal(ii_h5_get_shape(f, "/", "x", &shape, &err), II_ERR_FORMAT);
  ii_h5_close(f);
}

/* ---- writing is all or nothing
 * -----------------------------------------------------------------*/

static void test_failed_write_changes_nothing(void **unused) {
  (void)unused;
  world w;
  ii_error err = {0};
  char path[512], temporary[600];
  size_t before, after;
  in_folder("atomic.h5", path);
  snprintf(temporary, sizeof temporary, "%s.tmp", path);
  world_open(&w, 1, II_OPTIMIZER_ADAMW);
  assert_int_equal(save(&w, path, 5, &err), II_OK);
  unsigned char *old = read_file(path, &before);
  /* a "disk" that is full after some bytes, at several places of the write */
  signal(SIGXFSZ, SIG_IGN);
  for (rlim_t limit = 0; limit < before; limit += 1777) {
    struct rlimit all, some;
    getrlimit(RLIMIT_FSIZE, &all);
    some = (struct rlimit){.rlim_cur = limit, .rlim_max = all.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &some), 0);
    ii_error_clear(&err);
    ii_status s = save(&w, path, 6, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &all), 0);
    assert_int_equal(s, II_ERR_IO);
    assert_non_null(strstr(err.text, "atomic.h5"));
    unsigned char *now = read_file(path, &after);
    assert_int_equal(before, after);
    assert_memory_equal(old, now, before);
    free(now);
    assert_int_not_equal(access(temporary, F_OK), 0);
  }
  free(old);
  ii_error_clear(&err);
  assert_int_equal(save(&w, path, 6, &err), II_OK); /* and it can go on */
  assert_int_equal(try_all(path, &w), II_OK);
  ii_error_clear(&err);
  assert_int_equal(save(&w, "/nonexistent/folder/x.h5", 1, &err), II_ERR_IO);
  assert_non_null(strstr(err.text, "No such file"));
  world_close(&w);
}

/* ---- the folder of a run
 * -----------------------------------------------------------------------*/

static int skips;
static void count_skip(void *user, const char *why) {
  (void)user;
  assert_non_null(strstr(why, "damaged"));
  skips++;
}

static int64_t newest_step(const char *dir) {
  ii_error err = {0};
  ii_h5 *f;
  ii_train_state state = {.step = -1};
  skips = 0;
  assert_int_equal(ii_checkpoint_open_newest(dir, &f, count_skip, NULL, &err), II_OK);
  if (!f) return -1;
  assert_int_equal(ii_checkpoint_state(f, &state, &err), II_OK);
  ii_h5_close(f);
  return state.step;
}

static void truncate_half(const char *path) {
  struct stat st;
  assert_int_equal(stat(path, &st), 0);
  assert_int_equal(truncate(path, st.st_size / 2), 0);
}

static void test_folder(void **unused) {
  (void)unused;
  world w;
  ii_error err = {0};
  char dir[512], path[II_RUN_PATH], best[II_RUN_PATH], **paths;
  int64_t n;
  in_folder("run", dir);
  assert_int_equal(newest_step(dir), -1); /* no such folder: a run that begins */
  assert_int_equal(mkdir(dir, 0777), 0);
  assert_int_equal(newest_step(dir), -1);
  world_open(&w, 1, II_OPTIMIZER_ADAMW);
  static const int64_t steps[] = {5, 1000, 20, 300};
  for (int i = 0; i < 4; i++) {
    ii_checkpoint_path(dir, steps[i], path);
    assert_int_equal(save(&w, path, steps[i], &err), II_OK);
  }
  snprintf(path, sizeof path, "%s/checkpoint-7.h5", dir); /* somebody's copy: not of the run */
  write_file(path, "mine", 4);
  ii_checkpoint_best_path(dir, best);
  ii_checkpoint_path(dir, 20, path);
  assert_int_equal(ii_checkpoint_link(path, best, &err), II_OK);
  assert_int_equal(ii_checkpoint_link(path, best, &err), II_OK); /* twice is no problem */
  assert_int_equal(ii_checkpoint_find(dir, &paths, &n, &err), II_OK);
  assert_int_equal(n, 5);
  assert_non_null(strstr(paths[0], "checkpoint-000001000.h5"));
  assert_non_null(strstr(paths[3], "checkpoint-000000005.h5"));
  assert_string_equal(paths[4], best);
  free(paths);
  assert_int_equal(newest_step(dir), 1000);
  assert_int_equal(skips, 0);
  ii_checkpoint_path(dir, 1000, path);
  truncate_half(path);
  assert_int_equal(newest_step(dir), 300);
  assert_int_equal(skips, 1);
  snprintf(path, sizeof path, "%s/checkpoint-000000300.h5.tmp", dir);
  write_file(path, "half", 4);
  assert_int_equal(ii_checkpoint_prune(dir, 1000, 2, &err), II_OK);
  assert_int_not_equal(access(path, F_OK), 0);
  assert_int_equal(ii_checkpoint_find(dir, &paths, &n, &err), II_OK);
  assert_int_equal(n, 3); /* 1000, 300, best */
  truncate_half(paths[1]);
  free(paths);
  assert_int_equal(newest_step(dir), 20); /* best.h5 is the last resort */
  assert_int_equal(skips, 2);
  /* resumed before the two damaged ones: they do not drive out what is written then */
  ii_checkpoint_path(dir, 30, path);
  assert_int_equal(save(&w, path, 30, &err), II_OK);
  assert_int_equal(ii_checkpoint_prune(dir, 30, 1, &err), II_OK);
  assert_int_equal(newest_step(dir), 30);
  assert_int_equal(skips, 0);
  world_close(&w);
}

static int make_folder(void **unused) {
  (void)unused;
  snprintf(folder, sizeof folder, "%s/ii-checkpoint-XXXXXX",
           getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **unused) {
  (void)unused;
  char command[300];
  snprintf(command, sizeof command, "rm -rf %s", folder);
  return system(command);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip), cmocka_unit_test(test_reproducible),
      cmocka_unit_test(test_damage),     cmocka_unit_test(test_not_a_checkpoint),
      cmocka_unit_test(test_huge_shape), cmocka_unit_test(test_failed_write_changes_nothing),
      cmocka_unit_test(test_folder)};
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
