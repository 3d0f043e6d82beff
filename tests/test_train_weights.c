/* Loading weights: every name of the file and of the model is accounted for, partial matches are
 * refused unless asked for, and refused loads change nothing. */
#include "train_fixture.h"
#include "optim/optimizer.h"
#include "train/weights.h"

typedef struct {
  const char *name;
  int ndim;
  int64_t dim[3];
  float first; /* elements count up from here */
} tensor;

/* The model of these tests. */
static const tensor MODEL[] = {{"patch_embed.conv1.weight", 3, {2, 2, 3}, 0},
                               {"levels.0.norm.0.weight", 1, {4}, 100},
                               {"conv_head.1.0.running_mean", 1, {4}, 200},
                               {"head.weight", 2, {3, 4}, 300},
                               {"head.bias", 1, {3}, 400}};
enum { N = sizeof MODEL / sizeof *MODEL };

static ii_ctx *open_model(ii_params *p) {
  ii_error err = {0};
  ii_ctx *c = ii_ctx_open(&(ii_ctx_options){.threads = 1, .real = II_F32, .compute = II_F32}, &err);
  assert_non_null(c);
  ii_params_init(p, c);
  for (int i = 0; i < N; i++) {
    ii_tensor *t = i == 2 ? ii_params_add_buffer(p, MODEL[i].name, MODEL[i].ndim, MODEL[i].dim)
                          : ii_params_add(p, MODEL[i].name, MODEL[i].ndim, MODEL[i].dim);
    double v[64];
    for (int64_t k = 0; k < ii_numel(t); k++) v[k] = -1000.0 - (double)k;
    ii_tensor_write_f64(c, t, v);
  }
  return c;
}

static void put(ii_h5 *f, const char *group, const char *prefix, const tensor *t) {
  ii_error err = {0};
  char name[200];
  float v[64];
  ii_h5_shape s = {.ndim = t->ndim};
  for (int i = 0; i < t->ndim; i++) s.dim[i] = t->dim[i];
  for (int64_t i = 0; i < ii_h5_numel(&s); i++) v[i] = t->first + (float)i;
  snprintf(name, sizeof name, "%s%s", prefix, t->name);
  assert_int_equal(ii_h5_write(f, group, name, II_H5_F64, II_H5_F32, &s, v, &err), II_OK);
}

/* A file with these tensors, names prefixed. */
static const char *write_weights(const char *group, const char *prefix, const tensor *t, int n) {
  ii_error err = {0};
  ii_h5 *f;
  const char *path = fixture_path("weights.h5");
  assert_int_equal(ii_h5_create(path, &f, &err), II_OK);
  if (strcmp(group, "/") != 0) assert_int_equal(ii_h5_group(f, group, &err), II_OK);
  for (int i = 0; i < n; i++) put(f, group, prefix, &t[i]);
  assert_int_equal(ii_h5_commit(f, &err), II_OK);
  return path;
}

static ii_status load(const char *path, ii_params *p, ii_weights_options o, ii_weights_report *r,
                      ii_error *err) {
  ii_h5 *f;
  *err = (ii_error){0};
  II_TRY(ii_h5_open(path, &f, err));
  ii_status s = ii_weights_load(f, p, &o, r, err);
  ii_h5_close(f);
  return s;
}

static double first_of(ii_params *p, const char *name) {
  double v[64];
  ii_tensor_read_f64(p->ctx, ii_params_find(p, name)->value, v);
  return v[0];
}

static void close_model(ii_params *p, ii_ctx *c) {
  ii_params_destroy(p);
  ii_ctx_close(c);
}

static void test_places_and_prefixes(void **unused) {
  (void)unused;
  static const char *const groups[] = {"/model", "/params", "/state_dict", "/"};
  static const char *const prefixes[] = {"", "module.", "backbone.", "module.backbone."};
  for (int g = 0; g < 4; g++)
    for (int x = 0; x < 4; x++) {
      ii_params p;
      ii_ctx *c = open_model(&p);
      ii_error err;
      ii_weights_report r;
      const char *path = write_weights(groups[g], prefixes[x], MODEL, N);
      assert_int_equal(load(path, &p, (ii_weights_options){0}, &r, &err), II_OK);
      assert_int_equal(r.matched, N);
      assert_int_equal(r.missing + r.unexpected + r.mismatched, 0);
      assert_int_equal(r.stripped, x ? N : 0);
      for (int i = 0; i < N; i++) {
        double v[64];
        ii_tensor_read_f64(c, p.at[i].value, v);
        for (int64_t k = 0; k < ii_numel(p.at[i].value); k++)
          assert_true(v[k] == (double)MODEL[i].first + (double)k);
      }
      close_model(&p, c);
    }
}

static void test_partial(void **unused) {
  (void)unused;
  /* missing: levels.0.norm, unexpected: levels.9, another shape: head.bias */
  const tensor file[] = {MODEL[0],
                         MODEL[2],
                         MODEL[3],
                         {"head.bias", 1, {5}, 7},
                         {"levels.9.norm.0.weight", 1, {4}, 1}};
  const char *path = write_weights("/model", "", file, 5);
  ii_params p;
  ii_ctx *c = open_model(&p);
  ii_error err;
  ii_weights_report r;
  char text[1024];
  assert_int_equal(load(path, &p, (ii_weights_options){0}, &r, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "3 of 5 tensors matched"));
  assert_non_null(strstr(err.text, "levels.0.norm.0.weight"));
  assert_non_null(strstr(err.text, "levels.9.norm.0.weight"));
  assert_non_null(strstr(err.text, "head.bias: 5 in the file, 3 in the model"));
  assert_non_null(strstr(err.text, "--partial"));
  for (int i = 0; i < N; i++) assert_true(first_of(&p, MODEL[i].name) == -1000); /* untouched */
  assert_int_equal(load(path, &p, (ii_weights_options){.partial = true}, &r, &err), II_OK);
  assert_int_equal(r.matched, 3);
  assert_int_equal(r.missing, 1);
  assert_int_equal(r.unexpected, 1);
  assert_int_equal(r.mismatched, 1);
  ii_weights_report_text(&r, text, sizeof text);
  assert_non_null(strstr(text, "1 missing (levels.0.norm.0.weight)"));
  assert_true(first_of(&p, "patch_embed.conv1.weight") == 0);
  assert_true(first_of(&p, "head.weight") == 300);
  assert_true(first_of(&p, "head.bias") == -1000);
  assert_true(first_of(&p, "levels.0.norm.0.weight") == -1000);
  close_model(&p, c);
}

/* Each single defect alone is refused. */
static void test_each_defect_refused(void **unused) {
  (void)unused;
  const tensor extra[] = {MODEL[0], MODEL[1], MODEL[2], MODEL[3], MODEL[4], {"more", 1, {1}, 0}};
  const tensor nothing[] = {{"something.else", 1, {1}, 0}};
  ii_params p;
  ii_ctx *c = open_model(&p);
  ii_error err;
  ii_weights_report r;
  ii_weights_options strict = {0}, partial = {.partial = true};
  assert_int_equal(load(write_weights("/model", "", extra, 6), &p, strict, &r, &err),
                   II_ERR_FORMAT);
  assert_int_equal(load(write_weights("/model", "", MODEL, 4), &p, strict, &r, &err),
                   II_ERR_FORMAT);
  assert_int_equal(load(write_weights("/model", "", MODEL + 1, 4), &p, strict, &r, &err),
                   II_ERR_FORMAT);
  /* not a single match is never what anybody wants */
  assert_int_equal(load(write_weights("/model", "", nothing, 1), &p, partial, &r, &err),
                   II_ERR_FORMAT);
  assert_int_equal(load(write_weights("/elsewhere", "", MODEL, N), &p, strict, &r, &err),
                   II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "no weights"));
  assert_int_equal(
      load(write_weights("/model", "", MODEL, N), &p, (ii_weights_options){.ema = true}, &r, &err),
      II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "no moving average"));
  const tensor counter[] = {MODEL[0], MODEL[1], MODEL[2],
                            MODEL[3], MODEL[4], {"conv_head.1.0.num_batches_tracked", 0, {0}, 12}};
  assert_int_equal(load(write_weights("/model", "", counter, 6), &p, strict, &r, &err), II_OK);
  assert_int_equal(r.unexpected, 0);
  close_model(&p, c);
}

/* The official rule: a head of another size is dropped, the model's own one is scaled by 0.001. */
static void test_other_head(void **unused) {
  (void)unused;
  const tensor file[] = {
      MODEL[0], MODEL[1], MODEL[2], {"head.weight", 2, {9, 4}, 5}, {"head.bias", 1, {9}, 6}};
  const char *path = write_weights("/model", "", file, 5);
  ii_params p;
  ii_ctx *c = open_model(&p);
  ii_error err;
  ii_weights_report r;
  assert_int_equal(load(path, &p, (ii_weights_options){0}, &r, &err), II_ERR_FORMAT);
  assert_non_null(strstr(err.text, "head.weight: 9x4 in the file, 3x4 in the model"));
  assert_non_null(strstr(err.text, "train.rand_init_ft_head"));
  assert_int_equal(load(path, &p, (ii_weights_options){.rand_init_head = true}, &r, &err), II_OK);
  assert_true(r.head_replaced);
  assert_int_equal(r.matched, 3);
  assert_true(first_of(&p, "head.weight") == (double)-1.0f);
  assert_true(first_of(&p, "head.bias") == (double)-1.0f);
  assert_true(first_of(&p, "levels.0.norm.0.weight") == 100);
  /* a head that fits is loaded, option or not */
  path = write_weights("/model", "", MODEL, N);
  assert_int_equal(load(path, &p, (ii_weights_options){.rand_init_head = true}, &r, &err), II_OK);
  assert_false(r.head_replaced);
  assert_true(first_of(&p, "head.weight") == 300);
  close_model(&p, c);
}

static void test_average(void **unused) {
  (void)unused;
  ii_error err = {0};
  ii_h5 *f;
  ii_params p;
  ii_weights_report r;
  const char *path = fixture_path("both.h5");
  assert_int_equal(ii_h5_create(path, &f, &err), II_OK);
  assert_int_equal(ii_h5_group(f, "/model", &err), II_OK);
  assert_int_equal(ii_h5_group(f, "/ema", &err), II_OK);
  for (int i = 0; i < N; i++) {
    tensor t = MODEL[i];
    put(f, "/model", "", &t);
    t.first += 5000;
    put(f, "/ema", "", &t);
  }
  assert_int_equal(ii_h5_commit(f, &err), II_OK);
  ii_ctx *c = open_model(&p);
  assert_int_equal(load(path, &p, (ii_weights_options){0}, &r, &err), II_OK);
  assert_true(first_of(&p, "head.weight") == 300);
  assert_int_equal(load(path, &p, (ii_weights_options){.ema = true}, &r, &err), II_OK);
  assert_true(first_of(&p, "head.weight") == 5300);
  close_model(&p, c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_places_and_prefixes), cmocka_unit_test(test_partial),
      cmocka_unit_test(test_each_defect_refused), cmocka_unit_test(test_other_head),
      cmocka_unit_test(test_average)};
  return cmocka_run_group_tests(tests, fixture_make, fixture_remove);
}
