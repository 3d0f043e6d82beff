/* GELU (erf form), ReLU, SiLU and sigmoid: y = f(x), gx = f'(x or y) gy.
 * Mapping: as many elements per thread as make 16 bytes of the narrowest type, grid-stride.
 * Bytes: forward n * (x + y), backward n * (saved + gy + gx (twice when accumulating)).
 * GELU's backward with the sums of its columns: blocks of rows of the matrix (reduce.h), whose sums
 * a second kernel adds in order; the same bytes and the partial sums.
 * Limits: bound by memory in fp32; in 16 bits GELU's 30 instructions come close to it. */
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/normal.h"

namespace {

/* value(x), and slope(s) from what is saved: x or, where y_saved, y. */
struct gelu {
  static constexpr bool y_saved = false;
  template <typename R> static __device__ __forceinline__ R value(R x) { return ii_gelu(x); }
  template <typename R> static __device__ __forceinline__ R slope(R x) { return ii_gelu_slope(x); }
};
struct relu {
  static constexpr bool y_saved = true;
  template <typename R> static __device__ __forceinline__ R value(R x) {
    return x <= R(0) ? R(0) : x; /* NaN stays */
  }
  template <typename R> static __device__ __forceinline__ R slope(R y) {
    return y > R(0) ? R(1) : R(0);
  }
};
struct silu {
  static constexpr bool y_saved = false;
  template <typename R> static __device__ __forceinline__ R value(R x) { return x * ii_sigmoid(x); }
  template <typename R> static __device__ __forceinline__ R slope(R x) {
    const R s = ii_sigmoid(x);
    return s + s * (x * (R(1) - s));
  }
};
struct sigmoid {
  static constexpr bool y_saved = true;
  template <typename R> static __device__ __forceinline__ R value(R x) { return ii_sigmoid(x); }
  template <typename R> static __device__ __forceinline__ R slope(R y) { return y * (R(1) - y); }
};

template <typename Op, typename X, typename Y> struct forward {
  const X *x;
  Y *y;
  template <int V> __device__ __forceinline__ void run(int64_t i) const {
    ii_real_of<X> v[V];
    ii_get(x + i, v);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = Op::value(v[j]);
    ii_put(y + i, v);
  }
};

template <typename Op, typename S, typename X, typename Y> struct backward {
  const S *saved;
  const Y *gy;
  X *gx;
  bool accumulate;
  template <int V> __device__ __forceinline__ void run(int64_t i) const {
    ii_real_of<X> s[V], g[V];
    ii_get(saved + i, s);
    ii_get(gy + i, g);
#pragma unroll
    for (int j = 0; j < V; j++) g[j] *= Op::slope(s[j]);
    ii_put_or_add(gx + i, g, accumulate);
  }
};

template <typename Op, typename X, typename Y>
int run_forward(ii_kctx *k, const ii_eltwise_args *a) {
  constexpr int V = ii_flat_width<X, Y>::n;
  const forward<Op, X, Y> f = {(const X *)a->x, (Y *)a->y};
  return ii_flat_run<V>(k, a->n, ii_flat_aligned<V>(f.x) && ii_flat_aligned<V>(f.y), f);
}

template <typename Op, typename S, typename X, typename Y>
int run_backward(ii_kctx *k, const ii_eltwise_args *a) {
  constexpr int V = ii_flat_width<X, Y>::n;
  const backward<Op, S, X, Y> f = {(const S *)(Op::y_saved ? a->y : a->x), (const Y *)a->gy,
                                   (X *)a->gx, a->acc_gx};
  const bool aligned =
      ii_flat_aligned<V>(f.saved) && ii_flat_aligned<V>(f.gy) && ii_flat_aligned<V>(f.gx);
  return ii_flat_run<V>(k, a->n, aligned, f);
}

/* Backward with the sums of the columns of gx[rows, C] (see ii_column_partials). */
template <typename X, typename Y> struct gelu_sums {
  const X *x;
  const Y *gy;
  X *gx;
  int64_t C;
  bool accumulate;
  template <int V>
  __device__ __forceinline__ void add(int64_t r, int64_t c, ii_real_of<X> (&acc)[1][V]) const {
    ii_real_of<X> s[V], g[V];
    const int64_t i = r * C + c;
    ii_get(x + i, s);
    ii_get(gy + i, g);
#pragma unroll
    for (int j = 0; j < V; j++) {
      g[j] *= gelu::slope(s[j]);
      acc[0][j] += g[j];
    }
    if (gx) ii_put_or_add(gx + i, g, accumulate);
  }
};

template <int V, typename X, typename Y>
int sum_gelu(ii_kctx *k, const ii_eltwise_args *a, const gelu_sums<X, Y> &f) {
  typedef ii_real_of<X> R;
  const ii_column_out<R> o = {{(R *)a->gb, NULL}, {a->acc_gb, false}, NULL, R(0)};
  return ii_sum_columns<R, 1, V>(k, f, a->n / a->C, a->C, true, o);
}

template <typename X, typename Y> int run_gelu_sums(ii_kctx *k, const ii_eltwise_args *a) {
  constexpr int V = ii_flat_width<X, Y>::n;
  const gelu_sums<X, Y> f = {(const X *)a->x, (const Y *)a->gy, (X *)a->gx, a->C, a->acc_gx};
  const bool wide = a->C % V == 0 && ii_flat_aligned<V>(f.x) && ii_flat_aligned<V>(f.gy) &&
                    ii_flat_aligned<V>(f.gx);
  if (a->C <= 0) return 0;
  return wide ? sum_gelu<V>(k, a, f) : sum_gelu<1>(k, a, f);
}

int gelu_with_sums(ii_kctx *k, const ii_eltwise_args *a) {
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y, return (run_gelu_sums<X, Y>(k, a)));
  return 0;
}

template <typename Op, typename X, typename Y>
int run_pair(ii_kctx *k, const ii_eltwise_args *a, bool back) {
  if constexpr (!ii_mixable<X, Y>::ok)
    return ii_cuda_error(k,
                         "eltwise: no kernel from %s to %s; use one type or f32 and a 16-bit type",
                         ii_dtype_name(a->x_dtype), ii_dtype_name(a->y_dtype));
  else if (!back)
    return run_forward<Op, X, Y>(k, a);
  else if constexpr (Op::y_saved)
    return run_backward<Op, Y, X, Y>(k, a);
  else
    return run_backward<Op, X, X, Y>(k, a);
}

template <typename Op, typename X> int run_from(ii_kctx *k, const ii_eltwise_args *a, bool back) {
  II_WITH_TYPE(k, a->y_dtype, Y, return (run_pair<Op, X, Y>(k, a, back)));
}

template <typename Op> int run(ii_kctx *k, const ii_eltwise_args *a, bool back) {
  if (back && !a->gx) return 0;
  II_WITH_TYPE(k, a->x_dtype, X, return (run_from<Op, X>(k, a, back)));
}

} // namespace

#define ELTWISE_FWD(name)                                                                          \
  extern "C" int ii_cuda_##name##_fwd(ii_kctx *k, const ii_eltwise_args *a) {                      \
    return run<name>(k, a, false);                                                                 \
  }
#define ELTWISE_BWD(name)                                                                          \
  extern "C" int ii_cuda_##name##_bwd(ii_kctx *k, const ii_eltwise_args *a) {                      \
    return run<name>(k, a, true);                                                                  \
  }
ELTWISE_FWD(gelu)
ELTWISE_FWD(relu)
ELTWISE_FWD(silu)
ELTWISE_FWD(sigmoid)
ELTWISE_BWD(relu)
ELTWISE_BWD(silu)
ELTWISE_BWD(sigmoid)

extern "C" int ii_cuda_gelu_bwd(ii_kctx *k, const ii_eltwise_args *a) {
  return a->gb ? gelu_with_sums(k, a) : run<gelu>(k, a, true);
}
