#include "autograd/tape.h"
#include "autograd/arena.h"
#include "autograd/kernel_call.h"
#include "autograd/op_common.h"
#include "autograd/tensor_priv.h"
#include <stdlib.h>
#include <string.h>

const ii_op_info ii_op_table[II_OP_COUNT] = {
#define II_OP(op, save) {#op, save, ii_backward_##op},
#include "autograd/ops.def"
#undef II_OP
};

void *ii_arena_alloc(ii_ctx *c, size_t bytes) {
  void *p = ii_arena_bump(&c->arena, bytes);
  II_ASSERT(p, "out of host memory for %zu bytes", bytes);
  return p;
}

/* Calls f on every tensor whose memory the node holds. */
static void each_saved(ii_node *n, void (*f)(ii_block *)) {
  for (int i = 0; i < n->n_in; i++)
    if ((n->saved & S_IN(i)) && n->in[i] && n->in[i]->mem) f(n->in[i]->mem);
  if ((n->saved & S_OUT(0)) && n->out->mem) f(n->out->mem);
  if (n->saved & S_STAT)
    for (int i = 0; i < n->n_stat; i++)
      if (n->stat[i]->mem) f(n->stat[i]->mem);
}

ii_node *ii_tape_record(ii_ctx *c, ii_op op, ii_tensor *out, ii_tensor *const *in, int n_in,
                        ii_tensor *const *stat, int n_stat, const void *args, size_t size) {
  bool wanted = false;
  II_ASSERT(n_in <= II_NODE_IN && n_stat <= II_NODE_STAT, "%s: %d inputs, %d statistics",
            ii_op_table[op].name, n_in, n_stat);
  for (int i = 0; i < n_in; i++) wanted |= in[i] && in[i]->needs_grad;
  out->needs_grad = wanted && c->recording;
  if (!out->needs_grad) return NULL;
  ii_node *n = ii_arena_alloc(c, sizeof *n);
  n->op = op;
  n->n_in = n_in;
  n->n_stat = n_stat;
  memcpy(n->in, in, (size_t)n_in * sizeof *in);
  if (n_stat) memcpy(n->stat, stat, (size_t)n_stat * sizeof *stat);
  n->out = out;
  if (size) {
    n->args = ii_arena_alloc(c, size);
    memcpy(n->args, args, size);
  }
  n->saved = ii_op_table[op].saves;
  each_saved(n, ii_block_retain);
  n->prev = c->tape;
  c->tape = n;
  return n;
}

void ii_tape_second(ii_node *n, ii_tensor *also) {
  also->needs_grad = n != NULL;
  if (n) n->also = also;
}

static void drop_grad(ii_tensor *t) {
  if (t->persistent || !t->grad) return;
  if (t->grad->mem) ii_block_release(t->grad->mem);
  t->grad = NULL;
}

/* A gradient struct for x without memory. */
static ii_tensor *grad_shell(ii_ctx *c, ii_tensor *x) {
  ii_tensor *g = ii_arena_alloc(c, sizeof *g);
  g->dtype = x->dtype;
  g->ndim = x->ndim;
  memcpy(g->shape, x->shape, sizeof g->shape);
  return g;
}

static void fill(ii_ctx *c, ii_tensor *t, double value) {
  ii_run_fill(c, &(ii_fill_args){.real = c->real,
                                 .y_dtype = t->dtype,
                                 .rows = 1,
                                 .n = ii_numel(t),
                                 .value = value,
                                 .y = ii_data(t)});
}

static void add_into(ii_ctx *c, ii_tensor *dst, const ii_tensor *src) {
  ii_run_add_fwd(c, &(ii_add_args){.real = ii_dtype_real(dst->dtype),
                                   .x_dtype = dst->dtype,
                                   .n = ii_numel(dst),
                                   .a = ii_data(dst),
                                   .b = ii_data(src),
                                   .c = ii_data(dst)});
}

/* Makes x->grad the only owner of its memory before it is added to. */
static void grad_own(ii_ctx *c, ii_tensor *x) {
  ii_block *old = x->grad->mem;
  if (!old || old->refs == 1) return;
  ii_tensor shared = *x->grad;
  x->grad->mem = ii_tensor_alloc_block(c, x, II_MEM_ACTIVATION_GRADIENTS);
  ii_tensor_copy(c, x->grad, &shared);
  ii_block_release(old);
}

/* The gradient of a joint parameter holds something when that of any part does; parts that have
 * none yet join in with zeros. */
static bool joint_grad(ii_ctx *c, ii_joint *j) {
  bool any = false;
  for (int i = 0; i < j->parts; i++) any |= j->part[i]->needs_grad && j->part[i]->grad_valid;
  for (int i = 0; i < j->parts; i++) {
    ii_tensor *p = j->part[i];
    if (!p->needs_grad) continue;
    if (any && !p->grad_valid) fill(c, p->grad, 0);
    p->grad_valid = true;
  }
  return any;
}

void *ii_grad_target(ii_ctx *c, ii_tensor *x, bool *acc) {
  *acc = false;
  if (!x || !x->needs_grad) return NULL;
  if (x->joint && x->joint->whole == x) {
    *acc = joint_grad(c, x->joint);
  } else if (x->persistent) {
    *acc = x->grad_valid;
    x->grad_valid = true;
  } else if (x->grad) {
    grad_own(c, x);
    *acc = true;
  } else {
    x->grad = grad_shell(c, x);
    x->grad->mem = ii_tensor_alloc_block(c, x, II_MEM_ACTIVATION_GRADIENTS);
  }
  return ii_data(x->grad);
}

void ii_grad_pass(ii_ctx *c, ii_tensor *x, ii_tensor *g) {
  if (!x || !x->needs_grad || !g->mem) return;
  II_ASSERT(ii_numel(x) == ii_numel(g) && x->dtype == g->dtype, "gradient of %lld %s for %lld %s",
            (long long)ii_numel(g), ii_dtype_name(g->dtype), (long long)ii_numel(x),
            ii_dtype_name(x->dtype));
  if (x->persistent || x->grad) {
    bool acc;
    ii_grad_target(c, x, &acc);
    if (acc)
      add_into(c, x->grad, g);
    else
      ii_tensor_copy(c, x->grad, g);
    return;
  }
  x->grad = grad_shell(c, x);
  x->grad->mem = g->mem;
  ii_block_retain(g->mem);
}

void ii_tape_walk(ii_ctx *c) {
  while (c->tape) {
    ii_node *n = c->tape;
    c->tape = n->prev;
    /* an output that nothing used has no gradient, and neither have its inputs through this node */
    const bool reached = n->out->grad || (n->also && n->also->grad);
    if (ii_ok(c) && reached) ii_op_table[n->op].backward(c, n);
    drop_grad(n->out);
    if (n->also) drop_grad(n->also);
    each_saved(n, ii_block_release);
  }
}

static void walk_back(ii_ctx *c) {
  const bool recording = c->recording;
  c->recording = false;
  ii_tape_walk(c);
  c->recording = recording;
}

void ii_backward(ii_ctx *c, ii_tensor *loss, double scale) {
  II_ASSERT(ii_numel(loss) == 1, "backward from %lld elements", (long long)ii_numel(loss));
  bool acc;
  if (ii_grad_target(c, loss, &acc)) fill(c, loss->grad, scale);
  walk_back(c);
}

void ii_backward_seeded(ii_ctx *c, ii_tensor *loss, ii_tensor *seed) {
  II_ASSERT(ii_numel(loss) == 1, "backward from %lld elements", (long long)ii_numel(loss));
  ii_grad_pass(c, loss, seed);
  walk_back(c);
}

void ii_tape_reset(ii_ctx *c) {
  for (; c->tape; c->tape = c->tape->prev) each_saved(c->tape, ii_block_release);
  for (ii_tensor *t = c->tensors; t; t = t->next) drop_grad(t);
  c->tensors = NULL;
  ii_scope_end(c, 0, NULL, 0);
  ii_arena_reset(c->arena);
}

void ii_ctx_close(ii_ctx *c) {
  if (!c) return;
  ii_tape_reset(c);
  ii_arena_destroy(&c->arena);
  free(c->owned);
  ii_pool_destroy(&c->pool);
  ii_engine_close(&c->k);
  free(c);
}
