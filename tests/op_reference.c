/* The formulas of kernels/kernels.h in plain loops, in double. */
#include "op_dcn_cases.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void linear(const op_case *k, double *const *in, double *out) {
  const op_input *w = &k->in[1];
  int64_t O = w->shape[0], I = w->shape[1], rows = op_input_numel(&k->in[0]) / I;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t o = 0; o < O; o++) {
      double s = in[2] ? in[2][o] : 0;
      for (int64_t i = 0; i < I; i++) s += in[0][r * I + i] * in[1][o * I + i];
      out[r * O + o] = s;
    }
}

static void bmm(const op_case *k, double *const *in, double *out) {
  const op_input *a = &k->in[0], *b = &k->in[1];
  bool trans = k->i[0];
  int d = a->ndim;
  int64_t M = a->shape[d - 2], K = a->shape[d - 1], N = b->shape[trans ? d - 2 : d - 1], batch = 1;
  for (int i = 0; i < d - 2; i++) batch *= a->shape[i];
  for (int64_t t = 0; t < batch * M * N; t++) {
    int64_t n = t % N, row = t / N, g = row / M;
    double s = 0;
    for (int64_t i = 0; i < K; i++)
      s += in[0][row * K + i] * in[1][g * K * N + (trans ? n * K + i : i * N + n)];
    out[t] = k->f[0] * s;
  }
}

/* pixel (n,h,w) of an image tensor, NULL outside */
static const double *pixel(const op_input *x, const double *v, int64_t n, int64_t h, int64_t w) {
  if (h < 0 || w < 0 || h >= x->shape[1] || w >= x->shape[2]) return NULL;
  return v + ((n * x->shape[1] + h) * x->shape[2] + w) * x->shape[3];
}

/* dense: w[O,C,kh,kw]; depthwise: w[C,1,k,k], O = C */
static void conv(const op_case *k, double *const *in, double *out) {
  const op_input *x = &k->in[0], *w = &k->in[1];
  bool depthwise = k->op == II_OP_dwconv2d;
  int64_t kh = w->shape[2], kw = w->shape[3], O = w->shape[0], C = x->shape[3];
  int64_t stride = depthwise ? 1 : k->i[0], pad = depthwise ? kh / 2 : k->i[1];
  int64_t Ho = (x->shape[1] + 2 * pad - kh) / stride + 1;
  int64_t Wo = (x->shape[2] + 2 * pad - kw) / stride + 1;
  for (int64_t t = 0; t < x->shape[0] * Ho * Wo * O; t++) {
    int64_t o = t % O, wo = t / O % Wo, ho = t / O / Wo % Ho, n = t / O / Wo / Ho;
    double s = in[2] ? in[2][o] : 0;
    for (int64_t i = 0; i < kh * kw; i++) {
      const double *p = pixel(x, in[0], n, ho * stride - pad + i / kw, wo * stride - pad + i % kw);
      if (p && depthwise) s += p[o] * in[1][o * kh * kw + i];
      for (int64_t c = 0; p && !depthwise && c < C; c++)
        s += p[c] * in[1][(o * C + c) * kh * kw + i];
    }
    out[t] = s;
  }
}

static double normal_cdf(double x) {
  return 0.5 * erfc(-x / sqrt(2));
}

static void layer_norm(const op_case *k, double *const *in, double *out) {
  int64_t C = k->in[1].shape[0], n = op_input_numel(&k->in[0]);
  for (int64_t r = 0; r < n; r += C) {
    double mean = 0, var = 0;
    for (int64_t c = 0; c < C; c++) mean += in[0][r + c] / (double)C;
    for (int64_t c = 0; c < C; c++) var += pow(in[0][r + c] - mean, 2) / (double)C;
    for (int64_t c = 0; c < C; c++) {
      double y = (in[0][r + c] - mean) / sqrt(var + k->f[0]) * in[1][c] + in[2][c];
      out[r + c] = k->i[0] == II_ACT_GELU ? y * normal_cdf(y) : y;
    }
  }
}

static void norm_residual(const op_case *k, double *const *in, double *out) {
  int64_t C = k->in[2].shape[0], n = op_input_numel(&k->in[0]), N = k->in[0].shape[0];
  op_case norm = *k;
  norm.in[0] = k->in[1];
  norm.in[1] = k->in[2];
  layer_norm(&norm, in + 1, out);
  for (int64_t i = 0; i < n; i++)
    out[i] = in[0][i] + (in[5] ? in[5][i / (n / N)] : 1) * (in[4] ? in[4][i % C] : 1) * out[i];
}

static void residual_norm(const op_case *k, double *const *in, double *out) {
  int64_t C = k->in[2].shape[0], n = op_input_numel(&k->in[0]), N = k->in[0].shape[0];
  op_case norm = *k;
  double *sum = calloc((size_t)n + 1, sizeof *sum), *const all[] = {sum, in[2], in[3]};
  if (!sum) abort();
  for (int64_t i = 0; i < n; i++) sum[i] = in[0][i] + (in[4] ? in[4][i / (n / N)] : 1) * in[1][i];
  norm.in[1].shape[0] = C;
  norm.i[0] = II_ACT_NONE;
  layer_norm(&norm, all, out);
  for (int64_t i = 0; i < n && k->i[0]; i++) out[i] = sum[i] + (k->i[0] == 2 ? out[i] : 0);
  free(sum);
}

static void batch_norm(const op_case *k, double *const *in, double *out, double *const *state) {
  int64_t C = k->in[1].shape[0], rows = op_input_numel(&k->in[0]) / C;
  for (int64_t c = 0; c < C; c++) {
    double mean = in[3][c], var = in[4][c];
    if (k->flags & CASE_TRAINING) {
      mean = var = 0;
      for (int64_t r = 0; r < rows; r++) mean += in[0][r * C + c] / (double)rows;
      for (int64_t r = 0; r < rows; r++) var += pow(in[0][r * C + c] - mean, 2) / (double)rows;
      state[3][c] = (1 - k->f[1]) * in[3][c] + k->f[1] * mean;
      state[4][c] = (1 - k->f[1]) * in[4][c] + k->f[1] * var * (double)rows / (double)(rows - 1);
    } else {
      state[3][c] = mean;
      state[4][c] = var;
    }
    for (int64_t r = 0; r < rows; r++)
      out[r * C + c] = (in[0][r * C + c] - mean) / sqrt(var + k->f[0]) * in[1][c] + in[2][c];
  }
}

static double element(ii_op op, double x) {
  if (op == II_OP_gelu || op == II_OP_linear_gelu) return x * normal_cdf(x);
  if (op == II_OP_relu) return x > 0 ? x : 0;
  if (op == II_OP_silu) return x / (1 + exp(-x));
  if (op == II_OP_sigmoid) return 1 / (1 + exp(-x));
  return x; /* casts of numbers that every type has, and reshape */
}

static void softmax(const double *x, int64_t step, int64_t n, double *y) {
  double max = -INFINITY, sum = 0;
  for (int64_t i = 0; i < n; i++) max = fmax(max, x[i * step]);
  for (int64_t i = 0; i < n; i++) sum += exp(x[i * step] - max);
  for (int64_t i = 0; i < n; i++) y[i] = exp(x[i * step] - max) / sum;
}

static double bilinear(const op_input *x, const double *v, int64_t n, double py, double px,
                       int64_t c) {
  double y0 = floor(py), x0 = floor(px), s = 0;
  for (int i = 0; i < 4; i++) {
    double y = y0 + i / 2, xx = x0 + i % 2;
    const double *p = pixel(x, v, n, (int64_t)y, (int64_t)xx);
    if (p) s += p[c] * (1 - fabs(py - y)) * (1 - fabs(px - xx));
  }
  return s;
}

static void dcn(const op_case *k, double *const *in, double *out) {
  const ii_dcn_geometry *g = &k->dcn;
  const op_input *x = &k->in[0];
  bool packed = k->op == II_OP_dcnv4;
  int taps = ii_dcn_taps(g->kernel_h, g->kernel_w, g->remove_center);
  int64_t Ho = k->in[1].shape[1], Wo = k->in[1].shape[2], row = k->in[1].shape[3];
  int64_t C = x->shape[3], D = C / g->groups;
  memset(out, 0, (size_t)(x->shape[0] * Ho * Wo * C) * sizeof *out);
  for (int64_t t = 0; t < x->shape[0] * Ho * Wo * g->groups; t++) {
    int64_t group = t % g->groups, r = t / g->groups, wo = r % Wo, ho = r / Wo % Ho,
            n = r / Wo / Ho;
    const double *off = in[1] + r * row + group * (packed ? 3 : 2) * taps;
    const double *mask = packed ? off + 2 * taps : in[2] + t * taps;
    double m[64];
    if (g->softmax)
      softmax(mask, 1, taps, m);
    else
      memcpy(m, mask, (size_t)taps * sizeof *m);
    for (int j = 0; j < taps; j++) {
      double px = (double)(wo * g->stride_w - g->pad_w) + op_dcn_position(g, 0, j, off[2 * j]);
      double py = (double)(ho * g->stride_h - g->pad_h) + op_dcn_position(g, 1, j, off[2 * j + 1]);
      if (!(py > -1 && px > -1 && py < (double)x->shape[1] && px < (double)x->shape[2])) continue;
      for (int64_t d = 0; d < D; d++)
        out[r * C + group * D + d] += m[j] * bilinear(x, in[0], n, py, px, group * D + d);
    }
  }
}

static void pool(const op_case *k, double *const *in, double *out) {
  const op_input *x = &k->in[0];
  int64_t size = k->i[0], stride = k->i[1], pad = k->i[2], C = x->shape[3];
  int64_t Ho = (x->shape[1] + 2 * pad - size) / stride + 1;
  int64_t Wo = (x->shape[2] + 2 * pad - size) / stride + 1;
  for (int64_t t = 0; t < x->shape[0] * Ho * Wo * C; t++) {
    int64_t c = t % C, wo = t / C % Wo, ho = t / C / Wo % Ho, n = t / C / Wo / Ho;
    double sum = 0, max = -INFINITY;
    for (int64_t i = 0; i < size * size; i++) {
      const double *p =
          pixel(x, in[0], n, ho * stride - pad + i / size, wo * stride - pad + i % size);
      if (!p) continue;
      sum += p[c];
      max = fmax(max, p[c]);
    }
    out[t] = k->op == II_OP_max_pool2d ? max : sum / (double)(size * size);
  }
}

static void residual(const op_case *k, double *const *in, double *out) {
  int64_t n = op_input_numel(&k->in[0]), C = k->in[0].shape[3], N = k->in[0].shape[0];
  for (int64_t i = 0; i < n; i++)
    out[i] = in[0][i] + (in[3] ? in[3][i / (n / N)] : 1) * (in[2] ? in[2][i % C] : 1) * in[1][i];
}

static void group_mix(const op_case *k, double *const *in, double *out) {
  int64_t n = op_input_numel(&k->in[0]), D = k->in[0].shape[1] / k->in[2].shape[1];
  for (int64_t i = 0; i < n; i++) out[i] = in[0][i] * (1 - in[2][i / D]) + in[1][i] * in[2][i / D];
}

static void mean_pool(const op_case *k, double *const *in, double *out) {
  const op_input *x = &k->in[0];
  int64_t N = x->shape[0], C = x->shape[x->ndim - 1], P = N ? op_input_numel(x) / (N * C) : 0;
  for (int64_t t = 0; t < N * C; t++) {
    out[t] = 0;
    for (int64_t p = 0; p < P; p++) out[t] += in[0][(t / C * P + p) * C + t % C] / (double)P;
  }
}

static void transpose(const op_case *k, double *const *in, double *out) {
  const int64_t *s = k->in[0].shape;
  for (int64_t i = 0; i < op_input_numel(&k->in[0]); i++) {
    int64_t d = i % s[3], c = i / s[3] % s[2], b = i / s[3] / s[2] % s[1],
            a = i / s[3] / s[2] / s[1];
    out[((a * s[2] + c) * s[1] + b) * s[3] + d] = in[0][i];
  }
}

static void pixel_shuffle(const op_case *k, double *const *in, double *out) {
  const op_input *x = &k->in[0];
  int64_t r = k->i[0], C = x->shape[3] / (r * r), H = x->shape[1] * r, W = x->shape[2] * r;
  for (int64_t t = 0; t < x->shape[0] * H * W * C; t++) {
    int64_t c = t % C, w = t / C % W, h = t / C / W % H, n = t / C / W / H;
    out[t] = pixel(x, in[0], n, h / r, w / r)[c * r * r + h % r * r + w % r];
  }
}

static void cross_entropy(const op_case *k, double *const *in, double *out) {
  int64_t N = k->in[0].shape[0], C = k->in[0].shape[1];
  double e = k->f[0];
  out[0] = 0;
  for (int64_t n = 0; n < N; n++) {
    const double *x = in[0] + n * C;
    double max = -INFINITY, sum = 0;
    for (int64_t c = 0; c < C; c++) max = fmax(max, x[c]);
    for (int64_t c = 0; c < C; c++) sum += exp(x[c] - max);
    for (int64_t c = 0; c < C; c++) {
      double target = k->op == II_OP_soft_ce ? in[1][n * C + c]
                                             : (c == (int64_t)in[1][n] ? 1 - e : 0) + e / (double)C;
      out[0] -= target * (x[c] - max - log(sum)) / (double)N;
    }
  }
}

static void columns(const op_case *k, double *const *in, double *out) {
  int64_t A = k->in[0].shape[1], rows = k->in[0].shape[0];
  bool slice = k->op == II_OP_slice;
  int64_t from = slice ? k->i[0] : 0, n = slice ? k->i[1] : A, B = slice ? 0 : k->in[1].shape[1];
  if (k->in[0].ndim == 3) {
    A = k->in[0].shape[2];
    rows *= k->in[0].shape[1];
  }
  for (int64_t t = 0; t < rows * (n + B); t++) {
    int64_t r = t / (n + B), c = t % (n + B);
    out[t] = c < n ? in[0][r * A + from + c] : in[1][r * B + c - n];
  }
}

bool op_reference(const op_case *k, double *const *in, double *out, double *const *state) {
  int64_t n = op_input_numel(&k->in[0]), last = k->in[0].shape[k->in[0].ndim - 1];
  if (k->flags & CASE_COMPOSITE) return false;
  switch (k->op) {
  case II_OP_linear:
    linear(k, in, out);
    return true;
  case II_OP_linear_gelu:
    linear(k, in, out);
    n = n / last * k->in[1].shape[0];
    for (int64_t i = 0; i < n; i++) out[i] = element(k->op, out[i]);
    return true;
  case II_OP_bmm:
    bmm(k, in, out);
    return true;
  case II_OP_conv2d:
  case II_OP_dwconv2d:
    conv(k, in, out);
    return true;
  case II_OP_layer_norm:
    layer_norm(k, in, out);
    return true;
  case II_OP_norm_residual:
    norm_residual(k, in, out);
    return true;
  case II_OP_residual_norm:
    residual_norm(k, in, out);
    return true;
  case II_OP_batch_norm:
    batch_norm(k, in, out, state);
    return true;
  case II_OP_softmax:
    for (int64_t i = 0; i < n; i += last) softmax(in[0] + i, 1, last, out + i);
    return true;
  case II_OP_gelu:
  case II_OP_relu:
  case II_OP_silu:
  case II_OP_sigmoid:
  case II_OP_cast:
  case II_OP_reshape:
    for (int64_t i = 0; i < n; i++) out[i] = element(k->op, in[0][i]);
    return true;
  case II_OP_add:
    for (int64_t i = 0; i < n; i++) out[i] = in[0][i] + in[1][i];
    return true;
  case II_OP_dcnv3:
  case II_OP_dcnv4:
    dcn(k, in, out);
    return true;
  case II_OP_residual:
    residual(k, in, out);
    return true;
  case II_OP_group_mix:
    group_mix(k, in, out);
    return true;
  case II_OP_mean_pool:
    mean_pool(k, in, out);
    return true;
  case II_OP_avg_pool2d:
  case II_OP_max_pool2d:
    pool(k, in, out);
    return true;
  case II_OP_transpose:
    transpose(k, in, out);
    return true;
  case II_OP_pixel_shuffle:
    pixel_shuffle(k, in, out);
    return true;
  case II_OP_soft_ce:
  case II_OP_smooth_ce:
    cross_entropy(k, in, out);
    return true;
  case II_OP_slice:
  case II_OP_concat:
    columns(k, in, out);
    return true;
  default:
    return false;
  }
}
