/* What linear, conv2d and bmm share: one matrix product for both types of `real`, and column sums.
 */
#ifndef II_CPU_MATRIX_H
#define II_CPU_MATRIX_H
#include "kernels/cpu/cpu.h"
#include "kernels/cpu_gemm64.h"
#include "kernels/cpu_onednn.h"

typedef struct {
  ii_dtype ab_dtype, c_dtype;
  int64_t batch, M, N, K;
  bool stacked, trans_a, trans_b, accumulate;
  double alpha;
  const void *a, *b, *bias; /* bias: of type real, or NULL */
  void *c;
} matrix_product;

/* c = alpha op(a) op(b) + bias, as ii_gemm_args describes it. */
static inline int multiply(ii_kctx *k, const matrix_product *p) {
#ifdef II_REAL_F64
  ii_gemm64_args g = {.batch = p->batch,
                      .M = p->M,
                      .N = p->N,
                      .K = p->K,
                      .trans_a = p->trans_a,
                      .trans_b = p->trans_b,
                      .accumulate = p->accumulate,
                      .alpha = p->alpha,
                      .a = p->a,
                      .b = p->b,
                      .bias = p->bias,
                      .c = p->c};
  return ii_cpu_gemm64(k, &g);
#else
  ii_gemm_args g = {.ab_dtype = p->ab_dtype,
                    .c_dtype = p->c_dtype,
                    .batch = p->batch,
                    .M = p->M,
                    .N = p->N,
                    .K = p->K,
                    .stacked = p->stacked,
                    .trans_a = p->trans_a,
                    .trans_b = p->trans_b,
                    .accumulate = p->accumulate,
                    .alpha = (float)p->alpha,
                    .a = p->a,
                    .b = p->b,
                    .bias = p->bias,
                    .c = p->c};
  return ii_cpu_gemm(k, &g);
#endif
}

/* out[cols] = (or += with accumulate) the sums of the columns of x[rows,cols], of x_dtype; out is
 * real. The order of additions depends on rows alone. Uses II_SLOT_SUMS. */
int II_FN(bias_grad)(ii_kctx *k, ii_dtype x_dtype, int64_t rows, int64_t cols, const void *x,
                     real *out, bool accumulate);

#endif
