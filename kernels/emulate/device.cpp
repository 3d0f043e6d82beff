/* Properties and attributes of the emulated devices and of kernels, versions, error texts. */
#include "kernels/emulate/emulate_internal.h"
#include <stdio.h>
#include <string.h>
#include <algorithm>
#include <map>
#include <mutex>

namespace ii_emu {
namespace {

/* The limits of a GPU of compute capability 9.0; few processors, so that loops over the grid have
 * more than one turn with small shapes. */
enum {
  PROCESSORS = 4,
  SHARED_DEFAULT = 48 << 10,
  SHARED_MOST = 227 << 10,
  SHARED_PROCESSOR = 228 << 10,
  THREADS_BLOCK = 1024,
  THREADS_PROCESSOR = 2048,
  BLOCKS_PROCESSOR = 32,
  REGISTERS = 65536,
  REGISTERS_THREAD = 32,
  L2_BYTES = 50 << 20
};

std::mutex lock;
std::map<const void *, size_t> opted_in; /* cudaFuncAttributeMaxDynamicSharedMemorySize */

int attribute(cudaDeviceAttr a, bool *known) {
  *known = true;
  switch (a) {
  case cudaDevAttrMaxThreadsPerBlock:
    return THREADS_BLOCK;
  case cudaDevAttrMaxBlockDimX:
    return 1024;
  case cudaDevAttrMaxBlockDimY:
    return 1024;
  case cudaDevAttrMaxBlockDimZ:
    return 64;
  case cudaDevAttrMaxGridDimX:
    return 0x7fffffff;
  case cudaDevAttrMaxGridDimY:
    return 65535;
  case cudaDevAttrMaxGridDimZ:
    return 65535;
  case cudaDevAttrMaxSharedMemoryPerBlock:
    return SHARED_DEFAULT;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    return SHARED_MOST;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
    return SHARED_PROCESSOR;
  case cudaDevAttrWarpSize:
    return 32;
  case cudaDevAttrMaxRegistersPerBlock:
    return REGISTERS;
  case cudaDevAttrMaxRegistersPerMultiprocessor:
    return REGISTERS;
  case cudaDevAttrMultiProcessorCount:
    return PROCESSORS;
  case cudaDevAttrMaxThreadsPerMultiProcessor:
    return THREADS_PROCESSOR;
  case cudaDevAttrMaxBlocksPerMultiprocessor:
    return BLOCKS_PROCESSOR;
  case cudaDevAttrComputeCapabilityMajor:
    return 9;
  case cudaDevAttrComputeCapabilityMinor:
    return 0;
  case cudaDevAttrL2CacheSize:
    return L2_BYTES;
  case cudaDevAttrClockRate:
    return 1000000;
  case cudaDevAttrMemoryClockRate:
    return 1000000;
  case cudaDevAttrGlobalMemoryBusWidth:
    return 64;
  case cudaDevAttrAsyncEngineCount:
    return 2;
  case cudaDevAttrConcurrentKernels:
    return 1;
  case cudaDevAttrUnifiedAddressing:
    return 1;
  case cudaDevAttrMemoryPoolsSupported:
    return 1;
  case cudaDevAttrIntegrated:
  case cudaDevAttrManagedMemory:
  case cudaDevAttrCooperativeLaunch:
  case cudaDevAttrEccEnabled:
    return 0;
  default:
    *known = false;
    return 0;
  }
}

} // namespace

size_t dynamic_shared_limit(const void *kernel) {
  std::lock_guard<std::mutex> hold(lock);
  const auto at = opted_in.find(kernel);
  if (at != opted_in.end()) return at->second;
  const size_t fixed = static_shared_bytes(kernel);
  return fixed < SHARED_DEFAULT ? SHARED_DEFAULT - fixed : 0;
}

} // namespace ii_emu

using namespace ii_emu;

extern "C" {

cudaError_t cudaGetDeviceCount(int *n) {
  *n = get_settings().devices;
  return *n > 0 ? cudaSuccess : set_error(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
  if (device < 0 || device >= get_settings().devices) return set_error(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "emulated GPU on the host");
  p->totalGlobalMem = get_settings().memory;
  p->sharedMemPerBlock = SHARED_DEFAULT;
  p->sharedMemPerBlockOptin = SHARED_MOST;
  p->sharedMemPerMultiprocessor = SHARED_PROCESSOR;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = REGISTERS;
  p->warpSize = 32;
  p->maxThreadsPerBlock = THREADS_BLOCK;
  p->maxThreadsPerMultiProcessor = THREADS_PROCESSOR;
  p->maxBlocksPerMultiProcessor = BLOCKS_PROCESSOR;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 64 << 10;
  p->major = 9;
  p->multiProcessorCount = PROCESSORS;
  p->l2CacheSize = L2_BYTES;
  p->memoryBusWidth = 64;
  p->pciBusID = device + 1;
  p->asyncEngineCount = 2;
  p->concurrentKernels = p->unifiedAddressing = p->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int device) {
  bool known;
  if (device < 0 || device >= get_settings().devices) return set_error(cudaErrorInvalidDevice);
  *value = attribute(a, &known);
  return known ? cudaSuccess : set_error(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device) {
  if (device < 0 || device >= get_settings().devices) return set_error(cudaErrorInvalidDevice);
  snprintf(text, (size_t)bytes, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  (void)device, (void)peer;
  *can = 0;
  return cudaSuccess;
}

/* Driver 0 is how the real runtime says that there is none. */
cudaError_t cudaDriverGetVersion(int *version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

/* ---- Kernels ----------------------------------------------------------------------------------*/

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute a, int value) {
  if (a == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  const size_t fixed = static_shared_bytes(kernel);
  if (a != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      (size_t)value + fixed > SHARED_MOST) {
    return set_error(cudaErrorInvalidValue);
  }
  std::lock_guard<std::mutex> hold(lock);
  opted_in[kernel] =
      std::max((size_t)value, SHARED_DEFAULT - std::min<size_t>(fixed, SHARED_DEFAULT));
  return cudaSuccess;
}

/* There are no registers and no code to measure: a plausible constant stands for them. */
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *to, const void *kernel) {
  memset(to, 0, sizeof *to);
  to->sharedSizeBytes = static_shared_bytes(kernel);
  to->maxThreadsPerBlock = THREADS_BLOCK;
  to->numRegs = REGISTERS_THREAD;
  to->ptxVersion = to->binaryVersion = 90;
  to->maxDynamicSharedSizeBytes = (int)dynamic_shared_limit(kernel);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel,
                                                                   int threads, size_t shared,
                                                                   unsigned flags) {
  (void)flags;
  if (threads < 1 || threads > THREADS_BLOCK) return set_error(cudaErrorInvalidValue);
  const size_t each = static_shared_bytes(kernel) + shared + 1024;
  const size_t by_shared = SHARED_PROCESSOR / each;
  const int by_threads = THREADS_PROCESSOR / ((threads + 31) / 32 * 32);
  *blocks = (int)std::min<size_t>({by_shared, (size_t)by_threads, BLOCKS_PROCESSOR});
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                          int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, threads, shared, 0);
}

/* ---- Errors that these files return -----------------------------------------------------------*/

#define II_EMU_ERRORS(X)                                                                           \
  X(cudaSuccess, "no error")                                                                       \
  X(cudaErrorInvalidValue, "invalid argument")                                                     \
  X(cudaErrorMemoryAllocation, "out of memory")                                                    \
  X(cudaErrorInvalidConfiguration, "invalid configuration argument")                               \
  X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                       \
  X(cudaErrorInvalidDevice, "invalid device ordinal")                                              \
  X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                     \
  X(cudaErrorNotReady, "device not ready")                                                         \
  X(cudaErrorIllegalState, "the operation cannot be performed in the present state")               \
  X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")         \
  X(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")  \
  X(cudaErrorStreamCaptureMerge,                                                                   \
    "operation would result in a merge of separate capture sequences")                             \
  X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")       \
  X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                          \
  X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")    \
  X(cudaErrorStreamCaptureImplicit,                                                                \
    "operation would make the legacy stream depend on a capturing blocking stream")                \
  X(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing "    \
                            "stream")                                                              \
  X(cudaErrorStreamCaptureWrongThread,                                                             \
    "attempt to terminate a thread-local capture sequence from another thread")                    \
  X(cudaErrorNotSupported, "operation not supported")                                              \
  X(cudaErrorUnknown, "unknown error")

const char *cudaGetErrorName(cudaError_t e) {
#define X(code, text)                                                                              \
  if (e == code) return #code;
  II_EMU_ERRORS(X)
#undef X
  return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e) {
#define X(code, text)                                                                              \
  if (e == code) return text;
  II_EMU_ERRORS(X)
#undef X
  return "unrecognized error code";
}

} // extern "C"
