/* The convolutions behind the stand-in of cuDNN: plain loops over host memory. */
#ifndef II_EMULATE_DNN_CONV_H
#define II_EMULATE_DNN_CONV_H
#include <cudnn.h>
#include <stdint.h>

namespace ii_emu {

enum dnn_direction { DNN_FORWARD, DNN_BACKWARD_DATA, DNN_BACKWARD_FILTER };

/* A tensor of dimensions a,b,c,d (N,C,H,W or O,C,kh,kw) with strides in elements. */
struct dnn_tensor {
  cudnnDataType_t type; /* FLOAT, HALF or BFLOAT16 */
  int64_t id, alignment, dims[4], strides[4];
};

/* result = alpha * convolution + beta * result, where the result is y, x or w. Correlation, sums in
 * float. rounds_inputs: operands lose bits first, as in TF32. backwards: sums in another order. */
struct dnn_convolution {
  dnn_direction direction;
  dnn_tensor x, w, y;
  int64_t stride[2], pad[2], dilation[2];
  float alpha, beta;
  bool rounds_inputs, backwards;
};

/* Bytes of one element; 0 for types that have no convolution here. */
int64_t dnn_type_size(cudnnDataType_t type);
/* Bytes from the first to behind the last element. */
int64_t dnn_tensor_bytes(const dnn_tensor &t);

void dnn_convolve(const dnn_convolution &c, void *x, void *w, void *y);

} // namespace ii_emu

#endif
