/* The problems of the self-test: one function per argument struct. */
#include "kernels/selftest.h"
#include <string.h>

#define USED  ((void *)a) /* "this pointer is used"; the self-test puts a buffer in its place */
#define OTHER ((void *)((char *)a + 1)) /* the same, of a buffer that need not be another's */

typedef struct {
  bool odd; /* variant 1 */
  ii_dtype t, real;
} form;

static void linear(ii_linear_args *a, form f) {
  *a = (ii_linear_args){.real = f.real, .x_dtype = f.t, .rows = f.odd ? 13 : 32};
  a->in = f.odd ? 19 : 64, a->out = f.odd ? 7 : 48;
  a->x = a->w = a->b = a->gy = USED;
  a->y = a->gx = a->gw = a->gb = USED;
}

static void conv2d(ii_conv2d_args *a, form f) {
  *a = (ii_conv2d_args){.real = f.real, .x_dtype = f.t, .N = 2, .kh = 3, .kw = 3, .pad = 1};
  a->H = f.odd ? 7 : 8, a->W = f.odd ? 5 : 8, a->stride = f.odd ? 1 : 2;
  a->C = f.odd ? 3 : 16, a->O = f.odd ? 8 : 24;
  a->Ho = (a->H - 1) / a->stride + 1, a->Wo = (a->W - 1) / a->stride + 1;
  a->x = a->w = a->b = a->gy = USED;
  a->y = a->gx = a->gw = a->gb = USED;
}

static void dwconv2d(ii_dwconv2d_args *a, form f) {
  *a = (ii_dwconv2d_args){.real = f.real, .x_dtype = f.t, .N = 2, .H = 7, .W = 9};
  a->C = f.odd ? 7 : 32, a->k = f.odd ? 5 : 3;
  a->x = a->w = a->b = a->gy = USED;
  a->y = a->gx = a->gw = a->gb = USED;
}

static void layer_norm(ii_layer_norm_args *a, form f) {
  *a = (ii_layer_norm_args){.real = f.real, .y_dtype = f.t, .rows = 11, .eps = 1e-6};
  a->x_dtype = f.odd ? f.t : f.real; /* the residual stream is wide */
  a->C = f.odd ? 37 : 64, a->act = f.odd ? II_ACT_GELU : II_ACT_NONE;
  a->x = a->gamma = a->beta = a->gy = USED;
  a->y = a->mean = a->rstd = a->gx = a->ggamma = a->gbeta = USED;
}

/* The end of a residual branch, or after one. */
static void norm_in_branch(ii_layer_norm_args *a, form f, ii_norm_place place) {
  layer_norm(a, f);
  a->rows = 12, a->keep_rows = 4, a->place = place;
  a->skip = a->keep = USED;
  if (place == II_NORM_ENDS_BRANCH) {
    a->x_dtype = f.t, a->y_dtype = f.real; /* the residual stream is wide */
    a->scale = a->gscale = USED;
  } else {
    a->x_dtype = f.real, a->y_dtype = f.t;
    a->f = a->gsum = USED;
    a->sum = a->gf = USED;
  }
}

static void batch_norm(ii_batch_norm_args *a, form f) {
  *a = (ii_batch_norm_args){.real = f.real, .x_dtype = f.t, .y_dtype = f.t, .rows = 50};
  a->eps = 1e-5, a->momentum = 0.1, a->training = !f.odd, a->C = f.odd ? 13 : 32;
  a->x = a->gamma = a->beta = a->gy = USED;
  a->running_mean = a->running_var = USED;
  a->y = a->mean = a->rstd = a->gx = a->ggamma = a->gbeta = USED;
}

static void eltwise(ii_eltwise_args *a, form f) {
  *a = (ii_eltwise_args){.real = f.real, .x_dtype = f.t, .y_dtype = f.t, .n = f.odd ? 1025 : 1024};
  a->C = f.odd ? 41 : 64;
  a->x = a->gy = USED;
  a->y = USED;
  a->gx = OTHER;
}

/* Variant 1 in place. */
static void gelu(ii_eltwise_args *a, form f) {
  eltwise(a, f);
  a->gb = USED;
  if (f.odd) a->gx = USED;
}

static void softmax(ii_softmax_args *a, form f) {
  *a = (ii_softmax_args){.real = f.real, .x_dtype = f.t, .y_dtype = f.t, .rows = 33};
  a->n = f.odd ? 9 : 64;
  a->x = a->gy = USED;
  a->y = a->gx = USED;
}

/* Variant 0: DCNv3 with softmax, values in wider rows; variant 1: DCNv4 with all in one matrix, and
 * no centre. */
static void dcn(ii_dcn_args *a, form f) {
  *a = (ii_dcn_args){.real = f.real, .x_dtype = f.t, .om_dtype = f.t, .N = 2, .H = 8, .W = 7};
  a->kh = a->kw = 3, a->dil_h = a->dil_w = 1, a->pad_h = a->pad_w = 1, a->offset_scale = 1;
  a->stride_h = a->stride_w = 1, a->remove_center = f.odd, a->softmax = !f.odd;
  a->G = f.odd ? 3 : 4, a->C = a->G * (f.odd ? 5 : 16);
  a->Ho = a->H, a->Wo = a->W;
  const int taps = ii_dcn_taps(a->kh, a->kw, a->remove_center);
  a->offset_group = f.odd ? 3 * taps : 2 * taps;
  a->mask_group = f.odd ? 3 * taps : taps;
  a->offset_row = a->mask_row = (f.odd ? a->C : 0) + (3 * taps * a->G + 7) / 8 * 8;
  a->x_row = f.odd ? a->offset_row : a->C + 8;
  a->x = a->offset = a->mask = a->gy = USED;
  a->y = a->gx = a->goffset = a->gmask = USED;
}

static void residual(ii_residual_args *a, form f) {
  *a = (ii_residual_args){.real = f.real, .x_dtype = f.real, .f_dtype = f.t, .N = 3};
  a->rows = f.odd ? 5 : 8, a->C = f.odd ? 13 : 32;
  a->x = a->f = a->gamma = a->keep = a->gy = USED;
  a->y = a->gf = a->ggamma = USED;
}

static void add(ii_add_args *a, form f) {
  *a = (ii_add_args){.real = f.real, .x_dtype = f.t, .n = f.odd ? 1025 : 1024};
  a->a = a->b = USED;
  a->c = USED;
}

static void group_mix(ii_group_mix_args *a, form f) {
  *a = (ii_group_mix_args){.real = f.real, .x_dtype = f.t, .s_dtype = f.t, .rows = 11};
  a->G = f.odd ? 3 : 4, a->D = f.odd ? 7 : 16;
  a->a = a->v = a->s = a->gy = USED;
  a->y = a->ga = a->gv = a->gs = USED;
}

static void mean_pool(ii_mean_pool_args *a, form f) {
  *a = (ii_mean_pool_args){.real = f.real, .x_dtype = f.t, .y_dtype = f.t, .N = 3, .P = 49};
  a->C = f.odd ? 13 : 64;
  a->x = a->gy = USED;
  a->y = a->gx = USED;
}

static void pool2d(ii_pool2d_args *a, form f) {
  *a = (ii_pool2d_args){.real = f.real, .x_dtype = f.t, .N = 2, .H = 9, .W = 7, .k = 3, .pad = 1};
  a->C = f.odd ? 5 : 16, a->stride = f.odd ? 1 : 2;
  a->Ho = (a->H - 1) / a->stride + 1, a->Wo = (a->W - 1) / a->stride + 1;
  a->x = a->gy = USED;
  a->y = a->gx = USED;
  a->argmax = (int32_t *)USED;
}

static void bmm(ii_bmm_args *a, form f) {
  *a = (ii_bmm_args){.real = f.real, .x_dtype = f.t, .batch = 3, .trans_b = f.odd, .alpha = 0.5};
  a->M = f.odd ? 5 : 16, a->N = f.odd ? 7 : 24, a->K = f.odd ? 9 : 32;
  a->a = a->b = a->gc = USED;
  a->c = a->ga = a->gb = USED;
}

static void transpose(ii_transpose_args *a, form f) {
  *a = (ii_transpose_args){.real = f.real, .x_dtype = f.t, .A = 3, .B = 7, .C = 5};
  a->D = f.odd ? 3 : 16;
  a->x = USED;
  a->y = USED;
}

static void pixel_shuffle(ii_pixel_shuffle_args *a, form f) {
  *a = (ii_pixel_shuffle_args){.real = f.real, .x_dtype = f.t, .N = 2, .H = 3, .W = 5, .r = 2};
  a->C = f.odd ? 3 : 8;
  a->x = a->gy = USED;
  a->y = a->gx = USED;
}

static void ce(ii_ce_args *a, form f, bool soft) {
  *a = (ii_ce_args){.real = f.real, .x_dtype = f.t, .N = 9, .C = f.odd ? 37 : 64};
  a->smoothing = f.odd ? 0.1 : 0;
  a->x = a->gy = USED;
  a->loss = a->lse = a->gx = USED;
  if (soft)
    a->targets = USED;
  else
    a->labels = (const int32_t *)USED;
}

static void cast(ii_cast_args *a, form f) {
  *a = (ii_cast_args){.real = f.real, .n = f.odd ? 1025 : 1024};
  const ii_dtype other = f.t == II_F64 ? II_F64 : f.t == II_F32 ? II_BF16 : II_F32;
  a->x_dtype = f.odd ? other : f.t, a->y_dtype = f.odd ? f.t : other;
  a->x = USED;
  a->y = USED;
}

static void copy2d(ii_copy2d_args *a, form f) {
  *a = (ii_copy2d_args){.real = f.real, .x_dtype = f.t, .rows = 9, .n = f.odd ? 5 : 24};
  a->x_stride = f.odd ? 7 : 40, a->y_stride = f.odd ? 11 : 32;
  a->x = USED;
  a->y = USED;
}

static void fill(ii_fill_args *a, form f) {
  *a = (ii_fill_args){.real = f.real, .y_dtype = f.t, .rows = f.odd ? 9 : 1, .value = 0.75};
  a->n = f.odd ? 5 : 1025, a->y_stride = f.odd ? 13 : 0;
  a->y = USED;
}

static void keep(ii_keep_args *a, form f) {
  *a = (ii_keep_args){.real = f.real, .n = f.odd ? 33 : 128, .rate = 0.25};
  a->seed = 0x1234567, a->purpose = 2, a->step = 89, a->draw = 5;
  a->y = USED;
}

static void shift(ii_shift_args *a, form f) {
  *a = (ii_shift_args){.real = f.real, .n = f.odd ? 33 : 128, .value = 0.25};
  a->y = USED;
}

static void mix_batch(ii_mix_batch_args *a, form f) {
  static const ii_mixture mix[] = {{0.3, 0.7, 0.3f, 0.7f, II_MIX_BLEND, 0, 0, 0, 0},
                                   {0.3, 0.7, 0.3f, 0.7f, II_MIX_BOX, 1, 4, 2, 5}};
  *a = (ii_mix_batch_args){.real = f.real, .N = 4, .H = 6, .W = 5, .C = f.odd ? 3 : 4};
  a->mix = &mix[f.odd];
  a->x = USED;
}

static void mix_targets(ii_mix_targets_args *a, form f) {
  static const ii_mixture mix = {0.3, 0.7, 0.3f, 0.7f, II_MIX_BLEND, 0, 0, 0, 0};
  *a = (ii_mix_targets_args){.real = f.real, .N = f.odd ? 5 : 8, .C = f.odd ? 7 : 16};
  a->smoothing = 0.1, a->mix = &mix;
  a->labels = (const int32_t *)USED;
  a->targets = USED;
}

static void erase(ii_erase_args *a, form f) {
  static const ii_erase_rect rects[] = {{0, 1, 2, 5, 4, 1, {{0x1234567u, 89u}, {5u, 7u}}},
                                        {2, 0, 0, 3, 9, 2, {{0x1234567u, 89u}, {6u, 7u}}},
                                        {2, 2, 3, 2, 2, 3, {{0x1234567u, 89u}, {6u, 7u}}}};
  static const int32_t count = 3;
  *a = (ii_erase_args){.real = f.real, .N = 3, .H = 7, .W = 9, .C = f.odd ? 3 : 4};
  a->mode = f.odd ? II_ERASE_RAND : II_ERASE_PIXEL, a->most = 3, a->count = &count,
  a->rects = rects;
  a->x = USED;
}

#define PAIR(name, fill, ...)                                                                      \
  case II_K_##name##_bwd:                                                                          \
  case II_K_##name##_fwd:                                                                          \
    fill(&a->name##_fwd, f, ##__VA_ARGS__);                                                        \
    return 1;
#define ONE(name)                                                                                  \
  case II_K_##name:                                                                                \
    name(&a->name, f);                                                                             \
    return 1;
/* No activations: only in types that parameters can have. */
#define REAL(name)                                                                                 \
  case II_K_##name:                                                                                \
    name(&a->name, f);                                                                             \
    return t == f.real;

int ii_selftest_problem(int kernel, int variant, ii_dtype t, ii_any_args *a) {
  form f = {.odd = variant == 1, .t = t, .real = ii_dtype_real(t)};
  memset(a, 0, sizeof *a);
  if (variant >= 2) {
    if (kernel != II_K_layer_norm_fwd && kernel != II_K_layer_norm_bwd) return 0;
    norm_in_branch(&a->layer_norm_fwd, f,
                   variant == 2 ? II_NORM_ENDS_BRANCH : II_NORM_AFTER_BRANCH);
    return 1;
  }
  switch (kernel) {
    PAIR(linear, linear)
    PAIR(conv2d, conv2d)
    PAIR(dwconv2d, dwconv2d)
    PAIR(layer_norm, layer_norm)
    PAIR(batch_norm, batch_norm)
    PAIR(gelu, gelu)
    PAIR(relu, eltwise)
    PAIR(silu, eltwise)
    PAIR(sigmoid, eltwise)
    PAIR(softmax, softmax)
    PAIR(dcn, dcn)
    PAIR(residual, residual)
    PAIR(group_mix, group_mix)
    PAIR(mean_pool, mean_pool)
    PAIR(avg_pool2d, pool2d)
    PAIR(max_pool2d, pool2d)
    PAIR(bmm, bmm)
    PAIR(pixel_shuffle, pixel_shuffle)
    PAIR(soft_ce, ce, true)
    PAIR(smooth_ce, ce, false)
    ONE(transpose)
    ONE(cast)
    ONE(copy2d)
    ONE(fill)
    REAL(keep)
    REAL(shift)
    REAL(mix_batch)
    REAL(mix_targets)
    REAL(erase)
  case II_K_update_norm: /* selftest_update.c */
  case II_K_update_control:
  case II_K_update_apply:
  case II_K_loss_add:
    return 0;
  case II_K_add_fwd:
    add(&a->add_fwd, f);
    return 1;
  }
  return -1;
}
