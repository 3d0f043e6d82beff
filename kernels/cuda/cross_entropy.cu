/* Cross entropy with soft targets and with label smoothing. With p = softmax(x), m = max(x),
 * s = sum exp(x - m), a row's loss is, without any cancellation,
 *   sum_c t_c (m - x_c) + sum(t) log(s),  t = targets, or (1-e) onehot(label) + e/C,
 * and dL/dx = gy/N (p sum(t) - t).
 * Mapping: rows as in reduce.h. Forward holds the row of logits, backward that of targets, in
 * registers, the other is read on the way. The rows' losses go to memory; one block adds them up,
 * always in the same order.
 * Bytes: forward N*C*(x + t), backward N*C*(x + t + gx (twice when accumulating)).
 * Limits: rows that are not aligned for 16 bytes (C = 21841) or longer than 8192 are read twice,
 * the second time from the caches. A label outside [0, C) cannot be reported from here: its row's
 * loss and gradient become NaN; nothing outside the row is touched. */
#include "kernels/cuda/reduce.h"

namespace {

template <typename X, typename R> struct row_args {
  const X *x;
  const R *targets;      /* soft */
  const int32_t *labels; /* smooth */
  R *lse, *losses;
  const R *gy;
  X *gx;
  bool acc_gx;
  R smoothing, count; /* count: N */
  int64_t rows;
  int C, lanes;
};

template <typename R> __device__ __forceinline__ R not_a_number() {
  return R(NAN);
}

/* (1-e) (m - x_label + log s) + e/C (sum(m - x) + C log s). */
template <typename X, typename R>
__device__ __forceinline__ R smooth_loss(const row_args<X, R> &a, const X *x, int32_t label, R most,
                                         R log_sum, R below) {
  if (label < 0 || label >= a.C) return not_a_number<R>();
  const R at_label = most - ii_up(x[label]) + log_sum;
  return (R(1) - a.smoothing) * at_label + a.smoothing * (below / R(a.C) + log_sum);
}

template <typename X, typename R, int V, int N, bool SOFT>
__global__ void __launch_bounds__(ii_row_block<R>::most, 1) cross_entropy_rows(row_args<X, R> a) {
  __shared__ R shared[32];
  const int lane = threadIdx.x % a.lanes, group = threadIdx.x / a.lanes;
  const int groups = blockDim.x / a.lanes, steps = ii_row_steps<V, N>(a.C, a.lanes);
  for (int64_t r0 = (int64_t)blockIdx.x * groups; r0 < a.rows; r0 += (int64_t)gridDim.x * groups) {
    const int64_t r = r0 + group;
    const int end = r < a.rows ? a.C : 0; /* all lanes stay for the shuffles */
    const X *x = a.x + r * a.C;
    R held[N > 0 ? N : 1][V], most = -R(INFINITY);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0];
      if (c >= end) continue;
      ii_get(x + c, v);
#pragma unroll
      for (int j = 0; j < V; j++) most = v[j] > most ? v[j] : most;
    }
    most = ii_row_max(most, a.lanes, shared);
    R sum = R(0), below = R(0), total = R(0); /* of exp, of t (m - x), of t */
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0], t[V];
      if (c >= end) continue;
      if (N == 0) ii_get(x + c, v);
      if (SOFT) ii_get(a.targets + r * a.C + c, t);
#pragma unroll
      for (int j = 0; j < V; j++) {
        sum += ii_exp(v[j] - most);
        below += SOFT ? t[j] * (most - v[j]) : most - v[j];
        if (SOFT) total += t[j];
      }
    }
    const R log_sum = ii_log(ii_row_sum(sum, a.lanes, shared));
    below = ii_row_sum(below, a.lanes, shared);
    if (SOFT) total = ii_row_sum(total, a.lanes, shared);
    if (lane > 0 || r >= a.rows) continue;
    a.lse[r] = most + log_sum;
    a.losses[r] =
        SOFT ? below + total * log_sum : smooth_loss(a, x, a.labels[r], most, log_sum, below);
  }
}

/* loss = mean of losses[n]; one block. */
template <typename R>
__global__ void __launch_bounds__(256, 1) cross_entropy_mean(const R *losses, R *loss, int64_t n) {
  __shared__ R shared[32];
  R sum = R(0);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
  sum = ii_block_sum(sum, shared);
  if (threadIdx.x == 0) *loss = n > 0 ? sum / R(n) : R(0);
}

template <typename X, typename R, int V, int N, bool SOFT>
__global__ void __launch_bounds__(ii_row_block<R>::most, 1)
    cross_entropy_rows_bwd(row_args<X, R> a) {
  __shared__ R shared[32];
  const int lane = threadIdx.x % a.lanes, group = threadIdx.x / a.lanes;
  const int groups = blockDim.x / a.lanes, steps = ii_row_steps<V, N>(a.C, a.lanes);
  const R scale = *a.gy / a.count;
  for (int64_t r0 = (int64_t)blockIdx.x * groups; r0 < a.rows; r0 += (int64_t)gridDim.x * groups) {
    const int64_t r = r0 + group, row = r * a.C;
    const int end = r < a.rows ? a.C : 0;
    R held[N > 0 ? N : 1][V], total = R(0);
    if (SOFT) {
#pragma unroll(N > 0 ? N : 1)
      for (int i = 0; i < steps; i++) {
        const int c = (i * a.lanes + lane) * V;
        R(&t)[V] = held[N > 0 ? i : 0];
        if (c >= end) continue;
        ii_get(a.targets + row + c, t);
#pragma unroll
        for (int j = 0; j < V; j++) total += t[j];
      }
      total = ii_row_sum(total, a.lanes, shared);
    }
    const int label = SOFT || !end ? 0 : a.labels[r];
    const bool known = label >= 0 && label < a.C;
    const R lse = end ? (known ? a.lse[r] : not_a_number<R>()) : R(0);
    const R rest = a.smoothing / R(a.C), hit = rest + (R(1) - a.smoothing);
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V;
      R(&t)[V] = held[N > 0 ? i : 0], v[V];
      if (c >= end) continue;
      ii_get(a.x + row + c, v);
      if (SOFT && N == 0) ii_get(a.targets + row + c, t);
#pragma unroll
      for (int j = 0; j < V; j++) {
        const R p = ii_exp(v[j] - lse);
        v[j] = scale * (SOFT ? p * total - t[j] : p - (c + j == label ? hit : rest));
      }
      ii_put_or_add(a.gx + row + c, v, a.acc_gx);
    }
  }
}

template <typename X, typename R>
row_args<X, R> row_args_of(const ii_ce_args *a, R *losses, int lanes) {
  return {(const X *)a->x,
          (const R *)a->targets,
          a->labels,
          (R *)a->lse,
          losses,
          (const R *)a->gy,
          (X *)a->gx,
          a->acc_gx,
          (R)a->smoothing,
          (R)a->N,
          a->N,
          (int)a->C,
          lanes};
}

template <typename X, typename R, int V, int N, bool SOFT>
int forward_with(ii_kctx *k, const ii_ce_args *a, R *losses) {
  const ii_rows s = ii_rows_for<R, V, N>(k, a->N, a->C);
  const row_args<X, R> f = row_args_of<X, R>(a, losses, s.lanes);
  II_LAUNCH(k, (cross_entropy_rows<X, R, V, N, SOFT>), s.blocks, s.threads, 0, f);
  return 0;
}

template <typename X, bool SOFT> int forward(ii_kctx *k, const ii_ce_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, R>::n, N = ii_held<R, V>::n;
  if (a->C == 0) {
    if (a->N > 0) II_CUDA_TRY(k, cudaMemsetAsync(a->lse, 0, a->N * sizeof(R), ii_cuda_stream(k)));
    II_CUDA_TRY(k, cudaMemsetAsync(a->loss, 0, sizeof(R), ii_cuda_stream(k)));
    return 0;
  }
  R *losses = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, (a->N + 1) * sizeof(R));
  if (!losses) return 1;
  if (a->N > 0) {
    const bool wide = ii_rows_held<R, V>(a->C) && ii_flat_aligned<V>((const X *)a->x) &&
                      (!SOFT || ii_flat_aligned<V>((const R *)a->targets));
    if (wide ? forward_with<X, R, V, N, SOFT>(k, a, losses)
             : forward_with<X, R, 1, 0, SOFT>(k, a, losses))
      return 1;
  }
  II_LAUNCH(k, cross_entropy_mean<R>, 1, 256, 0, losses, (R *)a->loss, a->N);
  return 0;
}

template <typename X, typename R, int V, int N, bool SOFT>
int backward_with(ii_kctx *k, const ii_ce_args *a) {
  const ii_rows s = ii_rows_for<R, V, N>(k, a->N, a->C);
  const row_args<X, R> b = row_args_of<X, R>(a, NULL, s.lanes);
  II_LAUNCH(k, (cross_entropy_rows_bwd<X, R, V, N, SOFT>), s.blocks, s.threads, 0, b);
  return 0;
}

template <typename X, bool SOFT> int backward(ii_kctx *k, const ii_ce_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, R>::n, N = ii_held<R, V>::n;
  if (ii_rows_held<R, V>(a->C) && ii_flat_aligned<V>((const X *)a->x) &&
      ii_flat_aligned<V>((X *)a->gx) && (!SOFT || ii_flat_aligned<V>((const R *)a->targets)))
    return backward_with<X, R, V, N, SOFT>(k, a);
  return backward_with<X, R, 1, 0, SOFT>(k, a);
}

template <bool SOFT> int loss_fwd(ii_kctx *k, const ii_ce_args *a) {
  if (!ii_row_length_ok(k, "cross entropy", a->C)) return 1;
  II_WITH_TYPE(k, a->x_dtype, X, return forward<X, SOFT>(k, a));
  return 0;
}

template <bool SOFT> int loss_bwd(ii_kctx *k, const ii_ce_args *a) {
  if (!a->gx || a->N * a->C == 0) return 0;
  if (!ii_row_length_ok(k, "cross entropy", a->C)) return 1;
  II_WITH_TYPE(k, a->x_dtype, X, return backward<X, SOFT>(k, a));
  return 0;
}

} // namespace

extern "C" int ii_cuda_soft_ce_fwd(ii_kctx *k, const ii_ce_args *a) {
  return loss_fwd<true>(k, a);
}

extern "C" int ii_cuda_smooth_ce_fwd(ii_kctx *k, const ii_ce_args *a) {
  return loss_fwd<false>(k, a);
}

extern "C" int ii_cuda_soft_ce_bwd(ii_kctx *k, const ii_ce_args *a) {
  return loss_bwd<true>(k, a);
}

extern "C" int ii_cuda_smooth_ce_bwd(ii_kctx *k, const ii_ce_args *a) {
  return loss_bwd<false>(k, a);
}
