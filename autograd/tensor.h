/* Tensors: contiguous, row-major, at most II_MAX_DIMS dimensions; images are N,H,W,C. A tensor is a
 * small host struct that names a block of device memory. Structs of op results live in the tape's
 * arena until ii_tape_reset; their memory is counted by scopes and the tape (see ctx.h). */
#ifndef II_TENSOR_H
#define II_TENSOR_H
#include "autograd/pool.h"
#include "kernels/dtype.h"
#include <stdbool.h>
#include <stdint.h>

#define II_MAX_DIMS 6

#define II_JOINT_PARTS 3

/* A joint parameter: a matrix (or vector) whose rows are those of several parameters, so that one
 * product computes what all of them do; see ii_params_join. */
typedef struct ii_joint {
  struct ii_tensor *whole;
  struct ii_tensor *part[II_JOINT_PARTS]; /* views on rows of `whole` */
  int parts;
  int64_t used; /* rows that are parameters; the others are zero */
  struct ii_joint *next;
} ii_joint;

typedef struct ii_tensor {
  ii_block *mem; /* NULL after a failed op */
  size_t offset; /* bytes from the start of mem: parts of a joint parameter */
  ii_dtype dtype;
  int ndim;
  int64_t shape[II_MAX_DIMS];
  bool needs_grad;
  bool persistent;        /* a parameter or buffer: lives until its owner frees it */
  bool grad_valid;        /* persistent tensors: grad holds something; false means "as if zero" */
  struct ii_tensor *grad; /* same shape and type (parameters: type real); NULL: none yet */
  struct ii_tensor *low;  /* parameters under mixed precision: the bf16 copy that compute reads */
  struct ii_joint *joint; /* a joint parameter, or a part of one; otherwise NULL */
  struct ii_tensor *next; /* list in the context */
} ii_tensor;

struct ii_ctx;

static inline void *ii_data(const ii_tensor *t) {
  return t && t->mem && t->mem->data ? (char *)t->mem->data + t->offset : NULL;
}

static inline int64_t ii_numel(const ii_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

/* Product of all dimensions but the last. */
static inline int64_t ii_rows(const ii_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim - 1; i++) n *= t->shape[i];
  return n;
}

static inline int64_t ii_last(const ii_tensor *t) {
  return t->shape[t->ndim - 1];
}

/* A new tensor with undefined contents, owned by the innermost scope. */
ii_tensor *ii_tensor_new(struct ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape);

/* The same, filled from host memory of the same type (copied before return). use: what the memory
 * is counted as, II_MEM_INPUT for data. */
ii_tensor *ii_tensor_from_host(struct ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape,
                               const void *host);

/* A tensor that outlives tape resets, zero-filled; freed with ii_tensor_free. NULL with the
 * context's sticky error when memory is exhausted. */
ii_tensor *ii_tensor_persistent(struct ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape,
                                ii_mem_class use);
void ii_tensor_free(ii_tensor *t); /* persistent tensors only; NULL is allowed */

/* Copies between a tensor and host memory of the tensor's own type; waits for the device. In plan
 * mode reading gives zeros. */
void ii_tensor_read(struct ii_ctx *c, const ii_tensor *t, void *host);
void ii_tensor_write(struct ii_ctx *c, ii_tensor *t, const void *host);
/* to = from: same type and number of elements. Does not wait. */
void ii_tensor_copy(struct ii_ctx *c, ii_tensor *to, const ii_tensor *from);
/* Read and write with conversion from or to double. */
void ii_tensor_read_f64(struct ii_ctx *c, const ii_tensor *t, double *host);
void ii_tensor_write_f64(struct ii_ctx *c, ii_tensor *t, const double *host);

#endif
