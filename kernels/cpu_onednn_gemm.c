/* Matrix products through oneDNN's matmul on plain strided operands: it copies transposed operands
 * into its own blocks piece by piece, which measures faster than transposing beforehand. */
#include <string.h>
#include "kernels/cpu_amx.h"
#include "kernels/cpu_onednn_cache.h"

enum { KEY_GEMM = 1, CONVERT_BLOCK = 4096 };

void ii_cpu_convert(ii_kctx *k, int64_t n, ii_dtype src_dtype, const void *src, ii_dtype dst_dtype,
                    void *dst, bool accumulate) {
  const float *sf = src;
  const uint16_t *sh = src;
  float *df = dst;
  uint16_t *dh = dst;
  const bool src_half = src_dtype == II_BF16, dst_half = dst_dtype == II_BF16;
#pragma omp parallel for num_threads(k->threads) if (n > CONVERT_BLOCK)
  for (int64_t start = 0; start < n; start += CONVERT_BLOCK) {
    int64_t end = start + CONVERT_BLOCK < n ? start + CONVERT_BLOCK : n;
    for (int64_t i = start; i < end; i++) {
      float v = src_half ? ii_bf16_to_f32(sh[i]) : sf[i];
      if (accumulate) v += dst_half ? ii_bf16_to_f32(dh[i]) : df[i];
      if (dst_half)
        dh[i] = ii_f32_to_bf16(v);
      else
        df[i] = v;
    }
  }
}

/* Dimensions and strides of one operand stored [rows,cols], or [cols,rows] if transposed. */
static dnnl_status_t matrix_md(dnn_md *md, const ii_gemm_args *g, int64_t rows, int64_t cols,
                               bool trans, ii_dtype t) {
  int64_t dims[3] = {g->batch, rows, cols};
  int64_t strides[3] = {rows * cols, trans ? 1 : cols, trans ? rows : 1};
  int skip = !g->stacked; /* two dimensions have more implementations than three */
  return dnn_md_strided(md, 3 - skip, dims + skip, t, strides + skip);
}

static dnnl_status_t bias_md(dnn_md *md, const ii_gemm_args *g) {
  int64_t n = g->N, dims[3] = {1, 1, n}, strides[3] = {n, n, 1};
  int skip = !g->stacked;
  return dnn_md_strided(md, 3 - skip, dims + skip, II_F32, strides + skip);
}

static dnnl_status_t gemm_attr(dnnl_primitive_attr_t *attr, const ii_gemm_args *g) {
  dnnl_post_ops_t ops = NULL;
  dnnl_status_t s = dnnl_post_ops_create(&ops);
  if (s != dnnl_success) return s;
  if (g->alpha != 1.0f) s = dnn_post_linear(ops, g->alpha);
  if (s == dnnl_success && g->accumulate) s = dnn_post_sum(ops);
  if (s == dnnl_success) s = dnn_attr(attr, ops);
  dnnl_post_ops_destroy(ops);
  return s;
}

static dnnl_status_t gemm_create(dnn_entry *e, dnnl_engine_t engine, const ii_gemm_args *g) {
  dnn_md a = {0}, b = {0}, c = {0}, bias = {0};
  dnnl_primitive_attr_t attr = NULL;
  dnnl_primitive_desc_t pd = NULL;
  dnnl_status_t s = matrix_md(&a, g, g->M, g->K, g->trans_a, g->ab_dtype);
  if (s == dnnl_success) s = matrix_md(&b, g, g->K, g->N, g->trans_b, g->ab_dtype);
  if (s == dnnl_success) s = matrix_md(&c, g, g->M, g->N, false, g->c_dtype);
  if (s == dnnl_success) s = bias_md(&bias, g);
  if (s == dnnl_success) s = gemm_attr(&attr, g);
  if (s == dnnl_success) {
    s = dnn_matmul_pd(&pd, engine, md_ref(&a), md_ref(&b), g->bias ? md_ref(&bias) : NULL,
                      md_ref(&c), attr);
    bool half = g->ab_dtype == II_BF16;
    e->refused = half && (s == dnnl_unimplemented || (s == dnnl_success && dnn_is_reference(pd)));
    if (e->refused) s = dnnl_success;
  }
  if (s == dnnl_success && !e->refused) {
    s = dnn_op_create(&e->main, pd, engine);
    if (s == dnnl_success) s = dnn_op_add(&e->main, DNNL_ARG_SRC, md_ref(&a), engine);
    if (s == dnnl_success) s = dnn_op_add(&e->main, DNNL_ARG_WEIGHTS, md_ref(&b), engine);
    if (s == dnnl_success) s = dnn_op_add(&e->main, DNNL_ARG_DST, md_ref(&c), engine);
    if (s == dnnl_success && g->bias)
      s = dnn_op_add(&e->main, DNNL_ARG_BIAS, md_ref(&bias), engine);
  }
  if (pd) dnnl_primitive_desc_destroy(pd);
  if (attr) dnnl_primitive_attr_destroy(attr);
  md_free(&a);
  md_free(&b);
  md_free(&c);
  md_free(&bias);
  return s;
}

/* c = bias (or c += bias), all that is left of a product over nothing. */
static int gemm_empty(ii_kctx *k, const ii_gemm_args *g) {
  int64_t rows = g->batch * g->M;
  size_t row_bytes = (size_t)g->N * ii_dtype_size(g->c_dtype);
  for (int64_t i = 0; i < rows; i++) {
    char *c = (char *)g->c + (size_t)i * row_bytes;
    if (g->bias)
      ii_cpu_convert(k, g->N, II_F32, g->bias, g->c_dtype, c, g->accumulate);
    else if (!g->accumulate)
      memset(c, 0, row_bytes);
  }
  return 0;
}

/* The same product in fp32, for processors on which the library has no bf16. */
static int gemm_converted(ii_kctx *k, const ii_gemm_args *g) {
  int64_t na = g->batch * g->M * g->K, nb = g->batch * g->K * g->N, nc = g->batch * g->M * g->N;
  float *a = ii_cpu_scratch(k, II_SLOT_CONVERT_A, (size_t)na * sizeof *a);
  float *b = ii_cpu_scratch(k, II_SLOT_CONVERT_B, (size_t)nb * sizeof *b);
  float *c = g->c;
  if (g->c_dtype == II_BF16) c = ii_cpu_scratch(k, II_SLOT_RESULT, (size_t)nc * sizeof *c);
  if (!a || !b || !c) return 1;
  ii_cpu_convert(k, na, II_BF16, g->a, II_F32, a, false);
  ii_cpu_convert(k, nb, II_BF16, g->b, II_F32, b, false);
  if (g->c_dtype == II_BF16 && g->accumulate)
    ii_cpu_convert(k, nc, II_BF16, g->c, II_F32, c, false);
  ii_gemm_args f = *g;
  f.ab_dtype = f.c_dtype = II_F32;
  f.a = a;
  f.b = b;
  f.c = c;
  if (ii_cpu_gemm(k, &f)) return 1;
  if (g->c_dtype == II_BF16) ii_cpu_convert(k, nc, II_F32, c, II_BF16, g->c, false);
  return 0;
}

/* The library would scale the bias with the product: the product goes first, the bias is added. */
static int gemm_scaled_with_bias(ii_kctx *k, const ii_gemm_args *g) {
  ii_gemm_args start = *g;
  start.K = 0;
  ii_gemm_args product = *g;
  product.bias = NULL;
  product.accumulate = true;
  return gemm_empty(k, &start) || ii_cpu_gemm(k, &product);
}

int ii_cpu_gemm(ii_kctx *k, const ii_gemm_args *g) {
  if (g->batch == 0 || g->M == 0 || g->N == 0) return 0;
  if (g->K == 0) return gemm_empty(k, g);
  if (ii_cpu_amx(k) && ii_amx_serves(g)) return ii_amx_gemm(k, g);
  if (g->bias && g->alpha != 1.0f) return gemm_scaled_with_bias(k, g);
  uint32_t alpha;
  memcpy(&alpha, &g->alpha, sizeof alpha);
  int64_t key[DNN_KEY_WORDS] = {
      KEY_GEMM,   k->threads, g->ab_dtype,   g->c_dtype, g->batch,        g->M,      g->N, g->K,
      g->trans_a, g->trans_b, g->accumulate, alpha,      g->bias != NULL, g->stacked};
  bool is_new;
  dnn_entry *e = dnn_find(k, key, &is_new);
  if (!e) return 1;
  if (is_new) {
    dnnl_status_t s = gemm_create(e, dnn_engine(ii_cpu_onednn(k)), g);
    if (s != dnnl_success) {
      dnn_forget(k, e);
      return dnn_error(k, "creating a matrix product", s);
    }
  }
  if (e->refused) return gemm_converted(k, g);
  void *scratch = ii_cpu_scratch(k, II_SLOT_LIBRARY, e->main.scratch);
  if (!scratch) return 1;
  void *pointers[] = {(void *)g->a, (void *)g->b, g->c, (void *)g->bias};
  return dnn_run(k, &e->main, pointers, scratch);
}
