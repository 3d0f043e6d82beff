/* Activation checkpointing: one tape node that keeps its input and the random position, and runs
 * its function again in backward. */
#include "autograd/op_common.h"
#include "autograd/tensor_priv.h"

typedef struct {
  ii_block_fn fn;
  const void *user;
  uint64_t draw; /* where the drop-path draws of this function begin */
} checkpoint_args;

ii_tensor *ii_checkpoint(ii_ctx *c, ii_tensor *x, ii_block_fn fn, const void *user) {
  if (!c->recording) return fn(c, x, user);
  checkpoint_args a = {fn, user, c->draw};
  ii_scope s = ii_scope_begin(c);
  c->recording = false;
  ii_tensor *y = ii_scope_return(c, s, fn(c, x, user));
  c->recording = true;
  if (y == x) return x;
  /* the parameters inside need gradients even when x does not */
  bool needed = x->needs_grad;
  x->needs_grad = true;
  ii_tape_record(c, II_OP_checkpoint, y, &x, 1, NULL, 0, &a, sizeof a);
  x->needs_grad = needed;
  return y;
}

void ii_backward_checkpoint(ii_ctx *c, ii_node *n) {
  const checkpoint_args *a = n->args;
  ii_node *outer = c->tape;
  uint64_t draw = c->draw;
  ii_scope s = ii_scope_begin(c);
  /* the input again, as a leaf of an inner tape */
  ii_tensor *x = ii_tensor_view(c, n->in[0], n->in[0]->ndim, n->in[0]->shape);
  x->needs_grad = n->in[0]->needs_grad;
  c->tape = NULL;
  c->draw = a->draw;
  c->recording = c->recomputing = true;
  ii_tensor *y = a->fn(c, x, a->user);
  c->recording = c->recomputing = false;
  /* from here on only the inner tape holds memory, and gives it back node by node */
  ii_scope_end(c, s, NULL, 0);
  ii_grad_pass(c, y, n->out->grad);
  ii_tape_walk(c);
  c->tape = outer;
  c->draw = draw;
  if (x->grad) {
    ii_grad_pass(c, n->in[0], x->grad);
    if (x->grad->mem) ii_block_release(x->grad->mem);
    x->grad = NULL;
  }
}
