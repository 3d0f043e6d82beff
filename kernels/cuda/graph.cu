/* Recorded work and small uploads of kernels/device.h on a GPU. No kernels.
 *
 * A graph is recorded from the engine's stream by stream capture (thread-local: threads that load
 * images may go on pinning memory). Its launches run in the stream like any other work. */
#include "kernels/cuda/gpu.h"

/* ---- Uploads ----------------------------------------------------------------------------------*/

extern "C" int ii_cuda_upload_init(ii_kctx *k, ii_upload *u) {
  II_CUDA_TRY(k, cudaSetDevice(ii_cuda(k)->device));
  for (int i = 0; i < 2; i++) {
    cudaEvent_t e;
    II_CUDA_TRY(k, cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    u->sent[i] = e;
  }
  return 0;
}

extern "C" void ii_cuda_upload_destroy(ii_kctx *k, ii_upload *u) {
  cudaSetDevice(ii_cuda(k)->device);
  for (int i = 0; i < 2; i++) {
    if (!u->sent[i]) continue;
    cudaEventSynchronize((cudaEvent_t)u->sent[i]); /* the memory goes next */
    cudaEventDestroy((cudaEvent_t)u->sent[i]);
  }
}

extern "C" int ii_cuda_upload_begin(ii_kctx *k, const ii_upload *u) {
  II_CUDA_TRY(k, cudaSetDevice(ii_cuda(k)->device));
  II_CUDA_TRY(k, cudaEventSynchronize((cudaEvent_t)u->sent[u->turn]));
  return 0;
}

extern "C" int ii_cuda_upload_send(ii_kctx *k, const ii_upload *u, void *dst, size_t bytes) {
  const cudaStream_t s = ii_cuda_stream(k);
  if (bytes)
    II_CUDA_TRY(k, cudaMemcpyAsync(dst, u->host[u->turn], bytes, cudaMemcpyHostToDevice, s));
  II_CUDA_TRY(k, cudaEventRecord((cudaEvent_t)u->sent[u->turn], s));
  return 0;
}

/* ---- Graphs -----------------------------------------------------------------------------------*/

extern "C" int64_t ii_cuda_engine_layout(const ii_kctx *k) {
  return ii_cuda(k)->scratch_moves;
}

extern "C" int ii_cuda_graph_begin(ii_kctx *k) {
  ii_cuda_engine *e = ii_cuda(k);
  if (e->check_each)
    return ii_cuda_error(k, "II_CUDA_SYNC=1 waits after every kernel, which cannot be recorded");
  if (ii_cuda_exact())
    return ii_cuda_error(k, "in this build each block of memory is an allocation of its own, which "
                            "cannot be recorded");
  II_CUDA_TRY(k, cudaStreamBeginCapture(ii_cuda_stream(k), cudaStreamCaptureModeThreadLocal));
  e->recording = true;
  return 0;
}

static int instantiate(ii_kctx *k, cudaGraph_t graph, ii_graph *g) {
  cudaGraphExec_t exec;
  size_t pieces = 0;
  II_CUDA_TRY(k, cudaGraphGetNodes(graph, NULL, &pieces));
  II_CUDA_TRY(k, cudaGraphInstantiate(&exec, graph, 0));
  g->exec = exec;
  g->pieces = (int64_t)pieces;
  return 0;
}

extern "C" int ii_cuda_graph_end(ii_kctx *k, ii_graph *g) {
  ii_cuda_engine *e = ii_cuda(k);
  cudaGraph_t graph = NULL;
  e->recording = false;
  const cudaError_t code = cudaStreamEndCapture(ii_cuda_stream(k), &graph);
  if (code != cudaSuccess || !graph)
    return ii_cuda_failed(k, "cudaStreamEndCapture", __FILE__, __LINE__, (int)code);
  const int failed = g ? instantiate(k, graph, g) : 0;
  cudaGraphDestroy(graph);
  return failed;
}

extern "C" int ii_cuda_graph_launch(ii_kctx *k, const ii_graph *g) {
  II_CUDA_TRY(k, cudaGraphLaunch((cudaGraphExec_t)g->exec, ii_cuda_stream(k)));
  return 0;
}

extern "C" void ii_cuda_graph_destroy(ii_kctx *k, ii_graph *g) {
  if (!g->exec) return;
  cudaStreamSynchronize(ii_cuda_stream(k));
  cudaGraphExecDestroy((cudaGraphExec_t)g->exec);
}
