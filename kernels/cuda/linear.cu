/* Linear layer: y = x w^T + b and its gradients, three matrix products of cuBLASLt (gemm.cu) and
 * the column sums of the bias gradient (column_sums.cu).
 *
 *   y[rows,out]  = x[rows,in] w[out,in]^T + b      bias in the epilogue
 *   gx[rows,in]  = gy[rows,out] w
 *   gw[out,in]   = gy^T x                          fp32 result of 16-bit operands
 *   gb[out]      = column sums of gy
 *
 * Bytes moved: forward rows*(in+out) + in*out elements. Backward reads gy three times; the bias
 * gradient is a pass of its own because cuBLASLt's BGRADB epilogue neither accumulates nor writes
 * another type than its product's.
 * The activation that follows is a kernel of its own: cuBLASLt's GELU epilogue is the tanh
 * approximation, and the models' GELU is the exact erf form. */
#include "kernels/cuda/gpu.h"

extern "C" int ii_cuda_linear_fwd(ii_kctx *k, const ii_linear_args *a) {
  ii_cuda_gemm_args g = {};
  g.ab_dtype = g.c_dtype = a->x_dtype;
  g.batch = 1;
  g.M = a->rows;
  g.N = a->out;
  g.K = a->in;
  g.trans_b = true;
  g.alpha = 1;
  g.a = a->x;
  g.b = a->w;
  g.bias = a->b;
  g.c = a->y;
  return ii_cuda_gemm(k, &g);
}

extern "C" int ii_cuda_linear_bwd(ii_kctx *k, const ii_linear_args *a) {
  ii_cuda_gemm_args gx = {}, gw = {};
  gx.ab_dtype = gx.c_dtype = gw.ab_dtype = a->x_dtype;
  gw.c_dtype = a->real;
  gx.batch = gw.batch = 1;
  gx.alpha = gw.alpha = 1;
  gx.M = a->rows;
  gx.N = a->in;
  gx.K = a->out;
  gx.a = a->gy;
  gx.b = a->w;
  gx.c = a->gx;
  gx.accumulate = a->acc_gx;
  gw.M = a->out;
  gw.N = a->in;
  gw.K = a->rows;
  gw.trans_a = true;
  gw.a = a->gy;
  gw.b = a->x;
  gw.c = a->gw;
  gw.accumulate = a->acc_gw;
  if (a->gx && ii_cuda_gemm(k, &gx)) return 1;
  if (a->gw && ii_cuda_gemm(k, &gw)) return 1;
  if (!a->gb) return 0;
  return ii_cuda_column_sums(k, a->real, a->x_dtype, a->rows, a->out, a->gy, a->gb, a->acc_gb);
}
