/* Dense convolution through oneDNN: images stay N,H,W,C; the weights, stored O,C,kh,kw, change
 * every step and are reordered for the library on every call, which costs little beside the
 * convolution. */
#include "kernels/cpu_onednn_cache.h"

typedef enum { CONV_FWD = 2, CONV_BWD_DATA } conv_kind; /* 1 is the gemm's key */

/* Descriptors of one convolution: images x and y, bias b, weights in the library's layout (w) and
 * as stored (w_plain); x_hint is x in the type of y, since the gradient of x may have another. */
typedef struct {
  dnn_md x, x_hint, y, b, w, w_plain;
  dnn_conv conv;
} conv_mds;

static void mds_free(conv_mds *m) {
  md_free(&m->x);
  md_free(&m->x_hint);
  md_free(&m->y);
  md_free(&m->b);
  md_free(&m->w);
  md_free(&m->w_plain);
}

static dnnl_status_t image_md(dnn_md *md, int64_t n, int64_t h, int64_t w, int64_t c, ii_dtype t) {
  int64_t dims[4] = {n, c, h, w}, strides[4] = {h * w * c, 1, w * c, c};
  return dnn_md_strided(md, 4, dims, t, strides);
}

/* A gradient that is added to another one is taken from the library in fp32. */
static bool adds(conv_kind kind, const ii_conv2d_args *a) {
  return kind == CONV_BWD_DATA && a->acc_gx;
}

static dnnl_status_t mds_init(conv_mds *m, conv_kind kind, const ii_conv2d_args *a) {
  ii_dtype t = a->x_dtype, tx = adds(kind, a) ? II_F32 : t;
  int64_t wd[4] = {a->O, a->C, a->kh, a->kw};
  int64_t ws[4] = {a->C * a->kh * a->kw, (int64_t)a->kh * a->kw, a->kw, 1};
  int64_t one = 1;
  dnnl_status_t s = image_md(&m->x, a->N, a->H, a->W, a->C, tx);
  if (s == dnnl_success) s = image_md(&m->x_hint, a->N, a->H, a->W, a->C, t);
  if (s == dnnl_success) s = image_md(&m->y, a->N, a->Ho, a->Wo, a->O, t);
  if (s == dnnl_success) s = dnn_md_strided(&m->b, 1, &a->O, II_F32, &one);
  if (s == dnnl_success) s = dnn_md_any(&m->w, 4, wd, t);
  if (s == dnnl_success) s = dnn_md_strided(&m->w_plain, 4, wd, t, ws);
  m->conv = (dnn_conv){.x = md_ref(&m->x),
                       .w = md_ref(&m->w),
                       .b = kind == CONV_FWD && a->b ? md_ref(&m->b) : NULL,
                       .y = md_ref(&m->y),
                       .stride = {a->stride, a->stride},
                       .pad = {a->pad, a->pad}};
  return s;
}

/* The primitive descriptor; a backward one needs that of its forward while it is created. */
static dnnl_status_t conv_pd(dnnl_primitive_desc_t *pd, conv_kind kind, const conv_mds *m,
                             dnnl_engine_t engine) {
  dnnl_primitive_attr_t attr = NULL;
  dnnl_primitive_desc_t hint = NULL;
  dnnl_status_t s = dnn_attr(&attr, NULL);
  if (s == dnnl_success && kind == CONV_FWD) s = dnn_conv_fwd_pd(pd, engine, &m->conv, attr);
  if (s == dnnl_success && kind != CONV_FWD) {
    dnn_conv forward = m->conv;
    forward.x = md_ref(&m->x_hint);
    s = dnn_conv_fwd_pd(&hint, engine, &forward, attr);
    if (s == dnnl_success) s = dnn_conv_bwd_data_pd(pd, engine, &m->conv, hint, attr);
  }
  if (hint) dnnl_primitive_desc_destroy(hint);
  if (attr) dnnl_primitive_attr_destroy(attr);
  return s;
}

/* The reorder of the stored weights into the library's layout. */
static dnnl_status_t reorder_create(dnn_op *op, dnn_md_ref from, dnn_md_ref to,
                                    dnnl_engine_t engine) {
  dnnl_primitive_attr_t attr = NULL;
  dnnl_primitive_desc_t pd = NULL;
  dnnl_status_t s = dnn_attr(&attr, NULL);
  if (s == dnnl_success)
    s = dnnl_reorder_primitive_desc_create(&pd, from, engine, to, engine, attr);
  if (s == dnnl_success) s = dnn_op_create(op, pd, engine);
  if (s == dnnl_success) s = dnn_op_add(op, DNNL_ARG_FROM, from, engine);
  if (s == dnnl_success) s = dnn_op_add(op, DNNL_ARG_TO, to, engine);
  if (pd) dnnl_primitive_desc_destroy(pd);
  if (attr) dnnl_primitive_attr_destroy(attr);
  return s;
}

/* Adds the arguments in the order x, w, y, b and the reorder of w. */
static dnnl_status_t conv_finish(dnn_entry *e, conv_kind kind, const conv_mds *m,
                                 dnnl_primitive_desc_t pd, dnnl_engine_t engine) {
  bool forward = kind == CONV_FWD;
  int x = forward ? DNNL_ARG_SRC : DNNL_ARG_DIFF_SRC;
  int y = forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST;
  dnn_md_ref w = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
  if (!w) return dnnl_runtime_error;
  dnnl_status_t s = dnn_op_create(&e->main, pd, engine);
  if (s == dnnl_success) s = dnn_op_add(&e->main, x, md_ref(&m->x), engine);
  if (s == dnnl_success) s = dnn_op_add(&e->main, DNNL_ARG_WEIGHTS, w, engine);
  if (s == dnnl_success) s = dnn_op_add(&e->main, y, md_ref(&m->y), engine);
  if (s == dnnl_success && m->conv.b) s = dnn_op_add(&e->main, DNNL_ARG_BIAS, m->conv.b, engine);
  if (s != dnnl_success || dnnl_memory_desc_equal(w, md_ref(&m->w_plain))) return s;
  e->reordered = (dnnl_memory_desc_get_size(w) + 63) / 64 * 64;
  return reorder_create(&e->reorder, md_ref(&m->w_plain), w, engine);
}

static dnn_entry *conv_entry(ii_kctx *k, conv_kind kind, const ii_conv2d_args *a) {
  int64_t key[DNN_KEY_WORDS] = {kind,      k->threads, a->x_dtype,    a->N,
                                a->H,      a->W,       a->C,          a->O,
                                a->Ho,     a->Wo,      a->kh,         a->kw,
                                a->stride, a->pad,     adds(kind, a), kind == CONV_FWD && a->b};
  bool is_new;
  dnn_entry *e = dnn_find(k, key, &is_new);
  if (!e || !is_new) return e;
  dnnl_engine_t engine = dnn_engine(ii_cpu_onednn(k));
  conv_mds m = {0};
  dnnl_primitive_desc_t pd = NULL;
  dnnl_status_t s = mds_init(&m, kind, a);
  if (s == dnnl_success) {
    s = conv_pd(&pd, kind, &m, engine);
    bool half = a->x_dtype == II_BF16;
    e->refused = half && (s == dnnl_unimplemented || (s == dnnl_success && dnn_is_reference(pd)));
    if (e->refused) s = dnnl_success;
  }
  if (s == dnnl_success && !e->refused) s = conv_finish(e, kind, &m, pd, engine);
  if (pd) dnnl_primitive_desc_destroy(pd);
  mds_free(&m);
  if (s == dnnl_success) return e;
  dnn_forget(k, e);
  dnn_error(k, "creating a convolution", s);
  return NULL;
}

/* Runs the entry on images x and y and the stored weights w. */
static int conv_run(ii_kctx *k, const dnn_entry *e, const void *x, const void *w, const void *y,
                    const void *b) {
  size_t scratch = e->main.scratch > e->reorder.scratch ? e->main.scratch : e->reorder.scratch;
  char *memory = ii_cpu_scratch(k, II_SLOT_LIBRARY, e->reordered + scratch);
  if (!memory) return 1;
  void *reorder[] = {(void *)w, memory};
  void *args[] = {(void *)x, e->reordered ? memory : (void *)w, (void *)y, (void *)b};
  void *rest = memory + e->reordered;
  if (e->reordered && dnn_run(k, &e->reorder, reorder, rest)) return 1;
  return dnn_run(k, &e->main, args, rest);
}

static int64_t x_count(const ii_conv2d_args *a) {
  return a->N * a->H * a->W * a->C;
}
static int64_t y_count(const ii_conv2d_args *a) {
  return a->N * a->Ho * a->Wo * a->O;
}
static int64_t w_count(const ii_conv2d_args *a) {
  return a->O * a->C * a->kh * a->kw;
}

/* An fp32 copy of n bf16 numbers in the given slot. */
static float *to_f32(ii_kctx *k, int slot, int64_t n, const void *src) {
  float *p = ii_cpu_scratch(k, slot, (size_t)n * sizeof *p);
  if (p) ii_cpu_convert(k, n, II_BF16, src, II_F32, p, false);
  return p;
}

int ii_onednn_conv2d_fwd(ii_kctx *k, const ii_conv2d_args *a) {
  dnn_entry *e = conv_entry(k, CONV_FWD, a);
  if (!e) return 1;
  if (!e->refused) return conv_run(k, e, a->x, a->w, a->y, a->b);
  ii_conv2d_args f = *a;
  f.x_dtype = II_F32;
  f.x = to_f32(k, II_SLOT_CONVERT_A, x_count(a), a->x);
  f.w = to_f32(k, II_SLOT_CONVERT_B, w_count(a), a->w);
  f.y = ii_cpu_scratch(k, II_SLOT_RESULT, (size_t)y_count(a) * sizeof(float));
  if (!f.x || !f.w || !f.y || ii_onednn_conv2d_fwd(k, &f)) return 1;
  ii_cpu_convert(k, y_count(a), II_F32, f.y, II_BF16, a->y, false);
  return 0;
}

/* The library's backward has no sum, so accumulation goes through a buffer of fp32 (bf16 would
 * round twice) and an addition. */
int ii_onednn_conv2d_bwd_data(ii_kctx *k, const ii_conv2d_args *a) {
  dnn_entry *e = conv_entry(k, CONV_BWD_DATA, a);
  if (!e) return 1;
  if (!e->refused && !a->acc_gx) return conv_run(k, e, a->gx, a->w, a->gy, NULL);
  ii_conv2d_args f = *a;
  f.gx = ii_cpu_scratch(k, II_SLOT_RESULT, (size_t)x_count(a) * sizeof(float));
  if (!f.gx) return 1;
  if (e->refused) {
    f.acc_gx = false;
    f.x_dtype = II_F32;
    f.gy = to_f32(k, II_SLOT_CONVERT_A, y_count(a), a->gy);
    f.w = to_f32(k, II_SLOT_CONVERT_B, w_count(a), a->w);
    if (!f.gy || !f.w || ii_onednn_conv2d_bwd_data(k, &f)) return 1;
  } else if (conv_run(k, e, f.gx, a->w, a->gy, NULL)) {
    return 1;
  }
  ii_cpu_convert(k, x_count(a), II_F32, f.gx, a->x_dtype, a->gx, a->acc_gx);
  return 0;
}
