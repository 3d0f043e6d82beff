/* The loader against a plain re-computation of its rule, at several thread counts and entry points;
 * ranks, evaluation, damaged files, shutdown. The pictures are drawn into a temporary folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/loader.h"
#include "data/sample_draw.h"

#define CLASSES 3
#define EACH    9
#define TOTAL   (CLASSES * EACH)
#define SIZE    24
#define PIXELS  (SIZE * SIZE * 3)

static char root[256];
static ii_dataset *set;

static void write_text(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  assert_int_equal(fclose(f), 0);
}

static void draw(const char *path, int64_t c, int64_t i) {
  static uint8_t rgb[64 * 64 * 3];
  ii_error err = {0};
  int64_t size = 20 + (c * 7 + i * 5) % 30;
  ii_sample_draw(3, c, i, size, rgb);
  assert_int_equal(ii_image_write_jpeg(path, rgb, size, size, 85, &err), II_OK);
}

static int setup(void **state) {
  ii_error err = {0};
  char path[512];
  strcpy(root, "/tmp/ii_loader_XXXXXX");
  if (!mkdtemp(root)) return -1;
  for (int c = 0; c < CLASSES; c++) {
    snprintf(path, sizeof path, "%s/%c", root, 'a' + c);
    mkdir(path, 0777);
    for (int i = 0; i < EACH; i++) {
      snprintf(path, sizeof path, "%s/%c/%d.jpg", root, 'a' + c, i);
      draw(path, c, i);
    }
  }
  return ii_dataset_open_folder(root, NULL, &set, &err) == II_OK ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  ii_dataset_free(set);
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

static ii_loader_config train_config(int64_t batch) {
  ii_transform t = ii_transform_default(SIZE, true);
  t.small_crop = false;
  assert_int_equal(ii_randaugment_parse("rand-m9-mstd0.5-inc1", &t.auto_augment, NULL), II_OK);
  ii_loader_config c = ii_loader_config_default(set, t, batch);
  c.seed = 11;
  return c;
}

static ii_loader_config eval_config(int64_t batch) {
  return ii_loader_config_default(set, ii_transform_default(SIZE, false), batch);
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

/* What the header promises for `sample` in `epoch`, without any loader. */
static void compute(const ii_loader_config *c, int64_t epoch, int64_t sample, float *out) {
  char path[II_PATH_MAX];
  ii_error err = {0};
  ii_bytes file = {0};
  ii_image img = {0};
  ii_decoder *d = NULL;
  ii_transformer *t = NULL;
  ii_dataset_path(set, sample, path);
  ii_rng rng = ii_rng_make(c->seed, II_RNG_AUGMENT, (uint64_t)epoch, (uint64_t)sample);
  assert_int_equal(ii_decoder_new(&d, &err), II_OK);
  assert_int_equal(ii_transformer_new(&t, &err), II_OK);
  assert_int_equal(ii_bytes_read(&file, path, &err), II_OK);
  assert_int_equal(ii_image_decode(d, file.data, file.size, &c->decode, &img, &err), II_OK);
  assert_int_equal(ii_transform_apply(t, &c->transform, &img, &rng, out, &err), II_OK);
  ii_bytes_free(&file);
  ii_image_free(&img);
  ii_decoder_free(d);
  ii_transformer_free(t);
}

static void check_batch(const ii_loader_config *c, const ii_batch *b, int64_t epoch,
                        int64_t index) {
  int64_t order[TOTAL];
  float want[PIXELS];
  ii_rng rng = ii_rng_make(c->seed, II_RNG_SHUFFLE, (uint64_t)epoch, 0);
  ii_rng_permutation(&rng, order, TOTAL);
  assert_int_equal(b->epoch, epoch);
  assert_int_equal(b->index, index);
  assert_int_equal(b->count, c->batch);
  assert_null(b->meta);
  for (int64_t i = 0; i < b->count; i++) {
    int64_t sample = order[(index * c->world + c->rank) * c->batch + i];
    assert_int_equal(b->samples[i], sample);
    assert_int_equal(b->labels[i], sample / EACH);
    assert_int_equal(b->valid[i], 1);
    compute(c, epoch, sample, want);
    assert_memory_equal(b->images + i * PIXELS, want, sizeof want);
  }
}

static void test_stream_is_the_rule(void **state) {
  const int threads[] = {1, 2, 7};
  for (int k = 0; k < 3; k++) {
    ii_loader_config c = train_config(4);
    c.threads = threads[k];
    c.prefetch = 1 + k;
    ii_loader *l = open_loader(c);
    assert_int_equal(ii_loader_threads(l), threads[k]);
    assert_int_equal(ii_loader_batches_per_epoch(l), TOTAL / 4);
    for (int64_t s = 0; s < 2 * (TOTAL / 4) + 3; s++)
      check_batch(&c, next(l), s / (TOTAL / 4), s % (TOTAL / 4));
    ii_loader_stats stats = ii_loader_get_stats(l);
    assert_int_equal(stats.images, stats.batches * 4);
    assert_int_equal(stats.bad_files, 0);
    assert_true(stats.wait_seconds > 0);
    ii_loader_free(l);
  }
}

static void test_entry_anywhere(void **state) {
  ii_loader_config c = train_config(5);
  c.threads = 2;
  ii_loader *l = open_loader(c);
  const int64_t at[][2] = {{0, 3}, {7, 0}, {2, 4}, {0, 0}, {3, 5}};
  for (int k = 0; k < 5; k++) {
    ii_loader_seek(l, at[k][0], at[k][1]);
    for (int64_t s = at[k][1]; s < at[k][1] + 3; s++)
      check_batch(&c, next(l), at[k][0] + s / 5, s % 5); /* 27 images: 5 batches of 5 */
  }
  ii_loader_free(l);
}

static void test_ranks(void **state) {
  ii_loader_config whole = train_config(6), part = train_config(3);
  part.world = 2;
  ii_loader *one = open_loader(whole), *two[2];
  for (int r = 0; r < 2; r++) {
    part.rank = r;
    two[r] = open_loader(part);
    assert_int_equal(ii_loader_batches_per_epoch(two[r]), ii_loader_batches_per_epoch(one));
  }
  for (int64_t s = 0; s < 7; s++) {
    const ii_batch *b = next(one);
    for (int r = 0; r < 2; r++) {
      const ii_batch *p = next(two[r]);
      assert_int_equal(p->epoch, b->epoch);
      assert_memory_equal(p->samples, b->samples + 3 * r, 3 * sizeof *p->samples);
      assert_memory_equal(p->images, b->images + 3 * r * PIXELS, 3 * PIXELS * sizeof(float));
    }
  }
  ii_loader_free(one);
  for (int r = 0; r < 2; r++) ii_loader_free(two[r]);
}

static void test_eval_counts_once(void **state) {
  for (int64_t world = 1; world <= 5; world++) {
    int seen[TOTAL] = {0};
    int64_t batches = -1;
    for (int64_t rank = 0; rank < world; rank++) {
      ii_loader_config c = eval_config(5);
      c.world = world, c.rank = rank;
      ii_loader *l = open_loader(c);
      for (int pass = 0; pass < 2; pass++) {
        int64_t n = 0;
        for (const ii_batch *b; (b = next(l)) != NULL; n++)
          for (int64_t i = 0; i < b->count; i++) seen[b->samples[i]]++;
        assert_null(next(l)); /* the end stays the end */
        if (batches < 0) batches = n;
        assert_int_equal(n, batches); /* the same for every rank */
        ii_loader_seek(l, 0, 0);
      }
      ii_loader_free(l);
    }
    for (int i = 0; i < TOTAL; i++) assert_int_equal(seen[i], 2);
  }
}

/* ---- damaged files ---- */

typedef struct {
  int count;
  char first[512], reason[512];
} report;

static void on_bad(void *context, const char *path, const char *reason) {
  report *r = context;
  if (r->count++ > 0) return;
  snprintf(r->first, sizeof r->first, "%s", path);
  snprintf(r->reason, sizeof r->reason, "%s", reason);
}

/* Damages files from..from+n-1 of the class (or mends them). */
static void damage(int c, int from, int n, bool mend) {
  char path[512];
  for (int i = from; i < from + n; i++) {
    snprintf(path, sizeof path, "%s/%c/%d.jpg", root, 'a' + c, i);
    if (mend)
      draw(path, c, i);
    else
      write_text(path, "this is no picture");
  }
}

static void test_bad_file_is_replaced(void **state) {
  damage(1, 7, 2, false); /* samples 16 and 17; 18 is the first of class c */
  for (int threads = 1; threads <= 3; threads += 2) {
    report r = {0};
    ii_loader_config c = train_config(TOTAL);
    c.on_bad = on_bad, c.context = &r, c.threads = threads, c.shuffle = false;
    ii_loader *l = open_loader(c);
    const ii_batch *b = next(l);
    for (int i = 0; i < TOTAL; i++) {
      int want = i == 16 || i == 17 ? 18 : i;
      assert_int_equal(b->samples[i], want);
      assert_int_equal(b->labels[i], want / EACH);
      assert_int_equal(b->valid[i], 1);
    }
    assert_int_equal(r.count, 3); /* 16 and 17 for place 16, 17 for place 17 */
    assert_int_equal(ii_loader_get_stats(l).bad_files, 3);
    assert_non_null(strstr(r.first, "/b/7.jpg"));
    assert_non_null(strstr(r.reason, "neither a JPEG nor a PNG"));
    ii_loader_free(l);
  }
  damage(1, 7, 2, true);
}

static void test_bad_file_in_evaluation(void **state) {
  damage(2, 8, 1, false); /* the last sample */
  report r = {0};
  ii_loader_config c = eval_config(8);
  c.on_bad = on_bad, c.context = &r;
  ii_loader *l = open_loader(c);
  int64_t failed = 0, images = 0;
  for (const ii_batch *b; (b = next(l)) != NULL;) {
    failed += b->failed, images += b->count;
    for (int64_t i = 0; i < b->count; i++) {
      bool last = b->samples[i] == TOTAL - 1;
      assert_int_equal(b->valid[i], !last);
      assert_int_equal(b->labels[i], b->samples[i] / EACH);
      for (int k = 0; last && k < PIXELS; k++) assert_true(b->images[i * PIXELS + k] == 0);
    }
  }
  assert_int_equal(failed, 1);
  assert_int_equal(images, TOTAL);
  assert_int_equal(r.count, 1);
  ii_loader_free(l);
  damage(2, 8, 1, true);
}

/* A list of one good picture and `bad` files that do not exist. */
static ii_dataset *list_with_bad(int bad) {
  char path[512];
  ii_dataset *d = NULL;
  ii_error err = {0};
  snprintf(path, sizeof path, "%s/list.txt", root);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  for (int i = 0; i < bad; i++) fprintf(f, "missing%d.jpg 0\n", i);
  fprintf(f, "a/0.jpg 1\n");
  fclose(f);
  assert_int_equal(ii_dataset_open_list(path, root, 0, &d, &err), II_OK);
  unlink(path);
  return d;
}

static void test_fifty_in_a_row(void **state) {
  for (int bad = 50; bad <= 51; bad++)
    for (int eval = 0; eval <= 1; eval++) {
      ii_dataset *d = list_with_bad(bad);
      report r = {0};
      ii_error err = {0};
      const ii_batch *b;
      ii_loader_config c = eval ? eval_config(60) : train_config(1);
      c.dataset = d, c.shuffle = false, c.on_bad = on_bad, c.context = &r, c.threads = 2;
      ii_loader *l = open_loader(c);
      ii_status status = ii_loader_next(l, &b, &err);
      assert_int_equal(status, bad == 50 ? II_OK : II_ERR_FORMAT);
      assert_int_equal(r.count, bad);
      assert_non_null(strstr(r.reason, "missing0.jpg"));
      if (status != II_OK) {
        assert_null(b);
        assert_non_null(strstr(err.text, "more than 50 image files in a row"));
        assert_non_null(strstr(err.text, "missing50.jpg"));
        ii_error_clear(&err);
        assert_int_equal(ii_loader_next(l, &b, &err), II_ERR_FORMAT); /* stands still */
      } else if (!eval) {
        assert_int_equal(b->labels[0], 1);
      }
      ii_loader_free(l);
      ii_dataset_free(d);
    }
}

static void test_shutdown_while_prefetching(void **state) {
  for (int k = 0; k < 60; k++) {
    ii_loader_config c = train_config(1 + k % 9);
    c.threads = 1 + k % 5;
    c.prefetch = 1 + k % 4;
    ii_loader *l = open_loader(c);
    for (int i = 0; i < k % 3; i++) next(l);
    if (k % 4 == 1) ii_loader_seek(l, k, 1);
    if (k % 4 == 2) usleep((unsigned)(k * 50));
    ii_loader_free(l);
  }
}

static void test_settings(void **state) {
  ii_loader *l = NULL;
  for (int k = 0; k < 6; k++) {
    ii_loader_config c = train_config(4);
    ii_error err = {0};
    if (k == 0) c.batch = 0;
    if (k == 1) c.batch = TOTAL + 1;
    if (k == 2) c.rank = 1;
    if (k == 3) c.threads = -1;
    if (k == 4) c.prefetch = 0;
    if (k == 5) c.transform.std[1] = 0;
    assert_int_equal(ii_loader_new(&c, &l, &err), II_ERR_ARG);
    assert_true(strlen(err.text) > 10);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_stream_is_the_rule),
      cmocka_unit_test(test_entry_anywhere),
      cmocka_unit_test(test_ranks),
      cmocka_unit_test(test_eval_counts_once),
      cmocka_unit_test(test_bad_file_is_replaced),
      cmocka_unit_test(test_bad_file_in_evaluation),
      cmocka_unit_test(test_fifty_in_a_row),
      cmocka_unit_test(test_shutdown_while_prefetching),
      cmocka_unit_test(test_settings),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
