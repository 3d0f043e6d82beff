/* Warp operations, barriers, intrinsics and atomics of the CUDA emulation against tables made by
 * plain loops from CUDA's definitions, for test_emulator.cu. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <vector>
#include "test_emulator.h"

namespace {

int failures;

template <typename T> std::vector<T> from_device(const T *p, int n) {
  std::vector<T> v((size_t)n);
  cudaMemcpy(v.data(), p, sizeof(T) * (size_t)n, cudaMemcpyDeviceToHost);
  return v;
}
template <typename T> T *device_array(int n) {
  T *p;
  cudaMalloc(&p, sizeof(T) * (size_t)n);
  cudaMemset(p, 0, sizeof(T) * (size_t)n);
  return p;
}

/* ---- Shuffles ---------------------------------------------------------------------------------*/

enum { SHFL, SHFL_UP, SHFL_DOWN, SHFL_XOR };

template <typename T> __global__ void shuffle(T *y, int form, int arg, int width) {
  const T v = (T)(float)(threadIdx.x * 3 + 1);
  T r;
  if (form == SHFL)
    r = __shfl_sync(0xffffffffu, v, arg, width);
  else if (form == SHFL_UP)
    r = __shfl_up_sync(0xffffffffu, v, (unsigned)arg, width);
  else if (form == SHFL_DOWN)
    r = __shfl_down_sync(0xffffffffu, v, (unsigned)arg, width);
  else
    r = __shfl_xor_sync(0xffffffffu, v, arg, width);
  y[threadIdx.x] = r;
}

/* Lane that the CUDA programming guide says is read. */
int source_lane(int form, int lane, int arg, int width) {
  const int first = lane / width * width, last = first + width - 1;
  if (form == SHFL) return first + ((arg % width) + width) % width;
  if (form == SHFL_UP) return lane - arg < first ? lane : lane - arg;
  if (form == SHFL_DOWN) return lane + arg > last ? lane : lane + arg;
  return (lane ^ arg) > last ? lane : lane ^ arg;
}

template <typename T> void check_shuffles() {
  T *y = device_array<T>(64);
  for (int form = SHFL; form <= SHFL_XOR; form++) {
    for (int width = 2; width <= 32; width *= 2) {
      for (int arg = 0; arg < 32; arg += arg < 4 ? 1 : 5) {
        II_EMU_LAUNCH(shuffle<T>, 1, 64, 0, 0, y, form, arg, width);
        const std::vector<T> v = from_device(y, 64);
        for (int i = 0; i < 64; i++) {
          const int from = i / 32 * 32 + source_lane(form, i % 32, arg, width);
          EXPECT((float)v[(size_t)i] == (float)(T)(float)(from * 3 + 1));
        }
      }
    }
  }
  cudaFree(y);
}

/* ---- Votes and reductions; lanes of one warp in two groups, and a warp with 20 threads
 * ---------*/

struct votes {
  unsigned ballot, match, sum, least, most, all_and, all_or, all_xor;
  int any, all, sum_s, least_s, most_s;
};

__global__ void vote(votes *y) {
  const int t = (int)threadIdx.x;
  const unsigned mask = t % 32 % 3 == 0 ? 0x49249249u : ~0x49249249u;
  const unsigned u = (unsigned)t * 2654435761u;
  votes v;
  v.ballot = __ballot_sync(mask, t % 5 == 1);
  v.any = __any_sync(mask, t == 3);
  v.all = __all_sync(mask, t != 4);
  v.match = __match_any_sync(mask, t / 8);
  v.sum = __reduce_add_sync(mask, u);
  v.least = __reduce_min_sync(mask, u);
  v.most = __reduce_max_sync(mask, u);
  v.sum_s = __reduce_add_sync(mask, 10 - t);
  v.least_s = __reduce_min_sync(mask, 10 - t);
  v.most_s = __reduce_max_sync(mask, 10 - t);
  v.all_and = __reduce_and_sync(mask, u | 0xff);
  v.all_or = __reduce_or_sync(mask, u & 0xffff);
  v.all_xor = __reduce_xor_sync(mask, u);
  y[t] = v;
}

votes expected_votes(int t, int threads) {
  votes v;
  memset(&v, 0, sizeof v);
  v.all = 1;
  v.least = v.all_and = ~0u;
  v.least_s = 1 << 30;
  v.most_s = -(1 << 30);
  for (int o = t / 32 * 32; o < t / 32 * 32 + 32 && o < threads; o++) {
    if ((o % 32 % 3 == 0) != (t % 32 % 3 == 0)) continue;
    const unsigned u = (unsigned)o * 2654435761u, bit = 1u << o % 32;
    v.ballot |= o % 5 == 1 ? bit : 0;
    v.any |= o == 3;
    v.all &= o != 4;
    v.match |= o / 8 == t / 8 ? bit : 0;
    v.sum += u;
    v.least = u < v.least ? u : v.least;
    v.most = u > v.most ? u : v.most;
    v.sum_s += 10 - o;
    v.least_s = 10 - o < v.least_s ? 10 - o : v.least_s;
    v.most_s = 10 - o > v.most_s ? 10 - o : v.most_s;
    v.all_and &= u | 0xff;
    v.all_or |= u & 0xffff;
    v.all_xor ^= u;
  }
  return v;
}

void check_votes(int threads) {
  votes *y = device_array<votes>(threads);
  II_EMU_LAUNCH(vote, 1, threads, 0, 0, y);
  const std::vector<votes> v = from_device(y, threads);
  for (int t = 0; t < threads; t++) {
    const votes e = expected_votes(t, threads);
    EXPECT(!memcmp(&v[(size_t)t], &e, sizeof e));
  }
  cudaFree(y);
}

/* ---- Barriers with results, threads that leave early, three-dimensional blocks
 * ------------------*/

__global__ void count_barriers(int *y, int leave) {
  const int t = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  if (t < leave) return;
  const int n = __syncthreads_count(t % 7 == 0);
  const int all = __syncthreads_and(t >= leave), none = __syncthreads_and(t != leave + 40);
  const int any = __syncthreads_or(t == leave + 40), no = __syncthreads_or(t < leave);
  y[t] = n * 16 + all * 8 + none * 4 + any * 2 + no;
}
void check_barriers() {
  const dim3 block(5, 7, 3);
  int *y = device_array<int>(105);
  for (int leave : {0, 1, 33}) {
    II_EMU_LAUNCH(count_barriers, 1, block, 0, 0, y, leave);
    int count = 0;
    for (int t = leave; t < 105; t++) count += t % 7 == 0;
    const std::vector<int> v = from_device(y, 105);
    for (int t = leave; t < 105; t++) EXPECT(v[(size_t)t] == count * 16 + 8 + 2);
  }
  cudaFree(y);
}

/* A lane that does not take part reads as all ones, which is NaN. */
__global__ void from_absent(float *y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}
/* Every block and thread exactly once. */
__global__ void mark(int *y) {
  const unsigned b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  y[b * 24 + t]++;
}
/* A block that waits in some threads only, with several warps, many turns. */
__global__ void prefix(const unsigned *x, unsigned *y, int n) {
  II_EMU_SHARED(unsigned, s);
  const int t = (int)threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (int d = 1; d < n; d *= 2) {
    const unsigned add = t >= d ? s[t - d] : 0;
    __syncthreads();
    s[t] += add;
    __syncthreads();
  }
  y[t] = s[t];
}
void check_order() {
  float *f = device_array<float>(16);
  II_EMU_LAUNCH(from_absent, 1, 32, 0, 0, f);
  for (float v : from_device(f, 16)) EXPECT(v != v);
  cudaFree(f);
  int *y = device_array<int>(30 * 24);
  II_EMU_LAUNCH(mark, dim3(5, 3, 2), dim3(2, 3, 4), 0, 0, y);
  for (int v : from_device(y, 30 * 24)) EXPECT(v == 1);
  cudaFree(y);
  unsigned *p = device_array<unsigned>(1024), *x = device_array<unsigned>(1024);
  cudaMemset(x, 1, 1024 * sizeof(int));
  II_EMU_LAUNCH(prefix, 1, 1024, 1024 * sizeof(int), 0, x, p, 1024);
  EXPECT(from_device(p, 1024)[1023] == 0x01010101u * 1024);
  cudaFree(p);
  cudaFree(x);
}

/* ---- Atomics ----------------------------------------------------------------------------------*/

struct atomics {
  int add, sub, least, most, exchanged, compared;
  unsigned wrapped, set, kept, flipped, most_u;
  unsigned long long wide;
  float add_f;
  double add_d;
  __half2 add_h2;
  __nv_bfloat162 add_b2;
  float2 add_2;
  float4 add_4;
  __half add_h;
  __nv_bfloat16 add_b;
};

__global__ void use_atomics(atomics *a) {
  const int t = (int)threadIdx.x;
  atomicAdd(&a->add, t);
  atomicSub(&a->sub, 1);
  atomicMin(&a->least, -t);
  atomicMax(&a->most, t);
  atomicMax(&a->most_u, 0x80000000u + (unsigned)t);
  atomicExch(&a->exchanged, 5);
  atomicCAS(&a->compared, t, t + 1);
  atomicInc(&a->wrapped, 9);
  atomicOr(&a->set, 1u << t % 32);
  atomicAnd(&a->kept, ~(1u << t % 32));
  atomicXor(&a->flipped, 1);
  atomicAdd(&a->wide, 1ull << 32);
  atomicAdd(&a->add_f, 0.5f);
  atomicAdd(&a->add_d, 0.25);
  atomicAdd(&a->add_h, __float2half(1.0f));
  atomicAdd(&a->add_b, __float2bfloat16(1.0f));
  atomicAdd(&a->add_h2, __floats2half2_rn(1.0f, 2.0f));
  atomicAdd(&a->add_b2, __floats2bfloat162_rn(1.0f, 2.0f));
  atomicAdd(&a->add_2, make_float2(1, 2));
  atomicAdd(&a->add_4, make_float4(1, 2, 3, 4));
}
void check_atomics() {
  atomics *a = device_array<atomics>(1);
  II_EMU_LAUNCH(use_atomics, 1, 64, 0, 0, a);
  atomics r;
  cudaMemcpy(&r, a, sizeof r, cudaMemcpyDeviceToHost);
  EXPECT(r.add == 2016 && r.sub == -64 && r.least == -63 && r.most == 63 && r.exchanged == 5);
  EXPECT(r.compared >= 1 && r.compared <= 64 && r.wrapped == 64 % 10 && r.set == ~0u);
  EXPECT(r.kept == 0 && r.flipped == 0 && r.wide == 64ull << 32 && r.most_u == 0x8000003fu);
  EXPECT(r.add_f == 32 && r.add_d == 16 && __half2float(r.add_h) == 64);
  EXPECT(__bfloat162float(r.add_b) == 64 && __low2float(r.add_h2) == 64);
  EXPECT(__high2float(r.add_h2) == 128 && __high2float(r.add_b2) == 128);
  EXPECT(r.add_2.y == 128 && r.add_4.w == 256);
  cudaFree(a);
}

/* ---- Intrinsics -------------------------------------------------------------------------------*/

void check_integers() {
  EXPECT(__popc(0xf0u) == 4 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4);
  EXPECT(__brev(1) == 0x80000000u && __umulhi(0x80000000u, 6) == 3 && __mulhi(-1, 5) == -1);
  EXPECT(__umul64hi(1ull << 63, 6) == 3 &&
         __byte_perm(0x33221100u, 0x77665544u, 0x7410) == 0x77441100u);
  EXPECT(__funnelshift_l(0x80000000u, 1, 4) == 0x18 && __funnelshift_r(0x10, 3, 4) == 0x30000001u);
  EXPECT(min(-1, 2u) == 2u && max(3, 4) == 4 && min(1.5f, 2.0f) == 1.5f && max(1l, 2l) == 2);
  EXPECT(max(NAN, 2.0f) == 2.0f);
  EXPECT(__fadd_rd(1.0f, 0x1p-30f) == 1.0f && __fadd_rd(1.0f, -0x1p-60f) == 1.0f - 0x1p-24f);
  EXPECT(__fadd_rd(0x1.8p23f, -1e-20f) == 0x1.8p23f - 1.0f && __fadd_rd(2.0f, 3.0f) == 5.0f);
  EXPECT(__float_as_int(1.0f) == 0x3f800000 && __int_as_float(0x40000000) == 2.0f);
  EXPECT(__longlong_as_double(__double_as_longlong(0.1)) == 0.1);
  EXPECT(__hiloint2double(__double2hiint(0.1), __double2loint(0.1)) == 0.1);
  EXPECT(__float2int_rn(2.5f) == 2 && __float2int_rd(-1.5f) == -2 && __float2int_ru(1.25f) == 2);
  EXPECT(__float2int_rz(-1.5f) == -1 && __float2int_rn(NAN) == 0);
  EXPECT(__float2int_rn(1e20f) == INT32_MAX && __float2uint_rn(-1.0f) == 0);
}
void check_floats() {
  EXPECT(fabsf(rsqrtf(4.0f) - 0.5f) < 1e-6f && fabsf(normcdff(0.0f) - 0.5f) < 1e-7f);
  EXPECT(fabs(normcdf(1.0) - 0.84134474606854293) < 1e-15 && __saturatef(NAN) == 0);
  EXPECT(fabsf(__expf(1.0f) - 2.7182817f) < 1e-6f && __fdividef(3, 4) != 0.75f);
  EXPECT(fabsf(__fdividef(3, 4) - 0.75f) < 1e-6f && __fdividef(1, 0x1.8p126f) == 0);
  float s, c;
  __sincosf(0.5f, &s, &c);
  EXPECT(fabsf(s * s + c * c - 1) < 1e-6f && fabsf(__powf(2, 3) - 8) < 1e-5f);
  /* One rounding: (1 + 2^-10)^2 - (1 + 2^-9) is 2^-20, and 0 if the product is rounded. */
  const __half a = __float2half(1 + 0x1p-10f), one = __float2half(-1.0f);
  EXPECT(__half2float(__hfma(a, a, __float2half(-1 - 0x1p-9f))) == 0x1p-20f);
  const __nv_bfloat16 b = __float2bfloat16(1 + 0x1p-7f), minus = __float2bfloat16(-1 - 0x1p-6f);
  EXPECT(__bfloat162float(__hfma(b, b, minus)) == 0x1p-14f);
  const __half2 h = __floats2half2_rn(4, 16), k = h2sqrt(h);
  EXPECT(__low2float(k) == 2 && __high2float(k) == 4);
  EXPECT(__high2float(__hfma2(h, h, h)) == 272 && __bfloat162float(hexp(__float2bfloat16(0))) == 1);
  EXPECT(__half2float(__hfma_relu(one, a, one)) == 0 && __half2int_rn(__float2half(2.5f)) == 2);
  static const float4 v = {1, 2, 3, 4}; /* a constant of the program: global memory */
  EXPECT(__ldg(&v).z == 3 && __ldcs(&v.w) == 4);
}

} // namespace

int warp_tables(void) {
  failures = 0;
  check_shuffles<int>();
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<long long>();
  check_shuffles<__half>();
  check_shuffles<__nv_bfloat16>();
  for (int threads : {32, 64, 20, 52}) check_votes(threads);
  check_barriers();
  check_order();
  return failures;
}

int device_functions(void) {
  failures = 0;
  check_atomics();
  check_integers();
  check_floats();
  return failures;
}
