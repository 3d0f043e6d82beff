/* The kernels: raw pointers, sizes and a context, nothing of the autograd. One argument struct per
 * op serves its forward and its backward kernel; kernels.def lists the kernels, and this header
 * declares for each of them
 *
 *     int ii_cpu_<kernel>(ii_kctx *k, const <args> *a);
 *     int ii_cuda_<kernel>(ii_kctx *k, const <args> *a);   (builds with a CUDA engine)
 *
 * which returns 0, or nonzero with one sentence in k->error (a library failed, no memory).
 *
 * Common rules
 * - Tensors are contiguous and row-major, images are N,H,W,C. Buffers do not overlap unless said.
 * - a->real is II_F32 or II_F64: the type of weights' gradients, norm parameters, biases,
 *   statistics and of every accumulation. Each activation has its own type (x_dtype, y_dtype, ...):
 *   with real = II_F32 it is II_F32 or II_BF16 (CUDA: or II_F16), with real = II_F64 it is II_F64;
 *   the 16-bit activations of one call have the same type. A gradient of an
 *   activation has the activation's type; the gradient of a parameter has type `real`.
 * - Forward kernels overwrite their outputs completely. Backward kernels compute the gradients
 *   whose pointers are not NULL; each such g<name> has a flag acc_<name>: false overwrites, true
 *   adds to what is there. What they read besides gy is said at each struct ("bwd reads").
 * - Sizes may be zero: then nothing is read, and outputs of nonzero size (sums) become zero.
 * - CUDA: pointers are device pointers, work is queued on the engine's stream, and a call returns
 *   before it is done. Pointers are aligned to their element type at least.
 * - Results are the same from run to run, bit for bit (CPU: for a given k->threads). Results for
 *   one image do not depend on the other images of the batch, except in batch_norm, in gradients of
 *   parameters, and in the last bits of matrix products whose order of sums a library chooses by
 *   all sizes of the product: on the CPU those of bf16 with thousands of terms (linear, bmm), on
 *   CUDA all of linear, bmm and conv2d, where the number of images may count, but not what is in
 *   the others.
 * - Shape letters: N batch, H W height and width, C channels, G groups, D = C/G channels per group,
 *   K kernel points, Ho Wo output size. "rows" is any product of leading dimensions. */
#ifndef II_KERNELS_H
#define II_KERNELS_H
#include <stdbool.h>
#include <stdint.h>
#include "kernels/dtype.h"
#include "kernels/philox.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { II_CPU = 0, II_CUDA } ii_device;

/* What a kernel needs to know about where it runs. Owned by the autograd context. */
typedef struct ii_kctx {
  ii_device device;
  int threads;  /* CPU: OpenMP threads to use */
  void *engine; /* the engine's own state: library handles, primitive cache, scratch memory */
  char error[512];
} ii_kctx;

/* y[rows,out] = x[rows,in] w[out,in]^T + b[out].  b may be NULL.
 * x, y, w have type x_dtype; b has type real.
 * bwd reads x (for gw), w (for gx), gy[rows,out]:
 *   gx = gy w;  gw[out,in] = gy^T x;  gb = column sums of gy. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t rows, in, out;
  const void *x, *w, *b;
  void *y;
  const void *gy;
  void *gx, *gw, *gb;
  bool acc_gx, acc_gw, acc_gb;
} ii_linear_args;

/* Dense convolution, square stride and padding, no dilation:
 * y[N,Ho,Wo,O] = b + sum over (i,j,c) of x[N, ho*stride-pad+i, wo*stride-pad+j, c] w[O,C,kh,kw].
 * w is stored O,C,kh,kw as in the official state-dict. x, y, w have type x_dtype; b real, or NULL.
 * bwd reads x (for gw), w (for gx), gy. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t N, H, W, C, O, Ho, Wo;
  int kh, kw, stride, pad;
  const void *x, *w, *b;
  void *y;
  const void *gy;
  void *gx, *gw, *gb;
  bool acc_gx, acc_gw, acc_gb;
} ii_conv2d_args;

/* Depthwise convolution, k x k, stride 1, padding (k-1)/2, k odd: y has the shape of x[N,H,W,C].
 * w is stored C,1,k,k and, like b (may be NULL), has type real. x, y: x_dtype.
 * bwd reads x, w, gy. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t N, H, W, C;
  int k;
  const void *x, *w, *b;
  void *y;
  const void *gy;
  void *gx, *gw, *gb;
  bool acc_gx, acc_gw, acc_gb;
} ii_dwconv2d_args;

typedef enum { II_ACT_NONE = 0, II_ACT_GELU } ii_act;

/* Layer norm over the last dimension, optionally followed by GELU (erf):
 *   y = act((x - mean) * rstd * gamma + beta), rstd = 1/sqrt(var + eps), var biased.
 * x[rows,C] of x_dtype, y of y_dtype; gamma, beta, mean[rows], rstd[rows] of type real.
 * fwd writes y, mean, rstd. bwd reads x, gamma, beta (only with an activation), mean, rstd, gy.
 * place says what is done in the same pass, without activation; skip[rows,C] is the residual
 * stream and keep (already divided by the keep probability, NULL counts as 1) of type real:
 * - II_NORM_ENDS_BRANCH: y = skip + keep[row / keep_rows] * scale[c] * LN(x).
 *   skip of y_dtype, layer scale[C] of type real or NULL. bwd also reads scale, keep and, for
 * gscale, beta; the gradient of skip is gy itself.
 * - II_NORM_AFTER_BRANCH: sum = skip + keep[row / keep_rows] * f, y = LN(sum); skip and sum of type
 *   real and x_dtype, f[rows,C] of y_dtype; fwd writes sum and does not read x.
 *   bwd reads the sum as x, keep, and gsum (x_dtype), what else is in the gradient of the sum, or
 *   NULL. gx, the whole gradient of the sum, is the gradient of skip, too; gf = keep * that. gx may
 *   be gsum when it overwrites. */
typedef enum { II_NORM_ALONE = 0, II_NORM_ENDS_BRANCH, II_NORM_AFTER_BRANCH } ii_norm_place;

typedef struct {
  ii_dtype real, x_dtype, y_dtype;
  int64_t rows, C, keep_rows;
  double eps;
  ii_act act;
  ii_norm_place place;
  const void *x, *gamma, *beta, *skip, *scale, *keep, *f;
  void *sum, *y, *mean, *rstd;
  const void *gy, *gsum;
  void *gx, *gf, *ggamma, *gbeta, *gscale;
  bool acc_gx, acc_gf, acc_ggamma, acc_gbeta, acc_gscale;
} ii_layer_norm_args;

/* Batch norm over rows, per channel: y = (x - mean) * rstd * gamma + beta.
 * training: mean and biased variance of the batch; running_mean and running_var (both updated in
 *   place) become (1-momentum)*old + momentum*batch, with the UNBIASED variance (rows > 1).
 * eval: the running statistics are used and not changed.
 * fwd writes y, mean[C], rstd[C] (the ones it used). bwd reads x, gamma, mean, rstd, gy; in eval
 * mode mean and rstd are constants. */
typedef struct {
  ii_dtype real, x_dtype, y_dtype;
  int64_t rows, C;
  double eps, momentum;
  bool training;
  const void *x, *gamma, *beta;
  void *running_mean, *running_var;
  void *y, *mean, *rstd;
  const void *gy;
  void *gx, *ggamma, *gbeta;
  bool acc_gx, acc_ggamma, acc_gbeta;
} ii_batch_norm_args;

/* Element-wise functions y = f(x) on n elements: GELU x*Phi(x) (erf form), ReLU, SiLU x*sigmoid(x),
 * sigmoid. bwd reads x (gelu, silu) or y (relu, sigmoid), and gy: gx = f'(x) gy; ReLU'(0) = 0.
 * gx may be gy itself when their types are the same and acc_gx is false.
 * gelu_bwd alone: gb[C], of type real, are the column sums of gx as a matrix [n/C,C], before it is
 * rounded to its type: the gradient of a bias that was added to x. The others ignore it. */
typedef struct {
  ii_dtype real, x_dtype, y_dtype;
  int64_t n, C;
  const void *x;
  void *y;
  const void *gy;
  void *gx, *gb;
  bool acc_gx, acc_gb;
} ii_eltwise_args;

/* y[rows,n] = softmax over the last dimension (max subtracted). bwd reads y, gy. */
typedef struct {
  ii_dtype real, x_dtype, y_dtype;
  int64_t rows, n;
  const void *x;
  void *y;
  const void *gy;
  void *gx;
  bool acc_gx;
} ii_softmax_args;

/* Deformable convolution v3 and v4 (InternImage eq. 2; DCNv4 eq. 1): for output (n,ho,wo), group g,
 * tap k = (i,j), i over kw OUTER, j over kh INNER, the centre (kw/2, kh/2) skipped and the gap
 * closed when remove_center:
 *   cw = (dil_w*(kw-1))>>1, likewise ch;  s = offset_scale
 *   px = wo*stride_w - pad_w + cw - cw*s + (i*dil_w + dx)*s
 *   py = ho*stride_h - pad_h + ch - ch*s + (j*dil_h + dy)*s
 *   y[n,ho,wo,g,:] += m_k * bilinear(x[n,:,:,g,:], py, px),
 *   only if py > -1, px > -1, py < H, px < W (else the tap has no output and no gradient; NaN
 *   offsets therefore contribute nothing); corners outside the image count as 0.
 * x[N,H,W,C], y[N,Ho,Wo,C] of x_dtype; channel = g*D + d. The pixels of x, and of its gradient,
 * are x_row >= C elements apart, so that x may be columns of a wider matrix; those of y and gy are
 * C apart. What lies between the pixels of gx is left alone.
 * Offsets and modulations are of type om_dtype, and are found by strides (in elements), which is
 * all that distinguishes v3 from v4. With row = (n*Ho + ho)*Wo + wo:
 *   dx = offset[row*offset_row + g*offset_group + 2k], dy the next;
 *   m = mask[row*mask_row + g*mask_group + k]
 *   v3: offset[rows,G,K,2], mask[rows,G,K].
 *   v4: one packed tensor [rows,P]: offset_row = mask_row = P, offset_group = mask_group = 3K,
 *       mask = offset + 2K elements; P >= 3KG, the tail is ignored.
 * softmax: mask holds logits, m = softmax over the K taps of a group, computed in type real; its
 *   gradient is with respect to the logits.
 * bwd reads x, offset, mask, gy. goffset and gmask use the strides of offset and mask and are
 *   written (or added to) at the taps' places only: the caller clears a padded tail. */
typedef struct {
  ii_dtype real, x_dtype, om_dtype;
  int64_t N, H, W, C, G, Ho, Wo;
  int kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  bool remove_center, softmax;
  double offset_scale;
  const void *x, *offset, *mask;
  int64_t x_row, offset_row, offset_group, mask_row, mask_group;
  void *y;
  const void *gy;
  void *gx, *goffset, *gmask;
  bool acc_gx, acc_goffset, acc_gmask;
} ii_dcn_args;

/* Taps of a DCN kernel window: kh*kw, less one when the centre is removed. */
static inline int ii_dcn_taps(int kh, int kw, bool remove_center) {
  return kh * kw - (remove_center ? 1 : 0);
}

/* Residual branch with layer scale and stochastic depth (per sample):
 *   y[N,rows,C] = x + keep[n] * gamma[c] * f;  gamma (real) and keep[N] (real, already divided by
 *   the keep probability) may be NULL and then count as 1.
 * x and y have x_dtype, f has f_dtype.
 * bwd reads f (for ggamma), gamma, keep, gy (x_dtype): gf = keep*gamma*gy (f_dtype);
 *   ggamma = sums of keep*gy*f. The gradient of x is gy itself. */
typedef struct {
  ii_dtype real, x_dtype, f_dtype;
  int64_t N, rows, C;
  const void *x, *f, *gamma, *keep;
  void *y;
  const void *gy;
  void *gf, *ggamma;
  bool acc_gf, acc_ggamma;
} ii_residual_args;

/* c = a + b, n elements, one type. The gradients of a and b are gy itself. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t n;
  const void *a, *b;
  void *c;
} ii_add_args;

/* Centre feature scale: y = a*(1-s) + v*s with s[rows,G] spread over the D channels of its group.
 * a, v, y [rows, G*D] of x_dtype, s of s_dtype. bwd reads a, v, s, gy. */
typedef struct {
  ii_dtype real, x_dtype, s_dtype;
  int64_t rows, G, D;
  const void *a, *v, *s;
  void *y;
  const void *gy;
  void *ga, *gv, *gs;
  bool acc_ga, acc_gv, acc_gs;
} ii_group_mix_args;

/* Mean over the spatial positions: x[N,P,C] (x_dtype) -> y[N,C] (y_dtype). */
typedef struct {
  ii_dtype real, x_dtype, y_dtype;
  int64_t N, P, C;
  const void *x;
  void *y;
  const void *gy;
  void *gx;
  bool acc_gx;
} ii_mean_pool_args;

/* 2-D average pooling (padding counts in the divisor, as torch's default) and max pooling, window
 * k x k, x[N,H,W,C] -> y[N,Ho,Wo,C]. Max pooling: the first maximum in row-major order wins, NaN
 * wins over numbers; fwd writes argmax[N,Ho,Wo,C] (the flat h*W+w, int32), bwd reads it. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t N, H, W, C, Ho, Wo;
  int k, stride, pad;
  const void *x;
  void *y;
  int32_t *argmax; /* max pooling only */
  const void *gy;
  void *gx;
  bool acc_gx;
} ii_pool2d_args;

/* c[batch,M,N] = alpha * a[batch,M,K] op(b), op(b) = b[batch,K,N], or b[batch,N,K]^T if trans_b.
 * One type for a, b, c. bwd reads a, b, gc. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t batch, M, N, K;
  bool trans_b;
  double alpha;
  const void *a, *b;
  void *c;
  const void *gc;
  void *ga, *gb;
  bool acc_ga, acc_gb;
} ii_bmm_args;

/* y[A,C,B,D] = x[A,B,C,D]: swaps the two middle dimensions. Its backward is itself with B and C
 * exchanged; accumulate adds to y (bwd). Any type. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t A, B, C, D;
  const void *x;
  void *y;
  bool accumulate;
} ii_transpose_args;

/* Pixel shuffle, NHWC: y[N,H*r,W*r,C][h*r+a, w*r+b, c] = x[N,H,W,C*r*r][h, w, c*r*r + a*r + b].
 * bwd: gx gathers gy. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t N, H, W, C; /* C: channels of y */
  int r;
  const void *x;
  void *y;
  const void *gy;
  void *gx;
  bool acc_gx;
} ii_pixel_shuffle_args;

/* Cross entropy on logits x[N,C] of x_dtype; loss is one number of type real, the mean over N.
 * soft_ce:   loss = mean_n( -sum_c t[n,c] log_softmax(x)[n,c] ), targets t[N,C] of type real.
 * smooth_ce: loss = mean_n( (1-e) * -logp[n,label] + e * mean_c(-logp[n,c]) ), e = smoothing,
 *            labels int32 in [0,C).
 * A label outside [0,C) is an error (CPU), or makes the loss NaN (CUDA, which cannot stop there).
 * fwd writes loss and lse[N] (log-sum-exp, real). bwd reads x, lse, targets or labels, and gy, one
 * number of type real: gx (x_dtype) is scaled by it. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t N, C;
  double smoothing;
  const void *x, *targets;
  const int32_t *labels;
  void *loss, *lse;
  const void *gy;
  void *gx;
  bool acc_gx;
} ii_ce_args;

/* y = x converted to y_dtype, n elements; accumulate adds to y. Any of F32, F64, BF16 (CUDA: and
 * F16) on both sides
 * (real decides the intermediate type only when one side is F64). */
typedef struct {
  ii_dtype real, x_dtype, y_dtype;
  int64_t n;
  const void *x;
  void *y;
  bool accumulate;
} ii_cast_args;

/* y[r*y_stride + i] = x[r*x_stride + i] for r < rows, i < n (strides in elements): columns of a
 * matrix into columns of another; accumulate adds to y. Any type. */
typedef struct {
  ii_dtype real, x_dtype;
  int64_t rows, n, x_stride, y_stride;
  const void *x;
  void *y;
  bool accumulate;
} ii_copy2d_args;

/* y[i] = 1/(1-rate) or 0 for i < n: stochastic depth keeps sample i when uniform number i of the
 * stream of (seed, purpose, step, draw) is >= rate (< 1). y of type real. */
typedef struct {
  ii_dtype real;
  int64_t n;
  double rate;
  uint64_t seed, step, draw;
  uint32_t purpose;
  const int64_t *step_at; /* in the engine's memory: the step, instead of `step`; or NULL */
  void *y;
} ii_keep_args;

/* y[i] += value, n elements of type real. */
typedef struct {
  ii_dtype real;
  int64_t n;
  double value;
  void *y;
} ii_shift_args;

/* ---- Not differentiated: what is done to a batch before the forward pass. ---- */

typedef enum { II_MIX_NONE = 0, II_MIX_BLEND, II_MIX_BOX } ii_mix_mode;

/* How the images of a batch are mixed, in the engine's memory: what changes from step to step is no
 * argument of a launch, so that a recorded step can be given another one. */
typedef struct {
  double lam, rest;       /* an image's own share and its partner's, 1 - lam */
  float lam32, rest32;    /* the same, rounded */
  int64_t mode;           /* ii_mix_mode */
  int64_t y0, y1, x0, x1; /* II_MIX_BOX: rows [y0,y1), columns [x0,x1), within the image */
} ii_mixture;

/* Nothing is mixed when lam is 1. */
static inline ii_mixture ii_mixture_of(double lam, bool box) {
  const ii_mix_mode mode = lam == 1 ? II_MIX_NONE : box ? II_MIX_BOX : II_MIX_BLEND;
  const ii_mixture m = {lam, 1.0 - lam, (float)lam, (float)(1.0 - lam), (int64_t)mode, 0, 0, 0, 0};
  return m;
}

/* Mixes each image with its partner, image n with image N-1-n (the middle one of an odd N with
 * itself), in place; x[N,H,W,C] of type real.
 * II_MIX_BLEND (mixup): x = lam * x + (1 - lam) * partner, each product and the sum rounded;
 * II_MIX_BOX (CutMix): the pixels of the box are the partner's; lam is not used. */
typedef struct {
  ii_dtype real;
  int64_t N, H, W, C;
  const ii_mixture *mix;
  void *x;
} ii_mix_batch_args;

/* The soft targets of a mixed batch: targets[N,C] = lam * one_hot(labels[n]) + (1 - lam) *
 * one_hot(labels[N-1-n]), where one_hot has 1 - smoothing + smoothing/C at the label and
 * smoothing/C elsewhere; of type real, each operation rounded. labels[N] int32 in [0,C): others are
 * an error (CUDA: both rows that a bad label belongs to become NaN, and so does the loss). */
typedef struct {
  ii_dtype real;
  int64_t N, C;
  double smoothing;
  const ii_mixture *mix; /* lam */
  const int32_t *labels;
  void *targets;
} ii_mix_targets_args;

/* What an erased rectangle is filled with: a normal number per element, zeros, or a normal number
 * per channel. */
typedef enum { II_ERASE_PIXEL = 0, II_ERASE_CONST, II_ERASE_RAND } ii_erase_mode;

/* Rows [top, top+height), columns [left, left+width) of one image. Normal number e (counted in
 * memory order inside the rectangle; the channel with II_ERASE_RAND) comes from Philox block
 * {e/4, part, tail[0], tail[1]}, whose four words give the numbers 4(e/4) to 4(e/4)+3: with
 * u = (high 24 bits of word 0 + 1)/2^24 and v = (those of word 1)/2^24, sqrt(-2 ln u) times
 * cos(2 pi v) and sin(2 pi v) (Box and Muller); likewise words 2 and 3. */
typedef struct {
  int32_t image, top, left, height, width;
  uint32_t part;
  ii_philox_stream noise;
} ii_erase_rect;

/* Overwrites rectangles of x[N,H,W,C] of type real, in place: the first *count of rects, whose
 * images ascend; where rectangles of an image overlap the last one counts. A rectangle that is not
 * inside the images is an error (CUDA: it is left out). */
typedef struct {
  ii_dtype real;
  int64_t N, H, W, C;
  ii_erase_mode mode;
  int64_t most; /* room in rects; a greater *count is an error (CUDA: cut off) */
  const int32_t *count;
  const ii_erase_rect *rects; /* [most] */
  void *x;
} ii_erase_args;

/* Whether r lies in images [N,H,W]. */
II_EVERYWHERE bool ii_erase_inside(int64_t N, int64_t H, int64_t W, const ii_erase_rect *r) {
  return r->image >= 0 && r->image < N && r->top >= 0 && r->left >= 0 && r->height >= 0 &&
         r->width >= 0 && r->top + (int64_t)r->height <= H && r->left + (int64_t)r->width <= W;
}

/* ---- Not differentiated: used by gradient bookkeeping and by the optimizer. ---- */

/* y[r*y_stride + i] = value for r < rows, i < n, of y_dtype: columns of a matrix; with one row,
 * n elements. */
typedef struct {
  ii_dtype real, y_dtype;
  int64_t rows, n, y_stride;
  double value;
  void *y;
} ii_fill_args;

/* ---- One update of all parameters, in three kernels. The host queues them and looks at nothing:
 * what depends on the gradients is decided and kept on the device, in an ii_update_state. ---- */

typedef enum {
  II_UPDATE_ADAMW = 0,
  II_UPDATE_SGD,
  II_UPDATE_SCALE /* gradients alone: g *= clip coefficient, in place */
} ii_update_kind;

typedef enum {
  II_UPDATE_NOTHING = 0, /* all stays as it is */
  II_UPDATE_AVERAGE,     /* a skipped update: the averages alone, as in the official loop */
  II_UPDATE_ALL
} ii_update_action;

/* One tensor of an update, of type `real`; a row of a table in device memory. */
typedef struct {
  int64_t n;
  void *p;     /* value */
  void *g;     /* gradient; NULL: none came, the tensor is averaged only */
  void *m, *v; /* moments; SGD: m is the momentum buffer, v NULL; m NULL: no momentum */
  void *ema;   /* average; may be NULL */
  void *low;   /* 16-bit copy of p; may be NULL */
  double weight_decay;
  int64_t counter; /* 1: a counter of one element, whose average is an integer; in no chunk */
} ii_update_tensor;

/* Elements [part * II_UPDATE_CHUNK, (part + 1) * II_UPDATE_CHUNK) of a tensor: a unit of work. */
enum { II_UPDATE_CHUNK = 65536 };
typedef struct {
  int32_t tensor, part;
} ii_update_chunk;

/* What is carried from update to update, in device memory. */
typedef struct {
  double loss_scale;    /* factor on the loss that the gradients contain; 1 without scaling */
  int64_t t;            /* updates made */
  int64_t good_updates; /* in a row since loss_scale last changed; counted with scaling only */
  int64_t skipped;      /* updates skipped because the gradients were not finite, with scaling */
  double grad_norm;     /* of the last update, loss_scale taken out; before clipping */
  double clip_coef;     /* of the last update */
  double loss_sum;      /* of the losses since the host last cleared it */
  int64_t loss_count;
  int64_t bad_step; /* >= 0: the loss or the gradients of this step were not finite (and there is
                       no scale to lower). Nothing is updated until the host clears it with -1 */
  double bad_value;
  int64_t bad_loss; /* 1: it was the loss, 0: the norm of the gradients */
  int64_t action;   /* ii_update_action of the update in work */
} ii_update_state;

/* update_norm: partial[chunk] = sum of the squares of the gradients of each chunk (0 without g), in
 *   double (CUDA: type real, so a gradient above 1e19 counts as infinite). 8 bytes per chunk.
 * update_control: norm = sqrt(sum of partial)/loss_scale, coefficient min(1, clip_grad/(norm+1e-6))
 *   (1 with clip_grad 0), then state: see update_rules.h; the factors for update_apply; averages of
 *   counters; *seed = loss_scale*seed_factor, the gradient of the next loss. Sums are taken in a
 *   fixed order (CPU: chunk by chunk, tensor by tensor).
 * update_apply: for each chunk, as state->action says, with g' = g*coefficient/loss_scale:
 *   AdamW (Loshchilov and Hutter 2019, as torch.optim.AdamW): p *= 1 - lr*weight_decay;
 *     m = b1*m + (1-b1)*g';  v = b2*v + (1-b2)*g'^2;
 *     p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps);
 *   SGD (as torch.optim.SGD, dampening 0): g'' = g' + weight_decay*p;
 *     m = g'' at the first update, else momentum*m + g'';  p -= lr*(nesterov ? g''+momentum*m : m);
 *   then, where not NULL: ema = ema_decay*ema + (1-ema_decay)*p;  low = p in low_dtype.
 * All pointers are device pointers. */
typedef struct {
  ii_dtype real, low_dtype;
  ii_update_kind kind;
  int64_t tensors, chunks, elements; /* elements: of all chunks */
  const ii_update_tensor *tensor;
  const ii_update_chunk *chunk; /* in the order of the tensors */
  const double *lr;             /* rate of each tensor; not read for II_UPDATE_SCALE */
  int64_t step;                 /* the number that bad_step gets */
  const int64_t *step_at;       /* in the engine's memory: the number instead of `step`; or NULL */
  double beta1, beta2, eps, momentum, clip_grad, ema_decay, seed_factor;
  bool nesterov;
  int64_t growth_interval; /* updates; 0: no loss scaling */
  void *partial;           /* [chunks], 8 bytes each */
  void *factor;            /* [4 + 2*tensors] of type real */
  void *seed;              /* one element of type real; NULL for II_UPDATE_SCALE */
  ii_update_state *state;
} ii_update_args;

/* state->loss_sum += loss (one element of type real), or notes at `step` that it is not finite. */
typedef struct {
  ii_dtype real;
  bool scaled; /* a loss scale is in use: a loss that is not finite is no reason to stop */
  int64_t step;
  const int64_t *step_at; /* as in ii_update_args */
  const void *loss;
  ii_update_state *state;
} ii_loss_add_args;

#define II_KERNEL(name, args)                                                                      \
  int ii_cpu_##name(ii_kctx *k, const args *a);                                                    \
  int ii_cuda_##name(ii_kctx *k, const args *a);
#include "kernels/kernels.def"
#undef II_KERNEL

#ifdef __cplusplus
}
#endif
#endif
