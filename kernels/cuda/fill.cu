/* y[r][i] = value. Mapping: 16 bytes per thread, grid-stride; by the size of the type alone.
 * Columns of a matrix: one element per thread, with a division; they are the few that pad a row.
 * Bytes: rows * n * size. */
#include <string.h>
#include "kernels/cuda/flat.h"

namespace {

template <typename U> struct fill {
  U bits;
  U *y;
  template <int V> __device__ __forceinline__ void run(int64_t i) const {
    ii_vec<U, V> v;
#pragma unroll
    for (int j = 0; j < V; j++) v.v[j] = bits;
    ii_store(y + i, v);
  }
};

template <typename U> struct fill_columns {
  U bits;
  U *y;
  int64_t n, stride;
  template <int V> __device__ __forceinline__ void run(int64_t i) const {
    static_assert(V == 1, "rows are not a multiple of a vector");
    y[i / n * stride + i % n] = bits;
  }
};

template <typename U> int run_fill(ii_kctx *k, const ii_fill_args *a, U bits) {
  constexpr int V = ii_wide<U>::n;
  if (a->rows != 1) {
    const fill_columns<U> f = {bits, (U *)a->y, a->n, a->y_stride};
    return ii_flat_run<1>(k, a->rows * a->n, true, f);
  }
  const fill<U> f = {bits, (U *)a->y};
  return ii_flat_run<V>(k, a->n, ii_aligned<V>(f.y), f);
}

/* The bits of v as the unsigned integer U. */
template <typename U, typename T> U bits_of(T v) {
  static_assert(sizeof(U) == sizeof(T), "same size");
  U u;
  memcpy(&u, &v, sizeof u);
  return u;
}

} // namespace

extern "C" int ii_cuda_fill(ii_kctx *k, const ii_fill_args *a) {
  switch (a->y_dtype) {
  case II_F32:
    return run_fill<uint32_t>(k, a, bits_of<uint32_t>((float)a->value));
  case II_F64:
    return run_fill<uint64_t>(k, a, bits_of<uint64_t>(a->value));
  case II_BF16:
    return run_fill<uint16_t>(k, a, ii_f32_to_bf16((float)a->value));
  case II_F16:
    return run_fill<uint16_t>(k, a, ii_f32_to_f16((float)a->value));
  case II_I32:
    return run_fill<uint32_t>(k, a, bits_of<uint32_t>((int32_t)a->value));
  default:
    return ii_cuda_error(k, "fill: no tensors of type %d; use f32, f64, f16, bf16 or i32",
                         (int)a->y_dtype);
  }
}
