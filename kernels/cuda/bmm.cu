/* Stacked matrix products of the attention pooling: c[batch] = alpha a[batch] op(b[batch]), and
 * their gradients, through the strided batches of cuBLASLt (gemm.cu).
 *
 *   c = alpha a b:    ga = alpha gc b^T,  gb = alpha a^T gc
 *   c = alpha a b^T:  ga = alpha gc b,    gb = alpha gc^T a
 *
 * Bytes moved: each operand and result once per product. */
#include "kernels/cuda/gpu.h"

extern "C" int ii_cuda_bmm_fwd(ii_kctx *k, const ii_bmm_args *a) {
  ii_cuda_gemm_args g = {};
  g.ab_dtype = g.c_dtype = a->x_dtype;
  g.batch = a->batch;
  g.M = a->M;
  g.N = a->N;
  g.K = a->K;
  g.trans_b = a->trans_b;
  g.alpha = a->alpha;
  g.a = a->a;
  g.b = a->b;
  g.c = a->c;
  return ii_cuda_gemm(k, &g);
}

extern "C" int ii_cuda_bmm_bwd(ii_kctx *k, const ii_bmm_args *a) {
  ii_cuda_gemm_args ga = {}, gb = {};
  ga.ab_dtype = ga.c_dtype = gb.ab_dtype = gb.c_dtype = a->x_dtype;
  ga.batch = gb.batch = a->batch;
  ga.alpha = gb.alpha = a->alpha;
  ga.M = a->M;
  ga.N = a->K;
  ga.K = a->N;
  ga.trans_b = !a->trans_b;
  ga.a = a->gc;
  ga.b = a->b;
  ga.c = a->ga;
  ga.accumulate = a->acc_ga;
  gb.M = a->trans_b ? a->N : a->K;
  gb.N = a->trans_b ? a->K : a->N;
  gb.K = a->M;
  gb.trans_a = true;
  gb.a = a->trans_b ? a->gc : a->a;
  gb.b = a->trans_b ? a->a : a->gc;
  gb.c = a->gb;
  gb.accumulate = a->acc_gb;
  if (a->ga && ii_cuda_gemm(k, &ga)) return 1;
  return a->gb ? ii_cuda_gemm(k, &gb) : 0;
}
