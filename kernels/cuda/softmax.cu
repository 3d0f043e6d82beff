/* Softmax over the last dimension: y = exp(x - max) / sum; backward gx = y (gy - sum(y gy)).
 * Mapping: rows as in reduce.h, held in registers (backward: y and gy). The exponentials are taken
 * once.
 * Bytes: forward rows*n*(x + y), backward rows*n*(y + gy + gx (twice when accumulating)).
 * Limits: rows that are not aligned for 16 bytes, or longer than 8192, are read
 * again from the caches: forward three times, backward twice. */
#include "kernels/cuda/reduce.h"

namespace {

template <typename X, typename Y, typename R, int V, int N>
__global__ void __launch_bounds__(ii_row_block<R>::most, 1)
    softmax_rows(const X *px, Y *py, int64_t rows, int n, int lanes) {
  __shared__ R shared[32];
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  const int steps = ii_row_steps<V, N>(n, lanes);
  for (int64_t r0 = (int64_t)blockIdx.x * groups; r0 < rows; r0 += (int64_t)gridDim.x * groups) {
    const int64_t r = r0 + group;
    const int end = r < rows ? n : 0; /* all lanes stay for the shuffles */
    const X *x = px + r * n;
    Y *y = py + r * n;
    R held[N > 0 ? N : 1][V], most = -R(INFINITY), sum = R(0);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0];
      if (c >= end) continue;
      ii_get(x + c, v);
#pragma unroll
      for (int j = 0; j < V; j++) most = v[j] > most ? v[j] : most;
    }
    most = ii_row_max(most, lanes, shared);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0];
      if (c >= end) continue;
      if (N == 0) ii_get(x + c, v);
#pragma unroll
      for (int j = 0; j < V; j++) {
        v[j] = ii_exp(v[j] - most);
        sum += v[j]; /* a NaN anywhere becomes NaN everywhere */
      }
    }
    const R scale = R(1) / ii_row_sum(sum, lanes, shared);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0];
      if (c >= end) continue;
      if (N == 0) {
        ii_get(x + c, v);
        v[0] = ii_exp(v[0] - most); /* V is 1 */
      }
#pragma unroll
      for (int j = 0; j < V; j++) v[j] *= scale;
      ii_put(y + c, v);
    }
  }
}

template <typename X, typename Y, typename R, int V, int N>
__global__ void __launch_bounds__(ii_row_block<R>::most, 1)
    softmax_rows_bwd(const Y *py, const Y *pgy, X *pgx, bool accumulate, int64_t rows, int n,
                     int lanes) {
  __shared__ R shared[32];
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  const int steps = ii_row_steps<V, N>(n, lanes);
  for (int64_t r0 = (int64_t)blockIdx.x * groups; r0 < rows; r0 += (int64_t)gridDim.x * groups) {
    const int64_t r = r0 + group;
    const int end = r < rows ? n : 0;
    const Y *y = py + r * n, *gy = pgy + r * n;
    X *gx = pgx + r * n;
    R ys[N > 0 ? N : 1][V], gs[N > 0 ? N : 1][V], sum = R(0);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * lanes + lane) * V, m = N > 0 ? i : 0;
      if (c >= end) continue;
      ii_get(y + c, ys[m]);
      ii_get(gy + c, gs[m]);
#pragma unroll
      for (int j = 0; j < V; j++) sum += ys[m][j] * gs[m][j];
    }
    sum = ii_row_sum(sum, lanes, shared);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * lanes + lane) * V, m = N > 0 ? i : 0;
      if (c >= end) continue;
      if (N == 0) {
        ii_get(y + c, ys[0]);
        ii_get(gy + c, gs[0]);
      }
#pragma unroll
      for (int j = 0; j < V; j++) gs[m][j] = ys[m][j] * (gs[m][j] - sum);
      ii_put_or_add(gx + c, gs[m], accumulate);
    }
  }
}

template <typename X, typename Y, typename R, int V, int N>
int forward_with(ii_kctx *k, const ii_softmax_args *a) {
  const ii_rows s = ii_rows_for<R, V, N>(k, a->rows, a->n);
  II_LAUNCH(k, (softmax_rows<X, Y, R, V, N>), s.blocks, s.threads, 0, (const X *)a->x, (Y *)a->y,
            a->rows, (int)a->n, s.lanes);
  return 0;
}

template <typename X, typename Y> int forward(ii_kctx *k, const ii_softmax_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n, N = ii_held<R, V>::n;
  if (ii_rows_held<R, V>(a->n) && ii_flat_aligned<V>((const X *)a->x) &&
      ii_flat_aligned<V>((const Y *)a->y))
    return forward_with<X, Y, R, V, N>(k, a);
  return forward_with<X, Y, R, 1, 0>(k, a);
}

template <typename X, typename Y, typename R, int V, int N>
int backward_with(ii_kctx *k, const ii_softmax_args *a) {
  const ii_rows s = ii_rows_for<R, V, N>(k, a->rows, a->n);
  II_LAUNCH(k, (softmax_rows_bwd<X, Y, R, V, N>), s.blocks, s.threads, 0, (const Y *)a->y,
            (const Y *)a->gy, (X *)a->gx, a->acc_gx, a->rows, (int)a->n, s.lanes);
  return 0;
}

template <typename X, typename Y> int backward(ii_kctx *k, const ii_softmax_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n, N = ii_held<R, V>::n;
  if (ii_rows_held<R, V>(a->n) && ii_flat_aligned<V>((const Y *)a->y) &&
      ii_flat_aligned<V>((const Y *)a->gy) && ii_flat_aligned<V>((X *)a->gx))
    return backward_with<X, Y, R, V, N>(k, a);
  return backward_with<X, Y, R, 1, 0>(k, a);
}

} // namespace

extern "C" int ii_cuda_softmax_fwd(ii_kctx *k, const ii_softmax_args *a) {
  if (a->rows * a->n == 0) return 0;
  if (!ii_row_length_ok(k, "softmax", a->n)) return 1;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y, return forward<X, Y>(k, a));
  return 0;
}

extern "C" int ii_cuda_softmax_bwd(ii_kctx *k, const ii_softmax_args *a) {
  if (a->rows * a->n == 0 || !a->gx) return 0;
  if (!ii_row_length_ok(k, "softmax", a->n)) return 1;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y, return backward<X, Y>(k, a));
  return 0;
}
