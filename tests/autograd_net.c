#include "autograd_net.h"
#include "autograd/rng.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N = 4, SIZE = 6, C = 32, HIDDEN = 128, CLASSES = 10, GROUPS = 2, OM = 56 };

static const ii_dcn_geometry geometry = {GROUPS, 3, 3, 1, 1, 1, 1, 1, 1, false, false, 1.0};

ii_ctx *net_open(ii_dtype real, ii_dtype compute, bool plan, ii_error *err) {
  ii_error own = {0};
  ii_ctx_options o = {
      .device = II_CPU, .threads = 2, .real = real, .compute = compute, .plan = plan, .seed = 5};
  ii_ctx *c = ii_ctx_open(&o, err ? err : &own);
  if (!c && !err) fail_msg("%s", own.text);
  return c;
}

static void fill(ii_ctx *c, ii_tensor *t, ii_rng *r, double mean, double scale) {
  int64_t n = ii_numel(t);
  double *v = malloc((size_t)n * sizeof *v);
  assert_non_null(v);
  for (int64_t i = 0; i < n; i++) v[i] = mean + scale * ii_rng_normal(r);
  ii_tensor_write_f64(c, t, v);
  free(v);
}

static ii_tensor *param(net *n, int block, const char *what, int ndim, int64_t a, int64_t b,
                        double mean, double scale) {
  char name[64];
  snprintf(name, sizeof name, "%d.%s", block, what);
  ii_tensor *t = ii_params_add(&n->params, name, ndim, (int64_t[]){a, b});
  if (!t) fail_msg("%s", n->params.ctx->err.text);
  ii_rng r = ii_rng_make(1, II_RNG_TEST, ii_hash_string(name), 0);
  fill(n->params.ctx, t, &r, mean, scale);
  return t;
}

static void init_block(net *n, int i) {
  net_block *b = &n->block[i];
  char name[64];
  b->bn[0] = param(n, i, "bn.weight", 1, C, 0, 1, 0.1);
  b->bn[1] = param(n, i, "bn.bias", 1, C, 0, 0, 0.1);
  snprintf(name, sizeof name, "%d.bn.running_mean", i);
  b->bn[2] = ii_params_add_buffer(&n->params, name, 1, (int64_t[]){C});
  snprintf(name, sizeof name, "%d.bn.running_var", i);
  b->bn[3] = ii_params_add_buffer(&n->params, name, 1, (int64_t[]){C});
  b->om[0] = param(n, i, "om.weight", 2, OM, C, 0, 0.1);
  b->om[1] = param(n, i, "om.bias", 1, OM, 0, 0, 0.5);
  b->ln[0] = param(n, i, "ln.weight", 1, C, 0, 1, 0.1);
  b->ln[1] = param(n, i, "ln.bias", 1, C, 0, 0, 0.1);
  b->fc1[0] = param(n, i, "fc1.weight", 2, HIDDEN, C, 0, 0.1);
  b->fc1[1] = param(n, i, "fc1.bias", 1, HIDDEN, 0, 0, 0.1);
  b->fc2[0] = param(n, i, "fc2.weight", 2, C, HIDDEN, 0, 0.1);
  b->fc2[1] = param(n, i, "fc2.bias", 1, C, 0, 0, 0.1);
  b->gamma = param(n, i, "gamma", 1, C, 0, 0.5, 0.1);
}

void net_init(net *n, ii_ctx *c, int blocks, unsigned flags) {
  memset(n, 0, sizeof *n);
  ii_params_init(&n->params, c);
  n->flags = flags;
  n->blocks = blocks;
  for (int i = 0; i < blocks; i++) init_block(n, i);
  n->head[0] = param(n, blocks, "head.weight", 2, CLASSES, C, 0, 0.1);
  n->head[1] = param(n, blocks, "head.bias", 1, CLASSES, 0, 0, 0.1);
  ii_params_refresh_low(&n->params);
}

void net_free(net *n) {
  ii_params_destroy(&n->params);
}

static ii_tensor *drop_path(ii_ctx *c) {
  double keep[N];
  ii_rng r = ii_rng_make(c->seed, II_RNG_DROP_PATH, c->step, c->draw++);
  for (int i = 0; i < N; i++) keep[i] = ii_rng_uniform(&r) < 0.7 ? 1 / 0.7 : 0;
  ii_tensor *t = ii_tensor_new(c, c->real, 1, (int64_t[]){N});
  ii_tensor_write_f64(c, t, keep);
  return t;
}

typedef struct {
  net *n;
  int i;
} block_ref;

static ii_tensor *dcn_half(net *n, ii_ctx *c, ii_tensor *x, const net_block *b) {
  ii_tensor *h = ii_batch_norm(c, x, b->bn[0], b->bn[1], b->bn[2], b->bn[3], 1e-5, 0.1);
  ii_tensor *om = ii_linear(c, h, b->om[0], b->om[1]);
  return ii_residual(c, x, ii_cast(c, ii_dcnv4(c, h, om, &geometry), c->real), NULL, NULL);
}

static ii_tensor *mlp_half(net *n, ii_ctx *c, ii_tensor *x, const net_block *b) {
  ii_tensor *h = ii_layer_norm(c, x, b->ln[0], b->ln[1], 1e-6, II_ACT_NONE, c->compute);
  h = ii_linear_gelu(c, h, b->fc1[0], b->fc1[1]);
  h = ii_linear(c, h, b->fc2[0], b->fc2[1]);
  return ii_residual(c, x, h, b->gamma, drop_path(c));
}

static ii_tensor *block(ii_ctx *c, ii_tensor *x, const void *user) {
  const block_ref *r = user;
  const net_block *b = &r->n->block[r->i];
  if (r->n->flags & NET_NO_SCOPES) return mlp_half(r->n, c, dcn_half(r->n, c, x, b), b);
  ii_scope outer = ii_scope_begin(c), inner = ii_scope_begin(c);
  x = ii_scope_return(c, inner, dcn_half(r->n, c, x, b));
  return ii_scope_return(c, outer, mlp_half(r->n, c, x, b));
}

static ii_tensor *all_blocks(ii_ctx *c, ii_tensor *x, const void *user) {
  net *n = ((const block_ref *)user)->n;
  for (int i = 0; i < n->blocks; i++) {
    block_ref *r = ii_arena_alloc(c, sizeof *r);
    *r = (block_ref){n, i};
    x = n->flags & NET_CHECKPOINT ? ii_checkpoint(c, x, block, r) : block(c, x, r);
  }
  return x;
}

ii_tensor *net_loss(net *n, ii_ctx *c) {
  ii_rng r = ii_rng_make(2, II_RNG_TEST, c->step, 0);
  ii_tensor *x = ii_tensor_new(c, c->real, 4, (int64_t[]){N, SIZE, SIZE, C});
  fill(c, x, &r, 0, 1);
  x->needs_grad = c->recording;
  n->x = x;
  block_ref *ref = ii_arena_alloc(c, sizeof *ref);
  ref->n = n;
  x = n->flags & NET_NESTED ? ii_checkpoint(c, x, all_blocks, ref) : all_blocks(c, x, ref);
  int32_t labels[N];
  for (int i = 0; i < N; i++) labels[i] = (int32_t)ii_rng_below(&r, CLASSES);
  ii_tensor *t = ii_tensor_from_host(c, II_I32, 1, (int64_t[]){N}, labels);
  ii_tensor *logits = ii_linear(c, ii_mean_pool(c, x), n->head[0], n->head[1]);
  return ii_smooth_cross_entropy(c, logits, t, 0.1);
}

double *net_read(const net *n, ii_ctx *c, bool buffers, int64_t *count) {
  int64_t total = 0, at = 0;
  for (int64_t i = 0; i < n->params.count; i++) total += ii_numel(n->params.at[i].value);
  double *v = malloc((size_t)total * sizeof *v);
  assert_non_null(v);
  for (int64_t i = 0; i < n->params.count; i++) {
    const ii_param *p = &n->params.at[i];
    if (p->buffer != buffers) continue;
    ii_tensor_read_f64(c, buffers ? p->value : p->value->grad, v + at);
    at += ii_numel(p->value);
  }
  *count = at;
  return v;
}
