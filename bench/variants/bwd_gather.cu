/* Deformable convolution, backward: version 1 of docs/kernels.md, gx gathered without the tensor
 * cores, 36 additions per element in shared memory, and the gradients of offsets and modulations by
 * the lanes of a unit. These are the product's own kernels for other calls, kernels/cuda/dcn_gx.cu
 * and dcn_bwd.cu, asked for where the product takes those of the tensor cores.
 * Bytes and limits: theirs. */
#include "bench/variants/variants.h"
#include "kernels/cuda/dcn_gx.h"

extern "C" int dcn_variant_bwd_gather(ii_kctx *k, const ii_dcn_args *a) {
  if (a->gx && ii_cuda_dcn_gather(k, a, ii_dcn_tiling_of(a), ii_cuda_dcn_gx)) return 1;
  return a->goffset || a->gmask ? ii_cuda_dcn_dots(k, a) : 0;
}
