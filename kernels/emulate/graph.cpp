/* Graphs of the CUDA runtime: what was recorded from streams (runtime.cpp), launched as one piece
 * of work of a stream.
 *
 * A piece holds the arguments of its call as they were when it was recorded, so a value that the
 * host changes later is not seen: the mistake that graphs invite. Pieces run one after another,
 * each after those it depends on: in the order of the recording, or with lazy streams the last
 * recorded of those that may run, or with random ones any of them, so that a missing join of two
 * streams gives wrong data. */
#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include "kernels/emulate/emulate_internal.h"

namespace ii_emu {
namespace {

typedef std::shared_ptr<const graph> graph_ref;

std::mutex lock;
std::unordered_map<void *, graph_ref> graphs, executables;
uint64_t chance = 0x9E3779B97F4A7C15u;

graph_ref find(const std::unordered_map<void *, graph_ref> &in, const void *handle) {
  std::lock_guard<std::mutex> hold(lock);
  const auto at = in.find(const_cast<void *>(handle));
  return at == in.end() ? NULL : at->second;
}

/* Each entry of the table needs an address of its own, also where two stand for one graph. */
void *add(std::unordered_map<void *, graph_ref> &to, const graph_ref &g) {
  std::lock_guard<std::mutex> hold(lock);
  void *handle = new char;
  to[handle] = g;
  return handle;
}

bool drop(std::unordered_map<void *, graph_ref> &from, void *handle) {
  std::lock_guard<std::mutex> hold(lock);
  if (!from.erase(handle)) return false;
  delete (char *)handle;
  return true;
}

/* Which of `count` pieces that may run is next. */
size_t choose(size_t count) {
  if (get_settings().streams == STREAMS_EAGER) return 0;
  if (get_settings().streams == STREAMS_LAZY) return count - 1;
  std::lock_guard<std::mutex> hold(lock);
  chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
  return (size_t)((chance + (uint64_t)get_settings().seed) % count);
}

void run(const graph &g) {
  const size_t n = g.pieces.size();
  std::vector<size_t> missing(n), ready;
  std::vector<std::vector<size_t>> next(n);
  for (size_t i = 0; i < n; i++) {
    missing[i] = g.pieces[i].after.size();
    for (const size_t before : g.pieces[i].after) next[before].push_back(i);
    if (missing[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    const size_t at = choose(ready.size()), piece = ready[at];
    ready.erase(ready.begin() + (std::ptrdiff_t)at);
    g.pieces[piece].work();
    for (const size_t i : next[piece])
      if (--missing[i] == 0) ready.insert(std::lower_bound(ready.begin(), ready.end(), i), i);
  }
}

} // namespace

cudaGraph_t add_graph(graph &&g) {
  return (cudaGraph_t)add(graphs, std::make_shared<const graph>(std::move(g)));
}

} // namespace ii_emu

using namespace ii_emu;

extern "C" {

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t *nodes, size_t *count) {
  const graph_ref g = find(graphs, (void *)handle);
  if (!g || !count || nodes) return set_error(cudaErrorInvalidValue); /* pieces have no handles */
  *count = g->pieces.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t handle,
                                 unsigned long long flags) {
  const graph_ref g = find(graphs, (void *)handle);
  if (!g || flags) return set_error(cudaErrorInvalidValue);
  *exec = (cudaGraphExec_t)add(executables, g);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t s) {
  const graph_ref g = find(executables, (void *)handle);
  if (!g) return set_error(cudaErrorInvalidValue);
  if (stream_device(s) < 0) return set_error(cudaErrorInvalidResourceHandle);
  if (refused_on_stream("cudaGraphLaunch", s)) return cudaErrorStreamCaptureUnsupported;
  enqueue(s, [g] { run(*g); });
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
  return drop(graphs, (void *)handle) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
  return drop(executables, (void *)handle) ? cudaSuccess : set_error(cudaErrorInvalidValue);
}

} // extern "C"
