/* Planted bugs in kernels, for test_emulator.cu. The marks in comments name the lines that a report
 * must name. Kernels stand in an anonymous namespace, as those of the product. */
#include <stdint.h>
#include <stdio.h>
#include <vector>
#include "test_emulator.h"

namespace {

/* Device memory with contents, and back. */
struct buffer {
  float *p;
  int n;
  explicit buffer(int count, float first = 0, float step = 0) : n(count) {
    std::vector<float> v((size_t)n);
    for (int i = 0; i < n; i++) v[(size_t)i] = first + step * (float)i;
    cudaMalloc(&p, sizeof(float) * (size_t)n);
    cudaMemcpy(p, v.data(), sizeof(float) * (size_t)n, cudaMemcpyHostToDevice);
  }
  ~buffer() { cudaFree(p); }
  std::vector<float> read() const {
    std::vector<float> v((size_t)n);
    cudaMemcpy(v.data(), p, sizeof(float) * (size_t)n, cudaMemcpyDeviceToHost);
    return v;
  }
};

/* ---- Barriers ---------------------------------------------------------------------------------*/

/* Reverses blocks of 128 through shared memory. */
__global__ void reverse(const float *x, float *y, bool bug) {
  __shared__ float tile[128];
  const int i = blockIdx.x * 128 + threadIdx.x;
  tile[threadIdx.x] = x[i]; /* raw write */
  if (!bug) __syncthreads();
  y[i] = tile[127 - threadIdx.x]; /* raw read */
}
int raw(bool bug) {
  buffer x(512, 0, 1), y(512);
  II_EMU_LAUNCH(reverse, 4, 128, 0, 0, x.p, y.p, bug);
  const std::vector<float> v = y.read();
  for (int i = 0; i < 512; i++) {
    if (v[(size_t)i] != (float)(i / 128 * 128 + 127 - i % 128)) return 1;
  }
  return 0;
}

/* Rotates through shared memory that every turn of the loop uses again. */
__global__ void rotate(const float *x, float *y, int turns, bool bug) {
  __shared__ float tile[96];
  float v = x[threadIdx.x];
  for (int i = 0; i < turns; i++) {
    tile[threadIdx.x] = v; /* war write */
    __syncthreads();
    v = tile[(threadIdx.x + 33) % 96]; /* war read */
    if (!bug) __syncthreads();
  }
  y[threadIdx.x] = v;
}
int war(bool bug) {
  buffer x(96, 0, 1), y(96);
  II_EMU_LAUNCH(rotate, 1, 96, 0, 0, x.p, y.p, 5, bug);
  const std::vector<float> v = y.read();
  for (int i = 0; i < 96; i++) {
    if (v[(size_t)i] != (float)((i + 5 * 33) % 96)) return 1;
  }
  return 0;
}

/* Lanes of one warp exchange through dynamic shared memory. */
__global__ void neighbours(const float *x, float *y, bool bug) {
  II_EMU_SHARED(float, tile);
  tile[threadIdx.x] = x[threadIdx.x]; /* warp write */
  if (!bug) __syncwarp();
  const int other = (int)threadIdx.x ^ 1;
  y[threadIdx.x] = tile[other]; /* warp read */
}
int missing_syncwarp(bool bug) {
  buffer x(64, 0, 1), y(64);
  II_EMU_LAUNCH(neighbours, 1, 64, 64 * sizeof(float), 0, x.p, y.p, bug);
  const std::vector<float> v = y.read();
  for (int i = 0; i < 64; i++) {
    if (v[(size_t)i] != (float)(i ^ 1)) return 1;
  }
  return 0;
}

__global__ void two_barriers(float *y, bool bug) {
  if (bug && threadIdx.x >= 32) {
    __syncthreads(); /* upper barrier */
  } else {
    __syncthreads(); /* lower barrier */
  }
  y[threadIdx.x] = 1;
}
int divergent(bool bug) {
  buffer y(64);
  II_EMU_LAUNCH(two_barriers, 1, 64, 0, 0, y.p, bug);
  return y.read()[63] != 1;
}

/* A barrier that lane 7 skips, and then a shuffle that waits for it. */
__global__ void skipped_barrier(float *y, bool bug) {
  if (!bug || threadIdx.x != 7) __syncthreads();                    /* skipped barrier */
  y[threadIdx.x] = __shfl_sync(0xffffffffu, (float)threadIdx.x, 7); /* shuffle that waits */
}
int deadlock(bool bug) {
  buffer y(64);
  II_EMU_LAUNCH(skipped_barrier, 1, 64, 0, 0, y.p, bug);
  return y.read()[0] != 7;
}

__global__ void half_warp_shuffle(float *y, bool bug) {
  float v = (float)threadIdx.x;
  if (threadIdx.x < 16) {
    v = __shfl_xor_sync(bug ? 0xffffffffu : 0xffffu, v, 1); /* lower shuffle */
  } else {
    v = __shfl_xor_sync(bug ? 0xffffffffu : 0xffff0000u, v, 1); /* upper shuffle */
  }
  y[threadIdx.x] = v;
}
int divergent_shuffle(bool bug) {
  buffer y(32);
  II_EMU_LAUNCH(half_warp_shuffle, 1, 32, 0, 0, y.p, bug);
  return y.read()[16] != 17;
}

__global__ void outside_mask(float *y, bool bug) {
  const unsigned mask = bug ? 0xfffffffeu : 0xffffffffu;
  y[threadIdx.x] = __shfl_sync(mask, 3.0f, 1); /* own mask */
}
int not_in_mask(bool bug) {
  buffer y(32);
  II_EMU_LAUNCH(outside_mask, 1, 32, 0, 0, y.p, bug);
  return y.read()[0] != 3;
}

/* ---- Addresses --------------------------------------------------------------------------------*/

/* Not inlined, or the compiler's own check of array bounds would be first. */
template <typename T> __attribute__((noinline)) __device__ void store(T *p, int i, T v) {
  p[i] = v; /* static overrun */
}
template <typename T> __global__ void shared_end(T *y, bool bug) {
  __shared__ T tile[33];
  store(tile, (int)threadIdx.x + (bug ? 2 : 1), T(2));
  __syncwarp();
  y[threadIdx.x] = tile[32 - threadIdx.x];
}
int static_overrun(bool bug) {
  buffer y(32);
  II_EMU_LAUNCH(shared_end<float>, 1, 32, 0, 0, y.p, bug);
  return y.read()[0] != 2;
}

__global__ void dynamic_end(float *y, bool bug) {
  II_EMU_SHARED(float, tile);
  tile[threadIdx.x + (bug ? 1 : 0)] = 2; /* dynamic overrun */
  __syncwarp();
  y[threadIdx.x] = 2;
}
int dynamic_overrun(bool bug) {
  buffer y(32);
  II_EMU_LAUNCH(dynamic_end, 1, 32, 32 * sizeof(float), 0, y.p, bug);
  return y.read()[0] != 2;
}

__global__ void scale(const float *x, float *y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2 * x[i]; /* past the tensor */
}
int global_overrun(bool bug) {
  buffer x(101, 0, 1), y(100);
  II_EMU_LAUNCH(scale, 2, 64, 0, 0, x.p, y.p, bug ? 101 : 100);
  return y.read()[99] != 198;
}

int freed_memory(bool bug) {
  buffer x(64, 0, 1), y(64);
  float *t;
  cudaMalloc(&t, 64 * sizeof(float));
  II_EMU_LAUNCH(scale, 1, 64, 0, 0, x.p, t, 64);
  if (bug) cudaFree(t);
  II_EMU_LAUNCH(scale, 1, 64, 0, 0, t, y.p, 64);
  if (!bug) cudaFree(t);
  return y.read()[63] != 4 * 63;
}

int host_pointer(bool bug) {
  buffer x(64, 0, 1), y(64);
  std::vector<float> host(64, 1.0f);
  II_EMU_LAUNCH(scale, 1, 64, 0, 0, bug ? host.data() : x.p, y.p, 64);
  return 0;
}

__global__ void copy_wide(const float *x, float *y, int shift) {
  const float4 v = *reinterpret_cast<const float4 *>(x + shift + 4 * threadIdx.x); /* wide load */
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
int misaligned_load(bool bug) {
  buffer x(68, 1), y(16);
  II_EMU_LAUNCH(copy_wide, 1, 16, 0, 0, x.p, y.p, bug ? 1 : 4);
  return y.read()[15] != 4;
}

/* Stores of global memory: into shared memory they fault. */
__global__ void store_hinted(float *y, bool bug) {
  __shared__ float tile[32];
  tile[threadIdx.x] = 1;
  __stwb(bug ? tile + threadIdx.x : y + threadIdx.x, 2.0f); /* hinted */
}
int hinted_store(bool bug) {
  buffer y(32);
  II_EMU_LAUNCH(store_hinted, 1, 32, 0, 0, y.p, bug);
  return y.read()[31] != 2;
}

__global__ void add_pair(float *y, bool bug) {
  __half2 *p = reinterpret_cast<__half2 *>(reinterpret_cast<char *>(y) + (bug ? 2 : 0));
  atomicAdd(p, __float2half2_rn(1.0f)); /* pair */
}
int misaligned_atomic(bool bug) {
  buffer y(2);
  II_EMU_LAUNCH(add_pair, 1, 32, 0, 0, y.p, bug);
  return bug ? 0 : y.read()[0] == 0;
}

/* ---- Values -----------------------------------------------------------------------------------*/

__global__ void sum_all(const float *x, float *y, bool bug) {
  if (bug)
    *y += x[blockIdx.x * 64 + threadIdx.x]; /* plain sum */
  else
    atomicAdd(y, x[blockIdx.x * 64 + threadIdx.x]);
}
int forgotten_atomic(bool bug) {
  buffer x(256, 1), y(1);
  II_EMU_LAUNCH(sum_all, 4, 64, 0, 0, x.p, y.p, bug);
  return y.read()[0] != 256;
}

/* Blocks write one element each of the next block's part. */
__global__ void overlap(float *y, bool bug) {
  const int n = bug ? 65 : 64;
  for (int i = threadIdx.x; i < n; i += 64) y[blockIdx.x * 64 + i] = 1; /* overlapping write */
}
int blocks_overlap(bool bug) {
  buffer y(129);
  II_EMU_LAUNCH(overlap, 2, 64, 0, 0, y.p, bug);
  return y.read()[127] != 1;
}

__global__ void first_of_tile(float *y, bool bug) {
  __shared__ float tile[64];
  if (!bug || threadIdx.x) tile[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = tile[0]; /* uninitialised read */
}
int uninitialised_shared(bool bug) {
  buffer y(64);
  II_EMU_LAUNCH(first_of_tile, 1, 64, 0, 0, y.p, false);
  II_EMU_LAUNCH(first_of_tile, 1, 64, 0, 0, y.p, bug);
  return !(y.read()[5] == 1);
}

int uninitialised_device(bool bug) {
  float *t;
  buffer y(64);
  cudaMalloc(&t, 64 * sizeof(float));
  if (!bug) cudaMemset(t, 0, 64 * sizeof(float));
  II_EMU_LAUNCH(scale, 1, 64, 0, 0, t, y.p, 64);
  cudaFree(t);
  return !(y.read()[5] == 0);
}

/* Two atomics on one word do not conflict; a plain read of it by another thread does. */
__global__ void count(int *n, float *y, bool bug) {
  atomicAdd(n, 1); /* counting */
  if (!bug) __syncthreads();
  y[threadIdx.x] = (float)*n; /* count read */
}
int atomic_and_read(bool bug) {
  buffer y(64), n(1);
  II_EMU_LAUNCH(count, 1, 64, 0, 0, reinterpret_cast<int *>(n.p), y.p, bug);
  const std::vector<float> v = y.read();
  for (float f : v) {
    if (f != 64) return 1;
  }
  return 0;
}

} // namespace

#define RACE_TEXT "==== emulated GPU: race"
const emulator_case kernel_cases[] = {
    {"missing barrier after a write",
     raw,
     {},
     PLAIN | ASAN,
     RACE,
     {RACE_TEXT, "%raw write%", "%raw read%"},
     0,
     "tile",
     0},
    {"missing barrier before a reuse",
     war,
     {},
     PLAIN | ASAN,
     RACE,
     {RACE_TEXT, "%war write%", "%war read%"},
     0,
     "tile",
     0},
    {"missing __syncwarp",
     missing_syncwarp,
     {},
     PLAIN | ASAN,
     RACE,
     {RACE_TEXT, "%warp write%", "%warp read%"},
     0,
     "dynamic shared memory",
     0},
    {"divergent barrier",
     divergent,
     {},
     0,
     EVERY,
     {"barrier divergence", "%upper barrier%", "%lower barrier%"},
     0,
     0,
     0},
    {"skipped barrier",
     deadlock,
     {},
     0,
     EVERY,
     {"deadlock", "%skipped barrier%", "%shuffle that waits%"},
     0,
     0,
     0},
    {"shuffles in two branches with the full mask",
     divergent_shuffle,
     {},
     0,
     EVERY,
     {"warp operation", "%lower shuffle%", "%upper shuffle%"},
     0,
     0,
     0},
    {"lane outside its own mask",
     not_in_mask,
     {},
     0,
     EVERY,
     {"warp operation", "lane 0 is not in its own mask fffffffe", "%own mask%"},
     0,
     0,
     0},
    {"static shared memory out of bounds",
     static_overrun,
     {},
     0,
     ASAN,
     {"global-buffer-overflow", "%static overrun%"},
     0,
     0,
     0},
    {"dynamic shared memory out of bounds",
     dynamic_overrun,
     {},
     0,
     ASAN | RACE,
     {"%dynamic overrun%"},
     "heap-buffer-overflow",
     "invalid access",
     0},
    {"one element past the tensor",
     global_overrun,
     {},
     0,
     ASAN | RACE,
     {"%past the tensor%"},
     "heap-buffer-overflow",
     "invalid access",
     0},
    {"memory that was freed",
     freed_memory,
     {},
     0,
     ASAN | RACE,
     {"%past the tensor%"},
     "heap-use-after-free",
     "invalid access",
     0},
    {"host pointer in a kernel",
     host_pointer,
     {},
     0,
     RACE,
     {"invalid access", "%past the tensor%"},
     0,
     0,
     0},
    {"misaligned vector load",
     misaligned_load,
     {},
     0,
     ASAN,
     {"misaligned", "%wide load%"},
     "misaligned address",
     0,
     0},
    {"cache hint for shared memory",
     hinted_store,
     {},
     0,
     EVERY,
     {"other than global memory", "%hinted%"},
     0,
     0,
     0},
    {"misaligned atomic", misaligned_atomic, {}, 0, EVERY, {"misaligned", "%pair%"}, 0, 0, 0},
    {"forgotten atomic", forgotten_atomic, {}, 0, RACE, {RACE_TEXT, "%plain sum%"}, 0, 0, 0},
    {"blocks that overlap",
     blocks_overlap,
     {},
     0,
     RACE,
     {RACE_TEXT, "%overlapping write%", "block (1,0,0)"},
     0,
     0,
     0},
    {"uninitialised shared memory",
     uninitialised_shared,
     {},
     PLAIN | ASAN,
     RACE,
     {"uninitialised shared memory", "%uninitialised read%"},
     0,
     0,
     0},
    {"uninitialised device memory", uninitialised_device, {}, EVERY, 0, {}, 0, 0, 0},
    {"plain read beside atomics",
     atomic_and_read,
     {},
     PLAIN | ASAN,
     RACE,
     {RACE_TEXT, "%counting%", "%count read%"},
     0,
     0,
     0},
};
const int kernel_case_count = sizeof kernel_cases / sizeof *kernel_cases;
