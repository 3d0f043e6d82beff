/* Development variants of the deformable convolution's CUDA kernels: earlier versions, and ideas
 * that the product does not use (yet). They are kept so that a GPU can say what a change was worth
 * (bench_variants) and are tested like the product (tests/test_cuda_variants.c), but are not part
 * of any product program. docs/kernels.md says what each version was for. C and CUDA.
 *
 * A variant is one .cu file of this folder with its kernels in an anonymous namespace, two
 * functions declared below, and a row of the table in variants.c. */
#ifndef II_BENCH_VARIANTS_H
#define II_BENCH_VARIANTS_H
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is computed, as bits. Of a backward pass: gx, and goffset and gmask (dots). A backward is
 * one call for both. */
enum { VARIANT_FORWARD = 1, VARIANT_GX = 2, VARIANT_DOTS = 4, VARIANT_BACKWARD = 6 };

typedef struct {
  const char *name;
  const char *idea;  /* what it tries, one line */
  const char *takes; /* the calls it has kernels for, for people */
  const char *diary; /* where docs/kernels.md tells of it */
  unsigned parts;    /* VARIANT_* that it computes */
  bool repeats;      /* the same bits in every run; false where the order of sums is free */
  /* Largest relative error of the weights that multiply x or gy, beyond fp32, in fp16 and bf16:
   * for error bounds. 0: they stay in fp32. */
  double f16_weights, bf16_weights;
  /* Whether it has a kernel for the call: sizes, types, layout, alignment of the pointers. */
  bool (*has)(const ii_dcn_args *a);
  /* As ii_cuda_dcn_fwd (VARIANT_FORWARD) and ii_cuda_dcn_bwd, of calls that `has` accepts: the
   * results whose pointers are not NULL, of `parts`; the other pointers are ignored. NULL where
   * `parts` has nothing for it. */
  int (*forward)(ii_kctx *k, const ii_dcn_args *a);
  int (*backward)(ii_kctx *k, const ii_dcn_args *a);
} dcn_variant;

/* The table; row 0 is the product. */
extern const dcn_variant dcn_variants[];
extern const int dcn_variant_count;

/* Calls of the published models: a 3 x 3 window of stride, padding and dilation 1 with its centre,
 * groups of 16, 32 or 64 channels, f32, f16 or bf16, everything that is moved in pieces of 16 bytes
 * on 16 bytes: x, y, gy, gx where they are not NULL, and the rows of x. Offsets and modulations:
 * any layout, f32, f16 or bf16. */
bool dcn_variant_is_published(const ii_dcn_args *a);

/* Each in the file of its name. */
int dcn_variant_fwd_units(ii_kctx *k, const ii_dcn_args *a);
int dcn_variant_bwd_scatter(ii_kctx *k, const ii_dcn_args *a);
int dcn_variant_bwd_gather(ii_kctx *k, const ii_dcn_args *a);
int dcn_variant_gx_halo3(ii_kctx *k, const ii_dcn_args *a);
int dcn_variant_gx_one(ii_kctx *k, const ii_dcn_args *a);
bool dcn_variant_has_gx_one(const ii_dcn_args *a);

/* dcn_fwd_mma.cu: the calls of dcn_fwd_tiles.cu in 16 bits. */
bool dcn_variant_has_fwd_mma(const ii_dcn_args *a);
int dcn_variant_fwd_mma(ii_kctx *k, const ii_dcn_args *a);

#ifdef __cplusplus
}
#endif
#endif
