/* update_apply of kernels.h: AdamW or SGD, moving average and 16-bit copy of all parameters in one
 * pass over their memory; also the scaling of gradients in place.
 *
 * Mapping: 4 blocks of 256 threads per chunk of 65536 elements; a thread takes 16-byte pieces that
 * lie 256 pieces apart, or single elements where a tensor's pointers are not aligned (and at its
 * end). Factors come from the table that update_control wrote; whether anything is to be done is
 * read from the state, so a skipped update costs its launch, or the pass over value and average.
 * Bytes per element, AdamW in float with average and 16-bit copy: 38 (g, p, m, v, ema read: 20;
 * p, m, v, ema, low written: 18); SGD with momentum: 30. Bound by memory. */
#include "kernels/cuda/flat.h"
#include "kernels/update_rules.h"

namespace {

enum { THREADS = 256, BLOCKS_PER_CHUNK = 4, BLOCK = II_UPDATE_CHUNK / BLOCKS_PER_CHUNK };

/* What is the same for all tensors. */
template <typename R> struct rules {
  R b1, b1c, b2, b2c, eps, momentum, ema;
  bool nesterov;
};

/* What the step needs for one tensor. */
template <typename R> struct factors { R scale, root, first, two[2]; };

static __device__ __forceinline__ float root_of(float v) {
  return sqrtf(v);
}
static __device__ __forceinline__ double root_of(double v) {
  return sqrt(v);
}

template <typename R>
__device__ __forceinline__ void adamw(const rules<R> &r, const factors<R> &f, R g, R &p, R &m,
                                      R &v) {
  g *= f.scale;
  m = r.b1 * m + r.b1c * g;
  v = r.b2 * v + r.b2c * g * g;
  p = p * f.two[1] - f.two[0] * m / (root_of(v) * f.root + r.eps);
}

template <typename R>
__device__ __forceinline__ void sgd(const rules<R> &r, const factors<R> &f, R g, R &p, R &m,
                                    bool momentum) {
  g = f.scale * g + f.two[1] * p;
  if (momentum) {
    m = f.first != R(0) ? g : r.momentum * m + g;
    g = r.nesterov ? g + r.momentum * m : m;
  }
  p -= f.two[0] * g;
}

/* Elements [i, i+V) of a tensor. */
template <int V, int kind, typename R, typename L>
__device__ __forceinline__ void piece(const ii_update_tensor &t, const rules<R> &r,
                                      const factors<R> &f, bool step, int64_t i) {
  R p[V], g[V], m[V] = {}, v[V] = {}, e[V] = {};
  if (kind == II_UPDATE_SCALE) {
    R *at = static_cast<R *>(t.g) + i;
    ii_load_once(at, g);
#pragma unroll
    for (int j = 0; j < V; j++) g[j] *= f.scale;
    ii_put(at, g);
    return;
  }
  R *pp = static_cast<R *>(t.p) + i, *mm = static_cast<R *>(t.m) + i;
  R *vv = static_cast<R *>(t.v) + i, *ee = static_cast<R *>(t.ema) + i;
  ii_load_once(pp, p);
  if (t.ema) ii_load_once(ee, e);
  if (step) {
    ii_load_once(static_cast<const R *>(t.g) + i, g);
    if (t.m) ii_load_once(mm, m);
    if (kind == II_UPDATE_ADAMW) ii_load_once(vv, v);
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (kind == II_UPDATE_ADAMW)
        adamw(r, f, g[j], p[j], m[j], v[j]);
      else
        sgd(r, f, g[j], p[j], m[j], t.m != nullptr);
    }
    ii_put(pp, p);
    if (t.m) ii_put(mm, m);
    if (kind == II_UPDATE_ADAMW) ii_put(vv, v);
    if (t.low) ii_put(static_cast<L *>(t.low) + i, p);
  }
  if (t.ema) {
#pragma unroll
    for (int j = 0; j < V; j++) e[j] += r.ema * (p[j] - e[j]);
    ii_put(ee, e);
  }
}

template <typename R> __device__ __forceinline__ bool aligned(const ii_update_tensor &t) {
  const uintptr_t wide = reinterpret_cast<uintptr_t>(t.p) | reinterpret_cast<uintptr_t>(t.g) |
                         reinterpret_cast<uintptr_t>(t.m) | reinterpret_cast<uintptr_t>(t.v) |
                         reinterpret_cast<uintptr_t>(t.ema);
  return wide % 16 == 0 && reinterpret_cast<uintptr_t>(t.low) % 8 == 0;
}

template <int kind, typename R, typename L>
__global__ void __launch_bounds__(THREADS, 1)
    apply_kernel(const ii_update_tensor *tensors, const ii_update_chunk *chunks, const R *factor,
                 const ii_update_state *state, const rules<R> r) {
  constexpr int V = ii_wide<R>::n;
  const int64_t action = state->action;
  if (action == II_UPDATE_NOTHING) return;
  const ii_update_chunk c = chunks[blockIdx.x];
  const ii_update_tensor t = tensors[c.tensor];
  const bool step = t.g && action == II_UPDATE_ALL;
  if (!step && (kind == II_UPDATE_SCALE || !t.ema)) return;
  const R *two = factor + II_FACTOR_TENSORS + 2 * (int64_t)c.tensor;
  const factors<R> f = {
      factor[II_FACTOR_GRAD], factor[II_FACTOR_ROOT], factor[II_FACTOR_FIRST], {two[0], two[1]}};
  const int64_t first = (int64_t)c.part * II_UPDATE_CHUNK + (int64_t)blockIdx.y * BLOCK;
  const int64_t left = t.n - first;
  const int n = left < BLOCK ? (int)(left < 0 ? 0 : left) : BLOCK;
  const int whole = aligned<R>(t) ? n / V : 0;
  for (int i = threadIdx.x; i < whole; i += THREADS)
    piece<V, kind, R, L>(t, r, f, step, first + (int64_t)i * V);
  for (int i = whole * V + threadIdx.x; i < n; i += THREADS)
    piece<1, kind, R, L>(t, r, f, step, first + i);
}

template <int kind, typename R, typename L> int launch(ii_kctx *k, const ii_update_args *a) {
  const rules<R> r = {
      (R)a->beta1,    (R)(1.0 - a->beta1),     (R)a->beta2, (R)(1.0 - a->beta2), (R)a->eps,
      (R)a->momentum, (R)(1.0 - a->ema_decay), a->nesterov};
  const dim3 grid((unsigned)a->chunks, BLOCKS_PER_CHUNK);
  II_LAUNCH(k, (apply_kernel<kind, R, L>), grid, THREADS, 0, a->tensor, a->chunk,
            (const R *)a->factor, a->state, r);
  return 0;
}

template <typename R, typename L> int apply(ii_kctx *k, const ii_update_args *a) {
  if (a->chunks == 0) return 0;
  switch (a->kind) {
  case II_UPDATE_ADAMW:
    return launch<II_UPDATE_ADAMW, R, L>(k, a);
  case II_UPDATE_SGD:
    return launch<II_UPDATE_SGD, R, L>(k, a);
  default: /* no 16-bit copy is written: its type does not matter */
    return launch<II_UPDATE_SCALE, R, ii_bf16>(k, a);
  }
}

} // namespace

extern "C" int ii_cuda_update_apply(ii_kctx *k, const ii_update_args *a) {
  if (a->real == II_F64) return apply<double, ii_bf16>(k, a);
  return a->low_dtype == II_F16 ? apply<float, ii_f16>(k, a) : apply<float, ii_bf16>(k, a);
}
