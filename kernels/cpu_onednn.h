/* What the CPU engine gets from oneDNN (2.6 and later, and 3.x): dense convolution here, matrix
 * products through ii_cpu_gemm (kernels/cpu_engine.h). Primitives are created once per shape and
 * kept, and their temporary memory is the engine's, so a warmed-up step creates nothing.
 * bf16 operands that the library refuses on this processor are converted to fp32 and back. */
#ifndef II_CPU_ONEDNN_H
#define II_CPU_ONEDNN_H
#include "kernels/cpu_engine.h"

/* Who uses which slot of ii_cpu_scratch. A kernel may use slots 0 to 2 freely while it calls what
 * this header and ii_cpu_gemm offer, which touch the others. */
enum {
  II_SLOT_SUMS = 3,      /* partial column sums */
  II_SLOT_CONVERT_A = 4, /* fp32 copies of bf16 operands on processors without bf16 */
  II_SLOT_CONVERT_B = 5,
  II_SLOT_RESULT = 6, /* results before they are converted or added */
  II_SLOT_LIBRARY = 7 /* oneDNN's scratchpad and reordered weights */
};

typedef struct ii_onednn ii_onednn;

/* Creates the library state in *out. Returns 0, or nonzero with k->error. */
int ii_onednn_open(ii_kctx *k, ii_onednn **out);
/* Releases it and every primitive; NULL is allowed. */
void ii_onednn_close(ii_onednn *dnn);
/* The state that belongs to k. */
ii_onednn *ii_cpu_onednn(ii_kctx *k);

/* Dense convolution of fp32 or bf16 images as ii_conv2d_args describes it; every size is at least 1
 * (the caller handles the rest). Forward writes y = conv(x, w) + b. */
int ii_onednn_conv2d_fwd(ii_kctx *k, const ii_conv2d_args *a);
/* gx = (or += with acc_gx) the gradient of the input, from gy and w. */
int ii_onednn_conv2d_bwd_data(ii_kctx *k, const ii_conv2d_args *a);

/* dst[i] = src[i] (+ dst[i] with accumulate) for n elements between fp32 and bf16. */
void ii_cpu_convert(ii_kctx *k, int64_t n, ii_dtype src_dtype, const void *src, ii_dtype dst_dtype,
                    void *dst, bool accumulate);

#endif
