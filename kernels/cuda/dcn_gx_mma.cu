/* Deformable convolution: the gradient of x for 16-bit types and windows of 3 x 3, as a product of
 * matrices. With A[q,p] = the sum of m a_c over the taps of output q that have corner c in pixel p,
 *   gx[p,d] = sum over q of A[q,p] gy[q,d]
 * A tile of 64 pixels receives from 144 near outputs (dcn_gx.h), 36 numbers each, most of which
 * fall on the same pixels: building A costs one addition per tap and corner, not one per channel,
 * and the dense product, though four times the multiplications of the sparse one, is left to the
 * tensor cores.
 *
 * Mapping: a warp owns a tile and up to 32 channels of a group; the warps of a block share nothing.
 * It takes 32 rows of A at a time: near outputs, then far taps, in an order that depends on nothing
 * but the image. Per 32 rows:
 *   - offsets, modulations and gy come to shared memory in pieces of 2 and 16 bytes;
 *   - a lane builds one row, 64 sums in fp32;
 *   - each number of A is split into two of type T, their sum being good to 2^-22 (fp16) or 2^-17
 *     (bf16) of it, in the place of the fp32 number. fp16 numbers are scaled by a power of two, so
 *     that the largest modulation so far is between 2^11 and 2^12: the numbers of a row of A, at
 *     most nine times that, do not overflow, and the second parts do not vanish;
 *   - 16 rows x 16 pixels x 16 channels at a time go to the tensor cores, sums in fp32; blocks of
 * 16 pixels that no row touches are left out. A zero of A times an infinite gy would be NaN where
 * the sum has no such term, so a warp that meets a gy or a modulation that is not finite (or beyond
 * 2^100) starts again with the sums of dcn_gx.cu.
 *
 * Bytes: as dcn_gx.cu. Counts: docs/kernels.md.
 * Limits: groups of a multiple of 16 channels; gy, gx and the rows of gx 16-byte aligned. */
#include "kernels/cuda/dcn_gx_mma.h"

bool ii_cuda_dcn_gx_has_mma(const ii_dcn_args *a) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(a->gx) | reinterpret_cast<uintptr_t>(a->gy);
  return (a->x_dtype == II_F16 || a->x_dtype == II_BF16) && a->kh == 3 && a->kw == 3 &&
         !a->remove_center && a->C / a->G % 16 == 0 && a->x_row % 8 == 0 && at % 16 == 0;
}

int ii_cuda_dcn_gx_mma(ii_kctx *k, const ii_dcn_args *a, const ii_dcn_tiling &t,
                       const ii_dcn_far &far) {
  if (a->x_dtype == II_F16) return run<2, ii_f16>(k, a, t, far);
  return run<2, ii_bf16>(k, a, t, far);
}
