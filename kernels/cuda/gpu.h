/* What every .cu file begins with: launches, shared memory, types, vectors, reductions, errors.
 *
 * The same sources are compiled by nvcc and, for the emulated engine, by the host compiler
 * (kernels/emulate/emulate.h is included before anything else then; docs/emulation.md). This is the
 * only file that knows which of the two it is. Rules for kernels: templates in an anonymous
 * namespace, launched by II_LAUNCH alone; dynamic shared memory by II_SHARED alone; no inline PTX,
 * cooperative groups, cub or curand; all lanes alive at full-mask shuffles; no double arithmetic
 * unless the kernel is instantiated for double. */
#ifndef II_GPU_H
#define II_GPU_H
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <stdint.h>
#include <string.h>
#include "kernels/cuda/engine.h"

#ifdef II_EMULATE
#define II_LAUNCH_ON(stream, kernel, grid, block, smem, ...)                                       \
  II_EMU_LAUNCH(kernel, grid, block, smem, stream, __VA_ARGS__)
#define II_SHARED(type, name) II_EMU_SHARED(type, name)
#else
#define II_LAUNCH_ON(stream, kernel, grid, block, smem, ...)                                       \
  kernel<<<grid, block, smem, stream>>>(__VA_ARGS__)
/* Dynamic shared memory as an array of `type`, 32-byte aligned. */
#define II_SHARED(type, name)                                                                      \
  extern __shared__ __align__(32) unsigned char ii_dynamic_shared[];                               \
  type *name = reinterpret_cast<type *>(ii_dynamic_shared)
#endif

/* Launches kernel(args...) on k's stream; on an error returns from the enclosing function (which
 * returns int) with kernel, file, line and device in k->error. A kernel template with several
 * arguments is written in parentheses: II_LAUNCH(k, (name<float, 4>), grid, block, smem, ...).
 * Launching nothing (grid of 0) is an error of CUDA: leave before that. */
#define II_LAUNCH(k, kernel, grid, block, smem, ...)                                               \
  do {                                                                                             \
    II_LAUNCH_ON(ii_cuda_stream(k), kernel, grid, block, smem, __VA_ARGS__);                       \
    if (ii_cuda_launched(k, #kernel, __FILE__, __LINE__)) return 1;                                \
  } while (0)

/* Checks a call of the CUDA runtime / cuBLAS / cuDNN; on an error returns 1 from the enclosing
 * function, with the call, file, line, device and the library's words in k->error. */
#define II_CUDA_TRY(k, call)                                                                       \
  do {                                                                                             \
    cudaError_t e_ = (call);                                                                       \
    if (e_ != cudaSuccess) return ii_cuda_failed(k, #call, __FILE__, __LINE__, (int)e_);           \
  } while (0)

/* ---- Types ------------------------------------------------------------------------------------*/

typedef __half ii_f16;
typedef __nv_bfloat16 ii_bf16;

/* The type to accumulate in. */
template <typename T> struct ii_acc { typedef float type; };
template <> struct ii_acc<double> { typedef double type; };
template <typename T> using ii_real_of = typename ii_acc<T>::type;

/* Widening and rounding (to nearest even); R is float, or double for double. */
static __device__ __forceinline__ float ii_up(float v) {
  return v;
}
static __device__ __forceinline__ double ii_up(double v) {
  return v;
}
static __device__ __forceinline__ float ii_up(ii_f16 v) {
  return __half2float(v);
}
static __device__ __forceinline__ float ii_up(ii_bf16 v) {
  return __bfloat162float(v);
}

template <typename T> __device__ __forceinline__ T ii_down(float v);
template <> __device__ __forceinline__ float ii_down<float>(float v) {
  return v;
}
template <> __device__ __forceinline__ ii_f16 ii_down<ii_f16>(float v) {
  return __float2half_rn(v);
}
template <> __device__ __forceinline__ ii_bf16 ii_down<ii_bf16>(float v) {
  return __float2bfloat16_rn(v);
}
template <typename T> __device__ __forceinline__ T ii_down(double v);
template <> __device__ __forceinline__ double ii_down<double>(double v) {
  return v;
}

/* Runs the statements with T standing for the type `dtype` of an activation, R for the accumulator
 * (real == II_F64 allows II_F64 alone). Ends the enclosing function with an error for others. */
#define II_WITH_TYPE(k, dtype, T, ...)                                                             \
  switch (dtype) {                                                                                 \
  case II_F32: {                                                                                   \
    typedef float T;                                                                               \
    __VA_ARGS__;                                                                                   \
    break;                                                                                         \
  }                                                                                                \
  case II_F16: {                                                                                   \
    typedef ii_f16 T;                                                                              \
    __VA_ARGS__;                                                                                   \
    break;                                                                                         \
  }                                                                                                \
  case II_BF16: {                                                                                  \
    typedef ii_bf16 T;                                                                             \
    __VA_ARGS__;                                                                                   \
    break;                                                                                         \
  }                                                                                                \
  case II_F64: {                                                                                   \
    typedef double T;                                                                              \
    __VA_ARGS__;                                                                                   \
    break;                                                                                         \
  }                                                                                                \
  default:                                                                                         \
    return ii_cuda_error(k, "%s: no kernel for type %s", __func__, ii_dtype_name(dtype));          \
  }

/* ---- Vectors: V elements that are loaded and stored at once -----------------------------------*/

template <typename T, int V> struct alignas(sizeof(T) * V) ii_vec { T v[V]; };
/* Elements of T in 16 bytes. */
template <typename T> struct ii_wide { static constexpr int n = 16 / (int)sizeof(T); };

template <int V, typename T> __device__ __forceinline__ ii_vec<T, V> ii_load(const T *p) {
  return *reinterpret_cast<const ii_vec<T, V> *>(p);
}
/* p in global memory. By intrinsics, because nvcc splits the store of a struct (and of a float4) into
 * one per element in many loops. */
template <int V, typename T> __device__ __forceinline__ void ii_store(T *p, const ii_vec<T, V> &v) {
  if constexpr (sizeof v == 16) {
    uint4 word;
    memcpy(&word, &v, sizeof v);
    __stwb(reinterpret_cast<uint4 *>(p), word);
  } else if constexpr (sizeof v == 8 && V > 1) {
    uint2 word;
    memcpy(&word, &v, sizeof v);
    __stwb(reinterpret_cast<uint2 *>(p), word);
  } else {
    *reinterpret_cast<ii_vec<T, V> *>(p) = v;
  }
}
/* V elements in 16 bytes, or one, that are read once and not soon again. p is in global memory, which
 * nvcc does not see of a pointer that was loaded from a table; by intrinsics therefore. */
template <int V, typename T> __device__ __forceinline__ void ii_load_once(const T *p, T (&r)[V]) {
  static_assert(V == 1 || sizeof(T) * V == 16, "16 bytes or one element");
  if constexpr (V == 1) {
    r[0] = __ldcs(p);
  } else {
    const uint4 word = __ldcs(reinterpret_cast<const uint4 *>(p));
    memcpy(r, &word, sizeof word);
  }
}
/* Whether p may be accessed in vectors of V elements. */
template <int V, typename T> static inline bool ii_aligned(const T *p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * V) == 0;
}

/* ---- Reductions -------------------------------------------------------------------------------*/

#define II_FULL_MASK 0xffffffffu

/* Sum over the `width` (a power of two up to 32) neighbouring lanes; every lane gets it. All 32
 * lanes take part. */
template <int width, typename R> __device__ __forceinline__ R ii_lanes_sum(R v) {
#pragma unroll
  for (int m = width / 2; m > 0; m /= 2) v += __shfl_xor_sync(II_FULL_MASK, v, m);
  return v;
}
template <int width, typename R> __device__ __forceinline__ R ii_lanes_max(R v) {
#pragma unroll
  for (int m = width / 2; m > 0; m /= 2) {
    R o = __shfl_xor_sync(II_FULL_MASK, v, m);
    v = o > v ? o : v;
  }
  return v;
}
/* Sum over the block (blockDim.x threads, a multiple of 32, one-dimensional); every thread gets it.
 * shared: room for 32 values; may be used again right after. */
template <typename R> __device__ __forceinline__ R ii_block_sum(R v, R *shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  v = ii_lanes_sum<32>(v);
  __syncthreads();
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  return ii_lanes_sum<32>(lane < warps ? shared[lane] : R(0));
}

/* ---- Sizes ------------------------------------------------------------------------------------*/

static inline int64_t ii_ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
/* Blocks for a grid-stride loop over n items: enough to fill the GPU several times over. */
static inline unsigned ii_grid_for(const ii_kctx *k, int64_t n, int threads) {
  const int64_t want = ii_ceil_div(n, threads), most = (int64_t)ii_cuda_sm_count(k) * 32;
  return (unsigned)(want < most ? want : most);
}

#endif
