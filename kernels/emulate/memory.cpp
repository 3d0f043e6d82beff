/* Device and pinned memory of the CUDA runtime, and copies.
 *
 * Every allocation is a block of the host's heap of exactly the size asked for, so that
 * AddressSanitizer guards both ends, filled with 0xFF (NaN in every float type). Copies are checked
 * against the table of allocations: direction, and the range on both sides. */
#include "kernels/emulate/emulate_internal.h"
#include <stdlib.h>
#include <string.h>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace ii_emu {
namespace {

std::mutex table_lock;
std::map<uintptr_t, allocation> table; /* by address */
std::atomic<uint64_t> version{1};
std::vector<size_t> used; /* per device */
int opened;               /* open_memory objects alive */

void set_closed(bool closed) {
  for (const auto &a : table) {
    if (a.second.kind != MEMORY_DEVICE) continue;
    if (closed)
      ASAN_POISON_MEMORY_REGION((void *)a.first, a.second.bytes);
    else
      ASAN_UNPOISON_MEMORY_REGION((void *)a.first, a.second.bytes);
  }
}

allocation find_locked(uintptr_t p) {
  auto at = table.upper_bound(p);
  if (at == table.begin()) return allocation{MEMORY_NONE, 0, 0, 0};
  --at;
  /* The end belongs to it as well: a copy of no bytes may point there. */
  return p - at->first <= at->second.bytes ? at->second : allocation{MEMORY_NONE, 0, 0, 0};
}

cudaError_t allocate(void **p, size_t bytes, memory_kind kind) {
  *p = NULL;
  if (bytes == 0) return cudaSuccess;
  const int device = current_device();
  std::lock_guard<std::mutex> hold(table_lock);
  if ((int)used.size() <= device) used.resize((size_t)device + 1);
  if (kind == MEMORY_DEVICE &&
      (bytes > get_settings().memory || used[(size_t)device] > get_settings().memory - bytes)) {
    return set_error(cudaErrorMemoryAllocation);
  }
  if (posix_memalign(p, 256, bytes)) {
    *p = NULL;
    return set_error(cudaErrorMemoryAllocation);
  }
  memset(*p, 0xFF, bytes);
  if (kind == MEMORY_DEVICE) used[(size_t)device] += bytes;
  table[(uintptr_t)*p] = allocation{kind, (uintptr_t)*p, bytes, device};
  version++;
  race_forget((uintptr_t)*p, bytes);
  if (kind == MEMORY_DEVICE) profile_allocated(*p, bytes);
  if (kind == MEMORY_DEVICE && get_settings().guard && opened == 0) {
    ASAN_POISON_MEMORY_REGION(*p, bytes);
  }
  return cudaSuccess;
}

cudaError_t release(void *p, memory_kind kind) {
  std::lock_guard<std::mutex> hold(table_lock);
  const auto at = table.find((uintptr_t)p);
  if (at == table.end() || at->second.kind != kind) {
    note("%s of %p, which is not the start of such an allocation",
         kind == MEMORY_DEVICE ? "cudaFree" : "cudaFreeHost", p);
    return set_error(cudaErrorInvalidValue);
  }
  if (kind == MEMORY_DEVICE) used[(size_t)at->second.device] -= at->second.bytes;
  ASAN_UNPOISON_MEMORY_REGION(p, at->second.bytes);
  race_forget((uintptr_t)p, at->second.bytes);
  profile_freed(p);
  table.erase(at);
  version++;
  free(p);
  return cudaSuccess;
}

/* What lies at p: the kind, and whether [p, p+bytes) is inside. */
bool inside(const allocation &a, const void *p, size_t bytes) {
  return (uintptr_t)p - a.address <= a.bytes && bytes <= a.bytes - ((uintptr_t)p - a.address);
}

bool side_fits(const char *call, const char *side, const void *p, size_t bytes, bool device) {
  const allocation a = find_allocation(p);
  if (device && a.kind != MEMORY_DEVICE) {
    note("%s: the direction says that the %s %p is device memory, but it is not", call, side, p);
    return false;
  }
  if (!device && a.kind == MEMORY_DEVICE && inside(a, p, bytes)) {
    note("%s: the direction says that the %s %p is host memory, but it is device memory", call,
         side, p);
    return false;
  }
  if (a.kind == MEMORY_DEVICE && device && !inside(a, p, bytes)) {
    note("%s: %zu bytes at the %s %p run over the end of an allocation of %zu bytes", call, bytes,
         side, p, a.bytes);
    return false;
  }
  return true;
}

bool is_device(const void *p) {
  return find_allocation(p).kind == MEMORY_DEVICE;
}

/* Whether the copy is possible; resolves cudaMemcpyDefault. */
bool check_copy(const char *call, void *dst, const void *src, size_t bytes, cudaMemcpyKind *kind) {
  if (*kind == cudaMemcpyDefault) {
    const bool to = is_device(dst), from = is_device(src);
    *kind = to     ? from ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice
            : from ? cudaMemcpyDeviceToHost
                   : cudaMemcpyHostToHost;
  }
  const bool to = *kind == cudaMemcpyHostToDevice || *kind == cudaMemcpyDeviceToDevice;
  const bool from = *kind == cudaMemcpyDeviceToHost || *kind == cudaMemcpyDeviceToDevice;
  return side_fits(call, "target", dst, bytes, to) && side_fits(call, "source", src, bytes, from);
}

bool is_pinned(const void *p) {
  return find_allocation(p).kind == MEMORY_PINNED;
}

void copy(void *dst, const void *src, size_t bytes) {
  memmove(dst, src, bytes);
  profile_copy(dst, src, bytes);
}

cudaError_t set_bytes(const char *call, void *p, int value, size_t bytes, cudaStream_t stream,
                      bool wait) {
  if (bytes == 0) return cudaSuccess;
  if (!side_fits(call, "target", p, bytes, true)) return set_error(cudaErrorInvalidValue);
  if (stream_device(stream) < 0) return set_error(cudaErrorInvalidResourceHandle);
  if (wait && refused_in_capture(call)) return cudaErrorStreamCaptureUnsupported;
  if (capture_state(stream) != cudaSuccess) return cudaErrorStreamCaptureInvalidated;
  const auto work = [p, value, bytes] {
    memset(p, value, bytes);
    profile_set(p, bytes);
  };
  if (wait)
    enqueue_and_wait(stream, work);
  else
    enqueue(stream, work);
  return cudaSuccess;
}

} // namespace

allocation find_allocation(const void *p) {
  std::lock_guard<std::mutex> hold(table_lock);
  return find_locked((uintptr_t)p);
}

bool in_device(const void *p, size_t bytes) {
  if (bytes == 0) return true;
  const allocation a = find_allocation(p);
  return a.kind == MEMORY_DEVICE && inside(a, p, bytes);
}

uint64_t allocations_version() {
  return version.load(std::memory_order_relaxed);
}

open_memory::open_memory() {
  if (!get_settings().guard) return;
  std::lock_guard<std::mutex> hold(table_lock);
  if (opened++ == 0) set_closed(false);
}
open_memory::~open_memory() {
  if (!get_settings().guard) return;
  std::lock_guard<std::mutex> hold(table_lock);
  if (--opened == 0) set_closed(true);
}

} // namespace ii_emu

using namespace ii_emu;

void ii_emu_global_access(const void *p, size_t bytes, const char *file, int line) {
  static allocation last; /* kernels run on one thread at a time */
  static uint64_t known;
  if ((uintptr_t)p % bytes)
    report(true, "misaligned access", "address %p, %zu bytes, at %s:%d", p, bytes, file, line);
  if (known == allocations_version() && (uintptr_t)p - last.address < last.bytes) return;
  last = find_allocation(p);
  known = allocations_version();
  std::string name;
  uintptr_t start;
  size_t size;
  if (last.kind != MEMORY_NONE || (in_image(p) && !find_shared(p, &name, &start, &size))) return;
  last.bytes = 0;
  report(true, "access of other than global memory", "address %p, %zu bytes, at %s:%d", p, bytes,
         file, line);
}

extern "C" {

cudaError_t cudaMalloc(void **p, size_t bytes) {
  if (refused_in_capture("cudaMalloc")) return cudaErrorStreamCaptureUnsupported;
  return allocate(p, bytes, MEMORY_DEVICE);
}
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t s) {
  if (stream_device(s) < 0) return set_error(cudaErrorInvalidResourceHandle);
  /* CUDA would make it a piece of the graph, which is not emulated */
  if (refused_on_stream("cudaMallocAsync", s)) return cudaErrorStreamCaptureUnsupported;
  return allocate(p, bytes, MEMORY_DEVICE);
}
cudaError_t cudaFree(void *p) {
  if (refused_in_capture("cudaFree")) return cudaErrorStreamCaptureUnsupported;
  finish_device(current_device());
  return p ? release(p, MEMORY_DEVICE) : cudaSuccess;
}
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) {
  if (!p) return cudaSuccess;
  const allocation a = find_allocation(p);
  if (a.kind != MEMORY_DEVICE || a.address != (uintptr_t)p || stream_device(s) < 0) {
    note("cudaFreeAsync of %p, which is not the start of an allocation, or a bad stream", p);
    return set_error(cudaErrorInvalidValue);
  }
  if (refused_on_stream("cudaFreeAsync", s)) return cudaErrorStreamCaptureUnsupported;
  enqueue(s, [p] { release(p, MEMORY_DEVICE); });
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
  (void)flags;
  if (refused_in_capture("cudaHostAlloc")) return cudaErrorStreamCaptureUnsupported;
  return allocate(p, bytes, MEMORY_PINNED);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
  if (refused_in_capture("cudaMallocHost")) return cudaErrorStreamCaptureUnsupported;
  return allocate(p, bytes, MEMORY_PINNED);
}
cudaError_t cudaFreeHost(void *p) {
  if (refused_in_capture("cudaFreeHost")) return cudaErrorStreamCaptureUnsupported;
  finish_device(current_device());
  return p ? release(p, MEMORY_PINNED) : cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  const size_t device = (size_t)current_device();
  std::lock_guard<std::mutex> hold(table_lock);
  if (total) *total = get_settings().memory;
  if (free_bytes) {
    *free_bytes = get_settings().memory - (device < used.size() ? used[device] : 0);
  }
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *to, const void *p) {
  const allocation a = find_allocation(p);
  memset(to, 0, sizeof *to);
  to->type = a.kind == MEMORY_DEVICE   ? cudaMemoryTypeDevice
             : a.kind == MEMORY_PINNED ? cudaMemoryTypeHost
                                       : cudaMemoryTypeUnregistered;
  to->device = a.device;
  if (a.kind != MEMORY_NONE) to->devicePointer = const_cast<void *>(p);
  if (a.kind != MEMORY_DEVICE) to->hostPointer = const_cast<void *>(p);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (!check_copy("cudaMemcpy", dst, src, bytes, &kind)) return set_error(cudaErrorInvalidValue);
  if (refused_in_capture("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
  enqueue_and_wait(NULL, [dst, src, bytes] { copy(dst, src, bytes); });
  return cudaSuccess;
}

/* Pageable host memory: the source is read before the call returns, the target written before it
 * returns. Only pinned memory is copied later. */
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s) {
  if (bytes == 0) return cudaSuccess;
  if (!check_copy("cudaMemcpyAsync", dst, src, bytes, &kind)) {
    return set_error(cudaErrorInvalidValue);
  }
  if (stream_device(s) < 0) return set_error(cudaErrorInvalidResourceHandle);
  if (capture_state(s) != cudaSuccess) return cudaErrorStreamCaptureInvalidated;
  const bool to_host = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost;
  const bool from_host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost;
  /* a graph would read or write the caller's memory at each launch: pinned memory alone here */
  if (((to_host && !is_pinned(dst)) || (from_host && !is_pinned(src))) &&
      refused_on_stream("cudaMemcpyAsync with host memory that is not pinned", s))
    return cudaErrorStreamCaptureUnsupported;
  if (to_host && !is_pinned(dst)) {
    enqueue_and_wait(s, [dst, src, bytes] { copy(dst, src, bytes); });
  } else if (from_host && !is_pinned(src) && get_settings().streams != STREAMS_EAGER) {
    const char *from = (const char *)src;
    const auto staged = std::make_shared<std::vector<char>>(from, from + bytes);
    enqueue(s, [dst, staged, bytes] { copy(dst, staged->data(), bytes); });
  } else {
    enqueue(s, [dst, src, bytes] { copy(dst, src, bytes); });
  }
  return cudaSuccess;
}

cudaError_t cudaMemset(void *p, int value, size_t bytes) {
  return set_bytes("cudaMemset", p, value, bytes, NULL, true);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
  return set_bytes("cudaMemsetAsync", p, value, bytes, s, false);
}

/* ---- Pools: freed memory goes back at once, so the settings mean nothing
 * -----------------------*/

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
  static char handle;
  if (device < 0 || device >= get_settings().devices) return set_error(cudaErrorInvalidDevice);
  *pool = (cudaMemPool_t)(void *)&handle;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attr, void *value) {
  (void)attr;
  return pool && value ? cudaSuccess : set_error(cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attr, void *value) {
  if (!pool || !value) return set_error(cudaErrorInvalidValue);
  std::lock_guard<std::mutex> hold(table_lock);
  const size_t device = (size_t)current_device();
  if (attr <= cudaMemPoolReuseAllowInternalDependencies)
    *(int *)value = 1;
  else
    *(uint64_t *)value = device < used.size() ? used[device] : 0;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
  (void)keep;
  return pool ? cudaSuccess : set_error(cudaErrorInvalidValue);
}

} // extern "C"
