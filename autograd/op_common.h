/* For the op_*.c files: the flags of ops.def and small helpers. */
#ifndef II_OP_COMMON_H
#define II_OP_COMMON_H
#include "autograd/kernel_call.h"
#include "autograd/ops.h"
#include "autograd/tape.h"

#define S_IN(i)  (1u << (i))
#define S_OUT(i) (1u << (8 + (i)))
#define S_STAT   (1u << 16)

#define II_OP(name, saves) void ii_backward_##name(ii_ctx *c, ii_node *n);
#include "autograd/ops.def"
#undef II_OP

/* Runs the whole current tape backwards; the outputs to start from have their gradients. */
void ii_tape_walk(ii_ctx *c);

/* The multiply-adds of a forward pass; not counted twice when a checkpoint recomputes. */
static inline void ii_count_macs(ii_ctx *c, int64_t macs) {
  if (!c->recomputing) c->macs += macs;
}

/* What a kernel reads for weight w: its 16-bit copy when it computes in 16 bits. */
static inline const void *ii_weight(const ii_tensor *w, ii_dtype compute) {
  if (w->dtype == compute) return ii_data(w);
  II_ASSERT(w->low && w->low->dtype == compute, "weight of type %s has no %s copy",
            ii_dtype_name(w->dtype), ii_dtype_name(compute));
  return ii_data(w->low);
}

/* Shape and type of a new tensor like x, with another last dimension. */
static inline ii_tensor *ii_like(ii_ctx *c, const ii_tensor *x, ii_dtype dtype, int64_t last) {
  int64_t shape[II_MAX_DIMS];
  for (int i = 0; i < x->ndim; i++) shape[i] = x->shape[i];
  shape[x->ndim - 1] = last;
  return ii_tensor_new(c, dtype, x->ndim, shape);
}

#endif
