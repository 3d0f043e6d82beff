/* Parts of the depthwise convolution (dwconv2d.cu has the formulas). Both return 0, or 1 with
 * k->error; nothing is left running that the stream does not order. */
#ifndef II_DWCONV2D_H
#define II_DWCONV2D_H
#include "kernels/cuda/engine.h"

/* gw and gb of a (either may be NULL; overwritten or added to as acc_gw, acc_gb say) by a pass of
 * their own over x and gy: any k, size, type and alignment. C > 0; without pixels they are zeros.
 */
int ii_dwconv2d_weight_gradients(ii_kctx *k, const ii_dwconv2d_args *a);

/* gw and gb of a from n parts of sums, added in order. parts[n][k*k + 1][C] of type `real` in
 * device memory: the taps of gw, then gb. n >= 0, C > 0. */
int ii_dwconv2d_sum_parts(ii_kctx *k, const ii_dwconv2d_args *a, int64_t n, const void *parts);

#endif
