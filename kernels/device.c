/* The CPU engine's side of device.h, and the choice between the engines. */
#include "kernels/device.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "kernels/cpu_engine.h"
#if II_HAVE_CUDA
#include "kernels/cuda/device_calls.h"
#define ON_GPU(k, call)                                                                            \
  if ((k)->device == II_CUDA) return call
#else
#define ON_GPU(k, call) (void)(k)

int ii_cuda_device_count(void) {
  return 0;
}

const char *ii_cuda_engine_name(void) {
  return "";
}
#endif

int ii_engine_open(ii_kctx *k, const ii_engine_options *o) {
  memset(k, 0, sizeof *k);
  k->device = o->device;
  if (o->device == II_CPU) return ii_cpu_engine_open(k, o->threads);
#if II_HAVE_CUDA
  return ii_cuda_engine_open(k, o);
#else
  return ii_kernel_error(k,
                         "this build has no CUDA engine: build with `cmake --preset cuda` (needs "
                         "the CUDA Toolkit and cuDNN), or use --device cpu");
#endif
}

void ii_engine_close(ii_kctx *k) {
  if (!k->engine) return;
#if II_HAVE_CUDA
  if (k->device == II_CUDA) {
    ii_cuda_engine_close(k);
    return;
  }
#endif
  ii_cpu_engine_close(k);
}

int64_t ii_engine_scratch_bytes(const ii_kctx *k) {
  ON_GPU(k, ii_cuda_engine_scratch_bytes(k));
  return ii_cpu_engine_scratch_bytes(k);
}

int ii_device_alloc(ii_kctx *k, size_t bytes, void **p) {
  ON_GPU(k, ii_cuda_alloc(k, bytes, p));
  *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*p == MAP_FAILED) {
    *p = NULL;
    return ii_kernel_error(k, "out of memory for %.1f MiB", (double)bytes / 0x1p20);
  }
  madvise(*p, bytes, MADV_HUGEPAGE); /* only a hint: its result does not matter */
  return 0;
}

void ii_device_free(ii_kctx *k, void *p, size_t bytes) {
#if II_HAVE_CUDA
  if (k->device == II_CUDA) {
    ii_cuda_free(k, p);
    return;
  }
#endif
  if (p) munmap(p, bytes);
}

bool ii_device_exact(const ii_kctx *k) {
  ON_GPU(k, ii_cuda_exact());
  return false;
}

int ii_device_write(ii_kctx *k, void *dst, const void *host, size_t bytes) {
  ON_GPU(k, ii_cuda_write(k, dst, host, bytes));
  if (bytes) memcpy(dst, host, bytes);
  return 0;
}

int ii_device_read(ii_kctx *k, void *host, const void *src, size_t bytes) {
  ON_GPU(k, ii_cuda_read(k, host, src, bytes));
  if (bytes) memcpy(host, src, bytes);
  return 0;
}

int ii_device_copy(ii_kctx *k, void *dst, const void *src, size_t bytes) {
  ON_GPU(k, ii_cuda_copy(k, dst, src, bytes));
  if (bytes) memcpy(dst, src, bytes);
  return 0;
}

int ii_device_zero(ii_kctx *k, void *dst, size_t bytes) {
  ON_GPU(k, ii_cuda_zero(k, dst, bytes));
  if (bytes) memset(dst, 0, bytes);
  return 0;
}

int ii_device_sync(ii_kctx *k) {
  ON_GPU(k, ii_cuda_sync(k));
  return 0;
}

int ii_host_alloc(ii_kctx *k, size_t bytes, void **p) {
  ON_GPU(k, ii_cuda_host_alloc(k, bytes, p));
  *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  return *p ? 0 : ii_kernel_error(k, "out of host memory for %.1f MiB", (double)bytes / 0x1p20);
}

void ii_host_free(ii_kctx *k, void *p) {
#if II_HAVE_CUDA
  if (k->device == II_CUDA) {
    ii_cuda_host_free(k, p);
    return;
  }
#endif
  free(p);
}

int ii_transfer_init(ii_kctx *k, ii_transfer *t) {
  *t = (ii_transfer){0};
  ON_GPU(k, ii_cuda_transfer_init(k, t));
  return 0;
}

void ii_transfer_destroy(ii_kctx *k, ii_transfer *t) {
#if II_HAVE_CUDA
  if (k->device == II_CUDA) ii_cuda_transfer_destroy(k, t);
#endif
  *t = (ii_transfer){0};
}

int ii_transfer_start(ii_kctx *k, ii_transfer *t, void *dst, const void *host, size_t bytes) {
  ON_GPU(k, ii_cuda_transfer_start(k, t, dst, host, bytes));
  return ii_device_write(k, dst, host, bytes);
}

int ii_transfer_acquire(ii_kctx *k, ii_transfer *t) {
  ON_GPU(k, ii_cuda_transfer_acquire(k, t));
  return 0;
}

int ii_transfer_release(ii_kctx *k, ii_transfer *t) {
  ON_GPU(k, ii_cuda_transfer_release(k, t));
  return 0;
}

int ii_transfer_host_done(ii_kctx *k, ii_transfer *t) {
  ON_GPU(k, ii_cuda_transfer_host_done(k, t));
  return 0;
}

int ii_upload_init(ii_kctx *k, ii_upload *u, size_t bytes) {
  *u = (ii_upload){0};
  for (int i = 0; i < 2; i++)
    if (ii_host_alloc(k, bytes, &u->host[i])) return 1;
  ON_GPU(k, ii_cuda_upload_init(k, u));
  return 0;
}

void ii_upload_destroy(ii_kctx *k, ii_upload *u) {
#if II_HAVE_CUDA
  if (k->device == II_CUDA) ii_cuda_upload_destroy(k, u);
#endif
  for (int i = 0; i < 2; i++)
    if (u->host[i]) ii_host_free(k, u->host[i]);
  *u = (ii_upload){0};
}

int ii_upload_begin(ii_kctx *k, ii_upload *u, void **host) {
  u->turn ^= 1;
  *host = u->host[u->turn];
  ON_GPU(k, ii_cuda_upload_begin(k, u));
  return 0;
}

int ii_upload_send(ii_kctx *k, ii_upload *u, void *dst, size_t bytes) {
  ON_GPU(k, ii_cuda_upload_send(k, u, dst, bytes));
  if (bytes) memcpy(dst, u->host[u->turn], bytes);
  return 0;
}

int ii_graph_begin(ii_kctx *k) {
  ON_GPU(k, ii_cuda_graph_begin(k));
  return ii_kernel_error(k, "only the CUDA engine can record its work");
}

int ii_graph_end(ii_kctx *k, ii_graph *g) {
  ON_GPU(k, ii_cuda_graph_end(k, g));
  return ii_kernel_error(k, "only the CUDA engine can record its work");
}

int ii_graph_launch(ii_kctx *k, const ii_graph *g) {
  ON_GPU(k, ii_cuda_graph_launch(k, g));
  return ii_kernel_error(k, "only the CUDA engine can record its work");
}

void ii_graph_destroy(ii_kctx *k, ii_graph *g) {
#if II_HAVE_CUDA
  if (k->device == II_CUDA) ii_cuda_graph_destroy(k, g);
#endif
  *g = (ii_graph){0};
}

int64_t ii_engine_layout(const ii_kctx *k) {
  ON_GPU(k, ii_cuda_engine_layout(k));
  return 0;
}
