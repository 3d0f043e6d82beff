/* Residual branch with layer scale and stochastic depth: y = x + keep[n] * gamma[c] * f; backward
 * gf = keep gamma gy, dL/dgamma = sum keep gy f.
 * Mapping: forward element by element; backward by columns as in reduce.h: gf is written on the way
 * of the sums for gamma, which two stages add in a fixed order.
 * Bytes: forward N*rows*C*(x + f + y), backward N*rows*C*(gy + gf (twice when accumulating) + f
 * (with ggamma)).
 * Limits: 16-byte accesses only where C and the pointers allow them. */
#include "kernels/cuda/reduce.h"

namespace {

template <typename X, typename F, typename R> struct branch {
  const X *x;
  const F *f;
  const R *gamma, *keep; /* or NULL */
  X *y;
  template <int V> __device__ __forceinline__ void run(int64_t i, int64_t c, int64_t n) const {
    R v[V], w[V], g[V];
    const R s = keep ? keep[n] : R(1);
    ii_get(x + i, v);
    ii_get(f + i, w);
    if (gamma) {
      ii_get(gamma + c, g);
#pragma unroll
      for (int j = 0; j < V; j++) v[j] += s * g[j] * w[j];
    } else {
#pragma unroll
      for (int j = 0; j < V; j++) v[j] += s * w[j];
    }
    ii_put(y + i, v);
  }
};

template <typename X, typename F, typename R, int V> struct branch_gradient {
  const X *gy;
  const F *f; /* NULL: no sums for gamma */
  const R *gamma, *keep;
  F *gf;
  bool accumulate;
  int64_t rows, C;
  R s; /* of the sample that ends before row `next` */
  int64_t next;
  __device__ __forceinline__ void add(int64_t r, int64_t c, R (&acc)[1][V]) {
    R g[V], v[V];
    if (r >= next) {
      const int64_t n = r / rows;
      s = keep[n];
      next = (n + 1) * rows;
    }
    ii_get(gy + r * C + c, g);
#pragma unroll
    for (int j = 0; j < V; j++) g[j] *= s;
    if (f) {
      ii_get(f + r * C + c, v);
#pragma unroll
      for (int j = 0; j < V; j++) acc[0][j] += g[j] * v[j];
    }
    if (!gf) return;
    if (gamma) {
      ii_get(gamma + c, v);
#pragma unroll
      for (int j = 0; j < V; j++) g[j] *= v[j];
    }
    ii_put_or_add(gf + r * C + c, g, accumulate);
  }
};

template <typename X, typename F> int forward(ii_kctx *k, const ii_residual_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, F>::n;
  const branch<X, F, R> f = {(const X *)a->x, (const F *)a->f, (const R *)a->gamma,
                             (const R *)a->keep, (X *)a->y};
  const int64_t images = a->keep ? a->N : 1, rows = a->keep ? a->rows : a->N * a->rows;
  const bool wide = a->C % V == 0 && ii_flat_aligned<V>(f.x) && ii_flat_aligned<V>(f.f) &&
                    ii_flat_aligned<V>(f.gamma) && ii_flat_aligned<V>(f.y);
  return wide ? ii_run_columns<V>(k, f, images, rows, a->C)
              : ii_run_columns<1>(k, f, images, rows, a->C);
}

template <typename X, typename F, typename R, int V>
int backward_with(ii_kctx *k, const ii_residual_args *a) {
  const branch_gradient<X, F, R, V> f = {(const X *)a->gy,
                                         a->ggamma ? (const F *)a->f : NULL,
                                         (const R *)a->gamma,
                                         (const R *)a->keep,
                                         (F *)a->gf,
                                         a->acc_gf,
                                         a->rows,
                                         a->C,
                                         R(1),
                                         a->keep ? 0 : INT64_MAX};
  const ii_column_out<R> out = {{(R *)a->ggamma, NULL}, {a->acc_ggamma, false}, NULL, R(1)};
  return ii_sum_columns<R, 1, V>(k, f, a->N * a->rows, a->C, a->ggamma != NULL, out);
}

template <typename X, typename F> int backward(ii_kctx *k, const ii_residual_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, F>::n;
  const bool wide = a->C % V == 0 && ii_flat_aligned<V>((const X *)a->gy) &&
                    (!a->ggamma || ii_flat_aligned<V>((const F *)a->f)) &&
                    ii_flat_aligned<V>((const R *)a->gamma) && ii_flat_aligned<V>((F *)a->gf);
  return wide ? backward_with<X, F, R, V>(k, a) : backward_with<X, F, R, 1>(k, a);
}

} // namespace

extern "C" int ii_cuda_residual_fwd(ii_kctx *k, const ii_residual_args *a) {
  if (a->N * a->rows * a->C == 0) return 0;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->f_dtype, X, F, return forward<X, F>(k, a));
  return 0;
}

extern "C" int ii_cuda_residual_bwd(ii_kctx *k, const ii_residual_args *a) {
  if (a->C == 0 || (!a->gf && !a->ggamma)) return 0;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->f_dtype, X, F, return backward<X, F>(k, a));
  return 0;
}
