/* The tape: values that can be computed by hand, accumulation, sharing of gradients, frozen inputs,
 * checkpointing, scopes, and errors. */
#include "autograd_net.h"
#include "layers/basic.h"
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static ii_ctx *open_ctx(ii_dtype real, ii_dtype compute, bool plan) {
  return net_open(real, compute, plan, NULL);
}

static ii_tensor *leaf(ii_ctx *c, const double *v, int64_t n) {
  ii_tensor *t = ii_tensor_new(c, c->real, 1, &n);
  ii_tensor_write_f64(c, t, v);
  t->needs_grad = true;
  return t;
}

static void want_values(ii_ctx *c, const ii_tensor *t, const double *want, int64_t n) {
  double v[64];
  assert_non_null(t);
  assert_true(n <= 64 && ii_numel(t) == n);
  ii_tensor_read_f64(c, t, v);
  for (int64_t i = 0; i < n; i++)
    if (!(fabs(v[i] - want[i]) < 1e-12))
      fail_msg("element %lld is %.15g, not %.15g", (long long)i, v[i], want[i]);
}

/* sum of a vector: linear with weights of one, which are not differentiated */
static ii_tensor *sum(ii_ctx *c, ii_tensor *x) {
  int64_t n = ii_numel(x);
  double ones[64];
  for (int i = 0; i < 64; i++) ones[i] = 1;
  ii_tensor *w = ii_tensor_new(c, c->real, 2, (int64_t[]){1, n});
  ii_tensor_write_f64(c, w, ones);
  return ii_linear(c, ii_reshape(c, x, 2, (int64_t[]){1, n}), w, NULL);
}

static double gelu_slope(double x) {
  return 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
}

/* z = (x + f) + gelu(x): x + f hands one block on to x and to f as their gradient, then gelu adds
 * to that of x: f must not see it. Then the same with f in the place of x. */
static void shared_gradient_is_copied_before_it_is_added_to(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  const double xv[] = {-1, 0.5, 2}, fv[] = {3, -2, 0.25}, ones[] = {1, 1, 1};
  for (int swapped = 0; swapped < 2; swapped++) {
    c->recording = true;
    ii_tensor *x = leaf(c, xv, 3), *f = leaf(c, fv, 3);
    ii_tensor *g = ii_gelu(c, x);
    ii_tensor *y = swapped ? ii_add(c, f, x) : ii_residual(c, x, f, NULL, NULL);
    ii_backward(c, sum(c, ii_add(c, y, g)), 1);
    double want[3];
    for (int i = 0; i < 3; i++) want[i] = 1 + gelu_slope(xv[i]);
    want_values(c, x->grad, want, 3);
    want_values(c, f->grad, ones, 3);
    ii_tape_reset(c);
    assert_int_equal(c->pool.live, 0);
  }
  ii_ctx_close(c);
}

/* x + x, and x + (x + x): the same tensor on both sides */
static void tensor_added_to_itself(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  const double xv[] = {1, 2}, want[] = {3, 3};
  c->recording = true;
  ii_tensor *x = leaf(c, xv, 2);
  ii_backward(c, sum(c, ii_add(c, x, ii_residual(c, x, x, NULL, NULL))), 1);
  want_values(c, x->grad, want, 2);
  ii_ctx_close(c);
}

/* Views share memory in both directions: neither their values nor their gradients are copied, and a
 * second consumer of the base does not disturb the view's gradient. */
static void reshape_shares(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  const double xv[] = {1, -2, 3, -4};
  c->recording = true;
  ii_tensor *x = leaf(c, xv, 4);
  int64_t live = c->pool.live;
  ii_tensor *v = ii_reshape(c, x, 2, (int64_t[]){2, -1});
  assert_int_equal(c->pool.live, live);
  assert_true(v->shape[0] == 2 && v->shape[1] == 2 && ii_data(v) == ii_data(x));
  ii_tensor *flat = ii_reshape(c, ii_relu(c, v), 1, (int64_t[]){4});
  ii_backward(c, sum(c, ii_add(c, flat, x)), 2);
  want_values(c, x->grad, (double[]){4, 2, 4, 2}, 4);
  ii_ctx_close(c);
}

/* d(loss) = scale; a second backward adds to parameters and to leaves; zero_grad lets the next one
 * overwrite, whatever is there. */
static void gradients_accumulate_until_zeroed(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  ii_params p;
  ii_params_init(&p, c);
  ii_tensor *w = ii_params_add(&p, "w", 2, (int64_t[]){1, 3});
  const double xv[] = {1, 2, 3}, nan3[] = {NAN, NAN, NAN}, wv[] = {4, 5, 6};
  ii_tensor_write_f64(c, w, wv);
  ii_tensor_write_f64(c, w->grad, nan3);
  c->recording = true;
  for (int pass = 0; pass < 2; pass++) {
    ii_params_zero_grad(&p);
    ii_tensor *x = leaf(c, xv, 3);
    ii_tensor *row = ii_reshape(c, x, 2, (int64_t[]){1, 3});
    ii_backward(c, ii_linear(c, row, w, NULL), 0.5);
    want_values(c, w->grad, (double[]){0.5, 1, 1.5}, 3);
    row = ii_reshape(c, x, 2, (int64_t[]){1, 3});
    ii_backward(c, ii_linear(c, row, w, NULL), 2);
    want_values(c, w->grad, (double[]){2.5, 5, 7.5}, 3);
    want_values(c, x->grad, (double[]){10, 12.5, 15}, 3);
    ii_tape_reset(c);
    want_values(c, w->grad, (double[]){2.5, 5, 7.5}, 3); /* the step's end keeps them */
    ii_tensor_write_f64(c, w->grad, nan3);
  }
  ii_params_destroy(&p);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
}

/* A parameter that is passed on directly (a view, a sum) gets its gradient by copy, then by adding.
 */
static void parameters_as_plain_operands(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  ii_params p;
  ii_params_init(&p, c);
  ii_tensor *w = ii_params_add(&p, "w", 1, (int64_t[]){3});
  const double xv[] = {1, 2, 3};
  c->recording = true;
  ii_tensor *x = leaf(c, xv, 3);
  ii_backward(c, sum(c, ii_add(c, ii_add(c, x, w), w)), 3);
  want_values(c, w->grad, (double[]){6, 6, 6}, 3);
  want_values(c, x->grad, (double[]){3, 3, 3}, 3);
  ii_params_destroy(&p);
  ii_ctx_close(c);
}

static void frozen_inputs_cost_nothing(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  ii_params p;
  ii_params_init(&p, c);
  ii_params_add(&p, "w", 2, (int64_t[]){2, 2});
  ii_params_add(&p, "b", 1, (int64_t[]){2});
  ii_param *w = ii_params_find(&p, "w"), *b = ii_params_find(&p, "b");
  int64_t live = c->pool.live;
  ii_param_set_trainable(&p, w, false);
  assert_null(w->value->grad);
  assert_true(c->pool.live < live);
  c->recording = true;
  const double xv[] = {1, 2};
  ii_tensor *x = leaf(c, xv, 2);
  x->needs_grad = false;
  ii_tensor *row = ii_reshape(c, x, 2, (int64_t[]){1, 2});
  assert_false(row->needs_grad);
  assert_null(c->tape);
  ii_tensor *y = ii_linear(c, row, w->value, b->value);
  assert_non_null(c->tape);
  ii_backward(c, sum(c, y), 1);
  want_values(c, b->value->grad, (double[]){1, 1}, 2);
  assert_null(x->grad);
  ii_tape_reset(c);
  ii_param_set_trainable(&p, b, false);
  x = leaf(c, xv, 2);
  x->needs_grad = false;
  ii_linear(c, ii_reshape(c, x, 2, (int64_t[]){1, 2}), w->value, b->value);
  assert_null(c->tape);
  ii_param_set_trainable(&p, w, true);
  assert_non_null(w->value->grad);
  ii_params_destroy(&p);
  ii_ctx_close(c);
}

static void evaluation_records_nothing(void **state) {
  ii_ctx *c = open_ctx(II_F32, II_F32, false);
  net n;
  net_init(&n, c, 3, NET_PLAIN);
  ii_tensor *loss = net_loss(&n, c);
  assert_null(c->tape);
  assert_false(loss->needs_grad);
  net_free(&n);
  ii_ctx_close(c);
}

/* ---- scopes ---- */

static void scopes_drop_what_nobody_keeps(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  const double v[] = {1, 2, 3};
  ii_tensor *x = leaf(c, v, 3); /* not recorded: recording is off */
  int64_t live = c->pool.live;
  ii_scope outer = ii_scope_begin(c);
  ii_scope inner = ii_scope_begin(c);
  ii_tensor *a = ii_gelu(c, x), *b = ii_relu(c, a), *d = ii_silu(c, b);
  assert_int_equal(c->pool.live, live + 3 * 64);
  double want[3], got[3];
  ii_tensor_read_f64(c, b, want);
  ii_tensor *view = ii_reshape(c, b, 2, (int64_t[]){3, 1});
  ii_scope_end(c, inner, (ii_tensor *[]){view, NULL, x}, 3); /* b lives on through its view */
  assert_int_equal(c->pool.live, live + 64);
  ii_tensor_read_f64(c, view, got);
  assert_memory_equal(want, got, sizeof got);
  ii_scope_end(c, outer, NULL, 0);
  assert_int_equal(c->pool.live, live);
  assert_true(d->shape[0] == 3);
  ii_tape_reset(c);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
}

/* gelu saves its input, relu its output, add nothing. */
static void scopes_leave_what_the_tape_saved(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  const double v[] = {1, -2, 3};
  c->recording = true;
  ii_tensor *x = leaf(c, v, 3);
  int64_t live = c->pool.live;
  ii_scope s = ii_scope_begin(c);
  ii_tensor *a = ii_add(c, x, x); /* saved by gelu */
  ii_tensor *b = ii_gelu(c, a);   /* nobody's */
  ii_tensor *d = ii_add(c, b, b); /* nobody's */
  ii_tensor *e = ii_relu(c, d);   /* saved by relu */
  ii_tensor *f = ii_add(c, e, e); /* the result */
  ii_scope_return(c, s, f);
  assert_int_equal(c->pool.live, live + 3 * 64);
  ii_backward(c, sum(c, f), 1);
  double want[3];
  for (int i = 0; i < 3; i++) want[i] = v[i] > 0 ? 8 * gelu_slope(2 * v[i]) : 0;
  want_values(c, x->grad, want, 3);
  ii_tape_reset(c);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
}

/* ---- checkpoint ---- */

typedef struct {
  double loss, *grads, *buffers, *gx;
  int64_t n_grads, n_buffers, n_x, peak;
  uint64_t draw;
} outcome;

static outcome run_net(ii_dtype compute, unsigned flags, bool one_thread) {
  ii_ctx *c = open_ctx(II_F32, compute, false);
  if (one_thread) c->k.threads = 1;
  net n;
  net_init(&n, c, 6, flags);
  c->training = c->recording = true;
  outcome o = {0};
  for (int step = 0; step < 2; step++) { /* the second one starts from used memory */
    c->step = (uint64_t)step;
    c->draw = 0;
    ii_params_zero_grad(&n.params);
    ii_pool_reset_peak(&c->pool);
    ii_tensor *loss = net_loss(&n, c);
    ii_backward(c, loss, 1);
    ii_tensor_read_f64(c, loss, &o.loss);
    if (step == 0) ii_tape_reset(c);
  }
  if (!ii_ok(c)) fail_msg("%s", c->err.text);
  o.peak = c->pool.peak;
  o.draw = c->draw;
  o.grads = net_read(&n, c, false, &o.n_grads);
  o.buffers = net_read(&n, c, true, &o.n_buffers);
  o.n_x = ii_numel(n.x);
  o.gx = malloc((size_t)o.n_x * sizeof *o.gx);
  assert_non_null(o.gx);
  ii_tensor_read_f64(c, n.x->grad, o.gx);
  net_free(&n);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
  return o;
}

static void outcome_free(outcome *o) {
  free(o->grads);
  free(o->buffers);
  free(o->gx);
}

static void want_same_outcome(const outcome *a, const outcome *b) {
  assert_true(a->n_grads == b->n_grads && a->n_buffers == b->n_buffers && a->n_x == b->n_x);
  assert_memory_equal(&a->loss, &b->loss, sizeof a->loss);
  assert_memory_equal(a->grads, b->grads, (size_t)a->n_grads * sizeof *a->grads);
  assert_memory_equal(a->gx, b->gx, (size_t)a->n_x * sizeof *a->gx);
  assert_memory_equal(a->buffers, b->buffers, (size_t)a->n_buffers * sizeof *a->buffers);
  assert_true(a->draw == b->draw);
}

static void checkpoint_changes_memory_only(void **state) {
  for (int bf16 = 0; bf16 < 2; bf16++) {
    ii_dtype t = bf16 ? II_BF16 : II_F32;
    outcome plain = run_net(t, NET_PLAIN, false);
    outcome each = run_net(t, NET_CHECKPOINT, false);
    outcome nested = run_net(t, NET_CHECKPOINT | NET_NESTED, false);
    double all = 0;
    for (int64_t i = 0; i < plain.n_grads; i++) all += fabs(plain.grads[i]);
    assert_true(plain.draw > 0 && isfinite(all) && all > 0);
    want_same_outcome(&plain, &each);
    want_same_outcome(&plain, &nested);
    assert_true(each.peak < plain.peak * 3 / 4);
    outcome_free(&plain);
    outcome_free(&each);
    outcome_free(&nested);
  }
}

/* A block that forgot its scope costs memory, not correctness, and inside a checkpoint the backward
 * still gives memory back as it goes. */
static void forgotten_scopes_cost_memory_only(void **state) {
  outcome with = run_net(II_F32, NET_PLAIN, false);
  outcome without = run_net(II_F32, NET_NO_SCOPES, false);
  want_same_outcome(&with, &without);
  assert_true(with.peak < without.peak);
  outcome_free(&with);
  outcome_free(&without);
}

static void runs_repeat(void **state) {
  for (int threads = 1; threads <= 2; threads++) {
    outcome a = run_net(II_F32, NET_PLAIN, threads == 1);
    outcome b = run_net(II_F32, NET_PLAIN, threads == 1);
    want_same_outcome(&a, &b);
    outcome_free(&a);
    outcome_free(&b);
  }
}

static ii_tensor *norm_layer(ii_ctx *c, ii_tensor *x, const void *user) {
  return ii_batch_norm_forward(c, user, x);
}

/* A batch that a checkpoint computes twice is one batch: for the counter as for the statistics. */
static void recomputed_batches_count_once(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  ii_params p;
  ii_init_list inits = {0};
  ii_params_init(&p, c);
  const ii_builder b = {.params = &p, .inits = &inits};
  const ii_batch_norm_layer l = ii_batch_norm_build(&b, 2);
  ii_init_apply(&p, &inits, 1);
  c->training = c->recording = true;
  const double v[] = {1, 2, 3, 5};
  ii_tensor *x = ii_reshape(c, leaf(c, v, 4), 2, (int64_t[]){2, 2});
  ii_tensor *y = ii_checkpoint(c, x, norm_layer, &l);
  ii_backward(c, sum(c, ii_reshape(c, y, 1, (int64_t[]){4})), 1);
  want_values(c, l.batches, (double[]){1}, 1);
  want_values(c, l.running_mean, (double[]){0.2, 0.35}, 2);
  ii_params_destroy(&p);
  free(inits.at);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
}

static ii_tensor *identity(ii_ctx *c, ii_tensor *x, const void *user) {
  return x;
}

/* nothing inside needs a gradient, or the block hands its input on */
static void checkpoint_of_little(void **state) {
  ii_ctx *c = open_ctx(II_F64, II_F64, false);
  const double v[] = {1, 2};
  c->recording = true;
  ii_tensor *x = leaf(c, v, 2);
  ii_tensor *h = ii_add(c, x, x);
  ii_backward(c, sum(c, ii_checkpoint(c, h, identity, NULL)), 1);
  want_values(c, x->grad, (double[]){2, 2}, 2);
  ii_tape_reset(c);
  assert_int_equal(c->pool.live, 0);
  ii_ctx_close(c);
}

/* ---- programmer errors ---- */

static void linear_of_wrong_width(ii_ctx *c) {
  ii_tensor *x = ii_tensor_new(c, c->real, 2, (int64_t[]){2, 3});
  ii_tensor *w = ii_tensor_new(c, c->real, 2, (int64_t[]){4, 5});
  ii_linear(c, x, w, NULL);
}

static void bias_of_wrong_width(ii_ctx *c) {
  ii_tensor *x = ii_tensor_new(c, c->real, 2, (int64_t[]){2, 3});
  ii_tensor *w = ii_tensor_new(c, c->real, 2, (int64_t[]){4, 3});
  ii_linear(c, x, w, ii_tensor_new(c, c->real, 1, (int64_t[]){3}));
}

static void add_of_two_shapes(ii_ctx *c) {
  ii_tensor *x = ii_tensor_new(c, c->real, 2, (int64_t[]){2, 3});
  ii_add(c, x, ii_tensor_new(c, c->real, 2, (int64_t[]){3, 2}));
}

static void offsets_for_another_output(ii_ctx *c) {
  ii_dcn_geometry g = {1, 3, 3, 1, 1, 1, 1, 1, 1, false, true, 1.0};
  ii_tensor *x = ii_tensor_new(c, c->real, 4, (int64_t[]){1, 4, 4, 8});
  ii_tensor *o = ii_tensor_new(c, c->real, 4, (int64_t[]){1, 4, 4, 24});
  ii_dcnv3(c, x, o, &g);
}

static void negative_dimension(ii_ctx *c) {
  ii_tensor_new(c, c->real, 1, (int64_t[]){-1});
}

static void backward_from_many(ii_ctx *c) {
  ii_backward(c, ii_tensor_new(c, c->real, 1, (int64_t[]){2}), 1);
}

static void two_parameters_of_one_name(ii_ctx *c) {
  ii_params p;
  ii_params_init(&p, c);
  ii_params_add(&p, "a", 1, (int64_t[]){1});
  ii_params_add(&p, "a", 1, (int64_t[]){1});
}

/* Each aborts with a sentence on stderr that names the place. */
static void programmer_errors_abort(void **state) {
  void (*const bad[])(ii_ctx *) = {linear_of_wrong_width,     bias_of_wrong_width,
                                   add_of_two_shapes,         offsets_for_another_output,
                                   negative_dimension,        backward_from_many,
                                   two_parameters_of_one_name};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    int fd[2], status;
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
      signal(SIGABRT, SIG_DFL); /* cmocka catches it */
      dup2(fd[1], 2);
      bad[i](open_ctx(II_F32, II_F32, true));
      _exit(0);
    }
    close(fd[1]);
    char text[2048] = {0};
    for (size_t n = 0; n + 1 < sizeof text;) {
      ssize_t got = read(fd[0], text + n, sizeof text - 1 - n);
      if (got <= 0) break;
      n += (size_t)got;
    }
    close(fd[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) fail_msg("case %zu did not abort", i);
    assert_non_null(strstr(text, "autograd/"));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shared_gradient_is_copied_before_it_is_added_to),
      cmocka_unit_test(tensor_added_to_itself),
      cmocka_unit_test(reshape_shares),
      cmocka_unit_test(gradients_accumulate_until_zeroed),
      cmocka_unit_test(parameters_as_plain_operands),
      cmocka_unit_test(frozen_inputs_cost_nothing),
      cmocka_unit_test(evaluation_records_nothing),
      cmocka_unit_test(scopes_drop_what_nobody_keeps),
      cmocka_unit_test(scopes_leave_what_the_tape_saved),
      cmocka_unit_test(checkpoint_changes_memory_only),
      cmocka_unit_test(forgotten_scopes_cost_memory_only),
      cmocka_unit_test(runs_repeat),
      cmocka_unit_test(recomputed_batches_count_once),
      cmocka_unit_test(checkpoint_of_little),
      cmocka_unit_test(programmer_errors_abort),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
