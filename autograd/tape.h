/* The tape: what ops record in forward, and the walk back. */
#ifndef II_TAPE_H
#define II_TAPE_H
#include "autograd/ctx.h"

typedef enum {
#define II_OP(name, saves) II_OP_##name,
#include "autograd/ops.def"
#undef II_OP
  II_OP_COUNT
} ii_op;

#define II_NODE_IN   8
#define II_NODE_STAT 3

typedef struct ii_node {
  ii_op op;
  int n_in, n_stat;
  ii_tensor *in[II_NODE_IN]; /* entries may be NULL (an optional input that was not given) */
  ii_tensor *out, *also;     /* also: a second output, or NULL */
  ii_tensor *stat[II_NODE_STAT];
  uint32_t saved; /* bits S_IN(i), S_OUT(0), S_STAT that hold references */
  void *args;     /* the op's own copy of what it needs, in the arena */
  struct ii_node *prev;
} ii_node;

/* One row of ops.def. */
typedef struct {
  const char *name;
  uint32_t saves;
  void (*backward)(ii_ctx *c, ii_node *n);
} ii_op_info;
extern const ii_op_info ii_op_table[II_OP_COUNT];

/* For op code: records a node when the tape is recording and some input needs a gradient, and marks
 * the output accordingly. args[size] is copied. Returns the node or NULL. */
ii_node *ii_tape_record(ii_ctx *c, ii_op op, ii_tensor *out, ii_tensor *const *in, int n_in,
                        ii_tensor *const *stat, int n_stat, const void *args, size_t size);

/* For op code: gives the node that was just recorded (NULL: none was) a second output. Its backward
 * runs when at least one of the two has a gradient. */
void ii_tape_second(ii_node *n, ii_tensor *also);

/* For op code, in backward: where to write the gradient of x, or NULL when x needs none. *acc is
 * set to whether the kernel must add to what is there. */
void *ii_grad_target(ii_ctx *c, ii_tensor *x, bool *acc);

/* For op code, in backward: the gradient of x is g itself (same number of elements and type);
 * shares g's memory when x has no gradient yet, adds otherwise. */
void ii_grad_pass(ii_ctx *c, ii_tensor *x, ii_tensor *g);

/* Runs the tape backwards from loss (one element), d(loss)/d(loss) = scale, and empties it.
 * Gradients of parameters accumulate (see param.h); gradients of other leaves that need one stay
 * readable in their ->grad until ii_tape_reset. */
void ii_backward(ii_ctx *c, ii_tensor *loss, double scale);

/* The same with d(loss)/d(loss) = seed, one element of loss's type in device memory. */
void ii_backward_seeded(ii_ctx *c, ii_tensor *loss, ii_tensor *seed);

/* Ends a step: drops the tape, all op results and their gradients. The error stays. */
void ii_tape_reset(ii_ctx *c);

/* Memory from the context's bump arena, zeroed, valid until ii_tape_reset. */
void *ii_arena_alloc(ii_ctx *c, size_t bytes);

#endif
