#include "autograd/tensor.h"
#include "autograd/ctx.h"
#include "autograd/kernel_call.h"
#include "autograd/tape.h"
#include "autograd/tensor_priv.h"
#include <stdlib.h>
#include <string.h>

/* A failure of the engine's memory functions becomes the context's error. */
static void device_did(ii_ctx *c, int status) {
  if (status) ii_error_set(&c->err, II_ERR_DEVICE, "%s", c->k.error);
}

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
  if (t->mem->data)
    device_did(c, ii_device_zero(&c->k, t->mem->data, (size_t)ii_numel(t) * ii_dtype_size(dtype)));
  return t;
}

ii_tensor *ii_tensor_rows(ii_ctx *c, const ii_tensor *of, int64_t first, int64_t rows) {
  II_ASSERT(of->persistent && first >= 0 && rows >= 0 && first + rows <= of->shape[0],
            "rows %lld to %lld of %lld", (long long)first, (long long)(first + rows),
            (long long)of->shape[0]);
  ii_tensor *t = calloc(1, sizeof *t);
  if (!t) {
    ii_error_set(&c->err, II_ERR_MEMORY, "out of host memory");
    return NULL;
  }
  set_shape(t, of->dtype, of->ndim, of->shape);
  t->shape[0] = 1;
  t->offset = of->offset + (size_t)(first * ii_numel(t)) * ii_dtype_size(t->dtype);
  t->shape[0] = rows;
  t->persistent = true;
  t->mem = of->mem;
  ii_block_retain(t->mem);
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
  if (c->plan || !ii_data(t))
    memset(host, 0, bytes);
  else
    device_did(c, ii_device_read(&c->k, host, ii_data(t), bytes));
}

void ii_tensor_write(ii_ctx *c, ii_tensor *t, const void *host) {
  if (c->plan || !t->mem) return;
  device_did(
      c, ii_device_write(&c->k, ii_data(t), host, (size_t)ii_numel(t) * ii_dtype_size(t->dtype)));
}

void ii_tensor_copy(ii_ctx *c, ii_tensor *to, const ii_tensor *from) {
  II_ASSERT(to->dtype == from->dtype && ii_numel(to) == ii_numel(from), "%lld %s into %lld %s",
            (long long)ii_numel(from), ii_dtype_name(from->dtype), (long long)ii_numel(to),
            ii_dtype_name(to->dtype));
  if (c->plan || !ii_data(to) || !ii_data(from)) return;
  device_did(c, ii_device_copy(&c->k, ii_data(to), ii_data(from),
                               (size_t)ii_numel(to) * ii_dtype_size(to->dtype)));
}

/* The tensor's own type in host memory, for the conversions below. */
static void *staging(const ii_tensor *t) {
  void *p = malloc((size_t)ii_numel(t) * ii_dtype_size(t->dtype) + 1);
  II_ASSERT(p, "out of host memory for %lld elements", (long long)ii_numel(t));
  return p;
}

void ii_tensor_read_f64(ii_ctx *c, const ii_tensor *t, double *host) {
  const int64_t n = ii_numel(t);
  if (t->dtype == II_F64) {
    ii_tensor_read(c, t, host);
    return;
  }
  void *p = staging(t);
  ii_tensor_read(c, t, p);
  for (int64_t i = 0; i < n; i++) {
    if (t->dtype == II_F32)
      host[i] = ((const float *)p)[i];
    else if (t->dtype == II_BF16)
      host[i] = ii_bf16_to_f32(((const uint16_t *)p)[i]);
    else if (t->dtype == II_F16)
      host[i] = ii_f16_to_f32(((const uint16_t *)p)[i]);
    else
      host[i] = ((const int32_t *)p)[i];
  }
  free(p);
}

void ii_tensor_write_f64(ii_ctx *c, ii_tensor *t, const double *host) {
  const int64_t n = ii_numel(t);
  if (t->dtype == II_F64) {
    ii_tensor_write(c, t, host);
    return;
  }
  if (c->plan || !t->mem) return;
  void *p = staging(t);
  for (int64_t i = 0; i < n; i++) {
    if (t->dtype == II_F32)
      ((float *)p)[i] = (float)host[i];
    else if (t->dtype == II_BF16)
      ((uint16_t *)p)[i] = ii_f32_to_bf16((float)host[i]);
    else if (t->dtype == II_F16)
      ((uint16_t *)p)[i] = ii_f32_to_f16((float)host[i]);
    else
      ((int32_t *)p)[i] = (int32_t)host[i];
  }
  ii_tensor_write(c, t, p);
  free(p);
}
