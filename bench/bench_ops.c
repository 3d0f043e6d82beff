/* Times every op of autograd/ops.def, forward and backward, at shapes of the published models.
 *
 *   bench_ops [--device cpu|cuda[:N]] [--batch 8] [--repeat 15] [--threads N]
 *             [--dtype f32|bf16|f16|f64]... [--only OP]... [--flush MIB] [--shapes N] [--list]
 *
 * JSON lines. The first ones give the two limits of the machine, measured here: the bandwidth of a
 * copy (bytes read + bytes written) and the best GFLOP/s of a large matrix multiplication. Then one
 * line for each op, shape and compute type: milliseconds (median, least, 90th percentile), the
 * bytes that have to move at least, and both rates, also as percentages of the limits. Before every
 * timed call the caches are filled with other data (--flush MIB of it, 0 = warm caches). On a GPU
 * the times are those between two events on its stream. --shapes N: the first N shapes of each op.
 *
 * --list prints the ops and their numbers of shapes, and fails when an op has none: that is how a
 * test notices an op that was added without a benchmark. */
#include <stdbool.h>
#include <unistd.h>
#include "autograd/op_common.h"
#include "autograd/param.h"
#include "bench/measure_device.h"
#include "train/process.h"

#define MAX_IN     6
#define MAX_SHAPES 24
#define MAX_REPEAT 1000

typedef struct {
  ii_device device;
  int index, batch, repeat, threads, flush_mib, shapes;
  bool list, dtype[II_DTYPE_COUNT], only[II_OP_COUNT], any_only;
} options;

/* One op on one shape. build fills it, run computes the op from it. */
typedef struct problem {
  ii_ctx *c;
  ii_params params; /* weights, so that they have bf16 copies and gradients as in a model */
  int64_t N;        /* images */
  ii_tensor *in[MAX_IN];
  ii_dcn_geometry dcn;
  int stride, pad;
  bool flag;
  double flop; /* of the forward, matrix-like ops only */
  char shape[96];
} problem;

typedef struct {
  int64_t d[5];
} dims;

typedef struct {
  void (*build)(problem *p, const int64_t *d); /* d: the numbers of one row of shapes */
  ii_tensor *(*run)(problem *p);
  dims shapes[MAX_SHAPES]; /* up to the first that is all zero */
} op_bench;

static void fail(const char *why) {
  fprintf(stderr, "bench_ops: %s\n", why);
  exit(1);
}

/* ---- inputs ---- */

static void fill_normal(ii_ctx *c, ii_tensor *t, double sd) {
  const int64_t n = ii_numel(t);
  if (ii_ok(c)) measure_fill_normal(&c->k, ii_data(t), t->dtype, n, sd, (uint64_t)n);
}

static ii_tensor *activation(problem *p, ii_dtype type, int ndim, const int64_t *shape) {
  ii_tensor *t = ii_tensor_new(p->c, type, ndim, shape);
  if (!ii_ok(p->c)) fail(p->c->err.text);
  fill_normal(p->c, t, 1);
  t->needs_grad = true;
  return t;
}

static ii_tensor *image(problem *p, ii_dtype type, int64_t side, int64_t channels) {
  return activation(p, type, 4, (int64_t[]){p->N, side, side, channels});
}

static ii_tensor *matrix(problem *p, ii_dtype type, int64_t rows, int64_t columns) {
  return activation(p, type, 2, (int64_t[]){rows, columns});
}

static ii_tensor *weight(problem *p, int ndim, const int64_t *shape) {
  char name[16];
  snprintf(name, sizeof name, "w%d", (int)p->params.count);
  ii_tensor *t = ii_params_add(&p->params, name, ndim, shape);
  if (!t) fail(p->c->err.text);
  fill_normal(p->c, t, 0.1);
  return t;
}

static ii_tensor *vector(problem *p, int64_t n) {
  return weight(p, 1, &n);
}

static void describe(problem *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void describe(problem *p, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(p->shape, sizeof p->shape, fmt, ap);
  va_end(ap);
}

#define LL(x) ((long long)(x))

static void describe_image(problem *p, const char *more) {
  const int64_t *s = p->in[0]->shape;
  describe(p, "%lldx%lldx%lldx%lld%s", LL(s[0]), LL(s[1]), LL(s[2]), LL(s[3]), more);
}

static void describe_rows(problem *p, const char *more) {
  describe(p, "%lldx%lld%s", LL(ii_rows(p->in[0])), LL(ii_last(p->in[0])), more);
}

/* ---- matrix-like ops ---- */

/* side of the image (0: one row per image), in, out */
static void build_linear(problem *p, const int64_t *d) {
  p->in[0] = matrix(p, p->c->compute, p->N * (d[0] ? d[0] * d[0] : 1), d[1]);
  p->in[1] = weight(p, 2, (int64_t[]){d[2], d[1]});
  p->in[2] = vector(p, d[2]);
  p->flop = 2.0 * (double)(ii_rows(p->in[0]) * d[1] * d[2]);
  describe(p, "%lldx%lld -> %lld", LL(ii_rows(p->in[0])), LL(d[1]), LL(d[2]));
}
static ii_tensor *run_linear(problem *p) {
  return ii_linear(p->c, p->in[0], p->in[1], p->in[2]);
}

static ii_tensor *run_linear_gelu(problem *p) {
  return ii_linear_gelu(p->c, p->in[0], p->in[1], p->in[2]);
}

/* side, in, out, kernel, stride; the images themselves (3 channels) need no gradient */
static void build_conv2d(problem *p, const int64_t *d) {
  p->in[0] = image(p, p->c->compute, d[0], d[1]);
  p->in[0]->needs_grad = d[1] > 3;
  p->in[1] = weight(p, 4, (int64_t[]){d[2], d[1], d[3], d[3]});
  p->stride = (int)d[4];
  p->pad = (int)(d[3] / 2);
  int64_t out = (d[0] + 2 * p->pad - d[3]) / d[4] + 1;
  p->flop = 2.0 * (double)(p->N * out * out * d[1] * d[2] * d[3] * d[3]);
  char more[48];
  snprintf(more, sizeof more, " -> %lld, %lldx%lld, stride %d", LL(d[2]), LL(d[3]), LL(d[3]),
           p->stride);
  describe_image(p, more);
}
static ii_tensor *run_conv2d(problem *p) {
  return ii_conv2d(p->c, p->in[0], p->in[1], NULL, p->stride, p->pad);
}

/* side, channels, kernel */
static void build_dwconv2d(problem *p, const int64_t *d) {
  p->in[0] = image(p, p->c->compute, d[0], d[1]);
  p->in[1] = weight(p, 4, (int64_t[]){d[1], 1, d[2], d[2]});
  p->in[2] = vector(p, d[1]);
  p->flop = 2.0 * (double)(ii_numel(p->in[0]) * d[2] * d[2]);
  describe_image(p, d[2] == 3 ? ", 3x3" : ", 5x5");
}
static ii_tensor *run_dwconv2d(problem *p) {
  return ii_dwconv2d(p->c, p->in[0], p->in[1], p->in[2]);
}

/* heads, M, K, N, trans_b */
static void build_bmm(problem *p, const int64_t *d) {
  const int64_t b = p->N * d[0];
  p->in[0] = activation(p, p->c->compute, 3, (int64_t[]){b, d[1], d[2]});
  p->flag = d[4];
  p->in[1] = activation(p, p->c->compute, 3,
                        p->flag ? (int64_t[]){b, d[3], d[2]} : (int64_t[]){b, d[2], d[3]});
  p->flop = 2.0 * (double)(b * d[1] * d[2] * d[3]);
  describe(p, "%lld of %lldx%lld * %lldx%lld%s", LL(b), LL(d[1]), LL(d[2]), LL(d[2]), LL(d[3]),
           p->flag ? " transposed" : "");
}
static ii_tensor *run_bmm(problem *p) {
  return ii_bmm(p->c, p->in[0], p->in[1], p->flag, 1);
}

/* side, channels, groups; offsets of half a pixel as in trained models */
static void build_dcn(problem *p, const int64_t *d) {
  p->in[0] = image(p, p->c->compute, d[0], d[1]);
  p->dcn = (ii_dcn_geometry){.groups = (int)d[2],
                             .kernel_h = 3,
                             .kernel_w = 3,
                             .stride_h = 1,
                             .stride_w = 1,
                             .pad_h = 1,
                             .pad_w = 1,
                             .dilation_h = 1,
                             .dilation_w = 1,
                             .offset_scale = 1};
  /* as the authors count: 5 multiply-adds per tap and channel */
  p->flop = 10.0 * 9 * (double)ii_numel(p->in[0]);
  char more[32];
  snprintf(more, sizeof more, ", %lld groups", LL(d[2]));
  describe_image(p, more);
}
static void build_dcnv3(problem *p, const int64_t *d) {
  build_dcn(p, d);
  p->dcn.softmax = true;
  p->in[1] = image(p, p->c->compute, d[0], (d[2] * 27 + 7) / 8 * 8);
  fill_normal(p->c, p->in[1], 0.5);
}
static void build_dcnv4(problem *p, const int64_t *d) {
  build_dcn(p, d);
  p->in[1] = image(p, p->c->compute, d[0], (d[2] * 27 + 7) / 8 * 8);
  fill_normal(p->c, p->in[1], 0.5);
}
static ii_tensor *run_dcnv3(problem *p) {
  return ii_dcnv3(p->c, p->in[0], p->in[1], &p->dcn);
}
static ii_tensor *run_dcnv4(problem *p) {
  return ii_dcnv4(p->c, p->in[0], p->in[1], &p->dcn);
}

static ii_tensor *checkpointed(ii_ctx *c, ii_tensor *x, const void *user) {
  const problem *p = user;
  return ii_linear(c, x, p->in[1], p->in[2]);
}
static void build_checkpoint(problem *p, const int64_t *d) {
  build_linear(p, d);
}
static ii_tensor *run_checkpoint(problem *p) {
  return ii_checkpoint(p->c, p->in[0], checkpointed, p);
}

/* ---- norms and softmax ---- */

/* side, channels, 1: with GELU, on activations of the compute type; 0: of the residual stream */
static void build_layer_norm(problem *p, const int64_t *d) {
  p->flag = d[2];
  p->in[0] = matrix(p, p->flag ? p->c->compute : p->c->real, p->N * d[0] * d[0], d[1]);
  p->in[1] = vector(p, d[1]);
  p->in[2] = vector(p, d[1]);
  describe_rows(p, p->flag ? ", GELU" : "");
}
static ii_tensor *run_layer_norm(problem *p) {
  return ii_layer_norm(p->c, p->in[0], p->in[1], p->in[2], 1e-6,
                       p->flag ? II_ACT_GELU : II_ACT_NONE, p->c->compute);
}

/* side, channels, 1: with layer scale */
static void build_norm_residual(problem *p, const int64_t *d) {
  p->in[0] = image(p, p->c->real, d[0], d[1]);
  p->in[1] = image(p, p->c->compute, d[0], d[1]);
  for (int i = 2; i < 4; i++) p->in[i] = vector(p, d[1]);
  p->in[4] = d[2] ? vector(p, d[1]) : NULL;
  p->in[5] = activation(p, p->c->real, 1, &p->N);
  p->in[5]->needs_grad = false;
  describe_image(p, d[2] ? ", layer scale" : "");
}
static ii_tensor *run_norm_residual(problem *p) {
  return ii_norm_residual(p->c, p->in[0], p->in[1], p->in[2], p->in[3], 1e-6, p->in[4], p->in[5]);
}

/* side, channels */
static void build_residual_norm(problem *p, const int64_t *d) {
  p->in[0] = image(p, p->c->real, d[0], d[1]);
  p->in[1] = image(p, p->c->compute, d[0], d[1]);
  for (int i = 2; i < 4; i++) p->in[i] = vector(p, d[1]);
  p->in[4] = activation(p, p->c->real, 1, &p->N);
  p->in[4]->needs_grad = false;
  describe_image(p, "");
}
static ii_tensor *run_residual_norm(problem *p) {
  ii_tensor *sum;
  return ii_residual_norm(p->c, p->in[0], p->in[1], p->in[4], p->in[2], p->in[3], 1e-6, &sum);
}

static void build_batch_norm(problem *p, const int64_t *d) {
  p->in[0] = matrix(p, p->c->compute, p->N * d[0] * d[0], d[1]);
  for (int i = 1; i < 5; i++) p->in[i] = vector(p, d[1]);
  describe_rows(p, "");
}
static ii_tensor *run_batch_norm(problem *p) {
  return ii_batch_norm(p->c, p->in[0], p->in[1], p->in[2], p->in[3], p->in[4], 1e-5, 0.1);
}

static ii_tensor *run_softmax(problem *p) {
  return ii_softmax(p->c, p->in[0], p->c->compute);
}

/* ---- element by element, and movement ---- */

/* side, columns: rows of the compute type */
static void build_rows(problem *p, const int64_t *d) {
  p->in[0] = matrix(p, p->c->compute, p->N * d[0] * d[0], d[1]);
  describe_rows(p, "");
}
static ii_tensor *run_gelu(problem *p) {
  return ii_gelu(p->c, p->in[0]);
}
static ii_tensor *run_relu(problem *p) {
  return ii_relu(p->c, p->in[0]);
}
static ii_tensor *run_silu(problem *p) {
  return ii_silu(p->c, p->in[0]);
}
static ii_tensor *run_sigmoid(problem *p) {
  return ii_sigmoid(p->c, p->in[0]);
}

/* to the other type of mixed precision */
static ii_tensor *run_cast(problem *p) {
  return ii_cast(p->c, p->in[0], p->c->real == II_F64 ? II_F32 : II_BF16);
}
static void build_cast(problem *p, const int64_t *d) {
  p->in[0] = matrix(p, p->c->real, p->N * d[0] * d[0], d[1]);
  describe_rows(p, p->c->real == II_F64 ? " to f32" : " to bf16");
}

/* the first two thirds of the columns, as offsets lie in a packed tensor */
static ii_tensor *run_slice(problem *p) {
  return ii_slice(p->c, p->in[0], 0, ii_last(p->in[0]) * 2 / 3);
}

static ii_tensor *run_reshape(problem *p) {
  return ii_reshape(p->c, p->in[0], 1, (int64_t[]){-1});
}

/* two inputs of one shape and the compute type */
static void build_pair(problem *p, const int64_t *d) {
  build_rows(p, d);
  p->in[1] = matrix(p, p->c->compute, ii_rows(p->in[0]), d[1]);
}
static ii_tensor *run_add(problem *p) {
  return ii_add(p->c, p->in[0], p->in[1]);
}
static ii_tensor *run_concat(problem *p) {
  return ii_concat(p->c, p->in[0], p->in[1]);
}

/* side, channels, 1: with layer scale */
static void build_residual(problem *p, const int64_t *d) {
  p->in[0] = image(p, p->c->real, d[0], d[1]);
  p->in[1] = image(p, p->c->compute, d[0], d[1]);
  p->in[2] = d[2] ? vector(p, d[1]) : NULL;
  p->in[3] = activation(p, p->c->real, 1, &p->N);
  p->in[3]->needs_grad = false;
  describe_image(p, d[2] ? ", layer scale" : "");
}
static ii_tensor *run_residual(problem *p) {
  return ii_residual(p->c, p->in[0], p->in[1], p->in[2], p->in[3]);
}

/* side, channels, groups */
static void build_group_mix(problem *p, const int64_t *d) {
  build_pair(p, d);
  p->in[2] = matrix(p, p->c->compute, ii_rows(p->in[0]), d[2]);
  char more[32];
  snprintf(more, sizeof more, ", %lld groups", LL(d[2]));
  describe_rows(p, more);
}
static ii_tensor *run_group_mix(problem *p) {
  return ii_group_mix(p->c, p->in[0], p->in[1], p->in[2]);
}

/* side, channels, and for the windows: kernel, stride */
static void build_image(problem *p, const int64_t *d) {
  p->in[0] = image(p, p->c->compute, d[0], d[1]);
  p->pad = (int)(d[2] / 2);
  p->stride = (int)d[3];
  describe_image(p, "");
}
static ii_tensor *run_mean_pool(problem *p) {
  return ii_mean_pool(p->c, p->in[0]);
}
static ii_tensor *run_avg_pool2d(problem *p) {
  return ii_avg_pool2d(p->c, p->in[0], 2 * p->pad + 1, p->stride, p->pad);
}
static ii_tensor *run_max_pool2d(problem *p) {
  return ii_max_pool2d(p->c, p->in[0], 2 * p->pad + 1, p->stride, p->pad);
}
static ii_tensor *run_pixel_shuffle(problem *p) {
  return ii_pixel_shuffle(p->c, p->in[0], 2);
}

/* positions, heads, channels of a head */
static void build_transpose(problem *p, const int64_t *d) {
  p->in[0] = activation(p, p->c->compute, 4, (int64_t[]){p->N, d[0], d[1], d[2]});
  describe_image(p, "");
}
static ii_tensor *run_transpose(problem *p) {
  return ii_transpose(p->c, p->in[0]);
}

/* ---- losses: images per image of the batch, classes ---- */

static void build_soft_ce(problem *p, const int64_t *d) {
  p->in[0] = matrix(p, p->c->compute, p->N * d[0], d[1]);
  p->in[1] = matrix(p, p->c->real, p->N * d[0], d[1]);
  p->in[1]->needs_grad = false;
  describe_rows(p, "");
}
static void build_smooth_ce(problem *p, const int64_t *d) {
  const int64_t n = p->N * d[0];
  p->in[0] = matrix(p, p->c->compute, n, d[1]);
  p->in[1] = ii_tensor_new(p->c, II_I32, 1, &n);
  int32_t *labels = measure_buffer((size_t)n * sizeof *labels);
  for (int64_t i = 0; i < n; i++) labels[i] = (int32_t)(i * 37 % d[1]);
  ii_tensor_write(p->c, p->in[1], labels);
  free(labels);
  describe_rows(p, "");
}
static ii_tensor *run_soft_ce(problem *p) {
  return ii_soft_cross_entropy(p->c, p->in[0], p->in[1]);
}
static ii_tensor *run_smooth_ce(problem *p) {
  return ii_smooth_cross_entropy(p->c, p->in[0], p->in[1], 0.1);
}

/* ---- the table ---- */

/* Stages of the T models at 224 pixels: side 56, 28, 14, 7; channels 64 << s; groups 4 << s. A
 * hidden layer has 4 times the channels. Some rows are from H (320 channels, 5x5 depthwise, CLIP
 * head). */
static const op_bench table[II_OP_COUNT] = {
    [II_OP_linear] = {build_linear,
                      run_linear,
                      {{{56, 64, 64}},
                       {{56, 64, 112}},
                       {{56, 64, 256}},
                       {{56, 256, 64}},
                       {{28, 128, 128}},
                       {{28, 128, 216}},
                       {{28, 128, 512}},
                       {{28, 512, 128}},
                       {{14, 256, 256}},
                       {{14, 256, 432}},
                       {{14, 256, 1024}},
                       {{14, 1024, 256}},
                       {{7, 512, 512}},
                       {{7, 512, 864}},
                       {{7, 512, 2048}},
                       {{7, 2048, 512}},
                       {{0, 768, 1000}}}},
    [II_OP_conv2d] = {build_conv2d,
                      run_conv2d,
                      {{{224, 3, 32, 3, 2}},
                       {{112, 32, 64, 3, 2}},
                       {{56, 64, 128, 3, 2}},
                       {{28, 128, 256, 3, 2}},
                       {{14, 256, 512, 3, 2}},
                       {{7, 512, 768, 1, 1}}}},
    [II_OP_dwconv2d] =
        {build_dwconv2d,
         run_dwconv2d,
         {{{56, 64, 3}}, {{28, 128, 3}}, {{14, 256, 3}}, {{7, 512, 3}}, {{56, 320, 5}}}},
    [II_OP_layer_norm] = {build_layer_norm,
                          run_layer_norm,
                          {{{56, 64, 0}},
                           {{28, 128, 0}},
                           {{14, 256, 0}},
                           {{7, 512, 0}},
                           {{112, 32, 1}},
                           {{56, 64, 1}},
                           {{28, 128, 1}},
                           {{14, 256, 1}},
                           {{7, 512, 1}}}},
    [II_OP_norm_residual] = {build_norm_residual,
                             run_norm_residual,
                             {{{56, 80, 1}}, {{28, 160, 1}}, {{14, 320, 1}}, {{7, 640, 1}}}},
    [II_OP_residual_norm] = {build_residual_norm,
                             run_residual_norm,
                             {{{56, 64}}, {{28, 128}}, {{14, 256}}, {{7, 512}}}},
    [II_OP_batch_norm] = {build_batch_norm, run_batch_norm, {{{7, 768}}, {{56, 64}}}},
    [II_OP_linear_gelu] =
        {build_linear,
         run_linear_gelu,
         {{{56, 64, 256}}, {{28, 128, 512}}, {{14, 256, 1024}}, {{7, 512, 2048}}}},
    [II_OP_gelu] = {build_rows, run_gelu, {{{56, 256}}, {{28, 512}}, {{14, 1024}}, {{7, 2048}}}},
    [II_OP_relu] = {build_rows, run_relu, {{{56, 256}}, {{14, 1024}}}},
    [II_OP_silu] = {build_rows, run_silu, {{{56, 256}}, {{14, 1024}}}},
    [II_OP_sigmoid] = {build_rows, run_sigmoid, {{{56, 10}}, {{14, 40}}}},
    [II_OP_softmax] = {build_rows, run_softmax, {{{112, 9}}, {{12, 145}}, {{14, 1000}}}},
    [II_OP_dcnv3] =
        {build_dcnv3,
         run_dcnv3,
         {{{56, 64, 4}}, {{28, 128, 8}}, {{14, 256, 16}}, {{7, 512, 32}}, {{14, 1280, 40}}}},
    [II_OP_dcnv4] = {build_dcnv4,
                     run_dcnv4,
                     {{{56, 64, 4}}, {{28, 128, 8}}, {{14, 256, 16}}, {{7, 512, 32}}}},
    [II_OP_residual] = {build_residual,
                        run_residual,
                        {{{56, 64, 0}},
                         {{28, 128, 0}},
                         {{14, 256, 0}},
                         {{7, 512, 0}},
                         {{56, 64, 1}},
                         {{14, 256, 1}}}},
    [II_OP_add] = {build_pair, run_add, {{{56, 64}}, {{14, 1024}}}},
    [II_OP_group_mix] = {build_group_mix, run_group_mix, {{{56, 320, 10}}, {{14, 1280, 40}}}},
    [II_OP_mean_pool] = {build_image, run_mean_pool, {{{7, 768}}, {{56, 64}}}},
    [II_OP_avg_pool2d] = {build_image, run_avg_pool2d, {{{56, 64, 3, 2}}, {{28, 128, 3, 1}}}},
    [II_OP_max_pool2d] = {build_image, run_max_pool2d, {{{112, 64, 3, 2}}, {{28, 128, 3, 1}}}},
    [II_OP_bmm] = {build_bmm,
                   run_bmm,
                   {{{16, 1, 64, 145, 1}}, {{16, 1, 145, 64, 0}}, {{4, 196, 64, 196, 1}}}},
    [II_OP_transpose] = {build_transpose, run_transpose, {{{145, 16, 64}}, {{196, 4, 64}}}},
    [II_OP_pixel_shuffle] = {build_image, run_pixel_shuffle, {{{7, 4096}}, {{12, 4096}}}},
    [II_OP_soft_ce] = {build_soft_ce, run_soft_ce, {{{1, 1000}}, {{16, 1000}}, {{16, 21841}}}},
    [II_OP_smooth_ce] = {build_smooth_ce,
                         run_smooth_ce,
                         {{{1, 1000}}, {{16, 1000}}, {{16, 21841}}}},
    [II_OP_cast] = {build_cast, run_cast, {{{56, 64}}, {{56, 256}}, {{14, 256}}}},
    [II_OP_slice] = {build_rows, run_slice, {{{56, 108}}, {{14, 432}}}},
    [II_OP_concat] = {build_pair, run_concat, {{{56, 64}}, {{14, 256}}}},
    [II_OP_reshape] = {build_rows, run_reshape, {{{56, 64}}}},
    [II_OP_checkpoint] = {build_checkpoint, run_checkpoint, {{{56, 64, 256}}}},
};

static int count_shapes(const op_bench *o) {
  int n = 0;
  while (n < MAX_SHAPES && o->shapes[n].d[1]) n++;
  return o->build && o->run ? n : 0;
}

/* ---- timing ---- */

typedef struct {
  double copy_gb_s, gemm_gflops[II_DTYPE_COUNT];
  measure_device on;
} machine;

static double bytes_of(const ii_tensor *t) {
  if (!t) return 0;
  const ii_tensor *read = t->low ? t->low : t; /* the copy that a mixed-precision kernel reads */
  return (double)ii_numel(t) * (double)ii_dtype_size(read->dtype);
}

/* The bytes each direction has to move at least: every operand read once, every result written
 * once. A gradient that shares the memory of the output's gradient costs nothing. */
static void count_bytes(const ii_node *n, const ii_block *gy, double *fwd, double *bwd) {
  double written = 0;
  bool slice = n->op == II_OP_slice; /* reads the columns it takes and no more */
  bool view = n->op == II_OP_reshape;
  *fwd = *bwd = 0;
  for (int i = 0; i < n->n_in; i++) {
    ii_tensor *t = n->in[i];
    *fwd += view ? 0 : slice ? bytes_of(n->out) : bytes_of(t);
    if (t && (n->saved & S_IN(i))) *bwd += bytes_of(t);
    if (t && t->needs_grad && t->grad && t->grad->mem != gy)
      written += (double)ii_numel(t) * (double)ii_dtype_size(t->grad->dtype);
  }
  for (int i = 0; i < n->n_stat; i++) {
    *fwd += bytes_of(n->stat[i]);
    if (n->saved & S_STAT) *bwd += bytes_of(n->stat[i]);
  }
  *fwd += view ? 0 : bytes_of(n->out);
  *bwd +=
      written + (n->saved & S_OUT(0) ? bytes_of(n->out) : 0) + (written > 0 ? bytes_of(n->out) : 0);
}

static void drop_gradients(problem *p) {
  for (int i = 0; i < MAX_IN; i++) {
    ii_tensor *t = p->in[i];
    if (!t || t->persistent || !t->grad) continue;
    if (t->grad->mem) ii_block_release(t->grad->mem);
    t->grad = NULL;
  }
  ii_params_zero_grad(&p->params);
}

typedef struct {
  measure_spread time[2]; /* forward, backward; seconds */
  double bytes[2];
} result;

/* Both directions once; seconds into t[0], t[1]. */
static void once(problem *p, const op_bench *o, machine *m, double *t, double *bytes) {
  ii_ctx *c = p->c;
  ii_scope s = ii_scope_begin(c);
  c->training = c->recording = true;
  measure_start(&m->on);
  ii_tensor *y = o->run(p);
  t[0] = measure_stop(&m->on);
  if (!ii_ok(c)) fail(c->err.text);
  II_ASSERT(c->tape && !c->tape->prev, "%s: not one node on the tape", p->shape);
  ii_node node = *c->tape;
  ii_tensor *gy = ii_tensor_new(c, y->dtype, y->ndim, y->shape);
  if (!ii_ok(c)) fail(c->err.text);
  measure_must(&c->k, ii_device_copy(&c->k, ii_data(gy), ii_data(y),
                                     (size_t)ii_numel(y) * ii_dtype_size(y->dtype)));
  ii_block_retain(gy->mem); /* the walk drops the gradient of the output */
  y->grad = gy;
  c->recording = false;
  measure_start(&m->on);
  ii_tape_walk(c);
  t[1] = measure_stop(&m->on);
  if (!ii_ok(c)) fail(c->err.text);
  count_bytes(&node, gy->mem, &bytes[0], &bytes[1]);
  drop_gradients(p);
  ii_scope_end(c, s, NULL, 0);
}

static result measure(problem *p, const op_bench *o, machine *m, int repeat) {
  double t[2][MAX_REPEAT], one[2];
  result r;
  for (int i = -2; i < repeat; i++) { /* two rounds to warm up */
    once(p, o, m, one, r.bytes);
    for (int k = 0; k < 2 && i >= 0; k++) t[k][i] = one[k];
  }
  for (int k = 0; k < 2; k++) r.time[k] = measure_summarise(t[k], repeat);
  return r;
}

static problem open_problem(ii_ctx *c, const op_bench *o, const int64_t *d, int64_t batch) {
  problem p = {.c = c, .N = batch};
  ii_params_init(&p.params, c);
  o->build(&p, d);
  ii_params_refresh_low(&p.params);
  return p;
}

static void close_problem(problem *p) {
  ii_tape_reset(p->c);
  ii_params_destroy(&p->params);
}

/* ---- output ---- */

static void print_result(const char *op, const problem *p, const result *r, const machine *m) {
  static const char *const direction[2] = {"fwd", "bwd"};
  const ii_dtype type = p->c->compute;
  printf("{\"name\": \"%s [%s] %s\", \"op\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", "
         "\"device\": \"%s\", \"threads\": %d",
         op, p->shape, ii_dtype_name(type), op, p->shape, ii_dtype_name(type), m->on.name,
         p->c->k.threads);
  for (int k = 0; k < 2; k++) {
    const char *w = direction[k];
    const measure_spread *t = &r->time[k];
    double rate = r->bytes[k] * 1e-9 / t->median;
    printf(", \"%s_ms\": %.4f, \"%s_min_ms\": %.4f, \"%s_p90_ms\": %.4f", w, t->median * 1e3, w,
           t->min * 1e3, w, t->p90 * 1e3);
    printf(", \"%s_MB\": %.2f, \"%s_GB_s\": %.2f", w, r->bytes[k] * 1e-6, w, rate);
    if (m->copy_gb_s <= 0) continue;
    printf(", \"%s_pct_copy\": %.1f", w, 100 * rate / m->copy_gb_s);
    if (p->flop <= 0) continue;
    double gflops = p->flop * (k ? 2 : 1) * 1e-9 / t->median; /* backward: two factors */
    printf(", \"%s_GFLOP_s\": %.1f, \"%s_pct_gemm\": %.1f", w, gflops, w,
           100 * gflops / m->gemm_gflops[type]);
  }
  printf("}\n");
  fflush(stdout);
}

static void run_op(ii_ctx *c, ii_op op, machine *m, const options *o) {
  const op_bench *b = &table[op];
  for (int i = 0; i < count_shapes(b) && i < o->shapes; i++) {
    problem p = open_problem(c, b, b->shapes[i].d, o->batch);
    result r = measure(&p, b, m, o->repeat);
    print_result(ii_op_table[op].name, &p, &r, m);
    close_problem(&p);
  }
}

/* ---- the limits of the machine ---- */

static void measure_copy_limit(machine *m) {
  m->copy_gb_s = measure_copy_rate(&m->on);
  printf("{\"limit\": \"copy\", \"device\": \"%s\", \"threads\": %d, \"GB_s\": %.2f}\n", m->on.name,
         m->on.k->threads, m->copy_gb_s);
  fflush(stdout);
}

/* The best of a few square-ish multiplications with warm caches. */
static void measure_gemm_limit(machine *m, ii_ctx *c) {
  static const int64_t sizes[2][3][3] = {{{16, 1024, 1024}, {11, 2048, 2048}, {32, 512, 512}},
                                         {{32, 8192, 8192}, {32, 4096, 4096}, {45, 4096, 8192}}};
  double best = 0;
  char *flush = m->on.flush;
  m->on.flush = NULL;
  for (int i = 0; i < 3; i++) {
    problem p = open_problem(c, &table[II_OP_linear], sizes[c->k.device == II_CUDA][i], 8);
    result r = measure(&p, &table[II_OP_linear], m, 3);
    double gflops = p.flop * 1e-9 / r.time[0].min;
    if (gflops > best) best = gflops;
    close_problem(&p);
  }
  m->on.flush = flush;
  m->gemm_gflops[c->compute] = best;
  printf(
      "{\"limit\": \"gemm\", \"device\": \"%s\", \"dtype\": \"%s\", \"threads\": %d, \"GFLOP_s\": "
      "%.1f}\n",
      m->on.name, ii_dtype_name(c->compute), c->k.threads, best);
  fflush(stdout);
}

/* ---- the program ---- */

static ii_op op_of(const char *name) {
  for (int i = 0; i < II_OP_COUNT; i++)
    if (!strcmp(ii_op_table[i].name, name)) return (ii_op)i;
  fail("--only wants the name of an op; --list shows them");
  return II_OP_COUNT;
}

static void choose_dtype(options *o, const char *name) {
  static const ii_dtype known[] = {II_F32, II_BF16, II_F16, II_F64};
  for (int i = 0; i < 4; i++)
    if (!strcmp(name, ii_dtype_name(known[i]))) {
      o->dtype[known[i]] = true;
      return;
    }
  fail("--dtype is f32, bf16, f16 (cuda) or f64");
}

static void choose_device(options *o, const char *name) {
  ii_error err = {0};
  if (ii_device_parse(name, &o->device, &o->index, &err) != II_OK) fail(err.text);
}

static void parse(options *o, int argc, char **argv) {
  bool any_dtype = false;
  *o = (options){.batch = 8, .repeat = 15, .flush_mib = -1, .shapes = MAX_SHAPES};
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--list")) {
      o->list = true;
      continue;
    }
    if (i + 1 == argc) fail("an option is unknown or lacks its value; see the head of bench_ops.c");
    const char *value = argv[i + 1];
    if (!strcmp(argv[i], "--batch"))
      o->batch = atoi(value);
    else if (!strcmp(argv[i], "--repeat"))
      o->repeat = atoi(value);
    else if (!strcmp(argv[i], "--threads"))
      o->threads = atoi(value);
    else if (!strcmp(argv[i], "--flush"))
      o->flush_mib = atoi(value);
    else if (!strcmp(argv[i], "--shapes"))
      o->shapes = atoi(value);
    else if (!strcmp(argv[i], "--device"))
      choose_device(o, value);
    else if (!strcmp(argv[i], "--dtype"))
      choose_dtype(o, value), any_dtype = true;
    else if (!strcmp(argv[i], "--only"))
      o->only[op_of(value)] = o->any_only = true;
    else
      fail("unknown option; see the head of bench_ops.c");
    i++;
  }
  if (o->flush_mib < 0) o->flush_mib = o->device == II_CUDA ? 512 : 128; /* B200: 126 MiB of L2 */
  if (o->batch < 1 || o->repeat < 1 || o->repeat > MAX_REPEAT || o->threads < 0 || o->shapes < 1)
    fail("--batch and --shapes start at 1, --repeat is from 1 to 1000, --threads starts at 0");
  if (!any_dtype) o->dtype[II_F32] = o->dtype[II_BF16] = true;
}

/* Ends the program with a sentence when an op of the table has no shape. */
static void check_table(bool list) {
  for (int i = 0; i < II_OP_COUNT; i++) {
    int n = count_shapes(&table[i]);
    if (list) printf("%-14s %d\n", ii_op_table[i].name, n);
    if (n) continue;
    fprintf(stderr,
            "bench_ops: op '%s' of autograd/ops.def has no shape here: give it a row in the table "
            "of bench/bench_ops.c\n",
            ii_op_table[i].name);
    exit(1);
  }
}

static void run_dtype(const options *o, ii_dtype type, machine *m) {
  ii_error err = {0};
  ii_ctx_options co = {.device = o->device,
                       .index = o->index,
                       .threads = o->threads,
                       .real = ii_dtype_real(type),
                       .compute = type,
                       .seed = 1};
  ii_ctx *c = ii_ctx_open(&co, &err);
  if (!c) fail(err.text);
  m->on = measure_device_open(&c->k, o->index, o->flush_mib);
  const bool emulated = measure_emulated(&m->on); /* the limits would take hours */
  if (m->copy_gb_s <= 0 && !emulated) measure_copy_limit(m);
  if (!emulated) measure_gemm_limit(m, c);
  for (int i = 0; i < II_OP_COUNT; i++)
    if (!o->any_only || o->only[i]) run_op(c, (ii_op)i, m, o);
  measure_device_close(&m->on);
  ii_ctx_close(c);
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  options o;
  machine m = {0};
  parse(&o, argc, argv);
  check_table(o.list);
  if (o.list) return 0;
  for (int i = 0; i < II_DTYPE_COUNT; i++)
    if (o.dtype[i]) run_dtype(&o, (ii_dtype)i, &m);
  return 0;
}
