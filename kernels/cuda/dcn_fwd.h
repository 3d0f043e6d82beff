/* The two forward kernels of the deformable convolution: dcn_fwd.cu chooses. C and CUDA. */
#ifndef II_DCN_FWD_H
#define II_DCN_FWD_H
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether the call is one of those that dcn_fwd_tiles.cu has kernels for: sizes, layout, alignment
 * of the pointers. Both kernels compute the same bits. */
bool ii_cuda_dcn_fwd_is_tiled(const ii_dcn_args *a);

/* The forward pass of such a call, as ii_cuda_dcn_fwd. */
int ii_cuda_dcn_fwd_tiles(ii_kctx *k, const ii_dcn_args *a);

#ifdef __cplusplus
}
#endif
#endif
