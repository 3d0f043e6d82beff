/* For test_train*.c: a tiny image folder, a tiny configuration, and running the programs. */
#ifndef II_TRAIN_FIXTURE_H
#define II_TRAIN_FIXTURE_H
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "autograd/rng.h"
#include "data/image.h"
#include "train/h5file.h"

static char fixture_folder[256]; /* data/, tiny.cfg, and the output folders of the tests */

static inline const char *fixture_path(const char *name) {
  static char path[4][600];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", fixture_folder, name);
  return path[turn];
}

/* Class k: stripes of another direction and colour, with noise. */
static inline void fixture_image(const char *path, int k, uint64_t sample) {
  enum { SIZE = 36 };
  static uint8_t rgb[SIZE * SIZE * 3];
  ii_error err = {0};
  ii_rng rng = ii_rng_make(3, II_RNG_DATA, (uint64_t)k, sample);
  const int shift = (int)ii_rng_below(&rng, 8);
  for (int y = 0; y < SIZE; y++)
    for (int x = 0; x < SIZE; x++)
      for (int c = 0; c < 3; c++) {
        const int along = k % 2 ? x : y, on = (along + shift) / 4 % 2;
        const int base = on ? (c == k / 2 ? 220 : 130) : 60;
        rgb[(y * SIZE + x) * 3 + c] = (uint8_t)(base + (int)ii_rng_below(&rng, 30));
      }
  assert_int_equal(ii_image_write_jpeg(path, rgb, SIZE, SIZE, 90, &err), II_OK);
}

static inline void fixture_set(const char *part, int classes, int images) {
  char path[600];
  for (int k = 0; k < classes; k++) {
    snprintf(path, sizeof path, "%s/data/%s/class_%d", fixture_folder, part, k);
    assert_int_equal(mkdir(path, 0777), 0);
    for (int i = 0; i < images; i++) {
      snprintf(path, sizeof path, "%s/data/%s/class_%d/%02d.jpg", fixture_folder, part, k, i);
      fixture_image(path, k, (uint64_t)i + (strcmp(part, "val") ? 0 : 1000));
    }
  }
}

/* 4 classes, 6 training and 3 validation images each; 24 / 4 = 6 steps per epoch. */
static const char FIXTURE_CONFIG[] =
    "model = { name = \"tiny\"; channels = 8; depths = [1, 1, 2, 1]; groups = [1, 2, 4, 8];\n"
    "  mlp_ratio = 2.0; drop_path_rate = 0.2; num_classes = 0; };\n"
    "data = { root = \"%s/data\"; img_size = 32; batch_size = 4; eval_batch_size = 5; workers = "
    "2;\n"
    "  prefetch = 2; };\n"
    "train = { epochs = 3; warmup_epochs = 1; base_lr = 2e-3; warmup_lr = 1e-5; min_lr = 1e-5;\n"
    "  lr_reference_batch = 0; ema = true; ema_decay = 0.9; threads = 1; log_every_steps = 2;\n"
    "  output_dir = \"%s/out\"; };\n";

static inline int fixture_make(void **unused) {
  static const char *const folders[] = {"data", "data/train", "data/val"};
  (void)unused;
  snprintf(fixture_folder, sizeof fixture_folder, "%s/ii-train-XXXXXX",
           getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  if (!mkdtemp(fixture_folder)) return -1;
  for (int i = 0; i < 3; i++)
    if (mkdir(fixture_path(folders[i]), 0777) != 0) return -1;
  fixture_set("train", 4, 6);
  fixture_set("val", 4, 3);
  FILE *f = fopen(fixture_path("tiny.cfg"), "w");
  if (!f) return -1;
  fprintf(f, FIXTURE_CONFIG, fixture_folder, fixture_folder);
  return fclose(f);
}

static inline int fixture_remove(void **unused) {
  char command[300];
  (void)unused;
  snprintf(command, sizeof command, "rm -rf %s", fixture_folder);
  return system(command);
}

/* ---- running programs ------------------------------------------------------------------------*/

enum { FIXTURE_ARGS = 40 };

/* Starts a program of the build with its output in the files stdout and stderr of the fixture. The
 * arguments are one text, separated by single spaces. */
static inline pid_t fixture_start(const char *program, const char *arguments) {
  char path[600], text[4096], *argv[FIXTURE_ARGS] = {path};
  int n = 1;
  snprintf(path, sizeof path, "%s/%s", II_BIN, program);
  snprintf(text, sizeof text, "%s", arguments);
  for (char *save = NULL, *p = strtok_r(text, " ", &save); p && n < FIXTURE_ARGS - 1;
       p = strtok_r(NULL, " ", &save))
    argv[n++] = p;
  pid_t child = fork();
  if (child == 0) {
    int out = open(fixture_path("stdout"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int err = open(fixture_path("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (out >= 0 && err >= 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2) execv(path, argv);
    _exit(127);
  }
  assert_true(child > 0);
  return child;
}

/* Exit code, or 1000 + signal. */
static inline int fixture_wait(pid_t child) {
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static inline int fixture_run(const char *program, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static inline int fixture_run(const char *program, const char *fmt, ...) {
  char arguments[4096];
  va_list args;
  va_start(args, fmt);
  vsnprintf(arguments, sizeof arguments, fmt, args);
  va_end(args);
  return fixture_wait(fixture_start(program, arguments));
}

/* What a program wrote, up to 64 KiB. */
static inline const char *fixture_output(const char *which) {
  static char text[1 << 16];
  FILE *f = fopen(fixture_path(which), "r");
  assert_non_null(f);
  size_t n = fread(text, 1, sizeof text - 1, f);
  text[n] = 0;
  fclose(f);
  return text;
}

/* ---- comparing checkpoints -------------------------------------------------------------------*/

static inline void fixture_same_group(ii_h5 *a, ii_h5 *b, const char *group) {
  ii_error err = {0};
  char **x, **y;
  int64_t n, m;
  assert_int_equal(ii_h5_list(a, group, &x, &n, &err), II_OK);
  assert_int_equal(ii_h5_list(b, group, &y, &m, &err), II_OK);
  assert_int_equal(n, m);
  assert_true(n > 0);
  for (int64_t i = 0; i < n; i++) {
    ii_h5_shape s;
    assert_string_equal(x[i], y[i]);
    assert_int_equal(ii_h5_get_shape(a, group, x[i], &s, &err), II_OK);
    const size_t bytes = (size_t)ii_h5_numel(&s) * sizeof(float);
    float *p = malloc(bytes), *q = malloc(bytes);
    assert_int_equal(ii_h5_read(a, group, x[i], &s, II_H5_F32, p, &err), II_OK);
    assert_int_equal(ii_h5_read(b, group, y[i], &s, II_H5_F32, q, &err), II_OK);
    if (memcmp(p, q, bytes) != 0) fail_msg("%s/%s differs", group, x[i]);
    free(p);
    free(q);
  }
  free(x);
  free(y);
}

/* Weights, average and moments of two checkpoints are equal bit for bit. */
static inline void fixture_same_weights(const char *a, const char *b) {
  static const char *const groups[] = {"/model", "/ema", "/optimizer/exp_avg",
                                       "/optimizer/exp_avg_sq"};
  ii_error err = {0};
  ii_h5 *x, *y;
  if (ii_h5_open(a, &x, &err) != II_OK || ii_h5_open(b, &y, &err) != II_OK)
    fail_msg("%s", err.text);
  for (int i = 0; i < 4; i++) fixture_same_group(x, y, groups[i]);
  ii_h5_close(x);
  ii_h5_close(y);
}

#endif
