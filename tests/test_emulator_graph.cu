/* Planted bugs in host code that records CUDA graphs, and what recording and launching must do, for
 * test_emulator.cu. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <thread>
#include "test_emulator.h"

namespace {

enum { N = 64 };

__global__ void add_value(float *y, float value) {
  y[threadIdx.x] += value;
}
__global__ void add_from(float *y, const float *value) {
  y[threadIdx.x] += *value;
}
__global__ void copy_kernel(const float *x, float *y) {
  y[threadIdx.x] = x[threadIdx.x];
}

/* Two streams that do not wait for the default one, device memory that is zero, pinned memory. */
struct world {
  cudaStream_t work, other;
  cudaEvent_t fork, join;
  float *x, *y, *value, *host;
  cudaGraphExec_t exec = NULL;
  world() {
    cudaStreamCreateWithFlags(&work, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
    cudaMalloc(&x, N * sizeof(float));
    cudaMalloc(&y, N * sizeof(float));
    cudaMalloc(&value, sizeof(float));
    cudaMallocHost(&host, N * sizeof(float));
    cudaMemset(x, 0, N * sizeof(float));
    cudaMemset(y, 0, N * sizeof(float));
    for (int i = 0; i < N; i++) host[i] = 3;
  }
  ~world() {
    cudaDeviceSynchronize();
    if (exec) cudaGraphExecDestroy(exec);
    cudaStreamDestroy(work);
    cudaStreamDestroy(other);
    cudaEventDestroy(fork);
    cudaEventDestroy(join);
    cudaFree(x);
    if (y) cudaFree(y);
    cudaFree(value);
    cudaFreeHost(host);
  }
  void begin() { cudaStreamBeginCapture(work, cudaStreamCaptureModeThreadLocal); }
  int end() {
    cudaGraph_t g;
    const int e = cudaStreamEndCapture(work, &g);
    if (e) return e;
    cudaGraphInstantiate(&exec, g, 0);
    return cudaGraphDestroy(g);
  }
  void launch() { cudaGraphLaunch(exec, work); }
  void upload(float *to, cudaStream_t s) {
    cudaMemcpyAsync(to, host, N * sizeof(float), cudaMemcpyHostToDevice, s);
  }
  void send(float v) { /* the stream is waited for: v may go */
    cudaMemcpyAsync(value, &v, sizeof v, cudaMemcpyHostToDevice, work);
    cudaStreamSynchronize(work);
  }
  float last() {
    float v;
    cudaStreamSynchronize(work);
    cudaMemcpy(&v, y + N - 1, sizeof v, cudaMemcpyDeviceToHost);
    return v;
  }
};

/* ---- Planted bugs -----------------------------------------------------------------------------*/

/* The host's variable is read when the call is recorded, and never again. */
int stale_argument(bool bug) {
  world w;
  float value = 1;
  w.send(value);
  w.begin();
  if (bug)
    II_EMU_LAUNCH(add_value, 1, N, 0, w.work, w.y, value);
  else
    II_EMU_LAUNCH(add_from, 1, N, 0, w.work, w.y, w.value);
  w.end();
  w.launch();
  value = 10;
  if (!bug) w.send(value);
  w.launch();
  return w.last() != 11;
}

/* A recorded copy reads the pinned memory at each launch, when the stream comes to it. */
int early_refill(bool bug) {
  world w;
  w.begin();
  w.upload(w.x, w.work);
  II_EMU_LAUNCH(copy_kernel, 1, N, 0, w.work, w.x, w.y);
  w.end();
  w.launch();
  if (!bug) cudaStreamSynchronize(w.work);
  for (int i = 0; i < N; i++) w.host[i] = 8;
  return w.last() != 3;
}

int missing_edge(bool bug) {
  world w;
  w.begin();
  cudaEventRecord(w.fork, w.work);
  cudaStreamWaitEvent(w.other, w.fork, 0);
  w.upload(w.x, w.other);
  cudaEventRecord(w.join, w.other);
  if (!bug) cudaStreamWaitEvent(w.work, w.join, 0);
  II_EMU_LAUNCH(copy_kernel, 1, N, 0, w.work, w.x, w.y);
  if (bug) cudaStreamWaitEvent(w.work, w.join, 0);
  w.end();
  w.launch();
  return w.last() != 3;
}

int unjoined(bool bug) {
  world w;
  w.begin();
  cudaEventRecord(w.fork, w.work);
  cudaStreamWaitEvent(w.other, w.fork, 0);
  w.upload(w.y, w.other);
  cudaEventRecord(w.join, w.other);
  if (!bug) cudaStreamWaitEvent(w.work, w.join, 0);
  const int e = w.end();
  return bug ? e == cudaErrorStreamCaptureUnjoined : e;
}

/* The result of ending a recording in which `call` was made. */
template <typename F> int during(bool bug, int expected, F call) {
  world w;
  w.begin();
  II_EMU_LAUNCH(add_value, 1, N, 0, w.work, w.y, 1.0f);
  const int e = bug ? call(w) : 0;
  II_EMU_LAUNCH(add_value, 1, N, 0, w.work, w.y, 1.0f);
  const int after = cudaGetLastError(), ended = w.end();
  if (!bug) return after || ended || e;
  return e == expected && after == cudaErrorStreamCaptureInvalidated &&
         ended == cudaErrorStreamCaptureInvalidated;
}
int waits(bool bug) {
  return during(bug, cudaErrorStreamCaptureUnsupported,
                [](world &w) { return (int)cudaStreamSynchronize(w.work); });
}
int waits_for_device(bool bug) {
  return during(bug, cudaErrorStreamCaptureUnsupported,
                [](world &) { return (int)cudaDeviceSynchronize(); });
}
int allocates(bool bug) {
  return during(bug, cudaErrorStreamCaptureUnsupported, [](world &) {
    void *p;
    return (int)cudaMalloc(&p, 4);
  });
}
int allocates_in_stream(bool bug) {
  return during(bug, cudaErrorStreamCaptureUnsupported, [](world &w) {
    void *p;
    return (int)cudaMallocAsync(&p, 4, w.work);
  });
}
int copies_from_stack(bool bug) {
  return during(bug, cudaErrorStreamCaptureUnsupported, [](world &w) {
    const float v = 1;
    return (int)cudaMemcpyAsync(w.value, &v, sizeof v, cudaMemcpyHostToDevice, w.work);
  });
}
int copies_and_waits(bool bug) {
  return during(bug, cudaErrorStreamCaptureUnsupported, [](world &w) {
    float v;
    return (int)cudaMemcpy(&v, w.y, sizeof v, cudaMemcpyDeviceToHost);
  });
}
int asks_for_event(bool bug) {
  return during(bug, cudaErrorCapturedEvent, [](world &w) {
    cudaEventRecord(w.fork, w.work);
    return (int)cudaEventSynchronize(w.fork);
  });
}
int waits_for_the_past(bool bug) {
  return during(bug, cudaErrorStreamCaptureIsolation, [](world &w) {
    cudaEventRecord(w.fork, w.other);
    return (int)cudaStreamWaitEvent(w.work, w.fork, 0);
  });
}

int default_stream_meanwhile(bool bug) {
  cudaStream_t s;
  cudaGraph_t g;
  void *p;
  cudaMalloc(&p, 4);
  if (bug)
    cudaStreamCreate(&s);
  else
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
  cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed);
  cudaMemsetAsync(p, 0, 4, 0);
  const int e = cudaGetLastError(), ended = cudaStreamEndCapture(s, &g);
  if (!ended) cudaGraphDestroy(g);
  cudaStreamDestroy(s);
  cudaFree(p);
  return e == cudaErrorStreamCaptureImplicit && ended == cudaErrorStreamCaptureInvalidated;
}

int freed_memory(bool bug) {
  world w;
  w.begin();
  II_EMU_LAUNCH(add_value, 1, N, 0, w.work, w.y, 1.0f);
  w.end();
  if (bug) {
    cudaFree(w.y);
    w.y = NULL;
  }
  w.launch();
  cudaStreamSynchronize(w.work);
  return 0;
}

/* ---- What recording must do -------------------------------------------------------------------*/

int failures;

void check_launches() {
  world w;
  cudaStreamCaptureStatus status;
  cudaGraph_t g;
  size_t pieces = 0;
  EXPECT(cudaStreamIsCapturing(w.work, &status) == cudaSuccess &&
         status == cudaStreamCaptureStatusNone);
  w.begin();
  EXPECT(cudaStreamIsCapturing(w.work, &status) == cudaSuccess &&
         status == cudaStreamCaptureStatusActive);
  II_EMU_LAUNCH(add_value, 1, N, 0, w.work, w.y, 1.0f);
  cudaMemsetAsync(w.x, 0, 4, w.work);
  II_EMU_LAUNCH(add_value, 1, N, 0, w.work, w.y, 2.0f);
  EXPECT(cudaStreamEndCapture(w.work, &g) == cudaSuccess);
  EXPECT(cudaGraphGetNodes(g, NULL, &pieces) == cudaSuccess && pieces == 3);
  EXPECT(w.last() == 0); /* recorded, not done */
  cudaGraphExec_t again;
  EXPECT(cudaGraphInstantiate(&w.exec, g, 0) == cudaSuccess);
  EXPECT(cudaGraphInstantiate(&again, g, 0) == cudaSuccess && again != w.exec);
  EXPECT(cudaGraphDestroy(g) == cudaSuccess); /* what was made of it stays */
  w.launch();
  cudaMemsetAsync(w.y, 0, N * sizeof(float), w.work); /* in the order of the stream */
  w.launch();
  EXPECT(cudaGraphLaunch(again, w.work) == cudaSuccess);
  EXPECT(w.last() == 6);
  EXPECT(cudaGraphExecDestroy(again) == cudaSuccess);
  EXPECT(cudaGraphLaunch(again, w.work) == cudaErrorInvalidValue && cudaGetLastError());
}

/* A second stream takes part and is free afterwards. */
void check_fork() {
  world w;
  w.begin();
  cudaEventRecord(w.fork, w.work);
  EXPECT(cudaStreamWaitEvent(w.other, w.fork, 0) == cudaSuccess);
  w.upload(w.x, w.other);
  II_EMU_LAUNCH(add_value, 1, N, 0, w.work, w.y, 4.0f);
  cudaEventRecord(w.join, w.other);
  cudaStreamWaitEvent(w.work, w.join, 0);
  II_EMU_LAUNCH(add_from, 1, N, 0, w.work, w.y, w.x);
  EXPECT(w.end() == cudaSuccess);
  EXPECT(cudaStreamSynchronize(w.other) == cudaSuccess);
  w.launch();
  w.launch();
  EXPECT(w.last() == 14);
}

void check_errors() {
  world w;
  cudaGraph_t g;
  EXPECT(cudaStreamBeginCapture(0, cudaStreamCaptureModeRelaxed) ==
         cudaErrorStreamCaptureUnsupported);
  EXPECT(cudaStreamEndCapture(w.work, &g) == cudaErrorIllegalState);
  w.begin();
  EXPECT(cudaStreamBeginCapture(w.work, cudaStreamCaptureModeRelaxed) == cudaErrorIllegalState);
  int there = 0, memory = 1;
  std::thread([&] {
    void *p = NULL;
    there = cudaStreamEndCapture(w.work, &g);
    memory = cudaMalloc(&p, 4); /* thread-local: others may */
    if (!memory) cudaFree(p);
  }).join();
  EXPECT(there == cudaErrorStreamCaptureWrongThread && memory == cudaSuccess);
  EXPECT(w.end() == cudaSuccess);
  cudaGetLastError();
  w.launch(); /* nothing */
  EXPECT(w.last() == 0 && cudaGetLastError() == cudaSuccess);
}

} // namespace

int graph_functions(void) {
  failures = 0;
  check_launches();
  check_fork();
  check_errors();
  return failures;
}

#define LAZY                                                                                       \
  { "II_EMU_STREAMS=lazy" }
#define DURING(name, run, text)                                                                    \
  { name, run, {}, EVERY, 0, {text}, 0, 0, 0 }
const emulator_case graph_cases[] = {
    {"argument that changes after the recording", stale_argument, {}, EVERY, 0, {}, 0, 0, 0},
    {"pinned memory refilled before a launch", early_refill, LAZY, EVERY, 0, {}, 0, 0, 0},
    {"missing edge between recorded streams", missing_edge, LAZY, EVERY, 0, {}, 0, 0, 0},
    {"recorded stream not joined", unjoined, {}, EVERY, 0, {}, 0, 0, 0},
    DURING("wait while recording", waits, "cudaStreamSynchronize while"),
    DURING("wait for the device while recording", waits_for_device, "cudaDeviceSynchronize while"),
    DURING("allocation while recording", allocates, "cudaMalloc while"),
    DURING("allocation in a recorded stream", allocates_in_stream, "cudaMallocAsync while"),
    DURING("copy from the stack while recording", copies_from_stack, "not pinned while"),
    DURING("copy that waits while recording", copies_and_waits, "cudaMemcpy while"),
    DURING("host waits for a recorded event", asks_for_event, "cudaEventSynchronize while"),
    DURING("wait for work from before", waits_for_the_past, "from before the recording"),
    DURING("default stream while recording", default_stream_meanwhile, "default stream"),
    {"graph works in freed memory", freed_memory, {}, 0, ASAN, {"AddressSanitizer"}, 0, 0, 0},
};
const int graph_case_count = sizeof graph_cases / sizeof *graph_cases;
