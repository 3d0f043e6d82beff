/* y[r*y_stride + i] = or += x[r*x_stride + i]: columns of a matrix into columns of another.
 * Mapping: a block is a few rows high and as many units wide as its power of two allows; a thread
 * walks over rows. A unit is the largest of 16, 8, 4, 2 bytes that divides both addresses, both
 * strides and the width (copies), or 16 bytes of elements, else one (sums).
 * Bytes: rows * n * size, two or three times. No index is ever divided. */
#include "kernels/cuda/flat.h"

namespace {

enum { THREADS = 256 };

/* Sizes in units. */
struct extent {
  int64_t rows, n, x_stride, y_stride;
};

template <typename U> struct copy_unit {
  static __device__ __forceinline__ void run(U *y, const U *x) { *y = *x; }
};

/* A unit of V elements. */
template <typename T, int V> struct add_unit {
  static __device__ __forceinline__ void run(ii_vec<T, V> *y, const ii_vec<T, V> *x) {
    ii_real_of<T> v[V];
    ii_get((const T *)x, v);
    ii_put_or_add((T *)y, v, true);
  }
};

template <typename U, typename F> __global__ void rows_kernel(const extent e, const U *x, U *y) {
  const int64_t column = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
  const int64_t column_step = (int64_t)gridDim.y * blockDim.x;
  const int64_t row_step = (int64_t)gridDim.x * blockDim.y;
  for (int64_t r = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; r < e.rows; r += row_step)
    for (int64_t i = column; i < e.n; i += column_step)
      F::run(y + r * e.y_stride + i, x + r * e.x_stride + i);
}

template <typename U, typename F> int run_units(ii_kctx *k, const ii_copy2d_args *a, size_t size) {
  const int64_t part = (int64_t)(sizeof(U) / size); /* elements per unit */
  const extent e = {a->rows, a->n / part, a->x_stride / part, a->y_stride / part};
  unsigned wide = 1;
  while (wide < THREADS && wide < e.n) wide *= 2;
  const unsigned high = THREADS / wide;
  const int64_t most = (int64_t)ii_cuda_sm_count(k) * 32;
  const int64_t down = ii_ceil_div(e.rows, high), across = ii_ceil_div(e.n, wide);
  const int64_t grid_x = down < most ? down : most;
  const int64_t room = ii_ceil_div(most, grid_x);
  const int64_t grid_y = across < room ? across : room;
  const dim3 grid((unsigned)grid_x, (unsigned)(grid_y < 65535 ? grid_y : 65535), 1);
  II_LAUNCH(k, (rows_kernel<U, F>), grid, dim3(wide, high, 1), 0, e, (const U *)a->x, (U *)a->y);
  return 0;
}

/* The largest power of two up to 16 that divides all addresses and byte counts. */
int common_unit(const ii_copy2d_args *a, size_t size) {
  const uint64_t all = (uint64_t)(uintptr_t)a->x | (uint64_t)(uintptr_t)a->y |
                       (uint64_t)a->n * size | (uint64_t)a->x_stride * size |
                       (uint64_t)a->y_stride * size | 16u;
  return (int)(all & (~all + 1));
}

int copy_rows(ii_kctx *k, const ii_copy2d_args *a, size_t size) {
  switch (common_unit(a, size)) {
  case 16:
    return run_units<uint4, copy_unit<uint4>>(k, a, size);
  case 8:
    return run_units<uint2, copy_unit<uint2>>(k, a, size);
  case 4:
    return run_units<uint32_t, copy_unit<uint32_t>>(k, a, size);
  default:
    return run_units<uint16_t, copy_unit<uint16_t>>(k, a, size);
  }
}

template <typename T> int add_rows(ii_kctx *k, const ii_copy2d_args *a) {
  constexpr int V = ii_wide<T>::n;
  if (common_unit(a, sizeof(T)) == 16)
    return run_units<ii_vec<T, V>, add_unit<T, V>>(k, a, sizeof(T));
  return run_units<ii_vec<T, 1>, add_unit<T, 1>>(k, a, sizeof(T));
}

} // namespace

extern "C" int ii_cuda_copy2d(ii_kctx *k, const ii_copy2d_args *args) {
  ii_copy2d_args a = *args;
  if (a.rows <= 0 || a.n <= 0) return 0;
  if (a.rows == 1) a.x_stride = a.y_stride = a.n; /* of no meaning, and must not narrow the unit */
  const size_t size = ii_dtype_size(a.x_dtype);
  if (!a.accumulate) {
    if (a.x_stride != a.n || a.y_stride != a.n) return copy_rows(k, &a, size);
    II_CUDA_TRY(k, cudaMemcpyAsync(a.y, a.x, (size_t)(a.rows * a.n) * size,
                                   cudaMemcpyDeviceToDevice, ii_cuda_stream(k)));
    return 0;
  }
  II_WITH_TYPE(k, a.x_dtype, T, return add_rows<T>(k, &a));
}
