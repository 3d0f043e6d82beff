/* Layer norm over the last dimension, with an optional GELU behind it. With h = (x - mean) * rstd,
 * z = h * gamma + beta, g = dL/dz:
 *   dL/dx = rstd * (g gamma - mean(g gamma) - h * mean(g gamma h)), dL/dgamma = sum g h,
 *   dL/dbeta = sum g.
 * Mapping: rows as in reduce.h. Forward and backward read a row once and keep it in registers (the
 * variance is taken about the mean); a thread of the backward keeps the same channels for all its
 * rows, and the sums for gamma and beta of these beside them. Blocks write their sums, which a
 * second kernel adds in order.
 * Bytes: forward rows*C*(x + y), backward rows*C*(x + gy + gx (twice when accumulating)) and
 * blocks*C*2 sums; gamma and beta come from the caches.
 * Limits: rows that are not aligned for 16 bytes or longer than 8192 channels are
 * read again from the caches, forward three times, backward two, and once more for the parameters.
 */
#include "kernels/cuda/normal.h"
#include "kernels/cuda/reduce.h"

namespace {

template <typename X, typename Y, typename R> struct forward_args {
  const X *x;
  const R *gamma, *beta;
  Y *y;
  R *mean, *rstd, inverse, eps; /* inverse: 1/C */
  int64_t rows;
  int C, lanes;
};

template <typename X, typename Y, typename R, int V, int N, bool GELU>
__global__ void __launch_bounds__(ii_row_block<R>::most, 1)
    layer_norm_rows(forward_args<X, Y, R> a) {
  __shared__ R shared[32];
  const int lane = threadIdx.x % a.lanes, group = threadIdx.x / a.lanes;
  const int groups = blockDim.x / a.lanes, steps = ii_row_steps<V, N>(a.C, a.lanes);
  for (int64_t r0 = (int64_t)blockIdx.x * groups; r0 < a.rows; r0 += (int64_t)gridDim.x * groups) {
    const int64_t r = r0 + group;
    const int end = r < a.rows ? a.C : 0; /* all lanes stay for the shuffles */
    const X *x = a.x + r * a.C;
    Y *y = a.y + r * a.C;
    R held[N > 0 ? N : 1][V], sum = R(0), squares = R(0);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0];
      if (c >= end) continue;
      ii_get(x + c, v);
#pragma unroll
      for (int j = 0; j < V; j++) sum += v[j];
    }
    const R mean = ii_row_sum(sum, a.lanes, shared) * a.inverse;
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0];
      if (c >= end) continue;
      if (N == 0) ii_get(x + c, v);
#pragma unroll
      for (int j = 0; j < V; j++) squares += (v[j] - mean) * (v[j] - mean);
    }
    const R variance = ii_row_sum(squares, a.lanes, shared) * a.inverse;
    const R rstd = R(1) / ii_sqrt(variance + a.eps);
    if (lane == 0 && r < a.rows) {
      a.mean[r] = mean;
      a.rstd[r] = rstd;
    }
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0], gamma[V], beta[V];
      if (c >= end) continue;
      if (N == 0) ii_get(x + c, v);
      ii_get(a.gamma + c, gamma);
      ii_get(a.beta + c, beta);
#pragma unroll
      for (int j = 0; j < V; j++) {
        v[j] = (v[j] - mean) * rstd * gamma[j] + beta[j];
        if (GELU) v[j] = ii_gelu(v[j]);
      }
      ii_put(y + c, v);
    }
  }
}

template <typename X, typename Y, typename R, int V, int N, bool GELU>
int forward_with(ii_kctx *k, const ii_layer_norm_args *a) {
  const ii_rows s = ii_rows_for<R, V, N>(k, a->rows, a->C);
  const forward_args<X, Y, R> f = {
      (const X *)a->x, (const R *)a->gamma,     (const R *)a->beta, (Y *)a->y, (R *)a->mean,
      (R *)a->rstd,    (R)(1.0 / (double)a->C), (R)a->eps,          a->rows,   (int)a->C,
      s.lanes};
  II_LAUNCH(k, (layer_norm_rows<X, Y, R, V, N, GELU>), s.blocks, s.threads, 0, f);
  return 0;
}

template <typename X, typename Y, bool GELU> int forward(ii_kctx *k, const ii_layer_norm_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n, N = ii_held<R, V>::n;
  if (ii_rows_held<R, V>(a->C) && ii_flat_aligned<V>((const X *)a->x) &&
      ii_flat_aligned<V>((const Y *)a->y) && ii_flat_aligned<V>((const R *)a->gamma) &&
      ii_flat_aligned<V>((const R *)a->beta))
    return forward_with<X, Y, R, V, N, GELU>(k, a);
  return forward_with<X, Y, R, 1, 0, GELU>(k, a);
}

/* ---- Backward ---------------------------------------------------------------------------------*/

template <typename X, typename Y, typename R> struct backward_args {
  const X *x;
  const Y *gy;
  const R *gamma, *beta, *mean, *rstd;
  X *gx;
  bool acc_gx;
  R *partial; /* [blocks, 2, C]: sums for gamma and beta; or NULL */
  R inverse;
  int64_t rows;
  int C, lanes;
};

/* From h and gy: g = dL/dz. */
template <bool GELU, typename R>
__device__ __forceinline__ R before_act(R gy, R h, R gamma, R beta) {
  return GELU ? gy * ii_gelu_slope(h * gamma + beta) : gy;
}

/* Adds up what the rows of a block gave for each channel. values[i][j] belongs to channel
 * (i*lanes + lane)*V + j; out[C]. Dynamic shared memory: groups * C. */
template <typename R, int V, int N>
__device__ __forceinline__ void add_groups(const R (&values)[N][V], R *out, int C, int lanes,
                                           R *shared) {
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int c = (i * lanes + lane) * V;
    if (c >= C) continue;
    if (groups == 1) ii_put(out + c, values[i]);
    for (int j = 0; j < V && groups > 1; j++) shared[group * C + c + j] = values[i][j];
  }
  __syncthreads();
  if (groups == 1) return;
  for (int c = threadIdx.x; c < C; c += blockDim.x) {
    R sum = shared[c];
    for (int g = 1; g < groups; g++) sum += shared[g * C + c];
    out[c] = sum;
  }
}

template <typename X, typename Y, typename R, int V, int N, bool GELU>
__global__ void __launch_bounds__(ii_row_block<R>::most, 1)
    layer_norm_rows_bwd(backward_args<X, Y, R> a) {
  __shared__ R sums[32];
  II_SHARED(R, shared);
  constexpr int M = N > 0 ? N : 1;
  const int lane = threadIdx.x % a.lanes, group = threadIdx.x / a.lanes;
  const int groups = blockDim.x / a.lanes, steps = ii_row_steps<V, N>(a.C, a.lanes);
  R ggamma[M][V] = {}, gbeta[M][V] = {};
  for (int64_t r0 = (int64_t)blockIdx.x * groups; r0 < a.rows; r0 += (int64_t)gridDim.x * groups) {
    const int64_t r = r0 + group;
    const int end = r < a.rows ? a.C : 0;
    const R mean = end ? a.mean[r] : R(0), rstd = end ? a.rstd[r] : R(0);
    const int64_t row = r * a.C;
    R h[M][V], g[M][V], m1 = R(0), m2 = R(0); /* g: dL/dz, then times gamma */
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V, n = N > 0 ? i : 0;
      R gamma[V], beta[V] = {};
      if (c >= end) continue;
      ii_get(a.x + row + c, h[n]);
      ii_get(a.gy + row + c, g[n]);
      ii_get(a.gamma + c, gamma);
      if (GELU) ii_get(a.beta + c, beta);
#pragma unroll
      for (int j = 0; j < V; j++) {
        h[n][j] = (h[n][j] - mean) * rstd;
        g[n][j] = before_act<GELU>(g[n][j], h[n][j], gamma[j], beta[j]);
        if (N > 0) {
          ggamma[n][j] += g[n][j] * h[n][j];
          gbeta[n][j] += g[n][j];
        }
        g[n][j] *= gamma[j];
        m1 += g[n][j];
        m2 += g[n][j] * h[n][j];
      }
    }
    if (!a.gx) continue;
    m1 = ii_row_sum(m1, a.lanes, sums) * a.inverse;
    m2 = ii_row_sum(m2, a.lanes, sums) * a.inverse;
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V, n = N > 0 ? i : 0;
      if (c >= end) continue;
      if (N == 0) { /* V is 1 */
        R gamma[V], beta[V] = {};
        ii_get(a.x + row + c, h[0]);
        ii_get(a.gy + row + c, g[0]);
        ii_get(a.gamma + c, gamma);
        if (GELU) ii_get(a.beta + c, beta);
        h[0][0] = (h[0][0] - mean) * rstd;
        g[0][0] = before_act<GELU>(g[0][0], h[0][0], gamma[0], beta[0]) * gamma[0];
      }
#pragma unroll
      for (int j = 0; j < V; j++) g[n][j] = rstd * (g[n][j] - m1 - h[n][j] * m2);
      ii_put_or_add(a.gx + row + c, g[n], a.acc_gx);
    }
  }
  if (N == 0 || !a.partial) return;
  R *out = a.partial + (int64_t)blockIdx.x * 2 * a.C;
  add_groups(ggamma, out, a.C, a.lanes, shared);
  add_groups(gbeta, out + a.C, a.C, a.lanes, shared);
}

/* The parameters' sums where rows are not held. */
template <typename X, typename Y, typename R, bool GELU> struct parameter_sums {
  const X *x;
  const Y *gy;
  const R *gamma, *beta, *mean, *rstd;
  int64_t C;
  __device__ void add(int64_t r, int64_t c, R (&acc)[2][1]) const {
    const R h = (ii_up(x[r * C + c]) - mean[r]) * rstd[r];
    const R g = before_act<GELU>(ii_up(gy[r * C + c]), h, gamma[c], GELU ? beta[c] : R(0));
    acc[0][0] += g * h;
    acc[1][0] += g;
  }
};

template <typename X, typename Y, typename R>
backward_args<X, Y, R> backward_args_of(const ii_layer_norm_args *a, int lanes, R *partial) {
  return {(const X *)a->x,
          (const Y *)a->gy,
          (const R *)a->gamma,
          (const R *)a->beta,
          (const R *)a->mean,
          (const R *)a->rstd,
          (X *)a->gx,
          a->acc_gx,
          partial,
          (R)(1.0 / (double)a->C),
          a->rows,
          (int)a->C,
          lanes};
}

template <typename R> ii_column_out<R> parameters_of(const ii_layer_norm_args *a) {
  return {{(R *)a->ggamma, (R *)a->gbeta}, {a->acc_ggamma, a->acc_gbeta}, NULL, R(1)};
}

template <typename X, typename Y, bool GELU>
int backward_long(ii_kctx *k, const ii_layer_norm_args *a) {
  typedef ii_real_of<X> R;
  if (a->gx && a->rows > 0) {
    const ii_rows s = ii_rows_for<R, 1, 0>(k, a->rows, a->C);
    const backward_args<X, Y, R> b = backward_args_of<X, Y, R>(a, s.lanes, NULL);
    II_LAUNCH(k, (layer_norm_rows_bwd<X, Y, R, 1, 0, GELU>), s.blocks, s.threads, 0, b);
  }
  if (!a->ggamma && !a->gbeta) return 0;
  const parameter_sums<X, Y, R, GELU> f = {(const X *)a->x,
                                           (const Y *)a->gy,
                                           (const R *)a->gamma,
                                           (const R *)a->beta,
                                           (const R *)a->mean,
                                           (const R *)a->rstd,
                                           a->C};
  return ii_sum_columns<R, 2, 1>(k, f, a->rows, a->C, true, parameters_of<R>(a));
}

/* Few blocks, so that their sums weigh little beside the rows: 512 threads per processor. */
static unsigned blocks_with_sums(const ii_kctx *k, int64_t rows, const ii_rows *s) {
  const int64_t turns = ii_ceil_div(rows, s->threads / s->lanes), sms = ii_cuda_sm_count(k);
  const int64_t most = sms * ii_ceil_div(512, s->threads);
  int64_t blocks = ii_ceil_div(turns, 8); /* at least 8 rows to a sum */
  if (blocks < sms) blocks = sms < turns ? sms : turns;
  return (unsigned)(blocks < most ? blocks : most);
}

template <typename X, typename Y, bool GELU> int backward(ii_kctx *k, const ii_layer_norm_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n, N = ii_held<R, V>::n;
  if (!ii_rows_held<R, V>(a->C) || !ii_flat_aligned<V>((const X *)a->x) ||
      !ii_flat_aligned<V>((const Y *)a->gy) || !ii_flat_aligned<V>((const R *)a->gamma) ||
      !ii_flat_aligned<V>((const R *)a->beta) || !ii_flat_aligned<V>((X *)a->gx))
    return backward_long<X, Y, GELU>(k, a);
  ii_rows s = ii_rows_for<R, V, N>(k, a->rows, a->C);
  const bool sums = a->ggamma || a->gbeta;
  size_t shared = 0;
  R *partial = NULL;
  if (sums) {
    const int groups = s.threads / s.lanes;
    s.blocks = blocks_with_sums(k, a->rows, &s);
    shared = groups > 1 ? groups * (size_t)a->C * sizeof(R) : 0;
    const size_t bytes = (s.blocks + 1) * 2 * (size_t)a->C * sizeof(R);
    partial = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, bytes);
    if (!partial) return 1;
  }
  const backward_args<X, Y, R> b = backward_args_of<X, Y, R>(a, s.lanes, partial);
  if (s.blocks > 0 && (sums || a->gx))
    II_LAUNCH(k, (layer_norm_rows_bwd<X, Y, R, V, N, GELU>), s.blocks, s.threads, shared, b);
  return sums ? ii_finish_columns<R>(k, partial, s.blocks, 2, a->C, parameters_of<R>(a)) : 0;
}

} // namespace

extern "C" int ii_cuda_layer_norm_fwd(ii_kctx *k, const ii_layer_norm_args *a) {
  if (a->rows * a->C == 0) return 0;
  if (!ii_row_length_ok(k, "layer norm", a->C)) return 1;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y,
               return a->act == II_ACT_GELU ? forward<X, Y, true>(k, a)
                                            : forward<X, Y, false>(k, a));
  return 0;
}

extern "C" int ii_cuda_layer_norm_bwd(ii_kctx *k, const ii_layer_norm_args *a) {
  if (a->C == 0) return 0;
  if (!ii_row_length_ok(k, "layer norm", a->C)) return 1;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y,
               return a->act == II_ACT_GELU ? backward<X, Y, true>(k, a)
                                            : backward<X, Y, false>(k, a));
  return 0;
}
