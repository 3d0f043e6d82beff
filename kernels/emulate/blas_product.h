/* The product behind the stand-in of cuBLASLt: plain column-major matrices in host memory. */
#ifndef II_EMULATE_BLAS_PRODUCT_H
#define II_EMULATE_BLAS_PRODUCT_H
#include <cuda_runtime_api.h>
#include <library_types.h>
#include <stdint.h>

namespace ii_emu {

/* `data` + stack*stride holds a rows x cols matrix by columns, `ld` elements apart. */
struct blas_matrix {
  cudaDataType_t type; /* CUDA_R_32F, 64F, 16F or 16BF */
  int64_t rows, cols, ld, stride;
  void *data;
};

/* D = alpha op(A) op(B) + beta C + bias, `batch` times. op is the transpose where trans_* says so;
 * bias has one element of D's type per row of D, or is NULL. C is not read when beta is 0; it may
 * be D. Sums run in float, or in double for double matrices, in an order that depends on the inner
 * size alone: 256 products one after another, then these sums one after another. */
struct blas_problem {
  blas_matrix a, b, c, d;
  bool trans_a, trans_b;
  int64_t batch;
  double alpha, beta;
  const void *bias;
};
void blas_multiply(const blas_problem &p);

/* Bytes of one element; 0 for types that have no product here. */
int64_t blas_type_size(cudaDataType_t type);

} // namespace ii_emu

#endif
