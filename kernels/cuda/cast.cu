/* y = x or y += x between F32, F64, F16 and BF16. The intermediate type, in which the addition is
 * done, is fp32, and fp64 only with real = F64 and fp64 on one side; 16-bit results are rounded to
 * nearest even from fp32.
 * Mapping: as many elements per thread as make 16 bytes of the narrower type, grid-stride.
 * Bytes: n * (size of x + size of y (twice when accumulating)). */
#include <type_traits>
#include "kernels/cuda/flat.h"

namespace {

template <typename X, typename Y, typename R> struct cast {
  const X *x;
  Y *y;
  bool accumulate;
  template <int V> __device__ __forceinline__ void run(int64_t i) const {
    R v[V];
    ii_get(x + i, v);
    ii_put_or_add(y + i, v, accumulate);
  }
};

template <typename X, typename Y, typename R> int run_cast(ii_kctx *k, const ii_cast_args *a) {
  constexpr int V = ii_flat_width<X, Y>::n;
  const X *x = (const X *)a->x;
  Y *y = (Y *)a->y;
  const bool aligned = ii_flat_aligned<V>(x) && ii_flat_aligned<V>(y);
  const cast<X, Y, R> f = {x, y, a->accumulate};
  return ii_flat_run<V>(k, a->n, aligned, f);
}

template <typename X, typename Y> int run_real(ii_kctx *k, const ii_cast_args *a) {
  if constexpr (std::is_same<X, double>::value || std::is_same<Y, double>::value) {
    if (a->real == II_F64) return run_cast<X, Y, double>(k, a);
  }
  return run_cast<X, Y, float>(k, a);
}

template <typename X> int run_from(ii_kctx *k, const ii_cast_args *a) {
  II_WITH_TYPE(k, a->y_dtype, Y, return (run_real<X, Y>(k, a)));
}

} // namespace

extern "C" int ii_cuda_cast(ii_kctx *k, const ii_cast_args *a) {
  II_WITH_TYPE(k, a->x_dtype, X, return run_from<X>(k, a));
}
