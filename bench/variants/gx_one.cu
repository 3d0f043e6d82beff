/* Deformable convolution, gradient of x: the product's kernel on the tensor cores with one 16-bit
 * number for a weight instead of two, a fifth of the instructions less, and a relative error of
 * 2^-11 (fp16) or 2^-8 (bf16) in every weight.
 * Bytes and limits: kernels/cuda/dcn_gx_mma.cu. */
#include "bench/variants/variants.h"
#include "kernels/cuda/dcn_gx_mma.h"

namespace {

int gather_f16(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far) {
  return run<1, ii_f16>(k, a, t, far);
}
int gather_bf16(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t, const ii_dcn_far &far) {
  return run<1, ii_bf16>(k, a, t, far);
}

} // namespace

extern "C" bool dcn_variant_has_gx_one(const ii_dcn_args *a) {
  return dcn_variant_is_published(a) && ii_cuda_dcn_gx_has_mma(a);
}

extern "C" int dcn_variant_gx_one(ii_kctx *k, const ii_dcn_args *a) {
  if (!a->gx) return 0;
  return ii_cuda_dcn_gather(k, a, ii_dcn_tiling_of(a),
                            a->x_dtype == II_F16 ? gather_f16 : gather_bf16);
}
