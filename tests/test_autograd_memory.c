/* Whole training steps of a small network: a plan tells the peak of the real run without running a
 * kernel, memory stops growing after the first step, and running out of it is an error, not a
 * crash. */
#include "autograd_net.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { BLOCKS = 5 };

static void step(net *n, ii_ctx *c) {
  c->training = c->recording = true;
  c->draw = 0;
  ii_params_zero_grad(&n->params);
  ii_backward(c, net_loss(n, c), 1);
  ii_tape_reset(c);
  c->step++;
}

typedef struct {
  ii_pool pool; /* numbers only: its pointers are stale */
  int64_t macs, dcn_macs, calls;
} figures;

static figures measure(ii_dtype real, ii_dtype compute, bool plan, unsigned flags) {
  ii_ctx *c = net_open(real, compute, plan, NULL);
  ii_profile profile = {0};
  net n;
  net_init(&n, c, BLOCKS, flags);
  memset(&profile, 0, sizeof profile);
  c->profile = &profile;
  step(&n, c);
  step(&n, c);
  if (!ii_ok(c)) fail_msg("%s", c->err.text);
  figures f = {.pool = c->pool, .macs = c->macs, .dcn_macs = c->dcn_macs};
  for (int i = 0; i < 64; i++) f.calls += profile.calls[i];
  net_free(&n);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
  return f;
}

static void plan_equals_run(void **state) {
  static const ii_dtype types[][2] = {{II_F32, II_F32}, {II_F32, II_BF16}, {II_F64, II_F64}};
  static const unsigned flags[] = {NET_PLAIN, NET_CHECKPOINT, NET_CHECKPOINT | NET_NESTED,
                                   NET_NO_SCOPES};
  for (int t = 0; t < 3; t++)
    for (int i = 0; i < 4; i++) {
      figures run = measure(types[t][0], types[t][1], false, flags[i]);
      figures plan = measure(types[t][0], types[t][1], true, flags[i]);
      assert_true(run.calls > 100);
      assert_int_equal(plan.calls, 0);
      assert_int_equal(plan.pool.peak, run.pool.peak);
      assert_int_equal(plan.pool.reserved, run.pool.reserved);
      assert_memory_equal(plan.pool.peak_by_class, run.pool.peak_by_class,
                          sizeof plan.pool.peak_by_class);
      assert_true(plan.macs == run.macs && plan.dcn_macs == run.dcn_macs);
    }
}

/* 4 images of 6x6 with 32 channels, hidden 128, offsets and modulations 56, 10 classes; a
 * recomputed forward does not count again */
static void multiply_adds(void **state) {
  int64_t pixels = 4 * 36, block = pixels * 32 * (128 + 128 + 56);
  for (unsigned flags = NET_PLAIN; flags <= NET_CHECKPOINT; flags++) {
    figures f = measure(II_F32, II_F32, true, flags);
    assert_int_equal(f.macs, 2 * (BLOCKS * block + 4 * 32 * 10));
    assert_int_equal(f.dcn_macs, 2 * (BLOCKS * 5 * pixels * 9 * 32));
  }
}

static void memory_does_not_grow(void **state) {
  for (unsigned flags = NET_PLAIN; flags <= NET_CHECKPOINT; flags++) {
    ii_ctx *c = net_open(II_F32, II_BF16, false, NULL);
    net n;
    net_init(&n, c, BLOCKS, flags);
    int64_t before = c->pool.live;
    step(&n, c);
    int64_t reserved = c->pool.reserved, peak = c->pool.peak, owned = c->cap_owned;
    for (int i = 0; i < 4; i++) {
      step(&n, c);
      assert_int_equal(c->pool.live, before);
      assert_int_equal(c->n_owned, 0);
      assert_null(c->tape);
      assert_null(c->tensors);
    }
    assert_int_equal(c->pool.reserved, reserved);
    assert_int_equal(c->pool.peak, peak);
    assert_int_equal(c->cap_owned, owned);
    net_free(&n);
    ii_ctx_close(c);
  }
}

/* A step whose memory ends somewhere: `limit` bytes may be reserved beyond the parameters. Returns
 * whether it got through. */
static bool limited_step(bool plan, int64_t images, int64_t limit) {
  ii_ctx *c = net_open(II_F32, II_F32, plan, NULL);
  ii_params p;
  ii_params_init(&p, c);
  ii_tensor *w = ii_params_add(&p, "w", 2, (int64_t[]){64, 64});
  ii_tensor *b = ii_params_add(&p, "b", 1, (int64_t[]){64});
  c->pool.limit = limit;
  c->recording = true;
  ii_tensor *x = ii_tensor_new(c, II_F32, 2, (int64_t[]){images * 4096, 64}); /* 1 MiB an image */
  ii_tensor *first = x;
  if (!plan && x->mem) memset(ii_data(x), 0, (size_t)ii_numel(x) * 4);
  for (int i = 0; i < 4; i++) x = ii_gelu(c, ii_linear(c, x, w, b));
  assert_true(x->ndim == 2 && x->shape[0] == images * 4096 && x->shape[1] == 64);
  ii_tensor *y = ii_mean_pool(c, ii_reshape(c, x, 3, (int64_t[]){1, -1, 64}));
  assert_true(y->shape[0] == 1 && y->shape[1] == 64);
  double none[64] = {0}, out[64];
  ii_tensor *t = ii_tensor_new(c, II_F32, 2, (int64_t[]){1, 64});
  ii_tensor_write_f64(c, t, none);
  ii_tensor *loss = ii_soft_cross_entropy(c, y, t);
  ii_backward(c, loss, 1);
  ii_tensor_read_f64(c, loss, out);
  bool done = ii_ok(c);
  if (!done) {
    assert_int_equal(c->err.status, II_ERR_MEMORY);
    assert_non_null(strstr(c->err.text, "out of memory"));
    assert_null(strchr(c->err.text, '\n'));
    char text[II_ERROR_TEXT];
    strcpy(text, c->err.text);
    ii_gelu(c, first); /* later ops neither do nor say anything */
    ii_backward(c, ii_soft_cross_entropy(c, y, t), 1);
    assert_string_equal(text, c->err.text);
  }
  assert_null(c->tape);
  assert_true(c->pool.reserved <= limit);
  ii_tape_reset(c);
  if (!done) { /* the memory is there again */
    ii_error_clear(&c->err);
    ii_tensor_new(c, II_F32, 1, (int64_t[]){1000});
    assert_true(ii_ok(c));
    ii_tape_reset(c);
  }
  ii_params_destroy(&p);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
  return done;
}

/* Every limit between nothing and enough fails at another place of forward and backward. */
static void out_of_memory_is_an_error(void **state) {
  int failed = 0, done = 0;
  for (int64_t mib = 32; mib <= 160; mib += 2) {
    bool ok = limited_step(true, 8, mib << 20);
    failed += !ok;
    done += ok;
    assert_true(ok || !done); /* more memory never makes it worse */
  }
  assert_true(failed > 10 && done > 10);
  assert_false(limited_step(false, 8, 40 << 20));
  assert_false(limited_step(false, 8, 64 << 20));
  assert_true(limited_step(false, 8, 160 << 20));
}

/* Errors on the way out: a tape that was never walked back, parameters freed first. */
static void leaving_in_the_middle(void **state) {
  for (int order = 0; order < 2; order++) {
    ii_ctx *c = net_open(II_F32, II_F32, false, NULL);
    net n;
    net_init(&n, c, 2, order ? NET_CHECKPOINT : NET_PLAIN);
    c->training = c->recording = true;
    net_loss(&n, c);
    assert_non_null(c->tape);
    net_free(&n);
    assert_int_equal(c->pool.live, 0);
    ii_ctx_close(c);
  }
}

/* Under mixed precision weights of two dimensions have a bf16 copy that follows on request;
 * gradients and vectors stay in f32. */
static void low_copies(void **state) {
  ii_ctx *c = net_open(II_F32, II_BF16, false, NULL);
  ii_params p;
  ii_params_init(&p, c);
  ii_tensor *w = ii_params_add(&p, "w", 2, (int64_t[]){1, 2}),
            *b = ii_params_add(&p, "b", 1, (int64_t[]){2});
  assert_null(b->low);
  assert_true(w->low && w->low->dtype == II_BF16 && w->grad->dtype == II_F32);
  ii_tensor_write_f64(c, w, (double[]){1 + 0x1p-10, -3});
  ii_params_refresh_low(&p);
  double v[2];
  ii_tensor_read_f64(c, w->low, v);
  assert_true(v[0] == 1 && v[1] == -3);
  assert_int_equal(ii_params_numel(&p), 4);
  assert_null(ii_params_find(&p, "c"));
  ii_params_add_buffer(&p, "c", 1, (int64_t[]){7});
  assert_int_equal(ii_params_numel(&p), 4);
  assert_false(ii_params_find(&p, "c")->value->needs_grad);
  ii_params_destroy(&p);
  ii_ctx_close(c);
}

static void context_errors(void **state) {
  ii_error err = {0};
  ii_device d;
  int index = 5;
  assert_int_equal(ii_device_parse("cpu", &d, &index, &err), II_OK);
  assert_int_equal(d, II_CPU);
  assert_int_equal(ii_device_parse("cuda", &d, &index, &err), II_OK);
  assert_true(d == II_CUDA && index == 0);
  assert_int_equal(ii_device_parse("cuda:12", &d, &index, &err), II_OK);
  assert_true(d == II_CUDA && index == 12);
  static const char *const bad[] = {"tpu", "cuda:", "cuda:-1", "cuda:x", "cuda: 1", "cuda:1234"};
  for (int i = 0; i < 6; i++) {
    assert_int_equal(ii_device_parse(bad[i], &d, &index, &err), II_ERR_ARG);
    assert_non_null(strstr(err.text, bad[i]));
    ii_error_clear(&err);
  }
  ii_error_clear(&err);
  ii_error_set(&err, II_ERR_IO, "first");
  ii_error_set(&err, II_ERR_ARG, "second");
  ii_error_prefix(&err, "in %d", 7);
  assert_int_equal(err.status, II_ERR_IO);
  assert_string_equal(err.text, "in 7: first");
  for (int i = 0; i < 100; i++) ii_error_prefix(&err, "a long prefix that does not fit for ever");
  assert_true(strlen(err.text) < II_ERROR_TEXT);
  for (int i = 0; ii_profile_name(i); i++) assert_true(strlen(ii_profile_name(i)) > 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(plan_equals_run),       cmocka_unit_test(multiply_adds),
      cmocka_unit_test(memory_does_not_grow),  cmocka_unit_test(out_of_memory_is_an_error),
      cmocka_unit_test(leaving_in_the_middle), cmocka_unit_test(low_copies),
      cmocka_unit_test(context_errors),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
