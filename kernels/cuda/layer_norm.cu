/* Layer norm over the last dimension, with an optional GELU or the end of a residual branch behind
 * it, or such an end before it. With h = (x - mean) * rstd,
 * z = h * gamma + beta, g = dL/dz:
 *   dL/dx = rstd * (g gamma - mean(g gamma) - h * mean(g gamma h)), dL/dgamma = sum g h,
 *   dL/dbeta = sum g.
 * In a residual branch, y = skip + k s z with the image's k and the layer scale s, the sums
 * A = sum k gy h and B = sum k gy give dL/dgamma = s A, dL/dbeta = s B, dL/ds = gamma A + beta B.
 * After a branch, x = skip + k f is formed and written on the way; dL/df = k dL/dx.
 * Mapping: rows as in reduce.h. Forward and backward read a row once and keep it in registers (the
 * variance is taken about the mean); a thread of the backward keeps the same channels for all its
 * rows, and the sums for gamma and beta of these beside them. Blocks write their sums, which a
 * second kernel adds in order.
 * Bytes: forward rows*C*(x + y), and skip in a residual branch, where norm and branch apart would
 * also write the norm's result and read it again; backward rows*C*(x + gy + gx (twice when
 * accumulating)) and blocks*C*2 sums; gamma and beta come from the caches. Limits: rows that are
 * not aligned for 16 bytes or longer than 8192 channels are read again from the caches, forward
 * three times, backward two, and once more for the parameters.
 */
#include "kernels/cuda/normal.h"
#include "kernels/cuda/reduce.h"

namespace {

/* What is behind the norm; AFTER: the end of a residual branch is before it. */
typedef enum { NOTHING, GELU, BRANCH, AFTER } end_kind;

template <typename X, typename Y, typename R> struct forward_args {
  const X *x;
  const R *gamma, *beta;
  const Y *skip;         /* BRANCH */
  const R *scale, *keep; /* BRANCH, keep also AFTER; or NULL */
  const X *before;       /* AFTER: skip, f and where their sum goes, which is x */
  const Y *f;
  X *sum;
  Y *y;
  R *mean, *rstd, inverse, eps; /* inverse: 1/C */
  int64_t rows;
  unsigned keep_rows;
  int C, lanes;
};

template <typename X, typename Y, typename R, int V, int N, end_kind END>
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
    R held[N > 0 ? N : 1][V], sum = R(0), squares = R(0), k = R(1);
    if ((END == BRANCH || END == AFTER) && a.keep && end) k = a.keep[(unsigned)r / a.keep_rows];
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V;
      R(&v)[V] = held[N > 0 ? i : 0];
      if (c >= end) continue;
      if (END == AFTER) {
        R f[V];
        ii_get(a.before + r * a.C + c, v);
        ii_get(a.f + r * a.C + c, f);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] += k * f[j];
        ii_put(a.sum + r * a.C + c, v);
      } else {
        ii_get(x + c, v);
      }
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
        if (END == GELU) v[j] = ii_gelu(v[j]);
      }
      if (END == BRANCH) {
        if (a.scale) {
          ii_get(a.scale + c, gamma);
#pragma unroll
          for (int j = 0; j < V; j++) v[j] *= gamma[j];
        }
        ii_get(a.skip + r * a.C + c, beta);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = beta[j] + k * v[j];
      }
      ii_put(y + c, v);
    }
  }
}

template <typename X, typename Y, typename R, int V, int N, end_kind END>
int forward_with(ii_kctx *k, const ii_layer_norm_args *a) {
  const ii_rows s = ii_rows_for<R, V, N>(k, a->rows, a->C);
  const forward_args<X, Y, R> f = {(const X *)(END == AFTER ? a->sum : a->x),
                                   (const R *)a->gamma,
                                   (const R *)a->beta,
                                   (const Y *)a->skip,
                                   (const R *)a->scale,
                                   (const R *)a->keep,
                                   (const X *)a->skip,
                                   (const Y *)a->f,
                                   (X *)a->sum,
                                   (Y *)a->y,
                                   (R *)a->mean,
                                   (R *)a->rstd,
                                   (R)(1.0 / (double)a->C),
                                   (R)a->eps,
                                   a->rows,
                                   (unsigned)a->keep_rows,
                                   (int)a->C,
                                   s.lanes};
  II_LAUNCH(k, (layer_norm_rows<X, Y, R, V, N, END>), s.blocks, s.threads, 0, f);
  return 0;
}

template <typename X, typename Y, end_kind END>
int forward(ii_kctx *k, const ii_layer_norm_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n, N = ii_held<R, V>::n;
  if (ii_rows_held<R, V>(a->C) && ii_flat_aligned<V>((const X *)(END == AFTER ? a->sum : a->x)) &&
      ii_flat_aligned<V>((const Y *)a->y) && ii_flat_aligned<V>((const R *)a->gamma) &&
      ii_flat_aligned<V>((const R *)a->beta) && ii_flat_aligned<V>((const R *)a->scale) &&
      (END == BRANCH ? ii_flat_aligned<V>((const Y *)a->skip)
                     : ii_flat_aligned<V>((const X *)a->skip)) &&
      ii_flat_aligned<V>((const Y *)a->f))
    return forward_with<X, Y, R, V, N, END>(k, a);
  return forward_with<X, Y, R, 1, 0, END>(k, a);
}

/* ---- Backward ---------------------------------------------------------------------------------*/

template <typename X, typename Y, typename R> struct backward_args {
  const X *x;
  const Y *gy;
  const R *gamma, *beta, *mean, *rstd;
  const R *scale, *keep; /* BRANCH, keep also AFTER; or NULL */
  const X *gsum;         /* AFTER; or NULL */
  X *gx;
  Y *gf; /* AFTER; or NULL */
  bool acc_gx, acc_gf;
  R *partial; /* [blocks, 2, C]: sums for gamma and beta; or NULL */
  R inverse;
  int64_t rows;
  unsigned keep_rows;
  int C, lanes;
};

/* From h and gy: g = dL/dz; k of the row's image. In a branch the layer scale is still missing. */
template <end_kind END, typename R>
__device__ __forceinline__ R before_end(R gy, R h, R gamma, R beta, R k) {
  if (END == GELU) return gy * ii_gelu_slope(h * gamma + beta);
  return END == BRANCH ? k * gy : gy;
}

/* V factors of g from column c on: gamma, times the layer scale. */
template <end_kind END, typename R, int V>
__device__ __forceinline__ void factors(const R *gamma, const R *scale, int64_t c, R (&v)[V]) {
  ii_get(gamma + c, v);
  if (END != BRANCH || !scale) return;
  R s[V];
  ii_get(scale + c, s);
#pragma unroll
  for (int j = 0; j < V; j++) v[j] *= s[j];
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

template <typename X, typename Y, typename R, int V, int N, end_kind END>
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
    R k = R(1);
    if ((END == BRANCH || END == AFTER) && a.keep && end) k = a.keep[(unsigned)r / a.keep_rows];
    R h[M][V], g[M][V], m1 = R(0), m2 = R(0); /* g: dL/dz, then times gamma */
#pragma unroll(N > 0 ? N : 1)
    for (int i = 0; i < steps; i++) {
      const int c = (i * a.lanes + lane) * V, n = N > 0 ? i : 0;
      R gamma[V], beta[V] = {};
      if (c >= end) continue;
      ii_get(a.x + row + c, h[n]);
      ii_get(a.gy + row + c, g[n]);
      factors<END>(a.gamma, a.scale, c, gamma);
      if (END == GELU) ii_get(a.beta + c, beta);
#pragma unroll
      for (int j = 0; j < V; j++) {
        h[n][j] = (h[n][j] - mean) * rstd;
        g[n][j] = before_end<END>(g[n][j], h[n][j], gamma[j], beta[j], k);
        if (N > 0) {
          ggamma[n][j] += g[n][j] * h[n][j];
          gbeta[n][j] += g[n][j];
        }
        g[n][j] *= gamma[j];
        m1 += g[n][j];
        m2 += g[n][j] * h[n][j];
      }
    }
    if (!a.gx && !(END == AFTER && a.gf)) continue;
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
        factors<END>(a.gamma, a.scale, c, gamma);
        if (END == GELU) ii_get(a.beta + c, beta);
        h[0][0] = (h[0][0] - mean) * rstd;
        g[0][0] = before_end<END>(g[0][0], h[0][0], gamma[0], beta[0], k) * gamma[0];
      }
#pragma unroll
      for (int j = 0; j < V; j++) g[n][j] = rstd * (g[n][j] - m1 - h[n][j] * m2);
      if (END == AFTER && a.gsum) {
        ii_get(a.gsum + row + c, h[n]);
#pragma unroll
        for (int j = 0; j < V; j++) g[n][j] += h[n][j];
      }
      if (END == AFTER && a.gf) {
#pragma unroll
        for (int j = 0; j < V; j++) h[n][j] = k * g[n][j];
        ii_put_or_add(a.gf + row + c, h[n], a.acc_gf);
      }
      if (END != AFTER || a.gx) ii_put_or_add(a.gx + row + c, g[n], a.acc_gx);
    }
  }
  if (N == 0 || !a.partial) return;
  R *out = a.partial + (int64_t)blockIdx.x * 2 * a.C;
  add_groups(ggamma, out, a.C, a.lanes, shared);
  add_groups(gbeta, out + a.C, a.C, a.lanes, shared);
}

/* The parameters' sums where rows are not held. */
template <typename X, typename Y, typename R, end_kind END> struct parameter_sums {
  const X *x;
  const Y *gy;
  const R *gamma, *beta, *mean, *rstd, *keep;
  unsigned keep_rows;
  int64_t C;
  __device__ void add(int64_t r, int64_t c, R (&acc)[2][1]) const {
    const R h = (ii_up(x[r * C + c]) - mean[r]) * rstd[r];
    const R k = END == BRANCH && keep ? keep[(unsigned)r / keep_rows] : R(1);
    const R g = before_end<END>(ii_up(gy[r * C + c]), h, gamma[c], END == GELU ? beta[c] : R(0), k);
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
          (const R *)a->scale,
          (const R *)a->keep,
          (const X *)a->gsum,
          (X *)a->gx,
          (Y *)a->gf,
          a->acc_gx,
          a->acc_gf,
          partial,
          (R)(1.0 / (double)a->C),
          a->rows,
          (unsigned)a->keep_rows,
          (int)a->C,
          lanes};
}

/* Whether sums over the rows are wanted. */
bool sums_wanted(const ii_layer_norm_args *a) {
  return a->ggamma || a->gbeta || a->gscale;
}

/* Where the two sums go; in a branch `both`[2, C] (A, then B) takes them to combine(). */
template <typename R, end_kind END>
ii_column_out<R> parameters_of(const ii_layer_norm_args *a, R *both) {
  if (END == BRANCH) return {{NULL, NULL}, {false, false}, both, R(1)};
  return {{(R *)a->ggamma, (R *)a->gbeta}, {a->acc_ggamma, a->acc_gbeta}, NULL, R(1)};
}

/* What a branch needs to end with. */
template <typename R> struct branch_out {
  const R *both, *gamma, *beta, *scale;
  R *ggamma, *gbeta, *gscale; /* or NULL */
  bool acc_ggamma, acc_gbeta, acc_gscale;
  int C;
};

template <typename R> __global__ void __launch_bounds__(256) branch_parameters(branch_out<R> o) {
  const int c = blockIdx.x * 256 + threadIdx.x;
  if (c >= o.C) return;
  const R A = o.both[c], B = o.both[o.C + c], s = o.scale ? o.scale[c] : R(1);
  if (o.ggamma) o.ggamma[c] = (o.acc_ggamma ? o.ggamma[c] : R(0)) + s * A;
  if (o.gbeta) o.gbeta[c] = (o.acc_gbeta ? o.gbeta[c] : R(0)) + s * B;
  if (o.gscale) o.gscale[c] = (o.acc_gscale ? o.gscale[c] : R(0)) + o.gamma[c] * A + o.beta[c] * B;
}

/* The parameters' gradients of a branch from the sums. */
template <typename R> int combine(ii_kctx *k, const ii_layer_norm_args *a, const R *both) {
  const branch_out<R> o = {
      both,           (const R *)a->gamma, (const R *)a->beta, (const R *)a->scale,
      (R *)a->ggamma, (R *)a->gbeta,       (R *)a->gscale,     a->acc_ggamma,
      a->acc_gbeta,   a->acc_gscale,       (int)a->C};
  II_LAUNCH(k, branch_parameters<R>, (unsigned)ii_ceil_div(a->C, 256), 256, 0, o);
  return 0;
}

/* Scratch for the sums of a branch; NULL with k->error when there is none. */
template <typename R> R *room_for_sums(ii_kctx *k, const ii_layer_norm_args *a) {
  return (R *)ii_cuda_scratch(k, II_SLOT_A, 2 * (size_t)a->C * sizeof(R));
}

template <typename X, typename Y, end_kind END>
int backward_long(ii_kctx *k, const ii_layer_norm_args *a) {
  typedef ii_real_of<X> R;
  if ((a->gx || a->gf) && a->rows > 0) {
    const ii_rows s = ii_rows_for<R, 1, 0>(k, a->rows, a->C);
    const backward_args<X, Y, R> b = backward_args_of<X, Y, R>(a, s.lanes, NULL);
    II_LAUNCH(k, (layer_norm_rows_bwd<X, Y, R, 1, 0, END>), s.blocks, s.threads, 0, b);
  }
  if (!sums_wanted(a)) return 0;
  R *both = NULL;
  if (END == BRANCH && !(both = room_for_sums<R>(k, a))) return 1;
  const parameter_sums<X, Y, R, END> f = {
      (const X *)a->x,    (const Y *)a->gy,       (const R *)a->gamma,
      (const R *)a->beta, (const R *)a->mean,     (const R *)a->rstd,
      (const R *)a->keep, (unsigned)a->keep_rows, a->C};
  const ii_column_out<R> out = parameters_of<R, END>(a, both);
  if (ii_sum_columns<R, 2, 1>(k, f, a->rows, a->C, true, out)) return 1;
  return END == BRANCH ? combine<R>(k, a, both) : 0;
}

/* Few blocks, so that their sums weigh little beside the rows: 512 threads per processor. */
static unsigned blocks_with_sums(const ii_kctx *k, int64_t rows, const ii_rows *s) {
  const int64_t turns = ii_ceil_div(rows, s->threads / s->lanes), sms = ii_cuda_sm_count(k);
  const int64_t most = sms * ii_ceil_div(512, s->threads);
  int64_t blocks = ii_ceil_div(turns, 8); /* at least 8 rows to a sum */
  if (blocks < sms) blocks = sms < turns ? sms : turns;
  return (unsigned)(blocks < most ? blocks : most);
}

template <typename X, typename Y, end_kind END>
int backward(ii_kctx *k, const ii_layer_norm_args *a) {
  typedef ii_real_of<X> R;
  constexpr int V = ii_pair_wide<X, Y>::n, N = ii_held<R, V>::n;
  if (!ii_rows_held<R, V>(a->C) || !ii_flat_aligned<V>((const X *)a->x) ||
      !ii_flat_aligned<V>((const Y *)a->gy) || !ii_flat_aligned<V>((const R *)a->gamma) ||
      !ii_flat_aligned<V>((const R *)a->beta) || !ii_flat_aligned<V>((const R *)a->scale) ||
      !ii_flat_aligned<V>((X *)a->gx) || !ii_flat_aligned<V>((Y *)a->gf) ||
      !ii_flat_aligned<V>((const X *)a->gsum))
    return backward_long<X, Y, END>(k, a);
  ii_rows s = ii_rows_for<R, V, N>(k, a->rows, a->C);
  const bool sums = sums_wanted(a);
  size_t shared = 0;
  R *partial = NULL, *both = NULL;
  if (sums) {
    const int groups = s.threads / s.lanes;
    s.blocks = blocks_with_sums(k, a->rows, &s);
    shared = groups > 1 ? groups * (size_t)a->C * sizeof(R) : 0;
    const size_t bytes = (s.blocks + 1) * 2 * (size_t)a->C * sizeof(R);
    partial = (R *)ii_cuda_scratch(k, II_SLOT_REDUCE, bytes);
    if (!partial) return 1;
    if (END == BRANCH && !(both = room_for_sums<R>(k, a))) return 1;
  }
  const backward_args<X, Y, R> b = backward_args_of<X, Y, R>(a, s.lanes, partial);
  if (s.blocks > 0 && (sums || a->gx || a->gf))
    II_LAUNCH(k, (layer_norm_rows_bwd<X, Y, R, V, N, END>), s.blocks, s.threads, shared, b);
  if (!sums) return 0;
  const ii_column_out<R> out = parameters_of<R, END>(a, both);
  if (ii_finish_columns<R>(k, partial, s.blocks, 2, a->C, out)) return 1;
  return END == BRANCH ? combine<R>(k, a, both) : 0;
}

/* Runs the statements with END standing for what the norm of a is fused with. */
#define WITH_END(a, END, ...)                                                                      \
  if ((a)->place == II_NORM_ENDS_BRANCH) {                                                         \
    constexpr end_kind END = BRANCH;                                                               \
    __VA_ARGS__;                                                                                   \
  } else if ((a)->place == II_NORM_AFTER_BRANCH) {                                                 \
    constexpr end_kind END = AFTER;                                                                \
    __VA_ARGS__;                                                                                   \
  } else if ((a)->act == II_ACT_GELU) {                                                            \
    constexpr end_kind END = GELU;                                                                 \
    __VA_ARGS__;                                                                                   \
  } else {                                                                                         \
    constexpr end_kind END = NOTHING;                                                              \
    __VA_ARGS__;                                                                                   \
  }

/* Rows are counted in 32 bits where the image of a row is asked for. */
int check(ii_kctx *k, const ii_layer_norm_args *a) {
  if (!ii_row_length_ok(k, "layer norm", a->C)) return 1;
  if (a->keep && a->rows > UINT32_MAX)
    return ii_cuda_error(k, "layer norm: %lld rows, at most %lld in a residual branch",
                         (long long)a->rows, (long long)UINT32_MAX);
  return 0;
}

} // namespace

extern "C" int ii_cuda_layer_norm_fwd(ii_kctx *k, const ii_layer_norm_args *a) {
  if (a->rows * a->C == 0) return 0;
  if (check(k, a)) return 1;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y,
               WITH_END(a, END, return forward<X, Y, END>(k, a)));
  return 0;
}

extern "C" int ii_cuda_layer_norm_bwd(ii_kctx *k, const ii_layer_norm_args *a) {
  if (a->C == 0) return 0;
  if (check(k, a)) return 1;
  II_WITH_PAIR(k, a->real, a->x_dtype, a->y_dtype, X, Y,
               WITH_END(a, END, return backward<X, Y, END>(k, a)));
  return 0;
}
