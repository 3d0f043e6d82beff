/* The CUDA engine: one GPU, one stream for kernels and library calls, one for uploads; memory in
 * stream order; errors as sentences. Every entry point selects the engine's device first, so that a
 * caller may hold engines on several GPUs. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/gpu.h"

#if defined(II_EMULATE) && defined(__SANITIZE_ADDRESS__)
#define EXACT true
#else
#define EXACT false
#endif

/* ---- Errors -----------------------------------------------------------------------------------*/

int ii_cuda_error(ii_kctx *k, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  vsnprintf(k->error, sizeof k->error, fmt, args);
  va_end(args);
  return 1;
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

int ii_cuda_failed(ii_kctx *k, const char *call, const char *file, int line, int error) {
  const ii_cuda_engine *e = ii_cuda(k);
  const cudaError_t code = (cudaError_t)error;
  cudaGetLastError(); /* a sticky error would otherwise be reported again by the next call */
  /* an error of earlier, asynchronous work surfaces at any later call */
  const char *kernel = e && e->last_kernel ? e->last_kernel : NULL;
  if (!kernel)
    return ii_cuda_error(k, "%s failed on GPU %d: %s (%s, %s:%d)", call, e ? e->device : 0,
                         cudaGetErrorString(code), cudaGetErrorName(code), base_name(file), line);
  return ii_cuda_error(k,
                       "%s failed on GPU %d: %s (%s, %s:%d); the newest kernel was %s (%s:%d), and "
                       "II_CUDA_SYNC=1 finds the one at fault",
                       call, e->device, cudaGetErrorString(code), cudaGetErrorName(code),
                       base_name(file), line, kernel, base_name(e->last_file), e->last_line);
}

int ii_cuda_launched(ii_kctx *k, const char *kernel, const char *file, int line) {
  ii_cuda_engine *e = ii_cuda(k);
  cudaError_t code = cudaGetLastError();
  if (code == cudaSuccess && e->check_each) code = cudaStreamSynchronize(e->stream);
  if (code != cudaSuccess)
    return ii_cuda_error(k, "kernel %s failed on GPU %d: %s (%s, %s:%d)", kernel, e->device,
                         cudaGetErrorString(code), cudaGetErrorName(code), base_name(file), line);
  e->last_kernel = kernel;
  e->last_file = file;
  e->last_line = line;
  return 0;
}

/* ---- Open and close ---------------------------------------------------------------------------*/

extern "C" int ii_cuda_device_count(void) {
  int n = 0; /* a failing call leaves it untouched */
  if (cudaGetDeviceCount(&n) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return n;
}

extern "C" const char *ii_cuda_engine_name(void) {
#ifdef II_EMULATE
  return "cuda (emulated on the CPU)";
#else
  return "cuda";
#endif
}

static int no_gpu(ii_kctx *k) {
  int n = 0, driver = 0, runtime = 0;
  const cudaError_t code = cudaGetDeviceCount(&n);
  cudaGetLastError();
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return ii_cuda_error(k, "no NVIDIA driver was found on this machine: use --device cpu");
  if (driver < runtime && code == cudaErrorInsufficientDriver)
    return ii_cuda_error(k,
                         "the NVIDIA driver is too old (it serves CUDA %d.%d, this program needs "
                         "%d.%d): update it or use --device cpu",
                         driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  return ii_cuda_error(k,
                       "no usable GPU: %s; is CUDA_VISIBLE_DEVICES right? --device cpu works "
                       "without one",
                       code == cudaSuccess ? "none is visible" : cudaGetErrorString(code));
}

/* Freed memory stays with the driver's pool instead of going back at every synchronisation. */
static int keep_freed_memory(ii_kctx *k, int device) {
  cudaMemPool_t pool;
  uint64_t all = UINT64_MAX;
  II_CUDA_TRY(k, cudaDeviceGetDefaultMemPool(&pool, device));
  II_CUDA_TRY(k, cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all));
  return 0;
}

static int open_engine(ii_kctx *k, ii_cuda_engine *e) {
  II_CUDA_TRY(k, cudaSetDevice(e->device));
  II_CUDA_TRY(k, cudaGetDeviceProperties(&e->prop, e->device));
  if (e->prop.major < 8)
    return ii_cuda_error(k, "%s has compute capability %d.%d; 8.0 (A100) or newer is needed",
                         e->prop.name, e->prop.major, e->prop.minor);
  II_CUDA_TRY(k, cudaStreamCreateWithFlags(&e->stream, cudaStreamNonBlocking));
  II_CUDA_TRY(k, cudaStreamCreateWithFlags(&e->copies, cudaStreamNonBlocking));
  if (keep_freed_memory(k, e->device)) return 1;
  const cublasStatus_t status = cublasLtCreate(&e->blas);
  if (status != CUBLAS_STATUS_SUCCESS)
    return ii_cuda_error(k, "cuBLASLt could not be opened on GPU %d: %s", e->device,
                         cublasLtGetStatusString(status));
  return 0;
}

extern "C" int ii_cuda_engine_open(ii_kctx *k, const ii_engine_options *o) {
  const int count = ii_cuda_device_count();
  if (count == 0) return no_gpu(k);
  if (o->index < 0 || o->index >= count)
    return ii_cuda_error(k, "there is no GPU %d: this machine has %d (numbered from 0)", o->index,
                         count);
  ii_cuda_engine *e = (ii_cuda_engine *)calloc(1, sizeof *e);
  if (!e) return ii_cuda_error(k, "out of host memory");
  const char *sync = getenv("II_CUDA_SYNC");
  e->check_each = sync && *sync && strcmp(sync, "0") != 0;
  e->device = o->index;
  k->engine = e;
  if (!open_engine(k, e)) return 0;
  ii_cuda_engine_close(k);
  return 1;
}

extern "C" void ii_cuda_engine_close(ii_kctx *k) {
  ii_cuda_engine *e = ii_cuda(k);
  cudaSetDevice(e->device);
  if (e->stream) cudaStreamSynchronize(e->stream);
  if (e->copies) cudaStreamSynchronize(e->copies);
  ii_conv_plans_free(e);
  ii_matmul_plans_free(e);
  for (int i = 0; i < II_CUDA_SLOTS; i++)
    if (e->scratch[i]) cudaFreeAsync(e->scratch[i], e->stream);
  if (e->dnn) cudnnDestroy(e->dnn);
  if (e->blas) cublasLtDestroy(e->blas);
  if (e->stream) {
    cudaStreamSynchronize(e->stream);
    cudaStreamDestroy(e->stream);
  }
  if (e->copies) cudaStreamDestroy(e->copies);
  cudaGetLastError();
  free(e);
  k->engine = NULL;
}

/* ---- Memory -----------------------------------------------------------------------------------*/

#define SELECT(k) II_CUDA_TRY(k, cudaSetDevice(ii_cuda(k)->device))

/* Memory in stream order. When there is none, the driver's pool gives back what it keeps in pieces
 * that are too small, once the work before is done with them. */
static cudaError_t allocate(ii_cuda_engine *e, void **p, size_t bytes) {
  cudaMemPool_t pool;
  /* it would become a piece of the graph, with memory of its own at each launch */
  if (e->recording) return cudaErrorStreamCaptureUnsupported;
  cudaError_t code = cudaSetDevice(e->device);
  if (code == cudaSuccess) code = cudaMallocAsync(p, bytes, e->stream);
  if (code != cudaErrorMemoryAllocation) return code;
  cudaGetLastError();
  code = cudaStreamSynchronize(e->stream);
  if (code == cudaSuccess) code = cudaDeviceGetDefaultMemPool(&pool, e->device);
  if (code == cudaSuccess) code = cudaMemPoolTrimTo(pool, 0);
  return code == cudaSuccess ? cudaMallocAsync(p, bytes, e->stream) : code;
}

void *ii_cuda_scratch(ii_kctx *k, int slot, size_t bytes) {
  ii_cuda_engine *e = ii_cuda(k);
  if (bytes == 0) bytes = 1;
  /* exact: a kernel that runs over the end of what it asked for is seen */
  const bool enough = EXACT ? e->scratch_bytes[slot] == bytes : e->scratch_bytes[slot] >= bytes;
  if (e->scratch[slot] && enough) return e->scratch[slot];
  cudaSetDevice(e->device);
  if (e->scratch[slot] && !e->recording) {
    cudaFreeAsync(e->scratch[slot], e->stream);
    e->scratch[slot] = NULL;
    e->scratch_bytes[slot] = 0;
  }
  e->scratch_moves++;
  void *p = NULL;
  const cudaError_t code = allocate(e, &p, bytes);
  if (code != cudaSuccess) {
    cudaGetLastError();
    ii_cuda_error(k, "GPU %d: %.1f MiB of scratch memory: %s", e->device, (double)bytes / 0x1p20,
                  cudaGetErrorString(code));
    return NULL;
  }
  e->scratch[slot] = p;
  e->scratch_bytes[slot] = bytes;
  return e->scratch[slot];
}

extern "C" int64_t ii_cuda_engine_scratch_bytes(const ii_kctx *k) {
  int64_t sum = 0;
  for (int i = 0; i < II_CUDA_SLOTS; i++) sum += (int64_t)ii_cuda(k)->scratch_bytes[i];
  return sum;
}

extern "C" int ii_cuda_alloc(ii_kctx *k, size_t bytes, void **p) {
  ii_cuda_engine *e = ii_cuda(k);
  *p = NULL;
  const cudaError_t code = allocate(e, p, bytes ? bytes : 1);
  if (code == cudaSuccess) return 0;
  cudaGetLastError();
  *p = NULL;
  return ii_cuda_error(k, "GPU %d: %.1f MiB: %s", e->device, (double)bytes / 0x1p20,
                       cudaGetErrorString(code));
}

extern "C" void ii_cuda_free(ii_kctx *k, void *p) {
  ii_cuda_engine *e = ii_cuda(k);
  if (!p) return;
  cudaSetDevice(e->device);
  cudaFreeAsync(p, e->stream);
}

extern "C" bool ii_cuda_exact(void) {
  return EXACT;
}

extern "C" int ii_cuda_write(ii_kctx *k, void *dst, const void *host, size_t bytes) {
  if (!bytes) return 0;
  SELECT(k);
  const cudaStream_t s = ii_cuda_stream(k);
  II_CUDA_TRY(k, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, s));
  II_CUDA_TRY(k, cudaStreamSynchronize(s));
  return 0;
}

extern "C" int ii_cuda_read(ii_kctx *k, void *host, const void *src, size_t bytes) {
  if (!bytes) return 0;
  SELECT(k);
  const cudaStream_t s = ii_cuda_stream(k);
  II_CUDA_TRY(k, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, s));
  II_CUDA_TRY(k, cudaStreamSynchronize(s));
  return 0;
}

extern "C" int ii_cuda_copy(ii_kctx *k, void *dst, const void *src, size_t bytes) {
  if (!bytes) return 0;
  SELECT(k);
  II_CUDA_TRY(k, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, ii_cuda_stream(k)));
  return 0;
}

extern "C" int ii_cuda_zero(ii_kctx *k, void *dst, size_t bytes) {
  if (!bytes) return 0;
  SELECT(k);
  II_CUDA_TRY(k, cudaMemsetAsync(dst, 0, bytes, ii_cuda_stream(k)));
  return 0;
}

extern "C" int ii_cuda_sync(ii_kctx *k) {
  SELECT(k);
  II_CUDA_TRY(k, cudaStreamSynchronize(ii_cuda_stream(k)));
  II_CUDA_TRY(k, cudaGetLastError());
  return 0;
}

/* ---- Transfers --------------------------------------------------------------------------------*/

extern "C" int ii_cuda_host_alloc(ii_kctx *k, size_t bytes, void **p) {
  *p = NULL;
  SELECT(k);
  II_CUDA_TRY(k, cudaHostAlloc(p, bytes ? bytes : 1, cudaHostAllocDefault));
  return 0;
}

extern "C" void ii_cuda_host_free(ii_kctx *k, void *p) {
  cudaSetDevice(ii_cuda(k)->device);
  if (p) cudaFreeHost(p);
}

static cudaEvent_t event(void *p) {
  return (cudaEvent_t)p;
}

extern "C" int ii_cuda_transfer_init(ii_kctx *k, ii_transfer *t) {
  cudaEvent_t e;
  SELECT(k);
  II_CUDA_TRY(k, cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
  t->copied = e;
  II_CUDA_TRY(k, cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
  t->used = e;
  return 0;
}

extern "C" void ii_cuda_transfer_destroy(ii_kctx *k, ii_transfer *t) {
  cudaSetDevice(ii_cuda(k)->device);
  if (t->copied) cudaEventDestroy(event(t->copied));
  if (t->used) cudaEventDestroy(event(t->used));
}

extern "C" int ii_cuda_transfer_start(ii_kctx *k, ii_transfer *t, void *dst, const void *host,
                                      size_t bytes) {
  const cudaStream_t s = ii_cuda(k)->copies;
  SELECT(k);
  /* never recorded counts as done */
  II_CUDA_TRY(k, cudaStreamWaitEvent(s, event(t->used), 0));
  if (bytes) II_CUDA_TRY(k, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, s));
  II_CUDA_TRY(k, cudaEventRecord(event(t->copied), s));
  return 0;
}

extern "C" int ii_cuda_transfer_acquire(ii_kctx *k, ii_transfer *t) {
  SELECT(k);
  II_CUDA_TRY(k, cudaStreamWaitEvent(ii_cuda_stream(k), event(t->copied), 0));
  return 0;
}

extern "C" int ii_cuda_transfer_release(ii_kctx *k, ii_transfer *t) {
  SELECT(k);
  II_CUDA_TRY(k, cudaEventRecord(event(t->used), ii_cuda_stream(k)));
  return 0;
}

extern "C" int ii_cuda_transfer_host_done(ii_kctx *k, ii_transfer *t) {
  SELECT(k);
  II_CUDA_TRY(k, cudaEventSynchronize(event(t->copied)));
  return 0;
}
