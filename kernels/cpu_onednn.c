/* oneDNN behind the CPU engine: its handles, the primitives kept by shape, and the two versions of
 * its C interface. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cpu_onednn_cache.h"

/* Training at changing image sizes would otherwise collect primitives without end. */
enum { BUCKETS = 1024, MAX_ENTRIES = 4096 };

struct ii_onednn {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  int64_t entries;
  dnn_entry *bucket[BUCKETS];
};

int dnn_error(ii_kctx *k, const char *what, dnnl_status_t s) {
  const char *why = s == dnnl_out_of_memory       ? "out of memory"
                    : s == dnnl_invalid_arguments ? "invalid arguments"
                    : s == dnnl_unimplemented     ? "not implemented for this type or size"
                                                  : "runtime error";
  return ii_kernel_error(k, "oneDNN: %s failed: %s (status %d)", what, why, (int)s);
}

int ii_onednn_open(ii_kctx *k, ii_onednn **out) {
  *out = NULL;
  ii_onednn *dnn = calloc(1, sizeof *dnn);
  if (!dnn) return ii_kernel_error(k, "oneDNN: out of memory");
  dnnl_status_t s = dnnl_engine_create(&dnn->engine, dnnl_cpu, 0);
  if (s == dnnl_success)
    s = dnnl_stream_create(&dnn->stream, dnn->engine, dnnl_stream_default_flags);
  if (s != dnnl_success) {
    ii_onednn_close(dnn);
    return dnn_error(k, "opening the CPU engine", s);
  }
  *out = dnn;
  return 0;
}

static void op_free(dnn_op *op) {
  for (int i = 0; i < op->args; i++) dnnl_memory_destroy(op->arg[i].memory);
  if (op->prim) dnnl_primitive_destroy(op->prim);
}

static void entry_free(dnn_entry *e) {
  op_free(&e->main);
  op_free(&e->reorder);
  free(e);
}

static void drop_all(ii_onednn *dnn) {
  for (int i = 0; i < BUCKETS; i++) {
    for (dnn_entry *e = dnn->bucket[i], *next; e; e = next) {
      next = e->next;
      entry_free(e);
    }
    dnn->bucket[i] = NULL;
  }
  dnn->entries = 0;
}

void ii_onednn_close(ii_onednn *dnn) {
  if (!dnn) return;
  drop_all(dnn);
  if (dnn->stream) dnnl_stream_destroy(dnn->stream);
  if (dnn->engine) dnnl_engine_destroy(dnn->engine);
  free(dnn);
}

dnnl_engine_t dnn_engine(ii_onednn *dnn) {
  return dnn->engine;
}

static unsigned bucket_of(const int64_t key[DNN_KEY_WORDS]) {
  uint64_t h = 0;
  for (int i = 0; i < DNN_KEY_WORDS; i++) h = (h ^ (uint64_t)key[i]) * 0x9e3779b97f4a7c15u;
  return (unsigned)(h >> 40) % BUCKETS;
}

dnn_entry *dnn_find(ii_kctx *k, const int64_t key[DNN_KEY_WORDS], bool *is_new) {
  ii_onednn *dnn = ii_cpu_onednn(k);
  const size_t bytes = DNN_KEY_WORDS * sizeof key[0];
  /* The calling thread may be another one than opened the engine; primitives are made for, and
   * must be run by, this number of threads. */
  if (omp_get_max_threads() != k->threads) omp_set_num_threads(k->threads);
  *is_new = false;
  for (dnn_entry *e = dnn->bucket[bucket_of(key)]; e; e = e->next)
    if (memcmp(e->key, key, bytes) == 0) return e;
  if (dnn->entries >= MAX_ENTRIES) drop_all(dnn);
  dnn_entry *e = calloc(1, sizeof *e);
  if (!e) {
    ii_kernel_error(k, "oneDNN: out of memory");
    return NULL;
  }
  memcpy(e->key, key, bytes);
  e->next = dnn->bucket[bucket_of(key)];
  dnn->bucket[bucket_of(key)] = e;
  dnn->entries++;
  *is_new = true;
  return e;
}

void dnn_forget(ii_kctx *k, dnn_entry *gone) {
  ii_onednn *dnn = ii_cpu_onednn(k);
  dnn_entry **at = &dnn->bucket[bucket_of(gone->key)];
  while (*at != gone) at = &(*at)->next;
  *at = gone->next;
  dnn->entries--;
  entry_free(gone);
}

bool dnn_is_reference(dnnl_primitive_desc_t pd) {
  const char *name = NULL;
  if (dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name) != dnnl_success || !name)
    return false;
  return strncmp(name, "ref", 3) == 0;
}

dnnl_status_t dnn_op_create(dnn_op *op, dnnl_primitive_desc_t pd, dnnl_engine_t engine) {
  dnnl_status_t s = dnnl_primitive_create(&op->prim, pd);
  if (s != dnnl_success) return s;
  dnn_md_ref md = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
  op->scratch = md ? dnnl_memory_desc_get_size(md) : 0;
  return op->scratch ? dnn_op_add(op, DNNL_ARG_SCRATCHPAD, md, engine) : dnnl_success;
}

dnnl_status_t dnn_op_add(dnn_op *op, int arg, dnn_md_ref md, dnnl_engine_t engine) {
  if (!md || op->args == DNN_MAX_ARGS) return dnnl_runtime_error;
  dnnl_memory_t m;
  dnnl_status_t s = dnnl_memory_create(&m, md, engine, DNNL_MEMORY_NONE);
  if (s != dnnl_success) return s;
  op->arg[op->args].arg = arg;
  op->arg[op->args++].memory = m;
  return dnnl_success;
}

int dnn_run(ii_kctx *k, const dnn_op *op, void *const *pointers, void *scratch) {
  ii_onednn *dnn = ii_cpu_onednn(k);
  dnnl_status_t s = dnnl_success;
  for (int i = 0; i < op->args && s == dnnl_success; i++) {
    void *p = op->arg[i].arg == DNNL_ARG_SCRATCHPAD ? scratch : *pointers++;
    s = dnnl_memory_set_data_handle(op->arg[i].memory, p);
  }
  if (s == dnnl_success) s = dnnl_primitive_execute(op->prim, dnn->stream, op->args, op->arg);
  if (s == dnnl_success) s = dnnl_stream_wait(dnn->stream);
  return s == dnnl_success ? 0 : dnn_error(k, "running a primitive", s);
}

dnnl_status_t dnn_attr(dnnl_primitive_attr_t *attr, dnnl_post_ops_t ops) {
  dnnl_status_t s = dnnl_primitive_attr_create(attr);
  if (s != dnnl_success) {
    *attr = NULL;
    return s;
  }
  s = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
  if (s == dnnl_success && ops) s = dnnl_primitive_attr_set_post_ops(*attr, ops);
  return s;
}

#if DNNL_VERSION_MAJOR >= 3

dnnl_status_t dnn_md_strided(dnn_md *md, int ndims, const int64_t *dims, ii_dtype t,
                             const int64_t *strides) {
  return dnnl_memory_desc_create_with_strides(md, ndims, dims, dnn_type(t), strides);
}

dnnl_status_t dnn_md_any(dnn_md *md, int ndims, const int64_t *dims, ii_dtype t) {
  return dnnl_memory_desc_create_with_tag(md, ndims, dims, dnn_type(t), dnnl_format_tag_any);
}

dnnl_status_t dnn_matmul_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnn_md_ref src,
                            dnn_md_ref w, dnn_md_ref bias, dnn_md_ref dst,
                            dnnl_primitive_attr_t attr) {
  return dnnl_matmul_primitive_desc_create(pd, e, src, w, bias, dst, attr);
}

static const dnnl_dims_t no_dilation = {0};

dnnl_status_t dnn_conv_fwd_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const dnn_conv *c,
                              dnnl_primitive_attr_t attr) {
  return dnnl_convolution_forward_primitive_desc_create(
      pd, e, dnnl_forward_training, dnnl_convolution_direct, c->x, c->w, c->b, c->y, c->stride,
      no_dilation, c->pad, c->pad, attr);
}

dnnl_status_t dnn_conv_bwd_data_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const dnn_conv *c,
                                   dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr) {
  return dnnl_convolution_backward_data_primitive_desc_create(pd, e, dnnl_convolution_direct, c->x,
                                                              c->w, c->y, c->stride, no_dilation,
                                                              c->pad, c->pad, hint, attr);
}

dnnl_status_t dnn_post_linear(dnnl_post_ops_t ops, float alpha) {
  return dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_linear, alpha, 0.0f);
}

dnnl_status_t dnn_post_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}

#else

dnnl_status_t dnn_md_strided(dnn_md *md, int ndims, const int64_t *dims, ii_dtype t,
                             const int64_t *strides) {
  return dnnl_memory_desc_init_by_strides(md, ndims, dims, dnn_type(t), strides);
}

dnnl_status_t dnn_md_any(dnn_md *md, int ndims, const int64_t *dims, ii_dtype t) {
  return dnnl_memory_desc_init_by_tag(md, ndims, dims, dnn_type(t), dnnl_format_tag_any);
}

dnnl_status_t dnn_matmul_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnn_md_ref src,
                            dnn_md_ref w, dnn_md_ref bias, dnn_md_ref dst,
                            dnnl_primitive_attr_t attr) {
  dnnl_matmul_desc_t d;
  dnnl_status_t s = dnnl_matmul_desc_init(&d, src, w, bias, dst);
  return s == dnnl_success ? dnnl_primitive_desc_create(pd, &d, attr, e, NULL) : s;
}

dnnl_status_t dnn_conv_fwd_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const dnn_conv *c,
                              dnnl_primitive_attr_t attr) {
  dnnl_convolution_desc_t d;
  dnnl_status_t s =
      dnnl_convolution_forward_desc_init(&d, dnnl_forward_training, dnnl_convolution_direct, c->x,
                                         c->w, c->b, c->y, c->stride, c->pad, c->pad);
  return s == dnnl_success ? dnnl_primitive_desc_create(pd, &d, attr, e, NULL) : s;
}

dnnl_status_t dnn_conv_bwd_data_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const dnn_conv *c,
                                   dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr) {
  dnnl_convolution_desc_t d;
  dnnl_status_t s = dnnl_convolution_backward_data_desc_init(&d, dnnl_convolution_direct, c->x,
                                                             c->w, c->y, c->stride, c->pad, c->pad);
  return s == dnnl_success ? dnnl_primitive_desc_create(pd, &d, attr, e, hint) : s;
}

dnnl_status_t dnn_post_linear(dnnl_post_ops_t ops, float alpha) {
  return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_linear, alpha, 0.0f);
}

dnnl_status_t dnn_post_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1.0f);
}

#endif
