#include "autograd/tensor.h"
#include "autograd/ctx.h"
#include "autograd/kernel_call.h"
#include "autograd/tape.h"
#include "autograd/tensor_priv.h"
#include <stdlib.h>
#include <string.h>

static void set_shape(ii_tensor *t, ii_dtype dtype, int ndim, const int64_t *shape) {
  II_ASSERT(ndim >= 0 && ndim <= II_MAX_DIMS, "%d dimensions", ndim);
  t->dtype = dtype;
  t->ndim = ndim;
  for (int i = 0; i < ndim; i++) {
    II_ASSERT(shape[i] >= 0, "dimension %d is %lld", i, (long long)shape[i]);
    t->shape[i] = shape[i];
  }
}

ii_tensor *ii_tensor_shell(ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape) {
  ii_tensor *t = ii_arena_alloc(c, sizeof *t);
  set_shape(t, dtype, ndim, shape);
  t->next = c->tensors;
  c->tensors = t;
  return t;
}

static void scope_own(ii_ctx *c, ii_block *b) {
  if (c->n_owned == c->cap_owned) {
    c->cap_owned = c->cap_owned ? 2 * c->cap_owned : 256;
    c->owned = realloc(c->owned, (size_t)c->cap_owned * sizeof *c->owned);
    II_ASSERT(c->owned, "out of host memory for %lld scope entries", (long long)c->cap_owned);
  }
  c->owned[c->n_owned++] = b;
}

ii_block *ii_tensor_alloc_block(ii_ctx *c, const ii_tensor *t, ii_mem_class use) {
  if (!ii_ok(c)) return NULL;
  return ii_pool_alloc(&c->pool, (size_t)ii_numel(t) * ii_dtype_size(t->dtype), use, &c->err);
}

static ii_tensor *new_scoped(ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape,
                             ii_mem_class use) {
  ii_tensor *t = ii_tensor_shell(c, dtype, ndim, shape);
  t->mem = ii_tensor_alloc_block(c, t, use);
  if (t->mem) scope_own(c, t->mem);
  return t;
}

ii_tensor *ii_tensor_new(ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape) {
  return new_scoped(c, dtype, ndim, shape, II_MEM_ACTIVATIONS);
}

ii_tensor *ii_tensor_view(ii_ctx *c, ii_tensor *of, int ndim, const int64_t *shape) {
  ii_tensor *t = ii_tensor_shell(c, of->dtype, ndim, shape);
  II_ASSERT(ii_numel(t) == ii_numel(of), "a view of %lld elements on %lld", (long long)ii_numel(t),
            (long long)ii_numel(of));
  t->mem = of->mem;
  if (t->mem) {
    ii_block_retain(t->mem);
    scope_own(c, t->mem);
  }
  return t;
}

ii_tensor *ii_tensor_from_host(ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape,
                               const void *host) {
  ii_tensor *t = new_scoped(c, dtype, ndim, shape, II_MEM_INPUT);
  ii_tensor_write(c, t, host);
  return t;
}

ii_tensor *ii_tensor_persistent(ii_ctx *c, ii_dtype dtype, int ndim, const int64_t *shape,
                                ii_mem_class use) {
  ii_tensor *t = calloc(1, sizeof *t);
  if (!t) {
    ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory");
    return NULL;
  }
  set_shape(t, dtype, ndim, shape);
  t->persistent = true;
  t->mem = ii_tensor_alloc_block(c, t, use);
  if (!t->mem) {
    free(t);
    return NULL;
  }
  if (t->mem->data) memset(t->mem->data, 0, (size_t)ii_numel(t) * ii_dtype_size(dtype));
  return t;
}

void ii_tensor_free(ii_tensor *t) {
  if (!t) return;
  II_ASSERT(t->persistent, "a tensor of %d dimensions that belongs to a scope", t->ndim);
  ii_tensor_free(t->grad);
  ii_tensor_free(t->low);
  ii_block_release(t->mem);
  free(t);
}

void ii_tensor_read(ii_ctx *c, const ii_tensor *t, void *host) {
  size_t bytes = (size_t)ii_numel(t) * ii_dtype_size(t->dtype);
  if (c->plan || !t->mem || !t->mem->data)
    memset(host, 0, bytes);
  else
    memcpy(host, t->mem->data, bytes);
}

void ii_tensor_write(ii_ctx *c, ii_tensor *t, const void *host) {
  if (c->plan || !t->mem) return;
  memcpy(t->mem->data, host, (size_t)ii_numel(t) * ii_dtype_size(t->dtype));
}

void ii_tensor_read_f64(ii_ctx *c, const ii_tensor *t, double *host) {
  int64_t n = ii_numel(t);
  const void *p = ii_data(t);
  for (int64_t i = 0; i < n; i++) {
    if (c->plan || !p)
      host[i] = 0;
    else if (t->dtype == II_F32)
      host[i] = ((const float *)p)[i];
    else if (t->dtype == II_F64)
      host[i] = ((const double *)p)[i];
    else if (t->dtype == II_BF16)
      host[i] = ii_bf16_to_f32(((const uint16_t *)p)[i]);
    else
      host[i] = ((const int32_t *)p)[i];
  }
}

void ii_tensor_write_f64(ii_ctx *c, ii_tensor *t, const double *host) {
  int64_t n = ii_numel(t);
  void *p = ii_data(t);
  if (c->plan || !p) return;
  for (int64_t i = 0; i < n; i++) {
    if (t->dtype == II_F32)
      ((float *)p)[i] = (float)host[i];
    else if (t->dtype == II_F64)
      ((double *)p)[i] = host[i];
    else if (t->dtype == II_BF16)
      ((uint16_t *)p)[i] = ii_f32_to_bf16((float)host[i]);
    else
      ((int32_t *)p)[i] = (int32_t)host[i];
  }
}
