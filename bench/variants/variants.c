/* The table of the development variants; variants.h says what its columns are. */
#include "bench/variants/variants.h"

#define PUBLISHED "3x3, stride 1, groups of 16, 32, 64; f32, f16, bf16"

bool dcn_variant_is_published(const ii_dcn_args *a) {
  const int64_t size = (int64_t)ii_dtype_size(a->x_dtype), D = a->G > 0 ? a->C / a->G : 0;
  const uintptr_t at = (uintptr_t)a->x | (uintptr_t)a->y | (uintptr_t)a->gy | (uintptr_t)a->gx;
  return a->kh == 3 && a->kw == 3 && a->stride_h == 1 && a->stride_w == 1 && a->pad_h == 1 &&
         a->pad_w == 1 && a->dil_h == 1 && a->dil_w == 1 && !a->remove_center &&
         (D == 16 || D == 32 || D == 64) && a->x_dtype != II_F64 && a->om_dtype != II_F64 &&
         a->N * a->H * a->W > 0 && at % 16 == 0 && a->x_row * size % 16 == 0;
}

static bool any(const ii_dcn_args *a) {
  return true;
}

const dcn_variant dcn_variants[] = {
    {.name = "product",
     .idea = "the kernels that the programs use",
     .takes = "everything",
     .diary = "where it stands",
     .parts = VARIANT_FORWARD | VARIANT_BACKWARD,
     .repeats = true,
     .f16_weights = 0x1p-22,
     .bf16_weights = 0x1p-17,
     .has = any,
     .forward = ii_cuda_dcn_fwd,
     .backward = ii_cuda_dcn_bwd},
    {.name = "fwd_units",
     .idea = "one-dimensional units, taps staged per warp, a predicate per corner",
     .takes = PUBLISHED,
     .diary = "DCN forward, version 0",
     .parts = VARIANT_FORWARD,
     .repeats = true,
     .has = dcn_variant_is_published,
     .forward = dcn_variant_fwd_units},
    {.name = "dcn_fwd_mma",
     .idea = "a tile as a product of matrices on the tensor cores, weights built in registers",
     .takes = "3x3, stride 1, groups of 16, 32, 64; f16, bf16",
     .diary = "DCN forward, version 7",
     .parts = VARIANT_FORWARD,
     .repeats = true,
     .f16_weights = 0x1p-22,
     .bf16_weights = 0x1p-17,
     .has = dcn_variant_has_fwd_mma,
     .forward = dcn_variant_fwd_mma},
    {.name = "bwd_scatter",
     .idea = "gx scattered by atomics in fp32, dots by the lanes of a unit, in one kernel",
     .takes = PUBLISHED,
     .diary = "DCN backward, version 0",
     .parts = VARIANT_BACKWARD,
     .repeats = false,
     .has = dcn_variant_is_published,
     .backward = dcn_variant_bwd_scatter},
    {.name = "bwd_gather",
     .idea =
         "gx gathered by additions in shared memory, dots by the lanes of a unit: no tensor cores",
     .takes = PUBLISHED,
     .diary = "DCN backward, version 1",
     .parts = VARIANT_BACKWARD,
     .repeats = true,
     .has = dcn_variant_is_published,
     .backward = dcn_variant_bwd_gather},
    {.name = "gx_halo3",
     .idea = "the product's gx with tiles that look one pixel further: fewer far taps, more rows",
     .takes = PUBLISHED,
     .diary = "DCN backward, to try on a GPU",
     .parts = VARIANT_GX,
     .repeats = true,
     .f16_weights = 0x1p-22,
     .bf16_weights = 0x1p-17,
     .has = dcn_variant_is_published,
     .backward = dcn_variant_gx_halo3},
    {.name = "gx_one",
     .idea = "the product's gx with one number for a weight instead of two",
     .takes = "3x3, stride 1, groups of 16, 32, 64; f16, bf16",
     .diary = "DCN backward, to try on a GPU",
     .parts = VARIANT_GX,
     .repeats = true,
     .f16_weights = 0x1p-11,
     .bf16_weights = 0x1p-8,
     .has = dcn_variant_has_gx_one,
     .backward = dcn_variant_gx_one},
};
const int dcn_variant_count = sizeof dcn_variants / sizeof *dcn_variants;
