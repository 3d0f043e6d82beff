#include "op_cases.h"
#include "autograd/op_common.h"
#include "autograd/param.h"
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

int64_t op_input_numel(const op_input *in) {
  int64_t n = 1;
  for (int i = 0; i < in->ndim; i++) n *= in->shape[i];
  return n;
}

double op_round(double v) {
  return ii_bf16_to_f32(ii_f32_to_bf16((float)v));
}

static void draw_rows_of_probabilities(const op_input *in, ii_rng *r, double *v, int64_t n) {
  int64_t C = in->shape[in->ndim - 1];
  for (int64_t i = 0; i < n; i += C) {
    double sum = 0;
    for (int64_t c = 0; c < C; c++) sum += v[i + c] = ii_rng_uniform(r);
    for (int64_t c = 0; c < C; c++) v[i + c] = op_round(v[i + c] / sum);
  }
}

static void draw(const op_input *in, ii_rng *r, double *v, int64_t n) {
  double scale = in->scale != 0 ? in->scale : 1;
  for (int64_t i = 0; i < n; i++) {
    double z = ii_rng_normal(r);
    switch (in->draw) {
    case DRAW_NORMAL:
    case DRAW_OFFSET:
      v[i] = z * scale;
      break;
    case DRAW_AWAY:
      v[i] = (z + (z < 0 ? -0.1 : 0.1)) * scale;
      break;
    case DRAW_SPREAD:
      v[i] = (double)(i - n / 2) / 64;
      break;
    case DRAW_POSITIVE:
      v[i] = ii_rng_range(r, 0.5, 1.5) * scale;
      break;
    case DRAW_SIMPLEX:
      break;
    case DRAW_LABELS:
      v[i] = (double)ii_rng_below(r, (uint64_t)scale);
      break;
    }
    v[i] = op_round(v[i]);
  }
  if (in->draw == DRAW_SIMPLEX) draw_rows_of_probabilities(in, r, v, n);
  if (in->draw == DRAW_SPREAD) /* in random order */
    for (int64_t i = n - 1; i > 0; i--) {
      int64_t j = (int64_t)ii_rng_below(r, (uint64_t)i + 1);
      double t = v[i];
      v[i] = v[j], v[j] = t;
    }
}

void op_draw_inputs(const op_case *k, ii_rng *r, double **in) {
  for (int i = 0; i < OP_INPUTS; i++) {
    in[i] = NULL;
    if (k->in[i].kind == IN_NONE) continue;
    int64_t n = op_input_numel(&k->in[i]);
    in[i] = calloc((size_t)n + 1, sizeof(double));
    assert_non_null(in[i]);
    draw(&k->in[i], r, in[i], n);
  }
  if (k->fix) k->fix(k, in, r);
}

static ii_ctx *contexts[MODE_COUNT][3];

ii_device op_device(void) {
  const char *name = getenv("II_TEST_DEVICE");
  ii_device device = II_CPU;
  ii_error err = {0};
  int index;
  if (name && ii_device_parse(name, &device, &index, &err) != II_OK) fail_msg("%s", err.text);
  return device;
}

int op_device_missing(void) {
  if (op_device() == II_CPU || ii_cuda_device_count() > 0) return 0;
  printf("skipped: no GPU for II_TEST_DEVICE=cuda\n");
  return 77;
}

op_mode op_modes(void) {
  return op_device() == II_CUDA ? MODE_COUNT : MODE_F16;
}

ii_ctx *op_ctx(op_mode mode, int threads) {
  ii_ctx **c = &contexts[mode][threads];
  if (!*c) {
    ii_error err = {0};
    ii_dtype real = mode == MODE_F64 ? II_F64 : II_F32;
    ii_ctx_options o = {.device = op_device(),
                        .threads = threads,
                        .real = real,
                        .compute = mode >= MODE_F16    ? II_F16
                                   : mode >= MODE_BF16 ? II_BF16
                                                       : real};
    *c = ii_ctx_open(&o, &err);
    if (!*c) fail_msg("%s", err.text);
  }
  omp_set_num_threads(threads);
  return *c;
}

void op_ctx_close_all(void) {
  for (int m = 0; m < MODE_COUNT; m++)
    for (int t = 0; t < 3; t++) {
      ii_ctx_close(contexts[m][t]);
      contexts[m][t] = NULL;
    }
}

void op_result_free(op_result *r) {
  free(r->out);
  for (int i = 0; i < OP_INPUTS; i++) {
    free(r->grad[i]);
    free(r->state[i]);
  }
  *r = (op_result){0};
}

static ii_tensor *input_tensor(ii_ctx *c, ii_params *p, op_mode mode, const op_case *k, int i,
                               const double *v) {
  const op_input *in = &k->in[i];
  char name[16];
  snprintf(name, sizeof name, "in%d", i);
  ii_tensor *t = NULL;
  switch (in->kind) {
  case IN_NONE:
    return NULL;
  case IN_PARAM:
    t = ii_params_add(p, name, in->ndim, in->shape);
    break;
  case IN_STATE:
    t = ii_params_add_buffer(p, name, in->ndim, in->shape);
    break;
  case IN_LABELS:
    t = ii_tensor_new(c, II_I32, in->ndim, in->shape);
    break;
  case IN_CONST:
  case IN_REAL:
    t = ii_tensor_new(c, c->real, in->ndim, in->shape);
    break;
  case IN_ACT:
    t = ii_tensor_new(c, mode == MODE_MIXED || mode == MODE_MIXED_F16 ? c->real : c->compute,
                      in->ndim, in->shape);
    break;
  }
  if (in->kind == IN_ACT || in->kind == IN_REAL) t->needs_grad = true;
  ii_tensor_write_f64(c, t, v);
  return t;
}

static double *read_all(ii_ctx *c, const ii_tensor *t) {
  double *v = malloc(((size_t)ii_numel(t) + 1) * sizeof *v);
  assert_non_null(v);
  ii_tensor_read_f64(c, t, v);
  return v;
}

/* An input that did not matter to the result may have no gradient: that reads as zero. */
static double *read_grad(ii_ctx *c, const ii_tensor *t) {
  bool none = !t->grad || (t->persistent && !t->grad_valid);
  if (!none) return read_all(c, t->grad);
  double *v = calloc((size_t)ii_numel(t) + 1, sizeof *v);
  assert_non_null(v);
  return v;
}

static void backward(ii_ctx *c, ii_tensor *out, const double *proj) {
  bool acc;
  c->recording = false;
  assert_true(out->needs_grad);
  ii_grad_target(c, out, &acc);
  assert_false(acc);
  ii_tensor_write_f64(c, out->grad, proj);
  ii_tape_walk(c);
}

op_result op_run(op_mode mode, int threads, const op_case *k, double *const *in,
                 const double *proj) {
  ii_ctx *c = op_ctx(mode, threads);
  ii_params p;
  ii_tensor *t[OP_INPUTS];
  op_result r = {0};
  ii_params_init(&p, c);
  for (int i = 0; i < OP_INPUTS; i++) t[i] = input_tensor(c, &p, mode, k, i, in[i]);
  ii_params_refresh_low(&p);
  c->training = k->flags & CASE_TRAINING;
  c->recording = proj;
  ii_tensor *out = k->call(c, t, k);
  r.n = ii_numel(out);
  r.out = read_all(c, out);
  if (proj) {
    backward(c, out, proj);
    for (int i = 0; i < OP_INPUTS; i++)
      if (t[i] && t[i]->needs_grad) r.grad[i] = read_grad(c, t[i]);
  }
  for (int i = 0; i < OP_INPUTS; i++)
    if (k->in[i].kind == IN_STATE) r.state[i] = read_all(c, t[i]);
  c->recording = c->training = false;
  ii_tape_reset(c);
  ii_params_destroy(&p);
  if (!ii_ok(c)) {
    char text[II_ERROR_TEXT];
    strcpy(text, c->err.text);
    ii_error_clear(&c->err);
    fail_msg("%s", text);
  }
  assert_int_equal(c->pool.live, 0);
  return r;
}
