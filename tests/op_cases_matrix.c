/* linear, bmm, conv2d, dwconv2d. */
#include "op_cases.h"

static ii_tensor *linear(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_linear(c, in[0], in[1], in[2]);
}

/* y = f(x) + f(x) in two calls: gradients of x, w and b accumulate */
static ii_tensor *linear_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = ii_linear(c, in[0], in[1], in[2]);
  return ii_add(c, once, ii_linear(c, in[0], in[1], in[2]));
}

static ii_tensor *linear_gelu(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_linear_gelu(c, in[0], in[1], in[2]);
}

static ii_tensor *linear_gelu_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = linear_gelu(c, in, k);
  return ii_add(c, once, linear_gelu(c, in, k));
}

static ii_tensor *bmm(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_bmm(c, in[0], in[1], k->i[0] != 0, k->f[0]);
}

static ii_tensor *conv2d(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_conv2d(c, in[0], in[1], in[2], (int)k->i[0], (int)k->i[1]);
}

static ii_tensor *conv2d_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = conv2d(c, in, k);
  return ii_add(c, once, conv2d(c, in, k));
}

static ii_tensor *dwconv2d(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_dwconv2d(c, in[0], in[1], in[2]);
}

static ii_tensor *dwconv2d_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = dwconv2d(c, in, k);
  return ii_add(c, once, dwconv2d(c, in, k));
}

#define X2(a, b)                                                                                   \
  { IN_ACT, DRAW_NORMAL, 2, {a, b}, 0 }
#define X3(a, b, c)                                                                                \
  { IN_ACT, DRAW_NORMAL, 3, {a, b, c}, 0 }
#define X4(a, b, c, d)                                                                             \
  { IN_ACT, DRAW_NORMAL, 4, {a, b, c, d}, 0 }
#define W2(a, b)                                                                                   \
  { IN_PARAM, DRAW_NORMAL, 2, {a, b}, 0 }
#define W4(a, b, c, d)                                                                             \
  { IN_PARAM, DRAW_NORMAL, 4, {a, b, c, d}, 0 }
#define B(a)                                                                                       \
  { IN_PARAM, DRAW_NORMAL, 1, {a}, 0 }
#define NONE                                                                                       \
  { IN_NONE, 0, 0, {0}, 0 }

#define LINEAR(title, x, w, b, n)                                                                  \
  { .op = II_OP_linear, .name = title, .in = {x, w, b}, .call = linear, .terms = n }
#define LINEAR_GELU(title, x, w, b, n, ...)                                                        \
  {                                                                                                \
    .op = II_OP_linear_gelu, .name = "linear with gelu, " title, .in = {x, w, b},                  \
    .call = linear_gelu, .flags = CASE_READS_ROUNDED __VA_ARGS__, .terms = n                       \
  }
#define BMM(title, a, b, trans, alpha, n)                                                          \
  {                                                                                                \
    .op = II_OP_bmm, .name = title, .in = {a, b}, .call = bmm, .i = {trans}, .f = {alpha},         \
    .terms = n                                                                                     \
  }
#define CONV(title, x, w, b, stride, pad, n)                                                       \
  {                                                                                                \
    .op = II_OP_conv2d, .name = title, .in = {x, w, b}, .call = conv2d, .i = {stride, pad},        \
    .terms = n                                                                                     \
  }
#define DWCONV(title, x, w, b, n)                                                                  \
  { .op = II_OP_dwconv2d, .name = title, .in = {x, w, b}, .call = dwconv2d, .terms = n }

static const op_case cases[] = {
    LINEAR("linear 1x1 to 1", X2(1, 1), W2(1, 1), B(1), 0),
    LINEAR("linear ragged 7x31 to 33", X2(7, 31), W2(33, 31), B(33), 0),
    LINEAR("linear no bias, 3 dimensions, 71 to 7", X3(3, 11, 71), W2(7, 71), NONE, 71),
    LINEAR("linear 71 rows of 33 to 1", X2(71, 33), W2(1, 33), B(1), 71),
    LINEAR("linear of an image, 64 to 27", X4(2, 5, 7, 64), W2(27, 64), B(27), 70),
    LINEAR("linear 300 rows of 128 to 96", X2(300, 128), W2(96, 128), B(96), 300),
    LINEAR("linear without rows", X2(0, 7), W2(5, 7), B(5), 0),
    {.op = II_OP_linear,
     .name = "linear used twice",
     .in = {X2(33, 7), W2(31, 7), B(31)},
     .call = linear_twice,
     .flags = CASE_COMPOSITE,
     .terms = 66},
    LINEAR_GELU("1x1 to 1", X2(1, 1), W2(1, 1), B(1), 0),
    LINEAR_GELU("ragged 7x31 to 33", X2(7, 31), W2(33, 31), B(33), 0),
    LINEAR_GELU("of an image, 16 to 64", X4(2, 5, 7, 16), W2(64, 16), B(64), 70),
    LINEAR_GELU("no bias", X3(3, 11, 13), W2(7, 13), NONE, 0),
    LINEAR_GELU("300 rows of 8 to 200", X2(300, 8), W2(200, 8), B(200), 300, | CASE_LARGE),
    LINEAR_GELU("3 rows of 4 to 2100", X2(3, 4), W2(2100, 4), B(2100), 2100),
    LINEAR_GELU("without rows", X2(0, 7), W2(5, 7), B(5), 0),
    {.op = II_OP_linear_gelu,
     .name = "linear with gelu used twice",
     .in = {X2(33, 7), W2(31, 7), B(31)},
     .call = linear_gelu_twice,
     .flags = CASE_COMPOSITE | CASE_READS_ROUNDED,
     .terms = 66},
    BMM("bmm 1x1x1", X3(1, 1, 1), X3(1, 1, 1), 0, 1.0, 0),
    BMM("bmm ragged 7x31 by 31x33", X3(3, 7, 31), X3(3, 31, 33), 0, 0.3, 0),
    BMM("bmm transposed 33x7 by 71x7", X3(2, 33, 7), X3(2, 71, 7), 1, -1.7, 71),
    BMM("bmm 4 dimensions", X4(2, 3, 5, 16), X4(2, 3, 16, 9), 0, 1.0, 0),
    BMM("bmm 4 dimensions transposed, one row", X4(2, 3, 1, 16), X4(2, 3, 9, 16), 1, 0.25, 0),
    BMM("bmm without batch", X3(0, 3, 4), X3(0, 4, 5), 0, 1.0, 0),
    BMM("bmm with empty sums", X3(2, 3, 0), X3(2, 0, 5), 0, 1.0, 0),
    CONV("conv 1x1 on one pixel", X4(1, 1, 1, 1), W4(1, 1, 1, 1), B(1), 1, 0, 0),
    CONV("conv 1x1, 31 to 7", X4(2, 5, 7, 31), W4(7, 31, 1, 1), B(7), 1, 0, 70),
    CONV("conv 3x3 stride 1 pad 1, odd sizes", X4(2, 7, 5, 7), W4(9, 7, 3, 3), B(9), 1, 1, 81),
    CONV("conv 3x3 stride 2 pad 1, odd and even", X4(3, 7, 8, 3), W4(8, 3, 3, 3), B(8), 2, 1, 72),
    CONV("conv 3x3 stride 2 pad 1, no bias", X4(2, 8, 8, 16), W4(32, 16, 3, 3), NONE, 2, 1, 288),
    CONV("conv 3x3 stride 2, last column unused", X4(1, 6, 8, 2), W4(5, 2, 3, 3), B(5), 2, 0, 0),
    CONV("conv 2x2 stride 2", X4(1, 6, 5, 4), W4(3, 4, 2, 2), B(3), 2, 0, 0),
    CONV("conv 3x1 stride 3 pad 2", X4(1, 7, 4, 3), W4(4, 3, 3, 1), NONE, 3, 2, 0),
    CONV("conv 7x7 pad 3 on 5x4", X4(1, 5, 4, 2), W4(3, 2, 7, 7), B(3), 1, 3, 98),
    CONV("conv 3x3 stride 2 of 3 channels, groups of 8 pixels", X4(2, 7, 24, 3), W4(8, 3, 3, 3),
         B(8), 2, 1, 96),
    CONV("conv 3x3 stride 2 of 1 channel, groups of 8 pixels", X4(2, 8, 16, 1), W4(16, 1, 3, 3),
         NONE, 2, 1, 64),
    CONV("conv 3x3 stride 2 of 5 channels, groups of 8 pixels", X4(3, 5, 16, 5), W4(8, 5, 3, 3),
         B(8), 2, 1, 72),
    CONV("conv 3x3 stride 1 of 6 channels, groups of 4 pixels", X4(2, 5, 12, 6), W4(7, 6, 3, 3),
         B(7), 1, 1, 120),
    CONV("conv 4x4 stride 4 of 3 channels, groups of 8 pixels", X4(2, 8, 24, 3), W4(8, 3, 4, 4),
         B(8), 4, 0, 48),
    CONV("conv 9x9 pad 4 of 4 channels, groups of 2 pixels", X4(1, 6, 8, 4), W4(8, 4, 9, 9), B(8),
         1, 4, 121),
    CONV("conv 11x11 pad 5, too many taps for cuDNN", X4(1, 6, 8, 4), W4(8, 4, 11, 11), B(8), 1, 5,
         121),
    CONV("conv without images", X4(0, 5, 5, 3), W4(4, 3, 3, 3), B(4), 1, 1, 0),
    {.op = II_OP_conv2d,
     .name = "conv used twice",
     .in = {X4(2, 5, 5, 3), W4(4, 3, 3, 3), B(4)},
     .call = conv2d_twice,
     .flags = CASE_COMPOSITE,
     .i = {2, 1},
     .terms = 100},
    DWCONV("dwconv 1x1", X4(1, 3, 3, 5), W4(5, 1, 1, 1), B(5), 0),
    DWCONV("dwconv 3x3 ragged, 7 channels", X4(2, 5, 7, 7), W4(7, 1, 3, 3), B(7), 70),
    DWCONV("dwconv 3x3, 71 channels, no bias", X4(1, 6, 4, 71), W4(71, 1, 3, 3), NONE, 0),
    DWCONV("dwconv 3x3 on one pixel", X4(3, 1, 1, 33), W4(33, 1, 3, 3), B(33), 0),
    DWCONV("dwconv 3x3, one column", X4(1, 7, 1, 16), W4(16, 1, 3, 3), B(16), 0),
    DWCONV("dwconv 5x5 ragged, 33 channels", X4(2, 7, 6, 33), W4(33, 1, 5, 5), B(33), 84),
    DWCONV("dwconv 5x5 on 3x2", X4(1, 3, 2, 8), W4(8, 1, 5, 5), B(8), 0),
    DWCONV("dwconv 7x7, 4 channels", X4(1, 9, 5, 4), W4(4, 1, 7, 7), B(4), 0),
    DWCONV("dwconv 3x3 of a stage, 64 channels", X4(2, 14, 14, 64), W4(64, 1, 3, 3), B(64), 400),
    DWCONV("dwconv 3x3, several tiles, 36 channels", X4(3, 13, 18, 36), W4(36, 1, 3, 3), B(36),
           702),
    DWCONV("dwconv 3x3, several tiles per thread in 16 bits", X4(3, 14, 26, 64), W4(64, 1, 3, 3),
           B(64), 1092),
    DWCONV("dwconv 3x3, one channel", X4(2, 9, 5, 1), W4(1, 1, 3, 3), B(1), 90),
    DWCONV("dwconv 3x3, 66 channels", X4(2, 8, 8, 66), W4(66, 1, 3, 3), B(66), 128),
    DWCONV("dwconv 5x5, 20 channels", X4(2, 9, 10, 20), W4(20, 1, 5, 5), NONE, 180),
    DWCONV("dwconv 7x7, 24 channels", X4(2, 6, 11, 24), W4(24, 1, 7, 7), B(24), 132),
    DWCONV("dwconv 9x9, 6 channels", X4(1, 5, 5, 6), W4(6, 1, 9, 9), B(6), 81),
    DWCONV("dwconv without images", X4(0, 4, 4, 8), W4(8, 1, 3, 3), B(8), 0),
    DWCONV("dwconv without images, 9000 channels", X4(0, 1, 1, 9000), W4(9000, 1, 3, 3), B(9000),
           0),
    {.op = II_OP_dwconv2d,
     .name = "dwconv used twice",
     .in = {X4(2, 4, 5, 9), W4(9, 1, 3, 3), B(9)},
     .call = dwconv2d_twice,
     .flags = CASE_COMPOSITE,
     .terms = 80},
};

op_case_list op_cases_matrix(void) {
  return (op_case_list){cases, sizeof cases / sizeof *cases};
}
