/* Element-wise ops, residual, group mix, casts, shapes, poolings, checkpoint. */
#include "op_cases.h"

static ii_tensor *gelu(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_gelu(c, in[0]);
}
static ii_tensor *relu(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_relu(c, in[0]);
}
static ii_tensor *silu(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_silu(c, in[0]);
}
static ii_tensor *sigmoid(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_sigmoid(c, in[0]);
}

/* x is used by three consumers: its gradients accumulate in all three kernels */
static ii_tensor *activations_of_one(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *x = in[0];
  ii_tensor *a = ii_add(c, ii_gelu(c, x), ii_silu(c, x));
  return ii_add(c, a, ii_add(c, ii_relu(c, x), ii_sigmoid(c, x)));
}

static ii_tensor *residual(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_residual(c, in[0], in[1], in[2], in[3]);
}

static ii_tensor *add(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_add(c, in[0], in[1]);
}

static ii_tensor *add_itself(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_add(c, in[0], in[0]);
}

static ii_tensor *group_mix(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_group_mix(c, in[0], in[1], in[2]);
}

static ii_tensor *group_mix_one(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_group_mix(c, in[0], in[0], in[1]);
}

static ii_tensor *bmm_with_itself(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_bmm(c, in[0], in[0], true, 0.5);
}

static ii_tensor *mean_pool(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_mean_pool(c, in[0]);
}

static ii_tensor *avg_pool(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_avg_pool2d(c, in[0], (int)k->i[0], (int)k->i[1], (int)k->i[2]);
}

static ii_tensor *max_pool(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_max_pool2d(c, in[0], (int)k->i[0], (int)k->i[1], (int)k->i[2]);
}

static ii_tensor *transpose(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_transpose(c, in[0]);
}

static ii_tensor *pixel_shuffle(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_pixel_shuffle(c, in[0], (int)k->i[0]);
}

/* f1 + f2 of one input, whatever they are: the second gradient accumulates */
static ii_tensor *shapes_of_one(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  const int64_t flat[] = {-1};
  ii_tensor *a = ii_reshape(c, ii_transpose(c, in[0]), 1, flat);
  ii_tensor *b = ii_reshape(c, ii_pixel_shuffle(c, in[0], 2), 1, flat);
  ii_tensor *d = ii_reshape(c, ii_max_pool2d(c, in[0], 1, 1, 0), 1, flat);
  ii_tensor *e = ii_reshape(c, ii_avg_pool2d(c, in[0], 1, 1, 0), 1, flat);
  return ii_add(c, ii_add(c, a, b), ii_add(c, d, e));
}

static ii_tensor *mean_pool_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = ii_mean_pool(c, in[0]);
  return ii_add(c, once, ii_mean_pool(c, in[0]));
}

/* there and back: f64 has nothing to cast to and gets the identity */
static ii_tensor *cast(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *x = in[0];
  if (c->compute == II_F64) return ii_cast(c, ii_cast(c, x, II_F32), II_F64);
  return ii_cast(c, x, x->dtype == II_F32 ? II_BF16 : II_F32);
}

/* two casts of one tensor: the second gradient accumulates */
static ii_tensor *cast_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = cast(c, in, k);
  return ii_add(c, once, cast(c, in, k));
}

static ii_tensor *reshape(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  const int64_t shape[] = {k->i[0], -1};
  return ii_reshape(c, in[0], 2, shape);
}

static ii_tensor *slice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_slice(c, in[0], k->i[0], k->i[1]);
}

/* overlapping: the gradient of what both took accumulates */
static ii_tensor *two_slices(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_add(c, ii_slice(c, in[0], 3, 9), ii_slice(c, in[0], 8, 9));
}

static ii_tensor *concat(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_concat(c, in[0], in[1]);
}

static ii_tensor *concat_itself(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_concat(c, in[0], in[0]);
}

static ii_tensor *block(ii_ctx *c, ii_tensor *x, const void *user) {
  ii_tensor *const *p = user;
  ii_scope s = ii_scope_begin(c);
  ii_tensor *h = ii_gelu(c, ii_linear(c, x, p[1], p[2]));
  return ii_scope_return(c, s, ii_residual(c, x, h, NULL, NULL));
}

/* the op's inputs outlive the backward that runs the block again: `in` belongs to the runner */
static ii_tensor *checkpoint(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_checkpoint(c, in[0], block, in);
}

#define X(kind, draw, a, b)                                                                        \
  { kind, draw, 2, {a, b}, 0 }
#define X2(a, b) X(IN_ACT, DRAW_NORMAL, a, b)
#define WIDE(a, b)                                                                                 \
  { IN_ACT, DRAW_NORMAL, 2, {a, b}, 5 }
#define X3(a, b, c)                                                                                \
  { IN_ACT, DRAW_NORMAL, 3, {a, b, c}, 0 }
#define X4(a, b, c, d)                                                                             \
  { IN_ACT, DRAW_NORMAL, 4, {a, b, c, d}, 0 }
#define SPREAD(a, b, c, d)                                                                         \
  { IN_ACT, DRAW_SPREAD, 4, {a, b, c, d}, 0 }
#define REAL4(a, b, c, d)                                                                          \
  { IN_REAL, DRAW_NORMAL, 4, {a, b, c, d}, 0 }
#define GAMMA(a)                                                                                   \
  { IN_PARAM, DRAW_NORMAL, 1, {a}, 0 }
#define KEEP(a)                                                                                    \
  { IN_CONST, DRAW_POSITIVE, 1, {a}, 0 }
#define NONE                                                                                       \
  { IN_NONE, 0, 0, {0}, 0 }

/* kernels start a second thread at about 32768 elements, and work in pieces of 1024 */
#define LARGE .flags = CASE_LARGE

#define UNARY(kind, title, x, ...)                                                                 \
  { .op = II_OP_##kind, .name = title, .in = {x}, .call = kind, __VA_ARGS__ }
#define RESIDUAL(title, x, f, gamma, keep, n)                                                      \
  { .op = II_OP_residual, .name = title, .in = {x, f, gamma, keep}, .call = residual, .terms = n }
#define MIX(title, rows, G, D, ...)                                                                \
  {                                                                                                \
    .op = II_OP_group_mix, .name = title,                                                          \
    .in = {X2(rows, (G) * (D)), X2(rows, (G) * (D)), X2(rows, G)}, .call = group_mix, __VA_ARGS__  \
  }
#define POOL(kind, title, x, k, stride, pad)                                                       \
  {                                                                                                \
    .op = II_OP_##kind##_pool2d, .name = title, .in = {x}, .call = kind##_pool, .i = {             \
      k,                                                                                           \
      stride,                                                                                      \
      pad                                                                                          \
    }                                                                                              \
  }

static const op_case cases[] = {
    UNARY(gelu, "gelu of 1", X2(1, 1)),
    UNARY(gelu, "gelu 31x33", WIDE(31, 33)),
    UNARY(gelu, "gelu of nothing", X2(0, 3)),
    UNARY(relu, "relu 31x33", X(IN_ACT, DRAW_AWAY, 31, 33)),
    UNARY(relu, "relu of nothing", X2(0, 3)),
    UNARY(silu, "silu 7x71", WIDE(7, 71)),
    UNARY(silu, "silu of nothing", X2(0, 3)),
    UNARY(sigmoid, "sigmoid 7x71", WIDE(7, 71), .flags = CASE_READS_ROUNDED),
    UNARY(sigmoid, "sigmoid of nothing", X2(0, 3)),
    {.op = II_OP_gelu,
     .name = "four functions of one tensor",
     .in = {X(IN_ACT, DRAW_AWAY, 33, 31)},
     .call = activations_of_one,
     .flags = CASE_COMPOSITE | CASE_READS_ROUNDED},
    UNARY(gelu, "gelu 33x1025", X2(33, 1025), LARGE),
    UNARY(relu, "relu 33x1025", X(IN_ACT, DRAW_AWAY, 33, 1025), LARGE),
    UNARY(silu, "silu 33x1025", X2(33, 1025), LARGE),
    UNARY(sigmoid, "sigmoid 33x1025", X2(33, 1025), .flags = CASE_LARGE | CASE_READS_ROUNDED),
    RESIDUAL("residual, plain", REAL4(2, 3, 5, 7), X4(2, 3, 5, 7), NONE, NONE, 0),
    RESIDUAL("residual, layer scale", REAL4(2, 3, 5, 31), X4(2, 3, 5, 31), GAMMA(31), NONE, 0),
    RESIDUAL("residual, drop path", REAL4(3, 3, 2, 33), X4(3, 3, 2, 33), NONE, KEEP(3), 0),
    RESIDUAL("residual, both", REAL4(3, 7, 5, 71), X4(3, 7, 5, 71), GAMMA(71), KEEP(3), 105),
    RESIDUAL("residual, one number", REAL4(1, 1, 1, 1), X4(1, 1, 1, 1), GAMMA(1), KEEP(1), 0),
    RESIDUAL("residual without images", REAL4(0, 2, 2, 8), X4(0, 2, 2, 8), GAMMA(8), KEEP(0), 0),
    {.op = II_OP_residual,
     .name = "residual, both, 3x19x19x33",
     .in = {REAL4(3, 19, 19, 33), X4(3, 19, 19, 33), GAMMA(33), KEEP(3)},
     .call = residual,
     .flags = CASE_LARGE,
     .terms = 1083},
    {.op = II_OP_add,
     .name = "add 33x1025",
     .in = {X2(33, 1025), X2(33, 1025)},
     .call = add,
     .flags = CASE_LARGE},
    {.op = II_OP_add, .name = "add 31x33", .in = {X2(31, 33), X2(31, 33)}, .call = add},
    {.op = II_OP_add,
     .name = "add of one tensor to itself",
     .in = {X2(7, 5)},
     .call = add_itself,
     .flags = CASE_COMPOSITE},
    {.op = II_OP_add, .name = "add of nothing", .in = {X2(0, 5), X2(0, 5)}, .call = add},
    MIX("group mix, 7 rows, 3 groups of 5", 7, 3, 5),
    MIX("group mix, 33 rows, 4 groups of 16", 33, 4, 16),
    MIX("group mix, 1 group of 71", 5, 1, 71, .terms = 71),
    MIX("group mix, 31 groups of 1", 5, 31, 1),
    MIX("group mix without rows", 0, 2, 4),
    MIX("group mix, 365 rows, 9 groups of 11", 365, 9, 11, LARGE),
    {.op = II_OP_mean_pool,
     .name = "mean pool 3x11x11x97",
     .in = {X4(3, 11, 11, 97)},
     .call = mean_pool,
     .flags = CASE_LARGE,
     .terms = 121},
    {.op = II_OP_group_mix,
     .name = "group mix of one tensor with itself",
     .in = {X2(7, 6), X2(7, 2)},
     .call = group_mix_one,
     .flags = CASE_COMPOSITE},
    {.op = II_OP_bmm,
     .name = "bmm of one tensor",
     .in = {X3(2, 7, 5)},
     .call = bmm_with_itself,
     .flags = CASE_COMPOSITE},
    {.op = II_OP_mean_pool,
     .name = "mean pool 3x7x5x31",
     .in = {X4(3, 7, 5, 31)},
     .call = mean_pool},
    {.op = II_OP_mean_pool, .name = "mean pool 2x71x33", .in = {X3(2, 71, 33)}, .call = mean_pool},
    {.op = II_OP_mean_pool,
     .name = "mean pool of one pixel",
     .in = {X3(2, 1, 7)},
     .call = mean_pool},
    {.op = II_OP_mean_pool, .name = "mean pool, no images", .in = {X3(0, 3, 7)}, .call = mean_pool},
    {.op = II_OP_mean_pool,
     .name = "mean pool used twice",
     .in = {X3(2, 9, 7)},
     .call = mean_pool_twice,
     .flags = CASE_COMPOSITE},
    POOL(avg, "avg pool 2x2 stride 2", X4(2, 6, 4, 7), 2, 2, 0),
    POOL(avg, "avg pool 3x3 stride 2 pad 1, odd", X4(1, 7, 5, 33), 3, 2, 1),
    POOL(avg, "avg pool 3x3 stride 1 pad 1", X4(2, 3, 4, 5), 3, 1, 1),
    POOL(avg, "avg pool 2x2 stride 3, gaps", X4(1, 8, 7, 3), 2, 3, 0),
    {.op = II_OP_avg_pool2d,
     .name = "avg pool 3x3 stride 2 pad 1, 2x71x31x37",
     .in = {X4(2, 71, 31, 37)},
     .call = avg_pool,
     .i = {3, 2, 1},
     .flags = CASE_LARGE},
    {.op = II_OP_max_pool2d,
     .name = "max pool 3x3 stride 2 pad 1, 1x3x3x57",
     .in = {SPREAD(1, 3, 3, 57)},
     .call = max_pool,
     .i = {3, 2, 1}},
    POOL(avg, "avg pool without images", X4(0, 4, 4, 3), 2, 2, 0),
    POOL(max, "max pool 2x2 stride 2", SPREAD(2, 6, 4, 7), 2, 2, 0),
    POOL(max, "max pool 3x3 stride 2 pad 1, odd", SPREAD(1, 7, 5, 9), 3, 2, 1),
    POOL(max, "max pool 3x3 stride 1 pad 1", SPREAD(2, 3, 4, 5), 3, 1, 1),
    POOL(max, "max pool 2x2 stride 3, gaps", SPREAD(1, 8, 7, 3), 2, 3, 0),
    POOL(max, "max pool without images", SPREAD(0, 4, 4, 3), 2, 2, 0),
    UNARY(transpose, "transpose 2x3x5x7", X4(2, 3, 5, 7)),
    UNARY(transpose, "transpose 1x31x33x1", X4(1, 31, 33, 1)),
    UNARY(transpose, "transpose 2x7x1x64", X4(2, 7, 1, 64)),
    UNARY(transpose, "transpose 3x31x33x11", X4(3, 31, 33, 11), LARGE),
    UNARY(transpose, "transpose of nothing", X4(2, 0, 3, 4)),
    UNARY(pixel_shuffle, "pixel shuffle by 2", X4(2, 3, 5, 28), .i = {2}),
    UNARY(pixel_shuffle, "pixel shuffle by 3", X4(1, 2, 1, 9), .i = {3}),
    UNARY(pixel_shuffle, "pixel shuffle by 1", X4(1, 2, 3, 5), .i = {1}),
    UNARY(pixel_shuffle, "pixel shuffle by 2, 2x13x11x116", X4(2, 13, 11, 116), .i = {2}, LARGE),
    UNARY(pixel_shuffle, "pixel shuffle of nothing", X4(0, 2, 3, 8), .i = {2}),
    {.op = II_OP_transpose,
     .name = "four shapes of one tensor",
     .in = {SPREAD(2, 2, 2, 8)},
     .call = shapes_of_one,
     .flags = CASE_COMPOSITE | CASE_WHOLE_BATCH},
    UNARY(cast, "cast 31x33", X2(31, 33)),
    {.op = II_OP_cast,
     .name = "two casts of one tensor",
     .in = {X2(7, 33)},
     .call = cast_twice,
     .flags = CASE_COMPOSITE},
    UNARY(cast, "cast 33x1025", X2(33, 1025), LARGE),
    UNARY(cast, "cast of nothing", X2(0, 3)),
    UNARY(reshape, "reshape 6x7", X2(6, 7), .i = {3}, .flags = CASE_WHOLE_BATCH),
    UNARY(slice, "slice 0 + 5 of 31", X2(7, 31), .i = {0, 5}),
    UNARY(slice, "slice 30 + 1 of 31", X3(2, 3, 31), .i = {30, 1}),
    UNARY(slice, "slice of everything", X2(33, 7), .i = {0, 7}),
    UNARY(slice, "slice 33 + 71 of 128, 471 rows", X2(471, 128), .i = {33, 71}, LARGE),
    UNARY(slice, "slice of no column", X2(3, 7), .i = {2, 0}),
    UNARY(slice, "slice without rows", X2(0, 7), .i = {2, 3}),
    {.op = II_OP_slice,
     .name = "two slices added",
     .in = {X2(5, 31)},
     .call = two_slices,
     .flags = CASE_COMPOSITE},
    {.op = II_OP_concat, .name = "concat 7 and 31", .in = {X2(5, 7), X2(5, 31)}, .call = concat},
    {.op = II_OP_concat,
     .name = "concat with no column",
     .in = {X2(5, 7), X2(5, 0)},
     .call = concat},
    {.op = II_OP_concat,
     .name = "concat with itself",
     .in = {X2(5, 7)},
     .call = concat_itself,
     .flags = CASE_COMPOSITE},
    {.op = II_OP_concat, .name = "concat without rows", .in = {X2(0, 7), X2(0, 3)}, .call = concat},
    {.op = II_OP_checkpoint,
     .name = "checkpoint of a residual block",
     .in = {{IN_REAL, DRAW_NORMAL, 2, {5, 7}, 0},
            {IN_PARAM, DRAW_NORMAL, 2, {7, 7}, 0},
            {IN_PARAM, DRAW_NORMAL, 1, {7}, 0}},
     .call = checkpoint,
     .flags = CASE_COMPOSITE},
};

op_case_list op_cases_simple(void) {
  return (op_case_list){cases, sizeof cases / sizeof *cases};
}
