/* c = a + b, the sum taken in fp32 (fp64). Element-wise, c may be a or b.
 * Mapping: 16 bytes of elements per thread, grid-stride. Bytes: 3 * n * size. */
#include "kernels/cuda/flat.h"

namespace {

template <typename T> struct add {
  const T *a, *b;
  T *c;
  template <int V> __device__ __forceinline__ void run(int64_t i) const {
    ii_real_of<T> x[V], y[V];
    ii_get(a + i, x);
    ii_get(b + i, y);
#pragma unroll
    for (int j = 0; j < V; j++) x[j] += y[j];
    ii_put(c + i, x);
  }
};

template <typename T> int run_add(ii_kctx *k, const ii_add_args *a) {
  constexpr int V = ii_wide<T>::n;
  const add<T> f = {(const T *)a->a, (const T *)a->b, (T *)a->c};
  const bool aligned =
      ii_flat_aligned<V>(f.a) && ii_flat_aligned<V>(f.b) && ii_flat_aligned<V>(f.c);
  return ii_flat_run<V>(k, a->n, aligned, f);
}

} // namespace

extern "C" int ii_cuda_add_fwd(ii_kctx *k, const ii_add_args *a) {
  II_WITH_TYPE(k, a->x_dtype, T, return run_add<T>(k, a));
}
