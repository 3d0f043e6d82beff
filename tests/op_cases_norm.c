/* Layer norm, batch norm, softmax, cross entropies. */
#include "op_cases.h"

/* the result type of layer norm and softmax: k->i[1] says compute, otherwise real */
static ii_dtype out_type(const ii_ctx *c, const op_case *k) {
  return k->i[1] ? c->compute : c->real;
}

static ii_tensor *layer_norm(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_layer_norm(c, in[0], in[1], in[2], k->f[0], (ii_act)k->i[0], out_type(c, k));
}

static ii_tensor *layer_norm_twice(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *once = layer_norm(c, in, k);
  return ii_add(c, once, layer_norm(c, in, k));
}

static ii_tensor *norm_residual(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_norm_residual(c, in[0], in[1], in[2], in[3], k->f[0], in[4], in[5]);
}

/* Both outputs count: i[0] 0 the norm alone, 1 the sum alone, 2 their sum. */
static ii_tensor *residual_norm(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  ii_tensor *sum, *y = ii_residual_norm(c, in[0], in[1], in[4], in[2], in[3], k->f[0], &sum);
  if (k->i[0] == 0) return y;
  return k->i[0] == 1 ? sum : ii_add(c, ii_cast(c, y, c->real), sum);
}

static ii_tensor *batch_norm(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_batch_norm(c, in[0], in[1], in[2], in[3], in[4], k->f[0], k->f[1]);
}

static ii_tensor *softmax(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_softmax(c, in[0], out_type(c, k));
}

static ii_tensor *soft_ce(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_soft_cross_entropy(c, in[0], in[1]);
}

static ii_tensor *smooth_ce(ii_ctx *c, ii_tensor *const *in, const op_case *k) {
  return ii_smooth_cross_entropy(c, in[0], in[1], k->f[0]);
}

#define X2(a, b)                                                                                   \
  { IN_ACT, DRAW_NORMAL, 2, {a, b}, 0 }
#define X4(a, b, c, d)                                                                             \
  { IN_ACT, DRAW_NORMAL, 4, {a, b, c, d}, 0 }
#define WIDE(a, b, s)                                                                              \
  { IN_ACT, DRAW_NORMAL, 2, {a, b}, s }
#define VEC(a)                                                                                     \
  { IN_PARAM, DRAW_NORMAL, 1, {a}, 0 }
#define MEAN(a)                                                                                    \
  { IN_STATE, DRAW_NORMAL, 1, {a}, 0 }
#define VAR(a)                                                                                     \
  { IN_STATE, DRAW_POSITIVE, 1, {a}, 0 }

enum { REAL_OUT, COMPUTE_OUT };

#define LN(title, x, C, act, out)                                                                  \
  {                                                                                                \
    .op = II_OP_layer_norm, .name = title, .in = {x, VEC(C), VEC(C)}, .call = layer_norm,          \
    .i = {act, out}, .f = {1e-6}, .terms = 128                                                     \
  }
/* enough elements for several threads */
#define LARGE_LN(title, x, C, act, out)                                                            \
  {                                                                                                \
    .op = II_OP_layer_norm, .name = title, .in = {x, VEC(C), VEC(C)}, .call = layer_norm,          \
    .i = {act, out}, .f = {1e-6}, .flags = CASE_LARGE, .terms = 521                                \
  }
#define NONE                                                                                       \
  { IN_NONE, 0, 0, {0}, 0 }
#define REAL3(a, b, c)                                                                             \
  { IN_REAL, DRAW_NORMAL, 3, {a, b, c}, 0 }
#define X3(a, b, c)                                                                                \
  { IN_ACT, DRAW_NORMAL, 3, {a, b, c}, 0 }
#define KEEP(a)                                                                                    \
  { IN_CONST, DRAW_POSITIVE, 1, {a}, 0 }
#define BRANCH(title, N, rows, C, scale, keep, large)                                              \
  {                                                                                                \
    .op = II_OP_norm_residual, .name = title,                                                      \
    .in = {REAL3(N, rows, C), X3(N, rows, C), VEC(C), VEC(C), scale, keep}, .call = norm_residual, \
    .f = {1e-6}, .flags = large, .terms = (N) * (rows) > 64 ? (N) * (rows) : 128                   \
  }
#define AFTER(title, N, rows, C, keep, what, large)                                                \
  {                                                                                                \
    .op = II_OP_residual_norm, .name = title,                                                      \
    .in = {REAL3(N, rows, C), X3(N, rows, C), VEC(C), VEC(C), keep}, .call = residual_norm,        \
    .i = {what}, .f = {1e-6}, .flags = large, .terms = (N) * (rows) > 64 ? (N) * (rows) : 128      \
  }
#define BN(title, x, C, mode)                                                                      \
  {                                                                                                \
    .op = II_OP_batch_norm, .name = title, .in = {x, VEC(C), VEC(C), MEAN(C), VAR(C)},             \
    .call = batch_norm, .f = {1e-5, 0.1}, .flags = CASE_WHOLE_BATCH | mode, .terms = 1100          \
  }
#define SOFTMAX(title, x, out)                                                                     \
  {                                                                                                \
    .op = II_OP_softmax, .name = title, .in = {x}, .call = softmax, .i = {0, out},                 \
    .flags = CASE_READS_ROUNDED                                                                    \
  }
#define LARGE_SOFTMAX(title, x)                                                                    \
  {                                                                                                \
    .op = II_OP_softmax, .name = title, .in = {x}, .call = softmax,                                \
    .flags = CASE_READS_ROUNDED | CASE_LARGE                                                       \
  }
#define SOFT_CE(title, N, C, x)                                                                    \
  {                                                                                                \
    .op = II_OP_soft_ce, .name = title, .in = {x, {IN_CONST, DRAW_SIMPLEX, 2, {N, C}, 0}},         \
    .call = soft_ce, .flags = CASE_WHOLE_BATCH | ((N) * (C) > 30000 ? CASE_LARGE : 0),             \
    .terms = 1000                                                                                  \
  }
#define SMOOTH_CE(title, N, C, e, x)                                                               \
  {                                                                                                \
    .op = II_OP_smooth_ce, .name = title, .in = {x, {IN_LABELS, DRAW_LABELS, 1, {N}, C}},          \
    .call = smooth_ce, .f = {e}, .flags = CASE_WHOLE_BATCH | ((N) * (C) > 30000 ? CASE_LARGE : 0), \
    .terms = 1000                                                                                  \
  }

static const op_case cases[] = {
    LN("layer norm 7x31", X2(7, 31), 31, II_ACT_NONE, REAL_OUT),
    LN("layer norm 71x33 with gelu", X2(71, 33), 33, II_ACT_GELU, REAL_OUT),
    LN("layer norm 3x2x5x64, compute type out", X4(3, 2, 5, 64), 64, II_ACT_NONE, COMPUTE_OUT),
    LN("layer norm 33x112 with gelu, compute type out", X2(33, 112), 112, II_ACT_GELU, COMPUTE_OUT),
    /* without a large eps the result is a sign, and steep */
    {.op = II_OP_layer_norm,
     .name = "layer norm of 2 channels",
     .in = {X2(5, 2), VEC(2), VEC(2)},
     .call = layer_norm,
     .f = {0.5}},
    LN("layer norm one row of 1025", X2(1, 1025), 1025, II_ACT_NONE, REAL_OUT),
    LARGE_LN("layer norm 521x71 with gelu", X2(521, 71), 71, II_ACT_GELU, COMPUTE_OUT),
    LARGE_LN("layer norm 271x128", X2(271, 128), 128, II_ACT_NONE, REAL_OUT),
    LN("layer norm without rows", X2(0, 16), 16, II_ACT_GELU, REAL_OUT),
    {.op = II_OP_layer_norm,
     .name = "layer norm of one channel is beta",
     .in = {X2(7, 1), VEC(1), VEC(1)},
     .call = layer_norm,
     .f = {1e-6}},
    {.op = II_OP_layer_norm,
     .name = "layer norm used twice",
     .in = {X2(31, 7), VEC(7), VEC(7)},
     .call = layer_norm_twice,
     .flags = CASE_COMPOSITE,
     .i = {II_ACT_GELU, REAL_OUT},
     .f = {1e-6},
     .terms = 128},
    BRANCH("norm residual 2x7x31, plain", 2, 7, 31, NONE, NONE, 0),
    BRANCH("norm residual 3x5x64, layer scale", 3, 5, 64, VEC(64), NONE, 0),
    BRANCH("norm residual 5x3x33, drop path", 5, 3, 33, NONE, KEEP(5), 0),
    BRANCH("norm residual 3x7x112, both", 3, 7, 112, VEC(112), KEEP(3), 0),
    BRANCH("norm residual 1x1x1025, both", 1, 1, 1025, VEC(1025), KEEP(1), 0),
    BRANCH("norm residual 7x74x71, both", 7, 74, 71, VEC(71), KEEP(7), CASE_LARGE),
    BRANCH("norm residual without images", 0, 4, 16, VEC(16), KEEP(0), 0),
    AFTER("residual norm 2x7x31, plain", 2, 7, 31, NONE, 0, 0),
    AFTER("residual norm 5x3x33, drop path", 5, 3, 33, KEEP(5), 0, 0),
    AFTER("residual norm 3x7x112, both outputs", 3, 7, 112, KEEP(3), 2, 0),
    AFTER("residual norm 3x5x64, both outputs, plain", 3, 5, 64, NONE, 2, 0),
    AFTER("residual norm 2x3x17, the sum alone", 2, 3, 17, KEEP(2), 1, 0),
    AFTER("residual norm 1x1x1025, both outputs", 1, 1, 1025, KEEP(1), 2, 0),
    AFTER("residual norm 7x74x71, both outputs", 7, 74, 71, KEEP(7), 2, CASE_LARGE),
    AFTER("residual norm without images", 0, 4, 16, KEEP(0), 2, 0),
    BN("batch norm, training, 2x3x5x7", X4(2, 3, 5, 7), 7, CASE_TRAINING),
    BN("batch norm, training, 71x33", X2(71, 33), 33, CASE_TRAINING),
    /* without a large eps the result is a sign, and its gradient only rounding */
    {.op = II_OP_batch_norm,
     .name = "batch norm, training, 2 rows of 1",
     .in = {X2(2, 1), VEC(1), VEC(1), MEAN(1), VAR(1)},
     .call = batch_norm,
     .f = {0.5, 0.1},
     .flags = CASE_WHOLE_BATCH | CASE_TRAINING},
    BN("batch norm, training, 1100x33", X2(1100, 33), 33, CASE_TRAINING | CASE_LARGE),
    BN("batch norm, evaluation, 1100x33", X2(1100, 33), 33, CASE_LARGE),
    BN("batch norm, evaluation, 2x3x5x7", X4(2, 3, 5, 7), 7, 0),
    BN("batch norm, evaluation, one row of 31", X2(1, 31), 31, 0),
    BN("batch norm, evaluation, without rows", X2(0, 5), 5, 0),
    SOFTMAX("softmax 7x31", X2(7, 31), REAL_OUT),
    SOFTMAX("softmax 2x3x5x9, compute type out", X4(2, 3, 5, 9), COMPUTE_OUT),
    SOFTMAX("softmax of 1", X2(5, 1), REAL_OUT),
    SOFTMAX("softmax of 1025", X2(2, 1025), REAL_OUT),
    LARGE_SOFTMAX("softmax 521x71", X2(521, 71)),
    LARGE_SOFTMAX("softmax 3700x9", X2(3700, 9)),
    SOFTMAX("softmax of large logits", WIDE(33, 71, 20), REAL_OUT),
    SOFTMAX("softmax without rows", X2(0, 9), REAL_OUT),
    SOFT_CE("soft cross entropy 7x31", 7, 31, X2(7, 31)),
    SOFT_CE("soft cross entropy 1x1000", 1, 1000, X2(1, 1000)),
    SOFT_CE("soft cross entropy 71x513", 71, 513, X2(71, 513)),
    SOFT_CE("soft cross entropy of large logits", 5, 33, WIDE(5, 33, 30)),
    SOFT_CE("soft cross entropy, one class", 3, 1, X2(3, 1)),
    SOFT_CE("soft cross entropy without samples", 0, 7, X2(0, 7)),
    SMOOTH_CE("smooth cross entropy 7x31", 7, 31, 0.1, X2(7, 31)),
    SMOOTH_CE("smooth cross entropy 33x10, no smoothing", 33, 10, 0.0, X2(33, 10)),
    SMOOTH_CE("smooth cross entropy 71x513", 71, 513, 0.1, X2(71, 513)),
    SMOOTH_CE("smooth cross entropy of large logits", 5, 33, 0.3, WIDE(5, 33, 30)),
    SMOOTH_CE("smooth cross entropy without samples", 0, 7, 0.1, X2(0, 7)),
};

op_case_list op_cases_norm(void) {
  return (op_case_list){cases, sizeof cases / sizeof *cases};
}
