/* Batched matrix products of the attention pooling. */
#include "kernels/cpu/matrix.h"

int II_FN(bmm_fwd)(ii_kctx *k, const ii_bmm_args *a) {
  return multiply(k, &(matrix_product){.ab_dtype = a->x_dtype,
                                       .c_dtype = a->x_dtype,
                                       .batch = a->batch,
                                       .stacked = true,
                                       .M = a->M,
                                       .N = a->N,
                                       .K = a->K,
                                       .trans_b = a->trans_b,
                                       .alpha = a->alpha,
                                       .a = a->a,
                                       .b = a->b,
                                       .c = a->c});
}

/* c = alpha a b:   ga = alpha gc b^T,  gb = alpha a^T gc.
 * c = alpha a b^T: ga = alpha gc b,    gb = alpha gc^T a. */
int II_FN(bmm_bwd)(ii_kctx *k, const ii_bmm_args *a) {
  matrix_product ga = {.ab_dtype = a->x_dtype,
                       .c_dtype = a->x_dtype,
                       .batch = a->batch,
                       .stacked = true,
                       .M = a->M,
                       .N = a->K,
                       .K = a->N,
                       .trans_b = !a->trans_b,
                       .accumulate = a->acc_ga,
                       .alpha = a->alpha,
                       .a = a->gc,
                       .b = a->b,
                       .c = a->ga};
  matrix_product gb = {.ab_dtype = a->x_dtype,
                       .c_dtype = a->x_dtype,
                       .batch = a->batch,
                       .stacked = true,
                       .M = a->trans_b ? a->N : a->K,
                       .N = a->trans_b ? a->K : a->N,
                       .K = a->M,
                       .trans_a = true,
                       .accumulate = a->acc_gb,
                       .alpha = a->alpha,
                       .a = a->trans_b ? a->gc : a->a,
                       .b = a->trans_b ? a->a : a->gc,
                       .c = a->gb};
  if (a->ga && multiply(k, &ga)) return 1;
  return a->gb ? multiply(k, &gb) : 0;
}
