/* Dense convolution without cuDNN: double precision, and what cuDNN has no plan for. Each function
 * is the part of conv2d_fwd/conv2d_bwd (kernels.h) that its name says, for nonempty tensors.
 * Deterministic; results for one image do not depend on the others. Returns 0, or 1 with
 * k->error. */
#ifndef II_CONV_DIRECT_H
#define II_CONV_DIRECT_H
#include "kernels/cuda/engine.h"

int ii_conv_direct_fwd(ii_kctx *k, const ii_conv2d_args *a);
int ii_conv_direct_bwd_data(ii_kctx *k, const ii_conv2d_args *a);
int ii_conv_direct_bwd_filter(ii_kctx *k, const ii_conv2d_args *a);

#endif
