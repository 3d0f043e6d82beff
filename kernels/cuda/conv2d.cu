/* Dense convolution, NHWC: cuDNN for fp32, fp16 and bf16 with fp32 sums (tensor cores for 16-bit
 * types), the direct kernels of conv_direct.cu for double and where cuDNN has no plan or refuses to
 * run the one it made; 1x1 of stride 1 is a linear layer on pixels.
 *
 * Weights are stored O,C,kh,kw; beside NHWC images cuDNN wants O,kh,kw,C, so a kernel reorders them
 * into scratch memory before, and the weights' gradient after. One block does 64 channels of one
 * output channel: a run of 64*kh*kw numbers is read, turned in shared memory, and written as kh*kw
 * runs of 64. The bias is added by a pass of its own, 16 bytes per access.
 *
 * cuDNN gives the gradient of 16-bit weights in 16 bits only (9.19 has no engine with fp32 there,
 * which the test of the plans shows); it is widened as it is reordered. PyTorch's autocast does the
 * same.
 *
 * Few channels in 16 bits, as in a stem (C = 3): cuDNN's tensor-core kernels want multiples of 8
 * and copy x to 8 channels first. We let neighbouring pixels be the channels instead (conv_plan.h,
 * ii_conv_grouping): x and y stay where they are, the weights are spread out among zeros before,
 * and their gradient is gathered after, one thread per number. See docs/kernels.md, "The stem".
 *
 * Bytes moved beside cuDNN's own: 2 * O*C*kh*kw elements for each reordering; 2 * N*Ho*Wo*O for a
 * bias. Known limits: with a bias a 16-bit result is rounded twice; cuDNN may choose another engine
 * for another batch size, so the last bits of one image's results may depend on the number of
 * images in the batch (not on what is in them); where pixels are grouped, an infinite x makes NaNs
 * of the outputs around it, a group to either side. */
#include <stdlib.h>
#include "kernels/cuda/conv_direct.h"
#include "kernels/cuda/conv_plan.h"
#include "kernels/cuda/flat.h"

/* Plans in the order of their first use: a model has some five convolutions. */
struct plan_entry {
  ii_conv_problem problem;
  ii_conv_plan plan;
};
struct ii_conv_plans {
  plan_entry *entries;
  int64_t count, capacity;
};

/* II_WITH_TYPE for the types that cuDNN serves. */
#define WITH_LIBRARY_TYPE(k, dtype, T, ...)                                                        \
  if ((dtype) == II_F16) {                                                                         \
    typedef ii_f16 T;                                                                              \
    __VA_ARGS__;                                                                                   \
  } else if ((dtype) == II_BF16) {                                                                 \
    typedef ii_bf16 T;                                                                             \
    __VA_ARGS__;                                                                                   \
  } else {                                                                                         \
    typedef float T;                                                                               \
    __VA_ARGS__;                                                                                   \
  }

namespace {

/* ---- Weights between O,C,taps and O,taps,C ----------------------------------------------------*/

enum { TURN_THREADS = 256, TURN_CHANNELS = 64, MOST_TAPS = 81 };

/* out[o,t,c] = w[o,c,t] */
template <typename T>
__global__ void __launch_bounds__(TURN_THREADS)
    conv2d_weights_in(int64_t C, int taps, const T *w, T *out) {
  II_SHARED(T, tile); /* [c][taps | 1]: the odd pitch spreads a tap's channels over the banks */
  const int64_t chunks = (C + TURN_CHANNELS - 1) / TURN_CHANNELS;
  const int64_t o = blockIdx.x / chunks, c0 = blockIdx.x % chunks * TURN_CHANNELS;
  const int width = C - c0 < TURN_CHANNELS ? (int)(C - c0) : TURN_CHANNELS, pitch = taps | 1;
  w += (o * C + c0) * taps;
  for (int i = threadIdx.x; i < width * taps; i += TURN_THREADS)
    tile[i / taps * pitch + i % taps] = w[i];
  __syncthreads();
  out += o * taps * C + c0;
  for (int i = threadIdx.x; i < width * taps; i += TURN_THREADS)
    out[i / width * C + i % width] = tile[i % width * pitch + i / width];
}

/* gw[o,c,t] (+)= turned[o,t,c] */
template <typename T>
__global__ void __launch_bounds__(TURN_THREADS)
    conv2d_weights_out(int64_t C, int taps, const T *turned, float *gw, bool accumulate) {
  II_SHARED(T, tile);
  const int64_t chunks = (C + TURN_CHANNELS - 1) / TURN_CHANNELS;
  const int64_t o = blockIdx.x / chunks, c0 = blockIdx.x % chunks * TURN_CHANNELS;
  const int width = C - c0 < TURN_CHANNELS ? (int)(C - c0) : TURN_CHANNELS, pitch = taps | 1;
  turned += o * taps * C + c0;
  for (int i = threadIdx.x; i < width * taps; i += TURN_THREADS)
    tile[i % width * pitch + i / width] = turned[i / width * C + i % width];
  __syncthreads();
  gw += (o * C + c0) * taps;
  for (int i = threadIdx.x; i < width * taps; i += TURN_THREADS) {
    const float v = ii_up(tile[i / taps * pitch + i % taps]);
    gw[i] = accumulate ? gw[i] + v : v;
  }
}

/* ---- Weights of grouped pixels ----------------------------------------------------------------*/

struct spread {
  int64_t C, O;
  int kh, kw, stride, pad;
  ii_conv_grouping g;
};

/* wide[u*O + o][i][J][p*C + c]: the weight that it stands for, or zero. */
template <typename T>
__global__ void __launch_bounds__(TURN_THREADS)
    conv2d_weights_spread(spread s, const T *w, T *wide) {
  const int64_t width = s.g.pixels * s.C, count = s.g.outputs * s.O * s.kh * s.g.kw * width;
  const int64_t step = (int64_t)gridDim.x * TURN_THREADS;
  for (int64_t at = (int64_t)blockIdx.x * TURN_THREADS + threadIdx.x; at < count; at += step) {
    const int64_t c = at % s.C, p = at % width / s.C, tap = at / width, row = tap / s.g.kw;
    const int64_t i = row % s.kh, out = row / s.kh, o = out % s.O, u = out / s.O;
    const int64_t j = (tap % s.g.kw - s.g.lead) * s.g.pixels + p + s.pad - u * s.stride;
    wide[at] = j < 0 || j >= s.kw ? ii_down<T>(0.0f) : w[((o * s.C + c) * s.kh + i) * s.kw + j];
  }
}

/* gw[o,c,i,j] (+)= the sum of its places in wide, the outputs of a group in order. */
template <typename T>
__global__ void __launch_bounds__(TURN_THREADS)
    conv2d_weights_gather(spread s, const T *wide, float *gw, bool accumulate) {
  const int64_t width = s.g.pixels * s.C, count = s.O * s.C * s.kh * s.kw;
  const int64_t step = (int64_t)gridDim.x * TURN_THREADS;
  for (int64_t at = (int64_t)blockIdx.x * TURN_THREADS + threadIdx.x; at < count; at += step) {
    const int64_t j = at % s.kw, i = at / s.kw % s.kh, c = at / s.kw / s.kh % s.C;
    const int64_t o = at / s.kw / s.kh / s.C;
    float sum = accumulate ? gw[at] : 0.0f;
    for (int64_t u = 0; u < s.g.outputs; u++) {
      const int64_t x =
          s.g.lead * s.g.pixels + u * s.stride - s.pad + j; /* from the first tap on */
      const int64_t tap = ((u * s.O + o) * s.kh + i) * s.g.kw + x / s.g.pixels;
      sum += ii_up(wide[tap * width + x % s.g.pixels * s.C + c]);
    }
    gw[at] = sum;
  }
}

/* ---- Sizes ------------------------------------------------------------------------------------*/

int taps_of(const ii_conv2d_args *a) {
  return a->kh * a->kw;
}
unsigned turn_blocks(const ii_conv2d_args *a) {
  return (unsigned)(a->O * ii_ceil_div(a->C, TURN_CHANNELS));
}
size_t turn_shared(const ii_conv2d_args *a) {
  return (size_t)TURN_CHANNELS * (size_t)(taps_of(a) | 1) * ii_dtype_size(a->x_dtype);
}
size_t weight_bytes(const ii_conv2d_args *a) {
  return (size_t)(a->O * a->C * taps_of(a)) * ii_dtype_size(a->x_dtype);
}

/* ---- Bias -------------------------------------------------------------------------------------*/

/* y[rows,O] += b[O]; a thread keeps V channels and walks down the rows. */
template <typename T, int V>
__global__ void __launch_bounds__(256)
    conv2d_add_bias(int64_t rows, int64_t O, const float *b, T *y) {
  const int64_t step = (int64_t)gridDim.x * blockDim.y;
  for (int64_t c = threadIdx.x; c < O / V; c += blockDim.x) {
    float bias[V];
#pragma unroll
    for (int i = 0; i < V; i++) bias[i] = b[c * V + i];
    for (int64_t r = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; r < rows; r += step) {
      float v[V];
      ii_get<V>(y + r * O + c * V, v);
#pragma unroll
      for (int i = 0; i < V; i++) v[i] += bias[i];
      ii_put<V>(y + r * O + c * V, v);
    }
  }
}

template <typename T, int V> int launch_bias(ii_kctx *k, const ii_conv2d_args *a) {
  const int64_t rows = a->N * a->Ho * a->Wo, vectors = a->O / V;
  const unsigned lanes = vectors < 32 ? (unsigned)vectors : 32;
  const dim3 block(lanes, 256 / lanes);
  const unsigned grid = ii_grid_for(k, rows, (int)block.y * 4);
  II_LAUNCH(k, (conv2d_add_bias<T, V>), grid, block, 0, rows, a->O, (const float *)a->b, (T *)a->y);
  return 0;
}

int add_bias(ii_kctx *k, const ii_conv2d_args *a) {
  WITH_LIBRARY_TYPE(k, a->x_dtype, T, {
    constexpr int V = ii_wide<T>::n;
    if (a->O % V == 0 && ii_aligned<V>((const T *)a->y)) return launch_bias<T, V>(k, a);
    return launch_bias<T, 1>(k, a);
  })
}

/* ---- Plans ------------------------------------------------------------------------------------*/

/* Bytes that all three are multiples of, 16 at most. */
int alignment(const void *a, const void *b, const void *c) {
  const uintptr_t bits = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | 16;
  return (int)(bits & (0 - bits));
}

int dnn_failed(ii_kctx *k, const char *call, cudnnStatus_t s) {
  char detail[256] = "";
  cudnnGetLastErrorString(detail, sizeof detail);
  return ii_cuda_error(k, "%s failed on GPU %d: %s%s%s", call, ii_cuda(k)->device,
                       cudnnGetErrorString(s), *detail ? ": " : "", detail);
}

int open_library(ii_kctx *k) {
  ii_cuda_engine *e = ii_cuda(k);
  const cudaStream_t stream = ii_cuda_stream(k); /* selects the GPU that the handle is for */
  if (e->conv_plans) return 0;
  cudnnStatus_t s = e->dnn ? CUDNN_STATUS_SUCCESS : cudnnCreate(&e->dnn);
  if (s) {
    e->dnn = NULL;
    return dnn_failed(k, "opening cuDNN (cudnnCreate)", s);
  }
  s = cudnnSetStream(e->dnn, stream);
  if (s) return dnn_failed(k, "cudnnSetStream", s);
  e->conv_plans = (ii_conv_plans *)calloc(1, sizeof *e->conv_plans);
  return e->conv_plans ? 0 : ii_cuda_error(k, "out of host memory");
}

/* *found = the plan for p, made now if it is new. */
int find_plan(ii_kctx *k, const ii_conv_problem *p, ii_conv_plan **found) {
  if (open_library(k)) return 1;
  ii_cuda_engine *e = ii_cuda(k);
  ii_conv_plans *all = e->conv_plans;
  for (int64_t i = 0; i < all->count; i++)
    if (ii_conv_problem_equal(&all->entries[i].problem, p)) {
      *found = &all->entries[i].plan;
      return 0;
    }
  if (all->count == all->capacity) {
    const int64_t capacity = all->capacity ? 2 * all->capacity : 32;
    void *more = realloc(all->entries, (size_t)capacity * sizeof *all->entries);
    if (!more) return ii_cuda_error(k, "out of host memory");
    all->entries = (plan_entry *)more;
    all->capacity = capacity;
  }
  plan_entry *fresh = &all->entries[all->count];
  fresh->problem = *p;
  if (ii_conv_plan_make(p, e->dnn, NULL, &fresh->plan, k->error, sizeof k->error)) return 1;
  all->count++;
  *found = &fresh->plan;
  return 0;
}

/* Runs the plan for these operands; *done stays false when there is none, or when the library turns
 * out not to support what it made: that plan is given up. */
int run_plan(ii_kctx *k, const ii_conv_problem *p, const void *x, const void *w, const void *y,
             bool *done) {
  ii_conv_plan *plan = NULL;
  if (find_plan(k, p, &plan)) return 1;
  if (!plan->plan) return 0;
  void *workspace = ii_cuda_scratch(k, II_SLOT_WORKSPACE, (size_t)plan->workspace);
  if (!workspace) return 1;
  const cudnnStatus_t s = ii_conv_plan_run(plan, ii_cuda(k)->dnn, x, w, y, workspace);
  if (CUDNN_STATUS_CATEGORY(s) == CUDNN_STATUS_NOT_SUPPORTED) { /* nothing has been queued */
    ii_conv_plan_free(plan);
    return 0;
  }
  if (s) return dnn_failed(k, "a convolution of cuDNN", s);
  *done = true;
  return ii_cuda_launched(k, "cudnnBackendExecute", __FILE__, __LINE__);
}

/* ---- The three directions ---------------------------------------------------------------------*/

bool for_library(const ii_conv2d_args *a) {
  return a->x_dtype != II_F64 && taps_of(a) <= MOST_TAPS &&
         a->O * ii_ceil_div(a->C, TURN_CHANNELS) <= INT32_MAX;
}

/* The weights as O,kh,kw,C in scratch memory; NULL on an error. */
int turned_weights(ii_kctx *k, const ii_conv2d_args *a, void **turned) {
  *turned = ii_cuda_scratch(k, II_SLOT_A, weight_bytes(a));
  if (!*turned) return 1;
  WITH_LIBRARY_TYPE(k, a->x_dtype, T, {
    II_LAUNCH(k, conv2d_weights_in<T>, turn_blocks(a), TURN_THREADS, turn_shared(a), a->C,
              taps_of(a), (const T *)a->w, (T *)*turned);
  })
  return 0;
}

template <typename T>
int run_groups_of(ii_kctx *k, const ii_conv2d_args *a, ii_conv_direction direction,
                  const ii_conv_grouping &g, bool *done) {
  const bool fwd = direction == II_CONV_FWD;
  const spread s = {a->C, a->O, a->kh, a->kw, a->stride, a->pad, g};
  const int64_t weights = a->O * a->C * taps_of(a);
  const int64_t count = g.outputs * a->O * a->kh * g.kw * g.pixels * a->C;
  T *wide = (T *)ii_cuda_scratch(k, II_SLOT_A, (size_t)count * sizeof(T));
  if (!wide) return 1;
  const void *y = fwd ? a->y : a->gy;
  const int aligned = alignment(a->x, wide, y);
  const ii_conv_problem p = ii_conv_problem_grouped(a, direction, aligned, &g);
  if (fwd)
    II_LAUNCH(k, conv2d_weights_spread<T>, ii_grid_for(k, count, TURN_THREADS), TURN_THREADS, 0, s,
              (const T *)a->w, wide);
  if (run_plan(k, &p, a->x, wide, y, done)) return 1;
  if (*done && !fwd)
    II_LAUNCH(k, conv2d_weights_gather<T>, ii_grid_for(k, weights, TURN_THREADS), TURN_THREADS, 0,
              s, (const T *)wide, (float *)a->gw, a->acc_gw);
  return 0;
}

/* The forward or the filter gradient with pixels in groups where the shape says so; *done stays
 * false otherwise. */
int run_grouped(ii_kctx *k, const ii_conv2d_args *a, ii_conv_direction direction, bool *done) {
  ii_conv_grouping g;
  if (!ii_conv_group(a, &g)) return 0;
  return a->x_dtype == II_F16 ? run_groups_of<ii_f16>(k, a, direction, g, done)
                              : run_groups_of<ii_bf16>(k, a, direction, g, done);
}

/* One direction as it is; w: weights or their gradient, O,kh,kw,C. */
int run_whole(ii_kctx *k, const ii_conv2d_args *a, ii_conv_direction direction, const void *x,
              const void *w, const void *y, bool *done) {
  const ii_conv_problem p = ii_conv_problem_of(a, direction, alignment(x, w, y));
  return run_plan(k, &p, x, w, y, done);
}

int forward(ii_kctx *k, const ii_conv2d_args *a) {
  bool done = false;
  void *w;
  if (for_library(a)) {
    if (run_grouped(k, a, II_CONV_FWD, &done)) return 1;
    if (!done && (turned_weights(k, a, &w) || run_whole(k, a, II_CONV_FWD, a->x, w, a->y, &done)))
      return 1;
    if (done) return a->b ? add_bias(k, a) : 0;
  }
  return ii_conv_direct_fwd(k, a);
}

int backward_data(ii_kctx *k, const ii_conv2d_args *a) {
  bool done = false;
  void *w;
  if (for_library(a)) {
    if (turned_weights(k, a, &w)) return 1;
    if (run_whole(k, a, II_CONV_BWD_DATA, a->gx, w, a->gy, &done)) return 1;
    if (done) return 0;
  }
  return ii_conv_direct_bwd_data(k, a);
}

int backward_filter(ii_kctx *k, const ii_conv2d_args *a) {
  bool done = false;
  if (for_library(a)) {
    if (run_grouped(k, a, II_CONV_BWD_FILTER, &done)) return 1;
    if (done) return 0;
    void *turned = ii_cuda_scratch(k, II_SLOT_A, weight_bytes(a));
    if (!turned || run_whole(k, a, II_CONV_BWD_FILTER, a->x, turned, a->gy, &done)) return 1;
    if (done) {
      WITH_LIBRARY_TYPE(k, a->x_dtype, T, {
        II_LAUNCH(k, conv2d_weights_out<T>, turn_blocks(a), TURN_THREADS, turn_shared(a), a->C,
                  taps_of(a), (const T *)turned, (float *)a->gw, a->acc_gw);
      })
      return 0;
    }
  }
  return ii_conv_direct_bwd_filter(k, a);
}

/* ---- Special cases ----------------------------------------------------------------------------*/

bool is_pointwise(const ii_conv2d_args *a) {
  return a->kh == 1 && a->kw == 1 && a->stride == 1 && a->pad == 0;
}

ii_linear_args as_linear(const ii_conv2d_args *a) {
  ii_linear_args l = {};
  l.real = a->real;
  l.x_dtype = a->x_dtype;
  l.rows = a->N * a->H * a->W;
  l.in = a->C;
  l.out = a->O;
  l.x = a->x, l.w = a->w, l.b = a->b, l.y = a->y;
  l.gy = a->gy, l.gx = a->gx, l.gw = a->gw, l.gb = a->gb;
  l.acc_gx = a->acc_gx, l.acc_gw = a->acc_gw, l.acc_gb = a->acc_gb;
  return l;
}

/* Sums over nothing are zeros. */
int backward_of_nothing(ii_kctx *k, const ii_conv2d_args *a) {
  const size_t x_bytes = (size_t)(a->N * a->H * a->W * a->C) * ii_dtype_size(a->x_dtype);
  const size_t w_bytes = (size_t)(a->O * a->C * taps_of(a)) * ii_dtype_size(a->real);
  if (a->gx && !a->acc_gx && x_bytes)
    II_CUDA_TRY(k, cudaMemsetAsync(a->gx, 0, x_bytes, ii_cuda_stream(k)));
  if (a->gw && !a->acc_gw && w_bytes)
    II_CUDA_TRY(k, cudaMemsetAsync(a->gw, 0, w_bytes, ii_cuda_stream(k)));
  return 0;
}

} // namespace

extern "C" int ii_cuda_conv2d_fwd(ii_kctx *k, const ii_conv2d_args *a) {
  if (is_pointwise(a)) {
    const ii_linear_args l = as_linear(a);
    return ii_cuda_linear_fwd(k, &l);
  }
  if (a->N * a->Ho * a->Wo * a->O == 0) return 0;
  /* without input channels the direct kernel writes the bias */
  if (a->H * a->W * a->C == 0) return ii_conv_direct_fwd(k, a);
  return forward(k, a);
}

extern "C" int ii_cuda_conv2d_bwd(ii_kctx *k, const ii_conv2d_args *a) {
  if (is_pointwise(a)) {
    const ii_linear_args l = as_linear(a);
    return ii_cuda_linear_bwd(k, &l);
  }
  const int64_t rows = a->N * a->Ho * a->Wo;
  if (rows * a->O == 0 || a->H * a->W * a->C * taps_of(a) == 0) {
    if (backward_of_nothing(k, a)) return 1;
  } else {
    if (a->gx && backward_data(k, a)) return 1;
    if (a->gw && backward_filter(k, a)) return 1;
  }
  if (!a->gb) return 0;
  return ii_cuda_column_sums(k, a->real, a->x_dtype, rows, a->O, a->gy, a->gb, a->acc_gb);
}

void ii_conv_plans_free(ii_cuda_engine *e) {
  if (!e->conv_plans) return;
  for (int64_t i = 0; i < e->conv_plans->count; i++)
    ii_conv_plan_free(&e->conv_plans->entries[i].plan);
  free(e->conv_plans->entries);
  free(e->conv_plans);
  e->conv_plans = NULL;
}
