/* Planted bugs in host code that uses the CUDA runtime, and the runtime's own behaviour, for
 * test_emulator.cu. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <thread>
#include <vector>
#include "test_emulator.h"

namespace {

enum { N = 256 };

__global__ void add_one(const float *x, float *y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] + 1;
}
__global__ void nothing() {}
__global__ void with_shared(float *y) {
  __shared__ float tile[100];
  II_EMU_SHARED(float, more);
  tile[threadIdx.x] = 1;
  more[threadIdx.x] = 2;
  y[threadIdx.x] = tile[threadIdx.x] + more[threadIdx.x];
}

/* Two streams, device and pinned memory. */
struct world {
  cudaStream_t work, copies;
  cudaEvent_t event;
  float *x, *y, *host;
  world() {
    cudaStreamCreateWithFlags(&work, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaMalloc(&x, N * sizeof(float));
    cudaMalloc(&y, N * sizeof(float));
    cudaMallocHost(&host, N * sizeof(float));
    for (int i = 0; i < N; i++) host[i] = 1;
  }
  ~world() {
    cudaDeviceSynchronize();
    cudaStreamDestroy(work);
    cudaStreamDestroy(copies);
    cudaEventDestroy(event);
    cudaFree(x);
    cudaFree(y);
    cudaFreeHost(host);
  }
  void upload(cudaStream_t s) {
    cudaMemcpyAsync(x, host, N * sizeof(float), cudaMemcpyHostToDevice, s);
  }
  void compute() { II_EMU_LAUNCH(add_one, 1, N, 0, work, x, y, N); }
  /* Result of the last element. */
  float last() {
    float v;
    cudaStreamSynchronize(work);
    cudaMemcpy(&v, y + N - 1, sizeof v, cudaMemcpyDeviceToHost);
    return v;
  }
};

/* ---- Streams ----------------------------------------------------------------------------------*/

int missing_wait(bool bug) {
  world w;
  w.upload(w.copies);
  cudaEventRecord(w.event, w.copies);
  if (!bug) cudaStreamWaitEvent(w.work, w.event, 0);
  w.compute();
  return w.last() != 2;
}

/* The second upload must wait until the kernel has read the first. */
int reuse_once(bool bug) {
  world w;
  float *second;
  cudaMallocHost(&second, N * sizeof(float));
  for (int i = 0; i < N; i++) second[i] = 5;
  w.upload(w.work);
  w.compute();
  cudaEventRecord(w.event, w.work);
  if (!bug) cudaStreamWaitEvent(w.copies, w.event, 0);
  cudaMemcpyAsync(w.x, second, N * sizeof(float), cudaMemcpyHostToDevice, w.copies);
  const float v = w.last();
  cudaFreeHost(second);
  return v != 2;
}

int missing_wait_before_reuse(bool bug) {
  int wrong = 0;
  for (int i = 0; i < 20; i++) wrong += reuse_once(bug);
  return wrong;
}

int early_host_reuse(bool bug) {
  world w;
  w.upload(w.work);
  cudaEventRecord(w.event, w.work);
  if (!bug) cudaEventSynchronize(w.event);
  for (int i = 0; i < N; i++) w.host[i] = 9;
  w.compute();
  return w.last() != 2;
}

int early_read(bool bug) {
  world w;
  w.upload(w.work);
  w.compute();
  cudaMemcpyAsync(w.host, w.y, N * sizeof(float), cudaMemcpyDeviceToHost, w.work);
  if (!bug) cudaStreamSynchronize(w.work);
  return w.host[N - 1] != 2;
}

/* The default stream does not wait for streams that were created non-blocking. */
int default_stream_is_no_wait(bool bug) {
  world w;
  float v;
  w.upload(w.work);
  w.compute();
  if (!bug) cudaStreamSynchronize(w.work);
  cudaMemcpy(&v, w.y, sizeof v, cudaMemcpyDeviceToHost);
  return v != 2;
}

/* ---- Memory -----------------------------------------------------------------------------------*/

int host_reads_device(bool bug) {
  world w;
  w.upload(w.work);
  w.compute();
  cudaStreamSynchronize(w.work);
  float v;
  if (bug)
    v = w.y[3]; /* host read */
  else
    cudaMemcpy(&v, w.y + 3, sizeof v, cudaMemcpyDeviceToHost);
  return v != 2;
}

int wrong_direction(bool bug) {
  world w;
  return cudaMemcpy(w.x, w.host, N, bug ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice);
}

int copy_over_the_end(bool bug) {
  world w;
  return cudaMemcpyAsync(w.x + 1, w.y, (N - (bug ? 0 : 1)) * sizeof(float),
                         cudaMemcpyDeviceToDevice, w.work);
}

int double_free(bool bug) {
  float *p;
  cudaMalloc(&p, 64);
  cudaFree(p);
  return bug ? cudaFree(p) : cudaFree(NULL);
}

int leak(bool bug) {
  float *p;
  cudaMalloc(&p, 64);
  if (!bug) cudaFree(p);
  return 0;
}

/* ---- Launches ---------------------------------------------------------------------------------*/

int launch_error(dim3 grid, dim3 block, size_t shared) {
  cudaGetLastError();
  II_EMU_LAUNCH(nothing, grid, block, shared, 0);
  return cudaGetLastError();
}
int too_many_threads(bool bug) {
  return launch_error(1, dim3(32, bug ? 33 : 32), 0);
}
int grid_too_high(bool bug) {
  return launch_error(dim3(1, 1, bug ? 65536 : 2), 1, 0);
}
int empty_grid(bool bug) {
  return launch_error(bug ? 0 : 1, 1, 0);
}
int too_much_shared(bool bug) {
  return launch_error(1, 1, (48 << 10) + (bug ? 1 : 0));
}
int destroyed_stream(bool bug) {
  cudaStream_t s;
  cudaStreamCreate(&s);
  if (bug) cudaStreamDestroy(s);
  II_EMU_LAUNCH(nothing, 1, 1, 0, s);
  if (!bug) cudaStreamDestroy(s);
  return cudaGetLastError();
}
int stream_of_another_device(bool bug) {
  cudaStream_t s;
  cudaStreamCreate(&s);
  if (bug) cudaSetDevice(1);
  II_EMU_LAUNCH(nothing, 1, 1, 0, s);
  const int e = cudaGetLastError();
  cudaStreamDestroy(s);
  return e;
}

/* ---- What the runtime must do -----------------------------------------------------------------*/

int failures;

void check_memory() {
  size_t free_bytes, total, after;
  cudaMemGetInfo(&free_bytes, &total);
  EXPECT(total == 8 << 20 && free_bytes == total);
  void *p, *q;
  EXPECT(cudaMalloc(&p, 5 << 20) == cudaSuccess);
  EXPECT((uintptr_t)p % 256 == 0);
  EXPECT(cudaMalloc(&q, 4 << 20) == cudaErrorMemoryAllocation && q == NULL);
  EXPECT(cudaPeekAtLastError() == cudaErrorMemoryAllocation);
  EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
  cudaMemGetInfo(&after, NULL);
  EXPECT(after == free_bytes - (5 << 20));
  cudaFree(p);
  EXPECT(cudaMalloc(&q, 8 << 20) == cudaSuccess);
  unsigned word;
  cudaMemcpy(&word, (char *)q + 4096, 4, cudaMemcpyDefault);
  EXPECT(word == 0xffffffffu);
  cudaMemset(q, 0x11, 100);
  cudaMemcpy(&word, (char *)q + 98, 4, cudaMemcpyDefault);
  EXPECT(word == 0xffff1111u);
  cudaPointerAttributes a;
  cudaPointerGetAttributes(&a, (char *)q + 5);
  EXPECT(a.type == cudaMemoryTypeDevice && a.device == 0);
  cudaPointerGetAttributes(&a, &word);
  EXPECT(a.type == cudaMemoryTypeUnregistered);
  cudaFree(q);
  EXPECT(cudaMalloc(&p, 0) == cudaSuccess && p == NULL && cudaFree(p) == cudaSuccess);
}

void check_devices() {
  int n = 0, v = 0;
  cudaDeviceProp prop;
  EXPECT(cudaGetDeviceCount(&n) == cudaSuccess && n == 2);
  EXPECT(cudaGetDeviceProperties(&prop, 1) == cudaSuccess && prop.warpSize == 32);
  EXPECT(!strcmp(prop.name, "emulated GPU on the host"));
  EXPECT(cudaGetDeviceProperties(&prop, 2) == cudaErrorInvalidDevice);
  EXPECT(cudaSetDevice(2) == cudaErrorInvalidDevice && cudaGetLastError());
  EXPECT(cudaSetDevice(1) == cudaSuccess && cudaGetDevice(&v) == cudaSuccess && v == 1);
  std::thread([] {
    int other = 5;
    cudaGetDevice(&other);
    EXPECT(other == 0); /* each thread has its own */
  }).join();
  cudaStream_t there;
  void *p;
  EXPECT(cudaStreamCreate(&there) == cudaSuccess && cudaMalloc(&p, 4) == cudaSuccess);
  cudaSetDevice(0);
  EXPECT(cudaMemsetAsync(p, 0, 4, there) == cudaSuccess); /* copies may go to any stream */
  EXPECT(cudaStreamDestroy(there) == cudaSuccess && cudaFree(p) == cudaSuccess);
  EXPECT(cudaDeviceGetAttribute(&v, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess &&
         v == prop.multiProcessorCount);
  EXPECT(!strcmp(cudaGetErrorName(cudaErrorInvalidValue), "cudaErrorInvalidValue"));
  EXPECT(!strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory"));
}

void check_kernel_attributes() {
  cudaFuncAttributes a;
  EXPECT(cudaFuncGetAttributes(&a, with_shared) == cudaSuccess);
  EXPECT(a.sharedSizeBytes == 400 && a.maxDynamicSharedSizeBytes == (48 << 10) - 400);
  float *y, v[32];
  cudaMalloc(&y, sizeof v);
  II_EMU_LAUNCH(with_shared, 1, 32, 100 << 10, 0, y);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue);
  EXPECT(cudaFuncSetAttribute(with_shared, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              228 << 10) == cudaErrorInvalidValue);
  cudaGetLastError();
  EXPECT(cudaFuncSetAttribute(with_shared, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              100 << 10) == cudaSuccess);
  II_EMU_LAUNCH(with_shared, 1, 32, 100 << 10, 0, y);
  EXPECT(cudaGetLastError() == cudaSuccess);
  cudaMemcpy(v, y, sizeof v, cudaMemcpyDeviceToHost);
  EXPECT(v[31] == 3);
  cudaFree(y);
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, with_shared, 1024, 100 << 10);
  EXPECT(blocks == 2);
}

void check_events() {
  cudaStream_t s;
  cudaEvent_t a, b;
  float ms = -1;
  cudaStreamCreate(&s);
  cudaEventCreate(&a);
  cudaEventCreate(&b);
  EXPECT(cudaEventQuery(a) == cudaSuccess); /* never recorded */
  EXPECT(cudaEventElapsedTime(&ms, a, b) == cudaErrorInvalidResourceHandle && cudaGetLastError());
  cudaEventRecord(a, s);
  II_EMU_LAUNCH(nothing, 1000, 32, 0, s);
  cudaEventRecord(b, s);
  int turns = 0;
  while (cudaEventQuery(b) == cudaErrorNotReady) turns++;
  EXPECT(turns < 5);
  EXPECT(cudaEventElapsedTime(&ms, a, b) == cudaSuccess && ms > 0);
  EXPECT(cudaStreamQuery(s) == cudaSuccess);
  /* Work of a blocking stream, the default stream, and the stream again, in this order. */
  std::vector<int> order;
  struct note_down {
    std::vector<int> *to;
    int what;
    static void call(void *p) { ((note_down *)p)->to->push_back(((note_down *)p)->what); }
  } notes[3] = {{&order, 0}, {&order, 1}, {&order, 2}};
  cudaLaunchHostFunc(s, note_down::call, &notes[0]);
  cudaLaunchHostFunc(0, note_down::call, &notes[1]);
  cudaLaunchHostFunc(s, note_down::call, &notes[2]);
  cudaStreamSynchronize(s);
  EXPECT((order == std::vector<int>{0, 1, 2}));
  cudaEventDestroy(a);
  cudaEventDestroy(b);
  EXPECT(cudaEventRecord(b, s) == cudaErrorInvalidResourceHandle && cudaGetLastError());
  cudaStreamDestroy(s);
}

/* Several host threads, each with a stream of its own, and events between two of them. */
void check_host_threads() {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([t, &wrong] {
      world w;
      for (int i = 0; i < 20; i++) {
        for (int j = 0; j < N; j++) w.host[j] = (float)(t * 100 + i);
        w.upload(w.copies);
        cudaEventRecord(w.event, w.copies);
        cudaStreamWaitEvent(w.work, w.event, 0);
        w.compute();
        wrong[(size_t)t] += w.last() != (float)(t * 100 + i + 1);
      }
    });
  }
  for (std::thread &t : threads) t.join();
  for (int w : wrong) EXPECT(w == 0);
}

} // namespace

int runtime_functions(void) {
  failures = 0;
  check_memory();
  check_devices();
  check_kernel_attributes();
  check_events();
  check_host_threads();
  return failures;
}

#define LAZY                                                                                       \
  { "II_EMU_STREAMS=lazy" }
const emulator_case host_cases[] = {
    {"missing event wait", missing_wait, LAZY, EVERY, 0, {}, 0, 0, 0},
    {"missing event wait before a reuse",
     missing_wait_before_reuse,
     {"II_EMU_STREAMS=random"},
     EVERY,
     0,
     {},
     0,
     0,
     1},
    {"early reuse of a pinned buffer", early_host_reuse, LAZY, EVERY, 0, {}, 0, 0, 0},
    {"result read before the stream has run", early_read, LAZY, EVERY, 0, {}, 0, 0, 0},
    {"default stream taken for a wait", default_stream_is_no_wait, LAZY, EVERY, 0, {}, 0, 0, 0},
    {"host reads device memory",
     host_reads_device,
     {"II_EMU_GUARD=1"},
     0,
     ASAN,
     {"use-after-poison", "%host read%"},
     0,
     0,
     0},
    {"wrong direction of a copy", wrong_direction, {}, EVERY, 0, {"target"}, 0, 0, 0},
    {"copy over the end", copy_over_the_end, {}, EVERY, 0, {"run over the end"}, 0, 0, 0},
    {"double free", double_free, {}, EVERY, 0, {"cudaFree of"}, 0, 0, 0},
    {"leak", leak, {}, 0, ASAN, {"LeakSanitizer", "64 byte"}, 0, 0, 0},
    {"too many threads", too_many_threads, {}, EVERY, 0, {"over the limits"}, 0, 0, 0},
    {"grid too high", grid_too_high, {}, EVERY, 0, {"over the limits"}, 0, 0, 0},
    {"empty grid", empty_grid, {}, EVERY, 0, {"over the limits"}, 0, 0, 0},
    {"too much shared memory", too_much_shared, {}, EVERY, 0, {"49153 bytes"}, 0, 0, 0},
    {"destroyed stream", destroyed_stream, {}, EVERY, 0, {"current device"}, 0, 0, 0},
    {"stream of another device",
     stream_of_another_device,
     {"II_EMU_DEVICES=2"},
     EVERY,
     0,
     {"current device 1"},
     0,
     0,
     0},
};
const int host_case_count = sizeof host_cases / sizeof *host_cases;
