/* Deformable convolution, gradient of x: the product's kernels with tiles that look one pixel
 * further around (halo 3 instead of 2 at scale 1): 14 x 14 outputs are near a tile instead of
 * 12 x 12, 36 % more rows, and taps are far from 2 pixels on instead of from 1.
 * Bytes and limits: kernels/cuda/dcn_gx_mma.cu and, in fp32, dcn_gx.cu. */
#include "bench/variants/variants.h"
#include "kernels/cuda/dcn_gx.h"

extern "C" int dcn_variant_gx_halo3(ii_kctx *k, const ii_dcn_args *a) {
  if (!a->gx) return 0;
  ii_dcn_tiling t = ii_dcn_tiling_of(a);
  t.halo_h++;
  t.halo_w++;
  return ii_cuda_dcn_gather(k, a, t,
                            ii_cuda_dcn_gx_has_mma(a) ? ii_cuda_dcn_gx_mma : ii_cuda_dcn_gx);
}
