/* Convolution as it is defined, on dense float copies of the operands: x[N,H,W,C], w[kh,kw,C,O] or
 * w[O,kh,kw,C], y[N,Ho,Wo,O], so that the innermost loops run over neighbouring numbers. */
#include "kernels/emulate/dnn_conv.h"
#include <string.h>
#include <vector>
#include "kernels/dtype.h"

namespace ii_emu {

namespace {

float read(const char *p, cudnnDataType_t type) {
  uint16_t bits;
  float v;
  if (type == CUDNN_DATA_FLOAT) {
    memcpy(&v, p, sizeof v);
    return v;
  }
  memcpy(&bits, p, sizeof bits);
  return type == CUDNN_DATA_HALF ? ii_f16_to_f32(bits) : ii_bf16_to_f32(bits);
}

void write(char *p, cudnnDataType_t type, float v) {
  if (type == CUDNN_DATA_FLOAT) {
    memcpy(p, &v, sizeof v);
    return;
  }
  const uint16_t bits = type == CUDNN_DATA_HALF ? ii_f32_to_f16(v) : ii_f32_to_bf16(v);
  memcpy(p, &bits, sizeof bits);
}

/* f(address, index in a dense copy with the dimensions in the order p0..p3) for every element. */
template <typename F> void each(const dnn_tensor &t, const int (&order)[4], void *data, F f) {
  const int64_t size = dnn_type_size(t.type);
  char *base = static_cast<char *>(data);
  int64_t at = 0, i[4];
  for (i[0] = 0; i[0] < t.dims[order[0]]; i[0]++)
    for (i[1] = 0; i[1] < t.dims[order[1]]; i[1]++)
      for (i[2] = 0; i[2] < t.dims[order[2]]; i[2]++)
        for (i[3] = 0; i[3] < t.dims[order[3]]; i[3]++) {
          int64_t offset = 0;
          for (int d = 0; d < 4; d++) offset += i[d] * t.strides[order[d]];
          f(base + offset * size, at++);
        }
}

typedef std::vector<float> floats;
const int PIXELS[4] = {0, 2, 3, 1};   /* N,H,W,C and O,kh,kw,C */
const int BY_INPUT[4] = {2, 3, 1, 0}; /* kh,kw,C,O */

floats zeros(const dnn_tensor &t) {
  return floats(static_cast<size_t>(t.dims[0] * t.dims[1] * t.dims[2] * t.dims[3]), 0.0f);
}

/* TF32 keeps 10 bits behind the point. */
float shortened(float v) {
  uint32_t u;
  memcpy(&u, &v, sizeof u);
  u = (u + 0x1000u) & ~0x1fffu;
  memcpy(&v, &u, sizeof v);
  return v;
}

floats load(const dnn_convolution &c, const dnn_tensor &t, const int (&order)[4], void *data) {
  floats f = zeros(t);
  each(t, order, data, [&](char *p, int64_t i) {
    const float v = read(p, t.type);
    f[static_cast<size_t>(i)] = c.rounds_inputs ? shortened(v) : v;
  });
  return f;
}

void store(const dnn_convolution &c, const dnn_tensor &t, const floats &f, void *data) {
  each(t, PIXELS, data, [&](char *p, int64_t i) {
    const float old = c.beta != 0.0f ? c.beta * read(p, t.type) : 0.0f;
    write(p, t.type, c.alpha * f[static_cast<size_t>(i)] + old);
  });
}

void add(int64_t n, float factor, const float *from, float *to) {
  for (int64_t i = 0; i < n; i++) to[i] += factor * from[i];
}

/* f(x pixel, tap, y pixel) for every pair of pixels that a tap connects. */
template <typename F> void taps(const dnn_convolution &c, F f) {
  const int64_t H = c.x.dims[2], W = c.x.dims[3], Ho = c.y.dims[2], Wo = c.y.dims[3];
  const int64_t kw = c.w.dims[3], all = c.w.dims[2] * kw;
  for (int64_t p = 0; p < c.y.dims[0] * Ho * Wo; p++)
    for (int64_t i = 0; i < all; i++) {
      const int64_t t = c.backwards ? all - 1 - i : i, n = p / Wo / Ho;
      const int64_t h = p / Wo % Ho * c.stride[0] - c.pad[0] + t / kw * c.dilation[0];
      const int64_t v = p % Wo * c.stride[1] - c.pad[1] + t % kw * c.dilation[1];
      if (h >= 0 && h < H && v >= 0 && v < W) f((n * H + h) * W + v, t, p);
    }
}

} // namespace

int64_t dnn_type_size(cudnnDataType_t type) {
  if (type == CUDNN_DATA_FLOAT) return 4;
  return type == CUDNN_DATA_HALF || type == CUDNN_DATA_BFLOAT16 ? 2 : 0;
}

int64_t dnn_tensor_bytes(const dnn_tensor &t) {
  int64_t last = 0;
  for (int i = 0; i < 4; i++) last += (t.dims[i] - 1) * t.strides[i];
  return (last + 1) * dnn_type_size(t.type);
}

void dnn_convolve(const dnn_convolution &c, void *x, void *w, void *y) {
  const int64_t C = c.x.dims[1], O = c.y.dims[1];
  if (c.direction == DNN_FORWARD) {
    const floats fx = load(c, c.x, PIXELS, x), fw = load(c, c.w, BY_INPUT, w);
    floats fy = zeros(c.y);
    taps(c, [&](int64_t px, int64_t t, int64_t py) {
      for (int64_t i = 0; i < C; i++) add(O, fx[px * C + i], &fw[(t * C + i) * O], &fy[py * O]);
    });
    store(c, c.y, fy, y);
  } else if (c.direction == DNN_BACKWARD_DATA) {
    const floats fy = load(c, c.y, PIXELS, y), fw = load(c, c.w, PIXELS, w);
    const int64_t all = c.w.dims[2] * c.w.dims[3];
    floats fx = zeros(c.x);
    taps(c, [&](int64_t px, int64_t t, int64_t py) {
      for (int64_t o = 0; o < O; o++) add(C, fy[py * O + o], &fw[(o * all + t) * C], &fx[px * C]);
    });
    store(c, c.x, fx, x);
  } else {
    const floats fy = load(c, c.y, PIXELS, y), fx = load(c, c.x, PIXELS, x);
    const int64_t all = c.w.dims[2] * c.w.dims[3];
    floats fw = zeros(c.w);
    taps(c, [&](int64_t px, int64_t t, int64_t py) {
      for (int64_t o = 0; o < O; o++) add(C, fy[py * O + o], &fx[px * C], &fw[(o * all + t) * C]);
    });
    store(c, c.w, fw, w);
  }
}

} // namespace ii_emu
