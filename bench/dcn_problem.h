/* What the benchmarks of the deformable convolution share: the published shapes, and the arguments
 * of a kernel with device memory for one of them. For the main programs of this folder only:
 * failures print and exit. */
#ifndef II_BENCH_DCN_PROBLEM_H
#define II_BENCH_DCN_PROBLEM_H
#include "bench/measure_device.h"

/* How values, offsets and modulations lie. V3: rows of all offsets, then all modulations; V4: rows
 * by group; JOINT: as V4, with the values as the first columns of the same rows. */
typedef enum { DCN_V3, DCN_V4, DCN_JOINT } dcn_layout;

static inline const char *dcn_layout_name(dcn_layout l) {
  return l == DCN_V3 ? "dcnv3" : l == DCN_V4 ? "dcnv4" : "dcnv4_joint";
}

typedef struct {
  const char *set; /* the list it belongs to */
  int images;      /* 0: as the command line says */
  int H, W, C, G;
} dcn_shape;

/* paper: Tables 2 and 3 of the DCNv4 paper, 32 channels per group. tiny to large: the stages of
 * InternImage and FlashInternImage, 16 channels per group, at 224 pixels and L at 384. */
static const dcn_shape dcn_shapes[] = {
    {"paper", 64, 56, 56, 128, 4},  {"paper", 64, 28, 28, 256, 8},  {"paper", 64, 14, 14, 512, 16},
    {"paper", 64, 7, 7, 1024, 32},  {"paper", 64, 14, 14, 768, 24}, {"paper", 1, 200, 320, 128, 4},
    {"paper", 1, 100, 160, 256, 8}, {"paper", 1, 50, 80, 512, 16},  {"paper", 1, 25, 40, 1024, 32},
    {"paper", 1, 64, 64, 768, 24},  {"tiny", 0, 56, 56, 64, 4},     {"tiny", 0, 28, 28, 128, 8},
    {"tiny", 0, 14, 14, 256, 16},   {"tiny", 0, 7, 7, 512, 32},     {"small", 0, 56, 56, 80, 5},
    {"small", 0, 28, 28, 160, 10},  {"small", 0, 14, 14, 320, 20},  {"small", 0, 7, 7, 640, 40},
    {"base", 0, 56, 56, 112, 7},    {"base", 0, 28, 28, 224, 14},   {"base", 0, 14, 14, 448, 28},
    {"base", 0, 7, 7, 896, 56},     {"large", 0, 96, 96, 160, 10},  {"large", 0, 48, 48, 320, 20},
    {"large", 0, 24, 24, 640, 40},  {"large", 0, 12, 12, 1280, 80},
};
enum { DCN_SHAPES = sizeof dcn_shapes / sizeof *dcn_shapes };

typedef struct {
  ii_dcn_args args;
  int64_t rows, P; /* pixels; elements of a row of offsets and modulations */
  ii_dtype type;
  void *x, *gy, *y, *gx;       /* x, gx: with the rows when they are joint */
  void *taps, *gtaps;          /* NULL when joint */
  int64_t values;              /* elements of x */
  double fwd_bytes, bwd_bytes; /* that have to move at least */
  double gathered;             /* bytes of corners a forward or a backward reads */
  char what[192];              /* fields of a result: op, shape, groups, dtype */
} dcn_problem;

static inline void *dcn_memory(ii_kctx *k, int64_t n, ii_dtype t) {
  void *p;
  measure_must(k, ii_device_alloc(k, (size_t)n * ii_dtype_size(t), &p));
  return p;
}

/* 3x3 taps, stride 1, offsets and modulations (logits with V3) normal with standard deviation sd;
 * `images` where the shape leaves it open. */
static inline dcn_problem dcn_open(ii_kctx *k, dcn_layout layout, ii_dtype t, const dcn_shape *s,
                                   int images, double sd) {
  const int64_t N = s->images ? s->images : images, rows = N * s->H * s->W, K = 9, C = s->C;
  const int64_t P = (3 * s->G * K + 7) / 8 * 8, size = (int64_t)ii_dtype_size(t);
  const bool joint = layout == DCN_JOINT, v3 = layout == DCN_V3;
  dcn_problem p = {.rows = rows, .P = P, .type = t, .values = rows * (joint ? C + P : C)};
  p.x = dcn_memory(k, p.values, t), p.gx = dcn_memory(k, p.values, t);
  p.gy = dcn_memory(k, rows * C, t), p.y = dcn_memory(k, rows * C, t);
  measure_fill_normal(k, p.x, t, p.values, joint ? sd : 1, 1);
  measure_fill_normal(k, p.gy, t, rows * C, 1, 2);
  char *taps = p.x, *gtaps = p.gx;
  if (!joint) {
    p.taps = taps = dcn_memory(k, rows * P, t), p.gtaps = gtaps = dcn_memory(k, rows * P, t);
    measure_fill_normal(k, taps, t, rows * P, sd, 3);
  }
  const int64_t first = joint ? C : 0, mask = first + (v3 ? 2 * K * s->G : 2 * K);
  p.args = (ii_dcn_args){.real = II_F32,
                         .x_dtype = t,
                         .om_dtype = t,
                         .N = N,
                         .H = s->H,
                         .W = s->W,
                         .C = C,
                         .G = s->G,
                         .Ho = s->H,
                         .Wo = s->W,
                         .kh = 3,
                         .kw = 3,
                         .stride_h = 1,
                         .stride_w = 1,
                         .pad_h = 1,
                         .pad_w = 1,
                         .dil_h = 1,
                         .dil_w = 1,
                         .softmax = v3,
                         .offset_scale = 1,
                         .x = p.x,
                         .offset = taps + first * size,
                         .mask = taps + mask * size,
                         .x_row = joint ? C + P : C,
                         .offset_row = joint ? C + P : P,
                         .offset_group = v3 ? 2 * K : 3 * K,
                         .mask_row = joint ? C + P : P,
                         .mask_group = v3 ? K : 3 * K,
                         .y = p.y,
                         .gy = p.gy,
                         .gx = p.gx,
                         .goffset = gtaps + first * size,
                         .gmask = gtaps + mask * size};
  p.fwd_bytes = (double)(rows * (2 * C + P) * size);
  p.bwd_bytes = (double)(rows * (3 * C + 2 * P) * size);
  p.gathered = 36.0 * (double)(rows * C * size);
  snprintf(p.what, sizeof p.what,
           "\"op\": \"%s\", \"set\": \"%s\", \"shape\": \"%lldx%dx%dx%d\", \"groups\": %d, "
           "\"dtype\": \"%s\"",
           dcn_layout_name(layout), s->set, (long long)N, s->H, s->W, s->C, s->G, ii_dtype_name(t));
  return p;
}

static inline void dcn_close(ii_kctx *k, dcn_problem *p) {
  const size_t size = ii_dtype_size(p->type), C = (size_t)p->args.C, rows = (size_t)p->rows;
  ii_device_free(k, p->x, (size_t)p->values * size);
  ii_device_free(k, p->gx, (size_t)p->values * size);
  ii_device_free(k, p->gy, rows * C * size);
  ii_device_free(k, p->y, rows * C * size);
  if (p->taps) {
    ii_device_free(k, p->taps, rows * (size_t)p->P * size);
    ii_device_free(k, p->gtaps, rows * (size_t)p->P * size);
  }
  *p = (dcn_problem){0};
}

#endif
