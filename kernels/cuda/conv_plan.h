/* From the geometry of a dense convolution to a cuDNN execution plan, through the backend API.
 * Needs no engine and, given a description of a device instead of a handle, no GPU: the test that
 * every convolution of every model has a plan builds them with this very code. */
#ifndef II_CONV_PLAN_H
#define II_CONV_PLAN_H
#include <cudnn.h>
#include <stdbool.h>
#include <stddef.h>
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Workspace that one plan may ask for, in bytes. */
#define II_CONV_WORKSPACE_LIMIT ((int64_t)256 << 20)

typedef enum { II_CONV_FWD = 0, II_CONV_BWD_DATA, II_CONV_BWD_FILTER } ii_conv_direction;

/* What a plan is made for, and what it is found by again (compare all members).
 * x[N,H,W,C], w[O,kh,kw,C], y[N,Ho,Wo,O]; the gradients are laid out like them.
 * FWD writes y, BWD_DATA writes the gradient of x (or adds to it), BWD_FILTER the gradient of w. */
typedef struct {
  ii_conv_direction direction;
  ii_dtype dtype;   /* of x, y and w: II_F32, II_F16 or II_BF16; sums are fp32 */
  ii_dtype w_dtype; /* of w or its gradient */
  bool accumulate;  /* BWD_DATA: add to the result */
  int kh, kw;
  int stride_h, stride_w;         /* down and across */
  int pad_h, pad_left, pad_right; /* rows above and below, columns before and behind */
  int alignment; /* bytes that every pointer is a multiple of; 16 is as good as more */
  int64_t N, H, W, C, O, Ho, Wo;
} ii_conv_problem;

enum { II_CONV_X = 1, II_CONV_W, II_CONV_Y }; /* unique ids of the three tensors */

#define II_CONV_DESCRIPTORS 12

/* A finished plan and the descriptors it was made from. plan == NULL: cuDNN has none. */
typedef struct {
  cudnnBackendDescriptor_t plan;
  int64_t workspace; /* bytes */
  int count;
  cudnnBackendDescriptor_t descriptors[II_CONV_DESCRIPTORS]; /* in order of creation */
} ii_conv_plan;

/* The problem behind one direction of a convolution's arguments; alignment as in the struct. */
ii_conv_problem ii_conv_problem_of(const ii_conv2d_args *a, ii_conv_direction direction,
                                   int alignment);
/* A convolution of few channels seen as one of more, without moving anything: x[N,H,W,C] is also
 * [N, H, W/pixels, pixels*C], y[N,Ho,Wo,O] also [N, Ho, Wo/outputs, outputs*O], and what connects
 * the two is a convolution with `kw` taps across, `lead` of them before the own group, and stride 1
 * across. Its weights are, for tap j of output u of a group (channels o and c, row i),
 *   wide[u*O + o][i][J][p*C + c] = w[o,c,i,j]   where (J - lead)*pixels + p = u*stride - pad + j,
 * and zeros elsewhere. Tensor cores want pixels*C to be a multiple of 8. */
typedef struct {
  int pixels, outputs, lead, kw;
} ii_conv_grouping;

/* Whether the forward and the filter gradient of a should be computed like that, and how: 16-bit
 * types, C not a multiple of 8, rows that groups divide, and no more channels than leave the
 * multiplications with zeros cheaper than the bytes. */
bool ii_conv_group(const ii_conv2d_args *a, ii_conv_grouping *g);
ii_conv_problem ii_conv_problem_grouped(const ii_conv2d_args *a, ii_conv_direction direction,
                                        int alignment, const ii_conv_grouping *g);
bool ii_conv_problem_equal(const ii_conv_problem *a, const ii_conv_problem *b);

/* Fills *out with the first plan, in the order of cuDNN's heuristics (mode A, then its fallbacks),
 * that keeps the contracts of kernels.h: deterministic, no conversion of the operands to a smaller
 * type (TF32), no sums in a smaller type, no transforms that lose bits (Winograd, FFT), workspace
 * within II_CONV_WORKSPACE_LIMIT.
 * Exactly one of handle and device (CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR) is given.
 * Returns 0, also when cuDNN has no such plan (out->plan is NULL then); 1 with a sentence in
 * error[size] when a call failed that should not. */
int ii_conv_plan_make(const ii_conv_problem *p, cudnnHandle_t handle,
                      cudnnBackendDescriptor_t device, ii_conv_plan *out, char *error, size_t size);
void ii_conv_plan_free(ii_conv_plan *p);

/* Queues the convolution on the handle's stream. workspace: plan->workspace bytes. */
cudnnStatus_t ii_conv_plan_run(const ii_conv_plan *p, cudnnHandle_t handle, const void *x,
                               const void *w, const void *y, void *workspace);

#ifdef __cplusplus
}
#endif
#endif
