/* For the autograd's own files: tensors without memory of their own. */
#ifndef II_TENSOR_PRIV_H
#define II_TENSOR_PRIV_H
#include "autograd/ctx.h"

/* A tensor struct in the arena, without memory, known to the context (its gradient is dropped at
 * reset). */
ii_tensor *ii_tensor_shell(ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape);
/* A block for t's elements, refs = 1, owned by the caller; NULL after an error. */
ii_block *ii_tensor_alloc_block(ii_ctx *c, const ii_tensor *t, ii_mem_class use);
/* A tensor that shares `of`'s memory under another shape; the innermost scope holds a reference. */
ii_tensor *ii_tensor_view(ii_ctx *c, ii_tensor *of, int ndim, const int64_t *shape);
/* Rows [first, first + rows) of a persistent tensor as a persistent tensor of their own, which
 * holds a reference to the memory; freed with ii_tensor_free. NULL with the sticky error when host
 * memory is exhausted. */
ii_tensor *ii_tensor_rows(ii_ctx *c, const ii_tensor *of, int64_t first, int64_t rows);

#endif
