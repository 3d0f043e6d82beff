/* What the samplers promise: nothing lost or repeated but what is documented, shares of ranks and
 * classes, uniform choice (chi-square against bounds that chance passes once in 10^6), entry
 * anywhere; and through the loader the same batches at every thread count, copies augmented anew.
 */
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
#include "data/loader.h"
#include "data/sample_draw.h"

#define N 103

static char root[256];
static const int sizes[] = {1, 0, 60, 5, 37}; /* images of the classes; together N */
enum { CLASSES = sizeof sizes / sizeof *sizes, PIXELS = 24 * 24 * 3 };
static ii_dataset *set;

/* A list whose classes are mixed up; the files are there. */
static int setup(void **state) {
  static uint8_t rgb[30 * 30 * 3];
  char path[600];
  int left[CLASSES], written = 0;
  ii_error err = {0};
  strcpy(root, "/tmp/ii_sampler_XXXXXX");
  if (!mkdtemp(root)) return -1;
  snprintf(path, sizeof path, "%s/list.txt", root);
  FILE *f = fopen(path, "w");
  memcpy(left, sizes, sizeof left);
  for (int c = 0; written < N; c = (c + 2) % CLASSES) {
    if (left[c] == 0) continue;
    left[c]--;
    fprintf(f, "%d.jpg %d\n", written, c);
    snprintf(path, sizeof path, "%s/%d.jpg", root, written);
    ii_sample_draw(1, c, written++, 30, rgb);
    if (ii_image_write_jpeg(path, rgb, 30, 30, 90, &err) != II_OK) return -1;
  }
  fclose(f);
  snprintf(path, sizeof path, "%s/list.txt", root);
  return ii_dataset_open_list(path, root, 0, &set, &err) == II_OK ? 0 : -1;
}

static int teardown(void **state) {
  char command[400];
  ii_dataset_free(set);
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  return system(command);
}

static ii_sampler *make(ii_sampling sampling, int64_t batch, int64_t rank, int64_t world,
                        bool drop_last) {
  ii_error err = {0};
  ii_sampler *s;
  const ii_sampler_config c = {.dataset = set,
                               .sampling = sampling,
                               .batch = batch,
                               .rank = rank,
                               .world = world,
                               .seed = 4,
                               .shuffle = true,
                               .drop_last = drop_last};
  if (ii_sampler_new(&c, &s, &err) != II_OK) fail_msg("%s", err.text);
  return s;
}

/* The keys of a whole epoch; returns how many. */
static int64_t epoch_of(ii_sampler *s, int64_t epoch, int64_t *keys) {
  int64_t n = 0;
  for (int64_t b = 0; b < ii_sampler_batches(s); b++) n += ii_sampler_batch(s, epoch, b, keys + n);
  return n;
}

/* Sum of (x - e)^2 / e; for n cells its mean is n - 1 and its deviation sqrt(2 (n - 1)). */
static void check_uniform(const int64_t *count, int64_t n, double expected) {
  double chi = 0;
  for (int64_t i = 0; i < n; i++)
    chi += ((double)count[i] - expected) * ((double)count[i] - expected) / expected;
  const double sigmas = (chi - (double)(n - 1)) / sqrt(2.0 * (double)(n - 1));
  if (sigmas > 6) fail_msg("chi-square %g for %lld cells", chi, (long long)n);
}

static void test_all(void **state) {
  int64_t keys[N + 20];
  for (int64_t world = 1; world <= 5; world++)
    for (int drop = 0; drop < 2; drop++)
      for (int64_t epoch = 0; epoch < 3; epoch++) {
        int seen[N] = {0};
        int64_t total = 0, batches = -1;
        for (int64_t rank = 0; rank < world; rank++) {
          ii_sampler *s = make((ii_sampling){0}, 6, rank, world, drop);
          if (batches < 0) batches = ii_sampler_batches(s);
          assert_int_equal(ii_sampler_batches(s), batches);
          const int64_t n = epoch_of(s, epoch, keys);
          assert_true(!drop || n == 6 * batches);
          for (int64_t i = 0; i < n; i++) seen[keys[i]]++;
          total += n;
          ii_sampler_free(s);
        }
        for (int i = 0; i < N; i++) assert_true(seen[i] == 1 || (drop && seen[i] == 0));
        assert_int_equal(total, drop ? N / (6 * world) * 6 * world : N);
      }
}

/* Each image is as likely as any other to come first, and to be left out. */
static void test_all_is_uniform(void **state) {
  int64_t keys[N], first[N] = {0}, left_out[N] = {0};
  const int epochs = 6000;
  ii_sampler *s = make((ii_sampling){0}, 20, 0, 1, true); /* 3 are left out */
  for (int e = 0; e < epochs; e++) {
    bool seen[N] = {false};
    const int64_t n = epoch_of(s, e, keys);
    assert_int_equal(n, 100);
    first[keys[0]]++;
    for (int64_t i = 0; i < n; i++) seen[keys[i]] = true;
    for (int i = 0; i < N; i++) left_out[i] += !seen[i];
  }
  check_uniform(first, N, (double)epochs / N);
  check_uniform(left_out, N, 3.0 * epochs / N);
  ii_sampler_free(s);
}

static void test_fixed(void **state) {
  const ii_sampling fixed = {.kind = II_SAMPLE_FIXED};
  int64_t a[N], b[N];
  for (int64_t world = 1; world <= 5; world++) {
    int owners[N] = {0};
    const int64_t each = (N + world - 1) / world;
    for (int64_t rank = 0; rank < world; rank++) {
      ii_sampler *s = make(fixed, 4, rank, world, false), *d = make(fixed, 4, rank, world, true);
      bool mine[N] = {false};
      int64_t same = 0;
      assert_int_equal(epoch_of(s, 0, a), each);
      for (int64_t i = 0; i < each; i++) {
        assert_false(mine[a[i]]);
        mine[a[i]] = true;
        owners[a[i]]++;
      }
      for (int64_t epoch = 1; epoch < 4; epoch++) { /* the same images, in another order */
        assert_int_equal(epoch_of(s, epoch, b), each);
        for (int64_t i = 0; i < each; i++) assert_true(mine[b[i]]);
        for (int64_t i = 0; i < each; i++) same += a[i] == b[i];
      }
      assert_true(same < each / 2 + 3);
      assert_int_equal(epoch_of(d, 1, b), each / 4 * 4);
      ii_sampler_free(s);
      ii_sampler_free(d);
    }
    int twice = 0;
    for (int i = 0; i < N; i++) {
      assert_true(owners[i] == 1 || owners[i] == 2);
      twice += owners[i] == 2;
    }
    assert_int_equal(twice, each * world - N); /* fewer than there are ranks */
  }
}

static void test_repeated(void **state) {
  const ii_sampling repeated = {.kind = II_SAMPLE_REPEATED, .repeats = 3};
  int64_t keys[N], images[N] = {0};
  const int epochs = 3000;
  for (int64_t world = 1; world <= 5; world++) {
    int copies[N] = {0}, ranks_of[N] = {0}, distinct = 0;
    bool used[3 * N] = {false};
    int64_t total = 0;
    for (int64_t rank = 0; rank < world; rank++) {
      bool here[N] = {false};
      ii_sampler *s = make(repeated, 5, rank, world, false);
      const int64_t n = epoch_of(s, 7, keys);
      for (int64_t i = 0; i < n; i++) {
        assert_true(keys[i] < 3 * N && !used[keys[i]]);
        used[keys[i]] = true;
        copies[keys[i] % N]++;
        ranks_of[keys[i] % N] += !here[keys[i] % N];
        here[keys[i] % N] = true;
      }
      total += n;
      ii_sampler_free(s);
    }
    assert_int_equal(total, N);
    for (int i = 0; i < N; i++) {
      assert_true(copies[i] == 0 || copies[i] == 3 || copies[i] == 1); /* 103 = 34 * 3 + 1 */
      assert_int_equal(ranks_of[i], copies[i] < world ? copies[i] : (int)world);
      distinct += copies[i] > 0;
    }
    assert_int_equal(distinct, 35);
  }
  ii_sampler *s = make(repeated, 5, 0, 1, true);
  for (int e = 0; e < epochs; e++) {
    const int64_t n = epoch_of(s, e, keys);
    for (int64_t i = 0; i < n; i += 3) images[keys[i] % N]++;
  }
  check_uniform(images, N, (double)epochs * 34 / N);
  ii_sampler_free(s);
}

/* timm's RepeatAugSampler(num_repeats, selected_round=256), from its definition: the shuffled
 * images, each `repeats` times in a row, filled up from the front to a multiple of the ranks; of
 * them every world-th from `rank` on; of these floor(floor(size / 256) * 256 / world). The order of
 * the images is what one rank without repeats gets. */
static void test_repeated_is_timms(void **state) {
  static const struct {
    int size, repeats, world, selected; /* selected: by the Python code of that formula */
  } cases[] = {{256, 3, 1, 256},  {511, 3, 2, 128},  {600, 3, 3, 170}, {1000, 4, 7, 109},
               {1281, 3, 8, 160}, {1535, 2, 6, 213}, {600, 1, 5, 102}};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    const int size = cases[k].size, repeats = cases[k].repeats, world = cases[k].world;
    ii_error err = {0};
    ii_dataset *d, *before = set;
    char path[600];
    snprintf(path, sizeof path, "%s/long.txt", root);
    FILE *f = fopen(path, "w");
    for (int i = 0; i < size; i++) fprintf(f, "%d.jpg %d\n", i, i % 2);
    fclose(f);
    assert_int_equal(ii_dataset_open_list(path, root, 0, &d, &err), II_OK);
    set = d;
    int64_t *order = malloc((size_t)size * sizeof *order), *keys = malloc((size_t)size * 8);
    const int64_t total = ((int64_t)size * repeats + world - 1) / world * world;
    int64_t *list = malloc((size_t)total * sizeof *list);
    ii_sampler *s = make((ii_sampling){.kind = II_SAMPLE_REPEATED, .repeats = 1}, 1, 0, 1, false);
    const int64_t known = epoch_of(s, 2, order);
    ii_sampler_free(s);
    assert_int_equal(known, size / 256 * 256);
    for (int64_t i = 0; i < total; i++) {
      const int64_t at = i % ((int64_t)size * repeats) / repeats;
      list[i] = at < known ? order[at] : -1; /* of no use to anybody */
    }
    for (int64_t rank = 0; rank < world; rank++)
      for (int drop = 0; drop < 2; drop++) {
        s = make((ii_sampling){.kind = II_SAMPLE_REPEATED, .repeats = repeats}, 9, rank, world,
                 drop);
        const int64_t n = epoch_of(s, 2, keys);
        assert_int_equal(n, drop ? cases[k].selected / 9 * 9 : cases[k].selected);
        for (int64_t i = 0; i < n; i++) assert_int_equal(keys[i] % size, list[rank + i * world]);
        ii_sampler_free(s);
      }
    free(order);
    free(keys);
    free(list);
    ii_dataset_free(d);
    set = before;
  }
}

static void test_balanced(void **state) {
  const double balances[] = {0, 0.5, 1};
  const int epochs = 2000;
  for (int b = 0; b < 3; b++) {
    const ii_sampling balanced = {.kind = II_SAMPLE_BALANCED, .balance = balances[b]};
    ii_sampler *s = make(balanced, 7, 0, 1, false);
    int64_t keys[N], drawn[N] = {0}, of_class[CLASSES] = {0};
    double sum = 0;
    for (int k = 0; k < CLASSES; k++) sum += sizes[k] ? pow(sizes[k], 1 - balances[b]) : 0;
    for (int e = 0; e < epochs; e++) {
      int64_t count[CLASSES] = {0}, copies[N] = {0};
      bool used[200 * N] = {false};
      assert_int_equal(epoch_of(s, e, keys), N);
      for (int i = 0; i < N; i++) {
        const int64_t image = keys[i] % N;
        assert_true(keys[i] < 200 * N && !used[keys[i]]);
        used[keys[i]] = true;
        copies[image]++, drawn[image]++;
        count[ii_dataset_label(set, image)]++;
      }
      for (int k = 0; k < CLASSES; k++) {
        const double share = sizes[k] ? N * pow(sizes[k], 1 - balances[b]) / sum : 0;
        assert_true(fabs((double)count[k] - share) < 1); /* rounded up or down */
        of_class[k] += count[k];
        int64_t least = N, most = 0;
        for (int i = 0; i < N; i++) {
          if (ii_dataset_label(set, i) != k) continue;
          least = copies[i] < least ? copies[i] : least;
          most = copies[i] > most ? copies[i] : most;
        }
        assert_true(sizes[k] == 0 || most - least <= 1);
      }
    }
    for (int k = 0; k < CLASSES; k++) {
      const double share = sizes[k] ? N * pow(sizes[k], 1 - balances[b]) / sum : 0;
      /* a rounding has a deviation of at most 1/2 */
      assert_true(fabs((double)of_class[k] / epochs - share) < 5 * 0.5 / sqrt(epochs));
      int64_t cells[N], n = 0;
      for (int i = 0; i < N; i++)
        if (ii_dataset_label(set, i) == k) cells[n++] = drawn[i];
      /* what is left of the last round through a class is chosen at random */
      if (n > 1) check_uniform(cells, n, share * epochs / (double)n);
    }
    ii_sampler_free(s);
  }
}

static const ii_sampling kinds[] = {{.kind = II_SAMPLE_ALL},
                                    {.kind = II_SAMPLE_FIXED},
                                    {.kind = II_SAMPLE_REPEATED, .repeats = 3},
                                    {.kind = II_SAMPLE_BALANCED, .balance = 0.7}};

/* Any batch at once is the batch in its turn, whatever was asked before. */
static void test_entry_anywhere(void **state) {
  for (int k = 0; k < 4; k++)
    for (int64_t rank = 0; rank < 3; rank++) {
      int64_t want[4][20][5], count[4][20], keys[5];
      ii_sampler *s = make(kinds[k], 5, rank, 3, k % 2), *t = make(kinds[k], 5, rank, 3, k % 2);
      const int64_t batches = ii_sampler_batches(s);
      for (int64_t e = 0; e < 4; e++)
        for (int64_t b = 0; b < batches; b++) count[e][b] = ii_sampler_batch(s, e, b, want[e][b]);
      for (int64_t j = 0; j < 100; j++) {
        const int64_t e = j * 7 % 4, b = j * 11 % batches;
        assert_int_equal(ii_sampler_batch(t, e, b, keys), count[e][b]);
        assert_memory_equal(keys, want[e][b], (size_t)count[e][b] * sizeof *keys);
      }
      ii_sampler_free(s);
      ii_sampler_free(t);
    }
}

/* Ranks together see what one rank with their batches together sees. */
static void test_ranks_are_one(void **state) {
  for (int k = 0; k < 4; k++) {
    if (kinds[k].kind == II_SAMPLE_FIXED) continue;
    ii_sampler *one = make(kinds[k], 12, 0, 1, true);
    for (int64_t b = 0; b < ii_sampler_batches(one); b++) {
      int64_t whole[12], part[12];
      bool in[200 * N] = {false};
      ii_sampler_batch(one, 2, b, whole);
      for (int i = 0; i < 12; i++) in[whole[i]] = true;
      for (int64_t rank = 0; rank < 3; rank++) {
        ii_sampler *s = make(kinds[k], 4, rank, 3, true);
        assert_int_equal(ii_sampler_batch(s, 2, b, part), 4);
        for (int i = 0; i < 4; i++) assert_true(in[part[i]]);
        for (int i = 0; i < 4; i++) in[part[i]] = false;
        ii_sampler_free(s);
      }
    }
    ii_sampler_free(one);
  }
}

static ii_loader *open_loader(ii_sampling sampling, int threads) {
  ii_loader *l = NULL;
  ii_error err = {0};
  ii_loader_config c = ii_loader_config_default(set, ii_transform_default(24, true), 10);
  c.sampling = sampling, c.seed = 4, c.threads = threads;
  if (ii_loader_new(&c, &l, &err) != II_OK) fail_msg("%s", err.text);
  return l;
}

static const ii_batch *next(ii_loader *l) {
  const ii_batch *b;
  ii_error err = {0};
  if (ii_loader_next(l, &b, &err) != II_OK) fail_msg("%s", err.text);
  return b;
}

static void check_same(const ii_batch *x, const ii_batch *y) {
  assert_true(x->count == y->count && x->epoch == y->epoch && x->index == y->index);
  assert_memory_equal(x->keys, y->keys, (size_t)x->count * sizeof *x->keys);
  assert_memory_equal(x->labels, y->labels, (size_t)x->count * sizeof *x->labels);
  assert_memory_equal(x->images, y->images, (size_t)x->count * PIXELS * sizeof(float));
}

static void test_loader(void **state) {
  const int threads[] = {2, 7};
  for (int k = 0; k < 4; k++)
    for (int t = 0; t < 2; t++) {
      ii_loader *a = open_loader(kinds[k], 1), *b = open_loader(kinds[k], threads[t]);
      for (int s = 0; s < 13; s++) check_same(next(a), next(b)); /* into the second epoch */
      ii_loader_free(b);
      b = open_loader(kinds[k], threads[t]); /* a new process in mid-epoch */
      ii_loader_seek(b, 1, 3);
      for (int s = 0; s < 9; s++) check_same(next(a), next(b));
      ii_loader_free(a);
      ii_loader_free(b);
    }
}

/* Two copies of an image in a batch are the same file, augmented differently. */
static void test_copies_differ(void **state) {
  ii_loader *l = open_loader(kinds[2], 2);
  int pairs = 0;
  for (int s = 0; s < 5; s++) {
    const ii_batch *b = next(l);
    for (int64_t i = 1; i < b->count; i++) {
      if (b->samples[i] != b->samples[i - 1]) continue;
      assert_int_equal(b->keys[i], b->keys[i - 1] + N);
      assert_memory_not_equal(b->images + i * PIXELS, b->images + (i - 1) * PIXELS,
                              PIXELS * sizeof(float));
      pairs++;
    }
  }
  assert_true(pairs > 25);
  ii_loader_free(l);
}

static void test_settings(void **state) {
  const ii_sampler_config good = {.dataset = set, .batch = 4, .world = 2, .shuffle = true};
  for (int k = 0; k < 8; k++) {
    ii_error err = {0};
    ii_sampler *s = NULL;
    ii_sampler_config c = good;
    if (k == 0) c.batch = 0;
    if (k == 1) c.rank = 2;
    if (k == 2) c.rank = -1;
    if (k == 3) c.sampling.kind = II_SAMPLE_REPEATED;
    if (k == 4) c.sampling = (ii_sampling){.kind = II_SAMPLE_BALANCED, .balance = NAN};
    if (k == 5) c.sampling.kind = II_SAMPLE_FIXED, c.shuffle = false;
    if (k == 6) c.drop_last = true, c.batch = 52;
    if (k == 7) c.drop_last = true, c.batch = 53, c.sampling.kind = II_SAMPLE_FIXED;
    assert_int_equal(ii_sampler_new(&c, &s, &err), II_ERR_ARG);
    assert_true(strlen(err.text) > 10);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_all),
      cmocka_unit_test(test_all_is_uniform),
      cmocka_unit_test(test_fixed),
      cmocka_unit_test(test_repeated),
      cmocka_unit_test(test_repeated_is_timms),
      cmocka_unit_test(test_balanced),
      cmocka_unit_test(test_entry_anywhere),
      cmocka_unit_test(test_ranks_are_one),
      cmocka_unit_test(test_loader),
      cmocka_unit_test(test_copies_differ),
      cmocka_unit_test(test_settings),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
