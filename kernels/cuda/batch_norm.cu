/* Batch norm over rows, per channel: y = (x - mean) * rstd * gamma + beta. With h = (x - mean) *
 * rstd and R rows:
 *   training: dL/dx = gamma rstd (gy - sum(gy)/R - h * sum(gy h)/R); eval: dL/dx = gamma rstd gy;
 *   dL/dgamma = sum gy h, dL/dbeta = sum gy.
 * Statistics in one pass: a thread takes a few rows at a time, forms their mean and their sum of
 * squares M about it, and merges these (Chan, Golub and LeVeque 1983):
 *   mean += d n2/n, M += M2 + d^2 n1 n2/n with d = mean2 - mean;
 * so do the threads of a block, and the blocks in a second kernel, always in the same order.
 * Mapping: statistics and sums by columns as in reduce.h; the rest element by element.
 * Bytes: forward rows*C*(2x + y) (eval x + y), backward rows*C*(2x + 2gy + gx) (eval x + 2gy + gx;
 * gx twice when accumulating).
 * Limits: 16-byte accesses only where C and the pointers allow them. */
#include "kernels/cuda/reduce.h"

namespace {

/* Mean and squares about it of n values. */
template <typename R> struct moments {
  R n, mean, squares;
  __device__ __forceinline__ void merge(const moments &o) {
    if (o.n == R(0)) return;
    const R sum = n + o.n, d = o.mean - mean, weight = o.n / sum;
    mean += d * weight;
    squares += o.squares + d * d * n * weight;
    n = sum;
  }
};

/* Rows that a thread merges at once. */
template <int V> struct at_once { static constexpr int n = V > 4 ? 4 : 8; };

/* The moments of the rows r, r + step, ... (n of them, before last) of V columns. */
template <int V, typename X, typename R>
__device__ __forceinline__ void add_rows(const X *x, int64_t r, int64_t last, int step, int64_t C,
                                         moments<R> (&all)[V]) {
  constexpr int A = at_once<V>::n;
  R v[A][V], mean[V] = {}, squares[V] = {};
  int n = 0;
#pragma unroll
  for (int i = 0; i < A; i++) {
    if (r + (int64_t)i * step >= last) continue;
    ii_get(x + (r + (int64_t)i * step) * C, v[i]);
    n++;
#pragma unroll
    for (int j = 0; j < V; j++) mean[j] += v[i][j];
  }
  const R inverse = R(1) / R(n);
#pragma unroll
  for (int j = 0; j < V; j++) mean[j] *= inverse;
#pragma unroll
  for (int i = 0; i < A; i++) {
    if (r + (int64_t)i * step >= last) continue;
#pragma unroll
    for (int j = 0; j < V; j++) squares[j] += (v[i][j] - mean[j]) * (v[i][j] - mean[j]);
  }
#pragma unroll
  for (int j = 0; j < V; j++) all[j].merge({R(n), mean[j], squares[j]});
}

/* partial[chunks, 3, C]: number, mean, squares of a chunk. */
template <typename X, typename R, int V>
__global__ void __launch_bounds__(II_COLUMN_THREADS, 1)
    batch_norm_moments(const X *x, ii_columns s, R *partial) {
  __shared__ R shared[3][II_COLUMN_THREADS * V];
  const int tx = threadIdx.x % s.width, ty = threadIdx.x / s.width;
  const int64_t vec0 = (int64_t)blockIdx.x * s.width, vec = vec0 + tx, C = s.vecs * V;
  const int64_t first = blockIdx.y * s.chunk_rows, end = first + s.chunk_rows;
  const int64_t last = end < s.rows ? end : s.rows;
  moments<R> all[V] = {};
  if (ty < s.height && vec < s.vecs)
    for (int64_t r = first + ty; r < last; r += (int64_t)s.height * at_once<V>::n)
      add_rows(x + vec * V, r, last, s.height, C, all);
#pragma unroll
  for (int j = 0; j < V; j++) {
    shared[0][threadIdx.x * V + j] = all[j].n;
    shared[1][threadIdx.x * V + j] = all[j].mean;
    shared[2][threadIdx.x * V + j] = all[j].squares;
  }
  __syncthreads();
  const int64_t left = C - vec0 * V;
  const int columns = (int)(left < s.width * V ? left : s.width * V);
  for (int i = threadIdx.x; i < columns; i += II_COLUMN_THREADS) {
    moments<R> sum = {shared[0][i], shared[1][i], shared[2][i]};
    for (int h = 1; h < s.height; h++) {
      const int at = h * s.width * V + i;
      sum.merge({shared[0][at], shared[1][at], shared[2][at]});
    }
    R *p = partial + (int64_t)blockIdx.y * 3 * C + vec0 * V + i;
    p[0] = sum.n;
    p[C] = sum.mean;
    p[2 * C] = sum.squares;
  }
}

template <typename R> struct statistics {
  R *mean, *rstd, *running_mean, *running_var;
  R eps, momentum, rest; /* rest: 1 - momentum */
};

/* Merges the chunks' moments in order: blocks of 32 channels, blockDim.y chunks at a time. */
template <typename R>
__global__ void __launch_bounds__(1024)
    batch_norm_statistics(const R *partial, int64_t chunks, int64_t C, statistics<R> s) {
  __shared__ R shared[3][1024];
  const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
  moments<R> sum = {R(0), R(0), R(0)};
  if (c < C)
    for (int64_t i = threadIdx.y; i < chunks; i += blockDim.y) {
      const R *p = partial + i * 3 * C + c;
      sum.merge({p[0], p[C], p[2 * C]});
    }
  const int at = threadIdx.y * 32 + threadIdx.x;
  shared[0][at] = sum.n;
  shared[1][at] = sum.mean;
  shared[2][at] = sum.squares;
  __syncthreads();
  if (threadIdx.y > 0 || c >= C) return;
  for (int h = 1; h < (int)blockDim.y; h++) {
    const int from = h * 32 + threadIdx.x;
    sum.merge({shared[0][from], shared[1][from], shared[2][from]});
  }
  const R unbiased = sum.squares / (sum.n > R(1) ? sum.n - R(1) : R(1));
  s.mean[c] = sum.mean;
  s.rstd[c] = R(1) / ii_sqrt(sum.squares / sum.n + s.eps);
  s.running_mean[c] = s.rest * s.running_mean[c] + s.momentum * sum.mean;
  s.running_var[c] = s.rest * s.running_var[c] + s.momentum * unbiased;
}

/* Eval mode: what the forward used, for the backward. */
template <typename R>
__global__ void __launch_bounds__(256, 1) batch_norm_running(statistics<R> s, int64_t C) {
  const int64_t c = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (c >= C) return;
  s.mean[c] = s.running_mean[c];
  s.rstd[c] = R(1) / ii_sqrt(s.running_var[c] + s.eps);
}

template <typename X, typename Y, typename R> struct normalise {
  const X *x;
  Y *y;
  const R *mean, *rstd, *gamma, *beta;
  template <int V> __device__ __forceinline__ void run(int64_t i, int64_t c, int64_t) const {
    R v[V], m[V], s[V], g[V], b[V];
    ii_get(x + i, v);
    ii_get(mean + c, m);
    ii_get(rstd + c, s);
    ii_get(gamma + c, g);
    ii_get(beta + c, b);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = (v[j] - m[j]) * s[j] * g[j] + b[j];
    ii_put(y + i, v);
  }
};

template <typename X, typename R, int V>
int batch_statistics(ii_kctx *k, const ii_batch_norm_args *a, const statistics<R> &st) {
  const ii_columns s = ii_columns_for(k, a->rows, a->C / V);
  const size_t bytes = s.chunks * (size_t)a->C * 3 * sizeof(R);
  R *partial = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, bytes);
  if (!partial) return 1;
  II_LAUNCH(k, (batch_norm_moments<X, R, V>), dim3(s.tiles, s.chunks), II_COLUMN_THREADS, 0,
            (const X *)a->x, s, partial);
  II_LAUNCH(k, batch_norm_statistics<R>, (unsigned)ii_ceil_div(a->C, 32),
            dim3(32, ii_parts_at_once(s.chunks)), 0, partial, (int64_t)s.chunks, a->C, st);
  return 0;
}

template <typename X, typename Y, typename R, int V>
int forward_with(ii_kctx *k, const ii_batch_norm_args *a) {
  const statistics<R> st = {(R *)a->mean,          (R *)a->rstd, (R *)a->running_mean,
                            (R *)a->running_var,   (R)a->eps,    (R)a->momentum,
                            (R)(1.0 - a->momentum)};
  if (!a->training)
    II_LAUNCH(k, batch_norm_running<R>, (unsigned)ii_ceil_div(a->C, 256), 256, 0, st, a->C);
  else if (batch_statistics<X, R, V>(k, a, st))
    return 1;
  const normalise<X, Y, R> f = {(const X *)a->x,    (Y *)a->y,           (const R *)a->mean,
                                (const R *)a->rstd, (const R *)a->gamma, (const R *)a->beta};
  return ii_run_columns<V>(k, f, 1, a->rows, a->C);
}

template <typename X, typename Y> int forward(ii_kctx *k, const ii_batch_norm_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n;
  const bool wide =
      a->C % V == 0 && ii_flat_aligned<V>((const X *)a->x) && ii_flat_aligned<V>((const Y *)a->y) &&
      ii_flat_aligned<V>((const R *)a->mean) && ii_flat_aligned<V>((const R *)a->rstd) &&
      ii_flat_aligned<V>((const R *)a->gamma) && ii_flat_aligned<V>((const R *)a->beta);
  return wide ? forward_with<X, Y, R, V>(k, a) : forward_with<X, Y, R, 1>(k, a);
}

/* ---- Backward ---------------------------------------------------------------------------------*/

/* Adds gy h and gy. */
template <typename X, typename Y, typename R, int V> struct gradient_sums {
  const X *x;
  const Y *gy;
  const R *mean, *rstd;
  int64_t C;
  __device__ __forceinline__ void add(int64_t r, int64_t c, R (&acc)[2][V]) const {
    R v[V], g[V], m[V], s[V];
    ii_get(x + r * C + c, v);
    ii_get(gy + r * C + c, g);
    ii_get(mean + c, m);
    ii_get(rstd + c, s);
#pragma unroll
    for (int j = 0; j < V; j++) {
      acc[0][j] += g[j] * ((v[j] - m[j]) * s[j]);
      acc[1][j] += g[j];
    }
  }
};

template <typename X, typename Y, typename R> struct input_gradient {
  const X *x; /* NULL in eval mode */
  const Y *gy;
  const R *mean, *rstd, *gamma, *means; /* means[2, C]: of gy h, of gy */
  X *gx;
  bool accumulate;
  int64_t C;
  template <int V> __device__ __forceinline__ void run(int64_t i, int64_t c, int64_t) const {
    R g[V], s[V], w[V];
    ii_get(gy + i, g);
    ii_get(rstd + c, s);
    ii_get(gamma + c, w);
    if (x) {
      R v[V], m[V], mean_h[V], mean_g[V];
      ii_get(x + i, v);
      ii_get(mean + c, m);
      ii_get(means + c, mean_h);
      ii_get(means + C + c, mean_g);
#pragma unroll
      for (int j = 0; j < V; j++) g[j] -= mean_g[j] + (v[j] - m[j]) * s[j] * mean_h[j];
    }
#pragma unroll
    for (int j = 0; j < V; j++) g[j] *= w[j] * s[j];
    ii_put_or_add(gx + i, g, accumulate);
  }
};

template <typename X, typename Y, typename R, int V>
int backward_with(ii_kctx *k, const ii_batch_norm_args *a) {
  R *means = NULL;
  if (a->gx && a->training) {
    means = (R *)ii_cuda_scratch(k, II_SLOT_A, 2 * (size_t)a->C * sizeof(R));
    if (!means) return 1;
  }
  if (a->ggamma || a->gbeta || means) {
    const gradient_sums<X, Y, R, V> f = {(const X *)a->x, (const Y *)a->gy, (const R *)a->mean,
                                         (const R *)a->rstd, a->C};
    const ii_column_out<R> out = {{(R *)a->ggamma, (R *)a->gbeta},
                                  {a->acc_ggamma, a->acc_gbeta},
                                  means,
                                  (R)(a->rows > 0 ? 1.0 / (double)a->rows : 0.0)};
    if (ii_sum_columns<R, 2, V>(k, f, a->rows, a->C, true, out)) return 1;
  }
  if (!a->gx || a->rows == 0) return 0;
  const input_gradient<X, Y, R> f = {a->training ? (const X *)a->x : NULL,
                                     (const Y *)a->gy,
                                     (const R *)a->mean,
                                     (const R *)a->rstd,
                                     (const R *)a->gamma,
                                     means,
                                     (X *)a->gx,
                                     a->acc_gx,
                                     a->C};
  return ii_run_columns<V>(k, f, 1, a->rows, a->C);
}

template <typename X, typename Y> int backward(ii_kctx *k, const ii_batch_norm_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n;
  const bool wide = a->C % V == 0 && ii_flat_aligned<V>((const X *)a->x) &&
                    ii_flat_aligned<V>((const Y *)a->gy) &&
                    ii_flat_aligned<V>((const R *)a->mean) &&
                    ii_flat_aligned<V>((const R *)a->rstd) &&
                    ii_flat_aligned<V>((const R *)a->gamma) && ii_flat_aligned<V>((X *)a->gx);
  return wide ? backward_with<X, Y, R, V>(k, a) : backward_with<X, Y, R, 1>(k, a);
}

} // namespace

extern "C" int ii_cuda_batch_norm_fwd(ii_kctx *k, const ii_batch_norm_args *a) {
  if (a->C == 0) return 0;
  if (a->rows == 0) { /* nothing to take statistics of */
    const size_t bytes = (size_t)a->C * ii_dtype_size(a->real);
    II_CUDA_TRY(k, cudaMemsetAsync(a->mean, 0, bytes, ii_cuda_stream(k)));
    II_CUDA_TRY(k, cudaMemsetAsync(a->rstd, 0, bytes, ii_cuda_stream(k)));
    return 0;
  }
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y, return forward<X, Y>(k, a));
  return 0;
}

extern "C" int ii_cuda_batch_norm_bwd(ii_kctx *k, const ii_batch_norm_args *a) {
  if (a->C == 0) return 0;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y, return backward<X, Y>(k, a));
  return 0;
}
