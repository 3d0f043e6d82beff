/* Tests of the memory profile of the CUDA emulation (kernels/emulate/profile.h): kernels whose
 * traffic is known by counting on paper. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include "bench/occupancy.h"
#include "kernels/cuda/gpu.h"
#include "kernels/emulate/profile.h"

static int failures, checks;

/* A comparison of counts that says both. */
#define SAME(is, expected)                                                                         \
  do {                                                                                             \
    const unsigned long long is_ = (unsigned long long)(is);                                       \
    const unsigned long long expected_ = (unsigned long long)(expected);                           \
    checks++;                                                                                      \
    if (is_ != expected_) {                                                                        \
      fprintf(stderr, "%s:%d: %s is %llu, not %llu\n", __FILE__, __LINE__, #is, is_, expected_);   \
      failures++;                                                                                  \
    }                                                                                              \
  } while (0)

#define LAUNCH(kernel, grid, block, ...)                                                           \
  (ii_emu_profile_empty_cache(), ii_emu_profile_clear(),                                           \
   II_EMU_LAUNCH(kernel, grid, block, 0, 0, __VA_ARGS__), cudaDeviceSynchronize(),                 \
   ii_emu_profile_empty_cache())

namespace {

struct buffer {
  char *p;
  size_t bytes;
  explicit buffer(size_t n) : bytes(n) {
    cudaMalloc(&p, n);
    cudaMemset(p, 0, n);
  }
  ~buffer() { cudaFree(p); }
  buffer(const buffer &) = delete;
  template <typename T> T *as() const { return (T *)(void *)p; }
};

/* What the last launch did to a buffer. */
ii_emu_buffer_traffic traffic(const buffer &of) {
  const ii_emu_launch_traffic t = ii_emu_profile_get(ii_emu_profile_count() - 1);
  for (int i = 0; i < t.buffers; i++)
    if (t.buffer[i].start == of.p) return t.buffer[i];
  return ii_emu_buffer_traffic();
}
ii_emu_accesses loads(const buffer &of) {
  return traffic(of).of[II_EMU_LOAD];
}
ii_emu_accesses stores(const buffer &of) {
  return traffic(of).of[II_EMU_STORE];
}
ii_emu_accesses atomics(const buffer &of) {
  return traffic(of).of[II_EMU_ATOMIC];
}
ii_emu_shared_traffic shared(int kind) {
  return ii_emu_profile_get(ii_emu_profile_count() - 1).shared[kind];
}

/* Accesses of width 1 << w alone. */
void only_width(const ii_emu_accesses &a, int w, uint64_t accesses, uint64_t requests) {
  for (int i = 0; i < II_EMU_WIDTHS; i++) {
    SAME(a.accesses[i], i == w ? accesses : 0);
    SAME(a.requests[i], i == w ? requests : 0);
  }
}

/* ---- Widths -----------------------------------------------------------------------------------*/

template <typename T> __global__ void copy(const T *x, T *y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i];
}
/* Computes on the elements, as kernels do, which must not split the accesses. */
template <typename T, int V> __global__ void add_one(const T *__restrict__ x, T *__restrict__ y) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  ii_vec<T, V> v = ii_load<V>(x + i);
#pragma unroll
  for (int k = 0; k < V; k++) v.v[k] = ii_down<T>(ii_up(v.v[k]) + ii_real_of<T>(1));
  ii_store<V>(y + i, v);
}
template <typename T, int V> __global__ void negate(const T *__restrict__ x, T *__restrict__ y) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  T r[V];
  ii_load_once<V>(x + i, r);
  ii_vec<T, V> v;
#pragma unroll
  for (int k = 0; k < V; k++) v.v[k] = ii_down<T>(-ii_up(r[k]));
  ii_store<V>(y + i, v);
}

/* 256 threads, each one access of each kind of `bytes`: 8 requests of 32 neighbours. */
template <typename F> void check_width(int bytes, F launch) {
  const buffer x(256 * (size_t)bytes), y(256 * (size_t)bytes);
  launch(x, y);
  const int w = __builtin_ctz((unsigned)bytes);
  only_width(loads(x), w, 256, 8);
  only_width(stores(y), w, 256, 8);
  SAME(loads(x).sectors, 8 * bytes);
  SAME(stores(y).sectors, 8 * bytes);
  SAME(loads(x).lines, bytes <= 4 ? 8 : 2 * bytes);
  SAME(traffic(x).dram_read, 256 * bytes);
  SAME(traffic(x).dram_written, 0);
  SAME(traffic(y).dram_read, 0);
  SAME(traffic(y).dram_written, 256 * bytes);
}

#define WIDTH(bytes, kernel, T)                                                                    \
  check_width(bytes, [](const buffer &x, const buffer &y) {                                        \
    LAUNCH(kernel, 2, 128, (const T *)x.as<T>(), y.as<T>());                                       \
  })

void widths() {
  WIDTH(1, (copy<unsigned char>), unsigned char);
  WIDTH(2, (copy<ii_f16>), ii_f16);
  WIDTH(4, (copy<float>), float);
  WIDTH(8, (copy<double>), double);
  WIDTH(8, (copy<float2>), float2);
  WIDTH(16, (copy<float4>), float4);
  WIDTH(16, (copy<int4>), int4);
  WIDTH(2, (add_one<ii_bf16, 1>), ii_bf16);
  WIDTH(4, (add_one<ii_f16, 2>), ii_f16);
  WIDTH(8, (add_one<ii_bf16, 4>), ii_bf16);
  WIDTH(8, (add_one<float, 2>), float);
  WIDTH(16, (add_one<ii_f16, 8>), ii_f16);
  WIDTH(16, (add_one<ii_bf16, 8>), ii_bf16);
  WIDTH(16, (add_one<float, 4>), float);
  WIDTH(16, (add_one<double, 2>), double);
  WIDTH(16, (negate<float, 4>), float);
}

/* ---- Coalescing -------------------------------------------------------------------------------*/

__global__ void strided(const float *x, float *y, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i * stride];
}
__global__ void broadcast(const float *x, float *y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i / 64];
}
__global__ void shifted(const float *x, float *y) { /* not on the borders of sectors */
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i + 1];
}
__global__ void reversed(const float *x, float *y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[(i ^ 31)];
}

void coalescing() {
  const buffer x(64 << 10), y(4 << 10);
  LAUNCH(strided, 4, 256, x.as<float>(), y.as<float>(), 8); /* a sector per lane */
  only_width(loads(x), 2, 1024, 32);
  SAME(loads(x).sectors, 1024);
  SAME(loads(x).lines, 256);
  SAME(stores(y).sectors, 128);
  SAME(traffic(x).dram_read, 32 << 10);
  LAUNCH(strided, 4, 256, x.as<float>(), y.as<float>(), 2);
  SAME(loads(x).sectors, 256);
  LAUNCH(broadcast, 4, 256, x.as<float>(), y.as<float>());
  SAME(loads(x).requests[2], 32);
  SAME(loads(x).sectors, 32);
  SAME(traffic(x).dram_read, 64); /* 16 floats */
  LAUNCH(shifted, 4, 256, x.as<float>(), y.as<float>());
  SAME(loads(x).sectors, 32 * 5);
  SAME(loads(x).lines, 32 * 2);
  SAME(traffic(x).dram_read, 4096 + 32);
  LAUNCH(reversed, 4, 256, x.as<float>(), y.as<float>());
  SAME(loads(x).sectors, 128);
  SAME(loads(x).lines, 32);
}

/* ---- Shared memory ----------------------------------------------------------------------------*/

__global__ void transpose_plain(const float *x, float *y) {
  const int r = blockIdx.y * 32 + threadIdx.y, c = blockIdx.x * 32 + threadIdx.x;
  y[c * 64 + r] = x[r * 64 + c];
}
template <int row> __global__ void transpose_tiled(const float *x, float *y) {
  __shared__ float tile[32][row];
  const int r = blockIdx.y * 32 + threadIdx.y, c = blockIdx.x * 32 + threadIdx.x;
  tile[threadIdx.y][threadIdx.x] = x[r * 64 + c];
  __syncthreads();
  y[(blockIdx.x * 32 + threadIdx.y) * 64 + blockIdx.y * 32 + threadIdx.x] =
      tile[threadIdx.x][threadIdx.y];
}
/* Rows of 16 bytes: neighbours, all the same, and 128 bytes apart. */
__global__ void wide_rows(float4 *y, int step) {
  __shared__ float4 rows[256];
  const int i = threadIdx.x;
  for (int k = i; k < 256; k += 32) rows[k] = make_float4(0, 1, 2, (float)k);
  __syncwarp();
  y[i] = rows[i * step];
}

/* A product of two matrices of ones, whose rows are `pitch` elements apart. */
template <int pitch> __global__ void product(float *y) {
  using namespace nvcuda::wmma;
  __shared__ __align__(32) ii_f16 ones[16 * pitch];
  __shared__ __align__(32) float sums[16 * pitch];
  for (int i = threadIdx.x; i < 16 * pitch; i += 32) ones[i] = ii_down<ii_f16>(1.0f);
  __syncwarp();
  fragment<matrix_a, 16, 16, 16, ii_f16, row_major> a;
  fragment<accumulator, 16, 16, 16, float> c;
  load_matrix_sync(a, ones, pitch);
  fragment<matrix_b, 16, 16, 16, ii_f16, row_major> b;
  load_matrix_sync(b, ones, pitch);
  fill_fragment(c, 0.0f);
  mma_sync(c, a, b, c);
  store_matrix_sync(sums, c, pitch, mem_row_major);
  __syncwarp();
  y[threadIdx.x] = sums[0];
}

void fragments() {
  const buffer y(4096);
  LAUNCH((product<16>), 1, 32, y.as<float>());
  SAME(shared(II_EMU_LOAD).accesses[4], 64);
  SAME(shared(II_EMU_LOAD).requests[4], 2);
  SAME(shared(II_EMU_LOAD).accesses[1], 0);
  SAME(shared(II_EMU_LOAD).wavefronts, 2 * 8 + 1); /* rows 4 apart share banks; the sum is one */
  SAME(shared(II_EMU_STORE).accesses[3], 128);
  SAME(shared(II_EMU_STORE).accesses[2], 0);
  SAME(shared(II_EMU_STORE).wavefronts, 4 * 4 + 8);
  LAUNCH((product<24>), 1, 32, y.as<float>());
  SAME(shared(II_EMU_LOAD).wavefronts, 2 * 4 + 1);
  SAME(shared(II_EMU_STORE).wavefronts, 4 * 2 + 12);
  float sum;
  cudaMemcpy(&sum, y.p, sizeof sum, cudaMemcpyDeviceToHost);
  SAME(sum, 16);
}

void shared_memory() {
  const buffer x(64 * 64 * 4), y(64 * 64 * 4);
  LAUNCH(transpose_plain, dim3(2, 2), dim3(32, 32), x.as<float>(), y.as<float>());
  SAME(loads(x).sectors, 128 * 4);
  SAME(stores(y).sectors, 128 * 32);
  SAME(traffic(y).dram_written, 64 * 64 * 4); /* whole sectors in the end */
  SAME(traffic(y).dram_read, 0);
  LAUNCH((transpose_tiled<32>), dim3(2, 2), dim3(32, 32), x.as<float>(), y.as<float>());
  SAME(loads(x).sectors, 128 * 4);
  SAME(stores(y).sectors, 128 * 4);
  SAME(shared(II_EMU_STORE).accesses[2], 4096);
  SAME(shared(II_EMU_STORE).requests[2], 128);
  SAME(shared(II_EMU_STORE).wavefronts, 128);
  SAME(shared(II_EMU_LOAD).requests[2], 128);
  SAME(shared(II_EMU_LOAD).wavefronts, 128 * 32);
  LAUNCH((transpose_tiled<33>), dim3(2, 2), dim3(32, 32), x.as<float>(), y.as<float>());
  SAME(shared(II_EMU_LOAD).wavefronts, 128);
  LAUNCH(wide_rows, 1, 32, y.as<float4>(), 1);
  SAME(shared(II_EMU_STORE).requests[4], 8);
  SAME(shared(II_EMU_STORE).wavefronts, 32);
  SAME(shared(II_EMU_LOAD).requests[4], 1);
  SAME(shared(II_EMU_LOAD).wavefronts, 4);
  LAUNCH(wide_rows, 1, 32, y.as<float4>(), 0);
  SAME(shared(II_EMU_LOAD).wavefronts, 4); /* 8 lanes at a time, one word of each bank */
  LAUNCH(wide_rows, 1, 32, y.as<float4>(), 8);
  SAME(shared(II_EMU_LOAD).wavefronts, 32);
}

/* ---- Atomics ----------------------------------------------------------------------------------*/

template <typename T> __global__ void scatter(T *y, int step, T v) {
  atomicAdd(y + threadIdx.x * step, v);
}
__global__ void swap(unsigned *y) {
  atomicCAS(y + threadIdx.x, 0u, 1u);
  atomicMax(y + threadIdx.x, 5u);
}

template <typename T> void check_atomic(const char *type, T v) {
  const buffer y(64 * sizeof v * 32);
  LAUNCH((scatter<T>), 1, 64, y.as<T>(), 1, v);
  const int w = __builtin_ctz((unsigned)sizeof v);
  only_width(atomics(y), w, 64, 2);
  SAME(atomics(y).sectors, 2 * sizeof v);
  SAME(traffic(y).dram_read, 64 * sizeof v);
  SAME(traffic(y).dram_written, 64 * sizeof v);
  const ii_emu_launch_traffic t = ii_emu_profile_get(0);
  SAME(t.atomics, 1);
  SAME(t.atomic[0].accesses, 64);
  SAME(t.atomic[0].requests, 2);
  SAME(t.atomic[0].width, sizeof v);
  SAME(strcmp(t.atomic[0].function, "atomicAdd"), 0);
  SAME(strcmp(t.atomic[0].type, type), 0);
  LAUNCH((scatter<T>), 1, 64, y.as<T>(), 0, v); /* all on one element */
  only_width(atomics(y), w, 64, 2);
  SAME(atomics(y).sectors, 2);
  LAUNCH((scatter<T>), 1, 64, y.as<T>(), 32, v);
  SAME(atomics(y).sectors, 64);
  SAME(traffic(y).dram_read, 64 * 32);
}

void atomic_functions() {
  check_atomic("__half", ii_down<ii_f16>(1.0f));
  check_atomic("__nv_bfloat162", __nv_bfloat162(ii_down<ii_bf16>(1.0f), ii_down<ii_bf16>(1.0f)));
  check_atomic("int", 1);
  check_atomic("float", 1.0f);
  check_atomic("double", 1.0);
  check_atomic("unsigned long long", 1ull);
  check_atomic("float2", make_float2(1, 2));
  check_atomic("float4", make_float4(1, 2, 3, 4));
  const buffer y(256);
  LAUNCH(swap, 1, 64, y.as<unsigned>());
  only_width(atomics(y), 2, 128, 4);
  SAME(ii_emu_profile_get(0).atomics, 2);
}

/* ---- Lanes that go different ways -------------------------------------------------------------*/

/* Lane l loads in the rounds i with (l+i) even: 16 lanes at once, never two rounds as one. */
__global__ void every_other(const float *x, float *y) {
  float sum = 0;
  for (int i = 0; i < 10; i++)
    if ((threadIdx.x + i) % 2 == 0) sum += x[i * 32 + threadIdx.x];
  y[threadIdx.x] = sum;
}
/* Lane l goes round l+1 times. */
__global__ void ragged(const float *x, float *y) {
  float sum = 0;
  for (unsigned i = 0; i <= threadIdx.x; i++) sum += x[i * 32 + threadIdx.x];
  y[threadIdx.x] = sum;
}
__global__ void branches(const float *x, float *y) {
  if (threadIdx.x < 8)
    y[threadIdx.x] = x[threadIdx.x];
  else
    y[threadIdx.x] = 2 * x[threadIdx.x + 32];
  if (threadIdx.x >= 16) return;
  y[threadIdx.x + 32] = 3;
}
__attribute__((noinline)) __device__ float sum_of(const float *x, int n) {
  float sum = 0;
  for (int i = 0; i < n; i++) sum += x[i * 32 + threadIdx.x];
  return sum;
}
/* Some lanes come late into a function that is not inlined. */
__global__ void calls(const float *x, float *y) {
  float v = 1;
  if (threadIdx.x % 2) v = x[1024 + threadIdx.x];
  v += sum_of(x, 3);
  v += sum_of(x, 2);
  y[threadIdx.x] = v;
}
/* The halves of a warp exchange among themselves, then all wait for each other. */
__global__ void halves(const float *x, float *y) {
  float v = x[threadIdx.x];
  if (threadIdx.x < 16) {
    v += __shfl_xor_sync(0xffffu, v, 1);
    v += x[32 + threadIdx.x];
  } else {
    v += __shfl_xor_sync(0xffff0000u, v, 1);
  }
  v += x[64 + threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = v + x[96 + threadIdx.x];
}
__global__ void two_widths(const double *x, const float *z, double *y) {
  __shared__ double s[64];
  const int i = threadIdx.x;
  s[i] = x[i];
  __syncthreads();
  y[i] = s[63 - i] + z[i];
}

void divergence() {
  const buffer x(64 << 10), y(4 << 10), z(4 << 10);
  LAUNCH(every_other, 1, 32, x.as<float>(), y.as<float>());
  only_width(loads(x), 2, 160, 10);
  SAME(loads(x).sectors, 40);
  LAUNCH(ragged, 1, 32, x.as<float>(), y.as<float>());
  only_width(loads(x), 2, 32 * 33 / 2, 32);
  only_width(stores(y), 2, 32, 1);
  LAUNCH(branches, 1, 32, x.as<float>(), y.as<float>());
  only_width(loads(x), 2, 32, 2);
  only_width(stores(y), 2, 48, 3);
  LAUNCH(calls, 1, 32, x.as<float>(), y.as<float>());
  only_width(loads(x), 2, 16 + 5 * 32, 1 + 5);
  only_width(stores(y), 2, 32, 1);
  LAUNCH(halves, 1, 32, x.as<float>(), y.as<float>());
  only_width(loads(x), 2, 32 + 16 + 32 + 32, 4);
  LAUNCH(two_widths, 1, 64, x.as<double>(), z.as<float>(), y.as<double>());
  only_width(loads(x), 3, 64, 2);
  only_width(loads(z), 2, 64, 2);
  SAME(shared(II_EMU_LOAD).wavefronts, 4);
}

/* ---- The cache: 1 MiB, 32768 sectors ----------------------------------------------------------*/

__global__ void read_all(const float4 *x, float4 *y, int n) {
  float4 sum = make_float4(0, 0, 0, 0);
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum.x += x[i].x;
  if (sum.x == 1) y[threadIdx.x] = sum;
}
__global__ void write_all(float4 *y, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = make_float4(1, 2, 3, 4);
}
__global__ void write_some(float *y) { /* 4 bytes of every sector */
  y[threadIdx.x * 8] = 1;
}
__global__ void read_and_write(float *y) {
  y[threadIdx.x] += 1;
}
__global__ void write_then_read(float *y,
                                float *z) { /* the half of a sector that was not written */
  y[threadIdx.x * 8] = 1;
  z[threadIdx.x] = y[threadIdx.x * 8] + y[threadIdx.x * 8 + 4];
}

/* One launch after another without emptying the cache; one warp, whose order nothing changes. */
#define AGAIN(kernel, ...) II_EMU_LAUNCH(kernel, 1, 32, 0, 0, __VA_ARGS__)
ii_emu_buffer_traffic traffic_of(int64_t launch, const buffer &b) {
  const ii_emu_launch_traffic t = ii_emu_profile_get(launch);
  for (int i = 0; i < t.buffers; i++)
    if (t.buffer[i].start == b.p) return t.buffer[i];
  return ii_emu_buffer_traffic();
}

void cache() {
  const int K = 1 << 10, M = 1 << 20;
  const buffer small(512 * K), large(2 * M), exact(M), over(M + 32), y(4096);
  SAME(ii_emu_profile_cache_bytes(), M);
  ii_emu_profile_empty_cache();
  ii_emu_profile_clear();
  AGAIN(read_all, small.as<float4>(), y.as<float4>(), 512 * K / 16);
  AGAIN(read_all, small.as<float4>(), y.as<float4>(), 512 * K / 16); /* still there */
  AGAIN(read_all, large.as<float4>(), y.as<float4>(), 2 * M / 16);
  AGAIN(read_all, large.as<float4>(), y.as<float4>(), 2 * M / 16); /* from the start: all gone */
  AGAIN(read_all, small.as<float4>(), y.as<float4>(), 512 * K / 16);
  AGAIN(read_all, exact.as<float4>(), y.as<float4>(), M / 16);
  AGAIN(read_all, exact.as<float4>(), y.as<float4>(), M / 16);
  AGAIN(read_all, over.as<float4>(), y.as<float4>(), M / 16 + 2);
  AGAIN(read_all, over.as<float4>(), y.as<float4>(), M / 16 + 2); /* one sector too many: none */
  const uint64_t read[] = {512u * K, 0, 2u * M, 2u * M, 512u * K, 1u * M, 0};
  const buffer *const of[] = {&small, &small, &large, &large, &small, &exact, &exact};
  for (int i = 0; i < 7; i++) SAME(traffic_of(i, *of[i]).dram_read, read[i]);
  SAME(traffic_of(7, over).dram_read, M + 32);
  SAME(traffic_of(8, over).dram_read, M + 32);

  ii_emu_profile_empty_cache();
  ii_emu_profile_clear();
  AGAIN(write_all, small.as<float4>(), 512 * K / 16);
  SAME(traffic_of(0, small).dram_written, 0); /* it fits */
  AGAIN(write_all, small.as<float4>(), 512 * K / 16);
  AGAIN(read_all, small.as<float4>(), y.as<float4>(), 512 * K / 16);
  AGAIN(write_all, large.as<float4>(), 2 * M / 16);
  SAME(traffic_of(0, small).dram_written, 0); /* overwritten before it left */
  SAME(traffic_of(1, small).dram_written, 512 * K);
  SAME(traffic_of(2, small).dram_read, 0);
  SAME(traffic_of(3, large).dram_written, M); /* the second half is in the cache */
  ii_emu_profile_empty_cache();
  SAME(traffic_of(3, large).dram_written, 2 * M);
  SAME(traffic_of(3, large).dram_read, 0); /* whole sectors need no fetch */

  LAUNCH(write_some, 1, 64, small.as<float>());
  SAME(traffic(small).dram_read, 64 * 32);
  SAME(traffic(small).dram_written, 64 * 32);
  LAUNCH(read_and_write, 1, 64, small.as<float>());
  SAME(traffic(small).dram_read, 256);
  SAME(traffic(small).dram_written, 256);
  LAUNCH(write_then_read, 1, 64, small.as<float>(), y.as<float>());
  SAME(traffic(small).dram_read, 64 * 32);
  SAME(traffic(small).dram_written, 64 * 32);
  SAME(traffic(y).dram_read, 0);
}

void sets_and_copies() {
  const int K = 1 << 10;
  const buffer a(64 * K), b(64 * K), y(4096);
  std::string host(64 * K, 'x');
  ii_emu_profile_empty_cache();
  ii_emu_profile_clear();
  cudaMemset(a.p, 1, 64 * K);
  AGAIN(read_all, a.as<float4>(), y.as<float4>(), 64 * K / 16);
  cudaMemcpy(b.p, a.p, 64 * K, cudaMemcpyDeviceToDevice);
  ii_emu_profile_empty_cache();
  cudaMemcpy(b.p, a.p, 64 * K, cudaMemcpyDeviceToDevice);
  cudaMemcpy(a.p, host.data(), (size_t)(64 * K), cudaMemcpyHostToDevice);
  cudaMemcpy(&host[0], b.p, (size_t)(64 * K), cudaMemcpyDeviceToHost);
  ii_emu_profile_empty_cache();
  SAME(ii_emu_profile_count(), 6);
  SAME(strcmp(ii_emu_profile_get(0).name, "memset"), 0);
  SAME(strcmp(ii_emu_profile_get(3).name, "memcpy"), 0);
  SAME(traffic_of(0, a).dram_written, 64 * K);
  SAME(traffic_of(1, a).dram_read, 0);
  SAME(traffic_of(2, a).dram_read, 0);
  SAME(traffic_of(2, b).dram_written, 64 * K);
  SAME(traffic_of(3, a).dram_read, 64 * K);
  SAME(traffic_of(3, b).dram_written, 64 * K);
  SAME(traffic_of(4, a).dram_written, 64 * K);
  SAME(traffic_of(5, b).dram_read, 0);
}

void records() {
  const buffer x(4096), y(4096), z(64 * 64 * 4);
  LAUNCH((add_one<ii_f16, 8>), dim3(1, 2), dim3(8, 2), (const ii_f16 *)x.as<ii_f16>(),
         y.as<ii_f16>());
  const ii_emu_launch_traffic t = ii_emu_profile_get(0);
  SAME(strcmp(t.name, "add_one<half,8>"), 0);
  SAME(strstr(t.file, "test_profile.cu") != NULL, 1);
  SAME(t.grid[1], 2);
  SAME(t.block[0], 8);
  SAME(t.buffers, 2);
  SAME(t.buffer[0].bytes, 4096);
  LAUNCH((transpose_tiled<33>), dim3(1, 1), dim3(32, 32), z.as<float>(), z.as<float>());
  SAME(ii_emu_profile_get(0).static_shared, 32 * 33 * 4);
}

/* Warps per multiprocessor, as NVIDIA's occupancy calculator gives them. */
void occupancy() {
  const int registers[] = {32, 64, 65, 72, 96, 128, 168, 255};
  const int warps[] = {64, 32, 24, 24, 16, 16, 8, 8}; /* blocks of 256 threads */
  for (int i = 0; i < 8; i++) SAME(occupancy_warps(80, registers[i], 256, 0), warps[i]);
  SAME(occupancy_warps(90, 65, 128, 0), 28); /* 28 warps' registers, blocks of 4 */
  SAME(occupancy_warps(90, 16, 32, 0), 32);  /* 32 blocks */
  SAME(occupancy_warps(80, 168, 384, 0), 12);
  SAME(occupancy_warps(80, 32, 128, 100 << 10), 4); /* of 164 KiB */
  SAME(occupancy_warps(90, 32, 128, 100 << 10), 8); /* of 228 KiB */
  SAME(occupancy_warps(80, 32, 128, 40 << 10), 16); /* 41 KiB each with the system's share */
  SAME(occupancy_warps(80, 32, 128, (40 << 10) + 1), 12);
}

} // namespace

int main() {
  setenv("II_EMU_L2_MB", "1", 1);
  ii_emu_profile_start();
  widths();
  coalescing();
  shared_memory();
  fragments();
  atomic_functions();
  divergence();
  cache();
  sets_and_copies();
  records();
  occupancy();
  printf("%d counts compared, %d are wrong\n", checks, failures);
  return failures != 0;
}
