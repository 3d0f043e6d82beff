/* DCNv3 and DCNv4. */
#include "op_cases.h"
#include "op_dcn_cases.h"
#include <math.h>

/* in[3]: columns that pad the rows of offsets and modulations */
static ii_tensor *dcnv3(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *offset_mask = ii_concat(c, in[1], in[2]);
  if (in[3]) offset_mask = ii_concat(c, offset_mask, in[3]);
  return ii_dcnv3(c, in[0], offset_mask, &k->dcn);
}

static ii_tensor *dcnv4(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_dcnv4(c, in[0], in[1], &k->dcn);
}

static ii_tensor *dcnv4_joint(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_dcnv4_joint(c, ii_concat(c, in[0], in[1]), ii_last(in[0]), &k->dcn);
}

/* both calls take the same joint tensor, whose gradients add up */
static ii_tensor *dcnv4_joint_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *joint = ii_concat(c, in[0], in[1]);
  ii_tensor *once = ii_dcnv4_joint(c, joint, ii_last(in[0]), &k->dcn);
  return ii_add(c, once, ii_dcnv4_joint(c, joint, ii_last(in[0]), &k->dcn));
}

static ii_tensor *dcnv3_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = dcnv3(c, in, k);
  return ii_add(c, once, dcnv3(c, in, k));
}

static ii_tensor *dcnv4_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = dcnv4(c, in, k);
  return ii_add(c, once, dcnv4(c, in, k));
}

double op_dcn_position(const ii_dcn_geometry *g, int axis, int tap, double delta) {
  int centre = (g->kernel_w / 2) * g->kernel_h + g->kernel_h / 2;
  if (g->remove_center && tap >= centre) tap++;
  int index = axis == 0 ? tap / g->kernel_h : tap % g->kernel_h;
  int dil = axis == 0 ? g->dilation_w : g->dilation_h;
  int half = (dil * ((axis == 0 ? g->kernel_w : g->kernel_h) - 1)) >> 1;
  return half + (index * dil - half + delta) * g->offset_scale;
}

/* Draws again until the sampling point is at least 0.05 away from pixel centres in both axes: there
 * the derivative jumps. The step of the numeric derivative moves it by 0.002*scale at most. */
void op_dcn_fix_offsets(const op_case *k, double *const *in, ii_rng *r) {
  const ii_dcn_geometry *g = &k->dcn;
  const op_input *off = &k->in[1];
  int taps = ii_dcn_taps(g->kernel_h, g->kernel_w, g->remove_center);
  bool packed = k->op == II_OP_dcnv4;
  int64_t row = off->shape[off->ndim - 1], rows = row ? op_input_numel(off) / row : 0;
  int64_t group = (packed ? 3 : 2) * taps;
  double spread = off->scale != 0 ? off->scale : 1;
  for (int64_t n = 0; n < rows; n++)
    for (int64_t q = 0; q < g->groups; q++)
      for (int j = 0; j < 2 * taps; j++) {
        double *v = &in[1][n * row + q * group + j];
        for (;;) {
          double p = op_dcn_position(g, j % 2, j / 2, *v), f = p - floor(p);
          if (f > 0.05 && f < 0.95) break;
          *v = op_round(ii_rng_normal(r) * spread);
        }
      }
}

#define GEOMETRY(G, kh, kw, s, p, d, centre, soft, scale)                                          \
  { G, kh, kw, s, s, p, p, d, d, centre, soft, scale }
/* the three inputs of v3; K taps, output Ho x Wo */
#define V3_IN(N, H, W, C, G, K, Ho, Wo, spread)                                                    \
  {                                                                                                \
    {IN_ACT, DRAW_NORMAL, 4, {N, H, W, C}, 0},                                                     \
        {IN_ACT, DRAW_OFFSET, 4, {N, Ho, Wo, (G) * (K)*2}, spread},                                \
        {IN_ACT, DRAW_NORMAL, 4, {N, Ho, Wo, (G) * (K)}, 0},                                       \
  }
#define V4_IN(N, H, W, C, P, Ho, Wo, spread)                                                       \
  { {IN_ACT, DRAW_NORMAL, 4, {N, H, W, C}, 0}, {IN_ACT, DRAW_OFFSET, 4, {N, Ho, Wo, P}, spread}, }
#define V3(title, geometry, input, ...)                                                            \
  {                                                                                                \
    .op = II_OP_dcnv3, .name = "dcnv3 " title, .in = input, .call = dcnv3,                         \
    .fix = op_dcn_fix_offsets, .dcn = geometry, __VA_ARGS__                                        \
  }
#define V4(title, geometry, input, ...)                                                            \
  {                                                                                                \
    .op = II_OP_dcnv4, .name = "dcnv4 " title, .in = input, .call = dcnv4,                         \
    .fix = op_dcn_fix_offsets, .dcn = geometry, __VA_ARGS__                                        \
  }
/* the gradient of the columns that pad must be zero, which is what the differences say too */
#define V3_PADDED(title, geometry, N, H, W, C, G, K, pad, ...)                                     \
  {                                                                                                \
    .op = II_OP_dcnv3, .name = "dcnv3 " title,                                                     \
    .in = {{IN_ACT, DRAW_NORMAL, 4, {N, H, W, C}, 0},                                              \
           {IN_ACT, DRAW_OFFSET, 4, {N, H, W, (G) * (K)*2}, 1},                                    \
           {IN_ACT, DRAW_NORMAL, 4, {N, H, W, (G) * (K)}, 0},                                      \
           {IN_ACT, DRAW_NORMAL, 4, {N, H, W, pad}, 0}},                                           \
    .call = dcnv3, .fix = op_dcn_fix_offsets, .dcn = geometry, __VA_ARGS__                         \
  }
#define V4_JOINT(title, geometry, input, ...)                                                      \
  {                                                                                                \
    .op = II_OP_dcnv4, .name = "dcnv4 joint, " title, .in = input, .call = dcnv4_joint,            \
    .fix = op_dcn_fix_offsets, .dcn = geometry, __VA_ARGS__                                        \
  }

static const op_case cases[] = {
    V3("3x3, softmax, 2 groups of 16", GEOMETRY(2, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(2, 7, 7, 32, 2, 9, 7, 7, 1), .terms = 100),
    V3("3x3, plain, 3 groups of 5", GEOMETRY(3, 3, 3, 1, 1, 1, false, false, 1.0),
       V3_IN(2, 5, 7, 15, 3, 9, 5, 7, 1), .terms = 100),
    V3("3x3, centre removed, softmax, scale 2", GEOMETRY(2, 3, 3, 1, 1, 1, true, true, 2.0),
       V3_IN(1, 6, 5, 8, 2, 8, 6, 5, 0.7), .terms = 100),
    V3("3x3, centre removed, plain, scale 0.7", GEOMETRY(1, 3, 3, 1, 1, 1, true, false, 0.7),
       V3_IN(2, 4, 3, 7, 1, 8, 4, 3, 1), .terms = 100),
    V3("3x3, stride 2", GEOMETRY(2, 3, 3, 2, 1, 1, false, true, 1.0),
       V3_IN(2, 7, 8, 16, 2, 9, 4, 4, 1), .terms = 100),
    V3("3x3, dilation 2, padding 2", GEOMETRY(2, 3, 3, 1, 2, 2, false, true, 1.0),
       V3_IN(1, 7, 6, 12, 2, 9, 7, 6, 1), .terms = 100),
    V3("3x3, no padding", GEOMETRY(1, 3, 3, 1, 0, 1, false, true, 1.0),
       V3_IN(1, 5, 6, 4, 1, 9, 3, 4, 1), .terms = 100),
    V3("5x5, 2 groups of 8", GEOMETRY(2, 5, 5, 1, 2, 1, false, true, 1.0),
       V3_IN(1, 6, 6, 16, 2, 25, 6, 6, 1.5), .terms = 200),
    V3("1x1", GEOMETRY(2, 1, 1, 1, 0, 1, false, false, 1.0), V3_IN(1, 5, 4, 6, 2, 1, 5, 4, 2),
       .terms = 100),
    {.op = II_OP_dcnv3,
     .name = "dcnv3 1x3 window, strides 1 and 2, paddings 0 and 1, dilations 1 and 2",
     .in = {{IN_ACT, DRAW_NORMAL, 4, {1, 4, 9, 6}, 0},
            {IN_ACT, DRAW_OFFSET, 4, {1, 4, 4, 12}, 1},
            {IN_ACT, DRAW_NORMAL, 4, {1, 4, 4, 6}, 0}},
     .call = dcnv3,
     .fix = op_dcn_fix_offsets,
     .dcn = {2, 1, 3, 1, 2, 0, 1, 1, 2, false, true, 1.0},
     .terms = 100},
    {.op = II_OP_dcnv3,
     .name = "dcnv3 3x2 window, even width",
     .in = {{IN_ACT, DRAW_NORMAL, 4, {1, 5, 6, 4}, 0},
            {IN_ACT, DRAW_OFFSET, 4, {1, 5, 5, 12}, 1},
            {IN_ACT, DRAW_NORMAL, 4, {1, 5, 5, 6}, 0}},
     .call = dcnv3,
     .fix = op_dcn_fix_offsets,
     .dcn = {1, 3, 2, 1, 1, 1, 0, 1, 1, false, false, 1.0},
     .terms = 100},
    V3("on one pixel", GEOMETRY(2, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(3, 1, 1, 8, 2, 9, 1, 1, 0.5), .terms = 100),
    V3("one channel per group", GEOMETRY(7, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(1, 5, 3, 7, 7, 9, 5, 3, 1), .terms = 100),
    V3("group of 33", GEOMETRY(1, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(1, 4, 4, 33, 1, 9, 4, 4, 1), .terms = 100),
    V3("group of 71", GEOMETRY(1, 3, 3, 1, 1, 1, false, false, 1.0),
       V3_IN(1, 3, 4, 71, 1, 9, 3, 4, 1), .terms = 100),
    V3("offsets far outside", GEOMETRY(2, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(2, 5, 5, 8, 2, 9, 5, 5, 30), .terms = 100),
    V3("80 groups of 16", GEOMETRY(80, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(1, 4, 3, 1280, 80, 9, 4, 3, 1), .terms = 100),
    V3("300 maps of 2x2", GEOMETRY(2, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(300, 2, 2, 8, 2, 9, 2, 2, 1), .terms = 100),
    V3("14x14, 4 groups of 16", GEOMETRY(4, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(1, 14, 14, 64, 4, 9, 14, 14, 1), .terms = 200),
    V3("wide, 71 columns", GEOMETRY(3, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(1, 3, 71, 48, 3, 9, 3, 71, 1), .terms = 200),
    V3("5x5, 33 columns, stride 2", GEOMETRY(1, 5, 5, 2, 2, 1, true, false, 1.0),
       V3_IN(2, 3, 65, 8, 1, 24, 2, 33, 1.5), .terms = 200),
    V3("11 groups of 4, 7 images", GEOMETRY(11, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(7, 3, 2, 44, 11, 9, 3, 2, 1), .terms = 100),
    V3("without images", GEOMETRY(2, 3, 3, 1, 1, 1, false, true, 1.0),
       V3_IN(0, 4, 4, 8, 2, 9, 4, 4, 1), .terms = 0),
    {.op = II_OP_dcnv3,
     .name = "dcnv3 used twice",
     .in = V3_IN(1, 5, 4, 8, 2, 9, 5, 4, 1),
     .call = dcnv3_twice,
     .flags = CASE_COMPOSITE,
     .fix = op_dcn_fix_offsets,
     .dcn = GEOMETRY(2, 3, 3, 1, 1, 1, false, true, 1.0),
     .terms = 100},
    V3_PADDED("padded row, 4 groups of 16", GEOMETRY(4, 3, 3, 1, 1, 1, false, true, 1.0), 2, 6, 5,
              64, 4, 9, 4, .terms = 100),
    V3_PADDED("padded row, centre removed, 3 groups of 5",
              GEOMETRY(3, 3, 3, 1, 1, 1, true, false, 1.0), 2, 4, 5, 15, 3, 8, 3, .terms = 100),
    V4_JOINT("4 groups of 16, padded row", GEOMETRY(4, 3, 3, 1, 1, 1, false, false, 1.0),
             V4_IN(2, 7, 6, 64, 112, 7, 6, 1), .terms = 100),
    V4_JOINT("8 groups of 16, full row", GEOMETRY(8, 3, 3, 1, 1, 1, false, false, 1.0),
             V4_IN(2, 5, 6, 128, 216, 5, 6, 1), .terms = 100),
    V4_JOINT("softmax, 3 groups of 5, odd row", GEOMETRY(3, 3, 3, 1, 1, 1, false, true, 1.0),
             V4_IN(3, 4, 5, 15, 83, 4, 5, 1), .terms = 100),
    V4_JOINT("2 groups of 33 on 14x14", GEOMETRY(2, 3, 3, 1, 1, 1, false, false, 0.7),
             V4_IN(1, 14, 14, 66, 56, 14, 14, 1), .terms = 200),
    V4_JOINT("without images", GEOMETRY(1, 3, 3, 1, 1, 1, false, false, 1.0),
             V4_IN(0, 4, 4, 8, 32, 4, 4, 1), .terms = 0),
    {.op = II_OP_dcnv4,
     .name = "dcnv4 joint, used twice",
     .in = V4_IN(2, 5, 4, 8, 56, 5, 4, 1),
     .call = dcnv4_joint_twice,
     .flags = CASE_COMPOSITE,
     .fix = op_dcn_fix_offsets,
     .dcn = GEOMETRY(2, 3, 3, 1, 1, 1, false, false, 1.0),
     .terms = 100},
    V4("3x3, 4 groups of 16, padded row", GEOMETRY(4, 3, 3, 1, 1, 1, false, false, 1.0),
       V4_IN(2, 7, 6, 64, 112, 7, 6, 1), .terms = 100),
    V4("3x3, softmax, 3 groups of 7, padded row", GEOMETRY(3, 3, 3, 1, 1, 1, false, true, 1.0),
       V4_IN(1, 5, 5, 21, 88, 5, 5, 1), .terms = 100),
    V4("3x3, centre removed, no padding of rows", GEOMETRY(2, 3, 3, 1, 1, 1, true, false, 1.0),
       V4_IN(2, 4, 5, 8, 48, 4, 5, 1), .terms = 100),
    V4("stride 2, scale 0.5", GEOMETRY(1, 3, 3, 2, 1, 1, false, false, 0.5),
       V4_IN(1, 8, 7, 16, 32, 4, 4, 2), .terms = 100),
    V4("14x14, 7 groups of 16", GEOMETRY(7, 3, 3, 1, 1, 1, false, false, 1.0),
       V4_IN(1, 14, 14, 112, 192, 14, 14, 1), .terms = 200),
    V4("without images", GEOMETRY(1, 3, 3, 1, 1, 1, false, false, 1.0),
       V4_IN(0, 4, 4, 8, 32, 4, 4, 1), .terms = 0),
    {.op = II_OP_dcnv4,
     .name = "dcnv4 used twice, padded row",
     .in = V4_IN(1, 5, 4, 8, 56, 5, 4, 1),
     .call = dcnv4_twice,
     .flags = CASE_COMPOSITE,
     .fix = op_dcn_fix_offsets,
     .dcn = GEOMETRY(2, 3, 3, 1, 1, 1, false, false, 1.0),
     .terms = 100},
};

op_case_list op_cases_dcn(void) {
  return (op_case_list){cases, sizeof cases / sizeof *cases};
}
