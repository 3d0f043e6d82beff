/* Private to kernels/cpu_onednn*.c: primitives with their memory objects, kept by shape, and the
 * differences between the C interfaces of oneDNN 2 and 3. */
#ifndef II_CPU_ONEDNN_CACHE_H
#define II_CPU_ONEDNN_CACHE_H
#include "kernels/cpu_onednn.h"
#include "oneapi/dnnl/dnnl.h"

/* A memory descriptor is a struct in oneDNN 2 and an object to be destroyed in oneDNN 3. Functions
 * of both versions take what md_ref makes of it. */
typedef dnnl_memory_desc_t dnn_md;
#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t dnn_md_ref;
static inline dnn_md_ref md_ref(const dnn_md *md) {
  return *md;
}
static inline void md_free(dnn_md *md) {
  if (*md) dnnl_memory_desc_destroy(*md);
  *md = NULL;
}
#else
typedef const dnnl_memory_desc_t *dnn_md_ref;
static inline dnn_md_ref md_ref(const dnn_md *md) {
  return md;
}
static inline void md_free(dnn_md *md) {}
#endif

static inline dnnl_data_type_t dnn_type(ii_dtype t) {
  return t == II_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* Descriptors of a plain strided layout (strides in elements), and of a layout that the library may
 * choose. */
dnnl_status_t dnn_md_strided(dnn_md *md, int ndims, const int64_t *dims, ii_dtype t,
                             const int64_t *strides);
dnnl_status_t dnn_md_any(dnn_md *md, int ndims, const int64_t *dims, ii_dtype t);

/* Primitive descriptors with one spelling for both versions. bias may be NULL. */
dnnl_status_t dnn_matmul_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnn_md_ref src,
                            dnn_md_ref w, dnn_md_ref bias, dnn_md_ref dst,
                            dnnl_primitive_attr_t attr);
typedef struct {
  dnn_md_ref x, w, b, y;
  dnnl_dims_t stride, pad; /* the same padding at both ends */
} dnn_conv;
dnnl_status_t dnn_conv_fwd_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const dnn_conv *c,
                              dnnl_primitive_attr_t attr);
dnnl_status_t dnn_conv_bwd_data_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t e, const dnn_conv *c,
                                   dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr);
dnnl_status_t dnn_post_linear(dnnl_post_ops_t ops, float alpha);
dnnl_status_t dnn_post_sum(dnnl_post_ops_t ops);

/* A primitive with its arguments, among them its scratchpad if it needs one. */
enum { DNN_MAX_ARGS = 6, DNN_KEY_WORDS = 16 };
typedef struct {
  dnnl_primitive_t prim;
  int args;
  dnnl_exec_arg_t arg[DNN_MAX_ARGS];
  size_t scratch; /* bytes */
} dnn_op;

/* What is remembered for one shape: the operation, with reorders of one tensor before or after it.
 */
typedef struct dnn_entry {
  struct dnn_entry *next;
  int64_t key[DNN_KEY_WORDS];
  bool refused; /* the library has no (fast) implementation for this data type here */
  dnn_op main, reorder;
  size_t reordered; /* bytes of the reordered weights, 0: used as they are */
} dnn_entry;

dnnl_engine_t dnn_engine(ii_onednn *dnn);

/* The entry of `key`, a new empty one with *is_new when there was none. NULL with k->error. */
dnn_entry *dnn_find(ii_kctx *k, const int64_t key[DNN_KEY_WORDS], bool *is_new);
/* Takes a new entry out again when it could not be completed. */
void dnn_forget(ii_kctx *k, dnn_entry *e);

/* Creates op->prim from pd. Arguments are then added in the order in which dnn_run gets pointers.
 */
dnnl_status_t dnn_op_create(dnn_op *op, dnnl_primitive_desc_t pd, dnnl_engine_t engine);
dnnl_status_t dnn_op_add(dnn_op *op, int arg, dnn_md_ref md, dnnl_engine_t engine);
/* Runs op on the given pointers, with `scratch` for its scratchpad. */
int dnn_run(ii_kctx *k, const dnn_op *op, void *const *pointers, void *scratch);
/* A reference implementation is correct and about a hundred times slower than conversion to fp32.
 */
bool dnn_is_reference(dnnl_primitive_desc_t pd);
/* Attributes with the user scratchpad and the given post-ops (NULL: none). */
dnnl_status_t dnn_attr(dnnl_primitive_attr_t *attr, dnnl_post_ops_t ops);
int dnn_error(ii_kctx *k, const char *what, dnnl_status_t s);

#endif
