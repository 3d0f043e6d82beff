/* Products in host memory. Both operands are widened and packed into strips (WIDE rows of D, NARROW
 * columns of D) that hold the inner dimension one behind another; a tile of D then stays in
 * registers while the inner dimension runs. */
#include "kernels/emulate/blas_product.h"
#include <algorithm>
#include <vector>
#include "kernels/dtype.h"

namespace ii_emu {

namespace {

const int64_t BLOCK = 256; /* products that are summed before they join a longer sum */
const int NARROW = 4;

template <typename R> struct tile {
  typedef R vector __attribute__((vector_size(32)));
  static constexpr int LANES = 32 / (int)sizeof(R);
  static constexpr int WIDE = 2 * LANES;
};

template <typename R> R widen(cudaDataType_t type, const void *p, int64_t i) {
  switch (type) {
  case CUDA_R_16F:
    return (R)ii_f16_to_f32(static_cast<const uint16_t *>(p)[i]);
  case CUDA_R_16BF:
    return (R)ii_bf16_to_f32(static_cast<const uint16_t *>(p)[i]);
  case CUDA_R_64F:
    return (R) static_cast<const double *>(p)[i];
  default:
    return (R) static_cast<const float *>(p)[i];
  }
}

template <typename R> void narrow(cudaDataType_t type, void *p, int64_t i, R v) {
  switch (type) {
  case CUDA_R_16F:
    static_cast<uint16_t *>(p)[i] = ii_f32_to_f16((float)v);
    break;
  case CUDA_R_16BF:
    static_cast<uint16_t *>(p)[i] = ii_f32_to_bf16((float)v);
    break;
  case CUDA_R_64F:
    static_cast<double *>(p)[i] = (double)v;
    break;
  default:
    static_cast<float *>(p)[i] = (float)v;
  }
}

/* The stack's matrix number n. */
void *matrix_at(const blas_matrix &m, int64_t n) {
  return static_cast<char *>(m.data) + n * m.stride * blas_type_size(m.type);
}

/* Strips of `width` of the outer dimension: out[strip][k][width], zeros behind the edge. The outer
 * dimension of the matrix at `in` is its columns if `by_columns`, else its rows. */
template <typename R>
void pack(const blas_matrix &m, const void *in, bool by_columns, int width, std::vector<R> *out) {
  const int64_t outer = by_columns ? m.cols : m.rows, inner = by_columns ? m.rows : m.cols;
  const int64_t outer_step = by_columns ? m.ld : 1, inner_step = by_columns ? 1 : m.ld;
  const int64_t strips = (outer + width - 1) / width;
  out->assign((size_t)(strips * inner * width), R(0));
  for (int64_t s = 0; s < strips; s++) {
    R *strip = out->data() + s * inner * width;
    const int64_t end = std::min<int64_t>(width, outer - s * width);
    for (int64_t k = 0; k < inner; k++)
      for (int64_t i = 0; i < end; i++)
        strip[k * width + i] = widen<R>(m.type, in, (s * width + i) * outer_step + k * inner_step);
  }
}

/* sum[NARROW][2 vectors] = the tile of two packed strips. Not instrumented: it reads what pack()
 * wrote, and the whole time of a product is spent here. */
template <typename R>
__attribute__((optimize("O3"), noinline, no_sanitize("address", "undefined", "thread"))) void
multiply_strips(int64_t inner, const R *a, const R *b, typename tile<R>::vector *total) {
  typedef typename tile<R>::vector V;
  for (int i = 0; i < 2 * NARROW; i++) total[i] = V{};
  for (int64_t first = 0; first < inner; first += BLOCK) {
    const int64_t end = std::min(inner, first + BLOCK);
    V sum[2 * NARROW] = {};
    for (int64_t k = first; k < end; k++) {
      V left, right;
      __builtin_memcpy(&left, a + k * tile<R>::WIDE, sizeof left);
      __builtin_memcpy(&right, a + k * tile<R>::WIDE + tile<R>::LANES, sizeof right);
      for (int j = 0; j < NARROW; j++) {
        const R factor = b[k * NARROW + j];
        sum[2 * j] += left * factor;
        sum[2 * j + 1] += right * factor;
      }
    }
    for (int i = 0; i < 2 * NARROW; i++) total[i] += sum[i];
  }
}

/* Writes the tile at row i0, column j0 of D. */
template <typename R>
void write_tile(const blas_problem &p, int64_t n, int64_t i0, int64_t j0, const R *sum) {
  const void *c = matrix_at(p.c, n);
  void *d = matrix_at(p.d, n);
  const int64_t rows = std::min<int64_t>(tile<R>::WIDE, p.d.rows - i0);
  const int64_t cols = std::min<int64_t>(NARROW, p.d.cols - j0);
  for (int64_t j = 0; j < cols; j++)
    for (int64_t i = 0; i < rows; i++) {
      R v = (R)p.alpha * sum[j * tile<R>::WIDE + i];
      if (p.beta != 0) v += (R)p.beta * widen<R>(p.c.type, c, (j0 + j) * p.c.ld + i0 + i);
      if (p.bias) v += widen<R>(p.d.type, p.bias, i0 + i);
      narrow<R>(p.d.type, d, (j0 + j) * p.d.ld + i0 + i, v);
    }
}

template <typename R> void multiply(const blas_problem &p) {
  const int64_t wide = tile<R>::WIDE, inner = p.trans_a ? p.a.rows : p.a.cols;
  std::vector<R> a, b;
  typename tile<R>::vector sum[2 * NARROW];
  for (int64_t n = 0; n < p.batch; n++) {
    pack<R>(p.a, matrix_at(p.a, n), p.trans_a, (int)wide, &a);
    pack<R>(p.b, matrix_at(p.b, n), !p.trans_b, NARROW, &b);
    for (int64_t j = 0; j < p.d.cols; j += NARROW)
      for (int64_t i = 0; i < p.d.rows; i += wide) {
        multiply_strips<R>(inner, a.data() + i * inner, b.data() + j * inner, sum);
        write_tile<R>(p, n, i, j, reinterpret_cast<const R *>(sum));
      }
  }
}

} // namespace

int64_t blas_type_size(cudaDataType_t type) {
  switch (type) {
  case CUDA_R_16F:
  case CUDA_R_16BF:
    return 2;
  case CUDA_R_32F:
    return 4;
  case CUDA_R_64F:
    return 8;
  default:
    return 0;
  }
}

void blas_multiply(const blas_problem &p) {
  if (p.d.type == CUDA_R_64F)
    multiply<double>(p);
  else
    multiply<float>(p);
}

} // namespace ii_emu
