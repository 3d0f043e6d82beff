/* The measurement before an update, and its decisions (update_norm, update_control, loss_add of
 * kernels.h).
 *
 * update_norm: one block per chunk of 65536 elements. A thread adds the squares of 16-byte pieces
 *   512 threads apart, lane of the piece by lane; then the lanes, the warp, the block: sums of
 * about equal length at each level, always in the same order. Bytes: 4 per element, read once.
 * update_control: one block. The partial sums of all chunks and everything that follows from the
 *   norm, in double: a few numbers per tensor. Its latency, not its bytes, is what it costs.
 * Kernels whose first template argument is double are the only ones with double arithmetic.
 *
 * Limits: squares of floats overflow for gradients above 1.8e19, which then count as infinite. */
#include "kernels/cuda/flat.h"
#include "kernels/update_rules.h"

namespace {

enum { NORM_THREADS = 512, CONTROL_THREADS = 256 };

template <typename R>
__global__ void __launch_bounds__(NORM_THREADS, 2)
    norm_kernel(const ii_update_tensor *tensors, const ii_update_chunk *chunks, R *partial) {
  constexpr int V = ii_wide<R>::n;
  __shared__ R shared[32];
  const ii_update_chunk c = chunks[blockIdx.x];
  const ii_update_tensor *t = tensors + c.tensor;
  const int64_t first = (int64_t)c.part * II_UPDATE_CHUNK, left = t->n - first;
  const int n = left < II_UPDATE_CHUNK ? (int)left : (int)II_UPDATE_CHUNK;
  const R *g = static_cast<const R *>(t->g);
  R lane[V] = {};
  if (g) {
    g += first;
    const int whole = reinterpret_cast<uintptr_t>(g) % 16 ? 0 : n / V;
    for (int i = threadIdx.x; i < whole; i += NORM_THREADS) {
      R x[V];
      ii_load_once(g + (int64_t)i * V, x);
#pragma unroll
      for (int j = 0; j < V; j++) lane[j] += x[j] * x[j];
    }
    for (int i = whole * V + threadIdx.x; i < n; i += NORM_THREADS) lane[0] += g[i] * g[i];
  }
#pragma unroll
  for (int m = V / 2; m > 0; m /= 2)
#pragma unroll
    for (int j = 0; j < m; j++) lane[j] += lane[j + m];
  const R sum = ii_block_sum(lane[0], shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* D is double. */
template <typename D, typename R>
__global__ void __launch_bounds__(CONTROL_THREADS, 1) control_kernel(const ii_update_args a) {
  __shared__ D shared[32];
  __shared__ D corrections[2];
  __shared__ int64_t action;
  const R *partial = static_cast<const R *>(a.partial);
  R *factor = static_cast<R *>(a.factor);
  D sum = 0;
  for (int64_t i = threadIdx.x; i < a.chunks; i += CONTROL_THREADS) sum += (D)partial[i];
  sum = ii_block_sum(sum, shared);
  if (threadIdx.x == 0) {
    ii_update_state s = *a.state;
    factor[II_FACTOR_GRAD] = (R)ii_update_decide(&a, sum, &s);
    ii_update_corrections(&a, s.t, corrections);
    factor[II_FACTOR_ROOT] = (R)(1.0 / sqrt(corrections[1]));
    factor[II_FACTOR_FIRST] = s.t == 1 ? R(1) : R(0);
    if (a.seed) *static_cast<R *>(a.seed) = (R)(s.loss_scale * a.seed_factor);
    *a.state = s;
    action = s.action;
  }
  if (a.kind == II_UPDATE_SCALE) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < a.tensors; i += CONTROL_THREADS) {
    const ii_update_tensor t = a.tensor[i];
    D two[2];
    ii_update_tensor_factors(&a, t.weight_decay, a.lr[i], corrections[0], two);
    factor[II_FACTOR_TENSORS + 2 * i] = (R)two[0];
    factor[II_FACTOR_TENSORS + 2 * i + 1] = (R)two[1];
    R *ema = static_cast<R *>(t.ema);
    if (t.counter && ema && action != II_UPDATE_NOTHING)
      *ema = (R)ii_update_counter(*ema, *static_cast<const R *>(t.p), a.ema_decay);
  }
}

template <typename D, typename R>
__global__ void __launch_bounds__(32, 1) loss_kernel(const ii_loss_add_args a) {
  if (threadIdx.x == 0) ii_update_add_loss(&a, *static_cast<const R *>(a.loss), a.state);
}

template <typename R> int norm(ii_kctx *k, const ii_update_args *a) {
  if (a->chunks == 0) return 0;
  II_LAUNCH(k, norm_kernel<R>, (unsigned)a->chunks, NORM_THREADS, 0, a->tensor, a->chunk,
            (R *)a->partial);
  return 0;
}

template <typename R> int control(ii_kctx *k, const ii_update_args *a) {
  II_LAUNCH(k, (control_kernel<double, R>), 1, CONTROL_THREADS, 0, *a);
  return 0;
}

template <typename R> int loss_add(ii_kctx *k, const ii_loss_add_args *a) {
  II_LAUNCH(k, (loss_kernel<double, R>), 1, 32, 0, *a);
  return 0;
}

} // namespace

extern "C" int ii_cuda_update_norm(ii_kctx *k, const ii_update_args *a) {
  return a->real == II_F64 ? norm<double>(k, a) : norm<float>(k, a);
}

extern "C" int ii_cuda_update_control(ii_kctx *k, const ii_update_args *a) {
  return a->real == II_F64 ? control<double>(k, a) : control<float>(k, a);
}

extern "C" int ii_cuda_loss_add(ii_kctx *k, const ii_loss_add_args *a) {
  return a->real == II_F64 ? loss_add<double>(k, a) : loss_add<float>(k, a);
}
